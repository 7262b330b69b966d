//! APNs, FCM and Web Push through the whole broker, as an operator configures them, against a server of this machine that
//! stands for all three (what each says in detail: `push/tests/providers.rs`; the webhook: `push.rs`).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aws_lc_rs::agreement::{ECDH_P256, PrivateKey};
use aws_lc_rs::encoding::{AsBigEndian as _, EcPublicKeyUncompressedBin};
use hyper::Version;
use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, SetPush};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use crate::process::{Process, Setup, let_in};
use crate::push_server::{Seen, Server};
use crate::world::{PATIENCE, Wire};

/// The three of them, and how to tell whose device a request is for.
const PROVIDERS: [&str; 3] = ["apns", "fcm", "webpush"];

/// A broker that tells of what is not acked for a second; of APNs at this place.
fn broker(server: &Server, apns: &str) -> Process {
    let mut process = Process::prepared(Setup::default());
    let file = |name: &str, text: &str| {
        let path = process.folder().join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let key = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key").serialize_pem();
    let account = json!({
        "type": "service_account", "project_id": "chat", "private_key_id": "KEY",
        "private_key": KeyPair::generate_for(&PKCS_RSA_SHA256).expect("a key").serialize_pem(),
        "client_email": "push@chat.example", "token_uri": format!("{}/token", server.url),
    });
    let (roots, account) = (file("roots.pem", &server.roots), file("account.json", &account.to_string()));
    let (p8, vapid) = (file("apns.p8", &key()), file("vapid.pem", &key()));
    let config = format!(
        "[push]\nafter = '1s'\ncollapse = '1h'\nroots = '{roots}'\nprivate_endpoints = true\n\
         apns = {{ key = '{p8}', key_id = 'KEY', team_id = 'TEAM', topic = 'com.example.chat', host = '{apns}' }}\n\
         fcm = {{ account = '{account}', host = '{}' }}\n\
         webpush = {{ key = '{vapid}', subject = 'mailto:ops@example.com' }}\n",
        server.url
    );
    process.setup.config = config;
    process.start();
    process
}

/// The server takes everything.
fn take_all(server: &Server) {
    let token = json!({ "access_token": "t0ken", "expires_in": 3_600, "token_type": "Bearer" });
    server.say(&[
        ("/3/device/", 200, None, Value::Null),
        ("/token", 200, None, token),
        ("/v1/projects/chat/messages:send", 200, None, json!({ "name": "projects/chat/messages/1" })),
        ("/send/", 201, None, Value::Null),
    ]);
}

/// A registration of a device of this name.
fn registration(server: &Server, provider: &str, name: &str) -> SetPush {
    let set = SetPush { provider: provider.into(), target: name.into(), ..SetPush::default() };
    if provider != "webpush" {
        return set;
    }
    let device = PrivateKey::generate(&ECDH_P256).expect("a key").compute_public_key().expect("a key");
    let point: EcPublicKeyUncompressedBin<'_> = device.as_be_bytes().expect("a point");
    let key = point.as_ref().to_vec().into();
    SetPush { target: format!("{}/send/{name}", server.url), key, secret: vec![7; 16].into(), ..set }
}

/// By whom a device of which name is told, as the request says.
fn told(seen: &Seen) -> Option<(&'static str, String)> {
    if let Some(name) = seen.path.strip_prefix("/3/device/") {
        assert_eq!((seen.version, seen.headers["apns-topic"].as_bytes()), (Version::HTTP_2, &b"com.example.chat"[..]));
        return Some(("apns", name.into()));
    }
    if let Some(name) = seen.path.strip_prefix("/send/") {
        return Some(("webpush", name.into()));
    }
    let message: Value = serde_json::from_slice(&seen.body).ok()?;
    Some(("fcm", message["message"]["token"].as_str()?.into()))
}

/// How often each device was told, so far.
#[derive(Default)]
struct Tally(BTreeMap<(&'static str, String), usize>);

impl Tally {
    fn count(&mut self, server: &Server) {
        for seen in server.seen() {
            told(&seen).into_iter().for_each(|who| *self.0.entry(who).or_default() += 1);
        }
    }

    /// Waits until all of these were told.
    async fn until(&mut self, server: &Server, devices: &[(&'static str, String)]) {
        let begun = Instant::now();
        while devices.iter().any(|device| !self.0.contains_key(device)) {
            assert!(begun.elapsed() < PATIENCE, "{devices:?} are told: {:?}", self.0);
            sleep(Duration::from_millis(20)).await;
            self.count(server);
        }
    }
}

/// Comes, and has itself told.
async fn come(process: &Process, server: &Server, provider: &str, name: &str) -> Wire {
    let mut wire = let_in(process.port, &process.connect(name, "phone")).await;
    wire.caught_up().await;
    wire.act(0, Action::SetPush(registration(server, provider, name))).await.expect("set");
    wire
}

/// SPEC R17-2, R17-3, R17-5, R17-8: by each provider a device that is away is told once of several messages, and one that
/// acks is not told.
#[tokio::test]
async fn each_provider_tells_once_and_nothing_of_what_was_acked() {
    let server = Server::new().await;
    take_all(&server);
    let process = broker(&server, &server.url);
    let mut ann = let_in(process.port, &process.connect("ann", "phone")).await;
    for provider in PROVIDERS {
        let feature = format!("push-{provider}");
        assert!(ann.connected.features.contains(&feature), "{feature}: {:?}", ann.connected.features);
        drop(come(&process, &server, provider, &format!("{provider}0away")).await);
        let mut there = come(&process, &server, provider, &format!("{provider}0there")).await;
        let names = [format!("{provider}0away"), format!("{provider}0there")];
        let group = ann.create_group(provider, &names.each_ref().map(String::as_str)).await;
        for text in ["one", "two", "three"] {
            ann.say(group, text).await;
        }
        let is_third = |item: &packet::Item| crate::world::entry(item).is_some_and(|entry| entry.content == "three");
        there.until(is_third).await;
        there.flush().await;
        // It stays until what it acked is surely known.
        ann.open_direct(&names[1]).await;
        drop(there);
    }
    let away: Vec<_> = PROVIDERS.map(|provider| (provider, format!("{provider}0away"))).into();
    let mut tally = Tally::default();
    tally.until(&server, &away).await;
    // What is said after all this is told after all this.
    drop(come(&process, &server, "fcm", "fence").await);
    let fence = ann.open_direct("fence").await;
    ann.say(fence, "fence").await;
    let mut all = away;
    all.push(("fcm", "fence".into()));
    tally.until(&server, &all).await;
    assert_eq!(tally.0, all.into_iter().map(|device| (device, 1)).collect::<BTreeMap<_, _>>());
}

/// R17-7: a provider that takes connections and says nothing holds up neither those who publish nor the other providers.
#[tokio::test]
async fn a_dead_provider_holds_up_no_other() {
    let server = Server::new().await;
    take_all(&server);
    let dead = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let process = broker(&server, &format!("https://localhost:{}", dead.local_addr().expect("an address").port()));
    let mut ann = let_in(process.port, &process.connect("ann", "phone")).await;
    let mut names = Vec::new();
    // More than are told at once by all providers together.
    for number in 0..40 {
        names.push(format!("dead{number}"));
        drop(come(&process, &server, "apns", &names[number]).await);
    }
    for provider in ["fcm", "webpush"] {
        names.push(format!("{provider}0"));
        drop(come(&process, &server, provider, &format!("{provider}0")).await);
    }
    let group = ann.create_group("all", &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    ann.say(group, "first").await;
    // It is asked, and all that time it says nothing.
    let asked = timeout(PATIENCE, dead.accept()).await.expect("it is asked").expect("a connection");
    let acked = async {
        for number in 0..300 {
            ann.say(group, &number.to_string()).await;
        }
    };
    timeout(PATIENCE, acked).await.expect("acked all the same");
    let mut tally = Tally::default();
    tally.until(&server, &[("fcm", "fcm0".into()), ("webpush", "webpush0".into())]).await;
    assert!(tally.0.values().all(|times| *times == 1), "{:?}", tally.0);
    drop(asked);
}
