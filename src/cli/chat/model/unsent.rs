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
    /// Why it will not be, if so.
    pub(in crate::cli::chat) refused: Option<String>,
    /// It was not among what the outbox holds when that was last looked at.
    missing: bool,
}

impl Model {
    /// Something typed is in the outbox.
    pub(in crate::cli::chat) fn handle_saved(&mut self, message_id: u64, conversation: u64, text: String) {
        if !self.unsent.iter().any(|one| one.message_id == message_id) {
            self.unsent.push(Unsent { message_id, conversation, text, refused: None, missing: false });
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
            self.handle_saved(*id, publish.conversation, text);
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
        let line = Line { sender: self.me, time: ack.time, text: one.text };
        self.put_line(one.conversation, ack.seq, line, true);
    }

    pub(in crate::cli::chat) fn handle_refused(&mut self, message_id: u64, why: String) {
        if let Some(one) = self.unsent.iter_mut().find(|one| one.message_id == message_id) {
            one.refused = Some(why);
        }
    }
}
