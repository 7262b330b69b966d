//! Longwire's providers of push notification: who tells a device that is away that something waits for it. One trait,
//! [`Provider`]; a provider is given a [`Notification`] and says what came of it ([`Outcome`]). None keeps a queue, tries
//! again or knows of conversations: that is the broker's.
//!
//! - [`webhook`] is the operator's own gateway, signed as Standard Webhooks
//! - [`webpush`] is for browsers and UnifiedPush, encrypted for the device (RFC 8030, 8291, 8292)
//! - [`apns`] is Apple's
//! - [`fcm`] is Google's
//!
//! All of them go through [`http`], which bounds time and answers, follows no redirect, and lets the endpoints that users
//! name lead nowhere but into the public internet.

pub mod apns;
pub mod fcm;
pub mod http;
mod jwt;
pub mod payload;
pub mod webhook;
pub mod webpush;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

/// What a device is told: that of a conversation something waits, and no more of it than the device said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notification {
    /// The same each time it is tried.
    pub id: u128,
    /// The same for all of one conversation to one device: a newer one takes the place of an older.
    pub collapse: u128,
    /// What the provider calls the device.
    pub target: String,
    /// The public key of a Web Push subscription.
    pub key: Vec<u8>,
    /// Its secret.
    pub secret: Vec<u8>,
    /// Whose the device is.
    pub user: u64,
    /// Which.
    pub device: u64,
    /// The conversation.
    pub conversation: u64,
    /// Its newest message that is told.
    pub seq: u64,
    /// What the user has not read in all.
    pub badge: u64,
    /// Who wrote it, and what the conversation is called.
    pub names: Option<(String, String)>,
    /// The beginning of its content.
    pub content: Option<Bytes>,
    /// It is worth nothing after so long.
    pub lives: Duration,
    /// The time, in seconds since 1970.
    pub now: u64,
}

/// What came of a notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The provider took it.
    Delivered,
    /// The provider does not know the device any more: it is not to be asked again.
    Unregistered,
    /// Not now; not before `after`, where the provider says so.
    Retry {
        /// How long to wait at the least.
        after: Option<Duration>,
        /// Whether it is the provider that is in trouble, and not this device alone.
        is_provider: bool,
        /// Why, for a log.
        why: String,
    },
    /// It would be refused again; why, for a log.
    Rejected(String),
}

impl Outcome {
    pub(crate) fn device_waits(after: Option<Duration>, why: impl Into<String>) -> Self {
        Self::Retry { after, is_provider: false, why: why.into() }
    }

    pub(crate) fn provider_waits(after: Option<Duration>, why: impl Into<String>) -> Self {
        Self::Retry { after, is_provider: true, why: why.into() }
    }
}

/// The future of [`Provider::send`].
pub type Sending<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// Who can be asked to tell devices something.
pub trait Provider: Send + Sync {
    /// Tries once, for some seconds at the most.
    ///
    /// # Cancel safety
    /// Dropped half-way, it may have been sent.
    fn send<'a>(&'a self, notification: &'a Notification) -> Sending<'a>;
}

/// Why a provider cannot be made of what the operator wrote.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A key is not what it should be.
    #[error("{what}: {why}")]
    Key {
        /// Which.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// An address is not one that can be sent to.
    #[error("{url:?} is no address for push notification: {why}")]
    Address {
        /// As it was written.
        url: String,
        /// What is wrong.
        why: &'static str,
    },
}
