//! The log in memory: for tests and simulation, held to the same words as the durable one. What lasts through a restart
//! is what a disk would have kept: [`MemoryLog::restarted`].

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use longwire_protocol::LogTime;

use super::figures::Figures;
use super::frame::{Frame, FrameBuilder};
use super::sieve::Sieve;
use super::view::View;
use super::{
    AppendError, FollowError, History, Log, Position, Pressure, ReadError, SavedState, Segment, SegmentId, StateDelta,
};

/// What an append shall do instead of succeeding; see [`MemoryLog::fail_next_append`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Surely not stored; the log goes on.
    NotStored,
    /// Fails under way, and after reopening the frame is there.
    UnknownAndStored,
    /// Fails under way, and after reopening the frame is not there.
    UnknownAndLost,
    /// A sync fails: nothing is appended until a restart.
    Sync,
}

/// The log in memory. See [`Log`].
#[derive(Debug)]
pub struct MemoryLog {
    birth_unix_ms: u64,
    seal_entries: usize,
    frames: Vec<Frame>,
    saved: Arc<MemoryState>,
    applied: Position,
    /// How many of the frames are in the state.
    applied_frames: usize,
    segments: Vec<Segment>,
    view: Arc<View>,
    tail: Position,
    tail_time: LogTime,
    failure: Option<Failure>,
    /// An append failed under way: with a sync or not.
    failed: Option<bool>,
    repeatable: Option<Bytes>,
}

/// The saved state.
#[derive(Debug, Default)]
struct MemoryState {
    rows: RwLock<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl MemoryState {
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Vec<u8>, Vec<u8>>> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SavedState for MemoryState {
    fn get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, ReadError> {
        let rows = self.read();
        Ok(keys.iter().map(|key| rows.get(key).cloned()).collect())
    }

    fn each(&self, prefix: &[u8], row: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), ReadError> {
        let rows = self.read();
        let from = rows.range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded));
        from.take_while(|(key, _)| key.starts_with(prefix)).for_each(|(key, value)| row(key, value));
        Ok(())
    }
}

impl MemoryLog {
    /// An empty log that asks to be sealed every `seal_entries` entries.
    #[must_use]
    pub fn new(birth_unix_ms: u64, seal_entries: usize) -> Self {
        let mut log = Self {
            birth_unix_ms,
            seal_entries,
            frames: Vec::new(),
            saved: Arc::default(),
            applied: Position(0),
            applied_frames: 0,
            segments: Vec::new(),
            view: Arc::new(View::of_runs(Vec::new(), 0)),
            tail: Position(0),
            tail_time: LogTime(0),
            failure: None,
            failed: None,
            repeatable: None,
        };
        log.begin_segment();
        log
    }

    /// The log as the next start finds it.
    #[must_use]
    pub fn restarted(mut self) -> Self {
        self.failure = None;
        self.failed = None;
        self.repeatable = None;
        self.begin_segment();
        self
    }

    /// Makes the next append fail.
    pub fn fail_next_append(&mut self, failure: Failure) {
        self.failure = Some(failure);
    }

    fn begin_segment(&mut self) {
        let id = SegmentId(fastrand::u64(1..));
        self.segments.push(Segment { id, first: Position(self.tail.0 + 1), time: self.tail_time });
        self.store(&FrameBuilder::new(id, Position(self.tail.0 + 1), self.tail_time).finish());
    }

    fn segment(&self) -> SegmentId {
        self.segments.last().map_or(SegmentId(0), |segment| segment.id)
    }

    fn store(&mut self, frame: &Frame) {
        self.view.add(frame);
        self.tail = frame.last();
        self.tail_time = frame.time;
        self.frames.push(frame.clone());
    }
}

impl Log for MemoryLog {
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
        Ok(self.applied)
    }

    fn saved(&self) -> Arc<dyn SavedState> {
        Arc::clone(&self.saved) as Arc<dyn SavedState>
    }

    fn append(&mut self, frame: &Frame) -> Result<(), AppendError> {
        let unknown = |sync| AppendError::Unknown { reason: "as the test asked".to_owned(), sync };
        if let Some(sync) = self.failed {
            return Err(unknown(sync));
        }
        if self.repeatable.as_ref() == Some(&frame.bytes) {
            return Ok(());
        }
        if frame.first.0 != self.tail.0 + 1 {
            return Err(AppendError::Conflict { first: frame.first, expected: Position(self.tail.0 + 1) });
        }
        if frame.segment != self.segment() {
            return Err(AppendError::NotStored(format!("{:?} is not the segment of this start", frame.segment)));
        }
        if let Some((conversation, seq)) = self.view.first_gap(frame) {
            return Err(AppendError::NotStored(format!("entry {seq} does not continue conversation {conversation}")));
        }
        match self.failure.take() {
            None => {
                self.repeatable = None;
                self.store(frame);
                Ok(())
            }
            Some(Failure::NotStored) => Err(AppendError::NotStored("as the test asked".to_owned())),
            Some(Failure::UnknownAndStored) => {
                self.store(frame);
                self.repeatable = Some(frame.bytes.clone());
                self.failed = Some(false);
                Err(unknown(false))
            }
            Some(Failure::UnknownAndLost) => {
                self.failed = Some(false);
                Err(unknown(false))
            }
            Some(Failure::Sync) => {
                self.failed = Some(true);
                Err(unknown(true))
            }
        }
    }

    fn follow(&self, from: Position, frame: &mut dyn FnMut(Frame)) -> Result<(), FollowError> {
        // Riders of frames that are in the state are not told again to who goes on from there.
        let skipped = if from == self.applied { self.applied_frames } else { 0 };
        for found in &self.frames[skipped..] {
            if !found.records.is_empty() && (found.first > from || found.last() > from) {
                frame(found.clone());
            }
        }
        Ok(())
    }

    fn is_seal_due(&self) -> bool {
        self.view.active_size().0 >= self.seal_entries
    }

    fn unsaved_seals(&self) -> usize {
        0
    }

    fn seal(&mut self, state: Box<dyn StateDelta>) {
        let mut saved = self.saved.rows.write().unwrap_or_else(PoisonError::into_inner);
        state.rows(&mut |key, value| {
            match value {
                Some(value) => saved.insert(key.to_vec(), value.to_vec()),
                None => saved.remove(key),
            };
        });
        drop(saved);
        self.applied = self.tail;
        self.applied_frames = self.frames.len();
        self.view.seal();
    }

    fn pressure(&self) -> Pressure {
        Pressure::Open
    }

    fn reopen(&mut self) -> Result<(), AppendError> {
        if self.failed == Some(true) {
            return Err(AppendError::Unknown { reason: "as the test asked".to_owned(), sync: true });
        }
        self.failed = None;
        Ok(())
    }

    fn set_floor(&mut self, floor: Position) {
        self.view.raise_floor(floor);
        self.view.drop_sealed_below(floor);
    }

    fn proposed_floor(&self, bytes: Option<u64>, time: Option<LogTime>) -> Position {
        self.view.proposed_floor(bytes, time)
    }

    fn set_sieve(&mut self, sieve: Arc<dyn Sieve>) {
        self.view.set_sieve(sieve);
    }

    fn purge(&mut self, _: Position) -> bool {
        // It has no files: what goes is withheld for good.
        false
    }

    fn figures(&self) -> Figures {
        Figures { is_writable: self.failed.is_none(), ..self.view.figures() }
    }

    fn history(&self) -> Arc<dyn History> {
        Arc::clone(&self.view) as Arc<dyn History>
    }

    fn close(self: Box<Self>) -> Result<(), ReadError> {
        Ok(())
    }
}
