//! `longwire bench slow`: what readers that never ack do to those who do. Runs without and with them take turns, on one
//! broker.

use clap::Args as ClapArgs;
use longwire_protocol::limits::ID_SPAN_MAX;

use super::super::Fail;
use super::cost;
use super::fanout::{self, Shape};
use super::load::{crew, process};
use super::report::{Report, Run};
use super::{BrokerArgs, LoadArgs};

/// Readers that never ack, beside those who do
#[derive(Clone, Debug, ClapArgs)]
pub(in crate::cli) struct Args {
    /// How many channels, each with a publisher
    #[arg(long, default_value_t = 16, value_parser = super::args::some)]
    channels: usize,

    /// Readers of each channel that ack
    #[arg(long, default_value_t = 9, value_parser = super::args::some)]
    readers: usize,

    /// Readers of each channel, beside those, that never do
    #[arg(long, default_value_t = 1, value_parser = super::args::some)]
    never_ack: usize,

    /// Messages of a channel that not all who ack have
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=ID_SPAN_MAX))]
    window: u64,

    #[command(flatten)]
    load: LoadArgs,

    #[command(flatten)]
    broker: BrokerArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Fail> {
    let Args { channels, readers, never_ack, window, load, .. } = args;
    let setting = format!(
        "{channels} channels, {readers} readers of each and {never_ack} that never ack, window {window}, {} bytes, {}",
        load.size,
        load.pace()
    );
    let mut report = Report::new("slow", setting);
    report.note("messages are deliveries to readers that ack");
    process::raise_open_files();
    let runtime = crew::runtime(load.run.threads)?;
    let mut subject = args.broker.subject()?;
    for round in 0..load.run.repeat {
        for (name, never_ack) in [("all ack", 0), ("some never ack", *never_ack)] {
            let shape = Shape { channels: *channels, readers: *readers, never_ack, window: *window, members: None };
            let names = format!("{}-slow{round}-{never_ack}", args.broker.devices_prefix);
            let mut run = Run::new(name);
            runtime.block_on(fanout::measure(shape, load, &subject, &names, &mut run))?;
            report.add(run);
        }
    }
    let mut life = Run::new("the broker in all");
    cost::stop(subject.own.take(), &mut life);
    report.add(life);
    report.publish(args.broker.json.as_deref(), args.broker.html.as_deref())
}
