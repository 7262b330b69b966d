//! From an address to a stream of bytes: TCP, then TLS 1.3 with ALPN `longwire/1`.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::address::{Address, Security};
use crate::trust::{Trust, TrustError};

/// TCP, TLS and nothing else: how long a connection may take until bytes can flow.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Anything that carries bytes both ways.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// A connection that is being made.
pub type Dialing = Pin<Box<dyn Future<Output = io::Result<Box<dyn ByteStream>>> + Send>>;

/// Makes connections to one broker; cheap to clone. [`Dialer::new`] makes the usual one; [`Dialer::custom`] lets a
/// program bring its own transport, or a test a pipe.
#[derive(Clone)]
pub struct Dialer(Arc<dyn Fn() -> Dialing + Send + Sync>);

impl Dialer {
    /// Connects over TCP, and TLS where the address says so.
    ///
    /// # Errors
    /// When the address wants TLS and `trust` gives nothing to trust, or a host name that no certificate can carry.
    pub fn new(address: &Address, trust: &Trust) -> Result<Self, TrustError> {
        let (host, port) = (address.host().to_owned(), address.port());
        let tls = match address.security() {
            Security::Plain => None,
            Security::Tls => {
                let name = ServerName::try_from(host.clone()).map_err(|_| TrustError::Name(host.clone()))?;
                Some((TlsConnector::from(trust.tls_config()?), name))
            }
        };
        Ok(Self::custom(move || {
            let (host, tls) = (host.clone(), tls.clone());
            Box::pin(async move {
                let dialing = dial(host, port, tls);
                tokio::time::timeout(DIAL_TIMEOUT, dialing)
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            })
        }))
    }

    /// Connections made by `dial`, once for every attempt. Dropping the future gives the attempt up.
    pub fn custom(dial: impl Fn() -> Dialing + Send + Sync + 'static) -> Self {
        Self(Arc::new(dial))
    }

    /// Begins one attempt.
    #[must_use]
    pub fn dial(&self) -> Dialing {
        (self.0)()
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dialer")
    }
}

async fn dial(
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
) -> io::Result<Box<dyn ByteStream>> {
    let tcp = TcpStream::connect((host.as_str(), port)).await?;
    tcp.set_nodelay(true)?;
    Ok(match tls {
        None => Box::new(tcp),
        Some((connector, name)) => Box::new(connector.connect(name, tcp).await?),
    })
}
