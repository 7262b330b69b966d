//! What is delivered: withheld, own, larger than a window, over a slow link.

use super::*;

/// S1: entries of a group are withheld from a device in the background, or of another level, when something comes that is
/// not: what is withheld is told first, and what of that the device has not stored when it crashes, or the broker does, is
/// told again (SPEC R6.6-2 to R6.6-4, R6.1-2).
pub(super) fn s1(seed: u64, keys: &Keys) -> Coverage {
    let (mut world, group) = World::staged(seed, keys, any_ground(seed), Retention::default(), |_| ());
    world.does(ANN, 0, Action::OpenDirect(packet::OpenDirect { user: "ben".into() }));
    world.rest();
    let direct = world.direct();
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
pub(super) fn s2(seed: u64, keys: &Keys) -> Coverage {
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

/// S9: an item larger than the window, between small ones; and for a device that cannot hold it.
pub(super) fn s9(seed: u64, keys: &Keys) -> Coverage {
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
pub(super) fn s10(seed: u64, keys: &Keys) -> Coverage {
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
