//! What is worth nothing a moment later (SPEC 16.1): to whom a signal goes, and what waits of signals and of news for a session
//! until its connection has nothing else to write. Small, and newest wins.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use longwire_protocol::limits::{FOLLOWED_MAX, PRESENCES_MAX, SIGNAL_READERS_MAX};
use longwire_protocol::packet::{self, SignalKind};
use longwire_protocol::{ConversationId, Seq, UserId};

use super::outbox::Session;
use super::registry::Registry;
use super::rights;
use super::rows::{Kind, Member};
use super::view::{Reader, Rows as _};
use crate::mutation::Mutation;

/// Signals of conversations that wait for one session.
const WAITING_MAX: usize = 16;
/// Past and present members among whom the present ones are looked for: a group that so many have been in and left carries
/// no signals, since each would be a long walk.
const LISTED_MAX: usize = 10 * SIGNAL_READERS_MAX;

/// The sessions that a signal of this one goes to now: nobody where it may not publish. Costs a look at each member, of
/// whom there are few where signals are carried at all.
pub fn recipients(rows: &Reader<'_>, registry: &Registry, session: &Session, id: ConversationId) -> Vec<Arc<Session>> {
    let mut found = Vec::new();
    let may_publish = rights::may_publish(rows, session, id);
    let Ok(conversation) = may_publish else { return found };
    let mut add = |to: &Arc<Session>| {
        if to.number != session.number && to.hears_signals && !to.is_in_background() {
            found.push(Arc::clone(to));
        }
    };
    match conversation.kind {
        Kind::Channel => {
            let mut watching = 0;
            registry.each_watcher(id, |to| {
                watching += 1;
                if watching <= SIGNAL_READERS_MAX && to.grants.load().read.admit(&conversation.label) {
                    add(to);
                }
            });
            if watching > SIGNAL_READERS_MAX {
                found.clear();
            }
        }
        Kind::Direct | Kind::Group => {
            let members = rows.members(id);
            if conversation.members as usize > SIGNAL_READERS_MAX || members.len() > LISTED_MAX {
                return found;
            }
            for user in members {
                let is_member = rows.member(id, *user).is_some_and(Member::is_active);
                if is_member || Mutation::SignalsIgnoreRights.is_planted() {
                    registry.each_of(*user, &mut add);
                }
            }
        }
        Kind::Inbox => {}
    }
    found
}

/// See the module. There is none while nothing waits.
#[derive(Debug, Default)]
pub struct Ephemeral {
    /// Signals of conversations, oldest first.
    signals: VecDeque<packet::Signal>,
    /// News, as they were looked up.
    looked_up: VecDeque<packet::Signal>,
    /// Users whose presence changed, and has to be looked up.
    presences: BTreeMap<UserId, PresenceChange>,
    /// Who acked something, and the conversation that may have been delivered to it.
    delivered: BTreeSet<(ConversationId, UserId)>,
}

/// What changed about a user's presence: one of the two, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PresenceChange {
    /// Whether it is online.
    pub standing: bool,
    /// Who sees it.
    pub audience: bool,
}

impl PresenceChange {
    /// Whether it is online.
    pub const STANDING: Self = Self { standing: true, audience: false };
    /// Who sees it.
    pub const AUDIENCE: Self = Self { standing: false, audience: true };
}

/// What there is to look up for a session.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct News {
    /// See [`Ephemeral::put_presence`].
    pub presences: Vec<(UserId, PresenceChange)>,
    /// See [`Ephemeral::put_delivered`].
    pub delivered: Vec<(ConversationId, UserId)>,
}

impl Ephemeral {
    /// Adds a signal in place of what it makes needless.
    pub fn put(&mut self, signal: packet::Signal) {
        let is_app = |signal: &packet::Signal| signal.kind() == SignalKind::App;
        let key = |signal: &packet::Signal| (signal.conversation, signal.user, is_app(signal));
        self.signals.retain(|waiting| key(waiting) != key(&signal));
        if self.signals.len() == WAITING_MAX {
            self.signals.pop_front();
        }
        self.signals.push_back(signal);
    }

