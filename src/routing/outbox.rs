//! The narrow room between routing and a connection: what the commit thread and the feed have for a session, until its
//! task takes it. Bounded: replies by the publish window, ready items by the lanes' limits.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use arc_swap::ArcSwap;
use longwire_protocol::packet::{Connected, PublishAck};
use longwire_protocol::reason::Refusal;
use longwire_protocol::{ConversationId, DeviceId, Incarnation, LogTime, MessageId, Seq, SessionNumber, UserId};

use super::grants::Grants;
use super::levels::Levels;
use super::rows::DeviceCursor;
use super::signals::Ephemeral;
use super::stream::Lane;
use crate::mutation::Mutation;
use crate::store::{Position, SegmentId};

/// A session as routing knows it: fixed from the moment it is attached.
#[derive(Debug)]
pub struct Session {
    /// Its number; a newer one of the same device fences it.
    pub number: SessionNumber,
    /// Its user.
    pub user: UserId,
    /// Its device.
    pub device: DeviceId,
    /// The incarnation its message ids belong to.
    pub incarnation: Incarnation,
    /// The first unanswered message id it named in `Connect`.
    pub first_unanswered: MessageId,
    /// What its token lets it do with channels.
    pub grants: ArcSwap<Grants>,
    /// It wants signals of conversations.
    pub hears_signals: bool,
    /// Nobody looks at the device.
    pub is_background: AtomicBool,
    /// Where its replies and items go.
    pub outbox: Arc<Outbox>,
}

