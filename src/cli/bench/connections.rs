//! `longwire bench connections`: many connections at rest. The connections are held by workers, processes of this same
//! binary, since one process may have fewer files open than there are to be connections; the workers are told on stdin
//! how many to open, and answer on stdout.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::super::Fail;
use super::process;
use super::wire::{Way, Wire};
use super::{BrokerArgs, DEVICES_OF_A_USER, write_json};

/// Opens many connections that do nothing
#[derive(Clone, Debug, ClapArgs)]
pub(in crate::cli) struct Args {
    /// How many connections to have at each step
    #[arg(long, value_delimiter = ',', default_value = "1000,5000,15000")]
    steps: Vec<u64>,

    /// Connections that are being made at the same time
    #[arg(long, default_value_t = 32)]
    at_once: usize,

    /// How long to wait before the memory is read
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = humantime::parse_duration)]
    settle: Duration,

    /// Addresses to connect from, 127.0.0.1 and those after it; one has room for about 28,000 connections
    #[arg(long, default_value_t = 1)]
    sources: u8,

    /// The number of the worker's first connection
    #[arg(long, default_value_t = 0, hide = true)]
    first: u64,

    #[command(flatten)]
    broker: BrokerArgs,
}

/// Files that a process needs beside its connections.
const FILES_BESIDE: u64 = 64;
/// The most connections of one worker, so that there is work for every core.
const WORKER_CONNECTIONS_MAX: u64 = 10_000;

/// What a worker says after it has opened what it was told.
#[derive(Debug, Serialize, Deserialize)]
struct Opened {
    opened: u64,
    failed: u64,
    why: Option<String>,
    /// Of those before: how many are no longer there.
    lost: u64,
}

/// What a step came to.
#[derive(Debug, Serialize)]
struct Step {
    connections: u64,
    connects_per_second: f64,
    broker_cpu_us_per_connect: Option<f64>,
    broker_bytes_per_connection: Option<f64>,
    /// Against the step before.
    broker_bytes_per_further_connection: Option<f64>,
    kernel_tcp_bytes: Option<u64>,
}

pub(super) fn run(mut args: Args) -> Result<(), Fail> {
    // Lives until the last connection is closed.
    let _own = args.broker.start_if_none_is_named()?;
    let args = &args;
    let asked = args.steps.iter().copied().max().unwrap_or(0);
    let limit = process::raise_open_files().saturating_sub(FILES_BESIDE).max(1);
    let each = limit.min(WORKER_CONNECTIONS_MAX);
    if asked > limit {
        eprintln!("longwire: one process may have {limit} connections here: {} share the work", asked.div_ceil(each));
    }
    let spent = || args.broker.broker_pid.map(process::spent).transpose();
    let base = spent()?;
    let mut workers: Vec<Worker> = Vec::new();
    let mut steps: Vec<Step> = Vec::new();
    let mut open = 0;
    println!("connections  connects/s  broker us/connect  broker KiB each  KiB each further");
    let mut last_resident = base.map_or(0, |base| base.resident);
    for &target in &args.steps {
        let before = spent()?;
        let (began, opened_before) = (Instant::now(), open);
        while open < target {
            if workers.last().is_none_or(|worker| worker.open >= each) {
                workers.push(Worker::start(args, open)?);
            }
            let Some(worker) = workers.last_mut() else { break };
            let more = (each - worker.open).min(target - open);
            worker.open_more(more)?;
            open += more;
        }
        let seconds = began.elapsed().as_secs_f64().max(0.001);
        let connected = spent()?;
        std::thread::sleep(args.settle);
        let after = spent()?;
        let further = open - opened_before;
        let step = Step {
            connections: open,
            connects_per_second: further as f64 / seconds,
            broker_cpu_us_per_connect: before.zip(connected).map(|(before, connected)| {
                connected.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e6 / further.max(1) as f64
            }),
            broker_bytes_per_connection: base
                .zip(after)
                .map(|(base, after)| after.resident.saturating_sub(base.resident) as f64 / open.max(1) as f64),
            broker_bytes_per_further_connection: after
                .map(|after| after.resident.saturating_sub(last_resident) as f64 / further.max(1) as f64),
            kernel_tcp_bytes: process::kernel_tcp_bytes(),
        };
        last_resident = after.map_or(0, |after| after.resident);
        print(&step);
        steps.push(step);
    }
    for worker in &mut workers {
        let alive = worker.ask(0)?;
        if alive.lost > 0 {
            return Err(Fail::failed(format!("{} connections did not last", alive.lost)));
        }
    }
    write_json(args.broker.json.as_deref(), &steps)
}

