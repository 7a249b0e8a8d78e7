//! Smooth weighted round robin, the algorithm of nginx.
//!
//! On every pick each server that takes part gains its effective weight; the one with the most is picked, the first of
//! several, and loses what all have gained together. So over any period of as many picks as the weights add up to, each
//! is picked as often as its weight says, and the picks of a heavy one are spread: weights 5, 1, 1 give a a b a c a a.

use super::slot::{Slot, UNIT};

/// The next of the servers that `takes_part`, by index. O(n).
pub(super) fn pick(slots: &mut [Slot], now_ms: u64, takes_part: impl Fn(&Slot) -> bool) -> Option<usize> {
    let mut gained = 0;
    let mut best: Option<(usize, i64)> = None;
    for (index, slot) in slots.iter_mut().enumerate().filter(|(_, slot)| takes_part(slot)) {
        // Below 2^32, and below 2^42 over all servers.
        let gain = slot.effective_units(now_ms) as i64;
        gained += gain;
        slot.current += gain;
        slot.recover_one();
        if best.is_none_or(|(_, most)| slot.current > most) {
            best = Some((index, slot.current));
        }
    }
    let (index, _) = best?;
    slots[index].current -= gained;
    Some(index)
}

/// After servers came, went or changed their weights: brings those that were there before back to 0 in their mean,
/// where picks keep them, so that one that comes starts level with them; and lets nobody be further ahead or behind
/// than one round of the new weights, else a heavy server made light would be left out, or picked alone, for a round of
/// the old ones.
pub(super) fn settle(slots: &mut [Slot], backup: bool, is_new: impl Fn(&Slot) -> bool) {
    let in_tier = |slot: &&mut Slot| slot.server.options().backup == backup;
    let (mut kept, mut sum, mut round) = (0, 0, 0);
    for slot in slots.iter_mut().filter(in_tier) {
        kept += i64::from(!is_new(slot));
        sum += slot.current;
        round += i64::from(slot.server.options().weight) * UNIT as i64;
    }
    for slot in slots.iter_mut().filter(in_tier).filter(|slot| !is_new(slot)) {
        slot.current = (slot.current - sum / kept).clamp(-round, round);
    }
}
