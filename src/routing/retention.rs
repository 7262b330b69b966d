//! How long entries are kept (SPEC 5.7): what a conversation's retention says, where what it keeps may be divided, and
//! what goes next. Nothing is read from the log for it: as entries come, the fold notes *places*, up to which all may go at
//! once. What goes is a record, decided by the commit thread, which knows the time; the fold knows none.

use longwire_protocol::limits::{DELIVERED_MEMBERS_MAX, RETENTION_MS_MAX, RETENTION_MS_MIN, UNDELIVERED_MS_MAX};
use longwire_protocol::packet::{self, EntryKind, PublishAck, RetentionMode, Role};
use longwire_protocol::reason::Reason;
use longwire_protocol::{ConversationId, LogTime, Seq, UserId};

use super::change::Change;
use super::draft::{Draft, No, Ticket};
use super::fold::Body;
use super::limits::{PLACES_MAX, TIMED_MAX};
use super::outbox::Session;
use super::rows::{Conversation, Head, Keeping, Keeps, Key, Kind, Row};
use super::schedule::DELIVERED_LOOK_MS;
use super::tallies::fold_below;
use super::view::{Rows, View};
use crate::mutation::Mutation;
use crate::store::Position;

/// What is not delivered is looked at again after an eighth of its age, and after so long at the most.
const LOOK_AGAIN_MS_MAX: u64 = 600_000;

impl Keeping {
    /// What these words say; what is gone stays gone.
    fn set(&mut self, retention: &packet::Retention) {
        self.keeps = match retention.mode() {
            RetentionMode::Keep => Keeps::All,
            RetentionMode::KeepFor => Keeps::ForTime,
            RetentionMode::UntilDelivered => Keeps::UntilDelivered,
        };
        self.age_ms = retention.age_ms;
    }

    /// The words for it; `None` where everything is kept.
    #[must_use]
    pub fn wire(&self) -> Option<packet::Retention> {
        let mode = match self.keeps {
            Keeps::All => return None,
            Keeps::ForTime => RetentionMode::KeepFor,
            Keeps::UntilDelivered => RetentionMode::UntilDelivered,
        };
        Some(packet::Retention { mode: mode.into(), age_ms: self.age_ms })
    }

    /// How far two places lie apart in time, so that nothing stays for more than a sixteenth longer than it may.
    fn spacing_ms(&self) -> u64 {
        match self.keeps {
            Keeps::UntilDelivered => (self.age_ms / 16).min(DELIVERED_LOOK_MS),
            Keeps::All | Keeps::ForTime => self.age_ms / 16,
        }
    }

    /// An entry of this `time` comes after `before`: notes that one as a place, where it is time for one. Returns whether
    /// anything changed.
    fn note(&mut self, before: &Head, first: Seq, time: LogTime) -> bool {
        if before.seq < first || !before.seq.is_some() {
            // Nothing is left before it.
            self.places.clear();
            return std::mem::replace(&mut self.since, time) != time;
        }
        let last = self.places.last();
        if last.is_some_and(|place| place.seq >= before.seq) {
            return false;
        }
        let begun = last.map_or(self.since, |place| place.time);
        if self.since.0 == u64::MAX {
            self.since = before.time;
            return true;
        }
        if time.0 < begun.0.saturating_add(self.spacing_ms()) {
            return false;
        }
        self.places.push(*before);
        if self.places.len() > PLACES_MAX {
            // The one whose neighbours lie nearest to each other is missed least.
            let apart = |at: &usize| self.places[at + 1].time.0 - self.places[at - 1].time.0;
            let least = (1..self.places.len() - 1).min_by_key(apart);
            least.map(|at| self.places.remove(at));
        }
        true
    }
}

