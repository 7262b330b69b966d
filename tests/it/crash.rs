//! The real broker is killed at any moment, again and again, while clients publish and read; then the whole history is
//! checked: what was acked is in the log under its seq, seqs have no hole, every id stands there once, and every
//! reader's stream is the log, in order and complete. `LONGWIRE_KILLS=1000 cargo test --test it crash` kills as often.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use longwire_protocol::ClientEvent;
use longwire_protocol::packet::{self, Publish, StartKind};
use tokio::time::{Instant, sleep, timeout};

use crate::process::{Process, let_in};
use crate::world::{Wire, entry};

const KILLS: u64 = 50;
const PUBLISHERS: usize = 6;
const READERS: usize = 3;

/// What a publisher knows: every id it used, with what and, once acked, under which seq it was stored.
#[derive(Default)]
struct Outbox {
    sent: BTreeMap<u64, (u64, Bytes)>,
    acked: HashMap<u64, u64>,
}

impl Outbox {
    fn first_unanswered(&self) -> u64 {
        self.sent.keys().find(|id| !self.acked.contains_key(id)).copied().unwrap_or(self.sent.len() as u64 + 1)
    }
}

async fn publish(port: u16, mut connect: packet::Connect, to: Vec<u64>, stop: Arc<AtomicBool>) -> Outbox {
    let name = connect.device.clone();
    let mut outbox = Outbox::default();
    loop {
        connect.first_unanswered = outbox.first_unanswered();
        let mut wire = let_in(port, &connect).await;
        connect.incarnation = wire.incarnation;
        // Repeat what is unanswered, in the order of ids; then go on.
        let first_unanswered = outbox.first_unanswered();
        let unanswered: Vec<_> = outbox
            .sent
            .iter()
            .filter(|(id, _)| !outbox.acked.contains_key(id))
            .map(|(id, p)| (*id, p.clone()))
            .collect();
        for (message_id, (conversation, content)) in unanswered {
            wire.session.publish(Publish { conversation, message_id, content, first_unanswered, ..Publish::default() });
        }
        loop {
            let stopping = stop.load(Ordering::Relaxed);
            if stopping && outbox.first_unanswered() > outbox.sent.len() as u64 {
                return outbox;
            }
            while !stopping && wire.session.publish_room().items > 32 {
                let id = outbox.sent.len() as u64 + 1;
                let conversation = to[id as usize % to.len()];
                let content = Bytes::from(format!("{name}:{id}:{}", "x".repeat(id as usize % 300)));
                outbox.sent.insert(id, (conversation, content.clone()));
                let first_unanswered = outbox.first_unanswered();
                let publish = Publish { conversation, message_id: id, content, first_unanswered, ..Publish::default() };
                wire.session.publish(publish);
            }
            match wire.event().await {
                Ok(ClientEvent::PublishAck(ack)) => {
                    let before = outbox.acked.insert(ack.message_id, ack.seq);
                    assert!(before.is_none_or(|seq| seq == ack.seq), "an id has one seq for ever");
                }
                Ok(ClientEvent::Refused(refusal)) => panic!("{name}: {refusal}"),
                Ok(_) => {}
                Err(_) => break,
            }
        }
    }
}

/// What a reader has stored, and the cursor that covers it.
#[derive(Default)]
struct Stored {
    entries: Vec<(u64, u64, Bytes)>,
    cursor: Bytes,
}

async fn read(port: u16, mut connect: packet::Connect, seen: Arc<AtomicU64>, stop: Arc<AtomicBool>) -> Stored {
    let mut stored = Stored::default();
    loop {
        if !stored.cursor.is_empty() {
            connect.start = StartKind::OwnCursor.into();
            connect.cursor = stored.cursor.clone();
        }
        let mut wire = let_in(port, &connect).await;
        connect.incarnation = wire.incarnation;
        assert!(stored.cursor.is_empty() || wire.connected.cursor() == packet::CursorVerdict::Resumed);
        // What came behind the newest cursor is not stored: it comes again.
        let mut unstored = Vec::new();
        loop {
            let event = timeout(Duration::from_millis(300), wire.event()).await;
            match event {
                Ok(Ok(ClientEvent::Items { items, .. })) => {
                    let entries = items.iter().filter_map(entry);
                    unstored.extend(entries.map(|e| (e.conversation, e.seq, e.content.clone())));
                }
                Ok(Ok(ClientEvent::Cursor(cursor))) => {
                    stored.entries.append(&mut unstored);
                    stored.cursor = cursor;
                    seen.store(stored.entries.len() as u64, Ordering::Relaxed);
                }
                Ok(Ok(_)) => {}
                Ok(Err(_)) => break,
                Err(_) if stop.load(Ordering::Relaxed) => return stored,
                Err(_) => {}
            }
        }
    }
}

