//! SPEC chapter 5: publishing.

use bytes::BytesMut;
use longwire_protocol::{
    BrokerEvent, BrokerLimits, ClientEvent, Frame, MessageId, Reason, Refusal, frame,
    packet::{self, Window, packet::Kind},
};

use crate::world::{Pair, connect, message, open_pair, open_pair_with, reason, refusals, stored};

/// Publishes and gives the ids that reach the broker's routing, and the refusals of the rest.
fn publish(pair: &mut Pair, publishes: &[packet::Publish]) -> (Vec<u64>, Vec<(u64, Reason)>) {
    for publish in publishes {
        pair.client.publish(publish.clone());
    }
    let passed = pair.carry_up().expect("no end");
    let passed = passed.iter().filter_map(|event| match event {
        BrokerEvent::Publish(publish) => Some(publish.message_id),
        _ => None,
    });
    (passed.collect(), refused(pair))
}

/// The refusals that reach the client.
fn refused(pair: &mut Pair) -> Vec<(u64, Reason)> {
    let events = pair.carry_down().expect("no end");
    let refused = events.iter().filter_map(|event| match event {
        ClientEvent::Refused(refusal) => Some((refusal.message_id.0, refusal.reason)),
        _ => None,
    });
    refused.collect()
}

fn refuse(pair: &mut Pair, id: u64, reason: Reason) {
    pair.broker.refuse(Refusal::publish(MessageId(id), reason));
    assert_eq!(refused(pair), [(id, reason)]);
}

/// R5.1-1: a publish without an id can have no answer.
#[test]
fn an_id_of_zero_is_malformed() {
    let mut pair = open_pair();
    assert_eq!(reason(pair.say_up(&Kind::Publish(message(0, 1, 1)))), Reason::Malformed);
}

/// R5.1-1: an answer to what was not published is no answer, nor is a second one.
#[test]
fn a_publish_is_answered_once() {
    let mut pair = open_pair();
    publish(&mut pair, &[message(1, 2, 3)]);
    pair.broker.acknowledge(stored(1));
    assert_eq!(pair.carry_down(), Ok(vec![ClientEvent::PublishAck(stored(1))]));
    assert_eq!(reason(pair.say_down(&Kind::PublishAck(stored(1)))), Reason::UnexpectedPacket);
}

/// R5.1-4: the publish is refused, the connection lives.
#[test]
fn a_content_above_the_limit_is_refused() {
    let limits = BrokerLimits { payload_bytes_max: 100, ..BrokerLimits::default() };
    let mut pair = open_pair_with(connect(), limits);
    let (passed, refused) = publish(&mut pair, &[message(1, 2, 101), message(2, 2, 100)]);
    assert_eq!((passed, refused), (vec![2], vec![(1, Reason::PayloadTooLarge)]));
    assert!(pair.broker.is_open());
}

/// R5.2-2, R5.2-4: what is settled stays settled.
#[test]
fn an_id_below_the_first_unanswered_is_stale() {
    let mut pair =
        open_pair_with(packet::Connect { incarnation: 1, first_unanswered: 10, ..connect() }, BrokerLimits::default());
    let (passed, refused) = publish(&mut pair, &[message(9, 1, 1), message(10, 1, 1)]);
    assert_eq!((passed, refused), (vec![10], vec![(9, Reason::StaleId)]));
    let moved = packet::Publish { first_unanswered: 13, ..message(13, 1, 1) };
    let fallen = packet::Publish { first_unanswered: 11, ..message(12, 1, 1) };
    let (passed, refused) = publish(&mut pair, &[moved, fallen]);
    assert_eq!((passed, refused), (vec![13], vec![(12, Reason::StaleId)]));
}

/// R5.2-4: what a publish told holds, also when the publish itself goes no further.
#[test]
fn what_a_refused_publish_told_is_passed_on_with_the_next() {
    let mut pair =
        open_pair_with(packet::Connect { incarnation: 1, first_unanswered: 10, ..connect() }, BrokerLimits::default());
    let moved = packet::Publish { first_unanswered: 13, ..message(13, 1, 1) };
    pair.client.publish(moved);
    pair.carry_up().expect("a publish");
    pair.broker.refuse(Refusal::publish(MessageId(13), Reason::RateLimited).retry_after(10));
    pair.client.publish(message(14, 2, 1));
    let heard = pair.carry_up().expect("a publish");
    let [BrokerEvent::Publish(passed)] = &heard[..] else { panic!("{heard:?}") };
    assert_eq!((passed.message_id, passed.first_unanswered), (14, 13));
}

