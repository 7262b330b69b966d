//! Who may see what: many small histories of joins, removals, returns, roles, takeovers and tokens, over the broker's own
//! rooms with the log in memory. Nothing fails here; one thing happens after another, so an oracle that only knows
//! SPEC.md says beforehand what comes of each, and everything that anyone is sent is held against it: live, after an
//! absence, once more, in pages of history, lists and refusals.

mod checks;
mod oracle;
mod peer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use bytes::Bytes;
use longwire::broker::commit::Retention;
use longwire::store::MemoryLog;
use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, ConversationKind, PublishAck, Role, StartKind, Window, request, response};
use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::{ClientEvent, Millis};

use crate::broker::{Ground, Running, Settings};
use crate::world::{Coverage, Keys};
use oracle::{Act, Answer, Grants, Oracle};
use peer::{Dial, Peer};

const BORN_UNIX_MS: u64 = 1_700_000_000_000;
const USERS: [&str; 4] = ["ann", "ben", "cid", "dot"];
const CHANNELS: [&str; 2] = ["news/a", "news/b"];
/// What tokens let their users do with the two channels; the patterns of each are its own names.
const GRANTS: [Grants; 4] = [
    Grants { read: &["news/a", "news/b"], publish: &["news/a", "news/b"] },
    Grants { read: &["news/a"], publish: &["news/b"] },
    Grants { read: &["news/b"], publish: &[] },
    Grants { read: &[], publish: &[] },
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
    }
    history.end();
    history.coverage
}

