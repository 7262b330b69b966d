//! What the system says of this process, by the names that every program gives it.

use std::fs;

use rustix::process::{Resource, getrlimit};

use super::page::Page;

/// Ticks of a second in `/proc`: the same on every Linux.
const TICKS: f64 = 100.0;

/// The resident memory of this process; `None` where the system does not say.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// The time that this process has computed, in seconds.
fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, behind_name) = stat.rsplit_once(')')?;
    let ticks: u64 =
        behind_name.split_ascii_whitespace().skip(11).take(2).map(|field| field.parse().unwrap_or(0)).sum();
    Some(ticks as f64 / TICKS)
}

/// Linux says it as the size of the folder since 6.2. Before, they are counted: of a million that takes a second.
fn open_files() -> Option<u64> {
    let said = fs::metadata("/proc/self/fd").ok()?.len();
    if said > 0 { Some(said) } else { fs::read_dir("/proc/self/fd").ok().map(|files| files.count() as u64) }
}

/// Writes what is known.
pub(super) fn write(page: &mut Page<'_>) -> std::fmt::Result {
    let row = |value: Option<u64>| value.map(|value| (Vec::new(), value));
    page.gauges("process_resident_memory_bytes", "Resident memory.", row(resident_bytes()))?;
    page.seconds("process_cpu_seconds", "Time computed, by user and system.", cpu_seconds().unwrap_or(0.0))?;
    page.gauges("process_open_fds", "Open files, sockets included.", row(open_files()))?;
    page.gauges(
        "process_max_fds",
        "Files that may be open, by the limit of the system.",
        row(getrlimit(Resource::Nofile).current),
    )
}