/// Folds how long a conversation keeps its entries from this one on: what was there before counts as published now.
pub(super) fn fold_retention(view: &mut View<'_>, id: ConversationId, time: LogTime, retention: &packet::Retention) {
    let mut row = view.keeping(id).cloned().unwrap_or_default();
    row.set(retention);
    row.places.clear();
    row.since = if row.keeps == Keeps::All { LogTime(u64::MAX) } else { time };
    let is_timed = row.keeps != Keeps::All;
    view.put(Key::Keeping(id), Some(Row::Keeping(row)));
    update(view, id, |conversation| conversation.more.kept.is_timed = is_timed);
}

/// Folds a new entry of a conversation whose entries go after a time; `before` was its head.
pub(super) fn fold_next(view: &mut View<'_>, id: ConversationId, before: &Head, time: LogTime) {
    let first = view.conversation(id).map_or(Seq(0), |row| row.more.kept.first);
    let Some(mut row) = view.keeping(id).cloned() else { return };
    if row.note(before, first, time) {
        view.put(Key::Keeping(id), Some(Row::Keeping(row)));
    }
}

/// Folds that a conversation is kept from an entry on.
pub(super) fn fold_kept_from(view: &mut View<'_>, id: ConversationId, first: Seq, countable: u64, position: Position) {
    let Some(head) = view.conversation(id).map(|row| row.head) else { return };
    let mut row = view.keeping(id).cloned().unwrap_or_default();
    row.below = row.below.max(countable);
    row.places.retain(|place| place.seq >= first);
    // What is left came after what is gone, and is no older than the oldest place, or than the newest entry.
    row.since = match row.keeps {
        Keeps::All => LogTime(u64::MAX),
        _ if head.seq < first => LogTime(u64::MAX),
        _ => row.places.first().map_or(head.time, |place| place.time),
    };
    view.put(Key::Keeping(id), Some(Row::Keeping(row)));
    update(view, id, |conversation| {
        let kept = &mut conversation.more.kept;
        kept.first = kept.first.max(first);
        kept.raised = position;
    });
    fold_below(view, id, countable);
}

fn update(view: &mut View<'_>, id: ConversationId, change: impl FnOnce(&mut Conversation)) {
    view.update(Key::Conversation(id), |row| {
        if let Row::Conversation(row) = row {
            change(row);
        }
    });
}

impl Draft<'_, '_> {
    /// Says how long a conversation keeps its entries.
    pub(super) fn set_retention(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        id: ConversationId,
        retention: packet::Retention,
    ) -> Result<PublishAck, No> {
        let conversation = self.visible(session, id)?;
        let (kind, members) = (conversation.kind, conversation.members);
        let may = match kind {
            // What goes is gone for both.
            Kind::Direct => self.is_taken(session, id).is_ok() || Mutation::BlockedSetsRetention.is_planted(),
            Kind::Group => self.role(session, id) == Role::Owner || Mutation::AnyoneSetsRetention.is_planted(),
            // Nobody owns a channel, and what goes is gone for all.
            Kind::Channel => session.grants.load().is_admin,
            Kind::Inbox => false,
        };
        if !may {
            return Err(No(Reason::Forbidden, "the user may not say how long entries are kept here"));
        }
        let mode = RetentionMode::try_from(retention.mode);
        let mode = mode.map_err(|_| No(Reason::InvalidArgument, "no such mode of retention"))?;
        let longest = match mode {
            RetentionMode::Keep => 0,
            RetentionMode::KeepFor => RETENTION_MS_MAX,
            RetentionMode::UntilDelivered => UNDELIVERED_MS_MAX,
        };
        let shortest = if longest == 0 { 0 } else { RETENTION_MS_MIN };
        if !(shortest..=longest).contains(&retention.age_ms) {
            return Err(No(Reason::InvalidArgument, "entries are kept for longer or shorter than that"));
        }
        if mode == RetentionMode::UntilDelivered && kind == Kind::Channel {
            return Err(No(Reason::InvalidArgument, "who reads a channel is not known"));
        }
        if mode == RetentionMode::UntilDelivered && members > DELIVERED_MEMBERS_MAX {
            return Err(No(Reason::QuotaExceeded, "the conversation has too many members for that"));
        }
        let known = self.view.keeping(id).and_then(Keeping::wire).unwrap_or_default();
        if known == retention {
            return Ok(self.answered(ticket, id, false));
        }
        if mode != RetentionMode::Keep && self.view.timed() >= TIMED_MAX && self.view.keeping(id).is_none() {
            return Err(No(Reason::QuotaExceeded, "the broker looks after as many such conversations as it can"));
        }
        let mut entry = packet::Entry { retention: Some(retention), ..packet::Entry::default() };
        entry.set_kind(EntryKind::Retention);
        Ok(self.publish_entry(session, id, ticket, entry, &Body::Retention(retention)))
    }

