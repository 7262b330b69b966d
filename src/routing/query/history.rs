//! Pages of history: the raw view, in which every entry stands as it was published, and the compact one, in which each
//! message stands as it is now.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use longwire_protocol::packet::{self, EntryKind, HeadReason, OWN_BYTES_MAX, item};
use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::{ConversationId, DeviceId, Incarnation, Seq, UserId};
use prost::Message as _;

use crate::mutation::Mutation;
use crate::routing::alteration::{author, withheld};
use crate::routing::items::{head_item, own_item};
use crate::routing::limits::{PAGE_BYTES_MAX, PAGE_ITEMS_MAX};
use crate::routing::outbox::Session;
use crate::routing::reads::{Miss, Reads};
use crate::routing::rows::{Conversation, Kind};
use crate::routing::view::{Reader, Rows as _};
use crate::store::{PageLimit, StoredEntry};

/// Entries that are looked at for one page.
const LOOKS_MAX: usize = 5 * PAGE_ITEMS_MAX;

/// The stretches of a conversation that a session may read, and the newest seq it may know of.
#[derive(Clone, Debug)]
pub struct Visible {
    stretches: Vec<(Seq, Seq)>,
    head: Seq,
    /// Who reads: what it published itself comes as its own.
    device: DeviceId,
    incarnation: Incarnation,
    user: UserId,
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
        let (device, incarnation, user) = (session.device, session.incarnation, session.user);
        let visible = |stretches, head| Self { stretches, head, device, incarnation, user };
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

/// A page under way.
struct Building<'a> {
    reads: Reads<'a>,
    visible: &'a Visible,
    id: ConversationId,
    is_compact: bool,
    limit: PageLimit,
    items: Vec<Bytes>,
    /// How many entries may still be looked at: in the compact view a page may show few of them.
    looks: usize,
    /// A stretch that is not shown, not yet among the items: the next one may go on from it.
    head: Option<(Seq, Seq, HeadReason)>,
}

/// Reads a page of history: every seq of it is in an entry or inside a head.
///
/// # Errors
/// See [`Miss`].
pub fn history(reads: Reads<'_>, visible: &Visible, request: &packet::HistoryRequest) -> Result<Page, Miss> {
    let limit = PageLimit { entries: (request.limit as usize).clamp(1, PAGE_ITEMS_MAX), bytes: PAGE_BYTES_MAX };
    let mut page = Building {
        reads,
        visible,
        id: ConversationId(request.conversation),
        is_compact: request.compact,
        limit,
        items: Vec::with_capacity(limit.entries),
        looks: LOOKS_MAX,
        head: None,
    };
    let next = if request.backwards { page.backwards(request.from_seq)? } else { page.forwards(request.from_seq)? };
    page.end_head();
    Ok(Page { items: page.items, next, head: visible.head })
}

/// What a reader is shown in the place of an entry.
enum Shown {
    /// The entry as it was published.
    AsPublished,
    /// Nothing, and why.
    Nothing(HeadReason),
    /// A message with what became of it; the seq of its newest edit, 0 where it was not edited.
    Message(packet::Compacted),
}

