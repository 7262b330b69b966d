//! `longwire bench growth`: what the same work costs as the store grows. At each size it is published for a while, pages of
//! history are read, and the broker is killed and started again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use hdrhistogram::Histogram;
use longwire_client::packet::{self, item, publish::Action};
use longwire_protocol::limits::ID_SPAN_MAX;

use super::super::Fail;
use super::BrokerArgs;
use super::args::{Issuer, some};
use super::load::crew::{self, Counter};
use super::load::own::OwnBroker;
use super::load::party::{Party, Place};
use super::load::process;
use super::load::sender::{Outgoing, Quota};
use super::load::stamp::Stamp;
use super::load::way::Way;
use super::load::wire::{Wire, WireError, fresh};
use super::report::{Report, Run, histogram};

/// What the same work costs as the store grows
#[derive(Clone, Debug, ClapArgs)]
pub(in crate::cli) struct Args {
    /// How many entries the store has at each step, ascending
    #[arg(long, value_delimiter = ',', default_value = "1000000,10000000")]
    entries: Vec<u64>,

    /// How many conversations they are spread over, by chance
    #[arg(long, default_value_t = 100_000, value_parser = some)]
    conversations: usize,

    /// How many connections publish, each a user with its share of the conversations
    #[arg(long, default_value_t = 16, value_parser = some)]
    connections: usize,

    /// Publishes under way on each connection
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=ID_SPAN_MAX))]
    window: u64,

    /// Bytes of each message
    #[arg(long, default_value_t = 128)]
    size: usize,

    /// How long to publish at each step
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    duration: Duration,

    /// How many pages are read at each step, each the last 50 entries of a conversation taken by chance
    #[arg(long, default_value_t = 5_000, value_parser = some)]
    pages: usize,

    #[command(flatten)]
    broker: BrokerArgs,
}

/// Entries of a page.
const PAGE: u32 = 50;
/// What a user may make at once.
const MADE_AT_ONCE: usize = 10_000;
/// A broker at rest takes less of a core than this, over [`REST_LOOK`].
const REST_CPU: Duration = Duration::from_millis(30);
const REST_LOOK: Duration = Duration::from_secs(1);
/// How long its background work may take.
const REST_WAIT: Duration = Duration::from_secs(300);

pub(super) fn run(args: &Args) -> Result<(), Fail> {
    let Args { conversations, connections, window, size, pages, .. } = args;
    if args.broker.url.is_some() {
        return Err(Fail::usage("--url: only a broker of its own is killed; leave it out"));
    }
    if conversations.div_ceil(*connections) > MADE_AT_ONCE {
        let least = conversations.div_ceil(MADE_AT_ONCE);
        return Err(Fail::usage(format!(
            "--connections {connections}: a user makes {MADE_AT_ONCE} conversations at once; for {conversations} give at least {least}"
        )));
    }
    if !args.entries.is_sorted() || args.entries.is_empty() {
        return Err(Fail::usage("--entries: the steps have to ascend"));
    }
    let setting = format!(
        "{conversations} conversations; {connections} connections, window {window}, {size} bytes; {pages} pages of {PAGE}"
    );
    let mut report = Report::new("growth", setting);
    report.note("the broker looks at as much for the reader as it asks for (limits.user_reads = 0)");
    report.note("every ack continues its conversation, and every page holds the last entries, without a hole");
    report
        .note("cold: after a start, with nothing of the files in the kernel's memory (as root; else it says nothing)");
    process::raise_open_files();
    let mut broker = args.broker.reading_without_bound();
    let own = broker.start_if_none_is_named()?.ok_or_else(|| Fail::failed("no broker was started"))?;
    let (way, issuer) = (broker.way()?, broker.issuer()?);
    let runtime = crew::runtime(1)?;
    runtime.block_on(measure(args, Subject { own, way, issuer }, &mut report))?;
    report.publish(args.broker.json.as_deref(), args.broker.html.as_deref())
}

/// The broker.
struct Subject {
    own: OwnBroker,
    way: Way,
    issuer: Issuer,
}

impl Subject {
    async fn connect(&self, user: &str, device: String) -> Result<Wire, WireError> {
        let token = self.issuer.token(user).map_err(|fail| WireError::Broken(fail.to_string()))?;
        Wire::connect(&self.way, None, fresh(token, device)).await
    }

    fn cpu(&self) -> Result<Duration, Fail> {
        Ok(process::spent(self.own.pid())?.cpu)
    }

    /// Waits until its background work is done.
    async fn rest(&self) -> Result<(), Fail> {
        let until = Instant::now() + REST_WAIT;
        while Instant::now() < until {
            let before = self.cpu()?;
            tokio::time::sleep(REST_LOOK).await;
            if self.cpu()?.saturating_sub(before) < REST_CPU {
                break;
            }
        }
        Ok(())
    }
}

/// Who publishes, and how far each of its conversations has come.
struct Writer {
    user: String,
    conversations: Vec<Conversation>,
}

#[derive(Clone, Copy)]
struct Conversation {
    id: u64,
    head: u64,
}

