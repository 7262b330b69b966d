//! Web Push: browsers and UnifiedPush. The endpoint is a URL that the user's device brought (RFC 8030), the body is
//! encrypted for that device alone (RFC 8291), and the broker says who it is by a signed token (RFC 8292).

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{ECDH_P256, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::encoding::{AsBigEndian as _, EcPublicKeyUncompressedBin};
use aws_lc_rs::{hkdf, rand, signature};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Serialize;

use crate::http::{Http, endpoint};
use crate::jwt::Key;
use crate::payload::{Payload, hex};
use crate::{Notification, Outcome, Provider, Sending, SetupError};

/// How long the token of the broker is good: a day is the most.
const TOKEN_LIVES_S: u64 = 12 * 3_600;
/// The largest body that every endpoint takes, the 103 bytes of encryption aside.
const PLAIN_BYTES_MAX: usize = 3_900;
/// The size of a record as the header says it; there is one.
const RECORD_BYTES: u32 = 4_096;

/// See the module.
#[derive(Debug)]
pub struct WebPush {
    http: Http,
    key: Key,
    /// The public part of the key, as clients subscribe with it.
    public: String,
    /// Whom to ask about this broker: `mailto:` or `https:`.
    subject: String,
    is_anywhere: bool,
}

#[derive(Serialize)]
struct Claims<'a> {
    aud: String,
    exp: u64,
    sub: &'a str,
}

impl WebPush {
    /// With a P-256 key in PEM (PKCS #8) and a contact. `is_anywhere` is for tests: endpoints may lead to this machine.
    ///
    /// # Errors
    /// When the key is not usable.
    pub fn new(http: Http, key: &[u8], subject: &str, is_anywhere: bool) -> Result<Self, SetupError> {
        let what = "the key of Web Push";
        let bad = |why: String| SetupError::Key { what, why };
        let der = PrivateKeyDer::from_pem_slice(key).map_err(|error| bad(error.to_string()))?;
        let pair = signature::EcdsaKeyPair::from_private_key_der(
            &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
            der.secret_der(),
        );
        let pair = pair.map_err(|error| bad(error.to_string()))?;
        let public = BASE64_URL_SAFE_NO_PAD.encode(signature::KeyPair::public_key(&pair));
        Ok(Self { http, key: Key::p256(key, None, what)?, public, subject: subject.to_owned(), is_anywhere })
    }

    /// The key that clients subscribe with (`applicationServerKey`).
    #[must_use]
    pub fn public(&self) -> &str {
        &self.public
    }

    async fn post(&self, notification: &Notification) -> Outcome {
        let url = match endpoint(&notification.target, self.is_anywhere) {
            Ok(url) => url,
            Err(why) => return Outcome::Rejected(why.to_owned()),
        };
        let mut plain = serde_json::to_vec(&Payload::of(notification)).expect("a struct of numbers and text");
        if plain.len() > PLAIN_BYTES_MAX {
            let bare = Notification { content: None, ..notification.clone() };
            plain = serde_json::to_vec(&Payload::of(&bare)).expect("a struct of numbers and text");
        }
        let Some(body) = encrypt(&plain, &notification.key, &notification.secret) else {
            return Outcome::Rejected("the key of the subscription is no point of P-256".to_owned());
        };
        let authority = url.authority().map_or("", |authority| authority.as_str());
        let claims =
            Claims { aud: format!("https://{authority}"), exp: notification.now + TOKEN_LIVES_S, sub: &self.subject };
        let token = match self.key.sign(&claims) {
            Ok(token) => token,
            Err(why) => return Outcome::provider_waits(None, why),
        };
        let request = Request::post(&url)
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_ENCODING, "aes128gcm")
            .header(AUTHORIZATION, format!("vapid t={token}, k={}", self.public))
            .header("ttl", notification.lives.as_secs())
            .header("urgency", "high")
            // At most 32 characters of this alphabet.
            .header("topic", hex(notification.collapse))
            .body(Full::new(Bytes::from(body)))
            .expect("headers of visible ASCII");
        match self.http.send(request).await {
            Ok(answer) => match answer.status.as_u16() {
                404 | 410 => Outcome::Unregistered,
                // Another endpoint is another server.
                500..=599 => Outcome::device_waits(answer.retry_after(), answer.why("")),
                _ => answer.usual(""),
            },
            Err(why) => Outcome::device_waits(None, why),
        }
    }
}

impl Provider for WebPush {
    fn send<'a>(&'a self, notification: &'a Notification) -> Sending<'a> {
        Box::pin(self.post(notification))
    }
}

/// Encrypts for a subscription; `None` where its key is none.
fn encrypt(plain: &[u8], key: &[u8], secret: &[u8]) -> Option<Vec<u8>> {
    let own = PrivateKey::generate(&ECDH_P256).ok()?;
    let mut salt = [0; 16];
    rand::fill(&mut salt).ok()?;
    encrypt_with(plain, key, secret, &own, salt)
}

fn encrypt_with(plain: &[u8], key: &[u8], secret: &[u8], own: &PrivateKey, salt: [u8; 16]) -> Option<Vec<u8>> {
    let public = own.compute_public_key().ok()?;
    let public: EcPublicKeyUncompressedBin<'_> = public.as_be_bytes().ok()?;
    let public = public.as_ref();
    let info = [b"WebPush: info\0".as_slice(), key, public].concat();
    let shared =
        agree(own, UnparsedPublicKey::new(&ECDH_P256, key), (), |shared| derive::<32>(secret, shared, &info).ok_or(()));
    let shared = shared.ok()?;
    let content_key = derive::<16>(&salt, &shared, b"Content-Encoding: aes128gcm\0")?;
    let nonce = derive::<12>(&salt, &shared, b"Content-Encoding: nonce\0")?;
    let mut sealed = plain.to_vec();
    // The last record ends with this byte.
    sealed.push(2);
    let cipher = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &content_key).ok()?);
    cipher.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut sealed).ok()?;
    let mut body = Vec::with_capacity(86 + sealed.len());
    body.extend_from_slice(&salt);
    body.extend_from_slice(&RECORD_BYTES.to_be_bytes());
    body.push(public.len() as u8);
    body.extend_from_slice(public);
    body.extend_from_slice(&sealed);
    Some(body)
}

/// HKDF with SHA-256.
fn derive<const N: usize>(salt: &[u8], input: &[u8], info: &[u8]) -> Option<[u8; N]> {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let mut out = [0; N];
    let key = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(input);
    key.expand(&[info], Length(N)).ok()?.fill(&mut out).ok()?;
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8291, section 5 and appendix A.
    #[test]
    fn the_example_of_the_rfc_is_encrypted_so() {
        let decode = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).expect("base64");
        let own = decode("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw");
        let own = PrivateKey::from_private_key(&ECDH_P256, &own).expect("a key");
        let key = decode("BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4");
        let secret = decode("BTBZMqHH6r4Tts7J_aSIgg");
        let salt = decode("DGv6ra1nlYgDCS1FRnbzlw").try_into().expect("16 bytes");
        let body = encrypt_with(b"When I grow up, I want to be a watermelon", &key, &secret, &own, salt);
        let expected = "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6Tlz\
                        AC8wEqKK6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN";
        assert_eq!(BASE64_URL_SAFE_NO_PAD.encode(body.expect("encrypts")), expected);
    }

    #[test]
    fn what_is_no_point_of_the_curve_is_no_key() {
        assert_eq!(encrypt(b"x", &[4; 65], &[0; 16]), None);
        assert_eq!(encrypt(b"x", b"", &[0; 16]), None);
    }
}
