//! TLS with OpenSSL's client: through key updates and the end.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::process::{Command, Stdio};
use std::sync::Arc;

use longwire::net::stream::ByteStream as _;
use longwire::net::tls::{self, server_config};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::tls::write_certificate;
use crate::world::PATIENCE;

/// Answers what it hears, and rests after each answer; returns what it heard before the end, which has to be a clean one.
async fn echo(listener: TcpListener, config: Arc<rustls::ServerConfig>) -> Vec<u8> {
    let (socket, _) = listener.accept().await.expect("a client");
    let mut stream = tls::accept(config, socket, None).await.expect("a good handshake");
    let mut heard = Vec::new();
    loop {
        let begin = heard.len();
        if stream.read_buf(&mut heard).await.expect("no alert, no cut") == 0 {
            return heard;
        }
        stream.write_all(&heard[begin..]).await.expect("written");
        stream.flush().await.expect("written");
        stream.rest();
    }
}

/// Talks to it as OpenSSL: lines, and between them both kinds of key update, with one in return (`K`) and without (`k`).
/// Returns false where there is no OpenSSL.
fn talk(suite: &str, address: &str) -> bool {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-tls1_3", "-alpn", "longwire/1", "-ciphersuites", suite, "-connect", address]);
    let mut client = match command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn() {
        Err(error) if error.kind() == ErrorKind::NotFound => return false,
        client => client.expect("openssl"),
    };
    let mut says = client.stdin.take().expect("its input");
    let mut lines = BufReader::new(client.stdout.take().expect("its output")).lines().map_while(Result::ok);
    let mut notes = BufReader::new(client.stderr.take().expect("its notes")).lines().map_while(Result::ok);
    for (number, update) in ["", "K\n", "k\n", "K\n", ""].into_iter().enumerate() {
        if !update.is_empty() {
            // Told apart: whatever came in the same read would be part of it.
            says.write_all(update.as_bytes()).expect("told");
            assert!(notes.any(|note| note == "KEYUPDATE"), "{suite}: keys are updated");
        }
        let line = format!("line {number}");
        says.write_all(format!("{line}\n").as_bytes()).expect("told");
        assert!(lines.any(|echo| echo == line), "{suite}: {line} comes back");
    }
    says.write_all(b"Q\n").expect("told");
    assert!(client.wait().expect("it ends").success(), "{suite}: a good end");
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_is_understood_through_key_updates_and_the_end() {
    let folder = tempfile::tempdir().expect("a folder");
    write_certificate(folder.path());
    let path = |name: &str| folder.path().join(name);
    let config = server_config(&path("cert.pem"), &path("key.pem")).expect("a certificate");
    for suite in ["TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256"] {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        let server = tokio::spawn(echo(listener, Arc::clone(&config)));
        let client = tokio::task::spawn_blocking(move || talk(suite, &address));
        if !timeout(PATIENCE, client).await.expect("in time").expect("a good talk") {
            return eprintln!("there is no openssl here");
        }
        let heard = timeout(PATIENCE, server).await.expect("in time").expect("a good talk");
        assert_eq!(String::from_utf8_lossy(&heard), "line 0\nline 1\nline 2\nline 3\nline 4\n", "{suite}");
    }
}
