//! The signed tokens with which the broker says who it is: to Apple, Google and endpoints of Web Push.

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::Serialize;

use crate::SetupError;

/// A key in PEM, for one algorithm.
pub(crate) struct Key {
    key: EncodingKey,
    header: Header,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    pub(crate) fn p256(pem: &[u8], id: Option<String>, what: &'static str) -> Result<Self, SetupError> {
        let key = EncodingKey::from_ec_pem(pem).map_err(|error| SetupError::Key { what, why: error.to_string() })?;
        Ok(Self { key, header: Header { kid: id, ..Header::new(Algorithm::ES256) } })
    }

    pub(crate) fn rsa(pem: &[u8], id: Option<String>, what: &'static str) -> Result<Self, SetupError> {
        let key = EncodingKey::from_rsa_pem(pem).map_err(|error| SetupError::Key { what, why: error.to_string() })?;
        Ok(Self { key, header: Header { kid: id, ..Header::new(Algorithm::RS256) } })
    }

    /// Signs; `Err` says why that cannot be done, which is so for every token.
    pub(crate) fn sign(&self, claims: &impl Serialize) -> Result<String, String> {
        encode(&self.header, claims, &self.key).map_err(|error| error.to_string())
    }
}
