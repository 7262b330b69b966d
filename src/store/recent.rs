//! The newest entries of conversations that were read from runs lately, so that whoever asks next for the last page of a
//! busy conversation waits for no disk, and for no change of thread. A cache and nothing else: what it holds is what the
//! files held when it was read, and it is emptied once something was taken out of the files for good.

use std::hash::BuildHasherDefault;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use longwire_protocol::ConversationId;
use lru::LruCache;

use super::StoredEntry;
use super::memtable::IdHasher;

/// Entries that are held of a conversation at the most: the longest page of history that there is.
const ENTRIES_MAX: usize = 200;
/// Bytes of items that are held of a conversation beside the page that was read last.
const BYTES_MAX: usize = 128 << 10;
/// What a conversation takes beside its entries, about: its place in the cache, and two allocations.
const OVERHEAD_BYTES: usize = 160;

/// The entries of a conversation, ascending, without a hole.
pub(super) type Stretch = Arc<[StoredEntry]>;

/// The cache, at most so many bytes large.
#[derive(Debug)]
pub(super) struct Recent {
    held: Mutex<Held>,
    bytes_max: usize,
}

#[derive(Debug)]
struct Held {
    stretches: LruCache<ConversationId, Stretch, BuildHasherDefault<IdHasher>>,
    bytes: usize,
    /// How often it was emptied.
    emptied: u64,
}

impl Recent {
    pub(super) fn new(bytes_max: usize) -> Self {
        let stretches = LruCache::unbounded_with_hasher(BuildHasherDefault::default());
        Self { held: Mutex::new(Held { stretches, bytes: 0, emptied: 0 }), bytes_max }
    }

    /// What is held of a conversation: it goes last from now on.
    pub(super) fn get(&self, conversation: ConversationId) -> Option<Stretch> {
        self.lock().stretches.get(&conversation).cloned()
    }

    /// How often it was emptied: to be asked before anything is read that is to be held.
    pub(super) fn emptied(&self) -> u64 {
        self.lock().emptied
    }

    /// Holds a page, its newest entry first, that was begun to be read when it had been `emptied` so often; not if it was
    /// emptied since, and not what is older than what is held.
    pub(super) fn hold(&self, emptied: u64, page: &[StoredEntry]) {
        let (Some(newest), Some(oldest)) = (page.first(), page.last()) else { return };
        let mut held = self.lock();
        if held.emptied != emptied {
            return;
        }
        let known = held.stretches.peek(&newest.conversation).cloned().unwrap_or_default();
        let (begin, end) = (known.first().map(|entry| entry.seq), known.last().map(|entry| entry.seq));
        if end > Some(newest.seq) || (end == Some(newest.seq) && begin <= Some(oldest.seq)) {
            return;
        }
        let goes_on = end.is_some_and(|end| end.next() >= oldest.seq);
        let before = known.iter().rev().filter(|entry| goes_on && entry.seq < oldest.seq);
        let stretch = copied(page, before);
        held.bytes += cost(&stretch);
        held.bytes -= held.stretches.put(newest.conversation, stretch).map_or(0, |gone| cost(&gone));
        while held.bytes > self.bytes_max
            && let Some((_, gone)) = held.stretches.pop_lru()
        {
            held.bytes -= cost(&gone);
        }
    }

