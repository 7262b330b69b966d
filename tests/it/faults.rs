//! A store that fails: nobody is told a lie, nothing acked is lost, and service comes back by itself where it may.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use longwire::store::{
    AppendError, Failure, Figures, FollowError, Frame, History, Log, MemoryLog, Position, Pressure, ReadError,
    SavedState, Segment, Sieve, StateDelta,
};
use longwire_protocol::packet::{self, Publish};
use longwire_protocol::{LogTime, Reason};
use tokio::time::{Duration, sleep};

use crate::world::{World, texts};

/// A log in memory whose next append can be made to fail, also while a broker holds it.
#[derive(Clone)]
pub(crate) struct Faulty {
    log: Arc<Mutex<MemoryLog>>,
    pressure: Arc<Mutex<Pressure>>,
}

impl Faulty {
    pub(crate) fn new() -> Self {
        let log = Arc::new(Mutex::new(MemoryLog::new(1_700_000_000_000, 1_000)));
        Self { log, pressure: Arc::new(Mutex::new(Pressure::Open)) }
    }

    fn log(&self) -> MutexGuard<'_, MemoryLog> {
        self.log.lock().expect("unpoisoned")
    }

    pub(crate) fn fail_next(&self, failure: Failure) {
        self.log().fail_next_append(failure);
    }

    pub(crate) fn press(&self, pressure: Pressure) {
        *self.pressure.lock().expect("unpoisoned") = pressure;
    }
}

impl Log for Faulty {
    fn birth_unix_ms(&self) -> u64 {
        self.log().birth_unix_ms()
    }
    fn segments(&self) -> Vec<Segment> {
        self.log().segments()
    }
    fn tail(&self) -> Position {
        self.log().tail()
    }
    fn tail_time(&self) -> LogTime {
        self.log().tail_time()
    }
    fn applied(&self) -> Result<Position, ReadError> {
        self.log().applied()
    }
    fn saved(&self) -> Arc<dyn SavedState> {
        self.log().saved()
    }
    fn append(&mut self, frame: &Frame) -> Result<(), AppendError> {
        self.log().append(frame)
    }
    fn follow(&self, from: Position, frame: &mut dyn FnMut(Frame)) -> Result<(), FollowError> {
        self.log().follow(from, frame)
    }
    fn is_seal_due(&self) -> bool {
        self.log().is_seal_due()
    }
    fn unsaved_seals(&self) -> usize {
        self.log().unsaved_seals()
    }
    fn seal(&mut self, state: Box<dyn StateDelta>) {
        self.log().seal(state);
    }
    fn pressure(&self) -> Pressure {
        *self.pressure.lock().expect("unpoisoned")
    }
    fn reopen(&mut self) -> Result<(), AppendError> {
        self.log().reopen()
    }
    fn set_floor(&mut self, floor: Position) {
        self.log().set_floor(floor);
    }
    fn proposed_floor(&self, bytes: Option<u64>, time: Option<LogTime>) -> Position {
        self.log().proposed_floor(bytes, time)
    }
    fn set_sieve(&mut self, sieve: Arc<dyn Sieve>) {
        self.log().set_sieve(sieve);
    }
    fn purge(&mut self, upto: Position) -> bool {
        self.log().purge(upto)
    }
    fn figures(&self) -> Figures {
        self.log().figures()
    }
    fn history(&self) -> Arc<dyn History> {
        self.log().history()
    }
    fn close(self: Box<Self>) -> Result<(), ReadError> {
        Ok(())
    }
}

fn message(conversation: u64, id: u64) -> Publish {
    Publish { conversation, message_id: id, content: Bytes::from(format!("m{id}")), ..Publish::default() }
}

