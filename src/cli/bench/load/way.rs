//! How connections to a broker are made, and what goes over them.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use longwire_client::{Address, ByteStream, Security, Trust};
use rustls::HandshakeKind;
use rustls::client::Resumption;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio_rustls::TlsConnector;

use super::super::super::Fail;

/// How connections are made.
#[derive(Clone)]
pub(in crate::cli::bench) struct Way {
    host: String,
    port: u16,
    tls: Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>,
    traffic: Arc<Traffic>,
}

/// What went over all connections of a way: bytes that TCP carried, TLS included.
#[derive(Debug, Default)]
pub(in crate::cli::bench) struct Traffic {
    sent: AtomicU64,
    received: AtomicU64,
    resumed: AtomicU64,
}

/// The address to make the `number`th connection from, of so many on loopback; with one, it is the system's choice.
pub(in crate::cli::bench) fn source(sources: u8, number: u64) -> Option<IpAddr> {
    (sources > 1).then(|| {
        let last = 1 + u8::try_from(number % u64::from(sources)).unwrap_or(0);
        IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))
    })
}

impl Traffic {
    /// Sent and received so far, in bytes.
    pub(in crate::cli::bench) fn bytes(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed))
    }

    /// Handshakes so far that a ticket made shorter.
    pub(in crate::cli::bench) fn resumed(&self) -> u64 {
        self.resumed.load(Ordering::Relaxed)
    }
}

impl Way {
    pub(in crate::cli::bench) fn new(address: &Address, trust: &Trust) -> Result<Self, Fail> {
        let tls = address.security() == Security::Tls;
        let config =
            tls.then(|| trust.tls_config().map_err(|error| Fail::usage(format!("{error} (--ca FILE)")))).transpose()?;
        Self::over(address.host(), address.port(), config)
    }

    /// With this configuration of TLS, or plain.
    pub(in crate::cli::bench) fn over(
        host: &str,
        port: u16,
        tls: Option<Arc<rustls::ClientConfig>>,
    ) -> Result<Self, Fail> {
        let name = |config| {
            ServerName::try_from(host.to_owned())
                .map(|name| (config, name))
                .map_err(|error| Fail::usage(format!("{host}: {error}")))
        };
        let tls = tls.map(name).transpose()?;
        Ok(Self { host: host.to_owned(), port, tls, traffic: Arc::default() })
    }

    /// With tickets of sessions before, or with full handshakes only.
    pub(in crate::cli::bench) fn with_tickets(mut self, tickets: bool) -> Self {
        if let Some((config, _)) = &mut self.tls {
            Arc::make_mut(config).resumption = if tickets { Resumption::default() } else { Resumption::disabled() };
        }
        self
    }

    pub(in crate::cli::bench) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Connects, from this address of the machine if one is given.
    pub(in crate::cli::bench) async fn dial(&self, from: Option<IpAddr>) -> io::Result<Box<dyn ByteStream>> {
        let to = lookup_host((self.host.as_str(), self.port)).await?.next();
        let to = to.ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(from) = from {
            socket.bind((from, 0).into())?;
        }
        let tcp = socket.connect(to).await?;
        tcp.set_nodelay(true)?;
        let tcp = Counted { tcp, traffic: Arc::clone(&self.traffic) };
        Ok(match &self.tls {
            None => Box::new(tcp),
            Some((config, name)) => {
                let tls = TlsConnector::from(Arc::clone(config)).connect(name.clone(), tcp).await?;
                if tls.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed) {
                    self.traffic.resumed.fetch_add(1, Ordering::Relaxed);
                }
                Box::new(tls)
            }
        })
    }
}

/// A socket whose bytes are counted.
struct Counted {
    tcp: TcpStream,
    traffic: Arc<Traffic>,
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.tcp).poll_read(cx, buf);
        self.traffic.received.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.tcp).poll_write(cx, bytes);
        if let Poll::Ready(Ok(wrote)) = wrote {
            self.traffic.sent.fetch_add(wrote as u64, Ordering::Relaxed);
        }
        wrote
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
