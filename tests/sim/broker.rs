//! The broker of the simulation: its real rooms, over a log whose every append is told to the oracle, driven by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use longwire::auth::Authority;
use longwire::broker::commit::Retention;
use longwire::broker::{BrokerParts, Rooms};
use longwire::clock::{Hands, Source};
use longwire::net::Shared;
use longwire::net::connection::Connection;
use longwire::net::listener::AcceptLimits;
use longwire::routing::allowance::Rates;
use longwire::store::testing::SimDisk;
use longwire::store::{
    AppendError, Figures, FollowError, Frame, History, Log, MemoryLog, Position, Pressure, ReadError, RedbLog,
    SavedState, Segment, Sieve, StateDelta, StoreOptions,
};
use longwire::tasks::{ByHand, Tasks};
use longwire_protocol::{BrokerLimits, LogTime};

use crate::link::{Link, Pipe};

/// What is told of the log.
#[derive(Debug)]
pub(crate) enum Told {
    /// A frame was committed.
    Committed(Frame),
    /// A frame failed under way: it may be found after a reopening or a start.
    Open,
    /// Surely not stored, and why.
    NotStored(String),
    /// The log was opened again.
    Reopened,
}

/// A log of either kind.
pub(crate) enum AnyLog {
    Durable(Box<RedbLog>),
    Memory(Box<MemoryLog>),
}

impl AnyLog {
    pub(crate) fn log(&self) -> &dyn Log {
        match self {
            Self::Durable(log) => &**log,
            Self::Memory(log) => &**log,
        }
    }

    fn log_mut(&mut self) -> &mut dyn Log {
        match self {
            Self::Durable(log) => &mut **log,
            Self::Memory(log) => &mut **log,
        }
    }

    /// A piece of background work; returns whether there may be more.
    fn work(&mut self) -> bool {
        match self {
            Self::Durable(log) => log.work().unwrap_or(false),
            Self::Memory(_) => false,
        }
    }
}

/// The log as the commit thread holds it; clones are the same.
#[derive(Clone)]
pub(crate) struct Tapped {
    log: Arc<Mutex<Option<AnyLog>>>,
    told: Arc<Mutex<Vec<Told>>>,
}

impl Tapped {
    fn new(log: AnyLog) -> Self {
        Self { log: Arc::new(Mutex::new(Some(log))), told: Arc::default() }
    }

    fn with<T>(&self, act: impl FnOnce(&mut AnyLog) -> T) -> T {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        act(log.as_mut().expect("the log is open"))
    }

    fn tell(&self, told: Told) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).push(told);
    }
}

/// Rows in the order of their keys, so that one seed makes one file.
struct Sorted(Box<dyn StateDelta>);

impl StateDelta for Sorted {
    fn rows(&self, row: &mut dyn FnMut(&[u8], Option<&[u8]>)) {
        let mut rows = BTreeMap::new();
        self.0.rows(&mut |key, value| drop(rows.insert(key.to_vec(), value.map(<[u8]>::to_vec))));
        rows.iter().for_each(|(key, value)| row(key, value.as_deref()));
    }
}

impl Log for Tapped {
    fn birth_unix_ms(&self) -> u64 {
        self.with(|log| log.log().birth_unix_ms())
    }

    fn segments(&self) -> Vec<Segment> {
        self.with(|log| log.log().segments())
    }

    fn tail(&self) -> Position {
        self.with(|log| log.log().tail())
    }

    fn tail_time(&self) -> LogTime {
        self.with(|log| log.log().tail_time())
    }

    fn applied(&self) -> Result<Position, ReadError> {
        self.with(|log| log.log().applied())
    }

    fn saved(&self) -> Arc<dyn SavedState> {
        self.with(|log| log.log().saved())
    }

    fn append(&mut self, frame: &Frame) -> Result<(), AppendError> {
        let appended = self.with(|log| log.log_mut().append(frame));
        self.tell(match &appended {
            Ok(()) => Told::Committed(frame.clone()),
            Err(AppendError::NotStored(reason)) => Told::NotStored(reason.clone()),
            Err(AppendError::Conflict { .. }) => panic!("the frame does not begin at the tail"),
            Err(AppendError::Unknown { .. }) => Told::Open,
        });
        appended
    }

    fn follow(&self, from: Position, frame: &mut dyn FnMut(Frame)) -> Result<(), FollowError> {
        self.with(|log| log.log().follow(from, frame))
    }

    fn is_seal_due(&self) -> bool {
        self.with(|log| log.log().is_seal_due())
    }

