//! `longwire bench hostile`: honest clients, whose load is watched in quiet windows and in windows under attack.

mod attack;
mod contents;
mod door;
mod guessing;
mod honest;
mod impostors;
mod insiders;
mod overload;
mod page;
mod report;
mod strangers;
mod tally;
mod victim;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use tokio::runtime::Runtime;
use tokio::task::AbortHandle;

use super::super::Fail;
use super::args::{BrokerArgs, Issuer};
use super::load::process::{self, Spent};
use attack::{Attack, Ground};
use door::Door;
use honest::{Crowd, Honest, Pace};
use overload::Overload;
use report::{Beside, Figures, Memory, Report};
use tally::{Counts, Pacer, Tally};

const HELP: &str = "\
Examples:
  longwire bench hostile
  longwire bench hostile --only tokens,handshakes --rounds 5 --json hostile.json
  longwire bench hostile --url longwires://127.0.0.1:14000 --ca longwire-dev/ca.pem \\
      --issuer longwire-dev --issuer-key longwire-dev/issuer.key --broker-pid $(pidof longwire)

Honest publishers and readers share one busy channel, and check each message: none lost, doubled or out of its order. They
are watched in windows: quiet, under attack, quiet, under another attack, and so on; figures are medians of the rounds.
Latency is looked at while the publishers go at --rate, well below what the broker manages; throughput while they go as
fast as they can, with a quiet window on either side of that under attack.

Attackers, honest clients and a broker that is started for this share one machine. What the attackers' side itself takes
of its cores the others lack, and that is no fault of the broker: it is measured, printed, and its part of all the CPU that
the three took is taken out of the ratio of throughput. The attackers' speed is bounded for the same reason (--attack-rate, --connect-rate).

The exit code is 1 where a promise is broken: an honest message lost, doubled or out of order, an honest session ended, a
stranger kept longer than ten seconds, memory that does not come back. What is late or slow is a miss that is printed.";

/// Attacks a broker that serves honest clients, and says what these notice
#[derive(Clone, Debug, ClapArgs)]
#[command(after_help = HELP)]
pub(in crate::cli) struct Args {
    /// These attacks alone, in this order; all of them unless it is said
    #[arg(long, value_delimiter = ',', value_name = "ATTACK")]
    only: Vec<Attack>,

    /// Leave out the overload: honest clients that offer five times what the broker manages
    #[arg(long)]
    no_overload: bool,

    /// Leave out the attacks beside publishers that go as fast as they can
    #[arg(long)]
    no_throughput: bool,

    /// How often each pair of windows is watched; medians are told
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// How long a window is; some attacks need more until their end is seen
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    window: Duration,

    /// How long memory may take to come back after an attack
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    settle: Duration,

    /// Honest publishers, each a user with a device of its own
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    publishers: u16,

    /// Honest readers of the busy channel
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u16).range(1..))]
    readers: u16,

    /// Messages a second that the publishers offer while latency is looked at
    #[arg(long, value_name = "MESSAGES", default_value_t = 200.0)]
    rate: f64,

    /// Bytes of each message
    #[arg(long, default_value_t = 100)]
    size: usize,

    /// Slow connections at once
    #[arg(long, default_value_t = 10_000)]
    connections: usize,

    /// Packets a second of all attackers together; one of several KiB counts as so many
    #[arg(long, value_name = "PACKETS", default_value_t = 20_000.0)]
    attack_rate: f64,

    /// Connections a second of all attackers together
    #[arg(long, value_name = "CONNECTIONS", default_value_t = 500.0)]
    connect_rate: f64,

    #[command(flatten)]
    broker: BrokerArgs,
}

/// The thread that the attackers run on, by which their CPU is known.
const ATTACKERS: &str = "attackers";
/// Until an attack has begun in earnest.
const RAMP: Duration = Duration::from_secs(1);

pub(super) fn run(mut args: Args) -> Result<(), Fail> {
    process::raise_open_files();
    let runtime = |name: &str| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(name)
            .enable_all()
            .build()
            .map_err(|error| Fail::failed(format!("cannot start: {error}")))
    };
    let (honest, attackers) = (runtime("honest")?, runtime(ATTACKERS)?);
    // Lives until everybody has gone.
    let _own = args.broker.start_if_none_is_named()?;
    let report = honest.block_on(course(&args, &attackers));
    attackers.shutdown_background();
    let report = report?;
    report.print();
    report.write(args.broker.json.as_deref())?;
    report.page(&args)?;
    match report.broken_promises() {
        0 => Ok(()),
        broken => Err(Fail::failed(format!("{broken} promises were broken"))),
    }
}

