//! What one connection owes ACKs for, in the order in which it came: one ACK may stand for all before it.

use std::collections::VecDeque;

use crate::window::Key;

/// Messages that may owe an ACK before each is acknowledged on its own. A gateway gives a device 1,024 unacknowledged
/// ones at most.
const OWED_MAX: usize = 8_192;

/// An ACK that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) key: Key,
    pub(crate) stamp: u64,
    /// It is for everything that came before on this connection, too.
    pub(crate) cumulative: bool,
}

/// The messages of one connection that want an ACK. Without cumulative ACKs nothing is kept.
#[derive(Debug)]
pub(crate) struct Acks {
    cumulative: bool,
    owed: VecDeque<Key>,
    /// The newest of those that are done in order, and whether there are others before it.
    in_order: Option<Due>,
}

impl Acks {
    /// `cumulative`: the gateway has a cursor for this device. Others may take a cumulative ACK for one of a single
    /// message.
    pub(crate) fn new(cumulative: bool) -> Self {
        Self { cumulative, owed: VecDeque::new(), in_order: None }
    }

    /// A message that wants an ACK has come. `again`: it may have come before on this connection. Returns whether it is
    /// owed only since now.
    pub(crate) fn came(&mut self, key: Key, again: bool) -> bool {
        if !self.cumulative || again && self.owed.contains(&key) {
            return false;
        }
        if self.owed.len() == OWED_MAX {
            // An ACK for all before it could be for one that was left out here.
            self.cumulative = false;
            self.owed.clear();
            return false;
        }
        self.owed.push_back(key);
        true
    }

    /// A message that came is not owed, or no more.
    pub(crate) fn leave_out(&mut self, key: Key) {
        if let Some(at) = self.owed.iter().position(|owed| *owed == key) {
            self.owed.remove(at);
        }
    }

    /// The application is done with a message. Returns the ACK that is due at once, if it is not one that can wait for
    /// [`Self::take`].
    pub(crate) fn done(&mut self, key: Key, stamp: u64) -> Option<Due> {
        let alone = Due { key, stamp, cumulative: false };
        if self.owed.front() == Some(&key) {
            self.owed.pop_front();
            self.in_order = Some(Due { cumulative: self.in_order.is_some(), ..alone });
            return None;
        }
        self.leave_out(key);
        Some(alone)
    }

    /// The ACK for all that were done in order.
    pub(crate) fn take(&mut self) -> Option<Due> {
        self.in_order.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(id: u64, cumulative: bool) -> Due {
        Due { key: (2, id), stamp: 100 + id, cumulative }
    }

    fn acks(ids: std::ops::RangeInclusive<u64>) -> Acks {
        let mut acks = Acks::new(true);
        ids.for_each(|id| _ = acks.came((2, id), false));
        acks
    }

    #[test]
    fn one_ack_is_for_all_that_were_done_in_order() {
        let mut acks = acks(1..=4);
        assert_eq!(acks.done((2, 1), 101), None);
        assert_eq!((acks.take(), acks.take()), (Some(due(1, false)), None));
        for id in 2..=4 {
            assert_eq!(acks.done((2, id), 100 + id), None);
        }
        assert_eq!(acks.take(), Some(due(4, true)));
    }

    #[test]
    fn what_is_done_before_its_turn_is_acknowledged_alone_and_never_those_before_it() {
        let mut acks = acks(1..=4);
        assert_eq!(acks.done((2, 3), 103), Some(due(3, false)));
        assert_eq!(acks.take(), None);
        assert_eq!(acks.done((2, 1), 101), None);
        assert_eq!(acks.done((2, 4), 104), Some(due(4, false)), "2 is not done");
        assert_eq!(acks.done((2, 2), 102), None);
        assert_eq!(acks.take(), Some(due(2, true)));
    }

    #[test]
    fn a_message_that_comes_twice_is_owed_once() {
        let mut acks = acks(1..=2);
        assert!(!acks.came((2, 1), true));
        for id in 1..=2 {
            assert_eq!(acks.done((2, id), 100 + id), None);
        }
        assert_eq!(acks.take(), Some(due(2, true)));
        assert_eq!(acks.done((2, 1), 101), Some(due(1, false)), "it came on an earlier connection");
    }

    #[test]
    fn without_a_cursor_and_beyond_the_bound_each_is_acknowledged_alone() {
        let mut one_by_one = Acks::new(false);
        assert!(!one_by_one.came((2, 1), false));
        assert_eq!(one_by_one.done((2, 1), 101), Some(due(1, false)));
        let mut acks = acks(1..=OWED_MAX as u64 + 1);
        assert_eq!(acks.done((2, 1), 101), Some(due(1, false)));
        assert!(acks.owed.is_empty());
    }
}
