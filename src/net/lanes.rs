//! How a live session's lanes are read: what is ready from the outbox, the rest from the log, into the window of the
//! session. A read that needs the disk goes away from the worker thread and comes back with what it found.

use std::sync::Arc;

use longwire_protocol::packet::Lane;
use longwire_protocol::{BrokerSession, ConversationId, Millis, Seq};

use super::Shared;
use super::pump::{Done, Live, NEVER, blocking, fail, quick};
use super::requests::fit;
use crate::mutation::Mutation;
use crate::routing::catch_up::{CatchUp, Plan, Room, Step, shown_now};
use crate::routing::items::{CAUGHT_UP_ITEM, PROGRESS_ITEM};
use crate::routing::limits::{PROGRESS_POSITIONS, WITHHELD_BACKGROUND_MS, WITHHELD_MS};
use crate::routing::outbox::Session;
use crate::routing::reads::{Miss, Reads};
use crate::routing::stream::{Place, Ready, Turn};
use crate::store::{Position, ReadError};

/// How a lane is read.
pub(super) enum Reading {
    /// From the outbox.
    Idle,
    /// There is something to read in the log; what is still to be found out.
    Turning(Box<Turning>),
    /// What to read is known, where each conversation goes on is not.
    Planned(Box<Plan>),
    /// From the log.
    Log(Box<CatchUp>),
    /// From the log; what a step found there waits for its turn.
    Found(Box<Found>),
    /// The disk is asked, off this thread.
    Away,
}

/// What a step found in the log.
pub(super) struct Found {
    pub(super) catch_up: Box<CatchUp>,
    pub(super) out: Vec<Ready>,
    /// How many erasures were done when it was read, or fewer.
    pub(super) forgotten: u64,
    pub(super) step: Result<Step, Miss>,
}

/// A lane's turn through the log.
pub(super) struct Turning {
    turn: Turn,
    sent: Position,
    is_express: bool,
    skips: bool,
}

impl Turning {
    pub(super) fn plan(&self, reads: Reads<'_>, session: &Session) -> Result<Plan, Miss> {
        reads.rows(|rows| Plan::new(rows, session, &self.turn, self.sent, self.is_express, self.skips))
    }
}

impl Live {
    pub(super) fn reading(&mut self, lane: Lane) -> &mut Reading {
        match lane {
            Lane::Express => &mut self.express,
            Lane::Bulk => &mut self.bulk,
        }
    }

    pub(super) fn pump_lane(&mut self, lane: Lane, wire: &mut BrokerSession<Place>, shared: &Arc<Shared>, now: Millis) {
        let is_express = lane == Lane::Express;
        loop {
            let room = wire.room(lane);
            if room.items == 0 || wire.is_closed() || self.holds_for_cursor(now) || self.resends > 0 {
                return;
            }
            if matches!(self.reading(lane), Reading::Idle) {
                if self.give_ready(lane, wire, shared, now) {
                    return;
                }
                match self.next_ready(is_express, &wire.room(lane), shared, now) {
                    Next::Ready(ready) => self.give(lane, ready, wire, now),
                    Next::Turn(turning) => *self.reading(lane) = Reading::Turning(Box::new(turning)),
                    Next::Nothing => return,
                }
                continue;
            }
            match std::mem::replace(self.reading(lane), Reading::Idle) {
                Reading::Idle => {}
                Reading::Turning(turning) => {
                    if !self.turn(lane, turning, wire, shared) {
                        return;
                    }
                }
                Reading::Found(found) => {
                    if !self.found(lane, found, wire, shared, now) {
                        return;
                    }
                }
                Reading::Away => {
                    *self.reading(lane) = Reading::Away;
                    return;
                }
                Reading::Planned(plan) => {
                    let done = CatchUp::begin(&plan, quick(shared));
                    if !self.planned(lane, plan, done, wire, shared) {
                        return;
                    }
                }
                Reading::Log(mut catch_up) => {
                    let mut out = Vec::new();
                    let express_sent = self.session.outbox.lock().express.sent();
                    let (mut left, forgotten) = (room_left(&room), catch_up.forgotten());
                    let step = catch_up.step(quick(shared), &self.session, &mut left, express_sent, &mut out);
                    if !self.stepped(lane, Found { catch_up, out, forgotten, step }, wire, shared, now) {
                        return;
                    }
                }
            }
        }
    }

