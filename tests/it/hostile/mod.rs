//! A catalogue of hostile clients: what each one gets, what it costs the broker, and that others notice nothing. The
//! attacks write bytes, since the protocol's own session would not let them.
//!
//! | where | who attacks |
//! |---|---|
//! | `strangers.rs` | whoever reaches the port: sockets that say nothing or too little, floods of connections |
//! | `framing.rs` | bytes that are no packets, lengths that lie, packets in the wrong place |
//! | `insiders.rs` | who has a token: windows, floods, readers that never ack, quotas |
//! | `bombs.rs` | who makes as many conversations, members and users as it can |
//! | `leavings.rs` | who leaves wills and registrations, watches and flaps, and bans, as much as it can |
//! | `impostors.rs` | who has no token, another's or an old one; who takes devices over; names |
//! | `contents.rs` | contents that would be something else, if anybody looked into them |
//! | `process.rs` | what attacks cost the real broker in memory and CPU |

mod bombs;
mod contents;
mod framing;
mod impostors;
mod insiders;
mod leavings;
mod process;
mod strangers;

use std::net::{Ipv4Addr, SocketAddr};

use bytes::{Bytes, BytesMut};
use longwire_protocol::packet::packet::Kind;
use longwire_protocol::packet::{self, Publish};
use longwire_protocol::reason::Reason;
use longwire_protocol::{ClientEvent, Frame, FrameCodec, frame, limits};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_util::codec::Decoder as _;

use crate::world::{PATIENCE, Wire, World};

/// A connection that says whatever it likes.
struct Raw {
    socket: TcpStream,
    codec: FrameCodec,
    input: BytesMut,
}

impl Raw {
    async fn open(port: u16) -> Self {
        Self::over(TcpStream::connect(("127.0.0.1", port)).await.expect("a connection"))
    }

    fn over(socket: TcpStream) -> Self {
        Self { socket, codec: FrameCodec::new(limits::FRAME_BYTES_MAX), input: BytesMut::new() }
    }

    /// A connection that was let in, and what the broker said to it.
    async fn let_in(port: u16, connect: packet::Connect) -> (Self, packet::Connected) {
        let mut raw = Self::open(port).await;
        raw.say(&Kind::Connect(connect)).await;
        match raw.next().await {
            Some(Kind::Connected(connected)) => (raw, connected),
            other => panic!("{other:?} answers a good Connect"),
        }
    }

    /// Sends these bytes; a broker that has closed does not take them all.
    async fn send(&mut self, bytes: &[u8]) {
        let _closed = timeout(PATIENCE, self.socket.write_all(bytes)).await.expect("the broker reads or closes");
    }

    async fn say(&mut self, kind: &Kind) {
        self.send(&framed(kind)).await;
    }

    /// The next packet, `None` once the broker has closed. Heartbeats are passed over.
    async fn next(&mut self) -> Option<Kind> {
        loop {
            match self.codec.decode(&mut self.input).expect("the broker sends frames") {
                Some((Frame::Packet(kind), _)) => return Some(kind),
                Some(_) => {}
                None => {
                    let read = self.socket.read_buf(&mut self.input);
                    if timeout(PATIENCE, read).await.expect("the broker says something or closes").unwrap_or(0) == 0 {
                        return None;
                    }
                }
            }
        }
    }

    /// The reason of the next refusal, of whatever.
    async fn refused(&mut self) -> Option<Reason> {
        while let Some(kind) = self.next().await {
            if let Kind::Refused(refused) = kind {
                return Reason::from_number(refused.code);
            }
        }
        None
    }

    /// Why the broker ended it; `None` where it closed without a word.
    async fn end(&mut self) -> Option<Reason> {
        let mut why = None;
        while let Some(kind) = self.next().await {
            if let Kind::Refused(refused) = kind
                && refused.message_id == 0
                && refused.request == 0
            {
                why = Reason::from_number(refused.code);
            }
        }
        why
    }

    /// Whether it is still served: a request is answered.
    async fn is_served(&mut self) -> bool {
        let op = packet::request::Op::Users(packet::UsersRequest::default());
        self.say(&Kind::Request(packet::Request { id: 77, op: Some(op) })).await;
        loop {
            match self.next().await {
                Some(Kind::Response(response)) if response.id == 77 => return true,
                Some(_) => {}
                None => return false,
            }
        }
    }
}

fn framed(kind: &Kind) -> BytesMut {
    let mut out = BytesMut::new();
    frame::encode(kind, &mut out);
    out
}

/// A connection from another address of this machine.
async fn socket_from(last: u8, port: u16) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0)))?;
    socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
}

/// Whether the broker has closed this socket: it says nothing on one that it keeps.
async fn is_closed(socket: &TcpStream) -> bool {
    let mut byte = [0];
    let peeked = timeout(std::time::Duration::from_millis(300), socket.peek(&mut byte)).await;
    matches!(peeked, Ok(Ok(0) | Err(_)))
}

/// Someone who behaves, and whom no attack may disturb.
struct Bystander {
    wire: Wire,
    direct: u64,
}

impl Bystander {
    async fn new(world: &World) -> Self {
        let mut wire = world.user("bystander").await;
        let direct = wire.open_direct("friend").await;
        Self { wire, direct }
    }

    /// Publishes, and gets the ack, in the same session as ever.
    async fn goes_on(&mut self) {
        let publish = Publish { conversation: self.direct, content: Bytes::from_static(b"x"), ..Publish::default() };
        loop {
            match self.wire.publish(publish.clone()).await {
                Ok(_) => return,
                // Memtables are small here, and the store may have to seal one first.
                Err(refusal) if refusal.reason == Reason::StoreUnavailable => {}
                Err(refusal) => panic!("the bystander is refused: {refusal}"),
            }
        }
    }
}

/// Publishes these as fast as the window allows; the reasons of those that were refused.
async fn flood(wire: &mut Wire, publishes: impl Iterator<Item = Publish>) -> Vec<Reason> {
    let (mut under_way, mut first, mut why) = (0, wire.next_id, Vec::new());
    let mut publishes = publishes.peekable();
    while publishes.peek().is_some() || under_way > 0 {
        while under_way < 30
            && let Some(publish) = publishes.next()
        {
            wire.session.publish(Publish { message_id: wire.next_id, first_unanswered: first, ..publish });
            wire.next_id += 1;
            under_way += 1;
        }
        match wire.event().await.expect("the connection holds") {
            ClientEvent::PublishAck(ack) => (under_way, first) = (under_way - 1, ack.message_id + 1),
            ClientEvent::Refused(refusal) => {
                (under_way, first) = (under_way - 1, refusal.message_id.0 + 1);
                why.push(refusal.reason);
            }
            _ => {}
        }
        wire.items.clear();
    }
    why
}
