//! Attacks before authentication.

use std::time::Duration;

use longwire_protocol::limits::PRE_AUTH_FRAME_BYTES_MAX;
use longwire_protocol::packet::packet::Kind;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::super::load::wire::fresh;
use super::attack::Ground;
use super::door::{CLOSED, framed};
use super::tally::Open;
use crate::auth::{self, AUDIENCE, Claims};

/// How many attack at once, where they come and go.
pub(super) const TASKS: u64 = 32;
/// How long who attacks waits for the answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// How slowly.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Slow {
    Silent,
    Hello,
    Connect,
}

/// The first bytes of a `ClientHello`: a record of 256 bytes, a handshake message of 252.
const HELLO: [u8; 9] = [0x16, 0x03, 0x01, 0x01, 0x00, 0x01, 0x00, 0x00, 0xfc];

pub(super) async fn slow(ground: Ground, how: Slow) {
    each(ground.connections as u64, |n| {
        let ground = ground.clone();
        async move {
            loop {
                match how {
                    Slow::Silent | Slow::Hello => {
                        ground.connects.turn(1).await;
                        let open = ground.tally.opened();
                        let first = if how == Slow::Hello { &HELLO[..] } else { &[] };
                        match ground.door.socket(n).await {
                            Ok(socket) => trickle(&ground, socket, first, how == Slow::Hello, open).await,
                            Err(error) => ground.tally.failed(&error),
                        }
                    }
                    Slow::Connect => {
                        let Some((peer, open)) = ground.stream(n).await else { continue };
                        let connect = fresh("x".repeat(1_000), "slow".to_owned());
                        let all = framed(&Kind::Connect(connect));
                        trickle(&ground, peer.stream, &all[..20], true, open).await;
                    }
                }
            }
        }
    })
    .await;
}

/// Says `first` and then a byte a second, until the broker closes.
async fn trickle<S: AsyncRead + AsyncWrite + Unpin>(
    ground: &Ground,
    mut stream: S,
    first: &[u8],
    goes_on: bool,
    open: Open,
) {
    // What the broker does not take, it has closed already.
    let mut said = stream.write_all(first).await.and(stream.flush().await);
    ground.tally.sent(1, first.len());
    let mut bytes = [0; 256];
    loop {
        match timeout(Duration::from_secs(1), stream.read(&mut bytes)).await {
            Ok(Ok(0) | Err(_)) => break,
            Ok(Ok(_)) => {}
            Err(_) if said.is_err() => break,
            Err(_) if goes_on => {
                said = stream.write_all(b"\x01").await.and(stream.flush().await);
                ground.tally.sent(0, 1);
            }
            Err(_) => {}
        }
    }
    open.ended(CLOSED);
}

pub(super) async fn connections(ground: Ground) {
    each(TASKS, |_| {
        let ground = ground.clone();
        async move {
            loop {
                // As dear as ten packets.
                ground.packets.turn(10).await;
                let open = ground.tally.opened();
                match ground.door.socket(0).await {
                    Ok(socket) => drop(socket),
                    Err(error) => ground.tally.failed(&error),
                }
                drop(open);
            }
        }
    })
    .await;
}

pub(super) async fn handshakes(ground: Ground) {
    each(TASKS, |n| {
        let ground = ground.clone();
        async move {
            loop {
                drop(ground.stream(n).await);
            }
        }
    })
    .await;
}

pub(super) async fn garbage(ground: Ground) {
    each(TASKS, |n| {
        let ground = ground.clone();
        async move {
            loop {
                let noise: Vec<u8> = (0..512).map(|_| fastrand::u8(..)).collect();
                if n.is_multiple_of(2) && ground.door.has_tls {
                    ground.connects.turn(1).await;
                    let open = ground.tally.opened();
                    match ground.door.socket(n).await {
                        Ok(socket) => trickle(&ground, socket, &noise, false, open).await,
                        Err(error) => ground.tally.failed(&error),
                    }
                } else if let Some((mut peer, open)) = ground.stream(n).await {
                    // A length that might be one, and noise.
                    let frame = [&[0xff, 0x03], &noise[..511]].concat();
                    ground.tally.sent(1, frame.len());
                    let _closed = peer.stream.write_all(&frame).await.and(peer.stream.flush().await);
                    let end = timeout(PATIENCE, peer.end()).await.unwrap_or(CLOSED);
                    open.ended(end);
                }
            }
        }
    })
    .await;
}

pub(super) async fn tokens(ground: Ground) {
    each(TASKS, |n| {
        let ground = ground.clone();
        async move {
            for token in ground.bad_tokens.iter().cycle() {
                let Some((mut peer, open)) = ground.stream(n).await else { continue };
                ground.tally.sent(1, token.len());
                match timeout(PATIENCE, peer.connect(fresh(token.clone(), "phone".to_owned()))).await {
                    Ok(Err(how)) => open.ended(how),
                    Ok(Ok(_)) => {
                        ground.tally.accepted(0);
                        open.ended("let in");
                    }
                    Err(_) => open.ended("no answer"),
                }
            }
        }
    })
    .await;
}

/// A token of another key, one that has expired, one that nobody signed, one that is long, and no token.
pub(super) fn bad_tokens(issuer: &str, key: &[u8]) -> Result<Vec<String>, String> {
    let claims = |exp| Claims {
        iss: issuer.to_owned(),
        sub: "victim".to_owned(),
        aud: AUDIENCE.to_owned(),
        exp,
        ..Claims::default()
    };
    let good = auth::issue(&claims(u64::MAX / 2_000), key)?;
    let unsigned = good.rsplit_once('.').map_or("", |(head, _)| head);
    let (other_key, _) = auth::generate_key()?;
    Ok(vec![
        auth::issue(&claims(u64::MAX / 2_000), other_key.as_bytes())?,
        auth::issue(&claims(2_000), key)?,
        format!("{unsigned}."),
        "x".repeat(PRE_AUTH_FRAME_BYTES_MAX as usize - 200),
        "guessed".to_owned(),
    ])
}

/// So many tasks, which end when this is dropped.
pub(super) async fn each<F: Future<Output = ()> + Send + 'static>(count: u64, task: impl Fn(u64) -> F) {
    let mut tasks: JoinSet<()> = (0..count).map(task).collect();
    while tasks.join_next().await.is_some() {}
}