impl Building<'_> {
    /// Where the next page starts, going forwards.
    fn forwards(&mut self, from_seq: u64) -> Result<Seq, Miss> {
        let mut seq = Seq(from_seq.max(1));
        for &(from, to) in &self.visible.stretches {
            if to < seq || from > to {
                continue;
            }
            if self.is_full() {
                return Ok(seq);
            }
            if from > seq {
                self.skip(seq, Seq(from.0 - 1), HeadReason::NotYours);
                seq = from;
            }
            while seq <= to {
                if self.is_full() {
                    return Ok(seq);
                }
                let entries = self.reads.range(self.id, seq, to, false, self.limit)?;
                let first = entries.first().map_or(to.next(), |entry| entry.seq);
                if first > seq {
                    self.skip(seq, Seq(first.0 - 1), HeadReason::Expired);
                    seq = first;
                    continue;
                }
                seq = entries.last().map_or(seq, |entry| entry.seq.next());
                self.add(entries)?;
            }
        }
        Ok(Seq(0))
    }

    /// Where the next page starts, going backwards.
    fn backwards(&mut self, from_seq: u64) -> Result<Seq, Miss> {
        // The seq that the next item has to end with.
        let mut seq = if from_seq == 0 { self.visible.head } else { Seq(from_seq).min(self.visible.head) };
        for &(from, to) in self.visible.stretches.iter().rev() {
            if from > seq || from > to {
                continue;
            }
            if self.is_full() {
                return Ok(seq);
            }
            if to < seq {
                self.skip(to.next(), seq, HeadReason::NotYours);
                seq = to;
            }
            while seq >= from {
                if self.is_full() {
                    return Ok(seq);
                }
                let entries = self.reads.range(self.id, from, seq, true, self.limit)?;
                if entries.first().is_none_or(|newest| newest.seq < seq) {
                    // Seqs are kept from some point on: what is missing at the upper end is missing down to the first.
                    self.skip(from, seq, HeadReason::Expired);
                    seq = Seq(from.0 - 1);
                    break;
                }
                seq = entries.last().map_or(seq, |entry| Seq(entry.seq.0 - 1));
                self.add(entries)?;
            }
            if seq.0 == 0 {
                return Ok(Seq(0));
            }
        }
        Ok(Seq(0))
    }

    fn is_full(&self) -> bool {
        self.limit.entries == 0 || self.looks == 0 || (self.limit.bytes == 0 && !self.items.is_empty())
    }

    fn add(&mut self, entries: Vec<StoredEntry>) -> Result<(), Miss> {
        self.looks = self.looks.saturating_sub(entries.len());
        let (id, user, is_compact) = (self.id, self.visible.user, self.is_compact);
        let mut shown = self.reads.rows(|rows| all_shown(rows, self.reads, user, id, &entries, is_compact))?;
        // One piece of memory for all that is written anew.
        let own = |entry: &&StoredEntry| entry.origin.device == self.visible.device;
        let room = entries.iter().filter(own).map(|entry| entry.item.len() + OWN_BYTES_MAX).sum();
        let mut room = BytesMut::with_capacity(room);
        for entry in entries {
            match shown.pop_front().unwrap_or(Shown::AsPublished) {
                Shown::Nothing(reason) => self.skip(entry.seq, entry.seq, reason),
                Shown::AsPublished => {
                    let item = match entry.origin.device == self.visible.device {
                        true => own_item(self.visible.incarnation, &entry, false, &mut room),
                        false => entry.item.clone(),
                    };
                    self.push(item);
                }
                Shown::Message(compacted) => {
                    let item = self.compact(&entry, compacted)?;
                    self.push(item);
                }
            }
        }
        Ok(())
    }

    /// The message as it is now, with its newest content.
    fn compact(&self, entry: &StoredEntry, compacted: packet::Compacted) -> Result<Bytes, Miss> {
        // Of an entry that was erased nothing is left but why it is not shown.
        let Some(edited) = compacted_entry(self.reads, entry, compacted)? else { return Ok(entry.item.clone()) };
        let item = packet::encode_item(item::Kind::Entry(edited));
        let changed = StoredEntry { item, ..entry.clone() };
        Ok(match entry.origin.device == self.visible.device {
            true => own_item(self.visible.incarnation, &changed, false, &mut BytesMut::new()),
            false => changed.item,
        })
    }

    fn push(&mut self, item: Bytes) {
        self.end_head();
        self.limit.entries = self.limit.entries.saturating_sub(1);
        self.limit.bytes = self.limit.bytes.saturating_sub(item.len());
        self.items.push(item);
    }

    /// A stretch that is not shown; one that goes on from the last is one with it.
    fn skip(&mut self, from: Seq, to: Seq, reason: HeadReason) {
        match &mut self.head {
            Some((_, end, why)) if *why == reason && end.next() == from => *end = to,
            Some((begin, _, why)) if *why == reason && to.next() == *begin => *begin = from,
            _ => {
                self.end_head();
                self.head = Some((from, to, reason));
                // Counted when it begins, so that a page with nothing but heads comes to its end.
                self.limit.entries = self.limit.entries.saturating_sub(1);
            }
        }
    }

    fn end_head(&mut self) {
        if let Some((from, to, reason)) = self.head.take() {
            self.items.push(head_item(self.id, from, to, reason, 0));
        }
    }
}

/// What a user is shown in the place of each of these entries of a conversation, which it may read.
fn all_shown(
    rows: &Reader<'_>,
    reads: Reads<'_>,
    user: UserId,
    id: ConversationId,
    entries: &[StoredEntry],
    is_compact: bool,
) -> VecDeque<Shown> {
    let (conversation, personal) = (rows.conversation(id), rows.personal(user, id));
    let Some(conversation) = conversation else { return VecDeque::new() };
    let hidden = personal.map_or(&[][..], |personal| &personal.hidden);
    entries.iter().map(|entry| shown(rows, (conversation, hidden), reads, user, entry, is_compact)).collect()
}

