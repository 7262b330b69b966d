//! What a process of this machine has spent, as Linux tells it.

use std::fs;
use std::time::Duration;

use super::super::super::Fail;

/// Figures of a process at one moment; they only grow, but for the memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::cli::bench) struct Spent {
    pub(in crate::cli::bench) cpu: Duration,
    /// Calls that write, to files and sockets.
    pub(in crate::cli::bench) write_calls: u64,
    /// Bytes written to disks.
    pub(in crate::cli::bench) disk_bytes: u64,
    /// Memory that is resident, in bytes.
    pub(in crate::cli::bench) resident: u64,
}

/// Reads the figures of a process.
pub(in crate::cli::bench) fn spent(pid: u32) -> Result<Spent, Fail> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        fs::read_to_string(&path).map_err(|error| Fail::usage(format!("--broker-pid {pid}: {path}: {error}")))
    };
    let (stat, io, status) = (read("stat")?, read("io")?, read("status")?);
    parse(&stat, &io, &status, rustix::param::clock_ticks_per_second())
        .ok_or_else(|| Fail::failed(format!("/proc/{pid} is not as Linux writes it")))
}

fn parse(stat: &str, io: &str, status: &str, ticks: u64) -> Option<Spent> {
    Some(Spent {
        cpu: cpu(stat, ticks)?,
        write_calls: field(io, "syscw:")?,
        disk_bytes: field(io, "write_bytes:")?,
        resident: field(status, "VmRSS:")? * 1024,
    })
}

fn cpu(stat: &str, ticks: u64) -> Option<Duration> {
    // The name stands in brackets and may hold anything; user and system time are the 12th and 13th behind it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_secs_f64((user + system) as f64 / ticks as f64))
}

/// CPU that the threads of this name in this process have taken.
pub(in crate::cli::bench) fn own_threads(name: &str) -> Duration {
    let ticks = rustix::param::clock_ticks_per_second();
    let named = |stat: &String| stat.split_once('(').is_some_and(|(_, rest)| rest.starts_with(&format!("{name})")));
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    // A thread may be gone before it is looked at.
    let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    stats.filter(named).filter_map(|stat| cpu(&stat, ticks)).sum()
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What the kernel holds for TCP sockets of the whole machine, in bytes.
pub(in crate::cli::bench) fn kernel_tcp_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/net/sockstat").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let mut words = line.split_whitespace();
    words.find(|word| *word == "mem")?;
    words.next()?.parse::<u64>().ok().map(|pages| pages * rustix::param::page_size() as u64)
}

/// What the kernel's slabs take, in bytes: sockets, files and what goes with them, of the whole machine.
pub(in crate::cli::bench) fn slab_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    field(&text, "Slab:").map(|kib| kib * 1024)
}

/// Raises the limit on open files as far as it goes, and returns it.
pub(in crate::cli::bench) fn raise_open_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let outcome = setrlimit(Resource::Nofile, raised);
    let current = if outcome.is_ok() { limit.maximum } else { limit.current };
    current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_writes_is_read() {
        let stat = "7 (a) name) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0";
        let io = "rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: 5\nwrite_bytes: 6\n";
        let spent = parse(stat, io, "Name:\tx\nVmRSS:\t   12 kB\n", 100).expect("well formed");
        assert_eq!(spent, Spent { cpu: Duration::from_secs(3), write_calls: 4, disk_bytes: 6, resident: 12_288 });
        assert_eq!(parse("", io, "", 100), None);
    }

    #[test]
    fn threads_of_this_process_are_known_by_their_name() {
        let spins = || {
            while own_threads("spins").is_zero() {
                std::hint::spin_loop();
            }
        };
        std::thread::Builder::new()
            .name("spins".into())
            .spawn(spins)
            .expect("a thread")
            .join()
            .expect("it has taken CPU");
        assert_eq!(own_threads("nobody is called this"), Duration::ZERO);
    }

    #[test]
    fn this_process_has_figures() {
        assert!(super::spent(std::process::id()).expect("this process is there").resident > 0);
    }
}
