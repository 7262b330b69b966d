//! What a chat knows and shows: a value. Keys, deliveries and answers go in; wishes come out.

mod arrivals;
mod changes;
mod looking;
mod marks;
mod present;
mod unsent;
mod words;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use longwire_client::packet::{
    Beside, ConversationKind, Info, Level, Presence, ReactionCount, Retention, Role, Settings, SignalKind,
};

use super::input::Input;
use present::Company;
pub(super) use unsent::Unsent;

/// One entry, as it is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// Who said it; 0: nobody, it is an event.
    pub(super) sender: u64,
    /// Milliseconds since the log's birth.
    pub(super) time: u64,
    pub(super) text: String,
    /// The seq that it answers; 0: none.
    pub(super) reply_to: u64,
    /// It mentions this user, by name or as one of all.
    pub(super) calls_me: bool,
    pub(super) edited: bool,
    /// Nobody has its content any more.
    pub(super) recalled: bool,
    /// When it ceases to be shown, in milliseconds since the log's birth; 0: never.
    pub(super) expires: u64,
    pub(super) reactions: Vec<ReactionCount>,
}

/// A conversation.
#[derive(Clone, Debug, Default)]
pub(super) struct Talk {
    pub(super) id: u64,
    pub(super) kind: ConversationKind,
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) unread: u64,
    /// How many of the unread ones mention this user.
    pub(super) mentions: u64,
    pub(super) settings: Settings,
    /// How much of it this device is delivered.
    pub(super) level: Level,
    /// How long entries are kept.
    pub(super) retention: Retention,
    /// What the group says of itself.
    pub(super) info: Info,
    /// The entries that name and info are from: older ones, read later, change nothing.
    named_at: u64,
    informed_at: u64,
    /// How far others have read, by user.
    marks: BTreeMap<u64, u64>,
    /// Up to where it was delivered to others.
    delivered: BTreeMap<u64, u64>,
    /// How far this user has read, as the broker was told.
    pub(super) mark: u64,
    pub(super) head_seq: u64,
    pub(super) head_time: u64,
    pub(super) lines: BTreeMap<u64, Line>,
    /// The first seq of an unbroken run up to the head; below it history is to be asked. 0: nothing was read yet.
    pub(super) loaded_from: u64,
    /// The last seq of that run.
    loaded_to: u64,
    /// There is nothing older.
    pub(super) complete: bool,
    pub(super) loading: bool,
}

/// What is done to a message, or to a conversation.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Act {
    Edit {
        seq: u64,
        text: String,
    },
    Recall(u64),
    React {
        seq: u64,
        reaction: String,
    },
    Hide(u64),
    Settings(Settings),
    Level(Level),
    Keep(Retention),
    Info(Info),
    Ban {
        user: String,
        lift: bool,
    },
    /// Makes a join key, or takes it away.
    JoinKey {
        open: bool,
    },
}

/// What the model wants done.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Wish {
    Send {
        conversation: u64,
        text: String,
        beside: Beside,
    },
    /// What became of one message.
    Again {
        conversation: u64,
        seq: u64,
    },
    /// Who is in a conversation, and how far they have read.
    Around(u64),
    Act {
        conversation: u64,
        act: Act,
    },
    JoinGroup {
        conversation: u64,
        key: String,
    },
    /// A page of history that ends before this seq; 0: with the newest.
    Older {
        conversation: u64,
        before: u64,
    },
    Mark {
        conversation: u64,
        seq: u64,
    },
    Names(Vec<u64>),
    List,
    OpenDirect(String),
    OpenChannel(String),
    CreateGroup {
        label: String,
        users: Vec<String>,
    },
    Leave(u64),
    SetLabel {
        conversation: u64,
        label: String,
    },
    SetRole {
        conversation: u64,
        user: String,
        role: Role,
    },
    Members(u64),
    /// Who is in it, and whether they are there.
    Company(u64),
    Signal {
        conversation: u64,
        kind: SignalKind,
    },
    /// Whether nobody looks at this device.
    Background(bool),
    ConnectNow,
    Quit,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Model {
    /// This user's id; 0 until the first connection.
    pub(super) me: u64,
    /// The log's birth, in milliseconds since 1970.
    pub(super) birth: u64,
    pub(super) talks: Vec<Talk>,
    /// The conversation that is open.
    pub(super) open: Option<u64>,
    pub(super) names: HashMap<u64, String>,
    asked: BTreeSet<u64>,
    presences: HashMap<u64, Presence>,
    company: HashMap<u64, Company>,
    /// Who types where, and until when that is believed.
    typing: BTreeMap<(u64, u64), u64>,
    /// In which conversation it was told that this user types, and when.
    typed: Option<(u64, u64)>,
    pub(super) unsent: Vec<Unsent>,
    /// Message ids answered lately: an older look at the outbox may still have them.
    answered: VecDeque<u64>,
    /// Messages that are asked again (conversation, seq), and whether they changed since they were.
    again: BTreeMap<(u64, u64), bool>,
    /// Message ids of this device's own changes that are on their way.
    acting: BTreeSet<u64>,
    /// Lines that are other than they were (conversation, seq), for who has printed them.
    altered: BTreeSet<(u64, u64)>,
    pub(super) input: Input,
    /// Rows scrolled up from the newest.
    pub(super) scroll: usize,
    pub(super) connection: String,
    pub(super) connected: bool,
    pub(super) notice: String,
    pub(super) help: bool,
    wishes: Vec<Wish>,
}

