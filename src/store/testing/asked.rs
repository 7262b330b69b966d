//! A file that notes which locks it is asked for, and answers as it was told.

use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

use redb::{BackendError, StorageBackend};

use crate::store::Disk;

type Range = (Bound<u64>, Bound<u64>);

/// The file, and a disk that has no other. Clones are the same file.
#[derive(Clone, Debug)]
pub(crate) struct AskedFile {
    asked: Arc<Mutex<Vec<(&'static str, Range)>>>,
    answer: bool,
}

impl AskedFile {
    /// A file that says this of every lock.
    pub(crate) fn new(answer: bool) -> Self {
        Self { asked: Arc::default(), answer }
    }

    /// Asks `file`, which is to pass it on to this one, for each kind of lock; returns what this one was asked for.
    pub(crate) fn asked_by(&self, file: &dyn StorageBackend) -> Vec<&'static str> {
        let range = (Bound::Included(3), Bound::Excluded(9));
        let answers = [
            file.try_lock_range(range.0, range.1),
            file.try_lock_shared_range(range.0, range.1),
            file.query_lock_range(range.0, range.1),
        ];
        assert_eq!(answers.map(|answer| answer.expect("is answered")), [self.answer; 3]);
        file.lock_range(range.0, range.1).expect("is answered");
        file.lock_shared_range(range.0, range.1).expect("is answered");
        file.unlock_range(range.0, range.1).expect("is answered");
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(asked.iter().all(|(_, of)| *of == range), "{asked:?}");
        asked.iter().map(|(lock, _)| *lock).collect()
    }

    fn note(&self, lock: &'static str, start: Bound<u64>, end: Bound<u64>) -> bool {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push((lock, (start, end)));
        self.answer
    }
}

impl StorageBackend for AskedFile {
    fn len(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        Ok(self.note("try alone", start, end))
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        Ok(self.note("try shared", start, end))
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.note("alone", start, end);
        Ok(())
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.note("shared", start, end);
        Ok(())
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.note("give back", start, end);
        Ok(())
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        Ok(self.note("look", start, end))
    }
}

impl Disk for AskedFile {
    fn place(&self) -> String {
        "nowhere".to_owned()
    }

    fn open(&self, _: &str) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(self.clone()))
    }

    fn open_read_only(&self, _: &str) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(self.clone()))
    }

    fn exists(&self, _: &str) -> io::Result<bool> {
        Ok(true)
    }

    fn list(&self, _: &str) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn allocated(&self, _: &str) -> io::Result<u64> {
        Ok(0)
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn shorten(&self, _: &str, _: u64) -> io::Result<bool> {
        Ok(false)
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }
}
