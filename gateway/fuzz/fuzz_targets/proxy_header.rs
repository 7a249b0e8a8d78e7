//! See `trunkline_core::fuzz::proxy_header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trunkline_core::fuzz::proxy_header(data));
