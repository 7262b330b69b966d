//! SPEC chapter 10: evolution, refusals, endings.

use bytes::BytesMut;
use longwire_protocol::{
    BrokerEvent, ClientEvent, Frame, Lane, MessageId, Reason, Refusal, Verdict,
    packet::{self, packet::Kind},
};

use crate::world::{framed, item, message, open_pair, reason, stored};

/// R10-1: a field to come, at every level, does no harm.
#[test]
fn unknown_fields_are_skipped() {
    // Packet { publish { message_id: 1, 200: 5 }, 200: "x" }
    let mut wire = BytesMut::from(&[0x0b, 0x0a, 0x05, 0x10, 0x01, 0xc0, 0x0c, 0x05, 0xc2, 0x0c, 0x01, b'x'][..]);
    let mut pair = open_pair();
    // What the session was told of answers stands in each that it passes on.
    let publish = packet::Publish { message_id: 1, first_unanswered: 1, ..Default::default() };
    assert_eq!(pair.arrive_up(&mut wire), Ok(vec![BrokerEvent::Publish(publish)]));
}

/// R10-2: a kind to come is life and nothing else.
#[test]
fn an_unknown_packet_is_a_sign_of_life() {
    for unknown in [&[0x03, 0x62, 0x01, 0x00][..], &[0x02, 0x60, 0x07], &[0x04, 0xc2, 0x0c, 0x01, 0x00]] {
        let mut pair = open_pair();
        pair.wait(80_000);
        assert_eq!(pair.arrive_up(&mut BytesMut::from(unknown)), Ok(vec![]), "{unknown:02x?}");
        assert_eq!(pair.broker.poll_deadline(), Some(pair.now.after(90_000)));
        assert_eq!(pair.arrive_down(&mut BytesMut::from(unknown)), Ok(vec![]));
        assert_eq!(pair.broker_writes(), []);
        assert!(pair.broker.is_open() && pair.client.is_open());
    }
}

/// R10-3: about a publish, about a request, or the end; whatever the code.
#[test]
fn a_refusal_about_nothing_ends_the_connection() {
    let mut pair = open_pair();
    pair.client.publish(message(1, 2, 3));
    pair.carry_up().expect("a publish");
    pair.broker.refuse(Refusal::publish(MessageId(1), Reason::Internal).because("a disk").retry_after(50));
    let refusal = Refusal::publish(MessageId(1), Reason::Internal).because("a disk").retry_after(50);
    assert_eq!(pair.carry_down(), Ok(vec![ClientEvent::Refused(refusal)]));
    assert!(pair.client.is_open());
    pair.broker.close(Refusal::connection(Reason::Overloaded).retry_after(2_000));
    let refusal = Refusal::connection(Reason::Overloaded).retry_after(2_000);
    assert_eq!(pair.carry_down(), Ok(vec![ClientEvent::Closed(refusal)]));
    assert!(pair.client.is_closed());
}

/// R10-3: an answer about what was not asked is out of place.
#[test]
fn a_refusal_of_an_unknown_id_is_unexpected() {
    let mut pair = open_pair();
    let refused = packet::Refused { message_id: 9, code: 13, ..Default::default() };
    assert_eq!(reason(pair.say_down(&Kind::Refused(refused))), Reason::UnexpectedPacket);
}

/// R10-4: a code to come is treated as *internal*, which is worth a retry.
#[test]
fn an_unknown_code_is_treated_as_internal() {
    let mut pair = open_pair();
    let refused = packet::Refused { code: 4_000, detail: "new".into(), ..Default::default() };
    let events = pair.say_down(&Kind::Refused(refused)).expect("an end");
    assert_eq!(events, [ClientEvent::Closed(Refusal::connection(Reason::Internal).because("new"))]);
    assert_eq!(Reason::Internal.verdict(), Verdict::Retry);
}

