//! What every command of a client asks for: where the broker is and who this is.

use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use longwire_client::{
    Address, Client, Config, Deliveries, Dialer, Failure, State, TokenSource, Trust, Untrusted, packet,
};
use tokio::time::timeout;

use super::Fail;
use super::keep::{self, Lock};
use super::login;

/// How to reach the broker, and as whom.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Connection")]
pub struct ConnectArgs {
    /// The broker: `longwires://HOST:PORT` (TLS) or `longwire://HOST:PORT` (plain TCP); the port may be left out
    #[arg(long, env = "LONGWIRE_URL", default_value = "longwires://127.0.0.1:14000")]
    pub url: Address,

    /// The certificates to trust, as a PEM file (`longwire serve --dev` says where its own is)
    #[arg(long, env = "LONGWIRE_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,

    /// The token that says who this is; in a file or the environment others cannot see it
    #[arg(long, env = "LONGWIRE_TOKEN", hide_env_values = true)]
    pub token: Option<String>,

    /// A file with the token; it is read again at each connect, so that it can be renewed
    #[arg(long, env = "LONGWIRE_TOKEN_FILE", value_name = "FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,

    /// The user's name, in place of a token: the password is asked for once, and the token that the broker makes is kept
    /// for this device
    #[arg(long, env = "LONGWIRE_USER", conflicts_with_all = ["token", "token_file"])]
    pub user: Option<String>,

    /// A file whose first line is the password of --user; without it, LONGWIRE_PASSWORD or a question at the terminal
    #[arg(long, env = "LONGWIRE_PASSWORD_FILE", value_name = "FILE", requires = "user")]
    pub password_file: Option<PathBuf>,

    /// The name of this device among those of the user; two with one name take each other's sessions over
    /// [default: one for each command that runs at the same time]
    #[arg(long, env = "LONGWIRE_DEVICE")]
    pub device: Option<String>,

    /// Where this user's devices keep their state [default: $XDG_STATE_HOME/longwire or ~/.local/state/longwire]
    #[arg(long, env = "LONGWIRE_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// How long to try to connect at first; later the connection is made again for as long as it takes
    #[arg(long, env = "LONGWIRE_CONNECT_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub connect_timeout: Duration,
}

/// A device's name, reserved among the processes of this machine while this lives.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) directory: PathBuf,
    _lock: Option<Lock>,
}

/// How many processes of one command find a name of their own.
const DEVICES_MAX: usize = 8;

impl ConnectArgs {
    /// The device to be: as named, or `command` and the first number that no other process here uses. Names carry a
    /// random word of this installation, since the broker knows devices by name.
    pub(super) fn device(&self, command: &str) -> Result<Device, Fail> {
        let state = self.state_directory()?;
        let here = installation(&state).map_err(|error| Fail::failed(format!("{}: {error}", state.display())))?;
        let directory = self.user_directory()?;
        if let Some(name) = &self.device {
            return Ok(Device { name: name.clone(), directory, _lock: None });
        }
        for number in 1..=DEVICES_MAX {
            let name = format!("{command}-{here}-{number}");
            let path = directory.join(format!("{name}.lock"));
            let lock = Lock::take(&path).map_err(|error| Fail::failed(format!("{}: {error}", path.display())))?;
            if lock.is_some() {
                return Ok(Device { name, directory, _lock: lock });
            }
        }
        Err(Fail::usage(format!("{DEVICES_MAX} others of this command are running: name the device with --device")))
    }

    /// A name that belongs to a file: whoever comes again for that file is the same device.
    pub(super) fn device_of_file(&self, command: &str, path: &Path) -> Result<String, Fail> {
        if let Some(name) = &self.device {
            return Ok(name.clone());
        }
        let path = std::path::absolute(path)?;
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let key = format!("{}\0{}", host.trim(), path.display());
        Ok(format!("{command}-{:016x}", xxhash_rust::xxh3::xxh3_64(key.as_bytes())))
    }

