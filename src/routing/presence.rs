//! Presence (SPEC 16.2): who is online follows from the sessions there are; here stands who is told of whom. A change is
//! noted where sessions come and go, and told a moment later by [`Registry::tell_presence`], which the wheel calls: so
//! flaps say nothing, and nobody who comes or goes waits for those who watch. What a session is told it looks up itself,
//! with the rights of that moment; here it only learns of whom there is news.
//!
//! Memory follows the subscriptions and those who left within half a minute; a session that asked for nothing costs none.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longwire_protocol::limits::OFFLINE_AFTER_MS;
use longwire_protocol::packet::{self, Audience, PresenceState, PublishAck};
use longwire_protocol::reason::Reason;
use longwire_protocol::{ConversationId, Millis, SessionNumber, UserId};

use super::change::Change;
use super::draft::{Draft, No, Ticket};
use super::limits::PRESENCES_IN_ALL_MAX;
use super::ops::Effect;
use super::outbox::Session;
use super::query::shares;
use super::registry::Registry;
use super::signals::PresenceChange;
use super::view::{Reader, Rows as _};
use crate::mutation::Mutation;

/// After a user's presence was told it is not told again for so long.
const QUIET_MS: u64 = 2_000;
/// Sessions told in one call of [`Registry::tell_presence`]: some 5 ms.
const TOLD_AT_ONCE: usize = 20_000;
/// How long a count of members that are online holds.
const COUNT_HOLDS_MS: u64 = 10_000;
/// Counts that are kept.
const COUNTS_MAX: usize = 1_000;

/// How a user stands, whoever may know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// No session for half a minute.
    Offline,
    /// All sessions are in the background.
    Away,
    /// A session is in the foreground.
    Online,
}

impl Standing {
    fn wire(self) -> PresenceState {
        match self {
            Self::Offline => PresenceState::Offline,
            Self::Away => PresenceState::Away,
            Self::Online => PresenceState::Online,
        }
    }
}

/// What a user may know of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knows {
    /// They have nothing in common, or there is no such user.
    Nothing,
    /// The presence is not shown.
    Hidden,
    /// The presence.
    Presence,
}

