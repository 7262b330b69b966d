//! How much may be made of messages and of other users: what is one too many is refused, and changes nothing. And what is
//! said in the name of who is erased: nothing.

use std::sync::Arc;

use longwire_protocol::packet::{self, publish::Action};
use longwire_protocol::reason::Reason;
use longwire_protocol::{ConversationId, LogTime, SessionNumber};

use super::core::Core;
use super::core_tests::{attach, decide};
use super::grants::Grants;
use super::limits::{CONTACTS_MAX, EDITS_MAX, EXPIRING_MAX, HIDDEN_MAX, Quotas, REACTIONS_MAX};
use super::ops::{Effect, Found, Op, Parting, Publish, Target, digest};
use super::outbox::Session;
use super::state::State;
use super::view::{Reader, Rows as _};
use super::wills::Fate;

/// A core by hand, with all rows in memory.
struct World {
    core: Core,
    state: State,
    next_id: u64,
}

impl World {
    fn new() -> Self {
        Self { core: Core::new(SessionNumber(0)), state: State::default(), next_id: 1 }
    }

    fn decide(&mut self, op: Op) -> Vec<Effect> {
        decide(&mut self.core, &mut self.state, op)
    }

    fn comes(&mut self, user: &str) -> Arc<Session> {
        attach(&mut self.core, &mut self.state, user, &Arc::default()).expect("nothing stands in the way")
    }

    /// Publishes, about a message of `of` if it is about one; the conversation and seq of the ack.
    fn publish(&mut self, by: &Arc<Session>, of: &Session, mut publish: packet::Publish) -> Result<(u64, u64), Reason> {
        (publish.message_id, publish.first_unanswered) = (self.next_id, self.next_id);
        self.next_id += 1;
        let target = Target { sender: of.user, is_message: true, countable: 1, time: LogTime(0) };
        let found = Some(Found::Target(Some(target)));
        let conversation = publish.conversation;
        let effects =
            self.decide(Op::Publish(Publish { session: Arc::clone(by), digest: digest(&publish), publish, found }));
        let answer = effects.into_iter().find_map(|effect| match effect {
            Effect::Answer(_, _, answer) => Some(answer),
            _ => None,
        });
        let ack = answer.expect("a publish has an answer").map_err(|refusal| refusal.reason)?;
        Ok((conversation.max(ack.conversation), ack.seq))
    }

    fn act(
        &mut self,
        by: &Arc<Session>,
        of: &Session,
        conversation: u64,
        action: Action,
    ) -> Result<(u64, u64), Reason> {
        self.publish(by, of, packet::Publish { conversation, action: Some(action), ..Default::default() })
    }

    /// A group of one's own.
    fn group(&mut self, by: &Arc<Session>, users: &[String]) -> u64 {
        let create = packet::CreateGroup { label: "g".into(), users: users.to_vec(), ..Default::default() };
        self.act(by, by, 0, Action::CreateGroup(create)).expect("made").0
    }

    /// The heads of a conversation and of one's inbox.
    fn entries(&self, of: &Session, conversation: u64) -> (u64, u64) {
        let rows = Reader::new(&self.state);
        let head = |id| rows.conversation(id).map_or(0, |row| row.head.seq.0);
        (head(ConversationId(conversation)), head(rows.user(of.user).expect("it came").inbox))
    }

    fn says(&mut self, by: &Arc<Session>, conversation: u64) -> u64 {
        self.publish(by, by, packet::Publish { conversation, content: "x".into(), ..Default::default() })
            .expect("said")
            .1
    }
}

/// Does it as often as it may be done, and once more.
fn up_to(most: usize, mut it: impl FnMut(usize) -> Result<(u64, u64), Reason>) {
    for n in 0..most {
        it(n).unwrap_or_else(|reason| panic!("{n} of {most}: {reason:?}"));
    }
    assert_eq!(it(most), Err(Reason::QuotaExceeded), "beyond {most}");
}

/// SPEC R5.6-4.
#[test]
fn a_message_is_edited_a_hundred_times() {
    let mut world = World::new();
    let ann = world.comes("ann");
    let group = world.group(&ann, &[]);
    let seq = world.says(&ann, group);
    up_to(EDITS_MAX, |_| world.act(&ann, &ann, group, Action::Edit(packet::Edit { seq })));
}

/// SPEC R5.6-7: different ones; one that was given already has room all the same.
#[test]
fn a_message_has_so_many_reactions() {
    let mut world = World::new();
    let ann = world.comes("ann");
    let names: Vec<String> = (0..=REACTIONS_MAX + 1).map(|n| format!("user{n}")).collect();
    let group = world.group(&ann, &names);
    let seq = world.says(&ann, group);
    let users: Vec<_> = names.iter().map(|name| world.comes(name)).collect();
    let react = |n: usize| Action::React(packet::React { seq, reaction: n.to_string() });
    up_to(REACTIONS_MAX, |n| world.act(&users[n], &ann, group, react(n)));
    world.act(&users[REACTIONS_MAX + 1], &ann, group, react(0)).expect("it is there");
}

