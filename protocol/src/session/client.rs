//! The client's end of a session: the mirror of the broker's. It keeps to the publish window, drops what it has
//! already, acks what is stored, answers `AckRequest`, and starts the heartbeats.
//!
//! ```text
//!               Connected                 Refused about neither publish nor request, goodbye()
//!   Connecting -----------> Open ---------------------------------------------------------> Closed
//!       |                                                                                      ^
//!       +----------- Refused, 10 s ------------------------------------------------------------+
//! ```

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::{Millis, Room, lane_in::LaneIn, publish_window::PublishWindow};
use crate::{
    frame::{self, Frame},
    ids::MessageId,
    limits::{
        ACK_ANSWER_DELAY_MS, AUTH_MS, BULK_WINDOW, EXPRESS_WINDOW, FRAME_BYTES_CEILING, HEARTBEAT_ANSWER_MS,
        HEARTBEAT_MS, HEARTBEAT_MS_MAX, HEARTBEAT_MS_MIN, PRE_AUTH_FRAME_BYTES_MAX, PUBLISH_WINDOW,
    },
    packet::{self, Lane, Window, packet::Kind},
    reason::{Reason, Refusal},
};

/// What a frame from the broker tells the application.
#[derive(Debug, PartialEq)]
pub enum ClientEvent {
    /// The broker has let the client in.
    Connected(Box<packet::Connected>),
    /// A publish is stored.
    PublishAck(packet::PublishAck),
    /// A publish or a request is refused.
    Refused(Refusal),
    /// The broker ends the connection.
    Closed(Refusal),
    /// Items to store, in order; [`ClientSession::stored`] says when they are. What was there before is left out.
    Items {
        /// Of which lane.
        lane: Lane,
        /// The number of the first.
        first_n: u64,
        /// The items; one whose `kind` is `None` is of a kind that this version does not know.
        items: Vec<packet::Item>,
    },
    /// The cursor of all items handed out so far: store it with them, or after them, and never before.
    Cursor(Bytes),
    /// The broker asks what is stored: call [`ClientSession::answer`] once everything handed out so far is stored, or
    /// could not be. After ten seconds the session answers by itself.
    AckRequest {
        /// The number to answer with.
        k: u64,
    },
    /// The answer to a request.
    Response(packet::Response),
    /// Something that is worth nothing later: someone types, or is here now.
    Signal(packet::Signal),
    /// The broker is going away: connect anew after this time.
    Goaway {
        /// How long to wait.
        retry_after_ms: u32,
    },
}

/// The client's end of a session.
#[derive(Debug)]
pub struct ClientSession {
    state: State,
    wishes: Wishes,
    started: Millis,
    heartbeat_ms: u32,
    /// When the first heartbeat is due; until `Connected`, how long after that. None once anything was sent.
    phase: Option<Millis>,
    /// When anything was last heard, and last sent.
    heard: Millis,
    sent: Millis,
    heartbeat: Heartbeat,
    frame_bytes_max: u32,
    publishes: PublishWindow,
    /// Whole frames, in the order of the calls that made them.
    outgoing: VecDeque<Bytes>,
    express: LaneIn,
    bulk: LaneIn,
    /// An `AckRequest` that waits for [`ClientSession::answer`].
    asked: Option<Asked>,
    /// An answer that waits to leave.
    answer: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Open,
    Closed,
}

#[derive(Clone, Copy, Debug)]
struct Wishes {
    heartbeat_ms: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heartbeat {
    Resting,
    /// To leave with the next bytes.
    Due,
    /// Nothing was heard since it left.
    Unanswered {
        left: Millis,
    },
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    k: u64,
    deadline: Millis,
    express: u64,
    bulk: u64,
}

impl ClientSession {
    /// A session that asks to be let in.
    #[must_use]
    pub fn new(now: Millis, connect: packet::Connect) -> Self {
        let wishes = Wishes { heartbeat_ms: connect.heartbeat_ms };
        let mut session = Self {
            state: State::Connecting,
            wishes,
            started: now,
            heartbeat_ms: 0,
            phase: None,
            heard: now,
            sent: now,
            heartbeat: Heartbeat::Resting,
            frame_bytes_max: PRE_AUTH_FRAME_BYTES_MAX,
            publishes: PublishWindow::new(Window { items: 0, bytes: 0 }),
            outgoing: VecDeque::new(),
            express: LaneIn::new(connect.express.unwrap_or(EXPRESS_WINDOW)),
            bulk: LaneIn::new(connect.bulk.unwrap_or(BULK_WINDOW)),
            asked: None,
            answer: None,
        };
        session.queue(&Kind::Connect(connect));
        session
    }

