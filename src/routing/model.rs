//! Operations of a few users on the core, held against a naive model: seqs, repeats, rights, unread counts; with groups
//! that fail to commit, devices that come and go, and the state rebuilt from the frames alone. What happens is chosen by
//! chance in tests and by a fuzzer's bytes in the target `core`. Not part of a broker.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, RwLock};

use bytes::Bytes;
use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, Level, Past, PublishAck, RetentionMode, Role};
use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::{ConversationId, Incarnation, LogTime, MessageId, Seq, SessionNumber, UserId};

use super::alteration::withheld;
use super::core::Core;
use super::draft::Draft;
use super::fold::fold_frame;
use super::grants::Grants;
use super::limits::INTERVALS_MAX;
use super::loading::{load, read_blocking};
use super::ops::{Attach, Effect, Found, Op, Parting, Proof, Publish, Target, digest};
use super::outbox::{Outbox, Session};
use super::query::{conversations, unread_total};
use super::reads::Reads;
use super::rehearsal::{rehearse, rehearse_attach, rehearse_upkeep};
use super::rows::{ErasureStage, Key, Row};
use super::state::{Lookup, State};
use super::view::{Overlay, Reader, Rows as _, View};
use super::wills::Fate;
use crate::store::{Frame, FrameBuilder, Log as _, MemoryLog, Position};

const USERS: [&str; 4] = ["ann", "ben", "cat", "dan"];
/// Who administers.
const ADMIN: usize = 0;

/// Who chooses what happens next.
#[derive(Debug)]
pub(crate) enum Choices<'a> {
    /// Chance; it never ends.
    #[cfg(test)]
    Random(fastrand::Rng),
    /// Each byte is a choice; without any more it is the first of all, and nothing more happens.
    Bytes(&'a [u8]),
}

impl Choices<'_> {
    fn below(&mut self, count: usize) -> usize {
        match self {
            #[cfg(test)]
            Self::Random(random) => random.usize(..count),
            Self::Bytes(bytes) => {
                let Some((&first, rest)) = bytes.split_first() else { return 0 };
                *bytes = rest;
                usize::from(first) % count
            }
        }
    }

    fn are_over(&self) -> bool {
        matches!(self, Self::Bytes([]))
    }
}

/// How much of the state is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Warmth {
    /// All of it.
    Whole,
    /// What was used since the last seal; after each group, with this chance in ten, a seal, and nothing that is saved.
    Cold(u8),
}

/// The core over a log in memory.
struct World<'a> {
    core: Core,
    state: RwLock<State>,
    overlay: Overlay,
    log: MemoryLog,
    warmth: Warmth,
    choices: Choices<'a>,
    frames: Vec<Frame>,
    sessions: Vec<Arc<Session>>,
}

impl<'a> World<'a> {
    fn new(warmth: Warmth, choices: Choices<'a>) -> Self {
        let log = MemoryLog::new(0, usize::MAX);
        let state = match warmth {
            Warmth::Whole => State::default(),
            Warmth::Cold(_) => State::over(log.saved(), Position(0), usize::MAX).expect("reads"),
        };
        let mut world = Self {
            core: Core::new(SessionNumber(0)),
            state: RwLock::new(state),
            overlay: Overlay::default(),
            log,
            warmth,
            choices,
            frames: Vec::new(),
            sessions: Vec::new(),
        };
        for user in 0..USERS.len() {
            let session = world.attach(user, Incarnation(0), MessageId(1));
            world.sessions.push(session);
        }
        world
    }

    fn attach(&mut self, user: usize, incarnation: Incarnation, first_unanswered: MessageId) -> Arc<Session> {
        let attach = Attach {
            user: USERS[user].into(),
            device: "phone".into(),
            grants: Arc::new(Grants { is_admin: user == ADMIN, ..Grants::default() }),
            proof: Proof::Token { issued: LogTime(0), generation: None },
            incarnation,
            first_unanswered,
            hears_signals: false,
            is_background: false,
            outbox: Arc::new(Outbox::default()),
        };
        let effects = self.group(vec![Op::Attach(Box::new(attach))], true);
        let attached = effects.into_iter().find_map(|effect| match effect {
            Effect::Attach(attached) => Some(attached.session),
            _ => None,
        });
        attached.expect("attached")
    }

