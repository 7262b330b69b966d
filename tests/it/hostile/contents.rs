//! Contents that would be something else, if anybody looked into them.

use bytes::Bytes;
use longwire_protocol::packet::packet::Kind;
use longwire_protocol::packet::{self, Publish, item};
use longwire_protocol::reason::Reason;
use longwire_protocol::{limits, varint};

use super::{Bystander, Raw, framed};
use crate::world::World;

/// A megabyte of zeros, by `gzip -9n`: more than a content may have, if somebody inflated it.
pub(super) const ZEROS: &[u8] = include_bytes!("../../../src/cli/bench/hostile/zeros.gz");

/// Gets: what it sent, byte for byte, live and from history; the limit is that of the bytes that came. Costs: those bytes.
#[tokio::test]
async fn what_is_compressed_is_stored_and_given_back_as_it_came() {
    assert!(ZEROS.len() < 2_000 && limits::PAYLOAD_BYTES_MAX < 1 << 20);
    let world = World::new().await;
    let (mut alice, mut mallory, direct) = world.pair().await;
    for _ in 0..3 {
        let content = Bytes::from_static(ZEROS);
        mallory.publish(Publish { conversation: direct, content, ..Publish::default() }).await.expect("stored");
        assert_eq!(alice.entry(direct).await.content, ZEROS);
    }
    let pages = alice.pages(direct, 50, false).await;
    let entries = pages.iter().flat_map(|page| &page.items).filter_map(|item| match &item.kind {
        Some(item::Kind::Entry(entry)) => Some(&entry.content),
        _ => None,
    });
    assert_eq!(entries.map(|content| content == ZEROS).collect::<Vec<_>>(), [true; 3]);
    // One byte beyond the limit is beyond it, however little it would be.
    let content = Bytes::from(vec![0; limits::PAYLOAD_BYTES_MAX as usize + 1]);
    let refusal = mallory.publish(Publish { conversation: direct, content, ..Publish::default() }).await;
    assert_eq!(refusal.expect_err("too large").reason, Reason::PayloadTooLarge);
    mallory.say(direct, "still here").await;
}

/// Gets: *malformed*, framed or not, before it is let in and after: no packet is ever inflated. Others: go on.
#[tokio::test]
async fn what_is_compressed_is_no_packet() {
    let world = World::new().await;
    let mut bystander = Bystander::new(&world).await;
    let mut length = bytes::BytesMut::new();
    varint::write(ZEROS.len() as u64, &mut length);
    // gzip, framed and bare; zlib and zstd by how they begin.
    let framed_zeros = [&length[..], ZEROS].concat();
    for (n, bytes) in
        [framed_zeros, ZEROS.to_vec(), vec![4, 0x78, 0xda, 0x63, 0x60], vec![5, 0x28, 0xb5, 0x2f, 0xfd, 4]]
            .into_iter()
            .enumerate()
    {
        let mut raw = Raw::open(world.port()).await;
        raw.send(&bytes).await;
        assert_eq!(raw.end().await, Some(Reason::Malformed), "before Connected: {:x?}", &bytes[..4]);
        let connect = packet::Connect { device: format!("d{n}"), ..world.connect("mallory") };
        let (mut raw, _) = Raw::let_in(world.port(), connect.clone()).await;
        raw.send(&bytes).await;
        assert_eq!(raw.end().await, Some(Reason::Malformed), "in a session: {:x?}", &bytes[..4]);
        bystander.goes_on().await;
    }
    // A token is not inflated either.
    let mut raw = Raw::open(world.port()).await;
    let token = ZEROS.iter().map(|byte| char::from(byte & 0x7f)).collect();
    raw.send(&framed(&Kind::Connect(packet::Connect { token, ..world.connect("mallory") }))).await;
    assert_eq!(raw.end().await, Some(Reason::Unauthenticated));
}
