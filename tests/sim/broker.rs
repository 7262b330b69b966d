//! The broker of the simulation: its real rooms, over a log whose every append is told to the oracle, driven by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::JoinHandle;

use longwire::auth::Authority;
use longwire::broker::commit::{Commit, Retention};
use longwire::broker::{BrokerParts, FeedLine};
use longwire::clock::{Hands, Source};
use longwire::net::Shared;
use longwire::net::connection::Connection;
use longwire::net::listener::AcceptLimits;
use longwire::routing::allowance::{Rate, Rates};
use longwire::routing::limits::Quotas;
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

/// Where in an append a disk takes its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Nothing of the frame is there.
    Before,
    /// All of it is, and nobody knows.
    After,
}

/// How the gate stands that a stalling append waits at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stand {
    #[default]
    Open,
    /// The next append is to wait.
    Shut(Moment),
    /// It does.
    Waits,
}

/// Where an append waits while its disk stalls. The commit thread has a thread of its own for such a turn, and only one of
/// the two ever runs: so it stays one history.
#[derive(Debug, Default)]
struct Gate {
    stand: Mutex<Stand>,
    changed: Condvar,
}

impl Gate {
    fn set(&self, stand: Stand) {
        *self.stand.lock().unwrap_or_else(PoisonError::into_inner) = stand;
        self.changed.notify_all();
    }

    /// Waits while it is as `of` says; returns how it stands then.
    fn wait_while(&self, of: impl Fn(Stand) -> bool) -> Stand {
        let stand = self.stand.lock().unwrap_or_else(PoisonError::into_inner);
        *self.changed.wait_while(stand, |stand| of(*stand)).unwrap_or_else(PoisonError::into_inner)
    }

    /// An append comes by.
    fn pass(&self, moment: Moment) {
        if *self.stand.lock().unwrap_or_else(PoisonError::into_inner) == Stand::Shut(moment) {
            self.set(Stand::Waits);
            self.wait_while(|stand| stand == Stand::Waits);
        }
    }
}

/// Opens the gate when the turn is over, however it ends.
struct Opens(Arc<Gate>);

impl Drop for Opens {
    fn drop(&mut self) {
        self.0.set(Stand::Open);
    }
}

/// The log as the commit thread holds it; clones are the same.
#[derive(Clone)]
pub(crate) struct Tapped {
    log: Arc<Mutex<Option<AnyLog>>>,
    told: Arc<Mutex<Vec<Told>>>,
    gate: Arc<Gate>,
    /// The process is gone: whatever goes on does nothing any more.
    is_gone: Arc<AtomicBool>,
}

impl Tapped {
    fn new(log: AnyLog) -> Self {
        let log = Arc::new(Mutex::new(Some(log)));
        Self { log, told: Arc::default(), gate: Arc::default(), is_gone: Arc::default() }
    }

