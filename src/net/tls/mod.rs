//! TLS 1.3 and nothing below. Once its handshake is done, a connection is kept as the keys, the numbers of the next
//! records, and the library's state for key updates; ciphers are opened when a record is there, and closed when the
//! session rests. The library's own connection holds ten times that, for records that are not there.
//!
//! Every byte of cryptography is rustls's: the handshake (`handshake`), the secrets and their updates (its `kernel`
//! module), sealing and opening records (the ciphers of its suites). What is ours is the shell of a record and what may
//! follow a handshake (RFC 8446, 4.6.3, 5 and 6), in `records`, without IO; `stream` carries it over a byte stream.
//!
//! ```text
//!   accept ──► handshake, by rustls ──► Records { keys, numbers, KernelConnection } ──► TlsStream
//! ```

mod config;
mod expiry;
mod handshake;
pub mod keys;
pub mod records;
mod stream;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

#[cfg(any(test, feature = "fuzz"))]
pub(crate) use config::configure;
pub use config::{TlsError, server_config, server_config_and_expiry};
pub use handshake::accept;
pub use stream::{REST_BYTES, TlsStream};
