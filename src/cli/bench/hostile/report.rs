//! What came of the attacks, held against the limits.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::super::super::Fail;
use super::Args;
use super::attack::Attack;
use super::guessing::LOOKED_AT;
use super::honest::Sample;
use super::overload::Overload;
use super::tally::{Counts, Lives};

/// What a connection may cost before it says who it is, in bytes, and how long it may last.
const STRANGER_BYTES_MAX: u64 = 32 << 10;
const STRANGER_S_MAX: f64 = 10.0;
/// The wheel turns in slots, the last words have two seconds, and the attackers' side is late, too.
const STRANGER_SLACK_S: f64 = 3.0;
/// So few connections say nothing about what one of them takes.
const CONNECTIONS_THAT_TELL: u64 = 200;
/// The others' p99 under attack, in quiet ones.
const P99_RATIO_MAX: f64 = 3.0;
/// A p99 below this is as good as this: one late fsync is no attack.
pub(super) const P99_LEAST_MS: f64 = 2.0;
/// What memory may keep, beside what was stored.
const MEMORY_RATIO_MAX: f64 = 1.05;
/// What an entry of the honest takes in the memtable, and a conversation or member that an attacker made in rows and
/// inboxes, at the most: both until the memtable is sealed.
const ENTRY_BYTES: u64 = 1 << 10;
const MADE_BYTES: u64 = 6 << 10;
/// Guesses at one account that are looked at, wherever they come from: 50 at once and one each 20 s (SPEC R15-18), for the
/// minute and a half that a window takes with all around it at the most.
const LOOKED_AT_MAX: f64 = 55.0;
/// The limit of what the others keep.
const THROUGHPUT: &str = "the others' throughput, in the quiet one";
/// The goodput under overload, in the best.
const GOODPUT_RATIO_MIN: f64 = 0.80;

/// The most that the broker's memory may be after an attack.
pub(super) const fn allowed(before: u64, stored: u64, made: u64) -> u64 {
    (before as f64 * MEMORY_RATIO_MAX) as u64 + stored * ENTRY_BYTES + made * MADE_BYTES
}

/// The broker's memory around an attack, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Memory {
    pub(super) before: u64,
    pub(super) peak: u64,
    pub(super) after: u64,
    pub(super) allowed: u64,
    pub(super) settled_s: f64,
}

/// A quiet window and one under attack.
pub(super) struct Beside {
    pub(super) quiet: Sample,
    pub(super) sample: Sample,
    pub(super) quiet_cpu_s: Option<f64>,
    pub(super) attack_cpu_s: Option<f64>,
    /// Of the attackers' side, and of it and the honest clients together.
    pub(super) attackers_cpu_s: f64,
    pub(super) clients_cpu_s: f64,
    /// Sent and opened within the window.
    pub(super) packets: u64,
    pub(super) connections: u64,
    pub(super) counts: Counts,
    pub(super) memory: Option<Memory>,
}

impl Beside {
    fn cores() -> f64 {
        std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64)
    }

    /// The part that the attackers' own side took of what it, the honest and the broker took together: what others of
    /// this machine take is nobody's fault here.
    fn attackers_share(&self) -> f64 {
        self.attackers_cpu_s / (self.clients_cpu_s + self.attack_cpu_s.unwrap_or_default()).max(0.001)
    }

    /// The others' throughput under attack, in the quiet one: as it was, and without what the attackers' side took.
    fn throughput_ratio(&self) -> (f64, f64) {
        let rate = |sample: &Sample| sample.delivered as f64 / sample.seconds.max(0.001);
        let ratio = rate(&self.sample) / rate(&self.quiet).max(1.0);
        (ratio, ratio / (1.0 - self.attackers_share()).max(0.1))
    }

    fn p99_ratio(&self) -> f64 {
        p99(&self.sample) / p99(&self.quiet).max(P99_LEAST_MS)
    }

    /// CPU that the broker spent beyond what the others' messages take, in microseconds: for each packet and each
    /// connection that was sent or opened, whichever there are more of.
    fn broker_us_each(&self) -> Option<f64> {
        let (quiet, attack) = (self.quiet_cpu_s?, self.attack_cpu_s?);
        let usual = quiet * self.sample.delivered as f64 / (self.quiet.delivered as f64).max(1.0);
        let count = self.packets.max(self.connections);
        (count > 0).then(|| ((attack - usual) * 1e6 / count as f64).max(0.0))
    }
}

