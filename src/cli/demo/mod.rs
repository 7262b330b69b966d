//! `longwire demo`: an evening of many people with several devices each, in direct conversations, groups and a channel.
//! In the middle of it the broker is killed and started again. At the end everything that every device was told, and is
//! told when it asks, is held against a model of what was acked.

mod chronicle;
mod device;
mod evening;
mod verdict;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use fastrand::Rng;
use longwire_client::{Address, Config, Dialer, Trust};
use tokio::task::JoinSet;

use super::Fail;
use super::bench::{Issuer, Listener, OwnBroker, Reads};
use device::Device;
use evening::{Counts, EXPIRES, Person, World};
use verdict::Checked;

const EXAMPLES: &str = "\
Examples:
  longwire demo                                200 people, 600 devices, half a minute
  longwire demo --people 20 --evening 5s       a short one

It ends with 0 if every device has what it should have, and nothing else; else with 1 and the first thing that is wrong.";

/// Shows an evening of many people, with a broker of its own that is killed in the middle of it
#[derive(Clone, Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// How many people
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(4..=1000))]
    people: u16,

    /// Devices of each of them
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=10))]
    devices: u8,

    /// How long they talk
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = humantime::parse_duration)]
    evening: Duration,

    /// How long each of them does nothing, on average, between two things
    #[arg(long, value_name = "TIME", default_value = "250ms", value_parser = humantime::parse_duration)]
    pause: Duration,

    /// What is done, and by whom, follows from this number; when it happens does not
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Let the broker live
    #[arg(long)]
    spare: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Fail> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(evening(args, OwnBroker::start(Listener::Tls, Reads::Bounded)?))
}

async fn evening(args: &Args, mut own: OwnBroker) -> Result<(), Fail> {
    let began = Instant::now();
    let mut rng = Rng::with_seed(args.seed);
    let (people, names) = cast(args, &own, &mut rng)?;
    say(began, format_args!("{} people come with {} devices each", args.people, args.devices));
    let (world, people) = evening::gather(people, names, &mut rng).await?;
    let world = Arc::new(world);
    say(began, format_args!("{} conversations are there; they talk", world.chronicle().talks.len()));
    let mut lives = JoinSet::new();
    for mut person in people {
        let (world, pause) = (Arc::clone(&world), args.pause);
        lives.spawn(async move {
            person.live(&world, pause).await?;
            Ok::<_, Fail>(person)
        });
    }
    let talked = Instant::now();
    let mut is_killed = args.spare;
    let mut people = Vec::new();
    while talked.elapsed() < args.evening && lives.len() == usize::from(args.people) {
        tokio::time::sleep(Duration::from_secs(1).min(args.evening.saturating_sub(talked.elapsed()))).await;
        progress(began, &world.counts);
        if !is_killed && talked.elapsed() > args.evening / 2 {
            own.kill_and_start()?;
            is_killed = true;
            say(began, format_args!("the broker was killed, and started again"));
        }
        // Whoever fails ends it.
        while let Some(lived) = lives.try_join_next() {
            people.push(lived.map_err(|error| Fail::failed(error.to_string()))??);
        }
    }
    world.end();
    while let Some(lived) = lives.join_next().await {
        people.push(lived.map_err(|error| Fail::failed(error.to_string()))??);
    }
    say(began, format_args!("everybody is back; all of it is checked"));
    // The broker looks at its clock four times a second, and goes by that.
    tokio::time::sleep(EXPIRES + EXPIRES / 2).await;
    let checked = check_all(people, &world).await?;
    report(args, &world, &checked, began);
    Ok(())
}

/// Everybody, with devices that have yet to come.
fn cast(args: &Args, own: &OwnBroker, rng: &mut Rng) -> Result<(Vec<Person>, Vec<String>), Fail> {
    let failed = |error: &dyn std::fmt::Display| Fail::failed(error.to_string());
    let url = format!("longwires://{}", own.address());
    let address: Address = url.parse().map_err(|error| Fail::failed(format!("{url}: {error}")))?;
    let trust = Trust::from_file(&own.ca()).map_err(|error| failed(&error))?;
    let dialer = Dialer::new(&address, &trust).map_err(|error| failed(&error))?;
    let issuer = Issuer::new(std::fs::read(own.issuer_key())?, own.issuer());
    let names: Vec<String> = (0..args.people).map(|no| format!("person{no:03}")).collect();
    let mut people = Vec::new();
    for (no, name) in names.iter().enumerate() {
        let token = issuer.token(name)?;
        let devices = (0..args.devices).map(|number| {
            let mut config = Config::new(dialer.clone(), token.clone(), format!("device{number}"));
            config.signals = number == 0;
            Device::new(config)
        });
        people.push(Person::new(no, devices.collect(), rng.fork()));
    }
    Ok((people, names))
}

/// Checks everything that everybody was told, several people at a time; the first thing that is wrong ends it.
async fn check_all(people: Vec<Person>, world: &Arc<World>) -> Result<Checked, Fail> {
    for (id, talk) in &world.chronicle().talks {
        if let Some(fault) = talk.fault() {
            return Err(Fail::failed(format!("conversation {id}: {fault}")));
        }
    }
    let mut checks = JoinSet::new();
    let mut all = Checked::default();
    for person in people {
        let world = Arc::clone(world);
        checks.spawn(async move { verdict::check(&person, &world).await });
    }
    while let Some(checked) = checks.join_next().await {
        let Checked { lines, deliveries, unread } = checked.map_err(|error| Fail::failed(error.to_string()))??;
        all.lines += lines;
        all.deliveries += deliveries;
        all.unread += unread;
    }
    Ok(all)
}

fn say(began: Instant, what: std::fmt::Arguments<'_>) {
    eprintln!("{:>5.1} s  {what}", began.elapsed().as_secs_f64());
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn progress(began: Instant, counts: &Counts) {
    let (messages, changes, away) = (get(&counts.messages), get(&counts.changes), get(&counts.away));
    say(began, format_args!("{messages} messages, {changes} edits, recalls and reactions; {away} devices are away"));
}

fn report(args: &Args, world: &World, checked: &Checked, began: Instant) {
    let counts = &world.counts;
    println!("An evening of {} people with {} devices each", args.people, args.devices);
    let row = |what: &str, count: u64| println!("  {what:<52}{count:>12}");
    row("conversations", world.chronicle().talks.len() as u64);
    row("messages", get(&counts.messages));
    row("edits, recalls and reactions", get(&counts.changes));
    row("members added, removed, gone", get(&counts.crossings));
    row("came too late, and were refused", get(&counts.refused));
    row("times a device went away", get(&counts.absences));
    row("kills of the broker", u64::from(!args.spare));
    row("items delivered", checked.deliveries);
    println!("Checked");
    row("seqs, each acked once, without a hole", world.chronicle().talks.values().map(chronicle::Talk::head).sum());
    row("lines, as each device shows them", checked.lines);
    row("unread messages, as each user's list says", checked.unread);
    println!("Every device has what it should have, and nothing else. {:.0} s.", began.elapsed().as_secs_f64());
}
