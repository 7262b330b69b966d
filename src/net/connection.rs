//! One connection: a future that carries bytes between a socket and a session, and everything else through
//! `Live`. At rest it owns the session, the TLS state and its outbox; buffers belong to the thread, and only a
//! partial frame or bytes that the socket does not take yet own memory.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use longwire_protocol::frame;
use longwire_protocol::limits::CURSOR_BYTES_MAX;
use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::{
    Asked, BrokerEvent, BrokerSession, Frame, FrameCodec, Incarnation, LogTime, MessageId, Millis,
};
use longwire_protocol::{features, packet};
use tokio_util::codec::Decoder as _;
use tokio_util::io::poll_read_buf;

use super::Shared;
use super::login;
use super::pump::{Live, NEVER};
use super::stream::ByteStream;
use super::wheel::slot;
use crate::auth::{Identity, TokenError};
use crate::clock::Clock;
use crate::metrics::words::Method;
use crate::routing::core::{Attach, Op, Parting, Proof};
use crate::routing::grants::{Grants, Patterns};
use crate::routing::loading::{Want, load, read_blocking, try_read};
use crate::routing::outbox::{Generation, Outbox, Reply};
use crate::routing::rehearsal::rehearse_attach;
use crate::routing::resume::{self, Wish};
use crate::routing::stream::Place;
use crate::routing::view::Reader;
use crate::store::ReadError;
use crate::tasks::Task;

/// What one turn reads at most before others get theirs.
const TURN_BYTES_MAX: usize = 256 << 10;
/// What is written at once: a TLS record.
const WRITE_BYTES: usize = 16 << 10;
/// The thread's read buffer.
const READ_BYTES: usize = 64 << 10;
/// A publish keeps what it came in until it is committed. So much is copied into memory of its own size, which is cheaper
/// than a new buffer for the thread, and takes no more than was read.
const COPIED_BYTES_MAX: usize = 16 << 10;
/// The least that a client can name as its largest item: a `Head` in the place of one has to fit.
const ITEM_BYTES_MIN: u32 = 64;
/// How long nothing was said before a connection is at rest.
const QUIET_MS: u64 = 2_000;
/// How long a connection that ends may take to hand over its last bytes.
const LINGER_MS: u64 = 2_000;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The buffers of a worker thread, shared by its connections, one poll at a time.
#[derive(Default)]
struct Scratch {
    read: BytesMut,
    write: BytesMut,
}

/// See the module. Resolves when the connection has ended and its session is detached.
pub struct Connection<S> {
    io: S,
    session: BrokerSession<Place>,
    codec: FrameCodec,
    /// The beginning of a frame, if there is one.
    partial: Option<Box<BytesMut>>,
    /// What the socket did not take yet.
    unsent: Option<Box<BytesMut>>,
    outbox: Arc<Outbox>,
    shared: Arc<Shared>,
    stage: Stage,
    /// The deadline that the wheel knows, or [`NEVER`].
    armed: Millis,
    /// Since when it only hands over its last bytes, or [`NEVER`].
    ending: Millis,
    /// When what is not in use is given back, unless something is under way then; [`NEVER`] once that was done.
    rest_at: Millis,
    /// How it said who it is, until it is let in.
    asked: Option<Method>,
    /// Where the peer is: who tries passwords from there is counted.
    address: IpAddr,
}

enum Stage {
    /// Waits for `Connect`.
    Waiting,
    /// A password is being looked at.
    LoggingIn(Box<LoggingIn>),
    /// Routing is asked.
    Attaching(Box<Attaching>),
    /// It has a session.
    Live(Box<Live>),
    /// It has none any more.
    Gone,
}

struct LoggingIn {
    user: String,
    connect: packet::Connect,
    outcome: Task<login::Outcome>,
}

struct Attaching {
    identity: Arc<Identity>,
    /// The authority's generation when it was verified, or an earlier one.
    believed_at: u64,
    wish: Wish,
    item_bytes_max: u32,
    /// A token of the broker's own is told with `Connected`.
    mints: bool,
}

