//! The configuration: what the operator wrote, in a file, the environment and flags, and what the broker needs, checked
//! once and never half-valid.

pub mod push;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use longwire_protocol::limits as most;
use serde::Deserialize;

/// What can be written, each value where it is absent standing at its default. Unknown keys are refused.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Written {
    /// Where to listen.
    pub listen: Listen,
    /// Certificate and key.
    pub tls: Tls,
    /// Where and how long to keep what is said.
    pub store: Store,
    /// Whose tokens are believed.
    pub auth: Auth,
    /// Who is let in by password.
    pub accounts: Accounts,
    /// The bounds of what is let in.
    pub limits: Limits,
    /// By whom devices that are away are told.
    pub push: push::Push,
    /// Who watches the broker.
    pub admin: Admin,
}

/// Section `listen`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// Address of the TLS listener.
    pub tls: Option<SocketAddr>,
    /// Address of a listener without TLS; none unless it is named.
    pub plain: Option<SocketAddr>,
    /// Whether that address may be one that other machines reach.
    pub plain_beyond_loopback: bool,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            tls: Some(([127, 0, 0, 1], longwire_protocol::limits::PORT).into()),
            plain: None,
            plain_beyond_loopback: false,
        }
    }
}

/// Section `admin`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Address of the listener for `/livez`, `/readyz` and `/metrics`; none unless it is named.
    pub listen: Option<SocketAddr>,
    /// Whether that address may be one that other machines reach.
    pub beyond_loopback: bool,
}

/// Section `tls`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// The chain, in PEM.
    pub certificate: Option<PathBuf>,
    /// Its key, in PEM.
    pub key: Option<PathBuf>,
}

/// Section `store`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// The folder of the store; made if it is not there.
    pub path: PathBuf,
    /// Entries older than this may be deleted, such as `30d`; kept for ever unless set.
    pub retention_age: Option<String>,
    /// Beyond so many bytes, the oldest entries may be deleted, such as `50GiB`; unbounded unless set.
    pub retention_bytes: Option<String>,
    /// What rows of state may take in memory, those aside that are not saved yet, such as `256MiB`; at least 1MiB. More
    /// of them are read from the disk when they are needed.
    pub state_memory: String,
}

impl Default for Store {
    fn default() -> Self {
        Self { path: "longwire-data".into(), retention_age: None, retention_bytes: None, state_memory: "256MiB".into() }
    }
}

/// Section `auth`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// Each issuer's name (`iss`) with the file of its Ed25519 public key in PEM.
    pub issuers: BTreeMap<String, PathBuf>,
    /// A file of revocations, read at start and on SIGHUP.
    pub revocations: Option<PathBuf>,
}

/// Section `accounts`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Accounts {
    /// Who makes accounts: `closed` (administrators alone), `invitation` (whoever has one), `open` (anyone).
    pub registration: Registration,
    /// The name of the issuer (`iss`) of the broker's own tokens; none of `auth.issuers` may have it.
    pub issuer: String,
    /// The file of the private key that those are signed with; in the folder of the store, and made, unless set.
    pub key: Option<PathBuf>,
    /// How long they are good.
    pub token_life: String,
    /// Patterns of channels that whoever has a password may publish to.
    pub publish: Vec<String>,
    /// Patterns of channels that it may read.
    pub read: Vec<String>,
    /// Memory that checking one password takes, such as `19MiB`.
    pub password_memory: String,
    /// Passes over that memory.
    pub password_passes: u32,
    /// Lanes in it.
    pub password_lanes: u32,
}

impl Default for Accounts {
    fn default() -> Self {
        Self {
            registration: Registration::Closed,
            issuer: "longwire-accounts".into(),
            key: None,
            token_life: "30d".into(),
            publish: Vec::new(),
            read: Vec::new(),
            password_memory: "19MiB".into(),
            password_passes: 2,
            password_lanes: 1,
        }
    }
}

/// Who makes accounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Registration {
    /// Administrators alone.
    #[default]
    Closed,
    /// Whoever has an invitation, once.
    Invitation,
    /// Anyone.
    Open,
}

