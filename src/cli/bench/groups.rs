//! `longwire bench groups`: people with several devices, direct conversations and groups of all sizes, who write and
//! read as [`super::mix`] says, at a rate that asks nobody.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use hdrhistogram::Histogram;
use longwire_client::packet::{self, ConversationKind, EntryKind, item, publish::Action};
use longwire_protocol::session::ClientEvent;
use tokio::sync::watch;

use super::super::Fail;
use super::args::Subject;
use super::cost::Meter;
use super::load::crew::{self, Counter};
use super::load::party::{self, Broker, Heard, Party, Place};
use super::load::sender::{Body, Outgoing, Pace, WINDOW};
use super::load::stamp::{Numbers, Stamp};
use super::load::wire::{Wire, WireError};
use super::mix::{Mix, Planned};
use super::report::{Report, Run, histogram};
use super::{BrokerArgs, RunArgs};

/// A realistic mix of direct conversations and groups
#[derive(Clone, Debug, ClapArgs)]
pub(in crate::cli) struct Args {
    /// How many users; some have several devices
    #[arg(long, default_value_t = 500, value_parser = super::args::some)]
    users: usize,

    /// Messages a second, in all
    #[arg(long, default_value_t = 500.0)]
    rate: f64,

    /// How long they talk
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = humantime::parse_duration)]
    duration: Duration,

    /// What they do, as TOML [default: the mix of a messenger, 40 conversations a user]
    #[arg(long, value_name = "FILE")]
    mix: Option<PathBuf>,

    /// Two runs with one seed have the same users, conversations and messages
    #[arg(long, default_value_t = 1)]
    seed: u64,

    #[command(flatten)]
    run: RunArgs,

    #[command(flatten)]
    broker: BrokerArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Fail> {
    let mix = Arc::new(Mix::read(args.mix.as_deref())?);
    let Args { users, rate, seed, .. } = args;
    let mix_name =
        args.mix.as_ref().map_or_else(|| "the mix of a messenger".to_owned(), |path| path.display().to_string());
    let setting = format!("{users} users, {rate} messages/s, {mix_name}, seed {seed}");
    args.broker
        .compare(args.run, None, Report::new("groups", setting), async |subject| measure(args, &mix, subject).await)
}

/// What all devices share.
struct Shared {
    mix: Arc<Mix>,
    prefix: String,
    size: Size,
    /// Devices that have made what is theirs to make.
    ready: AtomicUsize,
    /// Devices that have sent everything and have every ack.
    sent: AtomicUsize,
    /// The newest acked seq of each conversation.
    heads: Mutex<HashMap<u64, u64>>,
    stage: watch::Sender<Stage>,
    acked: Counter,
    delivered: Arc<Counter>,
    marks: Counter,
}

/// How much there is.
#[derive(Clone, Copy, Debug)]
struct Size {
    devices: usize,
    rate: f64,
    duration: Duration,
}

/// What everyone does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Conversations are made.
    Making,
    /// Messages are sent, from then on.
    Talking(Instant),
    /// Everything is sent and acked: what was acked is awaited.
    Awaiting,
}

struct Outcome {
    to_ack: Histogram<u64>,
    to_delivery: Histogram<u64>,
    refused_for_now: u64,
}

