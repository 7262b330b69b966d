//! A connection as a byte stream. At rest it has no buffers: what is read goes through one of the thread, and
//! only a record that has not arrived as a whole, data that nobody took yet, or what the socket does not take own memory.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use zeroize::Zeroize as _;

use super::records::{Broken, Opened, PLAIN_BYTES_MAX, Records};
use crate::net::stream::ByteStream;

/// How much of the first data is overwritten once it was handed on: a password is in the first frame, of 4 KiB at most.
const FIRST_BYTES: u16 = 8 << 10;

/// The thread's buffer for what is read.
const READ_BYTES: usize = 64 << 10;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// How much of it was filled since it was last overwritten.
    static FILLED: Cell<usize> = const { Cell::new(0) };
}

/// See the module.
pub struct TlsStream<S> {
    io: S,
    /// Apart, so that the task that holds it stays in its class of the allocator.
    rest: Box<Rest>,
}

struct Rest {
    records: Records,
    under_way: Option<Box<UnderWay>>,
    ended: Option<Ended>,
    /// The peer was told that nothing follows, or why.
    is_shut: bool,
    /// What is sealed waits for data to leave with.
    holds: bool,
    /// What is left of [`FIRST_BYTES`].
    first: u16,
}

/// What a connection takes beside its socket.
pub const REST_BYTES: usize = size_of::<Rest>();

/// What is there between two records only.
#[derive(Default)]
struct UnderWay {
    /// The beginning of a record.
    partial: Vec<u8>,
    /// Data that nobody took yet, and how much of it was taken.
    plain: Vec<u8>,
    taken: usize,
    /// Sealed records that the socket did not take yet, and how much of them it took.
    sealed: Vec<u8>,
    sent: usize,
}

impl UnderWay {
    fn is_empty(&self) -> bool {
        self.partial.is_empty() && self.plain.is_empty() && self.sealed.is_empty()
    }
}

/// Nothing is read any more.
#[derive(Clone, Copy)]
enum Ended {
    /// The peer said so.
    Closed,
    /// The stream ended without it.
    Cut,
    /// A rule was broken.
    Broken,
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// Over a stream whose handshake is done, with the records that came with it. `held` are records that leave with the first
    /// data that is written, or when the stream is shut down.
    pub(super) fn new(io: S, records: Records, sealed: &mut [u8], held: Vec<u8>) -> Self {
        let holds = !held.is_empty();
        let rest = Rest { records, under_way: None, ended: None, is_shut: false, holds, first: FIRST_BYTES };
        let mut stream = Self { io, rest: Box::new(rest) };
        if holds {
            stream.rest.under_way().sealed = held;
        }
        stream.rest.take(sealed, &mut To::Kept);
        stream
    }
}

/// Where data goes.
enum To<'a, 'b> {
    /// The reader's buffer, as far as it has room.
    Reader(&'a mut ReadBuf<'b>),
    Kept,
}

impl Rest {
    fn under_way(&mut self) -> &mut UnderWay {
        self.under_way.get_or_insert_default()
    }

    /// Takes bytes that arrived.
    fn take(&mut self, mut bytes: &mut [u8], to: &mut To<'_, '_>) {
        let taken = self.complete(&mut bytes, to).and_then(|()| {
            while self.ended.is_none() {
                match Records::record_bytes(bytes)? {
                    Some(length) if length <= bytes.len() => {
                        let (record, behind) = std::mem::take(&mut bytes).split_at_mut(length);
                        bytes = behind;
                        self.open(record, to)?;
                    }
                    _ => {
                        if !bytes.is_empty() {
                            self.under_way().partial.extend_from_slice(bytes);
                        }
                        break;
                    }
                }
            }
            Ok(())
        });
        if let Err(broken) = taken {
            self.break_off(broken);
        }
    }

    /// Completes the record whose beginning is kept, and takes from `bytes` what belongs to it.
    fn complete(&mut self, bytes: &mut &mut [u8], to: &mut To<'_, '_>) -> Result<(), Broken> {
        let Some(mut partial) = self.under_way.as_mut().map(|under_way| std::mem::take(&mut under_way.partial)) else {
            return Ok(());
        };
        // First the header, then what that says.
        while !partial.is_empty() && !bytes.is_empty() {
            let length = Records::record_bytes(&partial)?.unwrap_or(super::records::HEADER_BYTES);
            let more = (length - partial.len()).min(bytes.len());
            let (head, behind) = std::mem::take(bytes).split_at_mut(more);
            partial.extend_from_slice(head);
            *bytes = behind;
            if Records::record_bytes(&partial)? == Some(partial.len()) {
                self.open(&mut partial, to)?;
                // One that may hold a token: a larger one is of messages.
                if partial.len() <= usize::from(FIRST_BYTES) {
                    partial.zeroize();
                }
                partial.clear();
            }
        }
        if !partial.is_empty() {
            self.under_way().partial = partial;
        }
        Ok(())
    }

