//! What a session may do to messages: what stands beside a new one, and editing, recalling, hiding and reacting to
//! earlier ones. What an earlier message is was looked up before the commit thread came to it.

use longwire_protocol::packet::{self, EntryKind, PublishAck, Role};
use longwire_protocol::reason::Reason;
use longwire_protocol::{ConversationId, LogTime, Seq, UserId};
use prost::Message as _;

use super::alteration::withheld;
use super::draft::{Draft, No, Ticket};
use super::fold::Body;
use super::limits::{
    ATTACHMENTS_BYTES_MAX, EDITS_MAX, EXPIRES_MS_MAX, EXPIRING_MAX, HIDDEN_MAX, REACTION_BYTES_MAX, REACTIONS_MAX,
};
use super::ops::Target;
use super::outbox::Session;
use super::rights;
use super::rows::{Kind, Member};
use super::view::Rows as _;
use crate::mutation::Mutation;
use crate::store::{EntryMeta, Position};

const NO_MESSAGE: No = No(Reason::InvalidArgument, "there is no such message to be seen");

impl Draft<'_, '_> {
    /// A message, with what stands beside it.
    pub(super) fn message(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        publish: packet::Publish,
    ) -> Result<PublishAck, No> {
        let id = ConversationId(publish.conversation);
        self.may_publish(session, id)?;
        let mut entry = packet::Entry { content: publish.content, ..packet::Entry::default() };
        let Some(mut beside) = publish.beside else {
            let body = Body::Message { sender: session.user, mentions: Vec::new(), expires: LogTime(0) };
            return Ok(self.publish_entry(session, id, ticket, entry, &body));
        };
        valid_attachments(&beside)?;
        let head = self.view.conversation(id).map_or(Seq(0), |row| row.head.seq);
        if beside.reply_to > head.0 {
            return Err(No(Reason::InvalidArgument, "reply_to lies above the head"));
        }
        if beside.expires_in_ms > EXPIRES_MS_MAX {
            return Err(No(Reason::InvalidArgument, "a message is shown for a year at most"));
        }
        if beside.expires_in_ms > 0 {
            let pending = self.view.uncounted(id).map_or(0, |row| row.expiring_after(self.frame.time()));
            if pending >= EXPIRING_MAX {
                return Err(No(Reason::QuotaExceeded, "too many messages of this conversation are yet to expire"));
            }
            entry.expires = self.frame.time().0 + std::mem::take(&mut beside.expires_in_ms);
        }
        let mentions = each_once(&mut beside);
        entry.beside = (*beside != packet::Beside::default()).then_some(beside);
        let body = Body::Message { sender: session.user, mentions, expires: LogTime(entry.expires) };
        let ack = self.publish_entry(session, id, ticket, entry, &body);
        self.cross();
        Ok(ack)
    }

    /// Another content for an own message.
    pub(super) fn edit(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        publish: packet::Publish,
        target: Option<Target>,
    ) -> Result<PublishAck, No> {
        let (id, seq) = target_of(&publish);
        self.may_publish(session, id)?;
        let target = self.shown(session, id, seq, target)?;
        if target.sender != session.user && !Mutation::AnyoneEdits.is_planted() {
            return Err(No(Reason::Forbidden, "only who sent a message edits it"));
        }
        let mut beside = publish.beside.unwrap_or_default();
        if beside.expires_in_ms > 0 || beside.reply_to > 0 || beside.forwarded {
            return Err(No(Reason::InvalidArgument, "an edit changes neither the expiry nor what is answered"));
        }
        valid_attachments(&beside)?;
        let altered = self.view.altered(id, seq);
        if altered.is_some_and(|altered| altered.edits.len() >= EDITS_MAX) {
            return Err(No(Reason::QuotaExceeded, "the message was edited as often as one may be"));
        }
        let mut entry = packet::Entry { content: publish.content, edit: seq.0, ..packet::Entry::default() };
        entry.expires = altered.map_or(0, |altered| altered.expires.0);
        entry.set_kind(EntryKind::Edit);
        each_once(&mut beside);
        entry.beside = (*beside != packet::Beside::default()).then_some(beside);
        entry.sender = session.user.0;
        let body = Body::of_entry(&entry);
        Ok(self.publish_entry(session, id, ticket, entry, &body))
    }

