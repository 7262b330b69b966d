//! What becomes of devices and accounts with time, decided by the core alone; and that the log says it all.

use std::sync::Arc;

use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, DeviceChangeKind, item};
use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::{DeviceId, Incarnation, LogTime, MessageId, SessionNumber};
use prost::Message as _;

use super::core::Core;
use super::draft::Draft;
use super::fold::fold_frame;
use super::grants::{Bearer, TakenBack};
use super::limits::{
    DEVICE_UNSEEN_MS, DEVICES_MAX, DISPLAY_NAME_BYTES_MAX, PROFILE_DATA_BYTES_MAX, PROFILE_PICTURE_BYTES_MAX,
    SEEN_EVERY_MS,
};
use super::ops::{Attach, Effect, Op, Parting, Proof, Publish, digest};
use super::outbox::{Attached, Generation, Outbox, Session};
use super::rows::{Key, Secret};
use super::state::{Lookup, State};
use super::view::{Overlay, Reader, Rows as _, View};
use crate::store::{Frame, FrameBuilder, Position, Record, SegmentId};

/// A core by hand, and the log that it wrote.
struct World {
    core: Core,
    state: State,
    time: LogTime,
    frames: Vec<Frame>,
}

impl World {
    fn new() -> Self {
        Self {
            core: Core::new(SessionNumber(0)),
            state: State::default(),
            time: LogTime(1_000_000),
            frames: Vec::new(),
        }
    }

    fn decide(&mut self, op: Op) -> Vec<Effect> {
        let (mut overlay, mut effects) = (Overlay::default(), Vec::new());
        let mut frame = FrameBuilder::new(SegmentId(1), Position(self.state.tail.0 + 1), self.time);
        let view = View::new(&self.state, &mut overlay);
        let mut draft = Draft { view, frame: &mut frame, effects: &mut effects, now_ms: 0, writable: true };
        self.core.decide(op, &mut draft);
        overlay.merge(&mut self.state);
        self.frames.push(frame.finish());
        effects
    }

    fn attach(&mut self, device: &str, incarnation: u64, proof: Proof) -> Result<Attached, Refusal> {
        let attach = Attach {
            user: "ann".into(),
            device: device.into(),
            grants: Arc::default(),
            proof,
            incarnation: Incarnation(incarnation),
            first_unanswered: MessageId(1),
            is_background: false,
            hears_signals: false,
            outbox: Arc::default(),
        };
        for effect in self.decide(Op::Attach(Box::new(attach))) {
            match effect {
                Effect::Attach(attached) => return Ok(attached),
                Effect::Refuse(_, refusal) => return Err(refusal),
                _ => {}
            }
        }
        panic!("an attach has an answer")
    }

    fn come(&mut self, device: &str) -> Arc<Session> {
        self.attach(device, 0, token()).expect("attached").session
    }

    fn go(&mut self, session: &Arc<Session>) {
        self.decide(Op::Detach(Arc::clone(session), None, Parting::Goodbye));
    }

    fn publish(&mut self, session: &Arc<Session>, id: u64, action: Action) -> Vec<Effect> {
        let publish = packet::Publish { message_id: id, action: Some(action), ..packet::Publish::default() };
        let digest = digest(&publish);
        self.decide(Op::Publish(Publish { session: Arc::clone(session), publish, digest, found: None }))
    }

    fn devices(&self) -> Vec<DeviceId> {
        let rows = Reader::new(&self.state);
        let user = rows.user_named("ann").expect("she came");
        rows.user(user).expect("as above").devices.clone()
    }

    /// What the newest frame tells of devices.
    fn told(&self) -> Vec<(u64, DeviceChangeKind)> {
        let records = &self.frames.last().expect("a frame").records;
        let entries = records.iter().filter_map(|record| match record {
            Record::Entry(entry) => packet::Item::decode(&entry.item[..]).expect("an item").kind,
            _ => None,
        });
        let changes = entries.filter_map(|kind| match kind {
            item::Kind::Entry(entry) => entry.device,
            _ => None,
        });
        changes.map(|change| (change.device, change.kind())).collect()
    }
}

fn token() -> Proof {
    Proof::Token { issued: LogTime(u64::MAX), generation: None }
}

fn closes(effects: &[Effect], session: &Session) -> bool {
    effects.iter().any(|effect| match effect {
        Effect::Close(outbox, refusal) => {
            std::ptr::eq(&raw const **outbox, &raw const *session.outbox) && refusal.reason == Reason::Revoked
        }
        _ => false,
    })
}

