//! `longwire bench list`: the first page of someone's conversations, newest activity first, as an app asks for it when it is
//! opened.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use clap::Args as ClapArgs;
use longwire_client::packet::{self, publish::Action};

use super::super::Fail;
use super::BrokerArgs;
use super::args::{RunArgs, Subject, some};
use super::load::crew::{self, Counter};
use super::load::own::OwnBroker;
use super::load::process;
use super::load::stamp::Stamp;
use super::load::wire::{Wire, WireError, fresh};
use super::report::{Report, Run, histogram};

/// What the first page of someone's conversations costs
#[derive(Clone, Debug, ClapArgs)]
pub(in crate::cli) struct Args {
    /// In how many groups the user is, at each step
    #[arg(long, value_delimiter = ',', default_value = "20,20000", value_parser = some)]
    conversations: Vec<usize>,

    /// How often the page is asked for at each step
    #[arg(long, default_value_t = 2_000, value_parser = some)]
    asks: usize,

    #[command(flatten)]
    run: RunArgs,

    #[command(flatten)]
    broker: BrokerArgs,
}

/// Conversations of a page.
const PAGE: u32 = 20;
/// Groups that one user makes: as many conversations, and as many members beside it, are within what it may make at once.
const MADE_BY_ONE: usize = 4_000;
/// What a user may be in.
const MOST: usize = 20_000;
/// What others may add it to; the rest it makes itself.
const MADE_BY_OTHERS: usize = 16_000;
/// Asked before it is measured.
const WARM_UP: usize = 20;

pub(super) fn run(args: &Args) -> Result<(), Fail> {
    if let Some(many) = args.conversations.iter().find(|many| **many > MOST) {
        return Err(Fail::usage(format!("--conversations {many}: a user is in {MOST} at most")));
    }
    let mut report = Report::new("list", format!("the first {PAGE}, {} times", args.asks));
    report.note("warm: the same user asks again and again; latency includes both ways over loopback and the client");
    report
        .note("a broker that is started for this looks at as much for the user as it asks for (limits.user_reads = 0)");
    process::raise_open_files();
    let runtime = crew::runtime(args.run.threads)?;
    for _ in 0..args.run.repeat {
        for &many in &args.conversations {
            let mut subject = args.broker.reading_without_bound().subject()?;
            let run = runtime.block_on(measure(args, &subject, many))?;
            let _life = subject.own.take().map(OwnBroker::stop);
            report.add(run);
        }
    }
    report.publish(args.broker.json.as_deref(), args.broker.html.as_deref())
}

async fn measure(args: &Args, subject: &Subject, many: usize) -> Result<Run, Fail> {
    let user = format!("{}-list{many}", args.broker.devices_prefix);
    let newest = make_groups(subject, &user, many).await?;
    let (way, issuer) = subject.broker.longwire()?;
    let mut wire = Wire::connect(way, None, fresh(issuer.token(&user)?, "bench".to_owned())).await?;
    let mut run = Run::new(format!("{many} conversations"));
    let mut took = histogram();
    let mut before = None;
    for ask in 0..WARM_UP + args.asks {
        if ask == WARM_UP {
            before = subject.pid.map(process::spent).transpose()?;
            took.reset();
        }
        let began = Instant::now();
        let asks = packet::ConversationsRequest { limit: PAGE, ..Default::default() };
        let answer = wire.ask(packet::request::Op::Conversations(asks)).await?;
        took.saturating_record(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX).max(1));
        let packet::response::Result::Conversations(page) = answer else {
            return Err(Fail::failed("the broker answers something else than was asked"));
        };
        check(&page, many, &newest).map_err(Fail::failed)?;
    }
    let after = subject.pid.map(process::spent).transpose()?;
    wire.close().await;
    run.figure("conversations", "conversations", many as f64);
    if let Some((before, after)) = before.zip(after) {
        let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
        run.figure("broker_cpu_us_per_page", "broker CPU a page, us", cpu * 1e6 / args.asks as f64);
    }
    run.latency("page", &took);
    Ok(run)
}

