//! TLS: only 1.3 with our ALPN, and certificates that are exchanged while connections go on.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use longwire::auth::{self, Claims};
use longwire::broker::Certificate;
use longwire_client::{Address, Client, Config, Deliveries, Dialer, State, Trust, Untrusted};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use crate::load::Pair;
use crate::process::{Process, Setup};
use crate::world::{PATIENCE, World};

/// Writes a certificate of a new authority for this machine, its key, and the authority's own certificate.
pub(crate) fn write_certificate(folder: &Path) {
    write_certificate_of(folder, |_| {});
}

/// The same, but for what `change` does to the certificate.
fn write_certificate_of(folder: &Path, change: impl FnOnce(&mut rcgen::CertificateParams)) {
    Authority::new(folder).certify(folder, change);
}

/// Who signs certificates.
struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    /// A new one, whose own certificate is written.
    fn new(folder: &Path) -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("signed").pem();
        std::fs::write(folder.join("ca.pem"), pem).expect("written");
        Self { issuer: rcgen::Issuer::new(params, key) }
    }

    /// Writes a certificate for this machine and its key.
    fn certify(&self, folder: &Path, change: impl FnOnce(&mut rcgen::CertificateParams)) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).expect("parameters");
        change(&mut params);
        let pem = params.signed_by(&key, &self.issuer).expect("signed").pem();
        for (name, text) in [("cert.pem", pem), ("key.pem", key.serialize_pem())] {
            std::fs::write(folder.join(name), text).expect("written");
        }
    }
}

/// A client that trusts the authority whose certificate stands in the folder now.
fn client(token: String, port: u16, folder: &Path, device: &str) -> (Client, Deliveries) {
    let address: Address = format!("longwires://127.0.0.1:{port}").parse().expect("an address");
    let trust = Trust::from_file(&folder.join("ca.pem")).expect("an authority");
    let dialer = Dialer::new(&address, &trust).expect("a dialer");
    Client::start(Config::new(dialer, token, device)).expect("started")
}

#[tokio::test]
async fn a_certificate_is_exchanged_without_dropping_a_connection_and_a_bad_one_changes_nothing() {
    let world = World::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    write_certificate(folder.path());
    let path = |name: &str| folder.path().join(name);
    let certificate = Certificate::read(path("cert.pem"), path("key.pem")).expect("a certificate");
    let socket = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = socket.local_addr().expect("its address").port();
    let token = || world.token(&world.claims("alice"));
    world.broker().listen(socket, certificate.security()).expect("listens");

    let (old, _old_deliveries) = client(token(), port, folder.path(), "old");
    let session = old.connected().await.expect("let in").session;
    write_certificate(folder.path());
    certificate.reload().expect("reloaded");
    let (new, _new_deliveries) = client(token(), port, folder.path(), "new");
    new.connected().await.expect("the new certificate is presented");

    std::fs::write(path("cert.pem"), "nonsense").expect("written");
    let error = certificate.reload().expect_err("no certificate").to_string();
    assert!(error.contains("cert.pem"), "{error}");
    let (other, _deliveries) = client(token(), port, folder.path(), "other");
    other.connected().await.expect("the one before stays");

    // The key of another certificate.
    write_certificate(folder.path());
    let key = std::fs::read(path("key.pem")).expect("a key");
    write_certificate(folder.path());
    std::fs::write(path("key.pem"), key).expect("written");
    let error = certificate.reload().expect_err("another key").to_string();
    assert!(error.contains("key.pem"), "{error}");

    let opened = old.open_direct("bob").await.expect("queued").await.expect("acked");
    assert!(opened.conversation > 0);
    assert_eq!(old.connected().await.expect("connected").session, session, "the old connection went on");
}

/// The real broker, with certificate and key of its folder, and what it logs.
struct Served {
    child: Child,
    folder: tempfile::TempDir,
    private: String,
    port: u16,
    log: UnboundedReceiver<String>,
}

