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

/// A copy of a message that came.
#[derive(Clone, Copy, Debug)]
struct Owed {
    key: Key,
    stamp: u64,
    /// It came more than once with this stamp: nobody can tell which copy an ACK for all before it would be about.
    alone: bool,
}

/// The messages of one connection that want an ACK. Without cumulative ACKs nothing is kept.
///
/// A message may come twice with two stamps: from the store, and from a sender that has sent it again. An ACK is for
/// what came before the copy that its stamp names, so each copy has a place of its own.
#[derive(Debug)]
pub(crate) struct Acks {
    cumulative: bool,
    owed: VecDeque<Owed>,
    /// Copies in `owed` besides the first ones of their messages.
    further: usize,
    /// The newest of those that are done in order, and whether there are others before it.
    in_order: Option<Due>,
}

impl Acks {
    /// `cumulative`: the gateway has a cursor for this device. Others may take a cumulative ACK for one of a single
    /// message.
    pub(crate) fn new(cumulative: bool) -> Self {
        Self { cumulative, owed: VecDeque::new(), further: 0, in_order: None }
    }

    /// A message that wants an ACK has come. `again`: it may have come before on this connection. Returns whether it is
    /// owed only since now.
    pub(crate) fn came(&mut self, key: Key, stamp: u64, again: bool) -> bool {
        if !self.cumulative {
            return false;
        }
        let mut is_further = false;
        for owed in self.owed.iter_mut().filter(|owed| again && owed.key == key) {
            if owed.stamp == stamp {
                owed.alone = true;
                return false;
            }
            is_further = true;
        }
        if self.owed.len() == OWED_MAX {
            // An ACK for all before it could be for one that was left out here.
            self.cumulative = false;
            self.owed.clear();
            self.further = 0;
            return false;
        }
        self.further += usize::from(is_further);
        self.owed.push_back(Owed { key, stamp, alone: false });
        true
    }

    /// A message that came is not owed, or no more.
    pub(crate) fn leave_out(&mut self, key: Key) {
        self.remove(key, 0, |_| {});
    }

    /// The application is done with a message, which came with `stamp` last. Returns the ACKs that are due at once:
    /// those that cannot wait for [`Self::take`].
    pub(crate) fn done(&mut self, key: Key, stamp: u64) -> Vec<Due> {
        let mut at_once = Vec::new();
        let mut found = 0;
        if let Some(Owed { stamp, .. }) = self.owed.pop_front_if(|owed| owed.key == key && !owed.alone) {
            self.in_order = Some(Due { key, stamp, cumulative: self.in_order.is_some() });
            if self.further == 0 {
                return at_once;
            }
            found = 1;
        }
        let found = self.remove(key, found, |stamp| at_once.push(Due { key, stamp, cumulative: false }));
        if found == 0 {
            at_once.push(Due { key, stamp, cumulative: false });
        }
        at_once
    }

    /// Takes out all copies of a message, of which `found` are out already, and shows their stamps. Returns how many
    /// there were.
    fn remove(&mut self, key: Key, found: usize, mut show: impl FnMut(u64)) -> usize {
        let mut found = found;
        while let Some(at) = self.owed.iter().position(|owed| owed.key == key) {
            if let Some(owed) = self.owed.remove(at) {
                show(owed.stamp);
            }
            found += 1;
            if self.further == 0 {
                break;
            }
        }
        self.further -= found.saturating_sub(1);
        found
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
        ids.for_each(|id| _ = acks.came((2, id), 100 + id, false));
        acks
    }

    #[test]
    fn one_ack_is_for_all_that_were_done_in_order() {
        let mut acks = acks(1..=4);
        assert_eq!(acks.done((2, 1), 101), []);
        assert_eq!((acks.take(), acks.take()), (Some(due(1, false)), None));
        for id in 2..=4 {
            assert_eq!(acks.done((2, id), 100 + id), []);
        }
        assert_eq!(acks.take(), Some(due(4, true)));
    }

    #[test]
    fn what_is_done_before_its_turn_is_acknowledged_alone_and_never_those_before_it() {
        let mut acks = acks(1..=4);
        assert_eq!(acks.done((2, 3), 103), [due(3, false)]);
        assert_eq!(acks.take(), None);
        assert_eq!(acks.done((2, 1), 101), []);
        assert_eq!(acks.done((2, 4), 104), [due(4, false)], "2 is not done");
        assert_eq!(acks.done((2, 2), 102), []);
        assert_eq!(acks.take(), Some(due(2, true)));
    }

    #[test]
    fn a_message_that_comes_twice_with_one_stamp_is_acknowledged_alone() {
        let mut acks = acks(1..=3);
        assert!(!acks.came((2, 2), 102, true));
        assert_eq!(acks.done((2, 1), 101), []);
        assert_eq!(acks.done((2, 2), 102), [due(2, false)], "3 came before its second copy");
        assert_eq!(acks.take(), Some(due(1, false)));
        assert_eq!(acks.done((2, 3), 103), []);
        assert_eq!(acks.take(), Some(due(3, false)));
        assert_eq!(acks.done((2, 1), 101), [due(1, false)], "it came on an earlier connection");
    }

    #[test]
    fn a_copy_with_another_stamp_is_acknowledged_too_and_nothing_that_came_before_it() {
        // 1 and 2 come from the store, 3 is new, 2 is sent again, 4 is new.
        let mut acks = acks(1..=3);
        assert!(acks.came((2, 2), 202, true));
        acks.came((2, 4), 104, false);
        assert_eq!(acks.done((2, 1), 101), []);
        let again = Due { stamp: 202, ..due(2, false) };
        assert_eq!(acks.done((2, 2), 202), [again], "3 is not done");
        assert_eq!((acks.take(), acks.further), (Some(due(2, true)), 0));
        assert_eq!(acks.done((2, 3), 103), []);
        assert_eq!(acks.done((2, 4), 104), []);
        assert_eq!(acks.take(), Some(due(4, true)));
        // Whatever is left out is left out with all copies.
        acks.came((2, 5), 105, false);
        assert!(acks.came((2, 5), 205, true) && acks.came((2, 5), 305, true));
        acks.leave_out((2, 5));
        assert_eq!((acks.owed.len(), acks.further), (0, 0));
    }

    #[test]
    fn without_a_cursor_and_beyond_the_bound_each_is_acknowledged_alone() {
        let mut one_by_one = Acks::new(false);
        assert!(!one_by_one.came((2, 1), 101, false));
        assert_eq!(one_by_one.done((2, 1), 101), [due(1, false)]);
        let mut acks = acks(1..=OWED_MAX as u64 + 1);
        assert_eq!(acks.done((2, 1), 101), [due(1, false)]);
        assert!(acks.owed.is_empty());
    }
}
