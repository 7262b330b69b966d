//! The target `session_broker`: the broker's session against any client, any order of what a broker may do with it, and
//! counters that know what it must hold and send.

use std::collections::{BTreeSet, VecDeque};

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio_util::codec::Decoder as _;

use super::input::Input;
use crate::{
    BrokerEvent, BrokerLimits, BrokerSession, Frame, FrameCodec, Lane, MessageId, Millis, Reason, Refusal, frame,
    limits::{
        BULK_WINDOW, EXPRESS_WINDOW, FRAME_BYTES_CEILING, ID_SPAN_MAX, REQUEST_BYTES_MAX, REQUESTS_MAX,
        SIGNAL_BYTES_MAX, SIGNAL_EVERY_MS, SIGNALS_AHEAD, delivery_window,
    },
    packet::{self, Window, packet::Kind, request::Op},
    varint,
};

/// Steps of one story at most: enough for every window to fill and empty several times.
const STEPS_MAX: usize = 400;
/// What a broker writes at once.
const CHUNKS: [usize; 5] = [1, 100, 4 << 10, 64 << 10, 1 << 20];
const WAITS_MS: [u64; 8] = [0, 1, 999, 1_000, 9_000, 10_000, 20_000, 60_000];
const ITEM_BYTES: [usize; 6] = [2, 20, 200, 2_000, 20_000, 70_000];

/// Bytes of a client in any pieces, time, and every call a broker may make.
///
/// # Panics
/// If a window is exceeded or goes wrong, if more is held than the windows admit, or if the session does not end.
pub fn session_broker(data: &[u8]) {
    let mut input = Input::new(data);
    let mut story = Story::new();
    for _ in 0..STEPS_MAX {
        if input.is_over() || story.session.is_closed() {
            break;
        }
        story.step(&mut input);
        story.check();
    }
    story.end();
}

/// One lane as the counters see it. Places are numbers, so that an ack can be checked.
#[derive(Default)]
struct Counted {
    window: Window,
    /// The bytes of what is given and not acked, oldest first.
    in_flight: VecDeque<usize>,
    given: u64,
    /// The newest number seen on the wire.
    left: u64,
}

impl Counted {
    fn acked(&self) -> u64 {
        self.given - self.in_flight.len() as u64
    }

    fn bytes(&self) -> usize {
        self.in_flight.iter().sum()
    }
}

/// An encoded item of exactly so many bytes: a field of a kind to come.
fn item(len: usize) -> Bytes {
    const TAG_TO_COME: u8 = 15 << 3 | 2;
    let prefix = (1..4).find(|&prefix| varint::len((len - 1 - prefix) as u64) == prefix).expect("a length that fits");
    let mut item = BytesMut::with_capacity(len);
    item.put_u8(TAG_TO_COME);
    varint::write((len - 1 - prefix) as u64, &mut item);
    item.resize(len, 0);
    item.freeze()
}

struct Story {
    now: Millis,
    session: BrokerSession<u64>,
    codec: FrameCodec,
    arrived: BytesMut,
    written: BytesMut,
    onlooker: FrameCodec,
    express: Counted,
    bulk: Counted,
    /// Ids without an answer, and their bytes on the wire.
    publishes: VecDeque<(u64, usize)>,
    /// Requests without an answer.
    requests: VecDeque<u64>,
    /// Every id that was ever published.
    ids: BTreeSet<u64>,
    resends: Vec<(Lane, u64)>,
    asked: u64,
    /// When the signals of the last ten seconds came through.
    signals: VecDeque<Millis>,
}

impl Story {
    fn new() -> Self {
        let now = Millis(1_000);
        Self {
            now,
            session: BrokerSession::new(now, BrokerLimits::default()),
            codec: FrameCodec::default(),
            arrived: BytesMut::new(),
            written: BytesMut::new(),
            onlooker: FrameCodec::new(FRAME_BYTES_CEILING),
            express: Counted::default(),
            bulk: Counted::default(),
            publishes: VecDeque::new(),
            requests: VecDeque::new(),
            ids: BTreeSet::new(),
            resends: Vec::new(),
            asked: 0,
            signals: VecDeque::new(),
        }
    }

