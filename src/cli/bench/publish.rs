//! `longwire bench publish`: closed or open loop, over connections that each are a device of their own.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args as ClapArgs;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use longwire_client::packet::{self, OpenChannel, publish::Action};
use longwire_protocol::limits::ID_SPAN_MAX;
use longwire_protocol::reason::Verdict;
use longwire_protocol::session::ClientEvent;
use serde::Serialize;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::super::Fail;
use super::own::{Committed, OwnBroker};
use super::process::{self, Spent};
use super::wire::{Way, Wire, WireError};
use super::{BrokerArgs, write_json};

/// Publishes from many connections
#[derive(Clone, Debug, ClapArgs)]
pub(in crate::cli) struct Args {
    /// How many connections, each a user with a device of its own
    #[arg(long, default_value_t = 100)]
    connections: usize,

    /// Publishes under way on each connection
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=ID_SPAN_MAX))]
    window: u64,

    /// Bytes of each message
    #[arg(long, default_value_t = 200)]
    size: usize,

    /// How long to publish
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,

    /// How many messages to publish in all, instead of a time
    #[arg(long, conflicts_with = "duration")]
    count: Option<u64>,

    /// Publish so many messages a second in all, whether acks come or not (within the window); a latency counts from
    /// the moment when the message was due
    #[arg(long, value_name = "MESSAGES")]
    rate: Option<f64>,

    /// All connections publish to one channel, instead of one each
    #[arg(long)]
    shared: bool,

    /// Threads of this load generator
    #[arg(long, default_value_t = 1)]
    threads: usize,

    #[command(flatten)]
    broker: BrokerArgs,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Figures {
    connections: usize,
    window: u64,
    size: usize,
    shared: bool,
    rate: Option<f64>,
    seconds: f64,
    messages: u64,
    messages_per_second: f64,
    refused_for_now: u64,
    ack_ms: Latency,
    broker: Option<BrokerFigures>,
    /// Known of a broker that was started for this.
    fsyncs: Option<Fsyncs>,
}

/// What a broker synced in its whole life, preparing included.
#[derive(Clone, Copy, Debug, Serialize)]
struct Fsyncs {
    fsyncs: u64,
    operations: u64,
    fsyncs_per_operation: f64,
}

impl From<Committed> for Fsyncs {
    fn from(committed: Committed) -> Self {
        let Committed { operations, frames } = committed;
        Self { fsyncs: frames, operations, fsyncs_per_operation: frames as f64 / operations.max(1) as f64 }
    }
}

#[derive(Debug, Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
    p99_9: f64,
    max: f64,
}

#[derive(Debug, Serialize)]
struct BrokerFigures {
    cpu_seconds: f64,
    cpu_us_per_message: f64,
    write_calls_per_message: f64,
    disk_bytes_per_message: f64,
}

pub(super) fn run(mut args: Args) -> Result<(), Fail> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(args.threads.max(1))
        .enable_all()
        .build()
        .map_err(|error| Fail::failed(format!("cannot start: {error}")))?;
    let own = args.broker.start_if_none_is_named()?;
    let (mut figures, outcomes) = runtime.block_on(measure(&args))?;
    figures.fsyncs = own.and_then(OwnBroker::stop).map(Fsyncs::from);
    verify(outcomes)?;
    print(&figures);
    write_json(args.broker.json.as_deref(), &figures)
}

/// What one connection did.
struct Outcome {
    conversation: u64,
    latency: Histogram<u64>,
    seqs: Vec<u64>,
    refused_for_now: u64,
    ended: Instant,
}

