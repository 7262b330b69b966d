//! Apple's push service, over HTTP/2, with a signed provider token.

use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Uri};
use serde::{Deserialize, Serialize};

use crate::http::{Answer, Http, address};
use crate::jwt::Key;
use crate::payload::hex;
use crate::{Notification, Outcome, Provider, Sending, SetupError};

/// Where it is, unless the operator says otherwise.
pub const HOST: &str = "https://api.push.apple.com";
/// A token is good for an hour, and is not to be made anew within 20 minutes.
const TOKEN_LIVES_S: u64 = 50 * 60;
/// See [`TOKEN_LIVES_S`].
const TOKEN_ANEW_S: u64 = 21 * 60;
/// The largest body.
const BYTES_MAX: usize = 4_096;

/// What the operator has from Apple.
#[derive(Clone, Debug)]
pub struct Account {
    /// The id of the key.
    pub key_id: String,
    /// The id of the team.
    pub team_id: String,
    /// The bundle id of the app.
    pub topic: String,
}

/// See the module.
#[derive(Debug)]
pub struct Apns {
    http: Http,
    host: Uri,
    account: Account,
    key: Key,
    /// The token, and when it was made.
    token: Mutex<Option<(String, u64)>>,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    iat: u64,
}

#[derive(Serialize)]
struct Body<'a> {
    aps: Aps<'a>,
    longwire: Place,
}

#[derive(Serialize)]
struct Place {
    conversation: u64,
    seq: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Aps<'a> {
    alert: Alert<'a>,
    badge: u64,
    mutable_content: u8,
    thread_id: String,
}

/// The app has the words; names go into them.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Alert<'a> {
    loc_key: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    loc_args: Vec<&'a str>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Reason {
    reason: String,
}

impl Apns {
    /// With a P-256 key in PEM (the `.p8` file).
    ///
    /// # Errors
    /// When the key or the host is not usable.
    pub fn new(http: Http, host: &str, account: Account, key: &[u8]) -> Result<Self, SetupError> {
        let key = Key::p256(key, Some(account.key_id.clone()), "the key of APNs")?;
        Ok(Self { http, host: address(host)?, account, key, token: Mutex::new(None) })
    }

    fn token(&self, now: u64) -> Result<String, String> {
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((token, made)) = &*token
            && now.saturating_sub(*made) < TOKEN_LIVES_S
        {
            return Ok(token.clone());
        }
        let new = self.key.sign(&Claims { iss: &self.account.team_id, iat: now })?;
        *token = Some((new.clone(), now));
        Ok(new)
    }

    /// Apple says that the token is too old: the next one is new, but not before Apple takes a new one.
    fn forget_token(&self, now: u64) {
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        if token.as_ref().is_some_and(|(_, made)| now.saturating_sub(*made) >= TOKEN_ANEW_S) {
            *token = None;
        }
    }

    fn body(notification: &Notification) -> Vec<u8> {
        let names = notification.names.as_ref();
        let body = Body {
            aps: Aps {
                alert: Alert {
                    loc_key: if names.is_some() { "LONGWIRE_MESSAGE_FROM" } else { "LONGWIRE_MESSAGE" },
                    loc_args: names.map_or_else(Vec::new, |(sender, label)| vec![sender.as_str(), label.as_str()]),
                },
                badge: notification.badge,
                mutable_content: 1,
                thread_id: hex(notification.collapse),
            },
            longwire: Place {
                conversation: notification.conversation,
                seq: notification.seq,
                content: notification.content.as_ref().map(|content| BASE64_STANDARD.encode(content)),
            },
        };
        serde_json::to_vec(&body).expect("a struct of numbers and text")
    }

    async fn post(&self, notification: &Notification) -> Outcome {
        // A token of Apple's is hexadecimal; anything else would be a path of its own.
        if !notification.target.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Outcome::Rejected("the target is no device token".to_owned());
        }
        let token = match self.token(notification.now) {
            Ok(token) => token,
            Err(why) => return Outcome::provider_waits(None, why),
        };
        let mut body = Self::body(notification);
        if body.len() > BYTES_MAX {
            body = Self::body(&Notification { content: None, ..notification.clone() });
        }
        let url = format!("{}/3/device/{}", self.host.to_string().trim_end_matches('/'), notification.target);
        let id = hex(notification.id);
        let request = Request::post(url)
            .header("authorization", format!("bearer {token}"))
            .header("apns-topic", &self.account.topic)
            .header("apns-push-type", "alert")
            .header("apns-priority", "10")
            .header("apns-id", [&id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..]].join("-"))
            .header("apns-collapse-id", hex(notification.collapse))
            .header("apns-expiration", notification.now + notification.lives.as_secs())
            .body(Full::new(Bytes::from(body)));
        let Ok(request) = request else { return Outcome::Rejected("the topic is no header".to_owned()) };
        match self.http.send(request).await {
            Ok(answer) => self.outcome(&answer, notification.now),
            Err(why) => Outcome::provider_waits(None, why),
        }
    }

    fn outcome(&self, answer: &Answer, now: u64) -> Outcome {
        let Reason { reason } = serde_json::from_slice(&answer.body).unwrap_or_default();
        match (answer.status.as_u16(), reason.as_str()) {
            // A bad token may be one of another environment: the operator's mistake, and no reason to forget devices.
            (410, _) => Outcome::Unregistered,
            (403, "ExpiredProviderToken") => {
                self.forget_token(now);
                Outcome::provider_waits(None, answer.why(&reason))
            }
            // The operator's key or certificate: nobody can be told until that is settled.
            (403, _) | (429, "TooManyProviderTokenUpdates") => {
                Outcome::provider_waits(answer.retry_after(), answer.why(&reason))
            }
            _ => answer.usual(&reason),
        }
    }
}

impl Provider for Apns {
    fn send<'a>(&'a self, notification: &'a Notification) -> Sending<'a> {
        Box::pin(self.post(notification))
    }
}
