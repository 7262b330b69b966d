//! The background thread: turns sealed memtables into runs, saves the state that goes with them, merges runs, and
//! deletes what nobody needs. It works in small slices and pauses between them, so that the commit thread gets its core and
//! the disk; while a memtable waits it does not pause, since publishes may soon wait for it. It has no lower priority, which
//! would make those who publish wait for who has the least of the cores.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longwire_protocol::LogTime;

use super::disk::Disk;
use super::look::Look;
use super::memtable::Memtable;
use super::merge::{FAN_IN, Filter, Merge, MergeError, MergeLimit, Merged, due};
use super::run::{Run, RunWriter, file_name};
use super::state_file::{Progress, RunRow, StateFile, Step};
use super::view::View;
use super::{History, Position, ReadError, Segment, StateDelta};

/// Entries a slice: with the pause it keeps the builder under half a core. Each is a transaction of the run: of a fifth of
/// that, a message costs 4 to 12 % more.
const SLICE_ENTRIES: usize = 5_000;
/// The same of rows that are only looked at: some 4 KiB each, and a search for each that lies apart.
const SLICE_ROWS: usize = 500;

/// Bytes by which a file is cut at a time before it is removed: removing a large one at once stalls the disk.
const CUT_BYTES: u64 = 16 << 20;

/// Unmerged runs above which merging takes turns with new runs, and publishes may wait for it.
const MERGE_DEBT: usize = 3 * FAN_IN;
/// Slices of merging between two memtables, for each run above that. Eight of the largest runs of memtables, 400,000 entries
/// each, are 640 slices, so that there are never more than some twelve above; of contents of 4 KB they are 27, and one
/// or two above are enough.
const MERGE_SHARE: usize = 8;

/// How long to wait after a failure, doubled up to the longest.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(30);
/// How often a run may be unreadable for a merge before it is left as it is.
const READ_TRIES: u32 = 3;

/// How long to wait before looking again whether the last reader of a run is gone.
const READERS_WAIT: Duration = Duration::from_millis(100);

/// How long to sleep when there is nothing to do; whatever comes up wakes the thread.
const IDLE_WAIT: Duration = Duration::from_secs(3600);

/// A sealed memtable and the state that goes with it.
pub(super) struct Job {
    pub(super) table: Arc<Memtable>,
    pub(super) rows: Box<dyn StateDelta>,
    pub(super) tail: Position,
    pub(super) tail_time: LogTime,
    pub(super) commit: u64,
    pub(super) segments: Vec<Segment>,
    /// All bytes that the journal had taken since it was opened.
    pub(super) journal_bytes: u64,
}

/// What lies between the commit thread and the background thread.
#[derive(Default)]
pub(super) struct Desk {
    inner: Mutex<DeskInner>,
    changed: Condvar,
    absorbed_commit: AtomicU64,
    absorbed_bytes: AtomicU64,
    written: AtomicU64,
}

#[derive(Default)]
struct DeskInner {
    jobs: VecDeque<Job>,
    /// Jobs given and not done yet, the one under way included.
    unfinished: usize,
    is_stopped: bool,
    is_nudged: bool,
}

impl Desk {
    /// A desk of a store whose runs and state hold the journal's commits up to `absorbed`.
    pub(super) fn new(absorbed: u64) -> Self {
        Self { absorbed_commit: AtomicU64::new(absorbed), ..Self::default() }
    }

    /// Hands a job over.
    pub(super) fn give(&self, job: Job) {
        let mut inner = self.lock();
        inner.jobs.push_back(job);
        inner.unfinished += 1;
        self.changed.notify_all();
    }

    /// Has the background thread look whether there is anything to do.
    pub(super) fn nudge(&self) {
        self.lock().is_nudged = true;
        self.changed.notify_all();
    }

    /// Has the background thread end after the job under way.
    pub(super) fn stop(&self) {
        self.lock().is_stopped = true;
        self.changed.notify_all();
    }

