//! A broker in memory: one log, every device sees all of it in one lane. Its sessions are the real ones.

use std::collections::HashMap;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use longwire_client::packet::{
    self, Connected, CursorVerdict, Entry, Item, Lane, StartKind, item, publish::Action, request, response,
};
use longwire_client::{Config, Dialer};
use longwire_protocol::frame::FrameCodec;
use longwire_protocol::ids::MessageId;
use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::session::{BrokerEvent, BrokerLimits, BrokerSession, Millis};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::codec::Decoder as _;

/// Entries of a page of history.
const PAGE: usize = 5;
/// A cursor leaves behind each so many entries.
pub(crate) const CURSOR_EVERY: u64 = 7;

/// What was stored, and how to be unkind.
#[derive(Default)]
pub(crate) struct World {
    /// (device, incarnation, message id) of each entry, in the order of the log; its position is its index plus one.
    pub(crate) log: Vec<(String, u64, u64, packet::Publish)>,
    pub(crate) incarnations: u64,
    pub(crate) incarnations_of: HashMap<String, u64>,
    pub(crate) floors: HashMap<(String, u64), u64>,
    pub(crate) connections: u64,
    /// Refuse as many publishes with *retry*.
    pub(crate) refuse_for_now: u32,
    /// Refuse every connection with this.
    pub(crate) refuse: Option<Reason>,
    /// Every publish that is not stored is refused with this.
    pub(crate) refuse_publishes: Option<Reason>,
    pub(crate) connects: Vec<packet::Connect>,
    /// Pages of history that were asked for.
    pub(crate) histories: u64,
    /// Who the token's user is.
    pub(crate) user: u64,
}

#[derive(Clone, Default)]
pub(crate) struct Broker {
    world: Arc<Mutex<World>>,
    grown: Arc<Notify>,
    /// Connections are cut after this many bytes in either direction, at random below it.
    cut_below: Option<usize>,
}

impl Broker {
    /// A broker on a line that is cut again and again.
    pub(crate) fn cut_below(bytes: usize) -> Self {
        Self { cut_below: Some(bytes), ..Self::default() }
    }

    /// From here on connections are cut; see [`Broker::cut_below`].
    pub(crate) fn set_cut_below(&mut self, bytes: Option<usize>) {
        self.cut_below = bytes;
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("no test has panicked in it")
    }

    /// Appends as somebody else.
    pub(crate) fn say(&self, content: impl Into<Bytes>) {
        let publish = packet::Publish { conversation: 1, content: content.into(), ..Default::default() };
        self.world().log.push((String::new(), 0, 0, publish));
        self.grown.notify_waiters();
    }