/// Has a user be in so many groups, each with a message; returns those that may be the newest.
async fn make_groups(subject: &Subject, user: &str, many: usize) -> Result<HashSet<u64>, Fail> {
    let (way, issuer) = subject.broker.longwire()?;
    let made = Arc::new(Counter::default());
    let makers = (0..many.div_ceil(MADE_BY_ONE)).map(|number| {
        let is_other = number * MADE_BY_ONE < MADE_BY_OTHERS;
        let maker = if is_other { format!("{user}-maker{number}") } else { user.to_owned() };
        let share = MADE_BY_ONE.min(many - number * MADE_BY_ONE);
        let (way, token, user, made) = (way.clone(), issuer.token(&maker)?, user.to_owned(), Arc::clone(&made));
        Ok(async move {
            let mut wire = Wire::connect(&way, None, fresh(token, "maker".to_owned())).await?;
            let mut groups = Vec::with_capacity(share);
            for id in (1..).step_by(2).take(share) {
                groups.push(make_group(&mut wire, &user, id).await?);
                made.add(1);
            }
            wire.close().await;
            Ok(groups)
        })
    });
    let mut others = makers.collect::<Result<Vec<_>, Fail>>()?;
    // Others add nobody to groups who is in as many already: what it makes itself comes last.
    let own = others.split_off(others.len().min(MADE_BY_OTHERS / MADE_BY_ONE));
    let making = async {
        let mut groups = crew::work(others).await?;
        groups.extend(crew::work(own).await?);
        Ok::<_, Fail>(groups)
    };
    let groups = made.while_doing("made", making).await.0?;
    // Makers work side by side: the newest twenty are among the last twenty of each.
    Ok(groups.into_iter().flat_map(|groups| groups.into_iter().rev().take(PAGE as usize)).collect())
}

async fn make_group(wire: &mut Wire, user: &str, id: u64) -> Result<u64, WireError> {
    let create =
        packet::CreateGroup { label: format!("group {id}"), users: vec![user.to_owned()], ..Default::default() };
    let publish = packet::Publish {
        message_id: id,
        first_unanswered: id,
        action: Some(Action::CreateGroup(create)),
        ..Default::default()
    };
    let conversation = wire.publish_one(publish).await?.conversation;
    let content: Bytes = Stamp::new(0, id, Instant::now()).content(128);
    let message =
        packet::Publish { conversation, message_id: id + 1, first_unanswered: id + 1, content, ..Default::default() };
    wire.publish_one(message).await?;
    Ok(conversation)
}

/// A page holds the newest, each once, and the sum of all that is unread.
fn check(page: &packet::ConversationsPage, many: usize, newest: &HashSet<u64>) -> Result<(), String> {
    let listed: Vec<u64> = page.conversations.iter().map(|conversation| conversation.id).collect();
    let distinct: HashSet<u64> = listed.iter().copied().collect();
    if distinct.len() != many.min(PAGE as usize) || !distinct.is_subset(newest) {
        return Err(format!("a page of the newest of {many} conversations holds {listed:?}"));
    }
    // Nobody has unread what it said itself.
    let unread = many.min(MADE_BY_OTHERS);
    if page.unread_total != unread as u64 {
        return Err(format!("of {unread} messages nobody has read {} are unread", page.unread_total));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_not_the_newest_is_noticed() {
        let page = |ids: &[u64], unread_total| packet::ConversationsPage {
            conversations: ids.iter().map(|id| packet::Conversation { id: *id, ..Default::default() }).collect(),
            unread_total,
            ..Default::default()
        };
        let newest = HashSet::from([1, 2, 3]);
        assert!(check(&page(&[3, 1], 2), 2, &newest).is_ok());
        assert!(check(&page(&[3, 3], 2), 2, &newest).is_err(), "doubled");
        assert!(check(&page(&[3, 4], 2), 2, &newest).is_err(), "an old one");
        assert!(check(&page(&[3, 1], 1), 2, &newest).is_err(), "unread");
    }
}
