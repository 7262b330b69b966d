//! The honest: publishers and readers of one busy channel, who check all that they get, while others attack.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use longwire_client::packet::{self, CatchUpMode, EntryKind, Join, OpenChannel, item, publish::Action};
use longwire_protocol::session::ClientEvent;
use tokio::task::JoinSet;

use super::super::super::Fail;
use super::super::args::Issuer;
use super::super::load::party::{Broker, Heard, OPEN_ID, Party, Place};
use super::super::load::sender::Outgoing;
use super::super::load::stamp::{Numbers, Stamp};
use super::super::load::way::Way;
use super::super::load::wire::{Wire, WireError, fresh};
use super::super::report::histogram;

/// Publishes under way of each publisher that goes as fast as it can.
const WINDOW: usize = 32;
/// How soon a change of pace is noticed.
const TICK: Duration = Duration::from_millis(20);
/// How long the last messages may take to arrive.
const PATIENCE: Duration = Duration::from_secs(30);
/// Who cannot keep up by so much takes its turns from now on.
const LATE: Duration = Duration::from_secs(1);

/// How fast the publishers go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pace {
    /// Not at all.
    Rest,
    /// So many messages a second in all, whether acks come or not.
    Rate(f64),
    /// As fast as the window allows.
    Full,
}

/// What happened in a stretch of time.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) seconds: f64,
    pub(super) acked: u64,
    pub(super) delivered: u64,
    pub(super) ack_us: Histogram<u64>,
    pub(super) delivery_us: Histogram<u64>,
    /// Publishes that were refused for now, and those of them without a word on when to come again.
    pub(super) refused: u64,
    pub(super) refused_without_wait: u64,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            seconds: 0.0,
            acked: 0,
            delivered: 0,
            ack_us: histogram(),
            delivery_us: histogram(),
            refused: 0,
            refused_without_wait: 0,
        }
    }
}

impl Sample {
    /// Both stretches as one.
    pub(super) fn and(mut self, other: &Self) -> Self {
        self.seconds += other.seconds;
        self.acked += other.acked;
        self.delivered += other.delivered;
        self.ack_us += &other.ack_us;
        self.delivery_us += &other.delivery_us;
        self.refused += other.refused;
        self.refused_without_wait += other.refused_without_wait;
        self
    }
}

/// What all of them share.
struct Board {
    /// Microseconds between two messages of one publisher; 0: as fast as it can; [`RESTS`].
    every_us: AtomicU64,
    publishers: usize,
    sample: Mutex<Sample>,
    /// What must not happen, and did.
    broken: Mutex<Vec<String>>,
    /// Messages that were published, those of them that were acked, and the highest seq of these.
    published: AtomicU64,
    acked: AtomicU64,
    head: AtomicU64,
}

const RESTS: u64 = u64::MAX;

impl Board {
    fn new(publishers: usize) -> Self {
        Self {
            every_us: AtomicU64::new(RESTS),
            publishers,
            sample: Mutex::default(),
            broken: Mutex::default(),
            published: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            head: AtomicU64::new(0),
        }
    }

    /// Publishes without an ack.
    fn open(&self) -> u64 {
        self.published.load(Ordering::Relaxed) - self.acked.load(Ordering::Relaxed)
    }

    fn sample(&self) -> MutexGuard<'_, Sample> {
        self.sample.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn broke(&self, what: String) {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }
}

/// The load, running.
pub(super) struct Honest {
    board: Arc<Board>,
    tasks: JoinSet<()>,
    /// How far each reader has come in the channel.
    read: Vec<Arc<AtomicU64>>,
}

/// How many of what.
#[derive(Clone, Debug)]
pub(super) struct Crowd {
    pub(super) publishers: usize,
    pub(super) readers: usize,
    pub(super) size: usize,
    pub(super) prefix: String,
    /// Each publisher has a channel of its own that nobody reads, instead of one for all.
    pub(super) apart: bool,
    pub(super) window: usize,
}

impl Crowd {
    pub(super) fn busy(publishers: usize, readers: usize, size: usize, prefix: String) -> Self {
        Self { publishers, readers, size, prefix, apart: false, window: WINDOW }
    }
}

impl Honest {
    /// Everybody is connected, and rests.
    pub(super) async fn start(way: &Way, issuer: &Issuer, crowd: &Crowd) -> Result<Self, Fail> {
        let board = Arc::new(Board::new(crowd.publishers));
        let name = |n: usize| format!("{}/{n}", crowd.prefix);
        let (mut tasks, mut read) = (JoinSet::new(), Vec::new());
        for number in 0..crowd.readers {
            let user = format!("{}-r{number}", crowd.prefix);
            let connect =
                packet::Connect { catch_up: CatchUpMode::All.into(), ..fresh(issuer.token(&user)?, user.clone()) };
            let mut wire = Wire::connect(way, None, connect).await?;
            let channel = join(&mut wire, name(0)).await?;
            let at = Arc::new(AtomicU64::new(0));
            read.push(Arc::clone(&at));
            let reader = Reader { number, channel, at, numbers: Numbers::default(), board: Arc::clone(&board) };
            tasks.spawn(reader.run(wire));
        }
        let broker = Broker::Longwire { way: way.clone(), issuer: issuer.clone(), heartbeat_ms: 0 };
        for number in 0..crowd.publishers {
            let mut party = broker.connect(&format!("{}-p{number}", crowd.prefix), None).await?;
            let place = party.open_channel(&name(if crowd.apart { number } else { 0 })).await?;
            let publisher = Publisher {
                number,
                place,
                size: crowd.size,
                outgoing: Outgoing::new(crowd.window),
                sent: 0,
                last_seq: 0,
                waits: false,
                due: Instant::now(),
                board: Arc::clone(&board),
            };
            tasks.spawn(publisher.run(party));
        }
        Ok(Self { board, tasks, read })
    }

