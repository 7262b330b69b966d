//! `store stats`: how large a store is, and of what.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::ReadError;
use super::disk::{Disk, Folder, RUNS_FOLDER};
use super::journal::{JOURNAL_FILE, Journal};
use super::open::OpenError;
use super::read_only::ReadOnlyDisk;
use super::run::file_name;
use super::state_file::{FORMAT, STATE_FILE, StateFile};

const CACHE_BYTES: usize = 64 << 20;

/// The size of a store.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Stats {
    /// The format of the store.
    pub format: u64,
    /// When it was created, in milliseconds since 1970.
    pub birth_unix_ms: u64,
    /// The position up to which state and runs go.
    pub applied: u64,
    /// Entries below this position are expired.
    pub floor: u64,
    /// Segments that are remembered.
    pub segments: u64,
    /// The journal.
    pub journal: JournalStats,
    /// Bytes of `state.redb` on the disk.
    pub state_file_bytes: u64,
    /// Rows of state.
    pub state_rows: u64,
    /// The runs, by level: level 0 is written from memory, each merge goes up by one.
    pub levels: Vec<LevelStats>,
    /// Entries in all runs.
    pub run_entries: u64,
    /// Bytes on the disk, of all files, for each byte of rows in runs and of frames in the journal.
    pub space_amplification: f64,
}

/// The size of the journal.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct JournalStats {
    /// Bytes of the file on the disk.
    pub file_bytes: u64,
    /// Commits that are not trimmed.
    pub commits: u64,
    /// Pieces of their frames.
    pub pieces: u64,
    /// Bytes of their frames.
    pub bytes: u64,
}

/// The size of the runs of a level.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct LevelStats {
    /// The level.
    pub level: u64,
    /// Runs.
    pub runs: u64,
    /// Entries.
    pub entries: u64,
    /// Bytes of their rows.
    pub bytes: u64,
    /// Bytes of their files on the disk.
    pub file_bytes: u64,
}

/// What one start wrote; see [`super::RedbLog::written`].
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Written {
    /// Bytes of frames that were appended.
    pub frames: u64,
    /// Bytes that went into the journal's file for them.
    pub journal: u64,
    /// Syncs of the journal's file.
    pub journal_syncs: u64,
    /// Bytes that went into the state's file.
    pub state: u64,
    /// Bytes that went into the files of runs, merges included.
    pub runs: u64,
}

impl Written {
    /// Bytes written for each byte of frames.
    #[must_use]
    pub fn amplification(&self) -> f64 {
        (self.journal + self.state + self.runs) as f64 / self.frames.max(1) as f64
    }
}

/// Measures the store in a folder, which no process may have open.
///
/// # Errors
/// See [`OpenError`].
pub fn stats(folder: &Path) -> Result<Stats, OpenError> {
    stats_disk(Arc::new(Folder::existing(folder)))
}

/// [`stats`] on any disk.
pub(super) fn stats_disk(disk: Arc<dyn Disk>) -> Result<Stats, OpenError> {
    let disk: Arc<dyn Disk> = Arc::new(ReadOnlyDisk::new(disk));
    let allocated = |name: &str| disk.allocated(name).map_err(|error| OpenError::io(&*disk, name, error));
    let state = StateFile::open(Arc::clone(&disk), CACHE_BYTES)?;
    let damaged = |name: &str, error: ReadError| OpenError::damaged(&*disk, name, error);
    let saved = state.load().map_err(|error| damaged(STATE_FILE, error))?;
    let mut stats = Stats {
        format: FORMAT,
        birth_unix_ms: saved.progress.birth_unix_ms,
        applied: saved.progress.applied.0,
        floor: saved.progress.floor.0,
        segments: saved.segments.len() as u64,
        state_file_bytes: allocated(STATE_FILE)?,
        ..Stats::default()
    };
    state.rows(&mut |_, _| stats.state_rows += 1).map_err(|error| damaged(STATE_FILE, error))?;
    let journal = Journal::open(&*disk, CACHE_BYTES, false, saved.progress.applied_commit)?;
    let extent = journal.extent().map_err(|error| damaged(JOURNAL_FILE, error))?;
    stats.journal = JournalStats {
        file_bytes: allocated(JOURNAL_FILE)?,
        commits: extent.commits,
        pieces: extent.pieces,
        bytes: extent.bytes,
    };
    for run in &saved.runs {
        let level = match stats.levels.iter_mut().find(|level| level.level == run.level) {
            Some(level) => level,
            None => {
                stats.levels.push(LevelStats { level: run.level, ..LevelStats::default() });
                stats.levels.last_mut().expect("one was just pushed")
            }
        };
        level.runs += 1;
        level.entries += run.entries;
        level.bytes += run.bytes;
        level.file_bytes += allocated(&file_name(run.number))?;
    }
    stats.levels.sort_by_key(|level| level.level);
    stats.run_entries = stats.levels.iter().map(|level| level.entries).sum();
    let files = disk.list(RUNS_FOLDER).map_err(|error| OpenError::io(&*disk, RUNS_FOLDER, error))?;
    let mut on_disk = stats.state_file_bytes + stats.journal.file_bytes;
    for name in files {
        on_disk += allocated(&format!("{RUNS_FOLDER}/{name}"))?;
    }
    let payload = stats.journal.bytes + stats.levels.iter().map(|level| level.bytes).sum::<u64>();
    stats.space_amplification = on_disk as f64 / payload.max(1) as f64;
    Ok(stats)
}
