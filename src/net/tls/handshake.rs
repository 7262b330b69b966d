//! A handshake over a byte stream, with the library's connection that has no buffers of its own: only that one hands
//! itself over afterwards.

use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::TlsStream;
use super::records::Records;

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
    let (mut incoming, mut outgoing, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let UnbufferedStatus { discard, state } = tls.process_tls_records(&mut incoming);
        let next = match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => match encode(&mut data, &mut outgoing) {
                Ok(()) => Next::Go,
                Err(error) => return Err(invalid(error)),
            },
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Next::Write
            }
            Ok(ConnectionState::ReadTraffic(mut data)) => {
                // Sent together with the end of the handshake.
                while let Some(record) = data.next_record() {
                    plain.extend_from_slice(record.map_err(invalid)?.payload);
                }
                Next::Go
            }
            Ok(ConnectionState::BlockedHandshake) => Next::Read,
            Ok(ConnectionState::WriteTraffic(_)) => Next::Done,
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => Next::Fail(error),
        };
        drop(incoming.drain(..discard));
        match next {
            Next::Go => {}
            Next::Read => {
                if incoming.len() >= INCOMING_BYTES_MAX {
                    return Err(invalid("a flight that is too long"));
                }
                incoming.reserve(READ_BYTES);
                if io.read_buf(&mut incoming).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Next::Write => {
                io.write_all(&outgoing).await?;
                outgoing.clear();
            }
            Next::Done => break,
            Next::Fail(error) => {
                // An alert, most often. Asked for more than that, the library would look at the same bytes again.
                while tls.wants_write() {
                    let status = tls.process_tls_records(&mut incoming);
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
    TlsStream::new(io, Records::new(secrets, kernel).map_err(invalid)?, plain, &mut incoming)
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
