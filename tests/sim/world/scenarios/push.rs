//! S17: a device that is away is told, by a teller driven by hand, while the broker is killed and loses commits on a disk
//! that crashes: one notification for each window, none of what was acked or is muted, none lost (SPEC R17-3 to R17-6).

use std::sync::Arc;

use longwire::routing::ops::Op;
use longwire::routing::push::look::{Look, Notice, Rules};
use longwire::routing::push::ringer::{Next, Ringer, next};
use longwire::routing::push::{Provider, Settled, Settling};
use longwire::routing::reads::Reads;
use longwire::routing::rows::DeviceCursor;
use longwire::routing::view::Rows as _;
use longwire::store::Position;
use longwire_protocol::{ConversationId, DeviceId, LogTime};

use super::*;

const RULES: Rules = Rules { after_ms: 2_000, collapse_ms: 20_000, expire_ms: 86_400_000 };

/// The teller's thread, by hand, and what the provider took.
#[derive(Default)]
struct Teller {
    ringer: Option<Ringer>,
    /// What was told and is not known to be durable.
    unsettled: Option<Settling>,
    taken: Vec<Taken>,
    /// The conversation that it is told of, and up to where it has acked that.
    group: u64,
    acked: u64,
}

#[derive(Clone, Copy, Debug)]
struct Taken {
    id: u128,
    at: u64,
    seq: u64,
    upto: Position,
    is_durable: bool,
}

impl Teller {
    /// A broker was started: what was told is what its log says.
    fn start(&mut self, world: &World) {
        let shared = world.broker.as_ref().expect("it runs").shared();
        shared.registry.bell.serve(vec![Provider::Webhook]);
        shared.registry.bell.listen(true);
        let mut ringer = Ringer::new(RULES);
        let now = shared.clock.log_time();
        let reads = Reads { history: &*shared.history, state: &shared.state, now, may_block: true, looks: None };
        ringer.look_everywhere(reads, shared.clock.now().0).expect("reads");
        (self.ringer, self.unsettled) = (Some(ringer), None);
        // What was committed just before a kill is durable, though nobody was told.
        let known = reads.rows(|rows| {
            let (user, device) = rows.state().pushes().first().copied()?;
            rows.told(user, device).map(|told| told.beyond.iter().map(|told| told.upto).max().max(Some(told.upto)))
        });
        let upto = known.expect("reads").flatten().unwrap_or_default();
        self.taken.iter_mut().filter(|taken| taken.upto <= upto).for_each(|taken| taken.is_durable = true);
    }

    /// What the broker has stored of the device's acks.
    fn hear_acks(&mut self, world: &World, group: u64) -> Option<DeviceCursor> {
        let shared = world.broker.as_ref().expect("it runs").shared();
        let device = DeviceId(world.devices[BEN].device_id);
        let reads =
            Reads { history: &*shared.history, state: &shared.state, now: LogTime(0), may_block: true, looks: None };
        let found = reads.rows(|rows| {
            let head = rows.conversation(ConversationId(group))?.head;
            Some((head, rows.device(device)?.cursor))
        });
        let (head, stored) = found.expect("reads").expect("both are there");
        if stored.is_some_and(|stored| stored.bulk >= head.position) {
            self.acked = head.seq.0;
        }
        stored
    }

    /// The device goes. What it acked is stored, but for a commit that failed: then the end of its session does that.
    fn leaves(&mut self, world: &mut World, group: u64) {
        let stored = self.hear_acks(world, group);
        let sessions = world.broker.as_ref().expect("it runs").shared().registry.all();
        let own = sessions.iter().find(|session| session.device.0 == world.devices[BEN].device_id);
        let acked = own.and_then(|session| session.outbox.lock().acked());
        assert!(
            acked.is_none() || stored == acked || world.may_fail,
            "an ack is stored within a second: {acked:?} {stored:?}"
        );
        world.takes_away(BEN);
    }

    /// One turn. The provider fails, or takes it.
    fn ring(&mut self, world: &mut World, is_failing: bool) {
        let shared = Arc::clone(world.broker.as_ref().expect("it runs").shared());
        let ringer = self.ringer.as_mut().expect("it was started");
        let (now, log_now) = (shared.clock.now().0, shared.clock.log_time());
        let reads =
            Reads { history: &*shared.history, state: &shared.state, now: log_now, may_block: true, looks: None };
        let rung = shared.registry.bell.take();
        ringer.hear(&rung, reads, now).expect("reads");
        for (_, _, is_done) in &rung.settled {
            match self.unsettled.take() {
                Some(settling) if !is_done => {
                    shared.queue.push_one(Op::SettlePush(Box::new(settling.clone())));
                    self.unsettled = Some(settling);
                }
                _ => self.taken.iter_mut().for_each(|taken| taken.is_durable = true),
            }
        }
        if self.unsettled.is_some() {
            return;
        }
        for errand in ringer.take_due(now, 1) {
            let found = next(reads, &shared.registry, &RULES, errand.who, (&errand.news, None), now).expect("reads");
            let Next::Look(_, look) = found else { panic!("it has itself told") };
            let Look { notice, rest, again, mut told, .. } = *look;
            let due = |again: LogTime| now + again.0.saturating_sub(log_now.0).max(1);
            let Some(notice) = notice else {
                ringer.finish(errand.who, again.map(|again| (due(again), rest)), false);
                continue;
            };
            if !is_failing {
                assert_eq!(notice.conversation.0, self.group, "nothing is told of what is not wanted: {notice:?}");
                take(&mut self.taken, self.acked, &notice, log_now.0);
                world.coverage.count("notifications");
                told.note(notice.conversation, notice.upto, log_now);
                let settling = Settling { user: errand.who.0, device: errand.who.1, what: Settled::Told(told) };
                shared.queue.push_one(Op::SettlePush(Box::new(settling.clone())));
                self.unsettled = Some(settling);
            }
            ringer.finish(errand.who, Some((now + 500, rest)), is_failing);
        }
    }
}

