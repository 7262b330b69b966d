//! The core: operations in, records and effects out. Held by the commit thread, which carries the effects out once the
//! frame is committed: save, then acknowledge, then deliver. No clock, no chance, no IO: a retried or replayed
//! operation decides the same.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use longwire_protocol::packet::publish::Action;
use longwire_protocol::reason::{Reason, Refusal, Verdict};
use longwire_protocol::session::OpenRefusals;
use longwire_protocol::{ConversationId, DeviceId, LogTime, MessageId, SessionNumber, UserId};

pub use self::attach::{NO_LOGIN, NO_REGISTRATION, is_taken_back};
use super::account::is_own;
use super::change::Change;
use super::draft::{Draft, No};
use super::ops::{Effect, Op, Parting, Publish, needs_found};
use super::outbox::{Outbox, Session};
use super::rows::DeviceCursor;
use super::view::Rows as _;
use super::wills::{Fate, Gone};
use crate::mutation::Mutation;

mod attach;

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
                    self.part(&session, parting, draft);
                }
                if self.seen.is_empty() {
                    self.seen_since_ms = draft.now_ms;
                }
                // Of who is erased nothing is noted.
                if !draft.view.is_erased(session.user) {
                    self.seen.insert(session.user, draft.frame.time());
                }
                draft.effects.push(Effect::Detach(session));
            }
            Op::See(session) => {
                if self.fence(&session).is_some() {
                    draft.see_device(session.device);
                }
            }
            Op::Bear(session, bearer) => {
                if self.fence(&session).is_some() {
                    draft.bear(session.user, session.device, bearer);
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
    fn part(&mut self, session: &Session, parting: Parting, draft: &mut Draft<'_, '_>) {
        let device = session.device;
        if parting == Parting::Revoked && draft.writable {
            return draft.leave_nothing_of(session.user, device);
        }
        let Some(after_ms) = draft.view.will_after(device) else { return };
        match parting {
            Parting::Lost => self.lost(device, after_ms, draft.now_ms),
            Parting::Goodbye | Parting::Revoked => self.end_will(device, Fate::Take, draft),
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

    /// Ends the session of a device, and nothing of it counts from here on; nor does what the device left for later.
    fn cut(&mut self, user: UserId, device: DeviceId, draft: &mut Draft<'_, '_>) {
        self.untaken.remove(&device);
        if let Some(fence) = self.fences.remove(&device) {
            draft.effects.push(Effect::Close(fence.outbox, Refusal::connection(Reason::Revoked)));
        }
        draft.leave_nothing_of(user, device);
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
        let (is_done, user) = (answer.is_ok(), session.user);
        draft.effects.push(Effect::Answer(session, conversation, answer));
        if is_done {
            // After the answer, which may be for the very session that ends.
            match cuts {
                Cuts::Nobody => {}
                Cuts::Device(device) => self.cut(user, device, draft),
                Cuts::User(name) => {
                    let Some(user) = draft.view.user_named(&name) else { return };
                    let devices = draft.view.user(user).map_or_else(Vec::new, |row| row.devices.clone());
                    devices.into_iter().for_each(|device| self.cut(user, device, draft));
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
