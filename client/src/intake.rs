//! What has arrived and what became of it: from the wire to the application, and back as acks.
//!
//! The task puts things in in the order of the wire; the application takes them out and settles them; what that means
//! for the broker comes back to the task as [`Effects`]. A value behind one short lock.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use longwire_protocol::limits;
use longwire_protocol::packet::Lane;
use tokio::sync::Notify;

use crate::config::Handover;
use crate::item::{Item, Reset};

/// Something on the wire, in its order.
#[derive(Debug)]
enum Arrival {
    /// Items; `through` is the number of the last of them in its lane.
    Items {
        lane: Lane,
        through: u64,
        items: Vec<Item>,
    },
    Cursor(Bytes),
    AckRequest(u64),
    Reset(Reset),
}

/// What the application takes: the number to settle it by, the items, and the cursor behind them.
pub(crate) type Taken = (u64, Vec<Item>, Option<Bytes>);

/// What the application did, as the session is told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    /// Stored through this number of the express lane; 0: nothing new.
    pub(crate) express: u64,
    /// The same of the bulk lane.
    pub(crate) bulk: u64,
    /// Ack requests that can be answered now.
    pub(crate) answers: Vec<u64>,
    /// The newest cursor that was stored.
    pub(crate) cursor: Option<Bytes>,
}

/// A delivery that the application holds.
#[derive(Debug, Default)]
struct Handed {
    number: u64,
    numbering: u64,
    express: u64,
    bulk: u64,
    answers: Vec<u64>,
    cursor: Option<Bytes>,
    places: HashMap<u64, u64>,
    notices: Vec<Item>,
}

#[derive(Debug, Default)]
struct Intake {
    /// Which numbering the queue is of: a new one begins with each connection, and when what was not stored is to
    /// come again in this one.
    numbering: u64,
    queue: VecDeque<Arrival>,
    /// What the client itself has to say: of no connection, so it outlives each.
    notices: Vec<Item>,
    handed: VecDeque<Handed>,
    next_number: u64,
    effects: Effects,
    /// What was stored: it may come again after a reconnect, since a cursor leaves behind more than it covers.
    passed: Passed,
    abandoned: bool,
    closed: bool,
}

impl Intake {
    fn begin(&mut self, reset: Option<Reset>) {
        self.end();
        if let Some(reset) = reset {
            self.passed = Passed::default();
            self.queue.push_back(Arrival::Reset(reset));
        }
        self.settle_what_nobody_reads();
    }

    /// What nobody took is gone, and comes again: with the next connection, or in this one.
    fn end(&mut self) {
        self.queue.clear();
        self.numbering += 1;
        self.effects = Effects { cursor: self.effects.cursor.take(), ..Effects::default() };
    }

    fn put(&mut self, arrival: Arrival) {
        self.queue.push_back(arrival);
        self.settle_what_nobody_reads();
        self.answer_what_is_settled();
    }

    fn put_items(&mut self, lane: Lane, through: u64, items: Vec<Item>) {
        self.put(Arrival::Items { lane, through, items });
    }

    fn take(&mut self, handover: Handover) -> Option<Taken> {
        let complete = self.queue.iter().any(|arrival| matches!(arrival, Arrival::Cursor(_)));
        let something =
            !self.notices.is_empty() || self.queue.iter().any(|arrival| !matches!(arrival, Arrival::AckRequest(_)));
        if !something || (handover == Handover::WithCursor && !complete) {
            return None;
        }
        // What the application holds of an older numbering may be what comes here again.
        if self.handed.iter().any(|handed| handed.numbering != self.numbering) {
            return None;
        }
        let notices = std::mem::take(&mut self.notices);
        let mut all = notices.clone();
        let mut handed = Handed { number: self.next_number, numbering: self.numbering, notices, ..Handed::default() };
        while let Some(arrival) = self.queue.pop_front() {
            match arrival {
                Arrival::Items { lane, through, mut items } => {
                    items.retain(|item| self.is_news(item));
                    match lane {
                        Lane::Express => handed.express = through,
                        Lane::Bulk => handed.bulk = through,
                    }
                    handed.places.extend(items.iter().filter_map(Item::place));
                    all.extend(items);
                }
                Arrival::AckRequest(k) => handed.answers.push(k),
                Arrival::Reset(reset) => all.push(Item::Reset(reset)),
                Arrival::Cursor(cursor) => {
                    handed.cursor = Some(cursor);
                    break;
                }
            }
        }
        let result = (handed.number, all, handed.cursor.clone());
        self.next_number += 1;
        self.handed.push_back(handed);
        Some(result)
    }

