//! What a store does without being asked: the log is cut, tables are written and merged, old messages dropped.

use super::{Embedded, Frozen, QUIET_MS, RETRY_MS};
use crate::jobs::{Done, Garbage, Job, Recents};
use crate::table::{Footer, Table};
use crate::{Stats, stamp_at, stamp_ms};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The log is cut after this time even if it is short, so that what was deleted leaves the disk.
const CUT_MS: u64 = 600_000;
/// A full store cuts its log this often, in the hope that enough has been deleted for a merge to make room.
const ROOM_MS: u64 = 5_000;
/// How often it is looked whether a job has ended.
const POLL_MS: u64 = 20;
/// Tables that are merged at least, if not to get rid of what was deleted. More mean fewer bytes written, and more
/// tables to look into.
const MERGE_TABLES_MIN: usize = 4;
/// A merge that failed is tried again after this time. It has to write much.
const MERGE_RETRY_MS: u64 = 60_000;
/// How often tables are looked through for messages that are too old.
const SWEEP_MS: u64 = 3_600_000;
/// Blocks of a table that are looked through at a time.
const SWEEP_BLOCKS: usize = 4;
/// Users without messages that are kept in memory for the sake of their last stamp.
const EMPTIED_MAX: usize = 1 << 18;

/// What is under way, and when what is due.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    /// What the clock showed when it was looked at last.
    pub(super) now_ms: u64,
    /// When the log is tried again.
    pub(super) retry_ms: u64,
    /// A message was refused since the store has its size.
    pub(super) wants_room: bool,
    /// Users for whom nothing waited at some time, with their last stamp then.
    pub(super) emptied: VecDeque<(u64, u64)>,
    pub(super) cut_ms: u64,
    flush_retry_ms: u64,
    merge_retry_ms: u64,
    merging: bool,
    /// Tells a merge to give up, since the store is closed: merging much takes minutes.
    pub(super) stop: Arc<AtomicBool>,
    /// A table has been written since it was last decided whether deleted messages are worth a merge.
    weigh_garbage: bool,
    sweep_ms: u64,
    /// The table that is looked through, by its last generation, and the next block.
    sweep: Option<(u64, usize)>,
}

impl Upkeep {
    /// The clock has been set back by so much.
    pub(super) fn set_back(&mut self, ms: u64) {
        for due_ms in [
            &mut self.retry_ms,
            &mut self.cut_ms,
            &mut self.flush_retry_ms,
            &mut self.merge_retry_ms,
            &mut self.sweep_ms,
        ] {
            *due_ms = due_ms.saturating_sub(ms);
        }
    }
}

impl Embedded {
    /// Does what is due. Returns in how many milliseconds something is.
    pub(super) fn look_after(&mut self) -> Option<u64> {
        if self.closed {
            return None;
        }
        self.take_finished();
        self.cut_if_due();
        self.retry_flush();
        self.take_finished();
        self.merge_if_due();
        self.forget_quiet();
        let sweeping = self.sweep_if_due();
        let running = self.frozen.is_some() || self.upkeep.merging;
        let cut = (!self.recents.is_empty() && self.log.is_up())
            .then(|| (self.upkeep.cut_ms + CUT_MS).saturating_sub(self.now_ms()).max(POLL_MS));
        [running.then_some(POLL_MS), sweeping, cut].into_iter().flatten().min()
    }

    fn take_finished(&mut self) {
        while let Some(done) = self.executor.poll() {
            self.finished(done);
        }
    }

    fn cut_if_due(&mut self) {
        let now_ms = self.now_ms();
        let waits = self.frozen.is_some() || now_ms < self.upkeep.flush_retry_ms;
        if waits || self.recents.is_empty() || !self.log.is_up() {
            return;
        }
        let due = self.log.bytes() >= self.limits.log_bytes_max
            || self.recent_bytes >= self.limits.recent_bytes_max
            || now_ms >= self.upkeep.cut_ms + CUT_MS
            || (self.upkeep.wants_room && now_ms >= self.upkeep.cut_ms + ROOM_MS);
        // What is not in the log yet has to be before it is cut: states are looked up among the recent changes.
        if !due || !self.dirty.is_empty() && !self.commit() {
            return;
        }
        match self.log.begin_segment(self.high) {
            Ok(number) => {
                self.upkeep.cut_ms = now_ms;
                self.freeze(number, self.log.next_batch());
            }
            // The file could not even be made. The segment at hand goes on.
            Err(error) if self.log.is_up() => self.table_failed(&error),
            Err(error) => self.failed(&error),
        }
    }

