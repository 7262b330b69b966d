//! A bot: whoever mentions it in a group is answered, also when it was away meanwhile; after a crash in between, twice.
//!
//! The token is in `LONGWIRE_TOKEN`, the file of authorities for TLS in `LONGWIRE_CA`.
//!
//! ```text
//! cargo run --example group_bot -- longwire://127.0.0.1:14000 bot.redb
//! ```

use std::error::Error;

use longwire_client::packet::{Beside, Entry, EntryKind};
use longwire_client::{Address, Client, Config, Deliveries, Dialer, Item, Outbox, Trust};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(address), Some(outbox)) = (args.next(), args.next()) else { return Err("ADDRESS OUTBOX".into()) };
    let address: Address = address.parse()?;
    // A plain address (longwire://) needs none.
    let trust = std::env::var_os("LONGWIRE_CA").map_or(Ok(Trust::Nobody), |file| Trust::from_file(file.as_ref()))?;
    let dialer = Dialer::new(&address, &trust)?;
    let mut config = Config::new(dialer, std::env::var("LONGWIRE_TOKEN")?, "bot");
    // Answers that were not acked are sent after a restart, and the cursor of what was answered is kept beside them.
    config.outbox = Outbox::File(outbox.into());
    let (client, deliveries) = Client::start(config)?;
    serve(&client, deliveries).await
}

/// Answers until the client ends.
///
/// # Errors
/// When the connection is refused for good, or an answer cannot be kept.
pub(crate) async fn serve(client: &Client, mut deliveries: Deliveries) -> Result<(), Box<dyn Error>> {
    let me = client.connected().await.map_err(|failure| failure.to_string())?.user;
    while let Some(delivery) = deliveries.next().await {
        for item in &delivery.items {
            if let Item::Entry(entry) = item
                && let Some((text, beside)) = answer(me, entry)
            {
                // In the outbox when this resolves: so it is safe to call the delivery stored.
                drop(client.publish_with(entry.conversation, text, beside).await?);
            }
        }
        delivery.stored();
    }
    Ok(())
}

/// What the bot says to an entry, if anything.
fn answer(me: u64, entry: &Entry) -> Option<(String, Beside)> {
    let is_meant = entry.beside.as_ref().is_some_and(|beside| beside.mentions.contains(&me));
    if entry.kind() != EntryKind::Message || entry.sender == me || !is_meant {
        return None;
    }
    let text = String::from_utf8_lossy(&entry.content);
    // Nobody's phone rings for a bot.
    let beside = Beside { reply_to: entry.seq, silent: true, ..Beside::default() };
    Some((format!("you said: {text}"), beside))
}
