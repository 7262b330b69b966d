//! The fold: one record after another into rows, without clock, chance or IO. The live path and recovery both come
//! through here, so they cannot differ.

use longwire_protocol::packet::{self, DeviceChangeKind, EntryKind, Role, item};
use longwire_protocol::{ConversationId, DeviceId, LogTime, MessageId, PARTITIONS, Seq, UserId};
use prost::Message as _;

use super::account_fold::{
    fold_account, fold_device_created, fold_device_returned, fold_device_seen, fold_level, fold_marks_hidden, fold_own,
};
use super::alteration::{Alteration, Personally, fold_alteration, fold_message, fold_personally};
use super::change::Change;
use super::erasure::{fold_begun, fold_cleared, fold_done, fold_erased_in, fold_own_erased};
use super::limits::{ID_SPAN_MAX, INTERVALS_MAX};
use super::push::{fold_push_set, fold_push_taken};
use super::retention::{fold_kept_from, fold_next, fold_retention};
use super::rows::{
    Conversation, Counted, Crossing, Device, Duty, Head, Info, Interval, Kept, Key, Kind, Member, MoreOfConversation,
    Past, Policy, Profile, Row, User, partition, partition_of_name,
};
use super::view::{Rows, View};
use crate::store::{EntryMeta, Frame, Position, ReadError, Record};

/// What the fold needs of an entry's contents.
#[derive(Clone, Debug)]
pub enum Body {
    /// Nothing: a kind that changes no row but the head.
    Plain,
    /// A message.
    Message {
        /// Who published it.
        sender: UserId,
        /// Whose attention it asks for.
        mentions: Vec<u64>,
        /// When it ceases to be shown; 0: never.
        expires: LogTime,
    },
    /// Something about an earlier message.
    Alteration(Alteration),
    /// In an inbox: something that concerns its user alone.
    Personally {
        /// In this conversation.
        conversation: ConversationId,
        /// What.
        what: Personally,
    },
    /// Someone's role changed.
    Membership {
        /// Whose.
        user: UserId,
        /// To what.
        role: Role,
    },
    /// The group says something else of itself.
    Info(Box<packet::Info>),
    /// The conversation got a label.
    Label(Box<str>),
    /// Its entries are kept so long from here on.
    Retention(packet::Retention),
    /// In an inbox: delivery of a conversation begins after a seq.
    Joined {
        /// The conversation.
        conversation: ConversationId,
        /// The seq.
        seq: Seq,
    },
    /// In an inbox: the user is no longer in a conversation.
    Left {
        /// The conversation.
        conversation: ConversationId,
    },
    /// In an inbox: the user shows itself so.
    Profile(Profile),
    /// In an inbox: what the user keeps of another.
    Contact {
        /// Of whom.
        other: UserId,
        /// What the user calls it.
        nick: Box<str>,
        /// The application's own.
        data: Box<[u8]>,
        /// It is a contact no more.
        is_removed: bool,
    },
    /// In an inbox: the user takes nothing from another.
    Blocked {
        /// From whom.
        other: UserId,
        /// It does again.
        is_undone: bool,
    },
    /// In an inbox: something happened to one of the user's devices.
    Device {
        /// To which.
        device: DeviceId,
        /// What it is called.
        label: Box<str>,
        /// What happened.
        kind: DeviceChangeKind,
    },
}

impl Body {
    /// The body of an encoded wire `Item`, as replay finds it.
    ///
    /// # Errors
    /// When the bytes are no entry.
    pub fn of(item: &[u8]) -> Result<Self, ReadError> {
        let item =
            packet::Item::decode(item).map_err(|e| ReadError(format!("an entry of the log is unreadable: {e}")))?;
        let Some(item::Kind::Entry(entry)) = item.kind else {
            return Err(ReadError("an entry of the log holds another kind of item".into()));
        };
        Ok(Self::of_entry(&entry))
    }

