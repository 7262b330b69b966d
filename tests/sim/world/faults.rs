//! What befalls the world: cuts, jumps of the clock, disks that fail, kills, stops and starts.

use longwire::auth::Revocations;

use super::*;

impl World {
    pub(crate) fn hits(&mut self, often: u32) -> bool {
        often > 0 && self.rng.u32(0..10_000) < often
    }

    pub(crate) fn chance(&mut self) {
        let Weather { cuts, freezes, crashes, kills, stops, disk, jumps, lies, restores, .. } = self.weather;
        let Weather { drains, fights, revocations, refreshes, stalls, .. } = self.weather;
        if self.hits(cuts) && !self.links.is_empty() {
            let at = self.rng.usize(0..self.links.len());
            let (number, wired) = self.links.iter().nth(at).expect("within");
            wired.link.cut();
            let number = *number;
            self.trace.note(|| format!("cut {number}"));
            self.coverage.count("connections cut");
        }
        if self.hits(freezes) && !self.links.is_empty() {
            let at = self.rng.usize(0..self.links.len());
            let (number, wired) = self.links.iter().nth(at).expect("within");
            wired.link.freeze();
            let number = *number;
            self.trace.note(|| format!("freeze {number}"));
            self.coverage.count("connections half open");
        }
        if self.hits(crashes) {
            let device = self.rng.usize(0..self.devices.len());
            self.trace.note(|| format!("crash {device}"));
            self.coverage.count("devices crashed");
            if self.rng.bool() {
                self.unwire(device);
            } else if let Some(wire) = self.with_device(device, |device, around| device.leave(around)) {
                self.orphan(wire.number);
            }
            // Away for long, often.
            let away = if self.rng.bool() { self.rng.u64(0..1_000) } else { self.rng.u64(0..60_000) };
            self.devices[device].connect_at = self.now + away;
        }
        if self.hits(restores) {
            let device = self.rng.usize(0..self.devices.len());
            if self.rng.bool() || self.devices[device].backup.is_none() {
                self.devices[device].backup = Some(self.devices[device].durable.clone());
            } else {
                self.unwire(device);
                self.devices[device].restore();
                self.trace.note(|| format!("restore {device}"));
                self.coverage.count("devices restored from a copy");
            }
        }
        if self.hits(kills) {
            self.kill();
        }
        if self.hits(drains) && self.lied.is_none() && self.draining.is_none() {
            self.drain();
        }
        if self.hits(fights) {
            self.fight();
        }
        if self.hits(revocations) {
            let device = self.rng.usize(0..self.devices.len());
            let id = self.devices[device].pass.id.clone();
            self.trace.note(|| format!("revoke {id}"));
            self.revoked.insert(id);
            self.revoke();
            self.look_at_tokens();
        }
        if self.hits(refreshes) {
            let device = self.rng.usize(0..self.devices.len());
            if self.devices[device].is_open() {
                let pass = self.mint(device);
                self.devices[device].refresh(pass);
            }
        }
        if self.hits(stops) && self.lied.is_none() {
            self.stop();
        }
        if self.hits(disk) && self.broker.is_some() {
            self.fail_disk();
        }
        self.stalls_next |= self.hits(stalls) && self.broker.is_some();
        if self.hits(lies)
            && self.broker.is_some()
            && let Ground::Disk(disk, _) = &self.ground
        {
            disk.lie_once("journal.redb");
        }
        if self.hits(jumps) {
            let day = 86_400_000;
            self.jump_ms = if self.rng.bool() { 0 } else { self.rng.i64(-2 * day..2 * day) };
            self.trace.note(|| "jump".into());
            self.coverage.count("jumps of the clock");
            self.pass(0);
        }
    }

