//! `longwire conversation`: lists, makes and changes conversations.

use std::io::{self, Write as _};

use clap::{Args as ClapArgs, Subcommand};
use longwire_client::packet::{self, Conversation, ConversationKind, DeviceChangeKind, EntryKind, Role, item};
use longwire_client::{Client, Direction, Publication, PublishError, Start};

use super::Fail;
use super::connect::ConnectArgs;
use super::subscribe::json;
use super::target::Target;

const EXAMPLES: &str = "\
Examples:
  longwire conversation list
  longwire conversation create-group 'Lunch' alice bob
  longwire conversation history @bob --limit 50
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
    /// Joins a channel: what is said there is kept for this user's devices
    Join(One),
    /// Leaves a conversation
    Leave(One),
    /// Gives a group another label
    Label(SetLabel),
    /// Prints what was said, the oldest first
    History(History),
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
    user: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, ClapArgs)]
pub(super) struct SetRole {
    /// The number of a group
    conversation: Target,
    /// The user's name
    user: String,
    /// What the user is to be
    #[arg(value_parser = ["reader", "member", "admin", "owner"])]
    role: String,
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
pub(super) struct History {
    /// @user, '#channel' or the number of a conversation
    conversation: Target,
    /// How many entries at most
    #[arg(long, default_value_t = 20)]
    limit: u64,
    /// Begin with this seq and go towards newer ones, instead of ending with the newest
    #[arg(long, value_name = "SEQ")]
    from: Option<u64>,
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
        | Command::Join(One { common, .. })
        | Command::Leave(One { common, .. })
        | Command::Label(SetLabel { common, .. })
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
        Command::Join(args) => done(client.join(args.conversation.open(&client).await?).await).await?,
        Command::Leave(args) => done(client.leave(args.conversation.open(&client).await?).await).await?,
        Command::Label(args) => {
            done(client.set_label(args.conversation.open(&client).await?, &args.label).await).await?;
        }
        Command::History(args) => history(&client, args).await?,
    }
    client.close().await;
    Ok(())
}

async fn done(publication: Result<Publication, PublishError>) -> Result<(), Fail> {
    publication?.await?;
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
                    "unread": one.unread,
                    "members": one.members,
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

async fn history(client: &Client, args: &History) -> Result<(), Fail> {
    let conversation = args.conversation.open(client).await?;
    let mut items: Vec<packet::Item> = Vec::new();
    let (mut at, direction) = match args.from {
        Some(from) => (from.max(1), Direction::Forwards),
        None => (0, Direction::Backwards),
    };
    while (items.len() as u64) < args.limit {
        let left = args.limit - items.len() as u64;
        let page = client.history(conversation, at, u32::try_from(left).unwrap_or(PAGE).min(PAGE), direction).await?;
        items.extend(page.items);
        at = page.next_seq;
        if at == 0 {
            break;
        }
    }
    if direction == Direction::Backwards {
        items.reverse();
    }
    let mut out = io::stdout();
    for item in items {
        let (entry, skipped) = match item.kind {
            Some(item::Kind::Entry(entry)) => (Some(entry), None),
            Some(item::Kind::Own(own)) => (own.entry, None),
            Some(item::Kind::Head(head)) => (None, Some(head)),
            _ => (None, None),
        };
        match (entry, skipped) {
            (Some(entry), _) if args.common.json => writeln!(out, "{}", json(&entry))?,
            (Some(entry), _) => writeln!(out, "{:>8}  {}", entry.seq, words(&entry))?,
            (None, Some(head)) if !args.common.json => {
                writeln!(out, "{:>8}  ({} to {} are not there)", "", head.from_seq, head.to_seq)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// What happened to a device.
pub(super) fn device_change(kind: DeviceChangeKind) -> &'static str {
    match kind {
        DeviceChangeKind::DeviceAdded => "is new",
        DeviceChangeKind::DeviceNamed => "has another label",
        DeviceChangeKind::DeviceRevoked => "was revoked",
        DeviceChangeKind::DeviceExpired => "was not seen for 60 days",
    }
}

/// An entry in one line of words.
pub(super) fn words(entry: &packet::Entry) -> String {
    match entry.kind() {
        EntryKind::Message => String::from_utf8_lossy(&entry.content).into_owned(),
        EntryKind::Membership => match &entry.membership {
            Some(membership) if membership.role() == Role::None => format!("* {} is no longer here", membership.name),
            Some(membership) => format!("* {} is now {}", membership.name, role_name(membership.role())),
            None => "* a membership changed".to_owned(),
        },
        EntryKind::Label => format!("* the label is now {:?}", entry.label),
        EntryKind::Joined => "* joined a conversation".to_owned(),
        EntryKind::Left => "* left a conversation".to_owned(),
        EntryKind::Edit => format!("* {} is now: {}", entry.edit, String::from_utf8_lossy(&entry.content)),
        EntryKind::Recall => format!("* {} was recalled", entry.recall.as_ref().map_or(0, |recall| recall.seq)),
        EntryKind::Reaction => match &entry.reaction {
            Some(react) if react.reaction.is_empty() => format!("* the reaction to {} was taken back", react.seq),
            Some(react) => format!("* {} to {}", react.reaction, react.seq),
            None => "* a reaction".to_owned(),
        },
        EntryKind::Info => "* the group says something else of itself".to_owned(),
        EntryKind::Mentioned => "* mentioned in a conversation".to_owned(),
        EntryKind::Settings => "* set how a conversation is shown".to_owned(),
        EntryKind::Hidden => "* hid a message, or showed it again".to_owned(),
        EntryKind::Profile => "* changed the own profile".to_owned(),
        EntryKind::Contact => "* changed a contact".to_owned(),
        EntryKind::Blocked => match &entry.blocked {
            Some(blocked) if blocked.undone => format!("* {} is no longer blocked", blocked.name),
            Some(blocked) => format!("* {} is blocked", blocked.name),
            None => "* changed who is blocked".to_owned(),
        },
        EntryKind::Device => match &entry.device {
            Some(device) => format!("* device {}: {}", device.name, device_change(device.kind())),
            None => "* a device changed".to_owned(),
        },
    }
}
