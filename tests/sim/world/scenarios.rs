//! The scenarios that were hardest to get right, each as a script: what befalls the world until the situation is there,
//! which is asserted, and then chance as in every seed. The seed decides all that the script leaves open.

mod erasing;
mod push;

use super::*;
use erasing::s18;
use push::s17;

/// Who plays: ann has two devices, ben two, cid one.
const CAST: [(&str, usize); 3] = [("ann", 2), ("ben", 2), ("cid", 1)];
/// Their first devices, and ben's second.
const ANN: usize = 0;
const BEN: usize = 2;
const BEN_TOO: usize = 3;
const CID: usize = 4;

/// What happens after the script, until faults stop.
const STEPS: u32 = 400;

/// A scenario by its number, for one seed.
pub(crate) type Scenario = fn(u64, &Keys) -> Coverage;

/// All of them, for who plants bugs; `docs/testing.md` says where the others are.
#[cfg(feature = "mutations")]
pub(crate) const ALL: [(&str, Scenario); 15] = [
    ("s1", s1),
    ("s2", s2),
    ("s3", s3),
    ("s4", s4),
    ("s5", s5),
    ("s6", s6),
    ("s7", s7),
    ("s8", s8),
    ("s9", s9),
    ("s10", s10),
    ("s11", s11),
    ("s12", s12),
    ("s13", s13),
    ("s17", s17),
    ("s18", s18),
];

/// The log in memory, sealed after so many entries.
fn memory(seal_entries: usize) -> Ground {
    Ground::Memory(Some(Box::new(MemoryLog::new(BORN_UNIX_MS, seal_entries))))
}

/// A simulated disk.
fn disk(seal_entries: usize) -> Ground {
    Ground::Disk(SimDisk::default(), small(seal_entries))
}

impl World {
    /// The cast is there and at rest, in one group of ann's.
    fn staged(
        seed: u64,
        keys: &Keys,
        ground: Ground,
        retention: Retention,
        manner: impl Fn(&mut Manner),
    ) -> (Self, u64) {
        let mut world = Self::new(seed, keys, std::env::var_os("LONGWIRE_TRACE").is_some());
        world.devices.clear();
        world.model.admin = None;
        for (user, devices) in CAST {
            for device in 0..devices {
                let mut of = super::manner(&mut world.rng);
                // What a script waits for comes, and nothing of it is left out.
                of = Manner {
                    keeps_cursor: true,
                    express: None,
                    bulk: None,
                    item_bytes_max: 0,
                    stores: 100,
                    fails: 0,
                    is_background: false,
                    ..of
                };
                manner(&mut of);
                world.devices.push(new_device(user, device, of, keys));
            }
        }
        world.ground = ground;
        world.settings.retention = retention;
        world.weather = Weather { weights: world.weather.weights, ..Weather::still() };
        world.start();
        world.rest();
        let users = CAST[1..].iter().map(|(user, _)| (*user).to_owned()).collect();
        let create = packet::CreateGroup { label: "stage".into(), users, ..Default::default() };
        world.does(ANN, 0, Action::CreateGroup(create));
        world.rest();
        let groups = world.model.conversations.iter().filter(|(_, of)| of.kind == Kind::Group);
        let group = groups.map(|(id, _)| *id).next().expect("the group is made");
        (world, group)
    }

    /// After the script: chance, until faults stop; then everything is as it must be.
    fn go_on(mut self) -> Coverage {
        for device in &mut self.devices {
            device.is_away = false;
            device.connect_at = device.connect_at.min(self.now + 1_000);
        }
        self.weather = Weather::new(&mut self.rng);
        self.run_on(STEPS);
        self.coverage
    }

    /// Everyone who is not away comes to rest, and nothing fails meanwhile.
    fn rest(&mut self) {
        self.is_calm = true;
        for device in &mut self.devices {
            device.connect_at = device.connect_at.min(self.now);
        }
        self.settle();
        self.is_calm = false;
    }

    /// Everyone has a few turns.
    fn flow(&mut self) {
        for _ in 0..12 {
            self.everyone();
        }
    }

    /// A device publishes an action into its outbox; gives the message id.
    fn does(&mut self, device: usize, conversation: u64, action: Action) -> u64 {
        self.puts(device, Publish { conversation, action: Some(action), ..Publish::default() })
    }

