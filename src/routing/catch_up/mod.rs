//! Catching up: the entries, heads and marks above where a lane stands, merged by position, read on as the window
//! opens. What is kept between two steps is a few entries for each conversation with news, 64 KiB of them in all, and
//! beyond that the one entry that waits for room.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use longwire_protocol::packet::HeadReason;
use longwire_protocol::{ConversationId, Seq, UserId};

pub use self::judge::shown_now;
use self::judge::{Gone, Judged};
pub use self::plan::Plan;
use self::plan::{Candidate, Reported};
use super::items::{head_item, item_for, mark_item};
use super::limits::{CATCH_UP_BYTES_MAX, CATCH_UP_ENTRIES_MAX, CATCH_UP_ITEMS_MAX};
use super::outbox::Session;
use super::reads::{Miss, Reads};
use super::stream::{Place, Ready};
use super::view::{Reader, Rows as _};
use crate::mutation::Mutation;
use crate::store::{PageLimit, Position, ReadError, StoredEntry};

mod judge;
mod plan;
#[cfg(test)]
mod tests;

/// Entries kept between two steps, in all.
const KEPT_ENTRIES_MAX: usize = 256;
/// Bytes of entries kept between two steps, in all.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// What one lane of one session is reading.
#[derive(Debug)]
pub struct CatchUp {
    target: Position,
    due: BinaryHeap<Reverse<Due>>,
    /// Items and bytes left before the rest comes as heads; `None` without limit.
    quota: Option<(usize, usize)>,
    /// Entries to read at once from one conversation.
    page: PageLimit,
    /// The bytes of what was read and not handed out.
    kept: usize,
    /// How many erasures were done when the oldest of that was read, or fewer.
    forgotten: u64,
    /// The labels of the channels among what is read: the token may change meanwhile.
    channels: HashMap<ConversationId, Box<str>>,
}

/// The next thing of one conversation.
#[derive(Debug)]
struct Due {
    position: Position,
    conversation: ConversationId,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    /// Entries, the first of them read already; more of them up to `last`.
    Entries { read: VecDeque<StoredEntry>, next: Seq, last: Seq, joined: Position },
    /// A mark.
    Mark { user: UserId, seq: Seq, joined: Position },
    /// Entries that are not sent.
    Head { from: Seq, to: Seq, reason: HeadReason, joined: Position },
}

impl Due {
    /// The bytes of the entries read.
    fn bytes(&self) -> usize {
        match &self.what {
            What::Entries { read, .. } => read.iter().map(|entry| entry.item.len()).sum(),
            What::Mark { .. } | What::Head { .. } => 0,
        }
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        if Mutation::BacklogOutOfOrder.is_planted() {
            return (self.conversation, self.position).cmp(&(other.conversation, other.position));
        }
        (self.position, self.conversation).cmp(&(other.position, other.conversation))
    }
}

/// What a step ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Everything up to the target was handed out.
    Done(Position),
    /// The room is used up.
    Full,
    /// Lane express has to send up to this position first.
    Waits(Position),
}

/// How much the session may be handed now.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Items.
    pub items: usize,
    /// Bytes.
    pub bytes: usize,
    /// Nothing is in flight: one item may leave whatever its size.
    pub is_empty: bool,
}

