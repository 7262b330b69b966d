//! What a device has published and not yet heard the end of.
//!
//! Message ids are a dense counter. A publish is sent only when it is *saved* (on disk, if the outbox has one), and it
//! leaves the outbox only when it is *answered*: acked, or refused for good. What was told to the broker as the first
//! unanswered id never lies above what the disk says, so a crash cannot put this device below its own floor.
//!
//! An outbox that was restored from a copy is told by the broker that it is one. Then it sends nothing until it has
//! settled what it holds (`settle.rs`); until then its disk names the incarnation of the copy, so that a crash begins
//! the settling anew, and one batch ends it.

mod file;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;

use bytes::Bytes;
use longwire_protocol::packet;
use prost::Message as _;
use tokio::sync::oneshot;
use tokio::time::{Duration, Instant};

pub use file::outbox_path;

use crate::error::{GiveUpError, OutboxError, PublishError};
use crate::settle::{Settled, Settling};
use file::OutboxFile;

/// From the oldest unanswered message id to the newest one sent: at most this many, by the protocol.
const SPAN_MAX: u64 = 256;

/// Where a client keeps what is not acked yet.
#[derive(Clone, Debug, Default)]
pub enum Outbox {
    /// In memory: gone with the process. For scripts that can be run again.
    #[default]
    Memory,
    /// In a file of its own (mode 0600), made when it is not there. Everything in it is sent after a restart under
    /// its old message ids, so that nothing is lost and nothing doubled.
    File(PathBuf),
    /// Nowhere: the application gives the message ids ([`Client::publish_numbered`]) and can produce what was not
    /// acked again from its own source. `incarnation` is the one it had when it began, 0 the first time.
    ///
    /// [`Client::publish_numbered`]: crate::Client::publish_numbered
    Numbered {
        /// As told by the first `Connected`; the application keeps it beside its source.
        incarnation: u64,
    },
}

/// How much an outbox may hold. A publish above that is refused at once, by [`PublishError::OutboxFull`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxLimits {
    /// How many publishes.
    pub items: usize,
    /// How many bytes, as encoded.
    pub bytes: usize,
}

impl Default for OutboxLimits {
    fn default() -> Self {
        Self { items: 10_000, bytes: 16 << 20 }
    }
}

/// Where the outcome of a publish goes.
pub(crate) type Answer = oneshot::Sender<Result<packet::PublishAck, PublishError>>;
/// Told when a publish is saved.
pub(crate) type Saved = oneshot::Sender<Result<u64, PublishError>>;

/// What an outbox file kept over a restart.
#[derive(Debug, Default)]
struct Kept {
    owner: Owner,
    incarnation: u64,
    next_id: u64,
    cursor: Option<Bytes>,
    publishes: Vec<(u64, packet::Publish)>,
    doubtful: BTreeMap<u64, packet::Publish>,
}

/// Whose message ids an outbox holds: a user of a broker. Zeros until the first connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The user's id.
    pub(crate) user: u64,
    /// When the broker's log was born: what tells one broker from another.
    pub(crate) birth: u64,
}

/// What goes to disk in one transaction.
#[derive(Clone, Debug, Default)]
struct Batch {
    number: u64,
    owner: Owner,
    incarnation: u64,
    next_id: u64,
    puts: Vec<(u64, Vec<u8>)>,
    removes: Vec<u64>,
    /// From the unanswered to the doubtful.
    doubts: Vec<(u64, Vec<u8>)>,
    /// Out of the doubtful.
    doubts_ended: Vec<u64>,
    cursor: Option<Bytes>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.puts.is_empty()
            && self.removes.is_empty()
            && self.doubts.is_empty()
            && self.doubts_ended.is_empty()
            && self.cursor.is_none()
    }
}

