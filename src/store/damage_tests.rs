//! Bits that flip on the disk: each flip is told by `store check`, or makes no difference at all.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::check::{Head, Visitor, check_disk};
use super::options::StoreOptions;
use super::redb_log::RedbLog;
use super::stats::stats_disk;
use super::testing::{Fold, Model, SimDisk};
use super::{Disk, Frame, Log, Position};

fn options() -> StoreOptions {
    StoreOptions { seal_entries: 30, birth_unix_ms: 7, ..StoreOptions::default() }
}

fn open(disk: &SimDisk) -> Result<RedbLog, super::OpenError> {
    RedbLog::open_by_hand(Arc::new(disk.clone()), options())
}

/// A closed store with merged and fresh runs, state, and frames that no run holds yet.
fn closed_store() -> (SimDisk, Model) {
    let disk = SimDisk::default();
    let mut log = open(&disk).expect("opens");
    let mut model = Model::default();
    for round in 0..145_u64 {
        let frame = model.frame_of(&log, &[round % 4, 9, round % 17], (round as usize * 67) % 900);
        model.append(&mut log, &frame);
        if model.seal_if_due(&mut log) {
            while log.work().expect("works") {}
        }
    }
    Box::new(log).close().expect("closes");
    (disk, model)
}

/// What routing would hold against the files: its fold of everything, and the heads in it.
#[derive(Default)]
struct Refold {
    fold: Fold,
    heads: Vec<Head>,
}

impl Visitor for Refold {
    fn state_row(&mut self, key: &[u8], value: &[u8]) {
        self.fold.rows.insert(key.to_vec(), value.to_vec());
    }

    fn frame(&mut self, frame: &Frame) {
        self.fold.apply(frame);
    }

    fn head(&mut self, head: Head) {
        self.heads.push(head);
    }

    fn problems(&mut self) -> Vec<String> {
        let is_known = |head: &Head| self.fold.rows.values().any(|value| *value == head.seq.0.to_be_bytes());
        self.heads.iter().filter(|head| !is_known(head)).map(|head| format!("{head:?} is not in the state")).collect()
    }
}

#[test]
fn a_sound_store_passes_the_check_and_is_measured() {
    let (disk, model) = closed_store();
    let before: Vec<_> = disk.names().iter().map(|name| disk.bytes(name)).collect();
    let mut refold = Refold::default();
    let report = check_disk(Arc::new(disk.clone()), &mut refold).expect("can be checked");
    assert_eq!(report.problems, Vec::<String>::new());
    assert_eq!(refold.fold.rows, model.fold.rows);
    assert_eq!(refold.heads.len(), model.entries.len());
    for head in &refold.heads {
        let newest = model.entries[&head.conversation].last().expect("has entries");
        assert_eq!((head.seq, head.position, head.countable), (newest.seq, newest.position, newest.countable));
    }
    assert_eq!(report.tail, model.tail.0);
    assert_eq!(report.run_entries + report.journal_entries, model.tail.0);
    assert!(report.runs > 1 && report.journal_entries > 0 && report.state_rows > 0);
    let stats = stats_disk(Arc::new(disk.clone())).expect("can be measured");
    assert_eq!((stats.run_entries, stats.birth_unix_ms), (report.run_entries, 7));
    assert!(stats.levels.len() == 2 && stats.levels[1].level == 1, "some runs are merged: {:?}", stats.levels);
    assert!(stats.journal.commits > 0 && stats.journal.pieces >= stats.journal.commits);
    let after: Vec<_> = disk.names().iter().map(|name| disk.bytes(name)).collect();
    assert!(before == after, "looking changes nothing");
}

#[test]
fn a_store_that_was_not_closed_passes_the_check_too() {
    let disk = SimDisk::default();
    let mut log = open(&disk).expect("opens");
    let mut model = Model::default();
    for _ in 0..40 {
        let frame = model.frame_of(&log, &[1, 2], 100);
        model.append(&mut log, &frame);
        model.seal_if_due(&mut log);
    }
    log.work().expect("works");
    let report = check_disk(Arc::new(disk.after_crash(&mut fastrand::Rng::with_seed(3))), &mut ()).expect("is checked");
    assert!(report.is_sound(), "{:?}", report.problems);
    assert_eq!(report.tail, model.tail.0);
}

