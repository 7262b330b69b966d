//! Who comes and goes while the broker is killed, or a device is away.

use super::*;

/// S3: someone joins, and the broker is killed when that is stored and no inbox entry has been sent; a second device is
/// away meanwhile.
pub(super) fn s3(seed: u64, keys: &Keys) -> Coverage {
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
pub(super) fn s4(seed: u64, keys: &Keys) -> Coverage {
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

/// S22: someone opens a conversation with cid, whose device is away until the inbox entry that tells of it has expired: what
/// is said there afterwards reaches it all the same (SPEC R6.1-5).
pub(super) fn s22(seed: u64, keys: &Keys) -> Coverage {
    let retention = Retention { age_ms: Some(20_000), ..Retention::default() };
    let (mut world, group) = World::staged(seed, keys, any_ground(seed), retention, |_| ());
    world.takes_away(CID);
    world.does(ANN, 0, Action::OpenDirect(packet::OpenDirect { user: "cid".into() }));
    world.rest();
    let (direct, opened) = (world.direct(), world.model.tail);
    for word in 0..40 {
        world.says(BEN, group, format!("goes by {word}"));
    }
    world.rest();
    for _ in 0..200 {
        if world.model.floor <= opened {
            world.goes_by(1_000);
        }
    }
    assert!(world.model.floor > opened, "what tells of it has expired");
    world.says(ANN, direct, "are you there?");
    world.rest();
    world.brings_back(CID);
    world.rest();
    let covered = &world.devices[CID].durable.covered;
    assert!(covered.get(&direct).is_some_and(|of| of.has(world.head(direct))), "cid has what was said");
    world.go_on()
}
