//! What a benchmark says: figures, latencies and rates of each run, as a table, as JSON, and as a page to show around.

pub(super) mod html;
mod machine;
mod table;

use std::path::Path;
use std::time::SystemTime;

use hdrhistogram::Histogram;
use serde::Serialize;
use serde::ser::SerializeMap as _;

use super::super::Fail;
use super::load::crew::POINT;
use machine::Machine;

/// All runs of one benchmark.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// The benchmark's name.
    bench: &'static str,
    /// What was asked for, in words.
    setting: String,
    /// The command that does it again.
    command: String,
    /// When it was made, UTC.
    at: String,
    machine: Machine,
    runs: Vec<Run>,
    /// What a reader has to know to judge the figures.
    notes: Vec<String>,
}

/// One run. Runs of the same name are repetitions.
#[derive(Debug, Serialize)]
pub(super) struct Run {
    name: String,
    figures: Figures,
    latencies: Vec<Latency>,
    rates: Vec<Rate>,
}

/// In the order in which they are shown; an object in JSON.
#[derive(Debug, Default)]
struct Figures(Vec<Figure>);

#[derive(Debug)]
struct Figure {
    key: &'static str,
    label: &'static str,
    value: f64,
}

impl Serialize for Figures {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for figure in &self.0 {
            map.serialize_entry(figure.key, &figure.value)?;
        }
        map.end()
    }
}

/// How long something took, over all that was counted.
#[derive(Debug, Serialize)]
struct Latency {
    name: &'static str,
    count: u64,
    /// Percentile and milliseconds.
    points: Vec<(f64, f64)>,
    max_ms: f64,
}

/// How much was done in each stretch of time.
#[derive(Debug, Serialize)]
struct Rate {
    name: &'static str,
    /// The length of a stretch.
    seconds: f64,
    /// Of each stretch, per second.
    per_second: Vec<f64>,
}

/// The percentiles that are kept.
const PERCENTILES: [f64; 13] = [0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 99.999];

impl Report {
    /// A report without runs. The command is that of this process.
    pub(super) fn new(bench: &'static str, setting: impl Into<String>) -> Self {
        Self {
            bench,
            setting: setting.into(),
            command: machine::command(),
            at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            machine: Machine::here(),
            runs: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, run: Run) {
        self.runs.push(run);
    }

    /// Says something that is needed to judge the figures.
    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Prints it, and writes the files that are asked for.
    pub(super) fn publish(&self, json: Option<&Path>, html: Option<&Path>) -> Result<(), Fail> {
        print!("{}", table::of(self));
        if let Some(path) = json {
            let text = serde_json::to_string_pretty(self).map_err(|error| Fail::failed(error.to_string()))?;
            write(path, &(text + "\n"))?;
        }
        if let Some(path) = html {
            write(path, &html::page(self))?;
        }
        Ok(())
    }

    /// Writes a page whose figures are these, where they are none of runs beside each other.
    pub(super) fn publish_page(&self, html: Option<&Path>, figures: &str) -> Result<(), Fail> {
        let Some(path) = html else { return Ok(()) };
        write(path, &(html::head(self) + figures + &html::foot(self)))
    }
}

fn write(path: &Path, text: &str) -> Result<(), Fail> {
    std::fs::write(path, text).map_err(|error| Fail::failed(format!("{}: {error}", path.display())))
}

impl Run {
    pub(super) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), figures: Figures::default(), latencies: Vec::new(), rates: Vec::new() }
    }

    /// A figure: its name in JSON, and what people call it.
    pub(super) fn figure(&mut self, key: &'static str, label: &'static str, value: f64) {
        self.figures.0.push(Figure { key, label, value });
    }

    /// How long something took; recorded in microseconds.
    pub(super) fn latency(&mut self, name: &'static str, took: &Histogram<u64>) {
        let ms = |us: u64| us as f64 / 1_000.0;
        let points = PERCENTILES.iter().map(|at| (*at, ms(took.value_at_percentile(*at)))).collect();
        self.latencies.push(Latency { name, count: took.len(), points, max_ms: ms(took.max()) });
    }

    /// What was done in each [`POINT`].
    pub(super) fn rate(&mut self, name: &'static str, points: &[u64]) {
        let seconds = POINT.as_secs_f64();
        let per_second = points.iter().map(|count| *count as f64 / seconds).collect();
        self.rates.push(Rate { name, seconds, per_second });
    }
}

impl Latency {
    fn at(&self, percentile: f64) -> f64 {
        self.points.iter().find(|(at, _)| *at >= percentile).map_or(self.max_ms, |(_, ms)| *ms)
    }
}

/// For times from a microsecond to ten minutes.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("these bounds are in order")
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn example() -> Report {
        let mut report = Report::new("pairs", "3 pairs <b>");
        let mut took = histogram();
        for us in 1..=1_000 {
            took.saturating_record(us * 1_000);
        }
        for value in [1_234.5, 2_000.0, 1_500.0] {
            let mut run = Run::new("longwire");
            run.figure("messages_per_second", "messages/s", value);
            run.latency("publish to ack", &took);
            run.rate("messages", &[10, 20, 30]);
            report.add(run);
        }
        let mut peer = Run::new("mqtt");
        peer.figure("messages_per_second", "messages/s", 63.0);
        report.add(peer);
        report.note("both on one machine");
        report
    }

    #[test]
    fn json_names_the_figures() {
        let json = serde_json::to_value(example()).expect("JSON");
        assert_eq!(json["runs"][1]["figures"]["messages_per_second"], 2_000.0);
        assert_eq!(json["runs"][0]["latencies"][0]["points"][3][0], 50.0);
        assert_eq!(json["runs"][0]["rates"][0]["per_second"][2], 300.0);
    }
}
