//! Merging: eight neighbouring runs of one level become one of the next, so that a page of history looks into few files
//! however much is stored. Only neighbours are merged, so that runs stay disjoint by position and retention can drop them
//! whole; and none grows beyond a size at which dropping it would be felt.

use std::iter::Peekable;
use std::sync::Arc;

use super::disk::Disk;
use super::run::{Rows, Run, RunWriter};
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

/// The numbers of the oldest runs that shall be merged next, if any shall.
pub(super) fn due(runs: &[Arc<Run>], limit: MergeLimit) -> Option<&[Arc<Run>]> {
    runs.windows(FAN_IN).find(|window| {
        let level = window[0].row().level;
        window.iter().all(|run| run.row().level == level)
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

/// A merge under way.
pub(super) struct Merge {
    inputs: Vec<Arc<Run>>,
    rows: Vec<Peekable<Rows>>,
    writer: RunWriter,
}

impl Merge {
    /// Begins to merge `inputs`, ascending by position, into run `number`.
    pub(super) fn begin(disk: Arc<dyn Disk>, inputs: &[Arc<Run>], number: u64) -> Result<Self, ReadError> {
        let level = inputs.iter().map(|run| run.row().level).max().unwrap_or(0) + 1;
        let rows = inputs.iter().map(|run| Ok(run.rows()?.peekable())).collect::<Result<_, ReadError>>()?;
        Ok(Self { inputs: inputs.to_vec(), rows, writer: RunWriter::create(disk, number, level)? })
    }

    /// The number of the run that it makes.
    pub(super) fn number(&self) -> u64 {
        self.writer.number()
    }

    /// Merges about `entries` entries, leaving out those below `floor`, and commits them. Returns whether all is merged.
    pub(super) fn step(&mut self, entries: usize, floor: Position) -> Result<bool, ReadError> {
        let mut merged = 0;
        while merged < entries {
            let Some(row) = self.next_row()? else {
                return Ok(true);
            };
            merged += row.len();
            row.iter().filter(|entry| entry.position >= floor).for_each(|entry| self.writer.push(entry));
        }
        self.writer.commit()?;
        Ok(false)
    }

    /// Seals the merged run; returns also the bytes that were written.
    pub(super) fn finish(self) -> Result<(Merged, u64), ReadError> {
        let (row, written) = self.writer.finish()?;
        Ok((Merged { row, inputs: self.inputs.iter().map(|run| run.row().number).collect() }, written))
    }

    /// The next row: of the lowest conversation, and of that one from the oldest run first.
    fn next_row(&mut self) -> Result<Option<Vec<super::StoredEntry>>, ReadError> {
        let mut lowest = None;
        for (index, rows) in self.rows.iter_mut().enumerate() {
            let conversation = match rows.peek() {
                Some(Ok(row)) => row.first().map(|entry| entry.conversation),
                Some(Err(_)) => return rows.next().transpose(),
                None => None,
            };
            if let Some(conversation) = conversation
                && lowest.is_none_or(|(found, _)| conversation < found)
            {
                lowest = Some((conversation, index));
            }
        }
        lowest.and_then(|(_, index)| self.rows[index].next()).transpose()
    }
}
