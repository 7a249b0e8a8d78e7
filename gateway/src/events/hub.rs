//! Which event waits for which webhook, what is sent next, and what an answer means. No I/O and no clock.
//!
//! Events are numbered as they come. Each webhook has a queue for each lane, with one request under way in it at most;
//! what is sent stays in the queue until its fate is known, and a request that failed is sent again as it was, so that
//! its id stays. What finds no room in the bound of a webhook becomes a gap: an event at the end of the queue that
//! counts what would have been there.
//!
//! | an answer | means |
//! |---|---|
//! | 2xx | delivered |
//! | 400, 405, 406, 409, 411, 413, 414, 415, 422, 431 | refused for good |
//! | 410 | the receiver wants nothing any more |
//! | any other, or none | not now |
//!
//! What is refused for good is sent again in halves, and what is refused alone is given up and counted in a gap. Of a
//! receiver that wants nothing any more all that waits is given up, until the node starts again. What is not taken now
//! is sent again after 1 s and then twice as long up to 5 minutes, or as Retry-After says; what has waited for 24 h by
//! then is given up and counted in a gap.

use super::log::{put_done, put_event, put_gap, put_snapshot};
use super::{AGE_MS_MAX, LANES};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use trunkline_core::events::{EVENT_BYTES_LEAST, Event, EventKind, KINDS, Wants};
use trunkline_router::hash::user_hash;

/// Time to the first attempt after one that failed, and the longest; milliseconds.
const BACKOFF_MS: u64 = 1_000;
const BACKOFF_MS_MAX: u64 = 300_000;
/// About the most bytes of the JSON of one request.
pub(super) const BATCH_JSON_BYTES: usize = 256 << 10;
/// About the bytes of JSON around an event's own.
const JSON_BYTES: usize = 300;

/// Events that a webhook will never get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) kind: EventKind,
    pub(super) count: u64,
    /// When the first and the last of them happened, milliseconds since the Unix epoch.
    pub(super) from_ms: u64,
    pub(super) to_ms: u64,
}

/// What waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// An event's bytes, which several webhooks may share.
    Event(Arc<[u8]>),
    Gap(Gap),
}

/// An event with its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) seq: u64,
    pub(super) body: Body,
}

/// What an item takes besides the bytes of its event: a place in a queue that may be half empty, and two counts.
const ITEM_BYTES: usize = 2 * size_of::<Item>() + 16;

impl Item {
    fn bytes(&self) -> usize {
        let event = if let Body::Event(bytes) = &self.body { bytes.len() } else { 0 };
        ITEM_BYTES + event
    }

    /// As an event of this lane.
    pub(super) fn event(&self, lane: usize) -> Option<Event<'_>> {
        match &self.body {
            Body::Event(bytes) => Event::decode(bytes).map(|(event, _)| event),
            Body::Gap(gap) => Some(Event {
                aux: gap.kind as u16,
                id: gap.count,
                stamp: gap.from_ms,
                ..Event::new(EventKind::Gap, gap.to_ms, lane as u64)
            }),
        }
    }
}

/// What is to be posted.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) hook: usize,
    pub(super) lane: usize,
    pub(super) items: Vec<Item>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Delivered,
    /// Not now; with the time in which the receiver wants to hear nothing, if it says so.
    Failed {
        after_ms: Option<u64>,
    },
    /// Never.
    Refused,
    /// Never anything again.
    Gone,
}

impl End {
    /// What a status of HTTP means.
    pub(super) fn of_status(status: u16, retry_after_s: Option<u64>) -> Self {
        match status {
            200..=299 => End::Delivered,
            410 => End::Gone,
            400 | 405 | 406 | 409 | 411 | 413 | 414 | 415 | 422 | 431 => End::Refused,
            _ => End::Failed { after_ms: retry_after_s.map(|secs| secs.saturating_mul(1_000)) },
        }
    }
}

