//! The store on disk.
//!
//! What is answered as stored is in the write-ahead log ([`crate::log`]). What came since the last table is in memory
//! as well (`recents`). When the log has grown it is cut: a new segment begins, and a job makes a table
//! ([`crate::table`]) of what came before, while new messages go on. Then the old segments are removed. What all
//! devices have acknowledged by then never gets into a table. Another job merges tables, so that there are few.
//!
//! In memory stay 24 bytes for each user for whom messages wait, and two for each user of a table. Floors, devices and
//! messages are read from the tables when somebody asks.
//!
//! When the store is opened, the log is read back into memory; if that is more than there is memory for, tables are
//! made of it while it is read.

mod recover;
mod upkeep;
mod user;
mod whole;

use crate::codec::Totals;
use crate::disk::{DirDisk, Disk};
use crate::jobs::{Executor, Recent, Recents, Threads};
use crate::log::Log;
use crate::state::Epochs;
use crate::store::{CURSOR_DELAY_MS, confirmed_stamp};
use crate::table::Table;
use crate::{
    Answer, Clock, Limits, Record, Refusal, Reply, Request, Source, Stats, Store, WhenFull, stamp_at, stamp_ms,
};
use hashbrown::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use user::Located;

/// A disk that has failed is tried again after this time.
const RETRY_MS: u64 = 1_000;
/// What a user among the recent ones takes in memory, about; and what a message does besides its payload.
const RECENT_USER_BYTES: u64 = 240;
const RECENT_RECORD_BYTES: u64 = 80;
/// Users whose changes wait for the next commit, before it is looked which of them are the same.
const DIRTY_MIN: usize = 1 << 16;
/// The clock is believed if it is ahead by less than this of the time that has passed since the store was opened.
const CLOCK_AHEAD_MS_MAX: u64 = 3_600_000;
/// A user for whom nothing waits is forgotten in memory when the last message is so old. Until then its last stamp is
/// at hand.
const QUIET_MS: u64 = 60_000;

/// The message store on disk. See the [crate].
///
/// Dropping it without [`Store::close`] is to the messages what a kill is: nothing is lost that was answered, and
/// cursors of the last 100 ms may be. It waits until no thread uses the folder any more, so that the store can be
/// opened again at once.
pub struct Embedded {
    limits: Limits,
    clock: Clock,
    /// How long the machine is up, milliseconds, with what both clocks showed when the store was opened.
    uptime: Option<Uptime>,
    stats: Arc<Stats>,
    store_epoch: u64,
    epochs: Epochs,
    /// Of every user for whom messages wait, and of some others whose last message is not old.
    totals: HashMap<u64, Totals>,
    /// What came since the log was cut.
    recents: Recents,
    recent_bytes: u64,
    /// What is being made a table.
    frozen: Option<Frozen>,
    /// The log is read back. It has no end yet to which anything could be written.
    recovering: bool,
    /// Oldest first.
    tables: Vec<Arc<Table>>,
    /// The highest generation that a table, whole or not, has had before this start.
    generation_max: u64,
    log: Log,
    executor: Box<dyn Executor>,
    /// Messages of the batch at hand, for the case that it can't be made durable.
    puts: Vec<(u64, u64)>,
    /// Users whose floor or devices are not in the log as they are; some more than once.
    dirty: Vec<u64>,
    dirty_since_ms: u64,
    /// At this length `dirty` is rid of those that are in it more than once.
    dirty_max: usize,
    /// Devices registered since the last commit, by user and number: whoever is told of one has to wait for the next.
    registered: HashSet<(u64, u16)>,
    /// The highest stamp of any user.
    high: u64,
    /// Messages of any user up to this stamp may be lost.
    gap: u64,
    gap_is_logged: bool,
    /// Tables up to this generation that are missing are known to be.
    missed: u64,
    /// Of users that no table knows, and that are not in `recents` or `totals`, no message was later.
    dropped_high: u64,
    /// Of users that are not in `totals`, no message was later.
    quiet: u64,
    messages: u64,
    message_bytes: u64,
    upkeep: upkeep::Upkeep,
    closed: bool,
}

/// A clock that nobody sets, and what it and the other one showed at a time.
struct Uptime {
    clock: Clock,
    began_ms: u64,
    began_wall_ms: u64,
}

/// Recent changes that a job makes a table of.
struct Frozen {
    recents: Arc<Recents>,
    footer: crate::table::Footer,
    bytes: u64,
    /// Whether the job runs; otherwise it failed and will be tried again.
    running: bool,
}

