//! When the hook is left in peace: after some failures one after the other it is asked nothing for a while, then one
//! question; if that fails too, nothing for twice as long.

/// Failures one after the other that open the circuit.
pub(super) const FAILURES: u32 = 5;
/// How long it stays open first, and at the longest.
pub(super) const OPEN_MS: u64 = 1_000;
pub(super) const OPEN_MS_MAX: u64 = 30_000;

/// The circuit before the hook.
#[derive(Debug, Default)]
pub(super) struct Circuit {
    failures: u32,
    /// It is open, and nothing is asked before that.
    until_ms: Option<u64>,
    open_ms: u64,
    /// The one question by which it is found out whether the hook is back.
    probes: bool,
}

impl Circuit {
    /// Whether a question may be asked; if so it is asked, and [`Circuit::ended`] follows. With it whether it is the
    /// one by which it is found out.
    pub(super) fn may_ask(&mut self, now_ms: u64) -> Option<bool> {
        let Some(until_ms) = self.until_ms else { return Some(false) };
        if self.probes || now_ms < until_ms {
            return None;
        }
        self.probes = true;
        Some(true)
    }

    /// A question has ended, with an answer or without.
    pub(super) fn ended(&mut self, answered: bool, was_probe: bool, now_ms: u64) {
        if answered {
            *self = Circuit::default();
            return;
        }
        if was_probe {
            self.probes = false;
        } else if self.until_ms.is_some() {
            // It was asked before.
            return;
        }
        self.failures += 1;
        if was_probe || self.failures >= FAILURES {
            self.open_ms = (2 * self.open_ms).clamp(OPEN_MS, OPEN_MS_MAX);
            self.until_ms = Some(now_ms + self.open_ms);
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.until_ms.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_hook_is_asked_ever_less_often_and_at_once_again_when_it_is_back() {
        let mut circuit = Circuit::default();
        for _ in 1..FAILURES {
            assert_eq!(circuit.may_ask(0), Some(false));
            circuit.ended(false, false, 0);
        }
        circuit.ended(true, false, 0);
        for _ in 0..FAILURES {
            assert!(!circuit.is_open(), "an answer has wiped out what was before");
            circuit.ended(false, false, 0);
        }
        let mut now_ms = 0;
        for open_ms in [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
            // What was under way ends late.
            circuit.ended(false, false, now_ms + open_ms - 1);
            assert_eq!(circuit.may_ask(now_ms + open_ms - 1), None, "{open_ms}");
            now_ms += open_ms;
            assert_eq!((circuit.may_ask(now_ms), circuit.may_ask(now_ms)), (Some(true), None), "one, no more");
            circuit.ended(false, true, now_ms);
        }
        assert_eq!(circuit.may_ask(now_ms + OPEN_MS_MAX), Some(true));
        circuit.ended(true, true, now_ms);
        assert_eq!((circuit.is_open(), circuit.may_ask(now_ms)), (false, Some(false)));
    }
}
