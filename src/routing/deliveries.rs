//! How far a conversation was delivered to who is in it (SPEC R8-13, R8-14): derived from acks where somebody asks, and
//! never written. Who asks to be told goes the way of [`super::presence`]: an ack leaves a note of its user, if anybody
//! follows that one; [`Registry::tell_deliveries`], which the wheel calls, gives it to the outboxes of followers that may
//! lack something; each connection looks it up with the rights of that moment.
//!
//! Memory follows what is followed, within bounds. While nobody follows anything an ack costs a look at one number.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use longwire_protocol::limits::FOLLOWED_MAX;
use longwire_protocol::reason::Reason;
use longwire_protocol::{ConversationId, Millis, Seq, SessionNumber, UserId};

use super::limits::FOLLOWED_IN_ALL_MAX;
use super::outbox::Session;
use super::reads::{Miss, Reads};
use super::registry::Registry;
use super::rights::{Tells, tells, tells_marks};
use super::rows::{DeviceCursor, Head, Member};
use super::state::State;
use super::view::{Reader, Rows as _};
use crate::mutation::Mutation;
use crate::store::Position;

/// After followers were told of a user's acks they are not told of more for so long.
const QUIET_MS: u64 = 1_000;
/// Followers that are looked at in one call of [`Registry::tell_deliveries`]: less than a millisecond.
const LOOKED_AT_ONCE: usize = 5_000;

/// Up to where a user has acked what its lane of a conversation brought: the device that is farthest, by its session or by
/// what is stored.
#[must_use]
pub fn heard(rows: &Reader<'_>, registry: &Registry, user: UserId, is_express: bool) -> Position {
    let mut most = Position(0);
    let mut hear = |cursor: Option<DeviceCursor>| {
        let position = cursor.map(|cursor| if is_express { cursor.express } else { cursor.bulk });
        most = most.max(position.unwrap_or_default());
    };
    for device in rows.user(user).map_or(&[][..], |row| &row.devices) {
        hear(rows.device(*device).and_then(|row| row.cursor));
    }
    // The rows are held: a session that ends meanwhile is found here, or its cursor was stored before.
    registry.each_of(user, |session| {
        let pending = session.outbox.lock();
        let sent = || DeviceCursor { express: pending.express.sent(), bulk: pending.bulk.sent(), ..pending.stands };
        hear(if Mutation::DeliveredBeforeAck.is_planted() { Some(sent()) } else { pending.acked() });
    });
    most
}

/// The seq up to which a conversation was delivered to who has heard so much, and has set this mark, if that may be told.
///
/// # Errors
/// See [`Miss`].
pub fn delivered(reads: Reads<'_>, id: ConversationId, head: &Head, heard: Position, mark: Seq) -> Result<Seq, Miss> {
    if heard >= head.position {
        return Ok(head.seq);
    }
    let missing = reads.first_after(id, heard)?;
    Ok(missing.map_or(head.seq, |first| Seq(first.0 - 1)).max(mark))
}

/// What counts as delivered of a mark that is hidden: nothing, since it would tell of the mark.
pub(super) fn of_hidden(mark: Seq) -> Seq {
    if Mutation::HiddenMarksDelivered.is_planted() { mark } else { Seq(0) }
}

/// What there is to tell a follower of these users: nothing where it may not know, or nothing new. What is given is noted
/// as told.
///
/// # Errors
/// See [`Miss`]; then nothing is noted, and it may be asked again.
pub fn news(
    reads: Reads<'_>,
    registry: &Registry,
    session: &Session,
    of: &[(ConversationId, UserId)],
) -> Result<Vec<(ConversationId, UserId, Seq)>, Miss> {
    let mut news = Vec::new();
    for &(id, user) in of {
        let known = reads.rows(|rows| {
            let conversation = rows.conversation(id).filter(|conversation| tells_marks(conversation))?;
            let is_in = |own: &&Member| own.is_active() || Mutation::DeliveriesIgnoreRights.is_planted();
            rows.member(id, session.user).filter(is_in)?;
            let member = rows.member(id, user).filter(|member| member.is_active())?;
            let mark = match tells(rows, conversation, user, session.user) {
                Tells::Marks => member.mark,
                Tells::Deliveries => of_hidden(member.mark),
                Tells::Nothing(_) => return None,
            };
            Some((conversation.head, mark, heard(rows, registry, user, conversation.kind.is_express())))
        })?;
        if let Some((head, mark, heard)) = known {
            news.push((id, user, delivered(reads, id, &head, heard, mark)?));
        }
    }
    news.retain(|(id, user, seq)| registry.deliveries.note_told(session.number, *id, *user, *seq));
    Ok(news)
}

