//! The pushes that are open: for which users nobody knows yet what became of them. No I/O and no clock.
//!
//! Each user of a push ends in exactly one result: a fate that comes twice, or for a push that is not open, counts
//! once, or not at all. A push is open until all its users have one, however long its caller waits.

use hashbrown::HashMap;
use trunkline_proto::Outcome;

/// Bytes that a push with one user takes at most, in a table that may be half empty.
pub const OPEN_BYTES: u64 = 2 * (size_of::<(u32, Open<[usize; 2]>)>() as u64 + 1) + 8 + 2 * 16;
/// Numbers of pushes are below this: a message's origin has that many bits for them, and one to tell by whose ledger it
/// is.
pub const TOKENS: u32 = 1 << 23;

/// What became of the users of a push.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([u16; Outcome::ALL.len()]);

impl Counts {
    /// How many ended so.
    pub fn of(&self, outcome: Outcome) -> u16 {
        self.0[usize::from(outcome.as_u16())]
    }

    /// Counts one.
    pub fn add(&mut self, outcome: Outcome) {
        self.0[usize::from(outcome.as_u16())] += 1;
    }
}

/// Where a push stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub id: u64,
    pub counts: Counts,
    /// Users without a result.
    pub pending: u16,
}

/// An open push, and those who wait for its end.
#[derive(Debug)]
struct Open<W> {
    id: u64,
    /// Those without a result, ascending.
    users: Vec<u64>,
    counts: Counts,
    waiters: Vec<W>,
}

impl<W> Open<W> {
    fn standing(&self) -> Standing {
        Standing { id: self.id, counts: self.counts, pending: self.users.len() as u16 }
    }
}

/// What a fate did.
#[derive(Debug, PartialEq, Eq)]
pub enum Settled<W> {
    /// Nobody waits for it: it came twice, or too late.
    Late,
    /// It was counted, and others of the push are open.
    Counted,
    /// It was the last of its push: where that stands, and who is to be told.
    Last(Standing, Vec<W>),
}

/// The open pushes. `W` is who waits for the end of one.
#[derive(Debug)]
pub struct Ledger<W> {
    open: HashMap<u32, Open<W>>,
    last_token: u32,
    users: usize,
    users_max: usize,
}

impl<W> Ledger<W> {
    /// A ledger for so many users of pushes that are open at a time, less than 2^22.
    pub fn new(users_max: usize) -> Self {
        Ledger { open: HashMap::new(), last_token: 0, users: 0, users_max: users_max.min(TOKENS as usize / 2) }
    }

    /// Users of open pushes.
    pub fn users(&self) -> usize {
        self.users
    }

    /// Whether a push to so many users may be open too.
    pub fn has_room(&self, users: usize) -> bool {
        self.users + users <= self.users_max
    }

    /// Opens a push to these users, ascending and each once; gives its number.
    pub fn begin(&mut self, id: u64, users: Vec<u64>) -> u32 {
        loop {
            // A number comes again as late as can be: a fate that is late for one push names no other.
            self.last_token = (self.last_token + 1) % TOKENS;
            if !self.open.contains_key(&self.last_token) {
                break;
            }
        }
        self.users += users.len();
        let open = Open { id, users, counts: Counts::default(), waiters: Vec::new() };
        self.open.insert(self.last_token, open);
        self.last_token
    }

    /// Where an open push stands.
    pub fn standing(&self, token: u32) -> Option<Standing> {
        self.open.get(&token).map(Open::standing)
    }

    /// Lets somebody wait for the end of an open push, beside those who still do. False if it is not open.
    pub fn wait(&mut self, token: u32, waiter: W, still_waits: impl Fn(&W) -> bool) -> bool {
        let Some(open) = self.open.get_mut(&token) else { return false };
        open.waiters.retain(still_waits);
        open.waiters.push(waiter);
        true
    }

    /// What became of the push to one user.
    pub fn settle(&mut self, token: u32, id: u64, user: u64, outcome: Outcome) -> Settled<W> {
        let Some(open) = self.open.get_mut(&token).filter(|open| open.id == id) else { return Settled::Late };
        let Ok(at) = open.users.binary_search(&user) else { return Settled::Late };
        open.users.remove(at);
        open.counts.add(outcome);
        self.users -= 1;
        if !open.users.is_empty() {
            return Settled::Counted;
        }
        let standing = open.standing();
        let waiters = self.open.remove(&token).map(|open| open.waiters).unwrap_or_default();
        Settled::Last(standing, waiters)
    }