async fn history(wire: &mut Wire, conversation: u64) -> Vec<(u64, Bytes)> {
    let pages = wire.pages(conversation, 200, false).await;
    let entries = pages.iter().flat_map(|page| &page.items).filter_map(entry);
    entries.map(|e| (e.seq, e.content.clone())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crash_kills_at_any_moment_lose_double_and_reorder_nothing() {
    let kills = std::env::var("LONGWIRE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(KILLS);
    let process = Arc::new(Mutex::new(Process::new()));
    let (port, make) = {
        let process = process.lock().expect("unpoisoned");
        let names: Vec<_> =
            (0..PUBLISHERS).map(|n| process.connect(&format!("publisher{n}"), &format!("p{n}"))).collect();
        let readers: Vec<_> = (0..READERS).map(|n| process.connect("reader", &format!("r{n}"))).collect();
        (process.port, (names, readers))
    };
    let (publishers, readers) = make;
    // One group of all and one direct conversation each, made before the first kill.
    let mut owner = let_in(port, &publishers[0]).await;
    let users: Vec<String> = (1..PUBLISHERS).map(|n| format!("publisher{n}")).chain(["reader".into()]).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    let group = owner.create_group("all", &users).await;
    let mut directs = Vec::new();
    for connect in &publishers {
        let connect = packet::Connect { device: "setup".into(), ..connect.clone() };
        directs.push(let_in(port, &connect).await.open_direct("reader").await);
    }
    drop(owner);
    let stop = Arc::new(AtomicBool::new(false));
    let stop_reading = Arc::new(AtomicBool::new(false));
    let seen: Vec<_> = (0..READERS).map(|_| Arc::new(AtomicU64::new(0))).collect();
    let reading: Vec<_> = readers
        .iter()
        .zip(&seen)
        .map(|(c, seen)| tokio::spawn(read(port, c.clone(), Arc::clone(seen), Arc::clone(&stop_reading))))
        .collect();
    // Readers have a cursor before anything is said, so their streams begin with seq 1 of the direct conversations.
    sleep(Duration::from_millis(500)).await;
    let publishing: Vec<_> = publishers
        .iter()
        .zip(&directs)
        .map(|(c, direct)| {
            let connect = packet::Connect { device: format!("{}-run", c.device), ..c.clone() };
            tokio::spawn(publish(port, connect, vec![group, *direct], Arc::clone(&stop)))
        })
        .collect();
    for n in 0..kills {
        // Sometimes before the broker is up, sometimes after it has worked a while.
        sleep(Duration::from_millis(fastrand::u64(0..900))).await;
        let mut process = process.lock().expect("unpoisoned");
        process.kill();
        process.start();
        assert!(publishing.iter().all(|p| !p.is_finished()), "after kill {n}");
    }
    stop.store(true, Ordering::Relaxed);
    let mut outboxes = Vec::new();
    for publisher in publishing {
        outboxes.push(timeout(Duration::from_secs(60), publisher).await.expect("in time").expect("a publisher"));
    }
    let mut checker = let_in(port, &packet::Connect { device: "checker".into(), ..readers[0].clone() }).await;
    let mut log = HashMap::new();
    for conversation in directs.iter().chain([&group]) {
        log.insert(*conversation, history(&mut checker, *conversation).await);
    }

    // The log: no hole, every id once, every ack in its place.
    let mut places = HashMap::new();
    for (conversation, entries) in &log {
        let first = entries.first().map_or(1, |(seq, _)| *seq);
        for (at, (seq, content)) in entries.iter().enumerate() {
            assert_eq!(*seq, first + at as u64, "conversation {conversation} has a hole");
            if !content.is_empty() {
                let before = places.insert(content.clone(), (*conversation, *seq));
                assert!(before.is_none(), "{content:?} stands twice");
            }
        }
    }
    let mut total = 0;
    for outbox in &outboxes {
        assert_eq!(outbox.acked.len(), outbox.sent.len(), "everything is answered in the end");
        let mut newest: HashMap<u64, u64> = HashMap::new();
        for (id, (conversation, content)) in &outbox.sent {
            let seq = outbox.acked[id];
            assert_eq!(places.get(content), Some(&(*conversation, seq)), "an acked message is not in its place");
            let before = newest.insert(*conversation, seq).unwrap_or(0);
            assert!(before < seq, "a publisher's order was not kept");
            total += 1;
        }
    }
    assert!(total > kills, "too little was published to prove anything");

    // The readers: the log, in order and complete.
    let expected: usize = log.values().flatten().filter(|(_, content)| !content.is_empty()).count();
    let patience = Instant::now() + Duration::from_secs(60);
    let messages = |stored: &Stored| stored.entries.iter().filter(|(_, _, content)| !content.is_empty()).count();
    while seen.iter().any(|seen| (seen.load(Ordering::Relaxed) as usize) < expected) && Instant::now() < patience {
        sleep(Duration::from_millis(100)).await;
    }
    stop_reading.store(true, Ordering::Relaxed);
    for reader in reading {
        let stored = timeout(Duration::from_secs(60), reader).await.expect("in time").expect("a reader");
        assert_eq!(messages(&stored), expected, "a reader misses entries, or has some twice");
        for (conversation, entries) in &log {
            let got = stored.entries.iter().filter(|(c, _, content)| c == conversation && !content.is_empty());
            let got: Vec<_> = got.map(|(_, seq, content)| (*seq, content.clone())).collect();
            let want: Vec<_> = entries.iter().filter(|(_, content)| !content.is_empty()).cloned().collect();
            assert_eq!(got, want, "a reader's stream of {conversation} is not the log");
        }
    }
    println!("{kills} kills, {total} messages acked, {READERS} readers complete");
}
