//! What attackers did and got, and how fast they may go.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

/// What the attackers of one attack did and got.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Counts {
    /// Connections opened, and how many were open at once at the most.
    pub(super) connections: u64,
    pub(super) open_at_once: u64,
    #[serde(skip)]
    open: u64,
    /// Packets, or tries of another kind, and bytes that were sent.
    pub(super) packets: u64,
    pub(super) bytes: u64,
    /// Publishes and requests that were answered with yes.
    pub(super) accepted: u64,
    /// What that made: entries, conversations, members.
    pub(super) made: u64,
    /// Those that were refused, by reason.
    pub(super) refused: BTreeMap<&'static str, u64>,
    /// Refusals that say *again* and not when.
    pub(super) refused_without_wait: u64,
    /// How connections ended.
    pub(super) ended: BTreeMap<&'static str, Lives>,
    /// What must not be, and was.
    pub(super) wrong: BTreeMap<&'static str, u64>,
    /// Messages that reached the one who is attacked.
    pub(super) to_victim: u64,
    /// What could not be tried, and why.
    pub(super) failed: BTreeMap<String, u64>,
}

/// How long connections lived that ended in one way.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Lives {
    pub(super) connections: u64,
    pub(super) longest_s: f64,
}

impl Counts {
    /// How many connections the broker ended.
    pub(super) fn cut(&self) -> u64 {
        self.ended.iter().filter(|(how, _)| **how != LEFT).map(|(_, lives)| lives.connections).sum()
    }

    /// The longest that one lived, also of those that were left.
    pub(super) fn longest_s(&self) -> f64 {
        self.ended.values().map(|lives| lives.longest_s).fold(0.0, f64::max)
    }
}

/// How a connection ended that the attacker let go.
pub(super) const LEFT: &str = "left by the attacker";

/// Counts that many tasks add to.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally(Arc<Mutex<Counts>>);

impl Tally {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn counts(&self) -> Counts {
        self.lock().clone()
    }

    /// A connection is open; it counts as left unless it is said how it ended.
    pub(super) fn opened(&self) -> Open {
        let mut counts = self.lock();
        counts.connections += 1;
        counts.open += 1;
        counts.open_at_once = counts.open_at_once.max(counts.open);
        Open { tally: self.clone(), since: Instant::now(), how: LEFT }
    }

    pub(super) fn sent(&self, packets: u64, bytes: usize) {
        let mut counts = self.lock();
        counts.packets += packets;
        counts.bytes += bytes as u64;
    }

    pub(super) fn accepted(&self, made: u64) {
        let mut counts = self.lock();
        counts.accepted += 1;
        counts.made += made;
    }

    /// Something was made, and nobody heard the answer.
    pub(super) fn made(&self, made: u64) {
        self.lock().made += made;
    }

    pub(super) fn refused(&self, reason: &'static str, has_wait: bool) {
        let mut counts = self.lock();
        *counts.refused.entry(reason).or_default() += 1;
        counts.refused_without_wait += u64::from(!has_wait);
    }

    /// The attack got what nobody may get.
    pub(super) fn wrong(&self, what: &'static str) {
        *self.lock().wrong.entry(what).or_default() += 1;
    }

    /// Who is attacked got another message.
    pub(super) fn reached_victim(&self) {
        self.lock().to_victim += 1;
    }

    pub(super) fn failed(&self, why: &std::io::Error) {
        *self.lock().failed.entry(why.kind().to_string()).or_default() += 1;
    }
}

/// An open connection.
pub(super) struct Open {
    tally: Tally,
    since: Instant,
    how: &'static str,
}

impl Open {
    /// The broker ended it.
    pub(super) fn ended(mut self, how: &'static str) {
        self.how = how;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut counts = self.tally.lock();
        counts.open -= 1;
        let lives = counts.ended.entry(self.how).or_default();
        lives.connections += 1;
        lives.longest_s = lives.longest_s.max(self.since.elapsed().as_secs_f64());
    }
}

/// So many a second and no more, whoever asks.
#[derive(Clone, Debug)]
pub(super) struct Pacer {
    next: Arc<Mutex<Instant>>,
    every: Duration,
}

/// What was not used may be caught up with for as long as this.
const CATCHES_UP: Duration = Duration::from_millis(100);

impl Pacer {
    pub(super) fn new(per_second: f64) -> Self {
        Self { next: Arc::new(Mutex::new(Instant::now())), every: Duration::from_secs_f64(1.0 / per_second.max(0.001)) }
    }

    /// Waits for the turn of `count` more.
    pub(super) async fn turn(&self, count: u32) {
        tokio::time::sleep_until(self.reserve(count, Instant::now())).await;
    }

    /// When it is the turn of `count` more.
    fn reserve(&self, count: u32, now: Instant) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let at = (*next).max(now.checked_sub(CATCHES_UP).unwrap_or(*next));
        *next = at + self.every * count;
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_counts_once_however_it_ends() {
        let tally = Tally::default();
        let (one, two) = (tally.opened(), tally.opened());
        one.ended("malformed");
        drop(two);
        let counts = tally.counts();
        assert_eq!((counts.connections, counts.open_at_once, counts.open, counts.cut()), (2, 2, 0, 1));
        assert_eq!(counts.ended[LEFT].connections, 1);
    }

    #[test]
    fn nobody_goes_faster_than_the_pace() {
        let (pacer, now) = (Pacer::new(1_000.0), Instant::now());
        let turns: Vec<Instant> = (0..500).map(|_| pacer.reserve(10, now)).collect();
        let last = turns[499].saturating_duration_since(now);
        assert!(last >= Duration::from_millis(4_800), "5,000 at 1,000 a second, in {last:?}");
        // Who was away catches up with a little of it and no more.
        let later = now + Duration::from_secs(60);
        assert_eq!(pacer.reserve(1, later), later - CATCHES_UP);
    }
}