    pub(crate) fn fail_disk(&mut self) {
        self.may_fail = true;
        self.is_doubtful = true;
        self.coverage.count("disks that fail");
        match &self.ground {
            Ground::Disk(disk, _) => match self.rng.u8(0..4) {
                0 => {
                    disk.set_full(true);
                    self.coverage.count("disks that are full");
                    self.full_until = Some(self.now + self.rng.u64(10..6_000));
                }
                1 => disk.die_after(self.rng.u64(1..300)),
                _ => disk.fail_after(self.rng.u64(1..120)),
            },
            Ground::Memory(_) => {
                let failures = [Failure::NotStored, Failure::UnknownAndStored, Failure::UnknownAndLost, Failure::Sync];
                let failure = failures[self.rng.usize(0..4)];
                if let Some(broker) = &self.broker {
                    broker.with_log(|log| {
                        if let AnyLog::Memory(log) = log {
                            log.fail_next_append(failure);
                        }
                    });
                }
            }
        }
        self.trace.note(|| "the disk fails".into());
    }

    /// The process is killed, or the power goes: of what was not synced, chance keeps some.
    pub(crate) fn kill(&mut self) {
        self.lied = None;
        let Some(broker) = self.broker.take() else { return };
        self.trace.note(|| "kill".into());
        self.coverage.count("kills");
        if broker.is_stalled() {
            self.coverage.count("kills while a commit stalls");
        }
        broker.kill(&mut self.ground);
        if let Ground::Disk(disk, _) = &mut self.ground {
            *disk = disk.after_crash(&mut self.rng);
        }
        self.go_down();
    }

    /// The broker is told what was taken back.
    pub(crate) fn revoke(&self) {
        let Some(broker) = &self.broker else { return };
        let lines: String = self.revoked.iter().map(|id| format!("token {id}\n")).collect();
        broker.rooms.shared.authority.set_revocations(Revocations::parse(&lines).expect("a list"));
        broker.rooms.shared.registry.all().iter().for_each(|session| session.outbox.wake());
    }

    /// Everyone is asked to go, and a while later the process stops in order.
    pub(crate) fn drain(&mut self) {
        let Some(broker) = &self.broker else { return };
        let shared = &broker.rooms.shared;
        shared.draining.store(true, Ordering::Relaxed);
        for session in shared.registry.all() {
            session.outbox.lock().goaway = Some(session.number.0 as u32 % 3_000);
            session.outbox.wake();
        }
        self.draining = Some(self.rng.u32(1..200));
        self.trace.note(|| "drain".into());
        self.coverage.count("drains");
    }

    /// Someone with a device's token wants to be that device, a few times.
    pub(crate) fn fight(&mut self) {
        let device = self.rng.usize(0..self.devices.len());
        for _ in 0..self.rng.usize(1..5) {
            let (Some(hello), Some(broker)) = (self.devices[device].impostor(self.now), &mut self.broker) else {
                return;
            };
            let number = self.next_link;
            self.next_link += 1;
            let link = Link::new(64 << 10);
            link.write(&hello);
            broker.accept(number, &link);
            self.links.insert(number, Wired { link, device: None, owner: device });
            self.trace.note(|| format!("impostor {number} of {device}"));
            self.coverage.count("impostors of a device");
        }
    }

    /// The process is told to stop, and does so in order.
    pub(crate) fn stop(&mut self) {
        let Some(broker) = self.broker.take() else { return };
        self.trace.note(|| "stop".into());
        self.coverage.count("stops in order");
        // What it still stored is found by the next start; nobody was there to be told.
        broker.stop(&mut self.ground);
        if let Ground::Disk(disk, _) = &self.ground
            && (disk.is_dead() || disk.has_lied())
        {
            let crashed = disk.after_crash(&mut self.rng);
            if let Ground::Disk(disk, _) = &mut self.ground {
                *disk = crashed;
            }
        }
        self.go_down();
    }

