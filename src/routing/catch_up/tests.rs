//! Catching up with the log in memory: what is kept between steps, and what retention takes between them.

use std::collections::BTreeMap;
use std::sync::RwLock;

use longwire_protocol::LogTime;
use longwire_protocol::packet::{self, item};
use prost::Message as _;

use super::*;
use crate::routing::rows::{Conversation, Head, KeptOfConversation, Key, Kind, MoreOfConversation, Row};
use crate::routing::state::State;
use crate::store::{EntryMeta, FrameBuilder, History, Log, MemoryLog};

/// A log of entries at the positions from 1 on, each named by its conversation and its bytes.
fn log(entries: impl IntoIterator<Item = (u64, usize)>) -> MemoryLog {
    let mut log = MemoryLog::new(0, usize::MAX);
    let mut seqs = BTreeMap::new();
    for (conversation, bytes) in entries {
        let seq: &mut u64 = seqs.entry(conversation).or_default();
        *seq += 1;
        let entry = packet::Entry { conversation, seq: *seq, content: vec![b'x'; bytes].into(), ..Default::default() };
        let item = packet::Item { kind: Some(item::Kind::Entry(entry)) };
        let segment = log.segments()[0].id;
        let mut frame = FrameBuilder::new(segment, Position(log.tail().0 + 1), LogTime(0));
        let meta = EntryMeta { conversation: ConversationId(conversation), seq: Seq(*seq), ..EntryMeta::default() };
        frame.push_entry(&meta, |out| out.extend_from_slice(&item.encode_to_vec()));
        log.append(&frame.finish()).expect("appended");
    }
    log
}

/// A plan for everything of these conversations above a position.
fn plan(log: &MemoryLog, sent: u64, conversations: impl IntoIterator<Item = (u64, u64)>) -> Plan {
    let candidate = |(conversation, head)| Candidate {
        conversation: ConversationId(conversation),
        from: Seq(1),
        head: Seq(head),
        intervals: vec![(Seq(1), Seq(head))],
        head_position: log.tail(),
        reported: None,
        joined: Position(0),
        kept: Default::default(),
        label: None,
    };
    let candidates = conversations.into_iter().map(candidate).collect();
    Plan { target: log.tail(), sent: Position(sent), candidates, marks: Vec::new(), skips: false }
}

/// Steps with room for `items`, of any size; returns how it ended and what was handed out.
fn step(catch_up: &mut CatchUp, log: &MemoryLog, items: usize) -> (Step, Vec<Ready>) {
    let history = log.history();
    let reads = Reads { history: &*history, state: &RwLock::default(), now: LogTime(0), may_block: false, looks: None };
    let (mut room, mut out) = (Room { items, bytes: usize::MAX, is_empty: true }, Vec::new());
    let step = catch_up.step(reads, &Session::of_test(), &mut room, Position(0), &mut out).expect("in memory");
    (step, out)
}

fn begin(plan: &Plan, log: &MemoryLog) -> CatchUp {
    CatchUp::begin(
        plan,
        Reads { history: &*log.history(), state: &RwLock::default(), now: LogTime(0), may_block: false, looks: None },
    )
    .expect("in memory")
}

/// What a client learns of each conversation: its seqs from and to, and whether they came as an entry.
fn told(items: &[Ready]) -> BTreeMap<u64, Vec<(u64, u64, bool)>> {
    let mut told = BTreeMap::<_, Vec<_>>::new();
    for ready in items {
        match packet::Item::decode(&ready.item[..]).expect("an item").kind {
            Some(item::Kind::Entry(e)) => told.entry(e.conversation).or_default().push((e.seq, e.seq, true)),
            Some(item::Kind::Head(h)) => {
                assert!(matches!(h.reason(), HeadReason::Expired | HeadReason::Skipped));
                told.entry(h.conversation).or_default().push((h.from_seq, h.to_seq, false));
            }
            other => panic!("{other:?} in a catch-up of entries"),
        }
    }
    told
}

/// Every seq of 1 to `head` is told of once, in order.
fn has_no_hole(told: &[(u64, u64, bool)], head: u64) -> bool {
    told.iter().try_fold(1, |next, (from, to, _)| (*from == next && from <= to).then_some(to + 1)) == Some(head + 1)
}

