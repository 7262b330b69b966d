//! `longwire conversation`: lists, makes and changes conversations.

mod group;
mod history;
mod settings;

use std::io::{self, Write as _};

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use longwire_client::packet::{Conversation, ConversationKind, Level, Role};
use longwire_client::{Client, Publication, PublishError, Start};

use super::Fail;
use super::connect::ConnectArgs;
use super::target::Target;
use group::{info, print_join_key, retention};
use history::{history, receipts};

use settings::{Hide, SetPolicy, SetSettings, policy, settings};

pub(super) use group::join_key;
pub(super) use history::{retention_words, text, words};

const EXAMPLES: &str = "\
Examples:
  longwire conversation list
  longwire conversation create-group 'Lunch' alice bob
  longwire conversation history @bob --limit 50 --compact
  longwire conversation edit @bob 17 'at noon, I mean'
  longwire conversation react @bob 18 👍
  longwire conversation receipts 12289 --json
  longwire conversation settings 12289 --mute-for 8h --pin
  longwire conversation policy 12289 --publishes admin --recall-within 1h
  longwire conversation role 12289 alice admin";

/// Lists, makes and changes conversations
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(super) enum Command {
    /// Lists this user's conversations, the newest activity first
    List(List),
    /// Makes a group of this user and others, and prints its number
    CreateGroup(CreateGroup),
    /// Opens a direct conversation or a channel, and prints its number
    Open(One),
    /// Lists the members
    Members(One),
    /// Adds a user to a group
    Add(User),
    /// Removes a user from a group
    Remove(User),
    /// Gives a user another role in a group
    Role(SetRole),
    /// Joins a channel, or with --key a group: what is said there is kept for this user's devices
    Join(Join),
    /// Leaves a conversation
    Leave(One),
    /// Gives a group another label
    Label(SetLabel),
    /// Says how much of a conversation this device (see --device) is delivered. To say it for another device is to be that
    /// device: its session is taken over, and a will that it left is gone
    Level(SetLevel),
    /// Prints what was said, the oldest first
    History(History),
    /// Gives an own message another text
    Edit(Edit),
    /// Takes a message from everybody's sight
    Recall(Message),
    /// Reacts to a message; without a reaction, takes it back
    React(React),
    /// Prints who has read how far, and how far it was delivered to whom
    Receipts(One),
    /// Prints what a group says of itself, or changes that
    Info(SetInfo),
    /// Removes a user from a group and keeps it out
    Ban(Ban),
    /// Makes a new key with which a group is joined, in place of any before, and prints it
    JoinKey(JoinKey),
    /// Prints how long entries are kept, or sets it
    Retention(SetRetention),
    /// Prints how this user has a conversation shown, or changes that
    Settings(SetSettings),
    /// Takes a message from this user's own sight
    Hide(Hide),
    /// Prints what a group lets its members do, or changes that
    Policy(SetPolicy),
}

#[derive(Debug, ClapArgs)]
pub(super) struct List {
    /// How many at most
    #[arg(long, default_value_t = 100)]
    limit: u32,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, ClapArgs)]
pub(super) struct CreateGroup {
    /// What the group is called
    label: String,
    /// Who is in it, beside this user
    users: Vec<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, ClapArgs)]
pub(super) struct One {
    /// @user, '#channel' or the number of a conversation
    conversation: Target,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, ClapArgs)]
pub(super) struct User {
    /// The number of a group
    conversation: Target,
    /// The user's name
    #[arg(id = "member", value_name = "USER")]
    user: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, ClapArgs)]
pub(super) struct SetRole {
    /// The number of a group
    conversation: Target,
    /// The user's name
    #[arg(id = "member", value_name = "USER")]
    user: String,
    /// What the user is to be
    #[arg(value_parser = ["reader", "member", "admin", "owner"])]
    role: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, ClapArgs)]
pub(super) struct SetRetention {
    /// @user, '#channel' or the number of a conversation
    conversation: Target,
    /// Keeps entries for good, for a time, or until every device has them
    #[arg(value_parser = ["keep", "for", "delivered"], requires_if("for", "time"), requires_if("delivered", "time"))]
    mode: Option<String>,
    /// How long; with `delivered`, how long at the longest
    #[arg(value_parser = humantime::parse_duration)]
    time: Option<std::time::Duration>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, ClapArgs)]
pub(super) struct SetLabel {
    /// The number of a group
    conversation: Target,
    /// What it is to be called
    label: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, ClapArgs)]
pub(super) struct SetLevel {
    /// @user, '#channel' or the number of a conversation
    conversation: Target,
    /// Everything, only that there is something, or that only with something else
    #[arg(value_enum)]
    level: Wants,
    #[command(flatten)]
    common: Common,
}

/// How much of a conversation a device wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Wants {
    Full,
    Heads,
    None,
}

