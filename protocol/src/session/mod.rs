//! The session: one live connection of one device, as a value. Frames, wishes and the time go in; frames, events and
//! the next deadline come out. It never reads a clock, touches a socket, spawns or locks.
//!
//! Four kinds of methods: getters; `handle_*` for what arrives; verbs for what the application wants; `poll_*` for
//! what must leave. After each call of the second or third kind, drain the fourth.

mod answers;
mod broker;
mod client;
mod handshake;
mod lane_in;
mod lane_out;
mod order;
mod publish_window;
mod queue;
mod tally;
mod time;

pub use broker::{BrokerEvent, BrokerLimits, BrokerSession};
pub use client::{ClientEvent, ClientSession};
pub use order::OpenRefusals;
pub use tally::{Asked, Tally};
pub use time::Millis;

use crate::packet::Window;

/// What a window still takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Items, or ids.
    pub items: u32,
    /// Bytes; `u32::MAX` while nothing is under way, because one may always be, whatever its size. So ask anew after
    /// each one that is sent.
    pub bytes: u32,
}

impl Room {
    /// No room at all.
    pub const NONE: Self = Self { items: 0, bytes: 0 };

    const fn new(window: Window, items_used: u32, bytes_used: u32) -> Self {
        Self {
            items: window.items.saturating_sub(items_used),
            bytes: if items_used == 0 { u32::MAX } else { window.bytes.saturating_sub(bytes_used) },
        }
    }

    /// Whether one of this many bytes may be sent now.
    #[must_use]
    pub const fn admits(self, bytes: usize) -> bool {
        self.items > 0 && bytes <= self.bytes as usize
    }
}
