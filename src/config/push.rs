//! Section `push`: by whom devices that are away are told that something waits for them. Nobody, unless it is written.
//! Keys are files, never values, so that no copy of the configuration holds one.

use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;

/// Section `push`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Push {
    /// What a device has not acked for so long is told.
    pub after: String,
    /// Of one conversation a device is told once in so long.
    pub collapse: String,
    /// What is older is not told any more.
    pub expire: String,
    /// Authorities that providers' certificates may be signed by beside the system's, in PEM.
    pub roots: Option<PathBuf>,
    /// Whether endpoints that users name may lead into private networks: for tests, and where all users are trusted.
    pub private_endpoints: bool,
    /// The operator's own gateway.
    pub webhook: Option<Webhook>,
    /// Browsers and UnifiedPush.
    pub webpush: Option<WebPush>,
    /// Google's.
    pub fcm: Option<Fcm>,
    /// Apple's.
    pub apns: Option<Apns>,
}

impl Default for Push {
    fn default() -> Self {
        Self {
            after: "10s".into(),
            collapse: "1m".into(),
            expire: "1d".into(),
            roots: None,
            private_endpoints: false,
            webhook: None,
            webpush: None,
            fcm: None,
            apns: None,
        }
    }
}

/// Section `push.webhook`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// Where notifications are posted.
    pub url: String,
    /// The file of the secret they are signed with, as Standard Webhooks writes it: `whsec_` and base64.
    pub secret: PathBuf,
}

/// Section `push.webpush`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebPush {
    /// The file of the P-256 key, in PEM (PKCS #8).
    pub key: PathBuf,
    /// Whom endpoints may ask: `mailto:` or `https:`.
    pub subject: String,
}

/// Section `push.fcm`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fcm {
    /// The file of the service account, in JSON.
    pub account: PathBuf,
    /// Where it is, if not at Google.
    pub host: Option<String>,
}

/// Section `push.apns`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Apns {
    /// The file of the key (`.p8`).
    pub key: PathBuf,
    /// Its id.
    pub key_id: String,
    /// The id of the team.
    pub team_id: String,
    /// The bundle id of the app.
    pub topic: String,
    /// Where it is, if not at Apple: such as `https://api.sandbox.push.apple.com`.
    pub host: Option<String>,
}

/// When devices are told, in milliseconds, and by whom.
#[derive(Clone, Debug)]
pub struct Told {
    /// See [`Push::after`].
    pub after_ms: u64,
    /// See [`Push::collapse`].
    pub collapse_ms: u64,
    /// See [`Push::expire`].
    pub expire_ms: u64,
    /// By whom.
    pub by: Push,
}

impl Push {
    /// Checks it; nothing where no provider is named.
    ///
    /// # Errors
    /// What is wrong.
    pub(super) fn resolve(self) -> Result<Option<Told>, ConfigError> {
        let ms = |key, value: &str, least: u64| {
            let expected = "a time of at least 1s, such as 10s, 1m or 1d";
            let time = humantime::parse_duration(value).ok().map(|time| time.as_millis() as u64);
            let wrong = || ConfigError::Value { key, value: value.into(), expected };
            time.filter(|time| *time >= least && *time <= 30 * 86_400_000).ok_or_else(wrong)
        };
        let after_ms = ms("push.after", &self.after, 1_000)?;
        let collapse_ms = ms("push.collapse", &self.collapse, 1_000)?;
        let expire_ms = ms("push.expire", &self.expire, 1_000)?;
        if expire_ms <= after_ms {
            let expected = "longer than push.after";
            return Err(ConfigError::Value { key: "push.expire", value: self.expire, expected });
        }
        let is_any = self.webhook.is_some() || self.webpush.is_some() || self.fcm.is_some() || self.apns.is_some();
        if is_any && !cfg!(feature = "push") {
            let (value, expected) = ("a provider".into(), "in this build, which was made without the feature `push`");
            return Err(ConfigError::Value { key: "push", value, expected });
        }
        Ok(is_any.then_some(Told { after_ms, collapse_ms, expire_ms, by: self }))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{ConfigError, Settings, parse};

    fn written(text: &str) -> Result<Settings, ConfigError> {
        parse(&format!("tls = {{ certificate = 'c', key = 'k' }}\nauth.issuers.me = 'p'\n{text}"))?.resolve()
    }

    #[test]
    fn nobody_is_told_anything_unless_it_is_written() {
        assert!(written("").expect("resolves").push.is_none());
        assert!(written("push.collapse = '5m'").expect("resolves").push.is_none());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("push.after = '10'", "push.after"),
            ("push.collapse = '1ms'", "push.collapse"),
            ("push.expire = '5s'", "longer than push.after"),
            ("push.webhok.url = 'x'", "webhok"),
            ("push.webhook = { url = 'x', secret = 's', key = 'k' }", "key"),
            ("push.apns = { key = 'k' }", "key_id"),
        ] {
            let error = written(text).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_provider_needs_the_feature() {
        let told = written("push.webhook = { url = 'https://gateway.example', secret = 's' }");
        match cfg!(feature = "push") {
            true => assert_eq!(told.expect("resolves").push.expect("a provider").collapse_ms, 60_000),
            false => assert!(told.expect_err("not in this build").to_string().contains("feature `push`")),
        }
    }
}
