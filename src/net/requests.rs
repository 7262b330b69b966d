//! What a client asks for beside its streams: history and other reads, a new token, items once more.

use std::cell::Cell;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use longwire_protocol::packet::{self, HeadReason, Lane, request, response};
use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::{BrokerSession, ConversationId, Millis, UserId};
use zeroize::Zeroize as _;

use super::Shared;
use super::admission::{grants, proof, token_refusal};
use super::pump::{Done, Live, blocking, fail, quick};
use super::receipts::receipts_request;
use super::signals::{carry, online_request, presence_request};
use crate::auth::TokenError;
use crate::mutation::Mutation;
use crate::routing::account_query;
use crate::routing::alteration::{author, withheld};
use crate::routing::core::is_taken_back;
use crate::routing::items::{head_item, item_for};
use crate::routing::limits::{PROFILES_MAX, USERS_MAX};
use crate::routing::ops::Proof;
use crate::routing::outbox::Session;
use crate::routing::query::{self, Visible};
use crate::routing::reads::{Miss, Reads};
use crate::routing::rows::Kind;
use crate::routing::stream::Place;
use crate::routing::view::{Reader, Rows as _};
use crate::store::PageLimit;

/// What has to be read for a client.
pub(super) enum Job {
    Request(u64, request::Op),
    Resend {
        lane: Lane,
        n: u64,
        place: Place,
    },
    /// Not an answer, but it is looked up in the same way, and waits its turn.
    Signal(packet::Signal),
}

impl Live {
    pub(super) fn request(
        &mut self,
        request: packet::Request,
        wire: &mut BrokerSession<Place>,
        shared: &Shared,
        now: Millis,
    ) {
        let id = request.id;
        match request.op {
            Some(request::Op::Refresh(mut refresh)) => match self.refresh(&mut refresh, shared, now) {
                Ok(answer) => {
                    wire.respond(packet::Response { id, result: Some(response::Result::Refresh(answer)) });
                }
                Err(refusal) => wire.refuse(Refusal { request: id, ..refusal }),
            },
            Some(request::Op::Background(request)) => {
                self.set_background(request.background, shared, now);
                let answer = packet::BackgroundAnswer {};
                wire.respond(packet::Response { id, result: Some(response::Result::Background(answer)) });
            }
            Some(op) => self.jobs.push_back(Job::Request(id, op)),
            None => wire.refuse(Refusal { request: id, ..Refusal::connection(Reason::Unsupported) }),
        }
    }

    fn refresh(
        &mut self,
        refresh: &mut packet::RefreshRequest,
        shared: &Shared,
        now: Millis,
    ) -> Result<packet::RefreshAnswer, Refusal> {
        if refresh.token.is_empty() {
            return self.refresh_own(shared, now);
        }
        let identity = shared.authority.verify(&refresh.token, shared.clock.unix_ms() / 1_000);
        refresh.token.zeroize();
        let identity = identity.map_err(token_refusal)?;
        if identity.user != self.identity.user || identity.device != self.identity.device {
            let refusal = Refusal::connection(Reason::Forbidden);
            return Err(refusal.because("the token is for another user or device"));
        }
        let is_good = match proof(&identity, &shared.clock) {
            Proof::Token { generation: Some(generation), .. } => generation == self.generation,
            Proof::Token { issued, generation: None } => !is_taken_back(issued, self.tokens_until),
            _ => false,
        };
        if !is_good {
            return Err(token_refusal(TokenError::Revoked));
        }
        if !Mutation::RefreshChangesNothing.is_planted() {
            self.session.grants.store(grants(&identity));
            // Channels are in bulk. What is read from the log for it is looked at once more when it leaves.
            self.session.outbox.lock().bulk.look_again();
        }
        let expires_in_ms = identity.expires.saturating_mul(1_000).saturating_sub(shared.clock.unix_ms());
        self.identity = identity;
        self.bear_what_was_left(shared);
        self.look_at_expiry(shared, now);
        Ok(packet::RefreshAnswer { expires_in_ms, token: String::new() })
    }

