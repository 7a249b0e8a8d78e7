//! The client library, tested against a gateway that a test moves frame by frame.

mod acknowledge;
mod answers;
mod attempts;
mod delivery;
mod fates;
mod groups;
mod inbox;
mod reconnect;
mod resend;
#[allow(dead_code, reason = "the tests of chat use the rest")]
mod support;
mod tokens;
