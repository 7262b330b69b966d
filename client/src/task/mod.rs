//! The one task of a client: it owns socket, session and outbox, and turns wishes and arrivals into each other.
//!
//! One loop: a single event, then [`Task::pump`] moves everything that can move. A connection comes to be in steps
//! ([`Phase`]); commands are served in all of them.

mod attempt;
mod phase;
mod search;
mod traffic;

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use longwire_protocol::ids::MessageId;
use longwire_protocol::packet::{self, RefreshRequest, request, response};
use longwire_protocol::session::Millis;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use crate::backoff::Backoff;
use crate::command::Command;
use crate::config::{Config, TokenFuture, TokenSource};
use crate::error::{Failure, OutboxError, PublishError, RequestError};
use crate::intake::Shared;
use crate::link::LinkError;
use crate::outbox::OutboxState;
use crate::requests::Requests;
use crate::signals::Signal;
use crate::state::State;
use attempt::Why;
use phase::{Phase, Step};

/// How long a goodbye may take.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

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
    signals: broadcast::Sender<Signal>,
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
        (states, signals): (watch::Sender<State>, broadcast::Sender<Signal>),
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
            signals,
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
                    wakes.extend([self.outbox.next_release(online.looked_at), online.refresh_at]);
                }
                wakes.into_iter().flatten().min()
            }
            Phase::Token(_) | Phase::Dialing { .. } => None,
        }
    }

    fn set_state(&self, state: State) {
        self.states.send_replace(state);
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
                    match &self.config.token {
                        TokenSource::Login(_) => {
                            self.requests.ask(request::Op::Refresh(RefreshRequest::default()), None);
                        }
                        source => self.refreshing = Some(source.token()),
                    }
                }
                if let Err(refusal) = online.link.session.handle_deadline(now) {
                    return self.disconnected(LinkError::Refused(refusal));
                }
            }
            Phase::Waiting(_) | Phase::Token(_) | Phase::Dialing { .. } => {}
        }
        None
    }

    // ------------------------------------------------------------------------------------------ the end

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
            Command::SubscribePresence { users, reply } => self.requests.subscribe(users, Some(reply)),
            Command::UnsubscribePresence { users } => self.requests.unsubscribe(users),
            Command::Follow { conversation, reply } => self.requests.follow(conversation, Some(reply)),
            Command::Unfollow { conversation } => self.requests.unfollow(conversation),
            Command::Background { background, reply } => {
                self.config.background = background;
                let request = packet::BackgroundRequest { background };
                self.requests.ask(request::Op::Background(request), Some(reply));
            }
            Command::Signal(signal) => {
                if let Phase::Online(online) = &mut self.phase {
                    online.link.session.signal(signal);
                }
            }
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
