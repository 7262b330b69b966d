//! The derived outbox against a naive list of messages, over random histories of messages, acks, recalls, providers that
//! fail, and brokers that are killed before and after a provider took something: one notification for each window, none
//! of what was acked, none lost.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, Beside, Level};
use longwire_protocol::{ConversationId, Incarnation, LogTime, MessageId, Millis, Seq, SessionNumber};

use super::look::{Look, News, Notice, Rules};
use super::ringer::{Next, Ringer, Who, next};
use super::{Settled, Settling};
use crate::routing::core::Core;
use crate::routing::draft::Draft;
use crate::routing::fold::fold_frame;
use crate::routing::grants::TakenBack;
use crate::routing::limits::PUSH_TOLD_MAX;
use crate::routing::ops::{Attach, Effect, Found, Op, Parting, Proof, Publish, Target, digest};
use crate::routing::outbox::Session;
use crate::routing::reads::Reads;
use crate::routing::registry::Registry;
use crate::routing::rows::DeviceCursor;
use crate::routing::state::State;
use crate::routing::view::{Overlay, Reader, Rows as _, View};
use crate::store::{Frame, FrameBuilder, Log, MemoryLog, Position, SegmentId};

const RULES: Rules = Rules { after_ms: 5_000, collapse_ms: 30_000, expire_ms: 600_000 };

/// A message as a naive reader knows it.
#[derive(Clone, Debug)]
struct Said {
    conversation: u64,
    seq: u64,
    position: u64,
    time: u64,
    countable: u64,
    is_silent: bool,
    is_recalled: bool,
    is_acked: bool,
    /// A notification that covers it was taken by the provider.
    is_told: bool,
}

impl Said {
    /// Somebody waits to be told of it.
    fn is_owed(&self, now: u64) -> bool {
        !self.is_silent && !self.is_recalled && !self.is_acked && self.time + RULES.expire_ms > now
    }
}

/// A notification that the provider took, and whether that is durable.
#[derive(Clone, Debug)]
struct Taken {
    id: u128,
    time: u64,
    is_durable: bool,
    /// The oldest message that it is about.
    first: u64,
}

/// What happens to an errand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Luck {
    Good,
    ProviderFails,
    /// The broker is killed when the provider has taken it and nothing of that is written.
    KilledAfterSend,
}

/// How ben wants less of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wants {
    Level(Level),
    Muted,
}