    /// The connection of a user ends, and there is a new one.
    fn reconnect(&mut self, user: usize, first_unanswered: MessageId) {
        let was = Arc::clone(&self.sessions[user]);
        let effects = self.group(vec![Op::Detach(Arc::clone(&was), None, Parting::Lost)], true);
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Detach(_))), "the end is told");
        let session = self.attach(user, was.incarnation, first_unanswered);
        assert_eq!((session.user, session.device), (was.user, was.device), "the same device");
        assert!(session.number > was.number && session.incarnation == was.incarnation, "a newer session");
        self.sessions[user] = session;
    }

    /// Decides a group; its frame is committed, or lost with everything that it drafted.
    fn group(&mut self, ops: Vec<Op>, commits: bool) -> Vec<Effect> {
        let segment = self.log.segments().last().expect("has a segment").id;
        let first = Position(self.log.tail().0 + 1);
        let mut frame = FrameBuilder::new(segment, first, self.now());
        let mut effects = Vec::new();
        // What a will looks at when it is due nobody looked up before.
        let is_fate = ops.iter().any(|op| matches!(op, Op::Fate(..)));
        let rehearses = self.choices.below(2) == 1 && !is_fate;
        for op in &ops {
            if let (true, Op::Attach(attach)) = (rehearses, op) {
                self.read(|rows| rehearse_attach(rows, &attach.user, &attach.device, true));
            }
            loop {
                if !rehearses {
                    break;
                }
                let cold = match op {
                    Op::Publish(publish) => rehearse(&self.state.read().expect("unpoisoned"), publish, self.now()),
                    op => rehearse_upkeep(&self.state.read().expect("unpoisoned"), op, self.now()),
                };
                if cold.is_empty() {
                    break;
                }
                load(&self.state, &cold).expect("loads");
            }
        }
        let mut state = self.state.write().expect("unpoisoned");
        let view = View::new(&state, &mut self.overlay);
        let mut draft = Draft { view, frame: &mut frame, effects: &mut effects, now_ms: 0, writable: true };
        for op in ops {
            self.core.decide(op, &mut draft);
        }
        assert!(!rehearses || self.overlay.late() == 0, "what was rehearsed finds everything at hand");
        if commits {
            let frame = frame.finish();
            self.log.append(&frame).expect("appends");
            self.overlay.merge(&mut state);
            assert!(frame.positions == 0 || state.tail == frame.last(), "the state stands at the frame's end");
            self.frames.push(frame);
        } else {
            self.overlay.clear();
        }
        if let Warmth::Cold(chance) = self.warmth
            && self.choices.below(10) < usize::from(chance)
        {
            self.log.seal(Box::new(state.seal()));
            state.note_saved(0);
            state.forget();
            assert_eq!(state.rows().count(), 0, "everything is saved and let go");
        }
        effects
    }

    /// Whether a user is erased, and nothing says so of what it wrote.
    fn is_erased(&self, user: Option<usize>) -> bool {
        let erasure = |user: usize| self.read(|rows| rows.erasure(self.sessions[user].user));
        user.and_then(erasure).is_some_and(|erasure| erasure.stage == ErasureStage::Done)
    }

    /// Time passes with what is stored: what is refused and said again at once is said at the same time.
    fn now(&self) -> LogTime {
        let stored = self.frames.iter().filter(|frame| !frame.records.is_empty()).count();
        LogTime(stored as u64 * FRAME_MS)
    }

    fn read<T>(&self, mut read: impl FnMut(&Reader<'_>) -> T) -> T {
        read_blocking(&self.state, &mut read).expect("reads")
    }

    fn publish(
        &mut self,
        user: usize,
        publish: packet::Publish,
        found: Found,
        commits: bool,
    ) -> Option<Result<PublishAck, Refusal>> {
        let session = Arc::clone(&self.sessions[user]);
        let op = Publish { session, digest: digest(&publish), publish, found: Some(found) };
        let effects = self.group(vec![Op::Publish(op)], commits);
        effects.into_iter().find_map(|effect| match effect {
            Effect::Answer(_, _, answer) => Some(answer),
            Effect::Repeat(_, ack) => Some(Ok(ack)),
            _ => None,
        })
    }

    /// Every row, as it is saved and changed since.
    fn rows(&self) -> BTreeMap<Vec<u8>, Row> {
        let state = self.state.read().expect("unpoisoned");
        let mut rows = BTreeMap::new();
        let mut saved = |key: &[u8], row: &[u8]| drop(rows.insert(key.to_vec(), Row::decode(row).expect("a row")));
        self.log.saved().each(&[], &mut saved).expect("reads");
        // And not what was taken away since.
        rows.retain(|key, _| {
            let key = Key::decode(key).expect("a key");
            !matches!(key, Key::Crossing(..)) && !matches!(state.row(&key), Lookup::Known(None))
        });
        rows.extend(rows_of(&state));
        rows
    }

    /// Every row, as the frames alone give it.
    fn rebuilt(&self) -> BTreeMap<Vec<u8>, Row> {
        let (mut state, mut overlay) = (State::default(), Overlay::default());
        for frame in &self.frames {
            let frame = Frame::decode(frame.bytes.clone()).expect("a frame decodes");
            fold_frame(&mut View::new(&state, &mut overlay), &frame).expect("a frame folds");
            overlay.merge(&mut state);
        }
        rows_of(&state)
    }
}

fn rows_of(state: &State) -> BTreeMap<Vec<u8>, Row> {
    state.rows().map(|(key, row)| (key.encode(), row.clone())).collect()
}

/// What passes between two frames.
const FRAME_MS: u64 = 500;

/// One conversation as one would write it down.
#[derive(Default)]
struct Naive {
    /// Sender of each countable entry; `None` for the others.
    entries: Vec<Option<usize>>,
    roles: HashMap<usize, Role>,
    /// From and to (0: open) of what each user may see, in seqs.
    intervals: HashMap<usize, Vec<(u64, u64)>>,
    marks: HashMap<usize, u64>,
    /// What was there before one came in may be read, and counts as read.
    past_is_open: bool,
    /// With which entry each user came in last.
    joined: HashMap<usize, u64>,
    /// Messages and their edits.
    recalled: BTreeSet<u64>,
    /// Each edit, and of what.
    edits: Vec<(u64, u64)>,
    expires: HashMap<u64, u64>,
    hidden: HashMap<usize, BTreeSet<u64>>,
    reactions: HashMap<(u64, usize), String>,
    /// The messages and edits that mention each user.
    mentions: HashMap<usize, Vec<u64>>,
    /// When each entry came, or when it was last said how long they are kept.
    times: Vec<u64>,
    /// For how long they are kept; 0: for good.
    age: u64,
    /// The first that is.
    first: u64,
    /// How much of it the device of each user wants.
    levels: HashMap<usize, Level>,
    erased: BTreeSet<usize>,
    banned: BTreeSet<usize>,
    /// With what it is joined; 0: it is closed.
    join_key: u8,
    settings: HashMap<usize, packet::Settings>,
}

