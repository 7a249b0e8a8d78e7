//! See `trunkline_gateway::fuzz::upgrade_head`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trunkline_gateway::fuzz::upgrade_head(data));
