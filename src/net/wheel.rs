//! A coarse wheel of deadlines: a connection is woken about when something of it runs out, and then looks for itself.
//! Nothing is reset per packet; a deadline that moved later costs one needless visit.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use longwire_protocol::Millis;

use crate::routing::outbox::Outbox;

/// Milliseconds of one slot: how late a deadline may be noticed.
pub const SLOT_MS: u64 = 250;
/// Slots: deadlines beyond 128 s are looked at on the way.
const SLOTS: usize = 512;

/// See the module.
#[derive(Debug)]
pub struct Wheel {
    slots: Mutex<Slots>,
}

#[derive(Debug)]
struct Slots {
    ring: Vec<Vec<Weak<Outbox>>>,
    /// The slot, counted from the start, that is visited next.
    next: u64,
}

impl Default for Wheel {
    fn default() -> Self {
        Self { slots: Mutex::new(Slots { ring: vec![Vec::new(); SLOTS], next: 0 }) }
    }
}

impl Wheel {
    /// Wakes the connection of `outbox` at `deadline` or, if that is far away, on the way there. Returns when.
    pub fn arm(&self, outbox: &Arc<Outbox>, deadline: Millis) -> Millis {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = deadline.0.div_ceil(SLOT_MS);
        let slot = wanted.clamp(slots.next, slots.next + SLOTS as u64 - 1);
        slots.ring[slot as usize % SLOTS].push(Arc::downgrade(outbox));
        Millis(slot * SLOT_MS)
    }

    /// Visits every slot up to `now`.
    pub fn turn(&self, now: Millis) {
        loop {
            let due = {
                let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
                if slots.next * SLOT_MS > now.0 {
                    return;
                }
                let at = slots.next as usize % SLOTS;
                slots.next += 1;
                std::mem::take(&mut slots.ring[at])
            };
            for outbox in due {
                if let Some(outbox) = outbox.upgrade() {
                    outbox.wake();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::{Context, Wake, Waker};

    struct Flag(std::sync::atomic::AtomicBool);
    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }

    #[test]
    fn a_connection_is_woken_at_its_deadline_and_not_before() {
        let wheel = Wheel::default();
        for deadline in [1, 249, 250, 1_000, 90_000, 500_000] {
            let outbox = Arc::new(Outbox::default());
            let flag = Arc::new(Flag(false.into()));
            let waker = Waker::from(Arc::clone(&flag));
            outbox.lock().register(&Context::from_waker(&waker));
            let start = wheel.slots.lock().expect("unpoisoned").next * SLOT_MS;
            let armed = wheel.arm(&outbox, Millis(start + deadline));
            assert!(armed.0 <= start + deadline + SLOT_MS && armed.0 >= (start + deadline).min(start + 127_000));
            wheel.turn(Millis(armed.0 - 1));
            assert!(!flag.0.load(std::sync::atomic::Ordering::Relaxed), "{deadline}: too early");
            wheel.turn(armed);
            assert!(flag.0.load(std::sync::atomic::Ordering::Relaxed), "{deadline}: not woken");
        }
    }
}
