//! What a live session does beside carrying bytes: publishes go to the commit thread, lanes are read from outbox and
//! log into the window, requests are answered, acks move the cursor. Reads that need the disk leave the worker thread.

use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, HeadReason, Lane, request, response};
use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::{BrokerEvent, BrokerSession, ConversationId, MessageId, Millis, Seq, UserId};

use super::Shared;
use super::connection::{grants, token_refusal};
use crate::auth::Identity;
use crate::routing::catch_up::{CatchUp, Miss, Plan, Reads, Room, Step};
use crate::routing::core::{Op, Publish, digest};
use crate::routing::feed::{caught_up_item, head_item, item_for, progress_item};
use crate::routing::limits::{PROGRESS_POSITIONS, USERS_MAX, WATCHES_MAX};
use crate::routing::loading::load;
use crate::routing::outbox::{Attached, Session};
use crate::routing::query::{self, Visible};
use crate::routing::rehearsal::rehearse;
use crate::routing::resume;
use crate::routing::rows::{DeviceCursor, Kind};
use crate::routing::stream::{Place, Ready, Turn};
use crate::routing::view::Rows as _;
use crate::store::{PageLimit, Position, ReadError};
use crate::tasks::Task;

/// How often a cursor leaves while items flow.
const CURSOR_EVERY_MS: u64 = longwire_protocol::limits::CURSOR_MS;
/// How long messages into a conversation need no look whether their rows are at hand: shorter than rows are kept.
const PREPARED_FOR_MS: u64 = 30_000;
/// How often the broker stores where a device stands, while that moves.
const STORE_CURSOR_EVERY_MS: u64 = 10_000;

/// See the module.
pub(super) struct Live {
    session: Arc<Session>,
    identity: Arc<Identity>,
    /// The authority's generation that the identity was last held against.
    believed_at: u64,
    express: Reader,
    bulk: Reader,
    /// The one job that is under way off the worker thread, or waits for it.
    jobs: VecDeque<Job>,
    away: Option<Task<Done>>,
    /// Operations on their way to the commit thread: of this turn, or behind those that are being prepared.
    ops: Vec<Op>,
    /// What the operations ahead of those look at is being loaded.
    preparing: Option<Task<Vec<Op>>>,
    /// Messages into this conversation needed no loading then.
    prepared: Option<(ConversationId, Millis)>,
    published: Option<(MessageId, MessageId)>,
    item_bytes_max: usize,
    skips: bool,
    cursor: CursorState,
    /// The position of the newest item given to the session, in express and bulk.
    given: [Position; 2],
    /// The backlog of express, and of bulk, ended here, and the `CaughtUp` waits for room.
    caught_up: [Option<Position>; 2],
}

/// What is known of where the device stands.
struct CursorState {
    /// Where it stands by its acks.
    acked: DeviceCursor,
    /// Whether it acked anything in this session.
    moved: bool,
    stored_at: Millis,
    /// Something was delivered since the last cursor.
    owed: bool,
    sent_at: Millis,
}

/// How a lane is read.
enum Reader {
    /// From the outbox.
    Idle,
    /// There is something to read in the log; what is still to be found out.
    Turning(Turning),
    /// What to read is known, where each conversation goes on is not.
    Planned(Plan),
    /// From the log.
    Reading(CatchUp),
    /// The disk is asked, off this thread.
    Away,
}

/// A lane's turn through the log.
struct Turning {
    turn: Turn,
    sent: Position,
    is_express: bool,
    skips: bool,
}

impl Turning {
    fn plan(&self, reads: Reads<'_>, session: &Session) -> Result<Plan, Miss> {
        reads.rows(|rows| Plan::new(rows, session, &self.turn, self.sent, self.is_express, self.skips))
    }
}

/// What has to be read for a client.
enum Job {
    Request(u64, request::Op),
    Resend { lane: Lane, n: u64, place: Place },
}

