//! `longwire bench kill`: a broker is killed and started again while clients of the SDK talk; then everything that was
//! acked is looked for. What was published stands in the log once and in order, and every reader got it so.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use longwire_client::packet::{self, CatchUpMode, EntryKind, item};
use longwire_client::{Client, Config, Deliveries, Dialer, Item, PublishError};

use super::super::Fail;
use super::BrokerArgs;
use super::args::Issuer;
use super::cost;
use super::load::crew::{self, Counter};
use super::load::own::OwnBroker;
use super::load::stamp::Stamp;
use super::load::way::Way;
use super::load::wire::{Wire, WireError, fresh};
use super::report::{Report, Run, histogram};

/// The broker is killed and started again under load
#[derive(Clone, Debug, ClapArgs)]
pub(in crate::cli) struct Args {
    /// How often to kill it
    #[arg(long, default_value_t = 10)]
    kills: u32,

    /// How long it lives at most
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    life: Duration,

    /// How many pairs of users talk
    #[arg(long, default_value_t = 10, value_parser = super::args::some)]
    pairs: usize,

    /// Publishes of a pair without an ack
    #[arg(long, default_value_t = 32, value_parser = super::args::some)]
    window: usize,

    /// Bytes of each message
    #[arg(long, default_value_t = 200)]
    size: usize,

    #[command(flatten)]
    broker: BrokerArgs,
}

/// How long the last messages may take once nothing is killed any more.
const SETTLE: Duration = Duration::from_secs(60);

pub(super) fn run(args: &Args) -> Result<(), Fail> {
    let Args { kills, life, pairs, window, .. } = args;
    if args.broker.url.is_some() {
        return Err(Fail::usage("--url: only a broker of its own is killed; leave it out"));
    }
    let life = humantime::format_duration(*life);
    let mut report = Report::new("kill", format!("{kills} kills, each within {life}; {pairs} pairs, window {window}"));
    let runtime = crew::runtime(1)?;
    let mut broker = args.broker.clone();
    let own = broker.start_if_none_is_named()?.ok_or_else(|| Fail::failed("no broker was started"))?;
    let mut run = Run::new("longwire");
    runtime.block_on(measure(args, &broker, own, &mut run))?;
    report.add(run);
    report.note("every ack was found in the log under its seq, every message once and in order, at its reader too");
    report.publish(args.broker.json.as_deref(), args.broker.html.as_deref())
}

/// What a pair came to.
struct Pair {
    name: String,
    conversation: u64,
    /// The seq of each number, as acks said.
    acked: HashMap<u64, u64>,
    /// The seq of each number, as the reader was told: the first is number 1.
    read: Vec<u64>,
}

async fn measure(args: &Args, broker: &BrokerArgs, mut own: OwnBroker, run: &mut Run) -> Result<(), Fail> {
    let (way, issuer) = (broker.way()?, broker.issuer()?);
    let url = broker.url.as_ref().ok_or_else(|| Fail::failed("no broker was started"))?;
    let dialer = Dialer::new(url, &broker.trust()?).map_err(|error| Fail::failed(error.to_string()))?;
    let (stop, acked) = (Arc::new(AtomicBool::new(false)), Arc::new(Counter::default()));
    let pairs = (0..args.pairs).map(|number| {
        let (talks, listens) = (format!("talks{number}"), format!("listens{number}"));
        let start = |user: &str| {
            let mut config = Config::new(dialer.clone(), issuer.token(user)?, "bench");
            config.catch_up = CatchUpMode::All;
            Client::start(config).map_err(|error| Fail::failed(error.to_string()))
        };
        let (talks_client, listens_client) = (start(&talks)?, start(&listens)?);
        let (args, stop, acked) = (args.clone(), Arc::clone(&stop), Arc::clone(&acked));
        Ok(async move { talk(&args, number, talks_client.0, listens_client, listens, stop, acked).await })
    });
    let pairs = tokio::spawn(crew::work(pairs.collect::<Result<Vec<_>, Fail>>()?));
    let mut down = histogram();
    let began = Instant::now();
    let killing = async {
        for _ in 0..args.kills {
            tokio::time::sleep(args.life.mul_f64(fastrand::f64())).await;
            let killed = Instant::now();
            own.kill_and_start()?;
            let before = acked.get();
            while acked.get() == before && !pairs.is_finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            down.saturating_record(u64::try_from(killed.elapsed().as_micros()).unwrap_or(u64::MAX));
        }
        tokio::time::sleep(args.life / 2).await;
        Ok::<(), Fail>(())
    };
    let (killed, points) = acked.while_doing("acked", killing).await;
    stop.store(true, Ordering::Relaxed);
    killed?;
    let pairs = pairs.await.map_err(|error| Fail::failed(error.to_string()))??;
    let seconds = began.elapsed().as_secs_f64();
    let mut messages = 0;
    for pair in &pairs {
        messages += check(pair, &way, &issuer).await?;
    }
    run.figure("kills", "kills", f64::from(args.kills));
    run.figure("messages", "messages, each of them checked", messages as f64);
    run.figure("messages_per_second", "messages/s, kills included", messages as f64 / seconds);
    run.latency("kill to the next ack", &down);
    run.rate("acks", &points);
    cost::stop(Some(own), run);
    Ok(())
}

