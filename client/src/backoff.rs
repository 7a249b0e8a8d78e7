//! How long to wait before connecting again.

use std::time::Duration;

/// Exponential back-off with "equal jitter" (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015):
/// a wait is between half and all of a ceiling that doubles with each failed attempt. The random half spreads clients
/// that lost the same server; the fixed half keeps a single client from hammering it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Ceiling of the first wait.
    pub first: Duration,
    /// Ceiling that is never exceeded.
    pub max: Duration,
}

impl Default for Backoff {
    /// 250 ms, doubling up to 30 s.
    fn default() -> Self {
        Self { first: Duration::from_millis(250), max: Duration::from_secs(30) }
    }
}

impl Backoff {
    /// The longest wait before attempt number `attempt`, counted from 0.
    #[must_use]
    pub fn ceiling(&self, attempt: u32) -> Duration {
        let doubled = 1_u32.checked_shl(attempt).and_then(|factor| self.first.checked_mul(factor));
        doubled.map_or(self.max, |ceiling| ceiling.min(self.max))
    }

    /// The wait before attempt number `attempt`: from half the ceiling at `random` = 0 to all of it at `random` = 1.
    /// Values of `random` outside 0…1 count as the nearer end, NaN as 0.
    #[must_use]
    pub fn delay(&self, attempt: u32, random: f64) -> Duration {
        let half = self.ceiling(attempt) / 2;
        let share = if random.is_nan() { 0.0 } else { random.clamp(0.0, 1.0) };
        half + half.mul_f64(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_delay_lies_between_half_the_ceiling_and_the_ceiling() {
        let backoff = Backoff::default();
        for attempt in (0..70).chain([u32::MAX]) {
            let ceiling = backoff.ceiling(attempt);
            for random in [0.0, 0.001, 0.5, 0.999, 1.0, -3.0, 7.0, f64::NAN] {
                let delay = backoff.delay(attempt, random);
                assert!(
                    delay >= ceiling / 2 && delay <= ceiling,
                    "attempt {attempt}, random {random}: {delay:?} of {ceiling:?}"
                );
            }
        }
    }

    #[test]
    fn the_ceiling_doubles_until_the_maximum_and_stays_there() {
        let backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_secs(1) };
        let ceilings: Vec<u128> =
            [0, 1, 2, 3, 4, 31, 32, u32::MAX].iter().map(|&attempt| backoff.ceiling(attempt).as_millis()).collect();
        assert_eq!(ceilings, [100, 200, 400, 800, 1000, 1000, 1000, 1000]);
    }

    #[test]
    fn a_first_wait_above_the_maximum_is_cut_to_it() {
        let backoff = Backoff { first: Duration::from_secs(9), max: Duration::from_secs(4) };
        assert_eq!(backoff.delay(0, 1.0), Duration::from_secs(4));
        assert_eq!(backoff.delay(0, 0.0), Duration::from_secs(2));
    }
}