/// What came back from the disk.
enum Done {
    Planned(Lane, Plan, Result<CatchUp, Miss>),
    Stepped(Lane, CatchUp, Vec<Ready>, Result<Step, Miss>),
    Failed(ReadError),
    Answered(u64, Result<Answer, Miss>),
    Resend { lane: Lane, n: u64, item: Result<Bytes, Miss> },
}

impl Live {
    pub(super) fn new(
        attached: Attached,
        identity: Arc<Identity>,
        skips: bool,
        item_bytes_max: usize,
        shared: &Shared,
        now: Millis,
    ) -> Self {
        let nowhere = DeviceCursor { segment: Default::default(), express: Position(0), bulk: Position(0) };
        Self {
            session: attached.session,
            identity,
            believed_at: shared.authority.generation(),
            express: Reader::Idle,
            bulk: Reader::Idle,
            jobs: VecDeque::new(),
            away: None,
            ops: Vec::new(),
            preparing: None,
            prepared: None,
            published: None,
            item_bytes_max,
            skips,
            cursor: CursorState { acked: nowhere, moved: false, stored_at: now, owed: false, sent_at: Millis(0) },
            given: [Position(0); 2],
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
            BrokerEvent::Publish(publish) => self.publish(publish, shared),
            BrokerEvent::GiveUp(id) => self.ops.push(Op::GiveUp(Arc::clone(&self.session), id)),
            BrokerEvent::Acked { express, bulk } => self.acked(express, bulk, shared, now),
            BrokerEvent::Request(request) => {
                // Requests see what this session published before them only once it is acked, as SPEC says.
                self.request(request, wire, shared);
            }
            BrokerEvent::Resend { lane, from_n, places } => {
                for (n, place) in (from_n..).zip(places) {
                    if !place.conversation.is_some() {
                        // Only entries are read again alone; for the rest the next session resumes from the cursor.
                        return wire.close(Refusal::connection(Reason::AckTimeout));
                    }
                    self.jobs.push_back(Job::Resend { lane, n, place });
                }
            }
            BrokerEvent::Connect(_) | BrokerEvent::Goodbye => {}
        }
    }

    fn publish(&mut self, publish: packet::Publish, shared: &Shared) {
        let id = MessageId(publish.message_id);
        self.published = Some(self.published.map_or((id, id), |(low, high)| (low.min(id), high.max(id))));
        let mark_countable = match &publish.action {
            Some(Action::SetMark(set)) => {
                countable_at(quick(shared), ConversationId(publish.conversation), Seq(set.seq)).ok()
            }
            _ => None,
        };
        let digest = digest(&publish);
        let session = Arc::clone(&self.session);
        self.ops.push(Op::Publish(Publish { session, publish, digest, mark_countable }));
    }

    /// Hands this turn's operations to the commit thread, once what they look at is at hand: the commit thread shall not
    /// wait for the disk.
    pub(super) fn flush_ops(&mut self, wire: &mut BrokerSession<Place>, shared: &Arc<Shared>, now: Millis) {
        if let Some(published) = self.published {
            self.session.outbox.lock().published = Some(published);
        }
        if self.ops.is_empty() || self.preparing.is_some() {
            return;
        }
        if self.is_prepared(shared, now) {
            return self.queue_ops(wire, shared);
        }
        let (shared_too, mut ops) = (Arc::clone(shared), std::mem::take(&mut self.ops));
        self.preparing = Some(shared.tasks.run(move || {
            prepare(&shared_too, &mut ops);
            ops
        }));
    }

    /// Queues the operations, or refuses them all when the queue is full.
    fn queue_ops(&mut self, wire: &mut BrokerSession<Place>, shared: &Shared) {
        if self.ops.is_empty() || shared.queue.push(&mut self.ops) {
            return;
        }
        for op in self.ops.drain(..) {
            match op {
                Op::Publish(publish) => {
                    let id = MessageId(publish.publish.message_id);
                    wire.refuse(Refusal::publish(id, Reason::Overloaded).retry_after(500));
                }
                other => shared.queue.push_one(other),
            }
        }
    }