struct World {
    log: MemoryLog,
    frames: Vec<Frame>,
    core: Core,
    state: Arc<RwLock<State>>,
    registry: Arc<Registry>,
    ringer: Ringer,
    now: u64,
    ids: BTreeMap<&'static str, u64>,
    sessions: BTreeMap<&'static str, Arc<Session>>,
    said: Vec<Said>,
    taken: BTreeMap<u64, Vec<Taken>>,
    ben: Who,
    /// Where ben is told only of what mentions him.
    quiet: Vec<u64>,
    count: usize,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            log: MemoryLog::new(0, usize::MAX),
            frames: Vec::new(),
            core: Core::new(SessionNumber(0)),
            state: Arc::default(),
            registry: Arc::default(),
            ringer: Ringer::new(RULES),
            now: 1_000_000,
            ids: BTreeMap::new(),
            sessions: BTreeMap::new(),
            said: Vec::new(),
            taken: BTreeMap::new(),
            ben: Default::default(),
            quiet: Vec::new(),
            count: 0,
        };
        world.listen();
        world.come("ann");
        world.come("ben");
        let session = &world.sessions["ben"];
        world.ben = (session.user, session.device);
        world
    }

    fn listen(&self) {
        self.registry.bell.serve(vec![super::Provider::Webhook]);
        self.registry.bell.listen(true);
    }

    fn decide(&mut self, op: Op) -> Vec<Effect> {
        let segment = self.log.segments()[0].id;
        let (mut overlay, mut effects) = (Overlay::default(), Vec::new());
        let mut frame = FrameBuilder::new(segment, Position(self.log.tail().0 + 1), LogTime(self.now));
        {
            let state = self.state.read().expect("unpoisoned");
            let view = View::new(&state, &mut overlay);
            let mut draft = Draft { view, frame: &mut frame, effects: &mut effects, now_ms: self.now, writable: true };
            self.core.decide(op, &mut draft);
        }
        overlay.merge(&mut self.state.write().expect("unpoisoned"));
        if frame.records() > 0 {
            let frame = frame.finish();
            self.log.append(&frame).expect("appended");
            self.registry.bell.note(&frame);
            self.frames.push(frame);
        }
        for effect in &effects {
            match effect {
                Effect::Attach(attached) => self.registry.attach(&attached.session, Millis(self.now)),
                Effect::Detach(session) => self.registry.detach(session, &[], Millis(self.now)),
                Effect::PushSet(user, device, is_told) => self.registry.set_push(*user, *device, *is_told),
                Effect::PushSettled(user, device, is_done) => self.registry.bell.settled(*user, *device, *is_done),
                _ => {}
            }
        }
        effects
    }

    fn come(&mut self, user: &'static str) {
        let attach = Attach {
            user: user.into(),
            device: "phone".into(),
            grants: Arc::default(),
            proof: Proof::Token { issued: LogTime(0), generation: None },
            incarnation: Incarnation(u64::from(self.ids.contains_key(user))),
            first_unanswered: MessageId(self.ids.get(user).copied().unwrap_or(1)),
            hears_signals: false,
            is_background: false,
            outbox: Arc::default(),
        };
        self.ids.entry(user).or_insert(1);
        let effects = self.decide(Op::Attach(Box::new(attach)));
        let attached = effects.into_iter().find_map(|effect| match effect {
            Effect::Attach(attached) => Some(attached),
            _ => None,
        });
        let attached = attached.expect("let in");
        if let Some(cursor) = attached.cursor {
            attached.session.outbox.lock().start(cursor);
        }
        self.sessions.insert(user, attached.session);
    }

    fn publish(&mut self, user: &'static str, publish: packet::Publish, found: Option<Found>) -> packet::PublishAck {
        let id = self.ids.get_mut(user).expect("it came");
        let publish = packet::Publish { message_id: *id, first_unanswered: *id, ..publish };
        *id += 1;
        let (session, digest) = (Arc::clone(&self.sessions[user]), digest(&publish));
        let effects = self.decide(Op::Publish(Publish { session, digest, publish, found }));
        let answer = effects.into_iter().find_map(|effect| match effect {
            Effect::Answer(_, _, answer) => Some(answer),
            _ => None,
        });
        answer.expect("an answer").expect("it may")
    }

    fn act(&mut self, user: &'static str, action: Action) -> u64 {
        self.publish(user, packet::Publish { action: Some(action), ..Default::default() }, None).conversation
    }

    fn group(&mut self) -> u64 {
        let (label, users) = ("g".into(), vec!["ben".into()]);
        self.act("ann", Action::CreateGroup(packet::CreateGroup { label, users, ..Default::default() }))
    }

    fn say(&mut self, conversation: u64, is_silent: bool) {
        let beside = is_silent.then(|| Box::new(Beside { silent: true, ..Beside::default() }));
        self.say_beside(conversation, is_silent || self.quiet.contains(&conversation), beside);
    }

    /// Mentions ben.
    fn say_to_ben(&mut self, conversation: u64) {
        let mentions = vec![self.ben.0.0];
        self.say_beside(conversation, false, Some(Box::new(Beside { mentions, ..Beside::default() })));
    }

    fn say_beside(&mut self, conversation: u64, is_silent: bool, beside: Option<Box<Beside>>) {
        let publish = packet::Publish { conversation, beside, content: "x".into(), ..Default::default() };
        let ack = self.publish("ann", publish, None);
        let head = Reader::new(&self.state.read().expect("unpoisoned"))
            .conversation(ConversationId(conversation))
            .expect("it is there")
            .head;
        assert_eq!(head.seq, Seq(ack.seq));
        self.said.push(Said {
            conversation,
            seq: ack.seq,
            position: head.position.0,
            time: self.now,
            countable: head.countable,
            is_silent,
            is_recalled: false,
            is_acked: false,
            is_told: false,
        });
    }

    /// Ben wants less of a conversation.
    fn wants(&mut self, conversation: u64, wants: Wants) {
        let action = match wants {
            Wants::Level(level) => Action::SetLevel(packet::SetLevel { level: level.into() }),
            Wants::Muted => {
                let settings = packet::Settings { muted_until: u64::MAX, ..Default::default() };
                Action::SetSettings(packet::SetSettings { settings: Some(settings) })
            }
        };
        self.publish("ben", packet::Publish { conversation, action: Some(action), ..Default::default() }, None);
        if wants != Wants::Level(Level::HeadsOnly) {
            self.quiet.push(conversation);
        }
    }

    fn recall(&mut self, at: usize) {
        let said = self.said[at].clone();
        let action = Some(Action::Recall(packet::Recall { seq: said.seq }));
        let publish = packet::Publish { conversation: said.conversation, action, ..Default::default() };
        let target = Target {
            sender: self.sessions["ann"].user,
            is_message: true,
            countable: said.countable,
            time: LogTime(said.time),
        };
        self.publish("ann", publish, Some(Found::Target(Some(target))));
        self.said[at].is_recalled = true;
    }

    /// Ben's device acks all there is.
    fn ack(&mut self) {
        let Some(session) = self.sessions.get("ben").cloned() else { return };
        let tail = self.log.tail();
        let cursor = DeviceCursor { segment: SegmentId(1), express: tail, bulk: tail };
        let mut pending = session.outbox.lock();
        (pending.stands, pending.has_acked) = (cursor, true);
        drop(pending);
        assert!(session.outbox.lock().is_told, "so it is stored soon");
        self.decide(Op::StoreCursor(session, cursor));
        self.said.iter_mut().for_each(|said| said.is_acked = true);
    }

    fn leave(&mut self) {
        if let Some(session) = self.sessions.remove("ben") {
            self.decide(Op::Detach(session, None, Parting::Lost));
        }
    }

    /// What the log says is all that is left.
    fn kill(&mut self) {
        let mut state = State::default();
        for frame in &self.frames {
            let mut overlay = Overlay::default();
            fold_frame(&mut View::new(&state, &mut overlay), frame).expect("it was written");
            overlay.merge(&mut state);
        }
        let was_there = self.sessions.contains_key("ben");
        (self.core, self.state) = (Core::new(SessionNumber(self.now)), Arc::new(RwLock::new(state)));
        (self.registry, self.ringer) = (Arc::default(), Ringer::new(RULES));
        self.sessions.clear();
        self.listen();
        self.come("ann");
        if was_there && self.count.is_multiple_of(2) {
            self.come("ben");
        }
        let history = self.log.history();
        let reads =
            Reads { history: &*history, state: &self.state, now: LogTime(self.now), may_block: true, looks: None };
        self.ringer.look_everywhere(reads, self.now).expect("reads");
    }

    /// What the teller's thread does in one turn.
    fn ring(&mut self, luck: Luck) {
        let history = self.log.history();
        let state = Arc::clone(&self.state);
        let reads = Reads { history: &*history, state: &state, now: LogTime(self.now), may_block: true, looks: None };
        let rung = self.registry.bell.take();
        self.ringer.hear(&rung, reads, self.now).expect("reads");
        for errand in self.ringer.take_due(self.now, 8) {
            let (mut news, mut told, mut taken) = (errand.news, None, Vec::new());
            let again = loop {
                let found =
                    next(reads, &self.registry, &RULES, errand.who, (&news, told.as_ref()), self.now).expect("reads");
                let Next::Look(_, look) = found else { break None };
                let Look { notice, rest, again, told: known, .. } = *look;
                told = Some(known);
                let Some(notice) = notice else { break again.map(|again| (again.0, rest)) };
                if luck == Luck::ProviderFails {
                    break Some((self.now + 1_000, rest));
                }
                self.take(&notice);
                taken.push(notice.conversation.0);
                told.as_mut().expect("looked").note(notice.conversation, notice.upto, LogTime(self.now));
                news = rest;
                if luck == Luck::KilledAfterSend {
                    return self.kill();
                }
            };
            if let Some(told) = told.filter(|_| !taken.is_empty()) {
                let (user, device) = errand.who;
                self.decide(Op::SettlePush(Box::new(Settling { user, device, what: Settled::Told(told) })));
                for conversation in taken {
                    let newest = self.taken.get_mut(&conversation).and_then(|all| all.last_mut());
                    newest.expect("it was taken").is_durable = true;
                }
            }
            self.ringer.finish(errand.who, again, luck == Luck::ProviderFails);
        }
    }

    /// The provider takes a notification: it is one that is owed, and not before its time.
    fn take(&mut self, notice: &Notice) {
        self.count += 1;
        let id = notice.conversation.0;
        let of = |said: &&Said| said.conversation == id && said.position <= notice.upto.0;
        let before = self.taken.get(&id).and_then(|all| all.last()).cloned();
        let now = self.now;
        // What was told and is not known to have been told is owed again.
        let was_durable = before.as_ref().is_none_or(|before| before.is_durable);
        let is_open = |said: &&Said| said.is_owed(now) && (!said.is_told || !was_durable);
        let first = self.said.iter().filter(of).find(is_open).expect("something is owed").clone();
        assert!(first.time + RULES.after_ms <= now, "it has time to be acked: {first:?} at {now}");
        assert!(self.said.iter().any(|said| said.conversation == id && said.seq == notice.seq.0 && said.is_owed(now)));
        if let Some(before) = &before {
            let is_same = before.id == notice.id;
            if before.is_durable {
                assert!(!is_same && now >= before.time + RULES.collapse_ms, "one for each window: {before:?} at {now}");
            } else {
                let is_first_owed = self.said.iter().any(|said| said.position == before.first && said.is_owed(now));
                assert!(is_same || !is_first_owed, "the same again: {before:?} {notice:?}");
            }
        }
        let unread = self.said.iter().filter(|said| !said.is_recalled).count() as u64;
        assert_eq!(notice.badge, unread, "nothing was marked as read");
        let told = self.said.iter_mut().filter(|said| said.conversation == id && said.position <= notice.upto.0);
        told.for_each(|said| said.is_told = true);
        let taken = Taken { id: notice.id, time: now, is_durable: false, first: first.position };
        self.taken.entry(id).or_default().push(taken);
    }

    /// Time passes, with a look every now and then, until all that is owed must have been told.
    fn settle(&mut self) {
        for _ in 0..80 {
            self.now += 1_000;
            self.ring(Luck::Good);
        }
        for said in &self.said {
            assert!(said.is_told || !said.is_owed(self.now), "lost: {said:?} at {}", self.now);
        }
        let open = self.taken.values().filter_map(|all| all.last()).filter(|taken| !taken.is_durable);
        let forgotten =
            open.filter(|taken| self.said.iter().any(|said| said.position == taken.first && said.is_owed(self.now)));
        assert_eq!(forgotten.count(), 0, "what was told is durable");
        assert_eq!(self.ringer.waiting(), 0, "nothing is kept for who has nothing to be told");
    }
}

