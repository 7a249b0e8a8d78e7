//! A table of users: entries in a vector, which others refer to by their place, and an index of the places by user.

use hashbrown::DefaultHashBuilder;
use std::hash::BuildHasher;

/// Places are below this, so that a reference has bits left.
pub(crate) const PLACES_MAX: usize = (1 << PLACE_BITS) - 1;
const PLACE_BITS: u32 = 28;
/// A vector grows by a twelfth, not by as much again: most of the memory of a large table is in use.
const GROWTH_PART: usize = 12;

/// What a table holds of a user.
pub(crate) trait Entry: Default {
    /// The user; 0 in a place that is free.
    fn user(&self) -> u64;
}

/// The places of users by their hashes, in buckets of four bytes, each with four bits of the hash beside the place: so
/// hardly ever another user's entry is looked at. Which bucket is a user's own follows from the hash; where that is
/// taken it is the next one that is free.
#[derive(Debug, Default)]
struct Index {
    buckets: Vec<u32>,
    len: usize,
}

/// A bucket that is free.
const FREE: u32 = u32::MAX;
const BUCKETS_LEAST: usize = 16;
/// What a user takes in the index when that has grown.
const INDEX_BYTES: usize = 6;

impl Index {
    /// The bits of a hash that are beside a place.
    fn tag(hash: u64) -> u32 {
        (hash >> 60) as u32
    }

    fn own(&self, hash: u64) -> usize {
        let folded = u64::from((hash ^ (hash >> 32)) as u32);
        ((folded * self.buckets.len() as u64) >> 32) as usize
    }

    fn next(&self, at: usize) -> usize {
        if at + 1 == self.buckets.len() { 0 } else { at + 1 }
    }

    /// The bucket, and the place in it, of that hash for which `is_it` is true.
    fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<(usize, u32)> {
        if self.buckets.is_empty() {
            return None;
        }
        let mut at = self.own(hash);
        // At least an eighth of them are free.
        while self.buckets[at] != FREE {
            let (tag, place) = (self.buckets[at] >> PLACE_BITS, self.buckets[at] & ((1 << PLACE_BITS) - 1));
            if tag == Self::tag(hash) && is_it(place) {
                return Some((at, place));
            }
            at = self.next(at);
        }
        None
    }

    /// Whether there is no room for one more.
    fn is_full(&self) -> bool {
        (self.len + 1) * 8 > self.buckets.len() * 7
    }

    /// Empties it, with room for one more than there were, and three sevenths besides.
    fn grow(&mut self) {
        let buckets = ((self.len + 1) * 10 / 7 + 1).max(BUCKETS_LEAST);
        self.buckets = Vec::new();
        self.buckets.resize(buckets, FREE);
        self.len = 0;
    }

    fn insert(&mut self, hash: u64, place: u32) {
        let mut at = self.own(hash);
        while self.buckets[at] != FREE {
            at = self.next(at);
        }
        self.buckets[at] = Self::tag(hash) << PLACE_BITS | place;
        self.len += 1;
    }

    /// Frees a bucket. Those behind it that would not be found any more move towards their own.
    fn remove(&mut self, bucket: usize, hash_of: impl Fn(u32) -> u64) {
        let buckets = self.buckets.len();
        let distance = |from: usize, to: usize| (to + buckets - from) % buckets;
        let (mut hole, mut at) = (bucket, self.next(bucket));
        while self.buckets[at] != FREE {
            let own = self.own(hash_of(self.buckets[at] & ((1 << PLACE_BITS) - 1)));
            if distance(own, at) >= distance(hole, at) {
                self.buckets[hole] = self.buckets[at];
                hole = at;
            }
            at = self.next(at);
        }
        self.buckets[hole] = FREE;
        self.len -= 1;
    }
}

/// Entries by place and by user. Its hasher is seeded at random, so that user ids that collide in it are not known from
/// outside; nothing follows the order of the index.
#[derive(Debug, Default)]
pub(crate) struct Table<T> {
    entries: Vec<T>,
    free: Vec<u32>,
    index: Index,
    hasher: DefaultHashBuilder,
}

impl<T: Entry> Table<T> {
    /// Users.
    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Places, used and free: all are below this.
    pub(crate) fn places(&self) -> usize {
        self.entries.len()
    }

    /// Memory held, bytes, without what entries hold besides.
    pub(crate) fn bytes(&self) -> usize {
        let index = self.index.buckets.capacity() * 4;
        self.entries.capacity() * size_of::<T>() + self.free.capacity() * 4 + index
    }