    /// The name of the folder with what belongs to this user of this broker: what one user left unsent is not to be
    /// found by another. The token is only read here; the broker checks it.
    fn whose(&self) -> String {
        #[derive(serde::Deserialize)]
        struct Subject {
            sub: String,
        }
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => Some(token.trim().to_owned()),
            (None, Some(path)) => read_token(path).ok(),
            (None, None) => None,
        };
        let subject = token.and_then(|token| jsonwebtoken::dangerous::insecure_decode::<Subject>(token).ok());
        let user = self.user.clone().or_else(|| subject.map(|token| token.claims.sub));
        let user = user.unwrap_or_else(|| "unknown".to_owned());
        let whole = format!("{user}@{}_{}", self.url.host(), self.url.port());
        whole.chars().map(|c| if c.is_ascii_alphanumeric() || "@_-.".contains(c) { c } else { '-' }).collect()
    }

    fn state_directory(&self) -> Result<PathBuf, Fail> {
        let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let directory = match &self.state_dir {
            Some(directory) => directory.clone(),
            None => from("XDG_STATE_HOME")
                .or_else(|| from("HOME").map(|home| home.join(".local/state")))
                .map(|state| state.join("longwire"))
                .ok_or_else(|| {
                    Fail::usage("neither HOME nor XDG_STATE_HOME is set: name a directory with --state-dir")
                })?,
        };
        fs::create_dir_all(&directory).map_err(|error| Fail::failed(format!("{}: {error}", directory.display())))?;
        Ok(directory)
    }

    /// Makes connections as these options say.
    pub(super) fn dialer(&self) -> Result<Dialer, Fail> {
        let trust = match &self.ca {
            Some(path) => Trust::from_file(path).map_err(|error| Fail::usage(error.to_string()))?,
            None => Trust::Nobody,
        };
        Dialer::new(&self.url, &trust).map_err(|error| Fail::usage(format!("{error} (--ca FILE)")))
    }

    /// A client's configuration, for a device of this name.
    pub(super) fn config(&self, device: &str) -> Result<Config, Fail> {
        if let Some(user) = &self.user {
            let directory = self.user_directory()?;
            let login = login::login(user, self.password_file.as_deref(), &directory, device)?;
            return self.config_with(TokenSource::Login(login), device);
        }
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => TokenSource::from(token.trim()),
            (None, Some(path)) => {
                // A file that is not there is said at once, and not retried for ever.
                read_token(path).map_err(Fail::usage)?;
                let path = path.clone();
                TokenSource::provider(move || std::future::ready(read_token(&path)))
            }
            (None, None) => {
                return Err(Fail::usage(
                    "who are you? give a token with --token-file, LONGWIRE_TOKEN or --token, or a name with --user",
                ));
            }
        };
        self.config_with(token, device)
    }

    /// The same, with a token from there.
    pub(super) fn config_with(&self, token: TokenSource, device: &str) -> Result<Config, Fail> {
        Ok(Config::new(self.dialer()?, token, device))
    }

    /// Where the token of --user is kept for this device.
    pub(super) fn token_path(&self, device: &str) -> Result<PathBuf, Fail> {
        Ok(login::token_path(&self.user_directory()?, device))
    }

    /// The folder with what belongs to this user of this broker.
    fn user_directory(&self) -> Result<PathBuf, Fail> {
        let directory = self.state_directory()?.join(self.whose());
        fs::create_dir_all(&directory).map_err(|error| Fail::failed(format!("{}: {error}", directory.display())))?;
        Ok(directory)
    }

    /// Starts a client and waits until it is connected.
    pub(super) async fn connect(&self, config: Config) -> Result<(Client, Deliveries, packet::Connected), Fail> {
        let device = config.device.clone();
        let (client, deliveries) = Client::start(config)?;
        let mut states = client.states();
        // Whom a command does not believe today it does not believe in ten seconds: its user is asked to look.
        let is_decided =
            |state: &State| matches!(state, State::Connected(_)) || is_untrusted(state) || state.is_final();
        // A client that is gone has told its last state.
        drop(timeout(self.connect_timeout, states.wait_for(is_decided)).await);
        let state = states.borrow().clone();
        match state {
            State::Connected(connected) => Ok((client, deliveries, *connected)),
            State::Waiting { untrusted: Some(untrusted), .. } => Err(self.untrusted(&untrusted)),
            State::Waiting { refusal: Some(refusal), .. } => Err(Fail::refused(&refusal)),
            State::Waiting { reason, .. } => Err(Fail::unavailable(format!("{}: {reason}", self.url))),
            State::Connecting { .. } => Err(Fail::unavailable(format!("{}: no answer", self.url))),
            state => {
                if self.user.is_some() && matches!(&state, State::Failed(Failure::Refused(_))) {
                    login::forget(&self.user_directory()?, &device);
                }
                Err(Fail::ended(&state))
            }
        }
    }

    /// What a command says of a certificate that it does not believe.
    pub(super) fn untrusted(&self, untrusted: &Untrusted) -> Fail {
        let hint = match (untrusted, &self.ca) {
            (Untrusted::UnknownIssuer, Some(ca)) => {
                format!("; {} is what --ca names: is it that of this broker?", ca.display())
            }
            (Untrusted::UnknownIssuer, None) => "; name the authority's certificate with --ca FILE".to_owned(),
            (Untrusted::WrongName(_), _) => format!("; {:?} is what --url names", self.url.host()),
            _ => String::new(),
        };
        Fail::untrusted(format!("{}: {untrusted}{hint}", self.url))
    }
}

/// Whether the certificate that was shown is the reason why there is no connection.
const fn is_untrusted(state: &State) -> bool {
    matches!(state, State::Waiting { untrusted: Some(_), .. })
}

fn read_token(path: &Path) -> Result<String, String> {
    match fs::read_to_string(path) {
        Ok(token) if token.trim().is_empty() => Err(format!("{}: no token in it", path.display())),
        Ok(token) => Ok(token.trim().to_owned()),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// A word that tells this installation from others of the same user; made once.
fn installation(directory: &Path) -> io::Result<String> {
    let path = directory.join("installation");
    match fs::read_to_string(&path) {
        Ok(word) if !word.trim().is_empty() => Ok(word.trim().to_owned()),
        Ok(_) => make_installation(&path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_installation(&path),
        Err(error) => Err(error),
    }
}

fn make_installation(path: &Path) -> io::Result<String> {
    let word = format!("{:08x}", fastrand::u32(..));
    keep::private().truncate(true).open(path)?.write_all(word.as_bytes())?;
    Ok(word)
}

/// Says on a terminal what happens to the connection, so that silence is never a riddle.
pub(super) fn tell_states(client: &Client) {
    if !io::stderr().is_terminal() {
        return;
    }
    let mut states = client.states();
    tokio::spawn(async move {
        let mut was_connected = true;
        while states.changed().await.is_ok() {
            let state = states.borrow_and_update().clone();
            match &state {
                State::Connected(_) if !was_connected => eprintln!("longwire: connected again"),
                State::Waiting { .. } => eprintln!("longwire: {state}"),
                _ => continue,
            }
            was_connected = matches!(state, State::Connected(_));
        }
    });
}