#[derive(Debug)]
struct Unanswered {
    publish: packet::Publish,
    bytes: usize,
    /// The batch that puts it on disk.
    batch: u64,
    /// Sent on this connection, and not refused since.
    sent: bool,
    /// It was never sent, or the last word about it is that it is not stored.
    surely_not_stored: bool,
    /// The same before it was sent on this connection.
    was_surely_not_stored: bool,
    answer: Option<Answer>,
}

/// A conversation whose publishes wait because the broker refused one of them for now. They go on when what is under
/// way is answered and the time has passed: then everything open is repeated, in the order of ids.
#[derive(Clone, Copy, Debug)]
struct Hold {
    until: Instant,
}

/// The outbox as its client's task holds it.
#[derive(Debug)]
pub(crate) struct OutboxState {
    limits: OutboxLimits,
    owner: Owner,
    incarnation: u64,
    /// Whether the incarnation is on disk: nothing is sent before.
    incarnation_batch: u64,
    next_id: u64,
    numbered: bool,
    unanswered: BTreeMap<u64, Unanswered>,
    bytes: usize,
    /// Answered, but not yet on disk as such: (batch, id).
    leaving: VecDeque<(u64, u64)>,
    /// No id below this one is unsent.
    send_from: u64,
    holds: HashMap<u64, Hold>,
    told: u64,
    saved_waiters: VecDeque<(u64, Saved, u64)>,
    pending: Batch,
    saving: bool,
    saved: u64,
    file: Option<OutboxFile>,
    cursor: Option<Bytes>,
    /// It was restored from a copy and does not know yet what of it is stored.
    settling: Option<Settling>,
    /// What the settling came to, to be told when this batch is on disk.
    settled: Option<(u64, Settled)>,
    /// What may be stored or not, and what only the application can decide about.
    doubtful: BTreeMap<u64, packet::Publish>,
}

impl OutboxState {
    /// Opens an outbox; `saved` is called with the outcome of each batch that went to disk.
    pub(crate) fn open(
        choice: &Outbox,
        limits: OutboxLimits,
        device: &str,
        saved: impl Fn(Result<u64, OutboxError>) + Send + 'static,
    ) -> Result<Self, OutboxError> {
        let mut numbered = false;
        let (file, kept) = match choice {
            Outbox::Memory => (None, Kept::default()),
            Outbox::Numbered { incarnation } => {
                numbered = true;
                (None, Kept { incarnation: *incarnation, ..Kept::default() })
            }
            Outbox::File(path) => {
                let (file, kept) = OutboxFile::open(path, device, saved)?;
                (Some(file), kept)
            }
        };
        let mut state = Self {
            limits,
            owner: kept.owner,
            incarnation: kept.incarnation,
            incarnation_batch: 0,
            next_id: kept.next_id.max(1),
            numbered,
            unanswered: BTreeMap::new(),
            bytes: 0,
            leaving: VecDeque::new(),
            send_from: 0,
            holds: HashMap::new(),
            told: 0,
            saved_waiters: VecDeque::new(),
            pending: Batch { number: 1, ..Batch::default() },
            saving: false,
            saved: 0,
            file,
            cursor: kept.cursor,
            settling: None,
            settled: None,
            doubtful: kept.doubtful,
        };
        for (id, publish) in kept.publishes {
            let bytes = publish.encoded_len();
            state.bytes += bytes;
            state.unanswered.insert(
                id,
                Unanswered {
                    publish,
                    bytes,
                    batch: 0,
                    sent: false,
                    surely_not_stored: false,
                    was_surely_not_stored: false,
                    answer: None,
                },
            );
        }
        Ok(state)
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The kept cursor, for a client that has the outbox keep it.
    pub(crate) fn cursor(&self) -> Option<&Bytes> {
        self.cursor.as_ref()
    }

    /// Keeps a cursor: with the next batch that goes to disk.
    pub(crate) fn keep_cursor(&mut self, cursor: Bytes) {
        if self.file.is_some() {
            self.pending.cursor = Some(cursor.clone());
        }
        self.cursor = Some(cursor);
    }

    /// The lowest message id that is not answered, as the disk knows it: what may be told to the broker. 0: this
    /// outbox does not know (its application numbers).
    pub(crate) fn first_unanswered(&self) -> u64 {
        let oldest = self.unanswered.keys().next().copied();
        let leaving = self.leaving.iter().map(|(_, id)| *id).min();
        match oldest.into_iter().chain(leaving).min() {
            Some(first) => first,
            None if self.numbered => 0,
            None => self.next_id,
        }
    }

    /// Everything unanswered, in the order of ids.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &packet::Publish)> {
        self.unanswered.iter().map(|(id, entry)| (*id, &entry.publish))
    }

