//! The durable log: a folder of redb files. This is the commit thread's side of it; readers have the [`View`], and the
//! background thread has runs and state.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use longwire_protocol::LogTime;

use super::builder::{Builder, Desk, Job, Pace};
use super::disk::{Disk, Folder, RUNS_FOLDER};
use super::figures::Figures;
use super::frame::{Frame, FrameBuilder, Record};
use super::journal::{JOURNAL_FILE, Journal};
use super::merge::MergeLimit;
use super::open::{OpenError, UNFINISHED, put_in_place};
use super::options::StoreOptions;
use super::read_only::ReadOnlyDisk;
use super::run::{Run, file_name};
use super::sieve::Sieve;
use super::state_file::{Progress, RunRow, STATE_FILE, StateFile};
use super::stats::Written;
use super::view::View;
use super::{
    AppendError, FollowError, History, Log, Position, Pressure, ReadError, SavedState, Segment, SegmentId, StateDelta,
};
use crate::vital;

/// Memtables that may wait for the background thread, the one that it works on included.
const SEALED_MAX: usize = 2;

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

/// What is to go up to a position; see [`Log::purge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Purge {
    upto: Position,
    /// The journal's commit that ended at the tail, or beyond `upto`, when it was asked for.
    commit: u64,
    /// How often it was asked whether the journal can have a new file.
    looks: u64,
    /// The journal has had a new file since it held nothing of that any more.
    is_journal_new: bool,
}

/// Who does the background work.
enum Background {
    Thread(Option<JoinHandle<()>>),
    /// Whoever calls [`RedbLog::work`]: for what shall run the same way every time.
    ByHand(Box<Builder>),
}

