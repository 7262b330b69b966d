//! `longwire bench offline`: devices go away, messages pile up for them, and all return.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use clap::Args as ClapArgs;
use longwire_client::packet::{self, CatchUpMode, EntryKind, StartKind, item, publish::Action};
use longwire_protocol::session::ClientEvent;

use super::super::Fail;
use super::args::{Issuer, Subject};
use super::cost::Meter;
use super::load::crew::{self, Counter};
use super::load::party::{Broker, OPEN_ID, Party, Place};
use super::load::sender::{Outgoing, WINDOW};
use super::load::stamp::Stamp;
use super::load::way::Way;
use super::load::wire::{Wire, WireError, fresh};
use super::report::{Report, Run, histogram};
use super::{BrokerArgs, RunArgs};

/// Devices are away, and all return
#[derive(Clone, Debug, ClapArgs)]
pub(in crate::cli) struct Args {
    /// How many devices, each of a user of its own
    #[arg(long, default_value_t = 1000, value_parser = super::args::some)]
    devices: usize,

    /// Messages for each
    #[arg(long, default_value_t = 100)]
    messages: u64,

    /// Bytes of each message
    #[arg(long, default_value_t = 200)]
    size: usize,

    #[command(flatten)]
    run: RunArgs,

    #[command(flatten)]
    broker: BrokerArgs,
}

/// The name of each device.
const DEVICE: &str = "phone";
/// Who writes to them.
const WRITERS: usize = 16;

pub(super) fn run(args: &Args) -> Result<(), Fail> {
    let Args { devices, messages, size, .. } = args;
    let setting = format!("{devices} devices, {messages} messages of {size} bytes for each");
    let mut report = Report::new("offline", setting);
    report.note("the devices connect first, then read all together: what a window holds may be under way by then");
    args.broker.compare(args.run, None, report, async |subject| measure(args, subject).await)
}

async fn measure(args: &Args, subject: &Subject) -> Result<Run, Fail> {
    let (way, issuer) = subject.broker.longwire()?;
    let prefix = &args.broker.devices_prefix;
    let user = |number: usize| format!("{prefix}-away{number}");
    // Each device connects once, so that the broker knows it, and goes.
    let devices = crew::prepare((0..args.devices).map(|number| {
        let (way, issuer, user) = (way.clone(), issuer.clone(), user(number));
        async move { leave(&way, &issuer, &user).await }
    }))
    .await?;
    let mut run = Run::new(subject.name);
    write(args, &subject.broker, &user, &mut run).await?;

    let meter = Meter::start(subject)?;
    let began = Instant::now();
    let wires = crew::prepare(devices.into_iter().enumerate().map(|(number, incarnation)| {
        let (way, issuer, user) = (way.clone(), issuer.clone(), user(number));
        async move { back(&way, &issuer, &user, incarnation).await }
    }))
    .await?;
    let all_connected = Instant::now();
    let done = Arc::new(Counter::default());
    let messages = args.messages;
    let all = wires.into_iter().map(|wire| read(wire, messages, began, Arc::clone(&done)));
    let (took, points) = done.while_doing("delivered", crew::work(all)).await;
    let drained = all_connected.elapsed();
    let mut to_last = histogram();
    for us in took? {
        to_last.saturating_record(us);
    }
    meter.stop(subject, done.get(), &mut run)?;
    run.figure("connect_seconds", "until all were connected, s", (all_connected - began).as_secs_f64());
    run.figure("drain_seconds", "from the last Connected to the last ack, s", drained.as_secs_f64());
    run.figure("drained_per_second", "messages/s in that time", done.get() as f64 / drained.as_secs_f64());
    run.latency("return to last message", &to_last);
    run.rate("deliveries", &points);
    Ok(run)
}

fn token(issuer: &Issuer, user: &str) -> Result<String, WireError> {
    issuer.token(user).map_err(|fail| WireError::Broken(fail.to_string()))
}