#[test]
fn what_files_contradict_is_told() {
    let (disk, _) = closed_store();
    let run = disk.names().into_iter().find(|name| name.starts_with("runs/")).expect("has runs");
    disk.remove(&run).expect("removes");
    let report = check_disk(Arc::new(disk.clone()), &mut ()).expect("is checked");
    assert!(report.problems.iter().any(|problem| problem.contains(&run)), "{:?}", report.problems);
    assert!(open(&disk).err().expect("does not open").to_string().contains(&run));

    let (disk, _) = closed_store();
    disk.remove("journal.redb").expect("removes");
    assert!(!check_disk(Arc::new(disk.clone()), &mut ()).expect("is checked").is_sound());
    assert!(open(&disk).err().expect("does not open").to_string().contains("journal.redb"));
}

#[test]
fn a_flipped_bit_is_told_or_makes_no_difference_and_is_never_served() {
    let (disk, model) = closed_store();
    let mut rng = fastrand::Rng::with_seed(11);
    let names = disk.names();
    let (mut told, mut served, mut harmless) = (0, 0, 0);
    for flip in 0..1_000 {
        let name = &names[flip % names.len()];
        let bytes = disk.bytes(name);
        // Mostly where something is written; pages that were never used are zero.
        let bit = loop {
            let bit = rng.usize(0..bytes.len() * 8);
            if bytes[bit / 8] != 0 || rng.u8(0..200) == 0 {
                break bit;
            }
        };
        let flipped = disk.with_flipped_bit(name, bit);
        let report = check_disk(Arc::new(flipped.clone()), &mut ());
        if report.is_ok_and(|report| report.is_sound()) {
            let compared = catch_unwind(AssertUnwindSafe(|| {
                let mut log = open(&flipped).expect("what is sound opens");
                log.set_floor(Position(0));
                model.assert_matches(&log);
            }));
            assert!(compared.is_ok(), "bit {bit} of {name} makes an untold difference");
            harmless += 1;
        } else {
            told += 1;
            if let Ok(mut log) = open(&flipped) {
                served += 1;
                log.set_floor(Position(0));
                assert_truthful(&log, &model, &format!("bit {bit} of {name}"));
            }
        }
    }
    println!("{told} told, {served} of them served, {harmless} harmless");
    assert!(told > 100 && harmless > 10 && served > 100, "{told} told, {served} of them served, {harmless} harmless");
}

/// Whatever a store that is served answers is what was stored: an error is an answer, too.
fn assert_truthful(log: &RedbLog, model: &Model, context: &str) {
    let history = log.history();
    for (&id, entries) in &model.entries {
        for backwards in [false, true] {
            let all = (super::Seq(1), super::Seq(u64::MAX - 1));
            if let Ok(mut found) = history.range(id, all.0, all.1, backwards, super::testing::model::ALL) {
                if backwards {
                    found.reverse();
                }
                assert_eq!(&found, entries, "{context}: conversation {id}");
            }
        }
        for position in (0..=model.tail.0).step_by(31).map(Position) {
            if let Ok(found) = history.first_after(id, position) {
                let after = entries.iter().find(|entry| entry.position > position);
                assert_eq!(found, after.map(|entry| entry.seq), "{context}: conversation {id} after {position:?}");
            }
        }
        for seq in [entries.len() as u64 / 3, entries.len() as u64 * 2 / 3] {
            let page = super::PageLimit { entries: 7, bytes: usize::MAX };
            if let Ok(found) = history.range(id, super::Seq(seq), super::Seq(u64::MAX - 1), false, page) {
                let from = entries.iter().filter(|entry| entry.seq.0 >= seq).take(7);
                assert!(found.iter().eq(from), "{context}: conversation {id} from {seq}");
            }
            if let Ok(found) = history.range(id, super::Seq(1), super::Seq(seq), true, page) {
                let back = entries.iter().rev().filter(|entry| entry.seq.0 <= seq).take(7);
                assert!(found.iter().eq(back), "{context}: conversation {id} back from {seq}");
            }
        }
    }
    // Rows as they were saved: those whose last change is not in the journal any more.
    if let Ok(applied) = log.applied() {
        let mut frames = Vec::new();
        let followed = log.follow(applied, &mut |frame| frames.push(frame));
        let mut fold = Fold::default();
        let each = log.saved().each(&[], &mut |key, value| drop(fold.rows.insert(key.to_vec(), value.to_vec())));
        if followed.is_ok() && each.is_ok() {
            frames.iter().for_each(|frame| fold.apply(frame));
            assert_eq!(fold.rows, model.fold.rows, "{context}");
        }
    }
}
