//! A commit that fails and is there all the same, and a store that is older than its devices.

use super::*;

/// S5: a commit fails under way, and its frame is there after reopening; before that the publish is repeated, and the
/// memtable is to be sealed. Sometimes the process is killed right then.
pub(super) fn s5(seed: u64, keys: &Keys) -> Coverage {
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
pub(super) fn s6(seed: u64, keys: &Keys) -> Coverage {
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
