//! The target `pair`: both sessions over a link that delays, splits and is cut, with the smallest broker and client there
//! are around them. Neither may ever find that the other breaks a rule, and in the end nothing is lost or doubled.

use std::collections::{BTreeSet, VecDeque};

use bytes::{Buf as _, Bytes, BytesMut};
use prost::Message as _;
use tokio_util::codec::Decoder as _;

use super::input::Input;
use crate::{
    BrokerEvent, BrokerLimits, BrokerSession, ClientEvent, ClientSession, Fault, FrameCodec, Lane, MessageId, Millis,
    Reason, Refusal, frame,
    packet::{self, Window, item, packet::Kind},
};

const STEPS_MAX: usize = 600;
/// Messages that the client publishes to itself in all.
const MESSAGES_MAX: u64 = 40;
const WAITS_MS: [u64; 8] = [0, 1, 500, 1_000, 5_000, 10_000, 20_000, 60_000];
const CONTENT_BYTES: [usize; 4] = [0, 30, 300, 3_000];

/// Who publishes, what arrives, what is stored and when the link is cut, as the bytes say.
///
/// # Panics
/// If an end accuses the other, if an entry is handed out of order, if a cursor runs ahead of what is stored, or if in
/// the end a message is missing.
pub fn pair(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::default();
    let mut link = world.connect(&mut input);
    for _ in 0..STEPS_MAX {
        if input.is_over() {
            break;
        }
        let cut = input.byte() == 0xff || world.step(&mut link, &mut input).is_err();
        if cut || link.broker.is_closed() || link.client.is_closed() {
            link = world.connect(&mut input);
        }
    }
    world.finish();
}

/// What survives a connection: the broker's log, and what the client has on its disk.
#[derive(Default)]
struct World {
    now: Millis,
    /// The ids that are stored, in the order of their seqs, with the size of their content.
    log: Vec<(u64, usize)>,
    /// Ids published so far, and those of them without an answer that settles them.
    published: u64,
    outbox: BTreeSet<u64>,
    /// How many entries the client has on its disk: seqs 1 to this.
    stored: u64,
    /// The seq of the client's cursor.
    cursor: u64,
}

/// One connection.
struct Link {
    client: ClientSession,
    broker: BrokerSession<u64>,
    at_broker: FrameCodec,
    at_client: FrameCodec,
    up: Way,
    down: Way,
    /// Ids of the outbox that this connection has not said yet.
    unsaid: VecDeque<u64>,
    /// Publishes at the broker without an answer.
    waiting: VecDeque<(u64, usize)>,
    /// The next seq that the broker sends.
    next_seq: u64,
    resends: VecDeque<(u64, u64)>,
    /// At the client, handed out and not stored: number and seq.
    held: VecDeque<(u64, u64)>,
    /// The newest seq that was handed out.
    handed: u64,
    cursors: VecDeque<(u64, u64)>,
    asked: Option<u64>,
}

#[derive(Default)]
struct Way {
    under_way: BytesMut,
    arrived: BytesMut,
}

impl Way {
    fn carry(&mut self, count: usize) {
        let count = count.min(self.under_way.len());
        self.arrived.extend_from_slice(&self.under_way[..count]);
        self.under_way.advance(count);
    }
}

/// Trouble of the world ends a connection; an accusation is a bug.
fn over(refusal: &Refusal) {
    assert!(refusal.reason.fault() == Fault::World, "an end accuses the other: {refusal:?}");
}

impl World {
    fn connect(&mut self, input: &mut Input<'_>) -> Link {
        let window = match input.byte() % 4 {
            0 => None,
            items => Some(Window { items: items.into(), bytes: 1_000 }),
        };
        self.connect_with(window)
    }

    fn connect_with(&mut self, express: Option<Window>) -> Link {
        let connect = packet::Connect {
            version: 1,
            device: "d".into(),
            incarnation: 1,
            first_unanswered: self.first_unanswered(),
            cursor: Bytes::copy_from_slice(&self.cursor.to_be_bytes()),
            express,
            ..Default::default()
        };
        Link {
            client: ClientSession::new(self.now, connect),
            broker: BrokerSession::new(self.now, BrokerLimits::default()),
            at_broker: FrameCodec::default(),
            at_client: FrameCodec::default(),
            up: Way::default(),
            down: Way::default(),
            unsaid: self.outbox.iter().copied().collect(),
            waiting: VecDeque::new(),
            next_seq: u64::MAX,
            resends: VecDeque::new(),
            held: VecDeque::new(),
            handed: self.stored,
            cursors: VecDeque::new(),
            asked: None,
        }
    }

    fn first_unanswered(&self) -> u64 {
        self.outbox.first().copied().unwrap_or(self.published + 1)
    }

