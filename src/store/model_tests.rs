//! Random operations on a store with tiny memtables and runs, against a plain sorted map.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::BufMut;
use longwire_protocol::{ConversationId, Seq};
use proptest::prelude::*;

use super::options::StoreOptions;
use super::redb_log::RedbLog;
use super::testing::model::ALL;
use super::testing::{Fold, Model, SimDisk};
use super::{Log, PageLimit, Position, StoredEntry};

#[derive(Clone, Debug)]
enum Operation {
    Append { conversations: Vec<u64>, size: usize },
    Work { steps: usize },
    RaiseFloor { below_tail: u64 },
    Restart,
    Range { conversation: u64, from: u64, to: u64, backwards: bool, entries: usize, bytes: usize },
    FirstAfter { conversation: u64, below_tail: u64 },
}

fn operation() -> impl Strategy<Value = Operation> {
    let conversation = 0..5_u64;
    prop_oneof![
        8 => (prop::collection::vec(conversation.clone(), 1..6), prop_oneof![0..200_usize, 3_700..9_000_usize])
            .prop_map(|(conversations, size)| Operation::Append { conversations, size }),
        3 => (1..30_usize).prop_map(|steps| Operation::Work { steps }),
        1 => (20..300_u64).prop_map(|below_tail| Operation::RaiseFloor { below_tail }),
        1 => Just(Operation::Restart),
        6 => (conversation.clone(), 0..60_u64, 0..60_u64, any::<bool>(), 0..40_usize, 0..5_000_usize).prop_map(
            |(conversation, from, length, backwards, entries, bytes)| Operation::Range {
                conversation,
                from,
                to: from + length,
                backwards,
                entries,
                bytes,
            }
        ),
        4 => (conversation, 0..200_u64)
            .prop_map(|(conversation, below_tail)| Operation::FirstAfter { conversation, below_tail }),
    ]
}

/// What the history must answer, looked up in a map.
#[derive(Default)]
struct Plain {
    entries: BTreeMap<(ConversationId, Seq), StoredEntry>,
    floor: Position,
}

impl Plain {
    fn of(&self, conversation: ConversationId, from: Seq, to: Seq) -> Vec<StoredEntry> {
        let from = from.min(to.next());
        let range = self.entries.range((conversation, from)..(conversation, to.next()));
        range.map(|(_, entry)| entry).filter(|entry| entry.position >= self.floor).cloned().collect()
    }
}

fn page(mut wanted: Vec<StoredEntry>, backwards: bool, limit: PageLimit) -> Vec<StoredEntry> {
    if backwards {
        wanted.reverse();
    }
    let mut bytes = 0;
    let admitted = wanted.iter().enumerate().take_while(|(index, entry)| {
        bytes += entry.item.len();
        *index == 0 || (*index < limit.entries && bytes <= limit.bytes)
    });
    let admitted = admitted.count();
    wanted.truncate(admitted);
    wanted
}

fn open(disk: &SimDisk) -> RedbLog {
    let options =
        StoreOptions { seal_entries: 5, run_entries: 120, run_cache_bytes: 1 << 16, ..StoreOptions::default() };
    RedbLog::open_by_hand(Arc::new(disk.clone()), options).expect("opens")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_store_of_memtables_and_runs_answers_like_a_sorted_map(
        operations in prop::collection::vec(operation(), 1..150),
    ) {
        let disk = SimDisk::default();
        let mut log = open(&disk);
        let mut model = Model::default();
        let mut plain = Plain::default();
        for operation in operations {
            match operation {
                Operation::Append { conversations, size } => {
                    let frame = model.frame_of(&log, &conversations, size);
                    model.append(&mut log, &frame);
                    for entry in frame.entries() {
                        plain.entries.insert((entry.conversation, entry.seq), entry.clone());
                    }
                    model.seal_if_due(&mut log);
                }
                Operation::Work { steps } => {
                    for _ in 0..steps {
                        log.work().expect("works");
                    }
                }
                Operation::RaiseFloor { below_tail } => {
                    let floor = Position(model.tail.0.saturating_sub(below_tail));
                    plain.floor = plain.floor.max(floor);
                    log.set_floor(floor);
                }
                Operation::Restart => {
                    Box::new(log).close().expect("closes");
                    log = open(&disk);
                    log.set_floor(plain.floor);
                    model.fold = Fold::recovered(&log);
                }
                Operation::Range { conversation, from, to, backwards, entries, bytes } => {
                    let (conversation, from, to) = (ConversationId(conversation), Seq(from), Seq(to));
                    let limit = PageLimit { entries, bytes };
                    let expected = page(plain.of(conversation, from, to), backwards, limit);
                    let history = log.history();
                    let found = history.range(conversation, from, to, backwards, limit).expect("reads");
                    prop_assert_eq!(&found, &expected);
                    if let Some(found) = history.range_in_memory(conversation, from, to, backwards, limit) {
                        prop_assert_eq!(&found, &expected);
                    }
                }
                Operation::FirstAfter { conversation, below_tail } => {
                    let conversation = ConversationId(conversation);
                    let position = Position(model.tail.0.saturating_sub(below_tail));
                    let mut later = plain.of(conversation, Seq(0), Seq(u64::MAX - 1)).into_iter();
                    let expected = later.find(|entry| entry.position > position).map(|entry| entry.seq);
                    let history = log.history();
                    prop_assert_eq!(history.first_after(conversation, position).expect("reads"), expected);
                    if let Some(found) = history.first_after_in_memory(conversation, position) {
                        prop_assert_eq!(found, expected);
                    }
                }
            }
        }
        let report = super::check::check_disk(Arc::new(disk.after_crash(&mut fastrand::Rng::with_seed(1))), &mut ());
        prop_assert_eq!(report.expect("can be checked").problems, Vec::<String>::new());
    }
}

