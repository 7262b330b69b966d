//! The world of one seed: time, links, the broker and its disk, devices, and chance, which decides who has the next
//! turn and what fails. Everything happens in one thread, so a seed is a whole history.

mod delivered;
mod erasing;
mod faults;
mod people;
mod rest;
pub(crate) mod scenarios;
mod sessions;

use std::collections::{BTreeMap, BTreeSet};

use std::sync::atomic::Ordering;

use longwire::broker::commit::Retention;
use longwire::routing::allowance::Rate;
use longwire::routing::outbox::Session;
use longwire::routing::rows::Kind;
use longwire::store::testing::SimDisk;
use longwire::store::{Failure, FollowError, Frame, MemoryLog, Position, Pressure, StoreOptions};
use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, CatchUpMode, Publish, Role, Window, request};
use longwire_protocol::reason::Reason;
use longwire_protocol::{ConversationId, SessionNumber, UserId};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::broker::{AnyLog, Ground, Moment, Running, Settings, Told};
use crate::device::{ALL, Around, Device, Manner, Pass};
use crate::link::{Link, Way};
use crate::model::Model;
use sessions::{Allows, NEVER, new_pass};

/// How often what was reached.
#[derive(Clone, Debug, Default)]
pub(crate) struct Coverage(pub(crate) BTreeMap<&'static str, u64>);

impl Coverage {
    pub(crate) fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (what, n) in &other.0 {
            *self.0.entry(what).or_default() += n;
        }
    }
}

/// Everything that happened, as one number; and as text for who asks.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    pub(crate) hash: u64,
    pub(crate) is_shown: bool,
}

impl Trace {
    pub(crate) fn note(&mut self, what: impl FnOnce() -> String) {
        let what = what();
        if self.is_shown {
            println!("{what}");
        }
        self.hash = xxh3_64_with_seed(what.as_bytes(), self.hash);
    }
}

/// Who signs the tokens of all seeds.
pub(crate) struct Keys {
    pub(crate) private: String,
    pub(crate) public: String,
}

struct Wired {
    link: Link,
    /// `None`: the device has left it, and what is under way still arrives.
    device: Option<usize>,
    owner: usize,
}

/// How likely what is, in this seed.
struct Weather {
    weights: [u32; 9],
    /// In 10,000 steps.
    cuts: u32,
    freezes: u32,
    crashes: u32,
    kills: u32,
    stops: u32,
    disk: u32,
    jumps: u32,
    lies: u32,
    stalls: u32,
    restores: u32,
    drains: u32,
    fights: u32,
    revocations: u32,
    refreshes: u32,
    /// Tokens last so many seconds; `None`: for ever.
    tokens_last: Option<u64>,
    /// Tokens differ in what they let their devices do with channels.
    tokens_differ: bool,
    bursts: bool,
}

impl Weather {
    fn new(rng: &mut fastrand::Rng) -> Self {
        let mut chance = |often: u32| if rng.bool() { rng.u32(1..=often) } else { 0 };
        let weather = Self {
            cuts: chance(30),
            freezes: chance(12),
            crashes: chance(20),
            kills: chance(12),
            stops: chance(6),
            disk: chance(12),
            jumps: chance(8),
            lies: chance(5) / 2,
            stalls: chance(30),
            restores: chance(4),
            drains: chance(6),
            fights: chance(6),
            revocations: chance(6),
            refreshes: chance(60),
            tokens_last: None,
            tokens_differ: false,
            weights: [0; 9],
            bursts: false,
        };
        // Who is slow differs from seed to seed.
        let weights = [30, 10, 10, 6, 4, 40, 40, 12, 12].map(|usual: u32| match rng.u8(0..6) {
            0 => usual / 4 + 1,
            1 => usual * 3,
            _ => usual,
        });
        let tokens_last = (rng.u8(0..4) == 0).then(|| rng.u64(2..60));
        let tokens_differ = rng.u8(0..3) == 0;
        Self { weights, bursts: rng.u8(0..3) == 0, tokens_last, tokens_differ, ..weather }
    }
}

