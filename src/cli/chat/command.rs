//! What a typed line means: words for the conversation, or a command.

use clap::ValueEnum as _;
use longwire_client::packet::{Beside, Info, Retention, RetentionMode, Role, Settings};

use super::super::conversation::Wants;
use super::model::{Act, Model, Wish};

/// The commands, for `/help`.
pub(super) const COMMANDS: &[(&str, &str)] = &[
    ("/open @user, /join #name", "opens a direct conversation, joins a channel"),
    ("/group Label user …", "makes a group; quote a label of several words"),
    ("/join NUMBER KEY", "joins a group with its key"),
    ("/reply N text", "answers message N; . is the newest of others"),
    ("/edit N text, /recall N", "changes or takes back; . is your newest"),
    ("/react N sign, /hide N", "reacts (no sign: takes it back); hides for you"),
    ("/seen N, /about, /members", "who has read N; what this is; who is here"),
    ("@name, @all", "in a group: asks for their attention"),
    ("/mute, /mute 8h, /mute off", "no notifications of this, for good or so long"),
    ("/pin /archive /unread", "how you are shown this, on all your devices"),
    ("/level full, heads, none", "how much of it this device is delivered"),
    ("/keep always, /keep 7d", "how long its entries are kept, for everybody"),
    ("/label text, /describe text", "what this group is called, and says of itself"),
    ("/add user, /remove user", "changes who is in this group"),
    ("/ban user, /unban user", "keeps out, lets in again"),
    ("/key, /key off", "makes a new key to join with; takes it away"),
    ("/away, /back, /leave, /quit", "looks elsewhere, here again; ends"),
];

/// Acts on a line that was typed at a time, in milliseconds since 1970; what is no command is said in the open conversation.
pub(super) fn enter(model: &mut Model, line: &str, now: u64) {
    model.notice.clear();
    let Some(command) = line.strip_prefix('/').filter(|command| !command.starts_with('/')) else {
        // Two slashes say one.
        let text = if line.starts_with("//") { &line[1..] } else { line };
        match model.open {
            _ if text.trim().is_empty() => {}
            Some(conversation) => {
                model.scroll = 0;
                let beside = model.mentions_in(conversation, text);
                model.wish(Wish::Send { conversation, text: text.to_owned(), beside });
            }
            None => model.say("no conversation is open: /open @user, /join #name, /help"),
        }
        return;
    };
    let words = split(command);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let here = model.open;
    match (words.as_slice(), here) {
        (["open", user], _) if user.starts_with('#') => model.wish(Wish::OpenChannel(user[1..].to_owned())),
        (["open", user], _) => model.wish(Wish::OpenDirect(user.trim_start_matches('@').to_owned())),
        (["join", name], _) => model.wish(Wish::OpenChannel(name.trim_start_matches('#').to_owned())),
        (["group", label, users @ ..], _) => {
            let users = users.iter().map(|user| user.trim_start_matches('@').to_owned()).collect();
            model.wish(Wish::CreateGroup { label: (*label).to_owned(), users });
        }
        (["leave"], Some(id)) => model.wish(Wish::Leave(id)),
        (["label", _, ..], Some(conversation)) => {
            model.wish(Wish::SetLabel { conversation, label: words[1..].join(" ") });
        }
        (["add", user], Some(conversation)) => {
            let user = user.trim_start_matches('@').to_owned();
            model.wish(Wish::SetRole { conversation, user, role: Role::Member });
        }
        (["remove", user], Some(conversation)) => {
            let user = user.trim_start_matches('@').to_owned();
            model.wish(Wish::SetRole { conversation, user, role: Role::None });
        }
        (["members"], Some(id)) => model.wish(Wish::Members(id)),
        (["about"], Some(id)) => {
            let about = model.talk(id).map(|talk| model.about(talk));
            model.say(about.unwrap_or_default());
        }
        (["join", number, key], _) => match number.parse() {
            Ok(conversation) => model.wish(Wish::JoinGroup { conversation, key: (*key).to_owned() }),
            Err(_) => model.say("/join NUMBER KEY: the number of a group, and its key"),
        },
        (["away"], _) => model.wish(Wish::Background(true)),
        (["back"], _) => model.wish(Wish::Background(false)),
        (["help"], _) => model.help = true,
        (["quit" | "exit" | "q"], _) => model.wish(Wish::Quit),
        _ => {
            let done = here
                .is_some_and(|id| enter_about_message(model, id, command) || enter_about_talk(model, id, &words, now));
            if !done {
                model.say(format!("/{command}? /help says what there is"));
            }
        }
    }
}