    fn open(&mut self, record: &mut [u8], to: &mut To<'_, '_>) -> Result<(), Broken> {
        match self.records.open(record)? {
            Opened::Nothing => {}
            Opened::Closed => self.ended = Some(Ended::Closed),
            Opened::Data(mut data) => {
                let is_behind = self.under_way.as_ref().is_some_and(|under_way| !under_way.plain.is_empty());
                if let (To::Reader(reader), false) = (to, is_behind) {
                    let room = reader.remaining().min(data.len());
                    reader.put_slice(&data[..room]);
                    data = &data[room..];
                }
                if !data.is_empty() {
                    self.under_way().plain.extend_from_slice(data);
                }
                if self.first > 0 {
                    self.first = self.first.saturating_sub(record.len() as u16);
                    record.zeroize();
                }
            }
        }
        Ok(())
    }

    /// Nothing is taken from the peer any more; it is told why, if there is something to tell.
    fn break_off(&mut self, broken: Broken) {
        self.ended = Some(Ended::Broken);
        if let (Some(why), false) = (broken.tell, std::mem::replace(&mut self.is_shut, true)) {
            let mut sealed = std::mem::take(&mut self.under_way().sealed);
            // Without a number left it is not told.
            let _ = self.records.fail(why, &mut sealed);
            self.under_way().sealed = sealed;
        }
    }

    /// Hands out data that was kept. Returns whether there was any.
    fn hand_out(&mut self, reader: &mut ReadBuf<'_>) -> bool {
        let Some(under_way) = self.under_way.as_mut().filter(|under_way| !under_way.plain.is_empty()) else {
            return false;
        };
        let data = &under_way.plain[under_way.taken..];
        let room = reader.remaining().min(data.len());
        reader.put_slice(&data[..room]);
        under_way.taken += room;
        if under_way.taken == under_way.plain.len() {
            under_way.plain.zeroize();
            (under_way.plain, under_way.taken) = (Vec::new(), 0);
        }
        true
    }

    /// Gives the buffers back if nothing is in them.
    fn settle(&mut self) {
        if self.under_way.as_ref().is_some_and(|under_way| under_way.is_empty()) {
            self.under_way = None;
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// Writes what is sealed.
    fn poll_sealed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.rest.holds = false;
        while let Some(under_way) = self.rest.under_way.as_mut().filter(|under_way| !under_way.sealed.is_empty()) {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &under_way.sealed[under_way.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => under_way.sent += n,
            }
            if under_way.sent == under_way.sealed.len() {
                (under_way.sealed, under_way.sent) = (Vec::new(), 0);
            }
        }
        self.rest.settle();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = out.filled().len();
        while !this.rest.hand_out(out) && out.filled().len() == before {
            match this.rest.ended {
                None => {}
                Some(Ended::Closed) => return Poll::Ready(Ok(())),
                Some(Ended::Cut) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Some(Ended::Broken) => {
                    // What it is told leaves if the socket takes it at once.
                    drop(this.poll_sealed(cx));
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
            }
            let read = SCRATCH.with_borrow_mut(|scratch| {
                scratch.resize(READ_BYTES, 0);
                let mut read = ReadBuf::new(scratch);
                ready!(Pin::new(&mut this.io).poll_read(cx, &mut read))?;
                FILLED.set(FILLED.get().max(read.filled().len()));
                match read.filled_mut() {
                    [] => this.rest.ended = Some(Ended::Cut),
                    sealed => this.rest.take(sealed, &mut To::Reader(out)),
                }
                Poll::Ready(io::Result::Ok(()))
            });
            this.rest.settle();
            ready!(read)?;
        }
        this.rest.settle();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, plain: &[u8]) -> Poll<io::Result<usize>> {
        if self.rest.is_shut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let mut sealed = Vec::new();
        if std::mem::take(&mut self.rest.holds) {
            sealed = std::mem::take(&mut self.rest.under_way().sealed);
        } else {
            ready!(self.poll_sealed(cx))?;
        }
        let n = plain.len().min(PLAIN_BYTES_MAX);
        if self.rest.records.seal(&plain[..n], &mut sealed).is_err() {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let sent = match Pin::new(&mut self.io).poll_write(cx, &sealed) {
            Poll::Ready(sent) => sent?,
            Poll::Pending => 0,
        };
        if sent < sealed.len() {
            let under_way = self.rest.under_way();
            (under_way.sealed, under_way.sent) = (sealed, sent);
        } else {
            self.rest.settle();
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.rest.holds {
            ready!(self.poll_sealed(cx))?;
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.rest.is_shut, true) {
            let mut sealed = std::mem::take(&mut self.rest.under_way().sealed);
            // Without a number left it is not told.
            let _ = self.rest.records.close(&mut sealed);
            self.rest.under_way().sealed = sealed;
        }
        ready!(self.poll_sealed(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
impl<S> TlsStream<S> {
    pub(super) fn records(&mut self) -> &mut Records {
        &mut self.rest.records
    }

    /// Whether there is no buffer.
    pub(super) fn is_at_rest(&self) -> bool {
        self.rest.under_way.is_none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> ByteStream for TlsStream<S> {
    fn rest(&mut self) {
        self.rest.records.rest();
    }

    fn forget(&mut self) {
        SCRATCH.with_borrow_mut(|scratch| scratch[..FILLED.take()].zeroize());
    }
}
