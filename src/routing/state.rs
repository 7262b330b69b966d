//! The live state: a bounded cache of rows over those that the store has saved. Changed by the commit thread alone; a
//! row that it changed stays until it is saved, others go once nobody has used them for a while. So memory follows what
//! is in use, and an absent device costs none.
//!
//! What is not here is *cold*: `loading` fetches it, off the threads that must not wait for a disk.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use foldhash::fast::RandomState;
use longwire_protocol::{ConversationId, DeviceId, LogTime, PARTITIONS, UserId};

use super::duties::Duties;
use super::grants::TakenBack;
use super::limits::Quotas;
use super::rows::{Duty, ErasureStage, Key, Row, partition};
use super::schedule::Schedule;
use crate::mutation::Mutation;
use crate::store::{Position, ReadError, SavedState, StateDelta};

/// Shards of the cache: what one visit of the sweep goes through, and what one growing table moves.
const SHARDS: usize = 256;
/// How long a row stays at the least after it was used; twice as long at the most, while there is room.
const KEEP_MS: u64 = 60_000;
/// What a row costs with its key and its place in the table, about.
const ROW_BYTES: usize = 224;
/// What an id in a list costs, about.
const ID_BYTES: usize = 16;
/// The same of a duty.
const DUTY_BYTES: usize = 48;
/// Between two such calls: what was loaded shall live until it is looked at.
const HURRY_MS: u64 = 10;
/// Shards that one call of [`State::sweep`] visits while the cache is too large.
const HURRY_SHARDS: usize = 16;

/// What the cache knows under a key.
#[derive(Debug)]
pub enum Lookup<T> {
    /// There is this, or surely nothing.
    Known(Option<T>),
    /// It has to be loaded.
    Cold,
}

/// See the module. Without a saved state beneath, everything is in memory.
#[derive(Debug)]
pub struct State {
    /// The newest position folded in.
    pub tail: Position,
    /// The time of the newest frame folded in.
    pub time: LogTime,
    /// Everything below is expired.
    pub floor: Position,
    /// What users may have, as the operator set it; by the way of decisions and of their rehearsals.
    pub quotas: Quotas,
    /// What the operator took back, likewise.
    pub taken_back: TakenBack,
    shards: Box<[Shard]>,
    /// The crossings under way, oldest first: always in memory.
    crossings: BTreeMap<(Position, UserId), Row>,
    /// How long each device that has a will is gone before that is published: always in memory.
    wills: HashMap<DeviceId, u32, RandomState>,
    /// Which conversations let entries go: always in memory.
    schedule: Schedule,
    /// Whose erasure is under way: always in memory, at most [`super::limits::ERASURES_MAX`].
    erased: BTreeSet<UserId>,
    /// How many erasures were done since the start: what was read before the last of them may hold what is blank by now, and
    /// nothing else says so any more.
    forgotten: u64,
    /// The devices that have themselves told while they are away: always in memory.
    pushes: BTreeSet<(UserId, DeviceId)>,
    /// The keys of the rows that changed since the last seal.
    changed: Vec<Key>,
    /// Changes are of this generation; each seal begins another.
    generation: u32,
    /// Rows of this generation and older ones are saved.
    saved_generation: u32,
    beneath: Option<Beneath>,
    bytes: usize,
    bytes_max: usize,
    /// The shard that the sweep visits next, and when.
    hand: usize,
    sweep_at_ms: u64,
    /// Not before this does it visit more while the cache is too large.
    hurry_at_ms: u64,
}

/// The saved state.
struct Beneath(Arc<dyn SavedState>);

impl std::fmt::Debug for Beneath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SavedState")
    }
}

/// Keys are hashed by the dozen for each message.
type Table<K, T> = HashMap<K, Slot<T>, RandomState>;

#[derive(Debug, Default)]
struct Shard {
    rows: Table<Key, Option<Row>>,
    members: Table<ConversationId, BTreeSet<UserId>>,
    duties: Table<UserId, Duties>,
    bytes: usize,
}

