//! S11 with the SDK: its outbox file is restored from a backup, against the real broker. See `client/tests/it/restoring.rs`
//! for what only needs a peer.

use std::path::PathBuf;
use std::time::Duration;

use longwire_client::packet::{self, CatchUpMode, publish::Action};
use longwire_client::{Client, Config, Deliveries, Item, Outbox, Settled, Start};
use longwire_protocol::reason::Reason;

use crate::world::{PATIENCE, World, entry};

/// More than a catch-up in `SKIP` gives of one conversation.
const LONG_ABSENCE: usize = 230;

/// Alice's phone, and the bob she writes to.
struct Phone {
    world: World,
    folder: tempfile::TempDir,
    direct: u64,
    group: u64,
}

impl Phone {
    async fn new() -> Self {
        let world = World::new().await;
        let mut laptop = world.wire(packet::Connect { device: "laptop".into(), ..world.connect("alice") }).await;
        let direct = laptop.open_direct("bob").await;
        let group = laptop.create_group("friends", &["bob"]).await;
        Self { world, folder: tempfile::tempdir().expect("a folder"), direct, group }
    }

    fn outbox(&self) -> PathBuf {
        self.folder.path().join("outbox.redb")
    }

    fn copy(&self) -> PathBuf {
        self.folder.path().join("copy.redb")
    }

    fn config(&self) -> Config {
        let mut config = self.world.client("alice");
        config.start = Start::Kept;
        config.catch_up = CatchUpMode::Skip;
        config.outbox = Outbox::File(self.outbox());
        config
    }

    fn start(&self) -> (Client, Deliveries) {
        Client::start(self.config()).expect("started")
    }

    /// Writes while the broker is away: the outbox holds it.
    async fn write_offline(&self, contents: &[(u64, &str)]) {
        let mut config = self.config();
        config.dialer = longwire_client::Dialer::custom(|| Box::pin(std::future::pending()));
        let (client, _deliveries) = Client::start(config).expect("started");
        for (conversation, content) in contents {
            client.publish(*conversation, (*content).to_owned()).await.expect("on disk");
        }
        client.close().await;
    }

    async fn send_all(&self) {
        let (client, deliveries) = self.start();
        drop(deliveries);
        all_sent(&client).await;
        client.close().await;
    }

    async fn bob_says(&self, times: usize) {
        let mut bob = self.world.user("bob").await;
        for n in 0..times {
            bob.say(self.direct, &format!("bob {n}")).await;
            bob.say(self.group, &format!("bob {n}")).await;
        }
    }

    fn back_up(&self) {
        std::fs::copy(self.outbox(), self.copy()).expect("copied");
    }

    fn restore(&self) {
        std::fs::copy(self.copy(), self.outbox()).expect("restored");
    }

    /// What alice wrote there, as bob reads it.
    async fn alices(&self, conversation: u64) -> Vec<String> {
        let mut bob = self.world.user("bob").await;
        let mut page =
            packet::HistoryRequest { conversation, from_seq: 0, limit: 200, backwards: false, compact: false };
        let mut found = Vec::new();
        loop {
            let answer = bob.history(page).await.expect("a page");
            let messages = answer.items.iter().filter_map(entry).filter(|e| e.kind() == packet::EntryKind::Message);
            found.extend(messages.map(|e| String::from_utf8_lossy(&e.content).into_owned()));
            page.from_seq = answer.next_seq;
            if answer.next_seq == 0 {
                found.retain(|text| !text.starts_with("bob"));
                return found;
            }
        }
    }
}