impl History {
    fn new(seed: u64, keys: &Keys) -> Self {
        fastrand::seed(seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut devices = Vec::new();
        for user in 0..rng.usize(2..=USERS.len()) {
            for device in 0..rng.usize(1..=2) {
                devices.push(Device {
                    user,
                    name: format!("{}{device}", USERS[user]),
                    user_id: 0,
                    incarnation: 0,
                    next_id: 1,
                    cursors: Vec::new(),
                    grants: if rng.bool() { 0 } else { rng.usize(0..GRANTS.len()) },
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
        };
        let broker = Running::start(&mut ground, &settings, 1, BORN_UNIX_MS + 1).expect("it starts");
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
        let broker = self.broker();
        for _ in 0..PATIENCE {
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
            drop(broker.told());
            while broker.tasks() > 0 {
                broker.run_task(0);
            }
        }
    }

    fn pass(&mut self, ms: u64) {
        self.now += ms;
        let now = self.now;
        self.broker().set_time(now, BORN_UNIX_MS + now);
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
                assert!(is_known, "closed with {refusal:?}");
                self.coverage.count(match refusal.reason {
                    Reason::TakenOver => "sessions taken over",
                    Reason::RateLimited => "fights for a device",
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

    // ------------------------------------------------------------------------------------------ what happens

    fn connect(&mut self, device: usize) -> bool {
        if let Some(older) = self.devices[device].peer.take() {
            self.older.push((device, older));
        }
        let number = self.next_link;
        self.next_link += 1;
        let window = [None, Some(Window { items: 1, bytes: 512 }), Some(Window { items: 4, bytes: 2_000 })];
        let window = window[self.rng.usize(0..3)];
        let of = &self.devices[device];
        let (start, cursor) = match self.rng.u8(0..6) {
            0 => (StartKind::Fresh, Bytes::new()),
            1 => (StartKind::StoredCursor, Bytes::new()),
            _ if of.cursors.is_empty() => (StartKind::Fresh, Bytes::new()),
            2..=3 => (StartKind::OwnCursor, of.cursors[self.rng.usize(0..of.cursors.len())].clone()),
            _ => (StartKind::OwnCursor, of.cursors[of.cursors.len() - 1].clone()),
        };
        let peer = Peer::connect(Dial {
            number,
            now: self.now,
            token: &self.tokens[of.user][of.grants],
            grants: GRANTS[of.grants],
            device: &of.name,
            incarnation: of.incarnation,
            first_unanswered: of.next_id,
            start,
            cursor,
            window,
        });
        let link = peer.link.clone();
        self.broker().accept(number, &link);
        self.devices[device].peer = Some(peer);
        for _ in 0..PATIENCE {
            self.turn(false, Some(number));
            self.receive(device);
            match &self.devices[device].peer {
                Some(peer) if peer.connected.is_some() => {
                    self.coverage.count("connects");
                    return true;
                }
                Some(_) => {}
                None => return false,
            }
        }
        panic!("a connect has no answer");
    }

    /// Connects, if need be once the fight for the device is over.
    fn connect_at_last(&mut self, device: usize) {
        if !self.connect(device) {
            self.pass(61_000);
            assert!(self.connect(device), "let in after a minute");
        }
    }

    /// Publishes and waits for the answer; where the connection ends before, says it again on the next one.
    fn publish(&mut self, device: usize, publish: &packet::Publish) -> Result<PublishAck, Refusal> {
        loop {
            let now = self.now;
            if let Some(peer) = self.devices[device].peer.as_mut() {
                peer.session.publish(publish.clone());
                peer.send(now);
                if let Some(answer) = self.answer(device, |history, device| history.acked.remove(&device)) {
                    return answer;
                }
            }
            let next_id = std::mem::replace(&mut self.devices[device].next_id, publish.message_id);
            self.connect_at_last(device);
            self.devices[device].next_id = next_id;
        }
    }

    fn ask(&mut self, device: usize, op: &request::Op) -> Told {
        loop {
            let now = self.now;
            if let Some(peer) = self.devices[device].peer.as_mut() {
                peer.request += 1;
                peer.session.request(packet::Request { id: peer.request, op: Some(op.clone()) });
                peer.send(now);
                if let Some(told) = self.answer(device, |history, device| history.told.remove(&device)) {
                    return told;
                }
            }
            self.connect_at_last(device);
        }
    }

    /// Waits for an answer; `None` where the connection ends before it comes.
    fn answer<T>(&mut self, device: usize, take: impl Fn(&mut Self, usize) -> Option<T>) -> Option<T> {
        // Half of the time nobody else has a turn meanwhile, and nothing is fed.
        let number = self.devices[device].peer.as_ref()?.number;
        let (feeds, only) = if self.rng.bool() { (true, None) } else { (false, Some(number)) };
        for _ in 0..PATIENCE {
            self.turn(feeds, only);
            self.receive(device);
            let answer = take(self, device);
            if answer.is_some() || self.devices[device].peer.is_none() {
                return answer;
            }
        }
        panic!("no answer");
    }

    fn next(&mut self, device: usize, conversation: u64, action: Option<Action>, content: &str) -> packet::Publish {
        let of = &mut self.devices[device];
        let message_id = of.next_id;
        of.next_id += 1;
        let content = Bytes::copy_from_slice(content.as_bytes());
        packet::Publish { conversation, message_id, first_unanswered: message_id, content, action }
    }

    fn step(&mut self) {
        let device = self.rng.usize(0..self.devices.len());
        if self.rng.u8(0..3) == 0 {
            self.turn(true, None);
        }
        if self.devices[device].peer.is_none() {
            self.connect(device);
            return;
        }
        match self.rng.u8(0..60) {
            0..=17 => self.act(device),
            18..=28 => self.decide(),
            29..=30 => self.open(device),
            31..=42 => {
                let id = self.any(device);
                self.request(device, id);
            }
            43..=44 => self.refresh(device),
            45..=46 => self.take_over(device),
            47..=50 => {
                // It goes, and says so or not.
                if let Some(peer) = self.devices[device].peer.take() {
                    if self.rng.bool() {
                        peer.link.shut_up();
                    } else {
                        peer.link.cut();
                    }
                }
            }
            51..=53 => {
                let ms = if self.rng.u8(0..3) == 0 { 10_500 } else { self.rng.u64(0..1_500) };
                self.pass(ms);
            }
            54 if self.rng.bool() => self.restart(),
            _ => {
                self.receive(device);
                for at in (0..self.older.len()).rev() {
                    self.older(at);
                }
            }
        }
    }

    /// An older connection of a device takes what still comes.
    fn older(&mut self, at: usize) {
        let (device, mut peer) = self.older.swap_remove(at);
        self.take_in(device, &mut peer, false);
        if !peer.is_over {
            self.older.push((device, peer));
        }
    }

    /// A conversation, mostly one of the user's.
    fn any(&mut self, device: usize) -> u64 {
        let user = self.devices[device].user_id;
        if self.rng.u8(0..20) == 0 {
            return NOWHERE;
        }
        let all: Vec<u64> = self.oracle.conversations.keys().copied().collect();
        if self.rng.u8(0..5) == 0 {
            let name = CHANNELS[self.rng.usize(0..2)];
            if let Some(channel) = self.oracle.channel(name) {
                return channel;
            }
        }
        let of = |id: &u64| {
            let conversation = &self.oracle.conversations[id];
            conversation.kind != ConversationKind::Inbox && conversation.members.contains_key(&user)
        };
        let own: Vec<u64> = all.iter().copied().filter(of).collect();
        let from = if own.is_empty() || self.rng.u8(0..4) == 0 { &all } else { &own };
        from[self.rng.usize(0..from.len())]
    }

    fn anyone(&mut self) -> (u64, &'static str) {
        let device = self.rng.usize(0..self.devices.len());
        (self.devices[device].user_id, USERS[self.devices[device].user])
    }

    fn act(&mut self, device: usize) {
        let (act, publish) = self.chosen(device);
        let expected = self.expected(device, publish.conversation, &act);
        let answer = self.publish(device, &publish);
        self.check_answer(&act, expected, answer);
    }

    /// Who decides about a group adds someone, or lets someone go.
    fn decide(&mut self) {
        let mut may = Vec::new();
        for (at, device) in self.devices.iter().enumerate().filter(|(_, device)| device.peer.is_some()) {
            let groups = self.oracle.conversations.iter().filter(|(_, c)| c.kind == ConversationKind::Group);
            let decides = |role| matches!(role, Role::Admin | Role::Owner);
            may.extend(groups.filter(|(_, c)| decides(c.role(device.user_id))).map(|(id, _)| (at, *id)));
        }
        let Some(&(device, id)) = self.rng.choice(&may) else { return };
        let (whose, name) = self.anyone();
        let is_in = self.oracle.conversations[&id].is_member(whose);
        let role = if is_in { Role::None } else { Role::Member };
        let set = packet::SetRole { user: name.into(), role: role.into() };
        let publish = self.next(device, id, Some(Action::SetRole(set)), "");
        let act = Act::SetRole(whose, role);
        let expected = self.expected(device, id, &act);
        let answer = self.publish(device, &publish);
        self.check_answer(&act, expected, answer);
    }

    fn chosen(&mut self, device: usize) -> (Act, packet::Publish) {
        let id = self.any(device);
        self.said += 1;
        let text = format!("said {}", self.said);
        let (whose, name) = self.anyone();
        let roles = [Role::None, Role::None, Role::Member, Role::Member, Role::Reader, Role::Admin, Role::Owner];
        let role = roles[self.rng.usize(0..roles.len())];
        let seq = self.rng.u64(0..12);
        let is_channel = self.oracle.conversations.get(&id).is_some_and(|c| c.kind == ConversationKind::Channel);
        let (act, action) = match self.rng.u8(0..20) {
            0..=2 if is_channel => (Act::Join, Some(Action::Join(packet::Join {}))),
            0 => (Act::Join, Some(Action::Join(packet::Join {}))),
            1..=2 => (Act::Leave, Some(Action::Leave(packet::Leave {}))),
            3..=9 => {
                let set = packet::SetRole { user: name.into(), role: role.into() };
                (Act::SetRole(whose, role), Some(Action::SetRole(set)))
            }
            10 => (Act::SetLabel(text.clone()), Some(Action::SetLabel(packet::SetLabel { label: text.clone() }))),
            11..=12 => (Act::SetMark(seq), Some(Action::SetMark(packet::SetMark { seq }))),
            _ => (Act::Say(text.clone()), None),
        };
        let content = if action.is_none() { text.as_str() } else { "" };
        let publish = self.next(device, id, action, content);
        (act, publish)
    }

    fn expected(&mut self, device: usize, id: u64, act: &Act) -> Answer {
        let of = &self.devices[device];
        let grants = of.peer.as_ref().expect("it is online").grants;
        let was = self.oracle.conversations.get(&id).map(|c| c.role(of.user_id));
        let expected = self.oracle.act(of.user_id, &grants, id, act);
        self.coverage.count(match (&expected, act) {
            (Answer::Unknown, _) => "what is none of the user's",
            (Answer::Refused, _) => "what the user may not do",
            (_, Act::Join) => "joins",
            (_, Act::Leave) if was != Some(Role::None) => "users who left",
            (_, Act::SetRole(_, Role::None)) => "removals",
            (_, Act::SetRole(whose, _)) if self.has_left(id, *whose) => "returns",
            (_, Act::SetRole(..)) => "roles given",
            _ => "other publishes",
        });
        expected
    }

    /// Whether this user was in a conversation before it came in last.
    fn has_left(&self, id: u64, user: u64) -> bool {
        self.oracle.conversations[&id].members.get(&user).is_some_and(|member| member.stretches.len() > 1)
    }

    fn open(&mut self, device: usize) {
        let user = self.devices[device].user_id;
        match self.rng.u8(0..3) {
            0 => {
                let (other, name) = self.anyone();
                self.opening = Some(Opening::Direct(user, other));
                let publish =
                    self.next(device, 0, Some(Action::OpenDirect(packet::OpenDirect { user: name.into() })), "");
                self.publish(device, &publish).expect("whoever may be written to");
            }
            1 => {
                let chosen: Vec<_> = (0..self.rng.usize(0..4)).map(|_| self.anyone()).collect();
                let label = format!("group {}", self.said);
                let users = chosen.iter().map(|(_, name)| (*name).to_owned()).collect();
                let create = packet::CreateGroup { label: label.clone(), users };
                self.opening = Some(Opening::Group(user, label, chosen.iter().map(|(user, _)| *user).collect()));
                let publish = self.next(device, 0, Some(Action::CreateGroup(create)), "");
                self.publish(device, &publish).expect("anyone makes a group");
            }
            _ => {
                let name = CHANNELS[self.rng.usize(0..2)];
                let grants = self.devices[device].peer.as_ref().expect("it is online").grants;
                self.opening = Some(Opening::Channel(name));
                let open = packet::OpenChannel { name: name.into() };
                let publish = self.next(device, 0, Some(Action::OpenChannel(open)), "");
                let opened = self.publish(device, &publish);
                self.opening = None;
                match opened {
                    Ok(_) => assert!(Oracle::may_open(&grants, name), "{name} is opened by who may not"),
                    Err(refusal) => {
                        assert!(!Oracle::may_open(&grants, name), "{name} may be opened: {refusal:?}");
                        Self::check_unknown(&refusal);
                    }
                }
            }
        }
    }

    /// A new token, which may let its user do more or less.
    fn refresh(&mut self, device: usize) {
        let grants = self.rng.usize(0..GRANTS.len());
        let token = self.tokens[self.devices[device].user][grants].clone();
        self.refreshing = Some(grants);
        let told = self.ask(device, &request::Op::Refresh(packet::RefreshRequest { token }));
        assert!(matches!(told, Ok(response::Result::Refresh(_))), "a good token is taken: {told:?}");
        self.coverage.count("tokens refreshed");
        self.devices[device].grants = grants;
    }

    /// The answer to a refresh has come: what follows it on the wire follows the new token.
    fn refreshed(&mut self, peer: &mut Peer) {
        let Some(grants) = self.refreshing.take() else { return };
        let channels = self.oracle.conversations.iter().filter(|(_, c)| c.kind == ConversationKind::Channel);
        let heads = channels.map(|(id, c)| (*id, c.head())).collect();
        let before = std::mem::replace(&mut peer.grants, GRANTS[grants]);
        peer.before.push((before, heads));
    }

    /// A second connection of the device, while the first one still says something: that is stored once or not at all,
    /// and once it is repeated.
    fn take_over(&mut self, device: usize) {
        let (act, publish) = self.chosen(device);
        let expected = self.expected(device, publish.conversation, &act);
        let peer = self.devices[device].peer.as_mut().expect("it is online");
        let number = peer.number;
        peer.session.publish(publish.clone());
        peer.send(self.now);
        match self.rng.u8(0..3) {
            0 => drop(self.broker().poll(number)),
            1 => self.turn(false, Some(number)),
            _ => {}
        }
        // What the older one was answered is the newer one's to hear: it repeats all.
        let next_id = std::mem::replace(&mut self.devices[device].next_id, publish.message_id);
        let is_in = self.connect(device);
        self.devices[device].next_id = next_id;
        self.coverage.count(if is_in { "takeovers" } else { "takeovers refused" });
        let answer = self.publish(device, &publish);
        self.check_answer(&act, expected, answer);
    }

    fn restart(&mut self) {
        let broker = self.broker.take().expect("it runs");
        broker.kill(&mut self.ground);
        self.older.clear();
        for device in &mut self.devices {
            device.peer = None;
        }
        let unix_ms = BORN_UNIX_MS + self.now;
        let broker = Running::start(&mut self.ground, &self.settings, self.now, unix_ms).expect("it starts again");
        self.broker = Some(broker);
        self.coverage.count("starts");
    }

    /// Everyone comes back from where they once were, is sent all there is, and asks for everything.
    fn end(&mut self) {
        self.pass(61_000);
        for device in 0..self.devices.len() {
            if self.rng.bool() || self.devices[device].peer.is_none() {
                assert!(self.connect(device), "let in at the end");
            }
            for _ in 0..4 {
                self.turn(true, None);
                self.receive(device);
            }
        }
        for device in 0..self.devices.len() {
            if self.devices[device].peer.is_none() {
                continue;
            }
            let all: Vec<u64> = self.oracle.conversations.keys().copied().collect();
            for id in all {
                self.ask_history(device, id, 0, 200, false);
                self.ask_members(device, id);
            }
            self.ask_conversations(device);
            self.ask_users(device);
        }
        let users: BTreeSet<u64> = self.devices.iter().map(|device| device.user_id).collect();
        assert_eq!(users, self.oracle.users.keys().copied().collect(), "nobody else was made");
    }
}
