//! One party of a load: a connection to whichever kind of broker is measured. What a load does with it is the same for
//! all of them.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use longwire_client::packet::{self, EntryKind, item};
use longwire_protocol::limits::ID_SPAN_MAX;
use longwire_protocol::reason::Verdict;
use longwire_protocol::session::ClientEvent;

use super::super::super::Fail;
use super::super::args::Issuer;
#[cfg(feature = "mqtt-peer")]
use super::mqtt::Mqtt;
use super::sender::{Body, Publish};
use super::stamp::Stamp;
use super::way::{Traffic, Way};
use super::wire::{Wire, WireError, fresh};

/// A broker to put load on.
#[derive(Clone)]
pub(in crate::cli::bench) enum Broker {
    /// Longwire, and who makes tokens for it.
    Longwire {
        way: Way,
        issuer: Issuer,
        /// Milliseconds between heartbeats; 0 leaves it to the broker.
        heartbeat_ms: u32,
    },
    /// A broker of MQTT 3.1.1.
    #[cfg(feature = "mqtt-peer")]
    Mqtt { way: Way, keep_alive_seconds: u16 },
}

impl Broker {
    /// Connects a user with one device, that starts at the tail.
    pub(in crate::cli::bench) async fn connect(&self, user: &str, from: Option<IpAddr>) -> Result<Party, WireError> {
        self.connect_device(user, "bench", from).await
    }

    /// Connects a device of a user, that starts at the tail.
    pub(in crate::cli::bench) async fn connect_device(
        &self,
        user: &str,
        device: &str,
        from: Option<IpAddr>,
    ) -> Result<Party, WireError> {
        match self {
            Self::Longwire { way, issuer, heartbeat_ms } => {
                let token = issuer.token(user).map_err(|fail| WireError::Broken(fail.to_string()))?;
                let connect = packet::Connect { heartbeat_ms: *heartbeat_ms, ..fresh(token, device.to_owned()) };
                Ok(Party::Longwire(Box::new(Wire::connect(way, from, connect).await?)))
            }
            #[cfg(feature = "mqtt-peer")]
            Self::Mqtt { way, keep_alive_seconds } => {
                let client = format!("{user}/{device}");
                Ok(Party::Mqtt(Box::new(Mqtt::connect(way, from, client, *keep_alive_seconds).await?)))
            }
        }
    }

    /// With tickets of TLS sessions before, or with full handshakes only.
    pub(in crate::cli::bench) fn with_tickets(mut self, tickets: bool) -> Self {
        match &mut self {
            Self::Longwire { way, .. } => *way = way.clone().with_tickets(tickets),
            #[cfg(feature = "mqtt-peer")]
            Self::Mqtt { way, .. } => *way = way.clone().with_tickets(tickets),
        }
        self
    }

    /// With this time between two heartbeats.
    pub(in crate::cli::bench) fn with_heartbeat(mut self, every: Duration) -> Self {
        match &mut self {
            Self::Longwire { heartbeat_ms, .. } => *heartbeat_ms = u32::try_from(every.as_millis()).unwrap_or(u32::MAX),
            #[cfg(feature = "mqtt-peer")]
            Self::Mqtt { keep_alive_seconds, .. } => {
                *keep_alive_seconds = u16::try_from(every.as_secs()).unwrap_or(u16::MAX);
            }
        }
        self
    }

    /// The way to Longwire and who makes its tokens, for what no other broker does.
    pub(in crate::cli::bench) fn longwire(&self) -> Result<(&Way, &Issuer), Fail> {
        match self {
            Self::Longwire { way, issuer, .. } => Ok((way, issuer)),
            #[cfg(feature = "mqtt-peer")]
            Self::Mqtt { .. } => Err(Fail::usage("only Longwire does this")),
        }
    }

    pub(in crate::cli::bench) fn traffic(&self) -> &Traffic {
        match self {
            Self::Longwire { way, .. } => way.traffic(),
            #[cfg(feature = "mqtt-peer")]
            Self::Mqtt { way, .. } => way.traffic(),
        }
    }
}

/// Where messages go.
#[derive(Clone, Debug)]
pub(in crate::cli::bench) enum Place {
    Conversation(u64),
    #[cfg(feature = "mqtt-peer")]
    Topic(String),
}

/// What a party heard.
#[derive(Debug)]
pub(in crate::cli::bench) enum Heard {
    /// A publish is stored; its seq, where the broker has such.
    Acked { id: u64, seq: Option<u64> },
    /// A publish is refused for the moment.
    RefusedForNow { id: u64, wait: Duration },
    /// A message; its conversation, where the broker has such.
    Received { stamp: Stamp, conversation: u64 },
}

/// A connection.
pub(in crate::cli::bench) enum Party {
    Longwire(Box<Wire>),
    #[cfg(feature = "mqtt-peer")]
    Mqtt(Box<Mqtt>),
}

