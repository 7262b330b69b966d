//! Who may see what: many small histories of joins, removals, returns, roles, takeovers and tokens, over the broker's own
//! rooms with the log in memory. Nothing fails here; one thing happens after another, so an oracle that only knows
//! SPEC.md says beforehand what comes of each, and everything that anyone is sent is held against it: live, after an
//! absence, once more, in pages of history, lists and refusals.

mod checks;
mod forgets;
mod happens;
mod oracle;
mod own;
mod peer;
mod present;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use bytes::Bytes;
use longwire::broker::commit::Retention;
use longwire::store::MemoryLog;
use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{
    self, ConversationKind, Level, PublishAck, Role, StartKind, Window, request, response,
};
use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::{ClientEvent, Millis};

use crate::broker::{Ground, Running, Settings};
use crate::world::{Coverage, Keys};
use oracle::{Act, Answer, Grants, Oracle};
use peer::{Dial, Peer};

const BORN_UNIX_MS: u64 = 1_700_000_000_000;
const USERS: [&str; 4] = ["ann", "ben", "cid", "dot"];
/// Who administers.
const ADMIN: &str = USERS[0];
const CHANNELS: [&str; 2] = ["news/a", "news/b"];
/// What tokens let their users do with the two channels; the patterns of each are its own names.
const GRANTS: [Grants; 4] = [
    Grants { read: &["news/a", "news/b"], publish: &["news/a", "news/b"], moderate: &[] },
    Grants { read: &["news/a"], publish: &["news/b"], moderate: &["news/b"] },
    Grants { read: &["news/b"], publish: &[], moderate: &["news/b"] },
    Grants { read: &[], publish: &[], moderate: &[] },
];
/// No conversation has this id.
const NOWHERE: u64 = 999_999_999;
/// How often everyone has a turn before an answer counts as one that never comes.
const PATIENCE: usize = 200;

/// A device; each user has two.
struct Device {
    user: usize,
    name: String,
    user_id: u64,
    incarnation: u64,
    next_id: u64,
    cursors: Vec<Bytes>,
    /// Which of the tokens it has.
    grants: usize,
    /// What it set for conversations, and what their heads were then.
    levels: BTreeMap<u64, Vec<(u64, Level)>>,
    /// Whose presence it ever asked for.
    subscribed: BTreeSet<u64>,
    peer: Option<Peer>,
}

/// What is being opened, until its id is told.
enum Opening {
    Direct(u64, u64),
    Group(u64, String, Vec<u64>),
    Channel(&'static str),
}

/// What an answer to a request was.
type Told = Result<response::Result, Refusal>;

struct History {
    rng: fastrand::Rng,
    now: u64,
    ground: Ground,
    settings: Settings,
    tokens: &'static [[String; 4]; 4],
    broker: Option<Running>,
    devices: Vec<Device>,
    /// Connections that a newer one of the same device took over, or will.
    older: Vec<(usize, Peer)>,
    next_link: u64,
    oracle: Oracle,
    opening: Option<Opening>,
    /// What nobody was shown any more before something was published that is not answered yet.
    gone_before: Option<BTreeSet<(u64, u64)>>,
    /// Who may hear each signal, by what it says.
    signals: BTreeMap<Bytes, BTreeSet<u64>>,
    /// Up to where users were sent conversations, or had no need to be.
    had: BTreeMap<(u64, u64), u64>,
    /// Whose presence each device may have been told since it was last looked at.
    may_know: Vec<BTreeSet<u64>>,
    /// The token that is being exchanged for the one before.
    refreshing: Option<usize>,
    coverage: Coverage,
    said: u64,
    /// Answers that came, by device.
    acked: BTreeMap<usize, Result<PublishAck, Refusal>>,
    told: BTreeMap<usize, Told>,
}

/// The tokens of each user, made once for all histories.
fn tokens(keys: &Keys) -> &'static [[String; 4]; 4] {
    static TOKENS: OnceLock<[[String; 4]; 4]> = OnceLock::new();
    TOKENS.get_or_init(|| {
        USERS.map(|user| {
            GRANTS.map(|grants| {
                let claims = longwire::auth::Claims {
                    iss: "sim".into(),
                    sub: user.into(),
                    aud: longwire::auth::AUDIENCE.into(),
                    exp: u64::MAX / 2_000,
                    iat: 1_000,
                    publish: grants.publish.iter().map(ToString::to_string).collect(),
                    read: grants.read.iter().map(ToString::to_string).collect(),
                    moderate: grants.moderate.iter().map(ToString::to_string).collect(),
                    admin: user == ADMIN,
                    ..longwire::auth::Claims::default()
                };
                longwire::auth::issue(&claims, keys.private.as_bytes()).expect("a token")
            })
        })
    })
}

