//! What becomes of messages after they were said: another content, none, reactions, hidden. Where what came does not
//! say all of it (the own edits, how often a reaction is given) the message is asked again, as history shows it now.

use longwire_client::packet::{self, EntryKind, HeadReason, Settings};

use super::super::super::conversation::text;
use super::{Line, Model, Wish, clean};

/// What stands in the place of a message that nobody has any more.
pub(super) const RECALLED: &str = "(recalled)";

impl Model {
    /// The line of an entry, as it was said or as history shows it now.
    pub(super) fn line_of(&self, entry: &packet::Entry, sender: u64, text: String) -> Line {
        let beside = entry.beside.as_deref();
        let compacted = entry.compacted.as_deref();
        Line {
            sender,
            time: entry.time,
            text,
            reply_to: beside.map_or(0, |beside| beside.reply_to),
            calls_me: self.is_called(entry),
            edited: compacted.is_some_and(|compacted| compacted.edit != 0),
            recalled: false,
            expires: entry.expires,
            reactions: compacted.map(|compacted| compacted.reactions.clone()).unwrap_or_default(),
        }
    }

    fn is_called(&self, entry: &packet::Entry) -> bool {
        let beside = entry.beside.as_deref();
        entry.sender != self.me
            && beside.is_some_and(|beside| beside.mentions_all || beside.mentions.contains(&self.me))
    }

    /// An edit, a recall or a reaction of another device.
    pub(super) fn handle_change(&mut self, entry: &packet::Entry, live: bool) {
        let conversation = entry.conversation;
        if live && let Some(talk) = self.talk_mut(conversation) {
            talk.reach(entry.seq);
        }
        match entry.kind() {
            EntryKind::Edit => {
                let (text, calls_me) = (clean(&text(entry)), self.is_called(entry));
                self.alter(conversation, entry.edit, |line| {
                    line.text = text;
                    line.calls_me = calls_me;
                    line.edited = true;
                });
            }
            EntryKind::Recall => {
                if let Some(recall) = &entry.recall {
                    self.recall(conversation, recall.seq);
                }
            }
            EntryKind::Reaction => {
                if let Some(reaction) = &entry.reaction {
                    self.ask_again_if_loaded(conversation, reaction.seq);
                }
            }
            _ => {}
        }
        if live && self.open == Some(conversation) {
            self.mark_read();
        }
    }

    fn recall(&mut self, conversation: u64, seq: u64) {
        let me = self.me;
        if let Some(talk) = self.talk_mut(conversation)
            && seq > talk.mark
            && talk.unread > 0
        {
            match talk.lines.get(&seq) {
                Some(line) if line.recalled || line.sender == me => {}
                Some(line) => {
                    talk.mentions = talk.mentions.saturating_sub(u64::from(line.calls_me));
                    talk.unread -= 1;
                }
                // Whether it counted is not known here.
                None => self.wish(Wish::List),
            }
        }
        self.alter(conversation, seq, withdraw);
    }

    /// What a user's inbox says: of settings, of hidden messages, of messages that mention the user.
    pub(super) fn handle_inbox(&mut self, entry: &packet::Entry) {
        if let Some(settled) = &entry.settings {
            self.handle_settings(settled.conversation, settled.settings.unwrap_or_default());
        }
        if let Some(hidden) = &entry.hidden {
            self.handle_hidden(hidden.conversation, hidden.seq, hidden.undo);
        }
        if let Some(mentioned) = &entry.mentioned
            && self.open != Some(mentioned.conversation)
            && let Some(talk) = self.talk_mut(mentioned.conversation)
            && mentioned.seq > talk.mark
        {
            talk.mentions += 1;
        }
    }

    pub(in crate::cli::chat) fn handle_settings(&mut self, conversation: u64, settings: Settings) {
        if let Some(talk) = self.talk_mut(conversation) {
            talk.settings = settings;
        }
        self.sort();
    }

    /// This user hid a message, or shows it again.
    pub(in crate::cli::chat) fn handle_hidden(&mut self, conversation: u64, seq: u64, undo: bool) {
        if undo {
            return self.ask_again(conversation, seq);
        }
        let open = self.open == Some(conversation);
        let Some(talk) = self.talk_mut(conversation) else { return };
        talk.lines.remove(&seq);
        if !open && seq > talk.mark {
            self.wish(Wish::List);
        }
    }

