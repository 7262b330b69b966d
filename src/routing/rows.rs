//! The rows of derived state: what is known of users, devices, conversations and members, each under its key.
//! A row is small, cloned freely, and encoded only when the background thread saves it.
//!
//! What rows of format 1 did not have stands behind the row, in a value of its own: bytes that end before it are such a
//! row, and it has its default.

use longwire_protocol::packet::{self, ConversationKind, HeadReason, Role};
use longwire_protocol::{ConversationId, DeviceId, Incarnation, LogTime, MessageId, PARTITIONS, Seq, UserId};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::levels::Levels;
use super::push::{Push, Told};
use crate::mutation::Mutation;
use crate::store::{Position, ReadError, SegmentId};

/// A person or thing, known by the name its tokens carry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The name in its tokens.
    pub name: Box<str>,
    /// Its inbox.
    pub inbox: ConversationId,
    /// The devices it has; at most [`super::limits::DEVICES_MAX`].
    #[serde(with = "count_of_devices")]
    pub devices: Vec<DeviceId>,
    /// How many conversations it is in, its inbox not counted.
    pub conversations: u32,
    /// How many contacts it has; they stand in slots from 0 on.
    #[serde(skip)]
    pub contacts: u32,
    /// Whether it ever came with a device, or has an account: else it is but a name that others used.
    #[serde(skip)]
    pub is_someone: bool,
    /// Its account is closed: it is let in no more, and nothing is taken to it.
    #[serde(skip)]
    pub is_closed: bool,
    /// Tokens made up to here are good no more; 0 while none was taken back.
    #[serde(skip)]
    pub tokens_until: LogTime,
    /// How often they were taken back: the broker's own tokens say of which generation they are.
    #[serde(skip)]
    pub generation: u32,
}

/// One installation of a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Whose it is.
    pub user: UserId,
    /// The name the client gave it.
    pub name: Box<str>,
    /// The current life of its counter of message ids.
    pub incarnation: Incarnation,
    /// The highest first-unanswered id ever told; never falls within an incarnation.
    pub floor: MessageId,
    /// What was answered at or above the floor, by id ascending: at most 256.
    pub kept: Vec<Kept>,
    /// Where it stands in the log, by its acks.
    pub cursor: Option<DeviceCursor>,
    /// What its user calls it.
    #[serde(skip)]
    pub label: Box<str>,
    /// When it came first, or came again after it was forgotten.
    #[serde(skip)]
    pub created: LogTime,
    /// When it was last seen, to within an hour.
    #[serde(skip)]
    pub seen: LogTime,
    /// Tokens made for it up to here are good no more; 0 while none was taken back.
    #[serde(skip)]
    pub tokens_until: LogTime,
    /// How often they were taken back.
    #[serde(skip)]
    pub generation: u32,
    /// It was revoked, or expired. Its id and incarnation stay, so that an outbox of it that comes again is settled and
    /// not repeated.
    #[serde(skip)]
    pub is_gone: bool,
    /// How much of conversations it is delivered, where that is not everything.
    #[serde(skip)]
    pub levels: Levels,
}

/// Rows of format 1 have the number of a user's devices; which they are stands behind the row.
mod count_of_devices {
    use longwire_protocol::DeviceId;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(devices: &[DeviceId], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(u32::try_from(devices.len()).unwrap_or(u32::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<DeviceId>, D::Error> {
        u32::deserialize(deserializer).map(|_| Vec::new())
    }
}

/// The answer to one publish, kept so that a repeat gets the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The device's message id.
    pub id: MessageId,
    /// The conversation it went to, or that it made or opened.
    pub conversation: ConversationId,
    /// The seq it got; 0 where it has none.
    pub seq: Seq,
    /// The time it got.
    pub time: LogTime,
    /// What was published, digested.
    pub digest: u64,
    /// Whether the publish did not name the conversation, so that the answer has to.
    pub opened: bool,
}

/// A place in the log, per lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceCursor {
    /// The segment whose positions these are.
    pub segment: SegmentId,
    /// Up to here in lane express.
    pub express: Position,
    /// Up to here in lane bulk.
    pub bulk: Position,
}

/// What a conversation's newest entry is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its seq; 0 while there is none.
    pub seq: Seq,
    /// Its position.
    pub position: Position,
    /// Its time.
    pub time: LogTime,
    /// How many countable entries there are up to it.
    pub countable: u64,
}

