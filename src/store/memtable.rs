//! The memtable: the entries that no run holds yet, by conversation and seq. Fan-out and short catch-ups read here and
//! never touch the disk. Entries are kept in the order of the log, in chunks that never move; a conversation keeps the
//! places of its own, so that seq `s` is found by subtraction.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use longwire_protocol::{ConversationId, LogTime, Seq};

use super::page::{Direction, Page};
use super::{Position, ReadError, StoredEntry};

/// Entries a chunk: 128 KiB of entries, small enough to be allocated within a commit without being felt.
const CHUNK_ENTRIES: usize = 1024;

/// What an entry takes in a run beside its item, about. In memory it is about 190 bytes.
const OVERHEAD_BYTES: usize = 32;

/// Positions and times from the first to the last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: Position,
    pub(super) last: Position,
    pub(super) first_time: LogTime,
    pub(super) last_time: LogTime,
}

impl Span {
    pub(super) fn of(entry: &StoredEntry) -> Self {
        Self { first: entry.position, last: entry.position, first_time: entry.time, last_time: entry.time }
    }

    /// The span that holds both.
    pub(super) fn joined(self, other: Self) -> Self {
        Self {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
            first_time: self.first_time.min(other.first_time),
            last_time: self.last_time.max(other.last_time),
        }
    }
}

/// A conversation's entries here: seqs `first..first + places.len()`.
#[derive(Debug)]
struct Places {
    first: Seq,
    places: Vec<u32>,
}

/// Recent entries. Invariant: positions rise in the order of insertion; the seqs of a conversation are consecutive.
#[derive(Debug, Default)]
pub(super) struct Memtable {
    chunks: Vec<Vec<StoredEntry>>,
    conversations: HashMap<ConversationId, Places, BuildHasherDefault<IdHasher>>,
    bytes: usize,
    span: Option<Span>,
}

impl Memtable {
    /// An empty one with room for as many conversations as `other` has, so that its index does not have to grow.
    pub(super) fn like(other: &Self) -> Self {
        let conversations = HashMap::with_capacity_and_hasher(other.conversations.len(), BuildHasherDefault::default());
        Self { conversations, ..Self::default() }
    }

    /// Entries.
    pub(super) fn len(&self) -> usize {
        match self.chunks.last() {
            Some(last) => (self.chunks.len() - 1) * CHUNK_ENTRIES + last.len(),
            None => 0,
        }
    }

    /// Whether it has no entry.
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// What its entries will take in a run, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Positions and times of what it holds.
    pub(super) fn span(&self) -> Option<Span> {
        self.span
    }

    /// The first and the last seq that it has of a conversation.
    pub(super) fn seqs(&self, conversation: ConversationId) -> Option<(Seq, Seq)> {
        let places = self.conversations.get(&conversation)?;
        Some((places.first, Seq(places.first.0 + places.places.len() as u64 - 1)))
    }

    /// Adds an entry, which has to continue its conversation: see [`Memtable::seqs`].
    pub(super) fn push(&mut self, entry: StoredEntry) {
        let place = u32::try_from(self.len()).expect("a memtable is sealed long before it has 4 billion entries");
        self.bytes += entry.item.len() + OVERHEAD_BYTES;
        let span = Span::of(&entry);
        self.span = Some(self.span.map_or(span, |s| s.joined(span)));
        let conversation = self
            .conversations
            .entry(entry.conversation)
            .or_insert_with(|| Places { first: entry.seq, places: Vec::with_capacity(1) });
        debug_assert_eq!(entry.seq.0, conversation.first.0 + conversation.places.len() as u64, "seqs are consecutive");
        conversation.places.push(place);
        match self.chunks.last_mut() {
            Some(last) if last.len() < CHUNK_ENTRIES => last.push(entry),
            _ => {
                let mut chunk = Vec::with_capacity(CHUNK_ENTRIES);
                chunk.push(entry);
                self.chunks.push(chunk);
            }
        }
    }

