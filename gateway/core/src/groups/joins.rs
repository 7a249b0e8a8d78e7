//! Joins of live rooms that sessions of a shard have asked for and that are not answered: what such a session says
//! behind its join goes the same way, and is not refused. In a cluster, where the join may be, it waits for the answer.

use crate::limits::ROOM_JOINS_WAITING_MAX;
use hashbrown::{HashMap, HashSet};

/// All of a shard.
#[derive(Debug, Default)]
pub(crate) struct Joins {
    /// By slot: rooms, and the ids of the frames.
    by_slot: HashMap<u32, Vec<(u64, u64)>>,
    count: usize,
    /// Slots of sessions that have said something behind a join, and are not heard until that is answered.
    held: HashSet<u32>,
}

impl Joins {
    /// A session wants to join. False beyond the bound: it is not noted, and what is said behind it may be refused.
    pub(crate) fn begin(&mut self, slot: u32, group: u64, id: u64) -> bool {
        let has_room = self.count < ROOM_JOINS_WAITING_MAX;
        if has_room {
            self.count += 1;
            self.by_slot.entry(slot).or_default().push((group, id));
        }
        has_room
    }

    /// The session is not heard before one of its joins is answered.
    pub(crate) fn hold(&mut self, slot: u32) {
        self.held.insert(slot);
    }

    /// Whether it is not; it is heard from now on.
    pub(crate) fn take_held(&mut self, slot: u32) -> bool {
        self.held.remove(&slot)
    }

    /// It is answered, or was not asked after all.
    pub(crate) fn over(&mut self, slot: u32, group: u64, id: u64) {
        self.remove(slot, |join| *join == (group, id));
    }

    /// The session wants to leave: what it says behind that is refused.
    pub(crate) fn leave(&mut self, slot: u32, group: u64) {
        self.remove(slot, |(joining, _)| *joining == group);
    }

    /// The session has ended.
    pub(crate) fn end(&mut self, slot: u32) {
        self.held.remove(&slot);
        self.remove(slot, |_| true);
    }

    fn remove(&mut self, slot: u32, is_over: impl Fn(&(u64, u64)) -> bool) {
        let Some(joins) = self.by_slot.get_mut(&slot) else { return };
        let before = joins.len();
        joins.retain(|join| !is_over(join));
        self.count -= before - joins.len();
        if joins.is_empty() {
            self.by_slot.remove(&slot);
        }
    }

    /// Rooms that a session has asked to join and was not answered, one of them several times perhaps, and the ids of
    /// the frames.
    pub(crate) fn of(&self, slot: u32) -> &[(u64, u64)] {
        self.by_slot.get(&slot).map_or(&[], Vec::as_slice)
    }

    /// Whether a session is not heard because of them.
    pub(crate) fn is_held(&self, slot: u32) -> bool {
        !self.held.is_empty() && self.held.contains(&slot)
    }

    /// Whether a session has asked to join and was not answered.
    pub(crate) fn has(&self, slot: u32, group: u64) -> bool {
        self.by_slot.get(&slot).is_some_and(|joins| joins.iter().any(|(joining, _)| *joining == group))
    }

    /// Joins without an answer.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_is_under_way_until_it_is_answered_or_its_session_leaves_or_ends() {
        let mut joins = Joins::default();
        for (slot, group, id) in [(1, 7, 1), (1, 8, 2), (2, 7, 1), (1, 7, 3)] {
            assert!(joins.begin(slot, group, id));
        }
        joins.hold(1);
        assert!(joins.is_held(1) && !joins.is_held(2));
        assert!(!joins.take_held(2) && joins.take_held(1) && !joins.take_held(1), "it is heard from then on");
        joins.hold(1);
        joins.over(1, 7, 9);
        joins.over(1, 7, 1);
        assert!(joins.has(1, 7), "the second one is not answered");
        joins.leave(1, 7);
        assert!(!joins.has(1, 7) && joins.has(1, 8) && joins.has(2, 7));
        joins.end(1);
        assert!(!joins.has(1, 8) && joins.len() == 1 && !joins.take_held(1));
        let noted = (0..2 * ROOM_JOINS_WAITING_MAX as u64).filter(|id| joins.begin(3, *id, *id)).count();
        assert_eq!(
            (noted, joins.len()),
            (ROOM_JOINS_WAITING_MAX - 1, ROOM_JOINS_WAITING_MAX),
            "the others are counted"
        );
        joins.end(3);
        joins.end(2);
        assert!(joins.len() == 0 && joins.by_slot.is_empty());
    }
}