    /// The same, with its first heartbeat this long after `Connected` (and no later than an interval): a random time,
    /// so that clients that connect together do not beat together.
    #[must_use]
    pub fn with_heartbeat_phase(self, phase: Millis) -> Self {
        Self { phase: Some(phase), ..self }
    }

    /// Whether the broker has let the client in.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Whether nothing more is taken.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// The longest frame to accept now: give it to the codec.
    #[must_use]
    pub const fn frame_bytes_max(&self) -> u32 {
        self.frame_bytes_max
    }

    /// What the publish window still takes; nothing unless the session is open. Its bytes are those of whole frames:
    /// what [`crate::frame::encoded_len`] says of them.
    #[must_use]
    pub fn publish_room(&self) -> Room {
        if self.is_open() { self.publishes.room() } else { Room::NONE }
    }

    /// How many publishes have no answer.
    #[must_use]
    pub fn unanswered(&self) -> u32 {
        self.publishes.len()
    }

    /// The number that a lane takes next. It falls when something could not be stored (SPEC R6.4-4).
    #[must_use]
    pub const fn next(&self, lane: Lane) -> u64 {
        match lane {
            Lane::Express => self.express.next(),
            Lane::Bulk => self.bulk.next(),
        }
    }

    /// Any byte has arrived: a sign of life, also while a long frame is under way (SPEC R9-3).
    pub fn handle_bytes(&mut self, now: Millis) {
        self.heard = now;
        if matches!(self.heartbeat, Heartbeat::Unanswered { .. }) {
            self.heartbeat = Heartbeat::Resting;
        }
    }

    /// A frame has arrived, that took `bytes` on the wire.
    ///
    /// # Errors
    /// The broker broke a rule: the connection ends.
    pub fn handle_frame(&mut self, now: Millis, frame: Frame, bytes: usize) -> Result<Option<ClientEvent>, Refusal> {
        if self.is_closed() {
            return Ok(None);
        }
        self.handle_bytes(now);
        let Frame::Packet(kind) = frame else { return Ok(None) };
        let event = match (self.state, kind) {
            (State::Connecting, Kind::Connected(connected)) => Ok(Some(self.connected(now, connected))),
            (_, Kind::Refused(refused)) => self.refused(refused.into()),
            (State::Open, Kind::PublishAck(ack)) => self.publish_ack(ack),
            (State::Open, Kind::Deliver(deliver)) => self.deliver(deliver, bytes),
            (State::Open, Kind::Cursor(cursor)) => Ok(self.cursor(cursor)),
            (State::Open, Kind::AckRequest(request)) => Ok(Some(self.ack_request(now, request.k))),
            (State::Open, Kind::Response(response)) => Ok(Some(ClientEvent::Response(response))),
            (State::Open, Kind::Signal(signal)) => Ok(Some(ClientEvent::Signal(signal))),
            (State::Open, Kind::Goaway(goaway)) => {
                Ok(Some(ClientEvent::Goaway { retry_after_ms: goaway.retry_after_ms }))
            }
            _ => Err(Refusal::connection(Reason::UnexpectedPacket)),
        };
        event.inspect_err(|_| self.state = State::Closed)
    }

    /// The deadline of [`Self::poll_deadline`] may have passed.
    ///
    /// # Errors
    /// The broker took too long: the connection ends.
    pub fn handle_deadline(&mut self, now: Millis) -> Result<(), Refusal> {
        let late = match self.state {
            State::Closed => None,
            State::Connecting => (now >= self.started.after(AUTH_MS)).then_some(Reason::HandshakeTimeout),
            State::Open => match self.heartbeat {
                Heartbeat::Unanswered { left } => {
                    (now >= left.after(HEARTBEAT_ANSWER_MS)).then_some(Reason::HeartbeatTimeout)
                }
                Heartbeat::Resting if now >= self.heartbeat_at() => {
                    self.heartbeat = Heartbeat::Due;
                    None
                }
                Heartbeat::Resting | Heartbeat::Due => None,
            },
        };
        if let Some(reason) = late {
            self.state = State::Closed;
            return Err(Refusal::connection(reason));
        }
        if let Some(asked) = self.asked.filter(|asked| now >= asked.deadline) {
            self.answer(asked.k);
        }
        for lane in [&mut self.express, &mut self.bulk] {
            lane.handle_deadline(now);
        }
        Ok(())
    }

    /// Publishes. The window must have room for it: [`Self::publish_room`].
    pub fn publish(&mut self, publish: packet::Publish) {
        if self.is_closed() {
            return;
        }
        let (id, conversation) = (publish.message_id, publish.conversation);
        assert!(id != 0 && !self.publishes.contains(id), "a message id that is none, or has no answer yet");
        let frame = encoded(&Kind::Publish(publish));
        assert!(self.publish_room().admits(frame.len()), "a publish where the window has no room");
        self.publishes.push(id, conversation, frame.len());
        self.outgoing.push_back(frame);
    }

