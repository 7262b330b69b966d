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
    use longwire_protocol::{ConversationId, Seq};

    use super::super::StoredEntry;
    use super::super::sieve::Left;
    use super::super::testing::{SimDisk, entry};
    use super::*;

    /// A run of ten entries.
    fn run(disk: &Arc<dyn Disk>, number: u64) -> RunRow {
        let mut writer = RunWriter::create(Arc::clone(disk), number, 0, Position(0)).expect("a file");
        for seq in number * 10..number * 10 + 10 {
            writer.push(&entry(7, seq, seq));
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

    fn opened(disk: &Arc<dyn Disk>, rows: impl IntoIterator<Item = RunRow>) -> Vec<Arc<Run>> {
        rows.into_iter().map(|row| Arc::new(Run::open(disk, row, 1 << 20).expect("opens"))).collect()
    }

    #[test]
    fn eight_neighbours_of_a_level_are_due_within_the_limits() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::default());
        let runs = opened(&disk, (1..=10).map(|number| run(&disk, number)));
        let bytes = |runs: &[Arc<Run>]| runs.iter().map(|run| run.row().bytes).sum::<u64>();
        let (first, third) = (bytes(&runs[..8]), bytes(&runs[2..]));
        let numbers = |runs: &[Arc<Run>], entries, bytes, may: fn(u64) -> bool| {
            let due = due(runs, MergeLimit { entries, bytes }, may)?;
            Some((due.len(), due[0].row().number))
        };
        let any = |_| true;
        assert_eq!(numbers(&runs, 80, first, any), Some((8, 1)));
        assert_eq!(numbers(&runs, 79, u64::MAX, any), None);
        assert_eq!(numbers(&runs, u64::MAX, first - 1, any), None);
        assert_eq!(numbers(&runs[..7], u64::MAX, u64::MAX, any), None);
        assert_eq!(numbers(&runs, 80, third, |number| number != 2), Some((8, 3)));
        assert_eq!(numbers(&runs, 80, third, |number| number != 5), None);
        let higher = |run: &Arc<Run>| RunRow { level: 1, ..*run.row() };
        let mixed = opened(&disk, runs.iter().enumerate().map(|(i, r)| if i < 2 { higher(r) } else { *r.row() }));
        assert_eq!(numbers(&mixed, 80, third, any), Some((8, 3)), "of one level alone");
        assert_eq!(numbers(&mixed[..9], 80, third, any), None);
    }

    #[test]
    fn a_merge_is_of_the_next_level_and_sifted_as_its_oldest_input() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::default());
        let rows = [run(&disk, 1), run(&disk, 2)];
        let rows = [RunRow { sifted: Position(9), ..rows[0] }, RunRow { sifted: Position(4), level: 2, ..rows[1] }];
        let made = |inputs: &[Arc<Run>], number| {
            let mut merge = Merge::begin(Arc::clone(&disk), inputs, number, Filter::default()).expect("begins");
            assert_eq!(merge.number(), number);
            while !merge.step(1_000, Position(0)).expect("goes on") {}
            let (Merged { row, inputs }, written) = merge.finish().expect("ends");
            assert!(written > 0);
            (row.expect("entries are left"), inputs)
        };
        let runs = opened(&disk, rows);
        let (both, inputs) = made(&runs, 5);
        assert_eq!((both.number, both.level, both.sifted, both.entries), (5, 3, Position(4), 20));
        assert_eq!(inputs, [1, 2]);
        let (one, inputs) = made(&runs[..1], 6);
        assert_eq!((one.number, one.level, one.sifted, one.entries), (6, 0, Position(9), 10));
        assert_eq!(inputs, [1]);
        let entries = opened(&disk, [both])[0].rows().expect("reads").map(|row| row.expect("reads"));
        let seqs: Vec<_> = entries.flatten().map(|entry| (entry.conversation, entry.seq)).collect();
        assert_eq!(seqs, (10..30).map(|seq| (ConversationId(7), Seq(seq))).collect::<Vec<_>>());
    }

    /// Lets everything through; has nothing to do unless it is thorough.
    struct Open;

    impl Sieve for Open {
        fn stands_at(&self) -> Position {
            Position(55)
        }

        fn is_idle(&self, is_thorough: bool) -> bool {
            !is_thorough
        }

        fn sift(&self, _: &mut [StoredEntry], _: bool) -> Result<usize, ReadError> {
            Ok(0)
        }

        fn among(&self) -> Option<Vec<ConversationId>> {
            None
        }

        fn left(&self, _: &[StoredEntry]) -> Result<Left, ReadError> {
            Ok(Left::Kept)
        }
    }

    #[test]
    fn a_run_written_anew_is_as_the_state_of_then_leaves_it() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::default());
        let runs = opened(&disk, [run(&disk, 1)]);
        for (is_thorough, sifted) in [(true, 55), (false, 0)] {
            let filter = Filter { sieve: Some(Arc::new(Open)), is_thorough, older: Vec::new() };
            let mut merge = Merge::begin(Arc::clone(&disk), &runs, 2, filter).expect("begins");
            assert_eq!(merge.filter.sieve.is_some(), is_thorough, "who has nothing to do is not asked");
            while !merge.step(4, Position(0)).expect("goes on") {}
            let row = merge.finish().expect("ends").0.row.expect("entries are left");
            assert_eq!((row.sifted, row.entries), (Position(sifted), 10));
        }
    }
}
