//! Who is online: the sessions of each user, and the watchers of each channel. The only concurrent map of the broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;
use longwire_protocol::{ConversationId, DeviceId, Millis, Seq, UserId};

use super::deliveries::Deliveries;
use super::outbox::Session;
use super::presence::{Presence, Standing};
use super::push::bell::Bell;

/// What waits in outboxes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Items.
    pub items: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Sessions that read from the log what they were too slow for, or what came while they were away.
    pub sessions_behind: u64,
}

/// See the module. No guard of the maps leaves a statement.
#[derive(Debug, Default)]
pub struct Registry {
    sessions: DashMap<UserId, Vec<Arc<Session>>>,
    watchers: DashMap<ConversationId, Vec<Arc<Session>>>,
    users: AtomicUsize,
    sessions_online: AtomicUsize,
    pub(super) presence: Presence,
    /// Who is told of whose deliveries.
    pub deliveries: Deliveries,
    /// Rung for who tells devices that are away.
    pub bell: Bell,
}

impl Registry {
    /// The session is online.
    pub fn attach(&self, session: &Arc<Session>, now: Millis) {
        {
            // Most users have one device online.
            let mut sessions = self.sessions.entry(session.user).or_insert_with(|| Vec::with_capacity(1));
            if sessions.is_empty() {
                self.users.fetch_add(1, Ordering::Relaxed);
            }
            sessions.push(Arc::clone(session));
        }
        self.sessions_online.fetch_add(1, Ordering::Relaxed);
        self.presence.came(session.user, now);
    }

    /// The session is gone, and watches and follows nothing any more.
    pub fn detach(&self, session: &Arc<Session>, watching: &[(ConversationId, Seq)], now: Millis) {
        let mut is_last = true;
        self.each_of(session.user, |other| is_last &= other.number == session.number);
        // Only this thread attaches and detaches. It is noted before: who looks meanwhile sees one or the other.
        let was = if session.is_in_background() { Standing::Away } else { Standing::Online };
        self.presence.went(session, was, is_last, now);
        self.deliveries.went(session.number);
        if let Some(mut sessions) = self.sessions.get_mut(&session.user) {
            let before = sessions.len();
            sessions.retain(|s| s.number != session.number);
            self.sessions_online.fetch_sub(before - sessions.len(), Ordering::Relaxed);
            if sessions.is_empty() {
                self.users.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.sessions.remove_if(&session.user, |_, sessions| sessions.is_empty());
        for (conversation, _) in watching {
            self.unwatch(*conversation, session);
        }
    }

    /// A device said where it has itself told, or that it is told no more: its sessions know, and the bell is rung.
    pub fn set_push(&self, user: UserId, device: DeviceId, is_told: bool) {
        self.each_of(user, |session| {
            if session.device == device {
                session.outbox.lock().is_told = is_told;
            }
        });
        self.bell.set(user, device);
    }

    /// Calls `each` for every session of a user.
    pub fn each_of(&self, user: UserId, mut each: impl FnMut(&Arc<Session>)) {
        if let Some(sessions) = self.sessions.get(&user) {
            sessions.iter().for_each(&mut each);
        }
    }

    /// Whether a user has a session.
    #[must_use]
    pub fn is_online(&self, user: UserId) -> bool {
        self.sessions.contains_key(&user)
    }

    /// How many users are online.
    #[must_use]
    pub fn users_online(&self) -> usize {
        self.users.load(Ordering::Relaxed)
    }

    /// How many sessions there are.
    #[must_use]
    pub fn sessions_online(&self) -> usize {
        self.sessions_online.load(Ordering::Relaxed)
    }

    /// How many subscriptions to presence there are.
    #[must_use]
    pub fn presences_watched(&self) -> usize {
        self.presence.subscriptions()
    }

    /// What waits in outboxes for connections to take it. Costs a walk over all sessions; who comes or goes meanwhile may
    /// wait for a part of it.
    #[must_use]
    pub fn backlog(&self) -> Backlog {
        let mut backlog = Backlog::default();
        for sessions in &self.sessions {
            for session in sessions.iter() {
                let pending = session.outbox.lock();
                let lanes = [&pending.express, &pending.bulk];
                backlog.sessions_behind += u64::from(lanes.iter().any(|lane| !lane.is_live()));
                for (items, bytes) in lanes.map(|lane| lane.ready_size()) {
                    backlog.items += items as u64;
                    backlog.bytes += bytes as u64;
                }
            }
        }
        backlog
    }

    /// The users that are online. Costs a walk over all.
    #[must_use]
    pub fn online(&self) -> Vec<UserId> {
        self.sessions.iter().map(|entry| *entry.key()).collect()
    }

    /// Every session. Costs a walk over all.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Session>> {
        self.sessions.iter().flat_map(|entry| entry.value().clone()).collect()
    }

    /// The session wants what comes into the channel from now on.
    pub fn watch(&self, conversation: ConversationId, session: &Arc<Session>) {
        let mut watchers = self.watchers.entry(conversation).or_default();
        if !watchers.iter().any(|s| s.number == session.number) {
            watchers.push(Arc::clone(session));
        }
    }

    /// The session no longer watches the channel.
    pub fn unwatch(&self, conversation: ConversationId, session: &Session) {
        if let Some(mut watchers) = self.watchers.get_mut(&conversation) {
            watchers.retain(|s| s.number != session.number);
        }
        self.watchers.remove_if(&conversation, |_, watchers| watchers.is_empty());
    }

    /// Calls `each` for every session that watches the channel.
    pub fn each_watcher(&self, conversation: ConversationId, mut each: impl FnMut(&Arc<Session>)) {
        if let Some(watchers) = self.watchers.get(&conversation) {
            watchers.iter().for_each(&mut each);
        }
    }
}
