//! `longwire bench fanout`: what one says, many hear. The next message leaves once all have the one before, or as many
//! before as the window holds.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args as ClapArgs;
use hdrhistogram::Histogram;
use longwire_protocol::limits::ID_SPAN_MAX;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, JoinSet};

use super::super::Fail;
use super::args::Subject;
use super::cost::Meter;
use super::load::crew::{self, Counter};
use super::load::group;
use super::load::party::{Broker, Heard, Party, Place};
use super::load::sender::{Outgoing, Pace, Quota};
use super::load::stamp::{Numbers, Stamp};
use super::load::wire::WireError;
use super::report::{Report, Run, histogram};
use super::{BrokerArgs, LoadArgs, PeerArgs};

/// One publisher and many readers
#[derive(Clone, Debug, ClapArgs)]
pub(in crate::cli) struct Args {
    /// How many readers of each channel, each a user with a connection
    #[arg(long, default_value_t = 1000)]
    readers: usize,

    /// A group of so many members in place of each channel: beside publisher and readers, all of them are away
    #[arg(long, value_name = "MEMBERS", conflicts_with = "peer")]
    members: Option<usize>,

    /// How many channels, each with a publisher
    #[arg(long, default_value_t = 1, value_parser = super::args::some)]
    channels: usize,

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
    let Args { readers, window, channels, load, members, .. } = args;
    if *readers == 0 && members.is_none() {
        return Err(Fail::usage("--readers: 0 are for a group alone, whose members are away; see --members"));
    }
    if members.is_some_and(|members| members <= *readers) {
        return Err(Fail::usage(
            "--members: the publisher and all readers are among them; give at least one more than --readers",
        ));
    }
    let shape = Shape { channels: *channels, readers: *readers, never_ack: 0, window: *window, members: *members };
    let setting = format!("{channels} to {readers} each, window {window}, {} bytes, {}", load.size, load.pace());
    let mut report = Report::new("fanout", setting);
    report.note("messages are deliveries: each message counts once for every reader");
    args.broker.compare(load.run, Some(&args.peer), report, async |subject| {
        let mut run = Run::new(subject.name);
        let names = format!("{}-fanout", args.broker.devices_prefix);
        measure(shape, load, subject, &names, &mut run).await?;
        Ok(run)
    })
}

/// How many readers have each of the messages under way.
struct Rounds {
    readers: usize,
    /// How many may be under way.
    window: u64,
    /// By number, modulo as many as can be under way.
    have: Vec<AtomicUsize>,
    /// Told when a message has reached all.
    complete: Notify,
    /// The newest that all have: readers have them in order, so all before it too.
    all_have: AtomicU64,
}