/// What people call a chat, a group or a topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    /// `direct`, `group`, `channel` or `inbox`, as in [`ConversationKind`].
    pub kind: Kind,
    /// The label of a group, the name of a channel; empty otherwise.
    pub label: Box<str>,
    /// The two of a direct conversation, the one of an inbox (twice).
    pub pair: (UserId, UserId),
    /// The newest entry.
    pub head: Head,
    /// How many members it has now.
    pub members: u32,
    /// What rows of format 1 do not have.
    #[serde(skip)]
    pub more: MoreOfConversation,
}

/// What stands behind a [`Conversation`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoreOfConversation {
    /// The newest message; 0 while there is none, or none since it is kept.
    pub message: Seq,
    /// The position of the newest entry that people see as activity: a message or a change of membership.
    pub activity: Position,
    /// The position of the newest mark that a member set.
    pub marked: Position,
    /// The lowest and highest seq that has a row [`Altered`]; 0 where there is none.
    pub altered: (Seq, Seq),
    /// The lowest and highest seq that is not to be shown any more, or will not be one day; 0 where there is none.
    pub withheld: (Seq, Seq),
    /// The part of a group's policy that each message or mark is held against.
    pub policy: Policy,
    /// Whether there is a row [`Info`].
    pub has_info: bool,
    /// The digest of the users it was made for, while it has just these; 0 where it was not made so. See
    /// [`Key::Participants`].
    pub participants: u128,
    /// What is written behind these in turn.
    #[serde(skip)]
    pub kept: KeptOfConversation,
}

/// What a conversation still keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptOfConversation {
    /// Entries below this seq are shown to nobody any more; 0 while all are kept.
    pub first: Seq,
    /// The position of the record that said so.
    pub raised: Position,
    /// Whether entries go after a time: then there is a row [`Keeping`], which each new entry may change.
    pub is_timed: bool,
}

/// See [`MoreOfConversation::policy`]; roles as on the wire, 0 for the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The least role that publishes.
    pub publishes: u8,
    /// The least role that adds members.
    pub adds: u8,
    /// The least role that sets label and info.
    pub informs: u8,
    /// What whoever comes in may read of the past.
    pub past: Past,
    /// Members are not told of each other's marks.
    pub hides_marks: bool,
    /// For how long members may recall what they sent; 0: always.
    pub recall_within_ms: u64,
}

impl Policy {
    /// The policy of these words.
    #[must_use]
    pub fn of(policy: &packet::Policy) -> Self {
        Self {
            publishes: policy.publishes as u8,
            adds: policy.adds as u8,
            informs: policy.informs as u8,
            past: match policy.past() {
                packet::Past::FromJoining => Past::FromJoining,
                packet::Past::Everything => Past::Everything,
                packet::Past::Last => Past::Last(policy.past_entries),
            },
            hides_marks: policy.hides_marks,
            recall_within_ms: policy.recall_within_ms,
        }
    }

    /// The words of this policy.
    #[must_use]
    pub fn wire(&self) -> packet::Policy {
        let (past, past_entries) = match self.past {
            Past::FromJoining => (packet::Past::FromJoining, 0),
            Past::Everything => (packet::Past::Everything, 0),
            Past::Last(entries) => (packet::Past::Last, entries),
        };
        packet::Policy {
            publishes: self.publishes.into(),
            adds: self.adds.into(),
            informs: self.informs.into(),
            recall_within_ms: self.recall_within_ms,
            past: past.into(),
            past_entries,
            hides_marks: self.hides_marks,
        }
    }

    /// The least role of one of its fields, or `default` where it says none.
    #[must_use]
    pub fn least(role: u8, default: Role) -> i32 {
        if role == 0 { default as i32 } else { role.into() }
    }
}

/// What of a group's past whoever comes in may read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Past {
    /// Nothing.
    #[default]
    FromJoining,
    /// All of it.
    Everything,
    /// So many entries.
    Last(u32),
}

/// What a group says of itself, and with what it is joined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Where a picture is.
    pub picture: Box<str>,
    /// What it is about.
    pub description: Box<str>,
    /// The digest of the key with which it is joined; 0 where it is closed.
    pub join_key: u128,
}

/// Whether a seq lies between two, both included.
fn spans((low, high): (Seq, Seq), seq: Seq) -> bool {
    low.is_some() && low <= seq && seq <= high
}