/// The durable log. See [`Log`].
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
    /// The journal commit that ends at the tail.
    newest_commit: u64,
    /// All bytes of frames that were beyond the state at the start or came since.
    journal_bytes: u64,
    /// Bytes of frames that this start appended.
    appended_bytes: u64,
    /// The same as `journal_bytes` at the last seal.
    sealed_bytes: u64,
    /// Where the state stood when it was last read, and the journal commit that ends there.
    state_read: Mutex<Option<(Position, u64)>>,
    desk: Arc<Desk>,
    /// What was absorbed when the journal's file was last looked at.
    looked_at: u64,
    /// The purge under way, if there is one.
    purge: Option<Purge>,
    background: Background,
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

    /// Opens a store that nobody has open, to be read: nothing that is written reaches the disk.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_to_read(folder: &Path) -> Result<Self, OpenError> {
        let disk = ReadOnlyDisk::new(Arc::new(Folder::existing(folder)));
        Self::open_by_hand(Arc::new(disk), StoreOptions::default())
    }

    /// Opens the store on a disk.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_disk(disk: Arc<dyn Disk>, options: StoreOptions) -> Result<Self, OpenError> {
        Self::open_with(disk, options, |builder| {
            Ok(Background::Thread(Some(vital::spawn("store-builder", || builder.run())?)))
        })
    }

    /// Opens the store on a disk; background work is done by [`RedbLog::work`] and nobody else, so that one seed decides
    /// when.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_by_hand(disk: Arc<dyn Disk>, options: StoreOptions) -> Result<Self, OpenError> {
        let options = StoreOptions { pause: std::time::Duration::ZERO, ..options };
        Self::open_with(disk, options, |builder| Ok(Background::ByHand(Box::new(builder))))
    }

    /// Does a piece of background work of a log that was opened by hand; returns whether there may be more.
    ///
    /// # Errors
    /// When the piece failed; it is kept, and tried again by the next call.
    pub fn work(&mut self) -> Result<bool, ReadError> {
        match &mut self.background {
            Background::ByHand(builder) => Ok(builder.step()? == super::builder::Work::Done),
            Background::Thread(_) => Ok(false),
        }
    }

    fn open_with(
        disk: Arc<dyn Disk>,
        options: StoreOptions,
        begin: impl FnOnce(Builder) -> io::Result<Background>,
    ) -> Result<Self, OpenError> {
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
        let open_run = |row: &RunRow| {
            let run = Run::open(&disk, *row, options.run_cache_bytes);
            run.map(Arc::new).map_err(|error| OpenError::damaged(&*disk, &file_name(row.number), error))
        };
        let view =
            Arc::new(View::of_runs(saved.runs.iter().map(open_run).collect::<Result<_, _>>()?, options.recent_bytes));
        view.raise_floor(floor);
        let state = Arc::new(state);
        let desk = Arc::new(Desk::new(applied_commit));
        let builder = Builder::new(
            Arc::clone(&disk),
            Arc::clone(&state),
            Arc::clone(&view),
            Arc::clone(&desk),
            saved.progress,
            Pace {
                limit: MergeLimit { entries: options.run_entries, bytes: options.run_bytes },
                run_cache_bytes: options.run_cache_bytes,
                pause: options.pause,
            },
        );
        let mut log = Self {
            birth_unix_ms,
            state,
            view,
            journal: None,
            segments: saved.segments,
            segment: SegmentId(fastrand::u64(1..)),
            tail: applied,
            tail_time: applied_time,
            health: Health::Writable,
            newest_commit: applied_commit,
            journal_bytes: 0,
            appended_bytes: 0,
            sealed_bytes: 0,
            state_read: Mutex::new(None),
            desk,
            looked_at: applied_commit,
            purge: None,
            background: Background::Thread(None),
            repeatable: None,
            disk,
            options,
        };
        let journal = log.open_journal(applied_commit)?;
        log.take_in_rest(&journal).map_err(|error| OpenError::damaged(&*log.disk, JOURNAL_FILE, error))?;
        log.journal = Some(journal);
        log.remove_strays(&saved.runs);
        log.begin_segment();
        if let (Health::ReadOnly(reason) | Health::Failed { reason, .. }, true) = (&log.health, log.segments.is_empty())
        {
            // There is nothing to serve either.
            return Err(OpenError::io(&*log.disk, JOURNAL_FILE, io::Error::other(reason.clone())));
        }
        log.background = begin(builder).map_err(|error| OpenError::io(&*log.disk, "", error))?;
        Ok(log)
    }

    /// What was written since the store was opened, and for what.
    #[must_use]
    pub fn written(&self) -> Written {
        let journal = self.journal.as_ref().map(Journal::meter);
        Written {
            frames: self.appended_bytes,
            journal: journal.map_or(0, |meter| meter.written()),
            journal_syncs: journal.map_or(0, |meter| meter.syncs()),
            state: self.state.meter().written(),
            runs: self.desk.written(),
        }
    }

    fn open_journal(&self, applied_commit: u64) -> Result<Journal, OpenError> {
        // A file that took another's place, and whose name was not yet durable, is not to be written.
        self.disk.sync_names().map_err(|error| OpenError::io(&*self.disk, JOURNAL_FILE, error))?;
        Journal::open(&*self.disk, self.options.journal_cache_bytes, self.options.two_phase_commit, applied_commit)
    }

    /// After a peak of load, moves the little that the journal still holds into a file of its size. Costs a few file syncs,
    /// and at most a sixteenth of the file's largest size in bytes.
    fn replace_oversized_journal(&mut self) -> Result<(), OpenError> {
        let absorbed = self.desk.absorbed_commit();
        if std::mem::replace(&mut self.looked_at, absorbed) == absorbed {
            return Ok(());
        }
        let most = self.options.journal_file_bytes;
        if self.waiting_bytes() > most / 16 || self.disk.allocated(JOURNAL_FILE).unwrap_or(0) <= most {
            return Ok(());
        }
        if self.replace_journal(absorbed)? {
            tracing::info!("the journal has a new file, since the old one was much larger than what it held");
        }
        Ok(())
    }

    /// Moves what the journal still holds into a new file; returns whether it did.
    fn replace_journal(&mut self, absorbed: u64) -> Result<bool, OpenError> {
        let Some(journal) = &self.journal else { return Ok(false) };
        let keeps = |error: OpenError| tracing::warn!(%error, "the journal keeps its file");
        if let Err(error) = journal.prepare_new_file(&*self.disk, absorbed) {
            keeps(error);
            return Ok(false);
        }
        if let Err(error) = put_in_place(&*self.disk, JOURNAL_FILE) {
            if self.disk.exists(&format!("{JOURNAL_FILE}{UNFINISHED}")).unwrap_or(false) {
                // It never got the name: the old file goes on.
                keeps(error);
                return Ok(false);
            }
            return Err(error);
        }
        // Closed before the other one is opened.
        self.journal = None;
        self.journal = Some(self.open_journal(self.newest_commit)?);
        Ok(true)
    }

    /// Which file has the journal's name is found out by opening it; both hold every frame. Whether that name survives the
    /// loss of power is not known, and a second sync would not tell.
    fn not_replaced(&mut self, error: &OpenError) -> AppendError {
        let reason = format!("the journal's file could not be replaced: {error}");
        self.health = Health::Failed { reason: reason.clone(), sync: true };
        AppendError::Unknown { reason, sync: true }
    }

    /// Pages that redb has freed still hold what they held: so the journal gets a new file once its frames up to the purge
    /// are absorbed, and its newest one is another. Publishes wait while what it still holds is moved: at first no more
    /// than a sixteenth of a large file, and with each look as much again, so that a broker that is never quiet comes to it.
    fn purge_journal(&mut self, purge: Purge) -> Result<bool, AppendError> {
        if self.desk.absorbed_commit() < purge.commit || !matches!(self.health, Health::Writable) {
            return Ok(false);
        }
        if self.waiting_bytes() > self.options.journal_file_bytes / 16 * purge.looks {
            return Ok(false);
        }
        if self.newest_commit <= purge.commit {
            self.append(&self.empty_frame())?;
        }
        match self.replace_journal(self.desk.absorbed_commit()) {
            Ok(is_new) => Ok(is_new),
            Err(error) => Err(self.not_replaced(&error)),
        }
    }

    /// Takes in the frames after the tail: what a start finds beyond the state, and what reopening finds. Returns the
    /// bytes of the newest.
    fn take_in_rest(&mut self, journal: &Journal) -> Result<Option<Bytes>, ReadError> {
        let mut newest = None;
        for found in journal.frames_after(self.newest_commit)? {
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
            self.take_in(&frame, commit);
            newest = Some(frame.bytes);
        }
        Ok(newest)
    }

    /// What is committed becomes visible.
    fn take_in(&mut self, frame: &Frame, commit: u64) {
        if self.segments.last().is_none_or(|segment| segment.id != frame.segment) {
            self.segments.push(Segment { id: frame.segment, first: frame.first, time: frame.time });
        }
        self.view.add(frame);
        self.newest_commit = commit;
        self.tail = frame.last();
        self.tail_time = frame.time;
        self.journal_bytes += frame.bytes.len() as u64;
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

    /// Removes the files that a crash left half made, or no longer wanted.
    fn remove_strays(&self, runs: &[RunRow]) {
        let listed: HashSet<_> = runs.iter().map(|run| file_name(run.number)).collect();
        let list = |folder| self.disk.list(folder).unwrap_or_default();
        let in_runs = list(RUNS_FOLDER).into_iter().map(|name| format!("{RUNS_FOLDER}/{name}"));
        let unlisted = in_runs.filter(|name| !listed.contains(name));
        for name in list("").into_iter().filter(|name| name.ends_with(UNFINISHED)).chain(unlisted) {
            if let Err(error) = self.disk.remove(&name) {
                tracing::warn!(%error, name, "a file that is not needed cannot be removed");
            }
        }
    }

    /// Bytes of frames that runs and state have not absorbed.
    fn waiting_bytes(&self) -> u64 {
        self.journal_bytes - self.desk.absorbed_bytes()
    }

    /// Whether the active memtable, or the journal since the last seal, is as large as it shall get.
    fn is_full(&self) -> bool {
        let (entries, bytes) = self.view.active_size();
        entries >= self.options.seal_entries
            || bytes >= self.options.seal_bytes
            || self.journal_bytes - self.sealed_bytes >= self.options.seal_bytes as u64
    }

    fn stop(&mut self) {
        self.desk.stop();
        if let Background::Thread(thread) = &mut self.background
            && let Some(thread) = thread.take()
        {
            // Vital: it cannot have panicked.
            let _ = thread.join();
        }
    }

    fn check_room(&self, frame: &Frame) -> Result<(), AppendError> {
        let is_publish =
            frame.records.iter().any(|r| matches!(r, Record::Entry(entry) if entry.origin.device.is_some()));
        let reserve = if is_publish { 0 } else { self.options.journal_reserve_bytes };
        if self.waiting_bytes() + frame.bytes.len() as u64 > self.options.journal_bytes + reserve {
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

    fn applied(&self) -> Result<Position, ReadError> {
        let Progress { applied, applied_commit, .. } = self.state.load()?.progress;
        *self.state_read.lock().unwrap_or_else(PoisonError::into_inner) = Some((applied, applied_commit));
        Ok(applied)
    }

    fn saved(&self) -> Arc<dyn SavedState> {
        Arc::clone(&self.state) as Arc<dyn SavedState>
    }

    fn append(&mut self, frame: &Frame) -> Result<(), AppendError> {
        match &self.health {
            Health::Writable => {}
            Health::Failed { reason, sync } => {
                return Err(AppendError::Unknown { reason: reason.clone(), sync: *sync });
            }
            Health::ReadOnly(reason) => return Err(AppendError::NotStored(reason.clone())),
        }
        if self.repeatable.as_ref() == Some(&frame.bytes) {
            return Ok(());
        }
        if frame.first.0 != self.tail.0 + 1 {
            return Err(AppendError::Conflict { first: frame.first, expected: Position(self.tail.0 + 1) });
        }
        if frame.segment != self.segment {
            return Err(AppendError::NotStored(format!("{:?} is not the segment of this start", frame.segment)));
        }
        self.check_room(frame)?;
        if let Some((conversation, seq)) = self.view.first_gap(frame) {
            return Err(AppendError::NotStored(format!("entry {seq} does not continue conversation {conversation}")));
        }
        if let Err(error) = self.replace_oversized_journal() {
            return Err(self.not_replaced(&error));
        }
        let Some(journal) = &mut self.journal else {
            return Err(AppendError::NotStored("the journal is closed".to_owned()));
        };
        if let Err(error) = journal.append(&frame.bytes, self.desk.absorbed_commit()) {
            let (reason, sync) = (error.to_string(), journal.meter().is_sync_failed());
            self.health = Health::Failed { reason: reason.clone(), sync };
            return Err(AppendError::Unknown { reason, sync });
        }
        self.repeatable = None;
        let commit = journal.newest_commit();
        self.appended_bytes += frame.bytes.len() as u64;
        self.take_in(frame, commit);
        Ok(())
    }

    fn follow(&self, from: Position, frame: &mut dyn FnMut(Frame)) -> Result<(), FollowError> {
        let Some(journal) = &self.journal else {
            return Err(ReadError("the journal is closed".to_owned()).into());
        };
        let mut expected = None;
        // To go on from the saved state is to leave out also the riders that are in it, which have no position.
        let commit = match *self.state_read.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((applied, commit)) if applied == from => commit,
            _ => journal.commit_before(from.0)?,
        };
        for found in journal.frames_after(commit)? {
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

    fn unsaved_seals(&self) -> usize {
        self.desk.unfinished()
    }

    fn is_seal_due(&self) -> bool {
        let is_purged = |purge: Purge| {
            let is_absorbed = self.desk.absorbed_commit() >= purge.commit || self.desk.unfinished() > 0;
            is_absorbed && !self.view.is_active_below(purge.upto)
        };
        (self.is_full() || !self.purge.is_none_or(is_purged)) && self.desk.unfinished() < SEALED_MAX
    }

    fn seal(&mut self, state: Box<dyn StateDelta>) {
        self.sealed_bytes = self.journal_bytes;
        self.desk.give(Job {
            table: self.view.seal(),
            rows: state,
            tail: self.tail,
            tail_time: self.tail_time,
            commit: self.newest_commit,
            segments: self.segments.clone(),
            journal_bytes: self.journal_bytes,
        });
    }

    fn pressure(&self) -> Pressure {
        let is_builder_behind = self.desk.unfinished() >= SEALED_MAX && self.is_full();
        match is_builder_behind || self.waiting_bytes() >= self.options.journal_bytes {
            true => Pressure::Full,
            false => Pressure::Open,
        }
    }

    fn reopen(&mut self) -> Result<(), AppendError> {
        if let Health::Failed { reason, sync: true } = &self.health {
            return Err(AppendError::Unknown { reason: reason.clone(), sync: true });
        }
        // Closed before it is opened again: redb locks the file.
        drop(self.journal.take());
        let reopened = self.open_journal(self.newest_commit).map_err(|error| error.to_string()).and_then(|journal| {
            // A frame whose commit was cut off may be there all the same: then it is part of the log from now on.
            let newest = self.take_in_rest(&journal).map_err(|error| error.to_string())?;
            Ok((journal, newest))
        });
        let newest = match reopened {
            Ok((journal, newest)) => {
                self.journal = Some(journal);
                newest
            }
            Err(reason) => {
                self.health = Health::Failed { reason: reason.clone(), sync: false };
                return Err(AppendError::Unknown { reason, sync: false });
            }
        };
        self.health = Health::Writable;
        self.append(&self.empty_frame())?;
        self.repeatable = newest;
        Ok(())
    }

    fn set_floor(&mut self, floor: Position) {
        self.view.raise_floor(floor);
        self.desk.nudge();
    }

    fn proposed_floor(&self, bytes: Option<u64>, time: Option<LogTime>) -> Position {
        self.view.proposed_floor(bytes, time)
    }

    fn set_sieve(&mut self, sieve: Arc<dyn Sieve>) {
        self.view.set_sieve(sieve);
    }

    fn purge(&mut self, upto: Position) -> bool {
        let mut purge = match self.purge {
            Some(purge) if purge.upto == upto => purge,
            _ => {
                self.view.purge(upto);
                self.desk.nudge();
                Purge { upto, commit: self.newest_commit, looks: 0, is_journal_new: false }
            }
        };
        let is_purged = self.view.is_purged(upto);
        if is_purged && !purge.is_journal_new {
            purge.looks += 1;
            purge.is_journal_new = self.purge_journal(purge).unwrap_or_else(|error| {
                tracing::error!(%error, "what was erased may still stand in the journal's file");
                false
            });
        }
        self.purge = Some(purge);
        let is_done = is_purged && purge.is_journal_new;
        if is_done {
            self.view.forget_recent();
        }
        is_done
    }

    fn figures(&self) -> Figures {
        Figures {
            is_writable: matches!(self.health, Health::Writable),
            journal_bytes: self.waiting_bytes(),
            journal_bytes_max: self.options.journal_bytes,
            ..self.view.figures()
        }
    }

    fn history(&self) -> Arc<dyn History> {
        Arc::clone(&self.view) as Arc<dyn History>
    }

    fn close(mut self: Box<Self>) -> Result<(), ReadError> {
        self.stop();
        self.state.close()?;
        self.journal.take().map_or(Ok(()), Journal::close)
    }
}

impl Drop for RedbLog {
    fn drop(&mut self) {
        self.stop();
    }
}