    /// Hands over what is ready, as far as the window goes, under one lock. Returns whether that is all there is to do for
    /// the lane: it is so for most turns.
    fn give_ready(&mut self, lane: Lane, wire: &mut BrokerSession<Place>, shared: &Shared, now: Millis) -> bool {
        let is_express = lane == Lane::Express;
        let index = usize::from(!is_express);
        if self.caught_up[index].is_some() {
            return false;
        }
        // Read before the lane is locked: everything up to here was pushed already.
        let fed = Position(shared.fed.load(std::sync::atomic::Ordering::Acquire));
        let Self { session, cursor, given, item_bytes_max, .. } = self;
        let mut pending = session.outbox.lock();
        let ready = pending.lane(is_express);
        loop {
            let room = wire.room(lane);
            if room.items == 0 || cursor.is_late(now) {
                return true;
            }
            let Some(next) = ready.take(room.bytes as usize, room.bytes == u32::MAX) else { break };
            cursor.owed = true;
            given[index] = next.place.position;
            deliver(lane, next, *item_bytes_max, wire, now);
        }
        ready.pass(fed);
        !ready.has_work() && fed.0 <= given[index].0 + PROGRESS_POSITIONS
    }

    /// What an idle lane does next: an item that is ready, or a turn through the log.
    pub(super) fn next_ready(
        &mut self,
        is_express: bool,
        room: &longwire_protocol::Room,
        shared: &Shared,
        now: Millis,
    ) -> Next {
        // Read before the lane is locked: everything up to here was pushed already.
        let fed = Position(shared.fed.load(std::sync::atomic::Ordering::Acquire));
        if let Some(position) = self.caught_up[usize::from(!is_express)] {
            let item = CAUGHT_UP_ITEM.clone();
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
        let given = self.given[usize::from(!is_express)];
        if lane.rests() {
            if lane.rests_for_a_while() && self.report_at == NEVER && !Mutation::WithheldForEver.is_planted() {
                let is_background = self.session.is_in_background();
                self.report_at = now.after(if is_background { WITHHELD_BACKGROUND_MS } else { WITHHELD_MS });
            }
            // Where `Progress` would say that there is nothing, there is something.
            if fed.0 > given.0 + PROGRESS_POSITIONS {
                lane.stir();
            }
        }
        let Some(turn) = lane.begin_turn() else {
            lane.pass(fed);
            // Only a lane with nothing ready: else what waits for room lies below.
            if !lane.has_work() && fed.0 > given.0 + PROGRESS_POSITIONS && room.admits(PROGRESS_ITEM.len()) {
                let place = Place { position: fed, conversation: ConversationId(0), seq: Seq(0) };
                return Next::Ready(Ready { place, item: PROGRESS_ITEM.clone() });
            }
            return Next::Nothing;
        };
        let sent = lane.sent();
        let skips = self.skips && pending.owes_caught_up[usize::from(!is_express)];
        Next::Turn(Turning { turn, sent, is_express, skips })
    }

    /// Finds out what a turn has to read. Returns whether the lane can go on at once.
    pub(super) fn turn(
        &mut self,
        lane: Lane,
        turning: Box<Turning>,
        wire: &mut BrokerSession<Place>,
        shared: &Arc<Shared>,
    ) -> bool {
        match turning.plan(quick(shared), &self.session) {
            Ok(plan) => {
                *self.reading(lane) = Reading::Planned(Box::new(plan));
                true
            }
            Err(Miss::Disk) if self.away.is_some() => {
                *self.reading(lane) = Reading::Turning(turning);
                false
            }
            Err(Miss::Disk) => {
                *self.reading(lane) = Reading::Away;
                let (shared_too, session) = (Arc::clone(shared), Arc::clone(&self.session));
                self.away = Some(shared.tasks.run(move || match turning.plan(blocking(&shared_too), &session) {
                    Ok(plan) => {
                        let begun = CatchUp::begin(&plan, blocking(&shared_too));
                        Done::Planned(lane, Box::new(plan), begun)
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
    pub(super) fn planned(
        &mut self,
        lane: Lane,
        plan: Box<Plan>,
        done: Result<CatchUp, Miss>,
        wire: &mut BrokerSession<Place>,
        shared: &Arc<Shared>,
    ) -> bool {
        match done {
            Ok(catch_up) => {
                *self.reading(lane) = Reading::Log(Box::new(catch_up));
                true
            }
            Err(Miss::Disk) => {
                if self.away.is_some() {
                    *self.reading(lane) = Reading::Planned(plan);
                    return false;
                }
                *self.reading(lane) = Reading::Away;
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

    /// Takes over what a step found a while ago: what was recalled meanwhile is shown to nobody. Returns whether the lane can
    /// go on at once.
    fn found(
        &mut self,
        lane: Lane,
        mut found: Box<Found>,
        wire: &mut BrokerSession<Place>,
        shared: &Arc<Shared>,
        now: Millis,
    ) -> bool {
        match shown_now(quick(shared), &self.session, found.forgotten, &mut found.out) {
            Ok(()) => self.stepped(lane, *found, wire, shared, now),
            Err(Miss::Disk) if self.away.is_some() => {
                *self.reading(lane) = Reading::Found(found);
                false
            }
            Err(Miss::Disk) => {
                *self.reading(lane) = Reading::Away;
                let (shared_too, session) = (Arc::clone(shared), Arc::clone(&self.session));
                self.away = Some(shared.tasks.run(move || {
                    match shown_now(blocking(&shared_too), &session, found.forgotten, &mut found.out) {
                        Ok(()) => Done::Stepped(lane, found),
                        Err(Miss::Failed(error)) => Done::Failed(error),
                        Err(Miss::Disk) => Done::Failed(ReadError("a read that may block did not".into())),
                    }
                }));
                false
            }
            Err(Miss::Failed(error)) => fail(wire, &error),
        }
    }

    /// Takes over what a step gave. Returns whether the lane can go on at once.
    pub(super) fn stepped(
        &mut self,
        lane: Lane,
        found: Found,
        wire: &mut BrokerSession<Place>,
        shared: &Arc<Shared>,
        now: Millis,
    ) -> bool {
        let Found { mut catch_up, out, step, .. } = found;
        let is_express = lane == Lane::Express;
        if let Some(last) = out.last() {
            self.session.outbox.lock().lane(is_express).advance(last.place.position);
        }
        let has_given = !out.is_empty();
        for ready in out {
            // It may have been found before the token changed.
            if catch_up.may_leave(&self.session, ready.place.conversation) {
                self.give(lane, ready, wire, now);
            }
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
                *self.reading(lane) = Reading::Log(catch_up);
                // Into an empty window goes one item of any size; then its bytes are counted anew.
                has_given
            }
            Ok(Step::Waits(_)) => {
                *self.reading(lane) = Reading::Log(catch_up);
                false
            }
            Err(Miss::Disk) => {
                if self.away.is_some() {
                    *self.reading(lane) = Reading::Log(catch_up);
                    return false;
                }
                *self.reading(lane) = Reading::Away;
                let (shared_too, session) = (Arc::clone(shared), Arc::clone(&self.session));
                let room = wire.room(lane);
                self.away = Some(shared.tasks.run(move || {
                    let mut out = Vec::new();
                    let (express_sent, forgotten) = (session.outbox.lock().express.sent(), catch_up.forgotten());
                    let step =
                        catch_up.step(blocking(&shared_too), &session, &mut room_left(&room), express_sent, &mut out);
                    Done::Stepped(lane, Box::new(Found { catch_up, out, forgotten, step }))
                }));
                false
            }
            Err(Miss::Failed(error)) => fail(wire, &error),
        }
    }

    /// Hands an item to the session; one that the client cannot hold becomes a `Head`.
    pub(super) fn give(&mut self, lane: Lane, ready: Ready, wire: &mut BrokerSession<Place>, now: Millis) {
        self.cursor.owed = true;
        self.given[usize::from(lane == Lane::Bulk)] = ready.place.position;
        deliver(lane, ready, self.item_bytes_max, wire, now);
    }
}

fn deliver(lane: Lane, ready: Ready, item_bytes_max: u32, wire: &mut BrokerSession<Place>, now: Millis) {
    let Ready { place, item } = ready;
    let item = fit(place, item, item_bytes_max as usize);
    if Mutation::TooLargeLeftOut.is_planted() && item.len() > item_bytes_max.min(1_000) as usize {
        return;
    }
    wire.deliver(now, lane, place, item);
}

pub(super) enum Next {
    Ready(Ready),
    Turn(Turning),
    Nothing,
}

pub(super) fn room_left(room: &longwire_protocol::Room) -> Room {
    let is_empty = room.bytes == u32::MAX;
    Room { items: room.items as usize, bytes: if is_empty { 0 } else { room.bytes as usize }, is_empty }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};
    use longwire_protocol::packet::{self, item};
    use longwire_protocol::{BrokerEvent, Frame, FrameCodec, Room, UserId};
    use prost::Message as _;
    use tokio_util::codec::Decoder as _;

    use super::*;
    use crate::net::testing::{live, shared};
    use crate::routing::rows::{Altered, Conversation, Head, Key, Kind, MoreOfConversation, Row};
    use crate::routing::stream::News;
    use crate::store::MemoryLog;

    fn kind(item: &Bytes) -> item::Kind {
        packet::Item::decode(&item[..]).expect("an item").kind.expect("of a kind")
    }

    /// A `Progress` says that there is nothing below it: while an item waits for room, there is.
    #[test]
    fn progress_never_overtakes_an_item_that_waits_for_room() {
        let shared = shared(&MemoryLog::new(0, usize::MAX));
        let session = Arc::new(Session::of_test());
        let mut live = live(Arc::clone(&session), &shared);
        let place = |position| Place { position: Position(position), conversation: ConversationId(1), seq: Seq(1) };
        {
            let mut pending = session.outbox.lock();
            pending.express.begin_turn().expect("it is behind");
            assert!(pending.express.end_turn(Position(0)), "and live now");
            pending.express.push(Ready { place: place(5), item: Bytes::from_static(&[0; 100]) }, true);
        }
        let fed = PROGRESS_POSITIONS + 10;
        shared.fed.store(fed, std::sync::atomic::Ordering::Release);

        let small = Room { items: 1, bytes: 50 };
        assert!(matches!(live.next_ready(true, &small, &shared, Millis(0)), Next::Nothing));
        let Next::Ready(ready) = live.next_ready(true, &Room { items: 1, bytes: 100 }, &shared, Millis(0)) else {
            panic!("the item fits now")
        };
        assert_eq!(ready.place, place(5));
        let Next::Ready(ready) = live.next_ready(true, &small, &shared, Millis(0)) else {
            panic!("nothing is below any more")
        };
        assert!(matches!(kind(&ready.item), item::Kind::Progress(_)));
        assert_eq!(ready.place.position, Position(fed));
    }

    /// What was read off the thread and waits for room is told as it is when it leaves: a message that was recalled
    /// meanwhile is shown to nobody (SPEC R5.6-6).
    #[test]
    fn what_was_recalled_while_it_waited_is_reported_and_not_shown() {
        let shared = shared(&MemoryLog::new(0, usize::MAX));
        let id = ConversationId(5);
        let mut group = Conversation {
            kind: Kind::Group,
            label: "g".into(),
            pair: (UserId(0), UserId(0)),
            head: Head { seq: Seq(2), ..Head::default() },
            members: 1,
            more: MoreOfConversation::default(),
        };
        group.more.note_withheld(Seq(2));
        let recalled = Altered { is_recalled: true, ..Altered::default() };
        for (key, row) in
            [(Key::Conversation(id), Row::Conversation(group)), (Key::Altered(id, Seq(2)), Row::Altered(recalled))]
        {
            let mut state = shared.state.write().expect("unpoisoned");
            state.load_row(&key.encode(), &row.encode()).expect("a row");
        }
        let mut wire = BrokerSession::new(Millis(0), shared.limits);
        let connect = packet::Connect { version: 1, device: "d".into(), ..Default::default() };
        let frame = Frame::Packet(packet::packet::Kind::Connect(connect));
        assert!(matches!(wire.handle_frame(Millis(0), frame, 10), Ok(Some(BrokerEvent::Connect(_)))));
        wire.accept(Millis(0), packet::Connected::default());
        let mut sent = BytesMut::new();
        while wire.poll_transmit(Millis(0), &mut sent, usize::MAX) {}
        sent.clear();

        let session = Arc::new(Session::of_test());
        let mut live = live(Arc::clone(&session), &shared);
        let turn = Turn { news: News::Of(Vec::new()), marks: false, target: Some(Position(2)) };
        let plan =
            quick(&shared).rows(|rows| Plan::new(rows, &session, &turn, Position(0), false, false)).expect("a plan");
        let catch_up = Box::new(CatchUp::begin(&plan, quick(&shared)).expect("begun"));
        let out = (1..=2).map(|n| {
            let place = Place { position: Position(n), conversation: id, seq: Seq(n) };
            let entry = packet::Entry { conversation: id.0, seq: n, content: "said".into(), ..Default::default() };
            let item = packet::Item { kind: Some(item::Kind::Entry(entry)) };
            Ready { place, item: item.encode_to_vec().into() }
        });
        let found = Found { catch_up, out: out.collect(), forgotten: 0, step: Ok(Step::Full) };
        live.bulk = Reading::Found(Box::new(found));
        live.pump_lane(Lane::Bulk, &mut wire, &shared, Millis(0));
        while wire.poll_transmit(Millis(0), &mut sent, usize::MAX) {}

        let mut items = Vec::new();
        while let Some((frame, _)) = FrameCodec::new(u32::MAX).decode(&mut sent).expect("frames") {
            if let Frame::Packet(packet::packet::Kind::Deliver(deliver)) = frame {
                items.extend(deliver.items.into_iter().filter_map(|item| item.kind));
            }
        }
        assert!(matches!(&items[0], item::Kind::Entry(entry) if entry.seq == 1), "{items:?}");
        let item::Kind::Head(head) = &items[1] else { panic!("it is shown: {items:?}") };
        assert_eq!((head.from_seq, head.to_seq, head.reason()), (2, 2, packet::HeadReason::Recalled));
    }
}
