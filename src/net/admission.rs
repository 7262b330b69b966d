//! The way in: from `Connect` to `Connected`. Finds out who the peer is, by its token or its password, has routing
//! attach the device, and looks up where its reading goes on. What comes of it is a session, or a refusal that ends the
//! connection. Knows no socket.

use std::future::Future as _;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};

use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::{BrokerSession, Incarnation, LogTime, MessageId, Millis};
use longwire_protocol::{features, packet};
use zeroize::Zeroize as _;

use super::pump::Live;
use super::{Shared, login, spread};
use crate::auth::{Identity, TokenError};
use crate::clock::Clock;
use crate::routing::grants::{Grants, Patterns};
use crate::routing::loading::{Want, read_blocking, try_read};
use crate::routing::ops::{Attach, Op, Parting, Proof};
use crate::routing::outbox::{Attached, Generation, Outbox, Reply};
use crate::routing::rehearsal::rehearse_attach;
use crate::routing::resume::{self, Wish};
use crate::routing::rows::DeviceCursor;
use crate::routing::stream::Place;
use crate::routing::view::Reader;
use crate::store::ReadError;
use crate::tasks::Task;

/// The least that a client can name as its largest item: a `Head` in the place of one has to fit.
const ITEM_BYTES_MIN: u32 = 64;

/// A password is being looked at.
pub(super) struct LoggingIn {
    user: String,
    connect: packet::Connect,
    outcome: Task<login::Outcome>,
}

impl LoggingIn {
    /// Begins to look.
    ///
    /// # Errors
    /// What is refused without a look at the password.
    pub(super) fn begin(
        login: packet::Login,
        connect: packet::Connect,
        address: IpAddr,
        shared: &Arc<Shared>,
    ) -> Result<Self, Refusal> {
        let user = login.user.clone();
        Ok(Self { user, connect, outcome: login::begin(shared, login, address)? })
    }

    /// The password was looked at: routing is asked, or it was the wrong one. Not to be called again then.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        shared: &Arc<Shared>,
        outbox: &Arc<Outbox>,
    ) -> Poll<Result<Attaching, Refusal>> {
        let outcome = ready!(Pin::new(&mut self.outcome).poll(context));
        let internal = || Refusal::connection(Reason::Internal);
        let attaching = outcome.unwrap_or_else(|_| Err(internal())).and_then(|proof| {
            let accounts = shared.authority.accounts().ok_or_else(internal)?;
            let believed_at = shared.authority.generation();
            let now = shared.clock.unix_ms() / 1_000;
            let connect = std::mem::take(&mut self.connect);
            let identity = Arc::new(accounts.identity(&self.user, &connect.device, now));
            Attaching::begin(connect, (identity, believed_at), proof, shared, outbox)
        });
        Poll::Ready(attaching)
    }
}

/// Routing is asked for a session, and answers in the outbox.
pub(super) struct Attaching {
    identity: Arc<Identity>,
    /// The authority's generation when it was verified, or an earlier one.
    believed_at: u64,
    wish: Wish,
    item_bytes_max: u32,
    /// A token of the broker's own is told with `Connected`.
    mints: bool,
}

/// What a session starts from, and what its client is told of that.
pub(super) struct Start {
    cursor: Result<DeviceCursor, Refusal>,
    connected: packet::Connected,
}

impl Attaching {
    /// Believes a token, and asks.
    ///
    /// # Errors
    /// Why the peer is not let in.
    pub(super) fn by_token(
        mut connect: packet::Connect,
        shared: &Arc<Shared>,
        outbox: &Arc<Outbox>,
    ) -> Result<Self, Refusal> {
        let believed_at = shared.authority.generation();
        let now = shared.clock.unix_ms() / 1_000;
        let identity = shared.authority.verify(&connect.token, now);
        connect.token.zeroize();
        let identity = identity.map_err(token_refusal)?;
        if identity.device.as_deref().is_some_and(|device| device != connect.device) {
            let refusal = Refusal::connection(Reason::Unauthenticated);
            return Err(refusal.because("the token is bound to another device"));
        }
        let proof = proof(&identity, &shared.clock);
        Self::begin(connect, (identity, believed_at), proof, shared, outbox)
    }

