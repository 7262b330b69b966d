//! What can be chosen about a store.

use std::time::Duration;

/// What can be chosen about a store. The defaults are right for a broker.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The time to write into a new store as its birth, in milliseconds since 1970. The store reads no clock itself.
    pub birth_unix_ms: u64,
    /// Entries at which a memtable is sealed. Default 400,000: a run of them is built in half a second.
    pub seal_entries: usize,
    /// Bytes of entries, as a run will hold them, at which a memtable is sealed; also the bytes of journal that may wait
    /// for a seal. Default 64 MiB; with its bookkeeping such a memtable of 200-byte items takes 120 MB.
    pub seal_bytes: usize,
    /// Bytes in the journal that runs and state have not absorbed, above which publishes are refused. It bounds the time
    /// of a start after a crash (2.3 s for each GB). Default 256 MiB.
    pub journal_bytes: u64,
    /// Bytes that frames without publishes may take beyond that. Default 32 MiB.
    pub journal_reserve_bytes: u64,
    /// Bytes that the journal's file may take while a sixteenth of that would do; then a smaller one takes its place. A
    /// peak of load makes it large, and its free pages are used again meanwhile. Default 128 MiB.
    pub journal_file_bytes: u64,
    /// Whether the journal commits in two phases, which is one more sync for each frame: see
    /// `docs/decisions/journal-commit.md`. Default no.
    pub two_phase_commit: bool,
    /// Cache for the journal. Default 64 MiB.
    pub journal_cache_bytes: usize,
    /// Cache for the state. Default 64 MiB.
    pub state_cache_bytes: usize,
    /// Cache for each run; what the kernel caches comes on top. Default 8 MiB.
    pub run_cache_bytes: usize,
    /// Bytes of the newest entries of conversations that are held after they were read from runs. Default 64 MiB: the last
    /// pages of some 5,000 conversations with short messages.
    pub recent_bytes: usize,
    /// Entries that a merged run has at most. Default 8 million: retention goes by whole runs.
    pub run_entries: u64,
    /// Bytes that a merged run has at most. Default 1 GiB.
    pub run_bytes: u64,
    /// The pause of the background thread between two slices of its work, while no memtable waits for it. Default 2 ms.
    pub pause: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            birth_unix_ms: 0,
            seal_entries: 400_000,
            seal_bytes: 64 << 20,
            journal_bytes: 256 << 20,
            journal_reserve_bytes: 32 << 20,
            journal_file_bytes: 128 << 20,
            two_phase_commit: false,
            journal_cache_bytes: 64 << 20,
            state_cache_bytes: 64 << 20,
            run_cache_bytes: 8 << 20,
            recent_bytes: 64 << 20,
            run_entries: 8_000_000,
            run_bytes: 1 << 30,
            pause: Duration::from_millis(2),
        }
    }
}
