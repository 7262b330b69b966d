//! Framing: bytes to frames and back. A frame is a minimal varint length and that many bytes of one `Packet`; a frame
//! of length 0, the single byte `0x00`, is the heartbeat.
//!
//! ```text
//!  +-----------------+--------------------------------------+
//!  | length (varint) | Packet { exactly one member }        |     0x00 alone: heartbeat
//!  +-----------------+--------------------------------------+
//! ```
//!
//! A length is held against the limit before anything is reserved for it. What has been read of a partial frame is
//! not read again. `bytes` fields of a packet are slices of the buffer that it came in; but for those of a `Connect`, which
//! may hold a password: its bytes are overwritten once it is read.

use std::io;

use bytes::{Buf, BufMut, BytesMut};
use prost::Message as _;
use tokio_util::codec::Decoder;
use zeroize::Zeroize as _;

use crate::{
    limits::PRE_AUTH_FRAME_BYTES_MAX,
    packet::{self, Packet, packet::Kind},
    reason::{Reason, Refusal},
    varint::{self, Varint},
};

/// The heartbeat on the wire.
pub const HEARTBEAT: u8 = 0x00;

/// The member of `Packet` that is a `Connect`.
const CONNECT: u64 = 16;
/// The member that is a `Request`, which may be one for another token.
const REQUEST: u64 = 8;

/// What arrives.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// The client asks whether the broker is there, or the broker answers.
    Heartbeat,
    /// A packet whose member this version does not know. It is a sign of life and nothing else (SPEC R10-2).
    Unknown,
    /// A packet.
    Packet(Kind),
}

/// Why bytes are no frame. Nothing in it is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The frame is longer than the limit that holds.
    #[error("a frame of {length} bytes where {limit} are allowed")]
    TooLarge {
        /// What the frame said.
        length: u64,
        /// What holds.
        limit: u32,
    },
    /// The bytes break a rule of the wire.
    #[error("malformed: {0}")]
    Malformed(#[from] Malformed),
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    Cut,
    /// The socket failed.
    #[error("{0}")]
    Io(io::ErrorKind),
}

/// Which rule the bytes break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A frame's length is not spelled with the fewest bytes.
    #[error("a frame length that is not minimal")]
    LengthNotMinimal,
    /// A varint of more than 64 bits.
    #[error("a varint of more than 64 bits")]
    Varint,
    /// A message ends inside one of its fields.
    #[error("a field that reaches beyond its message")]
    Truncated,
    /// A field has a number that no field can have.
    #[error("a field number out of range")]
    FieldNumber,
    /// A group, or a known message in another wire type.
    #[error("a wire type that does not belong here")]
    WireType,
    /// More than one member of a `oneof`.
    #[error("two members where there is one")]
    TwoMembers,
    /// Messages nest too deep.
    #[error("nested too deep")]
    Nesting,
    /// A list is longer than its limit.
    #[error("too many {0}")]
    TooMany(&'static str),
    /// A field does not decode as its type.
    #[error("a field that does not decode")]
    Field,
}

impl From<io::Error> for FrameError {
    fn from(error: io::Error) -> Self {
        Self::Io(error.kind())
    }
}

impl FrameError {
    /// What the peer is told, where there is still one to tell.
    #[must_use]
    pub fn refusal(self) -> Refusal {
        match self {
            Self::TooLarge { .. } => Refusal::connection(Reason::FrameTooLarge),
            Self::Malformed(malformed) => Refusal::connection(Reason::Malformed).because(malformed.to_string()),
            Self::Cut | Self::Io(_) => Refusal::connection(Reason::Malformed).because("the stream was cut"),
        }
    }
}

/// Decodes and encodes frames; as small as two numbers, one for each direction of a connection.
///
/// Starts with the limit that holds before authentication.
#[derive(Clone, Debug)]
pub struct FrameCodec {
    /// The longest frame accepted, its length prefix not counted.
    frame_bytes_max: u32,
    /// The frame whose length was read and whose bytes have not all arrived.
    partial: Option<Partial>,
}

#[derive(Clone, Copy, Debug)]
struct Partial {
    len: u32,
    prefix_len: u8,
}

impl Default for FrameCodec {
    fn default() -> Self {
        Self::new(PRE_AUTH_FRAME_BYTES_MAX)
    }
}

impl FrameCodec {
    /// A codec that accepts frames of at most this many bytes.
    #[must_use]
    pub const fn new(frame_bytes_max: u32) -> Self {
        Self { frame_bytes_max, partial: None }
    }