    /// Takes a publish in under the next message id. `saved` is told once it is saved, `answer` once it is answered.
    pub(crate) fn push(&mut self, publish: packet::Publish, saved: Saved, answer: Answer) {
        self.push_as(self.next_id, publish, saved, answer);
    }

    /// Takes a publish in under a message id that the application chose: above every one before it.
    pub(crate) fn push_as(&mut self, id: u64, mut publish: packet::Publish, saved: Saved, answer: Answer) {
        if id < self.next_id {
            drop(saved.send(Err(PublishError::IdNotRising { id, next: self.next_id })));
            return;
        }
        publish.message_id = id;
        let bytes = publish.encoded_len();
        if self.unanswered.len() >= self.limits.items || self.bytes + bytes > self.limits.bytes {
            drop(saved.send(Err(PublishError::OutboxFull { items: self.unanswered.len(), bytes: self.bytes })));
            return;
        }
        self.next_id = id + 1;
        self.bytes += bytes;
        if self.file.is_some() {
            self.pending.puts.push((id, publish.encode_to_vec()));
        }
        let batch = if self.file.is_some() { self.pending.number } else { 0 };
        self.unanswered.insert(
            id,
            Unanswered {
                publish,
                bytes,
                batch,
                sent: false,
                surely_not_stored: true,
                was_surely_not_stored: true,
                answer: Some(answer),
            },
        );
        if batch == 0 {
            drop(saved.send(Ok(id)));
        } else {
            self.saved_waiters.push_back((batch, saved, id));
        }
    }

    /// The next publish that may leave now, with the first unanswered id in it if that moved; `fits` says whether
    /// the session has room for one of so many bytes.
    pub(crate) fn next_to_send(&mut self, now: Instant, fits: impl Fn(usize) -> bool) -> Option<packet::Publish> {
        if self.incarnation == 0 || self.incarnation_batch > self.saved || self.settling.is_some() {
            return None;
        }
        let first = self.first_unanswered();
        let mut all_sent_below = true;
        let mut send_from = self.send_from;
        let mut found = None;
        for (&id, entry) in self.unanswered.range(self.send_from..) {
            if !entry.sent {
                if id >= first + SPAN_MAX || entry.batch > self.saved {
                    break;
                }
                let held = self.holds.get(&entry.publish.conversation);
                let free = held.is_none_or(|hold| now >= hold.until && !self.is_under_way(entry.publish.conversation));
                if free {
                    if fits(entry.bytes) {
                        found = Some(id);
                    }
                    break;
                }
                all_sent_below = false;
            }
            if all_sent_below {
                send_from = id + 1;
            }
        }
        self.send_from = send_from;
        let id = found?;
        if all_sent_below {
            self.send_from = id + 1;
        }
        let entry = self.unanswered.get_mut(&id)?;
        entry.sent = true;
        entry.was_surely_not_stored = std::mem::take(&mut entry.surely_not_stored);
        let mut publish = entry.publish.clone();
        self.release(publish.conversation, now);
        if first != self.told && first != 0 {
            self.told = first;
            publish.first_unanswered = first;
        }
        Some(publish)
    }

