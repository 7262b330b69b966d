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
    let create = packet::CreateGroup { label: "g".into(), users: vec!["bob".into()], ..Default::default() };
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

fn info(policy: packet::Policy) -> packet::Info {
    packet::Info { picture: "media/1".into(), description: "all of us".into(), policy: Some(policy) }
}

impl Wire {
    async fn make_group(&mut self, users: &[&str], policy: packet::Policy) -> u64 {
        let users = users.iter().map(|&user| user.into()).collect();
        let create = packet::CreateGroup { users, info: Some(Box::new(info(policy))), ..Default::default() };
        self.act(0, Action::CreateGroup(create)).await.expect("created").conversation
    }

    async fn join_with(&mut self, group: u64, key: &'static [u8]) -> Result<packet::PublishAck, Reason> {
        let key = bytes::Bytes::from_static(key);
        self.act(group, Action::Join(packet::Join { key })).await.map_err(|refusal| refusal.reason)
    }

    async fn ban(&mut self, group: u64, user: &str, lift: bool) -> Result<packet::PublishAck, Reason> {
        let ban = packet::Ban { user: user.into(), lift };
        self.act(group, Action::Ban(ban)).await.map_err(|refusal| refusal.reason)
    }

    async fn try_say(&mut self, conversation: u64) -> Result<packet::PublishAck, Reason> {
        let content = bytes::Bytes::from_static(b"hello");
        let publish = packet::Publish { conversation, content, ..packet::Publish::default() };
        self.insist(publish).await.map_err(|refusal| refusal.reason)
    }

    async fn read(&mut self, conversation: u64) -> Vec<String> {
        let request = packet::HistoryRequest { conversation, limit: 200, ..Default::default() };
        texts(&self.history(request).await.expect("a page").items)
    }
}

/// SPEC R7-10: who may publish, add, inform and recall is the policy's; the policy itself is the owner's.
#[tokio::test]
async fn a_policy_says_who_may_do_what() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let (mut bob, mut carol) = (world.user("bob").await, world.user("carol").await);
    let policy = packet::Policy {
        publishes: Role::Admin.into(),
        adds: Role::Member.into(),
        informs: Role::Owner.into(),
        recall_within_ms: 1,
        hides_marks: true,
        ..Default::default()
    };
    let group = alice.make_group(&["bob", "carol"], policy).await;
    alice.set_role(group, "carol", Role::Admin).await.expect("promoted");
    assert_eq!(bob.try_say(group).await, Err(Reason::Forbidden), "members listen here");
    let said = carol.try_say(group).await.expect("admins speak");
    bob.set_role(group, "dan", Role::Member).await.expect("members add");
    let promoted = bob.set_role(group, "dan", Role::Reader).await.expect_err("and no more");
    assert_eq!(promoted.reason, Reason::Forbidden);
    let label = || Action::SetLabel(packet::SetLabel { label: "new".into() });
    assert_eq!(carol.act(group, label()).await.expect_err("not an admin").reason, Reason::Forbidden);
    alice.act(group, label()).await.expect("the owner");
    let set = |info| Action::SetInfo(packet::SetInfo { info: Some(Box::new(info)) });
    let listed = bob.conversations().await.into_iter().find(|one| one.id == group).expect("listed");
    assert_eq!(listed.info, Some(info(policy)));

    // Marks are hidden: nobody is told, and only admins may ask.
    let receipts = packet::ReceiptsRequest { conversation: group, limit: 10, ..Default::default() };
    assert_eq!(bob.ask(Op::Receipts(receipts)).await.expect_err("a member").reason, Reason::Forbidden);
    carol.ask(Op::Receipts(receipts)).await.expect("an admin");
    // What members sent they recall for a while, admins always.
    alice.set_role(group, "carol", Role::Member).await.expect("demoted");
    let recall = Action::Recall(packet::Recall { seq: said.seq });
    // The broker's time goes on by itself.
    while alice.say(group, "tick").await.time <= said.time + 1 {}
    assert_eq!(carol.act(group, recall).await.expect_err("too late").reason, Reason::Forbidden);
    let past = packet::Policy { past: packet::Past::Everything.into(), ..policy };
    assert_eq!(alice.act(group, set(info(past))).await.expect_err("fixed").reason, Reason::InvalidArgument);
    let readers = packet::Policy { publishes: Role::Reader.into(), ..policy };
    assert_eq!(alice.act(group, set(info(readers))).await.expect_err("readers").reason, Reason::InvalidArgument);
    let open = packet::Policy { publishes: Role::None.into(), informs: Role::Member.into(), ..policy };
    alice.act(group, set(info(open))).await.expect("opened");
    bob.try_say(group).await.expect("members speak now");
    bob.act(group, set(packet::Info { picture: "media/2".into(), ..info(open) })).await.expect("members inform now");
    assert_eq!(bob.act(group, set(info(policy))).await.expect_err("not the policy").reason, Reason::Forbidden);
    let long = packet::Info { description: "x".repeat(1_025), ..info(open) };
    assert_eq!(bob.act(group, set(long)).await.expect_err("too long").reason, Reason::InvalidArgument);
}

