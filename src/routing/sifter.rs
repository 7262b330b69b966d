//! What the store shall forget (see [`Sieve`]): the same as what readers are shown no more, by the same rule.

use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use longwire_protocol::packet::{HeadReason, Item, item};
use longwire_protocol::{ConversationId, Seq};
use prost::Message as _;

use super::alteration::{author, withheld};
use super::items::head_item;
use super::loading::read_blocking;
use super::state::State;
use super::view::Rows as _;
use crate::store::{Left, Origin, Position, ReadError, Sieve, StoredEntry};

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

    /// The first entry that a conversation keeps, and why each of these is shown to nobody.
    fn reasons(
        &self,
        id: ConversationId,
        entries: &[StoredEntry],
    ) -> Result<(Seq, Vec<Option<HeadReason>>), ReadError> {
        read_blocking(&self.state, |rows| {
            let Some(conversation) = rows.conversation(id) else { return (Seq(0), vec![None; entries.len()]) };
            let now = rows.state().time;
            let reason = |e: &StoredEntry| withheld(rows, conversation, id, e.seq, now, || author(&e.item));
            (conversation.more.kept.first, entries.iter().map(reason).collect())
        })
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
        let (first, reasons) = self.reasons(id, entries)?;
        for (entry, reason) in entries.iter_mut().zip(reasons) {
            if let Some(reason) = reason {
                blank(entry, reason);
            }
        }
        Ok(entries.partition_point(|entry| entry.seq < first))
    }

    fn among(&self) -> Option<Vec<ConversationId>> {
        // What who is erased published may be in any.
        self.read(|state| state.erased().is_empty().then(|| state.schedule().all()))
    }

    fn left(&self, entries: &[StoredEntry]) -> Result<Left, ReadError> {
        let Some(id) = entries.first().map(|entry| entry.conversation) else { return Ok(Left::Gone) };
        let (first, reasons) = self.reasons(id, entries)?;
        let mut held = entries.iter().zip(reasons);
        if held.any(|(entry, reason)| reason.is_some() && !is_blank(entry)) {
            return Ok(Left::ToGo);
        }
        let is_kept = entries.last().is_some_and(|entry| entry.seq >= first);
        Ok(if is_kept { Left::Kept } else { Left::Gone })
    }
}

/// What is left of an entry is its place, its time, and why it is not shown.
fn blank(entry: &mut StoredEntry, reason: HeadReason) {
    let item: Bytes = head_item(entry.conversation, entry.seq, entry.seq, reason, 0);
    *entry = StoredEntry { origin: Origin::default(), digest: 0, item, ..entry.clone() };
}

/// Whether nothing but its place is left of an entry.
fn is_blank(entry: &StoredEntry) -> bool {
    Item::decode(&entry.item[..]).is_ok_and(|item| matches!(item.kind, Some(item::Kind::Head(_))))
}
