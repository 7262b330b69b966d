//! Users and their devices, as SPEC chapter 15 has them: what they say of themselves, whom they block, which devices they
//! have.

use longwire::auth::Claims;
use longwire_protocol::Refusal;
use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::request::Op;
use longwire_protocol::packet::{self, DeviceChangeKind, Entry, EntryKind, Publish, Role, response};
use longwire_protocol::reason::Reason;

use crate::world::{Wire, World, entry, texts};

fn profile(name: &str) -> Action {
    let profile = packet::Profile { display_name: name.into(), picture: "p".into(), data: "d".into() };
    Action::SetProfile(packet::SetProfile { profile: Some(profile) })
}

fn contact(user: &str, nick: &str) -> Action {
    Action::SetContact(packet::SetContact { user: user.into(), nick: nick.into(), ..Default::default() })
}

fn no_contact(user: &str) -> Action {
    Action::SetContact(packet::SetContact { user: user.into(), remove: true, ..Default::default() })
}

fn block(user: &str) -> Action {
    Action::Block(packet::Block { user: user.into(), undo: false })
}

fn unblock(user: &str) -> Action {
    Action::Block(packet::Block { user: user.into(), undo: true })
}

fn react(seq: u64, reaction: &str) -> Action {
    Action::React(packet::React { seq, reaction: reaction.into() })
}

fn keep_for(age_ms: u64) -> Action {
    let retention = packet::Retention { mode: packet::RetentionMode::KeepFor.into(), age_ms };
    Action::SetRetention(packet::SetRetention { retention: Some(retention) })
}

fn revoke(device: u64) -> Action {
    Action::RevokeDevice(packet::RevokeDevice { device })
}

fn reason<T: std::fmt::Debug>(outcome: Result<T, Refusal>) -> Reason {
    outcome.expect_err("refused").reason
}

async fn profiles(wire: &mut Wire, users: &[u64]) -> Vec<(u64, Option<String>)> {
    match wire.ask(Op::Profiles(packet::ProfilesRequest { users: users.to_vec() })).await.expect("answered") {
        response::Result::Profiles(page) => {
            page.profiles.into_iter().map(|one| (one.user, one.profile.map(|p| p.display_name))).collect()
        }
        other => panic!("{other:?} answers a request for profiles"),
    }
}

async fn contacts(wire: &mut Wire, before: u64, limit: u32) -> packet::ContactsPage {
    match wire.ask(Op::Contacts(packet::ContactsRequest { before, limit })).await.expect("answered") {
        response::Result::Contacts(page) => page,
        other => panic!("{other:?} answers a request for contacts"),
    }
}

async fn blocked(wire: &mut Wire, after_user: u64, limit: u32) -> packet::BlockedPage {
    match wire.ask(Op::Blocked(packet::BlockedRequest { after_user, limit })).await.expect("answered") {
        response::Result::Blocked(page) => page,
        other => panic!("{other:?} answers a request for who is blocked"),
    }
}

pub(crate) async fn devices(wire: &mut Wire) -> Vec<packet::Device> {
    match wire.ask(Op::Devices(packet::DevicesRequest {})).await.expect("answered") {
        response::Result::Devices(page) => page.devices,
        other => panic!("{other:?} answers a request for devices"),
    }
}

fn device(world: &World, user: &str, name: &str) -> packet::Connect {
    packet::Connect { device: name.into(), ..world.connect(user) }
}

/// The next entry of this kind in the own inbox.
async fn told(wire: &mut Wire, kind: EntryKind) -> Entry {
    let inbox = wire.connected.inbox;
    let is_it = |item: &packet::Item| entry(item).is_some_and(|e| e.kind() == kind && e.conversation == inbox);
    wire.until(is_it).await.last().and_then(entry).expect("an entry").clone()
}

