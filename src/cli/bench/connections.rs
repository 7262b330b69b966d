//! `longwire bench connections`: many connections that do nothing, held by as many processes as the limit on open files
//! asks for.

mod memory;
mod worker;

use std::time::{Duration, Instant};

use clap::{Args as ClapArgs, ValueEnum};

use super::super::Fail;
use super::args::{DEVICES_OF_A_USER, Subject};
use super::cost;
use super::load::crew;
use super::load::party::Broker;
use super::load::process::{self, Spent};
use super::load::syscalls::Syscalls;
use super::report::{Report, Run};
use super::{BrokerArgs, PeerArgs};
use worker::Worker;
pub(super) use worker::work;

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

    /// After the last step: how long to watch what the broker spends on connections at rest
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    idle: Duration,

    /// The time between two heartbeats of a connection
    #[arg(long, value_name = "TIME", default_value = "55s", value_parser = humantime::parse_duration)]
    heartbeat: Duration,

    /// How many channels each connection watches; of a peer, how many topics it subscribes to
    #[arg(long, default_value_t = 0)]
    subscriptions: u64,

    /// How many devices a user has, each a connection: all of them are told of each new one
    #[arg(long, default_value_t = DEVICES_OF_A_USER as u64, value_parser = clap::value_parser!(u64).range(1..=DEVICES_OF_A_USER as u64))]
    devices: u64,

    /// After the last step: cut all and connect the same devices once more, with the same tokens
    #[arg(long)]
    again: bool,

    /// In how many groups each user is
    #[arg(long, default_value_t = 0)]
    conversations: u64,

    /// What carries the connections; in memory, broker and clients are one process, and no limit on files is met
    #[arg(long, value_enum, default_value = "socket")]
    transport: Transport,

    /// Use tickets of TLS sessions before; else each handshake is a full one
    #[arg(long)]
    resume: bool,

    /// Addresses to connect from, 127.0.0.1 and those after it; one has room for about 28,000 connections
    #[arg(long, default_value_t = 1)]
    sources: u8,

    /// The number of the worker's first connection
    #[arg(long, default_value_t = 0, hide = true)]
    first: u64,

    #[command(flatten)]
    broker: BrokerArgs,

    #[command(flatten)]
    peer: PeerArgs,
}

/// What carries connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Transport {
    /// TCP
    Socket,
    /// Byte streams of this process
    Memory,
}

/// Files that a process needs beside its connections.
const FILES_BESIDE: u64 = 64;
/// The most connections of one worker, so that there is work for every core.
const WORKER_CONNECTIONS_MAX: u64 = 10_000;

pub(super) fn run(args: Args) -> Result<(), Fail> {
    let handshakes = if args.resume { "tickets used" } else { "full handshakes" };
    let setting =
        format!("{handshakes}, {} at once, heartbeat {}", args.at_once, humantime::format_duration(args.heartbeat));
    let mut report = Report::new("connections", setting);
    if args.transport == Transport::Memory {
        if args.broker.url.is_some() || args.peer.url().is_some() {
            return Err(Fail::usage("--transport memory: broker and clients are this process: no --url, no --peer"));
        }
        if args.broker.syscalls {
            return Err(Fail::usage("--transport memory: no call into the kernel carries a byte there: no --syscalls"));
        }
        if args.subscriptions > 0 || args.conversations > 0 || args.again {
            return Err(Fail::usage(
                "--transport memory: those clients only rest: no --subscriptions, no --conversations, no --again",
            ));
        }
        report.note(
            "in memory: what the process grew by since clients and streams had their memory, so the broker's alone",
        );
        report.note("the kernel's share is that of real sockets that do nothing, measured apart and added");
        memory::run(&args, &mut report)?;
        return report.publish(args.broker.json.as_deref(), args.broker.html.as_deref());
    }
    over_sockets(args, report)
}

fn over_sockets(mut args: Args, mut report: Report) -> Result<(), Fail> {
    let limit = process::raise_open_files().saturating_sub(FILES_BESIDE).max(1);
    let asked = args.steps.iter().copied().max().unwrap_or(0);
    let each = limit.min(WORKER_CONNECTIONS_MAX);
    if asked > limit {
        eprintln!("longwire: one process may have {limit} connections here: {} share the work", asked.div_ceil(each));
    }
    report.note("memory is what the broker's resident memory grew by; the kernel's stands apart: slabs for each end, and buffers");
    // A worker is told where the broker is, not that it should start one.
    let own = args.broker.start_if_none_is_named()?;
    let mut subject = args.broker.subject()?;
    subject.own = own;
    ramp(&args, each, subject, false, &mut report)?;
    if args.conversations > 0 && args.peer.url().is_some() {
        return Err(Fail::usage("--conversations: only Longwire has groups; give --subscriptions to compare"));
    }
    if let Some(subject) = args.peer.subject()? {
        ramp(&args, each, subject, true, &mut report)?;
    }
    report.publish(args.broker.json.as_deref(), args.broker.html.as_deref())
}

