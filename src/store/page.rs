//! A page of entries while it is gathered from memtables and runs.

use longwire_protocol::Seq;

use super::{PageLimit, ReadError, StoredEntry};

/// The direction in which a page is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Seqs rise.
    Forwards,
    /// Seqs fall.
    Backwards,
}

/// A page that fills up. Invariant: the seqs in it are consecutive in its direction.
#[derive(Debug)]
pub(super) struct Page {
    limit: PageLimit,
    direction: Direction,
    entries: Vec<StoredEntry>,
    bytes: usize,
    is_full: bool,
}

impl Page {
    pub(super) fn new(limit: PageLimit, direction: Direction) -> Self {
        Self { limit, direction, entries: Vec::new(), bytes: 0, is_full: false }
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
