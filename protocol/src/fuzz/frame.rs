//! The target `frame`: the codec, and both sessions fed with whatever it finds.

use bytes::{Bytes, BytesMut};
use tokio_util::codec::Decoder as _;

use crate::{
    BrokerEvent, BrokerLimits, BrokerSession, ClientEvent, ClientSession, Frame, FrameCodec, Lane, MessageId, Millis,
    Reason, Refusal, frame,
    limits::{FRAME_BYTES_CEILING, FRAME_BYTES_MAX, PRE_AUTH_FRAME_BYTES_MAX},
    packet::{self, packet::Kind},
};

/// Any bytes, in any pieces: the first byte says how they are cut and which limit holds, the rest is what arrives.
///
/// # Panics
/// If a frame means something else when its bytes come in pieces, if what was decoded does not survive being encoded
/// and decoded again, if more is reserved than the limit allows, or if a session panics.
pub fn frame(data: &[u8]) {
    let Some((&how, bytes)) = data.split_first() else { return };
    let limit = if how & 0x80 == 0 { PRE_AUTH_FRAME_BYTES_MAX } else { FRAME_BYTES_MAX };
    let whole = decode_all(bytes, bytes.len().max(1), limit);
    let pieces = decode_all(bytes, usize::from(how & 0x7f).max(1), limit);
    assert_eq!(whole, pieces, "the pieces in which bytes arrive must not matter");
    for frame in &whole.0 {
        if let Frame::Packet(kind) = frame {
            let mut wire = BytesMut::new();
            frame::encode(kind, &mut wire);
            assert_eq!(wire.len(), frame::encoded_len(kind));
            // It may be shorter (padding, defaults spelled out) or longer (a negative number in an enumeration).
            let again = FrameCodec::new(FRAME_BYTES_CEILING).decode(&mut wire);
            assert_eq!(again.map(|item| item.map(|(frame, _)| frame)).as_ref(), Ok(&Some(frame.clone())));
        }
    }
    feed_broker(&whole.0);
    feed_client(&whole.0);
}

/// All frames of these bytes when they arrive in pieces, and whether they ended in an error.
fn decode_all(bytes: &[u8], piece: usize, limit: u32) -> (Vec<Frame>, bool) {
    let mut codec = FrameCodec::new(limit);
    let mut buffer = BytesMut::new();
    let mut frames = Vec::new();
    for piece in bytes.chunks(piece) {
        buffer.extend_from_slice(piece);
        loop {
            match codec.decode(&mut buffer) {
                Ok(Some((frame, _))) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
            let reserved_max = 4 * (limit as usize + bytes.len() + 64);
            assert!(buffer.capacity() <= reserved_max, "{} bytes reserved", buffer.capacity());
        }
    }
    (frames, false)
}

/// The broker's session takes whatever frames come after a `Connect` that is let in, with items under way, time that
/// passes and publishes that are answered.
fn feed_broker(frames: &[Frame]) {
    let mut now = Millis(0);
    let mut session = BrokerSession::<u64>::new(now, BrokerLimits::default());
    let mut out = BytesMut::new();
    let connect = packet::Connect { version: 1, device: "d".into(), ..Default::default() };
    if session.handle_frame(now, Frame::Packet(Kind::Connect(connect)), 10).is_ok() {
        session.accept(now, packet::Connected::default());
    }
    let item = Bytes::from_static(&[0x2a, 0x00]);
    for (count, frame) in (1..).zip(frames) {
        // Often enough that an `AckRequest` falls among them.
        now = now.after(6_000);
        for lane in [Lane::Express, Lane::Bulk] {
            if session.room(lane).admits(item.len()) {
                session.deliver(now, lane, count, item.clone());
            }
        }
        session.cursor(Bytes::from_static(b"cursor"));
        let mut event = session.handle_frame(now, frame.clone(), 10).unwrap_or_default();
        while let Some(what) = event {
            match what {
                BrokerEvent::Publish(publish) if publish.message_id % 2 == 0 => {
                    session.acknowledge(packet::PublishAck { message_id: publish.message_id, ..Default::default() })
                }
                BrokerEvent::Publish(publish) => {
                    session.refuse(Refusal::publish(MessageId(publish.message_id), Reason::Overloaded));
                }
                BrokerEvent::Request(request) => session.respond(packet::Response { id: request.id, result: None }),
                BrokerEvent::Resend { lane, from_n, places } => {
                    for (n, _) in (from_n..).zip(places) {
                        session.resend(now, lane, n, &item);
                    }
                }
                _ => {}
            }
            event = session.poll_event();
        }
        let _ = session.handle_deadline(now);
        session.poll_transmit(now, &mut out, 1 << 16);
        out.clear();
    }
}

/// The client's session takes whatever frames come after `Connected`, storing some of what it is handed and failing to
/// store the rest.
fn feed_client(frames: &[Frame]) {
    let mut now = Millis(0);
    let mut session = ClientSession::new(now, packet::Connect { version: 1, device: "d".into(), ..Default::default() });
    let mut out = BytesMut::new();
    let _ = session.handle_frame(now, Frame::Packet(Kind::Connected(packet::Connected::default())), 10);
    for (count, frame) in (1..).zip(frames) {
        now = now.after(6_000);
        let publish = packet::Publish { message_id: count, ..Default::default() };
        if session.publish_room().admits(frame::encoded_len(&Kind::Publish(publish.clone()))) {
            session.publish(publish);
        }
        match session.handle_frame(now, frame.clone(), 10) {
            Ok(Some(ClientEvent::Items { lane, first_n, items })) => {
                assert_eq!(session.next(lane), first_n + items.len() as u64);
                if count % 3 != 0 {
                    session.stored(now, lane, first_n);
                }
            }
            Ok(Some(ClientEvent::AckRequest { k })) if count % 2 == 0 => session.answer(k),
            _ => {}
        }
        let _ = session.handle_deadline(now);
        session.poll_transmit(now, &mut out, 1 << 16);
        out.clear();
    }
}