    /// Seqs of which nothing is to be had, and why.
    pub(super) fn handle_gone(&mut self, head: &packet::Head) {
        let Some(talk) = self.talk_mut(head.conversation) else { return };
        let seqs: Vec<u64> =
            talk.lines.range(head.from_seq..=head.to_seq.max(head.from_seq)).map(|(seq, _)| *seq).collect();
        for seq in seqs {
            match head.reason() {
                HeadReason::Recalled => self.alter(head.conversation, seq, withdraw),
                HeadReason::Expired | HeadReason::Erased | HeadReason::NotYours | HeadReason::HiddenByUser => {
                    if let Some(talk) = self.talk_mut(head.conversation) {
                        talk.lines.remove(&seq);
                    }
                }
                HeadReason::Skipped | HeadReason::TooLarge | HeadReason::Folded | HeadReason::Withheld => {}
            }
        }
    }

    fn alter(&mut self, conversation: u64, seq: u64, change: impl FnOnce(&mut Line)) {
        let Some(line) = self.talk_mut(conversation).and_then(|talk| talk.lines.get_mut(&seq)) else { return };
        let before = line.clone();
        change(line);
        if *line != before {
            self.altered.insert((conversation, seq));
        }
    }

    fn ask_again_if_loaded(&mut self, conversation: u64, seq: u64) {
        if self.talk(conversation).is_some_and(|talk| talk.lines.contains_key(&seq)) {
            self.ask_again(conversation, seq);
        }
    }

    /// Asks what became of a message: one question at a time; what changes meanwhile is asked after the answer.
    fn ask_again(&mut self, conversation: u64, seq: u64) {
        let waits = self.again.get_mut(&(conversation, seq)).map(|changed| *changed = true).is_some();
        if !waits {
            self.again.insert((conversation, seq), false);
            self.wish(Wish::Again { conversation, seq });
        }
    }

    /// The answer to [`Wish::Again`]; none where there is none to be had.
    pub(in crate::cli::chat) fn handle_again(&mut self, conversation: u64, seq: u64, items: Option<Vec<packet::Item>>) {
        let changed = self.again.remove(&(conversation, seq)) == Some(true);
        if let Some(items) = items {
            self.take_items(items);
            if changed {
                self.ask_again(conversation, seq);
            }
        }
    }

    /// A change of this device's own is on its way, under this message id.
    pub(in crate::cli::chat) fn handle_acting(&mut self, message_id: u64) {
        if !self.answered.contains(&message_id) {
            self.acting.insert(message_id);
        }
    }

    /// A change of this device's own is stored.
    pub(in crate::cli::chat) fn handle_changed(&mut self, conversation: u64, seq: u64) {
        self.ask_again_if_loaded(conversation, seq);
    }
}

fn withdraw(line: &mut Line) {
    RECALLED.clone_into(&mut line.text);
    line.recalled = true;
    line.calls_me = false;
    line.reactions.clear();
}

#[cfg(test)]
mod tests {
    use super::super::tests::{message, model};
    use super::*;
    use longwire_client::Item;
    use longwire_client::packet::{Compacted, Entry, Head, Own, React, ReactionCount, Recalled, item};

    fn about(kind: EntryKind, seq: u64) -> Entry {
        let mut entry = message(seq, 8, "");
        entry.set_kind(kind);
        entry
    }

    fn page(entry: Entry) -> Option<Vec<packet::Item>> {
        Some(vec![packet::Item { kind: Some(item::Kind::Entry(entry)) }])
    }

    fn line(model: &Model, seq: u64) -> &Line {
        &model.talk(1).expect("a conversation").lines[&seq]
    }

