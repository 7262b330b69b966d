//! `longwire account`: what a user does about itself: password, profile, contacts, whom it blocks, what it shows, its devices.

mod privacy;
mod push;

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};
use longwire_client::{Client, Login, Publication, PublishError, Start, TokenSource, packet};

use super::Fail;
use super::connect::ConnectArgs;
use super::login::{new_password, password, read_password};
use privacy::{Marks, Presence};
use push::Push;

const EXAMPLES: &str = "\
Examples:
  longwire account register ada --invitation TEXT
  longwire account devices --user ada
  longwire account revoke 8193 --user ada
  longwire account block mallory --user ada
  longwire account profile 'Ada L.' --picture media/4f2a --user ada
  longwire account presence contacts --user ada
  longwire account marks hidden --user ada
  longwire account push webhook ada-phone --device phone --quiet 22:00-07:00 --user ada";

/// Changes what is about oneself
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(super) enum Command {
    /// Makes an account, where the broker lets one
    Register(Register),
    /// Gives oneself another password; all other sessions and tokens end
    Passwd(Passwd),
    /// Lists one's devices
    Devices(Plain),
    /// Gives one of one's devices a label
    NameDevice(NameDevice),
    /// Ends the session and the tokens of one of one's devices
    Revoke(Revoke),
    /// Shows oneself so to others
    Profile(Profile),
    /// Lists one's contacts
    Contacts(Plain),
    /// Keeps a contact
    Contact(Contact),
    /// Keeps a contact no more
    RemoveContact(Other),
    /// Takes nothing from a user any more
    Block(Other),
    /// Takes what a user sends again
    Unblock(Other),
    /// Lists whom one blocks
    Blocked(Plain),
    /// Prints who sees whether one is there, or says it
    Presence(Presence),
    /// Prints whether others see in direct conversations what one has read, or says it
    Marks(Marks),
    /// Says where one of one's devices is told of what waits for it while it is away
    Push(Push),
}

