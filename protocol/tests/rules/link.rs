//! Two sessions over a link that delays, splits and cuts at every byte: what was acked is there, what is there is there
//! once and in order, and after the cut the rest follows on a new connection.

use bytes::{Buf as _, Bytes, BytesMut};
use longwire_protocol::{
    BrokerEvent, BrokerLimits, BrokerSession, ClientEvent, ClientSession, FrameCodec, Lane, Millis, Refusal,
    packet::{self, item},
};
use prost::Message as _;
use tokio_util::codec::Decoder as _;

use crate::world::connect;

/// How many messages a client publishes to itself.
const MESSAGES: u64 = 6;

/// What survives a connection: the broker's log, and what the client has on its disk.
#[derive(Debug, Default)]
struct World {
    /// The ids that are stored, in the order of their seqs.
    log: Vec<u64>,
    /// The ids whose answers the client has.
    answered: Vec<u64>,
    /// The seqs that the client has stored, in order, and its cursor (the seqs below it are stored).
    got: Vec<u64>,
    cursor: u64,
    now: Millis,
}

/// One connection, of which the link carries so many bytes up and down before it is cut.
struct Connection {
    client: ClientSession,
    broker: BrokerSession<u64>,
    at_broker: FrameCodec,
    at_client: FrameCodec,
    up: Link,
    down: Link,
    next_id: u64,
    /// The next seq that the broker sends.
    next_seq: u64,
}

/// One direction: bytes under way, how many more it carries, and how many arrive at a time.
struct Link {
    under_way: BytesMut,
    arrived: BytesMut,
    left: usize,
    step: usize,
}

impl Link {
    fn carry(&mut self) {
        let count = self.step.min(self.left).min(self.under_way.len());
        self.left -= count;
        self.arrived.extend_from_slice(&self.under_way[..count]);
        self.under_way.advance(count);
    }
}

impl World {
    /// Runs a connection until nothing moves any more; gives the bytes that went each way.
    fn run(&mut self, up: usize, down: usize, step: usize) -> Result<(usize, usize), Refusal> {
        let first = (1..=MESSAGES).find(|id| !self.answered.contains(id)).unwrap_or(MESSAGES + 1);
        let connect = packet::Connect {
            incarnation: 1,
            first_unanswered: first,
            cursor: Bytes::from(self.cursor.to_be_bytes().to_vec()),
            ..connect()
        };
        let link = |left| Link { under_way: BytesMut::new(), arrived: BytesMut::new(), left, step };
        let mut connection = Connection {
            client: ClientSession::new(self.now, connect),
            broker: BrokerSession::new(self.now, BrokerLimits::default()),
            at_broker: FrameCodec::default(),
            at_client: FrameCodec::default(),
            up: link(up),
            down: link(down),
            next_id: first,
            next_seq: u64::MAX,
        };
        let mut quiet = 0;
        while quiet < 3 {
            let before = (connection.up.left, connection.down.left);
            self.turn(&mut connection)?;
            let moved = before != (connection.up.left, connection.down.left)
                || !connection.up.under_way.is_empty() && connection.up.left > 0
                || !connection.down.under_way.is_empty() && connection.down.left > 0;
            quiet = if moved { 0 } else { quiet + 1 };
            // An ack waits for a second at most; nothing here is slow enough to be asked about.
            self.now = self.now.after(if moved { 10 } else { 1_000 });
        }
        Ok((up - connection.up.left, down - connection.down.left))
    }

