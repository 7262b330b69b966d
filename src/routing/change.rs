//! The changes of state that are no entries, as the log keeps them. Variants are only ever appended: their order is
//! the format.

use longwire_protocol::{ConversationId, DeviceId, Incarnation, LogTime, MessageId, Seq, UserId};
use serde::{Deserialize, Serialize};

use super::grants::Bearer;
use super::push::{Push, Told};
use super::rows::{DeviceCursor, Kind, Secret, Will};
use crate::store::{Origin, Position};

/// A change of state; folded into rows by [`super::fold`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A user was seen for the first time, and got an inbox.
    UserCreated {
        /// Its id.
        user: UserId,
        /// Its name.
        name: Box<str>,
        /// Its inbox.
        inbox: ConversationId,
    },
    /// A device was seen for the first time.
    DeviceCreated {
        /// Its id.
        device: DeviceId,
        /// Whose it is.
        user: UserId,
        /// Its name.
        name: Box<str>,
    },
    /// A device began a new life of its counter.
    IncarnationGiven {
        /// The device.
        device: DeviceId,
        /// The new incarnation.
        incarnation: Incarnation,
    },
    /// A device told, on connecting, that more of its publishes are answered.
    FloorRaised {
        /// The device.
        device: DeviceId,
        /// Its first unanswered id.
        floor: MessageId,
    },
    /// A conversation came to be, with the first of its members where it has a fixed set.
    ConversationCreated {
        /// Its id.
        conversation: ConversationId,
        /// Its kind.
        kind: Kind,
        /// Its label or name.
        label: Box<str>,
        /// The two of a direct conversation.
        pair: (UserId, UserId),
    },
    /// A publish that made no entry, or several, was answered.
    Answered {
        /// Whose it was.
        origin: Origin,
        /// The device's first unanswered id, when the publish told it; else 0.
        first_unanswered: MessageId,
        /// The digest of what was published.
        digest: u64,
        /// The conversation it was about.
        conversation: ConversationId,
        /// The newest seq there, or in the inbox where that would be told; 0 where there is none.
        seq: Seq,
        /// Whether the publish did not name the conversation.
        opened: bool,
    },
    /// A user has read up to a seq.
    MarkSet {
        /// Who.
        user: UserId,
        /// Where.
        conversation: ConversationId,
        /// Up to here.
        seq: Seq,
        /// The countable entries up to there.
        countable: u64,
    },
    /// A reader joined or left a channel, or its role there changed: channels have no membership entries.
    RoleSet {
        /// The channel.
        conversation: ConversationId,
        /// Whose role.
        user: UserId,
        /// The role, as on the wire; 0 once removed.
        role: i32,
    },
    /// A device stands here by its acks. Rides along; takes no position.
    CursorStored {
        /// The device.
        device: DeviceId,
        /// Where it stands.
        cursor: DeviceCursor,
    },
    /// Everything below this position is expired.
    Retained {
        /// The floor.
        floor: Position,
    },
    /// A user is kept out of a group, or no longer.
    BanSet {
        /// The group.
        conversation: ConversationId,
        /// Who.
        user: UserId,
        /// Whether it is kept out.
        is_banned: bool,
    },
    /// A group is joined with another key.
    JoinKeySet {
        /// The group.
        conversation: ConversationId,
        /// The key's digest; 0 where the group is closed.
        digest: u128,
    },
    /// A group has just the users that it was made for.
    ParticipantsSet {
        /// The group.
        conversation: ConversationId,
        /// The digest of their ids.
        digest: u128,
    },
    /// A device was seen at the time of its frame. Rides along; takes no position.
    DeviceSeen {
        /// The device.
        device: DeviceId,
    },
    /// A device that was forgotten came again.
    DeviceReturned {
        /// The device.
        device: DeviceId,
    },
    /// A user got an account or another password, or lost both.
    AccountSet {
        /// Whose.
        user: UserId,
        /// What the password is checked by; `None`: there is none.
        password: Option<Secret>,
        /// Whether the account is closed.
        is_closed: bool,
        /// Whether tokens made before are good no more.
        cuts: bool,
    },
    /// An invitation was used.
    InvitationUsed {
        /// Its id.
        id: Box<str>,
        /// When it ends, in seconds since 1970.
        until: u64,
    },
    /// A device left a will, in place of an earlier one.
    WillSet {
        /// Which.
        device: DeviceId,
        /// The will.
        will: Will,
    },
    /// A device has no will any more; where it was published, that entry follows.
    WillTaken {
        /// Which.
        device: DeviceId,
    },
    /// A user said who sees its presence.
    AudienceSet {
        /// Who.
        user: UserId,
        /// To whom, as on the wire.
        audience: i32,
    },
    /// A user's session ended. Rides along; takes no position.
    Seen {
        /// Whose.
        user: UserId,
        /// When.
        time: LogTime,
    },
    /// Entries of a conversation are shown to nobody any more: what its retention decided, or an erasure.
    KeptFrom {
        /// Which.
        conversation: ConversationId,
        /// All below this seq.
        first: Seq,
        /// How many of them are countable.
        countable: u64,
    },
    /// A user is erased: from here on nobody is shown what it published.
    EraseBegun {
        /// Who.
        user: UserId,
    },
    /// Some of an erased user's contacts, and all devices, are gone.
    EraseOwn {
        /// Whose.
        user: UserId,
        /// So many contacts.
        contacts: u32,
    },
    /// An erased user's settings are gone in some conversations, up to the last of these.
    EraseIn {
        /// Whose.
        user: UserId,
        /// In these, ascending.
        conversations: Vec<ConversationId>,
    },
    /// Nothing of an erased user is left in the state.
    EraseCleared {
        /// Of whom.
        user: UserId,
    },
    /// Nothing of what an erased user published is left in the files of the store.
    EraseDone {
        /// Of whom.
        user: UserId,
    },
    /// A device said how much of a conversation it is delivered.
    LevelSet {
        /// Which.
        device: DeviceId,
        /// Of what.
        conversation: ConversationId,
        /// How much, as on the wire.
        level: i32,
    },
    /// A device has itself told here, in place of elsewhere.
    PushSet {
        /// Whose it is.
        user: UserId,
        /// Which.
        device: DeviceId,
        /// Where and how.
        push: Push,
    },
    /// A device is told nothing any more.
    PushTaken {
        /// Whose it is.
        user: UserId,
        /// Which.
        device: DeviceId,
    },
    /// A device was told this much. Rides along; takes no position.
    PushTold {
        /// Whose it is.
        user: UserId,
        /// Which.
        device: DeviceId,
        /// What.
        told: Told,
    },
    /// A device came, or was refreshed, with this token, and has left something to be done while it is away. Rides along;
    /// takes no position.
    Borne {
        /// Whose it is.
        user: UserId,
        /// Which.
        device: DeviceId,
        /// The token.
        bearer: Bearer,
    },
    /// A user hides its marks in direct conversations, or no longer.
    MarksHidden {
        /// Who.
        user: UserId,
        /// Whether it does.
        is_hidden: bool,
    },
}

impl Change {
    /// Appends its encoding.
    pub fn encode(&self, out: &mut bytes::BytesMut) {
        let bytes = postcard::to_stdvec(self).expect("a change has no field that cannot be encoded");
        out.extend_from_slice(&bytes);
    }

    /// Reads one back.
    ///
    /// # Errors
    /// When the bytes are no change of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, postcard::Error> {
        postcard::from_bytes(bytes)
    }
}