/// A device that has acked something, so that the broker knows where it stands, goes away. Returns its incarnation.
async fn leave(way: &Way, issuer: &Issuer, user: &str) -> Result<u64, WireError> {
    let mut wire = Wire::connect(way, None, fresh(token(issuer, user)?, DEVICE.to_owned())).await?;
    let action = Some(Action::OpenChannel(packet::OpenChannel { name: user.to_owned() }));
    let ack = wire.publish_one(packet::Publish { message_id: OPEN_ID, action, ..Default::default() }).await?;
    // Joining is told in the inbox: that is what it acks.
    let (message_id, action) = (OPEN_ID + 1, Some(Action::Join(packet::Join::default())));
    wire.publish_one(packet::Publish { conversation: ack.conversation, message_id, action, ..Default::default() })
        .await?;
    while wire.streams.last(wire.connected.inbox).is_none() {
        wire.step().await?;
        while wire.next_event()?.is_some() {}
    }
    let incarnation = wire.connected.incarnation;
    wire.close().await;
    Ok(incarnation)
}

/// Writes what piles up.
async fn write(args: &Args, broker: &Broker, user: &impl Fn(usize) -> String, run: &mut Run) -> Result<(), Fail> {
    let began = Instant::now();
    let writers = (0..WRITERS).map(|writer| {
        let users: Vec<String> = (writer..args.devices).step_by(WRITERS).map(user).collect();
        let (broker, name) = (broker.clone(), format!("{}-writer{writer}", args.broker.devices_prefix));
        let (size, messages) = (args.size, args.messages);
        async move {
            let mut party = broker.connect(&name, None).await?;
            let mut outgoing = Outgoing::new(WINDOW);
            for user in users {
                let place = party.open_pair(outgoing.take_id(), &user).await?;
                for number in 1..=messages {
                    send(&mut party, &mut outgoing, &place, Stamp::new(0, number, Instant::now()).content(size))
                        .await?;
                }
                while !outgoing.is_empty() {
                    turn(&mut party, &mut outgoing).await?;
                }
            }
            party.close().await;
            Ok(())
        }
    });
    crew::work(writers).await?;
    let messages = args.devices as f64 * args.messages as f64;
    run.figure("queued_per_second", "queued, messages/s", messages / began.elapsed().as_secs_f64());
    Ok(())
}

async fn send(party: &mut Party, outgoing: &mut Outgoing, place: &Place, content: Bytes) -> Result<(), WireError> {
    while !outgoing.has_room(party, content.len()) {
        turn(party, outgoing).await?;
    }
    outgoing.send(party, place, content, Instant::now());
    Ok(())
}

async fn turn(party: &mut Party, outgoing: &mut Outgoing) -> Result<(), WireError> {
    let wake = outgoing.repeat(party);
    party.step(wake).await?;
    party.hear(|heard| {
        outgoing.hear(&heard);
        Ok(())
    })
}

/// Connects where the device stood.
async fn back(way: &Way, issuer: &Issuer, user: &str, incarnation: u64) -> Result<Wire, WireError> {
    let mut connect = packet::Connect {
        incarnation,
        first_unanswered: OPEN_ID + 2,
        ..fresh(token(issuer, user)?, DEVICE.to_owned())
    };
    connect.set_start(StartKind::StoredCursor);
    connect.set_catch_up(CatchUpMode::All);
    let wire = Wire::connect(way, None, connect).await?;
    if wire.connected.cursor() != packet::CursorVerdict::Resumed {
        let why = wire.connected.reset_reason();
        return Err(WireError::Broken(format!("{user} could not go on from where it stood: {why:?}")));
    }
    Ok(wire)
}

/// Reads until it has everything; returns how long after the return it had the last, in microseconds.
async fn read(mut wire: Wire, messages: u64, began: Instant, done: Arc<Counter>) -> Result<u64, WireError> {
    let mut last = 0;
    loop {
        while let Some(event) = wire.next_event()? {
            let ClientEvent::Items { items, .. } = event else { continue };
            for item in items {
                match item.kind {
                    Some(item::Kind::Entry(entry)) if entry.kind() == EntryKind::Message => {
                        let stamp = Stamp::read(&entry.content).filter(|stamp| stamp.number == last + 1);
                        let stamp =
                            stamp.ok_or_else(|| WireError::Broken(format!("after message {last} came another")))?;
                        last = stamp.number;
                        done.add(1);
                    }
                    Some(item::Kind::Head(head)) => {
                        return Err(WireError::Broken(format!(
                            "{} to {} was not delivered",
                            head.from_seq, head.to_seq
                        )));
                    }
                    _ => {}
                }
            }
        }
        if last == messages {
            let took = began.elapsed();
            wire.close().await;
            return Ok(u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1));
        }
        wire.step().await?;
    }
}