/// Section `limits`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one address: many people may stand behind one.
    pub connections_per_address: usize,
    /// Handshakes under way: each takes some 30 KB and half a millisecond of CPU. One address has a quarter at most.
    pub handshakes: usize,
    /// Memory of the process, such as `6GiB`, beyond which nobody new is let in; three quarters of the machine's unless set.
    pub memory: Option<String>,
    /// The shortest time between heartbeats that a client may pick.
    pub heartbeat_min: String,
    /// The longest.
    pub heartbeat_max: String,
    /// How long a drain may take.
    pub drain_timeout: String,
    /// Publishes a second of one connection, ten seconds' worth of them at once; no bound unless set.
    pub connection_publishes: Option<u32>,
    /// The same of all devices of a user.
    pub user_publishes: Option<u32>,
    /// The same into one conversation.
    pub conversation_publishes: Option<u32>,
    /// Rows a second, and what counts as such (SPEC R8-15), that are looked at for the requests of all devices of a user, two seconds' worth at once; what
    /// is asked for beyond is answered later. 0: no bound.
    pub user_reads: u32,
    /// The largest content of a message, such as `64KiB`: 1KiB to 192KiB.
    pub content: String,
    /// Conversations of one user, its inbox not counted; others bring it into four fifths of them. This and what follows: one
    /// at least, and at most what SPEC chapter 11 says, which is the default.
    pub user_conversations: u32,
    /// Devices of one user.
    pub user_devices: u32,
    /// Contacts of one user.
    pub user_contacts: u32,
    /// Members of one group.
    pub group_members: u32,
    /// Users who are banned from one group.
    pub group_bans: u32,
    /// Channels that one session watches.
    pub session_channels: u32,
    /// Users whose presence one session is told.
    pub session_presences: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1_000_000,
            connections_per_address: 100_000,
            handshakes: 1_024,
            memory: None,
            heartbeat_min: "15s".into(),
            heartbeat_max: "10m".into(),
            drain_timeout: "10s".into(),
            connection_publishes: None,
            user_publishes: None,
            conversation_publishes: None,
            user_reads: 80_000,
            content: "192KiB".into(),
            user_conversations: most::CONVERSATIONS_MAX,
            user_devices: most::DEVICES_MAX as u32,
            user_contacts: most::CONTACTS_MAX,
            group_members: most::MEMBERS_MAX,
            group_bans: most::BANNED_MAX,
            session_channels: most::WATCHES_MAX as u32,
            session_presences: most::PRESENCES_MAX as u32,
        }
    }
}

/// What users may have; see [`Limits`].
#[derive(Clone, Copy, Debug)]
pub struct Quotas {
    /// See [`Limits::user_conversations`].
    pub user_conversations: u32,
    /// See [`Limits::user_devices`].
    pub user_devices: u32,
    /// See [`Limits::user_contacts`].
    pub user_contacts: u32,
    /// See [`Limits::group_members`].
    pub group_members: u32,
    /// See [`Limits::group_bans`].
    pub group_bans: u32,
    /// See [`Limits::session_channels`].
    pub session_channels: u32,
    /// See [`Limits::session_presences`].
    pub session_presences: u32,
}

/// What the broker needs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Address of the TLS listener, with its certificate and key.
    pub tls: Option<(SocketAddr, PathBuf, PathBuf)>,
    /// Address of the plain listener.
    pub plain: Option<SocketAddr>,
    /// The folder of the store.
    pub store: PathBuf,
    /// See [`Store::retention_age`].
    pub retention_age: Option<Duration>,
    /// See [`Store::retention_bytes`].
    pub retention_bytes: Option<u64>,
    /// See [`Store::state_memory`], in bytes.
    pub state_memory: usize,
    /// See [`Auth::issuers`].
    pub issuers: Vec<(String, PathBuf)>,
    /// See [`Auth::revocations`].
    pub revocations: Option<PathBuf>,
    /// See [`Accounts`].
    pub accounts: Accounts,
    /// See [`Accounts::token_life`].
    pub token_life: Duration,
    /// See [`Accounts::password_memory`], in KiB.
    pub password_memory_kib: u32,
    /// See [`Limits`].
    pub connections: usize,
    /// See [`Limits`].
    pub connections_per_address: usize,
    /// See [`Limits`].
    pub handshakes: usize,
    /// See [`Limits::memory`], in bytes.
    pub memory: Option<u64>,
    /// See [`Limits`].
    pub heartbeat: (Duration, Duration),
    /// See [`Limits`].
    pub drain_timeout: Duration,
    /// See [`Limits::connection_publishes`].
    pub connection_publishes: Option<u32>,
    /// See [`Limits::user_publishes`].
    pub user_publishes: Option<u32>,
    /// See [`Limits::conversation_publishes`].
    pub conversation_publishes: Option<u32>,
    /// See [`Limits::user_reads`].
    pub user_reads: Option<u32>,
    /// See [`Limits::content`], in bytes.
    pub content: u32,
    /// See [`Quotas`].
    pub quotas: Quotas,
    /// See [`push`].
    pub push: Option<push::Told>,
    /// See [`Admin::listen`].
    pub admin: Option<SocketAddr>,
}

