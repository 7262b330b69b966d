//! How far a connection has come, and what is waited for there.

use std::collections::VecDeque;
use std::future::pending;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::config::TokenFuture;
use crate::dial::{ByteStream, Dialing};
use crate::link::Link;

/// How far a connection has come.
pub(super) enum Phase {
    /// The token is being asked for.
    Token(TokenFuture),
    /// The socket is being made.
    Dialing { token: String, dialing: Dialing },
    /// Bytes flow; `connected` once the broker has let this device in.
    Online(Box<Online>),
    /// Until the next attempt.
    Waiting(Instant),
}

pub(super) struct Online {
    pub(super) link: Link,
    pub(super) since: Instant,
    pub(super) connected: bool,
    /// The broker goes away: how long to stay away, and until when this connection may last.
    pub(super) going: Option<(Duration, Instant)>,
    /// Ack requests that the application has not settled: k, and when to answer in any case.
    pub(super) asked: VecDeque<(u64, Instant)>,
    pub(super) refresh_at: Option<Instant>,
    /// When it was last looked what the outbox may send.
    pub(super) looked_at: Instant,
}

/// What happened in a phase.
pub(super) enum Step {
    Token(Result<String, String>),
    Dialed(String, std::io::Result<Box<dyn ByteStream>>),
    /// Whether anything was read.
    Turned(std::io::Result<bool>),
    /// A deadline passed.
    Time,
}

impl Phase {
    /// The next thing that happens, at the latest when `wake` comes. Cancel safe: futures stay where they are.
    pub(super) async fn step(&mut self, wake: Option<Instant>) -> Step {
        let time = async {
            match wake {
                Some(wake) => sleep_until(wake).await,
                None => pending().await,
            }
        };
        let step = async {
            match self {
                Self::Waiting(_) => pending().await,
                Self::Token(token) => Step::Token(token.await),
                Self::Dialing { token, dialing } => {
                    let dialed = dialing.await;
                    // Not before: a step that is given up half way is begun again.
                    Step::Dialed(std::mem::take(token), dialed)
                }
                Self::Online(online) => Step::Turned(online.link.turn().await),
            }
        };
        tokio::select! {
            step = step => step,
            () = time => Step::Time,
        }
    }
}
