//! The rows of derived state: what is known of users, devices, conversations and members, each under its key.
//! A row is small, cloned freely, and encoded only when the background thread saves it.
//!
//! What rows of format 1 did not have stands behind the row, in a value of its own: bytes that end before it are such a
//! row, and it has its default.

mod conversations;
mod members;
mod messages;
mod users;

use longwire_protocol::{ConversationId, DeviceId, LogTime, PARTITIONS, Seq, UserId};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::grants::Bearer;
use super::levels::Levels;
use super::push::{Push, Told};
use crate::store::{Position, ReadError};

pub use conversations::{
    Conversation, Head, Info, Keeping, Keeps, KeptOfConversation, Kind, MoreOfConversation, Past, Policy,
};
pub use members::{Crossing, Duty, Interval, Member, Mention, Personal, Settings};
pub use messages::{Altered, Tally, Uncounted};
pub use users::{Contact, Device, DeviceCursor, Erasure, ErasureStage, Kept, Profile, Refuses, Secret, User, Will};

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
    /// Which of a conversation's messages count no more: of a level, one after the other.
    Tally(ConversationId, u8, u64),
    /// How many users are kept out of a group.
    Bans(ConversationId),
    /// With which token a user's device left what it left.
    Bearer(UserId, DeviceId),
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
            | Self::Bearer(id, _)
            | Self::Told(id, _) => partition(id.0),
            Self::Device(id) | Self::Will(id) => partition(id.0),
            Self::Settings(id, _) | Self::Personal(id, _) => partition(id.0),
            Self::Conversation(id) | Self::Member(id, _) | Self::Uncounted(id) => partition(id.0),
            Self::Altered(id, _) | Self::Reaction(id, _, _) | Self::Info(id) | Self::Banned(id, _) => partition(id.0),
            Self::Keeping(id) | Self::Tally(id, _, _) | Self::Bans(id) => partition(id.0),
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
    /// Under [`Key::Tally`].
    Tally(Tally),
    /// Under [`Key::Bans`].
    Bans(u32),
    /// Under [`Key::Bearer`].
    Bearer(Bearer),
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
                let bytes = postcard::to_extend(&more, bytes).expect(ENCODES);
                if row.hides_marks { postcard::to_extend(&true, bytes).expect(ENCODES) } else { bytes }
            }
            Self::Device(row) => {
                let more = (&row.label, row.created, row.seen, row.tokens_until, row.generation, row.is_gone);
                let bytes = postcard::to_extend(&more, bytes).expect(ENCODES);
                match row.levels.list() {
                    [] => bytes,
                    levels => postcard::to_extend(levels, bytes).expect(ENCODES),
                }
            }
            Self::Refuses(row) if !row.marks.is_empty() => postcard::to_extend(&row.marks, bytes).expect(ENCODES),
            Self::Uncounted(row) if row.levels > 0 => postcard::to_extend(&row.levels, bytes).expect(ENCODES),
            Self::Personal(row) if row.hid.0 > 0 => postcard::to_extend(&row.hid, bytes).expect(ENCODES),
            Self::Altered(row) if row.edit_of.is_some() => postcard::to_extend(&row.edit_of, bytes).expect(ENCODES),
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
                let (more, behind) = postcard::take_from_bytes(behind).map_err(unreadable)?;
                (row.devices, row.contacts, row.is_someone, row.is_closed, row.tokens_until, row.generation) = more;
                row.hides_marks = !behind.is_empty() && postcard::from_bytes(behind).map_err(unreadable)?;
            }
            Self::Device(row) => {
                let (more, levels) = postcard::take_from_bytes(behind).map_err(unreadable)?;
                (row.label, row.created, row.seen, row.tokens_until, row.generation, row.is_gone) = more;
                if !levels.is_empty() {
                    row.levels = Levels::new(postcard::from_bytes(levels).map_err(unreadable)?);
                }
            }
            Self::Refuses(row) => row.marks = postcard::from_bytes(behind).map_err(unreadable)?,
            Self::Uncounted(row) => row.levels = postcard::from_bytes(behind).map_err(unreadable)?,
            Self::Personal(row) => row.hid = postcard::from_bytes(behind).map_err(unreadable)?,
            Self::Altered(row) => row.edit_of = postcard::from_bytes(behind).map_err(unreadable)?,
            _ => {}
        }
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    use longwire_protocol::packet::Role;

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

    /// Who shows its marks has a row as before.
    #[test]
    fn that_marks_are_hidden_stands_behind_the_row() {
        let mut user = User {
            name: "ann".into(),
            inbox: ConversationId(4_097),
            devices: vec![DeviceId(4_098)],
            conversations: 3,
            contacts: 2,
            is_someone: true,
            is_closed: false,
            hides_marks: false,
            tokens_until: LogTime(5),
            generation: 1,
        };
        let shown = Row::User(user.clone()).encode();
        assert_eq!(Row::decode(&shown).expect("a row"), Row::User(user.clone()));
        user.hides_marks = true;
        let hidden = Row::User(user.clone()).encode();
        assert_eq!(Row::decode(&hidden).expect("a row"), Row::User(user));
        assert_eq!(hidden.len(), shown.len() + 1);
    }

    /// A row of before has none of them, and reads as it did.
    #[test]
    fn the_marks_of_who_blocks_stand_behind_the_row() {
        let mut refuses = Refuses::default();
        refuses.block(UserId(5), Seq(0));
        let before = Row::Refuses(refuses.clone()).encode();
        refuses.block(UserId(3), Seq(7));
        refuses.block(UserId(3), Seq(9));
        let row = Row::Refuses(refuses.clone());
        assert_eq!(Row::decode(&row.encode()).expect("a row"), row);
        let marks = [3, 4, 5].map(|user| refuses.last_mark(UserId(user)));
        assert_eq!(marks, [Some(Seq(7)), None, Some(Seq(0))], "that of the first time");
        refuses.unblock(UserId(3));
        assert_eq!(Row::Refuses(refuses).encode(), before);
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