/// What a request has come to before the commit.
enum Staged {
    /// True whether the commit succeeds or not.
    Ready(Reply),
    /// True if the commit succeeds.
    Durable(Reply),
    /// To be answered with what is there after the commit.
    Read { user: u64, after: u64, limit: u32, bytes_max: u32 },
}

impl Embedded {
    /// Opens the store in a folder, and makes both if they are not there.
    ///
    /// # Errors Of kind `WouldBlock` if another process uses it, `Unsupported` if a later version wrote it; otherwise
    /// those of the file system. Damage is no error: it is counted, and told to those whom it may concern as
    /// `truncated`.
    pub fn open(dir: &Path, limits: Limits, clock: Clock) -> io::Result<Self> {
        use std::hash::{BuildHasher, Hasher};
        let disk: Arc<dyn Disk> = Arc::new(DirDisk::open(dir)?);
        // The standard library's hash keys are the system's random numbers.
        let epoch = std::collections::hash_map::RandomState::new().build_hasher().finish();
        Self::recover(disk.clone(), limits, clock, epoch, Box::new(Threads::new(disk)))
    }

    /// Opens the store on a disk that may be simulated. Tables are written on the calling thread, so that a run can be
    /// repeated. `epoch` is that of the store if it is a new one.
    ///
    /// # Errors
    /// As for [`Embedded::open`].
    pub fn on_disk(disk: Arc<dyn Disk>, limits: Limits, clock: Clock, epoch: u64) -> io::Result<Self> {
        let executor = Box::new(crate::jobs::Inline::new(disk.clone()));
        Self::recover(disk, limits, clock, epoch, executor)
    }

    /// The highest stamp of any user. Whoever gives out stamps begins above it, whatever the clock says.
    pub fn high(&self) -> u64 {
        self.high
    }

    /// From now on nothing gets old by a clock that runs ahead of the time that passes: somebody has set it wrongly,
    /// and it would empty all inboxes and forget all devices. `uptime`: milliseconds since any time, never set, and
    /// going on while the machine is suspended.
    pub fn set_uptime(&mut self, uptime: Clock) {
        let (began_ms, began_wall_ms) = (uptime(), self.now_ms());
        self.uptime = Some(Uptime { clock: uptime, began_ms, began_wall_ms });
    }

    fn now_ms(&self) -> u64 {
        (self.clock)()
    }

    /// The time by which messages and devices get old: that of the clock, or an hour more than has passed.
    fn aging_ms(&self) -> u64 {
        let now_ms = self.now_ms();
        let passed = self.uptime.as_ref().map(|Uptime { clock, began_ms, began_wall_ms }| {
            began_wall_ms.saturating_add(clock().saturating_sub(*began_ms)).saturating_add(CLOCK_AHEAD_MS_MAX)
        });
        passed.map_or(now_ms, |passed_ms| passed_ms.min(now_ms))
    }

    /// Where the clock has been set back, what is due by it is due by so much sooner: else nothing would be tried or
    /// written until the clock is there again.
    fn mind_clock(&mut self) {
        let now_ms = self.now_ms();
        let back_ms = std::mem::replace(&mut self.upkeep.now_ms, now_ms).saturating_sub(now_ms);
        if back_ms > 0 {
            self.dirty_since_ms = self.dirty_since_ms.saturating_sub(back_ms);
            self.upkeep.set_back(back_ms);
        }
    }

    fn can_write(&self) -> bool {
        self.log.is_up() && !self.closed
    }

    fn refuse(&self, refusal: Refusal) -> Staged {
        self.stats.refuse(refusal);
        Staged::Ready(Reply::Refused(refusal))
    }