    /// A user's presence may have changed.
    pub fn put_presence(&mut self, user: UserId, change: PresenceChange) {
        if self.presences.len() < PRESENCES_MAX || self.presences.contains_key(&user) {
            let waiting = self.presences.entry(user).or_default();
            waiting.standing |= change.standing;
            waiting.audience |= change.audience;
        }
    }

    /// A conversation may have been delivered to a user.
    pub fn put_delivered(&mut self, conversation: ConversationId, user: UserId) {
        if self.delivered.len() < FOLLOWED_MAX {
            self.delivered.insert((conversation, user));
        }
    }

    /// Whether there is something to be looked up, and nothing looked up waits.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.looked_up.is_empty() && !(self.presences.is_empty() && self.delivered.is_empty())
    }

    /// Takes out what is to be looked up next, at most so many of each kind.
    pub fn take_news(&mut self, most: usize) -> News {
        let next = self.presences.keys().nth(most).copied();
        let rest = next.map_or_else(BTreeMap::new, |user| self.presences.split_off(&user));
        let presences = std::mem::replace(&mut self.presences, rest).into_iter().collect();
        let next = self.delivered.iter().nth(most).copied();
        let rest = next.map_or_else(BTreeSet::new, |next| self.delivered.split_off(&next));
        News { presences, delivered: std::mem::replace(&mut self.delivered, rest).into_iter().collect() }
    }

    /// Adds what was looked up.
    pub fn put_looked_up(&mut self, signals: impl IntoIterator<Item = packet::Signal>) {
        self.looked_up.extend(signals);
    }

    /// The client is told in another way that a conversation was delivered to a user so far: what waits and says no more than
    /// that does not leave.
    pub fn told_delivered(&mut self, conversation: ConversationId, user: UserId, upto: Seq) {
        let of = |signal: &packet::Signal| signal.kind() == SignalKind::Delivered && signal.user == user.0;
        let is_told = |signal: &packet::Signal| signal.conversation == conversation.0 && signal.seq <= upto.0;
        self.looked_up.retain(|signal| !(of(signal) && is_told(signal)));
    }

    /// The client is told in another way how these users stand: what waits is older, and does not leave.
    pub fn told_presences(&mut self, users: &[UserId]) {
        let is_told = |presence: packet::Presence| users.contains(&UserId(presence.user));
        self.looked_up.retain(|signal| !signal.presence.is_some_and(is_told));
    }

    /// What leaves next: news first, since nobody says them again.
    #[must_use]
    pub fn front(&self) -> Option<&packet::Signal> {
        self.looked_up.front().or_else(|| self.signals.front())
    }

    /// It has left.
    pub fn pop(&mut self) {
        if self.looked_up.pop_front().is_none() {
            self.signals.pop_front();
        }
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.front().is_none() && self.presences.is_empty() && self.delivered.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANDING: PresenceChange = PresenceChange::STANDING;
    const AUDIENCE: PresenceChange = PresenceChange::AUDIENCE;

    fn signal(conversation: u64, user: u64, kind: SignalKind) -> packet::Signal {
        packet::Signal { conversation, user, kind: kind as i32, ..packet::Signal::default() }
    }

    fn all(mut ephemeral: Ephemeral) -> Vec<packet::Signal> {
        let next = || {
            let front = ephemeral.front().cloned();
            ephemeral.pop();
            front
        };
        std::iter::from_fn(next).collect()
    }

    /// R16-6: the newest of each user and conversation, `APP` apart from the rest.
    #[test]
    fn the_newest_signal_wins() {
        let mut ephemeral = Ephemeral::default();
        for (user, kind) in [(1, SignalKind::Typing), (1, SignalKind::App), (2, SignalKind::Typing)] {
            ephemeral.put(signal(9, user, kind));
        }
        ephemeral.put(signal(9, 1, SignalKind::Stopped));
        ephemeral.put(signal(8, 1, SignalKind::Typing));
        let (app, typing) = (signal(9, 1, SignalKind::App), signal(9, 2, SignalKind::Typing));
        let (stopped, elsewhere) = (signal(9, 1, SignalKind::Stopped), signal(8, 1, SignalKind::Typing));
        assert_eq!(all(ephemeral), [app, typing, stopped, elsewhere]);
    }

    /// R16-6: what waits is bounded, whoever signals.
    #[test]
    fn the_oldest_signal_goes_when_more_come_than_may_wait() {
        let mut ephemeral = Ephemeral::default();
        (1..=1_000).for_each(|user| ephemeral.put(signal(9, user, SignalKind::Typing)));
        let users: Vec<u64> = all(ephemeral).iter().map(|signal| signal.user).collect();
        assert_eq!(users, (1_000 - WAITING_MAX as u64 + 1..=1_000).collect::<Vec<_>>());
    }

    #[test]
    fn presence_is_looked_up_a_few_users_at_a_time_and_none_is_lost() {
        let both = PresenceChange { standing: true, audience: true };
        let mut ephemeral = Ephemeral::default();
        (1..=5).for_each(|user| ephemeral.put_presence(UserId(user), if user == 4 { AUDIENCE } else { STANDING }));
        ephemeral.put_presence(UserId(2), AUDIENCE);
        assert!(ephemeral.has_news());
        assert_eq!(ephemeral.take_news(2).presences, [(UserId(1), STANDING), (UserId(2), both)]);
        ephemeral.put_looked_up([packet::Signal::default()]);
        assert!(!ephemeral.has_news() && !ephemeral.is_empty());
        ephemeral.pop();
        assert_eq!(
            ephemeral.take_news(10).presences,
            [(UserId(3), STANDING), (UserId(4), AUDIENCE), (UserId(5), STANDING)]
        );
        assert!(ephemeral.is_empty());
        (1..=10_000).for_each(|user| ephemeral.put_presence(UserId(user), STANDING));
        assert_eq!(ephemeral.take_news(usize::MAX).presences.len(), PRESENCES_MAX);
    }

    /// R8-14: what a page of receipts tells is not told again, though it was looked up before and waits.
    #[test]
    fn a_delivery_that_waits_does_not_leave_once_a_page_has_told_it() {
        let delivered = |user, seq| packet::Signal { seq, ..signal(9, user, SignalKind::Delivered) };
        let mut ephemeral = Ephemeral::default();
        ephemeral.put_looked_up([delivered(2, 4), delivered(3, 4), delivered(4, 4)]);
        for (user, upto) in [(2, 4), (3, 5), (4, 3)] {
            ephemeral.told_delivered(ConversationId(9), UserId(user), Seq(upto));
            ephemeral.told_delivered(ConversationId(8), UserId(user), Seq(9));
        }
        assert_eq!(all(ephemeral), [delivered(4, 4)]);
    }

    /// R16-10: what was looked up before an answer that tells of the same user does not leave behind it.
    #[test]
    fn a_presence_that_waits_does_not_leave_once_an_answer_has_told_it() {
        let of = |user| packet::Presence { user, ..packet::Presence::default() };
        let told = |user| packet::Signal { presence: Some(of(user)), ..packet::Signal::default() };
        let mut ephemeral = Ephemeral::default();
        ephemeral.put_looked_up([told(2), told(3), told(2)]);
        ephemeral.told_presences(&[UserId(2), UserId(4)]);
        assert_eq!(all(ephemeral), [told(3)]);
    }

    /// R8-14: many acks of one user are one look, and what waits is bounded.
    #[test]
    fn deliveries_are_looked_up_a_few_at_a_time_and_each_once() {
        let mut ephemeral = Ephemeral::default();
        for user in [3, 1, 3, 2, 3] {
            ephemeral.put_delivered(ConversationId(9), UserId(user));
        }
        let of = |users: &[u64]| users.iter().map(|user| (ConversationId(9), UserId(*user))).collect::<Vec<_>>();
        assert!(ephemeral.has_news() && !ephemeral.is_empty());
        assert_eq!(ephemeral.take_news(2), News { presences: vec![], delivered: of(&[1, 2]) });
        assert_eq!(ephemeral.take_news(2).delivered, of(&[3]));
        assert!(ephemeral.is_empty());
        (1..=10_000).for_each(|user| ephemeral.put_delivered(ConversationId(9), UserId(user)));
        assert_eq!(ephemeral.take_news(usize::MAX).delivered.len(), FOLLOWED_MAX);
    }
}
