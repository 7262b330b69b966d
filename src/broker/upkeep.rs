//! What the commit thread does of itself, now and then, in small pieces: letting go what conversations need not keep any
//! more, the next step of an erasure, and having the store's files written anew without what went. Never on the way of a
//! publish: what is to be looked at is loaded before it is decided.

use std::sync::PoisonError;

use longwire_protocol::UserId;

use super::commit::{Commit, Retention};
use crate::mutation::Mutation;
use crate::routing::core::Op;
use crate::routing::loading::{Want, load};
use crate::routing::rehearsal::rehearse_upkeep;
use crate::routing::rows::ErasureStage;
use crate::routing::state::State;
use crate::routing::view::{Reader, Rows as _};
use crate::store::Position;

/// Between two looks at what may go.
const SWEEP_EVERY_MS: u64 = 1_000;
/// Conversations that are looked at at once.
const SWEEP_AT_ONCE: usize = 64;
/// Between two steps of an erasure.
const ERASE_EVERY_MS: u64 = 50;
/// Between two looks whether the files are written anew.
const PURGE_LOOK_MS: u64 = 1_000;
/// How long the files may hold what conversations let go, unless it is said otherwise.
const PURGE_EVERY_MS: u64 = 24 * 3_600_000;
/// A broker that has just started waits so long before it writes them anew for that.
const PURGE_FIRST_MS: u64 = 3_600_000;
/// How often what is cold is loaded before it is looked at later.
const LOOKS_MAX: usize = 4;

/// When what was done last.
#[derive(Debug)]
pub(super) struct Upkeep {
    swept_ms: u64,
    erased_ms: u64,
    looked_ms: u64,
    /// How often the files are written anew for what conversations let go.
    every_ms: u64,
    /// When the files are written anew next for what conversations let go.
    purge_ms: u64,
    /// Up to where they are being written anew.
    purge: Option<Position>,
}

impl Upkeep {
    pub(super) fn new(now_ms: u64, retention: Retention) -> Self {
        let every_ms = retention.files_ms.unwrap_or(PURGE_EVERY_MS);
        Self {
            swept_ms: now_ms,
            erased_ms: now_ms,
            looked_ms: now_ms,
            every_ms,
            purge_ms: now_ms + every_ms.min(PURGE_FIRST_MS),
            purge: None,
        }
    }
}

impl Commit {
    /// Adds what is to be done now to a group.
    pub(super) fn upkeep(&mut self, group: &mut Vec<Op>, now_ms: u64) {
        let (has_timed, has_erased) = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            (!state.schedule().is_empty(), !state.erased().is_empty())
        };
        if (has_timed || has_erased) && self.is_writable() {
            self.sweep(group, now_ms);
            self.erase(group, now_ms);
            self.purge(group, now_ms);
        }
    }

    /// By time only while the clock can be believed.
    fn sweep(&mut self, group: &mut Vec<Op>, now_ms: u64) {
        if now_ms < self.upkeep.swept_ms + SWEEP_EVERY_MS || self.clock.has_jumped() {
            return;
        }
        self.upkeep.swept_ms = now_ms;
        let due = self.read_state(|state| state.schedule().due(self.clock.log_time(), SWEEP_AT_ONCE));
        group.extend(due.into_iter().map(Op::Sweep).filter(|op| self.is_at_hand(op)));
    }

    /// One user at a time.
    fn erase(&mut self, group: &mut Vec<Op>, now_ms: u64) {
        if now_ms < self.upkeep.erased_ms + ERASE_EVERY_MS {
            return;
        }
        self.upkeep.erased_ms = now_ms;
        let under_way = self.erasures();
        let next = under_way.into_iter().find(|(_, stage, _)| *stage != ErasureStage::Files);
        let step = next.map(|(user, ..)| Op::Erase(user));
        group.extend(step.filter(|op| self.is_at_hand(op)));
    }

    /// Has the files written anew for who is erased, and once a day for what conversations let go.
    fn purge(&mut self, group: &mut Vec<Op>, now_ms: u64) {
        if now_ms < self.upkeep.looked_ms + PURGE_LOOK_MS {
            return;
        }
        self.upkeep.looked_ms = now_ms;
        let waiting = self.erasures().into_iter().filter(|(_, stage, _)| *stage == ErasureStage::Files);
        let waiting: Vec<_> = waiting.map(|(user, _, until)| (user, until)).collect();
        if self.upkeep.purge.is_none() {
            let newest = waiting.iter().map(|(_, until)| *until).max();
            let is_daily = now_ms >= self.upkeep.purge_ms && self.read_state(|state| !state.schedule().is_empty());
            self.upkeep.purge = if is_daily { Some(self.log.tail()) } else { newest };
        }
        let Some(upto) = self.upkeep.purge else { return };
        if Mutation::ErasedInFiles.is_planted() || self.log.purge(upto) {
            self.upkeep.purge = None;
            self.upkeep.purge_ms = now_ms + self.upkeep.every_ms;
            group.extend(waiting.into_iter().filter(|(_, until)| *until <= upto).map(|(user, _)| Op::Erased(user)));
        }
    }

    /// Who is being erased, how far that has come, and up to where it published.
    fn erasures(&self) -> Vec<(UserId, ErasureStage, Position)> {
        for _ in 0..LOOKS_MAX {
            let (found, cold) = self.read_state(|state| {
                let rows = Reader::new(state);
                let erasure = |user: &UserId| rows.erasure(*user).map(|row| (*user, row.stage, row.until));
                let found: Vec<_> = state.erased().iter().filter_map(erasure).collect();
                (found, rows.into_cold())
            });
            if cold.is_empty() {
                return found;
            }
            self.load(&cold);
        }
        Vec::new()
    }

    /// Whether all that a piece of work looks at is in memory; loads it if not.
    fn is_at_hand(&self, op: &Op) -> bool {
        for _ in 0..LOOKS_MAX {
            let time = self.clock.log_time().max(self.log.tail_time());
            let cold = self.read_state(|state| rehearse_upkeep(state, op, time));
            if cold.is_empty() {
                return true;
            }
            self.load(&cold);
        }
        false
    }

    fn load(&self, wants: &[Want]) {
        if let Err(error) = load(&self.state, wants) {
            tracing::warn!(%error, "what may go is looked at again later");
        }
    }

    fn read_state<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }
}
