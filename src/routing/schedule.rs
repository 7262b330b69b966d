//! Which conversations let entries go, and when there is one to be looked at next: always in memory, some 80 bytes for
//! each. When follows from the row; that somebody looked in vain is remembered here alone, and outlives no broker.

use std::collections::{BTreeSet, HashMap};

use foldhash::fast::RandomState;
use longwire_protocol::{ConversationId, LogTime};

use super::rows::{Keeping, Keeps};

/// See the module.
#[derive(Debug, Default)]
pub struct Schedule {
    /// Those that have a row, and when they are to be looked at; `None`: nothing goes there of itself.
    conversations: HashMap<ConversationId, Option<LogTime>, RandomState>,
    due: BTreeSet<(LogTime, ConversationId)>,
}

impl Schedule {
    /// A conversation's row is this from here on.
    pub fn put(&mut self, id: ConversationId, row: &Keeping) {
        self.set(id, row.due());
    }

    /// Nothing can go there before.
    pub fn defer(&mut self, id: ConversationId, until: LogTime) {
        self.set(id, Some(until));
    }

    fn set(&mut self, id: ConversationId, due: Option<LogTime>) {
        if let Some(Some(before)) = self.conversations.insert(id, due) {
            self.due.remove(&(before, id));
        }
        if let Some(due) = due {
            self.due.insert((due, id));
        }
    }

    /// Whether a conversation has a row.
    #[must_use]
    pub fn has(&self, id: ConversationId) -> bool {
        self.conversations.contains_key(&id)
    }

    /// All that have one, ascending.
    #[must_use]
    pub fn all(&self) -> Vec<ConversationId> {
        let mut all: Vec<_> = self.conversations.keys().copied().collect();
        all.sort_unstable();
        all
    }

    /// How many have.
    #[must_use]
    pub fn len(&self) -> usize {
        self.conversations.len()
    }

    /// Whether none has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.conversations.is_empty()
    }

    /// Those whose time has come, the longest overdue first, at most so many.
    #[must_use]
    pub fn due(&self, now: LogTime, most: usize) -> Vec<ConversationId> {
        self.due.iter().take_while(|(at, _)| *at <= now).take(most).map(|(_, id)| *id).collect()
    }
}

/// How long after something may have been delivered somebody looks whether it was.
pub(super) const DELIVERED_LOOK_MS: u64 = 10_000;

impl Keeping {
    /// When the next entries may go; `None` while there is nothing to go.
    #[must_use]
    pub fn due(&self) -> Option<LogTime> {
        let oldest = self.places.first().map_or(self.since, |place| place.time);
        if oldest.0 == u64::MAX {
            return None;
        }
        let wait = match self.keeps {
            Keeps::All => return None,
            Keeps::ForTime => self.age_ms,
            Keeps::UntilDelivered => self.age_ms.min(DELIVERED_LOOK_MS),
        };
        Some(LogTime(oldest.0.saturating_add(wait)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::rows::Head;

    #[test]
    fn what_is_longest_overdue_comes_first_and_each_has_one_time() {
        let mut schedule = Schedule::default();
        assert!(schedule.is_empty() && schedule.due(LogTime(u64::MAX), 9).is_empty());
        let ids = [3, 1, 2].map(ConversationId);
        let keeping =
            |since, age_ms| Keeping { keeps: Keeps::ForTime, age_ms, since: LogTime(since), ..Keeping::default() };
        schedule.put(ids[0], &keeping(10, 20));
        schedule.put(ids[1], &keeping(10, 10));
        schedule.put(ids[2], &keeping(u64::MAX, 10));
        assert_eq!(
            (schedule.len(), schedule.all()),
            (3, [1, 2, 3].map(ConversationId).to_vec()),
            "one of them holds nothing"
        );
        assert_eq!([19, 20, 29, 30].map(|now| schedule.due(LogTime(now), 9).len()), [0, 1, 1, 2]);
        assert_eq!(schedule.due(LogTime(30), 1), [ids[1]]);
        schedule.defer(ids[1], LogTime(40));
        assert_eq!(schedule.due(LogTime(40), 9), [ids[0], ids[1]]);
        schedule.put(ids[0], &Keeping::default());
        assert_eq!(schedule.due(LogTime(40), 9), [ids[1]], "it keeps all");
        assert!(schedule.has(ids[0]) && !schedule.has(ConversationId(4)) && !schedule.is_empty());
    }

    /// Where it goes once it was delivered, somebody looks whether it was before its time is over.
    #[test]
    fn what_goes_when_delivered_is_looked_at_soon() {
        let due = |keeps, age_ms| Keeping { keeps, age_ms, since: LogTime(5), ..Keeping::default() }.due();
        assert_eq!(due(Keeps::All, 100), None);
        assert_eq!(due(Keeps::ForTime, 100_000), Some(LogTime(100_005)));
        assert_eq!(due(Keeps::UntilDelivered, 100_000), Some(LogTime(5 + DELIVERED_LOOK_MS)));
        assert_eq!(due(Keeps::UntilDelivered, 100), Some(LogTime(105)));
        assert_eq!(due(Keeps::ForTime, u64::MAX), Some(LogTime(u64::MAX)));
        let place = Head { time: LogTime(50), ..Head::default() };
        let row =
            Keeping { keeps: Keeps::ForTime, age_ms: 9, since: LogTime(70), places: vec![place], ..Keeping::default() };
        assert_eq!(row.due(), Some(LogTime(59)), "the oldest place");
    }
}