/// Widens a span to a seq.
fn widen((low, high): &mut (Seq, Seq), seq: Seq) {
    *low = if low.is_some() { seq.min(*low) } else { seq };
    *high = seq.max(*high);
}

impl MoreOfConversation {
    /// Whether a seq may have a row [`Altered`].
    #[must_use]
    pub fn may_be_altered(&self, seq: Seq) -> bool {
        spans(self.altered, seq)
    }

    /// Whether a seq may have to be withheld.
    #[must_use]
    pub fn may_be_withheld(&self, seq: Seq) -> bool {
        seq < self.kept.first || spans(self.withheld, seq)
    }

    /// A seq has a row [`Altered`] from here on.
    pub fn note_altered(&mut self, seq: Seq) {
        widen(&mut self.altered, seq);
    }

    /// A seq is to be withheld, now or one day.
    pub fn note_withheld(&mut self, seq: Seq) {
        self.note_altered(seq);
        widen(&mut self.withheld, seq);
    }
}

/// What became of an entry after it was published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Altered {
    /// It is shown to nobody any more.
    pub is_recalled: bool,
    /// It is shown to nobody from this time on; 0 where it does not expire.
    pub expires: LogTime,
    /// Its edits, oldest first; at most [`super::limits::EDITS_MAX`].
    pub edits: Vec<Seq>,
    /// How often each reaction was given, at most [`super::limits::REACTIONS_MAX`] of them.
    pub reactions: Vec<(Box<str>, u64)>,
}

impl Altered {
    /// Why the entry is not shown at this time; `None` while it is.
    #[must_use]
    pub fn withheld(&self, now: LogTime) -> Option<HeadReason> {
        if self.is_recalled {
            Some(HeadReason::Recalled)
        } else if self.expires.0 > 0 && self.expires <= now {
            Some(HeadReason::Expired)
        } else {
            None
        }
    }
}

/// Which of a conversation's countable entries count no more. They are told by their place among the countable ones, so
/// that what goes in a run is one stretch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uncounted {
    /// Stretches of them, ascending, both ends included, never touching.
    pub stretches: Vec<(u64, u64)>,
    /// Those that will not count from a time on, by that time.
    pub expiring: Vec<(LogTime, u64)>,
}

impl Uncounted {
    /// The countable entry `at` counts no more.
    pub fn add(&mut self, at: u64) {
        let i = self.stretches.partition_point(|(_, to)| *to < at);
        if self.stretches.get(i).is_some_and(|(from, _)| *from <= at) {
            return;
        }
        let joins_last = i > 0 && self.stretches[i - 1].1 + 1 == at;
        let joins_next = self.stretches.get(i).is_some_and(|(from, _)| *from == at + 1);
        match (joins_last, joins_next) {
            (true, true) => self.stretches[i - 1].1 = self.stretches.remove(i).1,
            (true, false) => self.stretches[i - 1].1 = at,
            (false, true) => self.stretches[i].0 = at,
            (false, false) => self.stretches.insert(i, (at, at)),
        }
    }

    /// The countable entry `at` will not count from `expires` on.
    pub fn add_expiring(&mut self, expires: LogTime, at: u64) {
        let i = self.expiring.partition_point(|known| *known < (expires, at));
        self.expiring.insert(i, (expires, at));
    }

    /// How many are yet to expire at this time.
    #[must_use]
    pub fn expiring_after(&self, now: LogTime) -> usize {
        self.expiring.len() - self.expiring.partition_point(|(expires, _)| *expires <= now)
    }

    /// What has expired by now goes to the stretches.
    pub fn settle(&mut self, now: LogTime) {
        let expired = self.expiring.partition_point(|(expires, _)| *expires <= now);
        for (_, at) in self.expiring.drain(..expired).collect::<Vec<_>>() {
            self.add(at);
        }
    }

    /// Whether the countable entry `at` counts no more at this time.
    #[must_use]
    pub fn has(&self, at: u64, now: LogTime) -> bool {
        let i = self.stretches.partition_point(|(_, to)| *to < at);
        self.stretches.get(i).is_some_and(|(from, _)| *from <= at)
            || self.expiring.iter().take_while(|(expires, _)| *expires <= now).any(|(_, expired)| *expired == at)
    }

