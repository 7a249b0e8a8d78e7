//! What is said while something is waited for: at once when it changes, and every so often while it does not.

use std::time::{Duration, Instant};

/// How often the same is said again.
const SAID_AGAIN: Duration = Duration::from_secs(30);

/// What was said last, and when.
#[derive(Debug, Default)]
pub struct Patience {
    said: Option<(&'static str, Instant)>,
}

impl Patience {
    /// Whether a reason of this kind is to be said now.
    pub fn is_due(&mut self, kind: &'static str, now: Instant) -> bool {
        let due = self.said.is_none_or(|(said, at)| said != kind || now.duration_since(at) >= SAID_AGAIN);
        if due {
            self.said = Some((kind, now));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_said_at_once_and_the_same_every_half_minute() {
        let mut patience = Patience::default();
        let start = Instant::now();
        let mut said = Vec::new();
        for secs in 0..100 {
            let kind = if (40..50).contains(&secs) { "timed_out" } else { "unreachable" };
            if patience.is_due(kind, start + Duration::from_secs(secs)) {
                said.push(secs);
            }
        }
        assert_eq!(said, [0, 30, 40, 50, 80]);
    }
}
