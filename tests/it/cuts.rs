//! A connection that is cut at every byte of a short conversation, in each direction: the client repeats what has no
//! answer, under the same ids, and reads on from its newest cursor. Nothing acked is lost, nothing is doubled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use longwire::store::MemoryLog;
use longwire_protocol::ClientEvent;
use longwire_protocol::packet::{self, Publish, item};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use crate::world::{Wire, World, texts};

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    ToBroker,
    ToClient,
}

/// A way to a broker whose first connection is cut after so many bytes that go one way.
struct Proxy {
    port: u16,
    has_cut: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    async fn new(broker: u16, way: Way, bytes: u64) -> Self {
        let socket = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = socket.local_addr().expect("its address").port();
        let has_cut = Arc::new(AtomicBool::new(false));
        let cuts = Arc::clone(&has_cut);
        let task = tokio::spawn(async move {
            let mut bytes = bytes;
            loop {
                let (client, _) = socket.accept().await.expect("a client");
                let broker = TcpStream::connect(("127.0.0.1", broker)).await.expect("the broker");
                // Bytes leave as they come.
                let _ = (client.set_nodelay(true), broker.set_nodelay(true));
                if carry(client, broker, way, bytes).await {
                    cuts.store(true, Ordering::Relaxed);
                }
                bytes = u64::MAX;
            }
        });
        Self { port, has_cut, task }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Carries bytes until one end closes or `bytes` went `way`; then both ends are closed. Returns whether it was a cut.
async fn carry(mut client: TcpStream, mut broker: TcpStream, way: Way, bytes: u64) -> bool {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_broker, mut to_broker) = broker.split();
    let most = |of| if of == way { bytes } else { u64::MAX };
    tokio::select! {
        is_cut = copy(&mut from_client, &mut to_broker, most(Way::ToBroker)) => is_cut,
        is_cut = copy(&mut from_broker, &mut to_client, most(Way::ToClient)) => is_cut,
    }
}

/// Copies at most so many bytes; returns whether they came.
async fn copy(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin), most: u64) -> bool {
    let mut from = from.take(most);
    // An end that is closed is an end.
    let _ = tokio::io::copy(&mut from, to).await;
    from.limit() == 0
}

/// What a client knows for certain.
#[derive(Default)]
struct Known {
    /// The seq of each id that was acked.
    acked: BTreeMap<u64, u64>,
    /// The seqs of the conversation that it has: what came behind the newest cursor before a cut is not among them.
    stored: Vec<u64>,
}

/// What the client publishes, under the ids from 1 on.
const SAID: [&str; 2] = ["b1", "b2"];
/// What it finds when it comes.
const HEARD: [&str; 3] = ["a1", "a2", "a3"];

/// Publishes and reads over as many connections as it takes.
async fn converse(port: u16, mut connect: packet::Connect, direct: u64) -> Known {
    let mut known = Known::default();
    loop {
        connect.first_unanswered = known.acked.len() as u64 + 1;
        let Ok(mut wire) = Wire::open(port, connect.clone()).await else { continue };
        if wire.connected().await.is_err() {
            continue;
        }
        for (message_id, text) in (1..).zip(SAID).filter(|(id, _)| !known.acked.contains_key(id)) {
            let first_unanswered = connect.first_unanswered;
            let publish = Publish { conversation: direct, message_id, first_unanswered, ..Publish::default() };
            wire.session.publish(Publish { content: text.into(), ..publish });
        }
        // What came behind the newest cursor comes again after a cut.
        let mut unstored = Vec::new();
        while known.acked.len() < SAID.len() || known.stored.len() + unstored.len() < HEARD.len() {
            match wire.event().await {
                Ok(ClientEvent::PublishAck(ack)) => {
                    known.acked.insert(ack.message_id, ack.seq);
                }
                Ok(ClientEvent::Items { items, .. }) => {
                    unstored.extend(items.iter().filter_map(|item| seq(item, direct)))
                }
                Ok(ClientEvent::Cursor(cursor)) => {
                    known.stored.append(&mut unstored);
                    connect.cursor = cursor;
                }
                Ok(ClientEvent::Refused(refusal)) => panic!("{refusal}"),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        if known.acked.len() == SAID.len() && known.stored.len() + unstored.len() >= HEARD.len() {
            known.stored.append(&mut unstored);
            return known;
        }
    }
}

/// The seq of an item of a conversation, own or not.
fn seq(item: &packet::Item, conversation: u64) -> Option<u64> {
    match &item.kind {
        Some(item::Kind::Entry(entry)) if entry.conversation == conversation => Some(entry.seq),
        Some(item::Kind::Own(own)) if own.conversation == conversation => Some(own.seq),
        _ => None,
    }
}

async fn every_cut(way: Way) {
    let world = World::with_log(Box::new(MemoryLog::new(1_700_000_000_000, 1_000_000))).await;
    let mut alice = world.user("alice").await;
    let mut cuts = 0;
    loop {
        // Every time somebody new, who was there before anything was said.
        let bob = format!("bob{cuts}");
        let mut wire = world.user(&bob).await;
        let (cursor, incarnation) = (wire.settle().await, wire.incarnation);
        wire.leave().await;
        let back = packet::Connect { incarnation, ..world.resume(&bob, cursor) };
        let direct = alice.open_direct(&bob).await;
        for text in HEARD {
            alice.say(direct, text).await;
        }
        let proxy = Proxy::new(world.port(), way, cuts).await;
        let known = converse(proxy.port, back, direct).await;

        let context = format!("{way:?}, cut after {cuts} bytes");
        let page =
            packet::HistoryRequest { conversation: direct, from_seq: 0, limit: 100, backwards: false, compact: false };
        let items = alice.history(page).await.expect("a page").items;
        assert_eq!(texts(&items), ["a1", "a2", "a3", "b1", "b2"], "{context}");
        assert_eq!(known.acked, BTreeMap::from([(1, 4), (2, 5)]), "{context}: the acks are right");
        let came = known.stored.len() as u64;
        assert_eq!(known.stored, (1..=came).collect::<Vec<_>>(), "{context}: each once, in order");
        alice.items.clear();
        if !proxy.has_cut.load(Ordering::Relaxed) {
            break;
        }
        cuts += 1;
    }
    assert!(cuts > 100, "only {cuts} bytes were cut at");
}

#[tokio::test]
async fn a_cut_after_any_byte_to_the_broker_loses_and_doubles_nothing() {
    every_cut(Way::ToBroker).await;
}

#[tokio::test]
async fn a_cut_after_any_byte_to_the_client_loses_and_doubles_nothing() {
    every_cut(Way::ToClient).await;
}
