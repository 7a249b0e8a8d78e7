//! See `trunkline_core::fuzz::handshake`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trunkline_core::fuzz::handshake(data));
