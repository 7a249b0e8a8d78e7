//! The `chat` program against a small gateway, and against a real one that is killed.

mod chat;
mod restart;
#[allow(dead_code, reason = "the tests of the client library use the rest")]
#[path = "../../../tests/client/support/mod.rs"]
mod support;
mod terminal;
