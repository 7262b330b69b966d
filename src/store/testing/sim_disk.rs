//! A disk in memory that forgets like a real one: until a sync, each 512-byte sector of a write may or may not survive a
//! crash, in any combination. It can lose power at the n-th call, and it can refuse the n-th call, and some after it.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use super::pages::Pages;
use crate::store::Disk;

const SECTOR: usize = 512;

#[derive(Clone, Debug, Default)]
struct SimFile {
    durable: Pages,
    current: Pages,
    /// What was written since the last sync, oldest first: from `durable` it leads to `current`.
    pending: Vec<Pending>,
}

#[derive(Clone, Debug)]
enum Pending {
    Write(u64, Arc<[u8]>),
    SetLen(u64),
}

impl Pending {
    /// Does what of it is kept: sectors, which are aligned on the disk and not in the write.
    fn apply(&self, to: &mut Pages, mut keeps: impl FnMut() -> bool) {
        match self {
            Self::SetLen(length) => {
                if keeps() {
                    to.set_len(*length);
                }
            }
            Self::Write(offset, data) => {
                let mut at = 0;
                while at < data.len() {
                    let offset = offset + at as u64;
                    let end = (at + SECTOR - (offset % SECTOR as u64) as usize).min(data.len());
                    if keeps() {
                        to.write(offset, &data[at..end]);
                    }
                    at = end;
                }
            }
        }
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
    fails: Range<u64>,
    /// Whether a write that fails is done all the same.
    fails_late: bool,
    is_dead: bool,
    is_undisturbed: bool,
    is_full: bool,
    refuses_new: bool,
    /// The file that cannot be read.
    spoilt: Option<usize>,
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
        self.fail_some_after(calls, 1);
    }

    /// Refuses `count` calls, the first of them after so many more.
    pub fn fail_some_after(&self, calls: u64, count: u64) {
        let mut inner = self.lock();
        let first = inner.calls + calls;
        inner.fails = first..first + count;
    }

    /// Whether a call came that was to be refused last.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        let inner = self.lock();
        inner.calls >= inner.fails.end
    }

    /// Whether what a failing call was to write is written all the same: an error does not say how far a write came.
    pub fn fail_late(&self, is_late: bool) {
        self.lock().fails_late = is_late;
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
        (inner.dies_at, inner.fails, inner.is_full, inner.lies_of) = (None, 0..0, false, None);
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

    /// Makes no new file from now on, or any: a process that has as many open as it may.
    pub fn refuse_new_files(&self, is_refused: bool) {
        self.lock().refuses_new = is_refused;
    }

    /// Refuses every read of a file from now on.
    pub fn spoil(&self, name: &str) {
        let mut inner = self.lock();
        inner.spoilt = inner.names.get(name).copied();
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
            let kept = match mood {
                0 => file.current.clone(),
                1 => file.durable.clone(),
                _ => {
                    let mut kept = file.durable.clone();
                    file.pending.iter().for_each(|pending| pending.apply(&mut kept, || rng.bool()));
                    kept
                }
            };
            SimFile { durable: kept.clone(), current: kept, pending: Vec::new() }
        });
        let next = Inner { files: files.collect(), names_since_sync: vec![names.clone()], names, ..Inner::default() };
        Self { inner: Arc::new(Mutex::new(next)) }
    }

    /// A file's bytes.
    #[must_use]
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let inner = self.lock();
        inner.names.get(name).map_or_else(Vec::new, |&file| inner.files[file].current.to_vec())
    }

    /// A separate disk with the same contents, one bit of one file flipped.
    #[must_use]
    pub fn with_flipped_bit(&self, name: &str, bit: usize) -> Self {
        let inner = self.lock();
        let mut files: Vec<_> = inner.files.iter().map(|f| SimFile { pending: Vec::new(), ..f.clone() }).collect();
        if let Some(&file) = inner.names.get(name) {
            files[file].current.flip(bit);
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
        if inner.fails.contains(&calls) {
            return Err(io::Error::other("this call fails"));
        }
        Ok(inner)
    }

    /// Writes; what fails late is done and fails.
    fn change(&self, file: usize, pending: Pending) -> io::Result<()> {
        let called = self.call().map(drop);
        let mut inner = self.lock();
        if called.is_ok() && inner.is_full && matches!(pending, Pending::Write(..)) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if called.is_ok() || (inner.fails_late && !inner.is_dead) {
            let file = &mut inner.files[file];
            match &pending {
                Pending::SetLen(length) => file.current.set_len(*length),
                Pending::Write(offset, data) => file.current.write(*offset, data),
            }
            file.pending.push(pending);
        }
        called
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
            None if inner.refuses_new => return Err(io::Error::other("too many open files")),
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
        Ok(inner.files[inner.file(name)?].current.len())
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
        let is_longer = file.current.len() > length;
        if is_longer {
            file.current.set_len(length);
            file.pending.push(Pending::SetLen(length));
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
        Ok(self.disk.call()?.files[self.file].current.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.disk.call()?;
        if inner.spoilt == Some(self.file) {
            return Err(io::Error::other("this file cannot be read"));
        }
        match inner.files[self.file].current.read(offset, out) {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.change(self.file, Pending::SetLen(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.disk.call()?;
        if inner.lies_of.as_ref().is_some_and(|name| inner.names.get(name) == Some(&self.file)) {
            inner.lies_of = None;
            inner.has_lied = true;
            return Ok(());
        }
        let file = &mut inner.files[self.file];
        file.pending.clear();
        file.durable = file.current.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.change(self.file, Pending::Write(offset, data.into()))
    }
}