    /// How many of those above `after` count no more at this time.
    #[must_use]
    pub fn above(&self, after: u64, now: LogTime) -> u64 {
        let i = self.stretches.partition_point(|(_, to)| *to <= after);
        let gone: u64 = self.stretches[i..].iter().map(|(from, to)| to - after.max(from - 1)).sum();
        let in_stretch = |at: u64| {
            let i = self.stretches.partition_point(|(_, to)| *to < at);
            self.stretches.get(i).is_some_and(|(from, _)| *from <= at)
        };
        let expired = self.expiring.iter().take_while(|(expires, _)| *expires <= now);
        gone + expired.filter(|(_, at)| *at > after && !in_stretch(*at)).count() as u64
    }
}

/// How long a conversation's entries are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Keeps {
    /// For good.
    #[default]
    All,
    /// For a time.
    ForTime,
    /// Until every device of every member has them, and for a time at the longest.
    UntilDelivered,
}

/// How long a conversation's entries are kept, what of them is gone, and where those that are left may be divided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keeping {
    /// How long.
    pub keeps: Keeps,
    /// The time.
    pub age_ms: u64,
    /// How many countable entries are gone.
    pub below: u64,
    /// No entry above the newest of `places`, or above what is gone, is older; the largest number where nothing is left.
    pub since: LogTime,
    /// Entries up to which all may go at once, ascending; at most [`super::limits::PLACES_MAX`].
    pub places: Vec<Head>,
}

/// A user whose data are erased.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erasure {
    /// What comes next.
    pub stage: ErasureStage,
    /// Everything that the user published has a lower position.
    pub until: Position,
}

/// How far an erasure has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErasureStage {
    /// Devices and contacts are let go.
    Own,
    /// Conversations above this one are left.
    Conversations(ConversationId),
    /// Nothing of it is in the state; the files of the store still hold what the user published.
    Files,
    /// Nothing is left but the name, which is nobody's for good.
    Done,
}

/// What a user set for a conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// No notifications until this time.
    pub muted_until: u64,
    /// Shown at the top.
    pub is_pinned: bool,
    /// Shown elsewhere.
    pub is_archived: bool,
    /// Shown as unread from the position at which that was set, until the next mark; 0 where it was not.
    pub marked_unread: Position,
    /// When this was set.
    pub position: Position,
}

/// What of a conversation concerns one user alone, beside settings: in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Personal {
    /// The messages the user hides, each with its place among the countable ones; at most
    /// [`super::limits::HIDDEN_MAX`].
    pub hidden: Vec<(Seq, u64)>,
    /// The newest messages that mention the user; at most [`super::limits::MENTIONS_KEPT_MAX`].
    pub mentions: Vec<Seq>,
}

/// The kind of a conversation; its lane follows from it and never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Two users.
    Direct,
    /// Members by invitation.
    Group,
    /// Many readers, opened by name.
    Channel,
    /// One per user, written by the broker.
    Inbox,
}

impl Kind {
    /// The wire's word for it.
    #[must_use]
    pub fn wire(self) -> ConversationKind {
        match self {
            Self::Direct => ConversationKind::Direct,
            Self::Group => ConversationKind::Group,
            Self::Channel => ConversationKind::Channel,
            Self::Inbox => ConversationKind::Inbox,
        }
    }

    /// Whether its entries ride lane express.
    #[must_use]
    pub fn is_express(self) -> bool {
        matches!(self, Self::Direct | Self::Inbox)
    }
}

/// A stretch of seqs that a user may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// The first seq.
    pub from: Seq,
    /// The last seq (the removal); 0 while it is open.
    pub to: Seq,
    /// How many countable entries there were when the user came in.
    pub countable_before: u64,
}

/// What a user is in a conversation, on the conversation's side: rights and how far it has read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// `None` once removed.
    pub role: i32,
    /// What it may read, ascending, at most [`super::limits::INTERVALS_MAX`]; older ones are dropped.
    pub intervals: Vec<Interval>,
    /// How far it has read.
    pub mark: Seq,
    /// The countable entries up to the mark.
    pub mark_countable: u64,
    /// The position of the record that set the mark; 0 while none did.
    pub mark_position: Position,
}

/// What there is to be counted, and what is not to be.
#[derive(Clone, Copy, Debug)]
pub struct Count<'a> {
    /// The conversation's newest entry.
    pub head: &'a Head,
    /// What counts no more for anybody.
    pub uncounted: Option<&'a Uncounted>,
    /// What counts no more for this user.
    pub personal: Option<&'a Personal>,
    /// How many countable entries are kept no more.
    pub below: u64,
    /// At this time.
    pub now: LogTime,
}

