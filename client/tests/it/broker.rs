//! A broker in memory: one log, every device sees all of it in one lane. Its sessions are the real ones.

use std::collections::HashMap;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use longwire_client::packet::{self, Connected, CursorVerdict, Entry, Item, Lane, StartKind, item, publish::Action};
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

/// A cursor leaves behind each so many entries.
pub(crate) const CURSOR_EVERY: u64 = 7;

/// What was stored, and how to be unkind.
#[derive(Default)]
pub(crate) struct World {
    /// (device, incarnation, message id) of each entry, in the order of the log; its position is its index plus one.
    pub(crate) log: Vec<(String, u64, u64, packet::Publish)>,
    pub(crate) incarnations: u64,
    pub(crate) floors: HashMap<(String, u64), u64>,
    pub(crate) connections: u64,
    /// Refuse as many publishes with *retry*.
    pub(crate) refuse_for_now: u32,
    /// Refuse every connection with this.
    pub(crate) refuse: Option<Reason>,
    pub(crate) connects: Vec<packet::Connect>,
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
                *device = Device::new(&connect, &mut world);
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
                if known.is_none() && world.refuse_for_now > 0 {
                    world.refuse_for_now -= 1;
                    session.refuse(Refusal::publish(id, Reason::Overloaded).retry_after(10));
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
            BrokerEvent::Request(request) => session.respond(packet::Response { id: request.id, result: None }),
            BrokerEvent::Resend { lane, from_n, places } => {
                for (n, place) in (from_n..).zip(places) {
                    session.resend(now, lane, n, &item(&world, place));
                }
            }
            BrokerEvent::GiveUp(_) | BrokerEvent::Acked { .. } | BrokerEvent::Goodbye => {}
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
            session.deliver(now, Lane::Bulk, device.at, &item);
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
