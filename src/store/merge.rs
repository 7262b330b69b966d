//! Merging: eight neighbouring runs of one level become one of the next, so that a page of history looks into few files
//! however much is stored. Only neighbours are merged, so that runs stay disjoint by position and retention can drop them
//! whole; and none grows beyond a size at which dropping it would be felt.

use std::iter::Peekable;
use std::sync::Arc;

use super::disk::Disk;
use super::run::{Rows, Run, RunWriter};
use super::sieve::{Below, Sieve};
use super::state_file::RunRow;
use super::{Position, ReadError};

/// Runs that are merged into one. Each level writes every byte once more; 8 makes two levels of 1e8 messages.
pub(super) const FAN_IN: usize = 8;

/// How large a merged run may become.
#[derive(Clone, Copy, Debug)]
pub(super) struct MergeLimit {
    pub(super) entries: u64,
    pub(super) bytes: u64,
}

/// The oldest runs that shall be merged next, if any shall; none of those that `may` not.
pub(super) fn due(runs: &[Arc<Run>], limit: MergeLimit, may: impl Fn(u64) -> bool) -> Option<&[Arc<Run>]> {
    runs.windows(FAN_IN).find(|window| {
        let level = window[0].row().level;
        window.iter().all(|run| run.row().level == level && may(run.row().number))
            && window.iter().map(|run| run.row().entries).sum::<u64>() <= limit.entries
            && window.iter().map(|run| run.row().bytes).sum::<u64>() <= limit.bytes
    })
}

/// What a merge has made.
pub(super) struct Merged {
    /// The run's row; `None` and no file if nothing was left to keep.
    pub(super) row: Option<RunRow>,
    /// The numbers of the runs that it takes the place of.
    pub(super) inputs: Vec<u64>,
}

/// Why a merge cannot go on.
#[derive(Debug)]
pub(super) struct MergeError {
    pub(super) error: ReadError,
    /// The runs that could not be read; none, where it is the writing that failed.
    pub(super) unreadable: Vec<u64>,
}

impl From<ReadError> for MergeError {
    fn from(error: ReadError) -> Self {
        Self { error, unreadable: Vec::new() }
    }
}

/// What a merge leaves out.
#[derive(Clone, Default)]
pub(super) struct Filter {
    /// What tells it; nothing is left out without.
    pub(super) sieve: Option<Arc<dyn Sieve>>,
    /// It is for this that the run is written, and not for merging.
    pub(super) is_thorough: bool,
    /// The runs that hold older entries than its inputs do.
    pub(super) older: Vec<Arc<Run>>,
}

impl Filter {
    /// The same, without a sieve where there is nothing for it to do: what is left out hangs together only if all is asked
    /// for, or nothing.
    fn settled(mut self) -> Self {
        self.sieve = self.sieve.filter(|sieve| !sieve.is_idle(self.is_thorough));
        self
    }

    fn stands_at(&self) -> Position {
        self.sieve.as_ref().map_or(Position(0), |sieve| sieve.stands_at())
    }
}

/// A merge under way.
pub(super) struct Merge {
    inputs: Vec<Arc<Run>>,
    rows: Vec<Peekable<Rows>>,
    writer: RunWriter,
    filter: Filter,
    below: Below,
    /// Entries read so far, those that are left out too.
    taken: u64,
}

impl Merge {
    /// Begins to merge `inputs`, ascending by position, into run `number`; or to write a single one anew.
    pub(super) fn begin(
        disk: Arc<dyn Disk>,
        inputs: &[Arc<Run>],
        number: u64,
        filter: Filter,
    ) -> Result<Self, MergeError> {
        let level = inputs.iter().map(|run| run.row().level).max().unwrap_or(0) + u64::from(inputs.len() > 1);
        let filter = filter.settled();
        // A merge in passing may pass over something: it is as old as the oldest of its inputs.
        let sifted = match filter.is_thorough {
            true => filter.stands_at(),
            false => inputs.iter().map(|run| run.row().sifted).min().unwrap_or_default(),
        };
        let rows = |run: &Arc<Run>| match run.rows() {
            Ok(rows) => Ok(rows.peekable()),
            Err(error) => Err(MergeError { error, unreadable: vec![run.row().number] }),
        };
        let rows = inputs.iter().map(rows).collect::<Result<_, _>>()?;
        let writer = RunWriter::create(disk, number, level, sifted)?;
        Ok(Self { inputs: inputs.to_vec(), rows, writer, filter, below: Below::default(), taken: 0 })
    }

    /// The number of the run that it makes.
    pub(super) fn number(&self) -> u64 {
        self.writer.number()
    }

