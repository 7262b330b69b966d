//! The core: operations in, records and effects out. Held by the commit thread, which carries the effects out once the
//! frame is committed: save, then acknowledge, then deliver. No clock, no chance, no IO: a retried or replayed
//! operation decides the same.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, Connected, EntryKind, PublishAck, Role, item};
use longwire_protocol::reason::{Reason, Refusal, Verdict};
use longwire_protocol::session::OpenRefusals;
use longwire_protocol::{ConversationId, DeviceId, Incarnation, MessageId, Seq, SessionNumber, UserId};
use prost::Message as _;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::change::Change;
use super::fold::{Body, fold_change, fold_entry, next_id, next_id_named};
use super::grants::Grants;
use super::limits::{
    CHANNEL_NAME_BYTES_MAX, CONVERSATIONS_MAX, DEVICES_MAX, GROUP_USERS_MAX, ID_SPAN_MAX, LABEL_BYTES_MAX, MEMBERS_MAX,
    TAKEOVER_WINDOW_MS, TAKEOVERS_MAX, USER_NAME_BYTES_MAX,
};
use super::outbox::{Attached, Outbox, Session};
use super::rows::{Conversation, Counted, DeviceCursor, Kind, partition, partition_of_name};
use super::state::{View, is_countable};
use crate::mutation::Mutation;
use crate::store::{EntryMeta, FrameBuilder, Origin, Position};

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
    /// A session is over.
    Detach(Arc<Session>, Option<DeviceCursor>),
    /// Everything below is expired: decided by the commit thread, which knows the time and the store.
    Retain(Position),
}

/// An authenticated device wants a session.
#[derive(Debug)]
pub struct Attach {
    /// The user its token names.
    pub user: Box<str>,
    /// The device it names itself.
    pub device: Box<str>,
    /// What its token lets it do with channels.
    pub grants: Grants,
    /// The incarnation of its outbox; 0 to get a new one.
    pub incarnation: Incarnation,
    /// Its first unanswered message id; 0 or 1 where it has none.
    pub first_unanswered: MessageId,
    /// Where its replies and items will go.
    pub outbox: Arc<Outbox>,
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
    /// For a mark: the countable entries up to it.
    pub mark_countable: u64,
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
}

