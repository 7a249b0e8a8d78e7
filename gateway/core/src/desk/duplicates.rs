//! What became of messages that were sent lately, so that one that is sent again is not taken for another.
//!
//! A message is known by a keyed 64-bit fingerprint of its sender, id and recipient; three of its bits hold what became
//! of it, and whether it came with RETRY. One that came so may have overtaken the message that it repeats, which has
//! no RETRY and is to be known all the same when it comes; others without RETRY are not looked for, since they are what
//! nearly all messages are.
//!
//! There are two generations: a new one begins when the present one is half of the time old or holds half of the
//! number, and the one before is forgotten. So a message is remembered for half of the time at least, unless there are
//! too many, and a shard pays for one insertion a message.

use crate::limits::{DUPLICATES_MAX, DUPLICATES_MS};
use crate::wheel::ticks;
use hashbrown::HashTable;
use trunkline_router_core::hash::user_hash;

/// Entries of one generation.
const GENERATION_MAX: usize = DUPLICATES_MAX / 2;
const GENERATION_TICKS: u32 = ticks(DUPLICATES_MS / 2);
/// Bytes that a shard's duplicates take at most: a table is up to twice as large as what it holds, with 17 bytes for
/// each place.
pub const DUPLICATES_BYTES: u64 = 2 * 2 * GENERATION_MAX as u64 * 17;
/// Bits of a fingerprint that hold its state.
const STATE: u64 = 3;
/// The bit of a message that came with RETRY.
const RETRIED: u64 = 4;
/// The bits of an entry that are not its fingerprint's.
const NOTES: u64 = STATE | RETRIED;

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It waits for an ACK or the store.
    Open,
    /// A device acknowledged it.
    Delivered,
    /// The store has it.
    Stored,
}

/// Fingerprint, its lowest bits the notes; and position.
type Entry = (u64, u64);
const _: () = assert!(size_of::<Entry>() == 16);

/// A fingerprint is a hash already; its lowest bits are not a part of it, and others stand in for them. The highest
/// stay where they are: a table tells entries in one place apart by them.
fn hash(fingerprint: u64) -> u64 {
    let fingerprint = fingerprint & !NOTES;
    fingerprint | (fingerprint >> 32 & NOTES)
}

fn is(fingerprint: u64) -> impl Fn(&Entry) -> bool {
    move |entry| entry.0 & !NOTES == fingerprint
}

fn known(noted: u64) -> Known {
    match noted & STATE {
        1 => Known::Delivered,
        2 => Known::Stored,
        _ => Known::Open,
    }
}

/// What a shard remembers of the messages with ACK for its users.
#[derive(Debug)]
pub struct Duplicates {
    key: u64,
    present: HashTable<Entry>,
    before: HashTable<Entry>,
    began_tick: u32,
    /// Whether a message has come with RETRY since the present generation began, and in the one before.
    retried: bool,
    retried_before: bool,
}

impl Duplicates {
    /// Remembers nothing yet. Nobody can find out messages that collide without the key.
    pub(crate) fn new(key: u64) -> Self {
        let (present, before) = (HashTable::new(), HashTable::new());
        Duplicates { key, present, before, began_tick: 0, retried: false, retried_before: false }
    }

    fn fingerprint(&self, from: u64, id: u64, to: u64) -> u64 {
        user_hash(user_hash(user_hash(self.key ^ from).wrapping_add(id)) ^ to) & !NOTES
    }

    /// Begins a new generation where it is time. Returns whether that is because there were too many.
    pub(crate) fn turn_over(&mut self, tick: u32) -> bool {
        let full = self.present.len() >= GENERATION_MAX;
        if !full && tick.saturating_sub(self.began_tick) < GENERATION_TICKS {
            return false;
        }
        self.began_tick = tick;
        let mostly_empty = self.before.len() * 4 < self.before.capacity();
        std::mem::swap(&mut self.present, &mut self.before);
        self.retried_before = std::mem::take(&mut self.retried);
        // The memory of the one that is forgotten serves the next, if that was of use.
        if mostly_empty {
            self.present = HashTable::new();
        }
        self.present.clear();
        full
    }

    /// Notes that a message has come, at its position, with RETRY or without.
    pub(crate) fn note_new(&mut self, from: u64, id: u64, to: u64, stamp: u64, retry: bool) {
        self.retried |= retry;
        let retried = if retry { RETRIED } else { 0 };
        self.put(self.fingerprint(from, id, to), Known::Open as u64 | retried, stamp);
    }

    /// Notes what became of a message, with its position.
    pub(crate) fn note(&mut self, from: u64, id: u64, to: u64, stamp: u64, known: Known) {
        let fingerprint = self.fingerprint(from, id, to);
        let retried =
            if self.any_retried() { self.entry(fingerprint).map_or(0, |(notes, _)| notes & RETRIED) } else { 0 };
        // It is remembered for as long as its message from now on.
        self.retried |= retried != 0;
        self.put(fingerprint, known as u64 | retried, stamp);
    }

    fn put(&mut self, fingerprint: u64, notes: u64, stamp: u64) {
        let entry = (fingerprint | notes, stamp);
        match self.present.find_mut(hash(fingerprint), is(fingerprint)) {
            Some(noted) => *noted = entry,
            None => {
                self.present.insert_unique(hash(fingerprint), entry, |entry| hash(entry.0));
            }
        }
    }