async fn measure(args: &Args, mut subject: Subject, report: &mut Report) -> Result<(), Fail> {
    let mut writers = open(args, &subject).await?;
    let mut first: Option<[f64; 2]> = None;
    let mut stored = 0;
    for (step, &entries) in args.entries.iter().enumerate() {
        let mut run = Run::new(format!("{entries} entries"));
        let more = entries.saturating_sub(stored);
        (writers, _) = publish(args, &subject, writers, &format!("fill{step}"), Some(more)).await?;
        stored += more;
        subject.rest().await?;

        let (before, began) = (subject.cpu()?, Instant::now());
        let took;
        (writers, took) = publish(args, &subject, writers, &format!("publish{step}"), None).await?;
        let published = took.len();
        stored += published;
        let publish_us = (subject.cpu()? - before).as_secs_f64() * 1e6 / published.max(1) as f64;
        run.figure("entries", "entries", stored as f64);
        run.figure("messages_per_second", "messages/s", published as f64 / began.elapsed().as_secs_f64());
        run.figure("broker_cpu_us_per_message", "broker CPU a message, us", publish_us);
        run.latency("publish to ack", &took);
        subject.rest().await?;

        let all: Vec<Conversation> = writers.iter().flat_map(|writer| writer.conversations.iter().copied()).collect();
        let chosen: Vec<Conversation> = (0..args.pages).map(|_| all[fastrand::usize(..all.len())]).collect();
        read(&subject, &chosen).await?;
        let before = subject.cpu()?;
        let warm = read(&subject, &chosen).await?;
        let page_us = (subject.cpu()? - before).as_secs_f64() * 1e6 / args.pages as f64;
        run.figure("broker_cpu_us_per_page", "broker CPU a page of 50, us", page_us);
        run.latency("page, warm", &warm);

        let killed = Instant::now();
        subject.own.kill_and_start()?;
        let mut wire = subject.connect("growth-first", format!("start{step}")).await?;
        let name = format!("growth/start{step}");
        wire.publish_one(open_channel(1, name)).await?;
        let started = killed.elapsed();
        wire.close().await;
        run.figure("restart_seconds", "SIGKILL to the next ack, s", started.as_secs_f64());

        if forget_files() {
            let chosen: Vec<Conversation> = (0..args.pages).map(|_| all[fastrand::usize(..all.len())]).collect();
            run.latency("page, cold", &read(&subject, &chosen).await?);
        }
        let [publish_first, page_first] = *first.get_or_insert([publish_us, page_us]);
        run.figure("publish_ratio", "a publish, to the first step", publish_us / publish_first);
        run.figure("page_ratio", "a page, to the first step", page_us / page_first.max(0.001));
        report.add(run);
    }
    let _life = subject.own.stop();
    Ok(())
}

fn open_channel(message_id: u64, name: String) -> packet::Publish {
    let action = Some(Action::OpenChannel(packet::OpenChannel { name }));
    packet::Publish { message_id, first_unanswered: message_id, action, ..Default::default() }
}

/// Opens all conversations.
async fn open(args: &Args, subject: &Subject) -> Result<Vec<Writer>, Fail> {
    let opened = Arc::new(Counter::default());
    let each = (0..args.connections).map(|number| {
        let user = format!("growth-{number}");
        let share = (number..args.conversations).step_by(args.connections).collect::<Vec<_>>();
        let (way, token, opened) = (subject.way.clone(), subject.issuer.token(&user)?, Arc::clone(&opened));
        Ok(async move {
            let mut wire = Wire::connect(&way, None, fresh(token, "open".to_owned())).await?;
            let mut conversations = Vec::with_capacity(share.len());
            for (id, number) in (1..).zip(share) {
                let ack = wire.publish_one(open_channel(id, format!("growth/{number}"))).await?;
                conversations.push(Conversation { id: ack.conversation, head: ack.seq });
                opened.add(1);
            }
            wire.close().await;
            Ok(Writer { user, conversations })
        })
    });
    let each = each.collect::<Result<Vec<_>, Fail>>()?;
    opened.while_doing("opened", crew::work(each)).await.0
}

/// Everyone publishes to its conversations: so many in all, or for as long as is asked for.
async fn publish(
    args: &Args,
    subject: &Subject,
    writers: Vec<Writer>,
    device: &str,
    count: Option<u64>,
) -> Result<(Vec<Writer>, Histogram<u64>), Fail> {
    let done = Arc::new(Counter::default());
    let mut prepared = Vec::with_capacity(writers.len());
    for writer in writers {
        prepared.push((subject.connect(&writer.user, device.to_owned()).await?, writer));
    }
    let senders = prepared.len();
    let each = prepared.into_iter().enumerate().map(|(number, (wire, writer))| {
        let quota = Quota::of(count, args.duration, number, senders);
        write(wire, writer, quota, args.window, args.size, Arc::clone(&done))
    });
    let outcomes = done.while_doing("acked", crew::work(each.collect::<Vec<_>>())).await.0?;
    let (mut writers, mut all) = (Vec::with_capacity(senders), histogram());
    for (writer, took) in outcomes {
        writers.push(writer);
        all.add(&took).map_err(|error| Fail::failed(error.to_string()))?;
    }
    Ok((writers, all))
}

