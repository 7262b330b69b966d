//! Reads of entries and rows that may block on the disk, or say that they would have to. Whoever is on a thread that carries
//! connections reads without blocking first, and hands what misses to one that may.

use std::cell::Cell;
use std::sync::RwLock;

use longwire_protocol::{ConversationId, LogTime, Seq};

use super::loading::{read_blocking, try_read};
use super::state::State;
use super::view::Reader;
use crate::store::{History, PageLimit, Position, ReadError, StoredEntry};

/// What is read from the log counts as so many rows that are looked at: each entry as two, and one more for so many bytes,
/// since it is copied, sealed and sent.
const ENTRY_LOOKS: usize = 2;
const LOOK_BYTES: usize = 64;
/// So many times as much where a thread that may block reads and decodes a file for it.
const DISK_TIMES: usize = 4;
/// A look into the files counts as so many, whatever it finds: the change to that thread and back, and their indexes.
const DISK_LOOKS: usize = 400;

/// Why a read gave nothing.
#[derive(Debug)]
pub enum Miss {
    /// It needs the disk, and blocking is not allowed here.
    Disk,
    /// The store failed.
    Failed(ReadError),
}

/// Reads that may block, or not.
#[derive(Clone, Copy)]
pub struct Reads<'a> {
    /// The store.
    pub history: &'a dyn History,
    /// The rows of state.
    pub state: &'a RwLock<State>,
    /// The log's time: what has expired by now is not shown.
    pub now: LogTime,
    /// Whether the disk may be asked.
    pub may_block: bool,
    /// Where the rows and entries that are looked at are counted, if somebody pays for them.
    pub looks: Option<&'a Cell<u32>>,
}

impl Reads<'_> {
    /// Reads rows of state. `read` may be called several times, and only its last answer counts.
    ///
    /// # Errors
    /// See [`Miss`].
    pub fn rows<T>(&self, mut read: impl FnMut(&Reader<'_>) -> T) -> Result<T, Miss> {
        let mut looks = 0_u32;
        let mut read = |rows: &Reader<'_>| {
            let answer = read(rows);
            looks = looks.saturating_add(rows.looks());
            answer
        };
        let answer = match try_read(self.state, &mut read) {
            Ok(answer) => Ok(answer),
            Err(_) if !self.may_block => Err(Miss::Disk),
            Err(_) => read_blocking(self.state, read).map_err(Miss::Failed),
        };
        self.count(looks as usize);
        answer
    }

    fn count(&self, looks: usize) {
        if let Some(counted) = self.looks {
            counted.set(counted.get().saturating_add(u32::try_from(looks).unwrap_or(u32::MAX)));
        }
    }

    /// How many erasures were done since the start: whoever keeps what it read looks whether that has changed.
    ///
    /// # Errors
    /// See [`Miss`].
    pub fn forgotten(&self) -> Result<u64, Miss> {
        self.rows(|rows| rows.state().forgotten())
    }

    /// Reads entries and what is withheld of them: again, if an erasure was done in between.
    ///
    /// # Errors
    /// See [`Miss`].
    pub fn settled<T>(&self, mut read: impl FnMut() -> Result<T, Miss>) -> Result<T, Miss> {
        loop {
            let before = self.forgotten()?;
            let answer = read()?;
            if self.forgotten()? == before {
                return Ok(answer);
            }
        }
    }

    /// See [`History::range`].
    ///
    /// # Errors
    /// See [`Miss`].
    pub fn range(
        &self,
        conversation: ConversationId,
        from: Seq,
        to: Seq,
        backwards: bool,
        limit: PageLimit,
    ) -> Result<Vec<StoredEntry>, Miss> {
        let looks = |page: &[StoredEntry]| {
            page.len() * ENTRY_LOOKS + page.iter().map(|entry| entry.item.len()).sum::<usize>() / LOOK_BYTES
        };
        if let Some(page) = self.history.range_in_memory(conversation, from, to, backwards, limit) {
            self.count(looks(&page));
            return Ok(page);
        }
        if !self.may_block {
            return Err(Miss::Disk);
        }
        let page = self.history.range(conversation, from, to, backwards, limit).map_err(Miss::Failed)?;
        self.count(DISK_LOOKS + DISK_TIMES * looks(&page));
        Ok(page)
    }

    /// See [`History::first_after`].
    ///
    /// # Errors
    /// See [`Miss`].
    pub(super) fn first_after(&self, conversation: ConversationId, position: Position) -> Result<Option<Seq>, Miss> {
        if let Some(known) = self.history.first_after_in_memory(conversation, position) {
            self.count(ENTRY_LOOKS);
            return Ok(known);
        }
        if !self.may_block {
            return Err(Miss::Disk);
        }
        self.count(DISK_LOOKS);
        self.history.first_after(conversation, position).map_err(Miss::Failed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::testing::{Model, SimDisk};
    use crate::store::{Log as _, RedbLog, StoreOptions};

    /// A log whose only conversation lies in a memtable from seq 10 on, and in a run below; its items have 640 bytes.
    fn halves() -> RedbLog {
        let mut log = RedbLog::open_by_hand(Arc::new(SimDisk::default()), StoreOptions::default()).expect("opens");
        let mut model = Model::default();
        for seq in 1..=14 {
            let frame = model.frame_of(&log, &[1], 640);
            model.append(&mut log, &frame);
            if seq == 9 {
                log.seal(model.fold.take_delta());
                while log.work().expect("works") {}
            }
        }
        log
    }

    /// SPEC R8-15: two for an entry and one for each 64 bytes of it, four times as much from the disk, and 400 for each look there,
    /// whatever it finds; what is looked at in vain counts, too.
    #[test]
    fn what_is_read_is_counted_by_what_it_takes() {
        let (history, state) = (halves().history(), RwLock::default());
        let all = PageLimit { entries: 100, bytes: usize::MAX };
        let counted = |may_block, read: &dyn Fn(Reads<'_>)| {
            let looks = Cell::new(0);
            read(Reads { history: &*history, state: &state, now: LogTime(0), may_block, looks: Some(&looks) });
            looks.get()
        };
        let range =
            |from, to| move |reads: Reads<'_>| drop(reads.range(ConversationId(1), Seq(from), Seq(to), false, all));
        assert_eq!(counted(false, &range(10, 14)), 5 * 12);
        assert_eq!(counted(true, &range(10, 14)), 5 * 12);
        assert_eq!(counted(false, &range(1, 5)), 0, "it is left to who may block");
        assert_eq!(counted(true, &range(1, 5)), 400 + 4 * 5 * 12);
        assert_eq!(counted(true, &range(2, 1)), 400, "nothing was there");
        let first = |position| move |reads: Reads<'_>| drop(reads.first_after(ConversationId(1), Position(position)));
        assert_eq!((counted(false, &first(10)), counted(true, &first(1))), (2, 400));
        let rows = |reads: Reads<'_>| {
            let read = reads.rows(|rows| [1, 2, 3].map(|user| rows.duties(longwire_protocol::UserId(user)).len()));
            drop(read.map(|found| assert_eq!(found, [0; 3])));
        };
        assert_eq!(counted(true, &rows), 3);
    }
}
