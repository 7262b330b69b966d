//! Power loss at any call to the disk, refusal of any call, and flipped bits: whatever happens, what was acknowledged is
//! there, in order and whole, and nothing is acknowledged that is not. Failures print the seed; LONGWIRE_CRASH_POINTS
//! sets how many points are tried, LONGWIRE_CRASH_SEED where to begin.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use bytes::BufMut;
use longwire_protocol::ConversationId;

use super::options::StoreOptions;
use super::redb_log::RedbLog;
use super::testing::{Fold, Model, SimDisk};
use super::{AppendError, Frame, Log, Position};

/// Small limits, so that a short life sees seals, runs, merges and retention.
fn options() -> StoreOptions {
    StoreOptions {
        seal_entries: 8,
        seal_bytes: 30_000,
        journal_cache_bytes: 1 << 20,
        state_cache_bytes: 1 << 20,
        run_cache_bytes: 1 << 16,
        ..StoreOptions::default()
    }
}

/// In every fourth seed the journal has its file replaced every few seals.
fn open(disk: &SimDisk, seed: u64) -> Option<RedbLog> {
    let journal_file_bytes = if seed.is_multiple_of(4) { 1 << 18 } else { 1 << 30 };
    RedbLog::open_by_hand(Arc::new(disk.clone()), StoreOptions { journal_file_bytes, ..options() }).ok()
}

fn number_from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// What is known of the log through its lives: what was acknowledged, and the frame whose fate is open.
#[derive(Clone, Default)]
struct Known {
    model: Model,
    open: Option<Frame>,
    /// Whether this life began with an audit. If the power went while the log was opened, it was not made: then what the
    /// log found and holds in memory is not known.
    is_audited: bool,
}

impl Known {
    /// The frame whose fate was open is there or not; after looking, that is settled.
    fn settle(&mut self, log: &dyn Log) {
        let Some(frame) = self.open.take() else { return };
        let mut with = self.model.clone();
        with.apply(&frame);
        // A frame without a position shows only in the state.
        let is_there = match frame.positions {
            0 => Fold::recovered(log).rows == with.fold.rows,
            _ => log.tail() == with.tail,
        };
        if is_there {
            self.model = with;
        }
    }

    /// What a start does, and the audit of everything that must be there.
    fn audit(&mut self, log: &mut RedbLog) {
        self.is_audited = true;
        self.settle(log);
        log.set_floor(self.model.floor);
        self.model.assert_matches(log);
        self.model.fold = Fold::recovered(log);
    }
}

/// Lives until the power goes, a sync fails, or `steps` are done; returns whether the log can be used further.
fn live(disk: &SimDisk, log: &mut RedbLog, known: &mut Known, rng: &mut fastrand::Rng, steps: usize) -> bool {
    for _ in 0..steps {
        match rng.u8(0..10) {
            0..=5 => {
                let frame = random_frame(log, &known.model, rng);
                match log.append(&frame) {
                    Ok(()) => known.model.apply(&frame),
                    Err(AppendError::NotStored(_)) => {}
                    Err(AppendError::Conflict { .. }) => panic!("the frame begins at the tail"),
                    Err(AppendError::Unknown { sync, .. }) => {
                        known.open = Some(frame);
                        if sync || log.reopen().is_err() {
                            return false;
                        }
                        disk.undisturbed(|| known.audit(log));
                    }
                }
            }
            6 => {
                let _refused = log.work();
            }
            7 => {
                for _ in 0..20 {
                    let _refused = log.work();
                }
            }
            8 => {
                let tail = known.model.tail.0;
                let floor = Position(tail.saturating_sub(rng.u64(20..200)));
                if rng.u8(0..4) == 0 && floor > known.model.floor {
                    known.model.floor = floor;
                    log.set_floor(floor);
                }
            }
            _ => {
                let conversation = ConversationId(rng.u64(0..6));
                let kept = known.model.kept(conversation);
                if let Ok(found) = log.history().range(
                    conversation,
                    longwire_protocol::Seq(1),
                    longwire_protocol::Seq(u64::MAX - 1),
                    rng.bool(),
                    super::testing::model::ALL,
                ) && known.is_audited
                {
                    assert_eq!(found.len(), kept.len(), "what is acknowledged can be read");
                }
            }
        }
        known.model.seal_if_due(log);
    }
    true
}

fn random_frame(log: &RedbLog, model: &Model, rng: &mut fastrand::Rng) -> Frame {
    let mut builder = model.next_frame(log);
    let conversations: Vec<_> = (0..rng.usize(0..6)).map(|_| rng.u64(0..6)).collect();
    let size = match rng.u8(0..8) {
        0 => rng.usize(4_000..40_000),
        _ => rng.usize(0..600),
    };
    model.push_entries(&mut builder, &conversations, size);
    if rng.u8(0..3) == 0 {
        let sign = if rng.bool() { "-" } else { "" };
        builder.push_change(|b| b.put_slice(format!("{sign}name {}", rng.u8(0..5)).as_bytes()));
    }
    if rng.u8(0..3) == 0 {
        builder.push_rider(|b| b.put_slice(&[rng.u8(0..4), rng.u8(..), rng.u8(..)]));
    }
    builder.finish()
}

