//! Attacks of those who have a token.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use longwire_client::packet::{self, CreateGroup, Join, OpenChannel, OpenDirect, publish::Action, request};
use longwire_protocol::packet::packet::Kind;
use longwire_protocol::reason::{Reason, Verdict};
use longwire_protocol::{limits, varint};
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use super::attack::{Attack, Ground};
use super::door::{CLOSED, Peer, framed, named};
use super::strangers::each;
use super::tally::Tally;
use crate::routing::allowance::makes;

/// How many attack at once.
pub(super) const TASKS: u64 = 8;
/// Channels that one of them watches: more than it may.
const CHANNELS: u64 = 150;
/// How long who attacks waits for the broker to end it.
const PATIENCE: Duration = Duration::from_secs(15);

/// A field of this number that holds these bytes.
fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    varint::write(number << 3 | 2, &mut out);
    varint::write(bytes.len() as u64, &mut out);
    out.extend_from_slice(bytes);
    out.to_vec()
}

fn frame(body: &[u8]) -> Vec<u8> {
    [length(body.len() as u64), body.to_vec()].concat()
}

fn length(n: u64) -> Vec<u8> {
    let mut out = BytesMut::new();
    varint::write(n, &mut out);
    out.to_vec()
}

/// Bytes each of which ends a connection.
fn wrong_frames() -> Vec<Vec<u8>> {
    let deep = (0..500).fold(Vec::new(), |inner, _| field(1, &inner));
    vec![
        length(u64::from(limits::FRAME_BYTES_CEILING) + 1),
        length(u64::MAX),
        vec![0xff; 11],
        vec![0x80, 0x00],
        frame(&deep),
        frame(&vec![0x0b; 4_000]),
        [frame(&field(1, b"")), frame(&[field(2, b""), field(1, b"")].concat())].concat(),
    ]
}

pub(super) async fn framing(ground: Ground) {
    each(TASKS, |n| {
        let ground = ground.clone();
        async move {
            for (turn, bytes) in wrong_frames().iter().cycle().enumerate() {
                let (mut peer, open) = match turn % 2 {
                    0 => match ground.stream(n).await {
                        Some(opened) => opened,
                        None => continue,
                    },
                    _ => {
                        let (peer, open, _) = ground.session(n, &format!("d{}", turn % 16)).await;
                        (peer, open)
                    }
                };
                ground.tally.sent(1, bytes.len());
                let _closed = peer.stream.write_all(bytes).await.and(peer.stream.flush().await);
                let end = timeout(PATIENCE, peer.end()).await.unwrap_or("still open");
                open.ended(end);
            }
        }
    })
    .await;
}

pub(super) async fn flood(ground: Ground, what: Attack) {
    let (one, count) = match what {
        Attack::Heartbeats => (vec![0], 1_024),
        Attack::Acks => (framed(&Kind::Ack(packet::Ack::default())).to_vec(), 256),
        Attack::GiveUps => (framed(&Kind::GiveUp(packet::GiveUp { message_id: 1 << 50 })).to_vec(), 256),
        _ => (frame(&field(99, &[0xff; 40])), 64),
    };
    let bytes = one.repeat(count as usize);
    each(TASKS, |n| {
        let (ground, bytes) = (ground.clone(), bytes.clone());
        async move {
            loop {
                let (peer, open, _) = ground.session(n, "phone").await;
                let more = || async {
                    ground.packets.turn(count).await;
                    ground.tally.sent(count.into(), bytes.len());
                    Some(bytes.clone())
                };
                let end = peer.flood(more, |_| {}).await;
                open.ended(end);
            }
        }
    })
    .await;
}

/// Each ack of what is yet to be sent ends its session.
pub(super) async fn future(ground: Ground) {
    each(TASKS, |n| {
        let ground = ground.clone();
        async move {
            for turn in 0_u64.. {
                let (mut peer, open, _) = ground.session(n, &format!("d{}", turn % 16)).await;
                let ack = match turn % 2 {
                    0 => packet::Ack { express: 1 << 40, ..packet::Ack::default() },
                    _ => packet::Ack { bulk: u64::MAX, ..packet::Ack::default() },
                };
                ground.tally.sent(1, framed(&Kind::Ack(ack)).len());
                let _closed = peer.say(&Kind::Ack(ack)).await;
                match timeout(PATIENCE, peer.end()).await {
                    Ok(end) => open.ended(end),
                    Err(_) => ground.tally.wrong("an ack of what was not sent was taken"),
                }
            }
        }
    })
    .await;
}

pub(super) fn publish(message_id: u64, conversation: u64, action: Option<Action>) -> packet::Publish {
    packet::Publish { message_id, conversation, action, ..Default::default() }
}

