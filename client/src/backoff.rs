//! When to try again: full jitter, from half a second to a minute.

use std::time::Duration;

/// The ceiling of the first delay.
const FIRST: Duration = Duration::from_millis(500);
/// The ceiling of every delay that the broker does not ask for.
const LONGEST: Duration = Duration::from_secs(60);
/// A connection that lived this long was a good one: the next delay starts from the beginning.
const GOOD: Duration = Duration::from_secs(60);

/// Grows with each failure in a row; a value, moved by its owner.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long to wait after a connection that lived for `lived` (zero: it never came to be) and ended with the
    /// broker asking for `asked` before the next one (zero: nothing asked). Between zero and a ceiling that doubles,
    /// so that a crowd that lost its broker at once does not come back at once; never less than what was asked.
    pub(crate) fn delay(&mut self, lived: Duration, asked: Duration, random: &mut fastrand::Rng) -> Duration {
        if lived >= GOOD {
            self.failures = 0;
        }
        let ceiling = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        asked + ceiling.mul_f64(random.f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_a_minute_and_jitter_fills_it() {
        let mut random = fastrand::Rng::with_seed(7);
        for failures in 0..20_u32 {
            let ceiling = Duration::from_millis(500 << failures.min(7)).min(LONGEST);
            let mut longest = Duration::ZERO;
            for _ in 0..400 {
                let delay = Backoff { failures }.delay(Duration::ZERO, Duration::ZERO, &mut random);
                assert!(delay <= ceiling, "{delay:?} after {failures}");
                longest = longest.max(delay);
            }
            assert!(longest > ceiling.mul_f64(0.9), "{longest:?} after {failures}");
        }
    }

    #[test]
    fn only_a_connection_that_lived_a_minute_starts_over() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut backoff = Backoff::default();
        for _ in 0..9 {
            backoff.delay(Duration::from_secs(59), Duration::ZERO, &mut random);
        }
        assert_eq!(backoff.failures, 9);
        assert!(backoff.delay(GOOD, Duration::ZERO, &mut random) <= FIRST);
    }

    #[test]
    fn what_the_broker_asks_for_is_the_least() {
        let mut random = fastrand::Rng::with_seed(7);
        let asked = Duration::from_secs(30);
        for _ in 0..100 {
            assert!(Backoff::default().delay(Duration::ZERO, asked, &mut random) >= asked);
        }
    }
}
