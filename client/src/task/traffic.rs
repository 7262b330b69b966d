//! What moves on a connection that stands: everything between session, outbox, requests and intake.

use std::time::Duration;

use longwire_protocol::limits;
use longwire_protocol::packet::{self, request, response};
use longwire_protocol::reason::{Reason, Refusal, Verdict};
use longwire_protocol::session::ClientEvent;
use tokio::time::Instant;

use super::Task;
use super::attempt::COPY;
use super::phase::Phase;
use crate::error::PublishError;
use crate::item::Item;
use crate::link::LinkError;
use crate::signals::Signal;

/// The least and the most that a publish refused for now waits when the broker does not say.
const RETRY_MS: std::ops::Range<u64> = 50..250;
/// An ack request is answered this long before the protocol's limit, whatever the application does.
const ANSWER_AFTER: Duration = Duration::from_millis(limits::ACK_ANSWER_DELAY_MS - 1_000);
/// When a token is refreshed, as a part of its life.
pub(super) const REFRESH_AT: f64 = 0.8;
/// How long a connection that the broker asked to end may go on to get its answers.
const GOAWAY_GRACE: Duration = Duration::from_secs(5);

impl Task {
    /// Moves everything that can move: what was settled, saved, asked and published to the session, what the broker
    /// said to those who wait for it, and what the session has to say to the socket.
    pub(super) fn pump(&mut self) -> Result<(), LinkError> {
        let effects = self.shared.take_effects();
        if let Some(cursor) = effects.cursor {
            self.outbox.keep_cursor(cursor);
        }
        let now = self.millis();
        if let Phase::Online(online) = &mut self.phase {
            let session = &mut online.link.session;
            if effects.express != 0 {
                session.stored(now, packet::Lane::Express, effects.express);
            }
            if effects.bulk != 0 {
                session.stored(now, packet::Lane::Bulk, effects.bulk);
            }
            for k in effects.answers {
                online.asked.retain(|(asked, _)| *asked != k);
                session.answer(k);
            }
        }
        while let Phase::Online(online) = &mut self.phase {
            let Some(event) = online.link.next_event(now)? else { break };
            self.handle_event(event)?;
        }
        self.search();
        self.outbox.save();
        if let Some(settled) = self.outbox.take_settled() {
            self.shared.put_notice(Item::Settled(settled));
        }
        self.send_requests();
        self.send_publishes();
        if let Phase::Online(online) = &mut self.phase {
            online.link.fill(now);
        }
        Ok(())
    }

    pub(super) fn send_publishes(&mut self) {
        let Phase::Online(online) = &mut self.phase else { return };
        let now = Instant::now();
        online.looked_at = now;
        if !online.connected || online.going.is_some() {
            return;
        }
        let session = &mut online.link.session;
        // Around the publish: its frame's length and tag, and the first unanswered id where it moved.
        while let Some(publish) = self.outbox.next_to_send(now, |bytes| session.publish_room().admits(bytes + 24)) {
            session.publish(publish);
        }
    }

    pub(super) fn send_requests(&mut self) {
        let Phase::Online(online) = &mut self.phase else { return };
        if !online.connected {
            return;
        }
        while let Some(request) = self.requests.next_to_send() {
            online.link.session.request(request);
        }
    }

    pub(super) fn handle_event(&mut self, event: ClientEvent) -> Result<(), LinkError> {
        match event {
            ClientEvent::Connected(connected) => self.handle_connected(connected)?,
            ClientEvent::PublishAck(ack) => {
                self.outbox.acked(ack);
            }
            ClientEvent::Refused(refusal) if refusal.message_id.is_some() => self.handle_publish_refused(refusal)?,
            ClientEvent::Refused(refusal) => self.requests.refused(refusal),
            ClientEvent::Closed(refusal) => return Err(LinkError::Refused(refusal)),
            ClientEvent::Items { lane, first_n, items } => {
                let through = first_n + items.len() as u64 - 1;
                let items = items.into_iter().filter_map(|item| Item::from_packet(lane, item)).collect();
                self.shared.put_items(lane, through, items);
            }
            ClientEvent::Cursor(cursor) => self.shared.put_cursor(cursor),
            ClientEvent::AckRequest { k } => {
                if let Phase::Online(online) = &mut self.phase {
                    online.asked.push_back((k, Instant::now() + ANSWER_AFTER));
                }
                self.shared.put_ack_request(k);
            }
            ClientEvent::Response(response) => self.handle_response(response),
            ClientEvent::Signal(signal) => {
                if let Some(signal) = Signal::from_packet(signal) {
                    // An error: nobody listens.
                    drop(self.signals.send(signal));
                }
            }
            ClientEvent::Goaway { retry_after_ms } => {
                if let Phase::Online(online) = &mut self.phase {
                    let away = Duration::from_millis(retry_after_ms.into());
                    online.going = Some((away, Instant::now() + GOAWAY_GRACE));
                }
            }
        }
        // What arrived may be settled at once, and may make room.
        Ok(())
    }

    pub(super) fn handle_publish_refused(&mut self, refusal: Refusal) -> Result<(), LinkError> {
        let id = refusal.message_id.0;
        let now = Instant::now();
        // The id was given to something else, in a life that this outbox does not know (SPEC R5.2-8).
        if matches!(refusal.reason, Reason::StaleId | Reason::IdConflict) && self.outbox.begin_settling() {
            return Err(LinkError::Again(COPY));
        }
        match refusal.reason.verdict() {
            Verdict::Stop => {
                self.outbox.settle(id, Err(PublishError::Refused(refusal)));
            }
            Verdict::After => self.outbox.refused_for_now(id, now, Duration::ZERO, None),
            Verdict::Retry | Verdict::RetryElsewhere => {
                let asked = u64::from(refusal.retry_after_ms).max(self.random.u64(RETRY_MS));
                // Only these two say something about what became of it before (SPEC R5.4-5).
                let surely_not_stored = match refusal.reason {
                    Reason::StoreUnavailable => Some(true),
                    Reason::OutcomeUnknown => Some(false),
                    _ => None,
                };
                self.outbox.refused_for_now(id, now, Duration::from_millis(asked), surely_not_stored);
            }
        }
        Ok(())
    }

    pub(super) fn handle_response(&mut self, response: packet::Response) {
        if let Some(response::Result::Refresh(answer)) = &response.result {
            self.take_token(&answer.token);
        }
        if let (Some(response::Result::Refresh(answer)), Phase::Online(online)) = (&response.result, &mut self.phase)
            && answer.expires_in_ms != 0
        {
            let life = Duration::from_millis(answer.expires_in_ms);
            online.refresh_at = Some(Instant::now() + life.mul_f64(REFRESH_AT));
        }
        // Also those asked for anew on a connection, of which nobody waits for the answer.
        if let Some(response::Result::Presence(answer)) = &response.result {
            for presence in &answer.users {
                drop(self.signals.send(Signal::Presence(*presence)));
            }
        }
        if let Some(response::Result::Receipts(page)) = &response.result {
            for mark in page.marks.iter().filter(|mark| mark.delivered > 0) {
                let (conversation, user, seq) = (mark.conversation, mark.user, mark.delivered);
                drop(self.signals.send(Signal::Delivered { conversation, user, seq }));
            }
        }
        self.requests.answered(response);
    }

    pub(super) fn handle_new_token(&mut self, token: Result<String, String>) {
        self.refreshing = None;
        match token {
            Ok(token) => self.requests.ask(request::Op::Refresh(packet::RefreshRequest { token }), None),
            Err(why) => {
                tracing::warn!(%why, "no new token; the old one is used until it expires");
            }
        }
    }
}
