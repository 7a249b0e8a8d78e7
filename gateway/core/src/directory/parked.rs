//! Messages at a new home shard for users whose sessions it does not know yet: they wait until the sessions are
//! registered or every node has said that it has no more to register.

use crate::byte_count::ByteCount;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// What a waiting message takes besides its payload, for the bound.
const OVERHEAD_BYTES: usize = 128;

/// Waiting messages by recipient, in the order in which they came.
#[derive(Debug)]
pub(crate) struct Parked<M> {
    by_user: HashMap<u64, VecDeque<(M, usize)>>,
    bytes: ByteCount,
    bytes_max: usize,
}

impl<M> Parked<M> {
    /// Room for `bytes_max` bytes of payloads and what goes with them.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Parked { by_user: HashMap::new(), bytes: ByteCount::default(), bytes_max }
    }

    /// Lets a message wait. Gives it back when there is no room.
    pub(crate) fn park(&mut self, user: u64, message: M, payload_bytes: usize) -> Result<(), M> {
        let bytes = OVERHEAD_BYTES + payload_bytes;
        if self.bytes.get() + bytes > self.bytes_max {
            return Err(message);
        }
        self.bytes.add(bytes);
        self.by_user.entry(user).or_default().push_back((message, bytes));
        Ok(())
    }

    /// Whether a message for this user waits: then all later ones have to wait behind it.
    #[inline]
    pub(crate) fn holds(&self, user: u64) -> bool {
        !self.by_user.is_empty() && self.by_user.contains_key(&user)
    }

    /// Whether one of the messages of a user is such.
    pub(crate) fn any(&self, user: u64, is_such: impl Fn(&M) -> bool) -> bool {
        self.by_user.get(&user).is_some_and(|messages| messages.iter().any(|(message, _)| is_such(message)))
    }

    /// Takes out the messages of one user.
    pub(crate) fn take(&mut self, user: u64) -> impl Iterator<Item = M> + use<M> {
        let messages = self.by_user.remove(&user).unwrap_or_default();
        self.bytes.sub(messages.iter().map(|(_, bytes)| bytes).sum());
        messages.into_iter().map(|(message, _)| message)
    }

    /// Users for whom messages wait, in the order of their ids.
    pub(crate) fn users(&self) -> Vec<u64> {
        let mut users: Vec<u64> = self.by_user.keys().copied().collect();
        users.sort_unstable();
        users
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_by_user_in_order_and_give_their_room_back() {
        let mut parked = Parked::new(4 * (OVERHEAD_BYTES + 10));
        for (user, message) in [(1, 'a'), (2, 'b'), (1, 'c'), (1, 'd')] {
            assert_eq!(parked.park(user, message, 10), Ok(()));
        }
        assert_eq!(parked.park(3, 'e', 10), Err('e'));
        assert!(parked.holds(1) && !parked.holds(3));
        assert!(parked.any(1, |message| *message == 'd') && !parked.any(2, |message| *message == 'd'));
        assert_eq!(parked.users(), [1, 2]);
        assert_eq!(parked.take(1).collect::<String>(), "acd");
        assert_eq!(parked.take(1).count(), 0);
        assert!(!parked.holds(1));
        assert_eq!(parked.park(3, 'e', 10), Ok(()));
        assert_eq!(parked.take(2).chain(parked.take(3)).collect::<String>(), "be");
        assert_eq!(parked.bytes(), 0);
    }
}