    fn stage(&mut self, request: Request) -> Option<Staged> {
        let staged = match request {
            Request::Append { user, record, retry, .. } => self.append(user, record, retry),
            Request::Open { user, device, ephemeral, .. } => self.open_device(user, &device, ephemeral),
            Request::Read { user, after, since_ms, limit, bytes_max, .. } => {
                let after = after.max(stamp_at(since_ms).saturating_sub(1));
                Ok(Staged::Read { user, after, limit, bytes_max })
            }
            Request::Cursor { .. } | Request::Seen { .. } if self.has_too_many_changes() => {
                // No table has been written for long. The device gets again what it acknowledged, and acknowledges it
                // again; and it is seen again.
                Stats::add(&self.stats.cursors_dropped, 1);
                return None;
            }
            Request::Cursor { user, device, device_epoch, stamp } => {
                // If nothing can be read now, the device acknowledges again after its next login.
                let _ = self.acknowledge(user, (device, device_epoch), stamp);
                return None;
            }
            Request::Seen { user, device, device_epoch } => {
                // If nothing can be read now, the next one is as good.
                let _ = self.acknowledge(user, (device, device_epoch), 0);
                return None;
            }
            Request::Gap { user, stamp } => {
                if self.has_too_many_changes() || self.note_gap(user, stamp).is_err() {
                    Stats::add(&self.stats.gaps_dropped, 1);
                }
                return None;
            }
            // This store is one node's own, whose shards remember LOGOUTs.
            Request::LogOut { .. } | Request::View { .. } | Request::Claim { .. } => return None,
            Request::Devices { user, .. } => self.devices(user),
            Request::Inspect { user, .. } => self.inspect(user),
            Request::Forget { .. } | Request::Delete { .. } if !self.can_write() => {
                Ok(self.refuse(Refusal::Unavailable))
            }
            Request::Forget { user, device, device_epoch, .. } => self.forget(user, (device, device_epoch)),
            Request::Delete { user, .. } => self.delete(user),
            // Groups are kept by `Groups`, which keeps its logs in a store of its own.
            Request::Group { .. } => Ok(self.refuse(Refusal::Unavailable)),
        };
        Some(staged.unwrap_or_else(|_| self.refuse(Refusal::Unavailable)))
    }

    fn append(&mut self, user: u64, mut record: Record, retry: Option<u64>) -> io::Result<Staged> {
        if record.payload.len() > self.limits.payload_bytes_max as usize {
            return Ok(self.refuse(Refusal::TooLong));
        }
        if retry.is_some() && self.log.is_unsure() {
            return Ok(self.refuse(Refusal::Unavailable));
        }
        if let Some(after) = retry
            && let Some(stamp) = self.find(user, &record, after)?
        {
            Stats::add(&self.stats.duplicates, 1);
            let reply = Reply::Stored { stamp, duplicate: true, before: 0 };
            // It may be of this very batch.
            return Ok(if self.puts.is_empty() { Staged::Ready(reply) } else { Staged::Durable(reply) });
        }
        if !self.can_write() || self.is_overloaded() {
            return Ok(self.refuse(Refusal::Unavailable));
        }
        if self.disk_bytes() + record.bytes() as u64 > self.limits.store_bytes_max {
            self.upkeep.wants_room = true;
            return Ok(self.refuse(Refusal::StoreFull));
        }
        let bytes = record.bytes();
        if self.is_full(user, bytes).is_some() {
            let mut at = self.locate(user)?;
            self.tidy(user, &mut at)?;
            if self.limits.when_full == WhenFull::DropOldest && self.is_full(user, bytes).is_some() {
                self.drop_oldest(user, &mut at, bytes)?;
            }
        }
        if let Some(refusal) = self.is_full(user, bytes) {
            return Ok(self.refuse(refusal));
        }
        let last = match self.totals.get(&user) {
            Some(totals) => totals.last,
            // Most often the stamp is later than all of those who are not in memory, and nothing has to be read.
            None if record.stamp > self.quiet.max(self.dropped_high) => 0,
            None => self.locate(user)?.totals.last.max(self.dropped_high),
        };
        record.stamp = confirmed_stamp(record.stamp, last.max(self.gap));
        let stamp = record.stamp;
        Stats::add(&self.stats.append_bytes, record.payload.len() as u64);
        self.log.put(user, &record);
        self.puts.push((user, stamp));
        self.insert(user, record);
        Ok(Staged::Durable(Reply::Stored { stamp, duplicate: false, before: 0 }))
    }

    /// Adds a message that is, or will be, in the log.
    fn insert(&mut self, user: u64, record: Record) {
        let bytes = record.bytes();
        let totals = self.totals.entry(user).or_default();
        totals.add(record.stamp, bytes);
        self.high = self.high.max(record.stamp);
        self.messages += 1;
        self.message_bytes += bytes as u64;
        let recents = self.recents.len();
        let recent = self.recents.entry(user).or_default();
        recent.totals = *totals;
        self.recent_bytes += RECENT_RECORD_BYTES + record.payload.len() as u64;
        if recent.records.capacity() == 0 {
            // Most users get one message until the log is cut; without this there would be room for four.
            recent.records.reserve_exact(1);
        }
        recent.records.push_back(record);
        self.recent_bytes += RECENT_USER_BYTES * (self.recents.len() - recents) as u64;
    }

