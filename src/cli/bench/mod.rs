//! `longwire bench`: load on a broker, and what it costs.

mod connections;
mod process;
mod publish;
mod wire;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args as ClapArgs, Subcommand};
use longwire_client::{Address, Trust};
use serde::Serialize;

use super::Fail;
use crate::auth::{self, AUDIENCE, Claims};

const EXAMPLES: &str = "\
Examples:
  longwire bench publish --issuer longwire-dev --issuer-key longwire-dev/issuer.key --ca longwire-dev/ca.pem
  longwire bench publish ... --broker-pid $(pidof longwire)
  longwire bench publish ... --connections 256 --window 1 --duration 20s --json publish.json
  longwire bench connections ... --steps 1000,5000,15000

The tokens are made here, so the issuer's private key is needed: this is for a broker of one's own.";

/// Puts load on a broker and measures it
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(super) enum Command {
    /// Publishes from many connections: messages a second, latency of acks, what the broker spends on each
    Publish(publish::Args),
    /// Opens many connections that do nothing: how fast, and what memory the broker holds for each
    Connections(connections::Args),
    /// The part of `connections` that opens them; started by it
    #[command(hide = true)]
    ConnectionsWorker(connections::Args),
}

/// Runs a benchmark.
pub(super) fn run(command: Command) -> Result<(), Fail> {
    match command {
        Command::Publish(args) => publish::run(args),
        Command::Connections(args) => connections::run(&args),
        Command::ConnectionsWorker(args) => connections::work(&args),
    }
}

/// What every benchmark asks for.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Broker")]
struct BrokerArgs {
    /// The broker: longwires://HOST[:PORT] (TLS), or longwire://HOST[:PORT] (plain TCP)
    #[arg(long, env = "LONGWIRE_URL", default_value = "longwires://127.0.0.1:14000")]
    url: Address,

    /// The certificates to trust, as a PEM file
    #[arg(long, env = "LONGWIRE_CA", value_name = "FILE")]
    ca: Option<PathBuf>,

    /// The private key of an issuer that the broker believes, as `longwire token key` makes it
    #[arg(long, env = "LONGWIRE_ISSUER_KEY", value_name = "FILE")]
    issuer_key: PathBuf,

    /// The issuer's name, as in the broker's configuration
    #[arg(long, env = "LONGWIRE_ISSUER", default_value = "longwire")]
    issuer: String,

    /// The beginning of the names of users, devices and channels
    #[arg(long, default_value = "bench", value_name = "PREFIX")]
    devices_prefix: String,

    /// The broker's process on this machine, to say what it spent
    #[arg(long, value_name = "PID")]
    broker_pid: Option<u32>,

    /// Write the figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Devices of one benchmark user; the broker allows 20.
const DEVICES_OF_A_USER: usize = 20;
/// How long the tokens of a benchmark hold.
const TOKEN_LIFE: Duration = Duration::from_secs(86_400);

impl BrokerArgs {
    /// Whom to believe to be the broker.
    fn trust(&self) -> Result<Trust, Fail> {
        match &self.ca {
            Some(path) => Trust::from_file(path).map_err(|error| Fail::usage(error.to_string())),
            None => Ok(Trust::Nobody),
        }
    }

    /// Makes tokens that allow all channels.
    fn issuer(&self) -> Result<Issuer, Fail> {
        let path = &self.issuer_key;
        let key = std::fs::read(path).map_err(|error| Fail::usage(format!("{}: {error}", path.display())))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        Ok(Issuer { key, name: self.issuer.clone(), now })
    }
}

/// Makes tokens.
struct Issuer {
    key: Vec<u8>,
    name: String,
    now: u64,
}

impl Issuer {
    fn token(&self, user: &str) -> Result<String, Fail> {
        let claims = Claims {
            iss: self.name.clone(),
            sub: user.to_owned(),
            aud: AUDIENCE.to_owned(),
            exp: self.now + TOKEN_LIFE.as_secs(),
            iat: self.now,
            jti: format!("{:016x}", fastrand::u64(..)),
            device: None,
            publish: vec!["**".to_owned()],
            read: vec!["**".to_owned()],
        };
        auth::issue(&claims, &self.key).map_err(Fail::failed)
    }
}

fn write_json(path: Option<&Path>, figures: &impl Serialize) -> Result<(), Fail> {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::to_string_pretty(figures).map_err(|error| Fail::failed(error.to_string()))?;
    std::fs::write(path, text + "\n").map_err(|error| Fail::failed(format!("{}: {error}", path.display())))
}
