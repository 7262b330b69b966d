//! From an address to a stream of bytes: TCP, then TLS 1.3 with ALPN `longwire/1`.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::address::{Address, Security};

/// The protocol's name in the TLS handshake.
pub const ALPN: &[u8] = b"longwire/1";
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

/// Whom a client believes to be the broker.
#[derive(Clone)]
pub enum Trust {
    /// Nobody: enough for plain TCP, an error for TLS.
    Nobody,
    /// Whoever holds a certificate for the address's host, signed by one of these authorities.
    Authorities(Arc<RootCertStore>),
    /// Whoever holds the key of exactly this certificate, whatever names and dates it carries. For development and
    /// for devices that are given their broker's certificate in the factory.
    Pinned(CertificateDer<'static>),
}

impl Trust {
    /// Trusts the certificates of a PEM file, as `longwire serve --dev` and any authority write them.
    ///
    /// # Errors
    /// When the file cannot be read, is no PEM, or holds no usable certificate.
    pub fn from_file(path: &Path) -> Result<Self, TrustError> {
        let bad = |why: String| TrustError::File { path: path.display().to_string(), why };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| bad(error.to_string()))? {
            let certificate = certificate.map_err(|error| bad(error.to_string()))?;
            roots.add(certificate).map_err(|error| bad(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(bad("it holds no certificate".to_owned()));
        }
        Ok(Self::Authorities(Arc::new(roots)))
    }

    /// The rustls configuration that this trust comes to: TLS 1.3 only, ALPN `longwire/1`, one provider, no early data.
    ///
    /// # Errors
    /// [`TrustError::Nobody`] when nobody is trusted.
    pub fn tls_config(&self) -> Result<Arc<rustls::ClientConfig>, TrustError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| TrustError::Tls(error.to_string()))?;
        let mut config = match self {
            Self::Nobody => return Err(TrustError::Nobody),
            Self::Authorities(roots) => builder.with_root_certificates(Arc::clone(roots)).with_no_client_auth(),
            Self::Pinned(certificate) => {
                let pin = OneCertificate { certificate: certificate.clone(), provider };
                builder.dangerous().with_custom_certificate_verifier(Arc::new(pin)).with_no_client_auth()
            }
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Arc::new(config))
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nobody => "Trust::Nobody",
            Self::Authorities(_) => "Trust::Authorities",
            Self::Pinned(_) => "Trust::Pinned",
        })
    }
}

/// Why nobody can be connected to over TLS.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TrustError {
    /// The address wants TLS, and there is nothing to check the broker's certificate against.
    #[error("TLS needs a certificate to trust: give a file of authorities, or the broker's own certificate")]
    Nobody,
    /// The file of authorities is of no use.
    #[error("cannot use {path} as a list of authorities: {why}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The host is no name that a certificate can carry.
    #[error("{0:?} is no host name")]
    Name(String),
    /// The TLS library refuses the configuration.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

/// Accepts one certificate and no other; signatures are checked as always.
#[derive(Debug)]
struct OneCertificate {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OneCertificate {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.certificate {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