fn set_push() -> Action {
    Action::SetPush(packet::SetPush { provider: "webhook".into(), target: "b".into(), ..Default::default() })
}

/// R17-3 to R17-6.
#[test]
fn one_notification_for_each_window_none_after_an_ack_none_lost() {
    let mut notifications = 0;
    for seed in 0..400 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut world = World::new();
        let direct = world.act("ann", Action::OpenDirect(packet::OpenDirect { user: "ben".into() }));
        let places = [direct, world.group(), world.group(), world.group(), world.group()];
        world.say(direct, false);
        world.said.clear();
        world.act("ben", set_push());
        world.wants(places[2], Wants::Level(Level::HeadsOnly));
        world.wants(places[3], Wants::Level(Level::Nothing));
        world.wants(places[4], Wants::Muted);
        // What came before is not told, and counts as unread: out of the list, out of the badge.
        world.ack();
        let mark = Action::SetMark(packet::SetMark { seq: 1 });
        let publish = packet::Publish { conversation: direct, action: Some(mark), ..Default::default() };
        world.publish("ben", publish, Some(Found::Countable(1)));
        for _ in 0..60 {
            match random.u8(0..20) {
                0..5 => world.say(places[random.usize(0..places.len())], random.u8(0..5) == 0),
                5 => world.say_to_ben(places[random.usize(0..places.len())]),
                6..11 => world.now += random.u64(0..12_000),
                11 => world.leave(),
                12 if !world.sessions.contains_key("ben") => world.come("ben"),
                13 => world.ack(),
                14 if !world.said.is_empty() => {
                    let at = random.usize(0..world.said.len());
                    if !world.said[at].is_recalled {
                        world.recall(at);
                    }
                }
                15 => world.kill(),
                16 => world.ring(Luck::KilledAfterSend),
                17 => world.ring(Luck::ProviderFails),
                _ => world.ring(Luck::Good),
            }
        }
        world.settle();
        notifications += world.count;
    }
    assert!(notifications > 1_000, "something was told: {notifications}");
}

