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
use longwire_protocol::{BrokerEvent, BrokerSession, ConversationId, MessageId, Millis, Seq};
use prost::Message as _;

use super::Shared;
use super::connection::{grants, token_refusal};
use crate::auth::Identity;
use crate::mutation::Mutation;
use crate::routing::catch_up::{CatchUp, Miss, Plan, Reads, Room, Step};
use crate::routing::core::{Op, Publish, digest};
use crate::routing::feed::{caught_up_item, head_item, item_for, progress_item};
use crate::routing::limits::{PROGRESS_POSITIONS, WATCHES_MAX};
use crate::routing::outbox::{Attached, Session};
use crate::routing::query::{self, Visible};
use crate::routing::resume;
use crate::routing::rows::{DeviceCursor, Kind};
use crate::routing::state::is_countable;
use crate::routing::stream::{Place, Ready};
use crate::store::{PageLimit, Position};
use crate::tasks::Task;

/// How often a cursor leaves while items flow.
const CURSOR_EVERY_MS: u64 = longwire_protocol::limits::CURSOR_MS;
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
    /// Items that have to be sent again and are not yet: what is new waits, since the client drops it until then.
    resends: usize,
    /// Publishes of this turn, on their way to the commit thread.
    ops: Vec<Op>,
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
    /// From the outbox; or what to read is still to be found out.
    Idle,
    /// What to read is known, where each conversation goes on is not.
    Planned(Plan),
    /// From the log.
    Reading(CatchUp),
    /// The disk is asked, off this thread.
    Away,
}

/// What has to be read for a client.
enum Job {
    History(u64, packet::HistoryRequest),
    Resend { lane: Lane, n: u64, place: Place },
}

