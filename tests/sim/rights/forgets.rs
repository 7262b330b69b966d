//! What is kept, withheld and erased: chapters 5.7, 6.6 and 15.4 of SPEC.md. What goes of itself is told by the log; that it
//! may go, and must, is held against it here.

use longwire::routing::change::Change;
use longwire::store::Record;
use longwire_protocol::packet::{HeadReason, RetentionMode};

use super::*;
use crate::broker::Told as OfLog;

/// How long the broker takes to see that something may go, beside a sixteenth of its age.
const LATE_MS: u64 = 5_000;
/// So often has an erasure its next step, and a little.
const ERASE_STEP_MS: u64 = 60;
/// More steps than any takes here.
const ERASE_STEPS: usize = 60;

impl Oracle {
    pub(super) fn is_erased(&self, user: u64) -> bool {
        self.erased.contains(&user)
    }

    pub(super) fn is_erased_named(&self, name: &str) -> bool {
        self.erased.iter().any(|user| self.users[user].1 == name)
    }

    /// Whether this is what someone wrote who is erased.
    pub(super) fn is_erased_at(&self, id: u64, seq: u64) -> bool {
        use packet::EntryKind::{Edit, Message, Reaction};
        let entry = self.conversations.get(&id).and_then(|c| c.entries.get((seq as usize).checked_sub(1)?));
        entry.is_some_and(|entry| matches!(entry.kind, Message | Edit | Reaction) && self.is_erased(entry.sender))
    }

    /// Takes in what conversations keep no more: the oldest, and only what is old enough, or may be delivered.
    pub(super) fn let_go(&mut self, told: &[OfLog]) {
        let frames = told.iter().filter_map(|told| if let OfLog::Committed(frame) = told { Some(frame) } else { None });
        for record in frames.flat_map(|frame| &frame.records) {
            let Record::Change(change) = record else { continue };
            let Ok(Change::KeptFrom { conversation, first, .. }) = Change::decode(&change.body) else { continue };
            let (now, erased) = (self.now, self.erased.clone());
            let of = self.of(conversation.0);
            assert!(first.0 > of.first && first.0 <= of.head() + 1, "{conversation} is kept from {first}");
            of.first = first.0;
            if of.kind == ConversationKind::Inbox {
                assert!(erased.contains(&of.pair.0), "the inbox {conversation} keeps everything");
                continue;
            }
            let (retention, since) = of.retention;
            let newest = of.entries[first.0 as usize - 2].at.max(since);
            let is_old = newest + retention.age_ms <= now + 1_000;
            let may = match retention.mode() {
                RetentionMode::Keep => false,
                RetentionMode::KeepFor => is_old,
                RetentionMode::UntilDelivered => true,
            };
            assert!(may, "{conversation} is kept from {first} at {now}: {retention:?} since {since}");
        }
    }

    /// Nothing is kept for longer than it may.
    pub(super) fn check_kept(&self, now: u64) {
        for (id, of) in self.conversations.iter().filter(|(_, of)| of.retention.0.mode() != RetentionMode::Keep) {
            let (retention, since) = of.retention;
            let late = retention.age_ms + retention.age_ms / 16 + LATE_MS;
            let over = (1..).zip(&of.entries).filter(|(_, entry)| entry.at.max(since) + late < now).last();
            let over = over.map_or(0, |(seq, _)| seq);
            assert!(
                over < of.first.max(1),
                "{id}/{over} is kept at {now}: {retention:?} since {since}, from {}",
                of.first
            );
        }
    }