async fn measure(args: &Args) -> Result<(Figures, Vec<Outcome>), Fail> {
    process::raise_open_files();
    let way = args.broker.way()?;
    let issuer = args.broker.issuer()?;
    let start = Arc::new(Barrier::new(args.connections + 1));
    let done = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for number in 0..args.connections {
        let user = format!("{}-{number}", args.broker.devices_prefix);
        let (token, way, args) = (issuer.token(&user)?, way.clone(), args.clone());
        let (start, done) = (Arc::clone(&start), Arc::clone(&done));
        tasks.spawn(async move {
            let (mut wire, conversation) = prepare(&way, &args, number, token, user).await?;
            start.wait().await;
            let publisher = Publisher::new(&args, number, conversation, done);
            let outcome = publisher.run(&mut wire).await?;
            wire.close().await;
            Ok::<Outcome, WireError>(outcome)
        });
    }
    // Whoever fails before the start would keep the others waiting for ever.
    tokio::select! {
        _ = start.wait() => {}
        failed = first_failure(&mut tasks) => return Err(failed),
    }
    let before = args.broker.broker_pid.map(process::spent).transpose()?;
    let began = Instant::now();
    let bar = tokio::spawn(show_progress(Arc::clone(&done)));
    let mut outcomes = Vec::with_capacity(args.connections);
    while let Some(outcome) = tasks.join_next().await {
        outcomes.push(finished(outcome)?);
    }
    bar.abort();
    let after = args.broker.broker_pid.map(process::spent).transpose()?;
    let figures = figures(args, began, &outcomes, before.zip(after))?;
    Ok((figures, outcomes))
}

async fn first_failure(tasks: &mut JoinSet<Result<Outcome, WireError>>) -> Fail {
    match tasks.join_next().await.map(finished) {
        Some(Err(fail)) => fail,
        Some(Ok(_)) | None => Fail::failed("a connection ended before it began"),
    }
}

fn finished(outcome: Result<Result<Outcome, WireError>, tokio::task::JoinError>) -> Result<Outcome, Fail> {
    match outcome {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(WireError::Refused(refusal))) => Err(Fail::refused(&refusal)),
        Ok(Err(WireError::Io(error))) => Err(Fail::unavailable(error.to_string())),
        Err(error) => Err(Fail::failed(error.to_string())),
    }
}

/// Connects and opens the channel to publish to.
async fn prepare(way: &Way, args: &Args, number: usize, token: String, user: String) -> Result<(Wire, u64), WireError> {
    let mut wire = Wire::connect(way, None, token, user).await?;
    let prefix = &args.broker.devices_prefix;
    let name = if args.shared { format!("{prefix}/all") } else { format!("{prefix}/{number}") };
    let action = Some(Action::OpenChannel(OpenChannel { name }));
    let ack = wire.publish_one(packet::Publish { message_id: OPEN_ID, action, ..Default::default() }).await?;
    Ok((wire, ack.conversation))
}

/// The message id under which the channel is opened.
const OPEN_ID: u64 = 1;
/// How long a publish that is refused for now waits at least.
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// One connection's publishing.
struct Publisher {
    conversation: u64,
    content: Bytes,
    window: usize,
    next_id: u64,
    told: u64,
    /// Ids under way and when they were due, in their order.
    under_way: VecDeque<(u64, Instant)>,
    /// Ids refused for now, and when they were due.
    again: BTreeSet<(u64, Instant)>,
    again_at: Instant,
    /// The time between two messages, for an open loop; and when the next is due.
    pace: Option<(Duration, Instant)>,
    /// How many are still to be published, or until when.
    left: u64,
    until: Option<Instant>,
    outcome: Outcome,
    done: Arc<AtomicU64>,
}

impl Publisher {
    fn new(args: &Args, number: usize, conversation: u64, done: Arc<AtomicU64>) -> Self {
        let now = Instant::now();
        let connections = args.connections as u64;
        let share = |count: u64| count / connections + u64::from((number as u64) < count % connections);
        let pace = args.rate.map(|rate| {
            let every = Duration::from_secs_f64(connections as f64 / rate.max(0.001));
            // The connections take turns.
            (every, now + every.mul_f64(number as f64 / connections as f64))
        });
        Self {
            conversation,
            content: Bytes::from(vec![b'x'; args.size]),
            window: usize::try_from(args.window).unwrap_or(usize::MAX),
            next_id: OPEN_ID + 1,
            told: 0,
            under_way: VecDeque::new(),
            again: BTreeSet::new(),
            again_at: now,
            pace,
            left: args.count.map_or(u64::MAX, share),
            until: args.count.is_none().then(|| now + args.duration),
            outcome: Outcome { conversation, latency: histogram(), seqs: Vec::new(), refused_for_now: 0, ended: now },
            done,
        }
    }

