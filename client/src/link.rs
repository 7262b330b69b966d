//! One connection: a socket and the session that speaks on it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use longwire_protocol::frame::{FrameCodec, FrameError};
use longwire_protocol::reason::Refusal;
use longwire_protocol::session::{ClientEvent, ClientSession, Millis};
use tokio::io::{AsyncWrite as _, AsyncWriteExt as _};
use tokio_util::codec::Decoder as _;
use tokio_util::io::poll_read_buf;

use crate::dial::ByteStream;
use crate::error::Failure;

/// How much is gathered before a write.
const OUT_BYTES: usize = 64 * 1024;
/// How much is read at once.
const READ_BYTES: usize = 64 * 1024;

/// Why a connection ended.
#[derive(Debug)]
pub(crate) enum LinkError {
    Io(io::Error),
    Refused(Refusal),
    /// This client ends it, to begin another one; why.
    Again(&'static str),
    /// For good, and not by the broker's word.
    Failed(Failure),
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Refusal> for LinkError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// A socket, the session on it, and the bytes between them.
pub(crate) struct Link {
    stream: Box<dyn ByteStream>,
    codec: FrameCodec,
    input: BytesMut,
    out: BytesMut,
    unflushed: bool,
    pub(crate) session: ClientSession,
}

impl Link {
    pub(crate) fn new(stream: Box<dyn ByteStream>, session: ClientSession, codec: FrameCodec) -> Self {
        Self { stream, codec, input: BytesMut::new(), out: BytesMut::new(), unflushed: false, session }
    }

    /// Moves what the session has to say into the write buffer.
    pub(crate) fn fill(&mut self, now: Millis) {
        while self.out.len() < OUT_BYTES && self.session.poll_transmit(now, &mut self.out, OUT_BYTES) {}
    }

    /// The next thing that the broker said, out of what was read so far.
    pub(crate) fn next_event(&mut self, now: Millis) -> Result<Option<ClientEvent>, LinkError> {
        while let Some((frame, bytes)) = self.codec.decode(&mut self.input).map_err(FrameError::refusal)? {
            if let Some(event) = self.session.handle_frame(now, frame, bytes)? {
                if let ClientEvent::Connected(_) = &event {
                    self.codec.set_frame_bytes_max(self.session.frame_bytes_max());
                }
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Writes what there is and reads what comes; resolves when something was read (true), or when all was written and
    /// the session may have more (false). Cancel safe: all state is in `self`.
    pub(crate) async fn turn(&mut self) -> io::Result<bool> {
        poll_fn(|cx| self.poll_turn(cx)).await
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let had_output = !self.out.is_empty();
        if let Poll::Ready(written) = self.poll_write_out(cx) {
            written?;
        }
        self.input.reserve(READ_BYTES);
        match poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.input) {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            Poll::Ready(result) => Poll::Ready(result.map(|_| true)),
            Poll::Pending if had_output && self.out.is_empty() => Poll::Ready(Ok(false)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(written);
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes the rest and closes.
    pub(crate) async fn finish(mut self, now: Millis) -> io::Result<()> {
        loop {
            self.fill(now);
            if self.out.is_empty() {
                break;
            }
            poll_fn(|cx| self.poll_write_out(cx)).await?;
        }
        self.stream.shutdown().await
    }
}
