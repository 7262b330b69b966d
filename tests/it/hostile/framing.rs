//! Bytes that are no packets, lengths that lie, and packets in the wrong place.

use bytes::BytesMut;
use longwire_protocol::packet::packet::Kind;
use longwire_protocol::packet::{self, Publish};
use longwire_protocol::reason::Reason;
use longwire_protocol::{limits, varint};

use super::{Bystander, Raw, framed};
use crate::world::World;

/// A frame of these bytes.
fn frame(body: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    varint::write(body.len() as u64, &mut out);
    out.extend_from_slice(body);
    out.to_vec()
}

/// A length and nothing behind it.
fn length(n: u64) -> Vec<u8> {
    let mut out = BytesMut::new();
    varint::write(n, &mut out);
    out.to_vec()
}

/// A field of this number that holds these bytes.
fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    varint::write(number << 3 | 2, &mut out);
    varint::write(bytes.len() as u64, &mut out);
    out.extend_from_slice(bytes);
    out.to_vec()
}

/// Gets: *frame_too_large* or *malformed*, as soon as the length is there: not a byte of the frame is waited for, so none
/// has room made for it. Others: go on.
#[tokio::test]
async fn a_length_that_lies_is_refused_before_anything_of_the_frame() {
    let world = World::new().await;
    let mut bystander = Bystander::new(&world).await;
    let stranger = u64::from(limits::PRE_AUTH_FRAME_BYTES_MAX) + 1;
    let insider = u64::from(limits::FRAME_BYTES_MAX) + 1;
    for (n, (bytes, why)) in [
        (length(stranger), Reason::FrameTooLarge),
        (length(insider), Reason::FrameTooLarge),
        (length(u64::from(u32::MAX)), Reason::FrameTooLarge),
        (length(u64::MAX), Reason::FrameTooLarge),
        (vec![0xff; 11], Reason::Malformed),
        (vec![0x80, 0x00], Reason::Malformed),
        (vec![0x85, 0x80, 0x00], Reason::Malformed),
    ]
    .into_iter()
    .enumerate()
    {
        let mut raw = Raw::open(world.port()).await;
        raw.send(&bytes).await;
        assert_eq!(raw.end().await, Some(why), "before Connected: {bytes:x?}");
        if bytes == length(stranger) {
            continue;
        }
        let connect = packet::Connect { device: format!("d{n}"), ..world.connect("mallory") };
        let (mut raw, _) = Raw::let_in(world.port(), connect).await;
        raw.send(&bytes).await;
        assert_eq!(raw.end().await, Some(why), "in a session: {bytes:x?}");
        bystander.goes_on().await;
    }
}

/// Gets: *malformed*, at any depth, before anything is decoded.
#[tokio::test]
async fn what_nests_too_deep_is_refused() {
    let world = World::new().await;
    let mut bystander = Bystander::new(&world).await;
    // `Response.history.items`, and so on inside of one another, all known: no deeper than eight.
    let mut deep = vec![];
    for _ in 0..1_000 {
        deep = field(1, &deep);
    }
    // Groups, one in another.
    let groups = vec![0x0b; 4_000];
    for body in [deep, groups] {
        assert!(body.len() < limits::PRE_AUTH_FRAME_BYTES_MAX as usize);
        let mut raw = Raw::open(world.port()).await;
        raw.send(&frame(&body)).await;
        assert_eq!(raw.end().await, Some(Reason::Malformed));
        bystander.goes_on().await;
    }
}

/// Gets: nothing at all, and a session that goes on: a later version may have sent it.
#[tokio::test]
async fn what_nobody_knows_is_skipped() {
    let world = World::new().await;
    // Unknown fields beside the known, and unknown members, of a stranger: the handshake goes on.
    let mut raw = Raw::open(world.port()).await;
    raw.send(&frame(&field(99, b"later"))).await;
    let connect = framed(&Kind::Connect(world.connect("mallory")));
    raw.send(&connect).await;
    assert!(matches!(raw.next().await, Some(Kind::Connected(_))));
    let mut flood = Vec::new();
    for number in (20..2_000).step_by(7) {
        flood.extend(frame(&field(number, &[0xff; 40])));
    }
    raw.send(&flood.repeat(50)).await;
    assert!(raw.is_served().await);
}

/// Gets: *unexpected_packet* for each packet that only a broker sends, before it is let in and after.
#[tokio::test]
async fn what_only_a_broker_sends_is_refused_in_each_state() {
    let world = World::new().await;
    let mut bystander = Bystander::new(&world).await;
    let kinds = [
        Kind::Connected(packet::Connected::default()),
        Kind::PublishAck(packet::PublishAck { message_id: 1, ..packet::PublishAck::default() }),
        Kind::Refused(packet::Refused { code: 1, ..packet::Refused::default() }),
        Kind::Deliver(packet::Deliver { n: 1, ..packet::Deliver::default() }),
        Kind::Cursor(packet::Cursor::default()),
        Kind::AckRequest(packet::AckRequest { k: 1 }),
        Kind::Response(packet::Response { id: 1, result: None }),
        Kind::Goaway(packet::Goaway::default()),
    ];
    for (n, kind) in kinds.into_iter().enumerate() {
        let mut raw = Raw::open(world.port()).await;
        raw.say(&kind).await;
        assert_eq!(raw.end().await, Some(Reason::UnexpectedPacket), "before Connect: {kind:?}");
        let connect = packet::Connect { device: format!("d{n}"), ..world.connect("mallory") };
        // Behind `Connect`, while the broker has not answered it yet.
        let mut raw = Raw::open(world.port()).await;
        raw.send(&[framed(&Kind::Connect(connect.clone())), framed(&kind)].concat()).await;
        assert_eq!(raw.end().await, Some(Reason::UnexpectedPacket), "while connecting: {kind:?}");
        let (mut raw, _) = Raw::let_in(world.port(), connect).await;
        raw.say(&kind).await;
        assert_eq!(raw.end().await, Some(Reason::UnexpectedPacket), "in a session: {kind:?}");
    }
    bystander.goes_on().await;
}

/// Gets: *unexpected_packet* for whatever comes before its time, or twice.
#[tokio::test]
async fn packets_before_their_time_are_refused() {
    let world = World::new().await;
    let publish = Kind::Publish(Publish { message_id: 1, ..Publish::default() });
    let request = Kind::Request(packet::Request { id: 1, op: None });
    let ack = Kind::Ack(packet::Ack::default());
    let give_up = Kind::GiveUp(packet::GiveUp { message_id: 1 });
    for kind in [publish, request, ack, give_up] {
        let mut raw = Raw::open(world.port()).await;
        raw.say(&kind).await;
        assert_eq!(raw.end().await, Some(Reason::UnexpectedPacket), "{kind:?}");
    }
    let (mut raw, _) = Raw::let_in(world.port(), world.connect("mallory")).await;
    raw.say(&Kind::Connect(world.connect("mallory"))).await;
    assert_eq!(raw.end().await, Some(Reason::UnexpectedPacket), "a second Connect");
}
