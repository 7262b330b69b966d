//! From a token to a session, and from a connection that is lost to the next attempt.

use std::collections::VecDeque;
use std::time::Duration;

use longwire_protocol::features;
use longwire_protocol::frame::FrameCodec;
use longwire_protocol::limits;
use longwire_protocol::packet::{self, Connect, CursorVerdict, StartKind};
use longwire_protocol::reason::{Reason, Refusal, Verdict};
use longwire_protocol::session::{ClientSession, Millis};
use tokio::time::Instant;

use super::phase::{Online, Phase};
use super::traffic::REFRESH_AT;
use super::{End, Task};
use crate::config::{Start, TokenSource};
use crate::dial::ByteStream;
use crate::error::Failure;
use crate::item::Reset;
use crate::link::{Link, LinkError};
use crate::outbox::{Owner, Unfit};
use crate::state::State;
use crate::trust::Untrusted;

/// What is said of an outbox that the broker has found out.
pub(super) const COPY: &str = "the outbox was restored from a copy: it asks for a new incarnation";

/// Why there is no connection for now: for people, and for who acts on it.
#[derive(Default)]
pub(super) struct Why {
    reason: String,
    refusal: Option<Refusal>,
    untrusted: Option<Untrusted>,
}

impl Why {
    pub(super) fn because(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), ..Self::default() }
    }

    pub(super) fn not_connected(error: &std::io::Error) -> Self {
        match Untrusted::of(error) {
            Some(untrusted) => Self { untrusted: Some(untrusted.clone()), ..Self::because(untrusted.to_string()) },
            None => Self::because(format!("cannot connect: {error}")),
        }
    }
}

impl Task {
    pub(super) fn begin_attempt(&mut self) {
        self.attempt += 1;
        self.set_state(State::Connecting { attempt: self.attempt });
        self.phase = Phase::Token(self.config.token.token());
    }

    pub(super) fn begin_session(&mut self, token: String, stream: Box<dyn ByteStream>) {
        let (start, cursor) = self.start();
        let heartbeat_ms = u32::try_from(self.config.heartbeat.as_millis()).unwrap_or(u32::MAX);
        let login = match &self.config.token {
            TokenSource::Login(login) if token.is_empty() => Some(Box::new(login.packet())),
            _ => None,
        };
        let connect = Connect {
            version: limits::VERSION,
            features: self.config.signals.then(|| features::SIGNALS.to_owned()).into_iter().collect(),
            token,
            device: self.config.device.clone(),
            incarnation: self.outbox.incarnation(),
            first_unanswered: if self.outbox.incarnation() == 0 { 0 } else { self.outbox.first_unanswered() },
            heartbeat_ms,
            express: Some(self.config.express),
            bulk: Some(self.config.bulk),
            item_bytes_max: self.config.item_bytes_max,
            start: start.into(),
            cursor: cursor.to_vec().into(),
            catch_up: self.config.catch_up.into(),
            background: self.config.background,
            agent: self.config.agent.clone(),
            login,
        };
        let phase = Millis(self.random.u64(0..=u64::from(heartbeat_ms)));
        let session = ClientSession::new(self.millis(), connect).with_heartbeat_phase(phase);
        self.phase = Phase::Online(Box::new(Online {
            link: Link::new(stream, session, FrameCodec::default()),
            since: Instant::now(),
            connected: false,
            going: None,
            asked: VecDeque::new(),
            refresh_at: None,
            looked_at: Instant::now(),
        }));
    }

    /// Where the next session starts reading: from the newest cursor that was stored; before there is one, as asked.
    pub(super) fn start(&self) -> (StartKind, bytes::Bytes) {
        match (&self.config.start, self.outbox.cursor()) {
            (Start::Own(cursor), None) => (StartKind::OwnCursor, cursor.clone()),
            (Start::Kept, Some(cursor)) => (StartKind::OwnCursor, cursor.clone()),
            (_, Some(cursor)) if self.began => (StartKind::OwnCursor, cursor.clone()),
            (Start::Own(cursor), Some(_)) => (StartKind::OwnCursor, cursor.clone()),
            (Start::Kept | Start::Stored, _) => (StartKind::StoredCursor, bytes::Bytes::new()),
            (Start::Fresh, _) => (StartKind::Fresh, bytes::Bytes::new()),
        }
    }

