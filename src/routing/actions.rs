//! What a session can ask for beside a message: opening and creating conversations, joining and leaving them, roles,
//! labels and marks. Each is one publish with one answer.

use longwire_protocol::packet::{self, EntryKind, PublishAck, Role};
use longwire_protocol::reason::Reason;
use longwire_protocol::{ConversationId, Seq, UserId};
use xxhash_rust::xxh3::xxh3_64;

use super::change::Change;
use super::draft::{Draft, No, Ticket};
use super::fold::{Body, next_id};
use super::groups::valid_info;
use super::limits::GROUP_USERS_MAX;
use super::names::{valid_channel_name, valid_label, valid_user_name};
use super::outbox::Session;
use super::rows::{Counted, Kind, Member, Policy, partition, partition_of_name};
use super::view::Rows as _;
use crate::mutation::Mutation;

impl Draft<'_, '_> {
    pub(super) fn open_direct(&mut self, session: &Session, ticket: &Ticket, name: &str) -> Result<PublishAck, No> {
        valid_user_name(name)?;
        let other = self.view.user_named(name);
        let known = other.and_then(|other| self.view.direct(session.user, other));
        if let Some(conversation) = known {
            return Ok(self.answered(ticket, conversation, true));
        }
        self.has_room(session, session.user)?;
        let other = match other {
            Some(other) => {
                if self.view.refuses(other, session.user) && !Mutation::BlockedMayOpen.is_planted() {
                    return Err(No(Reason::Forbidden, "the user takes nothing from this one"));
                }
                self.has_room(session, other)?;
                other
            }
            None => self.create_user(name),
        };
        let pair = (session.user.min(other), session.user.max(other));
        let key = [pair.0.0.to_le_bytes(), pair.1.0.to_le_bytes()].concat();
        let id = next_id(&self.view, Counted::Conversations, partition(xxh3_64(&key)));
        let conversation = ConversationId(id);
        self.change(&Change::ConversationCreated { conversation, kind: Kind::Direct, label: "".into(), pair });
        Ok(self.answered(ticket, conversation, true))
    }

    pub(super) fn create_group(
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
        let info = valid_info(create.info.unwrap_or_default())?;
        let made_for = create.distinct.then(|| self.participants(session, &create.users)).flatten();
        if let Some(known) = made_for.and_then(|(digest, _)| self.view.participants(digest)) {
            return Ok(self.answered(ticket, known, true));
        }
        self.has_room(session, session.user)?;
        self.has_places(session, &create.users)?;
        let origin = &ticket.origin;
        let key = [origin.device.0, origin.incarnation.0, origin.message_id.0].map(u64::to_le_bytes).concat();
        let conversation = ConversationId(next_id(&self.view, Counted::Conversations, partition(xxh3_64(&key))));
        let label = create.label.into_boxed_str();
        let pair = (UserId(0), UserId(0));
        self.change(&Change::ConversationCreated { conversation, kind: Kind::Group, label, pair });
        if *info != packet::Info::default() {
            self.inform(session, conversation, None, info);
        }
        self.membership(session, conversation, None, session.user, Role::Owner);
        for name in &create.users {
            let user = match self.view.user_named(name) {
                Some(user) => user,
                None => self.create_user(name),
            };
            let is_member = self.view.member(conversation, user).is_some();
            let is_taken = !self.view.refuses(user, session.user) || Mutation::BlockedMayAdd.is_planted();
            if !is_member && is_taken && self.has_room(session, user).is_ok() {
                self.membership(session, conversation, None, user, Role::Member);
            }
        }
        // Users that there were not before, and those that were left out, are known only now.
        let made_for = create.distinct.then(|| self.participants(session, &create.users)).flatten();
        let members = self.view.conversation(conversation).map_or(0, |row| row.members as usize);
        if let Some((digest, users)) = made_for
            && members == users
        {
            self.change(&Change::ParticipantsSet { conversation, digest });
        }
        Ok(self.answered(ticket, conversation, true))
    }

    pub(super) fn open_channel(&mut self, session: &Session, ticket: &Ticket, name: &str) -> Result<PublishAck, No> {
        valid_channel_name(name)?;
        if !session.grants.load().read.admit(name) && !session.grants.load().publish.admit(name) {
            return Err(No(Reason::UnknownConversation, ""));
        }
        if let Some(conversation) = self.view.channel(name) {
            return Ok(self.answered(ticket, conversation, true));
        }
        let conversation = ConversationId(next_id(&self.view, Counted::Conversations, partition_of_name(name)));
        let pair = (UserId(0), UserId(0));
        self.change(&Change::ConversationCreated { conversation, kind: Kind::Channel, label: name.into(), pair });
        Ok(self.answered(ticket, conversation, true))
    }

