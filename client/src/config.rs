//! What a client is started with.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use longwire_protocol::packet::{CatchUpMode, Window};

use crate::dial::Dialer;
use crate::login::Login;
use crate::outbox::{Outbox, OutboxLimits};

/// What a client is started with: what must be decided goes into [`Config::new`], the rest has a default.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Makes the connections.
    pub dialer: Dialer,
    /// Who this is.
    pub token: TokenSource,
    /// The name of this installation among those of its user, at most 64 bytes. Two clients with one name take each
    /// other's sessions over.
    pub device: String,
    /// For people who read the broker's logs, at most 64 bytes. Default: name and version of this crate.
    pub agent: String,
    /// Where the first connection starts reading. Default: [`Start::Kept`].
    pub start: Start,
    /// How much of what was missed is delivered. Default: `Skip`, a person's view: long absences come as ranges to
    /// fetch from history. `All` is everything, in order.
    pub catch_up: CatchUpMode,
    /// When deliveries are handed over. Default: at once.
    pub handover: Handover,
    /// The most that is delivered and not yet stored in the lane of direct conversations. Zeros: the broker's default.
    pub express: Window,
    /// The same in the lane of groups and channels. Together they bound the memory of what is not yet stored.
    pub bulk: Window,
    /// The largest item this device takes, in bytes; larger ones come as [`Item::Skipped`] with their size. Default 0:
    /// whatever the broker allows.
    ///
    /// [`Item::Skipped`]: crate::Item::Skipped
    pub item_bytes_max: u32,
    /// How often to show life when nothing else is sent; the broker names the range it allows. Each connection takes
    /// up to a tenth less, at random, so that a crowd that connected at once does not beat at once. Default: 60 s.
    pub heartbeat: Duration,
    /// Whether this device is in the background: the broker may gather what is not urgent. Default: no.
    pub background: bool,
    /// Whether signals of conversations are wanted: that someone types, and the like. Default: no.
    pub signals: bool,
    /// Where unanswered publishes are kept. Default: in memory.
    pub outbox: Outbox,
    /// How much the outbox takes. Default: 10,000 publishes, 16 MiB.
    pub outbox_limits: OutboxLimits,
    /// How long a request may take, reconnects included. Default: 30 s.
    pub request_timeout: Duration,
}

impl Config {
    /// A device with a token, over connections that `dialer` makes.
    #[must_use]
    pub fn new(dialer: Dialer, token: impl Into<TokenSource>, device: impl Into<String>) -> Self {
        Self {
            dialer,
            token: token.into(),
            device: device.into(),
            agent: concat!("longwire-rust/", env!("CARGO_PKG_VERSION")).to_owned(),
            start: Start::Kept,
            catch_up: CatchUpMode::Skip,
            handover: Handover::AtOnce,
            express: Window::default(),
            bulk: Window::default(),
            item_bytes_max: 0,
            heartbeat: Duration::from_secs(60),
            background: false,
            signals: false,
            outbox: Outbox::Memory,
            outbox_limits: OutboxLimits::default(),
            request_timeout: Duration::from_secs(30),
        }
    }
}

/// Where the first connection starts reading. Those after it go on from the last cursor that was stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// From the cursor that the outbox file keeps; without one, as [`Start::Stored`].
    #[default]
    Kept,
    /// From the application's own cursor, which it stored together with its entries. Also downwards: a device that
    /// was restored from a copy gets again what it lost.
    Own(Bytes),
    /// From where this device stood, as the broker remembers it; a device it does not know starts at the tail.
    Stored,
    /// At the tail: nothing of the past.
    Fresh,
}

/// When a delivery is handed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Handover {
    /// As soon as there is something.
    #[default]
    AtOnce,
    /// Together with the cursor behind it, so that one transaction stores both; up to a second later.
    WithCursor,
}

/// A token that is being made.
pub type TokenFuture = Pin<Box<dyn Future<Output = Result<String, String>> + Send>>;

/// Where the token comes from.
#[derive(Clone)]
pub enum TokenSource {
    /// Always this one.
    Fixed(String),
    /// Asked at each connect, and in time before the last one expires. An error is told as the reason of a retry.
    Provider(Arc<dyn Fn() -> TokenFuture + Send + Sync>),
    /// From the broker itself, for a user name and a password.
    Login(Login),
}

impl TokenSource {
    /// A token from an async function.
    pub fn provider<F>(provide: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<String, String>> + Send + 'static,
    {
        Self::Provider(Arc::new(move || Box::pin(provide())))
    }

    pub(crate) fn token(&self) -> TokenFuture {
        match self {
            Self::Fixed(token) => Box::pin(std::future::ready(Ok(token.clone()))),
            Self::Provider(provide) => provide(),
            // None yet: the password goes in its place.
            Self::Login(login) => Box::pin(std::future::ready(Ok(login.token().unwrap_or_default()))),
        }
    }
}

impl From<String> for TokenSource {
    fn from(token: String) -> Self {
        Self::Fixed(token)
    }
}

impl From<Login> for TokenSource {
    fn from(login: Login) -> Self {
        Self::Login(login)
    }
}

impl From<&str> for TokenSource {
    fn from(token: &str) -> Self {
        Self::Fixed(token.to_owned())
    }
}

impl fmt::Debug for TokenSource {
    /// Tokens are secrets: they are not printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fixed(_) => "Fixed(..)",
            Self::Provider(_) => "Provider(..)",
            Self::Login(_) => "Login(..)",
        })
    }
}
