//! A frame: what one group commit appends to the log. Built by the commit thread, read by recovery.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use longwire_protocol::{ConversationId, DeviceId, Incarnation, LogTime, MessageId, Seq};
use xxhash_rust::xxh3::xxh3_64;

use super::{Position, SegmentId};

/// Who published an entry, and under which message id; all 0 for what the broker itself writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Origin {
    /// The publishing device.
    pub device: DeviceId,
    /// The incarnation of its counter.
    pub incarnation: Incarnation,
    /// Its message id.
    pub message_id: MessageId,
}

/// An entry as the log keeps it and as readers get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEntry {
    /// The conversation.
    pub conversation: ConversationId,
    /// Its number there.
    pub seq: Seq,
    /// Its position in the log.
    pub position: Position,
    /// The time of its frame.
    pub time: LogTime,
    /// How many countable entries the conversation had up to and including this one.
    pub countable: u64,
    /// Who published it.
    pub origin: Origin,
    /// The device's first unanswered message id, when the publish told it; else 0.
    pub first_unanswered: MessageId,
    /// The digest of what was published, for telling a repeat from a reuse of its message id.
    pub digest: u64,
    /// For an entry that crossed from another conversation: the position of its source; else 0.
    pub source: Position,
    /// The encoded wire `Item`, shared by every recipient.
    pub item: Bytes,
}

/// A change of state that is no entry; its bytes mean something to `routing` alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its position; 0 for a rider, which takes none.
    pub position: Position,
    /// The change.
    pub body: Bytes,
}

/// One record of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An entry: takes a position and a seq.
    Entry(StoredEntry),
    /// A change of state that takes a position.
    Change(Change),
    /// A change of state that rides along (a cursor): takes no position.
    Rider(Change),
}

/// A frame: immutable, encoded, its records decoded as slices of its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The segment it was written in.
    pub segment: SegmentId,
    /// The position of its first positioned record; where the next would begin, if it has none.
    pub first: Position,
    /// How many of its records take a position.
    pub positions: u64,
    /// The log's time of all that is in it.
    pub time: LogTime,
    /// Its records, in order.
    pub records: Vec<Record>,
    /// Its encoding, checksum included.
    pub bytes: Bytes,
}

/// The first bytes of every frame; the last one is the format's version.
const MAGIC: [u8; 4] = *b"LWF\x01";
/// Magic, segment, first position, time, number of positions, number of records.
const HEADER_BYTES: usize = 4 + 8 + 8 + 8 + 4 + 4;
/// The checksum at the end.
const TRAILER_BYTES: usize = 8;

const RECORD_ENTRY: u8 = 1;
const RECORD_CHANGE: u8 = 2;
const RECORD_RIDER: u8 = 3;

/// Builds a frame record by record. Laid out as
///
/// ```text
/// "LWF" version | segment u64 | first u64 | time u64 | positions u32 | records u32     (little endian)
/// record*       = kind u8 | length u32 | body
///   entry body  = conversation, seq, countable, device, incarnation, message id, first unanswered, source (varints),
///                 digest u64, item
///   change body, rider body = opaque
/// xxh3-64 of all before it
/// ```
#[derive(Debug)]
pub struct FrameBuilder {
    buffer: BytesMut,
    segment: SegmentId,
    first: Position,
    time: LogTime,
    positions: u32,
    records: u32,
}

/// What [`FrameBuilder::push_entry`] records about an entry beside its item.
#[derive(Clone, Copy, Debug, Default)]
pub struct EntryMeta {
    /// The conversation.
    pub conversation: ConversationId,
    /// Its number there.
    pub seq: Seq,
    /// See [`StoredEntry::countable`].
    pub countable: u64,
    /// Who published it.
    pub origin: Origin,
    /// See [`StoredEntry::first_unanswered`].
    pub first_unanswered: MessageId,
    /// See [`StoredEntry::digest`].
    pub digest: u64,
    /// See [`StoredEntry::source`].
    pub source: Position,
}

