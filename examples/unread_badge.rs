//! A badge: how much is unread in all, asked for when something came, and nothing more than what changed.
//!
//! The token is in `LONGWIRE_TOKEN`, the file of authorities for TLS in `LONGWIRE_CA`.
//!
//! ```text
//! cargo run --example unread_badge -- longwire://127.0.0.1:14000
//! ```

use std::error::Error;

use longwire_client::{Address, Client, Config, Deliveries, Dialer, Start, Trust};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Some(address) = std::env::args().nth(1) else { return Err("ADDRESS".into()) };
    let address: Address = address.parse()?;
    // A plain address (longwire://) needs none.
    let trust = std::env::var_os("LONGWIRE_CA").map_or(Ok(Trust::Nobody), |file| Trust::from_file(file.as_ref()))?;
    let dialer = Dialer::new(&address, &trust)?;
    let mut config = Config::new(dialer, std::env::var("LONGWIRE_TOKEN")?, "badge");
    config.start = Start::Fresh;
    let (client, deliveries) = Client::start(config)?;
    show(&client, deliveries, |unread, mentions| println!("{unread} unread, {mentions} of them for you")).await
}

/// Shows the badge, and again whenever it may be another.
///
/// # Errors
/// When the list cannot be read.
pub(crate) async fn show(
    client: &Client,
    mut deliveries: Deliveries,
    mut badge: impl FnMut(u64, u64),
) -> Result<(), Box<dyn Error>> {
    let mut page = client.conversations(0, 1).await?;
    let mut shown = (page.unread_total, page.mentions_total);
    badge(shown.0, shown.1);
    while let Some(delivery) = deliveries.next().await {
        delivery.stored();
        // The first page says both totals (SPEC R8-11); of the conversations themselves none is asked for twice.
        page = client.conversations_since(page.changes, 0, 1).await?;
        let now = (page.unread_total, page.mentions_total);
        if now != shown {
            shown = now;
            badge(shown.0, shown.1);
        }
    }
    Ok(())
}