    fn lane(&mut self, lane: Lane) -> &mut Counted {
        match lane {
            Lane::Express => &mut self.express,
            Lane::Bulk => &mut self.bulk,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 16 {
            0 => {
                let count = usize::from(input.byte());
                let bytes = input.take(count);
                self.arrived.extend_from_slice(bytes);
                self.read();
            }
            1..=6 => {
                let mut wire = BytesMut::new();
                match self.packet(input) {
                    Some(kind) => frame::encode(&kind, &mut wire),
                    None => frame::encode_heartbeat(&mut wire),
                }
                let piece = usize::from(input.byte()) + 1;
                for piece in wire.chunks(piece) {
                    self.session.handle_bytes(self.now);
                    self.arrived.extend_from_slice(piece);
                    self.read();
                }
            }
            7 => {
                self.now = self.now.after(input.choice(&WAITS_MS));
                let _ = self.session.handle_deadline(self.now);
            }
            8 | 9 => self.deliver(input),
            10 => self.answer(input),
            11 => self.respond(input),
            12 => self.session.cursor(vec![7; usize::from(input.byte())].into()),
            13 => self.resend(input),
            14 => match input.byte() {
                1 => self.signal(),
                0 => self.session.close(Refusal::connection(Reason::Draining)),
                n => self.session.goaway(n.into()),
            },
            _ => {
                let max = input.choice(&CHUNKS);
                self.write(max);
            }
        }
    }

    /// What a client may say, well or badly.
    fn packet(&self, input: &mut Input<'_>) -> Option<Kind> {
        let window = |input: &mut Input<'_>| {
            let items = input.number() as u32;
            (items != 0).then(|| Window { items, bytes: (input.number() as u32).saturating_mul(64) })
        };
        let near = |input: &mut Input<'_>, left: u64| match input.byte() {
            0 => 0,
            1 => input.number(),
            less => left.saturating_sub(u64::from(less - 2)),
        };
        Some(match input.byte() % 8 {
            0 => Kind::Connect(packet::Connect {
                version: 1,
                device: "d".into(),
                incarnation: u64::from(input.byte() & 1),
                first_unanswered: input.number(),
                heartbeat_ms: (input.number() as u32).saturating_mul(1_000),
                express: window(input),
                bulk: window(input),
                ..Default::default()
            }),
            1..=3 => Kind::Publish(packet::Publish {
                message_id: input.number(),
                first_unanswered: input.number(),
                conversation: u64::from(input.byte() % 8),
                content: vec![1; input.choice(&ITEM_BYTES)].into(),
                ..Default::default()
            }),
            4 => {
                let watch = packet::WatchRequest { ..Default::default() };
                Kind::Request(packet::Request { id: input.number(), op: Some(Op::Watch(watch)) })
            }
            5 => Kind::Ack(packet::Ack {
                express: near(input, self.express.left),
                bulk: near(input, self.bulk.left),
                answer: if input.byte() & 1 == 0 { 0 } else { self.asked },
            }),
            6 => Kind::GiveUp(packet::GiveUp { message_id: input.number() }),
            _ => match input.byte() {
                0 => Kind::Goodbye(packet::Goodbye { keep_will: input.byte() & 1 == 0 }),
                1 => Kind::Signal(packet::Signal {
                    conversation: input.number(),
                    kind: i32::from(input.byte() % 6),
                    content: vec![1; input.choice(&ITEM_BYTES)].into(),
                    ..Default::default()
                }),
                _ => return None,
            },
        })
    }

    /// Takes the frames that have arrived whole.
    fn read(&mut self) {
        loop {
            let before = self.arrived.len();
            let (frame, bytes) = match self.codec.decode(&mut self.arrived) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => return self.session.close(error.refusal()),
            };
            assert!(before >= self.arrived.len(), "reading takes bytes away");
            let said = frame.clone();
            if let Frame::Packet(Kind::Publish(publish)) = &said {
                self.ids.insert(publish.message_id);
            }
            let Ok(mut event) = self.session.handle_frame(self.now, frame, bytes) else {
                assert!(self.session.is_closed(), "a broken rule ends the session");
                return;
            };
            if self.session.is_open()
                && let Frame::Packet(Kind::Ack(ack)) = said
            {
                for (lane, n) in [(Lane::Express, ack.express), (Lane::Bulk, ack.bulk)] {
                    let counted = self.lane(lane);
                    assert!(n <= counted.left, "what has not left cannot be acked");
                    while counted.acked() < n {
                        counted.in_flight.pop_front();
                    }
                }
            }
            while let Some(what) = event {
                self.heard(what, bytes);
                event = self.session.poll_event();
            }
        }
        let reserved_max = 4 * (self.codec.frame_bytes_max() as usize + 1024);
        assert!(self.arrived.capacity() <= reserved_max.max(1 << 20), "{} reserved", self.arrived.capacity());
    }

    fn heard(&mut self, event: BrokerEvent<u64>, bytes: usize) {
        match event {
            BrokerEvent::Connect(connect) => {
                self.express.window = delivery_window(connect.express, EXPRESS_WINDOW);
                self.bulk.window = delivery_window(connect.bulk, BULK_WINDOW);
                self.session.accept(self.now, packet::Connected::default());
                self.codec.set_frame_bytes_max(self.session.frame_bytes_max());
            }
            BrokerEvent::Publish(publish) => {
                let id = publish.message_id;
                assert!(self.publishes.iter().all(|(open, _)| *open != id), "an id is open once");
                self.publishes.push_back((id, bytes));
            }
            BrokerEvent::Request(request) => {
                assert!(bytes <= REQUEST_BYTES_MAX, "requests are small");
                self.requests.push_back(request.id);
            }
            BrokerEvent::Acked { express, bulk } => {
                for (place, lane) in [(express, Lane::Express), (bulk, Lane::Bulk)] {
                    assert!(place.is_none_or(|place| place == self.lane(lane).acked()), "the place of the newest ack");
                }
            }
            BrokerEvent::Resend { lane, from_n, places } => {
                assert_eq!(from_n, self.lane(lane).acked() + 1, "from the first that is missing");
                for (n, place) in (from_n..).zip(places) {
                    assert!(n == place && n <= self.lane(lane).left, "what has left may come again");
                    self.resends.push((lane, n));
                }
            }
            BrokerEvent::GiveUp(id) => assert!(id.is_some(), "an id that there is"),
            BrokerEvent::Signal(signal) => {
                assert!(
                    signal.content.len() <= SIGNAL_BYTES_MAX && signal.conversation != 0,
                    "one that may be carried"
                );
                self.signals.push_back(self.now);
                let since = Millis(self.now.0.saturating_sub(10_000));
                self.signals.retain(|sent| *sent >= since);
                let rate_max = SIGNALS_AHEAD + 10_000 / SIGNAL_EVERY_MS;
                assert!(self.signals.len() as u64 <= rate_max, "no more signals than a session has");
            }
            BrokerEvent::Goodbye { .. } => assert!(self.session.is_closed(), "goodbye is the end"),
        }
    }

    /// A signal leaves only where nothing else would.
    fn signal(&mut self) {
        let waits = self.session.has_answers_waiting()
            || self.express.left < self.express.given
            || self.bulk.left < self.bulk.given;
        let left = self.session.transmit_signal(&packet::Signal::default(), &mut BytesMut::new(), 1);
        assert!(!(left && waits), "a signal overtook something");
    }

    fn deliver(&mut self, input: &mut Input<'_>) {
        let lane = input.choice(&[Lane::Express, Lane::Bulk]);
        let len = input.choice(&ITEM_BYTES);
        if !self.session.room(lane).admits(len) {
            return;
        }
        let counted = self.lane(lane);
        let is_alone = counted.in_flight.is_empty();
        let fits = counted.bytes() + len <= counted.window.bytes as usize;
        assert!(fits || is_alone, "room for more bytes than the window has");
        assert!(counted.in_flight.len() < counted.window.items as usize, "room for more items than the window has");
        counted.given += 1;
        counted.in_flight.push_back(len);
        let place = counted.given;
        self.session.deliver(self.now, lane, place, item(len));
    }

    fn answer(&mut self, input: &mut Input<'_>) {
        if self.publishes.is_empty() {
            return;
        }
        let at = usize::from(input.byte()) % self.publishes.len();
        let Some((id, _)) = self.publishes.remove(at) else { return };
        let reasons = [Reason::Overloaded, Reason::Forbidden, Reason::OutcomeUnknown, Reason::RateLimited];
        match input.byte() {
            n if n & 1 == 0 => self.session.acknowledge(packet::PublishAck { message_id: id, ..Default::default() }),
            n => self.session.refuse(Refusal::publish(MessageId(id), reasons[usize::from(n >> 1) % reasons.len()])),
        }
    }

    fn respond(&mut self, input: &mut Input<'_>) {
        let Some(id) = self.requests.pop_front() else { return };
        match input.byte() % 3 {
            0 => self.session.respond(packet::Response { id, result: None }),
            1 => self.session.respond_history(id, &vec![Bytes::from_static(&[0x32, 0]); 3], input.number(), 9),
            _ => self.session.refuse(Refusal::request(id, Reason::Forbidden)),
        }
    }

    fn resend(&mut self, input: &mut Input<'_>) {
        let Some((lane, n)) = self.resends.pop() else { return };
        let counted = self.lane(lane);
        let acked = counted.acked();
        // The same, or the smaller thing that it has become.
        let len = match n.checked_sub(acked + 1) {
            Some(index) => {
                let len = &mut counted.in_flight[index as usize];
                *len = if input.byte() & 1 == 0 { *len } else { 2 };
                *len
            }
            None => 2,
        };
        self.session.resend(self.now, lane, n, &item(len));
    }

    /// Writes, and looks at what leaves.
    fn write(&mut self, max: usize) {
        let mut out = BytesMut::new();
        let wrote = self.session.poll_transmit(self.now, &mut out, max);
        assert_eq!(wrote, !out.is_empty());
        self.written.extend_from_slice(&out);
        while let Some((frame, _)) = self.onlooker.decode(&mut self.written).expect("a broker writes good frames") {
            match frame {
                Frame::Packet(Kind::Deliver(deliver)) => {
                    let lane = Lane::try_from(deliver.lane).expect("a lane");
                    let last = deliver.n + deliver.items.len() as u64 - 1;
                    let counted = self.lane(lane);
                    assert!(deliver.n <= counted.left + 1, "no number is left out");
                    assert!(last <= counted.given, "nothing leaves that was not given");
                    counted.left = counted.left.max(last);
                }
                Frame::Packet(Kind::AckRequest(request)) => self.asked = request.k,
                Frame::Packet(_) | Frame::Heartbeat => {}
                Frame::Unknown => panic!("a broker says what it knows"),
            }
        }
        assert!(self.written.is_empty(), "whole frames leave");
    }

    /// What must hold between any two steps.
    fn check(&self) {
        let limits = BrokerLimits::default();
        let bytes: usize = self.publishes.iter().map(|(_, bytes)| bytes).sum();
        assert!(self.publishes.len() <= limits.publish.items as usize, "more publishes than the window has");
        assert!(bytes <= limits.publish.bytes as usize || self.publishes.len() == 1, "more bytes than the window has");
        assert!(self.requests.len() <= REQUESTS_MAX as usize, "more requests than may be");
        let refusals = self.session.open_refusals().len();
        assert!(refusals <= self.ids.len() && refusals as u64 <= ID_SPAN_MAX, "{refusals} refusals are kept");
        for (lane, counted) in [(Lane::Express, &self.express), (Lane::Bulk, &self.bulk)] {
            let room = self.session.room(lane);
            if self.session.is_open() {
                let items = counted.window.items - counted.in_flight.len() as u32;
                assert_eq!(room.items, items, "the window is counted right");
            } else {
                assert_eq!(room.items, 0, "no room unless it is open");
            }
        }
        if !self.session.is_closed() {
            assert!(self.session.poll_deadline().is_some(), "a session that lives has a deadline");
        }
    }

    /// Nothing arrives any more: the session ends by itself, and then wants nothing.
    fn end(mut self) {
        for _ in 0..8 {
            let Some(deadline) = self.session.poll_deadline() else { break };
            self.now = Millis(self.now.0.max(deadline.0));
            let _ = self.session.handle_deadline(self.now);
        }
        assert!(self.session.is_closed(), "a session without a client ends");
        assert_eq!(self.session.poll_deadline(), None);
        let mut turns = 0;
        while self.session.wants_transmit() {
            self.write(64 << 10);
            turns += 1;
            assert!(turns < 10_000, "what is queued leaves");
        }
        assert_eq!(self.session.handle_frame(self.now, Frame::Heartbeat, 1), Ok(None));
        self.session.deliver(self.now, Lane::Express, 0, Bytes::from_static(&[0x32, 0]));
        self.session.cursor(Bytes::new());
        assert!(!self.session.poll_transmit(self.now, &mut BytesMut::new(), 1 << 20), "the end is the end");
    }
}
