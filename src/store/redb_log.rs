//! The durable log: a folder of redb files. This is the commit thread's side of it; readers have the [`View`], and the
//! background thread has runs and state.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use longwire_protocol::LogTime;

use super::disk::{Disk, Folder, RUNS_FOLDER};
use super::frame::{Frame, FrameBuilder, Record};
use super::journal::{JOURNAL_FILE, Journal};
use super::open::{OpenError, UNFINISHED};
use super::state_file::{Progress, STATE_FILE, StateFile};
use super::view::View;
use super::{AppendError, FollowError, History, Log, Position, Pressure, ReadError, Segment, SegmentId, StateDelta};

/// What can be chosen about a store. The defaults are right for a broker.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The time to write into a new store as its birth, in milliseconds since 1970. The store reads no clock itself.
    pub birth_unix_ms: u64,
    /// Entries at which a memtable is sealed. Default 400,000: a run of them is built in half a second.
    pub seal_entries: usize,
    /// Bytes at which a memtable is sealed, its bookkeeping not counted in; also the bytes of journal that may wait for a
    /// seal. Default 64 MiB.
    pub seal_bytes: usize,
    /// Bytes in the journal that runs and state have not absorbed, above which publishes are refused. It bounds the time
    /// of a start after a crash (2.3 s for each GB). Default 256 MiB.
    pub journal_bytes: u64,
    /// Bytes that frames without publishes may take beyond that. Default 32 MiB.
    pub journal_reserve_bytes: u64,
    /// Cache for the journal. Default 64 MiB.
    pub journal_cache_bytes: usize,
    /// Cache for the state. Default 64 MiB.
    pub state_cache_bytes: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            birth_unix_ms: 0,
            seal_entries: 400_000,
            seal_bytes: 64 << 20,
            journal_bytes: 256 << 20,
            journal_reserve_bytes: 32 << 20,
            journal_cache_bytes: 64 << 20,
            state_cache_bytes: 64 << 20,
        }
    }
}

/// Whether the log may be written.
#[derive(Clone, Debug)]
enum Health {
    Writable,
    /// This start could not write, or reopening failed: refused before it begins.
    ReadOnly(String),
    /// A commit failed under way; see [`AppendError::Unknown`].
    Failed {
        reason: String,
        sync: bool,
    },
}

/// The durable log. See [`Log`].
#[derive(Debug)]
pub struct RedbLog {
    disk: Arc<dyn Disk>,
    options: StoreOptions,
    birth_unix_ms: u64,
    state: Arc<StateFile>,
    view: Arc<View>,
    /// `None` only when reopening failed.
    journal: Option<Journal>,
    segments: Vec<Segment>,
    segment: SegmentId,
    tail: Position,
    tail_time: LogTime,
    health: Health,
    /// Bytes of frames that runs and state have not absorbed.
    waiting_bytes: u64,
    /// After reopening: the newest frame, whose repetition is answered as if it had been written just now.
    repeatable: Option<Bytes>,
}

