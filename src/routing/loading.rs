//! Reads of the state that may find something cold: try, load what was missing, try again. Whoever must not wait for a
//! disk tries, and has the loading done elsewhere.

use std::collections::{BTreeSet, HashMap};
use std::sync::{PoisonError, RwLock};

use foldhash::fast::RandomState;
use longwire_protocol::{ConversationId, UserId};

use super::duties::Duties;
use super::rows::{Key, Row};
use super::state::{Lookup, State};
use super::view::Reader;
use crate::store::{ReadError, SavedState};

/// What is loaded before others get at the state: nobody waits for long.
const WANTS_AT_ONCE: usize = 1_000;
/// A list up to this long is loaded together with its rows.
const ROWS_WITH_LIST_MAX: usize = 256;

/// Something of the saved state that is asked for and is not in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// A row.
    Row(Key),
    /// Who is or was a member of a conversation.
    Members(ConversationId),
    /// What is or was to be delivered to a user.
    Duties(UserId),
}

/// Tries a read. Where something was cold the answer is void, and what to load is told instead.
///
/// # Errors
/// What has to be loaded before it is tried again.
pub fn try_read<T>(state: &RwLock<State>, read: impl FnOnce(&Reader<'_>) -> T) -> Result<T, Vec<Want>> {
    let state = state.read().unwrap_or_else(PoisonError::into_inner);
    let reader = Reader::new(&state);
    let answer = read(&reader);
    let cold = reader.into_cold();
    if cold.is_empty() { Ok(answer) } else { Err(cold) }
}

/// Reads, and loads what is cold on the way. May block on the disk. While the cache is larger than it may be, what is
/// loaded is kept until the read is done, so that a read comes to its end whatever it needs: it takes so much memory then.
///
/// # Errors
/// When the saved state cannot be read.
pub fn read_blocking<T>(state: &RwLock<State>, mut read: impl FnMut(&Reader<'_>) -> T) -> Result<T, ReadError> {
    let mut kept = Kept::default();
    loop {
        let cold = {
            let state = state.read().unwrap_or_else(PoisonError::into_inner);
            kept.bring_up_to_date(&state);
            let reader = Reader::with(&state, &kept);
            let answer = read(&reader);
            let cold = reader.into_cold();
            if cold.is_empty() {
                return Ok(answer);
            }
            cold
        };
        cold.chunks(WANTS_AT_ONCE).try_for_each(|wants| load_some(state, wants, Some(&mut kept)))?;
    }
}

/// What was loaded for one read, beside the cache, which may let go of it. It is looked at where the cache holds nothing:
/// what was changed and not saved is there.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// The generation of which it is; see [`State::beneath`].
    generation: u32,
    rows: HashMap<Key, Option<Row>, RandomState>,
    members: HashMap<ConversationId, BTreeSet<UserId>, RandomState>,
    duties: HashMap<UserId, Duties, RandomState>,
}

impl Kept {
    /// Forgets all once a save was noted: what was changed before may be let go, and is not in here. Lists take in what
    /// was changed and is not saved.
    fn bring_up_to_date(&mut self, state: &State) {
        let Some((_, generation)) = state.beneath() else { return };
        if self.generation != generation {
            *self = Self { generation, ..Self::default() };
        }
        for (id, members) in &mut self.members {
            members.extend(state.unsaved_members(*id));
        }
        for (id, duties) in &mut self.duties {
            duties.extend(state.unsaved_duties(*id));
        }
    }

    /// Takes in what was found at a generation.
    fn take(&mut self, generation: u32, found: &Found) {
        if self.generation != generation {
            *self = Self { generation, ..Self::default() };
        }
        let mut take_few = |rows: &[(Key, Row)]| {
            if rows.len() <= ROWS_WITH_LIST_MAX {
                self.rows.extend(rows.iter().map(|(key, row)| (key.clone(), Some(row.clone()))));
            }
        };
        match found {
            Found::Row(key, row) => drop(self.rows.insert(key.clone(), row.clone())),
            Found::Members(id, rows) => {
                take_few(rows);
                self.members.insert(*id, members_of(rows));
            }
            Found::Duties(id, rows) => {
                take_few(rows);
                self.duties.insert(*id, duties_of(rows));
            }
        }
    }

    pub(super) fn row(&self, key: &Key) -> Lookup<&Row> {
        self.rows.get(key).map_or(Lookup::Cold, |row| Lookup::Known(row.as_ref()))
    }

    pub(super) fn members(&self, id: ConversationId) -> Lookup<&BTreeSet<UserId>> {
        self.members.get(&id).map_or(Lookup::Cold, |members| Lookup::Known(Some(members)))
    }

    pub(super) fn duties(&self, id: UserId) -> Lookup<&Duties> {
        self.duties.get(&id).map_or(Lookup::Cold, |duties| Lookup::Known(Some(duties)))
    }
}

/// What was found of a [`Want`].
#[expect(clippy::large_enum_variant, reason = "nearly all are rows, and they are moved on at once")]
enum Found {
    Row(Key, Option<Row>),
    Members(ConversationId, Vec<(Key, Row)>),
    Duties(UserId, Vec<(Key, Row)>),
}

impl Found {
    /// How many rows come with it.
    fn rows(&self) -> usize {
        match self {
            Self::Row(..) => 1,
            Self::Members(_, rows) => rows.len(),
            Self::Duties(_, rows) => rows.len(),
        }
    }
}

/// Loads what is wanted into the state. May block on the disk.
///
/// # Errors
/// When the saved state cannot be read.
pub fn load(state: &RwLock<State>, wants: &[Want]) -> Result<(), ReadError> {
    wants.chunks(WANTS_AT_ONCE).try_for_each(|wants| load_some(state, wants, None))
}

fn load_some(state: &RwLock<State>, wants: &[Want], mut kept: Option<&mut Kept>) -> Result<(), ReadError> {
    loop {
        let beneath = state.read().unwrap_or_else(PoisonError::into_inner).beneath();
        let Some((saved, generation)) = beneath else { return Ok(()) };
        let found = find(&*saved, wants)?;
        let mut state = state.write().unwrap_or_else(PoisonError::into_inner);
        // Whatever was changed and not saved when the reading began is still here, unless it was saved since and let go:
        // then what was read is old.
        if state.beneath().is_none_or(|(_, now)| now != generation) {
            continue;
        }
        if let Some(kept) = &mut kept
            && !state.has_room(found.iter().map(Found::rows).sum())
        {
            found.iter().for_each(|found| kept.take(generation, found));
        }
        for found in found {
            match found {
                Found::Row(key, row) => state.install(key, row),
                Found::Members(id, rows) => {
                    state.install_members(id, members_of(&rows));
                    install_few(&mut state, rows);
                }
                Found::Duties(id, rows) => {
                    state.install_duties(id, duties_of(&rows));
                    install_few(&mut state, rows);
                }
            }
        }
        return Ok(());
    }
}

fn members_of(rows: &[(Key, Row)]) -> BTreeSet<UserId> {
    rows.iter().filter_map(|(key, _)| if let Key::Member(_, user) = key { Some(*user) } else { None }).collect()
}

fn duties_of(rows: &[(Key, Row)]) -> Duties {
    let duty = |row: &(Key, Row)| if let (Key::Duty(_, id), Row::Duty(duty)) = row { Some((*id, *duty)) } else { None };
    rows.iter().filter_map(duty).collect()
}

fn install_few(state: &mut State, rows: Vec<(Key, Row)>) {
    if rows.len() <= ROWS_WITH_LIST_MAX {
        rows.into_iter().for_each(|(key, row)| state.install(key, Some(row)));
    }
}

fn find(saved: &dyn SavedState, wants: &[Want]) -> Result<Vec<Found>, ReadError> {
    let (mut found, mut keys) = (Vec::with_capacity(wants.len()), Vec::new());
    for want in wants {
        match want {
            Want::Row(key) => keys.push(key),
            Want::Members(id) => found.push(Found::Members(*id, find_all(saved, &Key::members_prefix(*id))?)),
            Want::Duties(id) => found.push(Found::Duties(*id, find_all(saved, &Key::duties_prefix(*id))?)),
        }
    }
    let encoded: Vec<_> = keys.iter().map(|key| key.encode()).collect();
    for (key, row) in keys.into_iter().zip(saved.get(&encoded)?) {
        found.push(Found::Row(key.clone(), row.map(|row| Row::decode(&row)).transpose()?));
    }
    Ok(found)
}

fn find_all(saved: &dyn SavedState, prefix: &[u8]) -> Result<Vec<(Key, Row)>, ReadError> {
    let (mut rows, mut failed) = (Vec::new(), None);
    saved.each(prefix, &mut |key, value| match (Key::decode(key), Row::decode(value)) {
        (Ok(key), Ok(row)) => rows.push((key, row)),
        (Err(error), _) | (_, Err(error)) => drop(failed.get_or_insert(error)),
    })?;
    failed.map_or(Ok(rows), Err)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::sync::{Arc, Mutex, Weak};

    use super::*;
    use crate::routing::view::Rows as _;
    use crate::store::Position;

    /// Names that one read looks up: more than are loaded at once.
    const NAMES: u64 = 2 * WANTS_AT_ONCE as u64;

    /// A saved state whose readers are always too late: whenever it is read, the cache lets go of all that it may.
    #[derive(Default)]
    struct Hurried {
        rows: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
        state: Mutex<Weak<RwLock<State>>>,
        reads: AtomicUsize,
        /// At the second read this user's name goes, and is saved or not.
        goes: Option<(u64, bool)>,
    }

    impl Hurried {
        fn is_read(&self) {
            let Some(state) = self.state.lock().expect("unpoisoned").upgrade() else { return };
            let reads = self.reads.fetch_add(1, Relaxed) + 1;
            assert!(reads < 100, "it is loaded over and over");
            let mut state = state.write().expect("unpoisoned");
            if let Some((user, is_saved)) = self.goes
                && reads == 2
            {
                state.put(key(user), None);
                if is_saved {
                    drop(state.seal());
                    self.rows.lock().expect("unpoisoned").remove(&key(user).encode());
                    state.note_saved(0);
                }
            }
            state.forget();
        }
    }

    impl SavedState for Hurried {
        fn get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, ReadError> {
            self.is_read();
            let rows = self.rows.lock().expect("unpoisoned");
            Ok(keys.iter().map(|key| rows.get(key).cloned()).collect())
        }

        fn each(&self, prefix: &[u8], row: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), ReadError> {
            self.is_read();
            let rows = self.rows.lock().expect("unpoisoned");
            rows.iter().filter(|(key, _)| key.starts_with(prefix)).for_each(|(key, value)| row(key, value));
            Ok(())
        }
    }

    fn key(user: u64) -> Key {
        Key::UserName(format!("user {user}").as_str().into())
    }

    /// What a read of many names finds, of which those of every third user are saved; and how often it came to the disk.
    fn found(goes: Option<(u64, bool)>) -> (Vec<u64>, usize) {
        let saved = Arc::new(Hurried { goes, ..Hurried::default() });
        for user in (0..NAMES).step_by(3) {
            let row = Row::UserName(UserId(user)).encode();
            saved.rows.lock().expect("unpoisoned").insert(key(user).encode(), row);
        }
        let state = State::over(Arc::clone(&saved) as Arc<dyn SavedState>, Position(0), 0).expect("reads");
        let state = Arc::new(RwLock::new(state));
        *saved.state.lock().expect("unpoisoned") = Arc::downgrade(&state);
        let known = |rows: &Reader<'_>| {
            (0..NAMES).filter(|user| rows.user_named(&format!("user {user}")) == Some(UserId(*user))).collect()
        };
        (read_blocking(&state, known).expect("reads"), saved.reads.load(Relaxed))
    }

    #[test]
    fn a_read_of_more_rows_than_the_cache_may_hold_comes_to_its_end() {
        let (found, reads) = found(None);
        assert_eq!(found, (0..NAMES).step_by(3).collect::<Vec<_>>());
        assert_eq!(reads, 2, "each is loaded once");
    }

    #[test]
    fn what_was_loaded_for_a_read_is_never_older_than_the_state() {
        for is_saved in [false, true] {
            let (found, _) = found(Some((6, is_saved)));
            assert_eq!(found, (0..NAMES).step_by(3).filter(|user| *user != 6).collect::<Vec<_>>(), "saved: {is_saved}");
        }
    }
}