/// See the module.
pub(crate) struct World {
    rng: fastrand::Rng,
    now: u64,
    jump_ms: i64,
    ground: Ground,
    settings: Settings,
    broker: Option<Running>,
    /// When it is started again.
    start_at: u64,
    devices: Vec<Device>,
    links: BTreeMap<u64, Wired>,
    next_link: u64,
    pub(crate) model: Model,
    pub(crate) coverage: Coverage,
    pub(crate) trace: Trace,
    lost: Vec<(u64, u64)>,
    may_fail: bool,
    /// The disk failed since the broker started: it may write nothing until it starts again.
    is_doubtful: bool,
    full_until: Option<u64>,
    /// A sync was a lie: the power goes before there is another, after so many steps.
    lied: Option<u32>,
    /// The last life ended with a sync that was a lie.
    has_lied: bool,
    /// And left files that nobody can make sense of.
    is_ruined: bool,
    weather: Weather,
    is_calm: bool,
    is_final: bool,
    /// Frames that failed under way and were found after all.
    is_open: bool,
    private_key: String,
    /// Tokens made so far.
    minted: u64,
    revoked: BTreeSet<String>,
    /// The latest that the broker's clock has ever said, in seconds since 1970.
    latest: u64,
    /// When the frames were committed, by their first positions.
    committed: BTreeMap<u64, u64>,
    /// The broker drains: it is stopped after so many steps.
    draining: Option<u32>,
    /// The latest that the log's time ever was.
    log_latest: u64,
    /// By session: what was recalled or erased before a lane of it came to that.
    withdrawn: BTreeMap<u64, BTreeSet<(u64, u64)>>,
    /// Sessions that were taken over.
    taken_over: BTreeSet<u64>,
    /// The sessions that were told that their user is erased.
    told_erased: BTreeSet<u64>,
    /// A link that only its script carries.
    slow: Option<u64>,
    /// The store's background work has no turn.
    builder_rests: bool,
    /// The next commit stalls.
    stalls_next: bool,
    /// Until when the commit stalls that is under way.
    stalls_until: u64,
    /// What the next link holds before its writer has to wait; by chance without.
    next_capacity: Option<usize>,
}

const USERS: [&str; 5] = ["ann", "ben", "cid", "dot", "eve"];
const BORN_UNIX_MS: u64 = 1_700_000_000_000;

/// A store that has to seal, trim and merge within a seed.
fn small(seal_entries: usize) -> StoreOptions {
    StoreOptions {
        birth_unix_ms: BORN_UNIX_MS,
        seal_entries,
        journal_reserve_bytes: 100_000,
        journal_cache_bytes: 1 << 20,
        state_cache_bytes: 1 << 20,
        run_cache_bytes: 1 << 16,
        ..StoreOptions::default()
    }
}

