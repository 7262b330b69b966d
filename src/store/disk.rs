//! The door between the store and the files it lies in: a [`Disk`] is a folder of files that redb reads and writes
//! through. The real one is [`Folder`]; tests put a disk behind the same door that loses, tears and refuses writes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use redb::StorageBackend;
use redb::backends::FileBackend;

/// The subfolder of the runs.
pub(super) const RUNS_FOLDER: &str = "runs";

/// The locks of a backend around another one, `inner`: they belong to the process, and nothing is done to them.
macro_rules! pass_locks_on {
    () => {
        fn try_lock_range(
            &self,
            start: std::ops::Bound<u64>,
            end: std::ops::Bound<u64>,
        ) -> Result<bool, redb::BackendError> {
            self.inner.try_lock_range(start, end)
        }

        fn try_lock_shared_range(
            &self,
            start: std::ops::Bound<u64>,
            end: std::ops::Bound<u64>,
        ) -> Result<bool, redb::BackendError> {
            self.inner.try_lock_shared_range(start, end)
        }

        fn lock_range(&self, start: std::ops::Bound<u64>, end: std::ops::Bound<u64>) -> Result<(), redb::BackendError> {
            self.inner.lock_range(start, end)
        }

        fn lock_shared_range(
            &self,
            start: std::ops::Bound<u64>,
            end: std::ops::Bound<u64>,
        ) -> Result<(), redb::BackendError> {
            self.inner.lock_shared_range(start, end)
        }

        fn unlock_range(
            &self,
            start: std::ops::Bound<u64>,
            end: std::ops::Bound<u64>,
        ) -> Result<(), redb::BackendError> {
            self.inner.unlock_range(start, end)
        }

        fn query_lock_range(
            &self,
            start: std::ops::Bound<u64>,
            end: std::ops::Bound<u64>,
        ) -> Result<bool, redb::BackendError> {
            self.inner.query_lock_range(start, end)
        }
    };
}
#[cfg(feature = "faults")]
pub(super) use pass_locks_on;

/// A folder of files, each of which redb can lie in. Names are relative, with `/` between folder and file.
pub trait Disk: Send + Sync + std::fmt::Debug {
    /// Where this is, for messages to the operator.
    fn place(&self) -> String;

    /// Opens a file for reading and writing; an empty one is made where none is.
    ///
    /// # Errors
    /// What the file system says.
    fn open(&self, name: &str) -> io::Result<Box<dyn StorageBackend>>;

    /// Opens a file that is there, for reading only.
    ///
    /// # Errors
    /// What the file system says.
    fn open_read_only(&self, name: &str) -> io::Result<Box<dyn StorageBackend>>;

    /// Whether there is such a file.
    ///
    /// # Errors
    /// What the file system says.
    fn exists(&self, name: &str) -> io::Result<bool>;

    /// The files of a subfolder ("" for the folder itself), without the folder's name.
    ///
    /// # Errors
    /// What the file system says.
    fn list(&self, folder: &str) -> io::Result<Vec<String>>;

    /// How many bytes a file takes on the disk (a sparse file takes less than its length).
    ///
    /// # Errors
    /// What the file system says.
    fn allocated(&self, name: &str) -> io::Result<u64>;

    /// Gives a file another name, in place of any file that has it.
    ///
    /// # Errors
    /// What the file system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Cuts a file to at most `length` bytes; returns whether there was anything to cut.
    ///
    /// # Errors
    /// What the file system says.
    fn shorten(&self, name: &str, length: u64) -> io::Result<bool>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the file system says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes durable which files there are.
    ///
    /// # Errors
    /// What the file system says.
    fn sync_names(&self) -> io::Result<()>;
}

/// A real folder. Files in it are readable and writable by their owner alone.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder at `path`, made with its subfolder for runs where it is missing.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create(path: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path.join(RUNS_FOLDER))?;
        Ok(Self { path: path.to_owned() })
    }

    /// The folder at `path`, which has to be there.
    #[must_use]
    pub fn existing(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }
}

impl Disk for Folder {
    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.path.join(name))?;
        Ok(Box::new(FileBackend::new(file).map_err(io::Error::other)?))
    }

    fn open_read_only(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        let file = File::open(self.path.join(name))?;
        Ok(Box::new(FileBackend::new(file).map_err(io::Error::other)?))
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.path.join(name).try_exists()
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path.join(folder))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(names)
    }

    fn allocated(&self, name: &str) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(fs::metadata(self.path.join(name))?.blocks() * 512)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn shorten(&self, name: &str, length: u64) -> io::Result<bool> {
        let file = OpenOptions::new().write(true).open(self.path.join(name))?;
        let is_longer = file.metadata()?.len() > length;
        if is_longer {
            file.set_len(length)?;
        }
        Ok(is_longer)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()?;
        File::open(self.path.join(RUNS_FOLDER))?.sync_all()
    }
}

/// What went through one file since it was opened.
#[derive(Debug, Default)]
pub(super) struct Meter {
    written: AtomicU64,
    syncs: AtomicU64,
    sync_failed: AtomicBool,
}

impl Meter {
    /// Bytes written.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    /// Syncs done.
    pub(super) fn syncs(&self) -> u64 {
        self.syncs.load(Relaxed)
    }

    /// Whether a sync failed. The kernel may have dropped the pages by then, so nothing is written after it.
    pub(super) fn is_sync_failed(&self) -> bool {
        self.sync_failed.load(Relaxed)
    }
}

/// A file as redb gets it: measured, and closed for writing by the first failed sync.
#[derive(Debug)]
pub(super) struct MeteredFile {
    inner: Box<dyn StorageBackend>,
    meter: Arc<Meter>,
}

impl MeteredFile {
    pub(super) fn new(inner: Box<dyn StorageBackend>, meter: Arc<Meter>) -> Self {
        Self { inner, meter }
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.meter.is_sync_failed() {
            return Err(io::Error::other("a sync of this file failed before, it is never written again"));
        }
        Ok(())
    }
}

impl StorageBackend for MeteredFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check_writable()?;
        self.meter.syncs.fetch_add(1, Relaxed);
        self.inner.sync_data().inspect_err(|_| self.meter.sync_failed.store(true, Relaxed))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check_writable()?;
        self.meter.written.fetch_add(data.len() as u64, Relaxed);
        self.inner.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    pass_locks_on!();
}