fn p99(sample: &Sample) -> f64 {
    sample.delivery_us.value_at_quantile(0.99) as f64 / 1_000.0
}

/// All windows of one attack.
pub(super) struct Figures {
    pub(super) attack: Attack,
    pub(super) latency: Vec<Beside>,
    pub(super) throughput: Vec<Beside>,
    pub(super) broken: Vec<String>,
}

impl Figures {
    pub(super) const fn new(attack: Attack) -> Self {
        Self { attack, latency: Vec::new(), throughput: Vec::new(), broken: Vec::new() }
    }
}

/// One limit, and whether it was kept.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Held {
    pub(super) what: &'static str,
    pub(super) is: f64,
    pub(super) limit: f64,
    pub(super) holds: bool,
    /// Whether a miss breaks a promise, rather than being late or slow on this machine.
    is_promise: bool,
}

/// What is told of one attack.
#[derive(Debug, Serialize)]
pub(super) struct Told {
    pub(super) attack: Attack,
    pub(super) does: &'static str,
    pub(super) connections: u64,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) accepted: u64,
    pub(super) made: u64,
    pub(super) refused: BTreeMap<&'static str, u64>,
    pub(super) ended: BTreeMap<&'static str, Lives>,
    pub(super) failed: BTreeMap<String, u64>,
    pub(super) wrong: BTreeMap<&'static str, u64>,
    pub(super) to_victim: u64,
    pub(super) broker_us_each: Option<f64>,
    pub(super) broker_cpu_share: Option<f64>,
    pub(super) attackers_cpu_share: f64,
    pub(super) memory: Option<Memory>,
    pub(super) quiet_p99_ms: f64,
    pub(super) attack_p99_ms: f64,
    pub(super) throughput_ratio_as_it_was: Option<f64>,
    pub(super) limits: Vec<Held>,
}

/// Everything.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    rounds: u32,
    window_s: f64,
    cores: f64,
    pub(super) honest_messages: u64,
    pub(super) attacks: Vec<Told>,
    overload: Vec<Overload>,
    pub(super) overload_limits: Vec<Held>,
    pub(super) broken: Vec<String>,
}

impl Report {
    pub(super) fn new(
        args: &Args,
        all: Vec<Figures>,
        overload: Vec<Overload>,
        honest_messages: u64,
        broken: Vec<String>,
    ) -> Self {
        let mut every = broken;
        for figures in &all {
            every.extend(figures.broken.iter().map(|what| format!("{}: {what}", figures.attack.name())));
        }
        every.extend(overload.iter().flat_map(|overload| overload.broken.clone()));
        every.sort();
        every.dedup();
        let overload_limits = if overload.is_empty() { Vec::new() } else { overload_limits(&overload) };
        Self {
            rounds: args.rounds,
            window_s: args.window.as_secs_f64(),
            cores: Beside::cores(),
            honest_messages,
            attacks: all.into_iter().map(told).collect(),
            overload,
            overload_limits,
            broken: every,
        }
    }

    /// How many promises did not hold.
    pub(super) fn broken_promises(&self) -> usize {
        let limits = self.attacks.iter().flat_map(|told| &told.limits).chain(&self.overload_limits);
        limits.filter(|held| held.is_promise && !held.holds).count() + self.broken.len()
    }

    pub(super) fn write(&self, path: Option<&Path>) -> Result<(), Fail> {
        let Some(path) = path else { return Ok(()) };
        let text = serde_json::to_string_pretty(self).map_err(|error| Fail::failed(error.to_string()))?;
        std::fs::write(path, text + "\n").map_err(|error| Fail::failed(format!("{}: {error}", path.display())))
    }

