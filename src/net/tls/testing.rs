//! A connection and rustls's own client, by hand: what a socket takes and gives, and in which pieces, is said by
//! who drives it. For tests and the fuzz target; in no broker.

use std::collections::VecDeque;
use std::io::{self, Cursor, Read as _, Write as _};
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use longwire_protocol::limits::ALPN;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, ClientConnection, ContentType, RootCertStore, ServerConfig, ServerConnection, version};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::keys::{Ciphers, Opener, Sealer};
use super::{TlsStream, accept};
use crate::net::tls;

/// A certificate, and a configuration of a server that presents it.
static SERVER: LazyLock<(CertificateDer<'static>, Arc<ServerConfig>)> = LazyLock::new(|| {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["localhost".into()]).expect("parameters");
    let certificate = params.self_signed(&key).expect("signed");
    let (chain, private) = (certificate.pem(), key.serialize_pem());
    let config = tls::configure((Path::new("c"), chain.as_bytes()), (Path::new("k"), private.as_bytes()));
    (certificate.der().clone(), config.expect("a configuration"))
});

/// What lies between the two ends.
#[derive(Default)]
pub(crate) struct Between {
    pub(super) up: VecDeque<u8>,
    pub(super) down: Vec<u8>,
    /// The socket takes and gives so many bytes at once at most, if not 0, and no more than so many in all.
    pub(super) piece: usize,
    pub(super) room: Option<usize>,
    pub(super) is_cut: bool,
    /// How often it was given something to send.
    pub(super) writes: usize,
    /// What the client made of all that came down.
    pub(super) heard: Vec<u8>,
}

#[derive(Clone, Default)]
pub(crate) struct Link(Arc<Mutex<Between>>);

impl Link {
    pub(super) fn lock(&self) -> MutexGuard<'_, Between> {
        self.0.lock().expect("unpoisoned")
    }
}

impl AsyncRead for Link {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut between = self.lock();
        let most = if between.piece == 0 { usize::MAX } else { between.piece };
        let n = between.up.len().min(out.remaining()).min(most);
        if n == 0 && !between.is_cut {
            return Poll::Pending;
        }
        between.up.drain(..n).for_each(|byte| out.put_slice(&[byte]));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut between = self.lock();
        let most = if between.piece == 0 { usize::MAX } else { between.piece };
        let n = bytes.len().min(most).min(between.room.unwrap_or(usize::MAX));
        if n == 0 {
            return Poll::Pending;
        }
        if let Some(room) = &mut between.room {
            *room -= n;
        }
        between.down.extend_from_slice(&bytes[..n]);
        between.writes += 1;
        Poll::Ready(Ok(n))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A client of rustls and a server.
pub(crate) struct Pair {
    pub(super) client: ClientConnection,
    pub(super) server: TlsStream<Link>,
    pub(super) link: Link,
}

fn provider(suite: usize) -> CryptoProvider {
    let provider = aws_lc_rs::default_provider();
    let of_13 = provider.cipher_suites.iter().filter(|suite| suite.tls13().is_some()).copied();
    let cipher_suites: Vec<_> = of_13.collect();
    CryptoProvider { cipher_suites: vec![cipher_suites[suite % cipher_suites.len()]], ..provider }
}

fn client(suite: usize) -> ClientConnection {
    let mut roots = RootCertStore::empty();
    roots.add(SERVER.0.clone()).expect("a certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(provider(suite)))
        .with_protocol_versions(&[&version::TLS13])
        .expect("a version");
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_secret_extraction = true;
    ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").expect("a name")).expect("a client")
}

/// What the client has to say goes up, and what came down goes to the client.
pub(super) fn carry(client: &mut ClientConnection, link: &Link) -> Result<(), rustls::Error> {
    let mut between = link.lock();
    while client.wants_write() {
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).expect("into memory");
        between.up.extend(bytes);
    }
    let down = std::mem::take(&mut between.down);
    let mut down = Cursor::new(&down[..]);
    while (down.position() as usize) < down.get_ref().len() {
        client.read_tls(&mut down).expect("from memory");
        client.process_new_packets()?;
        match client.reader().read_to_end(&mut between.heard) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => drop(outcome.expect("it reads")),
        }
    }
    Ok(())
}

fn read(server: &mut TlsStream<Link>, room: usize) -> (Vec<u8>, Option<io::Result<()>>) {
    let mut all = Vec::new();
    loop {
        let mut bytes = vec![0; room];
        let mut out = ReadBuf::new(&mut bytes);
        match Pin::new(&mut *server).poll_read(&mut Context::from_waker(Waker::noop()), &mut out) {
            Poll::Pending => return (all, None),
            Poll::Ready(Ok(())) if out.filled().is_empty() => return (all, Some(Ok(()))),
            Poll::Ready(Ok(())) => all.extend_from_slice(out.filled()),
            Poll::Ready(Err(error)) => return (all, Some(Err(error))),
        }
    }
}

/// What becomes of a handshake with a stranger who says this, in such pieces, and then waits: whether it is over, and all
/// that the stranger was told.
pub(crate) fn hear(said: &[u8], piece: usize) -> (Poll<io::Result<()>>, Vec<u8>) {
    let link = Link::default();
    link.lock().up.extend(said);
    link.lock().piece = piece;
    let heard = pin!(accept(Arc::clone(&SERVER.1), link.clone(), None)).poll(&mut Context::from_waker(Waker::noop()));
    let told = std::mem::take(&mut link.lock().down);
    (heard.map_ok(drop), told)
}

