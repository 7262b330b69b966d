//! Signals and presence of a live session: what the client sends is carried to others' outboxes, what waits in its own
//! leaves when its connection has nothing else to write. Presence is looked up here, with the rights of the moment.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use longwire_protocol::packet::{self, PresenceState, SignalKind, response};
use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::{BrokerSession, ConversationId, Millis, UserId};

use super::Shared;
use super::pump::{Done, Live, blocking, quick};
use super::requests::{Answer, Job};
use crate::routing::deliveries;
use crate::routing::limits::{SIGNAL_READERS_MAX, USERS_MAX};
use crate::routing::outbox::Session;
use crate::routing::presence::{Knows, knows};
use crate::routing::reads::{Miss, Reads};
use crate::routing::rows::Member;
use crate::routing::signals::{News, recipients};
use crate::routing::stream::Place;
use crate::routing::view::Rows as _;
use crate::store::ReadError;

/// Signals of a client that wait to be carried; what is more is dropped.
const JOBS_MAX: usize = 8;
/// Users whose presence, or deliveries, are looked up at once.
const NEWS_AT_ONCE: usize = 64;
/// Members that are counted before others get at the state.
const COUNTED_AT_ONCE: usize = 1_000;

impl Live {
    /// The client has something to say that is worth nothing later.
    pub(super) fn signal(&mut self, signal: packet::Signal) {
        let waiting = self.jobs.iter().filter(|job| matches!(job, Job::Signal(_))).count();
        if waiting < JOBS_MAX {
            // A copy: it may wait, and would hold all that was read with it.
            let content = Bytes::copy_from_slice(&signal.content);
            let user = self.session.user.0;
            self.jobs.push_back(Job::Signal(packet::Signal { content, user, presence: None, ..signal }));
        }
    }

    /// Looks up that of which there is news: presence and deliveries.
    pub(super) fn look_up_news(&mut self, wire: &mut BrokerSession<Place>, shared: &Arc<Shared>, now: Millis) {
        if !self.has_ephemeral || self.away.is_some() || wire.is_closed() {
            return;
        }
        let news = match &mut self.session.outbox.lock().ephemeral {
            Some(ephemeral) if ephemeral.has_news() => ephemeral.take_news(NEWS_AT_ONCE),
            _ => return,
        };
        match look_up(quick(shared), shared, &self.session, &news, now) {
            Err(Miss::Disk) => {
                let (shared_too, session) = (Arc::clone(shared), Arc::clone(&self.session));
                self.away = Some(shared.tasks.run(move || {
                    match look_up(blocking(&shared_too), &shared_too, &session, &news, now) {
                        Ok(signals) => Done::News(signals),
                        Err(miss) => Done::Failed(failure(miss)),
                    }
                }));
            }
            Err(Miss::Failed(error)) => drop(super::pump::fail(wire, &error)),
            Ok(signals) => self.put_news(signals),
        }
    }

    pub(super) fn put_news(&mut self, signals: Vec<packet::Signal>) {
        self.has_ephemeral = true;
        let mut pending = self.session.outbox.lock();
        pending.ephemeral.get_or_insert_default().put_looked_up(signals);
    }

    /// Whether news wait to be looked up, and may be.
    pub(super) fn has_news(&self) -> bool {
        let may = self.has_ephemeral && self.away.is_none();
        may && self.session.outbox.lock().ephemeral.as_ref().is_some_and(|waiting| waiting.has_news())
    }

    /// Appends what waits, while nothing else does.
    pub(super) fn send_signals(&mut self, wire: &mut BrokerSession<Place>, out: &mut BytesMut, max: usize) {
        if !self.has_ephemeral {
            return;
        }
        let mut pending = self.session.outbox.lock();
        let Some(ephemeral) = &mut pending.ephemeral else {
            self.has_ephemeral = false;
            return;
        };
        while let Some(signal) = ephemeral.front()
            && wire.transmit_signal(signal, out, max)
        {
            ephemeral.pop();
        }
        if ephemeral.is_empty() {
            pending.ephemeral = None;
            self.has_ephemeral = false;
        }
    }

