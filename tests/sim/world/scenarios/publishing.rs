//! What is published and refused, taken over, or of an outbox that is a copy.

use super::*;

/// S7: a refusal in the middle of a window, for good and for the moment; and a long row of refusals, of which each told
/// how far the device has come.
pub(super) fn s7(seed: u64, keys: &Keys) -> Coverage {
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
    // On a new connection, too: what it says there of what has been answered counts.
    if world.rng.bool() {
        world.unwire(ANN);
    }
    let last = world.says(ANN, group, "at last");
    world.rest();
    assert!(world.answer(ANN, last).is_some() && last > 300, "it counts from what was told");
    world.go_on()
}

/// S8: a takeover while publishes of the older session are queued, and more of them and its acks come late.
pub(super) fn s8(seed: u64, keys: &Keys) -> Coverage {
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

/// S11: a device is restored from a backup: an older cursor and an older outbox.
pub(super) fn s11(seed: u64, keys: &Keys) -> Coverage {
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