#[derive(Debug, ClapArgs)]
pub(super) struct Register {
    /// The name to have
    name: String,
    /// The invitation, where the broker asks for one
    #[arg(long, env = "LONGWIRE_INVITATION", default_value = "", hide_env_values = true)]
    invitation: String,
    /// A file whose first line is the password to be
    #[arg(long, value_name = "FILE")]
    new_password_file: Option<PathBuf>,
    #[command(flatten)]
    connection: ConnectArgs,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Passwd {
    /// A file whose first line is the password to be
    #[arg(long, value_name = "FILE")]
    new_password_file: Option<PathBuf>,
    #[command(flatten)]
    connection: ConnectArgs,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Plain {
    /// Lines of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: ConnectArgs,
}

#[derive(Debug, ClapArgs)]
pub(super) struct NameDevice {
    /// The number of a device
    number: u64,
    /// What to call it
    label: String,
    #[command(flatten)]
    connection: ConnectArgs,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Revoke {
    /// The number of a device
    number: u64,
    #[command(flatten)]
    connection: ConnectArgs,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Profile {
    /// The name to be shown
    display_name: String,
    /// Where the picture is, as the clients know it
    #[arg(long, default_value = "")]
    picture: String,
    #[command(flatten)]
    connection: ConnectArgs,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Contact {
    /// The user's name
    name: String,
    /// What to call it
    nick: String,
    #[command(flatten)]
    connection: ConnectArgs,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Other {
    /// The user's name
    name: String,
    #[command(flatten)]
    connection: ConnectArgs,
}

/// The most of anything that one page holds.
const PAGE: u32 = 200;

/// Does what the command says.
pub(super) async fn run(command: Command) -> Result<(), Fail> {
    match command {
        Command::Register(args) => register(args).await,
        Command::Passwd(args) => passwd(args).await,
        Command::Devices(args) => devices(&connect(&args.connection).await?, args.json).await,
        Command::NameDevice(args) => {
            let client = connect(&args.connection).await?;
            done(&client, client.name_device(args.number, args.label).await).await
        }
        Command::Revoke(args) => {
            let client = connect(&args.connection).await?;
            done(&client, client.revoke_device(args.number).await).await
        }
        Command::Profile(args) => {
            let profile = packet::Profile {
                display_name: args.display_name,
                picture: args.picture,
                ..packet::Profile::default()
            };
            let client = connect(&args.connection).await?;
            done(&client, client.set_profile(profile).await).await
        }
        Command::Contacts(args) => contacts(&connect(&args.connection).await?, args.json).await,
        Command::Contact(args) => {
            let client = connect(&args.connection).await?;
            done(&client, client.set_contact(args.name, args.nick, "").await).await
        }
        Command::RemoveContact(args) => {
            let client = connect(&args.connection).await?;
            done(&client, client.remove_contact(args.name).await).await
        }
        Command::Block(args) => {
            let client = connect(&args.connection).await?;
            done(&client, client.block(args.name).await).await
        }
        Command::Unblock(args) => {
            let client = connect(&args.connection).await?;
            done(&client, client.unblock(args.name).await).await
        }
        Command::Blocked(args) => blocked(&connect(&args.connection).await?, args.json).await,
        Command::Presence(args) => privacy::presence(args).await,
        Command::Marks(args) => privacy::marks(args).await,
        Command::Push(args) => push::push(args).await,
    }
}

async fn connect(connection: &ConnectArgs) -> Result<Client, Fail> {
    let device = connection.device("account")?;
    let mut config = connection.config(&device.name)?;
    config.start = Start::Fresh;
    let (client, deliveries, _) = connection.connect(config).await?;
    drop(deliveries);
    Ok(client)
}

async fn done(client: &Client, publication: Result<Publication, PublishError>) -> Result<(), Fail> {
    publication?.await?;
    client.close().await;
    Ok(())
}

async fn register(args: Register) -> Result<(), Fail> {
    let password = new_password(args.new_password_file.as_deref(), &args.name)?;
    let connection = ConnectArgs { user: Some(args.name.clone()), ..args.connection };
    let login = Login::new(args.name, password).registering(args.invitation);
    log_in(&connection, login).await
}

async fn passwd(args: Passwd) -> Result<(), Fail> {
    let Some(user) = args.connection.user.clone() else {
        return Err(Fail::usage("whose password? name the user with --user"));
    };
    let old = match &args.connection.password_file {
        Some(file) => read_password(file)?,
        None => password(&format!("Password of {user}: "))?,
    };
    let new = new_password(args.new_password_file.as_deref(), &user)?;
    log_in(&args.connection, Login::new(user, old).changing_to(new)).await
}

/// Logs in with a password and nothing else, and keeps the token.
async fn log_in(connection: &ConnectArgs, login: Login) -> Result<(), Fail> {
    let device = connection.device("account")?;
    let kept = connection.token_path(&device.name)?;
    let mut config = connection.config_with(TokenSource::Login(login.clone()), &device.name)?;
    config.start = Start::Fresh;
    let (client, deliveries, _) = connection.connect(config).await?;
    drop(deliveries);
    client.close().await;
    if let Some(token) = login.token() {
        super::token::write_secret(&kept, &token)?;
    }
    Ok(())
}

async fn devices(client: &Client, json: bool) -> Result<(), Fail> {
    let mut out = io::stdout();
    for one in client.devices().await? {
        if json {
            let line = serde_json::json!({
                "device": one.device, "name": one.name, "label": one.label, "created": one.created, "seen": one.seen,
                "online": one.online, "own": one.own, "push": one.push,
            });
            writeln!(out, "{line}")?;
        } else {
            let is = match (one.own, one.online) {
                (true, _) => "this one",
                (false, true) => "online",
                (false, false) => "",
            };
            let told = if one.push.is_empty() { String::new() } else { format!("  told by {}", one.push) };
            writeln!(out, "{:>12}  {:<32} {:<24} {is}{told}", one.device, one.name, one.label)?;
        }
    }
    client.close().await;
    Ok(())
}

async fn contacts(client: &Client, json: bool) -> Result<(), Fail> {
    let (mut out, mut before) = (io::stdout(), 0);
    loop {
        let page = client.contacts(before, PAGE).await?;
        for one in &page.contacts {
            if json {
                let line = serde_json::json!({ "user": one.user, "name": one.name, "nick": one.nick });
                writeln!(out, "{line}")?;
            } else {
                writeln!(out, "{:<32} {}", one.name, one.nick)?;
            }
        }
        before = page.next;
        if before == 0 {
            client.close().await;
            return Ok(());
        }
    }
}

async fn blocked(client: &Client, json: bool) -> Result<(), Fail> {
    let (mut out, mut after) = (io::stdout(), 0);
    loop {
        let page = client.blocked(after, PAGE).await?;
        for one in &page.users {
            if json {
                writeln!(out, "{}", serde_json::json!({ "user": one.user, "name": one.name }))?;
            } else {
                writeln!(out, "{}", one.name)?;
            }
        }
        after = page.next;
        if after == 0 {
            client.close().await;
            return Ok(());
        }
    }
}