/// SPEC R15-1: an entry of the inbox, for the user's other devices, and a repeat of it is the same.
#[tokio::test]
async fn what_is_about_oneself_is_told_to_ones_other_devices() {
    let world = World::new().await;
    let mut phone = world.user("alice").await;
    let mut laptop = world.wire(device(&world, "alice", "laptop")).await;
    let ack = phone.act(0, profile("Alice L.")).await.expect("acked");
    assert_eq!(ack.conversation, phone.connected.inbox);
    let entry = told(&mut laptop, EntryKind::Profile).await;
    assert_eq!((entry.seq, entry.time, entry.sender), (ack.seq, ack.time, phone.connected.user));
    assert_eq!(entry.profile.expect("a profile").display_name, "Alice L.");
    phone.act(0, contact("bob", "Bobby")).await.expect("acked");
    let kept = told(&mut laptop, EntryKind::Contact).await.contact.expect("a contact");
    assert_eq!((kept.name.as_str(), kept.nick.as_str(), kept.removed), ("bob", "Bobby", false));
    phone.act(0, block("mallory")).await.expect("acked");
    let kept = told(&mut laptop, EntryKind::Blocked).await.blocked.expect("who");
    assert_eq!((kept.name.as_str(), kept.undone), ("mallory", false));
    // Again, over another connection: the same answer; and what changes nothing has none of its own.
    let (id, incarnation) = (phone.next_id, phone.incarnation);
    let publish = Publish { message_id: id, action: Some(unblock("mallory")), ..Publish::default() };
    let first = phone.publish_as(publish.clone()).await.expect("acked");
    phone.leave().await;
    let again = packet::Connect { incarnation, first_unanswered: id, ..world.connect("alice") };
    let mut phone = world.wire(again).await;
    assert_eq!(phone.publish_as(publish).await.expect("acked"), first);
    phone.next_id = id + 1;
    for action in [unblock("mallory"), unblock("never-seen"), no_contact("never-seen"), profile("Alice L.")] {
        let ack = phone.act(0, action).await.expect("acked");
        assert_eq!((ack.conversation, ack.seq), (first.conversation, first.seq), "nothing new in the inbox");
    }
    let direct = phone.open_direct("bob").await;
    assert_eq!(reason(phone.act(direct, profile("x")).await), Reason::InvalidArgument);
    let id = phone.next_id;
    let publish = |message_id| Publish { message_id, action: Some(contact("bob", "x")), ..Publish::default() };
    phone.publish_as(publish(id + 1)).await.expect("acked");
    assert_eq!(reason(phone.publish_as(publish(id)).await), Reason::StaleId, "a later one is stored in the inbox");
}

/// SPEC R15-2.
#[tokio::test]
async fn what_is_said_of_oneself_is_bounded() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let profile = |name: usize, picture: usize, data: usize| {
        let profile = packet::Profile {
            display_name: "n".repeat(name),
            picture: "p".repeat(picture),
            data: vec![0; data].into(),
        };
        Action::SetProfile(packet::SetProfile { profile: Some(profile) })
    };
    let contact = |nick: usize, data: usize| {
        let (user, nick, data) = ("bob".to_owned(), "n".repeat(nick), vec![0; data].into());
        Action::SetContact(packet::SetContact { user, nick, data, remove: false })
    };
    alice.act(0, profile(128, 512, 1_024)).await.expect("the largest");
    alice.act(0, contact(256, 256)).await.expect("the largest");
    let control = packet::Profile { display_name: "a\u{7}".into(), ..packet::Profile::default() };
    for action in [
        profile(129, 0, 0),
        profile(0, 513, 0),
        profile(0, 0, 1_025),
        contact(257, 0),
        contact(0, 257),
        Action::SetProfile(packet::SetProfile { profile: Some(control) }),
        self::contact("bob", "a\nb"),
        self::contact("", "x"),
        self::contact("alice", "myself"),
        block("alice"),
        block("a\u{200b}"),
    ] {
        let said = format!("{action:?}");
        assert_eq!(reason(alice.act(0, action).await), Reason::InvalidArgument, "{said}");
    }
}

/// SPEC R15-3: who shares a conversation sees it, who is blocked does not.
#[tokio::test]
async fn a_profile_is_for_who_shares_a_conversation_and_is_not_blocked() {
    let world = World::new().await;
    let (mut alice, mut bob, _) = world.pair().await;
    let mut mallory = world.user("mallory").await;
    let ids = [alice.connected.user, bob.connected.user, 999_999];
    alice.act(0, profile("Alice L.")).await.expect("acked");
    let seen = [(ids[0], Some("Alice L.".to_owned())), (ids[1], None)];
    assert_eq!(profiles(&mut alice, &ids).await, seen);
    assert_eq!(profiles(&mut bob, &ids).await, seen);
    assert_eq!(profiles(&mut mallory, &ids).await, []);
    alice.create_group("g", &["bob", "mallory"]).await;
    assert_eq!(profiles(&mut mallory, &ids).await, seen, "it shares a group now");
    alice.act(0, block("mallory")).await.expect("blocked");
    assert_eq!(profiles(&mut mallory, &ids).await, seen[1..]);
    alice.act(0, unblock("mallory")).await.expect("unblocked");
    assert_eq!(profiles(&mut mallory, &ids).await, seen);
}

