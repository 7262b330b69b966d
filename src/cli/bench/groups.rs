//! `longwire bench groups`: people with several devices, direct conversations, groups of all sizes and channels, who write,
//! read, react, edit, recall, type, come and go as [`super::mix`] says, at a rate that asks nobody.

mod device;
mod follower;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use tokio::sync::watch;

use super::super::Fail;
use super::args::Subject;
use super::cost::Meter;
use super::load::crew::{self, Counter};
use super::load::group;
use super::mix::{Mix, Planned};
use super::report::{Report, Run, histogram};
use super::{BrokerArgs, RunArgs};
use device::{Device, Name};

/// The most members of a group that its owner makes in one go (SPEC 11).
const AT_ONCE_MAX: usize = longwire_protocol::limits::GROUP_USERS_MAX;

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
    /// Devices that have made what is theirs to make, and whoever makes the large groups.
    ready: AtomicUsize,
    /// Devices that have sent everything and have every ack.
    sent: AtomicUsize,
    /// The newest acked seq of each conversation.
    heads: Mutex<HashMap<u64, u64>>,
    stage: watch::Sender<Stage>,
    did: Did,
    delivered: Arc<Counter>,
}

/// How often what was done.
#[derive(Default)]
struct Did {
    messages: Counter,
    marks: Counter,
    reactions: Counter,
    edits: Counter,
    recalls: Counter,
    membership_changes: Counter,
    signals: Counter,
    signals_heard: Counter,
    returns: Counter,
    vanished: Counter,
    /// Seqs of what was recalled before it came.
    recalled: Counter,
    /// Refused, since it was about what was recalled meanwhile, or in a group that the user was removed from.
    overtaken: Counter,
}

