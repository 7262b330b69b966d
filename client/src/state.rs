//! How a client stands with its broker.

use std::fmt;
use std::time::Duration;

use longwire_protocol::packet;
use longwire_protocol::reason::Refusal;

use crate::error::Failure;
use crate::trust::Untrusted;

/// How a client stands with its broker, as [`Client::states`] tells it.
///
/// ```text
/// Connecting ──▶ Connected ──▶ Waiting ──▶ Connecting …       Closed: the application closed it
///      └────────────────────────▲                             Failed: it will not connect again
/// ```
///
/// [`Client::states`]: crate::Client::states
#[derive(Clone, Debug)]
pub enum State {
    /// An attempt to connect is under way.
    Connecting {
        /// Which one since the last connection that lived for a minute, from 1.
        attempt: u32,
    },
    /// Connected and authenticated.
    Connected(Box<packet::Connected>),
    /// Between two attempts.
    Waiting {
        /// How long from the moment this was told.
        retry_in: Duration,
        /// What ended the last attempt or connection, for people.
        reason: String,
        /// The same as the broker's refusal, where it was one.
        refusal: Option<Refusal>,
        /// The same, where the certificate that was shown is not believed. It is tried again all the same: a proxy or
        /// the login page of a network may have answered in the broker's place.
        untrusted: Option<Untrusted>,
    },
    /// The application closed the client. Final.
    Closed,
    /// The client will not connect again. Final.
    Failed(Failure),
}

impl State {
    /// Whether nothing follows.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Closed | Self::Failed(_))
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting { attempt: 1 } => f.write_str("connecting"),
            Self::Connecting { attempt } => write!(f, "connecting, attempt {attempt}"),
            Self::Connected(_) => f.write_str("connected"),
            Self::Waiting { retry_in, reason, .. } => {
                write!(f, "{reason}; trying again in {:.1} s", retry_in.as_secs_f32())
            }
            Self::Closed => f.write_str("closed"),
            Self::Failed(failure) => failure.fmt(f),
        }
    }
}
