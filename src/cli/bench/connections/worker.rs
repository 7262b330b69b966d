//! A process that holds connections. It is told on stdin how many more to open, to cut all, or to open those once more, and answers on stdout: now and then how many of them are open already, as a number, and in the end what came of
//! it, as JSON.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::super::super::Fail;
use super::super::load::crew::{self, POINT};
use super::super::load::party::{Broker, OPEN_ID};
use super::super::load::process;
use super::super::load::way::source;
use super::super::load::wire::WireError;
use super::Args;

/// What a worker is told beside numbers.
const CUT: &str = "cut";
const AGAIN: &str = "again";

/// What a worker says after it has opened what it was told.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Opened {
    opened: u64,
    /// Of those, with a ticket of a TLS session before.
    resumed: u64,
    failed: u64,
    why: Option<String>,
    /// Of those before: how many are no longer there.
    lost: u64,
    /// The time between two heartbeats that the broker agreed to, in milliseconds; 0 where there is none yet.
    heartbeat_ms: u32,
}

/// The side that tells it; it ends with its stdin.
pub(super) struct Worker {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    open: u64,
    heartbeat_ms: u32,
}

impl Worker {
    /// Starts one whose first connection has this number; it connects to the peer if there is one and `peer` is set.
    pub(super) fn start(args: &Args, first: u64, peer: bool) -> Result<Self, Fail> {
        let broker = &args.broker;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench", "connections-worker"]);
        command.args(["--first", &first.to_string(), "--at-once", &args.at_once.to_string()]);
        command.args(["--sources", &args.sources.to_string(), "--devices", &args.devices.to_string()]);
        command.args(["--subscriptions", &args.subscriptions.to_string()]);
        command.args(["--conversations", &args.conversations.to_string()]);
        command.args(["--heartbeat", &humantime::format_duration(args.heartbeat).to_string()]);
        command.args(["--issuer", &broker.issuer, "--devices-prefix", &broker.devices_prefix]);
        if args.resume {
            command.arg("--resume");
        }
        if peer {
            command.args(args.peer.url().into_iter().flat_map(|url| ["--peer", url]));
        }
        if let (Some(url), Some(key)) = (&broker.url, &broker.issuer_key) {
            command.arg("--url").arg(url.to_string()).arg("--issuer-key").arg(key);
        }
        if let Some(ca) = &broker.ca {
            command.arg("--ca").arg(ca);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let orders = child.stdin.take();
        let answers = child.stdout.take().ok_or_else(|| Fail::failed("a worker without a stdout"))?;
        Ok(Self { child, orders, answers: BufReader::new(answers), open: 0, heartbeat_ms: 0 })
    }

    pub(super) const fn open(&self) -> u64 {
        self.open
    }

    /// The time between two heartbeats of a connection.
    pub(super) fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms.into())
    }

    /// Returns how many of them used a ticket; `tell` hears now and then how many there are.
    pub(super) fn open_more(&mut self, count: u64, tell: impl Fn(u64)) -> Result<u64, Fail> {
        let before = self.open;
        let opened = self.ask(&count.to_string(), |opened| tell(before + opened))?.all_of(count)?;
        self.open += opened.opened;
        self.heartbeat_ms = opened.heartbeat_ms;
        Ok(opened.resumed)
    }

    /// All are cut, as are those who lose their network.
    pub(super) fn cut(&mut self) -> Result<(), Fail> {
        self.ask(CUT, |_| {}).map(drop)
    }

    /// The same devices come again, with the same tokens. Returns how many used a ticket.
    pub(super) fn open_again(&mut self, tell: impl Fn(u64)) -> Result<u64, Fail> {
        Ok(self.ask(AGAIN, tell)?.all_of(self.open)?.resumed)
    }

    pub(super) fn all_are_there(&mut self) -> Result<(), Fail> {
        match self.ask("0", |_| {})?.lost {
            0 => Ok(()),
            lost => Err(Fail::failed(format!("{lost} connections did not last"))),
        }
    }

    fn ask(&mut self, order: &str, tell: impl Fn(u64)) -> Result<Opened, Fail> {
        if let Some(orders) = &mut self.orders {
            writeln!(orders, "{order}")?;
            orders.flush()?;
        }
        hear(&mut self.answers, tell)
    }
}

impl Opened {
    /// An error if one of so many failed.
    fn all_of(self, count: u64) -> Result<Self, Fail> {
        if self.failed == 0 {
            return Ok(self);
        }
        let why = self.why.unwrap_or_default();
        Err(Fail::failed(format!("{} of {count} connections failed: {why}", self.failed)))
    }
}