    /// A token of the broker's own in place of another that is.
    fn refresh_own(&mut self, shared: &Shared, at: Millis) -> Result<packet::RefreshAnswer, Refusal> {
        let accounts = shared.authority.accounts().filter(|_| self.identity.generation.is_some());
        let Some(accounts) = accounts else {
            let refusal = Refusal::connection(Reason::Forbidden);
            return Err(refusal.because("the session's token is another issuer's"));
        };
        let (user, device) = (&self.identity.user, self.identity.device.as_deref().unwrap_or_default());
        let now = shared.clock.unix_ms() / 1_000;
        let minted = accounts.mint(user, device, (self.generation.user, self.generation.device), now);
        let (token, identity) = minted.map_err(|error| {
            tracing::error!(error, "no token can be made");
            Refusal::connection(Reason::Internal)
        })?;
        self.session.grants.store(grants(&identity));
        self.session.outbox.lock().bulk.look_again();
        let expires_in_ms = (identity.expires - now).saturating_mul(1_000);
        self.identity = Arc::new(identity);
        self.bear_what_was_left(shared);
        self.look_at_expiry(shared, at);
        Ok(packet::RefreshAnswer { expires_in_ms, token })
    }

    /// Starts on what clients wait for, one after another.
    pub(super) fn next_job(&mut self, wire: &mut BrokerSession<Place>, shared: &Arc<Shared>, now: Millis) {
        // A client that does not read its answers gets no more of them.
        while self.away.is_none()
            && !wire.has_answers_waiting()
            && let Some(job) = self.job_to_do(shared, now).and_then(|at| self.jobs.remove(at))
        {
            let max = self.item_bytes_max as usize;
            match job {
                Job::Request(id, op) => match charged(shared, &self.session, &op, quick(shared)) {
                    Err(Miss::Disk) => {
                        let (shared_too, session) = (Arc::clone(shared), Arc::clone(&self.session));
                        self.away = Some(shared.tasks.run(move || {
                            Done::Answered(id, charged(&shared_too, &session, &op, blocking(&shared_too)))
                        }));
                    }
                    answer => respond(id, answer, wire),
                },
                Job::Signal(signal) => match carry(quick(shared), shared, &self.session, &signal) {
                    Err(Miss::Disk) => {
                        let (shared_too, session) = (Arc::clone(shared), Arc::clone(&self.session));
                        self.away =
                            Some(shared.tasks.run(move || {
                                Done::Carried(carry(blocking(&shared_too), &shared_too, &session, &signal))
                            }));
                    }
                    Err(Miss::Failed(error)) => drop(fail(wire, &error)),
                    Ok(()) => {}
                },
                Job::Resend { lane, n, place } => match read_again(quick(shared), &self.session, place, max) {
                    Err(Miss::Disk) => {
                        let (shared_too, session) = (Arc::clone(shared), Arc::clone(&self.session));
                        self.away = Some(shared.tasks.run(move || Done::Resend {
                            lane,
                            n,
                            item: read_again(blocking(&shared_too), &session, place, max),
                        }));
                    }
                    item => {
                        self.resends -= 1;
                        resend(lane, n, item, wire, now);
                    }
                },
            }
        }
    }

    /// When the request that comes next may be looked at, where that is later (SPEC R8-15).
    pub(super) fn reads_at(&self, shared: &Shared, now: Millis) -> Option<Millis> {
        self.jobs.front().filter(|job| job.waits() && self.away.is_none())?;
        shared.allowance.lock().unwrap_or_else(PoisonError::into_inner).reads_at(self.session.user, now)
    }

