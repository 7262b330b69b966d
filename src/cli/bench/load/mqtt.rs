//! A connection to a broker of MQTT 3.1.1, at quality of service 1: the peer that a load is compared with.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use longwire_client::ByteStream;
use rmqtt_codec::types::{Publish as Publication, QoS};
use rmqtt_codec::v3::{Codec, Connect, Packet};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::codec::{Decoder as _, Encoder as _};

use super::super::super::Fail;
use super::party::{Heard, Place};
use super::sender::{Body, Publish};
use super::stamp::Stamp;
use super::way::Way;
use super::wire::WireError;

/// The largest packet that is taken.
const PACKET_BYTES_MAX: u32 = 256 * 1024;
/// The time between two pings, in seconds.
pub(in crate::cli::bench) const KEEP_ALIVE: u16 = 60;

/// A connection.
pub(in crate::cli::bench) struct Mqtt {
    stream: Box<dyn ByteStream>,
    codec: Codec,
    input: BytesMut,
    out: BytesMut,
    /// Which id each packet id under way stands for.
    under_way: HashMap<u16, u64>,
    wrote: Instant,
    ping_after: Duration,
}

impl Mqtt {
    /// Connects with a session that ends with the connection.
    pub(in crate::cli::bench) async fn connect(
        way: &Way,
        from: Option<IpAddr>,
        client: String,
        keep_alive: u16,
    ) -> Result<Self, WireError> {
        let stream = way.dial(from).await?;
        let mut mqtt = Self {
            stream,
            codec: Codec::new(PACKET_BYTES_MAX),
            input: BytesMut::new(),
            out: BytesMut::new(),
            under_way: HashMap::new(),
            wrote: Instant::now(),
            ping_after: Duration::from_secs(keep_alive.max(1).into()),
        };
        let connect = Connect {
            clean_session: true,
            keep_alive: keep_alive.saturating_mul(2),
            client_id: client.into(),
            ..Connect::default()
        };
        mqtt.put(Packet::Connect(Box::new(connect)))?;
        match mqtt.answer().await? {
            Packet::ConnectAck(ack) if ack.return_code == rmqtt_codec::v3::ConnectAckReason::ConnectionAccepted => {
                Ok(mqtt)
            }
            other => Err(WireError::Broken(format!("the peer does not let a client in: {other:?}"))),
        }
    }

    fn put(&mut self, packet: Packet) -> Result<(), WireError> {
        self.codec.encode(packet, &mut self.out).map_err(broken)
    }

    async fn answer(&mut self) -> Result<Packet, WireError> {
        self.flush().await?;
        loop {
            if let Some((packet, _)) = self.codec.decode(&mut self.input).map_err(broken)? {
                return Ok(packet);
            }
            self.fill(None).await?;
        }
    }

    /// Has a topic delivered from here on.
    pub(in crate::cli::bench) async fn subscribe(&mut self, topic: &str) -> Result<(), WireError> {
        let topic_filters = vec![(topic.into(), QoS::AtLeastOnce)];
        self.put(Packet::Subscribe { packet_id: NonZeroU16::MIN, topic_filters })?;
        match self.answer().await? {
            Packet::SubscribeAck { .. } => Ok(()),
            other => Err(WireError::Broken(format!("the peer answers a subscription with {other:?}"))),
        }
    }

    pub(in crate::cli::bench) async fn flush(&mut self) -> Result<(), WireError> {
        if !self.out.is_empty() {
            self.stream.write_all(&self.out).await?;
            self.out.clear();
            self.wrote = Instant::now();
        }
        Ok(self.stream.flush().await?)
    }

    pub(in crate::cli::bench) async fn fill(&mut self, until: Option<Instant>) -> Result<(), WireError> {
        let ping = self.wrote + self.ping_after;
        let wake = until.map_or(ping, |until| until.min(ping));
        match tokio::time::timeout_at(wake.into(), self.stream.read_buf(&mut self.input)).await {
            Ok(Ok(0)) => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(read) => Ok(read.map(drop)?),
            Err(_) if Instant::now() >= ping => self.put(Packet::PingRequest),
            Err(_) => Ok(()),
        }
    }

    pub(in crate::cli::bench) fn hear(
        &mut self,
        mut tell: impl FnMut(Heard) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        while let Some((packet, _)) = self.codec.decode(&mut self.input).map_err(broken)? {
            match packet {
                Packet::PublishAck { packet_id } => {
                    if let Some(id) = self.under_way.remove(&packet_id.get()) {
                        tell(Heard::Acked { id, seq: None })?;
                    }
                }
                Packet::Publish(publish) => {
                    let stamp = Stamp::read(&publish.payload);
                    let stamp = stamp.ok_or_else(|| WireError::Broken("a message that no load has sent".to_owned()))?;
                    if let Some(packet_id) = publish.packet_id {
                        self.put(Packet::PublishAck { packet_id })?;
                    }
                    tell(Heard::Received { stamp, conversation: 0 })?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(in crate::cli::bench) fn rest(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
    }

    pub(in crate::cli::bench) async fn close(mut self) {
        // A broker that is gone does not hear it.
        drop(self.put(Packet::Disconnect));
        drop(self.flush().await);
        drop(self.stream.shutdown().await);
    }
}

impl Publish for Mqtt {
    fn admits(&self, id: u64, first: u64, _bytes: usize) -> bool {
        id < first + u64::from(u16::MAX)
    }

    fn publish(&mut self, place: &Place, id: u64, body: Body, _first_unanswered: u64) {
        let (Place::Topic(topic), Body::Content(content)) = (place, body) else {
            unreachable!("a place belongs to the broker where it was opened, and MQTT has no marks")
        };
        // Never 0: as many ids as a window may hold lie between two that are the same.
        let packet_id = NonZeroU16::MIN.saturating_add(u16::try_from(id % u64::from(u16::MAX)).unwrap_or(0));
        self.under_way.insert(packet_id.get(), id);
        let publish = Publication {
            dup: false,
            retain: false,
            qos: QoS::AtLeastOnce,
            topic: topic.as_str().into(),
            packet_id: Some(packet_id),
            payload: content,
            properties: None,
        };
        let encoded = self.codec.encode(Packet::Publish(Box::new(publish)), &mut self.out);
        debug_assert!(encoded.is_ok(), "a small publish can be encoded");
    }
}

/// From mqtt://HOST:PORT or mqtts://HOST:PORT.
pub(in crate::cli::bench) fn way(url: &str) -> Result<Way, Fail> {
    let wrong = || Fail::usage(format!("--peer {url}: not mqtt://HOST:PORT, nor mqtts://HOST:PORT"));
    let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
    let (host, port) = rest.trim_end_matches('/').rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().map_err(|_| wrong())?;
    match scheme {
        "mqtt" => Way::over(host, port, None),
        "mqtts" => Way::over(host, port, Some(Arc::new(AnyCertificate::config()?))),
        _ => Err(wrong()),
    }
}

/// Takes whoever answers for the peer: it is measured, and told nothing that matters.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl AnyCertificate {
    fn config() -> Result<rustls::ClientConfig, Fail> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| Fail::failed(error.to_string()))?;
        Ok(config.dangerous().with_custom_certificate_verifier(Arc::new(Self(provider))).with_no_client_auth())
    }
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // As much work as a client has that knows whom it talks to.
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn broken(error: impl std::fmt::Debug) -> WireError {
    WireError::Broken(format!("the peer does not speak MQTT 3.1.1: {error:?}"))
}