impl<S: ByteStream> Connection<S> {
    /// A connection over a stream that was accepted then: what was spent on TLS counts as time to connect.
    #[must_use]
    pub fn new(io: S, accepted: Millis, shared: Arc<Shared>) -> Self {
        Self {
            io,
            session: BrokerSession::new(accepted, shared.limits),
            codec: FrameCodec::default(),
            partial: None,
            unsent: None,
            outbox: Arc::new(Outbox::default()),
            shared,
            stage: Stage::Waiting,
            armed: NEVER,
            ending: NEVER,
            rest_at: NEVER,
            asked: None,
            address: Ipv4Addr::UNSPECIFIED.into(),
        }
    }

    /// The same, from this address.
    #[must_use]
    pub fn from_address(mut self, address: IpAddr) -> Self {
        self.address = address;
        self
    }

    /// Reads what has arrived and hands it to the session. Returns whether the peer has closed.
    fn read(&mut self, context: &mut Context<'_>, scratch: &mut BytesMut, now: Millis) -> Result<ReadEnd, ()> {
        let mut taken = 0;
        while taken < TURN_BYTES_MAX {
            scratch.clear();
            scratch.reserve(READ_BYTES);
            match poll_read_buf(Pin::new(&mut self.io), context, scratch) {
                Poll::Pending => return Ok(ReadEnd::Drained),
                Poll::Ready(Err(_) | Ok(0)) => return Ok(ReadEnd::Closed),
                Poll::Ready(Ok(n)) => taken += n,
            }
            self.session.handle_bytes(now);
            match self.partial.take() {
                None if scratch.len() <= COPIED_BYTES_MAX && frame::begins_with_publish(scratch) => {
                    let mut own = BytesMut::from(&scratch[..]);
                    self.decode(&mut own, now)?;
                    if !own.is_empty() {
                        self.partial = Some(Box::new(BytesMut::from(&own[..])));
                    }
                }
                None => {
                    self.decode(scratch, now)?;
                    if !scratch.is_empty() {
                        self.partial = Some(Box::new(BytesMut::from(&scratch[..])));
                    }
                }
                Some(mut partial) => {
                    partial.extend_from_slice(scratch);
                    self.decode(&mut partial, now)?;
                    self.partial = Some(partial).filter(|partial| !partial.is_empty());
                }
            }
        }
        Ok(ReadEnd::More)
    }