/// What fences the older sessions of a device.
#[derive(Debug)]
struct Fence {
    session: SessionNumber,
    outbox: Arc<Outbox>,
    /// Ids that this session was refused with *retry* or *after* and has neither repeated nor given up.
    open: OpenRefusals,
    /// The highest first unanswered id that this session told, with whatever became of the publish that told it.
    told: MessageId,
    takeovers: u32,
    takeovers_since_ms: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Core {
    fences: HashMap<DeviceId, Fence>,
    newest_session: SessionNumber,
}

/// The digest by which a repeat of a message id is told from a reuse: of everything the publish says but its id and
/// its first unanswered. Only a device's own publishes are ever compared.
#[must_use]
pub fn digest(publish: &packet::Publish) -> u64 {
    let seed = xxh3_64(&publish.conversation.to_le_bytes());
    if publish.action.is_none() {
        return xxh3_64_with_seed(&publish.content, seed);
    }
    let bare = packet::Publish { message_id: 0, first_unanswered: 0, ..publish.clone() };
    xxh3_64_with_seed(&bare.encode_to_vec(), seed)
}

/// Why an operation is not done, before it is known about which publish.
struct No(Reason, &'static str);

impl Core {
    /// A core whose sessions are numbered above `newest_session`.
    #[must_use]
    pub fn new(newest_session: SessionNumber) -> Self {
        Self { fences: HashMap::new(), newest_session }
    }

    /// Decides one operation: drafts its rows, adds its records, names its effects. `now_ms` is monotonic; `writable`
    /// is false while nothing may be appended.
    pub fn decide(&mut self, op: Op, turn: &mut Turn<'_, '_>) {
        match op {
            Op::Attach(attach) => self.attach(*attach, turn),
            Op::Publish(publish) => self.publish(publish, turn),
            Op::GiveUp(session, id) => {
                if let Some(fence) = self.fence(&session) {
                    fence.open.close(id);
                }
            }
            Op::StoreCursor(session, cursor) => {
                if self.fence(&session).is_some() {
                    turn.store_cursor(session.device, cursor);
                }
            }
            Op::Detach(session, cursor) => {
                if self.fence(&session).is_some() {
                    self.fences.remove(&session.device);
                    if let Some(cursor) = cursor {
                        turn.store_cursor(session.device, cursor);
                    }
                }
                turn.effects.push(Effect::Detach(session));
            }
            Op::Retain(floor) => {
                turn.change(&Change::Retained { floor });
                turn.effects.push(Effect::SetFloor(floor));
            }
        }
    }

    /// Tells the inboxes of every change of membership that they have not heard of.
    pub fn cross(turn: &mut Turn<'_, '_>) {
        for (source, user, crossing) in turn.view.crossings() {
            let Some(inbox) = turn.view.user(user).map(|row| row.inbox) else { continue };
            let Some(conversation) = turn.view.conversation(crossing.conversation).cloned() else { continue };
            let mut entry = packet::Entry::default();
            let body = if crossing.joined {
                let member = turn.view.member(crossing.conversation, user);
                entry.set_kind(EntryKind::Joined);
                entry.joined = Some(packet::Joined {
                    conversation: crossing.conversation.0,
                    kind: conversation.kind.wire().into(),
                    visible_from: member.and_then(|m| m.intervals.last()).map_or(1, |i| i.from.0),
                    seq: conversation.head.seq.0,
                    label: turn.label_for(&conversation, user),
                    role: member.map_or(0, |m| m.role),
                });
                Body::Joined { conversation: crossing.conversation, seq: conversation.head.seq }
            } else {
                entry.set_kind(EntryKind::Left);
                entry.left = Some(packet::Left { conversation: crossing.conversation.0, seq: crossing.seq.0 });
                Body::Left { conversation: crossing.conversation }
            };
            let meta = EntryMeta { conversation: inbox, source, ..EntryMeta::default() };
            turn.entry(meta, entry, &body);
        }
    }

    /// The group was not committed: what its publishes may still do is told by `reason`, and repeats stay in order.
    pub fn refused(&mut self, session: &Session, id: MessageId, conversation: ConversationId) {
        if let Some(fence) = self.fence(session) {
            fence.open.refused(conversation.0, id, Verdict::Retry);
        }
    }

    /// The session was not attached after all: the group was not committed.
    pub fn forget(&mut self, session: &Session) {
        if self.fence(session).is_some() {
            self.fences.remove(&session.device);
        }
    }

    fn fence(&mut self, session: &Session) -> Option<&mut Fence> {
        let is_newest =
            |fence: &&mut Fence| fence.session == session.number || Mutation::TakeoverDoesNotFence.is_planted();
        self.fences.get_mut(&session.device).filter(is_newest)
    }

    fn attach(&mut self, attach: Attach, turn: &mut Turn<'_, '_>) {
        let outbox = Arc::clone(&attach.outbox);
        if let Err(refusal) = self.try_attach(attach, turn) {
            turn.effects.push(Effect::Refuse(outbox, refusal));
        }
    }

    fn try_attach(&mut self, attach: Attach, turn: &mut Turn<'_, '_>) -> Result<(), Refusal> {
        // Everything that can be refused is refused before anything is drafted, or the older session touched.
        let user = turn.view.user_named(&attach.user).copied();
        let device = user.and_then(|user| turn.view.device_named(user, &attach.device).copied());
        let row = device.and_then(|device| turn.view.device(device)).cloned();
        let stored = row.as_ref().map_or(Incarnation(0), |row| row.incarnation);
        if attach.incarnation.is_some() && attach.incarnation < stored {
            let refusal = Refusal::connection(Reason::IncarnationStale);
            return Err(refusal.because(format!("incarnation {} is older than {stored}", attach.incarnation)));
        }
        if device.is_none() && user.and_then(|u| turn.view.user(u)).is_some_and(|u| u.devices as usize >= DEVICES_MAX) {
            let refusal = Refusal::connection(Reason::QuotaExceeded);
            return Err(refusal.because(format!("the user has {DEVICES_MAX} devices, as many as it may")));
        }
        if attach.incarnation.0 == u64::MAX {
            let refusal = Refusal::connection(Reason::InvalidArgument);
            return Err(refusal.because("no incarnation can follow this one"));
        }
        let incarnation = if attach.incarnation.is_some() { attach.incarnation } else { stored.next() };
        // Whoever gets a new incarnation begins at 1, whatever was said of an older one.
        let told = if attach.incarnation.is_some() { attach.first_unanswered } else { MessageId(1) };
        let first_unanswered = told.max(MessageId(1));
        let floor = match &row {
            Some(row) if incarnation == row.incarnation => row.floor,
            _ => MessageId(1),
        };
        let changes = device.is_none() || incarnation != stored || first_unanswered > floor;
        if changes && !turn.writable {
            return Err(Refusal::connection(Reason::StoreUnavailable).retry_after(2_000));
        }
        let takeovers = match device.and_then(|device| self.fences.get(&device)) {
            Some(fence) if turn.now_ms - fence.takeovers_since_ms < TAKEOVER_WINDOW_MS => {
                if fence.takeovers >= TAKEOVERS_MAX {
                    let wait = TAKEOVER_WINDOW_MS - (turn.now_ms - fence.takeovers_since_ms);
                    let refusal = Refusal::connection(Reason::RateLimited).retry_after(wait as u32);
                    return Err(refusal.because("two clients fight for this device"));
                }
                (fence.takeovers + 1, fence.takeovers_since_ms)
            }
            _ => (1, turn.now_ms),
        };

        let user = match user {
            Some(user) => user,
            None => turn.create_user(&attach.user),
        };
        let device = match device {
            Some(device) => device,
            None => {
                let device = DeviceId(next_id(&turn.view, Counted::Devices, partition(user.0)));
                turn.change(&Change::DeviceCreated { device, user, name: attach.device.clone() });
                device
            }
        };
        if incarnation != stored {
            turn.change(&Change::IncarnationGiven { device, incarnation });
        }
        if first_unanswered > floor {
            turn.change(&Change::FloorRaised { device, floor: first_unanswered });
        }
        self.newest_session = self.newest_session.next();
        let session = Arc::new(Session {
            number: self.newest_session,
            user,
            device,
            incarnation,
            first_unanswered,
            grants: ArcSwap::from_pointee(attach.grants),
            outbox: attach.outbox,
        });
        let mut cursor = row.and_then(|row| row.cursor);
        let fence = Fence {
            session: session.number,
            outbox: Arc::clone(&session.outbox),
            open: OpenRefusals::new(),
            told: first_unanswered,
            takeovers: takeovers.0,
            takeovers_since_ms: takeovers.1,
        };
        if let Some(old) = self.fences.insert(device, fence) {
            // The point of takeover: from here on nothing of the older session counts, and its acks are final.
            cursor = old.outbox.lock().acked.or(cursor);
            turn.effects.push(Effect::Close(old.outbox, Refusal::connection(Reason::TakenOver)));
        }
        let connected = Connected {
            user: user.0,
            device: device.0,
            session: session.number.0,
            incarnation: incarnation.0,
            first_unanswered: first_unanswered.max(floor).0,
            inbox: turn.view.user(user).map_or(0, |row| row.inbox.0),
            ..Connected::default()
        };
        turn.effects.push(Effect::Attach(Attached { session, connected, cursor }));
        Ok(())
    }

    fn publish(&mut self, op: Publish, turn: &mut Turn<'_, '_>) {
        let Publish { session, publish, digest, mark_countable } = op;
        // A fenced session is answered nothing: its successor repeats what matters.
        let Some(fence) = self.fence(&session) else { return };
        let id = MessageId(publish.message_id);
        let conversation = ConversationId(publish.conversation);
        // What lies below the first unanswered is settled.
        fence.told = fence.told.max(MessageId(publish.first_unanswered).min(id));
        fence.open.close_below(fence.told.min(id));
        let told = fence.told;
        let outcome = match turn.known(&session, &publish, told, digest) {
            Ok(Some(ack)) if !turn.has_answered(&session, id) && !Mutation::RepeatFailsWithGroup.is_planted() => {
                fence.open.close(id);
                return turn.effects.push(Effect::Repeat(session, ack));
            }
            Ok(Some(ack)) => Ok(ack),
            Ok(None) if !turn.writable => Err(No(Reason::StoreUnavailable, "")),
            Ok(None) if fence.open.blocks(conversation.0, id) && !Mutation::AfterIgnored.is_planted() => {
                Err(No(Reason::After, ""))
            }
            Ok(None) => turn.append(&session, publish, told, digest, mark_countable),
            Err(no) => Err(no),
        };
        fence.open.close(id);
        let answer = match outcome {
            Ok(ack) => Ok(ack),
            Err(No(reason, detail)) => {
                let mut refusal = Refusal::publish(id, reason).because(detail);
                if matches!(reason, Reason::StoreUnavailable | Reason::After) {
                    fence.open.refused(conversation.0, id, reason.verdict());
                    refusal = refusal.retry_after(if reason == Reason::After { 0 } else { 1_000 });
                }
                Err(refusal)
            }
        };
        turn.effects.push(Effect::Answer(session, conversation, answer));
    }
}

/// One group under way: the draft, the frame, the effects.
#[derive(Debug)]
pub struct Turn<'s, 'g> {
    /// The state as it will be.
    pub view: View<'s>,
    /// The frame.
    pub frame: &'g mut FrameBuilder,
    /// What to do once it is committed.
    pub effects: &'g mut Vec<Effect>,
    /// Monotonic milliseconds.
    pub now_ms: u64,
    /// Whether anything may be appended.
    pub writable: bool,
}

impl Turn<'_, '_> {
    /// The answer to a publish that is known, or why its id cannot be accepted.
    fn known(
        &self,
        session: &Session,
        publish: &packet::Publish,
        told: MessageId,
        digest: u64,
    ) -> Result<Option<PublishAck>, No> {
        let id = MessageId(publish.message_id);
        let Some(device) = self.view.device(session.device) else { return Err(No(Reason::Internal, "no device")) };
        if MessageId(publish.first_unanswered) > id {
            return Err(No(Reason::InvalidArgument, "first_unanswered lies above message_id"));
        }
        let floor = device.floor.max(told);
        if id < floor {
            return Err(No(Reason::StaleId, "below the first unanswered id"));
        }
        if let Ok(at) = device.kept.binary_search_by_key(&id, |kept| kept.id)
            && !Mutation::RepeatStored.is_planted()
        {
            let kept = &device.kept[at];
            if kept.digest != digest {
                return Err(No(Reason::IdConflict, "the id was used for something else"));
            }
            let conversation = if kept.opened { kept.conversation.0 } else { 0 };
            return Ok(Some(PublishAck { message_id: id.0, seq: kept.seq.0, time: kept.time.0, conversation }));
        }
        if id.0 - floor.0 >= ID_SPAN_MAX {
            return Err(No(Reason::IdSpanExceeded, "more than 256 ids above the first unanswered"));
        }
        let conversation = ConversationId(publish.conversation);
        // What opened a conversation did not name it, and is in order among its like alone.
        let is_later = |k: &super::rows::Kept| {
            k.id > id && k.conversation == conversation && (!k.opened || Mutation::OpenedMakesStale.is_planted())
        };
        if conversation.is_some() && device.kept.iter().rev().any(is_later) {
            return Err(No(Reason::StaleId, "a later id is stored in that conversation"));
        }
        Ok(None)
    }

    /// Whether this group answers the same publish already: of an older session of the device.
    fn has_answered(&self, session: &Session, id: MessageId) -> bool {
        self.effects.iter().any(|effect| match effect {
            Effect::Answer(of, _, Ok(ack)) => of.device == session.device && ack.message_id == id.0,
            _ => false,
        })
    }

    fn append(
        &mut self,
        session: &Session,
        publish: packet::Publish,
        told: MessageId,
        digest: u64,
        mark_countable: u64,
    ) -> Result<PublishAck, No> {
        let floor = self.view.device(session.device).map_or(MessageId(0), |device| device.floor);
        let ticket = Ticket {
            origin: Origin {
                device: session.device,
                incarnation: session.incarnation,
                message_id: MessageId(publish.message_id),
            },
            first_unanswered: if told > floor { told } else { MessageId(0) },
            digest,
        };
        let conversation = ConversationId(publish.conversation);
        let ack = match publish.action {
            None => {
                self.may_publish(session, conversation)?;
                let entry = packet::Entry { content: publish.content, ..packet::Entry::default() };
                return Ok(self.publish_entry(
                    session,
                    conversation,
                    &ticket,
                    entry,
                    &Body::Plain { sender: session.user },
                ));
            }
            Some(Action::OpenDirect(open)) => self.open_direct(session, &ticket, &open.user),
            Some(Action::CreateGroup(create)) => self.create_group(session, &ticket, create),
            Some(Action::OpenChannel(open)) => self.open_channel(session, &ticket, &open.name),
            Some(Action::Join(_)) => self.join(session, &ticket, conversation),
            Some(Action::Leave(_)) => self.leave(session, &ticket, conversation),
            Some(Action::SetRole(set)) => self.set_role(session, &ticket, conversation, &set),
            Some(Action::SetLabel(set)) => self.set_label(session, &ticket, conversation, set.label),
            Some(Action::SetMark(set)) => self.set_mark(session, &ticket, conversation, Seq(set.seq), mark_countable),
        }?;
        Core::cross(self);
        Ok(ack)
    }

    /// The conversation, if the session may know of it.
    fn visible(&self, session: &Session, id: ConversationId) -> Result<&Conversation, No> {
        const UNKNOWN: No = No(Reason::UnknownConversation, "");
        let conversation = self.view.conversation(id).ok_or(UNKNOWN)?;
        let member = self.view.member(id, session.user).is_some_and(super::rows::Member::is_active);
        let granted = conversation.kind == Kind::Channel
            && (session.grants.load().read.admit(&conversation.label)
                || session.grants.load().publish.admit(&conversation.label));
        if member || granted { Ok(conversation) } else { Err(UNKNOWN) }
    }

    fn role(&self, session: &Session, id: ConversationId) -> Role {
        self.view.member(id, session.user).map_or(Role::None, super::rows::Member::role)
    }

    fn may_publish(&self, session: &Session, id: ConversationId) -> Result<(), No> {
        let conversation = self.visible(session, id)?;
        let may = match conversation.kind {
            Kind::Direct => true,
            Kind::Group => self.role(session, id) as i32 >= Role::Member as i32,
            Kind::Channel => session.grants.load().publish.admit(&conversation.label),
            Kind::Inbox => false,
        };
        if may { Ok(()) } else { Err(No(Reason::Forbidden, "the user may not publish here")) }
    }

    /// A group in which the session has at least this role.
    fn group(&self, session: &Session, id: ConversationId, least: Role) -> Result<(), No> {
        if self.visible(session, id)?.kind != Kind::Group {
            return Err(No(Reason::InvalidArgument, "only groups have this"));
        }
        if (self.role(session, id) as i32) < least as i32 {
            return Err(No(Reason::Forbidden, "the role does not allow it"));
        }
        Ok(())
    }

    fn open_direct(&mut self, session: &Session, ticket: &Ticket, name: &str) -> Result<PublishAck, No> {
        valid_user_name(name)?;
        let other = self.view.user_named(name).copied();
        let known = other.and_then(|other| self.view.direct(session.user, other).copied());
        if let Some(conversation) = known {
            return Ok(self.answered(ticket, conversation, true));
        }
        self.has_room(session.user)?;
        let other = match other {
            Some(other) => other,
            None => self.create_user(name),
        };
        let pair = (session.user.min(other), session.user.max(other));
        let key = [pair.0.0.to_le_bytes(), pair.1.0.to_le_bytes()].concat();
        let id = next_id(&self.view, Counted::Conversations, partition(xxh3_64(&key)));
        let conversation = ConversationId(id);
        self.change(&Change::ConversationCreated { conversation, kind: Kind::Direct, label: "".into(), pair });
        Ok(self.answered(ticket, conversation, true))
    }

    fn create_group(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        create: packet::CreateGroup,
    ) -> Result<PublishAck, No> {
        if create.users.len() > GROUP_USERS_MAX {
            return Err(No(Reason::InvalidArgument, "more users than one creation takes"));
        }
        valid_label(&create.label)?;
        for name in &create.users {
            valid_user_name(name)?;
        }
        self.has_room(session.user)?;
        let origin = &ticket.origin;
        let key = [origin.device.0, origin.incarnation.0, origin.message_id.0].map(u64::to_le_bytes).concat();
        let conversation = ConversationId(next_id(&self.view, Counted::Conversations, partition(xxh3_64(&key))));
        let label = create.label.into_boxed_str();
        let pair = (UserId(0), UserId(0));
        self.change(&Change::ConversationCreated { conversation, kind: Kind::Group, label, pair });
        self.membership(session, conversation, None, session.user, Role::Owner);
        for name in &create.users {
            let user = match self.view.user_named(name).copied() {
                Some(user) => user,
                None => self.create_user(name),
            };
            let is_member = self.view.member(conversation, user).is_some();
            if !is_member && self.has_room(user).is_ok() {
                self.membership(session, conversation, None, user, Role::Member);
            }
        }
        Ok(self.answered(ticket, conversation, true))
    }

    fn open_channel(&mut self, session: &Session, ticket: &Ticket, name: &str) -> Result<PublishAck, No> {
        valid_channel_name(name)?;
        if !session.grants.load().read.admit(name) && !session.grants.load().publish.admit(name) {
            return Err(No(Reason::UnknownConversation, ""));
        }
        if let Some(conversation) = self.view.channel(name).copied() {
            return Ok(self.answered(ticket, conversation, true));
        }
        let conversation = ConversationId(next_id(&self.view, Counted::Conversations, partition_of_name(name)));
        let pair = (UserId(0), UserId(0));
        self.change(&Change::ConversationCreated { conversation, kind: Kind::Channel, label: name.into(), pair });
        Ok(self.answered(ticket, conversation, true))
    }

    fn join(&mut self, session: &Session, ticket: &Ticket, id: ConversationId) -> Result<PublishAck, No> {
        let conversation = self.visible(session, id)?;
        if conversation.kind != Kind::Channel {
            return Err(No(Reason::Forbidden, "only a channel is joined; a member adds others to a group"));
        }
        if !session.grants.load().read.admit(&conversation.label) {
            return Err(No(Reason::Forbidden, "the token does not allow to read this channel"));
        }
        if self.role(session, id) == Role::None {
            self.has_room(session.user)?;
            self.change(&Change::RoleSet { conversation: id, user: session.user, role: Role::Reader as i32 });
        }
        Ok(self.answered(ticket, id, false))
    }

    fn leave(&mut self, session: &Session, ticket: &Ticket, id: ConversationId) -> Result<PublishAck, No> {
        let conversation = self.visible(session, id)?;
        let role = self.role(session, id);
        match conversation.kind {
            Kind::Direct | Kind::Inbox => Err(No(Reason::Forbidden, "a direct conversation cannot be left")),
            Kind::Channel => {
                if role != Role::None {
                    self.change(&Change::RoleSet { conversation: id, user: session.user, role: Role::None as i32 });
                }
                Ok(self.answered(ticket, id, false))
            }
            Kind::Group if role == Role::Owner && conversation.members > 1 => {
                Err(No(Reason::Forbidden, "make another member the owner first"))
            }
            Kind::Group => Ok(self.membership(session, id, Some(ticket), session.user, Role::None)),
        }
    }

    fn set_role(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        id: ConversationId,
        set: &packet::SetRole,
    ) -> Result<PublishAck, No> {
        self.group(session, id, Role::Admin)?;
        valid_user_name(&set.user)?;
        let role = Role::try_from(set.role).map_err(|_| No(Reason::InvalidArgument, "no such role"))?;
        let own = self.role(session, id);
        let user = self.view.user_named(&set.user).copied();
        let was = user.and_then(|u| self.view.member(id, u)).map_or(Role::None, super::rows::Member::role);
        // An admin decides about members; what concerns admins and owners is the owner's.
        let highest = was.max_with(role);
        if own != Role::Owner && highest as i32 >= Role::Admin as i32 {
            return Err(No(Reason::Forbidden, "only the owner decides about admins"));
        }
        if user == Some(session.user) {
            return Err(No(Reason::InvalidArgument, "nobody changes the own role; leave instead"));
        }
        if was == role {
            return Ok(self.answered(ticket, id, false));
        }
        let user = match user {
            Some(user) => user,
            None if role == Role::None => return Ok(self.answered(ticket, id, false)),
            None => self.create_user(&set.user),
        };
        if was == Role::None {
            self.has_room(user)?;
            if self.view.conversation(id).is_some_and(|c| c.members >= MEMBERS_MAX) {
                return Err(No(Reason::QuotaExceeded, "the group has as many members as it may"));
            }
        }
        if role == Role::Owner {
            // There is one owner: who makes another one becomes an admin.
            self.membership(session, id, None, session.user, Role::Admin);
        }
        Ok(self.membership(session, id, Some(ticket), user, role))
    }

    fn set_label(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        id: ConversationId,
        label: String,
    ) -> Result<PublishAck, No> {
        self.group(session, id, Role::Admin)?;
        valid_label(&label)?;
        let mut entry = packet::Entry { label: label.clone(), ..packet::Entry::default() };
        entry.set_kind(EntryKind::Label);
        Ok(self.publish_entry(session, id, ticket, entry, &Body::Label(label.into())))
    }

    fn set_mark(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        id: ConversationId,
        seq: Seq,
        countable: u64,
    ) -> Result<PublishAck, No> {
        let head = self.visible(session, id)?.head;
        let Some(member) = self.view.member(id, session.user).filter(|m| m.is_active()) else {
            return Err(No(Reason::Forbidden, "who is no member has no mark"));
        };
        let (seq, countable) = match seq >= head.seq && !Mutation::MarkNotClamped.is_planted() {
            true => (head.seq, head.countable),
            false => (seq, if Mutation::MarkCountsNothing.is_planted() { 0 } else { countable }),
        };
        if seq > member.mark {
            self.change(&Change::MarkSet { user: session.user, conversation: id, seq, countable });
        }
        Ok(self.answered(ticket, id, false))
    }

    /// An entry of the session's user in a conversation, as the answer to a publish.
    fn publish_entry(
        &mut self,
        session: &Session,
        conversation: ConversationId,
        ticket: &Ticket,
        mut entry: packet::Entry,
        body: &Body,
    ) -> PublishAck {
        entry.sender = session.user.0;
        let meta = EntryMeta {
            conversation,
            origin: ticket.origin,
            first_unanswered: ticket.first_unanswered,
            digest: ticket.digest,
            ..EntryMeta::default()
        };
        let seq = self.entry(meta, entry, body);
        PublishAck { message_id: ticket.origin.message_id.0, seq: seq.0, time: self.frame.time().0, conversation: 0 }
    }

    /// A membership entry; with a ticket, as the answer to a publish.
    fn membership(
        &mut self,
        session: &Session,
        conversation: ConversationId,
        ticket: Option<&Ticket>,
        user: UserId,
        role: Role,
    ) -> PublishAck {
        let name = self.view.user(user).map_or_else(String::new, |row| row.name.to_string());
        let membership = packet::Membership { user: user.0, name, role: role.into() };
        let mut entry = packet::Entry { membership: Some(membership), ..packet::Entry::default() };
        entry.set_kind(EntryKind::Membership);
        let none = Ticket::default();
        self.publish_entry(session, conversation, ticket.unwrap_or(&none), entry, &Body::Membership { user, role })
    }

    /// The answer to a publish that is no single entry.
    fn answered(&mut self, ticket: &Ticket, conversation: ConversationId, opened: bool) -> PublishAck {
        let seq = self.view.conversation(conversation).map_or(Seq(0), |row| row.head.seq);
        self.change(&Change::Answered {
            origin: ticket.origin,
            first_unanswered: ticket.first_unanswered,
            digest: ticket.digest,
            conversation,
            seq,
            opened,
        });
        let time = self.frame.time().0;
        let conversation = if opened { conversation.0 } else { 0 };
        PublishAck { message_id: ticket.origin.message_id.0, seq: seq.0, time, conversation }
    }

    fn has_room(&self, user: UserId) -> Result<(), No> {
        if self.view.user(user).is_some_and(|row| row.conversations >= CONVERSATIONS_MAX) {
            return Err(No(Reason::QuotaExceeded, "the user is in as many conversations as it may"));
        }
        Ok(())
    }

    fn create_user(&mut self, name: &str) -> UserId {
        let user = UserId(next_id_named(&self.view, Counted::Users, name));
        let inbox = ConversationId(next_id(&self.view, Counted::Conversations, partition(user.0)));
        self.change(&Change::UserCreated { user, name: name.into(), inbox });
        user
    }

    /// What a conversation is called to a user.
    fn label_for(&self, conversation: &Conversation, user: UserId) -> String {
        if conversation.kind == Kind::Direct {
            let (a, b) = conversation.pair;
            let other = if a == user { b } else { a };
            return self.view.user(other).map_or_else(String::new, |row| row.name.to_string());
        }
        conversation.label.to_string()
    }

    fn change(&mut self, change: &Change) {
        let position = self.frame.push_change(|out| change.encode(out));
        fold_change(&mut self.view, position, self.frame.time(), change);
    }

    fn store_cursor(&mut self, device: DeviceId, cursor: DeviceCursor) {
        let stored = self.view.device(device).and_then(|row| row.cursor);
        if self.writable && stored != Some(cursor) {
            let change = Change::CursorStored { device, cursor };
            self.frame.push_rider(|out| change.encode(out));
            fold_change(&mut self.view, Position(0), self.frame.time(), &change);
        }
    }

    /// Appends an entry: gives it its seq and time, encodes it once, folds it.
    fn entry(&mut self, mut meta: EntryMeta, mut entry: packet::Entry, body: &Body) -> Seq {
        let head = self.view.conversation(meta.conversation).map(|row| row.head).unwrap_or_default();
        let time = self.frame.time();
        meta.seq = head.seq.next();
        meta.countable = head.countable + u64::from(is_countable(entry.kind()));
        entry.conversation = meta.conversation.0;
        entry.seq = meta.seq.0;
        entry.time = time.0;
        let item = packet::Item { kind: Some(item::Kind::Entry(entry)) };
        let position = self.frame.push_entry(&meta, |out| item.encode(out).expect("a growing buffer has room"));
        fold_entry(&mut self.view, &meta, position, time, body);
        meta.seq
    }
}

/// Which publish a record answers; all 0 for what nobody asked for by itself.
#[derive(Clone, Copy, Debug, Default)]
struct Ticket {
    origin: Origin,
    first_unanswered: MessageId,
    digest: u64,
}

trait MaxWith {
    fn max_with(self, other: Self) -> Self;
}

impl MaxWith for Role {
    fn max_with(self, other: Self) -> Self {
        if other as i32 > self as i32 { other } else { self }
    }
}

/// Checks a user's name.
///
/// # Errors
/// When it is empty, too long, or holds control characters.
fn valid_user_name(name: &str) -> Result<(), No> {
    if name.is_empty() || name.len() > USER_NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(No(Reason::InvalidArgument, "a user's name has 1 to 64 bytes and no control characters"));
    }
    Ok(())
}

fn valid_label(label: &str) -> Result<(), No> {
    if label.len() > LABEL_BYTES_MAX || label.chars().any(char::is_control) {
        return Err(No(Reason::InvalidArgument, "a label has at most 256 bytes and no control characters"));
    }
    Ok(())
}

fn valid_channel_name(name: &str) -> Result<(), No> {
    let fits = !name.is_empty() && name.len() <= CHANNEL_NAME_BYTES_MAX;
    if !fits || name.contains('*') || name.split('/').any(str::is_empty) || name.chars().any(char::is_control) {
        const RULE: &str = "a channel's name has 1 to 256 bytes: segments split by /, none empty, no * and no controls";
        return Err(No(Reason::InvalidArgument, RULE));
    }
    Ok(())
}