    /// Takes a message from everybody's sight.
    pub(super) fn recall(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        publish: &packet::Publish,
        target: Option<Target>,
    ) -> Result<PublishAck, No> {
        let (id, seq) = target_of(publish);
        let kind = self.visible(session, id)?.kind;
        // By the state alone: of what else became of it nothing may be left in the log.
        let is_recalled = self.view.altered(id, seq).is_some_and(|altered| altered.is_recalled);
        if is_recalled && self.sees(session, id, seq) {
            return Ok(self.answered(ticket, id, false));
        }
        let target = self.shown(session, id, seq, target)?;
        let may_recall_all = self.may_recall_all(session, id);
        if target.sender != session.user && !may_recall_all {
            return Err(No(Reason::Forbidden, "only who sent a message, an admin, or who moderates recalls it"));
        }
        let within = self.view.conversation(id).map_or(0, |row| row.more.policy.recall_within_ms);
        if within > 0 && !may_recall_all && self.frame.time().0 > target.time.0.saturating_add(within) {
            return Err(No(Reason::Forbidden, "the time in which one may recall is over"));
        }
        // In a group who may not publish takes back nothing either.
        if kind == Kind::Group && !may_recall_all {
            self.may_publish(session, id)?;
        } else if !may_recall_all {
            self.may_speak(session, id)?;
        }
        let recall = packet::Recalled { seq: seq.0, countable: target.countable };
        let mut entry = packet::Entry { recall: Some(recall), ..packet::Entry::default() };
        entry.set_kind(EntryKind::Recall);
        let body = Body::of_entry(&entry);
        Ok(self.publish_entry(session, id, ticket, entry, &body))
    }

    /// Whether the session recalls what others said in a conversation: it looks after a group, or moderates a channel.
    fn may_recall_all(&self, session: &Session, id: ConversationId) -> bool {
        let Some(conversation) = self.view.conversation(id) else { return false };
        match conversation.kind {
            Kind::Group => self.role(session, id) as i32 >= Role::Admin as i32,
            Kind::Channel => {
                session.grants.load().moderates(&conversation.label) || Mutation::AnyoneModerates.is_planted()
            }
            Kind::Direct | Kind::Inbox => false,
        }
    }

    /// Gives the user's one reaction to a message, or takes it back.
    pub(super) fn react(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        publish: &packet::Publish,
        react: packet::React,
        target: Option<Target>,
    ) -> Result<PublishAck, No> {
        let (id, seq) = target_of(publish);
        self.may_speak(session, id)?;
        // What one gave is taken back also from who takes nothing.
        if !react.reaction.is_empty() && !Mutation::BlockedMayReact.is_planted() {
            self.is_taken(session, id)?;
        }
        self.shown(session, id, seq, target)?;
        if react.reaction.len() > REACTION_BYTES_MAX || react.reaction.chars().any(char::is_control) {
            return Err(No(Reason::InvalidArgument, "a reaction has at most 32 bytes and no control characters"));
        }
        if self.view.reaction(id, seq, session.user).unwrap_or_default() == react.reaction {
            return Ok(self.answered(ticket, id, false));
        }
        let given = self.view.altered(id, seq).map_or(&[][..], |altered| &altered.reactions);
        let is_new = !react.reaction.is_empty() && given.iter().all(|(known, _)| **known != *react.reaction);
        if is_new && given.len() >= REACTIONS_MAX {
            return Err(No(Reason::QuotaExceeded, "the message has as many different reactions as one may have"));
        }
        let mut entry = packet::Entry { reaction: Some(react), sender: session.user.0, ..packet::Entry::default() };
        entry.set_kind(EntryKind::Reaction);
        let body = Body::of_entry(&entry);
        Ok(self.publish_entry(session, id, ticket, entry, &body))
    }