    /// When a held conversation may go on that could not when that was last looked at, the earliest: it may be past by
    /// now.
    pub(crate) fn next_release(&self, looked_at: Instant) -> Option<Instant> {
        self.holds
            .iter()
            .filter(|(conversation, hold)| hold.until > looked_at && !self.is_under_way(**conversation))
            .map(|(_, hold)| hold.until)
            .min()
    }

    fn is_under_way(&self, conversation: u64) -> bool {
        self.unanswered.values().take(SPAN_MAX as usize).any(|e| e.sent && e.publish.conversation == conversation)
    }

    /// A hold ends with the first repeat that leaves; the order of ids does the rest.
    fn release(&mut self, conversation: u64, now: Instant) {
        if self.holds.get(&conversation).is_some_and(|hold| now >= hold.until) {
            self.holds.remove(&conversation);
        }
    }

    /// An ack came. Returns whether the id was open.
    pub(crate) fn acked(&mut self, ack: packet::PublishAck) -> bool {
        let id = ack.message_id;
        self.settle(id, Ok(ack))
    }

    /// A publish ended: acked, refused for good or given up.
    pub(crate) fn settle(&mut self, id: u64, outcome: Result<packet::PublishAck, PublishError>) -> bool {
        let Some(entry) = self.unanswered.remove(&id) else { return false };
        self.bytes -= entry.bytes;
        if self.file.is_some() {
            self.pending.removes.push(id);
            self.leaving.push_back((self.pending.number, id));
        }
        if let Some(answer) = entry.answer {
            // Whoever dropped the handle does not want to know.
            drop(answer.send(outcome));
        }
        true
    }

    /// Gives a publish up, if it is surely not stored. Returns whether the broker may know of it.
    pub(crate) fn give_up(&mut self, id: u64) -> Result<bool, GiveUpError> {
        if self.end_doubt(id).is_some() {
            return Ok(false);
        }
        let entry = self.unanswered.get(&id).ok_or(GiveUpError::Unknown)?;
        if entry.sent || !entry.surely_not_stored {
            return Err(GiveUpError::MayBeStored);
        }
        let refused_here = self.holds.contains_key(&entry.publish.conversation);
        self.settle(id, Err(PublishError::GivenUp));
        Ok(refused_here)
    }

    /// The broker refused an id for now: it and what follows it in its conversation wait. `surely_not_stored` is what the
    /// refusal says of that; `None` where it says nothing, since nobody looked.
    pub(crate) fn refused_for_now(
        &mut self,
        id: u64,
        now: Instant,
        retry_after: Duration,
        surely_not_stored: Option<bool>,
    ) {
        let Some(entry) = self.unanswered.get_mut(&id) else { return };
        entry.sent = false;
        entry.surely_not_stored = surely_not_stored.unwrap_or(entry.was_surely_not_stored);
        let conversation = entry.publish.conversation;
        self.send_from = self.send_from.min(id);
        let hold = self.holds.entry(conversation).or_insert(Hold { until: now });
        hold.until = hold.until.max(now + retry_after);
    }

    /// The connection is gone: everything unanswered is repeated on the next one, in the order of ids.
    pub(crate) fn disconnected(&mut self) {
        for entry in self.unanswered.values_mut() {
            entry.sent = false;
        }
        self.holds.clear();
        self.send_from = 0;
        self.told = 0;
    }

    /// A connection stands, as this user of this broker, under this incarnation; the broker knows of answers below
    /// `floor`.
    pub(crate) fn connected(&mut self, owner: Owner, incarnation: u64, floor: u64) -> Result<(), Unfit> {
        if self.owner != Owner::default() && self.owner != owner {
            if !self.unanswered.is_empty() || !self.doubtful.is_empty() {
                return Err(Unfit::Another);
            }
            // Nothing is owed to the other one: the outbox begins anew, without its past.
            self.owner = owner;
            self.incarnation = 0;
            self.settling = None;
            self.cursor = None;
            return Err(Unfit::Emptied);
        }
        self.told = floor;
        if self.settling.is_some() {
            // It goes to disk with what the settling comes to.
            self.incarnation = incarnation;
            return Ok(());
        }
        if self.owner != owner || self.incarnation != incarnation {
            self.owner = owner;
            self.incarnation = incarnation;
            if self.file.is_some() {
                self.incarnation_batch = self.pending.number;
            }
        }
        if self.numbered {
            self.next_id = self.next_id.max(floor);
            let stale: Vec<u64> = self.unanswered.range(..floor).map(|(id, _)| *id).collect();
            for id in stale {
                self.settle(id, Err(PublishError::Stale { id, floor }));
            }
            return Ok(());
        }
        if floor > self.first_unanswered() && self.begin_settling() { Err(Unfit::Copy) } else { Ok(()) }
    }

