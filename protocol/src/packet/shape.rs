//! What is checked of a packet before prost decodes it: one walk over its structure, without recursion or allocation.
//!
//! Protobuf itself is lenient where a broker must not be: a `oneof` given twice silently keeps the last, repeated
//! fields grow as the peer likes, groups nest. The shapes below name the messages that hold messages or lists; the
//! walk enters those and skips everything else by its length. Unknown fields are skipped too (SPEC R10-1).

use crate::{
    frame::Malformed,
    limits::{
        ATTACHMENTS_MAX, DELIVER_ITEMS_MAX, FEATURES_MAX, GROUP_USERS_MAX, MENTIONS_MAX, NESTING_MAX, PAGE_ITEMS_MAX,
        PROFILES_MAX, USERS_MAX,
    },
    varint::{self, Varint},
};

/// A message that the walk enters.
struct Shape {
    /// The fields of its `oneof`, of which at most one may be there, once: from this number to that.
    one_of: Option<(u64, u64)>,
    /// Its repeated fields, at most [`LISTS_MAX`], and how often each may be there.
    lists: &'static [List],
    /// The fields that are messages to be entered.
    nested: &'static [(u64, &'static Shape)],
}

struct List {
    field: u64,
    /// Numbers, which may come packed: then each varint counts.
    packed: bool,
    count_max: usize,
    name: &'static str,
}

/// The most repeated fields of one message that are counted.
const LISTS_MAX: usize = 2;

const LEAF: Shape = Shape { one_of: None, lists: &[], nested: &[] };

const fn list(field: u64, count_max: usize, name: &'static str) -> List {
    List { field, packed: false, count_max, name }
}

const fn numbers(field: u64, count_max: usize, name: &'static str) -> List {
    List { field, packed: true, count_max, name }
}

/// The number of `Packet`'s highest known member.
const PACKET_MEMBER_MAX: u64 = 19;
/// Numbers kept for members of `Packet` to come.
const PACKET_MEMBERS_RESERVED: std::ops::RangeInclusive<u64> = 12..=15;

static PACKET: Shape = Shape {
    one_of: Some((1, PACKET_MEMBER_MAX)),
    lists: &[],
    nested: &[
        (1, &Shape { one_of: Some((16, 51)), nested: &[(5, &BESIDE), (17, &CREATE_GROUP)], ..LEAF }),
        (4, &Shape { lists: &[list(3, DELIVER_ITEMS_MAX, "items")], nested: &[(3, &ITEM)], ..LEAF }),
        (
            8,
            &Shape {
                one_of: Some((2, 19)),
                nested: &[(5, &USERS_REQUEST), (12, &PROFILES_REQUEST), (17, &USERS_REQUEST)],
                ..LEAF
            },
        ),
        (9, &Shape { one_of: Some((2, 19)), nested: RESULTS, ..LEAF }),
        (16, &Shape { lists: &[list(2, FEATURES_MAX, "features")], ..LEAF }),
        (17, &Shape { lists: &[list(20, FEATURES_MAX, "features")], ..LEAF }),
    ],
};
static BESIDE: Shape =
    Shape { lists: &[numbers(2, MENTIONS_MAX, "mentions"), list(7, ATTACHMENTS_MAX, "attachments")], ..LEAF };
static CREATE_GROUP: Shape = Shape { lists: &[list(2, GROUP_USERS_MAX, "users")], ..LEAF };
static ITEM: Shape = Shape { one_of: Some((1, 6)), ..LEAF };
static PROFILES_REQUEST: Shape = Shape { lists: &[numbers(1, PROFILES_MAX, "users")], ..LEAF };
static USERS_REQUEST: Shape = Shape { lists: &[numbers(1, USERS_MAX, "users")], ..LEAF };
const RESULTS: &[(u64, &Shape)] = &[
    (2, &Shape { lists: &[list(1, PAGE_ITEMS_MAX, "items")], nested: &[(1, &ITEM)], ..LEAF }),
    (3, &Shape { lists: &[list(1, PAGE_ITEMS_MAX, "conversations")], ..LEAF }),
    (4, &Shape { lists: &[list(1, PAGE_ITEMS_MAX, "members")], ..LEAF }),
    (5, &Shape { lists: &[list(1, PAGE_ITEMS_MAX, "users")], ..LEAF }),
    (8, &Shape { lists: &[list(1, PAGE_ITEMS_MAX, "marks")], ..LEAF }),
    (12, &Shape { lists: &[list(1, PAGE_ITEMS_MAX, "profiles")], ..LEAF }),
    (13, &Shape { lists: &[list(1, PAGE_ITEMS_MAX, "contacts")], ..LEAF }),
    (14, &Shape { lists: &[list(1, PAGE_ITEMS_MAX, "users")], ..LEAF }),
    (15, &Shape { lists: &[list(1, PAGE_ITEMS_MAX, "devices")], ..LEAF }),
    (16, &Shape { lists: &[list(1, PAGE_ITEMS_MAX, "accounts")], ..LEAF }),
    (17, &Shape { lists: &[list(1, PAGE_ITEMS_MAX, "users")], ..LEAF }),
];