    fn is_news(&self, item: &Item) -> bool {
        item.place().is_none_or(|(conversation, seq)| seq > self.passed.seq(conversation))
    }

    fn settle(&mut self, number: u64, stored: bool) {
        if stored {
            while self.handed.front().is_some_and(|handed| handed.number <= number) {
                if let Some(handed) = self.handed.pop_front() {
                    self.store(handed);
                }
            }
        } else if let Some(at) = self.handed.iter().position(|handed| handed.number == number) {
            // Not stored, and that is an answer too: it comes again, with what follows it.
            let mut handed = self.handed.remove(at);
            if let Some(handed) = &mut handed {
                self.notices.splice(..0, handed.notices.drain(..));
            }
            let handed = handed.filter(|handed| handed.numbering == self.numbering);
            if let Some(handed) = handed.filter(|handed| !handed.answers.is_empty()) {
                self.queue.clear();
                self.numbering += 1;
                self.effects.answers.extend(handed.answers);
            }
        }
        self.answer_what_is_settled();
    }

    fn store(&mut self, handed: Handed) {
        if handed.numbering == self.numbering {
            self.effects.express = self.effects.express.max(handed.express);
            self.effects.bulk = self.effects.bulk.max(handed.bulk);
            self.effects.answers.extend(handed.answers);
        }
        if handed.cursor.is_some() {
            self.effects.cursor = handed.cursor;
        }
        self.passed.extend(handed.places);
    }

    fn answer_what_is_settled(&mut self) {
        while self.handed.is_empty() {
            let Some(&Arrival::AckRequest(k)) = self.queue.front() else { break };
            self.queue.pop_front();
            self.effects.answers.push(k);
        }
    }

    fn settle_what_nobody_reads(&mut self) {
        while self.abandoned {
            let Some((number, ..)) = self.take(Handover::AtOnce) else { break };
            self.settle(number, true);
        }
    }
}

/// Conversation → the highest seq that was stored, of those where something was stored lately: two generations, each of
/// as many conversations as there can be items on their way in both lanes.
#[derive(Debug, Default)]
struct Passed {
    young: HashMap<u64, u64>,
    old: HashMap<u64, u64>,
}

impl Passed {
    const GENERATION: usize = 2 * limits::WINDOW_ITEMS_MAX as usize;

    fn seq(&self, conversation: u64) -> u64 {
        let seq = |map: &HashMap<u64, u64>| map.get(&conversation).copied().unwrap_or(0);
        seq(&self.young).max(seq(&self.old))
    }

    fn extend(&mut self, places: impl IntoIterator<Item = (u64, u64)>) {
        for (conversation, seq) in places {
            if self.young.len() >= Self::GENERATION {
                self.old = std::mem::take(&mut self.young);
            }
            let highest = self.seq(conversation).max(seq);
            self.young.insert(conversation, highest);
        }
    }
}

/// The intake as task and application share it.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    intake: Mutex<Intake>,
    /// Something may be taken, or nothing will come any more.
    arrived: Notify,
    /// The application settled something.
    settled: Notify,
}

impl Shared {
    /// A connection begins; what it says about the cursor comes first.
    pub(crate) fn begin(&self, reset: Option<Reset>) {
        self.lock().begin(reset);
        self.arrived.notify_one();
    }

    /// The connection is gone.
    pub(crate) fn end(&self) {
        self.lock().end();
    }

    /// Items came; `through` is the number of the last one.
    pub(crate) fn put_items(&self, lane: Lane, through: u64, items: Vec<Item>) {
        self.lock().put_items(lane, through, items);
        self.arrived.notify_one();
    }

    /// A cursor came.
    pub(crate) fn put_cursor(&self, cursor: Bytes) {
        self.lock().put(Arrival::Cursor(cursor));
        self.arrived.notify_one();
    }

