//! Who is there: signals, presence and wills, over real sockets. What takes half a minute is in the simulator and beside
//! the code, where time is moved by hand.

use bytes::Bytes;
use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::request::Op;
use longwire_protocol::packet::{self, Audience, PresenceState, Publish, Role, SignalKind, response};
use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::{ClientEvent, features};

use crate::world::{Wire, World, entry, texts};

impl Wire {
    async fn signal(&mut self, conversation: u64, kind: SignalKind, content: &str) {
        let content = Bytes::copy_from_slice(content.as_bytes());
        self.session.signal(packet::Signal { conversation, kind: kind.into(), content, ..Default::default() });
        self.flush().await;
    }

    /// The next signal.
    async fn heard(&mut self) -> packet::Signal {
        loop {
            if let ClientEvent::Signal(signal) = self.event().await.expect("the connection holds") {
                return signal;
            }
        }
    }

    /// The next signal of a conversation: kind, sender, what it says.
    async fn hears(&mut self) -> (SignalKind, u64, String) {
        loop {
            let signal = self.heard().await;
            if signal.kind() != SignalKind::Presence {
                return (signal.kind(), signal.user, String::from_utf8_lossy(&signal.content).into_owned());
            }
        }
    }

    /// The next change of a user's presence.
    async fn change_of(&mut self, user: u64) -> PresenceState {
        loop {
            match self.heard().await.presence {
                Some(presence) if presence.user == user => return presence.state(),
                _ => {}
            }
        }
    }

    pub(crate) async fn presence(&mut self, users: &[u64]) -> Result<packet::PresenceAnswer, Refusal> {
        self.presence_request(users, false).await
    }

    async fn presence_request(&mut self, users: &[u64], stop: bool) -> Result<packet::PresenceAnswer, Refusal> {
        match self.ask(Op::Presence(packet::PresenceRequest { users: users.to_vec(), stop })).await? {
            response::Result::Presence(answer) => Ok(answer),
            other => panic!("{other:?} answers a request for presence"),
        }
    }

    async fn state_of(&mut self, user: u64) -> PresenceState {
        self.presence(&[user]).await.expect("an answer").users[0].state()
    }

    async fn set_background(&mut self, background: bool) {
        self.ask(Op::Background(packet::BackgroundRequest { background })).await.expect("taken");
    }

    async fn show(&mut self, to: Audience) {
        self.act(0, Action::ShowPresence(packet::ShowPresence { to: to.into() })).await.expect("anybody may");
    }

    async fn set_will(
        &mut self,
        conversation: u64,
        content: &str,
        after_ms: u32,
    ) -> Result<packet::PublishAck, Refusal> {
        let action = Some(Action::SetWill(packet::SetWill { after_ms }));
        let content = Bytes::copy_from_slice(content.as_bytes());
        self.insist(Publish { conversation, content, action, ..Publish::default() }).await
    }
}

/// Ann and Ben, both online, and their direct conversation, which is empty.
async fn pair(world: &World) -> (Wire, Wire, u64) {
    let (mut ann, ben) = (world.user("ann").await, world.user("ben").await);
    let direct = ann.open_direct("ben").await;
    (ann, ben, direct)
}

/// As a user's device "phone", which wants signals.
async fn hearing(world: &World, user: &str) -> Wire {
    let connect = packet::Connect { features: vec![features::SIGNALS.into()], ..world.connect(user) };
    let wire = world.wire(connect).await;
    assert!(wire.connected.features.iter().any(|feature| feature == features::SIGNALS), "the broker has them");
    wire
}