/// What a user may know of another now. Costs a walk over the conversations of the one that is in fewer.
#[must_use]
pub fn knows(rows: &Reader<'_>, asking: UserId, user: UserId) -> Knows {
    let shows = |user, to| match rows.audience(user) {
        Audience::Company => true,
        Audience::Contacts => rows.contact(user, to).is_some() || Mutation::ContactsIgnored.is_planted(),
        Audience::Nobody => false,
    };
    if Mutation::PresenceIgnoresRights.is_planted() || asking == user {
        return Knows::Presence;
    }
    // Who is blocked is told as much as a stranger; of a closed account everybody is, so that nobody knows which it is.
    if !shares(rows, asking, user) || rows.refuses(user, asking) {
        return Knows::Nothing;
    }
    if shows(user, asking) && shows(asking, user) { Knows::Presence } else { Knows::Hidden }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Presence(Mutex<Watch>);

#[derive(Debug, Default)]
struct Watch {
    watched: HashMap<UserId, Watched>,
    /// Whom each session is told of, ascending, and whether what it was told last was shown to it.
    by_session: HashMap<SessionNumber, Vec<(UserId, bool)>>,
    /// Subscriptions in all.
    count: usize,
    /// When to look at whom; each as its `Watched` says.
    looks: BTreeSet<(Millis, UserId)>,
    /// Whose telling was interrupted, behind which session, and of what.
    telling: Option<(UserId, SessionNumber, PresenceChange)>,
    /// Who left lately, when, and how it stood until then.
    left: HashMap<UserId, (Millis, Standing)>,
    left_order: VecDeque<(Millis, UserId)>,
    /// How often anybody was shown to others than before.
    audience_changes: u64,
    /// Who is to be told of whom it sees no more, since it shows itself to others than before.
    changed: BTreeSet<UserId>,
    /// Members of conversations that were online, and when they were counted.
    counts: HashMap<ConversationId, (Millis, u64)>,
}

#[derive(Debug)]
struct Watched {
    /// Ascending by number.
    watchers: Vec<Arc<Session>>,
    told: Standing,
    quiet_until: Millis,
    look: Option<Millis>,
    is_audience_new: bool,
}

impl Watch {
    /// Has a user looked at, if anybody watches it: soon, but not while it has to be quiet about.
    fn look_soon(&mut self, user: UserId, now: Millis) {
        if let Some(watched) = self.watched.get(&user) {
            let at = now.max(watched.quiet_until);
            self.look_at(user, at);
        }
    }

    fn look_at(&mut self, user: UserId, at: Millis) {
        let Some(watched) = self.watched.get_mut(&user) else { return };
        if watched.look.is_some_and(|look| look <= at) {
            return;
        }
        if let Some(later) = watched.look.replace(at) {
            self.looks.remove(&(later, user));
        }
        self.looks.insert((at, user));
    }

    fn unsubscribe(&mut self, session: SessionNumber, user: UserId) {
        let Some(watched) = self.watched.get_mut(&user) else { return };
        if let Ok(at) = watched.watchers.binary_search_by_key(&session, |watcher| watcher.number) {
            watched.watchers.remove(at);
            self.count -= 1;
        }
        if watched.watchers.is_empty()
            && let Some(Watched { look: Some(at), .. }) = self.watched.remove(&user)
        {
            self.looks.remove(&(at, user));
        }
    }

    fn was_before(&self, user: UserId, now: Millis) -> Option<Standing> {
        let is_lately = |(at, _): &&(Millis, Standing)| now.since(*at) < OFFLINE_AFTER_MS;
        self.left.get(&user).filter(is_lately).map(|(_, standing)| *standing)
    }

    /// Whom to tell about next, behind which session, and what changed.
    fn next(&mut self, registry: &Registry, now: Millis) -> Option<(UserId, SessionNumber, PresenceChange)> {
        if let Some(telling) = self.telling.take() {
            return Some(telling);
        }
        while let Some((at, user)) = self.looks.first().copied().filter(|(at, _)| *at <= now) {
            self.looks.remove(&(at, user));
            let (live, before) = (registry.live(user), self.was_before(user, now));
            let standing = live.or(before).unwrap_or(Standing::Offline);
            let Some(watched) = self.watched.get_mut(&user) else { continue };
            watched.look = None;
            let audience = std::mem::take(&mut watched.is_audience_new);
            let change = PresenceChange { standing: standing != watched.told, audience };
            let is_news = change.standing || change.audience;
            if is_news {
                watched.told = standing;
                watched.quiet_until = now.after(QUIET_MS);
            }
            if live.is_none()
                && let Some((left, _)) = self.left.get(&user).filter(|_| before.is_some())
            {
                let offline_at = left.after(OFFLINE_AFTER_MS);
                self.look_at(user, offline_at);
            }
            if is_news {
                return Some((user, SessionNumber(0), change));
            }
        }
        None
    }
}

impl Presence {
    fn lock(&self) -> MutexGuard<'_, Watch> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Subscriptions in all.
    pub(super) fn subscriptions(&self) -> usize {
        self.lock().count
    }

    /// A session came.
    pub(super) fn came(&self, user: UserId, now: Millis) {
        let mut watch = self.lock();
        watch.left.remove(&user);
        watch.look_soon(user, now);
    }

    /// A session went, the last of its user or not.
    pub(super) fn went(&self, session: &Session, was: Standing, is_last: bool, now: Millis) {
        let mut watch = self.lock();
        if is_last {
            watch.left.insert(session.user, (now, was));
            watch.left_order.push_back((now, session.user));
        }
        watch.look_soon(session.user, now);
        for (user, _) in watch.by_session.remove(&session.number).unwrap_or_default() {
            watch.unsubscribe(session.number, user);
        }
    }
}

impl Registry {
    /// How a user's sessions stand; nothing where there are none.
    fn live(&self, user: UserId) -> Option<Standing> {
        let mut live = None;
        self.each_of(user, |session| {
            let standing = if session.is_in_background() { Standing::Away } else { Standing::Online };
            live = live.max(Some(standing));
        });
        live
    }

    /// How a user stands. Who left just now has not.
    #[must_use]
    pub fn standing(&self, user: UserId, now: Millis) -> Standing {
        // In this order: who goes is noted as gone before its session is.
        let before = self.presence.lock().was_before(user, now);
        self.live(user).or(before).unwrap_or(Standing::Offline)
    }

    /// Something changed for a user whose sessions are the same: whether they are in the background, or, with a new
    /// `audience`, who is told.
    pub fn presence_changed(&self, user: UserId, is_audience_new: bool, now: Millis) {
        let mut watch = self.presence.lock();
        watch.audience_changes += u64::from(is_audience_new);
        if let Some(watched) = watch.watched.get_mut(&user) {
            watched.is_audience_new |= is_audience_new;
        }
        watch.look_soon(user, now);
    }

    /// How often anybody was shown to others than before: see [`Self::subscribe`].
    #[must_use]
    pub fn audience_changes(&self) -> u64 {
        self.presence.lock().audience_changes
    }

    /// A user shows its presence to this other no more, who is told so at once, and of nothing later.
    pub fn presence_hidden(&self, user: UserId, from: UserId) {
        let mut told = Vec::new();
        self.each_of(from, |session| told.push(Arc::clone(session)));
        {
            let mut watch = self.presence.lock();
            watch.audience_changes += 1;
            told.retain(|session| {
                let users = watch.by_session.get(&session.number);
                users.is_some_and(|users| users.binary_search_by_key(&user, |(user, _)| *user).is_ok())
            });
        }
        for session in told {
            session.outbox.lock().ephemeral.get_or_insert_default().put_presence(user, PresenceChange::AUDIENCE);
            session.outbox.wake();
        }
    }

    /// A user shows itself to others than before, or is no longer in a conversation that it was in, which may have been the
    /// last that it shared with some: both who is told of it and of whom it is told is looked at, by [`Self::tell_presence`],
    /// once however often it changed until then.
    pub fn audience_changed(&self, user: UserId, now: Millis) {
        self.presence_changed(user, true, now);
        if !Mutation::HiderSeesOn.is_planted() && self.is_online(user) {
            self.presence.lock().changed.insert(user);
        }
    }

    /// The sessions of users whose audience changed look at all whom they are told of, until so many were named.
    fn look_at_changed(&self, watch: &mut Watch, touched: &mut Vec<Arc<Session>>, most: usize) {
        let mut named = 0;
        while named < most
            && let Some(user) = watch.changed.pop_first()
        {
            self.each_of(user, |session| {
                let Some(watched) = watch.by_session.get(&session.number) else { return };
                let mut pending = session.outbox.lock();
                let ephemeral = pending.ephemeral.get_or_insert_default();
                watched.iter().for_each(|(other, _)| ephemeral.put_presence(*other, PresenceChange::AUDIENCE));
                named += watched.len();
                touched.push(Arc::clone(session));
            });
        }
    }

    /// The session is told now whether it is shown a user's presence. Returns whether it was when it was told last; who is
    /// not told of the user was not.
    pub fn note_shown(&self, session: &Session, user: UserId, is_shown: bool) -> bool {
        let mut watch = self.presence.lock();
        let Some(users) = watch.by_session.get_mut(&session.number) else { return false };
        let Ok(at) = users.binary_search_by_key(&user, |(user, _)| *user) else { return false };
        std::mem::replace(&mut users[at].1, is_shown)
    }

    /// From here on the session is told of these users, of `most` in all; each with whether it is shown to it now. That was
    /// looked at after so many [changes](Self::audience_changes): if there were others since, it is looked at again.
    ///
    /// # Errors
    /// *quota exceeded* where they are too many for it, *overloaded* for all; then nothing has changed.
    pub fn subscribe(
        &self,
        session: &Arc<Session>,
        users: &[(UserId, bool)],
        most: usize,
        looked: u64,
        now: Millis,
    ) -> Result<(), Reason> {
        // Before the lock: it is taken for this, too.
        let standings: Vec<_> = users.iter().map(|(user, _)| self.standing(*user, now)).collect();
        let mut watch = self.presence.lock();
        let mut of_session = users.to_vec();
        let before = watch.by_session.get(&session.number);
        let had = before.map_or(0, Vec::len);
        of_session.extend(before.into_iter().flatten());
        // What is said now stands before what was.
        of_session.sort_by_key(|(user, _)| *user);
        of_session.dedup_by_key(|(user, _)| *user);
        if of_session.len() > most {
            return Err(Reason::QuotaExceeded);
        }
        if watch.count + of_session.len() - had > PRESENCES_IN_ALL_MAX {
            return Err(Reason::Overloaded);
        }
        for ((user, _), standing) in users.iter().zip(standings) {
            let watched = watch.watched.entry(*user).or_insert_with(|| Watched {
                watchers: Vec::new(),
                told: standing,
                quiet_until: Millis(0),
                look: None,
                is_audience_new: false,
            });
            if let Err(at) = watched.watchers.binary_search_by_key(&session.number, |watcher| watcher.number) {
                watched.watchers.insert(at, Arc::clone(session));
                watch.count += 1;
            }
            // Who left a moment ago is looked at when that is to be told.
            watch.look_soon(*user, now);
        }
        if !of_session.is_empty() {
            of_session.shrink_to_fit();
            watch.by_session.insert(session.number, of_session);
        }
        if watch.audience_changes != looked {
            let mut pending = session.outbox.lock();
            let ephemeral = pending.ephemeral.get_or_insert_default();
            users.iter().for_each(|(user, _)| ephemeral.put_presence(*user, PresenceChange::AUDIENCE));
            drop(pending);
            drop(watch);
            session.outbox.wake();
        }
        Ok(())
    }

    /// The session is told of these users no more.
    pub fn unsubscribe(&self, session: &Session, users: &[UserId]) {
        let mut watch = self.presence.lock();
        for user in users {
            watch.unsubscribe(session.number, *user);
        }
        if let Some(of_session) = watch.by_session.get_mut(&session.number) {
            of_session.retain(|(user, _)| !users.contains(user));
            if of_session.is_empty() {
                watch.by_session.remove(&session.number);
            }
        }
    }

    /// Tells who watches of what changed since, a bounded number of sessions at a time, and forgets who left long ago.
    pub fn tell_presence(&self, now: Millis) {
        let mut touched: Vec<Arc<Session>> = Vec::new();
        {
            let mut watch = self.presence.lock();
            self.look_at_changed(&mut watch, &mut touched, TOLD_AT_ONCE);
            while touched.len() < TOLD_AT_ONCE
                && let Some((user, behind, change)) = watch.next(self, now)
            {
                let Some(watched) = watch.watched.get(&user) else { continue };
                let from = watched.watchers.partition_point(|watcher| watcher.number <= behind);
                let rest = &watched.watchers[from..];
                let told = &rest[..rest.len().min(TOLD_AT_ONCE - touched.len())];
                for session in told {
                    let mut pending = session.outbox.lock();
                    pending.ephemeral.get_or_insert_default().put_presence(user, change);
                }
                touched.extend(told.iter().cloned());
                if told.len() < rest.len() {
                    watch.telling = told.last().map(|session| (user, session.number, change));
                }
            }
            while let Some((at, user)) = watch.left_order.front().copied()
                && now.since(at) >= OFFLINE_AFTER_MS
            {
                watch.left_order.pop_front();
                if watch.left.get(&user).is_some_and(|(left, _)| *left == at) {
                    watch.left.remove(&user);
                }
            }
            if watch.counts.len() > COUNTS_MAX {
                watch.counts.retain(|_, (at, _)| now.since(*at) < COUNT_HOLDS_MS);
            }
        }
        touched.sort_unstable_by_key(|session| session.number);
        touched.dedup_by_key(|session| session.number);
        for session in touched {
            session.outbox.wake();
        }
    }

    /// How many members of a conversation were online, if they were counted lately.
    #[must_use]
    pub fn counted(&self, id: ConversationId, now: Millis) -> Option<u64> {
        let watch = self.presence.lock();
        watch.counts.get(&id).filter(|(at, _)| now.since(*at) < COUNT_HOLDS_MS).map(|(_, count)| *count)
    }

    /// Keeps such a count for a while.
    pub fn note_count(&self, id: ConversationId, count: u64, now: Millis) {
        self.presence.lock().counts.insert(id, (now, count));
    }

    /// A user's presence for one who may know it.
    #[must_use]
    pub fn presence(&self, rows: &Reader<'_>, user: UserId, now: Millis) -> packet::Presence {
        let standing = self.standing(user, now);
        let seen = if standing == Standing::Offline { rows.seen(user) } else { None };
        packet::Presence { user: user.0, state: standing.wire().into(), last_seen: seen.map_or(0, |time| time.0) }
    }
}

impl Draft<'_, '_> {
    pub(super) fn show_presence(
        &mut self,
        session: &Session,
        ticket: &Ticket,
        show: packet::ShowPresence,
    ) -> Result<PublishAck, No> {
        let audience = Audience::try_from(show.to).map_err(|_| No(Reason::InvalidArgument, "no such audience"))?;
        if self.view.audience(session.user) != audience {
            self.change(&Change::AudienceSet { user: session.user, audience: audience.into() });
            self.effects.push(Effect::Shown(session.user));
        }
        Ok(self.answered(ticket, ConversationId(0), false))
    }
}

#[cfg(test)]
mod tests {
    use arc_swap::ArcSwap;
    use longwire_protocol::{DeviceId, Incarnation, MessageId};

    use super::*;
    use crate::routing::grants::Grants;

    const BEN: UserId = UserId(2);

    fn session(number: u64, user: u64) -> Arc<Session> {
        Arc::new(Session {
            number: SessionNumber(number),
            user: UserId(user),
            device: DeviceId(number),
            incarnation: Incarnation(1),
            first_unanswered: MessageId(1),
            grants: ArcSwap::from_pointee(Grants::default()),
            hears_signals: true,
            is_background: false.into(),
            outbox: Arc::default(),
        })
    }

    /// Of whom there is news for a session, and what.
    fn news(session: &Session) -> Vec<(UserId, PresenceChange)> {
        let mut pending = session.outbox.lock();
        pending.ephemeral.take().map(|mut ephemeral| ephemeral.take_news(usize::MAX).presences).unwrap_or_default()
    }

    /// A registry in which a session of ann's is told of ben, who is online or not.
    fn watching(is_online: bool) -> (Registry, Arc<Session>, Arc<Session>) {
        let (registry, ann, ben) = (Registry::default(), session(1, 1), session(2, 2));
        registry.attach(&ann, Millis(0));
        if is_online {
            registry.attach(&ben, Millis(0));
        }
        registry.subscribe(&ann, &[(BEN, true)], 1, registry.audience_changes(), Millis(0)).expect("room for one");
        registry.tell_presence(Millis(0));
        assert_eq!(news(&ann), [], "what is so is no news");
        (registry, ann, ben)
    }

    /// R16-8: who is away for half a minute is offline then, and not before; who is back in time was not away.
    #[test]
    fn a_short_absence_is_told_to_nobody() {
        let (registry, ann, ben) = watching(true);
        let mut now = Millis(1_000);
        for _ in 0..3 {
            registry.detach(&ben, &[], now);
            now = now.after(OFFLINE_AFTER_MS - 1);
            registry.tell_presence(now);
            assert_eq!(registry.standing(BEN, now), Standing::Online);
            registry.attach(&ben, now);
            now = now.after(OFFLINE_AFTER_MS);
            registry.tell_presence(now);
            assert_eq!(news(&ann), []);
        }
        ben.is_background.store(true, std::sync::atomic::Ordering::Relaxed);
        registry.detach(&ben, &[], now);
        registry.tell_presence(now.after(1));
        assert_eq!(registry.standing(BEN, now.after(1)), Standing::Away, "as it was");
        assert_eq!(news(&ann), [(BEN, PresenceChange::STANDING)]);
        let offline = now.after(OFFLINE_AFTER_MS);
        registry.tell_presence(Millis(offline.0 - 1));
        assert_eq!(news(&ann), []);
        registry.tell_presence(offline);
        assert_eq!(
            (news(&ann), registry.standing(BEN, offline)),
            (vec![(BEN, PresenceChange::STANDING)], Standing::Offline)
        );
        registry.attach(&ben, offline.after(QUIET_MS));
        registry.tell_presence(offline.after(QUIET_MS));
        assert_eq!(news(&ann), [(BEN, PresenceChange::STANDING)], "and back");
    }

    /// R16-10: of one user no more than one in two seconds, and the last one is told.
    #[test]
    fn a_flapping_user_is_told_of_now_and_then() {
        let (registry, ann, ben) = watching(true);
        let mut told = 0;
        for ms in (1..10_000).step_by(100) {
            let is_background = (ms / 100) % 2 == 0;
            ben.is_background.store(is_background, std::sync::atomic::Ordering::Relaxed);
            registry.presence_changed(BEN, false, Millis(ms));
            registry.tell_presence(Millis(ms));
            told += news(&ann).len();
        }
        assert!((1..=5).contains(&told), "{told} in ten seconds");
        ben.is_background.store(true, std::sync::atomic::Ordering::Relaxed);
        registry.presence_changed(BEN, false, Millis(10_000));
        registry.tell_presence(Millis(20_000));
        ben.is_background.store(false, std::sync::atomic::Ordering::Relaxed);
        registry.presence_changed(BEN, false, Millis(30_000));
        news(&ann);
        registry.tell_presence(Millis(30_000));
        assert_eq!(news(&ann), [(BEN, PresenceChange::STANDING)]);
    }

    /// R16-10: what a session asked for ends with it, and costs nothing from then on.
    #[test]
    fn nothing_is_kept_for_who_has_gone() {
        let (registry, ann, ben) = watching(false);
        let cid = session(3, 3);
        registry.attach(&cid, Millis(0));
        registry
            .subscribe(&cid, &[(BEN, true), (UserId(1), true)], 2, registry.audience_changes(), Millis(0))
            .expect("room for two");
        registry.subscribe(&cid, &[(BEN, true)], 2, registry.audience_changes(), Millis(0)).expect("it has that one");
        registry.attach(&ben, Millis(1));
        registry.detach(&ann, &[], Millis(1));
        registry.tell_presence(Millis(1));
        assert_eq!((news(&ann), news(&cid)), (vec![], vec![(BEN, PresenceChange::STANDING)]));
        registry.unsubscribe(&cid, &[UserId(1)]);
        registry.detach(&cid, &[], Millis(2));
        registry.detach(&ben, &[], Millis(2));
        registry.tell_presence(Millis(60_000));
        let watch = registry.presence.lock();
        assert!(watch.watched.is_empty() && watch.by_session.is_empty() && watch.looks.is_empty());
        assert!(watch.left.is_empty() && watch.left_order.is_empty());
        assert_eq!(watch.count, 0);
    }

    /// Whoever half the world watches is told of in pieces, to each once.
    #[test]
    fn many_are_told_a_bounded_number_at_a_time() {
        let (registry, ann, ben) = watching(false);
        let watchers: Vec<_> = (10..10 + TOLD_AT_ONCE as u64 + 100).map(|number| session(number, number)).collect();
        for watcher in &watchers {
            registry
                .subscribe(watcher, &[(BEN, true)], 1, registry.audience_changes(), Millis(0))
                .expect("room for one");
        }
        registry.attach(&ben, Millis(1));
        registry.tell_presence(Millis(1));
        let told = watchers.iter().filter(|watcher| !news(watcher).is_empty()).count();
        assert_eq!(told + news(&ann).len(), TOLD_AT_ONCE);
        registry.tell_presence(Millis(2));
        assert_eq!(watchers.iter().filter(|watcher| !news(watcher).is_empty()).count(), 101);
        registry.tell_presence(Millis(10_000));
        assert!(watchers.iter().all(|watcher| news(watcher).is_empty()), "each once");
    }

    /// R16-12: what a session was told last is known, also where it asks again.
    #[test]
    fn who_was_told_that_nothing_is_shown_is_known() {
        let (registry, ann, _ben) = watching(true);
        assert!(registry.note_shown(&ann, BEN, false), "it was shown");
        assert!(!registry.note_shown(&ann, BEN, false));
        registry.subscribe(&ann, &[(BEN, true)], 1, registry.audience_changes(), Millis(0)).expect("it has that one");
        assert!(registry.note_shown(&ann, BEN, true));
        registry.subscribe(&ann, &[(BEN, false)], 1, registry.audience_changes(), Millis(0)).expect("it has that one");
        assert!(!registry.note_shown(&ann, BEN, true) && registry.note_shown(&ann, BEN, true));
    }

    /// R16-12: who goes, or hides, may be seen no more by who watches it, and see no more whom it watches.
    #[test]
    fn who_is_shown_to_others_than_before_is_looked_at_from_both_sides() {
        let (registry, ann, ben) = watching(true);
        registry
            .subscribe(&ben, &[(UserId(1), true)], 1, registry.audience_changes(), Millis(0))
            .expect("room for one");
        registry.audience_changed(BEN, Millis(5_000));
        registry.tell_presence(Millis(5_000));
        assert_eq!(
            (news(&ann), news(&ben)),
            (vec![(BEN, PresenceChange::AUDIENCE)], vec![(UserId(1), PresenceChange::AUDIENCE)])
        );
    }

    /// R16-12: who hides after it was looked at, and before it is watched, is looked at again; who does so later is told of.
    #[test]
    fn who_hides_before_it_is_watched_is_looked_at_again() {
        let hides: [fn(&Registry); 2] =
            [|registry| registry.audience_changed(BEN, Millis(0)), |registry| registry.presence_hidden(BEN, UserId(3))];
        for hides in hides {
            let (registry, _ann, _ben) = watching(true);
            let cid = session(3, 3);
            registry.attach(&cid, Millis(0));
            let looked = registry.audience_changes();
            registry.presence_changed(BEN, false, Millis(0));
            registry.subscribe(&cid, &[(BEN, true)], 1, looked, Millis(0)).expect("room for one");
            assert_eq!(news(&cid), [], "it shows itself to the same");
            registry.unsubscribe(&cid, &[BEN]);
            hides(&registry);
            assert_eq!(news(&cid), [], "it is not watched");
            registry.subscribe(&cid, &[(BEN, true)], 1, looked, Millis(0)).expect("room for one");
            assert_eq!(news(&cid), [(BEN, PresenceChange::AUDIENCE)]);
        }
    }

    /// R16-12: a user whose audience changes again and again is told once of whom it sees, when there is a turn for that.
    #[test]
    fn who_hides_and_shows_itself_again_and_again_is_told_once() {
        let (registry, _ann, ben) = watching(true);
        registry
            .subscribe(&ben, &[(UserId(1), true)], 1, registry.audience_changes(), Millis(0))
            .expect("room for one");
        for _ in 0..100 {
            registry.audience_changed(BEN, Millis(5_000));
        }
        assert_eq!(news(&ben), [], "not where it is committed");
        registry.tell_presence(Millis(5_000));
        assert_eq!(news(&ben), [(UserId(1), PresenceChange::AUDIENCE)]);
        registry.tell_presence(Millis(6_000));
        assert_eq!(news(&ben), []);
    }

    /// R16-12: a new audience is told of even where the presence is the same.
    #[test]
    fn a_new_audience_is_news() {
        let (registry, ann, _ben) = watching(true);
        registry.presence_changed(BEN, true, Millis(5_000));
        registry.tell_presence(Millis(5_000));
        assert_eq!(news(&ann), [(BEN, PresenceChange::AUDIENCE)]);
        registry.tell_presence(Millis(50_000));
        assert_eq!(news(&ann), []);
    }
}
