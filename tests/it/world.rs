//! The world of these tests: a broker over a store in a temporary folder, and wires into it. Reads like sentences.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use longwire::auth::password::Cost;
use longwire::auth::{self, Accounts, AccountsSettings, Authority, Claims, Invitation, Revocations};
use longwire::broker::commit::Retention;
use longwire::broker::{Broker, BrokerParts};
use longwire::net::listener::{AcceptLimits, Security};
use longwire::routing::allowance::Rates;
use longwire::routing::limits::Quotas;
use longwire::store::{Log, RedbLog, StoreOptions};
use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, Entry, Item, Publish, PublishAck, StartKind, item};
use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::{BrokerLimits, ClientEvent, ClientSession, FrameCodec, Lane, Millis};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::codec::Decoder as _;

/// How long anything may take; a test that waits longer fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// More than any test needs that is not about them.
const ACCEPT: AcceptLimits =
    AcceptLimits { connections: 1_000, connections_per_address: 1_000, handshakes: 100, memory_bytes: None };

/// A broker that can be restarted over its store.
pub(crate) struct World {
    broker: Option<Broker>,
    port: u16,
    folder: tempfile::TempDir,
    key: (String, String),
    /// The key of the broker's own tokens, over restarts too.
    own_key: String,
    pub(crate) accounts: AccountsSettings,
    pub(crate) options: StoreOptions,
    pub(crate) retention: Retention,
    pub(crate) accept: AcceptLimits,
    pub(crate) rates: Rates,
    pub(crate) quotas: Quotas,
}

impl World {
    pub(crate) async fn new() -> Self {
        // Memtables are small, so that entries and rows are saved, let go and read again all the time.
        let options = StoreOptions { birth_unix_ms: 1_700_000_000_000, seal_entries: 16, ..StoreOptions::default() };
        Self::with_options(options).await
    }

    pub(crate) async fn with_options(options: StoreOptions) -> Self {
        let mut world = Self::nothing(options);
        world.start().await;
        world
    }

    /// Over a store that somebody else made: `make` puts its files into a folder.
    pub(crate) async fn over(make: impl FnOnce(&Path)) -> Self {
        let mut world = Self::nothing(StoreOptions { seal_entries: 16, ..StoreOptions::default() });
        make(&world.store());
        world.start().await;
        world
    }

    /// Over a log of the test's own, which cannot be restarted.
    pub(crate) async fn with_log(log: Box<dyn Log>) -> Self {
        let mut world = Self::nothing(StoreOptions::default());
        world.start_on(log).await;
        world
    }