    /// Nothing more is heard of any push: all that are open, with those who wait for them and users without a result.
    pub fn give_up(&mut self) -> Vec<(Standing, Vec<W>, Vec<u64>)> {
        self.users = 0;
        let open = std::mem::take(&mut self.open);
        open.into_values().map(|open| (open.standing(), open.waiters, open.users)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn a_push_ends_with_the_last_of_its_users_and_all_who_wait_hear_of_it() {
        let mut ledger = Ledger::new(10);
        let token = ledger.begin(9, vec![1, 2]);
        let wait = |ledger: &mut Ledger<_>, who| ledger.wait(token, who, |other| *other != "gone");
        assert!(["first", "gone", "second"].into_iter().all(|who| wait(&mut ledger, who)));
        assert_eq!(ledger.settle(token, 9, 2, Outcome::Stored), Settled::Counted);
        assert_eq!(ledger.settle(token, 9, 2, Outcome::Stored), Settled::Late, "it came twice");
        assert_eq!(ledger.settle(token, 8, 1, Outcome::Stored), Settled::Late, "another id");
        assert_eq!(ledger.standing(token).map(|standing| standing.pending), Some(1));
        let Settled::Last(standing, waiters) = ledger.settle(token, 9, 1, Outcome::Delivered) else { panic!("open") };
        assert_eq!((standing.id, standing.pending, waiters), (9, 0, vec!["first", "second"]));
        assert_eq!((standing.counts.of(Outcome::Stored), standing.counts.of(Outcome::Delivered)), (1, 1));
        assert_eq!(ledger.settle(token, 9, 1, Outcome::Delivered), Settled::Late);
        assert!(!wait(&mut ledger, "too late"));
        assert_eq!(ledger.users(), 0);
    }

    #[test]
    fn at_the_end_nobody_is_left_waiting() {
        let mut ledger = Ledger::new(10);
        let token = ledger.begin(9, vec![1, 2, 3]);
        assert!(ledger.wait(token, (), |()| true) && ledger.has_room(7) && !ledger.has_room(8));
        ledger.settle(token, 9, 2, Outcome::Denied);
        let left = ledger.give_up();
        let [(standing, waiters, users)] = &left[..] else { panic!("{left:?}") };
        assert_eq!((standing.pending, waiters.len(), &users[..]), (2, 1, &[1, 3][..]));
        assert!(ledger.has_room(10) && ledger.standing(token).is_none());
    }

    proptest! {
        /// Whatever fates come, for whatever push, each user has one result, and the sums are right.
        #[test]
        fn each_user_has_one_result(
            pushes in prop::collection::vec((1..4u64, prop::collection::btree_set(1..9u64, 1..6)), 1..8),
            fates in prop::collection::vec((0..10u32, 1..4u64, 1..9u64, 0..7u16), 0..200),
        ) {
            let mut ledger: Ledger<u32> = Ledger::new(1_000);
            let mut left: BTreeMap<u32, (u64, BTreeSet<u64>)> = BTreeMap::new();
            for (id, users) in pushes {
                let token = ledger.begin(id, users.iter().copied().collect());
                prop_assert!(ledger.wait(token, token, |_| true));
                left.insert(token, (id, users));
            }
            for (token, id, user, outcome) in fates {
                let known = left.get_mut(&token).filter(|(known, _)| *known == id);
                let counts = known.is_some_and(|(_, users)| users.remove(&user));
                let settled = ledger.settle(token, id, user, Outcome::from_u16(outcome).unwrap());
                let is_last = counts && left[&token].1.is_empty();
                match settled {
                    Settled::Late => prop_assert!(!counts),
                    Settled::Counted => prop_assert!(counts && !is_last),
                    Settled::Last(standing, waiters) => {
                        prop_assert!(is_last && standing.pending == 0 && waiters == [token]);
                        left.remove(&token);
                    }
                }
            }
            prop_assert_eq!(ledger.users(), left.values().map(|(_, users)| users.len()).sum::<usize>());
        }
    }
}
