//! `longwire token`: makes issuers' keys and the tokens that let people in.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};

use super::Fail;
use crate::auth::{self, AUDIENCE, Claims};
use crate::clock::unix_ms;

const EXAMPLES: &str = "\
Examples:
  longwire token key issuer                       makes issuer.key (keep it secret) and issuer.pub (for the broker)
  longwire token make alice --key issuer.key      prints a token for alice, good for 30 days
  longwire token make mo --key issuer.key --read 'news/**' --moderate 'news/**'
  longwire token make sensor-4 --key issuer.key --device sensor-4 --publish 'sensors/4/*' --expires 365d

A broker believes an issuer whose public key its configuration names under auth.issuers.";

/// Makes issuers' keys, and tokens.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(super) enum Command {
    /// Makes an issuer's key pair: NAME.key and NAME.pub
    Key {
        /// Where, without the ending
        name: PathBuf,
    },
    /// Prints a token for a user
    Make(Make),
}

/// What a token says.
#[derive(Debug, ClapArgs)]
pub(super) struct Make {
    /// The user's name
    user: String,
    /// The issuer's private key
    #[arg(long, env = "LONGWIRE_ISSUER_KEY", value_name = "FILE")]
    key: PathBuf,
    /// The issuer's name, as in the broker's auth.issuers
    #[arg(long, env = "LONGWIRE_ISSUER", default_value = "longwire")]
    issuer: String,
    /// How long it is good
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = humantime::parse_duration)]
    expires: Duration,
    /// The one device that may use it; any unless given
    #[arg(long)]
    device: Option<String>,
    /// Channels it may publish to, as patterns; repeatable
    #[arg(long, value_name = "PATTERN")]
    publish: Vec<String>,
    /// Channels it may read, as patterns; repeatable
    #[arg(long, value_name = "PATTERN")]
    read: Vec<String>,
    /// Channels it moderates, as patterns; repeatable. It recalls what anybody said there, where it may read, too
    #[arg(long, value_name = "PATTERN")]
    moderate: Vec<String>,
    /// Let it administer accounts
    #[arg(long)]
    admin: bool,
    /// The token's id, by which it can be revoked alone [default: a random one]
    #[arg(long)]
    id: Option<String>,
}

/// Does what the command says.
pub(super) fn run(command: Command) -> Result<(), Fail> {
    match command {
        Command::Key { name } => {
            let (private, public) = auth::generate_key().map_err(Fail::failed)?;
            let (key, public_key) = (name.with_extension("key"), name.with_extension("pub"));
            if key.exists() {
                return Err(Fail::usage(format!("{} is there already; a key is never overwritten", key.display())));
            }
            write_secret(&key, &private)?;
            write_secret(&public_key, &public)?;
            println!("{}\n{}", key.display(), public_key.display());
        }
        Command::Make(make) => {
            let pem = std::fs::read(&make.key).map_err(|e| Fail::failed(format!("{}: {e}", make.key.display())))?;
            let now = unix_ms() / 1_000;
            let claims = Claims {
                iss: make.issuer,
                sub: make.user,
                aud: AUDIENCE.into(),
                exp: now + make.expires.as_secs(),
                iat: now,
                jti: make.id.unwrap_or_else(|| format!("{:016x}", fastrand::u64(..))),
                device: make.device,
                publish: make.publish,
                read: make.read,
                moderate: make.moderate,
                admin: make.admin,
                generation: None,
            };
            let token = auth::issue(&claims, &pem).map_err(|e| Fail::failed(format!("{}: {e}", make.key.display())))?;
            println!("{token}");
        }
    }
    Ok(())
}

/// Writes a file that only its owner may read; who reads it meanwhile sees the old one or the new one whole.
pub(super) fn write_secret(path: &Path, text: &str) -> Result<(), Fail> {
    let failed = |e: std::io::Error| Fail::failed(format!("{}: {e}", path.display()));
    let fresh = path.with_added_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    std::fs::rename(&fresh, path).map_err(failed)
}
