//! `longwire bench fanout`: what one says, many hear. The next message leaves once all have the one before, or as many
//! before as the window holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Args as ClapArgs;
use hdrhistogram::Histogram;
use longwire_protocol::limits::ID_SPAN_MAX;
use tokio::sync::{Notify, watch};

use super::super::Fail;
use super::args::Subject;
use super::cost::{self, Meter};
use super::load::crew::{self, Counter};
use super::load::party::{Heard, Party, Place};
use super::load::sender::{Outgoing, Pace, Quota};
use super::load::stamp::{Numbers, Stamp};
use super::load::wire::WireError;
use super::report::{Report, Run, histogram};
use super::{BrokerArgs, LoadArgs, PeerArgs};

/// One publisher and many readers
#[derive(Clone, Debug, ClapArgs)]
pub(in crate::cli) struct Args {
    /// How many readers, each a user with a connection
    #[arg(long, default_value_t = 1000, value_parser = super::args::some)]
    readers: usize,

    /// Messages that not all readers have
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=ID_SPAN_MAX))]
    window: u64,

    #[command(flatten)]
    load: LoadArgs,

    #[command(flatten)]
    broker: BrokerArgs,

    #[command(flatten)]
    peer: PeerArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Fail> {
    let Args { readers, window, load, .. } = args;
    let setting = format!("1 to {readers}, window {window}, {} bytes, {}", load.size, load.pace());
    let runtime = crew::runtime(load.threads)?;
    let mut report = Report::new("fanout", setting);
    report.note("messages are deliveries: each message counts once for every reader");
    args.broker.compare(load, Some(&args.peer), report, |mut subject, report| {
        let mut run = runtime.block_on(measure(args, &subject))?;
        cost::stop(subject.own.take(), &mut run);
        report.add(run);
        Ok(())
    })
}

/// How many readers have each of the messages under way.
struct Rounds {
    readers: usize,
    /// By number, modulo as many as can be under way.
    have: Vec<AtomicUsize>,
    /// Told when a message has reached all.
    complete: Notify,
    /// The newest that all have: readers have them in order, so all before it too.
    all_have: std::sync::atomic::AtomicU64,
}

impl Rounds {
    fn new(readers: usize, window: u64) -> Self {
        let have = (0..=window).map(|_| AtomicUsize::new(0)).collect();
        Self { readers, have, complete: Notify::new(), all_have: Default::default() }
    }

    /// A reader has it.
    fn has(&self, number: u64) {
        let slot = &self.have[usize::try_from(number % self.have.len() as u64).unwrap_or(0)];
        if slot.fetch_add(1, Ordering::AcqRel) + 1 == self.readers {
            slot.store(0, Ordering::Release);
            self.all_have.fetch_max(number, Ordering::AcqRel);
            self.complete.notify_one();
        }
    }

    fn all_have(&self) -> u64 {
        self.all_have.load(Ordering::Acquire)
    }
}

async fn measure(args: &Args, subject: &Subject) -> Result<Run, Fail> {
    let (broker, prefix) = (&subject.broker, &args.broker.devices_prefix);
    let mut publisher = broker.connect(&format!("{prefix}-publisher"), None).await?;
    let place = publisher.open_channel(&format!("{prefix}/fanout")).await?;
    let readers = crew::prepare((0..args.readers).map(|number| {
        let (broker, place, user) = (broker.clone(), place.clone(), format!("{prefix}-r{number}"));
        async move {
            let mut reader = broker.connect(&user, None).await?;
            reader.watch(&place).await?;
            Ok(reader)
        }
    }))
    .await?;
    let rounds = Arc::new(Rounds::new(args.readers, args.window));
    let done = Arc::new(Counter::default());
    let (end, ended) = watch::channel(u64::MAX);
    let meter = Meter::start(subject)?;
    let reading = readers.into_iter().map(|reader| read(reader, Arc::clone(&rounds), Arc::clone(&done), ended.clone()));
    let working = async {
        let reading = crew::work(reading);
        let publishing = async {
            let outcome = publish(args, publisher, place, &rounds).await;
            // Whatever came of it: the readers end.
            let sent = outcome.as_ref().map_or(0, |(sent, ..)| *sent);
            let _nobody_reads = end.send(sent);
            outcome
        };
        tokio::join!(publishing, reading)
    };
    let ((published, read), points) = done.while_doing("delivered", working).await;
    let (_, to_ack, refused) = published?;
    let mut to_delivery = histogram();
    for took in read? {
        to_delivery.add(&took).map_err(|error| Fail::failed(error.to_string()))?;
    }
    let mut run = Run::new(subject.name);
    meter.stop(subject, done.get(), &mut run)?;
    run.latency("publish to ack", &to_ack);
    run.latency("publish to delivery", &to_delivery);
    run.rate("deliveries", &points);
    run.figure("refused_for_now", "refused for the moment", refused as f64);
    Ok(run)
}

/// Returns how many it sent, how long acks took, and how many were refused for the moment.
async fn publish(
    args: &Args,
    mut party: Party,
    place: Place,
    rounds: &Rounds,
) -> Result<(u64, Histogram<u64>, u64), WireError> {
    let load = &args.load;
    let mut pace = Pace::of(load.rate, 0, 1);
    let mut quota = Quota::of(load.count, load.duration, 0, 1);
    let mut outgoing = Outgoing::new(usize::try_from(args.window).unwrap_or(usize::MAX));
    let mut took = histogram();
    let mut sent = 0;
    loop {
        let mut wake = outgoing.repeat(&mut party);
        while !quota.is_over() && sent < rounds.all_have() + args.window && outgoing.has_room(&party, load.size) {
            match pace.next() {
                Ok(due) => {
                    sent += 1;
                    outgoing.send(&mut party, &place, Stamp::new(0, sent, due).content(load.size), due);
                    quota.take_one();
                }
                Err(at) => {
                    wake = wake.into_iter().chain([at]).min();
                    break;
                }
            }
        }
        if quota.is_over() && outgoing.is_empty() && rounds.all_have() == sent {
            party.close().await;
            return Ok((sent, took, outgoing.refused_for_now));
        }
        party.flush().await?;
        let wake = wake.into_iter().chain(quota.until().filter(|_| outgoing.is_empty() && !quota.is_over())).min();
        tokio::select! {
            filled = party.fill(wake) => filled?,
            () = rounds.complete.notified() => {}
        }
        party.hear(|heard| {
            if let Some(acked) = outgoing.hear(&heard) {
                took.saturating_record(acked.micros());
            }
            Ok(())
        })?;
    }
}

/// Reads until it has everything that was published.
async fn read(
    mut party: Party,
    rounds: Arc<Rounds>,
    done: Arc<Counter>,
    mut ended: watch::Receiver<u64>,
) -> Result<Histogram<u64>, WireError> {
    let mut took = histogram();
    let mut numbers = Numbers::default();
    loop {
        party.flush().await?;
        tokio::select! {
            filled = party.fill(None) => filled?,
            changed = ended.changed() => if changed.is_err() { return Ok(took) },
        }
        party.hear(|heard| {
            if let Heard::Received(stamp) = heard {
                numbers.take(stamp).map_err(WireError::Broken)?;
                took.saturating_record(stamp.age_us());
                done.add(1);
                rounds.has(stamp.number);
            }
            Ok(())
        })?;
        if numbers.last(0) >= *ended.borrow() {
            party.close().await;
            return Ok(took);
        }
    }
}
