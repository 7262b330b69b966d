//! The one binary: the broker and what talks to it.

use std::process::ExitCode;

fn main() -> ExitCode {
    longwire::cli::main()
}
