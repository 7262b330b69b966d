//! Runs of many seeds: on every core, from where an earlier run ended, and with what failed kept.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::world::Coverage;

/// Seeds that a thread takes at a time.
const BATCH: u64 = 16;
/// Failures after which a run gives up: more of them say nothing new.
const FAILURES_MAX: usize = 20;
/// How often a run says where it stands.
const SAID_EVERY: Duration = Duration::from_secs(30);
/// How often a run writes down where it stands.
const SAVED_EVERY: Duration = Duration::from_secs(5);

/// What once failed: a kind of run and a seed a line.
const KEPT: &str = include_str!("regressions.txt");

/// A kind of run.
pub(crate) struct Kind {
    /// What stands before its seeds in `regressions.txt`.
    pub(crate) name: &'static str,
    /// The environment's variable that names its seeds.
    pub(crate) variable: &'static str,
    /// The test to name for a replay.
    pub(crate) test: &'static str,
}

/// What a run came to.
pub(crate) struct Outcome {
    pub(crate) seeds: u64,
    pub(crate) coverage: Coverage,
    pub(crate) failed: Vec<u64>,
}

/// Where a run stands.
struct Standing {
    next: u64,
    /// The batches that threads are at, by their first seeds.
    under_way: BTreeSet<u64>,
    coverage: Coverage,
    failed: Vec<u64>,
    said: Instant,
    saved: Instant,
}

impl Standing {
    /// Everything below is done.
    fn done(&self) -> u64 {
        self.under_way.first().copied().unwrap_or(self.next).min(self.next)
    }
}

impl Kind {
    /// The seeds that are asked for: `from..to`, or how many.
    pub(crate) fn seeds(&self, default: u64) -> Range<u64> {
        let Ok(text) = std::env::var(self.variable) else { return 0..default };
        let number = |text: &str| text.trim().parse().expect("seeds are from..to, or a number");
        match text.split_once("..") {
            Some((from, to)) => number(from)..number(to),
            None => 0..number(&text),
        }
    }

    /// The seeds of this kind that once failed.
    pub(crate) fn kept(&self) -> Vec<u64> {
        let lines = KEPT.lines().filter_map(|line| line.split('#').next()?.trim().split_once(' '));
        let own = lines.filter(|(kind, _)| *kind == self.name);
        own.map(|(_, seed)| seed.trim().parse().expect("a seed")).collect()
    }

    /// Runs every seed, on as many threads as there are cores (`LONGWIRE_THREADS`). With `LONGWIRE_PROGRESS=FILE` it goes
    /// on from where the file says, and writes there how far it has come.
    pub(crate) fn run(&self, seeds: &Range<u64>, one: impl Fn(u64) -> Coverage + Sync) -> Outcome {
        let progress = std::env::var_os("LONGWIRE_PROGRESS").map(PathBuf::from);
        let (from, failed) = progress.as_deref().map_or((0, Vec::new()), read);
        let first = seeds.start.max(from);
        let now = Instant::now();
        let standing = Mutex::new(Standing {
            next: first,
            under_way: BTreeSet::new(),
            coverage: Coverage::default(),
            failed,
            said: now,
            saved: now,
        });
        let threads = std::env::var("LONGWIRE_THREADS").ok().and_then(|text| text.parse().ok());
        let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| self.work(seeds, &standing, progress.as_deref(), &one));
            }
        });
        let standing = standing.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = &progress {
            write(path, &standing);
        }
        let (seeds, took) = (standing.done().saturating_sub(first), now.elapsed());
        println!("{}: {seeds} seeds in {took:.1?}: {:.1} a second", self.name, seeds as f64 / took.as_secs_f64());
        Outcome { seeds, coverage: standing.coverage, failed: standing.failed }
    }

    fn work(
        &self,
        seeds: &Range<u64>,
        standing: &Mutex<Standing>,
        progress: Option<&Path>,
        one: &(impl Fn(u64) -> Coverage + Sync),
    ) {
        let lock = || standing.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let batch = {
                let mut standing = lock();
                let first = standing.next;
                if first >= seeds.end || standing.failed.len() >= FAILURES_MAX {
                    return;
                }
                standing.next = (first + BATCH).min(seeds.end);
                standing.under_way.insert(first);
                first..standing.next
            };
            let (mut coverage, mut failed) = (Coverage::default(), Vec::new());
            for seed in batch.clone() {
                match catch_unwind(AssertUnwindSafe(|| one(seed))) {
                    Ok(reached) => coverage.add(&reached),
                    Err(_) => {
                        self.failed(seed);
                        failed.push(seed);
                    }
                }
            }
            let mut standing = lock();
            standing.under_way.remove(&batch.start);
            standing.coverage.add(&coverage);
            standing.failed.extend(failed);
            if standing.said.elapsed() > SAID_EVERY {
                standing.said = Instant::now();
                let done = standing.done();
                println!("{}: done up to seed {done}; go on with {}={done}..{}", self.name, self.variable, seeds.end);
            }
            if let Some(path) = progress
                && standing.saved.elapsed() > SAVED_EVERY
            {
                standing.saved = Instant::now();
                write(path, &standing);
            }
        }
    }

    /// Says how a seed is replayed, and keeps it: from now on it is replayed by every run of the tests.
    fn failed(&self, seed: u64) {
        println!("replay with: {}={seed}..{} cargo test --test sim {}", self.variable, seed + 1, self.test);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sim/regressions.txt");
        let kept = fs::OpenOptions::new().append(true).open(&path);
        let kept = kept.and_then(|mut file| writeln!(file, "{} {seed}", self.name));
        match kept {
            Ok(()) => println!("it is kept in {}", path.display()),
            Err(error) => println!("add \"{} {seed}\" to {}: {error}", self.name, path.display()),
        }
    }
}

/// Up to where a run has come, and what failed.
fn read(path: &Path) -> (u64, Vec<u64>) {
    let Ok(text) = fs::read_to_string(path) else { return (0, Vec::new()) };
    let (mut next, mut failed) = (0, Vec::new());
    for (word, number) in text.lines().filter_map(|line| line.split_once(' ')) {
        let number = number.parse().expect("a seed");
        if word == "next" { next = number } else { failed.push(number) }
    }
    (next, failed)
}

fn write(path: &Path, standing: &Standing) {
    let mut text = format!("next {}\n", standing.done());
    standing.failed.iter().for_each(|seed| text.push_str(&format!("failed {seed}\n")));
    let beside = path.with_extension("new");
    let written = fs::write(&beside, text).and_then(|()| fs::rename(&beside, path));
    written.expect("the file of LONGWIRE_PROGRESS can be written");
}
