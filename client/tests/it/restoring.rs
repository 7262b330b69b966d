//! An outbox that was restored from an older copy: what of it is stored is found out before anything is sent, so that
//! nothing is lost and nothing doubled. `tests/it/restored.rs` of the broker holds the real one to the same.

use std::path::{Path, PathBuf};
use std::time::Duration;

use longwire_client::packet::publish::Action;
use longwire_client::{Client, Config, Deliveries, GiveUpError, Item, Outbox, PublishError, Settled};
use longwire_protocol::reason::Reason;

use crate::broker::Broker;

/// A device whose outbox file can be copied, and brought back.
struct Phone {
    broker: Broker,
    folder: tempfile::TempDir,
}

impl Phone {
    fn new() -> Self {
        Self { broker: Broker::default(), folder: tempfile::tempdir().expect("a folder") }
    }

    fn outbox(&self) -> PathBuf {
        self.folder.path().join("outbox.redb")
    }

    fn config(&self) -> Config {
        let mut config = self.broker.config("phone");
        config.outbox = Outbox::File(self.outbox());
        config
    }

    fn start(&self) -> (Client, Deliveries) {
        Client::start(self.config()).expect("started")
    }

    /// Says all of this and waits until it is stored.
    async fn say(&self, contents: &[&str]) {
        let (client, _deliveries) = self.start();
        for content in contents {
            client.publish(1, (*content).to_owned()).await.expect("taken in").await.expect("stored");
        }
        client.close().await;
    }

    /// Writes all of this while the broker is away.
    async fn write_offline(&self, contents: &[&str]) {
        self.broker.world().refuse = Some(Reason::Overloaded);
        let (client, _deliveries) = self.start();
        for content in contents {
            client.publish(1, (*content).to_owned()).await.expect("on disk");
        }
        client.close().await;
        self.broker.world().refuse = None;
    }

    /// Sends what is in the outbox.
    async fn send_all(&self) {
        let (client, _deliveries) = self.start();
        self.all_sent(&client).await;
        client.close().await;
    }

    async fn all_sent(&self, client: &Client) {
        while !client.unanswered().await.is_empty() {
            hurry(client).await;
        }
    }

    fn back_up(&self) -> PathBuf {
        let copy = self.folder.path().join("copy.redb");
        std::fs::copy(self.outbox(), &copy).expect("copied");
        copy
    }

    fn restore(&self, copy: &Path) {
        std::fs::copy(copy, self.outbox()).expect("restored");
    }

    fn log(&self) -> Vec<String> {
        let world = self.broker.world();
        world.log.iter().map(|(.., publish)| String::from_utf8_lossy(&publish.content).into_owned()).collect()
    }
}

/// Does not wait for the next attempt to connect.
async fn hurry(client: &Client) {
    client.connect_now().await;
    tokio::time::sleep(Duration::from_millis(1)).await;
}

