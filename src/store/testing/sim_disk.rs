//! A disk in memory that forgets like a real one: until a sync, each 512-byte sector of a write may or may not survive a
//! crash, in any combination. It can lose power at the n-th call, and it can refuse the n-th call.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use crate::store::Disk;

const SECTOR: usize = 512;

#[derive(Clone, Debug, Default)]
struct SimFile {
    durable: Vec<u8>,
    current: Vec<u8>,
    pending: Vec<Pending>,
}

#[derive(Clone, Debug)]
enum Pending {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

impl Pending {
    fn apply(&self, bytes: &mut Vec<u8>, mut keeps: impl FnMut() -> bool) {
        match self {
            Self::SetLen(length) => {
                if keeps() {
                    resize(bytes, *length);
                }
            }
            Self::Write(offset, data) => {
                let mut at = 0;
                while at < data.len() {
                    // Sectors are aligned on the disk, not in the write.
                    let end = (at + SECTOR - (offset + at) % SECTOR).min(data.len());
                    if keeps() {
                        if bytes.len() < offset + end {
                            resize(bytes, offset + end);
                        }
                        bytes[offset + at..offset + end].copy_from_slice(&data[at..end]);
                    }
                    at = end;
                }
            }
        }
    }
}

/// Zeroed memory from the allocator: filling byte by byte, as a debug build does, would be most of the tests' time.
fn resize(bytes: &mut Vec<u8>, length: usize) {
    if length <= bytes.len() {
        bytes.truncate(length);
    } else {
        let mut grown = vec![0; length];
        grown[..bytes.len()].copy_from_slice(bytes);
        *bytes = grown;
    }
}

type Names = BTreeMap<String, usize>;

#[derive(Debug, Default)]
struct Inner {
    files: Vec<SimFile>,
    names: Names,
    /// What the names were at the last sync, and after each change since.
    names_since_sync: Vec<Names>,
    calls: u64,
    dies_at: Option<u64>,
    fails_at: Option<u64>,
    is_dead: bool,
    is_undisturbed: bool,
    is_full: bool,
    /// The file whose next sync does nothing and says that it did.
    lies_of: Option<String>,
    has_lied: bool,
}

/// The disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
}

impl SimDisk {
    /// Loses power after so many more calls: that one and all after it fail.
    pub fn die_after(&self, calls: u64) {
        let mut inner = self.lock();
        inner.dies_at = Some(inner.calls + calls);
    }

    /// Refuses one call after so many more.
    pub fn fail_after(&self, calls: u64) {
        let mut inner = self.lock();
        inner.fails_at = Some(inner.calls + calls);
    }

    /// Has lost its power: every call fails from now on.
    pub fn die(&self) {
        self.lock().is_dead = true;
    }

    /// Whether the power is gone.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.lock().is_dead
    }

    /// No call fails any more that was to fail or to be the last.
    pub fn heal(&self) {
        let mut inner = self.lock();
        (inner.dies_at, inner.fails_at, inner.is_full, inner.lies_of) = (None, None, false, None);
    }

    /// Has the next sync of a file do nothing and say that it did: the one promise that no store can do without.
    pub fn lie_once(&self, name: &str) {
        self.lock().lies_of = Some(name.to_owned());
    }

    /// Whether a sync did nothing and said that it did.
    #[must_use]
    pub fn has_lied(&self) -> bool {
        self.lock().has_lied
    }

    /// Refuses every write from now on, or none.
    pub fn set_full(&self, is_full: bool) {
        self.lock().is_full = is_full;
    }

    /// What the next start finds: what was synced, and of the rest whatever chance kept.
    #[must_use]
    pub fn after_crash(&self, rng: &mut fastrand::Rng) -> Self {
        let inner = self.lock();
        // Often all or nothing survives, which are the cases that chance would hardly ever show.
        let mood = rng.u8(0..4);
        let names = match (mood, inner.names_since_sync.len()) {
            (_, 0) | (0, _) => inner.names.clone(),
            (_, n) => inner.names_since_sync[rng.usize(0..n)].clone(),
        };
        let files = inner.files.iter().map(|file| {
            let mut bytes = file.durable.clone();
            for pending in &file.pending {
                pending.apply(&mut bytes, || match mood {
                    0 => true,
                    1 => false,
                    _ => rng.bool(),
                });
            }
            SimFile { durable: bytes.clone(), current: bytes, pending: Vec::new() }
        });
        let next = Inner { files: files.collect(), names_since_sync: vec![names.clone()], names, ..Inner::default() };
        Self { inner: Arc::new(Mutex::new(next)) }
    }

    /// A file's bytes.
    #[must_use]
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let inner = self.lock();
        inner.names.get(name).map_or_else(Vec::new, |&file| inner.files[file].current.clone())
    }

    /// A separate disk with the same contents, one bit of one file flipped.
    #[must_use]
    pub fn with_flipped_bit(&self, name: &str, bit: usize) -> Self {
        let inner = self.lock();
        let mut files: Vec<_> = inner.files.iter().map(|f| SimFile { pending: Vec::new(), ..f.clone() }).collect();
        if let Some(&file) = inner.names.get(name) {
            files[file].current[bit / 8] ^= 1 << (bit % 8);
        }
        let next = Inner { files, names: inner.names.clone(), ..Inner::default() };
        Self { inner: Arc::new(Mutex::new(next)) }
    }

    /// The names of all files.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }

    /// Does something during which the power stays and no call is refused; nothing if the power is gone already.
    pub fn undisturbed(&self, work: impl FnOnce()) {
        if self.lock().is_dead {
            return;
        }
        self.lock().is_undisturbed = true;
        work();
        self.lock().is_undisturbed = false;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let mut inner = self.lock();
        if inner.is_undisturbed {
            return Ok(inner);
        }
        inner.calls += 1;
        let calls = inner.calls;
        inner.is_dead |= inner.dies_at.is_some_and(|at| calls >= at);
        if inner.is_dead {
            return Err(io::Error::other("the power is gone"));
        }
        if inner.fails_at == Some(calls) {
            return Err(io::Error::other("this call fails"));
        }
        Ok(inner)
    }
}

