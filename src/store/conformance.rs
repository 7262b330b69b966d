//! The conformance suite: what [`Log`] and [`History`] promise, held against every implementation.

use bytes::BufMut;
use longwire_protocol::{ConversationId, LogTime, Seq};

use super::memory_log::{Failure, MemoryLog};
use super::options::StoreOptions;
use super::redb_log::RedbLog;
use super::testing::model::ALL;
use super::testing::{Fold, Model, SimDisk};
use super::{AppendError, Log, PageLimit, Position, Pressure};

/// An implementation under test. Logs are made to be sealed every [`SEAL`] entries.
trait Subject {
    fn new() -> Self;
    fn log(&mut self) -> &mut dyn Log;
    /// Does all background work.
    fn settle(&mut self);
    /// Closes and opens again.
    fn restart(self) -> Self;
    /// Makes the next append fail under way, without a trace of its frame.
    fn lose_next_append(&mut self);
}

const SEAL: usize = 20;
const BIRTH: u64 = 1_700_000_000_000;

struct Memory(MemoryLog);

impl Subject for Memory {
    fn new() -> Self {
        Self(MemoryLog::new(BIRTH, SEAL))
    }

    fn log(&mut self) -> &mut dyn Log {
        &mut self.0
    }

    fn settle(&mut self) {}

    fn restart(self) -> Self {
        Self(self.0.restarted())
    }

    fn lose_next_append(&mut self) {
        self.0.fail_next_append(Failure::UnknownAndLost);
    }
}

struct Redb {
    log: RedbLog,
    disk: SimDisk,
}

impl Redb {
    fn open(disk: SimDisk) -> Self {
        let options = StoreOptions { birth_unix_ms: BIRTH, seal_entries: SEAL, ..StoreOptions::default() };
        Self { log: RedbLog::open_by_hand(std::sync::Arc::new(disk.clone()), options).expect("opens"), disk }
    }
}

impl Subject for Redb {
    fn new() -> Self {
        Self::open(SimDisk::default())
    }

    fn log(&mut self) -> &mut dyn Log {
        &mut self.log
    }

    fn settle(&mut self) {
        while self.log.work().expect("background work succeeds") {}
    }

    fn restart(self) -> Self {
        Box::new(self.log).close().expect("closes");
        Self::open(self.disk)
    }

    fn lose_next_append(&mut self) {
        self.disk.fail_after(1);
    }
}