/// Numbers and names are one to one, and never change.
#[test]
fn reasons_are_numbered_without_holes() {
    for (index, reason) in Reason::ALL.iter().enumerate() {
        assert_eq!(reason.number() as usize, index + 1);
        assert_eq!(Reason::from_number(reason.number()), Some(*reason));
    }
    assert_eq!(Reason::from_number(0), None);
    let mut names: Vec<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Reason::ALL.len());
}

/// R10-6: behind the last refusal comes nothing, and before it the answers that waited.
#[test]
fn nothing_follows_the_last_refusal() {
    let mut pair = open_pair();
    pair.client.publish(message(1, 2, 3));
    pair.carry_up().expect("a publish");
    pair.broker.deliver(pair.now, Lane::Bulk, 1, item(1, 1));
    pair.broker.acknowledge(stored(1));
    pair.broker.close(Refusal::connection(Reason::TakenOver));
    let told = pair.broker_writes();
    assert!(
        matches!(&told[..], [Frame::Packet(Kind::PublishAck(_)), Frame::Packet(Kind::Refused(refused))] if refused.code == 12)
    );
    // Whatever the broker's other rooms still have for it is dropped.
    pair.broker.deliver(pair.now, Lane::Bulk, 2, item(2, 1));
    pair.broker.acknowledge(stored(2));
    pair.broker.refuse(Refusal::connection(Reason::Internal));
    pair.broker.goaway(1);
    assert_eq!(pair.say_up(&Kind::Publish(message(2, 2, 3))), Ok(vec![]));
    assert_eq!(pair.broker_writes(), []);
    assert!(!pair.broker.wants_transmit());
}

/// R10-7: a goodbye is heard, and what is queued still leaves.
#[test]
fn a_goodbye_lets_the_answers_leave() {
    let mut pair = open_pair();
    pair.client.publish(message(1, 2, 3));
    pair.carry_up().expect("a publish");
    pair.broker.acknowledge(stored(1));
    pair.client.goodbye();
    assert!(pair.client.is_closed());
    assert_eq!(pair.carry_up(), Ok(vec![BrokerEvent::Goodbye { keep_will: false }]));
    assert_eq!(pair.broker_writes(), [Frame::Packet(Kind::PublishAck(stored(1)))]);
}

/// R6.3-7: what is stored is acked before the goodbye, however little it is.
#[test]
fn a_goodbye_acks_what_is_stored() {
    let mut pair = open_pair();
    pair.broker.deliver(pair.now, Lane::Bulk, 1, item(1, 1));
    pair.carry_down().expect("an item");
    pair.client.stored(pair.now, Lane::Bulk, 1);
    pair.client.goodbye();
    let heard = pair.carry_up().expect("two packets");
    assert!(
        matches!(
            heard[..],
            [BrokerEvent::Acked { express: None, bulk: Some(_) }, BrokerEvent::Goodbye { keep_will: false }]
        ),
        "{heard:?}"
    );
}

/// R10-8: the session goes on after a `Goaway`.
#[test]
fn a_goaway_is_a_wish() {
    let mut pair = open_pair();
    pair.broker.goaway(3_000);
    assert_eq!(pair.carry_down(), Ok(vec![ClientEvent::Goaway { retry_after_ms: 3_000 }]));
    pair.client.publish(message(1, 2, 3));
    assert_eq!(pair.carry_up().expect("a publish").len(), 1);
}

/// R10-6: the client is told what was wrong with its bytes.
#[test]
fn garbage_is_answered_with_a_reason() {
    let mut pair = open_pair();
    let refusal = pair.arrive_up(&mut BytesMut::from(&b"\x10GET / HTTP/1.1\r\n\r\n"[..])).expect_err("no packet");
    pair.broker.close(refusal);
    let told = crate::world::refusals(&pair.broker_writes());
    assert_eq!(told[0].reason, Reason::Malformed);
    assert!(!told[0].detail.is_empty());
    let _ = framed(&Kind::Goodbye(packet::Goodbye::default()));
}
