//! Many tasks that do the same: prepared a few at a time, then let go together.

use std::future::Future;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::super::super::Fail;
use super::wire::WireError;

/// Connections that are being made at the same time.
pub(in crate::cli::bench) const AT_ONCE: usize = 32;

/// A nice value: a tenth of a core that both want, or so.
const BEHIND_OTHERS: i32 = 10;

/// A runtime for a load generator of so many threads.
pub(in crate::cli::bench) fn runtime(threads: usize) -> Result<Runtime, Fail> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.max(1))
        .enable_all()
        .build()
        .map_err(|error| Fail::failed(format!("cannot start: {error}")))
}

/// A runtime whose threads leave the cores to whoever else wants them.
pub(in crate::cli::bench) fn runtime_behind_others() -> Result<Runtime, Fail> {
    // Linux gives each thread its own nice value; where it is refused, nobody stands behind anybody.
    let lower = || {
        let _ = rustix::process::setpriority_process(None, BEHIND_OTHERS);
    };
    tokio::runtime::Builder::new_multi_thread()
        .on_thread_start(lower)
        .enable_all()
        .build()
        .map_err(|error| Fail::failed(format!("cannot start: {error}")))
}

/// Runs all of them, at most [`AT_ONCE`] at a time; what came of them, in their order.
pub(in crate::cli::bench) async fn prepare<P: Send + 'static>(
    all: impl IntoIterator<Item = impl Future<Output = Result<P, WireError>> + Send + 'static>,
) -> Result<Vec<P>, Fail> {
    let gate = Arc::new(Semaphore::new(AT_ONCE));
    work(all.into_iter().map(|one| {
        let gate = Arc::clone(&gate);
        async move {
            let _turn = gate.acquire_owned().await;
            one.await
        }
    }))
    .await
}

/// Runs all of them at once until each is done; the first that fails ends them all.
pub(in crate::cli::bench) async fn work<T: Send + 'static>(
    all: impl IntoIterator<Item = impl Future<Output = Result<T, WireError>> + Send + 'static>,
) -> Result<Vec<T>, Fail> {
    let mut tasks = JoinSet::new();
    for (number, one) in all.into_iter().enumerate() {
        tasks.spawn(async move { (number, one.await) });
    }
    let mut outcomes: Vec<Option<T>> = (0..tasks.len()).map(|_| None).collect();
    while let Some(joined) = tasks.join_next().await {
        let (number, outcome) = joined.map_err(|error| Fail::failed(error.to_string()))?;
        outcomes[number] = Some(outcome?);
    }
    Ok(outcomes.into_iter().flatten().collect())
}

/// The line that says how much is done while it goes on; seen on a terminal alone.
pub(in crate::cli::bench) fn live(what: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {pos} {msg}, {per_sec}");
    let line = ProgressBar::new_spinner().with_message(what.to_owned());
    line.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

/// Counts what all of them did, and shows it while it goes on; a point each tenth of a second is kept.
#[derive(Debug, Default)]
pub(in crate::cli::bench) struct Counter(AtomicU64);

/// How often a [`Counter`] is looked at.
pub(in crate::cli::bench) const POINT: Duration = Duration::from_millis(100);

impl Counter {
    pub(in crate::cli::bench) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(in crate::cli::bench) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Watches it while `work` goes on; returns what that returns, and how much was done in each [`POINT`].
    pub(in crate::cli::bench) async fn while_doing<T>(
        &self,
        what: &str,
        work: impl Future<Output = T>,
    ) -> (T, Vec<u64>) {
        let line = live(what);
        let mut points = Vec::new();
        let mut last = self.get();
        let mut ticks = tokio::time::interval(POINT);
        ticks.tick().await;
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => {
                    line.finish_and_clear();
                    return (done, points);
                }
                _ = ticks.tick() => {
                    let now = self.get();
                    points.push(now - last);
                    last = now;
                    line.set_position(now);
                }
            }
        }
    }
}
