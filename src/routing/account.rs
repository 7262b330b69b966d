//! What users change about themselves: profile, contacts, whom they block, their devices; and what an administrator
//! changes about accounts. Each is one publish. What concerns oneself is an entry in one's own inbox, which tells the
//! other devices, and whose fold is the change.

use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, DeviceChangeKind, EntryKind, PublishAck};
use longwire_protocol::reason::Reason;
use longwire_protocol::{ConversationId, DeviceId, UserId};

use super::change::Change;
use super::draft::{Draft, No, Ticket};
use super::fold::Body;
use super::grants::Bearer;
use super::limits::{
    BLOCKED_MAX, CONTACT_DATA_BYTES_MAX, DEVICE_UNSEEN_MS, DISPLAY_NAME_BYTES_MAX, NICK_BYTES_MAX,
    PROFILE_DATA_BYTES_MAX, PROFILE_PICTURE_BYTES_MAX, SEEN_EVERY_MS,
};
use super::names::{valid_label, valid_user_name};
use super::ops::Effect;
use super::outbox::Session;
use super::rows::{Profile, Secret};
use super::view::Rows as _;
use crate::mutation::Mutation;
use crate::store::{EntryMeta, Position};

/// Whether a publish is about its own user: it names no conversation, and its entry stands in that user's inbox.
#[must_use]
pub fn is_own(action: Option<&Action>) -> bool {
    matches!(
        action,
        Some(
            Action::SetProfile(_)
                | Action::SetContact(_)
                | Action::Block(_)
                | Action::NameDevice(_)
                | Action::RevokeDevice(_)
        )
    )
}

/// The longest hash of a password, in the PHC string format.
const HASH_BYTES_MAX: usize = 256;

impl Draft<'_, '_> {
    pub(super) fn set_profile(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        set: packet::SetProfile,
    ) -> Result<PublishAck, No> {
        let profile = set.profile.unwrap_or_default();
        is_text(&profile.display_name, DISPLAY_NAME_BYTES_MAX)?;
        is_text(&profile.picture, PROFILE_PICTURE_BYTES_MAX)?;
        fits(profile.data.len(), PROFILE_DATA_BYTES_MAX)?;
        let row = Profile {
            display_name: profile.display_name.as_str().into(),
            picture: profile.picture.as_str().into(),
            data: profile.data.to_vec().into(),
        };
        if self.view.profile(session.user).unwrap_or(&Profile::default()) == &row {
            return Ok(self.own_unchanged(session, ticket));
        }
        let entry = own_entry(EntryKind::Profile);
        let entry = packet::Entry { profile: Some(profile), ..entry };
        Ok(self.own(session, ticket, entry, &Body::Profile(row)))
    }

    pub(super) fn set_contact(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        set: packet::SetContact,
    ) -> Result<PublishAck, No> {
        is_text(&set.nick, NICK_BYTES_MAX)?;
        fits(set.data.len(), CONTACT_DATA_BYTES_MAX)?;
        let other = match self.named(session, &set.user, set.remove)? {
            Some(other) => other,
            None => return Ok(self.own_unchanged(session, ticket)),
        };
        let known = self.view.contact(session.user, other);
        let is_same = match known {
            Some(contact) => !set.remove && *contact.nick == set.nick && contact.data[..] == set.data[..],
            None => set.remove,
        };
        if is_same {
            return Ok(self.own_unchanged(session, ticket));
        }
        let most = self.view.quotas().contacts;
        if known.is_none() && self.view.user(session.user).is_some_and(|user| user.contacts >= most) {
            return Err(No(Reason::QuotaExceeded, "the user has as many contacts as it may"));
        }
        let comes_or_goes = known.is_none() != set.remove;
        let (nick, data) = if set.remove { Default::default() } else { (set.nick, set.data) };
        let body =
            Body::Contact { other, nick: nick.as_str().into(), data: data.to_vec().into(), is_removed: set.remove };
        let contact = packet::Contact { user: other.0, name: set.user, nick, data, removed: set.remove };
        let entry = packet::Entry { contact: Some(contact), ..own_entry(EntryKind::Contact) };
        if comes_or_goes && self.view.audience(session.user) == packet::Audience::Contacts {
            self.effects.push(Effect::Shown(session.user));
        }
        Ok(self.own(session, ticket, entry, &body))
    }