    /// Lets go what a conversation need not keep any more; returns when to look again where it is known.
    pub(super) fn sweep(&mut self, id: ConversationId) -> Option<LogTime> {
        let now = self.frame.time();
        let (row, conversation) = (self.view.keeping(id)?.clone(), self.view.conversation(id)?.clone());
        let first = conversation.more.kept.first;
        let left = row.places.iter().chain([&conversation.head]).filter(|place| place.seq >= first);
        let may_look = row.keeps == Keeps::UntilDelivered && conversation.members <= DELIVERED_MEMBERS_MAX;
        let (delivered, before) = if may_look { self.delivered(id, &conversation) } else { Default::default() };
        let is_over = |place: &&Head| {
            let is_old = place.time.0.saturating_add(row.age_ms) <= now.0 && row.keeps != Keeps::All;
            is_old || (place.position <= delivered && place.time < before)
        };
        match left.filter(|place| place.seq.is_some()).take_while(is_over).last().copied() {
            Some(place) => {
                let (first, countable) = (place.seq.next(), place.countable);
                self.change(&Change::KeptFrom { conversation: id, first, countable });
                None
            }
            None => {
                let oldest = row.places.first().map_or(conversation.head.time, |place| place.time);
                let old = LogTime(oldest.0.saturating_add(row.age_ms));
                let age = now.0.saturating_sub(oldest.0);
                let look = LogTime(now.0 + (age / 8).clamp(DELIVERED_LOOK_MS, LOOK_AGAIN_MS_MAX));
                Some(if may_look { old.min(look) } else { old })
            }
        }
    }

    /// Up to where every device of every member has stored what it was sent in the conversation's lane, as far as that is
    /// stored itself; and since when there is a device that has yet to store something, and is owed what came later. Looks at two hundred users and their devices at the most, and no further than the first that has nothing.
    fn delivered(&self, id: ConversationId, conversation: &Conversation) -> (Position, LogTime) {
        let members: Vec<UserId> = match conversation.kind {
            Kind::Direct | Kind::Inbox => vec![conversation.pair.0, conversation.pair.1],
            Kind::Group | Kind::Channel => self.view.members(id).iter().copied().collect(),
        };
        let (mut least, mut before) = (Position(u64::MAX), LogTime(u64::MAX));
        for user in members {
            if !self.view.member(id, user).is_some_and(super::rows::Member::is_active) {
                continue;
            }
            // Who never came has nothing.
            let devices = self.view.user(user).map_or(&[][..], |row| &row.devices);
            least = if devices.is_empty() { Position(0) } else { least };
            for device in devices {
                let Some(row) = self.view.device(*device) else { continue };
                let has = match row.cursor {
                    Some(cursor) if conversation.kind.is_express() => cursor.express,
                    Some(cursor) => cursor.bulk,
                    None => {
                        before = before.min(row.created);
                        continue;
                    }
                };
                least = if Mutation::AnyDeviceDelivers.is_planted() { least.max(has) } else { least.min(has) };
            }
            if least == Position(0) {
                break;
            }
        }
        (least, before)
    }
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
