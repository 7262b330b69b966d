//! Who has a token, and misuses what it allows.

use bytes::Bytes;
use longwire::auth::Claims;
use longwire::store::MemoryLog;
use longwire_protocol::packet::packet::Kind;
use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, Publish, StartKind, Window, request};
use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::{frame, limits};
use tokio::io::AsyncWriteExt as _;

use super::{Bystander, Raw, framed};
use crate::world::{World, texts};

fn message(id: u64, conversation: u64) -> Kind {
    Kind::Publish(Publish { message_id: id, conversation, content: Bytes::from_static(b"x"), ..Publish::default() })
}

/// Gets: *ack_of_the_unsent* for the future, *unexpected_packet* for an answer that was not asked for.
#[tokio::test]
async fn acks_of_what_was_not_sent_end_the_session() {
    let world = World::new().await;
    for (n, (ack, why)) in [
        (packet::Ack { express: 1 << 40, ..packet::Ack::default() }, Reason::AckOfTheUnsent),
        (packet::Ack { bulk: u64::MAX, ..packet::Ack::default() }, Reason::AckOfTheUnsent),
        (packet::Ack { answer: 1, ..packet::Ack::default() }, Reason::UnexpectedPacket),
        (packet::Ack { answer: u64::MAX, ..packet::Ack::default() }, Reason::UnexpectedPacket),
    ]
    .into_iter()
    .enumerate()
    {
        let connect = packet::Connect { device: format!("d{n}"), ..world.connect("mallory") };
        let (mut raw, _) = Raw::let_in(world.port(), connect).await;
        raw.say(&Kind::Ack(ack)).await;
        assert_eq!(raw.end().await, Some(why), "{ack:?}");
    }
}

/// Gets: an answer to a heartbeat now and then, and nothing else. Costs: the reading. Others: go on, and so does the
/// session that floods.
#[tokio::test]
async fn floods_of_what_needs_no_answer_are_only_read() {
    let world = World::new().await;
    let mut bystander = Bystander::new(&world).await;
    let (mut raw, _) = Raw::let_in(world.port(), world.connect("mallory")).await;
    let ack = framed(&Kind::Ack(packet::Ack { express: 0, bulk: 0, answer: 0 }));
    let give_up = framed(&Kind::GiveUp(packet::GiveUp { message_id: 1 << 50 }));
    for flood in [vec![frame::HEARTBEAT; 1 << 18], ack.repeat(50_000), give_up.repeat(50_000)] {
        for part in flood.chunks(1 << 14) {
            raw.send(part).await;
        }
        bystander.goes_on().await;
    }
    assert!(raw.is_served().await, "the flood itself broke no rule");
    bystander.goes_on().await;
}

/// Gets: *window_exceeded*. Costs: a window of publishes. Others: go on.
#[tokio::test]
async fn who_publishes_beyond_the_window_is_ended() {
    let world = World::new().await;
    let mut bystander = Bystander::new(&world).await;
    let (mut raw, connected) = Raw::let_in(world.port(), world.connect("mallory")).await;
    let window = connected.publish.expect("a window");
    let all: Vec<u8> = (1..=u64::from(window.items) * 2).flat_map(|id| framed(&message(id, 4096)).to_vec()).collect();
    raw.send(&all).await;
    assert_eq!(raw.end().await, Some(Reason::WindowExceeded));
    bystander.goes_on().await;
}