    pub(super) fn block(&mut self, session: &Session, ticket: &Ticket, block: packet::Block) -> Result<PublishAck, No> {
        let other = match self.named(session, &block.user, block.undo)? {
            Some(other) => other,
            None => return Ok(self.own_unchanged(session, ticket)),
        };
        if self.view.blocks(session.user, other) != block.undo {
            return Ok(self.own_unchanged(session, ticket));
        }
        let blocked = self.view.refusals(session.user).map_or(0, |refuses| refuses.users.len());
        if !block.undo && blocked >= BLOCKED_MAX {
            return Err(No(Reason::QuotaExceeded, "the user blocks as many as it may"));
        }
        if !block.undo && !Mutation::BlockedIsShown.is_planted() {
            self.effects.push(Effect::Hidden(session.user, other));
        }
        let blocked = packet::Blocked { user: other.0, name: block.user, undone: block.undo };
        let entry = packet::Entry { blocked: Some(blocked), ..own_entry(EntryKind::Blocked) };
        Ok(self.own(session, ticket, entry, &Body::Blocked { other, is_undone: block.undo }))
    }

    /// The user's marks are its own in direct conversations, or no longer.
    pub(super) fn hide_marks(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        hide: packet::HideMarks,
    ) -> Result<PublishAck, No> {
        let (user, is_hidden) = (session.user, !hide.undo);
        if self.view.hides_marks(user) != is_hidden {
            self.change(&Change::MarksHidden { user, is_hidden });
        }
        Ok(self.answered(ticket, ConversationId(0), false))
    }

    pub(super) fn name_device(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        name: packet::NameDevice,
    ) -> Result<PublishAck, No> {
        valid_label(&name.label)?;
        let device = DeviceId(name.device);
        if *self.own_device(session, device)?.label == name.label {
            return Ok(self.own_unchanged(session, ticket));
        }
        let (entry, body) = self.device_change(device, DeviceChangeKind::DeviceNamed, Some(name.label));
        Ok(self.own(session, ticket, entry, &body))
    }

    pub(super) fn revoke_device(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        device: DeviceId,
    ) -> Result<PublishAck, No> {
        self.own_device(session, device)?;
        let (entry, body) = self.device_change(device, DeviceChangeKind::DeviceRevoked, None);
        Ok(self.own(session, ticket, entry, &body))
    }

    pub(super) fn set_account(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        set: packet::SetAccount,
    ) -> Result<PublishAck, No> {
        if !session.grants.load().is_admin {
            return Err(No(Reason::Forbidden, "only an administrator does this"));
        }
        valid_user_name(&set.user)?;
        if set.password_hash.len() > HASH_BYTES_MAX || (set.close && !set.password_hash.is_empty()) {
            return Err(No(Reason::InvalidArgument, "no hash of a password"));
        }
        let user = match self.view.user_named(&set.user) {
            Some(user) => user,
            None => self.create_user(&set.user),
        };
        let password = (!set.password_hash.is_empty()).then(|| Secret(set.password_hash.into()));
        if self.view.erasure(user).is_some() {
            return Err(No(Reason::Forbidden, "the user was erased, and its name is nobody's any more"));
        }
        self.change(&Change::AccountSet { user, password, is_closed: set.close, cuts: true });
        if set.close {
            self.effects.push(Effect::Shown(user));
        }
        Ok(self.answered(ticket, ConversationId(0), false))
    }

    /// The user of this name, who is made unless something is to be `undone`; nobody changes what it is to itself.
    fn named(&mut self, session: &Session, name: &str, undone: bool) -> Result<Option<UserId>, No> {
        valid_user_name(name)?;
        match self.view.user_named(name) {
            Some(user) if user == session.user => Err(No(Reason::InvalidArgument, "this is the user itself")),
            Some(user) => Ok(Some(user)),
            None if undone => Ok(None),
            None => Ok(Some(self.create_user(name))),
        }
    }

    fn own_device(&self, session: &Session, device: DeviceId) -> Result<&super::rows::Device, No> {
        let row = self.view.device(device).filter(|row| row.user == session.user && !row.is_gone);
        row.ok_or(No(Reason::InvalidArgument, "the user has no such device"))
    }