    /// Takes back the messages of a batch that could not be made durable. Their stamps are not given out again.
    fn take_back(&mut self) {
        for (user, stamp) in std::mem::take(&mut self.puts).into_iter().rev() {
            let Some(recent) = self.recents.get_mut(&user) else { continue };
            // If it is not there, devices have acknowledged it already, or it had to give way.
            let Some(record) = recent.records.pop_back_if(|record| record.stamp == stamp) else { continue };
            let totals = self.totals.entry(user).or_default();
            totals.messages -= 1;
            totals.bytes -= record.bytes() as u32;
            recent.totals = *totals;
            self.messages -= 1;
            self.message_bytes -= record.bytes() as u64;
            self.recent_bytes -= RECENT_RECORD_BYTES + record.payload.len() as u64;
        }
    }

    /// Which bound of the user one more message would pass. One always may, however long it is.
    fn is_full(&self, user: u64, bytes: usize) -> Option<Refusal> {
        let totals = self.totals.get(&user).filter(|totals| totals.messages > 0 && !self.limits.is_book(user))?;
        if totals.messages >= self.limits.user_messages_max {
            Some(Refusal::UserMessages)
        } else if u64::from(totals.bytes) + bytes as u64 > u64::from(self.limits.user_bytes_max) {
            Some(Refusal::UserBytes)
        } else {
            None
        }
    }

    /// Whether more comes than tables are written.
    fn is_overloaded(&self) -> bool {
        self.recent_bytes > self.limits.recent_bytes_max.saturating_mul(2)
            || self.log.bytes() > self.limits.log_bytes_max.saturating_mul(4)
    }

    /// Whether no table has been written for so long that nothing is noted any more that may be lost.
    fn has_too_many_changes(&self) -> bool {
        self.recent_bytes > self.limits.recent_bytes_max.saturating_mul(4)
    }

    /// Bytes of log and tables.
    fn disk_bytes(&self) -> u64 {
        self.log.bytes() + self.tables.iter().map(|table| table.bytes).sum::<u64>()
    }

