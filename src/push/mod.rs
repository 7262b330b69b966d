//! Tells devices that are away that something waits for them, by the providers that the operator has. What is told to
//! whom and when is `routing`'s; here it is carried out: one thread of a low priority with a runtime of its own, so that
//! no provider takes anything from the connections, and nobody ever waits for it.
//!
//! What was told is made durable once the provider took it. A crash between the two tells it again, with the same id.

mod gate;
pub mod providers;

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use longwire_push::{Notification, Outcome};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::metrics::{self, Metrics};
use crate::routing::push::look::{Look, News, Notice, Rules};
use crate::routing::push::ringer::{Errand, Next, Ringer, Who, next};
use crate::routing::push::{Provider, Push, Settled, Settling, Told};
use crate::routing::reads::{Miss, Reads};
use crate::routing::registry::Registry;
use crate::routing::state::State;
use crate::store::History;
use crate::vital;
use gate::Gate;
use providers::Providers;

/// Between two looks at what is due.
const TICK: Duration = Duration::from_millis(250);
/// Devices that are told at the same time.
const AT_ONCE: usize = 64;
/// What goes wrong here is tried again after so long.
const AGAIN_MS: u64 = 1_000;
/// How long a drain waits for what is under way.
const DRAIN_MS: u64 = 3_000;
/// Work of this priority is done when nobody else wants the core.
const NICE: i32 = 10;

/// What the teller is made of.
pub struct Parts {
    /// Committed state.
    pub state: Arc<RwLock<State>>,
    /// Reads of entries.
    pub history: Arc<dyn History>,
    /// Who is online, and the bell.
    pub registry: Arc<Registry>,
    /// The clock.
    pub clock: Arc<Clock>,
    /// Where it is counted what became of it.
    pub metrics: Arc<Metrics>,
    /// Makes durable what was told.
    pub settle: Box<dyn Fn(Settling) + Send>,
    /// By whom devices are told.
    pub providers: Providers,
    /// When.
    pub rules: Rules,
}

/// The running teller.
pub struct Teller {
    stop: CancellationToken,
    thread: JoinHandle<()>,
}

impl Teller {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the machine gives none.
    pub fn start(parts: Parts) -> std::io::Result<Self> {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let names = parts.providers.names();
        let _ = parts.metrics.push.set(names.iter().map(|name| (name.name(), metrics::Told::default())).collect());
        parts.registry.bell.serve(names);
        let thread = vital::spawn("longwire-push", move || {
            // Linux gives each thread its own nice value. If it is refused, the work is done at the usual one.
            if let Err(error) = rustix::process::setpriority_process(None, NICE) {
                tracing::debug!(%error, "push notification keeps the usual priority");
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build();
            runtime.expect("the machine gives a runtime").block_on(run(parts, stopped));
        })?;
        Ok(Self { stop, thread })
    }

    /// Stops it; blocks until what is under way is done, for some seconds at the most. While the commit thread runs.
    pub fn stop(self) {
        self.stop.cancel();
        // Vital: it cannot have panicked.
        let _ = self.thread.join();
    }
}

/// How an errand ended.
struct Report {
    who: Who,
    /// There is more then.
    again: Option<(u64, News)>,
    is_failed: bool,
}

async fn run(parts: Parts, stop: CancellationToken) {
    let Parts { state, history, registry, clock, metrics, settle, providers, rules } = parts;
    let gates = providers.0.into_iter().map(|(name, provider)| (name, Gate::new(name, provider))).collect();
    let settling = RefCell::default();
    let office = Office { state, history, registry, clock, metrics, settle, gates, rules, settling };
    let mut ringer = Ringer::new(office.rules);
    let mut under_way: FuturesUnordered<Pin<Box<dyn Future<Output = Report> + '_>>> = FuturesUnordered::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    if let Err(miss) = ringer.look_everywhere(office.reads(), office.clock.now().0 + office.rules.after_ms) {
        tracing::error!(?miss, "who is to be told of what came before the start is not known");
    }
    let mut leave_at = None;
    loop {
        tokio::select! {
            () = stop.cancelled(), if leave_at.is_none() => leave_at = Some(office.clock.now().0 + DRAIN_MS),
            Some(report) = under_way.next(), if !under_way.is_empty() => {
                ringer.finish(report.who, report.again, report.is_failed);
            }
            _ = tick.tick() => office.hear(&mut ringer),
        }
        office.metrics.push_waiting.set(ringer.waiting() as i64);
        if leave_at.is_some_and(|at| under_way.is_empty() || office.clock.now().0 >= at) {
            return;
        }
        if leave_at.is_none() {
            let free = AT_ONCE - under_way.len();
            for errand in ringer.take_due(office.clock.now().0, free) {
                under_way.push(Box::pin(office.run(errand)));
            }
        }
    }
}

/// What all errands share.
struct Office {
    state: Arc<RwLock<State>>,
    history: Arc<dyn History>,
    registry: Arc<Registry>,
    clock: Arc<Clock>,
    metrics: Arc<Metrics>,
    settle: Box<dyn Fn(Settling) + Send>,
    gates: HashMap<Provider, Gate>,
    rules: Rules,
    /// Who waits for what was told to be durable.
    settling: RefCell<HashMap<Who, oneshot::Sender<bool>>>,
}