impl Wants {
    /// The wire's word for it.
    pub(super) fn wire(self) -> Level {
        match self {
            Self::Full => Level::Full,
            Self::Heads => Level::HeadsOnly,
            Self::None => Level::Nothing,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(super) struct History {
    /// @user, '#channel' or the number of a conversation
    conversation: Target,
    /// How many entries at most
    #[arg(long, default_value_t = 20)]
    limit: u64,
    /// Begin with this seq and go towards newer ones, instead of ending with the newest
    #[arg(long, value_name = "SEQ")]
    from: Option<u64>,
    /// Messages as they are now: edits and reactions with what they are about, what was recalled or hidden left out
    #[arg(long)]
    compact: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Join {
    /// '#channel' or the number of a conversation
    conversation: Target,
    /// The key of a group
    #[arg(long)]
    key: Option<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Edit {
    /// @user, '#channel' or the number of a conversation
    conversation: Target,
    /// The message's number in it
    seq: u64,
    /// What it is to say
    text: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Message {
    /// @user, '#channel' or the number of a conversation
    conversation: Target,
    /// The message's number in it
    seq: u64,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, ClapArgs)]
pub(super) struct React {
    /// @user, '#channel' or the number of a conversation
    conversation: Target,
    /// The message's number in it
    seq: u64,
    /// A sign, or a short word
    #[arg(default_value = "")]
    reaction: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, ClapArgs)]
pub(super) struct SetInfo {
    /// The number of a group
    conversation: Target,
    /// What it is to say of itself; the rest stays as it is
    #[arg(long)]
    description: Option<String>,
    /// Where its picture is, as the clients know it; the rest stays as it is
    #[arg(long)]
    picture: Option<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Ban {
    /// The number of a group
    conversation: Target,
    /// The user's name
    #[arg(id = "member", value_name = "USER")]
    user: String,
    /// Lets the user in again
    #[arg(long)]
    lift: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, ClapArgs)]
pub(super) struct JoinKey {
    /// The number of a group
    conversation: Target,
    /// Takes the key away: nobody joins any more
    #[arg(long)]
    off: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, ClapArgs)]
struct Common {
    /// Lines of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: ConnectArgs,
}

/// The most of anything that one page holds.
const PAGE: u32 = 200;

pub(super) async fn run(command: Command) -> Result<(), Fail> {
    let common = match &command {
        Command::List(List { common, .. })
        | Command::CreateGroup(CreateGroup { common, .. })
        | Command::Open(One { common, .. })
        | Command::Members(One { common, .. })
        | Command::Add(User { common, .. })
        | Command::Remove(User { common, .. })
        | Command::Role(SetRole { common, .. })
        | Command::Join(Join { common, .. })
        | Command::Edit(Edit { common, .. })
        | Command::Recall(Message { common, .. })
        | Command::React(React { common, .. })
        | Command::Receipts(One { common, .. })
        | Command::Info(SetInfo { common, .. })
        | Command::Ban(Ban { common, .. })
        | Command::JoinKey(JoinKey { common, .. })
        | Command::Retention(SetRetention { common, .. })
        | Command::Settings(SetSettings { common, .. })
        | Command::Hide(Hide { common, .. })
        | Command::Policy(SetPolicy { common, .. })
        | Command::Leave(One { common, .. })
        | Command::Label(SetLabel { common, .. })
        | Command::Level(SetLevel { common, .. })
        | Command::History(History { common, .. }) => common,
    };
    let device = common.connection.device("conversation")?;
    let mut config = common.connection.config(&device.name)?;
    config.start = Start::Fresh;
    let (client, deliveries, _) = common.connection.connect(config).await?;
    drop(deliveries);
    let json = common.json;
    match &command {
        Command::List(args) => list(&client, args.limit, json).await?,
        Command::CreateGroup(args) => {
            let ack = client.create_group(&args.label, &args.users).await?.await?;
            print_id(ack.conversation, json)?;
        }
        Command::Open(args) => print_id(args.conversation.open(&client).await?, json)?,
        Command::Members(args) => members(&client, args.conversation.open(&client).await?, json).await?,
        Command::Add(args) => set_role(&client, &args.conversation, &args.user, Role::Member).await?,
        Command::Remove(args) => set_role(&client, &args.conversation, &args.user, Role::None).await?,
        Command::Role(args) => set_role(&client, &args.conversation, &args.user, role(&args.role)).await?,
        Command::Join(args) => {
            let conversation = args.conversation.open(&client).await?;
            match &args.key {
                Some(key) => done(client.join_group(conversation, key.clone()).await).await?,
                None => done(client.join(conversation).await).await?,
            }
        }
        Command::Leave(args) => done(client.leave(args.conversation.open(&client).await?).await).await?,
        Command::Label(args) => {
            done(client.set_label(args.conversation.open(&client).await?, &args.label).await).await?;
        }
        Command::Level(args) => {
            let conversation = args.conversation.open(&client).await?;
            stored(client.set_level(conversation, args.level.wire()).await, json).await?;
        }
        Command::History(args) => history(&client, args).await?,
        Command::Edit(args) => {
            let conversation = args.conversation.open(&client).await?;
            stored(client.edit(conversation, args.seq, args.text.clone()).await, json).await?;
        }
        Command::Recall(args) => {
            let conversation = args.conversation.open(&client).await?;
            stored(client.recall(conversation, args.seq).await, json).await?;
        }
        Command::React(args) => {
            let conversation = args.conversation.open(&client).await?;
            stored(client.react(conversation, args.seq, &args.reaction).await, json).await?;
        }
        Command::Receipts(args) => receipts(&client, args.conversation.open(&client).await?, json).await?,
        Command::Info(args) => info(&client, args).await?,
        Command::Retention(args) => retention(&client, args).await?,
        Command::Settings(args) => settings(&client, args).await?,
        Command::Policy(args) => policy(&client, args).await?,
        Command::Hide(args) => {
            let conversation = args.conversation.open(&client).await?;
            stored(client.hide(conversation, args.seq, args.undo).await, json).await?;
        }
        Command::Ban(args) => {
            let conversation = args.conversation.open(&client).await?;
            stored(client.ban(conversation, &args.user, args.lift).await, json).await?;
        }
        Command::JoinKey(args) => {
            let conversation = args.conversation.open(&client).await?;
            let key = if args.off { String::new() } else { join_key()? };
            done(client.set_join_key(conversation, key.clone()).await).await?;
            print_join_key(conversation, &key, json)?;
        }
    }
    client.close().await;
    Ok(())
}

async fn done(publication: Result<Publication, PublishError>) -> Result<(), Fail> {
    publication?.await?;
    Ok(())
}

/// Waits for an action, and with JSON prints the seq of its entry.
async fn stored(publication: Result<Publication, PublishError>, json: bool) -> Result<(), Fail> {
    let ack = publication?.await?;
    if json {
        writeln!(io::stdout(), "{}", serde_json::json!({ "seq": ack.seq, "time": ack.time }))?;
    }
    Ok(())
}

async fn set_role(client: &Client, conversation: &Target, user: &str, role: Role) -> Result<(), Fail> {
    let conversation = conversation.open(client).await?;
    done(client.set_role(conversation, user, role).await).await
}

fn role(name: &str) -> Role {
    Role::from_str_name(&name.to_ascii_uppercase()).unwrap_or(Role::None)
}

fn print_id(conversation: u64, json: bool) -> Result<(), Fail> {
    let mut out = io::stdout();
    if json {
        writeln!(out, "{}", serde_json::json!({ "conversation": conversation }))?;
    } else {
        writeln!(out, "{conversation}")?;
    }
    Ok(())
}

/// How a conversation is called: as one would name it on the command line, or by its label.
pub(super) fn name(conversation: &Conversation) -> String {
    match conversation.kind() {
        ConversationKind::Direct => format!("@{}", conversation.label),
        ConversationKind::Channel => format!("#{}", conversation.label),
        ConversationKind::Inbox => "inbox".to_owned(),
        ConversationKind::Group | ConversationKind::Unknown => conversation.label.clone(),
    }
}

/// The lower-case name of a role.
pub(super) fn role_name(role: Role) -> String {
    role.as_str_name().to_ascii_lowercase()
}

async fn list(client: &Client, limit: u32, json: bool) -> Result<(), Fail> {
    let mut out = io::stdout();
    let (mut before, mut left) = (0, limit);
    while left > 0 {
        let page = client.conversations(before, left.min(PAGE)).await?;
        for one in &page.conversations {
            if json {
                let line = serde_json::json!({
                    "conversation": one.id,
                    "kind": one.kind().as_str_name().to_ascii_lowercase(),
                    "label": one.label,
                    "role": role_name(one.role()),
                    "head_seq": one.head_seq,
                    "mark": one.mark,
                    "level": one.level().as_str_name().to_ascii_lowercase(),
                    "unread": one.unread,
                    "members": one.members,
                    "mentions": one.mentions,
                    "pinned": one.settings.is_some_and(|settings| settings.pinned),
                    "archived": one.settings.is_some_and(|settings| settings.archived),
                    "muted_until": one.settings.map_or(0, |settings| settings.muted_until),
                    "marked_unread": one.settings.is_some_and(|settings| settings.marked_unread),
                });
                writeln!(out, "{line}")?;
            } else {
                let unread = if one.unread == 0 { String::new() } else { format!("{} unread", one.unread) };
                writeln!(out, "{:>12}  {:<32} {:>8} entries  {unread}", one.id, name(one), one.head_seq)?;
            }
        }
        left = left.saturating_sub(u32::try_from(page.conversations.len()).unwrap_or(u32::MAX));
        before = page.next;
        if before == 0 {
            break;
        }
    }
    if left == limit && limit > 0 && !json {
        eprintln!("there is none; a channel is listed once it is joined: longwire conversation join '#NAME'");
    }
    Ok(())
}

async fn members(client: &Client, conversation: u64, json: bool) -> Result<(), Fail> {
    let mut out = io::stdout();
    let mut after = 0;
    loop {
        let page = client.members(conversation, after, PAGE).await?;
        for member in &page.members {
            let role = role_name(member.role());
            if json {
                writeln!(out, "{}", serde_json::json!({ "user": member.user, "name": member.name, "role": role }))?;
            } else {
                writeln!(out, "{:<32} {role}", member.name)?;
            }
        }
        after = page.next;
        if after == 0 {
            return Ok(());
        }
    }
}
