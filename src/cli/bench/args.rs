//! What benchmarks ask for: a broker, a load, a peer to compare with, and where the figures go.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args as ClapArgs;
use longwire_client::{Address, Trust};

use super::super::Fail;
use super::cost;
use super::load::own::{Listener, OwnBroker, Reads};
use super::load::party::Broker;
use super::load::syscalls::Syscalls;
use super::load::way::Way;
use super::load::{crew, process};
use super::report::{Report, Run};
use crate::auth::{self, AUDIENCE, Claims};

/// What every benchmark asks for.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Broker")]
pub(super) struct BrokerArgs {
    /// The broker: longwires://HOST[:PORT] (TLS), or longwire://HOST[:PORT] (plain TCP)
    /// [default: one that is started for it]
    #[arg(long, env = "LONGWIRE_URL", requires = "issuer_key")]
    pub(super) url: Option<Address>,

    /// The certificates to trust, as a PEM file
    #[arg(long, env = "LONGWIRE_CA", value_name = "FILE")]
    pub(super) ca: Option<PathBuf>,

    /// The private key of an issuer that the broker believes, as `longwire token key` makes it
    #[arg(long, env = "LONGWIRE_ISSUER_KEY", value_name = "FILE")]
    pub(super) issuer_key: Option<PathBuf>,

    /// The issuer's name, as in the broker's configuration
    #[arg(long, env = "LONGWIRE_ISSUER", default_value = "longwire")]
    pub(super) issuer: String,

    /// The beginning of the names of users, devices and channels
    #[arg(long, default_value = "bench", value_name = "PREFIX")]
    pub(super) devices_prefix: String,

    /// The broker's process on this machine, to say what it spent
    #[arg(long, value_name = "PID", requires = "url")]
    pub(super) broker_pid: Option<u32>,

    /// Count the broker's calls into the kernel as well, each message, connect or heartbeat, with `perf`, which has to be
    /// there and allowed to; costs some CPU
    #[arg(long)]
    pub(super) syscalls: bool,

    /// Without TLS, where a broker is started for it
    #[arg(long, conflicts_with = "url")]
    pub(super) plain: bool,

    /// Write the figures to this file, as JSON
    #[arg(long, value_name = "FILE", help_heading = "Figures")]
    pub(super) json: Option<PathBuf>,

    /// Write the figures to this file, as a page with plots
    #[arg(long, value_name = "FILE", help_heading = "Figures")]
    pub(super) html: Option<PathBuf>,

    /// Whether a broker that is started for this looks at as much for one user as that asks for.
    #[arg(skip)]
    reads: Reads,
}

/// What is sent, how fast and how long.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Load")]
pub(super) struct LoadArgs {
    /// Bytes of each message
    #[arg(long, default_value_t = 200)]
    pub(super) size: usize,

    /// How long to publish
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(super) duration: Duration,

    /// How many messages to publish in all, instead of a time
    #[arg(long, conflicts_with = "duration")]
    pub(super) count: Option<u64>,

    /// Publish so many messages a second in all, whether acks come or not (within the window); a latency counts from
    /// the moment when the message was due [default: as fast as the window allows]
    #[arg(long, value_name = "MESSAGES")]
    pub(super) rate: Option<f64>,

    #[command(flatten)]
    pub(super) run: RunArgs,
}

/// How it is run.
#[derive(Clone, Copy, Debug, ClapArgs)]
pub(super) struct RunArgs {
    /// Threads of this load generator
    #[arg(long, default_value_t = 1)]
    pub(super) threads: usize,

    /// How often to run it; the table shows the median and the spread
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) repeat: u32,
}

impl LoadArgs {
    /// In words, for a report.
    pub(super) fn pace(&self) -> String {
        self.rate.map_or_else(|| "closed loop".to_owned(), |rate| format!("{rate} messages/s offered"))
    }
}

/// A number that is not 0.
pub(super) fn some(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| format!("{text:?} is not a number from 1 on"))
}

/// Another broker for the same work.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Peer")]
pub(super) struct PeerArgs {
    /// Compare with a broker of MQTT 3.1.1, in turns: mqtt://HOST:PORT, or mqtts://HOST:PORT with TLS, whose certificate
    /// is not checked
    #[arg(long, value_name = "URL")]
    peer: Option<String>,

    /// The peer's process on this machine, to say what it spent
    #[arg(long, value_name = "PID", requires = "peer")]
    peer_pid: Option<u32>,
}

/// A broker to measure, for one run.
pub(super) struct Subject {
    pub(super) name: &'static str,
    pub(super) broker: Broker,
    pub(super) pid: Option<u32>,
    /// Whether its calls into the kernel are counted.
    pub(super) syscalls: bool,
    /// Where it was started for this.
    pub(super) own: Option<OwnBroker>,
}

impl Subject {
    /// Counts the broker's calls into the kernel from now on, where that is asked for.
    pub(super) fn count_syscalls(&self) -> Result<Option<Syscalls>, Fail> {
        self.pid.filter(|_| self.syscalls).map(Syscalls::count).transpose()
    }
}

/// Devices of one benchmark user; the broker allows 20.
pub(super) const DEVICES_OF_A_USER: usize = 20;
/// How long the tokens of a benchmark hold.
const TOKEN_LIFE: Duration = Duration::from_secs(86_400);

impl BrokerArgs {
    /// The same, for a load that is a single user's reads.
    pub(super) fn reading_without_bound(&self) -> Self {
        Self { reads: Reads::Unbounded, ..self.clone() }
    }

