//! `longwire serve`: runs the broker until it is told to drain.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args as ClapArgs;
use longwire_protocol::BrokerLimits;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Fail;
use crate::admin::Admin;
use crate::auth::password::Cost;
use crate::auth::{self, Accounts, AccountsSettings, Authority, Claims, Registration, Revocations};
use crate::broker::commit::Retention;
use crate::broker::{Broker, BrokerParts, Certificate};
use crate::clock::unix_ms;
use crate::config::{self, Settings};
use crate::net::listener::{self, AcceptLimits, Security};
use crate::routing::allowance::{Rate, Rates};
use crate::routing::limits::Quotas;
use crate::store::{RedbLog, StoreOptions};
use crate::telemetry;
use crate::vital;

const EXAMPLES: &str = "\
Examples:
  longwire serve --dev                        try it: everything throw-away, on this machine alone
  longwire serve --config /etc/longwire.toml  run it
  longwire serve --config FILE --check        say whether a configuration is good
  longwire serve --dev --admin 127.0.0.1:14002
                                              the same to try, with what it counts: curl 127.0.0.1:14002/metrics

Signals: TERM or INT drain and stop (a second one stops at once), HUP reads certificate and revocations anew.";

/// How to run the broker.
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The configuration, in TOML; LONGWIRE__SECTION__KEY in the environment goes before it
    #[arg(long, short, env = "LONGWIRE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Try it out: a self-signed certificate, keys and tokens made on the spot, this machine alone
    #[arg(long, conflicts_with = "config")]
    dev: bool,

    /// Where --dev keeps what it makes, the store included
    #[arg(long, value_name = "DIR", default_value = "longwire-dev", requires = "dev")]
    dev_dir: PathBuf,

    /// Where to listen with TLS [default: 127.0.0.1:14000]
    #[arg(long, env = "LONGWIRE_LISTEN", value_name = "ADDRESS")]
    listen: Option<SocketAddr>,

    /// Where to listen without TLS; nowhere unless this is given
    #[arg(long, env = "LONGWIRE_LISTEN_PLAIN", value_name = "ADDRESS")]
    listen_plain: Option<SocketAddr>,

    /// Let --listen-plain be an address that other machines reach: anyone on the way reads tokens and messages
    #[arg(long)]
    plain_beyond_loopback: bool,

    /// No TLS listener: for tests, and behind something that speaks TLS itself
    #[arg(long, conflicts_with = "listen")]
    no_tls: bool,

    /// Where to answer /livez, /readyz and /metrics over HTTP; nowhere unless this is given
    #[arg(long, env = "LONGWIRE_ADMIN", value_name = "ADDRESS")]
    admin: Option<SocketAddr>,

    /// Let --admin be an address that other machines reach: whoever does reads how much the broker does
    #[arg(long)]
    admin_beyond_loopback: bool,

    /// The folder of the store
    #[arg(long, env = "LONGWIRE_STORE", value_name = "DIR")]
    store: Option<PathBuf>,

    /// Let debuggers, profilers and core dumps see the broker's memory, with the keys in it; --dev does
    #[arg(long)]
    dumpable: bool,

    /// Only check the configuration
    #[arg(long)]
    check: bool,

    /// Log lines for people or for programs [default: text on a terminal, json otherwise]
    #[arg(long, env = "LONGWIRE_LOG_FORMAT")]
    log_format: Option<telemetry::Format>,

    /// What to log, such as info or longwire=debug
    #[arg(long, env = "LONGWIRE_LOG", default_value = "info")]
    log: String,
}

