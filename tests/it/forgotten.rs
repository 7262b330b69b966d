//! The real broker is killed again and again while it forgets: users that are erased, and what a conversation keeps no
//! more. It comes to the end of it all the same: then no file of the store holds any of it, and nothing else is missing.
//! `LONGWIRE_KILLS=200 cargo test --test it forgotten` kills as often.

use std::time::Duration;

use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, HeadReason, RetentionMode};
use tokio::time::sleep;

use crate::process::{Process, let_in};
use crate::retention::is_in_files;
use crate::world::{Wire, heads, texts};

const KILLS: u64 = 10;
/// What nobody shall read again, of a user that is erased and of a conversation that keeps its entries for a second.
const ERASED: &str = "written by who is erased";
const BRIEF: &str = "kept for a second and no longer";
/// How often something is looked at that comes of itself: two minutes in all.
const PATIENCE: usize = 1_200;

fn erase(user: &str) -> Action {
    Action::EraseUser(packet::EraseUser { user: user.into() })
}

/// Everything that history has of a conversation.
async fn whole(wire: &mut Wire, conversation: u64) -> Vec<packet::Item> {
    wire.pages(conversation, 200, false).await.into_iter().flat_map(|page| page.items).collect()
}

/// Kills and starts, as often as is said; whoever stays says something now and then, and is answered.
async fn kill(process: &mut Process, kills: u64, group: u64, later: &mut Vec<String>) {
    for _ in 0..kills {
        // Before it is up; in the state's part; while the files are written anew, which begins a second after a start.
        let most = [50, 400, 2_000][fastrand::usize(0..3)];
        sleep(Duration::from_millis(fastrand::u64(0..most))).await;
        if fastrand::bool() {
            let mut ben = let_in(process.port, &process.connect("ben", "phone")).await;
            later.push(format!("later {}", later.len()));
            ben.say(group, &later[later.len() - 1]).await;
        }
        process.kill();
        process.start();
    }
}

/// Waits until no file holds these words.
async fn until_forgotten(process: &Process, words: &str) {
    for _ in 0..PATIENCE {
        if is_in_files(&process.store(), words).is_empty() {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("{words:?} stands in {:?}: {:#?}", is_in_files(&process.store(), words), process.log());
}

/// SPEC R15-21, R15-25, R5.7-5.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_broker_was_to_forget_is_in_no_file_and_nothing_else_is_lost() {
    let kills = std::env::var("LONGWIRE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(KILLS);
    let mut process = Process::new();
    let port = process.port;
    let mut root = let_in(port, &process.administrator("root")).await;
    let mut ada = let_in(port, &process.connect("ada", "phone")).await;
    let mut ben = let_in(port, &process.connect("ben", "phone")).await;
    drop(let_in(port, &process.connect("cid", "phone")).await);
    let direct = ada.open_direct("ben").await;
    let group = ada.create_group("ada's", &["ben", "cid"]).await;
    let brief = ben.create_group("brief", &["ada", "cid"]).await;
    for n in 0..70 {
        ben.create_group(&format!("group {n}"), &["ada"]).await;
    }
    let (mut stays, mut later) = (Vec::new(), Vec::new());
    for n in 0..60 {
        ada.say(direct, &format!("{ERASED} {n}")).await;
        ada.say(group, &format!("{ERASED} {n} {}", "x".repeat(50 * n))).await;
        stays.push(format!("stays {n}"));
        ben.say(direct, &stays[n]).await;
        ben.say(brief, &format!("{BRIEF} {n}")).await;
    }
    assert!(!is_in_files(&process.store(), ERASED).is_empty(), "the files hold it");
    let retention = packet::Retention { mode: RetentionMode::KeepFor.into(), age_ms: 1_000 };
    let last = ben.act(brief, Action::SetRetention(packet::SetRetention { retention: Some(retention) })).await;
    let last = last.expect("said").seq;
    root.act(0, erase("ada")).await.expect("begun");
    kill(&mut process, kills - kills / 2, group, &mut later).await;
    until_forgotten(&process, ERASED).await;

    // What is kept no more goes with the next that is erased, or within a day.
    let mut ben = let_in(port, &process.connect("ben", "phone")).await;
    for tried in 0.. {
        let gone = heads(&whole(&mut ben, brief).await);
        if gone.iter().any(|(_, _, to, why)| *to >= last && *why == HeadReason::Expired) {
            break;
        }
        assert!(tried < PATIENCE, "{brief} keeps what it need not: {gone:?}");
        sleep(Duration::from_millis(100)).await;
    }
    let mut root = let_in(port, &process.administrator("root")).await;
    root.act(0, erase("cid")).await.expect("begun");
    kill(&mut process, kills / 2, group, &mut later).await;
    until_forgotten(&process, BRIEF).await;
    assert_eq!(is_in_files(&process.store(), ERASED), Vec::<String>::new(), "nor did it come back");

    // Each seq is there or explained.
    let mut ben = let_in(port, &process.connect("ben", "phone")).await;
    for (conversation, expected) in [(direct, &stays), (group, &later)] {
        let all = whole(&mut ben, conversation).await;
        assert_eq!(&texts(&all), expected, "what others said stays, in order");
        let erased = heads(&all).into_iter().filter(|(.., why)| *why == HeadReason::Erased);
        assert_eq!(erased.map(|(_, from, to, _)| to - from + 1).sum::<u64>(), 60, "what is missing is explained");
    }
    process.drain();
    process.assert_no_panic("killed while it forgets");
    process.assert_sound("killed while it forgets");
    for words in [ERASED, BRIEF] {
        assert_eq!(is_in_files(&process.store(), words), Vec::<String>::new(), "nor does a stop bring it back");
    }
}
