//! What a live session does beside carrying bytes: publishes go to the commit thread, lanes are read from outbox and
//! log into the window, requests are answered, acks move the cursor. Reads that need the disk leave the worker thread.

use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use longwire_protocol::packet::{self, Lane};
use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::{BrokerEvent, BrokerSession, ConversationId, LogTime, Millis};

use super::Shared;
use super::admission::token_refusal;
use super::lanes::{Found, Reading};
use super::requests::{Answer, Job, resend, respond};
use crate::auth::Identity;
use crate::mutation::Mutation;
use crate::routing::catch_up::{CatchUp, Plan};
use crate::routing::grants::Bearer;
use crate::routing::limits::SEEN_EVERY_MS;
use crate::routing::ops::{Op, Parting};
use crate::routing::outbox::{Attached, Generation, Session};
use crate::routing::reads::{Miss, Reads};
use crate::routing::rehearsal::has_left;
use crate::routing::resume;
use crate::routing::rows::DeviceCursor;
use crate::routing::stream::Place;
use crate::store::{Position, ReadError};
use crate::tasks::Task;

/// How often a cursor leaves while items flow.
const CURSOR_EVERY_MS: u64 = longwire_protocol::limits::CURSOR_MS;
/// How often the broker stores where a device stands, while that moves.
const STORE_CURSOR_EVERY_MS: u64 = 10_000;
/// The same where the device has itself told while it is away: else a crash has it told of what it acked.
const STORE_TOLD_EVERY_MS: u64 = 1_000;
/// No time: a word where an `Option` takes two.
pub(super) const NEVER: Millis = Millis(u64::MAX);
/// A token's end that is farther away than this is looked at again then: the machine's clock may have been set.
const LOOK_AT_EXPIRY_MS: u64 = 3_600_000;

/// See the module.
pub(super) struct Live {
    pub(super) session: Arc<Session>,
    pub(super) identity: Arc<Identity>,
    /// The authority's generation that the identity was last held against.
    pub(super) believed_at: u64,
    /// The generation of tokens that are good for the device.
    pub(super) generation: Generation,
    /// Tokens made up to then are not.
    pub(super) tokens_until: LogTime,
    /// When the commit thread was last told that the device is here.
    seen_at: Millis,
    /// When to look at the token's end again.
    expiry: Millis,
    pub(super) express: Reading,
    pub(super) bulk: Reading,
    /// The one job that is under way off the worker thread, or waits for it.
    pub(super) jobs: VecDeque<Job>,
    pub(super) away: Option<Task<Done>>,
    /// Items that have to be sent again and are not yet: what is new waits, since the client drops it until then.
    pub(super) resends: u32,
    /// When all that this connection published will be paid for, in nanoseconds, where publishes have a rate.
    pub(super) publishes_paid_at: u64,
    /// Operations on their way to the commit thread: of this turn, or behind those that are being prepared.
    pub(super) ops: Vec<Op>,
    /// What the operations ahead of those look at is being loaded.
    pub(super) preparing: Option<Task<Result<Vec<Op>, ReadError>>>,
    /// Messages into this conversation, if it is one, needed no loading then.
    pub(super) prepared: (ConversationId, Millis),
    pub(super) item_bytes_max: u32,
    pub(super) skips: bool,
    pub(super) cursor: CursorState,
    /// The position of the newest item given to the session, in express and bulk.
    pub(super) given: [Position; 2],
    /// When what is withheld is to be reported, or [`NEVER`].
    pub(super) report_at: Millis,
    /// Something ephemeral waits in the outbox, as of this turn: most turns need not look there for it.
    pub(super) has_ephemeral: bool,
    /// How it ends, if it does now.
    pub(super) parting: Parting,
    /// The backlog of express, and of bulk, ended here, and the `CaughtUp` waits for room.
    pub(super) caught_up: [Option<Position>; 2],
}

/// What is known of where the device stands.
pub(super) struct CursorState {
    /// Where it stands by its acks.
    acked: DeviceCursor,
    /// Whether it acked anything in this session.
    moved: bool,
    stored_at: Millis,
    /// Whether anything was stored in this session.
    was_stored: bool,
    /// What was acked is to be stored a while after what was last, whether or not more is acked by then.
    owes_store: bool,
    /// Something was delivered since the last cursor.
    pub(super) owed: bool,
    sent_at: Millis,
}

