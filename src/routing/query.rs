//! Reads that a client asks for: pages of history, conversations, members, users. They change nothing.

use std::ops::Bound;

use bytes::Bytes;
use longwire_protocol::packet::{self, HeadReason};
use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::{ConversationId, DeviceId, Incarnation, Seq, UserId};

use super::catch_up::{Miss, Reads};
use super::feed::{head_item, own_item};
use super::limits::{PAGE_BYTES_MAX, PAGE_ITEMS_MAX};
use super::outbox::Session;
use super::rows::{Kind, Member};
use super::view::{Reader, Rows as _};
use crate::mutation::Mutation;
use crate::store::{PageLimit, Position, StoredEntry};

/// The stretches of a conversation that a session may read, and the newest seq it may know of.
#[derive(Clone, Debug)]
pub struct Visible {
    stretches: Vec<(Seq, Seq)>,
    head: Seq,
    /// Who reads: what it published itself comes as its own.
    device: DeviceId,
    incarnation: Incarnation,
}

impl Visible {
    /// What `session` may read of a conversation now.
    ///
    /// # Errors
    /// *unknown conversation* where it may read nothing, whether there is one or not.
    pub fn of(rows: &Reader<'_>, session: &Session, id: ConversationId) -> Result<Self, Refusal> {
        let unknown = || Refusal::connection(Reason::UnknownConversation);
        let conversation = rows.conversation(id).ok_or_else(unknown)?;
        let head = conversation.head.seq;
        let (device, incarnation) = (session.device, session.incarnation);
        let visible = |stretches, head| Self { stretches, head, device, incarnation };
        if conversation.kind == Kind::Channel {
            let may = session.grants.load().read.admit(&conversation.label);
            return if may { Ok(visible(vec![(Seq(1), head)], head)) } else { Err(unknown()) };
        }
        let member = rows.member(id, session.user).ok_or_else(unknown)?;
        if Mutation::HistoryIgnoresRights.is_planted() {
            return Ok(visible(vec![(Seq(1), head)], head));
        }
        let stretches: Vec<_> =
            member.intervals.iter().map(|i| (i.from, if i.to.is_some() { i.to } else { head })).collect();
        let head = stretches.last().map_or(Seq(0), |(_, to)| *to);
        Ok(visible(stretches, head))
    }

    /// What the reader is sent for an entry.
    fn item(&self, entry: &StoredEntry) -> Bytes {
        if entry.origin.device == self.device { own_item(self.incarnation, entry, false) } else { entry.item.clone() }
    }
}

/// A page of history, its items encoded.
#[derive(Debug)]
pub struct Page {
    /// Entries, and heads for what is not there.
    pub items: Vec<Bytes>,
    /// Where the next page starts; 0: nowhere.
    pub next: Seq,
    /// The newest seq that the session may know of.
    pub head: Seq,
}

/// Reads a page of history: every seq of it is in an entry or inside a head.
///
/// # Errors
/// See [`Miss`].
pub fn history(reads: Reads<'_>, visible: &Visible, request: &packet::HistoryRequest) -> Result<Page, Miss> {
    let id = ConversationId(request.conversation);
    let limit = PageLimit { entries: (request.limit as usize).clamp(1, PAGE_ITEMS_MAX), bytes: PAGE_BYTES_MAX };
    let mut page = Page { items: Vec::new(), next: Seq(0), head: visible.head };
    if request.backwards {
        backwards(reads, visible, id, request, limit, &mut page)?
    } else {
        forwards(reads, visible, id, request, limit, &mut page)?
    }
    Ok(page)
}

fn forwards(
    reads: Reads<'_>,
    visible: &Visible,
    id: ConversationId,
    request: &packet::HistoryRequest,
    mut limit: PageLimit,
    page: &mut Page,
) -> Result<(), Miss> {
    let mut seq = Seq(request.from_seq.max(1));
    for &(from, to) in &visible.stretches {
        if to < seq || from > to {
            continue;
        }
        if limit.entries == 0 {
            page.next = seq;
            return Ok(());
        }
        if from > seq {
            page.items.push(head_item(id, seq, Seq(from.0 - 1), HeadReason::NotYours, 0));
            limit.entries -= 1;
            seq = from;
        }
        while seq <= to {
            if limit.entries == 0 || (limit.bytes == 0 && !page.items.is_empty()) {
                page.next = seq;
                return Ok(());
            }
            let entries = reads.range(id, seq, to, false, limit)?;
            let first = entries.first().map_or(to.next(), |entry| entry.seq);
            if first > seq {
                page.items.push(head_item(id, seq, Seq(first.0 - 1), HeadReason::Expired, 0));
                limit.entries -= 1;
                seq = first;
                continue;
            }
            for entry in entries {
                seq = entry.seq.next();
                limit.entries -= 1;
                limit.bytes = limit.bytes.saturating_sub(entry.item.len());
                page.items.push(visible.item(&entry));
            }
        }
    }
    Ok(())
}

