//! A run: a sealed file of entries sorted by (conversation, seq), written once and then only read. Rows hold as many
//! consecutive entries of one conversation as fit one page of redb, so that a page of history is a few reads, whatever
//! the size of the store.

use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use longwire_protocol::{ConversationId, DeviceId, Incarnation, LogTime, MessageId, Seq};
use redb::{
    Builder, Durability, Range, ReadOnlyDatabase, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition,
};

use super::disk::{Disk, Meter, MeteredFile, RUNS_FOLDER};
use super::frame::{put_varint, take_varint};
use super::memtable::Span;
use super::open::{OpenFile, classify, guarded, open_database};
use super::page::{Direction, Page};
use super::sealed_row::{seal, unseal};
use super::state_file::RunRow;
use super::{Origin, Position, ReadError, StoredEntry};

/// (conversation, first seq) -> entries of consecutive seqs, and a checksum.
const ROWS: TableDefinition<(u64, u64), &[u8]> = TableDefinition::new("entries");

/// The most that a row of several entries takes: with its key and redb's own bytes it just fits a page of 4 KiB.
const ROW_BYTES: usize = 3_900;

/// Cache while a run is written; what is committed leaves it at once.
const WRITE_CACHE_BYTES: usize = 16 << 20;

/// The name of a run's file.
pub(super) fn file_name(number: u64) -> String {
    format!("{RUNS_FOLDER}/{number}.redb")
}

/// What a look-up in a run goes by. A flipped bit in the file's index sends look-ups past rows, which no checksum of a row tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// The index: whoever asks sees by the seqs whether anything is missing.
    Index,
    /// What stands beside each end in the file, too: three to four times as many look-ups.
    Neighbours,
}

/// A run that is open for reading.
#[derive(Debug)]
pub(super) struct Run {
    row: RunRow,
    disk: Arc<dyn Disk>,
    cache_bytes: usize,
    opened: RwLock<Arc<Opened>>,
}

type Table = ReadOnlyTable<(u64, u64), &'static [u8]>;
/// Conversation and first seq.
type RowKey = (u64, u64);

/// A run's file.
struct Opened {
    table: Table,
    /// Kept open as long as the table is read. A sealed file has no writer, so that this pins nothing.
    _database: ReadOnlyDatabase,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opened")
    }
}

impl Opened {
    fn open(disk: &dyn Disk, row: RunRow, cache_bytes: usize) -> Result<Self, ReadError> {
        let name = file_name(row.number);
        let trouble = |error: String| ReadError(format!("run {}: {error}", row.number));
        let backend = disk.open_read_only(&name).map_err(|error| trouble(error.to_string()))?;
        guarded(&name, || {
            let database = Builder::new()
                .set_cache_size(cache_bytes)
                .open_read_only_with_backend(MeteredFile::new(backend, Arc::default()))
                .map_err(|error| trouble(classify(disk, &name, error).to_string()))?;
            let transaction = database.begin_read().map_err(|error| trouble(error.to_string()))?;
            let table = transaction.open_table(ROWS).map_err(|error| trouble(error.to_string()))?;
            // No run is listed that holds nothing; a damaged root may look as if it did.
            if table.first().map_err(|error| trouble(error.to_string()))?.is_none() {
                return Err(trouble(format!("no entry can be found, and {} are listed", row.entries)));
            }
            Ok(Self { table, _database: database })
        })
    }
}

impl Run {
    /// Opens the file of a run that the manifest names.
    pub(super) fn open(disk: &Arc<dyn Disk>, row: RunRow, cache_bytes: usize) -> Result<Self, ReadError> {
        let opened = RwLock::new(Arc::new(Opened::open(&**disk, row, cache_bytes)?));
        Ok(Self { row, disk: Arc::clone(disk), cache_bytes, opened })
    }

    /// Reads; redb answers nothing more after an error of the disk, so the file is opened anew then, and read again.
    fn with<T>(&self, mut read: impl FnMut(&Table) -> Result<T, ReadError>) -> Result<T, ReadError> {
        let name = file_name(self.row.number);
        let opened = Arc::clone(&self.opened.read().unwrap_or_else(PoisonError::into_inner));
        let failed = match guarded(&name, || read(&opened.table)) {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        tracing::warn!(%failed, "a run is opened again, and read once more");
        let again = Arc::new(Opened::open(&*self.disk, self.row, self.cache_bytes)?);
        *self.opened.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&again);
        guarded(&name, || read(&again.table))
    }