/// SPEC R7-4, R7-10: the past is as open as the group was made, by history and nothing else; it counts as read.
#[tokio::test]
async fn who_comes_in_reads_as_much_of_the_past_as_the_policy_says() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let cases: [(packet::Past, &[&str]); 3] = [
        (packet::Past::FromJoining, &["after"]),
        (packet::Past::Everything, &["one", "two", "three", "after"]),
        (packet::Past::Last, &["two", "three", "after"]),
    ];
    for (past, expected) in cases {
        let name = format!("{past:?}").to_lowercase();
        let policy = packet::Policy { past: past.into(), past_entries: 2, ..Default::default() };
        let group = alice.make_group(&[], policy).await;
        for text in ["one", "two", "three"] {
            alice.say(group, text).await;
        }
        let mut newcomer = world.user(&name).await;
        alice.set_role(group, &name, Role::Member).await.expect("added");
        alice.say(group, "after").await;
        let first = newcomer.entry(group).await;
        assert_eq!(&first.content[..], b"after", "what was there before is not delivered");
        assert_eq!(newcomer.read(group).await, expected, "{past:?}");
        let listed = newcomer.conversations().await.into_iter().find(|one| one.id == group).expect("listed");
        assert_eq!(listed.unread, 1, "{past:?}");
        // Removed and added again: the past is one stretch, and nothing of between is left out.
        alice.set_role(group, &name, Role::None).await.expect("removed");
        alice.say(group, "between").await;
        alice.set_role(group, &name, Role::Member).await.expect("added");
        let again = newcomer.read(group).await;
        assert_eq!(again.contains(&"between".to_owned()), past != packet::Past::FromJoining, "{past:?}: {again:?}");
    }
}

/// SPEC R7-11, R7-12.
#[tokio::test]
async fn who_has_the_key_joins_and_who_is_banned_does_not() {
    const KEY: &[u8] = b"a key of 16 byte";
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let (mut bob, mut carol) = (world.user("bob").await, world.user("carol").await);
    let group = alice.create_group("g", &["carol"]).await;
    let set = |key: &'static [u8]| {
        let key = bytes::Bytes::from_static(key);
        Action::SetJoinKey(packet::SetJoinKey { key })
    };
    assert_eq!(bob.join_with(group, KEY).await, Err(Reason::UnknownConversation), "it is closed");
    assert_eq!(bob.join_with(group, b"").await, Err(Reason::UnknownConversation), "and no key opens nothing");
    assert_eq!(alice.act(group, set(b"short")).await.expect_err("short").reason, Reason::InvalidArgument);
    assert_eq!(carol.act(group, set(KEY)).await.expect_err("a member").reason, Reason::Forbidden);
    alice.act(group, set(KEY)).await.expect("opened");
    assert_eq!(bob.join_with(group, b"another key of it").await, Err(Reason::UnknownConversation));
    assert_eq!(bob.join_with(group + 4_096, KEY).await, Err(Reason::UnknownConversation));
    bob.join_with(group, KEY).await.expect("joined");
    bob.try_say(group).await.expect("and speaks");

    assert_eq!(carol.ban(group, "bob", false).await, Err(Reason::Forbidden), "members ban nobody");
    assert_eq!(alice.ban(group, "alice", false).await, Err(Reason::InvalidArgument));
    let seq = alice.ban(group, "bob", false).await.expect("banned").seq;
    let told = bob.until(|item| entry(item).is_some_and(|e| e.conversation == group && e.seq == seq)).await;
    let told = told.last().and_then(entry).and_then(|e| e.membership.clone()).expect("a membership");
    assert!(told.banned && told.role() == Role::None, "it is the last thing that is seen");
    alice.ban(group, "bob", false).await.expect("once more");
    alice.ban(group, "nobody", false).await.expect("ahead of coming");
    alice.ban(group, "somebody", true).await.expect("who is not banned");
    assert_eq!(bob.join_with(group, KEY).await, Err(Reason::UnknownConversation), "as if it were not there");
    let added = alice.set_role(group, "bob", Role::Member).await.expect_err("banned");
    assert_eq!(added.reason, Reason::Forbidden);
    alice.ban(group, "bob", true).await.expect("lifted");
    bob.join_with(group, KEY).await.expect("joined again");
    alice.act(group, set(b"")).await.expect("closed");
    assert_eq!(world.user("dan").await.join_with(group, KEY).await, Err(Reason::UnknownConversation));
}

/// SPEC R7-13.
#[tokio::test]
async fn a_group_is_found_by_just_its_users() {
    let world = World::new().await;
    let (mut alice, mut bob) = (world.user("alice").await, world.user("bob").await);
    let create = |users: &[&str]| {
        let users = users.iter().map(|&user| user.into()).collect();
        Action::CreateGroup(packet::CreateGroup { users, distinct: true, ..Default::default() })
    };
    let group = alice.act(0, create(&["bob", "carol"])).await.expect("made").conversation;
    assert_eq!(alice.act(0, create(&["carol", "bob", "alice"])).await.expect("found").conversation, group);
    assert_eq!(bob.act(0, create(&["alice", "carol"])).await.expect("by any of them").conversation, group);
    let larger = alice.act(0, create(&["bob", "carol", "dan"])).await.expect("others").conversation;
    assert_ne!(larger, group);
    alice.set_role(group, "dan", Role::Member).await.expect("added");
    alice.set_role(group, "dan", Role::None).await.expect("and removed");
    let again = alice.act(0, create(&["bob", "carol"])).await.expect("made").conversation;
    assert_ne!(again, group, "its members have changed since");
    let plain = alice.create_group("g", &["bob", "carol"]).await;
    assert_ne!(plain, again, "who does not ask gets a new one");
    assert_eq!(bob.act(0, create(&["alice", "carol"])).await.expect("found").conversation, again);
}