    fn decode(&mut self, bytes: &mut BytesMut, now: Millis) -> Result<(), ()> {
        loop {
            match self.codec.decode(bytes) {
                Ok(Some((frame, size))) => {
                    // A heartbeat says that the client has nothing to say.
                    self.rest_at = if matches!(frame, Frame::Heartbeat) { now } else { now.after(QUIET_MS) };
                    let mut event = self.session.handle_frame(now, frame, size).map_err(drop)?;
                    while let Some(happened) = event {
                        self.handle(happened, now);
                        event = self.session.poll_event();
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    self.session.close(error.refusal());
                    return Err(());
                }
            }
        }
        if let Stage::Live(live) = &mut self.stage {
            live.flush_ops(&mut self.session, &self.shared, now);
        }
        Ok(())
    }

    fn handle(&mut self, event: BrokerEvent<Place>, now: Millis) {
        match (event, &mut self.stage) {
            (BrokerEvent::Connect(connect), Stage::Waiting) => self.connect(*connect),
            (event, Stage::Live(live)) => live.handle(event, &mut self.session, &self.shared, now),
            // The session lets nothing else through before it is open.
            _ => {}
        }
    }

    fn connect(&mut self, mut connect: packet::Connect) {
        if self.shared.draining.load(Ordering::Relaxed) {
            return self.session.close(Refusal::connection(Reason::Draining).retry_after(spread(1_000, 5_000)));
        }
        if let Some(login) = connect.login.take() {
            let user = login.user.clone();
            self.asked = Some(if login.register { Method::Registration } else { Method::Password });
            return match login::begin(&self.shared, *login, self.address) {
                Ok(outcome) => self.stage = Stage::LoggingIn(Box::new(LoggingIn { user, connect, outcome })),
                Err(refusal) => self.session.close(refusal),
            };
        }
        self.asked = Some(Method::Token);
        let believed_at = self.shared.authority.generation();
        let identity = match self.shared.authority.verify(&connect.token, self.shared.clock.unix_ms() / 1_000) {
            Ok(identity) => identity,
            Err(error) => return self.session.close(token_refusal(error)),
        };
        if identity.device.as_deref().is_some_and(|device| device != connect.device) {
            let refusal = Refusal::connection(Reason::Unauthenticated);
            return self.session.close(refusal.because("the token is bound to another device"));
        }
        let proof = proof(&identity, &self.shared.clock);
        self.attach(connect, identity, believed_at, proof);
    }

    /// The password was looked at.
    fn take_login(&mut self, context: &mut Context<'_>) {
        let Stage::LoggingIn(waits) = &mut self.stage else { return };
        let Poll::Ready(outcome) = Pin::new(&mut waits.outcome).poll(context) else { return };
        let Stage::LoggingIn(waited) = std::mem::replace(&mut self.stage, Stage::Gone) else { return };
        let LoggingIn { user, connect, .. } = *waited;
        if self.session.is_closed() {
            return;
        }
        let proof = match outcome {
            Ok(Ok(proof)) => proof,
            Ok(Err(refusal)) => return self.session.close(refusal),
            Err(_) => return self.session.close(Refusal::connection(Reason::Internal)),
        };
        let Some(accounts) = self.shared.authority.accounts() else { return };
        let believed_at = self.shared.authority.generation();
        let now = self.shared.clock.unix_ms() / 1_000;
        let identity = Arc::new(accounts.identity(&user, &connect.device, now));
        self.attach(connect, identity, believed_at, proof);
    }

    fn attach(&mut self, connect: packet::Connect, identity: Arc<Identity>, believed_at: u64, proof: Proof) {
        let mints = !matches!(proof, Proof::Token { .. }) || {
            let now = self.shared.clock.unix_ms() / 1_000;
            self.shared.authority.accounts().is_some_and(|accounts| accounts.is_aging(&identity, now))
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
            outbox: Arc::clone(&self.outbox),
        };
        let wish = Wish { start: connect.start(), catch_up: connect.catch_up(), cursor: connect.cursor };
        let item_bytes_max = match connect.item_bytes_max {
            0 => u32::MAX,
            max => max.max(ITEM_BYTES_MIN),
        };
        let resumes = wish.start != packet::StartKind::Fresh;
        self.stage = Stage::Attaching(Box::new(Attaching { identity, believed_at, wish, item_bytes_max, mints }));
        let look = move |rows: &Reader<'_>, attach: &Attach| {
            rehearse_attach(rows, &attach.user, &attach.device, resumes);
        };
        if try_read(&self.shared.state, |rows| look(rows, &attach)).is_ok() {
            return self.shared.queue.push_one(Op::Attach(Box::new(attach)));
        }
        let attach = Op::Attach(Box::new(attach));
        let Some(reserved) = self.shared.queue.reserve(std::slice::from_ref(&attach)) else {
            return self.session.close(Refusal::connection(Reason::Overloaded).retry_after(spread(500, 2_000)));
        };
        let (shared, outbox) = (Arc::clone(&self.shared), Arc::clone(&self.outbox));
        drop(self.shared.tasks.run(move || {
            let _reserved = reserved;
            // Nobody waits for it any more.
            if outbox.lock().is_abandoned {
                return;
            }
            let Op::Attach(attach) = attach else { return };
            match read_blocking(&shared.state, |rows| look(rows, &attach)) {
                Ok(()) => shared.queue.push_one(Op::Attach(attach)),
                Err(error) => unreadable(&outbox, &error),
            }
        }));
    }

