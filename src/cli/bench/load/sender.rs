//! Publishing as the broker wants it: within a window, in the order of ids, and again what was refused for the moment.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use longwire_client::packet::publish::Action;
use longwire_protocol::limits::PUBLISH_WINDOW;

use super::party::{Heard, OPEN_ID, Place};

/// How long a publish that is refused for now waits at least.
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// As many as a broker takes unless it is set otherwise.
pub(in crate::cli::bench) const WINDOW: usize = PUBLISH_WINDOW.items as usize;

/// What one device has under way.
#[derive(Debug)]
pub(in crate::cli::bench) struct Outgoing {
    window: usize,
    next_id: u64,
    /// What the broker was last told to be the oldest unanswered.
    told: u64,
    /// In the order of ids.
    under_way: VecDeque<(u64, Sent)>,
    /// Refused for now.
    again: BTreeMap<u64, Sent>,
    again_at: Instant,
    /// How many were refused for now, in all.
    pub(in crate::cli::bench) refused_for_now: u64,
}

#[derive(Debug)]
struct Sent {
    place: Place,
    body: Body,
    due: Instant,
}

/// What is published.
#[derive(Clone, Debug)]
pub(in crate::cli::bench) enum Body {
    Content(Bytes),
    /// Everything up to this seq is read.
    Mark(u64),
    /// Something else than a message, and the content that goes with it.
    Act(Action, Bytes),
}

impl From<Bytes> for Body {
    fn from(content: Bytes) -> Self {
        Self::Content(content)
    }
}

/// Whatever takes publishes.
pub(in crate::cli::bench) trait Publish {
    /// Whether another of so many bytes may leave; `first` is the oldest id under way.
    fn admits(&self, id: u64, first: u64, bytes: usize) -> bool;

    /// Publishes. `first_unanswered`: the oldest id under way, if that has changed, or 0.
    fn publish(&mut self, place: &Place, id: u64, body: Body, first_unanswered: u64);
}

/// A publish that was acked.
#[derive(Debug)]
pub(in crate::cli::bench) struct Acked {
    pub(in crate::cli::bench) place: Place,
    pub(in crate::cli::bench) body: Body,
    /// Since it was due.
    pub(in crate::cli::bench) took: Duration,
    pub(in crate::cli::bench) seq: Option<u64>,
}

impl Acked {
    /// Since it was due, in microseconds.
    pub(in crate::cli::bench) fn micros(&self) -> u64 {
        u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX).max(1)
    }
}

impl Outgoing {
    /// For `window` publishes at a time.
    pub(in crate::cli::bench) fn new(window: usize) -> Self {
        Self::after(window, OPEN_ID)
    }

    /// The same, after the last id that was used.
    pub(in crate::cli::bench) fn after(window: usize, last_id: u64) -> Self {
        Self {
            window,
            next_id: last_id + 1,
            told: 0,
            under_way: VecDeque::new(),
            again: BTreeMap::new(),
            again_at: Instant::now(),
            refused_for_now: 0,
        }
    }

    /// Whether everything is acked.
    pub(in crate::cli::bench) fn is_empty(&self) -> bool {
        self.under_way.is_empty() && self.again.is_empty()
    }

    /// Whether a message of so many bytes may leave now.
    pub(in crate::cli::bench) fn has_room(&self, to: &impl Publish, bytes: usize) -> bool {
        self.again.is_empty() && self.under_way.len() < self.window && to.admits(self.next_id, self.first(), bytes)
    }

    fn first(&self) -> u64 {
        self.under_way.front().map_or(self.next_id, |(id, _)| *id)
    }

    /// The next id, for something else than a message; nothing may be under way.
    pub(in crate::cli::bench) fn take_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// Publishes under the next id.
    pub(in crate::cli::bench) fn send(
        &mut self,
        to: &mut impl Publish,
        place: &Place,
        body: impl Into<Body>,
        due: Instant,
    ) {
        let id = self.next_id;
        self.next_id += 1;
        self.send_as(to, id, Sent { place: place.clone(), body: body.into(), due });
    }

    fn send_as(&mut self, to: &mut impl Publish, id: u64, sent: Sent) {
        let first = self.under_way.front().map_or(id, |(first, _)| *first);
        let moved = first != self.told;
        self.told = first;
        to.publish(&sent.place, id, sent.body.clone(), if moved { first } else { 0 });
        self.under_way.push_back((id, sent));
    }

