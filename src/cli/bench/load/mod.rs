//! What every load is made of: ways to a broker, connections over them, what is sent and how it is checked.

pub(super) mod crew;
pub(super) mod group;
#[cfg(feature = "mqtt-peer")]
pub(super) mod mqtt;
pub(super) mod own;
pub(super) mod party;
pub(super) mod process;
pub(super) mod sender;
pub(super) mod stamp;
pub(super) mod streams;
pub(super) mod syscalls;
pub(super) mod way;
pub(super) mod wire;