impl Member {
    /// Its role.
    #[must_use]
    pub fn role(&self) -> Role {
        Role::try_from(self.role).unwrap_or(Role::None)
    }

    /// Whether it is a member now.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.role != Role::None as i32
    }

    /// Whether it may read the entry `seq`: the one clip that live, catch-up, retransmit and history all use.
    #[must_use]
    pub fn sees(&self, seq: Seq) -> bool {
        let is_hidden = |i: &Interval| Mutation::RemovalHidden.is_planted() && seq == i.to;
        self.intervals.iter().rev().any(|i| i.from <= seq && (!i.to.is_some() || seq <= i.to) && !is_hidden(i))
    }

    /// The stretch that holds `seq`, or the next one after it, cut to `seq..=head`.
    #[must_use]
    pub fn visible_from(&self, seq: Seq, head: Seq) -> Option<(Seq, Seq)> {
        self.intervals.iter().find_map(|i| {
            let to = if i.to.is_some() { i.to.min(head) } else { head };
            let from = i.from.max(seq);
            (from <= to).then_some((from, to))
        })
    }

    /// The stretch that holds `seq`, or the last one before it, cut to `..=seq`.
    #[must_use]
    pub fn visible_to(&self, seq: Seq) -> Option<(Seq, Seq)> {
        self.intervals.iter().rev().find_map(|i| {
            let to = if i.to.is_some() { i.to.min(seq) } else { seq };
            (i.from <= to).then_some((i.from, to))
        })
    }

    /// The countable entries above the mark that it may read, less those that are recalled, expired or hidden: SPEC R7-7.
    #[must_use]
    pub fn unread(&self, count: &Count<'_>) -> u64 {
        let Some(last) = self.intervals.last() else { return 0 };
        if last.to.is_some() {
            return 0;
        }
        let below = if Mutation::UnkeptCounts.is_planted() { 0 } else { count.below };
        let after = self.mark_countable.max(last.countable_before).max(below);
        let all = count.head.countable.saturating_sub(after);
        let gone = count.uncounted.map_or(0, |uncounted| uncounted.above(after, count.now));
        let is_gone = |at: u64| count.uncounted.is_some_and(|uncounted| uncounted.has(at, count.now));
        let hidden = count
            .personal
            .map_or(0, |personal| personal.hidden.iter().filter(|(_, at)| *at > after && !is_gone(*at)).count() as u64);
        all.saturating_sub(gone).saturating_sub(hidden)
    }
}

/// The broker's duty to deliver a conversation to a user, on the user's side: it begins when the inbox has said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Duty {
    /// Only entries above this seq are delivered; the `joined` entry covers the rest.
    pub since: Seq,
    /// The position of that `joined` entry; bulk sends nothing of the conversation before express has sent it.
    pub joined: Position,
    /// Whether the inbox has said `left` since.
    pub closed: bool,
}

/// A message that mentions a user, which the user's inbox has not heard of yet. Under [`Key::Crossing`] too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mention {
    /// The conversation.
    pub conversation: ConversationId,
    /// The message.
    pub seq: Seq,
}

/// A change of membership that the user's inbox has not heard of yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crossing {
    /// The conversation.
    pub conversation: ConversationId,
    /// Whether the user joined; else left.
    pub joined: bool,
    /// The seq of the membership entry; 0 where there is none.
    pub seq: Seq,
}

/// What a user takes nothing from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refuses {
    /// From these, ascending: at most [`super::limits::BLOCKED_MAX`].
    pub users: Vec<UserId>,
    /// From anyone: the account is closed.
    pub everyone: bool,
}

/// How a user shows itself to others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// For people; not the name.
    pub display_name: Box<str>,
    /// Where its picture is, as the clients know it.
    pub picture: Box<str>,
    /// The application's own.
    pub data: Box<[u8]>,
}

/// What a user keeps of another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// Where it stands among the user's contacts.
    pub slot: u32,
    /// What the user calls it.
    pub nick: Box<str>,
    /// The application's own.
    pub data: Box<[u8]>,
}

/// What is counted when ids are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Counted {
    /// Users.
    Users,
    /// Devices.
    Devices,
    /// Conversations.
    Conversations,
}