    /// Whether the device is in the background from here on.
    pub(super) fn set_background(&self, is_background: bool, shared: &Shared, now: Millis) {
        if self.session.is_background.swap(is_background, Ordering::Relaxed) != is_background {
            shared.registry.presence_changed(self.session.user, false, now);
            self.session.outbox.lock().set_background(&self.session);
        }
    }
}

/// Carries a signal to who is there and may read it.
pub(super) fn carry(reads: Reads<'_>, shared: &Shared, session: &Session, signal: &packet::Signal) -> Result<(), Miss> {
    let id = ConversationId(signal.conversation);
    let to = reads.rows(|rows| recipients(rows, &shared.registry, session, id))?;
    for session in to {
        session.outbox.lock().ephemeral.get_or_insert_default().put(signal.clone());
        session.outbox.wake();
    }
    Ok(())
}

/// What is told of users of whom there is news: nothing of who is hidden, unless that is the news. Of whom nothing may be
/// known any more the session is told that once, and then no more than if it had never asked.
fn look_up(
    reads: Reads<'_>,
    shared: &Shared,
    session: &Session,
    news: &News,
    now: Millis,
) -> Result<Vec<packet::Signal>, Miss> {
    let mut found = Vec::with_capacity(news.presences.len());
    for &(user, change) in &news.presences {
        // Anew for each, since each may cost a walk over all conversations of one of the two.
        found.push(reads.rows(|rows| {
            let known = knows(rows, session.user, user);
            let shown = (known == Knows::Presence).then(|| shared.registry.presence(rows, user, now));
            (user, change, known, shown)
        })?);
    }
    let mut signals = Vec::new();
    // Behind all that may have to be read once more: it is noted as told.
    for (id, user, seq) in deliveries::news(reads, &shared.registry, session, &news.delivered)? {
        let (conversation, user, kind) = (id.0, user.0, SignalKind::Delivered.into());
        signals.push(packet::Signal { conversation, user, kind, seq: seq.0, ..packet::Signal::default() });
    }
    for (user, change, known, shown) in found {
        let tells = shown.is_some() || change.audience;
        let was_shown = tells && shared.registry.note_shown(session, user, shown.is_some());
        // Who was shown, and is as it was, is no news.
        let presence = match shown {
            Some(presence) => (change.standing || !was_shown).then_some(presence),
            None => was_shown.then(|| hidden(user)),
        };
        if known == Knows::Nothing && change.audience {
            shared.registry.unsubscribe(session, &[user]);
        }
        let kind = SignalKind::Presence.into();
        signals.extend(presence.map(|presence| packet::Signal {
            kind,
            presence: Some(presence),
            ..Default::default()
        }));
    }
    Ok(signals)
}

fn hidden(user: UserId) -> packet::Presence {
    packet::Presence { user: user.0, state: PresenceState::NotShown.into(), last_seen: 0 }
}

fn failure(miss: Miss) -> ReadError {
    match miss {
        Miss::Failed(error) => error,
        Miss::Disk => ReadError("a read that may block did not".into()),
    }
}

