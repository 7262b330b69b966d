//! What a fuzzer's bytes mean to a target that does one thing after another: each byte is a choice. Bytes that are over
//! read as zeros, so that every input is a whole story.

/// The bytes that are left.
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) const fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    /// One of these.
    pub(super) fn choice<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.byte()) % of.len()]
    }

    /// A number that is small most of the time, and near an end of its range often enough.
    pub(super) fn number(&mut self) -> u64 {
        match self.byte() {
            small @ 0..=0xef => small.into(),
            0xf0..=0xf7 => u64::from(self.byte()) << 8 | u64::from(self.byte()),
            near => u64::MAX - u64::from(near - 0xf8),
        }
    }

    /// As many bytes as are there of so many.
    pub(super) fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
