//! One user's log: found, read, cut at the front.

use super::{Embedded, RECENT_RECORD_BYTES, Staged};
use crate::codec::Totals;
use crate::jobs::Recent;
use crate::limits::Amount;
use crate::state::State;
use crate::table::{Range, Seen, Table};
use crate::{Inbox, Opened, Page, Record, Refusal, Reply, Stats, stamp_at};
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// What is known of a user.
pub(super) struct Located {
    pub(super) state: State,
    pub(super) totals: Totals,
    /// Where messages above the floor may be, besides the recent ones, in their order.
    ranges: Vec<(Arc<Table>, Range)>,
}

impl Embedded {
    /// Finds what is known of a user.
    pub(super) fn locate(&mut self, user: u64) -> io::Result<Located> {
        let recent = self.recents.get(&user);
        let frozen = self.frozen.as_ref().and_then(|frozen| frozen.recents.get(&user));
        let mut state = [recent, frozen].into_iter().flatten().find_map(|recent| recent.state.clone());
        let mut totals = self.totals.get(&user).copied();
        totals = totals.or_else(|| [recent, frozen].into_iter().flatten().next().map(|recent| recent.totals));
        let mut ranges = Vec::new();
        let mut damaged = 0;
        for table in self.tables.iter().rev() {
            // If all that waits is in memory, older tables have nothing to say.
            if let (Some(state), Some(totals)) = (&state, totals) {
                let in_memory = [recent, frozen].into_iter().flatten();
                let in_memory: usize = in_memory.map(|recent| recent.after(state.floor).len()).sum();
                if in_memory == totals.messages as usize {
                    ranges.clear();
                    break;
                }
            }
            match table.entry(user) {
                Ok(None) => {}
                Ok(Some(entry)) => {
                    totals = totals.or(Some(entry.totals));
                    state = state.or(entry.state);
                    ranges.extend(entry.range.map(|range| (table.clone(), range)));
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => damaged = damaged.max(table.footer.high),
                Err(error) => return Err(error),
            }
        }
        ranges.reverse();
        let state = state.unwrap_or_default();
        ranges.retain(|(_, range)| range.last > state.floor);
        self.damaged_for_all(damaged);
        Ok(Located { state, totals: totals.unwrap_or_default(), ranges })
    }

    /// Shows a user's messages after a stamp in their order, until `look` has had enough.
    pub(super) fn visit(
        &mut self,
        user: u64,
        at: &mut Located,
        after: u64,
        mut look: impl FnMut(Seen<'_>) -> ControlFlow<()>,
    ) -> io::Result<()> {
        let after = after.max(at.state.floor);
        let mut damaged = 0;
        let mut stopped = false;
        for (table, range) in &at.ranges {
            let scanned = table.scan(user, range, after, &mut look)?;
            damaged = scanned.damaged.max(damaged);
            stopped = scanned.stopped;
            if stopped {
                break;
            }
        }
        if !stopped {
            let frozen = self.frozen.as_ref().and_then(|frozen| frozen.recents.get(&user));
            let recents = [frozen, self.recents.get(&user)].into_iter().flatten();
            for record in recents.flat_map(|recent| recent.after(after)) {
                if look(Seen::of(record)).is_break() {
                    break;
                }
            }
        }
        if damaged > at.state.gap.max(at.state.floor) {
            self.damaged_for(user, at, damaged)?;
        }
        Ok(())
    }

    /// Some messages of a user, up to a stamp, can't be read.
    fn damaged_for(&mut self, user: u64, at: &mut Located, stamp: u64) -> io::Result<()> {
        Stats::add(&self.stats.damages, 1);
        // From here on it is no news, which ends the recursion.
        at.state.gap = stamp;
        let mut left = Amount::default();
        self.visit(user, at, 0, |seen| {
            left.add(seen.bytes());
            ControlFlow::Continue(())
        })?;
        (at.totals.messages, at.totals.bytes) = (left.messages as u32, left.bytes as u32);
        self.keep(user, at);
        Ok(())
    }

    /// Messages of a user, up to a stamp, were given up before they got here. The end of the log moves there, so that
    /// whoever has got them, or was told, gets past it.
    pub(super) fn note_gap(&mut self, user: u64, stamp: u64) -> io::Result<()> {
        let mut at = self.locate(user)?;
        if at.state.note_gap(stamp) {
            at.totals.last = at.totals.last.max(stamp);
            self.high = self.high.max(stamp);
            self.keep(user, &at);
        }
        Ok(())
    }

    /// A merge found damage.
    pub(super) fn damaged_in_merge(&mut self, user: u64, stamp: u64) -> io::Result<()> {
        let mut at = self.locate(user)?;
        if stamp > at.state.gap.max(at.state.floor) {
            self.damaged_for(user, &mut at, stamp)?;
        }
        Ok(())
    }

    /// Messages of any user, up to a stamp, may be lost.
    pub(super) fn damaged_for_all(&mut self, stamp: u64) {
        if stamp > self.gap {
            Stats::add(&self.stats.damages, 1);
            self.gap = stamp;
            self.gap_is_logged = false;
        }
    }

    fn floor(&self, at: &Located) -> u64 {
        at.state.floor.max(at.state.gap).max(self.gap)
    }

    /// The stamp of a message, above `after`, if it is at the position that it asks for, or among the last of the log.
    pub(super) fn find(&mut self, user: u64, record: &Record, after: u64) -> io::Result<Option<u64>> {
        let mut at = self.locate(user)?;
        let wanted = (record.stamp, record.from, record.id);
        if record.stamp > after && record.stamp <= at.totals.last {
            let mut is_there = false;
            self.visit(user, &mut at, record.stamp - 1, |seen| {
                is_there = (seen.stamp, seen.from, seen.id) == wanted;
                ControlFlow::Break(())
            })?;
            if is_there {
                return Ok(Some(record.stamp));
            }
        }
        let found = self.find_among_last(user, &at, record)?;
        Ok(found.filter(|stamp| *stamp > after))
    }

    fn find_among_last(&self, user: u64, at: &Located, record: &Record) -> io::Result<Option<u64>> {
        let (from, id) = (record.from, record.id);
        let mut left = self.limits.retry_window as usize;
        let frozen = self.frozen.as_ref().and_then(|frozen| frozen.recents.get(&user));
        for recent in [self.recents.get(&user), frozen].into_iter().flatten() {
            for record in recent.after(at.state.floor).rev().take(left) {
                if (record.from, record.id) == (from, id) {
                    return Ok(Some(record.stamp));
                }
                left -= 1;
            }
        }
        for (table, range) in at.ranges.iter().rev() {
            if left == 0 {
                break;
            }
            let mut last = Vec::new();
            table.tail(user, range, left as u32, |seen| {
                last.push((seen.stamp, seen.from, seen.id));
                ControlFlow::Continue(())
            })?;
            let last = last.into_iter().rev().filter(|(stamp, ..)| *stamp > at.state.floor).take(left);
            for (stamp, its_from, its_id) in last {
                if (its_from, its_id) == (from, id) {
                    return Ok(Some(stamp));
                }
                left -= 1;
            }
        }
        Ok(None)
    }

    /// How much of what waits has stamps up to this one, and the last such stamp.
    fn upto(&self, user: u64, at: &Located, stamp: u64) -> io::Result<(Amount, u64)> {
        let mut amount = Amount::default();
        let mut last = 0;
        let floor = at.state.floor;
        for (table, range) in &at.ranges {
            let (upto, its_last) = table.prefix(user, range, stamp)?;
            let gone = if range.first > floor { Amount::default() } else { table.prefix(user, range, floor)?.0 };
            amount.messages += upto.messages.saturating_sub(gone.messages);
            amount.bytes += upto.bytes.saturating_sub(gone.bytes);
            last = last.max(its_last);
        }
        let frozen = self.frozen.as_ref().and_then(|frozen| frozen.recents.get(&user));
        let recents = [frozen, self.recents.get(&user)].into_iter().flatten();
        for record in recents.flat_map(|recent| recent.after(floor)).take_while(|record| record.stamp <= stamp) {
            amount.add(record.bytes());
            last = record.stamp;
        }
        Ok((amount, last.max(floor)))
    }

    /// Drops the messages up to a stamp, which becomes the floor. True if the floor has risen.
    fn truncate(
        &mut self,
        user: u64,
        at: &mut Located,
        floor: u64,
        counter: impl Fn(&Stats) -> &AtomicU64,
    ) -> io::Result<bool> {
        if floor <= at.state.floor {
            return Ok(false);
        }
        // Nothing has to be read if nothing is left.
        let gone = if floor >= at.totals.last {
            Amount { messages: u64::from(at.totals.messages), bytes: u64::from(at.totals.bytes) }
        } else {
            self.upto(user, at, floor)?.0
        };
        at.state.floor = floor;
        at.totals.subtract(gone);
        at.ranges.retain(|(_, range)| range.last > floor);
        Stats::add(counter(&self.stats), gone.messages);
        if let Some(recent) = self.recents.get_mut(&user) {
            self.recent_bytes -= drop_upto(recent, floor);
        }
        Ok(true)
    }

    /// Lets go what the user's devices have and what is too old, and forgets devices that stay away.
    pub(super) fn tidy(&mut self, user: u64, at: &mut Located) -> io::Result<()> {
        let now_ms = self.aging_ms();
        let forgotten = at.state.forget_unseen(now_ms, &self.limits);
        Stats::add(&self.stats.devices_forgotten, forgotten);
        let mut changed = forgotten > 0;
        let oldest = stamp_at(now_ms.saturating_sub(self.limits.message_age_ms_max));
        if at.totals.messages > 0 && !self.limits.is_book(user) && self.may_have(user, at, oldest) {
            let (_, expired) = self.upto(user, at, oldest.saturating_sub(1))?;
            changed |= self.truncate(user, at, expired, |stats| &stats.expired)?;
        }
        if let Some(least) = at.state.least_cursor() {
            changed |= self.truncate(user, at, least, |stats| &stats.acknowledged)?;
        }
        if changed {
            self.keep(user, at);
        }
        Ok(())
    }

    /// Whether a message above the floor may have a stamp below this one.
    fn may_have(&self, user: u64, at: &Located, below: u64) -> bool {
        if let Some((_, range)) = at.ranges.first() {
            return range.first < below;
        }
        let frozen = self.frozen.as_ref().and_then(|frozen| frozen.recents.get(&user));
        let recents = [frozen, self.recents.get(&user)].into_iter().flatten();
        let first = recents.flat_map(|recent| recent.after(at.state.floor)).next();
        first.is_some_and(|record| record.stamp < below)
    }

    /// Drops messages of a full log, oldest first, until there is room for the next and some more.
    pub(super) fn drop_oldest(&mut self, user: u64, at: &mut Located, bytes: usize) -> io::Result<()> {
        let over = self.limits.excess(u64::from(at.totals.messages), u64::from(at.totals.bytes), bytes as u64);
        let mut dropped = Amount::default();
        let mut floor = 0;
        self.visit(user, at, 0, |seen| {
            if dropped.messages >= over.messages && dropped.bytes >= over.bytes {
                return ControlFlow::Break(());
            }
            dropped.add(seen.bytes());
            floor = seen.stamp;
            ControlFlow::Continue(())
        })?;
        if self.truncate(user, at, floor, |stats| &stats.dropped_oldest)? {
            self.keep(user, at);
        }
        Ok(())
    }

    pub(super) fn open_device(&mut self, user: u64, name: &str, ephemeral: bool) -> io::Result<Staged> {
        let mut at = self.locate(user)?;
        self.tidy(user, &mut at)?;
        if !at.state.knows(name) && !ephemeral && !self.can_write() {
            return Ok(self.refuse(Refusal::Unavailable));
        }
        let now_ms = self.now_ms();
        let login = at.state.open(name, ephemeral, at.totals.last, now_ms, &self.limits, &mut self.epochs);
        Stats::add(&self.stats.devices_forgotten, login.forgotten);
        let device = (user, login.opened.device);
        if login.registered {
            self.registered.insert(device);
        }
        if login.registered || (login.touched && !self.has_too_many_changes()) {
            self.keep(user, &at);
        } else if login.touched {
            // It is seen again.
            Stats::add(&self.stats.cursors_dropped, 1);
        }
        let cursor = login.opened.cursor;
        let passed = if cursor <= at.state.floor {
            0
        } else if cursor >= at.totals.last {
            u64::from(at.totals.messages)
        } else {
            self.upto(user, &at, cursor)?.0.messages
        };
        let opened = Opened {
            store_epoch: self.store_epoch,
            floor: self.floor(&at),
            last: at.totals.last,
            pending: u64::from(at.totals.messages).saturating_sub(passed),
            devices: at.state.devices.len() as u32,
            ..login.opened
        };
        let reply = Reply::Opened(opened);
        Ok(if self.registered.contains(&device) { Staged::Durable(reply) } else { Staged::Ready(reply) })
    }

    pub(super) fn acknowledge(&mut self, user: u64, device: (u16, u32), stamp: u64) -> io::Result<()> {
        let mut at = self.locate(user)?;
        let now_ms = self.now_ms();
        match at.state.acknowledge(device, stamp, at.totals.last, now_ms) {
            Some(true) => {
                self.keep(user, &at);
                self.tidy(user, &mut at)?;
            }
            Some(false) => {}
            None => Stats::add(&self.stats.cursors_stale, 1),
        }
        Ok(())
    }

    pub(super) fn read(&mut self, user: u64, after: u64, limit: u32, bytes_max: u32) -> io::Result<Reply> {
        let mut at = self.locate(user)?;
        self.tidy(user, &mut at)?;
        let limit = limit.clamp(1, self.limits.page_max.max(1)) as usize;
        let mut page = Page { complete: true, ..Page::default() };
        let mut bytes = 0;
        self.visit(user, &mut at, after, |seen| {
            bytes += seen.payload.len();
            if page.records.len() >= limit || (!page.records.is_empty() && bytes > bytes_max as usize) {
                page.complete = false;
                return ControlFlow::Break(());
            }
            page.records.push(seen.to_record());
            ControlFlow::Continue(())
        })?;
        page.floor = self.floor(&at);
        page.last = at.totals.last;
        page.truncated = after < page.floor;
        Stats::add(&self.stats.read, page.records.len() as u64);
        Ok(Reply::Page(page))
    }

    pub(super) fn devices(&mut self, user: u64) -> io::Result<Staged> {
        let mut at = self.locate(user)?;
        self.tidy(user, &mut at)?;
        Ok(Staged::Ready(Reply::Devices(at.state.devices())))
    }

    pub(super) fn inspect(&mut self, user: u64) -> io::Result<Staged> {
        let mut at = self.locate(user)?;
        self.tidy(user, &mut at)?;
        Ok(Staged::Ready(Reply::Inspected(Inbox {
            messages: u64::from(at.totals.messages),
            bytes: u64::from(at.totals.bytes),
            floor: self.floor(&at),
            last: at.totals.last,
            devices: at.state.devices.len() as u32,
        })))
    }

    pub(super) fn forget(&mut self, user: u64, device: (u16, u32)) -> io::Result<Staged> {
        let mut at = self.locate(user)?;
        if at.state.forget(device) {
            self.keep(user, &at);
            self.tidy(user, &mut at)?;
        }
        Ok(Staged::Durable(Reply::Devices(at.state.devices())))
    }

    pub(super) fn delete(&mut self, user: u64) -> io::Result<Staged> {
        let mut at = self.locate(user)?;
        let last = at.totals.last;
        let emptied = self.truncate(user, &mut at, last, |stats| &stats.deleted)?;
        if emptied || !at.state.devices.is_empty() {
            at.state.devices.clear();
            self.keep(user, &at);
        }
        Ok(Staged::Durable(Reply::Done))
    }
}

/// Drops a user's recent messages up to a stamp. Returns the memory that is free now.
pub(super) fn drop_upto(recent: &mut Recent, floor: u64) -> u64 {
    let mut freed = 0;
    while let Some(record) = recent.records.pop_front_if(|record| record.stamp <= floor) {
        freed += RECENT_RECORD_BYTES + record.payload.len() as u64;
    }
    if recent.records.is_empty() {
        recent.records = Default::default();
    }
    freed
}
