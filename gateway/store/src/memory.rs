//! A store in memory, for simulations, and the model that the one on disk is compared with.

use crate::limits::Amount;
use crate::state::{Epochs, State};
use crate::store::{CURSOR_DELAY_MS, believable_stamp, confirmed_stamp};
use crate::{
    Answer, Clock, Inbox, Limits, Opened, Page, Record, Refusal, Reply, Request, Source, Stats, Store, WhenFull,
    stamp_at,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A store in memory with the semantics of the one on disk. What [`Store::apply`] answered survives [`Memory::crash`];
/// cursors of the last 100 ms do not.
pub struct Memory {
    limits: Limits,
    clock: Clock,
    stats: Arc<Stats>,
    epoch: u64,
    epochs: Epochs,
    users: BTreeMap<u64, User>,
    /// Cursors that are not durable yet, and since when the first waits.
    cursors: Vec<Cursor>,
    cursors_since_ms: u64,
    bytes: u64,
    available: bool,
    closed: bool,
    /// Several nodes, whose clocks differ, propose stamps.
    shared: bool,
    /// The view of each source, and that of the one that is asking.
    views: BTreeMap<Source, u64>,
    view: u64,
}

/// What a device has told, and when it came.
#[derive(Debug)]
struct Cursor {
    user: u64,
    /// Number and epoch.
    device: (u16, u32),
    stamp: u64,
    seen_ms: u64,
}

#[derive(Debug, Default)]
struct User {
    state: State,
    records: VecDeque<Record>,
    bytes: u64,
    last: u64,
    /// The latest view in which somebody was its home.
    claimed: u64,
}

impl Memory {
    /// An empty store. `epoch` tells it from others.
    pub fn new(limits: Limits, clock: Clock, epoch: u64) -> Self {
        let stats = Arc::<Stats>::default();
        stats.available.store(true, Ordering::Relaxed);
        Memory {
            limits,
            clock,
            stats,
            epoch,
            epochs: Epochs::default(),
            users: BTreeMap::new(),
            cursors: Vec::new(),
            cursors_since_ms: 0,
            bytes: 0,
            available: true,
            closed: false,
            shared: false,
            views: BTreeMap::new(),
            view: 0,
        }
    }

    /// The same as one that several nodes share: a stamp from the far future is not believed.
    pub fn shared(self) -> Self {
        Memory { shared: true, ..self }
    }

    /// Lets the disk fail, or work again. While it fails, what would have to be written is refused as
    /// [`Refusal::Unavailable`]; reads and logins of known devices go on, and cursors wait.
    pub fn set_available(&mut self, available: bool) {
        self.available = available;
        self.stats.available.store(available, Ordering::Relaxed);
    }

    /// The process is killed and starts again: what was not durable is gone.
    pub fn crash(&mut self) {
        self.cursors.clear();
        self.closed = false;
        self.set_available(true);
    }

    /// All messages of a user that are left, for checks.
    pub fn records(&self, user: u64) -> impl Iterator<Item = &Record> {
        self.users.get(&user).into_iter().flat_map(|user| &user.records)
    }

    /// The highest stamp of any user. Whoever gives out stamps begins above it, whatever the clock says.
    pub fn high(&self) -> u64 {
        self.users.values().map(|user| user.last).max().unwrap_or(0)
    }

    /// Whether the one that asks may be the home of a user; no earlier one is from then on.
    fn claim(&mut self, user: u64) -> bool {
        let found = self.users.entry(user).or_default();
        if self.view < found.claimed {
            return false;
        }
        found.claimed = self.view;
        true
    }

    fn can_write(&self) -> bool {
        self.available && !self.closed
    }

    /// Lets go what the user's devices have and what is too old, and forgets devices that stay away.
    fn tidy(&mut self, user: u64) {
        self.tidy_at(user, (self.clock)());
    }

    fn tidy_at(&mut self, user: u64, now_ms: u64) {
        let Some(found) = self.users.get_mut(&user) else { return };
        Stats::add(&self.stats.devices_forgotten, found.state.forget_unseen(now_ms, &self.limits));
        let oldest = stamp_at(now_ms.saturating_sub(self.limits.message_age_ms_max));
        let expired = found.records.iter().take_while(|record| record.stamp < oldest).last();
        let expired = expired.filter(|_| !self.limits.is_book(user)).map_or(0, |record| record.stamp);
        Stats::add(&self.stats.expired, found.truncate(expired, &mut self.bytes));
        let least = found.state.least_cursor().unwrap_or(0);
        Stats::add(&self.stats.acknowledged, found.truncate(least, &mut self.bytes));
    }

    fn make_cursors_durable(&mut self) {
        if !self.can_write() {
            return;
        }
        for Cursor { user, device, stamp, seen_ms } in std::mem::take(&mut self.cursors) {
            let found = self.users.get_mut(&user);
            match found.and_then(|found| found.state.acknowledge(device, stamp, found.last, seen_ms)) {
                // As a store does that takes it when it comes.
                Some(true) => self.tidy_at(user, seen_ms),
                Some(false) => {}
                None => Stats::add(&self.stats.cursors_stale, 1),
            }
        }
    }

    fn append(&mut self, user: u64, mut record: Record, retry: Option<u64>) -> Reply {
        if record.payload.len() > self.limits.payload_bytes_max as usize {
            return self.refuse(Refusal::TooLong);
        }
        let window = self.limits.retry_window as usize;
        let look = |found: &User, after: u64| {
            let is_it = |at: &&Record| (at.from, at.id) == (record.from, record.id);
            // At the position that it asks for, as one of an export is that was imported before.
            let there = found.records.binary_search_by_key(&record.stamp, |at| at.stamp);
            let there = there.ok().and_then(|place| found.records.get(place));
            if let Some(there) = there.filter(is_it).filter(|there| there.stamp > after) {
                return Some(there.stamp);
            }
            let mut latest = found.records.iter().rev().take(window).take_while(|at| at.stamp > after);
            latest.find(is_it).map(|at| at.stamp)
        };
        if let Some(after) = retry
            && let Some(found) = self.users.get(&user)
            && let Some(stamp) = look(found, after)
        {
            Stats::add(&self.stats.duplicates, 1);
            return Reply::Stored { stamp, duplicate: true, before: found.last };
        }
        if !self.can_write() {
            return self.refuse(Refusal::Unavailable);
        }
        if !self.claim(user) {
            return self.refuse(Refusal::Stale);
        }
        let bytes = record.bytes() as u64;
        if self.bytes + bytes > self.limits.store_bytes_max {
            return self.refuse(Refusal::StoreFull);
        }
        if self.full(user, bytes).is_some() {
            self.tidy(user);
        }
        if self.limits.when_full == WhenFull::DropOldest
            && self.full(user, bytes).is_some()
            && let Some(found) = self.users.get_mut(&user)
        {
            let over = self.limits.excess(found.records.len() as u64, found.bytes, bytes);
            let mut dropped = Amount::default();
            let enough = |dropped: &mut Amount, record: &Record| {
                let more = dropped.messages < over.messages || dropped.bytes < over.bytes;
                dropped.add(record.bytes());
                more
            };
            let last = found.records.iter().take_while(|record| enough(&mut dropped, record)).last();
            let floor = last.map_or(0, |record| record.stamp);
            Stats::add(&self.stats.dropped_oldest, found.truncate(floor, &mut self.bytes));
        }
        if let Some(refusal) = self.full(user, bytes) {
            return self.refuse(refusal);
        }
        if self.shared {
            record.stamp = believable_stamp(record.stamp, (self.clock)());
        }
        let found = self.users.entry(user).or_default();
        record.stamp = confirmed_stamp(record.stamp, found.last);
        let stamp = record.stamp;
        let before = std::mem::replace(&mut found.last, stamp);
        found.bytes += bytes;
        self.bytes += bytes;
        Stats::add(&self.stats.appends, 1);
        Stats::add(&self.stats.append_bytes, record.payload.len() as u64);
        found.records.push_back(record);
        Reply::Stored { stamp, duplicate: false, before }
    }

    /// Which bound of the user one more message would pass. One always may, however long it is.
    fn full(&self, user: u64, bytes: u64) -> Option<Refusal> {
        let found = self.users.get(&user).filter(|found| !found.records.is_empty() && !self.limits.is_book(user))?;
        if found.records.len() >= self.limits.user_messages_max as usize {
            Some(Refusal::UserMessages)
        } else if found.bytes + bytes > u64::from(self.limits.user_bytes_max) {
            Some(Refusal::UserBytes)
        } else {
            None
        }
    }

    fn open(&mut self, user: u64, device: &str, ephemeral: bool) -> Reply {
        self.tidy(user);
        let knows = self.users.get(&user).is_some_and(|found| found.state.knows(device));
        if !knows && !ephemeral && !self.can_write() {
            return self.refuse(Refusal::Unavailable);
        }
        let now_ms = (self.clock)();
        let mut nobody = User::default();
        let found = if ephemeral && !knows {
            self.users.get_mut(&user).unwrap_or(&mut nobody)
        } else {
            self.users.entry(user).or_default()
        };
        let login = found.state.open(device, ephemeral, found.last, now_ms, &self.limits, &mut self.epochs);
        Stats::add(&self.stats.devices_forgotten, login.forgotten);
        let pending = found.records.iter().filter(|record| record.stamp > login.opened.cursor).count() as u64;
        let floor = found.state.floor.max(found.state.gap);
        let devices = found.state.devices.len() as u32;
        Reply::Opened(Opened { store_epoch: self.epoch, floor, last: found.last, pending, devices, ..login.opened })
    }

    fn read(&mut self, user: u64, device: (u16, u32), after: u64, limit: u32, bytes_max: u32) -> Reply {
        self.tidy(user);
        let Some(found) = self.users.get(&user) else { return Reply::Page(Page { complete: true, ..Page::default() }) };
        let after = after.max(found.state.cursor(device.0, device.1));
        let floor = found.state.floor.max(found.state.gap);
        let mut page = Page { records: Vec::new(), floor, last: found.last, complete: true, truncated: after < floor };
        let limit = limit.clamp(1, self.limits.page_max) as usize;
        let mut bytes = 0;
        for record in found.records.iter().filter(|record| record.stamp > after) {
            bytes += record.payload.len();
            if page.records.len() >= limit || (!page.records.is_empty() && bytes > bytes_max as usize) {
                page.complete = false;
                break;
            }
            page.records.push(record.clone());
        }
        Stats::add(&self.stats.read, page.records.len() as u64);
        Reply::Page(page)
    }

    fn inspect(&mut self, user: u64) -> Inbox {
        self.tidy(user);
        let Some(found) = self.users.get(&user) else { return Inbox::default() };
        Inbox {
            messages: found.records.len() as u64,
            bytes: found.bytes,
            floor: found.state.floor.max(found.state.gap),
            last: found.last,
            devices: found.state.devices.len() as u32,
        }
    }

    fn cursor(&mut self, user: u64, device: (u16, u32), stamp: u64) {
        let now_ms = (self.clock)();
        if self.cursors.is_empty() {
            self.cursors_since_ms = now_ms;
        }
        self.cursors.push(Cursor { user, device, stamp, seen_ms: now_ms });
    }

    fn reply(&mut self, request: Request) -> Option<Reply> {
        Some(match request {
            Request::Append { user, record, retry, .. } => self.append(user, record, retry),
            Request::Open { user, device, ephemeral, claims, .. } => {
                if claims {
                    self.claim(user);
                }
                self.open(user, &device, ephemeral)
            }
            Request::Read { user, device, device_epoch, after, since_ms, limit, bytes_max, .. } => {
                let after = after.max(stamp_at(since_ms).saturating_sub(1));
                self.read(user, (device, device_epoch), after, limit, bytes_max)
            }
            Request::Cursor { user, device, device_epoch, stamp } => {
                self.cursor(user, (device, device_epoch), stamp);
                return None;
            }
            Request::Seen { user, device, device_epoch } => {
                self.cursor(user, (device, device_epoch), 0);
                return None;
            }
            Request::Gap { user, stamp } => {
                let latest = if self.shared { believable_stamp(stamp, (self.clock)()) } else { stamp };
                // What came before it counts first.
                self.make_cursors_durable();
                if let Some(found) = self.users.get_mut(&user)
                    && found.state.note_gap(latest)
                {
                    found.last = found.last.max(latest);
                }
                return None;
            }
            Request::LogOut { user, device, .. } => {
                let now_ms = (self.clock)();
                if let Some(found) = self.users.get_mut(&user) {
                    found.state.log_out(&device, now_ms, &mut self.epochs);
                }
                return None;
            }
            Request::View { .. } => return None,
            Request::Claim { user } => {
                self.claim(user);
                return None;
            }
            Request::Devices { user, .. } => {
                self.tidy(user);
                Reply::Devices(self.users.get(&user).map(|found| found.state.devices()).unwrap_or_default())
            }
            Request::Inspect { user, claims, .. } => {
                if claims {
                    self.claim(user);
                }
                Reply::Inspected(self.inspect(user))
            }
            Request::Forget { .. } | Request::Delete { .. } if !self.can_write() => self.refuse(Refusal::Unavailable),
            Request::Forget { user, device, device_epoch, .. } => {
                if let Some(found) = self.users.get_mut(&user)
                    && found.state.forget((device, device_epoch))
                {
                    self.tidy(user);
                }
                Reply::Devices(self.users.get(&user).map(|found| found.state.devices()).unwrap_or_default())
            }
            Request::Delete { user, .. } => {
                if let Some(found) = self.users.get_mut(&user) {
                    Stats::add(&self.stats.deleted, found.truncate(found.last, &mut self.bytes));
                    found.state.devices.clear();
                }
                Reply::Done
            }
            // Groups are kept by `Groups`, which keeps its logs in a store of its own.
            Request::Group { .. } => self.refuse(Refusal::Unavailable),
        })
    }

    fn refuse(&self, refusal: Refusal) -> Reply {
        self.stats.refuse(refusal);
        Reply::Refused(refusal)
    }
}

impl User {
    /// Drops the messages up to a stamp, which becomes the floor. Returns how many they were.
    fn truncate(&mut self, floor: u64, total_bytes: &mut u64) -> u64 {
        let mut dropped = 0;
        while let Some(record) = self.records.front().filter(|record| record.stamp <= floor) {
            self.bytes -= record.bytes() as u64;
            *total_bytes -= record.bytes() as u64;
            self.records.pop_front();
            dropped += 1;
        }
        self.state.floor = self.state.floor.max(floor);
        dropped
    }
}

impl Store for Memory {
    fn apply(&mut self, batch: &mut Vec<(Source, Request)>, out: &mut dyn FnMut(Source, Answer)) {
        for (source, request) in batch.drain(..) {
            let token = request.token();
            if let Request::View { epoch } = request {
                self.views.insert(source, epoch);
                continue;
            }
            self.view = self.views.get(&source).copied().unwrap_or(0);
            if token.is_some() {
                // Whoever asks sees what came before.
                self.make_cursors_durable();
            }
            if let (Some(reply), Some(token)) = (self.reply(request), token) {
                out(source, Answer { token, reply });
            }
        }
        let users = self.users.values().filter(|user| !user.records.is_empty());
        Stats::set(&self.stats.users, users.clone().count() as u64);
        Stats::set(&self.stats.messages, users.map(|user| user.records.len() as u64).sum());
        Stats::set(&self.stats.message_bytes, self.bytes);
        Stats::add(&self.stats.commits, 1);
    }

    fn tick(&mut self) -> Option<Duration> {
        if self.cursors.is_empty() {
            return None;
        }
        let due_ms = self.cursors_since_ms + CURSOR_DELAY_MS;
        let now_ms = (self.clock)();
        // The clock may have been set back since the first one came.
        if now_ms >= due_ms || now_ms < self.cursors_since_ms {
            self.make_cursors_durable();
            return None;
        }
        Some(Duration::from_millis(due_ms - now_ms))
    }

    fn close(&mut self) {
        self.make_cursors_durable();
        self.closed = true;
        self.stats.available.store(false, Ordering::Relaxed);
    }

    fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").field("users", &self.users.len()).field("available", &self.available).finish()
    }
}