/// Commands that name a message by its number; their text is taken as it was typed.
fn enter_about_message(model: &mut Model, conversation: u64, command: &str) -> bool {
    let mut parts = command.splitn(3, ' ');
    let (verb, number, text) = (parts.next(), parts.next(), parts.next().unwrap_or_default().trim());
    let (Some(verb), Some(number)) = (verb, number) else { return false };
    let own = matches!(verb, "edit" | "recall");
    let Some(seq) = number.parse().ok().or_else(|| newest(model, conversation, own).filter(|_| number == ".")) else {
        return false;
    };
    let act = match (verb, text.is_empty()) {
        ("reply", false) => {
            let beside = Beside { reply_to: seq, ..model.mentions_in(conversation, text) };
            model.scroll = 0;
            model.wish(Wish::Send { conversation, text: text.to_owned(), beside });
            return true;
        }
        ("seen", true) => {
            let seen = model.talk(conversation).map(|talk| model.seen(talk, seq));
            model.say(seen.unwrap_or_default());
            return true;
        }
        ("edit", false) => Act::Edit { seq, text: text.to_owned() },
        ("recall", true) => Act::Recall(seq),
        ("react", _) => Act::React { seq, reaction: text.to_owned() },
        ("hide", true) => Act::Hide(seq),
        _ => return false,
    };
    model.wish(Wish::Act { conversation, act });
    true
}

/// The newest message: of this user, or of others.
fn newest(model: &Model, conversation: u64, own: bool) -> Option<u64> {
    let lines = &model.talk(conversation)?.lines;
    let fits = |sender: u64| sender != 0 && (sender == model.me) == own;
    lines.iter().rev().find(|(_, line)| fits(line.sender) && !line.recalled).map(|(seq, _)| *seq)
}

/// Commands that change a conversation, or how it is shown.
fn enter_about_talk(model: &mut Model, conversation: u64, words: &[&str], now: u64) -> bool {
    let Some(talk) = model.talk(conversation) else { return false };
    let (settings, now) = (talk.settings, now.saturating_sub(model.birth));
    let act = match words {
        ["mute", rest @ ..] => {
            let muted_until = match rest {
                [] if settings.muted_until <= now => u64::MAX,
                [] | ["off"] => 0,
                [time] | ["for", time] => match milliseconds(time) {
                    Some(ms) => now.saturating_add(ms),
                    None => return false,
                },
                _ => return false,
            };
            Act::Settings(Settings { muted_until, ..settings })
        }
        ["pin"] => Act::Settings(Settings { pinned: !settings.pinned, ..settings }),
        ["archive"] => Act::Settings(Settings { archived: !settings.archived, ..settings }),
        ["unread"] => Act::Settings(Settings { marked_unread: true, ..settings }),
        ["level", level] => match Wants::from_str(level, true) {
            Ok(level) => Act::Level(level.wire()),
            Err(_) => return false,
        },
        ["keep", rest @ ..] => match retention(rest) {
            Some(retention) => Act::Keep(retention),
            None => return false,
        },
        ["describe", text @ ..] => Act::Info(Info { description: text.join(" "), ..talk.info.clone() }),
        ["ban" | "unban", user] => {
            Act::Ban { user: user.trim_start_matches('@').to_owned(), lift: words[0] == "unban" }
        }
        ["key"] => Act::JoinKey { open: true },
        ["key", "off"] => Act::JoinKey { open: false },
        _ => return false,
    };
    model.wish(Wish::Act { conversation, act });
    true
}

