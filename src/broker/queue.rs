//! The queue in front of the commit thread, and how much of it makes a group.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use longwire_protocol::SessionNumber;
use longwire_protocol::packet::publish::Action;

use crate::routing::core::Op;

/// What an operation takes beside the contents of a publish, about.
const OP_BYTES: usize = 1 << 10;
/// Operations of one group: what one fsync is shared by.
pub(super) const GROUP_OPS_MAX: usize = 1_024;
/// Bytes of one group's contents.
const GROUP_BYTES_MAX: usize = 256 << 10;
/// Bytes of contents that may wait in the queue; beyond, publishes are refused with *overloaded*. Publish windows bound
/// it first: this is what 256 sessions may have under way at once.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// How long a busy commit thread waits for a group to fill.
const GATHER: Duration = Duration::from_millis(1);
/// A group that was as large as this makes the commit thread busy: more is gathered before the next fsync.
const GATHER_FROM_OPS: usize = 32;
/// And they came from as many sessions: a few alone fill their windows no sooner for being waited for.
const GATHER_FROM_SESSIONS: usize = 8;
/// What is gathered at the least while busy.
const GATHER_OPS: usize = 256;

/// The queue in front of the commit thread, filled by connections.
#[derive(Debug, Default)]
pub struct Queue {
    /// Bytes of operations that are being prepared.
    preparing: AtomicUsize,
    waiting: Mutex<Waiting>,
    filled: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    ops: VecDeque<Op>,
    bytes: usize,
    stopping: bool,
}

/// Room that operations take while what they look at is being loaded, given back when this is dropped.
#[derive(Debug)]
pub struct Reserved {
    queue: Arc<Queue>,
    bytes: usize,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.queue.preparing.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Queue {
    /// Reserves room for operations on their way here. `None` when as much is being prepared as may wait in the queue.
    pub fn reserve(self: &Arc<Self>, ops: &[Op]) -> Option<Reserved> {
        let bytes = ops.iter().map(|op| weight(op) + OP_BYTES).sum();
        let reserved = Reserved { queue: Arc::clone(self), bytes };
        let before = self.preparing.fetch_add(bytes, Ordering::Relaxed);
        (before + bytes <= QUEUE_BYTES_MAX).then_some(reserved)
    }

    /// Queues the operations of one turn of a connection, in order. When it is full, gives back those from the first
    /// publish on that does not fit.
    pub fn push(&self, ops: &mut Vec<Op>) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: usize = ops.iter().map(weight).sum();
        if waiting.bytes + bytes > QUEUE_BYTES_MAX && bytes > 0 {
            return false;
        }
        waiting.bytes += bytes;
        let before = waiting.ops.len();
        waiting.ops.extend(ops.drain(..));
        let after = waiting.ops.len();
        drop(waiting);
        if before == 0 || (before < GATHER_OPS && after >= GATHER_OPS) {
            self.filled.notify_one();
        }
        true
    }

    /// Queues one operation that is never refused.
    pub fn push_one(&self, op: Op) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.bytes += weight(&op);
        waiting.ops.push_back(op);
        drop(waiting);
        self.filled.notify_one();
    }

    /// Whether anything waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).ops.is_empty()
    }

    /// Ends the commit thread once everything queued is done.
    pub fn stop(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).stopping = true;
        self.filled.notify_one();
    }

    /// Waits for work at most `patience`; returns whether to go on. While busy it gathers a little more, so that an fsync
    /// and a wake-up serve more publishes.
    pub(super) fn take(&self, group: &mut Vec<Op>, patience: Duration, is_busy: bool) -> bool {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut waiting, _) = self
            .filled
            .wait_timeout_while(waiting, patience, |w| w.ops.is_empty() && !w.stopping)
            .unwrap_or_else(PoisonError::into_inner);
        if is_busy && waiting.ops.len() < GATHER_OPS && !waiting.ops.is_empty() {
            (waiting, _) = self
                .filled
                .wait_timeout_while(waiting, GATHER, |w| w.ops.len() < GATHER_OPS && !w.stopping)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let mut bytes = 0;
        while let Some(op) = waiting.ops.front()
            && group.len() < GROUP_OPS_MAX
            && bytes < GROUP_BYTES_MAX
        {
            bytes += weight(op);
            group.extend(waiting.ops.pop_front());
        }
        waiting.bytes -= bytes;
        !(group.is_empty() && waiting.stopping)
    }
}

/// Whether a group shows the commit thread to be busy: then more is gathered before the next fsync.
pub(super) fn is_busy(group: &[Op]) -> bool {
    group.len() >= GATHER_FROM_OPS && turns(group) >= GATHER_FROM_SESSIONS
}