    fn says(&mut self, device: usize, conversation: u64, content: impl Into<String>) -> u64 {
        self.puts(device, Publish { conversation, content: content.into().into_bytes().into(), ..Publish::default() })
    }

    fn puts(&mut self, device: usize, publish: Publish) -> u64 {
        assert!(self.devices[device].publish(publish), "it has room");
        self.devices[device].durable.next_id - 1
    }

    /// The device is gone from one instruction to the next, and stays away.
    fn takes_away(&mut self, device: usize) {
        self.devices[device].is_away = true;
        self.unwire(device);
    }

    fn brings_back(&mut self, device: usize) {
        self.devices[device].is_away = false;
        self.devices[device].connect_at = self.now;
    }

    fn answer(&self, device: usize, message_id: u64) -> Option<crate::model::Answer> {
        let device = &self.devices[device];
        device.acked.get(&(device.device_id, device.durable.incarnation, message_id)).copied()
    }

    fn head(&self, conversation: u64) -> u64 {
        self.model.conversations[&conversation].head()
    }

    fn reached(&self, what: &str) -> u64 {
        self.coverage.0.get(what).copied().unwrap_or_default()
    }

    fn fail_next(&mut self, failure: Failure) {
        self.may_fail = true;
        let broker = self.broker.as_ref().expect("it runs");
        broker.with_log(|log| {
            let AnyLog::Memory(log) = log else { panic!("the log is in memory here") };
            log.fail_next_append(failure);
        });
    }

    /// A turn of the commit thread, whether something is queued or not.
    fn one_commit(&mut self) {
        self.broker.as_mut().expect("it runs").step_commit();
        self.hear();
    }

    /// Time passes, and everyone has turns enough.
    fn goes_by(&mut self, ms: u64) {
        let until = self.now + ms;
        while self.now < until {
            self.pass(100);
            self.everyone();
            self.one_commit();
        }
    }

    /// The device's newest connection, carried and polled until the broker has queued what it sent.
    fn carry_up(&mut self, number: u64) {
        for _ in 0..4 {
            self.links[&number].link.carry(Way::Up, usize::MAX);
            let broker = self.broker.as_mut().expect("it runs");
            broker.poll(number);
            while broker.tasks() > 0 {
                broker.run_task(0);
            }
        }
        self.hear();
    }

    fn link_of(&self, device: usize) -> u64 {
        self.devices[device].wire.as_ref().expect("it is connected").number
    }
}

impl Weather {
    fn still() -> Self {
        Self {
            weights: [1; 9],
            cuts: 0,
            freezes: 0,
            crashes: 0,
            kills: 0,
            stops: 0,
            disk: 0,
            jumps: 0,
            lies: 0,
            restores: 0,
            drains: 0,
            fights: 0,
            revocations: 0,
            refreshes: 0,
            tokens_last: None,
            tokens_differ: false,
            bursts: false,
        }
    }
}

/// A ground by chance, of those that keep every promise.
fn any_ground(seed: u64) -> Ground {
    if seed.is_multiple_of(2) { memory(20) } else { disk(20) }
}