    pub(super) fn print(&self) {
        for told in &self.attacks {
            told.print();
        }
        if let Some(middle) = middle(&self.overload, |overload| overload.goodput_ratio) {
            println!("overload: {:.0} messages/s offered, five times what was managed", middle.offered_per_second);
            println!(
                "  goodput {:.0} of {:.0} messages/s; {} refused for now; accepted p99 {:.0} ms",
                middle.goodput_per_second, middle.saturated_per_second, middle.refused, middle.accepted_p99_ms
            );
            print_limits(&self.overload_limits);
        }
        println!("honest: {} messages acked, each read once and in order by every reader", self.honest_messages);
        for what in &self.broken {
            println!("  BROKEN  {what}");
        }
    }
}

impl Told {
    /// What the others' throughput kept, without what the attackers' side took.
    pub(super) fn throughput_ratio(&self) -> Option<f64> {
        self.limits.iter().find(|held| held.what == THROUGHPUT).map(|held| held.is)
    }

    fn print(&self) {
        println!("{}: {}", self.attack.name(), self.does);
        println!(
            "  gets     {} connections, {} packets, {} KiB; {} accepted{}",
            self.connections,
            self.packets,
            self.bytes >> 10,
            self.accepted,
            self.refused.iter().map(|(why, count)| format!(", {count} {why}")).collect::<String>()
        );
        for (how, lives) in &self.ended {
            println!("           {} {how}, after {:.1} s at the latest", lives.connections, lives.longest_s);
        }
        for (what, count) in &self.wrong {
            println!("           {count} WRONG: {what}");
        }
        for (why, count) in &self.failed {
            println!("           {count} failed: {why}");
        }
        let cost = self.broker_us_each.map_or_else(|| "not known".to_owned(), |us| format!("{us:.1} us each"));
        let share =
            self.broker_cpu_share.map_or_else(String::new, |share| format!(", {:.0} % of the cores", share * 100.0));
        println!(
            "  costs    broker CPU {cost}{share}; the attackers' own side {:.0} % of what all took",
            self.attackers_cpu_share * 100.0
        );
        if let Some(memory) = &self.memory {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            println!(
                "           memory {:.1} MiB before, {:.1} at the most, {:.1} after {:.1} s (allowed {:.1})",
                mib(memory.before),
                mib(memory.peak),
                mib(memory.after),
                memory.settled_s,
                mib(memory.allowed)
            );
        }
        println!("  others   p99 {:.2} ms in quiet, {:.2} ms beside it", self.quiet_p99_ms, self.attack_p99_ms);
        if let Some(ratio) = self.throughput_ratio_as_it_was {
            println!(
                "           throughput {:.1} % of the quiet one, the attackers' part of the CPU included",
                ratio * 100.0
            );
        }
        print_limits(&self.limits);
    }
}

fn print_limits(limits: &[Held]) {
    for held in limits {
        let verdict = if held.holds { "pass" } else { "MISS" };
        println!("  {verdict}     {}: {:.3} (limit {:.3})", held.what, held.is, held.limit);
    }
}

fn at_most(what: &'static str, is: f64, limit: f64, is_promise: bool) -> Held {
    Held { what, is, limit, holds: is <= limit, is_promise }
}

fn at_least(what: &'static str, is: f64, limit: f64, is_promise: bool) -> Held {
    Held { what, is, limit, holds: is >= limit, is_promise }
}

