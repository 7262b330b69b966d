//! A device with little memory on a thin line: small windows, heads in place of a chatty group's messages, and a will that
//! tells when it is lost.
//!
//! The token is in `LONGWIRE_TOKEN`, the file of authorities for TLS in `LONGWIRE_CA`.
//!
//! ```text
//! cargo run --example constrained -- longwire://127.0.0.1:14000 ada 12289
//! ```

use std::error::Error;
use std::time::Duration;

use longwire_client::packet::{Level, Window};
use longwire_client::{Address, Client, Config, Deliveries, Dialer, Item, Start, Trust};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(address), Some(owner), Some(group)) = (args.next(), args.next(), args.next()) else {
        return Err("ADDRESS OWNER GROUP".into());
    };
    let address: Address = address.parse()?;
    // A plain address (longwire://) needs none.
    let trust = std::env::var_os("LONGWIRE_CA").map_or(Ok(Trust::Nobody), |file| Trust::from_file(file.as_ref()))?;
    let dialer = Dialer::new(&address, &trust)?;
    let config = constrained(Config::new(dialer, std::env::var("LONGWIRE_TOKEN")?, "boiler"));
    let (client, deliveries) = Client::start(config)?;
    watch_over(&client, deliveries, &owner, group.parse()?).await
}

/// No more than 4 KiB are under way in each lane, nothing larger than 1 KiB comes at all, and a sign of life every ten minutes.
#[must_use]
pub(crate) fn constrained(mut config: Config) -> Config {
    let window = Window { items: 4, bytes: 4 << 10 };
    (config.express, config.bulk) = (window, window);
    config.item_bytes_max = 1 << 10;
    config.heartbeat = Duration::from_secs(600);
    // The broker remembers how far this device came: it stores nothing itself.
    config.start = Start::Stored;
    config
}

/// Leaves a will with its owner, wants of the group only to know that there is something, and says what came.
///
/// # Errors
/// When the broker refuses one of these, or the client ends.
pub(crate) async fn watch_over(
    client: &Client,
    mut deliveries: Deliveries,
    owner: &str,
    group: u64,
) -> Result<(), Box<dyn Error>> {
    let direct = client.open_direct(owner).await?.await?.conversation;
    client.set_will(direct, "the boiler does not answer", Duration::from_secs(120)).await?.await?;
    client.set_level(group, Level::HeadsOnly).await?.await?;
    client.publish(direct, "the boiler is here").await?.await?;
    while let Some(delivery) = deliveries.next().await {
        for item in &delivery.items {
            match item {
                Item::Entry(entry) => println!("{}: {}", entry.sender, String::from_utf8_lossy(&entry.content)),
                Item::Skipped(head) => println!("{} has {} to {}", head.conversation, head.from_seq, head.to_seq),
                _ => {}
            }
        }
        delivery.stored();
    }
    Ok(())
}
