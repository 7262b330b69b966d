//! A small world: two sessions, the wire between them, and a clock that is moved by hand.

use bytes::{Bytes, BytesMut};
use longwire_protocol::{
    BrokerEvent, BrokerLimits, BrokerSession, ClientEvent, ClientSession, FrameCodec, Millis, Reason, Refusal, frame,
    packet::{self, packet::Kind},
};
use prost::Message as _;
use tokio_util::codec::Decoder as _;

/// More than either side ever writes at once here.
pub(crate) const PLENTY: usize = 1 << 20;

/// Both ends of a connection. A place is the number that the test gave an item.
pub(crate) struct Pair {
    pub(crate) now: Millis,
    pub(crate) client: ClientSession,
    pub(crate) broker: BrokerSession<u64>,
    at_broker: FrameCodec,
    at_client: FrameCodec,
}

/// Two ends that have not said anything.
pub(crate) fn pair_with(connect: packet::Connect, limits: BrokerLimits) -> Pair {
    let now = Millis(1_000_000);
    Pair {
        now,
        client: ClientSession::new(now, connect),
        broker: BrokerSession::new(now, limits),
        at_broker: FrameCodec::default(),
        at_client: FrameCodec::default(),
    }
}

/// Two ends with nothing special about them, connected.
pub(crate) fn open_pair() -> Pair {
    open_pair_with(connect(), BrokerLimits::default())
}

/// Two ends, connected.
pub(crate) fn open_pair_with(connect: packet::Connect, limits: BrokerLimits) -> Pair {
    let mut pair = pair_with(connect, limits);
    let events = pair.carry_up().expect("a good connect");
    assert!(matches!(events[..], [BrokerEvent::Connect(_)]));
    pair.broker.accept(pair.now, packet::Connected { user: 1, device: 2, session: 3, ..Default::default() });
    let events = pair.carry_down().expect("connected");
    assert!(matches!(events[..], [ClientEvent::Connected(_)]));
    pair
}

impl Pair {
    /// Time passes; nothing else does.
    pub(crate) fn wait(&mut self, ms: u64) {
        self.now = self.now.after(ms);
    }

    /// Everything that the client has to say reaches the broker.
    pub(crate) fn carry_up(&mut self) -> Result<Vec<BrokerEvent<u64>>, Refusal> {
        let mut wire = BytesMut::new();
        while self.client.poll_transmit(self.now, &mut wire, PLENTY) {}
        self.arrive_up(&mut wire)
    }

    /// These bytes reach the broker.
    pub(crate) fn arrive_up(&mut self, wire: &mut BytesMut) -> Result<Vec<BrokerEvent<u64>>, Refusal> {
        let mut events = Vec::new();
        while let Some((frame, bytes)) = self.at_broker.decode(wire).map_err(|error| error.refusal())? {
            events.extend(self.broker.handle_frame(self.now, frame, bytes)?);
            while let Some(event) = self.broker.poll_event() {
                events.push(event);
            }
        }
        // The test lets the client in when it wants to; its limit rises then.
        self.at_broker.set_frame_bytes_max(longwire_protocol::limits::FRAME_BYTES_MAX);
        Ok(events)
    }

    /// Everything that the broker has to say reaches the client.
    pub(crate) fn carry_down(&mut self) -> Result<Vec<ClientEvent>, Refusal> {
        let mut wire = BytesMut::new();
        while self.broker.poll_transmit(self.now, &mut wire, PLENTY) {}
        self.arrive_down(&mut wire)
    }

    /// These bytes reach the client.
    pub(crate) fn arrive_down(&mut self, wire: &mut BytesMut) -> Result<Vec<ClientEvent>, Refusal> {
        let mut events = Vec::new();
        while let Some((frame, bytes)) = self.at_client.decode(wire).map_err(|error| error.refusal())? {
            events.extend(self.client.handle_frame(self.now, frame, bytes)?);
            self.at_client.set_frame_bytes_max(self.client.frame_bytes_max());
        }
        Ok(events)
    }

    /// The broker hears this packet, whatever the client's session thinks.
    pub(crate) fn say_up(&mut self, kind: &Kind) -> Result<Vec<BrokerEvent<u64>>, Refusal> {
        self.arrive_up(&mut framed(kind))
    }

    /// The client hears this packet, whatever the broker's session thinks.
    pub(crate) fn say_down(&mut self, kind: &Kind) -> Result<Vec<ClientEvent>, Refusal> {
        self.arrive_down(&mut framed(kind))
    }

    /// What the broker writes now.
    pub(crate) fn broker_writes(&mut self) -> Vec<Wire> {
        let mut wire = BytesMut::new();
        while self.broker.poll_transmit(self.now, &mut wire, PLENTY) {}
        read_all(wire)
    }

    /// What the client writes now.
    pub(crate) fn client_writes(&mut self) -> Vec<Wire> {
        let mut wire = BytesMut::new();
        while self.client.poll_transmit(self.now, &mut wire, PLENTY) {}
        read_all(wire)
    }

    /// Both deadlines are looked at.
    pub(crate) fn deadlines(&mut self) -> (Result<(), Refusal>, Result<(), Refusal>) {
        (self.broker.handle_deadline(self.now), self.client.handle_deadline(self.now))
    }
}

/// A frame as an onlooker on the wire sees it.
pub(crate) type Wire = frame::Frame;

/// All frames in these bytes.
pub(crate) fn read_all(mut wire: BytesMut) -> Vec<Wire> {
    let mut codec = FrameCodec::new(longwire_protocol::limits::FRAME_BYTES_CEILING);
    let mut frames = Vec::new();
    while let Some((frame, _)) = codec.decode(&mut wire).expect("good bytes") {
        frames.push(frame);
    }
    assert!(wire.is_empty(), "a partial frame was left");
    frames
}

pub(crate) fn framed(kind: &Kind) -> BytesMut {
    let mut wire = BytesMut::new();
    frame::encode(kind, &mut wire);
    wire
}

/// A connect that is let in.
pub(crate) fn connect() -> packet::Connect {
    packet::Connect { version: 1, device: "phone".into(), token: "token".into(), ..Default::default() }
}

/// A message of that many bytes.
pub(crate) fn message(id: u64, conversation: u64, len: usize) -> packet::Publish {
    packet::Publish { conversation, message_id: id, content: vec![7; len].into(), ..Default::default() }
}

pub(crate) fn stored(id: u64) -> packet::PublishAck {
    packet::PublishAck { message_id: id, seq: id, ..Default::default() }
}

/// An encoded item with a content of that many bytes.
pub(crate) fn item(seq: u64, len: usize) -> Bytes {
    let entry = packet::Entry { conversation: 9, seq, content: vec![1; len].into(), ..Default::default() };
    packet::Item { kind: Some(packet::item::Kind::Entry(entry)) }.encode_to_vec().into()
}

/// The reason of a refusal that must be there.
#[track_caller]
pub(crate) fn reason<T: std::fmt::Debug>(result: Result<T, Refusal>) -> Reason {
    result.expect_err("a refusal").reason
}

/// The reasons of the refusals among these frames.
pub(crate) fn refusals(frames: &[Wire]) -> Vec<Refusal> {
    frames
        .iter()
        .filter_map(|frame| match frame {
            frame::Frame::Packet(Kind::Refused(refused)) => Some(Refusal::from(refused.clone())),
            _ => None,
        })
        .collect()
}
