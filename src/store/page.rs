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

    /// Whether nothing more is wanted of `from..=to`: it is full, or has the last that there may be.
    pub(super) fn is_done(&self, seqs: (Seq, Seq)) -> bool {
        let (from, to) = self.wanted(seqs);
        self.is_full || (!self.entries.is_empty() && from.max(Seq(1)) > to)
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

#[cfg(test)]
mod tests {
    use super::super::testing::entry;
    use super::*;

    /// How many of the entries from 5 on a page takes, and after how many it is full.
    fn taken(entries: usize, bytes: usize) -> (usize, usize) {
        let mut page = Page::new(PageLimit { entries, bytes }, Direction::Forwards);
        let mut full_after = 0;
        for seq in 5..15 {
            if page.is_full() {
                break;
            }
            page.offer(entry(1, seq, seq)).expect("follows");
            full_after += 1;
        }
        (page.into_entries().len(), full_after)
    }

    #[test]
    fn a_page_is_full_as_soon_as_it_may_hold_no_more() {
        assert_eq!(taken(3, 1_000), (3, 3));
        assert_eq!(taken(100, 14), (2, 2), "two items of seven bytes");
        assert_eq!(taken(100, 15), (2, 3), "the third is looked at");
        assert_eq!(
            (taken(100, 1), taken(0, 1_000), taken(1, 1_000)),
            ((1, 1), (1, 1), (1, 1)),
            "the first is admitted"
        );
        let mut page = Page::new(PageLimit { entries: 1, bytes: 1_000 }, Direction::Forwards);
        page.offer(entry(1, 5, 5)).and_then(|()| page.offer(entry(1, 6, 6))).expect("follows");
        assert_eq!((page.is_full(), page.into_entries().len()), (true, 1), "what comes when it is full is not taken");
    }

    #[test]
    fn a_hole_is_an_error_either_way() {
        let limit = PageLimit { entries: 10, bytes: 1_000 };
        for (direction, next) in [(Direction::Forwards, 6), (Direction::Backwards, 4)] {
            let mut page = Page::new(limit, direction);
            assert_eq!(page.next_seq(), None);
            page.offer(entry(1, 5, 5)).expect("the first");
            assert_eq!(page.next_seq(), Some(Seq(next)));
            for other in [0, 3, 5, 7, 10 - next] {
                let error = page.offer(entry(1, other, 5)).expect_err("a hole").0;
                assert!(error.contains(&format!("entry {other} where {next} should be")), "{error}");
            }
            page.offer(entry(1, next, 5)).expect("follows");
            assert_eq!(page.into_entries().len(), 2);
        }
    }

    #[test]
    fn a_page_is_whole_from_where_it_begins_to_where_it_is_full_or_ends() {
        let page = |direction, entries, seqs: &[u64]| {
            let mut page = Page::new(PageLimit { entries, bytes: usize::MAX }, direction);
            seqs.iter().for_each(|seq| page.offer(entry(1, *seq, *seq)).expect("without a hole"));
            page
        };
        let asked = (Seq(0), Seq(9));
        for (entries, seqs, whole) in [
            (9, &[1, 2, 3, 4, 5, 6, 7, 8, 9][..], true),
            (3, &[1, 2, 3], true),
            (9, &[1, 2, 3], false),
            (3, &[2, 3, 4], false),
            (9, &[], false),
        ] {
            assert_eq!(page(Direction::Forwards, entries, seqs).is_whole(asked), whole, "{seqs:?}");
            let back: Vec<u64> = seqs.iter().map(|seq| 10 - seq).collect();
            assert_eq!(page(Direction::Backwards, entries, &back).is_whole(asked), whole, "{back:?}");
        }
    }
}