    /// Starts a broker where none is named, and names it.
    pub(super) fn start_if_none_is_named(&mut self) -> Result<Option<OwnBroker>, Fail> {
        if self.url.is_some() {
            return Ok(None);
        }
        let own = OwnBroker::start(if self.plain { Listener::Plain } else { Listener::Tls }, self.reads)?;
        let url = format!("{}://{}", if self.plain { "longwire" } else { "longwires" }, own.address());
        self.url = Some(url.parse().map_err(|error| Fail::failed(format!("{url}: {error}")))?);
        self.ca = Some(own.ca());
        self.issuer_key = Some(own.issuer_key());
        own.issuer().clone_into(&mut self.issuer);
        self.broker_pid = Some(own.pid());
        Ok(Some(own))
    }

    /// How the broker is reached.
    pub(super) fn way(&self) -> Result<Way, Fail> {
        let url = self.url.as_ref().ok_or_else(|| Fail::usage("which broker? give --url"))?;
        Way::new(url, &self.trust()?)
    }

    /// Whom to believe to be the broker.
    pub(super) fn trust(&self) -> Result<Trust, Fail> {
        match &self.ca {
            Some(path) => Trust::from_file(path).map_err(|error| Fail::usage(error.to_string())),
            None => Ok(Trust::Nobody),
        }
    }

    /// Makes tokens that allow all channels.
    pub(super) fn issuer(&self) -> Result<Issuer, Fail> {
        let path = self.issuer_key.as_ref().ok_or_else(|| Fail::usage("whose tokens? give --issuer-key"))?;
        let key = std::fs::read(path).map_err(|error| Fail::usage(format!("{}: {error}", path.display())))?;
        Ok(Issuer::new(key, &self.issuer))
    }

    /// This broker, for one run: started for it where none is named.
    pub(super) fn subject(&self) -> Result<Subject, Fail> {
        let mut args = self.clone();
        let own = args.start_if_none_is_named()?;
        let broker = Broker::Longwire { way: args.way()?, issuer: args.issuer()?, heartbeat_ms: 0 };
        Ok(Subject { name: "longwire", broker, pid: args.broker_pid, syscalls: self.syscalls, own })
    }

    /// Has each broker measured as often as asked, in turns, each run on a broker of its own where none is named; then
    /// says what came of it.
    pub(super) fn compare(
        &self,
        run: RunArgs,
        peer: Option<&PeerArgs>,
        mut report: Report,
        measure: impl AsyncFn(&Subject) -> Result<Run, Fail>,
    ) -> Result<(), Fail> {
        process::raise_open_files();
        let runtime = crew::runtime(run.threads)?;
        for _ in 0..run.repeat {
            // Asked first: one that cannot be measured is told before anything is.
            let peer = peer.map(PeerArgs::subject).transpose()?.flatten();
            for mut subject in [self.subject()?].into_iter().chain(peer) {
                let mut run = runtime.block_on(measure(&subject))?;
                cost::stop(subject.own.take(), &mut run);
                report.add(run);
            }
        }
        report.publish(self.json.as_deref(), self.html.as_deref())
    }
}

impl PeerArgs {
    pub(super) fn url(&self) -> Option<&str> {
        self.peer.as_deref()
    }

    #[cfg(feature = "mqtt-peer")]
    pub(super) fn subject(&self) -> Result<Option<Subject>, Fail> {
        let Some(url) = &self.peer else { return Ok(None) };
        let broker =
            Broker::Mqtt { way: super::load::mqtt::way(url)?, keep_alive_seconds: super::load::mqtt::KEEP_ALIVE };
        Ok(Some(Subject { name: "mqtt", broker, pid: self.peer_pid, syscalls: false, own: None }))
    }

    #[cfg(not(feature = "mqtt-peer"))]
    pub(super) fn subject(&self) -> Result<Option<Subject>, Fail> {
        match (&self.peer, self.peer_pid) {
            (Some(url), _) => Err(Fail::usage(format!(
                "--peer {url}: this binary cannot speak MQTT; build it with `cargo build --release --features mqtt-peer`"
            ))),
            (None, _) => Ok(None),
        }
    }
}

/// Makes tokens.
#[derive(Clone)]
pub(in crate::cli) struct Issuer {
    key: Arc<[u8]>,
    name: Arc<str>,
    now: u64,
}

impl Issuer {
    /// One of this name, with its private key in PEM.
    pub(in crate::cli) fn new(key: Vec<u8>, name: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        Self { key: key.into(), name: name.into(), now }
    }

    pub(in crate::cli) fn token(&self, user: &str) -> Result<String, Fail> {
        self.sign(&self.claims(user))
    }

    /// What a token says of a user: all channels, on any device, for a day.
    pub(super) fn claims(&self, user: &str) -> Claims {
        Claims {
            iss: self.name.as_ref().to_owned(),
            sub: user.to_owned(),
            aud: AUDIENCE.to_owned(),
            exp: self.now + TOKEN_LIFE.as_secs(),
            iat: self.now,
            // One token for each user and run: who returns brings the one that it had.
            jti: format!("{user}@{}", self.now),
            device: None,
            publish: vec!["**".to_owned()],
            read: vec!["**".to_owned()],
            moderate: Vec::new(),
            admin: false,
            generation: None,
        }
    }

    pub(super) fn sign(&self, claims: &Claims) -> Result<String, Fail> {
        auth::issue(claims, &self.key).map_err(Fail::failed)
    }
}