impl CatchUp {
    /// Finds where each conversation of the plan goes on.
    ///
    /// # Errors
    /// See [`Miss`]; the plan is not used up and can be tried again.
    pub fn begin(plan: &Plan, reads: Reads<'_>) -> Result<Self, Miss> {
        let conversations = plan.candidates.len().max(1);
        let page = PageLimit {
            entries: (KEPT_ENTRIES_MAX / conversations).clamp(1, 64),
            bytes: KEPT_BYTES_MAX / conversations,
        };
        let quota = plan.skips.then_some((CATCH_UP_ITEMS_MAX as usize, CATCH_UP_BYTES_MAX as usize));
        let channels = plan.candidates.iter().filter_map(|c| Some((c.conversation, c.label.clone()?))).collect();
        let (target, due, forgotten) = (plan.target, BinaryHeap::new(), reads.forgotten()?);
        let mut catch_up = Self { target, due, quota, page, kept: 0, forgotten, channels };
        let floor = reads.history.floor();
        for candidate in &plan.candidates {
            let id = candidate.conversation;
            let next = reads.first_after(id, plan.sent)?;
            // In this order: what the log has lost by now, the rows say by now, be the plan older than that.
            let kept = reads.rows(|rows| rows.conversation(id).map(|row| row.more.kept))?.unwrap_or(candidate.kept);
            let first = next.unwrap_or(candidate.head.next()).max(candidate.from).max(kept.first);
            let is_unreported = plan.sent < kept.raised && !Mutation::UnkeptNotReported.is_planted();
            let gone = match (plan.sent < floor, is_unreported) {
                (true, _) => first,
                (false, true) => kept.first,
                (false, false) => Seq(0),
            };
            for &(from, to) in &candidate.intervals {
                let (from, to) = (from.max(candidate.from), to.min(candidate.head));
                if from < gone && from <= to && !Mutation::ExpiredNotReported.is_planted() {
                    // Where this device stood is expired: what lies between is reported, also what it may have.
                    let (to, joined) = (to.min(Seq(gone.0 - 1)), Position(0));
                    let what = What::Head { from, to, reason: HeadReason::Expired, joined };
                    // Nothing is passed by saying so: until the turn ends, the next session says it again.
                    catch_up.due.push(Reverse(Due { position: plan.sent, conversation: id, what }));
                }
                let from = from.max(first);
                if from > to {
                    continue;
                }
                let from = match &candidate.reported {
                    Some(reported) => catch_up.report(candidate, (from, to), reported, reads)?,
                    None => from,
                };
                if from > to {
                    continue;
                }
                let read: VecDeque<_> = reads.range(id, from, to, false, page)?.into();
                let found = read.front().map_or(to.next(), |entry| entry.seq);
                if from < found {
                    // The log has lost it since.
                    let what =
                        What::Head { from, to: Seq(found.0 - 1), reason: HeadReason::Expired, joined: Position(0) };
                    catch_up.due.push(Reverse(Due { position: plan.sent, conversation: id, what }));
                }
                let Some(entry) = read.front() else { continue };
                let position = entry.position;
                if position > plan.target {
                    continue;
                }
                if plan.skips && to.0 - entry.seq.0 >= CATCH_UP_ENTRIES_MAX {
                    let to = if Mutation::HeadTooShort.is_planted() { Seq(to.0 - 1) } else { to };
                    let what =
                        What::Head { from: entry.seq, to, reason: HeadReason::Skipped, joined: candidate.joined };
                    catch_up.due.push(Reverse(Due { position, conversation: id, what }));
                    continue;
                }
                let next = read.back().map_or(to, |e| e.seq).next();
                let what = What::Entries { read, next, last: to, joined: candidate.joined };
                catch_up.put(Due { position, conversation: id, what }, 0);
            }
        }
        for (position, conversation, what) in &plan.marks {
            let what = what.clone();
            catch_up.due.push(Reverse(Due { position: *position, conversation: *conversation, what }));
        }
        Ok(catch_up)
    }

    /// What is to be reported of a stretch is due as such. Returns the first seq that is not.
    fn report(
        &mut self,
        candidate: &Candidate,
        (from, to): (Seq, Seq),
        reported: &Reported,
        reads: Reads<'_>,
    ) -> Result<Seq, Miss> {
        let (id, joined) = (candidate.conversation, candidate.joined);
        let is_beyond = candidate.head_position > reported.until && !Mutation::WithheldTooFar.is_planted();
        let beyond = if is_beyond { reads.first_after(id, reported.until)? } else { None };
        let to = beyond.map_or(to, |beyond| to.min(Seq(beyond.0 - 1)));
        let mut next = from;
        let apart = reported.apart.iter().copied().filter(|seq| (from..=to).contains(seq));
        let one = PageLimit { entries: 1, bytes: usize::MAX };
        for seq in apart.chain([to.next()]) {
            if next < seq
                && let Some(first) = reads.range(id, next, next, false, one)?.first()
            {
                let what = What::Head { from: next, to: Seq(seq.0 - 1), reason: HeadReason::Withheld, joined };
                self.due.push(Reverse(Due { position: first.position, conversation: id, what }));
            }
            if seq <= to
                && let Some(entry) = reads.range(id, seq, seq, false, one)?.pop()
            {
                let position = entry.position;
                let what = What::Entries { read: [entry].into(), next: seq.next(), last: seq, joined };
                self.put(Due { position, conversation: id, what }, 0);
            }
            next = seq.next();
        }
        Ok(from.max(to.next()))
    }

