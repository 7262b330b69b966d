//! The real broker is drained under load and another process takes over its folder and port: everybody is told to go, goes
//! and comes back, every ack is out before the end, and nothing is lost.

use std::path::Path;

use bytes::BytesMut;
use longwire_client::State;
use longwire_protocol::packet::packet::Kind;
use longwire_protocol::packet::{self, StartKind, response};
use longwire_protocol::{Frame, FrameCodec};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::codec::Decoder as _;

use crate::load::Pair;
use crate::old;
use crate::process::{Process, Setup, let_in};
use crate::world::{PATIENCE, texts};

/// How often a process follows another.
const UPGRADES: usize = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_drained_under_load_hands_over_to_the_next_process() {
    let setup = Setup { faults: "seal=64".into(), config: "limits.drain_timeout = '30s'".into(), ..Setup::default() };
    let mut process = Process::with(setup);
    let mut pairs = Vec::new();
    for n in 0..2 {
        let reader = format!("reader{n}");
        let config = |user: &str| process.config(user, "phone", process.port);
        let writer = config(&format!("writer{n}"));
        pairs.push(Pair::begin(&format!("w{n}"), writer, config(&reader), &reader, 8).await);
    }
    for upgrade in 0..UPGRADES {
        for pair in &pairs {
            pair.more(30, "under load").await;
        }
        let mut states = pairs[0].reader.states();
        states.mark_unchanged();
        let status = tokio::task::block_in_place(|| process.drain());
        assert!(status.success(), "upgrade {upgrade}: {status}");
        // By themselves, before the broker lost patience with anybody.
        let left = states.wait_for(|state| !matches!(state, State::Connected(_))).await.expect("alive").clone();
        assert!(!left.is_final(), "{left}");
        process.start();
        for pair in &pairs {
            pair.more(30, "after an upgrade").await;
        }
    }
    assert_eq!(process.logged("stopped; each frame was one fsync"), UPGRADES);
    for pair in pairs {
        pair.end("upgrades").await;
    }
    assert!(process.drain().success());
    process.assert_no_panic("upgrades");
    process.assert_sound("upgrades");
}

/// A client as it was recorded when version 1 was made (`protocol/vectors/recorded_1.jsonl`). It says those bytes and no
/// others, but that the token and the conversation are those of here.
struct Recorded {
    token: String,
    conversation: u64,
    socket: TcpStream,
    codec: FrameCodec,
    input: BytesMut,
}

/// A number as the wire has it.
fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let is_here = bytes[at..].starts_with(from);
        out.extend_from_slice(if is_here { to } else { &bytes[at..=at] });
        at += if is_here { from.len() } else { 1 };
    }
    out
}

/// What the client said in a step.
fn recording(step: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("protocol/vectors/recorded_1.jsonl");
    let text = std::fs::read_to_string(path).expect("the recording");
    let mut lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let line = lines.find(|line| line["step"] == step).expect("a step");
    let hex = line["client"].as_str().expect("hex");
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
}

impl Recorded {
    /// The conversation of the recording, as the wire has it.
    const CONVERSATION: [u8; 3] = [0x08, 0x81, 0x20];

    async fn begin(process: &Process, user: &str, conversation: u64) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", process.port)).await.expect("a connection");
        let (token, codec) = (process.token(user, u64::MAX / 2_000), FrameCodec::default());
        let mut client = Self { token, conversation, socket, codec, input: BytesMut::new() };
        client.say("connect").await;
        let Kind::Connected(_) = client.hear().await else { panic!("it is let in") };
        client.codec.set_frame_bytes_max(1 << 20);
        client
    }

    async fn say(&mut self, step: &str) {
        let mut bytes = recording(step);
        if step == "connect" {
            // The frame's length and the packet's, around it.
            let token = [&[0x1a], &varint(self.token.len() as u64)[..], self.token.as_bytes()].concat();
            let inner = replaced(&bytes[4..], b"\x1a\x05token", &token);
            let packet = [&bytes[1..3], &varint(inner.len() as u64), &inner].concat();
            bytes = [varint(packet.len() as u64), packet].concat();
        }
        if self.conversation != 0 {
            let conversation = varint(self.conversation);
            assert_eq!(conversation.len(), 2, "it takes as many bytes as it did");
            bytes = replaced(&bytes, &Self::CONVERSATION, &[&[0x08], &conversation[..]].concat());
        }
        self.socket.write_all(&bytes).await.expect("sent");
    }

    /// The next packet that is no item and no question about one.
    async fn hear(&mut self) -> Kind {
        loop {
            while let Some((frame, _)) = self.codec.decode(&mut self.input).expect("a frame") {
                match frame {
                    Frame::Packet(Kind::Deliver(_) | Kind::Cursor(_) | Kind::AckRequest(_)) | Frame::Heartbeat => {}
                    Frame::Packet(kind) => return kind,
                    Frame::Unknown => panic!("it is told something that it does not know"),
                }
            }
            let read = tokio::time::timeout(PATIENCE, self.socket.read_buf(&mut self.input));
            assert_ne!(read.await.expect("in time").expect("it holds"), 0, "the broker closed");
        }
    }

    async fn ack(&mut self) -> packet::PublishAck {
        match self.hear().await {
            Kind::PublishAck(ack) => ack,
            other => panic!("{other:?} is no ack"),
        }
    }
}

