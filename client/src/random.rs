//! Random numbers that need to differ, not to be secret.

use std::hash::{BuildHasher, Hasher, RandomState};

/// 64 random bits: SipHash of nothing under std's keys, which the system's random source gives to each thread and which
/// change with each call.
pub(crate) fn bits() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A number in 0 … 1, without the 1: the upper 53 of 64 random bits.
pub(crate) fn share() -> f64 {
    (bits() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_fill_their_range_evenly_and_no_two_are_alike() {
        let mut shares: Vec<f64> = (0..10_000).map(|_| share()).collect();
        assert!(shares.iter().all(|share| (0.0..1.0).contains(share)));
        shares.sort_by(f64::total_cmp);
        assert!(shares.windows(2).all(|two| two[0] < two[1]));
        // 1,000 are expected in each tenth, give or take 30; ten times that is never seen.
        for tenth in 0_u8..10 {
            let (low, high) = (f64::from(tenth) / 10.0, f64::from(tenth + 1) / 10.0);
            let count = shares.iter().filter(|share| (low..high).contains(*share)).count();
            assert!((700..=1_300).contains(&count), "{count} between {low} and {high}");
        }
    }
}
