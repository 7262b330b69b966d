//! `cargo fuzz run frame --sanitizer none -- -dict=fuzz/dictionaries/frame.dict`; the body is in the protocol crate.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| longwire_protocol::fuzz::frame(data));
