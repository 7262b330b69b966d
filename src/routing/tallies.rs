//! Which of a conversation's messages count no more, in rows of a bounded size: one that goes changes a row for each level of
//! them, and how many of those above a mark are gone is a sum over as many.
//!
//! ```text
//! level 2                  [ how many are gone in each of 64 below ]          one row: 4 M messages
//! level 1      [ 64 of them ]   [ 64 of them ]   …                            one for each 65,536 messages
//! level 0   [1,024 bits] [1,024 bits] [1,024 bits] …                          one for each 1,024, where one is gone
//! ```
//!
//! Messages are known by their place among the countable ones. Where nothing is gone there is no row.

use longwire_protocol::{ConversationId, LogTime};

use super::rows::{Key, Row, Tally, Uncounted};
use super::view::{Rows, View};

/// Messages in a tally of level 0: 16 words, so that a row takes at most 160 bytes.
const BLOCK: u64 = 1_024;
/// Tallies of the level below in one above.
const CHILDREN: u64 = 64;
/// How many of those that have ended are tallied with one that comes: more than come, so none are left over for long. They
/// may all lie in different tallies.
const SETTLED_MAX: usize = 8;

/// How many messages so many levels hold.
fn capacity(levels: u8) -> u64 {
    if levels == 0 { 0 } else { BLOCK.saturating_mul(CHILDREN.saturating_pow(u32::from(levels) - 1)) }
}

/// Which tally of a level holds a message, and where in it: the bit, or the child.
fn place(level: u8, at: u64) -> (u64, u64) {
    let block = at / BLOCK;
    if level == 0 {
        return (block, at % BLOCK);
    }
    let child = block / CHILDREN.saturating_pow(u32::from(level) - 1);
    (child / CHILDREN, child % CHILDREN)
}

impl Tally {
    /// Of level 0: notes a message; whether it was not noted before.
    fn insert(&mut self, bit: u64) -> bool {
        let word = self.word(bit / 64);
        let was = *word;
        *word |= 1 << (bit % 64);
        *word != was
    }

    fn word(&mut self, index: u64) -> &mut u64 {
        let index = index as usize;
        if self.0.len() <= index {
            self.0.resize(index + 1, 0);
        }
        &mut self.0[index]
    }

    fn has(&self, bit: u64) -> bool {
        self.0.get((bit / 64) as usize).is_some_and(|word| word & (1 << (bit % 64)) != 0)
    }

    fn total(&self, level: u8) -> u64 {
        self.0.iter().map(|word| if level == 0 { u64::from(word.count_ones()) } else { *word }).sum()
    }

    /// How many lie behind a bit, or behind a child.
    fn above(&self, level: u8, at: u64) -> u64 {
        if level > 0 {
            return self.0.iter().skip(at as usize + 1).sum();
        }
        let (word, bit) = ((at / 64) as usize, at % 64);
        let own = self.0.get(word).map_or(0, |word| (word >> bit >> 1).count_ones());
        u64::from(own) + self.0.iter().skip(word + 1).map(|word| u64::from(word.count_ones())).sum::<u64>()
    }
}

/// Whether the countable entry `at` counts no more at this time.
#[must_use]
pub fn has(rows: &impl Rows, id: ConversationId, row: &Uncounted, at: u64, now: LogTime) -> bool {
    let (block, bit) = place(0, at);
    let is_tallied = rows.tally(id, 0, block).is_some_and(|tally| tally.has(bit));
    is_tallied || row.in_stretch(at) || row.ended(now).any(|ended| ended == at)
}

/// How many of those above `after` count no more at this time. Looks at one row for each level.
#[must_use]
pub fn above(rows: &impl Rows, id: ConversationId, row: &Uncounted, after: u64, now: LogTime) -> u64 {
    let levels = if after < capacity(row.levels) { row.levels } else { 0 };
    let tallied = (0..levels).map(|level| {
        let (index, at) = place(level, after);
        rows.tally(id, level, index).map_or(0, |tally| tally.above(level, at))
    });
    let ended = row.ended(now).filter(|at| *at > after && !row.in_stretch(*at)).count() as u64;
    tallied.sum::<u64>() + row.in_stretches_above(after) + ended
}