/// Gets: *window_exceeded* for a ninth request, *invalid_argument* for one that is too long, *unsupported* for none.
#[tokio::test]
async fn requests_have_a_window_and_a_size() {
    let world = World::new().await;
    let mut bystander = Bystander::new(&world).await;
    let (mut raw, _) = Raw::let_in(world.port(), world.connect("mallory")).await;
    let users = packet::UsersRequest { users: vec![u64::MAX; limits::USERS_MAX] };
    let request = |id, op| framed(&Kind::Request(packet::Request { id, op }));
    for id in 1..=3 {
        let long = packet::RefreshRequest { token: "x".repeat(5_000) };
        raw.send(&request(id, Some(request::Op::Refresh(long)))).await;
        assert_eq!(raw.refused().await, Some(Reason::InvalidArgument));
        raw.send(&request(id, None)).await;
        assert_eq!(raw.refused().await, Some(Reason::Unsupported));
    }
    let many: Vec<u8> = (1..200).flat_map(|id| request(id, Some(request::Op::Users(users.clone()))).to_vec()).collect();
    raw.send(&many).await;
    assert_eq!(raw.end().await, Some(Reason::WindowExceeded));
    bystander.goes_on().await;
}

/// Gets: its window and no more. Costs: that window. Others: get everything; and so does it, once it comes back.
#[tokio::test]
async fn who_never_acks_holds_up_nobody_else() {
    const MESSAGES: usize = 300;
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let window = Window { items: 8, bytes: 4_096 };
    let lazy = packet::Connect { express: Some(window), bulk: Some(window), ..world.connect("mallory") };
    let (mut raw, _) = Raw::let_in(world.port(), lazy.clone()).await;
    let mut carol = world.user("carol").await;
    let group = alice.create_group("all", &["mallory", "carol"]).await;
    for n in 0..MESSAGES {
        alice.say(group, &n.to_string()).await;
    }
    let last = (MESSAGES - 1).to_string();
    let got = carol.until(|item| texts(std::slice::from_ref(item)) == [last.as_str()]).await;
    assert_eq!(texts(&got).len(), MESSAGES, "others get everything meanwhile");
    // What it was sent lies before the answer to this request.
    let op = request::Op::Users(packet::UsersRequest::default());
    raw.say(&Kind::Request(packet::Request { id: 1, op: Some(op) })).await;
    let mut items = 0;
    loop {
        match raw.next().await.expect("it is served") {
            Kind::Deliver(deliver) => items += deliver.items.len(),
            Kind::Response(_) => break,
            _ => {}
        }
    }
    assert!(items <= 2 * window.items as usize, "{items} items were sent unacked");
    drop(raw);
    let back = packet::Connect {
        start: StartKind::StoredCursor.into(),
        catch_up: packet::CatchUpMode::All.into(),
        device: "phone".into(),
        ..world.connect("mallory")
    };
    let page = world.wire(back).await.pages(group, 200, false).await;
    let all: usize = page.iter().map(|page| texts(&page.items).len()).sum();
    assert_eq!(all, MESSAGES, "nothing is lost for it");
}

/// Gets: what its socket takes. Costs: a TLS record, an answer, its window. Others: go on.
#[tokio::test]
async fn who_never_reads_holds_up_nobody_else() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let mut carol = world.user("carol").await;
    let (mut raw, _) = Raw::let_in(world.port(), world.connect("mallory")).await;
    let group = alice.create_group("all", &["mallory", "carol"]).await;
    let text = "x".repeat(100_000);
    for _ in 0..40 {
        alice.say(group, &text).await;
        carol.entry(group).await;
        // It says that it is there, and reads nothing.
        let _full = raw.socket.write_all(&[frame::HEARTBEAT]).await;
    }
}

