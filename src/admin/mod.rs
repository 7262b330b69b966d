//! The listener for who watches the broker: three pages over HTTP/1.1, and nothing else. Whoever asks is let in, so it
//! listens on this machine alone unless it is told otherwise; nothing can be changed here, and no message comes by.
//!
//! | | |
//! |---|---|
//! | `/livez` | the process turns |
//! | `/readyz` | publishes are taken; 503 with the checks that fail otherwise |
//! | `/metrics` | what it counts, in the text format of OpenMetrics |
//!
//! Knows nothing of the broker but what that tells ([`Told`]). Every connection is for one request and ends soon, however
//! slowly it is asked and read, and there are few at once: see the limits below.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;

/// Bytes of a request: the least that the library admits.
const REQUEST_BYTES_MAX: usize = 8 << 10;
/// Header lines of a request.
const HEADERS_MAX: usize = 64;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// What the broker tells. Both are asked for as often as somebody likes to.
pub trait Told: Send + Sync {
    /// What keeps it from being ready. Never looks at the disk, and never waits.
    fn failing(&self) -> Vec<Failing>;

    /// The page of metrics. Made on a thread that may take a while, one at a time.
    fn metrics(&self) -> String;
}

/// A check that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failing {
    /// Its name.
    pub check: &'static str,
    /// What is wrong.
    pub why: &'static str,
}

/// The bounds of who asks.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at once; beyond, a socket is closed unread.
    pub connections: usize,
    /// How long a request may take to arrive.
    pub request_within: Duration,
    /// How long a connection may last, from accept until its answer is read.
    pub all_within: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { connections: 32, request_within: Duration::from_secs(5), all_within: Duration::from_secs(10) }
    }
}

/// Who listens, before there is a broker as well as then: so whoever asks is not left waiting while a store is opened.
#[derive(Clone, Default)]
pub struct Admin {
    told: Arc<OnceLock<Arc<dyn Told>>>,
    /// Who makes a page of metrics.
    making: Arc<Mutex<()>>,
    bounds: Bounds,
}

impl Admin {
    /// With other bounds.
    #[must_use]
    pub fn within(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// The broker is there. Once.
    pub fn set(&self, told: Arc<dyn Told>) {
        let _ = self.told.set(told);
    }

    /// Answers until it is told to stop.
    ///
    /// # Cancel safety
    /// Cancel safe: a connection is either handed to its task or not accepted.
    pub async fn run(self, socket: TcpListener, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(self.bounds.connections));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
                    let admin = self.clone();
                    tokio::spawn(async move {
                        let _place = place;
                        admin.carry(stream).await;
                    });
                }
                // Out of files or memory: wait for some to come free rather than spin.
                Err(error) => {
                    tracing::warn!(%error, "nobody can look at the broker just now");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn carry(&self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let answer = service_fn(async |request| Ok::<_, Infallible>(self.answer(&request).await));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.bounds.request_within)
            .max_buf_size(REQUEST_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), answer);
        // What is wrong with it is its own affair.
        let _ = tokio::time::timeout(self.bounds.all_within, connection).await;
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if !["/livez", "/readyz", "/metrics"].contains(&path) {
            return page(StatusCode::NOT_FOUND, TEXT, "there are /livez, /readyz and /metrics\n".into());
        }
        if request.method() != Method::GET {
            let mut refused = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET is all there is\n".into());
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            return refused;
        }
        match (path, self.told.get()) {
            ("/livez", _) => page(StatusCode::OK, TEXT, "live\n".into()),
            ("/readyz", None) => unready(&[Failing { check: "store", why: "it is being opened" }]),
            ("/readyz", Some(told)) => unready(&told.failing()),
            (_, None) => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the store is being opened\n".into()),
            (_, Some(told)) => {
                let told = Arc::clone(told);
                let _making = self.making.lock().await;
                match tokio::task::spawn_blocking(move || told.metrics()).await {
                    Ok(metrics) => page(StatusCode::OK, OPEN_METRICS, metrics),
                    Err(_) => page(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "no page could be made\n".into()),
                }
            }
        }
    }
}

/// The answer to who asks whether it is ready.
fn unready(failing: &[Failing]) -> Response<Full<Bytes>> {
    if failing.is_empty() {
        return page(StatusCode::OK, TEXT, "ready\n".into());
    }
    let lines = failing.iter().map(|Failing { check, why }| format!("{check}: {why}\n"));
    page(StatusCode::SERVICE_UNAVAILABLE, TEXT, lines.collect())
}

fn page(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