    /// Takes what routing has answered.
    fn take_replies(&mut self, now: Millis) {
        let (mut replies, closing, goaway) = {
            let mut pending = self.outbox.lock();
            if let Stage::Live(live) = &mut self.stage {
                live.has_ephemeral = pending.ephemeral.is_some();
            }
            let replies = if pending.is_loading { VecDeque::new() } else { std::mem::take(&mut pending.replies) };
            (replies, pending.closing.take(), pending.goaway.take())
        };
        while let Some(reply) = replies.pop_front() {
            match reply {
                Reply::Ack(ack) => self.session.acknowledge(ack),
                Reply::Refused(refusal) if refusal.ends_connection() => self.session.close(refusal),
                Reply::Refused(refusal) => self.session.refuse(refusal),
                Reply::Attached(attached) => {
                    let Stage::Attaching(mut attaching) = std::mem::replace(&mut self.stage, Stage::Gone) else {
                        continue;
                    };
                    let mut connected = attached.connected.clone();
                    let resumed = try_read(&self.shared.state, |rows| {
                        connected.now = rows.state().time.0;
                        resume::resume(rows, &self.shared.segments, &attached, &attaching.wish, &mut connected)
                    });
                    let resumed = match resumed {
                        Ok(resumed) => resumed,
                        Err(cold) => {
                            // Once more, when everything it looks at is loaded.
                            self.stage = Stage::Attaching(attaching);
                            replies.push_front(Reply::Attached(attached));
                            self.take_up_later(std::mem::take(&mut replies), cold);
                            break;
                        }
                    };
                    if let Err(refusal) = self.mint(&mut attaching, attached.generation, &mut connected) {
                        self.session.close(refusal);
                    }
                    connected.features = features::ALL.map(str::to_owned).to_vec();
                    connected.features.extend(self.shared.registry.bell.providers().iter().map(|p| p.feature()));
                    connected.birth_unix_ms = self.shared.clock.birth_unix_ms();
                    connected.now = self.shared.clock.log_time().0;
                    connected.token_expires_in_ms =
                        attaching.identity.expires.saturating_mul(1_000).saturating_sub(self.shared.clock.unix_ms());
                    let skips = attaching.wish.catch_up == packet::CatchUpMode::Skip;
                    let identity = (attaching.identity, attaching.believed_at);
                    let mut live = Live::new(*attached, identity, skips, attaching.item_bytes_max, now);
                    // It may have been taken back while routing was asked.
                    live.check_identity(&mut self.session, &self.shared, now);
                    match resumed {
                        Ok(cursor) if !self.session.is_closed() => {
                            live.start(cursor);
                            self.session.accept(now, connected);
                            self.rest_at = now;
                            if let Some(method) = self.asked.take() {
                                self.shared.metrics.auth[method].let_in.inc();
                            }
                            self.codec.set_frame_bytes_max(self.session.frame_bytes_max());
                        }
                        Ok(_) => {}
                        Err(refusal) => self.session.close(refusal),
                    }
                    self.stage = Stage::Live(Box::new(live));
                }
            }
        }
        if let Some(retry_after_ms) = goaway {
            match &self.stage {
                Stage::Live(_) => self.session.goaway(retry_after_ms),
                // `Connected` goes first, and waits for what is being loaded.
                _ => self.outbox.lock().goaway = Some(retry_after_ms),
            }
        }
        if let Some(refusal) = closing {
            self.session.close(*refusal);
        }
    }