/// All windows, one after another. What needs a small and steady memory comes first.
async fn course(args: &Args, attackers: &Runtime) -> Result<Report, Fail> {
    let field = Field::new(args, attackers).await?;
    let crowd = Crowd::busy(args.publishers.into(), args.readers.into(), args.size, format!("{}-crowd", field.prefix));
    let honest = Honest::start(&args.broker.way()?, &field.issuer, &crowd).await?;
    let attacks = if args.only.is_empty() { Attack::ALL.to_vec() } else { args.only.clone() };
    let mut all: Vec<Figures> = attacks.iter().map(|attack| Figures::new(*attack)).collect();
    field.warm_up(&honest).await;
    for round in 0..args.rounds {
        for figures in &mut all {
            let beside = field.beside(&honest, figures.attack, round, Pace::Rate(args.rate)).await?;
            report::tell(figures.attack, round, "latency", &beside);
            figures.latency.push(beside);
            figures.broken.extend(honest.settle().await);
        }
    }
    if !args.no_throughput {
        for round in 0..args.rounds {
            for figures in &mut all {
                let beside = field.beside(&honest, figures.attack, round, Pace::Full).await?;
                report::tell(figures.attack, round, "throughput", &beside);
                figures.throughput.push(beside);
                figures.broken.extend(honest.settle().await);
            }
        }
    }
    let mut overload = Vec::new();
    if !args.no_overload {
        for _ in 0..args.rounds {
            overload.push(Overload::watch(args, &field, &honest).await?);
        }
    }
    let broken = honest.settle().await;
    let acked = honest.acked();
    honest.stop().await;
    Ok(Report::new(args, all, overload, acked, broken))
}

/// Where everything takes place.
struct Field<'a> {
    args: &'a Args,
    attackers: &'a Runtime,
    door: Door,
    issuer: Issuer,
    bad_tokens: Arc<[String]>,
    /// The beginning of every name, of this run alone.
    prefix: String,
}

impl<'a> Field<'a> {
    async fn new(args: &'a Args, attackers: &'a Runtime) -> Result<Self, Fail> {
        let url = args.broker.url.as_ref().ok_or_else(|| Fail::usage("which broker? give --url"))?;
        let door = Door::new(url, args.broker.way()?).await?;
        let key = args.broker.issuer_key.as_deref().ok_or_else(|| Fail::usage("whose tokens? give --issuer-key"))?;
        let key = std::fs::read(key).map_err(|error| Fail::usage(format!("{}: {error}", key.display())))?;
        let bad_tokens = strangers::bad_tokens(&args.broker.issuer, &key).map_err(Fail::failed)?.into();
        let prefix = format!("{}-{:06x}", args.broker.devices_prefix, fastrand::u32(..1 << 24));
        Ok(Self { args, attackers, door, issuer: args.broker.issuer()?, bad_tokens, prefix })
    }

    fn ground(&self, attack: Attack, round: &str) -> Ground {
        Ground {
            door: self.door.clone(),
            issuer: self.issuer.clone(),
            bad_tokens: Arc::clone(&self.bad_tokens),
            prefix: format!("{}-{}-{round}", self.prefix, attack.name()),
            busy: format!("{}-crowd/0", self.prefix),
            readers: self.args.readers.into(),
            connections: self.args.connections,
            packets: Pacer::new(self.args.attack_rate),
            connects: Pacer::new(match attack {
                // Sockets alone are cheap, and all are to be there before the first is let go.
                Attack::HalfOpen | Attack::SlowHello => self.args.connect_rate.max(self.args.connections as f64 / 4.0),
                _ => self.args.connect_rate,
            }),
            tally: Tally::default(),
        }
    }

    fn spent(&self) -> Result<Option<Spent>, Fail> {
        self.args.broker.broker_pid.map(process::spent).transpose()
    }

