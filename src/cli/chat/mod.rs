//! `longwire chat`: a person's client in a terminal. What is typed is kept on disk until it is stored, also offline.

mod command;
mod input;
mod model;
mod plain;
mod view;

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args as ClapArgs;
use crossterm::event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use futures_util::StreamExt as _;
use longwire_client::packet::{self, ConversationKind};
use longwire_client::{
    Client, Deliveries, Delivery, Direction, Failure, Outbox, Publication, PublishError, RequestError, Start, State,
    outbox_path,
};
use tokio::sync::{mpsc, watch};
use tokio::time::interval;

use self::model::{Act, Model, Wish};
use self::view::Drawn;
use super::Fail;
use super::connect::ConnectArgs;
use super::conversation::join_key;
use super::target::Target;

const EXAMPLES: &str = "\
Examples:
  longwire chat @bob
  longwire chat --url longwires://chat.example.org --ca ca.pem --token-file token

Inside, /help says what there is. Without a terminal it reads lines from stdin and prints what is said.";

/// Talks, in a terminal
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The conversation to begin with: @user, '#channel' or a number
    conversation: Option<Target>,

    #[command(flatten)]
    connection: ConnectArgs,
}

/// Members whose presence is shown one by one.
const COMPANY_MAX: u32 = 200;
/// Lines of one page of history.
const PAGE: u32 = 100;
/// How often ages and unsent lines are looked at.
const TICK: Duration = Duration::from_secs(1);

pub(super) async fn run(args: Args) -> Result<(), Fail> {
    let device = args.connection.device("chat")?;
    let mut config = args.connection.config(&device.name)?;
    config.start = Start::Fresh;
    let outbox = outbox_path(&device.directory, &device.name);
    config.outbox = Outbox::File(outbox.clone());
    config.signals = true;
    let (client, deliveries) = Client::start(config)?;
    let (sender, told) = mpsc::unbounded_channel();
    let states = client.states();
    let mut chat = Chat {
        client,
        model: Model::default(),
        sender,
        running: 0,
        said: 0,
        watched: Vec::new(),
        followed: None,
        quit: None,
        connection: args.connection.clone(),
        outbox,
    };
    match args.conversation {
        Some(Target::Direct(user)) => chat.model.wish(Wish::OpenDirect(user)),
        Some(Target::Channel(name)) => chat.model.wish(Wish::OpenChannel(name)),
        Some(Target::Id(id)) => chat.model.show(id),
        None => {}
    }
    chat.handle_state(&states.borrow().clone());
    let outcome = if io::stdin().is_terminal() && io::stdout().is_terminal() {
        chat.run_on_screen(deliveries, told, states).await
    } else {
        plain::run(&mut chat, deliveries, told, states).await
    };
    chat.client.close().await;
    outcome
}

/// What something that was wished came to.
#[derive(Debug)]
enum Told {
    Saved {
        message_id: u64,
        conversation: u64,
        text: String,
        reply_to: u64,
    },
    Acked(packet::PublishAck),
    Refused {
        message_id: u64,
        why: String,
    },
    List(Vec<packet::Conversation>),
    Page {
        conversation: u64,
        before: u64,
        page: packet::HistoryPage,
    },
    PageFailed {
        conversation: u64,
        why: String,
    },
    Again {
        conversation: u64,
        seq: u64,
        items: Option<Vec<packet::Item>>,
    },
    Around {
        conversation: u64,
        members: Vec<packet::Member>,
        marks: Vec<packet::Mark>,
    },
    /// An action is in the outbox, under this message id.
    Acting(u64),
    /// An action is stored.
    Acted {
        conversation: u64,
        act: Act,
    },
    Names(Vec<packet::Member>),
    Company {
        conversation: u64,
        members: Vec<packet::Member>,
        presences: Vec<packet::Presence>,
    },
    Online {
        conversation: u64,
        online: u64,
    },
    /// Something of which nothing is to be shown.
    Nothing,
    Members(Vec<packet::Member>),
    Opened {
        id: u64,
        kind: ConversationKind,
        label: String,
    },
    Left(u64),
    Unanswered(Vec<(u64, packet::Publish)>),
    Notice(String),
    /// A message that did not even come into the outbox.
    Unsendable(String),
    /// Something that was begun by [`Chat::tell`] is over.
    Done(Box<Told>),
}

