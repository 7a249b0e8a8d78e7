//! What a later process goes on with.

use std::fmt;

/// Where a device stands: [`crate::Client::resume`] gives it, and [`crate::Config::resume`] takes it in a later process
/// of the same user and device. The gateway knows by itself what the device has acknowledged; with this it can also
/// tell whether that is what *this* client has worked from (`resumed` in [`crate::SessionInfo`] and
/// [`crate::Event::Reconnected`]).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Resume {
    /// The gateway's ticket, a secret; empty where nothing is kept for this device.
    pub token: Vec<u8>,
    /// Highest stamp that the application is done with; 0 for none.
    pub last_stamp: u64,
}

impl fmt::Debug for Resume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token_bytes = self.token.len();
        f.debug_struct("Resume").field("token_bytes", &token_bytes).field("last_stamp", &self.last_stamp).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_keeps_the_ticket_secret() {
        let resume = Resume { token: b"hunter2".to_vec(), last_stamp: 7 };
        assert_eq!(format!("{resume:?}"), "Resume { token_bytes: 7, last_stamp: 7 }");
    }
}
