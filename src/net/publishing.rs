//! A session's operations on their way to the commit thread: in order, with what they look at loaded ahead.

use std::sync::{Arc, PoisonError};

use longwire_protocol::packet::{self, publish::Action};
use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::{BrokerSession, ConversationId, MessageId, Millis, Seq};
use prost::Message as _;

use super::Shared;
use super::pump::{Live, blocking, quick};
use crate::auth::password;
use crate::metrics::words;
use crate::mutation::Mutation;
use crate::routing::allowance::{Bucket, Charge, Rates, TooEarly, makes};
use crate::routing::fold::is_countable;
use crate::routing::loading::load;
use crate::routing::messages::{target, target_of};
use crate::routing::ops::{Found, Op, Publish, Target, digest, needs_found};
use crate::routing::reads::{Miss, Reads};
use crate::routing::rehearsal::rehearse;
use crate::routing::rights::is_visible;
use crate::routing::stream::Place;
use crate::routing::view::{Reader, Rows as _};
use crate::store::{PageLimit, ReadError};

/// How long messages into a conversation need no look whether their rows are at hand: shorter than rows are kept.
const PREPARED_FOR_MS: u64 = 30_000;

/// What an operation may make to be tried out in the turn of its connection.
const REHEARSED_HERE_MAX: u32 = 32;

/// How often an operation is rehearsed and what it lacks loaded: one row leads to the next, a few times. A cache that is
/// too small lets go of what was loaded; then the commit thread fetches what is missing.
const REHEARSALS_MAX: usize = 8;

impl Live {
    pub(super) fn publish(
        &mut self,
        publish: packet::Publish,
        wire: &mut BrokerSession<Place>,
        shared: &Shared,
        now: Millis,
    ) {
        // Before anything is loaded for it, and before the commit thread hears of it.
        if let Err(too_early) = self.charge(&publish, shared, now) {
            shared.metrics.rate_limited[bucket(too_early.of)].inc();
            let refusal = Refusal::publish(MessageId(publish.message_id), Reason::RateLimited);
            return wire.refuse(refusal.because(too_early.of.words()).retry_after(too_early.wait_ms));
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
        let mut publish = Publish { session, publish, digest, found: None };
        find(&mut publish, quick(shared));
        let leaves = matches!(publish.publish.action, Some(Action::SetWill(_) | Action::SetPush(_)));
        self.ops.push(Op::Publish(publish));
        if leaves {
            let op = self.bear();
            self.ops.push(op);
        }
    }

    /// Charges a publish to whatever has a rate; SPEC R5.3-5, R5.5-10.
    fn charge(&mut self, publish: &packet::Publish, shared: &Shared, now: Millis) -> Result<(), TooEarly> {
        let makes = makes(publish);
        if makes == 0 && shared.rates == Rates::default() {
            return Ok(());
        }
        // A stranger takes nothing of what there may be in a conversation, and does not learn that it is busy.
        let conversation = shared.rates.conversation.and_then(|_| {
            let state = shared.state.read().unwrap_or_else(PoisonError::into_inner);
            let id = ConversationId(publish.conversation);
            is_visible(&Reader::new(&state), &self.session, id).then_some(id)
        });
        let charge =
            Charge { user: self.session.user, conversation, makes, connection_paid_at: &mut self.publishes_paid_at };
        shared.allowance.lock().unwrap_or_else(PoisonError::into_inner).charge(charge, now)
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
            let is_message = publish.publish.action.is_none() && publish.publish.beside.is_none();
            let (known, then) = self.prepared;
            let was_prepared = known.is_some() && known == conversation && now.since(then) < PREPARED_FOR_MS;
            if is_message && was_prepared {
                continue;
            }
            // Trying it out takes as long as deciding it: not on a thread that carries connections.
            if makes(&publish.publish) > REHEARSED_HERE_MAX {
                return false;
            }
            let state = state.get_or_insert_with(|| shared.state.read().unwrap_or_else(PoisonError::into_inner));
            if !rehearse(state, publish, shared.clock.latest()).is_empty()
                || (publish.found.is_none() && needs_found(&publish.publish))
            {
                return false;
            }
            if is_message {
                self.prepared = (conversation, now);
            }
        }
        true
    }
}

/// How it is counted.
fn bucket(of: Bucket) -> words::Bucket {
    match of {
        Bucket::Makes => words::Bucket::Makes,
        Bucket::Connection => words::Bucket::Connection,
        Bucket::User => words::Bucket::User,
        Bucket::Conversation => words::Bucket::Conversation,
    }
}

/// Loads what operations look at. Where something cannot be read, none of them is queued: the commit thread would fail
/// everybody's group over it.
fn prepare(shared: &Shared, ops: &mut [Op]) -> Result<(), ReadError> {
    for op in ops {
        let Op::Publish(publish) = op else { continue };
        find(publish, blocking(shared));
        for _ in 0..REHEARSALS_MAX {
            let time = shared.clock.latest();
            let cold = rehearse(&shared.state.read().unwrap_or_else(PoisonError::into_inner), publish, time);
            if cold.is_empty() {
                break;
            }
            load(&shared.state, &cold)?;
        }
    }
    Ok(())
}

/// Looks up in the log what a publish is about: what stands below a mark, which is clamped to the head as it is now, or an
/// earlier message. What cannot be read stays open.
fn find(op: &mut Publish, reads: Reads<'_>) {
    if op.found.is_some() || !needs_found(&op.publish) {
        return;
    }
    let (conversation, seq) = target_of(&op.publish);
    if let Some(Action::SetMark(set)) = &mut op.publish.action {
        if let Ok((seq, countable)) = countable_at(reads, conversation, Seq(set.seq)) {
            (set.seq, op.found) = (seq.0, Some(Found::Countable(countable)));
        }
    } else if let Ok(target) = target_at(reads, conversation, seq) {
        op.found = Some(Found::Target(target));
    }
}

