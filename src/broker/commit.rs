//! The commit thread: takes what is queued, has routing decide it, appends one frame, and only then lets effects out.
//! Everything durable goes through here, in one order.

use std::collections::HashSet;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::Waker;
use std::time::Duration;

use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::{DeviceId, Incarnation, LogTime, MessageId, SessionNumber};

use super::queue::{GROUP_OPS_MAX, Gathers, Queue};
use super::standing::{Standing, Store};
use super::upkeep::Upkeep;
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::metrics::words::Bucket;
use crate::mutation::Mutation;
use crate::routing::core::Core;
use crate::routing::draft::Draft;
use crate::routing::fold::fold_frame;
use crate::routing::ops::{Effect, Op, Parting};
use crate::routing::outbox::Reply;
use crate::routing::registry::Registry;
use crate::routing::sifter::Sifter;
use crate::routing::state::{Changes, State};
use crate::routing::view::{Overlay, View};
use crate::store::{AppendError, FollowError, Frame, FrameBuilder, Log, Position, Pressure, ReadError, SegmentId};

/// Changed rows that wait in memory to be saved, some 200 bytes each; beyond, the memtable is sealed early.
const UNSEALED_ROWS_MAX: usize = 1 << 16;
/// Changed rows wait no longer than this to be saved, so that a quiet broker gives their memory back.
const SEAL_AFTER_MS: u64 = 300_000;
/// Between two tries to reopen a store that failed.
const REOPEN_EVERY: Duration = Duration::from_secs(1);

/// Between two looks at the figures of the store.
const FIGURES_EVERY_MS: u64 = 1_000;

/// Devices that are gone and whose wills end in one group.
const FATES_AT_ONCE: usize = 64;
/// Between two looks at what retention lets go.
const RETAIN_EVERY_MS: u64 = 10_000;

/// The commit thread's own.
pub struct Commit {
    pub(super) log: Box<dyn Log>,
    core: Core,
    pub(super) state: Arc<RwLock<State>>,
    overlay: Overlay,
    registry: Arc<Registry>,
    queue: Arc<Queue>,
    pub(super) clock: Arc<Clock>,
    feed: SyncSender<Frame>,
    segment: SegmentId,
    health: Health,
    metrics: Arc<Metrics>,
    standing: Arc<Standing>,
    pub(super) retention: Retention,
    /// What is done now and then.
    pub(super) upkeep: Upkeep,
    /// Publishes of a frame that failed under way, until it is known whether that is there: while it is not, their
    /// repeats are told the same as they were.
    open: HashSet<(DeviceId, Incarnation, MessageId)>,
    /// What sessions are to know of that frame, should it be there.
    uncertain: Vec<Effect>,
    /// When retention was last looked at.
    retained_ms: u64,
    /// When the memtable was last sealed.
    sealed_ms: u64,
    /// When the store was last tried to be opened again.
    reopened_ms: u64,
    /// When the figures of the store were last told.
    figured_ms: Option<u64>,
    /// What they said of whether the store can be written.
    takes_writes: bool,
    /// The next group is the last.
    is_closing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Good,
    /// A commit failed; the store may be opened again.
    Failed,
    /// A sync failed: nothing is written any more until an operator restarts the broker.
    ReadOnly,
}

/// Reads where the saved state stands, and the frames after it. `bytes_max` bounds the rows held in memory.
///
/// # Errors
/// When the store cannot be read.
pub fn recover(log: &dyn Log, bytes_max: usize) -> Result<State, ReadError> {
    let applied = log.applied()?;
    let mut state = State::over(log.saved(), applied, bytes_max)?;
    follow(log, &mut state, |_| {})?;
    state.time = state.time.max(log.tail_time());
    Ok(state)
}

