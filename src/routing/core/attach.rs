//! A device comes: whether it may, what is made for it, and which session it takes over. Everything that can be refused is
//! refused before anything is drafted, or the older session touched.

use std::sync::Arc;

use arc_swap::ArcSwap;
use longwire_protocol::packet::{Connected, DeviceChangeKind};
use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::session::OpenRefusals;
use longwire_protocol::{DeviceId, Incarnation, LogTime, MessageId, UserId};

use super::{Core, Fence};
use crate::mutation::Mutation;
use crate::routing::change::Change;
use crate::routing::draft::Draft;
use crate::routing::fold::next_id;
use crate::routing::limits::{TAKEOVER_WINDOW_MS, TAKEOVERS_MAX};
use crate::routing::ops::{Attach, Effect, Proof};
use crate::routing::outbox::{Attached, Generation, Session};
use crate::routing::rows::{Counted, Device, Key, partition};
use crate::routing::view::{Rows as _, View};
use crate::routing::wills::Fate;

impl Core {
    pub(super) fn attach(&mut self, attach: Attach, draft: &mut Draft<'_, '_>) {
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
        let most = draft.view.quotas().devices;
        if is_new && devices.saturating_sub(expired.len()) >= most {
            let refusal = Refusal::connection(Reason::QuotaExceeded);
            return Err(refusal.because(format!("the user has {most} devices, as many as it may")));
        }
        if attach.incarnation.0 == u64::MAX {
            let refusal = Refusal::connection(Reason::InvalidArgument);
            return Err(refusal.because("no incarnation can follow this one"));
        }
        let incarnation = if attach.incarnation.is_some() { attach.incarnation } else { stored.next() };
        // Whoever gets a new incarnation begins at 1, whatever was said of an older one.
        let told = match attach.incarnation.is_some() && !Mutation::WindowNotRestored.is_planted() {
            true => attach.first_unanswered,
            false => MessageId(1),
        };
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
            Some(_) => (1, draft.now_ms),
            None => (0, draft.now_ms),
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
        devices.into_iter().filter(|other| *other != device).for_each(|other| self.cut(user, other, draft));
    }
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