/// Why there is no configuration: names the key and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file or the environment cannot be read as configuration.
    #[error("{0}")]
    Unreadable(String),
    /// A value is not what it should be.
    #[error("{key}: {value:?} is not {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// What stands there.
        value: String,
        /// What should.
        expected: &'static str,
    },
    /// Something has to be said that is not.
    #[error("{key} is missing: {why}")]
    Missing {
        /// The key.
        key: &'static str,
        /// Why it is needed.
        why: &'static str,
    },
}

/// Reads the file, if one is named, and the environment over it (`LONGWIRE__SECTION__KEY`).
///
/// # Errors
/// Where they cannot be understood: file, line and key.
pub fn read(file: Option<&Path>) -> Result<Written, ConfigError> {
    let mut builder = config::Config::builder();
    if let Some(path) = file {
        builder = builder.add_source(config::File::from(path).format(config::FileFormat::Toml));
    }
    let environment =
        config::Environment::with_prefix("LONGWIRE").prefix_separator("__").separator("__").try_parsing(true);
    builder
        .add_source(environment)
        .build()
        .and_then(config::Config::try_deserialize)
        .map_err(|error| ConfigError::Unreadable(error.to_string()))
}

/// Reads the section `limits` of the environment alone.
///
/// # Errors
/// Where that cannot be understood: the key.
pub fn limits_of_the_environment() -> Result<Limits, ConfigError> {
    let environment = config::Environment::with_prefix("LONGWIRE__LIMITS").prefix_separator("__").try_parsing(true);
    config::Config::builder()
        .add_source(environment)
        .build()
        .and_then(config::Config::try_deserialize)
        .map_err(|error| ConfigError::Unreadable(format!("LONGWIRE__LIMITS__…: {error}")))
}

/// Reads a text as the file that it would be; no environment.
///
/// # Errors
/// Where it cannot be understood: line and key.
#[cfg(any(test, feature = "fuzz"))]
pub fn parse(text: &str) -> Result<Written, ConfigError> {
    config::Config::builder()
        .add_source(config::File::from_str(text, config::FileFormat::Toml))
        .build()
        .and_then(config::Config::try_deserialize)
        .map_err(|error| ConfigError::Unreadable(error.to_string()))
}

