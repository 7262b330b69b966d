//! SPEC chapter 3: framing.

use bytes::{BufMut, Bytes, BytesMut};
use longwire_protocol::{
    Frame, FrameCodec, FrameError, Malformed, frame, limits,
    packet::{self, packet::Kind},
    varint,
};
use prost::Message as _;
use tokio_util::codec::Decoder as _;

use crate::world::{framed, message};

fn decode(bytes: &[u8]) -> Result<Option<(Frame, usize)>, FrameError> {
    FrameCodec::new(limits::FRAME_BYTES_MAX).decode(&mut BytesMut::from(bytes))
}

/// A frame around the bytes of a packet.
fn around(packet: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    varint::write(packet.len() as u64, &mut out);
    out.extend_from_slice(packet);
    out
}

/// A length-delimited field.
fn field(number: u64, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    varint::write(number << 3 | 2, &mut out);
    varint::write(body.len() as u64, &mut out);
    out.extend_from_slice(body);
    out
}

fn malformed(packet: &[u8]) -> Malformed {
    match decode(&around(packet)) {
        Err(FrameError::Malformed(malformed)) => malformed,
        other => panic!("{other:?} for {packet:02x?}"),
    }
}

/// R3-1, R3-3: frames follow each other, however the bytes are cut.
#[test]
fn frames_follow_each_other_at_every_cut() {
    let mut wire = framed(&Kind::Publish(message(1, 2, 300)));
    frame::encode_heartbeat(&mut wire);
    wire.extend(framed(&Kind::GiveUp(packet::GiveUp { message_id: 4 })));
    let whole = wire.freeze();
    for cut in 0..=whole.len() {
        let mut codec = FrameCodec::new(limits::FRAME_BYTES_MAX);
        let mut frames = Vec::new();
        let mut buffer = BytesMut::new();
        for part in [&whole[..cut], &whole[cut..]] {
            buffer.extend_from_slice(part);
            while let Some(frame) = codec.decode(&mut buffer).expect("good bytes") {
                frames.push(frame);
            }
        }
        let bytes: usize = frames.iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(bytes, whole.len());
        assert!(matches!(
            frames[..],
            [(Frame::Packet(Kind::Publish(_)), _), (Frame::Heartbeat, 1), (Frame::Packet(Kind::GiveUp(_)), _)]
        ));
        assert!(!codec.is_inside_frame(&buffer));
    }
}

/// R3-1: a stream that ends inside a frame was cut, also right behind the length.
#[test]
fn an_end_inside_a_frame_is_told_from_an_end_between_frames() {
    let whole = framed(&Kind::GiveUp(packet::GiveUp { message_id: 400 }));
    for cut in 0..=whole.len() {
        let mut codec = FrameCodec::default();
        let mut buffer = BytesMut::from(&whole[..cut]);
        let mut last = codec.decode_eof(&mut buffer);
        if matches!(last, Ok(Some(_))) {
            last = codec.decode_eof(&mut buffer);
        }
        let between = cut == 0 || cut == whole.len();
        assert_eq!(last, if between { Ok(None) } else { Err(FrameError::Cut) }, "cut at {cut}");
    }
}

/// R3-2: a length has one spelling.
#[test]
fn a_padded_length_is_malformed() {
    for padded in [&[0x80, 0x00][..], &[0x82, 0x00, 0x22, 0x00], &[0x80, 0x80, 0x80, 0x00]] {
        assert_eq!(decode(padded), Err(Malformed::LengthNotMinimal.into()), "{padded:02x?}");
    }
    assert_eq!(decode(&[0x80; 10]), Err(Malformed::Varint.into()));
}

/// R3-4: the length is judged before anything else arrives, and nothing is reserved for it.
#[test]
fn a_frame_above_the_limit_is_refused_by_its_length_alone() {
    for limit in [limits::PRE_AUTH_FRAME_BYTES_MAX, limits::FRAME_BYTES_MAX] {
        let mut codec = FrameCodec::new(limit);
        let mut wire = BytesMut::new();
        varint::write(u64::from(limit) + 1, &mut wire);
        let capacity = wire.capacity();
        assert_eq!(codec.decode(&mut wire), Err(FrameError::TooLarge { length: u64::from(limit) + 1, limit }));
        assert_eq!(wire.capacity(), capacity);
        let mut wire = BytesMut::new();
        varint::write(u64::from(limit), &mut wire);
        assert_eq!(codec.decode(&mut wire), Ok(None), "the limit itself is allowed");
    }
    // A length that is still going on after five bytes is larger than any limit.
    assert!(matches!(decode(&[0xff; 5]), Err(FrameError::TooLarge { .. })));
}

/// R3-4: the limit that holds when the length arrives is the one that counts.
#[test]
fn the_limit_rises_when_the_client_is_let_in() {
    let mut codec = FrameCodec::default();
    assert_eq!(codec.frame_bytes_max(), 4096);
    codec.set_frame_bytes_max(limits::FRAME_BYTES_MAX);
    let mut wire = framed(&Kind::Publish(message(1, 2, limits::PAYLOAD_BYTES_MAX as usize)));
    assert!(matches!(codec.decode(&mut wire), Ok(Some((Frame::Packet(Kind::Publish(_)), _)))));
}

