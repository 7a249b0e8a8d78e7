//! See `trunkline_gateway::fuzz::proxy_header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trunkline_gateway::fuzz::proxy_header(data));
