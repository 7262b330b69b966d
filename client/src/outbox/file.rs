//! The outbox on disk: one redb file and one thread that commits to it.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use bytes::Bytes;
use longwire_protocol::packet;
use prost::Message as _;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use super::{Batch, Kept, Owner};
use crate::error::OutboxError;

/// Message id → encoded `Publish`.
const PUBLISHES: TableDefinition<u64, &[u8]> = TableDefinition::new("publishes");
/// Message id → encoded `Publish` that may be stored or not; since format 2.
const DOUBTFUL: TableDefinition<u64, &[u8]> = TableDefinition::new("doubtful");
/// Single numbers: format, user, birth of the broker, incarnation, next message id.
const NUMBERS: TableDefinition<&str, u64> = TableDefinition::new("numbers");
/// The cursor, and whose outbox it is.
const TEXTS: TableDefinition<&str, &[u8]> = TableDefinition::new("texts");

/// 1: without `doubtful`. It is read, and is format 2 from then on: an older version would send what is doubtful.
const FORMAT: u64 = 2;
/// A few pages are all that an outbox is read from.
const CACHE_BYTES: usize = 1 << 20;

/// An open outbox file. Dropping it waits for the commit under way.
#[derive(Debug)]
pub(super) struct OutboxFile {
    batches: Option<mpsc::SyncSender<Batch>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl OutboxFile {
    /// Opens the file, or makes it (mode 0600), and reads what it keeps. `saved` is called by the file's thread with
    /// the outcome of each batch, in order.
    pub(super) fn open(
        path: &Path,
        device: &str,
        saved: impl Fn(Result<u64, OutboxError>) + Send + 'static,
    ) -> Result<(Self, Kept), OutboxError> {
        let (database, kept) = open(path, device)?;
        // One batch at a time is on its way: the owner sends the next when the last one is saved.
        let (batches, inbox) = mpsc::sync_channel::<Batch>(1);
        let path = path.to_owned();
        let thread = thread::Builder::new()
            .name("longwire-outbox".to_owned())
            .spawn({
                let path = path.clone();
                move || {
                    for batch in inbox {
                        let number = batch.number;
                        saved(commit(&database, &batch).map(|()| number).map_err(|error| disk(&path, error)));
                    }
                }
            })
            .map_err(|error| disk(&path, error))?;
        Ok((Self { batches: Some(batches), thread: Some(thread) }, kept))
    }

    /// Has a batch committed; the outcome comes by way of `saved`.
    pub(super) fn save(&self, batch: Batch) {
        if let Some(batches) = &self.batches {
            // The thread ends only after this sender, or in a panic that `saved` can no longer report.
            drop(batches.send(batch));
        }
    }
}

impl Drop for OutboxFile {
    fn drop(&mut self) {
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn disk(path: &Path, error: impl ToString) -> OutboxError {
    OutboxError::Disk { path: path.display().to_string(), why: error.to_string() }
}

fn open(path: &Path, device: &str) -> Result<(Database, Kept), OutboxError> {
    create_private(path).map_err(|error| disk(path, error))?;
    let database = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|error| match error {
        redb::DatabaseError::DatabaseAlreadyOpen => OutboxError::InUse(path.display().to_string()),
        error => disk(path, error),
    })?;
    let claim = claim(&database, device).map_err(|error| disk(path, error))?;
    if claim.format > FORMAT {
        return Err(OutboxError::Newer { path: path.display().to_string(), format: claim.format, newest: FORMAT });
    }
    if claim.device != device {
        return Err(OutboxError::OtherDevice { path: path.display().to_string(), device: claim.device });
    }
    let kept = load(&database).map_err(|error| disk(path, error))?;
    Ok((database, kept))
}

/// What people write lies in this file until it is acked: nobody else reads it.
fn create_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

struct Claim {
    format: u64,
    device: String,
}

/// Writes format and device into a new file; reads them from an old one.
fn claim(database: &Database, device: &str) -> Result<Claim, redb::Error> {
    let transaction = database.begin_write()?;
    let claim = {
        let mut numbers = transaction.open_table(NUMBERS)?;
        let mut texts = transaction.open_table(TEXTS)?;
        transaction.open_table(PUBLISHES)?;
        transaction.open_table(DOUBTFUL)?;
        let format = numbers.get("format")?.map(|value| value.value());
        match format {
            None => {
                numbers.insert("format", FORMAT)?;
                texts.insert("device", device.as_bytes())?;
                Claim { format: FORMAT, device: device.to_owned() }
            }
            Some(format) => {
                if format < FORMAT {
                    numbers.insert("format", FORMAT)?;
                }
                let device = texts.get("device")?.map(|value| String::from_utf8_lossy(value.value()).into_owned());
                Claim { format, device: device.unwrap_or_default() }
            }
        }
    };
    transaction.commit()?;
    Ok(claim)
}

fn load(database: &Database) -> Result<Kept, Box<dyn std::error::Error>> {
    let transaction = database.begin_read()?;
    let numbers = transaction.open_table(NUMBERS)?;
    let number = |name| numbers.get(name).map(|value| value.map_or(0, |value| value.value()));
    let mut kept = Kept {
        owner: Owner { user: number("user")?, birth: number("birth")? },
        incarnation: number("incarnation")?,
        next_id: number("next_id")?.max(1),
        cursor: transaction.open_table(TEXTS)?.get("cursor")?.map(|value| Bytes::copy_from_slice(value.value())),
        publishes: Vec::new(),
        doubtful: BTreeMap::new(),
    };
    for row in transaction.open_table(PUBLISHES)?.iter()? {
        let (id, publish) = row?;
        kept.publishes.push((id.value(), packet::Publish::decode(publish.value())?));
    }
    for row in transaction.open_table(DOUBTFUL)?.iter()? {
        let (id, publish) = row?;
        kept.doubtful.insert(id.value(), packet::Publish::decode(publish.value())?);
    }
    Ok(kept)
}

fn commit(database: &Database, batch: &Batch) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut publishes = transaction.open_table(PUBLISHES)?;
        for id in &batch.removes {
            publishes.remove(id)?;
        }
        for (id, publish) in &batch.puts {
            publishes.insert(id, publish.as_slice())?;
        }
        let mut doubtful = transaction.open_table(DOUBTFUL)?;
        for (id, publish) in &batch.doubts {
            doubtful.insert(id, publish.as_slice())?;
        }
        for id in &batch.doubts_ended {
            doubtful.remove(id)?;
        }
        let mut numbers = transaction.open_table(NUMBERS)?;
        numbers.insert("user", batch.owner.user)?;
        numbers.insert("birth", batch.owner.birth)?;
        numbers.insert("incarnation", batch.incarnation)?;
        numbers.insert("next_id", batch.next_id)?;
        if let Some(cursor) = &batch.cursor {
            transaction.open_table(TEXTS)?.insert("cursor", cursor.as_ref())?;
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Where a device's outbox lies in a directory of state.
#[must_use]
pub fn outbox_path(directory: &Path, device: &str) -> PathBuf {
    let name: String =
        device.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect();
    directory.join(format!("outbox-{name}.redb"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the first version left behind.
    fn make_format_1(path: &Path) {
        let database = Database::create(path).expect("a file");
        let transaction = database.begin_write().expect("a transaction");
        {
            let mut numbers = transaction.open_table(NUMBERS).expect("a table");
            for (name, number) in [("format", 1), ("user", 7), ("birth", 8), ("incarnation", 3), ("next_id", 6)] {
                numbers.insert(name, number).expect("inserted");
            }
            transaction.open_table(TEXTS).expect("a table").insert("device", &b"phone"[..]).expect("inserted");
            let publish = packet::Publish { conversation: 9, message_id: 5, ..Default::default() }.encode_to_vec();
            transaction.open_table(PUBLISHES).expect("a table").insert(5, publish.as_slice()).expect("inserted");
        }
        transaction.commit().expect("committed");
    }

    #[test]
    fn format_1_is_read_and_is_format_2_from_then_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("outbox.redb");
        make_format_1(&path);
        for _ in 0..2 {
            let (database, kept) = open(&path, "phone").expect("it opens");
            assert_eq!(kept.owner, Owner { user: 7, birth: 8 });
            assert_eq!((kept.incarnation, kept.next_id, kept.publishes.len()), (3, 6, 1));
            assert!(kept.doubtful.is_empty());
            assert_eq!(claim(&database, "phone").expect("read").format, FORMAT);
        }
    }

    #[test]
    fn a_newer_format_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("outbox.redb");
        make_format_1(&path);
        let database = Database::create(&path).expect("a file");
        let transaction = database.begin_write().expect("a transaction");
        transaction.open_table(NUMBERS).expect("a table").insert("format", FORMAT + 1).expect("inserted");
        transaction.commit().expect("committed");
        drop(database);
        assert!(matches!(open(&path, "phone"), Err(OutboxError::Newer { format, .. }) if format == FORMAT + 1));
    }
}
