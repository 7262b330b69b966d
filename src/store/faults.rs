//! A real folder whose calls fail or stall on purpose, for tests of the real binary: compiled with the feature `faults`
//! alone, and asked for by the environment. What is to happen is a list such as `seal=16,fail=57`:
//!
//! | | |
//! |---|---|
//! | `fail=N` | the N-th call to the disk fails, counted from the start of the process |
//! | `fail_from=N` | that one fails, and every one after it |
//! | `late` | a write that fails is done all the same |
//! | `panic=THREAD` | the calls of the thread of this name panic |
//! | `stall=N:MS` | the N-th call takes so many milliseconds longer |
//! | `seal=N` | memtables hold N entries, and the journal's file stays small, so that a short life sees every kind of call |
//! | `clock=FILE` | not the store's: see `clock` |

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use redb::StorageBackend;

use super::disk::{Disk, Folder, pass_locks_on};
use super::open::OpenError;
use super::options::StoreOptions;
use super::redb_log::RedbLog;

/// What is to happen; see the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    fail: Option<u64>,
    fail_from: Option<u64>,
    is_late: bool,
    panic: Option<String>,
    stall: Option<(u64, Duration)>,
    seal: Option<usize>,
}

impl Faults {
    /// Reads the list.
    ///
    /// # Errors
    /// The part that cannot be understood.
    pub fn parse(list: &str) -> Result<Self, String> {
        let mut faults = Self::default();
        for part in list.split(',').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{part:?} is no fault"));
            match name {
                "fail" => faults.fail = Some(number(value)?),
                "fail_from" => faults.fail_from = Some(number(value)?),
                "late" => faults.is_late = true,
                "panic" => faults.panic = Some(value.to_owned()),
                "stall" => {
                    let (at, ms) = value.split_once(':').ok_or_else(|| format!("{part:?} is no fault"))?;
                    faults.stall = Some((number(at)?, Duration::from_millis(number(ms)?)));
                }
                "seal" => faults.seal = Some(number(value)? as usize),
                "clock" => {}
                _ => return Err(format!("{part:?} is no fault")),
            }
        }
        Ok(faults)
    }

    /// Opens the store in a folder, or makes one there, behind these faults.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(self, folder: &Path, mut options: StoreOptions) -> Result<RedbLog, OpenError> {
        tracing::warn!(?self, "calls to the disk fail and stall on purpose");
        if let Some(entries) = self.seal {
            options = StoreOptions { seal_entries: entries, journal_file_bytes: 1 << 20, ..options };
        }
        let inner =
            Folder::create(folder).map_err(|error| OpenError::Io { path: folder.display().to_string(), error })?;
        let plan = Arc::new(Plan { faults: self, calls: AtomicU64::new(0) });
        RedbLog::open_disk(Arc::new(FaultyFolder { inner, plan }), options)
    }
}

/// The faults, and how far the calls have come.
#[derive(Debug)]
struct Plan {
    faults: Faults,
    calls: AtomicU64,
}

impl Plan {
    /// Counts a call; it goes on, or fails here.
    fn call(&self, what: &str) -> io::Result<()> {
        let call = self.calls.fetch_add(1, Relaxed) + 1;
        if let Some((at, duration)) = self.faults.stall
            && at == call
        {
            tracing::warn!(call, what, "this call stalls");
            std::thread::sleep(duration);
        }
        let panics = self.faults.panic.as_deref();
        assert!(panics.is_none() || panics != std::thread::current().name(), "call {call} panics: {what}");
        if self.faults.fail == Some(call) || self.faults.fail_from.is_some_and(|from| call >= from) {
            tracing::warn!(call, what, "this call fails");
            return Err(io::Error::other(format!("call {call} fails: {what}")));
        }
        Ok(())
    }
}

#[derive(Debug)]
struct FaultyFolder {
    inner: Folder,
    plan: Arc<Plan>,
}

impl FaultyFolder {
    fn file(&self, inner: Box<dyn StorageBackend>, name: &str) -> Box<dyn StorageBackend> {
        Box::new(FaultyFile { inner, name: name.to_owned(), plan: Arc::clone(&self.plan) })
    }
}

impl Disk for FaultyFolder {
    fn place(&self) -> String {
        self.inner.place()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        self.plan.call("open")?;
        Ok(self.file(self.inner.open(name)?, name))
    }

    fn open_read_only(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        self.plan.call("open_read_only")?;
        Ok(self.file(self.inner.open_read_only(name)?, name))
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.plan.call("exists")?;
        self.inner.exists(name)
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        self.plan.call("list")?;
        self.inner.list(folder)
    }

    fn allocated(&self, name: &str) -> io::Result<u64> {
        self.plan.call("allocated")?;
        self.inner.allocated(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.plan.call("rename")?;
        self.inner.rename(from, to)
    }

    fn shorten(&self, name: &str, length: u64) -> io::Result<bool> {
        self.plan.call("shorten")?;
        self.inner.shorten(name, length)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.plan.call("remove")?;
        self.inner.remove(name)
    }

    fn sync_names(&self) -> io::Result<()> {
        self.plan.call("sync_names")?;
        self.inner.sync_names()
    }
}

#[derive(Debug)]
struct FaultyFile {
    inner: Box<dyn StorageBackend>,
    name: String,
    plan: Arc<Plan>,
}

impl FaultyFile {
    fn call(&self, what: &str) -> io::Result<()> {
        self.plan.call(&format!("{what} of {}", self.name))
    }
}

impl StorageBackend for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        self.call("len")?;
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.call("read")?;
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.call("set_len")?;
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.call("sync_data")?;
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let called = self.call("write");
        if called.is_ok() || self.plan.faults.is_late {
            self.inner.write(offset, data)?;
        }
        called
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    pass_locks_on!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_faults_is_read_and_nonsense_is_not() {
        let all = Faults::parse("fail=3,late,panic=store-builder,stall=4:250,seal=16,clock=x").expect("a list");
        let expected = Faults {
            fail: Some(3),
            fail_from: None,
            is_late: true,
            panic: Some("store-builder".into()),
            stall: Some((4, Duration::from_millis(250))),
            seal: Some(16),
        };
        assert_eq!(all, expected);
        assert_eq!(Faults::parse("").expect("nothing"), Faults::default());
        for nonsense in ["fail", "fail=x", "stall=3", "fails=3"] {
            assert!(Faults::parse(nonsense).expect_err("nonsense").contains(nonsense));
        }
    }
}
