//! The target `records`: what the store reads back from its files, of any bytes. Not part of a broker.

use bytes::{BufMut as _, Bytes};
use longwire_protocol::{ConversationId, DeviceId, Incarnation, LogTime, MessageId, Seq};
use xxhash_rust::xxh3::xxh3_64;

use super::frame::{EntryMeta, Frame, FrameBuilder, Origin, Record, StoredEntry};
use super::run::{Packer, decode_row, key_bytes};
use super::sealed_row::{seal, take_numbers};
use super::{Position, SegmentId};

/// The first byte says what the rest is: a frame or a row, as it stands or with the checksum made right; or numbers that
/// a frame and rows are made of, which then have to read back.
///
/// # Panics
/// If something is read back otherwise than it was written, or if more is held than was read.
pub(crate) fn records(data: &[u8]) {
    let Some((&what, bytes)) = data.split_first() else { return };
    match what % 5 {
        0 => frame(Bytes::copy_from_slice(bytes)),
        1 => {
            let mut bytes = bytes.to_vec();
            let sum = xxh3_64(&bytes);
            bytes.put_u64_le(sum);
            frame(bytes.into());
        }
        2 => row(bytes),
        3 => {
            let mut bytes = bytes.to_vec();
            seal(&key_bytes((1, 1)), &mut bytes);
            row(&bytes);
        }
        _ => round_trip(bytes),
    }
}

fn frame(bytes: Bytes) {
    let Ok(frame) = Frame::decode(bytes.clone()) else { return };
    // A record takes five bytes at least.
    assert!(frame.records.len() <= bytes.len() / 5, "more records than there is room for");
    assert!(frame.last().0 + 1 >= frame.first.0, "a frame ends behind its beginning");
    let mut builder = FrameBuilder::new(frame.segment, frame.first, frame.time);
    for record in &frame.records {
        match record {
            Record::Entry(entry) => drop(push(&mut builder, entry)),
            Record::Change(change) => drop(builder.push_change(|b| b.put_slice(&change.body))),
            Record::Rider(change) => builder.push_rider(|b| b.put_slice(&change.body)),
        }
    }
    let again = builder.finish();
    // Varints may have been padded; all that they say is the same.
    assert_eq!((again.first, again.positions, again.time, &again.records), {
        (frame.first, frame.positions, frame.time, &frame.records)
    });
    assert_eq!(Frame::decode(again.bytes.clone()).as_ref(), Ok(&again));
}

fn row(bytes: &[u8]) {
    let _ = take_numbers::<4>("rows", bytes);
    let Ok(entries) = decode_row(ConversationId(1), Seq(1), bytes) else { return };
    // Nine varints and a digest at least.
    assert!(entries.len() <= bytes.len() / 17, "more entries than there is room for");
    for (seq, entry) in (1..).zip(&entries) {
        assert_eq!(entry.seq, Seq(seq), "seqs without a hole");
    }
    packed(&entries);
}

/// Entries as numbers: one byte each most of the time.
fn round_trip(bytes: &[u8]) {
    let mut bytes = bytes.iter().copied();
    let mut number = || match bytes.next() {
        Some(small @ 0..=0xf7) => Some(u64::from(small)),
        Some(bits) => Some(u64::from(bytes.next()?) << (8 * (bits - 0xf8))),
        None => None,
    };
    let Some(first) = number() else { return };
    let mut builder = FrameBuilder::new(SegmentId(first), Position(first.max(1) >> 1 | 1), LogTime(first));
    let mut seq = 0;
    while let (Some(conversation), Some(countable), Some(device), Some(len)) = (number(), number(), number(), number())
    {
        seq += 1;
        let meta = EntryMeta {
            conversation: ConversationId(conversation % 3),
            seq: Seq(seq),
            countable,
            origin: Origin { device: DeviceId(device), incarnation: Incarnation(len), message_id: MessageId(seq) },
            first_unanswered: MessageId(countable),
            digest: device,
            source: Position(conversation),
        };
        builder.push_entry(&meta, |b| b.put_bytes(7, (len % 5_000) as usize));
    }
    let built = builder.finish();
    assert_eq!(Frame::decode(built.bytes.clone()).as_ref(), Ok(&built));
    packed(&built.entries().cloned().collect::<Vec<_>>());
}

/// Rows made of these entries hold them.
fn packed(entries: &[StoredEntry]) {
    let mut packer = Packer::default();
    let mut rows: Vec<_> = entries.iter().filter_map(|entry| packer.push(entry)).collect();
    rows.extend(packer.take());
    let mut again = Vec::new();
    for ((conversation, seq), row) in rows {
        again.extend(decode_row(ConversationId(conversation), Seq(seq), &row).expect("a row that was just written"));
    }
    assert_eq!(again, entries);
}

fn push(builder: &mut FrameBuilder, entry: &StoredEntry) -> Position {
    let meta = EntryMeta {
        conversation: entry.conversation,
        seq: entry.seq,
        countable: entry.countable,
        origin: entry.origin,
        first_unanswered: entry.first_unanswered,
        digest: entry.digest,
        source: entry.source,
    };
    builder.push_entry(&meta, |b| b.put_slice(&entry.item))
}
