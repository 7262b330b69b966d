//! TLS: only 1.3 with our ALPN, and certificates that are exchanged while connections go on.

use std::path::Path;

use longwire::broker::Certificate;
use longwire_client::{Address, Client, Config, Deliveries, Dialer, Trust};
use tokio::net::TcpListener;

use crate::world::World;

/// Writes a certificate of a new authority for this machine, its key, and the authority's own certificate.
fn write_certificate(folder: &Path) {
    let ca_key = rcgen::KeyPair::generate().expect("a key");
    let mut ca = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).expect("signed").pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).expect("parameters");
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
