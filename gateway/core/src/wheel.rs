//! Hierarchical timer wheel: one deadline for each slot, in ticks.
//!
//! Varghese and Lauck, "Hashed and Hierarchical Timing Wheels" (1987), scheme 7 with two levels of 256 buckets. Arming,
//! moving and disarming cost O(1); an entry moves down a level at most once. The entries are linked through a table
//! indexed by slot, so an armed timer allocates nothing.

/// Length of a tick. All deadlines are whole ticks: the shortest, two seconds, is then off by 5 % at most.
pub(crate) const TICK_MS: u64 = 100;

/// Ticks in this many milliseconds, at least one.
pub(crate) const fn ticks(ms: u64) -> u32 {
    let ticks = ms.div_ceil(TICK_MS);
    if ticks == 0 { 1 } else { ticks as u32 }
}

const BUCKETS: u32 = 256;
const NONE: u32 = u32::MAX;
/// Set in `Entry::tagged_deadline` of an armed timer, and for the upper level a second bit. An entry keeps the low 30
/// bits of its tick; the rest follows from the wheel's own time, since no deadline is further away than that.
const LINKED: u32 = 1 << 31;
const UPPER: u32 = 1 << 30;
const TICK_MASK: u32 = UPPER - 1;
/// The longest delay: one turn of the upper level, less the part of it that has begun.
const DELAY_TICKS_MAX: u32 = (BUCKETS - 1) * BUCKETS;

#[derive(Clone, Debug)]
struct Entry {
    next: u32,
    prev: u32,
    tagged_deadline: u32,
}

impl Entry {
    const UNARMED: Entry = Entry { next: NONE, prev: NONE, tagged_deadline: 0 };

    /// The bucket of an armed timer.
    fn bucket(&self) -> usize {
        let deadline = self.tagged_deadline & TICK_MASK;
        let upper = self.tagged_deadline & UPPER != 0;
        (if upper { BUCKETS + deadline / BUCKETS % BUCKETS } else { deadline % BUCKETS }) as usize
    }
}

/// Bytes a slot takes in the wheel.
pub const ENTRY_BYTES: usize = size_of::<Entry>();
const _: () = assert!(ENTRY_BYTES == 12);

/// Deadlines of up to `slots` slots.
#[derive(Debug)]
pub struct TimerWheel {
    /// First entry of each bucket; the lower level comes first.
    heads: Box<[u32]>,
    entries: Vec<Entry>,
    now: u32,
}

impl TimerWheel {
    /// A wheel for slots below `slots`, at tick 0. Memory for a slot is touched when the slot is first armed.
    pub fn new(slots: u32) -> Self {
        TimerWheel {
            heads: vec![NONE; 2 * BUCKETS as usize].into_boxed_slice(),
            entries: Vec::with_capacity(slots as usize),
            now: 0,
        }
    }

    /// Sets the slot's deadline, replacing an earlier one. A deadline that has passed fires at the next tick; one
    /// further away than 65,280 ticks fires then.
    pub fn arm(&mut self, slot: u32, deadline: u32) {
        if self.entries.len() <= slot as usize {
            self.entries.resize(slot as usize + 1, Entry::UNARMED);
        }
        self.unlink(slot);
        let delay = deadline.saturating_sub(self.now).clamp(1, DELAY_TICKS_MAX);
        self.link(slot, self.now + delay);
    }

    /// Sets the slot's deadline unless an earlier one is set.
    pub fn arm_earlier(&mut self, slot: u32, deadline: u32) {
        if self.deadline(slot).is_none_or(|set| deadline < set) {
            self.arm(slot, deadline);
        }
    }

    /// Removes the slot's deadline, if any.
    pub fn disarm(&mut self, slot: u32) {
        if (slot as usize) < self.entries.len() {
            self.unlink(slot);
        }
    }

    /// The slot's deadline.
    pub fn deadline(&self, slot: u32) -> Option<u32> {
        let entry = self.entries.get(slot as usize)?;
        (entry.tagged_deadline & LINKED != 0).then(|| self.tick_of(entry))
    }

    /// The whole tick of an armed timer's deadline, which is now or later.
    fn tick_of(&self, entry: &Entry) -> u32 {
        self.now.wrapping_add(entry.tagged_deadline.wrapping_sub(self.now) & TICK_MASK)
    }

    /// Moves to tick `to` and appends the slots whose deadline has come to `due`; they are no longer armed.
    pub fn advance(&mut self, to: u32, due: &mut Vec<u32>) {
        while self.now < to {
            self.now += 1;
            if self.now.is_multiple_of(BUCKETS) {
                self.cascade();
            }
            let head = (self.now % BUCKETS) as usize;
            let mut slot = std::mem::replace(&mut self.heads[head], NONE);
            while slot != NONE {
                let entry = &mut self.entries[slot as usize];
                entry.tagged_deadline = 0;
                due.push(slot);
                slot = entry.next;
            }
        }
    }