impl Shard {
    /// The rows that changed since they were loaded, those among them that are not saved yet.
    fn unsaved(&self) -> impl Iterator<Item = (&Key, &Row)> {
        let changed = self.rows.iter().filter(|(_, slot)| slot.changed > 0);
        changed.filter_map(|(key, slot)| Some((key, slot.value.as_ref()?)))
    }
}

/// Puts in a list unless it is there already: then that is newer. Returns what it takes.
fn install_list<K: Eq + Hash, T>(lists: &mut Table<K, T>, id: K, list: T, bytes: usize) -> usize {
    let std::collections::hash_map::Entry::Vacant(vacant) = lists.entry(id) else { return 0 };
    vacant.insert(Slot::new(list, 0));
    ROW_BYTES + bytes
}

/// Something in the cache.
#[derive(Debug)]
struct Slot<T> {
    value: T,
    /// The generation of its last change; 0 while it is as it was loaded.
    changed: u32,
    /// Whether it was used since the sweep last came by.
    used: AtomicBool,
}

impl<T> Slot<T> {
    fn new(value: T, changed: u32) -> Self {
        Self { value, changed, used: AtomicBool::new(true) }
    }

    fn touch(&self) -> &T {
        // Not stored again: the line stays shared among readers.
        if !self.used.load(Relaxed) {
            self.used.store(true, Relaxed);
        }
        &self.value
    }
}

fn look<'a, K: Eq + Hash, T>(slots: &'a Table<K, T>, key: &K) -> Option<&'a T> {
    slots.get(key).map(Slot::touch)
}

impl Default for State {
    fn default() -> Self {
        Self {
            tail: Position(0),
            time: LogTime(0),
            floor: Position(0),
            quotas: Quotas::default(),
            taken_back: TakenBack::default(),
            shards: std::iter::repeat_with(Shard::default).take(SHARDS).collect(),
            crossings: BTreeMap::new(),
            wills: HashMap::default(),
            schedule: Schedule::default(),
            erased: BTreeSet::new(),
            forgotten: 0,
            pushes: BTreeSet::new(),
            changed: Vec::new(),
            generation: 1,
            saved_generation: 0,
            beneath: None,
            bytes: 0,
            bytes_max: usize::MAX,
            hand: 0,
            sweep_at_ms: 0,
            hurry_at_ms: 0,
        }
    }
}

impl State {
    /// The state as it is saved, nothing of it in memory but the crossings under way and who has a will. `bytes_max` bounds the cache, rows
    /// not saved yet aside. Costs a look at every partition.
    ///
    /// # Errors
    /// When the saved state cannot be read.
    pub fn over(saved: Arc<dyn SavedState>, applied: Position, bytes_max: usize) -> Result<Self, ReadError> {
        let mut state = Self { tail: applied, bytes_max, ..Self::default() };
        let mut failed = None;
        for partition in 0..PARTITIONS as u16 {
            let prefix = Key::crossings_prefix(partition);
            saved.each(&prefix, &mut |key, value| {
                if let Err(error) = state.load_row(key, value) {
                    failed.get_or_insert(error);
                }
            })?;
            saved.each(
                &Key::wills_prefix(partition),
                &mut |key, value| match (Key::decode(key), Row::decode(value)) {
                    (Ok(Key::Will(device)), Ok(Row::Will(will))) => drop(state.wills.insert(device, will.after_ms)),
                    (Err(error), _) | (_, Err(error)) => drop(failed.get_or_insert(error)),
                    (Ok(_), Ok(_)) => {}
                },
            )?;
        }
        state.load_always(&*saved)?;
        if let Some(floor) = saved.get(&[Key::Floor.encode()])?.pop().flatten() {
            state.load_row(&Key::Floor.encode(), &floor)?;
        }
        state.beneath = Some(Beneath(saved));
        failed.map_or(Ok(state), Err)
    }

