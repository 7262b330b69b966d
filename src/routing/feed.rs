//! The feed: every committed frame, in position order, into the lanes of who is online. Work is proportional to the
//! readers that are online; an item is encoded once, in the frame, and shared.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::Waker;

use longwire_protocol::packet::{self, item};
use longwire_protocol::{ConversationId, Seq, UserId};
use prost::Message as _;

use super::change::Change;
use super::items::{item_for, mark_item};
use super::loading::load;
use super::outbox::{Pending, Session};
use super::registry::Registry;
use super::rights::{Tells, tells, tells_marks};
use super::rows::{Conversation, Kind, Member};
use super::state::State;
use super::stream::{Place, Ready};
use super::view::{Reader, Rows as _};
use crate::mutation::Mutation;
use crate::store::{Frame, Position, Record, StoredEntry};

/// How often the readers of an entry are loaded, if they are let go before they are looked at.
const LOOKS_MAX: usize = 8;
/// The largest encoded entry that recalls another: seven numbers of ten bytes, and what stands before them.
const RECALL_BYTES_MAX: usize = 96;

/// See the module.
#[derive(Debug)]
pub struct Feed {
    state: Arc<RwLock<State>>,
    registry: Arc<Registry>,
    /// Whom to wake once the frame is fed. A waker is taken with the first item, so each connection is here once.
    wakers: Vec<Waker>,
}

impl Feed {
    /// A feed from the state's log into the registry's sessions.
    #[must_use]
    pub fn new(state: Arc<RwLock<State>>, registry: Arc<Registry>) -> Self {
        Self { state, registry, wakers: Vec::new() }
    }

    /// Pushes what a frame holds, then wakes each connection that got something once.
    pub fn feed(&mut self, frame: &Frame) {
        for record in &frame.records {
            match record {
                Record::Entry(entry) => self.entry(entry),
                Record::Change(change) => match Change::decode(&change.body) {
                    Ok(Change::MarkSet { user, conversation, seq, .. }) => {
                        self.mark(change.position, user, conversation, seq);
                    }
                    Ok(Change::KeptFrom { conversation, first, .. }) => self.kept_from(conversation, first),
                    Ok(Change::EraseBegun { .. }) if !Mutation::ErasedInLane.is_planted() => {
                        self.everyone_looks_again()
                    }
                    _ => {}
                },
                Record::Rider(_) => {}
            }
        }
        self.wakers.drain(..).for_each(Waker::wake);
    }

    /// A mark goes to its user's devices, and to the other members where they are few (SPEC R6.1-6).
    fn mark(&mut self, position: Position, user: UserId, conversation: ConversationId, seq: Seq) {
        let place = Place { position, conversation: ConversationId(0), seq: Seq(0) };
        let own = Ready { place, item: mark_item(conversation, UserId(0), seq) };
        let wakers = &mut self.wakers;
        self.registry.each_of(user, |session| {
            let mut pending = session.outbox.lock();
            if pending.express.push(own.clone(), true) {
                wakers.extend(pending.take_waker());
            }
        });
        let others = self.who_else(user, conversation);
        for (other, is_express, joined) in others {
            let ready = Ready { place, item: mark_item(conversation, user, seq) };
            let wakers = &mut self.wakers;
            self.registry.each_of(other, |session| {
                let mut pending = session.outbox.lock();
                if let Some(urgency) = pending.withheld(session, conversation, is_express) {
                    if pending.lane(is_express).withhold(place, urgency) {
                        wakers.extend(pending.take_waker());
                    }
                    return;
                }
                let admits = is_express || pending.express.sent() >= joined;
                if pending.lane(is_express).push(ready.clone(), admits) {
                    wakers.extend(pending.take_waker());
                }
            });
        }
    }