/// The model, and the client that does what it wishes.
struct Chat {
    client: Client,
    model: Model,
    sender: mpsc::UnboundedSender<Told>,
    /// How much was begun by [`Chat::tell`] and is not over.
    running: usize,
    /// How many messages were given to the outbox.
    said: u64,
    /// Whose presence is told.
    watched: Vec<u64>,
    /// Whose deliveries are told: those of the conversation that is open.
    followed: Option<u64>,
    connection: ConnectArgs,
    /// Where messages are kept that have no answer yet.
    outbox: PathBuf,
    /// Set when it is time to go.
    quit: Option<Result<(), Fail>>,
}

impl Chat {
    async fn run_on_screen(
        &mut self,
        mut deliveries: Deliveries,
        mut told: mpsc::UnboundedReceiver<Told>,
        mut states: watch::Receiver<State>,
    ) -> Result<(), Fail> {
        let mut terminal = ratatui::try_init()?;
        let _screen = Screen;
        let colour = std::env::var_os("NO_COLOR").is_none();
        let mut keys = EventStream::new();
        let mut tick = interval(TICK);
        let mut drawn = Drawn::default();
        let mut signals = self.client.signals();
        loop {
            self.do_wishes();
            if let Some(outcome) = self.quit.take() {
                return outcome;
            }
            // Everything is drawn anew.
            drop(self.model.take_altered());
            terminal.draw(|frame| drawn = view::draw(frame, &self.model, unix_ms(), colour))?;
            tokio::select! {
                key = keys.next() => match key {
                    Some(event) => self.handle_event(event?, drawn),
                    None => return Ok(()),
                },
                Some(delivery) = deliveries.next() => self.handle_delivery(delivery),
                Some(told) = told.recv() => self.handle_told(told),
                Some(signal) = signals.next() => self.model.handle_signal(signal, unix_ms()),
                Ok(()) = states.changed() => self.handle_state(&states.borrow_and_update().clone()),
                _ = tick.tick() => self.look_at_unsent(),
                () = terminated() => return Ok(()),
            }
            // Everything that is there is taken in before it is drawn.
            while let Ok(more) = told.try_recv() {
                self.handle_told(more);
            }
        }
    }

    // ------------------------------------------------------------------------------------------ what comes in

    fn handle_delivery(&mut self, delivery: Delivery) {
        for item in &delivery.items {
            self.model.handle_item(item);
        }
        delivery.stored();
    }

    fn handle_state(&mut self, state: &State) {
        self.model.connection = state.to_string();
        self.model.connected = false;
        match state {
            State::Connected(connected) => {
                self.model.handle_connected(connected);
                self.look_at_unsent();
            }
            State::Failed(failure) => {
                let fail = match failure {
                    Failure::Refused(refusal) => Fail::refused(refusal),
                    Failure::OutboxOfAnother => {
                        let path = self.outbox.display();
                        Fail::failed(format!("{path}: {failure}; move it away to begin with an empty one"))
                    }
                    failure => Fail::failed(failure.to_string()),
                };
                self.quit = Some(Err(fail));
            }
            State::Closed => self.quit = Some(Ok(())),
            // Who was in once may be behind the login page of a network now; who never was has the wrong authority.
            State::Waiting { untrusted: Some(untrusted), .. } if self.model.me == 0 => {
                self.quit = Some(Err(self.connection.untrusted(untrusted)));
            }
            State::Connecting { .. } | State::Waiting { .. } => {}
        }
    }

    fn handle_told(&mut self, told: Told) {
        let model = &mut self.model;
        match told {
            Told::Saved { message_id, conversation, text, reply_to } => {
                model.handle_saved(message_id, conversation, text, reply_to);
            }
            Told::Acked(ack) => model.handle_acked(&ack),
            Told::Refused { message_id, why } => model.handle_refused(message_id, why),
            Told::List(list) => model.handle_list(list),
            Told::Page { conversation, before, page } => model.handle_page(conversation, before, page),
            Told::PageFailed { conversation, why } => {
                model.handle_page_failed(conversation);
                model.say(why);
            }
            Told::Again { conversation, seq, items } => model.handle_again(conversation, seq, items),
            Told::Around { conversation, members, marks } => {
                model.handle_names(members);
                model.handle_marks(conversation, &marks);
            }
            Told::Acting(message_id) => model.handle_acting(message_id),
            Told::Acted { conversation, act } => match act {
                Act::Edit { seq, .. } | Act::Recall(seq) | Act::React { seq, .. } => {
                    model.handle_changed(conversation, seq);
                }
                Act::Hide(seq) => model.handle_hidden(conversation, seq, false),
                Act::Settings(settings) => model.handle_settings(conversation, settings),
                Act::Level(_) | Act::Keep(_) | Act::Info(_) | Act::Ban { .. } | Act::JoinKey { .. } => {
                    model.wish(Wish::List);
                }
            },
            Told::Names(members) => model.handle_names(members),
            Told::Company { conversation, members, presences } => {
                self.watched.extend(presences.iter().map(|presence| presence.user));
                model.handle_company(conversation, members, presences);
            }
            Told::Online { conversation, online } => model.handle_online(conversation, online),
            Told::Nothing => {}
            Told::Members(members) => {
                let names: Vec<String> = members.iter().map(|member| member.name.clone()).collect();
                model.handle_names(members);
                model.say(model::clean(&format!("here: {}", names.join(", "))));
            }
            Told::Opened { id, kind, label } => model.handle_opened(id, kind, &label),
            Told::Left(id) => model.handle_left(id),
            Told::Unanswered(publishes) => model.handle_unanswered(&publishes),
            Told::Notice(notice) | Told::Unsendable(notice) => model.say(model::clean(&notice)),
            Told::Done(told) => {
                self.running -= 1;
                self.handle_told(*told);
            }
        }
    }

