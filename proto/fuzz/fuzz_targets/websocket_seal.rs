//! See `trunkline_proto::fuzz::websocket_seal`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trunkline_proto::fuzz::websocket_seal(data));
