//! What the broker counts of itself, for who watches it. Counters are plain handles: whoever does something adds to one,
//! once for a batch where there is one. What there is of something is not counted here but looked at when it is asked
//! for, by `broker/watched.rs`. Names and texts of counters stand here alone; docs/operating.md lists all of them.
//!
//! Knows no other room. No label ever names a user, a device, a connection or a conversation.

pub mod page;
pub mod process;
pub mod words;

use std::fmt;
use std::sync::OnceLock;

use longwire_protocol::reason::Reason;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use page::Page;
use words::{Bucket, Door, Each, Full, Handshake, Label, Method};

/// Seconds: an fsync takes some 50 µs to 10 ms, and a disk in trouble seconds.
const COMMIT_SECONDS: [f64; 12] = [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0];
/// Seconds: a handshake takes some 1 ms of CPU, two round trips, and its turn.
const HANDSHAKE_SECONDS: [f64; 10] = [0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];
/// Entries that share an fsync.
const GROUP_ENTRIES: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 256.0, 1_024.0];

/// See the module.
#[derive(Debug)]
pub struct Metrics {
    /// Connections there are.
    pub connections: Each<Door, Gauge>,
    /// Connections accepted.
    pub opened: Each<Door, Counter>,
    /// Connections that ended, why.
    pub closed: Closed,
    /// Sockets closed unread.
    pub turned_away: Each<Full, Counter>,
    /// TLS handshakes.
    pub handshakes: Each<Handshake, Counter>,
    /// How long those took that were done.
    pub handshake_seconds: Histogram,
    /// Who said who it is, and was let in or not.
    pub auth: Each<Method, Answers>,
    /// Publishes acked that were stored just before.
    pub publishes: Counter,
    /// Publishes acked that were stored long before.
    pub repeats: Counter,
    /// Publishes refused.
    pub publishes_refused: Each<Reason, Counter>,
    /// Requests.
    pub requests: Counter,
    /// Requests refused.
    pub requests_refused: Each<Reason, Counter>,
    /// Requests that had the next ones of their user wait.
    pub requests_beyond_rate: Counter,
    /// What was refused as *rate_limited*.
    pub rate_limited: Each<Bucket, Counter>,
    /// Signals taken from clients.
    pub signals: Counter,
    /// Items handed to sessions.
    pub deliveries: Counter,
    /// Items sent once more.
    pub resent: Counter,
    /// Acks of devices.
    pub acks: Counter,
    /// Groups made durable: each is one fsync.
    pub commits: Counter,
    /// How long groups took to be durable.
    pub commit_seconds: Histogram,
    /// How many entries they had.
    pub group_entries: Histogram,
    /// Groups that could not be made durable.
    pub commits_failed: Counter,
    /// Operations decided.
    pub operations: Counter,
    /// Rows for which the commit thread waited.
    pub late_rows: Counter,
    /// What devices were told that are away, with push notification.
    pub push: OnceLock<Vec<(&'static str, Told)>>,
    /// Devices that have something to be told.
    pub push_waiting: Gauge,
}

/// Why connections ended.
#[derive(Debug, Default)]
pub struct Closed {
    /// The broker ended it.
    pub refused: Each<Reason, Counter>,
    /// The client said goodbye.
    pub goodbye: Counter,
    /// The client went without a word, or the network.
    pub lost: Counter,
    /// In its TLS handshake.
    pub handshake: Counter,
}

/// Who was let in.
#[derive(Debug, Default)]
pub struct Answers {
    /// Let in.
    pub let_in: Counter,
    /// Refused, or gone before it was let in.
    pub refused: Counter,
}

/// What a provider of push notification did.
#[derive(Debug, Default)]
pub struct Told {
    /// It took a notification.
    pub sent: Counter,
    /// It rejected one for good.
    pub given_up: Counter,
    /// It knows the device no more.
    pub gone: Counter,
    /// It took none just now.
    pub failed: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            connections: Each::default(),
            opened: Each::default(),
            closed: Closed::default(),
            turned_away: Each::default(),
            handshakes: Each::default(),
            handshake_seconds: Histogram::new(HANDSHAKE_SECONDS),
            auth: Each::default(),
            publishes: Counter::default(),
            repeats: Counter::default(),
            publishes_refused: Each::default(),
            requests: Counter::default(),
            requests_refused: Each::default(),
            requests_beyond_rate: Counter::default(),
            rate_limited: Each::default(),
            signals: Counter::default(),
            deliveries: Counter::default(),
            resent: Counter::default(),
            acks: Counter::default(),
            commits: Counter::default(),
            commit_seconds: Histogram::new(COMMIT_SECONDS),
            group_entries: Histogram::new(GROUP_ENTRIES),
            commits_failed: Counter::default(),
            operations: Counter::default(),
            late_rows: Counter::default(),
            push: OnceLock::new(),
            push_waiting: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Writes all of it.
    ///
    /// # Errors
    /// The page cannot be written.
    pub fn write(&self, page: &mut Page<'_>) -> fmt::Result {
        self.write_connections(page)?;
        self.write_messages(page)?;
        self.write_commits(page)?;
        self.write_push(page)?;
        process::write(page)
    }