impl Naive {
    fn role(&self, user: usize) -> Role {
        self.roles.get(&user).copied().unwrap_or(Role::None)
    }

    fn set_role(&mut self, user: usize, role: Role) {
        self.entries.push(None);
        let seq = self.entries.len() as u64;
        let was = self.role(user);
        self.roles.insert(user, role);
        let intervals = self.intervals.entry(user).or_default();
        if was == Role::None && role != Role::None {
            if self.past_is_open {
                intervals.clear();
            }
            intervals.push((if self.past_is_open { 1 } else { seq }, 0));
            self.joined.insert(user, seq);
            if intervals.len() > INTERVALS_MAX {
                intervals.remove(0);
            }
        } else if was != Role::None && role == Role::None {
            intervals.last_mut().expect("it was a member").1 = seq;
        }
    }

    /// The message at a seq as it is looked up, users known by `ids`.
    fn target(&self, seq: u64, ids: &[UserId]) -> Option<Target> {
        let entry = self.entries.get(usize::try_from(seq).ok()?.checked_sub(1)?)?;
        let countable = self.entries[..seq as usize].iter().flatten().count() as u64;
        Some(Target {
            sender: entry.map_or(UserId(0), |sender| ids[sender]),
            is_message: entry.is_some(),
            countable,
            time: LogTime(0),
        })
    }

    /// Whether a message is shown to those who may see it.
    fn is_shown(&self, seq: u64, now: u64) -> bool {
        self.counts(seq, now) && !self.is_erased(seq)
    }

    /// Whether a message counts as unread: what is erased counts as it did.
    fn counts(&self, seq: u64, now: u64) -> bool {
        let has_expired = self.expires.get(&seq).is_some_and(|expires| *expires <= now);
        let is_message = seq > 0 && self.entries.get(seq as usize - 1).is_some_and(Option::is_some);
        is_message && seq >= self.first && !has_expired && !self.recalled.contains(&seq)
    }

    fn is_erased(&self, seq: u64) -> bool {
        let entry = self.entries.get((seq as usize).wrapping_sub(1)).copied().flatten();
        entry.is_some_and(|sender| self.erased.contains(&sender))
    }

    /// A user is erased: nothing of its own is left, it is no member, and what it owned is another's.
    fn erase(&mut self, user: usize, ids: &[UserId]) {
        self.erased.insert(user);
        self.hidden.remove(&user);
        self.mentions.remove(&user);
        self.levels.remove(&user);
        self.settings.remove(&user);
        let was = self.role(user);
        if was == Role::None {
            return;
        }
        self.set_role(user, Role::None);
        let others = self.roles.iter().filter(|(_, role)| **role != Role::None);
        let highest =
            others.max_by_key(|(other, role)| (**role as i32, std::cmp::Reverse(ids[**other]))).map(|of| *of.0);
        if let (Role::Owner, Some(heir)) = (was, highest) {
            self.set_role(heir, Role::Owner);
        }
    }

    /// A message or an edit mentions another, if it mentions anybody.
    fn mention(&mut self, user: usize, other: usize, seq: u64, beside: Option<&packet::Beside>) {
        let mentions = beside.is_some_and(|beside| !beside.mentions.is_empty());
        if mentions && other != user && self.role(other) != Role::None {
            self.mentions.entry(other).or_default().push(seq);
        }
    }

    /// The messages that a user has not read.
    fn unread(&self, user: usize, now: u64) -> Vec<u64> {
        if self.role(user) == Role::None {
            return Vec::new();
        }
        let mark = self.marks.get(&user).copied().unwrap_or(0);
        let joined = self.joined[&user];
        let above = (1..=self.entries.len() as u64).filter(|seq| *seq > mark && *seq >= joined);
        let is_hidden = |seq: &u64| self.hidden.get(&user).is_some_and(|hidden| hidden.contains(seq));
        above.filter(|seq| self.counts(*seq, now) && !is_hidden(seq)).collect()
    }

    /// How many of them mention the user as they are now.
    fn unread_mentions(&self, user: usize, now: u64) -> usize {
        let mentions = self.mentions.get(&user).map_or(&[][..], Vec::as_slice);
        let newest = |seq: u64| self.edits.iter().rev().find(|(_, of)| *of == seq).map_or(seq, |(edit, _)| *edit);
        self.unread(user, now).into_iter().filter(|seq| mentions.contains(&newest(*seq))).count()
    }

    fn sees(&self, user: usize, seq: u64) -> bool {
        self.intervals.get(&user).is_some_and(|i| i.iter().any(|&(from, to)| from <= seq && (to == 0 || seq <= to)))
    }
}

