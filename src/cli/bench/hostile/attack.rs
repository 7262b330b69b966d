//! The attacks: what each does, and what the others may notice of it at the most.

use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use longwire_client::packet;
use serde::Serialize;

use super::super::args::Issuer;
use super::super::load::wire::fresh;
use super::door::{Door, Peer};
use super::tally::{Open, Pacer, Tally};
use super::{contents, guessing, impostors, insiders, strangers};

/// One kind of attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Attack {
    HalfOpen,
    SlowHello,
    SlowConnect,
    Connections,
    Handshakes,
    Garbage,
    Tokens,
    Guessing,
    Framing,
    Heartbeats,
    Acks,
    Unknown,
    GiveUps,
    Window,
    History,
    Watches,
    NeverAcks,
    NeverReads,
    Conversations,
    Members,
    Takeovers,
    Future,
    Huge,
    Compressed,
    Names,
    Impostors,
    Replays,
}

impl Attack {
    pub(super) const ALL: [Self; 27] = [
        Self::HalfOpen,
        Self::SlowHello,
        Self::SlowConnect,
        Self::Connections,
        Self::Handshakes,
        Self::Garbage,
        Self::Tokens,
        Self::Guessing,
        Self::Framing,
        Self::Heartbeats,
        Self::Acks,
        Self::Unknown,
        Self::GiveUps,
        Self::Window,
        Self::History,
        Self::Watches,
        Self::NeverAcks,
        Self::NeverReads,
        Self::Conversations,
        Self::Members,
        Self::Takeovers,
        Self::Future,
        Self::Huge,
        Self::Compressed,
        Self::Names,
        Self::Impostors,
        Self::Replays,
    ];

    pub(super) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    pub(super) const fn does(self) -> &'static str {
        match self {
            Self::HalfOpen => "sockets that say nothing, from 250 addresses, opened anew when they are closed",
            Self::SlowHello => "the same, a byte of TLS a second",
            Self::SlowConnect => "TLS is done, then a byte of Connect a second",
            Self::Connections => "sockets opened and closed, all from one address",
            Self::Handshakes => "whole TLS handshakes without resumption, then gone",
            Self::Garbage => "bytes that are no TLS, and behind TLS bytes that are no frames",
            Self::Tokens => "forged, foreign, unsigned and expired tokens",
            Self::Guessing => "passwords of one account, and of names that nobody has, from 250 addresses",
            Self::Framing => "frames too large, padded, nested too deep; before Connected and after",
            Self::Heartbeats => "a session that sends heartbeats and nothing else",
            Self::Acks => "acks that ack nothing new",
            Self::Unknown => "packets that nobody knows, with unknown fields",
            Self::GiveUps => "ids given up that were never refused",
            Self::Window => "publishes beyond the window",
            Self::History => "eight requests for history at a time, one after another",
            Self::Watches => "150 channels watched, let go and watched again",
            Self::NeverAcks => "one in ten readers of the busy channel never acks",
            Self::NeverReads => "one in ten readers of the busy channel never reads",
            Self::Conversations => "groups and direct conversations made one after another",
            Self::Members => "groups of a thousand users, whom nobody knew, one after another",
            Self::Takeovers => "two clients with one device, each connecting again at once",
            Self::Future => "acks of what was never sent",
            Self::Huge => "contents of one byte more than may be",
            Self::Compressed => "contents of a kilobyte that would be a megabyte, and are read back",
            Self::Names => "names that cannot be, and such as look like another's",
            Self::Impostors => "tokens that are not its own for a device that is connected",
            Self::Replays => "tokens that were good, once they have expired or were taken back",
        }
    }

    /// Whether it needs no token.
    pub(super) const fn is_stranger(self) -> bool {
        matches!(
            self,
            Self::HalfOpen
                | Self::SlowHello
                | Self::SlowConnect
                | Self::Connections
                | Self::Handshakes
                | Self::Garbage
                | Self::Tokens
                | Self::Guessing
        )
    }

    /// Whether it notes by itself what nobody may get.
    pub(super) const fn gets_nothing(self) -> bool {
        matches!(self, Self::Future | Self::Huge | Self::Compressed | Self::Names | Self::Impostors | Self::Replays)
    }

    /// Whether it is at one user that is there, and has to go on.
    pub(super) const fn has_victim(self) -> bool {
        matches!(self, Self::Names | Self::Impostors)
    }

    /// How long it takes until its end is seen.
    pub(super) const fn least(self) -> Duration {
        match self {
            // Ten seconds to be let in, and the wheel's slots.
            Self::HalfOpen | Self::SlowHello | Self::SlowConnect => Duration::from_secs(13),
            // A token has to expire first.
            Self::Replays => Duration::from_secs(4),
            _ => Duration::ZERO,
        }
    }

    /// What the others' throughput has to keep.
    pub(super) const fn throughput_least(self) -> f64 {
        match self {
            Self::NeverAcks | Self::NeverReads => 0.98,
            _ => 0.90,
        }
    }

    /// Attacks until it is dropped.
    pub(super) async fn run(self, ground: Ground) {
        match self {
            Self::HalfOpen => strangers::slow(ground, strangers::Slow::Silent).await,
            Self::SlowHello => strangers::slow(ground, strangers::Slow::Hello).await,
            Self::SlowConnect => strangers::slow(ground, strangers::Slow::Connect).await,
            Self::Connections => strangers::connections(ground).await,
            Self::Handshakes => strangers::handshakes(ground).await,
            Self::Garbage => strangers::garbage(ground).await,
            Self::Tokens => strangers::tokens(ground).await,
            Self::Guessing => guessing::guess(ground).await,
            Self::Framing => insiders::framing(ground).await,
            Self::Heartbeats | Self::Acks | Self::Unknown | Self::GiveUps => insiders::flood(ground, self).await,
            Self::Window => insiders::window(ground).await,
            Self::History => insiders::history(ground).await,
            Self::Watches => insiders::watches(ground).await,
            Self::NeverAcks => insiders::lazy(ground, true).await,
            Self::NeverReads => insiders::lazy(ground, false).await,
            Self::Conversations => insiders::conversations(ground).await,
            Self::Members => insiders::members(ground).await,
            Self::Takeovers => insiders::takeovers(ground).await,
            Self::Future => insiders::future(ground).await,
            Self::Huge => contents::huge(ground).await,
            Self::Compressed => contents::compressed(ground).await,
            Self::Names => impostors::names(ground).await,
            Self::Impostors => impostors::impostors(ground).await,
            Self::Replays => impostors::replays(ground).await,
        }
    }
}