/// Gets: *quota_exceeded* for a 101st channel, *malformed* for a list beyond its limit; a group of 1,000 is made.
#[tokio::test]
async fn bombs_end_at_their_quotas() {
    let world = World::new().await;
    let mut bystander = Bystander::new(&world).await;
    let all = || vec!["**".to_owned()];
    let claims = Claims { publish: all(), read: all(), ..world.claims("mallory") };
    let connect = packet::Connect { token: world.token(&claims), ..world.connect("mallory") };
    let mut mallory = world.wire(connect).await;
    let watch = |conversation, stop| request::Op::Watch(packet::WatchRequest { conversation, stop });
    let mut channels = Vec::new();
    for n in 0..=limits::WATCHES_MAX {
        channels.push(mallory.open_channel(&format!("c/{n}")).await.expect("opened"));
    }
    for channel in &channels[1..] {
        // Twice is once.
        mallory.ask(watch(*channel, false)).await.expect("watched");
        mallory.ask(watch(*channel, false)).await.expect("watched");
    }
    let refusal = mallory.ask(watch(channels[0], false)).await.expect_err("one too many");
    assert_eq!(refusal.reason, Reason::QuotaExceeded);
    mallory.ask(watch(channels[1], true)).await.expect("let go");
    mallory.ask(watch(channels[0], false)).await.expect("there is room again");
    bystander.goes_on().await;

    let users = |n: usize| (0..n).map(|n| format!("u{n}")).collect();
    let create =
        |n| Action::CreateGroup(packet::CreateGroup { label: "g".into(), users: users(n), ..Default::default() });
    mallory.act(0, create(limits::GROUP_USERS_MAX)).await.expect("a large group");
    bystander.goes_on().await;
    let connect = packet::Connect { device: "second".into(), ..world.connect("mallory") };
    let (mut raw, _) = Raw::let_in(world.port(), connect).await;
    let action = Some(create(limits::GROUP_USERS_MAX + 1));
    raw.say(&Kind::Publish(Publish { message_id: 1, action, ..Publish::default() })).await;
    assert_eq!(raw.end().await, Some(Reason::Malformed));
    bystander.goes_on().await;
}

/// Gets: acks. Costs: the same for the last as for the first. Others: recall what they said, as before; each such pair was a
/// stretch that stayed, and after 10,000 nobody recalled anything there any more.
#[tokio::test]
async fn expiring_messages_beside_others_take_recalls_from_nobody() {
    let world = World::with_log(Box::new(MemoryLog::new(1_700_000_000_000, usize::MAX))).await;
    let mut bystander = Bystander::new(&world).await;
    let mut alice = world.wire(world.connect("alice")).await;
    let mut mallory = world.wire(world.connect("mallory")).await;
    let group = alice.create_group("g", &["mallory"]).await;
    let said = alice.say(group, "to be recalled").await;
    let beside = packet::Beside { expires_in_ms: 1, ..packet::Beside::default() };
    let mut stored = 0;
    while stored < 20_100 {
        let first = mallory.next_id;
        for message_id in first..first + 50 {
            let content = Bytes::from_static(b"x");
            let beside = (message_id % 2 == 0).then(|| Box::new(beside.clone()));
            let message = Publish { conversation: group, message_id, content, beside, ..Publish::default() };
            mallory.session.publish(Publish { first_unanswered: first, ..message });
        }
        mallory.next_id += 50;
        for message_id in first..first + 50 {
            mallory.answer(message_id).await.expect("acked");
        }
        stored += 50;
        if stored % 2_000 == 0 {
            bystander.goes_on().await;
        }
    }
    alice.act(group, Action::Recall(packet::Recall { seq: said.seq })).await.expect("recalled");
    bystander.goes_on().await;
}

/// Gets: *invalid_argument* for labels that hold controls or too much, *payload_too_large* for content; the session goes
/// on.
#[tokio::test]
async fn what_is_too_large_or_strange_is_refused_and_the_session_goes_on() {
    let world = World::new().await;
    let mut mallory = world.user("mallory").await;
    let long = "x".repeat(limits::LABEL_BYTES_MAX + 1);
    for label in ["a\0b", "\u{1b}]0;title\u{7}", "a\nb", &long] {
        let create =
            Action::CreateGroup(packet::CreateGroup { label: label.into(), users: vec![], ..Default::default() });
        assert_eq!(mallory.act(0, create).await.expect_err("no label").reason, Reason::InvalidArgument, "{label:?}");
    }
    let group = mallory.create_group("g", &[]).await;
    let content = Bytes::from(vec![0; limits::PAYLOAD_BYTES_MAX as usize + 1]);
    let refusal = mallory.publish(Publish { conversation: group, content, ..Publish::default() }).await;
    assert_eq!(refusal.expect_err("too large").reason, Reason::PayloadTooLarge);
    mallory.say(group, "still here").await;
}