/// Notes how a publish, that makes so much, or a request was answered.
pub(super) fn note(tally: &Tally, kind: &Kind, makes: u64) {
    match kind {
        Kind::PublishAck(_) => tally.accepted(makes),
        Kind::Response(_) => tally.accepted(0),
        Kind::Refused(refused) if refused.message_id != 0 || refused.request != 0 => {
            let retries = Reason::from_number(refused.code).is_some_and(|reason| reason.verdict() == Verdict::Retry);
            tally.refused(named(refused), !retries || refused.retry_after_ms > 0);
        }
        _ => {}
    }
}

/// Publishes a batch and waits for all answers; the conversations that were opened. `None` once it was ended.
pub(super) async fn publish_batch(
    ground: &Ground,
    peer: &mut Peer,
    first: u64,
    batch: Vec<packet::Publish>,
) -> Result<Vec<u64>, &'static str> {
    let mut out = BytesMut::new();
    let mut left = batch.len();
    let makes = batch.iter().map(|publish| u64::from(makes(publish))).max().unwrap_or(0);
    for publish in batch {
        let publish = packet::Publish { first_unanswered: first, ..publish };
        let frame = framed(&Kind::Publish(publish));
        // A large one is as dear as several.
        ground.packets.turn(1 + frame.len() as u32 / 1_024).await;
        out.extend_from_slice(&frame);
    }
    ground.tally.sent(left as u64, out.len());
    if peer.stream.write_all(&out).await.and(peer.stream.flush().await).is_err() {
        return Err(peer.end().await);
    }
    let mut opened = Vec::new();
    while left > 0 {
        let Some(kind) = peer.next().await else { return Err(CLOSED) };
        note(&ground.tally, &kind, makes);
        match kind {
            Kind::PublishAck(ack) => {
                left -= 1;
                opened.push(ack.conversation);
            }
            Kind::Refused(refused) if refused.message_id != 0 => left -= 1,
            Kind::Refused(refused) => return Err(named(&refused)),
            _ => {}
        }
    }
    Ok(opened)
}

pub(super) fn channel(name: String) -> Option<Action> {
    Some(Action::OpenChannel(OpenChannel { name }))
}

pub(super) async fn window(ground: Ground) {
    each(TASKS, |n| {
        let ground = ground.clone();
        async move {
            for turn in 0_u64.. {
                let (mut peer, open, connected) = ground.session(n, &format!("d{}", turn % 16)).await;
                let own = channel(format!("{}/{n}", ground.prefix));
                let opened = publish_batch(&ground, &mut peer, 1, vec![publish(1, 0, own)]).await;
                let Ok([own]) = opened.as_deref() else { continue };
                let most = u64::from(connected.publish.unwrap_or_default().items);
                let content = Bytes::from_static(&[b'x'; 100]);
                let all: Vec<u8> = (2..2 + 4 * most)
                    .flat_map(|id| {
                        let one = packet::Publish { content: content.clone(), ..publish(id, *own, None) };
                        framed(&Kind::Publish(one)).to_vec()
                    })
                    .collect();
                ground.packets.turn(4 * most as u32).await;
                ground.tally.sent(4 * most, all.len());
                // What lies within the window is stored, whether it is answered or not.
                ground.tally.made(most);
                let mut all = Some(all);
                let end = peer.flood(|| std::future::ready(all.take()), |kind| note(&ground.tally, kind, 0)).await;
                open.ended(end);
            }
        }
    })
    .await;
}

/// Asks, eight requests at a time, until it is ended.
async fn ask(ground: &Ground, peer: &mut Peer, mut ops: impl FnMut(u64) -> request::Op) -> &'static str {
    let mut id = 0;
    loop {
        let mut out = BytesMut::new();
        for _ in 0..limits::REQUESTS_MAX {
            ground.packets.turn(1).await;
            id += 1;
            out.extend_from_slice(&framed(&Kind::Request(packet::Request { id, op: Some(ops(id)) })));
        }
        ground.tally.sent(limits::REQUESTS_MAX.into(), out.len());
        if peer.stream.write_all(&out).await.and(peer.stream.flush().await).is_err() {
            return peer.end().await;
        }
        let mut left = limits::REQUESTS_MAX;
        while left > 0 {
            let Some(kind) = peer.next().await else { return CLOSED };
            note(&ground.tally, &kind, 0);
            match kind {
                Kind::Response(_) => left -= 1,
                Kind::Refused(refused) if refused.request != 0 => left -= 1,
                Kind::Refused(refused) => return named(&refused),
                _ => {}
            }
        }
    }
}

