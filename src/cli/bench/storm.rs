//! `longwire bench storm`: everyone is cut at once and returns at once, while a few go on publishing.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use hdrhistogram::Histogram;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use super::super::Fail;
use super::args::Subject;
use super::load::crew::{self, Counter};
use super::load::party::{Broker, Party, Place};
use super::load::process;
use super::load::sender::{Outgoing, Pace, WINDOW};
use super::load::stamp::Stamp;
use super::load::syscalls::Syscalls;
use super::load::way::source;
use super::load::wire::WireError;
use super::report::{Report, Run, histogram};
use super::{BrokerArgs, RunArgs};

/// Everyone is cut and returns at once
#[derive(Clone, Debug, ClapArgs)]
pub(in crate::cli) struct Args {
    /// How many connections are cut
    #[arg(long, default_value_t = 5000, value_parser = super::args::some)]
    connections: usize,

    /// How many stay and publish
    #[arg(long, default_value_t = 10, value_parser = super::args::some)]
    publishers: usize,

    /// What they publish in all, messages a second
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,

    /// How long to measure before everyone is cut
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    quiet: Duration,

    /// The longest first wait of a client before it returns: each waits a random part of it
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    jitter: Duration,

    /// Use tickets of TLS sessions before
    #[arg(long)]
    resume: bool,

    /// Addresses that those who are cut come from, 127.0.0.1 and those after it: each has a part of the line for handshakes
    #[arg(long, default_value_t = 1)]
    sources: u8,

    #[command(flatten)]
    run: RunArgs,