fn told(figures: Figures) -> Told {
    let Figures { attack, latency, throughput, broken: _ } = figures;
    let mut limits = Vec::new();
    let all = || latency.iter().chain(&throughput);
    let memory = middle_of(latency.iter().filter_map(|beside| beside.memory).collect(), |memory| {
        memory.after as f64 / memory.allowed as f64
    });
    if let Some(memory) = memory {
        limits.push(at_most(
            "memory afterwards, in what it may be",
            memory.after as f64 / memory.allowed as f64,
            1.0,
            true,
        ));
    }
    if attack.is_stranger() {
        let longest = all().map(|beside| beside.counts.longest_s()).fold(0.0, f64::max);
        limits.push(at_most("seconds that a stranger is kept", longest, STRANGER_S_MAX + STRANGER_SLACK_S, true));
        let each =
            latency.iter().filter(|beside| beside.counts.open_at_once >= CONNECTIONS_THAT_TELL).filter_map(|beside| {
                let memory = beside.memory?;
                Some(memory.peak.saturating_sub(memory.before) as f64 / beside.counts.open_at_once as f64)
            });
        if let Some(each) = median(each.collect()) {
            limits.push(at_most("bytes for each of its connections", each, STRANGER_BYTES_MAX as f64, true));
        }
    }
    if attack == Attack::Guessing {
        let let_in = all().map(|beside| beside.counts.accepted).sum::<u64>();
        limits.push(at_most("guesses that were let in", let_in as f64, 0.0, true));
        let looked_at = all().map(|beside| beside.counts.refused.get(LOOKED_AT).copied().unwrap_or_default());
        let most = looked_at.max().unwrap_or_default();
        limits.push(at_most("guesses at one account that were looked at", most as f64, LOOKED_AT_MAX, true));
    }
    if attack.gets_nothing() {
        let wrong = all().flat_map(|beside| beside.counts.wrong.values()).sum::<u64>();
        limits.push(at_most("times that it got what nobody may get", wrong as f64, 0.0, true));
    }
    if attack.has_victim() {
        let reached = all().map(|beside| beside.counts.to_victim).min().unwrap_or_default();
        limits.push(at_least("messages that reached the victim in its session", reached as f64, 1.0, true));
    }
    if let Some(ratio) = median(latency.iter().map(Beside::p99_ratio).collect()) {
        limits.push(at_most("the others' p99, in the quiet one", ratio, P99_RATIO_MAX, false));
    }
    if let Some(ratio) = median(throughput.iter().map(|beside| beside.throughput_ratio().1).collect()) {
        limits.push(at_least(THROUGHPUT, ratio, attack.throughput_least(), false));
    }
    let mut counts = Counts::default();
    for beside in all() {
        add(&mut counts, &beside.counts);
    }
    Told {
        attack,
        does: attack.does(),
        connections: counts.connections,
        packets: counts.packets,
        bytes: counts.bytes,
        accepted: counts.accepted,
        made: counts.made,
        refused: counts.refused,
        ended: counts.ended,
        failed: counts.failed,
        wrong: counts.wrong,
        to_victim: counts.to_victim,
        broker_us_each: median(latency.iter().filter_map(Beside::broker_us_each).collect()),
        broker_cpu_share: median(
            latency
                .iter()
                .filter_map(|beside| Some(beside.attack_cpu_s? / beside.sample.seconds.max(0.001) / Beside::cores()))
                .collect(),
        ),
        attackers_cpu_share: median(all().map(Beside::attackers_share).collect()).unwrap_or_default(),
        memory,
        quiet_p99_ms: median(latency.iter().map(|beside| p99(&beside.quiet)).collect()).unwrap_or_default(),
        attack_p99_ms: median(latency.iter().map(|beside| p99(&beside.sample)).collect()).unwrap_or_default(),
        throughput_ratio_as_it_was: median(throughput.iter().map(|beside| beside.throughput_ratio().0).collect()),
        limits,
    }
}

fn overload_limits(all: &[Overload]) -> Vec<Held> {
    let goodput = median(all.iter().map(|overload| overload.goodput_ratio).collect()).unwrap_or_default();
    let without_wait: u64 = all.iter().map(|overload| overload.refused_without_wait).sum();
    let recovered = median(all.iter().map(|overload| overload.recovered_s.unwrap_or(f64::MAX)).collect());
    let mut limits = vec![
        at_least("goodput under overload, in the best", goodput, GOODPUT_RATIO_MIN, false),
        at_most("refusals that do not say when to come again", without_wait as f64, 0.0, true),
    ];
    let recovered = recovered.unwrap_or(f64::MAX);
    let is_recovered = all.iter().filter(|overload| overload.is_recovered()).count() * 2 > all.len();
    limits.push(Held {
        what: "seconds until the others are served as before",
        is: recovered,
        limit: 5.0,
        holds: is_recovered,
        is_promise: false,
    });
    limits
}

fn add(sum: &mut Counts, more: &Counts) {
    sum.connections += more.connections;
    sum.packets += more.packets;
    sum.bytes += more.bytes;
    sum.accepted += more.accepted;
    sum.made += more.made;
    for (why, count) in &more.refused {
        *sum.refused.entry(why).or_default() += count;
    }
    for (how, lives) in &more.ended {
        let all = sum.ended.entry(how).or_default();
        all.connections += lives.connections;
        all.longest_s = all.longest_s.max(lives.longest_s);
    }
    sum.to_victim += more.to_victim;
    for (what, count) in &more.wrong {
        *sum.wrong.entry(what).or_default() += count;
    }
    for (why, count) in &more.failed {
        *sum.failed.entry(why.clone()).or_default() += count;
    }
}

