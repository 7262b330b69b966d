//! `fuzz/run frame`; the body is in the protocol crate.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| longwire_protocol::fuzz::frame(data));
