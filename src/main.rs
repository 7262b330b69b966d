//! The one binary: the broker and what talks to it.

use std::process::ExitCode;

/// Gives memory back after a wave of disconnects; configured in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    longwire::cli::main()
}
