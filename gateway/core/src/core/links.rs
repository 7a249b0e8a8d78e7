//! The connections of a shard and what is queued for them: everything below users and messages.

mod sends;
mod wrapped;

pub(super) use sends::Sent;

use super::decode::Flow;
use super::tls::TlsLinks;
use super::tokens::Tokens;
use crate::byte_count::ByteCount;
use crate::conn::{Conn, ConnFlags, Phase, Slots, Wire};
use crate::directory::is_remote;
use crate::inbox::Inboxes;
use crate::io::ConnId;
use crate::limits::{BURST_MS, Limits, TURN_UNITS, TURN_UNITS_FLOOR, UNIT_BYTES};
use crate::metrics::ShardStats;
use crate::outbox::SpareOutboxes;
use crate::transport::outbound::layers;
use crate::wheel::TimerWheel;
pub(crate) use crate::wheel::{TICK_MS, ticks};
use crate::wrappings::Wrappings;
use std::collections::VecDeque;
use std::sync::Arc;
use trunkline_proto::{Code, Header, Kind, encode, encoded_len, flags};

/// Whether a frame found room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queued {
    Yes,
    OutboxFull,
}

/// Connection table, outboxes and timers of a shard.
pub(crate) struct Links {
    pub(super) limits: Limits,
    pub(super) stats: Arc<ShardStats>,
    pub(super) slots: Slots,
    pub(super) wheel: TimerWheel,
    /// When sessions end with their token.
    pub(super) tokens: Tokens,
    spares: SpareOutboxes,
    /// Connections to flush at the end of the turn.
    dirty: Vec<u32>,
    /// Connections that are closed at the end of the turn as too slow: their replies no longer fit, or they hold what
    /// others need.
    pub(super) overflowed: Vec<u32>,
    /// Connections whose send was handed over in this turn; at the next one's beginning it is seen which of them are
    /// slow.
    flights: Vec<u32>,
    /// Connections with a slow outbox, and some that were.
    slow: Vec<u32>,
    /// Sessions that have brought something in this turn.
    spenders: Vec<u32>,
    /// Sessions with frames that wait for a turn, in the order in which they get it.
    behind: Vec<u32>,
    /// Some of them can go on in the next turn; all others wait for another shard.
    behind_ready: bool,
    /// Sessions that flood, see [`ConnFlags::FLOODS`].
    floods: u32,
    /// What each session may bring in this turn.
    turn_units: u16,
    /// Connections without LOGIN that hold a part of a frame, the oldest first, and some that did.
    strangers: VecDeque<ConnId>,
    /// Sessions that hold much of a frame, or what waits for its turn, and some that did.
    holders: Vec<u32>,
    /// Sessions whose outbox has room again for messages that are to be delivered again.
    redeliverable: Vec<u32>,
    /// Tick at which room was last made for outboxes: it takes a look at all slow ones, so it is done once a tick.
    outbox_room_tick: Option<u32>,
    outbox_bytes: ByteCount,
    partial_bytes: ByteCount,
    pub(super) tick: u32,
    /// What has to be remembered of connections that are not native.
    wrappings: Wrappings,
    /// Keys of TLS, and its handshakes.
    pub(super) tls: TlsLinks,
}

/// A part of a frame is much from this size on.
const PARTIAL_MUCH_BYTES: usize = 4_096;
/// An outbox of which nothing was taken for this long gives way when the total of all is reached.
const STALLED_TICKS: u32 = 10;
/// Sessions that flood may be read by multishot receives while they are no more than these: each takes up to 32 receive
/// buffers at once.
const FLOODS_HOT_MAX: u32 = 4;

impl Links {
    pub(crate) fn new(limits: Limits, stats: Arc<ShardStats>) -> Self {
        Links {
            slots: Slots::new(limits.slots()),
            wheel: TimerWheel::new(limits.slots()),
            tokens: Tokens::new(limits.slots()),
            spares: SpareOutboxes::default(),
            dirty: Vec::new(),
            overflowed: Vec::new(),
            flights: Vec::new(),
            slow: Vec::new(),
            spenders: Vec::new(),
            behind: Vec::new(),
            behind_ready: false,
            floods: 0,
            turn_units: limits.turn_units_max,
            strangers: VecDeque::new(),
            holders: Vec::new(),
            redeliverable: Vec::new(),
            outbox_room_tick: None,
            outbox_bytes: ByteCount::default(),
            partial_bytes: ByteCount::default(),
            tick: 0,
            wrappings: Wrappings::default(),
            tls: TlsLinks::default(),
            limits,
            stats,
        }
    }

