//! A coarse wheel of deadlines: a connection is woken about when something of it runs out, and then looks for itself.
//! Nothing is reset per packet. A deadline that moved later is read in the outbox when the wheel comes by, and costs no
//! turn of the connection.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use longwire_protocol::Millis;

use crate::routing::outbox::{Alarm, Outbox};

/// Milliseconds of one slot: how late a deadline may be noticed.
pub const SLOT_MS: u64 = 250;
/// Slots: deadlines beyond 128 s are looked at on the way.
const SLOTS: u32 = 512;

/// The slot in which a deadline is noticed.
#[must_use]
pub fn slot(deadline: Millis) -> u32 {
    u32::try_from(deadline.0.div_ceil(SLOT_MS)).unwrap_or(u32::MAX)
}

/// See the module.
#[derive(Debug)]
pub struct Wheel {
    slots: Mutex<Slots>,
}

#[derive(Debug)]
struct Slots {
    ring: Vec<Vec<Weak<Outbox>>>,
    /// The slot, counted from the start, that is visited next.
    next: u32,
}

impl Slots {
    /// Has the wheel look at `outbox` in this slot or, if that is far away, on the way there. Returns when.
    fn put(&mut self, outbox: Weak<Outbox>, due: u32) -> u32 {
        let visit = due.clamp(self.next, self.next + SLOTS - 1);
        self.ring[(visit % SLOTS) as usize].push(outbox);
        visit
    }
}

impl Default for Wheel {
    fn default() -> Self {
        Self { slots: Mutex::new(Slots { ring: vec![Vec::new(); SLOTS as usize], next: 0 }) }
    }
}

impl Wheel {
    /// Wakes the connection of `outbox` at `deadline`, and not at the one that it had before.
    pub fn arm(&self, outbox: &Arc<Outbox>, deadline: Millis) {
        let mut pending = outbox.lock();
        pending.alarm.due = slot(deadline);
        if pending.alarm.due < pending.alarm.visit {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            pending.alarm.visit = slots.put(Arc::downgrade(outbox), pending.alarm.due);
        }
    }

    /// Visits every slot up to `now`.
    pub fn turn(&self, now: Millis) {
        loop {
            let (visited, visits) = {
                let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
                if u64::from(slots.next) * SLOT_MS > now.0 {
                    return;
                }
                let visited = slots.next;
                slots.next += 1;
                (visited, std::mem::take(&mut slots.ring[(visited % SLOTS) as usize]))
            };
            for visit in visits {
                let Some(outbox) = visit.upgrade() else { continue };
                let mut pending = outbox.lock();
                // It was put into an earlier slot meanwhile, and that has been visited, or will be.
                if pending.alarm.visit != visited {
                    continue;
                }
                if pending.alarm.due > visited {
                    let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
                    pending.alarm.visit = slots.put(visit, pending.alarm.due);
                    continue;
                }
                pending.alarm = Alarm::default();
                let waker = pending.take_waker();
                drop(pending);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake, Waker};

    #[derive(Default)]
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A wheel, a connection's outbox, and how often that was woken up to a time.
    struct Rig(Wheel, Arc<Outbox>, Arc<Count>);

    impl Rig {
        fn new() -> Self {
            let rig = Self(Wheel::default(), Arc::default(), Arc::default());
            rig.register();
            rig
        }

        fn register(&self) {
            let waker = Waker::from(Arc::clone(&self.2));
            self.1.lock().register(&Context::from_waker(&waker));
        }

        fn woken_by(&self, now: u64) -> usize {
            self.0.turn(Millis(now));
            self.2.0.load(Ordering::Relaxed)
        }

        fn visits(&self) -> usize {
            self.0.slots.lock().expect("unpoisoned").ring.iter().map(Vec::len).sum()
        }
    }

    #[test]
    fn a_connection_is_woken_at_its_deadline_and_not_before() {
        for start in [0, 77_777, 300_000] {
            for deadline in [1, 249, 250, 1_000, 90_000, 127_999, 128_000, 500_000] {
                let rig = Rig::new();
                rig.0.turn(Millis(start));
                let deadline = start + deadline;
                rig.0.arm(&rig.1, Millis(deadline));
                assert_eq!(rig.woken_by(deadline - 1), 0, "{start} {deadline}: too early");
                assert_eq!(rig.woken_by(deadline + SLOT_MS - 1), 1, "{start} {deadline}: not woken");
            }
        }
    }

    #[test]
    fn a_deadline_that_is_past_is_noticed_at_the_next_turn() {
        let rig = Rig::new();
        rig.0.turn(Millis(10_000));
        rig.0.arm(&rig.1, Millis(3_000));
        assert_eq!(rig.woken_by(10_000 + SLOT_MS), 1);
    }

    /// Heartbeats move the deadline on and on: it is one visit each time, and nobody is woken.
    #[test]
    fn a_deadline_that_moved_later_wakes_nobody_on_the_way() {
        let rig = Rig::new();
        for beat in 0..20 {
            rig.0.arm(&rig.1, Millis(beat * 60_000 + 90_000));
            assert_eq!(rig.woken_by(beat * 60_000 + 59_999), 0);
            assert_eq!(rig.visits(), 1);
        }
        assert_eq!(rig.woken_by(19 * 60_000 + 89_999), 0);
        assert_eq!(rig.woken_by(19 * 60_000 + 90_000), 1, "and when none comes any more, it is noticed");
        assert_eq!(rig.visits(), 0);
    }

    #[test]
    fn a_deadline_that_moved_earlier_counts_and_the_later_one_is_no_more() {
        let rig = Rig::new();
        rig.0.arm(&rig.1, Millis(90_000));
        rig.0.arm(&rig.1, Millis(5_000));
        assert_eq!(rig.woken_by(5_000), 1);
        rig.register();
        rig.0.arm(&rig.1, Millis(120_000));
        assert_eq!(rig.woken_by(119_999), 1, "the visit at 90 s was for nothing");
        assert_eq!(rig.woken_by(120_000), 2);
        assert_eq!(rig.visits(), 0);
    }

    #[test]
    fn what_is_gone_is_not_kept() {
        let rig = Rig::new();
        rig.0.arm(&rig.1, Millis(1_000));
        let Rig(wheel, outbox, _) = rig;
        let left = Arc::downgrade(&outbox);
        drop(outbox);
        assert!(left.upgrade().is_none());
        wheel.turn(Millis(1_000));
        assert!(wheel.slots.lock().expect("unpoisoned").ring.iter().all(Vec::is_empty));
    }
}
