//! Rows of what became of messages, and of which of them count no more.

use longwire_protocol::packet::HeadReason;
use longwire_protocol::{LogTime, Seq};
use serde::{Deserialize, Serialize};

/// What became of an entry after it was published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Altered {
    /// It is shown to nobody any more.
    pub is_recalled: bool,
    /// It is shown to nobody from this time on; 0 where it does not expire.
    pub expires: LogTime,
    /// Its edits, oldest first; at most [`crate::routing::limits::EDITS_MAX`].
    pub edits: Vec<Seq>,
    /// How often each reaction was given, at most [`crate::routing::limits::REACTIONS_MAX`] of them.
    pub reactions: Vec<(Box<str>, u64)>,
    /// Of an edit: the message that it edits; 0 for every other entry.
    #[serde(skip)]
    pub edit_of: Seq,
}

impl Altered {
    /// Why the entry is not shown at this time; `None` while it is.
    #[must_use]
    pub fn withheld(&self, now: LogTime) -> Option<HeadReason> {
        if self.is_recalled {
            Some(HeadReason::Recalled)
        } else if self.expires.0 > 0 && self.expires <= now {
            Some(HeadReason::Expired)
        } else {
            None
        }
    }
}

/// Which of a conversation's countable entries count no more, beside those that tallies hold. They are told by their place
/// among the countable ones. No entry is in two of the three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uncounted {
    /// What an older broker noted: stretches, ascending, both ends included, never touching. They go to tallies.
    pub stretches: Vec<(u64, u64)>,
    /// Those that will not count from a time on, by that time; at most [`crate::routing::limits::EXPIRING_MAX`] that have not
    /// ended, and few that have.
    pub expiring: Vec<(LogTime, u64)>,
    /// How many levels of tallies there are.
    #[serde(skip)]
    pub levels: u8,
}

/// Which of 1,024 countable entries count no more, as bits; or how many of each of 64 tallies of the level below. See
/// `routing/tallies.rs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally(pub Vec<u64>);

impl Uncounted {
    /// How many are yet to expire at this time.
    #[must_use]
    pub fn expiring_after(&self, now: LogTime) -> usize {
        self.expiring.len() - self.ended(now).count()
    }

    /// Those that have ended by now, and are not tallied yet.
    pub(in crate::routing) fn ended(&self, now: LogTime) -> impl Iterator<Item = u64> {
        self.expiring.iter().take_while(move |(expires, _)| *expires <= now).map(|(_, at)| *at)
    }

    /// Whether an older broker noted it.
    pub(in crate::routing) fn in_stretch(&self, at: u64) -> bool {
        let i = self.stretches.partition_point(|(_, to)| *to < at);
        self.stretches.get(i).is_some_and(|(from, _)| *from <= at)
    }

    /// How many of those above `after` it noted.
    pub(in crate::routing) fn in_stretches_above(&self, after: u64) -> u64 {
        let i = self.stretches.partition_point(|(_, to)| *to <= after);
        self.stretches[i..].iter().map(|(from, to)| to - after.max(from - 1)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_withheld_from_the_moment_it_expires_and_a_recall_says_more() {
        let expires = |at| Altered { expires: LogTime(at), ..Altered::default() };
        let at = |row: &Altered, now| row.withheld(LogTime(now));
        assert_eq!(at(&expires(0), 9), None);
        assert_eq!(
            [8, 9, 10].map(|now| at(&expires(9), now)),
            [None, Some(HeadReason::Expired), Some(HeadReason::Expired)]
        );
        let recalled = Altered { is_recalled: true, ..expires(9) };
        assert_eq!([8, 9].map(|now| at(&recalled, now)), [Some(HeadReason::Recalled); 2]);
    }
}
