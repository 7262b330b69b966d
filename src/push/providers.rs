//! The providers that an operator configured, made of the files that hold their keys.

use std::path::Path;

use longwire_push::apns::{self, Account, Apns};
use longwire_push::fcm::{self, Fcm};
use longwire_push::http::{Http, Reach};
use longwire_push::webhook::Webhook;
use longwire_push::webpush::WebPush;

use crate::config::push::Push;
use crate::routing::push::Provider;

/// By whom devices can be told.
#[derive(Default)]
pub struct Providers(pub(super) Vec<(Provider, Box<dyn longwire_push::Provider>)>);

impl Providers {
    /// Those of the configuration.
    ///
    /// # Errors
    /// Which file cannot be read or used, and why.
    pub fn of(written: &Push) -> Result<Self, String> {
        let roots = written.roots.as_deref().map(read).transpose()?;
        let http = |reach| {
            let http = match written.private_endpoints {
                true => Http::anywhere(reach, roots.as_deref()),
                false => Http::new(reach, roots.as_deref()),
            };
            http.map_err(|error| error.to_string())
        };
        let mut all = Self::default();
        if let Some(webhook) = &written.webhook {
            let secret = String::from_utf8(read(&webhook.secret)?).map_err(|error| error.to_string())?;
            let made = Webhook::new(http(Reach::Operator)?, &webhook.url, &secret);
            all.add(Provider::Webhook, made.map_err(|error| error.to_string())?);
        }
        if let Some(webpush) = &written.webpush {
            let key = read(&webpush.key)?;
            let made = WebPush::new(http(Reach::Public)?, &key, &webpush.subject, written.private_endpoints);
            let made = made.map_err(|error| error.to_string())?;
            tracing::info!(key = made.public(), "clients subscribe to Web Push with this key");
            all.add(Provider::WebPush, made);
        }
        if let Some(written) = &written.fcm {
            let host = written.host.as_deref().unwrap_or(fcm::HOST);
            let made = Fcm::new(http(Reach::Operator)?, host, &read(&written.account)?);
            all.add(Provider::Fcm, made.map_err(|error| error.to_string())?);
        }
        if let Some(written) = &written.apns {
            let host = written.host.as_deref().unwrap_or(apns::HOST);
            let account = Account {
                key_id: written.key_id.clone(),
                team_id: written.team_id.clone(),
                topic: written.topic.clone(),
            };
            let made = Apns::new(http(Reach::OperatorHttp2)?, host, account, &read(&written.key)?);
            all.add(Provider::Apns, made.map_err(|error| error.to_string())?);
        }
        Ok(all)
    }

    fn add(&mut self, name: Provider, provider: impl longwire_push::Provider + 'static) {
        self.0.push((name, Box::new(provider)));
    }

    /// Their names.
    #[must_use]
    pub fn names(&self) -> Vec<Provider> {
        self.0.iter().map(|(name, _)| *name).collect()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::push;

    /// Everything that can be configured, of files in a folder.
    fn written(folder: &Path) -> Push {
        let file = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        let ec = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key").serialize_pem();
        let rsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("a key").serialize_pem();
        let account = serde_json::json!({
            "project_id": "chat", "private_key": rsa, "client_email": "push@chat.example",
            "token_uri": "https://oauth2.example.com/token",
        });
        let roots = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate").cert.pem();
        Push {
            roots: Some(file("roots.pem", &roots)),
            webhook: Some(push::Webhook {
                url: "https://gateway.example.com/".into(),
                secret: file("secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n"),
            }),
            webpush: Some(push::WebPush { key: file("webpush.pem", &ec), subject: "mailto:ops@example.com".into() }),
            fcm: Some(push::Fcm { account: file("firebase.json", &account.to_string()), host: None }),
            apns: Some(push::Apns {
                key: file("apns.p8", &ec),
                key_id: "KEY".into(),
                team_id: "TEAM".into(),
                topic: "com.example.chat".into(),
                host: None,
            }),
            ..Push::default()
        }
    }

    #[test]
    fn all_four_are_made_of_their_files_and_what_is_wrong_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let written = written(folder.path());
        let made = Providers::of(&written).expect("made").names();
        assert!(made.len() == Provider::ALL.len() && Provider::ALL.iter().all(|name| made.contains(name)));
        for (file, part) in [
            ("secret", "the secret of the webhook"),
            ("webpush.pem", "the key of Web Push"),
            ("firebase.json", "the service account of FCM"),
            ("apns.p8", "the key of APNs"),
            ("roots.pem", "roots"),
        ] {
            let path = folder.path().join(file);
            let before = std::fs::read(&path).expect("read");
            std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n").expect("written");
            let error = Providers::of(&written).err().expect("it is not usable");
            assert!(error.contains(part), "{file}: {error}");
            std::fs::remove_file(&path).expect("removed");
            let error = Providers::of(&written).err().expect("it is not there");
            assert!(error.contains(file), "{file}: {error}");
            std::fs::write(&path, before).expect("written");
        }
        assert!(Providers::of(&written).is_ok());
    }
}
