//! The store: one log of frames, the memtable and the sorted runs that make it readable by conversation, and the
//! derived state saved beside it. The only room that knows redb. It knows positions, seqs and bytes; what a record
//! means is the business of `routing`, which hands state over as opaque rows.
//!
//! A message comes in as part of a [`Frame`] through [`Log::append`] (one fsync: this is the ack) and goes out through
//! [`History`] to whoever catches up or pages.

mod builder;
mod check;
#[cfg(test)]
mod conformance;
#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod damage_tests;
mod disk;
#[cfg(feature = "faults")]
mod faults;
mod figures;
pub mod frame;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod journal;
#[cfg(test)]
mod limit_tests;
mod look;
mod memory_log;
mod memtable;
mod merge;
#[cfg(test)]
mod model_tests;
mod open;
mod options;
mod page;
mod read_only;
mod recent;
mod redb_log;
mod run;
mod sealed_row;
mod sieve;
mod state_file;
mod stats;
pub mod testing;
mod view;

use std::sync::Arc;

pub use check::{Head, Report, Visitor, check};
pub use disk::{Disk, Folder};
#[cfg(feature = "faults")]
pub use faults::Faults;
pub use figures::Figures;
pub use frame::{Change, EntryMeta, Frame, FrameBuilder, Origin, Record, StoredEntry};
use longwire_protocol::{ConversationId, LogTime, Seq};
pub use memory_log::{Failure, MemoryLog};
pub use open::OpenError;
pub use options::StoreOptions;
pub use redb_log::RedbLog;
pub use sieve::{Left, Sieve};
pub use stats::{JournalStats, LevelStats, Stats, Written, stats};

/// A record's number in the log, from 1. 0 is the place before the first record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct Position(pub u64);

/// A random number given to each start of the broker; a cursor's positions are positions of one segment's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct SegmentId(pub u64);

/// One start of the broker, as the log remembers it: where its frames begin and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The segment's random id.
    pub id: SegmentId,
    /// The position of its first record.
    pub first: Position,
    /// The log's time when it began.
    pub time: LogTime,
}

/// Why a frame was not appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The frame does not begin right after the tail. Nothing was written.
    #[error("the frame begins at {first:?}, the log goes on at {expected:?}")]
    Conflict {
        /// Where the frame begins.
        first: Position,
        /// Where the next frame has to begin.
        expected: Position,
    },
    /// Surely not stored: refused before the commit began (no room in the journal, log is read-only).
    #[error("surely not stored: {0}")]
    NotStored(String),
    /// The commit failed under way; the frame may or may not be there after reopening. The log refuses every further
    /// append until [`Log::reopen`]; if `sync` it was an fsync that failed, and it refuses until the process restarts.
    #[error("the commit failed under way: {reason}")]
    Unknown {
        /// What failed.
        reason: String,
        /// Whether an fsync failed (the kernel may have dropped pages; never written again by this process).
        sync: bool,
    },
}

/// Why frames cannot be followed from a position.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The frames from there on are trimmed (absorbed by runs and state).
    #[error("trimmed: the log begins at {first:?}")]
    Trimmed {
        /// The first position that can be followed.
        first: Position,
    },
    /// The files cannot be read or contradict themselves.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Why a read failed: trouble of the disk, or files that contradict themselves.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ReadError(pub String);

/// Whether publishes may be accepted now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// Yes.
    Open,
    /// No room for publishes for the moment: sealed memtables are full or the journal is at its limit.
    /// Small records (crossings, expiry, cursors) still pass.
    Full,
}

/// Reads of the saved state: the rows as the background thread last saved them, all by one transaction. May block on the
/// disk: call it where blocking is allowed.
pub trait SavedState: Send + Sync {
    /// The rows under these keys, in their order; `None` where there is none. Costs some microseconds for each.
    ///
    /// # Errors
    /// When the state cannot be read.
    fn get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, ReadError>;

    /// Calls `row` for each row whose key begins with `prefix`, ascending by key.
    ///
    /// # Errors
    /// When the state cannot be read.
    fn each(&self, prefix: &[u8], row: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), ReadError>;
}

/// The rows of derived state that changed since the last seal, encoded on the background thread.
pub trait StateDelta: Send {
    /// Calls `row` once for each changed row: its key, and its value or `None` where the row is gone.
    /// Keys start with two big-endian bytes of partition.
    #[expect(clippy::type_complexity, reason = "a name would not say more than the two slices do")]
    fn rows(&self, row: &mut dyn FnMut(&[u8], Option<&[u8]>));
}

/// The log, held by the commit thread. One conformance suite holds every implementation to these words.
pub trait Log: Send {
    /// When the log was created, in milliseconds since 1970.
    fn birth_unix_ms(&self) -> u64;

    /// The segments this log knows, oldest first; the last is the one that this start writes (or, if this start cannot
    /// write, the newest one there is).
    fn segments(&self) -> Vec<Segment>;

    /// The position of the newest record; 0 when there is none.
    fn tail(&self) -> Position;

    /// The time of the newest frame; 0 when there is none.
    fn tail_time(&self) -> LogTime;

    /// The position that the saved state stands at: every record up to there is in it, and none after. A [`Log::follow`]
    /// from there leaves out the riders, too, that are in it.
    ///
    /// # Errors
    /// When the state cannot be read.
    fn applied(&self) -> Result<Position, ReadError>;

