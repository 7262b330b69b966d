//! A lane: what a session is sent next, in log order. Live and behind are one state machine: while it is behind, a
//! push only adds the conversation to a small set, and the connection reads on from the log; it turns live in the
//! same step in which it has read all there was. Where what is new is withheld (SPEC 6.6), a lane that is behind rests
//! there until something that is not comes behind it, or time is up: then it reads on, and finds in the log what to report.
//!
//! Invariant: every item at or below `sent` was handed to the session, or is none of its business; nothing above was,
//! but what stands in `ready`.

use std::collections::VecDeque;

use bytes::Bytes;
use longwire_protocol::packet::HeadReason;
use longwire_protocol::{ConversationId, Seq};

use super::items::head_item;
use super::limits::{CATCH_UP_CONVERSATIONS_MAX, LANE_QUEUE_BYTES_MAX, LANE_QUEUE_ITEMS_MAX};
use crate::mutation::Mutation;
use crate::store::Position;

/// Where an item in flight can be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its position in the log: once it is acked, everything up to here is stored or was reported.
    pub position: Position,
    /// The conversation of an entry; 0 for other items, which are not read again alone.
    pub conversation: ConversationId,
    /// The seq of an entry; 0 for other items.
    pub seq: Seq,
}

/// An item that may leave now.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Where it stands.
    pub place: Place,
    /// The encoded wire `Item`.
    pub item: Bytes,
}

/// Which conversations have something above `sent`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// These.
    Of(Vec<ConversationId>),
    /// Too many to list: whichever the state says.
    Any,
}

/// How long what is new may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Until something else is read.
    WithOthers,
    /// For a while.
    Soon,
    /// Not at all.
    Now,
}

/// Room for so many items is kept between one and the next, until the connection is at rest: the least that is ever made.
const KEPT_ITEMS: usize = 4;

/// One lane of one session.
#[derive(Debug)]
pub struct Lane {
    sent: Position,
    live: bool,
    /// How long what is news may wait.
    urgency: Urgency,
    ready: VecDeque<Ready>,
    ready_bytes: usize,
    news: News,
    marks: bool,
    /// The position of the newest item pushed: what is news is known up to here.
    pushed: Position,
}

/// What a lane that is behind has to look for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The conversations.
    pub news: News,
    /// Whether marks were set.
    pub marks: bool,
    /// Up to where: beyond, there may be news not pushed yet. `None` with [`News::Any`]: up to the state's tail.
    pub target: Option<Position>,
}

impl Lane {
    /// A lane that stands at `sent` and has everything above still to find out.
    #[must_use]
    pub fn behind(sent: Position) -> Self {
        let (ready, urgency) = (VecDeque::new(), Urgency::Now);
        Self { sent, live: false, urgency, ready, ready_bytes: 0, news: News::Any, marks: true, pushed: sent }
    }

    /// Nothing up to here is to be sent, and nothing was yet.
    pub fn start(&mut self, sent: Position) {
        self.sent = sent;
    }

    /// Everything up to here was handed to the session.
    #[must_use]
    pub fn sent(&self) -> Position {
        self.sent
    }

    /// Everything up to here was pushed that was.
    #[must_use]
    pub fn pushed(&self) -> Position {
        self.pushed
    }

    /// Whether pushes go straight through.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// How many items are ready, and their bytes.
    #[must_use]
    pub fn ready_size(&self) -> (usize, usize) {
        (self.ready.len(), self.ready_bytes)
    }

