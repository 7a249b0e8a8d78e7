//! Devices that have logged out lately: what they were given to resume their sessions with before is good no more.
//!
//! There are two generations. A new one begins when the present one holds half of the number, and the one before is
//! forgotten.

use hashbrown::HashMap;

/// Devices of one generation.
const GENERATION_MAX: usize = 8_192;
/// Bytes that a shard's take at most: a table is up to twice as large as what it holds, with 25 bytes for each place.
pub const LOGOUTS_BYTES: u64 = 2 * 2 * GENERATION_MAX as u64 * 25;

/// A user, and the number of one of the user's devices in the store.
type Device = (u64, u16);
const _: () = assert!(size_of::<(Device, u64)>() == 24);

/// The latest LOGOUTs of the users of a shard.
#[derive(Debug, Default)]
pub struct Logouts {
    present: HashMap<Device, u64>,
    before: HashMap<Device, u64>,
}

impl Logouts {
    /// A device has logged out. `stamp` is above all that were given out until then.
    pub(crate) fn note(&mut self, user: u64, device: u16, stamp: u64) {
        if self.present.len() >= GENERATION_MAX {
            self.before = std::mem::take(&mut self.present);
        }
        self.present.insert((user, device), stamp);
    }

    /// Whether the device has logged out since `stamp` was the latest one.
    pub(crate) fn is_since(&self, user: u64, device: u16, stamp: u64) -> bool {
        let noted = [&self.present, &self.before].map(|generation| generation.get(&(user, device)));
        noted.into_iter().flatten().any(|logged_out| *logged_out > stamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_before_a_logout_is_over_and_what_comes_later_is_not() {
        let mut logouts = Logouts::default();
        logouts.note(7, 1, 100);
        assert!(logouts.is_since(7, 1, 99));
        assert!(!logouts.is_since(7, 1, 100) && !logouts.is_since(7, 2, 99) && !logouts.is_since(8, 1, 99));
        logouts.note(7, 1, 200);
        assert!(logouts.is_since(7, 1, 150));
    }

    #[test]
    fn so_many_are_remembered_and_the_memory_is_bounded() {
        let mut logouts = Logouts::default();
        for user in 0..5 * GENERATION_MAX as u64 {
            logouts.note(user, 1, 100);
        }
        let known = (0..5 * GENERATION_MAX as u64).filter(|user| logouts.is_since(*user, 1, 50)).count();
        assert!((GENERATION_MAX..=2 * GENERATION_MAX).contains(&known), "{known}");
        let places = logouts.present.capacity() + logouts.before.capacity();
        assert!(places as u64 * 25 <= LOGOUTS_BYTES, "{places}");
    }
}
