//! Listeners: accept, within bounds; handshake in a task of its own; then the connection's own small task.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use longwire_protocol::limits::TLS_MS;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::Connection;
use super::{Shared, tls};

/// The bounds of accepting.
#[derive(Clone, Copy, Debug)]
pub struct AcceptLimits {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one address.
    pub connections_per_address: usize,
    /// Handshakes under way.
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
    /// The socket.
    pub socket: TcpListener,
    /// How its connections are secured.
    pub security: Security,
    /// Its bounds.
    pub limits: AcceptLimits,
    /// What its connections share.
    pub shared: Arc<Shared>,
    /// Who waits for its connections to end.
    pub tracker: TaskTracker,
}

/// How many connections each address has.
#[derive(Debug, Default)]
struct Addresses(Mutex<HashMap<IpAddr, usize>>);

/// One connection's place among those of its address and of all.
struct Place {
    shared: Arc<Shared>,
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
        let mut counts = self.addresses.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// A connection in its place. Written out, since an async block would hold what it moves twice, for as long as the
/// connection lives.
struct Placed<S> {
    connection: Connection<S>,
    _place: Place,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Placed<S> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.connection).poll(context)
    }
}

impl Listener {
    /// Accepts until told to stop.
    ///
    /// # Cancel safety
    /// Cancel safe: a connection is either handed to its task or not accepted.
    pub async fn run(self, stop: CancellationToken) {
        let addresses = Arc::new(Addresses::default());
        let handshakes = Arc::new(Semaphore::new(self.limits.handshakes));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((socket, peer)) => self.admit(socket, peer, &addresses, &handshakes),
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

    fn admit(&self, socket: TcpStream, peer: SocketAddr, addresses: &Arc<Addresses>, handshakes: &Arc<Semaphore>) {
        // Beyond a bound the socket is closed at once: cheaper than any handshake.
        if self.shared.connections.load(Ordering::Relaxed) >= self.limits.connections
            || self.shared.is_memory_short.load(Ordering::Relaxed)
        {
            return;
        }
        let address = peer.ip().to_canonical();
        {
            let mut counts = addresses.0.lock().unwrap_or_else(PoisonError::into_inner);
            let count = counts.entry(address).or_default();
            if *count >= self.limits.connections_per_address {
                return;
            }
            *count += 1;
        }
        self.shared.connections.fetch_add(1, Ordering::Relaxed);
        let place = Place { shared: Arc::clone(&self.shared), addresses: Arc::clone(addresses), address };
        let Ok(permit) = Arc::clone(handshakes).try_acquire_owned() else { return };
        let _ = socket.set_nodelay(true);
        let (shared, tracker) = (Arc::clone(&self.shared), self.tracker.clone());
        let accepted = shared.clock.now();
        match &self.security {
            Security::Plain => {
                drop(permit);
                tracker.spawn(Placed { connection: Connection::new(socket, accepted, shared), _place: place });
            }
            Security::Tls(config) => {
                let acceptor = TlsAcceptor::from(config.load_full());
                self.tracker.spawn(async move {
                    let limited =
                        |tls: &mut rustls::ServerConnection| tls.set_buffer_limit(Some(tls::BUFFER_BYTES_MAX));
                    let handshake = Box::pin(acceptor.accept_with(socket, limited));
                    if let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(TLS_MS), handshake).await {
                        // A task of its own, so that nothing of the handshake stays.
                        tracker.spawn(Placed { connection: Connection::new(stream, accepted, shared), _place: place });
                    }
                    drop(permit);
                });
            }
        }
    }
}
