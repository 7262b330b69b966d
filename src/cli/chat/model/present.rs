//! Who is there and who types: told by signals, shown above what is typed, and believed for a while.

use longwire_client::Signal;
use longwire_client::packet::{ConversationKind, Mark, Member, Presence, PresenceState, SignalKind};

use super::{Model, Wish};

/// Who typed and says nothing more is believed for so long.
const TYPES_FOR_MS: u64 = 10_000;
/// Who goes on typing says so again after this.
const TYPES_AGAIN_MS: u64 = 5_000;
/// Names of who types that are shown.
const TYPING_MAX: usize = 3;

/// Who is in a conversation, as far as it is shown whether they are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli::chat) enum Company {
    /// These users, this one left out.
    Users(Vec<u64>),
    /// So many of more than can be told of one by one.
    Online(u64),
}

impl Model {
    /// Something that someone does, or is, just now: `now` is milliseconds since 1970.
    pub(in crate::cli::chat) fn handle_signal(&mut self, signal: Signal, now: u64) {
        match signal {
            Signal::Presence(presence) => drop(self.presences.insert(presence.user, presence)),
            Signal::In { conversation, user, kind, .. } if user != self.me => match kind {
                SignalKind::Typing | SignalKind::Recording => {
                    self.typing.retain(|_, until| *until > now);
                    self.typing.insert((conversation, user), now + TYPES_FOR_MS);
                }
                SignalKind::Stopped => drop(self.typing.remove(&(conversation, user))),
                SignalKind::App | SignalKind::Presence | SignalKind::Delivered => {}
            },
            Signal::Delivered { conversation, user, seq } => {
                self.handle_mark(&Mark { conversation, user, seq: 0, delivered: seq });
            }
            Signal::In { .. } => {}
        }
    }

    /// Who is in a conversation, and how they stand.
    pub(in crate::cli::chat) fn handle_company(&mut self, id: u64, members: Vec<Member>, presences: Vec<Presence>) {
        self.presences.extend(presences.into_iter().map(|presence| (presence.user, presence)));
        let me = self.me;
        let users = members.iter().map(|member| member.user).filter(|user| *user != me).collect();
        self.company.insert(id, Company::Users(users));
        self.handle_names(members);
    }

    pub(in crate::cli::chat) fn handle_online(&mut self, id: u64, online: u64) {
        self.company.insert(id, Company::Online(online));
    }

    /// A key was typed into the line, at `now`: once in a while, that is told.
    pub(in crate::cli::chat) fn note_typing(&mut self, now: u64) {
        let is_said = self.typed.is_some_and(|(id, at)| Some(id) == self.open && now < at + TYPES_AGAIN_MS);
        let is_message = !self.input.text().is_empty() && !self.input.text().starts_with('/');
        if let Some(id) = self.open.filter(|_| is_message && !is_said) {
            self.typed = Some((id, now));
            self.wish(Wish::Signal { conversation: id, kind: SignalKind::Typing });
        }
    }

    /// The line was entered, or taken back.
    pub(in crate::cli::chat) fn note_not_typing(&mut self) {
        if let Some((conversation, _)) = self.typed.take() {
            self.wish(Wish::Signal { conversation, kind: SignalKind::Stopped });
        }
    }

    /// Someone said something, and types no more.
    pub(super) fn note_said(&mut self, conversation: u64, user: u64) {
        self.typing.remove(&(conversation, user));
    }

