//! The way of events from a shard to the services thread, and word back of how many are kept.
//!
//! What happens in a turn is gathered and handed over at its end, by [`Lanes`]. Bounds: the bytes under way are
//! counted; an event for which there is no room is counted by lane and type, and these counts go over, before whatever
//! comes behind them in the lane, as soon as there is room.

use super::event::{Event, EventKind, KINDS, Wants};
use super::grace::{Going, Grace};
use super::{HELD_MAX, LANES, PORTAL_BYTES};
use crate::ids::Origin;
use crate::lanes::{self, Lanes, ShardEnd};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};

/// Events of a turn.
#[derive(Debug, Default)]
pub struct Batch {
    pub bytes: Vec<u8>,
    /// Events of the shard up to here, those before this batch included.
    pub until: u64,
}

impl lanes::Batch for Batch {
    fn load(&self) -> usize {
        self.bytes.len()
    }
}

/// No batches go to shards, only word of how many events are kept.
type NoBatch = Vec<Infallible>;

/// So many of a shard's events are kept, as far as they can be. On a cache line of its own, as each shard looks at it.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Kept(AtomicU64);

/// What both sides see of a node's events.
#[derive(Debug)]
pub struct EventsShared {
    /// By shard.
    kept: Box<[Kept]>,
    wants: Wants,
    keeps: bool,
}

/// The ways of a node's events, one for each shard.
pub type EventPortals = Lanes<NoBatch, Batch, EventsShared>;

impl EventPortals {
    /// For so many shards, whose events of these types somebody wants. `keeps`: they outlive the process, so those of
    /// stored messages are to be kept before their senders are told.
    pub fn new(shards: u16, wants: Wants, keeps: bool) -> Self {
        let kept = (0..shards).map(|_| Kept::default()).collect();
        Lanes::with(shards, EventsShared { kept, wants, keeps })
    }

    /// A shard's end.
    pub fn inner(&self, shard: u16) -> EventsInner {
        EventsInner {
            end: self.shard_end(shard),
            wants: self.own.wants,
            keeps: self.own.keeps,
            put: 0,
            lost: Box::default(),
            has_lost: false,
            held: VecDeque::new(),
            grace: Grace::default(),
        }
    }

    /// The events of the next batch.
    #[cfg(test)]
    pub fn take_bytes(&self) -> Option<Vec<u8>> {
        self.take().map(|(_, batch)| batch.bytes)
    }

    /// So many events of a shard are kept. Its senders that wait for that are told in a turn of the shard.
    pub fn set_kept(&self, shard: u16, until: u64) {
        let Some(kept) = self.own.kept.get(usize::from(shard)) else { return };
        kept.0.store(until, Ordering::Release);
        if self.own.keeps {
            self.wake(usize::from(shard));
        }
    }
}

/// Events of one type and lane for which there was no room.
#[derive(Clone, Copy, Debug, Default)]
struct Lost {
    count: u64,
    from_ms: u64,
    to_ms: u64,
}

/// A sender that is told SENT 1 as soon as its message's event is kept.
#[derive(Clone, Copy, Debug)]
pub struct HeldFate {
    /// The event's place among those of the shard.
    pub event: u64,
    pub origin: Origin,
    pub id: u64,
    pub user: u64,
    pub stamp: u64,
    /// When it began to wait.
    pub tick: u32,
}

/// A shard's end of its portal.
#[derive(Debug)]
pub struct EventsInner {
    end: ShardEnd<NoBatch, Batch, EventsShared>,
    wants: Wants,
    keeps: bool,
    /// Events that were let in.
    put: u64,
    lost: Box<[[Lost; KINDS]; LANES]>,
    has_lost: bool,
    held: VecDeque<HeldFate>,
    grace: Grace,
}

impl EventsInner {
    /// Whether anybody wants events of this type.
    #[inline]
    pub fn wants(&self, kind: EventKind) -> bool {
        self.wants.has(kind)
    }

    /// Whether events outlive the process.
    pub fn keeps(&self) -> bool {
        self.keeps
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.end.load() + bytes <= PORTAL_BYTES
    }

    /// Gathers an event. Its place among those of the shard, or `None` if there is no room for it; then it is counted.
    pub fn put(&mut self, event: &Event<'_>) -> Option<u64> {
        let lane = event.lane();
        if self.has_lost {
            self.tell_lost(lane);
        }
        // What is lost comes first, or it would be told of in the wrong place.
        let waits = self.has_lost && self.lost[lane].iter().any(|lost| lost.count > 0);
        if waits || !self.has_room(event.encoded_len()) {
            let lost = &mut self.lost[lane][event.kind as usize];
            if lost.count == 0 {
                lost.from_ms = event.time_ms;
            }
            lost.count += 1;
            lost.to_ms = event.time_ms;
            self.has_lost = true;
            return None;
        }
        event.encode(&mut self.end.gathered.bytes);
        self.put += 1;
        Some(self.put)
    }