    /// Sends again what was refused for the moment. The order of ids holds: it leaves when nothing is under way any
    /// more. Returns when to come back, where that is known.
    pub(in crate::cli::bench) fn repeat(&mut self, to: &mut impl Publish) -> Option<Instant> {
        if self.again.is_empty() {
            return None;
        }
        let now = Instant::now();
        if !self.under_way.is_empty() || now < self.again_at {
            return Some(self.again_at.max(now + Duration::from_millis(1)));
        }
        while let Some((id, sent)) = self.again.pop_first() {
            self.send_as(to, id, sent);
        }
        None
    }

    /// Takes in an answer; what was acked by it, if it is one.
    pub(in crate::cli::bench) fn hear(&mut self, heard: &Heard) -> Option<Acked> {
        match *heard {
            Heard::Acked { id, seq } => {
                let sent = self.answered(id)?;
                Some(Acked { took: sent.due.elapsed(), place: sent.place, body: sent.body, seq })
            }
            Heard::RefusedForNow { id, wait } => {
                let sent = self.answered(id)?;
                self.refused_for_now += 1;
                self.again.insert(id, sent);
                self.again_at = self.again_at.max(Instant::now() + wait.max(RETRY_AFTER));
                None
            }
            Heard::Received { .. } => None,
        }
    }

    /// Gives up what was refused for good; what it was, and where it was to go.
    pub(in crate::cli::bench) fn give_up(&mut self, id: u64) -> Option<(Place, Body)> {
        self.answered(id).map(|sent| (sent.place, sent.body))
    }

    /// The id of what comes next; all before it are answered when nothing is under way.
    pub(in crate::cli::bench) const fn next_id(&self) -> u64 {
        self.next_id
    }

    fn answered(&mut self, id: u64) -> Option<Sent> {
        let at = self.under_way.iter().position(|(under_way, _)| *under_way == id)?;
        self.under_way.remove(at).map(|(_, sent)| sent)
    }
}

/// When messages are due: as soon as there is room, or at a rate that asks nobody.
#[derive(Debug)]
pub(in crate::cli::bench) struct Pace(Option<(Duration, Instant)>);

impl Pace {
    /// The share of one of `senders` of `rate` messages a second in all; they take turns. Without a rate: at once.
    pub(in crate::cli::bench) fn of(rate: Option<f64>, number: usize, senders: usize) -> Self {
        Self::since(Instant::now(), rate, number, senders)
    }

    /// The same, begun at a moment.
    pub(in crate::cli::bench) fn since(began: Instant, rate: Option<f64>, number: usize, senders: usize) -> Self {
        Self(rate.map(|rate| {
            let every = Duration::from_secs_f64(senders as f64 / rate.max(0.001));
            (every, began + every.mul_f64(number as f64 / senders as f64))
        }))
    }

    /// The next message, if it is due: from when. Otherwise when it will be.
    pub(in crate::cli::bench) fn next(&mut self) -> Result<Instant, Instant> {
        match &mut self.0 {
            None => Ok(Instant::now()),
            Some((every, due)) if *due <= Instant::now() => {
                let this = *due;
                *due += *every;
                Ok(this)
            }
            Some((_, due)) => Err(*due),
        }
    }
}

/// How much there is to send: so many messages, or until some time.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli::bench) struct Quota {
    left: u64,
    until: Option<Instant>,
}

impl Quota {
    /// The share of one of `senders` of `count` messages, or everything until the time is over.
    pub(in crate::cli::bench) fn of(count: Option<u64>, duration: Duration, number: usize, senders: usize) -> Self {
        let (number, senders) = (number as u64, senders.max(1) as u64);
        Self {
            left: count.map_or(u64::MAX, |count| count / senders + u64::from(number < count % senders)),
            until: count.is_none().then(|| Instant::now() + duration),
        }
    }

    pub(in crate::cli::bench) fn is_over(&self) -> bool {
        self.left == 0 || self.until.is_some_and(|until| Instant::now() >= until)
    }

    pub(in crate::cli::bench) fn take_one(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    pub(in crate::cli::bench) const fn until(&self) -> Option<Instant> {
        self.until
    }
}
