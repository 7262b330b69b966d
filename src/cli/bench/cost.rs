//! What a broker spent between two moments, for each message.

use std::time::Instant;

use super::super::Fail;
use super::args::Subject;
use super::load::own::OwnBroker;
use super::load::process::{self, Spent};
use super::load::syscalls::Syscalls;
use super::report::Run;

/// A moment from which on it is measured.
pub(super) struct Meter {
    began: Instant,
    pid: Option<u32>,
    spent: Option<Spent>,
    traffic: (u64, u64),
    syscalls: Option<Syscalls>,
}

impl Meter {
    /// From now on.
    pub(super) fn start(subject: &Subject) -> Result<Self, Fail> {
        Ok(Self {
            pid: subject.pid,
            spent: subject.pid.map(process::spent).transpose()?,
            traffic: subject.broker.traffic().bytes(),
            syscalls: subject.count_syscalls()?,
            began: Instant::now(),
        })
    }

    /// Until now, for so many messages of a kind.
    pub(super) fn stop(self, subject: &Subject, messages: u64, run: &mut Run) -> Result<(), Fail> {
        let seconds = self.began.elapsed().as_secs_f64();
        let after = self.pid.map(process::spent).transpose()?;
        let (sent, received) = subject.broker.traffic().bytes();
        let syscalls = self.syscalls.map(Syscalls::stop).transpose()?;
        let each = |total: f64| total / (messages.max(1) as f64);
        run.figure("messages", "messages", messages as f64);
        run.figure("seconds", "seconds", seconds);
        run.figure("messages_per_second", "messages/s", messages as f64 / seconds.max(0.001));
        if let Some((before, after)) = self.spent.zip(after) {
            let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
            run.figure("broker_cpu_us_per_message", "broker CPU a message, us", each(cpu * 1e6));
            run.figure("broker_cpu_seconds", "broker CPU in all, s", cpu);
            run.figure(
                "broker_disk_bytes_per_message",
                "bytes to disk a message",
                each((after.disk_bytes - before.disk_bytes) as f64),
            );
            run.figure(
                "broker_resident_mib",
                "broker memory after it, MiB",
                after.resident as f64 / f64::from(1 << 20),
            );
        }
        if let Some(syscalls) = syscalls {
            run.figure(
                "broker_syscalls_per_message",
                "broker's calls into the kernel a message",
                each(syscalls as f64),
            );
        }
        run.figure(
            "bytes_to_broker_per_message",
            "bytes to the broker a message",
            each((sent - self.traffic.0) as f64),
        );
        run.figure(
            "bytes_from_broker_per_message",
            "bytes from the broker a message",
            each((received - self.traffic.1) as f64),
        );
        Ok(())
    }
}

/// Has a broker that was started for a run end, and says what it synced in its life.
pub(super) fn stop(own: Option<OwnBroker>, run: &mut Run) {
    if let Some(committed) = own.and_then(OwnBroker::stop) {
        run.figure("operations", "operations in the broker's life", committed.operations as f64);
        run.figure("fsyncs", "fsyncs for these", committed.frames as f64);
        run.figure(
            "fsyncs_per_operation",
            "fsyncs an operation",
            committed.frames as f64 / committed.operations.max(1) as f64,
        );
    }
}
