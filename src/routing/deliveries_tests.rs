//! Who is told when: the notes and their bounds. What is told is tested over sockets.

use longwire_protocol::LogTime;

use super::super::rows::{Conversation, Key, Kind, Row};
use super::*;
use crate::store::{History, Log as _, MemoryLog, PageLimit, ReadError, StoredEntry};

const DIRECT: ConversationId = ConversationId(9);
const BEN: UserId = UserId(2);

fn session(number: u64, user: u64) -> Arc<Session> {
    Arc::new(Session { number: SessionNumber(number), user: UserId(user), ..Session::of_test() })
}

/// A state in which a conversation has so many entries.
fn state(head: u64) -> RwLock<State> {
    let head = Head { seq: Seq(head), ..Head::default() };
    let pair = (UserId(1), BEN);
    let row = Conversation { kind: Kind::Direct, label: "".into(), pair, head, members: 2, more: Default::default() };
    let mut state = State::default();
    state.load_row(&Key::Conversation(DIRECT).encode(), &Row::Conversation(row).encode()).expect("a row");
    RwLock::new(state)
}

/// Of whose deliveries a session is to look.
fn news(session: &Session) -> Vec<(ConversationId, UserId)> {
    let mut pending = session.outbox.lock();
    pending.ephemeral.take().map(|mut ephemeral| ephemeral.take_news(usize::MAX).delivered).unwrap_or_default()
}

/// R8-14: a follower looks after an ack, and not after one that can bring it nothing.
#[test]
fn who_was_told_of_everything_is_not_woken() {
    let (registry, state, ann) = (Registry::default(), state(5), session(1, 1));
    registry.deliveries.acked(BEN, Millis(1));
    registry.deliveries.follow(&ann, DIRECT, &[BEN]).expect("room for one");
    registry.tell_deliveries(&state, Millis(1));
    assert_eq!(news(&ann), [], "nobody acked since");
    registry.deliveries.acked(BEN, Millis(2));
    registry.tell_deliveries(&state, Millis(2));
    assert_eq!(news(&ann), [(DIRECT, BEN)]);
    assert!(registry.deliveries.note_told(ann.number, DIRECT, BEN, Seq(4)), "news");
    assert!(!registry.deliveries.note_told(ann.number, DIRECT, BEN, Seq(4)), "and no more");
    registry.deliveries.acked(BEN, Millis(5_000));
    registry.tell_deliveries(&state, Millis(5_000));
    assert_eq!(news(&ann), [(DIRECT, BEN)], "there is a fifth");
    assert!(registry.deliveries.note_told(ann.number, DIRECT, BEN, Seq(5)));
    registry.deliveries.acked(BEN, Millis(10_000));
    registry.tell_deliveries(&state, Millis(10_000));
    assert_eq!(news(&ann), [], "there is no more than that");
}

/// R8-14: of one user no more than once a second, and the last ack is looked at.
#[test]
fn many_acks_are_few_looks() {
    let (registry, state, ann) = (Registry::default(), state(5), session(1, 1));
    registry.deliveries.follow(&ann, DIRECT, &[BEN]).expect("room for one");
    let mut looks = 0;
    for ms in 1..5_000 {
        registry.deliveries.acked(BEN, Millis(ms));
        registry.tell_deliveries(&state, Millis(ms));
        looks += news(&ann).len();
    }
    assert_eq!(looks, 5);
    registry.tell_deliveries(&state, Millis(6_000));
    assert_eq!(news(&ann), [(DIRECT, BEN)]);
    registry.tell_deliveries(&state, Millis(60_000));
    assert_eq!(news(&ann), []);
}

/// Whoever half the world follows is told of in pieces, to each once.
#[test]
fn many_followers_are_looked_at_a_bounded_number_at_a_time() {
    let (registry, state) = (Registry::default(), state(5));
    let followers: Vec<_> = (1..=2 * LOOKED_AT_ONCE as u64 + 7).map(|number| session(number, number)).collect();
    for follower in &followers {
        registry.deliveries.follow(follower, DIRECT, &[BEN]).expect("room for one");
    }
    registry.deliveries.acked(BEN, Millis(1));
    let told: Vec<usize> = (0..4)
        .map(|_| {
            registry.tell_deliveries(&state, Millis(1));
            followers.iter().filter(|follower| !news(follower).is_empty()).count()
        })
        .collect();
    assert_eq!(told, [LOOKED_AT_ONCE, LOOKED_AT_ONCE, 7, 0]);
}

