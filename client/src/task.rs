//! The one task of a client: it owns socket, session and outbox, and turns wishes and arrivals into each other.
//!
//! One loop: a single event, then [`Task::pump`] moves everything that can move. A connection comes to be in steps
//! ([`Phase`]); commands are served in all of them.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use longwire_protocol::frame::FrameCodec;
use longwire_protocol::ids::MessageId;
use longwire_protocol::limits;
use longwire_protocol::packet::{self, Connect, CursorVerdict, StartKind, request, response};
use longwire_protocol::reason::{Reason, Refusal, Verdict};
use longwire_protocol::session::{ClientEvent, ClientSession, Millis};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::backoff::Backoff;
use crate::config::{Config, Start, TokenFuture, TokenSource};
use crate::delivery::{Item, Reset};
use crate::dial::{ByteStream, Dialing};
use crate::error::{Failure, GiveUpError, PublishError, RequestError};
use crate::intake::Shared;
use crate::link::{Link, LinkError};
use crate::outbox::{Answer, OutboxError, OutboxState, Owner, Saved, Unfit};
use crate::requests::{Reply, Requests};
use crate::state::State;
use crate::trust::Untrusted;

/// What a handle wishes.
#[derive(Debug)]
pub(crate) enum Command {
    Publish { id: Option<u64>, publish: packet::Publish, saved: Saved, answer: Answer },
    GiveUp { id: u64, done: oneshot::Sender<Result<(), GiveUpError>> },
    SendAnyway { id: u64, saved: Saved, answer: Answer },
    Doubtful { reply: oneshot::Sender<Vec<(u64, packet::Publish)>> },
    Unanswered { reply: oneshot::Sender<Vec<(u64, packet::Publish)>> },
    Request { op: request::Op, reply: Reply },
    Watch { conversation: u64, reply: Reply },
    Unwatch { conversation: u64 },
    ConnectNow,
    Close { done: oneshot::Sender<()> },
}

/// How long a connection that the broker asked to end may go on to get its answers.
const GOAWAY_GRACE: Duration = Duration::from_secs(5);
/// How long a goodbye may take.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
/// The least and the most that a publish refused for now waits when the broker does not say.
const RETRY_MS: std::ops::Range<u64> = 50..250;
/// An ack request is answered this long before the protocol's limit, whatever the application does.
const ANSWER_AFTER: Duration = Duration::from_millis(limits::ACK_ANSWER_DELAY_MS - 1_000);
/// What is said of an outbox that the broker has found out.
const COPY: &str = "the outbox was restored from a copy: it asks for a new incarnation";
/// When a page of history that was refused for now is asked for again, if the broker does not say.
const SEARCH_AGAIN: Duration = Duration::from_millis(250);
/// When a token is refreshed, as a part of its life.
const REFRESH_AT: f64 = 0.8;

/// How far a connection has come.
enum Phase {
    /// The token is being asked for.
    Token(TokenFuture),
    /// The socket is being made.
    Dialing { token: String, dialing: Dialing },
    /// Bytes flow; `connected` once the broker has let this device in.
    Online(Box<Online>),
    /// Until the next attempt.
    Waiting(Instant),
}

struct Online {
    link: Link,
    since: Instant,
    connected: bool,
    /// The broker goes away: how long to stay away, and until when this connection may last.
    going: Option<(Duration, Instant)>,
    /// Ack requests that the application has not settled: k, and when to answer in any case.
    asked: VecDeque<(u64, Instant)>,
    refresh_at: Option<Instant>,
}

/// What happened in a phase.
enum Step {
    Token(Result<String, String>),
    Dialed(String, std::io::Result<Box<dyn ByteStream>>),
    /// Whether anything was read.
    Turned(std::io::Result<bool>),
    /// A deadline passed.
    Time,
}

