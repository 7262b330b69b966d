//! SPEC chapter 6: delivery.

use bytes::{Bytes, BytesMut};
use longwire_protocol::{
    BrokerEvent, BrokerLimits, ClientEvent, Frame, Lane, Reason, Room,
    packet::{self, Window, packet::Kind},
};

use crate::world::{PLENTY, Pair, connect, item, message, open_pair, open_pair_with, read_all, reason, stored};

/// The runs of numbers that reach the client, by lane.
fn runs(events: &[ClientEvent]) -> Vec<(Lane, u64, usize)> {
    let runs = events.iter().filter_map(|event| match event {
        ClientEvent::Items { lane, first_n, items } => Some((*lane, *first_n, items.len())),
        _ => None,
    });
    runs.collect()
}

fn deliver(pair: &mut Pair, lane: Lane, places: std::ops::RangeInclusive<u64>) {
    for place in places {
        pair.broker.deliver(pair.now, lane, place, item(place, 10));
    }
}

fn ack(express: u64, bulk: u64, answer: u64) -> Kind {
    Kind::Ack(packet::Ack { express, bulk, answer })
}

fn windows(items: u32, bytes: u32) -> packet::Connect {
    let window = Some(Window { items, bytes });
    packet::Connect { express: window, bulk: window, ..connect() }
}

/// R6.1-1: numbers count in each lane, and what leaves together is one packet.
#[test]
fn numbers_count_in_each_lane() {
    let mut pair = open_pair();
    deliver(&mut pair, Lane::Bulk, 100..=102);
    deliver(&mut pair, Lane::Express, 200..=200);
    let events = pair.carry_down().expect("items");
    assert_eq!(runs(&events), [(Lane::Express, 1, 1), (Lane::Bulk, 1, 3)]);
    deliver(&mut pair, Lane::Bulk, 103..=103);
    let events = pair.carry_down().expect("items");
    assert_eq!(runs(&events), [(Lane::Bulk, 4, 1)]);
}

/// R6.1-1: what the broker writes by hand is what protobuf would write.
#[test]
fn a_delivery_is_plain_protobuf() {
    for (lane, count) in [(Lane::Express, 1), (Lane::Bulk, 1), (Lane::Bulk, 50)] {
        let mut pair = open_pair();
        deliver(&mut pair, lane, 1..=count);
        let mut wire = BytesMut::new();
        pair.broker.poll_transmit(pair.now, &mut wire, usize::MAX);
        let frames = read_all(wire.clone());
        let [Frame::Packet(kind)] = &frames[..] else { panic!("{frames:?}") };
        assert_eq!(crate::world::framed(kind), wire);
    }
}

/// R6.1-4: an item of a kind to come is counted, stored and acked.
#[test]
fn an_unknown_item_counts() {
    let mut pair = open_pair();
    let unknown = Bytes::from_static(&[0xfa, 0x01, 0x02, 0x08, 0x01]); // field 31, a message
    pair.broker.deliver(pair.now, Lane::Express, 5, unknown);
    let events = pair.carry_down().expect("an item");
    let [ClientEvent::Items { lane: Lane::Express, first_n: 1, items }] = &events[..] else { panic!("{events:?}") };
    assert_eq!(items, &[packet::Item { kind: None }]);
    pair.client.stored(pair.now, Lane::Express, 1);
    pair.client.flush_acks();
    assert_eq!(pair.carry_up(), Ok(vec![BrokerEvent::Acked { express: Some(5), bulk: None }]));
}