    fn step(&mut self, link: &mut Link, input: &mut Input<'_>) -> Result<(), ()> {
        match input.byte() % 12 {
            0 | 1 => {
                if self.published < MESSAGES_MAX {
                    self.published += 1;
                    self.outbox.insert(self.published);
                    link.unsaid.push_back(self.published);
                }
                self.publish(link, input.choice(&CONTENT_BYTES));
            }
            2 => {
                let max = usize::from(input.byte()) * 16;
                link.client.poll_transmit(self.now, &mut link.up.under_way, max);
            }
            3 => {
                let max = usize::from(input.byte()) * 16;
                link.broker.poll_transmit(self.now, &mut link.down.under_way, max);
            }
            4 | 5 => {
                link.up.carry(usize::from(input.byte()) + 1);
                self.arrive_up(link)?;
            }
            6 | 7 => {
                link.down.carry(usize::from(input.byte()) * 8 + 1);
                self.arrive_down(link)?;
            }
            8 => {
                self.now = self.now.after(input.choice(&WAITS_MS));
                return self.deadlines(link);
            }
            9 => self.answer(link, input.byte().is_multiple_of(4)),
            10 => self.deliver(link),
            _ => self.store(link, usize::from(input.byte() % 4)),
        }
        Ok(())
    }

    fn deadlines(&mut self, link: &mut Link) -> Result<(), ()> {
        link.client.handle_deadline(self.now).map_err(|refusal| over(&refusal))?;
        link.broker.handle_deadline(self.now).map_err(|refusal| over(&refusal))
    }

    fn publish(&self, link: &mut Link, len: usize) {
        while let Some(&id) = link.unsaid.front() {
            // What is stored already is said again as it was.
            let len = self.log.iter().find(|(stored, _)| *stored == id).map_or(len, |(_, len)| *len);
            let publish = packet::Publish {
                conversation: 1,
                message_id: id,
                first_unanswered: self.first_unanswered(),
                content: vec![1; len].into(),
                ..Default::default()
            };
            if !link.client.publish_room().admits(frame::encoded_len(&Kind::Publish(publish.clone()))) {
                return;
            }
            link.client.publish(publish);
            link.unsaid.pop_front();
        }
    }

    fn arrive_up(&mut self, link: &mut Link) -> Result<(), ()> {
        loop {
            let decoded = link.at_broker.decode(&mut link.up.arrived);
            let Some((frame, bytes)) = decoded.expect("a client writes good frames") else { return Ok(()) };
            let mut event = link.broker.handle_frame(self.now, frame, bytes).map_err(|refusal| over(&refusal))?;
            while let Some(what) = event {
                match what {
                    BrokerEvent::Connect(connect) => {
                        let cursor: [u8; 8] = connect.cursor[..].try_into().expect("a cursor");
                        link.next_seq = u64::from_be_bytes(cursor) + 1;
                        link.broker.accept(self.now, packet::Connected::default());
                        link.at_broker.set_frame_bytes_max(link.broker.frame_bytes_max());
                    }
                    BrokerEvent::Publish(publish) => {
                        link.waiting.push_back((publish.message_id, publish.content.len()));
                    }
                    BrokerEvent::Resend { lane, from_n, places } => {
                        assert_eq!(lane, Lane::Express);
                        link.resends.extend((from_n..).zip(places));
                    }
                    BrokerEvent::Acked { express, bulk } => {
                        assert!(express.is_some_and(|seq| seq <= self.stored) && bulk.is_none(), "acked is stored");
                    }
                    other => panic!("nobody said {other:?}"),
                }
                event = link.broker.poll_event();
            }
        }
    }

    /// Answers the oldest publish: it is stored, or refused for now and with it what follows.
    fn answer(&mut self, link: &mut Link, is_refused: bool) {
        let Some((id, len)) = link.waiting.pop_front() else { return };
        if is_refused || link.broker.open_refusals().blocks(1, MessageId(id)) {
            let reason = if is_refused { Reason::Overloaded } else { Reason::After };
            return link.broker.refuse(Refusal::publish(MessageId(id), reason));
        }
        let at = self.log.iter().position(|(stored, _)| *stored == id).unwrap_or_else(|| {
            self.log.push((id, len));
            self.log.len() - 1
        });
        let seq = at as u64 + 1;
        link.broker.acknowledge(packet::PublishAck { message_id: id, seq, ..Default::default() });
    }

    fn item(&self, seq: u64) -> Bytes {
        let content = vec![7; self.log[seq as usize - 1].1].into();
        let entry = packet::Entry { conversation: 1, seq, content, ..Default::default() };
        packet::Item { kind: Some(item::Kind::Entry(entry)) }.encode_to_vec().into()
    }

