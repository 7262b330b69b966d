//! A page of entries while it is gathered from memtables and runs.

use longwire_protocol::Seq;

use super::{PageLimit, ReadError, StoredEntry};

/// Entries that there is room for from the beginning: a page of history.
const ROOM: usize = 64;

/// The direction in which a page is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Seqs rise.
    Forwards,
    /// Seqs fall.
    Backwards,
}

/// A page that fills up. Invariant: the seqs in it are consecutive in its direction.
#[derive(Clone, Debug)]
pub(super) struct Page {
    limit: PageLimit,
    direction: Direction,
    entries: Vec<StoredEntry>,
    bytes: usize,
    is_full: bool,
}

impl Page {
    pub(super) fn new(limit: PageLimit, direction: Direction) -> Self {
        Self { limit, direction, entries: Vec::with_capacity(limit.entries.min(ROOM)), bytes: 0, is_full: false }
    }

    pub(super) fn direction(&self) -> Direction {
        self.direction
    }

    /// What is still wanted of `from..=to`.
    pub(super) fn wanted(&self, (from, to): (Seq, Seq)) -> (Seq, Seq) {
        match (self.next_seq(), self.direction) {
            (Some(next), Direction::Forwards) => (next.max(from), to),
            (Some(next), Direction::Backwards) => (from, next.min(to)),
            (None, _) => (from, to),
        }
    }

    /// Whether nothing can be missing of `from..=to`, whatever was read: it begins where it has to, has no hole, and ends with the
    /// last that there is to be, or is full.
    pub(super) fn is_whole(&self, (from, to): (Seq, Seq)) -> bool {
        let (Some(first), Some(last)) = (self.entries.first(), self.entries.last()) else { return false };
        let (begin, end) = match self.direction {
            Direction::Forwards => (from.max(Seq(1)), to),
            Direction::Backwards => (to, from.max(Seq(1))),
        };
        first.seq == begin && (self.is_full || last.seq == end)
    }

    /// Whether nothing more is wanted.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// The seq that has to come next; `None` while it is empty.
    pub(super) fn next_seq(&self) -> Option<Seq> {
        let last = self.entries.last()?.seq.0;
        Some(Seq(match self.direction {
            Direction::Forwards => last + 1,
            Direction::Backwards => last.saturating_sub(1),
        }))
    }

    /// Takes an entry if the limit admits it; the first is always admitted. Afterwards see [`Page::is_full`].
    pub(super) fn offer(&mut self, entry: StoredEntry) -> Result<(), ReadError> {
        if let Some(expected) = self.next_seq()
            && expected != entry.seq
        {
            return Err(ReadError(format!(
                "conversation {} has a hole: entry {} where {expected} should be; run `longwire store check`",
                entry.conversation, entry.seq
            )));
        }
        let bytes = self.bytes + entry.item.len();
        if !self.entries.is_empty() && (self.entries.len() >= self.limit.entries || bytes > self.limit.bytes) {
            self.is_full = true;
            return Ok(());
        }
        self.bytes = bytes;
        self.entries.push(entry);
        self.is_full = self.entries.len() >= self.limit.entries || self.bytes >= self.limit.bytes;
        Ok(())
    }

    pub(super) fn into_entries(self) -> Vec<StoredEntry> {
        self.entries
    }
}