impl Phase {
    /// The next thing that happens, at the latest when `wake` comes. Cancel safe: futures stay where they are.
    async fn step(&mut self, wake: Option<Instant>) -> Step {
        let time = async {
            match wake {
                Some(wake) => sleep_until(wake).await,
                None => pending().await,
            }
        };
        let step = async {
            match self {
                Self::Waiting(_) => pending().await,
                Self::Token(token) => Step::Token(token.await),
                Self::Dialing { token, dialing } => {
                    let dialed = dialing.await;
                    // Not before: a step that is given up half way is begun again.
                    Step::Dialed(std::mem::take(token), dialed)
                }
                Self::Online(online) => Step::Turned(online.link.turn().await),
            }
        };
        tokio::select! {
            step = step => step,
            () = time => Step::Time,
        }
    }
}

/// See the module.
pub(crate) struct Task {
    config: Config,
    commands: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    states: watch::Sender<State>,
    outbox: OutboxState,
    saves: mpsc::UnboundedReceiver<Result<u64, OutboxError>>,
    phase: Phase,
    epoch: Instant,
    backoff: Backoff,
    random: fastrand::Rng,
    attempt: u32,
    /// Whether a session has begun: from then on `start` is the past.
    began: bool,
    requests: Requests,
    refreshing: Option<TokenFuture>,
    /// The page of history that a restored outbox settles by.
    searching: Option<oneshot::Receiver<Result<response::Result, RequestError>>>,
    search_at: Instant,
}

/// What a turn of the loop comes to.
enum Turn {
    Command(Option<Command>),
    Saved(Option<Result<u64, OutboxError>>),
    Settled,
    Refreshed(Result<String, String>),
    Searched(Result<response::Result, RequestError>),
    Step(Step),
}

/// Why there is no connection for now: for people, and for who acts on it.
#[derive(Default)]
struct Why {
    reason: String,
    refusal: Option<Refusal>,
    untrusted: Option<Untrusted>,
}

impl Why {
    fn because(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), ..Self::default() }
    }

    fn not_connected(error: &std::io::Error) -> Self {
        match Untrusted::of(error) {
            Some(untrusted) => Self { untrusted: Some(untrusted.clone()), ..Self::because(untrusted.to_string()) },
            None => Self::because(format!("cannot connect: {error}")),
        }
    }
}

/// How the loop ends.
enum End {
    Closed(Option<oneshot::Sender<()>>),
    Failed(Failure),
}

impl Task {
    pub(crate) fn new(
        config: Config,
        outbox: OutboxState,
        saves: mpsc::UnboundedReceiver<Result<u64, OutboxError>>,
        commands: mpsc::Receiver<Command>,
        shared: Arc<Shared>,
        states: watch::Sender<State>,
    ) -> Self {
        Self {
            config,
            commands,
            shared,
            states,
            outbox,
            saves,
            phase: Phase::Waiting(Instant::now()),
            epoch: Instant::now(),
            backoff: Backoff::default(),
            random: fastrand::Rng::new(),
            attempt: 0,
            began: false,
            requests: Requests::default(),
            refreshing: None,
            searching: None,
            search_at: Instant::now(),
        }
    }

    /// Runs until the client is closed or has failed.
    pub(crate) async fn run(mut self) {
        self.begin_attempt();
        let end = loop {
            if let Err(error) = self.pump()
                && let Some(end) = self.disconnected(error)
            {
                break end;
            }
            match self.turn().await {
                Turn::Command(None) => break End::Closed(None),
                Turn::Command(Some(Command::Close { done })) => break End::Closed(Some(done)),
                Turn::Command(Some(command)) => self.handle_command(command),
                Turn::Saved(Some(Ok(number))) => self.outbox.saved(number),
                Turn::Saved(Some(Err(error))) => break End::Failed(Failure::Outbox(error)),
                Turn::Saved(None) => break End::Closed(None),
                Turn::Settled => {}
                Turn::Refreshed(token) => self.handle_new_token(token),
                Turn::Searched(answer) => self.handle_searched(answer),
                Turn::Step(step) => {
                    if let Some(end) = self.handle_step(step) {
                        break end;
                    }
                }
            }
        };
        self.finish(end).await;
    }