    /// What a conversation keeps no more leaves the lanes in which it waits. Who is no member may have some of it waiting, too.
    fn kept_from(&mut self, id: ConversationId, first: Seq) {
        if Mutation::UnkeptInLane.is_planted() {
            return;
        }
        let (is_express, members) = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            let rows = Reader::new(&state);
            let conversation = rows.conversation(id);
            let members = conversation.map(|conversation| match conversation.kind {
                Kind::Direct | Kind::Inbox => BTreeSet::from([conversation.pair.0, conversation.pair.1]),
                Kind::Group | Kind::Channel => rows.members(id).clone(),
            });
            let is_express = conversation.is_some_and(|conversation| conversation.kind.is_express());
            (is_express, members.filter(|_| rows.cold() == 0))
        };
        let Some(members) = members else { return self.everyone_looks_again() };
        let withdraw = |session: &Arc<Session>| session.outbox.lock().lane(is_express).withdraw_below(id, first);
        if members.len() <= self.registry.users_online().saturating_mul(2) {
            members.iter().for_each(|user| self.registry.each_of(*user, withdraw));
        } else {
            let online = self.registry.online().into_iter().filter(|user| members.contains(user));
            online.for_each(|user| self.registry.each_of(user, withdraw));
        }
        self.registry.each_watcher(id, withdraw);
    }

    /// What waits is read from the log again, by everyone: some of it may be shown no more.
    fn everyone_looks_again(&mut self) {
        let mut sessions = self.registry.all();
        sessions.sort_unstable_by_key(|session| session.number);
        for session in sessions {
            let mut pending = session.outbox.lock();
            pending.express.look_again();
            pending.bulk.look_again();
            self.wakers.extend(pending.take_waker());
        }
    }

    /// The other members of a conversation that are there and told of a user's mark, whether it rides express, and where
    /// they were told of the conversation. Who comes meanwhile finds the mark in the rows.
    fn who_else(&self, user: UserId, id: ConversationId) -> Vec<(UserId, bool, Position)> {
        for _ in 0..LOOKS_MAX {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            let rows = Reader::new(&state);
            let others = others_told(&rows, &self.registry, user, id);
            if rows.cold() == 0 {
                return others;
            }
            let wants = rows.into_cold();
            drop(state);
            if let Err(error) = load(&self.state, &wants) {
                tracing::error!(%error, "who is told of a mark is not known: they hear of the next one");
                break;
            }
        }
        Vec::new()
    }

    fn entry(&mut self, entry: &StoredEntry) {
        for _ in 0..LOOKS_MAX {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            let rows = Reader::new(&state);
            let conversation = rows.conversation(entry.conversation);
            let is_listed = conversation.is_some_and(|c| matches!(c.kind, Kind::Group | Kind::Channel));
            let members = is_listed.then(|| rows.members(entry.conversation));
            if rows.cold() == 0 {
                let Some(conversation) = conversation else { return };
                let recalled = recalled(&rows, conversation, entry);
                let (mentions, wakers) = (OnceCell::new(), &mut self.wakers);
                let mut to = Recipients { entry, conversation, state: &state, recalled, mentions, wakers };
                return to.push_to_all(&self.registry, members);
            }
            // It was at hand a moment ago, when the entry was decided; only a cache that is far too small lets it go.
            let wants = rows.into_cold();
            drop(state);
            if let Err(error) = load(&self.state, &wants) {
                tracing::error!(%error, "the readers of an entry are not known: everyone online looks for themselves");
                break;
            }
        }
        self.tell_everyone(entry);
    }

    fn tell_everyone(&mut self, entry: &StoredEntry) {
        let is_recall = recall_of(entry).is_some();
        let mut sessions = self.registry.all();
        // In an order that repeats, for whoever drives the broker by hand.
        sessions.sort_unstable_by_key(|session| session.number);
        for session in sessions {
            let mut pending = session.outbox.lock();
            for is_express in [true, false] {
                // Nobody knows what waits for whom: what is recalled is found out when the log is read.
                if is_recall {
                    pending.lane(is_express).look_again();
                }
                if push(&mut pending, &session, entry, is_express, false) {
                    self.wakers.extend(pending.take_waker());
                }
            }
        }
    }
}

