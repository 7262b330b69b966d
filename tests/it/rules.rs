//! Rules of SPEC.md that only a broker can break, and that no story of the other files comes by.

use std::time::Duration;

use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, CursorVerdict, ResetReason, Role, StartKind};
use longwire_protocol::reason::Reason;
use tokio::io::AsyncReadExt as _;

use crate::world::{World, texts};

/// SPEC R2-3: who says nothing is not kept.
#[tokio::test]
async fn a_socket_that_says_nothing_is_closed() {
    let world = World::new().await;
    let mut socket = world.socket().await;
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(20), socket.read_to_end(&mut answer)).await;
    // Ended, or reset with what was not read.
    drop(closed.expect("closed in time"));
}

/// SPEC R5.5-2, R5.5-3: a user that nobody has seen is made, and is the same when it comes; what two open is one.
#[tokio::test]
async fn who_was_never_seen_is_made_by_being_named() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let direct = alice.open_direct("nobody-yet").await;
    alice.say(direct, "for when you come").await;
    let mut late = world.wire(packet::Connect { device: "first".into(), ..world.connect("nobody-yet") }).await;
    assert_eq!(late.open_direct("alice").await, direct);
    let conversations = late.conversations().await;
    assert_eq!(conversations.iter().map(|c| (c.id, c.unread)).collect::<Vec<_>>(), [(direct, 1)]);
    // With oneself, too.
    let own = alice.open_direct("alice").await;
    assert_eq!(alice.open_direct("alice").await, own);
    alice.say(own, "a note").await;
}

/// SPEC R5.5-4, R5.5-6: naming someone twice counts once, and what changes nothing writes nothing.
#[tokio::test]
async fn what_changes_nothing_is_acked_and_writes_no_entry() {
    let world = World::new().await;
    let (mut alice, _bob) = (world.user("alice").await, world.user("bob").await);
    let group = alice.create_group("g", &["bob", "alice", "bob"]).await;
    let page = packet::HistoryRequest { conversation: group, from_seq: 1, limit: 10, backwards: false, compact: false };
    assert_eq!(alice.history(page).await.expect("history").items.len(), 2, "one entry for each member");
    for (user, role) in [("bob", Role::Member), ("carol", Role::None)] {
        let ack = alice.set_role(group, user, role).await.expect("acked");
        assert_eq!(ack.seq, 2, "the head, since nothing was written");
    }
    assert_eq!(alice.history(page).await.expect("history").items.len(), 2);
}

/// SPEC R5.5-7, R5.5-8: what is for groups is refused elsewhere, and names have their shape.
#[tokio::test]
async fn an_action_in_the_wrong_place_is_refused() {
    let world = World::new().await;
    let mut claims = world.claims("alice");
    (claims.read, claims.publish) = (vec!["**".into()], vec!["**".into()]);
    let mut alice = world.wire(packet::Connect { token: world.token(&claims), ..world.connect("alice") }).await;
    let (direct, group) = (alice.open_direct("bob").await, alice.create_group("g", &[]).await);
    let channel = alice.open_channel("a/b").await.expect("opened");
    let label = |label: &str| Action::SetLabel(packet::SetLabel { label: label.into() });
    let role = || Action::SetRole(packet::SetRole { user: "bob".into(), role: Role::Member.into() });
    let (join, leave) = (|| Action::Join(packet::Join::default()), || Action::Leave(packet::Leave {}));
    let mark = || Action::SetMark(packet::SetMark { seq: 1 });
    for (conversation, action, reason) in [
        (direct, label("x"), Reason::InvalidArgument),
        (direct, role(), Reason::InvalidArgument),
        (channel, label("x"), Reason::InvalidArgument),
        (channel, role(), Reason::InvalidArgument),
        (direct, join(), Reason::Forbidden),
        (group, Action::SetJoinKey(packet::SetJoinKey { key: b"short"[..].into() }), Reason::InvalidArgument),
        (direct, leave(), Reason::Forbidden),
        (channel, mark(), Reason::Forbidden),
        (group, label("line\nfeed"), Reason::InvalidArgument),
        (group, label(&"x".repeat(257)), Reason::InvalidArgument),
    ] {
        let said = format!("{action:?}");
        let refusal = alice.act(conversation, action).await.expect_err(&said);
        assert_eq!(refusal.reason, reason, "{said}");
    }
    for name in ["", "/a", "a//b", "a/", "a/*", "tab\t", &"x".repeat(257)] {
        assert_eq!(alice.open_channel(name).await.expect_err(name).reason, Reason::InvalidArgument, "{name:?}");
    }
}