    /// What the manifest says of it.
    pub(super) fn row(&self) -> &RunRow {
        &self.row
    }

    /// Offers the entries of `conversation` within `from..=to` that are not below `floor` to the page. What the file's index
    /// leads past is noticed where `trust` says so; see [`Trust`].
    pub(super) fn read(
        &self,
        conversation: ConversationId,
        seqs: (Seq, Seq),
        floor: Position,
        trust: Trust,
        page: &mut Page,
    ) -> Result<(), ReadError> {
        self.with(|table| {
            // What a try before has found stays.
            let seqs = page.wanted(seqs);
            if page.is_full() || seqs.0 > seqs.1 {
                return Ok(());
            }
            self.fill(table, conversation, seqs, floor, trust, page)
        })
    }

    fn fill(
        &self,
        table: &Table,
        conversation: ConversationId,
        (from, to): (Seq, Seq),
        floor: Position,
        trust: Trust,
        page: &mut Page,
    ) -> Result<(), ReadError> {
        let key = |seq: Seq| (conversation.0, seq.0);
        let is_within = |key: Option<RowKey>| key.is_some_and(|(id, seq)| id == conversation.0 && seq <= to.0);
        let (mut first, mut last) = (None, None);
        match page.direction() {
            Direction::Forwards => {
                let before = self.range(table, key(Seq(0)), key(from))?.next_back();
                let before = before.transpose().map_err(|e| self.unreadable(e))?.map(|(key, _)| key.value());
                for row in self.range(table, before.unwrap_or(key(from)), key(to))? {
                    let entries = self.decode_of(conversation, row)?;
                    last = entries.first().map(|entry| key(entry.seq));
                    first = first.or(last);
                    for entry in entries {
                        if entry.seq >= from && entry.seq <= to && entry.position >= floor && !page.is_full() {
                            page.offer(entry)?;
                        }
                    }
                    if page.is_full() {
                        break;
                    }
                }
                let is_missed = match (before, first, last) {
                    _ if trust == Trust::Index => false,
                    (Some(before), first, _) if first != Some(before) => true,
                    (None, Some(first), _) if is_within(self.before(table, first)?) => true,
                    (None, None, _) => is_within(self.newest_until(table, key(to))?),
                    (_, _, Some(last)) => !page.is_full() && is_within(self.after(table, last)?),
                    _ => false,
                };
                if is_missed { Err(self.misled()) } else { Ok(()) }
            }
            Direction::Backwards => {
                for row in self.range(table, key(Seq(0)), key(to))?.rev() {
                    let entries = self.decode_of(conversation, row)?;
                    last = entries.first().map(|entry| key(entry.seq));
                    if let (None, Some(newest), Trust::Neighbours) = (first, last, trust)
                        && is_within(self.after(table, newest)?)
                    {
                        return Err(self.misled());
                    }
                    first = first.or(last);
                    for entry in entries.into_iter().rev() {
                        if entry.seq < from || entry.position < floor {
                            return Ok(());
                        }
                        if entry.seq <= to {
                            page.offer(entry)?;
                        }
                        if page.is_full() {
                            return Ok(());
                        }
                    }
                }
                let is_missed = match last {
                    _ if trust == Trust::Index => false,
                    Some(oldest) => is_within(self.before(table, oldest)?),
                    None => is_within(self.oldest_from(table, key(Seq(0)))?),
                };
                if is_missed { Err(self.misled()) } else { Ok(()) }
            }
        }
    }

    /// The seq of the first entry of `conversation` whose position is at least `position`: positions rise with seqs, so
    /// it is searched by halves.
    pub(super) fn first_from(
        &self,
        conversation: ConversationId,
        position: Position,
    ) -> Result<Option<Seq>, ReadError> {
        self.with(|table| self.search(table, conversation, position))
    }