/// Where an attack takes place, and with what.
#[derive(Clone)]
pub(super) struct Ground {
    pub(super) door: Door,
    pub(super) issuer: Issuer,
    /// Tokens that are not to be believed.
    pub(super) bad_tokens: Arc<[String]>,
    /// The beginning of the names of this attack's users.
    pub(super) prefix: String,
    /// The channel that everybody reads, by name, and how many do.
    pub(super) busy: String,
    pub(super) readers: usize,
    /// Slow connections at once.
    pub(super) connections: usize,
    /// Packets and connections a second.
    pub(super) packets: Pacer,
    pub(super) connects: Pacer,
    pub(super) tally: Tally,
}

impl Ground {
    /// A stream to the broker, when it is this one's turn; `None` where none came to be.
    pub(super) async fn stream(&self, n: u64) -> Option<(Peer, Open)> {
        self.connects.turn(1).await;
        let open = self.tally.opened();
        match self.door.stream(n).await {
            Ok(stream) => Some((Peer::over(stream), open)),
            Err(error) => {
                self.tally.failed(&error);
                open.ended("closed in the handshake");
                None
            }
        }
    }

    /// A session of this user's device. Whoever is not let in comes again when it is its turn.
    pub(super) async fn session(&self, n: u64, device: &str) -> (Peer, Open, packet::Connected) {
        let user = format!("{}-{n}", self.prefix);
        loop {
            let Ok(token) = self.issuer.token(&user) else { std::future::pending().await };
            let Some((mut peer, open)) = self.stream(n).await else { continue };
            match peer.connect(fresh(token, device.to_owned())).await {
                Ok(connected) => return (peer, open, connected),
                Err(how) => open.ended(how),
            }
        }
    }
}
