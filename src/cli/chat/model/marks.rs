//! How far others have read, and what was delivered to them: from their marks, from what they said themselves, and from what
//! the broker tells of deliveries.

use longwire_client::packet::{self, ConversationKind};

use super::{Model, Talk, Wish};

/// The broker tells of others' marks in groups up to this size (SPEC R6.1-6).
const MARKS_MAX: usize = 200;

impl Talk {
    /// Whether the broker tells how far others have read here.
    pub(in crate::cli::chat) fn has_receipts(&self) -> bool {
        matches!(self.kind, ConversationKind::Direct | ConversationKind::Group)
    }

    /// Who has read up to a seq, that user's own messages aside.
    pub(in crate::cli::chat) fn readers(&self, seq: u64) -> impl Iterator<Item = u64> {
        self.marks.iter().filter(move |(_, mark)| **mark >= seq).map(|(user, _)| *user)
    }

    /// Whether a user has read a message.
    pub(super) fn has_read(&self, user: u64, seq: u64) -> bool {
        self.marks.get(&user).is_some_and(|mark| *mark >= seq)
    }

    /// Whether a message was delivered to everybody else, as far as is known who that is.
    pub(in crate::cli::chat) fn is_delivered(&self, seq: u64) -> bool {
        let has = |(user, delivered): (&u64, &u64)| *delivered >= seq || self.has_read(*user, seq);
        !self.delivered.is_empty() && self.delivered.iter().all(has)
    }

    /// It was delivered to a user up to there.
    fn note_delivered(&mut self, user: u64, seq: u64, me: u64) {
        if user != 0 && user != me && (self.delivered.len() < MARKS_MAX || self.delivered.contains_key(&user)) {
            let delivered = self.delivered.entry(user).or_insert(0);
            *delivered = seq.max(*delivered);
        }
    }

    /// A user has read up to there: by a mark, or by saying something there.
    pub(super) fn note_mark(&mut self, user: u64, seq: u64, me: u64) {
        if user == 0 || user == me || !self.has_receipts() {
            return;
        }
        if self.marks.len() < MARKS_MAX || self.marks.contains_key(&user) {
            let mark = self.marks.entry(user).or_insert(0);
            *mark = seq.max(*mark);
        }
    }
}

impl Model {
    /// Asks who is in a conversation and how far they have read.
    pub(super) fn look_around(&mut self, id: u64) {
        if self.talk(id).is_some_and(Talk::has_receipts) {
            self.wish(Wish::Around(id));
        }
    }

    pub(super) fn handle_mark(&mut self, mark: &packet::Mark) {
        let me = self.me;
        if let Some(talk) = self.talk_mut(mark.conversation) {
            if mark.seq > 0 {
                talk.note_mark(mark.user, mark.seq, me);
            }
            if mark.delivered > 0 {
                talk.note_delivered(mark.user, mark.delivered, me);
            }
        }
    }

    pub(in crate::cli::chat) fn handle_marks(&mut self, conversation: u64, marks: &[packet::Mark]) {
        let me = self.me;
        if let Some(talk) = self.talk_mut(conversation) {
            // These are all that there are: who left counts no more.
            talk.delivered.retain(|user, _| marks.iter().any(|mark| mark.user == *user));
            marks.iter().for_each(|mark| talk.note_delivered(mark.user, 0, me));
        }
        for mark in marks {
            self.handle_mark(&packet::Mark { conversation, ..*mark });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{message, model};
    use super::*;
    use longwire_client::Item;

    #[test]
    fn marks_of_others_only_rise_and_a_message_is_a_mark() {
        let mut model = model();
        model.talk_mut(1).expect("there").kind = ConversationKind::Group;
        let mark = |user, seq| Item::Mark(packet::Mark { conversation: 1, user, seq, delivered: 0 });
        for item in [mark(8, 3), mark(8, 2), mark(9, 1), mark(7, 9), mark(0, 9)] {
            model.handle_item(&item);
        }
        let readers = |model: &Model, seq| model.talk(1).expect("there").readers(seq).collect::<Vec<_>>();
        assert_eq!((readers(&model, 1), readers(&model, 3)), (vec![8, 9], vec![8]));
        model.handle_item(&Item::Entry(message(4, 9, "late")));
        assert_eq!(readers(&model, 4), [9]);
    }

    #[test]
    fn who_is_around_is_asked_where_the_broker_tells() {
        let mut model = model();
        model.talk_mut(2).expect("there").kind = ConversationKind::Direct;
        model.talk_mut(3).expect("there").kind = ConversationKind::Channel;
        model.show(2);
        model.show(3);
        let wishes = model.take_wishes();
        assert!(wishes.contains(&Wish::Around(2)) && !wishes.contains(&Wish::Around(3)));
    }
}
