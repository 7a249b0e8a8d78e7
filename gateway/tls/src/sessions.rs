//! The keys of all connections of a shard: three tables, one for each size, and for each slot a place in one of them.

use crate::keys::{Aes128Keys, Aes256Keys, ChaCha20Keys, Keys, Session, View};
use std::fmt;
use zeroize::Zeroize;

/// Bytes that a table grows by. Keys never move within memory, where a copy of them would stay behind.
const CHUNK_BYTES: usize = 64 << 10;
/// Bits of a place that say which table it is in.
const TABLE_SHIFT: u32 = 30;
const AES128: u32 = 1;
const CHACHA20: u32 = 2;
const AES256: u32 = 3;

/// Keys of one size.
struct Table<const SECRET: usize, const KEY: usize> {
    chunks: Vec<Box<[Keys<SECRET, KEY>]>>,
    free: Vec<u32>,
}

impl<const SECRET: usize, const KEY: usize> Table<SECRET, KEY> {
    const PER_CHUNK: usize = CHUNK_BYTES / size_of::<Keys<SECRET, KEY>>();

    fn new() -> Self {
        Table { chunks: Vec::new(), free: Vec::new() }
    }

    fn at(&mut self, place: u32) -> &mut Keys<SECRET, KEY> {
        let place = place as usize;
        &mut self.chunks[place / Self::PER_CHUNK][place % Self::PER_CHUNK]
    }

    fn put(&mut self, keys: &Keys<SECRET, KEY>) -> u32 {
        if self.free.is_empty() {
            let first = self.chunks.len() * Self::PER_CHUNK;
            self.chunks.push(std::iter::repeat_with(Keys::empty).take(Self::PER_CHUNK).collect());
            self.free.extend((first as u32..(first + Self::PER_CHUNK) as u32).rev());
        }
        let place = self.free.pop().expect("a chunk was added if there was no free place");
        self.at(place).copy_from(keys);
        place
    }

    /// Clears a place. Returns what was there.
    fn take(&mut self, place: u32) -> Box<Keys<SECRET, KEY>> {
        let mut keys = Box::new(Keys::empty());
        keys.copy_from(self.at(place));
        self.remove(place);
        keys
    }

    fn remove(&mut self, place: u32) {
        self.at(place).zeroize();
        self.free.push(place);
    }
}

/// The keys of a shard's connections by their slots. Without TLS it takes no memory.
pub struct Sessions {
    /// For each slot 0, or table and place.
    places: Vec<u32>,
    count: u32,
    aes128: Table<32, 16>,
    chacha20: Table<32, 32>,
    aes256: Table<48, 32>,
}

const _: () = assert!(size_of::<Aes128Keys>() < size_of::<ChaCha20Keys>());
const _: () = assert!(size_of::<ChaCha20Keys>() < size_of::<Aes256Keys>());

impl Default for Sessions {
    fn default() -> Self {
        Sessions { places: Vec::new(), count: 0, aes128: Table::new(), chacha20: Table::new(), aes256: Table::new() }
    }
}

impl fmt::Debug for Sessions {
    /// Without the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("count", &self.count).finish_non_exhaustive()
    }
}

impl Sessions {
    /// Keys in it.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Keeps the keys of a slot, in place of those it may have had.
    pub fn put(&mut self, slot: u32, session: &Session) {
        self.remove(slot);
        if self.places.len() <= slot as usize {
            self.places.resize(slot as usize + 1, 0);
        }
        self.places[slot as usize] = match session {
            Session::Aes128(keys) => AES128 << TABLE_SHIFT | self.aes128.put(keys),
            Session::ChaCha20(keys) => CHACHA20 << TABLE_SHIFT | self.chacha20.put(keys),
            Session::Aes256(keys) => AES256 << TABLE_SHIFT | self.aes256.put(keys),
        };
        self.count += 1;
    }

    fn place(&self, slot: u32) -> (u32, u32) {
        let place = self.places.get(slot as usize).copied().unwrap_or(0);
        (place >> TABLE_SHIFT, place & ((1 << TABLE_SHIFT) - 1))
    }

    /// The keys of a slot, to work with.
    pub fn view(&mut self, slot: u32) -> Option<View<'_>> {
        match self.place(slot) {
            (AES128, place) => Some(self.aes128.at(place).of_aes128()),
            (CHACHA20, place) => Some(self.chacha20.at(place).of_chacha20()),
            (AES256, place) => Some(self.aes256.at(place).of_aes256()),
            _ => None,
        }
    }

    fn forget(&mut self, slot: u32) {
        self.places[slot as usize] = 0;
        self.count -= 1;
    }

    /// Takes the keys of a slot, to be sent to another shard.
    pub fn take(&mut self, slot: u32) -> Option<Session> {
        let session = match self.place(slot) {
            (AES128, place) => Session::Aes128(self.aes128.take(place)),
            (CHACHA20, place) => Session::ChaCha20(self.chacha20.take(place)),
            (AES256, place) => Session::Aes256(self.aes256.take(place)),
            _ => return None,
        };
        self.forget(slot);
        Some(session)
    }

    /// Clears the keys of a slot, if it has any.
    pub fn remove(&mut self, slot: u32) {
        match self.place(slot) {
            (AES128, place) => self.aes128.remove(place),
            (CHACHA20, place) => self.chacha20.remove(place),
            (AES256, place) => self.aes256.remove(place),
            _ => return,
        }
        self.forget(slot);
    }
}
