//! The packets of `proto/longwire.proto`, as generated, and beside them the shape that is checked before they are decoded.

#[expect(missing_docs, reason = "generated; proto/longwire.proto and SPEC.md say what everything means")]
mod generated {
    include!("longwire.v1.rs");
}
mod secrets;
mod shape;
mod wire;

pub use generated::*;
pub(crate) use shape::check;
pub(crate) use wire::append_packet;
pub use wire::{OWN_BYTES_MAX, append_item, encode_item, encode_own};