    fn is_prepared(&mut self, shared: &Shared, now: Millis) -> bool {
        let mut state = None;
        for op in &self.ops {
            let Op::Publish(publish) = op else { continue };
            let conversation = ConversationId(publish.publish.conversation);
            let is_message = publish.publish.action.is_none();
            let was_prepared = |(known, then): (_, Millis)| known == conversation && now.since(then) < PREPARED_FOR_MS;
            if is_message && self.prepared.is_some_and(was_prepared) {
                continue;
            }
            let is_mark = matches!(publish.publish.action, Some(Action::SetMark(_)));
            let state = state.get_or_insert_with(|| shared.state.read().unwrap_or_else(PoisonError::into_inner));
            if !rehearse(state, publish).is_empty() || (is_mark && publish.mark_countable.is_none()) {
                return false;
            }
            if is_message {
                self.prepared = Some((conversation, now));
            }
        }
        true
    }

    fn acked(&mut self, express: Option<Place>, bulk: Option<Place>, shared: &Shared, now: Millis) {
        let cursor = &mut self.cursor;
        if !cursor.moved {
            cursor.acked = self.session.outbox.lock().started;
        }
        cursor.acked.segment = current_segment(shared);
        if let Some(place) = express {
            cursor.acked.express = cursor.acked.express.max(place.position);
        }
        if let Some(place) = bulk {
            cursor.acked.bulk = cursor.acked.bulk.max(place.position);
        }
        cursor.moved = true;
        self.session.outbox.lock().acked = Some(cursor.acked);
        if now.since(cursor.stored_at) >= STORE_CURSOR_EVERY_MS {
            cursor.stored_at = now;
            self.ops.push(Op::StoreCursor(Arc::clone(&self.session), cursor.acked));
        }
    }

    fn request(&mut self, request: packet::Request, wire: &mut BrokerSession<Place>, shared: &Shared) {
        let id = request.id;
        match request.op {
            Some(request::Op::Refresh(refresh)) => match self.refresh(&refresh, shared) {
                Ok(answer) => {
                    wire.respond(packet::Response { id, result: Some(response::Result::Refresh(answer)) });
                }
                Err(refusal) => wire.refuse(Refusal { request: id, ..refusal }),
            },
            Some(op) => self.jobs.push_back(Job::Request(id, op)),
            None => wire.refuse(Refusal { request: id, ..Refusal::connection(Reason::Unsupported) }),
        }
    }

    fn refresh(&mut self, refresh: &packet::RefreshRequest, shared: &Shared) -> Result<packet::RefreshAnswer, Refusal> {
        let identity =
            shared.authority.verify(&refresh.token, shared.clock.unix_ms() / 1_000).map_err(token_refusal)?;
        if identity.user != self.identity.user || identity.device != self.identity.device {
            let refusal = Refusal::connection(Reason::Forbidden);
            return Err(refusal.because("the token is for another user or device"));
        }
        self.session.grants.store(Arc::new(grants(&identity)));
        let expires_in_ms = identity.expires.saturating_mul(1_000).saturating_sub(shared.clock.unix_ms());
        self.identity = Arc::new(identity);
        Ok(packet::RefreshAnswer { expires_in_ms })
    }

    /// Moves everything that can move; each lane by at most its window. Returns whether lanes were held for a cursor, and
    /// go on once it has left.
    pub(super) fn pump(
        &mut self,
        context: &mut Context<'_>,
        wire: &mut BrokerSession<Place>,
        shared: &Arc<Shared>,
        now: Millis,
    ) -> bool {
        self.check_identity(wire, shared);
        self.come_back(context, wire, shared, now);
        for lane in [Lane::Express, Lane::Bulk] {
            self.pump_lane(lane, wire, shared, now);
        }
        // Express may have let bulk go on.
        self.pump_lane(Lane::Bulk, wire, shared, now);
        self.next_job(wire, shared, now);
        // A job that was just started has to know whom to wake.
        self.come_back(context, wire, shared, now);
        self.holds_for_cursor(now)
    }

