//! Rows of users and their devices: who they are, what they have set, what they left.

use longwire_protocol::{ConversationId, DeviceId, Incarnation, LogTime, MessageId, Seq, UserId};
use serde::{Deserialize, Serialize};

use crate::routing::levels::Levels;
use crate::store::{Position, SegmentId};

/// A person or thing, known by the name its tokens carry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The name in its tokens.
    pub name: Box<str>,
    /// Its inbox.
    pub inbox: ConversationId,
    /// The devices it has; at most [`crate::routing::limits::DEVICES_MAX`].
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
    /// Its marks in direct conversations are its own, and it is not told those of others there.
    #[serde(skip)]
    pub hides_marks: bool,
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

/// What a user takes nothing from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refuses {
    /// From these, ascending: at most [`crate::routing::limits::BLOCKED_MAX`].
    pub users: Vec<UserId>,
    /// From anyone: the account is closed.
    pub everyone: bool,
    /// How far the user had read the direct conversations with some of these when it blocked them, ascending; where it had
    /// read nothing, none is here.
    #[serde(skip)]
    pub marks: Vec<(UserId, Seq)>,
}

impl Refuses {
    /// From here on nothing is taken from another, who is told of no mark beyond this one.
    pub fn block(&mut self, other: UserId, mark: Seq) {
        if let Err(at) = self.users.binary_search(&other) {
            self.users.insert(at, other);
            if mark.is_some() {
                let at = self.marks.partition_point(|(known, _)| *known < other);
                self.marks.insert(at, (other, mark));
            }
        }
    }

    /// That is taken back.
    pub fn unblock(&mut self, other: UserId) {
        self.users.retain(|known| *known != other);
        self.marks.retain(|(known, _)| *known != other);
    }

    /// The last mark that another is told of, if it is blocked.
    #[must_use]
    pub fn last_mark(&self, other: UserId) -> Option<Seq> {
        self.users.binary_search(&other).ok()?;
        let at = self.marks.binary_search_by_key(&other, |(known, _)| *known);
        Some(at.map_or(Seq(0), |at| self.marks[at].1))
    }
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

/// A text that no log line and no panic shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub Box<str>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}
