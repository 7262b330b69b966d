//! What a broker tells who watches it: what there is of what, looked at when it is asked for, beside what it counts; and
//! whether it is ready. Holds nothing up: no look at the disk but for what the system says of the process.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError};

use super::queue::QUEUE_BYTES_MAX;
use super::standing::{Standing, Store};
use crate::admin::{Failing, Told};
use crate::metrics::page::{Page, Source, page};
use crate::metrics::words::Label;
use crate::net::Shared;
use crate::net::listener::AcceptLimits;
use crate::routing::limits::{PRESENCES_IN_ALL_MAX, Quotas};

/// See the module. Lives on while the broker drains.
#[derive(Clone)]
pub struct Watched {
    pub(super) shared: Arc<Shared>,
    pub(super) standing: Arc<Standing>,
    pub(super) accept: AcceptLimits,
    pub(super) state_bytes_max: usize,
    /// Listeners that accept.
    pub(super) listening: Arc<AtomicUsize>,
    /// When certificates expire, in seconds since 1970, by the listener that presents them.
    pub(super) certificates: Vec<(&'static str, Arc<AtomicU64>)>,
}

impl Watched {
    /// The same, and the certificate of the listener of this name with it.
    #[must_use]
    pub fn with_certificate(mut self, listener: &'static str, expires: Arc<AtomicU64>) -> Self {
        self.certificates.push((listener, expires));
        self
    }

    /// Each thing that has to hold for the broker to be ready: its name, and what is wrong, if it does not hold.
    fn checks(&self) -> [(&'static str, Option<&'static str>); 3] {
        let is_draining = self.shared.draining.load(Relaxed);
        let store = match self.standing.store() {
            _ if self.standing.is_stuck(self.shared.clock.now().0) => Some("the disk does not answer"),
            Store::Open => None,
            Store::Full => Some("full for the moment: publishes are refused"),
            Store::Failed => Some("a commit failed: publishes are refused until the store opens again"),
            Store::ReadOnly => Some("nothing is written any more until a restart"),
        };
        let listeners = (self.listening.load(Relaxed) == 0).then_some("nobody listens");
        [
            ("draining", is_draining.then_some("the broker is going away")),
            ("listeners", listeners.filter(|_| !is_draining)),
            ("store", store),
        ]
    }

    fn write_broker(&self, page: &mut Page<'_>) -> fmt::Result {
        let features = if cfg!(feature = "push") { "push" } else { "none" };
        let build = [("version", env!("CARGO_PKG_VERSION")), ("features", features)];
        page.info("longwire_build", "The program that runs.", &build)?;
        let checks = self.checks().map(|(name, wrong)| (vec![("check", name)], u64::from(wrong.is_some())));
        page.gauges("longwire_unready", "1 for each check of /readyz that fails.", checks)?;
        let certificates = self.certificates.iter().map(|(name, at)| (vec![("listener", *name)], at.load(Relaxed)));
        page.gauges(
            "longwire_certificate_expiry_timestamp_seconds",
            "When the certificate expires, since 1970.",
            certificates.filter(|(_, at)| *at > 0),
        )
    }

    fn write_people(&self, page: &mut Page<'_>) -> fmt::Result {
        let registry = &self.shared.registry;
        page.gauge("longwire_sessions", "Devices that are online.", registry.sessions_online())?;
        page.gauge("longwire_users_online", "Users with a device that is online.", registry.users_online())?;
        let backlog = registry.backlog();
        page.gauge("longwire_outbox_items", "Items that wait for their connections.", backlog.items)?;
        page.gauge("longwire_outbox_bytes", "Bytes of items that wait for their connections.", backlog.bytes)?;
        page.gauge(
            "longwire_sessions_behind",
            "Sessions that read the log: slow ones, and those that were away.",
            backlog.sessions_behind,
        )?;
        page.gauge("longwire_presences_watched", "Subscriptions to presence.", registry.presences_watched())?;
        page.gauge("longwire_queue_bytes", "Contents that wait for the commit thread.", self.shared.queue.bytes())
    }