#[derive(Debug, Default)]
struct Lane {
    queue: VecDeque<Item>,
    /// Items at the front that are under way.
    under_way: usize,
    /// Items of the next request, of which the last one failed; 0 to take as many as there are.
    planned: usize,
    failures: u32,
    /// Nothing is sent before that.
    retry_ms: u64,
    /// The last that was sent, or may have been before a restart. What is sent stays as it is: who has it under its id
    /// already would not look at it again.
    sent_seq: u64,
}

#[derive(Debug)]
struct Hook {
    /// The same over restarts for the same receiver.
    key: u64,
    wants: Wants,
    batch_max: usize,
    lanes: [Lane; LANES],
    bytes: usize,
    gone: bool,
}

/// What has become of events, each counted for each webhook, and of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Events by type, each once.
    pub(super) taken: [u64; KINDS],
    pub(super) delivered: u64,
    pub(super) dropped: u64,
    /// Those among them that the bound of a webhook had no room for.
    pub(super) full: u64,
    pub(super) given_up: u64,
    /// Those among them that had waited for too long.
    pub(super) old: u64,
    pub(super) retries: u64,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Hub {
    hooks: Vec<Hook>,
    /// Tells the events of different logs, or of different lives without one, apart.
    epoch: u64,
    last_seq: u64,
    /// Up to here events may be sent.
    kept: u64,
    hook_bytes_max: usize,
    counts: Counts,
    /// Records for the log; `None` without one.
    log: Option<Vec<u8>>,
    /// Gaps that have grown since they were written.
    grown: Vec<(usize, usize, u64)>,
    seed: u64,
    /// Where the last look for something to send ended.
    turn: usize,
}

impl Hub {
    /// Nothing waits. Each webhook is its key, what it wants, and the events of one request. `bytes_max` is shared by
    /// them.
    pub(super) fn new(hooks: &[(u64, Wants, usize)], bytes_max: usize, epoch: u64, has_log: bool) -> Self {
        let hook = |(key, wants, batch_max): &(u64, Wants, usize)| Hook {
            key: *key,
            wants: *wants,
            batch_max: *batch_max,
            lanes: Default::default(),
            bytes: 0,
            gone: false,
        };
        Hub {
            hook_bytes_max: bytes_max / hooks.len().max(1),
            hooks: hooks.iter().map(hook).collect(),
            epoch,
            last_seq: 0,
            kept: 0,
            counts: Counts::default(),
            log: has_log.then(Vec::new),
            grown: Vec::new(),
            seed: epoch,
            turn: 0,
        }
    }

    /// Goes on behind the last event of a log.
    pub(super) fn go_on_at(&mut self, last_seq: u64) {
        self.last_seq = self.last_seq.max(last_seq);
        self.kept = self.last_seq;
    }

    /// An event from the log, behind all that were restored before.
    pub(super) fn restore(&mut self, hook: usize, lane: usize, item: Item) {
        let Some(hook) = self.hooks.get_mut(hook) else { return };
        hook.bytes += item.bytes();
        hook.lanes[lane % LANES].sent_seq = item.seq;
        hook.lanes[lane % LANES].queue.push_back(item);
    }

    /// The number of the last event.
    pub(super) fn last_seq(&self) -> u64 {
        self.last_seq
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.hooks.iter().map(|hook| hook.bytes).sum()
    }

    /// Events that wait, each for each webhook.
    pub(super) fn waiting(&self) -> usize {
        self.hooks.iter().flat_map(|hook| &hook.lanes).map(|lane| lane.queue.len()).sum()
    }

    /// Requests that are under way.
    pub(super) fn under_way(&self) -> usize {
        self.hooks.iter().flat_map(|hook| &hook.lanes).filter(|lane| lane.under_way > 0).count()
    }

    /// When the oldest event happened that waits, milliseconds since the Unix epoch.
    pub(super) fn oldest_ms(&self) -> Option<u64> {
        let fronts = self.hooks.iter().flat_map(|hook| &hook.lanes).filter_map(|lane| lane.queue.front());
        fronts.filter_map(|item| item.event(0)).map(|event| event.time_ms).min()
    }

