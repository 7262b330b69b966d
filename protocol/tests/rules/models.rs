//! Random operations against simple models: the codec against its input, the publish window and order against a plain
//! map, a lane against two counters.

use std::collections::{BTreeSet, VecDeque};

use bytes::BytesMut;
use longwire_protocol::{
    BrokerEvent, BrokerLimits, ClientEvent, Frame, FrameCodec, Lane, MessageId, Reason, Refusal, limits,
    packet::{self, Window, packet::Kind},
};
use proptest::{collection::vec, prelude::*};
use prost::Message as _;
use tokio_util::codec::Decoder as _;

use crate::world::{connect, framed, item, message, open_pair_with, stored};

fn any_kind() -> impl Strategy<Value = Kind> {
    let id = prop_oneof![0..200u64, any::<u64>()];
    prop_oneof![
        (id.clone(), id.clone(), vec(any::<u8>(), 0..300), id.clone()).prop_map(
            |(conversation, message_id, content, first)| {
                Kind::Publish(packet::Publish {
                    conversation,
                    message_id,
                    content: content.into(),
                    first_unanswered: first,
                    ..Default::default()
                })
            }
        ),
        (id.clone(), id.clone(), id.clone()).prop_map(|(message_id, seq, time)| Kind::PublishAck(packet::PublishAck {
            message_id,
            seq,
            time,
            conversation: 0
        })),
        (id.clone(), any::<u32>(), ".{0,20}").prop_map(|(message_id, code, detail)| Kind::Refused(packet::Refused {
            message_id,
            code,
            detail,
            ..Default::default()
        })),
        (id.clone(), vec((id.clone(), vec(any::<u8>(), 0..50)), 1..10)).prop_map(|(n, entries)| {
            let items = entries.into_iter().map(|(seq, content)| packet::Item {
                kind: Some(packet::item::Kind::Entry(packet::Entry {
                    seq,
                    content: content.into(),
                    ..Default::default()
                })),
            });
            Kind::Deliver(packet::Deliver { lane: 1, n, items: items.collect() })
        }),
        vec(id.clone(), 0..200).prop_map(|users| Kind::Request(packet::Request {
            id: 1,
            op: Some(packet::request::Op::Users(packet::UsersRequest { users }))
        })),
        (id.clone(), id).prop_map(|(express, bulk)| Kind::Ack(packet::Ack { express, bulk, answer: 0 })),
    ]
}