impl FrameBuilder {
    /// Begins a frame whose first positioned record takes `first`.
    #[must_use]
    pub fn new(segment: SegmentId, first: Position, time: LogTime) -> Self {
        let mut buffer = BytesMut::with_capacity(HEADER_BYTES + TRAILER_BYTES + 256);
        buffer.put_slice(&MAGIC);
        buffer.put_u64_le(segment.0);
        buffer.put_u64_le(first.0);
        buffer.put_u64_le(time.0);
        buffer.put_u64_le(0);
        Self { buffer, segment, first, time, positions: 0, records: 0 }
    }

    /// The position that the next positioned record takes.
    #[must_use]
    pub fn next_position(&self) -> Position {
        Position(self.first.0 + u64::from(self.positions))
    }

    /// How many records it has.
    #[must_use]
    pub fn records(&self) -> usize {
        self.records as usize
    }

    /// How many bytes it has so far.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// The time of all that is in it.
    #[must_use]
    pub fn time(&self) -> LogTime {
        self.time
    }

    /// Adds an entry; `item` writes its encoded wire `Item`. Returns its position.
    pub fn push_entry(&mut self, meta: &EntryMeta, item: impl FnOnce(&mut BytesMut)) -> Position {
        let position = self.next_position();
        let body = self.begin(RECORD_ENTRY);
        let b = &mut self.buffer;
        for number in [
            meta.conversation.0,
            meta.seq.0,
            meta.countable,
            meta.origin.device.0,
            meta.origin.incarnation.0,
            meta.origin.message_id.0,
            meta.first_unanswered.0,
            meta.source.0,
        ] {
            put_varint(b, number);
        }
        b.put_u64_le(meta.digest);
        item(b);
        self.end(body);
        self.positions += 1;
        position
    }

    /// Adds a change of state. Returns its position.
    pub fn push_change(&mut self, change: impl FnOnce(&mut BytesMut)) -> Position {
        let position = self.next_position();
        let body = self.begin(RECORD_CHANGE);
        change(&mut self.buffer);
        self.end(body);
        self.positions += 1;
        position
    }

    /// Adds a change of state that takes no position.
    pub fn push_rider(&mut self, change: impl FnOnce(&mut BytesMut)) {
        let body = self.begin(RECORD_RIDER);
        change(&mut self.buffer);
        self.end(body);
    }

    /// The frame, encoded once; its records are slices of these bytes.
    #[must_use]
    pub fn finish(mut self) -> Frame {
        let counts = HEADER_BYTES - 8;
        self.buffer[counts..counts + 4].copy_from_slice(&self.positions.to_le_bytes());
        self.buffer[counts + 4..counts + 8].copy_from_slice(&self.records.to_le_bytes());
        let sum = xxh3_64(&self.buffer);
        self.buffer.put_u64_le(sum);
        let bytes = self.buffer.freeze();
        let mut records = Vec::with_capacity(self.records as usize);
        decode_records(&bytes, self.first, self.time, &mut records).expect("a frame decodes as it was just encoded");
        Frame {
            segment: self.segment,
            first: self.first,
            positions: u64::from(self.positions),
            time: self.time,
            records,
            bytes,
        }
    }

    fn begin(&mut self, kind: u8) -> usize {
        self.buffer.put_u8(kind);
        self.buffer.put_u32_le(0);
        self.records += 1;
        self.buffer.len()
    }

    fn end(&mut self, body: usize) {
        let length = u32::try_from(self.buffer.len() - body).expect("a record is far smaller than 4 GiB");
        self.buffer[body - 4..body].copy_from_slice(&length.to_le_bytes());
    }
}

/// Why bytes are no frame.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Shorter than any frame, or cut off.
    #[error("the frame is cut off")]
    Short,
    /// Other first bytes.
    #[error("not a frame, or one of a newer format")]
    Magic,
    /// The checksum is that of other bytes.
    #[error("the frame's checksum is wrong")]
    Checksum,
    /// Checksum right, contents contradictory.
    #[error("the frame is malformed")]
    Malformed,
}

