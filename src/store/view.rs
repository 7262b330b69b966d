//! What readers see: the memtables, the runs and the floor, behind a lock that the commit thread takes for writing once a
//! frame; a reader holds it while it copies a page out of the active memtable and clones what it needs of the rest.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use longwire_protocol::{ConversationId, LogTime, Seq};

use super::figures::Figures;
use super::frame::Frame;
use super::memtable::{IdHasher, Memtable};
use super::page::{Direction, Page};
use super::recent::Recent;
use super::run::{Run, Trust};
use super::sieve::Sieve;
use super::{History, PageLimit, Position, ReadError, StoredEntry};

/// The readers' side of a log.
pub(super) struct View {
    tables: RwLock<Tables>,
    /// What was read from runs lately.
    recent: Recent,
    floor: AtomicU64,
    /// What is to go as memtables and runs are written.
    sieve: OnceLock<Arc<dyn Sieve>>,
    /// Runs that hold entries up to here are to be as the sieve leaves them by a state of there or later.
    purged_upto: AtomicU64,
    /// By the number of a run: it holds nothing that is to go by a state of there.
    looked: Mutex<BTreeMap<u64, Position>>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("tables", &self.tables).field("floor", &self.floor).finish_non_exhaustive()
    }
}

/// What there is to read. Invariant: `runs` and `sealed` are ascending by position and disjoint, `sealed` comes after
/// `runs`, `active` comes last. So of any conversation, too, seqs rise from one to the next.
#[derive(Debug, Default)]
struct Tables {
    active: Memtable,
    sealed: Vec<Arc<Memtable>>,
    runs: Arc<Vec<Arc<Run>>>,
}

/// What a read needs of the older tables after the lock is released.
struct Older {
    sealed: Vec<Arc<Memtable>>,
    runs: Arc<Vec<Arc<Run>>>,
}