    /// Lets go of everything, and of what is being read now.
    pub(super) fn empty(&self) {
        let mut held = self.lock();
        held.emptied += 1;
        held.bytes = 0;
        held.stretches.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A page and as much as is to be held of what comes `before` it, both newest first, in memory of its own: else the rows of
/// runs that the items lie in would stay with them.
fn copied<'a>(page: &'a [StoredEntry], before: impl Iterator<Item = &'a StoredEntry>) -> Stretch {
    let mut bytes = 0;
    let before = before.take(ENTRIES_MAX.saturating_sub(page.len())).take_while(|entry| {
        bytes += entry.item.len();
        bytes <= BYTES_MAX
    });
    let mut entries: Vec<_> = page.iter().chain(before).cloned().collect();
    entries.reverse();
    let mut items = BytesMut::with_capacity(entries.iter().map(|entry| entry.item.len()).sum());
    for entry in &mut entries {
        items.extend_from_slice(&entry.item);
        entry.item = items.split().freeze();
    }
    entries.into()
}

/// The bytes that a stretch takes.
fn cost(stretch: &[StoredEntry]) -> usize {
    OVERHEAD_BYTES + size_of_val(stretch) + stretch.iter().map(|entry| entry.item.len()).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::super::testing::entry;
    use super::*;

    fn page(conversation: u64, seqs: std::ops::RangeInclusive<u64>) -> Vec<StoredEntry> {
        seqs.rev().map(|seq| entry(conversation, seq, seq)).collect()
    }

    fn seqs(recent: &Recent, conversation: u64) -> Vec<u64> {
        let held = recent.get(ConversationId(conversation));
        held.iter().flat_map(|stretch| stretch.iter()).map(|entry| entry.seq.0).collect()
    }

    #[test]
    fn the_newest_stretch_is_held_without_a_hole() {
        let recent = Recent::new(1 << 20);
        for (read, held) in [
            (5..=7, 5..=7),
            (3..=6, 5..=7),
            (6..=7, 5..=7),
            (4..=7, 4..=7),
            (8..=8, 4..=8),
            (7..=9, 4..=9),
            (11..=12, 11..=12),
            (10..=10, 11..=12),
            (2..=13, 2..=13),
            (14..=213, 14..=213),
            (214..=214, 15..=214),
        ] {
            recent.hold(0, &page(1, read.clone()));
            assert_eq!(seqs(&recent, 1), held.collect::<Vec<_>>(), "after {read:?}");
        }
        recent.hold(0, &[]);
        assert!(recent.get(ConversationId(2)).is_none());
    }

    #[test]
    fn what_was_asked_for_least_lately_goes_first() {
        let each = cost(&page(1, 1..=10));
        let recent = Recent::new(3 * each);
        for conversation in 1..=3 {
            recent.hold(0, &page(conversation, 1..=10));
        }
        assert_eq!(recent.lock().bytes, 3 * each);
        assert_eq!(seqs(&recent, 1).len(), 10);
        recent.hold(0, &page(4, 1..=10));
        assert_eq!([1, 2, 3, 4].map(|conversation| seqs(&recent, conversation).len()), [10, 0, 10, 10]);
        recent.hold(0, &page(4, 1..=11));
        assert_eq!(recent.lock().bytes, 2 * each + cost(&page(4, 11..=11)) - OVERHEAD_BYTES, "another had to go");
        recent.hold(0, &page(5, 1..=100));
        let held = recent.lock();
        assert_eq!((held.bytes, held.stretches.len()), (0, 0), "what is too large is not held");
    }

    #[test]
    fn an_item_keeps_nothing_of_the_row_that_it_was_read_from() {
        let row = bytes::Bytes::from(vec![b'x'; 4_000]);
        let from_run = StoredEntry { item: row.slice(10..17), ..entry(1, 1, 1) };
        let recent = Recent::new(1 << 20);
        recent.hold(0, std::slice::from_ref(&from_run));
        drop(from_run);
        assert!(row.is_unique());
    }

    #[test]
    fn what_was_begun_to_be_read_before_it_was_emptied_is_not_held() {
        let recent = Recent::new(1 << 20);
        let before = recent.emptied();
        recent.hold(before, &page(1, 1..=3));
        recent.empty();
        assert_eq!((seqs(&recent, 1).len(), recent.lock().bytes), (0, 0));
        recent.hold(before, &page(1, 1..=3));
        assert_eq!(seqs(&recent, 1).len(), 0);
        recent.hold(recent.emptied(), &page(1, 1..=3));
        assert_eq!(seqs(&recent, 1).len(), 3);
    }
}
