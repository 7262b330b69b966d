//! `longwire bench pairs`: one of two users talks, the other listens. A message counts once it is acked to the one and
//! delivered to the other.

use std::sync::Arc;

use clap::Args as ClapArgs;
use hdrhistogram::Histogram;
use longwire_protocol::limits::ID_SPAN_MAX;

use super::super::Fail;
use super::args::Subject;
use super::cost::Meter;
use super::load::crew::{self, Counter};
use super::load::party::{Heard, OPEN_ID, Party, Place};
use super::load::sender::{Outgoing, Pace, Quota};
use super::load::stamp::{Numbers, Stamp};
use super::load::wire::WireError;
use super::report::{Report, Run, histogram};
use super::{BrokerArgs, LoadArgs, PeerArgs};

/// Pairs of users, one of whom talks
#[derive(Clone, Debug, ClapArgs)]
pub(in crate::cli) struct Args {
    /// How many pairs: twice as many users and connections
    #[arg(long, default_value_t = 100, value_parser = super::args::some)]
    pairs: usize,

    /// Messages of a pair that are not acked or not delivered
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=ID_SPAN_MAX))]
    window: u64,

    #[command(flatten)]
    load: LoadArgs,

    #[command(flatten)]
    broker: BrokerArgs,

    #[command(flatten)]
    peer: PeerArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Fail> {
    let Args { pairs, window, load, .. } = args;
    let setting = format!("{pairs} pairs, window {window}, {} bytes, {}", load.size, load.pace());
    args.broker.compare(load.run, Some(&args.peer), Report::new("pairs", setting), async |subject| {
        measure(args, subject).await
    })
}

struct Pair {
    talks: Party,
    listens: Party,
    place: Place,
}

struct Outcome {
    to_ack: Histogram<u64>,
    to_delivery: Histogram<u64>,
    refused_for_now: u64,
}

async fn measure(args: &Args, subject: &Subject) -> Result<Run, Fail> {
    let prepared = crew::prepare((0..args.pairs).map(|number| {
        let (broker, prefix) = (subject.broker.clone(), args.broker.devices_prefix.clone());
        async move {
            let other = format!("{prefix}-l{number}");
            let mut listens = broker.connect(&other, None).await?;
            listens.await_pair(&other).await?;
            let mut talks = broker.connect(&format!("{prefix}-t{number}"), None).await?;
            let place = talks.open_pair(OPEN_ID, &other).await?;
            Ok(Pair { talks, listens, place })
        }
    }))
    .await?;
    let meter = Meter::start(subject)?;
    let done = Arc::new(Counter::default());
    let all =
        prepared.into_iter().enumerate().map(|(number, pair)| talk(args.clone(), number, pair, Arc::clone(&done)));
    let (outcomes, points) = done.while_doing("delivered", crew::work(all)).await;
    let outcomes = outcomes?;
    let mut run = Run::new(subject.name);
    meter.stop(subject, done.get(), &mut run)?;
    let (mut to_ack, mut to_delivery) = (histogram(), histogram());
    for outcome in &outcomes {
        let added = to_ack.add(&outcome.to_ack).and_then(|()| to_delivery.add(&outcome.to_delivery));
        added.map_err(|error| Fail::failed(error.to_string()))?;
    }
    run.latency("publish to ack", &to_ack);
    run.latency("publish to delivery", &to_delivery);
    run.rate("messages", &points);
    let refused: u64 = outcomes.iter().map(|outcome| outcome.refused_for_now).sum();
    run.figure("refused_for_now", "refused for the moment", refused as f64);
    Ok(run)
}

/// Talks until its share is acked and delivered.
async fn talk(args: Args, number: usize, pair: Pair, done: Arc<Counter>) -> Result<Outcome, WireError> {
    let Pair { mut talks, mut listens, place } = pair;
    let load = &args.load;
    let mut pace = Pace::of(load.rate, number, args.pairs);
    let mut quota = Quota::of(load.count, load.duration, number, args.pairs);
    let mut outgoing = Outgoing::new(usize::try_from(args.window).unwrap_or(usize::MAX));
    let sender = u32::try_from(number).unwrap_or(u32::MAX);
    let mut outcome = Outcome { to_ack: histogram(), to_delivery: histogram(), refused_for_now: 0 };
    let mut numbers = Numbers::default();
    let mut sent = 0;
    loop {
        let mut wake = outgoing.repeat(&mut talks);
        while !quota.is_over() && sent < numbers.last(sender) + args.window && outgoing.has_room(&talks, load.size) {
            match pace.next() {
                Ok(due) => {
                    sent += 1;
                    outgoing.send(&mut talks, &place, Stamp::new(sender, sent, due).content(load.size), due);
                    quota.take_one();
                }
                Err(at) => {
                    wake = wake.into_iter().chain([at]).min();
                    break;
                }
            }
        }
        if quota.is_over() && outgoing.is_empty() && numbers.last(sender) == sent {
            outcome.refused_for_now = outgoing.refused_for_now;
            talks.close().await;
            listens.close().await;
            return Ok(outcome);
        }
        let wake = wake.into_iter().chain(quota.until().filter(|_| outgoing.is_empty() && !quota.is_over())).min();
        talks.flush().await?;
        listens.flush().await?;
        tokio::select! {
            filled = talks.fill(wake) => filled?,
            filled = listens.fill(None) => filled?,
        }
        talks.hear(|heard| {
            if let Some(acked) = outgoing.hear(&heard) {
                outcome.to_ack.saturating_record(acked.micros());
            }
            Ok(())
        })?;
        listens.hear(|heard| {
            if let Heard::Received { stamp, .. } = heard {
                numbers.take(stamp).map_err(WireError::Broken)?;
                outcome.to_delivery.saturating_record(stamp.age_us());
                done.add(1);
            }
            Ok(())
        })?;
    }
}