    /// The client itself has something to say: it comes in front of everything else.
    pub(crate) fn put_notice(&self, item: Item) {
        let mut intake = self.lock();
        intake.notices.push(item);
        intake.settle_what_nobody_reads();
        drop(intake);
        self.arrived.notify_one();
    }

    /// The broker asks what became of the items before this.
    pub(crate) fn put_ack_request(&self, k: u64) {
        self.lock().put(Arrival::AckRequest(k));
    }

    /// Gives up waiting for the application to store what stands before an ack request: it comes again, and what the
    /// application holds is told apart from it. Returns whether the request was open.
    pub(crate) fn answer_overdue(&self, k: u64) -> bool {
        let mut intake = self.lock();
        let queued = intake.queue.iter().any(|arrival| matches!(arrival, Arrival::AckRequest(asked) if *asked == k));
        let numbering = intake.numbering;
        let mut held = intake.handed.iter().filter(|handed| handed.numbering == numbering);
        let open = queued || held.any(|handed| handed.answers.contains(&k));
        if open {
            intake.queue.clear();
            intake.numbering += 1;
        }
        open
    }

    /// What the application did since the last call.
    pub(crate) fn take_effects(&self) -> Effects {
        std::mem::take(&mut self.lock().effects)
    }

    /// Resolves when the application may have settled something. Cancel safe.
    pub(crate) async fn settled(&self) {
        self.settled.notified().await;
    }

