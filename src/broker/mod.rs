//! The composition root: every thread and task of the broker, and the order in which they end.

pub mod commit;
pub mod queue;
pub mod standing;
mod upkeep;
pub mod watched;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, RwLock};
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use longwire_protocol::{BrokerLimits, SessionNumber};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::Authority;
use crate::clock::{Clock, Source};
use crate::metrics::Metrics;
use crate::metrics::process::resident_bytes;
use crate::net::Shared;
use crate::net::listener::{AcceptLimits, Listener, Security, carry};
use crate::net::spread;
use crate::net::stream::ByteStream;
use crate::net::wheel::{SLOT_MS, Wheel};
use crate::routing::allowance::{Allowance, Rates};
use crate::routing::feed::Feed;
use crate::routing::grants::TakenBack;
use crate::routing::limits::Quotas;
use crate::routing::registry::Registry;
use crate::store::{Frame, Log, ReadError};
use crate::tasks::Tasks;
use crate::vital;
use commit::{Commit, Parts, Retention, recover};
use queue::Queue;
use standing::Standing;
use watched::Watched;

/// Committed frames that may wait for the feed; beyond, commits wait. A frame holds at most some 300 KB.
const FEED_FRAMES_MAX: usize = 64;

/// Between two looks at the memory of the process.
const MEMORY_EVERY: Duration = Duration::from_millis(500);

/// What a broker is made of, resolved and checked.
pub struct BrokerParts {
    /// The log, opened.
    pub log: Box<dyn Log>,
    /// Whose tokens are believed.
    pub authority: Authority,
    /// The bounds of sessions.
    pub limits: BrokerLimits,
    /// The bounds of accepting.
    pub accept: AcceptLimits,
    /// How many publishes may come.
    pub rates: Rates,
    /// What users may have.
    pub quotas: Quotas,
    /// How long entries are kept.
    pub retention: Retention,
    /// Bytes of rows of state held in memory, those not saved yet aside.
    pub state_bytes_max: usize,
}

/// A running broker.
pub struct Broker {
    shared: Arc<Shared>,
    accept: AcceptLimits,
    watched: Watched,
    commit: thread::JoinHandle<()>,
    feed: thread::JoinHandle<()>,
    tracker: TaskTracker,
    listeners: TaskTracker,
    stop_listeners: CancellationToken,
    stop: CancellationToken,
    #[cfg(feature = "push")]
    teller: Option<crate::push::Teller>,
}

impl Broker {
    /// Recovers the state and starts everything but listeners. Blocks while it reads the journal.
    ///
    /// # Errors
    /// When the store cannot be read.
    ///
    /// # Panics
    /// When the machine gives no threads. Call it inside a tokio runtime.
    pub fn start(parts: BrokerParts) -> Result<Self, ReadError> {
        let (accept, state_bytes_max) = (parts.accept, parts.state_bytes_max);
        let Rooms { shared, commit, feed, standing } = Rooms::new(parts, Source::machine(), Tasks::Pool)?;
        let feed = vital::spawn("longwire-feed", move || feed.run()).expect("the machine gives a thread");
        let commit = vital::spawn("longwire-commit", move || commit.run()).expect("the machine gives a thread");
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        tracker.spawn(vital::task(run_wheel(Arc::clone(&shared), stop.clone())));
        if let Some(most) = accept.memory_bytes {
            tracker.spawn(vital::task(watch_memory(Arc::clone(&shared), most, stop.clone())));
        }
        let watched = Watched {
            shared: Arc::clone(&shared),
            standing,
            accept,
            state_bytes_max,
            listening: Arc::default(),
            certificates: Vec::new(),
        };
        Ok(Self {
            shared,
            accept,
            watched,
            commit,
            feed,
            tracker,
            listeners: TaskTracker::new(),
            stop_listeners: CancellationToken::new(),
            stop,
            #[cfg(feature = "push")]
            teller: None,
        })
    }

