//! The presence writes that wait for Redis: bounded, coalescing, never reordering the writes of one device.
//!
//! The writes of one (user, device) wait as a short list. A write is left out of it only where the store ends up the
//! same without it, whatever it holds now, given compare-and-set and compare-and-delete:
//!
//! - a login, then a login that beats it: the second alone;
//! - a login, then one of a lower version: the first alone, since the second would be refused;
//! - a logout, then a login of a higher version, or of the same session: the login alone, since it takes the place of
//!   what the logout would have removed;
//! - a login, then the logout of another session of a lower version: the login alone, since it took that session's
//!   place;
//! - a login, then its own logout: **both**. The logout alone would leave an older session standing that the login
//!   would have replaced.
//!
//! At most one write of a device is on its way at any time, so writes of one device cannot overtake each other.

use super::PresenceWrite;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// The default of the most writes that wait.
pub const ENTRIES_MAX: usize = 1_000_000;

/// The default of the most memory for them, in bytes: 512 for each.
pub const BYTES_MAX: usize = 512 << 20;

/// The most writes that wait for one device. Coalescing leaves up to three in practice; the rest is for logouts of
/// sessions of which nothing else is known.
const LIST_MAX: usize = 8;

/// What one write costs, texts apart: itself, and its share of the table, the order and the list.
const WRITE_BYTES: usize = size_of::<PresenceWrite>() + 192;

type Key = (u64, Box<str>);

/// The writes of one device.
#[derive(Debug)]
struct Slot {
    waiting: Vec<PresenceWrite>,
    on_its_way: bool,
    /// Put back or not if the one on its way fails: what it is about was given up meanwhile.
    abandoned: bool,
    /// An earlier login may still reach Redis, so a logout leaves a mark.
    doubtful: bool,
    queued_ms: u64,
}

/// The queue. Pure: times are arguments, in milliseconds of one monotonic clock.
#[derive(Debug)]
pub struct WriteQueue {
    slots: HashMap<Key, Slot>,
    /// Devices with a waiting write and none on its way, the longest waiting first.
    ready: VecDeque<Key>,
    entries: usize,
    entries_max: usize,
    bytes: usize,
    bytes_max: usize,
    /// Devices whose last attempt failed, and since when the first of them waited.
    doubtful: usize,
    failing_since_ms: Option<u64>,
    overflowed: bool,
}

impl WriteQueue {
    /// An empty queue for up to `entries_max` writes and `bytes_max` bytes of memory.
    #[must_use]
    pub fn new(entries_max: usize, bytes_max: usize) -> Self {
        WriteQueue {
            slots: HashMap::new(),
            ready: VecDeque::new(),
            entries: 0,
            entries_max,
            bytes: 0,
            bytes_max,
            doubtful: 0,
            failing_since_ms: None,
            overflowed: false,
        }
    }

    /// Queues a write. `false`: refused, because the queue is full; then [`WriteQueue::overflowed`] is true.
    #[must_use]
    pub fn push(&mut self, now_ms: u64, write: PresenceWrite) -> bool {
        let key = (write.user(), Box::from(write.device()));
        let slot = self.slots.get(&key);
        let mut waiting = slot.map(|slot| slot.waiting.clone()).unwrap_or_default();
        let (entries_before, bytes_before) = (waiting.len(), cost_of(&waiting));
        append(&mut waiting, write);
        let entries = self.entries - entries_before + waiting.len();
        let bytes = self.bytes - bytes_before + cost_of(&waiting);
        let grows = entries > self.entries || bytes > self.bytes;
        if (grows && (entries > self.entries_max || bytes > self.bytes_max)) || waiting.len() > LIST_MAX {
            self.overflowed = true;
            return false;
        }
        (self.entries, self.bytes) = (entries, bytes);
        match self.slots.get_mut(&key) {
            Some(slot) => slot.waiting = waiting,
            None => {
                self.ready.push_back(key.clone());
                let slot = Slot { waiting, on_its_way: false, abandoned: false, doubtful: false, queued_ms: now_ms };
                self.slots.insert(key, slot);
            }
        }
        true
    }

    /// The next writes to do, at most `count`, each of another device. Each has to be given back once, to
    /// [`WriteQueue::done`] or [`WriteQueue::failed`].
    #[must_use]
    pub fn take(&mut self, count: usize) -> Vec<PresenceWrite> {
        let mut taken = Vec::with_capacity(count.min(self.ready.len()));
        while taken.len() < count
            && let Some(key) = self.ready.pop_front()
        {
            // A key is in `ready` only with a waiting write; the checks keep a mistake from being more than a lost
            // turn.
            let Some(slot) = self.slots.get_mut(&key) else {
                continue;
            };
            if slot.on_its_way || slot.waiting.is_empty() {
                continue;
            }
            let mut write = slot.waiting.remove(0);
            if let PresenceWrite::Logout { fence, .. } = &mut write {
                *fence |= slot.doubtful;
            }
            slot.on_its_way = true;
            taken.push(write);
        }
        taken
    }

