//! The Rust client of Longwire: a handle and one task around the session.
//!
//! [`Client::start`] gives two ends. The [`Client`] publishes and asks; the [`Deliveries`] are what the broker sends.
//! Between them stands one task that owns the socket, the session and the outbox, and that connects, reconnects with a
//! growing, jittered delay, repeats what is unanswered and reads on from where the application stands.
//!
//! ```no_run
//! use longwire_client::{Address, Client, Config, Dialer, Item, Outbox, Trust};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let address: Address = "longwires://broker.example.org".parse()?;
//! let trust = Trust::from_file("authorities.pem".as_ref())?;
//! let mut config = Config::new(Dialer::new(&address, &trust)?, std::env::var("LONGWIRE_TOKEN")?, "laptop");
//! config.outbox = Outbox::File("outbox.redb".into());
//! let (client, mut deliveries) = Client::start(config)?;
//!
//! // Stored locally when `publish` resolves; stored for good when the publication does.
//! let conversation = client.open_direct("bob").await?.await?.conversation;
//! let ack = client.publish(conversation, "hello, bob").await?.await?;
//! println!("{} is seq {}", ack.message_id, ack.seq);
//!
//! while let Some(delivery) = deliveries.next().await {
//!     for item in &delivery.items {
//!         if let Item::Entry(entry) = item {
//!             println!("{}: {}", entry.seq, String::from_utf8_lossy(&entry.content));
//!         }
//!     }
//!     // Store the items, and with them the cursor; then:
//!     delivery.stored();
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Who has a password and no token starts with a [`Login`], and keeps the token that the broker makes:
//!
//! ```no_run
//! use longwire_client::{Config, Dialer, Login, TokenSource};
//!
//! # fn example(dialer: Dialer, password: String, kept: Option<String>) {
//! let mut login = Login::new("ada", password).keeping(|token| drop(std::fs::write("token", token)));
//! if let Some(token) = kept {
//!     login = login.with_token(token);
//! }
//! let config = Config::new(dialer, TokenSource::Login(login), "laptop");
//! # }
//! ```
//!
//! Whole programs stand in the folder `examples` of the repository: a bot in groups (`group_bot`), a device with little memory
//! that leaves a will (`constrained`), and a badge of what is unread (`unread_badge`).
//!
//! # What is promised
//!
//! * A publication that resolves to an ack is on the broker's disk. Until then it stays in the outbox; from an
//!   [`Outbox::File`] it is sent again after a restart, under its old message id, so it is never stored twice.
//! * An outbox file that was restored from an older copy is found out by the broker. It sends nothing until it has
//!   learned from history what of it is stored, and tells what became of it: [`Item::Settled`].
//! * Publishes of one conversation are stored in the order in which they were published.
//! * Within the life of a client no entry is handed over twice after it was stored, however often the connection is
//!   lost; none is left out without an [`Item::Skipped`] or an [`Item::Reset`] that says so.
//! * Memory is bounded: by [`OutboxLimits`] on the way out, by the windows of [`Config`] on the way in.

mod account;
mod address;
mod backoff;
mod command;
mod config;
mod delivery;
mod dial;
mod error;
mod groups;
mod handle;
mod intake;
mod item;
mod link;
mod login;
mod messages;
mod outbox;
mod receipts;
mod requests;
mod settle;
mod signals;
mod state;
mod task;
mod trust;

pub use longwire_protocol as protocol;
pub use longwire_protocol::packet;

pub use address::{Address, AddressError, PORT_DEFAULT, Security};
pub use config::{Config, Handover, Start, TokenFuture, TokenSource};
pub use delivery::{Deliveries, Delivery};
pub use dial::{ByteStream, Dialer, Dialing};
pub use error::{Failure, GiveUpError, OutboxError, PublishError, RequestError, StartError};
pub use handle::{Client, Direction, Publication};
pub use item::{Item, Reset};
pub use login::Login;
pub use outbox::{Outbox, OutboxLimits, outbox_path};
pub use settle::Settled;
pub use signals::{Signal, Signals};
pub use state::State;
pub use trust::{ALPN, Trust, TrustError, Untrusted};