/// SPEC R15-4: pages, also while contacts go.
#[tokio::test]
async fn contacts_are_paged_and_none_is_left_out() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    for n in 0..25 {
        alice.act(0, contact(&format!("user-{n}"), &format!("nick {n}"))).await.expect("acked");
    }
    let (mut seen, mut before, mut gone) = (Vec::new(), 0, 0);
    loop {
        let page = contacts(&mut alice, before, 4).await;
        seen.extend(page.contacts.into_iter().map(|one| (one.name, one.nick)));
        // One that was seen goes, and another takes its place.
        let name = &seen[gone].0;
        alice.act(0, no_contact(name)).await.expect("removed");
        gone += 1;
        before = page.next;
        if before == 0 {
            break;
        }
    }
    let mut expected: Vec<_> = (0..25).map(|n| (format!("user-{n}"), format!("nick {n}"))).collect();
    expected.sort();
    seen.sort();
    seen.dedup();
    assert_eq!(seen, expected);
    let mut left = Vec::new();
    let page = contacts(&mut alice, 0, 200).await;
    left.extend(page.contacts.into_iter().map(|one| one.name));
    assert_eq!((left.len(), page.next), (25 - gone, 0));
    alice.act(0, contact(&left[0], "another")).await.expect("changed");
    let changed = contacts(&mut alice, 0, 200).await.contacts;
    assert_eq!(changed.iter().filter(|one| one.nick == "another").count(), 1);
    assert_eq!(changed.len(), 25 - gone, "it is the same contact");
    let mut bob = world.user("bob").await;
    assert_eq!(contacts(&mut bob, 0, 200).await, packet::ContactsPage::default(), "nobody else's");
}

