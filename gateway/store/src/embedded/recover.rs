//! Opening a store: what a crash or a broken disk has left.

use super::{Embedded, upkeep};
use crate::codec::Totals;
use crate::disk::Disk;
use crate::jobs::{Executor, Recents};
use crate::limits::Amount;
use crate::log::{Change, Log, Take, replay, segments, store_epoch};
use crate::state::Epochs;
use crate::table::{Entry, Footer, Table, TableWriter, table_generations};
use crate::{Clock, Limits, Stats, stamp_at};
use hashbrown::{HashMap, HashSet};
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

/// The beginning of the names that damaged tables get, so that whoever wants to can look at them.
const DAMAGED: &str = "damaged-";
/// When there are more segments at a start, the log is cut soon.
const SEGMENTS_MAX: usize = 8;

/// The tables of a folder.
#[derive(Default)]
struct Tables {
    /// Those that count, oldest first.
    whole: Vec<Table>,
    /// What is not there, or not whole.
    damages: Vec<String>,
    generation_max: u64,
}

impl Embedded {
    pub(super) fn recover(
        disk: Arc<dyn Disk>,
        limits: Limits,
        clock: Clock,
        epoch: u64,
        executor: Box<dyn Executor>,
    ) -> io::Result<Self> {
        let files = disk.list()?;
        let found = segments(&*disk, &files)?;
        let Tables { whole, mut damages, generation_max } = open_tables(&*disk, &files)?;
        let log_from = whole.iter().map(|table| table.footer.log_from).max().unwrap_or(0);
        let batch_from = whole.iter().map(|table| table.footer.batch_from).max().unwrap_or(0);
        let next_segment = found.iter().map(|segment| segment.number + 1).max().unwrap_or(1).max(log_from);
        let sizes = found.iter().map(|segment| (segment.number, segment.bytes)).collect();
        let footers = || whole.iter().map(|table| &table.footer);
        let known_epoch = footers().map(|footer| footer.store_epoch).next_back().or_else(|| store_epoch(&found));
        let store_epoch = known_epoch.unwrap_or(epoch);
        let mut store = Embedded {
            store_epoch,
            epochs: Epochs::default(),
            totals: HashMap::new(),
            recents: Recents::new(),
            recent_bytes: 0,
            frozen: None,
            recovering: true,
            high: footers().map(|footer| footer.high).max().unwrap_or(0),
            gap: footers().map(|footer| footer.gap).max().unwrap_or(0),
            gap_is_logged: true,
            missed: footers().map(|footer| footer.missed).max().unwrap_or(0),
            dropped_high: footers().map(|footer| footer.dropped_high).max().unwrap_or(0),
            quiet: 0,
            log: Log::new(disk.clone(), store_epoch, sizes, next_segment),
            tables: Vec::new(),
            generation_max,
            executor,
            puts: Vec::new(),
            dirty: Vec::new(),
            dirty_since_ms: 0,
            dirty_max: super::DIRTY_MIN,
            registered: HashSet::new(),
            messages: 0,
            message_bytes: 0,
            upkeep: upkeep::Upkeep::default(),
            closed: false,
            stats: Arc::default(),
            limits,
            clock,
            uptime: None,
        };
        store.count_tables(whole, &mut damages);
        let mut reading = ReadBack { store: &mut store, log_from };
        let replayed = replay(&*disk, &found, log_from, batch_from, &mut reading)?;
        store.high = store.high.max(replayed.high);
        damages.extend(replayed.damages);
        store.wait_for_tables();
        store.log.go_on_with(replayed.next_batch, replayed.unsure);
        if !damages.is_empty() {
            store.own_up(&damages);
        }
        store.recovering = false;
        // Who starts again and again must not leave ever more segments.
        store.upkeep.cut_ms = if found.len() > SEGMENTS_MAX { 0 } else { store.now_ms() };
        if !store.gap_is_logged && store.frozen.is_none() {
            // From now on what is damaged is known, and not read again.
            store.freeze(next_segment, replayed.next_batch);
            store.wait_for_tables();
            store.gap_is_logged = store.frozen.is_none();
        }
        store.revive();
        if replayed.batches == 0 && store.log.is_up() {
            store.log.remove_before(next_segment);
        }
        store.publish();
        Ok(store)
    }