/// What was read lately is held, and what came since lies in a run, too, or still in the memtable: an answer from memory has
/// no hole where these do not meet.
#[test]
fn what_is_held_is_joined_with_the_memtable_where_they_meet() {
    let disk = SimDisk::default();
    let mut log = open(&disk);
    let mut model = Model::default();
    let append = |log: &mut RedbLog, model: &mut Model| {
        let frame = model.frame_of(log, &[1], 10);
        model.append(log, &frame);
    };
    let seal = |log: &mut RedbLog, model: &mut Model| {
        log.seal(model.fold.take_delta());
        while log.work().expect("works") {}
    };
    let range = |log: &RedbLog, from, to, backwards| {
        let page = log.history().range_in_memory(ConversationId(1), Seq(from), Seq(to), backwards, ALL)?;
        Some(page.iter().map(|entry| entry.seq.0).collect::<Vec<_>>())
    };
    let read = |log: &RedbLog, from, to| {
        log.history().range(ConversationId(1), Seq(from), Seq(to), true, ALL).expect("can be read");
    };
    (0..3).for_each(|_| append(&mut log, &mut model));
    seal(&mut log, &mut model);
    read(&log, 2, 3);
    append(&mut log, &mut model);
    assert_eq!(range(&log, 2, 4, false), Some(vec![2, 3, 4]), "the memtable goes on where what is held ends");
    assert_eq!(range(&log, 2, 4, true), Some(vec![4, 3, 2]));
    assert_eq!((range(&log, 1, 4, false), range(&log, 1, 4, true), range(&log, 1, 1, true)), (None, None, None));
    seal(&mut log, &mut model);
    append(&mut log, &mut model);
    for backwards in [false, true] {
        assert_eq!(range(&log, 2, 3, backwards).map(|seqs| seqs.len()), Some(2));
        for from in 2..=4 {
            assert_eq!(range(&log, from, 5, backwards), None, "the fourth is in a run: from {from}");
        }
    }
    read(&log, 4, 5);
    assert_eq!(range(&log, 2, 5, false), Some(vec![2, 3, 4, 5]), "read in two pieces");
    append(&mut log, &mut model);
    assert_eq!(range(&log, 3, 6, false), Some(vec![3, 4, 5, 6]), "the fifth is in both");
    read(&log, 1, 1);
    assert_eq!(range(&log, 1, 6, true), Some(vec![6, 5, 4, 3, 2, 1]), "scrolled back");
    assert_eq!((range(&log, 3, 2, false), range(&log, 3, 2, true)), (None, None), "from beyond to");
    model.assert_matches(&log);
}

/// A row that a big entry fills alone, between rows that many share.
#[test]
fn entries_of_every_size_come_back_from_runs() {
    let disk = SimDisk::default();
    let mut log = open(&disk);
    let mut model = Model::default();
    for size in [0, 1, 3_700, 3_790, 3_791, 3_800, 3_900, 4_000, 70_000, 200_000, 10, 0, 0, 0, 0] {
        let mut builder = model.next_frame(&log);
        model.push_entries(&mut builder, &[1], size);
        builder.push_change(|b| b.put_slice(b"x"));
        let frame = builder.finish();
        model.append(&mut log, &frame);
        model.seal_if_due(&mut log);
    }
    while log.work().expect("works") {}
    assert!(log.history().range_in_memory(ConversationId(1), Seq(1), Seq(1), false, ALL).is_none());
    model.assert_matches(&log);
}