/// SPEC R15-5, R15-6: what a block forbids, what it leaves, and that nothing tells of it.
#[tokio::test]
async fn who_is_blocked_reaches_the_other_in_no_way_of_its_own() {
    let world = World::new().await;
    let (mut alice, mut bob, direct) = world.pair().await;
    bob.say(direct, "before").await;
    alice.say(direct, "and this").await;
    assert_eq!(bob.entry(direct).await.content, "and this");
    bob.act(direct, react(1, "x")).await.expect("given");
    let group = bob.create_group("both", &["alice"]).await;
    alice.caught_up().await;
    alice.act(0, block("bob")).await.expect("blocked");
    alice.act(0, block("carol")).await.expect("blocked before she ever came");
    let say = |id| Publish { conversation: id, content: "x".into(), ..Publish::default() };
    let refusal = bob.insist(say(direct)).await.expect_err("refused");
    assert_eq!(refusal.reason, Reason::Forbidden);
    // Nor otherwise: a reaction is delivered like a message, and what is kept is the other's too.
    assert_eq!(reason(bob.act(direct, react(2, "and this")).await), Reason::Forbidden);
    assert_eq!(reason(bob.act(direct, keep_for(1_000)).await), Reason::Forbidden);
    bob.act(direct, react(1, "")).await.expect("what one gave is taken back");
    // Shown as before.
    assert_eq!(bob.open_direct("alice").await, direct);
    let page =
        packet::HistoryRequest { conversation: direct, from_seq: 0, limit: 9, backwards: false, ..Default::default() };
    assert_eq!(texts(&bob.history(page).await.expect("history").items), ["before", "and this"]);
    let shown = bob.conversations().await.into_iter().find(|c| c.id == direct).expect("listed");
    assert_eq!((shown.role(), shown.members), (Role::Member, 2));
    // Groups go on, and new ones are made without her.
    bob.say(group, "in the group").await;
    assert_eq!(alice.entry(group).await.content, "in the group");
    let without = bob.create_group("new", &["alice", "dave"]).await;
    let members = Op::Members(packet::MembersRequest { conversation: without, after_user: 0, limit: 9 });
    match bob.ask(members).await.expect("members") {
        response::Result::Members(page) => {
            let names: Vec<_> = page.members.iter().map(|m| m.name.as_str()).collect();
            assert!(names.len() == 2 && !names.contains(&"alice"), "{names:?}");
        }
        other => panic!("{other:?} answers a request for members"),
    }
    assert_eq!(reason(bob.set_role(without, "alice", Role::Member).await), Reason::Forbidden);
    let mut carol = world.user("carol").await;
    let open = || Action::OpenDirect(packet::OpenDirect { user: "alice".into() });
    assert_eq!(reason(carol.act(0, open()).await), Reason::Forbidden);
    // Who blocks may still write, and open.
    alice.say(direct, "one more thing").await;
    assert_eq!(bob.entry(direct).await.content, "one more thing");
    alice.act(direct, react(1, "y")).await.expect("given");
    alice.act(direct, keep_for(3_600_000)).await.expect("set");
    let with_carol = alice.open_direct("carol").await;
    assert_eq!(reason(carol.insist(say(with_carol)).await), Reason::Forbidden);
    // A third one adds whom it likes.
    let mut dave = world.user("dave").await;
    let of_dave = dave.create_group("dave's", &["alice", "bob"]).await;
    bob.say(of_dave, "hello").await;
    assert_eq!(alice.entry(of_dave).await.content, "hello");
    // Nothing in Bob's inbox is about it.
    let inbox = bob.connected.inbox;
    let page =
        packet::HistoryRequest { conversation: inbox, from_seq: 0, limit: 200, backwards: false, ..Default::default() };
    let kinds = bob.history(page).await.expect("history").items;
    assert!(kinds.iter().filter_map(entry).all(|e| matches!(e.kind(), EntryKind::Joined | EntryKind::Left)));
    alice.act(0, unblock("bob")).await.expect("unblocked");
    bob.say(direct, "again").await;
    assert_eq!(alice.entry(direct).await.content, "again");
    bob.act(direct, react(2, "z")).await.expect("given");
    bob.act(direct, keep_for(7_200_000)).await.expect("set");
    bob.set_role(without, "alice", Role::Member).await.expect("added");
    let rest = blocked(&mut alice, 0, 10).await;
    assert_eq!((rest.users.len(), rest.users[0].name.as_str(), rest.next), (1, "carol", 0));
}

/// SPEC R15-5: by rising user id, in pages, and not without end.
#[tokio::test]
async fn who_is_blocked_is_listed_and_bounded() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    for n in 0..1_000 {
        alice.act(0, block(&format!("user-{n}"))).await.expect("blocked");
    }
    assert_eq!(reason(alice.act(0, block("one-more")).await), Reason::QuotaExceeded);
    alice.act(0, block("user-7")).await.expect("it is blocked already");
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let page = blocked(&mut alice, after, 150).await;
        all.extend(page.users.iter().map(|one| one.user));
        after = page.next;
        if after == 0 {
            break;
        }
    }
    assert!(all.len() == 1_000 && all.is_sorted(), "{}", all.len());
}

/// SPEC R15-7, R15-9, R15-12.
#[tokio::test]
async fn devices_are_listed_and_named() {
    let world = World::new().await;
    let mut phone = world.user("alice").await;
    let mut laptop = world.wire(device(&world, "alice", "laptop")).await;
    let added = told(&mut phone, EntryKind::Device).await.device.expect("a device");
    assert_eq!((added.device, added.name.as_str()), (laptop.connected.device, "laptop"));
    assert_eq!(added.kind(), DeviceChangeKind::DeviceAdded);
    let mut bob = world.user("bob").await;
    let name = |device| Action::NameDevice(packet::NameDevice { device, label: "at work".into() });
    for device in [bob.connected.device, 999_999, 0] {
        assert_eq!(reason(phone.act(0, name(device)).await), Reason::InvalidArgument);
        assert_eq!(reason(phone.act(0, revoke(device)).await), Reason::InvalidArgument);
    }
    assert!(devices(&mut bob).await[0].online, "and nothing happened to it");
    let bad = Action::NameDevice(packet::NameDevice { device: laptop.connected.device, label: "a\nb".into() });
    assert_eq!(reason(phone.act(0, bad).await), Reason::InvalidArgument);
    phone.act(0, name(laptop.connected.device)).await.expect("named");
    let named = told(&mut laptop, EntryKind::Device).await.device.expect("a device");
    assert_eq!((named.label.as_str(), named.kind()), ("at work", DeviceChangeKind::DeviceNamed));
    let listed = |devices: Vec<packet::Device>| -> Vec<_> {
        devices.into_iter().map(|one| (one.name, one.label, one.online, one.own)).collect()
    };
    let is = |name: &str, label: &str, online, own| (name.to_owned(), label.to_owned(), online, own);
    assert_eq!(listed(devices(&mut phone).await), [is("phone", "", true, true), is("laptop", "at work", true, false)]);
    laptop.leave().await;
    let begun = std::time::Instant::now();
    while devices(&mut phone).await[1].online {
        assert!(begun.elapsed() < crate::world::PATIENCE, "it is gone");
    }
    let all = devices(&mut phone).await;
    assert!(all.iter().all(|one| one.created > 0 && one.seen >= one.created), "{all:?}");
}

