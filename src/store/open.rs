//! Opening and creating the redb files of a store, and what can be wrong with them.

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use redb::{Builder, Database, DatabaseError, StorageError, WriteTransaction};

use super::ReadError;
use super::disk::{Disk, Meter, MeteredFile};
use crate::vital::caught;

/// Why a store was not opened. Nothing was changed in it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Some process has it open.
    #[error("{path} is in use by another process; stop that one first, or choose another folder")]
    AlreadyOpen {
        /// The file that is locked.
        path: String,
    },
    /// Written by a newer program.
    #[error("{path} has store format {found}, this program reads formats up to {known}; use a newer program")]
    NewerFormat {
        /// The file that says so.
        path: String,
        /// The format of the store.
        found: u64,
        /// The newest format that this program knows.
        known: u64,
    },
    /// The file contradicts itself or the other files.
    #[error("{path} is damaged: {reason}; restore the folder from a backup, or look at it with `longwire store check`")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file system refused.
    #[error("cannot open {path}: {error}; the folder has to exist or be creatable, and be writable by this user")]
    Io {
        /// The file or folder.
        path: String,
        /// What the file system said.
        error: io::Error,
    },
}

impl OpenError {
    pub(super) fn io(disk: &dyn Disk, name: &str, error: io::Error) -> Self {
        Self::Io { path: path(disk, name), error }
    }

    pub(super) fn damaged(disk: &dyn Disk, name: &str, reason: impl ToString) -> Self {
        Self::Damaged { path: path(disk, name), reason: reason.to_string() }
    }
}

/// A file's name as the operator knows it.
pub(super) fn path(disk: &dyn Disk, name: &str) -> String {
    format!("{}/{name}", disk.place())
}

/// redb trusts its pages and may panic where they are not what it wrote: that is an error of the file, like any other.
pub(super) fn guarded<T, E: From<ReadError>>(name: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let panicked = |_| Err(ReadError(format!("{name} is damaged: redb cannot make sense of its pages")).into());
    caught(work).unwrap_or_else(panicked)
}

/// A file that is open. Whoever has something to learn from it closes it; dropped, it is closed as far as it can be: what redb
/// makes of a damaged one then is told in the log, and no panic.
#[derive(Debug)]
pub(super) struct OpenFile(Option<Database>);

impl OpenFile {
    /// Closes it.
    ///
    /// # Errors
    /// What redb says.
    pub(super) fn close(mut self) -> Result<(), redb::Error> {
        match self.0.take() {
            Some(database) => Ok(database.close()?),
            None => Ok(()),
        }
    }
}

impl Deref for OpenFile {
    type Target = Database;

    fn deref(&self) -> &Database {
        self.0.as_ref().expect("open until it is dropped")
    }
}

impl DerefMut for OpenFile {
    fn deref_mut(&mut self) -> &mut Database {
        self.0.as_mut().expect("open until it is dropped")
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let database = self.0.take();
        if caught(|| drop(database)).is_err() {
            tracing::warn!("a file of the store is damaged: redb cannot make sense of its pages, not even to close it");
        }
    }
}

/// Opens a file that is there. One that was not closed is repaired by redb.
pub(super) fn open_database(
    disk: &dyn Disk,
    name: &str,
    cache_bytes: usize,
    meter: Arc<Meter>,
) -> Result<OpenFile, OpenError> {
    let backend = disk.open(name).map_err(|error| OpenError::io(disk, name, error))?;
    let open = || {
        let opened = Builder::new().set_cache_size(cache_bytes).create_with_backend(MeteredFile::new(backend, meter));
        Ok(opened.map(|database| OpenFile(Some(database))).map_err(|error| classify(disk, name, error)))
    };
    guarded(name, open).unwrap_or_else(|error: ReadError| Err(OpenError::damaged(disk, name, error)))
}