impl CursorState {
    fn is_store_due(&self, now: Millis) -> bool {
        self.owes_store && now.since(self.stored_at) >= STORE_TOLD_EVERY_MS
    }

    pub(super) fn is_late(&self, now: Millis) -> bool {
        self.owed && self.sent_at.0 != 0 && now.since(self.sent_at) >= 2 * CURSOR_EVERY_MS
    }
}

/// What came back from the disk.
pub(super) enum Done {
    Planned(Lane, Box<Plan>, Result<CatchUp, Miss>),
    Stepped(Lane, Box<Found>),
    Failed(ReadError),
    Answered(u64, Result<Answer, Miss>),
    Resend { lane: Lane, n: u64, item: Result<Bytes, Miss> },
    News(Vec<packet::Signal>),
    Carried(Result<(), Miss>),
}

impl Live {
    pub(super) fn new(
        attached: Attached,
        (identity, believed_at): (Arc<Identity>, u64),
        skips: bool,
        item_bytes_max: u32,
        now: Millis,
    ) -> Self {
        let nowhere = DeviceCursor { segment: Default::default(), express: Position(0), bulk: Position(0) };
        Self {
            session: attached.session,
            identity,
            believed_at,
            generation: attached.generation,
            tokens_until: attached.tokens_until,
            seen_at: now,
            expiry: now,
            express: Reading::Idle,
            bulk: Reading::Idle,
            jobs: VecDeque::new(),
            away: None,
            resends: 0,
            publishes_paid_at: 0,
            ops: Vec::new(),
            preparing: None,
            prepared: (ConversationId(0), Millis(0)),
            item_bytes_max,
            skips,
            cursor: CursorState {
                acked: nowhere,
                moved: false,
                stored_at: now,
                was_stored: false,
                owes_store: false,
                owed: false,
                sent_at: Millis(0),
            },
            given: [Position(0); 2],
            report_at: NEVER,
            has_ephemeral: true,
            parting: Parting::Lost,
            caught_up: [None; 2],
        }
    }

    /// The session begins at this cursor; each lane's backlog ends with a `CaughtUp`.
    pub(super) fn start(&mut self, cursor: DeviceCursor) {
        self.given = [cursor.express, cursor.bulk];
        self.session.outbox.lock().start(cursor);
    }

    pub(super) fn handle(
        &mut self,
        event: BrokerEvent<Place>,
        wire: &mut BrokerSession<Place>,
        shared: &Shared,
        now: Millis,
    ) {
        match event {
            BrokerEvent::Publish(publish) => self.publish(publish, wire, shared, now),
            BrokerEvent::GiveUp(id) => self.ops.push(Op::GiveUp(Arc::clone(&self.session), id)),
            BrokerEvent::Acked { express, bulk } => self.acked(express, bulk, shared, now),
            BrokerEvent::Request(request) => {
                shared.metrics.requests.inc();
                // Requests see what this session published before them only once it is acked, as SPEC says.
                self.request(request, wire, shared, now);
            }
            BrokerEvent::Signal(signal) => {
                shared.metrics.signals.inc();
                self.signal(signal);
            }
            BrokerEvent::Goodbye { keep_will: false } => self.parting = Parting::Goodbye,
            BrokerEvent::Resend { lane, from_n, places } => {
                shared.metrics.resent.inc_by(places.len() as u64);
                for (n, place) in (from_n..).zip(places) {
                    if !place.conversation.is_some() {
                        // Only entries are read again alone; for the rest the next session resumes from the cursor.
                        return wire.close(Refusal::connection(Reason::AckTimeout));
                    }
                    self.resends += 1;
                    self.jobs.push_back(Job::Resend { lane, n, place });
                }
            }
            BrokerEvent::Connect(_) | BrokerEvent::Goodbye { keep_will: true } => {}
        }
    }

