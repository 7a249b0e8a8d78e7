//! See `trunkline_gateway::fuzz::tls_records`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trunkline_gateway::fuzz::tls_records(data));
