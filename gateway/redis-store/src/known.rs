//! Where the logs of groups end as this node has been told, so that a master that knows less, because it was made of a
//! replica that was behind, is told so with the next thing that it is asked.
//!
//! There are two generations, as of what is remembered only as long as there is room: a new one begins when the
//! present one is full, and the one before is forgotten. Of a group that is forgotten a loss may go untold.

use std::collections::HashMap;

/// Groups of one generation.
const GENERATION_MAX: usize = 16_384;

/// Positions of one group; 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ends {
    /// The last of a message that counts as stored.
    pub(crate) stored: u64,
    /// Up to where positions were given to messages that are not stored.
    pub(crate) passed: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Known {
    present: HashMap<u64, Ends>,
    before: HashMap<u64, Ends>,
}

impl Known {
    /// What was told of a group.
    pub(crate) fn note(&mut self, group: u64, told: Ends) {
        if told == Ends::default() {
            return;
        }
        if self.present.len() >= GENERATION_MAX && !self.present.contains_key(&group) {
            self.before = std::mem::take(&mut self.present);
        }
        let before = self.before.get(&group).copied();
        let known = self.present.entry(group).or_insert_with(|| before.unwrap_or_default());
        known.stored = known.stored.max(told.stored);
        known.passed = known.passed.max(told.passed);
    }

    pub(crate) fn of(&self, group: u64) -> Option<Ends> {
        self.present.get(&group).or_else(|| self.before.get(&group)).copied()
    }

    /// The group has ended.
    pub(crate) fn forget(&mut self, group: u64) {
        self.present.remove(&group);
        self.before.remove(&group);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_furthest_is_known_and_groups_are_bounded() {
        let mut known = Known::default();
        known.note(1, Ends { stored: 5, passed: 0 });
        known.note(1, Ends { stored: 4, passed: 9 });
        known.note(2, Ends::default());
        assert_eq!((known.of(1), known.of(2)), (Some(Ends { stored: 5, passed: 9 }), None));
        let many = GENERATION_MAX as u64;
        (10..10 + many).for_each(|group| known.note(group, Ends { stored: 1, passed: 0 }));
        known.note(1, Ends { stored: 6, passed: 0 });
        assert_eq!(known.of(1), Some(Ends { stored: 6, passed: 9 }), "of the generation before");
        (10 + many..10 + 4 * many).for_each(|group| known.note(group, Ends { stored: 1, passed: 0 }));
        assert!(known.present.len() + known.before.len() <= 2 * GENERATION_MAX && known.of(1).is_none());
        known.note(1, Ends { stored: 7, passed: 0 });
        known.forget(1);
        assert_eq!(known.of(1), None);
    }
}