/// Folds that the countable entry `at` counts no more.
pub(super) fn fold_gone(view: &mut View<'_>, id: ConversationId, now: LogTime, at: u64) {
    change(view, id, |view, row| {
        settle(view, id, row, now);
        row.expiring.retain(|(_, expiring)| *expiring != at);
        if !row.in_stretch(at) {
            tally(view, id, row, at..=at);
        }
    });
}

/// Folds that the countable entry `at` will not count from `expires` on.
pub(super) fn fold_expiring(view: &mut View<'_>, id: ConversationId, now: LogTime, expires: LogTime, at: u64) {
    change(view, id, |view, row| {
        settle(view, id, row, now);
        let i = row.expiring.partition_point(|known| *known < (expires, at));
        row.expiring.insert(i, (expires, at));
    });
}

/// Folds that those up to `below` are kept no more: nobody counts them.
pub(super) fn fold_below(view: &mut View<'_>, id: ConversationId, below: u64) {
    if view.uncounted(id).is_some() {
        change(view, id, |_, row| {
            row.stretches.retain(|(_, to)| *to > below);
            row.expiring.retain(|(_, at)| *at > below);
        });
    }
}

fn change(view: &mut View<'_>, id: ConversationId, change: impl FnOnce(&mut View<'_>, &mut Uncounted)) {
    let mut row = view.uncounted(id).cloned().unwrap_or_default();
    change(view, &mut row);
    view.put(Key::Uncounted(id), Some(Row::Uncounted(row)));
}

/// Tallies some of what has ended by now, and some of what an older broker kept in stretches.
fn settle(view: &mut View<'_>, id: ConversationId, row: &mut Uncounted, now: LogTime) {
    let ended = row.ended(now).take(SETTLED_MAX).count();
    for (_, at) in row.expiring.drain(..ended).collect::<Vec<_>>() {
        if !row.in_stretch(at) {
            tally(view, id, row, at..=at);
        }
    }
    let newest = row.stretches.last().map(|(_, to)| to / BLOCK);
    while let Some((from, to)) = row.stretches.pop_if(|(_, to)| Some(*to / BLOCK) == newest) {
        let first = from.max(to / BLOCK * BLOCK);
        if from < first {
            row.stretches.push((from, first - 1));
        }
        row.expiring.retain(|(_, at)| !(first..=to).contains(at));
        tally(view, id, row, first..=to);
    }
}

/// Notes messages that one tally of level 0 holds.
fn tally(view: &mut View<'_>, id: ConversationId, row: &mut Uncounted, all: std::ops::RangeInclusive<u64>) {
    let (first, last) = all.into_inner();
    while last >= capacity(row.levels) {
        // What the topmost holds is the first child of the one above it.
        if let Some(below) = row.levels.checked_sub(1) {
            let total = view.tally(id, below, 0).map_or(0, |tally| tally.total(below));
            if total > 0 {
                update(view, id, row.levels, 0, |tally| *tally.word(0) = total);
            }
        }
        row.levels += 1;
    }
    let mut new = 0;
    update(view, id, 0, place(0, first).0, |tally| {
        new = (first..=last).filter(|at| tally.insert(place(0, *at).1)).count() as u64;
    });
    for level in (1..row.levels).filter(|_| new > 0) {
        let (index, child) = place(level, first);
        update(view, id, level, index, |tally| *tally.word(child) += new);
    }
}

fn update(view: &mut View<'_>, id: ConversationId, level: u8, index: u64, change: impl FnOnce(&mut Tally)) {
    let mut tally = view.tally(id, level, index).cloned().unwrap_or_default();
    change(&mut tally);
    view.put(Key::Tally(id, level, index), Some(Row::Tally(tally)));
}

#[cfg(test)]
#[path = "tallies_tests.rs"]
mod tests;
