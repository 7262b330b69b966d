//! The list of a user's conversations: the newest activity first, with what is unread in each and in all of them.

use longwire_protocol::limits::PREVIEW_BYTES_MAX;
use longwire_protocol::{ConversationId, Seq, UserId, packet};
use prost::Message as _;

use super::history::message_now;
use crate::routing::alteration::withheld;
use crate::routing::limits::{PAGE_BYTES_MAX, PAGE_ITEMS_MAX};
use crate::routing::outbox::Session;
use crate::routing::reads::{Miss, Reads};
use crate::routing::rows::{Conversation, Duty, Keeping, Kind, Member, Personal};
use crate::routing::tallies;
use crate::routing::view::{Reader, Rows as _};
use crate::store::Position;

/// One conversation of the list, and where its newest message stands.
struct Listed {
    activity: Position,
    conversation: packet::Conversation,
    message: Seq,
}

/// A page of the user's conversations, newest activity first. Costs a walk over them all.
///
/// # Errors
/// See [`Miss`].
pub fn conversations(
    reads: Reads<'_>,
    session: &Session,
    request: &packet::ConversationsRequest,
) -> Result<packet::ConversationsPage, Miss> {
    let (mut page, listed, mut has_more) = reads.rows(|rows| list(rows, reads, session.user, request))?;
    let (mut bytes, mut last) = (0, Position(0));
    let levels = session.outbox.lock().levels.clone();
    for mut listed in listed {
        listed.conversation.set_level(levels.of(ConversationId(listed.conversation.id)));
        if listed.message.is_some() {
            let id = ConversationId(listed.conversation.id);
            listed.conversation.last = message_now(reads, session.user, id, listed.message)?.map(preview);
        }
        bytes += listed.conversation.encoded_len();
        if bytes > PAGE_BYTES_MAX && last.0 > 0 {
            has_more = true;
            break;
        }
        last = listed.activity;
        page.conversations.push(listed.conversation);
    }
    page.next = if has_more { last.0 } else { 0 };
    Ok(page)
}

/// What a user has not read in all of its conversations. Costs a walk over them.
///
/// # Errors
/// See [`Miss`].
pub fn unread_total(reads: Reads<'_>, user: UserId) -> Result<u64, Miss> {
    let total = |rows: &Reader<'_>| listed(rows, user).map(|standing| unread(rows, reads, user, &standing).0).sum();
    reads.rows(total)
}

/// How a user stands in a conversation that its list shows.
struct Standing<'a> {
    id: ConversationId,
    duty: &'a Duty,
    conversation: &'a Conversation,
    member: &'a Member,
}

/// The conversations that a user's list shows, by rising id. Rows of the same kind are looked up a few at a time, so that the
/// processor waits for the memory of several at once: with 20,000 conversations that is most of what it does.
fn listed<'a>(rows: &'a Reader<'_>, user: UserId) -> impl Iterator<Item = Standing<'a>> {
    const AT_ONCE: usize = 16;
    let mut duties = rows.duties(user).iter().filter(|(_, duty)| !duty.closed);
    std::iter::from_fn(move || {
        let open: [Option<(ConversationId, &Duty)>; AT_ONCE] = std::array::from_fn(|_| duties.next());
        open[0]?;
        let conversations = open.map(|open| rows.conversation(open?.0));
        let members = open.map(|open| rows.member(open?.0, user));
        // All are asked for before one is judged: what is cold is loaded at once.
        Some((0..AT_ONCE).filter_map(move |at| {
            let (id, duty) = open[at]?;
            let standing = Standing { id, duty, conversation: conversations[at]?, member: members[at]? };
            (standing.conversation.kind != Kind::Inbox).then_some(standing)
        }))
    })
    .flatten()
}

/// A message as a list shows it: the beginning of its content, and nothing that is attached.
fn preview(mut message: packet::Entry) -> packet::Entry {
    message.content.truncate(PREVIEW_BYTES_MAX);
    if let Some(beside) = &mut message.beside {
        beside.attachments.clear();
    }
    message
}

fn list(
    rows: &Reader<'_>,
    reads: Reads<'_>,
    user: UserId,
    request: &packet::ConversationsRequest,
) -> (packet::ConversationsPage, Vec<Listed>, bool) {
    let before = if request.before == 0 { Position(u64::MAX) } else { Position(request.before) };
    let limit = (request.limit as usize).clamp(1, PAGE_ITEMS_MAX);
    let mut page = packet::ConversationsPage { changes: rows.state().tail.0, ..packet::ConversationsPage::default() };
    let mut newest: Vec<(Position, ConversationId)> = Vec::new();
    for standing in listed(rows, user) {
        if request.before == 0 {
            let (unread, mentions) = unread(rows, reads, user, &standing);
            page.unread_total += unread;
            page.mentions_total += mentions;
        }
        let Standing { id, duty, conversation, member } = standing;
        // Rows of format 1 do not tell activity apart.
        let activity = conversation.more.activity;
        let activity = if activity.0 == 0 { conversation.head.position } else { activity }.max(duty.joined);
        let has_changed = || {
            let settings = rows.settings(user, id).map_or(Position(0), |settings| settings.position);
            let hid = rows.personal(user, id).map_or(Position(0), |personal| personal.hid);
            let own = duty.joined.max(member.mark_position).max(settings).max(hid);
            conversation.head.position.max(conversation.more.kept.raised).max(own) > Position(request.since)
        };
        if activity < before && (request.since == 0 || has_changed()) {
            newest.push((activity, id));
        }
    }
    let has_more = newest.len() > limit;
    if has_more {
        // Those of the page, before they alone are put in order.
        newest.select_nth_unstable_by(limit, |a, b| b.cmp(a));
        newest.truncate(limit);
    }
    newest.sort_unstable_by(|a, b| b.cmp(a));
    let summary = |(activity, id): &(Position, ConversationId)| {
        let (conversation, message) = summary(rows, reads, user, *id)?;
        Some(Listed { activity: *activity, conversation, message })
    };
    let listed = newest.iter().filter_map(summary).collect();
    (page, listed, has_more)
}