/// Up to so many operations, each held against the model; gives how many were stored.
///
/// # Panics
/// Where core and model differ; `story` says which life it was.
pub(crate) fn live(story: &str, choices: Choices<'_>, steps: usize, warmth: Warmth) -> usize {
    let mut world = World::new(warmth, choices);
    let mut model: BTreeMap<u64, Naive> = BTreeMap::new();
    let mut next_id = [1_u64; USERS.len()];
    let mut answered: Vec<(usize, packet::Publish, PublishAck)> = Vec::new();
    let mut erased = BTreeSet::new();
    // Who takes nothing from whom, and where each device has left a will.
    let mut blocks = BTreeSet::new();
    let mut wills: HashMap<usize, u64> = HashMap::new();
    let mut since = [(); USERS.len()].map(|()| Since::default());
    for step in 0..steps {
        if world.choices.are_over() {
            break;
        }
        let context = format!("{story}, step {step}");
        let user = world.choices.below(USERS.len());
        let known = world.choices.below(model.len().max(1));
        let conversation = model.keys().nth(known).copied().unwrap_or(0);
        let other = world.choices.below(USERS.len());
        let role = [Role::None, Role::Reader, Role::Member, Role::Admin][world.choices.below(4)];
        let set = packet::SetRole { user: USERS[other].into(), role: role.into() };
        let mark = world.choices.below(8) as u64;
        let now = world.now().0;
        let head = model.get(&conversation).map_or(0, |naive| naive.entries.len());
        let seq = world.choices.below(head + 2) as u64;
        let reaction = ["", "+1", "ha"][world.choices.below(3)];
        let ids: Vec<UserId> = world.sessions.iter().map(|session| session.user).collect();
        let mut beside = None;
        let what = world.choices.below(36);
        if what == 27 && world.choices.below(16) == 15 && other != ADMIN && erased.insert(other) {
            erase(&mut world, &mut model, (other, &mut next_id[ADMIN]), &context);
            wills.remove(&other);
            blocks.retain(|(of, _)| *of != other);
        }
        // Of what is erased nothing is left to be looked up, sooner or later.
        let target = model.get(&conversation).and_then(|naive| naive.target(seq, &ids));
        let sender = target.and_then(|target| ids.iter().position(|id| *id == target.sender));
        let target = target.filter(|_| !world.is_erased(sender));
        if erased.contains(&user) || what == 27 {
            continue;
        }
        if what == 35 {
            is_lost(&mut world, &mut model, user, wills.remove(&user), MessageId(next_id[user]));
            continue;
        }
        let action = match what {
            28 => Some(Action::Ban(packet::Ban { user: USERS[other].into(), lift: mark < 3 })),
            29 => Some(Action::SetJoinKey(packet::SetJoinKey { key: key(mark as u8 % 3) })),
            30 | 31 => Some(Action::Join(packet::Join { key: key(mark as u8 % 3) })),
            32 => {
                let (pinned, marked_unread) = (mark.is_multiple_of(2), mark < 4);
                let settings = packet::Settings { pinned, marked_unread, ..packet::Settings::default() };
                Some(Action::SetSettings(packet::SetSettings { settings: Some(settings) }))
            }
            33 => Some(Action::Block(packet::Block { user: USERS[other].into(), undo: mark < 3 })),
            34 => Some(Action::SetWill(packet::SetWill::default())),
            24..=26 => {
                let level = [Level::Full, Level::HeadsOnly, Level::Nothing][world.choices.below(3)].into();
                Some(Action::SetLevel(packet::SetLevel { level }))
            }
            20 | 21 => {
                let age_ms = [0, 1, 5_000, 20_000][world.choices.below(4)];
                let mode = if age_ms == 0 { RetentionMode::Keep } else { RetentionMode::KeepFor };
                let retention = Some(packet::Retention { mode: mode.into(), age_ms });
                Some(Action::SetRetention(packet::SetRetention { retention }))
            }
            22 | 23 => {
                sweep(&mut world, &mut model, conversation, &context);
                continue;
            }
            0 => {
                let policy = packet::Policy { past: Past::Everything.into(), ..packet::Policy::default() };
                let info = Box::new(packet::Info { policy: Some(policy), ..packet::Info::default() });
                Some(Action::CreateGroup(packet::CreateGroup {
                    label: "g".into(),
                    users: vec![USERS[other].into()],
                    info: (mark < 3).then_some(info),
                    ..Default::default()
                }))
            }
            1 | 2 => Some(Action::SetRole(set)),
            3 => Some(Action::Leave(packet::Leave {})),
            4 => Some(Action::SetMark(packet::SetMark { seq: if mark < 3 { 1_000 } else { seq } })),
            5 | 6 => {
                let mentions = if mark < 4 { vec![ids[other].0, ids[user].0] } else { Vec::new() };
                beside = Some(packet::Beside { mentions, ..packet::Beside::default() });
                Some(Action::Edit(packet::Edit { seq }))
            }
            7 | 8 => Some(Action::Recall(packet::Recall { seq })),
            9 => Some(Action::React(packet::React { seq, reaction: reaction.into() })),
            10 | 11 => Some(Action::Hide(packet::Hide { seq, undo: mark == 0 })),
            12 | 13 => {
                let mentions = vec![ids[other].0, ids[user].0, ids[other].0];
                beside =
                    Some(packet::Beside { mentions, expires_in_ms: mark * 20 * FRAME_MS, ..packet::Beside::default() });
                None
            }
            _ => None,
        };
        let creates = matches!(action, Some(Action::CreateGroup(_)));
        let names_none = match &action {
            Some(Action::CreateGroup(_) | Action::Block(_)) => true,
            // A will is taken away by one in no conversation.
            Some(Action::SetWill(_)) => mark < 2 || conversation == 0,
            _ => false,
        };
        let id = next_id[user];
        let publish = packet::Publish {
            conversation: if names_none { 0 } else { conversation },
            message_id: id,
            first_unanswered: id,
            content: Bytes::from(context.clone()),
            action: action.clone(),
            beside: beside.clone().map(Box::new),
        };
        let found = match &action {
            // What lies below a mark is worked out before the core is asked.
            Some(Action::SetMark(set)) => Found::Countable(model.get(&conversation).map_or(0, |naive| {
                let below = naive.entries.iter().take(set.seq as usize);
                below.flatten().count() as u64
            })),
            _ => Found::Target(target),
        };
        if world.choices.below(10) == 0 {
            // The group is lost: nothing of it shows, and the id is free.
            let _ = world.publish(user, publish.clone(), found, false);
        }
        let answer = world.publish(user, publish.clone(), found, true).expect("an answer");
        if world.choices.below(16) == 15 {
            world.reconnect(user, MessageId(id));
        }
        // Whatever it was, repeating it says the same and changes nothing.
        let frames = world.frames.len();
        let again = world.publish(user, publish.clone(), found, true).expect("an answer");
        match (&answer, &again) {
            (Ok(ack), Ok(repeated)) => {
                assert_eq!(ack, repeated, "{context}");
                assert!(world.frames[frames].records.is_empty(), "{context}: a repeat changes nothing");
                next_id[user] += 1;
                answered.push((user, publish, *ack));
            }
            // What ended in between, since a new connection is stored, is another matter.
            (Err(refusal), Err(repeated)) => {
                assert!(
                    refusal.reason == repeated.reason || world.now().0 > now,
                    "{context}: {refusal:?} {repeated:?}"
                );
            }
            other => panic!("{context}: {other:?}"),
        }

        let naive = model.entry(if creates { answer.as_ref().map_or(0, |a| a.conversation) } else { conversation });
        let refuses = blocks.contains(&(other, user));
        let expected = match (&action, naive) {
            (Some(Action::CreateGroup(_)), slot) => {
                let naive = slot.or_default();
                naive.erased.clone_from(&erased);
                naive.past_is_open = mark < 3;
                if naive.past_is_open {
                    // What it says of itself.
                    naive.entries.push(None);
                }
                naive.set_role(user, Role::Owner);
                if other != user && !erased.contains(&other) && !refuses {
                    naive.set_role(other, Role::Member);
                }
                Ok(naive.entries.len() as u64)
            }
            (Some(Action::Block(_)), _) if other == user => Err(Reason::InvalidArgument),
            (Some(Action::Block(block)), _) => {
                if block.undo {
                    blocks.remove(&(user, other))
                } else {
                    blocks.insert((user, other))
                };
                Ok(0)
            }
            (Some(Action::SetWill(_)), _) if names_none => {
                wills.remove(&user);
                Ok(0)
            }
            (_, std::collections::btree_map::Entry::Vacant(_)) => Err(Reason::UnknownConversation),
            (action, std::collections::btree_map::Entry::Occupied(mut slot)) => {
                let answer =
                    apply(slot.get_mut(), user, (other, refuses), role, (action.as_ref(), beside.as_ref()), now);
                if matches!(action, Some(Action::SetWill(_))) && answer.is_ok() {
                    wills.insert(user, conversation);
                }
                answer
            }
        };
        let older = answered.get(known % answered.len().max(1)).filter(|(user, ..)| !erased.contains(user)).cloned();
        if world.choices.below(8) == 7
            && let Some((user, publish, ack)) = older
        {
            // Something older, said again: it is settled, and whatever is answered, nothing comes of it.
            let frames = world.frames.len();
            let again = world.publish(user, publish, found, true).expect("an answer");
            assert!(again.as_ref().map_or(true, |again| *again == ack), "{context}: {again:?}");
            assert!(world.frames[frames].records.is_empty(), "{context}: a repeat changes nothing");
        }
        let is_own = matches!(action, Some(Action::Hide(_) | Action::SetSettings(_) | Action::Block(_)));
        // What one hides, sets or blocks is told to the own inbox, and has its seq.
        let answer = answer.map(|ack| if is_own { 0 } else { ack.seq }).map_err(|refusal| refusal.reason);
        assert_eq!(answer, expected, "{context}: {action:?}");
        model.remove(&0);
        for naive in model.values_mut() {
            naive.times.resize(naive.entries.len(), now);
        }

        for (user, session) in world.sessions.iter().enumerate() {
            let state = world.state.read().expect("unpoisoned");
            assert_eq!(
                state.wills().contains_key(&session.device),
                wills.contains_key(&user),
                "{context}: {user}'s will"
            );
        }
        for (id, naive) in &model {
            let row = world.read(|rows| rows.conversation(ConversationId(*id)).cloned()).expect("a row");
            let members = world.read(|rows| rows.members(ConversationId(*id)).clone());
            assert_eq!(row.head.seq.0, naive.entries.len() as u64, "{context}");
            for user in 0..USERS.len() {
                let id_of_user = world.sessions[user].user;
                let member = world.read(|rows| rows.member(ConversationId(*id), id_of_user).cloned());
                let bans = world.read(|rows| rows.bans(ConversationId(*id)));
                assert_eq!(bans as usize, naive.banned.len(), "{context}: bans of {id} are counted");
                assert_eq!(members.contains(&id_of_user), member.is_some(), "{context}: the list of members");
                let duty = world.read(|rows| rows.duty(id_of_user, ConversationId(*id)).copied());
                let duties = world.read(|rows| rows.duties(id_of_user).get(ConversationId(*id)).copied());
                assert_eq!(duties, duty, "{context}: the list of duties");
                let member = member.as_ref();
                let personal = world.read(|rows| rows.personal(id_of_user, ConversationId(*id)).cloned());
                let mentions = personal.as_ref().map_or(&[][..], |personal| &personal.mentions);
                let expected = naive.mentions.get(&user).map_or(&[][..], Vec::as_slice);
                assert!(mentions.iter().map(|seq| &seq.0).eq(expected), "{context}: mentions of {user} in {id}");
                let settings = world.read(|rows| {
                    let mark =
                        rows.member(ConversationId(*id), id_of_user).map_or(Position(0), |row| row.mark_position);
                    rows.settings(id_of_user, ConversationId(*id)).map(|row| row.wire(mark)).unwrap_or_default()
                });
                let expected = naive.settings.get(&user).copied().unwrap_or_default();
                assert_eq!(settings, expected, "{context}: what {user} set for {id}");
                let is_banned = world.read(|rows| rows.is_banned(ConversationId(*id), id_of_user));
                assert_eq!(is_banned, naive.banned.contains(&user), "{context}: whether {user} is banned from {id}");
                let now = world.now().0;
                let device = world.read(|rows| rows.device(world.sessions[user].device).cloned());
                let level = device.map_or(Level::Full, |row| row.levels.of(ConversationId(*id)));
                let expected = naive.levels.get(&user).copied().unwrap_or_default();
                assert_eq!(level, expected, "{context}: the level of {user} in {id}");
                for seq in 1..=row.head.seq.0 {
                    let sees = member.is_some_and(|member| member.sees(Seq(seq)));
                    assert_eq!(sees, naive.sees(user, seq), "{context}: {user} sees {seq} of {id}");
                    let sender = naive.entries[seq as usize - 1];
                    let is_message = sender.is_some();
                    // What is erased for good is blank in the files, and nothing here says so any more.
                    let is_blank = naive.is_erased(seq) && world.is_erased(sender);
                    let sender = || sender.map(|sender| world.sessions[sender].user);
                    let reason =
                        world.read(|rows| withheld(rows, &row, ConversationId(*id), Seq(seq), LogTime(now), sender));
                    let is_message = is_message && !is_blank;
                    if is_message {
                        assert_eq!(reason.is_none(), naive.is_shown(seq, now), "{context}: {seq} of {id} is shown");
                    }
                    let reaction = world.read(|rows| {
                        rows.reaction(ConversationId(*id), Seq(seq), id_of_user).unwrap_or_default().to_owned()
                    });
                    let expected = naive.reactions.get(&(seq, user)).map_or("", String::as_str);
                    assert_eq!(reaction, expected, "{context}: the reaction of {user} to {seq} of {id}");
                }
            }
        }
        // One after the other is asked: each list reads more than all that is looked at above.
        let asking = step % USERS.len();
        if !erased.contains(&asking) {
            listed(&world, &model, asking, &mut since[asking], &context);
        }
    }
    assert_eq!(world.rebuilt(), world.rows(), "{story}: the state is the fold of the frames");
    let state = world.state.read().expect("unpoisoned");
    assert!(state.crossings().is_empty(), "{story}: every inbox was told");
    answered.len()
}

