//! Protobuf's variable-length integers: seven bits a byte, lowest first, the top bit says that more follow.
//!
//! Inside packets protobuf's own rules hold, so a padded varint is accepted there. The length in front of a frame is
//! ours, and must be minimal (SPEC R3-2): one value has one spelling.

use bytes::BufMut;

/// The longest varint of 64 bits.
pub const VARINT_BYTES_MAX: usize = 10;

/// What the first bytes of a buffer say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Varint {
    /// A whole varint.
    Whole {
        /// What it says.
        value: u64,
        /// How many bytes it takes.
        len: usize,
        /// Whether no shorter spelling of the value exists.
        minimal: bool,
    },
    /// More bytes are needed.
    Partial,
    /// More than 64 bits.
    TooLong,
}

/// Reads the varint at the start of `bytes`; looks at no more than ten of them.
#[must_use]
pub fn read(bytes: &[u8]) -> Varint {
    let mut value = 0u64;
    for (index, &byte) in bytes.iter().take(VARINT_BYTES_MAX).enumerate() {
        let last = index == VARINT_BYTES_MAX - 1;
        if last && byte > 1 {
            return Varint::TooLong;
        }
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            return Varint::Whole { value, len: index + 1, minimal: index == 0 || byte != 0 };
        }
    }
    if bytes.len() >= VARINT_BYTES_MAX { Varint::TooLong } else { Varint::Partial }
}

/// Appends the minimal varint of `value`.
pub fn write(mut value: u64, out: &mut impl BufMut) {
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// How many bytes the minimal varint of `value` takes: 1 to 10.
#[must_use]
pub const fn len(value: u64) -> usize {
    // A byte for every seven bits begun; `| 1` because zero takes a byte too.
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_reads_back_and_is_minimal() {
        for bits in 0..64 {
            for value in [1u64 << bits, (1u64 << bits) - 1, u64::MAX >> bits] {
                let mut out = Vec::new();
                write(value, &mut out);
                assert_eq!(out.len(), len(value));
                assert_eq!(read(&out), Varint::Whole { value, len: out.len(), minimal: true });
                for cut in 0..out.len() {
                    assert_eq!(read(&out[..cut]), Varint::Partial, "{value} cut at {cut}");
                }
            }
        }
    }

    #[test]
    fn padding_is_seen_and_more_than_64_bits_are_refused() {
        assert_eq!(read(&[0x80, 0x00]), Varint::Whole { value: 0, len: 2, minimal: false });
        assert_eq!(read(&[0xff, 0x80, 0x00]), Varint::Whole { value: 127, len: 3, minimal: false });
        assert_eq!(read(&[0xff; 10]), Varint::TooLong);
        assert_eq!(read(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02]), Varint::TooLong);
    }
}
