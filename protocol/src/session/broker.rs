//! The broker's end of a session. It keeps to the window what is sent, holds the client to its own, counts acks, asks
//! for those that do not come, answers heartbeats, and puts what leaves into its order. What a publish means, who may
//! do what, and what a device is sent are decided elsewhere.
//!
//! ```text
//!            Connect            accept()                 refusal, Goodbye, close()
//!   Waiting ---------> Asking ------------> Open ---------------------------------> Closed
//!      |                  |                                                           ^
//!      +------------------+-------- 10 s, refusal, close() ---------------------------+
//! ```

use bytes::{Bytes, BytesMut};

use super::{
    Millis, OpenRefusals, Room,
    answers::{ACK_FRAME_BYTES_MAX, Answers, Frees},
    handshake,
    lane_out::LaneOut,
    publish_window::PublishWindow,
    tally::{Asked, Tally},
};
use crate::{
    frame::{self, Frame},
    ids::MessageId,
    limits::{
        ACK_ANSWER_MS, ACK_ANSWER_PER_KIB_MS, ACK_OVERDUE_MS, AUTH_MS, BULK_WINDOW, CURSOR_BYTES_MAX, EXPRESS_WINDOW,
        FRAME_BYTES_MAX, HEARTBEAT_MS, HEARTBEAT_MS_MAX, HEARTBEAT_MS_MIN, ID_SPAN_MAX, PAYLOAD_BYTES_MAX,
        PRE_AUTH_FRAME_BYTES_MAX, PUBLISH_WINDOW, REQUEST_BYTES_MAX, REQUESTS_MAX, SIGNAL_BYTES_MAX, SIGNAL_EVERY_MS,
        SIGNALS_AHEAD, delivery_window,
    },
    packet::{self, Lane, Window, packet::Kind},
    reason::{Reason, Refusal},
};

/// The bounds that a broker may set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrokerLimits {
    /// The shortest time between heartbeats.
    pub heartbeat_ms_min: u32,
    /// The longest time between heartbeats.
    pub heartbeat_ms_max: u32,
    /// The largest content.
    pub payload_bytes_max: u32,
    /// The largest frame after `Connected`.
    pub frame_bytes_max: u32,
    /// How much may be published and unanswered.
    pub publish: Window,
}

impl Default for BrokerLimits {
    fn default() -> Self {
        Self {
            heartbeat_ms_min: HEARTBEAT_MS_MIN,
            heartbeat_ms_max: HEARTBEAT_MS_MAX,
            payload_bytes_max: PAYLOAD_BYTES_MAX,
            frame_bytes_max: FRAME_BYTES_MAX,
            publish: PUBLISH_WINDOW,
        }
    }
}

/// What a frame from the client asks the broker to do.
#[derive(Debug, PartialEq)]
pub enum BrokerEvent<P> {
    /// The client says who it is. Answer with [`BrokerSession::accept`] or [`BrokerSession::close`].
    Connect(Box<packet::Connect>),
    /// Append this. Answer with [`BrokerSession::acknowledge`] or [`BrokerSession::refuse`].
    Publish(packet::Publish),
    /// Read this. Answer with [`BrokerSession::respond`], [`BrokerSession::respond_history`] or
    /// [`BrokerSession::refuse`].
    Request(packet::Request),
    /// The client will not repeat this id, which is surely not stored.
    GiveUp(MessageId),
    /// The client has stored everything up to these places; `None` says nothing new about a lane.
    Acked {
        /// The place of the newest item acked in the express lane.
        express: Option<P>,
        /// The place of the newest item acked in the bulk lane.
        bulk: Option<P>,
    },
    /// The client could not store these. Read them again and give each to [`BrokerSession::resend`], with the numbers
    /// from `from_n` on.
    Resend {
        /// Of which lane.
        lane: Lane,
        /// The number of the first.
        from_n: u64,
        /// The places, in order.
        places: Vec<P>,
    },
    /// Carry this to who is there, or drop it: there is no answer.
    Signal(packet::Signal),
    /// The client is going and wants nothing more. What is queued still leaves.
    Goodbye {
        /// Its will stays as it is.
        keep_will: bool,
    },
}