/// R3-5: one member, once, in a packet and in every choice inside it.
#[test]
fn two_members_are_malformed() {
    let ack = field(5, &[]);
    let give_up = field(10, &[0x08, 1]);
    assert_eq!(malformed(&[ack.clone(), give_up.clone()].concat()), Malformed::TwoMembers);
    assert_eq!(malformed(&[ack.clone(), ack].concat()), Malformed::TwoMembers);
    let join_and_leave = [field(19, &[]), field(20, &[])].concat();
    assert_eq!(malformed(&field(1, &join_and_leave)), Malformed::TwoMembers);
    let two_operations = [field(2, &[]), field(4, &[])].concat();
    assert_eq!(malformed(&field(8, &two_operations)), Malformed::TwoMembers);
    assert_eq!(malformed(&field(9, &two_operations)), Malformed::TwoMembers);
    let item = [field(5, &[]), field(6, &[])].concat();
    assert_eq!(malformed(&field(4, &field(3, &item))), Malformed::TwoMembers);
    assert_eq!(malformed(&field(9, &field(2, &field(1, &item)))), Malformed::TwoMembers);
}

/// R3-5: of each choice of the `.proto`, no member can be there beside another, or twice.
#[test]
fn no_member_of_a_choice_is_overlooked() {
    type Around = fn(&[u8]) -> Vec<u8>;
    let choices: [(&str, Around); 5] = [
        ("Packet", <[u8]>::to_vec),
        ("Publish", |body| field(1, body)),
        ("Item", |body| field(4, &field(3, body))),
        ("Request", |body| field(8, body)),
        ("Response", |body| field(9, body)),
    ];
    assert_eq!(PROTO.matches("oneof ").count(), choices.len(), "each choice is tried");
    for (message, around) in choices {
        let members = members(message);
        let first = *members.first().expect("it has members");
        for member in members {
            for two in [[first, member], [member, first], [member, member]] {
                let body = two.map(|number| field(number, &[])).concat();
                assert_eq!(malformed(&around(&body)), Malformed::TwoMembers, "{message}: {two:?}");
            }
        }
    }
}

const PROTO: &str = include_str!("../../proto/longwire.proto");

/// The numbers of the one choice in a message of the `.proto`.
fn members(message: &str) -> Vec<u64> {
    let (_, body) = PROTO.split_once(&format!("\nmessage {message} {{\n")).expect("the message is there");
    let (body, _) = body.split_once("\n}").expect("it ends");
    let (_, body) = body.split_once("oneof ").expect("it has a choice");
    let (body, _) = body.split_once('}').expect("it ends");
    let number = |line: &str| line.trim().strip_suffix(';')?.rsplit_once("= ")?.1.parse().ok();
    body.lines().filter_map(number).collect()
}

/// R3-6: what protobuf would let pass or recurse into is refused.
#[test]
fn broken_structure_is_malformed() {
    assert_eq!(malformed(&[0x0b, 0x0c]), Malformed::WireType, "a group");
    assert_eq!(malformed(&[0x08, 0x01]), Malformed::WireType, "publish as a number");
    assert_eq!(malformed(&[0x00, 0x01]), Malformed::FieldNumber);
    assert_eq!(malformed(&[0x0a, 0x05, 0x08]), Malformed::Truncated);
    assert_eq!(malformed(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]), Malformed::Truncated);
    assert_eq!(malformed(&field(1, &[0x08])), Malformed::Truncated, "a number that is not there");
    assert_eq!(malformed(&field(1, &[0x8b, 0x06, 0x8c, 0x06])), Malformed::WireType, "a group inside");
    // Padding inside a packet is protobuf's business.
    let padded = decode(&around(&field(10, &[0x08, 0x81, 0x00])));
    assert!(matches!(padded, Ok(Some((Frame::Packet(Kind::GiveUp(packet::GiveUp { message_id: 1 })), _)))));
}

