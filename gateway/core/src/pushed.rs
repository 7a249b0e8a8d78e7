//! Pushes that a shard has taken lately as the home of whom they are for, so that one that is tried again through
//! another node is not taken for another. No I/O and no clock.
//!
//! What is remembered is what says of itself that it may come again: a push with an Idempotency-Key, whose id follows
//! from the key at every node, or with `retry`. The node that was asked knows it longer and says where it stands; this
//! is for the others. It needs no store.
//!
//! There are two generations, as of [`Duplicates`](crate::desk::Duplicates): a new one begins when the present one is
//! five minutes old or full, and the one before is forgotten.

use crate::desk::Known;
use crate::wheel::ticks;
use hashbrown::HashMap;

/// For so long a push is remembered at least, unless there are too many.
pub const PUSHED_MS: u64 = 300_000;
/// Pushes that a shard remembers at most.
pub const PUSHED_MAX: usize = 32_768;
/// Those of one generation.
const GENERATION_MAX: usize = PUSHED_MAX / 2;
const GENERATION_TICKS: u32 = ticks(PUSHED_MS);
/// Bytes that a shard takes for them at most: a table is up to twice as large as what it holds.
pub const PUSHED_BYTES: u64 = 2 * 2 * GENERATION_MAX as u64 * (size_of::<(PushName, Taken)>() as u64 + 1);

/// What a push is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PushName {
    /// The message's id.
    pub(crate) id: u64,
    /// The user or the room it is for; of one for all sessions what says what it holds.
    pub(crate) to: u64,
    /// The user that stands for the service.
    pub(crate) from: u64,
    /// Whether an ACK is asked for. One without is done with when it was given to somebody.
    pub(crate) acked: bool,
}

/// What became of a push, and its position.
type Taken = (u64, Known);

/// The pushes of the last minutes.
#[derive(Debug, Default)]
pub(crate) struct Pushed {
    present: HashMap<PushName, Taken>,
    before: HashMap<PushName, Taken>,
    began_tick: u32,
}

impl Pushed {
    /// Begins a new generation where it is time. Returns whether that is because there were too many.
    pub(crate) fn turn_over(&mut self, tick: u32) -> bool {
        let full = self.present.len() >= GENERATION_MAX;
        if !full && tick.saturating_sub(self.began_tick) < GENERATION_TICKS {
            return false;
        }
        self.began_tick = tick;
        std::mem::swap(&mut self.present, &mut self.before);
        match full {
            // The memory of the one that is forgotten serves the next.
            true => self.present.clear(),
            false => self.present = HashMap::new(),
        }
        full
    }

    /// Notes a push that was taken, or what became of it.
    pub(crate) fn note(&mut self, name: PushName, stamp: u64, known: Known) {
        self.present.insert(name, (stamp, known));
    }

    /// Notes what became of a push, if it is remembered.
    pub(crate) fn settle(&mut self, name: PushName, stamp: u64, known: Known) {
        let of_name = match self.present.get_mut(&name) {
            Some(taken) => Some(taken),
            None => self.before.get_mut(&name),
        };
        if let Some(taken) = of_name {
            *taken = (stamp, known);
        }
    }

    /// What is remembered of a push: its position, and what became of it.
    pub(crate) fn find(&self, name: &PushName) -> Option<(u64, Known)> {
        self.present.get(name).or_else(|| self.before.get(name)).copied()
    }

    /// Pushes that are remembered.
    pub(crate) fn len(&self) -> usize {
        self.present.len() + self.before.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(id: u64) -> PushName {
        PushName { id, to: 2, from: 3, acked: true }
    }

    #[test]
    fn a_push_is_remembered_for_five_minutes_with_what_became_of_it() {
        let mut pushed = Pushed::default();
        pushed.note(name(1), 10, Known::Open);
        assert_eq!(pushed.find(&name(1)), Some((10, Known::Open)));
        for other in [name(2), PushName { to: 9, ..name(1) }, PushName { from: 9, ..name(1) }] {
            assert_eq!(pushed.find(&other), None);
        }
        assert_eq!(pushed.find(&PushName { acked: false, ..name(1) }), None);
        assert!(!pushed.turn_over(GENERATION_TICKS - 1));
        pushed.turn_over(GENERATION_TICKS);
        pushed.settle(name(1), 11, Known::Delivered);
        pushed.settle(name(2), 11, Known::Delivered);
        assert_eq!((pushed.find(&name(1)), pushed.find(&name(2))), (Some((11, Known::Delivered)), None));
        pushed.turn_over(2 * GENERATION_TICKS - 1);
        assert_eq!(pushed.len(), 1);
        pushed.turn_over(2 * GENERATION_TICKS);
        assert_eq!((pushed.find(&name(1)), pushed.len()), (None, 0));
    }

    #[test]
    fn there_are_never_more_than_may_be() {
        let mut pushed = Pushed::default();
        let mut full = 0;
        for id in 0..3 * PUSHED_MAX as u64 {
            full += u64::from(pushed.turn_over(1));
            pushed.note(name(id), id, Known::Open);
            assert!(pushed.len() <= PUSHED_MAX);
        }
        assert_eq!(full, 5);
        assert!(pushed.find(&name(3 * PUSHED_MAX as u64 - 1)).is_some() && pushed.find(&name(0)).is_none());
        let places = pushed.present.capacity() + pushed.before.capacity();
        assert!(places * (size_of::<(PushName, Taken)>() + 1) <= PUSHED_BYTES as usize);
    }
}
