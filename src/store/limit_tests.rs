//! What happens at the limits: a full journal, full memtables, a full disk, a start that cannot write.

use std::sync::Arc;
use std::time::Duration;

use bytes::BufMut;

use super::check::check_disk;
use super::disk::Disk;
use super::journal::JOURNAL_FILE;
use super::merge::FAN_IN;
use super::options::StoreOptions;
use super::redb_log::RedbLog;
use super::testing::{Fold, Model, SimDisk};
use super::{AppendError, Frame, Log, Position, Pressure};

fn open(disk: &SimDisk, options: StoreOptions) -> RedbLog {
    RedbLog::open_by_hand(Arc::new(disk.clone()), options).expect("opens")
}

/// A frame that is nobody's publish: an expiry, say.
fn housekeeping(model: &Model, log: &RedbLog, size: usize) -> Frame {
    let mut builder = model.next_frame(log);
    builder.push_change(|b| b.put_bytes(b'h', size));
    builder.finish()
}

#[test]
fn a_full_journal_refuses_publishes_and_lets_the_rest_pass() {
    let options = StoreOptions { journal_bytes: 20_000, journal_reserve_bytes: 5_000, ..StoreOptions::default() };
    let mut log = open(&SimDisk::default(), options);
    let mut model = Model::default();
    let refused = loop {
        let frame = model.frame_of(&log, &[1, 2], 500);
        match log.append(&frame) {
            Ok(()) => model.apply(&frame),
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused, AppendError::NotStored(_)), "{refused}");
    assert!((15..20).contains(&(model.tail.0 / 2)), "20,000 bytes are some 18 frames");
    for _ in 0..4 {
        let frame = housekeeping(&model, &log, 1_000);
        model.append(&mut log, &frame);
    }
    assert_eq!(log.pressure(), Pressure::Full);
    let frame = housekeeping(&model, &log, 5_000);
    assert!(matches!(log.append(&frame), Err(AppendError::NotStored(_))), "the reserve has an end too");
    model.assert_matches(&log);

    log.seal(model.fold.take_delta());
    while log.work().expect("works") {}
    assert_eq!(log.pressure(), Pressure::Open);
    let frame = model.frame_of(&log, &[1, 2], 500);
    model.append(&mut log, &frame);
    model.assert_matches(&log);
}

#[test]
fn two_sealed_memtables_and_a_full_one_are_pressure() {
    let mut log = open(&SimDisk::default(), StoreOptions { seal_entries: 10, ..StoreOptions::default() });
    let mut model = Model::default();
    let mut seals = 0;
    while log.pressure() == Pressure::Open {
        let frame = model.frame_of(&log, &[1, 2, 3, 4, 5], 10);
        model.append(&mut log, &frame);
        seals += u64::from(model.seal_if_due(&mut log));
    }
    assert_eq!((seals, model.tail), (2, Position(30)));
    assert!(!log.is_seal_due(), "a third is not sealed");
    let frame = housekeeping(&model, &log, 10);
    model.append(&mut log, &frame);
    model.assert_matches(&log);
    while log.work().expect("works") {}
    assert_eq!(log.pressure(), Pressure::Open);
    assert!(model.seal_if_due(&mut log));
    model.assert_matches(&log);
}

#[test]
fn merging_is_not_put_off_for_ever_by_new_memtables() {
    let disk = SimDisk::default();
    let mut log = open(&disk, StoreOptions { seal_entries: 10, ..StoreOptions::default() });
    let mut model = Model::default();
    for _ in 0..120 {
        let frame = model.frame_of(&log, &[1, 2, 3, 4, 5], 10);
        model.append(&mut log, &frame);
        model.seal_if_due(&mut log);
        // There is never time but for what was given.
        while log.unsaved_seals() > 0 {
            log.work().expect("works");
        }
    }
    model.assert_matches(&log);
    Box::new(log).close().expect("closes");
    let stats = super::stats::stats_disk(Arc::new(disk)).expect("is measured");
    let unmerged = stats.levels.iter().find(|level| level.level == 0).map_or(0, |level| level.runs);
    assert!(stats.levels.len() == 2 && unmerged < 30, "60 seals leave {:?}", stats.levels);
}