    /// Loads what is always in memory beside crossings and wills.
    fn load_always(&mut self, saved: &dyn SavedState) -> Result<(), ReadError> {
        let mut failed = None;
        for partition in 0..PARTITIONS {
            let user = UserId(partition);
            let kinds = [Key::Keeping(ConversationId(partition)), Key::Erasure(user), Key::Push(user, DeviceId(0))];
            for kind in kinds {
                let is_forgotten = match kind {
                    Key::Erasure(_) => Mutation::EraseForgottenAtStart.is_planted(),
                    Key::Push(..) => Mutation::PushForgottenAtStart.is_planted(),
                    _ => false,
                };
                if is_forgotten {
                    continue;
                }
                saved.each(&kind.kind_prefix(), &mut |key, row| match (Key::decode(key), Row::decode(row)) {
                    (Ok(key), Ok(row)) => self.remember(&key, Some(&row)),
                    (Err(error), _) | (_, Err(error)) => drop(failed.get_or_insert(error)),
                })?;
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// What a row says that is always in memory.
    fn remember(&mut self, key: &Key, row: Option<&Row>) {
        match (key, row) {
            (Key::Floor, Some(Row::Floor(floor))) => self.floor = *floor,
            (Key::Will(device), Some(Row::Will(will))) => drop(self.wills.insert(*device, will.after_ms)),
            (Key::Will(device), _) => drop(self.wills.remove(device)),
            (Key::Keeping(id), Some(Row::Keeping(row))) => self.schedule.put(*id, row),
            (Key::Erasure(user), Some(Row::Erasure(row))) if row.stage == ErasureStage::Done => {
                self.forgotten += u64::from(self.erased.remove(user));
            }
            (Key::Erasure(user), Some(Row::Erasure(_))) => drop(self.erased.insert(*user)),
            (Key::Push(user, device), Some(_)) => drop(self.pushes.insert((*user, *device))),
            (Key::Push(user, device), None) => drop(self.pushes.remove(&(*user, *device))),
            _ => {}
        }
    }

    /// Which conversations let entries go.
    #[must_use]
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Nothing of a conversation can go before.
    pub fn defer(&mut self, id: ConversationId, until: LogTime) {
        self.schedule.defer(id, until);
    }

    /// Whose erasure is under way.
    #[must_use]
    pub fn erased(&self) -> &BTreeSet<UserId> {
        &self.erased
    }

    /// How many erasures were done since the start.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Puts in a row of the saved state.
    ///
    /// # Errors
    /// When the bytes are no row of this version.
    pub fn load_row(&mut self, key: &[u8], value: &[u8]) -> Result<(), ReadError> {
        let (key, row) = (Key::decode(key)?, Row::decode(value)?);
        self.install(key, Some(row));
        Ok(())
    }

    /// The crossings under way, oldest first.
    #[must_use]
    pub fn crossings(&self) -> &BTreeMap<(Position, UserId), Row> {
        &self.crossings
    }

    /// The devices that have a will, and how long each is gone before that is published.
    #[must_use]
    pub fn wills(&self) -> &HashMap<DeviceId, u32, RandomState> {
        &self.wills
    }

    /// The devices that have themselves told while they are away.
    #[must_use]
    pub fn pushes(&self) -> &BTreeSet<(UserId, DeviceId)> {
        &self.pushes
    }

    /// Those of one user.
    pub fn pushes_of(&self, user: UserId) -> impl Iterator<Item = (UserId, DeviceId)> {
        self.pushes.range((user, DeviceId(0))..=(user, DeviceId(u64::MAX))).copied()
    }

    /// How many rows changed since the last seal.
    #[must_use]
    pub fn unsealed(&self) -> usize {
        self.changed.len()
    }

    /// How many rows are in memory, absent ones that are known to be absent included.
    #[must_use]
    pub fn rows_in_memory(&self) -> usize {
        self.shards.iter().map(|shard| shard.rows.len()).sum()
    }

    /// What the cache takes, in bytes, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the cache may hold so many rows more. If not, they may be let go before they are looked at.
    pub(super) fn has_room(&self, rows: usize) -> bool {
        self.bytes.saturating_add(rows * ROW_BYTES) <= self.bytes_max
    }

    /// Those among a conversation's members whose rows changed and are not saved.
    pub(super) fn unsaved_members(&self, id: ConversationId) -> impl Iterator<Item = UserId> {
        self.shard(partition(id.0)).unsaved().filter_map(move |(key, _)| match key {
            Key::Member(conversation, user) if *conversation == id => Some(*user),
            _ => None,
        })
    }

    /// The same of a user's duties.
    pub(super) fn unsaved_duties(&self, id: UserId) -> impl Iterator<Item = (ConversationId, Duty)> {
        self.shard(partition(id.0)).unsaved().filter_map(move |unsaved| match unsaved {
            (Key::Duty(user, conversation), Row::Duty(duty)) if *user == id => Some((*conversation, *duty)),
            _ => None,
        })
    }

    /// The rows in memory, those of crossings left out. For checks.
    pub fn rows(&self) -> impl Iterator<Item = (&Key, &Row)> {
        let slots = self.shards.iter().flat_map(|shard| &shard.rows);
        slots.filter_map(|(key, slot)| Some((key, slot.value.as_ref()?)))
    }

    /// What is known of a row.
    #[must_use]
    pub fn row(&self, key: &Key) -> Lookup<&Row> {
        if let Key::Crossing(position, user) = key {
            return Lookup::Known(self.crossings.get(&(*position, *user)));
        }
        self.known(look(&self.shard(key.partition()).rows, key).map(Option::as_ref))
    }

    /// What is known of who is or was a member.
    #[must_use]
    pub fn members(&self, id: ConversationId) -> Lookup<&BTreeSet<UserId>> {
        self.known(look(&self.shard(partition(id.0)).members, &id).map(Some))
    }

    /// What is known of what is or was to be delivered to a user.
    #[must_use]
    pub fn duties(&self, id: UserId) -> Lookup<&Duties> {
        self.known(look(&self.shard(partition(id.0)).duties, &id).map(Some))
    }

    fn known<T>(&self, found: Option<Option<T>>) -> Lookup<T> {
        match found {
            Some(value) => Lookup::Known(value),
            None if self.beneath.is_none() => Lookup::Known(None),
            None => Lookup::Cold,
        }
    }

    /// The saved state, if there is one beneath, and the generation that it is known to hold. While that stays, what is
    /// read there is as new as what is not in memory.
    pub(super) fn beneath(&self) -> Option<(Arc<dyn SavedState>, u32)> {
        self.beneath.as_ref().map(|Beneath(saved)| (Arc::clone(saved), self.saved_generation))
    }

    /// A row as it is saved. Blocks on the disk.
    pub(super) fn fetch(&self, key: &Key) -> Result<Option<Row>, ReadError> {
        let Some(Beneath(saved)) = &self.beneath else { return Ok(None) };
        let row = saved.get(&[key.encode()])?.pop().flatten();
        row.map(|row| Row::decode(&row)).transpose()
    }

    fn shard(&self, partition: u16) -> &Shard {
        &self.shards[usize::from(partition) % SHARDS]
    }

    fn shard_mut(&mut self, partition: u16) -> &mut Shard {
        &mut self.shards[usize::from(partition) % SHARDS]
    }

    fn grow(&mut self, partition: u16, bytes: usize) {
        self.shard_mut(partition).bytes += bytes;
        self.bytes += bytes;
    }

    /// Changes a row: what the commit thread does once its record is committed.
    pub(super) fn put(&mut self, key: Key, row: Option<Row>) {
        let generation = self.generation;
        if let Key::Crossing(position, user) = key {
            match row {
                Some(row) => drop(self.crossings.insert((position, user), row)),
                None => drop(self.crossings.remove(&(position, user))),
            }
            return self.changed.push(key);
        }
        self.remember(&key, row.as_ref());
        if let Some(row) = &row {
            self.list(&key, row, true);
        }
        let partition = key.partition();
        match self.shard_mut(partition).rows.get_mut(&key) {
            Some(slot) => {
                slot.value = row;
                slot.touch();
                if std::mem::replace(&mut slot.changed, generation) != generation {
                    self.changed.push(key);
                }
            }
            None => {
                self.changed.push(key.clone());
                self.shard_mut(partition).rows.insert(key, Slot::new(row, generation));
                self.grow(partition, ROW_BYTES);
            }
        }
    }

    /// Takes in what was loaded, unless it is there already: then that is newer.
    pub(super) fn install(&mut self, key: Key, row: Option<Row>) {
        if let (Key::Crossing(position, user), Some(row)) = (&key, &row) {
            self.crossings.insert((*position, *user), row.clone());
            return;
        }
        if let (Key::Floor, Some(Row::Floor(floor))) = (&key, &row) {
            self.floor = self.floor.max(*floor);
        }
        if let Some(row) = &row {
            self.list(&key, row, false);
        }
        let partition = key.partition();
        let rows = &mut self.shard_mut(partition).rows;
        if let std::collections::hash_map::Entry::Vacant(vacant) = rows.entry(key) {
            vacant.insert(Slot::new(row, 0));
            self.grow(partition, ROW_BYTES);
        }
    }

    /// Adds a row to the list that it belongs to, if that is in memory. What was loaded is not newer than what is there.
    fn list(&mut self, key: &Key, row: &Row, is_newer: bool) {
        let is_whole = self.beneath.is_none();
        let shard = self.shard_mut(key.partition());
        let bytes = match (key, row) {
            (Key::Member(conversation, user), _) => {
                if is_whole {
                    shard.members.entry(*conversation).or_insert_with(|| Slot::new(BTreeSet::new(), 0));
                }
                let members = shard.members.get_mut(conversation);
                members.map_or(0, |members| usize::from(members.value.insert(*user)) * ID_BYTES)
            }
            (Key::Duty(user, conversation), Row::Duty(duty)) => {
                if is_whole {
                    shard.duties.entry(*user).or_insert_with(|| Slot::new(Duties::NONE, 0));
                }
                let duties = shard.duties.get_mut(user).map(|duties| &mut duties.value);
                let duties = duties.filter(|duties| is_newer || duties.get(*conversation).is_none());
                duties.map_or(0, |duties| usize::from(duties.put(*conversation, *duty)) * DUTY_BYTES)
            }
            _ => return,
        };
        if bytes > 0 {
            self.grow(key.partition(), bytes);
        }
    }

    /// What is new begins with an empty list: nothing is saved that could be loaded.
    pub(super) fn begin_list(&mut self, key: &Key) {
        let shard = self.shard_mut(key.partition());
        match key {
            Key::User(id) => drop(shard.duties.insert(*id, Slot::new(Duties::NONE, 0))),
            Key::Conversation(id) => drop(shard.members.insert(*id, Slot::new(BTreeSet::new(), 0))),
            _ => return,
        }
        self.grow(key.partition(), ROW_BYTES);
    }

    /// Takes in the members that were loaded. What changed since the last save is in memory, and added.
    pub(super) fn install_members(&mut self, id: ConversationId, mut members: BTreeSet<UserId>) {
        members.extend(self.unsaved_members(id));
        let bytes = members.len() * ID_BYTES;
        let grown = install_list(&mut self.shard_mut(partition(id.0)).members, id, members, bytes);
        self.grow(partition(id.0), grown);
    }

    /// The same of the duties.
    pub(super) fn install_duties(&mut self, id: UserId, mut duties: Duties) {
        duties.extend(self.unsaved_duties(id));
        let bytes = duties.len() * DUTY_BYTES;
        let grown = install_list(&mut self.shard_mut(partition(id.0)).duties, id, duties, bytes);
        self.grow(partition(id.0), grown);
    }

    /// What changed since the last seal, for the store to save. From here on changes are of the next generation.
    pub fn seal(&mut self) -> Changes {
        let keys = std::mem::take(&mut self.changed);
        let row = |key: Key| {
            let row = match self.row(&key) {
                Lookup::Known(row) => row.cloned(),
                Lookup::Cold => unreachable!("a changed row stays until it is saved: {key:?}"),
            };
            (key, row)
        };
        let rows = keys.into_iter().map(row).collect();
        self.generation += 1;
        Changes { rows }
    }

    /// The store has saved all but the newest `unsaved` seals.
    pub fn note_saved(&mut self, unsaved: usize) {
        self.saved_generation = self.generation - 1 - unsaved as u32;
    }

    /// Whether [`State::sweep`] has something to do.
    #[must_use]
    pub fn is_sweep_due(&self, now_ms: u64) -> bool {
        now_ms >= self.sweep_at_ms || (self.bytes > self.bytes_max && now_ms >= self.hurry_at_ms)
    }

    /// Lets go of what nobody used, a shard at a time; every shard once in `KEEP_MS`, and faster while the cache is
    /// larger than it may be. What is not saved stays.
    pub fn sweep(&mut self, now_ms: u64) {
        let every = KEEP_MS / SHARDS as u64;
        let mut visits = 0;
        if now_ms >= self.sweep_at_ms {
            visits = ((now_ms - self.sweep_at_ms) / every + 1).min(SHARDS as u64) as usize;
            self.sweep_at_ms = now_ms + every;
        }
        if self.bytes > self.bytes_max && now_ms >= self.hurry_at_ms {
            self.hurry_at_ms = now_ms + HURRY_MS;
            visits = visits.max(HURRY_SHARDS);
        }
        for _ in 0..visits {
            self.sweep_shard();
        }
    }

    fn sweep_shard(&mut self) {
        let (hand, saved) = (self.hand, self.saved_generation);
        self.hand = (hand + 1) % SHARDS;
        if self.beneath.is_none() {
            return;
        }
        fn keep<T>(slot: &mut Slot<T>, saved: u32) -> bool {
            slot.changed > saved || std::mem::take(slot.used.get_mut())
        }
        let shard = &mut self.shards[hand];
        shard.rows.retain(|_, slot| keep(slot, saved));
        shard.members.retain(|_, slot| keep(slot, saved));
        shard.duties.retain(|_, slot| keep(slot, saved));
        if shard.rows.capacity() > 64 && shard.rows.len() < shard.rows.capacity() / 4 {
            shard.rows.shrink_to_fit();
            shard.members.shrink_to_fit();
            shard.duties.shrink_to_fit();
        }
        let ids = shard.members.values().map(|slot| slot.value.len()).sum::<usize>();
        let duties = shard.duties.values().map(|slot| slot.value.len()).sum::<usize>();
        let slots = shard.rows.len() + shard.members.len() + shard.duties.len();
        let bytes = slots * ROW_BYTES + ids * ID_BYTES + duties * DUTY_BYTES;
        self.bytes = self.bytes - shard.bytes + bytes;
        shard.bytes = bytes;
    }

    /// Lets go of all that is saved, used or not: for tests, which want everything cold.
    pub fn forget(&mut self) {
        for _ in 0..2 * SHARDS {
            self.sweep_shard();
        }
    }
}

/// Rows that changed, as they were at a seal.
#[derive(Debug, Default)]
pub struct Changes {
    rows: Vec<(Key, Option<Row>)>,
}

impl StateDelta for Changes {
    fn rows(&self, each: &mut dyn FnMut(&[u8], Option<&[u8]>)) {
        for (key, row) in &self.rows {
            each(&key.encode(), row.as_ref().map(Row::encode).as_deref());
        }
    }
}
