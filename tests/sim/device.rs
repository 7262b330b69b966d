//! A device: what it keeps through its own crashes, and one wire at a time. It keeps to the client's rules, is slow,
//! forgetful or greedy as its seed says, and holds what it gets against the model at once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{Bytes, BytesMut};
use longwire::routing::rows::Kind;
use longwire_protocol::packet::{
    self, CatchUpMode, CursorVerdict, HeadReason, Item, Lane, Publish, ResetReason, StartKind, Window, item, response,
};
use longwire_protocol::reason::{Reason, Refusal, Verdict};
use longwire_protocol::{ClientEvent, ClientSession, FrameCodec, MessageId, Millis, frame};
use prost::Message as _;
use tokio_util::codec::Decoder as _;

use crate::link::Link;
use crate::model::{Answer, Id, Model, Stretches};
use crate::world::{Coverage, Trace};

/// A publish that has no final answer on the device's disk.
#[derive(Clone, Debug)]
pub(crate) struct Out {
    pub(crate) publish: Publish,
    retry_at: u64,
    /// The tail when it was first sent, and whether it may have been stored by a session whose answer is unknown.
    first_sent: Option<u64>,
    is_open: bool,
    /// An earlier session sent it.
    was_sent: bool,
}

/// What survives a crash of the device.
#[derive(Clone, Debug, Default)]
pub(crate) struct Durable {
    pub(crate) incarnation: u64,
    pub(crate) next_id: u64,
    pub(crate) outbox: BTreeMap<u64, Out>,
    pub(crate) cursor: Option<Bytes>,
    /// What it holds, or was told that it does not get, of each conversation.
    pub(crate) covered: BTreeMap<u64, Stretches>,
    /// Up to these positions, in express and bulk, it was told to page for itself.
    pub(crate) excused: [u64; 2],
}

impl Durable {
    fn first_unanswered(&self) -> u64 {
        self.outbox.keys().next().copied().unwrap_or(self.next_id.max(1))
    }
}

/// What has come and is not on the device's disk yet.
#[derive(Debug)]
enum Got {
    Item(Lane, u64, Box<Item>),
    Cursor(Bytes),
    Ask(u64),
    Settled(u64),
}

/// How a device is.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    pub(crate) mode: CatchUpMode,
    pub(crate) keeps_cursor: bool,
    pub(crate) express: Option<Window>,
    pub(crate) bulk: Option<Window>,
    pub(crate) item_bytes_max: u32,
    pub(crate) heartbeat_ms: u32,
    /// In a hundred turns, how many store what has come.
    pub(crate) stores: u8,
    /// In a hundred requests for acks, how many find a disk that fails.
    pub(crate) fails: u8,
}

/// See the module.
pub(crate) struct Device {
    pub(crate) user: String,
    pub(crate) name: String,
    pub(crate) token: String,
    pub(crate) manner: Manner,
    pub(crate) durable: Durable,
    pub(crate) backup: Option<Durable>,
    pub(crate) wire: Option<Wire>,
    pub(crate) connect_at: u64,
    /// Its ids, once it was let in.
    pub(crate) user_id: u64,
    pub(crate) device_id: u64,
    /// It was restored from a copy: whatever its outbox says is of an older life.
    is_restored: bool,
    newest_session: u64,
    /// How often it asked for a new incarnation: an older wish may arrive behind a newer one.
    anew: u32,
    /// What it was answered, which stays so for ever.
    pub(crate) acked: BTreeMap<Id, Answer>,
    /// What is surely not stored, and never will be.
    pub(crate) never: BTreeMap<Id, Reason>,
}

/// One connection, as the device sees it.
pub(crate) struct Wire {
    pub(crate) number: u64,
    pub(crate) link: Link,
    session: ClientSession,
    codec: FrameCodec,
    input: BytesMut,
    output: BytesMut,
    named_unanswered: u64,
    told_unanswered: u64,
    pub(crate) connected: Option<packet::Connected>,
    pending: VecDeque<Got>,
    sent: BTreeSet<u64>,
    published: BTreeSet<u64>,
    /// Acked, and that is not on the disk yet.
    answered: BTreeSet<u64>,
    seen: Seen,
    requests: BTreeMap<u64, packet::Request>,
    next_request: u64,
    /// Channels watched: answered, and after which head up to which.
    watching: BTreeMap<u64, Vec<(u64, u64)>>,
    own_cursor: Option<Bytes>,
    /// It could not store something, and dropped what followed.
    has_dropped: bool,
}

/// What came in this session, checked as it came.
#[derive(Debug, Default)]
struct Seen {
    /// Where the lanes started, as the broker knows; `None` where it could not be asked any more.
    started: Option<[u64; 2]>,
    position: [u64; 2],
    newest: [u64; 2],
    keys: [BTreeMap<u64, (u64, u64)>; 2],
    next: BTreeMap<u64, u64>,
    heads: BTreeMap<u64, Stretches>,
    pub(crate) caught_up: [bool; 2],
}

/// What a turn of a device needs of the world.
pub(crate) struct Around<'a> {
    pub(crate) now: u64,
    pub(crate) model: &'a Model,
    pub(crate) rng: &'a mut fastrand::Rng,
    pub(crate) trace: &'a mut Trace,
    pub(crate) coverage: &'a mut Coverage,
    /// Where the session of this number started, if it is still there.
    pub(crate) started: &'a dyn Fn(u64, u64) -> Option<[u64; 2]>,
    /// Cursors beyond this position, of segments up to then, were lost by a disk that lied.
    pub(crate) lost: &'a [(u64, u64)],
    /// The disk has failed, so the broker may say that it failed.
    pub(crate) may_fail: bool,
    /// Faults are over.
    pub(crate) is_calm: bool,
    /// And everything has come to rest: answers are exact.
    pub(crate) is_final: bool,
}

