//! Receipts for a client: who has read how far, what was delivered to whom, and from then on, if it asks for that, each
//! delivery.

use std::sync::Arc;

use longwire_protocol::packet;
use longwire_protocol::reason::Refusal;
use longwire_protocol::{ConversationId, Seq, UserId};

use super::Shared;
use crate::routing::deliveries::delivered;
use crate::routing::outbox::Session;
use crate::routing::query::{self, Read, Receipt};
use crate::routing::reads::{Miss, Reads};

/// A page of receipts.
pub(super) fn receipts_request(
    reads: Reads<'_>,
    shared: &Shared,
    session: &Arc<Session>,
    request: &packet::ReceiptsRequest,
) -> Result<Result<packet::ReceiptsPage, Refusal>, Miss> {
    let (id, registry) = (ConversationId(request.conversation), &shared.registry);
    if request.stop {
        registry.deliveries.unfollow(session.number, id);
        return Ok(Ok(packet::ReceiptsPage::default()));
    }
    let read = || reads.rows(|rows| query::receipts(rows, registry, session, request));
    let mut page = match read()? {
        Ok(page) => page,
        Err(refusal) => return Ok(Err(refusal)),
    };
    if request.follow {
        let others = page.users.iter().map(|receipt| receipt.user).filter(|user| *user != session.user);
        if let Err(reason) = registry.deliveries.follow(session, id, &others.collect::<Vec<_>>()) {
            return Ok(Err(Refusal::connection(reason).retry_after(1_000)));
        }
        if session.outbox.lock().is_abandoned {
            // The session ended meanwhile, and what it followed was given up before this.
            registry.deliveries.unfollow(session.number, id);
        }
        // Once more: what was acked before that is in here, what is acked from then on is told.
        page = match read()? {
            Ok(page) => page,
            Err(refusal) => return Ok(Err(refusal)),
        };
    }
    let Read { head, users, next } = page;
    let mut marks = Vec::with_capacity(users.len());
    for Receipt { user, mark, least, heard } in users {
        let has = heard.map_or(Ok(least), |heard| delivered(reads, id, &head, heard, least))?;
        registry.deliveries.note_told(session.number, id, user, has);
        marks.push(packet::Mark { conversation: id.0, user: user.0, seq: mark.0, delivered: has.0 });
    }
    if let Some(waiting) = &mut session.outbox.lock().ephemeral {
        for mark in &marks {
            waiting.told_delivered(id, UserId(mark.user), Seq(mark.delivered));
        }
    }
    Ok(Ok(packet::ReceiptsPage { marks, next }))
}