    /// A token of the broker's own, where one is due: from here on the session goes by it.
    fn mint(
        &self,
        attaching: &mut Attaching,
        generation: Generation,
        connected: &mut packet::Connected,
    ) -> Result<(), Refusal> {
        let Some(accounts) = self.shared.authority.accounts().filter(|_| attaching.mints) else { return Ok(()) };
        let (user, device) = (&attaching.identity.user, attaching.identity.device.as_deref().unwrap_or_default());
        let now = self.shared.clock.unix_ms() / 1_000;
        let minted = accounts.mint(user, device, (generation.user, generation.device), now);
        let (token, identity) = minted.map_err(|error| {
            tracing::error!(error, "no token can be made");
            Refusal::connection(Reason::Internal)
        })?;
        connected.token = token;
        attaching.identity = Arc::new(identity);
        Ok(())
    }

    /// Puts replies back until what the first of them needs is loaded.
    fn take_up_later(&mut self, replies: VecDeque<Reply>, cold: Vec<Want>) {
        {
            let mut pending = self.outbox.lock();
            for reply in replies.into_iter().rev() {
                pending.replies.push_front(reply);
            }
            pending.is_loading = true;
        }
        let (shared, outbox) = (Arc::clone(&self.shared), Arc::clone(&self.outbox));
        drop(self.shared.tasks.run(move || {
            let loaded = load(&shared.state, &cold);
            outbox.lock().is_loading = false;
            match loaded {
                Ok(()) => outbox.wake(),
                Err(error) => unreadable(&outbox, &error),
            }
        }));
    }

    /// Writes until the session has nothing to say or the socket takes no more.
    fn write(&mut self, context: &mut Context<'_>, scratch: &mut BytesMut, now: Millis) -> Poll<std::io::Result<()>> {
        loop {
            if let Some(unsent) = &mut self.unsent {
                let n = ready!(Pin::new(&mut self.io).poll_write(context, unsent))?;
                drop(unsent.split_to(n));
                if unsent.is_empty() {
                    self.unsent = None;
                }
            } else {
                scratch.clear();
                let mut wrote = self.session.poll_transmit(now, scratch, WRITE_BYTES);
                // A cursor covers all that stands before it. So it leaves with the last of that, where there surely is
                // room, or on its own; never is it left to wait for something newer to go first.
                if scratch.len() <= WRITE_BYTES - 2 * CURSOR_BYTES_MAX
                    && !self.session.wants_transmit()
                    && let Stage::Live(live) = &mut self.stage
                    && live.send_cursor(&mut self.session, &self.shared, now)
                {
                    wrote |= self.session.poll_transmit(now, scratch, WRITE_BYTES);
                }
                if !wrote && let Stage::Live(live) = &mut self.stage {
                    live.send_signals(&mut self.session, scratch, WRITE_BYTES);
                    wrote = !scratch.is_empty();
                }
                if !wrote {
                    return Pin::new(&mut self.io).poll_flush(context);
                }
                self.rest_at = self.rest_at.min(now.after(QUIET_MS));
                let mut written = 0;
                while written < scratch.len() {
                    match Pin::new(&mut self.io).poll_write(context, &scratch[written..]) {
                        Poll::Ready(Ok(n)) => written += n,
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                        Poll::Pending => {
                            self.unsent = Some(Box::new(BytesMut::from(&scratch[written..])));
                            return Poll::Pending;
                        }
                    }
                }
            }
        }
    }

    fn arm(&mut self, now: Millis) {
        // It was noticed, and is not known any more.
        if self.armed <= now {
            self.armed = NEVER;
        }
        let live = match &self.stage {
            Stage::Live(live) => Some(live.deadline()),
            _ => None,
        };
        let ending = (self.ending != NEVER).then(|| self.ending.after(LINGER_MS));
        let rest = (now < self.rest_at && self.rest_at != NEVER).then_some(self.rest_at);
        let deadline = [self.session.poll_deadline(), live, ending, rest].into_iter().flatten().min();
        // The wheel counts in slots: it is told once of what falls into the same one, however many turns there are.
        if let Some(deadline) = deadline
            && slot(deadline) != slot(self.armed)
        {
            self.armed = deadline;
            self.shared.wheel.arm(&self.outbox, deadline);
        }
    }