/// The message id under which a party opens the place of its messages. Those of a load come after it.
pub(in crate::cli::bench) const OPEN_ID: u64 = 1;
/// What stands around a content in a publish, at most.
const AROUND: usize = 64;

impl Party {
    /// Opens where this party and another user talk, under this message id.
    pub(in crate::cli::bench) async fn open_pair(&mut self, id: u64, other: &str) -> Result<Place, WireError> {
        match self {
            Self::Longwire(wire) => {
                let action = packet::publish::Action::OpenDirect(packet::OpenDirect { user: other.to_owned() });
                open(wire, id, action).await
            }
            #[cfg(feature = "mqtt-peer")]
            Self::Mqtt(_) => Ok(Place::Topic(format!("pair/{other}"))),
        }
    }

    /// Opens a place that anyone may read.
    pub(in crate::cli::bench) async fn open_channel(&mut self, name: &str) -> Result<Place, WireError> {
        self.open_channel_as(OPEN_ID, name).await
    }

    /// The same, under this message id.
    pub(in crate::cli::bench) async fn open_channel_as(&mut self, id: u64, name: &str) -> Result<Place, WireError> {
        match self {
            Self::Longwire(wire) => {
                let action = packet::publish::Action::OpenChannel(packet::OpenChannel { name: name.to_owned() });
                open(wire, id, action).await
            }
            #[cfg(feature = "mqtt-peer")]
            Self::Mqtt(_) => Ok(Place::Topic(name.to_owned())),
        }
    }

    /// Makes a group of this user alone, under this message id.
    pub(in crate::cli::bench) async fn make_group(&mut self, id: u64) -> Result<Place, WireError> {
        match self {
            Self::Longwire(wire) => {
                let action = packet::publish::Action::CreateGroup(packet::CreateGroup::default());
                open(wire, id, action).await
            }
            #[cfg(feature = "mqtt-peer")]
            Self::Mqtt(_) => Err(WireError::Broken("MQTT has no groups".to_owned())),
        }
    }

    /// The time between two heartbeats that the broker agreed to, where this was asked for, in milliseconds.
    pub(in crate::cli::bench) fn heartbeat_ms(&self, asked: Duration) -> u32 {
        let asked = u32::try_from(asked.as_millis()).unwrap_or(u32::MAX);
        match self {
            Self::Longwire(wire) => {
                let (min, max) = (wire.connected.heartbeat_ms_min, wire.connected.heartbeat_ms_max);
                asked.clamp(min, max.max(min))
            }
            #[cfg(feature = "mqtt-peer")]
            Self::Mqtt(_) => asked,
        }
    }

    /// Has what is said in a channel delivered from here on.
    pub(in crate::cli::bench) async fn watch(&mut self, place: &Place) -> Result<(), WireError> {
        match (self, place) {
            (Self::Longwire(wire), Place::Conversation(conversation)) => {
                let watch = packet::WatchRequest { conversation: *conversation, stop: false };
                let answer = wire.ask(packet::request::Op::Watch(watch)).await?;
                if let packet::response::Result::Watch(watched) = answer {
                    wire.streams.stands_at(*conversation, watched.head_seq);
                }
                Ok(())
            }
            #[cfg(feature = "mqtt-peer")]
            (Self::Mqtt(mqtt), Place::Topic(topic)) => mqtt.subscribe(topic).await,
            #[cfg(feature = "mqtt-peer")]
            _ => Err(WireError::Broken("a place of another broker".to_owned())),
        }
    }

    /// Has what is said to this user alone delivered from here on; `user` is the name that the pair was opened with.
    #[cfg_attr(not(feature = "mqtt-peer"), expect(clippy::unused_async, reason = "MQTT has to ask for it"))]
    pub(in crate::cli::bench) async fn await_pair(&mut self, _user: &str) -> Result<(), WireError> {
        match self {
            // A member gets what is said without asking.
            Self::Longwire(_) => Ok(()),
            #[cfg(feature = "mqtt-peer")]
            Self::Mqtt(mqtt) => mqtt.subscribe(&format!("pair/{_user}")).await,
        }
    }

    /// Writes what there is.
    pub(in crate::cli::bench) async fn flush(&mut self) -> Result<(), WireError> {
        match self {
            Self::Longwire(wire) => Ok(wire.flush().await?),
            #[cfg(feature = "mqtt-peer")]
            Self::Mqtt(mqtt) => mqtt.flush().await,
        }
    }

    /// Reads, at the latest until `until`. Cancel safe.
    pub(in crate::cli::bench) async fn fill(&mut self, until: Option<Instant>) -> Result<(), WireError> {
        match self {
            Self::Longwire(wire) => wire.fill(until).await,
            #[cfg(feature = "mqtt-peer")]
            Self::Mqtt(mqtt) => mqtt.fill(until).await,
        }
    }

