//! Rows that know when they are not what was written: a value with a checksum over it and its key. redb checks its own
//! pages only when it repairs a file, so what is read in between is checked here.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::ReadError;

const CHECKSUM_BYTES: usize = 8;

/// Puts the checksum behind the value.
pub(super) fn seal(key: &[u8], value: &mut Vec<u8>) {
    let sum = checksum(key, value);
    value.extend_from_slice(&sum.to_le_bytes());
}

/// The value without its checksum, if the checksum is right. `what` names the row's table for the message.
pub(super) fn unseal<'a>(what: &str, key: &[u8], row: &'a [u8]) -> Result<&'a [u8], ReadError> {
    if let Some((value, sum)) = row.split_last_chunk::<CHECKSUM_BYTES>()
        && u64::from_le_bytes(*sum) == checksum(key, value)
    {
        return Ok(value);
    }
    Err(ReadError(format!("a row of {what} is damaged: its checksum is wrong")))
}

fn checksum(key: &[u8], value: &[u8]) -> u64 {
    xxh3_64_with_seed(value, xxh3_64(key))
}

/// Numbers of a fixed row, little endian.
pub(super) fn put_numbers(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// The first `N` numbers of a fixed row; a later version may have put more behind them.
pub(super) fn take_numbers<const N: usize>(what: &str, value: &[u8]) -> Result<[u64; N], ReadError> {
    let mut numbers = [0; N];
    if value.len() < N * 8 {
        return Err(ReadError(format!("a row of {what} is too short")));
    }
    for (number, bytes) in numbers.iter_mut().zip(value.chunks_exact(8)) {
        *number = bytes.iter().rev().fold(0, |n, &byte| (n << 8) | u64::from(byte));
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_under_another_key_or_with_a_flipped_bit_is_damaged() {
        let mut row = b"value".to_vec();
        seal(b"key", &mut row);
        assert_eq!(unseal("rows", b"key", &row).expect("is whole"), b"value");
        assert!(unseal("rows", b"kez", &row).is_err());
        for bit in 0..row.len() * 8 {
            let mut flipped = row.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal("rows", b"key", &flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn numbers_come_back() {
        let row = put_numbers(&[1, u64::MAX, 3]);
        assert_eq!(take_numbers::<2>("rows", &row).expect("is long enough"), [1, u64::MAX]);
        assert!(take_numbers::<4>("rows", &row).is_err());
    }
}