/// Folds the frames after the state into it, and hands each to `each`.
fn follow(log: &dyn Log, state: &mut State, mut each: impl FnMut(Frame)) -> Result<(), ReadError> {
    let (mut overlay, mut failed) = (Overlay::default(), None);
    let followed = log.follow(state.tail, &mut |frame| {
        if failed.is_some() {
            return;
        }
        let folded = fold_frame(&mut View::new(state, &mut overlay), &frame);
        if let Some(error) = folded.err().or_else(|| overlay.take_failure()) {
            failed = Some(error);
            return overlay.clear();
        }
        if Mutation::AnswersNotRecovered.is_planted() {
            overlay.forget_answers();
        }
        overlay.merge(state);
        each(frame);
    });
    followed.map_err(|error| match error {
        FollowError::Read(error) => error,
        FollowError::Trimmed { first } => {
            ReadError(format!("the state stands at {:?}, but the journal begins at {first:?}", state.tail))
        }
    })?;
    failed.map_or(Ok(()), Err)
}

/// After a start or a reopening: the store learns the floor that the records say, and the segment to write is named.
fn take_over(log: &mut dyn Log, state: &RwLock<State>) -> SegmentId {
    log.set_floor(state.read().unwrap_or_else(PoisonError::into_inner).floor);
    log.segments().last().map_or(SegmentId(0), |segment| segment.id)
}

/// Finds the devices that have a will and no session.
fn find_lost(core: &mut Core, state: &RwLock<State>, now_ms: u64) {
    for (device, after_ms) in state.read().unwrap_or_else(PoisonError::into_inner).wills() {
        core.lost(*device, *after_ms, now_ms);
    }
}

/// What [`Commit::new`] is made of.
pub struct Parts {
    /// The log.
    pub log: Box<dyn Log>,
    /// The recovered state, already shared.
    pub state: Arc<RwLock<State>>,
    /// Who is online.
    pub registry: Arc<Registry>,
    /// Where operations come from.
    pub queue: Arc<Queue>,
    /// The clock.
    pub clock: Arc<Clock>,
    /// Where committed frames go.
    pub feed: SyncSender<Frame>,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
    /// Where it says how it stands.
    pub standing: Arc<Standing>,
    /// Sessions are numbered above this.
    pub newest_session: SessionNumber,
    /// How long entries are kept.
    pub retention: Retention,
}