impl Inner {
    fn file(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn renamed(&mut self) {
        self.names_since_sync.push(self.names.clone());
    }
}

impl Disk for SimDisk {
    fn place(&self) -> String {
        "simulated".to_owned()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        let mut inner = self.call()?;
        let file = match inner.names.get(name) {
            Some(&file) => file,
            None => {
                inner.files.push(SimFile::default());
                let file = inner.files.len() - 1;
                inner.names.insert(name.to_owned(), file);
                inner.renamed();
                file
            }
        };
        Ok(Box::new(SimBackend { disk: self.clone(), file }))
    }

    fn open_read_only(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        let file = self.call()?.file(name)?;
        Ok(Box::new(SimBackend { disk: self.clone(), file }))
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        Ok(self.call()?.names.contains_key(name))
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let inner = self.call()?;
        let split = inner.names.keys().map(|name| name.rsplit_once('/').unwrap_or(("", name)));
        Ok(split.filter(|(at, _)| *at == folder).map(|(_, name)| name.to_owned()).collect())
    }

    fn allocated(&self, name: &str) -> io::Result<u64> {
        let inner = self.call()?;
        Ok(inner.files[inner.file(name)?].current.len() as u64)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.call()?;
        let file = inner.file(from)?;
        inner.names.remove(from);
        inner.names.insert(to.to_owned(), file);
        inner.renamed();
        Ok(())
    }

    fn shorten(&self, name: &str, length: u64) -> io::Result<bool> {
        let mut inner = self.call()?;
        let file = inner.file(name)?;
        let file = &mut inner.files[file];
        let is_longer = file.current.len() as u64 > length;
        if is_longer {
            file.current.truncate(length as usize);
            file.pending.push(Pending::SetLen(length as usize));
        }
        Ok(is_longer)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.call()?;
        inner.file(name)?;
        inner.names.remove(name);
        inner.renamed();
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut inner = self.call()?;
        let names = inner.names.clone();
        inner.names_since_sync = vec![names];
        Ok(())
    }
}

#[derive(Debug)]
struct SimBackend {
    disk: SimDisk,
    file: usize,
}

impl StorageBackend for SimBackend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.call()?.files[self.file].current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.disk.call()?;
        let offset = offset as usize;
        let found = inner.files[self.file].current.get(offset..offset + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.disk.call()?;
        let file = &mut inner.files[self.file];
        resize(&mut file.current, len as usize);
        file.pending.push(Pending::SetLen(len as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.disk.call()?;
        if inner.lies_of.as_ref().is_some_and(|name| inner.names.get(name) == Some(&self.file)) {
            inner.lies_of = None;
            inner.has_lied = true;
            return Ok(());
        }
        let file = &mut inner.files[self.file];
        for pending in std::mem::take(&mut file.pending) {
            pending.apply(&mut file.durable, || true);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut inner = self.disk.call()?;
        if inner.is_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = &mut inner.files[self.file];
        let pending = Pending::Write(offset as usize, data.to_vec());
        pending.apply(&mut file.current, || true);
        file.pending.push(pending);
        Ok(())
    }
}