/// One of them.
async fn write(
    wire: Wire,
    mut writer: Writer,
    mut quota: Quota,
    window: u64,
    size: usize,
    done: Arc<Counter>,
) -> Result<(Writer, Histogram<u64>), WireError> {
    let mut party = Party::Longwire(Box::new(wire));
    let mut outgoing = Outgoing::after(usize::try_from(window).unwrap_or(usize::MAX), 0);
    let (mut took, mut sent) = (histogram(), 0);
    writer.conversations.sort_by_key(|conversation| conversation.id);
    loop {
        let wake = outgoing.repeat(&mut party);
        while !quota.is_over() && outgoing.has_room(&party, size) {
            sent += 1;
            let to = writer.conversations[fastrand::usize(..writer.conversations.len())].id;
            let now = Instant::now();
            outgoing.send(&mut party, &Place::Conversation(to), Stamp::new(0, sent, now).content(size), now);
            quota.take_one();
        }
        if quota.is_over() && outgoing.is_empty() {
            party.close().await;
            return Ok((writer, took));
        }
        party.step(wake).await?;
        party.hear(|heard| {
            let Some(acked) = outgoing.hear(&heard) else { return Ok(()) };
            took.saturating_record(acked.micros());
            done.add(1);
            continues(&mut writer.conversations, &acked.place, acked.seq)
        })?;
    }
}

/// Nobody else writes there, and a session's publishes keep their order.
fn continues(conversations: &mut [Conversation], place: &Place, seq: Option<u64>) -> Result<(), WireError> {
    #[cfg_attr(not(feature = "mqtt-peer"), expect(irrefutable_let_patterns, reason = "MQTT has topics"))]
    let Place::Conversation(id) = place else {
        return Err(WireError::Broken("only Longwire has conversations".to_owned()));
    };
    let at = conversations.binary_search_by_key(id, |conversation| conversation.id);
    let conversation = at.ok().and_then(|at| conversations.get_mut(at));
    match (conversation, seq) {
        (Some(conversation), Some(seq)) if seq == conversation.head + 1 => {
            conversation.head = seq;
            Ok(())
        }
        (conversation, seq) => {
            let head = conversation.map(|conversation| conversation.head);
            Err(WireError::Broken(format!("conversation {id}: after seq {head:?} an ack named {seq:?}")))
        }
    }
}

/// Reads the last page of each of these, one after the other.
async fn read(subject: &Subject, conversations: &[Conversation]) -> Result<Histogram<u64>, Fail> {
    let mut wire = subject.connect("growth-reader", "bench".to_owned()).await?;
    let mut took = histogram();
    for conversation in conversations {
        let asks = packet::HistoryRequest {
            conversation: conversation.id,
            limit: PAGE,
            backwards: true,
            ..Default::default()
        };
        let began = Instant::now();
        let answer = wire.ask(packet::request::Op::History(asks)).await?;
        took.saturating_record(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX).max(1));
        let packet::response::Result::History(page) = answer else {
            return Err(Fail::failed("the broker answers something else than was asked"));
        };
        check(*conversation, &page).map_err(Fail::failed)?;
    }
    wire.close().await;
    Ok(took)
}

/// A page holds the last entries, from the head down.
fn check(conversation: Conversation, page: &packet::HistoryPage) -> Result<(), String> {
    let Conversation { id, head } = conversation;
    let seq = |item: &packet::Item| match &item.kind {
        Some(item::Kind::Entry(entry)) => Some(entry.seq),
        _ => None,
    };
    let seqs: Vec<_> = page.items.iter().map(seq).collect();
    let right: Vec<_> = (1..=head).rev().take(PAGE as usize).map(Some).collect();
    if seqs == right { Ok(()) } else { Err(format!("conversation {id}, head {head}: a page holds {seqs:?}")) }
}

/// Has the kernel forget what it holds of files; returns whether it may be asked.
fn forget_files() -> bool {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ack_out_of_order_and_a_page_with_a_hole_are_noticed() {
        let mut all = [Conversation { id: 3, head: 7 }, Conversation { id: 9, head: 1 }];
        let place = Place::Conversation(3);
        assert!(continues(&mut all, &place, Some(8)).is_ok());
        assert!(continues(&mut all, &place, Some(8)).is_err(), "doubled");
        assert!(continues(&mut all, &place, Some(10)).is_err(), "a hole");
        assert!(continues(&mut all, &Place::Conversation(4), Some(1)).is_err(), "of another");

        let page = |seqs: &[u64]| packet::HistoryPage {
            items: seqs
                .iter()
                .map(|seq| packet::Item {
                    kind: Some(item::Kind::Entry(packet::Entry { seq: *seq, ..Default::default() })),
                })
                .collect(),
            ..Default::default()
        };
        let short = Conversation { id: 1, head: 3 };
        assert!(check(short, &page(&[3, 2, 1])).is_ok());
        assert!(check(short, &page(&[3, 1])).is_err());
        assert!(check(short, &page(&[2, 1])).is_err());
    }
}