/// R8-14: what is followed is bounded, and leaves nothing behind.
#[test]
fn what_is_followed_is_bounded_and_ends_with_the_session() {
    let (registry, ann, cid) = (Registry::default(), session(1, 1), session(3, 3));
    let deliveries = &registry.deliveries;
    let users: Vec<UserId> = (10..10 + FOLLOWED_MAX as u64).map(UserId).collect();
    deliveries.follow(&ann, DIRECT, &users).expect("room for so many");
    deliveries.follow(&ann, DIRECT, &users).expect("known ones take no room");
    assert_eq!(deliveries.follow(&ann, DIRECT, &[BEN]), Err(Reason::QuotaExceeded));
    deliveries.follow(&cid, DIRECT, &[BEN, UserId(10)]).expect("another session's");
    deliveries.acked(UserId(10), Millis(1));
    deliveries.unfollow(ann.number, ConversationId(8));
    assert_eq!(deliveries.count.load(Ordering::Relaxed), FOLLOWED_MAX + 2, "it follows nothing there");
    deliveries.unfollow(ann.number, DIRECT);
    assert_eq!(deliveries.count.load(Ordering::Relaxed), 2);
    assert!(!deliveries.note_told(ann.number, DIRECT, UserId(10), Seq(1)), "it is told no more");
    registry.deliveries.went(cid.number);
    let all = deliveries.lock();
    assert!(all.users.is_empty() && all.by_session.is_empty() && all.looks.is_empty());
    assert!(!deliveries.is_any());
}

/// A log of which nothing is in memory.
struct Cold(Arc<dyn History>);

impl History for Cold {
    fn range(
        &self,
        id: ConversationId,
        from: Seq,
        to: Seq,
        backwards: bool,
        limit: PageLimit,
    ) -> Result<Vec<StoredEntry>, ReadError> {
        self.0.range(id, from, to, backwards, limit)
    }

    fn first_after(&self, id: ConversationId, position: Position) -> Result<Option<Seq>, ReadError> {
        self.0.first_after(id, position)
    }

    fn range_in_memory(&self, _: ConversationId, _: Seq, _: Seq, _: bool, _: PageLimit) -> Option<Vec<StoredEntry>> {
        None
    }

    fn first_after_in_memory(&self, _: ConversationId, _: Position) -> Option<Option<Seq>> {
        None
    }

    fn floor(&self) -> Position {
        Position(0)
    }
}

/// R8-14: of two conversations one can be told at once, and the other has to be read from the disk: then both are looked at
/// again, and both are news still.
#[test]
fn what_is_looked_at_again_is_news_still() {
    const OTHER: ConversationId = ConversationId(10);
    let (registry, state, ann) = (Registry::default(), state(5), session(1, 1));
    {
        let mut state = state.write().expect("unpoisoned");
        // Not all of it was acked: how far it was, the log knows.
        let head = Head { seq: Seq(7), position: Position(70), ..Head::default() };
        let pair = (UserId(1), BEN);
        let row =
            Conversation { kind: Kind::Direct, label: "".into(), pair, head, members: 2, more: Default::default() };
        state.load_row(&Key::Conversation(OTHER).encode(), &Row::Conversation(row).encode()).expect("a row");
        let member =
            Member { role: 2, intervals: Vec::new(), mark: Seq(0), mark_countable: 0, mark_position: Position(0) };
        for id in [DIRECT, OTHER] {
            for user in [UserId(1), BEN] {
                let row = Row::Member(member.clone()).encode();
                state.load_row(&Key::Member(id, user).encode(), &row).expect("a row");
            }
            registry.deliveries.follow(&ann, id, &[BEN]).expect("room for it");
        }
    }
    let history = Cold(MemoryLog::new(0, usize::MAX).history());
    let quick = Reads { history: &history, state: &state, now: LogTime(0), may_block: false, looks: None };
    let of = [(DIRECT, BEN), (OTHER, BEN)];
    assert!(matches!(super::news(quick, &registry, &ann, &of), Err(Miss::Disk)));
    let told = super::news(Reads { may_block: true, ..quick }, &registry, &ann, &of).expect("read");
    assert_eq!(told, [(DIRECT, BEN, Seq(5)), (OTHER, BEN, Seq(7))]);
    assert_eq!(super::news(Reads { may_block: true, ..quick }, &registry, &ann, &of).expect("read"), [], "once");
}