impl Office {
    fn reads(&self) -> Reads<'_> {
        Reads { history: &*self.history, state: &self.state, now: self.clock.log_time(), may_block: true, looks: None }
    }

    /// Takes in what the commit thread and the feed left at the bell.
    fn hear(&self, ringer: &mut Ringer) {
        let is_heard = self.reads().rows(|rows| !rows.state().pushes().is_empty());
        self.registry.bell.listen(is_heard.unwrap_or(true));
        let rung = self.registry.bell.take();
        for (user, device, is_done) in &rung.settled {
            if let Some(waiting) = self.settling.borrow_mut().remove(&(*user, *device)) {
                let _ = waiting.send(*is_done);
            }
        }
        if let Err(miss) = ringer.hear(&rung, self.reads(), self.clock.now().0) {
            tracing::error!(?miss, "who is to be told of something is not known: all are looked at");
        }
    }

    /// Tells one device all that it is to be told now, and makes that durable.
    async fn run(&self, errand: Errand) -> Report {
        let Errand { who, news, tries } = errand;
        let (mut told, mut is_fresh) = (None, false);
        let (again, is_failed) = self.tell(who, news, tries, &mut told, &mut is_fresh).await;
        if let Some(told) = told.filter(|_| is_fresh) {
            self.settle(who, Settled::Told(told)).await;
        }
        Report { who, again, is_failed }
    }

    async fn tell(
        &self,
        who: Who,
        mut news: News,
        tries: u32,
        told: &mut Option<Told>,
        is_fresh: &mut bool,
    ) -> (Option<(u64, News)>, bool) {
        let now = || self.clock.now().0;
        loop {
            let found =
                next(self.reads(), &self.registry, &self.rules, who, (&news, told.as_ref()), self.clock.unix_ms());
            let (push, found) = match found {
                Ok(Next::Nowhere) => return (None, false),
                Ok(Next::Quiet(ms)) => return (Some((now() + ms, news)), false),
                Ok(Next::Look(push, look)) => (push, *look),
                Err(Miss::Disk | Miss::Failed(_)) => return (Some((now() + AGAIN_MS, news)), true),
            };
            let Look { notice, rest, again, told: known, is_fresh: has_gone_on } = found;
            *told = Some(known);
            *is_fresh |= has_gone_on;
            let Some(notice) = notice else {
                let log_now = self.clock.log_time().0;
                let due = again.map(|again| now() + again.0.saturating_sub(log_now).max(1));
                return (due.map(|due| (due, rest)), false);
            };
            // Without its provider nobody can tell it anything; with it, after a restart, all is looked at.
            let Some(gate) = self.gates.get(&push.provider) else { return (None, false) };
            let outcome = match gate.enter(now()) {
                Ok(entered) => entered.send(&self.notification(who, &push, &notice), now).await,
                Err(open_ms) => return (Some((open_ms + fastrand::u64(0..AGAIN_MS), rest)), true),
            };
            self.count(push.provider, &outcome);
            match outcome {
                Outcome::Delivered => {}
                Outcome::Rejected(why) => {
                    tracing::info!(provider = push.provider.name(), why, "a notification was rejected");
                }
                Outcome::Unregistered => {
                    self.settle(who, Settled::Gone(push.target)).await;
                    return (Some((now(), News::Any)), false);
                }
                Outcome::Retry { after, why, .. } => {
                    tracing::debug!(provider = push.provider.name(), why, "a notification is tried again");
                    return (Some((now() + gate::wait_ms(tries, after), rest)), true);
                }
            }
            let told = told.as_mut().expect("it was just looked at");
            told.note(notice.conversation, notice.upto, self.clock.log_time());
            (*is_fresh, news) = (true, rest);
        }
    }

    fn count(&self, provider: Provider, outcome: &Outcome) {
        let mut providers = self.metrics.push.get().into_iter().flatten();
        let Some((_, told)) = providers.find(|(name, _)| *name == provider.name()) else { return };
        match outcome {
            Outcome::Delivered => told.sent.inc(),
            Outcome::Rejected(_) => told.given_up.inc(),
            Outcome::Unregistered => told.gone.inc(),
            Outcome::Retry { .. } => told.failed.inc(),
        };
    }

    fn notification(&self, (user, device): Who, push: &Push, notice: &Notice) -> Notification {
        Notification {
            id: notice.id,
            collapse: notice.collapse,
            target: push.target.to_string(),
            key: push.key.to_vec(),
            secret: push.secret.to_vec(),
            user: user.0,
            device: device.0,
            conversation: notice.conversation.0,
            seq: notice.seq.0,
            badge: notice.badge,
            names: notice.names.clone(),
            content: notice.content.clone(),
            lives: Duration::from_millis(notice.expires.0.saturating_sub(self.clock.log_time().0)),
            now: self.clock.unix_ms() / 1_000,
        }
    }

    /// Makes durable what became of telling a device, however long that takes: until then it is told nothing else.
    async fn settle(&self, who: Who, what: Settled) {
        loop {
            let (done, is_done) = oneshot::channel();
            self.settling.borrow_mut().insert(who, done);
            (self.settle)(Settling { user: who.0, device: who.1, what: what.clone() });
            if is_done.await.unwrap_or(true) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(AGAIN_MS)).await;
        }
    }
}