impl RedbLog {
    /// Opens the store in a folder, or makes one there; begins a segment.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(folder: &Path, options: StoreOptions) -> Result<Self, OpenError> {
        let disk =
            Folder::create(folder).map_err(|error| OpenError::Io { path: folder.display().to_string(), error })?;
        Self::open_disk(Arc::new(disk), options)
    }

    /// Opens the store on a disk.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_disk(disk: Arc<dyn Disk>, options: StoreOptions) -> Result<Self, OpenError> {
        let io = |error| OpenError::io(&*disk, "", error);
        if !disk.exists(STATE_FILE).map_err(io)? {
            if disk.exists(JOURNAL_FILE).map_err(io)? {
                return Err(OpenError::damaged(&*disk, STATE_FILE, "it is missing, though there is a journal"));
            }
            StateFile::create(&*disk, options.birth_unix_ms)?;
        }
        let state = StateFile::open(Arc::clone(&disk), options.state_cache_bytes)?;
        let saved = state.load().map_err(|error| OpenError::damaged(&*disk, STATE_FILE, error))?;
        let Progress { birth_unix_ms, applied, applied_commit, applied_time, floor, .. } = saved.progress;
        if !disk.exists(JOURNAL_FILE).map_err(io)? {
            if applied_commit > 0 {
                return Err(OpenError::damaged(&*disk, JOURNAL_FILE, "it is missing, though the state is beyond it"));
            }
            Journal::create(&*disk)?;
        }
        let view = Arc::new(View::default());
        view.raise_floor(floor);
        let mut log = Self {
            birth_unix_ms,
            state: Arc::new(state),
            view,
            journal: None,
            segments: saved.segments,
            segment: SegmentId(fastrand::u64(1..)),
            tail: applied,
            tail_time: applied_time,
            health: Health::Writable,
            waiting_bytes: 0,
            repeatable: None,
            disk,
            options,
        };
        let journal = log.open_journal(applied_commit)?;
        log.take_in_after(&journal, applied_commit)
            .map_err(|error| OpenError::damaged(&*log.disk, JOURNAL_FILE, error))?;
        log.journal = Some(journal);
        log.remove_unfinished();
        log.begin_segment();
        Ok(log)
    }

    fn open_journal(&self, applied_commit: u64) -> Result<Journal, OpenError> {
        Journal::open(&*self.disk, self.options.journal_cache_bytes, false, applied_commit)
    }

    /// Takes in the frames after `commit`: what a start finds beyond the state, and what reopening finds beyond the tail.
    /// Returns the bytes of the newest.
    fn take_in_after(&mut self, journal: &Journal, commit: u64) -> Result<Option<Bytes>, ReadError> {
        let mut newest = None;
        for found in journal.frames_after(commit)? {
            let (commit, frame) = found?;
            if frame.first.0 != self.tail.0 + 1 {
                return Err(ReadError(format!(
                    "commit {commit} begins at position {}, the records before it end at {}",
                    frame.first.0, self.tail.0
                )));
            }
            if let Some((conversation, seq)) = self.view.first_gap(&frame) {
                return Err(ReadError(format!(
                    "commit {commit} has entry {seq} of conversation {conversation} out of order"
                )));
            }
            self.take_in(&frame);
            newest = Some(frame.bytes);
        }
        Ok(newest)
    }

    /// What is committed becomes visible.
    fn take_in(&mut self, frame: &Frame) {
        if self.segments.last().is_none_or(|segment| segment.id != frame.segment) {
            self.segments.push(Segment { id: frame.segment, first: frame.first, time: frame.time });
        }
        self.view.add(frame);
        self.tail = frame.last();
        self.tail_time = frame.time;
        self.waiting_bytes += frame.bytes.len() as u64;
    }

    /// An empty frame proves that this start can write. If it cannot, it serves readers under the last segment.
    fn begin_segment(&mut self) {
        if let Err(error) = self.append(&self.empty_frame()) {
            tracing::error!(%error, place = self.disk.place(), "the store cannot be written, it serves readers only");
            let reason = error.to_string();
            if !matches!(self.health, Health::Failed { sync: true, .. }) {
                self.health = Health::ReadOnly(reason);
            }
        }
    }

    fn empty_frame(&self) -> Frame {
        FrameBuilder::new(self.segment, Position(self.tail.0 + 1), self.tail_time).finish()
    }

    fn remove_unfinished(&self) {
        for folder in ["", RUNS_FOLDER] {
            for name in self.disk.list(folder).unwrap_or_default() {
                if name.ends_with(UNFINISHED) {
                    let name = if folder.is_empty() { name } else { format!("{folder}/{name}") };
                    if let Err(error) = self.disk.remove(&name) {
                        tracing::warn!(%error, name, "an unfinished file cannot be removed");
                    }
                }
            }
        }
    }

    fn check_room(&self, frame: &Frame) -> Result<(), AppendError> {
        let is_publish =
            frame.records.iter().any(|r| matches!(r, Record::Entry(entry) if entry.origin.device.is_some()));
        let reserve = if is_publish { 0 } else { self.options.journal_reserve_bytes };
        if self.waiting_bytes + frame.bytes.len() as u64 > self.options.journal_bytes + reserve {
            return Err(AppendError::NotStored("the journal is full, the background thread is behind".to_owned()));
        }
        Ok(())
    }
}

impl Log for RedbLog {
    fn birth_unix_ms(&self) -> u64 {
        self.birth_unix_ms
    }

    fn segments(&self) -> Vec<Segment> {
        self.segments.clone()
    }

    fn tail(&self) -> Position {
        self.tail
    }

    fn tail_time(&self) -> LogTime {
        self.tail_time
    }

    fn state(&self, row: &mut dyn FnMut(&[u8], &[u8])) -> Result<Position, ReadError> {
        Ok(self.state.rows(row)?.applied)
    }

    fn append(&mut self, frame: &Frame) -> Result<(), AppendError> {
        let journal = match (&self.health, &mut self.journal) {
            (Health::Writable, Some(journal)) => journal,
            (Health::Failed { reason, sync }, _) => {
                return Err(AppendError::Unknown { reason: reason.clone(), sync: *sync });
            }
            (Health::ReadOnly(reason), _) => return Err(AppendError::NotStored(reason.clone())),
            (Health::Writable, None) => return Err(AppendError::NotStored("the journal is closed".to_owned())),
        };
        if self.repeatable.as_ref() == Some(&frame.bytes) {
            return Ok(());
        }
        if frame.first.0 != self.tail.0 + 1 {
            return Err(AppendError::Conflict { first: frame.first, expected: Position(self.tail.0 + 1) });
        }
        if frame.segment != self.segment {
            return Err(AppendError::NotStored(format!("{:?} is not the segment of this start", frame.segment)));
        }
        if let Some((conversation, seq)) = self.view.first_gap(frame) {
            return Err(AppendError::NotStored(format!("entry {seq} does not continue conversation {conversation}")));
        }
        if let Err(error) = journal.append(&frame.bytes, 0) {
            let (reason, sync) = (error.to_string(), journal.meter().is_sync_failed());
            self.health = Health::Failed { reason: reason.clone(), sync };
            return Err(AppendError::Unknown { reason, sync });
        }
        self.repeatable = None;
        self.take_in(frame);
        Ok(())
    }