/// A merge takes many seconds, and publishes wait while two memtables do: so it is done in shares.
#[test]
fn a_memtable_does_not_wait_for_the_whole_of_a_merge() {
    let mut log = open(&SimDisk::default(), StoreOptions::default());
    let mut model = Model::default();
    let mut seal = |log: &mut RedbLog, entries: usize| {
        for _ in 0..entries.div_ceil(1_000) {
            let frame = model.frame_of(log, &vec![1; entries.min(1_000)], 1);
            model.append(log, &frame);
        }
        log.seal(model.fold.take_delta());
    };
    // Eight whose merge takes two shares, then as many as may wait for quiet, and one more.
    for run in 0..=3 * FAN_IN {
        seal(&mut log, if run < FAN_IN { 10_000 } else { 1 });
        while log.unsaved_seals() > 0 {
            log.work().expect("works");
        }
    }
    seal(&mut log, 1);
    seal(&mut log, 1);
    let mut steps_until = |unsaved| {
        let steps = (1..).take_while(|_| log.work().expect("works") && log.unsaved_seals() > unsaved);
        steps.count()
    };
    assert_eq!(steps_until(1), 8, "half of the merge");
    assert!((6..16).contains(&steps_until(0)), "the other half");
    while log.work().expect("works") {}
    assert_eq!(log.figures().runs, 20 - 2 * 7, "27 runs are merged in quiet");
    model.assert_matches(&log);
}

/// Publishes wait for who pauses, as soon as the memtable behind is full too.
#[test]
fn the_background_thread_does_not_pause_while_a_memtable_waits() {
    let options = StoreOptions { pause: Duration::from_secs(3_600), ..StoreOptions::default() };
    let mut log = RedbLog::open_disk(Arc::new(SimDisk::default()), options).expect("opens");
    let mut model = Model::default();
    for entries in [12_000, 1] {
        let frame = model.frame_of(&log, &vec![1; entries], 1);
        model.append(&mut log, &frame);
        log.seal(model.fold.take_delta());
    }
    let log = saved(log);
    model.assert_matches(&log);
}

