//! What comes from the broker: lists, names, items, pages of history.

use longwire_client::packet::{self, Conversation, ConversationKind, EntryKind, item};
use longwire_client::{Item, Settled};

use super::super::super::conversation::{name, words};
use super::{Line, Model, Talk, Wish, clean};

/// Lines kept of one conversation; older ones are read again when somebody scrolls there.
const LINES_MAX: usize = 2_000;

impl Model {
    pub(in crate::cli::chat) fn handle_connected(&mut self, connected: &packet::Connected) {
        self.me = connected.user;
        self.birth = connected.birth_unix_ms;
        self.names.insert(self.me, "you".to_owned());
        self.connected = true;
        self.wish(Wish::List);
        if let Some(open) = self.open {
            self.wish(Wish::Company(open));
        }
    }

    /// The list of conversations, as the broker counts.
    pub(in crate::cli::chat) fn handle_list(&mut self, list: Vec<Conversation>) {
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

    pub(super) fn put_talk(&mut self, one: &Conversation) {
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
    pub(in crate::cli::chat) fn handle_opened(&mut self, id: u64, kind: ConversationKind, label: &str) {
        let mut one = Conversation { id, label: label.to_owned(), ..Conversation::default() };
        one.set_kind(kind);
        if self.talk(id).is_none() {
            self.put_talk(&one);
        }
        self.show(id);
        self.wish(Wish::List);
    }

    pub(in crate::cli::chat) fn handle_left(&mut self, id: u64) {
        self.talks.retain(|talk| talk.id != id);
        if self.open == Some(id) {
            self.open = None;
            if let Some(first) = self.talks.first().map(|talk| talk.id) {
                self.show(first);
            }
        }
    }

    pub(in crate::cli::chat) fn handle_names(&mut self, members: Vec<packet::Member>) {
        for member in members {
            if member.user != self.me {
                self.names.insert(member.user, clean(&member.name));
            }
        }
    }

    pub(in crate::cli::chat) fn handle_item(&mut self, item: &Item) {
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
    pub(super) fn handle_settled(&mut self, settled: &Settled) {
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

    pub(super) fn handle_entry(&mut self, entry: &packet::Entry, live: bool) {
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
            EntryKind::Edit | EntryKind::Recall => return self.handle_alteration(entry, live),
            EntryKind::Reaction | EntryKind::Info | EntryKind::Mentioned | EntryKind::Settings | EntryKind::Hidden => {
                return;
            }
            EntryKind::Profile | EntryKind::Contact | EntryKind::Blocked | EntryKind::Device => return,
        }
        if let Some(membership) = &entry.membership
            && membership.user != self.me
            && !membership.name.is_empty()
        {
            self.names.insert(membership.user, clean(&membership.name));
        }
        let message = entry.kind() == EntryKind::Message;
        self.note_said(entry.conversation, entry.sender);
        if live && !message && self.open == Some(entry.conversation) {
            self.wish(Wish::Company(entry.conversation));
        }
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

    /// A message has another content, or none any more.
    fn handle_alteration(&mut self, entry: &packet::Entry, live: bool) {
        let target = entry.recall.as_ref().map_or(entry.edit, |recall| recall.seq);
        let text = match entry.recall {
            Some(_) => "(recalled)".to_owned(),
            None => format!("{} (edited)", clean(&String::from_utf8_lossy(&entry.content))),
        };
        let Some(talk) = self.talk_mut(entry.conversation) else { return };
        if let Some(line) = talk.lines.get_mut(&target) {
            line.text = text;
        }
        if live && entry.seq == talk.head_seq + 1 {
            talk.head_seq = entry.seq;
        }
    }

    pub(super) fn handle_own(&mut self, own: &packet::Own) {
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

    pub(super) fn put_line(&mut self, conversation: u64, seq: u64, line: Line, live: bool) {
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
    pub(in crate::cli::chat) fn handle_page(&mut self, conversation: u64, before: u64, page: packet::HistoryPage) {
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

    pub(in crate::cli::chat) fn handle_page_failed(&mut self, conversation: u64) {
        if let Some(talk) = self.talk_mut(conversation) {
            talk.loading = false;
        }
    }
}