/// What a device leaves to be published when it is lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Will {
    /// Whose it is.
    pub user: UserId,
    /// Where it is published.
    pub conversation: ConversationId,
    /// What is published.
    pub content: Box<[u8]>,
    /// How long the device is gone before.
    pub after_ms: u32,
    /// It is a channel, and the token with which this was set may publish there.
    pub by_token: bool,
}

/// The key of a row.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Key {
    /// A user.
    User(UserId),
    /// A user's id, by name.
    UserName(Box<str>),
    /// A device.
    Device(DeviceId),
    /// A device's id, by user and name.
    DeviceName(UserId, Box<str>),
    /// A conversation.
    Conversation(ConversationId),
    /// A direct conversation's id, by its two users, the lower id first.
    Direct(UserId, UserId),
    /// A channel's id, by name.
    Channel(Box<str>),
    /// A member of a conversation.
    Member(ConversationId, UserId),
    /// The duty to deliver a conversation to a user.
    Duty(UserId, ConversationId),
    /// The newest id given in a partition.
    Counter(Counted, u16),
    /// A crossing under way, by the position of its source and its target.
    Crossing(Position, UserId),
    /// The retention floor.
    Floor,
    /// What became of an entry.
    Altered(ConversationId, Seq),
    /// A user's reaction to a message.
    Reaction(ConversationId, Seq, UserId),
    /// Which of a conversation's messages count no more.
    Uncounted(ConversationId),
    /// What a user set for a conversation.
    Settings(UserId, ConversationId),
    /// What of a conversation concerns a user alone.
    Personal(UserId, ConversationId),
    /// What a group says of itself.
    Info(ConversationId),
    /// A user that is kept out of a group.
    Banned(ConversationId, UserId),
    /// The group that was made for just these users, by the digest of their ids.
    Participants(u128),
    /// Whom a user takes nothing from.
    Refuses(UserId),
    /// A user's profile.
    Profile(UserId),
    /// What a user keeps of another.
    Contact(UserId, UserId),
    /// Which contact stands in a user's slot.
    ContactSlot(UserId, u32),
    /// What a user's password is checked by.
    Password(UserId),
    /// An invitation that was used, by its id.
    Invitation(Box<str>),
    /// A device's will.
    Will(DeviceId),
    /// To whom a user shows its presence, if that was ever said.
    Audience(UserId),
    /// When a user's newest session ended.
    Seen(UserId),
    /// How long a conversation's entries are kept, where that was ever said.
    Keeping(ConversationId),
    /// A user that is erased.
    Erasure(UserId),
    /// Where a user's device has itself told.
    Push(UserId, DeviceId),
    /// What it was told.
    Told(UserId, DeviceId),
}

impl Key {
    /// The bytes under which the store keeps the row: two of the partition, then the key itself.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let partition = self.partition().to_be_bytes().to_vec();
        postcard::to_extend(self, partition).expect("a key has no field that cannot be encoded")
    }

    /// The key of these bytes.
    ///
    /// # Errors
    /// When they are no key of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, ReadError> {
        let key = bytes.get(2..).ok_or_else(|| ReadError("a key of the state is too short".into()))?;
        postcard::from_bytes(key).map_err(|error| ReadError(format!("a key of the state is unreadable: {error}")))
    }

    /// What the keys of all members of a conversation begin with.
    #[must_use]
    pub fn members_prefix(id: ConversationId) -> Vec<u8> {
        let mut key = Self::Member(id, UserId(0)).encode();
        // The user's id 0 is one byte.
        key.pop();
        key
    }

    /// What the keys of all duties of a user begin with.
    #[must_use]
    pub fn duties_prefix(id: UserId) -> Vec<u8> {
        let mut key = Self::Duty(id, ConversationId(0)).encode();
        key.pop();
        key
    }

    /// What the keys of all crossings of a partition begin with.
    #[must_use]
    pub fn crossings_prefix(partition: u16) -> Vec<u8> {
        let mut key = Self::Crossing(Position(0), UserId(partition.into())).encode();
        key.truncate(3);
        key
    }

    /// What the keys of all wills of a partition begin with.
    #[must_use]
    pub fn wills_prefix(partition: u16) -> Vec<u8> {
        let mut key = Self::Will(DeviceId(partition.into())).encode();
        key.truncate(3);
        key
    }

    /// What the keys of all rows of a kind in a partition begin with, by the key of that kind whose id is the partition.
    #[must_use]
    pub fn kind_prefix(&self) -> Vec<u8> {
        let mut key = self.encode();
        key.truncate(3);
        key
    }

    /// The partition a row belongs to.
    #[must_use]
    pub fn partition(&self) -> u16 {
        match self {
            Self::User(id)
            | Self::DeviceName(id, _)
            | Self::Direct(id, _)
            | Self::Duty(id, _)
            | Self::Refuses(id)
            | Self::Profile(id)
            | Self::Contact(id, _)
            | Self::ContactSlot(id, _)
            | Self::Password(id)
            | Self::Audience(id)
            | Self::Seen(id)
            | Self::Erasure(id)
            | Self::Push(id, _)
            | Self::Told(id, _) => partition(id.0),
            Self::Device(id) | Self::Will(id) => partition(id.0),
            Self::Settings(id, _) | Self::Personal(id, _) => partition(id.0),
            Self::Conversation(id) | Self::Member(id, _) | Self::Uncounted(id) => partition(id.0),
            Self::Altered(id, _) | Self::Reaction(id, _, _) | Self::Info(id) | Self::Banned(id, _) => partition(id.0),
            Self::Keeping(id) => partition(id.0),
            Self::Participants(digest) => partition(*digest as u64),
            Self::UserName(name) | Self::Channel(name) | Self::Invitation(name) => partition_of_name(name),
            Self::Counter(_, partition) => *partition,
            Self::Crossing(_, user) => partition(user.0),
            Self::Floor => 0,
        }
    }
}

