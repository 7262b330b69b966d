//! What a chat knows and shows: a value. Keys, deliveries and answers go in; wishes come out.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use longwire_client::packet::{self, Conversation, ConversationKind, EntryKind, Role, item};
use longwire_client::{Item, Settled};

use super::super::conversation::{name, words};
use super::input::Input;

/// Lines kept of one conversation; older ones are read again when somebody scrolls there.
const LINES_MAX: usize = 2_000;

/// As many message ids as can be under way.
const ANSWERED_MAX: usize = 256;

/// One entry, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Who said it; 0: nobody, it is an event.
    pub(super) sender: u64,
    /// Milliseconds since the log's birth.
    pub(super) time: u64,
    pub(super) text: String,
}

/// A conversation.
#[derive(Clone, Debug, Default)]
pub(super) struct Talk {
    pub(super) id: u64,
    pub(super) kind: ConversationKind,
    pub(super) name: String,
    pub(super) unread: u64,
    /// How far this user has read, as the broker was told.
    pub(super) mark: u64,
    pub(super) head_seq: u64,
    pub(super) head_time: u64,
    pub(super) lines: BTreeMap<u64, Line>,
    /// The first seq of an unbroken run up to the head; below it history is to be asked. 0: nothing was read yet.
    pub(super) loaded_from: u64,
    /// There is nothing older.
    pub(super) complete: bool,
    pub(super) loading: bool,
}

/// What was typed and is not stored yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unsent {
    pub(super) message_id: u64,
    pub(super) conversation: u64,
    pub(super) text: String,
    /// Why it will not be, if so.
    pub(super) refused: Option<String>,
    /// It was not among what the outbox holds when that was last looked at.
    missing: bool,
}

/// What the model wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Send {
        conversation: u64,
        text: String,
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
    pub(super) unsent: Vec<Unsent>,
    /// Message ids answered lately: an older look at the outbox may still have them.
    answered: VecDeque<u64>,
    pub(super) input: Input,
    /// Rows scrolled up from the newest.
    pub(super) scroll: usize,
    pub(super) connection: String,
    pub(super) connected: bool,
    pub(super) notice: String,
    pub(super) help: bool,
    wishes: Vec<Wish>,
}