proptest! {
    /// Value to bytes to value, cut anywhere, and the length is what was said.
    #[test]
    fn frames_read_back(kinds in vec(any_kind(), 1..8), cuts in vec(any::<prop::sample::Index>(), 0..8)) {
        let mut wire = BytesMut::new();
        for kind in &kinds {
            let before = wire.len();
            longwire_protocol::frame::encode(kind, &mut wire);
            prop_assert_eq!(wire.len() - before, longwire_protocol::frame::encoded_len(kind));
        }
        let mut at: Vec<_> = cuts.iter().map(|cut| cut.index(wire.len())).collect();
        at.sort_unstable();
        at.push(wire.len());
        let (mut codec, mut buffer, mut begin) = (FrameCodec::new(limits::FRAME_BYTES_MAX), BytesMut::new(), 0);
        let mut read = Vec::new();
        for end in at {
            buffer.extend_from_slice(&wire[begin..end]);
            begin = end;
            while let Some((frame, _)) = codec.decode(&mut buffer).expect("good bytes") {
                read.push(frame);
            }
        }
        let expected: Vec<_> = kinds.into_iter().map(Frame::Packet).collect();
        prop_assert_eq!(read, expected);
    }

    /// Whatever bytes come, there is an answer, and what is accepted means the same when it is written again.
    #[test]
    fn any_bytes_get_a_verdict(bytes in vec(any::<u8>(), 0..200)) {
        let mut buffer = BytesMut::from(&bytes[..]);
        let mut codec = FrameCodec::default();
        while let Ok(Some((frame, _))) = codec.decode(&mut buffer) {
            if let Frame::Packet(kind) = frame {
                let again = FrameCodec::new(limits::FRAME_BYTES_MAX).decode(&mut framed(&kind));
                prop_assert_eq!(again.map(|frame| frame.map(|(frame, _)| frame)), Ok(Some(Frame::Packet(kind))));
            }
        }
    }

    /// One byte of a good frame changed: still an answer, and prost never sees what the walk refused.
    #[test]
    fn a_changed_byte_gets_a_verdict(kind in any_kind(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut wire = framed(&kind);
        let at = at.index(wire.len());
        wire[at] = to;
        let _ = FrameCodec::new(limits::FRAME_BYTES_MAX).decode(&mut wire);
    }

    /// The order rule against a plain map of what became of each id.
    #[test]
    fn publishes_pass_as_the_model_says(steps in vec((1..9u64, 0..2u64, 0..4u8), 1..60)) {
        let limits = BrokerLimits { publish: Window { items: 4, bytes: 100_000 }, ..BrokerLimits::default() };
        let mut pair = open_pair_with(connect(), limits);
        // Ids that are open, with their conversation; ids that wait for an answer.
        let mut open: BTreeSet<(u64, u64)> = BTreeSet::new();
        let mut waiting: VecDeque<(u64, u64)> = VecDeque::new();
        for (id, conversation, what) in steps {
            match what {
                0 | 1 => {
                    if waiting.len() == 4 || waiting.iter().any(|(waiting, _)| *waiting == id) {
                        continue;
                    }
                    let blocked = open.iter().any(|&(lower, of)| lower < id && of == conversation);
                    // An id that is tried in another conversation is open there alone.
                    open.retain(|(of, _)| *of != id);
                    pair.client.publish(message(id, conversation, 3));
                    let events = pair.carry_up().expect("within the window");
                    prop_assert_eq!(events.len(), usize::from(!blocked));
                    if blocked {
                        let told = pair.carry_down().expect("a refusal");
                        let refused = Refusal::publish(MessageId(id), Reason::After);
                        prop_assert_eq!(told, vec![ClientEvent::Refused(refused)]);
                        open.insert((id, conversation));
                    } else {
                        waiting.push_back((id, conversation));
                    }
                }
                2 => {
                    let Some((id, _)) = waiting.pop_front() else { continue };
                    pair.broker.acknowledge(stored(id));
                    prop_assert_eq!(pair.carry_down(), Ok(vec![ClientEvent::PublishAck(stored(id))]));
                }
                _ => {
                    let Some((id, conversation)) = waiting.pop_back() else { continue };
                    let refusal = Refusal::publish(MessageId(id), Reason::Overloaded);
                    pair.broker.refuse(refusal.clone());
                    prop_assert_eq!(pair.carry_down(), Ok(vec![ClientEvent::Refused(refusal)]));
                    open.insert((id, conversation));
                }
            }
            prop_assert_eq!(pair.broker.open_refusals().len(), open.len());
            prop_assert_eq!(pair.client.unanswered() as usize, waiting.len());
        }
    }

    /// A lane against counters: whatever is stored, failed and asked about, the client stores every number once and in
    /// order, and both ends agree in the end.
    #[test]
    fn a_lane_delivers_everything_once(steps in vec((0..6u8, 1..6u64), 1..80)) {
        let window = Some(Window { items: 12, bytes: 2_000 });
        let mut pair = open_pair_with(packet::Connect { bulk: window, ..connect() }, BrokerLimits::default());
        let (mut given, mut acked, mut got, mut stored) = (0u64, 0u64, 0u64, 0u64);
        let mut asked = None;
        for (what, count) in steps {
            match what {
                0 | 1 => {
                    for _ in 0..count {
                        if pair.broker.room(Lane::Bulk).admits(100) {
                            given += 1;
                            pair.broker.deliver(pair.now, Lane::Bulk, given, item(given, 20));
                        }
                    }
                }
                2 => {
                    for event in pair.carry_down().expect("good packets") {
                        match event {
                            ClientEvent::Items { first_n, items, .. } => {
                                prop_assert_eq!(first_n, got + 1, "in order, without a hole");
                                got += items.len() as u64;
                            }
                            ClientEvent::AckRequest { k } => asked = Some(k),
                            other => prop_assert!(false, "{:?}", other),
                        }
                    }
                }
                3 => {
                    stored = (stored + count).min(got);
                    if stored > 0 {
                        pair.client.stored(pair.now, Lane::Bulk, stored);
                    }
                }
                4 => {
                    pair.client.flush_acks();
                    if let Some(k) = asked.take() {
                        // What is not stored now could not be.
                        pair.client.answer(k);
                        got = pair.client.next(Lane::Bulk) - 1;
                    }
                    let mut resend = None;
                    let events = match pair.carry_up() {
                        Ok(events) => events,
                        Err(refusal) => {
                            prop_assert_eq!(refusal.reason, Reason::AckTimeout, "failed twice");
                            return Ok(());
                        }
                    };
                    for event in events {
                        match event {
                            BrokerEvent::Acked { bulk: Some(place), .. } => {
                                prop_assert!(place > acked && place <= stored);
                                acked = place;
                            }
                            BrokerEvent::Resend { from_n, places, .. } => {
                                prop_assert_eq!(from_n, acked + 1);
                                resend = Some((from_n, places));
                            }
                            other => prop_assert!(false, "{:?}", other),
                        }
                    }
                    for (n, place) in resend.into_iter().flat_map(|(from, places)| (from..).zip(places)) {
                        prop_assert_eq!(n, place, "numbers and places run alike here");
                        pair.broker.resend(pair.now, Lane::Bulk, n, &item(place, 20));
                    }
                }
                _ => {
                    pair.wait(11_000);
                    pair.broker.handle_bytes(pair.now);
                    if pair.broker.handle_deadline(pair.now).is_err() {
                        return Ok(());
                    }
                }
            }
        }
        // Then all goes well, until nothing is left.
        for _ in 0..4 {
            for event in pair.carry_down().expect("good packets") {
                match event {
                    ClientEvent::Items { first_n, items, .. } => {
                        prop_assert_eq!(first_n, got + 1);
                        got += items.len() as u64;
                    }
                    ClientEvent::AckRequest { k } => asked = Some(k),
                    other => prop_assert!(false, "{:?}", other),
                }
            }
            if got > 0 {
                pair.client.stored(pair.now, Lane::Bulk, got);
            }
            if let Some(k) = asked.take() {
                pair.client.answer(k);
            }
            pair.client.flush_acks();
            prop_assert!(pair.carry_up().is_ok());
        }
        prop_assert_eq!(got, given);
        prop_assert!(pair.broker.is_idle());
    }
}

/// An item's length is what the window counts.
#[test]
fn an_items_length_is_its_encoding() {
    let encoded = item(5, 100);
    let decoded = packet::Item::decode(encoded.clone()).expect("an item");
    assert_eq!(decoded.encoded_len(), encoded.len());
}
