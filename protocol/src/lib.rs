//! The Longwire wire, without IO: packets, framing, reasons, limits, ids, and the session both ends use.

pub mod frame;
pub mod ids;
pub mod limits;
pub mod packet;
pub mod reason;
pub mod session;
pub mod varint;

pub use frame::{Frame, FrameCodec, FrameError, Malformed};
pub use ids::{ConversationId, DeviceId, Incarnation, LogTime, MessageId, PARTITIONS, Seq, SessionNumber, UserId};
pub use packet::Lane;
pub use reason::{Fault, Reason, Refusal, Verdict};
pub use session::{BrokerEvent, BrokerLimits, BrokerSession, ClientEvent, ClientSession, Millis, Room};
