//! The handle that an application holds: wishes go in, futures come back.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use longwire_protocol::packet::{self, publish::Action, request, response};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::command::Command;
use crate::config::Config;
use crate::delivery::Deliveries;
use crate::error::{GiveUpError, PublishError, RequestError, StartError};
use crate::intake::Shared;
use crate::outbox::OutboxState;
use crate::signals::{Signal, Signals, WAITING_MAX};
use crate::state::State;
use crate::task::Task;

/// Wishes on their way to the task; whoever has one more waits.
const COMMANDS_MAX: usize = 64;

/// A client of one broker, as one device. Cheap to clone; all clones speak through one task, which ends when the last
/// of them and the [`Deliveries`] are gone, or with [`Client::close`].
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) commands: mpsc::Sender<Command>,
    states: watch::Receiver<State>,
    /// Weak: the listeners' end comes with the task's.
    signals: broadcast::WeakSender<Signal>,
    request_timeout: Duration,
}

/// Which way a page of history is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From older to newer.
    Forwards,
    /// From newer to older.
    Backwards,
}

impl Client {
    /// Starts a client on the current tokio runtime. It connects in the background and goes on trying; what it has come
    /// to is told by [`Client::states`].
    ///
    /// # Errors
    /// When the outbox cannot be opened.
    pub fn start(config: Config) -> Result<(Self, Deliveries), StartError> {
        let (saved, saves) = mpsc::unbounded_channel();
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (states, state) = watch::channel(State::Connecting { attempt: 1 });
        let saving = saved.clone();
        let outbox = OutboxState::open(&config.outbox, config.outbox_limits, &config.device, move |outcome| {
            // A task that is gone has what it wanted.
            drop(saving.send(outcome));
        })?;
        let shared = Arc::new(Shared::default());
        let (signals, _) = broadcast::channel(WAITING_MAX);
        let heard = signals.downgrade();
        let client = Self { commands, states: state, signals: heard, request_timeout: config.request_timeout };
        let deliveries =
            Deliveries { shared: Arc::clone(&shared), handover: config.handover, _commands: client.commands.clone() };
        let task = Task::new(config, outbox, saves, inbox, shared, (states, signals));
        tokio::spawn(async move {
            // Without a file nobody else sends: the channel stays open as long as the task.
            let _saved = saved;
            task.run().await;
        });
        Ok((client, deliveries))
    }