/// Reads to the end of an answer; hands what is said before to `tell`.
fn hear(answers: &mut impl BufRead, tell: impl Fn(u64)) -> Result<Opened, Fail> {
    loop {
        let mut line = String::new();
        answers.read_line(&mut line)?;
        match line.trim().parse() {
            Ok(opened) => tell(opened),
            Err(_) => {
                return serde_json::from_str(&line).map_err(|_| Fail::failed("a worker ended before its work"));
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.orders = None;
        // It ends by itself when its orders do; what it says then is of no interest.
        drop(self.child.wait());
    }
}

/// The worker's side: opens what it is told, holds it, answers.
pub(in crate::cli::bench) fn work(args: &Args) -> Result<(), Fail> {
    process::raise_open_files();
    let runtime = crew::runtime(1)?;
    let broker = args.target()?;
    let mut held: JoinSet<()> = JoinSet::new();
    let mut next = args.first;
    for line in std::io::stdin().lock().lines() {
        let order = line?;
        let answer = match order.trim() {
            CUT => {
                runtime.block_on(held.shutdown());
                Opened::default()
            }
            AGAIN => runtime.block_on(open(args, &broker, args.first, next - args.first, &mut held)),
            number => {
                let what = || Fail::usage(format!("{order:?}: a worker is told a number, \"{CUT}\" or \"{AGAIN}\""));
                let count: u64 = number.parse().map_err(|_| what())?;
                let from = next;
                next += count;
                runtime.block_on(open(args, &broker, from, count, &mut held))
            }
        };
        println!("{}", serde_json::to_string(&answer).map_err(|error| Fail::failed(error.to_string()))?);
    }
    // The broker sees the sockets go, as it would those of clients that lost their network.
    runtime.shutdown_background();
    Ok(())
}

async fn open(args: &Args, broker: &Broker, first: u64, count: u64, held: &mut JoinSet<()>) -> Opened {
    let mut answer = Opened::default();
    while held.try_join_next().is_some() {
        answer.lost += 1;
    }
    let resumed_before = broker.traffic().resumed();
    let gate = Arc::new(Semaphore::new(args.at_once.max(1)));
    let mut connecting = JoinSet::new();
    for number in first..first + count {
        let user = format!("{}-c{}", args.broker.devices_prefix, number / args.devices);
        let device = format!("d{}", number % args.devices);
        let (broker, gate, from) = (broker.clone(), Arc::clone(&gate), source(args.sources, number));
        // What a user is in, its first device makes.
        let groups = if number.is_multiple_of(args.devices) { args.conversations } else { 0 };
        let (subscriptions, prefix) = (args.subscriptions, args.broker.devices_prefix.clone());
        connecting.spawn(async move {
            let _turn = gate.acquire_owned().await;
            let mut party = broker.connect_device(&user, &device, from).await?;
            for (id, number) in (OPEN_ID..).zip(0..subscriptions) {
                let channel = party.open_channel_as(id, &format!("{prefix}/{number}")).await?;
                party.watch(&channel).await?;
            }
            for id in (OPEN_ID + subscriptions..).take(usize::try_from(groups).unwrap_or(usize::MAX)) {
                party.make_group(id).await?;
            }
            Ok::<_, WireError>(party)
        });
    }
    let mut told = Instant::now();
    while let Some(outcome) = connecting.join_next().await {
        if told.elapsed() >= POINT {
            told = Instant::now();
            println!("{}", answer.opened);
        }
        let failed = match outcome {
            Ok(Ok(mut party)) => {
                answer.opened += 1;
                answer.heartbeat_ms = party.heartbeat_ms(args.heartbeat);
                held.spawn(async move {
                    // Why it ended is of no interest: that it did is counted.
                    drop(party.rest().await);
                });
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        answer.failed += 1;
        answer.why.get_or_insert(failed);
    }
    answer.resumed = broker.traffic().resumed() - resumed_before;
    answer
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn an_answer_ends_with_what_came_of_it() {
        let last = Opened { opened: 9, resumed: 4, ..Opened::default() };
        let said = format!("3\n7\n{}\n8\n", serde_json::to_string(&last).expect("JSON"));
        let (mut answers, told) = (said.as_bytes(), RefCell::new(Vec::new()));
        let heard = hear(&mut answers, |opened| told.borrow_mut().push(opened)).expect("an answer");
        assert_eq!((heard, told.into_inner(), answers), (last, vec![3, 7], &b"8\n"[..]));
        assert!(hear(&mut &b"3\n"[..], |_| {}).is_err(), "it ended meanwhile");
    }
}