/// What a user is shown in the place of an entry that it may read.
fn shown(
    rows: &Reader<'_>,
    (conversation, hidden): (&Conversation, &[(Seq, u64)]),
    reads: Reads<'_>,
    user: UserId,
    entry: &StoredEntry,
    is_compact: bool,
) -> Shown {
    if let Some(reason) = withheld(rows, conversation, entry.conversation, entry.seq, reads.now, || author(&entry.item))
    {
        return Shown::Nothing(reason);
    }
    if hidden.binary_search_by_key(&entry.seq, |(seq, _)| *seq).is_ok() {
        return Shown::Nothing(HeadReason::HiddenByUser);
    }
    if !is_compact {
        return Shown::AsPublished;
    }
    if matches!(kind_of(entry), EntryKind::Edit | EntryKind::Recall | EntryKind::Reaction) {
        return Shown::Nothing(HeadReason::Folded);
    }
    let altered = conversation.more.may_be_altered(entry.seq);
    let Some(altered) = altered.then(|| rows.altered(entry.conversation, entry.seq)).flatten() else {
        return Shown::AsPublished;
    };
    let own = rows.reaction(entry.conversation, entry.seq, user);
    let reactions = altered.reactions.iter().map(|(reaction, count)| packet::ReactionCount {
        reaction: reaction.to_string(),
        count: *count,
        own: own == Some(&**reaction),
    });
    let edit = altered.edits.last().map_or(0, |seq| seq.0);
    Shown::Message(packet::Compacted { edit, edit_time: 0, reactions: reactions.collect() })
}

fn kind_of(entry: &StoredEntry) -> EntryKind {
    entry_of(&entry.item).map_or(EntryKind::Message, |entry| entry.kind())
}

fn entry_of(item: &Bytes) -> Option<packet::Entry> {
    match packet::Item::decode(item.clone()).ok()?.kind? {
        item::Kind::Entry(entry) => Some(entry),
        _ => None,
    }
}

/// The message with what became of it; where an edit is gone from the log, with the content it had.
fn compacted_entry(
    reads: Reads<'_>,
    entry: &StoredEntry,
    mut compacted: packet::Compacted,
) -> Result<Option<packet::Entry>, Miss> {
    let Some(mut message) = entry_of(&entry.item) else { return Ok(None) };
    if compacted.edit > 0 {
        let one = PageLimit { entries: 1, bytes: usize::MAX };
        let edit = Seq(compacted.edit);
        let found = reads.range(entry.conversation, edit, edit, false, one)?;
        let edit = found.first().filter(|found| found.seq == edit).and_then(|found| entry_of(&found.item));
        if let Some(edit) = edit {
            message.content = edit.content;
            let mut beside = edit.beside.unwrap_or_default();
            let before = message.beside.take().unwrap_or_default();
            (beside.reply_to, beside.forwarded, beside.silent) = (before.reply_to, before.forwarded, before.silent);
            message.beside = (*beside != packet::Beside::default()).then_some(beside);
            compacted.edit_time = edit.time;
        }
    }
    message.compacted = (compacted != packet::Compacted::default()).then(|| Box::new(compacted));
    Ok(Some(message))
}

/// A message as a user is shown it now, where it is shown.
///
/// # Errors
/// See [`Miss`].
pub(super) fn message_now(
    reads: Reads<'_>,
    user: UserId,
    id: ConversationId,
    seq: Seq,
) -> Result<Option<packet::Entry>, Miss> {
    let one = PageLimit { entries: 1, bytes: usize::MAX };
    let found = reads.range(id, seq, seq, false, one)?;
    let Some(entry) = found.first().filter(|entry| entry.seq == seq) else { return Ok(None) };
    let one = std::slice::from_ref(entry);
    let mut shown = reads.rows(|rows| all_shown(rows, reads, user, id, one, true))?;
    match shown.pop_front().unwrap_or(Shown::AsPublished) {
        Shown::Nothing(_) => Ok(None),
        Shown::AsPublished => Ok(entry_of(&entry.item)),
        Shown::Message(compacted) => compacted_entry(reads, entry, compacted),
    }
}
