//! What a typed line means: words for the conversation, or a command.

use longwire_client::packet::Role;

use super::model::{Model, Wish};

/// The commands, for `/help`.
pub(super) const COMMANDS: &[(&str, &str)] = &[
    ("/open @user", "opens the direct conversation with a user"),
    ("/group Label user user …", "makes a group; quote a label of several words"),
    ("/join #name", "joins a channel"),
    ("/leave", "leaves this conversation"),
    ("/label New label", "renames this group"),
    ("/add user, /remove user", "changes who is in this group"),
    ("/members", "says who is here"),
    ("/help, /quit", ""),
];

/// Acts on a line; what is no command is said in the open conversation.
pub(super) fn enter(model: &mut Model, line: &str) {
    model.notice.clear();
    let Some(command) = line.strip_prefix('/').filter(|command| !command.starts_with('/')) else {
        // Two slashes say one.
        let text = if line.starts_with("//") { &line[1..] } else { line };
        match model.open {
            _ if text.trim().is_empty() => {}
            Some(conversation) => {
                model.scroll = 0;
                model.wish(Wish::Send { conversation, text: text.to_owned() });
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
        (["help"], _) => model.help = true,
        (["quit" | "exit" | "q"], _) => model.wish(Wish::Quit),
        _ => model.say(format!("/{command}? /help says what there is")),
    }
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

    fn wishes(line: &str) -> Vec<Wish> {
        let mut model = Model::default();
        model.open = Some(5);
        enter(&mut model, line);
        model.take_wishes()
    }

    #[test]
    fn lines_are_said_and_commands_are_done() {
        assert_eq!(wishes("hello"), [Wish::Send { conversation: 5, text: "hello".to_owned() }]);
        assert_eq!(wishes("//shrug"), [Wish::Send { conversation: 5, text: "/shrug".to_owned() }]);
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
        enter(&mut model, "hello");
        assert!(model.take_wishes().is_empty());
        assert!(model.notice.contains("/open"));
    }
}