/// The store of an older broker is taken over, drained under load, and taken over again by the next process; and a client of
/// the first version speaks through that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_store_and_an_old_client_go_through_an_upgrade_under_load() {
    let setup = Setup { faults: "seal=64".into(), config: "limits.drain_timeout = '30s'".into(), ..Setup::default() };
    let mut process = Process::prepared(setup);
    old::put_in_place(&process.store());
    process.start();
    drop(let_in(process.port, &process.connect("someone", "phone")).await);
    let config = |user: &str| process.config(user, "phone", process.port);
    let pair = Pair::begin("w", config("writer"), config("reader"), "reader", 8).await;

    let mut client = Recorded::begin(&process, "olga", 0).await;
    // It opens a conversation and speaks in one whose number it knows from before: so once to learn it, and once more.
    client.say("publish").await;
    let opened = client.ack().await;
    assert_eq!((opened.message_id, opened.seq), (7, 0));
    for id in [8, 9] {
        let Kind::Refused(refused) = client.hear().await else { panic!("there is no such conversation") };
        assert_eq!(refused.message_id, id);
    }
    client.say("goodbye").await;
    let mut client = Recorded::begin(&process, "olga", opened.conversation).await;
    client.say("publish").await;
    let acks = [client.ack().await, client.ack().await, client.ack().await];
    assert_eq!(acks.each_ref().map(|ack| (ack.message_id, ack.seq)), [(7, 0), (8, 1), (9, 2)]);
    assert_eq!(acks[0], opened);
    pair.more(30, "over an old store").await;

    let goes = async {
        let Kind::Goaway(_) = client.hear().await else { panic!("it is asked to go") };
        client.say("goodbye").await;
    };
    let drained = tokio::task::spawn_blocking(move || {
        let status = process.drain();
        (process, status)
    });
    let (drained, ()) = tokio::join!(drained, goes);
    let (mut process, status) = drained.expect("it ends");
    assert!(status.success(), "{status}");
    process.start();
    drop(let_in(process.port, &process.connect("someone", "phone")).await);

    let mut client = Recorded::begin(&process, "olga", opened.conversation).await;
    client.say("repeat").await;
    assert_eq!(client.ack().await, acks[2], "as the process before answered");
    client.say("read").await;
    let Kind::Response(response) = client.hear().await else { panic!("an answer") };
    let Some(response::Result::History(page)) = response.result else { panic!("a page") };
    assert_eq!(texts(&page.items).iter().map(String::len).collect::<Vec<_>>(), [3, 200]);
    client.say("goodbye").await;

    let stored = packet::Connect { start: StartKind::StoredCursor.into(), ..process.connect("bob", "phone") };
    let mut bob = let_in(process.port, &stored).await;
    let alice = packet::Connect { incarnation: 1, ..process.connect("alice", "phone") };
    let mut alice = let_in(process.port, &alice).await;
    let mut cat = let_in(process.port, &process.connect("cat", "phone")).await;
    old::check(&mut bob, &mut alice, &mut cat, true).await;
    pair.more(30, "after the upgrade").await;
    pair.end("an old store").await;
    drop((alice, bob, cat));
    assert!(process.drain().success());
    process.assert_no_panic("an old store");
    process.assert_sound("an old store");
}