    /// Makes durable what has changed. False if that failed, or could not be tried.
    fn commit(&mut self) -> bool {
        if !self.can_write() {
            self.log.clear();
            return false;
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        for user in &dirty {
            // One that is not among the recent ones any more has been made a table of, which says the same.
            if let Some(Recent { totals, state: Some(state), .. }) = self.recents.get(user) {
                self.log.state(*user, *totals, state);
            }
        }
        if !self.gap_is_logged {
            self.log.gap(self.gap);
        }
        if self.log.is_empty() {
            return true;
        }
        let began = Instant::now();
        Stats::set(&self.stats.commit_since_ms, self.now_ms().max(1));
        let result = self.log.commit(self.high);
        Stats::set(&self.stats.commit_since_ms, 0);
        match result {
            Ok(()) => {
                self.stats.committed(began.elapsed().as_micros() as u64);
                self.gap_is_logged = true;
                self.registered.clear();
                true
            }
            Err(error) => {
                self.failed(&error);
                self.dirty = dirty;
                false
            }
        }
    }

    /// The log can't be written.
    fn failed(&mut self, error: &io::Error) {
        Stats::add(&self.stats.commit_failures, 1);
        self.stats.available.store(false, Ordering::Relaxed);
        self.upkeep.retry_ms = self.now_ms() + RETRY_MS;
        self.stats.set_trouble(Some(error.to_string()));
    }

    /// Tries again to begin a segment, if it is time.
    fn revive(&mut self) {
        if self.closed || self.recovering || self.log.is_up() || self.now_ms() < self.upkeep.retry_ms {
            return;
        }
        match self.log.begin_segment(self.high) {
            Ok(_) => {
                self.stats.available.store(true, Ordering::Relaxed);
                self.stats.set_trouble(None);
                self.commit();
            }
            Err(error) => self.failed(&error),
        }
    }

    fn cursors_are_due(&self) -> bool {
        !self.dirty.is_empty() && self.now_ms() >= self.dirty_since_ms + CURSOR_DELAY_MS
    }

    /// What is known of a user has changed.
    fn keep(&mut self, user: u64, at: &Located) {
        if self.dirty.is_empty() {
            self.dirty_since_ms = self.now_ms();
        }
        // Most often a user is acknowledged for several times in a row. While the disk does not work the list must not
        // grow with each time.
        if self.dirty.last() != Some(&user) {
            self.dirty.push(user);
        }
        if self.dirty.len() >= self.dirty_max {
            self.dirty.sort_unstable();
            self.dirty.dedup();
            self.dirty_max = DIRTY_MIN.max(self.dirty.len() * 2);
        }
        let recents = self.recents.len();
        let recent = self.recents.entry(user).or_default();
        recent.state = Some(at.state.clone());
        recent.totals = at.totals;
        self.recent_bytes += RECENT_USER_BYTES * (self.recents.len() - recents) as u64;
        self.set_totals(user, at.totals);
    }

    fn set_totals(&mut self, user: u64, totals: Totals) {
        let before = self.totals.insert(user, totals).unwrap_or_default();
        if totals.messages == 0 {
            self.upkeep.emptied.push_back((user, totals.last));
        }
        self.messages = self.messages + u64::from(totals.messages) - u64::from(before.messages);
        self.message_bytes = self.message_bytes + u64::from(totals.bytes) - u64::from(before.bytes);
    }

    /// Memory by which users are found. What came lately is not in it: that is bounded by the limits of the log.
    fn index_bytes(&self) -> usize {
        let tables: usize = self.tables.iter().map(|table| table.memory()).sum();
        self.totals.allocation_size() + self.upkeep.emptied.capacity() * size_of::<(u64, u64)>() + tables
    }

    fn publish(&self) {
        let stats = &self.stats;
        Stats::set(&stats.log_bytes, self.log.bytes());
        Stats::set(&stats.table_bytes, self.tables.iter().map(|table| table.bytes).sum());
        Stats::set(&stats.tables, self.tables.len() as u64);
        Stats::set(&stats.recent_bytes, self.recent_bytes + self.frozen.as_ref().map_or(0, |frozen| frozen.bytes));
        Stats::set(&stats.index_bytes, self.index_bytes() as u64);
        Stats::set(&stats.users, self.totals.len() as u64);
        Stats::set(&stats.messages, self.messages);
        Stats::set(&stats.message_bytes, self.message_bytes);
        Stats::set(&stats.clock_ahead_ms, self.now_ms().saturating_sub(self.aging_ms()));
    }
}

impl Store for Embedded {
    fn apply(&mut self, batch: &mut Vec<(Source, Request)>, out: &mut dyn FnMut(Source, Answer)) {
        self.mind_clock();
        self.revive();
        let mut staged = Vec::with_capacity(batch.len());
        for (source, request) in batch.drain(..) {
            let token = request.token();
            if let (Some(outcome), Some(token)) = (self.stage(request), token) {
                staged.push((source, token, outcome));
            }
        }
        let waits = staged.iter().any(|(_, _, outcome)| matches!(outcome, Staged::Durable(_)));
        let durable = if waits || self.cursors_are_due() { self.commit() } else { true };
        if durable {
            Stats::add(&self.stats.appends, self.puts.len() as u64);
            self.puts.clear();
        } else {
            self.take_back();
        }
        for (source, token, outcome) in staged {
            let reply = match outcome {
                Staged::Ready(reply) => reply,
                Staged::Durable(reply) if durable => reply,
                Staged::Durable(_) => {
                    self.stats.refuse(Refusal::Unavailable);
                    Reply::Refused(Refusal::Unavailable)
                }
                Staged::Read { user, after, limit, bytes_max } => {
                    self.read(user, after, limit, bytes_max).unwrap_or_else(|_| {
                        self.stats.refuse(Refusal::Unavailable);
                        Reply::Refused(Refusal::Unavailable)
                    })
                }
            };
            out(source, Answer { token, reply });
        }
        self.look_after();
        self.publish();
    }

    fn tick(&mut self) -> Option<Duration> {
        if self.closed {
            return None;
        }
        self.mind_clock();
        self.revive();
        if self.cursors_are_due() {
            self.commit();
        }
        let next = self.look_after();
        self.publish();
        let cursors = (!self.dirty.is_empty() && self.can_write())
            .then(|| (self.dirty_since_ms + CURSOR_DELAY_MS).saturating_sub(self.now_ms()));
        let retry = (!self.log.is_up()).then_some(RETRY_MS / 4);
        [next, cursors, retry].into_iter().flatten().min().map(|ms| Duration::from_millis(ms.max(1)))
    }

    fn close(&mut self) {
        self.commit();
        self.upkeep.stop.store(true, Ordering::Relaxed);
        while let Some(done) = self.executor.wait() {
            self.finished(done);
        }
        self.closed = true;
        self.stats.available.store(false, Ordering::Relaxed);
        self.publish();
    }

    fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        // Merging much takes minutes, and `executor` waits for it when it is dropped.
        self.upkeep.stop.store(true, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedded")
            .field("tables", &self.tables.len())
            .field("recents", &self.recents.len())
            .field("high_ms", &stamp_ms(self.high))
            .finish()
    }
}
