//! One connection: a future that carries bytes between a socket and a session, and everything else through
//! `Live`. At rest it owns the session, the TLS state and its outbox; buffers belong to the thread, and only a
//! partial frame or bytes that the socket does not take yet own memory.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use longwire_protocol::frame;
use longwire_protocol::limits::{CURSOR_BYTES_MAX, PRE_AUTH_FRAME_BYTES_MAX};
use longwire_protocol::packet::packet::Kind;
use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::{Asked, BrokerEvent, BrokerSession, Frame, FrameCodec, Millis, packet};
use tokio_util::codec::Decoder as _;
use tokio_util::io::poll_read_buf;
use zeroize::Zeroize as _;

use super::admission::{Attaching, LoggingIn, unreadable};
use super::pump::{Live, NEVER};
use super::stream::ByteStream;
use super::wheel::slot;
use super::{Shared, spread};
use crate::metrics::words::Method;
use crate::routing::loading::{Want, load};
use crate::routing::outbox::{Outbox, Reply};
use crate::routing::stream::Place;

/// What one turn reads at most before others get theirs.
const TURN_BYTES_MAX: usize = 256 << 10;
/// What is written at once: a TLS record.
const WRITE_BYTES: usize = 16 << 10;
/// The thread's read buffer.
const READ_BYTES: usize = 64 << 10;
/// A publish keeps what it came in until it is committed. So much is copied into memory of its own size, which is cheaper
/// than a new buffer for the thread, and takes no more than was read.
const COPIED_BYTES_MAX: usize = 16 << 10;
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
                    if self.decode(&mut own, now)? {
                        scratch[..].zeroize();
                    }
                    if !own.is_empty() {
                        self.partial = Some(Box::new(BytesMut::from(&own[..])));
                    }
                }
                None => {
                    self.decode(scratch, now)?;
                    if !scratch.is_empty() {
                        self.partial = Some(Box::new(self.keep(scratch)));
                    }
                }
                Some(mut partial) => {
                    partial.extend_from_slice(scratch);
                    if self.may_be_secret(&partial) {
                        scratch[..].zeroize();
                        self.io.forget();
                    }
                    self.decode(&mut partial, now)?;
                    self.partial = Some(partial).filter(|partial| !partial.is_empty());
                }
            }
        }
        Ok(ReadEnd::More)
    }

    /// Whether a frame that is not complete may hold a password or a token.
    fn may_be_secret(&self, partial: &[u8]) -> bool {
        matches!(self.stage, Stage::Waiting) || frame::begins_with_request(partial)
    }

    /// The beginning of a frame in memory of its own. While it may be that of a secret, it stays in one place, and is
    /// overwritten where it came from.
    fn keep(&mut self, read: &mut BytesMut) -> BytesMut {
        if !self.may_be_secret(read) {
            return BytesMut::from(&read[..]);
        }
        self.io.forget();
        // The frame, and the bytes of its length.
        let mut kept = BytesMut::with_capacity(read.len().max(PRE_AUTH_FRAME_BYTES_MAX as usize + 4));
        kept.extend_from_slice(read);
        read[..].zeroize();
        kept
    }

    /// Hands frames to the session. Returns whether one of them held a token.
    fn decode(&mut self, bytes: &mut BytesMut, now: Millis) -> Result<bool, ()> {
        let mut held_token = false;
        loop {
            match self.codec.decode(bytes) {
                Ok(Some((frame, size))) => {
                    // A heartbeat says that the client has nothing to say.
                    held_token |= holds_token(&frame);
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
        if held_token {
            self.io.forget();
        }
        Ok(held_token)
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
        let begun = match connect.login.take() {
            Some(login) => {
                self.asked = Some(if login.register { Method::Registration } else { Method::Password });
                let begun = LoggingIn::begin(*login, connect, self.address, &self.shared);
                begun.map(|logging_in| Stage::LoggingIn(Box::new(logging_in)))
            }
            None => {
                self.asked = Some(Method::Token);
                let begun = Attaching::by_token(connect, &self.shared, &self.outbox);
                begun.map(|attaching| Stage::Attaching(Box::new(attaching)))
            }
        };
        match begun {
            Ok(stage) => self.stage = stage,
            Err(refusal) => self.session.close(refusal),
        }
    }

    /// Takes what became of a password.
    fn take_login(&mut self, context: &mut Context<'_>) {
        let Stage::LoggingIn(logging_in) = &mut self.stage else { return };
        if self.session.is_closed() {
            return;
        }
        let Poll::Ready(outcome) = logging_in.poll(context, &self.shared, &self.outbox) else { return };
        match outcome {
            Ok(attaching) => self.stage = Stage::Attaching(Box::new(attaching)),
            Err(refusal) => {
                self.stage = Stage::Gone;
                self.session.close(refusal);
            }
        }
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
                    let Stage::Attaching(attaching) = &mut self.stage else { continue };
                    let start = match attaching.look_up(&attached, &self.shared) {
                        Ok(start) => start,
                        Err(cold) => {
                            // Once more, when everything it looks at is loaded.
                            replies.push_front(Reply::Attached(attached));
                            self.take_up_later(std::mem::take(&mut replies), cold);
                            break;
                        }
                    };
                    let live = attaching.admit(*attached, start, &mut self.session, &self.shared, now);
                    self.stage = Stage::Live(Box::new(live));
                    if !self.session.is_closed() {
                        self.rest_at = now;
                        if let Some(method) = self.asked.take() {
                            self.shared.metrics.auth[method].let_in.inc();
                        }
                        self.codec.set_frame_bytes_max(self.session.frame_bytes_max());
                    }
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
            Stage::Live(live) => Some(live.deadline(&self.shared, now)),
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
        again |= matches!(&self.stage, Stage::Live(live) if live.has_jobs(&self.shared, now) || live.has_news());
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

/// Whether a session is to be refreshed by it.
fn holds_token(frame: &Frame) -> bool {
    let Frame::Packet(Kind::Request(request)) = frame else { return false };
    matches!(&request.op, Some(packet::request::Op::Refresh(_)))
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
            Stage::Attaching(attaching) => attaching.end(&self.shared, &self.outbox),
            // Nobody waits for the outcome any more.
            Stage::LoggingIn(_) | Stage::Waiting | Stage::Gone => {}
        }
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
