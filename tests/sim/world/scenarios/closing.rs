//! S19: an account is closed.

use longwire::routing::reads::Reads;
use longwire_protocol::LogTime;

use super::*;

/// S19: ann has ben's account closed. Both of ben's devices have left wills and have themselves told; one is there, the other
/// may be gone already, and its time may come while the broker is killed or loses a commit. Nothing is said in ben's name
/// afterwards, and neither device is told anything any more (SPEC R15-20, R16-17, R17-2).
pub(super) fn s19(seed: u64, keys: &Keys) -> Coverage {
    const AFTER_MS: u32 = 5_000;
    let (mut world, group) = World::staged(seed, keys, memory(20), Retention::default(), |_| ());
    world.administers(ANN, &keys.private);
    for device in [BEN, BEN_TOO] {
        let will = Some(Action::SetWill(packet::SetWill { after_ms: AFTER_MS }));
        let content = format!("the will of {device}").into_bytes().into();
        world.puts(device, Publish { conversation: group, content, action: will, ..Publish::default() });
        let push = packet::SetPush { provider: "webhook".into(), target: "ben".into(), ..Default::default() };
        world.does(device, 0, Action::SetPush(push));
    }
    world.rest();
    assert_eq!((world.model.wills.len(), told(&world)), (2, 2), "both are set");
    if world.rng.bool() {
        world.takes_away(BEN_TOO);
        let some = world.rng.u64(0..u64::from(AFTER_MS) / 2);
        world.goes_by(some);
    }
    // From here on they are let in with nothing.
    let own = [BEN, BEN_TOO].map(|device| world.devices[device].pass.id.clone());
    world.revoked.extend(own);
    let close = packet::SetAccount { user: "ben".into(), close: true, ..Default::default() };
    let closing = world.does(ANN, 0, Action::SetAccount(close));
    match world.rng.u8(0..3) {
        0 => world.fail_next(Failure::UnknownAndStored),
        1 => world.fail_next(Failure::UnknownAndLost),
        _ => {}
    }
    for _ in 0..100 {
        if world.answer(ANN, closing).is_none() {
            world.goes_by(100);
        }
    }
    assert!(world.answer(ANN, closing).is_some(), "it is closed");
    world.takes_away(BEN);
    world.takes_away(BEN_TOO);
    assert_eq!((world.model.wills.len(), told(&world)), (0, 0), "nothing is left");
    if world.rng.bool() {
        world.kill();
        world.start_at = world.now;
        world.start();
    }
    // Also a connection that is half open is given up by then.
    world.goes_by(70_000);
    assert_eq!(world.model.wills_published, 0, "nothing is said in ben's name");
    world.rest();
    world.coverage
}

/// How many devices have themselves told.
fn told(world: &World) -> usize {
    let shared = world.broker.as_ref().expect("it runs").shared();
    let reads =
        Reads { history: &*shared.history, state: &shared.state, now: LogTime(0), may_block: true, looks: None };
    reads.rows(|rows| rows.state().pushes().len()).expect("reads")
}
