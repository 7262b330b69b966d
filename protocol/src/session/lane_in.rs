//! The client's half of one lane, the mirror of `lane_out`: what has come, what is stored, what is acked.
//!
//! ```text
//!   1 ...... acked | acked+1 ... stored | stored+1 ... next-1 | next ...... seen
//!     the broker   |  an ack is due     |  handed out, not    |  came, and is to come again:
//!     knows        |                    |  stored yet         |  only after a failure to store
//! ```
//! Invariant: `acked <= stored < next`, and `next - 1 == seen` unless something could not be stored.

use std::collections::VecDeque;

use super::Millis;
use crate::{
    limits::ACK_DELAY_MS,
    packet::Window,
    reason::{Reason, Refusal},
};

/// The client's half of one lane.
#[derive(Debug)]
pub(super) struct LaneIn {
    window: Window,
    /// The number that is taken next; lower ones are here already.
    next: u64,
    /// The highest number that ever came. Above `next - 1` only after something could not be stored: then what comes
    /// is dropped until `next` comes again.
    seen: u64,
    /// The highest number that was handed out.
    handed: u64,
    stored: u64,
    acked: u64,
    /// The last number and the bytes of each frame not wholly stored.
    frames: VecDeque<(u64, u32)>,
    /// The bytes stored and not acked.
    bytes: u32,
    /// The ack leaves now.
    /// Never while all that is stored is acked.
    ack_due: bool,
    /// When the ack leaves at the latest.
    ack_at: Option<Millis>,
}

impl LaneIn {
    pub(super) const fn new(window: Window) -> Self {
        Self {
            window,
            next: 1,
            seen: 0,
            handed: 0,
            stored: 0,
            acked: 0,
            frames: VecDeque::new(),
            bytes: 0,
            ack_due: false,
            ack_at: None,
        }
    }

    pub(super) const fn next(&self) -> u64 {
        self.next
    }

    pub(super) const fn seen(&self) -> u64 {
        self.seen
    }

    /// When the ack is due, if something stored waits for it.
    pub(super) const fn deadline(&self) -> Option<Millis> {
        self.ack_at
    }

    /// The window that holds, where the broker names one.
    pub(super) fn set_window(&mut self, window: Option<Window>) {
        self.window = window.unwrap_or(self.window);
    }

    pub(super) fn handle_deadline(&mut self, now: Millis) {
        self.ack_due |= self.ack_at.is_some_and(|at| now >= at);
    }

    /// What is stored is acked with the next bytes.
    pub(super) const fn flush(&mut self) {
        self.ack_due |= self.stored > self.acked;
    }

    /// Whether something is to come again.
    pub(super) const fn is_rewound(&self) -> bool {
        self.seen >= self.next
    }

    /// Takes `count` numbers from `first` on; gives those that are news.
    pub(super) fn take(&mut self, first: u64, count: u64, bytes: usize) -> Result<std::ops::Range<u64>, Refusal> {
        let end = first
            .checked_add(count)
            .ok_or_else(|| Refusal::connection(Reason::UnexpectedPacket).because("a number out of range"))?;
        if first > self.seen + 1 {
            return Err(Refusal::connection(Reason::UnexpectedPacket).because("a number was left out"));
        }
        self.seen = self.seen.max(end - 1);
        let from = first.max(self.next);
        // Below what is next: here already. Above it: what comes before it is to come again, and this too.
        if end <= self.next || first > self.next {
            return Ok(end..end);
        }
        self.next = end;
        self.handed = self.handed.max(end - 1);
        self.frames.push_back((end - 1, bytes as u32));
        Ok(from..end)
    }

    pub(super) fn stored(&mut self, now: Millis, n: u64) {
        assert!(n <= self.handed, "an item was stored that was not handed out");
        if n <= self.stored {
            return;
        }
        self.stored = n;
        // It may be stored after all, when it was already reported as missing.
        self.next = self.next.max(n + 1);
        while self.frames.front().is_some_and(|(last, _)| *last <= n) {
            if let Some((_, bytes)) = self.frames.pop_front() {
                self.bytes = self.bytes.saturating_add(bytes);
            }
        }
        let half = self.stored - self.acked >= u64::from(self.window.items / 2) || self.bytes >= self.window.bytes / 2;
        self.ack_due |= half;
        self.ack_at = self.ack_at.or(Some(now.after(ACK_DELAY_MS)));
    }

    pub(super) const fn wants_ack(&self) -> bool {
        self.ack_due
    }

    /// The number to ack, as it leaves.
    pub(super) fn take_ack(&mut self) -> u64 {
        self.acked = self.stored;
        self.bytes = 0;
        self.ack_due = false;
        self.ack_at = None;
        self.stored
    }

    /// What is not stored of the numbers up to `asked` is to come again, and so is what follows.
    pub(super) fn rewind_below(&mut self, asked: u64) {
        if self.stored < asked {
            self.next = self.stored + 1;
            self.frames.clear();
        }
    }
}
