//! The queue in front of the commit thread, and how much of it makes a group.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use longwire_protocol::SessionNumber;
use longwire_protocol::packet::{self, publish::Action};

use crate::routing::ops::{Op, Publish};

/// What an operation takes beside the contents of a publish, about.
const OP_BYTES: usize = 1 << 10;
/// Operations of one group: what one fsync is shared by.
pub(super) const GROUP_OPS_MAX: usize = 1_024;
/// Bytes of one group's contents.
const GROUP_BYTES_MAX: usize = 256 << 10;
/// Bytes of contents that may wait in the queue; beyond, publishes are refused with *overloaded*. Publish windows bound
/// it first: this is what 256 sessions may have under way at once.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Users that an operation names from which on it waits beside the others: as many entries, and as many in inboxes.
const LARGE_FROM_NAMED: usize = 32;
/// How long a busy commit thread waits for a group to fill.
const GATHER: Duration = Duration::from_millis(1);
/// A group that was as large as this makes the commit thread busy: more is gathered before the next fsync.
const GATHER_FROM_OPS: usize = 32;
/// And they came from as many sessions: a few alone fill their windows no sooner for being waited for.
const GATHER_FROM_SESSIONS: usize = 8;
/// What is gathered at the least while busy.
const GATHER_OPS: usize = 128;
/// How long the commit thread waits for others where several devices come or go at once, and nothing else is to be done: a
/// connect takes longer than that in any case.
const GATHER_DEVICES: Duration = Duration::from_millis(2);
/// So many of them are not waited with.
const GATHER_DEVICES_OPS: usize = 32;

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
    /// Operations that name many users, each of which the commit thread decides for as long as a thousand messages, and
    /// what their sessions queued behind them. The two take turns: so a message waits for one such operation at the most,
    /// however many there are.
    large: VecDeque<Op>,
    /// How many of those are each session's.
    large_of: HashMap<SessionNumber, usize>,
    /// Whether the next turn is that of [`Waiting::large`].
    is_turn_of_large: bool,
    bytes: usize,
    stopping: bool,
    /// The commit thread waits for more devices that come or go, and for nothing that is in here.
    awaits_devices: bool,
}

impl Waiting {
    /// Whether to wake the commit thread for what was put in here, where so many operations were before. It waits for the
    /// first, for a group that is large enough, or, where it gathers devices, for anything else.
    fn wakes(&self, was_empty: bool, before: usize) -> bool {
        let is_enough = before < GATHER_OPS && self.ops.len() >= GATHER_OPS;
        was_empty || is_enough || (self.awaits_devices && !self.has_devices_alone())
    }

    /// Whether nothing waits but devices that come or go, and few of them.
    fn has_devices_alone(&self) -> bool {
        let has_few = self.ops.len() < GATHER_DEVICES_OPS && self.large.is_empty();
        has_few && !self.stopping && self.ops.iter().all(is_device)
    }

    fn is_empty(&self) -> bool {
        self.ops.is_empty() && self.large.is_empty()
    }

    /// Behind what its session has queued before.
    fn put(&mut self, op: Op) {
        let Some(session) = session(&op) else { return self.ops.push_back(op) };
        if named(&op) >= LARGE_FROM_NAMED || self.large_of.contains_key(&session) {
            *self.large_of.entry(session).or_default() += 1;
            self.large.push_back(op);
        } else {
            self.ops.push_back(op);
        }
    }

    /// Takes a group; returns its bytes.
    fn take(&mut self, group: &mut Vec<Op>) -> usize {
        let is_large = !self.large.is_empty() && (self.is_turn_of_large || self.ops.is_empty());
        self.is_turn_of_large = !is_large;
        let ops = if is_large { &mut self.large } else { &mut self.ops };
        let mut bytes = 0;
        while let Some(op) = ops.front()
            && group.len() < GROUP_OPS_MAX
            && bytes < GROUP_BYTES_MAX
        {
            bytes += weight(op);
            if is_large
                && let Some(session) = session(op)
                && let Entry::Occupied(mut count) = self.large_of.entry(session)
            {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
            group.extend(ops.pop_front());
        }
        bytes
    }
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
        let (was_empty, before) = (waiting.is_empty(), waiting.ops.len());
        ops.drain(..).for_each(|op| waiting.put(op));
        let wakes = waiting.wakes(was_empty, before);
        drop(waiting);
        if wakes {
            self.filled.notify_one();
        }
        true
    }