pub(super) async fn history(ground: Ground) {
    each(TASKS, |n| {
        let ground = ground.clone();
        async move {
            loop {
                let (mut peer, open, _) = ground.session(n, "phone").await;
                let own = publish(1, 0, channel(ground.busy.clone()));
                let opened = publish_batch(&ground, &mut peer, 1, vec![own]).await;
                let Ok([busy]) = opened.as_deref() else { continue };
                let request = packet::HistoryRequest {
                    conversation: *busy,
                    // Many small ones are as dear as few large ones.
                    limit: if n % 2 == 0 { limits::PAGE_ITEMS_MAX as u32 } else { 1 },
                    ..Default::default()
                };
                let end = ask(&ground, &mut peer, |_| request::Op::History(request)).await;
                open.ended(end);
            }
        }
    })
    .await;
}

pub(super) async fn watches(ground: Ground) {
    each(TASKS, |n| {
        let ground = ground.clone();
        async move {
            loop {
                let (mut peer, open, _) = ground.session(n, "phone").await;
                let mut channels = Vec::new();
                for first in (1..=CHANNELS).step_by(50) {
                    let name = |id: u64| channel(format!("{}/{n}/{id}", ground.prefix));
                    let batch = (first..first + 50).map(|id| publish(id, 0, name(id))).collect();
                    channels.extend(publish_batch(&ground, &mut peer, first, batch).await.unwrap_or_default());
                }
                if channels.is_empty() {
                    continue;
                }
                let end = ask(&ground, &mut peer, |id| {
                    let conversation = channels[id as usize % channels.len()];
                    let stop = (id / channels.len() as u64) % 2 == 1;
                    request::Op::Watch(packet::WatchRequest { conversation, stop })
                })
                .await;
                open.ended(end);
            }
        }
    })
    .await;
}

/// One in ten readers of the busy channel.
pub(super) async fn lazy(ground: Ground, reads: bool) {
    each(ground.readers.div_ceil(10) as u64, |n| {
        let ground = ground.clone();
        async move {
            loop {
                let (mut peer, open, _) = ground.session(n, "phone").await;
                let opened = vec![publish(1, 0, channel(ground.busy.clone()))];
                let opened = publish_batch(&ground, &mut peer, 1, opened).await;
                let Ok([busy]) = opened.as_deref() else { continue };
                let join = publish(2, *busy, Some(Action::Join(Join::default())));
                if publish_batch(&ground, &mut peer, 2, vec![join]).await.is_err() {
                    continue;
                }
                if reads {
                    open.ended(peer.end().await);
                } else {
                    // It says that it is there, and reads nothing.
                    while peer.stream.write_all(&[0]).await.and(peer.stream.flush().await).is_ok() {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    open.ended(CLOSED);
                }
            }
        }
    })
    .await;
}

/// Publishes batch after batch of actions, until it is ended. All are devices of one user.
async fn bomb(ground: &Ground, n: u64, batch: u64, action: impl Fn(u64) -> Action) {
    loop {
        let (mut peer, open, _) = ground.session(0, &format!("d{n}")).await;
        let mut first = 1;
        let end = loop {
            let all = (first..first + batch).map(|id| publish(id, 0, Some(action(id)))).collect();
            if let Err(end) = publish_batch(ground, &mut peer, first, all).await {
                break end;
            }
            first += batch;
        };
        open.ended(end);
    }
}

pub(super) async fn conversations(ground: Ground) {
    each(TASKS, |n| {
        let ground = ground.clone();
        async move {
            let make = |id: u64| match id % 2 {
                0 => Action::CreateGroup(CreateGroup { label: format!("{id}"), ..Default::default() }),
                _ => Action::OpenDirect(OpenDirect { user: format!("{}-{n}-{id}", ground.prefix) }),
            };
            bomb(&ground, n, u64::from(limits::PUBLISH_WINDOW.items), make).await;
        }
    })
    .await;
}

pub(super) async fn members(ground: Ground) {
    each(TASKS, |n| {
        let ground = ground.clone();
        async move {
            let make = |id: u64| {
                let users = (0..limits::GROUP_USERS_MAX).map(|m| format!("{}-{n}-{id}-{m}", ground.prefix)).collect();
                Action::CreateGroup(CreateGroup { users, ..Default::default() })
            };
            bomb(&ground, n, 4, make).await;
        }
    })
    .await;
}

pub(super) async fn takeovers(ground: Ground) {
    each(TASKS, |n| {
        let ground = ground.clone();
        async move {
            loop {
                // Two fight for one device.
                let (mut peer, open, _) = ground.session(n / 2, "phone").await;
                let end = peer.end().await;
                open.ended(end);
            }
        }
    })
    .await;
}