    /// Takes a message from the user's own sight, or gives it back.
    pub(super) fn hide(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        publish: &packet::Publish,
        hide: packet::Hide,
        target: Option<Target>,
    ) -> Result<PublishAck, No> {
        let (id, seq) = target_of(publish);
        self.has_part(session, id)?;
        let target = self.shown(session, id, seq, target)?;
        let hidden = self.view.personal(session.user, id).map_or(&[][..], |personal| &personal.hidden);
        if hidden.binary_search_by_key(&seq, |(hidden, _)| *hidden).is_ok() != hide.undo {
            return Ok(self.own_inbox_unchanged(session, ticket, id));
        }
        if !hide.undo && hidden.len() >= HIDDEN_MAX {
            return Err(No(Reason::QuotaExceeded, "the user hides as many messages of this conversation as it may"));
        }
        let hidden = packet::Hidden { conversation: id.0, seq: seq.0, undo: hide.undo, countable: target.countable };
        let mut entry = packet::Entry { hidden: Some(hidden), ..packet::Entry::default() };
        entry.set_kind(EntryKind::Hidden);
        Ok(self.tell_own_inbox(session, ticket, entry))
    }

    /// What a user sets for a conversation, on all devices.
    pub(super) fn set_settings(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        id: ConversationId,
        settings: packet::Settings,
    ) -> Result<PublishAck, No> {
        self.has_part(session, id)?;
        let mark = self.view.member(id, session.user).map_or(Position(0), |member| member.mark_position);
        let known = self.view.settings(session.user, id).map(|known| known.wire(mark)).unwrap_or_default();
        if known == settings {
            return Ok(self.own_inbox_unchanged(session, ticket, id));
        }
        let settings = packet::Settled { conversation: id.0, settings: Some(settings) };
        let mut entry = packet::Entry { settings: Some(settings), ..packet::Entry::default() };
        entry.set_kind(EntryKind::Settings);
        Ok(self.tell_own_inbox(session, ticket, entry))
    }

    fn tell_own_inbox(&mut self, session: &Session, ticket: &Ticket, entry: packet::Entry) -> PublishAck {
        let inbox = self.view.user(session.user).map_or(ConversationId(0), |user| user.inbox);
        let body = Body::of_entry(&entry);
        self.publish_entry(session, inbox, ticket, entry, &body)
    }

    /// The answer to what would be told to the own inbox of a conversation, and changes nothing.
    fn own_inbox_unchanged(&mut self, session: &Session, ticket: &Ticket, named: ConversationId) -> PublishAck {
        let inbox = self.view.user(session.user).and_then(|user| self.view.conversation(user.inbox));
        let head = inbox.map_or(Seq(0), |inbox| inbox.head.seq);
        self.answered_with(ticket, named, head, false)
    }

    /// Whether the session's user is in a conversation now: as a member, as one of the two, as a joined reader.
    pub(super) fn has_part(&self, session: &Session, id: ConversationId) -> Result<(), No> {
        self.visible(session, id)?;
        if self.view.member(id, session.user).is_some_and(Member::is_active) {
            return Ok(());
        }
        Err(No(Reason::Forbidden, "who is not in the conversation has nothing of its own there"))
    }

    /// Whether the session may say something about messages of a conversation.
    fn may_speak(&self, session: &Session, id: ConversationId) -> Result<(), No> {
        if self.has_part(session, id).is_ok() && self.view.conversation(id).is_some_and(|c| c.kind != Kind::Inbox) {
            return Ok(());
        }
        self.may_publish(session, id)
    }

    /// Whether what the session does in a conversation is taken from it.
    pub(super) fn is_taken(&self, session: &Session, id: ConversationId) -> Result<(), No> {
        if rights::is_taken_in(&self.view, session.user, self.visible(session, id)?) {
            return Ok(());
        }
        Err(No(Reason::Forbidden, "the user may not publish here"))
    }