/// R16-4: from who may write to who may read and wants it; what is none of theirs says nothing, and ends nothing.
#[tokio::test]
async fn a_signal_goes_to_who_may_read_it_now() {
    let world = World::new().await;
    let (mut ann, mut ben) = (hearing(&world, "ann").await, hearing(&world, "ben").await);
    let mut cid = hearing(&world, "cid").await;
    let mut dot = world.user("dot").await;
    let group = ann.create_group("team", &["ben", "cid", "dot"]).await;
    ann.signal(group, SignalKind::Typing, "").await;
    for wire in [&mut ben, &mut cid] {
        assert_eq!(wire.hears().await, (SignalKind::Typing, ann.connected.user, String::new()));
    }
    ben.signal(group, SignalKind::App, "a thought").await;
    assert_eq!(ann.hears().await, (SignalKind::App, ben.connected.user, "a thought".into()));
    assert_eq!(cid.hears().await.2, "a thought");
    ann.set_role(group, "cid", Role::None).await.expect("removed");
    // Neither hears who is out, nor is heard.
    cid.signal(group, SignalKind::App, "from outside").await;
    cid.signal(999_999, SignalKind::App, "to nowhere").await;
    // It is carried before this is answered.
    cid.presence(&[]).await.expect("the session goes on");
    ann.signal(group, SignalKind::App, "within").await;
    assert_eq!(ben.hears().await, (SignalKind::App, ann.connected.user, "within".into()));
    let direct = ann.open_direct("cid").await;
    ann.signal(direct, SignalKind::App, "alone").await;
    assert_eq!(cid.hears().await.2, "alone", "and of the group nothing");
    // Who did not ask for signals gets none.
    ann.say(group, "done").await;
    dot.session.request(packet::Request { id: 77, op: Some(Op::Background(packet::BackgroundRequest::default())) });
    loop {
        match dot.event().await.expect("the connection holds") {
            ClientEvent::Signal(signal) => panic!("{signal:?} was not asked for"),
            ClientEvent::Response(_) => break,
            _ => {}
        }
    }
}

/// R16-4: nobody looks at a device in the background, so nothing is signalled to it.
#[tokio::test]
async fn a_device_in_the_background_hears_no_signals() {
    let world = World::new().await;
    let (mut ann, mut ben) = (hearing(&world, "ann").await, hearing(&world, "ben").await);
    let direct = ann.open_direct("ben").await;
    ben.set_background(true).await;
    ann.signal(direct, SignalKind::App, "not seen").await;
    ann.presence(&[]).await.expect("carried by now");
    ben.set_background(false).await;
    ann.signal(direct, SignalKind::App, "seen").await;
    assert_eq!(ben.hears().await.2, "seen");
}

/// R16-5: in a channel signals go to who watches it and may read it, and in a large group to nobody.
#[tokio::test]
async fn signals_of_channels_go_to_watchers_and_large_groups_have_none() {
    let world = World::new().await;
    let granted = |user: &str| {
        let mut claims = world.claims(user);
        (claims.publish, claims.read) = (vec!["**".into()], vec!["**".into()]);
        let (token, features) = (world.token(&claims), vec![features::SIGNALS.into()]);
        world.wire(packet::Connect { token, features, ..world.connect(user) })
    };
    let (mut ann, mut ben, mut cid) = (granted("ann").await, granted("ben").await, granted("cid").await);
    let channel = ann.open_channel("stage").await.expect("opened");
    cid.act(channel, Action::Join(packet::Join::default())).await.expect("joined");
    let watch = packet::WatchRequest { conversation: channel, stop: false };
    ben.ask(Op::Watch(watch)).await.expect("watching");
    ann.signal(channel, SignalKind::App, "live").await;
    assert_eq!(ben.hears().await.2, "live");

    let others: Vec<String> = (0..199).map(|n| format!("u{n}")).collect();
    let others: Vec<&str> = others.iter().map(String::as_str).chain(["cid"]).collect();
    let large = ann.create_group("hall", &others).await;
    ann.signal(large, SignalKind::App, "to the hall").await;
    ann.presence(&[]).await.expect("carried by now");
    ann.set_role(large, "u0", Role::None).await.expect("one goes");
    ann.signal(large, SignalKind::App, "to two hundred").await;
    assert_eq!(cid.hears().await.2, "to two hundred", "nothing of the channel, nor of more than that");
}

/// R16-8, R16-9: a session in the foreground makes its user online; all in the background, away; a second one counts.
#[tokio::test]
async fn presence_follows_the_sessions_there_are() {
    let world = World::new().await;
    let (mut ann, mut ben, _) = pair(&world).await;
    let user = ben.connected.user;
    assert_eq!(ann.state_of(user).await, PresenceState::Online);
    ben.set_background(true).await;
    assert_eq!(ann.change_of(user).await, PresenceState::Away);
    let tablet = packet::Connect { device: "tablet".into(), background: true, ..world.connect("ben") };
    let mut tablet = world.wire(tablet).await;
    assert_eq!(ann.state_of(user).await, PresenceState::Away);
    tablet.set_background(false).await;
    assert_eq!(ann.change_of(user).await, PresenceState::Online);
    // Who goes is there for half a minute still.
    ben.leave().await;
    tablet.leave().await;
    assert_eq!(ann.state_of(user).await, PresenceState::Online);
}