impl View {
    /// A view of a store that has these runs, which holds at most so many bytes of what is read from them.
    pub(super) fn of_runs(runs: Vec<Arc<Run>>, recent_bytes: usize) -> Self {
        Self {
            tables: RwLock::new(Tables { runs: Arc::new(runs), ..Tables::default() }),
            recent: Recent::new(recent_bytes),
            floor: AtomicU64::default(),
            sieve: OnceLock::new(),
            purged_upto: AtomicU64::default(),
            looked: Mutex::default(),
        }
    }

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
        let mut within: HashMap<ConversationId, Seq, BuildHasherDefault<IdHasher>> = HashMap::default();
        for entry in frame.entries() {
            let last = match within.insert(entry.conversation, entry.seq) {
                Some(last) => Some(last),
                None => tables.last_seq(entry.conversation),
            };
            if last.is_some_and(|last| last.next() != entry.seq) || entry.seq == Seq::NONE {
                return Some((entry.conversation, entry.seq));
            }
        }
        None
    }

    /// How many entries and bytes the active memtable has.
    pub(super) fn active_size(&self) -> (usize, usize) {
        let tables = self.read();
        (tables.active.len(), tables.active.bytes())
    }

    /// What there is to read.
    pub(super) fn figures(&self) -> Figures {
        let tables = self.read();
        let memtables = || tables.sealed.iter().map(|table| &**table).chain([&tables.active]);
        Figures {
            memtables: memtables().count() as u64,
            memtable_entries: memtables().map(|table| table.len() as u64).sum(),
            memtable_bytes: memtables().map(|table| table.bytes() as u64).sum(),
            runs: tables.runs.len() as u64,
            run_entries: tables.runs.iter().map(|run| run.row().entries).sum(),
            run_bytes: tables.runs.iter().map(|run| run.row().bytes).sum(),
            ..Figures::default()
        }
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

    /// Puts the run that was made of a sealed memtable in its place.
    pub(super) fn replace_sealed(&self, table: &Arc<Memtable>, run: Option<Arc<Run>>) {
        let mut tables = self.write();
        tables.sealed.retain(|sealed| !Arc::ptr_eq(sealed, table));
        if let Some(run) = run {
            Arc::make_mut(&mut tables.runs).push(run);
        }
    }

    /// Puts a run in the place of those that it was merged from, or takes runs away.
    pub(super) fn replace_runs(&self, removed: &[u64], added: Option<Arc<Run>>) {
        let mut tables = self.write();
        let runs = Arc::make_mut(&mut tables.runs);
        runs.retain(|run| !removed.contains(&run.row().number));
        runs.extend(added);
        runs.sort_by_key(|run| run.row().span.first);
        drop(tables);
        self.looked.lock().unwrap_or_else(PoisonError::into_inner).retain(|number, _| !removed.contains(number));
    }

    /// The runs, ascending by position.
    pub(super) fn runs(&self) -> Arc<Vec<Arc<Run>>> {
        Arc::clone(&self.read().runs)
    }

    /// Drops the sealed memtables that are wholly below a position.
    pub(super) fn drop_sealed_below(&self, floor: Position) {
        self.write().sealed.retain(|table| table.span().is_some_and(|span| span.last >= floor));
    }

    /// See [`super::Log::proposed_floor`].
    pub(super) fn proposed_floor(&self, bytes: Option<u64>, time: Option<LogTime>) -> Position {
        let tables = self.read();
        let runs = tables.runs.iter().map(|run| (run.row().span, run.row().bytes));
        let sealed = tables.sealed.iter().filter_map(|table| Some((table.span()?, table.bytes() as u64)));
        let oldest_first: Vec<_> = runs.chain(sealed).collect();
        let mut kept = oldest_first.iter().map(|(_, bytes)| bytes).sum::<u64>() + tables.active.bytes() as u64;
        let mut floor = self.floor();
        for (span, size) in oldest_first {
            let is_too_much = bytes.is_some_and(|most| kept > most);
            let is_too_old = time.is_some_and(|oldest| span.last_time < oldest);
            if !is_too_much && !is_too_old {
                break;
            }
            kept -= size;
            floor = floor.max(Position(span.last.0 + 1));
        }
        floor
    }

    /// See [`super::Log::set_sieve`].
    pub(super) fn set_sieve(&self, sieve: Arc<dyn Sieve>) {
        // There is one for the life of a store.
        drop(self.sieve.set(sieve));
    }

    /// What is to go, once somebody said so.
    pub(super) fn sieve(&self) -> Option<Arc<dyn Sieve>> {
        self.sieve.get().cloned()
    }

    /// See [`super::Log::purge`].
    pub(super) fn purged_upto(&self) -> Position {
        Position(self.purged_upto.load(Relaxed))
    }

    /// Has the background thread go about it.
    pub(super) fn purge(&self, upto: Position) {
        self.purged_upto.store(upto.0, Relaxed);
    }

    /// Whether no memtable holds an entry up to there, and no run one that is still to go.
    pub(super) fn is_purged(&self, upto: Position) -> bool {
        let tables = self.read();
        let mut spans = tables.oldest_first().filter_map(Memtable::span);
        spans.all(|span| span.first > upto) && !tables.runs.iter().any(|run| self.may_hold(run, upto))
    }

    /// Whether a run may hold something that is to go by a state of there.
    pub(super) fn may_hold(&self, run: &Run, upto: Position) -> bool {
        let row = run.row();
        let looked = || self.looked.lock().unwrap_or_else(PoisonError::into_inner).get(&row.number).copied();
        row.span.first <= upto && row.sifted < upto && looked().is_none_or(|looked| looked < upto)
    }

    /// A run holds nothing that is to go by a state of there.
    pub(super) fn note_looked(&self, number: u64, stood_at: Position) {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner).insert(number, stood_at);
    }

    /// What was taken out of the files is to be held no longer: to be called once none of them has it, and before the state
    /// that withheld it forgets it.
    pub(super) fn forget_recent(&self) {
        self.recent.empty();
    }

    /// Whether the active memtable holds an entry up to there.
    pub(super) fn is_active_below(&self, upto: Position) -> bool {
        self.read().active.span().is_some_and(|span| span.first <= upto)
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
        let newest_first = self.oldest_first().rev();
        newest_first.filter_map(|table| table.seqs(conversation)).map(|(_, last)| last).next()
    }

    fn oldest_first(&self) -> impl DoubleEndedIterator<Item = &Memtable> {
        self.sealed.iter().map(|table| &**table).chain(std::iter::once(&self.active))
    }

    /// The conversation's oldest entry in memory.
    fn oldest_of(&self, conversation: ConversationId) -> Option<&StoredEntry> {
        self.oldest_first().find_map(|table| table.first_of(conversation))
    }

    /// Whether no run can have an entry of `conversation` at `position` or above and below the seq `from`.
    fn has_all(&self, conversation: ConversationId, from: Seq, position: Position) -> bool {
        self.runs.last().is_none_or(|newest| newest.row().span.last < position)
            || self
                .oldest_of(conversation)
                .is_some_and(|oldest| oldest.seq <= from.max(Seq(1)) || oldest.position <= position)
    }

    /// Offers what is in memory, the tables in the page's direction, until it wants nothing more.
    fn read_memory(
        &self,
        conversation: ConversationId,
        seqs: (Seq, Seq),
        floor: Position,
        page: &mut Page,
    ) -> Result<(), ReadError> {
        let mut tables = self.oldest_first();
        let backwards = page.direction() == Direction::Backwards;
        while let Some(table) = if backwards { tables.next_back() } else { tables.next() } {
            if page.is_done(seqs) {
                break;
            }
            table.read(conversation, seqs, floor, page)?;
        }
        Ok(())
    }

    fn older(&self) -> Older {
        Older { sealed: self.sealed.clone(), runs: Arc::clone(&self.runs) }
    }
}