    pub(crate) fn config(&self, device: &str) -> Config {
        let broker = self.clone();
        let dialer = Dialer::custom(move || {
            let broker = broker.clone();
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                let (ours, theirs) = tokio::io::duplex(4096);
                let life = broker.cut_below.map(|below| fastrand::usize(1..below));
                tokio::spawn(broker.serve(ours, life));
                Ok(Box::new(theirs) as Box<dyn longwire_client::ByteStream>)
            })
        });
        Config::new(dialer, "token", device)
    }

    async fn serve(self, mut stream: DuplexStream, life: Option<usize>) {
        let epoch = Instant::now();
        let now = || Millis(epoch.elapsed().as_millis() as u64);
        let mut session: BrokerSession<u64> = BrokerSession::new(now(), BrokerLimits::default());
        let mut codec = FrameCodec::default();
        let mut input = BytesMut::new();
        let mut out = BytesMut::new();
        let mut device = Device::default();
        let mut moved = 0;
        loop {
            while let Some((frame, bytes)) = codec.decode(&mut input).expect("the client speaks the protocol") {
                let mut event = session.handle_frame(now(), frame, bytes).expect("the client keeps the rules");
                codec.set_frame_bytes_max(session.frame_bytes_max());
                while let Some(one) = event.take().or_else(|| session.poll_event()) {
                    self.handle(&mut session, &mut device, now(), one);
                }
                codec.set_frame_bytes_max(session.frame_bytes_max());
            }
            self.deliver(&mut session, &mut device, now());
            while session.poll_transmit(now(), &mut out, 1 << 16) {}
            if life.is_some_and(|life| moved + out.len() > life) {
                out.truncate(life.unwrap_or(0).saturating_sub(moved));
                let _cut = stream.write_all(&out).await;
                return;
            }
            moved += out.len();
            if stream.write_all(&out).await.is_err() || session.is_closed() {
                return;
            }
            out.clear();
            let deadline = session.poll_deadline().map(|at| epoch + Duration::from_millis(at.0));
            let grown = self.grown.notified();
            tokio::select! {
                read = stream.read_buf(&mut input) => match read {
                    Ok(0) | Err(_) => return,
                    Ok(read) => {
                        moved += read;
                        if life.is_some_and(|life| moved > life) {
                            return;
                        }
                    }
                },
                () = grown => {}
                () = at(deadline) => session.handle_deadline(now()).expect("the client is in time"),
            }
        }
    }

    fn handle(&self, session: &mut BrokerSession<u64>, device: &mut Device, now: Millis, event: BrokerEvent<u64>) {
        let mut world = self.world();
        match event {
            BrokerEvent::Connect(connect) => {
                world.connections += 1;
                world.connects.push((*connect).clone());
                if let Some(reason) = world.refuse {
                    session.close(Refusal::connection(reason));
                    return;
                }
                let newest = world.incarnations_of.get(&connect.device).copied().unwrap_or(0);
                if connect.incarnation != 0 && connect.incarnation < newest {
                    session.close(Refusal::connection(Reason::IncarnationStale));
                    return;
                }
                *device = Device::new(&connect, &mut world);
                world.incarnations_of.insert(device.name.clone(), device.incarnation);
                let user = world.user;
                let key = (device.name.clone(), device.incarnation);
                let floor = world.floors.entry(key).or_insert(1);
                *floor = (*floor).max(connect.first_unanswered);
                let verdict = match connect.start() {
                    StartKind::OwnCursor => CursorVerdict::Resumed,
                    StartKind::StoredCursor | StartKind::Fresh => CursorVerdict::Reset,
                };
                let mut connected =
                    Connected { user, incarnation: device.incarnation, first_unanswered: *floor, ..Default::default() };
                connected.set_cursor(verdict);
                if verdict == CursorVerdict::Reset {
                    connected.set_reset_reason(packet::ResetReason::Asked);
                }
                session.accept(now, connected);
            }
            BrokerEvent::Publish(publish) => {
                let id = MessageId(publish.message_id);
                let key = (device.name.clone(), device.incarnation);
                let floor = world.floors.entry(key).or_insert(1);
                *floor = (*floor).max(publish.first_unanswered);
                if id.0 < *floor {
                    session.refuse(Refusal::publish(id, Reason::StaleId));
                    return;
                }
                let known = world.log.iter().position(|(name, incarnation, known, _)| {
                    (name, *incarnation, *known) == (&device.name, device.incarnation, id.0)
                });
                if known.is_none()
                    && let Some(reason) = world.refuse_publishes
                {
                    session.refuse(Refusal::publish(id, reason).retry_after(10));
                    return;
                }
                if known.is_none() && world.refuse_for_now > 0 {
                    world.refuse_for_now -= 1;
                    session.refuse(Refusal::publish(id, Reason::Overloaded).retry_after(10));
                    return;
                }
                if known.is_some_and(|at| world.log[at].3.content != publish.content) {
                    session.refuse(Refusal::publish(id, Reason::IdConflict));
                    return;
                }
                let at = known.unwrap_or_else(|| {
                    world.log.push((device.name.clone(), device.incarnation, id.0, publish.clone()));
                    self.grown.notify_waiters();
                    world.log.len() - 1
                });
                let opened = matches!(publish.action, Some(Action::OpenDirect(_) | Action::OpenChannel(_)));
                let conversation = u64::from(opened);
                session.acknowledge(packet::PublishAck { message_id: id.0, seq: at as u64 + 1, time: 1, conversation });
            }
            BrokerEvent::Request(request) => {
                let result = match request.op {
                    Some(request::Op::History(asked)) => {
                        world.histories += 1;
                        Some(response::Result::History(history(&world, device, &asked)))
                    }
                    _ => None,
                };
                session.respond(packet::Response { id: request.id, result });
            }
            BrokerEvent::Resend { lane, from_n, places } => {
                for (n, place) in (from_n..).zip(places) {
                    session.resend(now, lane, n, &item(&world, place));
                }
            }
            BrokerEvent::GiveUp(_)
            | BrokerEvent::Acked { .. }
            | BrokerEvent::Goodbye { .. }
            | BrokerEvent::Signal(_) => {}
        }
    }

    /// Gives the session what the window takes, and a cursor behind it.
    fn deliver(&self, session: &mut BrokerSession<u64>, device: &mut Device, now: Millis) {
        if !session.is_open() {
            return;
        }
        let world = self.world();
        while device.at < world.log.len() as u64 {
            let item = item(&world, device.at + 1);
            if !session.room(Lane::Bulk).admits(item.len()) {
                break;
            }
            device.at += 1;
            session.deliver(now, Lane::Bulk, device.at, item);
            // Now and then, so that some deliveries have none.
            if device.at.is_multiple_of(CURSOR_EVERY) {
                session.cursor(Bytes::copy_from_slice(&device.at.to_be_bytes()));
            }
        }
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

fn item(world: &World, position: u64) -> Bytes {
    let content = world.log[position as usize - 1].3.content.clone();
    let entry = Entry { conversation: 1, seq: position, content, ..Default::default() };
    Item { kind: Some(item::Kind::Entry(entry)) }.encode_to_vec().into()
}

/// A page as R8-3 has it, of a few entries; everything is in one conversation.
fn history(world: &World, device: &Device, asked: &packet::HistoryRequest) -> packet::HistoryPage {
    assert!(asked.backwards, "nobody reads forwards here");
    let head_seq = world.log.len() as u64;
    let from = if asked.from_seq == 0 { head_seq } else { asked.from_seq };
    let own = |seq: u64| {
        let (name, incarnation, message_id, publish) = &world.log[seq as usize - 1];
        let entry = Entry { conversation: 1, seq, content: publish.content.clone(), ..Entry::default() };
        let kind = if *name == device.name {
            let (incarnation, message_id) = (*incarnation, *message_id);
            let entry = Some(entry);
            item::Kind::Own(packet::Own { conversation: 1, seq, message_id, time: 1, incarnation, entry })
        } else {
            item::Kind::Entry(entry)
        };
        Item { kind: Some(kind) }
    };
    let items: Vec<Item> = (1..=from).rev().take(PAGE).map(own).collect();
    let next_seq = from.saturating_sub(items.len() as u64);
    packet::HistoryPage { items, next_seq, head_seq }
}

#[derive(Default)]
struct Device {
    name: String,
    incarnation: u64,
    at: u64,
}

impl Device {
    fn new(connect: &packet::Connect, world: &mut World) -> Self {
        let incarnation = if connect.incarnation == 0 {
            world.incarnations += 1;
            world.incarnations
        } else {
            connect.incarnation
        };
        let at = match connect.start() {
            StartKind::OwnCursor => {
                u64::from_be_bytes(connect.cursor.as_ref().try_into().expect("a cursor of this broker"))
            }
            StartKind::StoredCursor | StartKind::Fresh => world.log.len() as u64,
        };
        Self { name: connect.device.clone(), incarnation, at }
    }
}