    #[test]
    fn an_edit_is_in_place_of_what_was_said() {
        let mut model = model();
        model.handle_item(&Item::Entry(message(1, 8, "at none")));
        model.handle_item(&Item::Entry(Entry { edit: 1, content: "at noon".into(), ..about(EntryKind::Edit, 2) }));
        assert_eq!((line(&model, 1).text.as_str(), line(&model, 1).edited), ("at noon", true));
        assert_eq!(model.talk(1).expect("there").lines.len(), 1);
        assert!(model.take_altered().contains(&(1, 1)));
        model.take_wishes();
        model.show(1);
        let older = |wish: &Wish| matches!(wish, Wish::Older { .. });
        assert!(model.talk(1).expect("there").loaded_to == 2, "the edit is the newest that there is");
        model.talk_mut(1).expect("there").complete = true;
        model.take_wishes();
        model.show(1);
        assert!(!model.take_wishes().iter().any(older), "nothing is missing");
    }

    #[test]
    fn a_recalled_message_is_nowhere_and_counts_no_more() {
        let mut model = model();
        let elsewhere = |entry: Entry| Item::Entry(Entry { conversation: 2, ..entry });
        model.handle_item(&elsewhere(message(1, 8, "a secret")));
        model.handle_item(&elsewhere(message(2, 8, "well")));
        assert_eq!(model.unread(), 2);
        let recall = Entry { recall: Some(Recalled { seq: 1, countable: 1 }), ..about(EntryKind::Recall, 3) };
        model.handle_item(&elsewhere(recall.clone()));
        assert_eq!(model.unread(), 1);
        let line = &model.talk(2).expect("there").lines[&1];
        assert_eq!((line.text.as_str(), line.recalled), (RECALLED, true));
        model.handle_item(&elsewhere(Entry { seq: 4, ..recall }));
        assert_eq!(model.unread(), 1, "once");
    }

    #[test]
    fn a_recall_of_what_was_never_loaded_asks_the_broker_to_count() {
        let mut model = model();
        model.talk_mut(2).expect("there").unread = 3;
        let recall = Entry { recall: Some(Recalled { seq: 1, countable: 1 }), ..about(EntryKind::Recall, 9) };
        model.handle_item(&Item::Entry(Entry { conversation: 2, ..recall }));
        assert!(model.take_wishes().contains(&Wish::List));
    }

    #[test]
    fn reactions_are_counted_by_history_with_one_question_at_a_time() {
        let mut model = model();
        model.handle_item(&Item::Entry(message(1, 8, "lunch?")));
        model.take_wishes();
        let reaction = |seq| {
            let reaction = Some(React { seq: 1, reaction: "👍".to_owned() });
            Item::Entry(Entry { reaction, ..about(EntryKind::Reaction, seq) })
        };
        let again = Wish::Again { conversation: 1, seq: 1 };
        model.handle_item(&reaction(2));
        assert!(model.take_wishes().contains(&again));
        model.handle_item(&reaction(3));
        assert!(!model.take_wishes().contains(&again), "one is under way");
        let reactions = vec![ReactionCount { reaction: "👍".to_owned(), count: 2, own: false }];
        let compacted = Some(Box::new(Compacted { reactions: reactions.clone(), ..Compacted::default() }));
        let answer = Entry { compacted, ..message(1, 8, "lunch?") };
        model.handle_again(1, 1, page(answer.clone()));
        assert_eq!(line(&model, 1).reactions, reactions);
        assert!(model.take_wishes().contains(&again), "it changed since it was asked");
        model.handle_again(1, 1, page(answer));
        assert!(model.take_wishes().is_empty());
    }

    #[test]
    fn an_own_change_is_asked_for_and_no_page_of_history() {
        let mut model = model();
        model.handle_item(&Item::Entry(message(1, 7, "at none")));
        model.handle_acting(5);
        model.take_wishes();
        model.handle_item(&Item::Own(Own { conversation: 1, seq: 2, message_id: 5, ..Own::default() }));
        model.handle_changed(1, 1);
        let wishes = model.take_wishes();
        assert!(wishes.contains(&Wish::Again { conversation: 1, seq: 1 }), "{wishes:?}");
        assert!(!wishes.iter().any(|wish| matches!(wish, Wish::Older { .. })), "{wishes:?}");
        let compacted = Some(Box::new(Compacted { edit: 2, ..Compacted::default() }));
        model.handle_again(1, 1, page(Entry { compacted, ..message(1, 7, "at noon") }));
        assert_eq!((line(&model, 1).text.as_str(), line(&model, 1).edited), ("at noon", true));
    }