/// SPEC R6.5-6: who asks for the tail and acks nothing has lost nothing.
#[tokio::test]
async fn a_reset_replaces_the_stored_cursor_only_once_something_is_acked() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let (direct, _) = world.away(&mut alice, "bob").await;
    alice.say(direct, "while away").await;
    let start = |start: StartKind| packet::Connect { start: start.into(), ..world.connect("bob") };
    let fresh = world.wire(start(StartKind::Fresh)).await;
    let verdict = (fresh.connected.cursor(), fresh.connected.reset_reason());
    assert_eq!(verdict, (CursorVerdict::Reset, ResetReason::Asked));
    drop(fresh);
    let mut stored = world.wire(start(StartKind::StoredCursor)).await;
    assert_eq!(stored.connected.cursor(), CursorVerdict::Resumed);
    let items = stored.caught_up().await;
    assert_eq!(texts(&items), ["while away"]);
}

/// SPEC R12-2: a token holds for the session, not for `Connect` alone.
#[tokio::test]
async fn a_session_ends_with_its_token() {
    let world = World::new().await;
    let mut claims = world.claims("alice");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    claims.exp = now + 2;
    let mut alice = world.wire(packet::Connect { token: world.token(&claims), ..world.connect("alice") }).await;
    assert_eq!(alice.ended().await.reason, Reason::TokenExpired);
}

/// SPEC R5.4-2: what overtook an id in its conversation makes it stale, and in no other.
#[tokio::test]
async fn an_id_below_a_stored_one_is_stale_in_that_conversation_alone() {
    let world = World::new().await;
    let (mut alice, _bob, direct) = world.pair().await;
    let other = alice.open_direct("carol").await;
    let first = alice.next_id;
    let message = |conversation, message_id| packet::Publish {
        conversation,
        message_id,
        first_unanswered: first,
        content: "x".into(),
        ..packet::Publish::default()
    };
    alice.publish_as(message(direct, first + 2)).await.expect("acked");
    let refusal = alice.publish_as(message(direct, first)).await.expect_err("overtaken");
    assert_eq!(refusal.reason, Reason::StaleId);
    alice.publish_as(message(other, first + 1)).await.expect("acked");
}

/// SPEC R5.4-2: what is hidden or set for a conversation is in order with what is published there, though the inbox is told
/// of it; and not with what the user says of itself.
#[tokio::test]
async fn what_is_hidden_or_set_counts_in_the_conversation_that_it_names() {
    let world = World::new().await;
    let (mut alice, _bob, direct) = world.pair().await;
    let seq = alice.say(direct, "hide me").await.seq;
    let hide = |undo| Action::Hide(packet::Hide { seq, undo });
    let settings = packet::Settings { pinned: true, ..Default::default() };
    let set = || Action::SetSettings(packet::SetSettings { settings: Some(settings) });
    let profile = |name: &str| {
        let profile = packet::Profile { display_name: name.into(), ..Default::default() };
        Action::SetProfile(packet::SetProfile { profile: Some(profile) })
    };
    // What makes an entry, and what changes nothing.
    for (n, action) in [hide(false), hide(false), set(), set()].into_iter().enumerate() {
        let id = alice.next_id;
        alice.next_id += 3;
        let publish = |message_id, conversation, action| packet::Publish {
            conversation,
            message_id,
            first_unanswered: id,
            action,
            ..packet::Publish::default()
        };
        alice.publish_as(publish(id + 2, direct, Some(action))).await.expect("acked");
        let own = publish(id, 0, Some(profile(&format!("Alice {n}"))));
        alice.publish_as(own).await.expect("in order with what she says of herself");
        let refusal = alice.publish_as(publish(id + 1, direct, None)).await.expect_err("overtaken");
        assert_eq!(refusal.reason, Reason::StaleId, "step {n}");
    }
}
