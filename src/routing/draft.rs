//! One group under way, and what every publish goes through in it: is its id known, may this user do this, what is
//! appended. What the single actions do stands in `actions`.

use std::sync::Arc;

use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, EntryKind, PublishAck, Role, item};
use longwire_protocol::reason::Reason;
use longwire_protocol::{ConversationId, DeviceId, LogTime, MessageId, Seq, UserId};

use super::account::is_own;
use super::change::Change;
use super::fold::{Body, fold_change, fold_entry, is_countable, next_id, next_id_named};
use super::limits::ID_SPAN_MAX;
use super::messages::mentioned;
use super::ops::{Effect, Found};
use super::outbox::Session;
use super::rights;
use super::rows::{Conversation, Counted, DeviceCursor, Kept, Kind, partition};
use super::view::{Rows as _, Tidings, View};
use crate::mutation::Mutation;
use crate::store::{EntryMeta, FrameBuilder, Origin, Position};

/// Why an operation is not done, before it is known about which publish.
pub(super) struct No(pub(super) Reason, pub(super) &'static str);

/// One group under way: the draft, the frame, the effects.
#[derive(Debug)]
pub struct Draft<'s, 'g> {
    /// The state as it will be.
    pub view: View<'s>,
    /// The frame.
    pub frame: &'g mut FrameBuilder,
    /// What to do once it is committed.
    pub effects: &'g mut Vec<Effect>,
    /// Monotonic milliseconds.
    pub now_ms: u64,
    /// Whether anything may be appended.
    pub writable: bool,
}

impl Draft<'_, '_> {
    /// The answer to a publish that is known, or why its id cannot be accepted. `conversation` is the one that it names, or
    /// the own inbox, `told` the highest first unanswered id that the session told.
    pub(super) fn known(
        &self,
        session: &Session,
        publish: &packet::Publish,
        conversation: ConversationId,
        told: MessageId,
        digest: u64,
    ) -> Result<Option<PublishAck>, No> {
        let id = MessageId(publish.message_id);
        let Some(device) = self.view.device(session.device) else { return Err(No(Reason::Internal, "no device")) };
        if MessageId(publish.first_unanswered) > id {
            return Err(No(Reason::InvalidArgument, "first_unanswered lies above message_id"));
        }
        let floor = device.floor.max(told);
        if id < floor {
            return Err(No(Reason::StaleId, "below the first unanswered id"));
        }
        if let Ok(at) = device.kept.binary_search_by_key(&id, |kept| kept.id)
            && !Mutation::RepeatStored.is_planted()
        {
            let kept = &device.kept[at];
            if kept.digest != digest {
                return Err(No(Reason::IdConflict, "the id was used for something else"));
            }
            let is_told = kept.opened || is_own(publish.action.as_ref());
            let conversation = if is_told { kept.conversation.0 } else { 0 };
            return Ok(Some(PublishAck { message_id: id.0, seq: kept.seq.0, time: kept.time.0, conversation }));
        }
        if id.0 - floor.0 >= ID_SPAN_MAX {
            return Err(No(Reason::IdSpanExceeded, "more than 256 ids above the first unanswered"));
        }
        // What opened a conversation did not name it, and is in order among its like alone.
        let is_later = |k: &Kept| {
            k.id > id && k.conversation == conversation && (!k.opened || Mutation::OpenedMakesStale.is_planted())
        };
        if conversation.is_some() && device.kept.iter().rev().any(is_later) {
            return Err(No(Reason::StaleId, "a later id is stored in that conversation"));
        }
        Ok(None)
    }

    /// Whether this group answers the same publish already: of an older session of the device.
    pub(super) fn has_answered(&self, session: &Session, id: MessageId) -> bool {
        self.effects.iter().any(|effect| match effect {
            Effect::Answer(of, _, Ok(ack)) => of.device == session.device && ack.message_id == id.0,
            _ => false,
        })
    }

    pub(super) fn append(
        &mut self,
        session: &Arc<Session>,
        publish: packet::Publish,
        told: MessageId,
        digest: u64,
        found: Option<Found>,
    ) -> Result<PublishAck, No> {
        let floor = self.view.device(session.device).map_or(MessageId(0), |device| device.floor);
        let ticket = Ticket {
            origin: Origin {
                device: session.device,
                incarnation: session.incarnation,
                message_id: MessageId(publish.message_id),
            },
            first_unanswered: if told > floor { told } else { MessageId(0) },
            digest,
        };
        let conversation = ConversationId(publish.conversation);
        if conversation.is_some() && is_own(publish.action.as_ref()) {
            return Err(No(Reason::InvalidArgument, "what is about the user itself names no conversation"));
        }
        let target = if let Some(Found::Target(target)) = found { target } else { None };
        if publish.beside.is_some() && !matches!(publish.action, None | Some(Action::Edit(_))) {
            return Err(No(Reason::InvalidArgument, "only a message or an edit has something beside its content"));
        }
        let ack = match publish.action {
            None => return self.message(session, &ticket, publish),
            Some(Action::SetInfo(set)) => self.set_info(session, &ticket, conversation, set.info.unwrap_or_default()),
            Some(Action::Ban(ban)) => self.ban(session, &ticket, conversation, &ban),
            Some(Action::SetJoinKey(set)) => self.set_join_key(session, &ticket, conversation, &set.key),
            Some(Action::Edit(_)) => self.edit(session, &ticket, publish, target),
            Some(Action::Recall(_)) => self.recall(session, &ticket, &publish, target),
            Some(Action::React(ref react)) => self.react(session, &ticket, &publish, react.clone(), target),
            Some(Action::Hide(hide)) => self.hide(session, &ticket, &publish, hide, target),
            Some(Action::SetSettings(set)) => {
                self.set_settings(session, &ticket, conversation, set.settings.unwrap_or_default())
            }
            Some(Action::OpenDirect(open)) => self.open_direct(session, &ticket, &open.user),
            Some(Action::CreateGroup(create)) => self.create_group(session, &ticket, create),
            Some(Action::OpenChannel(open)) => self.open_channel(session, &ticket, &open.name),
            Some(Action::Join(join)) => self.join(session, &ticket, conversation, &join.key),
            Some(Action::Leave(_)) => self.leave(session, &ticket, conversation),
            Some(Action::SetRole(set)) => self.set_role(session, &ticket, conversation, &set),
            Some(Action::SetLabel(set)) => self.set_label(session, &ticket, conversation, set.label),
            Some(Action::SetMark(set)) => {
                let countable = if let Some(Found::Countable(countable)) = found { countable } else { 0 };
                self.set_mark(session, &ticket, conversation, Seq(set.seq), countable)
            }
            Some(Action::SetProfile(set)) => self.set_profile(session, &ticket, set),
            Some(Action::SetContact(set)) => self.set_contact(session, &ticket, set),
            Some(Action::Block(block)) => self.block(session, &ticket, block),
            Some(Action::NameDevice(name)) => self.name_device(session, &ticket, name),
            Some(Action::RevokeDevice(revoke)) => self.revoke_device(session, &ticket, DeviceId(revoke.device)),
            Some(Action::SetAccount(set)) => self.set_account(session, &ticket, set),
            Some(Action::SetWill(set)) => self.set_will(session, &ticket, conversation, &publish.content, set.after_ms),
            Some(Action::ShowPresence(show)) => self.show_presence(session, &ticket, show),
            Some(Action::HideMarks(hide)) => self.hide_marks(session, &ticket, hide),
            Some(Action::SetRetention(set)) => {
                self.set_retention(session, &ticket, conversation, set.retention.unwrap_or_default())
            }
            Some(Action::EraseUser(erase)) => self.erase_user(session, &ticket, &erase.user),
            Some(Action::SetLevel(set)) => self.set_level(session, &ticket, conversation, set.level),
            Some(Action::SetPush(set)) => self.set_push(session, &ticket, set),
        }?;
        self.cross();
        Ok(ack)
    }

    /// The conversation, if the session may know of it.
    pub(super) fn visible(&self, session: &Session, id: ConversationId) -> Result<&Conversation, No> {
        rights::visible(&self.view, session, id)
    }

    pub(super) fn role(&self, session: &Session, id: ConversationId) -> Role {
        rights::role(&self.view, session.user, id)
    }

    pub(super) fn may_publish(&self, session: &Session, id: ConversationId) -> Result<(), No> {
        rights::may_publish(&self.view, session, id).map(|_| ())
    }

    /// A group in which the session has at least this role.
    pub(super) fn group(&self, session: &Session, id: ConversationId, least: i32) -> Result<(), No> {
        if self.visible(session, id)?.kind != Kind::Group {
            return Err(No(Reason::InvalidArgument, "only groups have this"));
        }
        if (self.role(session, id) as i32) < least {
            return Err(No(Reason::Forbidden, "the role does not allow it"));
        }
        Ok(())
    }

    /// Tells the inboxes of every change of membership, and every mention, that they have not heard of.
    pub fn cross(&mut self) {
        for (source, user, crossing) in self.view.crossings() {
            let Some(inbox) = self.view.user(user).map(|row| row.inbox) else { continue };
            let crossing = match crossing {
                Tidings::Membership(crossing) => crossing,
                Tidings::Mention(mention) => {
                    let (entry, body, meta) = mentioned(mention, inbox);
                    self.entry(EntryMeta { source, ..meta }, entry, &body);
                    continue;
                }
            };
            let Some(conversation) = self.view.conversation(crossing.conversation).cloned() else { continue };
            let mut entry = packet::Entry::default();
            let body = if crossing.joined {
                let member = self.view.member(crossing.conversation, user);
                entry.set_kind(EntryKind::Joined);
                entry.joined = Some(packet::Joined {
                    conversation: crossing.conversation.0,
                    kind: conversation.kind.wire().into(),
                    visible_from: member.and_then(|m| m.intervals.last()).map_or(1, |i| i.from.0),
                    seq: conversation.head.seq.0,
                    label: self.label_for(&conversation, user),
                    role: member.map_or(0, |m| m.role),
                });
                Body::Joined { conversation: crossing.conversation, seq: conversation.head.seq }
            } else {
                self.effects.push(Effect::Shown(user));
                entry.set_kind(EntryKind::Left);
                entry.left = Some(packet::Left { conversation: crossing.conversation.0, seq: crossing.seq.0 });
                Body::Left { conversation: crossing.conversation }
            };
            let meta = EntryMeta { conversation: inbox, source, ..EntryMeta::default() };
            self.entry(meta, entry, &body);
        }
    }

    /// An entry of the session's user in a conversation, as the answer to a publish.
    pub(super) fn publish_entry(
        &mut self,
        session: &Session,
        conversation: ConversationId,
        ticket: &Ticket,
        mut entry: packet::Entry,
        body: &Body,
    ) -> PublishAck {
        entry.sender = session.user.0;
        let meta = EntryMeta {
            conversation,
            origin: ticket.origin,
            first_unanswered: ticket.first_unanswered,
            digest: ticket.digest,
            ..EntryMeta::default()
        };
        let seq = self.entry(meta, entry, body);
        PublishAck { message_id: ticket.origin.message_id.0, seq: seq.0, time: self.frame.time().0, conversation: 0 }
    }

    /// A membership entry; with a ticket, as the answer to a publish.
    pub(super) fn membership(
        &mut self,
        session: &Session,
        conversation: ConversationId,
        ticket: Option<&Ticket>,
        user: UserId,
        role: Role,
    ) -> PublishAck {
        let name = self.view.user(user).map_or_else(String::new, |row| row.name.to_string());
        let banned = self.view.is_banned(conversation, user);
        let membership = packet::Membership { user: user.0, name, role: role.into(), banned };
        let mut entry = packet::Entry { membership: Some(membership), ..packet::Entry::default() };
        entry.set_kind(EntryKind::Membership);
        let none = Ticket::default();
        self.publish_entry(session, conversation, ticket.unwrap_or(&none), entry, &Body::Membership { user, role })
    }

    /// The answer to a publish that is no single entry.
    pub(super) fn answered(&mut self, ticket: &Ticket, conversation: ConversationId, opened: bool) -> PublishAck {
        let seq = self.view.conversation(conversation).map_or(Seq(0), |row| row.head.seq);
        self.answered_with(ticket, conversation, seq, opened)
    }

    /// The same with a seq that may be another conversation's.
    pub(super) fn answered_with(
        &mut self,
        ticket: &Ticket,
        conversation: ConversationId,
        seq: Seq,
        opened: bool,
    ) -> PublishAck {
        self.change(&Change::Answered {
            origin: ticket.origin,
            first_unanswered: ticket.first_unanswered,
            digest: ticket.digest,
            conversation,
            seq,
            opened,
        });
        let time = self.frame.time().0;
        let conversation = if opened { conversation.0 } else { 0 };
        PublishAck { message_id: ticket.origin.message_id.0, seq: seq.0, time, conversation }
    }

    /// Whether the session may bring this user into one more conversation.
    pub(super) fn has_room(&self, session: &Session, user: UserId) -> Result<(), No> {
        let quotas = self.view.quotas();
        let most = if user == session.user { quotas.conversations } else { quotas.conversations_by_others() };
        if self.view.user(user).is_some_and(|row| row.conversations >= most) {
            return Err(No(Reason::QuotaExceeded, "the user is in as many conversations as it may"));
        }
        Ok(())
    }

    pub(super) fn create_user(&mut self, name: &str) -> UserId {
        let user = UserId(next_id_named(&self.view, Counted::Users, name));
        let inbox = ConversationId(next_id(&self.view, Counted::Conversations, partition(user.0)));
        self.change(&Change::UserCreated { user, name: name.into(), inbox });
        user
    }

    /// What a conversation is called to a user.
    fn label_for(&self, conversation: &Conversation, user: UserId) -> String {
        if conversation.kind == Kind::Direct {
            let (a, b) = conversation.pair;
            let other = if a == user { b } else { a };
            return self.view.user(other).map_or_else(String::new, |row| row.name.to_string());
        }
        conversation.label.to_string()
    }

    pub(super) fn change(&mut self, change: &Change) {
        let position = self.frame.push_change(|out| change.encode(out));
        fold_change(&mut self.view, position, self.frame.time(), change);
    }

    pub(super) fn note_seen(&mut self, user: UserId, time: LogTime) {
        let change = Change::Seen { user, time };
        self.frame.push_rider(|out| change.encode(out));
        fold_change(&mut self.view, Position(0), self.frame.time(), &change);
    }

    pub(super) fn store_cursor(&mut self, device: DeviceId, cursor: DeviceCursor) {
        let stored = self.view.device(device).and_then(|row| row.cursor);
        if self.writable && stored != Some(cursor) {
            let change = Change::CursorStored { device, cursor };
            self.frame.push_rider(|out| change.encode(out));
            fold_change(&mut self.view, Position(0), self.frame.time(), &change);
        }
    }

    /// Appends an entry: gives it its seq and time, encodes it once, folds it.
    pub(super) fn entry(&mut self, mut meta: EntryMeta, mut entry: packet::Entry, body: &Body) -> Seq {
        let head = self.view.conversation(meta.conversation).map(|row| row.head).unwrap_or_default();
        let time = self.frame.time();
        meta.seq = head.seq.next();
        meta.countable = head.countable + u64::from(is_countable(entry.kind()));
        entry.conversation = meta.conversation.0;
        entry.seq = meta.seq.0;
        entry.time = time.0;
        let item = packet::Item { kind: Some(item::Kind::Entry(entry)) };
        let position = self.frame.push_entry(&meta, |out| packet::append_item(&item, out));
        fold_entry(&mut self.view, &meta, position, time, body);
        meta.seq
    }
}

/// Which publish a record answers; all 0 for what nobody asked for by itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ticket {
    pub(super) origin: Origin,
    pub(super) first_unanswered: MessageId,
    pub(super) digest: u64,
}
