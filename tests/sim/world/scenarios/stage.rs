//! The stage of a scenario: who plays, on which ground, and the sentences that scripts are made of.

use super::*;

/// Who plays: ann has two devices, ben two, cid one.
const CAST: [(&str, usize); 3] = [("ann", 2), ("ben", 2), ("cid", 1)];
/// Their first devices, and ben's second.
pub(super) const ANN: usize = 0;
pub(super) const BEN: usize = 2;
pub(super) const BEN_TOO: usize = 3;
pub(super) const CID: usize = 4;

/// What happens after the script, until faults stop.
const STEPS: u32 = 400;

/// The log in memory, sealed after so many entries.
pub(super) fn memory(seal_entries: usize) -> Ground {
    Ground::Memory(Some(Box::new(MemoryLog::new(BORN_UNIX_MS, seal_entries))))
}

/// A simulated disk.
pub(super) fn disk(seal_entries: usize) -> Ground {
    Ground::Disk(SimDisk::default(), small(seal_entries))
}

impl World {
    /// The cast is there and at rest, in one group of ann's.
    pub(super) fn staged(
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
                let mut of = super::super::manner(&mut world.rng);
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
    pub(super) fn go_on(mut self) -> Coverage {
        for device in &mut self.devices {
            device.is_away = false;
            device.connect_at = device.connect_at.min(self.now + 1_000);
        }
        self.weather = Weather::new(&mut self.rng);
        self.run_on(STEPS);
        self.coverage
    }

    /// Everyone who is not away comes to rest, and nothing fails meanwhile.
    pub(super) fn rest(&mut self) {
        self.is_calm = true;
        for device in &mut self.devices {
            device.connect_at = device.connect_at.min(self.now);
        }
        self.settle();
        self.is_calm = false;
    }

    /// Everyone has a few turns.
    pub(super) fn flow(&mut self) {
        for _ in 0..12 {
            self.everyone();
        }
    }

    /// A device publishes an action into its outbox; gives the message id.
    pub(super) fn does(&mut self, device: usize, conversation: u64, action: Action) -> u64 {
        self.puts(device, Publish { conversation, action: Some(action), ..Publish::default() })
    }

    pub(super) fn says(&mut self, device: usize, conversation: u64, content: impl Into<String>) -> u64 {
        self.puts(device, Publish { conversation, content: content.into().into_bytes().into(), ..Publish::default() })
    }

    pub(super) fn puts(&mut self, device: usize, publish: Publish) -> u64 {
        assert!(self.devices[device].publish(publish), "it has room");
        self.devices[device].durable.next_id - 1
    }

    /// The device is gone from one instruction to the next, and stays away.
    pub(super) fn takes_away(&mut self, device: usize) {
        self.devices[device].is_away = true;
        self.unwire(device);
    }

    pub(super) fn brings_back(&mut self, device: usize) {
        self.devices[device].is_away = false;
        self.devices[device].connect_at = self.now;
    }

    /// The device comes back as an administrator's.
    pub(super) fn administers(&mut self, device: usize, private_key: &str) {
        self.takes_away(device);
        let user = self.devices[device].user.clone();
        let allows = Allows { expires: self.devices[device].pass.expires, grants: 0, is_admin: true };
        let pass = new_pass(&user, "administers".into(), allows, private_key);
        self.model.admin = Some(user);
        self.devices[device].take_pass(pass);
        self.brings_back(device);
    }

    pub(super) fn answer(&self, device: usize, message_id: u64) -> Option<crate::model::Answer> {
        let device = &self.devices[device];
        device.acked.get(&(device.device_id, device.durable.incarnation, message_id)).copied()
    }

    /// The direct conversation that was opened.
    pub(super) fn direct(&self) -> u64 {
        let direct = self.model.conversations.iter().find(|(_, of)| of.kind == Kind::Direct);
        direct.map(|(id, _)| *id).expect("it is opened")
    }

    pub(super) fn head(&self, conversation: u64) -> u64 {
        self.model.conversations[&conversation].head()
    }

    pub(super) fn reached(&self, what: &str) -> u64 {
        self.coverage.0.get(what).copied().unwrap_or_default()
    }

    pub(super) fn fail_next(&mut self, failure: Failure) {
        self.may_fail = true;
        let broker = self.broker.as_ref().expect("it runs");
        broker.with_log(|log| {
            let AnyLog::Memory(log) = log else { panic!("the log is in memory here") };
            log.fail_next_append(failure);
        });
    }

    /// A turn of the commit thread, whether something is queued or not.
    pub(super) fn one_commit(&mut self) {
        self.broker.as_mut().expect("it runs").step_commit();
        self.hear();
    }

    /// Time passes, and everyone has turns enough.
    pub(super) fn goes_by(&mut self, ms: u64) {
        let until = self.now + ms;
        while self.now < until {
            self.pass(100);
            self.everyone();
            self.one_commit();
        }
    }

    /// The device's newest connection, carried and polled until the broker has queued what it sent.
    pub(super) fn carry_up(&mut self, number: u64) {
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

    pub(super) fn link_of(&self, device: usize) -> u64 {
        self.devices[device].wire.as_ref().expect("it is connected").number
    }
}

impl Weather {
    pub(super) fn still() -> Self {
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
            stalls: 0,
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
pub(super) fn any_ground(seed: u64) -> Ground {
    if seed.is_multiple_of(2) { memory(20) } else { disk(20) }
}
