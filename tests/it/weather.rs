//! The way to the real broker in bad weather: bytes come late, a few at a time, not at all for a while, and connections are
//! cut. Clients of the SDK end with everything, once and in order.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::load::Pair;
use crate::process::Process;

/// What the way is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Weather {
    /// How late each piece comes.
    delay_ms: u64,
    /// How large a piece is at most.
    piece: usize,
    /// Nothing comes, and nobody is told.
    is_frozen: bool,
    /// Connections of another number are cut.
    cut: u64,
}

const CALM: Weather = Weather { delay_ms: 0, piece: 64 << 10, is_frozen: false, cut: 0 };

/// A way to the broker; returns its port.
async fn way(broker: u16, weather: watch::Receiver<Weather>) -> u16 {
    let socket = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = socket.local_addr().expect("its address").port();
    tokio::spawn(async move {
        while let Ok((client, _)) = socket.accept().await {
            let Ok(broker) = TcpStream::connect(("127.0.0.1", broker)).await else { continue };
            let _ = (client.set_nodelay(true), broker.set_nodelay(true));
            let ((from_client, to_client), (from_broker, to_broker)) = (client.into_split(), broker.into_split());
            let (there, back, mut cut) = (weather.clone(), weather.clone(), weather.clone());
            let number = weather.borrow().cut;
            tokio::spawn(async move {
                tokio::select! {
                    _ = cut.wait_for(|weather| weather.cut != number) => {}
                    () = carry(from_client, to_broker, there) => {}
                    () = carry(from_broker, to_client, back) => {}
                }
            });
        }
    });
    port
}

/// Carries bytes one way until an end closes.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut weather: watch::Receiver<Weather>) {
    let mut buffer = vec![0; CALM.piece];
    loop {
        let piece = weather.borrow().piece;
        let Ok(read @ 1..) = from.read(&mut buffer[..piece]).await else { return };
        if weather.wait_for(|weather| !weather.is_frozen).await.is_err() {
            return;
        }
        let delay_ms = weather.borrow().delay_ms;
        if delay_ms > 0 {
            sleep(Duration::from_millis(delay_ms)).await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_any_weather_everything_comes_once_and_in_order() {
    let mut process = Process::new();
    let (change, weather) = watch::channel(CALM);
    let port = way(process.port, weather).await;
    let mut pairs = Vec::new();
    for n in 0..2 {
        let reader = format!("reader{n}");
        let config = |user: &str| process.config(user, "phone", port);
        let writer = config(&format!("writer{n}"));
        pairs.push(Pair::begin(&format!("w{n}"), writer, config(&reader), &reader, 16).await);
    }
    for round in 1..=4 {
        let cut = Weather { cut: round, ..CALM };
        // Each lasts for a while, or until something came through it.
        change.send_replace(Weather { delay_ms: 3, piece: 7, ..cut });
        sleep(Duration::from_millis(200)).await;
        change.send_replace(Weather { is_frozen: true, ..cut });
        sleep(Duration::from_millis(300)).await;
        if round % 2 == 0 {
            // Cut while nothing moves: what was on the way is gone.
            change.send_replace(Weather { is_frozen: true, cut: round + 100, ..CALM });
        }
        change.send_replace(Weather { delay_ms: 20, ..cut });
        for pair in &pairs {
            pair.more(5, &format!("round {round}, slow")).await;
        }
        change.send_replace(cut);
        for pair in &pairs {
            pair.more(20, &format!("round {round}, calm")).await;
        }
    }
    for pair in pairs {
        pair.end("bad weather").await;
    }
    assert!(process.drain().success());
    process.assert_no_panic("bad weather");
    process.assert_sound("bad weather");
}
