//! What the cache of rows takes, what it lets go of and when; what it knows of what is saved is asked of the models.

use std::sync::Arc;

use longwire_protocol::{ConversationId, PARTITIONS, Seq, UserId};

use super::rows::{Erasure, ErasureStage, Key, Member, Row};
use super::state::{Lookup, State};
use crate::store::{Position, ReadError, SavedState};

const ROW: usize = 224;
const ID: usize = 16;
const SHARDS: u64 = 256;

/// A saved state that holds nothing.
struct Nothing;

impl SavedState for Nothing {
    fn get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, ReadError> {
        Ok(vec![None; keys.len()])
    }

    fn each(&self, _: &[u8], _: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), ReadError> {
        Ok(())
    }
}

fn over_nothing(bytes_max: usize) -> State {
    State::over(Arc::new(Nothing), Position(0), bytes_max).expect("it reads nothing")
}

/// A row of each shard.
fn channel(n: u64) -> Key {
    assert!(n < SHARDS && SHARDS < PARTITIONS);
    Key::Uncounted(ConversationId(n))
}

fn member(conversation: u64, user: u64) -> (Key, Option<Row>) {
    let row = Member { role: 1, intervals: Vec::new(), mark: Seq(0), mark_countable: 0, mark_position: Position(0) };
    (Key::Member(ConversationId(conversation), UserId(user)), Some(Row::Member(row)))
}

/// What was counted as it came is what a sweep counts, and nothing is left of what is let go.
#[test]
fn what_the_cache_takes_is_counted() {
    let mut state = over_nothing(usize::MAX);
    let id = ConversationId(7);
    state.begin_list(&Key::Conversation(id));
    assert_eq!(state.bytes(), ROW);
    for user in [1, 2, 1] {
        let (key, row) = member(id.0, user);
        state.put(key, row);
    }
    assert_eq!((state.bytes(), state.rows_in_memory()), (3 * ROW + 2 * ID, 2));
    let other = ConversationId(8);
    state.install(channel(8), None);
    state.install(channel(8), None);
    state.install_members(other, [UserId(3), UserId(4), UserId(5)].into());
    state.install_members(other, [UserId(6)].into());
    let bytes = 5 * ROW + 5 * ID;
    assert_eq!((state.bytes(), state.rows_in_memory()), (bytes, 3));
    let Lookup::Known(Some(members)) = state.members(other) else { panic!("they are there") };
    assert_eq!(members, &[UserId(3), UserId(4), UserId(5)].into());
    // All of it was used: one round of the sweep lets go of nothing, and counts the same.
    assert!(state.is_sweep_due(0));
    state.sweep(0);
    (0..60_000).for_each(|now_ms| state.sweep(now_ms));
    assert_eq!((state.bytes(), state.rows_in_memory()), (bytes, 3));
    // What is saved goes by and by, what is not stays: here the rows of the members, whose list was not changed.
    (60_000..125_000).for_each(|now_ms| state.sweep(now_ms));
    assert_eq!((state.bytes(), state.rows_in_memory()), (2 * ROW, 2));
    assert!(matches!(state.members(id), Lookup::Cold));
    drop(state.seal());
    state.note_saved(1);
    state.forget();
    assert_eq!(state.rows_in_memory(), 2, "the seal is not saved yet");
    state.note_saved(0);
    state.forget();
    assert_eq!((state.bytes(), state.rows_in_memory()), (0, 0));
}

/// What is not used is let go of between one minute and two after it was.
#[test]
fn a_row_is_kept_for_a_minute_after_it_was_used() {
    let mut state = over_nothing(usize::MAX);
    state.sweep(0);
    (0..SHARDS).for_each(|n| state.install(channel(n), None));
    for now_ms in 0..59_900 {
        state.sweep(now_ms);
    }
    assert_eq!(state.rows_in_memory() as u64, SHARDS);
    assert!(matches!(state.row(&channel(9)), Lookup::Known(None)), "and so it is used");
    (59_900..121_000).for_each(|now_ms| state.sweep(now_ms));
    assert_eq!(state.rows_in_memory(), 1);
    (121_000..182_000).for_each(|now_ms| state.sweep(now_ms));
    assert_eq!(state.rows_in_memory(), 0);
    // Who was away for long goes through all shards at once, and no further.
    (0..SHARDS).for_each(|n| state.install(channel(n), None));
    state.sweep(500_000);
    assert_eq!(state.rows_in_memory() as u64, SHARDS);
    assert!(!state.is_sweep_due(500_000));
    state.sweep(1_000_000);
    assert_eq!(state.rows_in_memory(), 0);
}

/// A cache that is too large lets go of 16 shards each 10 ms, until it is not.
#[test]
fn a_cache_that_is_too_large_is_swept_in_a_hurry() {
    let room = 100;
    let mut state = over_nothing(room * ROW);
    state.sweep(0);
    (0..room as u64).for_each(|n| state.install(channel(n), None));
    assert!(state.has_room(0) && !state.has_room(1) && !state.is_sweep_due(100));
    (room as u64..SHARDS).for_each(|n| state.install(channel(n), None));
    assert!(!state.has_room(0) && state.is_sweep_due(10));
    state.sweep(10);
    assert!(!state.is_sweep_due(19) && state.is_sweep_due(20));
    // One round finds all of it used.
    (2..=16).for_each(|n| state.sweep(10 * n));
    assert_eq!(state.rows_in_memory() as u64, SHARDS);
    state.sweep(170);
    assert_eq!(state.rows_in_memory() as u64, SHARDS - 16);
    (18..1_000).for_each(|n| state.sweep(10 * n));
    assert!(state.bytes() <= room * ROW && state.has_room(0));
}

/// What was found before an erasure is looked at again once there were more (`forgotten`): each is counted, once.
#[test]
fn an_erasure_is_under_way_until_it_is_done_and_is_counted_then() {
    let mut state = State::default();
    let (ann, ben) = (UserId(1), UserId(2));
    let row = |stage| Some(Row::Erasure(Erasure { stage, until: Position(9) }));
    for stage in [ErasureStage::Own, ErasureStage::Conversations(ConversationId(3)), ErasureStage::Files] {
        state.put(Key::Erasure(ann), row(stage));
        assert_eq!((state.erased(), state.forgotten()), (&[ann].into(), 0));
    }
    state.put(Key::Erasure(ben), row(ErasureStage::Own));
    for _ in 0..2 {
        state.put(Key::Erasure(ann), row(ErasureStage::Done));
        assert_eq!((state.erased(), state.forgotten()), (&[ben].into(), 1));
    }
    state.put(Key::Erasure(ben), row(ErasureStage::Done));
    assert!(state.erased().is_empty() && state.forgotten() == 2);
}
