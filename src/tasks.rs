//! Work that may block, away from the threads that carry connections: in tokio's pool, or, driven by hand, in a queue
//! whose owner says when each piece is done. Knows nothing of what the work is.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

/// Where blocking work is done.
#[derive(Default)]
pub enum Tasks {
    /// In tokio's pool for blocking work; inside a runtime only.
    #[default]
    Pool,
    /// Where and when the owner calls [`ByHand::run`].
    ByHand(ByHand),
}

/// The outcome of a piece of work, as a future; an error if the work panicked or is never done. Dropping it leaves the
/// work as it is.
pub type Task<T> = oneshot::Receiver<T>;

/// All but one in seventy parts of a core that others want, too, are for them.
const LOW_NICE: i32 = 19;

impl Tasks {
    /// Has `work` done on a thread of its own, at a low priority: for what is dear and may wait.
    pub fn run_low(&self, work: impl FnOnce() + Send + 'static) {
        let Self::Pool = self else { return drop(self.run(work)) };
        let low = move || {
            // Linux gives each thread its own nice value. If it is refused, the work is done at the usual one.
            if let Err(error) = rustix::process::setpriority_process(None, LOW_NICE) {
                tracing::debug!(%error, "what may wait keeps the usual priority");
            }
            work();
        };
        if let Err(error) = std::thread::Builder::new().name("longwire-login".into()).spawn(low) {
            tracing::error!(%error, "the machine gives no thread");
        }
    }

    /// Lets a piece of low work wait, on its thread; by hand there is nothing to wait for.
    pub fn pause(&self, time: Duration) {
        if let Self::Pool = self {
            std::thread::sleep(time);
        }
    }

    /// Has `work` done.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Task<T> {
        let (give, task) = oneshot::channel();
        let work = move || drop(give.send(work()));
        match self {
            Self::Pool => drop(tokio::task::spawn_blocking(work)),
            Self::ByHand(waiting) => waiting.lock().push_back(Box::new(work)),
        }
        task
    }
}

/// Work that waits for its owner, oldest first.
#[derive(Default)]
pub struct ByHand(Mutex<VecDeque<Work>>);

type Work = Box<dyn FnOnce() + Send>;

impl ByHand {
    /// How many pieces wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lock().len()
    }

    /// Does the piece that stands at `index`, counted from the oldest, if there is one.
    pub fn run(&self, index: usize) {
        let work = self.lock().remove(index);
        if let Some(work) = work {
            work();
        }
    }

    /// Drops what waits: nobody is there any more for whom it would be done. It may hold what this queue is part of.
    pub fn forget(&self) {
        let waiting = std::mem::take(&mut *self.lock());
        drop(waiting);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Work>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand_work_is_done_when_its_owner_says_so() {
        let tasks = Tasks::ByHand(ByHand::default());
        let (mut one, mut two) = (tasks.run(|| 1), tasks.run(|| 2));
        let Tasks::ByHand(waiting) = &tasks else { unreachable!("made so above") };
        assert_eq!((waiting.waiting(), one.try_recv().ok()), (2, None));
        waiting.run(1);
        assert_eq!((two.try_recv().ok(), one.try_recv().ok()), (Some(2), None));
        waiting.run(0);
        waiting.run(0);
        assert_eq!((one.try_recv().ok(), waiting.waiting()), (Some(1), 0));
    }
}