/// The provider takes a notification, which is owed and not before its time.
fn take(taken: &mut Vec<Taken>, acked: u64, notice: &Notice, at: u64) {
    let seq = notice.seq.0;
    assert!(seq > acked, "nothing is told of what was acked: {notice:?}");
    if let Some(before) = taken.last() {
        let is_same = before.id == notice.id;
        assert!(!(before.is_durable && is_same), "what was told is not told again: {before:?} {notice:?}");
        if before.is_durable {
            assert!(at >= before.at + RULES.collapse_ms, "one for each window: {before:?} at {at}");
        } else {
            // The broker was killed before that was written, and the device did not come since.
            assert!(is_same || before.seq <= acked, "the same again: {before:?} {notice:?}");
        }
    }
    taken.push(Taken { id: notice.id, at, seq, upto: notice.upto, is_durable: false });
}

/// Another group, of which ben is to be told nothing: it is muted, or his device wants nothing of it.
fn quiet_group(world: &mut World) -> u64 {
    let create = packet::CreateGroup { label: "quiet".into(), users: vec!["ben".into()], ..Default::default() };
    world.does(ANN, 0, Action::CreateGroup(create));
    world.rest();
    let is_it = |of: &crate::model::Conversation| of.label == "quiet";
    let quiet = world.model.conversations.iter().find(|(_, of)| is_it(of)).map(|(id, _)| *id).expect("it is made");
    let action = if world.rng.bool() {
        let settings = packet::Settings { muted_until: u64::MAX, ..Default::default() };
        Action::SetSettings(packet::SetSettings { settings: Some(settings) })
    } else {
        Action::SetLevel(packet::SetLevel { level: packet::Level::Nothing.into() })
    };
    world.does(BEN, quiet, action);
    quiet
}

/// See the module.
pub(super) fn s17(seed: u64, keys: &Keys) -> Coverage {
    let (mut world, group) = World::staged(seed, keys, any_ground(seed), Retention::default(), |_| ());
    let is_memory = matches!(world.ground, Ground::Memory(_));
    let mut teller = Teller { group, ..Teller::default() };
    teller.start(&world);
    let quiet = quiet_group(&mut world);
    let set = packet::SetPush { provider: "webhook".into(), target: "ben".into(), ..Default::default() };
    world.does(BEN, 0, Action::SetPush(set));
    world.rest();
    // What came before is not told.
    teller.acked = world.head(group);
    world.takes_away(BEN);
    for turn in 0..60 {
        match world.rng.u8(0..16) {
            0..4 => {
                let to = if world.rng.u8(0..4) == 0 { quiet } else { group };
                world.says(ANN, to, format!("while it is away {turn}"));
                world.flow();
            }
            4 => {
                world.kill();
                while world.broker.is_none() {
                    world.pass(500);
                    world.start_at = world.now;
                    world.start();
                }
                teller.start(&world);
                world.coverage.count("kills of a broker that tells");
            }
            5 => {
                world.brings_back(BEN);
                world.rest();
                world.goes_by(1_100);
                teller.leaves(&mut world, group);
            }
            6 if is_memory && world.rng.bool() => world.fail_next(Failure::UnknownAndLost),
            6 if is_memory => world.fail_next(Failure::UnknownAndStored),
            7 => teller.ring(&mut world, true),
            8..12 => {
                let ms = world.rng.u64(100..8_000);
                world.goes_by(ms);
            }
            _ => teller.ring(&mut world, false),
        }
    }
    // Whatever happened: in the end it is told of all that it has not acked, and that is durable.
    for _ in 0..120 {
        world.goes_by(500);
        teller.ring(&mut world, false);
    }
    teller.hear_acks(&world, group);
    let head = world.head(group);
    if head > teller.acked {
        let last = teller.taken.last().expect("something was told");
        assert!(last.seq > teller.acked && last.is_durable, "nothing is lost: {last:?}, acked {}", teller.acked);
        assert_eq!(last.seq, head, "up to the newest message");
    }
    assert_eq!(teller.ringer.as_ref().map(Ringer::waiting), Some(0), "nothing is left to tell");
    world.go_on()
}
