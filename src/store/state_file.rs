//! `state.redb`: what is derived from the log, saved by the background thread with the position it stands at, and what
//! the store must know about itself: its format, its birth, its segments, and which runs there are (the manifest).
//! Every commit has quick-repair, so that the file opens in milliseconds after a crash, whatever its size.

use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use longwire_protocol::LogTime;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};

use super::disk::{Disk, Meter};
use super::memtable::Span;
use super::open::{OpenError, OpenFile, create_database, guarded, open_database, path};
use super::read_only::ReadOnlyDisk;
use super::sealed_row::{put_numbers, seal, take_numbers, unseal};
use super::{Position, ReadError, SavedState, Segment, SegmentId, StateDelta};

pub(super) const STATE_FILE: &str = "state.redb";

/// The format of everything in the folder. A program opens its own and older ones.
pub(super) const FORMAT: u64 = 1;

/// Segments that are remembered; a cursor of an older one is reset.
pub(super) const SEGMENTS_KEPT: usize = 1000;

/// "format" -> the number. Never changes its shape, so that any program can tell what it has before it.
const FORMAT_TABLE: TableDefinition<&str, u64> = TableDefinition::new("format");
/// "progress" -> [`Progress`].
const PROGRESS: TableDefinition<&str, &[u8]> = TableDefinition::new("progress");
/// a segment's first position, and its place among those that begin there -> [`Segment`].
const SEGMENTS: TableDefinition<u64, &[u8]> = TableDefinition::new("segments");
/// a run's number -> [`RunRow`].
const RUNS: TableDefinition<u64, &[u8]> = TableDefinition::new("runs");
/// a key of routing's -> its row.
const ROWS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("rows");

const PROGRESS_KEY: &str = "progress";

/// How far the state has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// When the log was created.
    pub(super) birth_unix_ms: u64,
    /// Every record up to here is in the state, none after.
    pub(super) applied: Position,
    /// The journal commit that ends there; riders of earlier commits are in the state too.
    pub(super) applied_commit: u64,
    /// The log's time there.
    pub(super) applied_time: LogTime,
    /// Entries below are expired.
    pub(super) floor: Position,
    /// The number that the next run takes.
    pub(super) next_run: u64,
}

/// A run as the manifest knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RunRow {
    /// Its number, which names its file.
    pub(super) number: u64,
    /// How many merges its entries have gone through.
    pub(super) level: u64,
    /// Positions and times of its entries.
    pub(super) span: Span,
    /// Entries.
    pub(super) entries: u64,
    /// Bytes of its rows.
    pub(super) bytes: u64,
    /// Where the state stood by which its entries were sifted; 0: they were not.
    pub(super) sifted: Position,
}

/// One step of the background thread, saved as a whole or not at all.
#[derive(Default)]
pub(super) struct Step<'a> {
    pub(super) added: Option<RunRow>,
    pub(super) removed: &'a [u64],
    pub(super) rows: Option<&'a dyn StateDelta>,
    pub(super) segments: &'a [Segment],
}

/// What is in the file beside the rows of state.
#[derive(Clone, Debug)]
pub(super) struct Saved {
    pub(super) progress: Progress,
    pub(super) segments: Vec<Segment>,
    /// Ascending by position.
    pub(super) runs: Vec<RunRow>,
}

/// The open file. Readers and the one writer share it for a transaction; only reopening and closing wait for them all.
#[derive(Debug)]
pub(super) struct StateFile {
    disk: Arc<dyn Disk>,
    cache_bytes: usize,
    meter: Arc<Meter>,
    opened: RwLock<Opened>,
}

/// How the file is open.
#[derive(Debug)]
enum Opened {
    /// For reading and writing.
    Writable(OpenFile),
    /// After a failed sync, as it is: what repairing it writes stays in memory. The newest commit that is found was
    /// synced, or lacks its header alone, and nothing is written over either.
    ReadOnly(OpenFile),
    /// Not, since it could not be opened again; the next reader tries once more.
    Failed,
    /// Not any more.
    Closed,
}

