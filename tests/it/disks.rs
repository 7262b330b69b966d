//! The real broker over a disk that fails, stalls or is full, under clients that talk all the time: nothing is acked that
//! is not there, what is refused is refused with the right reason, nothing panics, and it goes on by itself where it may.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use longwire_protocol::packet::{self, Publish};
use longwire_protocol::{Reason, Refusal};
use tokio::time::{Instant, sleep};

use crate::load::{Pair, history};
use crate::process::{Process, Setup, let_in};

/// How long acks may stay away.
const REST: Duration = Duration::from_secs(60);

/// One message after another, packet by packet, so that every refusal is seen. Returns how often each reason was.
async fn probe(process: Probed, stop: Arc<AtomicBool>, all: Arc<AtomicUsize>) -> HashMap<Reason, usize> {
    let mut refused = HashMap::new();
    let mut connect = process.connect;
    let mut wire = let_in(process.port, &connect).await;
    let (mut id, mut seq, mut conversation) = (1, 0, 0);
    while !stop.load(Ordering::Relaxed) {
        connect.incarnation = wire.incarnation;
        connect.first_unanswered = id;
        let publish = Publish { conversation, message_id: id, first_unanswered: id, ..Publish::default() };
        let open = packet::publish::Action::OpenDirect(packet::OpenDirect { user: "nobody".into() });
        let publish = match id {
            1 => Publish { action: Some(open), ..publish },
            _ => Publish { content: Bytes::from(format!("probe {id}")), ..publish },
        };
        match wire.publish_as(publish).await {
            Ok(ack) if id == 1 => (id, conversation) = (2, ack.conversation),
            Ok(ack) => {
                assert_eq!(ack.seq, seq + 1, "what was refused is not there, and what was acked is");
                (id, seq) = (id + 1, ack.seq);
            }
            Err(refusal) if refusal.message_id.0 == id => {
                assert!(says_what_is_known(&refusal), "{refusal}");
                *refused.entry(refusal.reason).or_default() += 1;
                all.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(20)).await;
            }
            // The broker is gone, or has let go of the connection.
            Err(_) => wire = let_in(process.port, &connect).await,
        }
    }
    refused
}

/// Who probes where.
struct Probed {
    port: u16,
    connect: packet::Connect,
}

/// Whether a refusal is one of a store that cannot write for now.
fn says_what_is_known(refusal: &Refusal) -> bool {
    let is_known = matches!(refusal.reason, Reason::StoreUnavailable | Reason::OutcomeUnknown | Reason::Overloaded);
    is_known && refusal.retry_after_ms > 0
}

/// Clients that talk to a broker, whatever its disk does.
struct Talks {
    pair: Pair,
    stop: Arc<AtomicBool>,
    /// How much was refused so far.
    refused: Arc<AtomicUsize>,
    probing: tokio::task::JoinHandle<HashMap<Reason, usize>>,
}

impl Talks {
    /// Resolves once they are let in and talk; that may be long after.
    fn begin(process: &Process) -> impl Future<Output = Self> + use<> {
        let port = process.port;
        let probed = Probed { port, connect: process.connect("probe", "phone") };
        let config = |user| process.config(user, "phone", port);
        let (writer, reader) = (config("writer"), config("reader"));
        async move {
            let (stop, refused) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
            let probing = tokio::spawn(probe(probed, Arc::clone(&stop), Arc::clone(&refused)));
            let pair = Pair::begin("w", writer, reader, "reader", 8).await;
            Self { pair, stop, refused, probing }
        }
    }

    /// Ends in order, the broker too; returns the acks, and how often what was refused.
    async fn end(self, process: &mut Process, context: &str) -> (usize, HashMap<Reason, usize>) {
        let said = self.settle(context).await;
        assert_ends_well(process, context);
        said
    }

    /// Publishes no more, and waits until everything is answered and delivered.
    async fn settle(self, context: &str) -> (usize, HashMap<Reason, usize>) {
        self.stop.store(true, Ordering::Relaxed);
        let refused = self.probing.await.unwrap_or_else(|error| panic!("{context}: {error}"));
        (self.pair.end(context).await, refused)
    }
}

fn assert_ends_well(process: &mut Process, context: &str) {
    let status = process.drain();
    assert!(status.success(), "{context}: {status} {:#?}", process.log());
    process.assert_no_panic(context);
    process.assert_sound(context);
}

/// Lines that say that the store will not be written until a restart.
const NEEDS_RESTART: [&str; 2] = ["then restart", "it serves readers only"];