    pub(super) fn join(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        id: ConversationId,
        key: &[u8],
    ) -> Result<PublishAck, No> {
        if self.view.conversation(id).is_some_and(|conversation| conversation.kind == Kind::Group) {
            return self.join_group(session, ticket, id, key);
        }
        let conversation = self.visible(session, id)?;
        if conversation.kind != Kind::Channel {
            return Err(No(Reason::Forbidden, "only channels and groups are joined"));
        }
        if !session.grants.load().read.admit(&conversation.label) {
            return Err(No(Reason::Forbidden, "the token does not allow to read this channel"));
        }
        if self.role(session, id) == Role::None {
            self.has_room(session, session.user)?;
            self.change(&Change::RoleSet { conversation: id, user: session.user, role: Role::Reader as i32 });
        }
        Ok(self.answered(ticket, id, false))
    }

    pub(super) fn leave(&mut self, session: &Session, ticket: &Ticket, id: ConversationId) -> Result<PublishAck, No> {
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

    pub(super) fn set_role(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        id: ConversationId,
        set: &packet::SetRole,
    ) -> Result<PublishAck, No> {
        self.group(session, id, Role::Reader as i32)?;
        valid_user_name(&set.user)?;
        let role = Role::try_from(set.role).map_err(|_| No(Reason::InvalidArgument, "no such role"))?;
        let own = self.role(session, id);
        let user = self.view.user_named(&set.user);
        let was = user.and_then(|u| self.view.member(id, u)).map_or(Role::None, Member::role);
        // An admin decides about members; what concerns admins and owners is the owner's.
        let highest = was.max_with(role);
        let is_owners = highest as i32 >= Role::Admin as i32 && !Mutation::AdminsDecideAll.is_planted();
        if own != Role::Owner && is_owners {
            return Err(No(Reason::Forbidden, "only the owner decides about admins"));
        }
        // Whom one may add, one may not yet promote or remove.
        let adds = was == Role::None && role != Role::None;
        let policy = self.view.conversation(id).map(|row| row.more.policy).unwrap_or_default();
        let least = if adds { Policy::least(policy.adds, Role::Admin) } else { Role::Admin as i32 };
        if (own as i32) < least {
            return Err(No(Reason::Forbidden, "the role does not allow it"));
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
            if self.view.is_banned(id, user) {
                return Err(No(Reason::Forbidden, "the user is banned; lift that first"));
            }
            if self.view.refuses(user, session.user) && !Mutation::BlockedMayAdd.is_planted() {
                return Err(No(Reason::Forbidden, "the user takes nothing from this one"));
            }
            self.has_place(session, id, user)?;
        }
        if role == Role::Owner {
            // There is one owner: who makes another one becomes an admin.
            self.membership(session, id, None, session.user, Role::Admin);
        }
        Ok(self.membership(session, id, Some(ticket), user, role))
    }

    pub(super) fn set_label(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        id: ConversationId,
        label: String,
    ) -> Result<PublishAck, No> {
        self.may_inform(session, id)?;
        valid_label(&label)?;
        if self.view.conversation(id).is_some_and(|row| *row.label == label) {
            return Ok(self.answered(ticket, id, false));
        }
        let mut entry = packet::Entry { label: label.clone(), ..packet::Entry::default() };
        entry.set_kind(EntryKind::Label);
        Ok(self.publish_entry(session, id, ticket, entry, &Body::Label(label.into())))
    }

    pub(super) fn set_mark(
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
        // A conversation that is shown as unread is so until the next mark, be it the same.
        let is_shown_unread =
            self.view.settings(session.user, id).is_some_and(|settings| settings.marked_unread > member.mark_position);
        if seq > member.mark || is_shown_unread {
            self.change(&Change::MarkSet { user: session.user, conversation: id, seq, countable });
        }
        Ok(self.answered(ticket, id, false))
    }
}

trait MaxWith {
    fn max_with(self, other: Self) -> Self;
}

impl MaxWith for Role {
    fn max_with(self, other: Self) -> Self {
        if other as i32 > self as i32 { other } else { self }
    }
}