impl Rounds {
    fn new(readers: usize, window: u64) -> Self {
        let have = (0..=window).map(|_| AtomicUsize::new(0)).collect();
        Self { readers, window, have, complete: Notify::new(), all_have: AtomicU64::new(0) }
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

/// How long deliveries took. Few histograms for many readers: each of them takes 170 KB.
struct Took([Mutex<Histogram<u64>>; 16]);

impl Took {
    fn new() -> Self {
        Self(std::array::from_fn(|_| Mutex::new(histogram())))
    }

    /// A reader got something.
    fn record(&self, reader: usize, us: u64) {
        let mut took = self.0[reader % self.0.len()].lock().unwrap_or_else(PoisonError::into_inner);
        took.saturating_record(us);
    }

    /// Adds all of it.
    fn add_to(&self, all: &mut Histogram<u64>) -> Result<(), Fail> {
        self.0.iter().try_for_each(|took| {
            let took = took.lock().unwrap_or_else(PoisonError::into_inner);
            all.add(&*took).map_err(|error| Fail::failed(error.to_string()))
        })
    }
}

/// Channels, and who reads them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) channels: usize,
    /// Readers of each channel that ack.
    pub(super) readers: usize,
    /// Readers of each channel, beside those, that never do.
    pub(super) never_ack: usize,
    pub(super) window: u64,
    /// A group of so many in place of a channel.
    pub(super) members: Option<usize>,
}

/// One channel, with its readers ready.
struct Channel {
    publisher: Party,
    place: Place,
    readers: Vec<Party>,
    /// Those that never ack.
    slow: Vec<Party>,
}

/// What came of a channel.
struct Outcome {
    to_ack: Histogram<u64>,
    refused_for_now: u64,
    /// Who has everything, and is there still.
    readers: Vec<Party>,
    /// Readers whose connection the broker has ended because they never acked.
    cut: usize,
}

/// Has all channels talk; messages are deliveries to readers that ack. Users and channels have names of their own.
pub(super) async fn measure(
    shape: Shape,
    load: &LoadArgs,
    subject: &Subject,
    names: &str,
    run: &mut Run,
) -> Result<(), Fail> {
    let mut channels = Vec::with_capacity(shape.channels);
    for number in 0..shape.channels {
        channels.push(open(shape, &subject.broker, &format!("{names}-{number}")).await?);
    }
    let (done, took) = (Arc::new(Counter::default()), Arc::new(Took::new()));
    let meter = Meter::start(subject)?;
    let all = channels.into_iter().enumerate().map(|(number, channel)| {
        let pace = Pace::of(load.rate, number, shape.channels);
        let quota = Quota::of(load.count, load.duration, number, shape.channels);
        talk(channel, pace, quota, shape.window, load.size, (Arc::clone(&done), Arc::clone(&took)))
    });
    let (outcomes, points) = done.while_doing("delivered", crew::work(all)).await;
    let (mut to_ack, mut to_delivery, mut refused, mut cut) = (histogram(), histogram(), 0, 0);
    let outcomes = outcomes?;
    meter.stop(subject, done.get(), run)?;
    took.add_to(&mut to_delivery)?;
    for outcome in outcomes {
        to_ack.add(&outcome.to_ack).map_err(|error| Fail::failed(error.to_string()))?;
        refused += outcome.refused_for_now;
        cut += outcome.cut;
        // Only now: that they go is no part of what a delivery costs.
        let mut leaving: JoinSet<()> = outcome.readers.into_iter().map(Party::close).collect();
        while leaving.join_next().await.is_some() {}
    }
    run.latency("publish to ack", &to_ack);
    run.latency("publish to delivery", &to_delivery);
    run.rate("deliveries", &points);
    run.figure("refused_for_now", "refused for the moment", refused as f64);
    if shape.never_ack > 0 {
        run.figure("cut", "cut for never acking", cut as f64);
    }
    Ok(())
}

async fn open(shape: Shape, broker: &Broker, name: &str) -> Result<Channel, Fail> {
    let (user, readers) = (format!("{name}-p"), shape.readers + shape.never_ack);
    let reader = |number| format!("{name}-r{number}");
    let (publisher, place) = match shape.members {
        None => {
            let mut publisher = broker.connect(&user, None).await?;
            let place = publisher.open_channel(name).await?;
            (publisher, place)
        }
        Some(members) => {
            let away = (readers + 1 + group::STAFF..members).map(|number| format!("{name}-m{number}"));
            let all = (0..readers).map(reader).chain(away).chain([user.clone()]).collect();
            let place = group::open(broker, name, all).await?;
            (broker.connect(&user, None).await?, place)
        }
    };
    let is_group = shape.members.is_some();
    let mut readers = crew::prepare((0..readers).map(|number| {
        let (broker, place, user) = (broker.clone(), place.clone(), reader(number));
        async move {
            let mut reader = broker.connect(&user, None).await?;
            // A member gets what is said without asking.
            if !is_group {
                reader.watch(&place).await?;
            }
            Ok(reader)
        }
    }))
    .await?;
    let mut slow = readers.split_off(shape.readers);
    slow.iter_mut().for_each(Party::never_ack);
    Ok(Channel { publisher, place, readers, slow })
}

/// Publishes until its share is done and everyone who acks has it.
async fn talk(
    channel: Channel,
    pace: Pace,
    quota: Quota,
    window: u64,
    size: usize,
    (done, took): (Arc<Counter>, Arc<Took>),
) -> Result<Outcome, WireError> {
    let rounds = Arc::new(Rounds::new(channel.readers.len(), window));
    let mut stalled = JoinSet::new();
    for mut reader in channel.slow {
        stalled.spawn(async move { reader.rest().await });
    }
    let (end, ended) = watch::channel(u64::MAX);
    let mut reading = JoinSet::new();
    for (number, reader) in channel.readers.into_iter().enumerate() {
        let (done, took) = (Arc::clone(&done), Arc::clone(&took));
        let note = move |us| {
            took.record(number, us);
            done.add(1);
        };
        reading.spawn(read(reader, Arc::clone(&rounds), note, ended.clone()));
    }
    let publishing = publish(channel.publisher, channel.place, pace, quota, size, &rounds, &done);
    tokio::pin!(publishing);
    let (sent, to_ack, refused_for_now) = tokio::select! {
        published = &mut publishing => published?,
        // None ends before it is told to, unless it fails: then nobody would have everything.
        Some(read) = reading.join_next() => {
            return Err(failure(read).unwrap_or_else(|| WireError::Broken("a reader ended early".to_owned())));
        }
    };
    end.send_replace(sent);
    let mut readers = Vec::new();
    while let Some(read) = reading.join_next().await {
        match read {
            Ok(Ok(reader)) => readers.push(reader),
            failed => return Err(failure(failed).unwrap_or_else(|| WireError::Broken("a reader failed".to_owned()))),
        }
    }
    let mut cut = 0;
    while stalled.try_join_next().is_some() {
        cut += 1;
    }
    Ok(Outcome { to_ack, refused_for_now, readers, cut })
}

fn failure<T>(read: Result<Result<T, WireError>, JoinError>) -> Option<WireError> {
    match read {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error),
        Err(error) => Some(WireError::Broken(error.to_string())),
    }
}