    /// The id of an event, the same whenever it is sent.
    pub(super) fn id(&self, seq: u64) -> String {
        format!("{:016x}-{seq}", self.epoch)
    }

    /// Takes events in, as they stand one behind the other. Events of which a shard says that they are lost are among
    /// them.
    pub(super) fn admit(&mut self, mut bytes: &[u8]) {
        while let Some((event, len)) = Event::decode(bytes) {
            self.admit_one(&event, &bytes[..len]);
            bytes = &bytes[len..];
        }
    }

    fn admit_one(&mut self, event: &Event<'_>, bytes: &[u8]) {
        let lane = event.lane();
        if event.kind == EventKind::Gap {
            let Some(kind) = EventKind::from_u8(event.aux as u8) else { return };
            let gap = Gap { kind, count: event.id, from_ms: event.stamp, to_ms: event.time_ms };
            self.counts.taken[kind as usize] += gap.count;
            for hook in 0..self.hooks.len() {
                if self.hooks[hook].wants.has(kind) {
                    self.counts.dropped += gap.count;
                    self.miss(hook, lane, gap);
                }
            }
            return;
        }
        self.counts.taken[event.kind as usize] += 1;
        let seq = self.last_seq + 1;
        let (mut body, mut mask) = (None, 0_u16);
        for number in 0..self.hooks.len() {
            let hook = &mut self.hooks[number];
            if !hook.wants.has(event.kind) {
                continue;
            }
            if hook.gone {
                self.counts.given_up += 1;
                continue;
            }
            let cost = ITEM_BYTES + bytes.len();
            if hook.bytes + cost > self.hook_bytes_max {
                self.counts.dropped += 1;
                self.counts.full += 1;
                let time_ms = event.time_ms;
                // It has a number of its own, behind this event's.
                self.last_seq = self.last_seq.max(seq);
                self.miss(number, lane, Gap { kind: event.kind, count: 1, from_ms: time_ms, to_ms: time_ms });
                continue;
            }
            let shared: &Arc<[u8]> = body.get_or_insert_with(|| bytes.into());
            hook.lanes[lane].queue.push_back(Item { seq, body: Body::Event(shared.clone()) });
            hook.bytes += cost;
            mask |= 1 << number;
        }
        if mask != 0 {
            self.last_seq = self.last_seq.max(seq);
            if let Some(log) = &mut self.log {
                put_event(log, seq, mask, bytes);
            }
        }
    }

    /// A webhook will not get these events. They go into the gap that ends its queue, if one does.
    fn miss(&mut self, hook: usize, lane: usize, gap: Gap) {
        if self.hooks[hook].gone {
            return;
        }
        let Hook { lanes, bytes, .. } = &mut self.hooks[hook];
        let of_lane = &mut lanes[lane];
        let sent_seq = of_lane.sent_seq;
        let tail = of_lane.queue.iter_mut().rev().take_while(|item| item.seq > sent_seq);
        let gaps = tail.map_while(|item| match &mut item.body {
            Body::Gap(gap) => Some((item.seq, gap)),
            Body::Event(_) => None,
        });
        let mut same = gaps.filter(|(_, known)| known.kind == gap.kind);
        let seq = match same.next() {
            Some((seq, known)) => {
                known.count += gap.count;
                known.from_ms = known.from_ms.min(gap.from_ms);
                known.to_ms = known.to_ms.max(gap.to_ms);
                seq
            }
            None => {
                self.last_seq += 1;
                let item = Item { seq: self.last_seq, body: Body::Gap(gap) };
                *bytes += item.bytes();
                of_lane.queue.push_back(item);
                self.last_seq
            }
        };
        if self.log.is_some() && !self.grown.contains(&(hook, lane, seq)) {
            self.grown.push((hook, lane, seq));
        }
    }

