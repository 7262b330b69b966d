//! SPEC chapter 9: the heartbeat.

use longwire_protocol::{
    BrokerLimits, ClientSession, Frame, Millis, Reason, limits,
    packet::{self, packet::Kind},
};

use crate::world::{connect, message, open_pair, open_pair_with, pair_with, reason, stored};

/// R9-1: one for one, and the client never answers.
#[test]
fn a_heartbeat_is_answered_once() {
    let mut pair = open_pair();
    pair.broker.handle_frame(pair.now, Frame::Heartbeat, 1).expect("life");
    assert_eq!(pair.broker_writes(), [Frame::Heartbeat]);
    assert_eq!(pair.broker_writes(), []);
    pair.client.handle_frame(pair.now, Frame::Heartbeat, 1).expect("life");
    assert_eq!(pair.client_writes(), []);
}

/// R9-1: whatever leaves just then is an answer.
#[test]
fn what_leaves_just_then_is_the_answer() {
    let mut pair = open_pair();
    pair.client.publish(message(1, 2, 3));
    pair.carry_up().expect("a publish");
    pair.broker.acknowledge(stored(1));
    pair.broker.handle_frame(pair.now, Frame::Heartbeat, 1).expect("life");
    assert_eq!(pair.broker_writes(), [Frame::Packet(Kind::PublishAck(stored(1)))]);
}

/// R9-2: the wish within the range, on both ends alike.
#[test]
fn the_interval_is_the_wish_within_the_range() {
    for (wish, interval) in [(0, 60_000), (1, 15_000), (90_000, 90_000), (u32::MAX, 600_000)] {
        let pair = open_pair_with(packet::Connect { heartbeat_ms: wish, ..connect() }, BrokerLimits::default());
        assert_eq!(pair.client.poll_deadline(), Some(pair.now.after(interval)), "{wish}");
        assert_eq!(pair.broker.poll_deadline(), Some(pair.now.after(interval * 3 / 2)), "{wish}");
    }
}

/// R9-2: the first one falls where the caller's random number says, and not later than an interval.
#[test]
fn the_first_heartbeat_has_a_phase() {
    for (phase, first) in [(0, 0), (20_000, 20_000), (70_000, 60_000)] {
        let mut pair = pair_with(connect(), BrokerLimits::default());
        pair.client = ClientSession::new(pair.now, connect()).with_heartbeat_phase(Millis(phase));
        pair.carry_up().expect("connect");
        pair.broker.accept(pair.now, packet::Connected::default());
        pair.carry_down().expect("connected");
        let at = pair.client.poll_deadline().expect("a deadline");
        assert_eq!(at, pair.now.after(first), "{phase}");
        pair.wait(first.max(1));
        pair.client.handle_deadline(pair.now).expect("nothing ends");
        assert_eq!(pair.client_writes(), [Frame::Heartbeat], "{phase}");
        pair.client.handle_frame(pair.now, Frame::Heartbeat, 1).expect("life");
        assert_eq!(pair.client.poll_deadline(), Some(pair.now.after(60_000)), "then the interval");
    }
}

/// R9-2: a client that talks and is answered has no need of heartbeats; one that only talks has.
#[test]
fn traffic_in_both_directions_takes_the_place_of_heartbeats() {
    let mut pair = open_pair();
    for id in 1..=10 {
        pair.wait(50_000);
        pair.client.handle_deadline(pair.now).expect("nothing ends");
        pair.client.publish(message(id, 1, 1));
        let told = pair.client_writes();
        assert!(matches!(told[..], [Frame::Packet(Kind::Publish(_))]), "{told:?}");
        pair.say_down(&Kind::PublishAck(stored(id))).expect("an ack");
    }
    pair.wait(50_000);
    pair.client.publish(message(11, 1, 1));
    pair.client_writes();
    pair.wait(10_000);
    pair.client.handle_deadline(pair.now).expect("nothing ends");
    assert_eq!(pair.client_writes(), [Frame::Heartbeat], "nothing was heard for an interval");
}

/// R9-3: a long frame on a slow link is life while it comes.
#[test]
fn any_byte_is_a_sign_of_life() {
    let mut pair = open_pair();
    pair.wait(89_999);
    pair.broker.handle_bytes(pair.now);
    pair.wait(89_999);
    pair.broker.handle_deadline(pair.now).expect("a byte came");

    pair.client.handle_deadline(pair.now).expect("nothing ends");
    assert_eq!(pair.client_writes(), [Frame::Heartbeat]);
    pair.wait(9_999);
    pair.client.handle_bytes(pair.now);
    pair.wait(9_999);
    pair.client.handle_deadline(pair.now).expect("a byte came");
    assert!(pair.client.is_open());
}

/// R9-4: ten seconds after its heartbeat the client gives up.
#[test]
fn a_client_without_an_answer_gives_up() {
    let mut pair = open_pair();
    pair.wait(60_000);
    pair.client.handle_deadline(pair.now).expect("nothing ends");
    assert_eq!(pair.client_writes(), [Frame::Heartbeat]);
    assert_eq!(pair.client.poll_deadline(), Some(pair.now.after(limits::HEARTBEAT_ANSWER_MS)));
    pair.wait(9_999);
    pair.client.handle_deadline(pair.now).expect("not yet");
    pair.wait(1);
    assert_eq!(reason(pair.client.handle_deadline(pair.now)), Reason::HeartbeatTimeout);
}

/// R9-4: one and a half intervals of silence, and the broker ends it.
#[test]
fn a_silent_client_is_ended() {
    let mut pair = open_pair();
    pair.wait(89_999);
    pair.broker.handle_deadline(pair.now).expect("not yet");
    pair.wait(1);
    assert_eq!(reason(pair.broker.handle_deadline(pair.now)), Reason::HeartbeatTimeout);
    assert!(pair.broker.is_closed());
}

/// A deadline that `poll_deadline` names is never one that `handle_deadline` ignores for ever: a loop that sleeps until
/// then does not spin.
#[test]
fn a_deadline_that_was_handled_moves_on() {
    let mut pair = open_pair();
    for _ in 0..1_000 {
        let at = pair.client.poll_deadline().expect("open");
        pair.now = pair.now.max(at);
        pair.client.handle_deadline(pair.now).expect("a broker that answers");
        let _ = pair.carry_up().expect("life");
        let _ = pair.carry_down().expect("life");
        assert!(pair.client.poll_deadline().expect("open") > pair.now);
    }
}
