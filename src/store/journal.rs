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

#[cfg(test)]
mod tests {
    use bytes::BufMut as _;
    use longwire_protocol::LogTime;

    use super::super::frame::FrameBuilder;
    use super::super::open::put_in_place;
    use super::super::testing::SimDisk;
    use super::super::{Position, SegmentId};
    use super::*;

    fn opened(disk: &SimDisk, after: u64) -> Journal {
        Journal::open(disk, 1 << 20, false, after).expect("opens")
    }

    fn fresh() -> (SimDisk, Journal) {
        let disk = SimDisk::default();
        Journal::create(&disk).expect("is made");
        let journal = opened(&disk, 0);
        (disk, journal)
    }

    /// A frame of so many records, the first at `first`, each of `size` bytes.
    fn frame(first: u64, records: usize, size: usize) -> Frame {
        let mut builder = FrameBuilder::new(SegmentId(1), Position(first), LogTime(0));
        for _ in 0..records {
            builder.push_change(|b| b.put_bytes(7, size));
        }
        builder.finish()
    }

    /// Frames of one piece each, the first at position 1.
    fn append(journal: &mut Journal, count: u64, absorbed: u64) {
        for _ in 0..count {
            let first = journal.newest_commit() + 1;
            journal.append(&frame(first, 1, 10).bytes, absorbed).expect("appends");
        }
    }

    fn commits(journal: &Journal, after: u64) -> Vec<u64> {
        journal.frames_after(after).expect("reads").map(|found| found.expect("is whole").0).collect()
    }

    #[test]
    fn frames_of_any_size_come_back_in_their_order() {
        let (disk, mut journal) = fresh();
        assert_eq!((journal.newest_commit(), commits(&journal, 0)), (0, vec![]));
        // Its own numbers, the record's head and the checksum are 36, 5 and 8 bytes.
        let sizes = [1, PIECE_BYTES - 49, PIECE_BYTES - 48, 3 * PIECE_BYTES - 49, 3 * PIECE_BYTES];
        let frames: Vec<_> = (1..).zip(sizes).map(|(first, size)| frame(first, 1, size)).collect();
        let opened_syncs = journal.meter().syncs();
        for frame in &frames {
            journal.append(&frame.bytes, 0).expect("appends");
        }
        let extent = journal.extent().expect("is measured");
        assert_eq!((extent.commits, extent.pieces), (5, 1 + 1 + 2 + 3 + 4));
        assert_eq!(extent.bytes, frames.iter().map(|frame| frame.bytes.len() as u64).sum::<u64>());
        for after in 0..=5 {
            let found: Result<Vec<_>, _> = journal.frames_after(after).expect("reads").collect();
            let wanted: Vec<_> = (1..).zip(frames.clone()).skip(after as usize).collect();
            assert_eq!(found.expect("is whole"), wanted, "after {after}");
        }
        assert_eq!((journal.meter().syncs() - opened_syncs, journal.meter().written() > extent.bytes), (5, true));
        journal.close().expect("closes");
        assert_eq!(opened(&disk, 0).newest_commit(), 5);
        assert_eq!(opened(&disk, 9).newest_commit(), 9, "runs and state are further");
    }

    #[test]
    fn two_phases_are_one_more_sync() {
        let disk = SimDisk::default();
        Journal::create(&disk).expect("is made");
        let mut journal = Journal::open(&disk, 1 << 20, true, 0).expect("opens");
        let opened_syncs = journal.meter().syncs();
        journal.append(&frame(1, 1, 10).bytes, 0).expect("appends");
        assert_eq!(journal.meter().syncs() - opened_syncs, 2);
    }

    #[test]
    fn what_lies_beyond_a_position_is_found_by_halves() {
        let (_disk, mut journal) = fresh();
        // Positions 1 and 2, none, 3 and 4, 5; a frame may reach beyond where the next but one begins.
        for (first, records) in [(1, 2), (3, 0), (3, 2), (5, 1)] {
            journal.append(&frame(first, records, 10).bytes, 0).expect("appends");
        }
        let before = |position| journal.commit_before(position).expect("is found");
        assert_eq!([0, 1, 2, 3, 4, 5, 6].map(before), [0, 0, 0, 2, 2, 3, 3]);
    }

