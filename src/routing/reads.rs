//! Reads of entries and rows that may block on the disk, or say that they would have to. Whoever is on a thread that carries
//! connections reads without blocking first, and hands what misses to one that may.

use std::cell::Cell;
use std::sync::RwLock;

use longwire_protocol::{ConversationId, LogTime, Seq};

use super::loading::{read_blocking, try_read};
use super::state::State;
use super::view::Reader;
use crate::store::{History, PageLimit, Position, ReadError, StoredEntry};

/// An entry counts as so many rows that are looked at: it is copied, sealed and sent.
const ENTRY_LOOKS: u32 = 4;
/// The same where a thread that may block reads and decodes a file for it.
const DISK_ENTRY_LOOKS: u32 = 16;

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
        let mut looks = 0;
        let mut read = |rows: &Reader<'_>| {
            let answer = read(rows);
            looks = rows.looks();
            answer
        };
        let answer = match try_read(self.state, &mut read) {
            Ok(answer) => answer,
            Err(_) if !self.may_block => return Err(Miss::Disk),
            Err(_) => read_blocking(self.state, read).map_err(Miss::Failed)?,
        };
        self.count(looks);
        Ok(answer)
    }

    fn count(&self, looks: u32) {
        if let Some(counted) = self.looks {
            counted.set(counted.get().saturating_add(looks));
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
        let (page, each) = match self.history.range_in_memory(conversation, from, to, backwards, limit) {
            Some(page) => (page, ENTRY_LOOKS),
            None if !self.may_block => return Err(Miss::Disk),
            None => {
                let page = self.history.range(conversation, from, to, backwards, limit).map_err(Miss::Failed)?;
                (page, DISK_ENTRY_LOOKS)
            }
        };
        self.count(u32::try_from(page.len()).unwrap_or(u32::MAX).saturating_mul(each));
        Ok(page)
    }

    /// See [`History::first_after`].
    ///
    /// # Errors
    /// See [`Miss`].
    pub(super) fn first_after(&self, conversation: ConversationId, position: Position) -> Result<Option<Seq>, Miss> {
        if let Some(known) = self.history.first_after_in_memory(conversation, position) {
            return Ok(known);
        }
        if !self.may_block {
            return Err(Miss::Disk);
        }
        self.history.first_after(conversation, position).map_err(Miss::Failed)
    }
}