/// A log whose background thread has saved all that was sealed, in the end.
fn saved(log: RedbLog) -> RedbLog {
    for _ in 0..60_000 {
        if log.unsaved_seals() == 0 {
            return log;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    // Its thread would be waited for.
    std::mem::forget(log);
    panic!("a memtable waits for ever");
}

#[test]
fn the_background_thread_tries_again_and_ends_with_the_log() {
    let disk = SimDisk::default();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let mut log = RedbLog::open_disk(Arc::clone(&shared), StoreOptions::default()).expect("opens");
    let mut model = Model::default();
    let frame = model.frame_of(&log, &[1, 2], 10);
    model.append(&mut log, &frame);
    disk.fail_after(1);
    log.seal(model.fold.take_delta());
    let log = saved(log);
    assert!(disk.has_failed());
    model.assert_matches(&log);
    Box::new(log).close().expect("closes");
    assert_eq!(Arc::strong_count(&shared), 1, "nobody has it open any more");
}

#[test]
fn files_that_a_crash_left_go_at_the_next_start() {
    let disk = SimDisk::default();
    let mut log = open(&disk, StoreOptions::default());
    let mut model = Model::default();
    let frame = model.frame_of(&log, &[1, 2], 10);
    model.append(&mut log, &frame);
    log.seal(model.fold.take_delta());
    while log.work().expect("works") {}
    let written = log.written();
    assert!(written.frames > 0 && written.journal > written.frames && written.journal_syncs > 1, "{written:?}");
    assert!(written.state > 0 && written.runs > 0, "{written:?}");
    drop(log);
    let names = disk.names();
    for stray in ["runs/77.redb", "journal.redb.new"] {
        drop(disk.open(stray).expect("is made"));
    }
    let log = open(&disk, StoreOptions::default());
    assert_eq!(disk.names(), names);
    model.assert_matches(&log);
}

#[test]
fn a_log_that_cannot_be_closed_says_so() {
    let disk = SimDisk::default();
    let mut log = open(&disk, StoreOptions::default());
    let mut model = Model::default();
    let frame = model.frame_of(&log, &[1, 2], 10);
    model.append(&mut log, &frame);
    disk.die();
    assert!(Box::new(log).close().is_err());
}

#[test]
fn the_journal_is_trimmed_as_it_is_absorbed() {
    let disk = SimDisk::default();
    let mut log = open(&disk, StoreOptions { seal_entries: 50, ..StoreOptions::default() });
    let mut model = Model::default();
    for _ in 0..300 {
        let frame = model.frame_of(&log, &[1, 2, 3], 9_000);
        model.append(&mut log, &frame);
        model.seal_if_due(&mut log);
        while log.work().expect("works") {}
    }
    Box::new(log).close().expect("closes");
    let stats = super::stats::stats_disk(Arc::new(disk)).expect("is measured");
    assert!(stats.journal.commits < 40, "{:?}", stats.journal);
}

#[test]
fn a_journal_that_grew_in_a_peak_gets_a_smaller_file_and_keeps_its_frames() {
    const FILE: u64 = 2 << 20;
    let disk = SimDisk::default();
    let options = StoreOptions { journal_file_bytes: FILE, ..StoreOptions::default() };
    let size = |disk: &SimDisk| disk.allocated(JOURNAL_FILE).expect("there is a journal");
    let mut log = open(&disk, options.clone());
    let mut model = Model::default();
    // So large that it does not become as small by itself.
    while size(&disk) <= 4 * FILE {
        let frame = model.frame_of(&log, &[1, 2, 3], 10_000);
        model.append(&mut log, &frame);
    }
    log.seal(model.fold.take_delta());
    let frame = model.frame_of(&log, &[3, 4], 100);
    model.append(&mut log, &frame);
    assert!(size(&disk) > 4 * FILE, "what nothing has absorbed stays");
    while log.work().expect("works") {}
    let frame = model.frame_of(&log, &[4, 5], 100);
    model.append(&mut log, &frame);
    assert!(size(&disk) < FILE, "{} bytes", size(&disk));
    model.assert_matches(&log);
    drop(log);
    let log = open(&disk, options);
    assert_eq!(Fold::recovered(&log).rows, model.fold.rows);
    model.assert_matches(&log);
}

/// Nothing was done to the journal then: it goes on in the file that it has.
#[test]
fn a_journal_whose_new_file_cannot_be_made_keeps_the_old_one() {
    let disk = SimDisk::default();
    let options = StoreOptions { journal_file_bytes: 1 << 20, ..StoreOptions::default() };
    let mut log = open(&disk, options);
    let mut model = Model::default();
    while disk.allocated(JOURNAL_FILE).expect("there is a journal") <= 4 << 20 {
        let frame = model.frame_of(&log, &[1, 2, 3], 10_000);
        model.append(&mut log, &frame);
    }
    log.seal(model.fold.take_delta());
    while log.work().expect("works") {}
    disk.refuse_new_files(true);
    for _ in 0..3 {
        let frame = model.frame_of(&log, &[4, 5], 100);
        model.append(&mut log, &frame);
    }
    model.assert_matches(&log);
    assert!(disk.allocated(JOURNAL_FILE).expect("there is a journal") > 1 << 20, "it is still the old one");
}

/// Whatever call fails, the run is made once more only if it was not finished; else it stays, and only saving is repeated.
#[test]
fn a_run_that_cannot_be_saved_is_not_made_again_and_again() {
    for calls in 1.. {
        let disk = SimDisk::default();
        let mut log = open(&disk, StoreOptions::default());
        let mut model = Model::default();
        let frame = model.frame_of(&log, &[1, 2, 3], 10);
        model.append(&mut log, &frame);
        log.seal(model.fold.take_delta());
        disk.fail_after(calls);
        let mut failures = 0;
        let absorbed = loop {
            match log.work() {
                Ok(true) => {}
                Ok(false) => break true,
                // After a failed sync the state stays as it is until a restart.
                Err(_) if failures > 3 => break false,
                Err(_) => failures += 1,
            }
        };
        let runs = disk.names().into_iter().filter(|name| name.starts_with("runs/")).count();
        assert_eq!(runs, 1, "call {calls}, absorbed: {absorbed}");
        if failures == 0 {
            assert!(calls > 20, "calls were refused");
            return;
        }
    }
}

/// redb answers nothing more after a read that failed, from a file that is well.
#[test]
fn rows_of_state_are_read_again_after_a_read_that_failed() {
    let disk = SimDisk::default();
    // More rows than are cached.
    let options = StoreOptions { state_cache_bytes: 0, ..StoreOptions::default() };
    let mut log = open(&disk, options.clone());
    let mut model = Model::default();
    let frame = model.frame_of(&log, &(1..2_000).collect::<Vec<_>>(), 10);
    model.append(&mut log, &frame);
    log.seal(model.fold.take_delta());
    while log.work().expect("works") {}
    drop(log);
    let keys: Vec<_> = model.fold.rows.keys().cloned().collect();
    let rows: Vec<_> = model.fold.rows.values().cloned().map(Some).collect();
    for calls in 1..8 {
        let log = open(&disk, options.clone());
        disk.fail_after(calls);
        assert_eq!(log.saved().get(&keys).expect("read again"), rows, "call {calls}");
        disk.heal();
    }
}

/// The same of a run, whose entries are read however often a read of the disk fails.
#[test]
fn a_run_is_read_again_after_a_read_that_failed() {
    let disk = SimDisk::default();
    let options = StoreOptions { run_cache_bytes: 0, ..StoreOptions::default() };
    let mut log = open(&disk, options.clone());
    let mut model = Model::default();
    for _ in 0..40 {
        let frame = model.frame_of(&log, &[1, 2, 3], 700);
        model.append(&mut log, &frame);
    }
    log.seal(model.fold.take_delta());
    while log.work().expect("works") {}
    let mut refused = 0;
    for calls in 1..40 {
        disk.fail_after(calls);
        model.assert_history(&*log.history());
        refused += usize::from(disk.has_failed());
    }
    assert!(refused > 10, "{refused} reads were refused");
}

/// A sync of the state that fails ends the saving, not the reading: neither of rows, nor of lists, nor of the log.
#[test]
fn rows_of_state_are_read_on_after_a_failed_sync() {
    // No row is cached.
    let options = StoreOptions { state_cache_bytes: 0, ..StoreOptions::default() };
    let disk = SimDisk::default();
    let mut model = Model::default();
    let mut log = open(&disk, options.clone());
    let frame = model.frame_of(&log, &(1..300).collect::<Vec<_>>(), 10);
    model.append(&mut log, &frame);
    log.seal(model.fold.take_delta());
    while log.work().expect("works") {}
    drop(log);
    let keys: Vec<_> = model.fold.rows.keys().cloned().collect();
    let rows: Vec<_> = model.fold.rows.values().cloned().map(Some).collect();
    let mut ends = 0;
    for calls in 1.. {
        for is_late in [false, true] {
            let disk = disk.after_crash(&mut fastrand::Rng::with_seed(calls));
            let mut log = open(&disk, options.clone());
            let mut model = model.clone();
            // Of others than those that are read below.
            let frame = model.frame_of(&log, &[1_000, 1_001], 10);
            model.append(&mut log, &frame);
            log.seal(model.fold.take_delta());
            disk.fail_late(is_late);
            disk.fail_after(calls);
            let mut failures = 0;
            while failures < 3 && log.work().unwrap_or(true) {
                failures += usize::from(log.unsaved_seals() > 0);
            }
            ends += usize::from(log.unsaved_seals() > 0);
            assert_eq!(log.saved().get(&keys).expect("read"), rows, "call {calls}");
            let mut listed = Vec::new();
            log.saved().each(&keys[7], &mut |_, row| listed.push(row.to_vec())).expect("listed");
            assert_eq!(listed, [rows[7].clone().expect("a row")], "call {calls}");
            let frame = model.frame_of(&log, &[1, 1_000], 10);
            model.append(&mut log, &frame);
            model.assert_matches(&log);
            // What the next start finds, whatever survives.
            let next = disk.after_crash(&mut fastrand::Rng::with_seed(calls));
            drop(log);
            model.assert_matches(&open(&next, options.clone()));
            if failures == 0 && is_late {
                assert!(ends > 1, "{ends} syncs of the state failed");
                return;
            }
        }
    }
}

/// A merge whose saving fails under way may be listed all the same: nobody makes a second run of the same entries then,
/// which a later start would find beside the first.
#[test]
fn a_merge_is_never_listed_twice_whatever_calls_fail() {
    let options = || StoreOptions { seal_entries: 4, ..StoreOptions::default() };
    let disk = SimDisk::default();
    let mut log = open(&disk, options());
    let mut model = Model::default();
    for _ in 0..FAN_IN {
        let frame = model.frame_of(&log, &[1, 2, 3, 4], 10);
        model.append(&mut log, &frame);
        assert!(model.seal_if_due(&mut log));
        log.work().expect("absorbs");
    }
    Box::new(log).close().expect("closes");
    for (is_late, count) in [(false, 1), (false, 9), (true, 1), (true, 2), (true, 9)] {
        for calls in 1.. {
            let disk = disk.after_crash(&mut fastrand::Rng::with_seed(0));
            let mut log = open(&disk, options());
            disk.fail_late(is_late);
            disk.fail_some_after(calls, count);
            let mut failures = 0;
            while failures < 20 {
                match log.work() {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(_) => failures += 1,
                }
            }
            model.assert_history(&*log.history());
            let context = format!("{count} calls from {calls}, late: {is_late}");
            for seed in 0..4 {
                let next = disk.after_crash(&mut fastrand::Rng::with_seed(seed));
                let report = check_disk(Arc::new(next), &mut ()).expect("can be checked");
                assert_eq!(report.problems, Vec::<String>::new(), "{context}");
                assert_eq!(report.run_entries, model.tail.0, "{context}");
            }
            if failures == 0 {
                assert!(calls > 50, "calls were refused");
                break;
            }
        }
    }
}

/// A run that cannot be read is merged with nothing; what comes is absorbed all the same, publishes are accepted, and other
/// runs are merged.
#[test]
fn a_run_that_cannot_be_merged_does_not_stop_the_saving() {
    let disk = SimDisk::default();
    let mut log = open(&disk, StoreOptions { seal_entries: 4, run_cache_bytes: 0, ..StoreOptions::default() });
    let mut model = Model::default();
    let mut failures = 0;
    for round in 0..5 * FAN_IN {
        let frame = model.frame_of(&log, &[1, 2, 3, 4], 10);
        model.append(&mut log, &frame);
        assert!(model.seal_if_due(&mut log), "round {round}");
        // Now and then there is time for a merge, and never much.
        for _ in 0..3 {
            failures += usize::from(log.work().is_err());
        }
        assert_eq!(log.unsaved_seals(), 0, "round {round} is saved");
        if round == 2 {
            disk.spoil("runs/1.redb");
        }
    }
    while log.work().is_ok_and(|more| more) {}
    assert!((1..=3).contains(&failures), "{failures} merges failed");
    let runs = disk.names().iter().filter(|name| name.starts_with("runs/")).count();
    assert!(runs < 2 * FAN_IN, "{runs} runs of {} are left", 5 * FAN_IN);
}

#[test]
fn a_full_disk_refuses_publishes_serves_readers_and_is_left_by_reopening() {
    let disk = SimDisk::default();
    let mut log = open(&disk, StoreOptions { seal_entries: 20, ..StoreOptions::default() });
    let mut model = Model::default();
    for _ in 0..25 {
        let frame = model.frame_of(&log, &[1, 2], 300);
        model.append(&mut log, &frame);
        model.seal_if_due(&mut log);
    }
    disk.set_full(true);
    let frame = model.frame_of(&log, &[1, 2], 300);
    assert!(matches!(log.append(&frame), Err(AppendError::Unknown { sync: false, .. })));
    for _ in 0..3 {
        assert!(log.work().is_err(), "background work fails and is kept");
        assert!(matches!(log.reopen(), Err(AppendError::Unknown { sync: false, .. })));
        assert!(matches!(log.append(&frame), Err(AppendError::Unknown { sync: false, .. })));
        model.assert_history(&*log.history());
    }
    disk.set_full(false);
    log.reopen().expect("reopens when there is room");
    if log.tail() != model.tail {
        model.apply(&frame);
    }
    model.assert_matches(&log);
    let frame = model.frame_of(&log, &[1, 2], 300);
    model.append(&mut log, &frame);
    while log.work().expect("works again") {}
    model.assert_matches(&log);
}

#[test]
fn a_start_that_cannot_write_serves_readers_under_the_last_segment() {
    let options = || StoreOptions { seal_entries: 20, ..StoreOptions::default() };
    let disk = SimDisk::default();
    let mut log = open(&disk, options());
    let mut model = Model::default();
    for _ in 0..25 {
        let frame = model.frame_of(&log, &[1, 2], 300);
        model.append(&mut log, &frame);
        model.seal_if_due(&mut log);
    }
    let segment = *log.segments().last().expect("has a segment");
    drop(log);
    // The call that the empty frame fails at is somewhere among the first hundreds of a start.
    let mut read_only_starts = 0;
    for calls in 1..400 {
        let disk = disk.after_crash(&mut fastrand::Rng::with_seed(calls));
        disk.fail_after(calls);
        let Ok(mut log) = RedbLog::open_by_hand(Arc::new(disk.clone()), options()) else { continue };
        if log.segments().last() != Some(&segment) {
            continue;
        }
        read_only_starts += 1;
        let frame = model.frame_of(&log, &[1], 10);
        assert!(matches!(log.append(&frame), Err(AppendError::NotStored(_) | AppendError::Unknown { sync: true, .. })));
        assert_eq!(log.segments(), [segment]);
        model.assert_history(&*log.history());
        assert_eq!(Fold::recovered(&log).rows, model.fold.rows);
        if log.reopen().is_ok() {
            assert_eq!(log.segments().len(), 2, "now it has a segment of its own");
            let mut model = model.clone();
            let frame = model.frame_of(&log, &[1], 10);
            model.append(&mut log, &frame);
            model.assert_history(&*log.history());
        }
    }
    assert!(read_only_starts > 0, "some starts could not write");
}
