//! What a group says of itself, and the key with which it is joined.

use std::io::{self, Write as _};

use longwire_client::Client;
use longwire_client::packet::{Conversation, Info, Role};

use super::{Fail, PAGE, SetInfo, role_name, stored};

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

fn print_info(info: &Info, json: bool) -> Result<(), Fail> {
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

/// A conversation of this user, as the list has it.
async fn find(client: &Client, conversation: u64) -> Result<Conversation, Fail> {
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
