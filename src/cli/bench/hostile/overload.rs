//! Overload: honest clients that offer five times what the broker manages.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::super::super::Fail;
use super::honest::{Crowd, Honest, Pace, Sample};
use super::{Args, Field};

/// Connections that saturate the broker, and what each has under way.
const CONNECTIONS: usize = 16;
const WINDOW: usize = 16;
/// Connections that offer too much; with full windows of contents of this size they fill the queue of the broker.
const CONNECTIONS_TOO_MANY: usize = 400;
const SIZE: usize = 4_000;
/// How much too much.
const TIMES: f64 = 5.0;
/// How soon the others have to be served as before.
const RECOVERY: Duration = Duration::from_secs(5);
/// The slices in which recovery is looked for.
const SLICE: Duration = Duration::from_millis(250);

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Overload {
    pub(super) saturated_per_second: f64,
    pub(super) offered_per_second: f64,
    pub(super) goodput_per_second: f64,
    pub(super) goodput_ratio: f64,
    pub(super) refused: u64,
    pub(super) refused_without_wait: u64,
    pub(super) accepted_p99_ms: f64,
    /// Until the others' p99 was within three times what it is in quiet; `None` where it never was.
    pub(super) recovered_s: Option<f64>,
    pub(super) broken: Vec<String>,
}

impl Overload {
    pub(super) async fn watch(args: &Args, field: &Field<'_>, others: &Honest) -> Result<Self, Fail> {
        let way = args.broker.way()?;
        let crowd = |publishers, window, name: &str| Crowd {
            publishers,
            readers: 0,
            size: SIZE,
            prefix: format!("{}-{name}-{:04x}", field.prefix, fastrand::u16(..)),
            apart: true,
            window,
        };
        let quiet_p99 = {
            others.pace(Pace::Rate(args.rate));
            tokio::time::sleep(Duration::from_secs(1)).await;
            p99(&others.watch(args.window).await)
        };
        let mut broken = others.settle().await;
        let enough = Honest::start(&way, &field.issuer, &crowd(CONNECTIONS, WINDOW, "enough")).await?;
        enough.pace(Pace::Full);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let saturated = enough.watch(args.window).await;
        broken.extend(enough.settle().await);
        enough.stop().await;
        let saturated_per_second = saturated.acked as f64 / saturated.seconds;

        let window = longwire_protocol::limits::PUBLISH_WINDOW.items as usize;
        let many = Honest::start(&way, &field.issuer, &crowd(CONNECTIONS_TOO_MANY, window, "many")).await?;
        let offered_per_second = TIMES * saturated_per_second;
        many.pace(Pace::Rate(offered_per_second));
        tokio::time::sleep(Duration::from_secs(2)).await;
        let sample = many.watch(args.window).await;
        // It ends: from now on the others' messages are on time again, sooner or later.
        many.pace(Pace::Rest);
        others.pace(Pace::Rate(args.rate));
        let ended = Instant::now();
        let mut recovered_s = None;
        while recovered_s.is_none() && ended.elapsed() < 2 * RECOVERY {
            let slice = others.watch(SLICE).await;
            if slice.acked > 0 && p99(&slice) <= 3.0 * quiet_p99.max(super::report::P99_LEAST_MS) {
                recovered_s = Some(ended.elapsed().as_secs_f64());
            }
        }
        broken.extend(many.settle().await);
        broken.extend(others.settle().await);
        many.stop().await;
        let goodput_per_second = sample.acked as f64 / sample.seconds;
        Ok(Self {
            saturated_per_second,
            offered_per_second,
            goodput_per_second,
            goodput_ratio: goodput_per_second / saturated_per_second.max(1.0),
            refused: sample.refused,
            refused_without_wait: sample.refused_without_wait,
            accepted_p99_ms: p99(&sample),
            recovered_s,
            broken,
        })
    }

    pub(super) fn is_recovered(&self) -> bool {
        self.recovered_s.is_some_and(|recovered| recovered <= RECOVERY.as_secs_f64())
    }
}

fn p99(sample: &Sample) -> f64 {
    sample.ack_us.value_at_quantile(0.99) as f64 / 1_000.0
}
