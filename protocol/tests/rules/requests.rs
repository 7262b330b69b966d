//! SPEC chapter 8: requests.

use bytes::Bytes;
use longwire_protocol::{
    BrokerEvent, ClientEvent, Frame, Reason, Refusal,
    packet::{self, packet::Kind, request::Op},
};
use prost::Message as _;

use crate::world::{Pair, framed, item, open_pair, reason};

fn history(id: u64) -> packet::Request {
    packet::Request { id, op: Some(Op::History(packet::HistoryRequest { conversation: 1, ..Default::default() })) }
}

fn ask(pair: &mut Pair, id: u64) {
    pair.client.request(history(id));
    assert_eq!(pair.carry_up(), Ok(vec![BrokerEvent::Request(history(id))]));
}

/// R8-1: the id comes back, with an answer or a refusal.
#[test]
fn a_request_is_answered_by_its_id() {
    let mut pair = open_pair();
    ask(&mut pair, 5);
    ask(&mut pair, 6);
    assert!(!pair.broker.is_idle(), "two are owed");
    let response = packet::Response { id: 6, result: None };
    pair.broker.respond(response.clone());
    pair.broker.refuse(Refusal::request(5, Reason::UnknownConversation));
    let refused = Refusal::request(5, Reason::UnknownConversation);
    assert_eq!(pair.carry_down(), Ok(vec![ClientEvent::Response(response), ClientEvent::Refused(refused)]));
    assert!(pair.broker.is_idle());
    assert_eq!(reason(pair.say_up(&Kind::Request(history(0)))), Reason::Malformed);
}

/// R8-2: eight at a time; an answer that has left makes room.
#[test]
fn too_many_requests_end_the_connection() {
    let mut pair = open_pair();
    for id in 1..=8 {
        ask(&mut pair, id);
    }
    pair.broker.respond(packet::Response { id: 3, result: None });
    pair.carry_down().expect("the answer");
    ask(&mut pair, 9);
    assert_eq!(reason(pair.say_up(&Kind::Request(history(10)))), Reason::WindowExceeded);
}

/// R8-2: an operation to come is refused, and the session goes on.
#[test]
fn an_unknown_operation_is_unsupported() {
    let mut pair = open_pair();
    pair.client.request(packet::Request { id: 5, op: None });
    assert_eq!(pair.carry_up(), Ok(vec![]));
    let refused = Refusal::request(5, Reason::Unsupported);
    assert_eq!(pair.carry_down(), Ok(vec![ClientEvent::Refused(refused)]));
    ask(&mut pair, 6);
}

/// R8-9: what is asked for is small.
#[test]
fn a_long_request_is_refused() {
    let refresh = |len| Some(Op::Refresh(packet::RefreshRequest { token: "t".repeat(len) }));
    let mut pair = open_pair();
    pair.client.request(packet::Request { id: 5, op: refresh(3 * 1024) });
    assert_eq!(pair.carry_up().expect("a request").len(), 1);
    pair.client.request(packet::Request { id: 6, op: refresh(4 * 1024) });
    assert_eq!(pair.carry_up(), Ok(vec![]));
    assert!(pair.broker.has_answers_waiting());
    let refused = Refusal::request(6, Reason::InvalidArgument);
    assert_eq!(pair.carry_down(), Ok(vec![ClientEvent::Refused(refused)]));
    assert!(!pair.broker.has_answers_waiting());
}

/// R8-1: a page made of encoded items is what protobuf would write.
#[test]
fn a_page_of_encoded_items_is_plain_protobuf() {
    for (count, next, head) in [(0, 0, 0), (1, 0, 1), (3, 17, 300), (150, 1 << 40, 1 << 41)] {
        let mut pair = open_pair();
        ask(&mut pair, 77);
        let items: Vec<Bytes> = (1..=count).map(|seq| item(seq, seq as usize)).collect();
        pair.broker.respond_history(77, &items, next, head);
        let page = packet::HistoryPage {
            items: items.iter().map(|item| packet::Item::decode(item.clone()).expect("an item")).collect(),
            next_seq: next,
            head_seq: head,
        };
        let response = packet::Response { id: 77, result: Some(packet::response::Result::History(page)) };
        let kind = Kind::Response(response);
        let mut wire = bytes::BytesMut::new();
        pair.broker.poll_transmit(pair.now, &mut wire, usize::MAX);
        assert_eq!(wire, framed(&kind));
        assert_eq!(crate::world::read_all(wire), [Frame::Packet(kind)]);
    }
}