    fn entry(&self, fingerprint: u64) -> Option<Entry> {
        let find = |generation: &HashTable<Entry>| generation.find(hash(fingerprint), is(fingerprint)).copied();
        find(&self.present).or_else(|| find(&self.before))
    }

    #[inline]
    fn any_retried(&self) -> bool {
        self.retried || self.retried_before
    }

    /// What is remembered of a message: its position and what became of it.
    pub(crate) fn find(&self, from: u64, id: u64, to: u64) -> Option<(u64, Known)> {
        self.entry(self.fingerprint(from, id, to)).map(|(noted, stamp)| (stamp, known(noted)))
    }

    /// The same of a message that came with RETRY: one that comes without is the first one then, and late. Costs
    /// nothing where no message has come with RETRY for a while.
    #[inline]
    pub(crate) fn find_retried(&self, from: u64, id: u64, to: u64) -> Option<(u64, Known)> {
        if !self.any_retried() {
            return None;
        }
        let (noted, stamp) = self.entry(self.fingerprint(from, id, to))?;
        (noted & RETRIED != 0).then(|| (stamp, known(noted)))
    }

    /// A message was not taken after all: sent again it is a new one.
    pub(crate) fn forget(&mut self, from: u64, id: u64, to: u64) {
        let fingerprint = self.fingerprint(from, id, to);
        for generation in [&mut self.present, &mut self.before] {
            if let Ok(entry) = generation.find_entry(hash(fingerprint), is(fingerprint)) {
                entry.remove();
            }
        }
    }

    /// Messages that are remembered.
    pub(crate) fn len(&self) -> usize {
        self.present.len() + self.before.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_known_by_sender_id_and_recipient_with_what_became_of_it() {
        let mut duplicates = Duplicates::new(9);
        duplicates.note(1, 2, 3, 100, Known::Open);
        assert_eq!(duplicates.find(1, 2, 3), Some((100, Known::Open)));
        for other in [(2, 2, 3), (1, 3, 3), (1, 2, 4), (3, 2, 1)] {
            assert_eq!(duplicates.find(other.0, other.1, other.2), None, "{other:?}");
        }
        duplicates.note(1, 2, 3, 100, Known::Stored);
        assert_eq!(duplicates.find(1, 2, 3), Some((100, Known::Stored)));
        duplicates.forget(1, 2, 3);
        assert_eq!((duplicates.find(1, 2, 3), duplicates.len()), (None, 0));
    }

    #[test]
    fn a_message_outlives_one_generation_and_not_two() {
        let mut duplicates = Duplicates::new(9);
        duplicates.note(1, 2, 3, 100, Known::Delivered);
        assert!(!duplicates.turn_over(GENERATION_TICKS - 1));
        assert_eq!(duplicates.len(), 1);
        duplicates.turn_over(GENERATION_TICKS);
        assert!(duplicates.find(1, 2, 3).is_some());
        duplicates.turn_over(2 * GENERATION_TICKS);
        assert_eq!(duplicates.find(1, 2, 3), None);
    }

    #[test]
    fn one_that_came_with_retry_is_known_to_the_late_first_one_for_as_long_as_it_is_remembered() {
        let mut duplicates = Duplicates::new(9);
        duplicates.note_new(1, 2, 3, 100, false);
        assert_eq!((duplicates.find_retried(1, 2, 3), duplicates.find(1, 2, 3)), (None, Some((100, Known::Open))));
        duplicates.note_new(1, 5, 3, 101, true);
        assert_eq!(duplicates.find_retried(1, 5, 3), Some((101, Known::Open)));
        assert_eq!(duplicates.find_retried(1, 2, 3), None, "a number that is used again is another message's");
        duplicates.turn_over(GENERATION_TICKS);
        duplicates.note(1, 5, 3, 102, Known::Stored);
        duplicates.turn_over(2 * GENERATION_TICKS);
        assert_eq!(duplicates.find_retried(1, 5, 3), Some((102, Known::Stored)));
        assert!(duplicates.any_retried());
        duplicates.turn_over(3 * GENERATION_TICKS);
        assert!(duplicates.find_retried(1, 5, 3).is_none() && !duplicates.any_retried());
        duplicates.note_new(1, 5, 3, 103, true);
        duplicates.forget(1, 5, 3);
        assert_eq!(duplicates.find_retried(1, 5, 3), None, "it was refused");
    }

    #[test]
    fn the_bits_by_which_a_table_tells_entries_apart_are_all_of_use() {
        let duplicates = Duplicates::new(9);
        let hashes: Vec<u64> = (0..4_096).map(|id| hash(duplicates.fingerprint(1, id, 3))).collect();
        for bit in 0..64 {
            let set = hashes.iter().filter(|hash| **hash >> bit & 1 == 1).count();
            assert!((1_500..2_600).contains(&set), "bit {bit}: {set}");
        }
        assert_eq!(hash(hashes[0] & !NOTES), hash(hashes[0] & !NOTES | RETRIED | 2), "notes are no part of it");
    }

    #[test]
    fn a_generation_holds_so_many_and_says_when_it_is_full() {
        let mut duplicates = Duplicates::new(9);
        for id in 0..GENERATION_MAX as u64 {
            assert!(!duplicates.turn_over(1));
            duplicates.note(1, id, 3, id, Known::Open);
        }
        assert!(duplicates.turn_over(1));
        duplicates.note(1, u64::MAX, 3, 7, Known::Open);
        assert_eq!(duplicates.len(), GENERATION_MAX + 1);
        assert!(duplicates.present.capacity() * 17 <= DUPLICATES_BYTES as usize);
    }
}