    /// Brings the entries of the next 256 ticks down to the lower level.
    fn cascade(&mut self) {
        let head = BUCKETS + self.now / BUCKETS % BUCKETS;
        let mut slot = std::mem::replace(&mut self.heads[head as usize], NONE);
        while slot != NONE {
            let entry = &self.entries[slot as usize];
            let (next, deadline) = (entry.next, self.tick_of(entry));
            self.link(slot, deadline);
            slot = next;
        }
    }

    /// `deadline` is now only while a cascade runs, just before that tick's bucket is emptied.
    fn link(&mut self, slot: u32, deadline: u32) {
        let level = if deadline - self.now < BUCKETS { 0 } else { UPPER };
        let mut entry = Entry { tagged_deadline: deadline & TICK_MASK | LINKED | level, ..Entry::UNARMED };
        entry.next = std::mem::replace(&mut self.heads[entry.bucket()], slot);
        if entry.next != NONE {
            self.entries[entry.next as usize].prev = slot;
        }
        self.entries[slot as usize] = entry;
    }

    fn unlink(&mut self, slot: u32) {
        let entry = &mut self.entries[slot as usize];
        if entry.tagged_deadline & LINKED == 0 {
            return;
        }
        let Entry { next, prev, .. } = *entry;
        let bucket = entry.bucket();
        entry.tagged_deadline = 0;
        match prev {
            NONE => self.heads[bucket] = next,
            prev => self.entries[prev as usize].next = next,
        }
        if next != NONE {
            self.entries[next as usize].prev = prev;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    enum Step {
        Arm(u32, u32),
        ArmEarlier(u32, u32),
        Disarm(u32),
        Advance(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..40u32, 0..70_000u32).prop_map(|(s, d)| Step::Arm(s, d)),
            (0..40u32, 0..600u32).prop_map(|(s, d)| Step::ArmEarlier(s, d)),
            (0..40u32).prop_map(Step::Disarm),
            (0..300u32).prop_map(Step::Advance),
            (0..30_000u32).prop_map(Step::Advance),
        ]
    }

    proptest! {
        // Each goes through up to a million ticks.
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn every_timer_fires_once_at_its_tick(steps in prop::collection::vec(step(), 1..120)) {
            let mut wheel = TimerWheel::new(40);
            let mut model: BTreeMap<u32, u32> = BTreeMap::new();
            let mut now = 0;
            for step in steps {
                match step {
                    Step::Arm(slot, delay) => {
                        wheel.arm(slot, now + delay);
                        model.insert(slot, now + delay.clamp(1, DELAY_TICKS_MAX));
                    }
                    Step::ArmEarlier(slot, delay) => {
                        wheel.arm_earlier(slot, now + delay);
                        if model.get(&slot).is_none_or(|set| now + delay < *set) {
                            model.insert(slot, now + delay.max(1));
                        }
                    }
                    Step::Disarm(slot) => {
                        wheel.disarm(slot);
                        model.remove(&slot);
                    }
                    Step::Advance(ticks) => {
                        for _ in 0..ticks {
                            now += 1;
                            let mut due = Vec::new();
                            wheel.advance(now, &mut due);
                            due.sort_unstable();
                            let expected = model.iter().filter(|(_, d)| **d == now).map(|(slot, _)| *slot);
                            let expected: Vec<u32> = expected.collect();
                            prop_assert_eq!(&due, &expected);
                            model.retain(|_, d| *d != now);
                        }
                    }
                }
                for slot in 0..40 {
                    prop_assert_eq!(wheel.deadline(slot), model.get(&slot).copied());
                }
            }
        }
    }

    #[test]
    fn timers_fire_across_the_end_of_the_bits_an_entry_keeps() {
        let mut wheel = TimerWheel::new(3);
        wheel.now = TICK_MASK - 300;
        let begin = wheel.now;
        for (slot, delay) in [(0, 10), (1, 400), (2, 40_000)] {
            wheel.arm(slot, begin + delay);
            assert_eq!(wheel.deadline(slot), Some(begin + delay));
        }
        let mut fired = Vec::new();
        for now in begin..=begin + 40_000 {
            let mut due = Vec::new();
            wheel.advance(now, &mut due);
            fired.extend(due.into_iter().map(|slot| (slot, now - begin)));
        }
        assert_eq!(fired, [(0, 10), (1, 400), (2, 40_000)]);
    }

    #[test]
    fn a_jump_over_many_ticks_fires_everything_in_between() {
        let mut wheel = TimerWheel::new(1_000);
        for slot in 0..1_000 {
            wheel.arm(slot, slot * 7 + 1);
        }
        let mut due = Vec::new();
        wheel.advance(7_000, &mut due);
        assert_eq!(due, (0..1_000).collect::<Vec<_>>());
    }
}
