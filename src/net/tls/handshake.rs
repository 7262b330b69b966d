//! A handshake over a byte stream, with the library's connection that has no buffers of its own: only that one hands
//! itself over afterwards.

use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use zeroize::Zeroize as _;

use super::TlsStream;
use super::records::{HEADER_BYTES, Records};

/// What a client may send before its handshake is done, at once: no flight of one is a quarter of it.
const INCOMING_BYTES_MAX: usize = 16 << 10;
/// What is read at once.
const READ_BYTES: usize = 4 << 10;

/// What the library wants next.
enum Next {
    /// The same again.
    Go,
    Write,
    Read,
    Done,
    Fail(rustls::Error),
}

/// Makes a handshake. `config` is one of [`super::server_config`]: it lets secrets be extracted.
///
/// # Errors
/// When the peer does not keep to TLS 1.3, or the stream fails. What the library has to say to the peer then, it has
/// said.
///
/// # Cancel safety
/// Not cancel safe: dropped half-way, the stream is of no use any more.
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ServerConfig>,
    mut io: S,
) -> io::Result<TlsStream<S>> {
    let mut tls = UnbufferedServerConnection::new(config).map_err(invalid)?;
    let (mut incoming, mut outgoing) = (Vec::new(), Vec::new());
    // The library is shown one record more each time that it wants more, so it never opens what comes behind the handshake:
    // it would keep a copy, and leave it in memory, of what may be a password. `whole` is where those records end that it was
    // shown whole; the beginning of one it sees at once, so as to refuse what is none.
    let (mut whole, mut shown): (usize, usize) = (0, 0);
    loop {
        let UnbufferedStatus { discard, state } = tls.process_tls_records(&mut incoming[..shown]);
        let next = match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => match encode(&mut data, &mut outgoing) {
                Ok(()) => Next::Go,
                Err(error) => return Err(invalid(error)),
            },
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Next::Write
            }
            Ok(ConnectionState::BlockedHandshake) => Next::Read,
            Ok(ConnectionState::WriteTraffic(_)) => Next::Done,
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => Next::Fail(error),
        };
        drop(incoming.drain(..discard));
        (whole, shown) = (whole.saturating_sub(discard), shown - discard);
        match next {
            Next::Go => {}
            Next::Read => {
                if record_bytes(&incoming[whole..]).is_none() {
                    if incoming.len() >= INCOMING_BYTES_MAX {
                        return Err(invalid("a flight that is too long"));
                    }
                    incoming.reserve(READ_BYTES);
                    if io.read_buf(&mut incoming).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                let next = record_bytes(&incoming[whole..]);
                whole += next.unwrap_or(0);
                shown = if next.is_some() { whole } else { incoming.len() };
            }
            Next::Write => {
                io.write_all(&outgoing).await?;
                outgoing.clear();
            }
            Next::Done => break,
            Next::Fail(error) => {
                // An alert, most often. Asked for more than that, the library would look at the same bytes again.
                while tls.wants_write() {
                    let status = tls.process_tls_records(&mut incoming[..shown]);
                    let Ok(ConnectionState::EncodeTlsData(mut data)) = status.state else { break };
                    encode(&mut data, &mut outgoing).map_err(invalid)?;
                }
                io.write_all(&outgoing).await?;
                io.flush().await?;
                return Err(invalid(error));
            }
        }
    }
    io.flush().await?;
    let (secrets, kernel) = tls.dangerous_into_kernel_connection().map_err(invalid)?;
    let stream = TlsStream::new(io, Records::new(secrets, kernel).map_err(invalid)?, &mut incoming);
    // What came behind the handshake was opened in there.
    incoming.zeroize();
    stream
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
