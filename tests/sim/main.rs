//! The simulator: the real broker, its store on a disk that crashes, and many devices, in one thread under one seed that
//! decides everything; and a model of what must be so, asked at every step. A seed that fails is printed with the
//! command that replays it, bit for bit.

mod broker;
mod device;
mod link;
mod model;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use world::{Coverage, Keys, World};

/// Seeds of the gate.
const SEEDS: u64 = 1_000;

/// Steps of a seed before faults stop.
const STEPS: u32 = 3_000;

/// Seeds that once failed. What each of them found is also planted as a mutation, since a seed tells another history as
/// soon as the simulator changes.
const REGRESSIONS: [u64; 15] = [5, 33, 52, 56, 79, 205, 212, 226, 318, 348, 509, 953, 2_439, 4_088, 4_827];

/// What the default seeds have to reach, so that no fault silently stops to be one.
const REACHED: [&str; 28] = [
    "acks that never came",
    "catch-ups in all",
    "catch-ups in skip",
    "clients that heard nothing",
    "commits refused",
    "commits that failed under way",
    "connects over a session that is served",
    "connects without a store",
    "connections half open",
    "devices restored from a copy",
    "disks that are full",
    "entries of watched channels",
    "failed commits found after all",
    "heads of what expired",
    "heads of what is too large",
    "heads of what was skipped",
    "ids given up",
    "items that came again",
    "jumps of the clock",
    "kills",
    "marks",
    "outcomes unknown",
    "publishes behind an open one",
    "publishes repeated",
    "reads off the thread",
    "resets",
    "stores opened again",
    "tails lost to a lie",
];

fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let (private, public) = longwire::auth::generate_key().expect("a key");
        Keys { private, public }
    })
}

/// Runs a seed to its end; gives the hash of everything that happened, and what was reached.
fn run(seed: u64) -> (u64, Coverage) {
    let is_shown = std::env::var_os("LONGWIRE_TRACE").is_some();
    let mut world = World::new(seed, keys(), is_shown);
    world.run(STEPS);
    (world.trace.hash, world.coverage)
}

/// `LONGWIRE_SEEDS`: `from..to`, or how many.
fn seeds(default: u64) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("LONGWIRE_SEEDS") else { return 0..default };
    let number = |text: &str| text.trim().parse().expect("LONGWIRE_SEEDS is from..to, or a number");
    match text.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => 0..number(&text),
    }
}

#[test]
fn every_promise_holds_in_every_seed() {
    let seeds = seeds(SEEDS);
    let mut coverage = Coverage::default();
    let mut failed = Vec::new();
    let (begun, mut said) = (Instant::now(), Instant::now());
    for seed in seeds.clone() {
        match catch_unwind(AssertUnwindSafe(|| run(seed))) {
            Ok((_, reached)) => coverage.add(&reached),
            Err(_) => {
                println!("replay with: LONGWIRE_SEEDS={seed}..{} cargo test --test sim every_promise", seed + 1);
                failed.push(seed);
                assert!(failed.len() < 20, "many seeds fail: {failed:?}");
            }
        }
        if said.elapsed() > Duration::from_secs(30) {
            said = Instant::now();
            println!("done up to seed {seed}; go on with LONGWIRE_SEEDS={}..{}", seed + 1, seeds.end);
        }
    }
    let took = begun.elapsed();
    println!(
        "{} seeds in {took:?}: {:.1} a second",
        seeds.end - seeds.start,
        (seeds.end - seeds.start) as f64 / took.as_secs_f64()
    );
    for (what, n) in &coverage.0 {
        println!("{n:>10} {what}");
    }
    assert!(failed.is_empty(), "seeds that fail: {failed:?}");
    if seeds.end - seeds.start >= SEEDS {
        let missing: Vec<_> = REACHED.iter().filter(|what| !coverage.0.contains_key(*what)).collect();
        assert!(missing.is_empty(), "never reached: {missing:?}");
    }
}

#[test]
fn a_seed_is_one_history() {
    for seed in [3, 7, 11] {
        assert_eq!(run(seed).0, run(seed).0, "seed {seed} differs from itself");
    }
}

/// Each planted bug is seen within a thousand seeds; otherwise the simulator looks away somewhere.
#[cfg(feature = "mutations")]
#[test]
#[ignore = "takes minutes: run by name, with --features mutations"]
fn mutations_are_seen() {
    use longwire::mutation::Mutation;

    let only = std::env::var("LONGWIRE_MUTATION").ok();
    let wanted = |m: &Mutation| only.as_ref().is_none_or(|only| format!("{m:?}") == *only);
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for mutation in Mutation::ALL.into_iter().filter(wanted) {
        Mutation::plant(Some(mutation));
        let seen = seeds(SEEDS).find_map(|seed| {
            let panic = catch_unwind(AssertUnwindSafe(|| run(seed))).err()?;
            let text = panic.downcast_ref::<String>().cloned();
            Some((seed, text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()))
        });
        Mutation::plant(None);
        match seen {
            Some((seed, text)) => {
                let what: String = text.lines().next().unwrap_or_default().chars().take(120).collect();
                println!("{mutation:?}: seed {seed}: {what}");
            }
            None => missed.push(mutation),
        }
    }
    drop(std::panic::take_hook());
    assert!(missed.is_empty(), "not seen: {missed:?}");
}

#[test]
fn what_once_failed_holds() {
    for seed in REGRESSIONS {
        run(seed);
    }
}
