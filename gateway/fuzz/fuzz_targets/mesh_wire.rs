//! See `trunkline_core::fuzz::wire_stream`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trunkline_core::fuzz::wire_stream(data));
