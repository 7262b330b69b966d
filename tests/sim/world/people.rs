//! What people do with their devices: they open, join, leave, decide, say and read.

use longwire_protocol::packet::Level;

use super::*;

impl World {
    pub(super) fn act(&mut self, device: usize) {
        let user = self.devices[device].user_id;
        if !self.devices[device].is_open() || self.devices[device].durable.outbox.len() > 100 {
            return;
        }
        let is_inbox = |id: &u64| self.model.conversations.get(id).is_none_or(|of| of.kind == Kind::Inbox);
        let mut mine: Vec<u64> = self.model.of_user.get(&user).into_iter().flatten().copied().collect();
        if mine.len() > 1 && self.rng.u8(0..10) > 0 {
            mine.retain(|id| !is_inbox(id));
        }
        let all: Vec<u64> = self.model.conversations.keys().copied().collect();
        let from = if self.rng.u8(0..12) == 0 { &all } else { &mine };
        let conversation = if from.is_empty() { 0 } else { from[self.rng.usize(0..from.len())] };
        let name = USERS[self.rng.usize(0..USERS.len())].to_owned();
        let head = self.model.conversations.get(&conversation).map_or(0, crate::model::Conversation::head);
        let channel = format!("news/{}", self.rng.u8(0..2));
        let action = |action| Publish { conversation, action: Some(action), ..Publish::default() };
        let open = |action| Publish { action: Some(action), ..Publish::default() };
        // Who is in nothing yet opens something.
        let what =
            if is_inbox(&conversation) && self.rng.u8(0..4) > 0 { self.rng.u8(20..25) } else { self.rng.u8(0..50) };
        let publish = match what {
            0..=12 => return self.say(device, conversation),
            13..=19 => {
                let Some(action) = self.about_a_message(user, conversation) else { return };
                let content = if matches!(action, Action::Edit(_)) { format!("e{}", self.now) } else { String::new() };
                Publish { conversation, content: content.into(), action: Some(action), ..Publish::default() }
            }
            20 => open(Action::OpenDirect(packet::OpenDirect { user: name })),
            21 => {
                let users = (0..self.rng.usize(0..4)).map(|_| USERS[self.rng.usize(0..USERS.len())].to_owned());
                let users = users.collect();
                open(Action::CreateGroup(packet::CreateGroup {
                    label: format!("g{}", self.now),
                    users,
                    ..Default::default()
                }))
            }
            22 => open(Action::OpenChannel(packet::OpenChannel { name: channel })),
            23..=24 => {
                let channels: Vec<u64> = self.model.channels.values().copied().collect();
                let Some(channel) = self.rng.choice(&channels) else { return };
                let action = if self.rng.u8(0..3) > 0 {
                    Action::Join(packet::Join::default())
                } else {
                    Action::Leave(packet::Leave {})
                };
                Publish { conversation: *channel, action: Some(action), ..Publish::default() }
            }
            25 => action(Action::Leave(packet::Leave {})),
            26..=28 => {
                let roles = [Role::None, Role::None, Role::Member, Role::Member, Role::Admin, Role::Owner];
                let role = roles[self.rng.usize(0..roles.len())];
                action(Action::SetRole(packet::SetRole { user: name, role: role.into() }))
            }
            29 => action(Action::SetLabel(packet::SetLabel { label: format!("l{}", self.now) })),
            30..=32 => {
                let seq = self.rng.u64(0..=head + 2);
                action(Action::SetMark(packet::SetMark { seq }))
            }
            39 if head > 0 => {
                use packet::RetentionMode::{Keep, KeepFor, UntilDelivered};
                let mode = [Keep, KeepFor, KeepFor, UntilDelivered, UntilDelivered][self.rng.usize(0..5)];
                let age_ms = if mode == Keep { 0 } else { self.rng.u64(1_000..20_000) };
                let retention = Some(packet::Retention { mode: mode.into(), age_ms });
                action(Action::SetRetention(packet::SetRetention { retention }))
            }
            40 => {
                let conversation = if self.rng.u8(0..5) == 0 { 0 } else { conversation };
                let content = format!("the will of {device} {}", self.now).into();
                let after_ms = self.rng.u32(0..4_000);
                let action = Some(Action::SetWill(packet::SetWill { after_ms }));
                Publish { conversation, content, action, ..Publish::default() }
            }
            41 => {
                let to = if self.rng.bool() { packet::Audience::Company } else { packet::Audience::Nobody };
                open(Action::ShowPresence(packet::ShowPresence { to: to.into() }))
            }
            44..=45 => {
                let levels = [Level::Full, Level::Full, Level::HeadsOnly, Level::Nothing];
                let level = levels[self.rng.usize(0..levels.len())].into();
                action(Action::SetLevel(packet::SetLevel { level }))
            }
            // The one who administers stays.
            46 if name != USERS[0] => open(Action::EraseUser(packet::EraseUser { user: name })),
            46 => return,
            42 => {
                let kind = packet::SignalKind::Typing.into();
                let signal = packet::Signal { conversation, kind, ..packet::Signal::default() };
                return self.devices[device].signal(signal);
            }
            other => return self.ask(device, other, conversation, head),
        };
        if self.devices[device].publish(publish) {
            self.trace.note(|| format!("act {device}"));
        }
    }