/// SPEC R15-8, R15-11: cut at once, refused from then on, and what it sends later is not stored twice.
#[tokio::test]
async fn a_revoked_device_is_cut_and_its_tokens_are_good_no_more() {
    let world = World::new().await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let token = |user: &str, iat| world.token(&Claims { iat, ..world.claims(user) });
    let with = |token: String, name: &str| packet::Connect { token, ..device(&world, "alice", name) };
    let mut phone = world.user("alice").await;
    let mut laptop = world.wire(with(token("alice", now - 5), "laptop")).await;
    let direct = laptop.open_direct("bob").await;
    laptop.say(direct, "sent once").await;
    let (lost, incarnation) = (laptop.connected.device, laptop.connected.incarnation);
    phone.act(0, revoke(lost)).await.expect("revoked");
    assert_eq!(laptop.ended().await.reason, Reason::Revoked);
    assert_eq!(told(&mut phone, EntryKind::Device).await.device.map(|one| one.device), Some(lost));
    assert_eq!(devices(&mut phone).await.len(), 1);
    assert_eq!(world.refused(with(token("alice", now - 5), "laptop")).await.reason, Reason::Revoked);
    assert_eq!(reason(phone.act(0, revoke(lost)).await), Reason::InvalidArgument, "it is forgotten");
    // The user's other devices are as they were, and so is a later token for this one.
    let mut other = world.wire(with(token("alice", now - 5), "tablet")).await;
    other.leave().await;
    let stale = packet::Connect { incarnation, first_unanswered: 2, ..with(token("alice", now + 60), "laptop") };
    assert_eq!(world.refused(stale).await.reason, Reason::IncarnationStale);
    let mut again = world.wire(with(token("alice", now + 60), "laptop")).await;
    assert!(again.connected.device == lost && again.connected.incarnation > incarnation, "the same device, anew");
    let page =
        packet::HistoryRequest { conversation: direct, from_seq: 0, limit: 9, backwards: false, ..Default::default() };
    let items = again.history(page).await.expect("history").items;
    let own = |item: &packet::Item| match &item.kind {
        Some(packet::item::Kind::Own(own)) => Some((own.incarnation, own.message_id)),
        _ => None,
    };
    assert_eq!(items.iter().filter_map(own).collect::<Vec<_>>(), [(incarnation, 2)], "it finds what it sent");
    // Oneself: the ack comes, and then the end.
    let own = again.connected.device;
    again.act(0, revoke(own)).await.expect("acked");
    assert_eq!(again.ended().await.reason, Reason::Revoked);
    assert_eq!(devices(&mut phone).await.iter().filter(|one| one.name == "laptop").count(), 0);
}

/// SPEC R15-10: the place of one that is revoked is free again.
#[tokio::test]
async fn a_revoked_device_makes_room() {
    let world = World::new().await;
    let mut phone = world.user("alice").await;
    let mut last = 0;
    for n in 1..20 {
        last = world.wire(device(&world, "alice", &format!("d{n}"))).await.connected.device;
    }
    assert_eq!(world.refused(device(&world, "alice", "one-more")).await.reason, Reason::QuotaExceeded);
    phone.act(0, revoke(last)).await.expect("revoked");
    world.wire(device(&world, "alice", "one-more")).await;
    assert_eq!(devices(&mut phone).await.len(), 20);
}