    fn write_connections(&self, page: &mut Page<'_>) -> fmt::Result {
        page.gauges(
            "longwire_connections",
            "Connections, from accept to close.",
            self.connections.iter().map(|(labels, gauge)| (labels, gauge.get())),
        )?;
        page.each("longwire_connections_opened", "Connections accepted.", &self.opened)?;
        let words =
            [("goodbye", &self.closed.goodbye), ("handshake", &self.closed.handshake), ("lost", &self.closed.lost)];
        let others = words.into_iter().map(|(word, counter)| (vec![("reason", word)], counter));
        page.counters(
            "longwire_connections_closed",
            "Connections that ended: refused for a reason of the protocol, gone with or without a goodbye, or in the handshake.",
            self.closed.refused.iter().chain(others).map(|(labels, counter)| (labels, counter.get())),
        )?;
        page.each(
            "longwire_connections_turned_away",
            "Sockets closed unread, since a limit was reached.",
            &self.turned_away,
        )?;
        page.each("longwire_handshakes", "TLS handshakes that ended.", &self.handshakes)?;
        page.histogram(
            "longwire_handshake_seconds",
            "From accept to the end of a TLS handshake that was done.",
            &self.handshake_seconds,
        )?;
        let answers = self.auth.iter().flat_map(|(labels, answers)| {
            let with = |word| labels.iter().copied().chain([("result", word)]).collect::<Vec<Label>>();
            [(with("let_in"), answers.let_in.get()), (with("refused"), answers.refused.get())]
        });
        page.counters("longwire_auth", "Clients that said who they are, and were let in or not.", answers)
    }

    fn write_messages(&self, page: &mut Page<'_>) -> fmt::Result {
        page.counter("longwire_publishes", "Publishes stored and acked.", self.publishes.get())?;
        page.counter(
            "longwire_publishes_repeated",
            "Publishes acked again that were stored before.",
            self.repeats.get(),
        )?;
        page.each("longwire_publishes_refused", "Publishes refused.", &self.publishes_refused)?;
        page.counter("longwire_requests", "Requests of clients.", self.requests.get())?;
        page.each("longwire_requests_refused", "Requests refused.", &self.requests_refused)?;
        page.counter(
            "longwire_requests_beyond_rate",
            "Requests that took more than limits.user_reads leaves: the next ones of their user wait.",
            self.requests_beyond_rate.get(),
        )?;
        page.each("longwire_rate_limited", "What was refused because it came too often.", &self.rate_limited)?;
        page.counter("longwire_signals", "Signals taken from clients.", self.signals.get())?;
        page.counter("longwire_deliveries", "Items handed to sessions.", self.deliveries.get())?;
        page.counter(
            "longwire_deliveries_resent",
            "Items sent once more, since they were not stored.",
            self.resent.get(),
        )?;
        page.counter("longwire_acks", "Acks of devices, each of all items up to one.", self.acks.get())
    }

    fn write_commits(&self, page: &mut Page<'_>) -> fmt::Result {
        page.histogram(
            "longwire_commit_seconds",
            "Appending a group: until its fsync returned.",
            &self.commit_seconds,
        )?;
        page.histogram("longwire_commit_entries", "Entries of a group that share an fsync.", &self.group_entries)?;
        page.counter("longwire_commits", "Groups made durable, by one fsync each.", self.commits.get())?;
        page.counter("longwire_commits_failed", "Groups that the store did not take.", self.commits_failed.get())?;
        page.counter("longwire_operations", "Operations that the commit thread decided.", self.operations.get())?;
        page.counter(
            "longwire_late_rows",
            "Rows of state for which the commit thread waited for the disk.",
            self.late_rows.get(),
        )
    }

    fn write_push(&self, page: &mut Page<'_>) -> fmt::Result {
        let rows = self.push.get().into_iter().flatten().flat_map(|(provider, told)| {
            let counters =
                [("sent", &told.sent), ("given_up", &told.given_up), ("gone", &told.gone), ("failed", &told.failed)];
            counters.map(|(word, counter)| (vec![("provider", *provider), ("result", word)], counter.get()))
        });
        page.counters("longwire_push", "Notifications for devices that are away, by what their provider said.", rows)?;
        page.gauge(
            "longwire_push_waiting",
            "Devices that are away and have something to be told.",
            self.push_waiting.get(),
        )
    }
}