    /// Gives up an id that was refused, or never sent: it is surely not stored, and will not be repeated.
    pub fn give_up(&mut self, message_id: MessageId) {
        self.queue(&Kind::GiveUp(packet::GiveUp { message_id: message_id.0 }));
    }

    /// Asks for something to read.
    pub fn request(&mut self, request: packet::Request) {
        self.queue(&Kind::Request(request));
    }

    /// Sends a signal, which may be dropped anywhere on its way. Nothing unless the session is open.
    pub fn signal(&mut self, signal: packet::Signal) {
        if self.is_open() {
            self.queue(&Kind::Signal(signal));
        }
    }

    /// Says goodbye: what is queued still leaves, with an ack of all that is stored (SPEC R6.3-7), and nothing more is
    /// taken.
    pub fn goodbye(&mut self) {
        self.part(packet::Goodbye { keep_will: false });
    }

    /// As [`Self::goodbye`], and leaves the device's will as it is: published unless the device comes back in time.
    pub fn goodbye_keeping_will(&mut self) {
        self.part(packet::Goodbye { keep_will: true });
    }

    fn part(&mut self, goodbye: packet::Goodbye) {
        if self.is_open() {
            self.flush_acks();
            let mut acks = BytesMut::new();
            self.write_acks(&mut acks);
            self.outgoing.extend((!acks.is_empty()).then(|| acks.freeze()));
        }
        self.queue(&Kind::Goodbye(goodbye));
        self.state = State::Closed;
    }

    /// Everything up to `n` in this lane is stored. The ack leaves at half the window, or after a second.
    pub fn stored(&mut self, now: Millis, lane: Lane, n: u64) {
        self.lane_mut(lane).stored(now, n);
    }

    /// Acks what is stored without waiting for more.
    pub const fn flush_acks(&mut self) {
        self.express.flush();
        self.bulk.flush();
    }

    /// Answers an `AckRequest`: everything handed out before it is stored, or could not be. What could not be comes
    /// again: whatever was handed out from [`Self::next`] of a lane on must then be forgotten, and the cursors since.
    pub fn answer(&mut self, k: u64) {
        let Some(asked) = self.asked.take_if(|asked| asked.k == k) else { return };
        self.answer = Some(k);
        self.express.rewind_below(asked.express);
        self.bulk.rewind_below(asked.bulk);
    }

    /// Appends frames to `out` until that holds `max` bytes (an empty `out` takes one frame of any size); says whether
    /// it wrote any. Acks first.
    pub fn poll_transmit(&mut self, now: Millis, out: &mut BytesMut, max: usize) -> bool {
        let begin = out.len();
        self.write_all(now, out, max);
        let wrote = out.len() > begin;
        if wrote {
            self.sent = now;
            if self.is_open() {
                self.phase = None;
            }
        }
        wrote
    }

    /// When to call [`Self::handle_deadline`], unless something else is handled before.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Millis> {
        match self.state {
            State::Closed => None,
            State::Connecting => Some(self.started.after(AUTH_MS)),
            State::Open => {
                let heartbeat = match self.heartbeat {
                    Heartbeat::Unanswered { left } => left.after(HEARTBEAT_ANSWER_MS),
                    Heartbeat::Resting | Heartbeat::Due => self.heartbeat_at(),
                };
                [self.express.deadline(), self.bulk.deadline(), self.asked.map(|asked| asked.deadline)]
                    .into_iter()
                    .flatten()
                    .chain([heartbeat])
                    .min()
            }
        }
    }

    // ------------------------------------------------------------------------------------------ what arrives

    fn connected(&mut self, now: Millis, connected: packet::Connected) -> ClientEvent {
        self.state = State::Open;
        let or = |value: u32, default: u32| if value == 0 { default } else { value };
        let min = or(connected.heartbeat_ms_min, HEARTBEAT_MS_MIN);
        let max = or(connected.heartbeat_ms_max, HEARTBEAT_MS_MAX).max(min);
        self.heartbeat_ms = or(self.wishes.heartbeat_ms, HEARTBEAT_MS).clamp(min, max);
        self.phase = self.phase.map(|phase| now.after(phase.0.min(self.heartbeat_ms.into())));
        self.sent = now;
        self.frame_bytes_max = connected.frame_bytes_max.clamp(PRE_AUTH_FRAME_BYTES_MAX, FRAME_BYTES_CEILING);
        self.publishes.set_window(connected.publish.unwrap_or(PUBLISH_WINDOW));
        self.express.set_window(connected.express);
        self.bulk.set_window(connected.bulk);
        ClientEvent::Connected(Box::new(connected))
    }