/// Which member of `Packet` these bytes hold, or `None` where it is one that this version does not know.
///
/// One pass; constant memory.
pub(crate) fn check(bytes: &[u8]) -> Result<Option<u64>, Malformed> {
    // What is still to be read of each message entered, outermost first.
    let mut stack: [Level; NESTING_MAX] = std::array::from_fn(|_| Level::new(&PACKET, 0));
    stack[0] = Level::new(&PACKET, bytes.len());
    let mut depth = 0;
    let mut at = 0;
    let mut kind = None;
    loop {
        let level = &mut stack[depth];
        if at == level.end {
            if depth == 0 {
                return Ok(kind);
            }
            depth -= 1;
            continue;
        }
        let field = read_field(bytes, &mut at, level.end)?;
        let member = level.count(field.number, field.body.clone(), bytes)?;
        if depth == 0 && member && !PACKET_MEMBERS_RESERVED.contains(&field.number) {
            kind = Some(field.number);
        }
        let nested = level.shape.nested.iter().find(|(number, _)| *number == field.number);
        match (nested, field.body) {
            (Some((_, shape)), Some(body)) => {
                depth += 1;
                if depth == NESTING_MAX {
                    return Err(Malformed::Nesting);
                }
                at = body.start;
                stack[depth] = Level::new(shape, body.end);
            }
            (Some(_), None) => return Err(Malformed::WireType),
            (None, Some(body)) => at = body.end,
            (None, None) if depth == 0 && member && !PACKET_MEMBERS_RESERVED.contains(&field.number) => {
                return Err(Malformed::WireType);
            }
            (None, None) => {}
        }
    }
}

#[derive(Clone, Copy)]
struct Level {
    shape: &'static Shape,
    end: usize,
    listed: [usize; LISTS_MAX],
    has_member: bool,
}

impl Level {
    const fn new(shape: &'static Shape, end: usize) -> Self {
        Self { shape, end, listed: [0; LISTS_MAX], has_member: false }
    }

    /// Counts a field of this message; says whether it is a member of the `oneof`.
    fn count(&mut self, number: u64, body: Option<std::ops::Range<usize>>, bytes: &[u8]) -> Result<bool, Malformed> {
        if let Some((list, listed)) =
            self.shape.lists.iter().zip(&mut self.listed).find(|(list, _)| list.field == number)
        {
            *listed += match body {
                // A packed run: every varint ends with a byte whose top bit is clear.
                Some(body) if list.packed => bytes[body].iter().filter(|&&byte| byte < 0x80).count(),
                _ => 1,
            };
            if *listed > list.count_max {
                return Err(Malformed::TooMany(list.name));
            }
        }
        let member = self.shape.one_of.is_some_and(|(first, last)| (first..=last).contains(&number));
        if member && std::mem::replace(&mut self.has_member, true) {
            return Err(Malformed::TwoMembers);
        }
        Ok(member)
    }
}

struct Field {
    number: u64,
    /// Where its bytes stand, if it is length-delimited.
    body: Option<std::ops::Range<usize>>,
}

/// Reads a field at `at`, which is moved behind it (behind its length, if it has one).
fn read_field(bytes: &[u8], at: &mut usize, end: usize) -> Result<Field, Malformed> {
    const FIELD_MAX: u64 = (1 << 29) - 1;
    let tag = read_varint(bytes, at, end)?;
    let number = tag >> 3;
    if number == 0 || number > FIELD_MAX {
        return Err(Malformed::FieldNumber);
    }
    let mut body = None;
    match tag & 7 {
        0 => drop(read_varint(bytes, at, end)?),
        1 => skip(at, 8, end)?,
        5 => skip(at, 4, end)?,
        2 => {
            let len = read_varint(bytes, at, end)?;
            let len = usize::try_from(len).map_err(|_| Malformed::Truncated)?;
            let start = *at;
            skip(&mut start.clone(), len, end)?;
            body = Some(start..start + len);
        }
        _ => return Err(Malformed::WireType),
    }
    Ok(Field { number, body })
}

fn read_varint(bytes: &[u8], at: &mut usize, end: usize) -> Result<u64, Malformed> {
    match varint::read(&bytes[*at..end]) {
        Varint::Whole { value, len, .. } => {
            *at += len;
            Ok(value)
        }
        Varint::Partial => Err(Malformed::Truncated),
        Varint::TooLong => Err(Malformed::Varint),
    }
}

fn skip(at: &mut usize, len: usize, end: usize) -> Result<(), Malformed> {
    if end - *at < len {
        return Err(Malformed::Truncated);
    }
    *at += len;
    Ok(())
}