impl Served {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        write_certificate(folder.path());
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (private, public) = auth::generate_key().expect("a key");
        std::fs::write(path("issuer.pub"), public).expect("written");
        let config = format!(
            "listen.tls = '127.0.0.1:0'\ntls = {{ certificate = '{}', key = '{}' }}\nstore.path = '{}'\n\
             auth.issuers.test = '{}'\n",
            path("cert.pem"),
            path("key.pem"),
            path("store"),
            path("issuer.pub"),
        );
        std::fs::write(path("longwire.toml"), config).expect("written");
        let mut child = Command::new(env!("CARGO_BIN_EXE_longwire"))
            .args(["serve", "--config", &path("longwire.toml"), "--log", "info", "--log-format", "json"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the broker starts");
        let (lines, log) = unbounded_channel();
        let stderr = BufReader::new(child.stderr.take().expect("its log"));
        // Ends with the broker.
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| lines.send(line)));
        let mut served = Self { child, folder, private, port: 0, log };
        let line = served.logs("listening with TLS").await;
        let (_, address) = line.split_once("127.0.0.1:").expect("its address");
        let digits: String = address.chars().take_while(char::is_ascii_digit).collect();
        served.port = digits.parse().expect("a port");
        served
    }

    /// The next line that says this.
    async fn logs(&mut self, what: &str) -> String {
        let found = async {
            loop {
                let line = self.log.recv().await.expect("the broker runs");
                if line.contains(what) {
                    return line;
                }
            }
        };
        timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("{what:?} is logged"))
    }

    fn hang_up(&self) {
        kill_process(Pid::from_child(&self.child), Signal::HUP).expect("signalled");
    }

    /// A client that is let in, and its session.
    async fn let_in(&self, device: &str) -> (Client, Deliveries, u64) {
        let claims = Claims {
            iss: "test".into(),
            sub: "alice".into(),
            aud: auth::AUDIENCE.into(),
            exp: u64::MAX / 2_000,
            ..Claims::default()
        };
        let token = auth::issue(&claims, self.private.as_bytes()).expect("a token");
        let (client, deliveries) = client(token, self.port, self.folder.path(), device);
        let connected = timeout(PATIENCE, client.connected()).await;
        let connected = connected.unwrap_or_else(|_| panic!("{device} trusts what is presented")).expect("let in");
        (client, deliveries, connected.session)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_hang_up_exchanges_the_certificate_and_a_bad_one_changes_nothing_but_the_log() {
    let mut served = Served::new().await;
    let (old, _old_deliveries, session) = served.let_in("old").await;
    // Of another authority, which alone the next client trusts.
    write_certificate(served.folder.path());
    served.hang_up();
    served.logs("the certificate was read anew").await;
    let (_new, _new_deliveries, _) = served.let_in("new").await;

    std::fs::write(served.folder.path().join("cert.pem"), "nonsense").expect("written");
    served.hang_up();
    let line = served.logs("the new certificate is not usable: the old one stays").await;
    assert!(line.contains("ERROR") && line.contains("cert.pem"), "{line}");
    let (_other, _other_deliveries, _) = served.let_in("other").await;

    let opened = timeout(PATIENCE, old.open_direct("bob").await.expect("queued")).await.expect("in time");
    assert!(opened.expect("acked").conversation > 0);
    assert_eq!(old.connected().await.expect("connected").session, session, "the first connection went on");
}

/// Certificates, good ones and bad ones, are exchanged ten times a second while clients talk and others come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_exchanged_under_load_lose_nothing_and_let_everybody_in() {
    const RELOADS: usize = 30;
    let mut process = Process::prepared(Setup { tls: true, ..Setup::default() });
    let folder = process.folder().to_owned();
    let authority = Authority::new(&folder);
    authority.certify(&folder, |_| {});
    process.start();
    let config = |user: &str, device: &str| process.config(user, device, process.port);
    let pair = Pair::begin("w", config("writer", "phone"), config("reader", "phone"), "reader", 8).await;
    let session = pair.reader.connected().await.expect("connected").session;
    let (mut good, mut bad) = (0, 0);
    for n in 0..RELOADS {
        match n % 5 {
            0 | 2 => authority.certify(&folder, |_| {}),
            1 => std::fs::write(folder.join("cert.pem"), "nonsense").expect("written"),
            3 => std::fs::write(folder.join("key.pem"), "").expect("written"),
            _ => std::fs::remove_file(folder.join("cert.pem")).expect("removed"),
        }
        // Good ones stand at even places, but for the one of five that is missing.
        let is_good = matches!(n % 5, 0 | 2);
        (good, bad) = (good + usize::from(is_good), bad + usize::from(!is_good));
        process.signal(Signal::HUP);
        let (client, deliveries) = Client::start(config("guest", &format!("device{}", n % 8))).expect("started");
        timeout(PATIENCE, client.connected()).await.expect("trusts what is presented").expect("let in");
        process.logs("the certificate was read anew", good).await;
        process.logs("the new certificate is not usable: the old one stays", bad).await;
        drop(deliveries);
        client.close().await;
    }
    pair.more(20, "afterwards").await;
    assert_eq!(pair.reader.connected().await.expect("connected").session, session, "the first connection went on");
    pair.end("certificates").await;
    assert!(process.drain().success());
    process.assert_no_panic("certificates");
}