impl Frame {
    /// Decodes a frame and checks its checksum.
    ///
    /// # Errors
    /// When the bytes are not exactly one frame.
    pub fn decode(bytes: Bytes) -> Result<Self, FrameError> {
        if bytes.len() < HEADER_BYTES + TRAILER_BYTES {
            return Err(FrameError::Short);
        }
        if bytes[..4] != MAGIC {
            return Err(FrameError::Magic);
        }
        let mut trailer = &bytes[bytes.len() - TRAILER_BYTES..];
        if trailer.get_u64_le() != xxh3_64(&bytes[..bytes.len() - TRAILER_BYTES]) {
            return Err(FrameError::Checksum);
        }
        let mut header = &bytes[4..HEADER_BYTES];
        let segment = SegmentId(header.get_u64_le());
        let first = Position(header.get_u64_le());
        let time = LogTime(header.get_u64_le());
        let positions = u64::from(header.get_u32_le());
        let count = header.get_u32_le();
        // Positions begin at 1, and the next frame's has to be a number too.
        if first.0 == 0 || first.0.checked_add(positions).is_none() {
            return Err(FrameError::Malformed);
        }
        let mut records = Vec::new();
        let found = decode_records(&bytes, first, time, &mut records)?;
        if found != positions || records.len() != count as usize {
            return Err(FrameError::Malformed);
        }
        Ok(Self { segment, first, positions, time, records, bytes })
    }

    /// Where a frame begins, from its first piece, without looking at the rest.
    pub(super) fn peek_first(piece: &[u8]) -> Option<Position> {
        let header = piece.get(..HEADER_BYTES)?;
        (header[..4] == MAGIC).then(|| Position((&header[12..20]).get_u64_le()))
    }

    /// The position of its last positioned record; the one before [`Frame::first`] if it has none.
    #[must_use]
    pub fn last(&self) -> Position {
        Position(self.first.0 + self.positions - 1)
    }

    /// Its entries, in order.
    pub fn entries(&self) -> impl Iterator<Item = &StoredEntry> {
        self.records.iter().filter_map(|record| match record {
            Record::Entry(entry) => Some(entry),
            Record::Change(_) | Record::Rider(_) => None,
        })
    }
}

fn decode_records(bytes: &Bytes, first: Position, time: LogTime, records: &mut Vec<Record>) -> Result<u64, FrameError> {
    let end = bytes.len() - TRAILER_BYTES;
    let mut at = HEADER_BYTES;
    let mut positions = 0;
    while at < end {
        if end - at < 5 {
            return Err(FrameError::Malformed);
        }
        let kind = bytes[at];
        let length = (&bytes[at + 1..at + 5]).get_u32_le() as usize;
        at += 5;
        if length > end - at {
            return Err(FrameError::Malformed);
        }
        let body = bytes.slice(at..at + length);
        at += length;
        let position = Position(first.0.checked_add(positions).ok_or(FrameError::Malformed)?);
        match kind {
            RECORD_ENTRY => records.push(Record::Entry(decode_entry(body, position, time)?)),
            RECORD_CHANGE => records.push(Record::Change(Change { position, body })),
            RECORD_RIDER => records.push(Record::Rider(Change { position: Position(0), body })),
            _ => return Err(FrameError::Malformed),
        }
        positions += u64::from(kind != RECORD_RIDER);
    }
    Ok(positions)
}

fn decode_entry(mut body: Bytes, position: Position, time: LogTime) -> Result<StoredEntry, FrameError> {
    let mut numbers = [0; 8];
    for number in &mut numbers {
        *number = take_varint(&mut body).ok_or(FrameError::Malformed)?;
    }
    let [conversation, seq, countable, device, incarnation, message_id, first_unanswered, source] = numbers;
    if body.len() < 8 {
        return Err(FrameError::Malformed);
    }
    let digest = body.get_u64_le();
    Ok(StoredEntry {
        conversation: ConversationId(conversation),
        seq: Seq(seq),
        position,
        time,
        countable,
        origin: Origin {
            device: DeviceId(device),
            incarnation: Incarnation(incarnation),
            message_id: MessageId(message_id),
        },
        first_unanswered: MessageId(first_unanswered),
        digest,
        source: Position(source),
        item: body,
    })
}

