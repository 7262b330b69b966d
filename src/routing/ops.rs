//! What the core is asked, and what it has done of it: operations that connections and the broker put into the queue, and
//! effects that the commit thread carries out.

use std::sync::Arc;

use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, PublishAck};
use longwire_protocol::reason::Refusal;
use longwire_protocol::{ConversationId, DeviceId, Incarnation, LogTime, MessageId, UserId};
use prost::Message as _;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::grants::{Bearer, Grants};
use super::levels::Levels;
use super::messages::is_about_a_message;
use super::outbox::{Attached, Generation, Outbox, Session};
use super::push::Settling;
use super::rows::{DeviceCursor, Secret};
use super::wills::Fate;
use crate::store::Position;

/// What the commit thread is asked to do.
#[derive(Debug)]
pub enum Op {
    /// A device connects; boxed, since it is rare and large.
    Attach(Box<Attach>),
    /// A session publishes.
    Publish(Publish),
    /// A session gives up an id that is surely not stored.
    GiveUp(Arc<Session>, MessageId),
    /// A device stands here by its acks.
    StoreCursor(Arc<Session>, DeviceCursor),
    /// A session has lived on for a while: its device is seen.
    See(Arc<Session>),
    /// A session that left something to be done while its device is away goes by this token.
    Bear(Arc<Session>, Bearer),
    /// A session is over: where its device stands, and how it went.
    Detach(Arc<Session>, Option<DeviceCursor>, Parting),
    /// A device that is gone has been so for long enough.
    Fate(DeviceId, Fate),
    /// Everything below is expired: decided by the commit thread, which knows the time and the store.
    Retain(Position),
    /// Something of a conversation may go: it is long enough there, or was delivered.
    Sweep(ConversationId),
    /// The next step of erasing a user.
    Erase(UserId),
    /// Nothing of an erased user is left in the store's files.
    Erased(UserId),
    /// What became of telling a device.
    SettlePush(Box<Settling>),
}

/// How a session ends, as far as the device's will is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parting {
    /// Without a word, or keeping the will.
    Lost,
    /// With a goodbye.
    Goodbye,
    /// Its right was taken back.
    Revoked,
    /// The broker goes, and not the device.
    Drained,
}

/// An authenticated device wants a session.
#[derive(Debug)]
pub struct Attach {
    /// The user its token names.
    pub user: Box<str>,
    /// The device it names itself.
    pub device: Box<str>,
    /// What its token lets it do with channels.
    pub grants: Arc<Grants>,
    /// How it is known to be that user.
    pub proof: Proof,
    /// The incarnation of its outbox; 0 to get a new one.
    pub incarnation: Incarnation,
    /// Its first unanswered message id; 0 or 1 where it has none.
    pub first_unanswered: MessageId,
    /// It wants signals of conversations.
    pub hears_signals: bool,
    /// Nobody looks at the device.
    pub is_background: bool,
    /// Where its replies and items will go.
    pub outbox: Arc<Outbox>,
}

/// How a device is known to be its user's.
#[derive(Debug)]
pub enum Proof {
    /// By a token.
    Token {
        /// When it was made, as far as it says.
        issued: LogTime,
        /// Of which generation it is, if it is the broker's own.
        generation: Option<Generation>,
    },
    /// By the password that was checked against this.
    Password {
        /// What it was checked by: another one may have been set meanwhile.
        checked: Secret,
        /// What a new password is to be checked by, if it brings one.
        new: Option<Secret>,
    },
    /// It is the first: the account is made with it.
    Registration {
        /// What the password is to be checked by.
        password: Secret,
        /// The invitation that it came with: its id, and when it ends, in seconds since 1970.
        invitation: Option<(Box<str>, u64)>,
    },
}

/// A publish, with what was worked out before it came to the commit thread.
#[derive(Debug)]
pub struct Publish {
    /// Who.
    pub session: Arc<Session>,
    /// What.
    pub publish: packet::Publish,
    /// See [`digest`].
    pub digest: u64,
    /// What had to be looked up in the log; `None` while it is not.
    pub found: Option<Found>,
}

/// What was looked up in the log before a publish came to the commit thread, which waits for no read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// For a mark: the countable entries up to it.
    Countable(u64),
    /// For what is about an earlier message: that message, if there is one.
    Target(Option<Target>),
}

/// An entry that a publish is about. Entries never change, so it may be looked up ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Who published it.
    pub sender: UserId,
    /// Whether it is a message.
    pub is_message: bool,
    /// Its place among the countable entries.
    pub countable: u64,
    /// Its time.
    pub time: LogTime,
}

/// Whether a publish has to be looked up in the log before it is decided.
#[must_use]
pub fn needs_found(publish: &packet::Publish) -> bool {
    matches!(publish.action, Some(Action::SetMark(_))) || is_about_a_message(publish)
}

/// What is to be done once the frame is committed.
#[derive(Debug)]
pub enum Effect {
    /// Answer a publish.
    Answer(Arc<Session>, ConversationId, Result<PublishAck, Refusal>),
    /// Repeat the answer to a publish that was committed before: it holds whatever becomes of this group.
    Repeat(Arc<Session>, PublishAck),
    /// Refuse an attach.
    Refuse(Arc<Outbox>, Refusal),
    /// The session is attached: register it, then answer.
    Attach(Attached),
    /// A newer session took over.
    Close(Arc<Outbox>, Refusal),
    /// The session is over.
    Detach(Arc<Session>),
    /// Tell the store.
    SetFloor(Position),
    /// A will was published or taken away.
    Fate(DeviceId, Fate),
    /// It is stored when these were last seen.
    Seen(Vec<(UserId, LogTime)>),
    /// A user shows its presence to others than before, or is no longer in a conversation that it was in: others may see
    /// it, and be seen by it.
    Shown(UserId),
    /// A user shows its presence to this other no more.
    Hidden(UserId, UserId),
    /// Nothing of a conversation can go before.
    Defer(ConversationId, LogTime),
    /// A conversation let something go that the files hold.
    LetGo,
    /// The session's device has these levels.
    Levels(Arc<Session>, Levels),
    /// A device said where it has itself told, or that it is told no more.
    PushSet(UserId, DeviceId, bool),
    /// What became of telling a device is durable, or cannot be made so now.
    PushSettled(UserId, DeviceId, bool),
}

/// The digest by which a repeat of a message id is told from a reuse: of everything the publish says but its id and
/// its first unanswered. Only a device's own publishes are ever compared.
#[must_use]
pub fn digest(publish: &packet::Publish) -> u64 {
    let seed = xxh3_64(&publish.conversation.to_le_bytes());
    if publish.action.is_none() && publish.beside.is_none() {
        return xxh3_64_with_seed(&publish.content, seed);
    }
    let bare = packet::Publish { message_id: 0, first_unanswered: 0, ..publish.clone() };
    xxh3_64_with_seed(&bare.encode_to_vec(), seed)
}
