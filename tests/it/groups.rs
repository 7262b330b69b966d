//! Groups: membership, roles, what who may see.

use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::request::Op;
use longwire_protocol::packet::{self, Role, StartKind, item};
use longwire_protocol::reason::Reason;

use crate::world::{Wire, World, entry, texts};

#[tokio::test]
async fn roles_decide_who_may_do_what() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let (mut bob, mut carol) = (world.user("bob").await, world.user("carol").await);
    let group = alice.create_group("g", &["bob"]).await;
    let reason = |answer: Result<packet::PublishAck, longwire_protocol::Refusal>| answer.expect_err("refused").reason;
    let label = || Action::SetLabel(packet::SetLabel { label: "new".into() });
    // Outsiders cannot tell it from one that is not there.
    let outsider = carol.act(group, label()).await;
    let nowhere = carol.act(group + 4096, label()).await;
    assert_eq!((reason(outsider), reason(nowhere)), (Reason::UnknownConversation, Reason::UnknownConversation));
    // Members talk, and no more.
    bob.say(group, "hello").await;
    assert_eq!(reason(bob.act(group, label()).await), Reason::Forbidden);
    assert_eq!(reason(bob.set_role(group, "carol", Role::Member).await), Reason::Forbidden);
    // Admins decide about members, the owner about admins.
    alice.set_role(group, "bob", Role::Admin).await.expect("promoted");
    bob.set_role(group, "carol", Role::Member).await.expect("added");
    bob.act(group, label()).await.expect("labelled");
    assert_eq!(reason(bob.set_role(group, "carol", Role::Admin).await), Reason::Forbidden);
    assert_eq!(reason(bob.set_role(group, "alice", Role::None).await), Reason::Forbidden);
    assert_eq!(reason(alice.set_role(group, "alice", Role::Member).await), Reason::InvalidArgument);
    // A reader reads.
    alice.set_role(group, "carol", Role::Reader).await.expect("demoted");
    let content = bytes::Bytes::from_static(b"psst");
    let publish = packet::Publish { conversation: group, content, ..packet::Publish::default() };
    assert_eq!(reason(carol.publish(publish).await), Reason::Forbidden);
    // The owner hands over before leaving.
    assert_eq!(reason(alice.act(group, Action::Leave(packet::Leave {})).await), Reason::Forbidden);
    alice.set_role(group, "bob", Role::Owner).await.expect("handed over");
    alice.act(group, Action::Leave(packet::Leave {})).await.expect("left");
    assert_eq!(reason(alice.act(group, label()).await), Reason::UnknownConversation);
    let request = packet::MembersRequest { conversation: group, after_user: 0, limit: 10 };
    let packet::response::Result::Members(page) =
        bob.ask(packet::request::Op::Members(request)).await.expect("members")
    else {
        panic!("no members")
    };
    let mut members: Vec<_> = page.members.iter().map(|m| (m.name.as_str(), m.role())).collect();
    members.sort_unstable();
    assert_eq!(members, [("bob", Role::Owner), ("carol", Role::Reader)]);
}

/// SPEC R7-4.
#[tokio::test]
async fn the_removal_is_the_last_thing_that_a_removed_member_sees() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let mut bob = world.user("bob").await;
    let group = alice.create_group("g", &["bob"]).await;
    alice.say(group, "before").await;
    let removal = alice.set_role(group, "bob", Role::None).await.expect("removed").seq;
    alice.say(group, "after").await;
    let is_left =
        |item: &packet::Item| matches!(&item.kind, Some(item::Kind::Entry(e)) if e.kind() == packet::EntryKind::Left);
    bob.until(is_left).await;
    // Live: nothing above the removal. By history: neither.
    let direct = alice.open_direct("bob").await;
    alice.say(direct, "a fence").await;
    let items = bob.until(|item| entry(item).is_some_and(|e| e.conversation == direct)).await;
    let above = items.iter().filter_map(entry).any(|e| e.conversation == group && e.seq > removal);
    assert!(!above, "{items:?}");
    let page = packet::HistoryRequest { conversation: group, from_seq: 0, limit: 100, backwards: true, compact: false };
    let page = bob.history(page).await.expect("the past stays");
    assert_eq!(page.head_seq, removal);
    assert_eq!(page.items.iter().filter_map(entry).map(|e| e.seq).max(), Some(removal));
}