    /// What was refused in this turn; before the client hears of it.
    fn count_refusals(&mut self) {
        let Some(tally) = self.session.take_tally() else { return };
        for (asked, reason, times) in tally.each() {
            let refused = match asked {
                Asked::Publish => &self.shared.metrics.publishes_refused,
                Asked::Request => &self.shared.metrics.requests_refused,
            };
            refused[reason].inc_by(times);
        }
    }

    fn turn(&mut self, context: &mut Context<'_>, scratch: &mut Scratch) -> Poll<()> {
        // Before the time is taken: a visit of the wheel is then either seen by `arm`, or wakes.
        self.outbox.lock().register(context);
        let now = self.shared.clock.now();
        let mut again = false;
        // Before anything is read: what comes after the end of a token is not done any more.
        if let Stage::Live(live) = &mut self.stage {
            live.check_identity(&mut self.session, &self.shared, now);
        }
        if self.ending == NEVER {
            match self.read(context, &mut scratch.read, now) {
                Ok(ReadEnd::Drained) => {}
                Ok(ReadEnd::More) => again = true,
                Ok(ReadEnd::Closed) => return Poll::Ready(()),
                // The session has ended and said so; what is queued still leaves.
                Err(()) => {}
            }
        }
        self.take_login(context);
        self.take_replies(now);
        // What the session decides here, it has queued for sending.
        let _ = self.session.handle_deadline(now);
        if let Stage::Live(live) = &mut self.stage
            && !self.session.is_closed()
        {
            let before = self.session.delivered();
            again |= live.pump(context, &mut self.session, &self.shared, now);
            let delivered = self.session.delivered() - before;
            if delivered > 0 {
                self.shared.metrics.deliveries.inc_by(delivered);
            }
        }
        self.count_refusals();
        let written = match self.write(context, &mut scratch.write, now) {
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(_)) => return Poll::Ready(()),
            Poll::Pending => false,
        };
        if self.session.is_closed() {
            self.ending = self.ending.min(now);
            let is_shut = written && Pin::new(&mut self.io).poll_shutdown(context).is_ready();
            if is_shut || now >= self.ending.after(LINGER_MS) {
                return Poll::Ready(());
            }
        }
        // An answer has left, and the next one may be worked on.
        again |= matches!(&self.stage, Stage::Live(live) if live.has_jobs() || live.has_news());
        if again && written {
            context.waker().wake_by_ref();
        }
        if self.rest_at <= now && written {
            self.rest_at = NEVER;
            if self.session.is_idle() {
                self.outbox.lock().shrink();
                self.session.shrink();
                self.io.rest();
            }
        }
        self.arm(now);
        Poll::Pending
    }
}

enum ReadEnd {
    /// Nothing more has arrived.
    Drained,
    /// There may be more: the turn is over.
    More,
    /// The peer is gone.
    Closed,
}

impl<S: ByteStream> Future for Connection<S> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        SCRATCH.with_borrow_mut(|scratch| self.turn(context, scratch))
    }
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        let (metrics, is_closed) = (&self.shared.metrics, self.session.is_closed());
        match (self.session.ended_by(), is_closed) {
            (Some(reason), _) => metrics.closed.refused[reason].inc(),
            (None, true) => metrics.closed.goodbye.inc(),
            (None, false) => metrics.closed.lost.inc(),
        };
        if let Some(method) = self.asked {
            metrics.auth[method].refused.inc();
        }
        match std::mem::replace(&mut self.stage, Stage::Gone) {
            Stage::Live(live) => live.end(&self.shared),
            // Routing may not have answered yet: then it finds the outbox abandoned, and detaches the session itself.
            Stage::Attaching(_) => {
                let replies = {
                    let mut pending = self.outbox.lock();
                    pending.is_abandoned = true;
                    std::mem::take(&mut pending.replies)
                };
                for reply in replies {
                    if let Reply::Attached(attached) = reply {
                        self.shared.queue.push_one(Op::Detach(attached.session, None, Parting::Lost));
                    }
                }
            }
            // Nobody waits for the outcome any more.
            Stage::LoggingIn(_) | Stage::Waiting | Stage::Gone => {}
        }
    }
}

