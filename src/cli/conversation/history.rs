//! What was said, what became of it, and who has read how far.

use std::io::{self, Write as _};
use std::time::Duration;

use longwire_client::packet::{self, DeviceChangeKind, EntryKind, HeadReason, RetentionMode, Role, item};
use longwire_client::{Client, Direction};

use super::super::subscribe::json;
use super::{Fail, History, PAGE, role_name};

pub(super) async fn history(client: &Client, args: &History) -> Result<(), Fail> {
    let conversation = args.conversation.open(client).await?;
    let mut items: Vec<packet::Item> = Vec::new();
    let (mut at, direction) = match args.from {
        Some(from) => (from.max(1), Direction::Forwards),
        None => (0, Direction::Backwards),
    };
    while (items.len() as u64) < args.limit {
        let left = args.limit - items.len() as u64;
        let limit = u32::try_from(left).unwrap_or(PAGE).min(PAGE);
        let page = if args.compact {
            client.history_compact(conversation, at, limit, direction).await?
        } else {
            client.history(conversation, at, limit, direction).await?
        };
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
            (Some(entry), _) => writeln!(out, "{:>8}  {}{}", entry.seq, words(&entry), since(&entry))?,
            (None, Some(head)) if !args.common.json && head.reason() != HeadReason::Folded => {
                writeln!(out, "{:>8}  ({} to {} are not there)", "", head.from_seq, head.to_seq)?;
            }
            _ => {}
        }
    }
    Ok(())
}

pub(super) async fn receipts(client: &Client, conversation: u64, json: bool) -> Result<(), Fail> {
    let mut out = io::stdout();
    let mut after = 0;
    loop {
        let page = client.receipts(conversation, after, PAGE).await?;
        let users: Vec<u64> = page.marks.iter().map(|mark| mark.user).collect();
        let names = client.users(users).await?;
        for mark in &page.marks {
            let name = names.iter().find(|member| member.user == mark.user).map_or("", |member| &member.name);
            if json {
                let (user, seq, delivered) = (mark.user, mark.seq, mark.delivered);
                let line = serde_json::json!({ "user": user, "name": name, "seq": seq, "delivered": delivered });
                writeln!(out, "{line}")?;
            } else {
                writeln!(out, "{name:<32} read {:>8}  delivered {:>8}", mark.seq, mark.delivered)?;
            }
        }
        after = page.next;
        if after == 0 {
            return Ok(());
        }
    }
}

/// How long entries are kept, in words.
pub(in crate::cli) fn retention_words(retention: &packet::Retention) -> String {
    let time = humantime::format_duration(Duration::from_millis(retention.age_ms));
    match retention.mode() {
        RetentionMode::Keep => "entries are kept for good".to_owned(),
        RetentionMode::KeepFor => format!("entries are kept for {time}"),
        RetentionMode::UntilDelivered => format!("entries are kept until every device has them, {time} at the longest"),
    }
}

/// An entry in one line of words.
pub(in crate::cli) fn words(entry: &packet::Entry) -> String {
    match entry.kind() {
        EntryKind::Message => text(entry),
        EntryKind::Membership => match &entry.membership {
            Some(membership) if membership.banned => format!("* {} is banned", membership.name),
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
        EntryKind::Retention => format!("* {}", retention_words(&entry.retention.unwrap_or_default())),
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

/// What happened to a device.
fn device_change(kind: DeviceChangeKind) -> &'static str {
    match kind {
        DeviceChangeKind::DeviceAdded => "is new",
        DeviceChangeKind::DeviceNamed => "has another label",
        DeviceChangeKind::DeviceRevoked => "was revoked",
        DeviceChangeKind::DeviceExpired => "was not seen for 60 days",
    }
}

/// What a message says, and what is with it.
pub(in crate::cli) fn text(entry: &packet::Entry) -> String {
    let mut text = String::from_utf8_lossy(&entry.content).into_owned();
    if let Some(beside) = &entry.beside {
        if beside.forwarded {
            text.insert_str(0, "(forwarded) ");
        }
        for one in &beside.attachments {
            let name = if one.name.is_empty() { &one.reference } else { &one.name };
            text = format!("{text} [{name}]");
        }
    }
    text
}

/// What became of a message since, in the compact view.
fn since(entry: &packet::Entry) -> String {
    let Some(compacted) = &entry.compacted else { return String::new() };
    let edited = if compacted.edit == 0 { "" } else { "  (edited)" };
    let reactions = compacted.reactions.iter().map(|one| format!("  {} {}", one.reaction, one.count));
    reactions.fold(edited.to_owned(), |said, reaction| said + &reaction)
}