impl View {
    fn range_forwards(
        &self,
        conversation: ConversationId,
        seqs: (Seq, Seq),
        limit: PageLimit,
    ) -> Result<Vec<StoredEntry>, ReadError> {
        let floor = self.floor();
        let mut newest = Page::new(limit, Direction::Forwards);
        let older = {
            let tables = self.read();
            if tables.has_all(conversation, seqs.0, floor) {
                tables.read_memory(conversation, seqs, floor, &mut newest)?;
                return Ok(newest.into_entries());
            }
            // The active memtable is copied now, under the lock, since it may have become a run by the time it is needed.
            tables.active.read(conversation, seqs, floor, &mut newest)?;
            tables.older()
        };
        let newest = newest.into_entries();
        settled(seqs, |trust| {
            let mut page = Page::new(limit, Direction::Forwards);
            for run in older.runs.iter().filter(|run| run.row().span.last >= floor) {
                if !page.is_full() {
                    run.read(conversation, seqs, floor, trust, &mut page)?;
                }
            }
            for table in &older.sealed {
                if !page.is_full() {
                    table.read(conversation, seqs, floor, &mut page)?;
                }
            }
            for entry in &newest {
                if !page.is_full() {
                    page.offer(entry.clone())?;
                }
            }
            Ok(page)
        })
    }

    fn range_backwards(
        &self,
        conversation: ConversationId,
        seqs: (Seq, Seq),
        limit: PageLimit,
    ) -> Result<Vec<StoredEntry>, ReadError> {
        let (floor, emptied) = (self.floor(), self.recent.emptied());
        let mut newest = Page::new(limit, Direction::Backwards);
        let older = {
            let tables = self.read();
            tables.read_memory(conversation, seqs, floor, &mut newest)?;
            tables.older()
        };
        if newest.is_done(seqs) {
            return Ok(newest.into_entries());
        }
        let page = settled(seqs, |trust| {
            let mut page = newest.clone();
            for run in older.runs.iter().rev().take_while(|run| run.row().span.last >= floor) {
                if !page.is_done(seqs) {
                    run.read(conversation, seqs, floor, trust, &mut page)?;
                }
            }
            Ok(page)
        })?;
        self.recent.hold(emptied, &page);
        Ok(page)
    }

    /// Offers what is held of what was read lately, from where the page is to go on; `None` where that is not held.
    fn read_recent(
        &self,
        conversation: ConversationId,
        seqs: (Seq, Seq),
        floor: Position,
        page: &mut Page,
    ) -> Option<()> {
        let held = self.recent.get(conversation)?;
        let (from, to) = page.wanted(seqs);
        if from > to {
            return None;
        }
        let (direction, first) = (page.direction(), held.first()?.seq);
        let begin = if direction == Direction::Forwards { from.max(Seq(1)) } else { to };
        // What is held goes on to there: what lies between it and the memtables is in runs.
        let index = usize::try_from(begin.0.checked_sub(first.0)?).ok().filter(|index| *index < held.len())?;
        let mut rest = if direction == Direction::Forwards { &held[index..] } else { &held[..=index] };
        while let Some((entry, others)) = match direction {
            Direction::Forwards => rest.split_first(),
            Direction::Backwards => rest.split_last(),
        } {
            if page.is_done(seqs) {
                break;
            }
            if entry.position < floor {
                return None;
            }
            page.offer(entry.clone()).ok()?;
            rest = others;
        }
        Some(())
    }
}