    /// Queues one operation that is never refused.
    pub fn push_one(&self, op: Op) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.bytes += weight(&op);
        let (was_empty, before) = (waiting.is_empty(), waiting.ops.len());
        waiting.put(op);
        let wakes = waiting.wakes(was_empty, before);
        drop(waiting);
        if wakes {
            self.filled.notify_one();
        }
    }

    /// Bytes of contents that wait.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }

    /// Whether anything waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Ends the commit thread once everything queued is done.
    pub fn stop(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).stopping = true;
        self.filled.notify_one();
    }

    /// A group of what is queued, without waiting; returns whether to go on. For whoever drives the broker by hand.
    pub(crate) fn take_now(&self, group: &mut Vec<Op>) -> bool {
        self.take(group, Duration::ZERO, Gathers::Nothing)
    }

    /// Waits for work at most `patience`; returns whether to go on. While busy it gathers a little more, so that an fsync
    /// and a wake-up serve more publishes, or more devices.
    pub(super) fn take(&self, group: &mut Vec<Op>, patience: Duration, gathers: Gathers) -> bool {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut waiting, _) = self
            .filled
            .wait_timeout_while(waiting, patience, |w| w.is_empty() && !w.stopping)
            .unwrap_or_else(PoisonError::into_inner);
        if gathers == Gathers::Devices && !waiting.is_empty() && waiting.has_devices_alone() {
            waiting.awaits_devices = true;
            (waiting, _) = self
                .filled
                .wait_timeout_while(waiting, GATHER_DEVICES, |w| w.has_devices_alone())
                .unwrap_or_else(PoisonError::into_inner);
            waiting.awaits_devices = false;
        }
        let is_busy = gathers == Gathers::Publishes;
        if is_busy && waiting.ops.len() < GATHER_OPS && !waiting.ops.is_empty() && waiting.large.is_empty() {
            (waiting, _) = self
                .filled
                .wait_timeout_while(waiting, GATHER, |w| w.ops.len() < GATHER_OPS && !w.stopping)
                .unwrap_or_else(PoisonError::into_inner);
        }
        waiting.bytes -= waiting.take(group);
        !(group.is_empty() && waiting.stopping)
    }
}

/// What the commit thread waits for a little before it commits what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gathers {
    Nothing,
    Publishes,
    Devices,
}

impl Gathers {
    /// What a group shows to come in numbers.
    pub(super) fn after(group: &[Op]) -> Self {
        if group.len() >= GATHER_FROM_OPS && turns(group) >= GATHER_FROM_SESSIONS {
            Self::Publishes
        } else if group.len() > 1 && group.iter().all(is_device) {
            Self::Devices
        } else {
            Self::Nothing
        }
    }
}

