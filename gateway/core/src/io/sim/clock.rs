//! What the clock of a host shows.

/// A clock that never goes back. It counts from some moment, may run fast or slow, and may have stood still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// What it showed when the run began, milliseconds.
    pub offset_ms: u64,
    /// By how much it runs fast, in millionths; less than 0 if it runs slow.
    pub fast_ppm: i64,
    /// How long it has stood still, microseconds of the run.
    pub stood_us: u64,
}

impl Clock {
    /// What it shows at a time of the run.
    pub fn at_ms(&self, now_us: u64) -> u64 {
        let ran_us = now_us.saturating_sub(self.stood_us) as i64;
        self.offset_ms + (ran_us + ran_us / 1_000 * self.fast_ppm / 1_000) as u64 / 1_000
    }

    /// The earliest time of the run at which it shows so much, if it goes on as it does.
    pub fn when_us(&self, ms: u64) -> u64 {
        let shown_us = ms.saturating_sub(self.offset_ms) as i64 * 1_000;
        // A little too early, and then forward.
        let about_us = shown_us - shown_us / 1_000 * self.fast_ppm / 1_000;
        let early_us = (about_us - about_us / 5_000 - 5_000).max(0) as u64 + self.stood_us;
        let (mut low, mut high) = (early_us, early_us + about_us.max(0) as u64 / 2_000 + 20_000);
        while low < high {
            let middle = low.midpoint(high);
            if self.at_ms(middle) >= ms { high = middle } else { low = middle + 1 }
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_shows_a_time_first_when_it_says_so() {
        for fast_ppm in [-10_000, -37, 0, 11, 10_000] {
            for stood_us in [0, 1_234_567] {
                let clock = Clock { offset_ms: 7_000, fast_ppm, stood_us };
                for ms in [7_000, 7_001, 7_100, 12_345, 100_000, 1_000_000] {
                    let at_us = clock.when_us(ms);
                    assert!(clock.at_ms(at_us) >= ms, "{clock:?} {ms}");
                    assert!(at_us == stood_us || at_us == 0 || clock.at_ms(at_us - 1) < ms, "{clock:?} {ms} {at_us}");
                }
            }
        }
        assert_eq!(Clock { offset_ms: 0, fast_ppm: 10_000, stood_us: 0 }.at_ms(10_000_000), 10_100);
    }
}
