//! The page that is scraped: families in the text format of OpenMetrics, one after the other.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric as _, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::words::{Each, Label, Word};

/// What has something to write.
pub trait Source: Send + Sync + 'static {
    /// Writes it.
    ///
    /// # Errors
    /// The page cannot be written.
    fn write(&self, page: &mut Page<'_>) -> fmt::Result;
}

/// The whole page.
#[must_use]
pub fn page(source: impl Source) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Collected(source)));
    let mut page = String::new();
    // Into a string nothing fails.
    let _ = text::encode(&mut page, &registry);
    page
}

struct Collected<S>(S);

impl<S> fmt::Debug for Collected<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collected")
    }
}

impl<S: Source> Collector for Collected<S> {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.write(&mut Page(encoder))
    }
}

/// See the module.
pub struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    /// A counter, whose samples end in `_total`.
    ///
    /// # Errors
    /// The page cannot be written.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        family.encode_counter::<NoLabelSet, u64, u64>(&value, None)
    }

    /// The same of time, in seconds.
    ///
    /// # Errors
    /// The page cannot be written.
    pub fn seconds(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        family.encode_counter::<NoLabelSet, f64, u64>(&value, None)
    }

    /// A counter with labels.
    ///
    /// # Errors
    /// The page cannot be written.
    pub fn counters(&mut self, name: &str, help: &str, rows: impl Iterator<Item = (Vec<Label>, u64)>) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in rows {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
        }
        Ok(())
    }

    /// A counter for each word.
    ///
    /// # Errors
    /// The page cannot be written.
    pub fn each<K: Word>(&mut self, name: &str, help: &str, each: &Each<K, Counter>) -> fmt::Result {
        self.counters(name, help, each.iter().map(|(labels, counter)| (labels, counter.get())))
    }

    /// A gauge.
    ///
    /// # Errors
    /// The page cannot be written.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    /// A gauge with labels; none of it where nothing is known.
    ///
    /// # Errors
    /// The page cannot be written.
    pub fn gauges<V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Vec<Label>, V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in rows {
            if labels.is_empty() {
                family.encode_gauge(&value)?;
            } else {
                family.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    /// A histogram.
    ///
    /// # Errors
    /// The page cannot be written.
    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) -> fmt::Result {
        histogram.encode(self.0.encode_descriptor(name, help, None, MetricType::Histogram)?)
    }

    /// What does not change, said by labels.
    ///
    /// # Errors
    /// The page cannot be written.
    pub fn info(&mut self, name: &str, help: &str, labels: &[Label]) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(&labels)
    }
}