fn needs_restart(process: &mut Process) -> bool {
    let is_broken = process.setup.faults.contains("fail_from") && process.logged("this call fails") > 5;
    is_broken || process.has_ended() || NEEDS_RESTART.iter().any(|line| process.logged(line) > 0)
}

/// What an operator does: restarts the broker, with a disk that works.
fn restart(process: &mut Process) {
    process.kill();
    process.setup.faults = "seal=16".into();
    process.start();
}

/// How a life with faults went.
#[derive(Debug)]
struct Life {
    /// Whether the fault came to pass.
    has_come: bool,
    /// Whether the broker had to be restarted.
    has_restarted: bool,
}

/// A short life with these faults.
async fn short_life(faults: String, acks: usize) -> Life {
    let faults = faults.as_str();
    let mut process = Process::with(Setup { faults: format!("seal=16,{faults}"), ..Setup::default() });
    let (mut talks, mut has_restarted) = (None, false);
    let begun = Instant::now();
    // The first clients come while a disk may fail that is only being opened.
    let mut beginning = Box::pin(Talks::begin(&process));
    loop {
        assert!(begun.elapsed() < REST, "{faults}: no acks: {:#?}", process.log());
        tokio::select! {
            begun = &mut beginning, if talks.is_none() => talks = Some(begun),
            () = sleep(Duration::from_millis(10)) => {}
        }
        if !has_restarted && needs_restart(&mut process) {
            has_restarted = true;
            restart(&mut process);
        }
        if talks.as_ref().is_some_and(|talks| talks.pair.acked() >= acks) {
            break;
        }
    }
    let Some(talks) = talks else { unreachable!("they have acks") };
    // The fault may come to pass as late as now.
    let mut settling = Box::pin(talks.settle(faults));
    let (acked, refused) = loop {
        tokio::select! {
            settled = &mut settling => break settled,
            () = sleep(Duration::from_millis(10)) => {}
        }
        if !has_restarted && needs_restart(&mut process) {
            has_restarted = true;
            restart(&mut process);
        }
    };
    assert_ends_well(&mut process, faults);
    let has_come = process.logged("this call fails") + process.logged("this call stalls") > 0;
    println!("{faults}: {acked} acked, refused {refused:?}, came to pass {has_come}, restarted {has_restarted}");
    Life { has_come, has_restarted }
}

/// Lives that go on at the same time: most of each is waiting for the disk.
const AT_ONCE: usize = 4;

/// Calls spread over a short life, from the first of opening on; each once, and some for good.
const FAULTS: [&str; 16] = [
    "fail=5",
    "fail=30,late",
    "fail=70",
    "fail=120,late",
    "fail=180",
    "fail=240,late",
    "fail=300",
    "fail=380,late",
    "fail=470",
    "fail=560,late",
    "fail=700",
    "fail=850,late",
    "fail_from=200",
    "fail_from=500",
    "stall=150:1000",
    "stall=400:1000",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_the_disk_that_fail_or_stall_under_load_are_survived() {
    let lives =
        futures_util::stream::iter(FAULTS).map(|faults| short_life(faults.into(), 40)).buffer_unordered(AT_ONCE);
    let lives: Vec<Life> = lives.collect().await;
    let count = |is: fn(&Life) -> bool| lives.iter().filter(|life| is(life)).count();
    assert!(count(|life| life.has_come) > FAULTS.len() / 2, "{lives:?}");
    assert!(count(|life| life.has_come && !life.has_restarted) > 0, "it goes on by itself: {lives:?}");
}

/// `LONGWIRE_CALLS=1..4000 cargo test --test it every_call -- --ignored --nocapture`: each of these calls fails in a life
/// of its own, every other one late. Ends where a life has no such call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "each call of a short life: half an hour"]
async fn every_call_of_the_disk_that_fails_is_survived() {
    let range = std::env::var("LONGWIRE_CALLS").unwrap_or_else(|_| "1..100000".into());
    let (from, to) = range.split_once("..").expect("LONGWIRE_CALLS=from..to");
    let calls = from.parse::<u64>().expect("a number")..to.parse().expect("a number");
    let faults = calls.map(|call| if call % 2 == 0 { format!("fail={call}") } else { format!("fail={call},late") });
    let lives = futures_util::stream::iter(faults).map(|faults| short_life(faults, 60)).buffer_unordered(AT_ONCE);
    let come = lives.take_while(|life| std::future::ready(life.has_come)).count().await;
    println!("{come} calls have failed");
}

/// A file system in memory, of a few megabytes.
struct Mount(PathBuf);

impl Mount {
    /// Mounts it, or says loudly why not.
    fn new(folder: &Path, megabytes: u64) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "none"]).arg(folder);
        match mount.output() {
            Ok(output) if output.status.success() => Some(Self(folder.to_owned())),
            other => {
                eprintln!("SKIPPED: no small file system can be mounted here: {other:?}");
                None
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} is unmounted", self.0.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_disk_that_fills_up_refuses_publishes_until_there_is_room() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(_mount) = Mount::new(folder.path(), 48) else { return };
    let setup = Setup { store: Some(folder.path().join("store")), faults: "seal=16".into(), ..Setup::default() };
    let mut process = Process::with(setup);
    let talks = Talks::begin(&process).await;
    talks.pair.more(40, "while there is room").await;
    let session = talks.pair.reader.connected().await.expect("connected").session;
    for round in 1..=2 {
        fill(&folder.path().join("ballast"));
        // Nothing new is acked, each is told why.
        let (begun, refused) = (Instant::now(), talks.refused.load(Ordering::Relaxed));
        while talks.refused.load(Ordering::Relaxed) < refused + 20 {
            assert!(begun.elapsed() < REST, "round {round}: nothing is refused: {:#?}", process.log());
            sleep(Duration::from_millis(10)).await;
        }
        // Readers are served on, and nobody is sent away.
        assert!(!history(&talks.pair.reader, talks.pair.conversation).await.is_empty());
        assert_eq!(talks.pair.reader.connected().await.expect("connected").session, session);
        std::fs::remove_file(folder.path().join("ballast")).expect("there is room");
        talks.pair.more(40, "when there is room").await;
    }
    let (acked, refused) = talks.end(&mut process, "a small disk").await;
    println!("{acked} acked, refused {refused:?}");
}

