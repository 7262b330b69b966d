//! Sessions: takeover, repeats, tokens, drain.

use bytes::Bytes;
use longwire_protocol::packet::{self, Publish};
use longwire_protocol::reason::Reason;

use crate::world::World;

fn message(conversation: u64, id: u64, text: &'static str) -> Publish {
    let content = Bytes::from_static(text.as_bytes());
    Publish { conversation, message_id: id, first_unanswered: 0, content, ..Publish::default() }
}

#[tokio::test]
async fn a_repeat_gets_the_same_answer_on_any_connection_and_other_content_a_refusal() {
    let mut world = World::new().await;
    let mut alice = world.user("alice").await;
    let direct = alice.open_direct("bob").await;
    let first = alice.publish_as(message(direct, 2, "hello")).await.expect("acked");
    assert_eq!(alice.publish_as(message(direct, 2, "hello")).await.expect("acked"), first);
    drop(alice);
    world.restart().await;
    let mut alice = world.wire(packet::Connect { incarnation: 1, ..world.connect("alice") }).await;
    assert_eq!(alice.publish_as(message(direct, 2, "hello")).await.expect("acked"), first);
    let other = alice.publish_as(message(direct, 2, "another")).await.expect_err("refused");
    assert_eq!(other.reason, Reason::IdConflict);
    let third = alice.publish_as(Publish { first_unanswered: 3, ..message(direct, 3, "next") }).await.expect("acked");
    assert_eq!(third.seq, 2);
    let stale = alice.publish_as(message(direct, 2, "hello")).await;
    assert_eq!(stale.expect_err("below the floor").reason, Reason::StaleId);
    let far = alice.publish_as(message(direct, 3 + 256, "far")).await.expect_err("refused");
    assert_eq!(far.reason, Reason::IdSpanExceeded);
    // An id below one that is stored there would be out of order.
    alice.publish_as(message(direct, 9, "nine")).await.expect("acked");
    assert_eq!(alice.publish_as(message(direct, 8, "eight")).await.expect_err("late").reason, Reason::StaleId);
}

#[tokio::test]
async fn an_older_outbox_than_the_broker_has_seen_is_told_so() {
    let world = World::new().await;
    let first = world.user("alice").await.incarnation;
    let second = world.user("alice").await.incarnation;
    assert!(second > first);
    let refusal = world.refused(packet::Connect { incarnation: first, ..world.connect("alice") }).await;
    assert_eq!(refusal.reason, Reason::IncarnationStale);
}

/// S8: from the takeover on, what the older session sent is dropped unanswered, and its late acks move nothing.
#[tokio::test]
async fn s8_a_newer_session_takes_over_and_the_older_is_told() {
    let world = World::new().await;
    let mut older = world.user("alice").await;
    let direct = older.open_direct("bob").await;
    let mut newer = world.wire(packet::Connect { incarnation: 1, ..world.connect("alice") }).await;
    older.session.publish(message(direct, 2, "too late"));
    older.flush().await;
    let ended = older.ended().await;
    assert_eq!(ended.reason, Reason::TakenOver);
    let ack = newer.publish_as(message(direct, 2, "mine")).await.expect("the id is free");
    assert_eq!(ack.seq, 1);
}

/// SPEC R4-11.
#[tokio::test]
async fn two_that_fight_for_a_device_are_cooled_down() {
    let world = World::new().await;
    let mut refused = None;
    let mut wires = Vec::new();
    for _ in 0..10 {
        let mut wire = world.dial(packet::Connect { incarnation: 0, ..world.connect("alice") }).await;
        if let Err(refusal) = wire.connected().await {
            refused = Some(refusal);
            break;
        }
        wires.push(wire);
    }
    let refusal = refused.expect("someone is told to wait");
    assert_eq!((wires.len(), refusal.reason), (5, Reason::RateLimited), "four took it over from the first");
    assert!(refusal.retry_after_ms > 0);
}

#[tokio::test]
async fn only_a_good_token_lets_in_and_a_wrong_one_does_not_touch_the_session() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let with = |token: String| packet::Connect { token, ..world.connect("alice") };
    let mut expired = world.claims("alice");
    expired.exp = 5;
    let mut bound = world.claims("alice");
    bound.device = Some("laptop".into());
    let other = World::new().await;
    for (token, reason) in [
        (String::new(), Reason::Unauthenticated),
        ("a.b.c".into(), Reason::Unauthenticated),
        (other.token(&other.claims("alice")), Reason::Unauthenticated),
        (world.token(&expired), Reason::TokenExpired),
        (world.token(&bound), Reason::Unauthenticated),
    ] {
        assert_eq!(world.refused(with(token)).await.reason, reason);
    }
    let direct = alice.open_direct("bob").await;
    assert_eq!(alice.say(direct, "still here").await.seq, 1);
}

#[tokio::test]
async fn a_revoked_token_is_cut_at_once_and_stays_out() {
    let world = World::new().await;
    let mut claims = world.claims("alice");
    claims.jti = "lost-phone".into();
    let connect = packet::Connect { token: world.token(&claims), ..world.connect("alice") };
    let mut alice = world.wire(connect.clone()).await;
    let mut bob = world.user("bob").await;
    world.revoke("token lost-phone");
    assert_eq!(alice.ended().await.reason, Reason::Revoked);
    assert_eq!(world.refused(connect).await.reason, Reason::Revoked);
    bob.open_direct("carol").await;
}

#[tokio::test]
async fn a_token_is_refreshed_in_band_for_the_same_user_alone() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let refresh = |token| packet::request::Op::Refresh(packet::RefreshRequest { token });
    let mut claims = world.claims("alice");
    claims.read = vec!["news".into()];
    claims.publish = vec!["news".into()];
    assert_eq!(alice.open_channel("news").await.expect_err("no grant").reason, Reason::UnknownConversation);
    alice.ask(refresh(world.token(&claims))).await.expect("refreshed");
    alice.open_channel("news").await.expect("granted now");
    let bobs = world.token(&world.claims("bob"));
    assert_eq!(alice.ask(refresh(bobs)).await.expect_err("not hers").reason, Reason::Forbidden);
}

#[tokio::test]
async fn a_drain_tells_everyone_when_to_come_back_and_loses_nothing() {
    let mut world = World::new().await;
    let mut alice = world.user("alice").await;
    let direct = alice.open_direct("bob").await;
    let acked = alice.say(direct, "kept").await;
    let ended = {
        let stop = world.stop();
        let (ended, ()) = tokio::join!(alice.ended(), stop);
        ended
    };
    assert_eq!(ended.reason, Reason::Draining);
    assert!(ended.retry_after_ms > 0);
    world.start().await;
    let mut alice = world.wire(packet::Connect { incarnation: 1, ..world.connect("alice") }).await;
    let page =
        packet::HistoryRequest { conversation: direct, from_seq: 0, limit: 10, backwards: false, compact: false };
    let page = alice.history(page).await.expect("history");
    assert_eq!(page.items.len(), 1);
    assert_eq!(page.head_seq, acked.seq);
}
