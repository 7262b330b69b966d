//! How a user has a conversation shown, and what a group lets its members do: read, changed in one point, and set as a whole.

use std::io::{self, Write as _};
use std::time::{Duration, UNIX_EPOCH};

use clap::Args as ClapArgs;
use longwire_client::Client;
use longwire_client::packet::Settings;

use super::group::{find, print_info};
use super::{Common, Fail, Target, role, stored};

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct SetSettings {
    /// @user, '#channel' or the number of a conversation
    pub(super) conversation: Target,
    /// No notifications, for good
    #[arg(long, conflicts_with_all = ["mute_for", "unmute"])]
    mute: bool,
    /// No notifications for so long
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, conflicts_with = "unmute")]
    mute_for: Option<Duration>,
    /// Notifications again
    #[arg(long)]
    unmute: bool,
    /// Among the first in the list
    #[arg(long, conflicts_with = "unpin")]
    pin: bool,
    /// In its place again
    #[arg(long)]
    unpin: bool,
    /// Out of the way
    #[arg(long, conflicts_with = "unarchive")]
    archive: bool,
    /// Among the others again
    #[arg(long)]
    unarchive: bool,
    /// Shown as unread until it is looked at
    #[arg(long)]
    unread: bool,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct Hide {
    /// @user, '#channel' or the number of a conversation
    pub(super) conversation: Target,
    /// The message's number in it
    pub(super) seq: u64,
    /// Shows it again
    #[arg(long)]
    pub(super) undo: bool,
    #[command(flatten)]
    pub(super) common: Common,
}

/// Later than this, after a log's birth, is no time that a calendar shows: eight thousand years.
const YEAR_9999_MS: u64 = 250_000_000_000_000;

/// Who may do something in a group.
const ROLES: [&str; 3] = ["member", "admin", "owner"];

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct SetPolicy {
    /// The number of a group
    pub(super) conversation: Target,
    /// Who publishes: this role and those above it
    #[arg(long, value_parser = ROLES)]
    publishes: Option<String>,
    /// Who adds members
    #[arg(long, value_parser = ROLES)]
    adds: Option<String>,
    /// Who sets label, picture and description
    #[arg(long, value_parser = ROLES)]
    informs: Option<String>,
    /// For how long members may recall what they sent; 0s: always
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    recall_within: Option<Duration>,
    /// Members are not told of each other's marks
    #[arg(long, conflicts_with = "show_marks")]
    hide_marks: bool,
    /// Members are told of each other's marks
    #[arg(long)]
    show_marks: bool,
    #[command(flatten)]
    pub(super) common: Common,
}

/// Prints how this user has a conversation shown, or changes what the arguments name.
pub(super) async fn settings(client: &Client, args: &SetSettings) -> Result<(), Fail> {
    let conversation = args.conversation.open(client).await?;
    let before = find(client, conversation).await?.settings.unwrap_or_default();
    let clock = client.connected().await.map_err(|state| Fail::ended(&state))?;
    let after = args.change(before, clock.now);
    if args.unread || after != before {
        return stored(client.set_settings(conversation, after).await, args.common.json).await;
    }
    let is_muted = before.muted_until > clock.now;
    let is = [
        ("muted", is_muted),
        ("pinned", before.pinned),
        ("archived", before.archived),
        ("marked_unread", before.marked_unread),
    ];
    let mut out = io::stdout();
    if args.common.json {
        let words = is.map(|(word, is)| (word.to_owned(), is.into()));
        let until = ("muted_until".to_owned(), before.muted_until.into());
        writeln!(out, "{}", serde_json::Value::Object(words.into_iter().chain([until]).collect()))?;
        return Ok(());
    }
    for (word, is) in is {
        let until =
            if word == "muted" && is { until_words(clock.birth_unix_ms, before.muted_until) } else { String::new() };
        writeln!(out, "{word:<14} {}{until}", if is { "yes" } else { "no" })?;
    }
    Ok(())
}

/// Until when a conversation is muted, in UTC; nothing where it is for good.
fn until_words(birth_unix_ms: u64, muted_until: u64) -> String {
    let until = UNIX_EPOCH.checked_add(Duration::from_millis(birth_unix_ms.saturating_add(muted_until)));
    // What lies beyond the calendar is for good.
    let until = until.filter(|_| muted_until < YEAR_9999_MS).map(humantime::format_rfc3339_seconds);
    until.map_or_else(String::new, |until| format!(", until {until}"))
}

impl SetSettings {
    /// What is to be set, where so much was set before, at this time.
    fn change(&self, before: Settings, now: u64) -> Settings {
        let switch = |on: bool, off: bool, was: bool| (was || on) && !off;
        let muted_until = match (self.mute, self.unmute, self.mute_for) {
            (true, ..) => u64::MAX,
            (_, true, _) => 0,
            (.., Some(time)) => now.saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            _ => before.muted_until,
        };
        Settings {
            muted_until,
            pinned: switch(self.pin, self.unpin, before.pinned),
            archived: switch(self.archive, self.unarchive, before.archived),
            marked_unread: before.marked_unread || self.unread,
        }
    }
}

/// Prints what a group lets its members do, or changes what the arguments name.
pub(super) async fn policy(client: &Client, args: &SetPolicy) -> Result<(), Fail> {
    let conversation = args.conversation.open(client).await?;
    let mut info = find(client, conversation).await?.info.unwrap_or_default();
    let before = info.policy.unwrap_or_default();
    let mut policy = before;
    if let Some(name) = &args.publishes {
        policy.set_publishes(role(name));
    }
    if let Some(name) = &args.adds {
        policy.set_adds(role(name));
    }
    if let Some(name) = &args.informs {
        policy.set_informs(role(name));
    }
    if let Some(time) = args.recall_within {
        policy.recall_within_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    }
    policy.hides_marks = (policy.hides_marks || args.hide_marks) && !args.show_marks;
    if policy == before {
        return print_info(&info, args.common.json);
    }
    info.policy = Some(policy);
    stored(client.set_info(conversation, info).await, args.common.json).await
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SetSettings,
    }

    #[test]
    fn what_is_not_named_stays_as_it_was() {
        let before = Settings { muted_until: 7, pinned: true, ..Settings::default() };
        let change = |flags: &[&str]| {
            let line = ["settings", "5"].iter().chain(flags);
            Line::try_parse_from(line).expect("they go together").args.change(before, 1_000)
        };
        assert_eq!(change(&[]), before);
        assert_eq!(change(&["--unpin", "--archive"]), Settings { pinned: false, archived: true, ..before });
        assert_eq!(change(&["--mute"]).muted_until, u64::MAX);
        assert_eq!(change(&["--mute-for", "2s"]).muted_until, 3_000);
        assert_eq!(until_words(1_700_000_000_000, 5_000), ", until 2023-11-14T22:13:25Z");
        assert_eq!(until_words(1_700_000_000_000, u64::MAX), "", "for good");
        assert!(Line::try_parse_from(["settings", "5", "--mute-for", "8x"]).is_err());
        assert!(Line::try_parse_from(["settings", "5", "--mute-for", "8h", "--mute"]).is_err());
        assert_eq!(change(&["--unmute", "--unread"]), Settings { muted_until: 0, marked_unread: true, ..before });
        assert!(Line::try_parse_from(["settings", "5", "--pin", "--unpin"]).is_err());
    }
}