    /// A user is erased: it is nobody's any more, and its groups are another's.
    fn erase(&mut self, user: u64) {
        self.erased.insert(user);
        self.profiles.remove(&user);
        self.blocked.retain(|(of, _)| *of != user);
        let own: Vec<u64> = self.conversations.iter().filter(|(_, c)| c.is_member(user)).map(|(id, _)| *id).collect();
        for id in own {
            let conversation = &self.conversations[&id];
            let (kind, was, head) = (conversation.kind, conversation.role(user), conversation.head());
            match kind {
                ConversationKind::Group => {
                    self.set_role(id, user, user, Role::None);
                    self.tell(user, id, packet::EntryKind::Left);
                    let others = self.conversations[&id].active();
                    let highest = others.iter().max_by_key(|(other, role)| (*role as i32, std::cmp::Reverse(*other)));
                    if let Some((heir, _)) = highest.filter(|_| was == Role::Owner) {
                        self.set_role(id, user, *heir, Role::Owner);
                    }
                }
                ConversationKind::Channel => {
                    let member = self.of(id).members.get_mut(&user).expect("a reader");
                    member.role = None;
                    member.stretches.last_mut().expect("a reader").1 = head;
                    member.joined.last_mut().expect("a reader").1 = head;
                    self.tell(user, id, packet::EntryKind::Left);
                }
                _ => {}
            }
        }
    }
}

impl History {
    /// The devices of those that are not erased.
    pub(super) fn there(&self) -> Vec<usize> {
        (0..self.devices.len()).filter(|at| !self.oracle.is_erased(self.devices[*at].user_id)).collect()
    }

    /// What goes of itself goes now.
    pub(super) fn sweep(&mut self) {
        for _ in 0..2 {
            let broker = self.broker();
            broker.step_commit();
            let told = broker.told();
            self.oracle.let_go(&told);
        }
    }

    /// Someone says how long a conversation keeps its entries, mostly who may.
    pub(super) fn keep(&mut self) {
        let device = self.rng.usize(0..self.devices.len());
        if self.devices[device].peer.is_none() {
            return;
        }
        let user = self.devices[device].user_id;
        let mut id = self.any(device);
        let may = |c: &oracle::Conversation| match c.kind {
            ConversationKind::Group => c.role(user) == Role::Owner,
            ConversationKind::Direct => c.is_member(user),
            _ => user == self.oracle.admin && c.kind == ConversationKind::Channel,
        };
        let own: Vec<u64> = self.oracle.conversations.iter().filter(|(_, c)| may(c)).map(|(id, _)| *id).collect();
        if let Some(own) = self.rng.choice(&own)
            && self.rng.u8(0..4) > 0
        {
            id = *own;
        }
        let modes =
            [RetentionMode::Keep, RetentionMode::KeepFor, RetentionMode::KeepFor, RetentionMode::UntilDelivered];
        let mode = modes[self.rng.usize(0..modes.len())];
        let age_ms = if mode == RetentionMode::Keep { 0 } else { self.rng.u64(1_000..12_000) };
        let retention = packet::Retention { mode: mode.into(), age_ms };
        let act = Act::SetRetention(retention);
        let action = Action::SetRetention(packet::SetRetention { retention: Some(retention) });
        let publish = self.next(device, id, Some(action), "");
        let expected = self.expected(device, id, &act);
        let answer = self.publish(device, &publish);
        self.check_answer(&act, expected, answer);
    }

    /// A device wants more or less of a conversation.
    pub(super) fn set_level(&mut self, device: usize) {
        let id = self.any(device);
        let levels = [Level::Full, Level::HeadsOnly, Level::Nothing];
        let level = levels[self.rng.usize(0..levels.len())];
        let of = &self.devices[device];
        let (user, grants) = (of.user_id, of.peer.as_ref().expect("it is online").grants);
        let (sees, known) = (self.oracle.sees(user, &grants, id), self.oracle.conversations.get(&id));
        let may = known.is_some_and(|c| c.kind != ConversationKind::Inbox && c.is_member(user));
        let action = Action::SetLevel(packet::SetLevel { level: level.into() });
        let publish = self.next(device, id, Some(action), "");
        if may {
            // It may hold before the answer comes, which may be lost with its connection.
            let head = self.oracle.conversations[&id].head();
            self.devices[device].levels.entry(id).or_default().push((head, level));
        }
        match self.publish(device, &publish) {
            Ok(_) => {
                assert!(may, "user {user} sets a level of {id}");
                self.coverage.count("levels set");
            }
            Err(refusal) if sees => {
                assert!(!may, "user {user} may set a level of {id}: {refusal:?}");
                assert!(matches!(refusal.reason, Reason::Forbidden | Reason::InvalidArgument), "{refusal:?}");
            }
            Err(refusal) => Self::check_unknown(&refusal),
        }
    }