    #[test]
    fn positions_are_found_in_a_journal_that_was_trimmed() {
        let (_disk, mut journal) = fresh();
        append(&mut journal, 20, 0);
        append(&mut journal, 1, 20);
        assert_eq!(commits(&journal, 0), (6..=21).collect::<Vec<_>>());
        for position in 5..=21 {
            let from = journal.commit_before(position).expect("is found");
            let found = commits(&journal, from);
            assert!(found[0] <= position + 1 && found[0] + 2 > position, "position {position}: commit {}", found[0]);
        }
    }

    #[test]
    fn an_empty_journal_has_every_position_before_it() {
        let (_disk, journal) = fresh();
        assert_eq!((journal.commit_before(0).ok(), journal.commit_before(9).ok()), (Some(0), Some(0)));
    }

    #[test]
    fn a_commit_trims_a_little_of_what_is_absorbed_and_commits_as_a_whole() {
        let (_disk, mut journal) = fresh();
        journal.append(&frame(1, 1, 7 * PIECE_BYTES - 49).bytes, 0).expect("appends");
        append(&mut journal, 9, 0);
        let mut left_after = |absorbed| {
            append(&mut journal, 1, absorbed);
            commits(&journal, 0)
        };
        assert_eq!(left_after(0), (1..=11).collect::<Vec<_>>());
        assert_eq!(left_after(10), (2..=12).collect::<Vec<_>>(), "seven pieces go where five would do");
        assert_eq!(left_after(10), (7..=13).collect::<Vec<_>>(), "one for the one that comes, and four");
        assert_eq!(left_after(8), (9..=14).collect::<Vec<_>>(), "no more than is absorbed");
        assert_eq!(left_after(14), (14..=15).collect::<Vec<_>>());
        assert_eq!(left_after(15), [16], "the newest stays");
    }

    #[test]
    fn a_new_file_holds_what_is_not_absorbed_and_the_newest() {
        for (absorbed, kept) in [(0, 1..=5), (3, 4..=5), (4, 5..=5), (5, 5..=5), (9, 5..=5)] {
            let (disk, mut journal) = fresh();
            append(&mut journal, 5, 0);
            journal.prepare_new_file(&disk, absorbed).expect("is made");
            journal.close().expect("closes");
            put_in_place(&disk, JOURNAL_FILE).expect("gets its name");
            let journal = opened(&disk, 0);
            assert_eq!((commits(&journal, 0), journal.newest_commit()), (kept.collect(), 5), "absorbed {absorbed}");
        }
    }

    #[test]
    fn a_piece_or_a_commit_that_is_missing_is_told() {
        for (missing, told) in [
            (key(2, 0), "commit 2 of the journal is damaged"),
            (key(2, 1), "commit 2 of the journal is damaged"),
            (key(2, 2), "commit 2 of the journal: the frame's checksum is wrong"),
            (key(3, 0), "the journal lacks a commit before 4"),
            (key(1, 0), ""),
        ] {
            let (_disk, mut journal) = fresh();
            for (first, size) in [(1, 10), (2, 2 * PIECE_BYTES), (3, 10), (4, 10)] {
                journal.append(&frame(first, 1, size).bytes, 0).expect("appends");
            }
            let transaction = journal.database.begin_write().expect("begins");
            transaction.open_table(PIECES).expect("is there").remove(missing).expect("goes").expect("was there");
            transaction.commit().expect("commits");
            let found: Result<Vec<_>, _> = journal.frames_after(0).expect("reads").collect();
            let error = found.err().map_or_else(String::new, |error| error.0);
            assert_eq!(error, told, "without {} of {}", missing & 0xffff, missing >> 16);
            if missing == key(3, 0) {
                assert_eq!(journal.commit_before(2).expect_err("is told").0, "the journal lacks commit 3");
            }
        }
    }

    #[test]
    fn a_journal_that_cannot_be_closed_says_so() {
        let (disk, mut journal) = fresh();
        append(&mut journal, 1, 0);
        disk.die();
        assert!(journal.append(&frame(2, 1, 10).bytes, 0).is_err());
        assert_eq!(journal.newest_commit(), 1);
        let error = journal.close().expect_err("is told").0;
        assert!(error.starts_with("closing the journal: "), "{error}");
    }
}