impl Device {
    pub(crate) fn new(user: &str, name: &str, token: String, manner: Manner) -> Self {
        Self {
            user: user.into(),
            name: name.into(),
            token,
            manner,
            durable: Durable::default(),
            backup: None,
            wire: None,
            connect_at: 0,
            user_id: 0,
            device_id: 0,
            is_restored: false,
            newest_session: 0,
            anew: 0,
            acked: BTreeMap::new(),
            never: BTreeMap::new(),
        }
    }

    /// Dials; the world has made the link.
    pub(crate) fn connect(&mut self, number: u64, link: Link, around: &mut Around<'_>) {
        let durable = &self.durable;
        let first_unanswered = if durable.incarnation == 0 { 0 } else { durable.first_unanswered() };
        let (start, own) = match (&durable.cursor, self.manner.keeps_cursor) {
            (Some(cursor), true) => (StartKind::OwnCursor, Some(cursor.clone())),
            (None, true) => (StartKind::Fresh, None),
            (_, false) => (StartKind::StoredCursor, None),
        };
        let connect = packet::Connect {
            version: 1,
            token: self.token.clone(),
            device: self.name.clone(),
            incarnation: durable.incarnation,
            first_unanswered,
            heartbeat_ms: self.manner.heartbeat_ms,
            express: self.manner.express,
            bulk: self.manner.bulk,
            item_bytes_max: self.manner.item_bytes_max,
            start: start.into(),
            cursor: own.clone().unwrap_or_default(),
            catch_up: self.manner.mode.into(),
            ..packet::Connect::default()
        };
        self.anew += u32::from(self.durable.incarnation == 0);
        let phase = Millis(around.rng.u64(0..20_000));
        for out in self.durable.outbox.values_mut() {
            out.retry_at = 0;
            out.was_sent = out.first_sent.is_some();
        }
        self.wire = Some(Wire {
            number,
            link,
            session: ClientSession::new(Millis(around.now), connect).with_heartbeat_phase(phase),
            codec: FrameCodec::default(),
            input: BytesMut::new(),
            output: BytesMut::new(),
            named_unanswered: first_unanswered,
            told_unanswered: first_unanswered,
            connected: None,
            pending: VecDeque::new(),
            sent: BTreeSet::new(),
            published: BTreeSet::new(),
            answered: BTreeSet::new(),
            seen: Seen::default(),
            requests: BTreeMap::new(),
            next_request: 1,
            watching: BTreeMap::new(),
            own_cursor: own,
            has_dropped: false,
        });
    }

    /// Whether it is let in.
    pub(crate) fn is_open(&self) -> bool {
        self.wire.as_ref().is_some_and(|wire| wire.connected.is_some())
    }