    fn device_change(&self, device: DeviceId, kind: DeviceChangeKind, label: Option<String>) -> (packet::Entry, Body) {
        let row = self.view.device(device);
        let label = label.unwrap_or_else(|| row.map_or_else(String::new, |row| row.label.to_string()));
        let name = row.map_or_else(String::new, |row| row.name.to_string());
        let body = Body::Device { device, label: label.as_str().into(), kind };
        let change = packet::DeviceChange { device: device.0, name, label, kind: kind.into() };
        (packet::Entry { device: Some(change), ..own_entry(EntryKind::Device) }, body)
    }

    /// Tells a user's inbox about one of its devices, by nobody's publish.
    pub(super) fn tell_device(&mut self, user: UserId, device: DeviceId, kind: DeviceChangeKind) {
        let Some(inbox) = self.view.user(user).map(|row| row.inbox) else { return };
        let (entry, body) = self.device_change(device, kind, None);
        self.entry(EntryMeta { conversation: inbox, ..EntryMeta::default() }, entry, &body);
    }

    /// A device whose right was taken back has no will any more, and is told nothing, whether it is there or not.
    pub(super) fn leave_nothing_of(&mut self, user: UserId, device: DeviceId) {
        if self.view.will_after(device).is_some() && !Mutation::CutLeavesWill.is_planted() {
            self.change(&Change::WillTaken { device });
        }
        if self.view.is_told(user, device) && !Mutation::CutLeavesPush.is_planted() {
            self.change(&Change::PushTaken { user, device });
            self.effects.push(Effect::PushSet(user, device, false));
        }
    }

    /// A device that has left something came with this token, or was refreshed by it.
    pub(super) fn bear(&mut self, user: UserId, device: DeviceId, bearer: Bearer) {
        let has_left = self.view.will_after(device).is_some() || self.view.is_told(user, device);
        if self.writable && has_left && self.view.bearer(user, device) != Some(&bearer) {
            let change = Change::Borne { user, device, bearer };
            self.frame.push_rider(|out| change.encode(out));
            super::fold::fold_change(&mut self.view, Position(0), self.frame.time(), &change);
        }
    }

    /// Those devices of a user that were not seen for so long that they are forgotten, but for those that are `online`.
    pub(super) fn expired_devices(&self, user: UserId, online: impl Fn(DeviceId) -> bool) -> Vec<DeviceId> {
        let now = self.frame.time();
        let Some(user) = self.view.user(user) else { return Vec::new() };
        let is_expired = |device: &DeviceId| {
            let unseen = self.view.device(*device).map_or(0, |row| now.0.saturating_sub(row.seen.0));
            unseen > DEVICE_UNSEEN_MS && !online(*device)
        };
        user.devices.iter().copied().filter(is_expired).collect()
    }

    /// A device is seen now: a record of it rides along, unless there is one that is new enough.
    pub(super) fn see_device(&mut self, device: DeviceId) {
        let is_due = self.view.device(device).is_some_and(|row| self.frame.time().0 >= row.seen.0 + SEEN_EVERY_MS);
        if self.writable && is_due {
            let change = Change::DeviceSeen { device };
            self.frame.push_rider(|out| change.encode(out));
            super::fold::fold_change(&mut self.view, Position(0), self.frame.time(), &change);
        }
    }

    fn own(&mut self, session: &Session, ticket: &Ticket, entry: packet::Entry, body: &Body) -> PublishAck {
        let inbox = self.inbox(session);
        let ack = self.publish_entry(session, inbox, ticket, entry, body);
        PublishAck { conversation: inbox.0, ..ack }
    }

    fn own_unchanged(&mut self, session: &Session, ticket: &Ticket) -> PublishAck {
        let inbox = self.inbox(session);
        let ack = self.answered(ticket, inbox, false);
        PublishAck { conversation: inbox.0, ..ack }
    }

    fn inbox(&self, session: &Session) -> ConversationId {
        self.view.user(session.user).map_or(ConversationId(0), |row| row.inbox)
    }
}

fn own_entry(kind: EntryKind) -> packet::Entry {
    packet::Entry { kind: kind.into(), ..packet::Entry::default() }
}

fn is_text(text: &str, bytes_max: usize) -> Result<(), No> {
    fits(text.len(), bytes_max)?;
    if text.chars().any(char::is_control) {
        return Err(No(Reason::InvalidArgument, "what is shown has no control characters"));
    }
    Ok(())
}

fn fits(bytes: usize, bytes_max: usize) -> Result<(), No> {
    if bytes > bytes_max {
        return Err(No(Reason::InvalidArgument, "a field is longer than it may be"));
    }
    Ok(())
}