async fn measure(args: &Args, mix: &Arc<Mix>, subject: &Subject) -> Result<Run, Fail> {
    let mut random = fastrand::Rng::with_seed(args.seed);
    let planned = mix.plan(args.users, &mut random);
    let (conversations, members) = (planned.len(), planned.iter().map(|Planned(users)| users.len()).sum::<usize>());
    let mut to_make: HashMap<usize, Vec<Planned>> = HashMap::new();
    for plan in planned {
        to_make.entry(plan.0[0]).or_default().push(plan);
    }
    let devices: Vec<(usize, usize)> = (0..args.users)
        .flat_map(|user| {
            let devices = mix.devices(&mut random);
            (0..devices).map(move |device| (user, device))
        })
        .collect();
    let size = Size { devices: devices.len(), rate: args.rate, duration: args.duration };
    let shared = Arc::new(Shared {
        mix: Arc::clone(mix),
        prefix: args.broker.devices_prefix.clone(),
        size,
        ready: AtomicUsize::new(0),
        sent: AtomicUsize::new(0),
        heads: Mutex::default(),
        stage: watch::Sender::new(Stage::Making),
        acked: Counter::default(),
        delivered: Arc::default(),
        marks: Counter::default(),
    });
    // Everyone is there before anyone makes a conversation: it is delivered to whoever is its member.
    let parties = crew::prepare(devices.iter().map(|&(user, device)| {
        let (broker, user) = (subject.broker.clone(), shared.user(user));
        async move { connect(&broker, &user, device).await }
    }))
    .await?;
    let began = Instant::now();
    let all = parties.into_iter().zip(devices).enumerate().map(|(number, (party, (user, device)))| {
        let make = if device == 0 { to_make.remove(&user).unwrap_or_default() } else { Vec::new() };
        let random = fastrand::Rng::with_seed(args.seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Device::new(number, party, Arc::clone(&shared), random).run(make)
    });
    let mut working = tokio::spawn(crew::work(all.collect::<Vec<_>>()));
    let mut run = Run::new(subject.name);
    let mut stage = shared.stage.subscribe();
    tokio::select! {
        _ = stage.wait_for(|stage| *stage > Stage::Making) => {}
        failed = &mut working => {
            failed.map_err(|error| Fail::failed(error.to_string()))??;
            return Err(Fail::failed("everyone was gone before anyone talked"));
        }
    }
    run.figure("devices", "devices", size.devices as f64);
    run.figure("conversations", "conversations", conversations as f64);
    run.figure("members_mean", "members of one, on average", members as f64 / conversations.max(1) as f64);
    run.figure("making_seconds", "made in, s", began.elapsed().as_secs_f64());
    let meter = Meter::start(subject)?;
    let (outcomes, points) = shared.delivered.while_doing("delivered", working).await;
    let outcomes = outcomes.map_err(|error| Fail::failed(error.to_string()))??;
    meter.stop(subject, shared.acked.get(), &mut run)?;
    let (mut to_ack, mut to_delivery, mut refused) = (histogram(), histogram(), 0);
    for outcome in outcomes {
        let added = to_ack.add(&outcome.to_ack).and_then(|()| to_delivery.add(&outcome.to_delivery));
        added.map_err(|error| Fail::failed(error.to_string()))?;
        refused += outcome.refused_for_now;
    }
    run.figure("deliveries", "deliveries", shared.delivered.get() as f64);
    run.figure("marks", "read marks", shared.marks.get() as f64);
    run.figure("refused_for_now", "refused for the moment", refused as f64);
    run.latency("publish to ack", &to_ack);
    run.latency("publish to delivery", &to_delivery);
    run.rate("deliveries", &points);
    Ok(run)
}

async fn connect(broker: &Broker, user: &str, device: usize) -> Result<Box<Wire>, WireError> {
    match broker.connect_device(user, &format!("d{device}"), None).await? {
        Party::Longwire(wire) => Ok(wire),
        #[cfg(feature = "mqtt-peer")]
        Party::Mqtt(_) => Err(WireError::Broken("only Longwire has groups".to_owned())),
    }
}

impl Shared {
    fn user(&self, number: usize) -> String {
        format!("{}-g{number}", self.prefix)
    }

    /// One more is ready, or has sent everything; the last one begins the next stage.
    fn one_more(&self, count: &AtomicUsize, next: impl Fn() -> Stage) {
        if count.fetch_add(1, Ordering::AcqRel) + 1 == self.size.devices {
            self.stage.send_replace(next());
        }
    }
}

/// One device of a user.
struct Device {
    number: usize,
    wire: Box<Wire>,
    shared: Arc<Shared>,
    random: fastrand::Rng,
    outgoing: Outgoing,
    /// The user's conversations, and the weights of all up to each.
    places: Vec<u64>,
    weights: Vec<f64>,
    /// How many messages went to each.
    sent: HashMap<u64, u64>,
    /// What has come from each device in each conversation.
    numbers: HashMap<u64, Numbers>,
    /// The newest seq of each conversation, as acks say.
    acked: HashMap<u64, u64>,
    outcome: Outcome,
}

impl Device {
    fn new(number: usize, wire: Box<Wire>, shared: Arc<Shared>, random: fastrand::Rng) -> Self {
        Self {
            number,
            wire,
            shared,
            random,
            outgoing: Outgoing::new(WINDOW),
            places: Vec::new(),
            weights: Vec::new(),
            sent: HashMap::new(),
            numbers: HashMap::new(),
            acked: HashMap::new(),
            outcome: Outcome { to_ack: histogram(), to_delivery: histogram(), refused_for_now: 0 },
        }
    }

    async fn run(mut self, make: Vec<Planned>) -> Result<Outcome, WireError> {
        for plan in make {
            self.make(plan).await?;
        }
        let mut stage = self.shared.stage.subscribe();
        self.shared.one_more(&self.shared.ready, || Stage::Talking(Instant::now()));
        while *stage.borrow_and_update() == Stage::Making {
            self.turn(None, &mut stage).await?;
        }
        let Stage::Talking(began) = *stage.borrow() else {
            return Err(WireError::Broken("everyone was done before this one had begun".to_owned()));
        };
        self.talk(began, &mut stage).await?;
        {
            let mut heads = self.shared.heads.lock().unwrap_or_else(PoisonError::into_inner);
            for (conversation, seq) in &self.acked {
                let head = heads.entry(*conversation).or_default();
                *head = (*head).max(*seq);
            }
        }
        self.shared.one_more(&self.shared.sent, || Stage::Awaiting);
        while *stage.borrow_and_update() != Stage::Awaiting || !self.has_everything() {
            self.turn(None, &mut stage).await?;
        }
        self.outcome.refused_for_now = self.outgoing.refused_for_now;
        self.wire.close().await;
        Ok(self.outcome)
    }

    /// Makes a conversation, and takes in what comes meanwhile.
    async fn make(&mut self, Planned(users): Planned) -> Result<(), WireError> {
        let mut others = users.iter().skip(1).map(|user| self.shared.user(*user));
        let action = if users.len() == 2 {
            Action::OpenDirect(packet::OpenDirect { user: others.next().unwrap_or_default() })
        } else {
            Action::CreateGroup(packet::CreateGroup {
                label: format!("{} people", users.len()),
                users: others.collect(),
                ..Default::default()
            })
        };
        let message_id = self.outgoing.take_id();
        self.wire.session.publish(packet::Publish { message_id, action: Some(action), ..Default::default() });
        let mut made = false;
        while !made {
            self.wire.step().await?;
            while let Some(event) = self.wire.next_event()? {
                match event {
                    ClientEvent::PublishAck(_) => made = true,
                    ClientEvent::Refused(refusal) => return Err(refusal.into()),
                    ClientEvent::Items { items, .. } => {
                        join(&self.shared.mix, &mut self.places, &mut self.weights, &items)
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Sends what is due until the time is over and everything is acked.
    async fn talk(&mut self, began: Instant, stage: &mut watch::Receiver<Stage>) -> Result<(), WireError> {
        let size = self.shared.size;
        let mut pace = Pace::since(began, Some(size.rate), self.number, size.devices);
        let end = began + size.duration;
        loop {
            let mut wake = self.outgoing.repeat(&mut *self.wire);
            let over = Instant::now() >= end || self.places.is_empty();
            while !over && self.outgoing.has_room(&*self.wire, 64 * 1024) {
                match pace.next() {
                    Ok(due) => self.say(due),
                    Err(at) => {
                        wake = wake.into_iter().chain([at.min(end)]).min();
                        break;
                    }
                }
            }
            if over && self.outgoing.is_empty() {
                return Ok(());
            }
            self.turn(wake, stage).await?;
        }
    }

    /// One message somewhere, and now and then that it was read.
    fn say(&mut self, due: Instant) {
        let all = self.weights.last().copied().unwrap_or(0.0);
        let at = self.random.f64() * all;
        let chosen = self.weights.partition_point(|weight| *weight < at).min(self.places.len() - 1);
        let conversation = self.places[chosen];
        let number = self.sent.entry(conversation).or_default();
        *number += 1;
        let stamp = Stamp::new(u32::try_from(self.number).unwrap_or(u32::MAX), *number, due);
        let content = stamp.content(self.shared.mix.bytes(&mut self.random));
        let place = Place::Conversation(conversation);
        self.outgoing.send(&mut *self.wire, &place, Body::Content(content), due);
        if self.random.f64() < self.shared.mix.marks_per_message
            && let Some(seq) = self.wire.streams.last(conversation)
            && self.outgoing.has_room(&*self.wire, 64)
        {
            self.outgoing.send(&mut *self.wire, &place, Body::Mark(seq), due);
            self.shared.marks.add(1);
        }
    }

    /// Writes, reads and takes in what has come; returns early when the stage changes.
    async fn turn(&mut self, wake: Option<Instant>, stage: &mut watch::Receiver<Stage>) -> Result<(), WireError> {
        self.wire.flush().await?;
        tokio::select! {
            filled = self.wire.fill(wake) => filled?,
            changed = stage.changed() => drop(changed),
        }
        let Self { wire, shared, outgoing, places, weights, numbers, acked, outcome, .. } = self;
        while let Some(event) = wire.next_event()? {
            if let ClientEvent::Items { items, .. } = &event {
                join(&shared.mix, places, weights, items);
            }
            party::hear(event, &mut |heard| {
                match heard {
                    Heard::Received { stamp, conversation } => {
                        numbers.entry(conversation).or_default().take(stamp).map_err(WireError::Broken)?;
                        outcome.to_delivery.saturating_record(stamp.age_us());
                        shared.delivered.add(1);
                    }
                    heard => {
                        if let Some(answered) = outgoing.hear(&heard)
                            && let (Some(seq), Place::Conversation(conversation)) = (answered.seq, &answered.place)
                            && !answered.is_mark
                        {
                            outcome.to_ack.saturating_record(answered.micros());
                            shared.acked.add(1);
                            let head = acked.entry(*conversation).or_default();
                            *head = (*head).max(seq);
                        }
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Whether everything that was acked to anyone has come here, where it should.
    fn has_everything(&self) -> bool {
        let heads = self.shared.heads.lock().unwrap_or_else(PoisonError::into_inner);
        self.places.iter().all(|conversation| {
            let head = heads.get(conversation).copied().unwrap_or(0);
            self.wire.streams.last(*conversation).unwrap_or(0) >= head
        })
    }
}

/// Takes in which conversations the user has.
fn join(mix: &Mix, places: &mut Vec<u64>, weights: &mut Vec<f64>, items: &[packet::Item]) {
    for item in items {
        if let Some(item::Kind::Entry(entry)) = &item.kind
            && entry.kind() == EntryKind::Joined
            && let Some(joined) = &entry.joined
            && !places.contains(&joined.conversation)
        {
            let direct = joined.kind() == ConversationKind::Direct;
            let before = weights.last().copied().unwrap_or(0.0);
            weights.push(before + mix.weight(places.len(), direct));
            places.push(joined.conversation);
        }
    }
}