    /// Who is there in the open conversation, in a few words; nothing where nobody knows.
    pub(in crate::cli::chat) fn who_is_there(&self, now: u64, age: impl Fn(u64) -> String) -> String {
        let Some(talk) = self.open_talk() else { return String::new() };
        let typing: Vec<String> = self
            .typing
            .iter()
            .filter(|((id, _), until)| *id == talk.id && **until > now)
            .map(|((_, user), _)| self.name_of(*user))
            .collect();
        match &typing[..] {
            [] => {}
            [one] => return format!("{one} types …"),
            some if some.len() <= TYPING_MAX => return format!("{} type …", some.join(", ")),
            many => return format!("{} type …", many.len()),
        }
        let state = |user: &u64| self.presences.get(user).map_or(PresenceState::NotShown, Presence::state);
        let is_there = |user: &&u64| matches!(state(user), PresenceState::Online | PresenceState::Away);
        match (talk.kind, self.company.get(&talk.id)) {
            (_, None) => String::new(),
            (_, Some(Company::Online(online))) => format!("{online} online"),
            (ConversationKind::Direct, Some(Company::Users(users))) => {
                match users.first().map(|user| (user, state(user))) {
                    Some((_, PresenceState::Online)) => "online".to_owned(),
                    Some((_, PresenceState::Away)) => "away".to_owned(),
                    Some((user, PresenceState::Offline)) => match self.presences[user].last_seen {
                        0 => "offline".to_owned(),
                        seen => format!("seen {}", age(now.saturating_sub(self.birth + seen))),
                    },
                    Some((_, PresenceState::NotShown)) | None => String::new(),
                }
            }
            (_, Some(Company::Users(users))) => {
                format!("{} of {} online", users.iter().filter(is_there).count() + 1, users.len() + 1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longwire_client::packet::{Connected, Conversation, Entry};

    fn model() -> Model {
        let mut model = Model::default();
        model.handle_connected(&Connected { user: 7, birth_unix_ms: 1_000_000, ..Default::default() });
        let conversation = |id, kind: ConversationKind| Conversation { id, kind: kind.into(), ..Default::default() };
        model.handle_list(vec![conversation(1, ConversationKind::Direct), conversation(2, ConversationKind::Group)]);
        model.handle_names(vec![member(8, "bob"), member(9, "eve")]);
        model.show(1);
        model
    }

    fn member(user: u64, name: &str) -> Member {
        Member { user, name: name.to_owned(), role: 0 }
    }

    fn types(user: u64) -> Signal {
        Signal::In { conversation: 1, user, kind: SignalKind::Typing, content: Default::default() }
    }

    fn there(model: &Model, now: u64) -> String {
        model.who_is_there(now, |ms| format!("{}s", ms / 1_000))
    }

    #[test]
    fn typing_is_shown_until_something_is_said_or_time_passes() {
        let mut model = model();
        model.handle_signal(types(8), 5_000);
        model.handle_signal(types(7), 5_000);
        assert_eq!(there(&model, 5_000), "bob types …", "oneself is not told");
        assert_eq!(there(&model, 15_000), "");
        model.handle_signal(types(8), 20_000);
        let entry = Entry { conversation: 1, seq: 1, sender: 8, ..Default::default() };
        model.handle_item(&longwire_client::Item::Entry(entry));
        assert_eq!(there(&model, 20_000), "");
    }

    #[test]
    fn presence_is_shown_as_it_was_told_last() {
        let mut model = model();
        let is = |model: &mut Model, state: PresenceState, last_seen| {
            let presence = Presence { user: 8, state: state.into(), last_seen };
            model.handle_signal(Signal::Presence(presence), 0);
            there(model, 1_060_000)
        };
        assert_eq!(is(&mut model, PresenceState::Online, 0), "", "of whom is not known yet");
        model.handle_company(1, vec![member(7, "you"), member(8, "bob")], Vec::new());
        assert_eq!(is(&mut model, PresenceState::Online, 0), "online");
        assert_eq!(is(&mut model, PresenceState::Away, 0), "away");
        assert_eq!(is(&mut model, PresenceState::Offline, 50_000), "seen 10s");
        assert_eq!(is(&mut model, PresenceState::NotShown, 0), "");
        assert_eq!(is(&mut model, PresenceState::Away, 0), "away");
        model.show(2);
        model.handle_company(2, vec![member(7, "you"), member(8, "bob"), member(9, "eve")], Vec::new());
        assert_eq!(there(&model, 0), "2 of 3 online");
        model.handle_online(2, 1_007);
        assert_eq!(there(&model, 0), "1007 online");
    }

    #[test]
    fn typing_is_told_now_and_then_and_its_end_at_once() {
        let mut model = model();
        model.take_wishes();
        let told =
            |model: &mut Model| model.take_wishes().into_iter().filter(|w| matches!(w, Wish::Signal { .. })).count();
        model.input.insert_text("/open");
        model.note_typing(0);
        assert_eq!(told(&mut model), 0, "commands are nobody's affair");
        model.input.take();
        model.input.insert_text("hi");
        (0..10).for_each(|second| model.note_typing(second * 1_000));
        assert_eq!(told(&mut model), 1, "the second one is the same wish, and waits for the first");
        model.note_typing(20_000);
        assert_eq!(told(&mut model), 1);
        model.note_not_typing();
        model.note_not_typing();
        assert_eq!(told(&mut model), 1);
    }
}