    /// What came is not what the device wanted nothing of when it was published, unless it has wanted it since.
    pub(super) fn check_level(&self, device: usize, id: u64, seq: u64) {
        let levels = self.devices[device].levels.get(&id).map_or(&[][..], Vec::as_slice);
        let held = levels.iter().rev().find(|(head, _)| *head < seq).map_or(Level::Full, |(_, level)| *level);
        let is_lifted = levels.iter().any(|(head, level)| *head >= seq && *level == Level::Full);
        assert!(held == Level::Full || is_lifted, "{id}/{seq} is delivered, and the level is {levels:?}");
    }

    /// A `Head` in the stream says why, and that is so.
    pub(super) fn check_reason(&mut self, device: usize, head: &packet::Head) {
        let of = &self.oracle.conversations[&head.conversation];
        let levels = self.devices[device].levels.get(&head.conversation);
        for seq in head.from_seq..=head.to_seq {
            let is_so = match head.reason() {
                HeadReason::Recalled => of.entries[seq as usize - 1].is_gone,
                HeadReason::Expired => seq < of.first,
                HeadReason::Erased => self.oracle.is_erased_at(head.conversation, seq),
                HeadReason::Withheld => levels.is_some_and(|all| all.iter().any(|(_, level)| *level != Level::Full)),
                _ => false,
            };
            assert!(is_so, "{seq} of {head:?} is not");
        }
        self.coverage.count(match head.reason() {
            HeadReason::Recalled => "heads of what was recalled",
            HeadReason::Expired => "heads of what is kept no more",
            HeadReason::Erased => "heads of what was erased",
            _ => "heads of what is withheld",
        });
    }

    /// Somebody has a user erased, if it may; with a start in the middle, now and then.
    pub(super) fn erase(&mut self) {
        let (user, name) = self.anyone();
        let administers = |at: &usize| self.devices[*at].user_id == self.oracle.admin;
        let device = match (0..self.devices.len()).find(administers) {
            Some(device) if self.rng.u8(0..4) > 0 => device,
            _ => self.rng.usize(0..self.devices.len()),
        };
        let by = self.devices[device].user_id;
        if user == self.oracle.admin || self.devices[device].peer.is_none() {
            return;
        }
        let publish = self.next(device, 0, Some(Action::EraseUser(packet::EraseUser { user: name.into() })), "");
        if by != self.oracle.admin {
            let refusal = self.publish(device, &publish).expect_err("only an administrator has users erased");
            return assert_eq!(refusal.reason, Reason::Forbidden);
        }
        let is_new = !self.oracle.is_erased(user);
        self.gone_before = Some(self.oracle.gone());
        if is_new {
            self.oracle.erase(user);
        }
        self.publish(device, &publish).expect("an administrator has users erased");
        let restart = self.rng.usize(0..2 * ERASE_STEPS);
        for step in 0..if is_new { ERASE_STEPS } else { 0 } {
            if step == restart {
                self.restart();
            }
            self.pass(ERASE_STEP_MS);
            self.turn(true, None);
        }
        self.coverage.count(if is_new { "users erased" } else { "users erased again" });
        for of in 0..self.devices.len() {
            if self.devices[of].user_id != user {
                continue;
            }
            assert!(!self.connect(of), "an erased user is let in");
        }
    }
}