/// Who follows whom; see the module.
#[derive(Debug, Default)]
pub struct Deliveries {
    followed: Mutex<AllFollowed>,
    /// How many follow in all, to be looked at without the lock.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct AllFollowed {
    users: HashMap<UserId, Followed>,
    /// What each session follows.
    by_session: HashMap<SessionNumber, BTreeSet<(ConversationId, UserId)>>,
    /// When to tell of whom; each as its `Followed` says.
    looks: BTreeSet<(Millis, UserId)>,
    /// Whose telling was interrupted, and behind which follower.
    telling: Option<(UserId, (SessionNumber, ConversationId))>,
}

#[derive(Debug, Default)]
struct Followed {
    /// Ascending by session and conversation.
    by: Vec<Follower>,
    quiet_until: Millis,
    look: Option<Millis>,
}

#[derive(Clone, Debug)]
struct Follower {
    session: Arc<Session>,
    conversation: ConversationId,
    /// Up to where it was told.
    told: Seq,
}

impl Follower {
    fn key(&self) -> (SessionNumber, ConversationId) {
        (self.session.number, self.conversation)
    }
}

impl AllFollowed {
    fn follower(&mut self, session: SessionNumber, id: ConversationId, user: UserId) -> Option<&mut Follower> {
        let by = &mut self.users.get_mut(&user)?.by;
        let at = by.binary_search_by_key(&(session, id), Follower::key).ok()?;
        by.get_mut(at)
    }

    /// Whom to tell of next, and behind which follower.
    fn next(&mut self, now: Millis) -> Option<(UserId, (SessionNumber, ConversationId))> {
        if let Some(telling) = self.telling.take() {
            return Some(telling);
        }
        let (_, user) = self.looks.first().copied().filter(|(at, _)| *at <= now)?;
        self.looks.pop_first();
        if let Some(followed) = self.users.get_mut(&user) {
            (followed.look, followed.quiet_until) = (None, now.after(QUIET_MS));
        }
        Some((user, Default::default()))
    }

    /// Ends what a session follows, but for what is kept; returns how much that was.
    fn unfollow(&mut self, session: SessionNumber, keeps: impl Fn(ConversationId) -> bool) -> usize {
        let Some(of_session) = self.by_session.get_mut(&session) else { return 0 };
        let ended: Vec<_> = of_session.iter().copied().filter(|(id, _)| !keeps(*id)).collect();
        of_session.retain(|(id, _)| keeps(*id));
        if of_session.is_empty() {
            self.by_session.remove(&session);
        }
        for (id, user) in &ended {
            let Some(followed) = self.users.get_mut(user) else { continue };
            followed.by.retain(|follower| follower.key() != (session, *id));
            if followed.by.is_empty()
                && let Some(Followed { look: Some(at), .. }) = self.users.remove(user)
            {
                self.looks.remove(&(at, *user));
            }
        }
        ended.len()
    }
}

impl Deliveries {
    fn lock(&self) -> MutexGuard<'_, AllFollowed> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody follows anyone.
    fn is_any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// A device of a user acked something.
    pub fn acked(&self, user: UserId, now: Millis) {
        if !self.is_any() || Mutation::DeliveriesForgotten.is_planted() {
            return;
        }
        let mut all = self.lock();
        let Some(followed) = all.users.get_mut(&user).filter(|followed| followed.look.is_none()) else { return };
        let at = now.max(followed.quiet_until);
        followed.look = Some(at);
        all.looks.insert((at, user));
    }

