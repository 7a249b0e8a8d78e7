//! Messages with ACK that were delivered to a user of this shard and wait for the recipient's ACK.

use crate::mailbox::Origin;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// What a waiting message takes besides its payload, for the byte bound.
pub(crate) const OVERHEAD_BYTES: usize = size_of::<Unacked>();

/// A message that waits for its ACK. The shard owns a copy of it until then.
#[derive(Debug)]
pub(crate) struct Unacked {
    /// Position in the user's inbox; strictly increasing.
    pub(crate) stamp: u64,
    pub(crate) from: u64,
    pub(crate) id: u64,
    pub(crate) origin: Origin,
    /// Tick of the latest delivery.
    pub(crate) sent_tick: u32,
    /// How often it has been sent again.
    pub(crate) attempts: u8,
    pub(crate) payload: Box<[u8]>,
}

impl Unacked {
    fn bytes(&self) -> usize {
        OVERHEAD_BYTES + self.payload.len()
    }
}

/// Which bound refuses a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InboxFull {
    /// The user has too many messages waiting.
    User,
    /// The shard has too many bytes waiting.
    Shard,
}

/// The waiting messages of all users of a shard, by user.
#[derive(Debug)]
pub(crate) struct Inboxes {
    by_user: HashMap<u64, VecDeque<Unacked>>,
    per_user_max: usize,
    bytes_max: usize,
    bytes: usize,
    messages: usize,
}

impl Inboxes {
    pub(crate) fn new(per_user_max: usize, bytes_max: usize) -> Self {
        Inboxes { by_user: HashMap::new(), per_user_max, bytes_max, bytes: 0, messages: 0 }
    }

    /// Whether one more message with a payload of that size may wait for this user.
    pub(crate) fn admit(&self, user: u64, payload_bytes: usize) -> Result<(), InboxFull> {
        if self.len(user) >= self.per_user_max {
            return Err(InboxFull::User);
        }
        if self.bytes + OVERHEAD_BYTES + payload_bytes > self.bytes_max {
            return Err(InboxFull::Shard);
        }
        Ok(())
    }

    /// Adds a message that was admitted. Its stamp is larger than all before it.
    pub(crate) fn push(&mut self, user: u64, message: Unacked) {
        self.bytes += message.bytes();
        self.messages += 1;
        self.by_user.entry(user).or_default().push_back(message);
    }

    /// Takes out the message the user has acknowledged. `None` for one that is unknown or was acknowledged before.
    pub(crate) fn ack(&mut self, user: u64, stamp: u64) -> Option<Unacked> {
        let inbox = self.by_user.get_mut(&user)?;
        let at = inbox.binary_search_by_key(&stamp, |message| message.stamp).ok()?;
        let message = inbox.remove(at)?;
        self.forget(&message);
        Some(message)
    }

    /// Takes out everything that waits for a user.
    pub(crate) fn take_all(&mut self, user: u64) -> VecDeque<Unacked> {
        let inbox = self.by_user.remove(&user).unwrap_or_default();
        inbox.iter().for_each(|message| self.forget(message));
        inbox
    }

    /// Adds a message of another home, with the stamp it has there, at its place. False, and nothing done, if a message has that stamp.
    pub(crate) fn insert(&mut self, user: u64, message: Unacked) -> bool {
        let inbox = self.by_user.entry(user).or_default();
        let Err(at) = inbox.binary_search_by_key(&message.stamp, |known| known.stamp) else { return false };
        self.bytes += message.bytes();
        self.messages += 1;
        inbox.insert(at, message);
        true
    }

    /// Users for whom something waits, in the order of their ids.
    pub(crate) fn users(&self) -> Vec<u64> {
        let waiting = self.by_user.iter().filter(|(_, inbox)| !inbox.is_empty());
        let mut users: Vec<u64> = waiting.map(|(user, _)| *user).collect();
        users.sort_unstable();
        users
    }

    /// Takes out the oldest message of a user.
    pub(crate) fn pop(&mut self, user: u64) -> Option<Unacked> {
        let message = self.by_user.get_mut(&user)?.pop_front()?;
        self.forget(&message);
        Some(message)
    }

    /// Takes out those of a user's messages for which `which` is true.
    pub(crate) fn take_if(&mut self, user: u64, which: impl Fn(&Unacked) -> bool) -> VecDeque<Unacked> {
        let Some(inbox) = self.by_user.get_mut(&user) else { return VecDeque::new() };
        if !inbox.iter().any(&which) {
            return VecDeque::new();
        }
        let (taken, kept) = std::mem::take(inbox).into_iter().partition(which);
        *inbox = kept;
        for message in &taken {
            self.forget(message);
        }
        taken
    }

    /// What waits for a user, oldest first, to be sent again.
    pub(crate) fn of(&mut self, user: u64) -> impl Iterator<Item = &mut Unacked> {
        self.by_user.get_mut(&user).into_iter().flatten()
    }

