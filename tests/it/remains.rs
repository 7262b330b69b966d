//! What remains in the memory of a broker, which is read as a thief would who may: no password once it was looked at, no
//! token that somebody came with, and never an issuer's private key.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use longwire_protocol::frame;
use longwire_protocol::packet::{self, packet::Kind};
use prost::Message as _;

use crate::process::{Process, Setup};
use crate::tls::write_certificate;
use crate::world::PATIENCE;

const PASSWORD: &str = "a horse that nobody has ever heard of";
const WRONG: &str = "another horse, which is the wrong one";
const NEXT: &str = "the horse that comes after the first one";
const IN_PIECES: &str = "a horse that came in many small pieces";

/// What can be written of a process's memory, part by part with its name; `None` where it may not be read.
fn memory(process: &Process) -> Option<Vec<(String, Vec<u8>)>> {
    let folder = format!("/proc/{}", process.pid().as_raw_nonzero());
    let maps = std::fs::read_to_string(format!("{folder}/maps")).ok()?;
    let memory = File::open(format!("{folder}/mem")).ok()?;
    let mut parts = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, to) = line.split_once(' ')?.0.split_once('-')?;
        let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
        let mut bytes = vec![0; (to - from) as usize];
        // A part may be gone since it was listed.
        if memory.read_exact_at(&mut bytes, from).is_ok() {
            parts.push((line.to_owned(), bytes));
        }
    }
    Some(parts)
}

fn places(bytes: &[u8], what: &[u8]) -> usize {
    let (mut found, mut at) = (0, 0);
    while let Some(next) = bytes[at..].iter().position(|byte| *byte == what[0]) {
        at += next + 1;
        found += usize::from(bytes[at..].starts_with(&what[1..]));
    }
    found
}

/// Where something is in memory.
fn found(process: &Process, what: &[u8]) -> Vec<String> {
    let parts = memory(process).expect("it could be read before");
    let found = parts.iter().map(|(part, bytes)| (places(bytes, what), part)).filter(|(times, _)| *times > 0);
    found.map(|(times, part)| format!("{times} in {part}")).collect()
}

/// Waits until it is nowhere: what is under way when its client has its answer is done a moment later.
fn assert_gone(process: &Process, what: &str, name: &str) {
    let begun = Instant::now();
    loop {
        let found = found(process, what.as_bytes());
        if found.is_empty() {
            return;
        }
        assert!(begun.elapsed() < PATIENCE / 10, "{name} is in memory: {found:#?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A command of a client, which is another process.
fn run(process: &Process, folder: &Path, arguments: &[&str], secret: (&str, &str)) -> Option<i32> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longwire"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LONGWIRE")) {
        command.env_remove(name);
    }
    let scheme = if process.setup.tls { "longwires" } else { "longwire" };
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.env("HOME", folder).env("XDG_STATE_HOME", folder.join("state")).env("XDG_DATA_HOME", folder.join("data"));
    command.env("LONGWIRE_URL", format!("{scheme}://127.0.0.1:{}", process.port));
    if process.setup.tls {
        command.env("LONGWIRE_CA", process.folder().join("ca.pem"));
    }
    command.env(secret.0, secret.1).status().expect("it runs").code()
}

fn signature(token: &str) -> &str {
    token.rsplit('.').next().expect("a signature")
}

