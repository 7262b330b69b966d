//! What a connection shares, made for tests: nobody decides what is queued, and the wheel turns by hand.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, RwLock};

use longwire_protocol::{BrokerLimits, LogTime, Millis, packet};

use super::Shared;
use super::pump::Live;
use super::wheel::Wheel;
use crate::auth::{Authority, Identity};
use crate::broker::queue::Queue;
use crate::clock::{Clock, Hands, Source};
use crate::routing::allowance::Rates;
use crate::routing::outbox::{Attached, Generation, Session};
use crate::routing::registry::Registry;
use crate::routing::state::State;
use crate::store::Log;
use crate::tasks::Tasks;

/// A broker's shared parts over this log, at the beginning of time.
pub(super) fn shared(log: &dyn Log) -> Arc<Shared> {
    shared_at(log, &Arc::default())
}

/// The same, with a clock that these hands move.
pub(super) fn shared_at(log: &dyn Log, hands: &Arc<Hands>) -> Arc<Shared> {
    Arc::new(Shared {
        state: Arc::new(RwLock::new(State::default())),
        registry: Arc::new(Registry::default()),
        queue: Arc::new(Queue::default()),
        history: log.history(),
        segments: log.segments(),
        authority: Authority::default(),
        tasks: Tasks::default(),
        clock: Arc::new(Clock::new(Source::ByHand(Arc::clone(hands)), log.birth_unix_ms(), LogTime(0))),
        wheel: Wheel::default(),
        limits: BrokerLimits::default(),
        draining: AtomicBool::new(false),
        fed: Arc::new(AtomicU64::new(0)),
        rates: Rates::default(),
        allowance: Mutex::default(),
        logins: Default::default(),
        is_memory_short: AtomicBool::new(false),
        metrics: Arc::default(),
        connections: AtomicUsize::new(0),
    })
}

/// What a session that was just let in does.
pub(super) fn live(session: Arc<Session>, shared: &Shared) -> Live {
    let identity = Identity {
        user: "alice".into(),
        device: None,
        publish: Vec::new(),
        read: Vec::new(),
        moderate: Vec::new(),
        expires: u64::MAX,
        issued: 0,
        id: "".into(),
        is_admin: false,
        generation: None,
    };
    let generation = Generation::default();
    let attached = Attached {
        session,
        connected: packet::Connected::default(),
        cursor: None,
        generation,
        tokens_until: LogTime(0),
    };
    Live::new(attached, (Arc::new(identity), shared.authority.generation()), false, u32::MAX, Millis(0))
}