    fn follow(&self, from: Position, frame: &mut dyn FnMut(Frame)) -> Result<(), FollowError> {
        let Some(journal) = &self.journal else {
            return Err(ReadError("the journal is closed".to_owned()).into());
        };
        let mut expected = None;
        for found in journal.frames_after(journal.commit_before(from.0)?)? {
            let (_, found) = found?;
            if expected.is_none() && found.first.0 > from.0 + 1 {
                return Err(FollowError::Trimmed { first: found.first });
            }
            if expected.is_some_and(|expected| expected != found.first) {
                return Err(ReadError(format!("the journal has a hole before position {}", found.first.0)).into());
            }
            expected = Some(Position(found.last().0 + 1));
            if !found.records.is_empty() && (found.first > from || found.last() > from) {
                frame(found);
            }
        }
        Ok(())
    }

    fn is_seal_due(&self) -> bool {
        false
    }

    fn seal(&mut self, _state: Box<dyn StateDelta>) {}

    fn pressure(&self) -> Pressure {
        match self.waiting_bytes >= self.options.journal_bytes {
            true => Pressure::Full,
            false => Pressure::Open,
        }
    }

    fn reopen(&mut self) -> Result<(), AppendError> {
        if let Health::Failed { reason, sync: true } = &self.health {
            return Err(AppendError::Unknown { reason: reason.clone(), sync: true });
        }
        let known = self.journal.take().map_or(0, |journal| journal.newest_commit());
        match self.open_journal(known).map_err(|error| error.to_string()).and_then(|journal| {
            // A frame whose commit was cut off may be there all the same: then it is part of the log from now on.
            self.repeatable = self.take_in_after(&journal, known).map_err(|error| error.to_string())?;
            Ok(journal)
        }) {
            Ok(journal) => self.journal = Some(journal),
            Err(reason) => {
                self.health = Health::ReadOnly(reason.clone());
                return Err(AppendError::NotStored(reason));
            }
        }
        self.health = Health::Writable;
        let repeatable = self.repeatable.take();
        self.append(&self.empty_frame())?;
        self.repeatable = repeatable;
        Ok(())
    }

    fn set_floor(&mut self, floor: Position) {
        self.view.raise_floor(floor);
    }

    fn proposed_floor(&self, _bytes: Option<u64>, _time: Option<LogTime>) -> Position {
        self.view.floor()
    }

    fn history(&self) -> Arc<dyn History> {
        Arc::clone(&self.view) as Arc<dyn History>
    }

    fn close(self: Box<Self>) -> Result<(), ReadError> {
        self.state.close()?;
        self.journal.map_or(Ok(()), Journal::close)
    }
}

#[cfg(test)]
mod tests {
    use longwire_protocol::{ConversationId, DeviceId, Seq};

    use super::*;
    use crate::store::{EntryMeta, Origin, PageLimit};
    use bytes::BufMut;

    #[test]
    fn what_was_appended_is_there_after_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let page = PageLimit { entries: 100, bytes: 1 << 20 };
        for start in 1..=3_u64 {
            let mut log = RedbLog::open(folder.path(), StoreOptions::default()).expect("opens");
            assert_eq!(log.tail(), Position(start - 1));
            assert_eq!(log.segments().len() as u64, start);
            let segment = log.segments().last().expect("a segment").id;
            let mut builder = FrameBuilder::new(segment, Position(start), LogTime(start));
            let origin = Origin { device: DeviceId(1), ..Origin::default() };
            let meta = EntryMeta { conversation: ConversationId(9), seq: Seq(start), origin, ..EntryMeta::default() };
            builder.push_entry(&meta, |b| b.put_slice(b"hello"));
            let frame = builder.finish();
            log.append(&frame).expect("appends");
            assert!(matches!(log.append(&frame), Err(AppendError::Conflict { .. })));
            let entries = log.history().range(ConversationId(9), Seq(1), Seq(100), false, page).expect("reads");
            assert_eq!(entries.len() as u64, start);
            let mut followed = 0;
            log.follow(Position(0), &mut |_| followed += 1).expect("follows");
            assert_eq!(followed, start);
            Box::new(log).close().expect("closes");
        }
    }
}