/// The same with the library's own connection, which has buffers.
pub(crate) fn library_hears(mut said: &[u8]) -> (Result<(), rustls::Error>, Vec<u8>) {
    let mut server = ServerConnection::new(Arc::clone(&SERVER.1)).expect("a server");
    let (mut heard, mut told) = (Ok(()), Vec::new());
    while heard.is_ok() && !said.is_empty() {
        server.read_tls(&mut said).expect("from memory");
        heard = server.process_new_packets().map(drop);
    }
    while server.wants_write() {
        server.write_tls(&mut told).expect("into memory");
    }
    (heard, told)
}

/// What a client says first.
#[cfg(test)]
pub(super) fn hello() -> Vec<u8> {
    let mut hello = Vec::new();
    client(0).write_tls(&mut hello).expect("into memory");
    hello
}

impl Pair {
    /// A pair whose handshake is done, tickets and all; what `early` says leaves with the end of it.
    pub(crate) fn new(suite: usize, piece: usize, early: &[u8]) -> Self {
        let mut pair = Self::greeted(suite, piece, early);
        pair.write(b"welcome");
        pair.heard();
        pair
    }

    /// The same, before the server has said anything since.
    pub(super) fn greeted(suite: usize, piece: usize, early: &[u8]) -> Self {
        let link = Link::default();
        link.lock().piece = piece;
        let mut client = client(suite);
        let mut server = pin!(accept(Arc::clone(&SERVER.1), link.clone(), None));
        let mut has_said = false;
        loop {
            carry(&mut client, &link).expect("a good handshake");
            if !client.is_handshaking() && !has_said {
                client.writer().write_all(early).expect("into memory");
                has_said = true;
                continue;
            }
            if let Poll::Ready(server) = server.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return Self { client, server: server.expect("a good handshake"), link };
            }
        }
    }

    pub(crate) fn carry(&mut self) {
        carry(&mut self.client, &self.link).expect("nothing is wrong");
    }

    pub(crate) fn say(&mut self, bytes: &[u8]) {
        self.client.writer().write_all(bytes).expect("into memory");
        self.carry();
    }

    /// Everything that the server reads until it has to wait or it is the end, a buffer of so many bytes at a time.
    pub(crate) fn read(&mut self, room: usize) -> (Vec<u8>, Option<io::Result<()>>) {
        read(&mut self.server, room)
    }

    /// The server says this, as far as the socket takes it. Returns how much it took.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> usize {
        let mut context = Context::from_waker(Waker::noop());
        let mut taken = 0;
        while !bytes.is_empty()
            && let Poll::Ready(n) = Pin::new(&mut self.server).poll_write(&mut context, bytes)
        {
            let n = n.expect("it writes");
            (taken, bytes) = (taken + n, &bytes[n..]);
        }
        let _ = Pin::new(&mut self.server).poll_flush(&mut context);
        taken
    }

    pub(crate) fn heard(&mut self) -> Vec<u8> {
        self.carry();
        std::mem::take(&mut self.link.lock().heard)
    }

    /// In place of the client, its keys: who has them can seal what a client would not say.
    pub(crate) fn into_forger(self) -> Forger {
        let suite = self.client.negotiated_cipher_suite().and_then(|suite| suite.tls13()).expect("of TLS 1.3");
        let secrets = self.client.dangerous_extract_secrets().expect("secrets");
        let (sealer, opener) = (Sealer::new(secrets.tx).expect("keys"), Opener::new(secrets.rx).expect("keys"));
        Forger { sealer, opener, ciphers: suite.aead_alg, server: self.server, link: self.link }
    }
}

pub(crate) struct Forger {
    sealer: Sealer,
    opener: Opener,
    pub(super) ciphers: Ciphers,
    pub(super) server: TlsStream<Link>,
    pub(super) link: Link,
}

impl Forger {
    pub(crate) fn say(&mut self, typ: u8, plain: &[u8]) {
        let mut sealed = Vec::new();
        self.sealer.seal(self.ciphers, ContentType::from(typ), plain, &mut sealed).expect("sealed");
        self.link.lock().up.extend(sealed);
    }

    /// The same, with a byte of the sealed record turned over on the way.
    pub(crate) fn say_damaged(&mut self, typ: u8, plain: &[u8], is_damaged: bool) {
        let begin = self.link.lock().up.len();
        self.say(typ, plain);
        if is_damaged {
            self.link.lock().up[begin + 7] ^= 1;
        }
    }

    /// Everything that the server reads, the socket giving so many bytes at once, until it waits or it is the end.
    pub(crate) fn read(&mut self, piece: usize) -> (Vec<u8>, Option<io::Result<()>>) {
        self.link.lock().piece = piece;
        read(&mut self.server, 1 << 16)
    }

    /// What the server reads, and what it says of it: an alert, or `None`.
    pub(crate) fn outcome(&mut self) -> (Poll<Result<usize, io::ErrorKind>>, Option<u8>) {
        let mut bytes = vec![0; 1 << 16];
        let mut out = ReadBuf::new(&mut bytes);
        let read = Pin::new(&mut self.server).poll_read(&mut Context::from_waker(Waker::noop()), &mut out);
        let read = read.map(|read| read.map(|()| out.filled().len()).map_err(|error| error.kind()));
        let mut down = std::mem::take(&mut self.link.lock().down);
        let alert = (!down.is_empty()).then(|| {
            let said = self.opener.open(self.ciphers, &mut down[5..]).expect("sealed by the server");
            assert_eq!((said.typ, said.payload[0]), (ContentType::Alert, 2), "a fatal alert");
            said.payload[1]
        });
        (read, alert)
    }
}