    /// Whether the connection has something to do for this lane.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.live || !self.ready.is_empty()
    }

    /// A committed item is pushed, in position order. `admits` is false while the conversation may not be sent yet. Returns
    /// whether the connection has to know: it has nothing to do for the lane yet. Otherwise it goes on by itself, or once there
    /// is room in the window, so that who never acks costs a few instructions for each message, and no turn.
    pub fn push(&mut self, ready: Ready, admits: bool) -> bool {
        let newest = self.ready.back().map_or(self.sent, |r| r.place.position);
        if ready.place.position <= newest {
            return false;
        }
        let is_news = !self.has_work() || self.rests();
        self.pushed = ready.place.position;
        let fits = self.ready.len() < LANE_QUEUE_ITEMS_MAX && self.ready_bytes < LANE_QUEUE_BYTES_MAX;
        if self.live && admits && fits {
            self.ready_bytes += ready.item.len();
            self.ready.push_back(ready);
            return is_news;
        }
        if self.live && admits && Mutation::FullQueueForgets.is_planted() {
            return false;
        }
        if self.rests() && Mutation::WithheldOvertaken.is_planted() {
            self.ready_bytes += ready.item.len();
            self.ready.push_back(ready);
            return is_news;
        }
        self.note(ready.place, Urgency::Now);
        is_news
    }

    /// A committed item is to be reported, and not sent as it is. Returns whether the connection has to know.
    pub fn withhold(&mut self, place: Place, urgency: Urgency) -> bool {
        let newest = self.ready.back().map_or(self.sent, |r| r.place.position);
        if place.position <= newest {
            return false;
        }
        self.pushed = place.position;
        if Mutation::WithheldForgotten.is_planted() {
            return false;
        }
        let before = self.urgency;
        self.note(place, urgency);
        self.urgency > before
    }

    /// Whether it is behind, and need not read on yet.
    #[must_use]
    pub fn rests(&self) -> bool {
        !self.live && self.urgency < Urgency::Now
    }

    /// Whether it rests for a while only.
    #[must_use]
    pub fn rests_for_a_while(&self) -> bool {
        !self.live && self.urgency == Urgency::Soon
    }

    /// What is withheld is to be read now.
    pub fn stir(&mut self) {
        if !self.live {
            self.urgency = Urgency::Now;
        }
    }

    /// There is something at a place that is to be looked for.
    fn note(&mut self, place: Place, urgency: Urgency) {
        self.live = false;
        self.urgency = self.urgency.max(urgency);
        if !place.conversation.is_some() {
            self.marks = true;
        } else if let News::Of(news) = &mut self.news
            && !news.contains(&place.conversation)
        {
            if news.len() < CATCH_UP_CONVERSATIONS_MAX {
                news.push(place.conversation);
            } else {
                self.news = News::Any;
            }
        }
    }

    /// What the session may see has changed: what is ready is looked for anew.
    pub fn look_again(&mut self) {
        self.ready_bytes = 0;
        for ready in std::mem::take(&mut self.ready) {
            self.note(ready.place, Urgency::Now);
        }
    }

    /// An entry that waits here is shown to nobody any more: it is reported in its place.
    pub fn withdraw(&mut self, conversation: ConversationId, seq: Seq) {
        self.withdraw_where(conversation, HeadReason::Recalled, |of| of == seq);
    }

    /// The same of all that wait below a seq: the conversation keeps them no more.
    pub fn withdraw_below(&mut self, conversation: ConversationId, first: Seq) {
        self.withdraw_where(conversation, HeadReason::Expired, |of| of < first);
    }

    fn withdraw_where(&mut self, conversation: ConversationId, reason: HeadReason, is_it: impl Fn(Seq) -> bool) {
        for ready in &mut self.ready {
            if ready.place.conversation == conversation && is_it(ready.place.seq) {
                let head = head_item(conversation, ready.place.seq, ready.place.seq, reason, 0);
                self.ready_bytes = self.ready_bytes - ready.item.len() + head.len();
                ready.item = head;
            }
        }
    }

    /// The next ready item of at most `bytes`, or of any size when `any_size`.
    pub fn take(&mut self, bytes: usize, any_size: bool) -> Option<Ready> {
        let first = self.ready.front()?;
        if !any_size && first.item.len() > bytes {
            return None;
        }
        let ready = self.ready.pop_front()?;
        self.ready_bytes -= ready.item.len();
        self.sent = ready.place.position;
        if self.ready.is_empty() && self.ready.capacity() > KEPT_ITEMS {
            self.ready = VecDeque::new();
        }
        Some(ready)
    }

    /// Gives back memory that nothing uses.
    pub fn shrink(&mut self) {
        if self.ready.is_empty() {
            self.ready = VecDeque::new();
        }
    }

    /// While behind, and once all that was ready is taken: what to look for above [`Self::sent`]. What is pushed from
    /// now on is news of the next turn.
    pub fn begin_turn(&mut self) -> Option<Turn> {
        if self.live || self.rests() || !self.ready.is_empty() {
            return None;
        }
        self.urgency = Urgency::WithOthers;
        let news = std::mem::replace(&mut self.news, News::Of(Vec::new()));
        let target = (news != News::Any).then_some(self.pushed.max(self.sent));
        Some(Turn { news, marks: std::mem::take(&mut self.marks), target })
    }

    /// The session was handed an item that the connection read itself.
    pub fn advance(&mut self, position: Position) {
        assert!(self.ready.is_empty(), "what is ready leaves first");
        self.sent = self.sent.max(position);
    }

    /// Everything up to `target` was read. Turns live if nothing was pushed meanwhile; returns whether it did.
    pub fn end_turn(&mut self, target: Position) -> bool {
        self.advance(target);
        self.live = matches!(&self.news, News::Of(news) if news.is_empty()) && !self.marks;
        if Mutation::LiveTooEarly.is_planted() {
            (self.live, self.news) = (true, News::Of(Vec::new()));
        }
        if self.live {
            self.urgency = Urgency::WithOthers;
        }
        self.live
    }

    /// Nothing up to `fed` was for this lane, if it is live and idle.
    pub fn pass(&mut self, fed: Position) {
        if self.live && self.ready.is_empty() {
            self.sent = self.sent.max(fed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(position: u64, conversation: u64) -> Ready {
        let place =
            Place { position: Position(position), conversation: ConversationId(conversation), seq: Seq(position) };
        Ready { place, item: Bytes::from_static(b"item") }
    }

    fn live(sent: u64) -> Lane {
        let mut lane = Lane::behind(Position(sent));
        lane.begin_turn().expect("it is behind");
        assert!(lane.end_turn(Position(sent)), "there was nothing");
        lane
    }

    fn push_all(lane: &mut Lane, all: impl IntoIterator<Item = Ready>) {
        for ready in all {
            lane.push(ready, true);
        }
    }

    #[test]
    fn a_lane_is_behind_with_what_its_queue_has_no_room_for() {
        let mut lane = live(0);
        (1..=LANE_QUEUE_ITEMS_MAX as u64).for_each(|n| assert_eq!(lane.push(ready(n, 1), true), n == 1));
        assert!(lane.is_live() && lane.ready_size().0 == LANE_QUEUE_ITEMS_MAX);
        assert!(!lane.push(ready(1000, 2), true), "it has something to do");
        assert!(!lane.is_live() && lane.ready_size().0 == LANE_QUEUE_ITEMS_MAX);

        let large = |n| Ready { item: vec![0; LANE_QUEUE_BYTES_MAX / 4].into(), ..ready(n, 1) };
        let mut lane = live(0);
        push_all(&mut lane, (1..=4).map(large));
        assert!(lane.is_live() && lane.ready_size() == (4, LANE_QUEUE_BYTES_MAX));
        lane.push(ready(5, 2), true);
        assert!(!lane.is_live());
        (1..=4).for_each(|n| assert_eq!(lane.take(0, true).map(|r| r.place.seq), Some(Seq(n))));
        let turn = Turn { news: News::Of(vec![ConversationId(2)]), marks: false, target: Some(Position(5)) };
        assert_eq!((lane.begin_turn(), lane.ready_size()), (Some(turn), (0, 0)));
    }

    /// SPEC R6.6-4: what is withheld waits for others, or for a while, and is read when its time is up.
    #[test]
    fn what_is_withheld_rests_until_it_is_stirred() {
        let mut lane = live(0);
        assert!(!lane.rests() && !lane.rests_for_a_while());
        assert!(!lane.withhold(ready(1, 1).place, Urgency::WithOthers), "there is no haste");
        assert!(lane.rests() && !lane.rests_for_a_while() && lane.has_work());
        assert!(lane.withhold(ready(2, 1).place, Urgency::Soon), "it is told in a while");
        assert!(!lane.withhold(ready(3, 1).place, Urgency::Soon), "it is told already");
        assert!(lane.rests() && lane.rests_for_a_while());
        assert_eq!(lane.begin_turn(), None);
        lane.stir();
        assert!(!lane.rests() && !lane.rests_for_a_while());
        let turn = Turn { news: News::Of(vec![ConversationId(1)]), marks: false, target: Some(Position(3)) };
        assert_eq!(lane.begin_turn(), Some(turn));
        // What comes while it reads waits again, and nothing of before makes it hurry.
        assert!(!lane.withhold(ready(4, 1).place, Urgency::WithOthers));
        assert!(!lane.end_turn(Position(3)) && lane.rests());
        assert!(lane.push(ready(5, 2), true), "it takes along what rested");
        assert!(!lane.push(ready(6, 2), true) && !lane.rests());
    }

    #[test]
    fn what_is_shown_no_more_is_reported_where_it_waited() {
        let mut lane = live(0);
        push_all(&mut lane, [(1, 1), (2, 2), (3, 1), (4, 1), (5, 1)].map(|(n, of)| ready(n, of)));
        lane.withdraw(ConversationId(1), Seq(4));
        lane.withdraw_below(ConversationId(1), Seq(3));
        let head = |n, reason| head_item(ConversationId(1), Seq(n), Seq(n), reason, 0);
        let (recalled, expired) = (head(4, HeadReason::Recalled), head(1, HeadReason::Expired));
        assert_eq!(lane.ready_size(), (5, 3 * b"item".len() + recalled.len() + expired.len()));
        let taken: Vec<_> = std::iter::from_fn(|| lane.take(usize::MAX, false).map(|r| r.item)).collect();
        let item = Bytes::from_static(b"item");
        assert_eq!(taken, [expired, item.clone(), item.clone(), recalled, item]);
        assert_eq!(lane.ready_size(), (0, 0));
    }

    #[test]
    fn what_is_looked_for_anew_is_news_of_the_next_turn() {
        let mut lane = live(0);
        push_all(&mut lane, [(1, 1), (2, 2), (3, 1), (4, 0)].map(|(n, of)| ready(n, of)));
        lane.look_again();
        assert_eq!((lane.ready_size(), lane.take(usize::MAX, true).map(|r| r.place)), ((0, 0), None));
        let news = News::Of(vec![ConversationId(1), ConversationId(2)]);
        assert_eq!(lane.begin_turn(), Some(Turn { news, marks: true, target: Some(Position(4)) }));
    }

    #[test]
    fn an_item_leaves_where_there_is_room_for_it_or_nothing_else_is_on_its_way() {
        let mut lane = live(0);
        push_all(&mut lane, (1..=2).map(|n| ready(n, 1)));
        assert!(lane.take(3, false).is_none());
        assert!(lane.take(4, false).is_some_and(|r| r.place.seq == Seq(1)));
        assert_eq!((lane.sent(), lane.pushed(), lane.ready_size()), (Position(1), Position(2), (1, 4)));
        assert!(lane.take(3, true).is_some_and(|r| r.place.seq == Seq(2)));
        // A live lane that is idle follows the feed; one that is behind does not.
        lane.pass(Position(7));
        assert_eq!(lane.sent(), Position(7));
        lane.push(ready(8, 1), false);
        lane.pass(Position(9));
        assert_eq!(lane.sent(), Position(7));
    }

    /// S1 in small: entries of conversation 1 are withheld, those of 2 are not. At no interleaving is one of 2 sent past one
    /// of 1 that was not read, and a lane that rests is woken by what is to be told soon (SPEC R6.6-4).
    #[test]
    fn s1_nothing_overtakes_what_is_withheld_at_any_interleaving() {
        const LOG: u64 = 6;
        // Each log says which conversation an entry is of, each schedule whether an entry is fed or the reader reads.
        for (log, schedule) in (0..1_u64 << LOG).flat_map(|log| (0..1_u64 << 10).map(move |schedule| (log, schedule))) {
            let of = |position: u64| 1 + (log >> (position - 1) & 1);
            let mut lane = Lane::behind(Position(0));
            let (mut fed, mut got) = (0, Vec::new());
            let mut step = |feeds: bool, stirs: bool, got: &mut Vec<u64>| {
                if feeds {
                    fed += u64::from(fed < LOG);
                    let _ = match of(fed) {
                        1 => lane.withhold(ready(fed, 1).place, Urgency::Soon),
                        _ => lane.push(ready(fed, 2), true),
                    };
                    return;
                }
                if stirs {
                    lane.stir();
                }
                if let Some(r) = lane.take(usize::MAX, true) {
                    got.push(r.place.position.0);
                } else if let Some(Turn { news, target, .. }) = lane.begin_turn() {
                    let target = target.map_or(fed, |target| target.0);
                    let is_news = |p: &u64| match &news {
                        News::Any => true,
                        News::Of(list) => list.contains(&ConversationId(of(*p))),
                    };
                    got.extend((lane.sent().0 + 1..=target).filter(is_news));
                    lane.end_turn(Position(target));
                }
                assert!(!lane.rests() || lane.rests_for_a_while(), "what waits is told soon");
            };
            (0..10).for_each(|at| step(schedule >> at & 1 == 1, false, &mut got));
            (0..LOG).for_each(|_| step(true, false, &mut got));
            (0..LOG + 2).for_each(|_| step(false, false, &mut got));
            let last_wanted = (1..=LOG).rev().find(|p| of(*p) == 2).unwrap_or(0);
            assert!(got.len() as u64 >= last_wanted, "log {log:b}, schedule {schedule:b}: {got:?} up to {last_wanted}");
            (0..2).for_each(|_| step(false, true, &mut got));
            assert_eq!(got, (1..=LOG).collect::<Vec<_>>(), "log {log:b}, schedule {schedule:b}");
        }
    }

    /// S16: the switch from behind to live at every interleaving of the feed with the reader's steps. A small world:
    /// a log of entries in two conversations; state sees `committed`, the feed has pushed `fed`, the reader turns, as long as
    /// it finds something to do and when a push says that there is again.
    #[test]
    fn s16_the_switch_to_live_loses_and_doubles_nothing_at_any_interleaving() {
        const LOG: u64 = 5;
        // Each schedule is a string of choices: commit, feed or read, as base-3 digits.
        for schedule in 0..3_u64.pow(13) {
            let mut lane = Lane::behind(Position(0));
            let (mut committed, mut fed, mut got) = (0, 0, Vec::new());
            let (mut turn, mut is_awake): (Option<(Vec<u64>, u64)>, bool) = (None, true);
            let mut choices = schedule;
            let mut step = |choice: u64, got: &mut Vec<u64>| match choice {
                0 => committed = (committed + 1).min(LOG),
                1 if fed < committed => {
                    fed += 1;
                    is_awake |= lane.push(ready(fed, 1 + fed % 2), true);
                }
                1 => {}
                _ if !is_awake => {}
                _ => {
                    if let Some(r) = lane.take(usize::MAX, true) {
                        got.push(r.place.position.0);
                    } else if let Some((due, target)) = &mut turn {
                        if due.is_empty() {
                            lane.end_turn(Position(*target));
                            turn = None;
                        } else {
                            let p = due.remove(0);
                            got.push(p);
                            lane.advance(Position(p));
                        }
                    } else if let Some(Turn { news, target, .. }) = lane.begin_turn() {
                        let target = target.map_or(committed, |t| t.0);
                        let wanted = |p: &u64| match &news {
                            News::Any => true,
                            News::Of(list) => list.contains(&ConversationId(1 + p % 2)),
                        };
                        turn = Some(((lane.sent().0 + 1..=target).filter(wanted).collect(), target));
                    } else {
                        is_awake = false;
                    }
                }
            };
            for _ in 0..13 {
                step(choices % 3, &mut got);
                choices /= 3;
            }
            // Then everything comes to rest.
            for _ in 0..LOG {
                step(0, &mut got);
                step(1, &mut got);
            }
            for _ in 0..40 {
                step(1, &mut got);
                step(2, &mut got);
            }
            assert_eq!(got, (1..=LOG).collect::<Vec<_>>(), "schedule {schedule}");
            assert!(lane.is_live(), "schedule {schedule}");
        }
    }
}
