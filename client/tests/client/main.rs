//! The client library and the `chat` terminal, tested against a gateway that a test moves frame by frame.

mod chat;
mod delivery;
mod reconnect;
mod support;
mod terminal;
mod tokens;