    /// A handle for reads of the saved state.
    fn saved(&self) -> Arc<dyn SavedState>;

    /// Appends a frame with one durable commit: when this returns, the frame survives power loss, its entries are
    /// visible to [`History`], and the tail is the frame's last position. An identical frame repeated right after a
    /// reopen that found it answers `Ok` again. A frame without any record is a valid probe of the disk.
    ///
    /// # Errors
    /// See [`AppendError`].
    fn append(&mut self, frame: &Frame) -> Result<(), AppendError>;

    /// Calls `frame` for each committed frame that has a record after `from`, in order, without holes.
    ///
    /// # Errors
    /// [`FollowError::Trimmed`] when the journal no longer has them.
    fn follow(&self, from: Position, frame: &mut dyn FnMut(Frame)) -> Result<(), FollowError>;

    /// Whether the memtable should be sealed before the next frame.
    fn is_seal_due(&self) -> bool;

    /// How many seals the background thread has not absorbed yet: the newest ones. With none, a seal before one is due may
    /// follow.
    fn unsaved_seals(&self) -> usize;

    /// Seals the memtable and hands it, with the rows that changed since the last seal, to the background thread, which
    /// writes a run, saves the rows together with the tail's position, and lets the journal trim. Never waits.
    fn seal(&mut self, state: Box<dyn StateDelta>);

    /// Whether publishes may be accepted.
    fn pressure(&self) -> Pressure;

    /// After [`AppendError::Unknown`] with `sync: false`: opens the files again and proves with an empty frame that
    /// they can be written. The caller then folds what [`Log::follow`] gives after the newest frame that it knows.
    ///
    /// # Errors
    /// When the files still cannot be opened or written; the log stays readable and refuses appends.
    fn reopen(&mut self) -> Result<(), AppendError>;

    /// Entries below this position are expired: reads report them as such, and whole runs below it are deleted.
    /// Called for each retention record when it is folded; never lowers the floor.
    fn set_floor(&mut self, floor: Position);

    /// The floor that would keep at most `bytes` of entries and nothing older than `time`, at the grain of whole runs;
    /// the present floor if nothing can go. The caller makes it a record, and then calls [`Log::set_floor`].
    fn proposed_floor(&self, bytes: Option<u64>, time: Option<LogTime>) -> Position;

    /// From here on, what becomes of memtables and runs goes through this.
    fn set_sieve(&mut self, sieve: Arc<dyn Sieve>);

    /// Whether neither the files nor what memory holds of them have anything up to `upto` that had to leave them when the
    /// state stood there or later. If not, the background thread goes about it: it looks at each run that may hold some, and
    /// writes anew those that do, one at a time. To be asked now and then, between appends; with another `upto` it begins
    /// anew. Errors are told in the log, and tried again.
    fn purge(&mut self, upto: Position) -> bool;

    /// How large it is, and how it stands. Never looks at the disk; costs a look at each run.
    fn figures(&self) -> Figures;

    /// A handle for readers, which sees every entry that was appended.
    fn history(&self) -> Arc<dyn History>;

    /// Finishes background work under way (not yet begun work is left to the next start), and closes the files.
    ///
    /// # Errors
    /// When closing fails; everything appended is safe all the same.
    fn close(self: Box<Self>) -> Result<(), ReadError>;
}

/// How much a page may hold, at least one entry whatever its size.
#[derive(Clone, Copy, Debug)]
pub struct PageLimit {
    /// Entries.
    pub entries: usize,
    /// The sum of the sizes of the items.
    pub bytes: usize,
}

/// Reads of entries by conversation and seq. Cheap from the memtable; a few microseconds for each run otherwise. May
/// block on the disk: call it where blocking is allowed.
pub trait History: Send + Sync {
    /// The entries of `conversation` with `from <= seq <= to`, ascending, or descending when `backwards`, as many as
    /// `limit` admits. Entries below the retention floor are left out. Seqs in the answer are consecutive.
    ///
    /// # Errors
    /// When the files cannot be read.
    fn range(
        &self,
        conversation: ConversationId,
        from: Seq,
        to: Seq,
        backwards: bool,
        limit: PageLimit,
    ) -> Result<Vec<StoredEntry>, ReadError>;

    /// The seq of the conversation's first entry after `position` that is above the retention floor, if there is one.
    ///
    /// # Errors
    /// When the files cannot be read.
    fn first_after(&self, conversation: ConversationId, position: Position) -> Result<Option<Seq>, ReadError>;

    /// The same as [`History::range`], but only if memory holds every entry of the answer: the memtables, or what was read
    /// backwards lately; never blocks. It may still have what a [`Sieve`] took since, until a purge is done.
    fn range_in_memory(
        &self,
        conversation: ConversationId,
        from: Seq,
        to: Seq,
        backwards: bool,
        limit: PageLimit,
    ) -> Option<Vec<StoredEntry>>;

    /// The same as [`History::first_after`], but only if the memtables know it for certain; never blocks.
    fn first_after_in_memory(&self, conversation: ConversationId, position: Position) -> Option<Option<Seq>>;

    /// Entries below this position are expired.
    fn floor(&self) -> Position;
}
