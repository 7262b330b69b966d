//! The real broker on a machine whose clock jumps by a day, forward and back, also over restarts: time in the log goes on
//! evenly, nothing expires for it, sessions go on, and tokens are judged by what the clock says.

use std::time::{SystemTime, UNIX_EPOCH};

use std::time::Duration;

use longwire_protocol::{Reason, packet};

use crate::load::Pair;
use crate::process::{Process, Setup, let_in};
use crate::world::Wire;

const DAY_MS: i64 = 86_400_000;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

async fn refusal(process: &Process, connect: packet::Connect) -> Option<Reason> {
    loop {
        let mut wire = Wire::open(process.port, connect.clone()).await.expect("a connection");
        let reason = wire.connected().await.err().map(|refusal| refusal.reason);
        // Memtables are small here: for a moment there may be no room, which says nothing about the token.
        if reason != Some(Reason::StoreUnavailable) {
            return reason;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s12_a_real_broker_whose_clock_jumps_by_a_day_loses_nothing() {
    let mut process = Process::prepared(Setup::default());
    let file = process.folder().join("clock");
    let set = |by_ms: i64| std::fs::write(&file, by_ms.to_string()).expect("written");
    set(0);
    process.setup.faults = format!("seal=16,clock={}", file.display());
    process.setup.config = "store.retention_age = '1h'".into();
    process.start();
    let in_an_hour = |process: &Process| packet::Connect {
        token: process.token("guest", now() + 3_600),
        ..process.connect("guest", "phone")
    };
    let mut alice = let_in(process.port, &process.connect("alice", "phone")).await;
    let direct = alice.open_direct("bob").await;
    let config = |user| process.config(user, "phone", process.port);
    let pair = Pair::begin("w", config("writer"), config("reader"), "reader", 4).await;
    let session = pair.reader.connected().await.expect("connected").session;
    pair.more(30, "before").await;
    let mut time = alice.say(direct, "before").await.time;
    assert_eq!(refusal(&process, in_an_hour(&process)).await, None);

    for (by_ms, guest) in [(DAY_MS, Some(Reason::TokenExpired)), (-DAY_MS, None), (0, None)] {
        set(by_ms);
        pair.more(30, &format!("{by_ms} ms off")).await;
        let later = alice.say(direct, "meanwhile").await.time;
        assert!(
            later >= time && later - time < DAY_MS as u64 / 2,
            "{by_ms} ms off: the log goes from {time} to {later}"
        );
        time = later;
        assert_eq!(refusal(&process, in_an_hour(&process)).await, guest, "{by_ms} ms off");
    }
    process.logs("the machine's clock jumped", 1).await;
    process.logs("the machine's clock is back", 1).await;
    assert_eq!(pair.reader.connected().await.expect("connected").session, session, "no session ended for it");

    // Started under a wrong clock; the log's time does not go back either.
    for by_ms in [-DAY_MS, 0] {
        set(by_ms);
        process.kill();
        process.start();
        pair.more(30, &format!("started {by_ms} ms off")).await;
        let mut alice = let_in(process.port, &process.connect("alice", "tablet")).await;
        let later = alice.say(direct, "again").await.time;
        assert!(later >= time && later - time < DAY_MS as u64 / 2, "started {by_ms} ms off: {time}, {later}");
        time = later;
    }
    pair.end("a clock that jumps").await;
    assert!(process.drain().success());
    process.assert_no_panic("a clock that jumps");
    process.assert_sound("a clock that jumps");
}