    /// Redis has executed `write`, which was taken.
    pub fn done(&mut self, now_ms: u64, write: &PresenceWrite) {
        self.entries = self.entries.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(cost(write));
        self.settle(now_ms, write);
    }

    /// It is not known whether Redis has executed `write`, which was taken. It is queued again, before the later writes
    /// of its device but behind other devices: they may have another master, one that works. Unless it was given up by
    /// [`WriteQueue::resync_began`]; whether it was queued.
    pub fn failed(&mut self, now_ms: u64, write: PresenceWrite) -> bool {
        let key = (write.user(), Box::from(write.device()));
        let Some(slot) = self.slots.get_mut(&key).filter(|slot| slot.on_its_way && !slot.abandoned) else {
            self.done(now_ms, &write);
            return false;
        };
        if !std::mem::replace(&mut slot.doubtful, true) {
            self.doubtful += 1;
            let queued_ms = slot.queued_ms;
            self.failing_since_ms = Some(self.failing_since_ms.map_or(queued_ms, |since_ms| since_ms.min(queued_ms)));
        }
        let before = cost(&write) + cost_of(&slot.waiting);
        let entries_before = 1 + slot.waiting.len();
        let mut waiting = vec![write.clone()];
        for later in std::mem::take(&mut slot.waiting) {
            append(&mut waiting, later);
        }
        slot.waiting = waiting;
        self.bytes = self.bytes - before + cost_of(&slot.waiting);
        self.entries = self.entries - entries_before + slot.waiting.len();
        slot.on_its_way = false;
        self.ready.push_back(key);
        true
    }

    /// Writes that wait or are on their way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Whether nothing waits and nothing is on its way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Whether a write could be taken.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Memory in use, in bytes, estimated from above.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How long the longest waiting device has waited; 0 if none waits. Writes on their way for the first time are left
    /// out.
    #[must_use]
    pub fn oldest_age_ms(&self, now_ms: u64) -> u64 {
        let first = self.ready.front().and_then(|key| self.slots.get(key)).map(|slot| slot.queued_ms);
        let oldest_ms = first.into_iter().chain(self.failing_since_ms).min();
        oldest_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms))
    }

    /// Whether a write was refused since the last [`WriteQueue::resync_began`]. The store then misses something, a
    /// logout perhaps, and only a new incarnation with all sessions written again makes it whole.
    #[must_use]
    pub fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// The owner has a new incarnation and begins to write all its sessions again. What waits is dropped: it is about
    /// the incarnation before, whose entries do not count any more.
    pub fn resync_began(&mut self) {
        self.overflowed = false;
        self.ready.clear();
        let (mut entries, mut bytes) = (0, 0);
        self.slots.retain(|_, slot| {
            let keep = slot.on_its_way;
            self.doubtful -= usize::from(slot.doubtful && !keep);
            entries += slot.waiting.len();
            bytes += cost_of(&slot.waiting);
            slot.waiting = Vec::new();
            slot.abandoned = keep;
            keep
        });
        if self.doubtful == 0 {
            self.failing_since_ms = None;
        }
        self.entries -= entries;
        self.bytes -= bytes;
    }

    /// A write came back for good: its device is ready again, or has nothing left.
    fn settle(&mut self, now_ms: u64, write: &PresenceWrite) {
        let key: Key = (write.user(), Box::from(write.device()));
        let Some(slot) = self.slots.get_mut(&key) else {
            return;
        };
        (slot.on_its_way, slot.abandoned) = (false, false);
        slot.queued_ms = now_ms;
        if !slot.waiting.is_empty() {
            self.ready.push_back(key);
            return;
        }
        if slot.doubtful {
            self.doubtful -= 1;
            if self.doubtful == 0 {
                self.failing_since_ms = None;
            }
        }
        self.slots.remove(&key);
    }
}

fn cost(write: &PresenceWrite) -> usize {
    let class = match write {
        PresenceWrite::Login { entry, .. } => entry.class.len(),
        PresenceWrite::Logout { .. } => 0,
    };
    // The device is in the write, in the key of the table and in the order.
    WRITE_BYTES + 3 * write.device().len() + class
}

fn cost_of(writes: &[PresenceWrite]) -> usize {
    writes.iter().map(cost).sum()
}

/// Adds `write` to the end of `list` and leaves out what makes no difference; see the rules above.
fn append(list: &mut Vec<PresenceWrite>, write: PresenceWrite) {
    let (node, session, incarnation) = write.identity();
    while let Some(last) = list.last() {
        let (last_node, last_session, last_incarnation) = last.identity();
        let same_session = (last_node, last_session) == (node, session);
        let same = same_session && last_incarnation == incarnation;
        match (last.is_login(), write.is_login()) {
            (true, true) if write.version() > last.version() => {}
            (true, true) if write.version() == last.version() && same_session && incarnation >= last_incarnation => {}
            (true, true) if write.version() < last.version() => return,
            (false, true) if write.version() > last.version() || (same && write.version() == last.version()) => {}
            (true, false) if !same && write.version() < last.version() => return,
            (false, false) if same => {}
            _ => break,
        }
        list.pop();
    }
    list.push(write);
}

#[cfg(test)]
mod tests;