/// One entry on its way to who is online.
struct Recipients<'a> {
    entry: &'a StoredEntry,
    conversation: &'a Conversation,
    state: &'a State,
    /// What this entry recalls: it leaves the lanes in which it waits.
    recalled: Vec<Seq>,
    /// Whom this entry mentions: found out for who is in the background.
    mentions: OnceCell<Vec<UserId>>,
    wakers: &'a mut Vec<Waker>,
}

impl Recipients<'_> {
    fn push_to_all(&mut self, registry: &Registry, members: Option<&BTreeSet<UserId>>) {
        match members {
            None => {
                let (a, b) = self.conversation.pair;
                self.push_to(registry, a);
                if b != a {
                    self.push_to(registry, b);
                }
            }
            Some(members) if members.len() <= registry.users_online().saturating_mul(2) => {
                members.iter().for_each(|user| self.push_to(registry, *user));
            }
            Some(members) => {
                let mut online = registry.online();
                online.retain(|user| members.contains(user));
                online.sort_unstable();
                online.into_iter().for_each(|user| self.push_to(registry, user));
            }
        }
        if self.conversation.kind == Kind::Channel {
            registry.each_watcher(self.entry.conversation, |session| self.push_to_watcher(session));
        }
    }

    /// To the sessions of a member. What it may see is looked up if that is at hand; otherwise its sessions are told that
    /// there may be news, and look for themselves.
    fn push_to(&mut self, registry: &Registry, user: UserId) {
        registry.each_of(user, |session| {
            // Also from who is no member any more: what was there before still waits for them.
            self.withdraw(session);
            let rows = Reader::new(self.state);
            let member = rows.member(self.entry.conversation, user);
            let duty = rows.duties(user).get(self.entry.conversation);
            let is_cold = rows.cold() > 0;
            let sees = member.is_some_and(|m| m.sees(self.entry.seq) || Mutation::LiveIgnoresRights.is_planted());
            let is_due = sees && duty.is_some_and(|d| self.entry.seq > d.since);
            if (is_due || is_cold) && self.is_readable(session) {
                let joined = duty.map_or(Position(0), |duty| duty.joined);
                let is_express = self.conversation.kind.is_express();
                let mut pending = session.outbox.lock();
                let admits = !is_cold
                    && (is_express || pending.express.sent() >= joined || Mutation::JoinedNotAwaited.is_planted());
                self.push(session, &mut pending, admits);
            }
        });
    }

    /// To a session that watches the channel. A reader with a row gets it by its row.
    fn push_to_watcher(&mut self, session: &Arc<Session>) {
        self.withdraw(session);
        let rows = Reader::new(self.state);
        let has_row = rows.duties(session.user).get(self.entry.conversation).is_some_and(|duty| !duty.closed);
        if has_row || !self.is_readable(session) {
            return;
        }
        let mut pending = session.outbox.lock();
        let since = pending.watched_since(self.entry.conversation);
        // What was there when watching began may be fed only now.
        if since.is_some_and(|since| self.entry.seq > since) {
            self.push(session, &mut pending, rows.cold() == 0);
        }
    }

    /// Whether the session's token lets it read the channel, where it is one.
    fn is_readable(&self, session: &Session) -> bool {
        self.conversation.kind != Kind::Channel
            || Mutation::LiveIgnoresPatterns.is_planted()
            || session.grants.load().read.admit(&self.conversation.label)
    }

    /// What this entry recalls does not leave any more.
    fn withdraw(&self, session: &Session) {
        if self.recalled.is_empty() {
            return;
        }
        let mut pending = session.outbox.lock();
        let lane = pending.lane(self.conversation.kind.is_express());
        self.recalled.iter().for_each(|seq| lane.withdraw(self.entry.conversation, *seq));
    }

    fn push(&mut self, session: &Session, pending: &mut Pending, admits: bool) {
        if pending.withholds && self.withhold(session, pending) {
            return;
        }
        if push(pending, session, self.entry, self.conversation.kind.is_express(), admits) {
            self.wakers.extend(pending.take_waker());
        }
    }

    /// Whether the session is to be told of the entry in place of getting it, and may be so later.
    fn withhold(&mut self, session: &Session, pending: &mut Pending) -> bool {
        let (entry, is_express) = (self.entry, self.conversation.kind.is_express());
        let Some(urgency) = pending.withheld(session, entry.conversation, is_express) else { return false };
        let is_full = pending.levels.of(entry.conversation) == packet::Level::Full;
        if is_full && self.mentions.get_or_init(|| mentions(entry)).contains(&session.user) {
            let rows = Reader::new(self.state);
            let is_told = rows.member(entry.conversation, session.user).is_some_and(Member::is_active);
            if is_told || rows.cold() > 0 {
                return false;
            }
        }
        let place = Place { position: entry.position, conversation: entry.conversation, seq: entry.seq };
        if pending.lane(is_express).withhold(place, urgency) {
            self.wakers.extend(pending.take_waker());
        }
        true
    }
}

