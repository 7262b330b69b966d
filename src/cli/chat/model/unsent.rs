//! What was typed and is not stored yet: from the outbox to an answer.

use longwire_client::packet;

use super::{Line, Model, Wish, clean};

/// As many message ids as can be under way.
const ANSWERED_MAX: usize = 256;

/// What was typed and is not stored yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli::chat) struct Unsent {
    pub(in crate::cli::chat) message_id: u64,
    pub(in crate::cli::chat) conversation: u64,
    pub(in crate::cli::chat) text: String,
    /// The seq that it answers; 0: none.
    pub(in crate::cli::chat) reply_to: u64,
    /// Why it will not be, if so.
    pub(in crate::cli::chat) refused: Option<String>,
    /// It was not among what the outbox holds when that was last looked at.
    missing: bool,
}

impl Unsent {
    /// The line that it became.
    pub(super) fn into_line(self, me: u64, time: u64) -> Line {
        Line { sender: me, time, text: self.text, reply_to: self.reply_to, ..Line::default() }
    }
}

impl Model {
    /// Something typed is in the outbox.
    pub(in crate::cli::chat) fn handle_saved(
        &mut self,
        message_id: u64,
        conversation: u64,
        text: String,
        reply_to: u64,
    ) {
        if !self.unsent.iter().any(|one| one.message_id == message_id) {
            self.unsent.push(Unsent { message_id, conversation, text, reply_to, refused: None, missing: false });
        }
    }

    /// What the outbox holds. What an earlier life left there is shown as unsent until it is gone. One look may be
    /// older than what was typed since, so only what is missing twice is gone.
    pub(in crate::cli::chat) fn handle_unanswered(&mut self, publishes: &[(u64, packet::Publish)]) {
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
            let reply_to = publish.beside.as_ref().map_or(0, |beside| beside.reply_to);
            self.handle_saved(*id, publish.conversation, text, reply_to);
        }
    }

    pub(super) fn note_answered(&mut self, message_id: u64) {
        self.answered.push_back(message_id);
        if self.answered.len() > ANSWERED_MAX {
            self.answered.pop_front();
        }
    }

    pub(in crate::cli::chat) fn handle_acked(&mut self, ack: &packet::PublishAck) {
        self.note_answered(ack.message_id);
        let Some(at) = self.unsent.iter().position(|one| one.message_id == ack.message_id) else { return };
        let one = self.unsent.remove(at);
        let conversation = one.conversation;
        // Entries before this one may be on their way still: the order goes on with the item, which comes behind them.
        if let Some(talk) = self.talk_mut(one.conversation) {
            talk.head_time = talk.head_time.max(ack.time);
        }
        let line = one.into_line(self.me, ack.time);
        self.put_line(conversation, ack.seq, line, false);
        self.sort();
    }

    pub(in crate::cli::chat) fn handle_refused(&mut self, message_id: u64, why: String) {
        if let Some(one) = self.unsent.iter_mut().find(|one| one.message_id == message_id) {
            one.refused = Some(why);
        }
    }
}