    /// What of that memory the users take who are there. The rest is free for others.
    pub(crate) fn used_bytes(&self) -> usize {
        self.len() * (size_of::<T>() + INDEX_BYTES)
    }

    /// The place of a user.
    pub(crate) fn find(&self, user: u64) -> Option<u32> {
        let entries = &self.entries;
        let found = self.index.find(self.hasher.hash_one(user), |at| entries[at as usize].user() == user);
        found.map(|(_, place)| place)
    }

    /// The entry in a place; `None` if that is free, or no place.
    pub(crate) fn at(&mut self, at: u32) -> Option<&mut T> {
        self.entries.get_mut(at as usize).filter(|entry| entry.user() != 0)
    }

    /// The entry in a place, to look at.
    pub(crate) fn look(&self, at: u32) -> Option<&T> {
        self.entries.get(at as usize).filter(|entry| entry.user() != 0)
    }

    /// Adds the entry of a user who has none. `None` if there are as many as there may be.
    pub(crate) fn add(&mut self, entry: T) -> Option<u32> {
        if self.free.is_empty() && self.entries.len() >= PLACES_MAX {
            return None;
        }
        if self.index.is_full() {
            self.index.grow();
            for (place, entry) in (0..).zip(&self.entries).filter(|(_, entry)| entry.user() != 0) {
                self.index.insert(self.hasher.hash_one(entry.user()), place);
            }
        }
        let hash = self.hasher.hash_one(entry.user());
        let at = match self.free.pop() {
            Some(at) => {
                self.entries[at as usize] = entry;
                at
            }
            None => {
                let places = self.entries.len();
                if places == self.entries.capacity() {
                    self.entries.reserve_exact(places / GROWTH_PART + 64);
                }
                self.entries.push(entry);
                places as u32
            }
        };
        self.index.insert(hash, at);
        Some(at)
    }

    /// Removes the entry in a place and returns it.
    pub(crate) fn remove(&mut self, at: u32) -> Option<T> {
        let user = self.look(at)?.user();
        let (bucket, _) = self.index.find(self.hasher.hash_one(user), |known| known == at)?;
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.index.remove(bucket, |place| hasher.hash_one(entries[place as usize].user()));
        let entry = std::mem::take(&mut self.entries[at as usize]);
        if self.index.len == 0 {
            // What a crowd took is given back when it has gone.
            (self.entries, self.free, self.index) = (Vec::new(), Vec::new(), Index::default());
        } else {
            self.free.push(at);
        }
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Debug, Default)]
    struct Number(u64);

    impl Entry for Number {
        fn user(&self) -> u64 {
            self.0
        }
    }

    #[test]
    fn a_large_one_finds_everybody_while_many_come_and_go() {
        let mut rng = crate::io::sim::Rng::new(7);
        let (mut table, mut model) = (Table::<Number>::default(), BTreeMap::new());
        for round in 0..4 {
            for _ in 0..4_000 {
                let user = rng.within(1, 6_000);
                match model.remove(&user) {
                    Some(at) if round % 2 == 1 || rng.chance(300) => drop(table.remove(at).expect("it is there")),
                    Some(at) => drop(model.insert(user, at)),
                    None => drop(model.insert(user, table.add(Number(user)).expect("there is room"))),
                }
            }
            assert_eq!((table.len(), table.index.len), (model.len(), model.len()));
            assert!((1..=6_000).all(|user| table.find(user) == model.get(&user).copied()), "round {round}");
            let each = table.bytes() as f64 / model.len() as f64;
            assert!(round > 0 || each < 8.0 * 1.1 + 4.0 * 1.5 + 1.0, "{each} B for a user");
        }
        for at in model.into_values() {
            assert!(table.remove(at).is_some());
        }
        assert_eq!((table.len(), table.index.buckets.len()), (0, 0));
    }

    proptest! {
        #[test]
        fn it_is_a_map_whose_places_stay(acts in prop::collection::vec((any::<bool>(), 1_u64..40), 0..300)) {
            let mut table = Table::<Number>::default();
            let mut model = BTreeMap::new();
            for (add, user) in acts {
                match model.get(&user).copied() {
                    None if add => drop(model.insert(user, table.add(Number(user)).unwrap())),
                    Some(at) if !add => {
                        prop_assert_eq!(table.remove(at).map(|entry| entry.0), Some(user));
                        model.remove(&user);
                    }
                    _ => {}
                }
                prop_assert_eq!(table.len(), model.len());
                prop_assert!((1..40).all(|user| table.find(user) == model.get(&user).copied()));
                prop_assert!(model.iter().all(|(user, at)| table.look(*at).is_some_and(|entry| entry.0 == *user)));
            }
        }
    }
}