/// The seqs that nobody is shown any more from this entry on: a recalled message and its edits.
fn recalled(rows: &Reader<'_>, conversation: &Conversation, entry: &StoredEntry) -> Vec<Seq> {
    let may_recall = conversation.more.withheld.0.is_some();
    let Some(target) = may_recall.then(|| recall_of(entry)).flatten() else { return Vec::new() };
    if Mutation::RecalledInLane.is_planted() {
        return Vec::new();
    }
    let edits = rows.altered(entry.conversation, target).map_or(&[][..], |altered| &altered.edits);
    edits.iter().copied().chain([target]).collect()
}

/// The message that an entry recalls. Few entries are looked into: a recall has no content.
fn recall_of(entry: &StoredEntry) -> Option<Seq> {
    if entry.item.len() > RECALL_BYTES_MAX {
        return None;
    }
    match packet::Item::decode(&entry.item[..]).ok()?.kind? {
        item::Kind::Entry(packet::Entry { recall: Some(recall), .. }) => Some(Seq(recall.seq)),
        _ => None,
    }
}

/// Whom an entry mentions, who sent it aside.
fn mentions(entry: &StoredEntry) -> Vec<UserId> {
    match packet::Item::decode(entry.item.clone()) {
        Ok(packet::Item { kind: Some(item::Kind::Entry(packet::Entry { beside: Some(beside), sender, .. })) }) => {
            beside.mentions.iter().filter(|user| **user != sender).map(|user| UserId(*user)).collect()
        }
        _ => Vec::new(),
    }
}

/// Returns whether the connection has to know.
fn push(pending: &mut Pending, session: &Session, entry: &StoredEntry, is_express: bool, admits: bool) -> bool {
    let item = item_for(pending, session, entry);
    let place = Place { position: entry.position, conversation: entry.conversation, seq: entry.seq };
    pending.lane(is_express).push(Ready { place, item }, admits)
}

