//! The least expected wait: response time × (connections + 1) for each unit of weight; among equals, weighted round
//! robin.
//!
//! The response time is a peak EWMA (Finagle's `PeakEwma`): a longer time counts at once, a shorter one as the average
//! decays, by 1/e in
//! [`DECAY_MS`]. So a server that becomes slow is left alone at once, and is believed again only after it has been fast
//! for a while. A failure has to be told as a long time by the caller, or a server that refuses at once would draw all
//! calls.

use super::round_robin;
use super::slot::Slot;

/// Time in which an average loses all but 1/e of what it was.
const DECAY_MS: f64 = 10_000.0;

/// Response time of one server.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ResponseTime {
    /// Microseconds; `None` before the first is told.
    average_us: Option<f64>,
    told_ms: u64,
}

impl ResponseTime {
    /// Takes in how long an answer took.
    pub(super) fn took(&mut self, us: u64, now_ms: u64) {
        let us = us as f64;
        let elapsed_ms = now_ms.saturating_sub(self.told_ms) as f64;
        let kept = (-elapsed_ms / DECAY_MS).exp();
        self.average_us = Some(match self.average_us {
            Some(average_us) if average_us > us => average_us * kept + us * (1.0 - kept),
            Some(_) | None => us,
        });
        self.told_ms = now_ms;
    }
}

/// The server of the tier that is expected to answer first, by index. O(n).
pub(super) fn pick(slots: &mut [Slot], backup: bool, now_ms: u64) -> Option<usize> {
    let open = slots.iter().filter(|slot| slot.is_open(backup, now_ms));
    let least = open.map(|slot| cost(slot, now_ms)).min_by(f64::total_cmp)?;
    round_robin::pick(slots, now_ms, |slot| slot.is_open(backup, now_ms) && cost(slot, now_ms) <= least)
}

/// What a call to this server costs now. Of one that has never answered nothing is known but that it has not answered:
/// it gets one call, and further ones only where there is nobody else.
fn cost(slot: &Slot, now_ms: u64) -> f64 {
    let conns = f64::from(slot.conns);
    let weight = slot.load_units(now_ms) as f64;
    match slot.response_time.average_us {
        Some(average_us) => average_us.max(1.0) * (conns + 1.0) / weight,
        None if slot.conns == 0 => 0.0,
        None => f64::MAX / 1e12 * conns,
    }
}
