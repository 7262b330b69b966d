//! Clients of the SDK that talk all the time, whatever becomes of the broker and the way to it; and in the end: each
//! message that was acked is in the log, once, in order, under the seq that its ack named, and was delivered so.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use longwire_client::{Client, Config, Deliveries, Direction, Item, Publication};
use longwire_protocol::packet::item;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// How long everything may take to come to rest.
const REST: Duration = Duration::from_secs(60);

/// A pair of clients: one publishes into their direct conversation, the other one reads.
pub(crate) struct Pair {
    pub(crate) writer: Client,
    pub(crate) reader: Client,
    pub(crate) conversation: u64,
    /// Another one of the writer's, which nobody else speaks in.
    pub(crate) aside: u64,
    /// The newest seq before the reader had its first cursor.
    base: u64,
    /// Acks so far.
    pub(crate) acked: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    publishing: JoinHandle<BTreeMap<u64, Bytes>>,
    reading: JoinHandle<()>,
    received: Arc<Mutex<Vec<(u64, Bytes)>>>,
}

impl Pair {
    /// Two that begin to talk: `window` messages are under way at once.
    pub(crate) async fn begin(name: &str, writer: Config, reader: Config, reader_user: &str, window: usize) -> Self {
        let (reader, deliveries) = Client::start(reader).expect("started");
        reader.connected().await.expect("let in");
        let (writer, own) = Client::start(writer).expect("started");
        drop(own);
        let opened = writer.open_direct(reader_user).await.expect("queued").await.expect("opened");
        let conversation = opened.conversation;
        let aside = writer.open_direct("nobody").await.expect("queued").await.expect("opened").conversation;
        let (acked, stop, received) = (Arc::default(), Arc::default(), Arc::default());
        let (placed, mut is_placed) = oneshot::channel();
        let reading = tokio::spawn(read(deliveries, conversation, Arc::clone(&received), placed));
        // From its first cursor on the reader misses nothing, whatever happens; before, a lost connection begins anew.
        let mut base = 0;
        while is_placed.try_recv().is_err() {
            base = writer.publish(conversation, "hello").await.expect("queued").await.expect("acked").seq;
            sleep(Duration::from_millis(100)).await;
        }
        let talk = Talk { client: writer.clone(), conversation, name: name.into(), window };
        let publishing = tokio::spawn(talk.publish(Arc::clone(&acked), Arc::clone(&stop)));
        Self { writer, reader, conversation, aside, base, acked, stop, publishing, reading, received }
    }

    /// Waits for so many acks more than there are.
    pub(crate) async fn more(&self, count: usize, context: &str) {
        let enough = self.acked.load(Ordering::Relaxed) + count;
        let begun = Instant::now();
        while self.acked.load(Ordering::Relaxed) < enough {
            assert!(begun.elapsed() < REST, "{context}: {} acks, {enough} are expected", self.acked());
            sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn acked(&self) -> usize {
        self.acked.load(Ordering::Relaxed)
    }

    /// Stops publishing, waits until everything is answered and delivered, and holds log and deliveries against the acks.
    pub(crate) async fn end(self, context: &str) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let acked = timeout(REST, self.publishing).await;
        let acked = acked.unwrap_or_else(|_| panic!("{context}: not everything is answered")).expect("a publisher");
        let begun = Instant::now();
        let base = self.base;
        let is_new = move |entry: &(u64, Bytes)| entry.0 > base;
        let received = || -> Vec<_> {
            self.received.lock().expect("unpoisoned").iter().filter(|entry| is_new(entry)).cloned().collect()
        };
        while received().len() < acked.len() {
            let (came, all) = (received().len(), acked.len());
            let state = self.reader.states().borrow().to_string();
            assert!(begun.elapsed() < REST, "{context}: {came} of {all} came; the reader is {state}");
            sleep(Duration::from_millis(20)).await;
        }
        let expected: Vec<(u64, Bytes)> = acked.into_iter().collect();
        let mut log = history(&self.reader, self.conversation).await;
        assert!(log.iter().map(|(seq, _)| *seq).eq(1..=log.len() as u64), "{context}: the log has a hole");
        log.retain(is_new);
        assert_same(&expected, &log, &format!("{context}: the log and the acks"));
        assert_same(&expected, &received(), &format!("{context}: what came and the acks"));
        self.reader.close().await;
        self.writer.close().await;
        self.reading.abort();
        expected.len()
    }
}

fn assert_same(expected: &[(u64, Bytes)], found: &[(u64, Bytes)], context: &str) {
    let different = expected.iter().zip(found).find(|(a, b)| a != b);
    assert_eq!(different, None, "{context} differ");
    assert_eq!(expected.len(), found.len(), "{context}: one has more");
}

/// Who publishes what.
struct Talk {
    client: Client,
    conversation: u64,
    name: String,
    window: usize,
}

impl Talk {
    /// Publishes until it is to stop, then waits for every answer. Returns the acks: seq and content.
    async fn publish(self, acked: Arc<AtomicUsize>, stop: Arc<AtomicBool>) -> BTreeMap<u64, Bytes> {
        let (mut answers, mut open, mut last) = (BTreeMap::new(), VecDeque::<(Bytes, Publication)>::new(), 0);
        for n in 1.. {
            let stops = stop.load(Ordering::Relaxed);
            if !stops {
                let content = Bytes::from(format!("{}:{n}:{}", self.name, "x".repeat(n % 300)));
                let publication = self.client.publish(self.conversation, content.clone()).await.expect("queued");
                open.push_back((content, publication));
            }
            while open.len() >= self.window || stops {
                let Some((content, publication)) = open.pop_front() else { break };
                let ack = publication.await.expect("acked in the end");
                assert!(ack.seq > last, "{}: seq {} after {last}", self.name, ack.seq);
                last = ack.seq;
                answers.insert(ack.seq, content);
                acked.fetch_add(1, Ordering::Relaxed);
            }
            if stops {
                break;
            }
        }
        answers
    }
}

/// Stores what comes, each entry once: it is known by its seq. Tells when the first cursor is there.
async fn read(
    mut deliveries: Deliveries,
    conversation: u64,
    received: Arc<Mutex<Vec<(u64, Bytes)>>>,
    placed: oneshot::Sender<()>,
) {
    let mut placed = Some(placed);
    while let Some(delivery) = deliveries.next().await {
        for item in &delivery.items {
            match item {
                Item::Entry(entry) if entry.conversation == conversation => {
                    let mut received = received.lock().expect("unpoisoned");
                    assert!(received.last().is_none_or(|(seq, _)| *seq < entry.seq), "{} comes twice", entry.seq);
                    received.push((entry.seq, entry.content.clone()));
                }
                Item::Skipped(head) if head.conversation == conversation => panic!("{head:?} is skipped"),
                Item::Reset(reset) if placed.is_none() => panic!("{reset:?}"),
                _ => {}
            }
        }
        let has_cursor = delivery.cursor.is_some();
        delivery.stored();
        if has_cursor && let Some(placed) = placed.take() {
            // Who began is waiting for it.
            let _ = placed.send(());
        }
    }
}

/// All messages of a conversation that others sent, by seq.
pub(crate) async fn history(client: &Client, conversation: u64) -> Vec<(u64, Bytes)> {
    let mut entries = Vec::new();
    let mut from = 1;
    while from != 0 {
        let page = client.history(conversation, from, 200, Direction::Forwards).await.expect("a page");
        for item in page.items {
            if let Some(item::Kind::Entry(entry)) = item.kind {
                entries.push((entry.seq, entry.content));
            }
        }
        from = page.next_seq;
    }
    entries
}
