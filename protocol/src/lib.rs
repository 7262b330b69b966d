//! The Longwire wire, without IO: packets, framing, reasons, limits, ids, and the session both ends use.

pub mod ids;
pub mod packet;

pub use ids::{ConversationId, DeviceId, Incarnation, LogTime, MessageId, PARTITIONS, Seq, SessionNumber, UserId};