/// A broker whose certificate is what `change` makes of a good one; where it listens, and the folder of the certificate.
async fn shows(world: &World, change: impl FnOnce(&mut rcgen::CertificateParams)) -> (u16, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    write_certificate_of(folder.path(), change);
    let path = |name: &str| folder.path().join(name);
    let certificate = Certificate::read(path("cert.pem"), path("key.pem")).expect("a certificate");
    let socket = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = socket.local_addr().expect("its address").port();
    world.broker().listen(socket, certificate.security()).expect("listens");
    (port, folder)
}

/// What a client says of the certificate, before it tries again.
async fn says(client: &Client) -> Untrusted {
    let mut states = client.states();
    let waiting = states.wait_for(|state| matches!(state, State::Waiting { .. })).await.expect("alive").clone();
    let State::Waiting { untrusted: Some(untrusted), .. } = waiting else { panic!("{waiting}") };
    untrusted
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_said_at_once_and_tried_again() {
    let world = World::new().await;
    let (port, folder) = shows(&world, |_| {}).await;
    let other = tempfile::tempdir().expect("a folder");
    write_certificate(other.path());
    let (unknown, _deliveries) = client(world.token(&world.claims("alice")), port, other.path(), "unknown");
    assert_eq!(says(&unknown).await, Untrusted::UnknownIssuer);
    // It tries again: what stood in the way may be gone.
    let mut states = unknown.states();
    states.wait_for(|state| matches!(state, State::Connecting { attempt: 2.. })).await.expect("once more");
    let (trusting, _deliveries) = client(world.token(&world.claims("alice")), port, folder.path(), "trusting");
    trusting.connected().await.expect("let in");

    let elsewhere = rcgen::SanType::DnsName("elsewhere.example".try_into().expect("a name"));
    let (port, folder) = shows(&world, |params| params.subject_alt_names = vec![elsewhere]).await;
    let (wrong_name, _deliveries) = client(world.token(&world.claims("alice")), port, folder.path(), "wrong-name");
    let untrusted = says(&wrong_name).await;
    assert!(matches!(untrusted, Untrusted::WrongName(_)), "{untrusted:?}");
    assert!(untrusted.to_string().contains("elsewhere.example"), "{untrusted}");

    let (port, folder) = shows(&world, |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1)).await;
    let (expired, _deliveries) = client(world.token(&world.claims("alice")), port, folder.path(), "expired");
    assert_eq!(says(&expired).await, Untrusted::Expired);

    let (port, folder) = shows(&world, |params| params.not_before = rcgen::date_time_ymd(3000, 1, 1)).await;
    let (too_soon, _deliveries) = client(world.token(&world.claims("alice")), port, folder.path(), "too-soon");
    assert_eq!(says(&too_soon).await, Untrusted::NotValidYet);
}

/// The timeouts given are longer than any test may take.
#[tokio::test]
async fn a_command_fails_at_once_with_a_hint_where_it_does_not_trust_the_certificate() {
    let world = World::new().await;
    let (port, folder) = shows(&world, |_| {}).await;
    let other = tempfile::tempdir().expect("a folder");
    write_certificate(other.path());
    let token = world.token(&world.claims("alice"));
    for command in [["pub", "@bob", "hello"], ["sub", "@bob", "--json"], ["conversation", "list", "--json"]] {
        let mut longwire = Command::new(env!("CARGO_BIN_EXE_longwire"));
        longwire.args(command).args(["--connect-timeout", "1h", "--token", &token]);
        longwire.arg("--url").arg(format!("longwires://127.0.0.1:{port}"));
        longwire.arg("--ca").arg(other.path().join("ca.pem")).arg("--state-dir").arg(folder.path());
        let mut child = longwire.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it runs");
        let ended = async {
            while child.try_wait().expect("a child").is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let at_once = tokio::time::timeout(PATIENCE, ended).await;
        // One that has ended is not there to be killed.
        drop(child.kill());
        let output = child.wait_with_output().expect("its output");
        let said = String::from_utf8_lossy(&output.stderr);
        at_once.expect("at once");
        assert_eq!(output.status.code(), Some(76), "{command:?}: {said}");
        assert!(said.contains("nobody that is trusted") && said.contains("--ca"), "{said}");
    }
}
