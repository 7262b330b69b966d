//! Rows of what became of messages, and of which of them count.

use longwire_protocol::packet::HeadReason;
use longwire_protocol::{LogTime, Seq};
use serde::{Deserialize, Serialize};

/// What became of an entry after it was published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Altered {
    /// It is shown to nobody any more.
    pub is_recalled: bool,
    /// It is shown to nobody from this time on; 0 where it does not expire.
    pub expires: LogTime,
    /// Its edits, oldest first; at most [`crate::routing::limits::EDITS_MAX`].
    pub edits: Vec<Seq>,
    /// How often each reaction was given, at most [`crate::routing::limits::REACTIONS_MAX`] of them.
    pub reactions: Vec<(Box<str>, u64)>,
    /// Of an edit: the message that it edits; 0 for every other entry.
    #[serde(skip)]
    pub edit_of: Seq,
}

impl Altered {
    /// Why the entry is not shown at this time; `None` while it is.
    #[must_use]
    pub fn withheld(&self, now: LogTime) -> Option<HeadReason> {
        if self.is_recalled {
            Some(HeadReason::Recalled)
        } else if self.expires.0 > 0 && self.expires <= now {
            Some(HeadReason::Expired)
        } else {
            None
        }
    }
}

/// Which of a conversation's countable entries count no more. They are told by their place among the countable ones, so
/// that what goes in a run is one stretch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uncounted {
    /// Stretches of them, ascending, both ends included, never touching.
    pub stretches: Vec<(u64, u64)>,
    /// Those that will not count from a time on, by that time.
    pub expiring: Vec<(LogTime, u64)>,
}

impl Uncounted {
    /// The countable entry `at` counts no more.
    pub fn add(&mut self, at: u64) {
        let i = self.stretches.partition_point(|(_, to)| *to < at);
        if self.stretches.get(i).is_some_and(|(from, _)| *from <= at) {
            return;
        }
        let joins_last = i > 0 && self.stretches[i - 1].1 + 1 == at;
        let joins_next = self.stretches.get(i).is_some_and(|(from, _)| *from == at + 1);
        match (joins_last, joins_next) {
            (true, true) => self.stretches[i - 1].1 = self.stretches.remove(i).1,
            (true, false) => self.stretches[i - 1].1 = at,
            (false, true) => self.stretches[i].0 = at,
            (false, false) => self.stretches.insert(i, (at, at)),
        }
    }

    /// The countable entry `at` will not count from `expires` on.
    pub fn add_expiring(&mut self, expires: LogTime, at: u64) {
        let i = self.expiring.partition_point(|known| *known < (expires, at));
        self.expiring.insert(i, (expires, at));
    }

    /// How many are yet to expire at this time.
    #[must_use]
    pub fn expiring_after(&self, now: LogTime) -> usize {
        self.expiring.len() - self.expiring.partition_point(|(expires, _)| *expires <= now)
    }

    /// What has expired by now goes to the stretches.
    pub fn settle(&mut self, now: LogTime) {
        let expired = self.expiring.partition_point(|(expires, _)| *expires <= now);
        for (_, at) in self.expiring.drain(..expired).collect::<Vec<_>>() {
            self.add(at);
        }
    }

    /// Whether the countable entry `at` counts no more at this time.
    #[must_use]
    pub fn has(&self, at: u64, now: LogTime) -> bool {
        let i = self.stretches.partition_point(|(_, to)| *to < at);
        self.stretches.get(i).is_some_and(|(from, _)| *from <= at)
            || self.expiring.iter().take_while(|(expires, _)| *expires <= now).any(|(_, expired)| *expired == at)
    }

    /// How many of those above `after` count no more at this time.
    #[must_use]
    pub fn above(&self, after: u64, now: LogTime) -> u64 {
        let i = self.stretches.partition_point(|(_, to)| *to <= after);
        let gone: u64 = self.stretches[i..].iter().map(|(from, to)| to - after.max(from - 1)).sum();
        let in_stretch = |at: u64| {
            let i = self.stretches.partition_point(|(_, to)| *to < at);
            self.stretches.get(i).is_some_and(|(from, _)| *from <= at)
        };
        let expired = self.expiring.iter().take_while(|(expires, _)| *expires <= now);
        gone + expired.filter(|(_, at)| *at > after && !in_stretch(*at)).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// Against a set of places and a list of times, at every place and time.
    #[test]
    fn what_does_not_count_agrees_with_a_naive_set() {
        const PLACES: u64 = 24;
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut uncounted, mut gone, mut expiring) =
                (Uncounted::default(), BTreeSet::new(), BTreeMap::<u64, u64>::new());
            for now in 1..30 {
                let at = rng.u64(1..=PLACES);
                match rng.u8(..8) {
                    0..4 => {
                        uncounted.add(at);
                        gone.insert(at);
                    }
                    // Each has one time, and may be recalled before or after it.
                    4..7 if !expiring.contains_key(&at) && !gone.contains(&at) => {
                        let expires = now + rng.u64(1..10);
                        uncounted.add_expiring(LogTime(expires), at);
                        expiring.insert(at, expires);
                    }
                    _ => {
                        uncounted.settle(LogTime(now));
                        gone.extend(expiring.extract_if(.., |_, expires| *expires <= now).map(|(at, _)| at));
                    }
                }
                let stretches = &uncounted.stretches;
                assert!(stretches.iter().all(|(from, to)| from <= to), "seed {seed}: {stretches:?}");
                assert!(stretches.is_sorted_by(|a, b| a.1 + 1 < b.0), "seed {seed}: {stretches:?}");
                for when in [now, now + 4] {
                    let none = |at: &u64| gone.contains(at) || expiring.get(at).is_some_and(|expires| *expires <= when);
                    let yet = expiring.values().filter(|expires| **expires > when).count();
                    assert_eq!(uncounted.expiring_after(LogTime(when)), yet, "seed {seed}");
                    for at in 0..=PLACES + 1 {
                        assert_eq!(uncounted.has(at, LogTime(when)), none(&at), "seed {seed}: {at} at {when}");
                        let above = (at + 1..=PLACES).filter(none).count() as u64;
                        assert_eq!(uncounted.above(at, LogTime(when)), above, "seed {seed}: above {at} at {when}");
                    }
                }
            }
        }
    }

    #[test]
    fn an_entry_is_withheld_from_the_moment_it_expires_and_a_recall_says_more() {
        let expires = |at| Altered { expires: LogTime(at), ..Altered::default() };
        let at = |row: &Altered, now| row.withheld(LogTime(now));
        assert_eq!(at(&expires(0), 9), None);
        assert_eq!(
            [8, 9, 10].map(|now| at(&expires(9), now)),
            [None, Some(HeadReason::Expired), Some(HeadReason::Expired)]
        );
        let recalled = Altered { is_recalled: true, ..expires(9) };
        assert_eq!([8, 9].map(|now| at(&recalled, now)), [Some(HeadReason::Recalled); 2]);
    }
}
