//! Erasing a user (SPEC 15.4): from the first record on nobody is shown what it published; what is kept of it then goes in
//! steps, each a record, so that a broker that ends in the middle goes on where it was. In the end the files of the store
//! are written anew without it.

use longwire_protocol::packet::{self, EntryKind, PublishAck, Role};
use longwire_protocol::reason::Reason;
use longwire_protocol::{ConversationId, LogTime, Seq, UserId};

use super::account_fold::fold_account;
use super::change::Change;
use super::draft::{Draft, No, Ticket};
use super::fold::Body;
use super::limits::{ERASED_CONTACTS_MAX, ERASED_CONVERSATIONS_MAX, ERASURES_MAX, HEIRS_MAX};
use super::names::valid_user_name;
use super::ops::Effect;
use super::outbox::Session;
use super::push::fold_push_taken;
use super::rows::{Erasure, ErasureStage, Key, Kind, Member, Refuses, Row};
use super::view::{Rows as _, View};
use crate::mutation::Mutation;
use crate::store::{EntryMeta, Position};

/// Folds that a user is erased: it is let in no more, and shows itself to nobody.
pub(super) fn fold_begun(view: &mut View<'_>, user: UserId, position: Position, time: LogTime) {
    view.put(Key::Refuses(user), Some(Row::Refuses(Refuses::default())));
    if !Mutation::ErasedLetIn.is_planted() {
        fold_account(view, user, None, true, true, time);
    }
    view.put(Key::Profile(user), None);
    view.put(Key::Audience(user), None);
    put(view, user, Erasure { stage: ErasureStage::Own, until: position });
}

/// Folds that its devices are gone, and so many of its contacts.
pub(super) fn fold_own_erased(view: &mut View<'_>, user: UserId, contacts: u32) {
    let Some(row) = view.user(user).cloned() else { return };
    for device in &row.devices {
        if let Some(name) = view.device(*device).map(|row| row.name.clone()) {
            view.put(Key::DeviceName(user, name), None);
        }
        view.put(Key::Device(*device), None);
        view.put(Key::Will(*device), None);
        fold_push_taken(view, user, *device);
    }
    let left = row.contacts.saturating_sub(contacts);
    for slot in left..row.contacts {
        if let Some(other) = view.contact_in(user, slot) {
            view.put(Key::Contact(user, other), None);
        }
        view.put(Key::ContactSlot(user, slot), None);
    }
    view.update(Key::User(user), |row| {
        if let Row::User(row) = row {
            row.devices.clear();
            row.contacts = left;
        }
    });
    if left == 0 {
        stage(view, user, ErasureStage::Conversations(ConversationId(0)));
    }
}

/// Folds that it has nothing of its own in these conversations any more.
pub(super) fn fold_erased_in(view: &mut View<'_>, user: UserId, conversations: &[ConversationId]) {
    for id in conversations {
        view.put(Key::Settings(user, *id), None);
        view.put(Key::Personal(user, *id), None);
    }
    if let Some(last) = conversations.last() {
        stage(view, user, ErasureStage::Conversations(*last));
    }
}

/// Folds that nothing of it is left in the state.
pub(super) fn fold_cleared(view: &mut View<'_>, user: UserId, position: Position) {
    view.put(Key::Seen(user), None);
    put(view, user, Erasure { stage: ErasureStage::Files, until: position });
}

/// Folds that nothing of it is left in the files either.
pub(super) fn fold_done(view: &mut View<'_>, user: UserId) {
    stage(view, user, ErasureStage::Done);
}

fn stage(view: &mut View<'_>, user: UserId, stage: ErasureStage) {
    if let Some(erasure) = view.erasure(user) {
        put(view, user, Erasure { stage, ..erasure });
    }
}

fn put(view: &mut View<'_>, user: UserId, erasure: Erasure) {
    view.put(Key::Erasure(user), Some(Row::Erasure(erasure)));
}

impl Draft<'_, '_> {
    /// Begins to erase a user, for an administrator.
    pub(super) fn erase_user(&mut self, session: &Session, ticket: &Ticket, name: &str) -> Result<PublishAck, No> {
        if !session.grants.load().is_admin && !Mutation::AnyoneErases.is_planted() {
            return Err(No(Reason::Forbidden, "only an administrator does this"));
        }
        valid_user_name(name)?;
        let user = self.view.user_named(name).ok_or(No(Reason::InvalidArgument, "there is no such user"))?;
        if self.view.erasure(user).is_none() {
            if self.view.erased().len() >= ERASURES_MAX {
                return Err(No(Reason::QuotaExceeded, "as many users are being erased as may be at once"));
            }
            self.change(&Change::EraseBegun { user });
            self.effects.push(Effect::Shown(user));
        }
        Ok(self.answered(ticket, ConversationId(0), false))
    }