    pub(super) fn pace(&self, pace: Pace) {
        let every_us = match pace {
            Pace::Rest => RESTS,
            Pace::Full => 0,
            Pace::Rate(rate) => ((self.board.publishers as f64 * 1e6 / rate.max(0.001)) as u64).clamp(1, RESTS - 1),
        };
        self.board.every_us.store(every_us, Ordering::Relaxed);
    }

    /// What happens from now on, for so long.
    pub(super) async fn watch(&self, time: Duration) -> Sample {
        let begun = Instant::now();
        drop(std::mem::take(&mut *self.board.sample()));
        tokio::time::sleep(time).await;
        let mut sample = std::mem::take(&mut *self.board.sample());
        sample.seconds = begun.elapsed().as_secs_f64();
        sample
    }

    /// Messages acked since the start.
    pub(super) fn acked(&self) -> u64 {
        self.board.acked.load(Ordering::Relaxed)
    }

    /// Rests, and waits until everything under way has its answer and every reader has everything. What did not hold
    /// up to here is named.
    pub(super) async fn settle(&self) -> Vec<String> {
        self.pace(Pace::Rest);
        let begun = Instant::now();
        let is_behind = || {
            let head = self.board.head.load(Ordering::Relaxed);
            self.board.open() > 0 || self.read.iter().any(|at| at.load(Ordering::Relaxed) < head)
        };
        // A change of pace is noticed first.
        tokio::time::sleep(2 * TICK).await;
        while is_behind() && begun.elapsed() < PATIENCE && !self.is_broken() {
            tokio::time::sleep(TICK).await;
        }
        if is_behind() {
            let head = self.board.head.load(Ordering::Relaxed);
            let behind = self.read.iter().filter(|at| at.load(Ordering::Relaxed) < head).count();
            let open = self.board.open();
            self.board.broke(format!("{behind} readers lack messages, {open} publishes have no answer"));
        }
        self.board.broken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_broken(&self) -> bool {
        !self.board.broken.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub(super) async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Opens the channel and becomes one of its readers.
async fn join(wire: &mut Wire, name: String) -> Result<u64, WireError> {
    let open = Some(Action::OpenChannel(OpenChannel { name }));
    let open = packet::Publish { message_id: OPEN_ID, action: open, ..Default::default() };
    let conversation = wire.publish_one(open).await?.conversation;
    let join = Some(Action::Join(Join::default()));
    let join = packet::Publish { message_id: OPEN_ID + 1, conversation, action: join, ..Default::default() };
    let joined = wire.publish_one(packet::Publish { first_unanswered: OPEN_ID + 1, ..join }).await?;
    wire.streams.stands_at(conversation, joined.seq);
    Ok(conversation)
}

// ---------------------------------------------------------------------------------------------- who reads

struct Reader {
    number: usize,
    channel: u64,
    /// How far it has come; that nothing is left out before is the wire's to see.
    at: Arc<AtomicU64>,
    /// Which of each publisher's messages it has.
    numbers: Numbers,
    board: Arc<Board>,
}

impl Reader {
    async fn run(mut self, mut wire: Wire) {
        let Err(why) = self.read(&mut wire).await else { return };
        self.board.broke(format!("reader {}: {why}", self.number));
    }

    async fn read(&mut self, wire: &mut Wire) -> Result<(), WireError> {
        loop {
            while let Some(event) = wire.next_event()? {
                if let ClientEvent::Items { items, .. } = event {
                    self.take(&items).map_err(WireError::Broken)?;
                    if wire.streams.reported > 0 {
                        return Err(WireError::Broken("seqs were skipped".to_owned()));
                    }
                }
            }
            wire.step().await?;
        }
    }

    /// Says what is wrong with these.
    fn take(&mut self, items: &[packet::Item]) -> Result<(), String> {
        let mut sample = self.board.sample();
        for item in items {
            let Some(item::Kind::Entry(entry)) = &item.kind else { continue };
            if entry.conversation != self.channel || entry.kind() != EntryKind::Message {
                continue;
            }
            let stamp = Stamp::read(&entry.content).ok_or("a message that nobody here has sent")?;
            self.numbers.take(stamp)?;
            self.at.store(entry.seq, Ordering::Relaxed);
            sample.delivered += 1;
            sample.delivery_us.saturating_record(stamp.age_us());
        }
        Ok(())
    }
}

// ---------------------------------------------------------------------------------------------- who publishes

struct Publisher {
    number: usize,
    place: Place,
    size: usize,
    outgoing: Outgoing,
    /// How many messages it has published.
    sent: u64,
    /// The seq that was acked last: the next one lies above it.
    last_seq: u64,
    /// It was told to wait; what comes behind that publish need not say so again.
    waits: bool,
    /// When the next message is due.
    due: Instant,
    board: Arc<Board>,
}

impl Publisher {
    async fn run(mut self, mut party: Party) {
        let why = loop {
            if let Err(why) = self.step(&mut party).await {
                break why;
            }
        };
        self.board.broke(format!("publisher {}: {why}", self.number));
    }

    async fn step(&mut self, party: &mut Party) -> Result<(), WireError> {
        let wake = match self.outgoing.repeat(party) {
            Some(again_at) => again_at,
            None => {
                // Nothing that was refused waits any more.
                self.waits = false;
                self.publish(party)
            }
        };
        party.step(Some(wake.min(Instant::now() + TICK))).await?;
        party.hear(|heard| self.take(&heard))
    }

    /// Publishes what is due; returns when the next is.
    fn publish(&mut self, party: &mut Party) -> Instant {
        let (every_us, now) = (self.board.every_us.load(Ordering::Relaxed), Instant::now());
        if every_us == RESTS {
            return now + TICK;
        }
        let every = Duration::from_micros(every_us);
        if every_us != 0 && self.due + LATE < now {
            // It rested, or cannot keep up: publishers take turns from now on.
            self.due = now + every.mul_f64(self.number as f64 / self.board.publishers.max(1) as f64);
        }
        while self.outgoing.has_room(party, self.size.max(Stamp::BYTES)) {
            let due = match every_us {
                0 => Instant::now(),
                _ if self.due > now => return self.due,
                _ => self.due,
            };
            self.due += every;
            self.sent += 1;
            self.board.published.fetch_add(1, Ordering::Relaxed);
            let content = Stamp::new(self.number as u32, self.sent, due).content(self.size);
            self.outgoing.send(party, &self.place, content, due);
        }
        now + TICK
    }

    fn take(&mut self, heard: &Heard) -> Result<(), WireError> {
        if let Heard::RefusedForNow { wait, .. } = heard {
            self.waits |= !wait.is_zero();
            let mut sample = self.board.sample();
            sample.refused += 1;
            sample.refused_without_wait += u64::from(!self.waits);
        }
        if let Some(acked) = self.outgoing.hear(heard) {
            let seq = acked.seq.unwrap_or_default();
            if seq <= self.last_seq {
                return Err(WireError::Broken(format!("seq {seq} was acked after {}", self.last_seq)));
            }
            self.last_seq = seq;
            self.board.head.fetch_max(seq, Ordering::Relaxed);
            self.board.acked.fetch_add(1, Ordering::Relaxed);
            let mut sample = self.board.sample();
            sample.acked += 1;
            sample.ack_us.saturating_record(acked.micros());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(seq: u64, number: u64) -> packet::Item {
        let content = Stamp::new(0, number, Instant::now()).content(40);
        let entry = packet::Entry { conversation: 7, seq, content, ..Default::default() };
        packet::Item { kind: Some(item::Kind::Entry(entry)) }
    }

    #[test]
    fn a_reader_notices_what_is_lost_doubled_or_out_of_order() {
        let read = |items: &[(u64, u64)]| {
            let (at, board) = (Arc::default(), Arc::new(Board::new(1)));
            let mut reader = Reader { number: 0, channel: 7, at, numbers: Numbers::default(), board };
            reader.take(&items.iter().map(|(seq, number)| entry(*seq, *number)).collect::<Vec<_>>())
        };
        assert_eq!(read(&[(1, 1), (2, 2), (3, 3)]), Ok(()));
        for wrong in [[(1, 1), (3, 3)], [(1, 1), (2, 1)], [(1, 2), (2, 1)]] {
            assert!(read(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_refusal_that_names_no_wait_is_counted_unless_it_stands_behind_one_that_does() {
        let mut publisher = Publisher {
            number: 0,
            place: Place::Conversation(7),
            size: 0,
            outgoing: Outgoing::new(1),
            sent: 0,
            last_seq: 0,
            waits: false,
            due: Instant::now(),
            board: Arc::new(Board::new(1)),
        };
        let mut refuse = |wait: u64| {
            let heard = Heard::RefusedForNow { id: 9, wait: Duration::from_millis(wait) };
            publisher.take(&heard).expect("it goes on");
            let sample = publisher.board.sample();
            (sample.refused, sample.refused_without_wait)
        };
        assert_eq!([refuse(500), refuse(0), refuse(0)], [(1, 0), (2, 0), (3, 0)]);
        publisher.waits = false;
        let heard = Heard::RefusedForNow { id: 9, wait: Duration::ZERO };
        publisher.take(&heard).expect("it goes on");
        assert_eq!(publisher.board.sample().refused_without_wait, 1);
    }
}