/// What a user knows that asks only for what changed since it asked last.
#[derive(Default)]
struct Since {
    changes: u64,
    /// Unread and mentions of each conversation, and as of when.
    counts: BTreeMap<u64, (u64, u64, u64)>,
}

/// A user's list of conversations, and what is unread in them and in all, is what the model says.
fn listed(world: &World<'_>, model: &BTreeMap<u64, Naive>, user: usize, since: &mut Since, context: &str) {
    let (session, now) = (&world.sessions[user], world.now());
    let history = world.log.history();
    let reads = Reads { history: &*history, state: &world.state, now, may_block: true, looks: None };
    let request = packet::ConversationsRequest { limit: 200, ..packet::ConversationsRequest::default() };
    let page = conversations(reads, session, &request).expect("reads");
    let told: BTreeMap<u64, (u64, u64)> =
        page.conversations.iter().map(|listed| (listed.id, (listed.unread, listed.mentions))).collect();
    let counts = |naive: &Naive| (naive.unread(user, now.0).len() as u64, naive.unread_mentions(user, now.0) as u64);
    let is_in = |(_, naive): &(&u64, &Naive)| naive.role(user) != Role::None;
    let expected: BTreeMap<u64, (u64, u64)> =
        model.iter().filter(is_in).map(|(id, naive)| (*id, counts(naive))).collect();
    assert_eq!(told, expected, "{context}: what is unread, and mentions, of {user}");
    let sum = |(unread, mentions): (u64, u64), (one, two): &(u64, u64)| (unread + one, mentions + two);
    let all = expected.values().fold((0, 0), sum);
    assert_eq!((page.unread_total, page.mentions_total), all, "{context}: the totals of {user}");
    assert_eq!(unread_total(reads, session.user).expect("reads"), all.0, "{context}: the badge of {user}");

    // Who asks only for what changed since knows as much, but for what has expired meanwhile.
    let request = packet::ConversationsRequest { since: since.changes, ..request };
    let changed = conversations(reads, session, &request).expect("reads");
    let news = changed.conversations.iter().map(|listed| (listed.id, (listed.unread, listed.mentions, now.0)));
    since.counts.extend(news);
    since.counts.retain(|id, _| expected.contains_key(id));
    since.changes = changed.changes;
    assert!(expected.keys().eq(since.counts.keys()), "{context}: what {user} came into is news");
    for (id, (unread, mentions, time)) in &since.counts {
        let naive = &model[id];
        let then = (naive.unread(user, *time).len() as u64, naive.unread_mentions(user, *time) as u64);
        assert_eq!((*unread, *mentions), then, "{context}: what changed of {id} since {user} asked");
    }
}