macro_rules! conformance {
    ($($(#[$doc:meta])* $name:ident)*) => {
        mod memory {
            $($(#[$doc])* #[test] fn $name() { super::$name::<super::Memory>(); })*
        }
        mod redb {
            $($(#[$doc])* #[test] fn $name() { super::$name::<super::Redb>(); })*
        }
    };
}

conformance! {
    an_empty_log_begins_at_zero
    a_frame_is_visible_once_it_is_appended
    a_frame_that_does_not_follow_the_tail_is_a_conflict
    a_frame_of_another_segment_or_with_a_gap_is_surely_not_stored
    pages_keep_to_their_limits_and_hold_at_least_one_entry
    following_from_every_position_gives_the_frames_that_have_a_later_record
    everything_is_there_through_seals_and_restarts
    riders_that_are_in_the_state_are_not_followed_again
    each_start_begins_a_segment_and_remembers_the_others
    after_a_failed_append_the_log_refuses_until_it_is_reopened
    the_first_entry_after_a_position_is_found_wherever_it_lies
    answers_from_memory_are_the_same_or_none
    entries_below_the_floor_are_gone_and_the_floor_never_falls
    the_proposed_floor_keeps_to_bytes_and_time
    an_empty_frame_is_a_probe
    rows_that_were_saved_are_found_by_key_and_by_prefix
    it_says_whether_it_takes_writes_and_how_much_memory_holds
}

fn an_empty_log_begins_at_zero<S: Subject>() {
    let mut subject = S::new();
    let log = subject.log();
    assert_eq!((log.tail(), log.tail_time(), log.birth_unix_ms()), (Position(0), LogTime(0), BIRTH));
    assert_eq!(log.pressure(), Pressure::Open);
    assert!(!log.is_seal_due());
    assert_eq!(log.segments().len(), 1);
    Model::default().assert_matches(log);
    assert!(log.history().range(ConversationId(1), Seq(1), Seq(9), false, ALL).expect("reads").is_empty());
}

fn a_frame_is_visible_once_it_is_appended<S: Subject>() {
    let mut subject = S::new();
    let mut model = Model::default();
    let history = subject.log().history();
    for round in 0..10 {
        let frame = model.frame_of(subject.log(), &[1, 2, 1, 3 + round], 50);
        model.append(subject.log(), &frame);
        model.assert_history(&*history);
    }
    model.assert_matches(subject.log());
}

fn a_frame_that_does_not_follow_the_tail_is_a_conflict<S: Subject>() {
    let mut subject = S::new();
    let mut model = Model::default();
    let first = model.frame_of(subject.log(), &[1, 2], 10);
    model.append(subject.log(), &first);
    let Err(AppendError::Conflict { first: begins, expected }) = subject.log().append(&first) else {
        panic!("the frame is there already");
    };
    assert_eq!((begins, expected), (Position(1), Position(3)));
    let mut ahead = model.clone();
    ahead.tail = Position(7);
    let frame = ahead.frame_of(subject.log(), &[1], 10);
    assert!(matches!(subject.log().append(&frame), Err(AppendError::Conflict { .. })));
    model.assert_matches(subject.log());
}

fn a_frame_of_another_segment_or_with_a_gap_is_surely_not_stored<S: Subject>() {
    let mut subject = S::new();
    let mut model = Model::default();
    let foreign = model.frame_of(S::new().log(), &[1], 10);
    assert!(matches!(subject.log().append(&foreign), Err(AppendError::NotStored(_))));
    let frame = model.frame_of(subject.log(), &[1], 10);
    model.append(subject.log(), &frame);
    let mut forgetful = model.clone();
    forgetful.entries.clear();
    let again = forgetful.frame_of(subject.log(), &[1], 10);
    assert!(matches!(subject.log().append(&again), Err(AppendError::NotStored(_))));
    let frame = model.frame_of(subject.log(), &[1], 10);
    model.append(subject.log(), &frame);
    model.assert_matches(subject.log());
}

fn pages_keep_to_their_limits_and_hold_at_least_one_entry<S: Subject>() {
    let mut subject = S::new();
    let mut model = Model::default();
    for round in 0..40 {
        let frame = model.frame_of(subject.log(), &[7, 8], 100 + round);
        model.append(subject.log(), &frame);
        if model.seal_if_due(subject.log()) && round < 25 {
            subject.settle();
        }
    }
    let history = subject.log().history();
    let all = model.kept(ConversationId(7));
    for (from, entries, bytes) in [(1, 5, 1 << 20), (3, 100, 450), (12, 1, 0), (30, 0, 0), (35, 100, 1 << 20)] {
        let limit = PageLimit { entries, bytes };
        let expected = |mut wanted: Box<dyn Iterator<Item = &super::StoredEntry>>| {
            let mut page = vec![wanted.next().expect("there is one").clone()];
            let mut size = page[0].item.len();
            for entry in wanted {
                size += entry.item.len();
                if page.len() >= entries || size > bytes {
                    break;
                }
                page.push(entry.clone());
            }
            page
        };
        let forwards = history.range(ConversationId(7), Seq(from), Seq(40), false, limit).expect("reads");
        assert_eq!(forwards, expected(Box::new(all[from as usize - 1..].iter())));
        let backwards = history.range(ConversationId(7), Seq(1), Seq(from), true, limit).expect("reads");
        assert_eq!(backwards, expected(Box::new(all[..from as usize].iter().rev())));
    }
    assert!(history.range(ConversationId(7), Seq(41), Seq(50), false, ALL).expect("reads").is_empty());
    assert!(history.range(ConversationId(7), Seq(9), Seq(8), false, ALL).expect("reads").is_empty());
    assert!(history.range(ConversationId(9), Seq(1), Seq(8), true, ALL).expect("reads").is_empty());
}

fn following_from_every_position_gives_the_frames_that_have_a_later_record<S: Subject>() {
    let mut subject = S::new();
    let mut model = Model::default();
    let mut frames = Vec::new();
    for round in 1..=12_u64 {
        let conversations: Vec<_> = (0..round % 4).collect();
        let mut builder = model.next_frame(subject.log());
        model.push_entries(&mut builder, &conversations, 5_000 * (round as usize % 5));
        builder.push_rider(|b| b.put_u8(round as u8));
        let frame = builder.finish();
        model.append(subject.log(), &frame);
        frames.push(frame);
    }
    for from in 0..=model.tail.0 {
        let expected: Vec<_> =
            frames.iter().filter(|frame| frame.last().0 > from || frame.first.0 > from).cloned().collect();
        let mut found = Vec::new();
        subject.log().follow(Position(from), &mut |frame| found.push(frame)).expect("can be followed");
        assert_eq!(found, expected, "from {from}");
    }
}

fn everything_is_there_through_seals_and_restarts<S: Subject>() {
    let mut subject = S::new();
    let mut model = Model::default();
    for round in 0..200_u64 {
        let mut builder = model.next_frame(subject.log());
        model.push_entries(&mut builder, &[round % 3, round % 7, 11], (round as usize * 97) % 6_000);
        if round % 3 == 0 {
            builder.push_change(|b| b.put_slice(format!("name {}", round % 9).as_bytes()));
        }
        if round % 10 == 9 {
            builder.push_change(|b| b.put_slice(format!("-name {}", round % 9).as_bytes()));
        }
        let frame = builder.finish();
        model.append(subject.log(), &frame);
        if model.seal_if_due(subject.log()) && round % 2 == 0 {
            subject.settle();
        }
        if round % 23 == 0 {
            subject = subject.restart();
            model.fold = Fold::recovered(subject.log());
        }
        if round % 9 == 0 {
            model.assert_matches(subject.log());
        }
    }
    subject.settle();
    model.assert_matches(subject.log());
}

fn riders_that_are_in_the_state_are_not_followed_again<S: Subject>() {
    let mut subject = S::new();
    let mut model = Model::default();
    let rider = |model: &Model, log: &dyn Log, body: &[u8]| {
        let mut builder = model.next_frame(log);
        builder.push_rider(|b| b.put_slice(body));
        builder.finish()
    };
    let frame = model.frame_of(subject.log(), &[1; SEAL], 10);
    model.append(subject.log(), &frame);
    // So many that the next commits do not trim them all.
    for _ in 0..20 {
        let frame = rider(&model, subject.log(), b"x old");
        model.append(subject.log(), &frame);
    }
    assert!(model.seal_if_due(subject.log()));
    subject.settle();
    let frame = rider(&model, subject.log(), b"x new");
    model.append(subject.log(), &frame);
    let applied = subject.log().applied().expect("reads");
    let mut followed = Vec::new();
    subject.log().follow(applied, &mut |frame| followed.push(frame)).expect("follows");
    assert_eq!(followed, [frame]);
    let mut subject = subject.restart();
    model.assert_matches(subject.log());
}

fn each_start_begins_a_segment_and_remembers_the_others<S: Subject>() {
    let mut subject = S::new();
    let mut model = Model::default();
    let mut expected = Vec::new();
    for start in 0..5 {
        let newest = *subject.log().segments().last().expect("has a segment");
        assert_eq!((newest.first, newest.time), (Position(model.tail.0 + 1), model.time));
        expected.push(newest);
        assert_eq!(subject.log().segments(), expected);
        for _ in 0..start * 2 {
            let frame = model.frame_of(subject.log(), &[start, 4, 5, 6], 10);
            model.append(subject.log(), &frame);
            model.seal_if_due(subject.log());
            subject.settle();
        }
        subject = subject.restart();
        model.fold = Fold::recovered(subject.log());
    }
    model.assert_matches(subject.log());
}

fn after_a_failed_append_the_log_refuses_until_it_is_reopened<S: Subject>() {
    let mut subject = S::new();
    let mut model = Model::default();
    let frame = model.frame_of(subject.log(), &[1, 2], 10);
    model.append(subject.log(), &frame);
    let frame = model.frame_of(subject.log(), &[1, 2], 10);
    subject.lose_next_append();
    for _ in 0..2 {
        assert!(matches!(subject.log().append(&frame), Err(AppendError::Unknown { sync: false, .. })));
        model.assert_history(&*subject.log().history());
    }
    subject.log().reopen().expect("reopens");
    model.assert_matches(subject.log());
    model.append(subject.log(), &frame);
    model.assert_matches(subject.log());
    assert!(matches!(subject.log().append(&frame), Err(AppendError::Conflict { .. })));
}

fn the_first_entry_after_a_position_is_found_wherever_it_lies<S: Subject>() {
    let (mut subject, model) = spread::<S>();
    let history = subject.log().history();
    for conversation in 0..9 {
        let conversation = ConversationId(conversation);
        let kept = model.kept(conversation);
        for position in 0..=model.tail.0 {
            let expected = kept.iter().find(|entry| entry.position.0 > position).map(|entry| entry.seq);
            assert_eq!(history.first_after(conversation, Position(position)).expect("reads"), expected, "{position}");
        }
    }
}

fn answers_from_memory_are_the_same_or_none<S: Subject>() {
    let (mut subject, model) = spread::<S>();
    let history = subject.log().history();
    let mut answered = 0;
    for conversation in (0..10).map(ConversationId) {
        let length = model.kept(conversation).len() as u64;
        for from in 0..=length + 2 {
            let to = Seq(from + 5);
            for (backwards, limit) in [(false, ALL), (true, ALL), (true, PageLimit { entries: 2, ..ALL })] {
                if let Some(page) = history.range_in_memory(conversation, Seq(from), to, backwards, limit) {
                    answered += 1;
                    assert_eq!(page, history.range(conversation, Seq(from), to, backwards, limit).expect("reads"));
                }
            }
        }
        for position in (0..=model.tail.0).map(Position) {
            if let Some(seq) = history.first_after_in_memory(conversation, position) {
                answered += 1;
                assert_eq!(seq, history.first_after(conversation, position).expect("reads"));
            }
        }
    }
    assert!(answered > 100, "what is in memory is answered from memory");
    let tail = model.kept(ConversationId(0)).last().expect("has entries").seq;
    assert!(history.range_in_memory(ConversationId(0), tail, tail, false, ALL).is_some());
    // The newest are in memory whatever lies before them: that is what most pages of history ask for.
    let one = PageLimit { entries: 1, ..ALL };
    let newest = history.range_in_memory(ConversationId(0), Seq(1), tail, true, one).expect("from memory");
    assert_eq!(newest.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [tail]);
}

fn entries_below_the_floor_are_gone_and_the_floor_never_falls<S: Subject>() {
    let (mut subject, mut model) = spread::<S>();
    for floor in [0, 1, 17, 60, 61, 150, 10, model.tail.0, model.tail.0 + 1] {
        subject.log().set_floor(Position(floor));
        model.floor = model.floor.max(Position(floor));
        assert_eq!(subject.log().history().floor(), model.floor);
        model.assert_matches(subject.log());
        subject.settle();
        model.assert_matches(subject.log());
        let next = Position(model.floor.0.saturating_sub(3));
        for conversation in (0..9).map(ConversationId) {
            let expected = model.kept(conversation).into_iter().find(|entry| entry.position > next);
            let found = subject.log().history().first_after(conversation, next).expect("reads");
            assert_eq!(found, expected.map(|entry| entry.seq));
        }
    }
}

fn the_proposed_floor_keeps_to_bytes_and_time<S: Subject>() {
    let (mut subject, model) = spread::<S>();
    let log = subject.log();
    assert_eq!(log.proposed_floor(None, None), Position(0));
    assert_eq!(log.proposed_floor(Some(1 << 40), Some(LogTime(0))), Position(0));
    let some = log.proposed_floor(None, Some(LogTime(model.time.0 * 9 / 10)));
    assert!(some > Position(0) && some <= log.tail(), "most of the time is some of the runs: {some:?}");
    let all = log.proposed_floor(Some(0), None);
    assert!(all > some && all.0 <= log.tail().0 + 1, "no bytes at all are all of the runs: {all:?}");
    log.set_floor(all);
    assert_eq!(log.proposed_floor(None, None), all);
    assert_eq!(log.proposed_floor(Some(0), Some(LogTime(1))), all);
}

fn an_empty_frame_is_a_probe<S: Subject>() {
    let mut subject = S::new();
    let mut model = Model::default();
    for _ in 0..3 {
        let probe = model.next_frame(subject.log()).finish();
        model.append(subject.log(), &probe);
    }
    let frame = model.frame_of(subject.log(), &[1], 10);
    model.append(subject.log(), &frame);
    model.assert_matches(subject.log());
}

fn rows_that_were_saved_are_found_by_key_and_by_prefix<S: Subject>() {
    let (subject, model) = spread::<S>();
    let mut subject = subject.restart();
    let saved = subject.log().saved();
    // What the model's last seal did not take stands in the log alone.
    let recovered = Fold::recovered(subject.log()).rows;
    assert_eq!(recovered, model.fold.rows);
    let mut found = Vec::new();
    saved.each(b"", &mut |key, value| found.push((key.to_vec(), value.to_vec()))).expect("reads");
    assert!(found.len() > 3 && found.is_sorted(), "{} rows", found.len());
    let keys: Vec<_> = found.iter().map(|(key, _)| key.clone()).chain([b"nothing".to_vec()]).collect();
    let wanted: Vec<_> = found.iter().map(|(_, value)| Some(value.clone())).chain([None]).collect();
    assert_eq!(saved.get(&keys).expect("reads"), wanted);
    assert_eq!(saved.get(&[]).expect("reads"), Vec::<Option<Vec<u8>>>::new());
    for prefix in [&found[0].0[..2], &found[1].0, &found[2].0[..1], b"nothing"] {
        let mut under = Vec::new();
        saved.each(prefix, &mut |key, value| under.push((key.to_vec(), value.to_vec()))).expect("reads");
        let wanted: Vec<_> = found.iter().filter(|(key, _)| key.starts_with(prefix)).cloned().collect();
        assert_eq!(under, wanted, "{prefix:?}");
    }
}

fn it_says_whether_it_takes_writes_and_how_much_memory_holds<S: Subject>() {
    let mut subject = S::new();
    let mut model = Model::default();
    let frame = model.frame_of(subject.log(), &[1, 2], 10);
    model.append(subject.log(), &frame);
    let figures = subject.log().figures();
    assert_eq!((figures.is_writable, figures.memtables, figures.memtable_entries, figures.runs), (true, 1, 2, 0));
    assert_eq!(subject.log().unsaved_seals(), 0);
    subject.lose_next_append();
    let frame = model.frame_of(subject.log(), &[1, 2], 10);
    assert!(subject.log().append(&frame).is_err() && !subject.log().figures().is_writable);
    subject.log().reopen().expect("reopens");
    assert!(subject.log().figures().is_writable);
    assert!(!subject.log().is_seal_due());
    for _ in 0..(SEAL - 2) / 2 {
        assert!(!subject.log().is_seal_due());
        let frame = model.frame_of(subject.log(), &[1, 2], 10);
        model.append(subject.log(), &frame);
    }
    assert!(subject.log().is_seal_due(), "as many entries as were chosen");
}

/// A log whose entries lie in several runs or sealed memtables and in the active one.
fn spread<S: Subject>() -> (S, Model) {
    let mut subject = S::new();
    let mut model = Model::default();
    for round in 0..60_u64 {
        let frame = model.frame_of(subject.log(), &[0, round % 5, 5 + round / 20, 0], 300);
        model.append(subject.log(), &frame);
        if model.seal_if_due(subject.log()) && round < 50 {
            subject.settle();
        }
    }
    (subject, model)
}
