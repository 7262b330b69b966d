//! `store check`: holds a closed store against everything that its files promise, without changing a byte of it.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use longwire_protocol::{ConversationId, Seq};
use serde::Serialize;

use super::disk::{Disk, Folder};
use super::frame::Frame;
use super::journal::{JOURNAL_FILE, Journal};
use super::memtable::Span;
use super::open::{OpenError, open_database};
use super::read_only::ReadOnlyDisk;
use super::run::{Run, file_name};
use super::state_file::{FORMAT, Progress, RunRow, STATE_FILE, Saved, StateFile};
use super::{Position, ReadError, StoredEntry};

/// Cache for each file that is looked at.
const CACHE_BYTES: usize = 64 << 20;

/// Problems that are told one by one; a damaged file can have millions.
const PROBLEMS_TOLD: usize = 100;

/// What a check found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The format of the store.
    pub format: u64,
    /// The position up to which state and runs go.
    pub applied: u64,
    /// The position of the newest record.
    pub tail: u64,
    /// Entries below this position are expired.
    pub floor: u64,
    /// Segments that are remembered.
    pub segments: u64,
    /// Rows of state.
    pub state_rows: u64,
    /// Runs.
    pub runs: u64,
    /// Entries in runs.
    pub run_entries: u64,
    /// Frames in the journal.
    pub frames: u64,
    /// Entries in the journal that no run holds yet.
    pub journal_entries: u64,
    /// Conversations that have entries.
    pub conversations: u64,
    /// What is wrong, each in a sentence; empty when all is well. At most 100 are told.
    pub problems: Vec<String>,
    /// How many problems there are.
    pub problem_count: u64,
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.problem_count == 0
    }

    fn problem(&mut self, problem: impl ToString) {
        self.problem_count += 1;
        if self.problems.len() < PROBLEMS_TOLD {
            self.problems.push(problem.to_string());
        }
    }
}

/// The newest entry of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The conversation.
    pub conversation: ConversationId,
    /// Its newest seq.
    pub seq: Seq,
    /// The position of that entry.
    pub position: Position,
    /// Countable entries up to it.
    pub countable: u64,
}

/// Sees what a check reads, in this order: the rows of state, the frames after them, and in the end the newest entry of
/// each conversation that still has one. `routing` holds its own promises against that.
pub trait Visitor {
    /// A row of the state as it was saved.
    fn state_row(&mut self, _key: &[u8], _value: &[u8]) {}

    /// A frame that is not in the saved state.
    fn frame(&mut self, _frame: &Frame) {}

    /// A conversation of which the first entry that there is is not its first, though nothing is below a floor.
    fn begins(&mut self, _conversation: ConversationId, _seq: Seq) {}

    /// The newest entry of a conversation, from runs and journal.
    fn head(&mut self, _head: Head) {}

    /// What the visitor found wrong.
    fn problems(&mut self) -> Vec<String> {
        Vec::new()
    }
}

/// A visitor that looks at nothing.
impl Visitor for () {}

/// Checks the store in a folder, which no process may have open.
///
/// # Errors
/// When there is no store, it is open, or it is of a newer format. What is wrong inside is in the report.
pub fn check(folder: &Path, visitor: &mut dyn Visitor) -> Result<Report, OpenError> {
    check_disk(Arc::new(Folder::existing(folder)), visitor)
}