    /// The body of an entry.
    #[must_use]
    pub fn of_entry(entry: &packet::Entry) -> Self {
        let sender = UserId(entry.sender);
        match entry.kind() {
            EntryKind::Message => Self::Message {
                sender,
                mentions: entry.beside.as_ref().map_or_else(Vec::new, |beside| beside.mentions.clone()),
                expires: LogTime(entry.expires),
            },
            EntryKind::Membership => entry.membership.as_ref().map_or(Self::Plain, |membership| Self::Membership {
                user: UserId(membership.user),
                role: membership.role(),
            }),
            EntryKind::Info => Self::Info(entry.info.clone().unwrap_or_default()),
            EntryKind::Label => Self::Label(entry.label.as_str().into()),
            EntryKind::Retention => Self::Retention(entry.retention.unwrap_or_default()),
            EntryKind::Joined => entry.joined.as_ref().map_or(Self::Plain, |joined| Self::Joined {
                conversation: ConversationId(joined.conversation),
                seq: Seq(joined.seq),
            }),
            EntryKind::Left => entry
                .left
                .as_ref()
                .map_or(Self::Plain, |left| Self::Left { conversation: ConversationId(left.conversation) }),
            EntryKind::Edit | EntryKind::Recall | EntryKind::Reaction => {
                Alteration::of(entry).map_or(Self::Plain, Self::Alteration)
            }
            EntryKind::Profile | EntryKind::Contact | EntryKind::Blocked | EntryKind::Device => {
                Self::of_account(entry).unwrap_or(Self::Plain)
            }
            EntryKind::Mentioned | EntryKind::Settings | EntryKind::Hidden => Personally::of(entry)
                .map_or(Self::Plain, |(conversation, what)| Self::Personally { conversation, what }),
        }
    }
}

/// Whether entries of this kind count as unread.
#[must_use]
pub fn is_countable(kind: EntryKind) -> bool {
    kind == EntryKind::Message
}

/// Folds a committed frame into the draft.
///
/// # Errors
/// When a record is unreadable.
pub fn fold_frame(view: &mut View<'_>, frame: &Frame) -> Result<(), ReadError> {
    for record in &frame.records {
        match record {
            Record::Entry(e) => {
                let meta = EntryMeta {
                    conversation: e.conversation,
                    seq: e.seq,
                    countable: e.countable,
                    origin: e.origin,
                    first_unanswered: e.first_unanswered,
                    digest: e.digest,
                    source: e.source,
                };
                fold_entry(view, &meta, e.position, e.time, &Body::of(&e.item)?);
            }
            Record::Change(change) | Record::Rider(change) => {
                let decoded = Change::decode(&change.body)
                    .map_err(|e| ReadError(format!("a change at {:?} is unreadable: {e}", change.position)))?;
                fold_change(view, change.position, frame.time, &decoded);
            }
        }
    }
    Ok(())
}