/// How often the session changes from one publish to the next.
fn turns(group: &[Op]) -> usize {
    let sessions = group.iter().filter_map(|op| match op {
        Op::Publish(publish) => Some(publish.session.number),
        _ => None,
    });
    let mut last = SessionNumber(0);
    sessions.filter(|number| std::mem::replace(&mut last, *number) != *number).count()
}

fn weight(op: &Op) -> usize {
    match op {
        // A group's creation is an entry and an inbox entry for each user that it names.
        Op::Publish(publish) => {
            let named = match &publish.publish.action {
                Some(Action::CreateGroup(create)) => {
                    create.users.iter().map(|u| 2 * u.len() + create.label.len() + 256).sum()
                }
                _ => 0,
            };
            publish.publish.content.len() + 64 + named
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {

    use longwire_protocol::MessageId;
    use longwire_protocol::packet::{self, CreateGroup};

    use super::*;
    use crate::routing::core::Publish;

    use crate::routing::limits::{GROUP_USERS_MAX, LABEL_BYTES_MAX, USER_NAME_BYTES_MAX};
    use crate::routing::outbox::Session;

    fn op(session: &Arc<Session>, action: Option<Action>) -> Op {
        let publish = packet::Publish { action, ..packet::Publish::default() };
        Op::Publish(Publish { session: Arc::clone(session), publish, digest: 0, found: None })
    }

    /// The creation of a group of as many as it may name.
    fn creation(session: &Arc<Session>) -> Op {
        let users = vec!["u".repeat(USER_NAME_BYTES_MAX); GROUP_USERS_MAX];
        op(session, Some(Action::CreateGroup(CreateGroup { label: "l".repeat(LABEL_BYTES_MAX), users })))
    }

    fn take(queue: &Queue) -> Vec<Op> {
        let mut group = Vec::new();
        assert!(queue.take(&mut group, Duration::ZERO, false), "nobody stops it");
        group
    }

    /// Whoever names many users in few bytes makes frames no larger than anybody else.
    #[test]
    fn creations_that_name_many_users_are_groups_of_their_own() {
        let (queue, session) = (Queue::default(), Arc::new(Session::of_test()));
        let mut ops = vec![creation(&session), creation(&session), op(&session, None), op(&session, None)];
        assert!(weight(&ops[0]) > GROUP_BYTES_MAX);
        assert!(queue.push(&mut ops));
        let is_creation = |op: &Op| matches!(op, Op::Publish(p) if p.publish.action.is_some());
        let groups: Vec<Vec<bool>> = (0..3).map(|_| take(&queue).iter().map(is_creation).collect()).collect();
        assert_eq!(groups, [vec![true], vec![true], vec![false, false]]);
    }

    /// And no queue longer than anybody else: it is refused in time, in order and whole, and taken up again once there
    /// is room.
    #[test]
    fn creations_that_name_many_users_fill_the_queue() {
        let (queue, session) = (Queue::default(), Arc::new(Session::of_test()));
        let mut queued = 0;
        loop {
            let mut ops = vec![creation(&session)];
            if !queue.push(&mut ops) {
                assert_eq!(ops.len(), 1, "it is given back");
                break;
            }
            queued += 1;
            assert!(queued * GROUP_BYTES_MAX <= QUEUE_BYTES_MAX, "{queued} creations wait");
        }
        // A `GiveUp` weighs nothing and always passes.
        assert!(queue.push(&mut vec![Op::GiveUp(Arc::clone(&session), MessageId(1))]));
        assert_eq!(take(&queue).len(), 1);
        assert!(queue.push(&mut vec![creation(&session)]), "there is room again");
        let taken = std::iter::repeat_with(|| take(&queue).len()).take_while(|taken| *taken > 0).sum::<usize>();
        assert_eq!(taken, queued + 1, "what was queued, the one after, and the `GiveUp`, less the one taken");
        assert_eq!(queue.waiting.lock().expect("unpoisoned").bytes, 0);
    }

    /// What is being prepared has a bound of its own, and gives its room back however it ends.
    #[test]
    fn what_is_being_prepared_is_bounded_and_gives_its_room_back() {
        let (queue, session) = (Arc::new(Queue::default()), Arc::new(Session::of_test()));
        let creations: Vec<Op> = (0..4).map(|_| creation(&session)).collect();
        let mut reserved = Vec::new();
        while let Some(more) = queue.reserve(&creations) {
            reserved.push(more);
            assert!(reserved.len() * 4 * GROUP_BYTES_MAX <= QUEUE_BYTES_MAX, "{} are prepared", reserved.len());
        }
        assert!(reserved.len() > 10);
        reserved.pop();
        assert!(queue.reserve(&creations).is_some(), "there is room again");
        reserved.clear();
        assert_eq!(queue.preparing.load(Ordering::Relaxed), 0);
    }
}
