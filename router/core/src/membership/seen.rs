//! Which incarnation of each name is the latest?
//!
//! A record with a lower incarnation than one heard of before is old data: a replica that has taken over may still have
//! a lease that its master had replaced. Such a lease only runs out. One that is still there after more than the time
//! of a lease has been renewed, so its holder lives: Redis had lost its data, and its clock had been ahead when it gave
//! the higher number. Without that, nodes that start again would be ignored for as long as the clock was ahead.

use std::collections::HashMap;

/// For how many lease times a lower incarnation has to be found until it counts. One is what an old lease can last; the
/// other is for clocks of Redis servers that differ.
const LEASES: u64 = 2;

/// The incarnations heard of. Times are as in [`Membership`](super::Membership).
#[derive(Debug, Default)]
pub(super) struct Seen(HashMap<Box<str>, Heard>);

#[derive(Debug)]
struct Heard {
    incarnation: u64,
    at_ms: u64,
    /// A lower one that polls have found since, and when it was first found.
    lower: Option<(u64, u64)>,
}

impl Seen {
    /// The mesh told of this incarnation. Whether it is the latest.
    pub(super) fn heard(&mut self, now_ms: u64, name: &str, incarnation: u64) -> bool {
        match self.0.get_mut(name) {
            Some(heard) if incarnation < heard.incarnation => false,
            Some(heard) => {
                *heard = Heard { incarnation, at_ms: now_ms, lower: None };
                true
            }
            None => {
                self.0.insert(name.into(), Heard { incarnation, at_ms: now_ms, lower: None });
                true
            }
        }
    }

    /// A poll found this incarnation; leases are of `lease_ms`. Whether it is the latest, or has turned out to be it.
    pub(super) fn polled(&mut self, now_ms: u64, name: &str, incarnation: u64, lease_ms: u64) -> bool {
        if self.heard(now_ms, name, incarnation) {
            return true;
        }
        let Some(heard) = self.0.get_mut(name) else { return true };
        match heard.lower {
            Some((lower, since_ms)) if lower == incarnation => {
                if now_ms.saturating_sub(since_ms) <= LEASES.saturating_mul(lease_ms) {
                    return false;
                }
                *heard = Heard { incarnation, at_ms: now_ms, lower: None };
                true
            }
            _ => {
                heard.lower = Some((incarnation, now_ms));
                false
            }
        }
    }

    /// Forgets what was last heard of before `since_ms`, unless `keep` says otherwise.
    pub(super) fn forget(&mut self, since_ms: u64, keep: impl Fn(&str) -> bool) {
        self.0.retain(|name, heard| heard.at_ms >= since_ms || keep(name));
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEASE_MS: u64 = 5_000;

    #[test]
    fn a_lower_incarnation_counts_once_it_must_have_been_renewed() {
        let mut seen = Seen::default();
        assert!(seen.polled(0, "a", 9, LEASE_MS));
        for at_ms in (1_000..=11_000).step_by(1_000) {
            assert!(!seen.polled(at_ms, "a", 5, LEASE_MS), "{at_ms}");
        }
        assert!(seen.polled(11_001, "a", 5, LEASE_MS));
        assert!(seen.polled(12_000, "a", 5, LEASE_MS) && !seen.polled(12_000, "a", 4, LEASE_MS));
    }

    #[test]
    fn while_the_mesh_hears_the_higher_one_no_lower_one_counts() {
        let mut seen = Seen::default();
        for at_ms in (0..100_000).step_by(1_000) {
            assert!(seen.heard(at_ms, "a", 9));
            assert!(!seen.polled(at_ms + 500, "a", 5, LEASE_MS), "{at_ms}");
        }
    }

    proptest! {
        /// Polls of leases that only run out: each is found for a lease time at most from when it was first found.
        #[test]
        fn a_lease_that_runs_out_never_counts_against_a_higher_one(
            leases in prop::collection::vec((1_u64..9, 0_u64..60_000), 0..8),
            highest in 9_u64..20,
        ) {
            let mut seen = Seen::default();
            seen.polled(0, "a", highest, LEASE_MS);
            let mut polls: Vec<(u64, u64)> = leases
                .iter()
                .enumerate()
                // No two are of one incarnation: Redis gives each number once.
                .flat_map(|(at, (offset, from_ms))| {
                    let incarnation = offset % 2 + 2 * at as u64;
                    (0..=LEASE_MS).step_by(500).map(move |after_ms| (from_ms + after_ms, incarnation))
                })
                .filter(|(_, incarnation)| *incarnation < highest)
                .collect();
            polls.sort_unstable();
            for (at_ms, incarnation) in polls {
                prop_assert!(!seen.polled(at_ms, "a", incarnation, LEASE_MS), "{incarnation} at {at_ms}");
            }
        }
    }
}