    fn acked(&mut self, express: Option<Place>, bulk: Option<Place>, shared: &Shared, now: Millis) {
        shared.metrics.acks.inc();
        let cursor = &mut self.cursor;
        if !cursor.moved {
            cursor.acked = self.session.outbox.lock().stands;
        }
        cursor.acked.segment = current_segment(shared);
        if let Some(place) = express {
            cursor.acked.express = cursor.acked.express.max(place.position);
        }
        if let Some(place) = bulk {
            cursor.acked.bulk = cursor.acked.bulk.max(place.position);
        }
        if Mutation::StoredCursorTooEarly.is_planted() {
            (cursor.acked.express, cursor.acked.bulk) = (self.given[0], self.given[1]);
        }
        cursor.moved = true;
        let is_told = {
            let mut pending = self.session.outbox.lock();
            (pending.stands, pending.has_acked) = (cursor.acked, true);
            pending.is_told
        };
        shared.registry.deliveries.acked(self.session.user, now);
        // After a crash nobody is told of what it acked, but for the last second: that is worth a rider a second.
        cursor.owes_store |= is_told;
        let since = now.since(cursor.stored_at);
        let is_first = is_told && !cursor.was_stored;
        if is_first || cursor.is_store_due(now) || since >= STORE_CURSOR_EVERY_MS {
            let op = self.store_cursor(now);
            self.ops.push(op);
        }
    }

    fn store_cursor(&mut self, now: Millis) -> Op {
        let cursor = &mut self.cursor;
        (cursor.stored_at, cursor.was_stored, cursor.owes_store) = (now, true, false);
        Op::StoreCursor(Arc::clone(&self.session), cursor.acked)
    }

    /// Moves everything that can move; each lane by at most its window. Returns whether lanes were held, for a cursor or
    /// for what is sent again, and go on once that has left.
    pub(super) fn pump(
        &mut self,
        context: &mut Context<'_>,
        wire: &mut BrokerSession<Place>,
        shared: &Arc<Shared>,
        now: Millis,
    ) -> bool {
        let was_resending = self.resends > 0;
        self.come_back(context, wire, shared, now);
        if self.cursor.is_store_due(now) {
            let op = self.store_cursor(now);
            shared.queue.push_one(op);
        }
        if now >= self.report_at {
            self.report_at = NEVER;
            self.session.outbox.lock().report();
        }
        // Express first: it may let bulk go on.
        for lane in [Lane::Express, Lane::Bulk] {
            self.pump_lane(lane, wire, shared, now);
        }
        self.next_job(wire, shared, now);
        self.look_up_news(wire, shared, now);
        // A job that was just started has to know whom to wake.
        self.come_back(context, wire, shared, now);
        self.holds_for_cursor(now) || (was_resending && self.resends == 0)
    }

    /// Whether a cursor is so late that no more items are given until all that were have left, and it after them.
    pub(super) fn holds_for_cursor(&self, now: Millis) -> bool {
        self.cursor.is_late(now)
    }

    /// Ends the session when its token has expired or was taken back. Looked at once an hour at the least, which is also how
    /// often the device is known to be here.
    pub(super) fn check_identity(&mut self, wire: &mut BrokerSession<Place>, shared: &Shared, now: Millis) {
        let generation = shared.authority.generation();
        if generation != self.believed_at {
            self.believed_at = generation;
            if shared.authority.is_revoked(&self.identity) && !Mutation::RevokedGoesOn.is_planted() {
                self.parting = Parting::Revoked;
                return wire.close(token_refusal(crate::auth::TokenError::Revoked));
            }
        }
        if now.since(self.seen_at) >= SEEN_EVERY_MS {
            self.seen_at = now;
            shared.queue.push_one(Op::See(Arc::clone(&self.session)));
        }
        if self.look_at_expiry(shared, now) && !Mutation::ExpiredGoesOn.is_planted() {
            wire.close(token_refusal(crate::auth::TokenError::Expired));
        }
    }

    /// The token that the session goes by, for what its device left.
    pub(super) fn bear(&self) -> Op {
        let bearer = Bearer { token: self.identity.id.clone(), issued: self.identity.issued };
        Op::Bear(Arc::clone(&self.session), bearer)
    }

    /// The session goes by another token than what its device left may have been left with.
    pub(super) fn bear_what_was_left(&self, shared: &Shared) {
        let has_left = {
            let state = shared.state.read().unwrap_or_else(PoisonError::into_inner);
            has_left(&state, self.session.user, self.session.device)
        };
        if has_left {
            shared.queue.push_one(self.bear());
        }
    }

