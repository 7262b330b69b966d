//! Listeners: accept, within bounds; handshake in a task of its own; then the connection's own small task.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use longwire_protocol::Millis;
use longwire_protocol::limits::{TLS_MS, TLS_MS_MIN, TLS_TURN_MS};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{Handle, Runtime};
use tokio::time::error::Elapsed;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::Connection;
use super::line::Line;
use super::stream::ByteStream;
use super::{Shared, tls};
use crate::metrics::words::{Door, Full, Handshake};
use crate::vital::caught;

/// Sockets that the kernel holds until they are accepted, where `net.core.somaxconn` allows as many. After a cut everyone comes
/// at once, and who finds it full tries again after 1, 2, 4 and 8 s.
const BACKLOG: u32 = 65_535;

/// A socket that listens here.
///
/// # Errors
/// Where that is not possible: the address is in use, or none of this machine.
///
/// # Panics
/// Outside a runtime.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A broker that starts again at once is not in the way of its own last connections.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The bounds of accepting.
#[derive(Clone, Copy, Debug)]
pub struct AcceptLimits {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one address, or of one network of 64 bits in IPv6.
    pub connections_per_address: usize,
    /// TLS handshakes under way, of which one address has a quarter at most; fifteen times as many wait for their turn.
    pub handshakes: usize,
    /// Resident memory of the process, in bytes, from which on nobody new is let in; without a bound if `None`.
    pub memory_bytes: Option<u64>,
}

/// How a listener secures its connections.
#[derive(Clone)]
pub enum Security {
    /// TLS 1.3, with the configuration of the moment.
    Tls(Arc<ArcSwap<ServerConfig>>),
    /// None at all.
    Plain,
}

/// One listening socket.
pub struct Listener {
    socket: TcpListener,
    security: Security,
    limits: AcceptLimits,
    /// What its connections share.
    shared: Arc<Shared>,
    /// Who waits for its connections to end.
    tracker: TaskTracker,
    /// Where handshakes are made, if any are.
    shakes: Option<Handshakes>,
}

/// How much of something each address has.
#[derive(Debug, Default)]
struct Addresses(Mutex<HashMap<IpAddr, usize>>);

impl Addresses {
    /// One more for this address, unless it has `most` already.
    fn take(self: &Arc<Self>, address: IpAddr, most: usize) -> Option<Share> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.get(&address).copied().unwrap_or(0);
        if count >= most {
            return None;
        }
        counts.insert(address, count + 1);
        Some(Share { addresses: Arc::clone(self), address })
    }
}

