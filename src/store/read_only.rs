//! A disk seen through glass: it can be opened, even repaired, without a byte of it changing. What is written stays in
//! memory and is forgotten. The offline commands look at a store through this.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{BackendError, StorageBackend};

use super::disk::Disk;

const PAGE: usize = 4096;

/// The disk. Files cannot be made, renamed or removed.
#[derive(Debug)]
pub(super) struct ReadOnlyDisk {
    inner: Arc<dyn Disk>,
}

impl ReadOnlyDisk {
    pub(super) fn new(inner: Arc<dyn Disk>) -> Self {
        Self { inner }
    }
}

fn refused<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Disk for ReadOnlyDisk {
    fn place(&self) -> String {
        self.inner.place()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        let inner = self.inner.open_read_only(name)?;
        let length = inner.len()?;
        Ok(Box::new(Overlay { inner, written: Mutex::new(Written { length, pages: HashMap::new() }) }))
    }

    fn open_read_only(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        self.inner.open_read_only(name)
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.inner.exists(name)
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        self.inner.list(folder)
    }

    fn allocated(&self, name: &str) -> io::Result<u64> {
        self.inner.allocated(name)
    }

    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        refused()
    }

    fn shorten(&self, _name: &str, _length: u64) -> io::Result<bool> {
        refused()
    }

    fn remove(&self, _name: &str) -> io::Result<()> {
        refused()
    }

    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A file with what was written over it.
#[derive(Debug)]
struct Overlay {
    inner: Box<dyn StorageBackend>,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    length: u64,
    pages: HashMap<u64, Vec<u8>>,
}

impl Overlay {
    fn lock(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A page of the file itself; zeros beyond its end.
    fn original(&self, page: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; PAGE];
        let begin = page * PAGE as u64;
        let available = self.inner.len()?.saturating_sub(begin).min(PAGE as u64) as usize;
        // A file need not take a read that begins beyond its end, not even one of nothing.
        if available > 0 {
            self.inner.read(begin, &mut bytes[..available])?;
        }
        Ok(bytes)
    }
}

/// The pages that a range touches: page number, where it begins in the page, where in the range, how long.
fn pages(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let position = offset + at as u64;
        let within = (position % PAGE as u64) as usize;
        let here = (PAGE - within).min(length - at);
        let step = (position / PAGE as u64, within, at, here);
        at += here;
        (here > 0).then_some(step)
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let written = self.lock();
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > written.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if written.pages.is_empty() && written.length <= self.inner.len()? {
            return self.inner.read(offset, out);
        }
        for (page, within, at, here) in pages(offset, out.len()) {
            match written.pages.get(&page) {
                Some(bytes) => out[at..at + here].copy_from_slice(&bytes[within..within + here]),
                None => out[at..at + here].copy_from_slice(&self.original(page)?[within..within + here]),
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.lock().length = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = self.lock();
        for (page, within, at, here) in pages(offset, data.len()) {
            let bytes = match written.pages.entry(page) {
                Entry::Occupied(bytes) => bytes.into_mut(),
                Entry::Vacant(vacant) => vacant.insert(self.original(page)?),
            };
            bytes[within..within + here].copy_from_slice(&data[at..at + here]);
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    // Who only looks shares the file with others who only look, and with no writer.
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{AskedFile, SimDisk};

    #[test]
    fn who_only_looks_changes_nothing() {
        let disk = SimDisk::default();
        let file = disk.open("a").expect("made");
        file.set_len(8).and_then(|()| file.write(0, b"as it is")).and_then(|()| file.close()).expect("written");
        let bytes = disk.bytes("a");
        let looker = ReadOnlyDisk::new(Arc::new(disk.clone()));

        let seen = looker.open("a").expect("there");
        seen.write(0, b"it seems").and_then(|()| seen.sync_data()).expect("kept in memory");
        let mut read = [0; 8];
        seen.read(0, &mut read).expect("read");
        assert_eq!(&read, b"it seems");
        for changed in [looker.rename("a", "b"), looker.remove("a"), looker.shorten("a", 1).map(drop)] {
            assert_eq!(changed.expect_err("refused").kind(), io::ErrorKind::ReadOnlyFilesystem);
        }
        looker.sync_names().expect("nothing to do");
        assert_eq!((disk.bytes("a"), disk.names()), (bytes, vec!["a".to_owned()]));
        assert!(looker.exists("a").expect("asked") && !looker.exists("b").expect("asked"));
        assert_eq!(looker.list("").expect("asked"), disk.list("").expect("asked"));
        assert_eq!((looker.place(), looker.allocated("a").ok()), (disk.place(), disk.allocated("a").ok()));
    }

    #[test]
    fn what_is_written_over_a_file_is_read_as_if_it_were_there() {
        let disk = SimDisk::default();
        let length = 2 * PAGE + 100;
        let mut wanted: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        let file = disk.open("a").expect("made");
        file.set_len(length as u64).and_then(|()| file.write(0, &wanted)).and_then(|()| file.close()).expect("written");
        let seen = ReadOnlyDisk::new(Arc::new(disk.clone())).open("a").expect("there");
        let assert_same = |wanted: &[u8], context: &str| {
            assert_eq!(seen.len().expect("has a length"), wanted.len() as u64, "{context}");
            let steps = [0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE - 3, 2 * PAGE, wanted.len() - 1, wanted.len()];
            for from in steps {
                for to in steps.into_iter().filter(|to| *to >= from) {
                    let mut read = vec![0xee; to - from];
                    seen.read(from as u64, &mut read).expect("is within");
                    assert!(read == wanted[from..to], "{context}: {from} to {to}");
                }
            }
            for (offset, count) in [(wanted.len() as u64, 1), (0, wanted.len() + 1), (u64::MAX, 1)] {
                let error = seen.read(offset, &mut vec![0; count]).expect_err("is beyond the end");
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{context}");
            }
        };
        assert_same(&wanted, "as it is");
        for (offset, count) in [(PAGE - 2, 4), (5, 1), (PAGE, PAGE), (1, 2 * PAGE + 50)] {
            seen.write(offset as u64, &vec![0xaa; count]).expect("kept in memory");
            wanted[offset..offset + count].fill(0xaa);
            assert_same(&wanted, &format!("{count} bytes over {offset}"));
        }
        seen.set_len(4 * PAGE as u64).expect("kept in memory");
        wanted.resize(4 * PAGE, 0);
        assert_same(&wanted, "longer");
        seen.write(3 * PAGE as u64 + 1, b"far").expect("kept in memory");
        wanted[3 * PAGE + 1..3 * PAGE + 4].copy_from_slice(b"far");
        assert_same(&wanted, "written beyond its end");
    }

    #[test]
    fn a_file_that_is_only_made_longer_is_zeros_there() {
        let disk = SimDisk::default();
        let file = disk.open("a").expect("made");
        file.set_len(3).and_then(|()| file.write(0, b"abc")).expect("written");
        let seen = ReadOnlyDisk::new(Arc::new(disk)).open("a").expect("there");
        seen.set_len(5).expect("kept in memory");
        let mut read = [1; 5];
        seen.read(0, &mut read).expect("is within");
        assert_eq!(&read, b"abc\0\0");
        seen.close().expect("closes");
    }

    #[test]
    fn who_only_looks_shares_the_file() {
        for answer in [false, true] {
            let asked = AskedFile::new(answer);
            let seen = ReadOnlyDisk::new(Arc::new(asked.clone())).open("a").expect("there");
            let locks = ["try shared", "try shared", "look", "shared", "shared", "give back"];
            assert_eq!(asked.asked_by(&*seen), locks);
        }
    }
}
