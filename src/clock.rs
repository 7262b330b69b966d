//! The only room that reads a clock. Two times come from it: monotonic milliseconds for what runs out, and the log's
//! time for what is durable, which never goes back and does not follow a jump of the machine's clock.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use longwire_protocol::{LogTime, Millis};

/// How far the machine's clock may move against monotonic time between two looks before it counts as a jump.
const JUMP_MS: u64 = 10_000;

/// See the module.
#[derive(Debug)]
pub struct Clock {
    source: Source,
    birth_unix_ms: u64,
    anchor: Mutex<Anchor>,
    /// The log's time when somebody last asked for it.
    latest: AtomicU64,
    has_jumped: AtomicBool,
}

/// Where a clock reads the time.
#[derive(Clone, Debug)]
pub enum Source {
    /// From the machine; the monotonic time counts from here.
    Machine(Instant),
    /// From hands that someone else moves.
    ByHand(Arc<Hands>),
}

/// The hands of a clock that does not run by itself.
#[derive(Debug, Default)]
pub struct Hands {
    /// Monotonic milliseconds.
    pub monotonic_ms: AtomicU64,
    /// What the machine's clock would say, in milliseconds since 1970.
    pub unix_ms: AtomicU64,
}

impl Source {
    /// The machine's clocks.
    #[must_use]
    pub fn machine() -> Self {
        Self::Machine(Instant::now())
    }

    fn monotonic_ms(&self) -> u64 {
        match self {
            Self::Machine(start) => start.elapsed().as_millis() as u64,
            Self::ByHand(hands) => hands.monotonic_ms.load(Ordering::Relaxed),
        }
    }

    fn monotonic_us(&self) -> u64 {
        match self {
            Self::Machine(start) => start.elapsed().as_micros() as u64,
            Self::ByHand(hands) => hands.monotonic_ms.load(Ordering::Relaxed) * 1_000,
        }
    }

    fn unix_ms(&self) -> u64 {
        match self {
            Self::Machine(_) => unix_ms(),
            Self::ByHand(hands) => hands.unix_ms.load(Ordering::Relaxed),
        }
    }
}

/// The last look at the machine's clock.
#[derive(Clone, Copy, Debug)]
struct Anchor {
    monotonic_ms: u64,
    log_ms: u64,
}

/// The machine's clock, in milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    #[cfg(feature = "faults")]
    let now = now.saturating_add_signed(set_by_ms());
    now
}

/// The variable of the environment that asks for faults, in builds for tests.
#[cfg(feature = "faults")]
pub(crate) const FAULTS: &str = "LONGWIRE_FAULTS";

/// By how much the machine's clock is set wrong: what the file says that `clock=FILE` names among the faults.
#[cfg(feature = "faults")]
fn set_by_ms() -> i64 {
    static FILE: std::sync::LazyLock<Option<String>> = std::sync::LazyLock::new(|| {
        let list = std::env::var(FAULTS).ok()?;
        list.split(',').find_map(|part| part.strip_prefix("clock=")).map(str::to_owned)
    });
    let text = FILE.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

impl Clock {
    /// A clock of the log born at `birth_unix_ms`, whose newest time is `last`.
    #[must_use]
    pub fn new(source: Source, birth_unix_ms: u64, last: LogTime) -> Self {
        let wall = source.unix_ms().saturating_sub(birth_unix_ms);
        let has_jumped = wall + JUMP_MS < last.0;
        let anchor = Anchor { monotonic_ms: source.monotonic_ms(), log_ms: wall.max(last.0) };
        let latest = AtomicU64::new(anchor.log_ms);
        Self { source, birth_unix_ms, anchor: Mutex::new(anchor), latest, has_jumped: AtomicBool::new(has_jumped) }
    }

    /// Monotonic time, since the broker started.
    #[must_use]
    pub fn now(&self) -> Millis {
        Millis(self.source.monotonic_ms())
    }

    /// The same in microseconds: how long something takes.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        self.source.monotonic_us()
    }

    /// The machine's clock, in milliseconds since 1970, wherever it has jumped to.
    #[must_use]
    pub fn unix_ms(&self) -> u64 {
        self.source.unix_ms()
    }

    /// When the log was born.
    #[must_use]
    pub fn birth_unix_ms(&self) -> u64 {
        self.birth_unix_ms
    }

    /// The log's time: the machine's clock while that runs evenly; from a jump on, the last time at monotonic speed.
    pub fn log_time(&self) -> LogTime {
        self.log_time_at(self.now().0, self.unix_ms())
    }

    /// The log's time when somebody last asked for it: a quarter of a second ago at the most, while the wheel turns.
    #[must_use]
    pub fn latest(&self) -> LogTime {
        LogTime(self.latest.load(Ordering::Relaxed))
    }

    /// Whether the machine's clock has jumped: expiry and retention by age wait.
    #[must_use]
    pub fn has_jumped(&self) -> bool {
        self.has_jumped.load(Ordering::Relaxed)
    }

    fn log_time_at(&self, monotonic_ms: u64, wall_unix_ms: u64) -> LogTime {
        let mut anchor = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let expected = anchor.log_ms + monotonic_ms.saturating_sub(anchor.monotonic_ms);
        let wall = wall_unix_ms.saturating_sub(self.birth_unix_ms);
        let jumped = wall.abs_diff(expected) > JUMP_MS;
        if self.has_jumped.swap(jumped, Ordering::Relaxed) != jumped {
            if jumped {
                tracing::error!(
                    jump_ms = wall as i64 - expected as i64,
                    "the machine's clock jumped; time goes on without it, and expiry waits"
                );
            } else {
                tracing::info!("the machine's clock is back");
            }
        }
        let now = if jumped { expected } else { wall.max(anchor.log_ms) };
        *anchor = Anchor { monotonic_ms: monotonic_ms.max(anchor.monotonic_ms), log_ms: now.max(anchor.log_ms) };
        self.latest.store(anchor.log_ms, Ordering::Relaxed);
        LogTime(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400_000;

    fn clock() -> Clock {
        Clock {
            source: Source::machine(),
            birth_unix_ms: 1_000,
            anchor: Mutex::new(Anchor { monotonic_ms: 0, log_ms: 10 * DAY }),
            latest: AtomicU64::new(10 * DAY),
            has_jumped: AtomicBool::new(false),
        }
    }

    /// S12, the clock's part: a day forward and back, time goes on evenly and never back.
    #[test]
    fn s12_a_clock_that_jumps_a_day_is_not_followed() {
        let clock = clock();
        let wall = 1_000 + 10 * DAY;
        assert_eq!(clock.log_time_at(5, wall + 5), LogTime(10 * DAY + 5));
        assert_eq!(clock.log_time_at(10, wall + DAY), LogTime(10 * DAY + 10), "forward");
        assert!(clock.has_jumped());
        assert_eq!(clock.log_time_at(20, wall - DAY), LogTime(10 * DAY + 20), "and back");
        assert_eq!(clock.log_time_at(30, wall + 33), LogTime(10 * DAY + 33), "right again");
        assert!(!clock.has_jumped());
        assert_eq!(clock.log_time_at(40, wall + 30), LogTime(10 * DAY + 33), "a small step back waits");
    }
}
