//! The Longwire wire, without IO: packets, framing, reasons, limits, ids, and the session that both ends use.
//!
//! SPEC.md says what everything means; its rules are cited as `SPEC R5.2-1`. Nothing here reads a clock, touches a
//! socket, spawns or locks, so the same code runs in a broker, in a client, in a simulation and under a fuzzer.
//!
//! # The law of the loop
//!
//! A session is changed by one call at a time: a frame, a deadline, or a wish of the application. After each such call,
//! drain what must come out: first [`BrokerSession::poll_event`] (the client has no second event), then `poll_transmit`,
//! then ask `poll_deadline` when to come back. Whoever carries out what comes out decides nothing.
//!
//! ```
//! use bytes::BytesMut;
//! use longwire_protocol::{BrokerEvent, BrokerLimits, BrokerSession, FrameCodec, Millis, Refusal, packet};
//! use tokio_util::codec::Decoder as _;
//!
//! /// A broker that lets everyone in and says that everything is stored. `input` is what the socket gave so far,
//! /// `output` what is to be written to it; the result is when to come back if nothing arrives before.
//! fn turn(
//!     session: &mut BrokerSession<u64>,
//!     codec: &mut FrameCodec,
//!     now: Millis,
//!     input: &mut BytesMut,
//!     output: &mut BytesMut,
//! ) -> Result<Option<Millis>, Refusal> {
//!     session.handle_bytes(now);
//!     session.handle_deadline(now)?;
//!     while let Some((frame, bytes)) = codec.decode(input).map_err(|error| error.refusal())? {
//!         let mut event = session.handle_frame(now, frame, bytes)?;
//!         while let Some(what) = event {
//!             match what {
//!                 BrokerEvent::Connect(_) => {
//!                     session.accept(now, packet::Connected { user: 1, ..Default::default() });
//!                     codec.set_frame_bytes_max(session.frame_bytes_max());
//!                 }
//!                 BrokerEvent::Publish(publish) => session.acknowledge(packet::PublishAck {
//!                     message_id: publish.message_id,
//!                     seq: 1,
//!                     ..Default::default()
//!                 }),
//!                 _ => {}
//!             }
//!             event = session.poll_event();
//!         }
//!     }
//!     session.poll_transmit(now, output, 64 * 1024);
//!     Ok(session.poll_deadline())
//! }
//!
//! let mut session = BrokerSession::new(Millis(0), BrokerLimits::default());
//! let mut codec = FrameCodec::default();
//! let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
//! let connect = packet::Connect { version: 1, device: "phone".into(), ..Default::default() };
//! longwire_protocol::frame::encode(&packet::packet::Kind::Connect(connect), &mut input);
//! let next = turn(&mut session, &mut codec, Millis(5), &mut input, &mut output).expect("let in");
//! assert!(session.is_open() && !output.is_empty());
//! // Ninety seconds without a byte, one and a half intervals, would end it.
//! assert_eq!(next, Some(Millis(90_005)));
//! ```

pub mod features;
pub mod frame;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod ids;
pub mod limits;
pub mod names;
pub mod packet;
pub mod reason;
pub mod session;
pub mod varint;

pub use frame::{Frame, FrameCodec, FrameError, Malformed};
pub use ids::{ConversationId, DeviceId, Incarnation, LogTime, MessageId, PARTITIONS, Seq, SessionNumber, UserId};
pub use packet::Lane;
pub use reason::{Fault, Reason, Refusal, Verdict};
pub use session::{
    Asked, BrokerEvent, BrokerLimits, BrokerSession, ClientEvent, ClientSession, Millis, OpenRefusals, Room, Tally,
};