/// Answers what the presence of users is, and subscribes to it, or ceases to.
pub(super) fn presence_request(
    reads: Reads<'_>,
    shared: &Shared,
    session: &Arc<Session>,
    request: &packet::PresenceRequest,
) -> Result<Answer, Miss> {
    let users: Vec<UserId> = request.users.iter().take(USERS_MAX).map(|user| UserId(*user)).collect();
    let (audience, hides_marks) = reads.rows(|rows| (rows.audience(session.user), rows.hides_marks(session.user)))?;
    let shown_to = audience.into();
    let answer = |users| {
        let answer = packet::PresenceAnswer { users, shown_to, hides_marks };
        Ok(Answer::Result(response::Result::Presence(answer)))
    };
    if request.stop {
        shared.registry.unsubscribe(session, &users);
        return answer(Vec::new());
    }
    let looked = shared.registry.audience_changes();
    let mut known = Vec::with_capacity(users.len());
    for user in &users {
        // Anew for each, as above.
        known.push(reads.rows(|rows| knows(rows, session.user, *user))?);
    }
    let now = shared.clock.now();
    let in_company = users.iter().zip(&known).filter(|(_, known)| **known != Knows::Nothing);
    let mut some: Vec<(UserId, bool)> = in_company.map(|(user, known)| (*user, *known == Knows::Presence)).collect();
    some.sort_unstable();
    some.dedup();
    let most = reads.rows(|rows| rows.state().quotas.presences)?;
    if let Err(reason) = shared.registry.subscribe(session, &some, most, looked, now) {
        return Ok(Answer::Refused(Refusal::connection(reason).retry_after(1_000)));
    }
    // Of these the answer says the last word, until they are asked for again.
    let strangers = users.iter().zip(&known).filter(|(_, known)| **known == Knows::Nothing);
    shared.registry.unsubscribe(session, &strangers.map(|(user, _)| *user).collect::<Vec<_>>());
    if session.outbox.lock().is_abandoned {
        // The session ended meanwhile, and what it asked for was given up before this.
        shared.registry.unsubscribe(session, &users);
    }
    let mut presences = Vec::with_capacity(users.len());
    for (user, known) in users.iter().zip(known) {
        presences.push(match known {
            Knows::Presence => reads.rows(|rows| shared.registry.presence(rows, *user, now))?,
            Knows::Hidden | Knows::Nothing => hidden(*user),
        });
    }
    if let Some(ephemeral) = &mut session.outbox.lock().ephemeral {
        ephemeral.told_presences(&users);
    }
    answer(presences)
}

/// Counts the members that are online, of whom there may be a hundred thousand: never on a thread that carries
/// connections, and not again for a while.
pub(super) fn online_request(
    reads: Reads<'_>,
    shared: &Shared,
    session: &Session,
    request: packet::OnlineRequest,
) -> Result<Answer, Miss> {
    let id = ConversationId(request.conversation);
    let members = reads.rows(|rows| {
        let is_member = rows.member(id, session.user).is_some_and(Member::is_active);
        rows.conversation(id).filter(|_| is_member).map(|row| row.members)
    })?;
    let refused = |reason| Ok(Answer::Refused(Refusal::connection(reason)));
    match members {
        None => return refused(Reason::UnknownConversation),
        Some(members) if members as usize <= SIGNAL_READERS_MAX => return refused(Reason::Forbidden),
        Some(_) => {}
    }
    let now = shared.clock.now();
    let online = match shared.registry.counted(id, now) {
        Some(online) => online,
        None if !reads.may_block => return Err(Miss::Disk),
        None => {
            let online = count_online(reads, shared, id, now)?;
            shared.registry.note_count(id, online, now);
            online
        }
    };
    Ok(Answer::Result(response::Result::Online(packet::OnlineAnswer { online })))
}

fn count_online(reads: Reads<'_>, shared: &Shared, id: ConversationId, now: Millis) -> Result<u64, Miss> {
    use crate::routing::presence::Standing;
    let (mut online, mut after) = (0, UserId(0));
    loop {
        let some: Vec<UserId> = reads.rows(|rows| {
            let rest = rows.members(id).range((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded));
            rest.take(COUNTED_AT_ONCE).copied().collect()
        })?;
        let Some(last) = some.last().copied() else { return Ok(online) };
        after = last;
        for user in some {
            // Rows of those alone who are there: the others' may be cold.
            let is_there = shared.registry.standing(user, now) != Standing::Offline;
            if is_there && reads.rows(|rows| rows.member(id, user).is_some_and(Member::is_active))? {
                online += 1;
            }
        }
    }
}