/// SPEC R5.6-8.
#[test]
fn a_user_hides_so_many_messages_of_a_conversation() {
    let mut world = World::new();
    let ann = world.comes("ann");
    let group = world.group(&ann, &[]);
    up_to(HIDDEN_MAX, |_| {
        let seq = world.says(&ann, group);
        world.act(&ann, &ann, group, Action::Hide(packet::Hide { seq, undo: false }))
    });
    let again = Action::Hide(packet::Hide { seq: 2, undo: false });
    world.act(&ann, &ann, group, again).expect("it is hidden already");
}

/// SPEC R5.5-6: each of these is an entry when it is said first, and none when it is said again.
#[test]
fn what_is_so_already_writes_no_entry() {
    let mut world = World::new();
    let ann = world.comes("ann");
    let group = world.group(&ann, &[]);
    let seq = world.says(&ann, group);
    let info = |picture: &str| {
        let info = packet::Info { picture: picture.into(), ..Default::default() };
        Action::SetInfo(packet::SetInfo { info: Some(Box::new(info)) })
    };
    let policy = packet::Policy { publishes: packet::Role::Admin.into(), ..Default::default() };
    let governed = packet::Info { picture: "p".into(), policy: Some(policy), ..Default::default() };
    let settings = |settings| Action::SetSettings(packet::SetSettings { settings: Some(settings) });
    let muted = packet::Settings { muted_until: 9, ..Default::default() };
    let hide = |undo| Action::Hide(packet::Hide { seq, undo });
    let unread = packet::Settings { marked_unread: true, ..muted };
    let label = |label: &str| Action::SetLabel(packet::SetLabel { label: label.into() });
    let changes = [
        (label("g"), false),
        (label("another"), true),
        (info(""), false),
        (info("p"), true),
        (Action::SetInfo(packet::SetInfo { info: Some(Box::new(governed)) }), true),
        (settings(packet::Settings::default()), false),
        (settings(muted), true),
        (settings(unread), true),
        (settings(packet::Settings::default()), true),
        (hide(true), false),
        (hide(false), true),
        (hide(true), true),
    ];
    for (action, is_new) in changes {
        let said = format!("{action:?}");
        for is_first in [true, false] {
            let before = world.entries(&ann, group);
            let is_own = matches!(action, Action::SetSettings(_) | Action::Hide(_));
            let ack = world.act(&ann, &ann, group, action.clone()).expect("acked");
            let after = world.entries(&ann, group);
            assert_eq!(after != before, is_new && is_first, "{said}, first: {is_first}");
            assert_eq!(ack.1, if is_own { after.1 } else { after.0 }, "the head, of where it would stand: {said}");
        }
    }
    // What is marked as unread is so until the next mark: then it may be said again.
    world.act(&ann, &ann, group, settings(unread)).expect("acked");
    world.act(&ann, &ann, group, Action::SetMark(packet::SetMark { seq })).expect("acked");
    let before = world.entries(&ann, group);
    world.act(&ann, &ann, group, settings(unread)).expect("acked");
    assert_ne!(world.entries(&ann, group), before);
}

/// SPEC R5.6-11.
#[test]
fn so_many_messages_of_a_conversation_are_yet_to_expire() {
    let mut world = World::new();
    let ann = world.comes("ann");
    let group = world.group(&ann, &[]);
    up_to(EXPIRING_MAX, |_| {
        let beside = Some(Box::new(packet::Beside { expires_in_ms: 1_000, ..Default::default() }));
        world.publish(&ann, &ann, packet::Publish { conversation: group, beside, ..Default::default() })
    });
}

/// SPEC R15-4.
#[test]
fn a_user_has_so_many_contacts() {
    let mut world = World::new();
    let ann = world.comes("ann");
    up_to(CONTACTS_MAX as usize, |n| {
        let contact = packet::SetContact { user: format!("user{n}"), ..Default::default() };
        world.act(&ann, &ann, 0, Action::SetContact(contact))
    });
}