/// A line while it runs.
pub(super) fn tell(attack: Attack, round: u32, what: &str, beside: &Beside) {
    let (raw, ratio) = beside.throughput_ratio();
    eprintln!(
        "{:>14} {what} {}: p99 {:.2} -> {:.2} ms, throughput {:.0} % ({:.0} % as it was), {} cut",
        attack.name(),
        round + 1,
        p99(&beside.quiet),
        p99(&beside.sample),
        ratio * 100.0,
        raw * 100.0,
        beside.counts.cut()
    );
}

fn median(values: Vec<f64>) -> Option<f64> {
    middle_of(values, |value| *value)
}

fn middle<T>(all: &[T], key: impl Fn(&T) -> f64) -> Option<&T> {
    middle_of(all.iter().collect(), |one| key(one))
}

/// The one in the middle, in the order of `key`; of two the worse one for what is to be small.
fn middle_of<T>(mut all: Vec<T>, key: impl Fn(&T) -> f64) -> Option<T> {
    all.sort_by(|one, other| key(one).total_cmp(&key(other)));
    let at = all.len() / 2;
    (at < all.len()).then(|| all.swap_remove(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_one_in_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![1.0, 2.0]), Some(2.0));
    }

    fn beside(quiet: u64, attack: u64, attackers_cpu_s: f64) -> Beside {
        let sample = |delivered| Sample { seconds: 1.0, delivered, ..Sample::default() };
        Beside {
            quiet: sample(quiet),
            sample: sample(attack),
            quiet_cpu_s: Some(0.5),
            attack_cpu_s: Some(0.5),
            attackers_cpu_s,
            clients_cpu_s: 0.5,
            packets: 100,
            connections: 1,
            counts: Counts::default(),
            memory: None,
        }
    }

    #[test]
    fn what_the_attackers_side_takes_is_not_blamed_on_the_broker() {
        // A tenth of what it, the honest and the broker took.
        let (raw, ratio) = beside(1_000, 900, 0.1).throughput_ratio();
        assert!((raw - 0.9).abs() < 1e-9 && (ratio - 1.0).abs() < 1e-9, "{raw} {ratio}");
        let (_, ratio) = beside(1_000, 500, 0.0).throughput_ratio();
        assert!((ratio - 0.5).abs() < 1e-9);
    }

    #[test]
    fn what_nobody_may_get_and_a_victim_that_hears_nothing_break_promises() {
        let held = |wrong: u64, to_victim: u64| {
            let mut figures = Figures::new(Attack::Impostors);
            let mut one = beside(1_000, 1_000, 0.0);
            one.counts.wrong.insert("let in as the victim", wrong);
            one.counts.to_victim = to_victim;
            figures.latency.push(one);
            told(figures).limits.iter().filter(|held| held.is_promise).map(|held| held.holds).collect::<Vec<_>>()
        };
        assert_eq!((held(0, 5), held(1, 5), held(0, 0)), (vec![true, true], vec![false, true], vec![true, false]));
    }

    #[test]
    fn a_miss_of_a_promise_is_counted_and_a_slow_machine_is_not() {
        let stranger = |kept: f64, p99_us: u64| {
            let mut figures = Figures::new(Attack::SlowConnect);
            let mut one = beside(1_000, 1_000, 0.0);
            one.sample.delivery_us.saturating_record(p99_us);
            one.counts.ended.insert("closed", Lives { connections: 1, longest_s: kept });
            figures.latency.push(one);
            told(figures).limits
        };
        let missed = |limits: &[Held]| -> Vec<bool> {
            limits.iter().filter(|held| !held.holds).map(|held| held.is_promise).collect()
        };
        assert!(missed(&stranger(10.5, 10)).is_empty());
        assert_eq!(missed(&stranger(20.0, 10)), [true]);
        assert_eq!(missed(&stranger(10.5, 1_000_000)), [false]);
    }
}
