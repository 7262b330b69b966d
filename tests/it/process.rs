//! The real broker as a process: on a port and a store that outlive it, with what it logs.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use longwire::auth::{self, Claims};
use longwire_client::{Address, Config, Dialer, Trust};
use longwire_protocol::packet::{self, CatchUpMode, StartKind};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use tokio::time::sleep;

use crate::world::{PATIENCE, Wire};

/// How the broker is run; the default is plain, and says little.
#[derive(Clone, Default)]
pub(crate) struct Setup {
    /// What is to fail; see `src/store/faults.rs`.
    pub(crate) faults: String,
    /// More of the configuration, in TOML.
    pub(crate) config: String,
    /// Where the store is, if it is not in the process's own folder.
    pub(crate) store: Option<PathBuf>,
    /// Listens with TLS; certificate and key are written into the folder before.
    pub(crate) tls: bool,
    /// Another program than the broker of this version.
    pub(crate) program: Option<PathBuf>,
    /// What a shell does before it becomes the broker: sets limits.
    pub(crate) shell: &'static str,
}

/// The broker as a process.
pub(crate) struct Process {
    folder: tempfile::TempDir,
    pub(crate) setup: Setup,
    pub(crate) port: u16,
    private: String,
    child: Option<Child>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Process {
    pub(crate) fn new() -> Self {
        Self::with(Setup::default())
    }

    pub(crate) fn with(setup: Setup) -> Self {
        let mut process = Self::prepared(setup);
        process.start();
        process
    }

    /// Not started.
    pub(crate) fn prepared(setup: Setup) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|s| s.local_addr()).expect("a port").port();
        let (private, public) = auth::generate_key().expect("a key");
        std::fs::write(folder.path().join("issuer.pub"), public).expect("written");
        Self { folder, setup, port, private, child: None, log: Arc::default() }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.setup.store.clone().unwrap_or_else(|| self.folder.path().join("store"))
    }

    pub(crate) fn start(&mut self) {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let (listen, tls) = match self.setup.tls {
            true => (
                format!("tls = '127.0.0.1:{}'", self.port),
                format!("tls = {{ certificate = '{}', key = '{}' }}\n", path("cert.pem"), path("key.pem")),
            ),
            false => (format!("plain = '127.0.0.1:{}'", self.port), String::new()),
        };
        let config = format!(
            "listen = {{ {listen} }}\n{tls}store.path = '{}'\nauth.issuers.test = '{}'\n{}\n",
            self.store().display(),
            path("issuer.pub"),
            self.setup.config,
        );
        std::fs::write(self.folder.path().join("longwire.toml"), config).expect("written");
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{}\nexec \"$0\" \"$@\"", self.setup.shell));
        let program = self.setup.program.clone().unwrap_or_else(|| env!("CARGO_BIN_EXE_longwire").into());
        command.arg(program).args(["serve", "--config", &path("longwire.toml")]);
        if self.setup.program.is_none() {
            // Tests look at what it has open and, in `remains.rs`, in mind.
            command.arg("--dumpable");
        }
        command.args(["--log", "info", "--log-format", "json"]);
        if !self.setup.tls {
            command.arg("--no-tls");
        }
        if !self.setup.faults.is_empty() {
            command.env("LONGWIRE_FAULTS", &self.setup.faults);
        }
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the broker starts");
        let stderr = BufReader::new(child.stderr.take().expect("its log"));
        let log = Arc::clone(&self.log);
        // Ends with the broker.
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                log.lock().expect("unpoisoned").push(line);
            }
        });
        self.child = Some(child);
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("killed");
            child.wait().expect("gone");
        }
    }

    /// Has it drain; returns how it ended.
    pub(crate) fn drain(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let mut child = self.child.take().expect("the broker runs");
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("a child") {
                return status;
            }
            if begun.elapsed() > 2 * PATIENCE {
                child.kill().expect("killed");
                panic!("it does not end: {:?}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("signalled");
    }

    /// Waits until it has ended by itself; returns how.
    pub(crate) async fn ends(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.as_mut().expect("it was started").try_wait().expect("a child") {
                self.child = None;
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "it ends: {:#?}", self.log());
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().expect("a child").is_some())
    }

    /// What was logged last, for people.
    pub(crate) fn log(&self) -> Vec<String> {
        let log = self.log.lock().expect("unpoisoned");
        log[log.len().saturating_sub(30)..].to_vec()
    }

    /// How many lines say this.
    pub(crate) fn logged(&self, what: &str) -> usize {
        self.log.lock().expect("unpoisoned").iter().filter(|line| line.contains(what)).count()
    }

    /// Waits until so many lines say this.
    pub(crate) async fn logs(&self, what: &str, times: usize) {
        let begun = Instant::now();
        while self.logged(what) < times {
            assert!(begun.elapsed() < PATIENCE, "{what:?} is logged: {:#?}", self.log());
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Nothing of it ever panicked.
    pub(crate) fn assert_no_panic(&self, context: &str) {
        let log = self.log.lock().expect("unpoisoned");
        let panicked = log.iter().position(|line| line.contains("panicked"));
        assert_eq!(panicked.map(|at| &log[at..]), None, "{context}");
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("the broker runs"))
    }

    /// Resident memory, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid().as_raw_nonzero())).expect("figures");
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        kib.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }

    /// The time that it has computed, in ticks of 10 ms.
    pub(crate) fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid().as_raw_nonzero())).expect("its figures");
        let (_, behind_name) = stat.rsplit_once(')').expect("its name");
        let fields: Vec<&str> = behind_name.split_ascii_whitespace().collect();
        fields[11..=12].iter().map(|field| field.parse::<u64>().expect("a number")).sum()
    }

    /// How many files it has open.
    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid().as_raw_nonzero())).expect("its files").count()
    }

    /// Lets it have so many files.
    pub(crate) fn limit_files(&self, files: u64) {
        let maximum = Some(4_096);
        prlimit(Some(self.pid()), Resource::Nofile, Rlimit { current: Some(files), maximum }).expect("limited");
    }

    /// Lets it write files as large as anyone may.
    pub(crate) fn lift_file_size(&self) {
        let maximum = getrlimit(Resource::Fsize).maximum;
        prlimit(Some(self.pid()), Resource::Fsize, Rlimit { current: maximum, maximum }).expect("lifted");
    }

    pub(crate) fn token(&self, user: &str, expires: u64) -> String {
        self.sign(&self.claims(user, expires))
    }

    /// The same, another one for each id.
    pub(crate) fn token_with_id(&self, user: &str, id: &str) -> String {
        self.sign(&Claims { jti: id.into(), ..self.claims(user, u64::MAX / 2_000) })
    }

    fn claims(&self, user: &str, expires: u64) -> Claims {
        Claims { iss: "test".into(), sub: user.into(), aud: auth::AUDIENCE.into(), exp: expires, ..Claims::default() }
    }

    fn sign(&self, claims: &Claims) -> String {
        auth::issue(claims, self.private.as_bytes()).expect("a token")
    }

    /// The key of the issuer that the broker believes, which it does not have.
    pub(crate) fn private_key(&self) -> &str {
        &self.private
    }

    /// What a device of a user says first who administers.
    pub(crate) fn administrator(&self, user: &str) -> packet::Connect {
        let claims = Claims { admin: true, ..self.claims(user, u64::MAX / 2_000) };
        packet::Connect { token: self.sign(&claims), ..self.connect(user, "admin") }
    }

    pub(crate) fn connect(&self, user: &str, device: &str) -> packet::Connect {
        packet::Connect {
            version: 1,
            token: self.token(user, u64::MAX / 2_000),
            device: device.into(),
            first_unanswered: 1,
            start: StartKind::Fresh.into(),
            catch_up: CatchUpMode::All.into(),
            ..packet::Connect::default()
        }
    }

    /// What a client of the SDK starts with, on another port if there is something in between.
    pub(crate) fn config(&self, user: &str, device: &str, port: u16) -> Config {
        let scheme = if self.setup.tls { "longwires" } else { "longwire" };
        let address: Address = format!("{scheme}://127.0.0.1:{port}").parse().expect("an address");
        let trust = match self.setup.tls {
            true => Trust::from_file(&self.folder.path().join("ca.pem")).expect("an authority"),
            false => Trust::Nobody,
        };
        let dialer = Dialer::new(&address, &trust).expect("a dialer");
        let mut config = Config::new(dialer, self.token(user, u64::MAX / 2_000), device);
        config.catch_up = CatchUpMode::All;
        // The most often that the broker allows.
        config.heartbeat = Duration::from_secs(15);
        config
    }

    /// Holds its files against each other; it does not run.
    pub(crate) fn assert_sound(&self, context: &str) {
        let store = self.store();
        let output = Command::new(env!("CARGO_BIN_EXE_longwire")).args(["store", "check"]).arg(store).output();
        let output = output.expect("it runs");
        let said = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{context}: {} {}", said.0, said.1);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Connects until it is let in.
pub(crate) async fn let_in(port: u16, connect: &packet::Connect) -> Wire {
    loop {
        if let Ok(mut wire) = Wire::open(port, connect.clone()).await
            && wire.connected().await.is_ok()
        {
            return wire;
        }
        sleep(Duration::from_millis(20)).await;
    }
}
