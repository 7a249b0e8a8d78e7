//! The less loaded of two, nginx's `random two least_conn`; the power of two choices (Mitzenmacher, 2001).

use super::least_conn::Load;
use super::server::Server;
use super::slot::Slot;
use rand::{Rng, RngExt};
use std::cmp::Ordering;

/// Draws that may meet a server that is unavailable or already drawn, before round robin takes over, as in nginx. With
/// half of many servers unavailable that is once in some 100,000 picks.
pub(super) const MISSES_MAX: u32 = 20;

/// The servers of one tier on a line, each as long as its weight.
#[derive(Debug, Clone)]
pub(super) struct Line {
    /// Where each server ends.
    ends: Box<[u32]>,
    /// The slot of each.
    slots: Box<[u16]>,
}

impl Line {
    /// `tier`: the servers with their slots. Their weights add up to less than 2^26.
    pub(super) fn new(tier: &[(u16, &Server)]) -> Self {
        let mut end = 0;
        let ends = tier.iter().map(|(_, server)| {
            end += server.options().weight;
            end
        });
        Line { ends: ends.collect(), slots: tier.iter().map(|(slot, _)| *slot).collect() }
    }

    /// The one of two available servers, drawn by weight and without repetition, that has fewer connections for each
    /// unit of weight, by index. Equals: the first drawn, whose chance is exactly its share of the weight. `None` when
    /// there are not two, or they are not met in time. O(log n).
    pub(super) fn pick(
        &self,
        slots: &[Slot],
        now_ms: u64,
        is_open: impl Fn(&Slot) -> bool,
        rng: &mut (impl Rng + ?Sized),
    ) -> Option<usize> {
        if self.slots.len() < 2 {
            return None;
        }
        let mut first = None;
        let mut misses = 0;
        while misses <= MISSES_MAX {
            let drawn = self.draw(rng);
            match first {
                _ if !is_open(&slots[drawn]) => misses += 1,
                None => first = Some(drawn),
                Some(first) if first == drawn => misses += 1,
                Some(first) => {
                    let (one, other) = (Load::of(&slots[first], now_ms), Load::of(&slots[drawn], now_ms));
                    return Some(if other.cmp(&one) == Ordering::Less { drawn } else { first });
                }
            }
        }
        None
    }

    fn draw(&self, rng: &mut (impl Rng + ?Sized)) -> usize {
        let end = self.ends[self.ends.len() - 1];
        let at = rng.random_range(0..end);
        usize::from(self.slots[self.ends.partition_point(|&end| end <= at)])
    }
}