impl World {
    pub(crate) fn new(seed: u64, keys: &Keys, is_shown: bool) -> Self {
        fastrand::seed(seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        let users = rng.usize(2..=USERS.len());
        let mut devices = Vec::new();
        for user in &USERS[..users] {
            for device in 0..rng.usize(1..=2) {
                let manner = manner(&mut rng);
                devices.push(new_device(user, device, manner, keys));
            }
        }
        let files_ms = Some(rng.u64(1_000..20_000));
        let retention = match rng.u8(0..4) {
            0 => Retention { age_ms: None, bytes: Some(rng.u64(2_000..40_000)), files_ms },
            1 => Retention { age_ms: Some(rng.u64(5_000..60_000)), bytes: None, files_ms },
            _ => Retention { files_ms, ..Retention::default() },
        };
        let seal_entries = rng.usize(4..120);
        let ground = if rng.u8(0..4) == 0 {
            Ground::Memory(Some(Box::new(MemoryLog::new(BORN_UNIX_MS, seal_entries))))
        } else {
            let options = StoreOptions {
                seal_bytes: rng.usize(20_000..200_000),
                // A group always fits.
                journal_bytes: rng.u64(400_000..1_000_000),
                ..small(seal_entries)
            };
            Ground::Disk(SimDisk::default(), options)
        };
        let weather = Weather::new(&mut rng);
        let mut model = Model::default();
        if rng.bool() {
            model.admin = Some(USERS[0].into());
            devices[0] = new_admin(USERS[0], devices[0].manner.clone(), keys);
        }
        Self {
            rng,
            now: 1,
            jump_ms: 0,
            ground,
            settings: Settings {
                public_key: keys.public.clone(),
                retention,
                state_bytes_max: if seed.is_multiple_of(3) { usize::MAX } else { 0 },
                // A page of history or two, and then a wait.
                reads: seed.is_multiple_of(4).then(|| Rate::of_reads(200)),
            },
            broker: None,
            start_at: 0,
            devices,
            links: BTreeMap::new(),
            next_link: 1,
            model,
            coverage: Coverage::default(),
            trace: Trace { hash: seed, is_shown },
            lost: Vec::new(),
            may_fail: false,
            is_doubtful: false,
            full_until: None,
            lied: None,
            has_lied: false,
            is_ruined: false,
            weather,
            is_calm: false,
            is_final: false,
            is_open: false,
            private_key: keys.private.clone(),
            minted: 0,
            revoked: BTreeSet::new(),
            latest: 0,
            committed: BTreeMap::new(),
            draining: None,
            log_latest: 0,
            withdrawn: BTreeMap::new(),
            taken_over: BTreeSet::new(),
            told_erased: BTreeSet::new(),
            slow: None,
            builder_rests: false,
            stalls_next: false,
            stalls_until: 0,
            next_capacity: None,
        }
    }

    /// The whole history: faults for so many steps, then calm, then the audit.
    pub(crate) fn run(&mut self, steps: u32) {
        self.start();
        self.run_on(steps);
    }

    /// The same, in a world that has begun.
    fn run_on(&mut self, steps: u32) {
        for _ in 0..steps {
            self.step();
            if self.is_ruined {
                return;
            }
        }
        self.come_to_rest();
        if !self.is_ruined {
            self.audit();
        }
    }

    fn unix_ms(&self) -> u64 {
        (BORN_UNIX_MS + self.now).saturating_add_signed(self.jump_ms)
    }

    fn step(&mut self) {
        if self.broker.is_none() && self.now >= self.start_at {
            self.start();
        }
        if let Some(steps) = &mut self.lied {
            *steps = steps.saturating_sub(1);
            if *steps == 0 {
                self.kill();
            }
        }
        if let Some(steps) = &mut self.draining {
            *steps -= 1;
            if *steps == 0 {
                self.stop();
            }
        }
        self.chance();
        let total: u32 = self.weather.weights.iter().sum();
        let mut pick = self.rng.u32(0..total);
        let mut action = 0;
        for (index, weight) in self.weather.weights.iter().enumerate() {
            if pick < *weight {
                action = index;
                break;
            }
            pick -= weight;
        }
        match action {
            0 => self.poll_one(),
            1 => self.commit(),
            2 => self.feed(),
            3 => self.task(),
            4 => self.work(),
            5 => self.carry(),
            6 => {
                let device = self.rng.usize(0..self.devices.len());
                self.turn(device);
            }
            7 => {
                let device = self.rng.usize(0..self.devices.len());
                self.act(device);
            }
            _ => {
                let ms = match self.rng.u8(0..20) {
                    0..=11 => self.rng.u64(0..5),
                    12..=17 => self.rng.u64(5..100),
                    18 => self.rng.u64(100..1_500),
                    _ => self.rng.u64(0..4_000),
                };
                self.pass(ms);
            }
        }
    }

    // ------------------------------------------------------------------------------------------ turns

    fn poll_one(&mut self) {
        let Some(broker) = &mut self.broker else { return };
        let ready = broker.ready();
        if ready.is_empty() {
            return;
        }
        let link = ready[self.rng.usize(0..ready.len())];
        let ended = broker.poll(link);
        self.trace.note(|| format!("poll {link} {ended}"));
        if ended && self.links.get(&link).is_some_and(|wired| wired.device.is_none()) {
            self.links.remove(&link);
        }
        self.hear();
    }

    fn commit(&mut self) {
        if self.lied.is_some() {
            return;
        }
        let Some(broker) = &mut self.broker else { return };
        let has_stalled = broker.is_stalled();
        if has_stalled {
            if !self.is_calm && self.now < self.stalls_until {
                return;
            }
            broker.end_stall();
            self.trace.note(|| "the commit goes on".into());
        } else if broker.rooms.shared.queue.is_empty() && self.rng.u8(0..8) != 0 {
            return;
        } else if std::mem::take(&mut self.stalls_next) {
            let moment = if self.rng.bool() { Moment::Before } else { Moment::After };
            let ms = if self.rng.bool() { self.rng.u64(1..500) } else { self.rng.u64(1..30_000) };
            if broker.stall_commit(moment) {
                self.trace.note(|| format!("commit, which stalls for {ms} ms: {moment:?}"));
                self.coverage.count("commits that stalled");
                self.stalls_until = self.now + ms;
            }
        } else {
            broker.step_commit();
            self.trace.note(|| "commit".into());
        }
        self.hear();
        self.check_takeovers(has_stalled);
        self.check_erased_sessions();
        if let Ground::Disk(disk, _) = &self.ground
            && disk.has_lied()
            && self.lied.is_none()
        {
            self.coverage.count("syncs that were lies");
            self.trace.note(|| "lie".into());
            self.lied = Some(self.rng.u32(1..80));
            self.has_lied = true;
        }
    }

    /// Takes over what was told of the log.
    fn hear(&mut self) {
        let told = self.broker.as_ref().map(Running::told).unwrap_or_default();
        for told in told {
            match told {
                Told::Committed(frame) => {
                    if frame.positions > 0 && frame.last().0 <= self.model.tail {
                        // Found already, by following the log after a reopening.
                        continue;
                    }
                    self.trace.note(|| format!("frame {:?} +{} {:?}", frame.first, frame.positions, frame.time));
                    self.coverage.count("frames");
                    self.committed.insert(frame.first.0, self.now);
                    self.take_in(&frame);
                }
                Told::Open => {
                    self.trace.note(|| "open".into());
                    self.is_open = true;
                    self.coverage.count("commits that failed under way");
                }
                Told::NotStored(reason) => {
                    self.trace.note(|| format!("not stored: {reason}"));
                    self.coverage.count("commits refused");
                }
                Told::Reopened => {
                    self.coverage.count("stores opened again");
                    let tail = Position(self.model.tail);
                    let broker = self.broker.as_ref().expect("it has just told so");
                    // What fails again at once is opened again later, and followed then.
                    match broker.with_log(|log| frames_after(log, tail)) {
                        Ok(found) => self.find(&found),
                        Err(error) => assert!(self.may_fail, "the log is followed from where it was: {error}"),
                    }
                }
            }
        }
        if self.broker.as_ref().is_some_and(|_| matches!(&self.ground, Ground::Disk(disk, _) if disk.is_dead())) {
            self.kill();
        }
    }

    fn take_in(&mut self, frame: &Frame) {
        let before = (self.model.wills.len(), self.model.wills_published);
        let erased = self.model.erasures();
        self.model.take_in(frame);
        let now = self.model.erasures();
        let stages = ["erasures begun", "erasures in the state", "erasures done"].iter().enumerate();
        stages.filter(|(at, _)| now[*at] > erased[*at]).for_each(|(_, what)| self.coverage.count(what));
        if now[2] > erased[2] {
            self.check_erased_files();
        }
        if self.model.wills_published > before.1 {
            self.coverage.count("wills published");
        } else if self.model.wills.len() < before.0 {
            self.coverage.count("wills taken away");
        }
    }

    fn find(&mut self, found: &[Frame]) {
        for frame in found {
            // One with cursors alone takes no position: it may be known.
            if frame.positions == 0 {
                self.model.take_cursors(frame);
                continue;
            }
            if std::mem::take(&mut self.is_open) {
                self.coverage.count("failed commits found after all");
            }
            self.trace.note(|| format!("found {:?} +{} {:?}", frame.first, frame.positions, frame.time));
            self.committed.insert(frame.first.0, self.now);
            self.take_in(frame);
        }
        self.is_open = false;
    }

    fn feed(&mut self) {
        if self.step_feed() {
            self.trace.note(|| "feed".into());
        }
    }

    /// A frame is fed. What it recalls or erases, and a lane has not sent by then, must not leave any more: what waits in
    /// a live lane, and what was read of the log and waits for room.
    fn step_feed(&mut self) -> bool {
        let Some(broker) = &mut self.broker else { return false };
        let before = broker.rooms.shared.fed.load(Ordering::Relaxed);
        let mut lanes_of = Vec::new();
        if self.model.recalls.range(before + 1..).next().is_some() {
            for session in broker.rooms.shared.registry.all() {
                let outbox = session.outbox.lock();
                let sent = [&outbox.express, &outbox.bulk].map(|lane| lane.sent().0);
                lanes_of.push((session.number.0, sent));
            }
        }
        let is_fed = broker.step_feed();
        let after = broker.rooms.shared.fed.load(Ordering::Relaxed);
        for (id, gone) in self.model.recalls.range(before + 1..after.max(before) + 1).flat_map(|(_, recall)| recall) {
            let of = &self.model.conversations[id];
            for (session, sent) in &lanes_of {
                let sent = sent[usize::from(!of.is_express())];
                let waits = |seq: &&u64| of.entry(**seq).is_some_and(|entry| entry.position > sent);
                for seq in gone.iter().filter(waits) {
                    self.coverage.count("recalls of what may wait in a lane");
                    self.withdrawn.entry(*session).or_default().insert((*id, *seq));
                }
            }
        }
        is_fed
    }

    /// The log's time, as the broker has it now.
    fn log_now(&self) -> u64 {
        self.broker.as_ref().map_or(0, |broker| broker.rooms.shared.clock.latest().0)
    }

    fn task(&mut self) {
        let Some(broker) = &self.broker else { return };
        let waiting = broker.tasks();
        if waiting > 0 {
            let index = self.rng.usize(0..waiting);
            broker.run_task(index);
            self.coverage.count("reads off the thread");
            self.trace.note(|| format!("task {index}"));
            self.hear();
            self.check_watchers();
        }
    }

    fn work(&mut self) {
        if self.builder_rests {
            return;
        }
        let Some(broker) = &mut self.broker else { return };
        if broker.work() {
            self.coverage.count("pieces of background work");
            self.trace.note(|| "work".into());
        }
        self.hear();
    }

    fn carry(&mut self) {
        if self.links.is_empty() {
            return;
        }
        let at = self.rng.usize(0..self.links.len());
        let (number, wired) = self.links.iter().nth(at).expect("within");
        let way = if self.rng.bool() { Way::Up } else { Way::Down };
        if wired.link.under_way(way) == 0 {
            return;
        }
        let bytes = match self.rng.u8(0..8) {
            0 => self.rng.usize(1..4),
            1..=3 => self.rng.usize(1..200),
            _ => 64 << 10,
        };
        let number = *number;
        wired.link.carry(way, bytes);
        self.trace.note(|| format!("carry {number} {way:?} {bytes}"));
    }

    fn pass(&mut self, ms: u64) {
        self.now += ms;
        if let Some(broker) = &self.broker {
            broker.set_time(self.now, self.unix_ms());
        }
        self.look_at_tokens();
        if self.full_until.is_some_and(|until| self.now >= until)
            && let Ground::Disk(disk, _) = &self.ground
        {
            disk.set_full(false);
            self.full_until = None;
        }
        for device in 0..self.devices.len() {
            let due = self.devices[device].wire.as_ref().and_then(|wire| wire.deadline());
            if due.is_some_and(|due| due <= self.now) {
                self.turn(device);
            }
        }
    }

    fn turn(&mut self, device: usize) {
        if self.devices[device].wire.is_none() {
            let is_erased = self.model.erased_at(&self.devices[device].user).is_some();
            let may = (self.is_calm && !is_erased) || self.rng.u8(0..4) == 0;
            let is_time = self.now >= self.devices[device].connect_at && !self.devices[device].is_away;
            if may && is_time && self.broker.is_some() {
                self.connect(device);
            }
            return;
        }
        let is_over = self.with_device(device, |device, around| device.turn(around));
        self.check_claims(device);
        if is_over {
            self.unwire(device);
        }
    }

    fn with_device<T>(&mut self, device: usize, act: impl FnOnce(&mut Device, &mut Around<'_>) -> T) -> T {
        let log_now = self.log_now();
        self.log_latest = self.log_latest.max(log_now);
        let broker = &self.broker;
        let started = |user: u64, session: u64| {
            let mut found = None;
            broker.as_ref()?.rooms.shared.registry.each_of(UserId(user), |of| {
                if of.number == SessionNumber(session) {
                    let started = of.outbox.lock().stands;
                    found = Some([started.express.0, started.bulk.0]);
                }
            });
            found
        };
        let mut around = Around {
            now: self.now,
            model: &self.model,
            rng: &mut self.rng,
            trace: &mut self.trace,
            coverage: &mut self.coverage,
            started: &started,
            committed: &self.committed,
            latest: self.latest,
            revoked: &self.revoked,
            lost: &self.lost,
            log_now,
            log_latest: self.log_latest,
            withdrawn: &self.withdrawn,
            may_fail: self.may_fail,
            is_calm: self.is_calm,
            is_final: self.is_final,
        };
        act(&mut self.devices[device], &mut around)
    }

    fn connect(&mut self, device: usize) {
        if self.devices[device].is_locked_out {
            let pass = self.mint(device);
            self.devices[device].take_pass(pass);
        }
        let number = self.next_link;
        self.next_link += 1;
        let by_chance = if self.rng.u8(0..4) == 0 { self.rng.usize(100..2_000) } else { 64 << 10 };
        let link = Link::new(self.next_capacity.take().unwrap_or(by_chance));
        self.trace.note(|| format!("connect {device} by {number}"));
        if let Some(broker) = &mut self.broker {
            let mut older = self.links.iter().filter(|(_, wired)| wired.owner == device);
            if older.any(|(older, _)| broker.serves(*older)) {
                self.coverage.count("connects over a session that is served");
            }
            broker.accept(number, &link);
        }
        self.links.insert(number, Wired { link: link.clone(), device: Some(device), owner: device });
        self.with_device(device, |device, around| device.connect(number, link, around));
    }

    /// The device has done with its wire. Sometimes what it sent goes on arriving.
    fn unwire(&mut self, device: usize) {
        let Some(wire) = self.devices[device].crash() else { return };
        self.devices[device].connect_at = self.devices[device].connect_at.max(self.now + self.rng.u64(0..300));
        self.orphan(wire.number);
    }
}

fn new_device(user: &str, number: usize, manner: Manner, keys: &Keys) -> Device {
    let allows = Allows { expires: NEVER, grants: 0, is_admin: false };
    let pass = new_pass(user, format!("{user}{number}"), allows, &keys.private);
    Device::new(user, &format!("{user}{number}"), pass, manner)
}

/// The first device of a user who administers.
fn new_admin(user: &str, manner: Manner, keys: &Keys) -> Device {
    let allows = Allows { expires: NEVER, grants: 0, is_admin: true };
    let pass = new_pass(user, format!("{user}0"), allows, &keys.private);
    Device::new(user, &format!("{user}0"), pass, manner)
}

fn frames_after(log: &AnyLog, tail: Position) -> Result<Vec<Frame>, FollowError> {
    let mut found = Vec::new();
    let followed = log.log().follow(tail, &mut |frame| {
        if frame.first > tail {
            found.push(frame);
        }
    });
    followed.map(|()| found)
}

fn manner(rng: &mut fastrand::Rng) -> Manner {
    let window = |rng: &mut fastrand::Rng| match rng.u8(0..3) {
        0 => Some(Window { items: rng.u32(1..8), bytes: rng.u32(512..4_000) }),
        1 => Some(Window { items: rng.u32(1..64), bytes: rng.u32(512..40_000) }),
        _ => None,
    };
    Manner {
        mode: if rng.bool() { CatchUpMode::Skip } else { CatchUpMode::All },
        keeps_cursor: rng.u8(0..4) > 0,
        express: window(rng),
        bulk: window(rng),
        item_bytes_max: if rng.u8(0..4) == 0 { rng.u32(64..2_000) } else { 0 },
        heartbeat_ms: rng.u32(15_000..40_000),
        is_background: rng.u8(0..6) == 0,
        stores: [100, 60, 10, 1][rng.usize(0..4)],
        fails: [0, 0, 20, 60][rng.usize(0..4)],
    }
}
