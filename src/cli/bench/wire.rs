//! A connection at its cheapest: a socket, a session and two buffers, in whatever task drives it.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use longwire_client::{Address, ByteStream, Security, packet};
use longwire_protocol::frame::{FrameCodec, FrameError};
use longwire_protocol::limits;
use longwire_protocol::reason::Refusal;
use longwire_protocol::session::{ClientEvent, ClientSession, Millis};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_util::codec::Decoder as _;

use super::super::Fail;

/// Gathered before a write.
const OUT_BYTES: usize = 32 * 1024;

/// How connections are made.
#[derive(Clone)]
pub(super) struct Way {
    address: Address,
    tls: Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>,
}

impl Way {
    pub(super) fn new(address: &Address, trust: &longwire_client::Trust) -> Result<Self, Fail> {
        let tls = match address.security() {
            Security::Plain => None,
            Security::Tls => {
                let config = trust.tls_config().map_err(|error| Fail::usage(format!("{error} (--ca FILE)")))?;
                let name = ServerName::try_from(address.host().to_owned()).map_err(|e| Fail::usage(e.to_string()))?;
                Some((config, name))
            }
        };
        Ok(Self { address: address.clone(), tls })
    }

    /// Connects, from this address of the machine if one is given.
    async fn dial(&self, from: Option<IpAddr>) -> io::Result<Box<dyn ByteStream>> {
        let to = lookup_host((self.address.host(), self.address.port())).await?.next();
        let to = to.ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(from) = from {
            socket.bind((from, 0).into())?;
        }
        let tcp = socket.connect(to).await?;
        tcp.set_nodelay(true)?;
        Ok(match &self.tls {
            None => Box::new(tcp),
            Some((config, name)) => Box::new(TlsConnector::from(Arc::clone(config)).connect(name.clone(), tcp).await?),
        })
    }
}

/// Why a wire ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Refused(Refusal),
}

impl From<Refusal> for WireError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// A connection.
pub(super) struct Wire {
    stream: Box<dyn ByteStream>,
    codec: FrameCodec,
    input: BytesMut,
    out: BytesMut,
    pub(super) session: ClientSession,
    epoch: Instant,
}

impl Wire {
    /// Connects and waits until the broker has let this device in.
    pub(super) async fn connect(
        way: &Way,
        from: Option<IpAddr>,
        token: String,
        device: String,
    ) -> Result<Self, WireError> {
        let stream = way.dial(from).await?;
        let epoch = Instant::now();
        let mut connect = packet::Connect {
            version: limits::VERSION,
            token,
            device,
            agent: concat!("longwire-bench/", env!("CARGO_PKG_VERSION")).to_owned(),
            ..Default::default()
        };
        connect.set_start(packet::StartKind::Fresh);
        let heartbeat = Millis(fastrand::u64(0..u64::from(limits::HEARTBEAT_MS)));
        let session = ClientSession::new(Millis(0), connect).with_heartbeat_phase(heartbeat);
        let mut wire =
            Self { stream, codec: FrameCodec::default(), input: BytesMut::new(), out: BytesMut::new(), session, epoch };
        while !wire.session.is_open() {
            wire.step().await?;
            while wire.next_event()?.is_some() {}
        }
        Ok(wire)
    }

    pub(super) fn now(&self) -> Millis {
        Millis(u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// The next thing that the broker said. What it delivers is taken as stored.
    pub(super) fn next_event(&mut self) -> Result<Option<ClientEvent>, WireError> {
        let now = self.now();
        while let Some((frame, bytes)) = self.codec.decode(&mut self.input).map_err(FrameError::refusal)? {
            let event = self.session.handle_frame(now, frame, bytes)?;
            self.codec.set_frame_bytes_max(self.session.frame_bytes_max());
            match event {
                Some(ClientEvent::Closed(refusal)) => return Err(refusal.into()),
                Some(ClientEvent::Items { lane, first_n, items }) => {
                    self.session.stored(now, lane, first_n + items.len() as u64 - 1);
                }
                Some(ClientEvent::AckRequest { k }) => self.session.answer(k),
                Some(event) => return Ok(Some(event)),
                None => {}
            }
        }
        Ok(None)
    }

    /// Writes what there is.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        let now = self.now();
        while self.session.poll_transmit(now, &mut self.out, OUT_BYTES) {
            self.stream.write_all(&self.out).await?;
            self.out.clear();
        }
        self.stream.flush().await
    }

    /// Writes what there is, then reads or waits for the session's deadline.
    pub(super) async fn step(&mut self) -> Result<(), WireError> {
        self.step_until(None).await
    }

    /// The same, at the latest until `until`.
    pub(super) async fn step_until(&mut self, until: Option<Instant>) -> Result<(), WireError> {
        self.flush().await?;
        let deadline = self.session.poll_deadline().map(|at| self.epoch + Duration::from_millis(at.0));
        let wake = deadline.into_iter().chain(until).min();
        let reading = self.stream.read_buf(&mut self.input);
        let read = match wake {
            None => reading.await?,
            Some(wake) => match tokio::time::timeout_at(wake.into(), reading).await {
                Ok(read) => read?,
                Err(_) => {
                    let now = self.now();
                    self.session.handle_deadline(now)?;
                    return Ok(());
                }
            },
        };
        if read == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        if self.input.is_empty() {
            // At rest nothing is held.
            self.input = BytesMut::new();
        }
        Ok(())
    }

    /// Publishes and waits for the ack; nothing else is under way.
    pub(super) async fn publish_one(&mut self, publish: packet::Publish) -> Result<packet::PublishAck, WireError> {
        self.session.publish(publish);
        loop {
            self.step().await?;
            while let Some(event) = self.next_event()? {
                match event {
                    ClientEvent::PublishAck(ack) => return Ok(ack),
                    ClientEvent::Refused(refusal) => return Err(refusal.into()),
                    _ => {}
                }
            }
        }
    }

    /// Says goodbye.
    pub(super) async fn close(mut self) {
        self.session.goodbye();
        // A broker that is gone does not hear it.
        drop(self.flush().await);
        drop(self.stream.shutdown().await);
    }
}