async fn all_sent(client: &Client) {
    let all = async {
        while !client.unanswered().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("answered in time");
}

async fn settled(deliveries: &mut Deliveries) -> Settled {
    loop {
        let delivery = tokio::time::timeout(PATIENCE, deliveries.next()).await.expect("in time").expect("more");
        let found = delivery.items.iter().find_map(|item| match item {
            Item::Settled(settled) => Some(settled.clone()),
            _ => None,
        });
        delivery.stored();
        if let Some(settled) = found {
            return settled;
        }
    }
}

/// S11: some of what the copy holds is stored, some is not, and all of it lies in ranges that catch-up skips.
#[tokio::test]
async fn s11_a_restored_outbox_finds_what_is_stored_behind_skipped_ranges() {
    let phone = Phone::new().await;
    let (direct, group) = (phone.direct, phone.group);
    phone.write_offline(&[(direct, "d1"), (group, "g1")]).await;
    phone.send_all().await;
    phone.write_offline(&[(direct, "d2"), (group, "g2"), (direct, "d3")]).await;
    phone.back_up();
    phone.bob_says(LONG_ABSENCE).await;
    phone.send_all().await;
    phone.bob_says(LONG_ABSENCE).await;
    phone.write_offline(&[(direct, "d4"), (group, "g3")]).await;
    phone.send_all().await;

    phone.restore();
    phone.write_offline(&[(direct, "d5"), (group, "g4")]).await;
    let (client, mut deliveries) = phone.start();
    let told = settled(&mut deliveries).await;
    let stored: Vec<_> = told.stored.iter().map(|own| (own.message_id, own.conversation)).collect();
    assert_eq!(stored, [(3, direct), (4, group), (5, direct)]);
    assert!(told.stored.iter().all(|own| own.seq > LONG_ABSENCE as u64 && own.time > 0 && own.entry.is_none()));
    assert_eq!((&told.sent[..], &told.doubtful[..]), (&[6, 7][..], &[][..]));
    assert!(told.incarnation > told.from);
    all_sent(&client).await;
    client.publish(direct, "d6").await.expect("taken in").await.expect("stored");
    client.close().await;
    assert_eq!(phone.alices(direct).await, ["d1", "d2", "d3", "d4", "d5", "d6"]);
    assert_eq!(phone.alices(group).await, ["g1", "g2", "g3", "g4"]);
}

/// S11: all of it is stored, and then the same copy is restored once more.
#[tokio::test]
async fn s11_the_same_copy_restored_again_and_again_sends_nothing_twice() {
    let phone = Phone::new().await;
    phone.write_offline(&[(phone.direct, "one")]).await;
    phone.send_all().await;
    phone.write_offline(&[(phone.direct, "two"), (phone.direct, "three")]).await;
    phone.back_up();
    phone.send_all().await;
    phone.write_offline(&[(phone.direct, "four")]).await;
    phone.send_all().await;
    for _ in 0..3 {
        phone.restore();
        let (client, mut deliveries) = phone.start();
        let told = settled(&mut deliveries).await;
        assert_eq!((told.stored.len(), told.sent.len(), told.doubtful.len()), (2, 0, 0));
        client.close().await;
    }
    assert_eq!(phone.alices(phone.direct).await, ["one", "two", "three", "four"]);
}

/// S11: nothing of it is stored, and what was sent under the new incarnation is found when the copy comes back again.
#[tokio::test]
async fn s11_what_is_not_stored_is_sent_once_however_often_the_copy_comes_back() {
    let phone = Phone::new().await;
    phone.write_offline(&[(phone.direct, "one")]).await;
    phone.send_all().await;
    phone.write_offline(&[(phone.group, "two"), (phone.group, "three")]).await;
    phone.back_up();
    // The original loses what the copy has, and goes on.
    let (client, deliveries) = phone.start();
    drop(deliveries);
    all_sent(&client).await;
    client.close().await;
    let before = phone.alices(phone.group).await;
    assert_eq!(before, ["two", "three"]);
    phone.restore();
    phone.write_offline(&[(phone.group, "four")]).await;
    phone.send_all().await;
    phone.restore();
    phone.write_offline(&[(phone.group, "five")]).await;
    phone.send_all().await;
    assert_eq!(phone.alices(phone.group).await, ["two", "three", "four", "five"]);
}

/// What makes no entry with an id: opened again where that is harmless, left to the application where it is not.
#[tokio::test]
async fn s11_creations_are_repeated_only_where_that_doubles_nothing() {
    let phone = Phone::new().await;
    phone.write_offline(&[(phone.direct, "one")]).await;
    phone.send_all().await;
    let mut config = phone.config();
    config.dialer = longwire_client::Dialer::custom(|| Box::pin(std::future::pending()));
    let (client, _deliveries) = Client::start(config).expect("started");
    client.open_direct("carol").await.expect("on disk");
    client.create_group("family", ["bob"]).await.expect("on disk");
    client.set_label(phone.group, "old friends").await.expect("on disk");
    client.mark(phone.direct, 1).await.expect("on disk");
    client.close().await;
    phone.back_up();
    phone.send_all().await;
    phone.write_offline(&[(phone.direct, "two")]).await;
    phone.send_all().await;
    phone.restore();
    let (client, mut deliveries) = phone.start();
    let told = settled(&mut deliveries).await;
    let stored: Vec<u64> = told.stored.iter().map(|own| own.message_id).collect();
    assert_eq!((&stored[..], &told.sent[..], &told.doubtful[..]), (&[4][..], &[2, 5][..], &[3][..]));
    all_sent(&client).await;
    let doubtful = client.doubtful().await;
    assert!(matches!(&doubtful[..], [(3, one)] if matches!(one.action, Some(Action::CreateGroup(_)))));
    let all = client.conversations(0, 100).await.expect("a page").conversations;
    assert_eq!(all.iter().filter(|one| one.label == "family").count(), 1);
    assert_eq!(all.iter().filter(|one| one.label == "carol").count(), 1);
    client.give_up(3).await.expect("the application has seen that it is there");
    client.close().await;
}

/// A device that was overtaken by another copy of itself is told *incarnation stale*, and settles all the same.
#[tokio::test]
async fn s11_an_incarnation_that_was_overtaken_settles_too() {
    let phone = Phone::new().await;
    phone.write_offline(&[(phone.direct, "one")]).await;
    phone.send_all().await;
    drop(phone.world.user("alice").await);
    let stale = phone.world.refused(packet::Connect { incarnation: 1, ..phone.world.connect("alice") }).await;
    assert_eq!(stale.reason, Reason::IncarnationStale);
    phone.write_offline(&[(phone.direct, "two")]).await;
    let (client, mut deliveries) = phone.start();
    let told = settled(&mut deliveries).await;
    assert_eq!((told.from, told.incarnation, &told.sent[..]), (1, 3, &[2][..]));
    all_sent(&client).await;
    client.close().await;
    assert_eq!(phone.alices(phone.direct).await, ["one", "two"]);
}
