//! Where a benchmark ran.

use std::fs;

use serde::Serialize;

/// The machine, as far as it matters for figures.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    pub(super) cores: usize,
    pub(super) processor: String,
    pub(super) memory_gib: f64,
    pub(super) kernel: String,
}

impl Machine {
    /// This one; what is not known is left empty.
    pub(super) fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let after = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let memory = after(&read("/proc/meminfo"), "MemTotal");
        let kib: f64 = memory.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0.0);
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            processor: after(&read("/proc/cpuinfo"), "model name"),
            memory_gib: (kib / 1024.0 / 1024.0).round(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

/// The command of this process, with the name of the binary alone.
pub(super) fn command() -> String {
    let arguments = std::env::args().skip(1).map(|argument| {
        let plain = argument.chars().all(|c| c.is_ascii_alphanumeric() || "-_=./:,@%+".contains(c));
        if plain && !argument.is_empty() { argument } else { format!("'{}'", argument.replace('\'', r"'\''")) }
    });
    std::iter::once("longwire".to_owned()).chain(arguments).collect::<Vec<_>>().join(" ")
}