impl Talk {
    /// An entry of the conversation is here, in its order; whether it is news.
    fn reach(&mut self, seq: u64) -> bool {
        if seq > self.loaded_to {
            // An unbroken run goes on; what was never loaded begins here.
            if self.loaded_from == 0 || seq > self.loaded_to + 1 {
                self.loaded_from = seq;
                self.complete = seq == 1;
            }
            self.loaded_to = seq;
        }
        let is_news = seq > self.head_seq;
        self.head_seq = self.head_seq.max(seq);
        is_news
    }

    /// Nothing of it is loaded any more.
    fn unload(&mut self) {
        self.lines.clear();
        (self.loaded_from, self.loaded_to) = (0, 0);
        (self.complete, self.loading) = (false, false);
    }
}

impl Model {
    /// Takes what is to be done.
    pub(super) fn take_wishes(&mut self) -> Vec<Wish> {
        std::mem::take(&mut self.wishes)
    }

    /// Takes the lines that are other than they were.
    pub(super) fn take_altered(&mut self) -> BTreeSet<(u64, u64)> {
        std::mem::take(&mut self.altered)
    }

    pub(super) fn talk(&self, id: u64) -> Option<&Talk> {
        self.talks.iter().find(|talk| talk.id == id)
    }

    fn talk_mut(&mut self, id: u64) -> Option<&mut Talk> {
        self.talks.iter_mut().find(|talk| talk.id == id)
    }

    pub(super) fn open_talk(&self) -> Option<&Talk> {
        self.open.and_then(|id| self.talk(id))
    }

    /// How a user is called here.
    pub(super) fn name_of(&self, user: u64) -> String {
        match self.names.get(&user) {
            Some(name) => name.clone(),
            None if user == self.me => "you".to_owned(),
            None => format!("user {user}"),
        }
    }

    pub(super) fn wish(&mut self, wish: Wish) {
        if !self.wishes.contains(&wish) {
            self.wishes.push(wish);
        }
    }

    pub(super) fn say(&mut self, notice: impl Into<String>) {
        self.notice = notice.into();
    }
}