impl Commit {
    /// A commit thread's state; [`Commit::run`] is its body.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let mut log = parts.log;
        log.set_sieve(Arc::new(Sifter::new(Arc::clone(&parts.state))));
        let upkeep = Upkeep::new(parts.clock.now().0, parts.retention);
        let segment = take_over(&mut *log, &parts.state);
        let mut core = Core::new(parts.newest_session);
        // Who was there when the broker ended has time to come back.
        if !Mutation::WillsForgottenAtStart.is_planted() {
            find_lost(&mut core, &parts.state, parts.clock.now().0);
        }
        Self {
            log,
            core,
            state: parts.state,
            overlay: Overlay::default(),
            registry: parts.registry,
            queue: parts.queue,
            clock: parts.clock,
            feed: parts.feed,
            segment,
            health: Health::Good,
            metrics: parts.metrics,
            standing: parts.standing,
            retention: parts.retention,
            upkeep,
            open: HashSet::new(),
            uncertain: Vec::new(),
            retained_ms: 0,
            sealed_ms: 0,
            reopened_ms: 0,
            figured_ms: None,
            takes_writes: true,
            is_closing: false,
        }
    }

    /// Finishes the crossings that a crash interrupted. Before the first connection.
    pub fn finish_crossings(&mut self) {
        self.group(&mut Vec::new(), true);
        self.tell_standing(self.clock.now().0);
    }

    /// Works until the queue is stopped, then closes the log.
    pub fn run(mut self) {
        let mut group = Vec::with_capacity(GROUP_OPS_MAX);
        let mut gathers = Gathers::Nothing;
        while self.queue.clone().take(&mut group, REOPEN_EVERY, gathers) {
            gathers = Gathers::after(&group);
            self.turn(&mut group);
        }
        self.close();
    }

    /// One turn without waiting, for whoever drives the broker by hand: what is queued, at most a group of it.
    pub fn step(&mut self) {
        let mut group = Vec::new();
        self.queue.clone().take_now(&mut group);
        self.turn(&mut group);
    }

    /// Closes the log.
    pub fn close(mut self) {
        self.is_closing = true;
        if self.health == Health::Good {
            self.group(&mut Vec::new(), false);
        }
        if let Err(error) = self.log.close() {
            tracing::error!(%error, "the store did not close cleanly");
        }
    }

    fn turn(&mut self, group: &mut Vec<Op>) {
        let now_ms = self.clock.now().0;
        self.standing.turn(now_ms);
        if self.health == Health::Failed && now_ms >= self.reopened_ms + REOPEN_EVERY.as_millis() as u64 {
            self.reopened_ms = now_ms;
            self.reopen();
        }
        self.retain(group);
        if self.is_writable() {
            group.extend(self.core.take_due(now_ms, FATES_AT_ONCE));
        }
        self.upkeep(group, now_ms);
        self.keep_house();
        if !group.is_empty() || self.core.is_seen_due(now_ms) {
            self.group(group, false);
        }
        self.tell_standing(now_ms);
    }

    /// For who watches the broker: whether publishes are stored, and now and then how large the store is.
    fn tell_standing(&mut self, now_ms: u64) {
        if self.figured_ms.is_none_or(|then| now_ms >= then + FIGURES_EVERY_MS) {
            self.figured_ms = Some(now_ms);
            let figures = self.log.figures();
            self.takes_writes = figures.is_writable;
            self.standing.set_figures(figures);
        }
        self.standing.set_store(match (self.health, self.log.pressure()) {
            (Health::ReadOnly, _) => Store::ReadOnly,
            (Health::Failed, _) => Store::Failed,
            // A start that could not write serves readers until the next one.
            (Health::Good, _) if !self.takes_writes => Store::ReadOnly,
            (Health::Good, Pressure::Full) => Store::Full,
            (Health::Good, Pressure::Open) => Store::Open,
        });
    }

    pub(super) fn is_writable(&self) -> bool {
        self.health == Health::Good && self.log.pressure() == Pressure::Open
    }

    /// Now and then, makes it a record that the oldest runs may go. By age only while the clock can be believed.
    fn retain(&mut self, group: &mut Vec<Op>) {
        let now_ms = self.clock.now().0;
        let is_due = now_ms >= self.retained_ms + RETAIN_EVERY_MS;
        let keeps_all = self.retention.age_ms.is_none() && self.retention.bytes.is_none();
        if keeps_all || !is_due || self.health != Health::Good {
            return;
        }
        self.retained_ms = now_ms;
        let horizon = self.retention.horizon(self.clock.log_time()).filter(|_| !self.clock.has_jumped());
        let floor = self.log.proposed_floor(self.retention.bytes, horizon);
        if floor > self.state.read().unwrap_or_else(PoisonError::into_inner).floor {
            group.push(Op::Retain(floor));
        }
    }

    /// Seals what is to be saved, and lets go of rows that nobody uses.
    fn keep_house(&mut self) {
        let (unsaved, now_ms) = (self.log.unsaved_seals(), self.clock.now().0);
        // After a failure the log may already hold a frame that the state does not: the two are saved together.
        let may_seal = self.health == Health::Good || Mutation::SealedWhileFailed.is_planted();
        let (is_swept, waits) = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            let is_old = state.unsealed() > 0 && now_ms >= self.sealed_ms + SEAL_AFTER_MS;
            (!state.is_sweep_due(now_ms), is_old || state.unsealed() >= UNSEALED_ROWS_MAX)
        };
        let seals = may_seal && (self.log.is_seal_due() || (waits && unsaved == 0));
        if !seals && is_swept {
            return;
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.note_saved(unsaved);
        state.sweep(now_ms);
        if seals {
            self.sealed_ms = now_ms;
            let rows = state.seal();
            self.log.seal(Box::new(if Mutation::RowsNotSaved.is_planted() { Changes::default() } else { rows }));
        }
    }

    fn group(&mut self, ops: &mut Vec<Op>, crosses: bool) {
        let writable = self.is_writable();
        let first = Position(self.log.tail().0 + 1);
        let time = self.clock.log_time().max(self.log.tail_time());
        let mut frame = FrameBuilder::new(self.segment, first, time);
        let mut effects = Vec::with_capacity(ops.len());
        self.metrics.operations.inc_by(ops.len() as u64);
        {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            let view = View::new(&state, &mut self.overlay);
            let now_ms = self.clock.now().0;
            let mut draft = Draft { view, frame: &mut frame, effects: &mut effects, now_ms, writable };
            if crosses {
                draft.cross();
            }
            for op in ops.drain(..) {
                self.core.decide(op, &mut draft);
            }
            self.core.note_seen(&mut draft, self.is_closing);
        }
        if !self.open.is_empty() && !Mutation::OutcomeForgotten.is_planted() {
            self.tell_open(&mut effects);
        }
        self.metrics.late_rows.inc_by(self.overlay.late() as u64);
        if let Some(error) = self.overlay.take_failure() {
            return self.fail(effects, &AppendError::NotStored(error.to_string()));
        }
        if frame.records() == 0 {
            if self.overlay.late() > 0 {
                self.overlay.merge(&mut self.state.write().unwrap_or_else(PoisonError::into_inner));
            }
            return self.carry_out(effects);
        }
        let frame = frame.finish();
        if Mutation::AckBeforeSync.is_planted() {
            self.carry_out(std::mem::take(&mut effects));
        }
        let begun_us = self.clock.now_us();
        match self.log.append(&frame) {
            Ok(()) => {
                let took_us = self.clock.now_us() - begun_us;
                self.metrics.commits.inc();
                self.metrics.commit_seconds.observe(took_us as f64 / 1e6);
                self.metrics.group_entries.observe(frame.positions as f64);
                self.overlay.merge(&mut self.state.write().unwrap_or_else(PoisonError::into_inner));
                self.carry_out(effects);
                // Waits while the feed is far behind; it ends only after this thread.
                let _ = self.feed.send(frame);
            }
            Err(error) => self.fail(effects, &error),
        }
    }

    /// Replies leave; each touched connection is woken once.
    fn carry_out(&mut self, effects: Vec<Effect>) {
        let mut wakers: Vec<Waker> = Vec::new();
        // Before anybody hears of it.
        let count = |is: fn(&Effect) -> bool| effects.iter().filter(|effect| is(effect)).count() as u64;
        self.metrics.publishes.inc_by(count(|effect| matches!(effect, Effect::Answer(_, _, Ok(_)))));
        self.metrics.repeats.inc_by(count(|effect| matches!(effect, Effect::Repeat(..))));
        for effect in effects {
            match effect {
                Effect::Answer(session, _, answer) => {
                    let mut pending = session.outbox.lock();
                    pending.replies.push_back(match answer {
                        Ok(ack) => Reply::Ack(ack),
                        Err(refusal) => Reply::Refused(refusal),
                    });
                    wakers.extend(pending.take_waker());
                }
                Effect::Repeat(session, ack) => {
                    let mut pending = session.outbox.lock();
                    pending.replies.push_back(Reply::Ack(ack));
                    wakers.extend(pending.take_waker());
                }
                Effect::Refuse(outbox, refusal) => {
                    if refusal.reason == Reason::RateLimited {
                        self.metrics.rate_limited[Bucket::Takeovers].inc();
                    }
                    let mut pending = outbox.lock();
                    pending.replies.push_back(Reply::Refused(refusal));
                    wakers.extend(pending.take_waker());
                }
                Effect::Attach(attached) => {
                    self.registry.attach(&attached.session, self.clock.now());
                    let outbox = Arc::clone(&attached.session.outbox);
                    let mut pending = outbox.lock();
                    if pending.is_abandoned {
                        self.queue.push_one(Op::Detach(attached.session, None, Parting::Lost));
                        continue;
                    }
                    pending.replies.push_back(Reply::Attached(Box::new(attached)));
                    wakers.extend(pending.take_waker());
                }
                Effect::Close(outbox, refusal) => outbox.close(refusal),
                Effect::Detach(session) => {
                    let watching = {
                        let mut pending = session.outbox.lock();
                        pending.is_abandoned = true;
                        std::mem::take(&mut pending.watching)
                    };
                    self.registry.detach(&session, &watching, self.clock.now());
                }
                Effect::SetFloor(floor) => self.log.set_floor(floor),
                Effect::Shown(user) => self.registry.audience_changed(user, self.clock.now()),
                Effect::Hidden(user, from) => self.registry.presence_hidden(user, from),
                Effect::Defer(id, until) => {
                    self.state.write().unwrap_or_else(PoisonError::into_inner).defer(id, until);
                }
                Effect::LetGo => self.upkeep.note_gone(),
                Effect::Levels(session, levels) => {
                    let mut pending = session.outbox.lock();
                    pending.set_levels(levels, &session);
                    wakers.extend(pending.take_waker());
                }
                Effect::PushSet(user, device, is_told) => self.registry.set_push(user, device, is_told),
                Effect::PushSettled(user, device, is_done) => self.registry.bell.settled(user, device, is_done),
                Effect::Fate(..) | Effect::Seen(_) => {}
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// What may be there all the same is not called surely not stored.
    fn tell_open(&self, effects: &mut [Effect]) {
        for effect in effects {
            if let Effect::Answer(session, _, Err(refusal)) = effect
                && self.open.contains(&(session.device, session.incarnation, refusal.message_id))
            {
                refusal.reason = Reason::OutcomeUnknown;
            }
        }
    }

    /// Nothing of the group holds: its draft is dropped, and everyone is told what is known.
    fn fail(&mut self, effects: Vec<Effect>, error: &AppendError) {
        self.metrics.commits_failed.inc();
        // What is tried while it is not known what became of a frame is surely not there.
        let may_be_there = self.health == Health::Good && matches!(error, AppendError::Unknown { .. });
        if !Mutation::DraftKept.is_planted() {
            self.overlay.clear();
        }
        let reason = match error {
            AppendError::NotStored(reason) => {
                tracing::warn!(reason, "publishes are refused: the store takes no writes");
                Reason::StoreUnavailable
            }
            AppendError::Conflict { .. } => {
                tracing::error!(%error, "the log and its writer disagree: the store is opened again");
                self.health = Health::Failed;
                Reason::StoreUnavailable
            }
            AppendError::Unknown { reason, sync } => {
                self.health = if *sync { Health::ReadOnly } else { Health::Failed };
                if *sync {
                    tracing::error!(reason, "a sync failed: nothing is written any more; check the disk, then restart");
                } else {
                    tracing::error!(reason, "a commit failed: publishes are refused until the store opens again");
                }
                for effect in &effects {
                    if let Effect::Answer(session, _, Ok(ack)) = effect {
                        self.open.insert((session.device, session.incarnation, MessageId(ack.message_id)));
                    }
                }
                Reason::OutcomeUnknown
            }
        };
        let now_ms = self.clock.now().0;
        let effects = effects.into_iter().map(|effect| match effect {
            Effect::Answer(session, conversation, Ok(ack)) => {
                let id = MessageId(ack.message_id);
                self.core.refused(&session, id, conversation);
                let refusal = Refusal::publish(id, reason).retry_after(1_000);
                Effect::Answer(session, conversation, Err(refusal))
            }
            // Refused over a draft of members and rights that is gone: whether that was right is not known.
            Effect::Answer(session, conversation, Err(refusal)) if rests_on_draft(refusal.reason) => {
                let id = refusal.message_id;
                self.core.refused(&session, id, conversation);
                let refusal = Refusal::publish(id, Reason::StoreUnavailable).retry_after(1_000);
                Effect::Answer(session, conversation, Err(refusal))
            }
            // Likewise: what stood in the way may have been drafted in this group.
            Effect::Refuse(outbox, refusal) if keeps_out_by_draft(refusal.reason) => {
                Effect::Refuse(outbox, Refusal::connection(Reason::StoreUnavailable).retry_after(2_000))
            }
            Effect::Attach(attached) => {
                let device = attached.session.device;
                self.core.forget(&attached.session);
                let after_ms = self.state.read().unwrap_or_else(PoisonError::into_inner).wills().get(&device).copied();
                if let Some(after_ms) = after_ms {
                    self.core.lost(device, after_ms, now_ms);
                }
                let refusal = Refusal::connection(Reason::StoreUnavailable).retry_after(2_000);
                Effect::Refuse(Arc::clone(&attached.session.outbox), refusal)
            }
            Effect::Fate(device, fate) => {
                self.core.retry_fate(device, fate, now_ms);
                Effect::Fate(device, fate)
            }
            Effect::Seen(users) => {
                self.core.unsee(users);
                Effect::Seen(Vec::new())
            }
            Effect::PushSettled(user, device, _) => Effect::PushSettled(user, device, false),
            // Nobody took it over after all. Its place is lost all the same: it comes again, as the other one does.
            Effect::Close(outbox, _) if !Mutation::TakenOverByNobody.is_planted() => {
                Effect::Close(outbox, Refusal::connection(Reason::StoreUnavailable).retry_after(2_000))
            }
            other => other,
        });
        // What only holds if the frame does; the floor is taken over from the state.
        let is_drafted = |effect: &Effect| {
            matches!(
                effect,
                Effect::SetFloor(_) | Effect::Shown(_) | Effect::Hidden(..) | Effect::Levels(..) | Effect::PushSet(..)
            )
        };
        let (mut drafted, effects): (Vec<_>, Vec<_>) = effects.partition(is_drafted);
        if may_be_there {
            drafted.retain(|effect| !matches!(effect, Effect::SetFloor(_)));
            self.uncertain = drafted;
        }
        self.carry_out(effects);
    }

    /// Opens the store again, and takes over what is found there: the frame that failed may be among it.
    fn reopen(&mut self) {
        if let Err(error) = self.log.reopen() {
            tracing::warn!(%error, "the store does not open yet");
            if let AppendError::Unknown { sync: true, .. } = error {
                self.health = Health::ReadOnly;
            }
            return;
        }
        // Only the frame that failed can be new.
        let mut new = Vec::new();
        let followed = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            follow(&*self.log, &mut state, |frame| new.push(frame))
        };
        let uncertain =
            if followed.is_ok() || !new.is_empty() { std::mem::take(&mut self.uncertain) } else { Vec::new() };
        if !new.is_empty() {
            // Before any of it is fed.
            self.carry_out(uncertain);
        }
        let is_fed = |frame: &Frame| frame.positions > 0 && !Mutation::FoundNotFed.is_planted();
        for frame in new.into_iter().filter(is_fed) {
            // Without the lock: the feed may be waiting for it.
            let _ = self.feed.send(frame);
        }
        self.segment = take_over(&mut *self.log, &self.state);
        match followed {
            Ok(()) => {
                self.health = Health::Good;
                self.open.clear();
                self.upkeep.note_gone();
                find_lost(&mut self.core, &self.state, self.clock.now().0);
                tracing::info!("the store is open again; publishes are accepted");
            }
            Err(error) => {
                tracing::error!(%error, "the reopened store cannot be followed yet: publishes are refused");
            }
        }
    }
}

/// Whether a publish is refused for what others may have changed in the same group.
fn rests_on_draft(reason: Reason) -> bool {
    matches!(reason, Reason::Forbidden | Reason::UnknownConversation | Reason::QuotaExceeded | Reason::InvalidArgument)
}

/// Whether a device is kept out for what others may have changed in the same group.
fn keeps_out_by_draft(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::IncarnationStale
            | Reason::QuotaExceeded
            | Reason::NameTaken
            | Reason::Revoked
            | Reason::Unauthenticated
            | Reason::Forbidden
    )
}