/// S1: entries of a group are withheld from a device in the background, or of another level, when something comes that is
/// not: what is withheld is told first, and what of that the device has not stored when it crashes, or the broker does, is
/// told again (SPEC R6.6-2 to R6.6-4, R6.1-2).
fn s1(seed: u64, keys: &Keys) -> Coverage {
    let (mut world, group) = World::staged(seed, keys, any_ground(seed), Retention::default(), |_| ());
    world.does(ANN, 0, Action::OpenDirect(packet::OpenDirect { user: "ben".into() }));
    world.rest();
    let direct = world.model.conversations.iter().filter(|(_, of)| of.kind == Kind::Direct);
    let direct = direct.map(|(id, _)| *id).next().expect("it is opened");
    let level = if world.rng.bool() { packet::Level::Nothing } else { packet::Level::HeadsOnly };
    let by_level = world.rng.bool();
    if by_level {
        world.does(BEN, group, Action::SetLevel(packet::SetLevel { level: level.into() }));
        // What is withheld by it waits for that of another group.
        let users = vec!["ben".into()];
        world.does(
            CID,
            0,
            Action::CreateGroup(packet::CreateGroup { label: "other".into(), users, ..Default::default() }),
        );
    } else {
        world.devices[BEN].request(request::Op::Background(packet::BackgroundRequest { background: true }));
    }
    world.rest();
    let other = world.model.conversations.iter().find(|(_, of)| of.label == "other").map(|(id, _)| *id);
    let (before, told) = (world.head(group), world.reached("heads of much that is withheld"));
    let has = |world: &World, device: usize, id: u64| {
        world.devices[device].durable.covered.get(&id).is_some_and(|covered| covered.has(world.head(id)))
    };
    for word in 0..3 {
        world.says(ANN, group, format!("withheld {word}"));
        world.flow();
    }
    world.says(ANN, direct, "straight through");
    world.flow();
    assert!(has(&world, BEN_TOO, group) && !has(&world, BEN, group), "withheld from one of two devices");
    assert!(has(&world, BEN, direct), "and express waits for none of that");

    world.devices[BEN].manner.stores = 0;
    let urgent = other.unwrap_or(group);
    let next = world.head(urgent) + 1;
    let ben = world.devices[BEN].user_id;
    let beside = Some(Box::new(packet::Beside { mentions: vec![ben], ..Default::default() }));
    let content = "look here".into();
    world.puts(CID, Publish { conversation: urgent, content, beside, ..Publish::default() });
    world.flow();
    assert_eq!(world.reached("heads of much that is withheld"), told + 1, "what is withheld is told");
    assert_eq!(world.devices[BEN].unstored(urgent), [(next, false)], "and then comes what is urgent");
    assert!(!has(&world, BEN, group), "of that it has stored nothing");
    if world.rng.bool() {
        world.kill();
        world.start_at = world.now;
    }
    world.takes_away(BEN);
    world.devices[BEN].manner.stores = 100;
    world.brings_back(BEN);
    world.rest();
    assert!(world.head(group) >= before + 3 && has(&world, BEN, group), "it is told again");
    assert!(has(&world, BEN, urgent), "and what was urgent comes again");
    world.go_on()
}

/// S2: a device's own entry stands between entries that it has not stored, and it crashes before the ack is on its disk.
fn s2(seed: u64, keys: &Keys) -> Coverage {
    let (mut world, group) = World::staged(seed, keys, any_ground(seed), Retention::default(), |_| ());
    world.devices[ANN].manner.stores = 0;
    let before = world.head(group);
    world.says(BEN, group, "before");
    world.flow();
    let own = world.says(ANN, group, "own");
    world.flow();
    world.says(BEN, group, "after");
    world.flow();
    let unstored = world.devices[ANN].unstored(group);
    assert_eq!(
        unstored,
        [(before + 1, false), (before + 2, true), (before + 3, false)],
        "the own entry stands between"
    );
    assert!(world.devices[ANN].has_unsettled_answer(own), "and its ack is not on the disk");
    world.takes_away(ANN);
    world.devices[ANN].manner.stores = 100;
    world.brings_back(ANN);
    world.rest();
    assert_eq!(world.answer(ANN, own).map(|answer| answer.seq), Some(before + 2), "its repeat says the same");
    world.go_on()
}

/// S3: someone joins, and the broker is killed when that is stored and no inbox entry has been sent; a second device is
/// away meanwhile.
fn s3(seed: u64, keys: &Keys) -> Coverage {
    let (mut world, _) = World::staged(seed, keys, any_ground(seed), Retention::default(), |_| ());
    world.takes_away(BEN_TOO);
    let create = packet::CreateGroup { label: "new".into(), users: vec!["ben".into()], ..Default::default() };
    world.does(CID, 0, Action::CreateGroup(create));
    world.turn(CID);
    let link = world.link_of(CID);
    world.carry_up(link);
    world.one_commit();
    let ben = world.devices[BEN].user_id;
    let joined = world.model.announced.keys().filter(|(user, _)| *user == ben).count();
    let broker = world.broker.as_ref().expect("it runs");
    assert!(joined == 2 && broker.unfed > 0, "the join is stored, and nobody was told");
    world.kill();
    let mut made = world.model.conversations.iter().filter(|(_, of)| of.label == "new").map(|(id, _)| *id);
    let made = made.next().expect("the group is made");
    world.rest();
    world.says(CID, made, "first words");
    world.flow();
    world.brings_back(BEN_TOO);
    world.rest();
    world.go_on()
}

