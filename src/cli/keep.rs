//! Small files of state beside the user's own files, replaced whole or not at all; and the files that reserve a name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Fail;

/// `FILE.longwire`.
pub(super) fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".longwire");
    PathBuf::from(name)
}

/// Reads what [`write`] wrote; `None` if there is no such file.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Fail> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Fail::failed(format!("{}: not a file of this command: {error}", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Fail::failed(format!("{}: {error}", path.display()))),
    }
}

/// Replaces a file of state: after a crash at any moment the old one or the new one is there, whole. That it is the new
/// one is certain after a kill; after a power cut only once [`sync_directory`] was called.
pub(super) fn write<T: Serialize>(path: &Path, state: &T) -> Result<(), Fail> {
    let whole = || -> io::Result<()> {
        let mut next = path.as_os_str().to_owned();
        next.push(".next");
        let next = PathBuf::from(next);
        let mut file = private().truncate(true).open(&next)?;
        serde_json::to_writer(&mut file, state)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&next, path)
    };
    whole().map_err(|error| Fail::failed(format!("{}: {error}", path.display())))
}

/// Makes the name of a file durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

/// How a file is made that its owner alone reads.
pub(super) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// A lock on a file of its own, held as long as this lives; the file stays.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "the lock is held by the open file")] File);

impl Lock {
    /// Takes the lock, or `None` if another process has it.
    pub(super) fn take(path: &Path) -> io::Result<Option<Self>> {
        let file = private().truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = beside(&directory.path().join("lines"));
        assert_eq!(read::<Vec<u64>>(&path).expect("nothing there"), None);
        write(&path, &vec![1_u64, 2]).expect("written");
        write(&path, &vec![3_u64]).expect("written again");
        assert_eq!(read::<Vec<u64>>(&path).expect("readable"), Some(vec![3]));
        fs::write(&path, b"{").expect("spoiled");
        assert!(read::<Vec<u64>>(&path).is_err(), "half a file is not read as none");
    }

    #[test]
    fn a_lock_is_held_by_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("lock");
        let held = Lock::take(&path).expect("a file");
        assert!(held.is_some());
        assert!(Lock::take(&path).expect("a file").is_none());
        drop(held);
        assert!(Lock::take(&path).expect("a file").is_some());
    }
}
