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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::testing::{AskedFile, SimDisk};
    use super::*;

    #[test]
    fn a_folder_is_what_the_file_system_has() {
        let temporary = tempfile::tempdir().expect("a folder");
        let path = temporary.path().join("store");
        let disk = Folder::create(&path).expect("is made");
        assert_eq!(disk.place(), path.display().to_string());
        let mode = |path: &Path| fs::metadata(path).expect("is there").permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&path.join(RUNS_FOLDER))), (0o700, 0o700));
        let file = disk.open("a").expect("is made");
        file.set_len(1 << 20)
            .and_then(|()| file.write(0, &[1; 10_000]))
            .and_then(|()| file.sync_data())
            .expect("written");
        drop(file);
        assert_eq!(mode(&path.join("a")), 0o600);
        let allocated = disk.allocated("a").expect("is there");
        assert!(
            (8_192..1 << 20).contains(&allocated) && allocated.is_multiple_of(512),
            "{allocated} bytes of a sparse file"
        );
        let again = Folder::existing(&path);
        let file = again.open("a").expect("is there");
        assert_eq!(file.len().expect("has a length"), 1 << 20, "it is not cut");
        drop(file);
        let file = again.open_read_only("a").expect("is there");
        let mut read = [0; 3];
        file.read(9_998, &mut read).expect("reads");
        assert_eq!(read, [1, 1, 0]);
        assert!(file.write(0, b"x").is_err() && again.open_read_only("b").is_err());
        drop(file);

        assert_eq!((disk.shorten("a", 1 << 20).ok(), disk.shorten("a", 100).ok()), (Some(false), Some(true)));
        assert_eq!(fs::metadata(path.join("a")).expect("is there").len(), 100);
        assert_eq!((disk.shorten("a", 101).ok(), disk.shorten("b", 1).is_err()), (Some(false), true));
        assert_eq!(disk.list("").expect("is a folder"), ["a"], "without the folder in it");
        disk.rename("a", "runs/1").expect("is there");
        assert_eq!((disk.list("").ok(), disk.list(RUNS_FOLDER).ok()), (Some(vec![]), Some(vec!["1".to_owned()])));
        assert_eq!((disk.exists("a").ok(), disk.exists("runs/1").ok()), (Some(false), Some(true)));
        disk.sync_names().expect("are synced");
        disk.remove("runs/1").expect("is there");
        assert!(!path.join("runs/1").exists() && disk.remove("runs/1").is_err());
        fs::remove_dir(path.join(RUNS_FOLDER)).expect("is empty");
        assert!(disk.sync_names().is_err(), "the names of runs are synced too");
    }

    #[test]
    fn a_file_is_measured_and_never_written_after_a_sync_that_failed() {
        let disk = SimDisk::default();
        let meter = Arc::<Meter>::default();
        let file = MeteredFile::new(disk.open("a").expect("is made"), Arc::clone(&meter));
        file.set_len(100)
            .and_then(|()| file.write(10, b"hello"))
            .and_then(|()| file.write(20, b"you"))
            .expect("written");
        file.sync_data().expect("is synced");
        assert_eq!((meter.written(), meter.syncs(), meter.is_sync_failed()), (8, 1, false));
        disk.fail_after(1);
        assert!(file.sync_data().is_err() && meter.is_sync_failed());
        for refused in [file.write(0, b"x"), file.set_len(1), file.sync_data()] {
            let error = refused.expect_err("is refused").to_string();
            assert_eq!(error, "a sync of this file failed before, it is never written again");
        }
        let mut read = [0; 5];
        file.read(10, &mut read).expect("is read on");
        assert_eq!((&read, file.len().ok(), meter.written(), meter.syncs()), (b"hello", Some(100), 8, 2));
        file.close().expect("is closed");
    }

    #[test]
    fn locks_are_those_of_the_file() {
        for answer in [false, true] {
            let asked = AskedFile::new(answer);
            let file = MeteredFile::new(Box::new(asked.clone()), Arc::default());
            let locks = ["try alone", "try shared", "look", "alone", "shared", "give back"];
            assert_eq!(asked.asked_by(&file), locks);
        }
    }
}