/// One of those that an address has.
struct Share {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.addresses.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// One connection's place among those of its address and of all.
struct Place {
    shared: Arc<Shared>,
    door: Door,
    /// None for one that no listener accepted.
    _share: Option<Share>,
}

impl Place {
    fn take(shared: &Arc<Shared>, door: Door, share: Option<Share>) -> Self {
        shared.connections.fetch_add(1, Ordering::Relaxed);
        shared.metrics.connections[door].inc();
        shared.metrics.opened[door].inc();
        Self { shared: Arc::clone(shared), door, _share: share }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
        self.shared.metrics.connections[self.door].dec();
    }
}

/// What counts as one address: whoever has an IPv6 address has the other 2^64 of its network as well.
fn origin(peer: SocketAddr) -> IpAddr {
    match peer.ip().to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

/// The bounds of one listener, and who takes how much of them.
struct Gate {
    connections: Arc<Addresses>,
    line: Arc<Line>,
    /// Whoever is not let in until then is not let in any more.
    stop: CancellationToken,
}

/// Threads of their own for what is dear in handshakes, at a low priority: it is the dearest thing that a stranger can ask
/// for, and whoever is connected goes first. While nobody else wants the cores, they have them.
struct Handshakes(Option<Runtime>);

/// Nine in ten parts of a core that both want are for those who are connected.
const HANDSHAKES_NICE: i32 = 10;

impl Handshakes {
    fn start() -> io::Result<Self> {
        Self::start_as(tokio::runtime::Builder::new_multi_thread().thread_name("longwire-tls"))
    }

    fn start_as(builder: &mut tokio::runtime::Builder) -> io::Result<Self> {
        let lower = || {
            // Linux gives each thread its own nice value. If it is refused, the work is done at the usual one.
            if let Err(error) = rustix::process::setpriority_process(None, HANDSHAKES_NICE) {
                tracing::debug!(%error, "handshakes keep the usual priority");
            }
        };
        // tokio panics where it gets no thread.
        let built = caught(|| builder.on_thread_start(lower).enable_time().build());
        let built = built.unwrap_or_else(|_| Err(io::Error::other("there are no threads for TLS handshakes")));
        built.map(|made| Self(Some(made)))
    }

    fn threads(&self) -> Option<Handle> {
        self.0.as_ref().map(|runtime| runtime.handle().clone())
    }
}

impl Drop for Handshakes {
    fn drop(&mut self) {
        // What they are at comes to nothing.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A connection in its place. Written out, since an async block would hold what it moves twice, for as long as the
/// connection lives.
struct Placed<S> {
    connection: Connection<S>,
    _place: Place,
}

impl<S: ByteStream> Future for Placed<S> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.connection).poll(context)
    }
}

/// Carries a connection over a stream, as a task that the tracker knows.
pub(crate) fn carry(stream: impl ByteStream + Send + 'static, shared: &Arc<Shared>, tracker: &TaskTracker) {
    let place = Place::take(shared, Door::Handed, None);
    let connection = Connection::new(stream, shared.clock.now(), Arc::clone(shared));
    tracker.spawn(Placed { connection, _place: place });
}

/// Counts how a handshake ended; the stream, if it goes on.
fn shaken<S>(ended: Result<io::Result<S>, Elapsed>, shared: &Shared, accepted: Millis) -> Option<S> {
    let metrics = &shared.metrics;
    match ended {
        Ok(Ok(stream)) => {
            metrics.handshakes[Handshake::Done].inc();
            metrics.handshake_seconds.observe(shared.clock.now().since(accepted) as f64 / 1e3);
            return Some(stream);
        }
        Ok(Err(_)) => shaken_off(Handshake::Failed, shared),
        Err(_) => shaken_off(Handshake::Late, shared),
    }
    None
}

/// Counts one that came to nothing.
fn shaken_off(why: Handshake, shared: &Shared) {
    shared.metrics.handshakes[why].inc();
    shared.metrics.closed.handshake.inc();
}

impl Listener {
    /// A listener on a bound socket, whose connections share `shared` and are waited for by `tracker`.
    ///
    /// # Errors
    /// When the machine gives no threads for the handshakes of TLS.
    pub fn new(
        socket: TcpListener,
        security: Security,
        limits: AcceptLimits,
        shared: Arc<Shared>,
        tracker: TaskTracker,
    ) -> io::Result<Self> {
        let shakes = match security {
            Security::Plain => None,
            Security::Tls(_) => Some(Handshakes::start()?),
        };
        Ok(Self { socket, security, limits, shared, tracker, shakes })
    }