    fn unsaved_seals(&self) -> usize {
        self.with(|log| log.log().unsaved_seals())
    }

    fn seal(&mut self, state: Box<dyn StateDelta>) {
        self.with(|log| log.log_mut().seal(Box::new(Sorted(state))));
    }

    fn pressure(&self) -> Pressure {
        self.with(|log| log.log().pressure())
    }

    fn reopen(&mut self) -> Result<(), AppendError> {
        let reopened = self.with(|log| log.log_mut().reopen());
        if reopened.is_ok() {
            self.tell(Told::Reopened);
        }
        reopened
    }

    fn set_floor(&mut self, floor: Position) {
        self.with(|log| log.log_mut().set_floor(floor));
    }

    fn proposed_floor(&self, bytes: Option<u64>, time: Option<LogTime>) -> Position {
        self.with(|log| log.log().proposed_floor(bytes, time))
    }

    fn set_sieve(&mut self, sieve: Arc<dyn Sieve>) {
        self.with(|log| log.log_mut().set_sieve(sieve));
    }

    fn purge(&mut self, upto: Position) -> bool {
        self.with(|log| log.log_mut().purge(upto))
    }

    fn figures(&self) -> Figures {
        self.with(|log| log.log().figures())
    }

    fn history(&self) -> Arc<dyn History> {
        self.with(|log| log.log().history())
    }

    fn close(self: Box<Self>) -> Result<(), ReadError> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner).take();
        match log {
            Some(AnyLog::Durable(log)) => log.close(),
            _ => Ok(()),
        }
    }
}

/// Where the store lies between two lives of the broker.
pub(crate) enum Ground {
    /// On a simulated disk.
    Disk(SimDisk, StoreOptions),
    /// In memory; `None` while a broker has it.
    Memory(Option<Box<MemoryLog>>),
}

/// Connections whose task was woken.
#[derive(Debug, Default)]
struct Woken(Mutex<BTreeSet<u64>>);

struct WakeOne {
    link: u64,
    woken: Arc<Woken>,
}

impl Wake for WakeOne {
    fn wake(self: Arc<Self>) {
        self.woken.0.lock().unwrap_or_else(PoisonError::into_inner).insert(self.link);
    }
}

/// A broker that runs: each of its rooms takes its turn when the world says so.
pub(crate) struct Running {
    pub(crate) rooms: Rooms,
    log: Tapped,
    hands: Arc<Hands>,
    started_ms: u64,
    connections: BTreeMap<u64, (Served, Waker)>,
    woken: Arc<Woken>,
    /// Frames handed to the feed and not fed yet, at most.
    pub(crate) unfed: usize,
}

type Served = Pin<Box<Connection<Pipe>>>;

/// What a broker is started with, beside its store.
pub(crate) struct Settings {
    pub(crate) public_key: String,
    pub(crate) retention: Retention,
    /// What rows of state may take in memory: nothing, and all that is saved is read again and again.
    pub(crate) state_bytes_max: usize,
}

impl Running {
    /// Opens the store and recovers; an error where the disk does not allow it.
    pub(crate) fn start(ground: &mut Ground, settings: &Settings, now_ms: u64, unix_ms: u64) -> Result<Self, String> {
        let log = match ground {
            Ground::Disk(disk, options) => {
                let log = RedbLog::open_by_hand(Arc::new(disk.clone()), options.clone());
                AnyLog::Durable(Box::new(log.map_err(|error| error.to_string())?))
            }
            Ground::Memory(log) => {
                let log = log.take().expect("no other broker has the log");
                AnyLog::Memory(Box::new(log.restarted()))
            }
        };
        let log = Tapped::new(log);
        let hands = Arc::new(Hands::default());
        hands.unix_ms.store(unix_ms, Ordering::Relaxed);
        let authority = Authority::default();
        authority.set_issuers(&[("sim".into(), settings.public_key.clone().into_bytes())]).expect("a key");
        let parts = BrokerParts {
            log: Box::new(log.clone()),
            authority,
            limits: BrokerLimits::default(),
            accept: AcceptLimits {
                connections: 1_000,
                connections_per_address: 1_000,
                handshakes: 100,
                memory_bytes: None,
            },
            rates: Rates::default(),
            retention: settings.retention,
            state_bytes_max: settings.state_bytes_max,
        };
        let rooms = Rooms::new(parts, Source::ByHand(Arc::clone(&hands)), Tasks::ByHand(ByHand::default()))
            .map_err(|error| error.to_string())?;
        let connections = BTreeMap::new();
        Ok(Self { rooms, log, hands, started_ms: now_ms, connections, woken: Arc::default(), unfed: 0 })
    }

