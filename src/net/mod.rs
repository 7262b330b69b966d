//! The network: listeners, TLS, and one task per connection that carries bytes and time between a socket and a session.
//! Decides nothing about messages: what may be done is `routing`'s, who someone is is `auth`'s.

mod admission;
pub mod connection;
mod lanes;
mod line;
pub mod listener;
pub mod login;
mod publishing;
pub mod pump;
mod receipts;
mod requests;
mod signals;
pub mod stream;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod wheel;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, RwLock};

use longwire_protocol::BrokerLimits;

use crate::auth::Authority;
use crate::broker::queue::Queue;
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::routing::allowance::{Allowance, Rates};
use crate::routing::registry::Registry;
use crate::routing::state::State;
use crate::store::{History, Segment};
use crate::tasks::Tasks;

/// What every connection shares with the rest of the broker.
pub struct Shared {
    /// Committed state.
    pub state: Arc<RwLock<State>>,
    /// Who is online.
    pub registry: Arc<Registry>,
    /// The way to the commit thread.
    pub queue: Arc<Queue>,
    /// Reads of entries.
    pub history: Arc<dyn History>,
    /// The segments of the log, the current one last.
    pub segments: Vec<Segment>,
    /// Whose tokens are believed.
    pub authority: Authority,
    /// The clock.
    pub clock: Arc<Clock>,
    /// Where reads of the disk are done.
    pub tasks: Tasks,
    /// Wakes connections when something runs out.
    pub wheel: wheel::Wheel,
    /// The bounds of sessions.
    pub limits: BrokerLimits,
    /// The broker is going away: nobody is let in any more.
    pub draining: AtomicBool,
    /// Everything up to this position was pushed into the lanes of who is online.
    pub fed: Arc<AtomicU64>,
    /// How many publishes may come.
    pub rates: Rates,
    /// What users may still make, and who may still publish.
    pub allowance: Mutex<Allowance>,
    /// Passwords that are being checked.
    pub logins: login::Logins,
    /// The process takes more memory than it shall: nobody new is let in.
    pub is_memory_short: AtomicBool,
    /// Where it is counted what happens.
    pub metrics: Arc<Metrics>,
    /// Connections there are, from accept to close.
    pub connections: AtomicUsize,
}

impl Shared {
    /// Time has passed: connections whose deadline came are woken, and who watches is told who came and went, and acked.
    pub fn tick(&self) {
        let now = self.clock.now();
        self.wheel.turn(now);
        self.registry.tell_presence(now);
        self.registry.tell_deliveries(&self.state, now);
    }
}

/// A wait that differs from client to client.
pub(crate) fn spread(least_ms: u32, most_ms: u32) -> u32 {
    fastrand::u32(least_ms..=most_ms)
}