impl StateFile {
    /// Makes the file of a new store.
    pub(super) fn create(disk: &dyn Disk, birth_unix_ms: u64) -> Result<(), OpenError> {
        create_database(disk, STATE_FILE, |transaction| {
            transaction.open_table(FORMAT_TABLE)?.insert("format", FORMAT)?;
            transaction.open_table(SEGMENTS)?;
            transaction.open_table(RUNS)?;
            transaction.open_table(ROWS)?;
            let progress = Progress {
                birth_unix_ms,
                applied: Position(0),
                applied_commit: 0,
                applied_time: LogTime(0),
                floor: Position(0),
                next_run: 1,
            };
            save_progress(&mut transaction.open_table(PROGRESS)?, &progress)
        })
    }

    /// Opens the file, refusing one of a newer format.
    pub(super) fn open(disk: Arc<dyn Disk>, cache_bytes: usize) -> Result<Self, OpenError> {
        let meter = Arc::<Meter>::default();
        let database = open_database(&*disk, STATE_FILE, cache_bytes, Arc::clone(&meter))?;
        let found = format(&database).map_err(|error| OpenError::damaged(&*disk, STATE_FILE, error))?;
        if found > FORMAT {
            return Err(OpenError::NewerFormat { path: path(&*disk, STATE_FILE), found, known: FORMAT });
        }
        Ok(Self { disk, cache_bytes, meter, opened: RwLock::new(Opened::Writable(database)) })
    }