async fn settled(deliveries: &mut Deliveries) -> Settled {
    loop {
        let delivery = deliveries.next().await.expect("more");
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

fn stored(settled: &Settled) -> Vec<(u64, u64)> {
    settled.stored.iter().map(|own| (own.message_id, own.seq)).collect()
}

#[tokio::test]
async fn what_was_stored_is_found_and_only_the_rest_is_sent() {
    let phone = Phone::new();
    phone.say(&["one"]).await;
    phone.write_offline(&["two", "three"]).await;
    let copy = phone.back_up();
    phone.send_all().await;
    phone.say(&["four", "five", "six", "seven", "eight", "nine"]).await;
    phone.restore(&copy);
    phone.write_offline(&["typed after the restore"]).await;

    let (client, mut deliveries) = phone.start();
    let told = settled(&mut deliveries).await;
    assert_eq!((stored(&told), &told.sent[..], &told.doubtful[..]), (vec![(2, 2), (3, 3)], &[4][..], &[][..]));
    assert_eq!((told.from, told.incarnation), (1, 2));
    phone.all_sent(&client).await;
    client.publish(1, "ten").await.expect("taken in").await.expect("stored");
    client.close().await;
    let expected = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
    assert_eq!(phone.log(), [&expected[..], &["typed after the restore", "ten"]].concat());
    assert!(phone.broker.world().histories > 1, "more than one page");

    // The next life is an ordinary one.
    let asked = phone.broker.world().histories;
    phone.say(&["eleven"]).await;
    assert_eq!(phone.broker.world().histories, asked);
}

#[tokio::test]
async fn an_empty_copy_takes_a_new_incarnation_and_says_so() {
    let phone = Phone::new();
    phone.say(&["one"]).await;
    let copy = phone.back_up();
    phone.say(&["two", "three"]).await;
    phone.restore(&copy);
    let (client, mut deliveries) = phone.start();
    assert_eq!(settled(&mut deliveries).await, Settled { from: 1, incarnation: 2, ..Settled::default() });
    client.publish(1, "four").await.expect("taken in").await.expect("stored");
    client.close().await;
    assert_eq!(phone.log(), ["one", "two", "three", "four"]);
}

#[tokio::test]
async fn a_copy_that_only_an_id_gives_away_is_found_out_too() {
    let phone = Phone::new();
    phone.say(&["one"]).await;
    let copy = phone.back_up();
    // Stored under id 2, whose first unanswered is 2: the floor does not tell.
    phone.say(&["two"]).await;
    phone.restore(&copy);
    let (client, mut deliveries) = phone.start();
    let publication = client.publish(1, "another two").await.expect("taken in");
    assert_eq!(publication.message_id(), 2);
    assert_eq!(publication.await.expect("stored").seq, 3);
    let told = settled(&mut deliveries).await;
    assert_eq!((stored(&told), &told.sent[..]), (vec![], &[2][..]));
    client.close().await;
    assert_eq!(phone.log(), ["one", "two", "another two"]);
}

#[tokio::test]
async fn whatever_is_cut_while_it_settles_nothing_is_lost_or_doubled() {
    for round in 0..20 {
        fastrand::seed(round);
        let mut phone = Phone::new();
        phone.say(&["one"]).await;
        phone.write_offline(&["two", "three"]).await;
        let copy = phone.back_up();
        phone.send_all().await;
        let more: Vec<String> = (0..60).map(|n| format!("more {n}")).collect();
        phone.say(&more.iter().map(String::as_str).collect::<Vec<_>>()).await;
        phone.restore(&copy);
        phone.write_offline(&["typed after the restore"]).await;
        phone.broker.set_cut_below(Some(1_500));
        // Killed a few times on the way, each time with whatever is on its disk by then.
        for life in 0..3 {
            let (client, deliveries) = phone.start();
            drop(deliveries);
            while phone.broker.world().histories <= life {
                hurry(&client).await;
            }
            client.close().await;
        }
        let (client, _deliveries) = phone.start();
        phone.all_sent(&client).await;
        client.close().await;
        let mut log = phone.log();
        assert_eq!(log.pop().as_deref(), Some("typed after the restore"), "round {round}");
        let expected: Vec<String> = ["one", "two", "three"].into_iter().map(ToOwned::to_owned).chain(more).collect();
        assert_eq!(log, expected, "round {round}");
    }
}

#[tokio::test]
async fn the_same_copy_restored_twice_doubles_nothing() {
    let phone = Phone::new();
    phone.say(&["one"]).await;
    phone.write_offline(&["two"]).await;
    let copy = phone.back_up();
    phone.write_offline(&["three"]).await;
    phone.say(&[]).await;
    phone.send_all().await;
    phone.restore(&copy);
    phone.write_offline(&["not three"]).await;
    phone.send_all().await;
    assert_eq!(phone.log(), ["one", "two", "three", "not three"]);
    phone.restore(&copy);
    let (client, mut deliveries) = phone.start();
    let told = settled(&mut deliveries).await;
    assert_eq!((stored(&told), &told.sent[..], told.from), (vec![(2, 2)], &[][..], 1));
    client.publish(1, "four").await.expect("taken in").await.expect("stored");
    client.close().await;
    assert_eq!(phone.log(), ["one", "two", "three", "not three", "four"]);
}

#[tokio::test]
async fn what_nobody_can_tell_is_left_to_the_application_over_restarts() {
    let phone = Phone::new();
    phone.say(&["one"]).await;
    phone.broker.world().refuse = Some(Reason::Overloaded);
    let (client, _deliveries) = phone.start();
    client.create_group("friends", ["bob"]).await.expect("on disk");
    client.create_group("family", ["carol"]).await.expect("on disk");
    client.open_channel("news").await.expect("on disk");
    client.close().await;
    phone.broker.world().refuse = None;
    let copy = phone.back_up();
    phone.send_all().await;
    phone.say(&["two"]).await;
    phone.restore(&copy);

    let (client, mut deliveries) = phone.start();
    let told = settled(&mut deliveries).await;
    assert_eq!((stored(&told), &told.sent[..], &told.doubtful[..]), (vec![], &[4][..], &[2, 3][..]));
    phone.all_sent(&client).await;
    client.close().await;

    let (client, _deliveries) = phone.start();
    let label = |publish: &longwire_client::packet::Publish| match &publish.action {
        Some(Action::CreateGroup(create)) => create.label.clone(),
        other => panic!("{other:?}"),
    };
    let doubtful: Vec<_> = client.doubtful().await.iter().map(|(id, publish)| (*id, label(publish))).collect();
    assert_eq!(doubtful, [(2, "friends".to_owned()), (3, "family".to_owned())]);
    client.give_up(2).await.expect("the application decides");
    assert_eq!(client.give_up(2).await, Err(GiveUpError::Unknown));
    let again = client.send_anyway(3).await.expect("taken in");
    assert!(again.message_id() > 4, "under an id of its own");
    again.await.expect("stored");
    assert!(matches!(client.send_anyway(3).await, Err(PublishError::NotDoubtful { id: 3 })));
    client.close().await;

    let (client, _deliveries) = phone.start();
    assert!(client.doubtful().await.is_empty());
    client.close().await;
}