    fn search(
        &self,
        table: &Table,
        conversation: ConversationId,
        position: Position,
    ) -> Result<Option<Seq>, ReadError> {
        let all = || self.range(table, (conversation.0, 0), (conversation.0, u64::MAX));
        let is_of_it = |key: Option<RowKey>| key.is_some_and(|(id, _)| id == conversation.0);
        let (Some(first), Some(last)) = (all()?.next(), all()?.next_back()) else {
            let is_missed = is_of_it(self.newest_until(table, (conversation.0, u64::MAX))?)
                || is_of_it(self.oldest_from(table, (conversation.0, 0))?);
            return if is_missed { Err(self.misled()) } else { Ok(None) };
        };
        let (first, last) = (self.decode(first)?, self.decode(last)?);
        let (Some(oldest), Some(top), Some(newest)) = (first.first(), last.first(), last.last()) else {
            return Ok(None);
        };
        if is_of_it(self.before(table, (conversation.0, oldest.seq.0))?)
            || is_of_it(self.after(table, (conversation.0, top.seq.0))?)
        {
            return Err(self.misled());
        }
        if newest.position < position {
            return Ok(None);
        }
        let (mut low, mut high) = (oldest.seq.0, newest.seq.0);
        while low < high {
            let middle = low.midpoint(high);
            let row = self.range(table, (conversation.0, 0), (conversation.0, middle))?.next_back();
            let row = row.map_or_else(|| Ok(Vec::new()), |row| self.decode(row))?;
            let (Some(begin), Some(end)) = (row.first(), row.last()) else { return Err(self.misled()) };
            if begin.position >= position {
                high = begin.seq.0;
            } else if end.position < position {
                if end.seq.0 < low {
                    return Err(self.misled());
                }
                low = end.seq.0 + 1;
            } else {
                let index = row.partition_point(|entry| entry.position < position);
                return Ok(row.get(index).map(|entry| entry.seq));
            }
        }
        Ok(Some(Seq(low)))
    }

    /// Whether it holds anything of a conversation.
    pub(super) fn has(&self, conversation: ConversationId) -> Result<bool, ReadError> {
        self.with(|table| {
            let first = self.range(table, (conversation.0, 0), (conversation.0, u64::MAX))?.next();
            first.transpose().map(|row| row.is_some()).map_err(|error| self.unreadable(error))
        })
    }

    /// All rows, ascending.
    pub(super) fn rows(self: &Arc<Self>) -> Result<Rows, ReadError> {
        self.rows_from(ConversationId(0))
    }

    /// The rows of a conversation and of all above it, ascending.
    pub(super) fn rows_from(self: &Arc<Self>, conversation: ConversationId) -> Result<Rows, ReadError> {
        let from = (conversation.0, 0);
        let rows = self.with(|table| table.range::<(u64, u64)>(from..).map_err(|error| self.unreadable(error)))?;
        Ok(Rows { rows, run: Arc::clone(self) })
    }

    /// The row before the one under a key, by what stands beside it in the file. A flipped bit in the file's index sends
    /// look-ups past rows: then one of these two sees a row that a look-up did not.
    fn before(&self, table: &Table, key: RowKey) -> Result<Option<RowKey>, ReadError> {
        let mut rows = table.range(..=key).map_err(|error| self.unreadable(error))?.rev();
        self.beside(key, [rows.next(), rows.next()])
    }

    /// The row after it.
    fn after(&self, table: &Table, key: RowKey) -> Result<Option<RowKey>, ReadError> {
        let mut rows = table.range(key..).map_err(|error| self.unreadable(error))?;
        self.beside(key, [rows.next(), rows.next()])
    }

    fn beside(&self, key: RowKey, [itself, other]: [Option<Row>; 2]) -> Result<Option<RowKey>, ReadError> {
        if self.key(itself)? == Some(key) { self.key(other) } else { Err(self.misled()) }
    }

    /// The last row up to a key, of whatever conversation.
    fn newest_until(&self, table: &Table, key: RowKey) -> Result<Option<RowKey>, ReadError> {
        self.key(table.range(..=key).map_err(|error| self.unreadable(error))?.next_back())
    }

    /// The first row from a key on, of whatever conversation.
    fn oldest_from(&self, table: &Table, key: RowKey) -> Result<Option<RowKey>, ReadError> {
        self.key(table.range(key..).map_err(|error| self.unreadable(error))?.next())
    }

    /// The key of a row, which is held against the row's checksum: it may be the key that is not what it was.
    fn key(&self, row: Option<Row>) -> Result<Option<RowKey>, ReadError> {
        let Some(row) = row else { return Ok(None) };
        let (key, value) = row.map_err(|error| self.unreadable(error))?;
        let key = key.value();
        unseal("a run", &key_bytes(key), value.value()).map_err(|error| self.damaged(&error))?;
        Ok(Some(key))
    }

    fn misled(&self) -> ReadError {
        ReadError(format!("run {} is damaged: its index leads past rows", self.row.number))
    }

