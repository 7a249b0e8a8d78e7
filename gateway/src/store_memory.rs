//! What the store of a node takes of its memory, from the limits alone: the budget counts it before there is a store.

use crate::limits::Limits;

/// Memory that the store takes for each user for whom messages wait: 25 B of a table that may be half empty.
pub(crate) const STORE_USER_BYTES: u64 = 64;
/// What one batch takes: its requests, what they came to, the answers, and twice 8 MiB of payloads, the second time as
/// they are written.
const BATCH_BYTES: u64 = 48 << 20;
/// Recent messages take so many times their setting at most. What came since the last table, and what the next one is
/// being written of: of each the store refuses messages at twice that, and at four times the cursors of devices too.
const RECENT_FACTOR: u64 = 2 * 4;
/// A table has a place of 24 B in its list for each block of entries of 4 KiB, and 12 bits in its filter for each of
/// the 58 users that a block has at most. Where tables are merged, those of the old ones and of the new one are there.
const BLOCK_BYTES: u64 = 4 << 10;
const LISTED_BYTES: u64 = 2 * (24 + 58 * 12 / 8);
/// Groups have so much less disk and memory for what is recent than inboxes: each message is there once.
pub(crate) const GROUPS_PART: u64 = 4;

/// Memory that the store takes at its limits, bytes. What it gives out of the log is counted with those who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoreMemory {
    /// Requests on their way, the batch at hand, and what shards remember of what they have asked.
    pub(crate) pending: u64,
    /// Messages and devices of which no table was written yet.
    pub(crate) recent: u64,
    /// Lists of the blocks of tables, and filters of their users.
    pub(crate) tables: u64,
    /// How much waits for each user.
    pub(crate) users: u64,
}

impl StoreMemory {
    /// Of a node with these limits.
    pub(crate) fn of(limits: &Limits) -> Self {
        StoreMemory {
            // In the queue, and in the tables of those who asked: a request counts for more than its place in either.
            pending: limits.store_mail_bytes_max.saturating_mul(3).saturating_add(BATCH_BYTES),
            recent: limits.store_recent_bytes_max.saturating_mul(RECENT_FACTOR),
            tables: (limits.store_bytes_max / BLOCK_BYTES).saturating_mul(LISTED_BYTES),
            users: limits.store_users_max.saturating_mul(STORE_USER_BYTES),
        }
    }

    /// What the logs of groups take, which have a part of what inboxes have.
    pub(crate) fn of_groups(limits: &Limits) -> u64 {
        let StoreMemory { recent, tables, .. } = StoreMemory::of(limits);
        recent.saturating_add(tables) / GROUPS_PART
    }
}
