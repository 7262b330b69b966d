//! The one way out: HTTP with a bound on time and on the answer, no redirects, and, for endpoints that users name, no
//! address that is not public: neither by its literal, nor by what its name resolves to at that moment.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{HeaderMap, RETRY_AFTER};
use hyper::{Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tower_service::Service;

use crate::{Outcome, SetupError};

/// How long one request may take, with everything.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How much of an answer is read: a reason, no more.
const ANSWER_BYTES_MAX: usize = 4 << 10;
/// How long a connection that nobody uses is kept.
const IDLE: Duration = Duration::from_secs(60);
/// Connections that nobody uses, to one host.
const IDLE_MAX: usize = 4;
/// The longest wait that a provider can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(86_400);

/// Where requests may go, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Where the operator says, also without TLS and inside its own network.
    Operator,
    /// The same, in HTTP/2 alone.
    OperatorHttp2,
    /// Where a user says: with TLS, and in the public internet.
    Public,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Http {
    client: Client<HttpsConnector<HttpConnector<Guard>>, Full<Bytes>>,
}

/// An answer, as far as it is read.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// The beginning of its body; nothing where it is too long.
    pub body: Bytes,
}

impl Http {
    /// A client that believes the system's authorities and those of `roots`, in PEM.
    ///
    /// # Errors
    /// When there are no authorities, or those of `roots` cannot be read.
    pub fn new(reach: Reach, roots: Option<&[u8]>) -> Result<Self, SetupError> {
        Self::with(reach, roots, reach != Reach::Public)
    }

    /// For tests, whose servers are on this machine: a client that goes anywhere.
    ///
    /// # Errors
    /// As [`Http::new`].
    pub fn anywhere(reach: Reach, roots: Option<&[u8]>) -> Result<Self, SetupError> {
        Self::with(reach, roots, true)
    }

    fn with(reach: Reach, roots: Option<&[u8]>, is_anywhere: bool) -> Result<Self, SetupError> {
        let bad = |why: String| SetupError::Key { what: "roots", why };
        let mut store = RootCertStore::empty();
        let system = rustls_native_certs::load_native_certs();
        store.add_parsable_certificates(system.certs);
        if let Some(pem) = roots {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|error| bad(error.to_string()))?;
                store.add(certificate).map_err(|error| bad(error.to_string()))?;
            }
        }
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let tls = rustls::ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(error.to_string()))?
            .with_root_certificates(store)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new_with_resolver(Guard { names: GaiResolver::new(), is_anywhere });
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(TIMEOUT));
        tcp.set_nodelay(true);
        let schemes = HttpsConnectorBuilder::new().with_tls_config(tls);
        let schemes = if reach == Reach::Public { schemes.https_only() } else { schemes.https_or_http() };
        let connector = match reach {
            Reach::OperatorHttp2 => schemes.enable_http2().wrap_connector(tcp),
            Reach::Operator | Reach::Public => schemes.enable_all_versions().wrap_connector(tcp),
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_MAX)
            .http2_only(reach == Reach::OperatorHttp2)
            .build(connector);
        Ok(Self { client })
    }

    /// Sends a request.
    ///
    /// # Errors
    /// What to do when there is no answer. The text names no address.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer, String> {
        let exchange = async {
            let answer = self.client.request(request).await.map_err(|error| plain(&error))?;
            let (parts, body) = answer.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_or_else(|_| Bytes::new(), http_body_util::Collected::to_bytes);
            Ok(Answer { status: parts.status, headers: parts.headers, body })
        };
        tokio::time::timeout(TIMEOUT, exchange).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
    }
}

fn plain(error: &hyper_util::client::legacy::Error) -> String {
    if error.is_connect() { "no connection".to_owned() } else { "the connection broke".to_owned() }
}

impl Answer {
    /// How long the provider asks to be left alone, where it says that in seconds.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        let seconds = self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
        Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
    }

    /// The status and a reason, for a log.
    pub(crate) fn why(&self, reason: &str) -> String {
        if reason.is_empty() { self.status.to_string() } else { format!("{}: {reason}", self.status) }
    }

    /// What is left to say of a status that means the same everywhere.
    pub(crate) fn usual(&self, reason: &str) -> Outcome {
        match self.status.as_u16() {
            200..=299 => Outcome::Delivered,
            408 | 425 | 429 => Outcome::device_waits(self.retry_after(), self.why(reason)),
            500..=599 => Outcome::provider_waits(self.retry_after(), self.why(reason)),
            _ => Outcome::Rejected(self.why(reason)),
        }
    }
}