    fn nothing(options: StoreOptions) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let key = auth::generate_key().expect("a key");
        let accounts = AccountsSettings {
            issuer: "own".into(),
            token_life_s: 3_600,
            cost: Cost { memory_kib: 8, passes: 1, lanes: 1 },
            ..AccountsSettings::default()
        };
        let own_key = auth::generate_key().expect("a key").0;
        let retention = Retention::default();
        Self {
            broker: None,
            port: 0,
            folder,
            key,
            own_key,
            accounts,
            options,
            retention,
            accept: ACCEPT,
            rates: Rates::default(),
            quotas: Quotas::default(),
        }
    }

    pub(crate) async fn start(&mut self) {
        let log = RedbLog::open(&self.store(), self.options.clone()).expect("the store opens");
        self.start_on(Box::new(log)).await;
    }

    async fn start_on(&mut self, log: Box<dyn Log>) {
        let authority = Authority::default();
        authority.set_issuers(&[("test".into(), self.key.1.clone().into_bytes())]).expect("an issuer");
        authority.set_accounts(Accounts::new(self.accounts.clone(), self.own_key.clone()).expect("a key"));
        let broker = Broker::start(BrokerParts {
            log,
            authority,
            limits: BrokerLimits::default(),
            accept: self.accept,
            rates: self.rates,
            quotas: self.quotas,
            retention: self.retention,
            // Nothing that is saved stays in memory for long.
            state_bytes_max: 0,
        })
        .expect("the broker starts");
        let socket = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        self.port = socket.local_addr().expect("its address").port();
        broker.listen(socket, Security::Plain).expect("listens");
        self.broker = Some(broker);
    }

    pub(crate) async fn stop(&mut self) {
        if let Some(broker) = self.broker.take() {
            broker.drain(Duration::from_millis(1)).await;
        }
    }

    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
    }

    pub(crate) fn broker(&self) -> &Broker {
        self.broker.as_ref().expect("the broker runs")
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    pub(crate) fn revoke(&self, text: &str) {
        self.broker().authority().set_revocations(Revocations::parse(text).expect("revocations"));
        self.broker().recheck();
    }

    pub(crate) fn claims(&self, user: &str) -> Claims {
        Claims {
            iss: "test".into(),
            sub: user.into(),
            aud: auth::AUDIENCE.into(),
            exp: u64::MAX / 2_000,
            iat: 1_000,
            ..Claims::default()
        }
    }

    pub(crate) fn token(&self, claims: &Claims) -> String {
        auth::issue(claims, self.key.0.as_bytes()).expect("a token")
    }

    /// An invitation to make an account; for one name, if it is given.
    pub(crate) fn invitation(&self, id: &str, name: Option<&str>, exp: u64) -> String {
        let invitation = Invitation {
            iss: "test".into(),
            aud: auth::INVITATION_AUDIENCE.into(),
            exp,
            jti: id.into(),
            sub: name.map(ToOwned::to_owned),
        };
        auth::issue(&invitation, self.key.0.as_bytes()).expect("an invitation")
    }

    /// What `user` says first on its device "phone" with a password.
    pub(crate) fn log_in(&self, user: &str, password: &str) -> packet::Connect {
        let login = packet::Login { user: user.into(), password: password.into(), ..packet::Login::default() };
        packet::Connect { token: String::new(), login: Some(Box::new(login)), ..self.connect(user) }
    }

    /// The same, with a new account.
    pub(crate) fn register(&self, user: &str, password: &str, invitation: &str) -> packet::Connect {
        let (user_name, password) = (user.to_owned(), password.to_owned());
        let login = packet::Login {
            user: user_name,
            password,
            register: true,
            invitation: invitation.into(),
            ..packet::Login::default()
        };
        packet::Connect { token: String::new(), login: Some(Box::new(login)), ..self.connect(user) }
    }

    /// What `user` says first on its device "phone".
    pub(crate) fn connect(&self, user: &str) -> packet::Connect {
        packet::Connect {
            version: 1,
            token: self.token(&self.claims(user)),
            device: "phone".into(),
            first_unanswered: 1,
            start: StartKind::Fresh.into(),
            ..packet::Connect::default()
        }
    }

    /// What a client of the SDK starts with, as the first device of this user.
    pub(crate) fn client(&self, user: &str) -> longwire_client::Config {
        let address = format!("longwire://127.0.0.1:{}", self.port).parse().expect("an address");
        let dialer = longwire_client::Dialer::new(&address, &longwire_client::Trust::Nobody).expect("plain");
        longwire_client::Config::new(dialer, self.token(&self.claims(user)), "phone")
    }

    pub(crate) async fn socket(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.expect("a connection")
    }

    /// A wire that is let in.
    pub(crate) async fn wire(&self, connect: packet::Connect) -> Wire {
        let mut wire = self.dial(connect).await;
        wire.connected().await.expect("let in");
        wire
    }

    /// A wire that is refused.
    pub(crate) async fn refused(&self, connect: packet::Connect) -> Refusal {
        self.dial(connect).await.connected().await.expect_err("refused")
    }

    pub(crate) async fn user(&self, name: &str) -> Wire {
        self.wire(self.connect(name)).await
    }

    /// Alice and Bob, both online, and their direct conversation, which is empty.
    pub(crate) async fn pair(&self) -> (Wire, Wire, u64) {
        let (mut alice, bob) = (self.user("alice").await, self.user("bob").await);
        let direct = alice.open_direct("bob").await;
        (alice, bob, direct)
    }

    /// A direct conversation in which `from` has said "start" to `to`, who has stored that and gone away. Returns it, and
    /// how `to` comes back.
    pub(crate) async fn away(&self, from: &mut Wire, to: &str) -> (u64, packet::Connect) {
        let mut wire = self.user(to).await;
        let direct = from.open_direct(to).await;
        wire.caught_up().await;
        from.say(direct, "start").await;
        wire.entry(direct).await;
        let cursor = wire.settle().await;
        wire.leave().await;
        (direct, self.resume(to, cursor))
    }

    /// What `user` says first when it comes back with a cursor of its own.
    pub(crate) fn resume(&self, user: &str, cursor: Bytes) -> packet::Connect {
        packet::Connect { start: StartKind::OwnCursor.into(), cursor, ..self.connect(user) }
    }

    pub(crate) async fn dial(&self, connect: packet::Connect) -> Wire {
        Wire::open(self.port, connect).await.expect("a connection")
    }
}

