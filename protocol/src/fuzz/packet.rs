//! The target `packet`: every packet keeps its meaning, and its lists keep to their limits.

use bytes::{BufMut as _, BytesMut};
use tokio_util::codec::Decoder as _;

use crate::{
    Frame, FrameCodec, frame,
    limits::{DELIVER_ITEMS_MAX, FEATURES_MAX, FRAME_BYTES_CEILING, GROUP_USERS_MAX, PAGE_ITEMS_MAX, USERS_MAX},
    packet::{packet::Kind, publish::Action, request::Op, response::Result as Answer},
    varint,
};

/// Any bytes as the body of one frame, whose length is right.
///
/// # Panics
/// If a packet that is accepted breaks a limit of its lists, or does not survive being encoded and decoded again.
pub fn packet(data: &[u8]) {
    let mut wire = BytesMut::new();
    varint::write(data.len() as u64, &mut wire);
    wire.put_slice(data);
    let Ok(Some((frame, bytes))) = FrameCodec::new(FRAME_BYTES_CEILING).decode(&mut wire) else { return };
    assert!(wire.is_empty() && bytes > data.len(), "a frame is taken whole");
    let Frame::Packet(kind) = frame else { return };
    check_lists(&kind);

    let mut once = BytesMut::new();
    frame::encode(&kind, &mut once);
    assert_eq!(once.len(), frame::encoded_len(&kind));
    let written = once.clone();
    let again = FrameCodec::new(FRAME_BYTES_CEILING).decode(&mut once).expect("what was encoded decodes");
    let Some((Frame::Packet(again), _)) = again else { panic!("a packet stays a packet: {again:?}") };
    assert_eq!(again, kind);
    let mut twice = BytesMut::new();
    frame::encode(&again, &mut twice);
    assert_eq!(twice, written, "encoding is a function of the packet");
}

fn check_lists(kind: &Kind) {
    let (count, max) = match kind {
        Kind::Connect(connect) => (connect.features.len(), FEATURES_MAX),
        Kind::Connected(connected) => (connected.features.len(), FEATURES_MAX),
        Kind::Deliver(deliver) => (deliver.items.len(), DELIVER_ITEMS_MAX),
        Kind::Publish(publish) => match &publish.action {
            Some(Action::CreateGroup(group)) => (group.users.len(), GROUP_USERS_MAX),
            _ => (0, 0),
        },
        Kind::Request(request) => match &request.op {
            Some(Op::Users(users)) => (users.users.len(), USERS_MAX),
            _ => (0, 0),
        },
        Kind::Response(response) => match &response.result {
            Some(Answer::History(page)) => (page.items.len(), PAGE_ITEMS_MAX),
            Some(Answer::Conversations(page)) => (page.conversations.len(), PAGE_ITEMS_MAX),
            Some(Answer::Members(page)) => (page.members.len(), PAGE_ITEMS_MAX),
            Some(Answer::Users(page)) => (page.users.len(), PAGE_ITEMS_MAX),
            _ => (0, 0),
        },
        _ => (0, 0),
    };
    assert!(count <= max, "{count} in a list where {max} are the most");
}