/// Folds one entry.
pub fn fold_entry(view: &mut View<'_>, meta: &EntryMeta, position: Position, time: LogTime, body: &Body) {
    view.reach(position, time);
    let head = Head { seq: meta.seq, position, time, countable: meta.countable };
    let (mut countable_before, mut timed) = (0, None);
    view.update(Key::Conversation(meta.conversation), |row| {
        if let Row::Conversation(conversation) = row {
            assert_eq!(conversation.head.seq.next(), meta.seq, "seqs have no hole");
            countable_before = conversation.head.countable;
            if conversation.more.kept.is_timed {
                timed = Some(conversation.head);
            }
            conversation.head = head;
            if matches!(body, Body::Message { .. }) {
                conversation.more.message = meta.seq;
            }
            if matches!(body, Body::Message { .. } | Body::Membership { .. } | Body::Label(_)) {
                conversation.more.activity = position;
            }
        }
    });
    if let Some(before) = timed {
        fold_next(view, meta.conversation, &before, time);
    }
    if meta.origin.device.is_some() {
        // What is said of another conversation was published to that one.
        let named = if let Body::Personally { conversation, .. } = body { *conversation } else { meta.conversation };
        answer(view, meta, named, time, false);
    }
    match body {
        Body::Plain => {}
        Body::Message { sender, mentions, expires } => {
            // Who writes has read what stands above: the own mark goes along, so own entries never count as unread. A will
            // comes from no device: nobody wrote it just now.
            if meta.origin.device.is_some() && view.member(meta.conversation, *sender).is_some() {
                view.update(Key::Member(meta.conversation, *sender), |row| {
                    if let Row::Member(member) = row {
                        member.mark = meta.seq;
                        member.mark_countable = meta.countable;
                    }
                });
            }
            fold_message(view, meta, (position, time), *sender, mentions, *expires);
        }
        Body::Alteration(alteration) => fold_alteration(view, meta, position, time, alteration),
        Body::Personally { conversation, what } => {
            if let Some(user) = inbox_owner(view, meta.conversation) {
                fold_personally(view, user, *conversation, what, position, meta.source);
            }
        }
        Body::Membership { user, role } => {
            let at = At { conversation: meta.conversation, seq: meta.seq, countable: countable_before, position };
            change_role(view, &at, *user, *role);
        }
        Body::Info(info) => fold_info(view, meta.conversation, info),
        Body::Retention(retention) => fold_retention(view, meta.conversation, time, retention),
        Body::Label(label) => view.update(Key::Conversation(meta.conversation), |row| {
            if let Row::Conversation(conversation) = row {
                conversation.label.clone_from(label);
            }
        }),
        Body::Joined { conversation, seq } => {
            if let Some(user) = inbox_owner(view, meta.conversation) {
                let duty = Duty { since: *seq, joined: position, closed: false };
                view.put(Key::Duty(user, *conversation), Some(Row::Duty(duty)));
                view.put(Key::Crossing(meta.source, user), None);
            }
        }
        Body::Profile(_) | Body::Contact { .. } | Body::Blocked { .. } | Body::Device { .. } => {
            if let Some(user) = inbox_owner(view, meta.conversation) {
                fold_own(view, user, time, body);
            }
        }
        Body::Left { conversation } => {
            if let Some(user) = inbox_owner(view, meta.conversation) {
                view.update(Key::Duty(user, *conversation), |row| {
                    if let Row::Duty(duty) = row {
                        duty.closed = true;
                    }
                });
                view.put(Key::Crossing(meta.source, user), None);
            }
        }
    }
}

