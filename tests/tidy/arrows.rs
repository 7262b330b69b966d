//! Which room may know which. A new arrow is a decision, not an import: it comes with a record in `docs/decisions` and
//! a line in the table here.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Source, files, has_word, none};

/// The rooms of the broker, each with those it may know. All may know the protocol.
const ROOMS: [(&str, &[&str]); 16] = [
    // What the broker tells it, the broker says: it asks nobody.
    ("admin", &[]),
    ("auth", &[]),
    (
        "broker",
        &[
            "admin",
            "auth",
            "clock",
            "config",
            "metrics",
            "mutation",
            "net",
            "push",
            "routing",
            "store",
            "tasks",
            "telemetry",
            "vital",
        ],
    ),
    ("cli", &["admin", "auth", "broker", "clock", "config", "net", "push", "routing", "store", "telemetry", "vital"]),
    ("clock", &[]),
    ("config", &[]),
    // In no broker: the bodies of the fuzz targets.
    ("fuzz", &["auth", "config", "net", "routing", "store"]),
    // Handles that whoever does something adds to.
    ("metrics", &[]),
    // Asked in every room where the simulator plants bugs; nothing without its feature.
    ("mutation", &[]),
    // The way to the commit thread is the one thing it knows of the broker: see BEHIND_A_DOOR.
    ("net", &["auth", "broker", "clock", "metrics", "mutation", "routing", "store", "tasks", "vital"]),
    // Only with its feature.
    ("push", &["clock", "config", "metrics", "routing", "store", "vital"]),
    ("routing", &["mutation", "store"]),
    ("store", &["vital"]),
    ("tasks", &[]),
    ("telemetry", &[]),
    ("vital", &[]),
];

/// Arrows that reach one name alone.
const BEHIND_A_DOOR: [(&str, &str, &str); 1] = [("net", "broker", "crate::broker::queue::Queue")];

/// What belongs into one room: the name, where it may stand, and what to use elsewhere.
const AT_HOME: [(&str, &str, &str); 5] = [
    ("hyper", "src/admin/", "nothing: no message goes over HTTP"),
    ("prometheus_client", "src/metrics/", "the handles of `Metrics`, and `page::Page`"),
    ("redb", "src/store/", "the faces `Log` and `History` of store"),
    ("DashMap", "src/routing/registry.rs", "the registry, or state of one owner"),
    ("longwire_client", "src/cli/", "nothing: the broker knows no client"),
];

/// Who reads a clock beside `src/clock.rs`, and why.
const CLOCKS: [(&str, &str); 6] = [
    ("src/cli/demo/", "an evening takes real time"),
    ("src/cli/bench/", "load generators: what they measure is time"),
    ("src/cli/chat/mod.rs", "a client, which has no log: it shows how long ago something was said"),
    ("src/cli/serve.rs", "tells how long opening the store took, before there is a log's clock"),
    ("src/cli/subscribe.rs", "a client; --timeout is waited for by tokio"),
    ("src/fuzz.rs", "its tests go on for a while"),
];

/// The room of a file of the broker; `lib.rs` and `main.rs` are none.
fn room(path: &str) -> Option<&str> {
    let below = path.strip_prefix("src/")?;
    let name = below.split('/').next()?;
    let name = name.strip_suffix(".rs").unwrap_or(name);
    ROOMS.iter().map(|(room, _)| *room).find(|room| *room == name)
}

/// How many modules deep the module of a file is: `src/net/mod.rs` is 1, `src/net/pump.rs` is 2.
fn depth(path: &str) -> usize {
    let below = path.strip_prefix("src/").unwrap_or(path);
    below.split('/').filter(|part| *part != "mod.rs").count()
}

