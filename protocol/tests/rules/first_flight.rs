//! SPEC chapter 4: the first flight.

use longwire_protocol::{
    BrokerEvent, BrokerLimits, ClientEvent, Frame, Millis, Reason, limits,
    packet::{self, Window, packet::Kind},
};

use crate::world::{connect, message, open_pair, open_pair_with, pair_with, reason, refusals};

/// R4-1: nothing but `Connect` comes first, and it comes once.
#[test]
fn anything_but_one_connect_is_unexpected() {
    let mut pair = pair_with(connect(), BrokerLimits::default());
    assert_eq!(reason(pair.say_up(&Kind::Publish(message(1, 2, 3)))), Reason::UnexpectedPacket);
    let mut pair = pair_with(connect(), BrokerLimits::default());
    pair.carry_up().expect("connect");
    assert_eq!(reason(pair.say_up(&Kind::Publish(message(1, 2, 3)))), Reason::UnexpectedPacket, "not let in yet");
    let mut pair = open_pair();
    assert_eq!(reason(pair.say_up(&Kind::Connect(connect()))), Reason::UnexpectedPacket);
    let told = pair.broker_writes();
    assert_eq!(refusals(&told)[0].reason, Reason::UnexpectedPacket, "the client is told");
}

/// R4-1: a broker's packet is not for a broker, and the other way round.
#[test]
fn packets_have_a_direction() {
    let mut pair = open_pair();
    assert_eq!(reason(pair.say_up(&Kind::Goaway(packet::Goaway::default()))), Reason::UnexpectedPacket);
    let mut pair = open_pair();
    assert_eq!(reason(pair.say_down(&Kind::Publish(message(1, 2, 3)))), Reason::UnexpectedPacket);
}

/// R4-2, R5.5-9: what is wrong with a `Connect` is told apart.
#[test]
fn a_connect_is_checked() {
    let wrong = |connect: packet::Connect| {
        reason(pair_with(connect.clone(), BrokerLimits::default()).say_up(&Kind::Connect(connect)))
    };
    assert_eq!(wrong(packet::Connect { version: 2, ..connect() }), Reason::VersionUnsupported);
    assert_eq!(wrong(packet::Connect { version: 0, ..connect() }), Reason::VersionUnsupported);
    let arguments = [
        packet::Connect { device: String::new(), ..connect() },
        packet::Connect { device: "d".repeat(65), ..connect() },
        packet::Connect { device: "pho\0ne".into(), ..connect() },
        packet::Connect { device: "\u{202e}enohp".into(), ..connect() },
        packet::Connect { device: "pho\u{200b}ne".into(), ..connect() },
        packet::Connect { cursor: vec![0; 1025].into(), ..connect() },
        packet::Connect { agent: "a".repeat(65), ..connect() },
        packet::Connect { features: vec!["f".repeat(65)], ..connect() },
        packet::Connect { start: 9, ..connect() },
        packet::Connect { catch_up: 9, ..connect() },
    ];
    for argument in arguments {
        assert_eq!(wrong(argument.clone()), Reason::InvalidArgument, "{argument:?}");
    }
}

/// R4-4: wishes are brought within the limits, and the answer names what holds.
#[test]
fn connected_names_what_holds() {
    let wishes = packet::Connect {
        express: Some(Window { items: 1, bytes: 1 }),
        bulk: Some(Window { items: u32::MAX, bytes: 0 }),
        ..connect()
    };
    let mut pair = pair_with(wishes, BrokerLimits::default());
    pair.carry_up().expect("connect");
    pair.broker.accept(pair.now, packet::Connected::default());
    let events = pair.carry_down().expect("connected");
    let [ClientEvent::Connected(connected)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(connected.express, Some(Window { items: 1, bytes: limits::WINDOW_BYTES_MIN }));
    assert_eq!(connected.bulk, Some(Window { items: 4096, bytes: limits::BULK_WINDOW.bytes }));
    assert_eq!(connected.publish, Some(limits::PUBLISH_WINDOW));
    assert_eq!(connected.heartbeat_ms_min, 15_000);
    assert_eq!(connected.heartbeat_ms_max, 600_000);
    assert_eq!(connected.payload_bytes_max, 192 * 1024);
    assert_eq!(connected.frame_bytes_max, 196 * 1024);
    assert_eq!(pair.client.frame_bytes_max(), 196 * 1024);
}

/// R4-9: ten seconds for both, whatever else is said meanwhile.
#[test]
fn a_handshake_has_ten_seconds() {
    let mut pair = pair_with(connect(), BrokerLimits::default());
    pair.wait(9_000);
    pair.broker.handle_bytes(pair.now);
    pair.broker.handle_frame(pair.now, Frame::Heartbeat, 1).expect("life");
    assert_eq!(pair.broker.poll_deadline(), Some(Millis(1_010_000)));
    pair.wait(999);
    assert_eq!(pair.deadlines(), (Ok(()), Ok(())));
    pair.wait(1);
    let (broker, client) = pair.deadlines();
    assert_eq!((reason(broker), reason(client)), (Reason::HandshakeTimeout, Reason::HandshakeTimeout));
    assert!(pair.broker.is_closed() && pair.client.is_closed());
}

/// R4-9: also when the broker is the one that does not answer.
#[test]
fn a_client_that_asked_is_not_left_waiting() {
    let mut pair = pair_with(connect(), BrokerLimits::default());
    assert!(matches!(pair.carry_up().expect("connect")[..], [BrokerEvent::Connect(_)]));
    pair.wait(10_000);
    assert_eq!(reason(pair.broker.handle_deadline(pair.now)), Reason::HandshakeTimeout);
    assert_eq!(refusals(&pair.broker_writes())[0].reason, Reason::HandshakeTimeout);
    assert_eq!(pair.broker.poll_deadline(), None);
}

/// An idle session is small: what fifteen thousand of them take is what a broker can hold.
#[test]
fn an_idle_session_is_small() {
    assert!(size_of::<longwire_protocol::BrokerSession<[u64; 3]>>() <= 400);
    let pair = open_pair_with(connect(), BrokerLimits::default());
    assert!(pair.broker.is_idle());
}
