//! What a device has of the messages of one conversation, by the numbers that their senders gave them.

use std::collections::HashMap;

use super::super::load::stamp::Stamp;

/// None comes twice or out of its order, and none is missing but for what was reported in its place.
#[derive(Clone, Debug, Default)]
pub(super) struct Follower {
    /// The newest of each sender.
    newest: HashMap<u32, u64>,
    /// Others wrote before it came in.
    is_late: bool,
    /// Seqs that were reported instead of delivered, and for which no number is missing yet.
    reported: u64,
}

impl Follower {
    /// Of someone who came in after others had begun to write.
    pub(super) fn late() -> Self {
        Self { is_late: true, ..Self::default() }
    }

    /// So many seqs are reported in place of what stood there.
    pub(super) const fn report(&mut self, seqs: u64) {
        self.reported += seqs;
    }

    /// Says what is wrong with a message.
    pub(super) fn take(&mut self, stamp: Stamp) -> Result<(), String> {
        let newest = self.newest.insert(stamp.sender, stamp.number);
        let newest = match newest {
            None if self.is_late => return Ok(()),
            newest => newest.unwrap_or(0),
        };
        let said = || format!("of sender {}: number {} came after {newest}", stamp.sender, stamp.number);
        let missing = stamp.number.checked_sub(newest + 1).ok_or_else(said)?;
        self.reported = self.reported.checked_sub(missing).ok_or_else(said)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn of(sender: u32, number: u64) -> Stamp {
        Stamp::new(sender, number, Instant::now())
    }

    #[test]
    fn what_is_lost_doubled_or_out_of_order_is_noticed() {
        let mut follower = Follower::default();
        assert_eq!(
            (follower.take(of(1, 1)), follower.take(of(2, 1)), follower.take(of(1, 2))),
            (Ok(()), Ok(()), Ok(()))
        );
        assert!(follower.clone().take(of(1, 2)).is_err(), "twice");
        assert!(follower.clone().take(of(1, 1)).is_err(), "out of order");
        assert!(follower.clone().take(of(1, 4)).is_err(), "one is lost");
        assert!(follower.clone().take(of(3, 2)).is_err(), "the first is lost");
    }

    #[test]
    fn as_many_may_be_missing_as_were_reported() {
        let mut follower = Follower::default();
        follower.report(2);
        assert_eq!((follower.take(of(1, 2)), follower.take(of(1, 4))), (Ok(()), Ok(())));
        assert!(follower.take(of(1, 6)).is_err(), "that was the last");
    }

    #[test]
    fn who_comes_late_begins_anywhere_and_goes_on_without_a_hole() {
        let mut follower = Follower::late();
        assert_eq!((follower.take(of(1, 7)), follower.take(of(1, 8))), (Ok(()), Ok(())));
        assert!(follower.take(of(1, 10)).is_err());
    }
}