/// S4: someone is removed and added again while a device of theirs is away; what was said in between is not theirs.
fn s4(seed: u64, keys: &Keys) -> Coverage {
    let (mut world, group) = World::staged(seed, keys, any_ground(seed), Retention::default(), |_| ());
    world.takes_away(BEN_TOO);
    let set = |role: Role| Action::SetRole(packet::SetRole { user: "ben".into(), role: role.into() });
    for round in 0..3 {
        world.says(ANN, group, format!("to all {round}"));
        world.does(ANN, group, set(Role::None));
        for word in 0..3 {
            world.says(CID, group, format!("without ben {round} {word}"));
        }
        world.rest();
        world.does(ANN, group, set(Role::Member));
        world.says(CID, group, format!("to all again {round}"));
        world.rest();
    }
    let ben = world.devices[BEN].user_id;
    let stretches = world.model.conversations[&group].members[&ben].intervals.len();
    assert_eq!(stretches, 4, "ben was away three times");
    assert!(world.devices[BEN_TOO].wire.is_none(), "and the second device all the while");
    world.brings_back(BEN_TOO);
    world.rest();
    world.go_on()
}

/// S5: a commit fails under way, and its frame is there after reopening; before that the publish is repeated, and the
/// memtable is to be sealed. Sometimes the process is killed right then.
fn s5(seed: u64, keys: &Keys) -> Coverage {
    let (mut world, group) = World::staged(seed, keys, memory(1), Retention::default(), |_| ());
    // A new connection of ann's has nothing to tell that would have to be stored.
    world.unwire(ANN);
    world.rest();
    // The store is opened again, so that a second later it is once more, and not before.
    world.pass(2_000);
    world.says(BEN, group, "lost, and said again");
    world.fail_next(Failure::UnknownAndLost);
    world.flow();
    world.one_commit();
    assert_eq!(world.reached("stores opened again"), 1, "it is opened again at once");
    let before = world.head(group);
    let own = world.says(ANN, group, "there after all");
    world.fail_next(Failure::UnknownAndStored);
    world.flow();
    assert_eq!(world.reached("commits that failed under way"), 2, "the commit fails");
    // On a new connection it is repeated at once.
    world.unwire(ANN);
    world.devices[ANN].connect_at = world.now;
    world.is_calm = true;
    world.turn(ANN);
    world.is_calm = false;
    world.flow();
    assert!(world.reached("publishes repeated") > 0, "it is repeated");
    assert_eq!((world.reached("stores opened again"), world.head(group)), (1, before), "and nobody knows of the frame");
    if world.rng.bool() {
        world.pass(1_100);
        world.one_commit();
        assert_eq!(world.reached("stores opened again"), 2, "it is opened again");
    }
    if world.rng.bool() {
        world.kill();
        world.start_at = world.now;
        world.start();
    }
    world.pass(1_100);
    world.rest();
    let found = world.model.conversations[&group].entry(before + 1).map(|entry| entry.origin.message_id.0);
    assert!(world.reached("failed commits found after all") > 0 && found == Some(own), "the frame is there");
    let answer = world.answer(ANN, own).map(|answer| answer.seq);
    assert_eq!(answer, Some(before + 1), "its repeat gets its seq");
    world.says(BEN, group, "it goes on");
    world.rest();
    world.go_on()
}

/// S6: an old copy of the store is put in the place of the store, and its tail overtakes the cursors of devices that
/// have been further.
fn s6(seed: u64, keys: &Keys) -> Coverage {
    let (mut world, group) = World::staged(seed, keys, disk(10), Retention::default(), |_| ());
    world.stop();
    let Ground::Disk(store, _) = &world.ground else { unreachable!("made so above") };
    let copy = store.after_crash(&mut world.rng);
    world.start_at = world.now;
    world.rest();
    for word in 0..world.rng.usize(5..40) {
        world.says(BEN, group, format!("to be lost {word}"));
    }
    world.pass(1_500);
    world.rest();
    let lost = world.model.tail;
    world.takes_away(BEN);
    world.kill();
    let Ground::Disk(store, _) = &mut world.ground else { unreachable!("made so above") };
    *store = copy;
    // What the copy does not hold is excused, as after a sync that was a lie.
    world.has_lied = true;
    world.is_calm = true;
    world.start();
    world.is_calm = false;
    assert!(world.model.tail < lost, "the store is the copy");
    // The outboxes are of a time that the store has not seen.
    for device in &mut world.devices {
        device.connect_at = world.now;
    }
    world.rest();
    while world.model.tail <= lost {
        world.says(CID, group, "overtaking");
        world.rest();
    }
    let before = world.reached("cursors beyond a lost tail");
    world.brings_back(BEN);
    world.rest();
    assert!(world.reached("cursors beyond a lost tail") > before, "ben has a cursor of what is no more");
    world.go_on()
}

