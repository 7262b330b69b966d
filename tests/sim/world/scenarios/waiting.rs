//! What happens when its time has come: entries expire, and a will is published.

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

/// S13: a device leaves a will (SPEC R16-16 to R16-20). It comes back in time; then it does not, and the broker is killed
/// or loses a commit meanwhile, or its user is no member any more: the will is published once, or not at all.
pub(super) fn s13(seed: u64, keys: &Keys) -> Coverage {
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