    /// Whether a cursor is so late that no more items are given until all that were have left, and it after them.
    fn holds_for_cursor(&self, now: Millis) -> bool {
        self.cursor.owed && self.cursor.sent_at.0 != 0 && now.since(self.cursor.sent_at) >= 2 * CURSOR_EVERY_MS
    }

    fn check_identity(&mut self, wire: &mut BrokerSession<Place>, shared: &Shared) {
        let generation = shared.authority.generation();
        if generation != self.believed_at {
            self.believed_at = generation;
            if shared.authority.is_revoked(&self.identity) {
                return wire.close(token_refusal(crate::auth::TokenError::Revoked));
            }
        }
        if self.identity.expires <= shared.clock.unix_ms() / 1_000 {
            wire.close(token_refusal(crate::auth::TokenError::Expired));
        }
    }

    fn reader(&mut self, lane: Lane) -> &mut Reader {
        match lane {
            Lane::Express => &mut self.express,
            Lane::Bulk => &mut self.bulk,
        }
    }

    fn pump_lane(&mut self, lane: Lane, wire: &mut BrokerSession<Place>, shared: &Arc<Shared>, now: Millis) {
        let is_express = lane == Lane::Express;
        loop {
            let room = wire.room(lane);
            if room.items == 0 || wire.is_closed() || self.holds_for_cursor(now) {
                return;
            }
            match std::mem::replace(self.reader(lane), Reader::Idle) {
                Reader::Idle => match self.next_ready(is_express, &room, shared) {
                    Next::Ready(ready) => self.give(lane, ready, wire, now),
                    Next::Turn(turning) => *self.reader(lane) = Reader::Turning(turning),
                    Next::Nothing => return,
                },
                Reader::Turning(turning) => {
                    if !self.turn(lane, turning, wire, shared) {
                        return;
                    }
                }
                Reader::Away => {
                    *self.reader(lane) = Reader::Away;
                    return;
                }
                Reader::Planned(plan) => {
                    let done = CatchUp::begin(&plan, quick(shared));
                    if !self.planned(lane, plan, done, wire, shared) {
                        return;
                    }
                }
                Reader::Reading(mut catch_up) => {
                    let mut out = Vec::new();
                    let express_sent = self.session.outbox.lock().express.sent();
                    let mut left = room_left(&room);
                    let step = catch_up.step(quick(shared), &self.session, &mut left, express_sent, &mut out);
                    if !self.stepped(lane, catch_up, out, step, wire, shared, now) {
                        return;
                    }
                }
            }
        }
    }

    /// What an idle lane does next: an item that is ready, or a turn through the log.
    fn next_ready(&mut self, is_express: bool, room: &longwire_protocol::Room, shared: &Shared) -> Next {
        // Read before the lane is locked: everything up to here was pushed already.
        let fed = Position(shared.fed.load(std::sync::atomic::Ordering::Acquire));
        if let Some(position) = self.caught_up[usize::from(!is_express)] {
            let item = caught_up_item();
            if !room.admits(item.len()) {
                return Next::Nothing;
            }
            self.caught_up[usize::from(!is_express)] = None;
            let place = Place { position, conversation: ConversationId(0), seq: Seq(0) };
            return Next::Ready(Ready { place, item });
        }
        let mut pending = self.session.outbox.lock();
        let lane = pending.lane(is_express);
        if let Some(ready) = lane.take(room.bytes as usize, room.bytes == u32::MAX) {
            return Next::Ready(ready);
        }
        let Some(turn) = lane.begin_turn() else {
            lane.pass(fed);
            let given = &mut self.given[usize::from(!is_express)];
            let item = progress_item();
            // Only a lane with nothing ready: else what waits for room lies below.
            if !lane.has_work() && fed.0 > given.0 + PROGRESS_POSITIONS && room.admits(item.len()) {
                let place = Place { position: fed, conversation: ConversationId(0), seq: Seq(0) };
                return Next::Ready(Ready { place, item });
            }
            return Next::Nothing;
        };
        let sent = lane.sent();
        let skips = self.skips && pending.owes_caught_up[usize::from(!is_express)];
        Next::Turn(Turning { turn, sent, is_express, skips })
    }