    /// The first job that can be done now: requests may have to wait, and what is sent again, and signals, do not wait for
    /// them.
    pub(super) fn job_to_do(&self, shared: &Shared, now: Millis) -> Option<usize> {
        match self.reads_at(shared, now) {
            Some(_) => self.jobs.iter().position(|job| !job.waits()),
            None => (!self.jobs.is_empty()).then_some(0),
        }
    }
}

impl Job {
    /// Whether it waits until what its user had looked at is paid for. Who has too much of something can always stop that, and
    /// see whose devices do it.
    fn waits(&self) -> bool {
        let Self::Request(_, op) = self else { return false };
        !match op {
            request::Op::Devices(_) => true,
            request::Op::Watch(request) => request.stop,
            request::Op::Presence(request) => request.stop,
            request::Op::Receipts(request) => request.stop,
            _ => false,
        }
    }
}

/// Answers a request, and charges its user with what was looked at for it, in vain or not.
fn charged(shared: &Shared, session: &Arc<Session>, op: &request::Op, reads: Reads<'_>) -> Result<Answer, Miss> {
    // Whoever has to block tried before without.
    let looks = Cell::new(if reads.may_block { 0 } else { REQUEST_LOOKS });
    let answer = answer(shared, session, op, Reads { looks: Some(&looks), ..reads });
    let (user, now) = (session.user, shared.clock.now());
    let mut allowance = shared.allowance.lock().unwrap_or_else(PoisonError::into_inner);
    allowance.has_read(user, looks.get(), now);
    if allowance.reads_at(user, now).is_some() {
        shared.metrics.requests_beyond_rate.inc();
    }
    answer
}

/// Each request counts as so many rows that are looked at: receiving it, and sending an answer.
const REQUEST_LOOKS: u32 = 200;

/// The answer to a request.
pub(super) enum Answer {
    Result(response::Result),
    History(query::Page),
    Refused(Refusal),
}

impl<T> From<Result<T, Refusal>> for Answer
where
    Answer: From<T>,
{
    fn from(result: Result<T, Refusal>) -> Self {
        result.map_or_else(Self::Refused, Self::from)
    }
}

impl From<response::Result> for Answer {
    fn from(result: response::Result) -> Self {
        Self::Result(result)
    }
}

/// Answers a request from the state and the log.
fn answer(shared: &Shared, session: &Arc<Session>, op: &request::Op, reads: Reads<'_>) -> Result<Answer, Miss> {
    Ok(match op {
        request::Op::History(request) => {
            match reads.rows(|rows| Visible::of(rows, session, ConversationId(request.conversation)))? {
                Ok(visible) => Answer::History(reads.settled(|| query::history(reads, &visible, request))?),
                Err(refusal) => Answer::Refused(refusal),
            }
        }
        request::Op::Conversations(request) => {
            let page = query::conversations(reads, session, request)?;
            Answer::Result(response::Result::Conversations(page))
        }
        request::Op::Members(request) => {
            let page = reads.rows(|rows| query::members(rows, session, request))?;
            page.map(response::Result::Members).into()
        }
        request::Op::Receipts(request) => {
            receipts_request(reads, shared, session, request)?.map(response::Result::Receipts).into()
        }
        request::Op::Users(request) => {
            // Anew for each, since each may cost a walk over all conversations of one of the two.
            let named = |user: &u64| reads.rows(|rows| query::user(rows, session, UserId(*user)));
            let users: Vec<_> = request.users.iter().take(USERS_MAX).map(named).collect::<Result<_, _>>()?;
            let users = users.into_iter().flatten().collect();
            Answer::Result(response::Result::Users(packet::UsersPage { users }))
        }
        request::Op::Watch(request) => {
            reads.rows(|rows| watch(shared, session, request, rows))?.map(response::Result::Watch).into()
        }
        request::Op::Profiles(request) => {
            let named = |user: &u64| reads.rows(|rows| account_query::profile(rows, session, UserId(*user)));
            let found: Vec<_> = request.users.iter().take(PROFILES_MAX).map(named).collect::<Result<_, _>>()?;
            let profiles = found.into_iter().flatten().collect();
            Answer::Result(response::Result::Profiles(packet::ProfilesPage { profiles }))
        }
        request::Op::Contacts(request) => {
            let page = reads.rows(|rows| account_query::contacts(rows, session, request))?;
            Answer::Result(response::Result::Contacts(page))
        }
        request::Op::Blocked(request) => {
            let page = reads.rows(|rows| account_query::blocked(rows, session, request))?;
            Answer::Result(response::Result::Blocked(page))
        }
        request::Op::Devices(_) => {
            let mut online = Vec::new();
            shared.registry.each_of(session.user, |session| online.push(session.device));
            let is_online = |device| online.contains(&device);
            let page = reads.rows(|rows| account_query::devices(rows, session, is_online))?;
            Answer::Result(response::Result::Devices(page))
        }
        request::Op::Accounts(request) => {
            let page = reads.rows(|rows| account_query::accounts(rows, session, request))?;
            page.map(response::Result::Accounts).into()
        }
        request::Op::Presence(request) => presence_request(reads, shared, session, request)?,
        request::Op::Online(request) => online_request(reads, shared, session, *request)?,
        // These are answered at once.
        request::Op::Refresh(_) | request::Op::Background(_) => {
            Answer::Refused(Refusal::connection(Reason::Unsupported))
        }
    })
}