    /// Puts a connection on the list to flush at the end of the turn.
    #[inline]
    pub(crate) fn mark_dirty(&mut self, slot: u32) {
        let flags = &mut self.slots.at(slot).flags;
        if !flags.has(ConnFlags::DIRTY) {
            flags.set(ConnFlags::DIRTY);
            self.dirty.push(slot);
        }
    }

    /// Queues a message for a session. The bounds of its outbox apply.
    #[inline]
    pub(crate) fn queue_message(&mut self, slot: u32, header: &Header, payload: &[u8]) -> Queued {
        let bytes = encoded_len(header.kind, payload.len());
        let held = self.held_bytes() + bytes;
        let queued = self.slots.at(slot).outbox_bytes() + bytes;
        let beyond = queued > self.limits.outbox_bytes_max || held > self.limits.outbox_total_bytes_max;
        if beyond && !self.may_queue(slot, queued, bytes) {
            return Queued::OutboxFull;
        }
        let conn = self.slots.at(slot);
        let outbox = conn.outbox.get_or_insert_with(|| self.spares.take());
        outbox.make_room(bytes);
        let appended = outbox.append(|out| encode(out, header, payload));
        debug_assert_eq!(appended, bytes, "a frame is as long as was reckoned");
        self.outbox_bytes.add(bytes);
        if !conn.flags.has(ConnFlags::DIRTY) {
            conn.flags.set(ConnFlags::DIRTY);
            self.dirty.push(slot);
        }
        if header.flags & flags::ACK != 0 && self.limits.frames_per_sec != 0 {
            // The ACK that is asked for with it.
            self.grant_frame(slot);
        }
        Queued::Yes
    }

    /// Queues frames of a group for a session, all or none. The bounds of its outbox apply.
    pub(crate) fn queue_frames(&mut self, slot: u32, frames: &[u8]) -> Queued {
        let bytes = frames.len();
        let held = self.held_bytes() + bytes;
        let queued = self.slots.at(slot).outbox_bytes() + bytes;
        let beyond = queued > self.limits.outbox_bytes_max || held > self.limits.outbox_total_bytes_max;
        if beyond && !self.may_queue(slot, queued, bytes) {
            return Queued::OutboxFull;
        }
        let conn = self.slots.at(slot);
        let outbox = conn.outbox.get_or_insert_with(|| self.spares.take());
        outbox.make_room(bytes);
        self.outbox_bytes.add(outbox.append(|out| out.extend_from_slice(frames)));
        self.mark_dirty(slot);
        Queued::Yes
    }

    /// Whether a message of so many bytes may be queued although a bound is reached, `queued` being what the outbox
    /// would hold.
    #[cold]
    fn may_queue(&mut self, slot: u32, queued: usize, bytes: usize) -> bool {
        if queued > self.limits.outbox_bytes_max && !self.may_burst(slot, queued) {
            self.note_full(slot);
            return false;
        }
        if self.held_bytes() + bytes > self.limits.outbox_total_bytes_max {
            self.stats.limit_outbox_total.add(1);
            return self.make_outbox_room(bytes);
        }
        true
    }

    /// Whether an outbox may hold so much although it is more than its steady bound: for a while it may, since a reader
    /// that reads must have had the time to. What a turn brings for it is less than that.
    fn may_burst(&mut self, slot: u32, bytes: usize) -> bool {
        let tick = self.tick;
        let since = match &mut self.slots.at(slot).outbox {
            Some(outbox) => outbox.burst_since(tick),
            None => tick,
        };
        if tick - since >= ticks(BURST_MS) {
            self.stats.limit_outbox.add(1);
            return false;
        }
        let fits = bytes <= self.limits.outbox_burst_bytes_max;
        self.stats.limit_outbox_burst.add(u64::from(!fits));
        fits
    }