impl Wire {
    /// Connects to a broker on this machine and says who it is; nothing is waited for.
    pub(crate) async fn open(port: u16, connect: packet::Connect) -> std::io::Result<Self> {
        let socket = TcpStream::connect(("127.0.0.1", port)).await?;
        socket.set_nodelay(true)?;
        Ok(Self {
            socket,
            incarnation: connect.incarnation,
            session: ClientSession::new(Millis(0), connect),
            codec: FrameCodec::default(),
            input: BytesMut::new(),
            begun: Instant::now(),
            next_id: 1,
            connected: packet::Connected::default(),
            items: Vec::new(),
            cursor: Bytes::new(),
            stores: true,
            seen: [0, 0],
        })
    }
}

/// One client's end, by hand: it stores what it gets unless told not to.
pub(crate) struct Wire {
    socket: TcpStream,
    pub(crate) session: ClientSession,
    codec: FrameCodec,
    input: BytesMut,
    begun: Instant,
    pub(crate) next_id: u64,
    pub(crate) incarnation: u64,
    pub(crate) connected: packet::Connected,
    /// What was delivered and not yet looked at.
    pub(crate) items: Vec<(Lane, Item)>,
    /// The newest cursor.
    pub(crate) cursor: Bytes,
    pub(crate) stores: bool,
    seen: [u64; 2],
}

impl Wire {
    fn now(&self) -> Millis {
        Millis(self.begun.elapsed().as_millis() as u64)
    }

    pub(crate) async fn flush(&mut self) {
        let mut out = BytesMut::new();
        let now = self.now();
        while self.session.poll_transmit(now, &mut out, usize::MAX) {
            // A connection that the broker has closed is noticed when it is read.
            if self.socket.write_all(&out).await.is_err() {
                return;
            }
            out.clear();
        }
    }

    /// The next thing that happens, or how the connection ended.
    pub(crate) async fn event(&mut self) -> Result<ClientEvent, Refusal> {
        tokio::time::timeout(PATIENCE, self.next_event()).await.expect("something happens in time")
    }

    async fn next_event(&mut self) -> Result<ClientEvent, Refusal> {
        loop {
            self.flush().await;
            let now = self.now();
            if let Some((frame, size)) = self.codec.decode(&mut self.input).map_err(|e| e.refusal())? {
                let Some(event) = self.session.handle_frame(now, frame, size)? else { continue };
                match &event {
                    ClientEvent::Connected(_) => self.codec.set_frame_bytes_max(self.session.frame_bytes_max()),
                    ClientEvent::Closed(refusal) => return Err(refusal.clone()),
                    ClientEvent::Items { lane, first_n, items } => {
                        let last = first_n + items.len() as u64 - 1;
                        self.seen[*lane as usize] = last;
                        self.items.extend(items.iter().map(|item| (*lane, item.clone())));
                        if self.stores {
                            self.session.stored(now, *lane, last);
                            self.session.flush_acks();
                        }
                    }
                    ClientEvent::Cursor(cursor) if self.stores => self.cursor = cursor.clone(),
                    ClientEvent::AckRequest { k } => self.session.answer(*k),
                    _ => {}
                }
                return Ok(event);
            }
            let n = self.socket.read_buf(&mut self.input).await.unwrap_or(0);
            if n == 0 {
                return Err(Refusal::connection(Reason::Internal).because("the broker closed without a word"));
            }
        }
    }

    pub(crate) async fn connected(&mut self) -> Result<(), Refusal> {
        loop {
            if let ClientEvent::Connected(connected) = self.event().await? {
                self.incarnation = connected.incarnation;
                self.next_id = self.next_id.max(connected.first_unanswered);
                self.connected = *connected;
                return Ok(());
            }
        }
    }

