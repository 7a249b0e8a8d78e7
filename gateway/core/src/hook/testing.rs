//! What tests of the hook ask.

use super::Ask;
use crate::io::ConnId;

/// A question for user 7.
pub fn ask(slot: u32, generation: u32, token: &str) -> Ask {
    Ask {
        conn: ConnId { slot, generation },
        renews: false,
        user: 7,
        token: token.to_owned(),
        device: String::new(),
        class: String::new(),
        address: None,
        websocket: false,
        tls: false,
    }
}
