//! Tallies against a plain set; what one change costs; rows of before there were any.

use std::collections::BTreeSet;

use longwire_protocol::{ConversationId, LogTime, Seq, UserId};

use super::*;
use crate::routing::change::Change;
use crate::routing::fold::{Body, fold_change, fold_entry};
use crate::routing::rows::Kind;
use crate::routing::state::State;
use crate::routing::view::{Overlay, Reader};
use crate::store::{EntryMeta, Position};

const ID: ConversationId = ConversationId(4_096);

/// A state with something drafted over it.
#[derive(Default)]
struct World {
    state: State,
    overlay: Overlay,
}

impl World {
    /// Folds something, and gives the bytes of the rows that it changed.
    fn fold(&mut self, fold: impl FnOnce(&mut View<'_>)) -> usize {
        fold(&mut View::new(&self.state, &mut self.overlay));
        let bytes = self.overlay.bytes();
        self.overlay.merge(&mut self.state);
        bytes
    }

    fn above(&self, after: u64, now: LogTime) -> u64 {
        let rows = Reader::new(&self.state);
        rows.uncounted(ID).map_or(0, |row| above(&rows, ID, row, after, now))
    }

    fn has(&self, at: u64, now: LogTime) -> bool {
        let rows = Reader::new(&self.state);
        rows.uncounted(ID).is_some_and(|row| has(&rows, ID, row, at, now))
    }
}

#[test]
fn tallies_agree_with_a_plain_set() {
    for seed in 0..100 {
        let mut random = fastrand::Rng::with_seed(seed);
        // Few messages close together, and many far apart.
        let most = [50, 3_000, 200_000, 90_000_000][seed as usize % 4];
        let mut world = World::default();
        let (mut gone, mut expiring, mut now, mut next) = (BTreeSet::new(), Vec::new(), LogTime(1), 1);
        if seed % 3 == 0 {
            // As an older broker left it.
            let mut row = Uncounted::default();
            while next < most / 2 && row.stretches.len() < 20 {
                let to = next + random.u64(..3 * BLOCK / 2).min(most / 10);
                row.stretches.push((next, to));
                gone.extend(next..=to);
                next = to + 2 + random.u64(..most / 100 + 1);
            }
            if let Some((from, _)) = row.stretches.first() {
                row.expiring.push((LogTime(9), *from));
            }
            let bytes = Row::Uncounted(row.clone()).encode();
            assert_eq!(Row::decode(&bytes).expect("a row"), Row::Uncounted(row.clone()), "without anything behind it");
            world.fold(|view| view.put(Key::Uncounted(ID), Some(Row::Uncounted(row))));
        }
        for _ in 0..100 {
            now.0 += random.u64(..3);
            match random.u8(..3) {
                0 => {
                    let at = random.u64(1..=most);
                    // It is recalled once, as long as it is shown.
                    if !gone.contains(&at) && !expiring.iter().any(|(end, of)| *of == at && *end <= now) {
                        world.fold(|view| fold_gone(view, ID, now, at));
                        gone.insert(at);
                    }
                }
                1 => {
                    next += 1 + random.u64(..most / 100 + 1);
                    let (at, expires) = (next, LogTime(now.0 + random.u64(1..200)));
                    if !gone.contains(&at) {
                        world.fold(|view| fold_expiring(view, ID, now, expires, at));
                        expiring.push((expires, at));
                    }
                }
                _ => {}
            }
            let ended = expiring.iter().filter(|(expires, _)| *expires <= now).map(|(_, at)| *at);
            let all: BTreeSet<u64> = gone.iter().copied().chain(ended).collect();
            for _ in 0..3 {
                let after = random.u64(0..=most + 10);
                assert_eq!(
                    world.above(after, now),
                    all.range(after + 1..).count() as u64,
                    "seed {seed}, above {after}"
                );
                assert_eq!(world.has(after, now), all.contains(&after), "seed {seed}, {after}");
            }
        }
        // A conversation that goes on takes all of the old stretches into tallies.
        for _ in 0..100 {
            world.fold(|view| fold_gone(view, ID, now, most));
        }
        gone.insert(most);
        let left = Reader::new(&world.state).uncounted(ID).map_or(0, |row| row.stretches.len());
        assert_eq!(left, 0, "seed {seed}: none is left in stretches");
    }
}

/// Each message that expires beside one that does not was a stretch of its own in one row, for good: the row, and what each
/// further one cost the commit thread, grew without bound. Now what one changes stays the same.
#[test]
fn messages_that_expire_beside_others_that_stay_cost_the_same_for_ever() {
    let mut world = World::default();
    world.fold(|view| {
        let pair = (UserId(0), UserId(0));
        let created = Change::ConversationCreated { conversation: ID, kind: Kind::Group, label: "g".into(), pair };
        fold_change(view, Position(1), LogTime(1), &created);
    });
    let (mut most, mut last) = (0, LogTime(0));
    for seq in 1..=40_000 {
        last = LogTime(seq * 10);
        let expires = LogTime(if seq % 2 == 0 { last.0 + 1 } else { 0 });
        let meta = EntryMeta { conversation: ID, seq: Seq(seq), countable: seq, ..EntryMeta::default() };
        let body = Body::Message { sender: UserId(7), mentions: Vec::new(), expires };
        let bytes = world.fold(|view| fold_entry(view, &meta, Position(seq + 1), last, &body));
        most = most.max(bytes);
    }
    assert!(most < 1_000, "one message changed rows of {most} bytes");
    let later = LogTime(last.0 + 10);
    assert_eq!((world.above(0, later), world.above(39_000, later)), (20_000, 500));
}
