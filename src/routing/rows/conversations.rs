//! Rows of conversations: where they stand, what they let their members do, how long they keep what is said.

use longwire_protocol::packet::{self, ConversationKind, Role};
use longwire_protocol::{LogTime, Seq, UserId};
use serde::{Deserialize, Serialize};

use crate::store::Position;

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
    /// The lowest and highest seq that has a row [`Altered`](super::Altered); 0 where there is none.
    pub altered: (Seq, Seq),
    /// The lowest and highest seq that is not to be shown any more, or will not be one day; 0 where there is none.
    pub withheld: (Seq, Seq),
    /// The part of a group's policy that each message or mark is held against.
    pub policy: Policy,
    /// Whether there is a row [`Info`].
    pub has_info: bool,
    /// The digest of the users it was made for, while it has just these; 0 where it was not made so. See
    /// [`Key::Participants`](super::Key::Participants).
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
    /// Whether a seq may have a row [`Altered`](super::Altered).
    #[must_use]
    pub fn may_be_altered(&self, seq: Seq) -> bool {
        spans(self.altered, seq)
    }

    /// Whether a seq may have to be withheld.
    #[must_use]
    pub fn may_be_withheld(&self, seq: Seq) -> bool {
        seq < self.kept.first || spans(self.withheld, seq)
    }

    /// A seq has a row [`Altered`](super::Altered) from here on.
    pub fn note_altered(&mut self, seq: Seq) {
        widen(&mut self.altered, seq);
    }

    /// A seq is to be withheld, now or one day.
    pub fn note_withheld(&mut self, seq: Seq) {
        self.note_altered(seq);
        widen(&mut self.withheld, seq);
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
    /// Entries up to which all may go at once, ascending; at most [`crate::routing::limits::PLACES_MAX`].
    pub places: Vec<Head>,
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