/// How many messages are unread, and how many of those mention the user as they are now (SPEC R7-7).
fn unread(rows: &Reader<'_>, reads: Reads<'_>, user: UserId, standing: &Standing<'_>) -> (u64, u64) {
    let &Standing { id, duty, conversation, member } = standing;
    let keeping = conversation.more.kept.first.is_some().then(|| rows.keeping(id)).flatten();
    let Some(after) = member.read_upto(keeping.map_or(0, |keeping| keeping.below)) else { return (0, 0) };
    let all = conversation.head.countable.saturating_sub(after);
    if all == 0 {
        return (0, 0);
    }
    let has_gone = conversation.more.withheld.0.is_some();
    let uncounted = has_gone.then(|| rows.uncounted(id)).flatten();
    let gone = uncounted.map_or(0, |row| tallies::above(rows, id, row, after, reads.now));
    // Nothing is unread: neither hidden nor mentioning messages change that.
    if gone >= all {
        return (0, 0);
    }
    let personal = rows.personal(user, id);
    let is_gone = |at: u64| uncounted.is_some_and(|row| tallies::has(rows, id, row, at, reads.now));
    let hidden = personal
        .map_or(0, |personal| personal.hidden.iter().filter(|(_, at)| *at > after && !is_gone(*at)).count() as u64);
    let unread = (all - gone).saturating_sub(hidden);
    // What its `joined` covers counts as read.
    let after = duty.since.max(member.mark);
    let is_unread = |message: Seq| {
        // Who wrote it is not looked up: what is erased counts as it did.
        let is_withheld = withheld(rows, conversation, id, message, reads.now, || None).is_some();
        let is_hidden = |personal: &Personal| personal.hidden.binary_search_by_key(&message, |(seq, _)| *seq).is_ok();
        message > after && !is_withheld && !personal.is_some_and(is_hidden)
    };
    let mentions = personal.map_or(0, |personal| {
        let above = personal.mentions.iter().filter(|seq| **seq > after);
        above.filter(|seq| mentions_now(rows, id, conversation, **seq).is_some_and(is_unread)).count() as u64
    });
    (unread, mentions)
}

/// The message that an entry which mentions somebody is, or edits; `None` where that was edited since, and does or does not
/// mention it by another entry.
fn mentions_now(rows: &Reader<'_>, id: ConversationId, conversation: &Conversation, entry: Seq) -> Option<Seq> {
    let altered = |seq: Seq| conversation.more.may_be_altered(seq).then(|| rows.altered(id, seq)).flatten();
    let message = altered(entry).map(|row| row.edit_of).filter(|seq| seq.is_some()).unwrap_or(entry);
    let newest = altered(message).and_then(|row| row.edits.last().copied()).unwrap_or(message);
    (newest == entry).then_some(message)
}

fn summary(
    rows: &Reader<'_>,
    reads: Reads<'_>,
    user: UserId,
    id: ConversationId,
) -> Option<(packet::Conversation, Seq)> {
    let (conversation, member) = (rows.conversation(id)?, rows.member(id, user)?);
    let label = if conversation.kind == Kind::Direct {
        let (a, b) = conversation.pair;
        rows.user(if a == user { b } else { a }).map_or_else(String::new, |row| row.name.to_string())
    } else {
        conversation.label.to_string()
    };
    let standing = Standing { id, duty: rows.duties(user).get(id)?, conversation, member };
    let (unread, mentions) = unread(rows, reads, user, &standing);
    let settings = rows.settings(user, id).map(|settings| settings.wire(member.mark_position));
    let message = conversation.more.message;
    let summary = packet::Conversation {
        level: 0,
        id: id.0,
        kind: conversation.kind.wire().into(),
        label,
        role: member.role,
        head_seq: conversation.head.seq.0,
        head_time: conversation.head.time.0,
        first_seq: conversation.more.kept.first.0,
        visible_from: member.intervals.last().map_or(1, |i| i.from.0),
        mark: member.mark.0,
        unread,
        members: u64::from(conversation.members),
        mentions,
        settings: settings.filter(|settings| *settings != packet::Settings::default()),
        last: None,
        retention: conversation.more.kept.is_timed.then(|| rows.keeping(id)).flatten().and_then(Keeping::wire),
        info: conversation.more.has_info.then(|| rows.info(id)).flatten().map(|info| packet::Info {
            picture: info.picture.to_string(),
            description: info.description.to_string(),
            policy: Some(conversation.more.policy.wire()),
        }),
    };
    Some((summary, if member.sees(message) { message } else { Seq(0) }))
}