    fn publish_ack(&mut self, ack: packet::PublishAck) -> Result<Option<ClientEvent>, Refusal> {
        if !self.publishes.free(ack.message_id) {
            return Err(unexpected("an answer to an id that was not asked about"));
        }
        Ok(Some(ClientEvent::PublishAck(ack)))
    }

    fn refused(&mut self, refusal: Refusal) -> Result<Option<ClientEvent>, Refusal> {
        if refusal.ends_connection() {
            self.state = State::Closed;
            return Ok(Some(ClientEvent::Closed(refusal)));
        }
        if self.state != State::Open || refusal.message_id.is_some() && !self.publishes.free(refusal.message_id.0) {
            return Err(unexpected("an answer to an id that was not asked about"));
        }
        Ok(Some(ClientEvent::Refused(refusal)))
    }

    fn deliver(&mut self, deliver: packet::Deliver, bytes: usize) -> Result<Option<ClientEvent>, Refusal> {
        let lane = Lane::try_from(deliver.lane).map_err(|_| unexpected("a lane that does not exist"))?;
        let (first_n, mut items) = (deliver.n, deliver.items);
        if first_n == 0 || items.is_empty() {
            return Err(unexpected("a delivery without number or items"));
        }
        let taken = self.lane_mut(lane).take(first_n, items.len() as u64, bytes)?;
        let known = taken.start - first_n;
        items.drain(..known as usize);
        if taken.is_empty() {
            return Ok(None);
        }
        Ok(Some(ClientEvent::Items { lane, first_n: taken.start, items }))
    }

    /// A cursor that covers something which is to come again is of no use.
    fn cursor(&self, cursor: packet::Cursor) -> Option<ClientEvent> {
        let whole = !self.express.is_rewound() && !self.bulk.is_rewound();
        whole.then_some(ClientEvent::Cursor(cursor.cursor))
    }

    fn ack_request(&mut self, now: Millis, k: u64) -> ClientEvent {
        self.asked = Some(Asked {
            k,
            deadline: now.after(ACK_ANSWER_DELAY_MS),
            express: self.express.seen(),
            bulk: self.bulk.seen(),
        });
        ClientEvent::AckRequest { k }
    }

    // ------------------------------------------------------------------------------------------ what leaves

    fn write_all(&mut self, now: Millis, out: &mut BytesMut, max: usize) {
        if self.state == State::Open && has_room(out, ACK_FRAME_BYTES_MAX, max) {
            self.write_acks(out);
            if self.heartbeat == Heartbeat::Due {
                frame::encode_heartbeat(out);
                self.heartbeat = Heartbeat::Unanswered { left: now };
            }
        }
        while self.outgoing.front().is_some_and(|frame| has_room(out, frame.len(), max)) {
            if let Some(frame) = self.outgoing.pop_front() {
                out.extend_from_slice(&frame);
            }
        }
    }

    fn write_acks(&mut self, out: &mut BytesMut) {
        let due = self.express.wants_ack() || self.bulk.wants_ack();
        if !due && self.answer.is_none() {
            return;
        }
        let ack = packet::Ack {
            express: self.express.take_ack(),
            bulk: self.bulk.take_ack(),
            answer: self.answer.take().unwrap_or(0),
        };
        frame::encode(&Kind::Ack(ack), out);
    }

    fn queue(&mut self, kind: &Kind) {
        if !self.is_closed() {
            self.outgoing.push_back(encoded(kind));
        }
    }

    /// When the next heartbeat is due: an interval after the last byte sent, and after the last one heard, since a
    /// client that only sends learns nothing.
    fn heartbeat_at(&self) -> Millis {
        self.phase.unwrap_or_else(|| self.sent.min(self.heard).after(u64::from(self.heartbeat_ms)))
    }

    const fn lane_mut(&mut self, lane: Lane) -> &mut LaneIn {
        match lane {
            Lane::Express => &mut self.express,
            Lane::Bulk => &mut self.bulk,
        }
    }
}

/// The longest `Ack` with a heartbeat behind it: three numbers of ten bytes, their tags, what stands around them.
const ACK_FRAME_BYTES_MAX: usize = 40;

fn has_room(out: &BytesMut, len: usize, max: usize) -> bool {
    out.is_empty() || out.len() + len <= max
}

fn encoded(kind: &Kind) -> Bytes {
    let mut frame = BytesMut::with_capacity(frame::encoded_len(kind));
    frame::encode(kind, &mut frame);
    frame.freeze()
}

fn unexpected(detail: &'static str) -> Refusal {
    Refusal::connection(Reason::UnexpectedPacket).because(detail)
}