    /// Accepts connections on a bound socket.
    ///
    /// # Errors
    /// When the machine gives no threads for the handshakes of TLS.
    pub fn listen(&self, socket: TcpListener, security: Security) -> io::Result<()> {
        let (shared, tracker) = (Arc::clone(&self.shared), self.tracker.clone());
        let listener = Listener::new(socket, security, self.accept, shared, tracker)?;
        self.listeners.spawn(vital::task(listener.run(self.stop_listeners.clone())));
        self.watched.listening.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// What it tells who watches it.
    #[must_use]
    pub fn watched(&self) -> Watched {
        self.watched.clone()
    }

    /// Carries a connection over a stream that is connected, and secured if it shall be, without the bounds of a listener.
    pub fn carry(&self, stream: impl ByteStream + Send + 'static) {
        carry(stream, &self.shared, &self.tracker);
    }

    /// Tells devices that are away that something waits for them. Once.
    ///
    /// # Errors
    /// When the machine gives no thread.
    #[cfg(feature = "push")]
    pub fn tell(
        &mut self,
        providers: crate::push::providers::Providers,
        rules: crate::routing::push::look::Rules,
    ) -> io::Result<()> {
        let (shared, queue) = (&self.shared, Arc::clone(&self.shared.queue));
        let parts = crate::push::Parts {
            state: Arc::clone(&shared.state),
            history: Arc::clone(&shared.history),
            registry: Arc::clone(&shared.registry),
            clock: Arc::clone(&shared.clock),
            metrics: Arc::clone(&shared.metrics),
            settle: Box::new(move |settling| {
                queue.push_one(crate::routing::ops::Op::SettlePush(Box::new(settling)));
            }),
            providers,
            rules,
        };
        self.teller = Some(crate::push::Teller::start(parts)?);
        Ok(())
    }

    /// Whose tokens are believed; after a change, wake all with [`Broker::recheck`].
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.shared.authority
    }

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Has every session look again whether it is still believed.
    pub fn recheck(&self) {
        for session in self.shared.registry.all() {
            session.outbox.wake();
        }
    }

    /// Drains: nobody new is let in, everyone is told to go elsewhere, frames under way are finished, and by the
    /// deadline every connection is closed. Then threads and store end, in the order in which work flows.
    ///
    /// # Cancel safety
    /// Not cancel safe: dropped half-way, threads go on until the process ends; nothing acked is lost all the same.
    pub async fn drain(self, deadline: Duration) {
        self.shared.draining.store(true, Ordering::Relaxed);
        self.stop_listeners.cancel();
        self.listeners.close();
        self.listeners.wait().await;
        let sessions = self.shared.registry.all();
        tracing::info!(connections = self.connections(), "draining");
        for session in &sessions {
            session.outbox.lock().goaway = Some(spread(500, 5_000));
            session.outbox.wake();
        }
        drop(sessions);
        let gone = async {
            while self.connections() > 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(deadline, gone).await.is_err() {
            for session in self.shared.registry.all() {
                let refusal =
                    longwire_protocol::reason::Refusal::connection(longwire_protocol::reason::Reason::Draining);
                session.outbox.close(refusal.retry_after(spread(500, 5_000)));
            }
            let _ = tokio::time::timeout(Duration::from_secs(3), async {
                while self.connections() > 0 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
            .await;
        }
        #[cfg(feature = "push")]
        if let Some(teller) = self.teller {
            let _ = tokio::task::spawn_blocking(move || teller.stop()).await;
        }
        self.stop.cancel();
        self.shared.queue.stop();
        let (commit, feed) = (self.commit, self.feed);
        // The commit thread ends once its queue is empty, the feed once the commit thread is gone.
        // Vital, both: they cannot have panicked.
        let _ = tokio::task::spawn_blocking(move || (commit.join(), feed.join())).await;
        let metrics = &self.shared.metrics;
        tracing::info!(
            operations = metrics.operations.get(),
            frames = metrics.commits.get(),
            late_rows = metrics.late_rows.get(),
            "stopped; each frame was one fsync"
        );
    }
}

/// The rooms of a broker, recovered and wired, without a thread or task: [`Broker`] gives each its own, and who drives
/// them by hand decides every turn of each.
pub struct Rooms {
    /// What connections share.
    pub shared: Arc<Shared>,
    /// The commit thread's own; the crossings that a crash interrupted are finished.
    pub commit: Commit,
    /// The feed thread's own.
    pub feed: FeedLine,
    /// How the commit thread stands.
    pub standing: Arc<Standing>,
}

impl Rooms {
    /// Recovers the state and builds everything but listeners. Blocks while it reads the journal.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn new(parts: BrokerParts, time: Source, tasks: Tasks) -> Result<Self, ReadError> {
        let BrokerParts { log, authority, limits, accept: _, rates, quotas, retention, state_bytes_max } = parts;
        let mut state = recover(&*log, state_bytes_max)?;
        state.quotas = quotas;
        let revocations = authority.revocations();
        state.taken_back =
            TakenBack::by(move |user, bearer| revocations.load().revokes_token(user, &bearer.token, bearer.issued));
        let clock = Arc::new(Clock::new(time, log.birth_unix_ms(), log.tail_time()));
        let fed = Arc::new(AtomicU64::new(state.tail.0));
        let state = Arc::new(RwLock::new(state));
        let (registry, queue) = (Arc::new(Registry::default()), Arc::new(Queue::default()));
        let (metrics, standing) = (Arc::new(Metrics::default()), Arc::new(Standing::default()));
        let (feed, frames) = sync_channel(FEED_FRAMES_MAX);
        let shared = Arc::new(Shared {
            state: Arc::clone(&state),
            registry: Arc::clone(&registry),
            queue: Arc::clone(&queue),
            history: log.history(),
            segments: log.segments(),
            authority,
            clock: Arc::clone(&clock),
            tasks,
            wheel: Wheel::default(),
            limits,
            draining: AtomicBool::new(false),
            fed: Arc::clone(&fed),
            rates,
            allowance: Mutex::new(Allowance::new(rates)),
            logins: Default::default(),
            is_memory_short: AtomicBool::new(false),
            metrics: Arc::clone(&metrics),
            connections: AtomicUsize::new(0),
        });
        // Rising from start to start, and small on the wire.
        let newest_session = SessionNumber((clock.unix_ms() / 1_000) << 20);
        let mut commit = Commit::new(Parts {
            log,
            state: Arc::clone(&state),
            registry: Arc::clone(&registry),
            queue,
            clock,
            feed,
            metrics,
            standing: Arc::clone(&standing),
            newest_session,
            retention,
        });
        commit.finish_crossings();
        let feed = FeedLine { feed: Feed::new(state, Arc::clone(&registry)), registry, frames, fed };
        Ok(Self { shared, commit, feed, standing })
    }
}

/// The committed frames on their way into lanes, a bounded number of them.
pub struct FeedLine {
    feed: Feed,
    registry: Arc<Registry>,
    frames: Receiver<Frame>,
    fed: Arc<AtomicU64>,
}

impl FeedLine {
    /// Feeds until the commit thread is gone and every frame is fed.
    pub fn run(mut self) {
        while let Ok(frame) = self.frames.recv() {
            self.feed(&frame);
        }
    }

    /// Feeds one frame if there is one; returns whether there was.
    ///
    /// # Errors
    /// When the commit thread is gone.
    pub fn step(&mut self) -> Result<bool, TryRecvError> {
        match self.frames.try_recv() {
            Ok(frame) => {
                self.feed(&frame);
                Ok(true)
            }
            Err(TryRecvError::Empty) => Ok(false),
            Err(gone) => Err(gone),
        }
    }

    fn feed(&mut self, frame: &Frame) {
        self.feed.feed(frame);
        if frame.positions > 0 {
            self.fed.store(frame.last().0, Ordering::Release);
            self.registry.bell.note(frame);
        }
    }
}

async fn run_wheel(shared: Arc<Shared>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(Duration::from_millis(SLOT_MS));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {
                shared.clock.log_time();
                shared.tick();
            }
        }
    }
}

