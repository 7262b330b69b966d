//! The packets of `proto/longwire.proto`, as generated.

#![expect(missing_docs, reason = "generated: the .proto documents it")]

include!("longwire.v1.rs");
