//! `longwire bench`: load on a broker, and what it costs.

mod args;
mod connections;
mod cost;
mod fanout;
mod flooded;
mod groups;
mod growth;
mod hostile;
mod kill;
mod list;
mod load;
mod mix;
mod offline;
mod pairs;
mod publish;
mod report;
mod slow;
mod storm;

use clap::Subcommand;

use super::Fail;
pub(super) use args::Issuer;
use args::{BrokerArgs, LoadArgs, PeerArgs, RunArgs};
pub(super) use load::own::{Listener, OwnBroker, Reads};

const EXAMPLES: &str = "\
Examples:
  longwire bench publish
  longwire bench publish --connections 256 --window 1 --duration 20s --json publish.json --html publish.html
  longwire bench pairs --pairs 100 --window 32 --peer mqtt://127.0.0.1:1883 --peer-pid $(pidof mosquitto) --repeat 3
  longwire bench connections --steps 1000,5000,15000
  longwire bench growth --entries 1000000,50000000 --html growth.html
  longwire bench hostile --json hostile.json
  longwire bench publish --url longwires://127.0.0.1:14000 --ca longwire-dev/ca.pem \\
      --issuer longwire-dev --issuer-key longwire-dev/issuer.key --broker-pid $(pidof longwire)

Without --url a broker is started for it, with a store in a temporary folder. The tokens are made here, so for another
one its issuer's private key is needed: this is for a broker of one's own.

Whatever is delivered is checked, seq by seq: a run in which anything is lost, doubled or out of order fails.";

/// Puts load on a broker and measures it
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(super) enum Command {
    /// Publishes from many connections: messages a second, latency of acks, what the broker spends on each
    Publish(publish::Args),
    /// Pairs of users, one of whom talks: published, stored, delivered and acked
    Pairs(pairs::Args),
    /// One publisher and many readers
    Fanout(fanout::Args),
    /// A realistic mix of direct conversations and groups
    Groups(groups::Args),
    /// One person in many groups that flood, and direct messages to it
    Flooded(flooded::Args),
    /// Devices are away, messages pile up for them, and all return at once
    Offline(offline::Args),
    /// Everyone is cut and returns at once, while a few go on publishing
    Storm(storm::Args),
    /// Readers that never ack, beside those who do
    Slow(slow::Args),
    /// The broker is killed and started again under load, and every promise is checked
    Kill(kill::Args),
    /// What publishing, history and a start cost as the store grows
    Growth(growth::Args),
    /// What the first page of someone's conversations costs, by how many there are
    List(list::Args),
    /// Opens many connections that do nothing: how fast, and what memory the broker holds for each
    Connections(connections::Args),
    /// Attacks a broker that serves honest clients: what attackers get, what they cost, what the others notice
    Hostile(hostile::Args),
    /// The part of `connections` that opens them; started by it
    #[command(hide = true)]
    ConnectionsWorker(connections::Args),
}

/// Runs a benchmark.
pub(super) fn run(command: Command) -> Result<(), Fail> {
    match command {
        Command::Publish(args) => publish::run(&args),
        Command::Pairs(args) => pairs::run(&args),
        Command::Fanout(args) => fanout::run(&args),
        Command::Groups(args) => groups::run(&args),
        Command::Flooded(args) => flooded::run(&args),
        Command::Offline(args) => offline::run(&args),
        Command::Storm(args) => storm::run(&args),
        Command::Slow(args) => slow::run(&args),
        Command::Kill(args) => kill::run(&args),
        Command::Growth(args) => growth::run(&args),
        Command::List(args) => list::run(&args),
        Command::Connections(args) => connections::run(args),
        Command::Hostile(args) => hostile::run(args),
        Command::ConnectionsWorker(args) => connections::work(&args),
    }
}