/// How long entries are to be kept; nothing where the words do not say.
fn retention(words: &[&str]) -> Option<Retention> {
    let (mode, time) = match words {
        ["always"] => return Some(Retention::default()),
        ["delivered", time] => (RetentionMode::UntilDelivered, time),
        [time] | ["for", time] => (RetentionMode::KeepFor, time),
        _ => return None,
    };
    Some(Retention { mode: mode.into(), age_ms: milliseconds(time)? })
}

/// How long a time is, as `7d` says it.
fn milliseconds(time: &str) -> Option<u64> {
    u64::try_from(humantime::parse_duration(time).ok()?.as_millis()).ok()
}

/// Splits at spaces, except between double quotes.
fn split(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    for c in command.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use longwire_client::packet::{self, ConversationKind};

    const NOW: u64 = 1_000_000;

    fn wishes(line: &str) -> Vec<Wish> {
        let mut model = Model::default();
        model.open = Some(5);
        enter(&mut model, line, NOW);
        model.take_wishes()
    }

    #[test]
    fn lines_are_said_and_commands_are_done() {
        let said = |text: &str| Wish::Send { conversation: 5, text: text.to_owned(), beside: Beside::default() };
        assert_eq!(wishes("hello"), [said("hello")]);
        assert_eq!(wishes("//shrug"), [said("/shrug")]);
        assert_eq!(wishes("   "), []);
        assert_eq!(wishes("/open @bob"), [Wish::OpenDirect("bob".to_owned())]);
        assert_eq!(wishes("/join #news"), [Wish::OpenChannel("news".to_owned())]);
        let group =
            Wish::CreateGroup { label: "Lunch today".to_owned(), users: vec!["alice".to_owned(), "bob".to_owned()] };
        assert_eq!(wishes("/group \"Lunch today\" alice @bob"), [group]);
        assert_eq!(
            wishes("/label The  big one"),
            [Wish::SetLabel { conversation: 5, label: "The big one".to_owned() }]
        );
        assert_eq!(wishes("/leave"), [Wish::Leave(5)]);
        assert_eq!(wishes("/nonsense"), []);
    }

    #[test]
    fn without_a_conversation_nothing_is_lost_in_silence() {
        let mut model = Model::default();
        enter(&mut model, "hello", NOW);
        assert!(model.take_wishes().is_empty());
        assert!(model.notice.contains("/open"));
    }

    /// What is wished of conversation 5, a group in which bob (8) said 3 and 7, and alice, who sits here, 4.
    fn acts(line: &str) -> (Vec<Wish>, String) {
        let mut model = Model::default();
        model.handle_connected(&packet::Connected { user: 7, ..Default::default() });
        let mut group = packet::Conversation { id: 5, label: "Lunch".to_owned(), ..Default::default() };
        group.set_kind(ConversationKind::Group);
        group.settings = Some(Settings { pinned: true, ..Settings::default() });
        group.info = Some(Info { picture: "p".to_owned(), ..Info::default() });
        model.handle_list(vec![group]);
        model.names.insert(8, "bob".to_owned());
        for (seq, sender) in [(3, 8), (4, 7), (7, 8)] {
            let entry = packet::Entry { conversation: 5, seq, sender, ..Default::default() };
            model.handle_item(&longwire_client::Item::Entry(entry));
        }
        model.take_wishes();
        enter(&mut model, line, NOW);
        (model.take_wishes(), model.notice)
    }

    #[test]
    fn messages_are_named_by_number_or_as_the_newest() {
        let reply = |reply_to, text: &str, mentions| {
            let beside = Beside { reply_to, mentions, ..Beside::default() };
            vec![Wish::Send { conversation: 5, text: text.to_owned(), beside }]
        };
        assert_eq!(acts("/reply 3 see  you, \"there\"").0, reply(3, "see  you, \"there\"", vec![]));
        assert_eq!(acts("/reply . yes @bob").0, reply(7, "yes @bob", vec![8]));
        let act = |act| vec![Wish::Act { conversation: 5, act }];
        assert_eq!(acts("/edit . at noon").0, act(Act::Edit { seq: 4, text: "at noon".to_owned() }));
        assert_eq!(acts("/recall .").0, act(Act::Recall(4)));
        assert_eq!(acts("/react . 👍").0, act(Act::React { seq: 7, reaction: "👍".to_owned() }));
        assert_eq!(acts("/react 3").0, act(Act::React { seq: 3, reaction: String::new() }));
        assert_eq!(acts("/hide 3").0, act(Act::Hide(3)));
        assert_eq!(acts("/seen 7"), (vec![], "7 was read by bob".to_owned()));
        for line in ["/edit", "/edit 4", "/edit x y", "/recall 4 now", "/reply 3"] {
            let (wishes, notice) = acts(line);
            assert!(wishes.is_empty() && notice.contains("/help"), "{line}: {wishes:?} {notice}");
        }
    }

    #[test]
    fn what_is_set_keeps_what_was_set_before() {
        let act = |act| vec![Wish::Act { conversation: 5, act }];
        let pinned = Settings { pinned: true, ..Settings::default() };
        let mutes = |muted_until| act(Act::Settings(Settings { muted_until, ..pinned }));
        assert_eq!((acts("/mute").0, acts("/mute off").0), (mutes(u64::MAX), mutes(0)));
        assert_eq!((acts("/mute 8h").0, acts("/mute for 2s").0), (mutes(NOW + 28_800_000), mutes(NOW + 2_000)));
        let toggled = |muted_until| {
            let mut model = Model::default();
            let settings = Some(Settings { muted_until, ..Settings::default() });
            model.handle_list(vec![packet::Conversation { id: 5, settings, ..Default::default() }]);
            model.open = Some(5);
            model.take_wishes();
            enter(&mut model, "/mute", NOW);
            model.take_wishes()
        };
        let muted_until = |muted_until| act(Act::Settings(Settings { muted_until, ..Settings::default() }));
        assert_eq!(toggled(NOW + 1), muted_until(0));
        assert_eq!(toggled(NOW), muted_until(u64::MAX), "a mute that has run out is none");
        assert_eq!(acts("/pin").0, act(Act::Settings(Settings::default())));
        assert_eq!(acts("/archive").0, act(Act::Settings(Settings { archived: true, ..pinned })));
        assert_eq!(acts("/unread").0, act(Act::Settings(Settings { marked_unread: true, ..pinned })));
        let info = Info { picture: "p".to_owned(), description: "every day".to_owned(), ..Info::default() };
        assert_eq!(acts("/describe every day").0, act(Act::Info(info)));
        assert_eq!(acts("/ban @bob").0, act(Act::Ban { user: "bob".to_owned(), lift: false }));
        assert_eq!(acts("/unban bob").0, act(Act::Ban { user: "bob".to_owned(), lift: true }));
        let level = packet::Level::HeadsOnly;
        assert_eq!(acts("/level heads").0, act(Act::Level(level)));
        let keep = |mode: RetentionMode, age_ms| act(Act::Keep(Retention { mode: mode.into(), age_ms }));
        assert_eq!(acts("/keep 2h").0, keep(RetentionMode::KeepFor, 7_200_000));
        assert_eq!(acts("/keep delivered 1d").0, keep(RetentionMode::UntilDelivered, 86_400_000));
        assert_eq!(acts("/keep always").0, keep(RetentionMode::Keep, 0));
        for line in ["/level some", "/keep", "/keep 7x", "/keep delivered", "/mute 8x", "/mute 8 hours"] {
            assert!(acts(line).0.is_empty() && acts(line).1.contains("/help"), "{line}");
        }
        assert_eq!((acts("/away").0, acts("/back").0), (vec![Wish::Background(true)], vec![Wish::Background(false)]));
        assert_eq!(acts("/key off").0, act(Act::JoinKey { open: false }));
        assert_eq!(acts("/join 12 secret").0, [Wish::JoinGroup { conversation: 12, key: "secret".to_owned() }]);
        assert_eq!(acts("/about").1, "Lunch is conversation 5; you are none; pinned");
    }
}
