//! What the application is handed: items, and the cursor that goes with them; and what it says of them.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::command::Command;
use crate::config::Handover;
use crate::intake::Shared;
use crate::item::Item;

/// Items, in the order they came, and the cursor behind them.
///
/// Store the items, then call [`Delivery::stored`]: the broker is told, and sends more. An application that stores
/// items and cursor in one transaction, and gives that cursor to [`Start::Own`] after a restart, gets everything exactly
/// once if it knows entries by conversation and seq: a cursor covers nothing that it has not stored, but what came
/// shortly before the cursor may come again after a restart. Any other gets everything at least once, in order.
///
/// Deliveries are stored in the order in which they came: storing one says that those before it are stored too. A
/// delivery that is dropped without [`Delivery::stored`] counts as not stored; after the next reconnect its items come
/// again. Within the life of a client nothing that was stored comes twice, however often the connection is lost.
///
/// While a delivery of an earlier connection is neither stored nor dropped, nothing of the next one is handed over: it
/// may be the same.
///
/// [`Start::Own`]: crate::Start::Own
/// [`Handover::WithCursor`]: crate::Handover::WithCursor
#[derive(Debug)]
#[must_use = "a delivery that is not stored comes again"]
pub struct Delivery {
    /// The items, oldest first.
    pub items: Vec<Item>,
    /// When it is there: a place from which nothing is missed once this delivery is stored. Opaque, at most 1 KiB.
    pub cursor: Option<Bytes>,
    pub(crate) number: u64,
    pub(crate) intake: Option<Arc<Shared>>,
}

impl Delivery {
    /// Says that the application has stored this delivery and those before it. Never blocks.
    pub fn stored(mut self) {
        if let Some(shared) = self.intake.take() {
            shared.settle(self.number, true);
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(shared) = self.intake.take() {
            shared.settle(self.number, false);
        }
    }
}

/// The receiving end of a client: what the broker delivers, one [`Delivery`] at a time. Dropping it says that this
/// application does not read: whatever comes is acked and forgotten.
#[derive(Debug)]
pub struct Deliveries {
    pub(crate) shared: Arc<Shared>,
    pub(crate) handover: Handover,
    /// Whoever reads keeps the client alive.
    pub(crate) _commands: mpsc::Sender<Command>,
}

impl Deliveries {
    /// The next delivery: everything that is there, up to the first cursor. `None` once the client is closed or failed
    /// and all that came before is handed over. Cancel safe: what is not returned stays.
    pub async fn next(&mut self) -> Option<Delivery> {
        let (number, items, cursor) = self.shared.next(self.handover).await?;
        Some(Delivery { items, cursor, number, intake: Some(Arc::clone(&self.shared)) })
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        self.shared.abandon();
    }
}