    /// At the total of all outboxes: those that take nothing give way, the one that holds most first; where all take
    /// something, those that have not been empty for as long as an outbox may be full. Returns whether there is room
    /// for `bytes` now.
    fn make_outbox_room(&mut self, bytes: usize) -> bool {
        let total_max = self.limits.outbox_total_bytes_max;
        if self.outbox_room_tick.replace(self.tick) == Some(self.tick) {
            return self.held_bytes() + bytes <= total_max;
        }
        let tick = self.tick;
        let full_ticks = ticks(self.limits.outbox_full_ms_max);
        let mut stalled = Vec::new();
        let mut lagging = Vec::new();
        let slots = &mut self.slots;
        self.slow.retain(|slot| {
            let conn = slots.at(*slot);
            let Some(outbox) = &conn.outbox else { return false };
            let Some(since) = outbox.slow_since() else { return false };
            if conn.phase == Phase::Open {
                // What is under way cannot be taken back: room comes from what is not.
                if outbox.stalled_ticks(tick) >= STALLED_TICKS {
                    stalled.push((outbox.bytes(), *slot));
                } else if tick - since >= full_ticks {
                    lagging.push((outbox.bytes(), *slot));
                }
            }
            true
        });
        let victims = if stalled.is_empty() { &mut lagging } else { &mut stalled };
        victims.sort_unstable();
        // Some more than is needed, so that not every message has to look for room.
        let target = total_max - total_max / 8;
        while self.held_bytes() + bytes > target
            && let Some((_, slot)) = victims.pop()
        {
            self.stats.evicted_outbox.add(1);
            self.discard_pending(slot);
            self.overflowed.push(slot);
            if let Some(outbox) = &mut self.slots.at(slot).outbox {
                outbox.forget_slow();
            }
        }
        self.sweep_slow();
        self.held_bytes() + bytes <= total_max
    }

    /// Bytes queued for all connections, and about as many as the kernel holds for those that have not taken theirs: it
    /// takes so many before they can be on their way.
    fn held_bytes(&self) -> usize {
        self.outbox_bytes.get() + self.slow.len() * self.limits.unsent_bytes_max as usize
    }

    /// Looks at the sends of the turn before: a peer that has not taken them by now is slow, and a clock runs until it
    /// takes more.
    pub(crate) fn look_at_flights(&mut self) {
        let tick = self.tick;
        let mut flights = std::mem::take(&mut self.flights);
        for slot in flights.drain(..) {
            let Some(outbox) = &mut self.slots.at(slot).outbox else { continue };
            if outbox.look_at_flight(tick) {
                self.note_slow(slot);
            }
        }
        self.flights = flights;
    }

    /// Puts a connection whose outbox has just become slow on the list of those, and sets its timer.
    fn note_slow(&mut self, slot: u32) {
        let deadline = self.tick + ticks(self.limits.outbox_full_ms_max);
        self.slow.push(slot);
        if self.slots.at(slot).phase == Phase::Open {
            self.wheel.arm_earlier(slot, deadline);
        }
        // The list is cleared of those that are slow no more when it has doubled.
        if self.slow.len() >= 64 && self.slow.len().is_power_of_two() {
            self.sweep_slow();
        }
    }

    /// Forgets the connections that are slow no more, and those noted twice. Returns how many are left.
    pub(crate) fn sweep_slow(&mut self) -> usize {
        let slots = &mut self.slots;
        self.slow.sort_unstable();
        self.slow.dedup();
        self.slow.retain(|slot| slots.at(*slot).outbox.as_ref().is_some_and(|outbox| outbox.slow_since().is_some()));
        self.slow.len()
    }

    /// Whether a worker's link has room for a request of so many bytes, in its own queue and in that of all.
    pub(crate) fn has_link_room(&mut self, slot: u32, bytes: usize) -> bool {
        let queued = self.slots.at(slot).outbox_bytes() + bytes;
        let fits = queued <= self.limits.link_outbox_bytes_max
            && self.held_bytes() + bytes <= self.limits.outbox_total_bytes_max;
        self.stats.limit_link_outbox.add(u64::from(!fits));
        fits
    }

    /// Bytes that may be queued for a connection: a worker's link carries what is meant for many.
    #[inline]
    fn outbox_bytes_max(&mut self, slot: u32) -> usize {
        match self.slots.at(slot).flags.has(ConnFlags::SERVICE) {
            false => self.limits.outbox_bytes_max,
            true => self.limits.link_outbox_bytes_max,
        }
    }

