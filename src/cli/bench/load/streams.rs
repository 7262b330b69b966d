//! The streams of one device as its broker tells them: every seq comes once and in order, or lies in a range that was
//! reported (SPEC R6.1-3).

use std::collections::HashMap;

use longwire_client::packet::{self, EntryKind, item};

/// How far each conversation has come.
#[derive(Clone, Debug, Default)]
pub(in crate::cli::bench) struct Streams {
    last: HashMap<u64, u64>,
    /// Seqs that were reported instead of delivered.
    pub(in crate::cli::bench) reported: u64,
}

impl Streams {
    /// Says what is wrong with an item.
    pub(in crate::cli::bench) fn take(&mut self, item: &packet::Item) -> Result<(), String> {
        match &item.kind {
            Some(item::Kind::Entry(entry)) => {
                self.next(entry.conversation, entry.seq, entry.seq)?;
                match (entry.kind(), &entry.joined, &entry.left) {
                    (EntryKind::Joined, Some(joined), _) => {
                        self.last.insert(joined.conversation, joined.seq);
                    }
                    (EntryKind::Left, _, Some(left)) => {
                        self.last.remove(&left.conversation);
                    }
                    _ => {}
                }
                Ok(())
            }
            Some(item::Kind::Own(own)) => self.next(own.conversation, own.seq, own.seq),
            Some(item::Kind::Head(head)) => {
                self.reported += head.to_seq.saturating_sub(head.from_seq) + 1;
                self.next(head.conversation, head.from_seq, head.to_seq)
            }
            _ => Ok(()),
        }
    }

    /// The first that is heard of a conversation may stand anywhere.
    fn next(&mut self, conversation: u64, from: u64, to: u64) -> Result<(), String> {
        let last = self.last.insert(conversation, to);
        match last {
            Some(last) if from != last + 1 => {
                Err(format!("in conversation {conversation} seq {from} was delivered after {last}"))
            }
            _ => Ok(()),
        }
    }

    /// From here on `seq` is what is known of a conversation.
    pub(in crate::cli::bench) fn stands_at(&mut self, conversation: u64, seq: u64) {
        self.last.insert(conversation, seq);
    }

    /// How far a conversation has come.
    pub(in crate::cli::bench) fn last(&self, conversation: u64) -> Option<u64> {
        self.last.get(&conversation).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(conversation: u64, seq: u64) -> packet::Item {
        let entry = packet::Entry { conversation, seq, ..Default::default() };
        packet::Item { kind: Some(item::Kind::Entry(entry)) }
    }

    #[test]
    fn a_seq_left_out_twice_or_early_is_noticed() {
        let mut streams = Streams::default();
        assert!(streams.take(&entry(1, 5)).is_ok(), "the first may stand anywhere");
        assert!(streams.take(&entry(1, 6)).is_ok());
        assert!(streams.take(&entry(2, 9)).is_ok());
        let head = packet::Head { conversation: 1, from_seq: 7, to_seq: 9, ..Default::default() };
        assert!(streams.take(&packet::Item { kind: Some(item::Kind::Head(head)) }).is_ok());
        assert_eq!((streams.last(1), streams.reported), (Some(9), 3));
        assert!(streams.take(&entry(1, 9)).is_err(), "twice");
        streams.stands_at(1, 9);
        assert!(streams.take(&entry(1, 11)).is_err(), "left out");
    }
}
