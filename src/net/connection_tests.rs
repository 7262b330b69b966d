//! Tests of connections against a peer by hand, and of what one takes at rest.

use std::sync::atomic::AtomicUsize;
use std::task::{Wake, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::*;
use crate::clock::Hands;
use crate::net::testing::{shared, shared_at};
use crate::net::tls::{REST_BYTES, TlsStream};
use crate::net::wheel::SLOT_MS;
use crate::store::MemoryLog;

/// A peer by hand.
#[derive(Default)]
struct Peer {
    /// What it says; then it is silent.
    says: &'static [u8],
    /// Whether it takes bytes.
    reads: bool,
    /// What happens while it is read.
    meanwhile: Option<Box<dyn FnMut() + Send>>,
    /// How often there was nothing under way.
    rested: usize,
}

impl AsyncRead for Peer {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if let Some(meanwhile) = &mut self.meanwhile {
            meanwhile();
        }
        if self.says.is_empty() {
            return Poll::Pending;
        }
        out.put_slice(std::mem::take(&mut self.says));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peer {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        if self.reads { Poll::Ready(Ok(bytes.len())) } else { Poll::Pending }
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    /// As with TLS, whose last words have to be taken, too.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Pending
    }
}

impl ByteStream for Peer {
    fn rest(&mut self) {
        self.rested += 1;
    }
}

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(AtomicUsize);
impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether the peer takes nothing of the refusal, or all of it but not the end of the connection.
#[tokio::test]
async fn a_peer_that_does_not_read_cannot_keep_a_connection_that_has_ended() {
    for reads in [false, true] {
        let hands = Arc::<Hands>::default();
        let shared = shared_at(&MemoryLog::new(0, usize::MAX), &hands);
        // A frame longer than any before `Connected`.
        let peer = Peer { says: b"\xff\xff\xff\x7f", reads, ..Peer::default() };
        let connection = Connection::new(peer, shared.clock.now(), Arc::clone(&shared));
        let outbox = Arc::downgrade(&connection.outbox);
        // A task of its own, which only the wheel wakes.
        let connection = tokio::spawn(connection);
        tokio::task::yield_now().await;
        while !connection.is_finished() {
            let now = shared.clock.now();
            assert!(now <= Millis(0).after(LINGER_MS + 2 * SLOT_MS), "it ends");
            shared.wheel.turn(now);
            tokio::task::yield_now().await;
            hands.monotonic_ms.fetch_add(SLOT_MS, Ordering::Relaxed);
        }
        assert!(shared.clock.now() >= Millis(0).after(LINGER_MS), "its last words had their time");
        connection.await.expect("without a panic");
        assert_eq!((outbox.strong_count(), Arc::strong_count(&shared)), (0, 1), "and nothing of it stays");
    }
}

/// The broker drains while what a session starts from is being loaded: it hears of that behind its `Connected`.
#[test]
fn who_is_not_let_in_yet_is_not_asked_to_go() {
    let shared = shared(&MemoryLog::new(0, usize::MAX));
    let mut connection = Connection::new(Peer::default(), shared.clock.now(), Arc::clone(&shared));
    connection.outbox.lock().goaway = Some(5);
    let mut context = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut connection).poll(&mut context).is_pending());
    assert!(connection.unsent.is_none(), "nothing is said");
    assert_eq!(connection.outbox.lock().goaway, Some(5), "and it is not forgotten");
}

/// What the TLS handshake took is part of the time that there is until `Connected`.
#[test]
fn the_time_to_connect_counts_from_accept() {
    let shared = shared(&MemoryLog::new(0, usize::MAX));
    let accepted = shared.clock.now();
    let late = Connection::new(Peer::default(), accepted, Arc::clone(&shared));
    assert_eq!(late.session.poll_deadline(), Some(accepted.after(longwire_protocol::limits::AUTH_MS)));
}

/// A turn takes the time, and then the wheel visits, beyond that time: the visit wakes, since `arm` would take it
/// for one that is still to come.
#[test]
fn a_visit_of_the_wheel_during_a_turn_is_not_lost() {
    let shared = shared(&MemoryLog::new(0, usize::MAX));
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    let mut connection = Connection::new(Peer::default(), shared.clock.now(), Arc::clone(&shared));
    assert!(Pin::new(&mut connection).poll(&mut context).is_pending());
    let armed = connection.armed;
    assert_ne!(armed, NEVER, "it has to connect in time");
    // Something came for it: the turn that follows is that wake-up's.
    connection.outbox.wake();
    assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    connection.io.meanwhile = Some(Box::new(move || shared.wheel.turn(armed)));
    assert!(Pin::new(&mut connection).poll(&mut context).is_pending());
    assert_eq!(woken.0.load(Ordering::Relaxed), 2, "the visit of {armed:?} woke nobody");
}

/// Something was said, and then nothing for a while: what only serves talking is given back, without a heartbeat.
#[test]
fn whoever_said_nothing_for_a_while_is_at_rest() {
    let hands = Arc::<Hands>::default();
    let shared = shared_at(&MemoryLog::new(0, usize::MAX), &hands);
    let mut connection = Connection::new(Peer::default(), shared.clock.now(), Arc::clone(&shared));
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    let mut poll_at = |connection: &mut Connection<Peer>, now: u64| {
        hands.monotonic_ms.store(now, Ordering::Relaxed);
        shared.wheel.turn(shared.clock.now());
        assert!(Pin::new(&mut *connection).poll(&mut context).is_pending());
        (connection.io.rested, woken.0.load(Ordering::Relaxed))
    };
    // As any packet does that it hears or says.
    connection.rest_at = Millis(QUIET_MS);
    assert_eq!(poll_at(&mut connection, 0), (0, 0));
    assert_eq!(poll_at(&mut connection, QUIET_MS - 1), (0, 0), "it may go on");
    assert_eq!(poll_at(&mut connection, QUIET_MS), (1, 1), "the wheel woke it, and it is at rest");
    assert_eq!(poll_at(&mut connection, 2 * QUIET_MS), (1, 1), "once");
}

/// What a connection at rest consists of, besides names and its socket. The task is in the allocator's class of 640
/// bytes at most (tokio adds 96, its place 48), `Live` in that of 256 or 320, the outbox in that of 384, the keys of a
/// TLS connection in that of 768: whoever makes one of them larger looks at what it costs a million of them.
#[test]
fn a_connection_at_rest_is_small() {
    use std::mem::size_of;
    let connections = [size_of::<Connection<TcpStream>>(), size_of::<Connection<TlsStream<TcpStream>>>()];
    let rest = [size_of::<Live>(), size_of::<Outbox>() + 16, REST_BYTES];
    assert!(connections <= [408, 416] && rest <= [320, 384, 768], "{connections:?} {rest:?}");
}
