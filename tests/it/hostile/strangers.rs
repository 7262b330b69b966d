//! Whoever reaches the port, with no token at all.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use longwire::broker::Certificate;
use longwire_protocol::packet::packet::Kind;
use longwire_protocol::reason::Reason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::{Bystander, Raw, framed, is_closed, socket_from};
use crate::tls::write_certificate;
use crate::world::{PATIENCE, World};

/// A TLS listener beside the plain one of the world; the folder holds its certificate.
async fn listen_with_tls(world: &World) -> (u16, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    write_certificate(folder.path());
    let certificate = Certificate::read(folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let socket = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = socket.local_addr().expect("its address").port();
    world.broker().listen(socket, certificate.expect("a certificate").security()).expect("listens");
    (port, folder)
}

/// The first bytes of a `ClientHello`: a record that says that there are 256 bytes, a handshake message of 252.
const HELLO: [u8; 9] = [0x16, 0x03, 0x01, 0x01, 0x00, 0x01, 0x00, 0x00, 0xfc];

/// Sends `first` at once and then a byte now and then, until the broker closes. Returns when it did.
async fn trickle(mut socket: TcpStream, first: &[u8]) -> Duration {
    let begun = Instant::now();
    let mut sent = socket.write_all(first).await;
    let mut bytes = [0; 256];
    while begun.elapsed() < PATIENCE {
        match timeout(Duration::from_millis(250), socket.read(&mut bytes)).await {
            Ok(Ok(0) | Err(_)) => return begun.elapsed(),
            _ if sent.is_err() => return begun.elapsed(),
            Ok(Ok(_)) => {}
            Err(_) => sent = socket.write_all(b"\x00").await,
        }
    }
    panic!("a connection that gets nowhere is still open after {PATIENCE:?}")
}

/// Gets: the close, after 5 s of TLS or 10 s without `Connected`, whatever it sends meanwhile. Costs: a socket and what
/// was sent. Others: go on.
#[tokio::test]
async fn who_gets_nowhere_is_closed_however_slowly_it_goes_on() {
    let world = World::new().await;
    let (tls, _folder) = listen_with_tls(&world).await;
    let mut bystander = Bystander::new(&world).await;
    let connect = framed(&Kind::Connect(world.connect("slow")));
    let to = async |port| TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
    let mut all = Vec::new();
    for (port, first, from, what) in [
        (tls, &b""[..], 4.5, "a trickle that is no TLS"),
        (tls, &HELLO[..], 4.5, "a hello, a byte at a time"),
        (world.port(), &connect[..connect.len() / 3], 9.0, "a Connect, a byte at a time"),
    ] {
        let (socket, first) = (to(port).await, first.to_vec());
        all.push(tokio::spawn(async move { (what, from, trickle(socket, &first).await) }));
    }
    let silence = async |port| {
        let (mut socket, begun) = (to(port).await, Instant::now());
        let mut said = Vec::new();
        timeout(PATIENCE, socket.read_to_end(&mut said)).await.expect("closed in time").expect("closed in order");
        (said, begun.elapsed())
    };
    let ((tls_said, tls_took), (said, took)) = tokio::join!(silence(tls), silence(world.port()));
    assert!(tls_said.is_empty() && tls_took >= Duration::from_millis(4_500), "{tls_took:?}");
    assert!(said.len() < 100 && took >= Duration::from_millis(9_000), "{took:?}: {} bytes", said.len());
    for attack in all {
        let (what, from, took) = attack.await.expect("closed");
        // A record that is no TLS ends at once.
        assert!(what.contains("no TLS") || took >= Duration::from_secs_f64(from), "{what}: after {took:?}");
    }
    bystander.goes_on().await;
}

/// Gets: *handshake_timeout*, since a heartbeat or an unknown packet before `Connect` prolongs nothing.
#[tokio::test]
async fn signs_of_life_do_not_prolong_the_time_to_connect() {
    let world = World::new().await;
    let mut raw = Raw::open(world.port()).await;
    let begun = Instant::now();
    let end = async {
        loop {
            // A heartbeat, and a packet whose member nobody knows.
            if raw.socket.write_all(b"\x00\x02\xf8\x07").await.is_err() {
                return;
            }
            let mut byte = [0];
            if matches!(timeout(Duration::from_millis(200), raw.socket.peek(&mut byte)).await, Ok(Ok(1..))) {
                return;
            }
        }
    };
    timeout(PATIENCE, end).await.expect("ended in time");
    assert!(matches!(raw.end().await, Some(Reason::HandshakeTimeout | Reason::Malformed)));
    assert!(begun.elapsed() < PATIENCE);
}

/// Gets: a quarter of the handshakes and of the line before them, the rest of its sockets closed at once. Costs: those.
/// Others: shake hands.
#[tokio::test]
async fn one_address_cannot_have_all_the_handshakes() {
    let mut world = World::new().await;
    world.accept.handshakes = 8;
    world.restart().await;
    let (port, folder) = listen_with_tls(&world).await;
    // All of them at once, again and again.
    let flood = async move {
        let (mut most, begun) = (0, Instant::now());
        while begun.elapsed() < Duration::from_secs(10) {
            let sockets = join_all((0..60).map(|_| socket_from(2, port))).await;
            let looks =
                join_all(sockets.iter().map(async |socket| !is_closed(socket.as_ref().expect("open")).await)).await;
            most = most.max(looks.into_iter().filter(|is_kept| *is_kept).count());
            sleep(Duration::from_millis(500)).await;
        }
        most
    };
    let flooding = tokio::spawn(flood);
    let mut let_in = 0;
    while !flooding.is_finished() {
        let trust = longwire_client::Trust::from_file(&folder.path().join("ca.pem")).expect("an authority");
        let address = format!("longwires://127.0.0.1:{port}").parse().expect("an address");
        let dialer = longwire_client::Dialer::new(&address, &trust).expect("a dialer");
        timeout(PATIENCE, dialer.dial()).await.expect("in time").expect("others shake hands meanwhile");
        let_in += 1;
        sleep(Duration::from_millis(100)).await;
    }
    let kept = flooding.await.expect("a flood");
    assert!((2..=32).contains(&kept), "{kept} of 60 were kept: a quarter of 8 that shake hands, and of 120 that wait");
    assert!(let_in > 1, "others shook hands {let_in} times");
}

/// Whoever finds all handshakes taken waits for a turn, and is let in.
#[tokio::test]
async fn a_crowd_from_one_address_is_let_in_one_after_another() {
    let mut world = World::new().await;
    world.accept.handshakes = 2;
    world.restart().await;
    let (port, folder) = listen_with_tls(&world).await;
    let trust = longwire_client::Trust::from_file(&folder.path().join("ca.pem")).expect("an authority");
    let address = format!("longwires://127.0.0.1:{port}").parse().expect("an address");
    let mut silent = socket_from(1, port).await.expect("the kernel accepts");
    let crowd: Vec<_> = (0..4)
        .map(|_| {
            let dialer = longwire_client::Dialer::new(&address, &trust).expect("a dialer");
            tokio::spawn(async move { dialer.dial().await.map(drop) })
        })
        .collect();
    // The only handshake that the address has at a time, until this one is told that it is none.
    silent.write_all(b"no TLS at all").await.expect("it is heard");
    for one in crowd {
        timeout(PATIENCE, one).await.expect("in time").expect("a task").expect("let in at the first try");
    }
}

/// Gets: as many connections as an address may have; the next are closed at once. Others: get in. Afterwards: so does it.
#[tokio::test]
async fn one_address_cannot_have_all_the_connections() {
    let mut world = World::new().await;
    world.accept.connections_per_address = 5;
    world.restart().await;
    let mut kept = Vec::new();
    for n in 0..30 {
        let socket = socket_from(2, world.port()).await.expect("the kernel accepts");
        let is_kept = n < 5;
        assert_eq!(is_closed(&socket).await, !is_kept, "connection {n}");
        if is_kept {
            kept.push(socket);
        }
    }
    let mut bystander = Bystander::new(&world).await;
    bystander.goes_on().await;
    drop(kept);
    let begun = Instant::now();
    loop {
        let mut raw = Raw::over(socket_from(2, world.port()).await.expect("the kernel accepts"));
        raw.say(&Kind::Connect(world.connect("late"))).await;
        if let Some(Kind::Connected(_)) = raw.next().await {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "what was let go comes free");
    }
    bystander.goes_on().await;
}

/// Gets: nothing, a thousand times. Others: go on, and no place stays taken.
#[tokio::test]
async fn connections_that_come_and_go_leave_nothing() {
    let mut world = World::new().await;
    world.accept.connections = 50;
    world.restart().await;
    let mut bystander = Bystander::new(&world).await;
    for n in 0..1_000 {
        let mut socket = world.socket().await;
        // Some are only opened, some cut off in a frame, some half closed.
        match n % 3 {
            0 => {}
            1 => drop(socket.write_all(b"\x80\x10\x82").await),
            _ => drop(socket.shutdown().await),
        }
        if n % 100 == 0 {
            bystander.goes_on().await;
        }
    }
    let begun = Instant::now();
    while world.broker().connections() > 1 {
        assert!(begun.elapsed() < PATIENCE, "{} places are still taken", world.broker().connections());
        sleep(Duration::from_millis(20)).await;
    }
    bystander.goes_on().await;
}