    /// How the connection ends.
    pub(crate) async fn ended(&mut self) -> Refusal {
        loop {
            if let Err(refusal) = self.event().await {
                return refusal;
            }
        }
    }

    /// Says goodbye, and waits until the connection is closed.
    pub(crate) async fn leave(&mut self) {
        self.session.goodbye();
        self.ended().await;
    }

    /// Publishes under the next id, and waits for the answer.
    pub(crate) async fn publish(&mut self, publish: Publish) -> Result<PublishAck, Refusal> {
        let id = self.next_id;
        self.next_id += 1;
        let first_unanswered = if publish.first_unanswered == 0 { id } else { publish.first_unanswered };
        self.publish_as(Publish { message_id: id, first_unanswered, ..publish }).await
    }

    /// Publishes as it stands, and waits for the answer.
    pub(crate) async fn publish_as(&mut self, publish: Publish) -> Result<PublishAck, Refusal> {
        let id = publish.message_id;
        self.session.publish(publish);
        self.answer(id).await
    }

    pub(crate) async fn answer(&mut self, id: u64) -> Result<PublishAck, Refusal> {
        loop {
            match self.event().await? {
                ClientEvent::PublishAck(ack) if ack.message_id == id => return Ok(ack),
                ClientEvent::Refused(refusal) if refusal.message_id.0 == id => return Err(refusal),
                _ => {}
            }
        }
    }

    pub(crate) async fn say(&mut self, conversation: u64, text: &str) -> PublishAck {
        let content = Bytes::copy_from_slice(text.as_bytes());
        self.insist(Publish { conversation, content, ..Publish::default() }).await.expect("acked")
    }

    pub(crate) async fn act(&mut self, conversation: u64, action: Action) -> Result<PublishAck, Refusal> {
        self.insist(Publish { conversation, action: Some(action), ..Publish::default() }).await
    }

    /// Publishes under the next id, again and again while the store has no room for it: memtables are small here.
    pub(crate) async fn insist(&mut self, publish: Publish) -> Result<PublishAck, Refusal> {
        let (id, begun) = (self.next_id, Instant::now());
        self.next_id += 1;
        let publish = Publish { message_id: id, first_unanswered: id, ..publish };
        loop {
            match self.publish_as(publish.clone()).await {
                Err(refusal) if refusal.reason == Reason::StoreUnavailable && begun.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                answer => return answer,
            }
        }
    }

    pub(crate) async fn open_direct(&mut self, user: &str) -> u64 {
        let open = Action::OpenDirect(packet::OpenDirect { user: user.into() });
        self.act(0, open).await.expect("opened").conversation
    }

    pub(crate) async fn open_channel(&mut self, name: &str) -> Result<u64, Refusal> {
        let open = Action::OpenChannel(packet::OpenChannel { name: name.into() });
        self.act(0, open).await.map(|ack| ack.conversation)
    }

    pub(crate) async fn create_group(&mut self, label: &str, users: &[&str]) -> u64 {
        let users = users.iter().map(|&user| user.into()).collect();
        let create = Action::CreateGroup(packet::CreateGroup { label: label.into(), users, ..Default::default() });
        self.act(0, create).await.expect("created").conversation
    }

    pub(crate) async fn set_role(
        &mut self,
        conversation: u64,
        user: &str,
        role: packet::Role,
    ) -> Result<PublishAck, Refusal> {
        let set = packet::SetRole { user: user.into(), role: role.into() };
        self.act(conversation, Action::SetRole(set)).await
    }

    pub(crate) async fn ask(&mut self, op: packet::request::Op) -> Result<packet::response::Result, Refusal> {
        let id = self.next_id + 1_000_000;
        self.session.request(packet::Request { id, op: Some(op) });
        loop {
            match self.event().await? {
                ClientEvent::Response(response) if response.id == id => return Ok(response.result.expect("a result")),
                ClientEvent::Refused(refusal) if refusal.request == id => return Err(refusal),
                _ => {}
            }
        }
    }

    pub(crate) async fn history(&mut self, request: packet::HistoryRequest) -> Result<packet::HistoryPage, Refusal> {
        match self.ask(packet::request::Op::History(request)).await? {
            packet::response::Result::History(page) => Ok(page),
            other => panic!("{other:?} answers a history request"),
        }
    }