    fn write_store(&self, page: &mut Page<'_>) -> fmt::Result {
        let figures = self.standing.figures();
        let parts = |runs, memtables| [(vec![("part", "runs")], runs), (vec![("part", "memtables")], memtables)];
        page.gauges(
            "longwire_store_tables",
            "Runs, and memtables with the active one.",
            parts(figures.runs, figures.memtables),
        )?;
        page.gauges(
            "longwire_store_entries",
            "Entries in runs and memtables.",
            parts(figures.run_entries, figures.memtable_entries),
        )?;
        let journal = [(vec![("part", "journal")], figures.journal_bytes)];
        page.gauges(
            "longwire_store_bytes",
            "Bytes of entries in runs and memtables, and of frames that wait in the journal.",
            parts(figures.run_bytes, figures.memtable_bytes).into_iter().chain(journal),
        )?;
        let (rows, bytes, unsaved, wills, tail) = {
            let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
            (state.rows_in_memory(), state.bytes(), state.unsealed(), state.wills().len(), state.tail.0)
        };
        page.gauge("longwire_state_rows", "Rows of state in memory.", rows)?;
        page.gauge("longwire_state_bytes", "Bytes of rows of state in memory.", bytes)?;
        page.gauge("longwire_state_unsaved_rows", "Rows that changed since the last seal.", unsaved)?;
        page.gauge("longwire_wills", "Devices that leave something when they go.", wills)?;
        let fed = self.shared.fed.load(Relaxed);
        page.gauge("longwire_log_position", "Records in the log, ever.", tail)?;
        page.gauge(
            "longwire_feed_behind",
            "Records that are stored, and not yet handed to who is online.",
            tail.saturating_sub(fed),
        )
    }

    fn write_limits(&self, page: &mut Page<'_>) -> fmt::Result {
        let accept = self.accept;
        page.gauge("longwire_connections_max", "limits.connections, and what open files allow.", accept.connections)?;
        page.gauge(
            "longwire_connections_per_address_max",
            "limits.connections_per_address.",
            accept.connections_per_address,
        )?;
        page.gauge("longwire_handshakes_max", "limits.handshakes.", accept.handshakes)?;
        page.gauges(
            "longwire_memory_bytes_max",
            "limits.memory: beyond it nobody new is let in.",
            accept.memory_bytes.map(|bytes| (Vec::new(), bytes)),
        )?;
        let rates = self.shared.rates;
        let rates = [("connection", rates.connection), ("user", rates.user), ("conversation", rates.conversation)];
        page.gauges(
            "longwire_publishes_per_second_max",
            "limits.*_publishes, where they are set.",
            rates.into_iter().filter_map(|(bucket, rate)| Some((vec![("bucket", bucket)], rate?.per_second()))),
        )?;
        page.gauges(
            "longwire_reads_per_second_max",
            "limits.user_reads, unless it is 0.",
            self.shared.rates.reads.map(|rate| (Vec::new(), rate.per_second())),
        )?;
        page.gauge("longwire_state_bytes_max", "store.state_memory.", self.state_bytes_max)?;
        page.gauge("longwire_queue_bytes_max", "Beyond it publishes are overloaded.", QUEUE_BYTES_MAX)?;
        page.gauge(
            "longwire_store_journal_bytes_max",
            "Beyond it publishes are refused until the journal is absorbed.",
            self.standing.figures().journal_bytes_max,
        )?;
        page.gauge(
            "longwire_presences_watched_max",
            "Subscriptions to presence of all sessions.",
            PRESENCES_IN_ALL_MAX,
        )?;
        let quotas = self.shared.state.read().unwrap_or_else(PoisonError::into_inner).quotas;
        let content_bytes = u64::from(self.shared.limits.payload_bytes_max);
        page.gauges("longwire_quota", "How many of these there may be.", quota_rows(quotas, content_bytes))
    }
}

/// What one user, session or group may have, as the operator set it.
fn quota_rows(quotas: Quotas, content_bytes: u64) -> impl Iterator<Item = (Vec<Label>, u64)> {
    [
        ("conversations_of_a_user", u64::from(quotas.conversations)),
        ("members_of_a_group", u64::from(quotas.members)),
        ("bans_of_a_group", u64::from(quotas.bans)),
        ("devices_of_a_user", quotas.devices as u64),
        ("contacts_of_a_user", u64::from(quotas.contacts)),
        ("channels_watched_by_a_session", quotas.watches as u64),
        ("presences_watched_by_a_session", quotas.presences as u64),
        ("content_bytes", content_bytes),
    ]
    .into_iter()
    .map(|(of, most)| (vec![("of", of)], most))
}

impl Source for Watched {
    fn write(&self, page: &mut Page<'_>) -> fmt::Result {
        self.write_broker(page)?;
        self.write_people(page)?;
        self.write_store(page)?;
        self.write_limits(page)?;
        self.shared.metrics.write(page)
    }
}

impl Told for Watched {
    fn failing(&self) -> Vec<Failing> {
        let checks = self.checks().into_iter();
        checks.filter_map(|(check, why)| Some(Failing { check, why: why? })).collect()
    }

    fn metrics(&self) -> String {
        page(self.clone())
    }
}