    /// Queues an answer to the connection's own frames. Answers may fill an outbox to twice its bound, because reading
    /// is paused when it is full, or to as much as a burst may; a connection that gets beyond is closed as too slow.
    pub(crate) fn reply(&mut self, slot: u32, write: impl FnOnce(&mut Vec<u8>)) {
        let total_max = self.limits.outbox_total_bytes_max + self.limits.outbox_total_bytes_max / 4;
        let conn = self.slots.at(slot);
        if !matches!(conn.phase, Phase::Handshake | Phase::Open) {
            return;
        }
        let queued = conn.outbox_bytes();
        if queued > 2 * self.outbox_bytes_max(slot) && !self.may_burst(slot, queued) {
            self.overflowed.push(slot);
            return;
        }
        if self.held_bytes() > total_max && !self.make_outbox_room(0) {
            self.overflowed.push(slot);
            return;
        }
        self.append(slot, write);
    }

    /// Appends to an outbox whatever its length: for the last frame of a connection.
    pub(crate) fn append(&mut self, slot: u32, write: impl FnOnce(&mut Vec<u8>)) {
        let outbox = self.slots.at(slot).outbox.get_or_insert_with(|| self.spares.take());
        self.outbox_bytes.add(outbox.append(write));
        self.mark_dirty(slot);
    }

    /// Queues an ERROR frame. `id` and `peer` are those of the frame that caused it, or 0.
    pub(crate) fn error(&mut self, slot: u32, code: Code, id: u64, peer: u64) {
        self.error_with(slot, code, (id, peer), code.text());
    }

    /// The same with a text that says more: of the frame with this id and peer.
    pub(crate) fn error_with(&mut self, slot: u32, code: Code, (id, peer): (u64, u64), text: &str) {
        self.stats.errors_sent.add(1);
        let header = Header { kind: Kind::Error, flags: 0, aux: code.as_u16(), id, peer, stamp: 0 };
        self.reply(slot, |out| encode(out, &header, text.as_bytes()));
    }

    /// Starts the clock of a full outbox, unless it runs.
    pub(crate) fn note_full(&mut self, slot: u32) {
        let (tick, full_ticks) = (self.tick, ticks(self.limits.outbox_full_ms_max));
        if let Some(outbox) = &mut self.slots.at(slot).outbox
            && outbox.note_full(tick)
        {
            self.wheel.arm_earlier(slot, tick + full_ticks);
        }
    }

    /// After the kernel took bytes: an outbox below half its bound is no longer full, and below three quarters its
    /// connection is read again.
    pub(crate) fn note_drained(&mut self, slot: u32) {
        let (tick, bytes_max) = (self.tick, self.outbox_bytes_max(slot));
        let conn = self.slots.at(slot);
        let bytes = conn.outbox_bytes();
        if let Some(outbox) = &mut conn.outbox {
            // Below half its bound it is no longer full.
            if outbox.note_progress(tick, bytes < bytes_max / 2) {
                self.redeliverable.push(slot);
            }
        }
        if conn.flags.has(ConnFlags::PAUSED) && bytes < bytes_max / 4 * 3 {
            conn.flags.clear(ConnFlags::PAUSED);
            if conn.flags.has(ConnFlags::BEHIND) {
                self.behind.push(slot);
                self.behind_ready = true;
            }
            self.mark_dirty(slot);
        }
    }

    /// Stops reading from a connection that does not take its answers.
    pub(crate) fn pause_if_full(&mut self, slot: u32) {
        let bytes_max = self.outbox_bytes_max(slot);
        let conn = self.slots.at(slot);
        if conn.phase == Phase::Open && !conn.flags.has(ConnFlags::PAUSED) && conn.outbox_bytes() > bytes_max {
            conn.flags.set(ConnFlags::PAUSED);
            self.stats.reads_paused.add(1);
            self.mark_dirty(slot);
        }
    }

    /// Begins a turn's budgets: the more connections had more than their part for the turn before, the less each may
    /// bring.
    pub(crate) fn begin_budgets(&mut self) {
        for slot in self.spenders.drain(..) {
            let conn = self.slots.at(slot);
            if conn.phase == Phase::Open {
                conn.forget_spent();
            }
        }
        let most = self.limits.turn_units_max;
        let part = TURN_UNITS / (self.behind.len() as u32 + 1);
        self.turn_units = most.min(part.try_into().unwrap_or(u16::MAX).max(TURN_UNITS_FLOOR));
    }

    /// Lets a session send one frame more than its limit on frames allows.
    pub(crate) fn grant_frame(&mut self, slot: u32) {
        self.slots.at(slot).grant_frame();
    }