/// The broker's end of a session. `P` is whatever tells the broker where to read an item in flight again.
#[derive(Debug)]
pub struct BrokerSession<P> {
    state: State,
    /// A heartbeat waits for an answer.
    heartbeat_owed: bool,
    /// Requests without an answer that has left.
    requests: u8,
    /// When anything was last heard; before `Open`, when the connection was accepted.
    heard: Millis,
    /// The time between heartbeats that the client picked.
    heartbeat_ms: u32,
    limits: BrokerLimits,
    /// The lowest id that may still be published.
    first_unanswered: MessageId,
    publishes: PublishWindow,
    refused: OpenRefusals,
    answers: Answers,
    express: LaneOut<P>,
    bulk: LaneOut<P>,
    /// Cursors that wait for what they cover to leave: the oldest, which must not be held up for ever by newer ones,
    /// and the newest.
    cursors: Vec<PendingCursor>,
    ask: Option<Box<Ask>>,
    /// How many `AckRequest`s there were.
    asked: u32,
    /// When the signals that it sent will be paid for by time.
    signals_paid_at: Millis,
    /// Why it was ended, if it was.
    ended_by: Option<Reason>,
    /// What was refused since that was last asked; nothing most of the time.
    tally: Option<Box<Tally>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Asking,
    Open,
    Closed,
}

#[derive(Debug)]
struct PendingCursor {
    express: u64,
    bulk: u64,
    cursor: Bytes,
}

/// An `AckRequest` under way.
#[derive(Debug)]
struct Ask {
    phase: AskPhase,
    /// What stood before it in each lane.
    express: u64,
    bulk: u64,
    deadline: Millis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AskPhase {
    /// It waits to leave.
    Queued,
    /// It has left.
    Left,
    /// It is answered; what was missing waits for `poll_event`.
    Answered,
}

impl<P: Copy> BrokerSession<P> {
    /// A session that waits for `Connect`, from the moment its connection was accepted.
    #[must_use]
    pub fn new(now: Millis, limits: BrokerLimits) -> Self {
        Self {
            state: State::Waiting,
            heartbeat_owed: false,
            requests: 0,
            heard: now,
            heartbeat_ms: 0,
            limits,
            first_unanswered: MessageId(1),
            publishes: PublishWindow::new(limits.publish),
            refused: OpenRefusals::new(),
            answers: Answers::new(),
            express: LaneOut::new(),
            bulk: LaneOut::new(),
            cursors: Vec::new(),
            ask: None,
            asked: 0,
            signals_paid_at: Millis(0),
            ended_by: None,
            tally: None,
        }
    }

    /// Whether the client is connected.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Whether nothing more is taken. What [`Self::poll_transmit`] still gives should leave before the socket closes.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// The reason for which it was ended; `None` while it goes on, and after the client's `Goodbye`.
    #[must_use]
    pub fn ended_by(&self) -> Option<Reason> {
        self.ended_by
    }

    /// What was refused since this was last called.
    pub fn take_tally(&mut self) -> Option<Box<Tally>> {
        self.tally.take()
    }

    /// How many items were given to be sent, in both lanes.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.express.given() + self.bulk.given()
    }