impl Written {
    /// Checks every value and each against the others.
    ///
    /// # Errors
    /// The first that is wrong.
    pub fn resolve(self) -> Result<Settings, ConfigError> {
        let duration = |key, value: &str| {
            humantime::parse_duration(value).map_err(|_| ConfigError::Value {
                key,
                value: value.into(),
                expected: "a time such as 30s, 10m or 7d",
            })
        };
        let tls = match (self.listen.tls, self.tls.certificate, self.tls.key) {
            (None, _, _) => None,
            (Some(address), Some(certificate), Some(key)) => Some((address, certificate, key)),
            (Some(_), None, _) => {
                return Err(ConfigError::Missing { key: "tls.certificate", why: "the TLS listener presents it" });
            }
            (Some(_), _, None) => {
                return Err(ConfigError::Missing {
                    key: "tls.key",
                    why: "the TLS listener needs the certificate's key",
                });
            }
        };
        local(
            "listen.plain",
            self.listen.plain.filter(|_| !self.listen.plain_beyond_loopback),
            "an address of this machine alone, such as 127.0.0.1:14001: without TLS anyone on the way reads tokens and \
             messages (listen.plain_beyond_loopback = true allows it)",
        )?;
        local(
            "admin.listen",
            self.admin.listen.filter(|_| !self.admin.beyond_loopback),
            "an address of this machine alone, such as 127.0.0.1:14002: whoever reaches it reads how much the broker does, \
             without a word (admin.beyond_loopback = true allows it)",
        )?;
        if self.auth.issuers.is_empty() {
            return Err(ConfigError::Missing { key: "auth.issuers", why: "without one nobody can be let in" });
        }
        if self.auth.issuers.contains_key(&self.accounts.issuer) {
            return Err(ConfigError::Value {
                key: "accounts.issuer",
                value: self.accounts.issuer,
                expected: "a name that none of auth.issuers has",
            });
        }
        let token_life = duration("accounts.token_life", &self.accounts.token_life)?;
        if token_life < Duration::from_secs(60) {
            return Err(ConfigError::Value {
                key: "accounts.token_life",
                value: self.accounts.token_life,
                expected: "at least 1m",
            });
        }
        let password_memory_kib = password_memory_kib(&self.accounts)?;
        let heartbeat = (
            duration("limits.heartbeat_min", &self.limits.heartbeat_min)?,
            duration("limits.heartbeat_max", &self.limits.heartbeat_max)?,
        );
        if heartbeat.0 > heartbeat.1 || heartbeat.0 < Duration::from_secs(1) || heartbeat.1 > Duration::from_secs(3_600)
        {
            return Err(ConfigError::Value {
                key: "limits.heartbeat_min",
                value: self.limits.heartbeat_min,
                expected: "at least 1s and at most limits.heartbeat_max, which is at most 1h",
            });
        }
        for (key, per_second) in [
            ("limits.connection_publishes", self.limits.connection_publishes),
            ("limits.user_publishes", self.limits.user_publishes),
            ("limits.conversation_publishes", self.limits.conversation_publishes),
        ] {
            if let Some(value @ (0 | 1_000_001..)) = per_second {
                let expected = "1 to 1000000 a second; leave it out for no bound";
                return Err(ConfigError::Value { key, value: value.to_string(), expected });
            }
        }
        if self.limits.user_reads > 1_000_000 {
            let (key, value) = ("limits.user_reads", self.limits.user_reads.to_string());
            return Err(ConfigError::Value { key, value, expected: "1 to 1000000 a second, or 0 for no bound" });
        }
        let quotas = quotas(&self.limits)?;
        Ok(Settings {
            tls,
            plain: self.listen.plain,
            store: self.store.path,
            retention_age: self
                .store
                .retention_age
                .as_deref()
                .map(|v| duration("store.retention_age", v))
                .transpose()?,
            retention_bytes: self
                .store
                .retention_bytes
                .as_deref()
                .map(|v| size("store.retention_bytes", v))
                .transpose()?,
            state_memory: state_memory(&self.store.state_memory)?,
            issuers: self.auth.issuers.into_iter().collect(),
            revocations: self.auth.revocations,
            token_life,
            password_memory_kib,
            accounts: self.accounts,
            connections: self.limits.connections,
            connections_per_address: self.limits.connections_per_address,
            handshakes: self.limits.handshakes.max(1),
            memory: self.limits.memory.as_deref().map(|v| size("limits.memory", v)).transpose()?,
            heartbeat,
            drain_timeout: duration("limits.drain_timeout", &self.limits.drain_timeout)?,
            connection_publishes: self.limits.connection_publishes,
            user_publishes: self.limits.user_publishes,
            conversation_publishes: self.limits.conversation_publishes,
            user_reads: (self.limits.user_reads > 0).then_some(self.limits.user_reads),
            content: content(&self.limits.content)?,
            quotas,
            push: self.push.resolve()?,
            admin: self.admin.listen,
        })
    }
}

fn quotas(limits: &Limits) -> Result<Quotas, ConfigError> {
    let most = Limits::default();
    let kept = |key, value: u32, most: u32, expected| {
        let is_known = (1..=most).contains(&value);
        is_known.then_some(value).ok_or(ConfigError::Value { key, value: value.to_string(), expected })
    };
    Ok(Quotas {
        user_conversations: kept(
            "limits.user_conversations",
            limits.user_conversations,
            most.user_conversations,
            "1 to 20000",
        )?,
        user_devices: kept("limits.user_devices", limits.user_devices, most.user_devices, "1 to 20")?,
        user_contacts: kept("limits.user_contacts", limits.user_contacts, most.user_contacts, "1 to 5000")?,
        group_members: kept("limits.group_members", limits.group_members, most.group_members, "1 to 100000")?,
        group_bans: kept("limits.group_bans", limits.group_bans, most.group_bans, "1 to 10000")?,
        session_channels: kept("limits.session_channels", limits.session_channels, most.session_channels, "1 to 100")?,
        session_presences: kept(
            "limits.session_presences",
            limits.session_presences,
            most.session_presences,
            "1 to 500",
        )?,
    })
}

