//! How attackers reach the broker, and connections that say whatever they like.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::BytesMut;
use longwire_client::{Address, ByteStream, Security, packet};
use longwire_protocol::packet::packet::Kind;
use longwire_protocol::reason::Reason;
use longwire_protocol::{Frame, FrameCodec, frame, limits};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio_util::codec::Decoder as _;

use super::super::super::Fail;
use super::super::load::way::Way;

/// Where the broker is.
#[derive(Clone)]
pub(super) struct Door {
    to: SocketAddr,
    /// Each handshake is a whole one: that is the dear kind.
    way: Way,
    pub(super) has_tls: bool,
}

impl Door {
    pub(super) async fn new(address: &Address, way: Way) -> Result<Self, Fail> {
        let found = lookup_host((address.host(), address.port())).await;
        let to = found.ok().and_then(|mut all| all.next());
        let to = to.ok_or_else(|| Fail::unavailable(format!("{} is not found", address.host())))?;
        Ok(Self { to, way: way.with_tickets(false), has_tls: address.security() == Security::Tls })
    }

    /// How who behaves comes in: from an address that no attacker has.
    pub(super) const fn way(&self) -> &Way {
        &self.way
    }

    /// On loopback the `n`th address of an attacker's own, so that honest clients share none of them.
    fn source(&self, n: u64) -> Option<IpAddr> {
        let last = u8::try_from(n % 250).unwrap_or(0) + 1;
        (self.to.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST)).then(|| Ipv4Addr::new(127, 0, 66, last).into())
    }

    /// A bare socket from the `n`th address.
    pub(super) async fn socket(&self, n: u64) -> io::Result<TcpStream> {
        let socket = if self.to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(source) = self.source(n) {
            socket.bind((source, 0).into())?;
        }
        socket.connect(self.to).await
    }

    /// A stream from the `n`th address, with TLS where the broker has it.
    pub(super) async fn stream(&self, n: u64) -> io::Result<Box<dyn ByteStream>> {
        self.way.dial(self.source(n)).await
    }
}

/// A connection that says whatever it likes.
pub(super) struct Peer {
    pub(super) stream: Box<dyn ByteStream>,
    reader: Frames,
}

impl Peer {
    pub(super) fn over(stream: Box<dyn ByteStream>) -> Self {
        Self { stream, reader: Frames::default() }
    }

    pub(super) async fn say(&mut self, kind: &Kind) -> io::Result<()> {
        self.stream.write_all(&framed(kind)).await?;
        self.stream.flush().await
    }

    /// The next packet, `None` once the broker has closed. Heartbeats are passed over.
    pub(super) async fn next(&mut self) -> Option<Kind> {
        self.reader.next(&mut self.stream).await
    }

    /// Connects; what ended it where it is not let in.
    pub(super) async fn connect(&mut self, connect: packet::Connect) -> Result<packet::Connected, &'static str> {
        if self.say(&Kind::Connect(connect)).await.is_err() {
            return Err(self.end().await);
        }
        match self.next().await {
            Some(Kind::Connected(connected)) => Ok(connected),
            Some(Kind::Refused(refused)) => Err(named(&refused)),
            _ => Err(CLOSED),
        }
    }

    /// Reads to the end; says why the broker ended it.
    pub(super) async fn end(&mut self) -> &'static str {
        self.reader.end(&mut self.stream, |_| {}).await
    }

    /// Writes what `more` gives, and reads meanwhile, until the broker ends it; says why. What it says is handed to
    /// `heard`.
    pub(super) async fn flood<F: Future<Output = Option<Vec<u8>>>>(
        self,
        mut more: impl FnMut() -> F,
        mut heard: impl FnMut(&Kind),
    ) -> &'static str {
        let Self { stream, mut reader } = self;
        let (mut from, mut to) = tokio::io::split(stream);
        let write = async {
            while let Some(bytes) = more().await {
                if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
                    break;
                }
            }
            // The last word is the broker's.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            end = reader.end(&mut from, &mut heard) => end,
            () = write => CLOSED,
        }
    }
}

/// How a connection ended of which the broker said nothing.
pub(super) const CLOSED: &str = "closed without a word";

/// Frames out of a stream.
struct Frames {
    codec: FrameCodec,
    input: BytesMut,
}

impl Default for Frames {
    fn default() -> Self {
        Self { codec: FrameCodec::new(limits::FRAME_BYTES_CEILING), input: BytesMut::new() }
    }
}

impl Frames {
    async fn next(&mut self, stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<Kind> {
        loop {
            match self.codec.decode(&mut self.input).ok()? {
                Some((Frame::Packet(kind), _)) => return Some(kind),
                Some(_) => {}
                None => {
                    if stream.read_buf(&mut self.input).await.unwrap_or(0) == 0 {
                        return None;
                    }
                }
            }
        }
    }

    async fn end(
        &mut self,
        stream: &mut (impl tokio::io::AsyncRead + Unpin),
        mut heard: impl FnMut(&Kind),
    ) -> &'static str {
        let mut why = CLOSED;
        while let Some(kind) = self.next(stream).await {
            heard(&kind);
            if let Kind::Refused(refused) = kind
                && refused.message_id == 0
                && refused.request == 0
            {
                why = named(&refused);
            }
        }
        why
    }
}

/// The name of a refusal's reason.
pub(super) fn named(refused: &packet::Refused) -> &'static str {
    Reason::from_number(refused.code).map_or("a reason of a later version", Reason::name)
}

/// A packet as it stands on the wire.
pub(super) fn framed(kind: &Kind) -> BytesMut {
    let mut out = BytesMut::new();
    frame::encode(kind, &mut out);
    out
}