/// Retention takes entries between two steps: they are told of as expired, at a place that no entry stands on which is
/// yet to come. So whoever stored that head and nothing behind it misses nothing by resuming from there.
#[test]
fn what_retention_takes_between_two_steps_is_told_below_what_is_still_to_come() {
    // Conversation 1 at odd positions and too large for more than one of a page, conversation 2 at even ones.
    let mut log = log((0..10).flat_map(|_| [(1, 40_000), (2, 10)]));
    let both = [(1, 10), (2, 10)];
    let mut catch_up = begin(&plan(&log, 0, both), &log);
    let (_, mut all) = step(&mut catch_up, &log, 1);
    assert_eq!((all[0].place.conversation, all[0].place.position), (ConversationId(1), Position(1)));
    log.set_floor(Position(6));
    loop {
        let (step, mut out) = step(&mut catch_up, &log, 1);
        all.append(&mut out);
        if step == Step::Done(log.tail()) {
            break;
        }
    }
    let of = told(&all);
    assert_eq!(of[&1][..3], [(1, 1, true), (2, 3, false), (4, 4, true)]);
    assert!(has_no_hole(&of[&1], 10) && has_no_hole(&of[&2], 10), "{of:?}");

    let head = all.iter().position(|ready| !ready.place.conversation.is_some()).expect("a head");
    let place = all[head].place.position;
    let later = all[head + 1..].iter().filter(|ready| ready.place.conversation.is_some());
    for ready in later {
        assert!(ready.place.position > place, "acking the head would ack {:?}, too", ready.place);
    }
    let mut resumed = begin(&plan(&log, place.0, both), &log);
    let of = told(&step(&mut resumed, &log, usize::MAX).1);
    assert!(has_no_hole(&of[&1], 10) && has_no_hole(&of[&2], 10), "{of:?}");
}

/// However many conversations there are and however large their entries, what waits between two steps is bounded; all
/// of it comes once and in log order all the same.
#[test]
fn what_is_kept_between_steps_is_bounded_and_everything_comes_once_in_order() {
    const CONVERSATIONS: u64 = 100;
    for bytes in [100, 10_000, 50_000] {
        let log = log((0..4).flat_map(|_| (1..=CONVERSATIONS).map(|conversation| (conversation, bytes))));
        let mut catch_up = begin(&plan(&log, 0, (1..=CONVERSATIONS).map(|c| (c, 4))), &log);
        let kept = |catch_up: &CatchUp| catch_up.due.iter().map(|Reverse(due)| due.bytes()).sum::<usize>();
        assert!(kept(&catch_up) <= KEPT_BYTES_MAX, "{} to begin with", kept(&catch_up));
        let mut got = Vec::new();
        loop {
            let (step, out) = step(&mut catch_up, &log, 7);
            got.extend(out.iter().map(|ready| ready.place.position.0));
            assert!(kept(&catch_up) <= KEPT_BYTES_MAX, "{} after {} entries", kept(&catch_up), got.len());
            assert_eq!(catch_up.kept, kept(&catch_up));
            if step == Step::Done(log.tail()) {
                break;
            }
        }
        assert_eq!(got, (1..=4 * CONVERSATIONS).collect::<Vec<_>>(), "entries of {bytes} bytes");
    }
}

/// SPEC R6.5-2: after so many items, or bytes, the rest of each conversation comes as one head, and nothing is left out.
#[test]
fn beyond_so_much_the_rest_of_each_conversation_is_one_head() {
    const CONVERSATIONS: u64 = 15;
    for (each, bytes) in [(CATCH_UP_ENTRIES_MAX - 1, 10), (10, 12_000)] {
        let log = log((0..each).flat_map(|_| (1..=CONVERSATIONS).map(|conversation| (conversation, bytes))));
        let mut plan = plan(&log, 0, (1..=CONVERSATIONS).map(|conversation| (conversation, each)));
        plan.skips = true;
        let mut catch_up = begin(&plan, &log);
        let mut all = Vec::new();
        loop {
            let (step, mut out) = step(&mut catch_up, &log, 7);
            all.append(&mut out);
            if step == Step::Done(log.tail()) {
                break;
            }
        }
        let entries: Vec<_> = all.iter().filter(|ready| ready.place.conversation.is_some()).collect();
        let sent: usize = entries.iter().map(|ready| ready.item.len()).sum();
        let last = entries.last().map_or(0, |ready| ready.item.len());
        let is_full = sent >= CATCH_UP_BYTES_MAX as usize && sent - last < CATCH_UP_BYTES_MAX as usize;
        assert!(entries.len() as u64 == CATCH_UP_ITEMS_MAX || is_full, "{} items of {sent} bytes", entries.len());
        for (conversation, of) in told(&all) {
            assert!(has_no_hole(&of, each), "{conversation}: {of:?}");
            let heads = of.iter().filter(|(.., is_entry)| !is_entry).count();
            assert!(heads == 1 && of.last().is_some_and(|(.., is_entry)| !is_entry), "{conversation}: {of:?}");
        }
    }
}