/// R3-7: every list at its limit passes, and one more does not.
#[test]
fn lists_have_limits() {
    let features =
        |count| Kind::Connect(packet::Connect { features: vec![String::new(); count], ..Default::default() });
    let announced =
        |count| Kind::Connected(packet::Connected { features: vec![String::new(); count], ..Default::default() });
    let group = |count| {
        let users = vec![String::from("u"); count];
        let action = packet::publish::Action::CreateGroup(packet::CreateGroup { users, ..Default::default() });
        Kind::Publish(packet::Publish { message_id: 1, action: Some(action), ..Default::default() })
    };
    let users = |count| {
        let op = packet::request::Op::Users(packet::UsersRequest { users: vec![300; count] });
        Kind::Request(packet::Request { id: 1, op: Some(op) })
    };
    let items = |count| Kind::Deliver(packet::Deliver { n: 1, items: vec![packet::Item::default(); count], lane: 0 });
    let page = |count| {
        let items = vec![packet::Item::default(); count];
        let page = packet::HistoryPage { items, ..Default::default() };
        Kind::Response(packet::Response { id: 1, result: Some(packet::response::Result::History(page)) })
    };
    let lists: [(usize, &dyn Fn(usize) -> Kind); 6] = [
        (limits::FEATURES_MAX, &features),
        (limits::FEATURES_MAX, &announced),
        (limits::GROUP_USERS_MAX, &group),
        (limits::USERS_MAX, &users),
        (limits::DELIVER_ITEMS_MAX, &items),
        (limits::PAGE_ITEMS_MAX, &page),
    ];
    for (max, kind) in lists {
        assert!(matches!(decode(&framed(&kind(max))), Ok(Some((Frame::Packet(_), _)))), "{max}");
        let more = decode(&framed(&kind(max + 1)));
        assert!(matches!(more, Err(FrameError::Malformed(Malformed::TooMany(_)))), "{max}: {more:?}");
    }
    // Users that do not come packed count the same.
    let one_by_one: Vec<u8> = std::iter::repeat_n([0x08, 0x01], limits::USERS_MAX + 1).flatten().collect();
    assert_eq!(malformed(&field(8, &field(5, &one_by_one))), Malformed::TooMany("users"));
}

/// R3-8: text is UTF-8, a number is a number.
#[test]
fn what_does_not_decode_is_malformed() {
    assert_eq!(malformed(&field(16, &field(3, &[0xff]))), Malformed::Field);
    assert_eq!(malformed(&field(10, &field(1, b"text"))), Malformed::Field);
}

/// A payload is a slice of the buffer it came in: no byte of it is copied.
#[test]
fn contents_are_slices_of_the_buffer() {
    let mut wire = framed(&Kind::Publish(message(1, 2, 1000)));
    let range = wire.as_ptr_range();
    let frame = FrameCodec::new(limits::FRAME_BYTES_MAX).decode(&mut wire);
    let Ok(Some((Frame::Packet(Kind::Publish(publish)), _))) = frame else { panic!("{frame:?}") };
    assert!(range.contains(&publish.content.as_ptr()));
}

/// A frame's codec is as small as it says.
#[test]
fn a_codec_is_small() {
    assert!(size_of::<FrameCodec>() <= 16);
}

/// The bytes around a content of 100 bytes, with realistic numbers: conversation and user below 2^21, a time below
/// 2^36 ms (two years).
#[test]
fn the_bytes_around_a_message_are_within_their_budget() {
    const CONTENT: usize = 100;
    let (conversation, user, seq, n, time) = (1 << 20, 1 << 20, 10_000, 1_000, 1 << 35);
    let len = |kind: &Kind| frame::encoded_len(kind);
    let publish = len(&Kind::Publish(message(5_000, conversation, CONTENT))) - CONTENT;
    let publish_ack = len(&Kind::PublishAck(packet::PublishAck { message_id: 5_000, seq, time, conversation: 0 }));
    let entry = packet::Entry {
        conversation,
        seq,
        sender: user,
        time,
        content: Bytes::from_static(&[0; CONTENT]),
        ..Default::default()
    };
    let item = packet::Item { kind: Some(packet::item::Kind::Entry(entry)) };
    let run = |count: usize| {
        let items = vec![item.clone(); count];
        len(&Kind::Deliver(packet::Deliver { lane: packet::Lane::Bulk as i32, n, items }))
    };
    let (alone, in_a_run) = (run(1) - CONTENT, (run(64) - 64 * CONTENT) as f64 / 64.0);
    let ack = len(&Kind::Ack(packet::Ack { express: 0, bulk: 1_064, answer: 0 }));
    println!(
        "publish {publish}, publish ack {publish_ack}, deliver {alone} alone, {in_a_run:.2} in a run, ack {ack}, heartbeat 1"
    );
    assert!(publish <= 14, "{publish}");
    assert!(publish_ack <= 16, "{publish_ack}");
    assert!(alone <= 36, "{alone}");
    assert!(in_a_run <= 26.0, "{in_a_run}");
    assert!(ack <= 6, "{ack}");
    let mut heartbeat = BytesMut::new();
    frame::encode_heartbeat(&mut heartbeat);
    assert_eq!(heartbeat.len(), 1);
    let mut item_bytes = BytesMut::new();
    item.encode(&mut item_bytes).expect("room");
    item_bytes.put_u8(0);
    assert_eq!(item_bytes.len() - 1, item.encoded_len());
}

/// What begins with a publish is told from its first bytes, however long its length is spelled.
#[test]
fn a_publish_is_told_by_its_first_bytes() {
    let begins = |kind: Kind| {
        let mut bytes = BytesMut::new();
        frame::encode(&kind, &mut bytes);
        frame::begins_with_publish(&bytes)
    };
    for length in [0, 100, 1_000, 100_000] {
        assert!(begins(Kind::Publish(packet::Publish { content: vec![0; length].into(), ..Default::default() })));
    }
    assert!(!begins(Kind::Ack(packet::Ack { bulk: 10, ..Default::default() })));
    assert!(![&b""[..], b"\x00", b"\xff", b"\x05"].into_iter().any(frame::begins_with_publish));
}
