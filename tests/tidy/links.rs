//! Links between the documents lead somewhere: to a file, and to a heading where they name one.

use crate::{files, none, root};

#[test]
fn every_link_of_a_document_leads_somewhere() {
    let mut found = Vec::new();
    for file in files("", ".md") {
        let mut in_code = false;
        for (number, line) in (1..).zip(file.text.lines()) {
            in_code ^= line.trim_start().starts_with("```");
            if in_code {
                continue;
            }
            for target in targets(line) {
                if let Err(why) = leads(&file.path, target) {
                    found.push(format!("{}:{number}: {target}: {why}", file.path));
                }
            }
        }
    }
    none(found, "links that lead nowhere");
}

/// What the links of a line point to, those of the web left out.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
}

fn leads(from: &str, target: &str) -> Result<(), &'static str> {
    let (path, heading) = target.split_once('#').unwrap_or((target, ""));
    let file = if path.is_empty() {
        root().join(from)
    } else {
        root().join(from).parent().expect("a file has a folder").join(path)
    };
    if !file.exists() {
        return Err("no such file");
    }
    if heading.is_empty() {
        return Ok(());
    }
    let text = std::fs::read_to_string(&file).map_err(|_| "a heading of what is no text")?;
    let has = text.lines().filter(|line| line.starts_with('#')).any(|line| anchor(line) == heading);
    if has { Ok(()) } else { Err("no such heading") }
}

/// A heading as a link names it.
fn anchor(line: &str) -> String {
    let text = line.trim_start_matches('#').trim().to_lowercase();
    text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_')).collect::<String>().replace(' ', "-")
}

#[test]
fn a_dead_link_is_seen() {
    assert_eq!(targets("see [a](b.md) and [c](https://d) or [e](#f)").collect::<Vec<_>>(), ["b.md", "#f"]);
    assert_eq!(leads("README.md", "no/such.md"), Err("no such file"));
    assert_eq!(leads("README.md", "SPEC.md#no-such-heading"), Err("no such heading"));
    assert_eq!(leads("README.md", "SPEC.md#1-words"), Ok(()));
}
