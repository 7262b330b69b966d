//! How the commit thread stands: it says so at each turn, and whoever asks whether the broker is ready reads it, without
//! a look at the disk and without waiting for anything.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use crate::store::Figures;

/// The commit thread takes a turn each second at the least. One that lasts so long waits for a disk that does not answer.
const STUCK_MS: u64 = 10_000;

/// Whether publishes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Store {
    /// They are.
    Open,
    /// Not just now: memtables or the journal are full.
    Full,
    /// Not until the store is open again.
    Failed,
    /// Not until the broker is restarted.
    ReadOnly,
}

impl Store {
    const ALL: [Self; 4] = [Self::Open, Self::Full, Self::Failed, Self::ReadOnly];
}

/// See the module.
#[derive(Debug, Default)]
pub struct Standing {
    store: AtomicU8,
    turned_ms: AtomicU64,
    figures: Mutex<Figures>,
}

impl Standing {
    /// The commit thread begins a turn.
    pub(super) fn turn(&self, now_ms: u64) {
        self.turned_ms.store(now_ms, Relaxed);
    }

    /// So stands the store.
    pub(super) fn set_store(&self, store: Store) {
        self.store.store(store as u8, Relaxed);
    }

    pub(super) fn set_figures(&self, figures: Figures) {
        *self.figures.lock().unwrap_or_else(PoisonError::into_inner) = figures;
    }

    /// How the store stood at the last turn.
    #[must_use]
    pub fn store(&self) -> Store {
        Store::ALL[usize::from(self.store.load(Relaxed)).min(3)]
    }

    /// Whether the commit thread is in the same turn for long.
    #[must_use]
    pub fn is_stuck(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.turned_ms.load(Relaxed)) > STUCK_MS
    }

    /// The figures of the store, some seconds old at the most.
    #[must_use]
    pub fn figures(&self) -> Figures {
        *self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_what_is_read() {
        let standing = Standing::default();
        for store in Store::ALL {
            standing.set_store(store);
            assert_eq!(standing.store(), store);
        }
        standing.turn(5_000);
        assert!(!standing.is_stuck(5_000 + STUCK_MS) && standing.is_stuck(5_001 + STUCK_MS));
    }
}