    /// Adds up what waits for whom, by the entries of the tables.
    fn count_tables(&mut self, tables: Vec<Table>, damages: &mut Vec<String>) {
        for mut table in tables {
            let (name, told) = (table.name(), table.footer.high <= self.gap);
            let count = |entry: Entry| {
                self.totals.insert(entry.user, entry.totals);
            };
            table.read_entries(count, |block, error| {
                // Whoever has been told of it is not told again at each start.
                if !told {
                    damages.push(format!("{name}: block {block}: {error}"));
                }
            });
            self.tables.push(Arc::new(table));
        }
        let quiet = &mut self.quiet;
        self.totals.retain(|_, totals| {
            if totals.messages == 0 {
                *quiet = (*quiet).max(totals.last);
            }
            totals.messages > 0
        });
        self.totals.shrink_to_fit();
        self.messages = self.totals.values().map(|totals| u64::from(totals.messages)).sum();
        self.message_bytes = self.totals.values().map(|totals| u64::from(totals.bytes)).sum();
    }

    /// Begins a table of what has been read back so far, so that it is written while the rest is read, and memory stays
    /// bounded. `log_from` stays where it is: what is read next is in the same segments.
    fn spill(&mut self, log_from: u64, next_batch: u64) {
        // So much a store with these limits may have had in memory.
        if self.recent_bytes < self.limits.recent_bytes_max.saturating_mul(4) {
            return;
        }
        self.wait_for_tables();
        // If the one before could not be written, the disk does not work, and the rest stays in memory.
        if self.frozen.is_none() {
            self.freeze(log_from, next_batch);
        }
    }

    fn replay_change(&mut self, change: Change) {
        match change {
            Change::Put { user, record } => {
                // A log that was damaged may begin before what a table says.
                if self.totals.get(&user).is_none_or(|totals| totals.last < record.stamp) {
                    self.insert(user, record);
                }
            }
            Change::State { user, totals, state } => {
                let recents = self.recents.len();
                let recent = self.recents.entry(user).or_default();
                let freed = super::user::drop_upto(recent, state.floor);
                recent.totals = totals;
                recent.state = Some(state);
                let more = super::RECENT_USER_BYTES * (self.recents.len() - recents) as u64;
                self.recent_bytes = (self.recent_bytes + more).saturating_sub(freed);
                self.high = self.high.max(totals.last);
                self.set_totals(user, totals);
            }
            Change::Gap { stamp } => self.gap = self.gap.max(stamp),
        }
    }

    /// Something that had been stored is lost, and nobody knows whose. From now on everybody who asks for older
    /// messages is told.
    fn own_up(&mut self, damages: &[String]) {
        Stats::add(&self.stats.damages, damages.len() as u64);
        self.stats.set_damage(damages.join("; "));
        // What is lost may have had later stamps than all that is left.
        self.gap = self.gap.max(self.high).max(stamp_at(self.now_ms()));
        self.gap_is_logged = false;
        self.missed = self.generation_max;
        let mut users: HashSet<u64> = self.recents.keys().copied().collect();
        users.extend(self.frozen.iter().flat_map(|frozen| frozen.recents.keys()));
        for table in self.tables.iter().filter(|table| table.footer.first_generation > self.generation_max) {
            let blocks = (0..table.blocks()).filter_map(|block| table.block(block).ok());
            users.extend(blocks.flatten().map(|entry| entry.user));
        }
        for user in users {
            // A state that survived counts messages that did not. What can't be read now is counted when it can be.
            let _ = self.recount(user);
        }
    }