/// Watches a channel, or ceases to. The rows are held meanwhile, so that nothing comes in between the head that is
/// answered and the first entry that is sent.
fn watch(
    shared: &Shared,
    session: &Arc<Session>,
    request: &packet::WatchRequest,
    rows: &Reader<'_>,
) -> Result<packet::WatchAnswer, Refusal> {
    let id = ConversationId(request.conversation);
    let unknown = || Refusal::connection(Reason::UnknownConversation);
    let channel = rows.conversation(id).filter(|c| c.kind == Kind::Channel).ok_or_else(unknown)?;
    if !session.grants.load().read.admit(&channel.label) {
        return Err(unknown());
    }
    let mut pending = session.outbox.lock();
    if request.stop {
        pending.watching.retain(|(watched, _)| *watched != id);
        // What waits of it is of no interest any more; and nobody would tell this session that it was recalled.
        pending.bulk.look_again();
        drop(pending);
        shared.registry.unwatch(id, session);
    } else {
        if pending.watched_since(id).is_none() {
            if pending.watching.len() >= rows.state().quotas.watches {
                return Err(Refusal::connection(Reason::QuotaExceeded));
            }
            pending.watching.push((id, channel.head.seq));
        }
        drop(pending);
        shared.registry.watch(id, session);
        if session.outbox.lock().is_abandoned {
            // The session ended meanwhile, and what it watched was given up before this.
            shared.registry.unwatch(id, session);
        }
    }
    Ok(packet::WatchAnswer { head_seq: channel.head.seq.0 })
}

pub(super) fn respond(id: u64, answer: Result<Answer, Miss>, wire: &mut BrokerSession<Place>) {
    match answer {
        Ok(Answer::Result(result)) => wire.respond(packet::Response { id, result: Some(result) }),
        Ok(Answer::History(page)) => wire.respond_history(id, &page.items, page.next.0, page.head.0),
        Ok(Answer::Refused(refusal)) => wire.refuse(Refusal { request: id, ..refusal }),
        Err(Miss::Failed(error)) => drop(fail(wire, &error)),
        Err(Miss::Disk) => wire.close(Refusal::connection(Reason::Internal)),
    }
}

pub(super) fn resend(lane: Lane, n: u64, item: Result<Bytes, Miss>, wire: &mut BrokerSession<Place>, now: Millis) {
    match item {
        Ok(item) => wire.resend(now, lane, n, &item),
        Err(Miss::Failed(error)) => drop(fail(wire, &error)),
        Err(Miss::Disk) => wire.close(Refusal::connection(Reason::Internal)),
    }
}