    pub(super) fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// What is saved beside the rows of state.
    pub(super) fn load(&self) -> Result<Saved, ReadError> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            let progress = load_progress(&transaction.open_table(PROGRESS)?)?;
            let mut segments = Vec::new();
            for row in transaction.open_table(SEGMENTS)?.iter()? {
                let (key, value) = row?;
                let value = unseal("segments", &key.value().to_le_bytes(), value.value())?;
                let [id, first, time] = take_numbers("segments", value)?;
                segments.push(Segment { id: SegmentId(id), first: Position(first), time: LogTime(time) });
            }
            let mut runs = Vec::new();
            for row in transaction.open_table(RUNS)?.iter()? {
                let (key, value) = row?;
                runs.push(decode_run(key.value(), value.value())?);
            }
            runs.sort_by_key(|run: &RunRow| run.span.first);
            Ok(Saved { progress, segments, runs })
        })
    }

    /// Calls `row` for each row of state; returns how far the state has come.
    pub(super) fn rows(&self, row: &mut dyn FnMut(&[u8], &[u8])) -> Result<Progress, ReadError> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            let progress = load_progress(&transaction.open_table(PROGRESS)?)?;
            let rows = transaction.open_table(ROWS)?;
            let mut found = 0;
            for pair in rows.iter()? {
                let (key, value) = pair?;
                row(key.value(), unseal("state", key.value(), value.value())?);
                found += 1;
            }
            if found != rows.len()? {
                return Err(Trouble::Contents(ReadError("the state has lost rows".to_owned())));
            }
            Ok(progress)
        })
    }

    /// Saves a step durably and all at once. After an error it may be saved or not, and the same step has to be saved again
    /// before any other that names its runs. The file is opened anew then; if a sync failed, for reading alone, until the
    /// process restarts.
    pub(super) fn save(&self, progress: &Progress, step: &Step<'_>) -> Result<(), ReadError> {
        let saved = self.with_opened(|opened| {
            let Opened::Writable(database) = opened else {
                return Err(Trouble::Contents(ReadError(
                    "the state is saved no more: a sync of it failed, or it cannot be opened".to_owned(),
                )));
            };
            let mut transaction = database.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            transaction.set_quick_repair(true);
            save_progress(&mut transaction.open_table(PROGRESS)?, progress)?;
            if !step.segments.is_empty() {
                save_segments(&mut transaction.open_table(SEGMENTS)?, step.segments)?;
            }
            {
                let mut runs = transaction.open_table(RUNS)?;
                for number in step.removed {
                    runs.remove(number)?;
                }
                if let Some(run) = &step.added {
                    runs.insert(run.number, encode_run(run).as_slice())?;
                }
            }
            if let Some(delta) = step.rows {
                save_rows(&mut transaction.open_table(ROWS)?, delta)?;
            }
            transaction.commit()?;
            Ok(())
        });
        if saved.is_err() {
            self.reopen_writable();
        }
        saved
    }

    /// Closes the file.
    pub(super) fn close(&self) -> Result<(), ReadError> {
        let opened = std::mem::replace(&mut *self.lock(), Opened::Closed);
        match opened {
            Opened::Writable(database) | Opened::ReadOnly(database) => {
                let closed = guarded(STATE_FILE, || Ok(database.close()))?;
                closed.map_err(|error| ReadError(format!("closing the state: {error}")))
            }
            Opened::Failed | Opened::Closed => Ok(()),
        }
    }

    /// Opens the file again after an error, if it was not opened for reading alone before.
    fn reopen_writable(&self) {
        if !matches!(*self.opened.read().unwrap_or_else(PoisonError::into_inner), Opened::ReadOnly(_)) {
            self.reopen();
        }
    }

    fn reopen(&self) {
        let mut opened = self.lock();
        if matches!(*opened, Opened::Closed) {
            return;
        }
        // Closed before it is opened again: redb locks the file.
        *opened = Opened::Failed;
        let open = |disk: &dyn Disk, meter| open_database(disk, STATE_FILE, self.cache_bytes, meter);
        let reopened = if self.meter.is_sync_failed() {
            tracing::error!("a sync of the state failed: it is read, and saved no more; check the disk, then restart");
            open(&ReadOnlyDisk::new(Arc::clone(&self.disk)), Arc::default()).map(Opened::ReadOnly)
        } else {
            open(&*self.disk, Arc::clone(&self.meter)).map(Opened::Writable)
        };
        match reopened {
            Ok(reopened) => *opened = reopened,
            Err(error) => tracing::error!(%error, "the state cannot be opened again"),
        }
    }

    fn lock(&self) -> RwLockWriteGuard<'_, Opened> {
        self.opened.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same as [`StateFile::with`]; redb answers nothing more after an error, so the file is opened anew then.
    fn with_again<T>(&self, work: impl Fn(&Database) -> Result<T, Trouble>) -> Result<T, ReadError> {
        let mut is_contents = false;
        let answer =
            self.with(|database| work(database).inspect_err(|t| is_contents = matches!(t, Trouble::Contents(_))));
        if answer.is_ok() || is_contents {
            return answer;
        }
        self.reopen();
        self.with(work)
    }

    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, Trouble>) -> Result<T, ReadError> {
        self.with_opened(|opened| match opened {
            Opened::Writable(database) | Opened::ReadOnly(database) => work(database),
            Opened::Failed | Opened::Closed => Err(Trouble::Contents(ReadError("the state is closed".to_owned()))),
        })
    }

    fn with_opened<T>(&self, work: impl FnOnce(&Opened) -> Result<T, Trouble>) -> Result<T, ReadError> {
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        guarded(STATE_FILE, || work(&opened)).map_err(|trouble| match trouble {
            Trouble::Redb(error) => ReadError(format!("the state: {error}")),
            Trouble::Contents(error) => error,
        })
    }
}

impl SavedState for StateFile {
    fn get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, ReadError> {
        self.with_again(|database| {
            let rows = database.begin_read()?.open_table(ROWS)?;
            let get = |key: &Vec<u8>| {
                let Some(row) = rows.get(key.as_slice())? else { return Ok(None) };
                Ok(Some(unseal("state", key, row.value())?.to_vec()))
            };
            keys.iter().map(get).collect()
        })
    }

    fn each(&self, prefix: &[u8], row: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), ReadError> {
        // Gathered first: none is handed over twice when the reading has to begin anew.
        let gathered: Vec<(Vec<u8>, Vec<u8>)> = self.with_again(|database| {
            let rows = database.begin_read()?.open_table(ROWS)?;
            let mut gathered = Vec::new();
            for pair in rows.range(prefix..)? {
                let (key, value) = pair?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                gathered.push((key.value().to_vec(), unseal("state", key.value(), value.value())?.to_vec()));
            }
            Ok(gathered)
        })?;
        gathered.iter().for_each(|(key, value)| row(key, value));
        Ok(())
    }
}