    /// Merges about `entries` entries, leaving out those below `floor`, and commits them. Returns whether all is merged.
    pub(super) fn step(&mut self, entries: usize, floor: Position) -> Result<bool, MergeError> {
        let mut merged = 0;
        while merged < entries {
            let Some(mut row) = self.next_row()? else {
                self.has_everything()?;
                return Ok(true);
            };
            merged += row.len();
            self.taken += row.len() as u64;
            let left_out = self.sift(&mut row)?;
            row[left_out..].iter().filter(|entry| entry.position >= floor).for_each(|entry| self.writer.push(entry));
        }
        self.writer.commit()?;
        Ok(false)
    }

    /// How many of the first entries of a row are left out; of others that go, nothing but their place stays.
    fn sift(&mut self, row: &mut [super::StoredEntry]) -> Result<usize, ReadError> {
        let Filter { sieve, is_thorough, older } = &self.filter;
        let Some(sieve) = sieve else { return Ok(0) };
        let gone = sieve.sift(row, *is_thorough)?;
        self.below.leave_out(row, gone, |conversation| {
            for run in older {
                if run.has(conversation)? {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// What is merged takes the place of its inputs, so each entry that these are said to hold must have been read: on
    /// damaged pages some may not be found, and no error tell of it.
    fn has_everything(&self) -> Result<(), MergeError> {
        let (taken, listed) = (self.taken, self.inputs.iter().map(|run| run.row().entries).sum::<u64>());
        if taken == listed {
            return Ok(());
        }
        let unreadable: Vec<_> = self.inputs.iter().map(|run| run.row().number).collect();
        let error = ReadError(format!("runs {unreadable:?}: {taken} of {listed} entries can be read"));
        Err(MergeError { error, unreadable })
    }

    /// Seals the merged run; returns also the bytes that were written.
    pub(super) fn finish(self) -> Result<(Merged, u64), ReadError> {
        let (row, written) = self.writer.finish()?;
        Ok((Merged { row, inputs: self.inputs.iter().map(|run| run.row().number).collect() }, written))
    }

    /// The next row: of the lowest conversation, and of that one from the oldest run first.
    fn next_row(&mut self) -> Result<Option<Vec<super::StoredEntry>>, MergeError> {
        let mut lowest = None;
        for (index, rows) in self.rows.iter_mut().enumerate() {
            let conversation = match rows.peek() {
                Some(Ok(row)) => row.first().map(|entry| entry.conversation),
                Some(Err(_)) => {
                    lowest = Some((None, index));
                    break;
                }
                None => continue,
            };
            if lowest.is_none_or(|(found, _)| conversation < found) {
                lowest = Some((conversation, index));
            }
        }
        let Some((_, index)) = lowest else { return Ok(None) };
        let unreadable = |error| MergeError { error, unreadable: vec![self.inputs[index].row().number] };
        self.rows[index].next().transpose().map_err(unreadable)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use longwire_protocol::{ConversationId, LogTime, MessageId, Seq};

    use super::super::StoredEntry;
    use super::super::frame::Origin;
    use super::super::testing::SimDisk;
    use super::*;

    /// A run of ten entries.
    fn run(disk: &Arc<dyn Disk>, number: u64) -> RunRow {
        let mut writer = RunWriter::create(Arc::clone(disk), number, 0, Position(0)).expect("a file");
        for seq in number * 10..number * 10 + 10 {
            writer.push(&StoredEntry {
                conversation: ConversationId(7),
                seq: Seq(seq),
                position: Position(seq),
                time: LogTime(seq),
                countable: seq,
                origin: Origin::default(),
                first_unanswered: MessageId(0),
                digest: 0,
                source: Position(0),
                item: Bytes::from_static(b"an item"),
            });
        }
        writer.finish().expect("written").0.expect("a run of entries")
    }

    #[test]
    fn what_cannot_all_be_read_is_not_replaced() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::default());
        let rows = [run(&disk, 1), run(&disk, 2)];
        let merged = |rows: [RunRow; 2]| {
            let runs = rows.map(|row| Arc::new(Run::open(&disk, row, 1 << 20).expect("opens")));
            let mut merge = Merge::begin(Arc::clone(&disk), &runs, 3, Filter::default())?;
            while !merge.step(4, Position(15))? {}
            let (merged, _) = merge.finish()?;
            Ok::<_, MergeError>(merged.row.expect("entries are left").entries)
        };
        assert_eq!(merged(rows).expect("merged"), 15, "five lie below the floor");
        let more = RunRow { entries: 11, ..rows[1] };
        let error = merged([rows[0], more]).expect_err("one is missing");
        assert_eq!(error.error.0, "runs [1, 2]: 20 of 21 entries can be read");
        assert_eq!(error.unreadable, [1, 2]);
    }
}
