//! A device: what it keeps through its own crashes, and one wire at a time. It keeps to the client's rules, is slow,
//! forgetful or greedy as its seed says, and holds what it gets against the model at once (`checks`).

mod answers;
mod checks;
mod delivered;
mod levels;
mod pass;

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

use self::delivered::Follows;
pub(crate) use self::delivered::{Claim, Had};
pub(crate) use self::pass::{ALL, Pass};
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
    /// When this session sent it.
    sent_at: u64,
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
    /// It connects in the background.
    pub(crate) is_background: bool,
    /// In a hundred turns, how many store what has come.
    pub(crate) stores: u8,
    /// In a hundred requests for acks, how many find a disk that fails.
    pub(crate) fails: u8,
}

/// See the module.
pub(crate) struct Device {
    pub(crate) user: String,
    pub(crate) name: String,
    pub(crate) pass: Pass,
    /// It needs another one before it connects.
    pub(crate) is_locked_out: bool,
    /// All that it ever had.
    held: Vec<Pass>,
    pub(crate) manner: Manner,
    pub(crate) durable: Durable,
    pub(crate) backup: Option<Durable>,
    pub(crate) wire: Option<Wire>,
    pub(crate) connect_at: u64,
    /// It stays away, whatever time it is.
    pub(crate) is_away: bool,
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
    /// All that it ever had.
    pub(crate) had: Had,
    /// What it was told of who has what, to be held against that.
    pub(crate) claims: Vec<Claim>,
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
    /// The log's tail and its time when something was asked.
    asked: BTreeMap<u64, (u64, u64)>,
    /// The same when it connected.
    since: (u64, u64),
    /// The log's tail when it last had something to be sent again.
    rewound: u64,
    /// Channels watched: answered, and after which head up to which.
    watching: BTreeMap<u64, Vec<(u64, u64)>>,
    pub(crate) follows: Follows,
    own_cursor: Option<Bytes>,
    /// It could not store something, and dropped what followed.
    has_dropped: bool,
    /// The token that it asked to go on with.
    pub(crate) refreshing: Option<Pass>,
    /// The token before, and the tail when it was exchanged.
    before: Option<(Pass, u64)>,
    /// Since when the broker has no reason to believe in it any more, without a pause.
    pub(crate) over_since: Option<u64>,
    /// The tail when it was in the background by the broker's word, until it says otherwise; and whether it ever was.
    background: Option<u64>,
    pub(crate) was_in_background: bool,
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
    /// Up to these seqs, nothing was overtaken.
    told: BTreeMap<u64, u64>,
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
    /// When a position was committed.
    pub(crate) committed: &'a BTreeMap<u64, u64>,
    /// The latest that the broker's clock has ever said, in seconds since 1970.
    pub(crate) latest: u64,
    /// The tokens that were taken back.
    pub(crate) revoked: &'a BTreeSet<String>,
    /// Cursors beyond this position, of segments up to then, were lost by a disk that lied.
    pub(crate) lost: &'a [(u64, u64)],
    /// The log's time; 0 while there is no broker.
    pub(crate) log_now: u64,
    /// The latest that it ever was.
    pub(crate) log_latest: u64,
    /// By session: what was recalled or erased before a lane of it came to that, and never leaves.
    pub(crate) withdrawn: &'a BTreeMap<u64, BTreeSet<(u64, u64)>>,
    /// The disk has failed, so the broker may say that it failed.
    pub(crate) may_fail: bool,
    /// Faults are over.
    pub(crate) is_calm: bool,
    /// And everything has come to rest: answers are exact.
    pub(crate) is_final: bool,
}

