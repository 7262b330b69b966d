//! Items and packets into bytes, on the paths where each message goes. prost writes a varint into a growing buffer byte by
//! byte with a check and a call for each; into a slice of the right length it stores it.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;

use super::{Item, Own, item, packet};
use crate::varint;

/// Appends a packet without its length, which `len` is.
pub(crate) fn append_packet(kind: &packet::Kind, len: usize, out: &mut BytesMut) {
    append(len, out, |mut room| kind.encode(&mut room));
}

/// Appends an item, as a page of history and a record of the log hold it.
pub fn append_item(item: &Item, out: &mut BytesMut) {
    append(item.encoded_len(), out, |mut room| item.encode_raw(&mut room));
}

/// An item by itself.
#[must_use]
pub fn encode_item(kind: item::Kind) -> Bytes {
    let mut out = BytesMut::new();
    append_item(&Item { kind: Some(kind) }, &mut out);
    out.freeze()
}

/// What [`encode_own`] takes beyond the bytes of the item, at most: five numbers with their tags, and three lengths.
pub const OWN_BYTES_MAX: usize = 64;

/// An `Own` with the entry that is in this encoded item; without one where that is no entry. The entry is copied as it is,
/// and not decoded. It is written into `room`, which is empty before and after: as long as that has memory, none is allocated.
#[must_use]
pub fn encode_own(own: &Own, item: &Bytes, room: &mut BytesMut) -> Bytes {
    const TAG_ENTRY_OF_ITEM: u8 = 1 << 3 | 2;
    const TAG_OWN: u8 = 2 << 3 | 2;
    const TAG_ENTRY_OF_OWN: u8 = 6 << 3 | 2;
    let has_entry = item.first() == Some(&TAG_ENTRY_OF_ITEM);
    let entry = if has_entry { &item[1..] } else { &[] };
    let bare = own.encoded_len();
    let len = bare + usize::from(has_entry) + entry.len();
    debug_assert!(room.is_empty(), "all that is written into it is taken out of it");
    room.reserve(1 + varint::len(len as u64) + len);
    room.put_u8(TAG_OWN);
    varint::write(len as u64, room);
    append(bare, room, |mut room| own.encode_raw(&mut room));
    if has_entry {
        room.put_u8(TAG_ENTRY_OF_OWN);
        // Its length, and what it is.
        room.put_slice(entry);
    }
    room.split().freeze()
}

/// Makes room for so many bytes, and has them written.
fn append(len: usize, out: &mut BytesMut, write: impl FnOnce(&mut [u8])) {
    let begin = out.len();
    out.resize(begin + len, 0);
    write(&mut out[begin..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Entry, Head};

    fn own(entry: Option<Entry>) -> Own {
        Own { conversation: 300, seq: 7, message_id: 9, time: 1 << 40, incarnation: 0, entry }
    }

    #[test]
    fn an_own_around_encoded_bytes_is_the_own_around_the_entry() {
        for content in ["", "hello", &"long".repeat(100)] {
            let entry =
                Entry { conversation: 300, seq: 7, content: Bytes::from(content.to_owned()), ..Entry::default() };
            let item = encode_item(item::Kind::Entry(entry.clone()));
            let expected = encode_item(item::Kind::Own(own(Some(entry))));
            assert_eq!(encode_own(&own(None), &item, &mut BytesMut::new()), expected);
            assert_eq!(Bytes::from(Item::decode(expected.clone()).expect("an item").encode_to_vec()), expected);
        }
    }

    #[test]
    fn what_is_no_entry_stands_in_no_own() {
        let head = encode_item(item::Kind::Head(Head { conversation: 300, from_seq: 1, to_seq: 2, ..Head::default() }));
        let bare = encode_item(item::Kind::Own(own(None)));
        assert_eq!(encode_own(&own(None), &head, &mut BytesMut::new()), bare);
        assert_eq!(encode_own(&own(None), &Bytes::new(), &mut BytesMut::new()), bare);
    }
}
