//! Each provider against a server of this machine that checks what the real one checks (keys, tokens, headers, and that
//! only the device can read the body) and answers with every status that the real one documents.

mod server;

use std::time::Duration;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{ECDH_P256, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::encoding::{AsBigEndian as _, EcPublicKeyUncompressedBin};
use aws_lc_rs::hkdf;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use hyper::Version;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use longwire_push::apns::{Account, Apns};
use longwire_push::fcm::Fcm;
use longwire_push::http::{Http, Reach};
use longwire_push::webhook::{Signer, Webhook};
use longwire_push::webpush::WebPush;
use longwire_push::{Notification, Outcome, Provider};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};
use serde_json::{Value, json};
use server::{Seen, Server};
use tokio::net::TcpListener;

impl Seen {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("a header {name}: {self:?}")).to_str().expect("ASCII")
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

impl Server {
    fn http(&self, reach: Reach) -> Http {
        Http::anywhere(reach, Some(self.roots.as_bytes())).expect("a client")
    }

    fn one(&self) -> Seen {
        let mut seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:#?}");
        seen.remove(0)
    }
}

fn notification(target: &str) -> Notification {
    Notification {
        id: 0x0123_4567_89ab_cdef_0011_2233_4455_6677,
        collapse: 0xc0ffee,
        target: target.to_owned(),
        user: 4_097,
        device: 8_193,
        conversation: 9,
        seq: 17,
        badge: 3,
        lives: Duration::from_secs(600),
        now: now(),
        ..Notification::default()
    }
}

/// Tokens are checked against the machine's clock.
fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs()
}

fn with_names(target: &str) -> Notification {
    Notification {
        names: Some(("ann".into(), "the team".into())),
        content: Some(Bytes::from_static(b"hello")),
        ..notification(target)
    }
}

