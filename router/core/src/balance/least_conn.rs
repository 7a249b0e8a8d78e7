//! The fewest connections for each unit of weight, nginx's `least_conn`; among equals, weighted round robin.

use super::round_robin;
use super::slot::Slot;
use std::cmp::Ordering;

/// The least loaded server of the tier, by index. O(n).
pub(super) fn pick(slots: &mut [Slot], backup: bool, now_ms: u64) -> Option<usize> {
    let open = slots.iter().filter(|slot| slot.is_open(backup, now_ms));
    let least = Load::of(open.min_by(|a, b| Load::of(a, now_ms).cmp(&Load::of(b, now_ms)))?, now_ms);
    round_robin::pick(slots, now_ms, |slot| {
        slot.is_open(backup, now_ms) && Load::of(slot, now_ms).cmp(&least) == Ordering::Equal
    })
}

/// Connections against weight, compared by cross multiplication: exact, so that equals are equal.
pub(super) struct Load {
    conns: u64,
    weight: u64,
}

impl Load {
    /// With the weight as far as it has climbed. Failures do not lower it here, as in nginx.
    pub(super) fn of(slot: &Slot, now_ms: u64) -> Self {
        Load { conns: slot.conns.into(), weight: slot.load_units(now_ms) }
    }

    pub(super) fn cmp(&self, other: &Load) -> Ordering {
        // 32 bits times 32 bits.
        (self.conns * other.weight).cmp(&(other.conns * self.weight))
    }
}
