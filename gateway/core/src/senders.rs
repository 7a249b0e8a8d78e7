//! To whom the sessions of a shard may write, where that is for tokens and the connect-time hook to say.

use crate::auth::Whom;
use crate::byte_count::ByteCount;

/// Bytes a connection takes in the table below. A node whose sessions may write to everybody has none.
pub const SEND_CLAIM_BYTES: usize = size_of::<Whom>();
const _: () = assert!(SEND_CLAIM_BYTES == 24);
/// Bytes that a list of users takes besides the users: its counts, and what the allocator adds.
const LIST_BYTES: usize = 32;

/// The claims of a shard's sessions, by slot. Beside the slots, so that they are no larger where nobody needs a claim.
#[derive(Debug)]
pub(crate) struct Senders {
    by_slot: Vec<Whom>,
    slots_max: u32,
    /// Slots with a claim.
    held: usize,
    /// Bytes of the lists in them.
    list_bytes: ByteCount,
}

fn list_bytes(claim: &Whom) -> usize {
    match claim.bytes() {
        0 => 0,
        users => LIST_BYTES + users,
    }
}

impl Senders {
    /// For slots below `slots_max`. Memory is taken with the first claim, and touched when its slot is first used.
    pub(crate) fn new(slots_max: u32) -> Self {
        Senders { by_slot: Vec::new(), slots_max, held: 0, list_bytes: ByteCount::default() }
    }

    /// Sessions that may write to others than their own user.
    pub(crate) fn len(&self) -> usize {
        self.held
    }

    /// Bytes of the lists.
    pub(crate) fn bytes(&self) -> usize {
        self.list_bytes.get()
    }

    /// Whether the session in a slot may have this claim, in place of the one it has.
    pub(crate) fn has_room(&self, slot: u32, claim: &Whom, bytes_max: usize) -> bool {
        let (before, after) = (self.by_slot.get(slot as usize).map_or(0, list_bytes), list_bytes(claim));
        // One that takes no more than what it takes the place of always has room.
        after <= before || self.list_bytes.get() - before + after <= bytes_max
    }

    /// The session in a slot has this claim from now on.
    pub(crate) fn keep(&mut self, slot: u32, claim: Whom) {
        self.forget(slot);
        if claim == Whom::Nobody {
            return;
        }
        let known = self.by_slot.len();
        if known <= slot as usize {
            self.by_slot.reserve_exact(self.slots_max.max(slot + 1) as usize - known);
            self.by_slot.resize(slot as usize + 1, Whom::Nobody);
        }
        self.held += 1;
        self.list_bytes.add(list_bytes(&claim));
        self.by_slot[slot as usize] = claim;
    }

    /// The session in a slot has ended, or has no claim any more.
    pub(crate) fn forget(&mut self, slot: u32) {
        let Some(place) = self.by_slot.get_mut(slot as usize) else { return };
        let before = std::mem::take(place);
        if before != Whom::Nobody {
            self.held -= 1;
            self.list_bytes.sub(list_bytes(&before));
        }
    }

    /// The claim of the session in a slot.
    pub(crate) fn of(&self, slot: u32) -> Whom {
        self.by_slot.get(slot as usize).cloned().unwrap_or_default()
    }

    /// Whether the claim of the session in a slot names this user.
    #[inline]
    pub(crate) fn may_send(&self, slot: u32, user: u64) -> bool {
        self.by_slot.get(slot as usize).is_some_and(|claim| claim.covers(user))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(count: u64) -> Whom {
        Whom::Users((1..=count).collect())
    }

    #[test]
    fn a_session_may_write_to_whom_its_latest_claim_names() {
        let mut senders = Senders::new(10);
        assert!(!senders.may_send(3, 7));
        senders.keep(9, Whom::Nobody);
        assert_eq!(senders.by_slot.capacity(), 0, "nothing is kept for nothing");
        senders.keep(3, Whom::Users([7].into()));
        senders.keep(4, Whom::Everybody);
        assert_eq!((senders.len(), senders.by_slot.capacity()), (2, 10));
        let may = [(3, 7), (3, 8), (4, 8), (5, 7), (0, 7)].map(|(slot, user)| senders.may_send(slot, user));
        assert_eq!(may, [true, false, true, false, false]);
        assert_eq!((senders.of(3), senders.of(5)), (Whom::Users([7].into()), Whom::Nobody));
        senders.keep(3, Whom::Users([8].into()));
        senders.keep(4, Whom::Nobody);
        assert!(!senders.may_send(3, 7) && senders.may_send(3, 8) && !senders.may_send(4, 8));
        for slot in [3, 3, 100] {
            senders.forget(slot);
        }
        assert!(!senders.may_send(3, 8));
        assert_eq!((senders.len(), senders.bytes()), (0, 0));
    }

    #[test]
    fn lists_are_bounded_by_their_bytes_and_one_that_takes_less_always_has_room() {
        let mut senders = Senders::new(10);
        let most = 2 * LIST_BYTES + 8 * 30;
        assert!(!senders.has_room(1, &users(1_000), most));
        senders.keep(1, users(10));
        assert!(senders.has_room(2, &users(20), most) && !senders.has_room(2, &users(21), most));
        senders.keep(2, users(20));
        assert_eq!(senders.bytes(), most);
        for claim in [Whom::Everybody, Whom::Nobody] {
            assert!(senders.has_room(3, &claim, most) && senders.has_room(1, &claim, most), "it has no list");
        }
        assert!(!senders.has_room(3, &users(1), most));
        assert!(senders.has_room(1, &users(10), most) && !senders.has_room(1, &users(11), most));
        assert!(senders.has_room(2, &users(19), 1) && !senders.has_room(2, &users(21), 1));
        senders.forget(2);
        assert!(senders.has_room(3, &users(20), most));
    }
}