/// Runs the broker.
pub(super) fn run(args: Args) -> Result<(), Fail> {
    telemetry::start(args.log_format, &args.log).map_err(Fail::usage)?;
    if !args.dev && !args.dumpable {
        hide_memory();
    }
    let dev = args.dev.then(|| Dev::prepare(&args.dev_dir)).transpose()?;
    let mut written = match &dev {
        Some(dev) => config::limits_of_the_environment().map(|limits| dev.written(limits)),
        None => config::read(args.config.as_deref()),
    }
    .map_err(|e| Fail::usage(e.to_string()))?;
    if args.no_tls {
        written.listen.tls = None;
    }
    if args.listen.is_some() {
        written.listen.tls = args.listen;
    }
    if args.listen_plain.is_some() {
        written.listen.plain = args.listen_plain;
    }
    written.listen.plain_beyond_loopback |= args.plain_beyond_loopback;
    if args.admin.is_some() {
        written.admin.listen = args.admin;
    }
    written.admin.beyond_loopback |= args.admin_beyond_loopback;
    if let Some(store) = args.store {
        written.store.path = store;
    }
    let settings = written.resolve().map_err(|e| Fail::usage(e.to_string()))?;
    let prepared = Prepared::new(settings)?;
    if args.check {
        println!("the configuration is good");
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("longwire-net")
        .max_blocking_threads(16)
        .build()
        .map_err(|e| Fail::failed(format!("cannot start: {e}")))?;
    let outcome = runtime.block_on(serve(prepared, dev));
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// What is read from files before anything is opened.
struct Prepared {
    settings: Settings,
    certificate: Option<Certificate>,
    authority: Authority,
    #[cfg(feature = "push")]
    providers: crate::push::providers::Providers,
}

impl Prepared {
    fn new(settings: Settings) -> Result<Self, Fail> {
        let certificate = settings
            .tls
            .as_ref()
            .map(|(_, certificate, key)| Certificate::read(certificate.clone(), key.clone()))
            .transpose()
            .map_err(|e| Fail::failed(e.to_string()))?;
        let authority = Authority::default();
        let mut keys = Vec::new();
        for (name, path) in &settings.issuers {
            keys.push((name.clone(), read(path)?.into_bytes()));
        }
        authority
            .set_issuers(&keys)
            .map_err(|(name, e)| Fail::failed(format!("auth.issuers.{name}: not an Ed25519 public key in PEM: {e}")))?;
        #[cfg(feature = "push")]
        let providers = match &settings.push {
            Some(told) => {
                crate::push::providers::Providers::of(&told.by).map_err(|e| Fail::failed(format!("push: {e}")))?
            }
            None => Default::default(),
        };
        let prepared = Self {
            settings,
            certificate,
            authority,
            #[cfg(feature = "push")]
            providers,
        };
        if let Some(revocations) = read_revocations(&prepared.settings)? {
            prepared.authority.set_revocations(revocations);
        }
        Ok(prepared)
    }
}

fn read(path: &Path) -> Result<String, Fail> {
    fs::read_to_string(path).map_err(|e| Fail::failed(format!("{}: {e}", path.display())))
}

fn read_revocations(settings: &Settings) -> Result<Option<Revocations>, Fail> {
    let Some(path) = &settings.revocations else { return Ok(None) };
    Revocations::parse(&read(path)?).map(Some).map_err(|e| Fail::failed(format!("{}: {e}", path.display())))
}

/// Nobody but root reads the memory of this process from here on, and it leaves no core dump.
fn hide_memory() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "other processes of this user can read this one's memory");
    }
}