/// Lives, each of which ends in a crash, that a store of one seed goes through.
const LIVES: u64 = 4;

/// Runs `lives` for as many seeds as make that many crash points, on every core; a failure names the seed that repeats
/// it.
fn for_each_seed(crash_points: u64, lives: impl Fn(u64) + Sync) {
    let first = number_from_env("LONGWIRE_CRASH_SEED", 0);
    let end = first + number_from_env("LONGWIRE_CRASH_POINTS", crash_points).div_ceil(LIVES);
    let (next, failed) = (AtomicU64::new(first), OnceLock::new());
    let work = || {
        while failed.get().is_none() {
            let seed = next.fetch_add(1, Relaxed);
            if seed >= end {
                return;
            }
            if catch_unwind(AssertUnwindSafe(|| lives(seed))).is_err() {
                failed.get_or_init(|| seed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    if let Some(seed) = failed.get() {
        panic!("failed with LONGWIRE_CRASH_SEED={seed} LONGWIRE_CRASH_POINTS=1");
    }
    println!("{} points, seeds {first}..{end}", (end - first) * LIVES);
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_goes_at_any_call() {
    for_each_seed(5_000, |seed| {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut disk = SimDisk::default();
        let mut known = Known::default();
        for _ in 0..LIVES {
            // Early calls are those of opening and recovery; a whole life is about 3,000.
            let calls = if rng.bool() { rng.u64(1..300) } else { rng.u64(1..4_000) };
            disk.die_after(calls);
            if let Some(mut log) = open(&disk, seed) {
                known.is_audited = false;
                disk.undisturbed(|| known.audit(&mut log));
                live(&disk, &mut log, &mut known, &mut rng, 80);
                if rng.bool() {
                    drop(log);
                } else {
                    let _refused = Box::new(log).close();
                }
            }
            disk = disk.after_crash(&mut rng);
        }
        let mut log = open(&disk, seed).expect("opens after the last crash");
        known.audit(&mut log);
        live(&disk, &mut log, &mut known, &mut rng, 30);
        known.audit(&mut log);
    });
}

#[test]
fn calls_that_fail_make_no_false_ack() {
    for_each_seed(2_000, |seed| {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut disk = SimDisk::default();
        let mut known = Known::default();
        for _ in 0..LIVES {
            // Mostly one call. What it was to write may be there all the same, and it may not be the only one.
            let count = if rng.u8(0..4) == 0 { rng.u64(2..12) } else { 1 };
            disk.fail_late(rng.bool());
            disk.fail_some_after(if rng.bool() { rng.u64(1..300) } else { rng.u64(1..4_000) }, count);
            if let Some(mut log) = open(&disk, seed) {
                known.is_audited = false;
                disk.undisturbed(|| known.audit(&mut log));
                live(&disk, &mut log, &mut known, &mut rng, 80);
                let _refused = Box::new(log).close();
            }
            // The process restarts. What a failed sync left unwritten may be lost even without a loss of power.
            disk = disk.after_crash(&mut rng);
        }
        let mut log = open(&disk, seed).expect("opens when nothing fails any more");
        known.audit(&mut log);
    });
}

#[test]
fn after_a_failed_sync_nothing_is_appended_until_a_restart() {
    let disk = SimDisk::default();
    let mut known = Known::default();
    let mut log = open(&disk, 0).expect("opens");
    let mut calls = 0;
    let refused = loop {
        calls += 1;
        disk.fail_after(calls);
        let frame = known.model.frame_of(&log, &[1, 2], 100);
        match log.append(&frame) {
            Ok(()) => known.model.apply(&frame),
            Err(AppendError::Unknown { sync: false, .. }) => {
                known.open = Some(frame);
                log.reopen().expect("reopens after a failed write");
                known.audit(&mut log);
            }
            Err(AppendError::Unknown { sync: true, .. }) => break frame,
            Err(other) => panic!("{other}"),
        }
    };
    for _ in 0..3 {
        assert!(matches!(log.append(&refused), Err(AppendError::Unknown { sync: true, .. })));
        assert!(matches!(log.reopen(), Err(AppendError::Unknown { sync: true, .. })));
        known.model.assert_history(&*log.history());
    }
    drop(log);
    known.open = Some(refused);
    let mut log = open(&disk.after_crash(&mut fastrand::Rng::with_seed(1)), 0).expect("opens after a restart");
    known.audit(&mut log);
}