/// Has a user erased, in steps of which some do not commit: it is all gone, and groups that do not commit change nothing.
fn erase(world: &mut World<'_>, model: &mut BTreeMap<u64, Naive>, (user, next_id): (usize, &mut u64), context: &str) {
    let erase = packet::EraseUser { user: USERS[user].into() };
    let (message_id, action) = (*next_id, Some(Action::EraseUser(erase)));
    let publish = packet::Publish { message_id, first_unanswered: message_id, action, ..packet::Publish::default() };
    *next_id += 1;
    world
        .publish(ADMIN, publish, Found::Countable(0), true)
        .expect("an answer")
        .expect("an administrator has users erased");
    let id = world.sessions[user].user;
    let stage = |world: &World<'_>| world.read(|rows| rows.erasure(id)).map(|row| row.stage);
    while stage(world) != Some(ErasureStage::Files) {
        let commits = world.choices.below(4) < 3;
        world.group(vec![Op::Erase(id)], commits);
    }
    if world.choices.below(2) == 0 {
        world.group(vec![Op::Erased(id)], true);
        assert_eq!(stage(world), Some(ErasureStage::Done), "{context}");
    }
    let (ids, now): (Vec<UserId>, _) = (world.sessions.iter().map(|session| session.user).collect(), world.now().0);
    for naive in model.values_mut() {
        naive.erase(user, &ids);
        naive.times.resize(naive.entries.len(), now);
    }
    let device = world.sessions[user].device;
    assert!(world.read(|rows| rows.device(device).is_none()), "{context}: its device is gone");
}

