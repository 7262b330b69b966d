//! What is published is stored once and in order, whatever happens to connections and to the client.

use std::time::Duration;

use longwire_client::packet::Publish;
use longwire_client::{
    Client, Failure, GiveUpError, Outbox, OutboxError, OutboxLimits, PublishError, StartError, State,
};
use longwire_protocol::reason::Reason;

use crate::broker::Broker;

fn contents(broker: &Broker) -> Vec<String> {
    let world = broker.world();
    world.log.iter().map(|(.., publish)| String::from_utf8_lossy(&publish.content).into_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_publish_is_acked() {
    let broker = Broker::default();
    let (client, _deliveries) = Client::start(broker.config("a")).expect("started");
    let first = client.publish(1, "one").await.expect("taken in");
    assert_eq!(first.message_id(), 1);
    assert_eq!(first.await.expect("stored").seq, 1);
    let opened = client.open_channel("news").await.expect("taken in").await.expect("opened");
    assert_eq!(opened.conversation, 1);
    client.close().await;
    assert!(matches!(client.publish(1, "late").await, Err(PublishError::Closed(None))));
    assert!(matches!(*client.states().borrow(), State::Closed));
}

#[tokio::test(start_paused = true)]
async fn what_is_wished_while_connecting_does_not_disturb_it() {
    let broker = Broker::default();
    let (client, _deliveries) = Client::start(broker.config("a")).expect("started");
    // The dialer takes a while; each wish interrupts the wait for it.
    for _ in 0..10 {
        client.publish(1, "early").await.expect("taken in");
    }
    client.connected().await.expect("connected");
    assert_eq!(broker.world().connects[0].token, "token");
}

#[tokio::test(start_paused = true)]
async fn whatever_is_cut_or_refused_each_message_is_stored_once_and_in_order() {
    for round in 0..20 {
        fastrand::seed(round);
        let broker = Broker::cut_below(4_000);
        broker.world().refuse_for_now = u32::try_from(round).expect("small") * 10;
        let (client, _deliveries) = Client::start(broker.config("a")).expect("started");
        let mut publications = Vec::new();
        for n in 0..400 {
            publications.push(client.publish(1, format!("message {n}")).await.expect("taken in"));
        }
        let mut last = 0;
        for publication in publications {
            let seq = publication.await.expect("stored").seq;
            assert!(seq > last, "acks name the order");
            last = seq;
        }
        let expected: Vec<String> = (0..400).map(|n| format!("message {n}")).collect();
        assert_eq!(contents(&broker), expected, "seed {round}");
        assert!(broker.world().connections > 3, "nothing was cut");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_in_the_middle_of_a_window_reorders_nothing() {
    let broker = Broker::default();
    broker.world().refuse_for_now = 300;
    let (client, _deliveries) = Client::start(broker.config("a")).expect("started");
    let mut publications = Vec::new();
    for n in 0..100 {
        publications.push(client.publish(1, format!("message {n}")).await.expect("taken in"));
    }
    for publication in publications {
        publication.await.expect("stored in the end");
    }
    let expected: Vec<String> = (0..100).map(|n| format!("message {n}")).collect();
    assert_eq!(contents(&broker), expected);
}

#[tokio::test]
async fn an_outbox_file_outlives_its_process() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("outbox.redb");
    let broker = Broker::default();
    let config = || {
        let mut config = broker.config("a");
        config.outbox = Outbox::File(path.clone());
        config
    };

    broker.world().refuse = Some(Reason::Overloaded);
    let (client, _deliveries) = Client::start(config()).expect("started");
    for n in 0..5 {
        client.publish(1, format!("message {n}")).await.expect("on disk");
    }
    let Err(StartError::Outbox(OutboxError::InUse(_))) = Client::start(config()) else {
        panic!("two clients have one outbox");
    };
    client.close().await;
    assert!(contents(&broker).is_empty());

    broker.world().refuse = None;
    let (client, _deliveries) = Client::start(config()).expect("started again");
    assert_eq!(client.unanswered().await.len(), 5);
    let sixth = client.publish(1, "message 5").await.expect("on disk");
    assert_eq!(sixth.message_id(), 6, "the counter goes on");
    sixth.await.expect("stored");
    let expected: Vec<String> = (0..6).map(|n| format!("message {n}")).collect();
    assert_eq!(contents(&broker), expected);
    assert!(client.unanswered().await.is_empty());
    client.close().await;

    // The third life knows the incarnation and owes nothing.
    let (client, _deliveries) = Client::start(config()).expect("started again");
    assert_eq!(client.connected().await.expect("connected").incarnation, 1);
    let connect = broker.world().connects.last().cloned().expect("a connect");
    assert_eq!((connect.incarnation, connect.first_unanswered), (1, 7));
    client.close().await;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "what people write is nobody else's");
    }
}

#[tokio::test]
async fn what_one_user_wrote_is_never_sent_as_another() {
    let directory = tempfile::tempdir().expect("a directory");
    let broker = Broker::default();
    let config = || {
        let mut config = broker.config("a");
        config.outbox = Outbox::File(directory.path().join("outbox.redb"));
        config
    };
    broker.world().user = 1;
    let (client, _deliveries) = Client::start(config()).expect("started");
    client.publish(1, "one").await.expect("taken in").await.expect("stored");
    broker.world().refuse_for_now = u32::MAX;
    client.publish(1, "of the first user").await.expect("taken in");
    client.close().await;

    broker.world().user = 2;
    let (client, _deliveries) = Client::start(config()).expect("started");
    let ended = client.connected().await.expect_err("another user");
    assert!(matches!(ended, State::Failed(Failure::OutboxOfAnother)), "{ended}");

    broker.world().user = 1;
    broker.world().refuse_for_now = 0;
    let (client, _deliveries) = Client::start(config()).expect("started");
    client.publish(1, "two").await.expect("taken in").await.expect("stored");
    client.close().await;
    assert_eq!(contents(&broker), ["one", "of the first user", "two"]);

    // Empty, it serves whoever comes, under an incarnation of its own.
    broker.world().user = 2;
    let (client, _deliveries) = Client::start(config()).expect("started");
    assert_eq!(client.connected().await.expect("connected").incarnation, 2);
    client.publish(1, "three").await.expect("taken in").await.expect("stored");
    client.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_outbox_is_bounded_and_says_so() {
    let broker = Broker::default();
    broker.world().refuse = Some(Reason::Overloaded);
    let mut config = broker.config("a");
    config.outbox_limits = OutboxLimits { items: 2, bytes: 100 };
    let (client, _deliveries) = Client::start(config).expect("started");
    client.publish(1, "one").await.expect("taken in");
    assert!(matches!(client.publish(1, vec![b'x'; 200]).await, Err(PublishError::OutboxFull { items: 1, .. })));
    client.publish(1, "two").await.expect("taken in");
    assert!(matches!(client.publish(1, "three").await, Err(PublishError::OutboxFull { items: 2, .. })));
    client.give_up(2).await.expect("never sent");
    assert_eq!(client.give_up(2).await, Err(GiveUpError::Unknown));
    client.publish(1, "four").await.expect("there is room again");
}

/// SPEC R5.4-5: a refusal for which nobody looked says nothing about what became of an id before.
#[tokio::test(start_paused = true)]
async fn what_may_be_stored_is_given_up_only_once_it_is_surely_not() {
    let broker = Broker::default();
    let (client, _deliveries) = Client::start(broker.config("a")).expect("started");
    for (reason, given_up) in [
        (Reason::OutcomeUnknown, Err(GiveUpError::MayBeStored)),
        (Reason::Overloaded, Err(GiveUpError::MayBeStored)),
        (Reason::StoreUnavailable, Ok(())),
    ] {
        broker.world().refuse_publishes = Some(reason);
        if reason == Reason::OutcomeUnknown {
            client.publish(1, "perhaps").await.expect("taken in");
        }
        // Long enough for it to be repeated.
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(client.give_up(1).await, given_up, "{reason:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn numbered_publishes_begin_at_the_floor_and_stale_ones_are_told_apart() {
    let broker = Broker::default();
    let config = |incarnation| {
        let mut config = broker.config("a");
        config.outbox = Outbox::Numbered { incarnation };
        config
    };
    let publish = |n: u64| Publish { conversation: 1, content: format!("line {n}").into(), ..Default::default() };
    let (client, _deliveries) = Client::start(config(0)).expect("started");
    let incarnation = client.connected().await.expect("connected").incarnation;
    for n in 1..=10 {
        client.publish_numbered(n, publish(n)).await.expect("taken in").await.expect("stored");
    }
    assert!(matches!(client.publish_numbered(10, publish(10)).await, Err(PublishError::IdNotRising { .. })));
    drop(client);

    let (client, _deliveries) = Client::start(config(incarnation)).expect("started");
    let floor = client.connected().await.expect("connected").first_unanswered;
    assert!(floor > 1 && floor <= 10, "{floor}");
    for n in floor..=12 {
        client.publish_numbered(n, publish(n)).await.expect("taken in").await.expect("stored");
    }
    let expected: Vec<String> = (1..=12).map(|n| format!("line {n}")).collect();
    assert_eq!(contents(&broker), expected);
}

#[tokio::test(start_paused = true)]
async fn whoever_is_refused_for_good_stays_away() {
    let broker = Broker::default();
    broker.world().refuse = Some(Reason::TakenOver);
    let (client, mut deliveries) = Client::start(broker.config("a")).expect("started");
    let waiting = client.publish(1, "one").await.expect("taken in");
    let ended = client.connected().await.expect_err("refused");
    assert!(matches!(&ended, State::Failed(Failure::Refused(refusal)) if refusal.reason == Reason::TakenOver));
    assert!(matches!(waiting.await, Err(PublishError::Closed(Some(_)))));
    assert!(deliveries.next().await.is_none());
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(broker.world().connections, 1);
}

#[tokio::test(start_paused = true)]
async fn a_crowd_spreads_and_a_retry_is_announced() {
    let broker = Broker::default();
    broker.world().refuse = Some(Reason::Overloaded);
    let (client, _deliveries) = Client::start(broker.config("a")).expect("started");
    let mut states = client.states();
    let waiting = states.wait_for(|state| matches!(state, State::Waiting { .. })).await.expect("alive").clone();
    let State::Waiting { refusal: Some(refusal), .. } = waiting else { panic!("{waiting}") };
    assert_eq!(refusal.reason, Reason::Overloaded);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let tries = broker.world().connections;
    assert!((60..300).contains(&tries), "{tries} tries in an hour");
    broker.world().refuse = None;
    client.connect_now().await;
    client.connected().await.expect("at once");
}
