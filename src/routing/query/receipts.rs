//! How far the members of a conversation have read, and what was delivered to them.

use longwire_protocol::packet;
use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::{ConversationId, Seq, UserId};

use super::{has_part, page_of_members};
use crate::routing::deliveries::{heard, of_hidden};
use crate::routing::outbox::Session;
use crate::routing::registry::Registry;
use crate::routing::rights::{Tells, tells, tells_marks};
use crate::routing::rows::{Head, Kind, Member};
use crate::routing::view::{Reader, Rows as _};
use crate::store::Position;

/// What is told of one member.
#[derive(Debug)]
pub struct Receipt {
    /// Who.
    pub user: UserId,
    /// How far it has read; 0 where that is hidden.
    pub mark: Seq,
    /// As far as this it was delivered in any case.
    pub least: Seq,
    /// Up to where it acked; nothing where that is not told.
    pub heard: Option<Position>,
}

/// A page of members, as far as rows tell.
#[derive(Debug)]
pub struct Read {
    /// The conversation's.
    pub head: Head,
    /// By rising user id.
    pub users: Vec<Receipt>,
    /// `after_user` of the next page; 0 where there is none.
    pub next: u64,
}

/// How far the members of a conversation have read, that the session's user is in.
///
/// # Errors
/// *unknown conversation* where it is not, *forbidden* in a channel: its readers do not know of each other; also where marks
/// are hidden from the user, or from everybody and it wants to follow them.
pub fn receipts(
    rows: &Reader<'_>,
    registry: &Registry,
    session: &Session,
    request: &packet::ReceiptsRequest,
) -> Result<Read, Refusal> {
    let id = ConversationId(request.conversation);
    has_part(rows, session, id)?;
    let unknown = || Refusal::connection(Reason::UnknownConversation);
    let conversation = rows.conversation(id).ok_or_else(unknown)?;
    if !matches!(conversation.kind, Kind::Direct | Kind::Group) {
        return Err(Refusal::connection(Reason::Forbidden).because("who reads a channel is told to nobody"));
    }
    let is_admin = |own: &Member| own.role >= packet::Role::Admin as i32;
    if conversation.more.policy.hides_marks && !rows.member(id, session.user).is_some_and(is_admin) {
        return Err(Refusal::connection(Reason::Forbidden).because("this group hides who has read what"));
    }
    if request.follow && !tells_marks(conversation) {
        return Err(Refusal::connection(Reason::Forbidden).because("marks here reach nobody by themselves"));
    }
    let is_express = conversation.kind.is_express();
    let (users, next) = page_of_members(rows, id, request.after_user, request.limit, |user, member| {
        let heard = || Some(heard(rows, registry, user, is_express));
        match tells(rows, conversation, user, session.user) {
            Tells::Marks => Receipt { user, mark: member.mark, least: member.mark, heard: heard() },
            Tells::Deliveries => Receipt { user, mark: Seq(0), least: of_hidden(member.mark), heard: heard() },
            Tells::Nothing(mark) => Receipt { user, mark, least: mark, heard: None },
        }
    });
    Ok(Read { head: conversation.head, users, next })
}
