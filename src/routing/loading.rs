//! Reads of the state that may find something cold: try, load what was missing, try again. Whoever must not wait for a
//! disk tries, and has the loading done elsewhere.

use std::sync::{PoisonError, RwLock};

use longwire_protocol::{ConversationId, UserId};

use super::rows::{Key, Row};
use super::state::State;
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

/// Reads, and loads what is cold on the way. May block on the disk.
///
/// # Errors
/// When the saved state cannot be read.
pub fn read_blocking<T>(state: &RwLock<State>, mut read: impl FnMut(&Reader<'_>) -> T) -> Result<T, ReadError> {
    loop {
        match try_read(state, &mut read) {
            Ok(answer) => return Ok(answer),
            Err(cold) => load(state, &cold)?,
        }
    }
}

/// What was found of a [`Want`].
enum Found {
    Row(Key, Option<Row>),
    Members(ConversationId, Vec<(Key, Row)>),
    Duties(UserId, Vec<(Key, Row)>),
}

/// Loads what is wanted into the state. May block on the disk.
///
/// # Errors
/// When the saved state cannot be read.
pub fn load(state: &RwLock<State>, wants: &[Want]) -> Result<(), ReadError> {
    wants.chunks(WANTS_AT_ONCE).try_for_each(|wants| load_some(state, wants))
}

fn load_some(state: &RwLock<State>, wants: &[Want]) -> Result<(), ReadError> {
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
        for found in found {
            match found {
                Found::Row(key, row) => state.install(key, row),
                Found::Members(id, rows) => {
                    let user = |(key, _): &(Key, Row)| if let Key::Member(_, user) = key { Some(*user) } else { None };
                    state.install_members(id, rows.iter().filter_map(user).collect());
                    install_few(&mut state, rows);
                }
                Found::Duties(id, rows) => {
                    let id_of = |(key, _): &(Key, Row)| if let Key::Duty(_, id) = key { Some(*id) } else { None };
                    state.install_duties(id, rows.iter().filter_map(id_of).collect());
                    install_few(&mut state, rows);
                }
            }
        }
        return Ok(());
    }
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
