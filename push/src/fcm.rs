//! Google's push service, HTTP v1, with a token that a service account is given.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::CONTENT_TYPE;
use hyper::{Request, Uri};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::http::{Answer, Http, address};
use crate::jwt::Key;
use crate::payload::hex;
use crate::{Notification, Outcome, Provider, Sending, SetupError};

/// Where it is, unless the operator says otherwise.
pub const HOST: &str = "https://fcm.googleapis.com";
/// What the token is asked for.
const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
/// How long the question for a token is good.
const QUESTION_LIVES_S: u64 = 600;
/// A token is not used any more so long before it ends.
const MARGIN_S: u64 = 60;
/// The longest token that is believed.
const TOKEN_LIVES_S_MAX: u64 = 3_600;
/// The largest body of data.
const DATA_BYTES_MAX: usize = 4_000;

/// The file of a service account, as Google gives it out.
#[derive(Deserialize)]
pub struct ServiceAccount {
    project_id: String,
    private_key_id: Option<String>,
    private_key: String,
    client_email: String,
    token_uri: String,
}

/// See the module.
#[derive(Debug)]
pub struct Fcm {
    http: Http,
    url: String,
    token_uri: Uri,
    email: String,
    key: Key,
    /// The token, and until when it is used. Held while one is fetched, so that one is.
    token: Mutex<Option<(String, u64)>>,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    scope: &'static str,
    aud: String,
    iat: u64,
    exp: u64,
}

#[derive(Deserialize)]
struct Token {
    access_token: String,
    expires_in: u64,
}

#[derive(Serialize)]
struct Body<'a> {
    message: Message<'a>,
}

#[derive(Serialize)]
struct Message<'a> {
    token: &'a str,
    data: BTreeMap<&'static str, String>,
    android: Android,
}

#[derive(Serialize)]
struct Android {
    collapse_key: String,
    priority: &'static str,
    ttl: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    error: Error,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Error {
    status: String,
    details: Vec<Detail>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Detail {
    #[serde(rename = "errorCode")]
    code: String,
}

impl Fcm {
    /// With the file of a service account, in JSON.
    ///
    /// # Errors
    /// When the file or the host is not usable.
    pub fn new(http: Http, host: &str, account: &[u8]) -> Result<Self, SetupError> {
        let what = "the service account of FCM";
        let account: ServiceAccount =
            serde_json::from_slice(account).map_err(|error| SetupError::Key { what, why: error.to_string() })?;
        let key = Key::rsa(account.private_key.as_bytes(), account.private_key_id, what)?;
        let host = address(host)?;
        let url =
            format!("{}/v1/projects/{}/messages:send", host.to_string().trim_end_matches('/'), account.project_id);
        let (token_uri, email) = (address(&account.token_uri)?, account.client_email);
        Ok(Self { http, url: address(&url)?.to_string(), token_uri, email, key, token: Mutex::new(None) })
    }

    async fn token(&self, now: u64) -> Result<String, Outcome> {
        let mut token = self.token.lock().await;
        if let Some((token, until)) = &*token
            && now < *until
        {
            return Ok(token.clone());
        }
        let claims = Claims {
            iss: &self.email,
            scope: SCOPE,
            aud: self.token_uri.to_string(),
            iat: now,
            exp: now + QUESTION_LIVES_S,
        };
        let waits = |why: String| Outcome::provider_waits(None, why);
        let question = self.key.sign(&claims).map_err(waits)?;
        let form = format!("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={question}");
        let request = Request::post(&self.token_uri)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::new(Bytes::from(form)))
            .expect("a known header");
        let answer = self.http.send(request).await.map_err(waits)?;
        if !answer.status.is_success() {
            return Err(Outcome::provider_waits(answer.retry_after(), answer.why("no token for the service account")));
        }
        let new: Token = serde_json::from_slice(&answer.body).map_err(|error| waits(format!("no token: {error}")))?;
        let until = now + new.expires_in.min(TOKEN_LIVES_S_MAX).saturating_sub(MARGIN_S);
        *token = Some((new.access_token.clone(), until));
        Ok(new.access_token)
    }

    fn body(notification: &Notification) -> Vec<u8> {
        let mut data = BTreeMap::from([
            ("conversation", notification.conversation.to_string()),
            ("seq", notification.seq.to_string()),
            ("badge", notification.badge.to_string()),
            ("id", hex(notification.id)),
        ]);
        if let Some((sender, label)) = &notification.names {
            data.insert("sender", sender.clone());
            data.insert("label", label.clone());
        }
        if let Some(content) = &notification.content {
            data.insert("content", BASE64_STANDARD.encode(content));
        }
        let android = Android {
            collapse_key: hex(notification.collapse),
            priority: "high",
            ttl: format!("{}s", notification.lives.as_secs()),
        };
        let body = Body { message: Message { token: &notification.target, data, android } };
        serde_json::to_vec(&body).expect("a struct of text")
    }

    async fn post(&self, notification: &Notification) -> Outcome {
        let token = match self.token(notification.now).await {
            Ok(token) => token,
            Err(outcome) => return outcome,
        };
        let mut body = Self::body(notification);
        if body.len() > DATA_BYTES_MAX {
            body = Self::body(&Notification { content: None, ..notification.clone() });
        }
        let request = Request::post(&self.url)
            .header("authorization", format!("Bearer {token}"))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)));
        let Ok(request) = request else {
            return Outcome::provider_waits(None, "the token that was given is no header".to_owned());
        };
        match self.http.send(request).await {
            Ok(answer) => self.outcome(&answer, &token).await,
            Err(why) => Outcome::provider_waits(None, why),
        }
    }

    async fn outcome(&self, answer: &Answer, token: &str) -> Outcome {
        let Refusal { error } = serde_json::from_slice(&answer.body).unwrap_or_default();
        let code = error.details.iter().map(|detail| detail.code.as_str()).find(|code| !code.is_empty());
        let code = code.unwrap_or(&error.status);
        match (answer.status.as_u16(), code) {
            (404, "UNREGISTERED") => Outcome::Unregistered,
            // Of another project: the operator's mistake or the app's, and no reason to forget devices.
            (403, "SENDER_ID_MISMATCH") => Outcome::Rejected(answer.why(code)),
            (404, "NOT_FOUND") => Outcome::provider_waits(None, answer.why(code)),
            (401, _) => {
                let mut known = self.token.lock().await;
                if known.as_ref().is_some_and(|(known, _)| known == token) {
                    *known = None;
                }
                Outcome::provider_waits(None, answer.why(code))
            }
            // The operator's account, or more than the project may send.
            (403 | 429, _) => Outcome::provider_waits(answer.retry_after(), answer.why(code)),
            _ => answer.usual(code),
        }
    }
}

impl Provider for Fcm {
    fn send<'a>(&'a self, notification: &'a Notification) -> Sending<'a> {
        Box::pin(self.post(notification))
    }
}
