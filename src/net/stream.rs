//! What carries a connection's bytes.

use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream both ways, that can be told when nothing is under way.
pub trait ByteStream: AsyncRead + AsyncWrite + Unpin {
    /// Gives back what is only needed while bytes flow; they may flow again at any time.
    fn rest(&mut self) {}

    /// Overwrites what was read last wherever it passed through: it held a secret.
    fn forget(&mut self) {}
}

impl ByteStream for tokio::net::TcpStream {}
impl ByteStream for tokio::io::DuplexStream {}