    /// What is reserved once and kept is not an attack's doing: connections have come and gone before the first one.
    async fn warm_up(&self, honest: &Honest) {
        honest.pace(Pace::Rate(self.args.rate));
        for attack in [Attack::HalfOpen, Attack::Handshakes, Attack::Tokens] {
            let attack = self.attackers.spawn(attack.run(self.ground(attack, "warm")));
            tokio::time::sleep(self.args.window.min(Duration::from_secs(3))).await;
            attack.abort();
        }
        honest.settle().await;
        tokio::time::sleep(RAMP).await;
    }

    /// A quiet window and one under attack.
    async fn beside(&self, honest: &Honest, attack: Attack, round: u32, pace: Pace) -> Result<Beside, Fail> {
        let args = self.args;
        honest.pace(pace);
        tokio::time::sleep(RAMP).await;
        let quiet_before = self.spent()?;
        let quiet = honest.watch(args.window).await;
        let quiet_after = self.spent()?;
        let is_paced = pace != Pace::Full;
        let acked_before = honest.acked();
        let before = self.spent()?;
        let round = format!("{}{round}", if is_paced { "l" } else { "t" });
        let ground = self.ground(attack, &round);
        let tally = ground.tally.clone();
        let attacking = self.attackers.spawn(attack.run(ground));
        let peak = Peak::of(args.broker.broker_pid);
        tokio::time::sleep(RAMP).await;
        let own = || process::spent(std::process::id()).map(|spent| spent.cpu);
        let (own_before, all_before, cpu_before) = (process::own_threads(ATTACKERS), own()?, self.spent()?);
        let sent_before = tally.counts();
        let sample = honest.watch(if is_paced { args.window.max(attack.least()) } else { args.window }).await;
        let (own_after, all_after, cpu_after) = (process::own_threads(ATTACKERS), own()?, self.spent()?);
        let counts = tally.counts();
        attacking.abort();
        // Its end is waited for: what it had open is closed then, and counts.
        drop(attacking.await);
        let peak_bytes = peak.bytes();
        let attack_sent = (counts.packets - sent_before.packets, counts.connections - sent_before.connections);
        let memory = match (is_paced, before) {
            (true, Some(before)) => {
                honest.pace(Pace::Rest);
                let stored = honest.acked() - acked_before;
                Some(self.settled(before.resident, peak_bytes, stored, &tally.counts()).await?)
            }
            _ => None,
        };
        // What goes as fast as it can becomes slower and faster again as the store builds: the window lies between two quiet ones.
        let quiet = if is_paced {
            quiet
        } else {
            tokio::time::sleep(RAMP).await;
            quiet.and(&honest.watch(args.window).await)
        };
        let cpu = |before: Option<Spent>, after: Option<Spent>| {
            before.zip(after).map(|(before, after)| after.cpu.saturating_sub(before.cpu).as_secs_f64())
        };
        Ok(Beside {
            quiet,
            sample,
            quiet_cpu_s: cpu(quiet_before, quiet_after),
            attack_cpu_s: cpu(cpu_before, cpu_after),
            attackers_cpu_s: own_after.saturating_sub(own_before).as_secs_f64(),
            clients_cpu_s: all_after.saturating_sub(all_before).as_secs_f64(),
            packets: attack_sent.0,
            connections: attack_sent.1,
            counts: tally.counts(),
            memory,
        })
    }

    /// Waits until the broker's memory has come back, or for as long as that may take.
    async fn settled(&self, before: u64, peak: u64, stored: u64, counts: &Counts) -> Result<Memory, Fail> {
        let begun = Instant::now();
        let allowed = report::allowed(before, stored, counts.made);
        loop {
            let after = self.spent()?.map_or(0, |spent| spent.resident);
            let memory =
                Memory { before, peak: peak.max(after), after, allowed, settled_s: begun.elapsed().as_secs_f64() };
            if after <= allowed || begun.elapsed() >= self.args.settle {
                return Ok(memory);
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }
}

/// The most memory that a process takes, for as long as this lives.
struct Peak {
    bytes: Arc<AtomicU64>,
    looks: AbortHandle,
}

impl Peak {
    fn of(pid: Option<u32>) -> Self {
        let bytes = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&bytes);
        let looks = tokio::spawn(async move {
            loop {
                let resident = pid.and_then(|pid| process::spent(pid).ok()).map_or(0, |spent| spent.resident);
                seen.fetch_max(resident, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Self { bytes, looks: looks.abort_handle() }
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.looks.abort();
    }
}
