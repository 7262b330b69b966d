//! The list of a user's duties: what a walk over all of its conversations begins with.

use longwire_protocol::ConversationId;

use super::rows::Duty;

/// The conversations that are or were to be delivered to a user, by rising id, each with its duty as it is committed. A walk
/// over 20,000 of them reads on in memory; most lists have a few. Finding one costs a binary search, a new one moves those
/// above it.
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
    fn extend<I: IntoIterator<Item = (ConversationId, Duty)>>(&mut self, duties: I) {
        for (id, duty) in duties {
            self.put(id, duty);
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