/// A page of `from..=to` that misses nothing: read by the indexes of the runs first, and by what stands beside them, too, where
/// the page does not show by itself that it is whole.
fn settled(
    seqs: (Seq, Seq),
    mut read: impl FnMut(Trust) -> Result<Page, ReadError>,
) -> Result<Vec<StoredEntry>, ReadError> {
    let mut page = read(Trust::Index)?;
    if !page.is_whole(seqs) {
        page = read(Trust::Neighbours)?;
    }
    Ok(page.into_entries())
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
        match backwards {
            false => self.range_forwards(conversation, (from, to), limit),
            true => self.range_backwards(conversation, (from, to), limit),
        }
    }

    fn first_after(&self, conversation: ConversationId, position: Position) -> Result<Option<Seq>, ReadError> {
        let from = Position(position.0.saturating_add(1)).max(self.floor());
        let (older, newest) = {
            let tables = self.read();
            let newest = tables.oldest_first().find_map(|table| table.first_from(conversation, from));
            (tables.older(), newest.map(|entry| entry.seq))
        };
        for run in older.runs.iter().filter(|run| run.row().span.last >= from) {
            if let Some(seq) = run.first_from(conversation, from)? {
                return Ok(Some(seq));
            }
        }
        Ok(newest)
    }

    fn range_in_memory(
        &self,
        conversation: ConversationId,
        from: Seq,
        to: Seq,
        backwards: bool,
        limit: PageLimit,
    ) -> Option<Vec<StoredEntry>> {
        let (floor, seqs) = (self.floor(), (from, to));
        let mut page = Page::new(limit, if backwards { Direction::Backwards } else { Direction::Forwards });
        {
            let tables = self.read();
            // Backwards the newest may do, whatever lies before them; forwards everything has to be there.
            let has_all = tables.has_all(conversation, from, floor);
            if has_all || backwards {
                tables.read_memory(conversation, seqs, floor, &mut page).ok()?;
            }
            if has_all || page.is_done(seqs) {
                return Some(page.into_entries());
            }
        }
        self.read_recent(conversation, seqs, floor, &mut page)?;
        if !backwards && !page.is_done(seqs) {
            // What is held may have part of what the memtables have.
            let left = page.wanted(seqs);
            self.read().read_memory(conversation, left, floor, &mut page).ok()?;
        }
        page.is_done(seqs).then(|| page.into_entries())
    }

    fn first_after_in_memory(&self, conversation: ConversationId, position: Position) -> Option<Option<Seq>> {
        let from = Position(position.0.saturating_add(1)).max(self.floor());
        let tables = self.read();
        tables.has_all(conversation, Seq(1), from).then(|| {
            tables.oldest_first().find_map(|table| table.first_from(conversation, from)).map(|entry| entry.seq)
        })
    }

    fn floor(&self) -> Position {
        Position(self.floor.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut as _;

    use super::super::frame::{EntryMeta, FrameBuilder};
    use super::super::{Origin, SegmentId};
    use super::*;

    /// A frame of one entry of seven bytes for each conversation and seq; its time is ten times its first position.
    fn frame(first: u64, entries: &[(u64, u64)]) -> Frame {
        let mut builder = FrameBuilder::new(SegmentId(1), Position(first), LogTime(first * 10));
        for &(conversation, seq) in entries {
            let (conversation, seq) = (ConversationId(conversation), Seq(seq));
            let meta = EntryMeta { conversation, seq, origin: Origin::default(), ..EntryMeta::default() };
            builder.push_entry(&meta, |b| b.put_bytes(7, 7));
        }
        builder.finish()
    }

    /// What an entry takes.
    const BYTES: u64 = 7 + 32;

    /// Positions 1 and 2 in a sealed memtable, 3 and 4 in another, 5 in the active one.
    fn three_tables() -> (View, [Arc<Memtable>; 2]) {
        let view = View::of_runs(Vec::new(), 0);
        view.add(&frame(1, &[(1, 1), (2, 1)]));
        let oldest = view.seal();
        view.add(&frame(3, &[(1, 2), (1, 3)]));
        let newest = view.seal();
        view.add(&frame(5, &[(1, 4)]));
        (view, [oldest, newest])
    }

    #[test]
    fn a_floor_is_proposed_where_whole_tables_go() {
        let (view, _) = three_tables();
        let floor = |bytes, time: Option<u64>| view.proposed_floor(bytes, time.map(LogTime)).0;
        assert_eq!((floor(None, None), floor(Some(5 * BYTES), None), floor(None, Some(10))), (0, 0, 0));
        assert_eq!((floor(Some(5 * BYTES - 1), None), floor(Some(3 * BYTES), None)), (3, 3));
        assert_eq!((floor(Some(3 * BYTES - 1), None), floor(Some(0), None)), (5, 5), "the active one stays");
        assert_eq!((floor(None, Some(11)), floor(None, Some(30)), floor(None, Some(31))), (3, 3, 5));
        assert_eq!((floor(Some(3 * BYTES), Some(31)), floor(Some(0), Some(0))), (5, 5), "whichever asks for more");
        view.raise_floor(Position(4));
        assert_eq!((floor(None, None), floor(None, Some(11)), floor(Some(0), None)), (4, 4, 5), "it never falls");
    }

    #[test]
    fn it_says_how_much_memory_holds() {
        let (view, [oldest, newest]) = three_tables();
        let figures = view.figures();
        let memory = (figures.memtables, figures.memtable_entries, figures.memtable_bytes);
        assert_eq!((memory, figures.runs, figures.run_entries, figures.run_bytes), ((3, 5, 5 * BYTES), 0, 0, 0));
        assert_eq!(view.active_size(), (1, BYTES as usize));
        view.replace_sealed(&newest, None);
        assert_eq!(view.figures().memtable_entries, 3);
        view.replace_sealed(&oldest, None);
        assert_eq!(view.figures().memtable_entries, 1);
        view.seal();
        assert_eq!((view.figures().memtables, view.active_size()), (2, (0, 0)));
        view.seal();
        assert_eq!(view.figures().memtables, 2, "nothing is sealed of nothing");
    }

    #[test]
    fn sealed_memtables_wholly_below_a_position_go() {
        for (floor, left) in [(0, 5), (2, 5), (3, 3), (4, 3), (5, 1), (9, 1)] {
            let (view, _) = three_tables();
            view.drop_sealed_below(Position(floor));
            assert_eq!(view.figures().memtable_entries, left, "below {floor}");
        }
    }

    #[test]
    fn it_says_what_memory_holds_up_to_a_position() {
        let (view, tables) = three_tables();
        assert_eq!([4, 5, 6].map(|upto| view.is_active_below(Position(upto))), [false, true, true]);
        assert_eq!([0, 1, 5].map(|upto| view.is_purged(Position(upto))), [true, false, false]);
        for table in &tables {
            view.replace_sealed(table, None);
        }
        assert_eq!([4, 5].map(|upto| view.is_purged(Position(upto))), [true, false]);
        view.seal();
        assert_eq!([4, 5].map(|upto| view.is_purged(Position(upto))), [true, false], "sealed is not gone");
        assert!(!view.is_active_below(Position(9)));
    }

    #[test]
    fn an_entry_that_does_not_continue_its_conversation_is_named() {
        let (view, _) = three_tables();
        let gap = |entries: &[(u64, u64)]| view.first_gap(&frame(6, entries)).map(|(id, seq)| (id.0, seq.0));
        assert_eq!(gap(&[(1, 5), (2, 2), (1, 6), (9, 1), (9, 2)]), None);
        assert_eq!(gap(&[(8, 40), (8, 41)]), None, "of what lies in runs nothing is known");
        for (entries, named) in [
            (&[(1, 4)][..], (1, 4)),
            (&[(1, 6)], (1, 6)),
            (&[(2, 2), (2, 2)], (2, 2)),
            (&[(2, 2), (1, 5), (2, 4)], (2, 4)),
            (&[(9, 0)], (9, 0)),
        ] {
            assert_eq!(gap(entries), Some(named), "{entries:?}");
        }
    }

    #[test]
    fn the_purge_is_up_to_where_it_was_asked_for() {
        let view = View::of_runs(Vec::new(), 0);
        assert_eq!(view.purged_upto(), Position(0));
        view.purge(Position(7));
        view.purge(Position(5));
        assert_eq!(view.purged_upto(), Position(5));
    }
}
