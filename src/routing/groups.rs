//! What a group says of itself and lets its members do: info and policy, bans, the key with which it is joined, and the
//! users that it was made for.

use std::collections::BTreeSet;

use aws_lc_rs::digest::{SHA256, digest};
use longwire_protocol::limits::{DESCRIPTION_BYTES_MAX, JOIN_KEY_BYTES_MAX, JOIN_KEY_BYTES_MIN, PICTURE_BYTES_MAX};
use longwire_protocol::packet::{self, EntryKind, PublishAck, Role};
use longwire_protocol::reason::Reason;
use longwire_protocol::{ConversationId, UserId};
use xxhash_rust::xxh3::xxh3_128;

use super::change::Change;
use super::draft::{Draft, No, Ticket};
use super::fold::Body;
use super::names::valid_user_name;
use super::outbox::Session;
use super::rows::{Member, Policy};
use super::view::Rows as _;
use crate::mutation::Mutation;

impl Draft<'_, '_> {
    /// The group says something else of itself; its policy is the owner's.
    pub(super) fn set_info(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        id: ConversationId,
        info: Box<packet::Info>,
    ) -> Result<PublishAck, No> {
        self.may_inform(session, id)?;
        let info = valid_info(info)?;
        let policy = self.view.conversation(id).map(|row| row.more.policy).unwrap_or_default();
        let wanted = info.policy.as_ref().map_or_else(Policy::default, Policy::of);
        if wanted.past != policy.past {
            return Err(No(Reason::InvalidArgument, "what is seen of the past is fixed when a group is made"));
        }
        if wanted != policy && self.role(session, id) != Role::Owner {
            return Err(No(Reason::Forbidden, "only the owner sets the policy"));
        }
        let (picture, description) =
            self.view.info(id).map_or(("", ""), |known| (&*known.picture, &*known.description));
        if wanted == policy && info.picture == picture && info.description == description {
            return Ok(self.answered(ticket, id, false));
        }
        Ok(self.inform(session, id, Some(ticket), info))
    }

    /// The entry that says so; with a ticket, as the answer to a publish.
    pub(super) fn inform(
        &mut self,
        session: &Session,
        id: ConversationId,
        ticket: Option<&Ticket>,
        info: Box<packet::Info>,
    ) -> PublishAck {
        let mut entry = packet::Entry { info: Some(info), ..packet::Entry::default() };
        entry.set_kind(EntryKind::Info);
        let body = Body::of_entry(&entry);
        self.publish_entry(session, id, ticket.unwrap_or(&Ticket::default()), entry, &body)
    }

    /// Whether the session may set a group's label, picture and description.
    pub(super) fn may_inform(&self, session: &Session, id: ConversationId) -> Result<(), No> {
        let informs = self.visible(session, id)?.more.policy.informs;
        self.group(session, id, Policy::least(informs, Role::Admin))
    }

    /// Removes a user and keeps it out, or lets it in again.
    pub(super) fn ban(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        id: ConversationId,
        ban: &packet::Ban,
    ) -> Result<PublishAck, No> {
        self.group(session, id, Role::Admin as i32)?;
        valid_user_name(&ban.user)?;
        let Some(user) = self.view.user_named(&ban.user) else {
            return match ban.lift {
                // Nobody was banned; and whether there is such a user is nobody's business.
                true => Ok(self.answered(ticket, id, false)),
                false => {
                    self.may_ban_one_more(id)?;
                    let user = self.create_user(&ban.user);
                    self.change(&Change::BanSet { conversation: id, user, is_banned: true });
                    Ok(self.answered(ticket, id, false))
                }
            };
        };
        if user == session.user {
            return Err(No(Reason::InvalidArgument, "nobody bans oneself; leave instead"));
        }
        let role = self.view.member(id, user).map_or(Role::None, Member::role);
        if role as i32 >= Role::Admin as i32 && self.role(session, id) != Role::Owner {
            return Err(No(Reason::Forbidden, "only the owner decides about admins"));
        }
        if ban.lift == self.view.is_banned(id, user) {
            if !ban.lift {
                self.may_ban_one_more(id)?;
            }
            self.change(&Change::BanSet { conversation: id, user, is_banned: !ban.lift });
        }
        if ban.lift || role == Role::None {
            return Ok(self.answered(ticket, id, false));
        }
        Ok(self.membership(session, id, Some(ticket), user, Role::None))
    }

    fn may_ban_one_more(&self, id: ConversationId) -> Result<(), No> {
        if self.view.bans(id) >= self.view.quotas().bans {
            return Err(No(Reason::QuotaExceeded, "as many users are banned from the group as may be"));
        }
        Ok(())
    }