/// SPEC R15-10, R15-11: forgotten when another comes, whether or not it is the twenty-first; online ones never.
#[test]
fn what_was_not_seen_for_sixty_days_is_forgotten_when_another_comes() {
    let mut world = World::new();
    let sessions: Vec<_> = (0..DEVICES_MAX).map(|n| world.come(&format!("d{n}"))).collect();
    let refusal = world.attach("one-more", 0, token()).expect_err("there are twenty");
    assert_eq!(refusal.reason, Reason::QuotaExceeded);
    sessions[2..].iter().for_each(|session| world.go(session));
    world.time.0 += DEVICE_UNSEEN_MS / 2;
    let back = world.attach("d3", 1, token()).expect("it is known").session;
    world.go(&back);
    world.time.0 += DEVICE_UNSEEN_MS / 2 + 1;
    let new = world.come("one-more");
    // Online all the while, or seen 30 days ago.
    assert_eq!(world.devices(), [sessions[0].device, sessions[1].device, sessions[3].device, new.device]);
    let expired = |device: &Arc<Session>| (device.device.0, DeviceChangeKind::DeviceExpired);
    let mut told: Vec<_> = sessions[2..].iter().filter(|s| s.device != back.device).map(expired).collect();
    told.push((new.device.0, DeviceChangeKind::DeviceAdded));
    assert_eq!(world.told(), told);
    // With the outbox of before it has to settle; without, it is the same device with a new incarnation.
    let refusal = world.attach("d2", 1, token()).expect_err("an outbox of before");
    assert_eq!(refusal.reason, Reason::IncarnationStale);
    let again = world.come("d2");
    assert_eq!((again.device, again.incarnation), (sessions[2].device, Incarnation(3)));
}

/// A device that is here is seen, though it says nothing: a record an hour, which nothing waits for.
#[test]
fn who_is_here_is_seen() {
    let mut world = World::new();
    let session = world.come("phone");
    let seen = |world: &World| Reader::new(&world.state).device(session.device).expect("a device").seen;
    let first = world.time;
    for _ in 0..10 {
        world.time.0 += SEEN_EVERY_MS / 2;
        world.decide(Op::See(Arc::clone(&session)));
        assert!(world.time.0 - seen(&world).0 < SEEN_EVERY_MS);
    }
    assert!(seen(&world) > first);
    let records: usize = world.frames[1..].iter().map(|frame| frame.records.len()).sum();
    assert_eq!(records, 5, "one an hour");
}

/// SPEC R15-8: a token of the broker's own is judged by its generation, another by its time.
#[test]
fn a_token_of_before_a_revocation_is_good_no_more() {
    let mut world = World::new();
    let phone = world.come("phone");
    let own = |generation| Proof::Token { issued: LogTime(0), generation: Some(generation) };
    let laptop = world.attach("laptop", 0, own(Generation::default())).expect("attached");
    assert_eq!(laptop.generation, Generation::default());
    let device = laptop.session.device.0;
    let effects = world.publish(&phone, 1, Action::RevokeDevice(packet::RevokeDevice { device }));
    assert!(closes(&effects, &laptop.session) && !closes(&effects, &phone));
    let at = world.time;
    let issued = |issued| Proof::Token { issued, generation: None };
    for proof in [own(Generation::default()), issued(LogTime(0)), issued(at)] {
        assert_eq!(world.attach("laptop", 0, proof).expect_err("taken back").reason, Reason::Revoked);
    }
    world.attach("laptop", 0, issued(LogTime(at.0 + 1))).expect("made later");
    let back = world.attach("laptop", 0, own(Generation { user: 0, device: 1 })).expect("of this generation");
    assert_eq!(back.generation, Generation { user: 0, device: 1 });
    world.attach("phone", 0, own(Generation::default())).expect("others are as they were");
    // What the cut session sent late is nobody's.
    let late = world.publish(&laptop.session, 9, Action::OpenDirect(packet::OpenDirect { user: "ben".into() }));
    assert!(late.is_empty(), "{late:?}");
}