    fn range(
        &self,
        table: &Table,
        from: (u64, u64),
        to: (u64, u64),
    ) -> Result<Range<'static, (u64, u64), &'static [u8]>, ReadError> {
        table.range(from..=to).map_err(|error| self.unreadable(error))
    }

    fn decode(&self, row: Row) -> Result<Vec<StoredEntry>, ReadError> {
        let (key, value) = row.map_err(|error| self.unreadable(error))?;
        let (conversation, seq) = key.value();
        decode_row(ConversationId(conversation), Seq(seq), value.value()).map_err(|error| self.damaged(&error))
    }

    /// The same of a row that has to be a conversation's.
    fn decode_of(&self, conversation: ConversationId, row: Row) -> Result<Vec<StoredEntry>, ReadError> {
        let entries = self.decode(row)?;
        let is_of_it = entries.first().is_some_and(|entry| entry.conversation == conversation);
        if is_of_it { Ok(entries) } else { Err(self.misled()) }
    }

    fn damaged(&self, error: &ReadError) -> ReadError {
        ReadError(format!("run {}: {error}", self.row.number))
    }

    fn unreadable(&self, error: redb::StorageError) -> ReadError {
        ReadError(format!("run {} cannot be read: {error}", self.row.number))
    }
}

type Row =
    Result<(redb::AccessGuard<'static, (u64, u64)>, redb::AccessGuard<'static, &'static [u8]>), redb::StorageError>;

/// The rows of a run, each with all of its entries.
pub(super) struct Rows {
    rows: Range<'static, (u64, u64), &'static [u8]>,
    run: Arc<Run>,
}

impl Iterator for Rows {
    type Item = Result<Vec<StoredEntry>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = || self.rows.next().map(|row| self.run.decode(row)).transpose();
        guarded(&file_name(self.run.row.number), next).transpose()
    }
}

/// Writes a run, entry by entry in the order of (conversation, seq). The file is nothing to anyone until the manifest
/// names it.
pub(super) struct RunWriter {
    disk: Arc<dyn Disk>,
    number: u64,
    level: u64,
    sifted: Position,
    database: OpenFile,
    meter: Arc<Meter>,
    /// Rows that are not committed yet.
    rows: Vec<((u64, u64), Vec<u8>)>,
    packer: Packer,
    span: Option<Span>,
    entries: u64,
    bytes: u64,
}

impl RunWriter {
    /// Begins the file of run `number`, of entries that were `sifted` by the state there.
    pub(super) fn create(disk: Arc<dyn Disk>, number: u64, level: u64, sifted: Position) -> Result<Self, ReadError> {
        let name = file_name(number);
        let trouble = |error: String| ReadError(format!("run {number} cannot be written: {error}"));
        if disk.exists(&name).map_err(|error| trouble(error.to_string()))? {
            disk.remove(&name).map_err(|error| trouble(error.to_string()))?;
        }
        let meter = Arc::<Meter>::default();
        let database = open_database(&*disk, &name, WRITE_CACHE_BYTES, Arc::clone(&meter))
            .map_err(|error| trouble(error.to_string()))?;
        Ok(Self {
            disk,
            number,
            level,
            sifted,
            database,
            meter,
            rows: Vec::new(),
            packer: Packer::default(),
            span: None,
            entries: 0,
            bytes: 0,
        })
    }

    /// The run's number.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Adds the next entry.
    pub(super) fn push(&mut self, entry: &StoredEntry) {
        let span = Span::of(entry);
        self.span = Some(self.span.map_or(span, |s| s.joined(span)));
        self.entries += 1;
        if let Some(row) = self.packer.push(entry) {
            self.rows.push(row);
        }
    }

    /// Commits what was pushed so far: one slice of the work.
    pub(super) fn commit(&mut self) -> Result<(), ReadError> {
        let number = self.number;
        let written = guarded(&file_name(number), || Ok(self.write_rows()));
        written?.map_err(|error: redb::Error| ReadError(format!("run {number} cannot be written: {error}")))
    }