/// An address that an operator wrote.
///
/// # Errors
/// When it is none that can be sent to.
pub fn address(url: &str) -> Result<Uri, SetupError> {
    let bad = |why| SetupError::Address { url: url.to_owned(), why };
    let uri: Uri = url.parse().map_err(|_| bad("it is no URL"))?;
    match uri.scheme_str() {
        Some("https" | "http") if uri.authority().is_some() => Ok(uri),
        _ => Err(bad("it does not begin with https://")),
    }
}

/// An endpoint that a user named: https, without a name or password in it, and not an address that is not public.
///
/// # Errors
/// Why nothing is sent there.
pub fn endpoint(url: &str, is_anywhere: bool) -> Result<Uri, &'static str> {
    let uri: Uri = url.parse().map_err(|_| "it is no URL")?;
    let (Some("https"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err("it does not begin with https://");
    };
    if authority.as_str().contains('@') {
        return Err("it holds a name");
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    // A literal is connected to without being resolved.
    if let Ok(ip) = host.parse::<IpAddr>()
        && !is_anywhere
        && !is_public(ip)
    {
        return Err("its address is not public");
    }
    Ok(uri)
}

/// Whether an address belongs to the public internet.
#[must_use]
pub fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let is_shared = a == 100 && (64..128).contains(&b);
    let is_special = (a, b, c) == (192, 0, 0) || (a == 198 && (b == 18 || b == 19)) || a == 0 || a >= 240;
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_documentation()
        || is_shared
        || is_special)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let segments = ip.segments();
    // Where an IPv4 address is inside, that one counts.
    if segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
        let [.., a, b, c, d] = ip.octets();
        return is_public_v4(Ipv4Addr::new(a, b, c, d));
    }
    let is_global_unicast = segments[0] & 0xe000 == 0x2000;
    let is_tunnel = segments[0] == 0x2002 || (segments[0] == 0x2001 && segments[1] < 0x200);
    let is_documentation = (segments[0] == 0x2001 && segments[1] == 0xdb8) || segments[0] & 0xfff0 == 0x3ff0;
    is_global_unicast && !is_tunnel && !is_documentation
}

/// Resolves names, and knows none whose addresses are not public.
#[derive(Clone, Debug)]
struct Guard {
    names: GaiResolver,
    is_anywhere: bool,
}

impl Service<Name> for Guard {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, io::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        self.names.poll_ready(context)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (found, is_anywhere) = (self.names.call(name), self.is_anywhere);
        Box::pin(async move {
            let addresses = found.await?.filter(|address| is_anywhere || is_public(address.ip())).collect::<Vec<_>>();
            if addresses.is_empty() {
                return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "no public address"));
            }
            Ok(addresses.into_iter())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_public_is_not_reached() {
        for ip in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "192.0.0.8",
            "192.0.2.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.7",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "3fff::1",
            "::127.0.0.1",
        ] {
            assert!(!is_public(ip.parse().expect("an address")), "{ip}");
            let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
            assert!(endpoint(&format!("https://{host}/x"), false).is_err(), "{ip}");
            assert!(endpoint(&format!("https://{host}:8443/x"), true).is_ok(), "{ip}");
        }
        for ip in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "198.20.0.1", "2606:4700::1111", "64:ff9b::1.1.1.1"] {
            assert!(is_public(ip.parse().expect("an address")), "{ip}");
        }
    }

    #[test]
    fn an_endpoint_is_an_https_address_without_a_name_in_it() {
        assert!(endpoint("https://push.example.com/send/abc?x=1", false).is_ok());
        for url in ["http://push.example.com/", "https://user@push.example.com/", "ftp://x/", "/x", "https://", "x y"] {
            assert!(endpoint(url, true).is_err(), "{url}");
        }
    }

    /// A name of this machine is resolved, and not followed; a literal never comes to the resolver.
    #[tokio::test]
    async fn a_name_that_leads_inside_is_not_followed() {
        let name: Name = "localhost".parse().expect("a name");
        let mut guard = Guard { names: GaiResolver::new(), is_anywhere: false };
        guard.call(name.clone()).await.expect_err("it is this machine");
        let mut open = Guard { names: GaiResolver::new(), is_anywhere: true };
        assert!(open.call(name).await.expect("resolves").all(|address| address.ip().is_loopback()));
    }
}
