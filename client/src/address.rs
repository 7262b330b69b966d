//! Where a broker is: `longwires://host:port`.

use std::fmt;
use std::str::FromStr;

/// The port of a broker that names none.
pub const PORT_DEFAULT: u16 = 14_000;

/// How bytes travel to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Security {
    /// TLS 1.3: `longwires://`.
    Tls,
    /// Bare TCP, readable by everyone on the way: `longwire://`, only for whoever asks for it by that name.
    Plain,
}

/// The address of a broker, parsed: `longwires://host[:port]` or `longwire://host[:port]`.
///
/// ```
/// use longwire_client::{Address, Security};
/// let address: Address = "longwires://[::1]".parse()?;
/// assert_eq!((address.host(), address.port(), address.security()), ("::1", 14_000, Security::Tls));
/// # Ok::<(), longwire_client::AddressError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    security: Security,
    host: String,
    port: u16,
}

impl Address {
    /// A host name, or an IP address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Whether bytes travel under TLS.
    #[must_use]
    pub const fn security(&self) -> Security {
        self.security
    }
}

/// Why a text is no address of a broker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither `longwires://` nor `longwire://`.
    #[error("an address begins with longwires:// (TLS) or longwire:// (plain TCP): {0:?}")]
    Scheme(String),
    /// No host, or one with characters that no host has.
    #[error("no host in the address {0:?}")]
    Host(String),
    /// Not a number from 1 to 65535.
    #[error("not a port: {0:?}")]
    Port(String),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (security, rest) = if let Some(rest) = text.strip_prefix("longwires://") {
            (Security::Tls, rest)
        } else if let Some(rest) = text.strip_prefix("longwire://") {
            (Security::Plain, rest)
        } else {
            return Err(AddressError::Scheme(text.to_owned()));
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let no_host = || AddressError::Host(text.to_owned());
        let (host, port) = match rest.strip_prefix('[') {
            Some(bracketed) => {
                let (host, after) = bracketed.split_once(']').ok_or_else(no_host)?;
                (host, if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or_else(no_host)?) })
            }
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || "/?#@[]".contains(c)) {
            return Err(no_host());
        }
        let port = match port {
            None => PORT_DEFAULT,
            Some(port) => match port.parse() {
                Ok(port) if port != 0 => port,
                _ => return Err(AddressError::Port(port.to_owned())),
            },
        };
        Ok(Self { security, host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.security {
            Security::Tls => "longwires",
            Security::Plain => "longwire",
        };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_parses_to_the_same() {
        for text in ["longwires://example.org:14000", "longwire://127.0.0.1:9", "longwires://[::1]:443"] {
            let address: Address = text.parse().expect("an address");
            assert_eq!(address.to_string(), text);
        }
        let short: Address = "longwires://broker/".parse().expect("an address");
        assert_eq!(short.to_string(), "longwires://broker:14000");
    }

    #[test]
    fn plain_tcp_is_never_assumed() {
        for text in ["broker:14000", "tcp://broker", "", "longwires:/broker"] {
            assert!(matches!(text.parse::<Address>(), Err(AddressError::Scheme(_))), "{text}");
        }
    }

    #[test]
    fn a_bad_host_or_port_is_named() {
        for text in ["longwires://", "longwires://:1", "longwires://[::1", "longwires://[::1]x", "longwires://a@b"] {
            assert!(matches!(text.parse::<Address>(), Err(AddressError::Host(_))), "{text}");
        }
        for text in ["longwires://a:", "longwires://a:0", "longwires://a:65536", "longwires://a:b"] {
            assert!(matches!(text.parse::<Address>(), Err(AddressError::Port(_))), "{text}");
        }
    }
}
