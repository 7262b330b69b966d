//! What a connection shares, made for tests: nobody decides what is queued, and the wheel turns by hand.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, RwLock};

use longwire_protocol::{BrokerLimits, LogTime};

use super::Shared;
use super::wheel::Wheel;
use crate::auth::Authority;
use crate::broker::commit::Queue;
use crate::clock::Clock;
use crate::routing::registry::Registry;
use crate::routing::state::State;
use crate::store::Log;

/// A broker's shared parts over this log.
pub(super) fn shared(log: &dyn Log) -> Arc<Shared> {
    Arc::new(Shared {
        state: Arc::new(RwLock::new(State::default())),
        registry: Arc::new(Registry::default()),
        queue: Arc::new(Queue::default()),
        history: log.history(),
        segments: log.segments(),
        authority: Authority::default(),
        clock: Arc::new(Clock::new(log.birth_unix_ms(), LogTime(0))),
        wheel: Wheel::default(),
        limits: BrokerLimits::default(),
        draining: AtomicBool::new(false),
        fed: Arc::new(AtomicU64::new(0)),
        connections: AtomicUsize::new(0),
    })
}