    async fn turn(&mut self) -> Turn {
        let wake = self.wake();
        let refreshed = async {
            match &mut self.refreshing {
                Some(token) => token.await,
                None => pending().await,
            }
        };
        let searched = async {
            match &mut self.searching {
                Some(page) => page.await.unwrap_or(Err(RequestError::Closed(None))),
                None => pending().await,
            }
        };
        tokio::select! {
            command = self.commands.recv() => Turn::Command(command),
            saved = self.saves.recv() => Turn::Saved(saved),
            () = self.shared.settled() => Turn::Settled,
            answer = searched => Turn::Searched(answer),
            token = refreshed => Turn::Refreshed(token),
            step = self.phase.step(wake) => Turn::Step(step),
        }
    }

    fn millis(&self) -> Millis {
        Millis(u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// The earliest of everything that time alone brings about.
    fn wake(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Waiting(until) => Some(*until),
            Phase::Online(online) => {
                let session = online.link.session.poll_deadline().map(|at| self.epoch + Duration::from_millis(at.0));
                let mut wakes = vec![session, online.going.map(|(_, until)| until)];
                wakes.push(online.asked.front().map(|(_, at)| *at));
                if online.connected && self.outbox.is_settling() && self.searching.is_none() {
                    wakes.push(Some(self.search_at));
                }
                if online.connected {
                    wakes.extend([self.outbox.next_release().filter(|at| *at > Instant::now()), online.refresh_at]);
                }
                wakes.into_iter().flatten().min()
            }
            Phase::Token(_) | Phase::Dialing { .. } => None,
        }
    }

    fn set_state(&self, state: State) {
        self.states.send_replace(state);
    }

    // ------------------------------------------------------------------------------------------ coming to be

    fn begin_attempt(&mut self) {
        self.attempt += 1;
        self.set_state(State::Connecting { attempt: self.attempt });
        self.phase = Phase::Token(self.config.token.token());
    }

    fn handle_step(&mut self, step: Step) -> Option<End> {
        match step {
            Step::Token(Ok(token)) => self.phase = Phase::Dialing { token, dialing: self.config.dialer.dial() },
            Step::Token(Err(why)) => {
                return self.wait(Duration::ZERO, Duration::ZERO, Why::because(format!("no token: {why}")));
            }
            Step::Dialed(token, Ok(stream)) => self.begin_session(token, stream),
            Step::Dialed(_, Err(error)) => {
                return self.wait(Duration::ZERO, Duration::ZERO, Why::not_connected(&error));
            }
            Step::Turned(Ok(any)) => {
                let now = self.millis();
                if let (true, Phase::Online(online)) = (any, &mut self.phase) {
                    online.link.session.handle_bytes(now);
                }
            }
            Step::Turned(Err(error)) => return self.disconnected(LinkError::Io(error)),
            Step::Time => return self.handle_time(),
        }
        None
    }

    fn begin_session(&mut self, token: String, stream: Box<dyn ByteStream>) {
        let (start, cursor) = self.start();
        let heartbeat_ms = u32::try_from(self.config.heartbeat.as_millis()).unwrap_or(u32::MAX);
        let connect = Connect {
            version: limits::VERSION,
            features: Vec::new(),
            token,
            device: self.config.device.clone(),
            incarnation: self.outbox.incarnation(),
            first_unanswered: if self.outbox.incarnation() == 0 { 0 } else { self.outbox.first_unanswered() },
            heartbeat_ms,
            express: Some(self.config.express),
            bulk: Some(self.config.bulk),
            item_bytes_max: self.config.item_bytes_max,
            start: start.into(),
            cursor: cursor.to_vec().into(),
            catch_up: self.config.catch_up.into(),
            background: self.config.background,
            agent: self.config.agent.clone(),
        };
        let phase = Millis(self.random.u64(0..=u64::from(heartbeat_ms)));
        let session = ClientSession::new(self.millis(), connect).with_heartbeat_phase(phase);
        self.phase = Phase::Online(Box::new(Online {
            link: Link::new(stream, session, FrameCodec::default()),
            since: Instant::now(),
            connected: false,
            going: None,
            asked: VecDeque::new(),
            refresh_at: None,
        }));
    }

    /// Where the next session starts reading: from the newest cursor that was stored; before there is one, as asked.
    fn start(&self) -> (StartKind, bytes::Bytes) {
        match (&self.config.start, self.outbox.cursor()) {
            (Start::Own(cursor), None) => (StartKind::OwnCursor, cursor.clone()),
            (Start::Kept, Some(cursor)) => (StartKind::OwnCursor, cursor.clone()),
            (_, Some(cursor)) if self.began => (StartKind::OwnCursor, cursor.clone()),
            (Start::Own(cursor), Some(_)) => (StartKind::OwnCursor, cursor.clone()),
            (Start::Kept | Start::Stored, _) => (StartKind::StoredCursor, bytes::Bytes::new()),
            (Start::Fresh, _) => (StartKind::Fresh, bytes::Bytes::new()),
        }
    }

    fn handle_connected(&mut self, connected: Box<packet::Connected>) -> Result<(), LinkError> {
        let owner = Owner { user: connected.user, birth: connected.birth_unix_ms };
        match self.outbox.connected(owner, connected.incarnation, connected.first_unanswered) {
            Ok(()) => {}
            Err(Unfit::Emptied) => return Err(LinkError::Again("the outbox was another user's, and is empty")),
            Err(Unfit::Copy) => return Err(LinkError::Again(COPY)),
            Err(Unfit::Another) => return Err(LinkError::Failed(Failure::OutboxOfAnother)),
        }
        let reset = (connected.cursor() == CursorVerdict::Reset)
            .then(|| Reset { reason: connected.reset_reason(), common_time: connected.reset_common_time });
        // Who asked for the tail is not told that it got it.
        let asked = reset.is_some_and(|reset| reset.reason == packet::ResetReason::Asked);
        self.shared.begin(reset.filter(|_| !asked));
        self.began = true;
        let refresh_at = match (&self.config.token, connected.token_expires_in_ms) {
            (TokenSource::Fixed(_), _) | (_, 0) => None,
            (_, life) => Some(Instant::now() + Duration::from_millis(life).mul_f64(REFRESH_AT)),
        };
        if let Phase::Online(online) = &mut self.phase {
            online.connected = true;
            online.refresh_at = refresh_at;
        }
        self.requests.connected();
        self.set_state(State::Connected(connected));
        Ok(())
    }

    // ------------------------------------------------------------------------------------------ the connection

    /// Moves everything that can move: what was settled, saved, asked and published to the session, what the broker
    /// said to those who wait for it, and what the session has to say to the socket.
    fn pump(&mut self) -> Result<(), LinkError> {
        let effects = self.shared.take_effects();
        if let Some(cursor) = effects.cursor {
            self.outbox.keep_cursor(cursor);
        }
        let now = self.millis();
        if let Phase::Online(online) = &mut self.phase {
            let session = &mut online.link.session;
            if effects.express != 0 {
                session.stored(now, packet::Lane::Express, effects.express);
            }
            if effects.bulk != 0 {
                session.stored(now, packet::Lane::Bulk, effects.bulk);
            }
            for k in effects.answers {
                online.asked.retain(|(asked, _)| *asked != k);
                session.answer(k);
            }
        }
        while let Phase::Online(online) = &mut self.phase {
            let Some(event) = online.link.next_event(now)? else { break };
            self.handle_event(event)?;
        }
        self.search();
        self.outbox.save();
        if let Some(settled) = self.outbox.take_settled() {
            self.shared.put_notice(Item::Settled(settled));
        }
        self.send_requests();
        self.send_publishes();
        if let Phase::Online(online) = &mut self.phase {
            online.link.fill(now);
        }
        Ok(())
    }

    /// Has a restored outbox find out what of it is stored.
    fn search(&mut self) {
        let is_connected = matches!(&self.phase, Phase::Online(online) if online.connected);
        if !is_connected || self.searching.is_some() || Instant::now() < self.search_at {
            return;
        }
        match self.outbox.settling().map(|settling| settling.next_request()) {
            Some(Some(page)) => {
                let (reply, answer) = oneshot::channel();
                self.requests.ask(request::Op::History(page), Some(reply));
                self.searching = Some(answer);
            }
            Some(None) => self.outbox.end_settling(),
            None => {}
        }
    }

    fn handle_searched(&mut self, answer: Result<response::Result, RequestError>) {
        self.searching = None;
        let incarnation = self.outbox.incarnation();
        let Some(settling) = self.outbox.settling() else { return };
        match answer {
            Ok(response::Result::History(page)) => settling.handle_page(incarnation, page),
            Err(RequestError::Refused(refusal)) if refusal.reason.verdict() != Verdict::Stop => {
                let asked = Duration::from_millis(refusal.retry_after_ms.into());
                self.search_at = Instant::now() + asked.max(SEARCH_AGAIN);
            }
            Ok(_) | Err(RequestError::Refused(_) | RequestError::WrongAnswer) => settling.handle_unreadable(),
            Err(RequestError::TooMany | RequestError::Timeout | RequestError::Closed(_)) => {
                self.search_at = Instant::now() + SEARCH_AGAIN;
            }
        }
    }

    fn send_publishes(&mut self) {
        let Phase::Online(online) = &mut self.phase else { return };
        if !online.connected || online.going.is_some() {
            return;
        }
        let session = &mut online.link.session;
        // Around the publish: its frame's length and tag, and the first unanswered id where it moved.
        let now = Instant::now();
        while let Some(publish) = self.outbox.next_to_send(now, |bytes| session.publish_room().admits(bytes + 24)) {
            session.publish(publish);
        }
    }

    fn send_requests(&mut self) {
        let Phase::Online(online) = &mut self.phase else { return };
        if !online.connected {
            return;
        }
        while let Some(request) = self.requests.next_to_send() {
            online.link.session.request(request);
        }
    }

    fn handle_event(&mut self, event: ClientEvent) -> Result<(), LinkError> {
        match event {
            ClientEvent::Connected(connected) => self.handle_connected(connected)?,
            ClientEvent::PublishAck(ack) => {
                self.outbox.acked(ack);
            }
            ClientEvent::Refused(refusal) if refusal.message_id.is_some() => self.handle_publish_refused(refusal)?,
            ClientEvent::Refused(refusal) => self.requests.refused(refusal),
            ClientEvent::Closed(refusal) => return Err(LinkError::Refused(refusal)),
            ClientEvent::Items { lane, first_n, items } => {
                let through = first_n + items.len() as u64 - 1;
                let items = items.into_iter().filter_map(|item| Item::from_packet(lane, item)).collect();
                self.shared.put_items(lane, through, items);
            }
            ClientEvent::Cursor(cursor) => self.shared.put_cursor(cursor),
            ClientEvent::AckRequest { k } => {
                if let Phase::Online(online) = &mut self.phase {
                    online.asked.push_back((k, Instant::now() + ANSWER_AFTER));
                }
                self.shared.put_ack_request(k);
            }
            ClientEvent::Response(response) => self.handle_response(response),
            ClientEvent::Goaway { retry_after_ms } => {
                if let Phase::Online(online) = &mut self.phase {
                    let away = Duration::from_millis(retry_after_ms.into());
                    online.going = Some((away, Instant::now() + GOAWAY_GRACE));
                }
            }
        }
        // What arrived may be settled at once, and may make room.
        Ok(())
    }

    fn handle_publish_refused(&mut self, refusal: Refusal) -> Result<(), LinkError> {
        let id = refusal.message_id.0;
        let now = Instant::now();
        // The id was given to something else, in a life that this outbox does not know (SPEC R5.2-8).
        if matches!(refusal.reason, Reason::StaleId | Reason::IdConflict) && self.outbox.begin_settling() {
            return Err(LinkError::Again(COPY));
        }
        match refusal.reason.verdict() {
            Verdict::Stop => {
                self.outbox.settle(id, Err(PublishError::Refused(refusal)));
            }
            Verdict::After => self.outbox.refused_for_now(id, now, Duration::ZERO, true),
            Verdict::Retry | Verdict::RetryElsewhere => {
                let asked = u64::from(refusal.retry_after_ms).max(self.random.u64(RETRY_MS));
                let surely_not_stored = refusal.reason != Reason::OutcomeUnknown;
                self.outbox.refused_for_now(id, now, Duration::from_millis(asked), surely_not_stored);
            }
        }
        Ok(())
    }

    fn handle_response(&mut self, response: packet::Response) {
        if let (Some(response::Result::Refresh(answer)), Phase::Online(online)) = (&response.result, &mut self.phase)
            && answer.expires_in_ms != 0
        {
            let life = Duration::from_millis(answer.expires_in_ms);
            online.refresh_at = Some(Instant::now() + life.mul_f64(REFRESH_AT));
        }
        self.requests.answered(response);
    }

    fn handle_time(&mut self) -> Option<End> {
        let now = self.millis();
        let instant = Instant::now();
        match &mut self.phase {
            Phase::Waiting(until) if instant >= *until => self.begin_attempt(),
            Phase::Online(online) => {
                if online.going.is_some_and(|(_, until)| instant >= until) {
                    return self.disconnected(LinkError::Io(std::io::ErrorKind::ConnectionAborted.into()));
                }
                while online.asked.front().is_some_and(|(_, at)| instant >= *at) {
                    if let Some((k, _)) = online.asked.pop_front()
                        && self.shared.answer_overdue(k)
                    {
                        online.link.session.answer(k);
                    }
                }
                if online.refresh_at.is_some_and(|at| instant >= at) {
                    online.refresh_at = None;
                    self.refreshing = Some(self.config.token.token());
                }
                if let Err(refusal) = online.link.session.handle_deadline(now) {
                    return self.disconnected(LinkError::Refused(refusal));
                }
            }
            Phase::Waiting(_) | Phase::Token(_) | Phase::Dialing { .. } => {}
        }
        None
    }

    fn handle_new_token(&mut self, token: Result<String, String>) {
        self.refreshing = None;
        match token {
            Ok(token) => self.requests.ask(request::Op::Refresh(packet::RefreshRequest { token }), None),
            Err(why) => {
                tracing::warn!(%why, "no new token; the old one is used until it expires");
            }
        }
    }

    // ------------------------------------------------------------------------------------------ coming to an end

    /// The connection, or what was to become one, is gone. `Some` if there will be no other.
    fn disconnected(&mut self, error: LinkError) -> Option<End> {
        let mut asked = Duration::ZERO;
        let mut lived = Duration::ZERO;
        if let Phase::Online(online) = &self.phase {
            if online.connected {
                lived = online.since.elapsed();
            }
            asked = online.going.map_or(Duration::ZERO, |(away, _)| away);
        }
        let why = match error {
            LinkError::Failed(failure) => return Some(End::Failed(failure)),
            LinkError::Again(why) => Why::because(why),
            LinkError::Refused(refusal)
                if refusal.reason == Reason::IncarnationStale && self.outbox.begin_settling() =>
            {
                Why::because(COPY)
            }
            LinkError::Refused(refusal) => {
                // A token that has expired and that nobody renews is as good as none.
                let for_ever =
                    refusal.reason == Reason::TokenExpired && matches!(self.config.token, TokenSource::Fixed(_));
                if for_ever || refusal.reason.verdict() == Verdict::Stop {
                    return Some(End::Failed(Failure::Refused(refusal)));
                }
                asked = asked.max(Duration::from_millis(refusal.retry_after_ms.into()));
                Why { refusal: Some(refusal.clone()), ..Why::because(refusal.to_string()) }
            }
            LinkError::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Why::because("the broker hung up")
            }
            LinkError::Io(error) => Why::because(format!("the connection is lost: {error}")),
        };
        self.outbox.disconnected();
        self.shared.end();
        self.requests.disconnected();
        // Asked anew on the next connection, from where the search stands.
        self.searching = None;
        self.refreshing = None;
        self.wait(lived, asked, why)
    }

