//! The list of a user's duties: what a walk over all of its conversations begins with.

use longwire_protocol::ConversationId;

use super::rows::Duty;

/// The conversations that are or were to be delivered to a user, by rising id, each with its duty as it is committed. A walk
/// over 20,000 of them reads on in memory; most lists have a few. Finding one costs a binary search, a new one moves those
/// above it; many at once cost one sort.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Duties(Vec<(ConversationId, Duty)>);

impl Duties {
    /// The list of nobody.
    pub const NONE: Self = Self(Vec::new());

    /// How many there are, those that have ended included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// That of a conversation.
    #[must_use]
    pub fn get(&self, id: ConversationId) -> Option<&Duty> {
        self.find(id).ok().map(|at| &self.0[at].1)
    }

    /// All, by rising id.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (ConversationId, &Duty)> {
        self.0.iter().map(|(id, duty)| (*id, duty))
    }

    /// The conversations above one, by rising id.
    pub fn above(&self, id: ConversationId) -> impl Iterator<Item = ConversationId> {
        let from = self.0.partition_point(|(known, _)| *known <= id);
        self.0[from..].iter().map(|(id, _)| *id)
    }

    /// A duty as it is now. Returns whether it is new.
    pub fn put(&mut self, id: ConversationId, duty: Duty) -> bool {
        match self.find(id) {
            Ok(at) => {
                self.0[at].1 = duty;
                false
            }
            Err(at) => {
                self.0.insert(at, (id, duty));
                true
            }
        }
    }

    fn find(&self, id: ConversationId) -> Result<usize, usize> {
        self.0.binary_search_by_key(&id, |(known, _)| *known)
    }
}

impl Extend<(ConversationId, Duty)> for Duties {
    /// Of the same conversation the last counts. However many there are and in whatever order, they are sorted once: the store
    /// does not keep them by rising id, and who loads a list holds the state.
    fn extend<I: IntoIterator<Item = (ConversationId, Duty)>>(&mut self, duties: I) {
        let before = self.0.len();
        self.0.extend(duties);
        if self.0.len() > before {
            self.0.sort_by_key(|(id, _)| *id);
            self.0.dedup_by(|later, kept| {
                let is_same = later.0 == kept.0;
                if is_same {
                    *kept = *later;
                }
                is_same
            });
            // What grew for the loading is no part of what the cache counts.
            self.0.shrink_to_fit();
        }
    }
}

impl FromIterator<(ConversationId, Duty)> for Duties {
    fn from_iter<I: IntoIterator<Item = (ConversationId, Duty)>>(duties: I) -> Self {
        let mut all = Self::NONE;
        all.extend(duties);
        all
    }
}

#[cfg(test)]
mod tests {
    use longwire_protocol::Seq;

    use super::*;
    use crate::store::Position;

    fn duty(since: u64) -> Duty {
        Duty { since: Seq(since), joined: Position(since), closed: false }
    }

    fn told(duties: &Duties) -> Vec<(u64, u64)> {
        duties.iter().map(|(id, duty)| (id.0, duty.since.0)).collect()
    }

    #[test]
    fn a_list_is_sorted_however_it_comes_and_the_newest_of_each_counts() {
        let mut duties: Duties =
            [(300, 1), (7, 2), (4_097, 3), (7, 4)].map(|(id, n)| (ConversationId(id), duty(n))).into_iter().collect();
        assert_eq!(told(&duties), [(7, 4), (300, 1), (4_097, 3)]);
        duties.extend([(5_000, 5), (300, 6), (1, 7)].map(|(id, n)| (ConversationId(id), duty(n))));
        assert_eq!(told(&duties), [(1, 7), (7, 4), (300, 6), (4_097, 3), (5_000, 5)]);
        assert!(duties.put(ConversationId(8), duty(8)) && !duties.put(ConversationId(7), duty(9)));
        assert_eq!(told(&duties), [(1, 7), (7, 9), (8, 8), (300, 6), (4_097, 3), (5_000, 5)]);
        assert_eq!(duties.above(ConversationId(8)).map(|id| id.0).collect::<Vec<_>>(), [300, 4_097, 5_000]);
        assert_eq!(
            (duties.get(ConversationId(300)), duties.get(ConversationId(9)), duties.len()),
            (Some(&duty(6)), None, 6)
        );
    }
}
