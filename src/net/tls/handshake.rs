//! A handshake over a byte stream, with the library's connection that has no buffers of its own: only that one hands
//! itself over afterwards.

use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::runtime::Handle;
use zeroize::Zeroize as _;

use super::TlsStream;
use super::records::{HEADER_BYTES, Records};

/// What a client may send before its handshake is done, at once: no flight of one is a quarter of it.
const INCOMING_BYTES_MAX: usize = 16 << 10;
/// Room for what answers a `ClientHello`, from the beginning.
const FLIGHT_BYTES: usize = 4 << 10;
/// What is read at once.
const READ_BYTES: usize = 4 << 10;

/// The type of a record with a handshake message that is not encrypted: of a client, a `ClientHello` and nothing else.
const PLAIN_HANDSHAKE: u8 = 22;

/// What a handshake needs next.
enum Next {
    /// Another record of the peer's.
    Read,
    Done,
    Fail(rustls::Error),
}

/// A handshake under way, without its stream.
struct Handshake {
    tls: UnbufferedServerConnection,
    incoming: Vec<u8>,
    /// What the peer is to be told, not written yet.
    outgoing: Vec<u8>,
    /// The library is shown one record more each time that it wants more, so it never opens what comes behind the handshake:
    /// it would keep a copy, and leave it in memory, of what may be a password. `whole` is where those records end that it was
    /// shown whole; the beginning of one it sees at once, so as to refuse what is none.
    whole: usize,
    shown: usize,
    /// What it is shown newly holds a `ClientHello`, whose answer is an exchange of keys and a signature: most of what a
    /// handshake costs.
    is_dear: bool,
}

impl Handshake {
    /// Has the library go on, as far as it gets with what it is shown.
    fn step(&mut self) -> io::Result<Next> {
        loop {
            let UnbufferedStatus { discard, state } = self.tls.process_tls_records(&mut self.incoming[..self.shown]);
            let next = match state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut data, &mut self.outgoing).map_err(invalid)?;
                    None
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    None
                }
                Ok(ConnectionState::BlockedHandshake) => Some(Next::Read),
                Ok(ConnectionState::WriteTraffic(_)) => Some(Next::Done),
                Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) => Some(Next::Fail(error)),
            };
            drop(self.incoming.drain(..discard));
            (self.whole, self.shown) = (self.whole.saturating_sub(discard), self.shown - discard);
            if let Some(next) = next {
                return Ok(next);
            }
        }
    }

    /// Shows the library one record more, or what there is of it.
    fn show_more(&mut self) {
        self.is_dear = self.incoming.get(self.whole) == Some(&PLAIN_HANDSHAKE);
        let next = record_bytes(&self.incoming[self.whole..]);
        self.whole += next.unwrap_or(0);
        self.shown = if next.is_some() { self.whole } else { self.incoming.len() };
    }

    /// What the library has to say to a peer whose handshake failed: an alert, most often.
    fn last_words(&mut self) -> Result<(), EncodeError> {
        // Asked for more than that, the library would look at the same bytes again.
        while self.tls.wants_write() {
            let status = self.tls.process_tls_records(&mut self.incoming[..self.shown]);
            let Ok(ConnectionState::EncodeTlsData(mut data)) = status.state else { break };
            encode(&mut data, &mut self.outgoing)?;
        }
        Ok(())
    }
}

/// Makes a handshake. `config` is one of [`super::server_config`]: it lets secrets be extracted. What is dear in it is worked
/// out by the threads of `elsewhere`, if they are named; the rest costs some 20 µs, and less for who goes no further.
///
/// The stream that comes of it holds back what ends the handshake, tickets, until it has something to say or is shut down.
///
/// # Errors
/// When the peer does not keep to TLS 1.3, the stream fails, or those threads have ended. What the library has to say to the
/// peer then, it has said.
///
/// # Cancel safety
/// Not cancel safe: dropped half-way, the stream is of no use any more.
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ServerConfig>,
    mut io: S,
    elsewhere: Option<Handle>,
) -> io::Result<TlsStream<S>> {
    let tls = UnbufferedServerConnection::new(config).map_err(invalid)?;
    let (incoming, outgoing) = (Vec::new(), Vec::with_capacity(FLIGHT_BYTES));
    let mut shake = Handshake { tls, incoming, outgoing, whole: 0, shown: 0, is_dear: false };
    loop {
        if !shake.outgoing.is_empty() {
            io.write_all(&shake.outgoing).await?;
            shake.outgoing.clear();
        }
        // What came behind the record before is looked at before more is waited for.
        if record_bytes(&shake.incoming[shake.whole..]).is_none() && shake.shown == shake.incoming.len() {
            if shake.incoming.len() >= INCOMING_BYTES_MAX {
                return Err(invalid("a flight that is too long"));
            }
            shake.incoming.reserve(READ_BYTES);
            if io.read_buf(&mut shake.incoming).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        shake.show_more();
        let next = match &elsewhere {
            Some(threads) if shake.is_dear => {
                let stepped = threads.spawn(async move {
                    let next = shake.step();
                    (shake, next)
                });
                let (stepped, next) = stepped.await.map_err(io::Error::other)?;
                shake = stepped;
                next?
            }
            _ => shake.step()?,
        };
        match next {
            Next::Read => {}
            Next::Done => break,
            Next::Fail(error) => {
                shake.last_words().map_err(invalid)?;
                io.write_all(&shake.outgoing).await?;
                io.flush().await?;
                return Err(invalid(error));
            }
        }
    }
    let Handshake { tls, mut incoming, outgoing, .. } = shake;
    let (secrets, kernel) = tls.dangerous_into_kernel_connection().map_err(invalid)?;
    let records = Records::new(secrets, kernel).map_err(invalid)?;
    let stream = TlsStream::new(io, records, &mut incoming, outgoing);
    // What came behind the handshake was opened in there.
    incoming.zeroize();
    Ok(stream)
}

/// How long the record is that these bytes begin with, if all of it is there.
fn record_bytes(bytes: &[u8]) -> Option<usize> {
    let length = bytes.get(3..HEADER_BYTES)?;
    let end = HEADER_BYTES + usize::from(u16::from_be_bytes([length[0], length[1]]));
    (end <= bytes.len()).then_some(end)
}

/// Appends what the library has to say.
fn encode<Data>(data: &mut EncodeTlsData<'_, Data>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let begin = out.len();
    let mut room = 1 << 10;
    loop {
        out.resize(begin + room, 0);
        match data.encode(&mut out[begin..]) {
            Ok(written) => {
                out.truncate(begin + written);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) if required_size > room => {
                room = required_size;
            }
            Err(error) => {
                out.truncate(begin);
                return Err(error);
            }
        }
    }
}

fn invalid(error: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}