    /// Nothing will come any more.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_one();
    }

    pub(crate) fn settle(&self, number: u64, stored: bool) {
        self.lock().settle(number, stored);
        self.settled.notify_one();
        self.arrived.notify_one();
    }

    pub(crate) fn abandon(&self) {
        let mut intake = self.lock();
        intake.abandoned = true;
        intake.settle_what_nobody_reads();
        drop(intake);
        self.settled.notify_one();
    }

    /// What may be taken next; `None` once nothing will come any more. Cancel safe: what is not returned stays.
    pub(crate) async fn next(&self, handover: Handover) -> Option<Taken> {
        loop {
            let (taken, closed) = {
                let mut intake = self.lock();
                (intake.take(handover), intake.closed)
            };
            if taken.is_some() || closed {
                return taken;
            }
            self.arrived.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Intake> {
        // Every change is finished before the lock is let go: a panic elsewhere leaves a whole value behind.
        self.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use longwire_protocol::packet::Entry;

    use super::*;

    fn entries(conversation: u64, seqs: impl IntoIterator<Item = u64>) -> Vec<Item> {
        seqs.into_iter().map(|seq| Item::Entry(Entry { conversation, seq, ..Entry::default() })).collect()
    }

    fn seqs(items: &[Item]) -> Vec<u64> {
        items.iter().filter_map(|item| item.place().map(|(_, seq)| seq)).collect()
    }

    fn cursor(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn a_delivery_ends_at_its_cursor() {
        let mut intake = Intake::default();
        intake.begin(None);
        intake.put_items(Lane::Bulk, 2, entries(1, 1..3));
        intake.put_items(Lane::Express, 1, entries(2, 1..2));
        intake.put(Arrival::Cursor(cursor("a")));
        intake.put_items(Lane::Bulk, 3, entries(1, 3..4));
        let (first, items, at) = intake.take(Handover::AtOnce).expect("a delivery");
        assert_eq!((seqs(&items), at), (vec![1, 2, 1], Some(cursor("a"))));
        assert!(intake.take(Handover::WithCursor).is_none(), "no cursor behind the rest yet");
        let (second, items, at) = intake.take(Handover::AtOnce).expect("a delivery");
        assert_eq!((seqs(&items), at), (vec![3], None));
        intake.settle(second, true);
        let effects = std::mem::take(&mut intake.effects);
        assert_eq!((effects.express, effects.bulk, effects.cursor), (1, 3, Some(cursor("a"))), "storing is cumulative");
        intake.settle(first, true);
        assert_eq!(intake.effects, Effects::default());
    }

    #[test]
    fn what_was_stored_after_the_cursor_does_not_come_twice() {
        let mut intake = Intake::default();
        intake.begin(None);
        intake.put_items(Lane::Bulk, 3, entries(1, 1..4));
        let (held, ..) = intake.take(Handover::AtOnce).expect("a delivery");
        intake.put_items(Lane::Bulk, 5, entries(1, 4..6));
        intake.end();
        intake.settle(held, true);
        assert_eq!(intake.effects, Effects::default(), "numbers of a session that is gone");
        intake.begin(None);
        intake.put_items(Lane::Bulk, 6, entries(1, 1..7));
        let (_, items, _) = intake.take(Handover::AtOnce).expect("a delivery");
        assert_eq!(seqs(&items), [4, 5, 6]);
    }

    #[test]
    fn what_was_dropped_comes_again() {
        let mut intake = Intake::default();
        intake.begin(None);
        intake.put_items(Lane::Bulk, 3, entries(1, 1..4));
        let (held, ..) = intake.take(Handover::AtOnce).expect("a delivery");
        intake.settle(held, false);
        assert_eq!(intake.effects, Effects::default());
        intake.begin(None);
        intake.put_items(Lane::Bulk, 3, entries(1, 1..4));
        let (_, items, _) = intake.take(Handover::AtOnce).expect("a delivery");
        assert_eq!(seqs(&items), [1, 2, 3]);
    }

    #[test]
    fn an_ack_request_is_answered_once_all_before_it_is_settled() {
        let mut intake = Intake::default();
        intake.begin(None);
        intake.put(Arrival::AckRequest(1));
        assert_eq!(std::mem::take(&mut intake.effects).answers, [1], "nothing before it");
        intake.put_items(Lane::Bulk, 1, entries(1, 1..2));
        intake.put(Arrival::AckRequest(2));
        assert!(intake.effects.answers.is_empty());
        let (held, ..) = intake.take(Handover::AtOnce).expect("a delivery");
        intake.put(Arrival::AckRequest(3));
        assert!(intake.effects.answers.is_empty());
        intake.settle(held, true);
        assert_eq!(std::mem::take(&mut intake.effects).answers, [2, 3]);
    }

    #[test]
    fn what_is_answered_too_late_comes_again_and_is_not_handed_over_twice() {
        let shared = Arc::new(Shared::default());
        shared.begin(None);
        shared.put_items(Lane::Bulk, 3, entries(1, 1..4));
        shared.put_cursor(cursor("a"));
        let (held, ..) = shared.lock().take(Handover::AtOnce).expect("a delivery");
        shared.put_ack_request(1);
        shared.put_items(Lane::Bulk, 4, entries(1, 4..5));
        assert!(shared.answer_overdue(1));
        assert!(!shared.answer_overdue(1));
        shared.put_items(Lane::Bulk, 4, entries(1, 1..5));
        assert!(shared.lock().take(Handover::AtOnce).is_none(), "the application may be storing the same");
        shared.settle(held, true);
        let effects = shared.take_effects();
        assert_eq!((effects.bulk, effects.cursor), (0, Some(cursor("a"))), "the session has taken these numbers back");
        let (again, items, _) = shared.lock().take(Handover::AtOnce).expect("a delivery");
        assert_eq!(seqs(&items), [4]);
        shared.settle(again, true);
        assert_eq!(shared.take_effects().bulk, 4);
    }

    #[test]
    fn a_reset_comes_before_everything_and_forgets_what_was_passed() {
        let mut intake = Intake::default();
        intake.begin(None);
        intake.put_items(Lane::Bulk, 3, entries(1, 1..4));
        let (held, ..) = intake.take(Handover::AtOnce).expect("a delivery");
        intake.settle(held, true);
        let reset = Reset { reason: longwire_protocol::packet::ResetReason::ForeignSegment, common_time: 9 };
        intake.begin(Some(reset));
        intake.put_items(Lane::Bulk, 1, entries(1, 2..3));
        let (_, items, _) = intake.take(Handover::AtOnce).expect("a delivery");
        assert_eq!(items[0], Item::Reset(reset));
        assert_eq!(seqs(&items), [2]);
    }

    #[test]
    fn what_nobody_reads_is_acked() {
        let shared = Shared::default();
        shared.begin(None);
        shared.abandon();
        shared.put_items(Lane::Bulk, 3, entries(1, 1..4));
        shared.put_ack_request(8);
        let effects = shared.take_effects();
        assert_eq!((effects.bulk, effects.answers), (3, vec![8]));
        assert!(shared.lock().handed.is_empty());
    }
}
