//! What the dependencies may be. `deny.toml` is the one place that says so, also to `cargo deny` where it is installed;
//! here `cargo metadata` is held to it.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{Metadata, MetadataCommand, Node, Package, PackageId};
use serde::Deserialize;

use crate::{none, root};

/// As much of `deny.toml` as we use.
#[derive(Deserialize)]
struct Rules {
    graph: Graph,
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    skip: Vec<String>,
    deny: Vec<Banned>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Banned {
    #[serde(rename = "crate")]
    name: String,
    use_instead: String,
}

fn deny() -> Rules {
    let file = config::File::from(root().join("deny.toml")).format(config::FileFormat::Toml);
    let rules = config::Config::builder().add_source(file).build().expect("deny.toml is TOML");
    rules.try_deserialize().expect("deny.toml has the parts we use")
}

/// Everything that is built or run for the workspace on the targets of `deny.toml`.
fn packages() -> Vec<Package> {
    let mut found = BTreeMap::new();
    for target in deny().graph.targets {
        let metadata = MetadataCommand::new()
            .manifest_path(root().join("Cargo.toml"))
            .other_options(vec!["--locked".into(), "--filter-platform".into(), target])
            .exec()
            .expect("cargo metadata");
        found.extend(used(&metadata).into_iter().map(|package| (package.id.clone(), package.clone())));
    }
    found.into_values().collect()
}

/// What is reached from the workspace. `cargo metadata` lists optional dependencies also where only a weak feature
/// names them; those are not built, and left out.
fn used(metadata: &Metadata) -> Vec<&Package> {
    let nodes: BTreeMap<&PackageId, &Node> =
        metadata.resolve.iter().flat_map(|resolve| &resolve.nodes).map(|node| (&node.id, node)).collect();
    let mut seen = BTreeSet::new();
    let mut next: Vec<&PackageId> = metadata.workspace_members.iter().collect();
    while let Some(id) = next.pop() {
        if seen.insert(id) {
            let (package, node) = (&metadata[id], nodes[id]);
            next.extend(node.deps.iter().map(|dep| &dep.pkg).filter(|dep| is_on(package, node, &metadata[*dep])));
        }
    }
    seen.into_iter().map(|id| &metadata[id]).collect()
}

/// Whether `package`, with the features of `node`, really depends on `dependency`.
fn is_on(package: &Package, node: &Node, dependency: &Package) -> bool {
    let features: Vec<&str> = node.features.iter().map(|feature| feature.as_ref()).collect();
    package
        .dependencies
        .iter()
        .filter(|d| d.name == dependency.name.as_str())
        .filter(|d| d.req.matches(&dependency.version))
        .any(|d| {
            let name = d.rename.as_deref().unwrap_or(&d.name);
            let by = |asked: &str| {
                asked == name
                    || asked.strip_prefix("dep:") == Some(name)
                    || asked.split_once('/').is_some_and(|(dep, _)| dep == name)
            };
            !d.optional
                || features.contains(&name)
                || features.iter().filter_map(|f| package.features.get(*f)).flatten().any(|asked| by(asked))
        })
}

/// Whether an SPDX expression leaves a choice of allowed licences alone. Old manifests write `/` for `OR`.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    let text = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut at = 0;
    let outcome = any(&words, &mut at, allowed);
    outcome && at == words.len()
}

fn any(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut outcome = all(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        outcome |= all(words, at, allowed);
    }
    outcome
}

fn all(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut outcome = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        outcome &= one(words, at, allowed);
    }
    outcome
}

fn one(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let word = words.get(*at).copied().unwrap_or("");
    *at += 1;
    if word == "(" {
        let outcome = any(words, at, allowed);
        *at += 1;
        return outcome;
    }
    let has_exception = words.get(*at) == Some(&"WITH");
    if has_exception {
        // A licence with an exception is another licence: it would have to be allowed by both words.
        *at += 2;
    }
    !has_exception && allowed.iter().any(|name| name == word)
}

#[test]
fn licences_are_among_those_allowed() {
    let allowed = deny().licenses.allow;
    let mut found = Vec::new();
    for package in packages() {
        let licence = package.license.as_deref().unwrap_or("none");
        if !is_allowed(licence, &allowed) {
            found.push(format!("{} {}: {licence}", package.name, package.version));
        }
    }
    none(found, "licences that deny.toml does not allow");
}

#[test]
fn banned_crates_are_not_used() {
    let banned = deny().bans.deny;
    assert!(["ring", "openssl-sys", "native-tls"].iter().all(|name| banned.iter().any(|b| b.name == *name)));
    let mut found = Vec::new();
    for package in packages() {
        if let Some(ban) = banned.iter().find(|ban| package.name.as_str() == ban.name) {
            found.push(format!("{} {}: use {}", package.name, package.version, ban.use_instead));
        }
    }
    none(found, "banned by deny.toml");
}

#[test]
fn versions_are_single_but_where_named() {
    let skip: BTreeSet<String> = deny().bans.skip.into_iter().collect();
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages() {
        versions.entry(package.name.to_string()).or_default().insert(package.version.to_string());
    }
    let mut found = Vec::new();
    for (name, versions) in &versions {
        match (versions.len() > 1, skip.contains(name)) {
            (true, false) => found.push(format!("{name}: {versions:?}; make them one, or name it in deny.toml")),
            (false, true) => found.push(format!("{name}: is single now; take it out of deny.toml")),
            _ => {}
        }
    }
    let gone = skip.iter().filter(|name| !versions.contains_key(*name));
    found.extend(gone.map(|name| format!("{name}: is used no more; take it out of deny.toml")));
    none(found, "duplicates");
}

#[test]
fn every_dependency_names_its_version_and_comes_from_the_registry() {
    let mut found = Vec::new();
    for package in packages() {
        if package.source.as_ref().is_some_and(|source| !source.is_crates_io()) {
            found.push(format!("{} {}: does not come from crates.io", package.name, package.version));
        }
        if package.source.is_none() {
            for dependency in &package.dependencies {
                if dependency.path.is_none() && dependency.req == cargo_metadata::semver::VersionReq::STAR {
                    found.push(format!("{}: {} has any version", package.name, dependency.name));
                }
            }
        }
    }
    none(found, "dependencies from anywhere");
}

#[test]
fn versions_are_chosen_in_the_workspace_alone() {
    let mut found = Vec::new();
    for manifest in ["Cargo.toml", "protocol/Cargo.toml", "client/Cargo.toml", "push/Cargo.toml"] {
        let text = std::fs::read_to_string(root().join(manifest)).expect("a manifest");
        let mut is_dependencies = false;
        for (number, line) in (1..).zip(text.lines()) {
            if line.starts_with('[') {
                is_dependencies = line.ends_with("dependencies]") && line != "[workspace.dependencies]";
            } else if is_dependencies && line.contains('=') && !line.contains("workspace = true") {
                found.push(format!("{manifest}:{number}: name the version in [workspace.dependencies]"));
            }
        }
    }
    none(found.into_iter().filter(|line| !line.contains("workspace = true")).collect(), "versions out of place");
}

#[test]
fn licence_expressions_are_understood() {
    let allowed = ["MIT".to_owned(), "ISC".to_owned()];
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("ISC AND (GPL-3.0 OR MIT)", true),
        ("(GPL-3.0 OR MIT) AND Zlib", false),
        ("MIT WITH Something", false),
        ("MIT )", false),
        ("none", false),
        ("", false),
    ] {
        assert_eq!(is_allowed(expression, &allowed), expected, "{expression}");
    }
}