/// Makes a file with what `fill` puts into it. It gets its name only when all of it is durable, so that a crash on the
/// way leaves no half-made file behind.
pub(super) fn create_database(
    disk: &dyn Disk,
    name: &str,
    fill: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
) -> Result<(), OpenError> {
    prepare_database(disk, name, fill)?;
    put_in_place(disk, name)
}

/// The first half of it: the file has everything but its name, which another file may have.
pub(super) fn prepare_database(
    disk: &dyn Disk,
    name: &str,
    fill: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
) -> Result<(), OpenError> {
    let new = format!("{name}{UNFINISHED}");
    if disk.exists(&new).map_err(|error| OpenError::io(disk, &new, error))? {
        disk.remove(&new).map_err(|error| OpenError::io(disk, &new, error))?;
    }
    let database = open_database(disk, &new, 1 << 20, Arc::default())?;
    fill_and_close(database, fill).map_err(|error| match error {
        redb::Error::Io(error) => OpenError::io(disk, &new, error),
        other => OpenError::damaged(disk, &new, other),
    })
}

/// The other half: the file gets its name, durably. After an error it may have it or not.
pub(super) fn put_in_place(disk: &dyn Disk, name: &str) -> Result<(), OpenError> {
    let renamed = disk.rename(&format!("{name}{UNFINISHED}"), name).and_then(|()| disk.sync_names());
    renamed.map_err(|error| OpenError::io(disk, name, error))
}

/// What a file is called beyond its name until it is finished.
pub(super) const UNFINISHED: &str = ".new";

fn fill_and_close(
    database: OpenFile,
    fill: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    fill(&transaction)?;
    transaction.commit()?;
    database.close()
}

/// What redb says about a file, in the operator's words.
pub(super) fn classify(disk: &dyn Disk, name: &str, error: DatabaseError) -> OpenError {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            OpenError::AlreadyOpen { path: path(disk, name) }
        }
        DatabaseError::Storage(StorageError::Io(error)) if error.kind() != io::ErrorKind::InvalidData => {
            OpenError::io(disk, name, error)
        }
        other => OpenError::damaged(disk, name, other),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::SimDisk;
    use super::*;

    #[test]
    fn what_is_wrong_with_a_file_names_it() {
        let disk = SimDisk::default();
        let file = format!("{}/a", disk.place());
        let told = |error| classify(&disk, "a", error).to_string();
        let io = |kind: io::ErrorKind| DatabaseError::Storage(StorageError::Io(kind.into()));
        for in_use in [DatabaseError::DatabaseAlreadyOpen, DatabaseError::LockProtocolMismatch] {
            assert!(told(in_use).starts_with(&format!("{file} is in use by another process")));
        }
        assert!(
            told(io(io::ErrorKind::PermissionDenied)).starts_with(&format!("cannot open {file}: permission denied"))
        );
        assert!(told(io(io::ErrorKind::InvalidData)).starts_with(&format!("{file} is damaged: ")));
        let corrupted = DatabaseError::Storage(StorageError::Corrupted("so".to_owned()));
        assert!(told(corrupted).starts_with(&format!("{file} is damaged: ")));
    }

    #[test]
    fn a_file_has_its_name_when_it_is_whole() {
        let disk = SimDisk::default();
        let nothing = |_: &WriteTransaction| Ok(());
        prepare_database(&disk, "a", nothing).expect("is made");
        assert_eq!(disk.names(), ["a.new"]);
        prepare_database(&disk, "a", nothing).expect("is made anew");
        put_in_place(&disk, "a").expect("gets its name");
        create_database(&disk, "a", nothing).expect("takes its place");
        assert_eq!(disk.names(), ["a"]);
        let error = prepare_database(&disk, "b", |_| Err(redb::Error::Io(io::ErrorKind::StorageFull.into())));
        let error = error.expect_err("is told").to_string();
        assert!(error.starts_with(&format!("cannot open {}/b.new: ", disk.place())), "{error}");
    }
}
