//! Reads that a client asks for: pages of history, conversations, members, marks, users. They change nothing.

mod conversations;
mod history;
mod receipts;

use std::ops::Bound;

use longwire_protocol::packet;
use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::{ConversationId, UserId};

use super::limits::PAGE_ITEMS_MAX;
use super::outbox::Session;
use super::rows::Member;
use super::view::{Reader, Rows as _};
use crate::mutation::Mutation;

pub use conversations::{conversations, unread_total};
pub use history::{Page, Visible, history};
pub use receipts::{Read, Receipt, receipts};

/// The members of a conversation that the session's user is in.
///
/// # Errors
/// *unknown conversation* where it is not.
pub fn members(
    rows: &Reader<'_>,
    session: &Session,
    request: &packet::MembersRequest,
) -> Result<packet::MembersPage, Refusal> {
    let id = ConversationId(request.conversation);
    has_part(rows, session, id)?;
    let (members, next) = page_of_members(rows, id, request.after_user, request.limit, |user, member| packet::Member {
        user: user.0,
        name: name(rows, user),
        role: member.role,
    });
    Ok(packet::MembersPage { members, next })
}

fn has_part(rows: &Reader<'_>, session: &Session, id: ConversationId) -> Result<(), Refusal> {
    let is_member = rows.member(id, session.user).is_some_and(Member::is_active);
    if is_member || Mutation::MembersIgnoreRights.is_planted() {
        return Ok(());
    }
    Err(Refusal::connection(Reason::UnknownConversation))
}

/// A page of who is in a conversation now, by rising user id, and `after_user` of the next one; 0 where there is none.
fn page_of_members<T>(
    rows: &Reader<'_>,
    id: ConversationId,
    after_user: u64,
    limit: u32,
    mut show: impl FnMut(UserId, &Member) -> T,
) -> (Vec<T>, u64) {
    let limit = (limit as usize).clamp(1, PAGE_ITEMS_MAX);
    let (mut page, mut last, mut cold) = (Vec::new(), 0, 0);
    for user in rows.members(id).range((Bound::Excluded(UserId(after_user)), Bound::Unbounded)) {
        let before = rows.cold();
        let member = rows.member(id, *user);
        if rows.cold() > before {
            // It may be one of the page: no more than a page is loaded at a time.
            cold += 1;
        } else if let Some(member) = member.filter(|member| member.is_active()) {
            if page.len() + cold == limit {
                return (page, last);
            }
            page.push(show(*user, member));
            last = user.0;
        }
        if cold > limit {
            break;
        }
    }
    (page, 0)
}

/// Whether the session's user shares a conversation with another: then the other as it is to be told. Costs a walk over
/// all conversations of the one that is in fewer.
#[must_use]
pub fn user(rows: &Reader<'_>, session: &Session, user: UserId) -> Option<packet::Member> {
    shares(rows, session.user, user).then(|| packet::Member { user: user.0, name: name(rows, user), role: 0 })
}

/// Whether two users are in one conversation, seen from the one that is in fewer.
pub(super) fn shares(rows: &Reader<'_>, asking: UserId, other: UserId) -> bool {
    let (own, others) = (rows.duties(asking), rows.duties(other));
    let (fewer, another) = if own.len() <= others.len() { (own, other) } else { (others, asking) };
    asking == other
        || Mutation::UsersIgnoreRights.is_planted()
        || fewer.iter().filter(|(_, duty)| !duty.closed).any(|(id, _)| {
            let member = rows.member(id, another);
            member.is_some_and(Member::is_active)
        })
}

fn name(rows: &Reader<'_>, user: UserId) -> String {
    rows.user(user).map_or_else(String::new, |row| row.name.to_string())
}