    /// Hands out what fits into `room`, in position order. `express_sent` is where lane express stands.
    ///
    /// # Errors
    /// See [`Miss`]; what was handed out before stays in `out`, and the step can be tried again.
    pub fn step(
        &mut self,
        reads: Reads<'_>,
        session: &Session,
        room: &mut Room,
        express_sent: Position,
        out: &mut Vec<Ready>,
    ) -> Result<Step, Miss> {
        let mut gone = Gone::default();
        while let Some(Reverse(next)) = self.due.peek() {
            if next.position > self.target {
                break;
            }
            let (What::Entries { joined, .. } | What::Mark { joined, .. } | What::Head { joined, .. }) = &next.what;
            if *joined > express_sent && !Mutation::JoinedNotAwaited.is_planted() {
                return Ok(Step::Waits(*joined));
            }
            if room.items == 0 || (room.bytes == 0 && !room.is_empty) {
                return Ok(Step::Full);
            }
            let Some(Reverse(mut due)) = self.due.pop() else { break };
            self.kept -= due.bytes();
            let conversation = due.conversation;
            if !self.may_leave(session, conversation) {
                continue;
            }
            let alone = Place { position: due.position, conversation: ConversationId(0), seq: Seq(0) };
            let ready = match &mut due.what {
                What::Mark { user, seq, .. } => Ready { place: alone, item: mark_item(conversation, *user, *seq) },
                What::Head { from, to, reason, .. } => {
                    Ready { place: alone, item: head_item(conversation, *from, *to, *reason, 0) }
                }
                What::Entries { read, next, last, .. } => {
                    if read.is_empty() {
                        let page = match reads.range(conversation, *next, *last, false, self.page) {
                            Ok(page) => page,
                            Err(miss) => {
                                self.due.push(Reverse(due));
                                return Err(miss);
                            }
                        };
                        let first = page.first().map_or(last.next(), |entry| entry.seq);
                        if first > *next {
                            // Only retention takes entries away, from the oldest on; what it took meanwhile is reported.
                            let kept =
                                |rows: &Reader<'_>| rows.conversation(conversation).map(|row| row.more.kept.first);
                            let kept = match reads.rows(kept) {
                                Ok(kept) => kept.unwrap_or_default(),
                                Err(miss) => {
                                    self.due.push(Reverse(due));
                                    return Err(miss);
                                }
                            };
                            if reads.history.floor() <= due.position && first > kept {
                                let hole = format!("conversation {conversation} has no entries {next} to {last}");
                                return Err(Miss::Failed(ReadError(hole)));
                            }
                            let item = head_item(conversation, *next, Seq(first.0 - 1), HeadReason::Expired, 0);
                            if !fits(room, &item) {
                                self.due.push(Reverse(due));
                                return Ok(Step::Full);
                            }
                            // One below: the place itself may be that of another conversation's entry.
                            let place = Place { position: Position(due.position.0 - 1), ..alone };
                            give(Ready { place, item }, room, out);
                            *next = first;
                            if let Some(entry) = page.first() {
                                due.position = entry.position;
                                self.due.push(Reverse(due));
                            }
                            continue;
                        }
                        *read = page.into();
                        *next = read.back().map_or(*last, |e| e.seq).next();
                    }
                    let Some(entry) = read.front() else { continue };
                    if entry.position > due.position {
                        due.position = entry.position;
                        let at = (entry.position, conversation);
                        let others = self.due.peek().map(|Reverse(other)| (other.position, other.conversation));
                        if entry.position > self.target || others.is_some_and(|other| other < at) {
                            self.put(due, 0);
                            continue;
                        }
                    }
                    if self.quota.is_some_and(|(items, bytes)| items == 0 || bytes == 0) {
                        let item = head_item(conversation, entry.seq, *last, HeadReason::Skipped, 0);
                        Ready { place: Place { position: entry.position, ..alone }, item }
                    } else {
                        let place = Place { position: entry.position, conversation, seq: entry.seq };
                        match gone.judge(reads, self.forgotten, (conversation, entry.seq), &entry.item) {
                            Ok(Judged::Shown) => {
                                Ready { place, item: item_for(&session.outbox.lock(), session, entry) }
                            }
                            Ok(Judged::Withheld(reason)) => {
                                Ready { place, item: head_item(conversation, entry.seq, entry.seq, reason, 0) }
                            }
                            Ok(Judged::Stale) => {
                                self.put(due, 1);
                                self.let_go(reads.forgotten()?);
                                gone = Gone::default();
                                continue;
                            }
                            Err(miss) => {
                                self.put(due, 1);
                                return Err(miss);
                            }
                        }
                    }
                }
            };
            if !fits(room, &ready.item) {
                // It goes next: let go, it would be read again with each look for room.
                self.put(due, 1);
                return Ok(Step::Full);
            }
            let is_entry = ready.place.conversation.is_some();
            if let Some((items, bytes)) = self.quota.as_mut().filter(|_| is_entry) {
                *items -= 1;
                *bytes = bytes.saturating_sub(ready.item.len());
            }
            give(ready, room, out);
            if let What::Entries { read, next, last, .. } = &mut due.what
                && is_entry
            {
                read.pop_front();
                if let Some(entry) = read.front() {
                    due.position = entry.position;
                    self.put(due, 0);
                } else if *next <= *last {
                    // Where the next page begins is found when it is read: at the earliest right after this one.
                    due.position = Position(due.position.0 + 1);
                    self.due.push(Reverse(due));
                }
            }
        }
        Ok(Step::Done(self.target))
    }

