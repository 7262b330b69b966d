//! The bytes of a simulated file, in pages that copies share until one of them is written: a file is copied at each sync
//! and each crash, and most of it is zeros.

use std::sync::Arc;

const PAGE: usize = 4096;

/// A file's bytes. What was never written is zero.
#[derive(Clone, Debug, Default)]
pub(super) struct Pages {
    length: u64,
    /// As many as there are bytes for; `None` is zeros.
    pages: Vec<Option<Arc<[u8; PAGE]>>>,
}

impl Pages {
    pub(super) fn len(&self) -> u64 {
        self.length
    }

    /// Cuts or grows, with zeros.
    pub(super) fn set_len(&mut self, length: u64) {
        self.pages.resize(length.div_ceil(PAGE as u64) as usize, None);
        let rest = (length % PAGE as u64) as usize;
        if length < self.length
            && rest > 0
            && let Some(Some(last)) = self.pages.last_mut()
        {
            Arc::make_mut(last)[rest..].fill(0);
        }
        self.length = length;
    }

    /// Writes, beyond the end as well.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        self.set_len(self.length.max(offset + data.len() as u64));
        for (page, within, at) in parts(offset, data.len()) {
            let page = self.pages[page].get_or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[within..][..at.len()].copy_from_slice(&data[at]);
        }
    }

    /// Fills `out` from `offset` on; `false` where there is not so much.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> bool {
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > self.length) {
            return false;
        }
        for (page, within, at) in parts(offset, out.len()) {
            let out = &mut out[at];
            match &self.pages[page] {
                Some(page) => out.copy_from_slice(&page[within..][..out.len()]),
                None => out.fill(0),
            }
        }
        true
    }

    /// Flips one bit of what there is.
    pub(super) fn flip(&mut self, bit: usize) {
        let page = self.pages[bit / 8 / PAGE].get_or_insert_with(|| Arc::new([0; PAGE]));
        Arc::make_mut(page)[bit / 8 % PAGE] ^= 1 << (bit % 8);
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.length as usize];
        self.read(0, &mut bytes);
        bytes
    }
}

/// The pages that so many bytes from `offset` on lie in: the page, where in it they begin, and which of the bytes.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let position = offset as usize + at;
        let within = position % PAGE;
        let end = (at + PAGE - within).min(length);
        let part = (position / PAGE, within, at..end);
        let is_more = at < length;
        at = end;
        is_more.then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_pages_is_a_file_of_bytes() {
        let mut rng = fastrand::Rng::with_seed(1);
        let (mut pages, mut bytes) = (Pages::default(), Vec::new());
        for _ in 0..2_000 {
            let (offset, length) = (rng.usize(0..20_000), rng.usize(0..6_000));
            match rng.u8(0..8) {
                0 => {
                    pages.set_len(offset as u64);
                    bytes.resize(offset, 0);
                }
                1 if offset < bytes.len() => {
                    pages.flip(offset * 8 + 3);
                    bytes[offset] ^= 8;
                }
                2..5 => {
                    let data: Vec<u8> = (0..length).map(|_| rng.u8(..)).collect();
                    pages.write(offset as u64, &data);
                    bytes.resize(bytes.len().max(offset + length), 0);
                    bytes[offset..offset + length].copy_from_slice(&data);
                }
                _ => {
                    let mut out = vec![1; length];
                    let expected = bytes.get(offset..offset + length);
                    assert_eq!(pages.read(offset as u64, &mut out), expected.is_some());
                    assert!(expected.is_none_or(|expected| out == expected));
                }
            }
            assert_eq!(pages.len(), bytes.len() as u64);
        }
        assert!(pages.to_vec() == bytes);
    }
}