/// The file is in trouble, or what it holds is.
enum Trouble {
    Redb(redb::Error),
    Contents(ReadError),
}

impl<E: Into<redb::Error>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self::Redb(error.into())
    }
}

impl From<ReadError> for Trouble {
    fn from(error: ReadError) -> Self {
        Self::Contents(error)
    }
}

fn format(database: &Database) -> Result<u64, redb::Error> {
    let transaction = database.begin_read()?;
    Ok(transaction.open_table(FORMAT_TABLE)?.get("format")?.map_or(u64::MAX, |format| format.value()))
}

fn save_progress(table: &mut redb::Table<&str, &[u8]>, progress: &Progress) -> Result<(), redb::Error> {
    let mut value = put_numbers(&[
        progress.birth_unix_ms,
        progress.applied.0,
        progress.applied_commit,
        progress.applied_time.0,
        progress.floor.0,
        progress.next_run,
    ]);
    seal(PROGRESS_KEY.as_bytes(), &mut value);
    table.insert(PROGRESS_KEY, value.as_slice())?;
    Ok(())
}

fn load_progress(table: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<Progress, Trouble> {
    let row = table.get(PROGRESS_KEY)?.ok_or_else(|| ReadError("the state does not say how far it is".to_owned()))?;
    let value = unseal("progress", PROGRESS_KEY.as_bytes(), row.value())?;
    let [birth_unix_ms, applied, applied_commit, applied_time, floor, next_run] = take_numbers("progress", value)?;
    Ok(Progress {
        birth_unix_ms,
        applied: Position(applied),
        applied_commit,
        applied_time: LogTime(applied_time),
        floor: Position(floor),
        next_run,
    })
}

/// The table holds at most [`SEGMENTS_KEPT`] short rows: it is simply written anew.
fn save_segments(table: &mut redb::Table<u64, &[u8]>, segments: &[Segment]) -> Result<(), redb::Error> {
    table.retain(|_, _| false)?;
    let skipped = segments.len().saturating_sub(SEGMENTS_KEPT);
    for (key, segment) in (0_u64..).zip(&segments[skipped..]) {
        let mut value = put_numbers(&[segment.id.0, segment.first.0, segment.time.0]);
        seal(&key.to_le_bytes(), &mut value);
        table.insert(key, value.as_slice())?;
    }
    Ok(())
}

fn save_rows(table: &mut redb::Table<&[u8], &[u8]>, delta: &dyn StateDelta) -> Result<(), redb::Error> {
    let mut first_error = None;
    let mut sealed = Vec::new();
    delta.rows(&mut |key, value| {
        if first_error.is_some() {
            return;
        }
        let saved = match value {
            Some(value) => {
                sealed.clear();
                sealed.extend_from_slice(value);
                seal(key, &mut sealed);
                table.insert(key, sealed.as_slice()).map(drop)
            }
            None => table.remove(key).map(drop),
        };
        first_error = saved.err();
    });
    first_error.map_or(Ok(()), |error| Err(error.into()))
}

fn encode_run(run: &RunRow) -> Vec<u8> {
    let mut value = put_numbers(&[
        run.level,
        run.span.first.0,
        run.span.last.0,
        run.span.first_time.0,
        run.span.last_time.0,
        run.entries,
        run.bytes,
        run.sifted.0,
    ]);
    seal(&run.number.to_le_bytes(), &mut value);
    value
}

fn decode_run(number: u64, row: &[u8]) -> Result<RunRow, ReadError> {
    let value = unseal("runs", &number.to_le_bytes(), row)?;
    let [level, first, last, first_time, last_time, entries, bytes] = take_numbers("runs", value)?;
    // Rows of format 1 do not have it.
    let [.., sifted] = if value.len() < 64 { [0; 8] } else { take_numbers("runs", value)? };
    let span = Span {
        first: Position(first),
        last: Position(last),
        first_time: LogTime(first_time),
        last_time: LogTime(last_time),
    };
    Ok(RunRow { number, level, span, entries, bytes, sifted: Position(sifted) })
}

#[cfg(test)]
mod tests {
    use super::super::testing::SimDisk;
    use super::*;

    fn row(number: u64) -> RunRow {
        let span = Span { first: Position(10), last: Position(20), first_time: LogTime(30), last_time: LogTime(40) };
        RunRow { number, level: 1, span, entries: 50, bytes: 60, sifted: Position(70) }
    }

    #[test]
    fn a_run_is_told_also_by_rows_that_say_less_or_more() {
        let encoded = encode_run(&row(3));
        assert_eq!(decode_run(3, &encoded).expect("decodes"), row(3));
        assert!(decode_run(4, &encoded).is_err(), "the checksum is that of another number");
        let numbers = [1, 10, 20, 30, 40, 50, 60, 70, 80];
        let of = |count: usize| {
            let mut value = put_numbers(&numbers[..count]);
            seal(&3_u64.to_le_bytes(), &mut value);
            decode_run(3, &value)
        };
        assert!(of(6).is_err());
        assert_eq!(of(7).expect("an older one"), RunRow { sifted: Position(0), ..row(3) });
        assert_eq!((of(8).expect("decodes"), of(9).expect("a later one")), (row(3), row(3)));
    }

    #[test]
    fn the_newest_segments_are_kept() {
        let disk = SimDisk::default();
        StateFile::create(&disk, 7).expect("is made");
        let state = StateFile::open(Arc::new(disk), 1 << 20).expect("opens");
        let progress = state.load().expect("reads").progress;
        assert_eq!((progress.birth_unix_ms, progress.next_run), (7, 1));
        let segment = |id| Segment { id: SegmentId(id), first: Position(id * 2), time: LogTime(id * 3) };
        for count in [3, 1_000, 1_001, 1_500, 2] {
            let segments: Vec<_> = (0..count).map(segment).collect();
            let step = Step { segments: &segments, ..Step::default() };
            state.save(&Progress { applied: Position(count), ..progress }, &step).expect("saves");
            let saved = state.load().expect("reads");
            assert_eq!(saved.segments, segments[segments.len().saturating_sub(1_000)..], "{count}");
            assert_eq!(saved.progress.applied, Position(count));
        }
        state.save(&progress, &Step::default()).expect("saves");
        assert_eq!(state.load().expect("reads").segments.len(), 2, "none are told: those that there are stay");
        let runs = Step { added: Some(row(3)), ..Step::default() };
        state.save(&progress, &runs).expect("saves");
        let runs = Step { added: Some(row(4)), removed: &[3], ..Step::default() };
        state.save(&progress, &runs).expect("saves");
        assert_eq!(state.load().expect("reads").runs, [row(4)]);
        state.close().expect("closes");
        let error = state.load().expect_err("is told").0;
        assert_eq!(error, "the state is closed");
        state.close().expect("is closed already");
        assert!(state.save(&progress, &Step::default()).is_err());
        assert!(state.load().is_err(), "it is not opened again");
    }

    /// After a sync that failed what stands on the disk is read, also by who tries to save again and again.
    #[test]
    fn a_state_whose_sync_failed_is_read_and_saved_no_more() {
        let disk = SimDisk::default();
        StateFile::create(&disk, 7).expect("is made");
        let state = StateFile::open(Arc::new(disk.clone()), 1 << 20).expect("opens");
        let progress = state.load().expect("reads").progress;
        let mut calls = 0;
        while !state.meter().is_sync_failed() {
            disk.fail_after(calls);
            drop(state.save(&progress, &Step::default()));
            disk.heal();
            calls += 1;
        }
        for _ in 0..2 {
            let error = state.save(&progress, &Step::default()).expect_err("is refused").0;
            assert_eq!(error, "the state is saved no more: a sync of it failed, or it cannot be opened");
            assert!(matches!(*state.lock(), Opened::ReadOnly(_)));
            assert_eq!(state.load().expect("is read on").progress, progress);
        }
        let _: Option<Vec<u8>> = state.get(&[vec![1]]).expect("is read on").remove(0);
    }
}
