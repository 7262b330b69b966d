//! The core: operations in, records and effects out. Held by the commit thread, which carries the effects out once the
//! frame is committed: save, then acknowledge, then deliver. No clock, no chance, no IO: a retried or replayed
//! operation decides the same.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, Connected, DeviceChangeKind, PublishAck};
use longwire_protocol::reason::{Reason, Refusal, Verdict};
use longwire_protocol::session::OpenRefusals;
use longwire_protocol::{ConversationId, DeviceId, Incarnation, LogTime, MessageId, SessionNumber, UserId};
use prost::Message as _;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::account::is_own;
use super::change::Change;
use super::draft::{Draft, No};
use super::fold::next_id;
use super::grants::Grants;
use super::levels::Levels;
use super::limits::{DEVICES_MAX, TAKEOVER_WINDOW_MS, TAKEOVERS_MAX};
use super::messages::is_about_a_message;
use super::outbox::{Attached, Generation, Outbox, Session};
use super::push::Settling;
use super::rows::{Counted, Device, DeviceCursor, Key, Secret, partition};
use super::view::{Rows as _, View};
use super::wills::{Fate, Gone};
use crate::mutation::Mutation;
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
    /// With a goodbye, or because its right was taken back.
    Goodbye,
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
    /// A user shows its presence to others than before.
    Shown(UserId),
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
    /// Where the device stood by its acks to the session that this one took over: not stored, while this one acks nothing.
    taken: Option<DeviceCursor>,
}

/// See the module.
#[derive(Debug)]
pub struct Core {
    fences: HashMap<DeviceId, Fence>,
    /// The same of takeovers whose group was not committed, until the device's next cursor is stored.
    untaken: HashMap<DeviceId, DeviceCursor>,
    newest_session: SessionNumber,
    /// The devices that are gone and have a will.
    gone: Gone,
    /// When sessions of these users ended, until that is stored with something else.
    seen: BTreeMap<UserId, LogTime>,
    /// Since when the first of them waits.
    seen_since_ms: u64,
}

/// When a user was last seen waits so long for something else to be stored with.
const SEEN_WAITS_MS: u64 = 10_000;
/// Of so many users at once.
const SEEN_AT_ONCE: usize = 1_024;
/// What could not be done for a device that is gone is tried again after so long.
const FATE_AGAIN_MS: u64 = 1_000;

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

impl Core {
    /// A core whose sessions are numbered above `newest_session`.
    #[must_use]
    pub fn new(newest_session: SessionNumber) -> Self {
        Self {
            fences: HashMap::new(),
            untaken: HashMap::new(),
            newest_session,
            gone: Gone::default(),
            seen: BTreeMap::new(),
            seen_since_ms: 0,
        }
    }

    /// Decides one operation: drafts its rows, adds its records, names its effects. `now_ms` is monotonic; `writable`
    /// is false while nothing may be appended.
    pub fn decide(&mut self, op: Op, draft: &mut Draft<'_, '_>) {
        match op {
            Op::Attach(attach) => self.attach(*attach, draft),
            Op::Publish(publish) => self.publish(publish, draft),
            Op::GiveUp(session, id) => {
                if let Some(fence) = self.fence(&session) {
                    fence.open.close(id);
                }
            }
            Op::StoreCursor(session, cursor) => {
                if self.fence(&session).is_some() {
                    self.untaken.remove(&session.device);
                    draft.store_cursor(session.device, cursor);
                    draft.see_device(session.device);
                }
            }
            Op::Detach(session, cursor, parting) => {
                if let Some(taken) = self.fence(&session).map(|fence| fence.taken) {
                    self.fences.remove(&session.device);
                    if let Some(cursor) = cursor.or(taken) {
                        self.untaken.remove(&session.device);
                        draft.store_cursor(session.device, cursor);
                        draft.see_device(session.device);
                    }
                    self.part(session.device, parting, draft);
                }
                if self.seen.is_empty() {
                    self.seen_since_ms = draft.now_ms;
                }
                // Of who is erased nothing is noted.
                if !draft.view.erased().contains(&session.user) {
                    self.seen.insert(session.user, draft.frame.time());
                }
                draft.effects.push(Effect::Detach(session));
            }
            Op::See(session) => {
                if self.fence(&session).is_some() {
                    draft.see_device(session.device);
                }
            }
            Op::Fate(device, fate) => self.end_will(device, fate, draft),
            Op::Sweep(id) if draft.writable => {
                let until = draft.sweep(id);
                draft.effects.push(until.map_or(Effect::LetGo, |until| Effect::Defer(id, until)));
            }
            Op::Erase(user) if draft.writable => draft.erase_step(user),
            Op::Erased(user) if draft.writable => draft.erase_done(user),
            Op::Sweep(_) | Op::Erase(_) | Op::Erased(_) => {}
            Op::SettlePush(settling) => draft.settle_push(*settling),
            Op::Retain(floor) => {
                draft.change(&Change::Retained { floor });
                draft.effects.push(Effect::SetFloor(floor));
            }
        }
    }

