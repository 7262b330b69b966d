//! Bad input from peers: a clear refusal, nothing lost, nobody else disturbed.

use bytes::{Bytes, BytesMut};
use longwire::routing::allowance::{Rate, Rates};
use longwire_protocol::packet::{self, Publish};
use longwire_protocol::reason::Reason;
use longwire_protocol::{ClientEvent, limits};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::world::World;

#[tokio::test]
async fn a_payload_above_the_limit_is_refused_and_the_session_goes_on() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let direct = alice.open_direct("bob").await;
    let content = Bytes::from(vec![0; limits::PAYLOAD_BYTES_MAX as usize + 1]);
    let refusal = alice.publish(Publish { conversation: direct, content, ..Publish::default() }).await;
    assert_eq!(refusal.expect_err("too large").reason, Reason::PayloadTooLarge);
    let content = Bytes::from(vec![7; limits::PAYLOAD_BYTES_MAX as usize]);
    alice.publish(Publish { conversation: direct, content, ..Publish::default() }).await.expect("just fits");
}

#[tokio::test]
async fn garbage_before_the_handshake_is_closed_with_a_reason() {
    let world = World::new().await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 16], &[0x80, 0x00], b"\x10\x00\x00\x00\x00"] {
        let mut socket = world.socket().await;
        socket.write_all(garbage).await.expect("sent");
        socket.shutdown().await.expect("closed");
        let mut answer = BytesMut::new();
        while socket.read_buf(&mut answer).await.unwrap_or(0) > 0 {}
        assert!(answer.len() < 200, "{garbage:?}");
    }
    world.user("alice").await;
}

#[tokio::test]
async fn before_authentication_only_connect_is_taken() {
    let world = World::new().await;
    let mut socket = world.socket().await;
    let mut out = BytesMut::new();
    let publish = packet::packet::Kind::Publish(Publish { message_id: 1, ..Publish::default() });
    longwire_protocol::frame::encode(&publish, &mut out);
    socket.write_all(&out).await.expect("sent");
    let mut answer = BytesMut::new();
    while socket.read_buf(&mut answer).await.unwrap_or(0) > 0 {}
    use tokio_util::codec::Decoder as _;
    let (frame, _) = longwire_protocol::FrameCodec::default().decode(&mut answer).expect("a frame").expect("whole");
    let longwire_protocol::Frame::Packet(packet::packet::Kind::Refused(refused)) = frame else { panic!("{frame:?}") };
    assert_eq!(refused.code, Reason::UnexpectedPacket.number());
}

/// S7: a refusal in the middle of a window; what follows in that conversation waits for it, others go on.
#[tokio::test]
async fn s7_a_refusal_for_good_in_the_middle_of_a_window_lets_the_rest_through() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let direct = alice.open_direct("bob").await;
    for (id, conversation) in [(2, direct), (3, direct + 4096), (4, direct), (5, direct + 4096), (6, direct)] {
        let content = Bytes::from(id.to_string());
        alice.session.publish(Publish { conversation, message_id: id, content, ..Publish::default() });
    }
    let mut answers = Vec::new();
    while answers.len() < 5 {
        match alice.event().await.expect("the connection holds") {
            ClientEvent::PublishAck(ack) => answers.push((ack.message_id, Ok(ack.seq))),
            ClientEvent::Refused(refusal) => answers.push((refusal.message_id.0, Err(refusal.reason))),
            _ => {}
        }
    }
    let unknown = Err(Reason::UnknownConversation);
    assert_eq!(answers, [(2, Ok(1)), (3, unknown), (4, Ok(2)), (5, unknown), (6, Ok(3))]);
}

