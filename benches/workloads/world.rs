//! A broker in one thread: its real rooms over a log in memory, and connections over pipes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use longwire::auth::{self, AUDIENCE, Authority, Claims};
use longwire::broker::commit::Retention;
use longwire::broker::{BrokerParts, Rooms};
use longwire::clock::{Hands, Source};
use longwire::net::connection::Connection;
use longwire::net::listener::AcceptLimits;
use longwire::routing::allowance::Rates;
use longwire::routing::limits::Quotas;
use longwire::store::MemoryLog;
use longwire::tasks::{ByHand, Tasks};
use longwire_protocol::frame::{Frame, FrameCodec, encode};
use longwire_protocol::packet::packet::Kind;
use longwire_protocol::packet::{self, publish::Action};
use longwire_protocol::{BrokerLimits, limits};
use tokio::io::{AsyncWrite as _, DuplexStream};
use tokio_util::codec::Decoder as _;
use tokio_util::io::poll_read_buf;

/// What a pipe holds: more than any turn writes.
const PIPE_BYTES: usize = 1 << 20;
/// What a short packet begins with that holds a `PublishAck`: its field of `Packet`, and that this has a length.
const TAG_PUBLISH_ACK: u8 = 2 << 3 | 2;
/// Keys that nothing else uses. To make some, the library first measures the noise of the processor's clock, in a number of
/// instructions that is another each time, and larger than all that is counted here.
const PRIVATE_KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIDOixpaVWR1dIwiqxoAzb4+SgHGR09D/hPCWvTSg765M
-----END PRIVATE KEY-----
";
const PUBLIC_KEY: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEA86u74o0hOHLf3rl4N1w2Y3LrKb29wnF/4mdXphxIYsM=
-----END PUBLIC KEY-----
";
/// When the wall clock stands still, in seconds since 1970.
const NOW_UNIX_S: u64 = 1_750_000_000;
/// How long it has run then.
const UPTIME_MS: u64 = 60_000;

/// The broker.
pub(crate) struct World {
    rooms: Rooms,
}

/// A connection of a user, both ends of it.
pub(crate) struct Wire {
    served: Pin<Box<Connection<DuplexStream>>>,
    end: DuplexStream,
    codec: FrameCodec,
    heard: BytesMut,
    /// The next message id.
    pub(crate) next_id: u64,
}

impl World {
    /// An empty broker.
    pub(crate) fn new() -> Self {
        let authority = Authority::default();
        authority.set_issuers(&[("bench".into(), PUBLIC_KEY.into())]).expect("a key");
        let hands = Arc::new(Hands::default());
        hands.unix_ms.store(NOW_UNIX_S * 1_000, Ordering::Relaxed);
        // Not at the very start, when no cursor was sent yet as far as a connection can tell.
        hands.monotonic_ms.store(UPTIME_MS, Ordering::Relaxed);
        let accept =
            AcceptLimits { connections: 10_000, connections_per_address: 10_000, handshakes: 100, memory_bytes: None };
        let parts = BrokerParts {
            log: Box::new(MemoryLog::new(NOW_UNIX_S * 1_000, usize::MAX)),
            authority,
            limits: BrokerLimits::default(),
            accept,
            rates: Rates::default(),
            quotas: Quotas::default(),
            retention: Retention::default(),
            state_bytes_max: usize::MAX,
        };
        let rooms = Rooms::new(parts, Source::ByHand(hands), Tasks::ByHand(ByHand::default())).expect("an empty log");
        Self { rooms }
    }