/// SPEC R15-1: the ack has the inbox and the seq there, also where nothing changed, and again when it is repeated.
#[test]
fn what_a_user_does_about_itself_is_acked_with_its_inbox() {
    let mut world = World::new();
    let phone = world.come("phone");
    let rows = Reader::new(&world.state);
    let inbox = rows.user(phone.user).expect("she came").inbox;
    assert!(inbox.is_some());
    let name = |label: &str| Action::NameDevice(packet::NameDevice { device: phone.device.0, label: label.into() });
    let acked = |effects: &[Effect]| {
        let ack = effects.iter().find_map(|effect| match effect {
            Effect::Answer(_, _, answer) => Some(answer.clone().expect("it may")),
            Effect::Repeat(_, ack) => Some(*ack),
            _ => None,
        });
        ack.map(|ack| (ack.message_id, ack.conversation, ack.seq))
    };
    let entry = world.publish(&phone, 3, name("old"));
    let unchanged = [4, 5, 9].map(|id| (id, world.publish(&phone, id, name("old"))));
    for (id, first) in unchanged.into_iter().chain([(3, entry)]) {
        assert_eq!(acked(&first), Some((id, inbox.0, 1)));
        assert_eq!(acked(&world.publish(&phone, id, name("old"))), Some((id, inbox.0, 1)), "a repeat");
    }
}

/// SPEC R15-2: a field has as many bytes as it may, and not one more.
#[test]
fn a_profile_is_no_larger_than_it_may_be() {
    let mut world = World::new();
    let phone = world.come("phone");
    let mut set = |id, name: usize, picture: usize, data: usize| {
        let profile = packet::Profile {
            display_name: "n".repeat(name),
            picture: "p".repeat(picture),
            data: vec![0; data].into(),
        };
        let effects = world.publish(&phone, id, Action::SetProfile(packet::SetProfile { profile: Some(profile) }));
        let answer = effects.into_iter().find_map(|effect| match effect {
            Effect::Answer(_, _, answer) => Some(answer.map_err(|refusal| refusal.reason)),
            _ => None,
        });
        answer.expect("an answer").map(|ack| ack.seq)
    };
    let (name, picture, data) = (DISPLAY_NAME_BYTES_MAX, PROFILE_PICTURE_BYTES_MAX, PROFILE_DATA_BYTES_MAX);
    assert_eq!(set(1, name, picture, data), Ok(1));
    for (id, more) in [(2, 1), (3, 2)] {
        assert_eq!(set(id, name + more, picture, data), Err(Reason::InvalidArgument));
        assert_eq!(set(id + 10, name, picture + more, data), Err(Reason::InvalidArgument));
        assert_eq!(set(id + 20, name, picture, data + more), Err(Reason::InvalidArgument));
    }
}

/// When a user was last seen goes along with the next frame, or after a while with one of its own.
#[test]
fn when_a_user_was_last_seen_is_noted_with_something_else_or_when_it_is_time() {
    let mut world = World::new();
    let note = |world: &mut World, now_ms: u64, with_others: bool, writable: bool, is_last: bool| {
        let (mut overlay, mut effects) = (Overlay::default(), Vec::new());
        let mut frame = FrameBuilder::new(SegmentId(1), Position(world.state.tail.0 + 1), world.time);
        let view = View::new(&world.state, &mut overlay);
        let mut draft = Draft { view, frame: &mut frame, effects: &mut effects, now_ms, writable };
        if with_others {
            draft.create_user(&format!("other at {now_ms}"));
        }
        world.core.note_seen(&mut draft, is_last);
        overlay.merge(&mut world.state);
        effects.into_iter().find_map(|effect| match effect {
            Effect::Seen(seen) => Some(seen),
            _ => None,
        })
    };
    let leave = |world: &mut World| {
        let session = world.come("phone");
        world.go(&session);
        (session.user, world.time)
    };
    assert_eq!(note(&mut world, 0, true, true, true), None, "nobody left");
    let seen = leave(&mut world);
    assert!(!world.core.is_seen_due(0));
    assert_eq!(note(&mut world, 0, false, true, false), None, "it waits");
    assert_eq!(note(&mut world, 1, true, false, true), None, "nothing can be written");
    assert_eq!(note(&mut world, 2, true, true, false), Some(vec![seen]), "with something else");
    assert_eq!(Reader::new(&world.state).seen(seen.0), Some(seen.1));
    assert_eq!(note(&mut world, 3, true, true, true), None, "once");
    world.time.0 += 1;
    let seen = leave(&mut world);
    assert_eq!(note(&mut world, 0, false, true, true), Some(vec![seen]), "at the end");
    // What was not committed is noted again, unless something newer is.
    world.core.unsee(vec![seen]);
    let due = (0..).step_by(1_000).find(|now_ms| world.core.is_seen_due(*now_ms)).expect("in a while");
    assert!(due > 1_000);
    assert_eq!(note(&mut world, due, false, true, false), Some(vec![seen]), "in time");
}