/// A half that is closed ends the connection; what was published before is stored.
#[tokio::test]
async fn a_half_closed_connection_ends_and_what_came_before_is_stored() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let direct = alice.open_direct("mallory").await;
    let (mut raw, _) = Raw::let_in(world.port(), world.connect("mallory")).await;
    // The first has what it is decided by loaded; who leaves meanwhile has no answer, and no promise.
    raw.say(&message(1, direct)).await;
    assert_eq!(alice.entry(direct).await.seq, 1);
    raw.say(&message(2, direct)).await;
    raw.socket.shutdown().await.expect("half closed");
    assert_eq!(raw.end().await, None);
    assert_eq!(alice.entry(direct).await.seq, 2);
}

/// Gets: *quota_exceeded* beyond 500 users, *unknown_conversation* and *forbidden* for what is not its to know; and it is told
/// nothing of that. Costs: what 500 users take. Others: go on.
#[tokio::test]
async fn who_follows_everything_is_bounded_and_told_nothing_that_it_may_not_know() {
    let world = World::new().await;
    let mut bystander = Bystander::new(&world).await;
    let (mut alice, mut carol) = (world.user("alice").await, world.user("carol").await);
    let claims = Claims { read: vec!["news".into()], ..world.claims("mallory") };
    let mut mallory = world.wire(packet::Connect { token: world.token(&claims), ..world.connect("mallory") }).await;
    let theirs = alice.create_group("theirs", &["carol"]).await;
    let reason = |answer: Result<Vec<packet::Mark>, Refusal>| answer.map(|marks| marks.len()).map_err(|no| no.reason);
    for conversation in (1..400).map(|n| n * 4_096).chain([theirs, bystander.direct, u64::MAX]) {
        assert_eq!(reason(mallory.follow(conversation).await), Err(Reason::UnknownConversation), "{conversation}");
    }
    let open = packet::OpenChannel { name: "news".into() };
    let channel = mallory.act(0, Action::OpenChannel(open)).await.expect("opened").conversation;
    assert_eq!(reason(mallory.follow(channel).await), Err(Reason::UnknownConversation));
    mallory.act(channel, Action::Join(packet::Join::default())).await.expect("a reader");
    assert_eq!(reason(mallory.follow(channel).await), Err(Reason::Forbidden));
    let mut groups = Vec::new();
    for group in 0..3 {
        let users: Vec<String> = (0..199).map(|user| format!("u{group}-{user}")).collect();
        groups.push(mallory.create_group("many", &users.iter().map(String::as_str).collect::<Vec<_>>()).await);
    }
    assert_eq!(reason(mallory.follow(groups[0]).await), Ok(200));
    assert_eq!(reason(mallory.follow(groups[1]).await), Ok(200));
    for _ in 0..50 {
        assert_eq!(reason(mallory.follow(groups[2]).await), Err(Reason::QuotaExceeded));
        bystander.goes_on().await;
    }
    mallory.unfollow(groups[0]).await;
    assert_eq!(reason(mallory.follow(groups[2]).await), Ok(200), "there is room again");

    // What is told is its own alone: the next is, though much is delivered elsewhere.
    for text in ["not", "for", "mallory"] {
        alice.say(theirs, text).await;
    }
    carol.until(|item| texts(std::slice::from_ref(item)) == ["mallory"]).await;
    carol.flush().await;
    let direct = mallory.open_direct("carol").await;
    assert_eq!(reason(mallory.follow(direct).await), Ok(2));
    mallory.say(direct, "hello").await;
    carol.until(|item| texts(std::slice::from_ref(item)) == ["hello"]).await;
    carol.flush().await;
    assert_eq!(mallory.told().await, (direct, carol.connected.user, 1));
    bystander.goes_on().await;
}