    /// From here on the session is told of these users in a conversation.
    ///
    /// # Errors
    /// *quota exceeded* where they are too many for it, *overloaded* for all; then nothing has changed.
    pub fn follow(&self, session: &Arc<Session>, id: ConversationId, users: &[UserId]) -> Result<(), Reason> {
        let mut all = self.lock();
        let had = all.by_session.get(&session.number);
        let new = users.iter().filter(|user| had.is_none_or(|had| !had.contains(&(id, **user))));
        let new: BTreeSet<UserId> = new.copied().collect();
        if had.map_or(0, BTreeSet::len) + new.len() > FOLLOWED_MAX {
            return Err(Reason::QuotaExceeded);
        }
        if self.count.load(Ordering::Relaxed) + new.len() > FOLLOWED_IN_ALL_MAX {
            return Err(Reason::Overloaded);
        }
        for user in &new {
            let by = &mut all.users.entry(*user).or_default().by;
            let at = by.partition_point(|follower| follower.key() < (session.number, id));
            by.insert(at, Follower { session: Arc::clone(session), conversation: id, told: Seq(0) });
        }
        if !new.is_empty() {
            all.by_session.entry(session.number).or_default().extend(new.iter().map(|user| (id, *user)));
            self.count.fetch_add(new.len(), Ordering::Relaxed);
        }
        Ok(())
    }

    /// The session is told of nobody in this conversation any more.
    pub fn unfollow(&self, session: SessionNumber, id: ConversationId) {
        let ended = self.lock().unfollow(session, |followed| followed != id);
        self.count.fetch_sub(ended, Ordering::Relaxed);
    }

    /// The session is over.
    pub fn went(&self, session: SessionNumber) {
        if self.is_any() {
            let ended = self.lock().unfollow(session, |_| false);
            self.count.fetch_sub(ended, Ordering::Relaxed);
        }
    }

    /// The session is told of a user so far; returns whether that is news to it.
    pub fn note_told(&self, session: SessionNumber, id: ConversationId, user: UserId, seq: Seq) -> bool {
        let mut all = self.lock();
        let Some(follower) = all.follower(session, id, user).filter(|follower| follower.told < seq) else {
            return false;
        };
        follower.told = seq;
        true
    }

    /// Some followers of those who acked something.
    fn due(&self, now: Millis) -> Vec<(UserId, Follower)> {
        let mut due = Vec::new();
        let mut all = self.lock();
        while due.len() < LOOKED_AT_ONCE
            && let Some((user, behind)) = all.next(now)
        {
            let Some(followed) = all.users.get(&user) else { continue };
            let rest = &followed.by[followed.by.partition_point(|follower| follower.key() <= behind)..];
            let some = &rest[..rest.len().min(LOOKED_AT_ONCE - due.len())];
            due.extend(some.iter().map(|follower| (user, follower.clone())));
            if some.len() < rest.len() {
                all.telling = some.last().map(|follower| (user, follower.key()));
            }
        }
        due
    }
}

impl Registry {
    /// Tells followers of whom something was acked since, a bounded number at a time; those alone who were not told of all
    /// that there is in the conversation.
    pub fn tell_deliveries(&self, state: &RwLock<State>, now: Millis) {
        if !self.deliveries.is_any() {
            return;
        }
        let mut due = self.deliveries.due(now);
        {
            let state = state.read().unwrap_or_else(PoisonError::into_inner);
            let rows = Reader::new(&state);
            // What is cold the connection has loaded.
            due.retain(|(_, follower)| {
                rows.conversation(follower.conversation).is_none_or(|row| row.head.seq > follower.told)
            });
        }
        for (user, follower) in due {
            let outbox = &follower.session.outbox;
            outbox.lock().ephemeral.get_or_insert_default().put_delivered(follower.conversation, user);
            outbox.wake();
        }
    }
}

#[cfg(test)]
#[path = "deliveries_tests.rs"]
mod tests;
