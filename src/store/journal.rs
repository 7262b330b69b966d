//! `journal.redb`: the log itself. One commit a frame, and that commit is the ack; nothing else is synced on the way
//! of a message. A frame lies in pieces under (commit number, part); commit numbers have no holes. What runs and state
//! have absorbed is trimmed a few pieces at a time, within commits that happen anyway.

use std::ops::Bound;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use redb::{Durability, Range, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition, TableError};

use super::ReadError;
use super::disk::{Disk, Meter};
use super::frame::Frame;
use super::open::{OpenError, OpenFile, create_database, guarded, open_database, prepare_database};

pub(super) const JOURNAL_FILE: &str = "journal.redb";

/// commit number << 16 | part -> a piece of the frame.
const PIECES: TableDefinition<u64, &[u8]> = TableDefinition::new("pieces");

/// The largest piece. redb keeps a large value in a page of the next power of two: a piece of this size and its row
/// just fit 16 KiB, where whole frames would waste up to half.
const PIECE_BYTES: usize = 16_300;

/// Pieces that a commit trims beyond the number it inserts, so that trimming catches up.
const TRIM_EXTRA: u64 = 4;

/// The open journal, owned by the commit thread.
#[derive(Debug)]
pub(super) struct Journal {
    database: OpenFile,
    meter: Arc<Meter>,
    two_phase: bool,
    /// The number that the next commit takes.
    next_commit: u64,
}

impl Journal {
    /// Makes an empty journal.
    pub(super) fn create(disk: &dyn Disk) -> Result<(), OpenError> {
        create_database(disk, JOURNAL_FILE, |transaction| {
            transaction.open_table(PIECES)?;
            Ok(())
        })
    }

    /// Opens the journal. `after` is the commit number up to which all is known to be absorbed.
    pub(super) fn open(disk: &dyn Disk, cache_bytes: usize, two_phase: bool, after: u64) -> Result<Self, OpenError> {
        let meter = Arc::<Meter>::default();
        let database = open_database(disk, JOURNAL_FILE, cache_bytes, Arc::clone(&meter))?;
        let mut journal = Self { database, meter, two_phase, next_commit: 0 };
        let last = journal.last_commit().map_err(|error| OpenError::damaged(disk, JOURNAL_FILE, error))?;
        journal.next_commit = last.unwrap_or(0).max(after) + 1;
        Ok(journal)
    }

    /// Copies the pieces of commits after `absorbed`, and the newest one, into a file that is to be put in place of this
    /// one before anything is appended.
    pub(super) fn prepare_new_file(&self, disk: &dyn Disk, absorbed: u64) -> Result<(), OpenError> {
        let damaged = |error| OpenError::damaged(disk, JOURNAL_FILE, error);
        let from = key(absorbed.min(self.newest_commit().saturating_sub(1)) + 1, 0);
        let pieces = self.table().and_then(|table| table.range(from..).map_err(unreadable)).map_err(damaged)?;
        prepare_database(disk, JOURNAL_FILE, |transaction| {
            let mut table = transaction.open_table(PIECES)?;
            for row in pieces {
                let (key, piece) = row?;
                table.insert(key.value(), piece.value())?;
            }
            Ok(())
        })
    }

    pub(super) fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// The number of the newest commit.
    pub(super) fn newest_commit(&self) -> u64 {
        self.next_commit - 1
    }

    /// Commits a frame durably and trims pieces of commits up to `absorbed`, never the newest one.
    pub(super) fn append(&mut self, frame: &[u8], absorbed: u64) -> Result<(), ReadError> {
        guarded(JOURNAL_FILE, || Ok(self.commit(frame, absorbed)))?
            .map_err(|error| ReadError(format!("the journal cannot be written: {error}")))?;
        self.next_commit += 1;
        Ok(())
    }