    /// Every page of a conversation's history, of at most `limit` items each.
    pub(crate) async fn pages(&mut self, conversation: u64, limit: u32, backwards: bool) -> Vec<packet::HistoryPage> {
        let mut request = packet::HistoryRequest { conversation, from_seq: 0, limit, backwards, compact: false };
        let mut pages = Vec::new();
        loop {
            let page = self.history(request).await.expect("a page");
            assert!(page.items.len() <= limit as usize, "a page holds no more than was asked for, heads included");
            request.from_seq = page.next_seq;
            pages.push(page);
            if request.from_seq == 0 {
                return pages;
            }
        }
    }

    pub(crate) async fn conversations(&mut self) -> Vec<packet::Conversation> {
        self.conversations_page(0, 100).await.conversations
    }

    pub(crate) async fn conversations_page(&mut self, before: u64, limit: u32) -> packet::ConversationsPage {
        let request = packet::ConversationsRequest { before, limit, since: 0 };
        match self.ask(packet::request::Op::Conversations(request)).await.expect("a page") {
            packet::response::Result::Conversations(page) => page,
            other => panic!("{other:?} answers a request for conversations"),
        }
    }

    /// Waits until `wanted` holds of an item, and returns it with all that came before.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Item) -> bool) -> Vec<Item> {
        let mut seen = Vec::new();
        loop {
            while !self.items.is_empty() {
                let (_, item) = self.items.remove(0);
                let found = wanted(&item);
                seen.push(item);
                if found {
                    return seen;
                }
            }
            self.event().await.expect("the connection holds");
        }
    }

    /// The next entry of this conversation.
    pub(crate) async fn entry(&mut self, conversation: u64) -> Entry {
        let items = self.until(|item| entry(item).is_some_and(|e| e.conversation == conversation)).await;
        items.last().and_then(entry).expect("an entry").clone()
    }

    /// Both lanes have caught up; returns what came before.
    pub(crate) async fn caught_up(&mut self) -> Vec<Item> {
        let is_caught_up = |item: &Item| matches!(item.kind, Some(item::Kind::CaughtUp(_)));
        let mut items = self.until(is_caught_up).await;
        items.extend(self.until(is_caught_up).await);
        items.retain(|item| !is_caught_up(item));
        items
    }

    /// Stores what came while it did not.
    pub(crate) async fn store_all(&mut self) {
        let now = self.now();
        for lane in [Lane::Express, Lane::Bulk] {
            let last = self.seen[lane as usize];
            if last > 0 {
                self.session.stored(now, lane, last);
            }
        }
        self.session.flush_acks();
        self.flush().await;
    }

    /// Waits for a cursor that covers all that came so far.
    pub(crate) async fn settle(&mut self) -> Bytes {
        loop {
            if let ClientEvent::Cursor(cursor) = self.event().await.expect("the connection holds") {
                return cursor;
            }
        }
    }
}

/// The entry of an item, also of an own one with content.
pub(crate) fn entry(item: &Item) -> Option<&Entry> {
    match &item.kind {
        Some(item::Kind::Entry(entry)) => Some(entry),
        Some(item::Kind::Own(own)) => own.entry.as_ref(),
        _ => None,
    }
}

/// The contents of the messages among items, in order.
pub(crate) fn texts(items: &[Item]) -> Vec<String> {
    let messages = items.iter().filter_map(entry).filter(|e| e.kind() == packet::EntryKind::Message);
    messages.map(|e| String::from_utf8_lossy(&e.content).into_owned()).collect()
}

/// The seqs of the entries of a conversation among items, in order.
pub(crate) fn seqs(items: &[Item], conversation: u64) -> Vec<u64> {
    items.iter().filter_map(entry).filter(|e| e.conversation == conversation).map(|e| e.seq).collect()
}

/// The heads among items: conversation, from, to, reason.
pub(crate) fn heads(items: &[Item]) -> Vec<(u64, u64, u64, packet::HeadReason)> {
    let head = |item: &Item| match &item.kind {
        Some(item::Kind::Head(h)) => Some((h.conversation, h.from_seq, h.to_seq, h.reason())),
        _ => None,
    };
    items.iter().filter_map(head).collect()
}
