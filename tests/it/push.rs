//! SPEC chapter 17 on the real broker, with a gateway that checks signatures: devices that are away are told once of what
//! they have not acked, also where broker and gateway are killed or fail in the middle, and of nothing else.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, Beside, Publish, SetPush, Settings, Shows};
use longwire_protocol::reason::Reason;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use crate::metrics::{free_port, until};
use crate::process::{Process, Setup, let_in};
use crate::scrape::Scrape;
use crate::world::{PATIENCE, Wire};

const SECRET: &[u8; 32] = b"what the gateway and we share...";

/// One notification as the gateway got it, its signature checked.
#[derive(Clone, Debug)]
struct Told {
    id: String,
    body: Value,
}

/// How the gateway answers: what stands first is used up, the last stays.
#[derive(Clone, Debug)]
enum Answer {
    Status(u16),
    /// It takes the notification, and says nothing.
    Silence,
}

/// The operator's own gateway.
#[derive(Clone)]
struct Gateway {
    url: String,
    told: Arc<Mutex<Vec<Told>>>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
}

impl Gateway {
    async fn new() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let url = format!("http://{}/push", listener.local_addr().expect("an address"));
        let gateway = Self { url, told: Arc::default(), answers: Arc::default() };
        gateway.answer(&[Answer::Status(204)]);
        let served = gateway.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(served.clone().serve(socket));
            }
        });
        gateway
    }

    fn answer(&self, answers: &[Answer]) {
        *self.answers.lock().expect("unpoisoned") = answers.iter().cloned().collect();
    }

    async fn serve(self, mut socket: TcpStream) {
        let mut input = Vec::new();
        loop {
            let head = loop {
                if let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") {
                    break end + 4;
                }
                if socket.read_buf(&mut input).await.unwrap_or(0) == 0 {
                    return;
                }
            };
            let text = String::from_utf8(input[..head].to_vec()).expect("a head of ASCII");
            assert!(text.starts_with("POST /push HTTP/1.1\r\n"), "{text}");
            let header = |name: &str| {
                let found = text.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
                found.unwrap_or_else(|| panic!("a header {name}: {text}")).to_owned()
            };
            let length: usize = header("content-length").parse().expect("a number");
            while input.len() < head + length {
                if socket.read_buf(&mut input).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            let body = input[head..head + length].to_vec();
            input.drain(..head + length);
            let (id, timestamp) = (header("webhook-id"), header("webhook-timestamp"));
            let signature = header("webhook-signature");
            let signature = base64(signature.strip_prefix("v1,").expect("version 1"));
            let signed = [format!("{id}.{timestamp}.").as_bytes(), &body].concat();
            let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET);
            hmac::verify(&key, &signed, &signature).expect("it is the broker's");
            let body = serde_json::from_slice(&body).expect("JSON");
            self.told.lock().expect("unpoisoned").push(Told { id, body });
            let answer = {
                let mut answers = self.answers.lock().expect("unpoisoned");
                if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() }
            };
            let Some(Answer::Status(status)) = answer else { std::future::pending().await };
            let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
            if socket.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    /// What a target was told so far.
    fn told(&self, target: &str) -> Vec<Told> {
        let told = self.told.lock().expect("unpoisoned");
        told.iter().filter(|told| told.body["target"] == target).cloned().collect()
    }

    /// Waits until a target was told so often, and no more.
    async fn tells(&self, target: &str, times: usize) -> Vec<Told> {
        let begun = Instant::now();
        loop {
            let told = self.told(target);
            assert!(told.len() <= times, "{target} is told {times} times: {told:#?}");
            if told.len() == times {
                return told;
            }
            assert!(begun.elapsed() < PATIENCE, "{target} is told {times} times, and was {told:#?}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

fn base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut out, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        let six = ALPHABET.iter().position(|known| *known == byte).expect("base64");
        (bits, count) = (bits << 6 | six as u32, count + 6);
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    out
}

/// A broker whose gateway this is, and who tells of what is not acked for a second.
fn broker(gateway: &Gateway, collapse: &str) -> Process {
    broker_with(gateway, collapse, "")
}

/// The same, with more of the configuration.
fn broker_with(gateway: &Gateway, collapse: &str, more: &str) -> Process {
    let mut process = Process::prepared(Setup::default());
    let file = process.folder().join("webhook.secret");
    // What is signed with is these bytes; base64 of them is what is written.
    std::fs::write(&file, format!("whsec_{}\n", "d2hhdCB0aGUgZ2F0ZXdheSBhbmQgd2Ugc2hhcmUuLi4=")).expect("written");
    process.setup.config = format!(
        "push = {{ after = '1s', collapse = '{collapse}', webhook = {{ url = '{}', secret = '{}' }} }}\n{more}\n",
        gateway.url,
        file.display()
    );
    process.start();
    process
}

fn to(target: &str) -> SetPush {
    SetPush { provider: "webhook".into(), target: target.into(), ..SetPush::default() }
}

async fn come(process: &Process, user: &str) -> Wire {
    let wire = let_in(process.port, &process.connect(user, "phone")).await;
    assert!(wire.connected.features.iter().any(|feature| feature == "push-webhook"), "the broker has it");
    wire
}

/// Comes, has itself told, and is gone without a word.
async fn passes_by(process: &Process, user: &str, push: SetPush) {
    let mut wire = come(process, user).await;
    wire.caught_up().await;
    wire.act(0, Action::SetPush(push)).await.expect("set");
}

/// Everything before this was looked at: what comes later is told later.
async fn fence(process: &Process, gateway: &Gateway, ann: &mut Wire, name: &str) {
    passes_by(process, name, to(name)).await;
    let direct = ann.open_direct(name).await;
    ann.say(direct, "fence").await;
    gateway.tells(name, 1).await;
}

/// R17-3, R17-5: several messages are one notification, with all that is unread; after an ack there is none.
#[tokio::test]
async fn who_is_away_is_told_once_of_each_conversation() {
    let gateway = Gateway::new().await;
    let process = broker(&gateway, "1h");
    let mut ann = come(&process, "ann").await;
    passes_by(&process, "ben", to("b")).await;
    let direct = ann.open_direct("ben").await;
    let group = ann.create_group("team", &["ben"]).await;
    for text in ["one", "two", "three"] {
        ann.say(direct, text).await;
    }
    let first = &gateway.tells("b", 1).await[0];
    assert_eq!((&first.body["conversation"], &first.body["type"]), (&direct.into(), &"longwire.message".into()));
    assert_eq!((&first.body["badge"], &first.body["seq"]), (&3.into(), &3.into()));
    assert!(first.body.get("sender").is_none() && first.body.get("content").is_none(), "no more than was asked for");
    ann.say(direct, "four").await;
    ann.say(group, "in the group").await;
    let second = &gateway.tells("b", 2).await[1];
    assert_eq!((&second.body["conversation"], &second.body["badge"]), (&group.into(), &5.into()));
    assert_ne!(first.body["collapse"], second.body["collapse"]);
    assert_ne!(first.id, second.id);

    // It comes, acks all there is, and is gone again: nothing of that is told, though the window is over for nobody.
    let connect = packet::Connect { start: packet::StartKind::StoredCursor.into(), ..process.connect("ben", "phone") };
    let mut ben = let_in(process.port, &connect).await;
    ben.caught_up().await;
    ben.settle().await;
    drop(ben);
    fence(&process, &gateway, &mut ann, "f1").await;
    gateway.tells("b", 2).await;
}

/// R17-5, R17-6: broker and gateway stop in the middle, each time: one notification for each window, none lost, and none
/// of what was acked.
#[tokio::test]
async fn one_notification_whoever_is_killed_in_the_middle() {
    let gateway = Gateway::new().await;
    let mut process = broker(&gateway, "1h");
    let mut ann = come(&process, "ann").await;
    passes_by(&process, "ben", to("b")).await;
    let direct = ann.open_direct("ben").await;

    // Killed before it told anything: the log has it.
    ann.say(direct, "one").await;
    process.kill();
    assert!(gateway.told("b").is_empty(), "it waits a second");
    // Killed while the gateway has it and says nothing: the same is told again.
    gateway.answer(&[Answer::Silence]);
    process.start();
    gateway.tells("b", 1).await;
    process.kill();
    gateway.answer(&[Answer::Status(204)]);
    process.start();
    let told = gateway.tells("b", 2).await;
    assert_eq!(told[0].id, told[1].id, "the gateway knows it");
    assert_eq!(told[0].body, told[1].body);

    // Told, and durably so once another group has passed: not again, neither after a kill nor within the window.
    let mut ann = come(&process, "ann").await;
    fence(&process, &gateway, &mut ann, "f1").await;
    process.kill();
    process.start();
    let mut ann = come(&process, "ann").await;
    ann.say(direct, "two").await;
    fence(&process, &gateway, &mut ann, "f2").await;
    gateway.tells("b", 2).await;

    // What was delivered and acked just before the kill is not told.
    let mut cid = come(&process, "cid").await;
    cid.caught_up().await;
    cid.act(0, Action::SetPush(to("c"))).await.expect("set");
    let with_cid = ann.open_direct("cid").await;
    ann.say(with_cid, "seen").await;
    cid.entry(with_cid).await;
    cid.settle().await;
    cid.store_all().await;
    // What it acked is stored within a second; its publish comes after that, and is durable.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    cid.say(with_cid, "yes").await;
    process.kill();
    drop(cid);
    process.start();
    let mut ann = come(&process, "ann").await;
    fence(&process, &gateway, &mut ann, "f3").await;
    gateway.tells("c", 0).await;
    process.kill();
    process.assert_sound("killed five times");
    process.assert_no_panic("killed five times");
}

/// R17-2, R17-7: a gateway in trouble is asked again, with the same id; one that does not know the target is not.
#[tokio::test]
async fn what_the_gateway_says_is_heeded() {
    let gateway = Gateway::new().await;
    let admin = free_port();
    let process = broker_with(&gateway, "1s", &format!("admin.listen = '127.0.0.1:{admin}'"));
    let mut ann = come(&process, "ann").await;
    passes_by(&process, "ben", to("b")).await;
    let direct = ann.open_direct("ben").await;
    gateway.answer(&[Answer::Status(503), Answer::Status(429), Answer::Status(204)]);
    ann.say(direct, "one").await;
    let told = gateway.tells("b", 3).await;
    assert_eq!(told.iter().map(|told| &told.id).collect::<BTreeSet<_>>().len(), 1, "one, three times");

    // The window is over some time: then the next message is another one.
    ann.say(direct, "two").await;
    let told = gateway.tells("b", 4).await;
    assert_ne!(told[3].id, told[0].id);

    // Refused for good: not again.
    gateway.answer(&[Answer::Status(400), Answer::Status(204)]);
    ann.say(direct, "three").await;
    gateway.tells("b", 5).await;
    fence(&process, &gateway, &mut ann, "f1").await;
    gateway.tells("b", 5).await;

    let devices = async |wire: &mut Wire| {
        let answer = wire.ask(packet::request::Op::Devices(packet::DevicesRequest {})).await.expect("an answer");
        let packet::response::Result::Devices(page) = answer else { panic!("another answer") };
        page.devices.into_iter().map(|device| (device.name, device.push)).collect::<BTreeSet<_>>()
    };
    let mut tablet = let_in(process.port, &process.connect("ben", "tablet")).await;
    let before = devices(&mut tablet).await;
    assert_eq!(before, [("phone".into(), "webhook".into()), ("tablet".into(), String::new())].into());
    gateway.answer(&[Answer::Status(410), Answer::Status(204)]);
    ann.say(direct, "four").await;
    gateway.tells("b", 6).await;
    let begun = Instant::now();
    while devices(&mut tablet).await.contains(&("phone".into(), "webhook".into())) {
        assert!(begun.elapsed() < PATIENCE, "the target is forgotten");
        sleep(Duration::from_millis(20)).await;
    }
    ann.say(direct, "five").await;
    fence(&process, &gateway, &mut ann, "f2").await;
    gateway.tells("b", 6).await;

    // And all of it was counted, by what the gateway said; what stands in the fences was taken.
    let said = |scrape: &Scrape| {
        let result = |word| scrape.value("longwire_push_total", &[("provider", "webhook"), ("result", word)]);
        ["sent", "failed", "given_up", "gone"].map(result)
    };
    until(admin, "all that was told", |scrape| said(scrape) == [4.0, 2.0, 1.0, 1.0]).await;
}

/// A gateway that never answers holds up nobody: publishes are acked, and who is told by it waits.
#[tokio::test]
async fn a_dead_gateway_holds_up_nobody() {
    let gateway = Gateway::new().await;
    gateway.answer(&[Answer::Silence]);
    let process = broker(&gateway, "1s");
    let mut ann = come(&process, "ann").await;
    let mut group = Vec::new();
    for n in 0..40 {
        let name = format!("u{n}");
        passes_by(&process, &name, to(&name)).await;
        group.push(name);
    }
    let names: Vec<&str> = group.iter().map(String::as_str).collect();
    let group = ann.create_group("all", &names).await;
    ann.say(group, "first").await;
    let begun = Instant::now();
    while gateway.told.lock().expect("unpoisoned").is_empty() {
        assert!(begun.elapsed() < PATIENCE, "it is asked");
        sleep(Duration::from_millis(20)).await;
    }
    // All that time it says nothing.
    let acked = async {
        for n in 0..500 {
            ann.say(group, &format!("{n}")).await;
        }
    };
    timeout(PATIENCE, acked).await.expect("acked all the same");
    let asked = gateway.told.lock().expect("unpoisoned").len();
    assert!(asked < names.len(), "and it is not asked about all of them at once: {asked}");
}

/// R17-4, R17-8: what is told, and of what.
#[tokio::test]
async fn nobody_is_told_what_is_not_to_be() {
    let gateway = Gateway::new().await;
    let process = broker(&gateway, "1h");
    let mut ann = come(&process, "ann").await;
    let mut ben = come(&process, "ben").await;
    ben.caught_up().await;
    let direct = ann.open_direct("ben").await;
    let muted = ann.create_group("muted", &["ben"]).await;
    let left = ann.create_group("left", &["ben"]).await;
    for group in [muted, left] {
        ben.until(|item| matches!(&item.kind, Some(packet::item::Kind::Entry(e)) if e.joined.as_ref().is_some_and(|j| j.conversation == group))).await;
    }
    let settings = Some(Settings { muted_until: u64::MAX, ..Settings::default() });
    ben.act(muted, Action::SetSettings(packet::SetSettings { settings })).await.expect("muted");
    ben.act(left, Action::Leave(packet::Leave {})).await.expect("left");
    let own = ben.connected.user;
    let shows = Shows::Content.into();
    ben.act(0, Action::SetPush(SetPush { shows, ..to("b") })).await.expect("set");
    ben.say(direct, "my own").await;
    drop(ben);
    ann.say(muted, "to a muted group").await;
    ann.say(left, "to a group that it left").await;
    let beside =
        |beside: Beside| Publish { beside: Some(Box::new(beside)), content: "psst".into(), ..Publish::default() };
    let silent = Publish { conversation: direct, ..beside(Beside { silent: true, ..Beside::default() }) };
    ann.insist(silent).await.expect("acked");
    let recalled = ann.say(direct, "a slip").await.seq;
    ann.act(direct, Action::Recall(packet::Recall { seq: recalled })).await.expect("recalled");
    fence(&process, &gateway, &mut ann, "f1").await;
    gateway.tells("b", 0).await;

    // A mention passes the mute; names and content are told to whom they were asked for.
    let mention = Beside { mentions: vec![own], ..Beside::default() };
    ann.insist(Publish { conversation: muted, ..beside(mention) }).await.expect("acked");
    let told = &gateway.tells("b", 1).await[0].body;
    assert_eq!((&told["sender"], &told["label"]), (&"ann".into(), &"muted".into()));
    assert_eq!(told["content"], "cHNzdA==");

    // Quiet hours: it is always night, for all but a minute that is long over.
    let minute = 1_440 + minute_of_the_day();
    let (quiet_from, quiet_until) = ((minute - 1) % 1_440, (minute - 2) % 1_440);
    passes_by(&process, "dot", SetPush { quiet_from, quiet_until, ..to("d") }).await;
    let with_dot = ann.open_direct("dot").await;
    ann.say(with_dot, "good night").await;
    fence(&process, &gateway, &mut ann, "f2").await;
    gateway.tells("d", 0).await;
    // It says otherwise, and stores nothing of what it gets: what waits is told.
    let start = packet::StartKind::StoredCursor.into();
    let mut dot = let_in(process.port, &packet::Connect { start, ..process.connect("dot", "phone") }).await;
    dot.stores = false;
    dot.act(0, Action::SetPush(to("d"))).await.expect("set");
    drop(dot);
    gateway.tells("d", 1).await;
}

fn minute_of_the_day() -> u32 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    (now.as_secs() / 60 % 1_440) as u32
}

/// R17-1: what cannot be told is refused.
#[tokio::test]
async fn a_registration_is_one_that_can_be_used() {
    let gateway = Gateway::new().await;
    let process = broker(&gateway, "1h");
    let mut ann = come(&process, "ann").await;
    let web = |target: &str| SetPush {
        provider: "webpush".into(),
        target: target.into(),
        key: vec![4; 65].into(),
        secret: vec![1; 16].into(),
        ..SetPush::default()
    };
    for set in [
        SetPush { provider: "pigeon".into(), ..to("x") },
        to(""),
        to("with space"),
        to("with\nnewline"),
        to("café"),
        to(&"x".repeat(2_049)),
        SetPush { key: vec![4; 65].into(), ..to("x") },
        web("http://push.example.com/x"),
        SetPush { key: vec![4; 64].into(), ..web("https://push.example.com/x") },
        SetPush { key: vec![2; 65].into(), ..web("https://push.example.com/x") },
        SetPush { secret: vec![1; 15].into(), ..web("https://push.example.com/x") },
        SetPush { quiet_from: 1_440, ..to("x") },
        SetPush { quiet_until: 1_440, ..to("x") },
        SetPush { shows: 3, ..to("x") },
    ] {
        let refused = ann.act(0, Action::SetPush(set.clone())).await;
        assert_eq!(refused.expect_err("not usable").reason, Reason::InvalidArgument, "{set:?}");
    }
    ann.act(0, Action::SetPush(web("https://push.example.com/x?y=1"))).await.expect("set");
    ann.act(0, Action::SetPush(SetPush::default())).await.expect("taken away");
    ann.act(0, Action::SetPush(SetPush::default())).await.expect("there is none");
}

/// The client in Rust has itself told, and no more.
#[tokio::test]
async fn the_client_has_itself_told() {
    let gateway = Gateway::new().await;
    let process = broker(&gateway, "1h");
    let start = |user| longwire_client::Client::start(process.config(user, "phone", process.port)).expect("it starts");
    let ((ann, _for_ann), (ben, for_ben)) = (start("ann"), start("ben"));
    let direct = ann.open_direct("ben").await.expect("kept").await.expect("opened").conversation;
    ben.set_push(to("b")).await.expect("kept").await.expect("set");
    ben.close().await;
    drop(for_ben);
    ann.publish(direct, "hello").await.expect("kept").await.expect("acked");
    gateway.tells("b", 1).await;
    let (ben, _for_ben) = start("ben");
    ben.clear_push().await.expect("kept").await.expect("taken away");
    ben.close().await;
    ann.publish(direct, "hello again").await.expect("kept").await.expect("acked");
    let mut wire = let_in(process.port, &process.connect("cid", "phone")).await;
    fence(&process, &gateway, &mut wire, "f1").await;
    gateway.tells("b", 1).await;
}