/// Folds one change.
pub fn fold_change(view: &mut View<'_>, position: Position, time: LogTime, change: &Change) {
    view.reach(position, time);
    match change {
        Change::UserCreated { user, name, inbox } => {
            let row = User {
                name: name.clone(),
                inbox: *inbox,
                devices: Vec::new(),
                conversations: 0,
                contacts: 0,
                is_someone: false,
                is_closed: false,
                hides_marks: false,
                tokens_until: LogTime(0),
                generation: 0,
            };
            view.create(Key::User(*user), Row::User(row));
            view.put(Key::UserName(name.clone()), Some(Row::UserName(*user)));
            count(view, Counted::Users, user.0);
            create(view, *inbox, Kind::Inbox, "", (*user, *user));
            add_member(view, *inbox, *user, Role::Reader);
            // An inbox is announced by nobody: it is delivered from its first entry.
            let duty = Duty { since: Seq(0), joined: Position(0), closed: false };
            view.put(Key::Duty(*user, *inbox), Some(Row::Duty(duty)));
        }
        Change::DeviceCreated { device, user, name } => {
            fold_device_created(view, *device, *user, name, time);
            count(view, Counted::Devices, device.0);
        }
        Change::IncarnationGiven { device, incarnation } => {
            view.update(Key::Device(*device), |row| {
                if let Row::Device(device) = row {
                    device.incarnation = *incarnation;
                    device.floor = MessageId(1);
                    device.kept.clear();
                }
            });
            // It belongs to another life of the device.
            if view.will_after(*device).is_some() {
                view.put(Key::Will(*device), None);
            }
        }
        Change::FloorRaised { device, floor } => view.update(Key::Device(*device), |row| {
            if let Row::Device(device) = row {
                raise_floor(device, *floor);
            }
        }),
        Change::ConversationCreated { conversation, kind, label, pair } => {
            create(view, *conversation, *kind, label, *pair);
            match kind {
                Kind::Direct => {
                    let (a, b) = (pair.0.min(pair.1), pair.0.max(pair.1));
                    view.put(Key::Direct(a, b), Some(Row::ConversationName(*conversation)));
                    let two = [a, b];
                    for user in if a == b { &two[..1] } else { &two[..] } {
                        add_member(view, *conversation, *user, Role::Member);
                        let crossing = Crossing { conversation: *conversation, joined: true, seq: Seq(0) };
                        view.put(Key::Crossing(position, *user), Some(Row::Crossing(crossing)));
                        count_conversation(view, *user, 1);
                    }
                }
                Kind::Channel => view.put(Key::Channel(label.clone()), Some(Row::ConversationName(*conversation))),
                Kind::Group | Kind::Inbox => {}
            }
        }
        Change::Answered { origin, first_unanswered, digest, conversation, seq, opened } => {
            let meta = EntryMeta {
                conversation: *conversation,
                seq: *seq,
                origin: *origin,
                first_unanswered: *first_unanswered,
                digest: *digest,
                ..EntryMeta::default()
            };
            answer(view, &meta, *conversation, time, *opened);
        }
        Change::MarkSet { user, conversation, seq, countable } => {
            view.update(Key::Member(*conversation, *user), |row| {
                if let Row::Member(member) = row {
                    if *seq > member.mark {
                        member.mark = *seq;
                        member.mark_countable = *countable;
                    }
                    member.mark_position = position;
                }
            });
            view.update(Key::Conversation(*conversation), |row| {
                if let Row::Conversation(row) = row {
                    row.more.marked = position;
                }
            });
        }
        Change::RoleSet { conversation, user, role } => {
            let head = view.conversation(*conversation).map(|c| c.head).unwrap_or_default();
            let at = At { conversation: *conversation, seq: head.seq, countable: head.countable, position };
            change_role(view, &at, *user, Role::try_from(*role).unwrap_or(Role::None));
        }
        Change::CursorStored { device, cursor } => view.update(Key::Device(*device), |row| {
            if let Row::Device(device) = row {
                device.cursor = Some(*cursor);
            }
        }),
        Change::Retained { floor } => view.put(Key::Floor, Some(Row::Floor(*floor))),
        Change::BanSet { conversation, user, is_banned } => {
            if view.is_banned(*conversation, *user) != *is_banned {
                let bans = view.bans(*conversation);
                // Those of before they were counted are lifted all the same.
                let bans = if *is_banned { bans + 1 } else { bans.saturating_sub(1) };
                view.put(Key::Bans(*conversation), (bans > 0).then_some(Row::Bans(bans)));
            }
            view.put(Key::Banned(*conversation, *user), is_banned.then_some(Row::Banned));
        }
        Change::JoinKeySet { conversation, digest } => {
            let info = view.info(*conversation).cloned().unwrap_or_default();
            view.put(Key::Info(*conversation), Some(Row::Info(Info { join_key: *digest, ..info })));
        }
        Change::ParticipantsSet { conversation, digest } => {
            view.put(Key::Participants(*digest), Some(Row::ConversationName(*conversation)));
            more(view, *conversation, |more| more.participants = *digest);
        }
        Change::DeviceSeen { device } => fold_device_seen(view, *device, time),
        Change::DeviceReturned { device } => fold_device_returned(view, *device, time),
        Change::AccountSet { user, password, is_closed, cuts } => {
            fold_account(view, *user, password.as_ref(), *is_closed, *cuts, time);
        }
        Change::InvitationUsed { id, until } => {
            view.put(Key::Invitation(id.clone()), Some(Row::Invitation(*until)));
        }
        Change::WillSet { device, will } => view.put(Key::Will(*device), Some(Row::Will(will.clone()))),
        Change::WillTaken { device } => view.put(Key::Will(*device), None),
        Change::AudienceSet { user, audience } => view.put(Key::Audience(*user), Some(Row::Audience(*audience))),
        Change::MarksHidden { user, is_hidden } => fold_marks_hidden(view, *user, *is_hidden),
        Change::Borne { user, device, bearer } => {
            view.put(Key::Bearer(*user, *device), Some(Row::Bearer(bearer.clone())));
        }
        Change::Seen { user, time } => view.put(Key::Seen(*user), Some(Row::Seen(*time))),
        Change::KeptFrom { conversation, first, countable } => {
            fold_kept_from(view, *conversation, *first, *countable, position);
        }
        Change::EraseBegun { user } => fold_begun(view, *user, position, time),
        Change::EraseOwn { user, contacts } => fold_own_erased(view, *user, *contacts),
        Change::EraseIn { user, conversations } => fold_erased_in(view, *user, conversations),
        Change::EraseCleared { user } => fold_cleared(view, *user, position),
        Change::EraseDone { user } => fold_done(view, *user),
        Change::LevelSet { device, conversation, level } => fold_level(view, *device, *conversation, *level),
        Change::PushSet { user, device, push } => fold_push_set(view, (*user, *device), push, position),
        Change::PushTaken { user, device } => fold_push_taken(view, *user, *device),
        Change::PushTold { user, device, told } => {
            view.put(Key::Told(*user, *device), Some(Row::Told(told.clone())));
        }
    }
}

