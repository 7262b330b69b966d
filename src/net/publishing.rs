//! A session's operations on their way to the commit thread: in order, with what they look at loaded ahead.

use std::sync::{Arc, PoisonError};

use longwire_protocol::packet::{self, publish::Action};
use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::{BrokerSession, ConversationId, MessageId, Millis, Seq};
use prost::Message as _;

use super::Shared;
use super::pump::{Live, blocking, quick};
use crate::auth::password;
use crate::mutation::Mutation;
use crate::routing::allowance::makes;
use crate::routing::catch_up::{Miss, Reads};
use crate::routing::core::{Op, Publish, digest};
use crate::routing::fold::is_countable;
use crate::routing::loading::load;
use crate::routing::rehearsal::rehearse;
use crate::routing::stream::Place;
use crate::routing::view::Rows as _;
use crate::store::{PageLimit, ReadError};

/// How long messages into a conversation need no look whether their rows are at hand: shorter than rows are kept.
const PREPARED_FOR_MS: u64 = 30_000;

impl Live {
    pub(super) fn publish(
        &mut self,
        publish: packet::Publish,
        wire: &mut BrokerSession<Place>,
        shared: &Shared,
        now: Millis,
    ) {
        // Before anything is loaded for it, and before the commit thread hears of it.
        let makes = makes(&publish);
        if makes > 0 {
            let mut allowance = shared.allowance.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(wait_ms) = allowance.charge(self.session.user, makes, now) {
                let refusal = Refusal::publish(MessageId(publish.message_id), Reason::RateLimited);
                let refusal = refusal.because("the user makes too many conversations and members at once");
                return wire.refuse(refusal.retry_after(wait_ms));
            }
        }
        if let Some(Action::SetAccount(set)) = &publish.action
            && !set.password_hash.is_empty()
            && !password::is_hash(&set.password_hash)
        {
            let refusal = Refusal::publish(MessageId(publish.message_id), Reason::InvalidArgument);
            return wire.refuse(refusal.because("a hash is argon2id in the PHC string format, of a bearable cost"));
        }
        let digest = digest(&publish);
        let session = Arc::clone(&self.session);
        let mut publish = Publish { session, publish, digest, mark_countable: None };
        count_mark(&mut publish, quick(shared));
        self.ops.push(Op::Publish(publish));
    }

    /// Hands this turn's operations to the commit thread, once what they look at is at hand: the commit thread shall not
    /// wait for the disk.
    pub(super) fn flush_ops(&mut self, wire: &mut BrokerSession<Place>, shared: &Arc<Shared>, now: Millis) {
        if self.ops.is_empty() {
            return;
        }
        {
            let mut pending = self.session.outbox.lock();
            for op in &self.ops {
                if let Op::Publish(publish) = op {
                    pending.published.add(MessageId(publish.publish.message_id));
                }
            }
        }
        if self.preparing.is_some() {
            return;
        }
        if self.is_prepared(shared, now) {
            return self.queue_ops(wire, shared);
        }
        let Some(reserved) = shared.queue.reserve(&self.ops) else { return self.refuse_ops(wire, shared) };
        let (shared_too, mut ops) = (Arc::clone(shared), std::mem::take(&mut self.ops));
        self.preparing = Some(shared.tasks.run(move || {
            let prepared = prepare(&shared_too, &mut ops);
            drop(reserved);
            prepared.map(|()| ops)
        }));
    }

    /// Queues the operations, or refuses them all when the queue is full.
    pub(super) fn queue_ops(&mut self, wire: &mut BrokerSession<Place>, shared: &Shared) {
        if self.ops.is_empty() || shared.queue.push(&mut self.ops) {
            return;
        }
        self.refuse_ops(wire, shared);
    }

    fn refuse_ops(&mut self, wire: &mut BrokerSession<Place>, shared: &Shared) {
        for op in self.ops.drain(..) {
            match op {
                Op::Publish(publish) => {
                    let id = MessageId(publish.publish.message_id);
                    wire.refuse(Refusal::publish(id, Reason::Overloaded).retry_after(500));
                }
                other => shared.queue.push_one(other),
            }
        }
    }

    fn is_prepared(&mut self, shared: &Shared, now: Millis) -> bool {
        let mut state = None;
        for op in &self.ops {
            let Op::Publish(publish) = op else { continue };
            let conversation = ConversationId(publish.publish.conversation);
            let is_message = publish.publish.action.is_none();
            let was_prepared = |(known, then): (_, Millis)| known == conversation && now.since(then) < PREPARED_FOR_MS;
            if is_message && self.prepared.is_some_and(was_prepared) {
                continue;
            }
            let is_mark = matches!(publish.publish.action, Some(Action::SetMark(_)));
            let state = state.get_or_insert_with(|| shared.state.read().unwrap_or_else(PoisonError::into_inner));
            if !rehearse(state, publish).is_empty() || (is_mark && publish.mark_countable.is_none()) {
                return false;
            }
            if is_message {
                self.prepared = Some((conversation, now));
            }
        }
        true
    }
}

/// Loads what operations look at. Where something cannot be read, none of them is queued: the commit thread would fail
/// everybody's group over it.
fn prepare(shared: &Shared, ops: &mut [Op]) -> Result<(), ReadError> {
    for op in ops {
        let Op::Publish(publish) = op else { continue };
        count_mark(publish, blocking(shared));
        loop {
            let cold = rehearse(&shared.state.read().unwrap_or_else(PoisonError::into_inner), publish);
            if cold.is_empty() {
                break;
            }
            load(&shared.state, &cold)?;
        }
    }
    Ok(())
}

/// Looks up what stands below a mark, and clamps it to the head as it is now. What cannot be read stays open.
fn count_mark(op: &mut Publish, reads: Reads<'_>) {
    if let Some(Action::SetMark(set)) = &mut op.publish.action
        && op.mark_countable.is_none()
        && let Ok((seq, countable)) = countable_at(reads, ConversationId(op.publish.conversation), Seq(set.seq))
    {
        (set.seq, op.mark_countable) = (seq.0, Some(countable));
    }
}

/// A mark's seq, at most the head's, and the countable entries up to it. Reads one entry.
fn countable_at(reads: Reads<'_>, conversation: ConversationId, seq: Seq) -> Result<(Seq, u64), Miss> {
    let head = reads.rows(|rows| rows.conversation(conversation).map(|row| row.head).unwrap_or_default())?;
    if seq >= head.seq {
        let seq = if Mutation::MarkNotClamped.is_planted() { seq } else { head.seq };
        return Ok((seq, head.countable));
    }
    let one = PageLimit { entries: 1, bytes: usize::MAX };
    let found = reads.range(conversation, seq, head.seq, false, one)?;
    Ok(match found.first() {
        Some(entry) if entry.seq == seq => (seq, entry.countable),
        // It has expired: what is left counts from the first entry that is kept.
        Some(entry) => {
            let kind = packet::Item::decode(&entry.item[..]).ok().and_then(|item| match item.kind {
                Some(packet::item::Kind::Entry(entry)) => Some(entry.kind()),
                _ => None,
            });
            (seq, entry.countable - u64::from(kind.is_some_and(is_countable)))
        }
        None => (seq, head.countable),
    })
}
