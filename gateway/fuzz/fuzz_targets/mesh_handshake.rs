//! See `trunkline_gateway::fuzz::handshake`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trunkline_gateway::fuzz::handshake(data));