    /// What is to be written to the log since this was last asked; empty without one.
    pub(super) fn take_log(&mut self) -> Vec<u8> {
        let Some(log) = &mut self.log else { return Vec::new() };
        for (hook, lane, seq) in std::mem::take(&mut self.grown) {
            let queue = &self.hooks[hook].lanes[lane].queue;
            let at = queue.binary_search_by_key(&seq, |item| item.seq);
            if let Some(Item { body: Body::Gap(gap), .. }) = at.ok().and_then(|at| queue.get(at)) {
                put_gap(log, seq, hook, lane, gap);
            }
        }
        std::mem::take(log)
    }

    /// Whether there is something to be written to the log.
    pub(super) fn has_log(&self) -> bool {
        self.log.as_ref().is_some_and(|log| !log.is_empty() || !self.grown.is_empty())
    }

    /// How far all webhooks are, as the first record of a file of the log.
    pub(super) fn snapshot(&self) -> Vec<u8> {
        let cursors = self.hooks.iter().map(|hook| (hook.key, hook.lanes.each_ref().map(|lane| self.done(lane))));
        let mut out = Vec::new();
        put_snapshot(&mut out, self.epoch, self.last_seq, &cursors.collect::<Vec<_>>());
        out
    }

    /// All events of a lane up to here need not be sent any more.
    fn done(&self, lane: &Lane) -> u64 {
        lane.queue.front().map_or(self.last_seq, |item| item.seq - 1)
    }

    /// All events up to here need not be sent any more.
    pub(super) fn done_below(&self) -> u64 {
        let lanes = self.hooks.iter().flat_map(|hook| &hook.lanes);
        lanes.map(|lane| self.done(lane)).min().unwrap_or(self.last_seq)
    }

    /// Everything that waits, as records of a log that has nothing else.
    pub(super) fn rewritten(&mut self) -> Vec<u8> {
        let mut events: BTreeMap<u64, (u16, &Arc<[u8]>)> = BTreeMap::new();
        let mut out = Vec::new();
        for (number, hook) in self.hooks.iter().enumerate() {
            for (lane, of_lane) in hook.lanes.iter().enumerate() {
                for item in &of_lane.queue {
                    match &item.body {
                        Body::Event(bytes) => events.entry(item.seq).or_insert((0, bytes)).0 |= 1 << number,
                        Body::Gap(gap) => put_gap(&mut out, item.seq, number, lane, gap),
                    }
                }
            }
        }
        events.iter().for_each(|(seq, (mask, bytes))| put_event(&mut out, *seq, *mask, bytes));
        self.grown.clear();
        if let Some(log) = &mut self.log {
            log.clear();
        }
        out
    }

    /// Events up to here are kept, as far as they can be.
    pub(super) fn keep_until(&mut self, seq: u64) {
        self.kept = self.kept.max(seq);
    }

    /// The next request to begin at this moment.
    pub(super) fn next(&mut self, now_ms: u64) -> Option<Request> {
        let places = self.hooks.len() * LANES;
        for step in 0..places {
            let at = (self.turn + step) % places;
            let (number, lane) = (at / LANES, at % LANES);
            let hook = &mut self.hooks[number];
            let of_lane = &mut hook.lanes[lane];
            let is_ready = of_lane.under_way == 0 && of_lane.retry_ms <= now_ms;
            if !is_ready || of_lane.queue.front().is_none_or(|item| item.seq > self.kept) {
                continue;
            }
            if of_lane.planned == 0 {
                let mut json = 0;
                let fits = of_lane.queue.iter().take(hook.batch_max).take_while(|item| {
                    json += JSON_BYTES + 2 * item.bytes().saturating_sub(EVENT_BYTES_LEAST);
                    item.seq <= self.kept && json <= BATCH_JSON_BYTES
                });
                of_lane.planned = fits.count().max(1);
            }
            of_lane.under_way = of_lane.planned;
            self.turn = at + 1;
            let items: Vec<Item> = of_lane.queue.iter().take(of_lane.planned).cloned().collect();
            of_lane.sent_seq = items.last().map_or(0, |item| item.seq).max(of_lane.sent_seq);
            return Some(Request { hook: number, lane, items });
        }
        None
    }