fn fold_info(view: &mut View<'_>, id: ConversationId, info: &packet::Info) {
    let join_key = view.info(id).map_or(0, |row| row.join_key);
    let row = Info { picture: info.picture.as_str().into(), description: info.description.as_str().into(), join_key };
    view.put(Key::Info(id), Some(Row::Info(row)));
    more(view, id, |more| {
        more.policy = info.policy.as_ref().map_or_else(Policy::default, Policy::of);
        more.has_info = true;
    });
}

/// Changes what stands behind a conversation's row.
fn more(view: &mut View<'_>, id: ConversationId, change: impl FnOnce(&mut MoreOfConversation)) {
    view.update(Key::Conversation(id), |row| {
        if let Row::Conversation(row) = row {
            change(&mut row.more);
        }
    });
}

/// Keeps the answer to a publish that named this conversation, or opened it, for its repeats.
fn answer(view: &mut View<'_>, meta: &EntryMeta, named: ConversationId, time: LogTime, opened: bool) {
    view.update(Key::Device(meta.origin.device), |row| {
        let Row::Device(device) = row else { return };
        if meta.origin.incarnation != device.incarnation {
            return;
        }
        raise_floor(device, meta.first_unanswered);
        let kept =
            Kept { id: meta.origin.message_id, conversation: named, seq: meta.seq, time, digest: meta.digest, opened };
        let at = device.kept.partition_point(|k| k.id < kept.id);
        device.kept.insert(at, kept);
        assert!(device.kept.len() as u64 <= ID_SPAN_MAX, "kept answers stay within the span");
    });
}

fn raise_floor(device: &mut Device, floor: MessageId) {
    if floor > device.floor {
        device.floor = floor;
        let below = device.kept.partition_point(|k| k.id < floor);
        device.kept.drain(..below);
    }
}

fn create(view: &mut View<'_>, conversation: ConversationId, kind: Kind, label: &str, pair: (UserId, UserId)) {
    let row = Conversation {
        kind,
        label: label.into(),
        pair,
        head: Head::default(),
        members: 0,
        more: MoreOfConversation::default(),
    };
    view.create(Key::Conversation(conversation), Row::Conversation(row));
    count(view, Counted::Conversations, conversation.0);
}

fn add_member(view: &mut View<'_>, conversation: ConversationId, user: UserId, role: Role) {
    let row = Member {
        role: role as i32,
        intervals: vec![Interval { from: Seq(1), to: Seq(0), countable_before: 0 }],
        mark: Seq(0),
        mark_countable: 0,
        mark_position: Position(0),
    };
    view.put(Key::Member(conversation, user), Some(Row::Member(row)));
    count_members(view, conversation, 1);
}

/// Where in a conversation a role changes.
struct At {
    conversation: ConversationId,
    /// The membership entry; in a channel, the head.
    seq: Seq,
    /// The countable entries before a group's membership entry; in a channel, up to the head.
    countable: u64,
    position: Position,
}