impl Device {
    pub(crate) fn new(user: &str, name: &str, pass: Pass, manner: Manner) -> Self {
        Self {
            user: user.into(),
            name: name.into(),
            held: vec![pass.clone()],
            pass,
            is_locked_out: false,
            manner,
            durable: Durable::default(),
            backup: None,
            wire: None,
            connect_at: 0,
            is_away: false,
            user_id: 0,
            device_id: 0,
            is_restored: false,
            newest_session: 0,
            anew: 0,
            acked: BTreeMap::new(),
            never: BTreeMap::new(),
            had: Had::default(),
            claims: Vec::new(),
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
            token: self.pass.token.clone(),
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
            background: self.manner.is_background,
            features: vec![longwire_protocol::features::SIGNALS.into()],
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
            asked: BTreeMap::new(),
            since: (around.model.tail, around.log_now),
            rewound: u64::MAX,
            watching: BTreeMap::new(),
            follows: Follows::default(),
            own_cursor: own,
            has_dropped: false,
            refreshing: None,
            before: None,
            over_since: None,
            background: self.manner.is_background.then_some(0),
            was_in_background: self.manner.is_background,
        });
    }

    /// Whether it is let in.
    pub(crate) fn is_open(&self) -> bool {
        self.wire.as_ref().is_some_and(|wire| wire.connected.is_some())
    }

    /// What of a conversation has come and is not stored: seqs, and whether the entry is its own.
    pub(crate) fn unstored(&self, conversation: u64) -> Vec<(u64, bool)> {
        let pending = self.wire.iter().flat_map(|wire| &wire.pending);
        let seqs = pending.filter_map(|got| match got {
            Got::Item(_, _, item) => match &item.kind {
                Some(item::Kind::Entry(entry)) if entry.conversation == conversation => Some((entry.seq, false)),
                Some(item::Kind::Own(own)) if own.conversation == conversation => Some((own.seq, true)),
                _ => None,
            },
            _ => None,
        });
        seqs.collect()
    }

    /// Whether a publish has been answered, and its answer is not on the device's disk yet.
    pub(crate) fn has_unsettled_answer(&self, message_id: u64) -> bool {
        self.wire.as_ref().is_some_and(|wire| wire.answered.contains(&message_id))
    }

    /// Whether everything in its outbox has left for the link.
    pub(crate) fn has_sent_all(&self) -> bool {
        let is_sent =
            |wire: &Wire| wire.output.is_empty() && self.durable.outbox.keys().all(|id| wire.sent.contains(id));
        self.wire.as_ref().is_some_and(is_sent)
    }

    /// Whether it wants nothing any more, and everything that came is stored.
    pub(crate) fn is_at_rest(&self, model: &Model) -> bool {
        if self.is_away || model.erased_at(&self.user).is_some() {
            return true;
        }
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
        durable
            .outbox
            .insert(id, Out { publish, retry_at: 0, first_sent: None, is_open: false, was_sent: false, sent_at: 0 });
        true
    }

    /// Asks for something to read.
    pub(crate) fn request(&mut self, op: packet::request::Op) {
        self.request_at(op, (0, 0));
    }

    /// The same, where the log's tail and time are these.
    pub(crate) fn request_at(&mut self, op: packet::request::Op, at: (u64, u64)) {
        let Some(wire) = self.wire.as_mut().filter(|w| w.connected.is_some() && w.requests.len() < 8) else { return };
        let request = packet::Request { id: wire.next_request, op: Some(op) };
        wire.next_request += 1;
        if let Some(packet::request::Op::Background(asked)) = &request.op {
            wire.background = None;
            wire.was_in_background |= asked.background;
            self.manner.is_background = asked.background;
        }
        request.op.iter().for_each(|op| wire.note_follow(op));
        wire.asked.insert(request.id, at);
        wire.requests.insert(request.id, request.clone());
        wire.session.request(request);
    }

    /// Says something that is worth nothing later.
    pub(crate) fn signal(&mut self, signal: packet::Signal) {
        if let Some(wire) = self.wire.as_mut() {
            wire.session.signal(signal);
        }
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
        if wire.forget_rewound(before) {
            wire.rewound = around.model.tail;
        }
        true
    }

    fn event(&mut self, event: ClientEvent, wire: &mut Wire, around: &mut Around<'_>) -> bool {
        around.trace.note(|| format!("{} {} < {event:?}", around.now, self.name));
        match event {
            ClientEvent::Connected(connected) => return self.connected(*connected, wire, around),
            ClientEvent::PublishAck(ack) => {
                wire.sent.remove(&ack.message_id);
                self.check_ack(&ack, wire, around.model);
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
            ClientEvent::Signal(signal) => self.check_signal(&signal, wire, around),
            ClientEvent::Goaway { retry_after_ms } => {
                around.coverage.count("clients asked to go");
                if around.rng.bool() {
                    self.connect_at = around.now + u64::from(retry_after_ms);
                    return false;
                }
            }
        }
        true
    }

    /// It has another token: for the next connection, or to go on with this one.
    pub(crate) fn take_pass(&mut self, pass: Pass) {
        self.held.push(pass.clone());
        self.is_locked_out = false;
        self.pass = pass;
    }

    /// Asks to go on with another token.
    pub(crate) fn refresh(&mut self, pass: Pass) {
        let Some(wire) = self.wire.as_mut().filter(|wire| wire.refreshing.is_none()) else { return };
        wire.refreshing = Some(pass.clone());
        self.held.push(pass.clone());
        self.request(packet::request::Op::Refresh(packet::RefreshRequest { token: pass.token }));
    }

    /// A connection like this device's own, by someone who has its token and only wants in.
    pub(crate) fn impostor(&self, now: u64) -> Option<Bytes> {
        if self.durable.incarnation == 0 || self.is_restored {
            return None;
        }
        let connect = packet::Connect {
            version: 1,
            token: self.pass.token.clone(),
            device: self.name.clone(),
            incarnation: self.durable.incarnation,
            first_unanswered: self.durable.first_unanswered(),
            start: StartKind::StoredCursor.into(),
            ..packet::Connect::default()
        };
        let mut session = ClientSession::new(Millis(now), connect);
        let mut output = BytesMut::new();
        while session.poll_transmit(Millis(now), &mut output, 4_096) {}
        Some(output.freeze())
    }

    fn id(&self, message_id: u64) -> Id {
        (self.device_id, self.durable.incarnation, message_id)
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
                    wire.rewound = around.model.tail;
                }
            }
        }
        true
    }

    fn keep(&mut self, item: &Item) {
        let mut cover = |conversation: u64, from: u64, to: u64| {
            self.durable.covered.entry(conversation).or_default().add(from, to);
            self.had.add(conversation, from, to);
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
                out.sent_at = around.now;
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
