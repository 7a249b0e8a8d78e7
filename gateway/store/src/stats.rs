//! Numbers of a store, read by other threads.

use crate::Refusal;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Upper bounds of the buckets of [`Stats::commit_us`], microseconds; the last bucket has none.
pub const COMMIT_BUCKETS_US: [u64; 12] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000];

/// Numbers of a store. The store's thread writes them; everybody may read.
#[derive(Debug, Default)]
pub struct Stats {
    /// The last write went to disk, and the next may. False while appends are refused as unavailable.
    pub available: AtomicBool,
    /// Messages stored.
    pub appends: AtomicU64,
    /// Messages found stored already.
    pub duplicates: AtomicU64,
    /// Payload bytes stored.
    pub append_bytes: AtomicU64,
    /// Requests refused, by [`Refusal::ALL`].
    pub refused: [AtomicU64; Refusal::ALL.len()],
    /// Messages dropped from full logs to make room.
    pub dropped_oldest: AtomicU64,
    /// Messages dropped because of their age.
    pub expired: AtomicU64,
    /// Messages dropped because all registered devices have them.
    pub acknowledged: AtomicU64,
    /// Messages deleted because somebody asked for it.
    pub deleted: AtomicU64,
    /// Messages given out in pages.
    pub read: AtomicU64,
    /// Devices forgotten because they were unseen for too long, or too many.
    pub devices_forgotten: AtomicU64,
    /// Cursors and signs of life dropped because no table could be written for long.
    pub cursors_dropped: AtomicU64,
    /// Gaps that devices are not told of because no table could be written, or Redis not reached, for long.
    pub gaps_dropped: AtomicU64,
    /// Read marks dropped because Redis had not got them for long.
    pub marks_dropped: AtomicU64,
    /// LOGOUTs dropped because Redis had not got them for long.
    pub log_outs_dropped: AtomicU64,
    /// Cursors and signs of life ignored because their device is not registered, or its number is another one's by now.
    pub cursors_stale: AtomicU64,
    /// Batches made durable.
    pub commits: AtomicU64,
    /// Batches that could not be made durable.
    pub commit_failures: AtomicU64,
    /// Time of the commits, microseconds in all.
    pub commit_us_sum: AtomicU64,
    /// Commits by their time; see [`COMMIT_BUCKETS_US`].
    pub commit_us: [AtomicU64; COMMIT_BUCKETS_US.len() + 1],
    /// Bytes of the write-ahead log on disk.
    pub log_bytes: AtomicU64,
    /// Bytes of the tables on disk.
    pub table_bytes: AtomicU64,
    /// Tables on disk.
    pub tables: AtomicU64,
    /// Tables written, whether from the log or from other tables.
    pub tables_written: AtomicU64,
    /// Bytes written into tables.
    pub table_bytes_written: AtomicU64,
    /// Tables that could not be written.
    pub table_failures: AtomicU64,
    /// Memory of recent messages, bytes.
    pub recent_bytes: AtomicU64,
    /// Memory by which users are found, bytes: of those for whom messages wait, and of those whom a table knows.
    pub index_bytes: AtomicU64,
    /// Users for whom messages wait, or lately did.
    pub users: AtomicU64,
    /// Messages that wait.
    pub messages: AtomicU64,
    /// Their bytes, as in the limits.
    pub message_bytes: AtomicU64,
    /// Damaged places found on disk; each raised floors.
    pub damages: AtomicU64,
    /// By how much the clock has run ahead of the time that has passed since the store was opened, as far as nothing
    /// ages by it, milliseconds; 0 while the clock is believed.
    pub clock_ahead_ms: AtomicU64,
    /// In a Redis Cluster, what has a message before it counts as stored: 1 the master, 2 a replica as well, 3 their
    /// append-only files; 0 while that is not decided, and on disk.
    pub sync: AtomicU64,
    /// The master alone, though nobody asked for that: a master had no replica.
    pub sync_is_makeshift: AtomicBool,
    /// When the commit under way began, milliseconds since 1970; 0 if none is.
    pub(crate) commit_since_ms: AtomicU64,
    /// What the disk said last, while it fails.
    trouble: Mutex<Option<String>>,
    /// What was found damaged when the store was opened.
    damage: Mutex<Option<String>>,
}

impl Stats {
    /// Whether writes go to disk.
    pub fn is_available(&self) -> bool {
        self.available.load(Ordering::Relaxed)
    }

    /// What the disk said last, while it fails.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was found damaged when the store was opened, in words: something that had been stored is lost.
    pub fn damage(&self) -> Option<String> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes damage, which stays until the process ends: the next start finds nothing new.
    pub(crate) fn set_damage(&self, damage: String) {
        *self.damage.lock().unwrap_or_else(PoisonError::into_inner) = Some(damage);
    }

    /// For how long the commit under way has waited for the disk, milliseconds; 0 if none is. A disk that stalls does
    /// not fail: the store is available, and requests wait in its bounded mailbox.
    pub fn stalled_ms(&self, now_ms: u64) -> u64 {
        match self.commit_since_ms.load(Ordering::Relaxed) {
            0 => 0,
            since => now_ms.saturating_sub(since),
        }
    }

    /// Notes what is wrong, or that nothing is.
    pub fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// Counts.
    pub fn add(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }

    /// Sets a gauge.
    pub fn set(gauge: &AtomicU64, to: u64) {
        gauge.store(to, Ordering::Relaxed);
    }

    /// Counts a refusal.
    pub fn refuse(&self, refusal: Refusal) {
        Stats::add(&self.refused[refusal as usize], 1);
    }

    /// Counts a batch that was made durable within so many microseconds.
    pub fn committed(&self, us: u64) {
        Stats::add(&self.commits, 1);
        Stats::add(&self.commit_us_sum, us);
        let bucket = COMMIT_BUCKETS_US.partition_point(|bound| *bound < us);
        Stats::add(&self.commit_us[bucket], 1);
    }
}
