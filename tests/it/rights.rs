//! Who may do what in direct conversations, inboxes and channels: the tables of SPEC chapter 7, cell by cell (groups are in
//! `roles.rs`); and who gets what was said, live, after an absence and from history.

use longwire::auth::Claims;
use longwire_protocol::Refusal;
use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::request::Op;
use longwire_protocol::packet::{self, Publish, Role};
use longwire_protocol::reason::Reason;

use crate::world::{Wire, World, entry, texts};

/// A cell of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum May {
    Yes,
    /// *forbidden*: seen, and not allowed.
    No,
    /// *unknown_conversation*: as if it were not there.
    Hidden,
    /// *invalid_argument*: conversations of this kind have no such thing.
    Never,
}
use May::{Hidden, Never, No, Yes};

pub(crate) fn may<T>(outcome: Result<T, Refusal>) -> May {
    match outcome.map_err(|refusal| refusal.reason) {
        Ok(_) => Yes,
        Err(Reason::Forbidden) => No,
        Err(Reason::UnknownConversation) => Hidden,
        Err(Reason::InvalidArgument) => Never,
        Err(other) => panic!("{other:?} is no answer about rights"),
    }
}

/// What one can try with a conversation.
#[derive(Clone, Copy, Debug)]
enum Try {
    Say,
    Read,
    Mark,
    Members,
    Watch,
    Join,
    Leave,
    Label,
    Add,
    Remove(&'static str),
    Ban,
    JoinKey,
    Describe,
    Retention,
    Settings,
    Level,
    Edit(u64),
    Recall(u64),
    React(u64),
    Hide(u64),
}

async fn attempt(wire: &mut Wire, id: u64, what: Try) -> May {
    let role = |user: &str, role: Role| Action::SetRole(packet::SetRole { user: user.into(), role: role.into() });
    match what {
        Try::Say => may(wire.insist(Publish { conversation: id, ..Publish::default() }).await),
        Try::Read => {
            let request =
                packet::HistoryRequest { conversation: id, from_seq: 0, limit: 10, backwards: false, compact: false };
            may(wire.history(request).await)
        }
        Try::Members => {
            may(wire.ask(Op::Members(packet::MembersRequest { conversation: id, after_user: 0, limit: 9 })).await)
        }
        Try::Watch => may(wire.ask(Op::Watch(packet::WatchRequest { conversation: id, stop: false })).await),
        Try::Mark => may(wire.act(id, Action::SetMark(packet::SetMark { seq: 1 })).await),
        Try::Join => may(wire.act(id, Action::Join(packet::Join::default())).await),
        Try::Leave => may(wire.act(id, Action::Leave(packet::Leave {})).await),
        Try::Label => may(wire.act(id, Action::SetLabel(packet::SetLabel { label: "new".into() })).await),
        Try::Add => may(wire.act(id, role("newcomer", Role::Member)).await),
        Try::Remove(whom) => may(wire.act(id, role(whom, Role::None)).await),
        Try::Ban => may(wire.act(id, Action::Ban(packet::Ban { user: "newcomer".into(), lift: false })).await),
        Try::JoinKey => {
            let key = bytes::Bytes::from_static(b"a key of 16 byte");
            may(wire.act(id, Action::SetJoinKey(packet::SetJoinKey { key })).await)
        }
        Try::Describe => may(wire.act(id, Action::SetInfo(packet::SetInfo::default())).await),
        Try::Retention => {
            let retention = packet::Retention { mode: packet::RetentionMode::KeepFor.into(), age_ms: 86_400_000 };
            may(wire.act(id, Action::SetRetention(packet::SetRetention { retention: Some(retention) })).await)
        }
        Try::Settings => may(wire.act(id, Action::SetSettings(packet::SetSettings::default())).await),
        Try::Level => {
            may(wire.act(id, Action::SetLevel(packet::SetLevel { level: packet::Level::HeadsOnly.into() })).await)
        }
        Try::Edit(seq) => may(wire.act(id, Action::Edit(packet::Edit { seq })).await),
        Try::Recall(seq) => may(wire.act(id, Action::Recall(packet::Recall { seq })).await),
        Try::React(seq) => may(wire.act(id, Action::React(packet::React { seq, reaction: "+".into() })).await),
        Try::Hide(seq) => may(wire.act(id, Action::Hide(packet::Hide { seq, undo: false })).await),
    }
}

/// SPEC 7: direct conversations and inboxes.
#[tokio::test]
async fn a_direct_conversation_and_an_inbox_are_for_those_whose_they_are() {
    let world = World::new().await;
    let (mut alice, mut bob, direct) = world.pair().await;
    let mut mallory = world.user("mallory").await;
    let inbox = alice.connected.inbox;
    let (hers, his) = (alice.say(direct, "hers").await.seq, bob.say(direct, "his").await.seq);
    let table = [
        (direct, Try::Say, [Yes, Yes, Hidden]),
        (direct, Try::Read, [Yes, Yes, Hidden]),
        (direct, Try::Mark, [Yes, Yes, Hidden]),
        (direct, Try::Members, [Yes, Yes, Hidden]),
        (direct, Try::Watch, [Hidden, Hidden, Hidden]),
        (direct, Try::Join, [No, No, Hidden]),
        (direct, Try::Leave, [No, No, Hidden]),
        (direct, Try::Label, [Never, Never, Hidden]),
        (direct, Try::Add, [Never, Never, Hidden]),
        (direct, Try::Remove("bob"), [Never, Never, Hidden]),
        (direct, Try::Ban, [Never, Never, Hidden]),
        (direct, Try::JoinKey, [Never, Never, Hidden]),
        (direct, Try::Describe, [Never, Never, Hidden]),
        (direct, Try::Settings, [Yes, Yes, Hidden]),
        (direct, Try::Level, [Yes, Yes, Hidden]),
        (direct, Try::Retention, [Yes, Yes, Hidden]),
        (direct, Try::React(hers), [Yes, Yes, Hidden]),
        (direct, Try::Hide(hers), [Yes, Yes, Hidden]),
        (direct, Try::Edit(his), [No, Yes, Hidden]),
        // His comes second: what was recalled may be recalled by anybody who is shown that.
        (direct, Try::Recall(his), [No, Yes, Hidden]),
        (inbox, Try::Say, [No, Hidden, Hidden]),
        (inbox, Try::Read, [Yes, Hidden, Hidden]),
        (inbox, Try::Join, [No, Hidden, Hidden]),
        (inbox, Try::Leave, [No, Hidden, Hidden]),
        (inbox, Try::Label, [Never, Hidden, Hidden]),
        (inbox, Try::Add, [Never, Hidden, Hidden]),
        (inbox, Try::Watch, [Hidden, Hidden, Hidden]),
        (inbox, Try::Ban, [Never, Hidden, Hidden]),
        (inbox, Try::JoinKey, [Never, Hidden, Hidden]),
        (inbox, Try::Describe, [Never, Hidden, Hidden]),
        (inbox, Try::Level, [Never, Hidden, Hidden]),
        (inbox, Try::Retention, [No, Hidden, Hidden]),
    ];
    for (id, what, expected) in table {
        for (wire, cell) in [&mut alice, &mut bob, &mut mallory].into_iter().zip(expected) {
            assert_eq!(attempt(wire, id, what).await, cell, "{what:?} on {id} by {}", wire.connected.user);
        }
    }
}

async fn granted(world: &World, user: &str, publish: &[&str], read: &[&str]) -> Wire {
    let list = |patterns: &[&str]| patterns.iter().map(|&p| p.to_owned()).collect();
    let claims = Claims { publish: list(publish), read: list(read), ..world.claims(user) };
    world.wire(packet::Connect { token: world.token(&claims), ..world.connect(user) }).await
}

/// SPEC 7: a channel is what the token's patterns make of it.
#[tokio::test]
async fn patterns_decide_about_every_action_on_a_channel() {
    let world = World::new().await;
    let mut both = granted(&world, "both", &["news/*"], &["news/*"]).await;
    let mut reads = granted(&world, "reads", &[], &["news/*"]).await;
    let mut writes = granted(&world, "writes", &["news/*"], &[]).await;
    let mut neither = granted(&world, "neither", &["other/**"], &["news"]).await;
    let channel = both.open_channel("news/a").await.expect("opened");
    let table = [
        (Try::Say, [Yes, No, Yes, Hidden]),
        (Try::Read, [Yes, Yes, Hidden, Hidden]),
        (Try::Watch, [Yes, Yes, Hidden, Hidden]),
        // Nobody has joined yet.
        (Try::Settings, [No, No, No, Hidden]),
        (Try::Level, [No, No, No, Hidden]),
        // The first message is of who may do both. Who may not read is not shown it.
        (Try::React(1), [Yes, No, Never, Hidden]),
        (Try::Edit(1), [Yes, No, Never, Hidden]),
        (Try::Mark, [No, No, No, Hidden]),
        (Try::Members, [Hidden, Hidden, Hidden, Hidden]),
        (Try::Join, [Yes, Yes, No, Hidden]),
        (Try::Mark, [Yes, Yes, No, Hidden]),
        (Try::Settings, [Yes, Yes, No, Hidden]),
        (Try::Level, [Yes, Yes, No, Hidden]),
        (Try::React(1), [Yes, Yes, Never, Hidden]),
        (Try::Hide(1), [Yes, Yes, No, Hidden]),
        (Try::Ban, [Never, Never, Never, Hidden]),
        (Try::JoinKey, [Never, Never, Never, Hidden]),
        (Try::Describe, [Never, Never, Never, Hidden]),
        // A channel is nobody's: an administrator says that.
        (Try::Retention, [No, No, No, Hidden]),
        (Try::Members, [Yes, Yes, Hidden, Hidden]),
        (Try::Label, [Never, Never, Never, Hidden]),
        (Try::Add, [Never, Never, Never, Hidden]),
        (Try::Leave, [Yes, Yes, Yes, Hidden]),
    ];
    for (what, expected) in table {
        for (n, (wire, cell)) in
            [&mut both, &mut reads, &mut writes, &mut neither].into_iter().zip(expected).enumerate()
        {
            let who = ["both", "reads", "writes", "neither"][n];
            assert_eq!(attempt(wire, channel, what).await, cell, "{what:?} by {who}");
        }
    }
    for (wire, cell) in [(&mut reads, Yes), (&mut writes, Yes), (&mut neither, Hidden)] {
        assert_eq!(may(wire.open_channel("news/a").await), cell, "opening");
    }
}

/// R12-4, R5.6-5: who moderates a channel recalls what anybody said there, and is given nothing else; so does an administrator.
#[tokio::test]
async fn who_moderates_a_channel_recalls_what_others_said_there() {
    let world = World::new().await;
    let mut says = granted(&world, "says", &["**"], &["**"]).await;
    let moderating = async |user: &str, moderate: &str, read: &str| {
        let (moderate, read) = (vec![moderate.to_owned()], vec![read.to_owned()]);
        let claims = Claims { moderate, read, ..world.claims(user) };
        world.wire(packet::Connect { token: world.token(&claims), ..world.connect(user) }).await
    };
    let mut moderates = moderating("moderates", "news/*", "news/*").await;
    let mut elsewhere = moderating("elsewhere", "other/**", "news/*").await;
    let mut blind = moderating("blind", "news/*", "other").await;
    let admin = Claims { admin: true, read: vec!["news/*".into()], ..world.claims("root") };
    let mut root = world.wire(packet::Connect { token: world.token(&admin), ..world.connect("root") }).await;
    let channel = says.open_channel("news/a").await.expect("opened");
    let group = says.create_group("news/a", &["moderates", "root"]).await;
    let in_group = says.say(group, "a group has admins of its own").await.seq;
    for text in ["one", "two", "three"] {
        says.say(channel, text).await;
    }
    let table = [
        (channel, Try::Recall(1), [No, Hidden, Yes, Yes]),
        (channel, Try::Recall(2), [No, Hidden, Yes, Yes]),
        (channel, Try::Edit(3), [No, Hidden, No, No]),
        (channel, Try::Say, [No, Hidden, No, No]),
        (channel, Try::Retention, [No, Hidden, No, Yes]),
        (group, Try::Recall(in_group), [Hidden, Hidden, No, No]),
    ];
    for (id, what, expected) in table {
        let who = [&mut elsewhere, &mut blind, &mut moderates, &mut root];
        for (wire, cell) in who.into_iter().zip(expected) {
            assert_eq!(attempt(wire, id, what).await, cell, "{what:?} on {id} by {}", wire.connected.user);
        }
    }
    // Root is the one who finds that the second is recalled already: this one it recalls itself.
    assert_eq!(attempt(&mut root, channel, Try::Recall(3)).await, Yes);
    let whole = packet::HistoryRequest { conversation: channel, limit: 200, ..Default::default() };
    let shown = says.history(whole).await.expect("a page").items;
    let recalls: Vec<_> = shown.iter().filter_map(entry).filter_map(|e| Some((e.sender, e.recall?.seq))).collect();
    let (by, of_root) = (moderates.connected.user, root.connected.user);
    assert_eq!(recalls, [(by, 1), (by, 2), (of_root, 3)], "and who it was is seen");
    assert_eq!(texts(&shown), [""; 0], "of what was said nothing is left");
}

/// R12-4: the patterns are those of the moment: a session that is refreshed with others moderates no more.
#[tokio::test]
async fn who_is_refreshed_without_it_moderates_no_more() {
    let world = World::new().await;
    let mut says = granted(&world, "says", &["**"], &["**"]).await;
    let list = || vec!["news".to_owned()];
    let claims = Claims { read: list(), moderate: list(), ..world.claims("mo") };
    let mut mo = world.wire(packet::Connect { token: world.token(&claims), ..world.connect("mo") }).await;
    let channel = says.open_channel("news").await.expect("opened");
    for text in ["one", "two"] {
        says.say(channel, text).await;
    }
    assert_eq!(attempt(&mut mo, channel, Try::Recall(1)).await, Yes);
    let token = world.token(&Claims { moderate: Vec::new(), ..claims });
    mo.ask(Op::Refresh(packet::RefreshRequest { token })).await.expect("a good token");
    assert_eq!(attempt(&mut mo, channel, Try::Recall(2)).await, No);
}

/// What is said reaches those who may read it, on each way there is, and nobody else on any.
#[tokio::test]
async fn nobody_gets_what_is_not_theirs_live_after_an_absence_or_from_history() {
    let world = World::new().await;
    let mut speaker = granted(&world, "speaker", &["**"], &["**"]).await;
    let names = ["insider", "removed", "outsider"];
    let grants: [(&[&str], &[&str]); 3] = [(&[], &["c"]), (&[], &["c"]), (&["c"], &["d"])];
    let connect = |n: usize, device: &str| {
        let list = |patterns: &[&str]| patterns.iter().map(|&p| p.to_owned()).collect();
        let claims = Claims { publish: list(grants[n].0), read: list(grants[n].1), ..world.claims(names[n]) };
        packet::Connect { token: world.token(&claims), device: device.into(), ..world.connect(names[n]) }
    };
    let group = speaker.create_group("g", &["insider", "removed"]).await;
    let direct = speaker.open_direct("insider").await;
    let channel = speaker.open_channel("c").await.expect("opened");
    let mut live = Vec::new();
    for n in 0..names.len() {
        live.push(world.wire(connect(n, "live")).await);
    }
    for wire in &mut live[..2] {
        wire.act(channel, Action::Join(packet::Join::default())).await.expect("joined");
    }
    // A second device of each goes away here.
    let mut away = Vec::new();
    for (n, name) in names.iter().enumerate() {
        let mut wire = world.wire(connect(n, "away")).await;
        let fence = speaker.open_direct(name).await;
        wire.caught_up().await;
        speaker.say(fence, "go").await;
        wire.entry(fence).await;
        away.push(wire.settle().await);
        wire.leave().await;
    }
    speaker.set_role(group, "removed", Role::None).await.expect("removed");
    live[1].act(channel, Action::Leave(packet::Leave {})).await.expect("left");
    for id in [group, direct, channel] {
        speaker.say(id, "secret").await;
    }
    for (n, name) in names.iter().enumerate() {
        let expected: &[u64] = if n == 0 { &[group, direct, channel] } else { &[] };
        let fence = speaker.open_direct(name).await;
        speaker.say(fence, "fence").await;
        // The channel's name is read by who has left it, too, when it asks: its token says so.
        let secrets = |items: &[packet::Item]| {
            let entries = items.iter().filter_map(entry).filter(|e| &e.content[..] == b"secret");
            let mut found: Vec<u64> = entries.map(|e| e.conversation).collect();
            found.sort_unstable();
            found
        };
        let mut sorted = expected.to_vec();
        sorted.sort_unstable();
        // Live: in two lanes, so what is wanted is waited for, and then the fence in the other lane.
        let mut got = Vec::new();
        while secrets(&got).len() < sorted.len() || !texts(&got).contains(&"fence".to_owned()) {
            got.extend(live[n].until(|item| entry(item).is_some()).await);
        }
        assert_eq!(secrets(&got), sorted, "{name}, live");
        let start = packet::StartKind::OwnCursor.into();
        let back = packet::Connect { start, cursor: away[n].clone(), ..connect(n, "away") };
        let mut wire = world.wire(back).await;
        assert_eq!(secrets(&wire.caught_up().await), sorted, "{name}, after an absence");
        for id in [group, direct, channel] {
            let request =
                packet::HistoryRequest { conversation: id, from_seq: 0, limit: 100, backwards: false, compact: false };
            let page = wire.history(request).await.map(|page| secrets(&page.items)).unwrap_or_default();
            let may_read = expected.contains(&id) || (n == 1 && id == channel);
            assert_eq!(page, if may_read { vec![id] } else { vec![] }, "{name}, from the history of {id}");
        }
    }
}
