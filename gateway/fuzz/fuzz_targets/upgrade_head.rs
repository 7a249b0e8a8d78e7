//! See `trunkline_core::fuzz::upgrade_head`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trunkline_core::fuzz::upgrade_head(data));
