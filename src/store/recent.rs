//! The newest entries of conversations that were read from runs lately, so that whoever asks next for the last page of a
//! busy conversation waits for no disk, and for no change of thread. A cache and nothing else: what it holds is what the
//! files held when it was read. What the sieve took since is withheld by the state, and the cache is emptied when a purge is
//! done, before the state forgets that.

use std::hash::BuildHasherDefault;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use longwire_protocol::ConversationId;
use lru::LruCache;

use super::StoredEntry;
use super::memtable::IdHasher;

/// Entries that are held of a conversation at the most: the longest page of history that there is.
const ENTRIES_MAX: usize = 200;
/// Bytes of items that are held of a conversation, unless a page that was read has more.
const BYTES_MAX: usize = 256 << 10;
/// Items share memory of so many bytes, unless one is larger: who keeps one of them keeps no more than that.
const SHARED_BYTES: usize = 4 << 10;
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
    /// emptied since. What is held of a conversation is one stretch: the newest, and what was read next to it.
    pub(super) fn hold(&self, emptied: u64, page: &[StoredEntry]) {
        let Some(conversation) = page.first().map(|entry| entry.conversation) else { return };
        let known = {
            let held = self.lock();
            if held.emptied != emptied {
                return;
            }
            held.stretches.peek(&conversation).cloned()
        };
        // Copied while nobody waits for the lock.
        let Some(stretch) = joined(known.as_deref().unwrap_or_default(), page) else { return };
        let bytes = cost(&stretch);
        if bytes > self.bytes_max {
            return;
        }
        // Freed after the lock.
        let mut gone = Vec::new();
        let mut held = self.lock();
        let is_as_it_was = match (&known, held.stretches.peek(&conversation)) {
            (None, None) => true,
            (Some(known), Some(now)) => Arc::ptr_eq(known, now),
            _ => false,
        };
        if held.emptied != emptied || !is_as_it_was {
            return;
        }
        held.bytes += bytes;
        gone.extend(held.stretches.put(conversation, stretch));
        held.bytes -= gone.first().map_or(0, |known| cost(known));
        while held.bytes > self.bytes_max
            && let Some((_, least)) = held.stretches.pop_lru()
        {
            held.bytes -= cost(&least);
            gone.push(least);
        }
    }

    /// Lets go of everything, and of what is being read now.
    pub(super) fn empty(&self) {
        let none = LruCache::unbounded_with_hasher(BuildHasherDefault::default());
        let mut held = self.lock();
        held.emptied += 1;
        held.bytes = 0;
        let gone = std::mem::replace(&mut held.stretches, none);
        drop(held);
        drop(gone);
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is held of a conversation once a page of it, its newest entry first, was read beside what is `known`; `None` where that
/// brings nothing.
fn joined(known: &[StoredEntry], page: &[StoredEntry]) -> Option<Stretch> {
    let (newest, oldest) = (page.first()?.seq, page.last()?.seq);
    let Some((begin, end)) = known.first().zip(known.last()).map(|(first, last)| (first.seq, last.seq)) else {
        return Some(copied(page.iter(), [].iter()));
    };
    if newest > end || (newest == end && oldest < begin) {
        let goes_on = end.next() >= oldest;
        Some(copied(page.iter(), known.iter().rev().filter(|entry| goes_on && entry.seq < oldest)))
    } else if newest.next() >= begin && oldest < begin {
        let stretch = copied(known.iter().rev(), page.iter().filter(|entry| entry.seq < begin));
        (stretch.len() > known.len()).then_some(stretch)
    } else {
        None
    }
}

/// Entries and as much as is to be held of what comes `before` them, all newest first, in memory of their own: else the rows of
/// runs that the items lie in would stay with them.
fn copied<'a>(
    entries: impl Iterator<Item = &'a StoredEntry>,
    before: impl Iterator<Item = &'a StoredEntry>,
) -> Stretch {
    let mut stretch: Vec<_> = entries.cloned().collect();
    let mut bytes: usize = stretch.iter().map(|entry| entry.item.len()).sum();
    let room = ENTRIES_MAX.saturating_sub(stretch.len());
    stretch.extend(before.take(room).map_while(|entry| {
        let with = bytes + entry.item.len();
        (with <= BYTES_MAX).then(|| {
            bytes = with;
            entry.clone()
        })
    }));
    stretch.reverse();
    let mut items = BytesMut::new();
    for entry in &mut stretch {
        let length = entry.item.len();
        if items.capacity() < length {
            items = BytesMut::with_capacity(bytes.min(SHARED_BYTES).max(length));
        }
        bytes -= length;
        items.extend_from_slice(&entry.item);
        entry.item = items.split().freeze();
    }
    stretch.into()
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
            (6..=7, 5..=7),
            (5..=6, 5..=7),
            (4..=6, 4..=7),
            (1..=2, 4..=7),
            (3..=7, 3..=7),
            (8..=8, 3..=8),
            (7..=9, 3..=9),
            (11..=12, 11..=12),
            (10..=10, 10..=12),
            (2..=13, 2..=13),
            (14..=213, 14..=213),
            (10..=13, 14..=213),
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
        let before = recent.lock().bytes;
        recent.hold(0, &page(5, 1..=100));
        let held = recent.lock();
        assert_eq!((held.bytes, held.stretches.len()), (before, 2), "what is too large is not held");
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

    /// Whoever keeps an item of a conversation with large ones keeps no more than a few beside it.
    #[test]
    fn items_share_little_memory() {
        let large = |seq| StoredEntry { item: vec![b'x'; 1_500].into(), ..entry(1, seq, seq) };
        let recent = Recent::new(1 << 20);
        recent.hold(0, &(1..=100).rev().map(large).collect::<Vec<_>>());
        let held = recent.get(ConversationId(1)).expect("held");
        assert_eq!(held.len(), 100);
        let starts: Vec<_> = held.iter().map(|entry| entry.item.as_ptr() as usize).collect();
        let longest = starts.chunk_by(|a, b| a + 1_500 == *b).map(<[usize]>::len).max();
        assert_eq!(longest, Some(SHARED_BYTES / 1_500));
    }

    #[test]
    fn a_conversation_of_large_items_is_held_in_part() {
        let large = |seq| StoredEntry { item: vec![b'x'; 100 << 10].into(), ..entry(1, seq, seq) };
        let recent = Recent::new(1 << 20);
        for seq in (1..=5).rev() {
            recent.hold(0, &[large(seq)]);
        }
        assert_eq!(seqs(&recent, 1), [4, 5]);
        recent.hold(0, &(6..=9).rev().map(large).collect::<Vec<_>>());
        assert_eq!(seqs(&recent, 1), [6, 7, 8, 9], "a page is held whole");
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
