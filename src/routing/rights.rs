//! Who may do what in a conversation, whatever the rows are read from: a draft where that is decided, what is committed
//! where something ephemeral goes by it.

use longwire_protocol::packet::Role;
use longwire_protocol::reason::Reason;
use longwire_protocol::{ConversationId, Seq, UserId};

use super::draft::No;
use super::limits::RECEIPTS_MEMBERS_MAX;
use super::outbox::Session;
use super::rows::{Conversation, Kind, Member, Policy};
use super::view::Rows;
use crate::mutation::Mutation;

/// The conversation, if the session may know of it.
pub(super) fn visible<'a>(rows: &'a impl Rows, session: &Session, id: ConversationId) -> Result<&'a Conversation, No> {
    const UNKNOWN: No = No(Reason::UnknownConversation, "");
    let conversation = rows.conversation(id).ok_or(UNKNOWN)?;
    let member = rows.member(id, session.user).is_some_and(Member::is_active);
    let granted = conversation.kind == Kind::Channel
        && (session.grants.load().read.admit(&conversation.label)
            || session.grants.load().publish.admit(&conversation.label));
    if !member && !granted && Mutation::ForbiddenTells.is_planted() {
        return Err(No(Reason::Forbidden, ""));
    }
    if member || granted { Ok(conversation) } else { Err(UNKNOWN) }
}

/// Whether the session may know of a conversation.
#[must_use]
pub fn is_visible(rows: &impl Rows, session: &Session, id: ConversationId) -> bool {
    visible(rows, session, id).is_ok()
}

/// What a user is in a conversation.
pub(super) fn role(rows: &impl Rows, user: UserId, id: ConversationId) -> Role {
    rows.member(id, user).map_or(Role::None, Member::role)
}

/// Whether the members of a conversation are told of each other's marks (SPEC R6.1-6).
#[must_use]
pub fn tells_marks(conversation: &Conversation) -> bool {
    matches!(conversation.kind, Kind::Direct | Kind::Group)
        && conversation.members <= RECEIPTS_MEMBERS_MAX
        && !conversation.more.policy.hides_marks
}

/// What a user may be told of how far another has read a conversation, and was delivered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tells {
    /// Both, as they are.
    Marks,
    /// What was delivered, whatever the mark: one of the two hides its marks (SPEC R6.1-7).
    Deliveries,
    /// Nothing new: it is blocked. Both are up to here (SPEC R15-5).
    Nothing(Seq),
}

/// What `other` is told of the mark and the deliveries of `user`.
#[must_use]
pub fn tells(rows: &impl Rows, conversation: &Conversation, user: UserId, other: UserId) -> Tells {
    if conversation.kind != Kind::Direct || user == other {
        return Tells::Marks;
    }
    let is_hidden = (rows.hides_marks(user) || rows.hides_marks(other)) && !Mutation::HiddenMarksTold.is_planted();
    let last = rows.refusals(user).and_then(|refuses| refuses.last_mark(other));
    match last.filter(|_| !Mutation::MarksIgnoreBlocks.is_planted()) {
        Some(_) if is_hidden => Tells::Nothing(Seq(0)),
        Some(last) => Tells::Nothing(last),
        None if is_hidden => Tells::Deliveries,
        None => Tells::Marks,
    }
}

/// The conversation, if the session may publish in it.
pub(super) fn may_publish<'a>(
    rows: &'a impl Rows,
    session: &Session,
    id: ConversationId,
) -> Result<&'a Conversation, No> {
    let conversation = visible(rows, session, id)?;
    let may = match conversation.kind {
        Kind::Direct => is_taken_in(rows, session.user, conversation) || Mutation::BlockedMayWrite.is_planted(),
        Kind::Group => {
            let least = Policy::least(conversation.more.policy.publishes, Role::Member);
            role(rows, session.user, id) as i32 >= least
        }
        Kind::Channel => {
            session.grants.load().publish.admit(&conversation.label) || Mutation::PublishIgnoresPatterns.is_planted()
        }
        Kind::Inbox => false,
    };
    if may { Ok(conversation) } else { Err(No(Reason::Forbidden, "the user may not publish here")) }
}

/// Whether what a user does in a conversation is taken from it: in a direct one the other may block it.
pub(super) fn is_taken_in(rows: &impl Rows, user: UserId, conversation: &Conversation) -> bool {
    let (a, b) = conversation.pair;
    let other = if a == user { b } else { a };
    conversation.kind != Kind::Direct || !rows.refuses(other, user)
}