    /// What was told of the log since the last time.
    pub(crate) fn told(&self) -> Vec<Told> {
        std::mem::take(&mut self.log.told.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What its connections share.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.rooms.shared
    }

    /// Looks at the log.
    pub(crate) fn with_log<T>(&self, look: impl FnOnce(&mut AnyLog) -> T) -> T {
        self.log.with(look)
    }

    pub(crate) fn set_time(&self, now_ms: u64, unix_ms: u64) {
        self.hands.monotonic_ms.store(now_ms - self.started_ms, Ordering::Relaxed);
        self.hands.unix_ms.store(unix_ms, Ordering::Relaxed);
        self.rooms.shared.clock.log_time();
        self.rooms.shared.tick();
    }

    pub(crate) fn accept(&mut self, link: u64, wire: &Link) {
        let waker = Waker::from(Arc::new(WakeOne { link, woken: Arc::clone(&self.woken) }));
        let connection =
            Box::pin(Connection::new(wire.pipe(), self.rooms.shared.clock.now(), Arc::clone(&self.rooms.shared)));
        self.connections.insert(link, (connection, waker));
        self.woken().insert(link);
    }

    fn woken(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.woken.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it still serves a link.
    pub(crate) fn serves(&self, link: u64) -> bool {
        self.connections.contains_key(&link)
    }

    /// The connections that were woken, in order of their links.
    pub(crate) fn ready(&self) -> Vec<u64> {
        let connections = &self.connections;
        let mut woken = self.woken();
        woken.retain(|link| connections.contains_key(link));
        woken.iter().copied().collect()
    }

    /// Polls one connection; returns whether it ended.
    pub(crate) fn poll(&mut self, link: u64) -> bool {
        self.woken().remove(&link);
        let Some((connection, waker)) = self.connections.get_mut(&link) else { return true };
        let ended = connection.as_mut().poll(&mut Context::from_waker(waker)) == Poll::Ready(());
        if ended {
            self.connections.remove(&link);
        }
        ended
    }

    pub(crate) fn step_commit(&mut self) {
        // The line to the feed holds so many frames, and a full one would have to be waited for.
        while self.unfed > 32 {
            self.step_feed();
        }
        let told = |told: &[Told]| told.iter().filter(|t| matches!(t, Told::Committed(_) | Told::Reopened)).count();
        let before = told(&self.log.told.lock().unwrap_or_else(PoisonError::into_inner));
        self.rooms.commit.step();
        self.unfed += told(&self.log.told.lock().unwrap_or_else(PoisonError::into_inner)) - before;
    }

    pub(crate) fn step_feed(&mut self) -> bool {
        let fed = self.rooms.feed.step().expect("the commit thread is there");
        self.unfed = if fed { self.unfed.saturating_sub(1) } else { 0 };
        fed
    }

    fn by_hand(&self) -> &ByHand {
        match &self.rooms.shared.tasks {
            Tasks::ByHand(tasks) => tasks,
            Tasks::Pool => unreachable!("driven by hand"),
        }
    }

    /// Pieces of blocking work that wait.
    pub(crate) fn tasks(&self) -> usize {
        self.by_hand().waiting()
    }

    pub(crate) fn run_task(&self, index: usize) {
        self.by_hand().run(index);
    }

    /// The process is over, and whatever waited with it: else it would be held for ever by what it holds.
    fn forget_tasks(&self) {
        self.by_hand().forget();
    }

    pub(crate) fn work(&mut self) -> bool {
        self.log.with(AnyLog::work)
    }

    /// The process is gone from one instruction to the next.
    pub(crate) fn kill(self, ground: &mut Ground) {
        if let Ground::Disk(disk, _) = ground {
            disk.die();
        }
        self.forget_tasks();
        drop(self.connections);
        drop(self.rooms);
        let log = self.log.log.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Ground::Memory(kept), Some(AnyLog::Memory(log))) = (ground, log) {
            *kept = Some(log);
        }
    }

    /// The process ends in order: connections are gone, what is queued is done, the store is closed.
    pub(crate) fn stop(mut self, ground: &mut Ground) {
        self.connections.clear();
        while !self.rooms.shared.queue.is_empty() {
            self.step_commit();
            while self.step_feed() {}
        }
        self.forget_tasks();
        if matches!(ground, Ground::Disk(..)) {
            self.rooms.commit.close();
        } else {
            self.kill(ground);
        }
    }
}
