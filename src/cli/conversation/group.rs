//! What a group says of itself, and the key with which it is joined.

use std::io::{self, Write as _};

use longwire_client::Client;
use longwire_client::packet::{Conversation, Info, Retention, RetentionMode, Role};

use super::history::retention_words;
use super::{Fail, PAGE, SetInfo, SetRetention, role_name, stored};

/// Prints what a group says of itself; with something to change, reads it first and sets the whole.
pub(super) async fn info(client: &Client, args: &SetInfo) -> Result<(), Fail> {
    let conversation = args.conversation.open(client).await?;
    let mut info = find(client, conversation).await?.info.unwrap_or_default();
    if args.description.is_some() || args.picture.is_some() {
        info.description = args.description.clone().unwrap_or(info.description);
        info.picture = args.picture.clone().unwrap_or(info.picture);
        return stored(client.set_info(conversation, info).await, args.common.json).await;
    }
    print_info(&info, args.common.json)
}

pub(super) fn print_info(info: &Info, json: bool) -> Result<(), Fail> {
    let mut out = io::stdout();
    let policy = info.policy.unwrap_or_default();
    let [publishes, adds, informs] =
        [(policy.publishes(), Role::Member), (policy.adds(), Role::Admin), (policy.informs(), Role::Admin)]
            .map(|(role, usual)| role_name(if role == Role::None { usual } else { role }));
    let past = policy.past().as_str_name().to_ascii_lowercase();
    if json {
        let line = serde_json::json!({
            "description": info.description,
            "picture": info.picture,
            "publishes": publishes,
            "adds": adds,
            "informs": informs,
            "recall_within_ms": policy.recall_within_ms,
            "past": past,
            "past_entries": policy.past_entries,
            "hides_marks": policy.hides_marks,
        });
        writeln!(out, "{line}")?;
        return Ok(());
    }
    for (what, value) in [
        ("description", &info.description),
        ("picture", &info.picture),
        ("publishes", &publishes),
        ("adds", &adds),
        ("informs", &informs),
        ("past", &past),
    ] {
        writeln!(out, "{what:<12} {value}")?;
    }
    Ok(())
}

/// Prints how long a conversation keeps its entries, or says it.
pub(super) async fn retention(client: &Client, args: &SetRetention) -> Result<(), Fail> {
    let conversation = args.conversation.open(client).await?;
    let Some(mode) = &args.mode else {
        let retention = find(client, conversation).await?.retention.unwrap_or_default();
        let line = match args.common.json {
            true => {
                let mode = retention.mode().as_str_name().to_ascii_lowercase();
                serde_json::json!({ "mode": mode, "age_ms": retention.age_ms }).to_string()
            }
            false => retention_words(&retention),
        };
        writeln!(io::stdout(), "{line}")?;
        return Ok(());
    };
    let mode = match mode.as_str() {
        "for" => RetentionMode::KeepFor,
        "delivered" => RetentionMode::UntilDelivered,
        _ => RetentionMode::Keep,
    };
    let age_ms = args.time.filter(|_| mode != RetentionMode::Keep).map_or(0, |time| time.as_millis() as u64);
    let retention = Retention { mode: mode.into(), age_ms };
    stored(client.set_retention(conversation, retention).await, args.common.json).await
}

/// A conversation of this user, as the list has it.
pub(super) async fn find(client: &Client, conversation: u64) -> Result<Conversation, Fail> {
    let mut before = 0;
    loop {
        let page = client.conversations(before, PAGE).await?;
        if let Some(found) = page.conversations.into_iter().find(|one| one.id == conversation) {
            return Ok(found);
        }
        before = page.next;
        if before == 0 {
            return Err(Fail::failed(format!("you are not in conversation {conversation}")));
        }
    }
}

/// A key to join a group with, chosen by chance.
pub(in crate::cli) fn join_key() -> Result<String, Fail> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Fail::failed("this machine gives no random bytes"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

pub(super) fn print_join_key(conversation: u64, key: &str, json: bool) -> Result<(), Fail> {
    let mut out = io::stdout();
    match (json, key) {
        (true, key) => writeln!(out, "{}", serde_json::json!({ "conversation": conversation, "key": key }))?,
        (false, "") => {}
        (false, key) => writeln!(out, "{key}")?,
    }
    Ok(())
}
