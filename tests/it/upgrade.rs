//! The real broker is drained under load and another process takes over its folder and port: everybody is told to go, goes
//! and comes back, every ack is out before the end, and nothing is lost.

use longwire_client::State;

use crate::load::Pair;
use crate::process::{Process, Setup};

/// How often a process follows another.
const UPGRADES: usize = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_drained_under_load_hands_over_to_the_next_process() {
    let setup = Setup { faults: "seal=64".into(), config: "limits.drain_timeout = '30s'".into(), ..Setup::default() };
    let mut process = Process::with(setup);
    let mut pairs = Vec::new();
    for n in 0..2 {
        let reader = format!("reader{n}");
        let config = |user: &str| process.config(user, "phone", process.port);
        let writer = config(&format!("writer{n}"));
        pairs.push(Pair::begin(&format!("w{n}"), writer, config(&reader), &reader, 8).await);
    }
    for upgrade in 0..UPGRADES {
        for pair in &pairs {
            pair.more(30, "under load").await;
        }
        let mut states = pairs[0].reader.states();
        states.mark_unchanged();
        let status = tokio::task::block_in_place(|| process.drain());
        assert!(status.success(), "upgrade {upgrade}: {status}");
        // By themselves, before the broker lost patience with anybody.
        let left = states.wait_for(|state| !matches!(state, State::Connected(_))).await.expect("alive").clone();
        assert!(!left.is_final(), "{left}");
        process.start();
        for pair in &pairs {
            pair.more(30, "after an upgrade").await;
        }
    }
    assert_eq!(process.logged("stopped; each frame was one fsync"), UPGRADES);
    for pair in pairs {
        pair.end("upgrades").await;
    }
    assert!(process.drain().success());
    process.assert_no_panic("upgrades");
    process.assert_sound("upgrades");
}