/// SPEC 15.4: between the record that begins an erasure and the one that takes a device's will, its time may come.
#[test]
fn who_is_erased_leaves_no_will() {
    for is_erased in [false, true] {
        let mut world = World::new();
        let [admin, ann] = ["admin", "ann"].map(|user| world.comes(user));
        admin.grants.store(Arc::new(Grants { is_admin: true, ..Grants::default() }));
        let group = world.group(&ann, &[]);
        let will = packet::SetWill { after_ms: 0 };
        let publish = packet::Publish {
            conversation: group,
            content: "gone".into(),
            action: Some(Action::SetWill(will)),
            ..Default::default()
        };
        world.publish(&ann, &ann, publish).expect("set");
        if is_erased {
            let erase = packet::EraseUser { user: "ann".into() };
            world.act(&admin, &admin, 0, Action::EraseUser(erase)).expect("begun");
        } else {
            world.decide(Op::Detach(Arc::clone(&ann), None, Parting::Lost));
        }
        let head = |world: &World| {
            let row = Reader::new(&world.state).conversation(ConversationId(group)).map(|row| row.head.seq);
            row.expect("a group")
        };
        let before = head(&world);
        world.decide(Op::Fate(ann.device, Fate::Publish));
        assert_eq!(head(&world) == before, is_erased, "erased: {is_erased}");
        assert!(!world.state.wills().contains_key(&ann.device), "it has none any more");
    }
}

/// SPEC R7-11: who is banned already, and lifting, need no room; and who is refused changes nothing.
#[test]
fn so_many_users_are_banned_from_a_group() {
    let mut world = World::new();
    world.state.quotas = Quotas { bans: 3, ..Quotas::default() };
    let [ann, ben] = ["ann", "ben"].map(|user| world.comes(user));
    let group = world.group(&ann, &["ben".into()]);
    let ban = |user: &str, lift| Action::Ban(packet::Ban { user: user.into(), lift });
    let names = ["eve1", "eve2", "eve3", "never-seen"];
    up_to(3, |n| world.act(&ann, &ann, group, ban(names[n], false)));
    assert!(Reader::new(&world.state).user_named("never-seen").is_none(), "nobody was made");
    let before = world.entries(&ann, group);
    assert_eq!(world.act(&ann, &ann, group, ban("ben", false)), Err(Reason::QuotaExceeded));
    assert_eq!(world.entries(&ann, group), before);
    world.says(&ben, group);
    for (user, lift) in [("eve1", false), ("nobody", true), ("eve2", true), ("eve2", true)] {
        world.act(&ann, &ann, group, ban(user, lift)).expect("changes nothing, or makes room");
    }
    world.act(&ann, &ann, group, ban("ben", false)).expect("there is room for one");
    assert_eq!(world.act(&ann, &ann, group, ban("eve4", false)), Err(Reason::QuotaExceeded));
    // Another group has its own.
    let other = world.group(&ann, &[]);
    world.act(&ann, &ann, other, ban("eve4", false)).expect("as many as there may be");
}

/// SPEC R11-1: what an operator lowered is refused where it ends, as what stands in the SPEC would be.
#[test]
fn quotas_that_were_lowered_are_kept() {
    let mut world = World::new();
    world.state.quotas = Quotas { conversations: 5, devices: 1, contacts: 2, members: 3, ..Quotas::default() };
    let [ann, ben] = ["ann", "ben"].map(|user| world.comes(user));
    let create = |users: &[&str]| {
        let users = users.iter().map(|&user| user.into()).collect();
        Action::CreateGroup(packet::CreateGroup { label: "g".into(), users, ..Default::default() })
    };
    let full = world.act(&ann, &ann, 0, create(&["ben", "cid", "dan"])).expect_err("four in a group");
    assert_eq!(full, Reason::QuotaExceeded);
    let group = world.act(&ann, &ann, 0, create(&["ben", "cid", "ben", "ann"])).expect("each counts once").0;
    let add = |user: &str| Action::SetRole(packet::SetRole { user: user.into(), role: packet::Role::Member.into() });
    assert_eq!(world.act(&ann, &ann, group, add("dan")).expect_err("a fourth"), Reason::QuotaExceeded);

    // Ben is brought into four by others, and goes into a fifth itself.
    for _ in 1..4 {
        world.act(&ann, &ann, 0, create(&["ben"])).expect("there is room");
    }
    let left = world.act(&ann, &ann, 0, create(&["ben"])).expect("without ben").0;
    let is_member = |world: &World, id| Reader::new(&world.state).member(ConversationId(id), ben.user).is_some();
    assert!(is_member(&world, group) && !is_member(&world, left));
    assert_eq!(world.act(&ann, &ann, 0, create(&[])).expect_err("a sixth"), Reason::QuotaExceeded);
    world.act(&ben, &ben, 0, create(&[])).expect("a fifth");
    assert_eq!(world.act(&ben, &ben, 0, create(&[])).expect_err("a sixth"), Reason::QuotaExceeded);

    let contact = |user: &str| Action::SetContact(packet::SetContact { user: user.into(), ..Default::default() });
    for user in ["ben", "cid"] {
        world.act(&ann, &ann, 0, contact(user)).expect("there is room");
    }
    assert_eq!(world.act(&ann, &ann, 0, contact("dan")).expect_err("a third"), Reason::QuotaExceeded);
}
