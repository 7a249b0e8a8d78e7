//! What clients say of nodes that they could not reach.
//!
//! A report costs nobody anything but the one who is told of it, so it is believed with care: failures of different
//! users count, each of them once in a while, and reports never take more than half of the nodes out.

/// Failures of different users within [`FAIL_TIMEOUT_MS`] that take a node out for as long.
pub(super) const MAX_FAILS: u32 = 3;
/// See [`MAX_FAILS`]. Three times what a client may take to notice, with the second of the view.
pub(super) const FAIL_TIMEOUT_MS: u64 = 10_000;

/// The last users whose reports about one node counted: as many as take it out, so older ones are of no account.
#[derive(Debug, Clone, Default)]
pub(super) struct Reporters {
    last: [Option<(u64, u64)>; MAX_FAILS as usize],
}

impl Reporters {
    /// Whether a report of `user` counts: there was none of it within the time in which failures are counted.
    pub(super) fn counts(&mut self, now_ms: u64, user: u64) -> bool {
        let is_recent = |at_ms: u64| now_ms.saturating_sub(at_ms) < FAIL_TIMEOUT_MS;
        if self.last.iter().flatten().any(|(known, at_ms)| *known == user && is_recent(*at_ms)) {
            return false;
        }
        self.last.rotate_right(1);
        self.last[0] = Some((user, now_ms));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_counts_once_in_a_while() {
        let mut reporters = Reporters::default();
        assert!(reporters.counts(0, 1) && !reporters.counts(9_999, 1) && reporters.counts(9_999, 2));
        assert!(reporters.counts(10_000, 1));
    }
}
