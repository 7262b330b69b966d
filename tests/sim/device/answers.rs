//! What a device makes of the answers that it gets: to connects, publishes and requests, and to the end of a connection.

use super::*;

impl Device {
    pub(super) fn closed(&mut self, refusal: &Refusal, around: &mut Around<'_>) {
        let wait = u64::from(refusal.retry_after_ms).max(around.rng.u64(1..2_000));
        self.connect_at = around.now + wait;
        match refusal.reason {
            Reason::TakenOver => around.coverage.count("sessions taken over"),
            Reason::RateLimited => around.coverage.count("fights for a device"),
            Reason::HeartbeatTimeout | Reason::HandshakeTimeout => around.coverage.count("peers given up"),
            Reason::AckTimeout => around.coverage.count("acks that never came"),
            Reason::StoreUnavailable => around.coverage.count("connects without a store"),
            Reason::Draining => around.coverage.count("connects while the broker drains"),
            Reason::TokenExpired => {
                around.coverage.count("tokens expired");
                let own = self.held.iter().map(|pass| pass.expires).min().unwrap_or(u64::MAX);
                assert!(own <= around.latest, "{}: its token is good until {own}", self.name);
                self.is_locked_out = true;
            }
            Reason::Revoked => {
                around.coverage.count("tokens revoked");
                let is_erased = around.model.erased_at(&self.user).is_some();
                let was = self.held.iter().any(|pass| around.revoked.contains(&pass.id));
                assert!(was || is_erased, "{}: nobody revoked its token", self.name);
                if is_erased {
                    around.coverage.count("erased users kept out");
                }
                self.is_locked_out = true;
            }
            Reason::IncarnationStale => {
                around.coverage.count("outboxes of an older incarnation");
                assert!(
                    self.is_restored || self.anew > 1 || !around.lost.is_empty(),
                    "{}: it has the newest",
                    self.name
                );
                self.begin_anew();
            }
            Reason::Internal if around.may_fail => {}
            other => panic!("{}/{}: closed with {other:?}: {}", self.user, self.name, refusal.detail),
        }
    }

    pub(super) fn connected(&mut self, connected: packet::Connected, wire: &mut Wire, around: &mut Around<'_>) -> bool {
        wire.codec.set_frame_bytes_max(wire.session.frame_bytes_max());
        let model = around.model;
        if let Some(erased) = model.erased_at(&self.user) {
            assert!(wire.since.0 < erased, "{}: an erased user is let in", self.name);
            return false;
        }
        assert_eq!(model.users.get(&self.user), Some(&connected.user), "the user is who the token says");
        assert_eq!(model.inboxes.get(&connected.user), Some(&connected.inbox), "the inbox is the user's");
        assert_eq!(model.devices.get(&connected.device), Some(&(connected.user, self.name.clone())), "the device");
        self.user_id = connected.user;
        self.device_id = connected.device;
        self.newest_session = connected.session;
        around.coverage.count("connects");
        let verdict = self.check_verdict(&connected, wire, around);
        let started = (around.started)(connected.user, connected.session);
        if verdict == CursorVerdict::Reset {
            around.coverage.count("resets");
            let to = started.unwrap_or([model.tail; 2]);
            self.durable.excused.iter_mut().zip(to).for_each(|(excused, to)| *excused = (*excused).max(to));
        }
        self.had.raise(started.unwrap_or_default());
        self.had.raise(self.durable.excused);
        wire.seen.started = started;
        wire.seen.position = started.unwrap_or_default();
        let own = self.durable.first_unanswered();
        if self.durable.incarnation == 0 {
            self.durable.incarnation = connected.incarnation;
            self.durable.next_id = 1;
        } else {
            assert_eq!(connected.incarnation, self.durable.incarnation, "the incarnation is the one it named");
            assert!(connected.first_unanswered >= own, "the floor is no lower than what was told");
            if self.is_restored || connected.first_unanswered > own {
                assert!(self.is_restored, "{}: the floor {} is above {own}", self.name, connected.first_unanswered);
                around.coverage.count("outboxes restored from a copy");
                self.begin_anew();
                return false;
            }
        }
        wire.connected = Some(connected);
        true
    }