    fn wait(&mut self, lived: Duration, asked: Duration, why: Why) -> Option<End> {
        let retry_in = self.backoff.delay(lived, asked, &mut self.random);
        if lived >= Duration::from_secs(60) {
            self.attempt = 0;
        }
        let Why { reason, refusal, untrusted } = why;
        tracing::debug!(%reason, ?retry_in, "not connected");
        self.phase = Phase::Waiting(Instant::now() + retry_in);
        self.set_state(State::Waiting { retry_in, reason, refusal, untrusted });
        None
    }

    async fn finish(mut self, end: End) {
        self.commands.close();
        let (state, why, done) = match end {
            End::Closed(done) => (State::Closed, None, done),
            End::Failed(failure) => {
                let why = failure.to_string();
                (State::Failed(failure), Some(why), None)
            }
        };
        let now = self.millis();
        if let Phase::Online(mut online) = self.phase {
            if why.is_none() {
                online.link.session.flush_acks();
                online.link.session.goodbye();
            }
            // The last words are a courtesy; a broker that does not take them finds out by itself.
            drop(timeout(GOODBYE_TIMEOUT, online.link.finish(now)).await);
        }
        self.outbox.save();
        while !self.outbox.is_saved() {
            match self.saves.recv().await {
                Some(Ok(number)) => self.outbox.saved(number),
                Some(Err(_)) | None => break,
            }
            self.outbox.save();
        }
        self.outbox.end(&PublishError::Closed(why.clone()));
        self.requests.end(why.as_deref());
        // The outbox file is closed before anyone is told that the client is.
        drop(self.outbox);
        self.states.send_replace(state);
        self.shared.close();
        if let Some(done) = done {
            // Whoever asked and went does not want to know.
            let _gone = done.send(());
        }
    }