/// S7: a refusal in the middle of a window, for good and for the moment; and a long row of refusals, of which each told
/// how far the device has come.
fn s7(seed: u64, keys: &Keys) -> Coverage {
    let (mut world, group) = World::staged(seed, keys, memory(1_000), Retention::default(), |_| ());
    let before = world.head(group);
    world.says(ANN, group, "one");
    let nowhere = world.says(ANN, 4_095, "nowhere");
    world.says(ANN, group, "two");
    world.turn(ANN);
    world.flow();
    assert_eq!((world.head(group), world.answer(ANN, nowhere)), (before + 2, None), "the rest gets through");
    // The first is refused for the moment; what was sent behind it before that was known comes after it.
    let first = world.says(ANN, group, "three");
    world.turn(ANN);
    let link = world.link_of(ANN);
    world.carry_up(link);
    world.says(ANN, group, "four");
    world.turn(ANN);
    world.fail_next(Failure::NotStored);
    let behind = world.reached("publishes behind an open one");
    world.one_commit();
    world.carry_up(link);
    world.one_commit();
    world.flow();
    assert!(world.reached("publishes behind an open one") > behind, "the second waits for the first");
    world.rest();
    if let Some(answer) = world.answer(ANN, first) {
        assert_eq!(answer.seq, before + 3, "in order");
    }
    for _ in 0..7 {
        for _ in 0..45 {
            world.says(ANN, 4_095, "nowhere");
        }
        world.rest();
    }
    let last = world.says(ANN, group, "at last");
    world.rest();
    assert!(world.answer(ANN, last).is_some() && last > 300, "it counts from what was told");
    world.go_on()
}

/// S8: a takeover while publishes of the older session are queued, and more of them and its acks come late.
fn s8(seed: u64, keys: &Keys) -> Coverage {
    let (mut world, group) = World::staged(seed, keys, any_ground(seed), Retention::default(), |_| ());
    let before = world.head(group);
    for word in 0..5 {
        world.says(ANN, group, format!("queued {word}"));
    }
    while !world.devices[ANN].has_sent_all() {
        world.turn(ANN);
    }
    let older = world.link_of(ANN);
    world.carry_up(older);
    for word in 0..3 {
        world.says(ANN, group, format!("late {word}"));
    }
    while !world.devices[ANN].has_sent_all() {
        world.turn(ANN);
    }
    assert!(world.links[&older].link.under_way(Way::Up) > 0, "more is under way");
    // The device has forgotten the older connection, and the broker serves it.
    drop(world.devices[ANN].crash());
    world.links.get_mut(&older).expect("it is there").device = None;
    world.next_capacity = Some(64 << 10);
    world.connect(ANN);
    world.turn(ANN);
    let newer = world.link_of(ANN);
    world.carry_up(newer);
    world.carry_up(older);
    let broker = world.broker.as_ref().expect("it runs");
    assert!(broker.serves(older) && !broker.rooms.shared.queue.is_empty(), "both are served, and all is queued");
    assert_eq!(world.head(group), before, "and nothing is stored");
    world.one_commit();
    assert!(
        world.head(group) <= before + 5,
        "{} of {before}: what comes after the takeover is not the older session's to say",
        world.head(group)
    );
    world.rest();
    assert_eq!(world.head(group), before + 8, "the newer one says it, once");
    world.go_on()
}

/// S9: an item larger than the window, between small ones; and for a device that cannot hold it.
fn s9(seed: u64, keys: &Keys) -> Coverage {
    let small = |manner: &mut Manner| {
        manner.bulk = Some(Window { items: 4, bytes: 512 });
        manner.express = manner.bulk;
    };
    let (mut world, group) = World::staged(seed, keys, any_ground(seed), Retention::default(), small);
    world.takes_away(BEN_TOO);
    world.devices[BEN_TOO].manner.item_bytes_max = 1_000;
    let larger = world.reached("items larger than a window");
    for round in 0..3 {
        world.says(ANN, group, format!("small {round}"));
        world.says(ANN, group, "large ".repeat(1_000));
        world.says(CID, group, format!("small too {round}"));
    }
    world.rest();
    assert!(world.reached("items larger than a window") >= larger + 3, "each alone");
    let heads = world.reached("heads of what is too large");
    world.brings_back(BEN_TOO);
    world.rest();
    assert!(world.reached("heads of what is too large") >= heads + 3, "or as a Head");
    world.go_on()
}