/// The retention that an operator set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Entries older than this may go.
    pub age_ms: Option<u64>,
    /// Beyond so many bytes of entries, the oldest may go.
    pub bytes: Option<u64>,
    /// How long the files may hold what conversations keep no more; a day where nothing is said.
    pub files_ms: Option<u64>,
}

impl Retention {
    /// The time before which entries may go.
    #[must_use]
    pub fn horizon(&self, now: LogTime) -> Option<LogTime> {
        self.age_ms.map(|age| LogTime(now.0.saturating_sub(age)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use longwire_protocol::{BrokerLimits, ConversationId, Seq};
    use prost::Message as _;

    use super::*;
    use crate::auth::Authority;
    use crate::broker::{BrokerParts, Rooms};
    use crate::clock::Source;
    use crate::net::listener::AcceptLimits;
    use crate::routing::allowance::Rates;
    use crate::routing::limits::Quotas;
    use crate::routing::ops::{Attach, Proof};
    use crate::routing::outbox::Outbox;
    use crate::routing::rows::Secret;
    use crate::routing::state::State;
    use crate::store::{EntryMeta, Failure, MemoryLog, SavedState};
    use crate::tasks::Tasks;

    /// A saved state that can fail.
    #[derive(Default)]
    struct Failing(AtomicBool);

    impl SavedState for Failing {
        fn get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, ReadError> {
            if self.0.load(Ordering::Relaxed) {
                return Err(ReadError("as the test asked".into()));
            }
            Ok(vec![None; keys.len()])
        }

        fn each(&self, _: &[u8], _: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), ReadError> {
            Ok(())
        }
    }

    /// What a row that cannot be read would have become is not taken for the truth: the frame is followed once more.
    #[test]
    fn a_frame_whose_rows_cannot_be_read_is_not_folded() {
        let mut log = MemoryLog::new(0, usize::MAX);
        let segment = log.segments()[0].id;
        let mut frame = FrameBuilder::new(segment, Position(1), LogTime(0));
        let meta = EntryMeta { conversation: ConversationId(5), seq: Seq(1), ..EntryMeta::default() };
        let kind = longwire_protocol::packet::item::Kind::Entry(longwire_protocol::packet::Entry::default());
        let item = longwire_protocol::packet::Item { kind: Some(kind) };
        frame.push_entry(&meta, |out| out.extend_from_slice(&item.encode_to_vec()));
        log.append(&frame.finish()).expect("appends");

        let saved = Arc::new(Failing::default());
        let mut state = State::over(Arc::clone(&saved) as Arc<dyn SavedState>, Position(0), usize::MAX).expect("reads");
        saved.0.store(true, Ordering::Relaxed);
        let mut handed = 0;
        follow(&log, &mut state, |_| handed += 1).expect_err("a row cannot be read");
        assert_eq!((handed, state.tail, state.rows().count(), state.unsealed()), (0, Position(0), 0, 0));
        saved.0.store(false, Ordering::Relaxed);
        follow(&log, &mut state, |_| handed += 1).expect("follows");
        assert_eq!((handed, state.tail), (1, Position(1)));
    }

    /// Two register one name in a group that fails: nobody has the name, and neither is told that somebody has.
    #[test]
    fn nobody_is_kept_out_by_a_draft_that_is_dropped() {
        let mut log = MemoryLog::new(0, usize::MAX);
        log.fail_next_append(Failure::NotStored);
        let limits = AcceptLimits { connections: 1, connections_per_address: 1, handshakes: 1, memory_bytes: None };
        let parts = BrokerParts {
            log: Box::new(log),
            authority: Authority::default(),
            limits: BrokerLimits::default(),
            accept: limits,
            rates: Rates::default(),
            quotas: Quotas::default(),
            retention: Retention::default(),
            state_bytes_max: usize::MAX,
        };
        let mut rooms =
            Rooms::new(parts, Source::ByHand(Arc::default()), Tasks::ByHand(Default::default())).expect("opens");
        let outboxes = ["phone", "laptop"].map(|device| {
            let outbox = Arc::<Outbox>::default();
            rooms.shared.queue.push_one(Op::Attach(Box::new(Attach {
                user: "ann".into(),
                device: device.into(),
                grants: Arc::default(),
                proof: Proof::Registration { password: Secret("hash".into()), invitation: None },
                incarnation: Incarnation(0),
                first_unanswered: MessageId(1),
                hears_signals: false,
                is_background: false,
                outbox: Arc::clone(&outbox),
            })));
            outbox
        });
        rooms.commit.step();
        for outbox in outboxes {
            let reply = outbox.lock().replies.pop_front();
            let Some(Reply::Refused(refusal)) = reply else { panic!("nothing was stored: {reply:?}") };
            assert_eq!(refusal.reason, Reason::StoreUnavailable);
        }
    }
}