    pub(super) fn handle_connected(&mut self, connected: Box<packet::Connected>) -> Result<(), LinkError> {
        let owner = Owner { user: connected.user, birth: connected.birth_unix_ms };
        match self.outbox.connected(owner, connected.incarnation, connected.first_unanswered) {
            Ok(()) => {}
            Err(Unfit::Emptied) => return Err(LinkError::Again("the outbox was another user's, and is empty")),
            Err(Unfit::Copy) => return Err(LinkError::Again(COPY)),
            Err(Unfit::Another) => return Err(LinkError::Failed(Failure::OutboxOfAnother)),
        }
        self.take_token(&connected.token);
        let reset = (connected.cursor() == CursorVerdict::Reset)
            .then(|| Reset { reason: connected.reset_reason(), common_time: connected.reset_common_time });
        // Who asked for the tail is not told that it got it. But a connection after that, still without a cursor, begins
        // at another tail: what was said between the two is not delivered.
        let asked = reset.is_some_and(|reset| reset.reason == packet::ResetReason::Asked);
        self.shared.begin(reset.filter(|_| !asked || self.began));
        self.began = true;
        let refresh_at = match (&self.config.token, connected.token_expires_in_ms) {
            (TokenSource::Fixed(_), _) | (_, 0) => None,
            (_, life) => Some(Instant::now() + Duration::from_millis(life).mul_f64(REFRESH_AT)),
        };
        if let Phase::Online(online) = &mut self.phase {
            online.connected = true;
            online.refresh_at = refresh_at;
        }
        self.requests.connected();
        self.set_state(State::Connected(connected));
        Ok(())
    }

    /// A token that the broker made, where it made one.
    pub(super) fn take_token(&self, token: &str) {
        if let TokenSource::Login(login) = &self.config.token
            && !token.is_empty()
        {
            login.take_token(token);
        }
    }

    /// Whether a password can be tried in place of the token that was refused. A device that was revoked stays so.
    fn has_password_left(&self, reason: Reason) -> bool {
        let is_about_token = matches!(reason, Reason::TokenExpired | Reason::Unauthenticated);
        matches!(&self.config.token, TokenSource::Login(login) if is_about_token && login.forget_token())
    }

    /// The connection, or what was to become one, is gone. `Some` if there will be no other.
    pub(super) fn disconnected(&mut self, error: LinkError) -> Option<End> {
        let mut asked = Duration::ZERO;
        let mut lived = Duration::ZERO;
        if let Phase::Online(online) = &self.phase {
            if online.connected {
                lived = online.since.elapsed();
            }
            asked = online.going.map_or(Duration::ZERO, |(away, _)| away);
        }
        let why = match error {
            LinkError::Failed(failure) => return Some(End::Failed(failure)),
            LinkError::Again(why) => Why::because(why),
            LinkError::Refused(refusal)
                if refusal.reason == Reason::IncarnationStale && self.outbox.begin_settling() =>
            {
                Why::because(COPY)
            }
            LinkError::Refused(refusal) => {
                // A token that has expired and that nobody renews is as good as none.
                let for_ever =
                    refusal.reason == Reason::TokenExpired && !matches!(self.config.token, TokenSource::Provider(_));
                let is_final = for_ever || refusal.reason.verdict() == Verdict::Stop;
                if is_final && !self.has_password_left(refusal.reason) {
                    return Some(End::Failed(Failure::Refused(refusal)));
                }
                asked = asked.max(Duration::from_millis(refusal.retry_after_ms.into()));
                Why { refusal: Some(refusal.clone()), ..Why::because(refusal.to_string()) }
            }
            LinkError::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Why::because("the broker hung up")
            }
            LinkError::Io(error) => Why::because(format!("the connection is lost: {error}")),
        };
        self.outbox.disconnected();
        self.shared.end();
        self.requests.disconnected();
        // Asked anew on the next connection, from where the search stands.
        self.searching = None;
        self.refreshing = None;
        self.wait(lived, asked, why)
    }

    pub(super) fn wait(&mut self, lived: Duration, asked: Duration, why: Why) -> Option<End> {
        let retry_in = self.backoff.delay(lived, asked, &mut self.random);
        if lived >= Duration::from_secs(60) {
            self.attempt = 0;
        }
        let Why { reason, refusal, untrusted } = why;
        tracing::debug!(%reason, ?retry_in, "not connected");
        self.phase = Phase::Waiting(Instant::now() + retry_in);
        self.set_state(State::Waiting { retry_in, reason, refusal, untrusted });
        None
    }
}
