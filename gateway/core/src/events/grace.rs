//! Users whose last session has just ended: one who is back in a moment was never away.

use hashbrown::HashMap;
use std::collections::VecDeque;

/// How long a user may be away without being told of, ticks: 3 s.
pub(crate) const GRACE_TICKS: u32 = 30;
/// Users of one shard who may be away so; of a further one it is told at once.
pub const GOING_MAX: usize = 65_536;
/// What each takes: its place in a queue that may be half empty, and in a table.
pub const GOING_BYTES: usize = 2 * size_of::<Going>() + 2 * 24;

/// A user who has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Going {
    pub user: u64,
    due_tick: u32,
    /// When, milliseconds since the Unix epoch.
    pub since_ms: u64,
}

/// Those of one shard.
#[derive(Debug, Default)]
pub(super) struct Grace {
    queue: VecDeque<Going>,
    /// When each of them is due; what else is in the queue is of earlier absences.
    due: HashMap<u64, u32>,
}

impl Grace {
    /// A user has gone. False if there are too many: then it is to be told now.
    #[must_use]
    pub(super) fn goes(&mut self, user: u64, since_ms: u64, tick: u32) -> bool {
        let has_room = self.queue.len() < GOING_MAX;
        if has_room {
            let due_tick = tick + GRACE_TICKS;
            self.queue.push_back(Going { user, due_tick, since_ms });
            self.due.insert(user, due_tick);
        }
        has_room
    }

    /// A user is here. Whether nobody was told that it went.
    pub(super) fn is_back(&mut self, user: u64) -> bool {
        self.due.remove(&user).is_some()
    }

    /// The next user who has been away for long enough; with `all`, whoever is away.
    pub(super) fn take_gone(&mut self, tick: u32, all: bool) -> Option<Going> {
        loop {
            let going = self.queue.pop_front_if(|going| all || going.due_tick <= tick)?;
            if self.due.get(&going.user) == Some(&going.due_tick) {
                self.due.remove(&going.user);
                return Some(going);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_back_in_time_was_never_away() {
        let mut grace = Grace::default();
        assert!(grace.goes(1, 10, 0) && grace.goes(2, 20, 1));
        assert!(grace.is_back(1) && !grace.is_back(1) && !grace.is_back(3));
        assert!(grace.goes(1, 30, 5));
        assert_eq!(grace.take_gone(GRACE_TICKS, false), None, "the first absence of 1 is over");
        assert_eq!(grace.take_gone(GRACE_TICKS + 1, false).map(|gone| (gone.user, gone.since_ms)), Some((2, 20)));
        assert_eq!(grace.take_gone(GRACE_TICKS + 1, false), None);
        assert_eq!(grace.take_gone(0, true).map(|gone| (gone.user, gone.since_ms)), Some((1, 30)));
        assert_eq!(grace.take_gone(u32::MAX, true), None);
    }

    #[test]
    fn there_are_never_more_than_there_is_room_for() {
        let mut grace = Grace::default();
        assert!((0..GOING_MAX as u64).all(|user| grace.goes(user, 0, 0)));
        assert!(!grace.goes(u64::MAX, 0, 0));
        assert!(grace.take_gone(GRACE_TICKS, false).is_some() && grace.goes(u64::MAX, 0, 0));
    }
}