    fn turn(&mut self, connection: &mut Connection) -> Result<(), Refusal> {
        let Connection { client, broker, at_broker, at_client, up, down, next_id, next_seq } = connection;
        client.handle_deadline(self.now)?;
        broker.handle_deadline(self.now)?;
        while client.publish_room().admits(100) && *next_id <= MESSAGES {
            let first_unanswered = (1..).find(|id| !self.answered.contains(id)).unwrap_or(1);
            let content = vec![*next_id as u8; 5].into();
            client.publish(packet::Publish {
                conversation: 1,
                message_id: *next_id,
                first_unanswered,
                content,
                ..Default::default()
            });
            *next_id += 1;
        }
        while client.poll_transmit(self.now, &mut up.under_way, usize::MAX) {}
        up.carry();
        while let Some((frame, bytes)) = at_broker.decode(&mut up.arrived).map_err(|error| error.refusal())? {
            match broker.handle_frame(self.now, frame, bytes)? {
                Some(BrokerEvent::Connect(connect)) => {
                    let cursor: [u8; 8] = connect.cursor[..].try_into().expect("a cursor");
                    *next_seq = u64::from_be_bytes(cursor) + 1;
                    broker.accept(self.now, packet::Connected::default());
                    at_broker.set_frame_bytes_max(broker.frame_bytes_max());
                }
                Some(BrokerEvent::Publish(publish)) => {
                    let id = publish.message_id;
                    let seq = match self.log.iter().position(|stored| *stored == id) {
                        Some(at) => at + 1,
                        None => {
                            self.log.push(id);
                            self.log.len()
                        }
                    };
                    broker.acknowledge(packet::PublishAck { message_id: id, seq: seq as u64, ..Default::default() });
                }
                _ => {}
            }
        }
        while broker.room(Lane::Express).items > 0 && *next_seq <= self.log.len() as u64 {
            let entry = packet::Entry { seq: *next_seq, ..Default::default() };
            let item = packet::Item { kind: Some(item::Kind::Entry(entry)) }.encode_to_vec();
            broker.deliver(self.now, Lane::Express, *next_seq, item.into());
            broker.cursor(next_seq.to_be_bytes().to_vec().into());
            *next_seq += 1;
        }
        while broker.poll_transmit(self.now, &mut down.under_way, usize::MAX) {}
        down.carry();
        while let Some((frame, bytes)) = at_client.decode(&mut down.arrived).map_err(|error| error.refusal())? {
            match client.handle_frame(self.now, frame, bytes)? {
                Some(ClientEvent::PublishAck(ack)) => self.answered.push(ack.message_id),
                Some(ClientEvent::Items { lane, first_n, items }) => {
                    for (n, item) in (first_n..).zip(items) {
                        let Some(item::Kind::Entry(entry)) = item.kind else { panic!("{item:?}") };
                        // At least once: what lies at or below the newest was stored before the cut.
                        if self.got.last().is_none_or(|last| entry.seq > *last) {
                            self.got.push(entry.seq);
                        }
                        client.stored(self.now, lane, n);
                    }
                }
                Some(ClientEvent::Cursor(cursor)) => {
                    self.cursor = u64::from_be_bytes(cursor[..].try_into().expect("a cursor"));
                    assert!(
                        self.got.last().is_some_and(|last| *last >= self.cursor),
                        "a cursor ahead of what is stored"
                    );
                }
                Some(ClientEvent::Connected(_)) => at_client.set_frame_bytes_max(client.frame_bytes_max()),
                _ => {}
            }
        }
        Ok(())
    }

    fn check(&self, story: &str) {
        let all: Vec<u64> = (1..=MESSAGES).collect();
        assert_eq!(self.log, all, "{story}: each id once and in order");
        assert_eq!(self.got, all, "{story}: each entry in order, none missing");
        assert_eq!(self.answered, all, "{story}: each publish answered once");
    }
}

#[test]
fn a_whole_connection_loses_nothing_however_it_is_split() {
    for step in [1, 2, 3, 7, 64, usize::MAX] {
        let mut world = World::default();
        world.run(usize::MAX, usize::MAX, step).expect("no refusal");
        world.check(&format!("split at {step}"));
    }
}

#[test]
fn a_link_cut_at_every_byte_loses_nothing() {
    let (up, down) = World::default().run(usize::MAX, usize::MAX, usize::MAX).expect("no refusal");
    assert!(up > 80 && down > 100, "{up} {down}");
    for step in [5, usize::MAX] {
        for (up, down) in (0..=up).map(|up| (up, usize::MAX)).chain((0..=down).map(|down| (usize::MAX, down))) {
            let mut world = World::default();
            // The cut connection may end in a refusal of its own (ten seconds without an answer); the next one must not.
            let _ = world.run(up, down, step);
            for id in &world.answered {
                assert!(world.log.contains(id), "cut at {up} {down}: an ack without an entry");
            }
            world.run(usize::MAX, usize::MAX, step).expect("no refusal");
            world.check(&format!("cut at {up} up, {down} down, in steps of {step}"));
        }
    }
}
