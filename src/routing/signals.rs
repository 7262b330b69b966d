//! What is worth nothing a moment later (SPEC 16.1): to whom a signal goes, and what waits of signals and presence for a
//! session until its connection has nothing else to write. Small, and newest wins.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use longwire_protocol::limits::{PRESENCES_MAX, SIGNAL_READERS_MAX};
use longwire_protocol::packet::{self, SignalKind};
use longwire_protocol::{ConversationId, UserId};

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
    /// Presence, as it was looked up.
    presences: VecDeque<packet::Signal>,
    /// Users whose presence changed, and has to be looked up; whether because of whom they show it to.
    news: BTreeMap<UserId, bool>,
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
    pub fn put_news(&mut self, user: UserId, is_audience_new: bool) {
        if self.news.len() < PRESENCES_MAX || self.news.contains_key(&user) {
            *self.news.entry(user).or_default() |= is_audience_new;
        }
    }

    /// Whether there is presence to be looked up, and nothing looked up waits.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.presences.is_empty() && !self.news.is_empty()
    }

    /// Takes out what is to be looked up next, at most so many.
    pub fn take_news(&mut self, most: usize) -> Vec<(UserId, bool)> {
        let rest = self.news.keys().nth(most).copied().map_or_else(BTreeMap::new, |user| self.news.split_off(&user));
        std::mem::replace(&mut self.news, rest).into_iter().collect()
    }

    /// Adds what was looked up.
    pub fn put_presences(&mut self, presences: impl IntoIterator<Item = packet::Presence>) {
        self.presences.extend(presences.into_iter().map(|presence| packet::Signal {
            kind: SignalKind::Presence as i32,
            presence: Some(presence),
            ..packet::Signal::default()
        }));
    }

    /// What leaves next: presence first, since nobody says it again.
    #[must_use]
    pub fn front(&self) -> Option<&packet::Signal> {
        self.presences.front().or_else(|| self.signals.front())
    }

    /// It has left.
    pub fn pop(&mut self) {
        if self.presences.pop_front().is_none() {
            self.signals.pop_front();
        }
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.front().is_none() && self.news.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let mut ephemeral = Ephemeral::default();
        (1..=5).for_each(|user| ephemeral.put_news(UserId(user), user == 4));
        ephemeral.put_news(UserId(2), false);
        assert!(ephemeral.has_news());
        assert_eq!(ephemeral.take_news(2), [(UserId(1), false), (UserId(2), false)]);
        ephemeral.put_presences([packet::Presence::default()]);
        assert!(!ephemeral.has_news() && !ephemeral.is_empty());
        ephemeral.pop();
        assert_eq!(ephemeral.take_news(10), [(UserId(3), false), (UserId(4), true), (UserId(5), false)]);
        assert!(ephemeral.is_empty());
        (1..=10_000).for_each(|user| ephemeral.put_news(UserId(user), false));
        assert_eq!(ephemeral.take_news(usize::MAX).len(), PRESENCES_MAX);
    }
}