    /// Messages that a session is owed found no room in its outbox: they are queued when there is some.
    pub(crate) fn owe_redelivery(&mut self, slot: u32) {
        if let Some(outbox) = (!is_remote(slot)).then(|| self.slots.at(slot).outbox.as_mut()).flatten() {
            outbox.owe_redelivery();
        }
    }

    /// Whether what was queued for a session since that tick may still be in its outbox, because it has not been empty
    /// since.
    pub(crate) fn may_hold_since(&mut self, slot: u32, tick: u32) -> bool {
        let outbox = self.slots.at(slot).outbox.as_ref();
        outbox.and_then(|outbox| outbox.slow_since()).is_some_and(|since| since <= tick)
    }

    /// Units that a connection may still bring in this turn; none while its own outbox is full. One that has not logged
    /// in brings its LOGIN.
    #[inline]
    pub(crate) fn allowance(&mut self, slot: u32) -> u32 {
        let (units, outbox_max) = (self.turn_units, self.outbox_bytes_max(slot));
        let conn = self.slots.at(slot);
        match conn.phase {
            Phase::Open if conn.outbox_bytes() > outbox_max => 0,
            Phase::Open => units.saturating_sub(conn.spent()).into(),
            _ => 1,
        }
    }

    /// Counts frames that a connection has brought, and the units they take of the turn's budget. They are a sign of
    /// life.
    #[inline]
    pub(crate) fn spend(&mut self, slot: u32, units: u32, frames: u64) {
        if frames == 0 {
            return;
        }
        self.stats.frames_in.add(frames);
        let tick = self.tick;
        self.slots.at(slot).alive_tick = tick;
        self.spend_units(slot, units);
    }

    /// Counts units of the turn's budget for what is no frame, and no sign of life.
    #[inline]
    pub(crate) fn spend_units(&mut self, slot: u32, units: u32) {
        let conn = self.slots.at(slot);
        if conn.phase == Phase::Open && units > 0 {
            if conn.spent() == 0 {
                self.spenders.push(slot);
            }
            conn.spend(u16::try_from(units).unwrap_or(u16::MAX));
        }
    }

    /// Lets a session wait for a later turn with what it has brought, because it has had its part of this one, or
    /// because of where that goes ([`Flow::Wait`]), or until it is told to go on ([`Flow::Hold`]).
    pub(crate) fn fall_behind(&mut self, slot: u32, flow: Flow) {
        let (units, tick) = (self.turn_units, self.tick);
        let conn = self.slots.at(slot);
        if conn.phase != Phase::Open || conn.flags.has(ConnFlags::BEHIND) {
            return;
        }
        conn.flags.set(ConnFlags::BEHIND);
        self.stats.reads_behind.add(1);
        if conn.spent() >= units {
            self.stats.limit_turn.add(1);
            if !conn.flags.has(ConnFlags::FLOODS) {
                conn.flags.set(ConnFlags::FLOODS);
                self.floods += 1;
                // It is over when the connection is quiet again.
                self.wheel.arm_earlier(slot, tick + ticks(self.limits.hot_idle_ms));
            }
        }
        if !conn.flags.has(ConnFlags::PAUSED) && flow != Flow::Hold {
            self.behind.push(slot);
            self.behind_ready |= flow == Flow::On;
        }
        self.mark_dirty(slot);
    }

    /// What a session waited for has come ([`Flow::Hold`]): it goes on in the next turn.
    pub(crate) fn go_on(&mut self, slot: u32) {
        let flags = self.slots.at(slot).flags;
        if flags.has(ConnFlags::BEHIND) && !flags.has(ConnFlags::PAUSED) && !self.behind.contains(&slot) {
            self.behind.push(slot);
            self.behind_ready = true;
        }
    }

    /// Takes the sessions whose turn it is now.
    pub(crate) fn take_behind(&mut self) -> Vec<u32> {
        self.behind_ready = false;
        std::mem::take(&mut self.behind)
    }

    /// Whether sessions can go on in the next turn.
    pub(crate) fn is_behind(&self) -> bool {
        self.behind_ready
    }

    /// Whether sessions wait for the next turn, or for another shard.
    pub(crate) fn anybody_waits(&self) -> bool {
        !self.behind.is_empty()
    }

