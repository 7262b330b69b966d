//! What the commit thread does of itself, now and then, in small pieces: letting go what conversations need not keep any
//! more, the next step of an erasure, and having the store's files written anew without what went. Never on the way of a
//! publish: what is to be looked at is loaded before it is decided.

use std::sync::PoisonError;

use longwire_protocol::UserId;

use super::commit::{Commit, Retention};
use crate::mutation::Mutation;
use crate::routing::loading::{Want, load};
use crate::routing::ops::Op;
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
    /// Conversations may have let something go since the files were last written anew; nobody knows of the time before a
    /// start.
    has_gone: bool,
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
            has_gone: true,
        }
    }

    /// A conversation let something go, or may have.
    pub(super) fn note_gone(&mut self) {
        self.has_gone = true;
    }

    /// Up to where the files are to be written anew: `erased` is where the newest erasure that waits for it ends.
    fn due(&mut self, now_ms: u64, tail: Position, erased: Option<Position>) -> Option<Position> {
        if self.purge.is_none() {
            let is_daily = self.has_gone && now_ms >= self.purge_ms;
            // What goes from here on is for the next time.
            self.has_gone &= !is_daily;
            self.purge = if is_daily { Some(tail) } else { erased };
        }
        self.purge
    }

    fn done(&mut self, now_ms: u64) {
        self.purge = None;
        self.purge_ms = now_ms + self.every_ms;
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

    /// Has the files written anew for who is erased, and once a day where conversations let something go.
    fn purge(&mut self, group: &mut Vec<Op>, now_ms: u64) {
        if now_ms < self.upkeep.looked_ms + PURGE_LOOK_MS {
            return;
        }
        self.upkeep.looked_ms = now_ms;
        let waiting = self.erasures().into_iter().filter(|(_, stage, _)| *stage == ErasureStage::Files);
        let waiting: Vec<_> = waiting.map(|(user, _, until)| (user, until)).collect();
        let erased = waiting.iter().map(|(_, until)| *until).max();
        let Some(upto) = self.upkeep.due(now_ms, self.log.tail(), erased) else { return };
        if Mutation::ErasedInFiles.is_planted() || self.log.purge(upto) {
            self.upkeep.done(now_ms);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing is looked for, nor written, where nothing went since the last time; an erasure waits for nobody.
    #[test]
    fn files_are_written_anew_only_where_something_went() {
        let retention = Retention { files_ms: Some(1_000), ..Retention::default() };
        let (mut upkeep, tail) = (Upkeep::new(0, retention), Position(70));
        assert_eq!(upkeep.due(999, tail, None), None, "it is not time");
        assert_eq!(upkeep.due(1_000, tail, None), Some(tail), "nobody knows what went before the start");
        upkeep.note_gone();
        assert_eq!(upkeep.due(1_500, Position(80), None), Some(tail), "one after another");
        upkeep.done(1_500);
        assert_eq!(upkeep.due(2_499, Position(90), None), None);
        assert_eq!(upkeep.due(2_500, Position(90), None), Some(Position(90)), "something went meanwhile");
        upkeep.done(2_600);
        assert_eq!(upkeep.due(1_000_000, Position(99), None), None, "and nothing since");
        assert_eq!(upkeep.due(1_000_000, Position(99), Some(Position(95))), Some(Position(95)));
        upkeep.done(1_000_000);
        assert_eq!(upkeep.due(2_000_000, Position(99), None), None);
        upkeep.note_gone();
        assert_eq!(upkeep.due(2_000_000, Position(99), None), Some(Position(99)));
    }
}
