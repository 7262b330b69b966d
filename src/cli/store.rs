//! `longwire store`: looks at a store that no broker has open.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

use super::Fail;
use crate::routing::audit::Audit;
use crate::store;

const EXAMPLES: &str = "\
Examples:
  longwire store check longwire-dev/store     verify every promise that the files can show; exit code 1 if one is broken
  longwire store stats longwire-dev/store     sizes, runs, amplification

Both only read, and refuse a store that a broker has open.";

/// Looks at a store that no broker has open.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(super) enum Command {
    /// Verifies seqs, positions, checksums, heads and counts, and that state and journal agree
    Check(Args),
    /// Prints sizes, runs and amplification
    Stats(Args),
}

/// Which store, and for whom.
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The folder of the store
    folder: PathBuf,
    /// JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// Does what the command says.
pub(super) fn run(command: Command) -> Result<(), Fail> {
    match command {
        Command::Check(args) => {
            let report = store::check(&args.folder, &mut Audit::default()).map_err(|e| Fail::failed(e.to_string()))?;
            if args.json {
                print_json(&report)?;
            } else {
                println!("format         {}", report.format);
                println!(
                    "positions      {} (state up to {}, expired below {})",
                    report.tail, report.applied, report.floor
                );
                println!("segments       {}", report.segments);
                println!("conversations  {}", report.conversations);
                println!("runs           {} with {} entries", report.runs, report.run_entries);
                println!("journal        {} frames with {} entries", report.frames, report.journal_entries);
                println!("state          {} rows", report.state_rows);
                report.problems.iter().for_each(|problem| println!("PROBLEM        {problem}"));
            }
            if !report.is_sound() {
                return Err(Fail::failed(format!("{} problems were found", report.problem_count)));
            }
            if !args.json {
                println!("sound");
            }
            Ok(())
        }
        Command::Stats(args) => {
            let stats = store::stats(&args.folder).map_err(|e| Fail::failed(e.to_string()))?;
            if args.json {
                return print_json(&stats);
            }
            let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
            println!(
                "journal        {} in {} commits, file {}",
                mib(stats.journal.bytes),
                stats.journal.commits,
                mib(stats.journal.file_bytes)
            );
            println!("state          {} rows, file {}", stats.state_rows, mib(stats.state_file_bytes));
            for level in &stats.levels {
                println!(
                    "level {:<8} {} runs, {} entries, {} of entries in {} of files",
                    level.level,
                    level.runs,
                    level.entries,
                    mib(level.bytes),
                    mib(level.file_bytes)
                );
            }
            println!("amplification  {:.2} bytes of runs for a byte of entries", stats.space_amplification);
            Ok(())
        }
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Fail> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Fail::failed(e.to_string()))?;
    println!("{text}");
    Ok(())
}