    async fn run(mut self, wire: &mut Wire) -> Result<Outcome, WireError> {
        loop {
            let wake = self.publish(wire);
            if self.under_way.is_empty() && self.again.is_empty() && self.is_over() {
                self.outcome.ended = Instant::now();
                return Ok(self.outcome);
            }
            wire.step_until(wake).await?;
            while let Some(event) = wire.next_event()? {
                self.handle(event)?;
            }
        }
    }

    fn is_over(&self) -> bool {
        self.left == 0 || self.until.is_some_and(|until| Instant::now() >= until)
    }

    /// Publishes what may leave; returns when to come back if nothing arrives before.
    fn publish(&mut self, wire: &mut Wire) -> Option<Instant> {
        if !self.again.is_empty() {
            // The order of ids holds: what was refused is repeated when nothing is under way any more.
            let now = Instant::now();
            if !self.under_way.is_empty() || now < self.again_at {
                return Some(self.again_at.max(now + Duration::from_millis(1)));
            }
            while let Some((id, due)) = self.again.pop_first() {
                self.send(wire, id, due);
            }
            return None;
        }
        while self.under_way.len() < self.window && !self.is_over() && self.span_is_free() {
            let due = match &mut self.pace {
                None => Instant::now(),
                Some((every, due)) => {
                    let this = *due;
                    if this > Instant::now() {
                        return Some(this);
                    }
                    *due += *every;
                    this
                }
            };
            if !wire.session.publish_room().admits(self.content.len() + 64) {
                break;
            }
            self.send(wire, self.next_id, due);
            self.next_id += 1;
            self.left -= 1;
        }
        self.until.filter(|_| self.under_way.is_empty())
    }

    fn span_is_free(&self) -> bool {
        self.next_id < self.under_way.front().map_or(self.next_id, |(id, _)| *id) + ID_SPAN_MAX
    }

    fn send(&mut self, wire: &mut Wire, id: u64, due: Instant) {
        let first = self.under_way.front().map_or(id, |(first, _)| *first);
        let moved = first != self.told;
        self.told = first;
        wire.session.publish(packet::Publish {
            conversation: self.conversation,
            message_id: id,
            content: self.content.clone(),
            first_unanswered: if moved { first } else { 0 },
            ..Default::default()
        });
        self.under_way.push_back((id, due));
    }

