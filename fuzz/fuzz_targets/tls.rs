//! `fuzz/run tls`; the body is in the broker.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| longwire::fuzz::tls(data));