    /// Whether the token has expired; if not, when to look again.
    pub(super) fn look_at_expiry(&mut self, shared: &Shared, now: Millis) -> bool {
        let left = self.identity.expires.saturating_mul(1_000).saturating_sub(shared.clock.unix_ms());
        self.expiry = now.after(left.min(LOOK_AT_EXPIRY_MS));
        left == 0
    }

    /// Takes over what came back from the disk.
    fn come_back(
        &mut self,
        context: &mut Context<'_>,
        wire: &mut BrokerSession<Place>,
        shared: &Arc<Shared>,
        now: Millis,
    ) {
        while let Some(preparing) = &mut self.preparing {
            let Poll::Ready(prepared) = Pin::new(preparing).poll(context) else { break };
            self.preparing = None;
            let Ok(Ok(ops)) = prepared else {
                // Nobody knows what became of these, and what came behind would overtake them.
                self.ops.retain(|op| !matches!(op, Op::Publish(_)));
                return match prepared {
                    Ok(Err(error)) => drop(fail(wire, &error)),
                    _ => wire.close(Refusal::connection(Reason::Internal)),
                };
            };
            let behind = std::mem::replace(&mut self.ops, ops);
            if shared.queue.push(&mut self.ops) {
                self.ops = behind;
                self.flush_ops(wire, shared, now);
            } else {
                // What came behind goes the same way, or it would overtake.
                self.ops.extend(behind);
                self.queue_ops(wire, shared);
            }
        }
        while let Some(away) = &mut self.away {
            let Poll::Ready(done) = Pin::new(away).poll(context) else { return };
            self.away = None;
            match done {
                Ok(Done::Planned(lane, plan, done)) => {
                    *self.reading(lane) = Reading::Idle;
                    self.planned(lane, plan, done, wire, shared);
                }
                Ok(Done::Stepped(lane, found)) => {
                    // Given below, unless something else has to be sent again first.
                    *self.reading(lane) = Reading::Found(found);
                }
                Ok(Done::News(signals)) => self.put_news(signals),
                Ok(Done::Carried(Err(Miss::Failed(error))) | Done::Failed(error)) => drop(fail(wire, &error)),
                Ok(Done::Carried(Ok(()) | Err(Miss::Disk))) => {}
                Ok(Done::Answered(id, answer)) => respond(id, answer, wire),
                Ok(Done::Resend { lane, n, item }) => {
                    self.resends -= 1;
                    resend(lane, n, item, wire, now);
                }
                Err(_) => wire.close(Refusal::connection(Reason::Internal)),
            }
            for lane in [Lane::Express, Lane::Bulk] {
                self.pump_lane(lane, wire, shared, now);
            }
            self.next_job(wire, shared, now);
        }
    }

    /// Everything given has left: a cursor that covers just that may leave now, once something was delivered and at most
    /// once a second (SPEC R6.3-4). Returns whether it does.
    pub(super) fn send_cursor(&mut self, wire: &mut BrokerSession<Place>, shared: &Shared, now: Millis) -> bool {
        let is_early = self.cursor.sent_at.0 != 0 && now.since(self.cursor.sent_at) < CURSOR_EVERY_MS;
        if !self.cursor.owed || is_early || wire.is_closed() {
            return false;
        }
        self.cursor.owed = false;
        self.cursor.sent_at = now;
        let cursor = {
            let pending = self.session.outbox.lock();
            DeviceCursor {
                segment: current_segment(shared),
                express: pending.express.sent(),
                bulk: pending.bulk.sent(),
            }
        };
        let cursor = match Mutation::CursorTooEarly.is_planted() {
            true => DeviceCursor { bulk: Position(cursor.bulk.0 + 1), ..cursor },
            false => cursor,
        };
        wire.cursor(resume::encode(&cursor).into());
        true
    }

    /// Whether a client waits for something that could be worked on, and nothing works.
    pub(super) fn has_jobs(&self, shared: &Shared, now: Millis) -> bool {
        self.away.is_none() && self.job_to_do(shared, now).is_some()
    }

