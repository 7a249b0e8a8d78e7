//! See `trunkline_proto::fuzz::round_trip`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trunkline_proto::fuzz::round_trip(data));