impl Session {
    /// Whether nobody looks at the device.
    #[must_use]
    pub fn is_in_background(&self) -> bool {
        self.is_background.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
impl Session {
    /// A session of its user's only device, for tests.
    pub(crate) fn of_test() -> Self {
        Self {
            number: SessionNumber(1),
            user: UserId(1),
            device: DeviceId(1),
            incarnation: Incarnation(1),
            first_unanswered: MessageId(1),
            grants: ArcSwap::from_pointee(Grants::default()),
            hears_signals: true,
            is_background: false.into(),
            outbox: Arc::new(Outbox::default()),
        }
    }
}

/// What the commit thread answers.
#[derive(Debug)]
pub enum Reply {
    /// The session is attached.
    Attached(Box<Attached>),
    /// A publish was appended.
    Ack(PublishAck),
    /// A publish was refused; or, about no publish, the connection.
    Refused(Refusal),
}

/// The answer to an attach.
#[derive(Debug)]
pub struct Attached {
    /// The session.
    pub session: Arc<Session>,
    /// What to tell the client; the parts that routing knows.
    pub connected: Connected,
    /// Where the device stands by its acks, as far as the broker knows.
    pub cursor: Option<DeviceCursor>,
    /// The generation of tokens that are good for it: its user's, and its own.
    pub generation: Generation,
    /// Tokens made up to then are not.
    pub tokens_until: LogTime,
}

/// Tokens of the broker's own name the generation that they are of: how often those of the user, and those of the device,
/// were taken back when they were made. No clock is as sharp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Generation {
    /// The user's.
    pub user: u32,
    /// The device's.
    pub device: u32,
}

/// What stands in an outbox.
#[derive(Debug)]
pub struct Pending {
    /// Answers, in order.
    pub replies: VecDeque<Reply>,
    /// Lane express.
    pub express: Lane,
    /// Lane bulk.
    pub bulk: Lane,
    /// The connection is to end with this.
    pub closing: Option<Box<Refusal>>,
    /// The broker is draining: come back after so many milliseconds.
    pub goaway: Option<u32>,
    /// The message ids that this session published.
    pub published: Published,
    /// Channels watched by this session alone, each with its head when that began: only what came since is sent.
    pub watching: Vec<(ConversationId, Seq)>,
    /// Where the device stands: by its acks, or where the session started.
    pub stands: DeviceCursor,
    /// The backlog of express, and of bulk, has not ended yet: a `CaughtUp` is owed.
    pub owes_caught_up: [bool; 2],
    /// The replies wait for something that is being loaded.
    pub is_loading: bool,
    /// The connection ended before it was attached, or the session is over.
    pub is_abandoned: bool,
    /// Something was acked.
    pub has_acked: bool,
    /// What its device set.
    pub levels: Levels,
    /// See [`Pending::lifted`]; nothing most of the time.
    pub lifted: Option<Box<Vec<(ConversationId, Position)>>>,
    /// Not everything is delivered: by its levels, or since nobody looks at the device.
    pub withholds: bool,
    /// The device has itself told while it is away: what it acks is stored within a second.
    pub is_told: bool,
    /// What is worth nothing later; nothing most of the time.
    pub ephemeral: Option<Box<Ephemeral>>,
    /// When its connection is to be woken.
    pub alarm: Alarm,
    waker: Option<Waker>,
}

/// When a connection is to be woken, in slots of the wheel; `u32::MAX` is never.
#[derive(Clone, Copy, Debug)]
pub struct Alarm {
    /// When that is.
    pub due: u32,
    /// When the wheel looks at it next: not later than it is due.
    pub visit: u32,
}

impl Default for Alarm {
    fn default() -> Self {
        Self { due: u32::MAX, visit: u32::MAX }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Outbox {
    pending: Mutex<Pending>,
}

impl Default for Outbox {
    fn default() -> Self {
        let pending = Pending {
            replies: VecDeque::new(),
            express: Lane::behind(Position(0)),
            bulk: Lane::behind(Position(0)),
            closing: None,
            goaway: None,
            published: Published::default(),
            watching: Vec::new(),
            stands: DeviceCursor { segment: SegmentId(0), express: Position(0), bulk: Position(0) },
            owes_caught_up: [true, true],
            is_loading: false,
            is_abandoned: false,
            has_acked: false,
            levels: Levels::default(),
            lifted: None,
            withholds: false,
            is_told: false,
            ephemeral: None,
            alarm: Alarm::default(),
            waker: None,
        };
        Self { pending: Mutex::new(pending) }
    }
}

impl Outbox {
    /// What stands in it. Held for a few instructions only, never across an await.
    pub fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the connection's task.
    pub fn wake(&self) {
        let waker = self.lock().take_waker();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends the connection with a refusal, and wakes its task.
    pub fn close(&self, refusal: Refusal) {
        self.lock().closing.get_or_insert_with(|| Box::new(refusal));
        self.wake();
    }
}

impl Pending {
    /// Remembers whom to wake.
    pub fn register(&mut self, context: &Context<'_>) {
        match &self.waker {
            Some(waker) if waker.will_wake(context.waker()) => {}
            _ => self.waker = Some(context.waker().clone()),
        }
    }

    /// Whom to wake, once, and not while the outbox is locked; `None` if someone else does.
    pub fn take_waker(&mut self) -> Option<Waker> {
        self.waker.take()
    }

    /// Gives back memory that nothing uses.
    pub fn shrink(&mut self) {
        self.express.shrink();
        self.bulk.shrink();
    }

    /// The session starts from this cursor.
    pub fn start(&mut self, cursor: DeviceCursor) {
        self.stands = cursor;
        self.express.start(cursor.express);
        self.bulk.start(cursor.bulk);
    }

    /// Where the device stands by its acks; `None` while nothing was acked.
    #[must_use]
    pub fn acked(&self) -> Option<DeviceCursor> {
        self.has_acked.then_some(self.stands)
    }

    /// The lane of a conversation's kind.
    pub fn lane(&mut self, is_express: bool) -> &mut Lane {
        if is_express { &mut self.express } else { &mut self.bulk }
    }

    /// The head of a watched channel when that began.
    #[must_use]
    pub fn watched_since(&self, conversation: ConversationId) -> Option<Seq> {
        self.watching.iter().find(|(watched, _)| *watched == conversation).map(|(_, since)| *since)
    }

    /// The device has stored the content of what it published under this id: this session sent it, or it named a later
    /// id as its first unanswered.
    #[must_use]
    pub fn device_has(&self, session: &Session, incarnation: Incarnation, id: MessageId) -> bool {
        incarnation == session.incarnation && (id < session.first_unanswered || self.published.has(id))
    }
}

/// Stretches of ids that are remembered; what is forgotten is sent with its content, which is only needless.
const STRETCHES_MAX: usize = 32;

/// Message ids that a session published. They rise, and what lies between two of them may have been answered before:
/// so they are stretches, most often one.
#[derive(Debug, Default)]
pub struct Published(Vec<(MessageId, MessageId)>);

impl Published {
    /// Adds one.
    pub fn add(&mut self, id: MessageId) {
        if self.has(id) {
            return;
        }
        match self.0.last_mut() {
            Some((_, high)) if high.next() == id => *high = id,
            _ => {
                if self.0.len() == STRETCHES_MAX {
                    self.0.remove(0);
                }
                self.0.push((id, id));
            }
        }
    }

    /// Whether this one was published.
    #[must_use]
    pub fn has(&self, id: MessageId) -> bool {
        if Mutation::OwnWithoutContent.is_planted() {
            return self.0.first().is_some_and(|(low, _)| *low <= id);
        }
        self.0.iter().rev().any(|(low, high)| *low <= id && id <= *high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was answered in an earlier session lies between ids that are repeated: it is none of this session's.
    #[test]
    fn what_lies_between_published_ids_was_not_published() {
        let mut published = Published::default();
        [4, 6, 7, 6, 9, 5].into_iter().for_each(|id| published.add(MessageId(id)));
        let has: Vec<u64> = (0..12).filter(|id| published.has(MessageId(*id))).collect();
        assert_eq!(has, [4, 5, 6, 7, 9]);
        (10..).step_by(2).take(STRETCHES_MAX + 1).for_each(|id| published.add(MessageId(id)));
        assert!(!published.has(MessageId(4)) && published.has(MessageId(12)), "the oldest are forgotten");
        // In order they are one stretch, however many.
        let ids = 1_000..1_000 + 2 * STRETCHES_MAX as u64;
        ids.clone().for_each(|id| published.add(MessageId(id)));
        assert!(ids.clone().all(|id| published.has(MessageId(id))) && !published.has(MessageId(ids.end)));
    }
}