    /// Takes out the user's messages that were sent again too often.
    pub(crate) fn take_exhausted(&mut self, user: u64, attempts_max: u8, sent_before: u32) -> VecDeque<Unacked> {
        self.take_if(user, |message| message.attempts >= attempts_max && message.sent_tick <= sent_before)
    }

    /// Tick of the oldest latest delivery among a user's messages. An inbox found empty is dropped here rather than at its last ACK,
    /// because the next message usually comes soon.
    pub(crate) fn oldest_sent(&mut self, user: u64) -> Option<u32> {
        let inbox = self.by_user.get(&user)?;
        let oldest = inbox.iter().map(|message| message.sent_tick).min();
        if oldest.is_none() {
            self.by_user.remove(&user);
        }
        oldest
    }

    /// Messages waiting for a user.
    pub(crate) fn len(&self, user: u64) -> usize {
        self.by_user.get(&user).map_or(0, VecDeque::len)
    }

    /// Messages waiting in all.
    pub(crate) fn messages(&self) -> usize {
        self.messages
    }

    /// Bytes they take.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn forget(&mut self, message: &Unacked) {
        self.bytes -= message.bytes();
        self.messages -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::ConnId;

    fn message(stamp: u64, sent_tick: u32) -> Unacked {
        let origin = Origin::own(0, ConnId { slot: 1, generation: 1 });
        Unacked { stamp, from: 1, id: stamp, origin, sent_tick, attempts: 0, payload: Box::new([0; 10]) }
    }

    #[test]
    fn a_message_is_acknowledged_once_and_in_any_order() {
        let mut inboxes = Inboxes::new(10, 10_000);
        for stamp in [5, 6, 9] {
            inboxes.admit(2, 10).unwrap();
            inboxes.push(2, message(stamp, 0));
        }
        assert_eq!(inboxes.ack(2, 6).map(|m| m.id), Some(6));
        assert!(inboxes.ack(2, 6).is_none());
        assert!(inboxes.ack(3, 5).is_none());
        assert_eq!(inboxes.ack(2, 9).map(|m| m.id), Some(9));
        assert_eq!(inboxes.take_all(2).len(), 1);
        assert_eq!((inboxes.messages(), inboxes.bytes()), (0, 0));
    }

    #[test]
    fn a_message_of_another_home_takes_its_place_by_its_stamp_and_once() {
        let mut inboxes = Inboxes::new(10, 10_000);
        inboxes.push(2, message(5, 0));
        inboxes.push(2, message(9, 0));
        assert!(inboxes.insert(2, message(7, 0)));
        assert!(!inboxes.insert(2, message(7, 0)));
        assert!(inboxes.insert(3, message(1, 0)));
        assert_eq!(inboxes.users(), [2, 3]);
        assert_eq!(inboxes.of(2).map(|m| m.stamp).collect::<Vec<_>>(), [5, 7, 9]);
        assert_eq!(inboxes.ack(2, 7).map(|m| m.id), Some(7));
        assert_eq!(std::iter::from_fn(|| inboxes.pop(2)).map(|m| m.stamp).collect::<Vec<_>>(), [5, 9]);
        assert_eq!(inboxes.take_all(3).len(), 1);
        assert_eq!((inboxes.messages(), inboxes.bytes()), (0, 0));
        assert!(inboxes.users().is_empty());
    }

    #[test]
    fn both_bounds_refuse_and_reopen() {
        let mut inboxes = Inboxes::new(2, 3 * (OVERHEAD_BYTES + 10));
        inboxes.push(1, message(1, 0));
        inboxes.push(1, message(2, 0));
        assert_eq!(inboxes.admit(1, 10), Err(InboxFull::User));
        inboxes.push(2, message(3, 0));
        assert_eq!(inboxes.admit(3, 10), Err(InboxFull::Shard));
        inboxes.ack(1, 1);
        assert_eq!(inboxes.admit(1, 10), Ok(()));
    }

    #[test]
    fn only_messages_sent_too_often_and_long_ago_are_given_up() {
        let mut inboxes = Inboxes::new(10, 10_000);
        for (stamp, attempts, tick) in [(1, 3, 5), (2, 3, 50), (3, 0, 5)] {
            inboxes.push(7, Unacked { attempts, ..message(stamp, tick) });
        }
        let given_up: Vec<u64> = inboxes.take_exhausted(7, 3, 10).iter().map(|m| m.stamp).collect();
        assert_eq!(given_up, [1]);
        assert_eq!(inboxes.oldest_sent(7), Some(5));
        assert_eq!(inboxes.take_all(7).len(), 2);
        assert_eq!((inboxes.messages(), inboxes.bytes()), (0, 0));
        assert_eq!(inboxes.oldest_sent(7), None);
    }
}
