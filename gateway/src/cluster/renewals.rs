//! How regularly Redis has renewed the lease of this node: each beat should have a renewal that works. No clock.

/// Renewals of the lease that this node asked Redis for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenewalCounts {
    /// Those that worked, taking the lease included.
    pub renewed: u64,
    /// Those that failed, or had no answer in time.
    pub failed: u64,
    /// Beats in which none was sent that worked.
    pub missed: u64,
}

/// Counts them.
#[derive(Debug)]
pub(super) struct Renewals {
    beat_ms: u64,
    /// When the latest one that worked was sent; 0 before the first.
    sent_ms: u64,
    counts: RenewalCounts,
}

impl Renewals {
    pub(super) fn new(beat_ms: u64) -> Self {
        Renewals { beat_ms: beat_ms.max(1), sent_ms: 0, counts: RenewalCounts::default() }
    }

    /// The latest renewal that worked was sent at `sent_ms`; 0 if there was none.
    pub(super) fn look(&mut self, sent_ms: u64) {
        if sent_ms <= self.sent_ms {
            return;
        }
        if self.sent_ms > 0 {
            // A renewal that comes half a beat late, or is sent between two beats, is none that was missed.
            let beats = (sent_ms - self.sent_ms + self.beat_ms / 2) / self.beat_ms;
            self.counts.missed += beats.saturating_sub(1);
        }
        self.counts.renewed += 1;
        self.sent_ms = sent_ms;
    }

    /// A renewal has failed.
    pub(super) fn failed(&mut self) {
        self.counts.failed += 1;
    }

    pub(super) fn counts(&self) -> RenewalCounts {
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_without_a_renewal_is_counted_once_one_works_again() {
        let mut renewals = Renewals::new(1_000);
        let mut after = |sent_ms| {
            renewals.look(sent_ms);
            renewals.counts().missed
        };
        assert_eq!([0, 5_000, 5_000, 6_000, 7_499, 8_000].map(&mut after), [0; 6]);
        assert_eq!([9_500, 10_500, 13_400, 13_600].map(&mut after), [1, 1, 3, 3]);
        renewals.failed();
        assert_eq!(renewals.counts(), RenewalCounts { renewed: 8, failed: 1, missed: 3 });
    }
}