    fn handle(&mut self, event: ClientEvent) -> Result<(), WireError> {
        match event {
            ClientEvent::PublishAck(ack) => {
                if let Some(due) = self.answered(ack.message_id) {
                    let us = u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX);
                    self.outcome.latency.saturating_record(us.max(1));
                    self.outcome.seqs.push(ack.seq);
                    self.done.fetch_add(1, Ordering::Relaxed);
                }
            }
            ClientEvent::Refused(refusal) if refusal.reason.verdict() == Verdict::Stop => return Err(refusal.into()),
            ClientEvent::Refused(refusal) => {
                if let Some(due) = self.answered(refusal.message_id.0) {
                    self.outcome.refused_for_now += 1;
                    self.again.insert((refusal.message_id.0, due));
                    let wait = Duration::from_millis(refusal.retry_after_ms.into()).max(RETRY_AFTER);
                    self.again_at = self.again_at.max(Instant::now() + wait);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn answered(&mut self, id: u64) -> Option<Instant> {
        let at = self.under_way.iter().position(|(under_way, _)| *under_way == id)?;
        self.under_way.remove(at).map(|(_, due)| due)
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("these bounds are in order")
}

/// Every seq that was acked is there once, and none is missing between them.
fn verify(outcomes: Vec<Outcome>) -> Result<(), Fail> {
    let mut conversations: HashMap<u64, Vec<u64>> = HashMap::new();
    for outcome in outcomes {
        conversations.entry(outcome.conversation).or_default().extend(outcome.seqs);
    }
    for (conversation, mut seqs) in conversations {
        seqs.sort_unstable();
        if let Some(pair) = seqs.windows(2).find(|pair| pair[1] != pair[0] + 1) {
            let (one, next) = (pair[0], pair[1]);
            return Err(Fail::failed(format!("conversation {conversation}: after seq {one} an ack named {next}")));
        }
    }
    Ok(())
}

fn figures(args: &Args, began: Instant, outcomes: &[Outcome], spent: Option<(Spent, Spent)>) -> Result<Figures, Fail> {
    let mut latency = histogram();
    for outcome in outcomes {
        latency.add(&outcome.latency).map_err(|error| Fail::failed(error.to_string()))?;
    }
    let ended = outcomes.iter().map(|outcome| outcome.ended).max().unwrap_or(began);
    let seconds = ended.saturating_duration_since(began).as_secs_f64();
    let messages: u64 = outcomes.iter().map(|outcome| outcome.seqs.len() as u64).sum();
    let each = |total: f64| total / (messages.max(1) as f64);
    let ms = |us: u64| us as f64 / 1_000.0;
    Ok(Figures {
        connections: args.connections,
        window: args.window,
        size: args.size,
        shared: args.shared,
        rate: args.rate,
        seconds,
        messages,
        messages_per_second: messages as f64 / seconds.max(0.001),
        refused_for_now: outcomes.iter().map(|outcome| outcome.refused_for_now).sum(),
        ack_ms: Latency {
            p50: ms(latency.value_at_quantile(0.5)),
            p99: ms(latency.value_at_quantile(0.99)),
            p99_9: ms(latency.value_at_quantile(0.999)),
            max: ms(latency.max()),
        },
        broker: spent.map(|(before, after)| {
            let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
            BrokerFigures {
                cpu_seconds: cpu,
                cpu_us_per_message: each(cpu * 1e6),
                write_calls_per_message: each((after.write_calls - before.write_calls) as f64),
                disk_bytes_per_message: each((after.disk_bytes - before.disk_bytes) as f64),
            }
        }),
        fsyncs: None,
    })
}

fn print(figures: &Figures) {
    let loop_kind = figures.rate.map_or_else(|| "closed loop".to_owned(), |rate| format!("{rate} messages/s offered"));
    println!(
        "{} connections, window {}, {} bytes, {loop_kind}, {:.1} s",
        figures.connections, figures.window, figures.size, figures.seconds
    );
    println!("  messages acked      {:>12}   (every seq once, no gaps)", figures.messages);
    println!("  messages/s          {:>12.0}", figures.messages_per_second);
    let ack = &figures.ack_ms;
    println!(
        "  ack ms              p50 {:.2}  p99 {:.2}  p99.9 {:.2}  max {:.2}",
        ack.p50, ack.p99, ack.p99_9, ack.max
    );
    if figures.refused_for_now > 0 {
        println!("  refused for now     {:>12}", figures.refused_for_now);
    }
    if let Some(broker) = &figures.broker {
        println!(
            "  broker, a message   {:.2} us CPU, {:.3} write calls, {:.0} bytes to disk ({:.1} s CPU in all)",
            broker.cpu_us_per_message,
            broker.write_calls_per_message,
            broker.disk_bytes_per_message,
            broker.cpu_seconds
        );
    }
    match &figures.fsyncs {
        Some(one) => println!(
            "  fsyncs a message    {:.4} ({} for {} operations, preparing included)",
            one.fsyncs_per_operation, one.fsyncs, one.operations
        ),
        None => println!("  fsyncs a message    not known: only a broker that is started for this says so"),
    }
}

async fn show_progress(done: Arc<AtomicU64>) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let style = ProgressStyle::with_template("{spinner} {pos} acked, {per_sec}");
    let bar = ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    loop {
        bar.set_position(done.load(Ordering::Relaxed));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(conversation: u64, seqs: &[u64]) -> Outcome {
        Outcome { conversation, latency: histogram(), seqs: seqs.to_vec(), refused_for_now: 0, ended: Instant::now() }
    }

    #[test]
    fn a_gap_or_a_double_is_noticed() {
        assert!(verify(vec![outcome(1, &[5, 6, 7]), outcome(2, &[]), outcome(3, &[1])]).is_ok());
        assert!(verify(vec![outcome(1, &[5, 7]), outcome(1, &[6, 8])]).is_ok(), "shared");
        assert!(verify(vec![outcome(1, &[5, 7])]).is_err());
        assert!(verify(vec![outcome(1, &[5, 6]), outcome(1, &[6])]).is_err());
    }
}