/// One history to its end; gives what was reached.
pub(crate) fn run(seed: u64, keys: &Keys) -> Coverage {
    let mut history = History::new(seed, keys);
    let steps = history.rng.usize(15..50);
    for _ in 0..steps {
        history.step();
        history.note_who_may_know();
    }
    history.end();
    history.coverage
}

impl History {
    fn new(seed: u64, keys: &Keys) -> Self {
        fastrand::seed(seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut devices = Vec::new();
        let users = rng.usize(2..=USERS.len());
        for (user, named) in USERS.iter().enumerate().take(users) {
            for device in 0..rng.usize(1..=2) {
                devices.push(Device {
                    user,
                    name: format!("{named}{device}"),
                    user_id: 0,
                    incarnation: 0,
                    next_id: 1,
                    cursors: Vec::new(),
                    grants: if rng.bool() { 0 } else { rng.usize(0..GRANTS.len()) },
                    levels: BTreeMap::new(),
                    subscribed: BTreeSet::new(),
                    peer: None,
                });
            }
        }
        let seal_entries = if rng.bool() { 4 } else { 1_000 };
        let mut ground = Ground::Memory(Some(Box::new(MemoryLog::new(BORN_UNIX_MS, seal_entries))));
        let settings = Settings {
            public_key: keys.public.clone(),
            retention: Retention::default(),
            state_bytes_max: if rng.u8(0..3) == 0 { 0 } else { usize::MAX },
            reads: None,
        };
        let broker = Running::start(&mut ground, &settings, 1, BORN_UNIX_MS + 1).expect("it starts");
        let count = devices.len();
        let mut history = Self {
            rng,
            now: 1,
            ground,
            settings,
            tokens: tokens(keys),
            broker: Some(broker),
            devices,
            older: Vec::new(),
            next_link: 1,
            oracle: Oracle::default(),
            opening: None,
            gone_before: None,
            signals: BTreeMap::new(),
            had: BTreeMap::new(),
            may_know: vec![BTreeSet::new(); count],
            refreshing: None,
            coverage: Coverage::default(),
            said: 0,
            acked: BTreeMap::new(),
            told: BTreeMap::new(),
        };
        // Everyone is known from the beginning.
        for device in 0..history.devices.len() {
            assert!(history.connect(device), "a first connect");
        }
        // And most of them have something to talk in.
        for _ in 0..history.rng.usize(1..5) {
            let device = history.rng.usize(0..history.devices.len());
            history.open(device);
        }
        history
    }

    fn broker(&mut self) -> &mut Running {
        self.broker.as_mut().expect("it runs")
    }

    // ------------------------------------------------------------------------------------------ turns

    /// Everything that waits is done, but for what is fed, if that is to wait.
    fn turn(&mut self, feeds: bool, only: Option<u64>) {
        for _ in 0..PATIENCE {
            let broker = self.broker.as_mut().expect("it runs");
            let ready: Vec<u64> =
                broker.ready().into_iter().filter(|link| only.is_none_or(|only| only == *link)).collect();
            let is_idle = ready.is_empty() && broker.rooms.shared.queue.is_empty() && broker.tasks() == 0;
            if is_idle && !(feeds && broker.step_feed()) {
                return;
            }
            for link in ready {
                broker.poll(link);
            }
            broker.step_commit();
            let told = broker.told();
            self.oracle.let_go(&told);
            let broker = self.broker.as_mut().expect("it runs");
            while broker.tasks() > 0 {
                broker.run_task(0);
            }
        }
    }

    fn pass(&mut self, ms: u64) {
        self.now += ms;
        let now = self.now;
        self.oracle.now = now;
        self.broker().set_time(now, BORN_UNIX_MS + now);
        self.sweep();
        for device in 0..self.devices.len() {
            let peer = self.devices[device].peer.as_mut();
            if let Some(peer) = peer
                && peer.session.handle_deadline(Millis(now)).is_err()
            {
                peer.is_over = true;
            }
            self.receive(device);
        }
    }

    /// A device takes what has arrived, each piece held against the oracle, stores some of it and answers.
    fn receive(&mut self, device: usize) {
        let Some(mut peer) = self.devices[device].peer.take() else { return };
        self.take_in(device, &mut peer, true);
        if !peer.is_over {
            self.devices[device].peer = Some(peer);
        }
    }

    fn take_in(&mut self, device: usize, peer: &mut Peer, is_newest: bool) {
        self.note_who_may_know();
        for event in peer.receive(self.now) {
            self.event(device, peer, event, is_newest);
        }
        let most = match self.rng.u8(0..6) {
            0 => 0,
            1 => 1,
            2 => 3,
            _ => usize::MAX,
        };
        let before = [packet::Lane::Express, packet::Lane::Bulk].map(|lane| peer.session.next(lane));
        if let Some(k) = peer.asked.take() {
            peer.store(self.now, most);
            peer.session.answer(k);
            let after = [packet::Lane::Express, packet::Lane::Bulk].map(|lane| peer.session.next(lane));
            if after != before {
                self.coverage.count("items that have to come again");
            }
        } else if most == usize::MAX {
            peer.store(self.now, most);
        }
        peer.send(self.now);
    }

    fn event(&mut self, device: usize, peer: &mut Peer, event: ClientEvent, is_newest: bool) {
        match event {
            ClientEvent::Connected(connected) => {
                let of = &mut self.devices[device];
                (of.user_id, of.incarnation) = (connected.user, connected.incarnation);
                self.oracle.user(connected.user, connected.inbox, USERS[of.user]);
                self.oracle.device(connected.user, connected.device);
                if connected.cursor() == packet::CursorVerdict::Reset {
                    // It begins at the tail.
                    let heads = self.oracle.conversations.iter().map(|(id, of)| ((connected.user, *id), of.head()));
                    self.had.extend(heads.collect::<Vec<_>>());
                }
            }
            ClientEvent::PublishAck(ack) => {
                if is_newest {
                    self.opened(&ack);
                    self.acked.insert(device, Ok(ack));
                }
            }
            ClientEvent::Refused(refusal) if refusal.request != 0 => {
                self.told.insert(device, Err(refusal));
            }
            ClientEvent::Refused(refusal) => {
                if is_newest {
                    self.acked.insert(device, Err(refusal));
                }
            }
            ClientEvent::Closed(refusal) => {
                let is_known = matches!(refusal.reason, Reason::TakenOver | Reason::RateLimited | Reason::AckTimeout);
                let is_erased = self.oracle.is_erased_named(USERS[self.devices[device].user]);
                let is_known = is_known || (refusal.reason == Reason::Revoked && is_erased);
                assert!(is_known, "closed with {refusal:?}");
                self.coverage.count(match refusal.reason {
                    Reason::TakenOver => "sessions taken over",
                    Reason::RateLimited => "fights for a device",
                    Reason::Revoked => "erased users kept out",
                    _ => "acks that never came",
                });
            }
            ClientEvent::Items { lane, first_n, items } => {
                for (n, item) in (first_n..).zip(items) {
                    self.check_item(device, peer, &item);
                    peer.got.push((lane, n));
                }
            }
            ClientEvent::Cursor(cursor) => {
                let cursors = &mut self.devices[device].cursors;
                cursors.push(cursor);
                if cursors.len() > 6 {
                    cursors.remove(1);
                }
            }
            ClientEvent::AckRequest { k } => peer.asked = Some(k),
            ClientEvent::Response(response) => {
                if let Some(response::Result::Refresh(_)) = &response.result {
                    self.refreshed(peer);
                }
                self.told.insert(device, Ok(response.result.expect("an answer says something")));
            }
            ClientEvent::Signal(signal) => self.check_signal(device, peer, &signal),
            ClientEvent::Goaway { .. } => {}
        }
    }

    /// The id of what is being opened is told: from now on things may be said of it.
    fn opened(&mut self, ack: &PublishAck) {
        match self.opening.take() {
            Some(Opening::Direct(a, b)) => {
                match self.oracle.direct(a, b) {
                    Some(known) => assert_eq!(ack.conversation, known, "there is one conversation for two users"),
                    None => self.oracle.make(ack.conversation, ConversationKind::Direct, "", (a, b)),
                }
                assert_eq!(ack.seq, self.oracle.conversations[&ack.conversation].head(), "the head");
            }
            Some(Opening::Group(maker, label, users)) => {
                let head = self.oracle.make_group(ack.conversation, &label, maker, &users);
                assert_eq!(ack.seq, head, "an entry for each member");
            }
            Some(Opening::Channel(name)) => {
                match self.oracle.channel(name) {
                    Some(known) => assert_eq!(ack.conversation, known, "there is one channel of a name"),
                    None => self.oracle.make(ack.conversation, ConversationKind::Channel, name, (0, 0)),
                }
                assert_eq!(ack.seq, self.oracle.conversations[&ack.conversation].head(), "the head");
            }
            None => {}
        }
    }
}