/// The entry of a conversation at a seq, if it has it.
fn target_at(reads: Reads<'_>, conversation: ConversationId, seq: Seq) -> Result<Option<Target>, Miss> {
    let head = reads.rows(|rows| rows.conversation(conversation).map(|row| row.head.seq).unwrap_or_default())?;
    if seq > head {
        return Ok(None);
    }
    let one = PageLimit { entries: 1, bytes: usize::MAX };
    let found = reads.range(conversation, seq, seq, false, one)?;
    let entry = found.first().filter(|entry| entry.seq == seq);
    Ok(entry.and_then(|entry| target(&entry.item, entry.countable)))
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::sync::{Mutex, RwLock, Weak};

    use bytes::{Bytes, BytesMut};
    use longwire_protocol::packet::packet::Kind;
    use longwire_protocol::{BrokerLimits, Frame, UserId};

    use super::*;
    use crate::net::testing::{live, shared};
    use crate::routing::outbox::Session;
    use crate::routing::rows::{Key, Row};
    use crate::routing::state::State;
    use crate::store::{MemoryLog, Position, SavedState};

    /// A saved state under a cache that holds nothing: whenever it is read, what was read before is let go.
    #[derive(Default)]
    struct Leaky {
        state: Mutex<Weak<Shared>>,
        reads: AtomicUsize,
    }

    impl Leaky {
        fn is_read(&self) {
            assert!(self.reads.fetch_add(1, Relaxed) < 100, "it is loaded over and over");
            if let Some(shared) = self.state.lock().expect("unpoisoned").upgrade() {
                shared.state.write().expect("unpoisoned").forget();
            }
        }
    }

    impl SavedState for Leaky {
        fn get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, ReadError> {
            self.is_read();
            let bob = (Key::UserName("bob".into()).encode(), Row::UserName(UserId(2)).encode());
            Ok(keys.iter().map(|key| (*key == bob.0).then(|| bob.1.clone())).collect())
        }

        fn each(&self, _: &[u8], _: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), ReadError> {
            Ok(())
        }
    }

    /// Whoever is refused for the length of the queue is told when to come again.
    #[test]
    fn an_overloaded_broker_refuses_with_a_wait() {
        let shared = shared(&MemoryLog::new(0, usize::MAX));
        let session = Arc::new(Session::of_test());
        let message = |message_id| {
            let content = Bytes::from_static(&[0; 128 << 10]);
            let publish = packet::Publish { message_id, content, ..packet::Publish::default() };
            Op::Publish(Publish { session: Arc::clone(&session), digest: 0, publish, found: None })
        };
        while shared.queue.push(&mut vec![message(1)]) {}
        let mut wire = BrokerSession::new(Millis(0), BrokerLimits::default());
        let mut says = |kind| drop(wire.handle_frame(Millis(0), Frame::Packet(kind), 10).expect("keeps to the rules"));
        let (token, device) = ("a token".into(), "phone".into());
        says(Kind::Connect(packet::Connect { version: 1, token, device, ..packet::Connect::default() }));
        wire.accept(Millis(0), packet::Connected::default());
        let mut says = |kind| drop(wire.handle_frame(Millis(0), Frame::Packet(kind), 10).expect("keeps to the rules"));
        for message_id in [7, 8] {
            says(Kind::Publish(packet::Publish { message_id, first_unanswered: 7, ..packet::Publish::default() }));
        }
        let mut out = BytesMut::new();
        while wire.poll_transmit(Millis(0), &mut out, usize::MAX) {}
        out.clear();
        let mut live = live(Arc::clone(&session), &shared);
        live.ops = vec![message(7), message(8)];
        live.flush_ops(&mut wire, &shared, Millis(0));
        while wire.poll_transmit(Millis(0), &mut out, usize::MAX) {}
        for id in [7, 8] {
            let packet = packet::Packet::decode_length_delimited(&mut out).expect("a packet").kind;
            let Some(Kind::Refused(refusal)) = packet else { unreachable!("{packet:?}") };
            assert_eq!((refusal.message_id, refusal.code), (id, Reason::Overloaded.number()));
            assert!(refusal.retry_after_ms > 0, "{refusal:?}");
        }
        assert!(out.is_empty() && live.ops.is_empty());
    }

    #[test]
    fn a_cache_that_holds_nothing_does_not_keep_an_operation_from_being_decided() {
        let saved = Arc::new(Leaky::default());
        let state = State::over(Arc::clone(&saved) as Arc<dyn SavedState>, Position(0), 0).expect("reads");
        let mut shared = shared(&MemoryLog::new(0, usize::MAX));
        Arc::get_mut(&mut shared).expect("nobody else has it").state = Arc::new(RwLock::new(state));
        *saved.state.lock().expect("unpoisoned") = Arc::downgrade(&shared);
        let session = Arc::new(Session::of_test());
        let action = Some(Action::OpenDirect(packet::OpenDirect { user: "bob".into() }));
        let publish = packet::Publish { message_id: 1, action, ..packet::Publish::default() };
        let publish = Publish { session, digest: digest(&publish), publish, found: None };
        prepare(&shared, &mut [Op::Publish(publish)]).expect("loads");
        assert!(saved.reads.load(Relaxed) > REHEARSALS_MAX, "it was tried that often");
    }
}