    /// How the client stands with its broker, now and at each change. Reading it never slows the client: whoever is
    /// slow sees the newest state.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<State> {
        self.states.clone()
    }

    /// Waits until the client is connected; returns what the broker said. Cancel safe.
    ///
    /// # Errors
    /// The final state, when the client is closed or has failed.
    pub async fn connected(&self) -> Result<packet::Connected, State> {
        let mut states = self.states.clone();
        match states.wait_for(|state| matches!(state, State::Connected(_)) || state.is_final()).await.as_deref() {
            Ok(State::Connected(connected)) => Ok(connected.as_ref().clone()),
            Ok(state) => Err(state.clone()),
            Err(_) => Err(State::Closed),
        }
    }

    /// Connects at once if the client is waiting for its next attempt: for whoever knows that the network is back.
    pub async fn connect_now(&self) {
        // A client that is gone does not connect.
        drop(self.commands.send(Command::ConnectNow).await);
    }

    // ------------------------------------------------------------------------------------------ publishing

    /// Publishes a message. Resolves once it is in the outbox, on disk if that has a file: from here on it is sent until
    /// it is answered, over reconnects and, from a file, restarts. The [`Publication`] resolves when it is answered.
    ///
    /// Works offline. Not cancel safe: a future that is dropped may or may not have published.
    ///
    /// # Errors
    /// [`PublishError::OutboxFull`] when as much is unanswered as the outbox holds; [`PublishError::Closed`].
    pub async fn publish(&self, conversation: u64, content: impl Into<Bytes>) -> Result<Publication, PublishError> {
        self.send(None, packet::Publish { conversation, content: content.into(), ..Default::default() }).await
    }

    /// Publishes under a message id that the application chose, above those before it; for [`Outbox::Numbered`], once
    /// [`Client::connected`] has told the incarnation, and its `first_unanswered` where to begin. Otherwise as
    /// [`Client::publish`].
    ///
    /// # Errors
    /// As [`Client::publish`]; [`PublishError::IdNotRising`].
    ///
    /// [`Outbox::Numbered`]: crate::Outbox::Numbered
    pub async fn publish_numbered(&self, id: u64, publish: packet::Publish) -> Result<Publication, PublishError> {
        self.send(Some(id), publish).await
    }

    /// Opens the direct conversation with a user, or finds it. The ack names the conversation.
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn open_direct(&self, user: impl Into<String>) -> Result<Publication, PublishError> {
        self.act(0, Action::OpenDirect(packet::OpenDirect { user: user.into() })).await
    }

    /// Creates a group of this user and others. The ack names the conversation.
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn create_group(
        &self,
        label: impl Into<String>,
        users: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Publication, PublishError> {
        let users = users.into_iter().map(Into::into).collect();
        self.act(0, Action::CreateGroup(packet::CreateGroup { label: label.into(), users, ..Default::default() })).await
    }

    /// Opens a channel by name, or finds it. The ack names the conversation.
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn open_channel(&self, name: impl Into<String>) -> Result<Publication, PublishError> {
        self.act(0, Action::OpenChannel(packet::OpenChannel { name: name.into() })).await
    }

    /// Joins a channel as a reader: from here on everything in it is delivered, also what comes while this user is away.
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn join(&self, conversation: u64) -> Result<Publication, PublishError> {
        self.act(conversation, Action::Join(packet::Join::default())).await
    }

    /// Leaves a conversation.
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn leave(&self, conversation: u64) -> Result<Publication, PublishError> {
        self.act(conversation, Action::Leave(packet::Leave {})).await
    }

    /// Adds, promotes, demotes or (with `None`) removes a user.
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn set_role(
        &self,
        conversation: u64,
        user: impl Into<String>,
        role: packet::Role,
    ) -> Result<Publication, PublishError> {
        self.act(conversation, Action::SetRole(packet::SetRole { user: user.into(), role: role.into() })).await
    }

    /// Gives a group another label.
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn set_label(&self, conversation: u64, label: impl Into<String>) -> Result<Publication, PublishError> {
        self.act(conversation, Action::SetLabel(packet::SetLabel { label: label.into() })).await
    }

    /// Says that this user has read a conversation up to a seq.
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn mark(&self, conversation: u64, seq: u64) -> Result<Publication, PublishError> {
        self.act(conversation, Action::SetMark(packet::SetMark { seq })).await
    }

    /// Leaves a will: a message that the broker publishes once this device has been gone for `after` without
    /// [`Client::close`] (zero: 30 s; from 1 s to a day), in place of an earlier one. It holds over reconnects, and is
    /// gone once it was published.
    ///
    /// ```no_run
    /// # async fn example(client: longwire_client::Client, home: u64) -> Result<(), Box<dyn std::error::Error>> {
    /// client.set_will(home, "the boiler does not answer", std::time::Duration::from_secs(120)).await?.await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn set_will(
        &self,
        conversation: u64,
        content: impl Into<Bytes>,
        after: Duration,
    ) -> Result<Publication, PublishError> {
        let after_ms = u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
        let action = Some(Action::SetWill(packet::SetWill { after_ms }));
        self.send(None, packet::Publish { conversation, content: content.into(), action, ..Default::default() }).await
    }

    /// Takes the will away.
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn clear_will(&self) -> Result<Publication, PublishError> {
        self.act(0, Action::SetWill(packet::SetWill { after_ms: 0 })).await
    }

    /// Says who sees this user's presence: whoever shares a conversation with it, those of them who are its contacts, or
    /// nobody. To whom one does not show oneself, one does not see either.
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn show_presence(&self, to: packet::Audience) -> Result<Publication, PublishError> {
        self.act(0, Action::ShowPresence(packet::ShowPresence { to: to.into() })).await
    }

    /// Who sees this user's presence: what [`Client::show_presence`] said last, on whichever device.
    ///
    /// # Errors
    /// As [`Client::history`].
    pub async fn presence_shown_to(&self) -> Result<packet::Audience, RequestError> {
        Ok(self.shown().await?.shown_to())
    }

    /// Hides this user's marks in direct conversations from the other user, and those of others there from this one; or no
    /// longer. It is so on all devices, which tell each other their own marks all the same (SPEC R6.1-7). Groups go by
    /// [`Policy::hides_marks`](packet::Policy).
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn hide_marks(&self, is_hidden: bool) -> Result<Publication, PublishError> {
        self.act(0, Action::HideMarks(packet::HideMarks { undo: !is_hidden })).await
    }

    /// Whether this user hides its marks: what [`Client::hide_marks`] said last, on whichever device.
    ///
    /// # Errors
    /// As [`Client::history`].
    pub async fn hides_marks(&self) -> Result<bool, RequestError> {
        Ok(self.shown().await?.hides_marks)
    }

    /// What this user shows to others: it stands in every answer about presence, also in one about nobody's.
    async fn shown(&self) -> Result<packet::PresenceAnswer, RequestError> {
        match self.request(request::Op::Presence(packet::PresenceRequest::default())).await? {
            response::Result::Presence(answer) => Ok(answer),
            _ => Err(RequestError::WrongAnswer),
        }
    }

    /// Says where this device has itself told of what it has not acked while it is away, in place of what was said
    /// before. Worth something where the broker announces the provider (`push-webhook`, `push-apns`, `push-fcm`,
    /// `push-webpush` in [`Connected::features`](packet::Connected)).
    ///
    /// ```no_run
    /// # async fn example(client: longwire_client::Client, token: String) -> Result<(), Box<dyn std::error::Error>> {
    /// use longwire_client::packet::{SetPush, Shows};
    ///
    /// // At each start: it costs nothing where it is the same.
    /// let mut push = SetPush { provider: "fcm".into(), target: token, ..SetPush::default() };
    /// push.set_shows(Shows::Names);
    /// (push.quiet_from, push.quiet_until) = (22 * 60, 7 * 60);
    /// client.set_push(push).await?.await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn set_push(&self, push: packet::SetPush) -> Result<Publication, PublishError> {
        self.act(0, Action::SetPush(push)).await
    }

    /// This device is told nothing any more while it is away.
    ///
    /// # Errors
    /// As [`Client::publish`].
    pub async fn clear_push(&self) -> Result<Publication, PublishError> {
        self.set_push(packet::SetPush::default()).await
    }

    /// Gives up an unanswered publish, if it is surely not stored: it was never sent, or last refused for now. Gives up
    /// what is doubtful, too.
    ///
    /// # Errors
    /// [`GiveUpError::MayBeStored`] when it may be stored: its answer decides.
    pub async fn give_up(&self, message_id: u64) -> Result<(), GiveUpError> {
        let (done, outcome) = oneshot::channel();
        let sent = self.commands.send(Command::GiveUp { id: message_id, done }).await;
        sent.map_err(|_| GiveUpError::Closed)?;
        outcome.await.unwrap_or(Err(GiveUpError::Closed))
    }

    /// Everything published and not answered, in the order of message ids: also what an earlier life of this program
    /// left in the outbox file.
    pub async fn unanswered(&self) -> Vec<(u64, packet::Publish)> {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Unanswered { reply }).await.is_err() {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }

    /// What may be stored or not, in the order of message ids: an outbox that was restored from a copy could not find
    /// out ([`Item::Settled`]). It is not sent. It stays, in the outbox file too, until the application decides:
    /// [`Client::send_anyway`] or [`Client::give_up`].
    ///
    /// [`Item::Settled`]: crate::Item::Settled
    pub async fn doubtful(&self) -> Vec<(u64, packet::Publish)> {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Doubtful { reply }).await.is_err() {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }

    /// Publishes something doubtful again, under the next message id; if it was stored, it is stored twice. Otherwise
    /// as [`Client::publish`].
    ///
    /// # Errors
    /// As [`Client::publish`], and then it stays doubtful; [`PublishError::NotDoubtful`].
    pub async fn send_anyway(&self, message_id: u64) -> Result<Publication, PublishError> {
        let (saved, taken) = oneshot::channel();
        let (answer, outcome) = oneshot::channel();
        let command = Command::SendAnyway { id: message_id, saved, answer };
        self.commands.send(command).await.map_err(|_| self.publish_closed())?;
        let message_id = taken.await.unwrap_or_else(|_| Err(self.publish_closed()))?;
        Ok(Publication { message_id, outcome })
    }

    pub(crate) async fn act(&self, conversation: u64, action: Action) -> Result<Publication, PublishError> {
        self.send(None, packet::Publish { conversation, action: Some(action), ..Default::default() }).await
    }

    pub(crate) async fn send(&self, id: Option<u64>, publish: packet::Publish) -> Result<Publication, PublishError> {
        let (saved, taken) = oneshot::channel();
        let (answer, outcome) = oneshot::channel();
        let command = Command::Publish { id, publish, saved, answer };
        self.commands.send(command).await.map_err(|_| self.publish_closed())?;
        let message_id = taken.await.unwrap_or_else(|_| Err(self.publish_closed()))?;
        Ok(Publication { message_id, outcome })
    }

    fn publish_closed(&self) -> PublishError {
        PublishError::Closed(self.why_closed())
    }

    fn why_closed(&self) -> Option<String> {
        match &*self.states.borrow() {
            State::Failed(failure) => Some(failure.to_string()),
            _ => None,
        }
    }

    // ------------------------------------------------------------------------------------------ reading

    /// A page of history: forwards from `from_seq` (0: the first), or backwards from it (0: the newest), at most `limit`
    /// entries (at most 200). Each seq of the page is in an entry or inside a skipped range.
    ///
    /// Like every request it may be cancelled, changes nothing, and is repeated by itself when the connection is lost
    /// under it.
    ///
    /// # Errors
    /// [`RequestError::Refused`], [`RequestError::Timeout`], [`RequestError::Closed`].
    pub async fn history(
        &self,
        conversation: u64,
        from_seq: u64,
        limit: u32,
        direction: Direction,
    ) -> Result<packet::HistoryPage, RequestError> {
        let backwards = direction == Direction::Backwards;
        self.page(packet::HistoryRequest { conversation, from_seq, limit, backwards, compact: false }).await
    }

    pub(crate) async fn page(&self, request: packet::HistoryRequest) -> Result<packet::HistoryPage, RequestError> {
        match self.request(request::Op::History(request)).await? {
            response::Result::History(page) => Ok(page),
            _ => Err(RequestError::WrongAnswer),
        }
    }

    /// A page of this user's conversations, the newest activity first; `before` is `next` of the page before, 0 for the
    /// first.
    ///
    /// # Errors
    /// As [`Client::history`].
    pub async fn conversations(&self, before: u64, limit: u32) -> Result<packet::ConversationsPage, RequestError> {
        self.conversations_since(0, before, limit).await
    }

    /// A page of a conversation's members, by user id; `after_user` is `next` of the page before, 0 for the first.
    ///
    /// # Errors
    /// As [`Client::history`].
    pub async fn members(
        &self,
        conversation: u64,
        after_user: u64,
        limit: u32,
    ) -> Result<packet::MembersPage, RequestError> {
        match self.request(request::Op::Members(packet::MembersRequest { conversation, after_user, limit })).await? {
            response::Result::Members(page) => Ok(page),
            _ => Err(RequestError::WrongAnswer),
        }
    }

    /// The names of users (at most 200) that share a conversation with this one.
    ///
    /// # Errors
    /// As [`Client::history`].
    pub async fn users(&self, users: Vec<u64>) -> Result<Vec<packet::Member>, RequestError> {
        match self.request(request::Op::Users(packet::UsersRequest { users })).await? {
            response::Result::Users(page) => Ok(page.users),
            _ => Err(RequestError::WrongAnswer),
        }
    }

    /// Has a channel delivered live, by the token's right to read alone, for as long as this client lives; returns the
    /// seq after which delivery begins. What comes while the connection is away is not delivered: see
    /// [`Client::join`] for that.
    ///
    /// # Errors
    /// As [`Client::history`].
    pub async fn watch(&self, conversation: u64) -> Result<u64, RequestError> {
        let (reply, answer) = oneshot::channel();
        match self.answer(Command::Watch { conversation, reply }, answer).await? {
            response::Result::Watch(answer) => Ok(answer.head_seq),
            _ => Err(RequestError::WrongAnswer),
        }
    }

    /// Ends [`Client::watch`].
    pub async fn unwatch(&self, conversation: u64) {
        // A client that is gone watches nothing.
        drop(self.commands.send(Command::Unwatch { conversation }).await);
    }

    /// Tells the presence of users that share a conversation with this one, at most 200 at a time and 500 in all: as it
    /// is now, in the order asked for, and each change as a [`Signal::Presence`] until [`Client::unsubscribe_presence`].
    /// After a reconnect what it is then is told in the same way.
    ///
    /// # Errors
    /// As [`Client::history`].
    pub async fn subscribe_presence(&self, users: Vec<u64>) -> Result<Vec<packet::Presence>, RequestError> {
        let (reply, answer) = oneshot::channel();
        match self.answer(Command::SubscribePresence { users, reply }, answer).await? {
            response::Result::Presence(answer) => Ok(answer.users),
            _ => Err(RequestError::WrongAnswer),
        }
    }

    /// Ends [`Client::subscribe_presence`] for these users.
    pub async fn unsubscribe_presence(&self, users: Vec<u64>) {
        // A client that is gone is told nothing.
        drop(self.commands.send(Command::UnsubscribePresence { users }).await);
    }

    /// How many members of a conversation are online; for those with more than 200.
    ///
    /// # Errors
    /// As [`Client::history`].
    pub async fn online(&self, conversation: u64) -> Result<u64, RequestError> {
        match self.request(request::Op::Online(packet::OnlineRequest { conversation })).await? {
            response::Result::Online(answer) => Ok(answer.online),
            _ => Err(RequestError::WrongAnswer),
        }
    }

    /// Says whether nobody looks at this device, from here on and on the connections to come.
    ///
    /// # Errors
    /// As [`Client::history`].
    pub async fn set_background(&self, background: bool) -> Result<(), RequestError> {
        let (reply, answer) = oneshot::channel();
        match self.answer(Command::Background { background, reply }, answer).await? {
            response::Result::Background(_) => Ok(()),
            _ => Err(RequestError::WrongAnswer),
        }
    }

    /// Says to who is there just now that this user types, or whatever the application means by `content` (at most
    /// 1 KiB). It may be lost; without a connection it is. No more than five a second are carried.
    pub async fn signal(&self, conversation: u64, kind: packet::SignalKind, content: impl Into<Bytes>) {
        let signal = packet::Signal { conversation, kind: kind.into(), content: content.into(), ..Default::default() };
        // A client that is gone says nothing.
        drop(self.commands.send(Command::Signal(signal)).await);
    }

    /// Signals and presence, from here on. Those of conversations come only with [`Config::signals`].
    #[must_use]
    pub fn signals(&self) -> Signals {
        let receiver = match self.signals.upgrade() {
            Some(signals) => signals.subscribe(),
            // The client has ended: nothing comes any more.
            None => broadcast::channel(1).1,
        };
        Signals { receiver }
    }

    /// Gives the broker a new token for the connection that stands; returns how long it holds. A client with a
    /// [`TokenSource::Provider`] does this by itself.
    ///
    /// # Errors
    /// As [`Client::history`].
    ///
    /// [`TokenSource::Provider`]: crate::TokenSource::Provider
    pub async fn refresh(&self, token: impl Into<String>) -> Result<Duration, RequestError> {
        match self.request(request::Op::Refresh(packet::RefreshRequest { token: token.into() })).await? {
            response::Result::Refresh(answer) => Ok(Duration::from_millis(answer.expires_in_ms)),
            _ => Err(RequestError::WrongAnswer),
        }
    }

    pub(crate) async fn request(&self, op: request::Op) -> Result<response::Result, RequestError> {
        let (reply, answer) = oneshot::channel();
        self.answer(Command::Request { op, reply }, answer).await
    }

    pub(crate) async fn answer(
        &self,
        command: Command,
        answer: oneshot::Receiver<Result<response::Result, RequestError>>,
    ) -> Result<response::Result, RequestError> {
        let closed = || RequestError::Closed(self.why_closed());
        let exchange = async {
            self.commands.send(command).await.map_err(|_| closed())?;
            answer.await.unwrap_or_else(|_| Err(closed()))
        };
        tokio::time::timeout(self.request_timeout, exchange).await.unwrap_or(Err(RequestError::Timeout))
    }

    // ------------------------------------------------------------------------------------------ the end

    /// Says goodbye and ends the client; resolves when the socket and the outbox file are closed. What is unanswered
    /// stays in the file.
    pub async fn close(&self) {
        let (done, ended) = oneshot::channel();
        if self.commands.send(Command::Close { done }).await.is_ok() {
            // An error means that it ended by itself.
            drop(ended.await);
        }
    }
}

/// A publish that is on its way. Resolves to its ack: it is stored, durably, under this seq and at this time.
/// Dropping it changes nothing about the publish.
#[derive(Debug)]
pub struct Publication {
    message_id: u64,
    outcome: oneshot::Receiver<Result<packet::PublishAck, PublishError>>,
}

impl Publication {
    /// Its message id.
    #[must_use]
    pub const fn message_id(&self) -> u64 {
        self.message_id
    }
}

impl Future for Publication {
    type Output = Result<packet::PublishAck, PublishError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let closed = |_| Err(PublishError::Closed(None));
        Pin::new(&mut self.outcome).poll(cx).map(|outcome| outcome.unwrap_or_else(closed))
    }
}
