//! Contents that are too large, and such as would be, if anybody looked into them.

use bytes::Bytes;
use longwire_client::packet::{self, item, request, response};
use longwire_protocol::packet::packet::Kind;

use super::attack::Ground;
use super::door::{CLOSED, Peer, named};
use super::insiders::{TASKS, channel, publish, publish_batch};
use super::strangers::each;

/// A megabyte of zeros, by `gzip -9n`: more than a content may have, if somebody inflated it.
const ZEROS: &[u8] = include_bytes!("zeros.gz");
/// How many of them are published before they are read back.
const BATCH: u64 = 16;

/// A byte more than may be: refused, and the session goes on.
pub(super) async fn huge(ground: Ground) {
    each(TASKS, |n| {
        let ground = ground.clone();
        async move {
            loop {
                let (mut peer, open, connected) = ground.session(n, "phone").await;
                let content = Bytes::from(vec![0; connected.payload_bytes_max as usize + 1]);
                let Ok(own) = open_own(&ground, &mut peer, n).await else { continue };
                let mut id = 1;
                let end = loop {
                    id += 1;
                    let one = packet::Publish { content: content.clone(), ..publish(id, own, None) };
                    match publish_batch(&ground, &mut peer, id, vec![one]).await {
                        Ok(stored) if stored.is_empty() => {}
                        Ok(_) => ground.tally.wrong("a content beyond the limit was stored"),
                        Err(end) => break end,
                    }
                };
                open.ended(end);
            }
        }
    })
    .await;
}

/// What is small and would not be: stored, and given back as it is.
pub(super) async fn compressed(ground: Ground) {
    each(TASKS, |n| {
        let ground = ground.clone();
        async move {
            loop {
                let (mut peer, open, _) = ground.session(n, "phone").await;
                let Ok(own) = open_own(&ground, &mut peer, n).await else { continue };
                let mut first = 2;
                let end = loop {
                    let one = packet::Publish { content: Bytes::from_static(ZEROS), ..publish(0, own, None) };
                    let batch = (first..first + BATCH).map(|id| packet::Publish { message_id: id, ..one.clone() });
                    match publish_batch(&ground, &mut peer, first, batch.collect()).await {
                        Ok(stored) => ground.tally.made(stored.len() as u64),
                        Err(end) => break end,
                    }
                    first += BATCH;
                    match newest(&ground, &mut peer, own).await {
                        Ok(contents) if contents.iter().all(|content| content == ZEROS) => {}
                        Ok(_) => ground.tally.wrong("a content came back other than it was sent"),
                        Err(end) => break end,
                    }
                };
                open.ended(end);
            }
        }
    })
    .await;
}

/// Opens the attacker's own channel, as its first publish.
async fn open_own(ground: &Ground, peer: &mut Peer, n: u64) -> Result<u64, &'static str> {
    let own = publish(1, 0, channel(format!("{}/{n}", ground.prefix)));
    let opened = publish_batch(ground, peer, 1, vec![own]).await?;
    opened.first().copied().ok_or("its channel was not opened")
}

/// The contents of the newest batch.
async fn newest(ground: &Ground, peer: &mut Peer, conversation: u64) -> Result<Vec<Bytes>, &'static str> {
    ground.packets.turn(1).await;
    ground.tally.sent(1, 0);
    let page = packet::HistoryRequest { conversation, limit: BATCH as u32, backwards: true, ..Default::default() };
    let request = packet::Request { id: 1, op: Some(request::Op::History(page)) };
    if peer.say(&Kind::Request(request)).await.is_err() {
        return Err(peer.end().await);
    }
    loop {
        match peer.next().await.ok_or(CLOSED)? {
            Kind::Response(packet::Response { result: Some(response::Result::History(page)), .. }) => {
                let entries = page.items.into_iter().filter_map(|item| match item.kind? {
                    item::Kind::Entry(entry) => Some(entry),
                    item::Kind::Own(own) => own.entry,
                    _ => None,
                });
                return Ok(entries.map(|entry| entry.content).collect());
            }
            Kind::Refused(refused) if refused.message_id == 0 && refused.request == 0 => return Err(named(&refused)),
            // Asked for again after the next batch.
            Kind::Refused(refused) if refused.request != 0 => return Ok(Vec::new()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use longwire_protocol::limits::PAYLOAD_BYTES_MAX;

    use super::*;

    #[test]
    fn what_is_small_says_that_it_would_be_too_large() {
        let (magic, length) = (&ZEROS[..2], ZEROS.last_chunk().expect("the length"));
        assert!(magic == [0x1f, 0x8b] && ZEROS.len() < 2_000);
        assert!(u32::from_le_bytes(*length) == 1 << 20 && 1 << 20 > PAYLOAD_BYTES_MAX);
    }
}
