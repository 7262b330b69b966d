//! How a world comes to rest, and what must be so then.

use longwire_protocol::packet::Level;

use super::*;

impl World {
    pub(super) fn come_to_rest(&mut self) {
        self.is_calm = true;
        self.jump_ms = 0;
        self.draining = None;
        self.stalls_next = false;
        if let Ground::Disk(disk, _) = &self.ground {
            disk.heal();
        }
        let drains = self.broker.as_ref().is_some_and(|broker| broker.rooms.shared.draining.load(Ordering::Relaxed));
        if self.is_doubtful || self.lied.is_some() || drains || self.rng.bool() {
            self.kill();
        }
        for number in self.links.keys().copied().collect::<Vec<_>>() {
            if self.links[&number].device.is_none() {
                self.links.remove(&number).expect("looked up").link.cut();
            } else if self.links[&number].link.is_frozen() {
                self.links[&number].link.cut();
            }
        }
        for device in &mut self.devices {
            device.connect_at = device.connect_at.min(self.now + 100);
            device.is_away = self.model.erased_at(&device.user).is_some();
            // What is withheld in the background takes a minute to be told: some wait for that.
            if self.rng.u8(0..8) > 0 && device.manner.is_background {
                device.manner.is_background = false;
                device.request(request::Op::Background(packet::BackgroundRequest { background: false }));
            }
            for conversation in self.model.nothing_of(device.device_id) {
                let full = Action::SetLevel(packet::SetLevel { level: Level::Full.into() });
                device.publish(Publish { conversation, action: Some(full), ..Publish::default() });
            }
        }
        self.settle();
        if !self.is_ruined {
            self.check_followers();
        }
    }

    pub(super) fn settle(&mut self) {
        for round in 0..3_000 {
            if self.broker.is_none() {
                self.start_at = self.now;
                self.start();
            }
            if self.is_ruined {
                return;
            }
            let mut moved = false;
            for _ in 0..200 {
                let before = self.trace.hash;
                self.everyone();
                if before == self.trace.hash {
                    break;
                }
                moved = true;
            }
            let is_idle = self.broker.as_ref().is_some_and(|broker| {
                !broker.is_stalled()
                    && broker.rooms.shared.queue.is_empty()
                    && broker.tasks() == 0
                    && broker.ready().is_empty()
            });
            let is_idle = is_idle && self.unfinished().is_none();
            let is_gone = |device: &Device| device.is_away || self.model.erased_at(&device.user).is_some();
            let is_at_rest = |device: &Device| {
                is_gone(device) || (device.is_at_rest(&self.model) && device.missing(&self.model).is_none())
            };
            if !moved && is_idle && round > 3 && self.devices.iter().all(is_at_rest) {
                return;
            }
            self.pass(if round < 50 { 100 } else { 1_000 });
        }
        assert_eq!(self.unfinished(), None, "an erasure that was begun is never done");
        let restless = self.devices.iter().find(|device| !device.is_at_rest(&self.model));
        if restless.is_none() {
            let there = self.devices.iter().filter(|device| self.model.erased_at(&device.user).is_none());
            there.for_each(|device| device.check_view(&self.model));
        }
        let store = self.broker.as_ref().map(|broker| {
            broker.with_log(|log| (log.log().pressure(), log.log().is_seal_due(), log.log().unsaved_seals() == 0))
        });
        panic!(
            "it does not come to rest: store {store:?}: {}",
            restless.map_or_else(String::new, Device::why_restless)
        );
    }

    /// Everyone gets a turn.
    pub(super) fn everyone(&mut self) {
        for number in self.links.keys().copied().filter(|number| self.slow != Some(*number)).collect::<Vec<_>>() {
            for way in [Way::Up, Way::Down] {
                let link = &self.links[&number].link;
                if link.under_way(way) > 0 {
                    link.carry(way, usize::MAX);
                    self.trace.note(|| format!("carry {number} {way:?}"));
                }
            }
        }
        while self.broker.as_ref().is_some_and(|broker| !broker.ready().is_empty()) {
            let before = self.broker.as_ref().map(|broker| broker.ready().len());
            for _ in 0..before.unwrap_or_default() {
                self.poll_one();
            }
            // Who wakes itself again gets its next turn in the next round.
            if self.rng.u8(0..4) == 0 {
                break;
            }
        }
        self.commit();
        while self.step_feed() {
            self.trace.note(|| "feed".into());
        }
        while self.broker.as_ref().is_some_and(|broker| broker.tasks() > 0) {
            self.task();
        }
        self.work();
        for device in 0..self.devices.len() {
            self.turn(device);
        }
    }

    pub(super) fn audit(&mut self) {
        self.is_final = true;
        assert!(self.model.mentions.is_empty(), "nobody was told of {:?}", self.model.mentions);
        self.check_erased_files();
        let is_there = |device: &usize| self.model.erased_at(&self.devices[*device].user).is_none();
        let there: Vec<usize> = (0..self.devices.len()).filter(is_there).collect();
        for device in there.iter().copied() {
            let user = self.devices[device].user_id;
            let mine: Vec<u64> = self.model.of_user.get(&user).into_iter().flatten().copied().collect();
            self.devices[device].check_view(&self.model);
            for chunk in mine.chunks(3) {
                for id in chunk {
                    let history = packet::HistoryRequest {
                        conversation: *id,
                        from_seq: 0,
                        limit: self.rng.u32(1..200),
                        backwards: self.rng.bool(),
                        compact: false,
                    };
                    let at = (self.model.tail, self.log_now());
                    self.devices[device].request_at(request::Op::History(history), at);
                    let is_active = self.model.conversations[id].members[&user].is_active();
                    if is_active && self.model.conversations[id].kind != Kind::Inbox {
                        let members = packet::MembersRequest { conversation: *id, after_user: 0, limit: 200 };
                        self.devices[device].request(request::Op::Members(members));
                        if self.model.conversations[id].kind != Kind::Channel {
                            let receipts =
                                packet::ReceiptsRequest { conversation: *id, limit: 200, ..Default::default() };
                            self.devices[device].request(request::Op::Receipts(receipts));
                        }
                    }
                }
                self.settle();
            }
            let all = packet::ConversationsRequest { before: 0, limit: 200, since: 0 };
            let at = (self.model.tail, self.log_now());
            self.devices[device].request_at(request::Op::Conversations(all), at);
        }
        self.settle();
        for device in there {
            self.devices[device].check_view(&self.model);
        }
    }
}
