//! How large the open store is and how it stands, as far as that is known without a look at the disk.

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Whether it can be written, as far as it is known.
    pub is_writable: bool,
    /// Memtables, the active one included.
    pub memtables: u64,
    /// Their entries.
    pub memtable_entries: u64,
    /// Bytes of those.
    pub memtable_bytes: u64,
    /// Runs.
    pub runs: u64,
    /// Their entries.
    pub run_entries: u64,
    /// Bytes of their rows.
    pub run_bytes: u64,
    /// Bytes of frames in the journal that runs and state do not hold yet.
    pub journal_bytes: u64,
    /// Beyond this, publishes are refused; 0 where nothing is.
    pub journal_bytes_max: u64,
}
