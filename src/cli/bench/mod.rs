//! `longwire bench`: load on a broker, and what it costs.

mod connections;
mod own;
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
use own::OwnBroker;
use wire::Way;

const EXAMPLES: &str = "\
Examples:
  longwire bench publish
  longwire bench publish --connections 256 --window 1 --duration 20s --json publish.json
  longwire bench connections --steps 1000,5000,15000
  longwire bench publish --url longwires://127.0.0.1:14000 --ca longwire-dev/ca.pem \\
      --issuer longwire-dev --issuer-key longwire-dev/issuer.key --broker-pid $(pidof longwire)

Without --url a broker is started for it, with a store in a temporary folder. The tokens are made here, so for another
one its issuer's private key is needed: this is for a broker of one's own.";

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
        Command::Connections(args) => connections::run(args),
        Command::ConnectionsWorker(args) => connections::work(&args),
    }
}

/// What every benchmark asks for.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Broker")]
struct BrokerArgs {
    /// The broker: longwires://HOST[:PORT] (TLS), or longwire://HOST[:PORT] (plain TCP)
    /// [default: one that is started for it]
    #[arg(long, env = "LONGWIRE_URL", requires = "issuer_key")]
    url: Option<Address>,

    /// The certificates to trust, as a PEM file
    #[arg(long, env = "LONGWIRE_CA", value_name = "FILE")]
    ca: Option<PathBuf>,

    /// The private key of an issuer that the broker believes, as `longwire token key` makes it
    #[arg(long, env = "LONGWIRE_ISSUER_KEY", value_name = "FILE")]
    issuer_key: Option<PathBuf>,

    /// The issuer's name, as in the broker's configuration
    #[arg(long, env = "LONGWIRE_ISSUER", default_value = "longwire")]
    issuer: String,

    /// The beginning of the names of users, devices and channels
    #[arg(long, default_value = "bench", value_name = "PREFIX")]
    devices_prefix: String,

    /// The broker's process on this machine, to say what it spent
    #[arg(long, value_name = "PID", requires = "url")]
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
    /// Starts a broker where none is named, and names it.
    fn start_if_none_is_named(&mut self) -> Result<Option<OwnBroker>, Fail> {
        if self.url.is_some() {
            return Ok(None);
        }
        let own = OwnBroker::start()?;
        let url = format!("longwires://{}", own.address());
        self.url = Some(url.parse().map_err(|error| Fail::failed(format!("{url}: {error}")))?);
        self.ca = Some(own.ca());
        self.issuer_key = Some(own.issuer_key());
        own.issuer().clone_into(&mut self.issuer);
        self.broker_pid = Some(own.pid());
        Ok(Some(own))
    }

    /// How the broker is reached.
    fn way(&self) -> Result<Way, Fail> {
        let url = self.url.as_ref().ok_or_else(|| Fail::usage("which broker? give --url"))?;
        Way::new(url, &self.trust()?)
    }

    /// Whom to believe to be the broker.
    fn trust(&self) -> Result<Trust, Fail> {
        match &self.ca {
            Some(path) => Trust::from_file(path).map_err(|error| Fail::usage(error.to_string())),
            None => Ok(Trust::Nobody),
        }
    }

    /// Makes tokens that allow all channels.
    fn issuer(&self) -> Result<Issuer, Fail> {
        let path = self.issuer_key.as_ref().ok_or_else(|| Fail::usage("whose tokens? give --issuer-key"))?;
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