/// R6.2-1: the room is what the window still takes, in items and in bytes.
#[test]
fn a_window_has_room_for_so_many_items_and_bytes() {
    let mut pair = open_pair_with(windows(3, 512), BrokerLimits::default());
    assert_eq!(pair.broker.room(Lane::Bulk), Room { items: 3, bytes: u32::MAX });
    let item = item(1, 100);
    pair.broker.deliver(pair.now, Lane::Bulk, 1, item.clone());
    assert_eq!(pair.broker.room(Lane::Bulk), Room { items: 2, bytes: 512 - item.len() as u32 });
    assert_eq!(pair.broker.room(Lane::Express).items, 3, "the other lane has its own");
    pair.broker.deliver(pair.now, Lane::Bulk, 2, item.clone());
    pair.broker.deliver(pair.now, Lane::Bulk, 3, item.clone());
    assert!(!pair.broker.room(Lane::Bulk).admits(1));
    pair.carry_down().expect("items");
    pair.say_up(&ack(0, 2, 0)).expect("an ack");
    assert_eq!(pair.broker.room(Lane::Bulk), Room { items: 2, bytes: 512 - item.len() as u32 });
}

/// R6.2-1: one item may be larger than the window, alone. (S9)
#[test]
fn an_item_larger_than_the_window_goes_alone() {
    let mut pair = open_pair_with(windows(3, 512), BrokerLimits::default());
    pair.broker.deliver(pair.now, Lane::Express, 1, item(1, 5000));
    assert!(!pair.broker.room(Lane::Express).admits(1));
    assert_eq!(runs(&pair.carry_down().expect("an item")), [(Lane::Express, 1, 1)]);
    pair.client.stored(pair.now, Lane::Express, 1);
    assert_eq!(pair.carry_up().expect("an ack").len(), 1, "it is more than half the window: acked at once");
    assert!(pair.broker.room(Lane::Express).admits(5000));
}

/// R6.2-1: a broker that exceeds a window has a bug, and stops before it does harm.
#[test]
#[should_panic(expected = "the window has no room")]
fn delivering_without_room_is_a_bug() {
    let mut pair = open_pair_with(windows(1, 512), BrokerLimits::default());
    deliver(&mut pair, Lane::Bulk, 1..=2);
}