/// R5.2-3: 256 ids, both ends included.
#[test]
fn the_span_of_ids_is_bounded() {
    let mut pair =
        open_pair_with(packet::Connect { incarnation: 1, first_unanswered: 10, ..connect() }, BrokerLimits::default());
    let (passed, refused) = publish(&mut pair, &[message(265, 1, 1), message(266, 1, 1)]);
    assert_eq!((passed, refused), (vec![265], vec![(266, Reason::IdSpanExceeded)]));
    let moved = packet::Publish { first_unanswered: 11, ..message(266, 1, 1) };
    assert_eq!(publish(&mut pair, &[moved]).0, [266]);
}

/// R5.3-1: in ids and in bytes.
#[test]
fn more_than_the_window_ends_the_connection() {
    let limits = BrokerLimits { publish: Window { items: 2, bytes: 1000 }, ..BrokerLimits::default() };
    let mut pair = open_pair_with(connect(), limits);
    for id in [1, 2] {
        pair.say_up(&Kind::Publish(message(id, 1, 1))).expect("within the window");
    }
    assert_eq!(reason(pair.say_up(&Kind::Publish(message(3, 1, 1)))), Reason::WindowExceeded);
    let mut pair = open_pair_with(connect(), limits);
    pair.say_up(&Kind::Publish(message(1, 1, 900))).expect("within the window");
    assert_eq!(reason(pair.say_up(&Kind::Publish(message(2, 1, 100)))), Reason::WindowExceeded);
}

/// R5.3-1: one may always be under way.
#[test]
fn one_publish_may_be_larger_than_the_window() {
    let limits = BrokerLimits { publish: Window { items: 2, bytes: 1000 }, ..BrokerLimits::default() };
    let mut pair = open_pair_with(connect(), limits);
    assert!(pair.client.publish_room().admits(5000));
    assert_eq!(publish(&mut pair, &[message(1, 1, 4000)]).0, [1]);
    assert!(!pair.client.publish_room().admits(1), "and then no other");
    pair.broker.acknowledge(stored(1));
    pair.carry_down().expect("the ack");
    assert!(pair.client.publish_room().admits(5000));
}

/// R5.3-2: an id is not under way twice.
#[test]
fn an_unanswered_id_is_not_sent_again() {
    let mut pair = open_pair();
    publish(&mut pair, &[message(1, 1, 1)]);
    assert_eq!(reason(pair.say_up(&Kind::Publish(message(1, 1, 1)))), Reason::UnexpectedPacket);
}

/// R5.3-3: room is freed when the answer leaves, so a client that does not read its answers runs into the window, and
/// one that does never can.
#[test]
fn an_answer_frees_its_room_as_it_leaves() {
    let limits = BrokerLimits { publish: Window { items: 1, bytes: 1000 }, ..BrokerLimits::default() };
    let mut pair = open_pair_with(connect(), limits);
    publish(&mut pair, &[message(1, 1, 1)]);
    pair.broker.acknowledge(stored(1));
    assert_eq!(reason(pair.say_up(&Kind::Publish(message(2, 1, 1)))), Reason::WindowExceeded, "it has not left");
    let mut pair = open_pair_with(connect(), limits);
    publish(&mut pair, &[message(1, 1, 1)]);
    pair.broker.acknowledge(stored(1));
    pair.broker_writes();
    pair.say_up(&Kind::Publish(message(2, 1, 1))).expect("it has left");
}

/// R5.4-1: what follows a refused id waits for it, in that conversation and in no other.
#[test]
fn pipelining_never_reorders() {
    let mut pair = open_pair();
    publish(&mut pair, &[message(1, 7, 1)]);
    refuse(&mut pair, 1, Reason::Overloaded);
    let (passed, refused) = publish(&mut pair, &[message(2, 7, 1), message(3, 8, 1), message(4, 7, 1)]);
    assert_eq!((passed, refused), (vec![3], vec![(2, Reason::After), (4, Reason::After)]));
    assert_eq!(publish(&mut pair, &[message(1, 7, 1)]).0, [1], "the lowest may be repeated");
    let (passed, refused) = publish(&mut pair, &[message(4, 7, 1), message(2, 7, 1)]);
    assert_eq!((passed, refused), (vec![2], vec![(4, Reason::After)]), "2 was open, and is no more");
    assert_eq!(publish(&mut pair, &[message(4, 7, 1)]).0, [4]);
}

/// R5.4-1: a refusal for good leaves nothing open.
#[test]
fn a_refusal_for_good_blocks_nothing() {
    let mut pair = open_pair();
    publish(&mut pair, &[message(1, 7, 1)]);
    refuse(&mut pair, 1, Reason::Forbidden);
    assert_eq!(publish(&mut pair, &[message(2, 7, 1)]).0, [2]);
    assert!(pair.broker.open_refusals().is_empty());
}

