//! What comes from the broker: lists, names, items, pages of history.

use longwire_client::packet::{self, Conversation, ConversationKind, EntryKind, HeadReason, item};
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
            self.look_around(open);
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
            talk.named_at = talk.named_at.max(one.head_seq);
            talk.informed_at = talk.informed_at.max(one.head_seq);
            talk.role = one.role();
            talk.settings = one.settings.unwrap_or_default();
            talk.level = one.level();
            talk.retention = one.retention.unwrap_or_default();
            talk.info = one.info.clone().unwrap_or_default();
            talk.mark = talk.mark.max(one.mark);
            talk.head_seq = talk.head_seq.max(one.head_seq);
            talk.head_time = talk.head_time.max(one.head_time);
            (talk.unread, talk.mentions) = if open { (0, 0) } else { (one.unread, one.mentions) };
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
                    if matches!(head.reason(), HeadReason::Skipped | HeadReason::Withheld) {
                        talk.head_seq = talk.head_seq.max(head.to_seq);
                        talk.unload();
                    } else {
                        talk.reach(head.from_seq);
                        talk.loaded_to = talk.loaded_to.max(head.to_seq);
                        talk.head_seq = talk.head_seq.max(head.to_seq);
                    }
                }
                self.handle_gone(head);
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
                    talk.mentions = talk.mentions.min(talk.unread);
                }
            }
            Item::Mark(mark) => self.handle_mark(mark),
            Item::Reset(_) => {
                for talk in &mut self.talks {
                    talk.unload();
                }
                self.wish(Wish::List);
            }
            Item::Settled(settled) => self.handle_settled(settled),
            Item::CaughtUp(_) | Item::Unknown => {}
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
                    one.set_role(joined.role());
                    one.head_seq = joined.seq;
                    one.head_time = entry.time;
                    self.put_talk(&one);
                    self.sort();
                    self.wish(Wish::List);
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
            EntryKind::Message | EntryKind::Membership | EntryKind::Label | EntryKind::Info | EntryKind::Retention => {}
            EntryKind::Edit | EntryKind::Recall | EntryKind::Reaction => return self.handle_change(entry, live),
            EntryKind::Mentioned | EntryKind::Settings | EntryKind::Hidden => return self.handle_inbox(entry),
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
        let line = self.line_of(entry, sender, clean(&words(entry)));
        self.put_line(entry.conversation, entry.seq, line, live);
        if !entry.label.is_empty()
            && entry.kind() == EntryKind::Label
            && let Some(talk) = self.talk_mut(entry.conversation)
            && talk.named_at <= entry.seq
        {
            talk.named_at = entry.seq;
            talk.name = clean(&entry.label);
        }
        if let Some(info) = &entry.info
            && let Some(talk) = self.talk_mut(entry.conversation)
            && talk.informed_at <= entry.seq
        {
            talk.informed_at = entry.seq;
            talk.info = (**info).clone();
        }
    }

    pub(super) fn handle_own(&mut self, own: &packet::Own) {
        self.note_answered(own.message_id);
        let at =
            self.unsent.iter().position(|one| one.message_id == own.message_id && one.conversation == own.conversation);
        let typed = at.map(|at| self.unsent.remove(at));
        match (&own.entry, typed) {
            (Some(entry), _) => self.handle_entry(entry, true),
            (None, Some(typed)) => {
                let line = typed.into_line(self.me, own.time);
                self.put_line(own.conversation, own.seq, line, true);
            }
            // The ack was here first, or it was no message: history has it.
            (None, None) => {
                let Some(talk) = self.talk_mut(own.conversation) else { return };
                talk.reach(own.seq);
                let known = talk.lines.contains_key(&own.seq);
                if !self.acting.remove(&own.message_id) && !known {
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
        let is_news = live && talk.reach(seq);
        if is_news {
            talk.head_time = line.time;
            talk.note_mark(line.sender, seq, me);
        }
        let counts = is_news && line.sender != me && line.sender != 0;
        let before = talk.lines.insert(seq, line.clone());
        if before.is_some_and(|before| before != line) {
            self.altered.insert((conversation, seq));
        }
        let Some(talk) = self.talk_mut(conversation) else { return };
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
        let lowest = self.take_items(page.items);
        if let Some(talk) = self.talk_mut(conversation) {
            talk.loading = false;
            talk.head_seq = talk.head_seq.max(page.head_seq);
            // The newest page begins another run where something lies between it and what was there.
            let begins = before == 0 && lowest > talk.loaded_to + 1;
            if lowest != u64::MAX && (begins || talk.loaded_from == 0) {
                talk.loaded_from = lowest;
            } else if lowest != u64::MAX && (before == 0 || talk.loaded_from >= before.saturating_sub(1)) {
                talk.loaded_from = talk.loaded_from.min(lowest);
            }
            if before == 0 {
                talk.loaded_to = talk.loaded_to.max(page.head_seq);
            }
            talk.complete = page.next_seq == 0;
        }
        if self.open == Some(conversation) {
            self.mark_read();
        }
    }

    /// Takes in a part of history; the lowest seq that it speaks of.
    pub(super) fn take_items(&mut self, items: Vec<packet::Item>) -> u64 {
        let mut lowest = u64::MAX;
        for item in items {
            let entry = match item.kind {
                Some(item::Kind::Entry(entry)) => Some(entry),
                Some(item::Kind::Own(own)) => own.entry,
                Some(item::Kind::Head(head)) => {
                    lowest = lowest.min(head.from_seq);
                    self.handle_gone(&head);
                    None
                }
                _ => None,
            };
            if let Some(entry) = entry {
                lowest = lowest.min(entry.seq);
                self.handle_entry(&entry, false);
            }
        }
        lowest
    }

    pub(in crate::cli::chat) fn handle_page_failed(&mut self, conversation: u64) {
        if let Some(talk) = self.talk_mut(conversation) {
            talk.loading = false;
        }
    }
}
