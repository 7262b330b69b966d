//! What the disk forgets: while entries become runs and runs are merged, what readers are shown no more is left out, or
//! something without content is put in its place. What that is, `routing` knows; the store knows where it may leave a
//! place empty.

use longwire_protocol::ConversationId;

use super::{Position, ReadError, StoredEntry};

/// What a row of a run is, to who looks for what is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// It holds something that is to go.
    ToGo,
    /// It holds nothing of the kind; what follows of its conversation may.
    Gone,
    /// Nor does what follows of its conversation.
    Kept,
}

/// Tells what readers are shown no more.
pub trait Sieve: Send + Sync {
    /// Where the state that it goes by stands, or did a moment ago.
    fn stands_at(&self) -> Position;

    /// Whether nothing is to go, so that nothing need be asked. `is_thorough` as in [`Sieve::sift`].
    fn is_idle(&self, is_thorough: bool) -> bool;

    /// Puts something without content in the place of what is shown no more among consecutive entries of one conversation;
    /// returns how many of the first lie below what the conversation keeps. Unless it `is_thorough`, it may pass over what is
    /// not at hand.
    ///
    /// # Errors
    /// When the state cannot be read.
    fn sift(&self, entries: &mut [StoredEntry], is_thorough: bool) -> Result<usize, ReadError>;

    /// The conversations, ascending, of which alone something has to leave the files; nothing where it may be of any.
    fn among(&self) -> Option<Vec<ConversationId>>;

    /// Whether consecutive entries of one of these conversations hold something that has to leave the files.
    ///
    /// # Errors
    /// When the state cannot be read.
    fn left(&self, entries: &[StoredEntry]) -> Result<Left, ReadError>;
}

/// Whether anything of a conversation is left below an entry: while there is, an empty place would be a hole.
#[derive(Debug, Default)]
pub(super) struct Below {
    conversation: ConversationId,
    is_kept: bool,
}

impl Below {
    /// How many of the first `gone` entries of a row are left out: all or none. `is_older` tells whether something older of
    /// the conversation is kept elsewhere; it is asked once for a conversation.
    pub(super) fn leave_out(
        &mut self,
        row: &[StoredEntry],
        gone: usize,
        is_older: impl FnOnce(ConversationId) -> Result<bool, ReadError>,
    ) -> Result<usize, ReadError> {
        let Some(first) = row.first() else { return Ok(0) };
        if self.conversation != first.conversation {
            *self = Self { conversation: first.conversation, is_kept: gone > 0 && is_older(first.conversation)? };
        }
        let left_out = if self.is_kept { 0 } else { gone };
        self.is_kept |= left_out < row.len();
        Ok(left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::entry;
    use super::*;

    fn row(conversation: u64, seqs: std::ops::Range<u64>) -> Vec<StoredEntry> {
        seqs.map(|seq| entry(conversation, seq, seq)).collect()
    }

    #[test]
    fn what_goes_is_left_out_only_where_nothing_older_stays() {
        let mut below = Below::default();
        let nothing = |_| Ok(false);
        assert_eq!(below.leave_out(&row(5, 1..4), 3, nothing).expect("asks"), 3);
        assert_eq!(below.leave_out(&row(5, 4..8), 2, nothing).expect("asks"), 2, "goes on where the last one ended");
        assert_eq!(below.leave_out(&row(5, 8..10), 2, nothing).expect("asks"), 0, "an entry below stays");
        assert_eq!(below.leave_out(&row(6, 3..5), 2, |_| Ok(true)).expect("asks"), 0, "so does one elsewhere");
        assert_eq!(below.leave_out(&row(6, 5..7), 2, nothing).expect("asks"), 0, "which is asked once");
        let unasked = |_| panic!("nothing goes: it makes no difference, and costs a look into every older run");
        assert_eq!(below.leave_out(&row(7, 1..3), 0, unasked).expect("does not ask"), 0);
    }
}