    /// A device is gone.
    fn part(&mut self, device: DeviceId, parting: Parting, draft: &mut Draft<'_, '_>) {
        let Some(after_ms) = draft.view.will_after(device) else { return };
        match parting {
            Parting::Lost => self.lost(device, after_ms, draft.now_ms),
            Parting::Goodbye => self.end_will(device, Fate::Take, draft),
            Parting::Drained => {}
        }
    }

    fn end_will(&mut self, device: DeviceId, fate: Fate, draft: &mut Draft<'_, '_>) {
        if self.fences.contains_key(&device) {
            return;
        }
        if !draft.writable {
            return self.retry_fate(device, fate, draft.now_ms);
        }
        draft.end_will(device, fate);
        draft.effects.push(Effect::Fate(device, fate));
    }

    /// What becomes of a device's will was not committed.
    pub fn retry_fate(&mut self, device: DeviceId, fate: Fate, now_ms: u64) {
        self.gone.put(device, now_ms + FATE_AGAIN_MS, fate);
    }

    /// The device has a will and no session, unless that is known already: it has so long to come back.
    pub fn lost(&mut self, device: DeviceId, after_ms: u32, now_ms: u64) {
        if !self.fences.contains_key(&device) && !self.gone.has(device) {
            self.gone.put(device, now_ms + u64::from(after_ms), Fate::Publish);
        }
    }

    /// The devices that have been gone for long enough, at most so many.
    pub fn take_due(&mut self, now_ms: u64, most: usize) -> Vec<Op> {
        self.gone.take_due(now_ms, most).into_iter().map(|(device, fate)| Op::Fate(device, fate)).collect()
    }

    /// Whether it is time to store when users were last seen, with something else or not.
    #[must_use]
    pub fn is_seen_due(&self, now_ms: u64) -> bool {
        !self.seen.is_empty() && now_ms >= self.seen_since_ms + SEEN_WAITS_MS
    }

    /// Adds to a frame when users were last seen: to one that there is anyhow, when it is time, or to the
    /// last one.
    pub fn note_seen(&mut self, draft: &mut Draft<'_, '_>, is_last: bool) {
        let is_frame = draft.frame.records() > 0;
        if !draft.writable || self.seen.is_empty() || !(is_last || is_frame || self.is_seen_due(draft.now_ms)) {
            return;
        }
        let some: Vec<_> = self.seen.iter().map(|(user, time)| (*user, *time)).take(SEEN_AT_ONCE).collect();
        for (user, time) in &some {
            self.seen.remove(user);
            draft.note_seen(*user, *time);
        }
        draft.effects.push(Effect::Seen(some));
    }

    /// That was not committed.
    pub fn unsee(&mut self, users: Vec<(UserId, LogTime)>) {
        for (user, time) in users {
            self.seen.entry(user).or_insert(time);
        }
    }

    /// The group was not committed: what its publishes may still do is told by `reason`, and repeats stay in order.
    pub fn refused(&mut self, session: &Session, id: MessageId, conversation: ConversationId) {
        if let Some(fence) = self.fence(session) {
            fence.open.refused(conversation.0, id, Verdict::Retry);
        }
    }

    /// The session was not attached after all: the group was not committed. What was acked to the one that it was to take
    /// over holds for the next.
    pub fn forget(&mut self, session: &Session) {
        if let Some(taken) = self.fence(session).map(|fence| fence.taken) {
            self.fences.remove(&session.device);
            if let Some(taken) = taken {
                self.untaken.insert(session.device, taken);
            }
        }
    }