/// S3: a join whose inbox entry is told first, to every device; delivery of the group begins after it.
#[tokio::test]
async fn s3_every_device_hears_of_a_join_before_the_group_speaks() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let group = alice.create_group("g", &[]).await;
    alice.say(group, "unseen").await;
    let mut phone = world.user("bob").await;
    let mut laptop = world.wire(packet::Connect { device: "laptop".into(), ..world.connect("bob") }).await;
    alice.set_role(group, "bob", Role::Member).await.expect("added");
    alice.say(group, "welcome").await;
    for device in [&mut phone, &mut laptop] {
        let is_joined = |item: &packet::Item| matches!(&item.kind, Some(item::Kind::Entry(e)) if e.kind() == packet::EntryKind::Joined);
        let before = device.until(is_joined).await;
        let joined = before.last().and_then(entry).and_then(|e| e.joined.clone()).expect("joined");
        assert_eq!((joined.conversation, joined.label.as_str(), joined.visible_from), (group, "g", 3));
        assert!(!before.iter().filter_map(entry).any(|e| e.conversation == group), "{before:?}");
        let first = device.entry(group).await;
        assert_eq!((first.seq, &first.content[..]), (joined.seq + 1, &b"welcome"[..]));
    }
}

/// S4: a device that is away while its user leaves and comes back gets both told, then only what follows the return.
#[tokio::test]
async fn s4_leaving_and_returning_while_a_device_is_away_shows_nothing_of_between() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let mut bob = world.user("bob").await;
    let group = alice.create_group("g", &["bob"]).await;
    alice.say(group, "first").await;
    bob.entry(group).await;
    alice.say(group, "second").await;
    bob.until(|item| texts(std::slice::from_ref(item)) == ["second"]).await;
    let cursor = bob.settle().await;
    bob.leave().await;
    alice.set_role(group, "bob", Role::None).await.expect("removed");
    alice.say(group, "secret").await;
    let rejoin = alice.set_role(group, "bob", Role::Member).await.expect("added").seq;
    alice.say(group, "again").await;
    let back = packet::Connect { start: StartKind::OwnCursor.into(), cursor, ..world.connect("bob") };
    let mut bob = world.wire(back).await;
    let items = bob.caught_up().await;
    let kinds: Vec<_> =
        items.iter().filter_map(entry).filter(|e| e.conversation != group).map(packet::Entry::kind).collect();
    assert_eq!(kinds, [packet::EntryKind::Left, packet::EntryKind::Joined]);
    assert_eq!(texts(&items), ["again"]);
    let page =
        packet::HistoryRequest { conversation: group, from_seq: 0, limit: 100, backwards: false, compact: false };
    let page = bob.history(page).await.expect("history");
    assert!(!texts(&page.items).contains(&"secret".to_owned()));
    assert!(page.items.iter().filter_map(entry).any(|e| e.seq == rejoin));
}

#[tokio::test]
async fn creating_a_group_twice_after_a_lost_answer_is_one_group() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let create = packet::CreateGroup { label: "g".into(), users: vec!["bob".into()] };
    let publish = packet::Publish {
        message_id: 1,
        first_unanswered: 1,
        action: Some(Action::CreateGroup(create)),
        ..packet::Publish::default()
    };
    let first = alice.publish_as(publish.clone()).await.expect("created");
    drop(alice);
    let connect = packet::Connect { incarnation: 1, ..world.connect("alice") };
    let mut alice = world.wire(connect).await;
    assert_eq!(alice.publish_as(publish).await.expect("the same"), first);
    assert_eq!(alice.conversations().await.len(), 1);
}

/// Names are told of who shares a conversation now, seen from either of the two, and of nobody else.
#[tokio::test]
async fn users_are_named_to_who_shares_a_conversation_with_them() {
    let world = World::new().await;
    let (mut alice, mut bob) = (world.user("alice").await, world.user("bob").await);
    let (carol, dan) = (world.user("carol").await, world.user("dan").await);
    let group = alice.create_group("g", &["bob", "carol"]).await;
    alice.open_direct("dan").await;
    let all = [&alice, &bob, &carol, &dan].map(|wire| wire.connected.user);
    let asked = Op::Users(packet::UsersRequest { users: [&all[..], &[u64::MAX, 0]].concat() });

    let named = async |wire: &mut Wire| match wire.ask(asked.clone()).await.expect("an answer") {
        packet::response::Result::Users(page) => page.users.into_iter().map(|u| u.name).collect::<Vec<_>>(),
        other => panic!("{other:?} names nobody"),
    };
    assert_eq!(named(&mut alice).await, ["alice", "bob", "carol", "dan"]);
    assert_eq!(named(&mut bob).await, ["alice", "bob", "carol"]);
    alice.set_role(group, "bob", Role::None).await.expect("removed");
    assert_eq!(named(&mut bob).await, ["bob"], "who was removed shares nothing any more");
    assert_eq!(named(&mut alice).await, ["alice", "carol", "dan"]);
}