    fn deliver(&self, link: &mut Link) {
        while let Some((n, seq)) = link.resends.pop_front() {
            link.broker.resend(self.now, Lane::Express, n, &self.item(seq));
        }
        while link.next_seq <= self.log.len() as u64 {
            let item = self.item(link.next_seq);
            if !link.broker.room(Lane::Express).admits(item.len()) {
                break;
            }
            link.broker.deliver(self.now, Lane::Express, link.next_seq, item);
            link.broker.cursor(Bytes::copy_from_slice(&link.next_seq.to_be_bytes()));
            link.next_seq += 1;
        }
    }

    fn arrive_down(&mut self, link: &mut Link) -> Result<(), ()> {
        loop {
            let decoded = link.at_client.decode(&mut link.down.arrived);
            let Some((frame, bytes)) = decoded.expect("a broker writes good frames") else { return Ok(()) };
            let event = link.client.handle_frame(self.now, frame, bytes).map_err(|refusal| over(&refusal))?;
            match event {
                Some(ClientEvent::Connected(_)) => link.at_client.set_frame_bytes_max(link.client.frame_bytes_max()),
                Some(ClientEvent::PublishAck(ack)) => {
                    let (id, _) = self.log[ack.seq as usize - 1];
                    assert_eq!(id, ack.message_id, "an ack of what is stored");
                    self.outbox.remove(&id);
                }
                Some(ClientEvent::Refused(refusal)) => {
                    // Again, behind what was refused before it.
                    let at = link.unsaid.partition_point(|id| *id < refusal.message_id.0);
                    link.unsaid.insert(at, refusal.message_id.0);
                }
                Some(ClientEvent::Items { first_n, items, .. }) => {
                    for (n, item) in (first_n..).zip(items) {
                        let Some(item::Kind::Entry(entry)) = item.kind else { panic!("an entry: {item:?}") };
                        assert!(entry.seq <= link.handed + 1, "no entry is left out: {}", entry.seq);
                        link.handed = link.handed.max(entry.seq);
                        link.held.push_back((n, entry.seq));
                    }
                }
                Some(ClientEvent::Cursor(cursor)) => {
                    let seq = u64::from_be_bytes(cursor[..].try_into().expect("a cursor"));
                    assert!(seq <= link.handed, "a cursor of what was handed out");
                    link.cursors.push_back((seq, link.client.next(Lane::Express) - 1));
                }
                Some(ClientEvent::AckRequest { k }) => link.asked = Some(k),
                Some(ClientEvent::Closed(refusal)) => {
                    over(&refusal);
                    return Err(());
                }
                None => {}
                Some(other) => panic!("nobody said {other:?}"),
            }
        }
    }

    /// Puts some of what is held on the disk; answers a question with that, and forgets the rest.
    fn store(&mut self, link: &mut Link, count: usize) {
        for _ in 0..count {
            let Some((n, seq)) = link.held.pop_front() else { break };
            assert!(seq <= self.stored + 1, "stored in order, without a hole");
            self.stored = self.stored.max(seq);
            link.client.stored(self.now, Lane::Express, n);
        }
        while let Some(&(seq, _)) = link.cursors.front().filter(|(seq, _)| *seq <= self.stored) {
            self.cursor = self.cursor.max(seq);
            link.cursors.pop_front();
        }
        if let Some(k) = link.asked.take() {
            link.client.answer(k);
            let next = link.client.next(Lane::Express);
            link.held.retain(|(n, _)| *n < next);
            link.cursors.retain(|(_, n)| *n < next);
            if link.held.is_empty() {
                link.handed = self.stored;
            }
        }
    }

    /// A connection without trouble carries all that is left.
    fn finish(mut self) {
        let mut link = self.connect_with(None);
        for _ in 0..2_000 {
            let total = self.published;
            if self.outbox.is_empty() && self.stored == total {
                break;
            }
            self.publish(&mut link, 10);
            link.client.poll_transmit(self.now, &mut link.up.under_way, 1 << 20);
            link.up.carry(usize::MAX);
            self.arrive_up(&mut link).expect("no trouble");
            while !link.waiting.is_empty() {
                self.answer(&mut link, false);
            }
            self.deliver(&mut link);
            link.broker.poll_transmit(self.now, &mut link.down.under_way, 1 << 20);
            link.down.carry(usize::MAX);
            self.arrive_down(&mut link).expect("no trouble");
            self.store(&mut link, usize::MAX);
            self.now = self.now.after(300);
            self.deadlines(&mut link).expect("no trouble");
        }
        let mut ids: Vec<u64> = self.log.iter().map(|(id, _)| *id).collect();
        assert!(self.outbox.is_empty(), "every publish is answered: {:?}", self.outbox);
        assert_eq!(self.stored, self.log.len() as u64, "every entry is there");
        ids.sort_unstable();
        assert_eq!(ids, (1..=self.published).collect::<Vec<_>>(), "each message is stored once");
        assert!(self.cursor <= self.stored, "no cursor runs ahead");
    }
}