    /// Whether nothing is under way in either direction: no publish, request or item without its answer, and nothing
    /// to send.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.publishes.is_empty()
            && self.requests == 0
            && self.express.is_empty()
            && self.bulk.is_empty()
            && !self.wants_transmit()
    }

    /// Whether [`Self::poll_transmit`] has something to write.
    #[must_use]
    pub fn wants_transmit(&self) -> bool {
        self.has_waiting() || !self.is_closed() && self.heartbeat_owed
    }

    /// Whether anything but the answer to a heartbeat waits to leave.
    fn has_waiting(&self) -> bool {
        let open = self.express.has_waiting()
            || self.bulk.has_waiting()
            || !self.cursors.is_empty()
            || self.ask.as_ref().is_some_and(|ask| ask.phase == AskPhase::Queued);
        !self.answers.is_empty() || !self.is_closed() && open
    }

    /// Whether answers wait to leave. Who holds back what has long answers (pages of history) while this is so keeps
    /// what a client that does not read can make the broker hold to one page.
    #[must_use]
    pub fn has_answers_waiting(&self) -> bool {
        !self.answers.is_empty()
    }

    /// The longest frame to accept now: give it to the codec.
    #[must_use]
    pub const fn frame_bytes_max(&self) -> u32 {
        match self.state {
            State::Waiting | State::Asking => PRE_AUTH_FRAME_BYTES_MAX,
            State::Open | State::Closed => self.limits.frame_bytes_max,
        }
    }

    /// What a lane's window still takes; nothing unless the session is open. See [`Room::bytes`] for the case of an
    /// empty lane.
    #[must_use]
    pub fn room(&self, lane: Lane) -> Room {
        if self.is_open() { self.lane(lane).room() } else { Room::NONE }
    }

    /// The ids of this session that were refused for now and are still open.
    #[must_use]
    pub const fn open_refusals(&self) -> &OpenRefusals {
        &self.refused
    }

    /// Any byte has arrived: a sign of life, also while a long frame is under way (SPEC R9-3).
    pub fn handle_bytes(&mut self, now: Millis) {
        // Before it is let in, a client has so long and no longer, whatever it sends.
        if self.is_open() {
            self.heard = now;
        }
    }

    /// A frame has arrived, that took `bytes` on the wire. Drain [`Self::poll_event`] afterwards.
    ///
    /// # Errors
    /// The client broke a rule, or is refused: the connection ends, and the refusal is queued to be sent.
    pub fn handle_frame(&mut self, now: Millis, frame: Frame, bytes: usize) -> Result<Option<BrokerEvent<P>>, Refusal> {
        if self.is_closed() {
            return Ok(None);
        }
        self.handle_bytes(now);
        let kind = match frame {
            Frame::Heartbeat => {
                self.heartbeat_owed = true;
                self.shrink();
                return Ok(None);
            }
            Frame::Unknown => return Ok(None),
            Frame::Packet(kind) => kind,
        };
        let event = match (self.state, kind) {
            (State::Waiting, Kind::Connect(connect)) => self.connect(connect),
            (State::Open, Kind::Publish(publish)) => self.publish(publish, bytes),
            (State::Open, Kind::Request(request)) => self.request(request, bytes),
            (State::Open, Kind::Ack(ack)) => self.ack(ack),
            (State::Open, Kind::GiveUp(give_up)) => self.give_up(MessageId(give_up.message_id)),
            (State::Open, Kind::Signal(signal)) => {
                let carried = self.carries(&signal, now);
                return Ok(carried.then_some(BrokerEvent::Signal(signal)));
            }
            (_, Kind::Goodbye(goodbye)) => {
                self.end();
                Ok(Some(BrokerEvent::Goodbye { keep_will: goodbye.keep_will }))
            }
            _ => Err(Refusal::connection(Reason::UnexpectedPacket)),
        };
        event.inspect_err(|refusal| self.close(refusal.clone()))
    }

    /// The deadline of [`Self::poll_deadline`] may have passed.
    ///
    /// # Errors
    /// Something took too long: the connection ends, and the refusal is queued to be sent.
    pub fn handle_deadline(&mut self, now: Millis) -> Result<(), Refusal> {
        let late = match self.state {
            State::Closed => None,
            State::Waiting | State::Asking => (now >= self.heard.after(AUTH_MS)).then_some(Reason::HandshakeTimeout),
            State::Open if now >= self.silence_deadline() => Some(Reason::HeartbeatTimeout),
            State::Open => match &self.ask {
                Some(ask) if now >= ask.deadline => Some(Reason::AckTimeout),
                Some(_) => None,
                None => {
                    if self.overdue_at().is_some_and(|overdue| now >= overdue) {
                        self.ask_for_acks(now);
                    }
                    None
                }
            },
        };
        let Some(reason) = late else { return Ok(()) };
        let refusal = Refusal::connection(reason);
        self.close(refusal.clone());
        Err(refusal)
    }

    /// Lets the client in: queues `connected`, in which the session fills in the bounds, windows and heartbeat range.
    pub fn accept(&mut self, now: Millis, connected: packet::Connected) {
        if self.is_closed() {
            return;
        }
        assert!(self.state == State::Asking, "a client was accepted that has not asked");
        let limits = self.limits;
        let connected = packet::Connected {
            heartbeat_ms_min: limits.heartbeat_ms_min,
            heartbeat_ms_max: limits.heartbeat_ms_max,
            payload_bytes_max: limits.payload_bytes_max,
            frame_bytes_max: limits.frame_bytes_max,
            publish: Some(limits.publish),
            express: Some(self.express.window()),
            bulk: Some(self.bulk.window()),
            ..connected
        };
        self.state = State::Open;
        self.heard = now;
        self.first_unanswered = self.first_unanswered.max(MessageId(connected.first_unanswered));
        self.answers.push(&Kind::Connected(connected), Frees::Nothing);
    }

    /// The publish is stored. Frees its place in the window as it leaves; says nothing if the session has ended.
    pub fn acknowledge(&mut self, ack: packet::PublishAck) {
        if self.is_closed() {
            return;
        }
        let open = self.publishes.answer(ack.message_id);
        assert!(open.is_some(), "an id was acknowledged that was not published, or twice");
        self.answers.push_ack(ack);
    }

    /// The publish or request is refused. A refusal about neither closes the session.
    pub fn refuse(&mut self, refusal: Refusal) {
        if self.is_closed() {
            return;
        }
        if refusal.ends_connection() {
            return self.close(refusal);
        }
        let asked = if refusal.message_id.is_some() { Asked::Publish } else { Asked::Request };
        self.tally.get_or_insert_default().note(asked, refusal.reason);
        let frees = if refusal.message_id.is_some() {
            let open = self.publishes.answer(refusal.message_id.0);
            assert!(open.is_some(), "an id was refused that was not published, or twice");
            self.refused.refused(open.unwrap_or_default(), refusal.message_id, refusal.reason.verdict());
            Frees::Publish(refusal.message_id.0)
        } else {
            Frees::Request
        };
        self.answers.push(&Kind::Refused((&refusal).into()), frees);
    }

    /// Answers a request.
    pub fn respond(&mut self, response: packet::Response) {
        if !self.is_closed() {
            self.answers.push(&Kind::Response(response), Frees::Request);
        }
    }

    /// Answers a history request with items that are encoded already.
    pub fn respond_history(&mut self, id: u64, items: &[Bytes], next_seq: u64, head_seq: u64) {
        if !self.is_closed() {
            self.answers.push_history(id, items, next_seq, head_seq);
        }
    }

    /// Sends an encoded [`packet::Item`] in a lane whose [`Self::room`] admits it. `place` comes back when it is acked
    /// or has to be read again.
    pub fn deliver(&mut self, now: Millis, lane: Lane, place: P, item: Bytes) {
        if !self.is_closed() {
            self.lane_mut(lane).give(now, place, item);
        }
    }

    /// Sends an item once more, as [`BrokerEvent::Resend`] asked: the same, or the `Head` that it has become.
    pub fn resend(&mut self, now: Millis, lane: Lane, n: u64, item: &Bytes) {
        if !self.is_closed() {
            self.lane_mut(lane).give_again(now, n, item);
        }
    }

    /// Sends the cursor of all that was delivered so far, in both lanes. It leaves behind all of that.
    pub fn cursor(&mut self, cursor: Bytes) {
        assert!(cursor.len() <= CURSOR_BYTES_MAX, "a cursor is too long");
        if self.is_closed() {
            return;
        }
        if self.cursors.len() == 2 {
            self.cursors.pop();
        }
        self.cursors.push(PendingCursor { express: self.express.given(), bulk: self.bulk.given(), cursor });
    }

    /// Tells the client to go elsewhere soon.
    pub fn goaway(&mut self, retry_after_ms: u32) {
        if !self.is_closed() {
            self.answers.push(&Kind::Goaway(packet::Goaway { retry_after_ms }), Frees::Nothing);
        }
    }

    /// Ends the session: queues the refusal behind the answers that wait, and drops the rest.
    pub fn close(&mut self, refusal: Refusal) {
        if self.is_closed() {
            return;
        }
        let refusal = Refusal { message_id: MessageId::NONE, request: 0, ..refusal };
        self.ended_by = Some(refusal.reason);
        self.answers.push(&Kind::Refused((&refusal).into()), Frees::Nothing);
        self.end();
    }

    /// What the last frame said beyond the event it returned: call it until it gives nothing.
    pub fn poll_event(&mut self) -> Option<BrokerEvent<P>> {
        let ask = self.ask.as_mut().filter(|ask| ask.phase == AskPhase::Answered)?;
        // A lane whose number is 0 has been looked at.
        let (express, bulk) = (std::mem::take(&mut ask.express), std::mem::take(&mut ask.bulk));
        if let Some((from_n, places)) = self.express.missing(express) {
            ask.bulk = bulk;
            return Some(BrokerEvent::Resend { lane: Lane::Express, from_n, places });
        }
        self.ask = None;
        let (from_n, places) = self.bulk.missing(bulk)?;
        Some(BrokerEvent::Resend { lane: Lane::Bulk, from_n, places })
    }

    /// Appends frames to `out` until that holds `max` bytes (an empty `out` takes one frame of any size); says whether
    /// it wrote any. Answers and acks first, then the express lane, then the bulk lane, then cursors and `AckRequest`.
    pub fn poll_transmit(&mut self, _now: Millis, out: &mut BytesMut, max: usize) -> bool {
        let begin = out.len();
        self.write_all(out, max);
        let wrote = out.len() > begin;
        if self.heartbeat_owed && (wrote || begin < max) && !self.is_closed() {
            if !wrote {
                frame::encode_heartbeat(out);
            }
            self.heartbeat_owed = false;
        }
        out.len() > begin
    }

    /// Appends a signal to `out` if nothing else waits to leave and `out` holds less than `max` bytes; says whether it
    /// did. What could not leave may be offered again, or dropped.
    pub fn transmit_signal(&mut self, signal: &packet::Signal, out: &mut BytesMut, max: usize) -> bool {
        if !self.is_open() || self.has_waiting() || out.len() >= max {
            return false;
        }
        frame::encode(&Kind::Signal(signal.clone()), out);
        self.heartbeat_owed = false;
        true
    }

    /// When to call [`Self::handle_deadline`], unless something else is handled before.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Millis> {
        match self.state {
            State::Closed => None,
            State::Waiting | State::Asking => Some(self.heard.after(AUTH_MS)),
            State::Open => {
                let acks = self.ask.as_ref().map(|ask| ask.deadline).or_else(|| self.overdue_at());
                let silence = self.silence_deadline();
                Some(acks.map_or(silence, |acks| acks.min(silence)))
            }
        }
    }

    // ------------------------------------------------------------------------------------------ what arrives

    fn connect(&mut self, connect: packet::Connect) -> Result<Option<BrokerEvent<P>>, Refusal> {
        handshake::check(&connect)?;
        let wish = if connect.heartbeat_ms == 0 { HEARTBEAT_MS } else { connect.heartbeat_ms };
        self.heartbeat_ms = wish.clamp(self.limits.heartbeat_ms_min, self.limits.heartbeat_ms_max);
        // A new incarnation begins at 1.
        let told = if connect.incarnation == 0 { 1 } else { connect.first_unanswered.max(1) };
        self.first_unanswered = MessageId(told);
        self.express.set_window(delivery_window(connect.express, EXPRESS_WINDOW));
        self.bulk.set_window(delivery_window(connect.bulk, BULK_WINDOW));
        self.state = State::Asking;
        Ok(Some(BrokerEvent::Connect(Box::new(connect))))
    }

    fn publish(&mut self, mut publish: packet::Publish, bytes: usize) -> Result<Option<BrokerEvent<P>>, Refusal> {
        let id = MessageId(publish.message_id);
        if !id.is_some() {
            return Err(Refusal::connection(Reason::Malformed).because("a publish without a message id"));
        }
        if self.publishes.contains(id.0) {
            return Err(Refusal::connection(Reason::UnexpectedPacket).because("an id that has no answer yet"));
        }
        if !self.publishes.room().admits(bytes) {
            return Err(Refusal::connection(Reason::WindowExceeded));
        }
        self.publishes.push(id.0, publish.conversation, bytes);
        self.first_unanswered = self.first_unanswered.max(MessageId(publish.first_unanswered));
        self.refused.close_below(self.first_unanswered);
        // It is repeated, whatever comes of that. So an id is open at most once, and their span bounds what is kept.
        self.refused.close(id);
        match self.judge(&publish) {
            None => {
                // What a publish told that went no further is told by the next one: the client says it once.
                publish.first_unanswered = self.first_unanswered.0;
                Ok(Some(BrokerEvent::Publish(publish)))
            }
            Some(reason) => {
                self.refuse(Refusal::publish(id, reason));
                Ok(None)
            }
        }
    }

    /// Why a publish is refused before anyone else sees it.
    fn judge(&self, publish: &packet::Publish) -> Option<Reason> {
        let id = MessageId(publish.message_id);
        if id < self.first_unanswered {
            Some(Reason::StaleId)
        } else if id.0 - self.first_unanswered.0 >= ID_SPAN_MAX {
            Some(Reason::IdSpanExceeded)
        } else if publish.content.len() > self.limits.payload_bytes_max as usize {
            Some(Reason::PayloadTooLarge)
        } else if self.refused.blocks(publish.conversation, id) {
            Some(Reason::After)
        } else {
            None
        }
    }

    fn request(&mut self, request: packet::Request, bytes: usize) -> Result<Option<BrokerEvent<P>>, Refusal> {
        if request.id == 0 {
            return Err(Refusal::connection(Reason::Malformed).because("a request without an id"));
        }
        if u32::from(self.requests) >= REQUESTS_MAX {
            return Err(Refusal::connection(Reason::WindowExceeded).because("too many requests without an answer"));
        }
        self.requests += 1;
        let wrong = if bytes > REQUEST_BYTES_MAX {
            Some(Reason::InvalidArgument)
        } else {
            request.op.is_none().then_some(Reason::Unsupported)
        };
        if let Some(reason) = wrong {
            self.refuse(Refusal::request(request.id, reason));
            return Ok(None);
        }
        Ok(Some(BrokerEvent::Request(request)))
    }

    /// Whether a signal is one that a client sends, and the session has time left for it.
    fn carries(&mut self, signal: &packet::Signal, now: Millis) -> bool {
        use packet::SignalKind::{App, Recording, Stopped, Typing};
        let is_known = matches!(packet::SignalKind::try_from(signal.kind), Ok(Typing | Recording | Stopped | App));
        if !is_known || signal.conversation == 0 || signal.content.len() > SIGNAL_BYTES_MAX {
            return false;
        }
        let paid_at = self.signals_paid_at.max(now).after(SIGNAL_EVERY_MS);
        let has_time = paid_at.since(now) <= SIGNALS_AHEAD * SIGNAL_EVERY_MS;
        if has_time {
            self.signals_paid_at = paid_at;
        }
        has_time
    }

    fn give_up(&mut self, id: MessageId) -> Result<Option<BrokerEvent<P>>, Refusal> {
        if self.publishes.contains(id.0) || !id.is_some() {
            return Err(Refusal::connection(Reason::UnexpectedPacket).because("an id that has no answer yet"));
        }
        // One that is not open closes nothing, here or elsewhere: so many of them are no work for anyone.
        Ok(self.refused.close(id).then_some(BrokerEvent::GiveUp(id)))
    }

    fn ack(&mut self, ack: packet::Ack) -> Result<Option<BrokerEvent<P>>, Refusal> {
        if ack.express > self.express.left() || ack.bulk > self.bulk.left() {
            return Err(Refusal::connection(Reason::AckOfTheUnsent));
        }
        let (express, bulk) = (self.express.ack(ack.express), self.bulk.ack(ack.bulk));
        if ack.answer != 0 {
            self.take_answer(ack.answer)?;
        }
        if express.is_some() || bulk.is_some() {
            return Ok(Some(BrokerEvent::Acked { express, bulk }));
        }
        Ok(self.poll_event())
    }

    fn take_answer(&mut self, k: u64) -> Result<(), Refusal> {
        let Some(ask) = self.ask.as_mut().filter(|ask| ask.phase == AskPhase::Left && k == u64::from(self.asked))
        else {
            return Err(Refusal::connection(Reason::UnexpectedPacket).because("an answer that was not asked for"));
        };
        if self.express.is_lost(ask.express) || self.bulk.is_lost(ask.bulk) {
            return Err(Refusal::connection(Reason::AckTimeout).because("sent twice, and not stored"));
        }
        ask.phase = AskPhase::Answered;
        if self.express.acked() >= ask.express && self.bulk.acked() >= ask.bulk {
            self.ask = None;
        }
        Ok(())
    }

    // ------------------------------------------------------------------------------------------ what leaves

    fn write_all(&mut self, out: &mut BytesMut, max: usize) {
        while let Some(len) = self.answers.next_len() {
            if !has_room(out, len, max) {
                return;
            }
            let frees = self.answers.write(out);
            self.free(frees);
        }
        if self.is_closed() {
            return;
        }
        for lane in [Lane::Express, Lane::Bulk] {
            while let Some(len) = self.lane(lane).next_len(lane) {
                if !has_room(out, len, max) {
                    return;
                }
                let bytes_max = max.saturating_sub(out.len()).min(self.limits.frame_bytes_max as usize);
                self.lane_mut(lane).write(lane, bytes_max, out);
            }
        }
        while let Some(next) = self.cursors.first()
            && self.express.is_past(next.express)
            && self.bulk.is_past(next.bulk)
        {
            if !has_room(out, CURSOR_BYTES_MAX, max) {
                return;
            }
            let PendingCursor { cursor, .. } = self.cursors.remove(0);
            frame::encode(&Kind::Cursor(packet::Cursor { cursor }), out);
        }
        let k = u64::from(self.asked);
        if let Some(ask) = self.ask.as_mut().filter(|ask| ask.phase == AskPhase::Queued)
            && has_room(out, ACK_FRAME_BYTES_MAX, max)
        {
            ask.phase = AskPhase::Left;
            (ask.express, ask.bulk) = (self.express.left(), self.bulk.left());
            frame::encode(&Kind::AckRequest(packet::AckRequest { k }), out);
        }
    }

    fn free(&mut self, frees: Frees) {
        match frees {
            Frees::Nothing => {}
            Frees::Publish(id) => drop(self.publishes.free(id)),
            Frees::Request => self.requests = self.requests.saturating_sub(1),
        }
    }

    fn ask_for_acks(&mut self, now: Millis) {
        self.asked += 1;
        let unacked = u64::from(self.express.bytes() + self.bulk.bytes());
        let wait = ACK_ANSWER_MS + unacked.div_ceil(1024) * ACK_ANSWER_PER_KIB_MS;
        self.ask = Some(Box::new(Ask { phase: AskPhase::Queued, express: 0, bulk: 0, deadline: now.after(wait) }));
    }

    fn overdue_at(&self) -> Option<Millis> {
        let oldest = [self.express.oldest(), self.bulk.oldest()].into_iter().flatten().min();
        oldest.map(|oldest| oldest.after(ACK_OVERDUE_MS))
    }

    /// One and a half intervals without a byte is the end.
    const fn silence_deadline(&self) -> Millis {
        self.heard.after(self.heartbeat_ms as u64 * 3 / 2)
    }

    fn end(&mut self) {
        self.state = State::Closed;
        self.express.clear();
        self.bulk.clear();
        self.cursors = Vec::new();
        self.ask = None;
    }

    /// Gives back memory that is not in use. A heartbeat does so too: it says that the client has nothing to say.
    pub fn shrink(&mut self) {
        self.publishes.shrink();
        self.express.shrink();
        self.bulk.shrink();
        self.answers.shrink();
        if self.cursors.is_empty() {
            self.cursors = Vec::new();
        }
    }

    const fn lane(&self, lane: Lane) -> &LaneOut<P> {
        match lane {
            Lane::Express => &self.express,
            Lane::Bulk => &self.bulk,
        }
    }

    const fn lane_mut(&mut self, lane: Lane) -> &mut LaneOut<P> {
        match lane {
            Lane::Express => &mut self.express,
            Lane::Bulk => &mut self.bulk,
        }
    }
}

fn has_room(out: &BytesMut, len: usize, max: usize) -> bool {
    out.is_empty() || out.len() + len <= max
}
