//! TLS: only 1.3 with our ALPN, and certificates that are exchanged while connections go on.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use longwire::broker::Certificate;
use longwire_client::{Address, Client, Config, Deliveries, Dialer, State, Trust, Untrusted};
use tokio::net::TcpListener;

use crate::world::{PATIENCE, World};

/// Writes a certificate of a new authority for this machine, its key, and the authority's own certificate.
fn write_certificate(folder: &Path) {
    write_certificate_of(folder, |_| {});
}

/// The same, but for what `change` does to the certificate.
fn write_certificate_of(folder: &Path, change: impl FnOnce(&mut rcgen::CertificateParams)) {
    let ca_key = rcgen::KeyPair::generate().expect("a key");
    let mut ca = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).expect("signed").pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).expect("parameters");
    change(&mut params);
    let pem = params.signed_by(&key, &issuer).expect("signed").pem();
    for (name, text) in [("ca.pem", ca_pem), ("cert.pem", pem), ("key.pem", key.serialize_pem())] {
        std::fs::write(folder.join(name), text).expect("written");
    }
}

/// A client that trusts the authority whose certificate stands in the folder now.
fn client(world: &World, port: u16, folder: &Path, device: &str) -> (Client, Deliveries) {
    let address: Address = format!("longwires://127.0.0.1:{port}").parse().expect("an address");
    let trust = Trust::from_file(&folder.join("ca.pem")).expect("an authority");
    let dialer = Dialer::new(&address, &trust).expect("a dialer");
    Client::start(Config::new(dialer, world.token(&world.claims("alice")), device)).expect("started")
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
    world.broker().listen(socket, certificate.security());

    let (old, _old_deliveries) = client(&world, port, folder.path(), "old");
    let session = old.connected().await.expect("let in").session;
    write_certificate(folder.path());
    certificate.reload().expect("reloaded");
    let (new, _new_deliveries) = client(&world, port, folder.path(), "new");
    new.connected().await.expect("the new certificate is presented");

    std::fs::write(path("cert.pem"), "nonsense").expect("written");
    let error = certificate.reload().expect_err("no certificate").to_string();
    assert!(error.contains("cert.pem"), "{error}");
    let (other, _deliveries) = client(&world, port, folder.path(), "other");
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

/// A broker whose certificate is what `change` makes of a good one; where it listens, and the folder of the certificate.
async fn shows(world: &World, change: impl FnOnce(&mut rcgen::CertificateParams)) -> (u16, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    write_certificate_of(folder.path(), change);
    let path = |name: &str| folder.path().join(name);
    let certificate = Certificate::read(path("cert.pem"), path("key.pem")).expect("a certificate");
    let socket = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = socket.local_addr().expect("its address").port();
    world.broker().listen(socket, certificate.security());
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
    let (unknown, _deliveries) = client(&world, port, other.path(), "unknown");
    assert_eq!(says(&unknown).await, Untrusted::UnknownIssuer);
    // It tries again: what stood in the way may be gone.
    let mut states = unknown.states();
    states.wait_for(|state| matches!(state, State::Connecting { attempt: 2.. })).await.expect("once more");
    let (trusting, _deliveries) = client(&world, port, folder.path(), "trusting");
    trusting.connected().await.expect("let in");

    let elsewhere = rcgen::SanType::DnsName("elsewhere.example".try_into().expect("a name"));
    let (port, folder) = shows(&world, |params| params.subject_alt_names = vec![elsewhere]).await;
    let (wrong_name, _deliveries) = client(&world, port, folder.path(), "wrong-name");
    let untrusted = says(&wrong_name).await;
    assert!(matches!(untrusted, Untrusted::WrongName(_)), "{untrusted:?}");
    assert!(untrusted.to_string().contains("elsewhere.example"), "{untrusted}");

    let (port, folder) = shows(&world, |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1)).await;
    let (expired, _deliveries) = client(&world, port, folder.path(), "expired");
    assert_eq!(says(&expired).await, Untrusted::Expired);

    let (port, folder) = shows(&world, |params| params.not_before = rcgen::date_time_ymd(3000, 1, 1)).await;
    let (too_soon, _deliveries) = client(&world, port, folder.path(), "too-soon");
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