    /// Seals the file durably; returns its row for the manifest, or `None` and no file if no entry was pushed.
    pub(super) fn finish(mut self) -> Result<(Option<RunRow>, u64), ReadError> {
        self.rows.extend(self.packer.take());
        self.commit()?;
        let Self { disk, number, level, sifted, database, meter, span, entries, bytes, .. } = self;
        let trouble = |error: String| ReadError(format!("run {number} cannot be closed: {error}"));
        database.close().map_err(|error| trouble(error.to_string()))?;
        let Some(span) = span else {
            disk.remove(&file_name(number)).map_err(|error| trouble(error.to_string()))?;
            return Ok((None, meter.written()));
        };
        disk.sync_names().map_err(|error| trouble(error.to_string()))?;
        Ok((Some(RunRow { number, level, span, entries, bytes, sifted }), meter.written()))
    }

    fn write_rows(&mut self) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut table = transaction.open_table(ROWS)?;
            let mut cursor = table.upper_bound_mut(Bound::<(u64, u64)>::Unbounded)?;
            for (key, value) in self.rows.drain(..) {
                self.bytes += value.len() as u64;
                cursor.insert_before(key, value.as_slice())?;
            }
            cursor.close()?;
        }
        Ok(transaction.commit()?)
    }
}

/// Packs consecutive entries of a conversation into a row:
///
/// ```text
/// entry* | xxh3-64 of key and entries
/// entry  = position, time, countable (varints: less those of the entry before in this row), device, incarnation,
///          message id, first unanswered, source, item length (varints), digest u64, item
/// ```
#[derive(Debug, Default)]
pub(super) struct Packer {
    row: BytesMut,
    key: (u64, u64),
    last: Option<Last>,
}

/// What the next entry is compared with.
#[derive(Clone, Copy, Debug)]
struct Last {
    conversation: ConversationId,
    seq: Seq,
    position: Position,
    time: LogTime,
    countable: u64,
}

impl Packer {
    /// Adds an entry; returns the row that it does not fit into any more.
    pub(super) fn push(&mut self, entry: &StoredEntry) -> Option<((u64, u64), Vec<u8>)> {
        // Numbers of an entry are at most 9 varints of 10 bytes and the digest.
        let most = entry.item.len() + 9 * 10 + 8;
        let continues = self.last.as_ref().is_some_and(|last| {
            last.conversation == entry.conversation
                && last.seq.next() == entry.seq
                && last.position < entry.position
                && last.time <= entry.time
                && last.countable <= entry.countable
                && self.row.len() + most <= ROW_BYTES
        });
        let finished = if continues { None } else { self.take() };
        let (position, time, countable) =
            self.last.as_ref().map_or((0, 0, 0), |last| (last.position.0, last.time.0, last.countable));
        if self.last.is_none() {
            self.key = (entry.conversation.0, entry.seq.0);
        }
        for number in [
            entry.position.0 - position,
            entry.time.0 - time,
            entry.countable - countable,
            entry.origin.device.0,
            entry.origin.incarnation.0,
            entry.origin.message_id.0,
            entry.first_unanswered.0,
            entry.source.0,
            entry.item.len() as u64,
        ] {
            put_varint(&mut self.row, number);
        }
        self.row.put_u64_le(entry.digest);
        self.row.put_slice(&entry.item);
        let StoredEntry { conversation, seq, position, time, countable, .. } = *entry;
        self.last = Some(Last { conversation, seq, position, time, countable });
        finished
    }

    /// The row begun, if there is one.
    pub(super) fn take(&mut self) -> Option<((u64, u64), Vec<u8>)> {
        self.last.take()?;
        let mut row = Vec::with_capacity(self.row.len() + 8);
        row.extend_from_slice(&self.row);
        self.row.clear();
        seal(&key_bytes(self.key), &mut row);
        Some((self.key, row))
    }
}

pub(super) fn key_bytes((conversation, seq): (u64, u64)) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&conversation.to_le_bytes());
    key[8..].copy_from_slice(&seq.to_le_bytes());
    key
}

