//! The real broker with hardly any files to open: those who are there are served on, the store gets the files that it
//! needs, nobody spins, and room that comes back is used.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::load::Pair;
use crate::process::{Process, Setup, let_in};
use crate::world::{PATIENCE, Wire};

/// More connections than there are files.
const STRANGERS: usize = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_files_for_more_connections_those_who_are_there_are_served_on() {
    // Small memtables: the store makes and opens runs all the time.
    let setup = Setup { faults: "seal=16".into(), shell: "ulimit -n 96", ..Setup::default() };
    let mut process = Process::with(setup);
    let config = |user| process.config(user, "phone", process.port);
    // Whoever is let in is served, and the port is there.
    drop(let_in(process.port, &process.connect("first", "phone")).await);
    let pair = Pair::begin("w", config("writer"), config("reader"), "reader", 8).await;
    let session = pair.reader.connected().await.expect("connected").session;

    let mut strangers = Vec::new();
    for _ in 0..STRANGERS {
        strangers.push(TcpStream::connect(("127.0.0.1", process.port)).await.expect("the kernel takes it"));
    }
    let begun = Instant::now();
    while process.open_files() < 50 {
        assert!(begun.elapsed() < PATIENCE, "{} files are open", process.open_files());
        sleep(Duration::from_millis(5)).await;
    }
    pair.more(100, "beside strangers").await;
    assert!(process.open_files() < 96, "some are left for the store");
    let refused = Wire::open(process.port, process.connect("late", "phone")).await;
    let is_let_in = match refused {
        Ok(mut wire) => wire.connected().await.is_ok(),
        Err(_) => false,
    };
    assert!(!is_let_in, "there is no room for one more");
    // A loop that spins would fill the log, or take a core: while next to nothing is to be done, it takes next to nothing.
    assert!(process.logged("no connection can be accepted just now") < 100);
    let session_now = pair.reader.connected().await.expect("connected").session;
    assert_eq!(session, session_now, "who was there stays");

    drop(strangers);
    drop(let_in(process.port, &process.connect("late", "phone")).await);
    pair.more(50, "when they are gone").await;
    pair.end("few files").await;
    assert!(process.drain().success());
    process.assert_no_panic("few files");
    assert_eq!(process.logged("background work on the store failed"), 0, "{:#?}", process.log());
    process.assert_sound("few files");
}

/// Where nothing keeps files back for it, accepting waits, and computes nothing meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_without_files_waits_and_does_not_spin() {
    let setup = Setup { shell: "ulimit -n 4096", ..Setup::default() };
    let mut process = Process::with(setup);
    let mut wire = let_in(process.port, &process.connect("first", "phone")).await;
    let direct = wire.open_direct("second").await;
    // From here on it may have no more files than it has.
    process.limit_files(process.open_files() as u64);
    let strangers: Vec<_> =
        futures_util::future::try_join_all((0..20).map(|_| TcpStream::connect(("127.0.0.1", process.port))))
            .await
            .expect("the kernel takes them");
    process.logs("no connection can be accepted just now", 3).await;
    let (ticks, begun) = (process.ticks(), Instant::now());
    let lines = process.logged("no connection can be accepted just now");
    process.logs("no connection can be accepted just now", lines + 10).await;
    let took = begun.elapsed();
    // Ten waits of 100 ms. One that spins computes all the time, or does not wait.
    assert!(took > Duration::from_millis(500), "{took:?} for ten tries");
    assert!(process.ticks() - ticks < 50, "{} ticks of 10 ms in {took:?}", process.ticks() - ticks);
    wire.say(direct, "meanwhile").await;
    process.limit_files(4_096);
    drop(let_in(process.port, &process.connect("late", "phone")).await);
    drop(strangers);
    assert!(process.drain().success());
}
