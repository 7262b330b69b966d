//! What is measured: pieces of work that repeat, each over a broker whose rooms are driven by hand in this one thread.
//! What clients say is made beforehand, and what they hear is not looked at, so that only the broker's side counts.

mod world;

use bytes::{Bytes, BytesMut};
use longwire::store::{EntryMeta, FrameBuilder, Log, Origin, Position, RedbLog, StoreOptions};
use longwire_protocol::frame::{FrameCodec, encode};
use longwire_protocol::packet::packet::Kind;
use longwire_protocol::packet::{self, item, request};
use longwire_protocol::{ConversationId, DeviceId, Incarnation, LogTime, MessageId, Seq};
use tokio_util::codec::Decoder as _;

use world::{Wire, World};

/// A piece of work.
pub(crate) struct Workload {
    /// Its name.
    pub(crate) name: &'static str,
    /// What is counted.
    pub(crate) unit: &'static str,
    /// How many of that one turn does.
    pub(crate) units: u64,
    /// Makes everything ready for so many turns; each call of what it returns is one.
    pub(crate) prepare: fn(turns: usize) -> Box<dyn FnMut()>,
}

/// Messages that arrive together on a busy connection.
const BURST: u64 = 32;
/// Heartbeats of a turn: enough that what differs from start to start, such as gathering randomness, is little beside them.
const HEARTBEATS: u64 = 100;
/// Readers of a channel.
const READERS: u64 = 1_000;
/// The content of each message.
const CONTENT: &[u8] = &[b'x'; 200];

/// All of them.
pub(crate) const ALL: [Workload; 7] = [
    Workload { name: "encode", unit: "packet", units: BURST, prepare: encoding },
    Workload { name: "decode", unit: "packet", units: BURST, prepare: decoding },
    Workload { name: "session", unit: "heartbeat", units: HEARTBEATS, prepare: heartbeat },
    Workload { name: "publish", unit: "message", units: BURST, prepare: publish },
    Workload { name: "fanout", unit: "recipient", units: READERS, prepare: fanout },
    Workload { name: "append", unit: "message", units: BURST, prepare: append },
    Workload { name: "history", unit: "page of 50", units: 1, prepare: history },
];

fn message(conversation: u64, message_id: u64, first_unanswered: u64) -> Kind {
    let content = Bytes::from_static(CONTENT);
    Kind::Publish(packet::Publish { conversation, message_id, first_unanswered, content, ..Default::default() })
}

fn burst(first: u64, mut kind: impl FnMut(u64) -> Kind) -> Bytes {
    let mut out = BytesMut::new();
    (first..first + BURST).for_each(|number| encode(&kind(number), &mut out));
    out.freeze()
}

/// Deliveries of one entry each, as they leave a broker.
fn encoding(_turns: usize) -> Box<dyn FnMut()> {
    let entry = packet::Entry {
        conversation: 70_000,
        seq: 1_000_000,
        sender: 90_000,
        time: 1 << 36,
        content: Bytes::from_static(CONTENT),
        ..Default::default()
    };
    let items = vec![packet::Item { kind: Some(item::Kind::Entry(entry)) }];
    let deliver = Kind::Deliver(packet::Deliver { n: 1_000, items, ..Default::default() });
    let mut out = BytesMut::with_capacity(64 << 10);
    Box::new(move || {
        (0..BURST).for_each(|_| encode(&deliver, &mut out));
        out.clear();
    })
}

/// Publishes, as they arrive.
fn decoding(_turns: usize) -> Box<dyn FnMut()> {
    let bytes = burst(1_000, |id| message(70_000, id, 0));
    Box::new(move || {
        let mut codec = FrameCodec::default();
        let mut input = BytesMut::from(&bytes[..]);
        let mut frames = 0;
        while codec.decode(&mut input).expect("good frames").is_some() {
            frames += 1;
        }
        assert_eq!(frames, BURST);
    })
}

/// A connection at rest that shows life: read, answered, and at rest again.
fn heartbeat(_turns: usize) -> Box<dyn FnMut()> {
    let mut world = World::new();
    let mut wire = world.connect("alice");
    Box::new(move || {
        for _ in 0..HEARTBEATS {
            wire.say(&[0]);
            world.turn(&mut wire);
            assert_eq!(wire.drop_heard(), 1, "the answer");
        }
    })
}