    pub(crate) fn go_down(&mut self) {
        self.draining = None;
        self.taken_over.clear();
        self.told_erased.clear();
        if let Ground::Disk(disk, _) = &self.ground {
            disk.heal();
        }
        self.full_until = None;
        self.stalls_next = false;
        self.is_doubtful = false;
        self.start_at = self.now + self.rng.u64(0..500);
        for wired in self.links.values() {
            if self.rng.u8(0..4) == 0 {
                wired.link.freeze();
            } else {
                wired.link.cut();
            }
        }
        self.links.retain(|_, wired| wired.device.is_some());
    }

    pub(crate) fn start(&mut self) {
        // A start may be interrupted too.
        let dies = !self.is_calm && self.rng.u8(0..20) == 0;
        if let (Ground::Disk(disk, _), true) = (&self.ground, dies) {
            disk.die_after(self.rng.u64(1..200));
        }
        let unix_ms = self.unix_ms();
        let started = Running::start(&mut self.ground, &self.settings, self.now, unix_ms);
        let broker = match (started, &mut self.ground) {
            (Ok(broker), _) => broker,
            (Err(_), Ground::Disk(disk, _)) if disk.is_dead() => {
                self.coverage.count("starts that were interrupted");
                *disk = disk.after_crash(&mut self.rng);
                self.start_at = self.now + 10;
                return;
            }
            (Err(_), Ground::Disk(..)) if std::mem::take(&mut self.has_lied) => {
                // A file that was cut after a sync that was none: what redb says of it is true, and no broker starts.
                self.coverage.count("stores that a lie ruined");
                self.is_ruined = true;
                return;
            }
            (Err(error), _) => panic!("the broker does not start: {error}"),
        };
        if let (Ground::Disk(disk, _), true) = (&self.ground, dies) {
            disk.heal();
        }
        drop(broker.told());
        drop(broker.told());
        let tail = broker.with_log(|log| log.log().tail());
        if tail.0 < self.model.tail {
            self.lose(tail.0);
        }
        if self.has_lied {
            // A lie may have taken frames without a position, too.
            self.model.time = self.model.time.min(broker.with_log(|log| log.log().tail_time()).0);
        }
        let found = broker.with_log(|log| frames_after(log, Position(self.model.tail)));
        let found = found.expect("the log is followed from where it was");
        self.broker = Some(broker);
        self.revoke();
        self.look_at_tokens();
        self.find(&found);
        let tail = self.model.tail;
        self.trace.note(|| format!("start at {tail}"));
        self.coverage.count("starts");
        self.has_lied = false;
        self.hear();
    }

    /// The log is shorter than what was acked. Only a sync that was a lie may have done that.
    pub(crate) fn lose(&mut self, tail: u64) {
        assert!(self.has_lied, "acked records are lost: the log ends at {tail}, {} were acked", self.model.tail);
        self.coverage.count("tails lost to a lie");
        let segment = self.model.frames.last().expect("something was lost").segment.0;
        self.lost.push((segment, tail));
        self.model = self.model.cut(tail);
        // What is under way tells of what is no more.
        self.links.values().for_each(|wired| wired.link.cut());
        self.links.clear();
        for device in &mut self.devices {
            drop(device.crash());
            let model = &self.model;
            device.acked.retain(|id, answer| model.answers.get(id) == Some(answer));
            for durable in [Some(&mut device.durable), device.backup.as_mut()].into_iter().flatten() {
                durable.excused = durable.excused.map(|to| to.min(tail));
                durable.covered.retain(|id, _| model.conversations.contains_key(id));
                for (id, covered) in &mut durable.covered {
                    covered.cut_above(model.conversations[id].head());
                }
            }
        }
    }

    pub(crate) fn orphan(&mut self, number: u64) {
        let Some(wired) = self.links.get_mut(&number) else { return };
        wired.device = None;
        if self.rng.u8(0..3) == 0 || self.is_calm {
            wired.link.cut();
            self.links.remove(&number);
        } else if self.rng.bool() {
            wired.link.shut_up();
        }
    }
}
