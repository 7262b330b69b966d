//! What is stored is delivered once and in order to an application that stores entries and cursor together.

use std::time::Duration;

use bytes::Bytes;
use longwire_client::packet::{CatchUpMode, ResetReason};
use longwire_client::{Client, Deliveries, Handover, Item, Start};

use crate::broker::{Broker, CURSOR_EVERY};

/// What an application has on its disk.
#[derive(Clone, Default)]
struct Disk {
    seqs: Vec<u64>,
    cursor: Bytes,
    /// How many of the seqs the cursor covers.
    covered: usize,
    /// The highest seq that it had when it was started.
    restarted_at: u64,
}

impl Disk {
    fn start() -> Self {
        Self { cursor: Bytes::copy_from_slice(&0_u64.to_be_bytes()), ..Self::default() }
    }

    /// Reads until it has this many.
    async fn read(&mut self, deliveries: &mut Deliveries, until: usize) {
        let reading = self.read_all(deliveries, until);
        tokio::time::timeout(Duration::from_secs(36_000), reading).await.expect("it comes to an end");
    }

    async fn read_all(&mut self, deliveries: &mut Deliveries, until: usize) {
        while self.seqs.len() < until {
            let delivery = deliveries.next().await.expect("more");
            // What a restart brings again is known by its seq; within one life nothing comes twice.
            let again = self.restarted_at;
            let seqs = delivery.items.iter().filter_map(|item| item.place().map(|(_, seq)| seq));
            self.seqs.extend(seqs.filter(|seq| *seq > again));
            if let Some(cursor) = &delivery.cursor {
                self.cursor = cursor.clone();
                self.covered = self.seqs.len();
            }
            delivery.stored();
        }
    }
}

fn config(broker: &Broker, disk: &Disk) -> longwire_client::Config {
    let mut config = broker.config("reader");
    config.start = Start::Own(disk.cursor.clone());
    config.catch_up = CatchUpMode::All;
    config
}

#[tokio::test(start_paused = true)]
async fn whatever_is_cut_each_entry_is_handed_over_once_and_in_order() {
    for round in 0..20 {
        fastrand::seed(round);
        let broker = Broker::cut_below(6_000);
        let mut disk = Disk::start();
        let (_client, mut deliveries) = Client::start(config(&broker, &disk)).expect("started");
        for n in 0..300 {
            broker.say(format!("message {n}"));
        }
        disk.read(&mut deliveries, 100).await;
        for n in 300..600 {
            broker.say(format!("message {n}"));
        }
        disk.read(&mut deliveries, 600).await;
        assert!(disk.seqs.iter().copied().eq(1..=600), "seed {round}: {:?}", disk.seqs);
        assert!(broker.world().connections > 2, "nothing was cut");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_killed_anywhere_has_each_entry_once() {
    for round in 0..50 {
        fastrand::seed(round);
        let broker = Broker::cut_below(20_000);
        let handover = if round % 2 == 0 { Handover::AtOnce } else { Handover::WithCursor };
        // The last has a cursor behind it.
        let all = 28 * CURSOR_EVERY as usize;
        for n in 0..all {
            broker.say(format!("message {n}"));
        }
        let mut disk = Disk::start();
        while disk.covered < all {
            // What lies behind the cursor does not count.
            disk.seqs.truncate(disk.covered);
            disk.restarted_at = disk.seqs.last().copied().unwrap_or(0);
            let mut config = config(&broker, &disk);
            config.handover = handover;
            let (_client, mut deliveries) = Client::start(config).expect("started");
            let until = (disk.seqs.len() + fastrand::usize(1..60)).min(all);
            disk.read(&mut deliveries, until).await;
            assert!(handover == Handover::AtOnce || disk.covered == disk.seqs.len(), "without its cursor");
        }
        assert!(disk.seqs.iter().copied().eq(1..=all as u64), "round {round}: {:?}", disk.seqs);
    }
}

/// Without a cursor there is nothing to go on from: what was said between two connections is not delivered.
#[tokio::test(start_paused = true)]
async fn who_is_cut_before_the_first_cursor_is_told_so() {
    fastrand::seed(1);
    let broker = Broker::cut_below(2_000);
    let mut config = broker.config("reader");
    config.start = Start::Fresh;
    let (client, mut deliveries) = Client::start(config).expect("started");
    // Acks alone come back: no item, and no cursor.
    while broker.world().connections < 3 {
        let sent = client.publish(1, vec![b'x'; 100]).await.expect("room");
        sent.await.expect("stored");
    }
    let told = tokio::time::timeout(Duration::from_secs(60), deliveries.next()).await.expect("in time").expect("more");
    assert!(matches!(told.items[0], Item::Reset(reset) if reset.reason == ResetReason::Asked), "{:?}", told.items);
}

#[tokio::test(start_paused = true)]
async fn a_slow_application_gets_everything_once() {
    let broker = Broker::default();
    let mut disk = Disk::start();
    let (_client, mut deliveries) = Client::start(config(&broker, &disk)).expect("started");
    for n in 0..20 {
        broker.say(format!("message {n}"));
    }
    for round in 0..4 {
        // Longer than the broker waits: it asks, is told that nothing is stored, and sends again.
        let delivery = deliveries.next().await.expect("more");
        tokio::time::sleep(Duration::from_secs(25)).await;
        disk.seqs.extend(delivery.items.iter().filter_map(|item| item.place().map(|(_, seq)| seq)));
        delivery.stored();
        for n in 0..5 {
            broker.say(format!("round {round}, {n}"));
        }
    }
    disk.read(&mut deliveries, 40).await;
    assert!(disk.seqs.iter().copied().eq(1..=40), "{:?}", disk.seqs);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_stored_is_bounded_by_the_window() {
    let broker = Broker::default();
    let mut config = config(&broker, &Disk::start());
    config.bulk = longwire_client::packet::Window { items: 16, bytes: 1 << 16 };
    let (client, mut deliveries) = Client::start(config).expect("started");
    for n in 0..500 {
        broker.say(format!("message {n}"));
    }
    client.connected().await.expect("connected");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut held = Vec::new();
    let mut items = 0;
    while let Ok(Some(delivery)) = tokio::time::timeout(Duration::from_millis(100), deliveries.next()).await {
        items += delivery.items.iter().filter(|item| matches!(item, Item::Entry(_))).count();
        held.push(delivery);
    }
    assert_eq!(items, 16);
    for delivery in held {
        delivery.stored();
    }
    assert!(tokio::time::timeout(Duration::from_secs(2), deliveries.next()).await.is_ok(), "storing makes room");
}

#[tokio::test(start_paused = true)]
async fn nobody_reads_and_nothing_piles_up() {
    let broker = Broker::default();
    let (client, deliveries) = Client::start(config(&broker, &Disk::start())).expect("started");
    drop(deliveries);
    for n in 0..2_000 {
        broker.say(format!("message {n}"));
    }
    client.connected().await.expect("connected");
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(broker.world().connections, 1, "the broker is content");
}