    #[command(flatten)]
    broker: BrokerArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Fail> {
    let Args { connections, publishers, rate, jitter, sources, .. } = args;
    let jitter = humantime::format_duration(*jitter);
    let setting = format!(
        "{connections} cut, back within {jitter}, from {sources} addresses; {publishers} publish {rate} messages/s meanwhile"
    );
    args.broker.compare(args.run, None, Report::new("storm", setting), async |subject| measure(args, subject).await)
}

async fn measure(args: &Args, subject: &Subject) -> Result<Run, Fail> {
    let spent = || subject.pid.map(process::spent).transpose();
    let prefix = &args.broker.devices_prefix;
    let broker = subject.broker.clone().with_tickets(args.resume);
    let mut run = Run::new(subject.name);
    // Those who storm stand behind those who publish, as if on machines of their own: their half of the handshakes is no
    // part of what an ack takes.
    let runtime = crew::runtime_behind_others()?;
    let crowd = runtime.handle().clone();
    let _until_the_end = Crowd(Some(runtime));
    // What the handshakes alone cost: everyone connects, as many at a time as keeps the broker busy.
    let (before, syscalls) = (spent()?, subject.count_syscalls()?);
    let began = Instant::now();
    let connected = Arc::new(Counter::default());
    let connects = (0..args.connections).map(|number| {
        let (broker, user, connected) = (broker.clone(), format!("{prefix}-s{number}"), Arc::clone(&connected));
        let from = source(args.sources, number as u64);
        async move {
            let party = broker.connect(&user, from).await?;
            connected.add(1);
            Ok(party)
        }
    });
    let held = crowd.spawn(crew::prepare(connects.collect::<Vec<_>>()));
    let (held, _) = connected.while_doing("connected", held).await;
    let held = held.map_err(|error| Fail::failed(error.to_string()))??;
    let ramp = began.elapsed();
    let after = spent()?;
    let each = args.connections as f64;
    if let Some(syscalls) = syscalls {
        let each = syscalls.stop()? as f64 / each;
        run.figure("ramp_syscalls_per_connect", "first connects: broker's calls into the kernel each", each);
    }
    if let Some((before, after)) = before.zip(after) {
        let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
        run.figure("ramp_cpu_us_per_connect", "first connects: broker CPU each, us", cpu * 1e6 / each);
    }
    run.figure("ramp_seconds", "first connects, s", ramp.as_secs_f64());

    let publishers = crew::prepare((0..args.publishers).map(|number| {
        let (broker, user) = (broker.clone(), format!("{prefix}-p{number}"));
        async move {
            let mut party = broker.connect(&user, None).await?;
            let place = party.open_channel(&format!("storm/{number}")).await?;
            Ok((party, place))
        }
    }))
    .await?;
    let stop = Arc::new(AtomicBool::new(false));
    let (in_storm, storm) = watch::channel(false);
    let publishers = publishers.into_iter().enumerate().map(|(number, (party, place))| {
        let pace = Pace::of(Some(args.rate), number, args.publishers);
        publish(party, place, pace, storm.clone(), Arc::clone(&stop))
    });
    let publishing = tokio::spawn(crew::work(publishers.collect::<Vec<_>>()));
    let (cut, first_cut) = watch::channel(false);
    let (live, mut lives) = mpsc::unbounded_channel();
    for (number, party) in held.into_iter().enumerate() {
        let (broker, user) = (broker.clone(), (format!("{prefix}-s{number}"), source(args.sources, number as u64)));
        let wait = args.jitter.mul_f64(fastrand::f64());
        crowd.spawn(hold(party, broker, user, wait, first_cut.clone(), live.clone()));
    }
    tokio::time::sleep(args.quiet).await;

    let (before, syscalls) = (spent()?, subject.count_syscalls()?);
    // Everyone hears of either as long as this run goes on.
    in_storm.send_replace(true);
    let began = Instant::now();
    cut.send_replace(true);
    let mut back = histogram();
    let mut tries = 0;
    let returned = Counter::default();
    let returns = async {
        for _ in 0..args.connections {
            let Some((tried, took)) = lives.recv().await else { break };
            tries += tried;
            back.saturating_record(u64::try_from(Duration::as_micros(&took)).unwrap_or(u64::MAX).max(1));
            returned.add(1);
        }
    };
    let ((), points) = returned.while_doing("returned", returns).await;
    let storm = began.elapsed();
    let after = spent()?;
    let syscalls = syscalls.map(Syscalls::stop).transpose()?;
    in_storm.send_replace(false);
    stop.store(true, Ordering::Relaxed);
    let outcomes = publishing.await.map_err(|error| Fail::failed(error.to_string()))??;

    run.figure("storm_seconds", "until all were back, s", storm.as_secs_f64());
    run.figure("storm_ratio", "of the time of the first connects", storm.as_secs_f64() / ramp.as_secs_f64());
    run.figure("tries_per_connection", "tries each", f64::from(tries) / each);
    if let Some((before, after)) = before.zip(after) {
        let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
        run.figure("storm_cpu_us_per_connect", "in the storm: broker CPU each, us", cpu * 1e6 / each);
        run.figure("broker_resident_mib", "broker memory after it, MiB", after.resident as f64 / f64::from(1 << 20));
    }
    if let Some(syscalls) = syscalls {
        let each = syscalls as f64 / each;
        run.figure("storm_syscalls_per_connect", "in the storm: broker's calls into the kernel each", each);
    }
    let (mut quiet_acks, mut storm_acks) = (histogram(), histogram());
    for (quiet, storm) in outcomes {
        let added = quiet_acks.add(&quiet).and_then(|()| storm_acks.add(&storm));
        added.map_err(|error| Fail::failed(error.to_string()))?;
    }
    run.latency("cut to connected", &back);
    run.latency("publish to ack before", &quiet_acks);
    run.latency("publish to ack meanwhile", &storm_acks);
    run.rate("returns", &points);
    Ok(run)
}

/// Where those who storm live.
struct Crowd(Option<Runtime>);

impl Drop for Crowd {
    fn drop(&mut self) {
        // A runtime cannot be waited for inside another.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Holds a connection until everyone is cut, returns, and holds it until the run ends.
async fn hold(
    mut party: Party,
    broker: Broker,
    (user, from): (String, Option<IpAddr>),
    wait: Duration,
    mut cut: watch::Receiver<bool>,
    live: mpsc::UnboundedSender<(u32, Duration)>,
) {
    tokio::select! {
        // It is gone already: that is one that returns.
        _ended = party.rest() => {}
        changed = cut.changed() => if changed.is_err() { return },
    }
    drop(party);
    let began = Instant::now();
    tokio::time::sleep(wait).await;
    let mut backoff = Duration::from_millis(100);
    for tries in 1.. {
        match broker.connect(&user, from).await {
            Ok(mut party) => {
                let _run_is_over = live.send((tries, began.elapsed()));
                // Until the run ends, or this connection does.
                tokio::select! {
                    _ended = party.rest() => {}
                    _over = live.closed() => {}
                }
                return;
            }
            Err(error) => {
                let told = match &error {
                    WireError::Refused(refusal) => Duration::from_millis(refusal.retry_after_ms.into()),
                    _ => Duration::ZERO,
                };
                tokio::time::sleep(told + backoff.mul_f64(fastrand::f64())).await;
                backoff = (backoff * 2).min(Duration::from_secs(5));
            }
        }
    }
}

/// Publishes at a rate until it is told to stop; how long acks took while it was quiet, and in the storm.
async fn publish(
    mut party: Party,
    place: Place,
    mut pace: Pace,
    storm: watch::Receiver<bool>,
    stop: Arc<AtomicBool>,
) -> Result<(Histogram<u64>, Histogram<u64>), WireError> {
    let mut outgoing = Outgoing::new(WINDOW);
    let (mut quiet, mut stormy) = (histogram(), histogram());
    let mut sent = 0;
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        let mut wake = outgoing.repeat(&mut party);
        while !stopping && outgoing.has_room(&party, Stamp::BYTES) {
            match pace.next() {
                Ok(due) => {
                    sent += 1;
                    outgoing.send(&mut party, &place, Stamp::new(0, sent, due).content(200), due);
                }
                Err(at) => {
                    wake = wake.into_iter().chain([at]).min();
                    break;
                }
            }
        }
        if stopping && outgoing.is_empty() {
            party.close().await;
            return Ok((quiet, stormy));
        }
        party.step(wake).await?;
        party.hear(|heard| {
            if let Some(acked) = outgoing.hear(&heard) {
                let took = if *storm.borrow() { &mut stormy } else { &mut quiet };
                took.saturating_record(acked.micros());
            }
            Ok(())
        })?;
    }
}