    /// Whether it wants nothing any more, and everything that came is stored.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.durable.outbox.is_empty()
            && self.wire.as_ref().is_some_and(|wire| {
                wire.connected.is_some()
                    && wire.pending.is_empty()
                    && wire.output.is_empty()
                    && wire.requests.is_empty()
                    && wire.seen.caught_up == [true, true]
                    && !wire.link.has_arrived()
            })
    }

    pub(crate) fn why_restless(&self) -> String {
        let wire = self.wire.as_ref().map(|w| {
            format!(
                "link {} pending {} output {} requests {:?} caught up {:?} arrived {} sent {:?}",
                w.number,
                w.pending.len(),
                w.output.len(),
                w.requests.keys().collect::<Vec<_>>(),
                w.seen.caught_up,
                w.link.has_arrived(),
                w.sent
            )
        });
        format!("{}/{}: outbox {:?}, {wire:?}", self.user, self.name, self.durable.outbox)
    }

    /// Writes something into the outbox.
    pub(crate) fn publish(&mut self, mut publish: Publish) -> bool {
        let durable = &mut self.durable;
        if durable.incarnation == 0 || self.is_restored {
            return false;
        }
        let id = durable.next_id.max(1);
        if id - durable.first_unanswered() >= 200 {
            return false;
        }
        durable.next_id = id + 1;
        publish.message_id = id;
        durable.outbox.insert(id, Out { publish, retry_at: 0, first_sent: None, is_open: false, was_sent: false });
        true
    }

    /// Asks for something to read.
    pub(crate) fn request(&mut self, op: packet::request::Op) {
        let Some(wire) = self.wire.as_mut().filter(|w| w.connected.is_some() && w.requests.len() < 8) else { return };
        let request = packet::Request { id: wire.next_request, op: Some(op) };
        wire.next_request += 1;
        wire.requests.insert(request.id, request.clone());
        wire.session.request(request);
    }

    /// Everything that was not on its disk is gone.
    pub(crate) fn crash(&mut self) -> Option<Wire> {
        self.wire.take()
    }

    /// Someone puts an old copy of the device's disk in its place.
    pub(crate) fn restore(&mut self) -> bool {
        let Some(mut backup) = self.backup.clone() else { return false };
        if !self.manner.keeps_cursor {
            // The broker remembers what it has: what it forgets besides is its own affair.
            backup.covered = std::mem::take(&mut self.durable.covered);
            backup.excused = self.durable.excused;
        }
        self.durable = backup;
        self.is_restored = true;
        true
    }

    fn begin_anew(&mut self) {
        self.durable.incarnation = 0;
        self.durable.outbox.clear();
        self.durable.next_id = 1;
        self.is_restored = false;
    }

    /// One turn: takes what has arrived, stores some of it, sends what may leave. Returns whether the wire is over.
    pub(crate) fn turn(&mut self, around: &mut Around<'_>) -> bool {
        let Some(mut wire) = self.wire.take() else { return true };
        let goes_on = self.receive(&mut wire, around)
            && self.deadline(&mut wire, around)
            && self.store(&mut wire, around)
            && self.send(&mut wire, around);
        let is_over = !goes_on;
        self.wire = Some(wire);
        is_over
    }

    fn receive(&mut self, wire: &mut Wire, around: &mut Around<'_>) -> bool {
        let mut arrived = Vec::new();
        let is_up = wire.link.take(&mut arrived);
        let now = Millis(around.now);
        if !arrived.is_empty() {
            wire.session.handle_bytes(now);
        }
        wire.input.extend_from_slice(&arrived);
        loop {
            match wire.codec.decode(&mut wire.input) {
                Ok(Some((frame, size))) => match wire.session.handle_frame(now, frame, size) {
                    Ok(Some(event)) => {
                        if !self.event(event, wire, around) {
                            return false;
                        }
                    }
                    Ok(None) => {}
                    Err(refusal) => panic!("{}/{}: the broker broke a rule: {refusal:?}", self.user, self.name),
                },
                Ok(None) => return is_up,
                Err(error) => panic!("{}/{}: bytes that are no frame: {error:?}", self.user, self.name),
            }
        }
    }

    fn deadline(&mut self, wire: &mut Wire, around: &mut Around<'_>) -> bool {
        let before = [Lane::Express, Lane::Bulk].map(|lane| wire.session.next(lane));
        if let Err(refusal) = wire.session.handle_deadline(Millis(around.now)) {
            around.coverage.count(match refusal.reason {
                Reason::HeartbeatTimeout => "clients that heard nothing",
                _ => "handshakes that took too long",
            });
            return false;
        }
        wire.forget_rewound(before);
        true
    }

    fn event(&mut self, event: ClientEvent, wire: &mut Wire, around: &mut Around<'_>) -> bool {
        around.trace.note(|| format!("{} {} < {event:?}", around.now, self.name));
        match event {
            ClientEvent::Connected(connected) => return self.connected(*connected, wire, around),
            ClientEvent::PublishAck(ack) => {
                wire.sent.remove(&ack.message_id);
                self.check_ack(&ack, around.model);
                wire.answered.insert(ack.message_id);
                wire.pending.push_back(Got::Settled(ack.message_id));
                around.coverage.count("publishes acked");
            }
            ClientEvent::Refused(refusal) => self.refused(&refusal, wire, around),
            ClientEvent::Closed(refusal) => {
                self.closed(&refusal, around);
                return false;
            }
            ClientEvent::Items { lane, first_n, items } => {
                for (n, item) in (first_n..).zip(items) {
                    self.check_item(lane, n, &item, wire, around);
                    wire.pending.push_back(Got::Item(lane, n, Box::new(item)));
                }
            }
            ClientEvent::Cursor(cursor) => wire.pending.push_back(Got::Cursor(cursor)),
            ClientEvent::AckRequest { k } => {
                around.coverage.count("requests for acks");
                wire.pending.push_back(Got::Ask(k));
            }
            ClientEvent::Response(response) => self.response(&response, wire, around),
            ClientEvent::Goaway { .. } => {}
        }
        true
    }

    fn closed(&mut self, refusal: &Refusal, around: &mut Around<'_>) {
        let wait = u64::from(refusal.retry_after_ms).max(around.rng.u64(1..2_000));
        self.connect_at = around.now + wait;
        match refusal.reason {
            Reason::TakenOver => around.coverage.count("sessions taken over"),
            Reason::RateLimited => around.coverage.count("fights for a device"),
            Reason::HeartbeatTimeout | Reason::HandshakeTimeout => around.coverage.count("peers given up"),
            Reason::AckTimeout => around.coverage.count("acks that never came"),
            Reason::StoreUnavailable => around.coverage.count("connects without a store"),
            Reason::Draining => {}
            Reason::IncarnationStale => {
                around.coverage.count("outboxes of an older incarnation");
                assert!(
                    self.is_restored || self.anew > 1 || !around.lost.is_empty(),
                    "{}: it has the newest",
                    self.name
                );
                self.begin_anew();
            }
            Reason::Internal if around.may_fail => {}
            other => panic!("{}/{}: closed with {other:?}: {}", self.user, self.name, refusal.detail),
        }
    }

    fn connected(&mut self, connected: packet::Connected, wire: &mut Wire, around: &mut Around<'_>) -> bool {
        wire.codec.set_frame_bytes_max(wire.session.frame_bytes_max());
        let model = around.model;
        assert_eq!(model.users.get(&self.user), Some(&connected.user), "the user is who the token says");
        assert_eq!(model.inboxes.get(&connected.user), Some(&connected.inbox), "the inbox is the user's");
        assert_eq!(model.devices.get(&connected.device), Some(&(connected.user, self.name.clone())), "the device");
        self.user_id = connected.user;
        self.device_id = connected.device;
        self.newest_session = connected.session;
        around.coverage.count("connects");
        let verdict = self.check_verdict(&connected, wire, around);
        let started = (around.started)(connected.user, connected.session);
        if verdict == CursorVerdict::Reset {
            around.coverage.count("resets");
            let to = started.unwrap_or([model.tail; 2]);
            self.durable.excused.iter_mut().zip(to).for_each(|(excused, to)| *excused = (*excused).max(to));
        }
        wire.seen.started = started;
        wire.seen.position = started.unwrap_or_default();
        let own = self.durable.first_unanswered();
        if self.durable.incarnation == 0 {
            self.durable.incarnation = connected.incarnation;
            self.durable.next_id = 1;
        } else {
            assert_eq!(connected.incarnation, self.durable.incarnation, "the incarnation is the one it named");
            assert!(connected.first_unanswered >= own, "the floor is no lower than what was told");
            if self.is_restored || connected.first_unanswered > own {
                assert!(self.is_restored, "{}: the floor {} is above {own}", self.name, connected.first_unanswered);
                around.coverage.count("outboxes restored from a copy");
                self.begin_anew();
                return false;
            }
        }
        wire.connected = Some(connected);
        true
    }

    /// A cursor is resumed where this log has been, and nowhere else.
    fn check_verdict(&self, connected: &packet::Connected, wire: &Wire, around: &mut Around<'_>) -> CursorVerdict {
        let verdict = connected.cursor();
        let reason = connected.reset_reason();
        let Some(cursor) = &wire.own_cursor else {
            assert!(
                verdict == CursorVerdict::Resumed || reason == ResetReason::Asked || !around.lost.is_empty(),
                "without a cursor of its own: {reason:?}"
            );
            return verdict;
        };
        let (_, express, bulk): (u64, u64, u64) = postcard::from_bytes(&cursor[1..]).expect("a cursor of this broker");
        let segment: u64 = postcard::from_bytes::<(u64, u64, u64)>(&cursor[1..]).expect("as above").0;
        let is_lost = around.lost.iter().any(|&(of, tail)| of == segment && express.max(bulk) > tail);
        if is_lost {
            around.coverage.count("cursors beyond a lost tail");
            assert_eq!(verdict, CursorVerdict::Reset, "{}: a cursor beyond what is left is resumed", self.name);
        } else if around.lost.is_empty() {
            assert_eq!(verdict, CursorVerdict::Resumed, "{}: a good cursor is reset: {reason:?}", self.name);
        }
        verdict
    }

    fn id(&self, message_id: u64) -> Id {
        (self.device_id, self.durable.incarnation, message_id)
    }

    fn check_ack(&mut self, ack: &packet::PublishAck, model: &Model) {
        let id = self.id(ack.message_id);
        let stored = model.answers.get(&id);
        let stored = *stored.unwrap_or_else(|| panic!("{}: {id:?} is acked and not in the log", self.name));
        let out = self.durable.outbox.get(&ack.message_id);
        let publish = &out.unwrap_or_else(|| panic!("{}: {id:?} is acked and was settled", self.name)).publish;
        let conversation = if publish.conversation == 0 { ack.conversation } else { publish.conversation };
        let told = Answer { conversation, seq: ack.seq, time: ack.time };
        assert_eq!(told, stored, "{}: the ack of {id:?} says what is stored", self.name);
        if let Some(before) = self.acked.insert(id, told) {
            assert_eq!(before, told, "a repeat of {id:?} gets the same answer");
        }
        if publish.action.is_none() {
            let entry = model.conversations[&conversation].entry(ack.seq).expect("an acked entry is there");
            let item = Item::decode(entry.item.clone()).expect("an item reads back");
            let Some(item::Kind::Entry(entry)) = item.kind else { panic!("an entry is an entry") };
            assert_eq!(entry.content, publish.content, "what is stored is what was published");
        }
    }

    fn refused(&mut self, refusal: &Refusal, wire: &mut Wire, around: &mut Around<'_>) {
        if refusal.request != 0 {
            let asked = wire.requests.remove(&refusal.request).expect("a refusal of what was asked");
            self.check_refused_request(&asked, refusal, around);
            return;
        }
        let message_id = refusal.message_id.0;
        wire.sent.remove(&message_id);
        let id = self.id(message_id);
        let Some(out) = self.durable.outbox.get_mut(&message_id) else { panic!("{id:?} is refused and was settled") };
        around.coverage.count(match refusal.reason {
            Reason::OutcomeUnknown => "outcomes unknown",
            Reason::StoreUnavailable => "publishes without a store",
            Reason::After => "publishes behind an open one",
            _ => "publishes refused",
        });
        assert!(!self.acked.contains_key(&id), "{id:?} was acked and is refused: {refusal:?}");
        match refusal.reason.verdict() {
            Verdict::Retry | Verdict::RetryElsewhere | Verdict::After => {
                // Other refusals say nothing about what became of it before (SPEC R5.4-5).
                match refusal.reason {
                    Reason::OutcomeUnknown => out.is_open = true,
                    Reason::StoreUnavailable => out.is_open = false,
                    _ => {}
                }
                let wait = u64::from(refusal.retry_after_ms).max(around.rng.u64(1..500));
                out.retry_at = around.now + if around.is_calm { 1 } else { wait };
                // Only the commit thread knows what an earlier session has stored.
                let is_sure = refusal.reason == Reason::StoreUnavailable || !out.was_sent;
                if is_sure && !out.is_open && !around.is_calm && around.rng.u8(0..3) == 0 {
                    around.coverage.count("ids given up");
                    around.trace.note(|| format!("{} {} > gives up {message_id}", around.now, self.name));
                    wire.session.give_up(MessageId(message_id));
                    self.never.insert(id, refusal.reason);
                    self.durable.outbox.remove(&message_id);
                }
            }
            Verdict::Stop => {
                let (sent, publish) = (out.first_sent.unwrap_or_default(), out.publish.clone());
                self.check_refusal(refusal, &publish, sent, around);
                self.never.insert(id, refusal.reason);
                self.durable.outbox.remove(&message_id);
            }
        }
    }

    /// Nobody is refused what the user may do.
    fn check_refusal(&self, refusal: &Refusal, publish: &Publish, sent: u64, around: &Around<'_>) {
        let reason = refusal.reason;
        assert!(
            !matches!(reason, Reason::IdConflict | Reason::IdSpanExceeded),
            "{}: {refusal:?} about {publish:?}",
            self.name
        );
        let Some(conversation) = around.model.conversations.get(&publish.conversation) else { return };
        // A refusal that was lost may be told as a stale id, when a later one is stored meanwhile.
        let is_about_rights = matches!(reason, Reason::Forbidden | Reason::UnknownConversation | Reason::StaleId);
        if publish.action.is_some() || !is_about_rights || !around.lost.is_empty() {
            return;
        }
        let may = match conversation.kind {
            Kind::Channel => true,
            Kind::Inbox => false,
            Kind::Direct | Kind::Group => conversation.members.get(&self.user_id).is_some_and(|member| {
                let since = member.intervals.last().map_or(0, |i| i.0);
                // The user is a member, and was before this was first sent.
                member.is_active() && member.role >= 2 && conversation.entry(since).is_none_or(|e| e.position <= sent)
            }),
        };
        assert!(!may, "{}: {refusal:?}, though the user may: {publish:?}", self.name);
    }

    fn check_refused_request(&self, asked: &packet::Request, refusal: &Refusal, around: &Around<'_>) {
        let Some(packet::request::Op::History(history)) = &asked.op else { return };
        let sees = around.model.conversations.get(&history.conversation).is_some_and(|conversation| {
            conversation.members.get(&self.user_id).is_some_and(crate::model::Member::is_active)
        });
        assert!(!(sees && around.is_final), "{}: history refused to a member: {refusal:?}", self.name);
    }

    /// Stores some of what has come, in order, and answers what is asked about it.
    fn store(&mut self, wire: &mut Wire, around: &mut Around<'_>) -> bool {
        let eager = around.is_calm || around.rng.u8(0..100) < self.manner.stores;
        let mut patience = if eager { around.rng.usize(0..wire.pending.len() + 1) } else { 0 };
        if around.is_calm {
            patience = usize::MAX;
        }
        let now = Millis(around.now);
        while patience > 0 {
            patience -= 1;
            let Some(got) = wire.pending.pop_front() else { break };
            match got {
                Got::Item(lane, n, item) => {
                    self.keep(&item);
                    wire.session.stored(now, lane, n);
                    around.coverage.count("items stored");
                }
                Got::Cursor(cursor) => {
                    if self.manner.keeps_cursor {
                        self.durable.cursor = Some(cursor);
                    }
                }
                Got::Ask(k) => wire.session.answer(k),
                Got::Settled(id) => drop(self.durable.outbox.remove(&id)),
            }
        }
        // A disk that fails: what stands before the request could not be stored, and comes again.
        if !around.is_calm && around.rng.u8(0..100) < self.manner.fails {
            let ask = wire.pending.iter().position(|got| matches!(got, Got::Ask(_)));
            if let Some(ask) = ask
                && let Some(Got::Ask(k)) = wire.pending.remove(ask)
            {
                let before = [Lane::Express, Lane::Bulk].map(|lane| wire.session.next(lane));
                wire.session.answer(k);
                if wire.forget_rewound(before) {
                    around.coverage.count("items sent again");
                }
            }
        }
        true
    }

    fn keep(&mut self, item: &Item) {
        let mut cover = |conversation: u64, from: u64, to: u64| {
            self.durable.covered.entry(conversation).or_default().add(from, to);
        };
        match &item.kind {
            Some(item::Kind::Entry(entry)) => {
                cover(entry.conversation, entry.seq, entry.seq);
                if let Some(joined) = &entry.joined {
                    cover(joined.conversation, 1, joined.seq);
                }
            }
            Some(item::Kind::Own(own)) => cover(own.conversation, own.seq, own.seq),
            Some(item::Kind::Head(head)) => cover(head.conversation, head.from_seq, head.to_seq),
            _ => {}
        }
    }

    fn send(&mut self, wire: &mut Wire, around: &mut Around<'_>) -> bool {
        if wire.connected.is_some() && !self.is_restored {
            let first_unanswered = self.durable.first_unanswered();
            let mut budget = around.rng.usize(1..80);
            for (id, out) in &mut self.durable.outbox {
                if budget == 0 || wire.sent.contains(id) || wire.answered.contains(id) || out.retry_at > around.now {
                    continue;
                }
                let mut publish = out.publish.clone();
                if around.rng.bool() || *id >= wire.told_unanswered + 100 {
                    wire.told_unanswered = first_unanswered;
                    publish.first_unanswered = first_unanswered;
                }
                let kind = packet::packet::Kind::Publish(publish.clone());
                if !wire.session.publish_room().admits(frame::encoded_len(&kind)) {
                    break;
                }
                budget -= 1;
                if out.first_sent.is_some() {
                    around.coverage.count("publishes repeated");
                }
                out.first_sent.get_or_insert(around.model.tail);
                around.trace.note(|| format!("{} {} > {publish:?}", around.now, self.name));
                wire.session.publish(publish);
                wire.sent.insert(*id);
                wire.published.insert(*id);
            }
        }
        if around.is_calm {
            wire.session.flush_acks();
        }
        let now = Millis(around.now);
        while wire.output.len() < 4_096 && wire.session.poll_transmit(now, &mut wire.output, 4_096) {}
        let n = wire.link.write(&wire.output);
        drop(wire.output.split_to(n));
        true
    }

    /// Says goodbye, or just goes.
    pub(crate) fn leave(&mut self, around: &mut Around<'_>) -> Option<Wire> {
        let mut wire = self.wire.take()?;
        if around.rng.bool() && wire.connected.is_some() {
            wire.session.goodbye();
            while wire.session.poll_transmit(Millis(around.now), &mut wire.output, 4_096) {}
            wire.link.write(&wire.output);
        }
        wire.link.shut_up();
        Some(wire)
    }

    // ------------------------------------------------------------------------------------------ what must be so

    /// Holds an item against the model as it arrives.
    fn check_item(&self, lane: Lane, n: u64, item: &Item, wire: &mut Wire, around: &mut Around<'_>) {
        let at = lane as usize;
        let key = match &item.kind {
            Some(item::Kind::Entry(entry)) => (entry.conversation, entry.seq),
            Some(item::Kind::Own(own)) => (own.conversation, own.seq),
            Some(item::Kind::Head(head)) => (head.conversation, head.from_seq),
            _ => (0, 0),
        };
        if n <= wire.seen.newest[at] {
            around.coverage.count("items that came again");
            let before = wire.seen.keys[at].get(&n);
            assert_eq!(before, Some(&key), "{}: item {n} is another when it comes again", self.name);
            return self.check_content(item, wire, around);
        }
        wire.seen.newest[at] = n;
        wire.seen.keys[at].insert(n, key);
        match &item.kind {
            Some(item::Kind::Entry(_) | item::Kind::Own(_)) => {
                self.check_content(item, wire, around);
                self.check_place(lane, key.0, key.1, wire, around);
            }
            Some(item::Kind::Head(head)) => self.check_head(lane, head, wire, around),
            Some(item::Kind::Mark(mark)) => {
                let member =
                    around.model.conversations.get(&mark.conversation).and_then(|c| c.members.get(&self.user_id));
                assert!(member.is_some_and(|m| m.mark >= mark.seq), "a mark that nobody set: {mark:?}");
                around.coverage.count("marks");
            }
            Some(item::Kind::CaughtUp(_)) => {
                assert!(!std::mem::replace(&mut wire.seen.caught_up[at], true), "caught up twice");
                around.coverage.count(match self.manner.mode {
                    CatchUpMode::Skip => "catch-ups in skip",
                    CatchUpMode::All => "catch-ups in all",
                });
            }
            Some(item::Kind::Progress(_)) => {}
            None => panic!("an item of no known kind"),
        }
    }

    fn check_content(&self, item: &Item, wire: &Wire, around: &Around<'_>) {
        match &item.kind {
            Some(item::Kind::Entry(entry)) => {
                let stored = self.stored(entry.conversation, entry.seq, around.model);
                assert_eq!(stored.item, item.encode_to_vec(), "an entry is delivered as it is stored");
                assert_ne!(stored.origin.device.0, self.device_id, "an own entry comes as Own");
            }
            Some(item::Kind::Own(own)) => {
                let stored = self.stored(own.conversation, own.seq, around.model);
                let incarnation = if own.incarnation == 0 { self.durable.incarnation } else { own.incarnation };
                assert_eq!(
                    (stored.origin.device.0, stored.origin.incarnation.0, stored.origin.message_id.0, stored.time),
                    (self.device_id, incarnation, own.message_id, own.time),
                    "an Own says whose it is"
                );
                let of_session = incarnation == self.durable.incarnation
                    && (wire.published.contains(&own.message_id) || own.message_id < wire.named_unanswered);
                assert!(own.entry.is_some() || of_session, "{}: content left out that it lacks: {own:?}", self.name);
            }
            _ => {}
        }
    }

    fn stored<'m>(&self, conversation: u64, seq: u64, model: &'m Model) -> &'m crate::model::Entry {
        let stored = model.conversations.get(&conversation).and_then(|c| c.entry(seq));
        stored.unwrap_or_else(|| panic!("{}: {conversation}/{seq} is delivered and not in the log", self.name))
    }

    fn check_place(&self, lane: Lane, id: u64, seq: u64, wire: &mut Wire, around: &mut Around<'_>) {
        let at = lane as usize;
        let model = around.model;
        let conversation = &model.conversations[&id];
        let position = conversation.entry(seq).expect("looked up before").position;
        assert_eq!(conversation.is_express(), lane == Lane::Express, "a lane follows from the kind");
        assert!(
            position > wire.seen.position[at],
            "{}: {id}/{seq} at {position} in {lane:?} after {}",
            self.name,
            wire.seen.position[at]
        );
        wire.seen.position[at] = position;
        let sees = conversation.members.get(&self.user_id).is_some_and(|m| m.sees(seq));
        let watches = wire.watching.get(&id).into_iter().flatten().any(|&(after, to)| after < seq && seq <= to);
        assert!(sees || watches, "{}: {id}/{seq} is delivered to who may not see it", self.name);
        if conversation.kind == Kind::Channel && watches {
            around.coverage.count("entries of watched channels");
        }
        let covered = model.covered.get(&(self.user_id, id)).copied().unwrap_or(u64::MAX);
        // Who dropped items of express is not told again before bulk goes on.
        let is_whole = wire.seen.started.is_some() && !wire.has_dropped;
        if lane == Lane::Bulk && seq > covered && !watches && is_whole {
            let inbox = &model.conversations[&model.inboxes[&self.user_id]];
            let announced = inbox.entry(model.announced[&(self.user_id, id)]).expect("an entry of the inbox").position;
            let is_known = announced <= wire.seen.position[0] || announced < model.floor;
            assert!(is_known, "{}: {id}/{seq} comes before it is announced at {announced}", self.name);
        }
        let heads = wire.seen.heads.entry(id).or_default();
        assert!(!heads.has(seq), "{}: {id}/{seq} comes though a Head named it", self.name);
        let next = wire.seen.next.get(&id).copied().unwrap_or(1);
        assert!(next <= seq, "{}: {id}/{seq} comes again in one session", self.name);
        if let Some(started) = wire.seen.started {
            for missed in next..seq {
                let is_excused = self.is_excused(id, missed, model)
                    || conversation.entry(missed).is_some_and(|e| e.position <= started[at])
                    || heads.has(missed);
                assert!(is_excused, "{}: {id}/{missed} is left out before {seq}", self.name);
            }
        }
        wire.seen.next.insert(id, seq + 1);
    }

    fn check_head(&self, lane: Lane, head: &packet::Head, wire: &mut Wire, around: &mut Around<'_>) {
        let model = around.model;
        let conversation = model.conversations.get(&head.conversation).expect("a head of a conversation that exists");
        assert_eq!(conversation.is_express(), lane == Lane::Express, "a lane follows from the kind");
        assert!(head.from_seq >= 1 && head.from_seq <= head.to_seq, "a head of nothing: {head:?}");
        assert!(head.to_seq <= conversation.head(), "a head beyond the head: {head:?}");
        let member = conversation.members.get(&self.user_id);
        let watches = wire.watching.contains_key(&head.conversation);
        assert!(watches || member.is_some_and(|m| m.sees(head.to_seq)), "a head of what is not seen: {head:?}");
        let first = conversation.entry(head.from_seq).expect("within the conversation").position;
        let at = lane as usize;
        match head.reason() {
            HeadReason::Expired => {
                around.coverage.count("heads of what expired");
                let last = conversation.entry(head.to_seq).expect("within the conversation").position;
                assert!(last < model.floor, "{}: {head:?} at {last} is kept from {}", self.name, model.floor);
            }
            HeadReason::Skipped => {
                around.coverage.count("heads of what was skipped");
                assert_eq!(self.manner.mode, CatchUpMode::Skip, "only a catch-up in mode skip skips");
            }
            HeadReason::TooLarge => {
                around.coverage.count("heads of what is too large");
                assert!(self.manner.item_bytes_max > 0 && head.from_seq == head.to_seq, "{head:?}");
            }
            other => panic!("a head that says {other:?}"),
        }
        if head.reason() != HeadReason::Expired {
            assert!(first > wire.seen.position[at], "{}: {head:?} stands at {first}, out of order", self.name);
            wire.seen.position[at] = first;
        }
        let next = wire.seen.next.get(&head.conversation).copied().unwrap_or(1);
        assert!(head.reason() == HeadReason::Expired || head.from_seq >= next, "{head:?} names what came: {next}");
        wire.seen.heads.entry(head.conversation).or_default().add(head.from_seq, head.to_seq);
    }

    /// Nobody owes this device this entry.
    pub(crate) fn is_excused(&self, id: u64, seq: u64, model: &Model) -> bool {
        let conversation = &model.conversations[&id];
        let Some(&covered) = model.covered.get(&(self.user_id, id)) else { return true };
        let Some(entry) = conversation.entry(seq) else { return true };
        let lane = usize::from(!conversation.is_express());
        seq <= covered
            || entry.position <= self.durable.excused[lane]
            || !conversation.members.get(&self.user_id).is_some_and(|m| m.sees(seq))
    }

    /// The first entry that it is owed and does not have.
    pub(crate) fn missing(&self, model: &Model) -> Option<(u64, u64)> {
        let empty = Stretches::default();
        let mine = model.of_user.get(&self.user_id).into_iter().flatten();
        mine.flat_map(|id| (1..=model.conversations[id].head()).map(|seq| (*id, seq))).find(|&(id, seq)| {
            !self.durable.covered.get(&id).unwrap_or(&empty).has(seq) && !self.is_excused(id, seq, model)
        })
    }

    /// At rest: everything that it may see is there, or it was told.
    pub(crate) fn check_view(&self, model: &Model) {
        if let Some((id, seq)) = self.missing(model) {
            let conversation = &model.conversations[&id];
            panic!(
                "{}/{}: {id}/{seq} at {} of {:?} never came; excused to {:?}, covered {:?}",
                self.user,
                self.name,
                conversation.entry(seq).expect("within").position,
                conversation.kind,
                self.durable.excused,
                self.durable.covered.get(&id),
            );
        }
        for (id, reason) in &self.never {
            assert!(!model.answers.contains_key(id), "{}: {id:?} is stored, and was refused: {reason:?}", self.name);
        }
        for (id, answer) in &self.acked {
            assert_eq!(model.answers.get(id), Some(answer), "{}: the ack of {id:?} holds", self.name);
        }
    }

    fn response(&mut self, response: &packet::Response, wire: &mut Wire, around: &mut Around<'_>) {
        let asked = wire.requests.remove(&response.id).expect("an answer to what was asked");
        let op = asked.op.expect("it asked for something");
        match (&response.result, &op) {
            (Some(response::Result::History(page)), packet::request::Op::History(asked)) => {
                self.check_history(page, asked, around);
                around.coverage.count("pages of history");
                if around.is_final && page.next_seq != 0 {
                    let next = packet::HistoryRequest { from_seq: page.next_seq, ..*asked };
                    let request =
                        packet::Request { id: wire.next_request, op: Some(packet::request::Op::History(next)) };
                    wire.next_request += 1;
                    wire.requests.insert(request.id, request.clone());
                    wire.session.request(request);
                }
            }
            (Some(response::Result::Conversations(page)), _) => self.check_conversations(page, around),
            (Some(response::Result::Members(page)), packet::request::Op::Members(asked)) => {
                let conversation = &around.model.conversations[&asked.conversation];
                if around.is_final {
                    let active: Vec<_> =
                        conversation.members.iter().filter(|(_, m)| m.is_active()).map(|(u, m)| (*u, m.role)).collect();
                    let told: Vec<_> = page.members.iter().map(|m| (m.user, m.role)).collect();
                    assert_eq!(told, active, "the members are those");
                }
                for member in &page.members {
                    assert_eq!(around.model.name(member.user), Some(member.name.as_str()), "by their names");
                }
            }
            (Some(response::Result::Watch(answer)), packet::request::Op::Watch(asked)) => {
                let watched = wire.watching.entry(asked.conversation).or_default();
                let open = watched.last_mut().filter(|(_, to)| *to == u64::MAX);
                match (open, asked.stop) {
                    // What is under way still comes.
                    (Some((_, to)), true) => *to = around.model.conversations[&asked.conversation].head(),
                    (None, false) => watched.push((answer.head_seq, u64::MAX)),
                    _ => {}
                }
            }
            (result, op) => panic!("{result:?} answers {op:?}"),
        }
    }

    fn check_history(&self, page: &packet::HistoryPage, asked: &packet::HistoryRequest, around: &Around<'_>) {
        let model = around.model;
        let conversation = &model.conversations[&asked.conversation];
        let sees = |seq: u64| {
            conversation.kind == Kind::Channel
                || conversation.members.get(&self.user_id).is_some_and(|member| member.sees(seq))
        };
        assert!(page.head_seq <= conversation.head(), "no head beyond the head");
        let mut at = match (asked.backwards, asked.from_seq) {
            (true, 0) => page.head_seq,
            (true, from) => from.min(page.head_seq),
            (false, from) => from.max(1),
        };
        for item in &page.items {
            let (from, to, reason) = match &item.kind {
                Some(item::Kind::Entry(entry)) => {
                    let stored = self.stored(asked.conversation, entry.seq, model);
                    assert_eq!(stored.item, item.encode_to_vec(), "history is what is stored");
                    assert!(sees(entry.seq), "{}: history shows {}", self.name, entry.seq);
                    (entry.seq, entry.seq, None)
                }
                Some(item::Kind::Own(own)) => {
                    let stored = self.stored(asked.conversation, own.seq, model);
                    let entry = packet::Item { kind: own.entry.clone().map(item::Kind::Entry) };
                    assert_eq!(stored.item, entry.encode_to_vec(), "an own entry of history has its content");
                    assert_eq!(stored.origin.message_id.0, own.message_id, "and its id");
                    assert_eq!(stored.origin.device.0, self.device_id, "and is the device's own");
                    assert!(sees(own.seq), "{}: history shows {}", self.name, own.seq);
                    (own.seq, own.seq, None)
                }
                Some(item::Kind::Head(head)) => (head.from_seq, head.to_seq, Some(head.reason())),
                other => panic!("history holds {other:?}"),
            };
            for seq in from..=to {
                match reason {
                    Some(HeadReason::NotYours) => assert!(!sees(seq), "{seq} is the user's"),
                    Some(HeadReason::Expired) => {
                        let entry = self.stored(asked.conversation, seq, model);
                        assert!(entry.position < model.floor, "{seq} is not expired");
                    }
                    _ => {}
                }
            }
            assert_eq!(if asked.backwards { to } else { from }, at, "a page is without holes: {asked:?} {page:?}");
            at = if asked.backwards { from - 1 } else { to + 1 };
        }
        if page.next_seq != 0 {
            assert_eq!(page.next_seq, at, "the next page goes on where this one ends");
        } else if around.is_final {
            let mut rest = if asked.backwards { 1..=at } else { at..=page.head_seq };
            assert!(rest.all(|seq| !sees(seq)), "{}: history ends at {at} of {}: {asked:?}", self.name, page.head_seq);
        }
    }

    fn check_conversations(&self, page: &packet::ConversationsPage, around: &mut Around<'_>) {
        around.coverage.count("pages of conversations");
        if !around.is_final {
            return;
        }
        let mut told = BTreeSet::new();
        for row in &page.conversations {
            let conversation = &around.model.conversations[&row.id];
            let member = conversation.members.get(&self.user_id).expect("only the user's own");
            told.insert(row.id);
            assert_eq!(
                (row.head_seq, row.role, row.mark),
                (conversation.head(), member.role, member.mark),
                "{}: head, role and mark of {} ({:?})",
                self.user,
                row.id,
                conversation.kind
            );
            // What expired above the mark may count or not.
            let unread = conversation.unread(self.user_id, 0);
            let kept = conversation.unread(self.user_id, around.model.floor);
            assert!(
                (kept..=unread).contains(&row.unread),
                "{}: {} unread in {} ({:?}), it says {}",
                self.user,
                unread,
                row.id,
                conversation.kind,
                row.unread
            );
        }
        let active = around.model.of_user.get(&self.user_id).into_iter().flatten().filter(|id| {
            let conversation = &around.model.conversations[id];
            conversation.kind != Kind::Inbox && conversation.members[&self.user_id].is_active()
        });
        if page.next == 0 {
            assert_eq!(told, active.copied().collect(), "{}: the conversations are those", self.user);
        }
    }
}

impl Wire {
    /// What could not be stored comes again: it is forgotten, and the cursors that cover it.
    fn forget_rewound(&mut self, before: [u64; 2]) -> bool {
        let next = [Lane::Express, Lane::Bulk].map(|lane| self.session.next(lane));
        if next[0] >= before[0] && next[1] >= before[1] {
            return false;
        }
        self.has_dropped = true;
        self.pending.retain(|got| match got {
            Got::Item(lane, n, _) => *n < next[*lane as usize],
            Got::Cursor(_) | Got::Ask(_) => false,
            Got::Settled(_) => true,
        });
        true
    }

    pub(crate) fn deadline(&self) -> Option<u64> {
        self.session.poll_deadline().map(|deadline| deadline.0)
    }
}
