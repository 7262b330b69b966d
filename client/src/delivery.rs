//! What the application is handed: items, and the cursor that goes with them.

use std::sync::Arc;

use bytes::Bytes;
use longwire_protocol::packet;

use crate::config::Handover;
use crate::handle::Client;
use crate::intake::Shared;
use crate::settle::Settled;

/// Something that a device is sent, in the order of its lane.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// An entry of a conversation.
    Entry(packet::Entry),
    /// This device's own entry: its message id and the seq that it got.
    Own(packet::Own),
    /// A range of seqs that is not delivered in this session, and why. History has it, unless the reason says it is
    /// gone. After a reconnect entries inside of it may come after all: accept them.
    Skipped(packet::Head),
    /// How far a user has read.
    Mark(packet::Mark),
    /// Everything of this lane that was there at connect has been delivered.
    CaughtUp(packet::Lane),
    /// The broker could not go on from the cursor: what comes next begins at the broker's tail. What lies between is
    /// in history. Comes before everything of the new session.
    Reset(Reset),
    /// The outbox was restored from a copy, and has settled what it held. Told once by the client itself, in front of
    /// what comes next; nothing on the wire, and no cursor, stands for it.
    Settled(Settled),
    /// A kind that this version does not know. Store it like any other, or pass it by.
    Unknown,
}

/// Why a cursor was of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    /// Why.
    pub reason: packet::ResetReason,
    /// After a foreign segment: the time of the last common point, in milliseconds since the log's birth. What the
    /// application holds above it never happened on this broker: discard it.
    pub common_time: u64,
}

impl Item {
    /// The item in a packet; `None` for what means nothing to an application.
    pub(crate) fn from_packet(lane: packet::Lane, item: packet::Item) -> Option<Self> {
        use packet::item::Kind;
        Some(match item.kind {
            Some(Kind::Entry(entry)) => Self::Entry(entry),
            Some(Kind::Own(own)) => Self::Own(own),
            Some(Kind::Head(head)) => Self::Skipped(head),
            Some(Kind::Mark(mark)) => Self::Mark(mark),
            Some(Kind::CaughtUp(_)) => Self::CaughtUp(lane),
            Some(Kind::Progress(_)) => return None,
            None => Self::Unknown,
        })
    }

    /// The conversation and seq of an entry, this device's own or another's.
    #[must_use]
    pub const fn place(&self) -> Option<(u64, u64)> {
        match self {
            Self::Entry(entry) => Some((entry.conversation, entry.seq)),
            Self::Own(own) => Some((own.conversation, own.seq)),
            _ => None,
        }
    }
}

/// Items, in the order they came, and the cursor behind them.
///
/// Store the items, then call [`Delivery::stored`]: the broker is told, and sends more. An application that stores
/// items and cursor in one transaction, and gives that cursor to [`Start::Own`] after a restart, gets everything exactly
/// once if it knows entries by conversation and seq: a cursor covers nothing that it has not stored, but what came
/// shortly before the cursor may come again after a restart. Any other gets everything at least once, in order.
///
/// Deliveries are stored in the order in which they came: storing one says that those before it are stored too. A
/// delivery that is dropped without [`Delivery::stored`] counts as not stored; after the next reconnect its items come
/// again. Within the life of a client nothing that was stored comes twice, however often the connection is lost.
///
/// While a delivery of an earlier connection is neither stored nor dropped, nothing of the next one is handed over: it
/// may be the same.
///
/// [`Start::Own`]: crate::Start::Own
/// [`Handover::WithCursor`]: crate::Handover::WithCursor
#[derive(Debug)]
#[must_use = "a delivery that is not stored comes again"]
pub struct Delivery {
    /// The items, oldest first.
    pub items: Vec<Item>,
    /// When it is there: a place from which nothing is missed once this delivery is stored. Opaque, at most 1 KiB.
    pub cursor: Option<Bytes>,
    pub(crate) number: u64,
    pub(crate) intake: Option<Arc<Shared>>,
}

impl Delivery {
    /// Says that the application has stored this delivery and those before it. Never blocks.
    pub fn stored(mut self) {
        if let Some(shared) = self.intake.take() {
            shared.settle(self.number, true);
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(shared) = self.intake.take() {
            shared.settle(self.number, false);
        }
    }
}

/// The receiving end of a client: what the broker delivers, one [`Delivery`] at a time. Dropping it says that this
/// application does not read: whatever comes is acked and forgotten.
#[derive(Debug)]
pub struct Deliveries {
    pub(crate) shared: Arc<Shared>,
    pub(crate) handover: Handover,
    /// Whoever reads keeps the client alive.
    pub(crate) _client: Client,
}

impl Deliveries {
    /// The next delivery: everything that is there, up to the first cursor. `None` once the client is closed or failed
    /// and all that came before is handed over. Cancel safe: what is not returned stays.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.shared.next(self.handover).await
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        self.shared.abandon();
    }
}