fn others_told(
    rows: &Reader<'_>,
    registry: &Registry,
    user: UserId,
    id: ConversationId,
) -> Vec<(UserId, bool, Position)> {
    let Some(conversation) = rows.conversation(id).filter(|conversation| tells_marks(conversation)) else {
        return Vec::new();
    };
    let is_express = conversation.kind.is_express();
    let told = |other: UserId| {
        // Nothing is loaded of who is away.
        if other == user || !registry.is_online(other) {
            return None;
        }
        // All are asked for before one is judged: what is cold is loaded at once. Of the duty the row alone, since the list
        // may be one of thousands.
        let (member, tells) = (rows.member(id, other), tells(rows, conversation, user, other));
        let duty = if is_express { None } else { rows.duty(other, id) };
        let is_told = member.is_some_and(Member::is_active) && tells == Tells::Marks;
        is_told.then_some((other, is_express, duty.map_or(Position(0), |duty| duty.joined)))
    };
    match conversation.kind {
        Kind::Direct => [conversation.pair.0, conversation.pair.1].into_iter().filter_map(told).collect(),
        _ => rows.members(id).iter().copied().filter_map(told).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::sync::{Mutex, Weak};

    use bytes::Bytes;
    use longwire_protocol::LogTime;

    use super::*;
    use crate::routing::items::head_item;
    use crate::routing::rows::{Head, MoreOfConversation, Row};
    use crate::routing::stream::{News, Turn};
    use crate::store::{EntryMeta, FrameBuilder, ReadError, SavedState, SegmentId};

    /// A saved state that cannot be read, or under a cache that holds nothing.
    #[derive(Default)]
    struct Unhelpful {
        fails: bool,
        state: Mutex<Weak<RwLock<State>>>,
        reads: AtomicUsize,
    }

    impl SavedState for Unhelpful {
        fn get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, ReadError> {
            let Some(state) = self.state.lock().expect("unpoisoned").upgrade() else {
                return Ok(vec![None; keys.len()]);
            };
            assert!(self.reads.fetch_add(1, Relaxed) < 100, "it is loaded over and over");
            if self.fails {
                return Err(ReadError("as the test asked".into()));
            }
            // Once it is read, it is let go: the look that follows is too late.
            let (label, pair, head) = ("".into(), (UserId(0), UserId(0)), Head::default());
            let more = MoreOfConversation::default();
            let group = Conversation { kind: Kind::Group, label, pair, head, members: 2, more };
            let found = keys.iter().map(|_| Some(Row::Conversation(group.clone()).encode())).collect();
            std::thread::scope(|scope| {
                scope.spawn(|| state.write().expect("unpoisoned").forget());
            });
            Ok(found)
        }

        fn each(&self, _: &[u8], _: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), ReadError> {
            if let Some(state) = self.state.lock().expect("unpoisoned").upgrade() {
                state.write().expect("unpoisoned").forget();
            }
            Ok(())
        }
    }

    /// R6.1-6: for a mark nothing is read of who is away, and of who is there no more than some rows, be the lists of its
    /// conversations as long as they may.
    #[test]
    fn a_mark_asks_for_nothing_of_who_is_away_and_for_no_list_of_who_is_there() {
        use crate::routing::loading::Want;
        use crate::routing::rows::Key;
        use crate::routing::view::{Overlay, View};

        let (id, ben) = (ConversationId(5), UserId(1));
        for kind in [Kind::Direct, Kind::Group] {
            let saved = Arc::new(Unhelpful::default()) as Arc<dyn SavedState>;
            let mut state = State::over(saved, Position(0), 0).expect("reads");
            let more = MoreOfConversation::default();
            let pair = if kind == Kind::Direct { (ben, UserId(2)) } else { (UserId(0), UserId(0)) };
            let row = Conversation { kind, label: "".into(), pair, head: Head::default(), members: 2, more };
            state.install_members(id, [ben, UserId(2)].into());
            let mut overlay = Overlay::default();
            View::new(&state, &mut overlay).put(Key::Conversation(id), Some(Row::Conversation(row)));
            overlay.merge(&mut state);
            let registry = Registry::default();
            let told = |registry: &Registry| {
                let rows = Reader::new(&state);
                let told = others_told(&rows, registry, UserId(2), id);
                assert!(told.is_empty(), "nothing is known yet");
                rows.into_cold()
            };
            assert!(told(&registry).is_empty(), "ben is away");
            registry.attach(&Arc::new(Session::of_test()), longwire_protocol::Millis(0));
            let wants = told(&registry);
            assert!(!wants.is_empty() && wants.iter().all(|want| matches!(want, Want::Row(_))), "{wants:?}");
        }
    }

    /// What waits in a lane is withdrawn also from who was removed before the recall, and is not told of it.
    #[test]
    fn what_is_recalled_does_not_leave_for_who_was_removed_meanwhile() {
        use crate::routing::rows::{Duty, Interval, Key};
        use crate::routing::view::{Overlay, View};

        let (id, pair) = (ConversationId(5), (UserId(0), UserId(0)));
        let mut more = MoreOfConversation::default();
        more.note_withheld(Seq(1));
        let group = Conversation { kind: Kind::Group, label: "".into(), pair, head: Head::default(), members: 1, more };
        let removed = Interval { from: Seq(1), to: Seq(2), countable_before: 0 };
        let (mark, mark_position) = (Seq(0), Position(0));
        let member = Member { role: 0, intervals: vec![removed], mark, mark_countable: 0, mark_position };
        let (mut state, mut overlay) = (State::default(), Overlay::default());
        let mut view = View::new(&state, &mut overlay);
        view.put(Key::Conversation(id), Some(Row::Conversation(group)));
        view.put(Key::Member(id, UserId(1)), Some(Row::Member(member)));
        view.put(Key::Duty(UserId(1), id), Some(Row::Duty(Duty { since: Seq(0), joined: Position(0), closed: true })));
        overlay.merge(&mut state);
        let (registry, session) = (Arc::new(Registry::default()), Arc::new(Session::of_test()));
        registry.attach(&session, longwire_protocol::Millis(0));
        let place = Place { position: Position(1), conversation: id, seq: Seq(1) };
        {
            let mut pending = session.outbox.lock();
            pending.bulk.begin_turn().expect("it is behind");
            assert!(pending.bulk.end_turn(Position(0)), "and live now");
            pending.bulk.push(Ready { place, item: Bytes::from_static(b"what it said") }, true);
        }
        let recall = packet::Recalled { seq: 1, countable: 1 };
        let entry = packet::Entry { conversation: 5, seq: 3, recall: Some(recall), ..packet::Entry::default() };
        let mut frame = FrameBuilder::new(SegmentId(1), Position(3), LogTime(0));
        let meta = EntryMeta { conversation: id, seq: Seq(3), ..EntryMeta::default() };
        let entry = packet::Item { kind: Some(item::Kind::Entry(entry)) };
        frame.push_entry(&meta, |out| out.extend_from_slice(&entry.encode_to_vec()));
        Feed::new(Arc::new(RwLock::new(state)), registry).feed(&frame.finish());
        let mut pending = session.outbox.lock();
        let sent = pending.bulk.take(usize::MAX, true).expect("something in its place");
        assert_eq!(sent.item, head_item(id, Seq(1), Seq(1), packet::HeadReason::Recalled, 0));
        assert!(pending.bulk.take(usize::MAX, true).is_none(), "and nothing of the recall");
    }

    /// Whoever may be a reader and is online looks in the log: nobody misses an entry because the disk is in trouble.
    #[test]
    fn where_readers_cannot_be_loaded_everyone_online_looks_for_themselves() {
        for fails in [true, false] {
            let saved = Arc::new(Unhelpful { fails, ..Unhelpful::default() });
            let state = State::over(Arc::clone(&saved) as Arc<dyn SavedState>, Position(0), 0).expect("reads");
            let state = Arc::new(RwLock::new(state));
            *saved.state.lock().expect("unpoisoned") = Arc::downgrade(&state);
            let (registry, session) = (Arc::new(Registry::default()), Arc::new(Session::of_test()));
            registry.attach(&session, longwire_protocol::Millis(0));
            for is_express in [true, false] {
                let mut pending = session.outbox.lock();
                let lane = pending.lane(is_express);
                lane.begin_turn().expect("it is behind");
                assert!(lane.end_turn(Position(0)), "and live now");
            }
            let mut frame = FrameBuilder::new(SegmentId(1), Position(1), LogTime(0));
            let meta = EntryMeta { conversation: ConversationId(5), seq: Seq(1), ..EntryMeta::default() };
            let entry = packet::Item { kind: Some(item::Kind::Entry(packet::Entry::default())) };
            frame.push_entry(&meta, |out| out.extend_from_slice(&entry.encode_to_vec()));
            Feed::new(state, registry).feed(&frame.finish());
            for is_express in [true, false] {
                let turn = session.outbox.lock().lane(is_express).begin_turn();
                let news = News::Of(vec![ConversationId(5)]);
                assert_eq!(turn, Some(Turn { news, marks: false, target: Some(Position(1)) }), "fails: {fails}");
            }
            assert!(saved.reads.load(Relaxed) > 0, "it was tried");
        }
    }
}