    /// Lets a user in.
    pub(crate) fn connect(&mut self, user: &str) -> Wire {
        let (end, served) = tokio::io::duplex(PIPE_BYTES);
        let shared = Arc::clone(&self.rooms.shared);
        let served = Box::pin(Connection::new(served, shared.clock.now(), shared));
        let mut wire =
            Wire { served, end, codec: FrameCodec::default(), heard: BytesMut::with_capacity(PIPE_BYTES), next_id: 1 };
        let claims = Claims {
            iss: "bench".into(),
            sub: user.into(),
            aud: AUDIENCE.into(),
            exp: NOW_UNIX_S + 1_000_000,
            publish: vec!["**".into()],
            read: vec!["**".into()],
            ..Claims::default()
        };
        let token = auth::issue(&claims, PRIVATE_KEY.as_bytes()).expect("a token");
        let mut connect =
            packet::Connect { version: limits::VERSION, token, device: "bench".into(), ..Default::default() };
        connect.set_start(packet::StartKind::Fresh);
        let connected = wire.ask(self, &Kind::Connect(connect));
        assert!(matches!(connected, Kind::Connected(_)), "{connected:?}");
        wire.codec.set_frame_bytes_max(limits::FRAME_BYTES_MAX);
        wire.drop_heard();
        wire
    }

    /// Whatever a connection has to do is done, and what it asked of the others too.
    pub(crate) fn turn(&mut self, wire: &mut Wire) {
        wire.poll();
        let Tasks::ByHand(tasks) = &self.rooms.shared.tasks else { unreachable!("driven by hand") };
        loop {
            let mut idle = true;
            if !self.rooms.shared.queue.is_empty() {
                self.rooms.commit.step();
                idle = false;
            }
            while self.rooms.feed.step().expect("the commit thread is there") {
                idle = false;
            }
            while tasks.waiting() > 0 {
                tasks.run(0);
                idle = false;
            }
            wire.poll();
            if idle {
                return;
            }
        }
    }
}

impl Wire {
    /// The broker's side takes its turn.
    pub(crate) fn poll(&mut self) {
        let poll = self.served.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(poll.is_pending(), "the connection ended");
    }

    /// Writes to the broker.
    pub(crate) fn say(&mut self, bytes: &[u8]) {
        let wrote = Pin::new(&mut self.end).poll_write(&mut Context::from_waker(Waker::noop()), bytes);
        assert!(matches!(wrote, Poll::Ready(Ok(wrote)) if wrote == bytes.len()), "the pipe has room");
    }

    /// Reads what has come, into memory that is not cleared first: that would be counted.
    fn hear(&mut self) {
        self.heard.reserve(PIPE_BYTES);
        loop {
            let read = poll_read_buf(Pin::new(&mut self.end), &mut Context::from_waker(Waker::noop()), &mut self.heard);
            if matches!(read, Poll::Pending | Poll::Ready(Ok(0))) {
                return;
            }
        }
    }

    /// Throws away what has come; how many bytes it was.
    pub(crate) fn drop_heard(&mut self) -> usize {
        self.hear();
        let bytes = self.heard.len();
        self.heard.clear();
        bytes
    }

    /// Throws away acks of publishes; how many they were. Looks at the first bytes of each frame alone: no more is counted.
    pub(crate) fn drop_acks(&mut self) -> u64 {
        self.hear();
        let (mut acks, mut rest) = (0, &self.heard[..]);
        while let [length, tag, ..] = *rest {
            assert!(length < 0x80 && tag == TAG_PUBLISH_ACK, "{rest:?} is no ack");
            rest = &rest[1 + usize::from(length)..];
            acks += 1;
        }
        self.heard.clear();
        acks
    }

    /// Says something, and waits for the first packet.
    pub(crate) fn ask(&mut self, world: &mut World, kind: &Kind) -> Kind {
        let mut bytes = BytesMut::new();
        encode(kind, &mut bytes);
        self.say(&bytes);
        world.turn(self);
        self.hear();
        match self.codec.decode(&mut self.heard).expect("a good frame") {
            Some((Frame::Packet(kind), _)) => kind,
            other => panic!("no answer: {other:?}"),
        }
    }

    /// Opens a channel.
    pub(crate) fn open_channel(&mut self, world: &mut World, name: &str) -> u64 {
        let action = Some(Action::OpenChannel(packet::OpenChannel { name: name.to_owned() }));
        let publish = packet::Publish { message_id: self.next_id, action, ..Default::default() };
        self.next_id += 1;
        match self.ask(world, &Kind::Publish(publish)) {
            Kind::PublishAck(ack) => ack.conversation,
            other => panic!("no ack: {other:?}"),
        }
    }
}