/// What is in memory is what the log says.
#[test]
fn the_log_says_all_that_became_of_users_and_devices() {
    let mut world = World::new();
    let (phone, laptop) = (world.come("phone"), world.come("laptop"));
    let contact = |user: &str, nick: &str, remove| {
        let (user, nick) = (user.to_owned(), nick.to_owned());
        Action::SetContact(packet::SetContact { user, nick, data: "x".into(), remove })
    };
    let profile = packet::Profile { display_name: "Ann".into(), ..packet::Profile::default() };
    let actions = [
        Action::SetProfile(packet::SetProfile { profile: Some(profile) }),
        contact("ben", "b", false),
        contact("cid", "c", false),
        contact("dot", "d", false),
        contact("ben", "", true),
        contact("cid", "cc", false),
        Action::Block(packet::Block { user: "ben".into(), undo: false }),
        Action::Block(packet::Block { user: "cid".into(), undo: false }),
        Action::Block(packet::Block { user: "ben".into(), undo: true }),
        Action::NameDevice(packet::NameDevice { device: laptop.device.0, label: "old".into() }),
        Action::RevokeDevice(packet::RevokeDevice { device: laptop.device.0 }),
    ];
    for (id, action) in (1..).zip(actions) {
        world.time.0 += 10;
        world.publish(&phone, id, action);
    }
    world.time.0 += DEVICE_UNSEEN_MS + 1;
    world.come("laptop");
    let invited = Proof::Registration { password: Secret("hash".into()), invitation: Some(("one".into(), 7)) };
    assert_eq!(world.attach("tablet", 0, invited).expect_err("she is there").reason, Reason::NameTaken);

    let (mut replayed, mut overlay) = (State::default(), Overlay::default());
    for frame in &world.frames {
        fold_frame(&mut View::new(&replayed, &mut overlay), frame).expect("reads back");
        overlay.merge(&mut replayed);
    }
    let mut rows = 0;
    for (key, row) in world.state.rows() {
        let Lookup::Known(found) = replayed.row(key) else { panic!("{key:?} is cold") };
        assert_eq!(found, Some(row), "{key:?}");
        let bytes = (key.encode(), row.encode());
        let back = (Key::decode(&bytes.0).expect("a key"), super::rows::Row::decode(&bytes.1).expect("a row"));
        assert_eq!((&back.0, &back.1), (key, row), "as it is saved");
        rows += 1;
    }
    assert_eq!(rows, replayed.rows().count());
    let reader = Reader::new(&replayed);
    let ann = reader.user_named("ann").expect("she came");
    assert_eq!(reader.user(ann).expect("as above").contacts, 2);
    let cid = reader.user_named("cid").expect("a contact");
    assert!(reader.blocks(ann, cid) && &*reader.contact(ann, cid).expect("kept").nick == "cc");
    assert!(!reader.blocks(ann, reader.user_named("ben").expect("once a contact")));
}

/// Two at once make one account; an invitation and a checked password hold only until they are decided upon.
#[test]
fn what_was_checked_before_is_asked_again_when_it_is_decided() {
    let mut world = World::new();
    let register = |invitation: Option<&str>| Proof::Registration {
        password: Secret("first".into()),
        invitation: invitation.map(|id| (id.into(), 9)),
    };
    let first = world.attach("phone", 0, register(Some("one"))).expect("the first");
    assert_eq!(first.generation, Generation { user: 1, device: 0 });
    assert_eq!(world.attach("phone", 0, register(None)).expect_err("the second").reason, Reason::NameTaken);
    let password = |checked: &str, new: Option<&str>| Proof::Password {
        checked: Secret(checked.into()),
        new: new.map(|new| Secret(new.into())),
    };
    world.attach("laptop", 0, password("first", None)).expect("the password");
    let cut = world.attach("tablet", 0, password("first", Some("second"))).expect("another password");
    assert_eq!(cut.generation.user, 2);
    assert!(first.session.outbox.lock().closing.is_none(), "effects are carried out by the commit thread");
    let gone = world.publish(&first.session, 1, Action::OpenDirect(packet::OpenDirect { user: "ben".into() }));
    assert!(gone.is_empty(), "it was let in with the old one");
    let refusal = world.attach("laptop", 0, password("first", None)).expect_err("the old password");
    assert_eq!(refusal.reason, Reason::Unauthenticated);
    // The invitation is used up, whoever comes with it.
    let attach = Attach {
        user: "ben".into(),
        device: "phone".into(),
        grants: Arc::default(),
        proof: register(Some("one")),
        incarnation: Incarnation(0),
        first_unanswered: MessageId(1),
        is_background: false,
        hears_signals: false,
        outbox: Arc::<Outbox>::default(),
    };
    let effects = world.decide(Op::Attach(Box::new(attach)));
    let refused = effects.iter().find_map(|effect| match effect {
        Effect::Refuse(_, refusal) => Some(refusal.reason),
        _ => None,
    });
    assert_eq!(refused, Some(Reason::Forbidden));
}