/// S5: a commit fails under way; whether its frame is there after reopening or not, a repeat gets one seq for ever, and
/// readers get the entry once.
#[tokio::test]
async fn s5_a_commit_of_unknown_outcome_is_settled_by_repeating_its_id() {
    for failure in [Failure::UnknownAndStored, Failure::UnknownAndLost] {
        let log = Faulty::new();
        let world = World::with_log(Box::new(log.clone())).await;
        let mut alice = world.user("alice").await;
        let mut bob = world.user("bob").await;
        let direct = alice.open_direct("bob").await;
        alice.publish_as(message(direct, 2)).await.expect("acked");
        log.fail_next(failure);
        let refusal = alice.publish_as(message(direct, 3)).await.expect_err("not acked");
        assert_eq!(refusal.reason, Reason::OutcomeUnknown, "{failure:?}");
        // A later id of that conversation waits for the open one.
        let later = alice.publish_as(message(direct, 4)).await.expect_err("after");
        assert_eq!(later.reason, Reason::After, "{failure:?}");
        let repeated = loop {
            match alice.publish_as(message(direct, 3)).await {
                Ok(ack) => break ack,
                Err(refusal) => assert_eq!(refusal.reason, Reason::OutcomeUnknown, "still unknown, not surely absent"),
            }
            sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(repeated.seq, 2, "{failure:?}");
        assert_eq!(alice.publish_as(message(direct, 3)).await.expect("the same"), repeated);
        assert_eq!(alice.publish_as(message(direct, 4)).await.expect("acked").seq, 3);
        let items = bob.until(|item| texts(std::slice::from_ref(item)) == ["m4"]).await;
        assert_eq!(texts(&items), ["m2", "m3", "m4"], "{failure:?}");
    }
}

#[tokio::test]
async fn what_is_surely_not_stored_is_refused_and_accepted_when_repeated() {
    let log = Faulty::new();
    let world = World::with_log(Box::new(log.clone())).await;
    let mut alice = world.user("alice").await;
    let direct = alice.open_direct("bob").await;
    log.fail_next(Failure::NotStored);
    let refusal = alice.publish_as(message(direct, 2)).await.expect_err("refused");
    assert_eq!(refusal.reason, Reason::StoreUnavailable);
    assert!(refusal.retry_after_ms > 0);
    assert_eq!(alice.publish_as(message(direct, 2)).await.expect("acked").seq, 1);
}

#[tokio::test]
async fn after_a_failed_sync_readers_are_served_and_nothing_is_written() {
    let log = Faulty::new();
    let world = World::with_log(Box::new(log.clone())).await;
    let mut alice = world.user("alice").await;
    let direct = alice.open_direct("bob").await;
    alice.publish_as(message(direct, 2)).await.expect("acked");
    log.fail_next(Failure::Sync);
    let refusal = alice.publish_as(message(direct, 3)).await.expect_err("refused");
    assert_eq!(refusal.reason, Reason::OutcomeUnknown);
    sleep(Duration::from_millis(1_200)).await;
    let refusal = alice.publish_as(message(direct, 3)).await.expect_err("refused");
    assert_eq!(refusal.reason, Reason::OutcomeUnknown);
    let page =
        packet::HistoryRequest { conversation: direct, from_seq: 0, limit: 10, backwards: false, compact: false };
    assert_eq!(texts(&alice.history(page).await.expect("readable").items), ["m2"]);
}

/// S13: while sealed memtables are full, publishes are refused for the moment, and acks and heartbeats still pass.
/// SPEC R5.3-4.
#[tokio::test]
async fn s13_under_pressure_publishes_wait_and_everything_else_passes() {
    let log = Faulty::new();
    let world = World::with_log(Box::new(log.clone())).await;
    let mut alice = world.user("alice").await;
    let mut bob = world.user("bob").await;
    let direct = alice.open_direct("bob").await;
    alice.publish_as(message(direct, 2)).await.expect("acked");
    log.press(Pressure::Full);
    let refusal = alice.publish_as(message(direct, 3)).await.expect_err("refused");
    assert_eq!(refusal.reason, Reason::StoreUnavailable);
    assert_eq!(bob.entry(direct).await.seq, 1);
    bob.flush().await;
    let page =
        packet::HistoryRequest { conversation: direct, from_seq: 0, limit: 10, backwards: false, compact: false };
    bob.history(page).await.expect("served");
    log.press(Pressure::Open);
    assert_eq!(alice.publish_as(message(direct, 3)).await.expect("acked").seq, 2);
}

/// R5.4-1: what lies below the first unanswered is settled, and holds up nothing that follows.
#[tokio::test]
async fn an_id_that_the_client_moved_on_from_blocks_nothing() {
    let log = Faulty::new();
    let world = World::with_log(Box::new(log.clone())).await;
    let mut alice = world.user("alice").await;
    let direct = alice.open_direct("bob").await;
    log.press(Pressure::Full);
    alice.publish_as(message(direct, 2)).await.expect_err("refused for now");
    log.press(Pressure::Open);
    assert_eq!(alice.publish_as(message(direct, 3)).await.expect_err("after 2").reason, Reason::After);
    let moved_on = Publish { first_unanswered: 3, ..message(direct, 3) };
    assert_eq!(alice.publish_as(moved_on).await.expect("2 is settled").seq, 1);
}
