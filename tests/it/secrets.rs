//! Secrets stay where they are: in files that only their owner reads, and nowhere in what a broker or a command prints.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

fn longwire(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longwire"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LONGWIRE")) {
        command.env_remove(name);
    }
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    command.env("HOME", folder).env("XDG_STATE_HOME", folder.join("state")).env("XDG_DATA_HOME", folder.join("data"));
    command
}

/// Every file below a folder that someone else could read, with its mode.
fn readable_by_others(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let mode = path.metadata().expect("its mode").permissions().mode() & 0o777;
        if path.is_dir() {
            found.extend(readable_by_others(&path));
        } else if mode != 0o600 {
            found.push(format!("{mode:o} {}", path.display()));
        }
    }
    found
}

/// What a broker answers who watches it.
fn page(admin: &str, path: &str) -> String {
    let mut socket = std::net::TcpStream::connect(admin).expect("it listens");
    write!(socket, "GET {path} HTTP/1.1\r\nhost: broker\r\n\r\n").expect("asked");
    let mut page = String::new();
    socket.read_to_string(&mut page).expect("answered");
    page
}

/// A broker that logs all it can, and commands that connect, publish, are refused and fail: nothing of what they print
/// holds a token, a key, or what was said.
#[test]
fn what_is_printed_holds_no_secret() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let port = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|s| s.local_addr()).expect("a port").port();
    let listen = format!("127.0.0.1:{port}");
    let admin = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|s| s.local_addr()).expect("a port").to_string();
    let serve = ["serve", "--dev", "--dev-dir", "dev", "--listen", &listen, "--admin", &admin, "--log", "trace"];
    let broker = longwire(folder, &serve)
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(folder.join("broker.log")).expect("a log"))
        .spawn()
        .expect("the broker starts");
    let begun = std::time::Instant::now();
    while std::net::TcpStream::connect(&listen).is_err() {
        assert!(begun.elapsed() < crate::world::PATIENCE, "the broker listens");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let read = |name: &str| std::fs::read_to_string(folder.join("dev").join(name)).expect("made by the broker");
    let (alice, bob, key, tls_key) = (read("alice.token"), read("bob.token"), read("issuer.key"), read("key.pem"));
    let url = format!("longwires://{listen}");
    let mut printed = String::new();
    let mut run = |arguments: &[&str], token: Option<&str>| {
        let mut command = longwire(folder, arguments);
        command.env("LONGWIRE_URL", &url).env("LONGWIRE_CA", "dev/ca.pem").env("RUST_BACKTRACE", "1");
        if let Some(token) = token {
            command.env("LONGWIRE_TOKEN", token);
        } else {
            command.env("LONGWIRE_PASSWORD", "s3cret-horse");
        }
        let Output { status, stdout, stderr } = command.output().expect("it runs");
        let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        printed.push_str(&text);
        (status.code(), text)
    };
    let (code, text) = run(&["pub", "@bob", "s3cret-words"], Some(&alice));
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = run(&["pub", "@bob", "s3cret-words", "--token-file", "dev/alice.token"], None);
    assert_eq!(code, Some(0), "{text}");
    let forged = format!("{}AAAA", &bob[..bob.len() - 4]);
    let (code, _) = run(&["pub", "@alice", "s3cret-words"], Some(&forged));
    assert_eq!(code, Some(77), "a forged token is refused");
    let (code, _) = run(&["pub", "@alice", "s3cret-words"], Some("no token at all"));
    assert_eq!(code, Some(77), "and so is nonsense");
    let (code, text) = run(&["account", "register", "carol"], None);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = run(&["pub", "@bob", "s3cret-words", "--user", "carol"], None);
    assert_eq!(code, Some(0), "{text}");
    std::fs::write(folder.join("wrong"), "s3cret-guess").expect("written");
    let (code, _) = run(&["account", "passwd", "--user", "carol", "--password-file", "wrong"], None);
    assert_eq!(code, Some(77), "the wrong password");
    let own_key = read("store/accounts.key");
    run(&["token", "make", "alice", "--key", "dev/key.pem"], None);
    run(&["token", "make", "alice", "--key", "dev/alice.token"], None);

    for path in ["/livez", "/readyz", "/metrics", "/s3cret"] {
        let page = page(&admin, path);
        // Nor does it say who is there.
        for name in ["alice", "carol", "bob"] {
            assert!(!page.contains(name), "{path} says {name}");
        }
        printed.push_str(&page);
    }
    assert!(printed.contains("longwire_publishes_total 6"), "what was done, in numbers");

    kill_process(Pid::from_child(&broker), Signal::TERM).expect("signalled");
    let output = broker.wait_with_output().expect("it ends");
    assert!(output.status.success(), "it drains");
    printed.push_str(&String::from_utf8_lossy(&output.stdout));
    let log = std::fs::read_to_string(folder.join("broker.log")).expect("the log");
    assert!(log.contains("listening with TLS"), "it logs");
    printed.push_str(&log);
    // Of a token its signature and its claims are looked for, of a key its base64.
    let tokens = [&alice, &bob, &forged].into_iter().flat_map(|token| token.trim().split('.').skip(1));
    let keys =
        [&key, &tls_key, &own_key].into_iter().flat_map(|pem| pem.lines().filter(|line| !line.starts_with("---")));
    for secret in tokens.chain(keys).chain(["s3cret-words", "s3cret-horse", "s3cret-guess", "$argon2id"]) {
        assert!(!secret.is_empty());
        let found = printed.lines().find(|line| line.contains(secret));
        assert_eq!(found, None, "a secret is printed");
    }
    assert_eq!(readable_by_others(&folder.join("dev")), Vec::<String>::new());
    let mode = folder.join("dev/store").metadata().expect("a folder").permissions().mode() & 0o777;
    assert_eq!(mode, 0o700, "the store's folder");
    for name in ["state", "data"].map(|name| folder.join(name)) {
        if name.exists() {
            assert_eq!(readable_by_others(&name), Vec::<String>::new(), "what commands keep");
        }
    }
}

#[test]
fn keys_are_made_for_their_owner_alone_and_never_overwritten() {
    let folder = tempfile::tempdir().expect("a folder");
    let make = || longwire(folder.path(), &["token", "key", "issuer"]).output().expect("it runs");
    assert!(make().status.success());
    let key = folder.path().join("issuer.key");
    assert_eq!(key.metadata().expect("made").permissions().mode() & 0o777, 0o600);
    let before = std::fs::read(&key).expect("a key");
    assert!(!make().status.success(), "it is there already");
    assert_eq!(std::fs::read(&key).expect("a key"), before);
}

/// What asks for a listener without TLS that others reach has to say so twice.
#[test]
fn a_plain_listener_that_others_reach_is_refused_unless_it_is_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let serve = |more: &[&str]| {
        let plain = ["serve", "--dev", "--check", "--listen-plain", "0.0.0.0:0"];
        longwire(folder.path(), &[&plain[..], more].concat()).output().expect("it runs")
    };
    let refused = serve(&[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("plain_beyond_loopback"));
    assert!(serve(&["--plain-beyond-loopback"]).status.success());
}