    fn alive(&self) -> Result<(), AppendError> {
        match self.is_gone.load(Ordering::Relaxed) {
            true => Err(AppendError::Unknown { reason: "the process is gone".into(), sync: false }),
            false => Ok(()),
        }
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
        self.gate.pass(Moment::Before);
        self.alive()?;
        let appended = self.with(|log| log.log_mut().append(frame));
        self.gate.pass(Moment::After);
        self.alive()?;
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
        self.alive()?;
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

/// The rooms that have turns, but for the commit thread's.
pub(crate) struct Rooms {
    pub(crate) shared: Arc<Shared>,
    feed: FeedLine,
}

/// Where the commit thread's own is.
enum Turn {
    Here(Box<Commit>),
    /// In a turn whose append stalls.
    Away(JoinHandle<Box<Commit>>),
    /// On its way between the two.
    Nowhere,
}

/// A broker that runs: each of its rooms takes its turn when the world says so.
pub(crate) struct Running {
    pub(crate) rooms: Rooms,
    commit: Turn,
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
    /// How much is looked at for the requests of one user.
    pub(crate) reads: Option<Rate>,
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
            rates: Rates { reads: settings.reads, ..Rates::default() },
            quotas: Quotas::default(),
            retention: settings.retention,
            state_bytes_max: settings.state_bytes_max,
        };
        let rooms =
            longwire::broker::Rooms::new(parts, Source::ByHand(Arc::clone(&hands)), Tasks::ByHand(ByHand::default()))
                .map_err(|error| error.to_string())?;
        let commit = Turn::Here(Box::new(rooms.commit));
        let rooms = Rooms { shared: rooms.shared, feed: rooms.feed };
        let connections = BTreeMap::new();
        Ok(Self { rooms, commit, log, hands, started_ms: now_ms, connections, woken: Arc::default(), unfed: 0 })
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

    /// A turn of the commit thread; one that stalls comes to its end first.
    pub(crate) fn step_commit(&mut self) {
        self.end_stall();
        self.make_room();
        let before = self.frames_told();
        let Turn::Here(commit) = &mut self.commit else { unreachable!("it does not stall") };
        commit.step();
        self.unfed += self.frames_told() - before;
    }

    /// A turn of the commit thread whose append stalls, if it comes to one: everybody else has turns until
    /// [`Self::end_stall`]. Returns whether it stalls.
    pub(crate) fn stall_commit(&mut self, moment: Moment) -> bool {
        self.end_stall();
        self.make_room();
        let before = self.frames_told();
        let Turn::Here(mut commit) = std::mem::replace(&mut self.commit, Turn::Nowhere) else {
            unreachable!("it does not stall")
        };
        let gate = Arc::clone(&self.log.gate);
        gate.set(Stand::Shut(moment));
        let (opens, seed) = (Opens(Arc::clone(&gate)), fastrand::u64(..));
        self.commit = Turn::Away(std::thread::spawn(move || {
            let _opens = opens;
            fastrand::seed(seed);
            commit.step();
            commit
        }));
        let stalls = gate.wait_while(|stand| matches!(stand, Stand::Shut(_))) == Stand::Waits;
        if !stalls {
            self.join();
            self.unfed += self.frames_told() - before;
        }
        stalls
    }

    /// Whether a commit is under way that stalls.
    pub(crate) fn is_stalled(&self) -> bool {
        matches!(self.commit, Turn::Away(_))
    }

    /// The commit that stalls goes on, and the turn comes to its end.
    pub(crate) fn end_stall(&mut self) {
        if self.is_stalled() {
            let before = self.frames_told();
            self.log.gate.set(Stand::Open);
            self.join();
            self.unfed += self.frames_told() - before;
        }
    }

    fn join(&mut self) {
        if let Turn::Away(turn) = std::mem::replace(&mut self.commit, Turn::Nowhere) {
            let commit = turn.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            self.commit = Turn::Here(commit);
        }
    }

    /// The line to the feed holds so many frames, and a full one would have to be waited for.
    fn make_room(&mut self) {
        while self.unfed > 32 {
            self.step_feed();
        }
    }

    /// How many of what was told and not heard are frames.
    fn frames_told(&self) -> usize {
        let told = self.log.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.iter().filter(|told| matches!(told, Told::Committed(_) | Told::Reopened)).count()
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
    pub(crate) fn kill(mut self, ground: &mut Ground) {
        if let Ground::Disk(disk, _) = ground {
            disk.die();
        }
        self.log.is_gone.store(true, Ordering::Relaxed);
        self.end_stall();
        self.forget_tasks();
        drop(self.connections);
        drop((self.rooms, self.commit));
        let log = self.log.log.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Ground::Memory(kept), Some(AnyLog::Memory(log))) = (ground, log) {
            *kept = Some(log);
        }
    }

    /// The process ends in order: connections are gone, what is queued is done, the store is closed.
    pub(crate) fn stop(mut self, ground: &mut Ground) {
        self.end_stall();
        self.connections.clear();
        while !self.rooms.shared.queue.is_empty() {
            self.step_commit();
            while self.step_feed() {}
        }
        self.forget_tasks();
        match (&*ground, std::mem::replace(&mut self.commit, Turn::Nowhere)) {
            (Ground::Disk(..), Turn::Here(commit)) => commit.close(),
            (_, commit) => {
                self.commit = commit;
                self.kill(ground);
            }
        }
    }
}