/// The item, or, where it is an entry that the client cannot hold, the `Head` in its place.
pub(super) fn fit(place: Place, item: Bytes, bytes_max: usize) -> Bytes {
    if item.len() > bytes_max && place.conversation.is_some() {
        return head_item(place.conversation, place.seq, place.seq, HeadReason::TooLarge, item.len());
    }
    item
}

/// The item at a place, as it is now.
fn read_again(reads: Reads<'_>, session: &Session, place: Place, bytes_max: usize) -> Result<Bytes, Miss> {
    let one = PageLimit { entries: 1, bytes: usize::MAX };
    let seq = if Mutation::ResendsAnother.is_planted() { place.seq.next() } else { place.seq };
    let (entries, gone) = reads.settled(|| {
        let entries = reads.range(place.conversation, seq, seq, false, one)?;
        let gone = reads.rows(|rows| {
            let conversation = rows.conversation(place.conversation)?;
            let author = || author(&entries.first()?.item);
            withheld(rows, conversation, place.conversation, place.seq, reads.now, author)
        })?;
        Ok((entries, gone))
    })?;
    Ok(match entries.first() {
        Some(_) if let Some(reason) = gone => head_item(place.conversation, place.seq, place.seq, reason, 0),
        Some(entry) => {
            let item = item_for(&session.outbox.lock(), session, entry);
            fit(place, item, bytes_max)
        }
        None => head_item(place.conversation, place.seq, place.seq, HeadReason::Expired, 0),
    })
}

#[cfg(test)]
mod tests {
    use longwire_protocol::packet::item;
    use longwire_protocol::{LogTime, Seq};
    use prost::Message as _;

    use super::*;
    use crate::net::testing::{live, shared};
    use crate::store::{EntryMeta, FrameBuilder, Log, MemoryLog, Position};

    fn kind(item: &Bytes) -> item::Kind {
        packet::Item::decode(&item[..]).expect("an item").kind.expect("of a kind")
    }

    /// What is sent again is what was sent: a `Head` for what the client cannot hold, an entry for what it can, an
    /// expired `Head` for what is gone.
    #[test]
    fn an_item_sent_again_respects_the_clients_largest_item() {
        let mut log = MemoryLog::new(0, usize::MAX);
        let entry = packet::Entry { conversation: 1, seq: 1, content: vec![b'x'; 1_000].into(), ..Default::default() };
        let item = packet::Item { kind: Some(item::Kind::Entry(entry.clone())) }.encode_to_vec();
        let mut frame = FrameBuilder::new(log.segments()[0].id, Position(1), LogTime(0));
        let meta = EntryMeta { conversation: ConversationId(1), seq: Seq(1), ..EntryMeta::default() };
        frame.push_entry(&meta, |out| out.extend_from_slice(&item));
        log.append(&frame.finish()).expect("appended");
        let shared = shared(&log);
        let place = Place { position: Position(1), conversation: ConversationId(1), seq: Seq(1) };
        let again =
            |bytes_max| kind(&read_again(quick(&shared), &Session::of_test(), place, bytes_max).expect("in memory"));

        assert_eq!(again(item.len()), item::Kind::Entry(entry));
        let item::Kind::Head(head) = again(item.len() - 1) else { panic!("no head") };
        assert_eq!((head.conversation, head.from_seq, head.to_seq), (1, 1, 1));
        assert_eq!((head.reason(), head.item_bytes), (HeadReason::TooLarge, item.len() as u64));
        log.set_floor(Position(2));
        let item::Kind::Head(head) = again(64) else { panic!("no head") };
        assert_eq!(head.reason(), HeadReason::Expired);
    }

