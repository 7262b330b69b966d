//! What readers see: the memtables and the floor, behind the one lock of the store that readers take. The
//! commit thread takes it for writing once a frame; a reader holds it while it copies a page out of the active memtable
//! and clones what it needs of the rest.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use longwire_protocol::{ConversationId, LogTime, Seq};

use super::frame::Frame;
use super::memtable::Memtable;
use super::page::{Direction, Page};
use super::{History, PageLimit, Position, ReadError, StoredEntry};

/// The readers' side of a log.
#[derive(Debug, Default)]
pub(super) struct View {
    tables: RwLock<Tables>,
    floor: AtomicU64,
}

/// The memtables. Invariant: `sealed` is ascending by position, `active` comes after.
#[derive(Debug, Default)]
struct Tables {
    active: Memtable,
    sealed: Vec<Arc<Memtable>>,
}

impl View {
    /// Makes a committed frame's entries visible.
    pub(super) fn add(&self, frame: &Frame) {
        let mut tables = self.write();
        for entry in frame.entries() {
            tables.active.push(entry.clone());
        }
    }

    /// Whether the frame's entries continue their conversations, as far as the memtables know them.
    pub(super) fn first_gap(&self, frame: &Frame) -> Option<(ConversationId, Seq)> {
        let tables = self.read();
        let mut before: Vec<(ConversationId, Seq)> = Vec::new();
        for entry in frame.entries() {
            let within = before.iter().rev().find(|(conversation, _)| *conversation == entry.conversation);
            let last = within.map(|&(_, seq)| seq).or_else(|| tables.last_seq(entry.conversation));
            if last.is_some_and(|last| last.next() != entry.seq) || entry.seq == Seq::NONE {
                return Some((entry.conversation, entry.seq));
            }
            before.push((entry.conversation, entry.seq));
        }
        None
    }

    /// How many entries and bytes the active memtable has.
    pub(super) fn active_size(&self) -> (usize, usize) {
        let tables = self.read();
        (tables.active.len(), tables.active.bytes())
    }

    /// Seals the active memtable.
    pub(super) fn seal(&self) -> Arc<Memtable> {
        let mut tables = self.write();
        let fresh = Memtable::like(&tables.active);
        let sealed = Arc::new(std::mem::replace(&mut tables.active, fresh));
        if !sealed.is_empty() {
            tables.sealed.push(Arc::clone(&sealed));
        }
        sealed
    }

    /// Drops the sealed memtables that are wholly below a position.
    pub(super) fn drop_sealed_below(&self, floor: Position) {
        self.write().sealed.retain(|table| table.span().is_some_and(|span| span.last >= floor));
    }

    /// See [`super::Log::proposed_floor`].
    pub(super) fn proposed_floor(&self, bytes: Option<u64>, time: Option<LogTime>) -> Position {
        let tables = self.read();
        let mut kept: u64 = tables.oldest_first().map(|table| table.bytes() as u64).sum();
        let mut floor = self.floor();
        for (span, table) in tables.sealed.iter().filter_map(|table| Some((table.span()?, table))) {
            let is_too_much = bytes.is_some_and(|most| kept > most);
            let is_too_old = time.is_some_and(|oldest| span.last_time < oldest);
            if !is_too_much && !is_too_old {
                break;
            }
            kept -= table.bytes() as u64;
            floor = floor.max(Position(span.last.0 + 1));
        }
        floor
    }

    /// Raises the floor.
    pub(super) fn raise_floor(&self, floor: Position) {
        self.floor.fetch_max(floor.0, Relaxed);
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    fn last_seq(&self, conversation: ConversationId) -> Option<Seq> {
        let newest_first = std::iter::once(&self.active).chain(self.sealed.iter().rev().map(|table| &**table));
        newest_first.filter_map(|table| table.seqs(conversation)).map(|(_, last)| last).next()
    }

    fn oldest_first(&self) -> impl DoubleEndedIterator<Item = &Memtable> {
        self.sealed.iter().map(|table| &**table).chain(std::iter::once(&self.active))
    }
}

impl History for View {
    fn range(
        &self,
        conversation: ConversationId,
        from: Seq,
        to: Seq,
        backwards: bool,
        limit: PageLimit,
    ) -> Result<Vec<StoredEntry>, ReadError> {
        let direction = if backwards { Direction::Backwards } else { Direction::Forwards };
        let floor = self.floor();
        let tables = self.read();
        let mut page = Page::new(limit, direction);
        let mut offer = |table: &Memtable| match page.is_full() {
            true => Ok(()),
            false => table.read(conversation, (from, to), floor, direction, &mut page),
        };
        match direction {
            Direction::Forwards => tables.oldest_first().try_for_each(&mut offer)?,
            Direction::Backwards => tables.oldest_first().rev().try_for_each(&mut offer)?,
        }
        Ok(page.into_entries())
    }

    fn first_after(&self, conversation: ConversationId, position: Position) -> Result<Option<Seq>, ReadError> {
        let from = Position(position.0 + 1).max(self.floor());
        let tables = self.read();
        Ok(tables.oldest_first().find_map(|table| table.first_from(conversation, from)).map(|entry| entry.seq))
    }

    fn range_in_memory(
        &self,
        conversation: ConversationId,
        from: Seq,
        to: Seq,
        limit: PageLimit,
    ) -> Option<Vec<StoredEntry>> {
        self.range(conversation, from, to, false, limit).ok()
    }

    fn first_after_in_memory(&self, conversation: ConversationId, position: Position) -> Option<Option<Seq>> {
        self.first_after(conversation, position).ok()
    }

    fn floor(&self) -> Position {
        Position(self.floor.load(Relaxed))
    }
}