async fn leaves_nothing(tls: bool) {
    let config = "accounts.registration = 'open'\naccounts.password_memory = '1MiB'".into();
    let mut process = Process::prepared(Setup { tls, config, ..Setup::default() });
    write_certificate(process.folder());
    process.start();
    process.logs("listening", 1).await;
    if memory(&process).is_none() {
        eprintln!("SKIPPED: the memory of another process may not be read here");
        return;
    }
    let home = tempfile::tempdir().expect("a folder");
    let folder = home.path();
    let password = |password| ("LONGWIRE_PASSWORD", password);
    assert_eq!(run(&process, folder, &["account", "register", "carol"], password(PASSWORD)), Some(0));
    std::fs::write(folder.join("wrong"), WRONG).expect("written");
    let wrong = folder.join("wrong").display().to_string();
    let change = ["account", "passwd", "--user", "carol", "--password-file", &wrong];
    assert_eq!(run(&process, folder, &change, password(PASSWORD)), Some(77), "the wrong password");
    // Without the token that the first command kept.
    let other = tempfile::tempdir().expect("a folder");
    let publish = ["pub", "@carol", "hello", "--user", "carol"];
    assert_eq!(run(&process, other.path(), &publish, password(PASSWORD)), Some(0));
    std::fs::write(folder.join("right"), PASSWORD).expect("written");
    let right = folder.join("right").display().to_string();
    let change = ["account", "passwd", "--user", "carol", "--password-file", &right];
    assert_eq!(run(&process, other.path(), &change, password(NEXT)), Some(0));
    let token = process.token("dan", u64::MAX / 2_000);
    assert_eq!(run(&process, folder, &["pub", "@carol", "hello"], ("LONGWIRE_TOKEN", &token)), Some(0));
    if !tls {
        let login = packet::Login { user: "eve".into(), password: IN_PIECES.into(), ..packet::Login::default() };
        let connect =
            packet::Connect { token: String::new(), login: Some(Box::new(login)), ..process.connect("eve", "x") };
        let mut bytes = BytesMut::new();
        frame::encode(&Kind::Connect(connect), &mut bytes);
        let mut socket = TcpStream::connect(("127.0.0.1", process.port)).expect("a connection");
        socket.set_nodelay(true).expect("set");
        for piece in bytes.chunks(9) {
            socket.write_all(piece).expect("sent");
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(socket);
    }
    let refreshing = process.token("fay", u64::MAX / 2_000 - 1);
    let [whole, behind, pieces] = ["first", "second", "third"].map(|id| process.token_with_id("fay", id));
    if !tls {
        // In one read, behind a publish, and in pieces, also where a frame ends.
        let mut socket = TcpStream::connect(("127.0.0.1", process.port)).expect("a connection");
        socket.set_nodelay(true).expect("set");
        let connect = packet::Connect { token: refreshing.clone(), ..process.connect("fay", "x") };
        let refresh = |id, token: &String| {
            let op = Some(packet::request::Op::Refresh(packet::RefreshRequest { token: token.clone() }));
            Kind::Request(packet::Request { id, op })
        };
        let publish = packet::Publish { message_id: 1, conversation: 1, ..packet::Publish::default() };
        for kinds in [
            vec![Kind::Connect(connect)],
            vec![refresh(1, &whole)],
            vec![Kind::Publish(publish), refresh(2, &behind)],
            vec![refresh(3, &pieces)],
        ] {
            let is_last = matches!(&kinds[0], Kind::Request(request) if request.id == 3);
            let mut bytes = BytesMut::new();
            kinds.iter().for_each(|kind| frame::encode(kind, &mut bytes));
            for piece in bytes.chunks(if is_last { 50 } else { 8_192 }) {
                socket.write_all(piece).expect("sent");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let mut answers = Vec::new();
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
        while answers.iter().filter(|refreshed| **refreshed).count() < 3 {
            let mut length = [0];
            socket.read_exact(&mut length).expect("an answer");
            let mut second = [0];
            let bytes = if length[0] & 0x80 == 0 {
                usize::from(length[0])
            } else {
                socket.read_exact(&mut second).expect("an answer");
                usize::from(length[0] & 0x7f) | usize::from(second[0]) << 7
            };
            let mut body = vec![0; bytes];
            socket.read_exact(&mut body).expect("an answer");
            let kind = packet::Packet::decode(&body[..]).expect("a packet").kind;
            answers.push(matches!(kind, Some(Kind::Response(response)) if response.result.is_some()));
        }
    }

    for (what, name) in [
        (PASSWORD, "a password"),
        (WRONG, "a wrong password"),
        (NEXT, "a new password"),
        (IN_PIECES, "a password that came in pieces"),
        (token.rsplit('.').next().expect("a signature"), "a token"),
        (signature(&whole), "a token of a refresh"),
        (signature(&behind), "a token of a refresh behind a publish"),
        (signature(&pieces), "a token of a refresh in pieces"),
    ] {
        assert_gone(&process, what, name);
        // Nor most of it.
        assert_gone(&process, &what[6..24], name);
    }
    let key: String = process.private_key().lines().filter(|line| !line.starts_with("---")).collect();
    assert_gone(&process, &key[20..], "the issuer's key");
    // What it may have, to see that it would be seen.
    assert!(!found(&process, b"carol").is_empty(), "names are in memory");
    assert!(process.drain().success());
}

#[tokio::test]
async fn a_password_is_overwritten_once_it_was_looked_at() {
    leaves_nothing(false).await;
}

#[tokio::test]
async fn a_password_is_overwritten_under_tls_too() {
    leaves_nothing(true).await;
}

/// Who is not root reads nothing of a broker's memory, also not as its own user, unless the operator lets it.
#[test]
fn the_memory_of_a_broker_is_nobodys_to_read() {
    const NOBODY: u32 = 65_534;
    let is_root = rustix::process::getuid().is_root();
    let folder = tempfile::tempdir().expect("a folder");
    let (_, public) = longwire::auth::generate_key().expect("a key");
    std::fs::write(folder.path().join("issuer.pub"), public).expect("written");
    if is_root {
        chown(folder.path(), Some(NOBODY), Some(NOBODY)).expect("given away");
    }
    for (flag, is_hidden) in [(None, true), (Some("--dumpable"), false)] {
        let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|s| s.local_addr()).expect("a port").port();
        let config =
            format!("listen.plain = '127.0.0.1:{port}'\nstore.path = 'store'\nauth.issuers.test = 'issuer.pub'\n");
        std::fs::write(folder.path().join("longwire.toml"), config).expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_longwire"));
        command.args(["serve", "--no-tls", "--config", "longwire.toml"]).args(flag).current_dir(folder.path());
        if is_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        let mut broker = match command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
            Ok(broker) => broker,
            Err(error) => return eprintln!("SKIPPED: another user cannot run the broker here: {error}"),
        };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < PATIENCE, "it listens");
            assert_eq!(broker.try_wait().expect("a child"), None, "it runs");
            std::thread::sleep(Duration::from_millis(20));
        }
        // The kernel gives what may not be read to root.
        let owner = std::fs::metadata(format!("/proc/{}/mem", broker.id())).expect("it is there").uid();
        broker.kill().expect("killed");
        broker.wait().expect("gone");
        assert_eq!(owner == 0, is_hidden, "{flag:?}");
    }
}
