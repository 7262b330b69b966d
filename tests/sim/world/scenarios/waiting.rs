//! What waits for its time: entries expire, publishes wait for a store that is full, and a will is published.

use super::*;

/// S12: the clock goes a day forward and back while entries expire by age: none does before its time.
pub(super) fn s12(seed: u64, keys: &Keys) -> Coverage {
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

/// S13: the builder has no turn until the sealed memtables are full. Publishes are refused for the moment; acks, heartbeats,
/// history, and a known device that connects, pass. Once the builder has turns again all that waited is stored, once.
pub(super) fn s13(seed: u64, keys: &Keys) -> Coverage {
    const SEAL: usize = 20;
    let small_window = |manner: &mut Manner| manner.bulk = Some(Window { items: 4, bytes: 4_000 });
    let (mut world, group) = World::staged(seed, keys, disk(SEAL), Retention::default(), small_window);
    let stands = |world: &World| {
        let broker = world.broker.as_ref().expect("it runs");
        broker.with_log(|log| (log.log().pressure(), log.log().unsaved_seals()))
    };
    let has = |world: &World, device: usize, seq: u64| {
        world.devices[device].durable.covered.get(&group).is_some_and(|covered| covered.has(seq))
    };
    world.builder_rests = true;
    world.devices[BEN].manner.stores = 0;
    let mut said = 0;
    while stands(&world).0 == Pressure::Open {
        said += 1;
        assert!(said < 4 * SEAL, "it fills up");
        world.says(ANN, group, format!("fills it {said}"));
        world.flow();
    }
    assert_eq!(stands(&world), (Pressure::Full, 2), "two memtables are sealed, and a third is full");
    let head = world.head(group);
    assert!(!has(&world, BEN, head), "ben has a window of four, and has acked nothing");

    // From here on ben stores what comes, and nobody gives up what is refused for the moment.
    world.is_calm = true;
    let [refused, pages] = ["publishes without a store", "pages of history"].map(|what| world.reached(what));
    let waiting = [ANN, CID].map(|device| (device, world.says(device, group, "waits")));
    let links = [ANN, BEN, CID].map(|device| world.link_of(device));
    let backwards = world.rng.bool();
    let history = packet::HistoryRequest { conversation: group, from_seq: 0, limit: 50, backwards, compact: false };
    let at = (world.model.tail, world.log_now());
    world.devices[CID].request_at(request::Op::History(history), at);
    world.takes_away(BEN_TOO);
    world.brings_back(BEN_TOO);
    for _ in 0..100 {
        world.pass(1_000);
        world.everyone();
    }
    assert_eq!((stands(&world), world.head(group)), ((Pressure::Full, 2), head), "it is full, and nothing is stored");
    assert!(world.reached("publishes without a store") >= refused + 2, "who publishes is told so");
    assert!(waiting.iter().all(|(device, id)| world.answer(*device, *id).is_none()), "and not acked");
    assert!(has(&world, BEN, head), "acks pass: they make room for what ben lacked");
    assert_eq!([ANN, BEN, CID].map(|device| world.link_of(device)), links, "heartbeats pass: no session has ended");
    assert!(world.reached("pages of history") > pages, "history passes");
    assert!(world.devices[BEN_TOO].is_open() && has(&world, BEN_TOO, head), "who is known comes, and has it all");

    if world.rng.bool() {
        world.kill();
        world.start_at = world.now;
        world.start();
    }
    world.builder_rests = false;
    world.rest();
    let mut seqs = waiting.map(|(device, id)| world.answer(device, id).expect("it is acked").seq);
    seqs.sort_unstable();
    assert_eq!((seqs, world.head(group)), ([head + 1, head + 2], head + 2), "what waited is stored, once");
    world.go_on()
}

/// S20: a device leaves a will (SPEC R16-16 to R16-20). It comes back in time; then it does not, and the broker is killed
/// or loses a commit meanwhile, or its user is no member any more: the will is published once, or not at all.
pub(super) fn s20(seed: u64, keys: &Keys) -> Coverage {
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