/// The paths from the top of the broker that a line names, written with `crate::` or with enough `super::`.
fn named(file: &Source, line: &str) -> Vec<String> {
    let mut found = Vec::new();
    let path_of =
        |rest: &str| -> String { rest.chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | ':')).collect() };
    for (at, start) in line.match_indices("crate::") {
        if line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &line[at + start.len()..];
        if let Some(list) = rest.strip_prefix('{') {
            // One level of a list is enough: rustfmt puts longer ones on lines of their own, which `opens` catches.
            found.extend(list.split([',', '}']).map(|part| path_of(part.trim())).filter(|part| !part.is_empty()));
        } else {
            found.push(path_of(rest));
        }
    }
    let climb = "super::".repeat(depth(&file.path));
    for (at, start) in line.match_indices(climb.as_str()) {
        if !line[..at].ends_with("super::") {
            let path = path_of(&line[at + start.len()..]);
            if ROOMS.iter().any(|(room, _)| path.split("::").next() == Some(room)) {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn every_arrow_between_rooms_is_allowed() {
    let mut found = Vec::new();
    for file in files("src", ".rs") {
        let Some(from) = room(&file.path) else { continue };
        let (_, allowed) = ROOMS.iter().find(|(room, _)| *room == from).expect("a room of the table");
        for (number, line) in file.code() {
            if line.trim_end().ends_with("crate::{") {
                found.push(format!("{}:{number}: name each room in a `use` of its own", file.path));
            }
            for path in named(&file, line) {
                let to = path.split("::").next().unwrap_or("");
                if to == from || to.is_empty() {
                    continue;
                }
                let is_behind = BEHIND_A_DOOR.iter().find(|(a, b, _)| *a == from && *b == to);
                match is_behind {
                    Some((_, _, door)) if !format!("crate::{path}").starts_with(door) => {
                        found.push(format!("{}:{number}: {from} may know of {to} only {door}", file.path));
                    }
                    None if !allowed.contains(&to) => {
                        found.push(format!("{}:{number}: {from} must not know {to} ({})", file.path, line.trim()));
                    }
                    _ => {}
                }
            }
        }
    }
    none(found, "new arrows between rooms; see docs/architecture.md");
}

#[test]
fn every_room_is_in_the_table() {
    let mut found = Vec::new();
    for file in files("src", ".rs") {
        if room(&file.path).is_none() && !["src/lib.rs", "src/main.rs"].contains(&file.path.as_str()) {
            found.push(format!("{}:1: its room has no line in ROOMS of tests/tidy/arrows.rs", file.path));
        }
    }
    none(found, "rooms without a place");
}

#[test]
fn what_belongs_to_one_room_is_named_nowhere_else() {
    let mut found = Vec::new();
    for file in files("src", ".rs") {
        for (number, line) in file.code() {
            for (name, home, instead) in AT_HOME {
                if has_word(line, name) && !file.path.starts_with(home) {
                    found.push(format!("{}:{number}: {name} belongs to {home}; use {instead}", file.path));
                }
            }
        }
    }
    none(found, "names out of their room");
}

#[test]
fn only_the_clock_reads_a_clock() {
    let (mut found, mut used) = (Vec::new(), Vec::new());
    for file in files("src", ".rs") {
        for (number, line) in file.code() {
            if file.path == "src/clock.rs" || !(has_word(line, "Instant") || has_word(line, "SystemTime")) {
                continue;
            }
            match CLOCKS.iter().find(|(path, _)| file.path.starts_with(path)) {
                Some((path, _)) => used.push(*path),
                None => found.push(format!("{}:{number}: ask `crate::clock` for the time", file.path)),
            }
        }
    }
    for (path, reason) in CLOCKS {
        if !used.contains(&path) {
            found.push(format!("{path}: reads no clock any more; take its exception away ({reason})"));
        }
    }
    none(found, "clocks");
}

#[test]
fn the_protocol_cannot_block_and_cannot_tell_the_time() {
    const BANNED: [&str; 7] = ["tokio", "std::net", "std::fs", "std::thread", "std::process", "Instant", "SystemTime"];
    let mut found = Vec::new();
    for file in files("protocol/src", ".rs") {
        // Tests inside may read files, such as the corpus of the fuzzer.
        for (number, line) in file.code().take_while(|(_, line)| !line.starts_with("#[cfg(test)]")) {
            for banned in BANNED.iter().filter(|banned| has_word(line, banned)) {
                found.push(format!("{}:{number}: {banned} has no place in a value without IO", file.path));
            }
        }
    }
    none(found, "IO or time in the protocol");
}

#[test]
fn the_client_does_not_know_the_broker() {
    let mut found = Vec::new();
    for file in files("client", ".rs").into_iter().chain(files("protocol", ".rs")) {
        for (number, line) in file.code() {
            if line
                .match_indices("longwire::")
                .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'))
            {
                found.push(format!("{}:{number}: {}", file.path, line.trim()));
            }
        }
    }
    none(found, "the broker named in a crate below it; share what both need in protocol/");
}

#[test]
fn the_clients_arrows_have_no_circle() {
    let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files("client/src", ".rs") {
        let below = file.path.trim_start_matches("client/src/").trim_end_matches(".rs");
        let from = below.split('/').next().unwrap_or(below);
        let code = file.code().take_while(|(_, line)| !line.starts_with("#[cfg(test)]"));
        let paths = code.flat_map(|(_, line)| named(&file, line)).filter(|path| path.contains("::"));
        let rooms = paths.filter_map(|path| path.split("::").next().map(ToOwned::to_owned));
        arrows.entry(from.to_owned()).or_default().extend(rooms.filter(|to| to != from));
    }
    assert!(arrows.len() > 15, "the rooms are found: {arrows:?}");
    // Take away, again and again, what knows nobody that is left; a circle stays.
    while let Some(free) = arrows.iter().find(|(_, to)| !to.iter().any(|room| arrows.contains_key(room))) {
        let free = free.0.clone();
        arrows.remove(&free);
    }
    none(arrows.iter().map(|(from, to)| format!("client/src/{from}: knows {to:?}")).collect(), "circles of imports");
}

#[test]
fn a_forbidden_arrow_is_seen() {
    let file = Source { path: "src/net/pump.rs".into(), text: String::new() };
    assert_eq!(named(&file, "use crate::broker::Broker;"), ["broker::Broker"]);
    assert_eq!(named(&file, "use crate::{auth, store::Log};"), ["auth", "store::Log"]);
    assert_eq!(named(&file, "let x = super::super::broker::Broker::start();"), ["broker::Broker::start"]);
    assert!(named(&file, "use super::Shared; $crate::x").is_empty());
    assert_eq!((room("src/net/pump.rs"), room("src/clock.rs"), room("src/lib.rs")), (Some("net"), Some("clock"), None));
}