    #[test]
    fn what_is_hidden_is_not_shown_until_it_is_shown_again() {
        let mut model = model();
        model.handle_item(&Item::Entry(message(1, 8, "ugh")));
        let hidden = |undo| {
            let hidden = Some(packet::Hidden { conversation: 1, seq: 1, undo, countable: 1 });
            Item::Entry(Entry { conversation: 99, hidden, ..about(EntryKind::Hidden, 4) })
        };
        model.handle_item(&hidden(false));
        assert!(model.talk(1).expect("there").lines.is_empty());
        model.take_wishes();
        model.handle_item(&hidden(true));
        assert!(model.take_wishes().contains(&Wish::Again { conversation: 1, seq: 1 }));
    }

    #[test]
    fn history_takes_away_what_is_gone_since() {
        let mut model = model();
        for seq in 1..=3 {
            model.handle_item(&Item::Entry(message(seq, 8, "x")));
        }
        let gone = |seq, reason: HeadReason| {
            let mut head = Head { conversation: 1, from_seq: seq, to_seq: seq, ..Head::default() };
            head.set_reason(reason);
            packet::Item { kind: Some(item::Kind::Head(head)) }
        };
        let items = vec![gone(2, HeadReason::Recalled), gone(1, HeadReason::Expired)];
        model.handle_page(1, 0, packet::HistoryPage { items, next_seq: 0, head_seq: 3 });
        let lines = &model.talk(1).expect("there").lines;
        assert!(!lines.contains_key(&1) && lines[&2].recalled && !lines[&3].recalled);
    }

    #[test]
    fn who_is_mentioned_is_told_in_the_line_and_in_the_list() {
        let mut model = model();
        let beside = |mentions: Vec<u64>, mentions_all| {
            Some(Box::new(packet::Beside { mentions, mentions_all, ..packet::Beside::default() }))
        };
        for (seq, beside) in [(1, beside(vec![7], false)), (2, beside(vec![9], false)), (3, beside(vec![], true))] {
            model.handle_item(&Item::Entry(Entry { beside, ..message(seq, 8, "hey") }));
        }
        assert_eq!([1, 2, 3].map(|seq| line(&model, seq).calls_me), [true, false, true]);
        let mentioned = Some(packet::Mentioned { conversation: 2, seq: 1 });
        model.handle_item(&Item::Entry(Entry { conversation: 99, mentioned, ..about(EntryKind::Mentioned, 1) }));
        assert_eq!(model.talk(2).map(|talk| talk.mentions), Some(1));
        model.show(2);
        assert_eq!(model.talk(2).map(|talk| talk.mentions), Some(0));
    }

    #[test]
    fn settings_of_other_devices_hold_here_and_move_the_list() {
        let mut model = model();
        let settings = Some(Settings { pinned: true, marked_unread: true, ..Settings::default() });
        let settled = Some(packet::Settled { conversation: 3, settings });
        model.handle_item(&Item::Entry(Entry { conversation: 99, settings: settled, ..about(EntryKind::Settings, 1) }));
        assert_eq!(model.talks[0].id, 3, "what is pinned stands first");
        model.take_wishes();
        model.show(3);
        assert!(model.take_wishes().contains(&Wish::Mark { conversation: 3, seq: 0 }), "it is unread no more");
        assert!(!model.talks[0].settings.marked_unread);
        model.handle_settings(3, Settings { archived: true, ..Settings::default() });
        assert_eq!(model.talks[2].id, 3, "what is archived stands last");
    }

    #[test]
    fn older_labels_change_no_name() {
        let mut model = model();
        let label = |seq, label: &str| Entry { label: label.to_owned(), ..about(EntryKind::Label, seq) };
        model.handle_item(&Item::Entry(label(9, "new")));
        model.handle_again(1, 3, page(label(3, "old")));
        assert_eq!(model.talk(1).map(|talk| talk.name.as_str()), Some("new"));
    }
}
