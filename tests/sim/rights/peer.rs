//! One connection of a device: the protocol's own session, and nothing that it could be lenient with.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use longwire_protocol::packet::{self, Lane, StartKind, Window};
use longwire_protocol::{ClientEvent, ClientSession, FrameCodec, Millis};
use tokio_util::codec::Decoder as _;

use super::oracle::Grants;
use crate::link::{Link, Way};

/// See the module.
pub(super) struct Peer {
    pub(super) number: u64,
    pub(super) link: Link,
    pub(super) session: ClientSession,
    codec: FrameCodec,
    input: BytesMut,
    output: BytesMut,
    pub(super) connected: Option<packet::Connected>,
    pub(super) grants: Grants,
    /// What its token let it do before it was refreshed, and the heads of the channels then.
    pub(super) before: Vec<(Grants, Vec<(u64, u64)>)>,
    /// Channels watched: above which seq and up to which.
    pub(super) watched: Vec<(u64, u64, u64)>,
    /// Stored up to here, in express and bulk: what comes behind a hole is dropped.
    pub(super) got: Vec<(Lane, u64)>,
    pub(super) asked: Option<u64>,
    /// Of whom it was told last that it is shown, or not.
    pub(super) shown: BTreeMap<u64, bool>,
    pub(super) request: u64,
    pub(super) is_over: bool,
    /// What was recalled before it connected.
    pub(super) gone: BTreeSet<(u64, u64)>,
}

/// How it connects.
pub(super) struct Dial<'a> {
    pub(super) number: u64,
    pub(super) now: u64,
    pub(super) token: &'a str,
    pub(super) grants: Grants,
    pub(super) device: &'a str,
    pub(super) incarnation: u64,
    pub(super) first_unanswered: u64,
    pub(super) start: StartKind,
    pub(super) cursor: Bytes,
    pub(super) window: Option<Window>,
}

impl Peer {
    pub(super) fn connect(dial: Dial<'_>) -> Self {
        let connect = packet::Connect {
            version: 1,
            token: dial.token.to_owned(),
            device: dial.device.to_owned(),
            incarnation: dial.incarnation,
            first_unanswered: dial.first_unanswered,
            heartbeat_ms: 600_000,
            start: dial.start.into(),
            cursor: dial.cursor,
            express: dial.window,
            bulk: dial.window,
            catch_up: packet::CatchUpMode::All.into(),
            features: vec![longwire_protocol::features::SIGNALS.into()],
            ..packet::Connect::default()
        };
        let mut peer = Self {
            number: dial.number,
            link: Link::new(1 << 20),
            session: ClientSession::new(Millis(dial.now), connect),
            codec: FrameCodec::default(),
            input: BytesMut::new(),
            output: BytesMut::new(),
            connected: None,
            grants: dial.grants,
            before: Vec::new(),
            watched: Vec::new(),
            got: Vec::new(),
            asked: None,
            shown: BTreeMap::new(),
            request: 0,
            is_over: false,
            gone: BTreeSet::new(),
        };
        peer.send(dial.now);
        peer
    }

    /// Everything it has to say is at the broker's door.
    pub(super) fn send(&mut self, now: u64) {
        while self.session.poll_transmit(Millis(now), &mut self.output, 64 << 10) {}
        let n = self.link.write(&self.output);
        drop(self.output.split_to(n));
        self.link.carry(Way::Up, usize::MAX);
    }

    /// What has arrived, as events.
    pub(super) fn receive(&mut self, now: u64) -> Vec<ClientEvent> {
        self.link.carry(Way::Down, usize::MAX);
        let mut arrived = Vec::new();
        self.is_over |= !self.link.take(&mut arrived);
        if !arrived.is_empty() {
            self.session.handle_bytes(Millis(now));
        }
        self.input.extend_from_slice(&arrived);
        let mut events = Vec::new();
        while let Some((frame, size)) = self.codec.decode(&mut self.input).expect("bytes are frames") {
            let event = self.session.handle_frame(Millis(now), frame, size);
            let event = event.unwrap_or_else(|refusal| panic!("the broker broke a rule: {refusal:?}"));
            if let Some(ClientEvent::Connected(connected)) = &event {
                self.codec.set_frame_bytes_max(self.session.frame_bytes_max());
                self.connected = Some((**connected).clone());
            }
            if let Some(ClientEvent::Closed(_)) = &event {
                self.is_over = true;
            }
            events.extend(event);
        }
        events
    }

    /// It could store only so many of the items that came: the rest comes again.
    pub(super) fn store(&mut self, now: u64, most: usize) {
        for (lane, n) in self.got.drain(..).take(most) {
            self.session.stored(Millis(now), lane, n);
        }
        self.got.clear();
    }
}