async fn serve(prepared: Prepared, dev: Option<Dev>) -> Result<(), Fail> {
    let Prepared {
        settings,
        certificate,
        authority,
        #[cfg(feature = "push")]
        providers,
    } = prepared;
    // Sockets first: a port in use is found before the store is touched.
    let bind = |address| listener::bind(address).map_err(|e| Fail::failed(format!("cannot listen on {address}: {e}")));
    let tls_socket = match &settings.tls {
        Some((address, _, _)) => Some(bind(*address)?),
        None => None,
    };
    let plain_socket = match settings.plain {
        Some(address) => Some(bind(address)?),
        None => None,
    };
    let admin = Admin::default();
    if let Some(address) = settings.admin {
        let socket = bind(address)?;
        let told = socket.local_addr().map_or_else(|_| String::new(), |a| a.to_string());
        tracing::info!(address = told, "answering /livez, /readyz and /metrics");
        // Until the end: a broker that drains says so. It ends with the runtime.
        tokio::spawn(vital::task(admin.clone().run(socket, CancellationToken::new())));
    }
    let options = StoreOptions { birth_unix_ms: unix_ms(), ..StoreOptions::default() };
    let begun = std::time::Instant::now();
    let log = open_log(&settings.store, options)?;
    if let Some(accounts) = accounts(&settings)? {
        authority.set_accounts(accounts);
    }
    let millis = |duration: Duration| duration.as_millis() as u32;
    let rates = Rates {
        connection: settings.connection_publishes.map(Rate::of_publishes),
        user: settings.user_publishes.map(Rate::of_publishes),
        conversation: settings.conversation_publishes.map(Rate::of_publishes),
        reads: settings.user_reads.map(Rate::of_reads),
    };
    #[cfg_attr(not(feature = "push"), expect(unused_mut, reason = "only push is told to it later"))]
    let mut broker = Broker::start(BrokerParts {
        log: Box::new(log),
        authority,
        limits: BrokerLimits {
            heartbeat_ms_min: millis(settings.heartbeat.0),
            heartbeat_ms_max: millis(settings.heartbeat.1),
            payload_bytes_max: settings.content,
            ..BrokerLimits::default()
        },
        accept: AcceptLimits {
            connections: settings.connections.min(connections_by_files()),
            connections_per_address: settings.connections_per_address,
            handshakes: settings.handshakes,
            memory_bytes: settings.memory.or_else(three_quarters_of_the_machine),
        },
        rates,
        quotas: Quotas {
            conversations: settings.quotas.user_conversations,
            devices: settings.quotas.user_devices as usize,
            contacts: settings.quotas.user_contacts,
            members: settings.quotas.group_members,
            bans: settings.quotas.group_bans,
            watches: settings.quotas.session_channels as usize,
            presences: settings.quotas.session_presences as usize,
        },
        retention: Retention {
            age_ms: settings.retention_age.map(|age| age.as_millis() as u64),
            bytes: settings.retention_bytes,
            files_ms: None,
        },
        state_bytes_max: settings.state_memory,
    })
    .map_err(|e| Fail::failed(format!("{}: {e}", settings.store.display())))?;
    tracing::info!(store = %settings.store.display(), ms = begun.elapsed().as_millis() as u64, "the store is open");

    #[cfg(feature = "push")]
    if let Some(told) = &settings.push {
        let rules = crate::routing::push::look::Rules {
            after_ms: told.after_ms,
            collapse_ms: told.collapse_ms,
            expire_ms: told.expire_ms,
        };
        broker.tell(providers, rules).map_err(no_door)?;
    }

    let mut stop = signals(&[SignalKind::terminate(), SignalKind::interrupt()])?;
    let mut reload = signals(&[SignalKind::hangup()])?;
    let mut address = None;
    if let (Some(socket), Some(certificate)) = (tls_socket, &certificate) {
        address = socket.local_addr().ok();
        tracing::info!(address = %address.map_or_else(String::new, |a| a.to_string()), "listening with TLS");
        broker.listen(socket, certificate.security()).map_err(no_door)?;
    }
    if let Some(socket) = plain_socket {
        let plain = socket.local_addr().map_or_else(|_| String::new(), |a| a.to_string());
        tracing::warn!(address = plain, "listening without TLS: anyone on the way can read and change everything");
        broker.listen(socket, Security::Plain).map_err(no_door)?;
    }
    let watched = broker.watched();
    admin.set(Arc::new(match &certificate {
        Some(certificate) => watched.with_certificate("tls", certificate.expires()),
        None => watched,
    }));
    if let (Some(dev), Some(address)) = (&dev, address) {
        dev.greet(address);
    }
    loop {
        tokio::select! {
            Some(()) = stop.recv() => break,
            Some(()) = reload.recv() => reload_all(&settings, certificate.as_ref(), &broker),
        }
    }
    tokio::select! {
        () = broker.drain(settings.drain_timeout) => Ok(()),
        Some(()) = stop.recv() => Err(Fail::failed("stopped at once; nothing acked is lost")),
    }
}