/// The partition of an id.
#[must_use]
pub fn partition(id: u64) -> u16 {
    (id % PARTITIONS) as u16
}

/// The partition in which something is created that is known by a name.
#[must_use]
pub fn partition_of_name(name: &str) -> u16 {
    partition(xxh3_64(name.as_bytes()))
}

/// A row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Row {
    /// Under [`Key::User`].
    User(User),
    /// Under [`Key::UserName`].
    UserName(UserId),
    /// Under [`Key::Device`].
    Device(Device),
    /// Under [`Key::DeviceName`].
    DeviceName(DeviceId),
    /// Under [`Key::Conversation`].
    Conversation(Conversation),
    /// Under [`Key::Direct`], [`Key::Channel`] and [`Key::Participants`].
    ConversationName(ConversationId),
    /// Under [`Key::Member`].
    Member(Member),
    /// Under [`Key::Duty`].
    Duty(Duty),
    /// Under [`Key::Counter`].
    Counter(u64),
    /// Under [`Key::Crossing`].
    Crossing(Crossing),
    /// Under [`Key::Floor`].
    Floor(Position),
    /// Under [`Key::Altered`].
    Altered(Altered),
    /// Under [`Key::Reaction`].
    Reaction(Box<str>),
    /// Under [`Key::Uncounted`].
    Uncounted(Uncounted),
    /// Under [`Key::Settings`].
    Settings(Settings),
    /// Under [`Key::Personal`].
    Personal(Personal),
    /// Under [`Key::Crossing`].
    Mention(Mention),
    /// Under [`Key::Info`].
    Info(Info),
    /// Under [`Key::Banned`].
    Banned,
    /// Under [`Key::Refuses`].
    Refuses(Refuses),
    /// Under [`Key::Profile`].
    Profile(Profile),
    /// Under [`Key::Contact`].
    Contact(Contact),
    /// Under [`Key::ContactSlot`].
    ContactSlot(UserId),
    /// Under [`Key::Password`]: argon2id in the PHC string format.
    Password(Secret),
    /// Under [`Key::Invitation`]: when it ends, in seconds since 1970.
    Invitation(u64),
    /// Under [`Key::Will`].
    Will(Will),
    /// Under [`Key::Audience`], as on the wire.
    Audience(i32),
    /// Under [`Key::Seen`].
    Seen(LogTime),
    /// Under [`Key::Keeping`].
    Keeping(Keeping),
    /// Under [`Key::Erasure`].
    Erasure(Erasure),
    /// Under [`Key::Push`].
    Push(Push),
    /// Under [`Key::Told`].
    Told(Told),
}

