//! How a device wants to read its inbox.

use crate::limits::REPLAY_WINDOW_MAX;
use trunkline_proto::Login;

const PACKED_EPHEMERAL: u16 = 1 << 15;
const _: () = assert!(REPLAY_WINDOW_MAX < PACKED_EPHEMERAL as u32);

/// What LOGIN says of the inbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wish {
    /// Nothing is kept for the device.
    pub(crate) ephemeral: bool,
    /// Messages of its backlog that it may owe at a time; 0 leaves it to the server.
    pub(crate) window: u32,
    /// What resumes its session, or anything else.
    pub(crate) resume: Vec<u8>,
    /// The highest stamp that the device has, of its inbox and groups alike.
    pub(crate) last_stamp: u64,
}

impl Wish {
    /// Takes it from a LOGIN.
    pub(crate) fn of(login: &mut Login) -> Self {
        let Login { ephemeral, window, last_stamp, .. } = *login;
        Wish { ephemeral, window, resume: std::mem::take(&mut login.resume), last_stamp }
    }

    /// What the home of a guest has to know of it: the window in the low 15 bits, and whether it is ephemeral above.
    pub(crate) fn packed(&self) -> u16 {
        let window = self.window.min(REPLAY_WINDOW_MAX) as u16;
        window | if self.ephemeral { PACKED_EPHEMERAL } else { 0 }
    }

    /// What [`Wish::packed`] gave.
    pub(crate) fn unpacked(packed: u16) -> Self {
        let (ephemeral, window) = (packed & PACKED_EPHEMERAL != 0, u32::from(packed & !PACKED_EPHEMERAL));
        Wish { ephemeral, window, ..Wish::default() }
    }
}