    // ------------------------------------------------------------------------------------------ a restored copy

    /// The broker has shown that this outbox is an older copy: it asks for a new incarnation, and settles what it holds
    /// under that before it sends again. Returns false, and does nothing, if there is nothing to settle by: the
    /// application numbers, or nothing was ever sent.
    pub(crate) fn begin_settling(&mut self) -> bool {
        if self.numbered || self.incarnation == 0 {
            return false;
        }
        // Who is found out again in the middle of it goes back to what the disk says.
        let from = self.settling.as_ref().map_or(self.incarnation, Settling::from);
        let held = self.unanswered.iter().filter(|(_, entry)| !entry.surely_not_stored);
        self.settling = Some(Settling::new(from, held.map(|(id, entry)| (*id, &entry.publish))));
        self.incarnation = 0;
        true
    }

    /// What is to be settled, while it is.
    pub(crate) fn settling(&mut self) -> Option<&mut Settling> {
        self.settling.as_mut()
    }

    /// Whether nothing is sent because it is not known yet what of it is stored.
    pub(crate) const fn is_settling(&self) -> bool {
        self.settling.is_some()
    }

    /// Ends the settling once nothing is left to search: what it came to goes to disk at once, in one batch.
    pub(crate) fn end_settling(&mut self) {
        let Some(settling) = &self.settling else { return };
        let Some(verdict) = settling.verdict() else { return };
        let from = settling.from();
        self.settling = None;
        for own in &verdict.stored {
            let ack = packet::PublishAck { message_id: own.message_id, seq: own.seq, time: own.time, conversation: 0 };
            self.settle(own.message_id, Ok(ack));
        }
        for &id in &verdict.doubtful {
            self.doubt(id);
        }
        for id in &verdict.sent {
            if let Some(entry) = self.unanswered.get_mut(id) {
                entry.surely_not_stored = true;
            }
        }
        if self.file.is_some() {
            self.incarnation_batch = self.pending.number;
        }
        let settled = Settled {
            from,
            incarnation: self.incarnation,
            stored: verdict.stored,
            sent: verdict.sent,
            doubtful: verdict.doubtful,
        };
        self.settled = Some((self.incarnation_batch, settled));
    }

    /// What a settling came to, once, when that is on disk.
    pub(crate) fn take_settled(&mut self) -> Option<Settled> {
        let saved = self.saved;
        self.settled.take_if(|(batch, _)| *batch <= saved).map(|(_, settled)| settled)
    }

    fn doubt(&mut self, id: u64) {
        let Some(publish) = self.unanswered.get(&id).map(|entry| entry.publish.clone()) else { return };
        if self.file.is_some() {
            self.pending.doubts.push((id, publish.encode_to_vec()));
        }
        self.doubtful.insert(id, publish);
        self.settle(id, Err(PublishError::Doubtful { id }));
    }

    fn end_doubt(&mut self, id: u64) -> Option<packet::Publish> {
        let publish = self.doubtful.remove(&id)?;
        if self.file.is_some() {
            self.pending.doubts_ended.push(id);
        }
        Some(publish)
    }

    /// What may be stored or not, in the order of ids.
    pub(crate) fn doubtful(&self) -> impl Iterator<Item = (u64, &packet::Publish)> {
        self.doubtful.iter().map(|(id, publish)| (*id, publish))
    }