    /// Accepts until told to stop.
    ///
    /// # Cancel safety
    /// Cancel safe: a connection is either handed to its task or not accepted.
    pub async fn run(self, stop: CancellationToken) {
        let gate = Gate { connections: Arc::default(), line: Line::new(self.limits.handshakes), stop: stop.clone() };
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((socket, peer)) => self.admit(socket, peer, &gate),
                Err(error) => {
                    // Out of files or memory: wait for some to come free rather than spin.
                    tracing::warn!(%error, "no connection can be accepted just now");
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(Duration::from_millis(100)) => {}
                    }
                }
            }
        }
    }

    fn admit(&self, socket: TcpStream, peer: SocketAddr, gate: &Gate) {
        // Beyond a bound the socket is closed at once: cheaper than any handshake.
        let turn_away = |full| {
            self.shared.metrics.turned_away[full].inc();
        };
        if self.shared.connections.load(Ordering::Relaxed) >= self.limits.connections {
            return turn_away(Full::Connections);
        }
        if self.shared.is_memory_short.load(Ordering::Relaxed) {
            return turn_away(Full::Memory);
        }
        let address = origin(peer);
        let Some(share) = gate.connections.take(address, self.limits.connections_per_address) else {
            return turn_away(Full::Address);
        };
        let _ = socket.set_nodelay(true);
        let (shared, tracker) = (Arc::clone(&self.shared), self.tracker.clone());
        let accepted = shared.clock.now();
        match &self.security {
            Security::Plain => {
                let place = Place::take(&shared, Door::Plain, Some(share));
                tracker.spawn(Placed {
                    connection: Connection::new(socket, accepted, shared).from_address(address),
                    _place: place,
                });
            }
            Security::Tls(config) => {
                let Some(waits) = gate.line.enter(address) else { return turn_away(Full::Handshakes) };
                let config = config.load_full();
                let place = Place::take(&shared, Door::Tls, Some(share));
                let threads = self.shakes.as_ref().and_then(Handshakes::threads);
                let lets_in = async move {
                    let Ok(turn) = tokio::time::timeout(Duration::from_millis(TLS_TURN_MS), waits.turn()).await else {
                        return shaken_off(Handshake::Late, &shared);
                    };
                    // It may have waited for its turn, also on the processor: that counts.
                    let left = TLS_MS.saturating_sub(shared.clock.now().since(accepted)).max(TLS_MS_MIN);
                    let left = Duration::from_millis(left);
                    // A task of its own for who is let in, so that nothing of the handshake stays.
                    let handshake = Box::pin(tls::accept(config, socket, threads));
                    if let Some(stream) = shaken(tokio::time::timeout(left, handshake).await, &shared, accepted) {
                        let connection = Connection::new(stream, accepted, shared).from_address(address);
                        tracker.spawn(Placed { connection, _place: place });
                    }
                    drop(turn);
                };
                drop(tokio::spawn(gate.stop.clone().run_until_cancelled_owned(lets_in)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_ipv6_counts_as_one_address() {
        let of = |address: &str| origin(SocketAddr::new(address.parse().expect("an address"), 1));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1:2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }

    /// Who finds the kernel's queue full is not refused but left alone, and tries again after a second.
    #[tokio::test]
    async fn as_many_as_the_kernel_allows_wait_to_be_accepted() {
        const MANY: usize = 1_000;
        let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").expect("Linux tells");
        if most.trim().parse::<usize>().expect("a number") < MANY {
            eprintln!("skipped: net.core.somaxconn is {}", most.trim());
            return;
        }
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let address = listener.local_addr().expect("its own");
        let wait = Duration::from_millis(900);
        let waiting: Vec<_> = (0..MANY).map(|_| std::net::TcpStream::connect_timeout(&address, wait)).collect();
        assert_eq!(waiting.iter().filter(|socket| socket.is_err()).count(), 0);
    }

    #[tokio::test]
    async fn an_address_is_listened_at_once_and_again_after_it_was_let_go() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // A machine may have no IPv6.
            let Ok(first) = bind(address.parse().expect("an address")) else { continue };
            let address = first.local_addr().expect("its own");
            assert_eq!(bind(address).expect_err("in use").kind(), io::ErrorKind::AddrInUse);
            let client = std::net::TcpStream::connect(address).expect("it listens");
            // The broker's end is closed first, and its port is busy for a while.
            drop(first.accept().await.expect("a client"));
            drop((client, first));
            bind(address).expect("free again");
        }
    }

    /// Whoever is connected goes first: Linux gives a thread's nice value as the 17th field behind its name.
    #[tokio::test]
    async fn handshakes_are_made_at_a_low_priority() {
        let shakes = Handshakes::start().expect("threads");
        let (tell, told) = tokio::sync::oneshot::channel();
        let threads = shakes.threads().expect("they run");
        drop(threads.spawn(async move { drop(tell.send(std::fs::read_to_string("/proc/thread-self/stat"))) }));
        let stat = told.await.expect("it runs").expect("Linux tells");
        let nice = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_whitespace().nth(16));
        assert_eq!(nice, Some(HANDSHAKES_NICE.to_string().as_str()));
    }

    /// A broker must not go on without a door: who starts it is told.
    #[test]
    fn no_threads_for_handshakes_is_an_error_and_no_panic() {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        // No machine has the memory for such a stack.
        let started = Handshakes::start_as(builder.worker_threads(1).thread_stack_size(1 << 60));
        assert!(started.is_err_and(|error| error.to_string().contains("handshakes")));
    }

    #[test]
    fn an_address_has_its_share_and_gets_it_back() {
        let addresses = Arc::new(Addresses::default());
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let share = addresses.take(one, 1).expect("the first");
        assert!(addresses.take(one, 1).is_none() && addresses.take(other, 1).is_some());
        drop(share);
        assert!(addresses.0.lock().expect("unpoisoned").is_empty(), "who has nothing is forgotten");
        assert!(addresses.take(one, 1).is_some());
    }
}