    /// How many erasures were done when the oldest of what is kept was read, or fewer.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Lets go of what was read: it is read again when its turn comes, after so many erasures.
    fn let_go(&mut self, forgotten: u64) {
        let all = std::mem::take(&mut self.due).into_vec();
        self.due = all
            .into_iter()
            .map(|Reverse(mut due)| {
                if let What::Entries { read, next, .. } = &mut due.what
                    && let Some(first) = read.front()
                {
                    *next = first.seq;
                    *read = VecDeque::new();
                }
                Reverse(due)
            })
            .collect();
        (self.kept, self.forgotten) = (0, forgotten);
    }

    /// Whether the session's token, as it is now, lets something of this conversation leave.
    #[must_use]
    pub fn may_leave(&self, session: &Session, conversation: ConversationId) -> bool {
        let label = self.channels.get(&conversation);
        label.is_none_or(|label| {
            session.grants.load().read.admit(label) || Mutation::CatchUpIgnoresPatterns.is_planted()
        })
    }

    /// Puts back what comes later. Of its entries, those behind the first `least` are let go where too much would be
    /// kept: they are read again when their turn comes.
    fn put(&mut self, mut due: Due, least: usize) {
        if self.kept + due.bytes() > KEPT_BYTES_MAX
            && let What::Entries { read, next, .. } = &mut due.what
            && let Some(first) = read.get(least)
        {
            *next = first.seq;
            read.truncate(least);
            read.shrink_to_fit();
        }
        self.kept += due.bytes();
        self.due.push(Reverse(due));
    }
}

fn fits(room: &Room, item: &[u8]) -> bool {
    room.is_empty || item.len() <= room.bytes
}

fn give(ready: Ready, room: &mut Room, out: &mut Vec<Ready>) {
    room.items -= 1;
    room.bytes = room.bytes.saturating_sub(ready.item.len());
    room.is_empty = false;
    out.push(ready);
}
