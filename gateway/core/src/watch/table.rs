//! A table of users: entries in a vector, which others refer to by their place, and an index of the places by user.

use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;

/// Places are below this, so that a reference has bits left.
pub(crate) const PLACES_MAX: usize = 1 << 28;
/// A vector grows by an eighth, not by as much again: most of the memory of a large table is in use.
const GROWTH_PART: usize = 8;

/// What a table holds of a user.
pub(crate) trait Entry: Default {
    /// The user; 0 in a place that is free.
    fn user(&self) -> u64;
}

/// Entries by place and by user. Its hasher is seeded at random, so that user ids that collide in it are not known from
/// outside; nothing follows the order of the index.
#[derive(Debug, Default)]
pub(crate) struct Table<T> {
    entries: Vec<T>,
    free: Vec<u32>,
    index: HashTable<u32>,
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
        self.entries.capacity() * size_of::<T>() + self.free.capacity() * 4 + self.index.allocation_size()
    }

    /// The place of a user.
    pub(crate) fn find(&self, user: u64) -> Option<u32> {
        let entries = &self.entries;
        self.index.find(self.hasher.hash_one(user), |at| entries[*at as usize].user() == user).copied()
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
        let hash = self.hasher.hash_one(entry.user());
        let at = match self.free.pop() {
            Some(at) => {
                self.entries[at as usize] = entry;
                at
            }
            None => {
                let places = self.entries.len();
                if places >= PLACES_MAX {
                    return None;
                }
                if places == self.entries.capacity() {
                    self.entries.reserve_exact(places / GROWTH_PART + 64);
                }
                self.entries.push(entry);
                places as u32
            }
        };
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.index.insert_unique(hash, at, |at| hasher.hash_one(entries[*at as usize].user()));
        Some(at)
    }

    /// Removes the entry in a place and returns it.
    pub(crate) fn remove(&mut self, at: u32) -> Option<T> {
        let user = self.look(at)?.user();
        let found = self.index.find_entry(self.hasher.hash_one(user), |known| *known == at).ok()?;
        found.remove();
        let entry = std::mem::take(&mut self.entries[at as usize]);
        if self.index.is_empty() {
            // What a crowd took is given back when it has gone.
            (self.entries, self.free, self.index) = (Vec::new(), Vec::new(), HashTable::new());
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