    fn begin(
        connect: packet::Connect,
        (identity, believed_at): (Arc<Identity>, u64),
        proof: Proof,
        shared: &Arc<Shared>,
        outbox: &Arc<Outbox>,
    ) -> Result<Self, Refusal> {
        let mints = !matches!(proof, Proof::Token { .. }) || {
            let now = shared.clock.unix_ms() / 1_000;
            shared.authority.accounts().is_some_and(|accounts| accounts.is_aging(&identity, now))
        };
        let attach = Attach {
            user: identity.user.clone(),
            device: connect.device.as_str().into(),
            grants: grants(&identity),
            proof,
            incarnation: Incarnation(connect.incarnation),
            first_unanswered: MessageId(connect.first_unanswered),
            hears_signals: connect.features.iter().any(|feature| feature == features::SIGNALS),
            is_background: connect.background,
            outbox: Arc::clone(outbox),
        };
        let wish = Wish { start: connect.start(), catch_up: connect.catch_up(), cursor: connect.cursor };
        let item_bytes_max = match connect.item_bytes_max {
            0 => u32::MAX,
            max => max.max(ITEM_BYTES_MIN),
        };
        ask(attach, wish.start != packet::StartKind::Fresh, shared)?;
        Ok(Self { identity, believed_at, wish, item_bytes_max, mints })
    }

    /// Routing has attached the device: looks up what its session starts from.
    ///
    /// # Errors
    /// What has to be loaded before.
    pub(super) fn look_up(&self, attached: &Attached, shared: &Shared) -> Result<Start, Vec<Want>> {
        let mut connected = attached.connected.clone();
        let cursor = try_read(&shared.state, |rows| {
            connected.now = rows.state().time.0;
            resume::resume(rows, &shared.segments, attached, &self.wish, &mut connected)
        })?;
        Ok(Start { cursor, connected })
    }

    /// The session begins and its client is told so; or the connection closes, and the session ends with it.
    pub(super) fn admit(
        &mut self,
        attached: Attached,
        start: Start,
        session: &mut BrokerSession<Place>,
        shared: &Shared,
        now: Millis,
    ) -> Live {
        let Start { cursor, mut connected } = start;
        if let Err(refusal) = self.mint(attached.generation, &mut connected, shared) {
            session.close(refusal);
        }
        connected.features = features::ALL.map(str::to_owned).to_vec();
        connected.features.extend(shared.registry.bell.providers().iter().map(|p| p.feature()));
        connected.birth_unix_ms = shared.clock.birth_unix_ms();
        connected.now = shared.clock.log_time().0;
        connected.token_expires_in_ms =
            self.identity.expires.saturating_mul(1_000).saturating_sub(shared.clock.unix_ms());
        let skips = self.wish.catch_up == packet::CatchUpMode::Skip;
        let identity = (Arc::clone(&self.identity), self.believed_at);
        let mut live = Live::new(attached, identity, skips, self.item_bytes_max, now);
        live.bear_what_was_left(shared);
        // It may have been taken back while routing was asked.
        live.check_identity(session, shared, now);
        match cursor {
            Ok(cursor) if !session.is_closed() => {
                live.start(cursor);
                session.accept(now, connected);
            }
            Ok(_) => {}
            Err(refusal) => session.close(refusal),
        }
        live
    }

    /// A token of the broker's own, where one is due: from here on the session goes by it.
    fn mint(
        &mut self,
        generation: Generation,
        connected: &mut packet::Connected,
        shared: &Shared,
    ) -> Result<(), Refusal> {
        let Some(accounts) = shared.authority.accounts().filter(|_| self.mints) else { return Ok(()) };
        let (user, device) = (&self.identity.user, self.identity.device.as_deref().unwrap_or_default());
        let now = shared.clock.unix_ms() / 1_000;
        let minted = accounts.mint(user, device, (generation.user, generation.device), now);
        let (token, identity) = minted.map_err(|error| {
            tracing::error!(error, "no token can be made");
            Refusal::connection(Reason::Internal)
        })?;
        connected.token = token;
        self.identity = Arc::new(identity);
        Ok(())
    }