fn print(step: &Step) {
    let kib = |bytes: Option<f64>| bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{:.1}", bytes / 1024.0));
    println!(
        "{:>11}  {:>10.0}  {:>17}  {:>15}  {:>16}",
        step.connections,
        step.connects_per_second,
        step.broker_cpu_us_per_connect.map_or_else(|| "-".to_owned(), |us| format!("{us:.0}")),
        kib(step.broker_bytes_per_connection),
        kib(step.broker_bytes_per_further_connection),
    );
}

/// A process that holds connections; it ends with its stdin.
struct Worker {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    open: u64,
}

impl Worker {
    fn start(args: &Args, first: u64) -> Result<Self, Fail> {
        let broker = &args.broker;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench", "connections-worker"]);
        command.args(["--first", &first.to_string(), "--at-once", &args.at_once.to_string()]);
        command.args(["--sources", &args.sources.to_string()]);
        command.args(["--issuer", &broker.issuer, "--devices-prefix", &broker.devices_prefix]);
        if let (Some(url), Some(key)) = (&broker.url, &broker.issuer_key) {
            command.arg("--url").arg(url.to_string()).arg("--issuer-key").arg(key);
        }
        if let Some(ca) = &broker.ca {
            command.arg("--ca").arg(ca);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let orders = child.stdin.take();
        let answers = child.stdout.take().ok_or_else(|| Fail::failed("a worker without a stdout"))?;
        Ok(Self { child, orders, answers: BufReader::new(answers), open: 0 })
    }

    fn open_more(&mut self, count: u64) -> Result<(), Fail> {
        let opened = self.ask(count)?;
        self.open += opened.opened;
        if opened.failed > 0 {
            let why = opened.why.unwrap_or_default();
            return Err(Fail::failed(format!("{} of {count} connections failed: {why}", opened.failed)));
        }
        Ok(())
    }

    fn ask(&mut self, count: u64) -> Result<Opened, Fail> {
        if let Some(orders) = &mut self.orders {
            writeln!(orders, "{count}")?;
            orders.flush()?;
        }
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        serde_json::from_str(&line).map_err(|_| Fail::failed("a worker ended before its work"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.orders = None;
        // It ends by itself when its orders do; what it says then is of no interest.
        drop(self.child.wait());
    }
}

/// The worker's side: opens what it is told on stdin, holds it, answers on stdout.
pub(super) fn work(args: &Args) -> Result<(), Fail> {
    process::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Fail::failed(format!("cannot start: {error}")))?;
    let way = args.broker.way()?;
    let mut held: JoinSet<()> = JoinSet::new();
    let mut next = args.first;
    for line in std::io::stdin().lock().lines() {
        let count: u64 = line?.trim().parse().map_err(|_| Fail::usage("a worker is told numbers"))?;
        let answer = runtime.block_on(open(args, &way, next, count, &mut held))?;
        next += count;
        println!("{}", serde_json::to_string(&answer).map_err(|error| Fail::failed(error.to_string()))?);
    }
    // The broker sees the sockets go, as it would those of clients that lost their network.
    runtime.shutdown_background();
    Ok(())
}

async fn open(args: &Args, way: &Way, first: u64, count: u64, held: &mut JoinSet<()>) -> Result<Opened, Fail> {
    let issuer = args.broker.issuer()?;
    let mut lost = 0;
    while held.try_join_next().is_some() {
        lost += 1;
    }
    let gate = Arc::new(Semaphore::new(args.at_once.max(1)));
    let mut connecting = JoinSet::new();
    for number in first..first + count {
        // A user has a few devices, as people do.
        let user = format!("{}-c{}", args.broker.devices_prefix, number / DEVICES_OF_A_USER as u64);
        let device = format!("d{}", number % DEVICES_OF_A_USER as u64);
        let (token, way, gate) = (issuer.token(&user)?, way.clone(), Arc::clone(&gate));
        let from = source(args.sources, number);
        connecting.spawn(async move {
            let _turn = gate.acquire_owned().await;
            Wire::connect(&way, from, token, device).await
        });
    }
    let mut answer = Opened { opened: 0, failed: 0, why: None, lost };
    while let Some(outcome) = connecting.join_next().await {
        match outcome {
            Ok(Ok(wire)) => {
                answer.opened += 1;
                held.spawn(rest(wire));
            }
            Ok(Err(error)) => {
                answer.failed += 1;
                answer.why.get_or_insert_with(|| error.to_string());
            }
            Err(error) => {
                answer.failed += 1;
                answer.why.get_or_insert_with(|| error.to_string());
            }
        }
    }
    Ok(answer)
}

fn source(sources: u8, number: u64) -> Option<IpAddr> {
    (sources > 1).then(|| {
        let last = 1 + u8::try_from(number % u64::from(sources)).unwrap_or(0);
        IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))
    })
}

/// Holds a connection: heartbeats and nothing else.
async fn rest(mut wire: Wire) {
    while wire.step().await.is_ok() {
        while let Ok(Some(_)) = wire.next_event() {}
    }
}
