//! When each client sends its next PING: a wheel of one interval, with slots of a millisecond.

use std::time::Duration;

use trunkline_router::hash::user_hash;

/// More slots than this are not needed: those of longer intervals are wider.
const SLOTS_MAX: u64 = 1 << 15;
const SLOT_US_MIN: u64 = 1_000;
/// A PING comes up to this part of the interval early or late, so that clients who logged in together do not go on in
/// step.
const APART: u64 = 20;

/// A PING that is due, unless `since_us` is no longer what the client was last heard to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) connection: u32,
    pub(crate) since_us: u32,
}

/// The heartbeats of all clients.
#[derive(Debug)]
pub(crate) struct Heartbeats {
    interval_us: u64,
    slot_us: u64,
    slots: Vec<Vec<Due>>,
    /// The first slot, counted from the clock's zero, that may still hold something.
    next: u64,
}

impl Heartbeats {
    /// Heartbeats of which each client sends one in `interval_us`.
    pub(crate) fn new(interval_us: u64, now_us: u64) -> Heartbeats {
        let slot_us = (interval_us / SLOTS_MAX).max(SLOT_US_MIN);
        // Two more than the longest interval has: the slot that is being emptied, and the one an interval may end in.
        let slots = ((interval_us + interval_us / APART) / slot_us + 2) as usize;
        Heartbeats { interval_us, slot_us, slots: vec![Vec::new(); slots], next: now_us / slot_us }
    }

    /// Time from one PING to the next, on average.
    pub(crate) fn interval_us(&self) -> u64 {
        self.interval_us
    }

    /// When a client that logs in or pings now sends its next PING: about an interval later.
    pub(crate) fn next_us(&self, connection: u32, now_us: u64) -> u64 {
        let apart_us = self.interval_us / APART;
        let late_us = user_hash(u64::from(connection) << 32 ^ now_us) % (2 * apart_us).max(1);
        now_us + self.interval_us - apart_us + late_us
    }

    /// The client's next PING is due at this time, which lies at most an interval and a twentieth ahead.
    pub(crate) fn add(&mut self, due: Due, at_us: u64) {
        let latest = self.next + self.slots.len() as u64 - 1;
        let slot = (at_us / self.slot_us).clamp(self.next, latest);
        let count = self.slots.len() as u64;
        self.slots[(slot % count) as usize].push(due);
    }

    /// How long to sleep until the next PING is due, at most `patience`.
    pub(crate) fn wait(&self, now_us: u64, patience: Duration) -> Duration {
        let end = (now_us + patience.as_micros() as u64) / self.slot_us;
        let count = self.slots.len() as u64;
        let mut ahead = self.next..=end.min(self.next + count - 1);
        match ahead.find(|slot| !self.slots[(slot % count) as usize].is_empty()) {
            Some(slot) => patience.min(Duration::from_micros((slot * self.slot_us).saturating_sub(now_us))),
            None => patience,
        }
    }

    /// Takes one PING that is due.
    pub(crate) fn take(&mut self, now_us: u64) -> Option<Due> {
        let count = self.slots.len() as u64;
        while self.next * self.slot_us <= now_us {
            if let Some(due) = self.slots[(self.next % count) as usize].pop() {
                return Some(due);
            }
            self.next += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_US: u64 = 1_000_000;

    fn taken(heartbeats: &mut Heartbeats, now_us: u64) -> Vec<u32> {
        std::iter::from_fn(|| heartbeats.take(now_us)).map(|due| due.connection).collect()
    }

    #[test]
    fn each_is_due_at_its_time_and_once() {
        let began = 77 * SECOND_US + 123;
        let mut heartbeats = Heartbeats::new(30 * SECOND_US, began);
        for connection in 0..30 {
            heartbeats.add(Due { connection, since_us: 0 }, began + u64::from(connection) * SECOND_US);
        }
        for second in 0..60 {
            let now = began + second * SECOND_US;
            let connection = (second % 30) as u32;
            assert_eq!(taken(&mut heartbeats, now), [connection]);
            if second < 30 {
                heartbeats.add(Due { connection, since_us: 1 }, now + 30 * SECOND_US);
            }
        }
        assert!(taken(&mut heartbeats, began + 200 * SECOND_US).is_empty());
    }

    #[test]
    fn clients_that_begin_together_do_not_go_on_in_step() {
        let heartbeats = Heartbeats::new(30 * SECOND_US, 0);
        let mut of_second = [0; 3];
        for connection in 0..3_000 {
            let next_us = heartbeats.next_us(connection, SECOND_US);
            let after_us = next_us - SECOND_US;
            assert!((28_500_000..31_500_000).contains(&after_us), "{after_us}");
            of_second[((after_us - 28_500_000) / SECOND_US) as usize] += 1;
        }
        assert!(of_second.iter().all(|count| (800..1_200).contains(count)), "{of_second:?}");
    }

    #[test]
    fn nobody_sleeps_longer_than_until_the_next_one() {
        const PATIENCE: Duration = Duration::from_millis(50);
        let mut heartbeats = Heartbeats::new(30 * SECOND_US, 0);
        assert_eq!(heartbeats.wait(0, PATIENCE), PATIENCE);
        heartbeats.add(Due { connection: 0, since_us: 0 }, 20_400);
        heartbeats.add(Due { connection: 1, since_us: 0 }, 29 * SECOND_US);
        assert_eq!(heartbeats.wait(500, PATIENCE), Duration::from_micros(19_500));
        assert_eq!(heartbeats.wait(500, Duration::from_millis(7)), Duration::from_millis(7));
        assert_eq!(heartbeats.wait(21_000, PATIENCE), Duration::ZERO, "it is due");
        assert_eq!(taken(&mut heartbeats, 21_000), [0]);
        assert_eq!(heartbeats.wait(21_000, PATIENCE), PATIENCE);
        assert_eq!(heartbeats.wait(21_000, Duration::from_secs(3_600)), Duration::from_micros(28_979_000));
    }

    #[test]
    fn a_clock_that_stood_still_for_long_loses_none() {
        let mut heartbeats = Heartbeats::new(SECOND_US, 0);
        for connection in 0..1_000 {
            heartbeats.add(Due { connection, since_us: 0 }, u64::from(connection) * 1_000);
        }
        assert_eq!(taken(&mut heartbeats, 90 * SECOND_US).len(), 1_000);
        heartbeats.add(Due { connection: 1, since_us: 0 }, 0);
        assert_eq!(taken(&mut heartbeats, 90 * SECOND_US + 1_000), [1], "what is late is due at once");
    }
}