/// S10: an item of 60 KB over a link of 16 kbit/s: it takes half a minute, is asked about, and crosses once.
fn s10(seed: u64, keys: &Keys) -> Coverage {
    let (mut world, group) = World::staged(seed, keys, any_ground(seed), Retention::default(), |_| ());
    world.takes_away(BEN);
    world.rest();
    world.next_capacity = Some(256 << 10);
    world.brings_back(BEN);
    world.rest();
    let slow = world.link_of(BEN);
    let seq = world.head(group) + 1;
    world.says(ANN, group, "x".repeat(60_000));
    let (again, asked) = (world.reached("items that came again"), world.reached("requests for acks"));
    world.slow = Some(slow);
    let mut passed = 0;
    while world.devices[BEN].durable.covered.get(&group).is_none_or(|covered| !covered.has(seq)) {
        // 2 bytes a millisecond.
        world.links[&slow].link.carry(Way::Down, 200);
        world.links[&slow].link.carry(Way::Up, 200);
        world.everyone();
        world.pass(100);
        passed += 100;
        assert!(passed < 60_000, "it comes");
    }
    assert!(passed > 25_000, "it took its time: {passed} ms");
    assert!(world.reached("requests for acks") > asked, "it was asked about");
    assert_eq!(world.link_of(BEN), slow, "over one connection");
    for _ in 0..20 {
        world.links[&slow].link.carry(Way::Down, 200);
        world.links[&slow].link.carry(Way::Up, 200);
        world.everyone();
        world.pass(100);
    }
    assert_eq!(world.reached("items that came again"), again, "and nothing came twice");
    world.slow = None;
    world.rest();
    world.go_on()
}

/// S11: a device is restored from a backup: an older cursor and an older outbox.
fn s11(seed: u64, keys: &Keys) -> Coverage {
    let (mut world, group) = World::staged(seed, keys, any_ground(seed), Retention::default(), |_| ());
    world.says(BEN, group, "before the backup");
    world.pass(1_500);
    world.rest();
    let unsent = world.says(ANN, group, "in the backup's outbox");
    world.devices[ANN].backup = Some(world.devices[ANN].durable.clone());
    world.rest();
    for word in 0..5 {
        world.says(ANN, group, format!("after the backup {word}"));
        world.says(BEN, group, format!("to be had again {word}"));
    }
    world.pass(1_500);
    world.rest();
    assert!(world.answer(ANN, unsent).is_some(), "what the backup holds as unsent is stored");
    let (head, restored) = (world.head(group), world.reached("outboxes restored from a copy"));
    world.takes_away(ANN);
    world.devices[ANN].restore();
    assert!(world.devices[ANN].missing(&world.model).is_some(), "it lacks what it had");
    world.brings_back(ANN);
    world.rest();
    assert_eq!(world.reached("outboxes restored from a copy"), restored + 1, "it is told so");
    assert_eq!(world.head(group), head, "and nothing is said twice");
    world.go_on()
}

/// S12: the clock goes a day forward and back while entries expire by age: none does before its time.
fn s12(seed: u64, keys: &Keys) -> Coverage {
    let retention = Retention { age_ms: Some(60_000), ..Retention::default() };
    let (mut world, group) = World::staged(seed, keys, any_ground(seed), retention, |_| ());
    for word in 0..60 {
        world.says(ANN, group, format!("young {word}"));
    }
    world.rest();
    let day = 86_400_000;
    let jumps = if world.rng.bool() { [day, 0] } else { [day, -day] };
    for jump in jumps {
        world.jump_ms = jump;
        world.pass(0);
        let until = world.now + 15_000;
        while world.now < until {
            world.pass(500);
            world.everyone();
            world.commit();
        }
        assert_eq!(world.model.floor, 0, "nothing is old, whatever the clock says");
    }
    world.jump_ms = 0;
    world.kill();
    world.start_at = world.now;
    world.rest();
    for word in 0..40 {
        world.says(BEN, group, format!("later {word}"));
    }
    world.rest();
    for _ in 0..200 {
        world.pass(1_000);
        world.everyone();
        world.commit();
    }
    assert!(world.model.floor > 0, "and in time it does expire");
    world.rest();
    world.go_on()
}

