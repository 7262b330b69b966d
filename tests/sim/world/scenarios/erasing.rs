//! S18 and S21: a user is erased by a broker that is killed, and while a device waits for room.

use super::*;

/// Of what ben writes, so that it is known wherever it stands: see `World::check_erased_files`.
fn word(number: u32) -> String {
    format!("{BEN}-{}", 1_000_000_000 + number)
}

/// S18: ann has ben erased, who owns a group, talks in others, leaves a will, and is there; cid is away. The broker is killed
/// while that goes on: it is done all the same, nobody is shown what ben wrote, each seq of it is explained, and no file
/// holds it (SPEC R15-21 to R15-25).
pub(super) fn s18(seed: u64, keys: &Keys) -> Coverage {
    let ground = if seed.is_multiple_of(4) { memory(20) } else { disk(seed as usize % 7 * 10 + 5) };
    let (mut world, group) = World::staged(seed, keys, ground, Retention::default(), |_| ());
    world.administers(ANN, &keys.private);
    let users = vec!["ann".into(), "cid".into()];
    let own = packet::CreateGroup { label: "ben's own".into(), users, ..Default::default() };
    world.does(BEN, 0, Action::CreateGroup(own));
    world.does(BEN, 0, Action::OpenDirect(packet::OpenDirect { user: "ann".into() }));
    world.rest();
    let own = world.model.conversations.iter().find(|(_, of)| of.label == "ben's own");
    let (own, direct) = (*own.expect("it is made").0, world.direct());
    world.takes_away(CID);
    let mut number = 0;
    for _ in 0..world.rng.u32(3..20) {
        for conversation in [group, own, direct] {
            world.says(BEN, conversation, word(number));
            world.says(ANN, conversation, format!("stays {number}"));
            number += 1;
        }
    }
    world.rest();
    let ben = world.model.users["ben"];
    let said = (1..).zip(&world.model.conversations[&group].entries);
    let of_ben = said.filter(|(_, entry)| entry.is_message && entry.sender == ben).map(|(seq, _)| seq);
    let edited = of_ben.last().expect("ben said something");
    let edit = Some(Action::Edit(packet::Edit { seq: edited }));
    world.puts(BEN, Publish { conversation: group, content: word(number).into(), action: edit, ..Publish::default() });
    let will = Some(Action::SetWill(packet::SetWill { after_ms: 1_000 }));
    world.puts(BEN, Publish { conversation: group, content: "ben's will".into(), action: will, ..Publish::default() });
    world.rest();
    let heads = [group, own, direct].map(|id| world.head(id));

    world.does(ANN, 0, Action::EraseUser(packet::EraseUser { user: "ben".into() }));
    for _ in 0..100 {
        if world.model.erased_at("ben").is_none() {
            world.goes_by(100);
        }
    }
    assert!(world.model.erased_at("ben").is_some(), "it has begun");
    for _ in 0..world.rng.u32(1..5) {
        let some = world.rng.u64(0..300);
        world.goes_by(some);
        match world.rng.u8(0..3) {
            0 if matches!(world.ground, Ground::Memory(_)) => world.fail_next(Failure::UnknownAndStored),
            0 => {}
            _ => {
                world.kill();
                world.start_at = world.now;
                world.start();
            }
        }
    }
    // The will's time comes, and ben is nobody who leaves one.
    world.goes_by(5_000);
    world.brings_back(CID);
    world.rest();
    let has_files = matches!(world.ground, Ground::Disk(..));
    assert_eq!(world.model.erasures(), [1, 1, usize::from(has_files)], "it is done");
    assert!(world.reached("heads of what was erased") > 0, "cid is told of each seq");
    assert!(world.reached("erased users kept out") > 0, "ben is let in no more");
    assert_eq!(world.reached("files searched for what was erased") > 0, has_files, "no file holds it");
    let more = [0, 1, 2].map(|at| world.head([group, own, direct][at]) - heads[at]);
    assert_eq!(more, [1, 2, 0], "ben leaves two groups, and one of them gets another owner");
    world.kill();
    world.start_at = world.now;
    world.start();
    world.check_erased_files();
    world.go_on()
}

/// S21: a device that came back has been handed a little of what it missed, and more of that was read and waits for room,
/// when who wrote it is erased, and that comes to its end: none of it leaves any more, and each seq is explained (SPEC
/// R15-22).
pub(super) fn s21(seed: u64, keys: &Keys) -> Coverage {
    let narrow = |manner: &mut Manner| {
        manner.bulk = Some(Window { items: 2, bytes: 4_096 });
        manner.mode = CatchUpMode::All;
    };
    let (mut world, group) = World::staged(seed, keys, disk(20), Retention::default(), narrow);
    world.administers(ANN, &keys.private);
    world.rest();
    world.takes_away(CID);
    let first = world.head(group) + 1;
    for number in 0..world.rng.u32(8..16) {
        world.says(BEN, group, word(number));
    }
    world.rest();
    world.devices[CID].manner.stores = 0;
    world.brings_back(CID);
    for _ in 0..50 {
        if world.devices[CID].unstored(group).len() < 2 {
            world.goes_by(100);
        }
    }
    assert_eq!(world.devices[CID].unstored(group), [(first, false), (first + 1, false)], "the rest waits for room");
    let link = world.link_of(CID);

    world.does(ANN, 0, Action::EraseUser(packet::EraseUser { user: "ben".into() }));
    for _ in 0..60 {
        if world.model.erasures() != [1, 1, 1] {
            world.goes_by(100);
        }
    }
    assert_eq!(world.model.erasures(), [1, 1, 1], "it is done");
    assert_eq!(world.devices[CID].unstored(group).len(), 2, "and the rest waits still");
    let told = world.reached("heads of what was erased");
    world.devices[CID].manner.stores = 100;
    world.rest();
    assert_eq!(world.link_of(CID), link, "in the same session");
    assert!(world.reached("heads of what was erased") > told, "each seq is explained");
    world.go_on()
}