/// R6.2-3: what cannot wait leaves first.
#[test]
fn what_leaves_together_leaves_in_order() {
    let mut pair = open_pair();
    pair.client.publish(message(1, 2, 3));
    pair.carry_up().expect("a publish");
    deliver(&mut pair, Lane::Bulk, 1..=2);
    pair.broker.cursor(Bytes::from_static(b"c"));
    pair.wait(11_000);
    pair.broker.handle_deadline(pair.now).expect("nothing ends");
    deliver(&mut pair, Lane::Express, 3..=3);
    pair.broker.acknowledge(stored(1));
    let order: Vec<_> = pair
        .broker_writes()
        .into_iter()
        .map(|frame| match frame {
            Frame::Packet(Kind::PublishAck(_)) => "ack",
            Frame::Packet(Kind::Deliver(deliver)) if deliver.lane == 0 => "express",
            Frame::Packet(Kind::Deliver(_)) => "bulk",
            Frame::Packet(Kind::Cursor(_)) => "cursor",
            Frame::Packet(Kind::AckRequest(_)) => "ack request",
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(order, ["ack", "express", "bulk", "cursor", "ack request"]);
}

/// R6.1-1: as many leave together as there is room for, to the byte, and none is cut.
#[test]
fn what_leaves_together_fits_the_room_that_there_is() {
    for (lane, len) in [Lane::Express, Lane::Bulk].into_iter().flat_map(|lane| [10, 200, 20_000].map(|len| (lane, len)))
    {
        let lens = |room: usize| {
            let mut pair = open_pair();
            assert!(!pair.broker.wants_transmit());
            (1..=3).for_each(|place| pair.broker.deliver(pair.now, lane, place, item(place, len)));
            assert!(pair.broker.wants_transmit(), "a lane alone");
            let mut lens = Vec::new();
            loop {
                let mut wire = BytesMut::new();
                if !pair.broker.poll_transmit(pair.now, &mut wire, room) {
                    break lens;
                }
                assert!(wire.len() <= room, "{} in {room}", wire.len());
                lens.push(wire.len());
            }
        };
        let whole = lens(PLENTY);
        let [all] = whole[..] else { panic!("one packet: {whole:?}") };
        assert_eq!(lens(all), [all], "just enough, {lane:?} {len}");
        assert_eq!(lens(all - 1).len(), 2, "one byte less, {lane:?} {len}");
        let alone = lens(all - 1)[1];
        assert_eq!(lens(alone), [alone; 3], "just enough for one, {lane:?} {len}");
    }
    // Behind something else a packet leaves if all of it fits.
    for len in [10, 200, 20_000] {
        let written = |room: usize| {
            let mut pair = open_pair();
            for lane in [Lane::Express, Lane::Bulk] {
                pair.broker.deliver(pair.now, lane, 1, item(1, len));
            }
            let mut wire = BytesMut::new();
            assert!(pair.broker.poll_transmit(pair.now, &mut wire, room));
            wire.len()
        };
        let (both, express) = (written(PLENTY), written(1));
        assert!(express < both);
        assert_eq!((written(both), written(both - 1)), (both, express), "{len}");
    }
}

/// R6.3-1: cumulative, per lane, by maximum.
#[test]
fn acks_are_cumulative() {
    let mut pair = open_pair();
    deliver(&mut pair, Lane::Express, 101..=105);
    deliver(&mut pair, Lane::Bulk, 201..=205);
    pair.carry_down().expect("items");
    let acked = |express, bulk| Ok(vec![BrokerEvent::Acked { express, bulk }]);
    assert_eq!(pair.say_up(&ack(3, 0, 0)), acked(Some(103), None));
    assert_eq!(pair.say_up(&ack(2, 4, 0)), acked(None, Some(204)));
    assert_eq!(pair.say_up(&ack(3, 4, 0)), Ok(vec![]));
    assert_eq!(pair.say_up(&ack(5, 5, 0)), acked(Some(105), Some(205)));
    assert!(pair.broker.is_idle());
}

/// R6.3-2: an ack of what is not sent, or only queued, is a lie.
#[test]
fn an_ack_of_the_unsent_ends_the_connection() {
    let mut pair = open_pair();
    deliver(&mut pair, Lane::Express, 1..=2);
    assert_eq!(reason(pair.say_up(&ack(1, 0, 0))), Reason::AckOfTheUnsent, "it has not left");
    let mut pair = open_pair();
    deliver(&mut pair, Lane::Express, 1..=2);
    pair.carry_down().expect("items");
    assert_eq!(reason(pair.say_up(&ack(3, 0, 0))), Reason::AckOfTheUnsent);
    let mut pair = open_pair();
    assert_eq!(reason(pair.say_up(&ack(0, u64::MAX, 0))), Reason::AckOfTheUnsent);
}

/// R6.3-3: at half the window, or after a second; not before something is stored.
#[test]
fn acks_leave_at_half_the_window_or_after_a_second() {
    let mut pair = open_pair_with(windows(8, 100_000), BrokerLimits::default());
    deliver(&mut pair, Lane::Bulk, 1..=8);
    pair.carry_down().expect("items");
    pair.client.stored(pair.now, Lane::Bulk, 3);
    assert_eq!(pair.client_writes(), []);
    pair.client.stored(pair.now, Lane::Bulk, 4);
    assert_eq!(pair.client_writes(), [Frame::Packet(ack(0, 4, 0))]);
    pair.client.stored(pair.now, Lane::Bulk, 5);
    pair.wait(999);
    pair.client.handle_deadline(pair.now).expect("nothing ends");
    assert_eq!(pair.client_writes(), []);
    pair.wait(1);
    pair.client.handle_deadline(pair.now).expect("nothing ends");
    assert_eq!(pair.client_writes(), [Frame::Packet(ack(0, 5, 0))]);

    // Half of the window is as much in bytes.
    let mut pair = open_pair_with(windows(100, 4_000), BrokerLimits::default());
    for n in 1..=2 {
        pair.broker.deliver(pair.now, Lane::Bulk, n, item(n, 1_500));
        pair.carry_down().expect("an item");
        pair.client.stored(pair.now, Lane::Bulk, n);
        let acked = (n == 2).then(|| Frame::Packet(ack(0, 2, 0)));
        assert_eq!(pair.client_writes(), Vec::from_iter(acked), "{n} of 1,500 bytes");
    }
}

/// R6.3-4: a cursor leaves behind what it covers, also when only a part fits at a time.
#[test]
fn a_cursor_leaves_behind_what_it_covers() {
    let mut pair = open_pair();
    deliver(&mut pair, Lane::Bulk, 1..=3);
    deliver(&mut pair, Lane::Express, 4..=4);
    pair.broker.cursor(Bytes::from_static(b"first"));
    deliver(&mut pair, Lane::Bulk, 5..=6);
    pair.broker.cursor(Bytes::from_static(b"second"));
    pair.broker.cursor(Bytes::from_static(b"third"));
    let mut order = Vec::new();
    loop {
        let mut wire = BytesMut::new();
        // One frame at a time, as small as they come.
        if !pair.broker.poll_transmit(pair.now, &mut wire, 1) {
            break;
        }
        order.extend(read_all(wire).into_iter().map(|frame| match frame {
            Frame::Packet(Kind::Deliver(deliver)) => (deliver.lane, deliver.n.to_string()),
            Frame::Packet(Kind::Cursor(cursor)) => (9, String::from_utf8_lossy(&cursor.cursor).into_owned()),
            other => panic!("{other:?}"),
        }));
    }
    let order: Vec<_> = order.iter().map(|(lane, what)| (*lane, what.as_str())).collect();
    assert_eq!(
        order,
        [(0, "1"), (1, "1"), (1, "2"), (1, "3"), (1, "4"), (1, "5"), (9, "first"), (9, "third")],
        "the newest takes the place of the one before it; the oldest is never held up"
    );
}

/// R6.3-4: while more comes than leaves, the cursor that waits still leaves.
#[test]
fn a_cursor_is_not_held_up_by_what_comes_after_it() {
    let mut pair = open_pair();
    let mut seen = 0;
    for round in 1..=10 {
        deliver(&mut pair, Lane::Bulk, round * 2..=round * 2 + 1);
        pair.broker.cursor(Bytes::from(vec![round as u8]));
        let mut wire = BytesMut::new();
        pair.broker.poll_transmit(pair.now, &mut wire, 60);
        seen += read_all(wire).iter().filter(|frame| matches!(frame, Frame::Packet(Kind::Cursor(_)))).count();
    }
    let _ = seen;
    let rest = pair.broker_writes();
    let cursors = rest.iter().filter(|frame| matches!(frame, Frame::Packet(Kind::Cursor(_)))).count();
    assert_eq!(cursors, 2, "the oldest that waited and the newest");
}

/// R6.4-1: the broker asks once, ten seconds after the oldest item, behind everything it has sent.
#[test]
fn overdue_items_are_asked_about_once() {
    let mut pair = open_pair();
    deliver(&mut pair, Lane::Bulk, 1..=1);
    pair.carry_down().expect("items");
    pair.wait(9_999);
    pair.broker.handle_deadline(pair.now).expect("nothing ends");
    assert_eq!(pair.broker_writes(), []);
    pair.wait(1_001);
    deliver(&mut pair, Lane::Bulk, 2..=2);
    pair.broker.handle_deadline(pair.now).expect("nothing ends");
    let told = pair.broker_writes();
    assert!(
        matches!(&told[..], [Frame::Packet(Kind::Deliver(_)), Frame::Packet(Kind::AckRequest(request))] if request.k == 1)
    );
    pair.wait(5_000);
    pair.broker.handle_deadline(pair.now).expect("nothing ends");
    assert_eq!(pair.broker_writes(), [], "one at a time");
    pair.say_up(&ack(0, 2, 1)).expect("an answer");
    deliver(&mut pair, Lane::Express, 3..=3);
    pair.carry_down().expect("an item");
    pair.wait(11_000);
    pair.broker.handle_deadline(pair.now).expect("nothing ends");
    let told = pair.broker_writes();
    assert!(matches!(&told[..], [Frame::Packet(Kind::AckRequest(request))] if request.k == 2));
}

/// Eleven seconds pass, the broker asks, and the client hears it.
fn ask(pair: &mut Pair) -> u64 {
    pair.wait(11_000);
    pair.broker.handle_deadline(pair.now).expect("nothing ends");
    let events = pair.carry_down().expect("a request");
    let Some(ClientEvent::AckRequest { k }) = events.last() else { panic!("{events:?}") };
    *k
}

/// R6.4-2: the client answers with what is stored; by itself after ten seconds.
#[test]
fn an_ack_request_is_answered() {
    let mut pair = open_pair();
    deliver(&mut pair, Lane::Bulk, 1..=3);
    let k = ask(&mut pair);
    pair.client.stored(pair.now, Lane::Bulk, 3);
    pair.client.answer(k);
    assert_eq!(pair.client_writes(), [Frame::Packet(ack(0, 3, 1))]);

    let mut pair = open_pair();
    deliver(&mut pair, Lane::Bulk, 1..=3);
    ask(&mut pair);
    pair.client.stored(pair.now, Lane::Bulk, 2);
    pair.wait(10_000);
    pair.client.handle_deadline(pair.now).expect("nothing ends");
    assert_eq!(pair.client_writes(), [Frame::Packet(ack(0, 2, 1))]);
}

/// R6.4-2: an answer without a question is out of place.
#[test]
fn an_answer_that_was_not_asked_for_is_unexpected() {
    let mut pair = open_pair();
    assert_eq!(reason(pair.say_up(&ack(0, 0, 1))), Reason::UnexpectedPacket);
    let mut pair = open_pair();
    deliver(&mut pair, Lane::Bulk, 1..=1);
    ask(&mut pair);
    assert_eq!(reason(pair.say_up(&ack(0, 0, 2))), Reason::UnexpectedPacket, "another number");
}

/// R6.4-3, R6.4-4: what was not stored comes again with its number, and what followed it too; the client takes each
/// once, and no cursor until it is whole again.
#[test]
fn what_was_not_stored_comes_again_once() {
    let mut pair = open_pair();
    deliver(&mut pair, Lane::Express, 101..=102);
    deliver(&mut pair, Lane::Bulk, 201..=204);
    let k = ask(&mut pair);
    // 203 could not be stored; meanwhile 205 arrives.
    pair.client.stored(pair.now, Lane::Express, 2);
    pair.client.stored(pair.now, Lane::Bulk, 2);
    pair.client.answer(k);
    deliver(&mut pair, Lane::Bulk, 205..=205);
    pair.broker.cursor(Bytes::from_static(b"covers what is missing"));
    assert_eq!(pair.carry_down(), Ok(vec![]), "dropped: what comes before it is to come again");
    let events = pair.carry_up().expect("the answer");
    assert_eq!(
        events,
        [
            BrokerEvent::Acked { express: Some(102), bulk: Some(202) },
            BrokerEvent::Resend { lane: Lane::Bulk, from_n: 3, places: vec![203, 204, 205] },
        ]
    );
    for (n, place) in (3..).zip([203, 204, 205]) {
        pair.broker.resend(pair.now, Lane::Bulk, n, &item(place, 12));
    }
    deliver(&mut pair, Lane::Bulk, 206..=206);
    let events = pair.carry_down().expect("items");
    assert_eq!(runs(&events), [(Lane::Bulk, 3, 4)]);
    pair.client.stored(pair.now, Lane::Bulk, 6);
    pair.client.flush_acks();
    assert_eq!(pair.carry_up(), Ok(vec![BrokerEvent::Acked { express: None, bulk: Some(206) }]));
    pair.broker.cursor(Bytes::from_static(b"whole"));
    assert_eq!(pair.carry_down(), Ok(vec![ClientEvent::Cursor(Bytes::from_static(b"whole"))]));
    assert!(pair.broker.is_idle());
}

/// R6.4-3: both lanes at once.
#[test]
fn both_lanes_may_miss_something() {
    let mut pair = open_pair();
    deliver(&mut pair, Lane::Express, 101..=101);
    deliver(&mut pair, Lane::Bulk, 201..=201);
    let k = ask(&mut pair);
    pair.client.answer(k);
    let events = pair.carry_up().expect("the answer");
    assert_eq!(
        events,
        [
            BrokerEvent::Resend { lane: Lane::Express, from_n: 1, places: vec![101] },
            BrokerEvent::Resend { lane: Lane::Bulk, from_n: 1, places: vec![201] },
        ]
    );
}

/// R6.4-4: what is here already is dropped, in whole and in part.
#[test]
fn duplicates_are_dropped() {
    let mut pair = open_pair();
    deliver(&mut pair, Lane::Bulk, 1..=3);
    let frames = pair.broker_writes();
    let [Frame::Packet(kind)] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!(runs(&pair.say_down(kind).expect("items")), [(Lane::Bulk, 1, 3)]);
    assert_eq!(pair.say_down(kind), Ok(vec![]));
    let Kind::Deliver(deliver) = kind else { panic!("{kind:?}") };
    let longer = packet::Deliver { items: vec![packet::Item::default(); 5], ..deliver.clone() };
    assert_eq!(runs(&pair.say_down(&Kind::Deliver(longer)).expect("items")), [(Lane::Bulk, 4, 2)]);
}

/// R6.3-5, R6.4-4: no cursor is handed out while something before it is to come again.
#[test]
fn a_cursor_over_a_hole_is_not_handed_out() {
    let mut pair = open_pair();
    deliver(&mut pair, Lane::Express, 1..=1);
    let k = ask(&mut pair);
    pair.client.answer(k);
    pair.broker.cursor(Bytes::from_static(b"over the hole"));
    assert_eq!(pair.carry_down(), Ok(vec![]));
}

/// R6.4-5: twice is enough.
#[test]
fn what_is_missing_twice_ends_the_connection() {
    let mut pair = open_pair();
    deliver(&mut pair, Lane::Bulk, 1..=1);
    let k = ask(&mut pair);
    pair.client.answer(k);
    pair.carry_up().expect("the answer");
    pair.broker.resend(pair.now, Lane::Bulk, 1, &item(1, 10));
    let k = ask(&mut pair);
    pair.client.answer(k);
    assert_eq!(reason(pair.carry_up()), Reason::AckTimeout);
}

/// R6.4-6: the wait grows with what is under way, so a slow link is not cut off. (S10)
#[test]
fn the_wait_for_an_answer_grows_with_what_is_unacked() {
    let mut pair = open_pair();
    pair.broker.deliver(pair.now, Lane::Express, 1, item(1, 60 * 1024 - 40));
    pair.wait(11_000);
    pair.broker.handle_deadline(pair.now).expect("nothing ends");
    pair.broker_writes();
    for _ in 0..79 {
        pair.wait(1_000);
        pair.broker.handle_bytes(pair.now);
        pair.broker.handle_deadline(pair.now).expect("20 s and 60 s");
        assert_eq!(pair.broker_writes(), [], "and nothing is sent twice");
    }
    pair.wait(1_000);
    pair.broker.handle_bytes(pair.now);
    assert_eq!(reason(pair.broker.handle_deadline(pair.now)), Reason::AckTimeout);
}

/// S10: an item of 60 KB over a link of 16 kbit/s, half a minute under way. Both ends look at their deadlines all the
/// time; nobody gives up, nothing is sent twice, and the item is acked in the end (R6.4-6, R8-3).
#[test]
fn s10_a_large_item_crosses_a_slow_link_once() {
    const LINK_BYTES_A_MS: usize = 2;
    let mut pair = open_pair();
    pair.broker.deliver(pair.now, Lane::Express, 1, item(1, 60_000));
    let (mut under_way, mut arrived) = (BytesMut::new(), BytesMut::new());
    let (mut written, mut acked) = (0, false);
    for _ in 0..200 {
        pair.wait(250);
        pair.broker.handle_deadline(pair.now).expect("the broker is patient");
        pair.client.handle_deadline(pair.now).expect("the client is patient");
        let before = under_way.len();
        while pair.broker.poll_transmit(pair.now, &mut under_way, usize::MAX) {}
        written += under_way.len() - before;
        let now = under_way.len().min(250 * LINK_BYTES_A_MS);
        if now > 0 {
            pair.client.handle_bytes(pair.now);
        }
        arrived.unsplit(under_way.split_to(now));
        for event in pair.arrive_down(&mut arrived).expect("good bytes") {
            match event {
                ClientEvent::Items { lane, first_n, items } => {
                    assert_eq!((lane, first_n, items.len()), (Lane::Express, 1, 1));
                    pair.client.stored(pair.now, lane, 1);
                }
                ClientEvent::AckRequest { k } => pair.client.answer(k),
                _ => {}
            }
        }
        for event in pair.carry_up().expect("good bytes") {
            assert!(!matches!(event, BrokerEvent::Resend { .. }), "nothing is sent twice");
            acked |= matches!(event, BrokerEvent::Acked { express: Some(1), .. });
        }
    }
    assert!(acked, "the item is stored and acked");
    assert!(written < 60_200, "{written} bytes for an item of 60,000");
}

/// R6.4-7: the broker leaves nothing out.
#[test]
fn a_number_left_out_is_unexpected() {
    let mut pair = open_pair();
    let gap = Kind::Deliver(packet::Deliver { lane: 0, n: 2, items: vec![packet::Item::default()] });
    assert_eq!(reason(pair.say_down(&gap)), Reason::UnexpectedPacket);
    for wrong in [
        packet::Deliver { lane: 0, n: 0, items: vec![packet::Item::default()] },
        packet::Deliver { lane: 0, n: 1, items: vec![] },
        packet::Deliver { lane: 7, n: 1, items: vec![packet::Item::default()] },
        packet::Deliver { lane: 0, n: u64::MAX, items: vec![packet::Item::default()] },
    ] {
        let mut pair = open_pair();
        assert_eq!(reason(pair.say_down(&Kind::Deliver(wrong.clone()))), Reason::UnexpectedPacket, "{wrong:?}");
    }
}

/// A full window, over and over: nothing is lost in the counting.
#[test]
fn a_long_stream_stays_within_its_window() {
    let mut pair = open_pair_with(windows(16, 2_000), BrokerLimits::default());
    let (mut next, mut got) = (1u64, 0u64);
    for _ in 0..500 {
        while pair.broker.room(Lane::Bulk).admits(item(next, 50).len()) {
            pair.broker.deliver(pair.now, Lane::Bulk, next, item(next, 50));
            next += 1;
        }
        for (_, first, count) in runs(&pair.carry_down().expect("items")) {
            assert_eq!(first, got + 1);
            got += count as u64;
        }
        pair.client.stored(pair.now, Lane::Bulk, got);
        pair.wait(1_000);
        pair.client.handle_deadline(pair.now).expect("nothing ends");
        pair.carry_up().expect("acks");
    }
    assert_eq!(got, next - 1);
    assert!(got > 5_000, "{got}");
    assert!(pair.broker.is_idle());
}

/// R6.4-4: what was reported as missing may be stored after all; then it does not come to the application twice.
#[test]
fn what_is_stored_late_is_stored() {
    let mut pair = open_pair();
    deliver(&mut pair, Lane::Bulk, 1..=3);
    let k = ask(&mut pair);
    pair.client.answer(k);
    assert_eq!(pair.client.next(Lane::Bulk), 1, "all of it is to come again");
    pair.client.stored(pair.now, Lane::Bulk, 2);
    let events = pair.carry_up().expect("the answer");
    let [.., BrokerEvent::Resend { from_n, places, .. }] = &events[..] else { panic!("{events:?}") };
    for (n, place) in (*from_n..).zip(places) {
        pair.broker.resend(pair.now, Lane::Bulk, n, &item(*place, 10));
    }
    assert_eq!(runs(&pair.carry_down().expect("items")), [(Lane::Bulk, 3, 1)]);
}