/// R5.4-1: repeating an id closes it, also where it names another conversation and is refused again: what a broker keeps
/// of refusals is bounded by the ids, not by what a client makes of them.
#[test]
fn an_id_is_open_once() {
    let mut pair = open_pair();
    publish(&mut pair, &[message(1, 7, 1), message(2, 8, 1)]);
    refuse(&mut pair, 1, Reason::Overloaded);
    refuse(&mut pair, 2, Reason::Overloaded);
    for conversation in [7, 8, 7, 8] {
        let (passed, refused) = publish(&mut pair, &[message(3, conversation, 1)]);
        assert_eq!((passed, refused), (vec![], vec![(3, Reason::After)]));
        assert_eq!(pair.broker.open_refusals().len(), 3);
    }
}

/// R5.4-1: an id below the first unanswered is settled, and blocks nothing.
#[test]
fn the_first_unanswered_closes_what_lies_below() {
    let mut pair = open_pair();
    publish(&mut pair, &[message(1, 7, 1)]);
    refuse(&mut pair, 1, Reason::Overloaded);
    let moved = packet::Publish { first_unanswered: 2, ..message(2, 7, 1) };
    assert_eq!(publish(&mut pair, &[moved]).0, [2]);
}

/// R5.4-3: openings and creations name no conversation, and keep their order too.
#[test]
fn creations_are_in_order_among_themselves() {
    let open = |id: u64| {
        let action = packet::publish::Action::OpenDirect(packet::OpenDirect { user: format!("user {id}") });
        packet::Publish { message_id: id, action: Some(action), ..Default::default() }
    };
    let mut pair = open_pair();
    publish(&mut pair, &[open(1)]);
    refuse(&mut pair, 1, Reason::StoreUnavailable);
    let (passed, refused) = publish(&mut pair, &[open(2), message(3, 7, 1)]);
    assert_eq!((passed, refused), (vec![3], vec![(2, Reason::After)]));
}

/// R5.4-4: giving up closes an id, and only one that has its answer.
#[test]
fn giving_up_closes_an_id() {
    let mut pair = open_pair();
    publish(&mut pair, &[message(1, 7, 1)]);
    refuse(&mut pair, 1, Reason::Overloaded);
    pair.client.give_up(MessageId(1));
    assert_eq!(pair.carry_up(), Ok(vec![BrokerEvent::GiveUp(MessageId(1))]));
    assert_eq!(publish(&mut pair, &[message(2, 7, 1)]).0, [2]);
    assert_eq!(reason(pair.say_up(&Kind::GiveUp(packet::GiveUp { message_id: 2 }))), Reason::UnexpectedPacket);
}

/// R5.4-4: giving up what was never refused closes nothing: nobody is bothered, however many there are.
#[test]
fn giving_up_what_is_not_open_is_no_work_for_anyone() {
    let mut pair = open_pair();
    for id in 1..1_000 {
        assert_eq!(pair.say_up(&Kind::GiveUp(packet::GiveUp { message_id: id })), Ok(vec![]));
    }
}

/// What a steady stream of publishes costs: the ring of ids does not grow, the refusals take nothing.
#[test]
fn a_full_window_goes_on_for_ever() {
    let mut pair = open_pair();
    for round in 0..200 {
        let ids: Vec<_> = (1..=64).map(|index| round * 64 + index).collect();
        let publishes: Vec<_> =
            ids.iter().map(|&id| packet::Publish { first_unanswered: ids[0], ..message(id, 1, 10) }).collect();
        assert_eq!(publish(&mut pair, &publishes).0, ids);
        assert_eq!(pair.client.unanswered(), 64);
        for &id in &ids {
            pair.broker.acknowledge(stored(id));
        }
        assert_eq!(pair.carry_down().expect("acks").len(), 64);
    }
    assert!(pair.broker.is_idle());
}

/// R5.3-1: both ends count the same bytes.
#[test]
fn both_ends_count_whole_frames() {
    let limits = BrokerLimits { publish: Window { items: 64, bytes: 1000 }, ..BrokerLimits::default() };
    let mut pair = open_pair_with(connect(), limits);
    let mut id = 0;
    loop {
        let next = message(id + 1, 1, 83);
        let bytes = frame::encoded_len(&Kind::Publish(next.clone()));
        if !pair.client.publish_room().admits(bytes) {
            break;
        }
        id += 1;
        assert_eq!(publish(&mut pair, std::slice::from_ref(&next)).0, [id]);
    }
    let mut wire = BytesMut::new();
    frame::encode(&Kind::Publish(message(id + 1, 1, 83)), &mut wire);
    assert_eq!(reason(pair.arrive_up(&mut wire)), Reason::WindowExceeded);
    let told = pair.broker_writes();
    assert!(matches!(told[..], [Frame::Packet(Kind::Refused(_))]) && refusals(&told)[0].ends_connection());
}
