//! What each message of a load says of itself, so that whoever receives it can check it and knows how long it took.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Instant;

use bytes::{BufMut as _, Bytes, BytesMut};

/// Where the clock of the load starts.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The beginning of a message's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli::bench) struct Stamp {
    /// Who sent it.
    pub(in crate::cli::bench) sender: u32,
    /// Which of its sender's it is, counted from 1 in each place.
    pub(in crate::cli::bench) number: u64,
    /// When it was due.
    due_us: u64,
}

impl Stamp {
    /// The bytes that it takes: no message of a load is smaller.
    pub(in crate::cli::bench) const BYTES: usize = 20;

    pub(in crate::cli::bench) fn new(sender: u32, number: u64, due: Instant) -> Self {
        let since = due.saturating_duration_since(*EPOCH);
        Self { sender, number, due_us: u64::try_from(since.as_micros()).unwrap_or(u64::MAX) }
    }

    /// A content of `size` bytes that begins with it.
    pub(in crate::cli::bench) fn content(self, size: usize) -> Bytes {
        let mut content = BytesMut::with_capacity(size.max(Self::BYTES));
        content.put_u32_le(self.sender);
        content.put_u64_le(self.number);
        content.put_u64_le(self.due_us);
        content.resize(size.max(Self::BYTES), b'x');
        content.freeze()
    }

    /// `None` for what no load has written.
    pub(in crate::cli::bench) fn read(content: &[u8]) -> Option<Self> {
        let (sender, rest) = content.split_first_chunk()?;
        let (number, rest) = rest.split_first_chunk()?;
        let (due, _) = rest.split_first_chunk()?;
        Some(Self {
            sender: u32::from_le_bytes(*sender),
            number: u64::from_le_bytes(*number),
            due_us: u64::from_le_bytes(*due),
        })
    }

    /// How long ago it was due, in microseconds.
    pub(in crate::cli::bench) fn age_us(self) -> u64 {
        let now = u64::try_from(EPOCH.elapsed().as_micros()).unwrap_or(u64::MAX);
        now.saturating_sub(self.due_us).max(1)
    }
}

/// What a reader has of each sender: one number after the other, none twice, none left out.
#[derive(Debug, Default)]
pub(in crate::cli::bench) struct Numbers(HashMap<u32, u64>);

impl Numbers {
    /// Says what is wrong with this one.
    pub(in crate::cli::bench) fn take(&mut self, stamp: Stamp) -> Result<(), String> {
        let last = self.0.entry(stamp.sender).or_default();
        if stamp.number != *last + 1 {
            return Err(format!("of sender {}: number {} came after {last}", stamp.sender, stamp.number));
        }
        *last = stamp.number;
        Ok(())
    }

    /// The newest number of a sender, 0 before the first.
    pub(in crate::cli::bench) fn last(&self, sender: u32) -> u64 {
        self.0.get(&sender).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_as_it_was_written() {
        let stamp = Stamp::new(7, 9, Instant::now());
        let content = stamp.content(200);
        assert_eq!((content.len(), Stamp::read(&content)), (200, Some(stamp)));
        assert_eq!(stamp.content(3).len(), Stamp::BYTES);
        assert_eq!(Stamp::read(&content[..19]), None);
    }

    #[test]
    fn a_number_left_out_or_twice_is_noticed() {
        let mut numbers = Numbers::default();
        let stamp = |number| Stamp::new(1, number, Instant::now());
        assert_eq!(numbers.take(stamp(1)), Ok(()));
        assert!(numbers.take(stamp(1)).is_err());
        assert!(numbers.take(stamp(3)).is_err());
        assert_eq!((numbers.take(stamp(2)), numbers.last(1), numbers.last(2)), (Ok(()), 2, 0));
    }
}