/// R17-4: of what is muted, or wanted not at all, the device is told where its user is meant; heads are told of like the rest.
#[test]
fn a_device_is_told_of_what_it_wants() {
    let wants = [Wants::Level(Level::HeadsOnly), Wants::Level(Level::Nothing), Wants::Muted];
    for (wants, told) in wants.into_iter().zip([1, 0, 0]) {
        let mut world = World::new();
        let group = world.group();
        world.act("ben", set_push());
        world.wants(group, wants);
        world.leave();
        world.say(group, false);
        world.settle();
        assert_eq!(world.count, told, "{wants:?}");
        world.say_to_ben(group);
        world.settle();
        assert_eq!(world.count, told + 1, "{wants:?}");
    }
}

/// R17-2: who is cut off while it is away is told nothing, as long as that holds.
#[test]
fn who_is_cut_off_is_told_nothing() {
    let mut world = World::new();
    let group = world.group();
    world.act("ben", set_push());
    world.leave();
    world.state.write().expect("unpoisoned").taken_back = TakenBack::by(|user, _| user == "ben");
    world.say(group, false);
    for _ in 0..30 {
        world.now += 1_000;
        world.ring(Luck::Good);
    }
    assert_eq!(world.count, 0);
    world.state.write().expect("unpoisoned").taken_back = TakenBack::default();
    world.say(group, false);
    world.settle();
    assert_eq!(world.count, 1, "it was taken out of the list again");
}