    /// The longest frame accepted.
    #[must_use]
    pub const fn frame_bytes_max(&self) -> u32 {
        self.frame_bytes_max
    }

    /// Accepts frames of at most this many bytes from the next one on.
    pub const fn set_frame_bytes_max(&mut self, frame_bytes_max: u32) {
        self.frame_bytes_max = frame_bytes_max;
    }

    /// Whether a frame has begun and not ended: its length was read, or `rest` holds a part of that.
    #[must_use]
    pub fn is_inside_frame(&self, rest: &[u8]) -> bool {
        self.partial.is_some() || !rest.is_empty()
    }

    /// Reads the length prefix, or `None` where it has not all arrived.
    fn read_length(&self, src: &mut BytesMut) -> Result<Option<Partial>, FrameError> {
        let limit = self.frame_bytes_max;
        match varint::read(src) {
            // At most four bytes of a prefix are ever waited for: a longer one is too large or padded already.
            Varint::Partial if src.len() < 5 => Ok(None),
            Varint::Partial => Err(FrameError::TooLarge { length: u64::MAX, limit }),
            Varint::TooLong => Err(Malformed::Varint.into()),
            Varint::Whole { minimal: false, .. } => Err(Malformed::LengthNotMinimal.into()),
            Varint::Whole { value, .. } if value > u64::from(limit) => {
                Err(FrameError::TooLarge { length: value, limit })
            }
            Varint::Whole { value, len, .. } => {
                src.advance(len);
                Ok(Some(Partial { len: value as u32, prefix_len: len as u8 }))
            }
        }
    }
}

impl Decoder for FrameCodec {
    /// A frame, and how many bytes it took on the wire.
    type Item = (Frame, usize);
    type Error = FrameError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Self::Item>, FrameError> {
        let partial = match self.partial {
            Some(partial) => partial,
            None => match self.read_length(src)? {
                Some(partial) => partial,
                None => return Ok(None),
            },
        };
        let len = partial.len as usize;
        let wire_len = len + usize::from(partial.prefix_len);
        if len == 0 {
            return Ok(Some((Frame::Heartbeat, wire_len)));
        }
        if src.len() < len {
            src.reserve(len - src.len());
            self.partial = Some(partial);
            return Ok(None);
        }
        self.partial = None;
        let mut body = src.split_to(len);
        let packet = match packet::check(&body)? {
            None => return Ok(Some((Frame::Unknown, wire_len))),
            Some(CONNECT | REQUEST) => {
                let packet = Packet::decode(&body[..]);
                body[..].zeroize();
                packet
            }
            Some(_) => Packet::decode(body.freeze()),
        };
        let kind = packet.map_err(|_| Malformed::Field)?.kind;
        Ok(Some((kind.map_or(Frame::Unknown, Frame::Packet), wire_len)))
    }

    fn decode_eof(&mut self, src: &mut BytesMut) -> Result<Option<Self::Item>, FrameError> {
        match self.decode(src)? {
            Some(frame) => Ok(Some(frame)),
            None if self.is_inside_frame(src) => Err(FrameError::Cut),
            None => Ok(None),
        }
    }
}

/// Appends the frame of a packet.
pub fn encode(kind: &Kind, out: &mut BytesMut) {
    let len = kind.encoded_len();
    out.reserve(varint::len(len as u64) + len);
    varint::write(len as u64, out);
    packet::append_packet(kind, len, out);
}

/// How many bytes the frame of a packet takes on the wire.
#[must_use]
pub fn encoded_len(kind: &Kind) -> usize {
    let len = kind.encoded_len();
    varint::len(len as u64) + len
}

/// Whether bytes that begin with a frame begin with a publish, as far as they go: its content is a slice of them.
#[must_use]
pub fn begins_with_publish(bytes: &[u8]) -> bool {
    begins_with(bytes, 1)
}

/// The same of a request, which may hold a token.
#[must_use]
pub fn begins_with_request(bytes: &[u8]) -> bool {
    begins_with(bytes, REQUEST as u8)
}

fn begins_with(bytes: &[u8], member: u8) -> bool {
    let length = bytes.iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
    bytes.get(length) == Some(&(member << 3 | 2))
}

/// Appends a heartbeat.
pub fn encode_heartbeat(out: &mut BytesMut) {
    out.put_u8(HEARTBEAT);
}