    /// Jobs that are not done.
    pub(super) fn unfinished(&self) -> usize {
        self.lock().unfinished
    }

    /// The journal commit up to which runs and state hold everything.
    pub(super) fn absorbed_commit(&self) -> u64 {
        self.absorbed_commit.load(Relaxed)
    }

    /// The bytes of the journal up to there; see [`Job::journal_bytes`].
    pub(super) fn absorbed_bytes(&self) -> u64 {
        self.absorbed_bytes.load(Relaxed)
    }

    /// Bytes that the background thread wrote into runs.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    fn take(&self) -> Option<Job> {
        self.lock().jobs.pop_front()
    }

    fn finished(&self, job: &Job) {
        self.absorbed_commit.store(job.commit, Relaxed);
        self.absorbed_bytes.store(job.journal_bytes, Relaxed);
        self.lock().unfinished -= 1;
    }

    /// Waits for something new to do, at most so long; returns whether the thread shall go on.
    fn wait_for_work(&self, timeout: Duration) -> bool {
        self.wait_while(timeout, |inner| !inner.is_stopped && !inner.is_nudged && inner.jobs.is_empty())
    }

    /// Waits so long, whatever there is to do, unless the thread shall end; returns whether it shall go on.
    fn wait_out(&self, timeout: Duration) -> bool {
        self.wait_while(timeout, |inner| !inner.is_stopped)
    }

    fn wait_while(&self, timeout: Duration, condition: impl FnMut(&mut DeskInner) -> bool) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, condition);
        let (mut inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        inner.is_nudged = false;
        !inner.is_stopped
    }

    fn lock(&self) -> MutexGuard<'_, DeskInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// There may be more.
    Done,
    /// Nothing for now but to wait for readers of runs that shall go.
    WaitsForReaders,
    /// Nothing at all.
    Nothing,
}

/// A run's file on its way out: cut piece by piece, then removed.
struct Leaving {
    name: String,
    length: u64,
}

/// How the background work goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// How large merged runs may become.
    pub(super) limit: MergeLimit,
    /// Cache for each run that is opened.
    pub(super) run_cache_bytes: usize,
    /// The pause between two slices.
    pub(super) pause: Duration,
}

/// The background work, one step at a time; [`Builder::run`] is its thread.
pub(super) struct Builder {
    disk: Arc<dyn Disk>,
    state: Arc<StateFile>,
    view: Arc<View>,
    desk: Arc<Desk>,
    pace: Pace,
    progress: Progress,
    job: Option<Job>,
    /// The run that was made of the job under way and can be read, while saving it fails.
    made: Option<Option<Arc<Run>>>,
    merge: Option<Merge>,
    /// Steps of merging since the last memtable.
    merge_steps: usize,
    /// The look under way whether a run holds what is to go.
    look: Option<Look>,
    /// What a merge has made and can be read, until it is saved; and the numbers of the runs whose place it takes.
    merged: Option<(Option<Arc<Run>>, Vec<u64>)>,
    /// How often each run could not be read for a merge.
    unreadable: BTreeMap<u64, u32>,
    /// Merging failed, and nothing was absorbed since: it waits, so that what fails does not stop what goes.
    merge_waits: bool,
    /// Runs that are in no manifest any more and may still have readers.
    unlisted: Vec<Arc<Run>>,
    leaving: Option<Leaving>,
}