    /// Has a job make a table of the recent changes. Segments before `log_from`, and batches before `batch_from`, are
    /// not needed when that is written.
    pub(super) fn freeze(&mut self, log_from: u64, batch_from: u64) {
        let newest = self.tables.last().map_or(0, |table| table.footer.last_generation);
        let generation = newest.max(self.generation_max) + 1;
        let footer = Footer { log_from, batch_from, ..self.footer(generation, generation) };
        // About as many users will come again.
        let next = Recents::with_capacity(self.recents.len());
        let recents = Arc::new(std::mem::replace(&mut self.recents, next));
        let bytes = std::mem::take(&mut self.recent_bytes);
        self.frozen = Some(Frozen { recents: recents.clone(), footer, bytes, running: true });
        self.executor.start(Job::Flush { footer, recents });
    }

    fn footer(&self, first_generation: u64, last_generation: u64) -> Footer {
        Footer {
            first_generation,
            last_generation,
            store_epoch: self.store_epoch,
            high: self.high,
            gap: self.gap,
            missed: self.missed,
            dropped_high: self.dropped_high,
            ..Footer::default()
        }
    }

    fn retry_flush(&mut self) {
        let now_ms = self.now_ms();
        let due = now_ms >= self.upkeep.flush_retry_ms;
        if let Some(frozen) = self.frozen.as_mut().filter(|frozen| !frozen.running && due) {
            frozen.running = true;
            self.executor.start(Job::Flush { footer: frozen.footer, recents: frozen.recents.clone() });
        }
    }

    /// A job has ended.
    pub(super) fn finished(&mut self, done: Done) {
        match done {
            Done::Flushed(Ok(table)) => {
                self.written(&table);
                self.log.sure_before(table.footer.batch_from);
                self.log.remove_before(table.footer.log_from);
                self.tables.push(Arc::new(table));
                if let Some(frozen) = self.frozen.take() {
                    self.executor.release(Garbage { recents: Some(frozen.recents), ..Garbage::default() });
                }
                self.upkeep.weigh_garbage = true;
                if self.log.is_up() {
                    self.stats.set_trouble(None);
                }
                // The log may have waited for it.
                self.revive();
            }
            Done::Flushed(Err(error)) => {
                self.table_failed(&error);
                if let Some(frozen) = &mut self.frozen {
                    frozen.running = false;
                }
            }
            Done::Merged(Ok(merged)) => {
                self.upkeep.merging = false;
                self.written(&merged.table);
                self.dropped_high = self.dropped_high.max(merged.table.footer.dropped_high);
                let high = merged.table.footer.high;
                self.replace_tables(merged.table);
                if merged.blocks_damaged > 0 {
                    self.damaged_for_all(high);
                }
                for (user, stamp) in merged.damaged {
                    // If it can't be read now, whoever reads it finds the gap in the tables.
                    let _ = self.damaged_in_merge(user, stamp);
                }
            }
            // The store is being closed.
            Done::Merged(Err(error)) if error.kind() == io::ErrorKind::Interrupted => self.upkeep.merging = false,
            Done::Merged(Err(error)) => {
                Stats::add(&self.stats.table_failures, 1);
                self.stats.set_trouble(Some(error.to_string()));
                self.upkeep.merging = false;
                self.upkeep.merge_retry_ms = self.now_ms() + MERGE_RETRY_MS;
            }
        }
    }

    /// The log could not be made a table, and that is tried again soon.
    fn table_failed(&mut self, error: &io::Error) {
        Stats::add(&self.stats.table_failures, 1);
        self.stats.set_trouble(Some(error.to_string()));
        self.upkeep.flush_retry_ms = self.now_ms() + RETRY_MS;
    }

    fn written(&self, table: &Table) {
        Stats::add(&self.stats.tables_written, 1);
        Stats::add(&self.stats.table_bytes_written, table.bytes);
    }

    fn replace_tables(&mut self, merged: Table) {
        let Footer { first_generation, last_generation, .. } = merged.footer;
        let within = |table: &Table| {
            table.footer.first_generation >= first_generation && table.footer.last_generation <= last_generation
        };
        let at = self.tables.partition_point(|table| table.footer.last_generation < first_generation);
        let tables: Vec<Arc<Table>> = self.tables.extract_if(.., |table| within(table)).collect();
        // One that was merged alone has given its name to what replaces it.
        let files = tables.iter().map(|table| table.name()).filter(|name| *name != merged.name()).collect();
        self.executor.release(Garbage { files, tables, recents: None });
        self.tables.insert(at, Arc::new(merged));
    }

