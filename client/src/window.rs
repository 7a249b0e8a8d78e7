//! Which messages were seen before: at-least-once delivery made exactly-once for the application, within a bound.

use std::collections::{HashMap, VecDeque};

/// A message's name: its sender and the sender's id.
pub(crate) type Key = (u64, u64);

/// What is known of a message that has just arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Never seen, or forgotten.
    New,
    /// Seen; the application has not taken it yet, so nothing may be acknowledged.
    Waiting,
    /// Seen and acknowledged; the acknowledgement got lost and is due again.
    Taken,
}

#[derive(Debug)]
struct Entry {
    taken: bool,
    /// As last delivered: a redelivery may carry another position, and the acknowledgement must name that one.
    stamp: u64,
    /// Tells this entry from an earlier, forgotten one with the same key, whose place in `order` remains.
    serial: u64,
}

/// The last `capacity` messages. The map hashes with std's keyed SipHash, as peers choose the keys.
#[derive(Debug)]
pub(crate) struct Window {
    capacity: usize,
    entries: HashMap<Key, Entry>,
    /// Oldest first; never longer than `capacity`, and holds every key of `entries`.
    order: VecDeque<(Key, u64)>,
    serial_next: u64,
}

impl Window {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, entries: HashMap::new(), order: VecDeque::new(), serial_next: 0 }
    }

    /// Notes an arrival.
    pub(crate) fn arrive(&mut self, key: Key, stamp: u64) -> Seen {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.stamp = stamp;
            return if entry.taken { Seen::Taken } else { Seen::Waiting };
        }
        if self.order.len() == self.capacity {
            self.forget_oldest();
        }
        let serial = self.serial_next;
        self.serial_next += 1;
        self.order.push_back((key, serial));
        let taken = false;
        self.entries.insert(key, Entry { taken, stamp, serial });
        Seen::New
    }

    /// Notes that the application has the message; returns the stamp to acknowledge, unless that has been done.
    pub(crate) fn take(&mut self, key: Key, stamp: u64) -> Option<u64> {
        let Some(entry) = self.entries.get_mut(&key) else {
            return Some(stamp);
        };
        (!std::mem::replace(&mut entry.taken, true)).then_some(entry.stamp)
    }

    /// The message never reached the application: its next delivery counts as new.
    pub(crate) fn forget(&mut self, key: Key) {
        self.entries.remove(&key);
    }

    /// The application has had the message and could do nothing with it: its next delivery counts as new, unless it has
    /// been acknowledged already. Returns the stamp with which it was last delivered, if it was not.
    pub(crate) fn put_back(&mut self, key: Key) -> Option<u64> {
        let stamp = self.entries.get(&key).filter(|entry| !entry.taken)?.stamp;
        self.entries.remove(&key);
        Some(stamp)
    }

    fn forget_oldest(&mut self) {
        let Some((key, serial)) = self.order.pop_front() else {
            return;
        };
        if self.entries.get(&key).is_some_and(|entry| entry.serial == serial) {
            self.entries.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duplicate_is_waiting_until_taken_and_acknowledged_with_its_newest_stamp() {
        let mut window = Window::new(8);
        assert_eq!(window.arrive((2, 5), 100), Seen::New);
        assert_eq!(window.arrive((2, 5), 200), Seen::Waiting);
        assert_eq!(window.take((2, 5), 100), Some(200));
        assert_eq!(window.take((2, 5), 100), None);
        assert_eq!(window.arrive((2, 5), 300), Seen::Taken);
    }

    #[test]
    fn the_same_id_of_another_sender_is_another_message() {
        let mut window = Window::new(8);
        assert_eq!(window.arrive((2, 5), 1), Seen::New);
        assert_eq!(window.arrive((3, 5), 2), Seen::New);
    }

    #[test]
    fn the_window_forgets_the_oldest_first_and_never_holds_more_than_its_capacity() {
        let mut window = Window::new(3);
        for id in 1..=100 {
            assert_eq!(window.arrive((1, id), id), Seen::New);
            assert!(window.entries.len() <= 3 && window.order.len() <= 3);
        }
        assert_eq!(window.arrive((1, 98), 0), Seen::Waiting);
        assert_eq!(window.arrive((1, 97), 0), Seen::New);
    }

    #[test]
    fn a_forgotten_message_is_new_again_and_its_old_place_does_not_evict_it() {
        let mut window = Window::new(3);
        window.arrive((1, 1), 1);
        window.forget((1, 1));
        assert_eq!(window.arrive((1, 1), 2), Seen::New);
        window.arrive((1, 2), 3);
        // Evicts the place left by the forgotten entry, not the entry that came again.
        window.arrive((1, 3), 4);
        assert_eq!(window.arrive((1, 1), 5), Seen::Waiting);
    }

    #[test]
    fn what_is_put_back_is_new_again_unless_it_was_acknowledged() {
        let mut window = Window::new(3);
        window.arrive((1, 1), 1);
        window.put_back((1, 1));
        assert_eq!(window.arrive((1, 1), 2), Seen::New);
        assert_eq!(window.take((1, 1), 2), Some(2));
        window.put_back((1, 1));
        assert_eq!(window.arrive((1, 1), 3), Seen::Taken);
    }

    #[test]
    fn taking_a_message_that_left_the_window_acknowledges_its_own_stamp() {
        assert_eq!(Window::new(1).take((9, 9), 77), Some(77));
    }
}
