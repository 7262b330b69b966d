//! The command line of the one binary `longwire`.

mod account;
mod bench;
mod chat;
mod connect;
mod conversation;
mod demo;
mod export;
mod fail;
mod keep;
mod login;
mod publish;
mod serve;
mod store;
mod subscribe;
mod target;
mod token;
mod user;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use connect::ConnectArgs;
pub use fail::{Fail, FailKind};

const EXAMPLES: &str = "\
Examples:
  longwire pub @bob 'lunch at noon?'          one message to bob, acked when it is on the broker's disk
  longwire sub '#news' --out news.txt         everything said in #news, exactly once, across restarts
  longwire chat                               talk

Exit codes: 0 done, 1 failed, 2 wrong usage, 69 cannot connect, 70 a broker's own error, 76 certificate not trusted, 77 not allowed in, 130 interrupted.";

/// A messaging broker that keeps its word, and what talks to it.
#[derive(Debug, Parser)]
#[command(name = "longwire", version, after_help = EXAMPLES, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What the binary does; each has its file.
#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the broker
    Serve(serve::Args),
    /// Looks at a store that no broker has open
    #[command(subcommand)]
    Store(store::Command),
    /// Makes issuers' keys and tokens
    #[command(subcommand)]
    Token(token::Command),
    /// Administers accounts
    #[command(subcommand)]
    User(user::Command),
    /// Changes what is about oneself: password, profile, contacts, blocks, what one shows, devices
    #[command(subcommand)]
    Account(account::Command),
    /// Talks, in a terminal
    Chat(chat::Args),
    /// Publishes messages
    Pub(publish::Args),
    /// Prints or stores what is said in a conversation
    Sub(subscribe::Args),
    /// Lists, makes and changes conversations
    #[command(subcommand)]
    Conversation(conversation::Command),
    /// Shows an evening of many people, with a broker of its own that is killed in the middle of it
    Demo(demo::Args),
    /// Puts load on a broker and measures it
    #[command(subcommand)]
    Bench(bench::Command),
}

/// Reads the command line and does what it says.
#[must_use]
pub fn main() -> ExitCode {
    // clap prints help and usage errors itself and exits with 0 or 2.
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Store(command) => store::run(command),
        Command::Token(command) => token::run(command),
        Command::User(command) => on_one_thread(user::run(command)),
        Command::Account(command) => on_one_thread(account::run(command)),
        Command::Chat(args) => on_one_thread(chat::run(args)),
        Command::Pub(args) => on_one_thread(publish::run(args)),
        Command::Sub(args) => on_one_thread(subscribe::run(args)),
        Command::Conversation(command) => on_one_thread(conversation::run(command)),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(command) => bench::run(command),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(fail) => {
            let words = fail.to_string();
            if !words.is_empty() {
                eprintln!("longwire: {words}");
            }
            fail.kind().exit_code()
        }
    }
}

/// Runs a client's command on a runtime of its own until it is done or interrupted.
fn on_one_thread(command: impl Future<Output = Result<(), Fail>>) -> Result<(), Fail> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fail::failed(format!("cannot start: {error}")))?;
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = command => outcome,
            () = interrupted() => Err(Fail::interrupted()),
        }
    });
    // A thread that waits for a line of stdin ends with the process.
    runtime.shutdown_background();
    outcome
}

async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without a handler the signal ends the process by itself.
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
