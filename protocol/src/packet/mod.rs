//! The packets of `proto/longwire.proto`, as generated.

include!("longwire.v1.rs");