/// Looks now and then what the process takes, and lets nobody new in while it is too much.
async fn watch_memory(shared: Arc<Shared>, most: u64, stop: CancellationToken) {
    let mut tick = tokio::time::interval(MEMORY_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let taken = resident_bytes().unwrap_or(0);
        let is_short = taken > most;
        if shared.is_memory_short.swap(is_short, Ordering::Relaxed) != is_short {
            if is_short {
                tracing::warn!(taken, most, "nobody new is let in: the process takes more memory than limits.memory");
            } else {
                tracing::info!(taken, most, "memory is free again, connections are let in");
            }
        }
    }
}

/// A certificate and its key, which can be read anew while the broker runs.
pub struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
    config: Arc<ArcSwap<ServerConfig>>,
    /// When it expires, in seconds since 1970; 0 where that is not known.
    expires: Arc<AtomicU64>,
}

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn read(certificate: PathBuf, key: PathBuf) -> Result<Self, crate::net::tls::TlsError> {
        let (config, expires) = crate::net::tls::server_config_and_expiry(&certificate, &key)?;
        let expires = Arc::new(AtomicU64::new(expires));
        Ok(Self { certificate, key, config: Arc::new(ArcSwap::new(config)), expires })
    }

    /// The security of a listener that presents it.
    #[must_use]
    pub fn security(&self) -> Security {
        Security::Tls(Arc::clone(&self.config))
    }

    /// When it expires, in seconds since 1970, also after it was read anew; 0 where that is not known.
    #[must_use]
    pub fn expires(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.expires)
    }

    /// Reads the files anew for connections to come; ongoing ones go on. A bad one changes nothing.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn reload(&self) -> Result<(), crate::net::tls::TlsError> {
        let (config, expires) = crate::net::tls::server_config_and_expiry(&self.certificate, &self.key)?;
        self.expires.store(expires, Ordering::Relaxed);
        self.config.store(config);
        Ok(())
    }
}
