//! The calls that a process makes into the kernel, counted by `perf`: `/proc` counts those that read and write files, and
//! none that send and receive.

use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::super::super::Fail;

/// What counts: every call of any kind.
const EVENT: &str = "raw_syscalls:sys_enter";

/// A count under way. It begins some hundredths of a second after it was asked for.
pub(in crate::cli::bench) struct Syscalls {
    perf: Child,
}

impl Syscalls {
    /// Counts those of a process from now on.
    pub(in crate::cli::bench) fn count(pid: u32) -> Result<Self, Fail> {
        let perf = Command::new("perf")
            .args(["stat", "-x,", "-e", EVENT, "-p", &pid.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        match perf {
            Ok(perf) => Ok(Self { perf }),
            Err(error) => Err(Fail::usage(format!("--syscalls: perf counts them, and cannot be run: {error}"))),
        }
    }

    /// How many there were.
    pub(in crate::cli::bench) fn stop(self) -> Result<u64, Fail> {
        let _gone = kill_process(Pid::from_child(&self.perf), Signal::INT);
        let output = self.perf.wait_with_output().map_err(|error| Fail::failed(format!("--syscalls: {error}")))?;
        let said = String::from_utf8_lossy(&output.stderr);
        parse(&said).ok_or_else(|| Fail::usage(format!("--syscalls: perf did not count: {}", said.trim())))
    }
}

/// `9722,,raw_syscalls:sys_enter,…`
fn parse(said: &str) -> Option<u64> {
    let line = said.lines().find(|line| line.contains(EVENT))?;
    line.split(',').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_perf_says_is_read() {
        assert_eq!(parse("9722,,raw_syscalls:sys_enter,1000,100.00,,\n"), Some(9_722));
        assert_eq!(parse("<not supported>,,raw_syscalls:sys_enter,0,0.00,,\n"), None);
        assert_eq!(parse("event syntax error: 'raw_syscalls:sys_enter'\n"), None);
        assert_eq!(parse("Access to performance monitoring is limited.\n"), None);
    }
}