    /// Finds out what a turn has to read. Returns whether the lane can go on at once.
    fn turn(&mut self, lane: Lane, turning: Turning, wire: &mut BrokerSession<Place>, shared: &Arc<Shared>) -> bool {
        match turning.plan(quick(shared), &self.session) {
            Ok(plan) => {
                *self.reader(lane) = Reader::Planned(plan);
                true
            }
            Err(Miss::Disk) if self.away.is_some() => {
                *self.reader(lane) = Reader::Turning(turning);
                false
            }
            Err(Miss::Disk) => {
                *self.reader(lane) = Reader::Away;
                let (shared_too, session) = (Arc::clone(shared), Arc::clone(&self.session));
                self.away = Some(shared.tasks.run(move || match turning.plan(blocking(&shared_too), &session) {
                    Ok(plan) => {
                        let begun = CatchUp::begin(&plan, blocking(&shared_too));
                        Done::Planned(lane, plan, begun)
                    }
                    Err(Miss::Failed(error)) => Done::Failed(error),
                    Err(Miss::Disk) => Done::Failed(ReadError("a read that may block did not".into())),
                }));
                false
            }
            Err(Miss::Failed(error)) => fail(wire, &error),
        }
    }

    /// Takes over what a plan led to. Returns whether the lane can go on at once.
    fn planned(
        &mut self,
        lane: Lane,
        plan: Plan,
        done: Result<CatchUp, Miss>,
        wire: &mut BrokerSession<Place>,
        shared: &Arc<Shared>,
    ) -> bool {
        match done {
            Ok(catch_up) => {
                *self.reader(lane) = Reader::Reading(catch_up);
                true
            }
            Err(Miss::Disk) => {
                if self.away.is_some() {
                    *self.reader(lane) = Reader::Planned(plan);
                    return false;
                }
                *self.reader(lane) = Reader::Away;
                let shared_too = Arc::clone(shared);
                self.away = Some(shared.tasks.run(move || {
                    let done = CatchUp::begin(&plan, blocking(&shared_too));
                    Done::Planned(lane, plan, done)
                }));
                false
            }
            Err(Miss::Failed(error)) => fail(wire, &error),
        }
    }

    /// Takes over what a step gave. Returns whether the lane can go on at once.
    #[expect(clippy::too_many_arguments, reason = "the parts of one step, handed over once")]
    fn stepped(
        &mut self,
        lane: Lane,
        mut catch_up: CatchUp,
        out: Vec<Ready>,
        step: Result<Step, Miss>,
        wire: &mut BrokerSession<Place>,
        shared: &Arc<Shared>,
        now: Millis,
    ) -> bool {
        let is_express = lane == Lane::Express;
        if let Some(last) = out.last() {
            self.session.outbox.lock().lane(is_express).advance(last.place.position);
        }
        let has_given = !out.is_empty();
        for ready in out {
            self.give(lane, ready, wire, now);
        }
        match step {
            Ok(Step::Done(target)) => {
                let mut pending = self.session.outbox.lock();
                pending.lane(is_express).end_turn(target);
                if std::mem::take(&mut pending.owes_caught_up[usize::from(!is_express)]) {
                    self.caught_up[usize::from(!is_express)] = Some(target);
                }
                true
            }
            Ok(Step::Full) => {
                *self.reader(lane) = Reader::Reading(catch_up);
                // Into an empty window goes one item of any size; then its bytes are counted anew.
                has_given
            }
            Ok(Step::Waits(_)) => {
                *self.reader(lane) = Reader::Reading(catch_up);
                false
            }
            Err(Miss::Disk) => {
                if self.away.is_some() {
                    *self.reader(lane) = Reader::Reading(catch_up);
                    return false;
                }
                *self.reader(lane) = Reader::Away;
                let (shared_too, session) = (Arc::clone(shared), Arc::clone(&self.session));
                let room = wire.room(lane);
                self.away = Some(shared.tasks.run(move || {
                    let mut out = Vec::new();
                    let express_sent = session.outbox.lock().express.sent();
                    let step =
                        catch_up.step(blocking(&shared_too), &session, &mut room_left(&room), express_sent, &mut out);
                    Done::Stepped(lane, catch_up, out, step)
                }));
                false
            }
            Err(Miss::Failed(error)) => fail(wire, &error),
        }
    }