/// Takes all the room that there is.
fn fill(ballast: &Path) {
    let mut file = std::fs::File::create(ballast).expect("a file");
    let mut piece = vec![1; 1 << 20];
    while piece.len() > 256 {
        if file.write_all(&piece).is_err() {
            piece.truncate(piece.len() / 2);
        }
    }
}

/// The same where nothing can be mounted: no file may become larger, until that is lifted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_cannot_grow_refuse_publishes_until_they_can() {
    // In blocks of 512 bytes; the signal that comes with it ends nothing.
    let setup = Setup { shell: "trap '' XFSZ\nulimit -S -f 8192", ..Setup::default() };
    let mut process = Process::with(setup);
    let talks = Talks::begin(&process).await;
    talks.pair.more(20, "while files may grow").await;
    let content = Bytes::from(vec![b'x'; 32 << 10]);
    let mut large = Vec::new();
    for _ in 0..256 {
        let publication = talks.pair.writer.publish(talks.pair.aside, content.clone()).await.expect("queued");
        large.push(publication);
    }
    process.logs("a commit failed: publishes are refused until the store opens again", 1).await;
    process.lift_file_size();
    let mut last = 0;
    for publication in large {
        let seq = publication.await.expect("acked").seq;
        assert_eq!(seq, last + 1, "each once");
        last = seq;
    }
    talks.pair.more(20, "when files may grow").await;
    talks.end(&mut process, "files that cannot grow").await;
}

/// Without the thread that makes runs, a broker would go on until its journal is full. It ends, loudly, and the next one has
/// everything that was acked.
#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_thread_that_it_needs_ends_the_broker() {
    let mut process = Process::new();
    let mut wire = let_in(process.port, &process.connect("ann", "phone")).await;
    let direct = wire.open_direct("ben").await;
    let mut acked = wire.say(direct, "before").await.seq;
    process.kill();

    process.setup.faults = "seal=16,panic=store-builder".into();
    process.start();
    let mut wire = let_in(process.port, &process.connect("ann", "tablet")).await;
    for message in 0..100 {
        let publish = Publish { conversation: direct, content: format!("{message}").into(), ..Publish::default() };
        let Ok(ack) = wire.publish(publish).await else { break };
        acked = ack.seq;
    }
    assert_eq!(process.ends().await.code(), Some(70), "{:#?}", process.log());
    assert!(process.logged("store-builder") > 0, "it says which: {:#?}", process.log());

    process.setup.faults.clear();
    process.start();
    let mut wire = let_in(process.port, &process.connect("ann", "desk")).await;
    let head = wire.say(direct, "after").await.seq;
    assert!(head > acked, "{acked} was acked, {head} comes next");
    assert!(process.drain().success());
    process.assert_sound("after a panic");
}