    pub(super) fn refused(&mut self, refusal: &Refusal, wire: &mut Wire, around: &mut Around<'_>) {
        if refusal.request != 0 {
            let asked = wire.requests.remove(&refusal.request).expect("a refusal of what was asked");
            if let Some(packet::request::Op::Refresh(_)) = &asked.op {
                wire.refreshing = None;
            }
            self.check_refused_request(&asked, refusal, around);
            return;
        }
        let message_id = refusal.message_id.0;
        wire.sent.remove(&message_id);
        let id = self.id(message_id);
        let Some(out) = self.durable.outbox.get_mut(&message_id) else { panic!("{id:?} is refused and was settled") };
        around.coverage.count(match refusal.reason {
            Reason::OutcomeUnknown => "outcomes unknown",
            Reason::StoreUnavailable => "publishes without a store",
            Reason::After => "publishes behind an open one",
            _ => "publishes refused",
        });
        assert!(!self.acked.contains_key(&id), "{id:?} was acked and is refused: {refusal:?}");
        match refusal.reason.verdict() {
            Verdict::Retry | Verdict::RetryElsewhere | Verdict::After => {
                // Other refusals say nothing about what became of it before (SPEC R5.4-5).
                match refusal.reason {
                    Reason::OutcomeUnknown => out.is_open = true,
                    Reason::StoreUnavailable => out.is_open = false,
                    _ => {}
                }
                let wait = u64::from(refusal.retry_after_ms).max(around.rng.u64(1..500));
                out.retry_at = around.now + if around.is_calm { 1 } else { wait };
                // Only the commit thread knows what an earlier session has stored.
                let is_sure = refusal.reason == Reason::StoreUnavailable || !out.was_sent;
                if is_sure && !out.is_open && !around.is_calm && around.rng.u8(0..3) == 0 {
                    around.coverage.count("ids given up");
                    around.trace.note(|| format!("{} {} > gives up {message_id}", around.now, self.name));
                    wire.session.give_up(MessageId(message_id));
                    self.never.insert(id, refusal.reason);
                    self.durable.outbox.remove(&message_id);
                }
            }
            Verdict::Stop => {
                let (sent, publish) = (out.first_sent.unwrap_or_default(), out.publish.clone());
                self.check_refusal(refusal, &publish, sent, around);
                self.never.insert(id, refusal.reason);
                self.durable.outbox.remove(&message_id);
            }
        }
    }

    pub(super) fn response(&mut self, response: &packet::Response, wire: &mut Wire, around: &mut Around<'_>) {
        let asked = wire.requests.remove(&response.id).expect("an answer to what was asked");
        let op = asked.op.expect("it asked for something");
        match (&response.result, &op) {
            (Some(response::Result::History(page)), packet::request::Op::History(asked)) => {
                let at = wire.asked.get(&response.id).copied().unwrap_or_default();
                self.check_history(page, asked, at, around);
                around.coverage.count("pages of history");
                let goes_on = around.is_final || (wire.requests.len() < 6 && around.rng.bool());
                if goes_on && page.next_seq != 0 {
                    let next = packet::HistoryRequest { from_seq: page.next_seq, ..*asked };
                    let request =
                        packet::Request { id: wire.next_request, op: Some(packet::request::Op::History(next)) };
                    wire.next_request += 1;
                    wire.asked.insert(request.id, (around.model.tail, around.log_now));
                    wire.requests.insert(request.id, request.clone());
                    wire.session.request(request);
                }
            }
            (Some(response::Result::Conversations(page)), _) => {
                let at = wire.asked.get(&response.id).copied().unwrap_or_default();
                self.check_conversations(page, at, around);
            }
            (Some(response::Result::Members(page)), packet::request::Op::Members(asked)) => {
                let conversation = &around.model.conversations[&asked.conversation];
                let left = conversation.members.get(&self.user_id).map(|m| (m.is_active(), m.left));
                let asked_at = wire.asked.get(&response.id).copied().unwrap_or_default().0;
                let was_in = left.is_some_and(|(is_active, left)| is_active || left >= asked_at);
                assert!(was_in, "{}: the members of {} are none of its affair", self.name, asked.conversation);
                if around.is_final {
                    let active: Vec<_> =
                        conversation.members.iter().filter(|(_, m)| m.is_active()).map(|(u, m)| (*u, m.role)).collect();
                    let told: Vec<_> = page.members.iter().map(|m| (m.user, m.role)).collect();
                    assert_eq!(told, active, "the members are those");
                }
                for member in &page.members {
                    assert_eq!(around.model.name(member.user), Some(member.name.as_str()), "by their names");
                }
            }
            (Some(response::Result::Refresh(_)), packet::request::Op::Refresh(_)) => {
                around.coverage.count("tokens refreshed");
                let pass = wire.refreshing.take().expect("it asked for one");
                wire.before = Some((std::mem::replace(&mut self.pass, pass), around.model.tail));
            }
            (Some(response::Result::Presence(answer)), packet::request::Op::Presence(asked)) => {
                let users: Vec<u64> = answer.users.iter().map(|presence| presence.user).collect();
                let expected = if asked.stop { Vec::new() } else { asked.users.clone() };
                assert_eq!(users, expected, "presence in the order asked for");
                around.coverage.count("presences told");
            }
            (Some(response::Result::Background(_)), packet::request::Op::Background(asked)) => {
                let is_newest =
                    wire.requests.values().all(|r| !matches!(r.op, Some(packet::request::Op::Background(_))));
                if asked.background && is_newest {
                    wire.background = Some(around.model.tail);
                }
            }
            (Some(response::Result::Receipts(page)), packet::request::Op::Receipts(asked)) => {
                let at = wire.asked.get(&response.id).copied().unwrap_or_default().0;
                self.check_receipts(page, asked, at, wire, around);
            }
            (Some(response::Result::Watch(answer)), packet::request::Op::Watch(asked)) => {
                let watched = wire.watching.entry(asked.conversation).or_default();
                let open = watched.last_mut().filter(|(_, to)| *to == u64::MAX);
                match (open, asked.stop) {
                    // What is under way still comes.
                    (Some((_, to)), true) => *to = around.model.conversations[&asked.conversation].head(),
                    (None, false) => watched.push((answer.head_seq, u64::MAX)),
                    _ => {}
                }
            }
            (result, op) => panic!("{result:?} answers {op:?}"),
        }
    }
}