    fn handle_event(&mut self, event: Event, drawn: Drawn) {
        match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => self.handle_key(key, drawn),
            Event::Paste(text) => self.model.input.insert_text(&text),
            _ => {}
        }
    }

    fn handle_key(&mut self, key: KeyEvent, drawn: Drawn) {
        let model = &mut self.model;
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        let alt = key.modifiers.contains(KeyModifiers::ALT);
        if model.help {
            model.help = false;
            if matches!(key.code, KeyCode::Esc | KeyCode::Enter) {
                return;
            }
        }
        match key.code {
            KeyCode::Char('q' | 'c' | 'd') if control => self.quit = Some(Ok(())),
            KeyCode::Char('w') if control => model.input.delete_word(),
            KeyCode::Char('u') if control => {
                model.input.take();
                model.note_not_typing();
            }
            KeyCode::Char('a') if control => model.input.home(),
            KeyCode::Char('e') if control => model.input.end(),
            KeyCode::Char('r') if control => model.wish(Wish::ConnectNow),
            KeyCode::Char(_) if control => {}
            KeyCode::Char(c) => {
                model.input.insert(c);
                model.note_typing(unix_ms());
            }
            KeyCode::Enter if alt => model.input.insert('\n'),
            KeyCode::Enter => {
                let line = model.input.take();
                model.note_not_typing();
                command::enter(model, &line, unix_ms());
            }
            KeyCode::Backspace if alt => model.input.delete_word(),
            KeyCode::Backspace => model.input.backspace(),
            KeyCode::Delete => model.input.delete(),
            KeyCode::Left => model.input.left(),
            KeyCode::Right => model.input.right(),
            KeyCode::Home => model.input.home(),
            KeyCode::End => model.input.end(),
            KeyCode::Tab | KeyCode::Down => model.step(true),
            KeyCode::BackTab | KeyCode::Up => model.step(false),
            KeyCode::PageUp => model.scroll_by(true, drawn.height.saturating_sub(2).max(1), drawn.rows, drawn.height),
            KeyCode::PageDown => {
                model.scroll_by(false, drawn.height.saturating_sub(2).max(1), drawn.rows, drawn.height)
            }
            KeyCode::Esc => model.notice.clear(),
            _ => {}
        }
    }

    // ------------------------------------------------------------------------------------------ what goes out

    fn look_at_unsent(&mut self) {
        let client = self.client.clone();
        self.tell(async move { Told::Unanswered(client.unanswered().await) });
    }

    fn do_wishes(&mut self) {
        for wish in self.model.take_wishes() {
            self.do_wish(wish);
        }
    }

    fn do_wish(&mut self, wish: Wish) {
        let client = self.client.clone();
        match wish {
            Wish::Quit => self.quit = Some(Ok(())),
            Wish::Send { conversation, text, beside } => self.send(conversation, text, beside),
            Wish::Act { conversation, act } => self.act(conversation, act),
            Wish::Background(background) => self.tell(async move {
                match client.set_background(background).await {
                    Ok(()) if background => {
                        Told::Notice("away: what is not urgent waits up to a minute; /back".to_owned())
                    }
                    Ok(()) => Told::Notice("back".to_owned()),
                    Err(error) => Told::Notice(unreadable(&error)),
                }
            }),
            Wish::ConnectNow => drop(tokio::spawn(async move { client.connect_now().await })),
            Wish::Older { conversation, before } => self.tell(async move {
                let from = before.saturating_sub(1);
                match client.history_compact(conversation, from, PAGE, Direction::Backwards).await {
                    Ok(page) => Told::Page { conversation, before, page },
                    Err(error) => Told::PageFailed { conversation, why: unreadable(&error) },
                }
            }),
            Wish::Again { conversation, seq } => self.tell(async move {
                let page = client.history_compact(conversation, seq, 1, Direction::Backwards).await;
                Told::Again { conversation, seq, items: page.ok().map(|page| page.items) }
            }),
            Wish::Around(conversation) => {
                let before = self.followed.replace(conversation).filter(|before| *before != conversation);
                self.tell(async move {
                    if let Some(before) = before {
                        client.unfollow_receipts(before).await;
                    }
                    // A group may keep both to itself: then there are no names to mention, or no ticks.
                    let members = client.members(conversation, 0, 200).await.map(|page| page.members);
                    let marks = match client.follow_receipts(conversation).await {
                        Ok(marks) => Ok(marks),
                        Err(_) => client.receipts(conversation, 0, 200).await.map(|page| page.marks),
                    };
                    Told::Around {
                        conversation,
                        members: members.unwrap_or_default(),
                        marks: marks.unwrap_or_default(),
                    }
                })
            }
            Wish::JoinGroup { conversation, key } => self.tell(async move {
                match answer(client.join_group(conversation, key).await).await {
                    Ok(_) => Told::Notice(format!("you are in {conversation}")),
                    Err(why) => Told::Notice(why),
                }
            }),
            Wish::Mark { conversation, seq } => {
                self.tell_if_refused(async move { client.mark(conversation, seq).await })
            }
            Wish::Names(users) => self.tell(async move {
                match client.users(users).await {
                    Ok(members) => Told::Names(members),
                    Err(error) => Told::Notice(unreadable(&error)),
                }
            }),
            Wish::List => self.tell(async move {
                match client.conversations(0, 200).await {
                    Ok(page) => Told::List(page.conversations),
                    Err(error) => Told::Notice(unreadable(&error)),
                }
            }),
            Wish::Members(id) => self.tell(async move {
                match client.members(id, 0, 200).await {
                    Ok(page) => Told::Members(page.members),
                    Err(error) => Told::Notice(unreadable(&error)),
                }
            }),
            Wish::Company(id) => {
                let before = std::mem::take(&mut self.watched);
                self.tell(async move { company(&client, id, before).await });
            }
            Wish::Signal { conversation, kind } => {
                drop(tokio::spawn(async move { client.signal(conversation, kind, Vec::new()).await }));
            }
            Wish::OpenDirect(user) => self.tell(async move {
                let opened = client.open_direct(&user).await;
                opened_as(opened, ConversationKind::Direct, user).await
            }),
            Wish::OpenChannel(name) => self.tell(async move {
                let opened = opened_as(client.open_channel(&name).await, ConversationKind::Channel, name).await;
                let Told::Opened { id, .. } = opened else { return opened };
                match answer(client.join(id).await).await {
                    Ok(_) => opened,
                    Err(why) => Told::Notice(why),
                }
            }),
            Wish::CreateGroup { label, users } => self.tell(async move {
                let opened = client.create_group(&label, users).await;
                opened_as(opened, ConversationKind::Group, label).await
            }),
            Wish::Leave(id) => self.tell(async move {
                match answer(client.leave(id).await).await {
                    Ok(_) => Told::Left(id),
                    Err(why) => Told::Notice(why),
                }
            }),
            Wish::SetLabel { conversation, label } => {
                self.tell_if_refused(async move { client.set_label(conversation, label).await });
            }
            Wish::SetRole { conversation, user, role } => {
                self.tell_if_refused(async move { client.set_role(conversation, user, role).await });
            }
        }
    }

    /// Puts a message into the outbox, and tells what becomes of it.
    fn send(&mut self, conversation: u64, text: String, beside: packet::Beside) {
        self.said += 1;
        let reply_to = beside.reply_to;
        let (client, sender) = (self.client.clone(), self.sender.clone());
        tokio::spawn(async move {
            let published = if beside == packet::Beside::default() {
                client.publish(conversation, text.clone()).await
            } else {
                client.publish_with(conversation, text.clone(), beside).await
            };
            let publication = match published {
                Ok(publication) => publication,
                Err(error) => {
                    drop(sender.send(Told::Unsendable(format!("not sent: {error}"))));
                    return;
                }
            };
            let message_id = publication.message_id();
            drop(sender.send(Told::Saved { message_id, conversation, text: model::clean(&text), reply_to }));
            match publication.await {
                Ok(ack) => drop(sender.send(Told::Acked(ack))),
                // It is in the outbox: the next life of this program sends it.
                Err(PublishError::Closed(_)) => {}
                Err(error) => drop(sender.send(Told::Refused { message_id, why: error.to_string() })),
            }
        });
    }

    /// Does something to a message or a conversation, and tells what it came to.
    fn act(&mut self, conversation: u64, act: Act) {
        let (client, sender) = (self.client.clone(), self.sender.clone());
        // Who is mentioned in place of whom was before.
        let text = if let Act::Edit { text, .. } = &act { text } else { "" };
        let mentions = self.model.mentions_in(conversation, text);
        self.tell(async move {
            let mut told = None;
            let publication = match act.clone() {
                Act::Edit { seq, text } => client.edit_with(conversation, seq, text, mentions).await,
                Act::Recall(seq) => client.recall(conversation, seq).await,
                Act::React { seq, reaction } => client.react(conversation, seq, reaction).await,
                Act::Hide(seq) => client.hide(conversation, seq, false).await,
                Act::Settings(settings) => client.set_settings(conversation, settings).await,
                Act::Level(level) => client.set_level(conversation, level).await,
                Act::Keep(retention) => client.set_retention(conversation, retention).await,
                Act::Info(info) => client.set_info(conversation, info).await,
                Act::Ban { user, lift } => client.ban(conversation, user, lift).await,
                Act::JoinKey { open: false } => client.set_join_key(conversation, "").await,
                Act::JoinKey { open: true } => match join_key() {
                    Ok(key) => {
                        told = Some(Told::Notice(format!("others join with /join {conversation} {key}")));
                        client.set_join_key(conversation, key).await
                    }
                    Err(fail) => return Told::Notice(fail.to_string()),
                },
            };
            if let Ok(publication) = &publication {
                drop(sender.send(Told::Acting(publication.message_id())));
            }
            match answer(publication).await {
                Ok(_) => told.unwrap_or(Told::Acted { conversation, act }),
                Err(why) => Told::Notice(why),
            }
        });
    }

    /// Does something aside and tells what it came to.
    fn tell(&mut self, doing: impl Future<Output = Told> + Send + 'static) {
        self.running += 1;
        let sender = self.sender.clone();
        tokio::spawn(async move {
            // A chat that is gone does not want to know.
            drop(sender.send(Told::Done(Box::new(doing.await))));
        });
    }

    fn tell_if_refused(&self, publishing: impl Future<Output = Result<Publication, PublishError>> + Send + 'static) {
        let sender = self.sender.clone();
        tokio::spawn(async move {
            if let Err(why) = answer(publishing.await).await {
                drop(sender.send(Told::Notice(why)));
            }
        });
    }
}