    /// A session floods no more.
    pub(crate) fn forget_flood(&mut self, slot: u32) {
        let flags = &mut self.slots.at(slot).flags;
        if flags.has(ConnFlags::FLOODS) {
            flags.clear(ConnFlags::FLOODS);
            self.floods -= 1;
        }
    }

    /// Whether a hot session may be read by a multishot receive, which takes many receive buffers at once from one that
    /// floods.
    pub(crate) fn may_be_multishot(&mut self, slot: u32) -> bool {
        let scarce = self.floods > FLOODS_HOT_MAX || self.partial_bytes.get() > self.limits.partial_total_bytes_max / 2;
        !(scarce && self.slots.at(slot).flags.has(ConnFlags::FLOODS))
    }

    /// Takes the frames that are queued and not under way. What stands between records of TLS stays: the peer could
    /// open none of what comes behind without it.
    pub(crate) fn take_pending(&mut self, slot: u32) -> Vec<u8> {
        let conn = self.slots.at(slot);
        let layered = conn.wire.has(Wire::LAYERED);
        let Some(outbox) = &mut conn.outbox else { return Vec::new() };
        let pending = outbox.take_pending(|pending| if layered { layers(pending) } else { Vec::new() });
        self.outbox_bytes.sub(pending.len() - outbox.pending().len());
        pending
    }

    /// Throws away what is queued and not under way, counting the messages among it.
    pub(crate) fn discard_pending(&mut self, slot: u32) {
        if let Some(outbox) = &mut self.slots.at(slot).outbox {
            let (bytes, messages) = outbox.discard_pending();
            self.stats.copies_unsent.add(messages);
            self.outbox_bytes.sub(bytes);
        }
    }

    /// Keeps bytes until the rest of their frame comes, or their turn. At the bound of all, others give way, see
    /// [`Links::partial_victim`].
    pub(crate) fn keep_partial(&mut self, slot: u32, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let partial = self.slots.at(slot).partial.get_or_insert_default();
        partial.extend_from_slice(bytes);
        let (before, now) = (partial.len() - bytes.len(), partial.len());
        self.note_partial(slot, before, now);
    }

    /// Puts bytes back that were taken from a connection's `partial`.
    #[allow(clippy::box_collection)]
    pub(crate) fn put_partial(&mut self, slot: u32, partial: Box<Vec<u8>>) {
        let len = partial.len();
        self.slots.at(slot).partial = Some(partial);
        self.note_partial(slot, 0, len);
    }

    /// Counts what a connection holds now, and notes who it is.
    fn note_partial(&mut self, slot: u32, before: usize, now: usize) {
        self.partial_bytes.add(now - before);
        let phase = self.slots.at(slot).phase;
        if phase == Phase::Handshake && before == 0 {
            let id = self.slots.id(slot);
            self.strangers.push_back(id);
            // Those that are strangers no more are forgotten from time to time.
            if self.strangers.len() >= 64 && self.strangers.len().is_power_of_two() {
                let slots = &mut self.slots;
                self.strangers.retain(|id| slots.get(*id).is_some_and(holds_as_stranger));
            }
        }
        if now >= PARTIAL_MUCH_BYTES && (before < PARTIAL_MUCH_BYTES || phase == Phase::Handshake) {
            self.note_holder(slot);
        }
    }

    fn note_holder(&mut self, slot: u32) {
        self.holders.push(slot);
        if self.holders.len() >= 64 && self.holders.len().is_power_of_two() {
            let (slots, wrappings) = (&mut self.slots, &self.wrappings);
            self.holders.sort_unstable();
            self.holders.dedup();
            self.holders.retain(|slot| held(slots.at(*slot), wrappings, *slot) >= PARTIAL_MUCH_BYTES);
        }
    }

    /// Notes a connection that holds the beginning of a record, if that is much.
    pub(crate) fn note_held(&mut self, slot: u32) {
        if held(self.slots.at(slot), &self.wrappings, slot) >= PARTIAL_MUCH_BYTES {
            self.note_holder(slot);
        }
    }

    /// Whether more is kept of frames than the shard may keep.
    pub(crate) fn has_too_many_partials(&self) -> bool {
        self.partial_bytes.get() > self.limits.partial_total_bytes_max
    }