    /// Whoever has the key may join from here on; none closes the group.
    pub(super) fn set_join_key(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        id: ConversationId,
        key: &[u8],
    ) -> Result<PublishAck, No> {
        self.group(session, id, Role::Admin as i32)?;
        if !key.is_empty() && !(JOIN_KEY_BYTES_MIN..=JOIN_KEY_BYTES_MAX).contains(&key.len()) {
            return Err(No(Reason::InvalidArgument, "a join key has 16 to 64 bytes, or none"));
        }
        let digest = if key.is_empty() { 0 } else { key_digest(key) };
        if self.view.info(id).map_or(0, |info| info.join_key) != digest {
            self.change(&Change::JoinKeySet { conversation: id, digest });
        }
        Ok(self.answered(ticket, id, false))
    }

    /// Joins a group with its key. A wrong key, a closed group and a ban have one answer: that there is no such group.
    pub(super) fn join_group(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        id: ConversationId,
        key: &[u8],
    ) -> Result<PublishAck, No> {
        if self.role(session, id) != Role::None {
            return Ok(self.answered(ticket, id, false));
        }
        let join_key = self.view.info(id).map_or(0, |info| info.join_key);
        let is_right = join_key != 0 && !key.is_empty() && key_digest(key) == join_key;
        let is_banned = self.view.is_banned(id, session.user) && !Mutation::BannedJoins.is_planted();
        if !is_right || is_banned {
            return Err(No(Reason::UnknownConversation, ""));
        }
        self.has_place(session, id, session.user)?;
        Ok(self.membership(session, id, Some(ticket), session.user, Role::Member))
    }

    /// Whether the session may bring this user into a group that is not full.
    pub(super) fn has_place(&self, session: &Session, id: ConversationId, user: UserId) -> Result<(), No> {
        self.has_room(session, user)?;
        if self.view.conversation(id).is_some_and(|row| row.members >= self.view.quotas().members) {
            return Err(No(Reason::QuotaExceeded, "the group has as many members as it may"));
        }
        Ok(())
    }

    /// Whether a new group may have the session's user and these as members.
    pub(super) fn has_places(&self, session: &Session, users: &[String]) -> Result<(), No> {
        let most = self.view.quotas().members as usize;
        if users.len() < most {
            return Ok(());
        }
        let own = self.view.user(session.user).map(|user| &*user.name);
        let named: BTreeSet<&str> = users.iter().map(String::as_str).chain(own).collect();
        if named.len() > most {
            return Err(No(Reason::QuotaExceeded, "the group has as many members as it may"));
        }
        Ok(())
    }

    /// The digest of the session's user and these; `None` where one of them is not known yet.
    pub(super) fn participants(&self, session: &Session, names: &[String]) -> Option<(u128, usize)> {
        let mut users = vec![session.user];
        for name in names {
            users.push(self.view.user_named(name)?);
        }
        users.sort_unstable();
        users.dedup();
        let bytes: Vec<u8> = users.iter().flat_map(|UserId(id)| id.to_le_bytes()).collect();
        Some((xxh3_128(&bytes), users.len()))
    }
}

/// What is kept of a join key: half of its SHA-256, so that who reads the store or a copy of it cannot join by that. A key
/// is long and made by chance (SPEC R7-12): nothing slower is needed.
fn key_digest(key: &[u8]) -> u128 {
    digest(&SHA256, key).as_ref().iter().take(16).fold(0, |sum, byte| sum << 8 | u128::from(*byte))
}

/// Checks what a group says of itself.
pub(super) fn valid_info(info: Box<packet::Info>) -> Result<Box<packet::Info>, No> {
    let is_text = |text: &str| text.chars().all(|c| !c.is_control() || c == '\n');
    if info.picture.len() > PICTURE_BYTES_MAX || info.picture.chars().any(char::is_control) {
        return Err(No(Reason::InvalidArgument, "a picture's reference has at most 1024 bytes, no control characters"));
    }
    if info.description.len() > DESCRIPTION_BYTES_MAX || !is_text(&info.description) {
        const RULE: &str = "a description has at most 1024 bytes, and no control characters but line feeds";
        return Err(No(Reason::InvalidArgument, RULE));
    }
    if let Some(policy) = &info.policy {
        let is_role = |role: i32| Role::try_from(role).is_ok();
        let roles = [policy.publishes, policy.adds, policy.informs];
        if !roles.into_iter().all(is_role) || packet::Past::try_from(policy.past).is_err() {
            return Err(No(Reason::InvalidArgument, "a policy names roles and pasts that there are"));
        }
        // Who only reads decides about nobody.
        if roles.into_iter().any(|role| role == Role::Reader as i32) {
            return Err(No(Reason::InvalidArgument, "readers publish, add and set nothing"));
        }
    }
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The digest is in stores: it stays as it is. By `printf 0123456789abcdef | sha256sum`.
    #[test]
    fn what_is_kept_of_a_join_key_is_half_of_its_sha_256() {
        assert_eq!(key_digest(b"0123456789abcdef"), 0x9f9f_5111_f7b2_7a78_1f1f_1ddd_e5eb_c2dd);
    }
}