    /// Hands an item to the session; one that the client cannot hold becomes a `Head`.
    fn give(&mut self, lane: Lane, ready: Ready, wire: &mut BrokerSession<Place>, now: Millis) {
        let Ready { place, item } = ready;
        self.cursor.owed = true;
        self.given[usize::from(lane == Lane::Bulk)] = place.position;
        wire.deliver(now, lane, place, &fit(place, item, self.item_bytes_max));
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
            let Ok(ops) = prepared else { return wire.close(Refusal::connection(Reason::Internal)) };
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
                    *self.reader(lane) = Reader::Idle;
                    self.planned(lane, plan, done, wire, shared);
                }
                Ok(Done::Stepped(lane, catch_up, out, step)) => {
                    *self.reader(lane) = Reader::Idle;
                    self.stepped(lane, catch_up, out, step, wire, shared, now);
                }
                Ok(Done::Failed(error)) => drop(fail(wire, &error)),
                Ok(Done::Answered(id, answer)) => respond(id, answer, wire),
                Ok(Done::Resend { lane, n, item }) => resend(lane, n, item, wire, now),
                Err(_) => wire.close(Refusal::connection(Reason::Internal)),
            }
            for lane in [Lane::Express, Lane::Bulk] {
                self.pump_lane(lane, wire, shared, now);
            }
            self.next_job(wire, shared, now);
        }
    }

    /// Starts on what clients wait for, one after another.
    fn next_job(&mut self, wire: &mut BrokerSession<Place>, shared: &Arc<Shared>, now: Millis) {
        // A client that does not read its answers gets no more of them.
        while self.away.is_none()
            && !wire.has_answers_waiting()
            && let Some(job) = self.jobs.pop_front()
        {
            let max = self.item_bytes_max;
            match job {
                Job::Request(id, op) => match answer(shared, &self.session, &op, quick(shared)) {
                    Err(Miss::Disk) => {
                        let (shared_too, session) = (Arc::clone(shared), Arc::clone(&self.session));
                        self.away = Some(shared.tasks.run(move || {
                            Done::Answered(id, answer(&shared_too, &session, &op, blocking(&shared_too)))
                        }));
                    }
                    answer => respond(id, answer, wire),
                },
                Job::Resend { lane, n, place } => match read_again(quick(shared), &self.session, place, max) {
                    Err(Miss::Disk) => {
                        let (shared_too, session) = (Arc::clone(shared), Arc::clone(&self.session));
                        self.away = Some(shared.tasks.run(move || Done::Resend {
                            lane,
                            n,
                            item: read_again(blocking(&shared_too), &session, place, max),
                        }));
                    }
                    item => resend(lane, n, item, wire, now),
                },
            }
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
        wire.cursor(resume::encode(&cursor).into());
        true
    }

    /// Whether a client waits for something that nothing works on.
    pub(super) fn has_jobs(&self) -> bool {
        self.away.is_none() && !self.jobs.is_empty()
    }

    /// When something is to be done without being asked.
    pub(super) fn deadline(&self) -> Option<Millis> {
        self.cursor.owed.then(|| self.cursor.sent_at.after(CURSOR_EVERY_MS))
    }

    /// The connection is over. Publishes behind others that are still being prepared are not stored: they would overtake.
    pub(super) fn end(self, shared: &Shared) {
        for op in self.ops {
            if self.preparing.is_none() || !matches!(op, Op::Publish(_)) {
                shared.queue.push_one(op);
            }
        }
        let cursor = self.cursor.moved.then_some(self.cursor.acked);
        shared.queue.push_one(Op::Detach(self.session, cursor));
    }
}