pub(super) fn decode_row(conversation: ConversationId, first: Seq, row: &[u8]) -> Result<Vec<StoredEntry>, ReadError> {
    let mut rest = Bytes::copy_from_slice(unseal("a run", &key_bytes((conversation.0, first.0)), row)?);
    let mut entries = Vec::new();
    let (mut seq, mut position, mut time, mut countable) = (first, 0_u64, 0_u64, 0_u64);
    while !rest.is_empty() {
        let malformed = || ReadError("a row is malformed".to_owned());
        let mut numbers = [0; 9];
        for number in &mut numbers {
            *number = take_varint(&mut rest).ok_or_else(malformed)?;
        }
        position = position.wrapping_add(numbers[0]);
        time = time.wrapping_add(numbers[1]);
        countable = countable.wrapping_add(numbers[2]);
        let [_, _, _, device, incarnation, message_id, first_unanswered, source, length] = numbers;
        if rest.len() < 8 || length > (rest.len() - 8) as u64 {
            return Err(malformed());
        }
        let digest = rest.get_u64_le();
        let item = rest.split_to(length as usize);
        entries.push(StoredEntry {
            conversation,
            seq,
            position: Position(position),
            time: LogTime(time),
            countable,
            origin: Origin {
                device: DeviceId(device),
                incarnation: Incarnation(incarnation),
                message_id: MessageId(message_id),
            },
            first_unanswered: MessageId(first_unanswered),
            digest,
            source: Position(source),
            item,
        });
        seq = seq.next();
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{SimDisk, entry};
    use super::*;

    /// The first seqs of the rows into which entries are packed, and what each row holds.
    fn packed(entries: &[StoredEntry]) -> Vec<(u64, usize)> {
        let mut packer = Packer::default();
        let mut rows: Vec<_> = entries.iter().filter_map(|entry| packer.push(entry)).collect();
        rows.extend(packer.take());
        assert!(packer.take().is_none());
        let decoded =
            rows.iter().map(|(key, row)| decode_row(ConversationId(key.0), Seq(key.1), row).expect("decodes"));
        let decoded: Vec<_> = decoded.collect();
        assert_eq!(decoded.concat(), entries);
        rows.iter().zip(&decoded).map(|((key, _), row)| (key.1, row.len())).collect()
    }

    #[test]
    fn a_row_holds_what_follows_and_rises() {
        let base = entry(5, 8, 80);
        assert_eq!(packed(&[base.clone(), entry(5, 9, 81), entry(5, 10, 90)]), [(8, 3)]);
        let alike = StoredEntry { time: base.time, countable: base.countable, ..entry(5, 9, 81) };
        assert_eq!(packed(&[base.clone(), alike]), [(8, 2)], "time and place may stay");
        for other in [
            entry(6, 9, 81),
            entry(5, 10, 81),
            entry(5, 8, 81),
            StoredEntry { position: base.position, ..entry(5, 9, 81) },
            StoredEntry { position: Position(79), ..entry(5, 9, 81) },
            StoredEntry { time: LogTime(base.time.0 - 1), ..entry(5, 9, 81) },
            StoredEntry { countable: 7, ..entry(5, 9, 81) },
        ] {
            assert_eq!(packed(&[base.clone(), other.clone()]), [(8, 1), (other.seq.0, 1)], "{other:?}");
        }
    }

    #[test]
    fn a_row_fits_a_page_unless_it_is_of_one_entry() {
        let of_size = |seq, size: usize| StoredEntry { item: Bytes::from(vec![1; size]), ..entry(5, seq, seq) };
        // Eight numbers of one byte, one of two for the length, and the digest; the second is counted with 98 at the most.
        let first = 8 + 2 + 8 + 2_000;
        let fits = ROW_BYTES - first - 98;
        assert_eq!(packed(&[of_size(1, 2_000), of_size(2, fits)]), [(1, 2)]);
        assert_eq!(packed(&[of_size(1, 2_000), of_size(2, fits + 1)]), [(1, 1), (2, 1)]);
        assert_eq!(packed(&[of_size(1, 9_000), of_size(2, 9_000), of_size(3, 1)]), [(1, 1), (2, 1), (3, 1)]);
    }

    #[test]
    fn a_row_under_another_key_or_cut_off_is_no_row() {
        let mut packer = Packer::default();
        assert_eq!(packer.push(&entry(5, 8, 80)), None);
        let (key, row) = packer.take().expect("one is begun");
        assert_eq!(key, (5, 8));
        for (conversation, seq) in [(6, 8), (5, 9), (8, 5), (0, 0)] {
            assert!(decode_row(ConversationId(conversation), Seq(seq), &row).is_err(), "{conversation}, {seq}");
        }
        assert_eq!(key_bytes((0x0102, 0x0304)), [2, 1, 0, 0, 0, 0, 0, 0, 4, 3, 0, 0, 0, 0, 0, 0]);
        let whole = row.len() - 8;
        for end in 1..whole {
            let mut cut = row[..end].to_vec();
            seal(&key_bytes(key), &mut cut);
            assert!(decode_row(ConversationId(5), Seq(8), &cut).is_err(), "cut at {end} of {whole}");
        }
        let nothing_behind = StoredEntry { item: Bytes::new(), ..entry(5, 8, 80) };
        assert_eq!(packed(&[nothing_behind]), [(8, 1)]);
    }

    /// A run of conversations 3 and 5, whose seqs 10 to 409 lie at every other position, and its row.
    fn written(disk: &SimDisk) -> Arc<Run> {
        let mut writer = RunWriter::create(Arc::new(disk.clone()), 4, 2, Position(77)).expect("a file");
        assert_eq!(writer.number(), 4);
        let mut bytes = 0;
        for conversation in [3, 5] {
            for seq in 10..410 {
                writer.push(&entry(conversation, seq, 2 * seq + u64::from(conversation == 5)));
            }
            writer.commit().expect("commits");
            assert!(writer.bytes > bytes);
            bytes = writer.bytes;
        }
        let (row, written) = writer.finish().expect("is sealed");
        let row = row.expect("there are entries");
        assert!(written > row.bytes && row.bytes > 800 * 7);
        let span =
            Span { first: Position(20), last: Position(819), first_time: LogTime(200), last_time: LogTime(8_190) };
        assert_eq!((row.number, row.level, row.entries, row.sifted, row.span), (4, 2, 800, Position(77), span));
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        Arc::new(Run::open(&disk, row, 1 << 20).expect("opens"))
    }

    #[test]
    fn what_a_run_holds_is_found_by_seq_and_by_position() {
        let run = written(&SimDisk::default());
        let (three, four) = (ConversationId(3), ConversationId(4));
        assert!(run.has(three).expect("reads") && !run.has(four).expect("reads"));
        let rows = |rows: Rows| rows.map(|row| row.expect("reads")).collect::<Vec<_>>().concat();
        assert_eq!(rows(run.rows().expect("reads")).len(), 800);
        assert_eq!(rows(run.rows_from(four).expect("reads")).len(), 400);
        for position in 0..=819 {
            let found = run.first_from(three, Position(position)).expect("reads");
            let wanted = Some(Seq(position.div_ceil(2).max(10))).filter(|seq| seq.0 < 410);
            assert_eq!(found, wanted, "position {position}");
        }
        assert_eq!(run.first_from(four, Position(0)).expect("reads"), None);
        let read = |conversation, seqs: (u64, u64), floor, direction, entries| {
            let seqs = (Seq(seqs.0), Seq(seqs.1));
            let [by_index, by_neighbours] = [Trust::Index, Trust::Neighbours].map(|trust| {
                let mut page = Page::new(crate::store::PageLimit { entries, bytes: 1 << 20 }, direction);
                run.read(conversation, seqs, Position(floor), trust, &mut page).expect("reads");
                page.into_entries().iter().map(|entry| entry.seq.0).collect::<Vec<_>>()
            });
            assert_eq!(by_index, by_neighbours);
            by_index
        };
        for from in [0, 10, 11, 63, 64, 200, 409, 410, 900] {
            for to in [0, 9, 10, 64, 199, 200, 408, 409, u64::MAX] {
                for (entries, floor) in [(1_000, 0), (7, 0), (1_000, 128), (7, 129)] {
                    let within = (from.max(10)..=to.min(409)).filter(|seq| 2 * seq >= floor);
                    let (mut forwards, mut backwards): (Vec<_>, Vec<_>) =
                        (within.clone().collect(), within.rev().collect());
                    forwards.truncate(entries);
                    backwards.truncate(entries);
                    let (seqs, case) = ((from, to), format!("{from} to {to}, {entries}, floor {floor}"));
                    assert_eq!(read(three, seqs, floor, Direction::Forwards, entries), forwards, "{case}");
                    assert_eq!(read(three, seqs, floor, Direction::Backwards, entries), backwards, "{case}");
                    assert_eq!(read(four, seqs, floor, Direction::Forwards, entries), Vec::<u64>::new(), "{case}");
                    assert_eq!(read(four, seqs, floor, Direction::Backwards, entries), Vec::<u64>::new(), "{case}");
                }
            }
        }
    }

    #[test]
    fn a_run_of_nothing_has_no_file() {
        let disk = SimDisk::default();
        let writer = RunWriter::create(Arc::new(disk.clone()), 4, 0, Position(0)).expect("a file");
        let (row, written) = writer.finish().expect("ends");
        assert_eq!((row, disk.names().len()), (None, 0));
        assert!(written > 0);
    }
}
