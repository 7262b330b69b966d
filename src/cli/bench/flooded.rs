//! `longwire bench flooded`: one person is in many groups, all of which flood, and a friend writes to it directly: what the
//! floods do to that, in the foreground, in the background, and with levels that want less of the groups.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use hdrhistogram::Histogram;
use longwire_client::packet::{self, publish::Action};

use super::super::Fail;
use super::super::conversation::Wants;
use super::args::Subject;
use super::cost::Meter;
use super::load::crew::{self, Counter};
use super::load::party::{Broker, Heard, OPEN_ID, Party, Place, hear};
use super::load::sender::{Outgoing, Pace, Quota, WINDOW};
use super::load::stamp::{Numbers, Stamp};
use super::load::wire::{Wire, WireError};
use super::report::{Report, Run, histogram};
use super::{BrokerArgs, RunArgs};

/// Who floods: each has its share of the groups.
const WRITERS: usize = 10;
/// Bytes of each message.
const SIZE: usize = 200;
/// How often the person looks whether all has come.
const LOOK: Duration = Duration::from_millis(50);

/// One person in many groups that flood, and direct messages to it
#[derive(Clone, Debug, ClapArgs)]
pub(in crate::cli) struct Args {
    /// How many groups; ten users write into them
    #[arg(long, default_value_t = 200, value_parser = super::args::some)]
    groups: usize,

    /// Messages a second into all groups together [default: as fast as they are acked]
    #[arg(long, value_name = "MESSAGES")]
    rate: Option<f64>,

    /// Direct messages a second
    #[arg(long, default_value_t = 50.0)]
    direct: f64,

    /// How long
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,

    /// How much the person wants of the groups
    #[arg(long, value_enum, default_value_t = Wants::Full)]
    level: Wants,

    /// Nobody looks at the person's device
    #[arg(long)]
    background: bool,

    #[command(flatten)]
    run: RunArgs,