/// A burst of publishes of one connection: decoded, routed, logged in one group, fed, acked.
fn publish(turns: usize) -> Box<dyn FnMut()> {
    let mut world = World::new();
    let mut wire = world.connect("alice");
    let conversation = wire.open_channel(&mut world, "news");
    let bursts = bursts(&wire, conversation, turns as u64, BURST);
    let mut bursts = bursts.into_iter();
    Box::new(move || {
        wire.say(&bursts.next().expect("as many as were made ready"));
        world.turn(&mut wire);
        assert_eq!(wire.drop_acks(), BURST, "acks");
    })
}

/// What a publisher says in each turn, when all before is answered. It does not watch its channel, so nothing is delivered
/// to it.
fn bursts(wire: &Wire, conversation: u64, turns: u64, messages: u64) -> Vec<Bytes> {
    let first = |turn| wire.next_id + turn * messages;
    let say = |turn| {
        let mut out = BytesMut::new();
        (first(turn)..first(turn + 1)).for_each(|id| encode(&message(conversation, id, first(turn)), &mut out));
        out.freeze()
    };
    (0..turns).map(say).collect()
}

/// One message to a channel that many watch: routed, logged, fed, and written to every connection; they ack.
fn fanout(turns: usize) -> Box<dyn FnMut()> {
    let mut world = World::new();
    let mut publisher = world.connect("publisher");
    let conversation = publisher.open_channel(&mut world, "news");
    let mut readers: Vec<Wire> = (0..READERS).map(|number| world.connect(&format!("reader{number}"))).collect();
    for reader in &mut readers {
        let op = Some(request::Op::Watch(packet::WatchRequest { conversation, stop: false }));
        reader.ask(&mut world, &Kind::Request(packet::Request { id: 1, op }));
    }
    let mut messages = bursts(&publisher, conversation, turns as u64 + 1, 1).into_iter();
    // With the first message the readers are live: what it takes until then is not repeated.
    publisher.say(&messages.next().expect("one more"));
    world.turn(&mut publisher);
    assert_eq!(publisher.drop_acks(), 1, "an ack");
    for reader in &mut readers {
        world.turn(reader);
        reader.drop_heard();
    }
    let mut heard = 1;
    Box::new(move || {
        publisher.say(&messages.next().expect("as many as were made ready"));
        world.turn(&mut publisher);
        assert_eq!(publisher.drop_acks(), 1, "an ack");
        heard += 1;
        let mut ack = BytesMut::new();
        encode(&Kind::Ack(packet::Ack { bulk: heard, ..Default::default() }), &mut ack);
        for reader in &mut readers {
            reader.poll();
            assert!(reader.drop_heard() > CONTENT.len(), "the message");
            reader.say(&ack);
            reader.poll();
        }
    })
}

/// A group of messages, encoded and committed to the journal.
fn append(_turns: usize) -> Box<dyn FnMut()> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut log = RedbLog::open(&folder.path().join("store"), StoreOptions::default()).expect("a store");
    let segment = log.segments().last().expect("its own").id;
    let mut seq = 0;
    Box::new(move || {
        let _kept = &folder;
        let mut frame = FrameBuilder::new(segment, Position(log.tail().0 + 1), LogTime(seq));
        for _ in 0..BURST {
            seq += 1;
            let origin = Origin { device: DeviceId(2), incarnation: Incarnation(3), message_id: MessageId(seq) };
            let meta =
                EntryMeta { conversation: ConversationId(70_000), seq: Seq(seq), origin, ..EntryMeta::default() };
            frame.push_entry(&meta, |out| out.extend_from_slice(CONTENT));
        }
        log.append(&frame.finish()).expect("appended");
    })
}

/// The newest 50 messages of a conversation, from memory.
fn history(_turns: usize) -> Box<dyn FnMut()> {
    let mut world = World::new();
    let mut wire = world.connect("alice");
    let conversation = wire.open_channel(&mut world, "news");
    for burst in bursts(&wire, conversation, 10, BURST) {
        wire.say(&burst);
        world.turn(&mut wire);
        assert_eq!(wire.drop_acks(), BURST, "acks");
    }
    let page = packet::HistoryRequest { conversation, from_seq: 0, limit: 50, backwards: true, compact: false };
    let asked = Kind::Request(packet::Request { id: 1, op: Some(request::Op::History(page)) });
    let mut bytes = BytesMut::new();
    encode(&asked, &mut bytes);
    Box::new(move || {
        wire.say(&bytes);
        world.turn(&mut wire);
        assert!(wire.drop_heard() > 50 * CONTENT.len(), "a page");
    })
}
