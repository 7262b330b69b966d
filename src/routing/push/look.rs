//! What a device is yet to be told, by what it has not acked: a look at its user's conversations and at the log above
//! where the device stands. It changes nothing; the same rows, log and time give the same answer.

use std::collections::BTreeSet;

use bytes::Bytes;
use longwire_protocol::limits::PREVIEW_BYTES_MAX;
use longwire_protocol::packet::{self, EntryKind, Level, Shows, item};
use longwire_protocol::{ConversationId, DeviceId, LogTime, Seq, UserId};
use prost::Message as _;
use xxhash_rust::xxh3::{xxh3_128, xxh3_128_with_seed};

use super::{Push, Told, ToldOf};
use crate::mutation::Mutation;
use crate::routing::alteration::withheld;
use crate::routing::limits::PUSH_TOLD_MAX;
use crate::routing::query::unread_total;
use crate::routing::reads::{Miss, Reads};
use crate::routing::registry::Registry;
use crate::routing::rows::{DeviceCursor, Duty, Kind, Member};
use crate::routing::view::{Reader, Rows as _};
use crate::store::{PageLimit, Position, SegmentId, StoredEntry};

/// Entries read at once from one conversation.
const PAGE: PageLimit = PageLimit { entries: 64, bytes: 64 << 10 };
/// Entries that were gone through in vain before that is noted.
const VAIN_MAX: u64 = 256;

/// When and for how long a device is told.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// What is not acked for so long is told.
    pub after_ms: u64,
    /// Of one conversation a device is told once in so long.
    pub collapse_ms: u64,
    /// What is older is not told any more.
    pub expire_ms: u64,
}

/// Which conversations may have news.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// These.
    Of(BTreeSet<ConversationId>),
    /// Whichever the rows say.
    Any,
}

/// Beyond so many it is simpler to look at all.
const LISTED_MAX: usize = 64;

impl News {
    /// No news.
    pub const NONE: Self = Self::Of(BTreeSet::new());

    /// And this one.
    pub fn add(&mut self, conversation: ConversationId) {
        if let Self::Of(listed) = self {
            listed.insert(conversation);
            if listed.len() > LISTED_MAX {
                *self = Self::Any;
            }
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Of(listed) if listed.is_empty())
    }
}

/// One device at one time.
#[derive(Debug)]
pub struct Looked<'a> {
    /// Whose it is.
    pub user: UserId,
    /// Which.
    pub device: DeviceId,
    /// Where it has itself told.
    pub push: &'a Push,
    /// Where it stands by its acks.
    pub heard: DeviceCursor,
    /// Where there may be news.
    pub news: &'a News,
    /// See there.
    pub rules: &'a Rules,
}

/// What a device is to be told of one conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The same each time it is tried, also by a broker that crashed meanwhile.
    pub id: u128,
    /// The same for all notices of one conversation to one device.
    pub collapse: u128,
    /// The conversation.
    pub conversation: ConversationId,
    /// The newest message that is told.
    pub seq: Seq,
    /// The conversation is told up to here.
    pub upto: Position,
    /// It is worth nothing from then on.
    pub expires: LogTime,
    /// What the user has not read in all.
    pub badge: u64,
    /// Who wrote it and what the conversation is called, where the device says that this may be told.
    pub names: Option<(String, String)>,
    /// The beginning of its content, likewise.
    pub content: Option<Bytes>,
}

/// What a look found.
#[derive(Debug)]
pub struct Look {
    /// What is to be told now; with nothing, all that there was is told.
    pub notice: Option<Notice>,
    /// Where there is more, now or later.
    pub rest: News,
    /// Something is to be told then, if nobody acks it before.
    pub again: Option<LogTime>,
    /// What was told, less what need not be known any more.
    pub told: Told,
    /// Much was gone through in vain, and that is noted there: worth being kept.
    pub is_fresh: bool,
}

/// Where a device stands by its acks: in its session if it has one, else as stored.
#[must_use]
pub fn heard(rows: &Reader<'_>, registry: &Registry, user: UserId, device: DeviceId) -> DeviceCursor {
    let mut live = None;
    registry.each_of(user, |session| {
        if session.device == device {
            let stands = session.outbox.lock().stands;
            live = Some(stands).filter(|stands| stands.segment != SegmentId(0));
        }
    });
    let stored = rows.device(device).and_then(|row| row.cursor);
    let nowhere = DeviceCursor { segment: SegmentId(0), express: Position(0), bulk: Position(0) };
    live.or(stored).unwrap_or(nowhere)
}

/// A conversation that may have something to tell.
struct Candidate {
    id: ConversationId,
    kind: Kind,
    head: Seq,
    head_position: Position,
    /// Told and heard up to here.
    after: Position,
    /// Read and delivered before this one.
    from: Seq,
    /// When it was last told.
    told: LogTime,
    member: Member,
    /// Told only where the user is mentioned: it is muted, or the device wants nothing of it.
    is_quiet: bool,
    hidden: Vec<Seq>,
}