    /// SPEC R8-15: requests wait for what came before them, and the wheel has them go on; what is sent again does not wait
    /// for them.
    #[test]
    fn requests_wait_for_what_was_looked_at_and_nothing_else_does() {
        use crate::net::pump::NEVER;
        use crate::routing::allowance::{Allowance, Rate, Rates};

        let shared = shared(&MemoryLog::new(0, usize::MAX));
        let rates = Rates { reads: Some(Rate::of_reads(1_000)), ..Rates::default() };
        *shared.allowance.lock().expect("unpoisoned") = Allowance::new(rates);
        let mut live = live(Arc::new(Session::of_test()), &shared);
        live.look_at_expiry(&shared, Millis(0));
        let request = |id| Job::Request(id, request::Op::Contacts(packet::ContactsRequest::default()));
        let place = Place { position: Position(1), conversation: ConversationId(1), seq: Seq(1) };
        live.jobs.extend([request(1), request(2), Job::Resend { lane: Lane::Bulk, n: 1, place }, request(3)]);
        let (now, at_rest) = (Millis(100), live.deadline(&shared, Millis(100)));
        assert_eq!(live.job_to_do(&shared, now), Some(0));
        shared.allowance.lock().expect("unpoisoned").has_read(live.session.user, 7_000, now);
        assert_eq!((live.job_to_do(&shared, now), live.has_jobs(&shared, now)), (Some(2), true));
        live.jobs.remove(2);
        assert_eq!((live.job_to_do(&shared, now), live.has_jobs(&shared, now)), (None, false));
        let paid = Millis(5_100);
        assert_eq!(live.deadline(&shared, now), paid.min(at_rest));
        assert!(paid < at_rest && at_rest < NEVER);
        assert_eq!(live.job_to_do(&shared, Millis(5_099)), None);
        assert_eq!((live.job_to_do(&shared, paid), live.deadline(&shared, paid)), (Some(0), at_rest));
        live.jobs.push_back(Job::Request(4, request::Op::Devices(packet::DevicesRequest::default())));
        let stop = packet::WatchRequest { stop: true, ..Default::default() };
        live.jobs.push_back(Job::Request(5, request::Op::Watch(stop)));
        assert_eq!(live.job_to_do(&shared, now), Some(3), "who can say what is too much");
        live.jobs.drain(..4);
        assert_eq!((live.job_to_do(&shared, now), live.deadline(&shared, now)), (Some(0), at_rest));
        live.jobs.clear();
        assert_eq!((live.job_to_do(&shared, now), live.deadline(&shared, now)), (None, at_rest), "for nothing");
    }

    /// A watch that comes back from the disk after the session ended is given up, or the feed would keep the session.
    #[test]
    fn a_watch_that_comes_too_late_is_given_up() {
        use crate::routing::grants::{Grants, Patterns};
        use crate::routing::loading::try_read;
        use crate::routing::rows::{Conversation, Head, Key, Row};

        let log = MemoryLog::new(0, usize::MAX);
        let shared = shared(&log);
        let id = ConversationId(5);
        let pair = (UserId(0), UserId(0));
        let channel = Conversation {
            kind: Kind::Channel,
            label: "news".into(),
            pair,
            head: Head::default(),
            members: 0,
            more: Default::default(),
        };
        let (key, row) = (Key::Conversation(id).encode(), Row::Conversation(channel).encode());
        shared.state.write().expect("unpoisoned").load_row(&key, &row).expect("a row");
        for (is_over, watchers) in [(false, 1), (true, 0)] {
            let session = Arc::new(Session::of_test());
            let grants = Grants { read: Patterns::new(["**"]), ..Grants::default() };
            session.grants.store(Arc::new(grants));
            session.outbox.lock().is_abandoned = is_over;
            let request = packet::WatchRequest { conversation: id.0, ..Default::default() };
            try_read(&shared.state, |rows| watch(&shared, &session, &request, rows)).expect("warm").expect("watched");
            let mut found = 0;
            shared.registry.each_watcher(id, |_| found += 1);
            assert_eq!(found, watchers);
            shared.registry.unwatch(id, &session);
        }
    }
}