    /// Gathers the counts of what was lost in a lane, as far as there is room for them.
    fn tell_lost(&mut self, lane: usize) {
        for kind in EventKind::ALL {
            let Lost { count, from_ms, to_ms } = self.lost[lane][*kind as usize];
            let gap = Event {
                aux: *kind as u16,
                id: count,
                stamp: from_ms,
                ..Event::new(EventKind::Gap, to_ms, lane as u64)
            };
            if count > 0 && self.has_room(gap.encoded_len()) {
                gap.encode(&mut self.end.gathered.bytes);
                self.put += 1;
                self.lost[lane][*kind as usize] = Lost::default();
            }
        }
    }

    /// Hands over what was gathered in this turn.
    pub fn post(&mut self) {
        if self.has_lost {
            (0..LANES).for_each(|lane| self.tell_lost(lane));
            self.has_lost = self.lost.iter().flatten().any(|lost| lost.count > 0);
        }
        self.end.gathered.until = self.put;
        self.end.post();
    }

    /// Whether an event is kept, or cannot be.
    fn is_kept(&self, event: u64) -> bool {
        event <= self.end.lanes.own.kept[self.end.shard].0.load(Ordering::Acquire)
    }

    /// A sender waits until the event of its message is kept. False if too many do: then it is to be told now.
    #[must_use]
    pub fn hold(&mut self, fate: HeldFate) -> bool {
        let has_room = self.held.len() < HELD_MAX;
        if has_room {
            debug_assert!(self.held.back().is_none_or(|last| last.event < fate.event), "events are told of in order");
            self.held.push_back(fate);
        }
        has_room
    }

    /// Senders that wait.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// A user's last session has ended. False if too many users are away for so short a time: then it is to be told
    /// now.
    #[must_use]
    pub fn goes(&mut self, user: u64, since_ms: u64, tick: u32) -> bool {
        self.grace.goes(user, since_ms, tick)
    }

    /// A user is here. Whether nobody was told that it went.
    pub fn is_back(&mut self, user: u64) -> bool {
        self.grace.is_back(user)
    }

    /// The next user who has been away for long enough; with `all`, whoever is away.
    pub fn take_gone(&mut self, tick: u32, all: bool) -> Option<Going> {
        self.grace.take_gone(tick, all)
    }

    /// Whether a sender can be told now.
    pub fn has_kept(&self) -> bool {
        self.held.front().is_some_and(|held| self.is_kept(held.event))
    }

    /// The next sender that can be told, because its event is kept.
    pub fn take_kept(&mut self) -> Option<HeldFate> {
        let event = self.held.front()?.event;
        if self.is_kept(event) { self.held.pop_front() } else { None }
    }

    /// The next sender that began to wait so early.
    pub fn take_late(&mut self, before_tick: u32) -> Option<HeldFate> {
        self.held.pop_front_if(|held| held.tick <= before_tick)
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::lane_of;
    use super::*;

    fn taken(portals: &EventPortals) -> Vec<(EventKind, u64, u64, u64)> {
        let mut all = Vec::new();
        while let Some((_, Batch { bytes, .. })) = portals.take() {
            let mut at = 0;
            while let Some((event, len)) = Event::decode(&bytes[at..]) {
                all.push((event.kind, event.user, event.id, event.stamp));
                at += len;
            }
            assert_eq!(at, bytes.len());
        }
        all
    }

    #[test]
    fn what_finds_no_room_is_counted_and_told_in_its_place() {
        let wants = Wants::of("*").expect("all");
        let portals = EventPortals::new(1, wants, false);
        let mut inner = portals.inner(0);
        let event = |time_ms| Event::new(EventKind::UserOnline, time_ms, 5);
        let (mut in_time, mut lost) = (0, 0);
        for time_ms in 0..60_000 {
            match inner.put(&event(time_ms)) {
                Some(_) => in_time += 1,
                None => lost += 1,
            }
            inner.post();
        }
        assert!(in_time > 0 && lost > 0);
        assert_eq!(taken(&portals).len(), in_time, "no word of a gap has room either");
        assert_eq!(inner.put(&event(70_000)), Some(in_time as u64 + 2), "the gap goes first");
        inner.post();
        let lane = lane_of(5) as u64;
        let gap = (EventKind::Gap, lane, lost, in_time as u64);
        assert_eq!(taken(&portals), [gap, (EventKind::UserOnline, 5, 0, 0)]);
        inner.post();
        assert!(taken(&portals).is_empty() && portals.is_empty());
    }

    #[test]
    fn a_sender_is_told_when_its_event_is_kept_and_not_before() {
        let portals = EventPortals::new(2, Wants::of("*").expect("all"), true);
        let mut inner = portals.inner(1);
        for id in 1..=3 {
            let event = inner.put(&Event::new(EventKind::MessageStored, 0, id)).expect("room");
            let origin = Origin::own(0, crate::io::ConnId { slot: 1, generation: 1 });
            inner.held.push_back(HeldFate { event, origin, id, user: id, stamp: 0, tick: id as u32 });
        }
        inner.post();
        let (shard, batch) = portals.take().expect("a batch");
        assert_eq!((shard, batch.until, inner.has_kept()), (1, 3, false));
        portals.set_kept(1, 2);
        assert!(inner.has_kept());
        let told: Vec<u64> = std::iter::from_fn(|| inner.take_kept()).map(|held| held.id).collect();
        assert_eq!(told, [1, 2]);
        assert!(inner.take_late(2).is_none());
        assert_eq!(inner.take_late(3).map(|held| held.id), Some(3));
    }
}
