//! Why something was refused: one table, from which numbers, names, faults, verdicts and SPEC's own table follow.
//!
//! Numbers are for ever. One that is retired stays in the table's comments and is never used again.

use std::{borrow::Cow, fmt};

use crate::{ids::MessageId, packet};

/// Whose fault a refusal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The peer broke a rule.
    Peer,
    /// Both are right, but they do not fit together.
    Incompatible,
    /// There is too much to do just now.
    Load,
    /// The world: network, disk, time.
    World,
    /// The operator of the broker, or a bug.
    Operator,
}

/// What the one who is refused does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The same again, with the same id, after `retry_after_ms` or a growing wait.
    Retry,
    /// As retry, on a new connection, which may lead to another broker.
    RetryElsewhere,
    /// Not again: it would be refused again.
    Stop,
    /// The same again once a lower id of that conversation is answered or given up.
    After,
}

macro_rules! reasons {
    ($($number:literal $name:ident $text:literal $fault:ident $scope:ident $verdict:ident $doc:literal;)*) => {
        /// Why something was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason {
            $(#[doc = $doc] $name = $number,)*
        }

        impl Reason {
            /// All of them, by number.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its name in SPEC, logs and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What it means, in one sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $doc,)* }
            }

            /// Whose fault it is.
            #[must_use]
            pub const fn fault(self) -> Fault {
                match self { $(Self::$name => Fault::$fault,)* }
            }

            /// Whether it always ends the connection. (Any refusal that is about no publish and no request does.)
            #[must_use]
            pub const fn ends_connection(self) -> bool {
                match self { $(Self::$name => scope::$scope,)* }
            }

            /// What to do next.
            #[must_use]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$name => Verdict::$verdict,)* }
            }

            /// The reason with this number, if this version knows it.
            #[must_use]
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

mod scope {
    #![expect(non_upper_case_globals, reason = "these are words of the table")]
    pub(super) const ends: bool = true;
    pub(super) const stays: bool = false;
}

reasons! {
    1  Malformed             "malformed"              Peer         ends  Stop           "The bytes are no packet.";
    2  FrameTooLarge         "frame_too_large"        Peer         ends  Stop           "A frame is longer than the limit that holds.";
    3  VersionUnsupported    "version_unsupported"    Incompatible ends  Stop           "The broker does not speak this version.";
    4  Unauthenticated       "unauthenticated"        Peer         ends  Stop           "The token is not valid.";
    5  TokenExpired          "token_expired"          World        ends  Retry          "The token has expired; come back with a new one.";
    6  HandshakeTimeout      "handshake_timeout"      World        ends  Retry          "The handshake took too long.";
    7  HeartbeatTimeout      "heartbeat_timeout"      World        ends  Retry          "Nothing was heard for too long.";
    8  UnexpectedPacket      "unexpected_packet"      Peer         ends  Stop           "This packet must not be sent in this state.";
    9  WindowExceeded        "window_exceeded"        Peer         ends  Stop           "More was sent than the window allows.";
    10 AckOfTheUnsent        "ack_of_the_unsent"      Peer         ends  Stop           "An ack names an item that was not sent.";
    11 AckTimeout            "ack_timeout"            World        ends  Retry          "Items were not acked in time, or twice not stored.";
    12 TakenOver             "taken_over"             World        ends  Stop           "A newer session of this device has taken over.";
    13 Overloaded            "overloaded"             Load         stays Retry          "There is too much to do just now.";
    14 StoreUnavailable      "store_unavailable"      World        stays Retry          "The store takes no writes just now.";
    15 Draining              "draining"               World        ends  RetryElsewhere "The broker is going away.";
    16 UnknownConversation   "unknown_conversation"   Peer         stays Stop           "There is no such conversation for this user.";
    17 Forbidden             "forbidden"              Peer         stays Stop           "The user may see this but not do it.";
    18 StaleId               "stale_id"               Peer         stays Stop           "The id lies below the first unanswered, or below one that is stored there.";
    19 IdConflict            "id_conflict"            Peer         stays Stop           "The id was used for something else.";
    20 After                 "after"                  Peer         stays After          "A lower id of that conversation was refused and is still open.";
    21 PayloadTooLarge       "payload_too_large"      Peer         stays Stop           "The content is larger than the broker takes.";
    22 InvalidArgument       "invalid_argument"       Peer         stays Stop           "A field holds what it must not.";
    23 Unsupported           "unsupported"            Incompatible stays Stop           "The broker does not know this operation.";
    24 IncarnationStale      "incarnation_stale"      Peer         ends  Stop           "The outbox is older than one that the broker has seen of this device.";
    25 TooManyConversations  "too_many_conversations" Incompatible ends  Stop           "Too many conversations have news for a catch-up of everything.";
    26 QuotaExceeded         "quota_exceeded"         Peer         stays Stop           "The user has as many of these as it may.";
    27 RateLimited           "rate_limited"           Load         stays Retry          "The user does this too often.";
    28 Revoked               "revoked"                Operator     ends  Stop           "The right of this device was taken back.";
    29 OutcomeUnknown        "outcome_unknown"        World        stays Retry          "It may be stored or not; repeat the same id to learn it.";
    30 TooManyConnections    "too_many_connections"   Load         ends  Retry          "The broker has as many connections as it takes.";
    31 IdSpanExceeded        "id_span_exceeded"       Peer         stays Stop           "The id lies too far above the first unanswered; settle older ones first.";
    32 Internal              "internal"               Operator     ends  Retry          "The broker failed; the fault is not the client's.";
    33 NameTaken             "name_taken"             Peer         ends  Stop           "The name is somebody's already.";
}

impl Reason {
    /// Its number on the wire.
    #[must_use]
    pub const fn number(self) -> u32 {
        self as u32
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A refusal of a publish, of a request, or, about neither, of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// The publish it is about, or none.
    pub message_id: MessageId,
    /// The request it is about, or 0.
    pub request: u64,
    /// How long to wait before a retry; 0 leaves it to the client's own back-off.
    pub retry_after_ms: u32,
    /// For people; never needed to act.
    pub detail: Cow<'static, str>,
}

impl Refusal {
    /// A refusal of the connection.
    #[must_use]
    pub const fn connection(reason: Reason) -> Self {
        Self { reason, message_id: MessageId::NONE, request: 0, retry_after_ms: 0, detail: Cow::Borrowed("") }
    }

    /// A refusal of a publish.
    #[must_use]
    pub fn publish(message_id: MessageId, reason: Reason) -> Self {
        Self { message_id, ..Self::connection(reason) }
    }

    /// A refusal of a request.
    #[must_use]
    pub fn request(request: u64, reason: Reason) -> Self {
        Self { request, ..Self::connection(reason) }
    }

    /// The same, with words for people.
    #[must_use]
    pub fn because(self, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { detail: detail.into(), ..self }
    }

    /// The same, to be retried no sooner than this.
    #[must_use]
    pub fn retry_after(self, retry_after_ms: u32) -> Self {
        Self { retry_after_ms, ..self }
    }

    /// Whether it ends the connection: it is about no publish and no request.
    #[must_use]
    pub const fn ends_connection(&self) -> bool {
        !self.message_id.is_some() && self.request == 0
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason.name())?;
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

impl From<&Refusal> for packet::Refused {
    fn from(refusal: &Refusal) -> Self {
        Self {
            message_id: refusal.message_id.0,
            request: refusal.request,
            code: refusal.reason.number(),
            retry_after_ms: refusal.retry_after_ms,
            detail: refusal.detail.clone().into_owned(),
        }
    }
}

impl From<packet::Refused> for Refusal {
    /// A number that this version does not know is treated as *internal* (SPEC R10-4).
    fn from(refused: packet::Refused) -> Self {
        Self {
            reason: Reason::from_number(refused.code).unwrap_or(Reason::Internal),
            message_id: MessageId(refused.message_id),
            request: refused.request,
            retry_after_ms: refused.retry_after_ms,
            detail: Cow::Owned(refused.detail),
        }
    }
}