fn content(value: &str) -> Result<u32, ConfigError> {
    let bytes = size("limits.content", value)?;
    let is_known = (1 << 10..=u64::from(most::PAYLOAD_BYTES_MAX)).contains(&bytes);
    u32::try_from(bytes).ok().filter(|_| is_known).ok_or(ConfigError::Value {
        key: "limits.content",
        value: value.into(),
        expected: "1KiB to 192KiB",
    })
}

/// An address that strangers must not reach, unless it is none.
fn local(key: &'static str, address: Option<SocketAddr>, expected: &'static str) -> Result<(), ConfigError> {
    match address.filter(|address| !address.ip().to_canonical().is_loopback()) {
        Some(address) => Err(ConfigError::Value { key, value: address.to_string(), expected }),
        None => Ok(()),
    }
}

fn password_memory_kib(accounts: &Accounts) -> Result<u32, ConfigError> {
    let kib = size("accounts.password_memory", &accounts.password_memory)? >> 10;
    let is_known = kib >= 8 * u64::from(accounts.password_lanes.max(1)) && kib <= 256 << 10;
    let kib = u32::try_from(kib).ok().filter(|_| is_known).ok_or(ConfigError::Value {
        key: "accounts.password_memory",
        value: accounts.password_memory.clone(),
        expected: "8KiB for each lane to 256MiB",
    })?;
    for (key, value) in
        [("accounts.password_passes", accounts.password_passes), ("accounts.password_lanes", accounts.password_lanes)]
    {
        if !(1..=16).contains(&value) {
            return Err(ConfigError::Value { key, value: value.to_string(), expected: "1 to 16" });
        }
    }
    Ok(kib)
}

fn state_memory(value: &str) -> Result<usize, ConfigError> {
    let bytes = size("store.state_memory", value)?;
    usize::try_from(bytes).ok().filter(|bytes| *bytes >= 1 << 20).ok_or(ConfigError::Value {
        key: "store.state_memory",
        value: value.into(),
        expected: "at least 1MiB",
    })
}

