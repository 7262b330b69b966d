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
        direction: Direction,
        page: &mut Page,
    ) -> Result<(), ReadError> {
        let Some(places) = self.conversations.get(&conversation) else { return Ok(()) };
        let first = places.first.0;
        let begin = from.0.saturating_sub(first).min(places.places.len() as u64) as usize;
        let end = to.0.saturating_add(1).saturating_sub(first).min(places.places.len() as u64) as usize;
        let mut offer = |place: u32| -> Result<bool, ReadError> {
            let entry = self.at(place);
            if entry.position >= floor {
                page.offer(entry.clone())?;
            }
            Ok(page.is_full())
        };
        let wanted = places.places.get(begin..end).unwrap_or_default();
        match direction {
            Direction::Forwards => {
                for &place in wanted {
                    if offer(place)? {
                        break;
                    }
                }
            }
            Direction::Backwards => {
                for &place in wanted.iter().rev() {
                    if offer(place)? {
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
