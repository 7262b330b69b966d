//! The operator's own gateway: a POST of JSON, signed as Standard Webhooks. What is signed is `id.timestamp.body`, with
//! HMAC-SHA256; libraries that check it exist in every language.
//!
//! The gateway answers 2xx when it took the notification, 410 when it does not know the target any more.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::CONTENT_TYPE;
use hyper::{Request, Uri};
use serde::Serialize;

use crate::http::{Http, address};
use crate::payload::{Payload, hex};
use crate::{Notification, Outcome, Provider, Sending, SetupError};

/// What secrets of Standard Webhooks begin with.
const PREFIX: &str = "whsec_";
/// The shortest secret, in bytes.
const SECRET_BYTES_MIN: usize = 24;

/// See the module.
#[derive(Debug)]
pub struct Webhook {
    http: Http,
    url: Uri,
    key: Signer,
}

/// Signs as Standard Webhooks.
#[derive(Debug)]
pub struct Signer(hmac::Key);

impl Signer {
    /// Of a secret as it is written: `whsec_` and base64 of at least 24 bytes.
    ///
    /// # Errors
    /// When it is not so.
    pub fn new(secret: &str) -> Result<Self, SetupError> {
        let bad = |why: &str| SetupError::Key { what: "the secret of the webhook", why: why.to_owned() };
        let secret = secret.trim();
        let secret = BASE64_STANDARD.decode(secret.strip_prefix(PREFIX).unwrap_or(secret));
        let secret = secret.map_err(|_| bad("it is not base64"))?;
        if secret.len() < SECRET_BYTES_MIN {
            return Err(bad("it has less than 24 bytes"));
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &secret)))
    }

    /// The header `webhook-signature`.
    #[must_use]
    pub fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(format!("{id}.{timestamp}.").as_bytes());
        context.update(body);
        format!("v1,{}", BASE64_STANDARD.encode(context.sign()))
    }
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    target: &'a str,
    user: u64,
    device: u64,
    collapse: String,
    #[serde(flatten)]
    payload: Payload<'a>,
}

impl Webhook {
    /// A gateway at `url`, and the secret that it checks signatures with.
    ///
    /// # Errors
    /// When either is not usable.
    pub fn new(http: Http, url: &str, secret: &str) -> Result<Self, SetupError> {
        Ok(Self { http, url: address(url)?, key: Signer::new(secret)? })
    }

    async fn post(&self, notification: &Notification) -> Outcome {
        let body = Body {
            kind: "longwire.message",
            target: &notification.target,
            user: notification.user,
            device: notification.device,
            collapse: hex(notification.collapse),
            payload: Payload::of(notification),
        };
        let body = Bytes::from(serde_json::to_vec(&body).expect("a struct of numbers and text"));
        let id = format!("msg_{}", hex(notification.id));
        let request = Request::post(&self.url)
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", notification.now)
            .header("webhook-signature", self.key.sign(&id, notification.now, &body))
            .body(Full::new(body))
            .expect("headers of visible ASCII");
        match self.http.send(request).await {
            Ok(answer) if answer.status == 410 => Outcome::Unregistered,
            Ok(answer) => answer.usual(""),
            Err(why) => Outcome::provider_waits(None, why),
        }
    }
}

impl Provider for Webhook {
    fn send<'a>(&'a self, notification: &'a Notification) -> Sending<'a> {
        Box::pin(self.post(notification))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example that the libraries of Standard Webhooks test with.
    #[test]
    fn the_published_example_is_signed_so() {
        let signer = Signer::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a secret");
        let body = br#"{"test": 2432232314}"#;
        let signature = signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_short_secret_is_refused() {
        for secret in ["", "whsec_", "whsec_MfKQ9r8GKYq=", "no base64!"] {
            Signer::new(secret).expect_err(secret);
        }
    }
}