    /// When something is to be done without being asked: a cursor, the token's end, or a request that had to wait.
    pub(super) fn deadline(&self, shared: &Shared, now: Millis) -> Millis {
        let cursor = &self.cursor;
        let sent = if cursor.owed { cursor.sent_at.after(CURSOR_EVERY_MS) } else { NEVER };
        let stored = if cursor.owes_store { cursor.stored_at.after(STORE_TOLD_EVERY_MS) } else { NEVER };
        let reads = self.reads_at(shared, now).unwrap_or(NEVER);
        self.expiry.min(self.report_at).min(sent).min(stored).min(reads)
    }

    /// The connection is over. Publishes behind others that are still being prepared are not stored: they would overtake.
    pub(super) fn end(self, shared: &Shared) {
        for op in self.ops {
            if self.preparing.is_none() || !matches!(op, Op::Publish(_)) {
                shared.queue.push_one(op);
            }
        }
        let cursor = self.cursor.moved.then_some(self.cursor.acked);
        let is_drained = shared.draining.load(Ordering::Relaxed) && self.parting == Parting::Lost;
        let parting = if is_drained { Parting::Drained } else { self.parting };
        shared.queue.push_one(Op::Detach(self.session, cursor, parting));
    }
}

/// Reads that never block.
pub(super) fn quick(shared: &Shared) -> Reads<'_> {
    Reads { history: &*shared.history, state: &shared.state, now: shared.clock.latest(), may_block: false, looks: None }
}

/// Reads that may block on the disk.
pub(super) fn blocking(shared: &Shared) -> Reads<'_> {
    Reads { may_block: true, ..quick(shared) }
}

pub(super) fn fail(wire: &mut BrokerSession<Place>, error: &crate::store::ReadError) -> bool {
    tracing::error!(%error, "the store cannot be read");
    wire.close(Refusal::connection(Reason::Internal));
    false
}

fn current_segment(shared: &Shared) -> crate::store::SegmentId {
    shared.segments.last().map_or_else(Default::default, |segment| segment.id)
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use longwire_protocol::{BrokerLimits, Seq};

    use super::*;
    use crate::net::testing::{live, shared};
    use crate::store::MemoryLog;

    /// What was asked to be stored of acks in express, one each hundred milliseconds up to `acks_until`, by `until`: when, and
    /// up to where.
    fn stored(is_told: bool, acks_until: u64, until: u64) -> Vec<(u64, u64)> {
        let shared = shared(&MemoryLog::new(0, usize::MAX));
        let mut wire = BrokerSession::new(Millis(0), BrokerLimits::default());
        let mut live = live(Arc::new(Session::of_test()), &shared);
        live.session.outbox.lock().is_told = is_told;
        let mut context = Context::from_waker(Waker::noop());
        let (mut asked, mut group) = (Vec::new(), Vec::new());
        for ms in (100..=until).step_by(100) {
            let place = Place { position: Position(ms), conversation: ConversationId(1), seq: Seq(ms) };
            if ms <= acks_until {
                live.acked(Some(place), None, &shared, Millis(ms));
                shared.queue.push(&mut live.ops);
            }
            // As a connection does when the wheel wakes it.
            if live.deadline(&shared, Millis(ms)) <= Millis(ms) {
                live.pump(&mut context, &mut wire, &shared, Millis(ms));
            }
            shared.queue.take_now(&mut group);
            for op in group.drain(..) {
                let Op::StoreCursor(_, cursor) = op else { panic!("{op:?}") };
                asked.push((ms, cursor.express.0));
            }
        }
        asked
    }

    /// R17-6: a device that has itself told while it is away is believed the acks before the last second, and costs a rider
    /// a second, however often it acks; the last one is stored though nothing follows.
    #[test]
    fn acks_of_a_device_that_is_told_are_stored_once_a_second() {
        assert_eq!(stored(true, 2_500, 9_000), [(100, 100), (1_100, 1_100), (2_100, 2_100), (3_100, 2_500)]);
        assert_eq!(stored(true, 100, 9_000), [(100, 100)], "once");
        assert_eq!(stored(false, 25_000, 60_000), [(10_000, 10_000), (20_000, 20_000)]);
    }
}
