//! What the store shall forget (see [`Sieve`]): the same as what readers are shown no more, by the same rule.

use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use longwire_protocol::packet::HeadReason;

use super::alteration::{author, withheld};
use super::feed::head_item;
use super::loading::read_blocking;
use super::state::State;
use super::view::Rows as _;
use crate::store::{Origin, Position, ReadError, Sieve, StoredEntry};

/// See the module.
#[derive(Clone, Debug)]
pub struct Sifter {
    state: Arc<RwLock<State>>,
}

impl Sifter {
    /// A sieve that goes by a state.
    #[must_use]
    pub fn new(state: Arc<RwLock<State>>) -> Self {
        Self { state }
    }

    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Sieve for Sifter {
    fn stands_at(&self) -> Position {
        self.read(|state| state.tail)
    }

    fn is_idle(&self, is_thorough: bool) -> bool {
        !is_thorough && self.read(|state| state.schedule().is_empty() && state.erased().is_empty())
    }

    fn sift(&self, entries: &mut [StoredEntry], is_thorough: bool) -> Result<usize, ReadError> {
        let Some(id) = entries.first().map(|entry| entry.conversation) else { return Ok(0) };
        let has_more = self.read(|state| state.schedule().has(id) || !state.erased().is_empty());
        if !has_more && !is_thorough {
            return Ok(0);
        }
        let (first, reasons) = read_blocking(&self.state, |rows| {
            let Some(conversation) = rows.conversation(id) else { return Default::default() };
            let now = rows.state().time;
            let reason = |e: &StoredEntry| withheld(rows, conversation, id, e.seq, now, || author(&e.item));
            (conversation.more.kept.first, entries.iter().map(reason).collect::<Vec<_>>())
        })?;
        for (entry, reason) in entries.iter_mut().zip(reasons) {
            if let Some(reason) = reason {
                blank(entry, reason);
            }
        }
        Ok(entries.partition_point(|entry| entry.seq < first))
    }
}

/// What is left of an entry is its place, its time, and why it is not shown.
fn blank(entry: &mut StoredEntry, reason: HeadReason) {
    let item: Bytes = head_item(entry.conversation, entry.seq, entry.seq, reason, 0);
    *entry = StoredEntry { origin: Origin::default(), digest: 0, item, ..entry.clone() };
}
