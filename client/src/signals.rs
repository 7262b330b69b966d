//! What is worth nothing a moment later: signals of conversations, presence, and deliveries. Handed over to whoever listens just then,
//! and forgotten where nobody does.

use bytes::Bytes;
use longwire_protocol::packet::{self, SignalKind};
use tokio::sync::broadcast;

/// Signals that wait for a listener; of more, the oldest are dropped.
pub(crate) const WAITING_MAX: usize = 256;

/// Something that someone does, or is, just now.
#[derive(Clone, Debug, PartialEq)]
pub enum Signal {
    /// In a conversation: believe it for ten seconds, or until `Stopped` or an entry of that user.
    In {
        /// The conversation.
        conversation: u64,
        /// Who.
        user: u64,
        /// What.
        kind: SignalKind,
        /// What the application says with it.
        content: Bytes,
    },
    /// A user's presence, now and each time that it changes: see [`Client::subscribe_presence`].
    ///
    /// [`Client::subscribe_presence`]: crate::Client::subscribe_presence
    Presence(packet::Presence),
    /// A conversation was delivered to a device of a user up to `seq`: see [`Client::follow_receipts`]. Keep the highest.
    ///
    /// [`Client::follow_receipts`]: crate::Client::follow_receipts
    Delivered {
        /// The conversation.
        conversation: u64,
        /// To whom.
        user: u64,
        /// Up to where.
        seq: u64,
    },
}

impl Signal {
    /// What a packet says; `None` where this version does not know what.
    pub(crate) fn from_packet(signal: packet::Signal) -> Option<Self> {
        match (SignalKind::try_from(signal.kind).ok()?, signal.presence) {
            (SignalKind::Presence, presence) => presence.map(Self::Presence),
            (SignalKind::Delivered, _) => {
                let packet::Signal { conversation, user, seq, .. } = signal;
                Some(Self::Delivered { conversation, user, seq })
            }
            (kind, _) => {
                let packet::Signal { conversation, user, content, .. } = signal;
                Some(Self::In { conversation, user, kind, content })
            }
        }
    }
}

/// Signals as they come. Whoever reads slowly misses the oldest; nobody waits for it.
#[derive(Debug)]
pub struct Signals {
    pub(crate) receiver: broadcast::Receiver<Signal>,
}

impl Signals {
    /// The next one. `None` once the client has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<Signal> {
        loop {
            match self.receiver.recv().await {
                Ok(signal) => return Some(signal),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}