    fn commit(&mut self, frame: &[u8], absorbed: u64) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        transaction.set_two_phase_commit(self.two_phase);
        {
            let mut table = transaction.open_table(PIECES)?;
            let mut inserted = 0;
            let mut cursor = table.upper_bound_mut(Bound::<u64>::Unbounded)?;
            for piece in frame.chunks(PIECE_BYTES) {
                cursor.insert_before(key(self.next_commit, inserted), piece)?;
                inserted += 1;
            }
            cursor.close()?;
            trim(&mut table, absorbed, inserted + TRIM_EXTRA)?;
        }
        Ok(transaction.commit()?)
    }

    /// The frames of the commits after `commit`, in order, without holes among them.
    pub(super) fn frames_after(&self, commit: u64) -> Result<Frames, ReadError> {
        let pieces = guarded(JOURNAL_FILE, || self.table()?.range(key(commit + 1, 0)..).map_err(unreadable))?;
        Ok(Frames { pieces, held: None, expected: None })
    }

    /// The number of a commit from which on all frames with a record after `position` can be read.
    pub(super) fn commit_before(&self, position: u64) -> Result<u64, ReadError> {
        guarded(JOURNAL_FILE, || self.search(position))
    }

    fn search(&self, position: u64) -> Result<u64, ReadError> {
        let table = self.table()?;
        let (Some(first), Some(last)) = (commit_of(table.first()), commit_of(table.last())) else { return Ok(0) };
        // The first commit whose frame begins after `position`; the one before it may reach beyond it.
        let (mut low, mut high) = (first?, last? + 1);
        while low < high {
            let middle = low.midpoint(high);
            let piece = table.get(key(middle, 0)).map_err(unreadable)?;
            let piece = piece.ok_or_else(|| ReadError(format!("the journal lacks commit {middle}")))?;
            let begins = Frame::peek_first(piece.value()).ok_or_else(|| damaged(middle))?;
            if begins.0 > position {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok(low.saturating_sub(2))
    }

    /// The pieces there are, the commits they belong to, and their bytes.
    pub(super) fn extent(&self) -> Result<Extent, ReadError> {
        let mut extent = Extent::default();
        for row in self.table()?.range::<u64>(..).map_err(unreadable)? {
            let (key, piece) = row.map_err(unreadable)?;
            extent.pieces += 1;
            extent.commits += u64::from(key.value() & 0xffff == 0);
            extent.bytes += piece.value().len() as u64;
        }
        Ok(extent)
    }

    /// Closes the file.
    pub(super) fn close(self) -> Result<(), ReadError> {
        let closed = guarded(JOURNAL_FILE, || Ok(self.database.close()))?;
        closed.map_err(|error| ReadError(format!("closing the journal: {error}")))
    }

    fn last_commit(&self) -> Result<Option<u64>, ReadError> {
        guarded(JOURNAL_FILE, || commit_of(self.table()?.last()).transpose())
    }

    fn table(&self) -> Result<ReadOnlyTable<u64, &'static [u8]>, ReadError> {
        let transaction = self.database.begin_read().map_err(unreadable)?;
        transaction.open_table(PIECES).map_err(|error: TableError| unreadable(error))
    }
}

/// What the journal holds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extent {
    pub(super) commits: u64,
    pub(super) pieces: u64,
    pub(super) bytes: u64,
}

fn key(commit: u64, part: u64) -> u64 {
    commit << 16 | part
}

fn trim(table: &mut redb::Table<u64, &[u8]>, absorbed: u64, most: u64) -> Result<(), redb::Error> {
    let mut cursor = table.lower_bound_mut(Bound::<u64>::Unbounded)?;
    let mut trimmed = 0;
    loop {
        let next = cursor.peek_next()?.map(|(key, _)| key.value());
        let Some((commit, part)) = next.map(|key| (key >> 16, key & 0xffff)) else { break };
        // A commit goes as a whole, so that the first piece there is always begins a frame.
        if commit > absorbed || (part == 0 && trimmed >= most) {
            break;
        }
        cursor.remove_next()?;
        trimmed += 1;
    }
    Ok(cursor.close()?)
}

type PieceRow<'a> =
    Result<Option<(redb::AccessGuard<'a, u64>, redb::AccessGuard<'a, &'static [u8]>)>, redb::StorageError>;

fn commit_of(row: PieceRow) -> Option<Result<u64, ReadError>> {
    match row {
        Ok(row) => row.map(|(key, _)| Ok(key.value() >> 16)),
        Err(error) => Some(Err(unreadable(error))),
    }
}

fn unreadable(error: impl std::fmt::Display) -> ReadError {
    ReadError(format!("the journal cannot be read: {error}"))
}

fn damaged(commit: u64) -> ReadError {
    ReadError(format!("commit {commit} of the journal is damaged"))
}

/// The frames of the journal from some commit on, each with its commit number.
pub(super) struct Frames {
    pieces: Range<'static, u64, &'static [u8]>,
    /// The first piece of the next frame, read to see where the last one ended.
    held: Option<(u64, BytesMut)>,
    expected: Option<u64>,
}

impl Frames {
    fn read(&mut self) -> Result<Option<(u64, Frame)>, ReadError> {
        let mut frame = self.held.take();
        let mut part = u64::from(frame.is_some());
        for row in self.pieces.by_ref() {
            let (key, piece) = row.map_err(unreadable)?;
            let (commit, found) = (key.value() >> 16, key.value() & 0xffff);
            match &mut frame {
                Some((current, bytes)) if *current == commit => {
                    if found != part {
                        return Err(damaged(commit));
                    }
                    bytes.extend_from_slice(piece.value());
                    part += 1;
                }
                _ => {
                    if found != 0 {
                        return Err(damaged(commit));
                    }
                    let begun = Some((commit, BytesMut::from(piece.value())));
                    if frame.is_some() {
                        self.held = begun;
                        break;
                    }
                    frame = begun;
                    part = 1;
                }
            }
        }
        let Some((commit, bytes)) = frame else { return Ok(None) };
        if self.expected.is_some_and(|expected| expected != commit) {
            return Err(ReadError(format!("the journal lacks a commit before {commit}")));
        }
        self.expected = Some(commit + 1);
        let bytes: Bytes = bytes.freeze();
        let frame =
            Frame::decode(bytes).map_err(|error| ReadError(format!("commit {commit} of the journal: {error}")))?;
        Ok(Some((commit, frame)))
    }
}

impl Iterator for Frames {
    type Item = Result<(u64, Frame), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        guarded(JOURNAL_FILE, || self.read()).transpose()
    }
}