enum Next {
    Ready(Ready),
    Turn(Turning),
    Nothing,
}

/// Reads that never block.
fn quick(shared: &Shared) -> Reads<'_> {
    Reads { history: &*shared.history, state: &shared.state, may_block: false }
}

/// Reads that may block on the disk.
fn blocking(shared: &Shared) -> Reads<'_> {
    Reads { may_block: true, ..quick(shared) }
}

/// Loads what operations look at. What cannot be read, the commit thread finds out and refuses.
fn prepare(shared: &Shared, ops: &mut [Op]) {
    for op in ops {
        let Op::Publish(publish) = op else { continue };
        if let Some(Action::SetMark(set)) = &publish.publish.action
            && publish.mark_countable.is_none()
        {
            let conversation = ConversationId(publish.publish.conversation);
            publish.mark_countable = countable_at(blocking(shared), conversation, Seq(set.seq)).ok();
        }
        loop {
            let cold = rehearse(&shared.state.read().unwrap_or_else(PoisonError::into_inner), publish);
            if cold.is_empty() {
                break;
            }
            if let Err(error) = load(&shared.state, &cold) {
                tracing::error!(%error, "rows of state cannot be read");
                break;
            }
        }
    }
}

fn room_left(room: &longwire_protocol::Room) -> Room {
    let is_empty = room.bytes == u32::MAX;
    Room { items: room.items as usize, bytes: if is_empty { 0 } else { room.bytes as usize }, is_empty }
}

fn fail(wire: &mut BrokerSession<Place>, error: &crate::store::ReadError) -> bool {
    tracing::error!(%error, "the store cannot be read");
    wire.close(Refusal::connection(Reason::Internal));
    false
}

/// The answer to a request.
enum Answer {
    Result(response::Result),
    History(query::Page),
    Refused(Refusal),
}

impl<T> From<Result<T, Refusal>> for Answer
where
    Answer: From<T>,
{
    fn from(result: Result<T, Refusal>) -> Self {
        result.map_or_else(Self::Refused, Self::from)
    }
}

impl From<response::Result> for Answer {
    fn from(result: response::Result) -> Self {
        Self::Result(result)
    }
}

/// Answers a request from the state and the log.
fn answer(shared: &Shared, session: &Arc<Session>, op: &request::Op, reads: Reads<'_>) -> Result<Answer, Miss> {
    Ok(match op {
        request::Op::History(request) => {
            match reads.rows(|rows| Visible::of(rows, session, ConversationId(request.conversation)))? {
                Ok(visible) => Answer::History(query::history(reads, &visible, request)?),
                Err(refusal) => Answer::Refused(refusal),
            }
        }
        request::Op::Conversations(request) => {
            let page = reads.rows(|rows| query::conversations(rows, session, request))?;
            Answer::Result(response::Result::Conversations(page))
        }
        request::Op::Members(request) => {
            let page = reads.rows(|rows| query::members(rows, session, request))?;
            page.map(response::Result::Members).into()
        }
        request::Op::Users(request) => {
            // Anew for each, since each may cost a walk over all conversations of one of the two.
            let named = |user: &u64| reads.rows(|rows| query::user(rows, session, UserId(*user)));
            let users: Vec<_> = request.users.iter().take(USERS_MAX).map(named).collect::<Result<_, _>>()?;
            let users = users.into_iter().flatten().collect();
            Answer::Result(response::Result::Users(packet::UsersPage { users }))
        }
        request::Op::Watch(request) => {
            reads.rows(|rows| watch(shared, session, request, rows))?.map(response::Result::Watch).into()
        }
        request::Op::Refresh(_) => Answer::Refused(Refusal::connection(Reason::Unsupported)),
    })
}