fn no_door(error: std::io::Error) -> Fail {
    Fail::failed(format!("nobody could be let in: {error}"))
}

/// What people are let in by password with. The key is made at the first start, in the folder of the store: who restores
/// that has the key again.
fn accounts(settings: &Settings) -> Result<Option<Accounts>, Fail> {
    let accounts = &settings.accounts;
    let path = accounts.key.clone().unwrap_or_else(|| settings.store.join("accounts.key"));
    if accounts.key.is_none() && !path.exists() {
        let (private, _) = auth::generate_key().map_err(Fail::failed)?;
        if let Err(fail) = super::token::write_secret(&path, &private) {
            // A start that cannot write serves those that have tokens.
            tracing::warn!(error = %fail, "nobody is let in by password");
            return Ok(None);
        }
    }
    let made = Accounts::new(
        AccountsSettings {
            issuer: accounts.issuer.clone(),
            token_life_s: settings.token_life.as_secs(),
            registration: match accounts.registration {
                config::Registration::Closed => Registration::Closed,
                config::Registration::Invitation => Registration::Invitation,
                config::Registration::Open => Registration::Open,
            },
            publish: accounts.publish.clone(),
            read: accounts.read.clone(),
            cost: Cost {
                memory_kib: settings.password_memory_kib,
                passes: accounts.password_passes,
                lanes: accounts.password_lanes,
            },
        },
        read(&path)?,
    );
    made.map(Some).map_err(|e| Fail::failed(format!("{}: {e}", path.display())))
}

#[cfg(not(feature = "faults"))]
fn open_log(folder: &Path, options: StoreOptions) -> Result<RedbLog, Fail> {
    RedbLog::open(folder, options).map_err(|e| Fail::failed(e.to_string()))
}

/// In builds for tests: the store, behind the faults that the environment asks for.
#[cfg(feature = "faults")]
fn open_log(folder: &Path, options: StoreOptions) -> Result<RedbLog, Fail> {
    let log = match std::env::var(crate::clock::FAULTS) {
        Ok(list) => crate::store::Faults::parse(&list).map_err(Fail::usage)?.open(folder, options),
        Err(_) => RedbLog::open(folder, options),
    };
    log.map_err(|e| Fail::failed(e.to_string()))
}

fn reload_all(settings: &Settings, certificate: Option<&Certificate>, broker: &Broker) {
    if let Some(certificate) = certificate {
        match certificate.reload() {
            Ok(()) => tracing::info!("the certificate was read anew"),
            Err(error) => tracing::error!(%error, "the new certificate is not usable: the old one stays"),
        }
    }
    match read_revocations(settings) {
        Ok(Some(revocations)) => {
            broker.authority().set_revocations(revocations);
            broker.recheck();
            tracing::info!("the revocations were read anew");
        }
        Ok(None) => {}
        Err(error) => tracing::error!(%error, "the new revocations are not usable: the old ones stay"),
    }
}