/// A user's device is gone for so long that its will, if it left one, is published, where that may still be; then it
/// comes again.
fn is_lost(
    world: &mut World<'_>,
    model: &mut BTreeMap<u64, Naive>,
    user: usize,
    will: Option<u64>,
    first_unanswered: MessageId,
) {
    let was = Arc::clone(&world.sessions[user]);
    world.group(vec![Op::Detach(Arc::clone(&was), None, Parting::Lost)], true);
    let commits = world.choices.below(4) > 0;
    if !commits {
        world.group(vec![Op::Fate(was.device, Fate::Publish)], false);
    }
    let now = world.now().0;
    world.group(vec![Op::Fate(was.device, Fate::Publish)], true);
    world.sessions[user] = world.attach(user, was.incarnation, first_unanswered);
    if let Some(naive) = will.and_then(|conversation| model.get_mut(&conversation))
        && naive.role(user) as i32 >= Role::Member as i32
    {
        naive.entries.push(Some(user));
        naive.times.resize(naive.entries.len(), now);
    }
}

/// A join key; 0 is none.
fn key(key: u8) -> Bytes {
    if key == 0 { Bytes::new() } else { vec![key; 16].into() }
}

/// Lets a conversation go what it need not keep, and holds against the model what went.
fn sweep(world: &mut World<'_>, model: &mut BTreeMap<u64, Naive>, conversation: u64, context: &str) {
    let now = world.now().0;
    let commits = world.choices.below(4) > 0;
    world.group(vec![Op::Sweep(ConversationId(conversation))], commits);
    let Some(naive) = model.get_mut(&conversation) else { return };
    let kept = world.read(|rows| rows.conversation(ConversationId(conversation)).map(|row| row.more.kept));
    let first = kept.expect("a row").first.0;
    assert!(first >= naive.first && first <= naive.entries.len() as u64 + 1, "{context}: kept from {first}");
    for (seq, time) in (1..).zip(&naive.times).filter(|(seq, _)| *seq >= naive.first) {
        let is_over = naive.age > 0 && time + naive.age <= now;
        assert!(seq >= first || is_over, "{context}: {seq} goes too early");
        let is_long_over = naive.age > 0 && time + naive.age + naive.age / 16 < now;
        assert!(seq < first || !is_long_over || !commits, "{context}: {seq} stays too long");
    }
    naive.first = first;
}