/// What came of it, without the words.
#[derive(Debug, PartialEq, Eq)]
enum Came {
    Delivered,
    Unregistered,
    Waits(&'static str, Option<u64>),
    Rejected,
}

fn came(outcome: Outcome) -> Came {
    match outcome {
        Outcome::Delivered => Came::Delivered,
        Outcome::Unregistered => Came::Unregistered,
        Outcome::Retry { after, is_provider, .. } => {
            Came::Waits(if is_provider { "provider" } else { "device" }, after.map(|after| after.as_secs()))
        }
        Outcome::Rejected(_) => Came::Rejected,
    }
}

const AFTER: Option<(&str, &str)> = Some(("retry-after", "7"));

#[tokio::test]
async fn a_webhook_is_signed_and_its_answers_are_heeded() {
    let (server, secret) = (Server::new().await, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    let webhook = Webhook::new(server.http(Reach::Operator), &format!("{}/push", server.url), secret).expect("made");
    let table = [
        (200, None, Came::Delivered),
        (204, None, Came::Delivered),
        (302, Some(("location", "/elsewhere")), Came::Rejected),
        (400, None, Came::Rejected),
        (401, None, Came::Rejected),
        (404, None, Came::Rejected),
        (408, None, Came::Waits("device", None)),
        (410, None, Came::Unregistered),
        (429, AFTER, Came::Waits("device", Some(7))),
        (429, Some(("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT")), Came::Waits("device", None)),
        (429, Some(("retry-after", "99999999999")), Came::Waits("device", Some(86_400))),
        (500, None, Came::Waits("provider", None)),
        (502, None, Came::Waits("provider", None)),
        (503, AFTER, Came::Waits("provider", Some(7))),
        (504, None, Came::Waits("provider", None)),
    ];
    for (status, header, expected) in table {
        server.say(&[("/push", status, header, Value::Null)]);
        assert_eq!(came(webhook.send(&with_names("t")).await), expected, "{status}");
        // No redirect was followed.
        let seen = server.one();
        let signed = Signer::new(secret).expect("a secret");
        let (id, timestamp) = (seen.header("webhook-id"), seen.header("webhook-timestamp").parse().expect("a number"));
        assert_eq!(seen.header("webhook-signature"), signed.sign(id, timestamp, &seen.body));
        assert_eq!(id, "msg_0123456789abcdef0011223344556677");
        assert_eq!(
            seen.json(),
            json!({
                "type": "longwire.message", "target": "t", "user": 4_097, "device": 8_193,
                "collapse": "00000000000000000000000000c0ffee", "conversation": 9, "seq": 17, "badge": 3,
                "sender": "ann", "label": "the team", "content": "aGVsbG8=",
            })
        );
    }
    server.say(&[("/push", 200, None, json!("x".repeat(1 << 20)))]);
    assert_eq!(came(webhook.send(&notification("t")).await), Came::Delivered, "a long answer is not read");
}

#[tokio::test]
async fn nobody_there_is_trouble_of_the_provider() {
    let free = TcpListener::bind(("127.0.0.1", 0)).await.and_then(|listener| listener.local_addr()).expect("a port");
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let http = Http::new(Reach::Operator, None).expect("a client");
    let webhook = Webhook::new(http, &format!("http://{free}/"), secret).expect("made");
    assert_eq!(came(webhook.send(&notification("t")).await), Came::Waits("provider", None));

    // Who cannot show that it is the one that is meant is nobody, either.
    let server = Server::new().await;
    let http = Http::new(Reach::Operator, None).expect("a client");
    let webhook = Webhook::new(http, &server.url, secret).expect("made");
    assert_eq!(came(webhook.send(&notification("t")).await), Came::Waits("provider", None));
    assert!(server.seen().is_empty());
}

fn claims(token: &str, key: &DecodingKey, algorithm: Algorithm) -> Value {
    let mut validation = Validation::new(algorithm);
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    jsonwebtoken::decode::<Value>(token, key, &validation).expect("it is the broker's").claims
}

#[tokio::test]
async fn apns_is_spoken_to_as_apple_wants_it() {
    let server = Server::new().await;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let public = DecodingKey::from_ec_pem(key.public_key_pem().as_bytes()).expect("a key");
    let account = Account { key_id: "KEY".into(), team_id: "TEAM".into(), topic: "com.example.chat".into() };
    let http = server.http(Reach::OperatorHttp2);
    let apns = Apns::new(http, &server.url, account, key.serialize_pem().as_bytes()).expect("made");
    let reason = |reason: &str| json!({ "reason": reason });
    let rejected = |status, why: &str| (status, reason(why), Came::Rejected);
    let waits = |status, why: &str| (status, reason(why), Came::Waits("provider", None));
    // The table of Apple's documentation.
    for (status, said, expected) in [
        (200, Value::Null, Came::Delivered),
        rejected(400, "BadCollapseId"),
        rejected(400, "BadDeviceToken"),
        rejected(400, "BadExpirationDate"),
        rejected(400, "BadMessageId"),
        rejected(400, "BadPriority"),
        rejected(400, "BadTopic"),
        rejected(400, "DeviceTokenNotForTopic"),
        rejected(400, "DuplicateHeaders"),
        rejected(400, "IdleTimeout"),
        rejected(400, "InvalidPushType"),
        rejected(400, "MissingDeviceToken"),
        rejected(400, "MissingTopic"),
        rejected(400, "PayloadEmpty"),
        rejected(400, "TopicDisallowed"),
        waits(403, "BadCertificate"),
        waits(403, "BadCertificateEnvironment"),
        waits(403, "ExpiredProviderToken"),
        waits(403, "Forbidden"),
        waits(403, "InvalidProviderToken"),
        waits(403, "MissingProviderToken"),
        rejected(404, "BadPath"),
        rejected(405, "MethodNotAllowed"),
        (410, reason("ExpiredToken"), Came::Unregistered),
        (410, reason("Unregistered"), Came::Unregistered),
        rejected(413, "PayloadTooLarge"),
        waits(429, "TooManyProviderTokenUpdates"),
        (429, reason("TooManyRequests"), Came::Waits("device", None)),
        waits(500, "InternalServerError"),
        waits(503, "ServiceUnavailable"),
        waits(503, "Shutdown"),
    ] {
        server.say(&[("/3/device/abc123", status, None, said.clone())]);
        assert_eq!(came(apns.send(&with_names("abc123")).await), expected, "{status} {said}");
        let seen = server.one();
        assert_eq!((seen.version, seen.path.as_str()), (Version::HTTP_2, "/3/device/abc123"));
        let token = seen.header("authorization").strip_prefix("bearer ").expect("a bearer");
        let said = claims(token, &public, Algorithm::ES256);
        assert_eq!(said["iss"], "TEAM");
        assert!(said["iat"].as_u64().is_some_and(|at| at <= now() && now() - at < 3_600), "{said}");
        assert_eq!(jsonwebtoken::decode_header(token).expect("a header").kid.as_deref(), Some("KEY"));
        assert_eq!(seen.header("apns-topic"), "com.example.chat");
        assert_eq!((seen.header("apns-push-type"), seen.header("apns-priority")), ("alert", "10"));
        assert_eq!(seen.header("apns-id"), "01234567-89ab-cdef-0011-223344556677");
        assert_eq!(seen.header("apns-collapse-id"), "00000000000000000000000000c0ffee");
        assert!(seen.header("apns-expiration").parse::<u64>().expect("a time") > now());
        let body = seen.json();
        assert_eq!(body["aps"]["badge"], 3);
        let alert = json!({ "loc-key": "LONGWIRE_MESSAGE_FROM", "loc-args": ["ann", "the team"] });
        assert_eq!(body["aps"]["alert"], alert);
        assert_eq!(body["longwire"], json!({ "conversation": 9, "seq": 17, "content": "aGVsbG8=" }));
    }
    assert_eq!(came(apns.send(&notification("../../elsewhere")).await), Came::Rejected);
    assert!(server.seen().is_empty(), "no target is a path");

    // One token is used for long, and a new one made when Apple says that it is old, or its time is over.
    server.say(&[("/3/device/abc123", 200, None, Value::Null)]);
    let at = async |at: u64| {
        let _ = apns.send(&Notification { now: at, ..notification("abc123") }).await;
        server.one().header("authorization").to_owned()
    };
    let first = at(now()).await;
    assert_eq!(at(now() + 40 * 60).await, first);
    assert_ne!(at(now() + 51 * 60).await, first);
}

#[tokio::test]
async fn fcm_is_spoken_to_as_google_wants_it() {
    let server = Server::new().await;
    let key = KeyPair::generate_for(&PKCS_RSA_SHA256).expect("a key");
    let public = DecodingKey::from_rsa_pem(key.public_key_pem().as_bytes()).expect("a key");
    let account = json!({
        "type": "service_account", "project_id": "chat", "private_key_id": "KEY", "private_key": key.serialize_pem(),
        "client_email": "push@chat.example", "token_uri": format!("{}/token", server.url),
    });
    let fcm = Fcm::new(server.http(Reach::Operator), &server.url, account.to_string().as_bytes()).expect("made");
    let token = ("/token", 200, None, json!({ "access_token": "t0ken", "expires_in": 3_600, "token_type": "Bearer" }));
    let error = |code: u16, status: &str, fcm: &str| {
        let kind = "type.googleapis.com/google.firebase.fcm.v1.FcmError";
        let details = if fcm.is_empty() { json!([]) } else { json!([{ "@type": kind, "errorCode": fcm }]) };
        json!({ "error": { "code": code, "status": status, "message": "m", "details": details } })
    };
    // The table of Google's documentation, and what stands in front of it.
    for (status, header, said, expected) in [
        (200, None, json!({ "name": "projects/chat/messages/1" }), Came::Delivered),
        (400, None, error(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT"), Came::Rejected),
        (401, None, error(401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR"), Came::Waits("provider", None)),
        (401, None, error(401, "UNAUTHENTICATED", ""), Came::Waits("provider", None)),
        (403, None, error(403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH"), Came::Rejected),
        (403, None, error(403, "PERMISSION_DENIED", ""), Came::Waits("provider", None)),
        (404, None, error(404, "NOT_FOUND", "UNREGISTERED"), Came::Unregistered),
        (404, None, error(404, "NOT_FOUND", ""), Came::Waits("provider", None)),
        (404, None, json!("a page of another server"), Came::Rejected),
        (429, AFTER, error(429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"), Came::Waits("provider", Some(7))),
        (500, None, error(500, "INTERNAL", "INTERNAL"), Came::Waits("provider", None)),
        (503, AFTER, error(503, "UNAVAILABLE", "UNAVAILABLE"), Came::Waits("provider", Some(7))),
    ] {
        server.say(&[token.clone(), ("/v1/projects/chat/messages:send", status, header, said.clone())]);
        assert_eq!(came(fcm.send(&with_names("device-token")).await), expected, "{status} {said}");
        let mut seen = server.seen();
        let sent = seen.pop().expect("a message");
        assert_eq!(sent.header("authorization"), "Bearer t0ken");
        let message = &sent.json()["message"];
        assert_eq!(message["token"], "device-token");
        let data = json!({
            "conversation": "9", "seq": "17", "badge": "3", "sender": "ann", "label": "the team", "content": "aGVsbG8=",
            "id": "0123456789abcdef0011223344556677",
        });
        assert_eq!(message["data"], data);
        let android = json!({ "collapse_key": "00000000000000000000000000c0ffee", "priority": "high", "ttl": "600s" });
        assert_eq!(message["android"], android);
        // A token is fetched for the first message, and after one that was not good.
        for question in seen {
            let text = std::str::from_utf8(&question.body).expect("a form");
            let grant = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=";
            let said = claims(text.strip_prefix(grant).expect("an assertion"), &public, Algorithm::RS256);
            assert_eq!((&said["iss"], &said["aud"]), (&account["client_email"], &account["token_uri"]));
            assert_eq!(said["scope"], "https://www.googleapis.com/auth/firebase.messaging");
        }
    }

    // The first 401 above threw the token away, the second that after it; from then on one is enough.
    server.say(&[token.clone(), ("/v1/", 200, None, json!({}))]);
    fcm.send(&notification("d")).await;
    assert_eq!(server.seen().len(), 1, "the token is kept");
    fcm.send(&Notification { now: now() + 3_550, ..notification("d") }).await;
    assert_eq!(server.seen().len(), 2, "it ends in a minute: another one");
    server.say(&[("/token", 400, None, json!({ "error": "invalid_grant" })), ("/v1/", 200, None, json!({}))]);
    let late = Notification { now: now() + 9_000, ..notification("d") };
    assert_eq!(came(fcm.send(&late).await), Came::Waits("provider", None), "without a token nothing is sent");
    assert_eq!(server.one().path, "/token");
}

/// What the browser does: RFC 8291, from the other side.
fn decrypt(body: &[u8], own: &PrivateKey, secret: &[u8]) -> Vec<u8> {
    let public = own.compute_public_key().expect("a key");
    let public: EcPublicKeyUncompressedBin<'_> = public.as_be_bytes().expect("a point");
    let (salt, rest) = body.split_at(16);
    assert_eq!((&rest[..4], rest[4]), (&4_096u32.to_be_bytes()[..], 65));
    let (theirs, sealed) = rest[5..].split_at(65);
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let derive = |salt: &[u8], input: &[u8], info: &[u8], length: usize| {
        let mut out = vec![0; length];
        let key = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(input);
        key.expand(&[info], Length(length)).and_then(|okm| okm.fill(&mut out)).expect("a key");
        out
    };
    let info = [b"WebPush: info\0".as_slice(), public.as_ref(), theirs].concat();
    let theirs = UnparsedPublicKey::new(&ECDH_P256, theirs);
    let shared = agree(own, theirs, (), |shared| Ok(derive(secret, shared, &info, 32))).expect("agreed");
    let key = derive(salt, &shared, b"Content-Encoding: aes128gcm\0", 16);
    let nonce = derive(salt, &shared, b"Content-Encoding: nonce\0", 12);
    let cipher = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key).expect("a key"));
    let nonce = Nonce::try_assume_unique_for_key(&nonce).expect("12 bytes");
    let mut plain = sealed.to_vec();
    let plain = cipher.open_in_place(nonce, Aad::empty(), &mut plain).expect("it is for this device");
    let (end, plain) = plain.split_last().expect("an end");
    assert_eq!(*end, 2, "the last record");
    plain.to_vec()
}

#[tokio::test]
async fn web_push_is_for_the_device_alone() {
    let server = Server::new().await;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let public = DecodingKey::from_ec_pem(key.public_key_pem().as_bytes()).expect("a key");
    let http = server.http(Reach::Public);
    let made = |is_anywhere| {
        let key = key.serialize_pem();
        WebPush::new(http.clone(), key.as_bytes(), "mailto:ops@example.com", is_anywhere).expect("made")
    };
    let webpush = made(true);
    assert_eq!(webpush.public(), BASE64_URL_SAFE_NO_PAD.encode(key.public_key_raw()));
    let device = PrivateKey::generate(&ECDH_P256).expect("a key");
    let point = device.compute_public_key().expect("a key");
    let point: EcPublicKeyUncompressedBin<'_> = point.as_be_bytes().expect("a point");
    let subscribed = |of: Notification| Notification {
        target: format!("{}/send/abc", server.url),
        key: point.as_ref().to_vec(),
        secret: vec![7; 16],
        ..of
    };
    for (status, header, expected) in [
        (200, None, Came::Delivered),
        (201, None, Came::Delivered),
        (202, None, Came::Delivered),
        (301, Some(("location", "https://example.com/")), Came::Rejected),
        (307, Some(("location", "https://example.com/")), Came::Rejected),
        (400, None, Came::Rejected),
        (401, None, Came::Rejected),
        (403, None, Came::Rejected),
        (404, None, Came::Unregistered),
        (410, None, Came::Unregistered),
        (413, None, Came::Rejected),
        (429, AFTER, Came::Waits("device", Some(7))),
        (500, None, Came::Waits("device", None)),
        (503, AFTER, Came::Waits("device", Some(7))),
    ] {
        server.say(&[("/send/abc", status, header, Value::Null)]);
        assert_eq!(came(webpush.send(&subscribed(with_names(""))).await), expected, "{status}");
        let seen = server.one();
        assert_eq!((seen.header("content-encoding"), seen.header("ttl")), ("aes128gcm", "600"));
        assert_eq!((seen.header("topic").len(), seen.header("urgency")), (32, "high"));
        let (token, own) = seen.header("authorization").split_once(", k=").expect("a key");
        assert_eq!(own, webpush.public());
        let said = claims(token.strip_prefix("vapid t=").expect("a token"), &public, Algorithm::ES256);
        assert_eq!((&said["aud"], &said["sub"]), (&json!(server.url), &json!("mailto:ops@example.com")));
        assert!(said["exp"].as_u64().is_some_and(|end| end > now() && end <= now() + 86_400), "{said}");
        let body: Value = serde_json::from_slice(&decrypt(&seen.body, &device, &[7; 16])).expect("JSON");
        let expected = json!({
            "conversation": 9, "seq": 17, "badge": 3, "sender": "ann", "label": "the team", "content": "aGVsbG8=",
        });
        assert_eq!(body, expected);
        assert!(!seen.body.windows(3).any(|three| three == b"ann"), "nobody on the way reads it");
    }
    // What would be too large for an endpoint goes without its content.
    server.say(&[("/send/abc", 201, None, Value::Null)]);
    let large = Notification { content: Some(vec![b'x'; 4_000].into()), ..with_names("") };
    assert_eq!(came(webpush.send(&subscribed(large)).await), Came::Delivered);
    assert!(server.one().body.len() <= 4_096);
    let no_key = Notification { key: vec![4; 65], ..subscribed(notification("")) };
    assert_eq!(came(webpush.send(&no_key).await), Came::Rejected);

    // Nothing is sent into a private network: neither to its literal nor to a name that leads there.
    let strict = made(false);
    for target in ["https://127.0.0.1/x", "https://[::1]/x", "https://10.0.0.1/x", "http://example.com/x"] {
        let inside = Notification { target: target.into(), ..subscribed(notification("")) };
        assert_eq!(came(strict.send(&inside).await), Came::Rejected, "{target}");
    }
    let guarded = Http::new(Reach::Public, Some(server.roots.as_bytes())).expect("a client");
    let guarded = WebPush::new(guarded, key.serialize_pem().as_bytes(), "mailto:ops@example.com", false).expect("made");
    assert_eq!(came(guarded.send(&subscribed(notification(""))).await), Came::Waits("device", None));
    assert!(server.seen().is_empty(), "localhost is not reached");
}