    #[command(flatten)]
    broker: BrokerArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Fail> {
    let pace = args.rate.map_or_else(|| "as fast as they are acked".to_owned(), |rate| format!("{rate} messages/s"));
    let ground = if args.background { "background" } else { "foreground" };
    let setting = format!(
        "{} groups, {pace}, {} direct messages/s, level {}, {ground}",
        args.groups,
        args.direct,
        format!("{:?}", args.level).to_lowercase()
    );
    args.broker.compare(args.run, None, Report::new("flooded", setting), async |subject| measure(args, subject).await)
}

/// What all of them share.
#[derive(Default)]
struct Shared {
    /// Messages into groups that were acked.
    flooded: Counter,
    /// Entries of groups that came to the person.
    came: AtomicU64,
    /// Direct messages that were sent, once they all are; and 0 until then.
    sent: AtomicU64,
}

/// What came of one of them: of the person how long direct messages took, of others their acks; and what was reported.
struct Outcome {
    took: Histogram<u64>,
    is_person: bool,
    reported: u64,
}

type Work = Pin<Box<dyn Future<Output = Result<Outcome, WireError>> + Send>>;

async fn connect(broker: &Broker, user: &str) -> Result<Box<Wire>, WireError> {
    match broker.connect(user, None).await? {
        Party::Longwire(wire) => Ok(wire),
        #[cfg(feature = "mqtt-peer")]
        Party::Mqtt(_) => Err(WireError::Broken("only Longwire has groups".to_owned())),
    }
}

async fn measure(args: &Args, subject: &Subject) -> Result<Run, Fail> {
    let prefix = &args.broker.devices_prefix;
    let name = format!("{prefix}-person");
    let mut person = connect(&subject.broker, &name).await?;
    let prepared = crew::prepare((0..WRITERS).map(|writer| {
        let (broker, user, name) = (subject.broker.clone(), format!("{prefix}-w{writer}"), name.clone());
        let groups = (writer..args.groups).step_by(WRITERS).len();
        async move {
            let mut wire = connect(&broker, &user).await?;
            let mut places = Vec::new();
            for message_id in 1..=groups as u64 {
                let create = packet::CreateGroup { users: vec![name.clone()], ..Default::default() };
                let action = Some(Action::CreateGroup(create));
                let publish =
                    packet::Publish { message_id, first_unanswered: message_id, action, ..Default::default() };
                places.push(wire.publish_one(publish).await?.conversation);
            }
            Ok((wire, places))
        }
    }))
    .await?;
    let mut friend = connect(&subject.broker, &format!("{prefix}-friend")).await?;
    let open = Some(Action::OpenDirect(packet::OpenDirect { user: name }));
    let publish = packet::Publish { message_id: OPEN_ID, action: open, ..Default::default() };
    let direct = friend.publish_one(publish).await?.conversation;
    if args.level != Wants::Full {
        let all = prepared.iter().flat_map(|(_, places)| places);
        for (message_id, conversation) in (1..).zip(all) {
            let action = Some(Action::SetLevel(packet::SetLevel { level: args.level.wire().into() }));
            let (conversation, first_unanswered) = (*conversation, message_id);
            let publish = packet::Publish { conversation, message_id, first_unanswered, action, ..Default::default() };
            person.publish_one(publish).await?;
        }
    }
    if args.background {
        let background = packet::BackgroundRequest { background: true };
        person.ask(packet::request::Op::Background(background)).await?;
    }
    let shared = Arc::new(Shared::default());
    let meter = Meter::start(subject)?;
    let mut all: Vec<Work> = Vec::new();
    for (writer, (wire, places)) in prepared.into_iter().enumerate() {
        let rate = args.rate;
        let (pace, quota) = (Pace::of(rate, writer, WRITERS), Quota::of(None, args.duration, writer, WRITERS));
        all.push(Box::pin(write(wire, places, writer, pace, quota, Arc::clone(&shared))));
    }
    let (pace, quota) = (Pace::of(Some(args.direct), 0, 1), Quota::of(None, args.duration, 0, 1));
    all.push(Box::pin(write(friend, vec![direct], WRITERS, pace, quota, Arc::clone(&shared))));
    all.push(Box::pin(read(person, direct, Arc::clone(&shared))));
    let (outcomes, points) = shared.flooded.while_doing("flooded", crew::work(all)).await;
    let outcomes = outcomes?;
    let mut run = Run::new(subject.name);
    meter.stop(subject, shared.flooded.get(), &mut run)?;
    let mut to_ack = histogram();
    for outcome in &outcomes {
        if outcome.is_person {
            run.latency("direct message to delivery", &outcome.took);
            run.figure("reported", "seqs reported in place of delivered", outcome.reported as f64);
        } else {
            to_ack.add(&outcome.took).map_err(|error| Fail::failed(error.to_string()))?;
        }
    }
    run.latency("publish to ack", &to_ack);
    run.figure("direct", "direct messages", shared.sent.load(Ordering::Relaxed) as f64);
    run.figure("came", "entries of groups delivered to the person", shared.came.load(Ordering::Relaxed) as f64);
    run.rate("messages into groups", &points);
    Ok(run)
}

/// Writes into each place in turn, until its time is over.
async fn write(
    mut wire: Box<Wire>,
    places: Vec<u64>,
    writer: usize,
    mut pace: Pace,
    quota: Quota,
    shared: Arc<Shared>,
) -> Result<Outcome, WireError> {
    let is_friend = writer == WRITERS;
    let mut outgoing = Outgoing::after(WINDOW, places.len() as u64);
    let mut outcome = Outcome { took: histogram(), is_person: false, reported: 0 };
    let mut sent = 0;
    loop {
        let mut wake = outgoing.repeat(&mut *wire).into_iter().chain(quota.until()).min();
        while !quota.is_over() && !places.is_empty() && outgoing.has_room(&*wire, SIZE) {
            match pace.next() {
                Ok(due) => {
                    let place = Place::Conversation(places[sent as usize % places.len()]);
                    sent += 1;
                    let stamp = Stamp::new(u32::try_from(writer).unwrap_or(u32::MAX), sent, due);
                    outgoing.send(&mut *wire, &place, stamp.content(SIZE), due);
                }
                Err(at) => {
                    wake = wake.into_iter().chain([at]).min();
                    break;
                }
            }
        }
        if quota.is_over() && outgoing.is_empty() {
            if is_friend {
                shared.sent.store(sent, Ordering::Release);
            }
            wire.close().await;
            return Ok(outcome);
        }
        wire.flush().await?;
        wire.fill(wake.filter(|_| !quota.is_over())).await?;
        while let Some(event) = wire.next_event()? {
            hear(event, &mut |heard| {
                if let Some(acked) = outgoing.hear(&heard) {
                    outcome.took.saturating_record(acked.micros());
                    if !is_friend {
                        shared.flooded.add(1);
                    }
                }
                Ok(())
            })?;
        }
    }
}

/// The person: takes what comes until every direct message has.
async fn read(mut wire: Box<Wire>, direct: u64, shared: Arc<Shared>) -> Result<Outcome, WireError> {
    let (mut took, mut numbers, mut came) = (histogram(), Numbers::default(), 0);
    loop {
        let sent = shared.sent.load(Ordering::Acquire);
        if sent > 0 && came == sent {
            let reported = wire.streams.reported;
            wire.close().await;
            return Ok(Outcome { took, is_person: true, reported });
        }
        wire.flush().await?;
        wire.fill(Some(Instant::now() + LOOK)).await?;
        while let Some(event) = wire.next_event()? {
            hear(event, &mut |heard| {
                if let Heard::Received { stamp, conversation } = heard {
                    if conversation == direct {
                        numbers.take(stamp).map_err(WireError::Broken)?;
                        took.saturating_record(stamp.age_us());
                        came += 1;
                    } else {
                        shared.came.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Ok(())
            })?;
        }
    }
}
