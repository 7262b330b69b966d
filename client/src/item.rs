//! What a device is sent, one by one.

use longwire_protocol::packet;

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
    /// The broker could not go on from the cursor, or the connection was lost before there was one: what comes next
    /// begins at the broker's tail. What lies between is in history. Comes before everything of the new session.
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
