//! The one who is attacked: connected with one device, and written to by a friend. Its session goes on, whatever is done
//! to it, and gets every message in its order.

use std::time::Duration;

use bytes::Bytes;
use longwire_client::packet::{self, item, publish::Action};
use longwire_protocol::reason::Verdict;
use longwire_protocol::session::ClientEvent;
use tokio::time::{sleep, timeout};

use super::super::load::wire::{Wire, WireError, fresh};
use super::attack::Ground;

/// The device that it has.
pub(super) const DEVICE: &str = "phone";
/// How long a message may take to it.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two messages.
const EVERY: Duration = Duration::from_millis(50);

pub(super) struct Victim {
    pub(super) name: String,
    /// Its number at the broker.
    pub(super) user: u64,
    wire: Wire,
    friend: Wire,
    direct: u64,
}

impl Victim {
    /// Tries until both are connected.
    pub(super) async fn connected(ground: &Ground) -> Self {
        loop {
            match Self::new(ground).await {
                Ok(victim) => return victim,
                // A broker that goes as fast as it can may be too busy for a moment.
                Err(_) => sleep(EVERY).await,
            }
        }
    }

    async fn new(ground: &Ground) -> Result<Self, WireError> {
        let (name, friend) = (format!("{}-victim", ground.prefix), format!("{}-friend", ground.prefix));
        let connect = async |user: &str| {
            let token = ground.issuer.token(user).map_err(|fail| WireError::Broken(fail.to_string()))?;
            Wire::connect(ground.door.way(), None, fresh(token, DEVICE.to_owned())).await
        };
        let (wire, mut friend) = (connect(&name).await?, connect(&friend).await?);
        let open = Some(Action::OpenDirect(packet::OpenDirect { user: name.clone() }));
        let open = packet::Publish { message_id: 1, action: open, ..Default::default() };
        let direct = friend.publish_one(open).await?.conversation;
        Ok(Self { name, user: wire.connected.user, wire, friend, direct })
    }

    /// Is written to until something is wrong; says what.
    pub(super) async fn goes_on(mut self, ground: &Ground) -> &'static str {
        for n in 2.. {
            let content = Bytes::from(n.to_string());
            if let Err(why) = self.is_told(n, content.clone()).await {
                return why;
            }
            match timeout(PATIENCE, self.hears(&content)).await {
                Ok(Ok(())) => ground.tally.reached_victim(),
                Ok(Err(_)) => return "the victim's session ended",
                Err(_) => return "a message did not reach the victim",
            }
            sleep(EVERY).await;
        }
        "it was written to for ever"
    }

    /// The friend writes, again where it is refused for the moment.
    async fn is_told(&mut self, id: u64, content: Bytes) -> Result<(), &'static str> {
        let publish = packet::Publish {
            conversation: self.direct,
            message_id: id,
            first_unanswered: id,
            content,
            ..Default::default()
        };
        loop {
            match self.friend.publish_one(publish.clone()).await {
                Ok(_) => return Ok(()),
                Err(WireError::Refused(refusal)) if refusal.reason.verdict() == Verdict::Retry => sleep(EVERY).await,
                Err(_) => return Err("the victim's friend was cut"),
            }
        }
    }

    /// Waits for this message; that none was left out or came twice is the wire's to see.
    async fn hears(&mut self, content: &Bytes) -> Result<(), WireError> {
        loop {
            while let Some(event) = self.wire.next_event()? {
                let ClientEvent::Items { items, .. } = event else { continue };
                let mut entries = items.into_iter().filter_map(|item| match item.kind? {
                    item::Kind::Entry(entry) => Some(entry),
                    _ => None,
                });
                if let Some(entry) = entries.find(|entry| entry.conversation == self.direct) {
                    return match entry.content == *content {
                        true => Ok(()),
                        false => Err(WireError::Broken("another message came".to_owned())),
                    };
                }
            }
            self.wire.step().await?;
        }
    }
}
