//! What a device is sent, encoded: entries as they are shared, its own ones in short, and what stands in the place of one.

use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use longwire_protocol::packet::{self, item};
use longwire_protocol::{ConversationId, Incarnation, Seq, UserId};

use super::outbox::{Pending, Session};
use crate::store::StoredEntry;

/// What a session is sent for an entry: the shared bytes, or, if it is the device's own, an `Own`.
#[must_use]
pub fn item_for(pending: &Pending, session: &Session, entry: &StoredEntry) -> Bytes {
    if entry.origin.device == session.device {
        let device_has = pending.device_has(session, entry.origin.incarnation, entry.origin.message_id);
        own_item(session.incarnation, entry, device_has, &mut BytesMut::new())
    } else {
        entry.item.clone()
    }
}

/// An entry of the device itself, in a session of this incarnation. With its content it is written into `room`.
#[must_use]
pub fn own_item(of_session: Incarnation, entry: &StoredEntry, device_has_content: bool, room: &mut BytesMut) -> Bytes {
    let incarnation = entry.origin.incarnation;
    let own = packet::Own {
        conversation: entry.conversation.0,
        seq: entry.seq.0,
        message_id: entry.origin.message_id.0,
        time: entry.time.0,
        incarnation: if incarnation == of_session { 0 } else { incarnation.0 },
        entry: None,
    };
    match device_has_content {
        true => packet::encode_item(item::Kind::Own(own)),
        false => packet::encode_own(&own, &entry.item, room),
    }
}

/// A `Mark` of a user; 0 for the device's own.
#[must_use]
pub fn mark_item(conversation: ConversationId, user: UserId, seq: Seq) -> Bytes {
    packet::encode_item(item::Kind::Mark(packet::Mark {
        conversation: conversation.0,
        user: user.0,
        seq: seq.0,
        delivered: 0,
    }))
}

/// A `Head`: a range that is not sent, and why.
#[must_use]
pub fn head_item(conversation: ConversationId, from: Seq, to: Seq, reason: packet::HeadReason, bytes: usize) -> Bytes {
    packet::encode_item(item::Kind::Head(packet::Head {
        conversation: conversation.0,
        from_seq: from.0,
        to_seq: to.0,
        reason: reason.into(),
        item_bytes: bytes as u64,
    }))
}

/// The `CaughtUp` that ends a lane's backlog.
pub static CAUGHT_UP_ITEM: LazyLock<Bytes> =
    LazyLock::new(|| packet::encode_item(item::Kind::CaughtUp(packet::CaughtUp {})));

/// A `Progress`: nothing for this device up to here.
pub static PROGRESS_ITEM: LazyLock<Bytes> =
    LazyLock::new(|| packet::encode_item(item::Kind::Progress(packet::Progress {})));
