//! Pipelining never reorders: an id is accepted only if no lower id of that conversation that was refused with *retry*
//! or *after* is still open (SPEC R5.4-1). Pure bookkeeping; the broker's routing may keep one too, since what it
//! refuses may have followers that already passed the session.

use crate::{ids::MessageId, reason::Verdict};

/// The ids of one session that were refused with *retry* or *after* and are neither repeated nor given up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenRefusals {
    /// Few, and usually none; the span of ids bounds them.
    open: Vec<(u64, MessageId)>,
}

impl OpenRefusals {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self { open: Vec::new() }
    }

    /// Notes that `message_id`, about `conversation`, was refused with this verdict.
    pub fn refused(&mut self, conversation: u64, message_id: MessageId, verdict: Verdict) {
        let open = matches!(verdict, Verdict::Retry | Verdict::RetryElsewhere | Verdict::After);
        if open && !self.open.contains(&(conversation, message_id)) {
            self.open.push((conversation, message_id));
        }
    }

    /// Whether `message_id` has to wait: a lower id of its conversation is open.
    #[must_use]
    pub fn blocks(&self, conversation: u64, message_id: MessageId) -> bool {
        self.open.iter().any(|&(c, id)| c == conversation && id < message_id)
    }

    /// Closes an id: it is repeated, or given up. Returns whether it was open.
    pub fn close(&mut self, message_id: MessageId) -> bool {
        let before = self.open.len();
        self.open.retain(|&(_, id)| id != message_id);
        let was_open = self.open.len() < before;
        self.shrink();
        was_open
    }

    /// Closes every id below `first_unanswered`: they are settled.
    pub fn close_below(&mut self, first_unanswered: MessageId) {
        if !self.open.is_empty() {
            self.open.retain(|&(_, id)| id >= first_unanswered);
            self.shrink();
        }
    }

    /// How many are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    fn shrink(&mut self) {
        if self.open.is_empty() {
            self.open = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each session has one, and nearly all of them have nothing open.
    #[test]
    fn what_is_closed_takes_no_memory() {
        let close = |close: fn(&mut OpenRefusals)| {
            let mut open = OpenRefusals::new();
            (1..100).for_each(|id| open.refused(1, MessageId(id), Verdict::Retry));
            close(&mut open);
            (open.len(), open.open.capacity())
        };
        assert_eq!(close(|open| open.close_below(MessageId(100))), (0, 0));
        assert_eq!(close(|open| (1..100).for_each(|id| assert!(open.close(MessageId(id))))), (0, 0));
    }
}