    fn merge_if_due(&mut self) {
        if self.upkeep.merging || self.now_ms() < self.upkeep.merge_retry_ms {
            return;
        }
        let sizes: Vec<u64> = self.tables.iter().map(|table| table.bytes).collect();
        let weigh = std::mem::take(&mut self.upkeep.weigh_garbage);
        let room = weigh && std::mem::take(&mut self.upkeep.wants_room);
        let total: u64 = sizes.iter().sum();
        let garbage = total.saturating_sub(self.message_bytes);
        let much = if room { total / 8 } else { total / 2 + 2 * self.limits.log_bytes_max };
        let start = if weigh && garbage > much { Some(0) } else { merge_from(&sizes) };
        let Some(start) = start else { return };
        let inputs = self.tables[start..].to_vec();
        let (Some(first), Some(last)) = (inputs.first(), inputs.last()) else { return };
        let Footer { log_from, batch_from, high, .. } = last.footer;
        let footer = self.footer(first.footer.first_generation, last.footer.last_generation);
        let footer = Footer { log_from, batch_from, high, ..footer };
        // Long after any device of such a user was forgotten.
        let age_ms = self.limits.message_age_ms_max.max(self.limits.device_unseen_ms_max).saturating_mul(3);
        let drop_before = if start == 0 { stamp_at(self.aging_ms().saturating_sub(age_ms)) } else { 0 };
        self.upkeep.merging = true;
        self.executor.start(Job::Merge { footer, inputs, drop_before, stop: self.upkeep.stop.clone() });
    }

    /// Lets go of users for whom nothing waits and whose last message is not recent.
    fn forget_quiet(&mut self) {
        let old = stamp_at(stamp_ms(self.high).saturating_sub(QUIET_MS));
        while let Some(&(user, last)) = self.upkeep.emptied.front()
            && (last < old || self.upkeep.emptied.len() > EMPTIED_MAX)
        {
            self.upkeep.emptied.pop_front();
            let same = |totals: &crate::codec::Totals| totals.messages == 0 && totals.last == last;
            if self.totals.get(&user).is_some_and(same) {
                self.totals.remove(&user);
                self.quiet = self.quiet.max(last);
            }
        }
        if self.upkeep.emptied.is_empty() {
            self.upkeep.emptied = VecDeque::new();
        }
        if self.totals.capacity() > 1024 && self.totals.len() < self.totals.capacity() / 8 {
            self.totals.shrink_to(self.totals.len() * 2);
        }
    }

    /// Looks through tables for users whose messages are too old, some blocks at a time.
    fn sweep_if_due(&mut self) -> Option<u64> {
        let now_ms = self.now_ms();
        let oldest = stamp_at(self.aging_ms().saturating_sub(self.limits.message_age_ms_max));
        let Some((generation, block)) = self.upkeep.sweep else {
            if self.tables.is_empty() {
                return None;
            }
            if now_ms >= self.upkeep.sweep_ms {
                self.upkeep.sweep_ms = now_ms + SWEEP_MS;
                self.upkeep.sweep = self.next_swept(0, oldest);
                return self.upkeep.sweep.map(|_| POLL_MS);
            }
            return Some(self.upkeep.sweep_ms - now_ms);
        };
        // If it has been merged meanwhile, the next sweep finds what is left.
        let table = self.tables.iter().find(|table| table.footer.last_generation == generation).cloned();
        let Some(table) = table.filter(|table| block < table.blocks()) else {
            self.upkeep.sweep = self.next_swept(generation, oldest);
            return Some(POLL_MS);
        };
        let blocks = block..table.blocks().min(block + SWEEP_BLOCKS);
        self.upkeep.sweep = Some((generation, blocks.end));
        for entry in blocks.filter_map(|block| table.block(block).ok()).flatten() {
            if entry.range.is_some_and(|range| range.first < oldest)
                && let Ok(mut at) = self.locate(entry.user)
            {
                // What can't be read now is looked at again in an hour.
                let _ = self.tidy(entry.user, &mut at);
            }
        }
        Some(POLL_MS)
    }

    fn next_swept(&self, after: u64, oldest: u64) -> Option<(u64, usize)> {
        let mut tables = self.tables.iter().map(|table| &table.footer);
        let next = tables.find(|footer| footer.last_generation > after && footer.oldest < oldest);
        next.map(|footer| (footer.last_generation, 0))
    }
}

/// The first of the tables that are to be merged into one, by their sizes from the oldest to the newest: all from there
/// on together are at least twice that one. So each table is about twice what comes after it, there are few, and a
/// message is written again only a few times.
fn merge_from(sizes: &[u64]) -> Option<usize> {
    let candidates = sizes.len().checked_sub(MERGE_TABLES_MIN)?;
    (0..=candidates).find(|at| sizes[at + 1..].iter().sum::<u64>() >= sizes[*at])
}

#[cfg(test)]
mod tests {
    use super::merge_from;

    #[test]
    fn tables_stay_few_and_each_byte_is_written_a_few_times() {
        let mut sizes: Vec<u64> = Vec::new();
        let (mut written, mut most) = (0, 0);
        for _ in 0..4_096 {
            sizes.push(64);
            written += 64;
            if let Some(at) = merge_from(&sizes) {
                let merged = sizes.drain(at..).sum();
                written += merged;
                sizes.push(merged);
            }
            most = most.max(sizes.len());
        }
        assert!(most <= 24, "{most} tables");
        assert!(written <= 64 * 4_096 * 8, "each byte was written {} times", written / (64 * 4_096));
    }
}
