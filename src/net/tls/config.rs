//! The configuration of a server, from files that can be reloaded without dropping a connection.

use std::path::Path;
use std::sync::Arc;

use longwire_protocol::limits::ALPN;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, ServerConfig, version};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::expiry::expiry;

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds something else.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// Certificate and key do not belong together, or cannot be used.
    #[error("the certificate in {certificate} cannot be used with the key in {key}: {reason}")]
    Pair {
        /// The certificate's file.
        certificate: String,
        /// The key's file.
        key: String,
        /// What is wrong.
        reason: String,
    },
}

/// A server configuration of a certificate chain and its key, both PEM files.
///
/// # Errors
/// What is wrong with which file.
pub fn server_config(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    server_config_and_expiry(certificate, key).map(|(config, _)| config)
}

/// The same, and when the certificate expires, in seconds since 1970; 0 where that is not known.
///
/// # Errors
/// What is wrong with which file.
pub fn server_config_and_expiry(certificate: &Path, key: &Path) -> Result<(Arc<ServerConfig>, u64), TlsError> {
    let read = |path: &Path| {
        std::fs::read(path)
            .map_err(|error| TlsError::File { path: path.display().to_string(), reason: error.to_string() })
    };
    let chain = read(certificate)?;
    let config = configure((certificate, &chain), (key, &read(key)?))?;
    let expires = CertificateDer::from_pem_slice(&chain).ok().and_then(|own| expiry(&own));
    Ok((config, expires.unwrap_or(0)))
}

/// The same, of what stands in the files.
pub(crate) fn configure(
    (certificate, chain): (&Path, &[u8]),
    (key, private): (&Path, &[u8]),
) -> Result<Arc<ServerConfig>, TlsError> {
    let file = |path: &Path, reason: String| TlsError::File { path: path.display().to_string(), reason };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .map_err(|e| file(certificate, format!("no certificate in PEM: {e}")))?;
    if chain.is_empty() {
        return Err(file(certificate, "no certificate in PEM".into()));
    }
    let private =
        PrivateKeyDer::from_pem_slice(private).map_err(|e| file(key, format!("no private key in PEM: {e}")))?;
    let pair = |reason: String| TlsError::Pair {
        certificate: certificate.display().to_string(),
        key: key.display().to_string(),
        reason,
    };
    let provider = Arc::new(provider());
    let certified = CertifiedKey::from_der(chain, private, &provider).map_err(|e| pair(e.to_string()))?;
    certified.keys_match().map_err(|e| pair(e.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|e| pair(e.to_string()))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.ignore_client_order = true;
    // The keys of a connection are kept here, and not by the library.
    config.enable_secret_extraction = true;
    config.send_tls13_tickets = 1;
    config.max_early_data_size = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(|e| pair(e.to_string()))?;
    Ok(Arc::new(config))
}

/// The library's own, with AES-128 and SHA-256 before the rest: see `docs/decisions/aes-128-first.md`.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}