    /// Offers the entries of `conversation` within `from..=to` that are not below `floor` to the page.
    pub(super) fn read(
        &self,
        conversation: ConversationId,
        (from, to): (Seq, Seq),
        floor: Position,
        page: &mut Page,
    ) -> Result<(), ReadError> {
        let Some(places) = self.conversations.get(&conversation) else { return Ok(()) };
        let first = places.first.0;
        let begin = from.0.saturating_sub(first).min(places.places.len() as u64) as usize;
        let end = to.0.saturating_add(1).saturating_sub(first).min(places.places.len() as u64) as usize;
        let offer = |place: u32, page: &mut Page| -> Result<bool, ReadError> {
            let entry = self.at(place);
            if entry.position >= floor {
                page.offer(entry.clone())?;
            }
            Ok(page.is_full())
        };
        let wanted = places.places.get(begin..end).unwrap_or_default();
        match page.direction() {
            Direction::Forwards => {
                for &place in wanted {
                    if offer(place, page)? {
                        break;
                    }
                }
            }
            Direction::Backwards => {
                for &place in wanted.iter().rev() {
                    if offer(place, page)? {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// The first entry of `conversation` whose position is at least `position`.
    pub(super) fn first_from(&self, conversation: ConversationId, position: Position) -> Option<&StoredEntry> {
        let places = &self.conversations.get(&conversation)?.places;
        let index = places.partition_point(|&place| self.at(place).position < position);
        places.get(index).map(|&place| self.at(place))
    }

    /// The first entry that it has of a conversation.
    pub(super) fn first_of(&self, conversation: ConversationId) -> Option<&StoredEntry> {
        let places = &self.conversations.get(&conversation)?.places;
        places.first().map(|&place| self.at(place))
    }

    /// The conversations it has, ascending.
    pub(super) fn conversations(&self) -> Vec<ConversationId> {
        let mut conversations: Vec<_> = self.conversations.keys().copied().collect();
        conversations.sort_unstable();
        conversations
    }

    /// The entries of a conversation, ascending.
    pub(super) fn entries_of(&self, conversation: ConversationId) -> impl Iterator<Item = &StoredEntry> {
        let places = self.conversations.get(&conversation).map_or(&[][..], |c| &c.places);
        places.iter().map(|&place| self.at(place))
    }

    fn at(&self, place: u32) -> &StoredEntry {
        &self.chunks[place as usize / CHUNK_ENTRIES][place as usize % CHUNK_ENTRIES]
    }
}

/// A hash for ids that the broker itself gave out densely: nobody outside chooses them, so spreading the bits is enough.
#[derive(Debug, Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

#[cfg(test)]
mod tests {
    use super::super::PageLimit;
    use super::super::testing::entry;
    use super::*;

    const ONE: ConversationId = ConversationId(1);

    /// Conversations 1, 2 and 0 in turns, each with the seqs 10 to 1009, over three chunks; positions from 1.
    fn filled() -> Memtable {
        let mut table = Memtable::default();
        for position in 1..=3_000 {
            table.push(entry(position % 3, 10 + (position - 1) / 3, position));
        }
        table
    }

    #[test]
    fn it_says_what_it_holds() {
        let table = filled();
        assert_eq!((table.len(), table.is_empty(), table.bytes()), (3_000, false, 3_000 * (7 + 32)));
        let span =
            Span { first: Position(1), last: Position(3_000), first_time: LogTime(10), last_time: LogTime(30_000) };
        assert_eq!(table.span(), Some(span));
        assert_eq!(table.conversations(), [ConversationId(0), ONE, ConversationId(2)]);
        assert_eq!((table.seqs(ONE), table.seqs(ConversationId(3))), (Some((Seq(10), Seq(1_009))), None));
        let positions: Vec<_> = table.entries_of(ONE).map(|entry| entry.position.0).collect();
        assert_eq!(positions, (1..=3_000).step_by(3).collect::<Vec<_>>());
        assert_eq!(table.entries_of(ConversationId(3)).count(), 0);

        let fresh = Memtable::like(&table);
        assert_eq!((fresh.len(), fresh.is_empty(), fresh.bytes(), fresh.span()), (0, true, 0, None));
        assert!(fresh.conversations.capacity() >= 3 && fresh.conversations().is_empty());
        assert_eq!(fresh.first_of(ONE), None);
    }

    #[test]
    fn entries_are_found_by_position() {
        let table = filled();
        let from = |position| table.first_from(ONE, Position(position)).map(|entry| entry.seq.0);
        assert_eq!([0, 1, 2, 4, 5].map(from), [Some(10), Some(10), Some(11), Some(11), Some(12)]);
        assert_eq!([2_998, 2_999].map(from), [Some(1_009), None]);
        assert_eq!(table.first_of(ONE).map(|entry| entry.seq), Some(Seq(10)));
        assert!(
            table.first_from(ConversationId(3), Position(0)).is_none() && table.first_of(ConversationId(3)).is_none()
        );
    }

    #[test]
    fn pages_are_what_lies_within_the_seqs_and_above_the_floor() {
        let table = filled();
        let read = |seqs: (u64, u64), floor, direction| {
            let mut page = Page::new(PageLimit { entries: 3, bytes: 1 << 20 }, direction);
            let seqs = (Seq(seqs.0), Seq(seqs.1));
            table.read(ONE, seqs, Position(floor), &mut page).expect("there is no hole");
            page.into_entries().iter().map(|entry| entry.seq.0).collect::<Vec<_>>()
        };
        let forwards = |from, to| read((from, to), 0, Direction::Forwards);
        assert_eq!(forwards(0, u64::MAX), [10, 11, 12]);
        assert_eq!(forwards(0, 11), [10, 11]);
        assert_eq!(forwards(500, 501), [500, 501]);
        assert_eq!(forwards(1_009, u64::MAX), [1_009]);
        assert_eq!((forwards(0, 9), forwards(1_010, 2_000), forwards(12, 11)), (vec![], vec![], vec![]));
        let backwards = |from, to| read((from, to), 0, Direction::Backwards);
        assert_eq!(backwards(0, u64::MAX), [1_009, 1_008, 1_007]);
        assert_eq!(backwards(500, 501), [501, 500]);
        assert_eq!(backwards(0, 10), [10]);
        // The entry at the floor is kept: 12 lies at position 7.
        assert_eq!(read((0, 100), 7, Direction::Forwards), [12, 13, 14]);
        assert_eq!(read((0, 12), 5, Direction::Backwards), [12]);
    }

    #[test]
    fn ids_are_spread_over_the_whole_hash() {
        let hash = |write: &dyn Fn(&mut IdHasher)| {
            let mut hasher = IdHasher::default();
            write(&mut hasher);
            hasher.finish()
        };
        let distinct = |shift: u32| {
            let bits = (0..1_024_u64).map(|id| hash(&|hasher| hasher.write_u64(id)) >> shift & 0x3ff);
            bits.collect::<std::collections::HashSet<_>>().len()
        };
        // As many as chance gives, and more: 647 of 1,024.
        assert!(distinct(0) > 550 && distinct(54) > 550, "{} {}", distinct(0), distinct(54));
        let pairs = (0..=u16::MAX).map(|pair| hash(&|hasher| hasher.write(&pair.to_le_bytes())));
        assert_eq!(pairs.collect::<std::collections::HashSet<_>>().len(), 1 << 16);
    }
}
