//! What is known of questions that were answered: for a time, and within a number of bytes. When it is full, what would
//! be forgotten first goes first.

use super::Decision;
use super::desk::Key;
use hashbrown::HashMap;
use std::collections::BTreeMap;

/// What an entry takes in both tables, without what hangs on it.
const ENTRY_BYTES: usize = 320;

#[derive(Debug)]
struct Entry {
    decision: Decision,
    /// Its place among those that end.
    end: (u64, u64),
    bytes: usize,
}

/// Decisions by what was asked.
#[derive(Debug)]
pub(super) struct Cache {
    entries: HashMap<Key, Entry>,
    ends: BTreeMap<(u64, u64), Key>,
    bytes: usize,
    bytes_max: usize,
    /// Tells entries that end at the same time apart.
    seq: u64,
}

impl Cache {
    pub(super) fn new(bytes_max: usize) -> Self {
        Cache { entries: HashMap::new(), ends: BTreeMap::new(), bytes: 0, bytes_max, seq: 0 }
    }

    pub(super) fn get(&self, key: &Key, now_ms: u64) -> Option<&Decision> {
        self.entries.get(key).filter(|entry| entry.end.0 > now_ms).map(|entry| &entry.decision)
    }

    /// Notes a decision. Returns how many others had to give way.
    pub(super) fn put(&mut self, key: Key, decision: Decision, until_ms: u64, now_ms: u64) -> u64 {
        let bytes = ENTRY_BYTES + decision.bytes();
        if until_ms <= now_ms || bytes > self.bytes_max {
            return 0;
        }
        self.forget(&key);
        self.sweep(now_ms);
        let mut evicted = 0;
        while self.bytes + bytes > self.bytes_max
            && let Some((_, first)) = self.ends.first_key_value()
        {
            let first = *first;
            self.forget(&first);
            evicted += 1;
        }
        self.seq += 1;
        let end = (until_ms, self.seq);
        self.ends.insert(end, key);
        self.entries.insert(key, Entry { decision, end, bytes });
        self.bytes += bytes;
        evicted
    }

    /// Forgets what is over.
    pub(super) fn sweep(&mut self, now_ms: u64) {
        while let Some((end, key)) = self.ends.first_key_value()
            && end.0 <= now_ms
        {
            let key = *key;
            self.forget(&key);
        }
    }

    fn forget(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.ends.remove(&entry.end);
            self.bytes -= entry.bytes;
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> Key {
        [number; 32]
    }

    fn refused() -> Decision {
        Decision::Refused("".into())
    }

    #[test]
    fn what_is_known_is_forgotten_in_time_and_gives_way_to_what_counts_for_longer() {
        let mut cache = Cache::new(3 * ENTRY_BYTES);
        for (number, until_ms) in [(1, 50), (2, 30), (3, 40)] {
            assert_eq!(cache.put(key(number), refused(), until_ms, 0), 0);
        }
        assert_eq!(cache.put(key(4), refused(), 60, 0), 1);
        let known = |cache: &Cache, now_ms| -> Vec<u8> {
            (1..9).filter(|number| cache.get(&key(*number), now_ms).is_some()).collect()
        };
        assert_eq!(known(&cache, 0), [1, 3, 4], "that which would have ended first has gone");
        assert_eq!(known(&cache, 40), [1, 4]);
        assert_eq!(cache.put(key(5), refused(), 70, 40), 0, "what is over takes no room");
        assert_eq!(known(&cache, 40), [1, 4, 5]);
        // The same question again counts once.
        for _ in 0..9 {
            assert_eq!(cache.put(key(5), refused(), 90, 40), 0);
        }
        assert_eq!((cache.put(key(6), refused(), 40, 40), cache.bytes()), (0, 3 * ENTRY_BYTES));
        cache.sweep(90);
        assert_eq!((cache.bytes(), cache.entries.len(), cache.ends.len()), (0, 0, 0));
        let mut none = Cache::new(0);
        assert_eq!((none.put(key(1), refused(), 9, 0), none.bytes()), (0, 0));
    }
}