impl Model {
    /// Takes what is to be done.
    pub(super) fn take_wishes(&mut self) -> Vec<Wish> {
        std::mem::take(&mut self.wishes)
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

    // ------------------------------------------------------------------------------------------ from the broker

    pub(super) fn handle_connected(&mut self, connected: &packet::Connected) {
        self.me = connected.user;
        self.birth = connected.birth_unix_ms;
        self.names.insert(self.me, "you".to_owned());
        self.connected = true;
        self.wish(Wish::List);
    }

    /// The list of conversations, as the broker counts.
    pub(super) fn handle_list(&mut self, list: Vec<Conversation>) {
        for one in list {
            self.put_talk(&one);
        }
        self.sort();
        if self.open.is_none()
            && let Some(first) = self.talks.first().map(|talk| talk.id)
        {
            self.show(first);
        }
        if let Some(open) = self.open {
            self.load_newest_if_behind(open);
        }
    }

    fn put_talk(&mut self, one: &Conversation) {
        if one.kind() == ConversationKind::Inbox {
            return;
        }
        if self.talk(one.id).is_none() {
            self.talks.push(Talk { id: one.id, ..Talk::default() });
        }
        let open = self.open == Some(one.id);
        if let Some(talk) = self.talk_mut(one.id) {
            talk.kind = one.kind();
            talk.name = clean(&name(one));
            talk.mark = talk.mark.max(one.mark);
            talk.head_seq = talk.head_seq.max(one.head_seq);
            talk.head_time = talk.head_time.max(one.head_time);
            talk.unread = if open { 0 } else { one.unread };
        }
    }

    /// Adds a conversation that was opened here, and shows it.
    pub(super) fn handle_opened(&mut self, id: u64, kind: ConversationKind, label: &str) {
        let mut one = Conversation { id, label: label.to_owned(), ..Conversation::default() };
        one.set_kind(kind);
        if self.talk(id).is_none() {
            self.put_talk(&one);
        }
        self.show(id);
        self.wish(Wish::List);
    }

    pub(super) fn handle_left(&mut self, id: u64) {
        self.talks.retain(|talk| talk.id != id);
        if self.open == Some(id) {
            self.open = None;
            if let Some(first) = self.talks.first().map(|talk| talk.id) {
                self.show(first);
            }
        }
    }

    pub(super) fn handle_names(&mut self, members: Vec<packet::Member>) {
        for member in members {
            if member.user != self.me {
                self.names.insert(member.user, clean(&member.name));
            }
        }
    }

    pub(super) fn handle_item(&mut self, item: &Item) {
        match item {
            Item::Entry(entry) => self.handle_entry(entry, true),
            Item::Own(own) => self.handle_own(own),
            Item::Skipped(head) => {
                if let Some(talk) = self.talk_mut(head.conversation) {
                    talk.head_seq = talk.head_seq.max(head.to_seq);
                    talk.lines.clear();
                    talk.loaded_from = 0;
                    talk.complete = false;
                }
                self.wish(Wish::List);
                if self.open == Some(head.conversation) {
                    self.load_newest_if_behind(head.conversation);
                }
            }
            Item::Mark(mark) if mark.user == 0 || mark.user == self.me => {
                let me = self.me;
                if let Some(talk) = self.talk_mut(mark.conversation) {
                    talk.mark = talk.mark.max(mark.seq);
                    let newer = talk.lines.range(talk.mark + 1..);
                    let unread = newer.filter(|(_, line)| line.sender != me && line.sender != 0).count() as u64;
                    talk.unread = talk.unread.min(unread);
                }
            }
            Item::Reset(_) => {
                for talk in &mut self.talks {
                    talk.lines.clear();
                    talk.loaded_from = 0;
                    talk.complete = false;
                    talk.loading = false;
                }
                self.wish(Wish::List);
            }
            Item::Settled(settled) => self.handle_settled(settled),
            Item::Mark(_) | Item::CaughtUp(_) | Item::Unknown => {}
        }
    }

    /// What was typed and unsent comes from a backup, and the outbox has found out what became of it.
    fn handle_settled(&mut self, settled: &Settled) {
        for own in &settled.stored {
            self.handle_own(own);
        }
        for &id in &settled.doubtful {
            self.handle_refused(id, "may be stored or not: say it again if it is not there".to_owned());
        }
        let (stored, sent, doubtful) = (settled.stored.len(), settled.sent.len(), settled.doubtful.len());
        self.say(format!(
            "the outbox was restored from a copy: {stored} were stored, {sent} are sent now, {doubtful} are doubtful"
        ));
    }

    fn handle_entry(&mut self, entry: &packet::Entry, live: bool) {
        match entry.kind() {
            EntryKind::Joined => {
                if let Some(joined) = &entry.joined {
                    let mut one =
                        Conversation { id: joined.conversation, label: joined.label.clone(), ..Default::default() };
                    one.set_kind(joined.kind());
                    one.head_seq = joined.seq;
                    one.head_time = entry.time;
                    self.put_talk(&one);
                    self.sort();
                    if self.open.is_none() {
                        self.show(joined.conversation);
                    }
                }
                return;
            }
            EntryKind::Left => {
                if let Some(left) = &entry.left {
                    self.handle_left(left.conversation);
                }
                return;
            }
            EntryKind::Message | EntryKind::Membership | EntryKind::Label => {}
        }
        if let Some(membership) = &entry.membership
            && membership.user != self.me
            && !membership.name.is_empty()
        {
            self.names.insert(membership.user, clean(&membership.name));
        }
        let message = entry.kind() == EntryKind::Message;
        if message
            && entry.sender != self.me
            && !self.names.contains_key(&entry.sender)
            && self.asked.insert(entry.sender)
        {
            self.wish(Wish::Names(vec![entry.sender]));
        }
        let sender = if message { entry.sender } else { 0 };
        let line = Line { sender, time: entry.time, text: clean(&words(entry)) };
        self.put_line(entry.conversation, entry.seq, line, live);
        if !entry.label.is_empty()
            && entry.kind() == EntryKind::Label
            && let Some(talk) = self.talk_mut(entry.conversation)
        {
            talk.name = clean(&entry.label);
        }
    }

    fn handle_own(&mut self, own: &packet::Own) {
        self.note_answered(own.message_id);
        let at =
            self.unsent.iter().position(|one| one.message_id == own.message_id && one.conversation == own.conversation);
        let text = at.map(|at| self.unsent.remove(at).text);
        match (&own.entry, text) {
            (Some(entry), _) => self.handle_entry(entry, true),
            (None, Some(text)) => {
                let line = Line { sender: self.me, time: own.time, text };
                self.put_line(own.conversation, own.seq, line, true);
            }
            // The ack was here first, or it was no message: history has it.
            (None, None) => {
                let known = self.talk(own.conversation).is_none_or(|talk| talk.lines.contains_key(&own.seq));
                if !known {
                    self.wish(Wish::Older { conversation: own.conversation, before: 0 });
                }
            }
        }
    }

    fn put_line(&mut self, conversation: u64, seq: u64, line: Line, live: bool) {
        let (me, open) = (self.me, self.open == Some(conversation));
        let Some(talk) = self.talk_mut(conversation) else {
            self.wish(Wish::List);
            return;
        };
        let counts = live && seq > talk.head_seq && line.sender != me && line.sender != 0;
        if live && seq > talk.head_seq {
            // An unbroken run goes on; what was never loaded begins here.
            if talk.loaded_from == 0 || seq > talk.head_seq + 1 {
                talk.loaded_from = seq;
                talk.complete = seq == 1;
            }
            talk.head_seq = seq;
            talk.head_time = line.time;
        }
        talk.lines.insert(seq, line);
        if counts && !open {
            talk.unread += 1;
        }
        if talk.lines.len() > LINES_MAX && !open {
            let Some((oldest, _)) = talk.lines.pop_first() else { return };
            talk.loaded_from = talk.loaded_from.max(oldest + 1);
            talk.complete = false;
        }
        if live {
            self.sort();
        }
        if open && live {
            self.mark_read();
        }
    }

    /// A page of history that was asked for as [`Wish::Older`].
    pub(super) fn handle_page(&mut self, conversation: u64, before: u64, page: packet::HistoryPage) {
        let mut lowest = u64::MAX;
        for item in page.items {
            let entry = match item.kind {
                Some(item::Kind::Entry(entry)) => Some(entry),
                Some(item::Kind::Own(own)) => own.entry,
                Some(item::Kind::Head(head)) => {
                    lowest = lowest.min(head.from_seq);
                    None
                }
                _ => None,
            };
            if let Some(entry) = entry {
                lowest = lowest.min(entry.seq);
                self.handle_entry(&entry, false);
            }
        }
        if let Some(talk) = self.talk_mut(conversation) {
            talk.loading = false;
            talk.head_seq = talk.head_seq.max(page.head_seq);
            if lowest != u64::MAX
                && (before == 0 || talk.loaded_from == 0 || talk.loaded_from >= before.saturating_sub(1))
            {
                talk.loaded_from = if talk.loaded_from == 0 { lowest } else { talk.loaded_from.min(lowest) };
            }
            talk.complete = page.next_seq == 0;
        }
        if self.open == Some(conversation) {
            self.mark_read();
        }
    }

    pub(super) fn handle_page_failed(&mut self, conversation: u64) {
        if let Some(talk) = self.talk_mut(conversation) {
            talk.loading = false;
        }
    }

    // ------------------------------------------------------------------------------------------ what was typed

    /// Something typed is in the outbox.
    pub(super) fn handle_saved(&mut self, message_id: u64, conversation: u64, text: String) {
        if !self.unsent.iter().any(|one| one.message_id == message_id) {
            self.unsent.push(Unsent { message_id, conversation, text, refused: None, missing: false });
        }
    }

    /// What the outbox holds. What an earlier life left there is shown as unsent until it is gone. One look may be
    /// older than what was typed since, so only what is missing twice is gone.
    pub(super) fn handle_unanswered(&mut self, publishes: &[(u64, packet::Publish)]) {
        let mut gone = Vec::new();
        self.unsent.retain_mut(|one| {
            let missing = one.refused.is_none() && !publishes.iter().any(|(id, _)| *id == one.message_id);
            let twice = missing && one.missing;
            one.missing = missing;
            gone.extend(twice.then_some(one.conversation));
            !twice
        });
        for conversation in gone {
            self.wish(Wish::Older { conversation, before: 0 });
        }
        for (id, publish) in publishes.iter().filter(|(_, publish)| publish.action.is_none()) {
            if self.answered.contains(id) {
                continue;
            }
            let text = clean(&String::from_utf8_lossy(&publish.content));
            self.handle_saved(*id, publish.conversation, text);
        }
    }

    fn note_answered(&mut self, message_id: u64) {
        self.answered.push_back(message_id);
        if self.answered.len() > ANSWERED_MAX {
            self.answered.pop_front();
        }
    }

    pub(super) fn handle_acked(&mut self, ack: &packet::PublishAck) {
        self.note_answered(ack.message_id);
        let Some(at) = self.unsent.iter().position(|one| one.message_id == ack.message_id) else { return };
        let one = self.unsent.remove(at);
        let line = Line { sender: self.me, time: ack.time, text: one.text };
        self.put_line(one.conversation, ack.seq, line, true);
    }

    pub(super) fn handle_refused(&mut self, message_id: u64, why: String) {
        if let Some(one) = self.unsent.iter_mut().find(|one| one.message_id == message_id) {
            one.refused = Some(why);
        }
    }

    // ------------------------------------------------------------------------------------------ looking around

    /// Opens a conversation in the window.
    pub(super) fn show(&mut self, id: u64) {
        self.open = Some(id);
        self.scroll = 0;
        self.load_newest_if_behind(id);
        self.mark_read();
    }

    /// The next conversation in the list, or the one before.
    pub(super) fn step(&mut self, down: bool) {
        let at = self.talks.iter().position(|talk| Some(talk.id) == self.open);
        let next = match (at, down) {
            (None, _) => 0,
            (Some(at), true) => (at + 1).min(self.talks.len().saturating_sub(1)),
            (Some(at), false) => at.saturating_sub(1),
        };
        if let Some(id) = self.talks.get(next).map(|talk| talk.id)
            && Some(id) != self.open
        {
            self.show(id);
        }
    }

    /// Scrolls; `rows` and `height` are those of the history as it was drawn last.
    pub(super) fn scroll_by(&mut self, up: bool, by: usize, rows: usize, height: usize) {
        let highest = rows.saturating_sub(height);
        self.scroll = if up { (self.scroll + by).min(highest) } else { self.scroll.saturating_sub(by) };
        if up && self.scroll + height >= rows {
            self.load_older();
        }
    }

    fn load_older(&mut self) {
        let Some(id) = self.open else { return };
        let Some(talk) = self.talk_mut(id) else { return };
        if !talk.loading && !talk.complete && talk.loaded_from > 1 {
            talk.loading = true;
            let before = talk.loaded_from;
            self.wish(Wish::Older { conversation: id, before });
        }
    }

    fn load_newest_if_behind(&mut self, id: u64) {
        let Some(talk) = self.talk_mut(id) else { return };
        let has_newest = talk.head_seq == 0 || talk.lines.contains_key(&talk.head_seq);
        let has_screen = talk.complete || talk.lines.len() >= 50;
        let is_whole = has_newest && has_screen;
        if !talk.loading && !is_whole {
            talk.loading = true;
            self.wish(Wish::Older { conversation: id, before: 0 });
        }
    }

    fn mark_read(&mut self) {
        let Some(id) = self.open else { return };
        let Some(talk) = self.talk_mut(id) else { return };
        talk.unread = 0;
        if talk.head_seq > talk.mark {
            talk.mark = talk.head_seq;
            let seq = talk.head_seq;
            self.wishes.retain(|wish| !matches!(wish, Wish::Mark { conversation, .. } if *conversation == id));
            self.wish(Wish::Mark { conversation: id, seq });
        }
    }

    fn sort(&mut self) {
        self.talks.sort_by(|a, b| b.head_time.cmp(&a.head_time).then(a.id.cmp(&b.id)));
    }

    /// Unread messages in all.
    pub(super) fn unread(&self) -> u64 {
        self.talks.iter().map(|talk| talk.unread).sum()
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
    use longwire_client::packet::{Entry, HistoryPage, Own, PublishAck};

    fn message(seq: u64, sender: u64, text: &str) -> Entry {
        let content = text.as_bytes().to_vec().into();
        Entry { conversation: 1, seq, sender, time: seq * 1_000, content, ..Entry::default() }
    }

    fn model() -> Model {
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
        model.handle_saved(4, 1, "on my way".to_owned());
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
        model.handle_saved(4, 1, "left".to_owned());
        assert_eq!(model.unsent.len(), 1);
        model.handle_saved(5, 1, "typed since that look".to_owned());
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
        model.handle_saved(4, 1, "on my way".to_owned());
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