/// Returns how many it sent, how long acks took, and how many were refused for the moment.
async fn publish(
    mut party: Party,
    place: Place,
    mut pace: Pace,
    mut quota: Quota,
    size: usize,
    rounds: &Rounds,
    done: &Counter,
) -> Result<(u64, Histogram<u64>, u64), WireError> {
    let mut outgoing = Outgoing::new(usize::try_from(rounds.window).unwrap_or(usize::MAX));
    let mut took = histogram();
    let mut sent = 0;
    loop {
        let mut wake = outgoing.repeat(&mut party);
        while !quota.is_over()
            && (rounds.readers == 0 || sent < rounds.all_have() + rounds.window)
            && outgoing.has_room(&party, size)
        {
            match pace.next() {
                Ok(due) => {
                    sent += 1;
                    outgoing.send(&mut party, &place, Stamp::new(0, sent, due).content(size), due);
                    quota.take_one();
                }
                Err(at) => {
                    wake = wake.into_iter().chain([at]).min();
                    break;
                }
            }
        }
        if quota.is_over() && outgoing.is_empty() && (rounds.readers == 0 || rounds.all_have() == sent) {
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
                // Where nobody hears them, messages are counted themselves.
                if rounds.readers == 0 {
                    done.add(1);
                }
            }
            Ok(())
        })?;
    }
}

/// Reads until it has everything that was published, and notes how long each took, in microseconds.
async fn read(
    mut party: Party,
    rounds: Arc<Rounds>,
    note: impl Fn(u64),
    mut ended: watch::Receiver<u64>,
) -> Result<Party, WireError> {
    let mut numbers = Numbers::default();
    loop {
        party.flush().await?;
        tokio::select! {
            filled = party.fill(None) => filled?,
            changed = ended.changed() => if changed.is_err() { return Ok(party) },
        }
        party.hear(|heard| {
            if let Heard::Received { stamp, .. } = heard {
                numbers.take(stamp).map_err(WireError::Broken)?;
                note(stamp.age_us());
                rounds.has(stamp.number);
            }
            Ok(())
        })?;
        if numbers.last(0) >= *ended.borrow() {
            return Ok(party);
        }
    }
}