impl Builder {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        state: Arc<StateFile>,
        view: Arc<View>,
        desk: Arc<Desk>,
        progress: Progress,
        pace: Pace,
    ) -> Self {
        Self {
            disk,
            state,
            view,
            desk,
            pace,
            progress,
            job: None,
            made: None,
            merge: None,
            merge_steps: 0,
            look: None,
            merged: None,
            unreadable: BTreeMap::new(),
            merge_waits: false,
            unlisted: Vec::new(),
            leaving: None,
        }
    }

    /// The thread's body.
    pub(super) fn run(mut self) {
        let mut retry = RETRY_FIRST;
        loop {
            let goes_on = match self.step() {
                Ok(work) => {
                    retry = RETRY_FIRST;
                    self.desk.wait_for_work(match work {
                        Work::Done => self.pace.pause,
                        Work::WaitsForReaders => READERS_WAIT,
                        Work::Nothing => IDLE_WAIT,
                    })
                }
                Err(error) => {
                    tracing::error!(%error, retry_in = ?retry, "background work on the store failed, nothing is lost");
                    let wait = retry;
                    retry = (retry * 2).min(RETRY_LONGEST);
                    self.desk.wait_out(wait)
                }
            };
            if !goes_on {
                break;
            }
        }
    }

    /// One piece of work, the most urgent first.
    pub(super) fn step(&mut self) -> Result<Work, ReadError> {
        if self.is_merging_due() && self.advance_merge()? {
            self.merge_steps += 1;
            return Ok(Work::Done);
        }
        if self.job.is_none() {
            self.job = self.desk.take();
        }
        if let Some(job) = self.job.take() {
            return match self.absorb(&job) {
                Ok(()) => {
                    self.merge_steps = 0;
                    self.desk.finished(&job);
                    Ok(Work::Done)
                }
                Err(error) => {
                    self.job = Some(job);
                    Err(error)
                }
            };
        }
        if self.remove_unlisted()? || self.drop_expired()? || self.advance_merge()? || self.advance_purge()? {
            return Ok(Work::Done);
        }
        Ok(if self.unlisted.is_empty() { Work::Nothing } else { Work::WaitsForReaders })
    }

    /// Whether merging goes before a memtable. It waits for quiet, but not for ever: reads look into every run. Nor does
    /// a memtable wait for the whole of a merge, which may take many seconds, and publishes wait for it.
    fn is_merging_due(&self) -> bool {
        let unmerged = self.view.runs().iter().filter(|run| run.row().level == 0).count();
        !self.merge_waits && self.merge_steps < unmerged.saturating_sub(MERGE_DEBT) * MERGE_SHARE
    }

    /// Makes a run of a memtable, and saves it, the state that goes with it and where they stand, in one transaction.
    fn absorb(&mut self, job: &Job) -> Result<(), ReadError> {
        // Not written anew when only the saving has failed: it may be listed all the same, and a second run of the same
        // entries would be listed beside it. And the disk may be full.
        let run = match &self.made {
            Some(made) => made.clone(),
            None => {
                let row = self.write_run(&job.table)?;
                self.open_new(row)?
            }
        };
        self.made = Some(run.clone());
        let progress = Progress {
            applied: job.tail,
            applied_commit: job.commit,
            applied_time: job.tail_time,
            floor: self.view.floor(),
            ..self.progress
        };
        let added = run.as_ref().map(|run| *run.row());
        let step = Step { added, removed: &[], rows: Some(&*job.rows), segments: &job.segments };
        self.state.save(&progress, &step)?;
        self.made = None;
        self.merge_waits = false;
        self.progress = progress;
        self.view.replace_sealed(&job.table, run);
        Ok(())
    }

    fn write_run(&mut self, table: &Memtable) -> Result<Option<RunRow>, ReadError> {
        if table.is_empty() {
            return Ok(None);
        }
        let number = self.next_number();
        self.fill_run(table, number).inspect_err(|_| self.remove_attempt(number))
    }

    fn fill_run(&self, table: &Memtable, number: u64) -> Result<Option<RunRow>, ReadError> {
        let mut writer = RunWriter::create(Arc::clone(&self.disk), number, 0, Position(0))?;
        let sieve = self.view.sieve().filter(|sieve| !sieve.is_idle(false));
        let mut slice = 0;
        for conversation in table.conversations() {
            for entry in table.entries_of(conversation) {
                match &sieve {
                    Some(sieve) => {
                        let mut entry = entry.clone();
                        sieve.sift(std::slice::from_mut(&mut entry), false)?;
                        writer.push(&entry);
                    }
                    None => writer.push(entry),
                }
                slice += 1;
                if slice == SLICE_ENTRIES {
                    slice = 0;
                    writer.commit()?;
                    self.desk.wait_for_work(self.pace.pause);
                }
            }
        }
        let (row, written) = writer.finish()?;
        self.desk.written.fetch_add(written, Relaxed);
        Ok(row)
    }

    /// Gives the room of a run back that could not be written, which is most welcome when the disk is full.
    fn remove_attempt(&self, number: u64) {
        if let Err(error) = self.disk.remove(&file_name(number)) {
            tracing::debug!(%error, number, "what was written of a run stays until the next start");
        }
    }

    fn open_run(&self, row: RunRow) -> Result<Arc<Run>, ReadError> {
        Run::open(&self.disk, row, self.pace.run_cache_bytes).map(Arc::new)
    }

    /// Opens a run that was just written; one that cannot be read is no run, and is written anew.
    fn open_new(&self, row: Option<RunRow>) -> Result<Option<Arc<Run>>, ReadError> {
        let open = |row: RunRow| self.open_run(row).inspect_err(|_| self.remove_attempt(row.number));
        row.map(open).transpose()
    }

    /// Numbers are not used again, so that a file of a failed attempt is never taken for another.
    fn next_number(&mut self) -> u64 {
        let number = self.progress.next_run;
        self.progress.next_run += 1;
        number
    }

    /// Removes a piece of a run that no manifest names and nobody reads.
    fn remove_unlisted(&mut self) -> Result<bool, ReadError> {
        if self.leaving.is_none()
            && let Some(index) = self.unlisted.iter().position(|run| Arc::strong_count(run) == 1)
        {
            let run = self.unlisted.swap_remove(index);
            let name = file_name(run.row().number);
            let length = self.disk.allocated(&name).unwrap_or(0);
            self.leaving = Some(Leaving { name, length });
        }
        let Some(Leaving { name, length }) = &mut self.leaving else { return Ok(false) };
        *length = length.saturating_sub(CUT_BYTES);
        let cut = if *length > 0 { self.disk.shorten(name, *length).map(drop) } else { self.disk.remove(name) };
        let result = cut.map_err(|error| ReadError(format!("{name} cannot be removed: {error}")));
        if *length == 0 {
            self.leaving = None;
        }
        result.map(|()| true)
    }

    /// Takes the runs out of the manifest that are wholly below the floor.
    fn drop_expired(&mut self) -> Result<bool, ReadError> {
        let floor = self.view.floor();
        let runs = self.view.runs();
        let expired: Vec<_> = runs.iter().filter(|run| run.row().span.last < floor).cloned().collect();
        if expired.is_empty() || self.merge.is_some() || self.merged.is_some() {
            return Ok(false);
        }
        let numbers: Vec<_> = expired.iter().map(|run| run.row().number).collect();
        self.replace_runs(&numbers, None)?;
        Ok(true)
    }

    /// Begins a merge, does a slice of the one under way, or saves what it has made.
    fn advance_merge(&mut self) -> Result<bool, ReadError> {
        let advanced = match (&self.merged, self.merge.take()) {
            (Some(_), _) => self.save_merged(),
            (None, Some(merge)) => self.go_on_merging(merge),
            (None, None) => self.begin_merge(),
        };
        self.merge_waits = advanced.is_err();
        advanced
    }

    fn begin_merge(&mut self) -> Result<bool, ReadError> {
        let runs = self.view.runs();
        let may = |number| self.unreadable.get(&number).is_none_or(|times| *times < READ_TRIES);
        let Some(inputs) = due(&runs, self.pace.limit, may) else { return Ok(false) };
        self.begin(inputs, false)
    }

    /// Looks at the oldest run that may hold something to go, and begins to write it anew if it does.
    fn advance_purge(&mut self) -> Result<bool, ReadError> {
        let (upto, runs) = (self.view.purged_upto(), self.view.runs());
        let may = |number| self.unreadable.get(&number).is_none_or(|times| *times < READ_TRIES);
        let is_due = |run: &Arc<Run>| self.view.may_hold(run, upto) && may(run.row().number);
        let Some(at) = runs.iter().position(is_due) else {
            self.look = None;
            return Ok(false);
        };
        let (run, Some(sieve)) = (&runs[at], self.view.sieve()) else { return Ok(false) };
        // Another look is of a run that was merged meanwhile, or for a purge before this one.
        let is_this = |look: &Look| Arc::ptr_eq(look.run(), run) && look.stands_at() >= upto;
        let look = self.look.take().filter(is_this).map_or_else(|| Look::begin(run, sieve), Ok);
        let looked = look.and_then(|mut look| Ok((look.step(SLICE_ROWS)?, look)));
        match looked.map_err(|error| self.cannot_merge(error))? {
            (Some(true), _) => return self.begin(&runs[at..=at], true),
            (Some(false), look) => self.view.note_looked(run.row().number, look.stands_at()),
            (None, look) => self.look = Some(look),
        }
        Ok(true)
    }

    fn begin(&mut self, inputs: &[Arc<Run>], is_thorough: bool) -> Result<bool, ReadError> {
        let (runs, first) = (self.view.runs(), inputs.first().map_or(Position(0), |run| run.row().span.first));
        let older = runs.iter().filter(|run| run.row().span.first < first).cloned().collect();
        let filter = Filter { sieve: self.view.sieve(), is_thorough, older };
        let merge = Merge::begin(Arc::clone(&self.disk), inputs, self.next_number(), filter);
        self.merge = Some(merge.map_err(|error| self.cannot_merge(error))?);
        Ok(true)
    }

    /// A run that cannot be read time and again is left as it is, so that others are merged.
    fn cannot_merge(&mut self, MergeError { error, unreadable }: MergeError) -> ReadError {
        for number in unreadable {
            let times = self.unreadable.entry(number).or_default();
            *times += 1;
            if *times == READ_TRIES {
                tracing::error!(%error, run = number, "a run is not merged before the next start; see `store check`");
            }
        }
        error
    }

    fn go_on_merging(&mut self, mut merge: Merge) -> Result<bool, ReadError> {
        let number = merge.number();
        match merge.step(SLICE_ENTRIES, self.view.floor()) {
            Ok(true) => {}
            Ok(false) => {
                self.merge = Some(merge);
                return Ok(true);
            }
            Err(error) => {
                drop(merge);
                self.remove_attempt(number);
                return Err(self.cannot_merge(error));
            }
        }
        let (Merged { row, inputs }, written) = merge.finish().inspect_err(|_| self.remove_attempt(number))?;
        self.desk.written.fetch_add(written, Relaxed);
        self.merged = Some((self.open_new(row)?, inputs));
        self.save_merged()
    }

    /// Lists the merged run in place of its inputs. While that fails it may be listed all the same, so that nothing else
    /// is ever made of these inputs.
    fn save_merged(&mut self) -> Result<bool, ReadError> {
        let Some((run, inputs)) = self.merged.clone() else { return Ok(false) };
        self.replace_runs(&inputs, run)?;
        self.merged = None;
        Ok(true)
    }

    fn replace_runs(&mut self, removed: &[u64], added: Option<Arc<Run>>) -> Result<(), ReadError> {
        let progress = Progress { floor: self.view.floor(), ..self.progress };
        let row = added.as_ref().map(|run| *run.row());
        self.state.save(&progress, &Step { added: row, removed, rows: None, segments: &[] })?;
        self.progress = progress;
        let runs = self.view.runs();
        self.unlisted.extend(runs.iter().filter(|run| removed.contains(&run.row().number)).cloned());
        self.view.replace_runs(removed, added);
        Ok(())
    }
}