/// R16-10: in the order asked for; more users than a session is told of change nothing.
#[tokio::test]
async fn presence_is_told_of_a_bounded_number_of_users() {
    let world = World::new().await;
    let mut ann = world.user("ann").await;
    let names: Vec<String> = (0..510).map(|n| format!("u{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let group = ann.create_group("many", &names).await;
    let mut users = Vec::new();
    loop {
        let after_user = users.last().copied().unwrap_or(0);
        let op = Op::Members(packet::MembersRequest { conversation: group, after_user, limit: 200 });
        let Ok(response::Result::Members(page)) = ann.ask(op).await else { panic!("a page of members") };
        users.extend(page.members.iter().map(|member| member.user));
        if page.next == 0 {
            break;
        }
    }
    users.retain(|user| *user != ann.connected.user);
    users.reverse();
    for chunk in users[..500].chunks(200) {
        let answer = ann.presence(chunk).await.expect("as many as there may be");
        assert_eq!(answer.users.iter().map(|presence| presence.user).collect::<Vec<_>>(), chunk);
        assert!(answer.users.iter().all(|presence| presence.state() == PresenceState::Offline));
    }
    assert_eq!(ann.presence(&users[500..]).await.expect_err("too many").reason, Reason::QuotaExceeded);
    ann.presence(&users[..200]).await.expect("known ones take no room");
    ann.presence_request(&users[..20], true).await.expect("given up");
    ann.presence(&users[500..]).await.expect("there is room again");
}

/// R16-11: one answer for who does not exist, is a stranger, or hides.
#[tokio::test]
async fn what_is_hidden_looks_as_if_it_were_not_there() {
    let world = World::new().await;
    let (mut ann, mut ben, _) = pair(&world).await;
    let stranger = world.user("cid").await;
    let (of_ann, of_ben) = (ann.connected.user, ben.connected.user);
    let asked = [999_999_999, stranger.connected.user, of_ben, of_ann];
    let answer = ann.presence(&asked).await.expect("an answer");
    let hidden = |user| packet::Presence { user, state: PresenceState::NotShown.into(), last_seen: 0 };
    let online = |user| packet::Presence { user, state: PresenceState::Online.into(), last_seen: 0 };
    assert_eq!(answer.users, [hidden(asked[0]), hidden(asked[1]), online(of_ben), online(of_ann)]);

    ben.show(Audience::Nobody).await;
    assert_eq!(ann.change_of(of_ben).await, PresenceState::NotShown, "R16-12: told once");
    assert_eq!(ann.state_of(of_ben).await, PresenceState::NotShown);
    let own = ben.presence(&[of_ann, of_ben]).await.expect("an answer");
    assert_eq!(own.users, [hidden(of_ann), online(of_ben)], "who hides sees nobody but itself");
    assert_eq!(own.shown_to(), Audience::Nobody);
    // What it does meanwhile is told to nobody; the next that is told is what it wants to be known.
    ben.set_background(true).await;
    ben.show(Audience::Company).await;
    assert_eq!(ann.change_of(of_ben).await, PresenceState::Away);
}

/// R16-12: who shows itself to its contacts is told of by them alone, and tells of nobody else; a contact that comes or goes
/// is told at once.
#[tokio::test]
async fn contacts_see_who_shows_itself_to_them() {
    let world = World::new().await;
    let (mut ann, mut ben, _) = pair(&world).await;
    let (of_ann, of_ben) = (ann.connected.user, ben.connected.user);
    let contact =
        |user: &str, remove| Action::SetContact(packet::SetContact { user: user.into(), remove, ..Default::default() });
    assert_eq!(ann.state_of(of_ben).await, PresenceState::Online);
    ben.show(Audience::Contacts).await;
    assert_eq!(ann.change_of(of_ben).await, PresenceState::NotShown);
    let own = ben.presence(&[of_ann]).await.expect("an answer");
    assert_eq!(
        (own.shown_to(), own.users[0].state()),
        (Audience::Contacts, PresenceState::NotShown),
        "nor sees it ann"
    );
    // That ann has ben among its contacts changes nothing: ben's are meant.
    ann.act(0, contact("ben", false)).await.expect("kept");
    assert_eq!(ann.state_of(of_ben).await, PresenceState::NotShown);
    ben.act(0, contact("ann", false)).await.expect("kept");
    assert_eq!(ann.change_of(of_ben).await, PresenceState::Online);
    assert_eq!(ben.state_of(of_ann).await, PresenceState::Online);
    ben.act(0, contact("ann", true)).await.expect("gone");
    assert_eq!(ann.change_of(of_ben).await, PresenceState::NotShown);
    // Who is blocked is told nothing, a contact or not.
    ben.act(0, contact("ann", false)).await.expect("kept");
    let block = packet::Block { user: "ann".into(), undo: false };
    ben.act(0, Action::Block(block)).await.expect("blocked");
    assert_eq!(ann.state_of(of_ben).await, PresenceState::NotShown);
    // A contact that is a stranger is one all the same.
    let mut cid = world.user("cid").await;
    ben.act(0, contact("cid", false)).await.expect("kept");
    assert_eq!(cid.state_of(of_ben).await, PresenceState::NotShown);
}

/// R16-12: who was told that nothing is shown to it is not told so again, whatever changes for others.
#[tokio::test]
async fn what_is_hidden_is_told_once() {
    let world = World::new().await;
    let (mut ann, mut ben, _) = pair(&world).await;
    let mut cid = world.user("cid").await;
    ben.open_direct("cid").await;
    let of_ben = ben.connected.user;
    for wire in [&mut ann, &mut cid] {
        assert_eq!(wire.state_of(of_ben).await, PresenceState::Online);
    }
    ben.show(Audience::Nobody).await;
    for wire in [&mut ann, &mut cid] {
        assert_eq!(wire.change_of(of_ben).await, PresenceState::NotShown);
    }
    ben.show(Audience::Contacts).await;
    let contact = packet::SetContact { user: "cid".into(), ..Default::default() };
    ben.act(0, Action::SetContact(contact)).await.expect("kept");
    assert_eq!(cid.change_of(of_ben).await, PresenceState::Online, "it was looked at for ann by then, too");
    ben.show(Audience::Company).await;
    assert_eq!(ann.change_of(of_ben).await, PresenceState::Online, "and nothing in between");
    ben.show(Audience::Nobody).await;
    assert_eq!(ann.change_of(of_ben).await, PresenceState::NotShown);
}

/// R16-11, R16-12: who hides is told that it sees nobody any more, of each once; and what it sees once it shows itself again.
#[tokio::test]
async fn who_hides_is_told_whom_it_sees_no_more() {
    let world = World::new().await;
    let (mut ann, mut ben, _) = pair(&world).await;
    let mut cid = world.user("cid").await;
    ben.open_direct("cid").await;
    // What is told may come before the answer to what brought it about: another device of ben's does that.
    let mut laptop = world.wire(packet::Connect { device: "laptop".into(), ..world.connect("ben") }).await;
    let (of_ann, of_cid) = (ann.connected.user, cid.connected.user);
    for other in [of_ann, of_cid] {
        assert_eq!(ben.state_of(other).await, PresenceState::Online);
    }
    laptop.show(Audience::Nobody).await;
    let told = [ben.heard().await, ben.heard().await].map(|signal| signal.presence.expect("of somebody"));
    assert!(told.iter().all(|presence| presence.state() == PresenceState::NotShown), "{told:?}");
    assert!([of_ann, of_cid].iter().all(|user| told.iter().any(|presence| presence.user == *user)), "{told:?}");
    // What others do meanwhile is not told; nor is it said again that nothing is shown.
    ann.set_background(true).await;
    laptop.show(Audience::Contacts).await;
    let contact = |remove| packet::SetContact { user: "ann".into(), remove, ..Default::default() };
    laptop.act(0, Action::SetContact(contact(false))).await.expect("kept");
    assert_eq!(ben.change_of(of_ann).await, PresenceState::Away, "a contact is seen again");
    laptop.act(0, Action::SetContact(contact(true))).await.expect("gone");
    assert_eq!(ben.change_of(of_ann).await, PresenceState::NotShown);
    laptop.show(Audience::Company).await;
    assert_eq!(ben.change_of(of_cid).await, PresenceState::Online);
    cid.set_background(true).await;
    assert_eq!(ben.change_of(of_cid).await, PresenceState::Away, "and is told on");
}

/// R16-12: whoever shares nothing with a user any more is told so once, be it itself that went or the other.
#[tokio::test]
async fn who_loses_the_last_shared_conversation_is_told_that_nothing_is_shown() {
    let world = World::new().await;
    let (mut ann, mut ben) = (world.user("ann").await, world.user("ben").await);
    let (of_ann, of_ben) = (ann.connected.user, ben.connected.user);
    let (one, other) = (ann.create_group("one", &["ben"]).await, ann.create_group("other", &["ben"]).await);
    assert_eq!(ann.state_of(of_ben).await, PresenceState::Online);
    assert_eq!(ben.state_of(of_ann).await, PresenceState::Online);
    ben.act(one, Action::Leave(packet::Leave {})).await.expect("left");
    ben.set_background(true).await;
    assert_eq!(ann.change_of(of_ben).await, PresenceState::Away, "they share the other one");
    ann.set_role(other, "ben", Role::None).await.expect("removed");
    assert_eq!(ann.change_of(of_ben).await, PresenceState::NotShown);
    assert_eq!(ben.change_of(of_ann).await, PresenceState::NotShown);
    // Nothing more of each other, until they ask again.
    ann.open_direct("ben").await;
    assert_eq!(ann.state_of(of_ben).await, PresenceState::Away);
    ben.set_background(false).await;
    assert_eq!(ann.change_of(of_ben).await, PresenceState::Online);
}

/// R16-12: an audience that there is not is refused; the setting outlives the broker.
#[tokio::test]
async fn to_whom_presence_is_shown_is_kept() {
    let mut world = World::new().await;
    let (mut ann, ..) = pair(&world).await;
    let refused = ann.act(0, Action::ShowPresence(packet::ShowPresence { to: 7 })).await;
    assert_eq!(refused.expect_err("no such audience").reason, Reason::InvalidArgument);
    ann.show(Audience::Nobody).await;
    world.restart().await;
    let (mut ann, mut ben) = (world.user("ann").await, world.user("ben").await);
    assert_eq!(ann.presence(&[]).await.expect("an answer").shown_to(), Audience::Nobody);
    assert_eq!(ben.state_of(ann.connected.user).await, PresenceState::NotShown);
}

/// R16-13: the end of a session is known after a restart of the broker.
#[tokio::test]
async fn when_someone_was_last_seen_outlives_the_broker() {
    let mut world = World::new().await;
    let (mut ann, mut ben, _) = pair(&world).await;
    let (user, before) = (ben.connected.user, ben.connected.now);
    assert_eq!(ann.presence(&[user]).await.expect("an answer").users[0].last_seen, 0, "it is here");
    ben.leave().await;
    world.restart().await;
    let mut ann = world.user("ann").await;
    let seen = ann.presence(&[user]).await.expect("an answer").users[0];
    assert_eq!(seen.state(), PresenceState::Offline);
    assert!(before <= seen.last_seen && seen.last_seen <= ann.connected.now, "{before} {seen:?}");
}

/// R16-14: a number for large groups; who is in small ones is not told by counting.
#[tokio::test]
async fn how_many_are_online_is_for_members_of_large_groups() {
    let world = World::new().await;
    let mut ann = world.user("ann").await;
    let mut ben = world.user("ben").await;
    let stranger = &mut world.user("cid").await;
    let small = ann.create_group("small", &["ben"]).await;
    let others: Vec<String> = (0..210).map(|n| format!("u{n}")).collect();
    let others: Vec<&str> = others.iter().map(String::as_str).chain(["ben"]).collect();
    let large = ann.create_group("large", &others).await;
    let count = |conversation| Op::Online(packet::OnlineRequest { conversation });
    // Who hides counts too.
    ben.show(Audience::Nobody).await;
    let answer = ann.ask(count(large)).await.expect("a member");
    assert_eq!(answer, response::Result::Online(packet::OnlineAnswer { online: 2 }));
    assert_eq!(ann.ask(count(small)).await.expect_err("small").reason, Reason::Forbidden);
    for conversation in [small, large, 999_999] {
        assert_eq!(
            stranger.ask(count(conversation)).await.expect_err("none of its").reason,
            Reason::UnknownConversation
        );
    }
}

/// R16-11, R16-12, R15-6: who is blocked is told once that there is nothing to be seen; of a closed account everybody is.
#[tokio::test]
async fn who_is_blocked_is_shown_nothing_from_then_on() {
    let world = World::new().await;
    let (mut ann, mut ben, _) = pair(&world).await;
    let mut cid = world.user("cid").await;
    let group = ann.create_group("team", &["ben", "cid"]).await;
    let (of_ann, of_cid) = (ann.connected.user, cid.connected.user);
    for wire in [&mut ben, &mut cid] {
        assert_eq!(wire.state_of(of_ann).await, PresenceState::Online);
    }
    assert_eq!(ben.state_of(of_cid).await, PresenceState::Online);
    let block = |undo| Action::Block(packet::Block { user: "ben".into(), undo });
    ann.act(0, block(false)).await.expect("blocked");
    assert_eq!(ben.change_of(of_ann).await, PresenceState::NotShown);
    assert_eq!(ben.state_of(of_ann).await, PresenceState::NotShown);
    // And no sign of it from then on: cid goes away later, and is told of first.
    ann.show(Audience::Contacts).await;
    ann.show(Audience::Company).await;
    ann.set_background(true).await;
    cid.set_background(true).await;
    loop {
        let told = ben.heard().await.presence.expect("a presence");
        assert_ne!(told.user, of_ann, "{told:?}");
        if told.user == of_cid {
            break;
        }
    }
    ann.act(0, block(true)).await.expect("unblocked");
    assert_eq!(ben.state_of(of_ann).await, PresenceState::Away);
    // Closed, and erased, it is the same to everybody.
    let claims = longwire::auth::Claims { admin: true, ..world.claims("root") };
    let mut root = world.wire(packet::Connect { token: world.token(&claims), ..world.connect("root") }).await;
    let close = packet::SetAccount { user: "ann".into(), close: true, ..Default::default() };
    root.act(0, Action::SetAccount(close)).await.expect("closed");
    for wire in [&mut ben, &mut cid] {
        while wire.change_of(of_ann).await != PresenceState::NotShown {}
    }
    root.act(0, Action::EraseUser(packet::EraseUser { user: "cid".into() })).await.expect("begun");
    while ben.change_of(of_cid).await != PresenceState::NotShown {}
    assert!(group > 0);
}

/// R16-15: it takes the right to publish, and is small.
#[tokio::test]
async fn a_will_is_set_by_who_may_publish_there() {
    let world = World::new().await;
    let (mut ann, mut ben, direct) = pair(&world).await;
    let group = ann.create_group("ann's", &[]).await;
    assert_eq!(ben.set_will(group, "none of mine", 0).await.expect_err("hidden").reason, Reason::UnknownConversation);
    let inbox = ben.connected.inbox;
    assert_eq!(ben.set_will(inbox, "to me", 0).await.expect_err("the broker's").reason, Reason::Forbidden);
    let long = "x".repeat(5_000);
    assert_eq!(ben.set_will(direct, &long, 0).await.expect_err("long").reason, Reason::PayloadTooLarge);
    ben.set_will(direct, "farewell", 0).await.expect("set");
    ben.set_will(0, "", 0).await.expect("taken away");
    ben.set_will(0, "", 0).await.expect("there is none");
}

/// R16-16: a device that is lost leaves its will to everybody, once, and its user's mark where it was.
#[tokio::test]
async fn the_will_of_a_lost_device_is_published() {
    let world = World::new().await;
    let (mut ann, mut ben, direct) = pair(&world).await;
    let tablet = packet::Connect { device: "tablet".into(), ..world.connect("ben") };
    let mut tablet = world.wire(tablet).await;
    ann.say(direct, "unread").await;
    tablet.entry(direct).await;
    ben.set_will(direct, "not this", 1_000).await.expect("set");
    ben.set_will(direct, "lost at sea", 1).await.expect("in its place");
    let of_ben = ben.connected.user;
    drop(ben);
    for wire in [&mut ann, &mut tablet] {
        let told = wire.entry(direct).await;
        assert_eq!((&told.content[..], told.sender, told.seq), (&b"lost at sea"[..], of_ben, 2));
    }
    assert_eq!(tablet.conversations().await[0].unread, 2, "nobody has read anything");
    // It is not the device's own: it has no message id.
    let mut ben = world.user("ben").await;
    let page = ben.pages(direct, 10, false).await.remove(0);
    assert_eq!(texts(&page.items), ["unread", "lost at sea"]);
    assert!(page.items.iter().all(|item| matches!(item.kind, Some(packet::item::Kind::Entry(_)))), "{page:?}");
}

/// R16-17, R16-21: a goodbye takes the will away, unless it says otherwise; so does the end of the right.
#[tokio::test]
async fn who_says_goodbye_leaves_no_will() {
    let world = World::new().await;
    let (mut ann, mut ben, direct) = pair(&world).await;
    ben.set_will(direct, "said goodbye", 1_000).await.expect("set");
    ben.leave().await;
    let mut claims = world.claims("ben");
    claims.jti = "stolen".into();
    let revoked = packet::Connect { device: "tablet".into(), token: world.token(&claims), ..world.connect("ben") };
    let mut revoked = world.wire(revoked).await;
    revoked.set_will(direct, "was revoked", 1_000).await.expect("set");
    world.revoke("token stolen");
    assert_eq!(revoked.ended().await.reason, Reason::Revoked);
    let kept = packet::Connect { device: "watch".into(), ..world.connect("ben") };
    let mut kept = world.wire(kept).await;
    kept.set_will(direct, "kept", 2_000).await.expect("set");
    kept.session.goodbye_keeping_will();
    kept.ended().await;
    assert_eq!(&ann.entry(direct).await.content[..], b"kept", "which is the last to be due");
}

/// R16-20: what a device left is worth as much as its last token, also once it has gone: that may be taken back until the
/// will is published, by its id or with all that were made before a time; a newer one that it came with holds.
#[tokio::test]
async fn who_is_cut_while_it_is_away_leaves_no_will() {
    let mut world = World::new().await;
    let (_, mut ben, direct) = pair(&world).await;
    let connect = |world: &World, device: &str, jti: &str, iat: u64| {
        let claims = longwire::auth::Claims { jti: jti.into(), iat, ..world.claims("ben") };
        packet::Connect { device: device.into(), token: world.token(&claims), ..world.connect("ben") }
    };
    for (device, jti, iat) in [("tablet", "stolen", 5_000), ("watch", "old", 10), ("phone2", "first", 5_000)] {
        let mut wire = world.wire(connect(&world, device, jti, iat)).await;
        wire.set_will(direct, device, 1_000).await.expect("set");
    }
    // Refreshed, or come again, with a token that is not taken back.
    let first = connect(&world, "desk", "first-too", 5_000);
    let mut desk = world.wire(first).await;
    desk.set_will(direct, "desk", 1_000).await.expect("set");
    let token = connect(&world, "desk", "second", 5_000).token;
    desk.ask(Op::Refresh(packet::RefreshRequest { token })).await.expect("refreshed");
    drop(desk);
    let mut phone = world.wire(packet::Connect { incarnation: 1, ..connect(&world, "phone2", "second", 5_000) }).await;
    phone.next_id = 2;
    phone.say(direct, "back").await;
    drop(phone);
    world.revoke("token stolen\ntoken first\ntoken first-too\nuser ben 100");
    // It is not forgotten in a restart.
    ben.say(direct, "all are gone").await;
    world.restart().await;
    world.revoke("token stolen\ntoken first\ntoken first-too\nuser ben 100");
    let mut ann = world.user("ann").await;
    let kept = packet::Connect { device: "last".into(), ..connect(&world, "last", "kept", 5_000) };
    world.wire(kept).await.set_will(direct, "last", 4_000).await.expect("set");
    let mut said = Vec::new();
    while said.last().is_none_or(|last| last != "last") {
        said.push(String::from_utf8_lossy(&ann.entry(direct).await.content).into_owned());
    }
    said.retain(|text| !["back", "all are gone"].contains(&text.as_str()));
    said.sort();
    assert_eq!(said, ["desk", "last", "phone2"]);
}

/// R16-18: who comes back in time has its will still; another life of the device has not.
#[tokio::test]
async fn a_will_goes_over_to_the_next_session_of_the_same_life() {
    let world = World::new().await;
    let (mut ann, mut ben, direct) = pair(&world).await;
    let mut tablet = world.wire(packet::Connect { device: "tablet".into(), ..world.connect("ben") }).await;
    ben.set_will(direct, "of an earlier life", 1_000).await.expect("set");
    tablet.set_will(direct, "of the tablet", 1_000).await.expect("set");
    let same = packet::Connect {
        device: "tablet".into(),
        incarnation: tablet.incarnation,
        first_unanswered: tablet.next_id,
        ..world.connect("ben")
    };
    // It takes over, and is lost in turn; the phone begins anew, and is lost too.
    let (again, anew) = (world.wire(same).await, world.user("ben").await);
    assert_ne!(anew.incarnation, ben.incarnation);
    drop((again, anew));
    assert_eq!(&ann.entry(direct).await.content[..], b"of the tablet");
    ann.say(direct, "both are gone by now").await;
    let page = ann.pages(direct, 10, false).await.remove(0);
    let said: Vec<_> = page.items.iter().filter_map(entry).map(|entry| entry.content.clone()).collect();
    assert!(!said.iter().any(|content| &content[..] == b"of an earlier life"), "{said:?}");
}

/// R16-19, R16-20: a broker that ends takes nobody with it; whoever does not come back to the next one is lost, and what
/// it left is published if it still may be.
#[tokio::test]
async fn a_will_outlives_the_broker() {
    let mut world = World::new().await;
    let (mut ann, mut ben, direct) = pair(&world).await;
    let mut cid = world.user("cid").await;
    let group = ann.create_group("team", &["cid"]).await;
    ben.set_will(direct, "after the end", 1_500).await.expect("set");
    cid.set_will(group, "not any more", 1_000).await.expect("set");
    ann.set_role(group, "cid", Role::None).await.expect("removed");
    world.restart().await;
    drop((ben, cid));
    let mut ann = world.user("ann").await;
    let told = ann.entry(direct).await;
    assert_eq!(&told.content[..], b"after the end");
    let conversations = ann.conversations().await;
    let of_group = conversations.iter().find(|of| of.id == group).expect("it is ann's");
    assert_eq!(of_group.unread, 0, "what could not be published is gone");
}

/// The SDK's end of it: R16-7 is the application's, the rest is told as it comes.
#[tokio::test]
async fn the_sdk_signals_and_is_told_who_is_there() {
    use longwire_client::{Client, Signal};
    let world = World::new().await;
    let start = |user: &str| {
        let mut config = world.client(user);
        config.signals = true;
        Client::start(config).expect("it starts")
    };
    let ((ann, _for_ann), (ben, for_ben)) = (start("ann"), start("ben"));
    let direct = ann.open_direct("ben").await.expect("kept").await.expect("opened").conversation;
    let of_ben = ben.connected().await.expect("let in").user;
    let mut signals = ann.signals();
    let told = ann.subscribe_presence(vec![of_ben]).await.expect("an answer");
    assert_eq!((told.len(), told[0].state()), (1, PresenceState::Online));
    assert_eq!(signals.next().await, Some(Signal::Presence(told[0])), "listeners are told of answers too");
    ben.set_background(true).await.expect("taken");
    let away = packet::Presence { state: PresenceState::Away.into(), ..told[0] };
    assert_eq!(signals.next().await, Some(Signal::Presence(away)));
    ben.signal(direct, SignalKind::Typing, Bytes::new()).await;
    let typing = Signal::In { conversation: direct, user: of_ben, kind: SignalKind::Typing, content: Bytes::new() };
    assert_eq!(signals.next().await, Some(typing));
    assert_eq!(told_why(ann.online(direct).await), Reason::Forbidden);
    assert_eq!(ben.presence_shown_to().await.expect("an answer"), Audience::Company);
    ben.show_presence(Audience::Nobody).await.expect("kept").await.expect("set");
    assert_eq!(ben.presence_shown_to().await.expect("an answer"), Audience::Nobody);
    let hidden = packet::Presence { state: PresenceState::NotShown.into(), ..told[0] };
    assert_eq!(signals.next().await, Some(Signal::Presence(hidden)));
    ann.unsubscribe_presence(vec![of_ben]).await;

    ben.set_will(direct, "taken back", std::time::Duration::ZERO).await.expect("kept").await.expect("set");
    ben.clear_will().await.expect("kept").await.expect("taken back");
    let after = std::time::Duration::from_secs(1);
    ben.set_will(direct, "farewell", after).await.expect("kept").await.expect("set");
    // Its task ends with the last of its handles, and says goodbye: whoever closes is not lost.
    drop((ben, for_ben));
    ann.close().await;
    assert_eq!(signals.next().await, None, "nothing comes any more");
}

fn told_why<T: std::fmt::Debug>(answer: Result<T, longwire_client::RequestError>) -> Reason {
    match answer {
        Err(longwire_client::RequestError::Refused(refusal)) => refusal.reason,
        other => panic!("{other:?} is no refusal"),
    }
}
