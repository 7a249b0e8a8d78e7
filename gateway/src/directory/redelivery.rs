//! When to send messages again to users of this home shard who have no session on it: those with one are looked at by that session's timer.

use hashbrown::HashSet;
use std::collections::VecDeque;

/// Users to look at, each once, in the order in which that is due. Every message waits equally long, so a queue is enough.
#[derive(Debug, Default)]
pub(crate) struct Redelivery {
    due: VecDeque<(u32, u64)>,
    users: HashSet<u64>,
}

impl Redelivery {
    /// Looks at a user at `tick`, unless that is to be done anyway. A tick earlier than those before it is met when they are.
    pub(crate) fn note(&mut self, user: u64, tick: u32) {
        if self.users.insert(user) {
            self.due.push_back((tick, user));
        }
    }

    /// The next user whose time has come.
    pub(crate) fn take_due(&mut self, tick: u32) -> Option<u64> {
        let (_, user) = self.due.pop_front_if(|(due, _)| *due <= tick)?;
        self.users.remove(&user);
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
    fn a_user_is_looked_at_once_and_in_time() {
        let mut redelivery = Redelivery::default();
        redelivery.note(1, 10);
        redelivery.note(2, 12);
        redelivery.note(1, 14);
        assert_eq!(redelivery.len(), 2);
        assert_eq!(redelivery.take_due(9), None);
        assert_eq!(redelivery.take_due(11), Some(1));
        assert_eq!(redelivery.take_due(11), None);
        redelivery.note(1, 20);
        assert_eq!((redelivery.take_due(20), redelivery.take_due(20)), (Some(2), Some(1)));
        assert_eq!(redelivery.len(), 0);
    }
}