/// Who is in a conversation, and whether they are there; a number where they are many.
/// Those `before` are watched no more.
async fn company(client: &Client, conversation: u64, mut before: Vec<u64>) -> Told {
    // Who is no member, or cannot be told just now, sees nothing, and is told nothing.
    let Ok(page) = client.members(conversation, 0, COMPANY_MAX).await else { return Told::Nothing };
    before.retain(|user| page.next != 0 || !page.members.iter().any(|member| member.user == *user));
    if !before.is_empty() {
        client.unsubscribe_presence(before).await;
    }
    if page.next != 0 {
        return match client.online(conversation).await {
            Ok(online) => Told::Online { conversation, online },
            Err(_) => Told::Nothing,
        };
    }
    let users = page.members.iter().map(|member| member.user).collect();
    match client.subscribe_presence(users).await {
        Ok(presences) => Told::Company { conversation, members: page.members, presences },
        Err(_) => Told::Nothing,
    }
}

fn unreadable(error: &RequestError) -> String {
    match error {
        RequestError::Timeout => "the broker is away; older lines are there when it is back".to_owned(),
        error => error.to_string(),
    }
}

async fn answer(publication: Result<Publication, PublishError>) -> Result<packet::PublishAck, String> {
    match publication {
        Ok(publication) => publication.await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

async fn opened_as(publication: Result<Publication, PublishError>, kind: ConversationKind, label: String) -> Told {
    match answer(publication).await {
        Ok(ack) => Told::Opened { id: ack.conversation, kind, label },
        Err(why) => Told::Notice(format!("{label}: {why}")),
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// Gives the terminal back, however this ends; a panic does it too, by the hook of `ratatui::try_init`.
struct Screen;

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

async fn terminated() {
    #[cfg(unix)]
    if let Ok(mut signal) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        signal.recv().await;
        return;
    }
    std::future::pending::<()>().await;
}
