//! A broker of the benchmark's own: a process of this same binary over a store in a temporary folder, on loopback, at a
//! port that the system chooses. It ends with the benchmark, and its folder with it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use super::super::super::Fail;

/// What the broker of `serve --dev` calls the issuer that it makes.
const ISSUER: &str = "longwire-dev";

/// What the commit thread did in the life of a broker, as its last log line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Committed {
    /// Publishes, connects and whatever else went through it.
    pub(in crate::cli::bench) operations: u64,
    /// Frames, each of which was one fsync.
    pub(in crate::cli::bench) frames: u64,
}

/// As much of a log line as matters here.
#[derive(Debug, Default, Deserialize)]
struct LogLine {
    #[serde(default)]
    level: String,
    #[serde(default)]
    message: String,
    address: Option<String>,
    operations: Option<u64>,
    frames: Option<u64>,
}

/// A running broker. Dropping it kills the process; its store is thrown away anyhow.
pub(in crate::cli) struct OwnBroker {
    started: Started,
    /// That of the process that runs now.
    pid: Arc<AtomicU32>,
    folder: Folder,
    listener: Listener,
    reads: Reads,
}

/// Its listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Listener {
    Plain,
    Tls,
}

/// How much it looks at for the requests of one user in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) enum Reads {
    /// As much as any broker.
    #[default]
    Bounded,
    /// All that it can.
    Unbounded,
}

/// One process of it.
struct Started {
    child: Child,
    log: Option<JoinHandle<Option<Committed>>>,
    address: String,
}

impl Drop for Started {
    fn drop(&mut self) {
        // One that has ended cannot be killed, and need not.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn spawn(folder: &Folder, address: &str, listener: Listener, reads: Reads) -> Result<Started, Fail> {
    let mut command = Command::new(std::env::current_exe()?);
    // Whatever the environment says is for another broker.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LONGWIRE")) {
        command.env_remove(name);
    }
    if reads == Reads::Unbounded {
        command.env("LONGWIRE__LIMITS__USER_READS", "0");
    }
    command.args(["serve", "--dev", "--log", "info", "--log-format", "json"]);
    match listener {
        Listener::Plain => command.args(["--no-tls", "--listen-plain", address]),
        Listener::Tls => command.args(["--listen", address]),
    };
    command.arg("--dev-dir").arg(folder.path());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let (listening, address) = mpsc::channel();
    let log = child.stderr.take().map(|log| thread::spawn(move || read_log(log, &listening)));
    let mut started = Started { child, log, address: String::new() };
    started.address = address.recv().map_err(|_| Fail::failed("the broker ended before it listened"))?;
    Ok(started)
}

impl OwnBroker {
    /// Starts a broker and waits until it listens.
    pub(in crate::cli) fn start(listener: Listener, reads: Reads) -> Result<Self, Fail> {
        let folder = Folder::make()?;
        let started = spawn(&folder, "127.0.0.1:0", listener, reads)?;
        let pid = Arc::new(AtomicU32::new(started.child.id()));
        let broker = Self { started, pid, folder, listener, reads };
        broker.end_with_this_process();
        Ok(broker)
    }

    /// Kills it where it stands, and starts it again over the same store and at the same address.
    pub(in crate::cli) fn kill_and_start(&mut self) -> Result<(), Fail> {
        self.started.child.kill()?;
        self.started.child.wait()?;
        self.started = spawn(&self.folder, &self.started.address, self.listener, self.reads)?;
        self.pid.store(self.started.child.id(), Ordering::Relaxed);
        Ok(())
    }

    pub(in crate::cli::bench) fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Host and port.
    pub(in crate::cli) fn address(&self) -> &str {
        &self.started.address
    }

    pub(in crate::cli) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub(in crate::cli) fn issuer_key(&self) -> PathBuf {
        self.folder.path().join("issuer.key")
    }

    pub(in crate::cli) const fn issuer(&self) -> &'static str {
        ISSUER
    }

    /// Has the broker drain and end; returns what it says of its life. `None` where it does not say.
    pub(in crate::cli) fn stop(mut self) -> Option<Committed> {
        signal(self.pid(), Signal::TERM);
        let committed = self.started.log.take().and_then(|log| log.join().ok()).flatten();
        // Reaped here; the drop finds it gone.
        drop(self.started.child.wait());
        committed
    }

    /// An interrupted benchmark leaves no broker and no folder behind.
    fn end_with_this_process(&self) {
        let (pid, folder) = (Arc::clone(&self.pid), self.folder.path().to_owned());
        thread::spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
            if runtime.block_on(interrupted()) {
                signal(pid.load(Ordering::Relaxed), Signal::KILL);
                drop(fs::remove_dir_all(folder));
                std::process::exit(130);
            }
        });
    }
}

/// Resolves to true once this process is told to end, to false where it cannot be told.
async fn interrupted() -> bool {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return false;
    };
    tokio::select! {
        _ = interrupt.recv() => true,
        _ = terminate.recv() => true,
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // A process that is gone needs no signal.
        let _gone = kill_process(pid, signal);
    }
}

/// Reads until the broker ends: says where it listens, passes complaints on, returns its last words.
fn read_log(log: ChildStderr, listening: &mpsc::Sender<String>) -> Option<Committed> {
    let mut committed = None;
    for line in BufReader::new(log).lines().map_while(Result::ok) {
        let Ok(said) = serde_json::from_str::<LogLine>(&line) else {
            eprintln!("{line}");
            continue;
        };
        if matches!(said.level.as_str(), "WARN" | "ERROR") {
            eprintln!("longwire: the broker says: {}", said.message);
        }
        if let Some(address) = said.address {
            // Only the first is waited for.
            drop(listening.send(address));
        }
        if let (Some(operations), Some(frames)) = (said.operations, said.frames) {
            committed = Some(Committed { operations, frames });
        }
    }
    committed
}

/// A folder that is removed with all that is in it.
pub(in crate::cli::bench) struct Folder(PathBuf);

impl Folder {
    pub(in crate::cli::bench) fn make() -> Result<Self, Fail> {
        let path = std::env::temp_dir().join(format!("longwire-bench-{:016x}", fastrand::u64(..)));
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&path).map_err(|error| Fail::failed(format!("{}: {error}", path.display())))?;
        Ok(Self(path))
    }

    pub(in crate::cli::bench) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed lies in a folder that others remove.
        drop(fs::remove_dir_all(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_of_a_broker_are_understood() {
        let line = r#"{"timestamp":"2026-11-22T03:00:00Z","level":"INFO","message":"stopped; each frame was one fsync","operations":12,"frames":3,"target":"longwire::broker"}"#;
        let said: LogLine = serde_json::from_str(line).expect("a log line");
        assert_eq!((said.operations, said.frames, said.address), (Some(12), Some(3), None));
    }
}