/// R17-2: who is forgotten or revoked is told nothing any more, also when it comes again.
#[test]
fn what_is_revoked_is_told_nothing() {
    let mut world = World::new();
    let (phone, tablet) = (world.come("phone"), world.come("tablet"));
    let push = packet::SetPush { provider: "webhook".into(), target: "t".into(), ..packet::SetPush::default() };
    world.publish(&phone, 1, Action::SetPush(push.clone()));
    world.publish(&tablet, 1, Action::SetPush(push));
    assert_eq!(world.state.pushes().len(), 2);
    world.publish(&tablet, 2, Action::RevokeDevice(packet::RevokeDevice { device: phone.device.0 }));
    assert_eq!(world.state.pushes().iter().copied().collect::<Vec<_>>(), [(tablet.user, tablet.device)]);
    world.attach("phone", 0, token()).expect("a newer token");
    let rows = Reader::new(&world.state);
    assert!(rows.push(phone.user, phone.device).is_none() && rows.told(phone.user, phone.device).is_none());
}

/// R16-17, R17-2: what ends a session by taking back its right ends what its device left, as a revocation by its user does.
#[test]
fn who_is_cut_by_the_operator_leaves_nothing() {
    let mut world = World::new();
    let phone = world.come("phone");
    let push = packet::SetPush { provider: "webhook".into(), target: "t".into(), ..packet::SetPush::default() };
    world.publish(&phone, 1, Action::SetPush(push.clone()));
    let direct = Action::OpenDirect(packet::OpenDirect { user: "ben".into() });
    let ack = world.publish(&phone, 2, direct).into_iter().find_map(|effect| match effect {
        Effect::Answer(_, conversation, Ok(ack)) => Some(conversation.0.max(ack.conversation)),
        _ => None,
    });
    let will = packet::Publish {
        conversation: ack.expect("opened"),
        message_id: 3,
        action: Some(Action::SetWill(packet::SetWill::default())),
        ..packet::Publish::default()
    };
    let digest = digest(&will);
    world.decide(Op::Publish(Publish { session: Arc::clone(&phone), publish: will, digest, found: None }));
    assert_eq!((world.state.pushes().len(), world.state.wills().len()), (1, 1));
    world.decide(Op::Detach(Arc::clone(&phone), None, Parting::Revoked));
    assert_eq!((world.state.pushes().len(), world.state.wills().len()), (0, 0));
}

/// R17-2: by which token a device is known to have left something, and that the operator's list is held against the last.
#[test]
fn what_was_left_goes_by_the_last_token() {
    let mut world = World::new();
    world.state.taken_back = TakenBack::by(|user, bearer| user == "ann" && bearer.issued < 5);
    let phone = world.come("phone");
    let bear = |issued| Op::Bear(Arc::clone(&phone), Bearer { token: "id".into(), issued });
    let is_cut_off = |world: &World| Reader::new(&world.state).is_cut_off(phone.user, phone.device);
    world.decide(bear(9));
    assert!(is_cut_off(&world), "it left nothing, and so nothing is kept: as old as can be");
    let push = packet::SetPush { provider: "webhook".into(), target: "t".into(), ..packet::SetPush::default() };
    world.publish(&phone, 1, Action::SetPush(push));
    world.decide(bear(9));
    assert!(!is_cut_off(&world));
    world.decide(bear(9));
    assert!(world.frames.last().expect("a frame").records.is_empty(), "known already");
    let older = world.attach("phone", 1, token()).expect("comes again").session;
    world.decide(Op::Bear(older, Bearer { token: "id".into(), issued: 4 }));
    assert!(is_cut_off(&world));
    world.decide(bear(9));
    assert!(is_cut_off(&world), "its session was taken over");
}