/// What the rights table says, written the other way round.
fn apply(
    naive: &mut Naive,
    user: usize,
    (other, refuses): (usize, bool),
    role: Role,
    (action, beside): (Option<&Action>, Option<&packet::Beside>),
    now: u64,
) -> Result<u64, Reason> {
    let own = naive.role(user);
    if let Some(Action::Join(join)) = action
        && own == Role::None
        && naive.join_key > 0
        && join.key == key(naive.join_key)
        && !naive.banned.contains(&user)
    {
        naive.set_role(user, Role::Member);
        return Ok(naive.entries.len() as u64);
    }
    if own == Role::None {
        return Err(Reason::UnknownConversation);
    }
    let is_admin = matches!(own, Role::Admin | Role::Owner);
    let members = naive.roles.values().filter(|role| **role != Role::None).count();
    match action {
        Some(Action::SetRole(_)) => {
            let was = naive.role(other);
            let concerns_admins = [was, role].iter().any(|r| matches!(r, Role::Admin | Role::Owner));
            if !matches!(own, Role::Admin | Role::Owner) || (own != Role::Owner && concerns_admins) {
                return Err(Reason::Forbidden);
            }
            if other == user {
                return Err(Reason::InvalidArgument);
            }
            let is_kept_out = refuses || naive.erased.contains(&other) || naive.banned.contains(&other);
            if was == Role::None && role != Role::None && is_kept_out {
                return Err(Reason::Forbidden);
            }
            if was != role {
                naive.set_role(other, role);
            }
        }
        Some(Action::Leave(_)) => {
            if own == Role::Owner && members > 1 {
                return Err(Reason::Forbidden);
            }
            naive.set_role(user, Role::None);
        }
        Some(Action::SetRetention(set)) => {
            let age = set.retention.unwrap_or_default().age_ms;
            if own != Role::Owner {
                return Err(Reason::Forbidden);
            }
            if age == 1 {
                return Err(Reason::InvalidArgument);
            }
            if naive.age != age {
                naive.age = age;
                naive.entries.push(None);
                naive.times.clear();
            }
        }
        Some(Action::SetLevel(set)) => {
            naive.levels.insert(user, set.level());
        }
        Some(Action::SetMark(set)) => {
            let mark = naive.marks.entry(user).or_default();
            *mark = set.seq.min(naive.entries.len() as u64).max(*mark);
            if let Some(settings) = naive.settings.get_mut(&user) {
                settings.marked_unread = false;
            }
        }
        Some(Action::Ban(ban)) => {
            let was = naive.role(other);
            if !is_admin {
                return Err(Reason::Forbidden);
            }
            if other == user {
                return Err(Reason::InvalidArgument);
            }
            if matches!(was, Role::Admin | Role::Owner) && own != Role::Owner {
                return Err(Reason::Forbidden);
            }
            if ban.lift {
                naive.banned.remove(&other);
            } else {
                naive.banned.insert(other);
                if was != Role::None {
                    naive.set_role(other, Role::None);
                }
            }
        }
        Some(Action::SetJoinKey(set)) => {
            if !is_admin {
                return Err(Reason::Forbidden);
            }
            naive.join_key = set.key.first().copied().unwrap_or(0);
        }
        // Who is in already.
        Some(Action::Join(_)) => {}
        Some(Action::SetSettings(set)) => {
            naive.settings.insert(user, set.settings.unwrap_or_default());
            return Ok(0);
        }
        Some(Action::SetWill(_)) if own == Role::Reader => return Err(Reason::Forbidden),
        Some(Action::SetWill(_)) => {}
        Some(Action::Edit(edit)) => {
            if own == Role::Reader {
                return Err(Reason::Forbidden);
            }
            if !naive.is_shown(edit.seq, now) || !naive.sees(user, edit.seq) {
                return Err(Reason::InvalidArgument);
            }
            if naive.entries[edit.seq as usize - 1] != Some(user) {
                return Err(Reason::Forbidden);
            }
            naive.entries.push(None);
            let seq = naive.entries.len() as u64;
            naive.edits.push((seq, edit.seq));
            naive.mention(user, other, seq, beside);
        }
        Some(Action::Recall(recall)) => {
            if naive.recalled.contains(&recall.seq) && naive.sees(user, recall.seq) {
                return Ok(naive.entries.len() as u64);
            }
            if !naive.is_shown(recall.seq, now) || !naive.sees(user, recall.seq) {
                return Err(Reason::InvalidArgument);
            }
            let is_own = naive.entries[recall.seq as usize - 1] == Some(user);
            if !matches!(own, Role::Admin | Role::Owner) && (!is_own || own == Role::Reader) {
                return Err(Reason::Forbidden);
            }
            let edits = naive.edits.iter().filter(|(_, of)| *of == recall.seq).map(|(seq, _)| *seq);
            naive.recalled.extend(edits.chain([recall.seq]));
            naive.entries.push(None);
        }
        Some(Action::React(react)) => {
            if !naive.is_shown(react.seq, now) || !naive.sees(user, react.seq) {
                return Err(Reason::InvalidArgument);
            }
            let given = naive.reactions.entry((react.seq, user)).or_default();
            if *given != react.reaction {
                given.clone_from(&react.reaction);
                naive.entries.push(None);
            }
        }
        Some(Action::Hide(hide)) => {
            if !naive.is_shown(hide.seq, now) || !naive.sees(user, hide.seq) {
                return Err(Reason::InvalidArgument);
            }
            let hidden = naive.hidden.entry(user).or_default();
            if hide.undo {
                hidden.remove(&hide.seq);
            } else {
                hidden.insert(hide.seq);
            }
            return Ok(0);
        }
        _ => {
            if own == Role::Reader {
                return Err(Reason::Forbidden);
            }
            naive.entries.push(Some(user));
            let seq = naive.entries.len() as u64;
            if let Some(beside) = beside.filter(|beside| beside.expires_in_ms > 0) {
                naive.expires.insert(seq, now + beside.expires_in_ms);
            }
            naive.mention(user, other, seq, beside);
            naive.marks.insert(user, naive.entries.len() as u64);
        }
    }
    Ok(naive.entries.len() as u64)
}