    /// Writes, then reads, at the latest until `until`.
    pub(in crate::cli::bench) async fn step(&mut self, until: Option<Instant>) -> Result<(), WireError> {
        self.flush().await?;
        self.fill(until).await
    }

    /// From here on nothing that is delivered is acked.
    pub(in crate::cli::bench) fn never_ack(&mut self) {
        match self {
            Self::Longwire(wire) => wire.acks = false,
            #[cfg(feature = "mqtt-peer")]
            Self::Mqtt(_) => {}
        }
    }

    /// Hands out everything that has arrived, in its order.
    pub(in crate::cli::bench) fn hear(
        &mut self,
        mut tell: impl FnMut(Heard) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        match self {
            Self::Longwire(wire) => {
                while let Some(event) = wire.next_event()? {
                    hear(event, &mut tell)?;
                }
                Ok(())
            }
            #[cfg(feature = "mqtt-peer")]
            Self::Mqtt(mqtt) => mqtt.hear(tell),
        }
    }

    /// Holds the connection: heartbeats and nothing else, until it ends. Not cancel safe: who cancels it drops the
    /// connection too.
    pub(in crate::cli::bench) async fn rest(&mut self) -> WireError {
        loop {
            if let Err(error) = self.step(None).await {
                return error;
            }
            if let Err(error) = self.hear(|_| Ok(())) {
                return error;
            }
            match self {
                Self::Longwire(wire) => wire.rest(),
                #[cfg(feature = "mqtt-peer")]
                Self::Mqtt(mqtt) => mqtt.rest(),
            }
        }
    }

    /// Says goodbye.
    pub(in crate::cli::bench) async fn close(self) {
        match self {
            Self::Longwire(wire) => wire.close().await,
            #[cfg(feature = "mqtt-peer")]
            Self::Mqtt(mqtt) => mqtt.close().await,
        }
    }
}

impl Publish for Party {
    fn admits(&self, id: u64, first: u64, bytes: usize) -> bool {
        match self {
            Self::Longwire(wire) => wire.admits(id, first, bytes),
            #[cfg(feature = "mqtt-peer")]
            Self::Mqtt(mqtt) => mqtt.admits(id, first, bytes),
        }
    }

    fn publish(&mut self, place: &Place, id: u64, body: Body, first_unanswered: u64) {
        match self {
            Self::Longwire(wire) => wire.publish(place, id, body, first_unanswered),
            #[cfg(feature = "mqtt-peer")]
            Self::Mqtt(mqtt) => mqtt.publish(place, id, body, first_unanswered),
        }
    }
}

impl Publish for Wire {
    fn admits(&self, id: u64, first: u64, bytes: usize) -> bool {
        id < first + ID_SPAN_MAX && self.session.publish_room().admits(bytes + AROUND)
    }

    fn publish(&mut self, place: &Place, id: u64, body: Body, first_unanswered: u64) {
        #[cfg_attr(not(feature = "mqtt-peer"), expect(irrefutable_let_patterns, reason = "MQTT has topics"))]
        let Place::Conversation(conversation) = place else {
            unreachable!("a place belongs to the broker where it was opened")
        };
        let (content, action) = match body {
            Body::Content(content) => (content, None),
            Body::Mark(seq) => (Bytes::new(), Some(packet::publish::Action::SetMark(packet::SetMark { seq }))),
            Body::Act(action, content) => (content, Some(action)),
        };
        let conversation = *conversation;
        self.session.publish(packet::Publish {
            conversation,
            message_id: id,
            content,
            first_unanswered,
            action,
            beside: None,
        });
    }
}

async fn open(wire: &mut Wire, id: u64, action: packet::publish::Action) -> Result<Place, WireError> {
    let publish = packet::Publish { message_id: id, first_unanswered: id, action: Some(action), ..Default::default() };
    Ok(Place::Conversation(wire.publish_one(publish).await?.conversation))
}

/// What an event says to a load.
pub(in crate::cli::bench) fn hear(
    event: ClientEvent,
    tell: &mut impl FnMut(Heard) -> Result<(), WireError>,
) -> Result<(), WireError> {
    match event {
        ClientEvent::PublishAck(ack) => tell(Heard::Acked { id: ack.message_id, seq: Some(ack.seq) }),
        ClientEvent::Refused(refusal) if refusal.reason.verdict() == Verdict::Stop => Err(refusal.into()),
        ClientEvent::Refused(refusal) => {
            let wait = Duration::from_millis(refusal.retry_after_ms.into());
            tell(Heard::RefusedForNow { id: refusal.message_id.0, wait })
        }
        ClientEvent::Items { items, .. } => {
            for item in items {
                if let Some(item::Kind::Entry(entry)) = item.kind
                    && entry.kind() == EntryKind::Message
                {
                    let stamp = Stamp::read(&entry.content);
                    let stamp = stamp.ok_or_else(|| WireError::Broken("a message that no load has sent".to_owned()))?;
                    tell(Heard::Received { stamp, conversation: entry.conversation })?;
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}
