//! Rows of who is in a conversation: what of it may be read, what counts as unread, what is owed to the inbox.

use longwire_protocol::packet::{self, Role};
use longwire_protocol::{ConversationId, Seq};
use serde::{Deserialize, Serialize};

use crate::mutation::Mutation;
use crate::store::Position;

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

impl Settings {
    /// As on the wire, where the user's mark was set at this position.
    #[must_use]
    pub fn wire(&self, mark: Position) -> packet::Settings {
        packet::Settings {
            muted_until: self.muted_until,
            pinned: self.is_pinned,
            archived: self.is_archived,
            marked_unread: self.marked_unread > mark,
        }
    }
}

/// What of a conversation concerns one user alone, beside settings: in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Personal {
    /// The messages the user hides, each with its place among the countable ones; at most
    /// [`crate::routing::limits::HIDDEN_MAX`].
    pub hidden: Vec<(Seq, u64)>,
    /// The newest messages and edits that mention the user; at most [`crate::routing::limits::MENTIONS_KEPT_MAX`].
    pub mentions: Vec<Seq>,
    /// When a message was hidden or shown again last; 0 where none was.
    #[serde(skip)]
    pub hid: Position,
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
    /// What it may read, ascending, at most [`crate::routing::limits::INTERVALS_MAX`]; older ones are dropped.
    pub intervals: Vec<Interval>,
    /// How far it has read.
    pub mark: Seq,
    /// The countable entries up to the mark.
    pub mark_countable: u64,
    /// The position of the record that set the mark; 0 while none did.
    pub mark_position: Position,
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

    /// The place among the countable entries up to which all are read, or are none of its own: those above it count as unread
    /// (SPEC R7-7). `below` are kept no more. `None` where it is no member, and nothing does.
    #[must_use]
    pub fn read_upto(&self, below: u64) -> Option<u64> {
        let last = self.intervals.last().filter(|last| self.is_active() && !last.to.is_some())?;
        let below = if Mutation::UnkeptCounts.is_planted() { 0 } else { below };
        Some(self.mark_countable.max(last.countable_before).max(below))
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

/// A message that mentions a user, which the user's inbox has not heard of yet. Under [`Key::Crossing`](super::Key::Crossing) too.
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