    /// Who gives way when more is kept than the shard may keep: the oldest connection without LOGIN, else the one that
    /// holds most, else `asker`.
    pub(crate) fn partial_victim(&mut self, asker: u32) -> u32 {
        while let Some(id) = self.strangers.pop_front() {
            if self.slots.get(id).is_some_and(holds_as_stranger) {
                return id.slot;
            }
        }
        let (slots, wrappings) = (&mut self.slots, &self.wrappings);
        let mut held = |slot: u32| held(slots.at(slot), wrappings, slot);
        self.holders.retain(|slot| held(*slot) >= PARTIAL_MUCH_BYTES);
        let most = self.holders.iter().copied().max_by_key(|slot| held(*slot));
        most.filter(|slot| held(*slot) > held(asker)).unwrap_or(asker)
    }

    /// Takes the kept beginning of a frame.
    #[allow(clippy::box_collection)]
    pub(crate) fn take_partial(&mut self, slot: u32) -> Option<Box<Vec<u8>>> {
        let conn = self.slots.at(slot);
        conn.flags.clear(ConnFlags::BEHIND);
        let partial = conn.partial.take()?;
        self.partial_bytes.sub(partial.len());
        Some(partial)
    }

    /// Arms the timer of an open session for whatever is due first.
    pub(crate) fn arm_session(&mut self, slot: u32, inboxes: &mut Inboxes) {
        let limits = &self.limits;
        let conn = self.slots.at(slot);
        let mut next = conn.ping_tick().unwrap_or_else(|| idle_tick(conn));
        if conn.flags.has(ConnFlags::PAUSED) {
            // Silence of a connection that is not read says nothing; its full outbox has a clock of its own.
            next = next.max(self.tick + 1);
        }
        if let Some(since) = conn.outbox.as_ref().and_then(|outbox| outbox.too_slow_since()) {
            next = next.min(since + ticks(limits.outbox_full_ms_max));
        }
        if conn.flags.has(ConnFlags::HOT) {
            next = next.min(conn.cold_tick(ticks(limits.hot_idle_ms)));
        }
        if let Some(sent) = inboxes.oldest_sent(conn.user) {
            next = next.min(sent + ticks(limits.redeliver_ms));
        }
        if let Some(look) = self.tokens.look_tick(slot, self.tick) {
            next = next.min(look);
        }
        self.wheel.arm(slot, next);
    }

    /// Nothing is left of connections that are gone; so many, to other nodes, are there.
    #[cfg(test)]
    pub(super) fn assert_empty(&self, shard: u16, nodes: u32) {
        assert_eq!(self.slots.in_use(), nodes, "shard {shard}: slots in use");
        assert_eq!(self.outbox_bytes.get(), 0, "shard {shard}: outbox bytes");
        assert_eq!(self.partial_bytes.get(), 0, "shard {shard}: bytes of half-received frames");
        assert_eq!(self.wrappings.len(), 0, "shard {shard}: parts of messages of WebSockets");
        let tls = (self.tls.sessions.len(), self.tls.shaking());
        assert_eq!(tls, (0, 0), "shard {shard}: keys and handshakes of TLS");
        assert!(self.dirty.is_empty() && self.overflowed.is_empty(), "shard {shard}: lists of a turn");
        for slot in 0..self.slots.high_water() {
            assert_eq!(self.wheel.deadline(slot), None, "shard {shard}: timer of free slot {slot}");
        }
    }
}

/// Units that a frame of so many bytes takes of a turn's budget.
#[inline]
pub(crate) const fn frame_units(bytes: usize) -> u32 {
    1 + (bytes / UNIT_BYTES) as u32
}

/// Whether a connection holds a part of a frame, or a token, and has not logged in.
fn holds_as_stranger(conn: &mut Conn) -> bool {
    conn.phase == Phase::Handshake && (conn.partial.is_some() || conn.wire.has(Wire::REMEMBERED))
}

/// Bytes that a connection holds of frames, and of what they come in.
fn held(conn: &Conn, wrappings: &Wrappings, slot: u32) -> usize {
    let wrapped = if conn.wire.has(Wire::REMEMBERED) { wrappings.held(slot) } else { 0 };
    conn.partial.as_ref().map_or(0, |partial| partial.len()) + wrapped
}

/// Tick at which a session has been silent for two heartbeats.
pub(crate) fn idle_tick(conn: &Conn) -> u32 {
    conn.alive_tick + ticks(2_000 * u64::from(conn.heartbeat_secs()))
}
