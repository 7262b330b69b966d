//! A connection at its cheapest: a socket, a session and two buffers, in whatever task drives it. Each seq that it is
//! told of is checked.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use longwire_client::{ByteStream, packet};
use longwire_protocol::frame::{FrameCodec, FrameError};
use longwire_protocol::limits;
use longwire_protocol::reason::Refusal;
use longwire_protocol::session::{ClientEvent, ClientSession, Millis};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::codec::Decoder as _;

use super::super::super::Fail;
use super::streams::Streams;
use super::way::Way;

/// Gathered before a write.
const OUT_BYTES: usize = 32 * 1024;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli::bench) enum WireError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Refused(Refusal),
    /// The broker broke a promise.
    #[error("{0}")]
    Broken(String),
}

impl From<Refusal> for WireError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<WireError> for Fail {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Refused(refusal) => Self::refused(&refusal),
            WireError::Io(error) => Self::unavailable(error.to_string()),
            WireError::Broken(what) => Self::failed(what),
        }
    }
}

/// A connection.
pub(in crate::cli::bench) struct Wire {
    stream: Box<dyn ByteStream>,
    codec: FrameCodec,
    input: BytesMut,
    out: BytesMut,
    pub(in crate::cli::bench) session: ClientSession,
    /// How far each conversation has come.
    pub(in crate::cli::bench) streams: Streams,
    /// The cursor that covers everything handed out, once one came.
    pub(in crate::cli::bench) cursor: Bytes,
    /// What the broker said when it let this device in.
    pub(in crate::cli::bench) connected: packet::Connected,
    /// Whether what is delivered is acked. Without it this is a reader that takes and never says so.
    pub(in crate::cli::bench) acks: bool,
    epoch: Instant,
}

/// The first packet of a device that starts at the tail.
pub(in crate::cli::bench) fn fresh(token: String, device: String) -> packet::Connect {
    let mut connect = packet::Connect {
        version: limits::VERSION,
        token,
        device,
        agent: concat!("longwire-bench/", env!("CARGO_PKG_VERSION")).to_owned(),
        ..Default::default()
    };
    connect.set_start(packet::StartKind::Fresh);
    connect
}

impl Wire {
    /// Connects and waits until the broker has let this device in.
    pub(in crate::cli::bench) async fn connect(
        way: &Way,
        from: Option<IpAddr>,
        connect: packet::Connect,
    ) -> Result<Self, WireError> {
        let stream = way.dial(from).await?;
        let heartbeat = Millis(fastrand::u64(0..u64::from(limits::HEARTBEAT_MS)));
        let session = ClientSession::new(Millis(0), connect).with_heartbeat_phase(heartbeat);
        let mut wire = Self {
            stream,
            codec: FrameCodec::default(),
            input: BytesMut::new(),
            out: BytesMut::new(),
            session,
            streams: Streams::default(),
            cursor: Bytes::new(),
            connected: packet::Connected::default(),
            acks: true,
            epoch: Instant::now(),
        };
        // What follows `Connected` is left for whoever asked for it.
        loop {
            wire.step().await?;
            if let Some(ClientEvent::Connected(connected)) = wire.next_event()? {
                wire.connected = *connected;
                return Ok(wire);
            }
        }
    }

    fn now(&self) -> Millis {
        Millis(u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// The next thing that the broker said. What it delivers has been checked, and is taken as stored.
    pub(in crate::cli::bench) fn next_event(&mut self) -> Result<Option<ClientEvent>, WireError> {
        let now = self.now();
        while let Some((frame, bytes)) = self.codec.decode(&mut self.input).map_err(FrameError::refusal)? {
            let event = self.session.handle_frame(now, frame, bytes)?;
            self.codec.set_frame_bytes_max(self.session.frame_bytes_max());
            match event {
                Some(ClientEvent::Closed(refusal)) => return Err(refusal.into()),
                Some(ClientEvent::Items { lane, first_n, items }) => {
                    for item in &items {
                        self.streams.take(item).map_err(WireError::Broken)?;
                    }
                    if self.acks {
                        self.session.stored(now, lane, first_n + items.len() as u64 - 1);
                    }
                    return Ok(Some(ClientEvent::Items { lane, first_n, items }));
                }
                Some(ClientEvent::AckRequest { k }) if self.acks => self.session.answer(k),
                Some(ClientEvent::Cursor(cursor)) => {
                    self.cursor = cursor.clone();
                    return Ok(Some(ClientEvent::Cursor(cursor)));
                }
                Some(event) => return Ok(Some(event)),
                None => {}
            }
        }
        Ok(None)
    }

    /// Writes what there is.
    pub(in crate::cli::bench) async fn flush(&mut self) -> io::Result<()> {
        let now = self.now();
        while self.session.poll_transmit(now, &mut self.out, OUT_BYTES) {
            self.stream.write_all(&self.out).await?;
            self.out.clear();
        }
        self.stream.flush().await
    }

    /// Writes what there is, then reads or waits for the session's deadline.
    pub(in crate::cli::bench) async fn step(&mut self) -> Result<(), WireError> {
        self.flush().await?;
        self.fill(None).await
    }

    /// Reads, or waits for the session's deadline, at the latest until `until`. Cancel safe.
    pub(in crate::cli::bench) async fn fill(&mut self, until: Option<Instant>) -> Result<(), WireError> {
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
        Ok(())
    }

    /// Gives back what a connection at rest does not need.
    pub(in crate::cli::bench) fn rest(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
    }

    /// Publishes and waits for the ack; nothing else is under way. Items that come meanwhile are checked and dropped.
    pub(in crate::cli::bench) async fn publish_one(
        &mut self,
        publish: packet::Publish,
    ) -> Result<packet::PublishAck, WireError> {
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

    /// Asks and waits for the answer; nothing else is under way.
    pub(in crate::cli::bench) async fn ask(
        &mut self,
        op: packet::request::Op,
    ) -> Result<packet::response::Result, WireError> {
        self.session.request(packet::Request { id: 1, op: Some(op) });
        loop {
            self.step().await?;
            while let Some(event) = self.next_event()? {
                match event {
                    ClientEvent::Response(packet::Response { result: Some(result), .. }) => return Ok(result),
                    ClientEvent::Refused(refusal) => return Err(refusal.into()),
                    _ => {}
                }
            }
        }
    }

    /// Says goodbye.
    pub(in crate::cli::bench) async fn close(mut self) {
        self.leave().await;
    }

    /// The same; nothing more is to be done with it.
    pub(in crate::cli::bench) async fn leave(&mut self) {
        self.session.flush_acks();
        self.session.goodbye();
        // A broker that is gone does not hear it.
        drop(self.flush().await);
        self.vanish().await;
    }

    /// Goes without a word, as whoever loses its network.
    pub(in crate::cli::bench) async fn vanish(&mut self) {
        drop(self.stream.shutdown().await);
    }
}
