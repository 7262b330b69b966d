//! What no file may lack, and what none may keep.

use crate::{files, none};

/// Where our sources are.
const SOURCES: [&str; 7] = ["src", "client", "protocol", "push", "tests", "examples", "fuzz"];

/// Written by a generator, and held to its source by `protocol/tests/generated.rs`.
const GENERATED: [&str; 1] = ["protocol/src/packet/longwire.v1.rs"];

#[test]
fn every_file_says_first_what_it_is_for() {
    let mut found = Vec::new();
    for file in SOURCES.into_iter().flat_map(|folder| files(folder, ".rs")) {
        if !file.text.starts_with("//! ") && !GENERATED.contains(&file.path.as_str()) {
            found.push(format!("{}:1: begin with //! and what the file is for", file.path));
        }
    }
    none(found, "files without a beginning");
}

#[test]
fn nothing_is_left_to_do() {
    // Written in two parts, so that this file does not find itself.
    let words = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("dbg", "!("), concat!("FIX", "ME")];
    let mut found = Vec::new();
    for file in SOURCES.into_iter().flat_map(|folder| files(folder, ".rs")) {
        for (number, line) in (1..).zip(file.text.lines()) {
            for word in words {
                if line.contains(word) {
                    found.push(format!("{}:{number}: {word}", file.path));
                }
            }
        }
    }
    none(found, "unfinished work");
}

#[test]
fn nothing_is_unsafe() {
    let mut found = Vec::new();
    for file in SOURCES.into_iter().flat_map(|folder| files(folder, ".rs")) {
        for (number, line) in file.code() {
            if line.contains(concat!("unsafe", " {")) || line.contains(concat!("allow(", "unsafe_code")) {
                found.push(format!("{}:{number}: {}", file.path, line.trim()));
            }
        }
    }
    none(found, "unsafe code");
}

#[test]
fn lints_are_the_workspaces() {
    let mut found = Vec::new();
    for manifest in ["Cargo.toml", "protocol/Cargo.toml", "client/Cargo.toml", "push/Cargo.toml"] {
        let text = std::fs::read_to_string(crate::root().join(manifest)).expect("a manifest");
        if !text.replace(' ', "").contains("[lints]\nworkspace=true") {
            found.push(format!("{manifest}: needs [lints] workspace = true"));
        }
    }
    none(found, "crates without the workspace's lints");
}