fn change_role(view: &mut View<'_>, at: &At, user: UserId, role: Role) {
    let key = Key::Member(at.conversation, user);
    let mut row = view.member(at.conversation, user).cloned().unwrap_or(Member {
        role: Role::None as i32,
        intervals: Vec::new(),
        mark: Seq(0),
        mark_countable: 0,
        mark_position: Position(0),
    });
    let was_active = row.is_active();
    row.role = role as i32;
    if row.is_active() == was_active {
        view.put(key, Some(Row::Member(row)));
        return;
    }
    let joined = !was_active;
    if !joined && !at.seq.is_some() {
        // A channel that was left while it was empty: nothing was there to be seen.
        row.intervals.clear();
    } else if !joined {
        if let Some(last) = row.intervals.last_mut() {
            last.to = at.seq;
        }
    } else if view.conversation(at.conversation).is_some_and(|c| c.kind == Kind::Channel) {
        // A channel's past is open to its readers, and counts as read.
        row.intervals = vec![Interval { from: Seq(1), to: Seq(0), countable_before: 0 }];
        row.mark = at.seq;
        row.mark_countable = at.countable;
    } else {
        let past = view.conversation(at.conversation).map_or(Past::FromJoining, |c| c.more.policy.past);
        come_in(&mut row, at, past);
    }
    view.put(key, Some(Row::Member(row)));
    let made_for = view.conversation(at.conversation).map_or(0, |conversation| conversation.more.participants);
    if made_for != 0 {
        view.put(Key::Participants(made_for), None);
        more(view, at.conversation, |more| more.participants = 0);
    }
    let by = if joined { 1 } else { -1 };
    count_members(view, at.conversation, by);
    count_conversation(view, user, by);
    let crossing = Crossing { conversation: at.conversation, joined, seq: at.seq };
    view.put(Key::Crossing(at.position, user), Some(Row::Crossing(crossing)));
}

/// A group begins where one comes in, or as far before as its policy says; what was there before counts as read.
fn come_in(row: &mut Member, at: &At, past: Past) {
    let from = match past {
        Past::FromJoining => at.seq,
        Past::Everything => Seq(1),
        Past::Last(entries) => Seq(at.seq.0.saturating_sub(entries.into()).max(1)),
    };
    // Stretches never overlap: what the user may read already is part of the new one, or cut where that begins.
    row.intervals.retain(|interval| interval.from < from);
    if let Some(last) = row.intervals.last_mut().filter(|last| last.to >= from) {
        last.to = Seq(from.0 - 1);
    }
    row.intervals.push(Interval { from, to: Seq(0), countable_before: at.countable });
    if row.intervals.len() > INTERVALS_MAX {
        row.intervals.remove(0);
    }
}

fn inbox_owner(view: &View<'_>, inbox: ConversationId) -> Option<UserId> {
    view.conversation(inbox).map(|row| row.pair.0)
}

fn count_members(view: &mut View<'_>, conversation: ConversationId, by: i32) {
    view.update(Key::Conversation(conversation), |row| {
        if let Row::Conversation(row) = row {
            row.members = row.members.saturating_add_signed(by);
        }
    });
}

fn count_conversation(view: &mut View<'_>, user: UserId, by: i32) {
    view.update(Key::User(user), |row| {
        if let Row::User(row) = row {
            row.conversations = row.conversations.saturating_add_signed(by);
        }
    });
}

fn count(view: &mut View<'_>, counted: Counted, id: u64) {
    let partition = partition(id);
    let n = view.counter(counted, partition).max(id / PARTITIONS);
    view.put(Key::Counter(counted, partition), Some(Row::Counter(n)));
}

/// The next free id in a partition.
#[must_use]
pub fn next_id(rows: &impl Rows, counted: Counted, partition: u16) -> u64 {
    let n = rows.counter(counted, partition) + 1;
    n * PARTITIONS + u64::from(partition)
}

/// The next free id in the partition of a name.
#[must_use]
pub fn next_id_named(rows: &impl Rows, counted: Counted, name: &str) -> u64 {
    next_id(rows, counted, partition_of_name(name))
}
