//! SPEC.md is held to the code and the code to SPEC.md: every rule marked *[wire]* is cited by a test, every rule cited
//! exists, and the tables of refusals and limits are written from the code.
//!
//! `LONGWIRE_GENERATE=1 cargo test -p longwire-protocol --test rules` writes the tables anew.

use std::{collections::BTreeSet, path::Path};

use longwire_protocol::{Reason, limits};

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("a file of the tree")
}

/// All rule numbers in a text, as `R5.2-1`.
fn rules(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices('R') {
        let number: String =
            text[at + 1..].chars().take_while(|c| c.is_ascii_digit() || *c == '.' || *c == '-').collect();
        let number = number.trim_end_matches(['.', '-']);
        if let Some((chapter, rule)) = number.split_once('-')
            && !chapter.is_empty()
            && !rule.is_empty()
            && !text[..at].ends_with(|c: char| c.is_alphanumeric())
        {
            found.insert(format!("R{number}"));
        }
    }
    found
}

/// What is written in `protocol/src` and `protocol/tests`.
fn sources() -> (String, String) {
    fn collect(folder: &Path, into: &mut String) {
        for entry in std::fs::read_dir(folder).expect("a folder of the tree") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                collect(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("spec.rs") {
                into.push_str(&std::fs::read_to_string(&path).expect("a source"));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut code, mut tests) = (String::new(), String::new());
    collect(&root.join("src"), &mut code);
    collect(&root.join("tests"), &mut tests);
    (code, tests)
}

#[test]
fn every_wire_rule_has_a_test_and_every_cited_rule_exists() {
    let spec = read("../SPEC.md");
    let defined = |mark: &str| -> BTreeSet<String> {
        spec.lines()
            .filter(|line| line.starts_with("- **R") && line.contains(mark))
            .flat_map(|line| rules(line).into_iter().filter(|rule| line.starts_with(&format!("- **{rule}**"))))
            .collect()
    };
    let (wire, all) = (defined("** [wire] "), defined("** ["));
    assert!(wire.len() > 30 && all.len() > wire.len(), "the rules are found: {} of {}", wire.len(), all.len());
    assert_eq!(all.len(), spec.matches("- **R").count(), "every rule is marked, and no number is given twice");
    let (code, tests) = sources();
    let tested = rules(&tests);
    let untested: Vec<_> = wire.difference(&tested).collect();
    assert!(untested.is_empty(), "rules without a test: {untested:?}");
    let cited = &(&rules(&code) | &tested) | &rules(&spec);
    let unknown: Vec<_> = cited.difference(&all).collect();
    assert!(unknown.is_empty(), "rules that do not exist: {unknown:?}");
}

/// The part of SPEC.md between two marks is this, or is written anew.
fn hold(mark: &str, end: &str, table: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../SPEC.md");
    let spec = std::fs::read_to_string(&path).expect("SPEC.md");
    let from = spec.find(mark).map(|at| at + mark.len()).expect("the mark");
    let to = from + spec[from..].find(end).expect("its end");
    let table = format!("\n{table}");
    if std::env::var_os("LONGWIRE_GENERATE").is_some() && spec[from..to] != table {
        let written = format!("{}{table}{}", &spec[..from], &spec[to..]);
        std::fs::write(&path, written).expect("write SPEC.md");
        return;
    }
    assert!(spec[from..to] == table, "SPEC.md differs from the code: run with LONGWIRE_GENERATE=1\n{table}");
}

#[test]
fn the_tables_of_spec_are_those_of_the_code() {
    let mut table = String::from("| code | name | fault | ends | verdict | means |\n|---|---|---|---|---|---|\n");
    for reason in Reason::ALL {
        let verdict = match reason.verdict() {
            longwire_protocol::Verdict::Retry => "retry",
            longwire_protocol::Verdict::RetryElsewhere => "retry elsewhere",
            longwire_protocol::Verdict::Stop => "stop",
            longwire_protocol::Verdict::After => "after",
        };
        let ends = if reason.ends_connection() { "ends" } else { "" };
        let fault = format!("{:?}", reason.fault()).to_lowercase();
        table += &format!(
            "| {} | *{}* | {fault} | {ends} | {verdict} | {} |\n",
            reason.number(),
            reason.name(),
            reason.meaning()
        );
    }
    hold("<!-- reasons: written from protocol/src/reason.rs -->", "<!-- end of reasons -->", &table);

    let size = |bytes: u32| if bytes >= 1024 { format!("{} KiB", bytes / 1024) } else { format!("{bytes} bytes") };
    let window = |window: longwire_protocol::packet::Window| format!("{} items, {}", window.items, size(window.bytes));
    let seconds = |ms: u64| format!("{} s", ms / 1000);
    let rows = [
        ("frame before `Connected`", size(limits::PRE_AUTH_FRAME_BYTES_MAX)),
        ("content of an entry", size(limits::PAYLOAD_BYTES_MAX)),
        ("frame", size(limits::FRAME_BYTES_MAX)),
        ("depth of messages", limits::NESTING_MAX.to_string()),
        ("features", format!("{} of {} bytes", limits::FEATURES_MAX, limits::FEATURE_BYTES_MAX)),
        ("name of a device, of a user", format!("{} bytes", limits::DEVICE_NAME_BYTES_MAX)),
        ("name of a channel, label", format!("{} bytes", limits::CHANNEL_NAME_BYTES_MAX)),
        ("cursor", format!("{} bytes", limits::CURSOR_BYTES_MAX)),
        ("users in `CreateGroup`", limits::GROUP_USERS_MAX.to_string()),
        ("users in `UsersRequest`", limits::USERS_MAX.to_string()),
        ("mentions, attachments of a message", format!("{}, {}", limits::MENTIONS_MAX, limits::ATTACHMENTS_MAX)),
        ("attachments of a message, encoded", size(limits::ATTACHMENTS_BYTES_MAX as u32)),
        (
            "reaction, different ones to a message",
            format!("{}, {}", size(limits::REACTION_BYTES_MAX as u32), limits::REACTIONS_MAX),
        ),
        ("edits of a message", limits::EDITS_MAX.to_string()),
        (
            "expiry, messages of a conversation yet to expire",
            format!("{} days, {}", limits::EXPIRES_MS_MAX / 86_400_000, limits::EXPIRING_MAX),
        ),
        ("messages of a conversation that a user hides", limits::HIDDEN_MAX.to_string()),
        ("members whose marks reach each other", limits::RECEIPTS_MEMBERS_MAX.to_string()),
        ("content of the newest message in a list", size(limits::PREVIEW_BYTES_MAX as u32)),
        (
            "reference to a picture, description of a group",
            format!("{}, {}", size(limits::PICTURE_BYTES_MAX as u32), size(limits::DESCRIPTION_BYTES_MAX as u32)),
        ),
        ("join key of a group", format!("{} to {} bytes", limits::JOIN_KEY_BYTES_MIN, limits::JOIN_KEY_BYTES_MAX)),
        ("page", format!("{} entries, {}", limits::PAGE_ITEMS_MAX, size(limits::PAGE_BYTES_MAX as u32))),
        ("requests unanswered", limits::REQUESTS_MAX.to_string()),
        ("request on the wire", size(limits::REQUEST_BYTES_MAX as u32)),
        ("span of message ids", limits::ID_SPAN_MAX.to_string()),
        ("publish window, unless set otherwise", window(limits::PUBLISH_WINDOW)),
        ("express window, default", window(limits::EXPRESS_WINDOW)),
        ("bulk window, default", window(limits::BULK_WINDOW)),
        (
            "delivery windows, range",
            format!(
                "{} to {} items, {} to {}",
                limits::WINDOW_ITEMS_MIN,
                limits::WINDOW_ITEMS_MAX,
                size(limits::WINDOW_BYTES_MIN),
                size(limits::WINDOW_BYTES_MAX)
            ),
        ),
        (
            "heartbeat, range and default",
            format!(
                "{} to {}, {}",
                seconds(limits::HEARTBEAT_MS_MIN.into()),
                seconds(limits::HEARTBEAT_MS_MAX.into()),
                seconds(limits::HEARTBEAT_MS.into())
            ),
        ),
        ("answer to a heartbeat", seconds(limits::HEARTBEAT_ANSWER_MS)),
        ("TLS, from accept", seconds(limits::TLS_MS)),
        ("TLS, from its turn", seconds(limits::TLS_MS_MIN)),
        ("wait for that turn", seconds(limits::TLS_TURN_MS)),
        ("`Connected`, from accept", seconds(limits::AUTH_MS)),
        ("delay of an ack", seconds(limits::ACK_DELAY_MS)),
        ("item unacked before the broker asks", seconds(limits::ACK_OVERDUE_MS)),
        (
            "answer to `AckRequest`",
            format!("{}, {} more a KiB", seconds(limits::ACK_ANSWER_MS), seconds(limits::ACK_ANSWER_PER_KIB_MS)),
        ),
        ("cursor while items flow, at least every", seconds(limits::CURSOR_MS)),
        (
            "catch-up in `SKIP`",
            format!(
                "{} entries a conversation, {} items, {}",
                limits::CATCH_UP_ENTRIES_MAX,
                limits::CATCH_UP_ITEMS_MAX,
                size(limits::CATCH_UP_BYTES_MAX as u32)
            ),
        ),
        ("conversations with news in a catch-up", limits::CATCH_UP_CONVERSATIONS_MAX.to_string()),
        (
            "conversations of a user, members of a group",
            format!("{}, {}", limits::CONVERSATIONS_MAX, limits::MEMBERS_MAX),
        ),
        ("users banned from a group", limits::BANNED_MAX.to_string()),
        ("devices of a user", limits::DEVICES_MAX.to_string()),
        ("device unseen before it is forgotten", format!("{} days", limits::DEVICE_UNSEEN_MS / 86_400_000)),
        (
            "profile: name, picture, data",
            format!(
                "{}, {}, {} bytes",
                limits::DISPLAY_NAME_BYTES_MAX,
                limits::PROFILE_PICTURE_BYTES_MAX,
                limits::PROFILE_DATA_BYTES_MAX
            ),
        ),
        ("users in `ProfilesRequest`", limits::PROFILES_MAX.to_string()),
        (
            "contacts of a user",
            format!(
                "{}, with a nick of {} and data of {} bytes",
                limits::CONTACTS_MAX,
                limits::NICK_BYTES_MAX,
                limits::CONTACT_DATA_BYTES_MAX
            ),
        ),
        ("users whom a user blocks", limits::BLOCKED_MAX.to_string()),
        ("password", format!("{} to {} bytes", limits::PASSWORD_BYTES_MIN, limits::PASSWORD_BYTES_MAX)),
        ("channels, presences watched", format!("{}, {}", limits::WATCHES_MAX, limits::PRESENCES_MAX)),
        (
            "signals of a session",
            format!(
                "{} bytes of content; {} at once, {} a second",
                limits::SIGNAL_BYTES_MAX,
                limits::SIGNALS_AHEAD,
                1_000 / limits::SIGNAL_EVERY_MS
            ),
        ),
        ("members that signals are carried to", limits::SIGNAL_READERS_MAX.to_string()),
        ("absence before it is told", seconds(limits::OFFLINE_AFTER_MS)),
        ("users whose presence a session is told", limits::PRESENCES_MAX.to_string()),
        ("users of whose deliveries a session is told", limits::FOLLOWED_MAX.to_string()),
        (
            "absence before a will is published, range and default",
            format!(
                "{} to {}, {}",
                seconds(limits::WILL_AFTER_MS_MIN.into()),
                seconds(limits::WILL_AFTER_MS_MAX.into()),
                seconds(limits::WILL_AFTER_MS.into())
            ),
        ),
        ("content of a will", size(limits::WILL_BYTES_MAX as u32)),
        (
            "time for which entries are kept, where they are not kept for good",
            format!(
                "{} s to {} days; until delivered, {} days",
                limits::RETENTION_MS_MIN / 1000,
                limits::RETENTION_MS_MAX / 86_400_000,
                limits::UNDELIVERED_MS_MAX / 86_400_000
            ),
        ),
        ("members of a conversation that keeps until delivered", limits::DELIVERED_MEMBERS_MAX.to_string()),
        ("conversations of a device with a level", limits::LEVELS_MAX.to_string()),
        (
            "what is withheld is reported after, in the background",
            format!("{}, {}", seconds(limits::WITHHELD_MS), seconds(limits::WITHHELD_BACKGROUND_MS)),
        ),
        ("target of push notification", size(limits::PUSH_TARGET_BYTES_MAX as u32)),
    ];
    let mut table = String::from("| what | limit |\n|---|---|\n");
    for (what, limit) in rows {
        table += &format!("| {what} | {limit} |\n");
    }
    hold("<!-- limits: written from protocol/src/limits.rs -->", "<!-- end of limits -->", &table);
    assert_eq!(limits::USER_NAME_BYTES_MAX, limits::DEVICE_NAME_BYTES_MAX, "one row for both");
    assert_eq!(limits::LABEL_BYTES_MAX, limits::CHANNEL_NAME_BYTES_MAX, "one row for both");
}

/// The pictures of the states are the same in SPEC.md and in the code.
#[test]
fn the_state_pictures_are_those_of_the_code() {
    let spec = read("../SPEC.md");
    for source in ["src/session/broker.rs", "src/session/client.rs"] {
        let text = read(source);
        let picture: Vec<_> = text
            .lines()
            .skip_while(|line| *line != "//! ```text")
            .skip(1)
            .take_while(|line| *line != "//! ```")
            .map(|line| line.trim_start_matches("//!").trim_start_matches(' '))
            .collect();
        let lines: Vec<_> = spec.lines().map(|line| line.trim_start_matches(' ')).collect();
        assert!(picture.len() >= 4, "{source} has a picture");
        assert!(lines.windows(picture.len()).any(|window| window == picture), "SPEC.md has the picture of {source}");
    }
}