/// How much there is.
#[derive(Clone, Copy, Debug)]
struct Size {
    users: usize,
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

async fn measure(args: &Args, mix: &Arc<Mix>, subject: &Subject) -> Result<Run, Fail> {
    let mut random = fastrand::Rng::with_seed(args.seed);
    let planned = mix.plan(args.users, &mut random);
    let devices: Vec<Name> = (0..args.users)
        .flat_map(|user| {
            let devices = mix.devices(&mut random);
            (0..devices).map(move |device| Name { user, device })
        })
        .collect();
    let shared = Arc::new(Shared {
        mix: Arc::clone(mix),
        prefix: args.broker.devices_prefix.clone(),
        size: Size { users: args.users, devices: devices.len(), rate: args.rate, duration: args.duration },
        ready: AtomicUsize::new(0),
        sent: AtomicUsize::new(0),
        heads: Mutex::default(),
        stage: watch::Sender::new(Stage::Making),
        did: Did::default(),
        delivered: Arc::default(),
    });
    // Everyone is there before anyone makes a conversation: it is delivered to whoever is its member.
    let wires = crew::prepare(devices.iter().map(|&name| {
        let (broker, shared) = (subject.broker.clone(), Arc::clone(&shared));
        async move { name.connect(&broker, &shared).await }
    }))
    .await?;
    let mut run = Run::new(subject.name);
    run.figure("devices", "devices", devices.len() as f64);
    describe(&planned, &mut run);
    let (large, planned): (Vec<Planned>, Vec<Planned>) =
        planned.into_iter().partition(|plan| plan.members() > AT_ONCE_MAX && plan.channel.is_none());
    let mut to_make = to_make(planned);
    let began = Instant::now();
    let all = wires.into_iter().zip(devices).enumerate().map(|(number, (wire, name))| {
        let make = if name.device == 0 { to_make.remove(&name.user).unwrap_or_default() } else { Vec::new() };
        let random = fastrand::Rng::with_seed(args.seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Device::new(number, name, subject.broker.clone(), wire, Arc::clone(&shared), random).run(make)
    });
    let mut working = tokio::spawn(crew::work(all.collect::<Vec<_>>()));
    for (number, plan) in large.iter().enumerate() {
        let present = plan.users.iter().map(|user| shared.user(*user));
        let members = present.chain(plan.absent.iter().map(|number| shared.absent(*number))).collect();
        group::open(&subject.broker, &format!("{}-large{number}", shared.prefix), members).await?;
    }
    shared.one_is_ready();
    let mut stage = shared.stage.subscribe();
    tokio::select! {
        _ = stage.wait_for(|stage| *stage > Stage::Making) => {}
        failed = &mut working => {
            failed.map_err(|error| Fail::failed(error.to_string()))??;
            return Err(Fail::failed("everyone was gone before anyone talked"));
        }
    }
    run.figure("making_seconds", "made in, s", began.elapsed().as_secs_f64());
    let meter = Meter::start(subject)?;
    let (outcomes, points) = shared.delivered.while_doing("delivered", working).await;
    let outcomes = outcomes.map_err(|error| Fail::failed(error.to_string()))??;
    meter.stop(subject, shared.did.messages.get(), &mut run)?;
    let (mut to_ack, mut to_delivery, mut refused) = (histogram(), histogram(), 0);
    for outcome in outcomes {
        let added = to_ack.add(&outcome.to_ack).and_then(|()| to_delivery.add(&outcome.to_delivery));
        added.map_err(|error| Fail::failed(error.to_string()))?;
        refused += outcome.refused_for_now;
    }
    run.figure("deliveries", "deliveries", shared.delivered.get() as f64);
    shared.did.tell(&mut run);
    run.figure("refused_for_now", "refused for the moment", refused as f64);
    run.latency("publish to ack", &to_ack);
    run.latency("publish to delivery", &to_delivery);
    run.rate("deliveries", &points);
    Ok(run)
}

/// What conversations there are.
fn describe(planned: &[Planned], run: &mut Run) {
    let members = planned.iter().map(Planned::members).sum::<usize>();
    let channels = planned.iter().filter(|plan| plan.channel.is_some()).count();
    let largest = planned.iter().map(Planned::members).max().unwrap_or(0);
    run.figure("conversations", "conversations", planned.len() as f64);
    run.figure("channels", "of these channels", channels as f64);
    run.figure("members_mean", "members of one, on average", members as f64 / planned.len().max(1) as f64);
    run.figure("members_most", "members of the largest", largest as f64);
}

/// Who makes what: a group is made by its first user, a channel is opened by whoever reads it.
fn to_make(planned: Vec<Planned>) -> HashMap<usize, Vec<Planned>> {
    let mut to_make: HashMap<usize, Vec<Planned>> = HashMap::new();
    for plan in planned {
        let makers = if plan.channel.is_some() { &plan.users[..] } else { &plan.users[..1] };
        for maker in makers {
            to_make.entry(*maker).or_default().push(plan.clone());
        }
    }
    to_make
}

impl Did {
    fn tell(&self, run: &mut Run) {
        for (key, label, counter) in [
            ("marks", "read marks", &self.marks),
            ("reactions", "reactions", &self.reactions),
            ("edits", "edits", &self.edits),
            ("recalls", "recalls", &self.recalls),
            ("membership_changes", "members added and removed", &self.membership_changes),
            ("signals", "signals", &self.signals),
            ("signals_heard", "signals heard", &self.signals_heard),
            ("returns", "sessions that came back", &self.returns),
            ("vanished", "of these after no goodbye", &self.vanished),
            ("recalled", "recalled before they came", &self.recalled),
            ("overtaken", "overtaken by a recall or a removal", &self.overtaken),
        ] {
            run.figure(key, label, counter.get() as f64);
        }
    }
}

impl Shared {
    fn user(&self, number: usize) -> String {
        format!("{}-g{number}", self.prefix)
    }

    /// Someone who is never there.
    fn absent(&self, number: usize) -> String {
        format!("{}-a{number}", self.prefix)
    }

    /// A channel's name says who writes it.
    fn channel(&self, number: usize, writer: usize) -> String {
        format!("{}/{number}/{writer}", self.prefix)
    }

    /// One more is ready; the last one, whoever makes the large groups among them, begins the talk.
    fn one_is_ready(&self) {
        if self.ready.fetch_add(1, Ordering::AcqRel) == self.size.devices {
            self.stage.send_replace(Stage::Talking(Instant::now()));
        }
    }

    /// One more has sent everything.
    fn one_has_sent(&self) {
        if self.sent.fetch_add(1, Ordering::AcqRel) + 1 == self.size.devices {
            self.stage.send_replace(Stage::Awaiting);
        }
    }
}