/// A text that no log line and no panic shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub Box<str>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Row {
    /// The bytes that the store keeps.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        const ENCODES: &str = "a row has no field that cannot be encoded";
        let bytes = postcard::to_stdvec(self).expect(ENCODES);
        match self {
            Self::Conversation(row) => {
                let bytes = postcard::to_extend(&row.more, bytes).expect(ENCODES);
                postcard::to_extend(&row.more.kept, bytes).expect(ENCODES)
            }
            Self::User(row) => {
                let more =
                    (&row.devices, row.contacts, row.is_someone, row.is_closed, row.tokens_until, row.generation);
                postcard::to_extend(&more, bytes).expect(ENCODES)
            }
            Self::Device(row) => {
                let more = (&row.label, row.created, row.seen, row.tokens_until, row.generation, row.is_gone);
                let bytes = postcard::to_extend(&more, bytes).expect(ENCODES);
                match row.levels.list() {
                    [] => bytes,
                    levels => postcard::to_extend(levels, bytes).expect(ENCODES),
                }
            }
            _ => bytes,
        }
    }

    /// The row of these bytes.
    ///
    /// # Errors
    /// When they are no row of this version or an older one.
    pub fn decode(bytes: &[u8]) -> Result<Self, ReadError> {
        let unreadable = |error| ReadError(format!("a row of the state is unreadable: {error}"));
        let (mut row, behind) = postcard::take_from_bytes(bytes).map_err(unreadable)?;
        if behind.is_empty() {
            return Ok(row);
        }
        match &mut row {
            Self::Conversation(row) => {
                let (more, behind) = postcard::take_from_bytes(behind).map_err(unreadable)?;
                row.more = more;
                if !behind.is_empty() {
                    row.more.kept = postcard::from_bytes(behind).map_err(unreadable)?;
                }
            }
            Self::User(row) => {
                (row.devices, row.contacts, row.is_someone, row.is_closed, row.tokens_until, row.generation) =
                    postcard::from_bytes(behind).map_err(unreadable)?;
            }
            Self::Device(row) => {
                let (more, levels) = postcard::take_from_bytes(behind).map_err(unreadable)?;
                (row.label, row.created, row.seen, row.tokens_until, row.generation, row.is_gone) = more;
                if !levels.is_empty() {
                    row.levels = Levels::new(postcard::from_bytes(levels).map_err(unreadable)?);
                }
            }
            _ => {}
        }
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_begins_the_keys_of_its_kind_and_owner_alone() {
        let ids = [0, 1, 127, 128, 4_096, 300_000, u64::MAX];
        for a in ids {
            for b in ids {
                for other in ids {
                    let member = Key::Member(ConversationId(a), UserId(b)).encode();
                    assert_eq!(member.starts_with(&Key::members_prefix(ConversationId(other))), a == other);
                    let duty = Key::Duty(UserId(a), ConversationId(b)).encode();
                    assert_eq!(duty.starts_with(&Key::duties_prefix(UserId(other))), a == other);
                    let crossing = Key::Crossing(Position(a), UserId(b)).encode();
                    let prefix = Key::crossings_prefix(partition(other));
                    assert_eq!(crossing.starts_with(&prefix), partition(b) == partition(other));
                    assert!(!duty.starts_with(&prefix) && !member.starts_with(&prefix));
                }
            }
        }
    }

    fn member(intervals: &[(u64, u64)]) -> Member {
        Member {
            role: Role::Member as i32,
            intervals: intervals
                .iter()
                .map(|&(from, to)| Interval { from: Seq(from), to: Seq(to), countable_before: 0 })
                .collect(),
            mark: Seq(0),
            mark_countable: 0,
            mark_position: Position(0),
        }
    }

    #[test]
    fn the_clip_agrees_with_itself_in_both_directions() {
        let member = member(&[(3, 5), (9, 0)]);
        let seen: Vec<u64> = (1..=12).filter(|&seq| member.sees(Seq(seq))).collect();
        assert_eq!(seen, [3, 4, 5, 9, 10, 11, 12]);
        for seq in 1..=12 {
            let forwards = (seq..=12).find(|&s| member.sees(Seq(s)));
            assert_eq!(member.visible_from(Seq(seq), Seq(12)).map(|(from, _)| from.0), forwards, "from {seq}");
            let backwards = (1..=seq).rev().find(|&s| member.sees(Seq(s)));
            assert_eq!(member.visible_to(Seq(seq)).map(|(_, to)| to.0), backwards, "to {seq}");
        }
    }
}