    fn fence(&mut self, session: &Session) -> Option<&mut Fence> {
        let is_newest =
            |fence: &&mut Fence| fence.session == session.number || Mutation::TakeoverDoesNotFence.is_planted();
        self.fences.get_mut(&session.device).filter(is_newest)
    }

    fn attach(&mut self, attach: Attach, draft: &mut Draft<'_, '_>) {
        // Its connection is gone already, and a newer one may have come: it takes nothing over.
        if attach.outbox.lock().is_abandoned && !Mutation::GhostTakesOver.is_planted() {
            return;
        }
        let outbox = Arc::clone(&attach.outbox);
        if let Err(refusal) = self.try_attach(attach, draft) {
            draft.effects.push(Effect::Refuse(outbox, refusal));
        }
    }

    fn try_attach(&mut self, attach: Attach, draft: &mut Draft<'_, '_>) -> Result<(), Refusal> {
        // Everything that can be refused is refused before anything is drafted, or the older session touched.
        let user = draft.view.user_named(&attach.user);
        let device = user.and_then(|user| draft.view.device_named(user, &attach.device));
        let row = device.and_then(|device| draft.view.device(device)).cloned();
        let stored = row.as_ref().map_or(Incarnation(0), |row| row.incarnation);
        if attach.incarnation.is_some() && attach.incarnation < stored {
            let refusal = Refusal::connection(Reason::IncarnationStale);
            return Err(refusal.because(format!("incarnation {} is older than {stored}", attach.incarnation)));
        }
        may_come(&draft.view, user, row.as_ref(), &attach.proof)?;
        // A device that is new, or comes again after it was forgotten.
        let is_new = row.as_ref().is_none_or(|row| row.is_gone);
        let fences = &self.fences;
        let expired = match user.filter(|_| is_new && draft.writable) {
            Some(user) => draft.expired_devices(user, |device| fences.contains_key(&device)),
            None => Vec::new(),
        };
        let devices = user.and_then(|user| draft.view.user(user)).map_or(0, |user| user.devices.len());
        if is_new && devices - expired.len() >= DEVICES_MAX {
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
        let is_account = !matches!(attach.proof, Proof::Token { .. } | Proof::Password { new: None, .. });
        let changes = is_new || is_account || incarnation != stored || first_unanswered > floor;
        if changes && !draft.writable {
            return Err(Refusal::connection(Reason::StoreUnavailable).retry_after(2_000));
        }
        let takeovers = match device.and_then(|device| self.fences.get(&device)) {
            Some(fence) if draft.now_ms - fence.takeovers_since_ms < TAKEOVER_WINDOW_MS => {
                if fence.takeovers >= TAKEOVERS_MAX {
                    let wait = TAKEOVER_WINDOW_MS - (draft.now_ms - fence.takeovers_since_ms);
                    let refusal = Refusal::connection(Reason::RateLimited).retry_after(wait as u32);
                    return Err(refusal.because("two clients fight for this device"));
                }
                (fence.takeovers + 1, fence.takeovers_since_ms)
            }
            _ => (1, draft.now_ms),
        };

        let user = match user {
            Some(user) => user,
            None => draft.create_user(&attach.user),
        };
        expired.iter().for_each(|device| draft.tell_device(user, *device, DeviceChangeKind::DeviceExpired));
        let has_others = draft.view.user(user).is_some_and(|row| !row.devices.is_empty());
        let device = match device {
            Some(device) if is_new => {
                draft.change(&Change::DeviceReturned { device });
                device
            }
            Some(device) => device,
            None => {
                let device = DeviceId(next_id(&draft.view, Counted::Devices, partition(user.0)));
                draft.change(&Change::DeviceCreated { device, user, name: attach.device.clone() });
                device
            }
        };
        if is_new && has_others {
            draft.tell_device(user, device, DeviceChangeKind::DeviceAdded);
        }
        self.take_account(user, device, attach.proof, draft);
        draft.see_device(device);
        if self.gone.back(device) == Some(Fate::Take) && draft.writable {
            draft.end_will(device, Fate::Take);
            draft.effects.push(Effect::Fate(device, Fate::Take));
        }
        if incarnation != stored {
            draft.change(&Change::IncarnationGiven { device, incarnation });
        }
        if first_unanswered > floor {
            draft.change(&Change::FloorRaised { device, floor: first_unanswered });
        }
        attach.outbox.lock().is_told = draft.view.is_told(user, device);
        self.newest_session = self.newest_session.next();
        let session = Arc::new(Session {
            number: self.newest_session,
            user,
            device,
            incarnation,
            first_unanswered,
            grants: ArcSwap::new(attach.grants),
            hears_signals: attach.hears_signals,
            is_background: attach.is_background.into(),
            outbox: attach.outbox,
        });
        let levels = draft.view.device(device).map(|row| row.levels.clone()).unwrap_or_default();
        session.outbox.lock().set_levels(levels, &session);
        let taken = match self.fences.get(&device) {
            Some(old) => old.outbox.lock().acked().or(old.taken),
            None => self.untaken.get(&device).copied(),
        };
        let cursor = taken.or(row.and_then(|row| row.cursor));
        let fence = Fence {
            session: session.number,
            outbox: Arc::clone(&session.outbox),
            open: OpenRefusals::new(),
            told: first_unanswered,
            takeovers: takeovers.0,
            takeovers_since_ms: takeovers.1,
            taken,
        };
        if let Some(old) = self.fences.insert(device, fence) {
            // The point of takeover: from here on nothing of the older session counts, and its acks are final.
            draft.effects.push(Effect::Close(old.outbox, Refusal::connection(Reason::TakenOver)));
        }
        let generation = generation(&draft.view, user, device);
        let connected = Connected {
            user: user.0,
            device: device.0,
            session: session.number.0,
            incarnation: incarnation.0,
            first_unanswered: first_unanswered.max(floor).0,
            inbox: draft.view.user(user).map_or(0, |row| row.inbox.0),
            ..Connected::default()
        };
        let tokens_until = tokens_until(&draft.view, user, device);
        draft.effects.push(Effect::Attach(Attached { session, connected, cursor, generation, tokens_until }));
        Ok(())
    }

    /// The account that is made, or the new password that is set, as a device comes. With a new password everything else
    /// that was let in with the old one ends.
    fn take_account(&mut self, user: UserId, device: DeviceId, proof: Proof, draft: &mut Draft<'_, '_>) {
        let password = match proof {
            Proof::Token { .. } | Proof::Password { new: None, .. } => return,
            Proof::Password { new: Some(new), .. } => new,
            Proof::Registration { password, invitation } => {
                if let Some((id, until)) = invitation {
                    draft.change(&Change::InvitationUsed { id, until });
                }
                password
            }
        };
        draft.change(&Change::AccountSet { user, password: Some(password), is_closed: false, cuts: true });
        let devices = draft.view.user(user).map_or_else(Vec::new, |row| row.devices.clone());
        devices.into_iter().filter(|other| *other != device).for_each(|other| self.cut(other, draft));
    }

    /// Ends the session of a device, and nothing of it counts from here on.
    fn cut(&mut self, device: DeviceId, draft: &mut Draft<'_, '_>) {
        self.untaken.remove(&device);
        if let Some(fence) = self.fences.remove(&device) {
            draft.effects.push(Effect::Close(fence.outbox, Refusal::connection(Reason::Revoked)));
        }
    }

    fn publish(&mut self, op: Publish, draft: &mut Draft<'_, '_>) {
        let Publish { session, publish, digest, found } = op;
        // A fenced session is answered nothing: its successor repeats what matters.
        let Some(fence) = self.fence(&session) else { return };
        let id = MessageId(publish.message_id);
        let conversation = match is_own(publish.action.as_ref()) {
            true => draft.view.user(session.user).map_or(ConversationId(0), |user| user.inbox),
            false => ConversationId(publish.conversation),
        };
        // What lies below the first unanswered is settled.
        fence.told = fence.told.max(MessageId(publish.first_unanswered).min(id));
        fence.open.close_below(fence.told.min(id));
        let told = fence.told;
        let cuts = match &publish.action {
            Some(Action::RevokeDevice(revoke)) => Cuts::Device(DeviceId(revoke.device)),
            Some(Action::SetAccount(set)) => Cuts::User(set.user.clone()),
            Some(Action::EraseUser(erase)) if !Mutation::ErasedGoesOn.is_planted() => Cuts::User(erase.user.clone()),
            _ => Cuts::Nobody,
        };
        let lacks_found = found.is_none() && needs_found(&publish);
        let outcome = match draft.known(&session, &publish, conversation, told, digest) {
            Ok(Some(ack)) if !draft.has_answered(&session, id) && !Mutation::RepeatFailsWithGroup.is_planted() => {
                fence.open.close(id);
                return draft.effects.push(Effect::Repeat(session, ack));
            }
            Ok(Some(ack)) => Ok(ack),
            // What it is about could not be read: the disk is in trouble.
            Ok(None) if !draft.writable || lacks_found => Err(No(Reason::StoreUnavailable, "")),
            Ok(None) if fence.open.blocks(conversation.0, id) && !Mutation::AfterIgnored.is_planted() => {
                Err(No(Reason::After, ""))
            }
            Ok(None) => draft.append(&session, publish, told, digest, found),
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
        let is_done = answer.is_ok();
        draft.effects.push(Effect::Answer(session, conversation, answer));
        if is_done {
            // After the answer, which may be for the very session that ends.
            match cuts {
                Cuts::Nobody => {}
                Cuts::Device(device) => self.cut(device, draft),
                Cuts::User(name) => {
                    let user = draft.view.user_named(&name).and_then(|user| draft.view.user(user));
                    let devices = user.map_or_else(Vec::new, |user| user.devices.clone());
                    devices.into_iter().for_each(|device| self.cut(device, draft));
                }
            }
        }
    }
}

/// Whose sessions a publish ends.
enum Cuts {
    Nobody,
    Device(DeviceId),
    User(String),
}

/// Whether what a device comes with still holds: it may have been taken back since it was looked at.
fn may_come(rows: &View<'_>, user: Option<UserId>, device: Option<&Device>, proof: &Proof) -> Result<(), Refusal> {
    let row = user.and_then(|user| rows.user(user));
    let refused = |reason, why| Err(Refusal::connection(reason).because(why));
    if row.is_some_and(|row| row.is_closed) {
        return refused(Reason::Revoked, "the account is closed");
    }
    match proof {
        Proof::Token { generation: Some(generation), .. } => {
            let now = Generation {
                user: row.map_or(0, |row| row.generation),
                device: device.map_or(0, |row| row.generation),
            };
            if *generation != now {
                return refused(Reason::Revoked, "the token was taken back");
            }
        }
        Proof::Token { issued, generation: None } => {
            let until = row.map_or(LogTime(0), |row| row.tokens_until);
            if is_taken_back(*issued, until.max(device.map_or(LogTime(0), |row| row.tokens_until))) {
                return refused(Reason::Revoked, "the token was taken back");
            }
        }
        Proof::Password { checked, .. } => {
            if user.and_then(|user| rows.password(user)) != Some(checked) {
                return refused(Reason::Unauthenticated, NO_LOGIN);
            }
        }
        Proof::Registration { invitation, .. } => {
            if row.is_some_and(|row| row.is_someone) {
                return refused(Reason::NameTaken, "");
            }
            let id = invitation.as_ref().map(|(id, _)| id);
            if id.is_some_and(|id| rows.row(&Key::Invitation(id.clone())).is_some()) {
                return refused(Reason::Forbidden, NO_REGISTRATION);
            }
        }
    }
    Ok(())
}

/// What is said of a password that is not the user's, and of a user that there is not.
pub const NO_LOGIN: &str = "user name and password do not belong together";
/// What is said to who may not make an account.
pub const NO_REGISTRATION: &str = "accounts are not made so here";

/// Whether a token that was made then is good no more.
#[must_use]
pub fn is_taken_back(issued: LogTime, until: LogTime) -> bool {
    until.0 > 0 && issued <= until
}

fn tokens_until(rows: &View<'_>, user: UserId, device: DeviceId) -> LogTime {
    let of_user = rows.user(user).map_or(LogTime(0), |row| row.tokens_until);
    of_user.max(rows.device(device).map_or(LogTime(0), |row| row.tokens_until))
}

fn generation(rows: &View<'_>, user: UserId, device: DeviceId) -> Generation {
    Generation {
        user: rows.user(user).map_or(0, |row| row.generation),
        device: rows.device(device).map_or(0, |row| row.generation),
    }
}