#[tokio::test]
async fn the_largest_numbers_of_the_wire_do_no_harm() {
    let world = World::new().await;
    let refusal = world.refused(packet::Connect { incarnation: u64::MAX, ..world.connect("alice") }).await;
    assert_eq!(refusal.reason, Reason::InvalidArgument);
    let mut alice = world.user("alice").await;
    let group = alice.create_group("g", &["bob"]).await;
    let max = u64::MAX;
    let members = packet::MembersRequest { conversation: group, after_user: max, limit: u32::MAX };
    let packet::response::Result::Members(page) =
        alice.ask(packet::request::Op::Members(members)).await.expect("a page")
    else {
        panic!("no page")
    };
    assert_eq!((page.members.len(), page.next), (0, 0));
    for (backwards, entries) in [(true, 2), (false, 0)] {
        let page =
            packet::HistoryRequest { conversation: group, from_seq: max, limit: u32::MAX, backwards, compact: false };
        assert_eq!(alice.history(page).await.expect("a page").items.len(), entries);
    }
    let mark = packet::publish::Action::SetMark(packet::SetMark { seq: max });
    assert_eq!(alice.act(group, mark).await.expect("the head").seq, 2);
    let publish = |message_id, first_unanswered| Publish {
        conversation: max,
        message_id,
        first_unanswered,
        ..Publish::default()
    };
    for (id, first, reason) in [
        (max, 1, Reason::IdSpanExceeded),
        (max, max, Reason::UnknownConversation),
        // The client has said itself that everything below is answered.
        (3, 0, Reason::StaleId),
    ] {
        assert_eq!(alice.publish_as(publish(id, first)).await.expect_err("refused").reason, reason, "{id}, {first}");
    }
    world.user("bob").await.open_direct("alice").await;
}

#[tokio::test]
async fn too_many_devices_and_strange_names_are_refused() {
    let world = World::new().await;
    for n in 0..20 {
        world.wire(packet::Connect { device: format!("d{n}"), ..world.connect("alice") }).await;
    }
    let refusal = world.refused(packet::Connect { device: "one more".into(), ..world.connect("alice") }).await;
    assert!(matches!(refusal.reason, Reason::QuotaExceeded | Reason::InvalidArgument), "{refusal}");
    let refusal = world.refused(packet::Connect { device: "d20".into(), ..world.connect("alice") }).await;
    assert_eq!(refusal.reason, Reason::QuotaExceeded);
    let mut bob = world.user("bob").await;
    for name in ["", "a\nb", &"x".repeat(65)] {
        let open = packet::publish::Action::OpenDirect(packet::OpenDirect { user: name.into() });
        assert_eq!(bob.act(0, open).await.expect_err("no name").reason, Reason::InvalidArgument, "{name:?}");
    }
}

#[tokio::test]
async fn nobody_new_is_let_in_while_the_process_takes_more_memory_than_it_shall() {
    let mut world = World::new().await;
    let mut alice = world.user("alice").await;
    world.stop().await;
    drop(alice);
    world.accept.memory_bytes = Some(1 << 40);
    world.start().await;
    alice = world.user("alice").await;
    alice.open_direct("bob").await;
    world.stop().await;
    world.accept.memory_bytes = Some(1);
    world.start().await;
    // The first look at the memory comes at once, though not before this connects.
    loop {
        let mut socket = world.socket().await;
        let sent = socket.write_all(b"\x01").await;
        let mut byte = [0];
        let read = tokio::time::timeout(std::time::Duration::from_millis(200), socket.read(&mut byte)).await;
        if sent.is_err() || matches!(read, Ok(Ok(0) | Err(_))) {
            break;
        }
    }
}

/// SPEC R5.3-5: what comes beyond a rate is told to wait, on whichever connection; a stranger takes nothing of a
/// conversation's share, and is told the same as of one that is at rest.
#[tokio::test]
async fn beyond_a_rate_publishes_wait_and_strangers_take_nothing_of_it() {
    let mut world = World::new().await;
    world.rates =
        Rates { user: Some(Rate::of_publishes(20)), conversation: Some(Rate::of_publishes(3)), ..Rates::default() };
    world.restart().await;
    let mut alice = world.user("alice").await;
    let direct = alice.open_direct("bob").await;
    let message = || Publish { conversation: direct, content: Bytes::from_static(b"hello"), ..Publish::default() };
    let mut mallory = world.user("mallory").await;
    let mut strangers = 0;
    let refusal = loop {
        let refusal = mallory.publish(message()).await.expect_err("not a member");
        if refusal.reason != Reason::UnknownConversation || strangers == 10_000 {
            break refusal;
        }
        strangers += 1;
    };
    assert!(strangers >= 190 && refusal.reason == Reason::RateLimited, "{strangers}, {refusal:?}");
    let mut members = 0;
    let refusal = loop {
        match alice.publish(message()).await {
            Err(refusal) if refusal.reason != Reason::StoreUnavailable => break refusal,
            _ => members += 1,
        }
        assert!(members < 10_000, "it goes on and on");
    };
    assert!(members >= 30 && refusal.reason == Reason::RateLimited, "{members}, {refusal:?}");
    assert!((1..=400).contains(&refusal.retry_after_ms), "{}", refusal.retry_after_ms);
    let other = alice.open_direct("carol").await;
    alice.say(other, "elsewhere there is room").await;
}
