//! What is said about a line and about a conversation, in words: for the screen and for pipes alike.

use longwire_client::packet::{Beside, ConversationKind, Level, RetentionMode};

use super::super::super::conversation::{retention_words, role_name};
use super::{Line, Model, Talk, clean};

impl Model {
    /// What stands behind a line: that it was edited, its reactions, who has read it.
    pub(in crate::cli::chat) fn behind(&self, talk: &Talk, seq: u64, line: &Line) -> String {
        let mut words = Vec::new();
        if line.edited && !line.recalled {
            words.push("(edited)".to_owned());
        }
        for one in &line.reactions {
            let count = if one.count > 1 { one.count.to_string() } else { String::new() };
            let own = if one.own { "*" } else { "" };
            words.push(clean(&format!("{}{count}{own}", one.reaction)));
        }
        words.extend(self.tick(talk, seq, line));
        words.join(" ")
    }

    /// Behind own lines: one tick is stored, two are delivered to everybody; and who has read it: the other, or so many.
    fn tick(&self, talk: &Talk, seq: u64, line: &Line) -> Option<String> {
        if line.sender != self.me || line.recalled || !talk.has_receipts() {
            return None;
        }
        let tick = if talk.is_delivered(seq) { "✓✓" } else { "✓" };
        Some(match (talk.readers(seq).count(), talk.kind) {
            (0, _) => tick.to_owned(),
            (_, ConversationKind::Direct) => "✓✓ read".to_owned(),
            (readers, _) => format!("{tick} read {readers}"),
        })
    }

    /// The message that a line answers: who said it, and what.
    pub(in crate::cli::chat) fn quote(&self, talk: &Talk, reply_to: u64) -> Option<String> {
        if reply_to == 0 {
            return None;
        }
        Some(match talk.lines.get(&reply_to) {
            Some(line) => format!("{reply_to} {}: {}", self.name_of(line.sender), line.text.replace('\n', " ")),
            None => reply_to.to_string(),
        })
    }

    /// Who has read a message, as far as is known.
    pub(in crate::cli::chat) fn seen(&self, talk: &Talk, seq: u64) -> String {
        let names: Vec<String> = talk.readers(seq).map(|user| self.name_of(user)).collect();
        let read = match names.is_empty() {
            true => format!("nobody has read {seq} yet"),
            false => format!("{seq} was read by {}", names.join(", ")),
        };
        let got = talk.delivered.iter().filter(|(user, delivered)| **delivered >= seq && !talk.has_read(**user, seq));
        let got: Vec<String> = got.map(|(user, _)| self.name_of(*user)).collect();
        if got.is_empty() { read } else { format!("{read}; delivered to {}", got.join(", ")) }
    }

    /// What a conversation is.
    pub(in crate::cli::chat) fn about(&self, talk: &Talk) -> String {
        let mut words = vec![format!("{} is conversation {}", talk.name, talk.id)];
        if talk.kind == ConversationKind::Group {
            words.push(format!("you are {}", role_name(talk.role)));
        }
        let settings = talk.settings;
        let set = [(settings.muted_until > 0, "muted"), (settings.pinned, "pinned"), (settings.archived, "archived")];
        words.extend(set.iter().filter(|(is, _)| *is).map(|(_, word)| (*word).to_owned()));
        match talk.level {
            Level::Full => {}
            Level::HeadsOnly => words.push("this device is told only that there is something".to_owned()),
            Level::Nothing => words.push("this device is told nothing of it".to_owned()),
        }
        if talk.retention.mode() != RetentionMode::Keep {
            words.push(retention_words(&talk.retention));
        }
        if !talk.info.description.is_empty() {
            words.push(clean(&talk.info.description));
        }
        words.join("; ")
    }

    /// Whom a text mentions, by the names that are known; only where more than two talk.
    pub(in crate::cli::chat) fn mentions_in(&self, conversation: u64, text: &str) -> Beside {
        let mut beside = Beside::default();
        if self.talk(conversation).is_none_or(|talk| talk.kind == ConversationKind::Direct) {
            return beside;
        }
        for word in text.split_whitespace().filter_map(|word| word.strip_prefix('@')) {
            let bare = word.trim_end_matches(|c: char| ".,:;!?)".contains(c));
            let user = self.names.iter().find(|(user, name)| **user != self.me && (*name == word || *name == bare));
            match user {
                Some((user, _)) if beside.mentions.len() < MENTIONS_MAX && !beside.mentions.contains(user) => {
                    beside.mentions.push(*user);
                }
                None if bare == "all" => beside.mentions_all = true,
                _ => {}
            }
        }
        beside
    }
}

/// As many as a message may mention.
const MENTIONS_MAX: usize = longwire_client::protocol::limits::MENTIONS_MAX;

#[cfg(test)]
mod tests {
    use super::super::tests::{message, model};
    use super::*;
    use longwire_client::packet::{Mark, ReactionCount};
    use longwire_client::{Item, Signal};

    #[test]
    fn ticks_count_who_has_read() {
        let mut model = model();
        model.names.insert(8, "bob".to_owned());
        model.handle_item(&Item::Entry(message(1, 7, "mine")));
        let behind = |model: &Model| {
            let talk = model.talk(1).expect("there");
            model.behind(talk, 1, &talk.lines[&1])
        };
        assert_eq!(behind(&model), "", "nobody tells");
        model.talk_mut(1).expect("there").kind = ConversationKind::Direct;
        assert_eq!(behind(&model), "✓");
        model
            .handle_marks(1, &[Mark { user: 7, delivered: 1, ..Mark::default() }, Mark { user: 8, ..Mark::default() }]);
        assert_eq!(behind(&model), "✓", "this user's own devices do not count");
        model.handle_signal(Signal::Delivered { conversation: 1, user: 8, seq: 1 }, 0);
        assert_eq!(behind(&model), "✓✓");
        assert_eq!(model.seen(model.talk(1).expect("there"), 1), "nobody has read 1 yet; delivered to bob");
        model.handle_item(&Item::Mark(Mark { conversation: 1, user: 8, seq: 1, delivered: 0 }));
        assert_eq!(behind(&model), "✓✓ read");
        let talk = model.talk_mut(1).expect("there");
        talk.kind = ConversationKind::Group;
        let line = talk.lines.get_mut(&1).expect("there");
        line.edited = true;
        line.reactions = vec![
            ReactionCount { reaction: "👍".to_owned(), count: 2, own: true },
            ReactionCount { reaction: "♥".to_owned(), count: 1, own: false },
        ];
        assert_eq!(behind(&model), "(edited) 👍2* ♥ ✓✓ read 1");
        model.handle_marks(1, &[Mark { user: 8, ..Mark::default() }, Mark { user: 9, ..Mark::default() }]);
        assert_eq!(behind(&model), "(edited) 👍2* ♥ ✓ read 1", "one has it not");
    }

    #[test]
    fn names_that_are_known_become_mentions() {
        let mut model = model();
        model.names.extend([(8, "bob".to_owned()), (9, "a.b".to_owned())]);
        let beside = model.mentions_in(1, "@bob, @bob: ask @a.b. or @nobody or @you, a@bob");
        assert_eq!((beside.mentions, beside.mentions_all), (vec![8, 9], false));
        assert!(model.mentions_in(1, "@all: lunch").mentions_all);
        model.talk_mut(1).expect("there").kind = ConversationKind::Direct;
        assert_eq!(model.mentions_in(1, "@bob"), Beside::default());
    }
}