    /// Publishes something doubtful again, under the next message id.
    pub(crate) fn send_anyway(&mut self, id: u64, saved: Saved, answer: Answer) {
        let Some(publish) = self.doubtful.get(&id) else {
            drop(saved.send(Err(PublishError::NotDoubtful { id })));
            return;
        };
        let next_id = self.next_id;
        self.push_as(next_id, publish.clone(), saved, answer);
        if self.next_id != next_id {
            // It was taken in: both go to disk in one batch.
            self.end_doubt(id);
        }
    }

    /// Sends what changed to disk, unless a batch is on its way already.
    pub(crate) fn save(&mut self) {
        let new_incarnation = self.incarnation_batch == self.pending.number;
        if self.saving || (self.pending.is_empty() && !new_incarnation) {
            return;
        }
        let Some(file) = &self.file else { return };
        let next = Batch { number: self.pending.number + 1, ..Batch::default() };
        let mut batch = std::mem::replace(&mut self.pending, next);
        batch.owner = self.owner;
        batch.incarnation = self.settling.as_ref().map_or(self.incarnation, Settling::from);
        batch.next_id = self.next_id;
        file.save(batch);
        self.saving = true;
    }

    /// A batch is on disk.
    pub(crate) fn saved(&mut self, number: u64) {
        self.saving = false;
        self.saved = number;
        while self.leaving.front().is_some_and(|(batch, _)| *batch <= number) {
            self.leaving.pop_front();
        }
        while self.saved_waiters.front().is_some_and(|(batch, ..)| *batch <= number) {
            if let Some((_, saved, id)) = self.saved_waiters.pop_front() {
                drop(saved.send(Ok(id)));
            }
        }
    }

    /// Whether everything is on disk.
    pub(crate) fn is_saved(&self) -> bool {
        !self.saving && (self.file.is_none() || self.pending.is_empty())
    }

    /// The client has come to its end: whoever waits for an answer is told why.
    pub(crate) fn end(&mut self, why: &PublishError) {
        for (_, saved, _) in self.saved_waiters.drain(..) {
            drop(saved.send(Err(why.clone())));
        }
        for entry in self.unanswered.values_mut() {
            if let Some(answer) = entry.answer.take() {
                drop(answer.send(Err(why.clone())));
            }
        }
    }
}

/// Why an outbox cannot be used on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// The broker knows of answers that this outbox does not: it was restored from an older copy, and has begun to
    /// settle. It asks for a new incarnation, on a new connection.
    Copy,
    /// What is in it was written by another user, or for another broker.
    Another,
    /// It was another's and is empty: it asks for an incarnation of its own, on a new connection.
    Emptied,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hold that ends after it was looked what may leave, and before it is said when to look again, is not passed over,
    /// and one that ended long ago hides no other: nothing else would have a publish sent, until something came by chance.
    #[test]
    fn the_end_of_no_hold_is_passed_over() {
        let mut outbox = OutboxState::open(&Outbox::Memory, OutboxLimits::default(), "phone", |_| ()).expect("opens");
        let (now, wait) = (Instant::now(), Duration::from_millis(50));
        for (id, conversation) in [(1, 5), (2, 6)] {
            let publish = packet::Publish { conversation, ..packet::Publish::default() };
            outbox.push(publish, oneshot::channel().0, oneshot::channel().0);
            outbox.refused_for_now(id, now, wait * id as u32, None);
        }
        let looked_at = now + wait - Duration::from_micros(1);
        assert_eq!(outbox.next_release(looked_at), Some(now + wait));
        // The first is given up, and its hold is over.
        assert_eq!(outbox.give_up(1), Ok(true));
        assert_eq!(outbox.next_release(now + wait), Some(now + wait * 2));
        assert_eq!(outbox.next_release(now + wait * 2), None, "what could have left then waits for something else");
    }
}