    pub(super) fn say(&mut self, device: usize, conversation: u64) {
        let times = match self.rng.u8(0..10) {
            0 if self.weather.bursts => self.rng.usize(60..200),
            0 => self.rng.usize(1..30),
            _ => 1,
        };
        for _ in 0..times {
            let mut content = format!("{device}-{}", self.rng.u32(..)).into_bytes();
            match self.rng.u8(0..60) {
                0 if times == 1 => content.resize(self.rng.usize(0..20_000), 7),
                1..=6 => content.resize(self.rng.usize(0..600), 8),
                _ => {}
            }
            let beside = self.beside(conversation);
            let publish = Publish { conversation, content: content.into(), beside, ..Publish::default() };
            if !self.devices[device].publish(publish) {
                break;
            }
        }
        self.trace.note(|| format!("say {device} {conversation} {times}"));
    }

    /// What stands beside a message, now and then.
    fn beside(&mut self, conversation: u64) -> Option<Box<packet::Beside>> {
        if self.rng.u8(0..8) > 0 {
            return None;
        }
        let users: Vec<u64> = self.model.users.values().copied().collect();
        let mentions = (0..self.rng.usize(0..3)).filter_map(|_| self.rng.choice(&users).copied()).collect();
        let head = self.model.conversations.get(&conversation).map_or(0, crate::model::Conversation::head);
        Some(Box::new(packet::Beside {
            reply_to: if self.rng.u8(0..4) == 0 { head } else { 0 },
            mentions,
            expires_in_ms: if self.rng.bool() { self.rng.u64(1..8_000) } else { 0 },
            silent: self.rng.bool(),
            ..packet::Beside::default()
        }))
    }

    /// Something about one of the newest messages, mostly an own one where only that may be; or the user's settings.
    fn about_a_message(&mut self, user: u64, conversation: u64) -> Option<Action> {
        let what = self.rng.u8(0..12);
        if what == 0 {
            let settings = packet::Settings {
                muted_until: self.rng.u64(0..3),
                pinned: self.rng.bool(),
                archived: self.rng.bool(),
                marked_unread: self.rng.bool(),
            };
            return Some(Action::SetSettings(packet::SetSettings { settings: Some(settings) }));
        }
        let of = self.model.conversations.get(&conversation)?;
        let newest = (1..=of.head()).rev().take(40);
        let is_message = |seq: &u64| of.entry(*seq).is_some_and(|entry| entry.is_message);
        let mut seqs: Vec<u64> = newest.filter(is_message).take(12).collect();
        if self.rng.u8(0..4) > 0 && what < 7 {
            seqs.retain(|seq| of.entry(*seq).is_some_and(|entry| entry.sender == user));
        }
        let seq = *self.rng.choice(&seqs)?;
        Some(match what {
            1..=3 => Action::Edit(packet::Edit { seq }),
            4..=6 => Action::Recall(packet::Recall { seq }),
            7..=8 => {
                let reaction = ["", "+", "-"][self.rng.usize(0..3)].to_owned();
                Action::React(packet::React { seq, reaction })
            }
            _ => Action::Hide(packet::Hide { seq, undo: self.rng.u8(0..4) == 0 }),
        })
    }

    pub(super) fn ask(&mut self, device: usize, what: u8, conversation: u64, head: u64) {
        let op = match what {
            33..=35 => request::Op::History(packet::HistoryRequest {
                conversation,
                from_seq: self.rng.u64(0..=head + 1),
                limit: self.rng.u32(0..40),
                backwards: self.rng.bool(),
                compact: false,
            }),
            36 => request::Op::Conversations(packet::ConversationsRequest { before: 0, limit: 50, since: 0 }),
            37 => {
                let members = packet::MembersRequest { conversation, after_user: 0, limit: 50 };
                request::Op::Members(members)
            }
            47..=49 => {
                // Who follows goes on with it, most of the time.
                let what = self.rng.u8(0..6);
                let (follow, stop) = (what > 1, what == 0);
                request::Op::Receipts(packet::ReceiptsRequest { conversation, after_user: 0, limit: 50, follow, stop })
            }
            43 if self.rng.bool() => request::Op::Background(packet::BackgroundRequest { background: self.rng.bool() }),
            43 => {
                let users = self.model.users.values().copied().collect();
                request::Op::Presence(packet::PresenceRequest { users, stop: self.rng.u8(0..4) == 0 })
            }
            _ => {
                let channels: Vec<u64> = self.model.channels.values().copied().collect();
                let Some(channel) = self.rng.choice(&channels) else { return };
                request::Op::Watch(packet::WatchRequest { conversation: *channel, stop: self.rng.u8(0..4) == 0 })
            }
        };
        self.trace.note(|| format!("ask {device} {op:?}"));
        let at = (self.model.tail, self.log_now());
        self.devices[device].request_at(op, at);
    }
}