/// Writes an unsigned LEB128 number.
pub(crate) fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8((value as u8) | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Reads an unsigned LEB128 number; `None` when it is cut off or longer than 64 bits.
pub(crate) fn take_varint(from: &mut Bytes) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        if from.is_empty() {
            return None;
        }
        let byte = from.get_u8();
        if shift == 63 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Frame {
        let mut builder = FrameBuilder::new(SegmentId(7), Position(41), LogTime(1_000));
        let meta = EntryMeta {
            conversation: ConversationId(4097),
            seq: Seq(3),
            countable: 2,
            origin: Origin { device: DeviceId(5), incarnation: Incarnation(1), message_id: MessageId(900) },
            first_unanswered: MessageId(899),
            digest: u64::MAX,
            source: Position(0),
        };
        assert_eq!(builder.push_entry(&meta, |b| b.put_slice(b"hello")), Position(41));
        builder.push_rider(|b| b.put_slice(b"cursor"));
        assert_eq!(builder.push_change(|b| b.put_slice(b"mark")), Position(42));
        builder.finish()
    }

    #[test]
    fn a_frame_decodes_to_what_was_built() {
        let frame = sample();
        assert_eq!(Frame::decode(frame.bytes.clone()).expect("decodes"), frame);
        assert_eq!(frame.last(), Position(42));
        assert_eq!(frame.entries().next().expect("an entry").item, &b"hello"[..]);
    }

    #[test]
    fn positions_that_are_no_numbers_are_malformed() {
        for first in [0, u64::MAX - 1, u64::MAX] {
            let mut bytes = sample().bytes.to_vec();
            bytes[12..20].copy_from_slice(&first.to_le_bytes());
            let end = bytes.len() - TRAILER_BYTES;
            let sum = xxh3_64(&bytes[..end]);
            bytes[end..].copy_from_slice(&sum.to_le_bytes());
            assert_eq!(Frame::decode(bytes.into()), Err(FrameError::Malformed), "{first}");
        }
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_noticed() {
        let frame = sample();
        for end in 0..frame.bytes.len() {
            assert!(Frame::decode(frame.bytes.slice(..end)).is_err(), "cut at {end}");
        }
        for bit in 0..frame.bytes.len() * 8 {
            let mut bytes = frame.bytes.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::decode(bytes.into()).is_err(), "bit {bit}");
        }
    }

    /// The bytes with a checksum that is theirs.
    fn resealed(mut bytes: Vec<u8>) -> Bytes {
        let end = bytes.len() - TRAILER_BYTES;
        let sum = xxh3_64(&bytes[..end]);
        bytes[end..].copy_from_slice(&sum.to_le_bytes());
        bytes.into()
    }

    #[test]
    fn a_builder_says_what_it_has_and_lays_it_out_as_promised() {
        let mut builder = FrameBuilder::new(SegmentId(0x0102), Position(0x0304), LogTime(0x0506));
        assert_eq!((builder.bytes(), builder.records(), builder.time()), (36, 0, LogTime(0x0506)));
        builder.push_rider(|b| b.put_slice(b"r"));
        assert_eq!((builder.bytes(), builder.records(), builder.next_position()), (42, 1, Position(0x0304)));
        assert_eq!(builder.push_change(|b| b.put_slice(b"ch")), Position(0x0304));
        assert_eq!((builder.bytes(), builder.records(), builder.next_position()), (49, 2, Position(0x0305)));
        let frame = builder.finish();
        let bytes = b"LWF\x01\x02\x01\0\0\0\0\0\0\x04\x03\0\0\0\0\0\0\x06\x05\0\0\0\0\0\0\x01\0\0\0\x02\0\0\0\
            \x03\x01\0\0\0r\x02\x02\0\0\0ch";
        assert_eq!(frame.bytes[..49], bytes[..]);
        assert_eq!(frame.bytes.len(), 57);
        assert_eq!((frame.positions, frame.last(), frame.entries().count()), (1, Position(0x0304), 0));
        let empty = FrameBuilder::new(SegmentId(1), Position(5), LogTime(1)).finish();
        assert_eq!((empty.positions, empty.last(), empty.bytes.len()), (0, Position(4), 44));
        assert_eq!(Frame::decode(empty.bytes.clone()).expect("decodes"), empty);
    }

    #[test]
    fn where_a_frame_begins_is_seen_from_its_header_alone() {
        let bytes = sample().bytes;
        assert_eq!(Frame::peek_first(&bytes), Some(Position(41)));
        assert_eq!(Frame::peek_first(&bytes[..36]), Some(Position(41)));
        assert_eq!(Frame::peek_first(&bytes[..35]), None);
        assert_eq!(Frame::peek_first(&[&b"LWF\x02"[..], &bytes[4..]].concat()), None, "of another format");
    }

    #[test]
    fn what_contradicts_itself_under_a_right_checksum_is_malformed() {
        let good = sample().bytes.to_vec();
        assert!(Frame::decode(resealed(good.clone())).is_ok());
        let lengths = |at: usize| u32::from_le_bytes(good[at..at + 4].try_into().expect("four bytes")) as usize;
        // The first record's kind is at 36 and its length behind; the rider's follow its body.
        let (entry, rider) = (37, 37 + 4 + lengths(37) + 1);
        for (at, byte) in [
            (28, 1),     // fewer positions than there are
            (28, 3),     // more
            (32, 2),     // fewer records
            (32, 4),     // more
            (36, 0),     // a record of no kind
            (36, 4),     // or of one to come
            (entry, 8),  // too short for the numbers of an entry
            (entry, 15), // and for its digest
            (entry + 3, 1),
            (rider + 3, 1), // longer than the frame
        ] {
            let mut bytes = good.clone();
            assert_ne!(bytes[at], byte);
            bytes[at] = byte;
            assert_eq!(Frame::decode(resealed(bytes)), Err(FrameError::Malformed), "byte {at} is {byte}");
        }
        for rest in 1..5 {
            let mut bytes = good.clone();
            let end = bytes.len() - TRAILER_BYTES;
            bytes.splice(end..end, std::iter::repeat_n(RECORD_RIDER, rest));
            assert_eq!(Frame::decode(resealed(bytes)), Err(FrameError::Malformed), "{rest} bytes of a record");
        }
        assert_eq!(Frame::decode(Bytes::from(good[..43].to_vec())), Err(FrameError::Short));
        assert_eq!(Frame::decode(Bytes::from(good[..44].to_vec())), Err(FrameError::Checksum));
    }

    #[test]
    fn what_is_empty_may_be_the_last() {
        let mut builder = FrameBuilder::new(SegmentId(7), Position(41), LogTime(1_000));
        builder.push_entry(&EntryMeta::default(), |_| {});
        builder.push_rider(|_| {});
        let frame = builder.finish();
        let again = Frame::decode(frame.bytes.clone()).expect("decodes");
        assert_eq!((again.entries().next().map(|entry| entry.item.len()), again.records.len()), (Some(0), 2));
    }

    #[test]
    fn numbers_take_as_many_bytes_as_they_need() {
        for bits in 0..=64_u32 {
            let values = [1_u64.checked_shl(bits).unwrap_or(0).wrapping_sub(1), 1_u64.checked_shl(bits).unwrap_or(1)];
            for value in values {
                let mut bytes = BytesMut::new();
                put_varint(&mut bytes, value);
                let needed = (64 - value.leading_zeros()).div_ceil(7).max(1);
                assert_eq!(bytes.len(), needed as usize, "{value}");
                let mut whole = bytes.clone().freeze();
                assert_eq!((take_varint(&mut whole), whole.len()), (Some(value), 0));
                assert_eq!(take_varint(&mut bytes.freeze().slice(..needed as usize - 1)), None, "cut off");
            }
        }
        let ten = |last: u8| Bytes::from([vec![0xff; 9], vec![last, 7]].concat());
        assert_eq!(take_varint(&mut ten(1)), Some(u64::MAX));
        for beyond in [2, 0x80, 0x81, 0xff] {
            assert_eq!(take_varint(&mut ten(beyond)), None, "more than 64 bits: {beyond}");
        }
    }
}
