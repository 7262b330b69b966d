//! Every rule of SPEC.md that anything cites stands in SPEC.md, and every rule of a broker is cited by a test. That each
//! rule of the wire has one is held by `protocol/tests/rules/spec.rs`.

use std::collections::BTreeSet;

use crate::{files, none, root};

/// The rules that a line names, such as `R3-4` or `R5.2-1`.
fn rules(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (at, _) in line.match_indices('R') {
        if line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &line[at..];
        let end = rest[1..].find(|c: char| !c.is_ascii_digit() && c != '-' && c != '.').map_or(rest.len(), |n| n + 1);
        let rule = rest[..end].trim_end_matches(['-', '.']);
        let is_rule = rule[1..].split_once('-').is_some_and(|(chapter, number)| {
            !chapter.is_empty() && !number.is_empty() && number.chars().all(|c| c.is_ascii_digit())
        });
        if is_rule {
            found.push(rule);
        }
    }
    found
}

#[test]
fn every_cited_rule_is_in_the_spec() {
    let spec = std::fs::read_to_string(root().join("SPEC.md")).expect("SPEC.md");
    let defined: BTreeSet<&str> =
        spec.lines().filter_map(|line| line.strip_prefix("- **")).filter_map(|line| line.split("**").next()).collect();
    assert!(defined.len() > 60, "the rules are found: {}", defined.len());
    let mut found = Vec::new();
    for file in [".rs", ".py", ".md", ".proto"].into_iter().flat_map(|extension| files("", extension)) {
        if file.path.starts_with("tests/tidy/") {
            continue;
        }
        for (number, line) in (1..).zip(file.text.lines()) {
            for rule in rules(line) {
                if !defined.contains(rule) {
                    found.push(format!("{}:{number}: {rule}", file.path));
                }
            }
        }
    }
    none(found, "rules that SPEC.md does not have");
}

/// A rule that says what a broker may do, and need not.
const UNTESTED: [&str; 1] = ["R4-12"];

#[test]
fn every_rule_of_a_broker_is_cited_by_a_test() {
    let spec = std::fs::read_to_string(root().join("SPEC.md")).expect("SPEC.md");
    let tests = ["tests/it", "tests/sim", "client/tests", "src"].map(|folder| files(folder, ".rs"));
    let mut cited = BTreeSet::new();
    let python = files("tests/conformance", ".py");
    for file in tests.iter().flatten().chain(&python) {
        // In the sources, tests stand at the end of a file.
        let from =
            if file.path.starts_with("src/") { file.text.find("#[cfg(test)]").unwrap_or(file.text.len()) } else { 0 };
        cited.extend(file.text[from..].lines().flat_map(rules));
    }
    let of_broker = spec.lines().filter_map(|line| line.strip_prefix("- **")?.split_once("** [broker]"));
    let missing = of_broker.map(|(rule, _)| rule).filter(|rule| !cited.contains(rule) && !UNTESTED.contains(rule));
    none(missing.map(str::to_owned).collect(), "rules of a broker that no test names");
}

#[test]
fn rules_are_found_in_text() {
    assert_eq!(rules("SPEC R3-4, R10-12; (R5.2-1)."), ["R3-4", "R10-12", "R5.2-1"]);
    assert!(rules("SR3-4 R3 R-1 xR1-2 Read R3-x").is_empty());
}