    fn recount(&mut self, user: u64) -> io::Result<()> {
        let mut at = self.locate(user)?;
        let mut left = Amount::default();
        self.visit(user, &mut at, 0, |seen| {
            left.add(seen.bytes());
            ControlFlow::Continue(())
        })?;
        let left = Totals { messages: left.messages as u32, bytes: left.bytes as u32, ..at.totals };
        if left != at.totals {
            at.totals = left;
            self.keep(user, &at);
        }
        Ok(())
    }
}

/// Takes what the log says when a store is opened.
struct ReadBack<'a> {
    store: &'a mut Embedded,
    log_from: u64,
}

impl Take for ReadBack<'_> {
    fn change(&mut self, change: Change) {
        self.store.replay_change(change);
    }

    fn batch_end(&mut self, next: u64) {
        self.store.spill(self.log_from, next);
    }
}

fn open_tables(disk: &dyn Disk, files: &[(String, u64)]) -> io::Result<Tables> {
    let mut tables = Tables::default();
    let mut broken = Vec::new();
    for (name, _) in files {
        if name.ends_with(TableWriter::UNFINISHED) {
            // It is in nobody's way if it stays.
            let _ = disk.remove(name);
        }
        let its_name = name.strip_prefix(DAMAGED).unwrap_or(name);
        let Some((first, last)) = table_generations(its_name) else { continue };
        tables.generation_max = tables.generation_max.max(last);
        if its_name != name {
            continue;
        }
        match Table::open(disk, name)? {
            Some(table) => tables.whole.push(table),
            None => broken.push((first, last, name)),
        }
    }
    let (counted, superseded) = choose(std::mem::take(&mut tables.whole));
    for table in superseded {
        // Others have what it has; it was not removed before a crash.
        let _ = disk.remove(&table.name());
    }
    let missed = counted.iter().map(|table| table.footer.missed).max().unwrap_or(0);
    let mut generation = 0;
    for table in &counted {
        if table.footer.first_generation > generation.max(missed) + 1 {
            tables.damages.push(format!("{}: what came before it is missing", table.name()));
        }
        generation = table.footer.last_generation;
    }
    tables.whole = counted;
    for (first, last, name) in broken {
        let covered = |generation| {
            let mut whole = tables.whole.iter().map(|table| &table.footer);
            whole.any(|footer| (footer.first_generation..=footer.last_generation).contains(&generation))
        };
        if (first..=last).all(covered) {
            let _ = disk.remove(name);
        } else {
            tables.damages.push(format!("{name}: damaged"));
            let _ = disk.rename(name, &format!("{DAMAGED}{name}"));
        }
    }
    Ok(tables)
}

/// The tables that count, oldest first, and the others. Merged tables and those that they were made of may both be
/// there. Of all choices in which no generation counts twice it is the one with most generations, and among those the
/// one with fewest tables.
fn choose(mut tables: Vec<Table>) -> (Vec<Table>, Vec<Table>) {
    tables.sort_unstable_by_key(|table| table.footer.first_generation);
    let footers: Vec<Footer> = tables.iter().map(|table| table.footer).collect();
    let after = |last: u64| footers.partition_point(|footer| footer.first_generation <= last);
    // For the tables from each one on: generations, and minus the number of tables.
    let mut best = vec![(0, 0); footers.len() + 1];
    for at in (0..footers.len()).rev() {
        best[at] = best[at + 1].max(with(&footers, &best, at, after(footers[at].last_generation)));
    }
    let mut next = 0;
    let mut counts = vec![false; footers.len()];
    while next < footers.len() {
        let behind = after(footers[next].last_generation);
        counts[next] = with(&footers, &best, next, behind) >= best[next + 1];
        next = if counts[next] { behind } else { next + 1 };
    }
    let mut counts = counts.into_iter();
    tables.into_iter().partition(|_| counts.next().unwrap_or(false))
}

/// What the best choice among the tables from one on comes to if that is chosen.
fn with(footers: &[Footer], best: &[(u64, i64)], at: usize, behind: usize) -> (u64, i64) {
    let generations = footers[at].last_generation - footers[at].first_generation + 1;
    (generations + best[behind].0, best[behind].1 - 1)
}