/// Looks what the device is to be told now.
///
/// # Errors
/// When the store cannot be read, or would have to be waited for.
pub fn look(reads: Reads<'_>, of: &Looked<'_>, told: &Told) -> Result<Look, Miss> {
    let (candidates, blocked, tail) = reads.rows(|rows| {
        let blocked = rows.refusals(of.user).map_or_else(Vec::new, |refuses| refuses.users.clone());
        (candidates(rows, reads.now, of, told), blocked, rows.state().tail)
    })?;
    let mut look = Look { notice: None, rest: News::NONE, again: None, told: told.clone(), is_fresh: false };
    let mut first: Option<(Position, Candidate, Found)> = None;
    let mut untold = tail;
    for candidate in candidates {
        let Some(found) = find(reads, of, &candidate, &blocked, &mut look)? else { continue };
        look.rest.add(candidate.id);
        untold = untold.min(Position(found.first.position.0 - 1));
        let after = LogTime(found.first.time.0 + of.rules.after_ms);
        let open = LogTime(if candidate.told.0 == 0 { 0 } else { candidate.told.0 + of.rules.collapse_ms });
        let due = if Mutation::PushToldTwice.is_planted() { after } else { after.max(open) };
        if due > reads.now {
            look.again = Some(look.again.map_or(due, |again| again.min(due)));
        } else if first.as_ref().is_none_or(|(position, ..)| found.first.position < *position) {
            first = Some((found.first.position, candidate, found));
        }
    }
    settle(&mut look.told, of, reads.now, (*of.news == News::Any).then_some(untold));
    let Some((_, candidate, found)) = first else { return Ok(look) };
    let is_known = look.told.beyond.iter().any(|told| told.conversation == candidate.id);
    if look.told.beyond.len() >= PUSH_TOLD_MAX && !is_known {
        // As much as is kept of one device. What is acked, or lies below all that is to be told, makes room.
        let ends = |told: &ToldOf| Some(told.time.0 + of.rules.collapse_ms).filter(|end| *end > reads.now.0);
        if *of.news != News::Any {
            (look.rest, look.again) = (News::Any, Some(reads.now));
            return Ok(look);
        } else if let Some(end) = look.told.beyond.iter().filter_map(ends).min() {
            (look.rest, look.again) = (News::Any, Some(LogTime(end)));
            return Ok(look);
        }
        // Rather twice than never.
        let oldest = look.told.beyond.iter().map(|told| told.upto).min();
        look.told.beyond.retain(|told| Some(told.upto) != oldest);
    }
    look.notice = Some(notice(reads, of, &candidate, found)?);
    Ok(look)
}

/// Forgets what was told where it need not be known: it was acked, or it lies below what all conversations were told, and
/// the conversation may be told of again. `untold` is the last position below which nothing is to be told any more, where
/// all conversations were gone through.
fn settle(told: &mut Told, of: &Looked<'_>, now: LogTime, untold: Option<Position>) {
    told.upto = told.upto.max(untold.unwrap_or_default());
    let heard = of.heard.express.min(of.heard.bulk).max(told.upto);
    let is_open = |time: LogTime| time.0 > 0 && time.0 + of.rules.collapse_ms > now.0;
    told.beyond.retain(|told: &ToldOf| told.upto > heard || is_open(told.time));
}

fn candidates(rows: &Reader<'_>, now: LogTime, of: &Looked<'_>, told: &Told) -> Vec<Candidate> {
    let mut found = Vec::new();
    let levels = rows.device(of.device).map(|row| row.levels.clone()).unwrap_or_default();
    let mut consider = |id: ConversationId, duty: Option<&Duty>| {
        // All are asked for before one is judged: what is cold is loaded at once.
        let (conversation, member) = (rows.conversation(id), rows.member(id, of.user));
        let (Some(duty), Some(conversation), Some(member)) = (duty, conversation, member) else { return };
        // What may be read of a channel the token of a session says, and who is away has none.
        let is_told = matches!(conversation.kind, Kind::Direct | Kind::Group);
        if duty.closed || !member.is_active() || !is_told {
            return;
        }
        let heard = if conversation.kind.is_express() { of.heard.express } else { of.heard.bulk };
        let (upto, time) = told.of(id);
        let after = if Mutation::PushToldAfterAck.is_planted() { upto } else { upto.max(heard) };
        if conversation.head.position <= after {
            return;
        }
        let settings = rows.settings(of.user, id);
        let personal = rows.personal(of.user, id);
        found.push(Candidate {
            id,
            kind: conversation.kind,
            head: conversation.head.seq,
            head_position: conversation.head.position,
            after,
            from: duty.since.max(member.mark).next(),
            told: time,
            member: member.clone(),
            is_quiet: !Mutation::PushIgnoresMute.is_planted()
                && (settings.is_some_and(|settings| settings.muted_until > now.0) || levels.of(id) == Level::Nothing),
            hidden: personal.map_or_else(Vec::new, |personal| personal.hidden.iter().map(|(seq, _)| *seq).collect()),
        });
    };
    match of.news {
        News::Any => rows.duties(of.user).iter().for_each(|(id, duty)| consider(id, Some(duty))),
        // The row alone: the list may be one of thousands.
        News::Of(listed) => listed.iter().for_each(|id| consider(*id, rows.duty(of.user, *id))),
    }
    found
}