/// [`check`] on any disk.
pub(super) fn check_disk(disk: Arc<dyn Disk>, visitor: &mut dyn Visitor) -> Result<Report, OpenError> {
    let disk: Arc<dyn Disk> = Arc::new(ReadOnlyDisk::new(disk));
    let mut report = Report { format: FORMAT, ..Report::default() };
    let (saved, is_state_sound) = {
        let state = guarded(&disk, STATE_FILE, || StateFile::open(Arc::clone(&disk), CACHE_BYTES))?;
        let saved = state.load().map_err(|error| OpenError::damaged(&*disk, STATE_FILE, error))?;
        let mut rows = 0;
        let read = state.rows(&mut |key, value| {
            rows += 1;
            visitor.state_row(key, value);
        });
        report.state_rows = rows;
        if let Err(error) = read {
            report.problem(error);
        }
        (saved, state.close().is_ok())
    };
    if !is_state_sound {
        report.problem(format!("{STATE_FILE} cannot be closed"));
    }
    for name in [STATE_FILE, JOURNAL_FILE] {
        check_pages(&disk, name, &mut report);
    }
    let Progress { applied, floor, .. } = saved.progress;
    report.applied = applied.0;
    report.floor = floor.0;
    let mut heads = Heads { floor, begins: HashMap::new(), heads: HashMap::new() };
    check_runs(&disk, &saved, &mut heads, &mut report);
    check_journal(&disk, &saved, &mut heads, visitor, &mut report);
    report.conversations = heads.heads.len() as u64;
    heads.begins.into_iter().for_each(|(conversation, seq)| visitor.begins(conversation, seq));
    heads.heads.into_values().for_each(|head| visitor.head(head));
    visitor.problems().into_iter().for_each(|problem| report.problem(problem));
    Ok(report)
}

/// The newest entry of each conversation so far.
struct Heads {
    floor: Position,
    /// Conversations that do not begin with their first entry.
    begins: HashMap<ConversationId, Seq>,
    heads: HashMap<ConversationId, Head>,
}

impl Heads {
    /// Holds an entry against the one before it in its conversation.
    fn check(&mut self, entry: &StoredEntry, place: &str, report: &mut Report) {
        let StoredEntry { conversation, seq, position, countable, .. } = *entry;
        let head = Head { conversation, seq, position, countable };
        match self.heads.insert(conversation, head) {
            None if seq != Seq(1) && self.floor == Position(0) => drop(self.begins.insert(conversation, seq)),
            None => {}
            Some(last) => {
                // What expired may be gone already.
                if seq != last.seq.next() && last.position >= self.floor {
                    report.problem(format!("{place}: conversation {conversation} has {seq} after {}", last.seq));
                }
                if position <= last.position || countable < last.countable || countable > last.countable + 1 {
                    report.problem(format!("{place}: entry {seq} of conversation {conversation} has wrong counts"));
                }
            }
        }
    }
}

/// redb's own check of its pages.
fn check_pages(disk: &Arc<dyn Disk>, name: &str, report: &mut Report) {
    let checked = guarded(disk, name, || {
        let mut database = open_database(&**disk, name, CACHE_BYTES, Arc::default())?;
        database.check_integrity().map_err(|error| OpenError::damaged(&**disk, name, error))
    });
    match checked {
        Ok(true) => {}
        Ok(false) => report.problem(format!("{name} has pages that are not as redb left them")),
        Err(error) => report.problem(error),
    }
}

fn check_runs(disk: &Arc<dyn Disk>, saved: &Saved, heads: &mut Heads, report: &mut Report) {
    let mut last = Position(0);
    for row in &saved.runs {
        let Span { first, last: end, .. } = row.span;
        if first <= last || end < first || end > saved.progress.applied {
            report.problem(format!("run {}: its positions {first:?} to {end:?} are not where they can be", row.number));
        }
        last = end;
        report.runs += 1;
        check_pages(disk, &file_name(row.number), report);
        let checked = guarded(disk, &file_name(row.number), || {
            check_run(disk, row, heads, report)
                .map_err(|error| OpenError::damaged(&**disk, &file_name(row.number), error))
        });
        if let Err(error) = checked {
            report.problem(error);
        }
    }
}

