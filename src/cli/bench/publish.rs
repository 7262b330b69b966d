//! `longwire bench publish`: closed or open loop, over connections that each are a user of their own.

use std::collections::HashMap;
use std::sync::Arc;

use clap::Args as ClapArgs;
use hdrhistogram::Histogram;
use longwire_protocol::limits::ID_SPAN_MAX;

use super::super::Fail;
use super::args::Subject;
use super::cost::Meter;
use super::load::crew::{self, Counter};
use super::load::party::{Party, Place};
use super::load::sender::{Outgoing, Pace, Quota};
use super::load::stamp::Stamp;
use super::load::wire::WireError;
use super::report::{Report, Run, histogram};
use super::{BrokerArgs, LoadArgs};

/// Publishes from many connections
#[derive(Clone, Debug, ClapArgs)]
pub(in crate::cli) struct Args {
    /// How many connections, each a user with a device of its own
    #[arg(long, default_value_t = 100, value_parser = super::args::some)]
    connections: usize,

    /// Publishes under way on each connection
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=ID_SPAN_MAX))]
    window: u64,

    /// All connections publish to one channel, instead of one each
    #[arg(long)]
    shared: bool,

    #[command(flatten)]
    load: LoadArgs,

    #[command(flatten)]
    broker: BrokerArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Fail> {
    let Args { connections, window, shared, load, .. } = args;
    let (size, pace) = (load.size, load.pace());
    let place = if *shared { "one channel" } else { "a channel each" };
    let setting = format!("{connections} connections, window {window}, {place}, {size} bytes, {pace}");
    args.broker.compare(load.run, None, Report::new("publish", setting), async |subject| measure(args, subject).await)
}

/// What one connection did.
struct Outcome {
    conversation: u64,
    took: Histogram<u64>,
    seqs: Vec<u64>,
    refused_for_now: u64,
}

async fn measure(args: &Args, subject: &Subject) -> Result<Run, Fail> {
    let prepared = crew::prepare((0..args.connections).map(|number| {
        let (broker, prefix) = (subject.broker.clone(), args.broker.devices_prefix.clone());
        let channel = if args.shared { format!("{prefix}/all") } else { format!("{prefix}/{number}") };
        async move {
            let mut party = broker.connect(&format!("{prefix}-{number}"), None).await?;
            let place = party.open_channel(&channel).await?;
            Ok((party, place))
        }
    }))
    .await?;
    let meter = Meter::start(subject)?;
    let done = Arc::new(Counter::default());
    let all = prepared
        .into_iter()
        .enumerate()
        .map(|(number, (party, place))| publish(args.clone(), number, party, place, Arc::clone(&done)));
    let (outcomes, points) = done.while_doing("acked", crew::work(all)).await;
    let outcomes = outcomes?;
    let mut run = Run::new(subject.name);
    meter.stop(subject, done.get(), &mut run)?;
    let mut took = histogram();
    for outcome in &outcomes {
        took.add(&outcome.took).map_err(|error| Fail::failed(error.to_string()))?;
    }
    run.latency("publish to ack", &took);
    run.rate("messages", &points);
    let refused: u64 = outcomes.iter().map(|outcome| outcome.refused_for_now).sum();
    run.figure("refused_for_now", "refused for the moment", refused as f64);
    verify(outcomes)?;
    Ok(run)
}

/// Publishes until its share is done and acked.
async fn publish(
    args: Args,
    number: usize,
    mut party: Party,
    place: Place,
    done: Arc<Counter>,
) -> Result<Outcome, WireError> {
    #[cfg_attr(not(feature = "mqtt-peer"), expect(irrefutable_let_patterns, reason = "MQTT has topics"))]
    let Place::Conversation(conversation) = place else {
        return Err(WireError::Broken("only Longwire has conversations".to_owned()));
    };
    let load = &args.load;
    let mut pace = Pace::of(load.rate, number, args.connections);
    let mut quota = Quota::of(load.count, load.duration, number, args.connections);
    let mut outgoing = Outgoing::new(usize::try_from(args.window).unwrap_or(usize::MAX));
    let sender = u32::try_from(number).unwrap_or(u32::MAX);
    let mut outcome = Outcome { conversation, took: histogram(), seqs: Vec::new(), refused_for_now: 0 };
    let mut sent = 0;
    loop {
        let mut wake = outgoing.repeat(&mut party);
        while !quota.is_over() && outgoing.has_room(&party, load.size) {
            match pace.next() {
                Ok(due) => {
                    sent += 1;
                    let content = Stamp::new(sender, sent, due).content(load.size);
                    outgoing.send(&mut party, &place, content, due);
                    quota.take_one();
                }
                Err(at) => {
                    wake = wake.into_iter().chain([at]).min();
                    break;
                }
            }
        }
        if quota.is_over() && outgoing.is_empty() {
            outcome.refused_for_now = outgoing.refused_for_now;
            party.close().await;
            return Ok(outcome);
        }
        party
            .step(wake.into_iter().chain(quota.until().filter(|_| outgoing.is_empty() && !quota.is_over())).min())
            .await?;
        party.hear(|heard| {
            if let Some(acked) = outgoing.hear(&heard) {
                outcome.took.saturating_record(acked.micros());
                outcome.seqs.extend(acked.seq);
                done.add(1);
            }
            Ok(())
        })?;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(conversation: u64, seqs: &[u64]) -> Outcome {
        Outcome { conversation, took: histogram(), seqs: seqs.to_vec(), refused_for_now: 0 }
    }

    #[test]
    fn a_gap_or_a_double_is_noticed() {
        assert!(verify(vec![outcome(1, &[5, 6, 7]), outcome(2, &[]), outcome(3, &[1])]).is_ok());
        assert!(verify(vec![outcome(1, &[5, 7]), outcome(1, &[6, 8])]).is_ok(), "shared");
        assert!(verify(vec![outcome(1, &[5, 7])]).is_err());
        assert!(verify(vec![outcome(1, &[5, 6]), outcome(1, &[6])]).is_err());
    }
}