fn size(key: &'static str, value: &str) -> Result<u64, ConfigError> {
    let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let (number, unit) = value.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => Some(0),
        "KiB" => Some(10),
        "MiB" => Some(20),
        "GiB" => Some(30),
        "TiB" => Some(40),
        _ => None,
    };
    number.parse::<u64>().ok().zip(shift).and_then(|(n, shift)| n.checked_mul(1 << shift)).ok_or(ConfigError::Value {
        key,
        value: value.into(),
        expected: "a size such as 500MiB or 50GiB",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> Result<Settings, ConfigError> {
        parse(text)?.resolve()
    }

    const GOOD: &str = "tls = { certificate = 'c', key = 'k' }\nauth.issuers.me = 'p'\n";

    /// SPEC R2-2.
    #[test]
    fn the_defaults_need_a_certificate_and_an_issuer_alone() {
        let settings = written(GOOD).expect("resolves");
        assert_eq!(settings.tls.expect("a listener").0.to_string(), "127.0.0.1:14000");
        assert_eq!(settings.plain, None);
    }

    #[test]
    fn without_tls_other_machines_are_listened_to_only_when_that_is_asked_for() {
        let plain = |rest: &str| written(&format!("{GOOD}{rest}")).map(|settings| settings.plain.is_some());
        for address in ["127.0.0.1:1", "127.3.2.1:1", "[::1]:1"] {
            assert!(plain(&format!("listen.plain = '{address}'")).expect("this machine alone"));
        }
        for address in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[2001:db8::1]:1"] {
            let text = format!("listen.plain = '{address}'");
            let refused = plain(&text).expect_err("others reach it").to_string();
            assert!(refused.contains("listen.plain_beyond_loopback"), "{refused}");
            assert!(plain(&format!("{text}\nlisten.plain_beyond_loopback = true")).expect("asked for"));
        }
    }

    #[test]
    fn others_look_at_the_broker_only_when_that_is_asked_for() {
        let admin = |rest: &str| written(&format!("{GOOD}{rest}")).map(|settings| settings.admin.is_some());
        assert!(!admin("").expect("nobody unless it is said"));
        for address in ["127.0.0.1:1", "[::1]:1"] {
            assert!(admin(&format!("admin.listen = '{address}'")).expect("this machine alone"));
        }
        for address in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1"] {
            let text = format!("admin.listen = '{address}'");
            let refused = admin(&text).expect_err("others reach it").to_string();
            assert!(refused.contains("admin.beyond_loopback"), "{refused}");
            assert!(admin(&format!("{text}\nadmin.beyond_loopback = true")).expect("asked for"));
        }
    }

    #[test]
    fn a_wrong_value_is_named_with_what_would_be_right() {
        for (text, expected) in [
            ("", "tls.certificate is missing: the TLS listener presents it"),
            ("tls = { certificate = 'c', key = 'k' }", "auth.issuers is missing: without one nobody can be let in"),
            ("store.state_memory = '5KiB'", "store.state_memory: \"5KiB\" is not at least 1MiB"),
            ("accounts.token_life = '5s'", "accounts.token_life: \"5s\" is not at least 1m"),
            ("accounts.issuer = 'me'", "accounts.issuer: \"me\" is not a name that none of auth.issuers has"),
            (
                "accounts.password_memory = '1GiB'",
                "accounts.password_memory: \"1GiB\" is not 8KiB for each lane to 256MiB",
            ),
            (
                "limits.user_publishes = 0",
                "limits.user_publishes: \"0\" is not 1 to 1000000 a second; leave it out for no bound",
            ),
            (
                "limits.user_reads = 1000001",
                "limits.user_reads: \"1000001\" is not 1 to 1000000 a second, or 0 for no bound",
            ),
            ("limits.group_members = 0", "limits.group_members: \"0\" is not 1 to 100000"),
            ("limits.user_devices = 21", "limits.user_devices: \"21\" is not 1 to 20"),
            ("limits.content = '193KiB'", "limits.content: \"193KiB\" is not 1KiB to 192KiB"),
            ("accounts.password_passes = 0", "accounts.password_passes: \"0\" is not 1 to 16"),
            ("store.retention_age = 'long'", "store.retention_age: \"long\" is not a time such as 30s, 10m or 7d"),
            (
                "store.retention_bytes = '5 apples'",
                "store.retention_bytes: \"5 apples\" is not a size such as 500MiB or 50GiB",
            ),
        ] {
            let text = if text.starts_with("store") || text.starts_with("limits") || text.starts_with("accounts") {
                format!("{GOOD}{text}")
            } else {
                text.to_owned()
            };
            assert_eq!(written(&text).expect_err("wrong").to_string(), expected);
        }
        let unknown = written(&format!("{GOOD}[limits]\nconections = 5")).expect_err("unknown").to_string();
        assert!(unknown.contains("conections"), "{unknown}");
    }

    /// SPEC R11-1: what stands there is the most, and each of them is told with the bound that it has.
    #[test]
    fn quotas_are_lowered_and_never_raised() {
        let set = |text: &str| written(&format!("{GOOD}[limits]\n{text}")).map(|settings| settings.quotas);
        let least = set("user_conversations = 1\nuser_devices = 1\nuser_contacts = 1\ngroup_members = 1\n\
             group_bans = 1\nsession_channels = 1\nsession_presences = 1");
        assert_eq!(least.expect("the least").group_members, 1);
        for (key, most) in [
            ("user_conversations", most::CONVERSATIONS_MAX),
            ("user_devices", most::DEVICES_MAX as u32),
            ("user_contacts", most::CONTACTS_MAX),
            ("group_members", most::MEMBERS_MAX),
            ("group_bans", most::BANNED_MAX),
            ("session_channels", most::WATCHES_MAX as u32),
            ("session_presences", most::PRESENCES_MAX as u32),
        ] {
            set(&format!("{key} = {most}")).expect("the most");
            let refused = set(&format!("{key} = {}", most + 1)).expect_err("one more").to_string();
            assert!(refused.ends_with(&format!("is not 1 to {most}")), "{refused}");
        }
        assert_eq!(written(GOOD).expect("resolves").content, most::PAYLOAD_BYTES_MAX);
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("k", "5").ok(), Some(5));
        assert_eq!(size("k", "2GiB").ok(), Some(2 << 30));
        assert!(size("k", "99999999TiB").is_err() && size("k", "GiB").is_err());
    }
}
