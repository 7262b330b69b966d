//! How often passwords may be tried: for an account from an address, for an address, and for an account from anywhere.
//! What was right is not counted. Pure: whoever asks says what time it is.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::net::IpAddr;

use foldhash::fast::RandomState;
use longwire_protocol::Millis;

/// So many at once, and one each so often from then on.
struct Rate {
    at_once: u64,
    each_ms: u64,
}

/// One who forgot which of its passwords it was.
const OF_ACCOUNT_AND_ADDRESS: Rate = Rate { at_once: 5, each_ms: 20_000 };
/// Many people may stand behind one address.
const OF_ADDRESS: Rate = Rate { at_once: 50, each_ms: 2_000 };
/// Many addresses may try one account; whoever has its token is not kept out by that.
const OF_ACCOUNT: Rate = Rate { at_once: 50, each_ms: 20_000 };
/// Tries that are remembered: one is for a thousand seconds at the most, and no more than a hundred a second are checked.
const TRIES_MAX: usize = 1 << 18;
/// How often those are forgotten that may try as often as any.
const SWEEP_MS: u64 = 10_000;

/// See the module. Holds only whoever tried something of late, by hashes that nobody else can guess.
#[derive(Debug, Default)]
pub struct Guesses {
    hasher: RandomState,
    /// When all its tries will be paid for by time.
    paid_at: HashMap<u64, Millis, RandomState>,
    swept: Millis,
}

impl Guesses {
    /// Counts a try.
    ///
    /// # Errors
    /// It is one too many: after so many milliseconds there may be another. Nothing is counted.
    pub fn charge(&mut self, user: &str, address: IpAddr, now: Millis) -> Result<(), u32> {
        if now.since(self.swept) >= SWEEP_MS || self.paid_at.len() + 3 > TRIES_MAX {
            self.swept = now;
            self.paid_at.retain(|_, paid_at| *paid_at > now);
        }
        if self.paid_at.len() + 3 > TRIES_MAX {
            return Err(1_000);
        }
        let keys = self.keys(user, address);
        let mut wait = 0;
        for (key, rate) in &keys {
            let paid_at = self.paid_at.get(key).copied().unwrap_or(now).max(now).after(rate.each_ms);
            wait = wait.max(paid_at.since(now).saturating_sub(rate.at_once * rate.each_ms));
        }
        if wait > 0 {
            return Err(u32::try_from(wait).unwrap_or(u32::MAX));
        }
        for (key, rate) in keys {
            let paid_at = self.paid_at.entry(key).or_insert(now);
            *paid_at = (*paid_at).max(now).after(rate.each_ms);
        }
        Ok(())
    }

    /// The try was right: it does not count.
    pub fn forgive(&mut self, user: &str, address: IpAddr) {
        for (key, rate) in self.keys(user, address) {
            if let Some(paid_at) = self.paid_at.get_mut(&key) {
                *paid_at = Millis(paid_at.0.saturating_sub(rate.each_ms));
            }
        }
    }

    fn keys(&self, user: &str, address: IpAddr) -> [(u64, &'static Rate); 3] {
        [
            (self.hasher.hash_one((0, user, address)), &OF_ACCOUNT_AND_ADDRESS),
            (self.hasher.hash_one((1, address)), &OF_ADDRESS),
            (self.hasher.hash_one((2, user)), &OF_ACCOUNT),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn an_account_is_tried_five_times_from_one_address_and_then_now_and_then() {
        let (mut guesses, now) = (Guesses::default(), Millis(1_000));
        for _ in 0..5 {
            guesses.charge("ann", address(1), now).expect("at once");
        }
        assert_eq!(guesses.charge("ann", address(1), now), Err(20_000));
        guesses.charge("ann", address(2), now).expect("from elsewhere");
        guesses.charge("ben", address(1), now).expect("another account");
        guesses.charge("ann", address(1), now.after(20_000)).expect("it waited as long as it was told");
        assert_eq!(
            guesses.charge("ann", address(1), now.after(20_000)),
            Err(20_000),
            "what was refused is not counted"
        );
    }

    #[test]
    fn an_address_cannot_try_every_account_nor_every_address_one() {
        let (mut guesses, now) = (Guesses::default(), Millis(1_000));
        let tried = (0..200).filter(|n| guesses.charge(&n.to_string(), address(1), now).is_ok()).count();
        assert_eq!(tried, 50);
        let tried = (0..200).filter(|n| guesses.charge("ann", address(2 + *n), now).is_ok()).count();
        assert_eq!(tried, 50);
    }

    #[test]
    fn what_is_right_does_not_count_and_what_is_paid_for_is_forgotten() {
        let mut guesses = Guesses::default();
        for _ in 0..100 {
            guesses.charge("ann", address(1), Millis(1)).expect("right each time");
            guesses.forgive("ann", address(1));
        }
        for n in 0..40 {
            guesses.charge(&n.to_string(), address(1), Millis(1)).expect("few");
        }
        guesses.charge("ben", address(2), Millis(200_000)).expect("later");
        assert_eq!(guesses.paid_at.len(), 3);
    }
}
