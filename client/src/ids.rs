//! Message ids: never 0, unique for their sender.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::random;

/// Counts up from a random base. The base leaves the upper half of the id space free, so ids grow for the life of a
/// client and their order is the order of sending.
#[derive(Debug)]
pub(crate) struct MessageIds {
    next: AtomicU64,
}

impl MessageIds {
    pub(crate) fn new() -> Self {
        Self::starting_at(random::bits() >> 1)
    }

    fn starting_at(first: u64) -> Self {
        Self { next: AtomicU64::new(first) }
    }

    pub(crate) fn next(&self) -> u64 {
        loop {
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            if id != 0 {
                return id;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_skipped_at_the_start_and_when_wrapping() {
        assert_eq!(MessageIds::starting_at(0).next(), 1);
        let ids = MessageIds::starting_at(u64::MAX);
        assert_eq!((ids.next(), ids.next()), (u64::MAX, 1));
    }

    #[test]
    fn a_fresh_base_leaves_room_to_count_up_without_wrapping() {
        for _ in 0..1_000 {
            assert!(MessageIds::new().next() <= 1 << 63);
        }
    }

    #[test]
    fn two_clients_do_not_share_a_range() {
        let (one, two) = (MessageIds::new().next(), MessageIds::new().next());
        // Bases closer than 2^32 come up once in 2^30 runs; seeing it means the base is not random.
        assert!(one.abs_diff(two) > 1 << 32, "{one} and {two}");
    }
}