/// What waits for room stays in memory: a look for room reads nothing again.
#[test]
fn an_entry_that_waits_for_room_is_kept_whatever_its_size() {
    let log = log([(1, 100_000), (1, 100_000)]);
    let mut catch_up = begin(&plan(&log, 0, [(1, 2)]), &log);
    let history = log.history();
    let reads = Reads { history: &*history, state: &RwLock::default(), now: LogTime(0), may_block: false, looks: None };
    let mut out = Vec::new();
    for _ in 0..3 {
        let mut room = Room { items: 8, bytes: 1_000, is_empty: false };
        let step = catch_up.step(reads, &Session::of_test(), &mut room, Position(0), &mut out).expect("in memory");
        assert_eq!((step, out.len()), (Step::Full, 0));
        assert!((100_000..101_000).contains(&catch_up.kept), "one entry, not {}", catch_up.kept);
    }
    assert_eq!(step(&mut catch_up, &log, 8).1.len(), 2);
}

/// A log whose files have lost what lies below a seq.
struct Lost(std::sync::Arc<dyn History>, Seq);

impl History for Lost {
    fn range(
        &self,
        id: ConversationId,
        from: Seq,
        to: Seq,
        backwards: bool,
        limit: PageLimit,
    ) -> Result<Vec<StoredEntry>, ReadError> {
        self.0.range(id, from.max(self.1), to, backwards, limit)
    }

    fn first_after(&self, id: ConversationId, position: Position) -> Result<Option<Seq>, ReadError> {
        Ok(self.0.first_after(id, position)?.map(|first| first.max(self.1)))
    }

    fn range_in_memory(
        &self,
        id: ConversationId,
        from: Seq,
        to: Seq,
        backwards: bool,
        limit: PageLimit,
    ) -> Option<Vec<StoredEntry>> {
        self.0.range_in_memory(id, from.max(self.1), to, backwards, limit)
    }

    fn first_after_in_memory(&self, id: ConversationId, position: Position) -> Option<Option<Seq>> {
        let first = self.0.first_after_in_memory(id, position)?;
        Some(first.map(|first| first.max(self.1)))
    }

    fn floor(&self) -> Position {
        Position(0)
    }
}

/// What a conversation lets go, and the files lose, between the plan and its first read is told of: the plan does not know, the
/// rows do.
#[test]
fn what_the_files_lose_between_plan_and_first_read_is_told_of() {
    let log = log((0..10).map(|_| (1, 10)));
    let plan = plan(&log, 2, [(1, 10)]);
    let kept = KeptOfConversation { first: Seq(7), raised: Position(11), is_timed: true };
    let more = MoreOfConversation { kept, ..MoreOfConversation::default() };
    let head = Head { seq: Seq(10), position: Position(10), ..Head::default() };
    let (kind, pair) = (Kind::Direct, (UserId(1), UserId(2)));
    let row = Conversation { kind, label: "".into(), pair, head, members: 2, more };
    let mut state = State::default();
    let key = Key::Conversation(ConversationId(1));
    state.load_row(&key.encode(), &Row::Conversation(row).encode()).expect("a row");
    let (state, history) = (RwLock::new(state), Lost(log.history(), Seq(7)));
    let reads = Reads { history: &history, state: &state, now: LogTime(0), may_block: false, looks: None };
    let mut catch_up = CatchUp::begin(&plan, reads).expect("in memory");
    let (mut room, mut out) = (Room { items: 100, bytes: usize::MAX, is_empty: true }, Vec::new());
    catch_up.step(reads, &Session::of_test(), &mut room, Position(0), &mut out).expect("in memory");
    let of = told(&out);
    // It may name what the device has, too.
    assert_eq!(of[&1], [(1, 6, false), (7, 7, true), (8, 8, true), (9, 9, true), (10, 10, true)]);
}
