//! Instructions and allocations of what must not creep: counted by valgrind, so that they are the same on a busy machine
//! and an idle one, and held against `benches/baseline.json`.
//!
//! ```text
//! cargo counts                  counts, and fails where a count is 5 % above what is written there
//! cargo counts -- --write       writes down what was counted
//! cargo counts -- publish       counts these alone
//! ```
//!
//! `.cargo/config.toml` says what `cargo counts` is: our crates as for release, over the dependencies that the tests have.

mod workloads;

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};

use serde::{Deserialize, Serialize};
use workloads::{ALL, Workload};

/// What is counted of one unit.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Counts {
    instructions: f64,
    allocations: f64,
}

/// Turns of the shorter and of the longer run; what lies between them is what turns cost.
const TURNS: (usize, usize) = (20, 120);
/// Turns before, so that buffers have their size.
const WARM: usize = 20;
/// What a count may be above what is written down.
const SLACK: f64 = 1.05;
/// Allocations are few: so many of one unit are no news.
const ALLOCATIONS_SLACK: f64 = 0.05;

const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/baseline.json");

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--turns", turns, name] => {
            run(name, turns.parse().expect("a number of turns"));
            ExitCode::SUCCESS
        }
        _ => count(&arguments),
    }
}

/// Does the work: this is what valgrind looks at.
fn run(name: &str, turns: usize) {
    let workload = ALL.iter().find(|workload| workload.name == name).expect("a workload");
    // As much is made ready for a short run as for a long one: it does not count.
    let mut turn = (workload.prepare)(WARM + TURNS.1);
    (0..WARM + turns).for_each(|_| turn());
}

fn count(arguments: &[String]) -> ExitCode {
    let write = arguments.iter().any(|argument| argument == "--write");
    let names: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    if Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("skipped: valgrind is not installed, and nothing else counts instructions");
        return ExitCode::SUCCESS;
    }
    let mut written: BTreeMap<String, Counts> = std::fs::read_to_string(BASELINE)
        .map(|text| serde_json::from_str(&text).expect("benches/baseline.json is what this program wrote"))
        .unwrap_or_default();
    let mut risen = false;
    println!("{:<10}{:<14}{:>14}{:>10}{:>14}{:>10}", "", "for each", "instructions", "", "allocations", "");
    for workload in ALL.iter().filter(|workload| names.is_empty() || names.iter().any(|name| *name == workload.name)) {
        let counts = Counts {
            instructions: each(
                workload,
                &["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"],
                " refs:",
            ),
            allocations: each(workload, &["--tool=dhat", "--dhat-out-file=/dev/null"], "Total:"),
        };
        let before = written.get(workload.name).copied();
        let more = before.is_some_and(|before| {
            counts.instructions > before.instructions * SLACK
                || counts.allocations > before.allocations * SLACK + ALLOCATIONS_SLACK
        });
        risen |= more;
        let percent = |now: f64, before: Option<f64>| match before {
            Some(before) if before > 0.0 => format!("{:+.1} %", (now / before - 1.0) * 100.0),
            _ => "new".to_owned(),
        };
        println!(
            "{:<10}{:<14}{:>14.0}{:>10}{:>14.2}{:>10}{}",
            workload.name,
            workload.unit,
            counts.instructions,
            percent(counts.instructions, before.map(|before| before.instructions)),
            counts.allocations,
            percent(counts.allocations, before.map(|before| before.allocations)),
            if more { "  risen" } else { "" },
        );
        if write || before.is_none() {
            written.insert(workload.name.to_owned(), counts);
        }
    }
    if write {
        let text = serde_json::to_string_pretty(&written).expect("JSON");
        std::fs::write(BASELINE, text + "\n").expect("benches/baseline.json is written");
    } else if risen {
        eprintln!("a count has risen: find out why, or write it down with `cargo counts -- --write`");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// What one unit costs: a longer run less a shorter one.
fn each(workload: &Workload, tool: &[&str], line: &str) -> f64 {
    let [less, more] = [TURNS.0, TURNS.1].map(|turns| {
        let program = std::env::current_exe().expect("this program");
        let output = Command::new("valgrind")
            .args(tool)
            .arg(program)
            .args(["--turns", &turns.to_string(), workload.name])
            .output()
            .expect("valgrind runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", workload.name);
        total(&said, line).unwrap_or_else(|| panic!("{}: valgrind says nothing of {line:?}: {said}", workload.name))
    });
    (more - less) / ((TURNS.1 - TURNS.0) as f64 * workload.units as f64)
}

/// The last number of a line of valgrind's: `I   refs:  1,234`, or `Total: 56,789 bytes in 123 blocks`.
fn total(said: &str, line: &str) -> Option<f64> {
    let (_, numbers) = said.lines().find_map(|one| one.split_once(line))?;
    let number = numbers.split_whitespace().rfind(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    number.replace(',', "").parse().ok()
}