/// One talks until told to stop, the other listens until it has everything.
async fn talk(
    args: &Args,
    number: usize,
    client: Client,
    (listener, mut deliveries): (Client, Deliveries),
    other: String,
    stop: Arc<AtomicBool>,
    counter: Arc<Counter>,
) -> Result<Pair, WireError> {
    let failed = |error: PublishError| WireError::Broken(error.to_string());
    // The one who listens has a cursor before anyone writes to it: from then on nothing may be left out.
    loop {
        let delivery = deliveries.next().await.ok_or_else(|| WireError::Broken("a client ended".to_owned()))?;
        let has_cursor = delivery.cursor.is_some();
        delivery.stored();
        if has_cursor {
            break;
        }
    }
    let conversation = client.open_direct(&*other).await.map_err(failed)?.await.map_err(failed)?.conversation;
    let sender = u32::try_from(number).unwrap_or(u32::MAX);
    let mut pair = Pair { name: other, conversation, acked: HashMap::new(), read: Vec::new() };
    let mut under_way = FuturesUnordered::new();
    let mut sent = 0;
    let mut deadline = None;
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        while !stopping && under_way.len() < args.window {
            sent += 1;
            let content = Stamp::new(sender, sent, Instant::now()).content(args.size);
            let publication = client.publish(conversation, content).await.map_err(failed)?;
            under_way.push(async move { (sent, publication.await) });
        }
        if stopping && under_way.is_empty() && pair.read.len() as u64 == sent {
            client.close().await;
            listener.close().await;
            return Ok(pair);
        }
        let until = *deadline.get_or_insert_with(|| Instant::now() + SETTLE);
        if !stopping {
            deadline = None;
        }
        tokio::select! {
            Some((number, ack)) = under_way.next() => {
                pair.acked.insert(number, ack.map_err(failed)?.seq);
                counter.add(1);
            }
            delivery = deliveries.next() => {
                let delivery = delivery.ok_or_else(|| WireError::Broken("a client ended".to_owned()))?;
                for item in &delivery.items {
                    read(&mut pair, item)?;
                }
                delivery.stored();
            }
            () = tokio::time::sleep_until(until.into()) => {
                let (read, acked) = (pair.read.len(), pair.acked.len());
                let what = format!("{}: of {sent} messages {acked} were acked and {read} delivered", pair.name);
                return Err(WireError::Broken(what));
            }
        }
    }
}

/// Takes in what the reader was told.
fn read(pair: &mut Pair, item: &Item) -> Result<(), WireError> {
    match item {
        Item::Entry(entry) if entry.kind() == EntryKind::Message => {
            let number = Stamp::read(&entry.content).map_or(0, |stamp| stamp.number);
            if number != pair.read.len() as u64 + 1 || pair.read.last().is_some_and(|last| entry.seq != last + 1) {
                let (read, last) = (pair.read.len(), pair.read.last());
                let what = format!("{}: number {number}, seq {} came after {read}, seq {last:?}", pair.name, entry.seq);
                return Err(WireError::Broken(what));
            }
            pair.read.push(entry.seq);
            Ok(())
        }
        Item::Skipped(head) => Err(WireError::Broken(format!("{}: {head:?} was not delivered", pair.name))),
        Item::Reset(reset) => Err(WireError::Broken(format!("{}: the cursor was of no use: {reset:?}", pair.name))),
        _ => Ok(()),
    }
}

/// Holds acks and what was read against the history. Returns how many messages there are.
async fn check(pair: &Pair, way: &Way, issuer: &Issuer) -> Result<u64, Fail> {
    for (number, seq) in &pair.acked {
        let at = usize::try_from(number - 1).unwrap_or(usize::MAX);
        if pair.read.get(at) != Some(seq) {
            let name = &pair.name;
            return Err(Fail::failed(format!("{name}: number {number} was acked as seq {seq}, and read otherwise")));
        }
    }
    let mut wire = Wire::connect(way, None, fresh(issuer.token(&pair.name)?, "check".to_owned())).await?;
    let (mut stored, mut from_seq) = (Vec::new(), 0);
    loop {
        let page = packet::HistoryRequest {
            conversation: pair.conversation,
            from_seq,
            limit: 200,
            backwards: false,
            compact: false,
        };
        let packet::response::Result::History(page) = wire.ask(packet::request::Op::History(page)).await? else {
            return Err(Fail::failed("the broker answers something else than was asked"));
        };
        for item in page.items {
            if let Some(item::Kind::Entry(entry)) = item.kind
                && entry.kind() == EntryKind::Message
            {
                stored.push(entry.seq);
            }
        }
        if page.next_seq == 0 {
            break;
        }
        from_seq = page.next_seq;
    }
    wire.close().await;
    if stored != pair.read {
        let (name, stored, read) = (&pair.name, stored.len(), pair.read.len());
        return Err(Fail::failed(format!("{name}: history has {stored} messages, and {read} were delivered")));
    }
    Ok(stored.len() as u64)
}
