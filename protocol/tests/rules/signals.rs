//! SPEC chapter 16: what of signals concerns the wire.

use bytes::BytesMut;
use longwire_protocol::{
    BrokerEvent, ClientEvent, Frame, Lane, limits,
    packet::{self, SignalKind, packet::Kind},
};

use crate::world::{PLENTY, Pair, item, open_pair, read_all};

fn signal(kind: SignalKind, len: usize) -> packet::Signal {
    packet::Signal { conversation: 9, kind: kind as i32, content: vec![7; len].into(), ..Default::default() }
}

/// What the broker heard of signals.
fn heard(pair: &mut Pair) -> Vec<packet::Signal> {
    let events = pair.carry_up().expect("the session goes on").into_iter();
    events.filter_map(|event| if let BrokerEvent::Signal(signal) = event { Some(signal) } else { None }).collect()
}

/// What the broker offered left, and so did what waited before.
fn offer(pair: &mut Pair, max: usize) -> (bool, Vec<Frame>) {
    let mut out = BytesMut::new();
    let left = pair.broker.transmit_signal(&signal(SignalKind::App, 3), &mut out, max);
    (left, read_all(out))
}

/// R16-1: both ways, without an answer; nothing is under way because of it.
#[test]
fn a_signal_has_no_answer() {
    let mut pair = open_pair();
    for kind in [SignalKind::Typing, SignalKind::Recording, SignalKind::Stopped, SignalKind::App] {
        let signal = signal(kind, limits::SIGNAL_BYTES_MAX);
        pair.client.signal(signal.clone());
        assert_eq!(heard(&mut pair), [signal]);
    }
    assert!(pair.broker.is_idle());
    assert_eq!(pair.carry_down(), Ok(vec![]));
    let (left, frames) = offer(&mut pair, PLENTY);
    let [Frame::Packet(kind)] = &frames[..] else { panic!("{frames:?}") };
    assert!(left);
    assert_eq!(pair.say_down(kind), Ok(vec![ClientEvent::Signal(signal(SignalKind::App, 3))]));
    assert_eq!(pair.client_writes(), []);
}

/// R16-1: what no client sends is dropped, and nobody is told.
#[test]
fn a_signal_that_is_none_is_dropped() {
    let mut pair = open_pair();
    let (good, presence) = (signal(SignalKind::App, 1), packet::Presence { user: 7, ..Default::default() });
    for bad in [
        signal(SignalKind::App, limits::SIGNAL_BYTES_MAX + 1),
        packet::Signal { conversation: 0, ..good.clone() },
        packet::Signal { kind: 99, ..good.clone() },
        packet::Signal { presence: Some(presence), ..signal(SignalKind::Presence, 0) },
    ] {
        pair.client.signal(bad);
    }
    pair.client.signal(good.clone());
    assert_eq!(heard(&mut pair), [good]);
    assert_eq!(pair.broker_writes(), []);
}

/// R16-2: so many at once, and so many a second from then on.
#[test]
fn more_signals_than_a_session_has_are_dropped() {
    let mut pair = open_pair();
    let send = |pair: &mut Pair, count: u64| {
        (0..count).for_each(|_| pair.client.signal(signal(SignalKind::Typing, 0)));
        heard(pair).len() as u64
    };
    assert_eq!(send(&mut pair, 80), limits::SIGNALS_AHEAD);
    pair.wait(limits::SIGNAL_EVERY_MS - 1);
    assert_eq!(send(&mut pair, 3), 0);
    pair.wait(1);
    assert_eq!(send(&mut pair, 3), 1);
    pair.wait(1_000);
    assert_eq!(send(&mut pair, 80), 5);
    pair.wait(3_600_000);
    assert_eq!(send(&mut pair, 80), limits::SIGNALS_AHEAD, "what is not used is not saved up");
}

/// R16-3: whatever waits goes first, and a buffer that is full takes none; a signal answers a heartbeat.
#[test]
fn a_signal_leaves_when_nothing_else_does() {
    let mut pair = open_pair();
    let nothing = (false, vec![]);
    pair.broker.deliver(pair.now, Lane::Bulk, 1, item(1, 1));
    assert_eq!(offer(&mut pair, PLENTY), nothing);
    pair.broker_writes();
    pair.broker.cursor(bytes::Bytes::from_static(b"c"));
    assert_eq!(offer(&mut pair, PLENTY), nothing);
    pair.broker_writes();
    pair.broker.goaway(1);
    assert_eq!(offer(&mut pair, PLENTY), nothing);
    pair.broker_writes();
    assert_eq!(offer(&mut pair, 0), nothing);
    pair.arrive_up(&mut BytesMut::from(&[0][..])).expect("a heartbeat");
    assert!(offer(&mut pair, PLENTY).0);
    assert_eq!(pair.broker_writes(), [], "it was the answer");
    pair.client.goodbye();
    pair.carry_up().expect("a goodbye");
    assert_eq!(offer(&mut pair, PLENTY), nothing);
}

/// R16-17: the broker hears whether the will stays.
#[test]
fn a_goodbye_says_what_becomes_of_the_will() {
    for keep_will in [false, true] {
        let mut pair = open_pair();
        if keep_will {
            pair.client.goodbye_keeping_will()
        } else {
            pair.client.goodbye()
        }
        assert_eq!(pair.carry_up(), Ok(vec![BrokerEvent::Goodbye { keep_will }]));
        let said = Kind::Goodbye(packet::Goodbye { keep_will });
        assert_eq!(longwire_protocol::frame::encoded_len(&said), if keep_will { 6 } else { 4 });
    }
}
