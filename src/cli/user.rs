//! `longwire user`: administers the accounts of a broker that runs, over the same wire as everything else.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};
use longwire_client::{Client, Start, packet};

use super::Fail;
use super::connect::ConnectArgs;
use super::export::{self, Export};
use super::login::new_password;
use crate::auth::password::{self, Cost};
use crate::auth::{self, INVITATION_AUDIENCE, Invitation};
use crate::clock::unix_ms;

const EXAMPLES: &str = "\
Examples:
  longwire token make root --key issuer.key --admin > root.token
  longwire user add ada --token-file root.token
  longwire user list --token-file root.token
  longwire user invite --key issuer.key --expires 7d
  longwire user erase ada --yes --token-file root.token
  longwire user export ada --store /backup/longwire-data --out ada.jsonl

The password of a user is asked for, or read from --new-password-file or LONGWIRE_PASSWORD; the broker gets what it can check
it by, and not the password.";

/// Administers accounts: needs a token with the claim `admin`.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(super) enum Command {
    /// Makes an account, or opens one that was closed
    Add(Set),
    /// Gives a user another password; all its sessions and tokens end
    Passwd(Set),
    /// Closes an account; all its sessions and tokens end, and nothing is taken to it any more
    Remove(Remove),
    /// Erases a user for good: what it published is shown to nobody from then on, and leaves the disk in the background
    Erase(Erase),
    /// Writes what a stopped broker's store, or a backup, holds of a user, as lines of JSON
    Export(Export),
    /// Lists all users
    List(List),
    /// Prints an invitation, with which one account can be made; no broker is asked
    Invite(Invite),
}

#[derive(Debug, ClapArgs)]
pub(super) struct Set {
    /// The user's name
    name: String,
    /// A file whose first line is the user's password
    #[arg(long, value_name = "FILE")]
    new_password_file: Option<PathBuf>,
    #[command(flatten)]
    connection: ConnectArgs,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Remove {
    /// The user's name
    name: String,
    #[command(flatten)]
    connection: ConnectArgs,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Erase {
    /// The user's name
    name: String,
    /// Does it: there is no way back
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    connection: ConnectArgs,
}

#[derive(Debug, ClapArgs)]
pub(super) struct List {
    /// Lines of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: ConnectArgs,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Invite {
    /// The one name that it is for; any unless given
    #[arg(long)]
    name: Option<String>,
    /// The issuer's private key
    #[arg(long, env = "LONGWIRE_ISSUER_KEY", value_name = "FILE")]
    key: PathBuf,
    /// The issuer's name, as in the broker's auth.issuers
    #[arg(long, env = "LONGWIRE_ISSUER", default_value = "longwire")]
    issuer: String,
    /// How long it is good
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = humantime::parse_duration)]
    expires: Duration,
}

/// The most users that one page holds.
const PAGE: u32 = 200;

/// Does what the command says.
pub(super) async fn run(command: Command) -> Result<(), Fail> {
    match command {
        Command::Add(args) | Command::Passwd(args) => {
            let password = new_password(args.new_password_file.as_deref(), &args.name)?;
            if password.len() < longwire_protocol::limits::PASSWORD_BYTES_MIN {
                return Err(Fail::usage("a password has at least 8 bytes"));
            }
            let password_hash = password::hash(&password, Cost::default()).map_err(Fail::failed)?;
            set(&args.connection, packet::SetAccount { user: args.name, password_hash, close: false }).await
        }
        Command::Remove(args) => {
            let set_account = packet::SetAccount { user: args.name, close: true, ..Default::default() };
            set(&args.connection, set_account).await
        }
        Command::Export(args) => export::run(&args),
        Command::Erase(args) if !args.yes => {
            Err(Fail::usage(format!("{} would be erased for good; say so with --yes", args.name)))
        }
        Command::Erase(args) => {
            let client = connect(&args.connection).await?;
            client.erase_user(args.name).await?.await?;
            client.close().await;
            Ok(())
        }
        Command::List(args) => {
            let client = connect(&args.connection).await?;
            list(&client, args.json).await?;
            client.close().await;
            Ok(())
        }
        Command::Invite(args) => invite(args),
    }
}

async fn connect(connection: &ConnectArgs) -> Result<Client, Fail> {
    let device = connection.device("user")?;
    let mut config = connection.config(&device.name)?;
    config.start = Start::Fresh;
    let (client, deliveries, _) = connection.connect(config).await?;
    drop(deliveries);
    Ok(client)
}

async fn set(connection: &ConnectArgs, set: packet::SetAccount) -> Result<(), Fail> {
    let client = connect(connection).await?;
    client.set_account(set).await?.await?;
    client.close().await;
    Ok(())
}

async fn list(client: &Client, json: bool) -> Result<(), Fail> {
    let (mut out, mut after) = (io::stdout(), 0);
    loop {
        let page = client.accounts(after, PAGE).await?;
        for one in &page.accounts {
            if json {
                let line = serde_json::json!({
                    "user": one.user,
                    "name": one.name,
                    "password": one.has_password,
                    "closed": one.closed,
                    "devices": one.devices,
                    "conversations": one.conversations,
                });
                writeln!(out, "{line}")?;
            } else {
                let how = match (one.closed, one.has_password) {
                    (true, _) => "closed",
                    (false, true) => "password",
                    (false, false) => "",
                };
                writeln!(
                    out,
                    "{:<32} {:>3} devices {:>6} conversations  {how}",
                    one.name, one.devices, one.conversations
                )?;
            }
        }
        after = page.next;
        if after == 0 {
            return Ok(());
        }
    }
}

fn invite(args: Invite) -> Result<(), Fail> {
    let failed = |e: String| Fail::failed(format!("{}: {e}", args.key.display()));
    let pem = std::fs::read(&args.key).map_err(|e| failed(e.to_string()))?;
    let mut id = [0; 16];
    aws_lc_rs::rand::fill(&mut id).map_err(|_| Fail::failed("the machine gives no randomness"))?;
    let invitation = Invitation {
        iss: args.issuer,
        aud: INVITATION_AUDIENCE.into(),
        exp: unix_ms() / 1_000 + args.expires.as_secs(),
        jti: id.iter().map(|byte| format!("{byte:02x}")).collect(),
        sub: args.name,
    };
    println!("{}", auth::issue(&invitation, &pem).map_err(failed)?);
    Ok(())
}