    /// A request has ended. Times are of the monotonic clock, and since the Unix epoch.
    pub(super) fn ended(&mut self, hook: usize, lane: usize, end: End, now_ms: u64, wall_ms: u64) {
        let of_lane = &mut self.hooks[hook].lanes[lane];
        let count = std::mem::take(&mut of_lane.under_way);
        match end {
            End::Delivered => {
                self.counts.delivered += count as u64;
                self.pop(hook, lane, count);
            }
            End::Refused if count > 1 => of_lane.planned = count / 2,
            End::Refused => self.give_up(hook, lane, 1),
            End::Failed { after_ms } => {
                of_lane.failures = of_lane.failures.saturating_add(1);
                let doubled = BACKOFF_MS << (of_lane.failures - 1).min(16);
                let wait = doubled.min(BACKOFF_MS_MAX);
                let asked = after_ms.unwrap_or(0).min(BACKOFF_MS_MAX);
                // Half of it, and up to as much again, so that lanes and nodes do not all come at once; and never
                // before the receiver wants it.
                self.seed = user_hash(self.seed.wrapping_add(1));
                of_lane.retry_ms = now_ms + asked.max(wait / 2) + self.seed % (wait / 2 + 1);
                self.counts.retries += 1;
                // A gap is as old as what it counts, and has to be told all the same.
                let is_old = |item: &&Item| {
                    let event = item.event(lane).filter(|_| matches!(item.body, Body::Event(_)));
                    event.is_some_and(|event| event.time_ms.saturating_add(AGE_MS_MAX) <= wall_ms)
                };
                let old = of_lane.queue.iter().take(count).take_while(is_old).count();
                if old > 0 {
                    let (failures, retry_ms) = (of_lane.failures, of_lane.retry_ms);
                    self.counts.old += old as u64;
                    self.give_up(hook, lane, old);
                    let of_lane = &mut self.hooks[hook].lanes[lane];
                    (of_lane.failures, of_lane.retry_ms) = (failures, retry_ms);
                }
            }
            End::Gone => {
                for lane in 0..LANES {
                    let waiting = self.hooks[hook].lanes[lane].queue.len();
                    self.hooks[hook].gone = true;
                    self.give_up(hook, lane, waiting);
                    self.hooks[hook].lanes[lane].under_way = 0;
                }
            }
        }
    }

    /// Whether a webhook wants nothing any more.
    pub(super) fn is_gone(&self, hook: usize) -> bool {
        self.hooks.get(hook).is_some_and(|hook| hook.gone)
    }

    /// Takes items from the front of a lane, which begins anew.
    fn pop(&mut self, hook: usize, lane: usize, count: usize) -> Vec<Item> {
        let Hook { lanes, bytes, .. } = &mut self.hooks[hook];
        let of_lane = &mut lanes[lane];
        let count = count.min(of_lane.queue.len());
        let popped: Vec<Item> = of_lane.queue.drain(..count).collect();
        *bytes -= popped.iter().map(Item::bytes).sum::<usize>();
        (of_lane.planned, of_lane.failures, of_lane.retry_ms) = (0, 0, 0);
        if of_lane.queue.is_empty() {
            of_lane.queue.shrink_to(64);
        }
        if let (Some(log), Some(last)) = (&mut self.log, popped.last()) {
            put_done(log, hook, lane, last.seq);
        }
        popped
    }

    /// These items at the front of a lane will never be delivered. A gap that is not taken either is not told again,
    /// or that would never end.
    fn give_up(&mut self, hook: usize, lane: usize, count: usize) {
        for item in self.pop(hook, lane, count) {
            self.counts.given_up += 1;
            if let Body::Event(bytes) = &item.body
                && let Some((event, _)) = Event::decode(bytes)
            {
                let time_ms = event.time_ms;
                self.miss(hook, lane, Gap { kind: event.kind, count: 1, from_ms: time_ms, to_ms: time_ms });
            }
        }
    }
}

#[cfg(test)]
mod tests;