/// Whether a device comes or goes.
fn is_device(op: &Op) -> bool {
    matches!(op, Op::Attach(_) | Op::Detach(..))
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

/// How many users an operation names.
fn named(op: &Op) -> usize {
    match op {
        Op::Publish(Publish { publish: packet::Publish { action: Some(Action::CreateGroup(create)), .. }, .. }) => {
            create.users.len()
        }
        _ => 0,
    }
}

/// Whose it is; a session that is only coming has nothing queued before.
fn session(op: &Op) -> Option<SessionNumber> {
    match op {
        Op::Publish(publish) => Some(publish.session.number),
        Op::GiveUp(session, _)
        | Op::StoreCursor(session, _)
        | Op::See(session)
        | Op::Bear(session, _)
        | Op::Detach(session, ..) => Some(session.number),
        Op::Attach(_)
        | Op::Retain(_)
        | Op::Fate(..)
        | Op::Sweep(_)
        | Op::Erase(_)
        | Op::Erased(_)
        | Op::SettlePush(_) => None,
    }
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
    use longwire_protocol::packet::CreateGroup;

    use super::*;
    use crate::routing::limits::{GROUP_USERS_MAX, LABEL_BYTES_MAX, USER_NAME_BYTES_MAX};
    use crate::routing::ops::Parting;
    use crate::routing::outbox::Session;

    fn op(session: &Arc<Session>, action: Option<Action>) -> Op {
        let publish = packet::Publish { action, ..packet::Publish::default() };
        Op::Publish(Publish { session: Arc::clone(session), publish, digest: 0, found: None })
    }

    /// The creation of a group of as many as it may name.
    fn creation(session: &Arc<Session>) -> Op {
        let users = vec!["u".repeat(USER_NAME_BYTES_MAX); GROUP_USERS_MAX];
        op(
            session,
            Some(Action::CreateGroup(CreateGroup { label: "l".repeat(LABEL_BYTES_MAX), users, ..Default::default() })),
        )
    }

    fn take(queue: &Queue) -> Vec<Op> {
        let mut group = Vec::new();
        assert!(queue.take_now(&mut group), "nobody stops it");
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

    /// `bench hostile` found messages behind a hundred creations, for seconds.
    #[test]
    fn a_message_waits_for_one_creation_at_the_most_and_nobody_is_overtaken_by_its_own() {
        let session = |number| Arc::new(Session { number: SessionNumber(number), ..Session::of_test() });
        let (queue, [maker, other]) = (Queue::default(), [session(1), session(2)]);
        let whose = |group: Vec<Op>| -> Vec<(u64, bool)> {
            group.iter().map(|op| (super::session(op).map_or(0, |s| s.0), named(op) > 0)).collect()
        };
        assert!(queue.push(&mut (0..3).map(|_| creation(&maker)).collect()));
        queue.push_one(Op::GiveUp(Arc::clone(&maker), MessageId(1)));
        assert!(queue.push(&mut vec![op(&other, None), op(&other, None)]));
        let mut groups = Vec::new();
        while !queue.is_empty() {
            groups.push(whose(take(&queue)));
        }
        let (large, small) = (vec![(1, true)], vec![(2, false), (2, false)]);
        assert_eq!(groups, [small, large.clone(), large.clone(), large, vec![(1, false)]]);
        // Both have something all the time: they take turns.
        for _ in 0..3 {
            assert!(queue.push(&mut vec![creation(&maker), op(&maker, None)]));
            assert!(queue.push(&mut vec![op(&other, None)]));
            assert_eq!(whose(take(&queue)), [(2, false)]);
            assert!(queue.push(&mut vec![op(&other, None)]));
            assert_eq!(whose(take(&queue)), [(1, true)]);
            assert_eq!(whose(take(&queue)), [(2, false)]);
            assert_eq!(whose(take(&queue)), [(1, false)]);
        }
        let waiting = queue.waiting.lock().expect("unpoisoned");
        assert!(waiting.large_of.is_empty() && waiting.bytes == 0, "nothing is left of them: {waiting:?}");
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

    /// Who waits for more devices is woken by whatever else there is to do, and by many of them.
    #[test]
    fn devices_that_come_or_go_together_are_gathered() {
        let session = Arc::new(Session::of_test());
        let device = || Op::Detach(Arc::clone(&session), None, Parting::Lost);
        assert_eq!(Gathers::after(&[device()]), Gathers::Nothing, "one alone waits for nobody");
        assert_eq!(Gathers::after(&[device(), device()]), Gathers::Devices);
        assert_eq!(Gathers::after(&[device(), device(), op(&session, None)]), Gathers::Nothing);

        let waiting = || Waiting { awaits_devices: true, ..Waiting::default() };
        let mut many = waiting();
        let wakes: Vec<bool> = (0..GATHER_DEVICES_OPS)
            .map(|before| {
                many.put(device());
                many.wakes(false, before)
            })
            .collect();
        assert_eq!(wakes.iter().position(|wakes| *wakes), Some(GATHER_DEVICES_OPS - 1));
        let mut mixed = waiting();
        mixed.put(device());
        mixed.put(op(&session, None));
        assert!(mixed.wakes(false, 1), "a publish waits for no device");
        let large = CreateGroup { users: vec!["user".into(); LARGE_FROM_NAMED], ..CreateGroup::default() };
        let mut created = waiting();
        created.put(op(&session, Some(Action::CreateGroup(large))));
        assert!(created.wakes(false, 0), "nor does a group");
        assert!(Waiting { stopping: true, ..waiting() }.wakes(false, 0));
    }
}
