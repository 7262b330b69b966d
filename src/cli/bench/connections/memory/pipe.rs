//! A byte stream in memory, for one connection: what the client says, what the broker says, and whom to wake.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::stream::ByteStream;

/// See the module. At rest it owns nothing beside itself.
pub(super) struct Pipe {
    inner: Mutex<Inner>,
    number: usize,
    said: Arc<Said>,
}

/// The numbers of the pipes in which the broker said something since somebody looked.
#[derive(Default)]
pub(super) struct Said(Mutex<Vec<usize>>);

impl Said {
    pub(super) fn take(&self) -> Vec<usize> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Default)]
struct Inner {
    up: Way,
    down: Way,
    /// The broker has let go of its end.
    is_shut: bool,
}

/// One way of it.
#[derive(Default)]
struct Way {
    bytes: Vec<u8>,
    reader: Option<Waker>,
}

impl Way {
    fn push(&mut self, bytes: &[u8]) -> Option<Waker> {
        self.bytes.extend_from_slice(bytes);
        self.reader.take()
    }

    fn poll_read(&mut self, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.bytes.is_empty() {
            match &self.reader {
                Some(reader) if reader.will_wake(context.waker()) => {}
                _ => self.reader = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        let n = self.bytes.len().min(out.remaining());
        out.put_slice(&self.bytes[..n]);
        if n == self.bytes.len() {
            self.bytes = Vec::new();
        } else {
            self.bytes.drain(..n);
        }
        Poll::Ready(Ok(()))
    }
}

impl Pipe {
    pub(super) fn new(number: usize, said: Arc<Said>) -> Self {
        Self { inner: Mutex::default(), number, said }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client says this.
    pub(super) fn say(&self, bytes: &[u8]) {
        let reader = self.lock().up.push(bytes);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// What the broker said since; `None` once it has let go.
    pub(super) fn hear(&self) -> Option<Vec<u8>> {
        let mut inner = self.lock();
        (!inner.is_shut).then(|| std::mem::take(&mut inner.down.bytes))
    }
}

/// The broker's end.
pub(super) struct BrokerEnd(pub(super) Arc<Pipe>);

/// The client's end, while it connects.
pub(super) struct ClientEnd(pub(super) Arc<Pipe>);

impl AsyncRead for BrokerEnd {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.lock().up.poll_read(context, out)
    }
}

impl AsyncWrite for BrokerEnd {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let reader = self.0.lock().down.push(bytes);
        match reader {
            Some(reader) => reader.wake(),
            None => self.0.said.0.lock().unwrap_or_else(PoisonError::into_inner).push(self.0.number),
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl ByteStream for BrokerEnd {}

impl Drop for BrokerEnd {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.is_shut = true;
        let reader = inner.down.reader.take();
        drop(inner);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl Drop for ClientEnd {
    fn drop(&mut self) {
        // A stream that has read all there was has left a waker: from here on the numbers say who is to be heard.
        self.0.lock().down.reader = None;
    }
}

impl AsyncRead for ClientEnd {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.lock();
        if inner.is_shut && inner.down.bytes.is_empty() {
            return Poll::Ready(Ok(()));
        }
        inner.down.poll_read(context, out)
    }
}

impl AsyncWrite for ClientEnd {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.say(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
