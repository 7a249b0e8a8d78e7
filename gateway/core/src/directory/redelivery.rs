//! When to send messages again to users of this home shard who have no session on it: those with one are looked at by
//! that session's timer.

use hashbrown::HashMap;
use std::collections::BTreeSet;

/// Users to look at, each once, in the order in which that is due.
#[derive(Debug, Default)]
pub(crate) struct Redelivery {
    due: BTreeSet<(u32, u64)>,
    ticks: HashMap<u64, u32>,
}

impl Redelivery {
    /// Looks at a user at `tick`, unless that is to be done earlier.
    pub(crate) fn note(&mut self, user: u64, tick: u32) {
        let noted = self.ticks.entry(user).or_insert(u32::MAX);
        if tick < *noted {
            self.due.remove(&(*noted, user));
            self.due.insert((tick, user));
            *noted = tick;
        }
    }

    /// The next user whose time has come.
    pub(crate) fn take_due(&mut self, tick: u32) -> Option<u64> {
        let (due, user) = *self.due.first()?;
        if due > tick {
            return None;
        }
        self.due.pop_first();
        self.ticks.remove(&user);
        Some(user)
    }

    /// Users that wait.
    pub(crate) fn len(&self) -> usize {
        self.due.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_looked_at_once_and_at_the_earliest_time_noted() {
        let mut redelivery = Redelivery::default();
        redelivery.note(1, 10);
        redelivery.note(2, 200);
        redelivery.note(1, 14);
        redelivery.note(2, 12);
        assert_eq!(redelivery.len(), 2);
        assert_eq!(redelivery.take_due(9), None);
        assert_eq!(redelivery.take_due(11), Some(1));
        assert_eq!(redelivery.take_due(11), None);
        redelivery.note(1, 20);
        assert_eq!(
            (redelivery.take_due(20), redelivery.take_due(20), redelivery.take_due(20)),
            (Some(2), Some(1), None)
        );
        assert_eq!(redelivery.len(), 0);
    }
}
