//! How many calls may be sent again: a fifth of those that come, and ten a second besides, so that retries never double
//! the load of workers in trouble.

/// Thousandths of a retry that each call brings, and each millisecond.
const PER_CALL: u64 = 200;
const PER_MS: u64 = 10;
/// What may be saved up: the calls of one full window.
const SAVED_MAX: u64 = 256_000;
const ONE: u64 = 1_000;
/// Retries of a service in a second, however few calls there are.
pub const RETRIES_PER_SEC: u64 = PER_MS * 1_000 / ONE;

/// Retries of one service that one shard may still make.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RetryBudget {
    saved: u64,
    seen_ms: u64,
}

impl Default for RetryBudget {
    fn default() -> Self {
        // Ten, as after a second of quiet.
        RetryBudget { saved: 10 * ONE, seen_ms: 0 }
    }
}

impl RetryBudget {
    /// A call has come for the first time.
    pub(crate) fn note_call(&mut self) {
        self.saved = (self.saved + PER_CALL).min(SAVED_MAX);
    }

    /// Takes one retry. False if there is none left.
    pub(crate) fn take(&mut self, now_ms: u64) -> bool {
        // Before the first look there is no time that has passed.
        let passed_ms = if self.seen_ms == 0 { 0 } else { now_ms.saturating_sub(self.seen_ms) };
        self.seen_ms = now_ms;
        self.saved = (self.saved + passed_ms.saturating_mul(PER_MS)).min(SAVED_MAX);
        let has_one = self.saved >= ONE;
        if has_one {
            self.saved -= ONE;
        }
        has_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_of_the_calls_and_ten_a_second_may_be_sent_again_and_no_more() {
        let mut budget = RetryBudget::default();
        let taken = |budget: &mut RetryBudget, now_ms| (0..10_000).filter(|_| budget.take(now_ms)).count();
        assert_eq!(taken(&mut budget, 1_000), 10);
        (0..100).for_each(|_| budget.note_call());
        assert_eq!(taken(&mut budget, 1_000), 20);
        assert_eq!(taken(&mut budget, 3_000), 20);
        (0..100_000).for_each(|_| budget.note_call());
        assert_eq!(taken(&mut budget, 3_000), 256, "what is saved up is bounded");
    }
}
