//! What a session refused, counted until somebody asks: whoever watches a broker wants to know how often it says no, and
//! why. Nothing while nothing was refused.

use crate::reason::Reason;

/// What was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A publish.
    Publish,
    /// A request.
    Request,
}

/// See the module. Holds as many numbers as there are reasons, at the most.
#[derive(Debug, Default)]
pub struct Tally(Vec<(Asked, Reason, u64)>);

impl Tally {
    pub(super) fn note(&mut self, asked: Asked, reason: Reason) {
        match self.0.iter_mut().find(|(a, r, _)| (*a, *r) == (asked, reason)) {
            Some((_, _, times)) => *times += 1,
            None => self.0.push((asked, reason, 1)),
        }
    }

    /// What was refused, why, and how often.
    pub fn each(&self) -> impl Iterator<Item = (Asked, Reason, u64)> {
        self.0.iter().copied()
    }
}