    /// The message that a publish is about, if the session is shown it now.
    fn shown(&self, session: &Session, id: ConversationId, seq: Seq, target: Option<Target>) -> Result<Target, No> {
        let target = target.filter(|target| target.is_message).ok_or(NO_MESSAGE)?;
        let conversation = self.view.conversation(id).ok_or(NO_MESSAGE)?;
        let is_withheld =
            withheld(&self.view, conversation, id, seq, self.frame.time(), || Some(target.sender)).is_some();
        if is_withheld || !self.sees(session, id, seq) {
            return Err(NO_MESSAGE);
        }
        Ok(target)
    }

    fn sees(&self, session: &Session, id: ConversationId, seq: Seq) -> bool {
        let Some(conversation) = self.view.conversation(id) else { return false };
        if conversation.kind == Kind::Channel {
            return session.grants.load().read.admit(&conversation.label);
        }
        self.view.member(id, session.user).is_some_and(|member| member.sees(seq))
    }
}

/// The conversation that a publish names, and the seq that its action is about; 0 where it is about none.
#[must_use]
pub fn target_of(publish: &packet::Publish) -> (ConversationId, Seq) {
    use packet::publish::Action;
    let seq = match &publish.action {
        Some(Action::Edit(edit)) => edit.seq,
        Some(Action::Recall(recall)) => recall.seq,
        Some(Action::React(react)) => react.seq,
        Some(Action::Hide(hide)) => hide.seq,
        _ => 0,
    };
    (ConversationId(publish.conversation), Seq(seq))
}

fn valid_attachments(beside: &packet::Beside) -> Result<(), No> {
    let bytes: usize = beside.attachments.iter().map(|attachment| attachment.encoded_len() + 3).sum();
    let is_shown = |text: &str| !text.chars().any(char::is_control);
    let is_valid = |a: &packet::Attachment| {
        !a.reference.is_empty() && is_shown(&a.reference) && is_shown(&a.media_type) && is_shown(&a.name)
    };
    if bytes > ATTACHMENTS_BYTES_MAX || !beside.attachments.iter().all(is_valid) {
        const RULE: &str = "attachments have a reference, no control characters, and 2048 bytes in all";
        return Err(No(Reason::InvalidArgument, RULE));
    }
    Ok(())
}

/// Names each user that is mentioned once, and gives them.
fn each_once(beside: &mut packet::Beside) -> Vec<u64> {
    let mut seen = Vec::with_capacity(beside.mentions.len());
    beside.mentions.retain(|user| {
        let is_first = !seen.contains(user);
        if is_first {
            seen.push(*user);
        }
        is_first
    });
    seen
}

/// Whether a publish is about an earlier message, which has to be looked up before it is decided.
#[must_use]
pub fn is_about_a_message(publish: &packet::Publish) -> bool {
    target_of(publish).1.is_some()
}

/// What is looked up of an earlier message: of the encoded entry, and its place among the countable ones.
#[must_use]
pub fn target(item: &[u8], countable: u64) -> Option<Target> {
    let item = packet::Item::decode(item).ok()?;
    let packet::item::Kind::Entry(entry) = item.kind? else { return None };
    Some(Target {
        sender: UserId(entry.sender),
        is_message: entry.kind() == EntryKind::Message,
        countable,
        time: LogTime(entry.time),
    })
}

/// What an inbox is told of a message that mentions its user.
pub(super) fn mentioned(mention: super::rows::Mention, inbox: ConversationId) -> (packet::Entry, Body, EntryMeta) {
    let about = packet::Mentioned { conversation: mention.conversation.0, seq: mention.seq.0 };
    let mut entry = packet::Entry { mentioned: Some(about), ..packet::Entry::default() };
    entry.set_kind(EntryKind::Mentioned);
    let body = Body::of_entry(&entry);
    (entry, body, EntryMeta { conversation: inbox, ..EntryMeta::default() })
}