/// What came back from the disk.
enum Done {
    Planned(Lane, Plan, Result<CatchUp, Miss>),
    Stepped(Lane, CatchUp, Vec<Ready>, Result<Step, Miss>),
    History(u64, Result<query::Page, Miss>),
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
            resends: 0,
            ops: Vec::new(),
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
            BrokerEvent::Publish(publish) => self.publish(publish, wire, shared),
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
                    self.resends += 1;
                    self.jobs.push_back(Job::Resend { lane, n, place });
                }
            }
            BrokerEvent::Connect(_) | BrokerEvent::Goodbye => {}
        }
    }

    fn publish(&mut self, mut publish: packet::Publish, wire: &mut BrokerSession<Place>, shared: &Shared) {
        let digest = digest(&publish);
        let mut mark_countable = 0;
        if let Some(Action::SetMark(set)) = &mut publish.action {
            match countable_at(shared, ConversationId(publish.conversation), Seq(set.seq)) {
                // Clamped to the head as it is now: what that counts up to is known.
                Ok((seq, countable)) => (set.seq, mark_countable) = (seq.0, countable),
                Err(_) => {
                    let id = MessageId(publish.message_id);
                    // It may be the repeat of one that is stored: the commit thread would know.
                    return wire.refuse(Refusal::publish(id, Reason::OutcomeUnknown).retry_after(1_000));
                }
            }
        }
        let session = Arc::clone(&self.session);
        self.ops.push(Op::Publish(Publish { session, publish, digest, mark_countable }));
    }

    /// Hands this turn's publishes to the commit thread, or refuses them all when its queue is full.
    pub(super) fn flush_ops(&mut self, wire: &mut BrokerSession<Place>, shared: &Shared) {
        if self.ops.is_empty() {
            return;
        }
        {
            let mut pending = self.session.outbox.lock();
            for op in &self.ops {
                if let Op::Publish(publish) = op {
                    pending.published.add(MessageId(publish.publish.message_id));
                }
            }
        }
        if !shared.queue.push(&mut self.ops) {
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
        if Mutation::StoredCursorTooEarly.is_planted() {
            (cursor.acked.express, cursor.acked.bulk) = (self.given[0], self.given[1]);
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
        let answered = {
            let state = || shared.state.read().unwrap_or_else(PoisonError::into_inner);
            match request.op {
                Some(request::Op::History(history)) => {
                    self.jobs.push_back(Job::History(id, history));
                    return;
                }
                Some(request::Op::Conversations(page)) => {
                    Ok(response::Result::Conversations(query::conversations(&state(), &self.session, &page)))
                }
                Some(request::Op::Members(page)) => {
                    query::members(&state(), &self.session, &page).map(response::Result::Members)
                }
                Some(request::Op::Users(users)) => {
                    Ok(response::Result::Users(query::users(&shared.state, &self.session, &users)))
                }
                Some(request::Op::Watch(watch)) => self.watch(&watch, shared).map(response::Result::Watch),
                Some(request::Op::Refresh(refresh)) => self.refresh(&refresh, shared).map(response::Result::Refresh),
                None => Err(Refusal::connection(Reason::Unsupported)),
            }
        };
        match answered {
            Ok(result) => wire.respond(packet::Response { id, result: Some(result) }),
            Err(refusal) => wire.refuse(Refusal { request: id, ..refusal }),
        }
    }

    fn watch(&mut self, watch: &packet::WatchRequest, shared: &Shared) -> Result<packet::WatchAnswer, Refusal> {
        let id = ConversationId(watch.conversation);
        let state = shared.state.read().unwrap_or_else(PoisonError::into_inner);
        let unknown = || Refusal::connection(Reason::UnknownConversation);
        let channel = state.conversation(id).filter(|c| c.kind == Kind::Channel).ok_or_else(unknown)?;
        if !self.session.grants.load().read.admit(&channel.label) {
            return Err(unknown());
        }
        let mut pending = self.session.outbox.lock();
        if watch.stop {
            pending.watching.retain(|(watched, _)| *watched != id);
            drop(pending);
            shared.registry.unwatch(id, &self.session);
        } else {
            if pending.watched_since(id).is_none() {
                if pending.watching.len() >= WATCHES_MAX {
                    return Err(Refusal::connection(Reason::QuotaExceeded));
                }
                pending.watching.push((id, channel.head.seq));
            }
            drop(pending);
            shared.registry.watch(id, &self.session);
        }
        Ok(packet::WatchAnswer { head_seq: channel.head.seq.0 })
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

    /// Moves everything that can move; each lane by at most its window. Returns whether lanes were held, for a cursor or
    /// for what is sent again, and go on once that has left.
    pub(super) fn pump(
        &mut self,
        context: &mut Context<'_>,
        wire: &mut BrokerSession<Place>,
        shared: &Arc<Shared>,
        now: Millis,
    ) -> bool {
        self.check_identity(wire, shared);
        let was_resending = self.resends > 0;
        self.come_back(context, wire, shared, now);
        for lane in [Lane::Express, Lane::Bulk] {
            self.pump_lane(lane, wire, shared, now);
        }
        // Express may have let bulk go on.
        self.pump_lane(Lane::Bulk, wire, shared, now);
        self.next_job(wire, shared, now);
        // A job that was just started has to know whom to wake.
        self.come_back(context, wire, shared, now);
        self.holds_for_cursor(now) || (was_resending && self.resends == 0)
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
            if room.items == 0 || wire.is_closed() || self.holds_for_cursor(now) || self.resends > 0 {
                return;
            }
            match std::mem::replace(self.reader(lane), Reader::Idle) {
                Reader::Idle => match self.next_ready(is_express, &room, shared) {
                    Next::Ready(ready) => self.give(lane, ready, wire, now),
                    Next::Turn(plan) => *self.reader(lane) = Reader::Planned(plan),
                    Next::Nothing => return,
                },
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
        drop(pending);
        let state = shared.state.read().unwrap_or_else(PoisonError::into_inner);
        Next::Turn(Plan::new(&state, &self.session, &turn, sent, is_express, skips))
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
                let history = Arc::clone(&shared.history);
                self.away = Some(shared.tasks.run(move || {
                    let done = CatchUp::begin(&plan, Reads { history: &*history, may_block: true });
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
                let (history, session) = (Arc::clone(&shared.history), Arc::clone(&self.session));
                let room = wire.room(lane);
                self.away = Some(shared.tasks.run(move || {
                    let mut out = Vec::new();
                    let reads = Reads { history: &*history, may_block: true };
                    let express_sent = session.outbox.lock().express.sent();
                    let step = catch_up.step(reads, &session, &mut room_left(&room), express_sent, &mut out);
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
        let item = fit(place, item, self.item_bytes_max);
        if Mutation::TooLargeLeftOut.is_planted() && item.len() > self.item_bytes_max.min(1_000) {
            return;
        }
        wire.deliver(now, lane, place, &item);
    }

    /// Takes over what came back from the disk.
    fn come_back(
        &mut self,
        context: &mut Context<'_>,
        wire: &mut BrokerSession<Place>,
        shared: &Arc<Shared>,
        now: Millis,
    ) {
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
                Ok(Done::History(id, page)) => answer_history(id, page, wire),
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

    /// Starts on what clients wait for, one after another.
    fn next_job(&mut self, wire: &mut BrokerSession<Place>, shared: &Arc<Shared>, now: Millis) {
        // A client that does not read its answers gets no more of them.
        while self.away.is_none()
            && !wire.has_answers_waiting()
            && let Some(job) = self.jobs.pop_front()
        {
            let max = self.item_bytes_max;
            match job {
                Job::History(id, request) => {
                    let visible = {
                        let state = shared.state.read().unwrap_or_else(PoisonError::into_inner);
                        Visible::of(&state, &self.session, ConversationId(request.conversation))
                    };
                    let visible = match visible {
                        Ok(visible) => visible,
                        Err(refusal) => {
                            wire.refuse(Refusal { request: id, ..refusal });
                            continue;
                        }
                    };
                    match query::history(quick(shared), &visible, &request) {
                        Err(Miss::Disk) => {
                            let history = Arc::clone(&shared.history);
                            self.away = Some(shared.tasks.run(move || {
                                let reads = Reads { history: &*history, may_block: true };
                                Done::History(id, query::history(reads, &visible, &request))
                            }));
                        }
                        page => answer_history(id, page, wire),
                    }
                }
                Job::Resend { lane, n, place } => match read_again(quick(shared), &self.session, place, max) {
                    Err(Miss::Disk) => {
                        let (history, session) = (Arc::clone(&shared.history), Arc::clone(&self.session));
                        self.away = Some(shared.tasks.run(move || {
                            let reads = Reads { history: &*history, may_block: true };
                            Done::Resend { lane, n, item: read_again(reads, &session, place, max) }
                        }));
                    }
                    item => {
                        self.resends -= 1;
                        resend(lane, n, item, wire, now);
                    }
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
        let cursor = match Mutation::CursorTooEarly.is_planted() {
            true => DeviceCursor { bulk: Position(cursor.bulk.0 + 1), ..cursor },
            false => cursor,
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

    /// The connection is over.
    pub(super) fn end(self, shared: &Shared) {
        for op in self.ops {
            shared.queue.push_one(op);
        }
        let cursor = self.cursor.moved.then_some(self.cursor.acked);
        shared.queue.push_one(Op::Detach(self.session, cursor));
    }
}

enum Next {
    Ready(Ready),
    Turn(Plan),
    Nothing,
}

/// Reads that never block.
fn quick(shared: &Shared) -> Reads<'_> {
    Reads { history: &*shared.history, may_block: false }
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

fn answer_history(id: u64, page: Result<query::Page, Miss>, wire: &mut BrokerSession<Place>) {
    match page {
        Ok(page) => wire.respond_history(id, &page.items, page.next.0, page.head.0),
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
    let seq = if Mutation::ResendsAnother.is_planted() { place.seq.next() } else { place.seq };
    let entries = reads.range(place.conversation, seq, seq, false, one)?;
    Ok(match entries.first() {
        Some(entry) => {
            let item = item_for(&session.outbox.lock(), session, entry);
            fit(place, item, bytes_max)
        }
        None => head_item(place.conversation, place.seq, place.seq, HeadReason::Expired, 0),
    })
}

/// A mark's seq, at most the head's, and the countable entries up to it. Reads one entry, from the disk if need be.
fn countable_at(shared: &Shared, conversation: ConversationId, seq: Seq) -> Result<(Seq, u64), Miss> {
    let head = {
        let state = shared.state.read().unwrap_or_else(PoisonError::into_inner);
        state.conversation(conversation).map(|row| row.head).unwrap_or_default()
    };
    if seq >= head.seq {
        let seq = if Mutation::MarkNotClamped.is_planted() { seq } else { head.seq };
        return Ok((seq, head.countable));
    }
    let reads = Reads { history: &*shared.history, may_block: true };
    let one = PageLimit { entries: 1, bytes: usize::MAX };
    let found = reads.range(conversation, seq, head.seq, false, one)?;
    Ok(match found.first() {
        Some(entry) if entry.seq == seq => (seq, entry.countable),
        // It has expired: what is left counts from the first entry that is kept.
        Some(entry) => {
            let kind = packet::Item::decode(&entry.item[..]).ok().and_then(|item| match item.kind {
                Some(packet::item::Kind::Entry(entry)) => Some(entry.kind()),
                _ => None,
            });
            (seq, entry.countable - u64::from(kind.is_some_and(is_countable)))
        }
        None => (seq, head.countable),
    })
}

fn current_segment(shared: &Shared) -> crate::store::SegmentId {
    shared.segments.last().map_or_else(Default::default, |segment| segment.id)
}