fn check_run(disk: &Arc<dyn Disk>, row: &RunRow, heads: &mut Heads, report: &mut Report) -> Result<(), ReadError> {
    let place = format!("run {}", row.number);
    let run = Arc::new(Run::open(disk, *row, CACHE_BYTES)?);
    let mut before = (ConversationId(0), Seq(0));
    let mut span: Option<Span> = None;
    let mut positions = Bits::new(row.span.last.0.saturating_sub(row.span.first.0) + 1);
    let mut entries = 0;
    for packed in run.rows()? {
        for entry in packed? {
            entries += 1;
            let key = (entry.conversation, entry.seq);
            if key <= before {
                report.problem(format!(
                    "{place} is not sorted at entry {} of conversation {}",
                    entry.seq, entry.conversation
                ));
            }
            before = key;
            heads.check(&entry, &place, report);
            let is_new = entry.position.0.checked_sub(row.span.first.0).is_some_and(|at| positions.set(at));
            if !is_new {
                report.problem(format!("{place}: position {} is not its own", entry.position.0));
            }
            let own = Span::of(&entry);
            span = Some(span.map_or(own, |span| span.joined(own)));
        }
    }
    report.run_entries += entries;
    if entries != row.entries || span != Some(row.span) {
        report.problem(format!("{place} has {entries} entries in {span:?}, the manifest says {row:?}"));
    }
    Ok(())
}

fn check_journal(
    disk: &Arc<dyn Disk>,
    saved: &Saved,
    heads: &mut Heads,
    visitor: &mut dyn Visitor,
    report: &mut Report,
) {
    let Progress { applied, applied_commit, .. } = saved.progress;
    let mut segments: Vec<_> = saved.segments.iter().map(|segment| segment.id).collect();
    let mut tail = None;
    let checked = guarded(disk, JOURNAL_FILE, || {
        let damaged = |error: ReadError| OpenError::damaged(&**disk, JOURNAL_FILE, error);
        let journal = Journal::open(&**disk, CACHE_BYTES, false, applied_commit)?;
        for found in journal.frames_after(0).map_err(damaged)? {
            let (commit, frame) = found.map_err(damaged)?;
            report.frames += 1;
            let place = format!("commit {commit} of the journal");
            if tail.is_some_and(|tail: Position| tail.0 + 1 != frame.first.0) {
                report.problem(format!("{place} begins at {:?} after {tail:?}", frame.first));
            }
            if tail.is_none() && frame.first.0 > applied.0 + 1 {
                report.problem(format!("{place} is the first, and begins at {:?} beyond the state", frame.first));
            }
            tail = Some(frame.last());
            let is_absorbed = commit <= applied_commit;
            if is_absorbed != (frame.last() <= applied) && frame.positions > 0 {
                report.problem(format!("{place} ends at {:?}, the state stands at {applied:?}", frame.last()));
            }
            if !segments.contains(&frame.segment) {
                if is_absorbed {
                    report.problem(format!("{place} is of a segment that the state forgot"));
                }
                segments.push(frame.segment);
            }
            if !is_absorbed {
                for entry in frame.entries() {
                    report.journal_entries += 1;
                    heads.check(entry, &place, report);
                }
                visitor.frame(&frame);
            }
        }
        journal.close().map_err(damaged)
    });
    if let Err(error) = checked {
        report.problem(error);
    }
    let tail = tail.unwrap_or(applied);
    if tail < applied {
        report.problem(format!("the journal ends at {tail:?}, the state stands at {applied:?}"));
    }
    report.tail = tail.0;
    report.segments = segments.len() as u64;
}

/// redb may panic on a file that was changed behind its back; that is a finding here, like any other.
fn guarded<T>(disk: &Arc<dyn Disk>, name: &str, work: impl FnOnce() -> Result<T, OpenError>) -> Result<T, OpenError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(OpenError::damaged(&**disk, name, "redb cannot make sense of its pages")))
}

/// One bit for each position of a run.
struct Bits {
    bits: Vec<u64>,
}

impl Bits {
    fn new(length: u64) -> Self {
        // A run spans far fewer positions than this, unless its row in the manifest is wrong.
        Self { bits: vec![0; (length.min(1 << 32) / 64 + 1) as usize] }
    }

    /// Sets a bit; returns whether it is one of these and was not set before.
    fn set(&mut self, at: u64) -> bool {
        let Some(word) = self.bits.get_mut((at / 64) as usize) else { return false };
        let mask = 1 << (at % 64);
        let is_new = *word & mask == 0;
        *word |= mask;
        is_new
    }
}
