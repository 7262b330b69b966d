//! Whom a client believes to be the broker, and what is wrong with a certificate that it does not believe.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// The protocol's name in the TLS handshake.
pub const ALPN: &[u8] = b"longwire/1";

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

/// Why the certificate that was shown is not believed. Nothing was sent to whoever showed it: it may be another broker,
/// or somebody on the way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Untrusted {
    /// None of the trusted authorities has signed it.
    #[error("the broker's certificate is signed by nobody that is trusted here")]
    UnknownIssuer,
    /// It is for other names than the one that was connected to.
    #[error("the broker's certificate is for another name{}", names(.0))]
    WrongName(
        /// The names that it is for, where they are known.
        Vec<String>,
    ),
    /// Its time is over, or this machine's clock is wrong.
    #[error("the broker's certificate has expired, or this machine's clock is wrong")]
    Expired,
    /// Its time has not come, or this machine's clock is wrong.
    #[error("the broker's certificate is not valid yet, or this machine's clock is wrong")]
    NotValidYet,
    /// It is not the one that is pinned.
    #[error("the broker's certificate is not the one that is pinned")]
    NotPinned,
    /// Anything else: revoked, broken, of a kind that is not known.
    #[error("the broker's certificate is of no use: {0}")]
    Other(
        /// What the TLS library says.
        String,
    ),
}

fn names(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(": {}", names.join(", ")) }
}

impl Untrusted {
    /// What an attempt to connect says about the certificate; `None` where something else went wrong.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<Self> {
        let rustls::Error::InvalidCertificate(error) = error.get_ref()?.downcast_ref()? else { return None };
        Some(match error {
            // A signature does not fit where an authority of the same name, with another key, has made it.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownIssuer,
            CertificateError::NotValidForName => Self::WrongName(Vec::new()),
            CertificateError::NotValidForNameContext { presented, .. } => Self::WrongName(presented.clone()),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotValidYet,
            CertificateError::ApplicationVerificationFailure => Self::NotPinned,
            error => Self::Other(error.to_string()),
        })
    }
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