/// S13: a device leaves a will (SPEC R16-16 to R16-20). It comes back in time; then it does not, and the broker is killed
/// or loses a commit meanwhile, or its user is no member any more: the will is published once, or not at all.
fn s13(seed: u64, keys: &Keys) -> Coverage {
    const AFTER_MS: u64 = 5_000;
    let (mut world, group) = World::staged(seed, keys, memory(20), Retention::default(), |_| ());
    let will = |content: &str| Publish {
        conversation: group,
        content: content.to_owned().into_bytes().into(),
        action: Some(Action::SetWill(packet::SetWill { after_ms: AFTER_MS as u32 })),
        ..Publish::default()
    };
    world.puts(BEN, will("an earlier one"));
    world.puts(BEN, will("ben was here"));
    world.rest();
    assert_eq!((world.model.wills.len(), world.model.wills_published), (1, 0), "it is there, and nothing else is");
    world.takes_away(BEN);
    world.goes_by(AFTER_MS / 2);
    if world.rng.bool() {
        world.kill();
        world.start_at = world.now;
        world.start();
    }
    world.brings_back(BEN);
    world.goes_by(3 * AFTER_MS);
    assert_eq!((world.model.wills.len(), world.model.wills_published), (1, 0), "it came back in time");

    let is_member = world.rng.u8(0..4) > 0;
    if !is_member {
        let set = packet::SetRole { user: "ben".into(), role: Role::None.into() };
        world.does(ANN, group, Action::SetRole(set));
    }
    world.rest();
    world.takes_away(BEN);
    let some = world.rng.u64(0..AFTER_MS);
    world.goes_by(some);
    let before = world.model.wills_published;
    match world.rng.u8(0..4) {
        0 => {
            world.kill();
            world.start_at = world.now;
            world.start();
        }
        1 => world.fail_next(Failure::UnknownAndStored),
        2 => world.fail_next(Failure::UnknownAndLost),
        _ => {}
    }
    // A connection that is half open is given up after one and a half heartbeats.
    world.goes_by(70_000);
    assert!(world.model.wills.is_empty(), "the device is lost");
    let published = world.model.wills_published;
    assert!(published <= before + 1 && published == u64::from(is_member), "once, and by who may");
    world.kill();
    world.start_at = world.now;
    world.start();
    world.goes_by(3 * AFTER_MS);
    assert_eq!(world.model.wills_published, published, "and not again");
    world.go_on()
}

mod tests {
    use super::*;
    use crate::runs::Kind;

    fn each(name: &'static str, scenario: Scenario) {
        let kind = Kind { name, variable: "LONGWIRE_SCENARIO", test: name };
        for seed in kind.kept() {
            scenario(seed, crate::keys());
        }
        let outcome = kind.run(&kind.seeds(crate::SCENARIO_SEEDS), |seed| scenario(seed, crate::keys()));
        assert!(outcome.failed.is_empty(), "seeds of {name} that fail: {:?}", outcome.failed);
    }

    macro_rules! scenarios {
        ($($test:ident $scenario:ident)*) => {
            $(
                #[test]
                fn $test() {
                    each(stringify!($scenario), $scenario);
                }
            )*
        };
    }

    scenarios! {
        s1_a_withheld_head_an_urgent_item_and_a_crash s1
        s2_an_own_entry_between_unstored_ones_and_a_crash_before_the_ack s2
        s3_a_join_and_a_kill_before_anyone_was_told_and_a_second_device s3
        s4_removed_and_added_again_while_a_device_is_away s4
        s5_a_commit_fails_and_its_frame_is_there_after_reopening s5
        s6_an_old_copy_of_the_store_whose_tail_overtakes_cursors s6
        s7_a_refusal_in_the_middle_of_a_window s7
        s8_a_takeover_with_publishes_queued_and_acks_late s8
        s9_an_item_larger_than_the_window s9
        s10_a_large_item_over_a_slow_link s10
        s11_a_device_restored_from_a_backup s11
        s12_the_clock_a_day_forward_and_back_with_retention s12
        s13_a_will_and_a_broker_that_is_killed s13
        s17_a_device_that_is_away_is_told_by_a_broker_that_is_killed s17
        s18_a_user_is_erased_by_a_broker_that_is_killed s18
    }
}