    // ------------------------------------------------------------------------------------------ commands

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Publish { id: None, publish, saved, answer } => self.outbox.push(publish, saved, answer),
            Command::Publish { id: Some(id), publish, saved, answer } => {
                self.outbox.push_as(id, publish, saved, answer);
            }
            Command::GiveUp { id, done } => {
                let outcome = self.outbox.give_up(id);
                if let (Ok(true), Phase::Online(online)) = (&outcome, &mut self.phase) {
                    online.link.session.give_up(MessageId(id));
                }
                // Whoever asked and went does not want to know.
                let _gone = done.send(outcome.map(|_| ()));
            }
            Command::Unanswered { reply } => {
                drop(reply.send(self.outbox.iter().map(|(id, publish)| (id, publish.clone())).collect()));
            }
            Command::SendAnyway { id, saved, answer } => self.outbox.send_anyway(id, saved, answer),
            Command::Doubtful { reply } => {
                drop(reply.send(self.outbox.doubtful().map(|(id, publish)| (id, publish.clone())).collect()));
            }
            Command::Request { op, reply } => self.requests.ask(op, Some(reply)),
            Command::Watch { conversation, reply } => self.requests.watch(conversation, reply),
            Command::Unwatch { conversation } => self.requests.unwatch(conversation),
            Command::ConnectNow => {
                if matches!(self.phase, Phase::Waiting(_)) {
                    self.begin_attempt();
                }
            }
            Command::Close { done } => {
                // Taken by the loop before it comes here.
                drop(done);
            }
        }
    }
}
