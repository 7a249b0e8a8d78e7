//! What users have read in groups, on its way to the store: the furthest of each group and user goes, some times in a
//! second, however often a client says so. No I/O; times are ticks of the shard.

use std::collections::BTreeMap;

/// Marks that wait at a time. One beyond it goes to the store by itself.
const WAITING_MAX: usize = 16_384;

/// All of a shard.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// By group and user.
    latest: BTreeMap<(u64, u64), u64>,
    /// When those that wait go to the store.
    due_tick: Option<u32>,
}

impl Marks {
    /// A user has read a group so far. False if there is no room for it.
    pub(crate) fn note(&mut self, group: u64, user: u64, stamp: u64, due_tick: u32) -> bool {
        if let Some(known) = self.latest.get_mut(&(group, user)) {
            *known = (*known).max(stamp);
            return true;
        }
        let has_room = self.latest.len() < WAITING_MAX;
        if has_room {
            self.latest.insert((group, user), stamp);
            self.due_tick.get_or_insert(due_tick);
        }
        has_room
    }

    /// Whether they are to go to the store.
    pub(crate) fn are_due(&self, tick: u32) -> bool {
        self.due_tick.is_some_and(|due_tick| due_tick <= tick)
    }

    /// One of them: group, user, position.
    pub(crate) fn take(&mut self) -> Option<(u64, u64, u64)> {
        let taken = self.latest.pop_first().map(|((group, user), stamp)| (group, user, stamp));
        if self.latest.is_empty() {
            self.due_tick = None;
        }
        taken
    }

    /// It could not go, and is tried again at that tick with all others.
    pub(crate) fn put_back(&mut self, (group, user, stamp): (u64, u64, u64), due_tick: u32) {
        self.latest.insert((group, user), stamp);
        self.due_tick = Some(due_tick);
    }

    /// Whether none waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.latest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_furthest_mark_of_each_user_goes_once() {
        let mut marks = Marks::default();
        for (group, user, stamp) in [(7, 1, 5), (7, 1, 9), (7, 2, 3), (7, 1, 6), (8, 1, 1)] {
            assert!(marks.note(group, user, stamp, 2 + stamp as u32));
        }
        assert!(!marks.are_due(6) && marks.are_due(7), "the first one says when");
        assert_eq!(marks.take(), Some((7, 1, 9)));
        marks.put_back((7, 1, 9), 20);
        assert!(!marks.are_due(19) && marks.are_due(20));
        let all: Vec<_> = std::iter::from_fn(|| marks.take()).collect();
        assert_eq!(all, [(7, 1, 9), (7, 2, 3), (8, 1, 1)]);
        assert!(marks.is_empty() && !marks.are_due(u32::MAX));
    }

    #[test]
    fn so_many_marks_wait_and_known_ones_still_move() {
        let mut marks = Marks::default();
        assert!((0..WAITING_MAX as u64).all(|user| marks.note(7, user, 1, 0)));
        assert!(!marks.note(8, 1, 1, 0) && marks.note(7, 0, 2, 0));
        assert_eq!(marks.take(), Some((7, 0, 2)));
        assert!(marks.note(8, 1, 1, 0));
    }
}
