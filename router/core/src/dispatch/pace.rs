//! No node gets more than twice its share of the logins, however empty it is.
//!
//! By the fewest connections alone, a node that has just come would get every login of every router until it has as
//! many as the others: a storm of logins on a machine with cold caches, and nothing for those that are warm. Each
//! router paces its own picks, so together they keep to the same bound without knowing of each other.

/// A node earns so many times its share of each pick.
const SHARES: u64 = 2;
/// What one pick costs. Fine enough that the share of the lightest of a thousand nodes is not rounded away.
const PICK: u64 = 1 << 20;
/// A node saves up no more than so many picks.
const SAVED_PICKS_MAX: u64 = 8;

/// What a node has saved up of the picks it may get.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    saved: u64,
}

impl Pace {
    /// A pick takes place among nodes whose weights add up to `total`; this one is of `weight`.
    pub(super) fn earn(&mut self, weight: u32, total: u64) {
        let earned = (SHARES * PICK * u64::from(weight)).checked_div(total).unwrap_or(0);
        self.saved = (self.saved + earned).min(SAVED_PICKS_MAX * PICK);
    }

    /// Whether it may get one.
    pub(super) fn allows(self) -> bool {
        self.saved >= PICK
    }

    /// It got one, allowed or not.
    pub(super) fn spend(&mut self) {
        self.saved = self.saved.saturating_sub(PICK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whoever is preferred always gets it when it may: then it has twice its share, and what was saved up.
        #[test]
        fn the_most_preferred_gets_twice_its_share_and_no_more(
            weights in prop::collection::vec(1_u32..100, 1..40),
            picks in 1_u64..2_000,
        ) {
            let total: u64 = weights.iter().copied().map(u64::from).sum();
            let mut paces = vec![Pace::default(); weights.len()];
            let mut got = 0;
            for _ in 0..picks {
                paces.iter_mut().zip(&weights).for_each(|(pace, weight)| pace.earn(*weight, total));
                match paces.iter().position(|pace| pace.allows()) {
                    Some(first) => {
                        got += u64::from(first == 0);
                        paces[first].spend();
                    }
                    // Only until enough has been saved up for the first time.
                    None => prop_assert!(paces.iter().all(|pace| pace.saved < PICK)),
                }
            }
            let twice = SHARES * picks * u64::from(weights[0]) / total;
            prop_assert!(got <= twice.min(picks) + SAVED_PICKS_MAX, "{got} of {picks}");
            prop_assert!(got + SAVED_PICKS_MAX + 1 >= twice.min(picks), "{got} of {picks}, {twice} may be");
        }
    }
}