/// More conversations than are kept of one device: each is told once, in its turn.
#[test]
fn who_misses_many_conversations_is_told_of_each() {
    let mut world = World::new();
    world.act("ben", set_push());
    let groups: Vec<_> = (0..PUSH_TOLD_MAX + 40).map(|_| world.group()).collect();
    world.leave();
    for _ in 0..3 {
        groups.iter().for_each(|group| world.say(*group, false));
        for _ in 0..400 {
            world.now += 1_000;
            world.ring(Luck::Good);
            let state = world.state.read().expect("unpoisoned");
            let kept = Reader::new(&state).told(world.ben.0, world.ben.1).map_or(0, |told| told.beyond.len());
            assert!(kept <= PUSH_TOLD_MAX, "what is kept is bounded: {kept}");
        }
        world.settle();
    }
    assert_eq!(world.count, 3 * groups.len(), "each once a round");
}

/// A device that has itself told after it was away for long is told of nothing that was before.
#[test]
fn news_that_are_too_old_are_not_told() {
    let mut world = World::new();
    let group = world.group();
    world.act("ben", set_push());
    world.leave();
    world.say(group, false);
    world.ring(Luck::ProviderFails);
    world.now += RULES.expire_ms + 1;
    world.ring(Luck::Good);
    assert_eq!((world.count, world.ringer.waiting()), (0, 0));
    assert_eq!(News::NONE, News::Of(Default::default()));
}