/// What there is to tell of a conversation: the oldest message, by which it is due, and the newest of the same page.
struct Found {
    first: StoredEntry,
    last: (StoredEntry, packet::Entry),
}

fn find(
    reads: Reads<'_>,
    of: &Looked<'_>,
    candidate: &Candidate,
    blocked: &[UserId],
    look: &mut Look,
) -> Result<Option<Found>, Miss> {
    let Some(first) = reads.first_after(candidate.id, candidate.after)? else { return Ok(None) };
    let (mut next, mut vain) = (first.max(candidate.from), 0);
    while next <= candidate.head {
        let page = reads.range(candidate.id, next, candidate.head, false, PAGE)?;
        let Some(newest) = page.last() else { break };
        next = newest.seq.next();
        let mut found: Option<Found> = None;
        for entry in &page {
            let Some(message) = told_of(reads, of, candidate, blocked, entry)? else { continue };
            match &mut found {
                Some(found) => found.last = (entry.clone(), message),
                None => found = Some(Found { first: entry.clone(), last: (entry.clone(), message) }),
            }
        }
        if found.is_some() {
            return Ok(found);
        }
        vain += page.len() as u64;
        if vain >= VAIN_MAX && look.told.beyond.len() < PUSH_TOLD_MAX {
            look.told.note(candidate.id, newest.position, candidate.told);
            look.is_fresh = true;
        }
    }
    Ok(None)
}

/// The message, if the device is to be told of it (SPEC R17-4).
fn told_of(
    reads: Reads<'_>,
    of: &Looked<'_>,
    candidate: &Candidate,
    blocked: &[UserId],
    entry: &StoredEntry,
) -> Result<Option<packet::Entry>, Miss> {
    let Ok(packet::Item { kind: Some(item::Kind::Entry(message)) }) = packet::Item::decode(entry.item.clone()) else {
        return Ok(None);
    };
    let sender = UserId(message.sender);
    let beside = message.beside.as_ref();
    let is_meant = beside.is_some_and(|beside| beside.mentions.contains(&of.user.0));
    let is_quiet = beside.is_some_and(|beside| beside.silent) || (candidate.is_quiet && !is_meant);
    let is_past = entry.time.0 + of.rules.expire_ms <= reads.now.0;
    if message.kind() != EntryKind::Message
        || sender == of.user
        || is_quiet
        || is_past
        || blocked.binary_search(&sender).is_ok()
        || !candidate.member.sees(entry.seq)
        || candidate.hidden.binary_search(&entry.seq).is_ok()
    {
        return Ok(None);
    }
    let gone = reads.rows(|rows| {
        let conversation = rows.conversation(candidate.id)?;
        withheld(rows, conversation, candidate.id, entry.seq, reads.now, || Some(sender))
    })?;
    Ok(gone.is_none().then_some(message))
}

fn notice(reads: Reads<'_>, of: &Looked<'_>, candidate: &Candidate, found: Found) -> Result<Notice, Miss> {
    let (newest, message) = found.last;
    let place = [of.device.0, candidate.id.0].map(u64::to_le_bytes).concat();
    let shows = Shows::try_from(of.push.shows).unwrap_or_default();
    let names = match shows {
        Shows::Nothing => None,
        Shows::Names | Shows::Content => Some(reads.rows(|rows| {
            let sender = rows.user(UserId(message.sender)).map_or_else(String::new, |row| row.name.to_string());
            let label = match candidate.kind {
                Kind::Direct => sender.clone(),
                _ => rows.conversation(candidate.id).map_or_else(String::new, |row| row.label.to_string()),
            };
            (sender, label)
        })?),
    };
    Ok(Notice {
        id: xxh3_128_with_seed(&place, found.first.position.0),
        collapse: xxh3_128(&place),
        conversation: candidate.id,
        seq: newest.seq,
        upto: candidate.head_position,
        expires: LogTime(newest.time.0 + of.rules.expire_ms),
        badge: unread_total(reads, of.user)?,
        names,
        content: (shows == Shows::Content)
            .then(|| message.content.slice(..message.content.len().min(PREVIEW_BYTES_MAX))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_are_listed_while_they_are_few() {
        let mut news = News::NONE;
        assert!(news.is_empty());
        (0..LISTED_MAX as u64).for_each(|id| news.add(ConversationId(id)));
        news.add(ConversationId(3));
        assert!(matches!(&news, News::Of(listed) if listed.len() == LISTED_MAX) && !news.is_empty());
        (0..2).for_each(|more| news.add(ConversationId(LISTED_MAX as u64 + more)));
        assert_eq!(news, News::Any);
        assert!(!news.is_empty());
    }
}
