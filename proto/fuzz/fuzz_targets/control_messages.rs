//! See `trunkline_proto::fuzz::control_messages`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trunkline_proto::fuzz::control_messages(data));