/// Opens them step by step.
fn ramp(args: &Args, each: u64, mut subject: Subject, peer: bool, report: &mut Report) -> Result<(), Fail> {
    let spent = || subject.pid.map(process::spent).transpose();
    let (base, slabs) = (spent()?, process::slab_bytes());
    let mut workers: Vec<Worker> = Vec::new();
    let mut runs = Vec::new();
    let (mut open, mut resident) = (0, base.map_or(0, |base| base.resident));
    for &target in &args.steps {
        let (before, began, opened_before) = (spent()?, Instant::now(), open);
        let syscalls = subject.count_syscalls()?;
        let mut resumed = 0;
        let line = crew::live("connected");
        while open < target {
            if workers.last().is_none_or(|worker| worker.open() >= each) {
                workers.push(Worker::start(args, open, peer)?);
            }
            let Some(worker) = workers.last_mut() else { break };
            let more = (each - worker.open()).min(target - open);
            let others = open - worker.open();
            resumed += worker.open_more(more, |opened| line.set_position(others + opened))?;
            open += more;
        }
        line.finish_and_clear();
        let seconds = began.elapsed().as_secs_f64().max(0.001);
        let connected = spent()?;
        let syscalls = syscalls.map(Syscalls::stop).transpose()?;
        std::thread::sleep(args.settle);
        let after = spent()?;
        let further = (open - opened_before).max(1) as f64;
        let mut run = Run::new(format!("{} {open}", subject.name));
        run.figure("connections", "connections", open as f64);
        run.figure("connects_per_second", "connects/s", further / seconds);
        run.figure("resumed", "of these with a ticket", resumed as f64);
        if let Some((before, connected)) = before.zip(connected) {
            let cpu = connected.cpu.saturating_sub(before.cpu).as_secs_f64();
            run.figure("broker_cpu_us_per_connect", "broker CPU a connect, us", cpu * 1e6 / further);
        }
        if let Some(syscalls) = syscalls {
            let each = syscalls as f64 / further;
            run.figure("broker_syscalls_per_connect", "broker's calls into the kernel a connect", each);
        }
        if let Some((base, after)) = base.zip(after) {
            let kib = |from: u64, connections: f64| after.resident.saturating_sub(from) as f64 / 1024.0 / connections;
            run.figure("broker_kib_per_connection", "broker KiB a connection", kib(base.resident, open as f64));
            run.figure("broker_kib_per_further_connection", "KiB a further connection", kib(resident, further));
            resident = after.resident;
        }
        if let Some((base, now)) = slabs.zip(process::slab_bytes()) {
            let each = now.saturating_sub(base) as f64 / 1024.0 / (2 * open).max(1) as f64;
            run.figure("kernel_kib_per_socket", "KERNEL's slabs an end, KiB", each);
        }
        if let Some(bytes) = process::kernel_tcp_bytes() {
            run.figure("kernel_tcp_mib", "kernel's TCP buffers, MiB", bytes as f64 / f64::from(1 << 20));
        }
        runs.push(run);
    }
    if let (Some(last), false) = (runs.last_mut(), args.idle.is_zero()) {
        let (before, syscalls) = (spent()?, subject.count_syscalls()?);
        std::thread::sleep(args.idle);
        let after = spent()?;
        let syscalls = syscalls.map(Syscalls::stop).transpose()?;
        let heartbeat = workers.first().map_or(args.heartbeat, Worker::heartbeat);
        if heartbeat != args.heartbeat {
            let heartbeat = humantime::format_duration(heartbeat);
            eprintln!("longwire: the broker has heartbeats come every {heartbeat} (limits.heartbeat_min, _max)");
        }
        at_rest(args.idle, open as f64 / heartbeat.as_secs_f64().max(0.001), before.zip(after), syscalls, last);
    }
    for worker in &mut workers {
        worker.all_are_there()?;
    }
    if let (Some(last), true) = (runs.last_mut(), args.again) {
        for worker in &mut workers {
            worker.cut()?;
        }
        std::thread::sleep(args.settle);
        let (before, began) = (spent()?, Instant::now());
        let line = crew::live("connected again");
        let (mut again, mut resumed) = (0, 0);
        for worker in &mut workers {
            resumed += worker.open_again(|opened| line.set_position(again + opened))?;
            again += worker.open();
        }
        line.finish_and_clear();
        if let Some((before, after)) = before.zip(spent()?) {
            let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
            let each = cpu * 1e6 / again.max(1) as f64;
            last.figure("broker_cpu_us_per_connect_again", "broker CPU a connect again, us", each);
        }
        let seconds = began.elapsed().as_secs_f64().max(0.001);
        last.figure("connects_again_per_second", "connects again/s", again as f64 / seconds);
        last.figure("resumed_again", "of these with a ticket", resumed as f64);
        for worker in &mut workers {
            worker.all_are_there()?;
        }
    }
    drop(workers);
    if let Some(last) = runs.last_mut() {
        cost::stop(subject.own.take(), last);
    }
    runs.into_iter().for_each(|run| report.add(run));
    Ok(())
}

/// What connections at rest cost.
fn at_rest(idle: Duration, rate: f64, spent: Option<(Spent, Spent)>, syscalls: Option<u64>, run: &mut Run) {
    let Some((before, after)) = spent else { return };
    let (cpu, seconds) = (after.cpu.saturating_sub(before.cpu).as_secs_f64(), idle.as_secs_f64());
    let beats = rate * seconds;
    run.figure("heartbeats_per_second", "heartbeats/s", rate);
    run.figure("broker_cpu_us_per_heartbeat", "broker CPU a heartbeat, us", cpu * 1e6 / beats.max(1.0));
    run.figure("idle_core_percent", "of one core at rest, %", cpu / seconds * 100.0);
    if let Some(syscalls) = syscalls {
        let each = syscalls as f64 / beats.max(1.0);
        run.figure("broker_syscalls_per_heartbeat", "broker's calls into the kernel a heartbeat", each);
    }
}

impl Args {
    /// Where a worker connects to.
    fn target(&self) -> Result<Broker, Fail> {
        let broker = match self.peer.subject()? {
            Some(peer) => peer.broker,
            None => self.broker.subject()?.broker,
        };
        Ok(broker.with_tickets(self.resume).with_heartbeat(self.heartbeat))
    }
}