/// Watches a channel, or ceases to. The rows are held meanwhile, so that nothing comes in between the head that is
/// answered and the first entry that is sent.
fn watch(
    shared: &Shared,
    session: &Arc<Session>,
    request: &packet::WatchRequest,
    rows: &crate::routing::view::Reader<'_>,
) -> Result<packet::WatchAnswer, Refusal> {
    let id = ConversationId(request.conversation);
    let unknown = || Refusal::connection(Reason::UnknownConversation);
    let channel = rows.conversation(id).filter(|c| c.kind == Kind::Channel).ok_or_else(unknown)?;
    if !session.grants.load().read.admit(&channel.label) {
        return Err(unknown());
    }
    let mut pending = session.outbox.lock();
    if request.stop {
        pending.watching.retain(|watched| *watched != id);
        drop(pending);
        shared.registry.unwatch(id, session);
    } else {
        if pending.watching.len() >= WATCHES_MAX && !pending.watching.contains(&id) {
            return Err(Refusal::connection(Reason::QuotaExceeded));
        }
        if !pending.watching.contains(&id) {
            pending.watching.push(id);
        }
        drop(pending);
        shared.registry.watch(id, session);
    }
    Ok(packet::WatchAnswer { head_seq: channel.head.seq.0 })
}

fn respond(id: u64, answer: Result<Answer, Miss>, wire: &mut BrokerSession<Place>) {
    match answer {
        Ok(Answer::Result(result)) => wire.respond(packet::Response { id, result: Some(result) }),
        Ok(Answer::History(page)) => wire.respond_history(id, &page.items, page.next.0, page.head.0),
        Ok(Answer::Refused(refusal)) => wire.refuse(Refusal { request: id, ..refusal }),
        Err(Miss::Failed(error)) => drop(fail(wire, &error)),
        Err(Miss::Disk) => wire.close(Refusal::connection(Reason::Internal)),
    }
}

fn resend(lane: Lane, n: u64, item: Result<Bytes, Miss>, wire: &mut BrokerSession<Place>, now: Millis) {
    match item {
        Ok(item) => wire.resend(now, lane, n, &item),
        Err(Miss::Failed(error)) => drop(fail(wire, &error)),
        Err(Miss::Disk) => wire.close(Refusal::connection(Reason::Internal)),
    }
}

/// The item, or, where it is an entry that the client cannot hold, the `Head` in its place.
fn fit(place: Place, item: Bytes, bytes_max: usize) -> Bytes {
    if item.len() > bytes_max && place.conversation.is_some() {
        return head_item(place.conversation, place.seq, place.seq, HeadReason::TooLarge, item.len());
    }
    item
}

/// The item at a place, as it is now.
fn read_again(reads: Reads<'_>, session: &Session, place: Place, bytes_max: usize) -> Result<Bytes, Miss> {
    let one = PageLimit { entries: 1, bytes: usize::MAX };
    let entries = reads.range(place.conversation, place.seq, place.seq, false, one)?;
    Ok(match entries.first() {
        Some(entry) => {
            let item = item_for(&session.outbox.lock(), session, entry);
            fit(place, item, bytes_max)
        }
        None => head_item(place.conversation, place.seq, place.seq, HeadReason::Expired, 0),
    })
}

/// The countable entries up to a seq, for a mark; 0 where there is no such entry.
fn countable_at(reads: Reads<'_>, conversation: ConversationId, seq: Seq) -> Result<u64, Miss> {
    let one = PageLimit { entries: 1, bytes: usize::MAX };
    let page = reads.range(conversation, seq, seq, false, one)?;
    Ok(page.first().map_or(0, |entry| entry.countable))
}

fn current_segment(shared: &Shared) -> crate::store::SegmentId {
    shared.segments.last().map_or_else(Default::default, |segment| segment.id)
}
