//! The tree is tested too: which room may know which, words that must not stay, links, rules of SPEC.md, and what the
//! dependencies may be. Each check names file and line, and says what to do instead.

mod arrows;
mod dependencies;
mod links;
mod rules;
mod words;

use std::fs;
use std::path::{Path, PathBuf};

/// The top of the tree.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// One file of the tree: its path from the top, with slashes, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// Its lines, numbered from 1, without line comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.text.lines()).map(|(number, line)| (number, without_comment(line)))
    }
}

/// A line up to its comment. `://` is no comment, and what stands in a string may be cut: checks look for code.
fn without_comment(line: &str) -> &str {
    let comment = line.match_indices("//").find(|(at, _)| !line[..*at].ends_with(':'));
    comment.map_or(line, |(at, _)| &line[..at])
}

/// Every file below `folder` that ends with `extension`, in order of path; what is built or fetched is left out.
fn files(folder: &str, extension: &str) -> Vec<Source> {
    let mut found = Vec::new();
    collect(&root().join(folder), extension, &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn collect(folder: &Path, extension: &str, found: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).expect("a folder of the tree") {
        let path: PathBuf = entry.expect("an entry of a folder").path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if path.is_dir() {
            let is_ours = !name.starts_with("target") && !name.starts_with('.') && !name.ends_with("-dev");
            if is_ours {
                collect(&path, extension, found);
            }
        } else if name.ends_with(extension) {
            let text = fs::read_to_string(&path).expect("a text of the tree");
            let path = path.strip_prefix(root()).expect("below the top").to_string_lossy().replace('\\', "/");
            found.push(Source { path, text });
        }
    }
}

/// Whether `name` stands in `line` as a word of its own.
fn has_word(line: &str, name: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(name)
        .any(|(at, _)| !line[..at].ends_with(is_part) && !line[at + name.len()..].starts_with(is_part))
}

/// Fails with everything that was found, a line each.
fn none(found: Vec<String>, what: &str) {
    assert!(found.is_empty(), "{what}:\n  {}\n", found.join("\n  "));
}

#[test]
fn the_tree_is_read_at_all() {
    assert!(files("src", ".rs").len() > 40, "the broker's sources are found");
    assert!(files("", ".md").iter().any(|file| file.path == "README.md"), "the documents are found");
    assert!(has_word("use redb::Table;", "redb") && !has_word("RedbLog redb_log", "redb"));
    assert_eq!(without_comment("let a = b; // c"), "let a = b; ");
    assert_eq!(without_comment("let a = \"longwire://b\";"), "let a = \"longwire://b\";");
}