    /// The next step of an erasure. Does nothing while what it has to look at is not at hand.
    pub(super) fn erase_step(&mut self, user: UserId) {
        match self.view.erasure(user).map(|erasure| erasure.stage) {
            Some(ErasureStage::Own) => {
                let contacts = self.view.user(user).map_or(0, |row| row.contacts).min(ERASED_CONTACTS_MAX);
                self.change(&Change::EraseOwn { user, contacts });
            }
            Some(ErasureStage::Conversations(after)) => self.leave_some(user, after),
            Some(ErasureStage::Files | ErasureStage::Done) | None => {}
        }
    }

    /// Nothing of what it published is in the files any more.
    pub(super) fn erase_done(&mut self, user: UserId) {
        if self.view.erasure(user).is_some_and(|erasure| erasure.stage == ErasureStage::Files) {
            self.change(&Change::EraseDone { user });
        }
    }

    fn leave_some(&mut self, user: UserId, after: ConversationId) {
        let cold = self.view.noted();
        let some: Vec<_> = self.view.duties(user).above(after).take(ERASED_CONVERSATIONS_MAX).collect();
        let inbox = self.view.user(user).map_or(ConversationId(0), |row| row.inbox);
        let heirs: Vec<_> = some.iter().map(|id| self.heir(*id, user)).collect();
        if self.view.noted() > cold {
            return;
        }
        if some.is_empty() {
            // What its inbox told its devices is nobody else's.
            if let Some(head) = self.view.conversation(inbox).map(|row| row.head) {
                let (first, countable) = (head.seq.next(), head.countable);
                self.change(&Change::KeptFrom { conversation: inbox, first, countable });
            }
            return self.change(&Change::EraseCleared { user });
        }
        for (id, heir) in some.iter().zip(heirs).filter(|_| !Mutation::ErasedStays.is_planted()) {
            self.leave_for_good(*id, user, heir);
        }
        self.change(&Change::EraseIn { user, conversations: some });
        self.cross();
    }

    fn leave_for_good(&mut self, id: ConversationId, user: UserId, heir: Option<UserId>) {
        if !self.view.member(id, user).is_some_and(Member::is_active) {
            return;
        }
        match self.view.conversation(id).map(|row| row.kind) {
            Some(Kind::Group) => {
                self.role_entry(id, user, user, Role::None);
                if let Some(heir) = heir {
                    self.role_entry(id, user, heir, Role::Owner);
                }
            }
            Some(Kind::Channel) => {
                self.change(&Change::RoleSet { conversation: id, user, role: Role::None as i32 });
            }
            Some(Kind::Direct | Kind::Inbox) | None => {}
        }
    }

    /// Who owns the group of an erased owner from then on: the member with the highest role, among the first thousand.
    fn heir(&self, id: ConversationId, user: UserId) -> Option<UserId> {
        let is_owner = self.view.member(id, user).map(Member::role) == Some(Role::Owner);
        if !is_owner || Mutation::ErasedLeavesNoHeir.is_planted() {
            return None;
        }
        let others = self.view.members(id).iter().copied().take(HEIRS_MAX).filter(|other| *other != user);
        let role = |other: UserId| self.view.member(id, other).filter(|member| member.is_active()).map(Member::role);
        let ranked = others.filter_map(|other| Some((role(other)? as i32, std::cmp::Reverse(other))));
        ranked.max().map(|(_, std::cmp::Reverse(other))| other)
    }

    fn role_entry(&mut self, id: ConversationId, sender: UserId, user: UserId, role: Role) -> Seq {
        let name = self.view.user(user).map_or_else(String::new, |row| row.name.to_string());
        let membership = packet::Membership { user: user.0, name, role: role.into(), banned: false };
        let mut entry = packet::Entry { membership: Some(membership), sender: sender.0, ..packet::Entry::default() };
        entry.set_kind(EntryKind::Membership);
        let meta = EntryMeta { conversation: id, ..EntryMeta::default() };
        self.entry(meta, entry, &Body::Membership { user, role })
    }
}
