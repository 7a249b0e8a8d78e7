//! Whether the shards turn. A quiet shard has a turn every 100 ms too, so one that has had none for a while does not
//! work any more.
//!
//! It is looked at in regular samples, and samples are what is counted: after the whole process was paused, all clocks
//! have run on, and no shard has had its turn yet.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Time between two samples.
pub(super) const SAMPLE_PERIOD: Duration = Duration::from_millis(500);
/// Samples without a turn between them after which a shard counts as stuck: 3 s, far more than the longest turn, and
/// less than a load balancer waits before it believes a probe.
const STUCK_SAMPLES: u32 = 6;

/// What the samples have shown, by shard.
#[derive(Debug, Default)]
pub(super) struct Pulse(Mutex<Vec<Beat>>);

#[derive(Clone, Copy, Debug, Default)]
struct Beat {
    turns: u64,
    /// Samples since the last that saw a turn.
    missed: u32,
}

impl Pulse {
    /// Takes the number of turns of each shard.
    pub(super) fn sample(&self, turns: impl Iterator<Item = u64>) {
        let mut beats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (shard, turns) in turns.enumerate() {
            match beats.get_mut(shard) {
                Some(beat) if beat.turns == turns => beat.missed = beat.missed.saturating_add(1),
                Some(beat) => *beat = Beat { turns, missed: 0 },
                None => beats.push(Beat { turns, missed: 0 }),
            }
        }
    }

    /// The shards that do not turn.
    pub(super) fn stuck(&self) -> Vec<usize> {
        let beats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        beats.iter().enumerate().filter(|(_, beat)| beat.missed >= STUCK_SAMPLES).map(|(shard, _)| shard).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_without_turns_is_stuck_until_it_has_one() {
        let pulse = Pulse::default();
        assert!(pulse.stuck().is_empty());
        for sample in 0..=u64::from(STUCK_SAMPLES) {
            assert!(pulse.stuck().is_empty(), "sample {sample}");
            pulse.sample([sample, 7, 100 + sample].into_iter());
        }
        assert_eq!(pulse.stuck(), [1]);
        pulse.sample([0, 8, 0].into_iter());
        assert!(pulse.stuck().is_empty());
    }
}