/// The connection ends, since what it needs cannot be read.
fn unreadable(outbox: &Outbox, error: &ReadError) {
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
    if identity.publish.is_empty() && identity.read.is_empty() && !identity.is_admin {
        return Arc::clone(&NONE);
    }
    Arc::new(Grants {
        publish: Patterns::new(identity.publish.iter().map(String::as_str)),
        read: Patterns::new(identity.read.iter().map(String::as_str)),
        is_admin: identity.is_admin,
    })
}

/// A wait that differs from client to client.
pub(crate) fn spread(least_ms: u32, most_ms: u32) -> u32 {
    fastrand::u32(least_ms..=most_ms)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::{Wake, Waker};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
    use tokio::net::TcpStream;

    use super::*;
    use crate::clock::Hands;
    use crate::net::testing::{shared, shared_at};
    use crate::net::tls::{REST_BYTES, TlsStream};
    use crate::net::wheel::SLOT_MS;
    use crate::store::MemoryLog;

    /// A peer by hand.
    #[derive(Default)]
    struct Peer {
        /// What it says; then it is silent.
        says: &'static [u8],
        /// Whether it takes bytes.
        reads: bool,
        /// What happens while it is read.
        meanwhile: Option<Box<dyn FnMut() + Send>>,
        /// How often there was nothing under way.
        rested: usize,
    }

    impl AsyncRead for Peer {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            out: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            if let Some(meanwhile) = &mut self.meanwhile {
                meanwhile();
            }
            if self.says.is_empty() {
                return Poll::Pending;
            }
            out.put_slice(std::mem::take(&mut self.says));
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Peer {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
            if self.reads { Poll::Ready(Ok(bytes.len())) } else { Poll::Pending }
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        /// As with TLS, whose last words have to be taken, too.
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Pending
        }
    }

    impl ByteStream for Peer {
        fn rest(&mut self) {
            self.rested += 1;
        }
    }

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the peer takes nothing of the refusal, or all of it but not the end of the connection.
    #[tokio::test]
    async fn a_peer_that_does_not_read_cannot_keep_a_connection_that_has_ended() {
        for reads in [false, true] {
            let hands = Arc::<Hands>::default();
            let shared = shared_at(&MemoryLog::new(0, usize::MAX), &hands);
            // A frame longer than any before `Connected`.
            let peer = Peer { says: b"\xff\xff\xff\x7f", reads, ..Peer::default() };
            let connection = Connection::new(peer, shared.clock.now(), Arc::clone(&shared));
            let outbox = Arc::downgrade(&connection.outbox);
            // A task of its own, which only the wheel wakes.
            let connection = tokio::spawn(connection);
            tokio::task::yield_now().await;
            while !connection.is_finished() {
                let now = shared.clock.now();
                assert!(now <= Millis(0).after(LINGER_MS + 2 * SLOT_MS), "it ends");
                shared.wheel.turn(now);
                tokio::task::yield_now().await;
                hands.monotonic_ms.fetch_add(SLOT_MS, Ordering::Relaxed);
            }
            assert!(shared.clock.now() >= Millis(0).after(LINGER_MS), "its last words had their time");
            connection.await.expect("without a panic");
            assert_eq!((outbox.strong_count(), Arc::strong_count(&shared)), (0, 1), "and nothing of it stays");
        }
    }

    /// The broker drains while what a session starts from is being loaded: it hears of that behind its `Connected`.
    #[test]
    fn who_is_not_let_in_yet_is_not_asked_to_go() {
        let shared = shared(&MemoryLog::new(0, usize::MAX));
        let mut connection = Connection::new(Peer::default(), shared.clock.now(), Arc::clone(&shared));
        connection.outbox.lock().goaway = Some(5);
        let mut context = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut connection).poll(&mut context).is_pending());
        assert!(connection.unsent.is_none(), "nothing is said");
        assert_eq!(connection.outbox.lock().goaway, Some(5), "and it is not forgotten");
    }

    /// What the TLS handshake took is part of the time that there is until `Connected`.
    #[test]
    fn the_time_to_connect_counts_from_accept() {
        let shared = shared(&MemoryLog::new(0, usize::MAX));
        let accepted = shared.clock.now();
        let late = Connection::new(Peer::default(), accepted, Arc::clone(&shared));
        assert_eq!(late.session.poll_deadline(), Some(accepted.after(longwire_protocol::limits::AUTH_MS)));
    }

    /// A turn takes the time, and then the wheel visits, beyond that time: the visit wakes, since `arm` would take it
    /// for one that is still to come.
    #[test]
    fn a_visit_of_the_wheel_during_a_turn_is_not_lost() {
        let shared = shared(&MemoryLog::new(0, usize::MAX));
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        let mut connection = Connection::new(Peer::default(), shared.clock.now(), Arc::clone(&shared));
        assert!(Pin::new(&mut connection).poll(&mut context).is_pending());
        let armed = connection.armed;
        assert_ne!(armed, NEVER, "it has to connect in time");
        // Something came for it: the turn that follows is that wake-up's.
        connection.outbox.wake();
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        connection.io.meanwhile = Some(Box::new(move || shared.wheel.turn(armed)));
        assert!(Pin::new(&mut connection).poll(&mut context).is_pending());
        assert_eq!(woken.0.load(Ordering::Relaxed), 2, "the visit of {armed:?} woke nobody");
    }

    /// Something was said, and then nothing for a while: what only serves talking is given back, without a heartbeat.
    #[test]
    fn whoever_said_nothing_for_a_while_is_at_rest() {
        let hands = Arc::<Hands>::default();
        let shared = shared_at(&MemoryLog::new(0, usize::MAX), &hands);
        let mut connection = Connection::new(Peer::default(), shared.clock.now(), Arc::clone(&shared));
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        let mut poll_at = |connection: &mut Connection<Peer>, now: u64| {
            hands.monotonic_ms.store(now, Ordering::Relaxed);
            shared.wheel.turn(shared.clock.now());
            assert!(Pin::new(&mut *connection).poll(&mut context).is_pending());
            (connection.io.rested, woken.0.load(Ordering::Relaxed))
        };
        // As any packet does that it hears or says.
        connection.rest_at = Millis(QUIET_MS);
        assert_eq!(poll_at(&mut connection, 0), (0, 0));
        assert_eq!(poll_at(&mut connection, QUIET_MS - 1), (0, 0), "it may go on");
        assert_eq!(poll_at(&mut connection, QUIET_MS), (1, 1), "the wheel woke it, and it is at rest");
        assert_eq!(poll_at(&mut connection, 2 * QUIET_MS), (1, 1), "once");
    }

    /// What a connection at rest consists of, besides names and its socket. The task is in the allocator's class of 640
    /// bytes at most (tokio adds 96, its place 48), `Live` in that of 256 or 320, the outbox in that of 384, the keys of a
    /// TLS connection in that of 768: whoever makes one of them larger looks at what it costs a million of them.
    #[test]
    fn a_connection_at_rest_is_small() {
        use std::mem::size_of;
        let connections = [size_of::<Connection<TcpStream>>(), size_of::<Connection<TlsStream<TcpStream>>>()];
        let rest = [size_of::<Live>(), size_of::<Outbox>() + 16, REST_BYTES];
        assert!(connections <= [408, 416] && rest <= [320, 384, 768], "{connections:?} {rest:?}");
    }
}