/// Text as it may be shown: what others wrote must not steer this terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars()
        .filter(|c| *c == '\n' || !c.is_control())
        .map(|c| if matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use longwire_client::Item;
    use longwire_client::packet::{self, Conversation, Entry, HistoryPage, Own, PublishAck, item};

    pub(super) fn message(seq: u64, sender: u64, text: &str) -> Entry {
        let content = text.as_bytes().to_vec().into();
        Entry { conversation: 1, seq, sender, time: seq * 1_000, content, ..Entry::default() }
    }

    pub(super) fn model() -> Model {
        let mut model = Model::default();
        model.handle_connected(&packet::Connected { user: 7, ..Default::default() });
        let conversations =
            (1..=3).map(|id| Conversation { id, head_time: 10 - id, label: format!("c{id}"), ..Default::default() });
        model.handle_list(conversations.collect());
        model.take_wishes();
        model
    }

    #[test]
    fn what_is_not_open_is_counted_and_what_is_open_is_marked() {
        let mut model = model();
        assert_eq!(model.open, Some(1));
        model.handle_item(&Item::Entry(message(1, 8, "hello")));
        assert!(model.take_wishes().contains(&Wish::Mark { conversation: 1, seq: 1 }));
        model.handle_item(&Item::Entry(Entry { conversation: 2, ..message(1, 8, "psst") }));
        assert_eq!((model.unread(), model.talk(2).map(|talk| talk.unread)), (1, Some(1)));
        model.show(2);
        assert_eq!(model.unread(), 0);
        model.handle_item(&Item::Entry(Entry { conversation: 3, ..message(1, 7, "mine, from elsewhere") }));
        assert_eq!(model.unread(), 0, "what one wrote oneself is read");
    }

    #[test]
    fn what_is_typed_is_unsent_until_it_is_stored_and_then_there_once() {
        let mut model = model();
        model.handle_saved(4, 1, "on my way".to_owned(), 0);
        assert_eq!(model.unsent.len(), 1);
        model.handle_acked(&PublishAck { message_id: 4, seq: 9, time: 5, conversation: 0 });
        model.handle_item(&Item::Own(Own { conversation: 1, seq: 9, message_id: 4, ..Own::default() }));
        assert!(model.unsent.is_empty());
        let look = packet::Publish { conversation: 1, content: b"on my way".to_vec().into(), ..Default::default() };
        model.handle_unanswered(&[(4, look)]);
        assert!(model.unsent.is_empty(), "that look was older than the ack");
        let lines = &model.talk(1).expect("there").lines;
        assert_eq!((lines.len(), lines[&9].text.as_str()), (1, "on my way"));
    }

    #[test]
    fn what_an_earlier_life_left_is_shown_once_until_it_is_gone() {
        let mut model = model();
        let left = packet::Publish { conversation: 1, content: b"left".to_vec().into(), ..Default::default() };
        model.handle_unanswered(&[(4, left.clone())]);
        model.handle_saved(4, 1, "left".to_owned(), 0);
        assert_eq!(model.unsent.len(), 1);
        model.handle_saved(5, 1, "typed since that look".to_owned(), 0);
        model.handle_unanswered(&[(4, left)]);
        assert_eq!(model.unsent.len(), 2);
        model.handle_unanswered(&[]);
        model.handle_unanswered(&[]);
        assert!(model.unsent.is_empty());
        assert!(model.take_wishes().contains(&Wish::Older { conversation: 1, before: 0 }));
    }

    #[test]
    fn own_entries_may_come_before_their_ack() {
        let mut model = model();
        model.handle_saved(4, 1, "on my way".to_owned(), 0);
        model.handle_item(&Item::Own(Own { conversation: 1, seq: 9, message_id: 4, ..Own::default() }));
        model.handle_acked(&PublishAck { message_id: 4, seq: 9, time: 5, conversation: 0 });
        assert_eq!(model.talk(1).expect("there").lines.len(), 1);
        assert!(model.unsent.is_empty());
    }

    #[test]
    fn scrolling_to_the_top_asks_for_older_lines_once() {
        let mut model = model();
        let items =
            (51..=100).map(|seq| packet::Item { kind: Some(item::Kind::Entry(message(seq, 8, "x"))) }).collect();
        model.handle_page(1, 0, HistoryPage { items, next_seq: 50, head_seq: 100 });
        model.take_wishes();
        model.scroll_by(true, 100, 60, 20);
        assert_eq!(model.scroll, 40);
        let older = Wish::Older { conversation: 1, before: 51 };
        assert!(model.take_wishes().contains(&older));
        model.scroll_by(true, 100, 60, 20);
        assert!(!model.take_wishes().contains(&older), "it is on its way");
        let items = (1..=50).map(|seq| packet::Item { kind: Some(item::Kind::Entry(message(seq, 8, "x"))) }).collect();
        model.handle_page(1, 51, HistoryPage { items, next_seq: 0, head_seq: 100 });
        assert!(model.talk(1).expect("there").complete);
        model.scroll_by(true, 100, 110, 20);
        assert!(model.take_wishes().is_empty(), "there is nothing older");
    }

    #[test]
    fn others_cannot_steer_the_terminal() {
        assert_eq!(clean("a\u{1b}[31mred\u{7}\n\u{202e}b"), "a[31mred\n b");
    }
}
