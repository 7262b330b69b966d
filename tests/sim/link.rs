//! A connection in memory: what one end writes is under way until the world carries it, as few bytes at a time as it
//! likes. It can be cut at any byte, or freeze, so that neither end hears of the other any more.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One of the two directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the client to the broker.
    Up,
    /// From the broker to the client.
    Down,
}

#[derive(Debug, Default)]
struct Flow {
    under_way: VecDeque<u8>,
    arrived: VecDeque<u8>,
    /// The writer has closed, behind what is under way.
    is_shut: bool,
    /// The reader knows.
    is_at_end: bool,
}

#[derive(Debug)]
struct Inner {
    up: Flow,
    down: Flow,
    /// Bytes that a direction holds before its writer has to wait.
    capacity: usize,
    is_cut: bool,
    is_frozen: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// A link; clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Link(Arc<Mutex<Inner>>);

impl Link {
    pub(crate) fn new(capacity: usize) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            up: Flow::default(),
            down: Flow::default(),
            capacity,
            is_cut: false,
            is_frozen: false,
            reader: None,
            writer: None,
        })))
    }

    /// The broker's end.
    pub(crate) fn pipe(&self) -> Pipe {
        Pipe(self.clone())
    }

    /// Bytes under way, the end of a direction counted as one.
    pub(crate) fn under_way(&self, way: Way) -> usize {
        let mut inner = self.lock();
        if inner.is_frozen || inner.is_cut {
            return 0;
        }
        let flow = inner.flow(way);
        flow.under_way.len() + usize::from(flow.is_shut && !flow.is_at_end)
    }

    /// Carries up to `bytes` to the reader.
    pub(crate) fn carry(&self, way: Way, bytes: usize) {
        let mut inner = self.lock();
        if inner.is_frozen || inner.is_cut {
            return;
        }
        let flow = inner.flow(way);
        let n = bytes.min(flow.under_way.len());
        let carried: Vec<u8> = flow.under_way.drain(..n).collect();
        flow.arrived.extend(carried);
        if flow.under_way.is_empty() && flow.is_shut {
            flow.is_at_end = true;
        }
        let waker = if way == Way::Up { inner.reader.take() } else { None };
        drop(inner);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Cuts it: what is under way is lost, and writing fails.
    pub(crate) fn cut(&self) {
        let mut inner = self.lock();
        inner.is_cut = true;
        inner.up.under_way.clear();
        inner.down.under_way.clear();
        let wakers = [inner.reader.take(), inner.writer.take()];
        drop(inner);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Nothing is carried any more, and nobody is told.
    pub(crate) fn freeze(&self) {
        self.lock().is_frozen = true;
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.lock().is_frozen
    }

    /// The client takes what has arrived; `None` at the end.
    pub(crate) fn take(&self, out: &mut impl Extend<u8>) -> bool {
        let mut inner = self.lock();
        let (is_cut, down) = (inner.is_cut, &mut inner.down);
        let is_over = is_cut || down.is_at_end;
        out.extend(down.arrived.drain(..));
        let waker = inner.writer.take();
        drop(inner);
        waker.into_iter().for_each(Waker::wake);
        !is_over
    }

    /// Bytes that have arrived at the client; the end counts.
    pub(crate) fn has_arrived(&self) -> bool {
        let inner = self.lock();
        !inner.down.arrived.is_empty() || inner.down.is_at_end || inner.is_cut
    }

    /// The client writes as much as fits.
    pub(crate) fn write(&self, bytes: &[u8]) -> usize {
        let mut inner = self.lock();
        let room = inner.capacity.saturating_sub(inner.up.under_way.len() + inner.up.arrived.len());
        let n = room.min(bytes.len());
        if !inner.is_cut && !inner.up.is_shut {
            inner.up.under_way.extend(&bytes[..n]);
        }
        n
    }

    /// The client closes its end.
    pub(crate) fn shut_up(&self) {
        self.lock().up.is_shut = true;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn flow(&mut self, way: Way) -> &mut Flow {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }
}

/// The broker's end of a link.
#[derive(Debug)]
pub(crate) struct Pipe(Link);

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.lock();
        if inner.up.arrived.is_empty() {
            if inner.is_cut {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if inner.up.is_at_end {
                return Poll::Ready(Ok(()));
            }
            inner.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        let n = inner.up.arrived.len().min(out.remaining());
        let (front, _) = inner.up.arrived.as_slices();
        let n = n.min(front.len());
        out.put_slice(&front[..n]);
        inner.up.arrived.drain(..n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.0.lock();
        if inner.is_cut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = inner.capacity.saturating_sub(inner.down.under_way.len() + inner.down.arrived.len());
        if room == 0 {
            inner.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let n = room.min(bytes.len());
        inner.down.under_way.extend(&bytes[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().down.is_shut = true;
        Poll::Ready(Ok(()))
    }
}

impl longwire::net::stream::ByteStream for Pipe {}

impl Drop for Pipe {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.down.is_shut = true;
        inner.up.under_way.clear();
    }
}