/// One stream of several signals.
fn signals(kinds: &[SignalKind]) -> Result<tokio::sync::mpsc::Receiver<()>, Fail> {
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    for kind in kinds {
        let mut signal = signal(*kind).map_err(|e| Fail::failed(format!("cannot wait for signals: {e}")))?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while signal.recv().await.is_some() {
                if sender.send(()).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(receiver)
}

/// What `--dev` makes: a certificate authority, a certificate, an issuer, and two people.
struct Dev {
    folder: PathBuf,
}

const DEV_ISSUER: &str = "longwire-dev";
const DEV_PEOPLE: [&str; 2] = ["alice", "bob"];

impl Dev {
    fn prepare(folder: &Path) -> Result<Self, Fail> {
        let dev = Self { folder: folder.to_path_buf() };
        let failed = |e: std::io::Error| Fail::failed(format!("{}: {e}", folder.display()));
        fs::create_dir_all(folder).map_err(failed)?;
        if !dev.path("key.pem").exists() {
            let made = dev.make_certificate().map_err(|e| Fail::failed(format!("no certificate can be made: {e}")))?;
            for (name, text) in made {
                super::token::write_secret(&dev.path(name), &text)?;
            }
        }
        if !dev.path("issuer.key").exists() {
            let (private, public) = auth::generate_key().map_err(Fail::failed)?;
            super::token::write_secret(&dev.path("issuer.pub"), &public)?;
            super::token::write_secret(&dev.path("issuer.key"), &private)?;
        }
        let key = read(&dev.path("issuer.key"))?;
        for name in DEV_PEOPLE {
            let now = unix_ms() / 1_000;
            let claims = Claims {
                iss: DEV_ISSUER.into(),
                sub: name.into(),
                aud: auth::AUDIENCE.into(),
                exp: now + 30 * 86_400,
                iat: now,
                publish: vec!["**".into()],
                read: vec!["**".into()],
                ..Claims::default()
            };
            let token = auth::issue(&claims, key.as_bytes()).map_err(Fail::failed)?;
            super::token::write_secret(&dev.path(&format!("{name}.token")), &token)?;
        }
        Ok(dev)
    }

    fn make_certificate(&self) -> Result<Vec<(&'static str, String)>, rcgen::Error> {
        let ca_key = rcgen::KeyPair::generate()?;
        let mut ca = rcgen::CertificateParams::new(Vec::new())?;
        ca.distinguished_name.push(rcgen::DnType::CommonName, "Longwire development");
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key)?;
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let key = rcgen::KeyPair::generate()?;
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let certificate = rcgen::CertificateParams::new(names)?.signed_by(&key, &issuer)?;
        Ok(vec![("ca.pem", ca_certificate.pem()), ("cert.pem", certificate.pem()), ("key.pem", key.serialize_pem())])
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Limits are as the environment says, all the rest is as it is made here.
    fn written(&self, limits: config::Limits) -> config::Written {
        let mut written = config::Written { limits, ..config::Written::default() };
        written.tls.certificate = Some(self.path("cert.pem"));
        written.tls.key = Some(self.path("key.pem"));
        written.store.path = self.path("store");
        written.auth.issuers.insert(DEV_ISSUER.into(), self.path("issuer.pub"));
        written.accounts.registration = config::Registration::Open;
        (written.accounts.publish, written.accounts.read) = (vec!["**".into()], vec!["**".into()]);
        written
    }

    /// Says how to connect.
    fn greet(&self, address: SocketAddr) {
        let program = std::env::args().next().unwrap_or_else(|| "longwire".into());
        let folder = self.folder.display();
        let url = if address.port() == longwire_protocol::limits::PORT {
            String::new()
        } else {
            format!(" --url longwires://127.0.0.1:{}", address.port())
        };
        println!("\nTwo people can talk now, each in a terminal of their own:\n");
        for (name, other) in [("alice", "bob"), ("bob", "alice")] {
            println!("  {program} chat @{other} --ca {folder}/ca.pem --token-file {folder}/{name}.token{url}");
        }
        println!("\nEverything of this broker is in {folder}/, and on this machine alone. Ctrl-C ends it.\n");
    }
}

/// How many connections the limit on open files leaves room for: the rest is for the store, which has a file for each
/// run and needs new ones to go on taking what is published.
fn connections_by_files() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let connections = usize::try_from(limit - (limit / 2).min(64 + limit / 16)).unwrap_or(usize::MAX);
    tracing::info!(files = limit, connections, "open files leave room for so many connections");
    connections
}

/// Three quarters of the memory that this process can have, by the machine and by its control group.
fn three_quarters_of_the_machine() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 =
        meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix(" kB")?.parse().ok()?;
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|most| most.trim().parse().ok());
    Some((kib << 10).min(group.unwrap_or(u64::MAX)) / 4 * 3)
}