fn backwards(
    reads: Reads<'_>,
    visible: &Visible,
    id: ConversationId,
    request: &packet::HistoryRequest,
    mut limit: PageLimit,
    page: &mut Page,
) -> Result<(), Miss> {
    // The seq that the next item has to end with.
    let mut seq = if request.from_seq == 0 { visible.head } else { Seq(request.from_seq).min(visible.head) };
    for &(from, to) in visible.stretches.iter().rev() {
        if from > seq || from > to {
            continue;
        }
        if limit.entries == 0 {
            page.next = seq;
            return Ok(());
        }
        if to < seq {
            page.items.push(head_item(id, to.next(), seq, HeadReason::NotYours, 0));
            limit.entries -= 1;
            seq = to;
        }
        while seq >= from {
            if limit.entries == 0 || (limit.bytes == 0 && !page.items.is_empty()) {
                page.next = seq;
                return Ok(());
            }
            let entries = reads.range(id, from, seq, true, limit)?;
            if entries.first().is_none_or(|newest| newest.seq < seq) {
                // Seqs are kept from some point on: what is missing at the upper end is missing down to the first.
                page.items.push(head_item(id, from, seq, HeadReason::Expired, 0));
                limit.entries -= 1;
                seq = Seq(from.0 - 1);
                break;
            }
            for entry in entries {
                seq = Seq(entry.seq.0 - 1);
                limit.entries -= 1;
                limit.bytes = limit.bytes.saturating_sub(entry.item.len());
                page.items.push(visible.item(&entry));
            }
        }
        if seq.0 == 0 {
            return Ok(());
        }
    }
    Ok(())
}

/// The user's conversations, newest activity first. Costs a walk over them all.
#[must_use]
pub fn conversations(
    rows: &Reader<'_>,
    session: &Session,
    request: &packet::ConversationsRequest,
) -> packet::ConversationsPage {
    let before = if request.before == 0 { Position(u64::MAX) } else { Position(request.before) };
    let limit = (request.limit as usize).clamp(1, PAGE_ITEMS_MAX);
    let mut newest: Vec<(Position, ConversationId)> = rows
        .duties(session.user)
        .iter()
        .filter_map(|id| {
            // Both are asked for before either is judged: what is cold is loaded at once.
            let (duty, conversation) = (rows.duty(session.user, *id), rows.conversation(*id));
            let duty = duty.filter(|duty| !duty.closed)?;
            let conversation = conversation.filter(|c| c.kind != Kind::Inbox)?;
            let activity = conversation.head.position.max(duty.joined);
            (activity < before).then_some((activity, *id))
        })
        .collect();
    newest.sort_unstable_by(|a, b| b.cmp(a));
    let next = if newest.len() > limit { newest[limit - 1].0.0 } else { 0 };
    newest.truncate(limit);
    let conversations = newest.into_iter().filter_map(|(_, id)| summary(rows, session.user, id)).collect();
    packet::ConversationsPage { conversations, next }
}

fn summary(rows: &Reader<'_>, user: UserId, id: ConversationId) -> Option<packet::Conversation> {
    let conversation = rows.conversation(id)?;
    let member = rows.member(id, user)?;
    let label = if conversation.kind == Kind::Direct {
        let (a, b) = conversation.pair;
        rows.user(if a == user { b } else { a }).map_or_else(String::new, |row| row.name.to_string())
    } else {
        conversation.label.to_string()
    };
    Some(packet::Conversation {
        id: id.0,
        kind: conversation.kind.wire().into(),
        label,
        role: member.role,
        head_seq: conversation.head.seq.0,
        head_time: conversation.head.time.0,
        first_seq: 0,
        visible_from: member.intervals.last().map_or(1, |i| i.from.0),
        mark: member.mark.0,
        unread: member.unread(&conversation.head),
        members: u64::from(conversation.members),
    })
}

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
    let is_member = rows.member(id, session.user).is_some_and(Member::is_active);
    if !is_member && !Mutation::MembersIgnoreRights.is_planted() {
        return Err(Refusal::connection(Reason::UnknownConversation));
    }
    let limit = (request.limit as usize).clamp(1, PAGE_ITEMS_MAX);
    let mut page = packet::MembersPage::default();
    let mut cold = 0;
    for user in rows.members(id).range((Bound::Excluded(UserId(request.after_user)), Bound::Unbounded)) {
        let before = rows.cold();
        let member = rows.member(id, *user);
        if rows.cold() > before {
            // It may be one of the page: no more than a page is loaded at a time.
            cold += 1;
        } else if member.is_some_and(Member::is_active) {
            if page.members.len() + cold == limit {
                page.next = page.members.last().map_or(0, |m| m.user);
                break;
            }
            let role = member.map_or(0, |member| member.role);
            page.members.push(packet::Member { user: user.0, name: name(rows, *user), role });
        }
        if cold > limit {
            break;
        }
    }
    Ok(page)
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
    let (fewer, one, another) = if own.len() <= others.len() { (own, asking, other) } else { (others, other, asking) };
    asking == other
        || Mutation::UsersIgnoreRights.is_planted()
        || fewer.iter().any(|id| {
            let (duty, member) = (rows.duty(one, *id), rows.member(*id, another));
            duty.is_some_and(|duty| !duty.closed) && member.is_some_and(Member::is_active)
        })
}

fn name(rows: &Reader<'_>, user: UserId) -> String {
    rows.user(user).map_or_else(String::new, |row| row.name.to_string())
}