    /// Nobody waits for the session any more. Routing may not have answered yet: then it finds the outbox abandoned, and
    /// detaches the session itself.
    pub(super) fn end(self, shared: &Shared, outbox: &Outbox) {
        let replies = {
            let mut pending = outbox.lock();
            pending.is_abandoned = true;
            std::mem::take(&mut pending.replies)
        };
        for reply in replies {
            if let Reply::Attached(attached) = reply {
                shared.queue.push_one(Op::Detach(attached.session, None, Parting::Lost));
            }
        }
    }
}

/// Asks routing, once what it will look at is loaded.
fn ask(attach: Attach, resumes: bool, shared: &Arc<Shared>) -> Result<(), Refusal> {
    let look = move |rows: &Reader<'_>, attach: &Attach| {
        rehearse_attach(rows, &attach.user, &attach.device, resumes);
    };
    if try_read(&shared.state, |rows| look(rows, &attach)).is_ok() {
        shared.queue.push_one(Op::Attach(Box::new(attach)));
        return Ok(());
    }
    let outbox = Arc::clone(&attach.outbox);
    let attach = Op::Attach(Box::new(attach));
    let Some(reserved) = shared.queue.reserve(std::slice::from_ref(&attach)) else {
        return Err(Refusal::connection(Reason::Overloaded).retry_after(spread(500, 2_000)));
    };
    let shared_too = Arc::clone(shared);
    drop(shared.tasks.run(move || {
        let _reserved = reserved;
        // Nobody waits for it any more.
        if outbox.lock().is_abandoned {
            return;
        }
        let Op::Attach(attach) = attach else { return };
        match read_blocking(&shared_too.state, |rows| look(rows, &attach)) {
            Ok(()) => shared_too.queue.push_one(Op::Attach(attach)),
            Err(error) => unreadable(&outbox, &error),
        }
    }));
    Ok(())
}

/// The connection ends, since what it needs cannot be read.
pub(super) fn unreadable(outbox: &Outbox, error: &ReadError) {
    tracing::error!(%error, "rows of state cannot be read");
    outbox.close(Refusal::connection(Reason::Internal));
}

/// The refusal of a token.
pub(super) fn token_refusal(error: TokenError) -> Refusal {
    let reason = match error {
        TokenError::Expired => Reason::TokenExpired,
        TokenError::Revoked => Reason::Revoked,
        _ => Reason::Unauthenticated,
    };
    Refusal::connection(reason).because(error.to_string())
}

/// What routing is told of a token.
pub(super) fn proof(identity: &Identity, clock: &Clock) -> Proof {
    let issued = identity.issued.saturating_mul(1_000).saturating_sub(clock.birth_unix_ms());
    let generation = identity.generation.map(|(user, device)| Generation { user, device });
    Proof::Token { issued: LogTime(issued), generation }
}

/// What an identity may do with channels.
pub(super) fn grants(identity: &Identity) -> Arc<Grants> {
    /// Most tokens say nothing of channels: those share one.
    static NONE: LazyLock<Arc<Grants>> = LazyLock::new(Arc::default);
    let patterns = [&identity.publish, &identity.read, &identity.moderate];
    if patterns.iter().all(|patterns| patterns.is_empty()) && !identity.is_admin {
        return Arc::clone(&NONE);
    }
    Arc::new(Grants {
        publish: Patterns::new(identity.publish.iter().map(String::as_str)),
        read: Patterns::new(identity.read.iter().map(String::as_str)),
        moderate: Patterns::new(identity.moderate.iter().map(String::as_str)),
        is_admin: identity.is_admin,
    })
}
