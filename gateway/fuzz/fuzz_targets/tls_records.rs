//! See `trunkline_core::fuzz::tls_records`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trunkline_core::fuzz::tls_records(data));
