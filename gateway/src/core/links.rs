//! The connections of a shard and what is queued for them: everything below users and messages.

use super::tokens::Tokens;
use crate::conn::{Conn, ConnFlags, Phase, Slots};
use crate::inbox::Inboxes;
use crate::limits::Limits;
use crate::metrics::ShardStats;
use crate::outbox::{SpareOutboxes, unsent_messages};
use crate::wheel::TimerWheel;
use std::sync::Arc;
use trunkline_proto::{Code, Header, Kind, encode, encoded_len};

/// Length of a tick. All deadlines are whole ticks: the shortest, two seconds, is then off by 5 % at most.
pub(crate) const TICK_MS: u64 = 100;

/// Ticks in this many milliseconds, at least one.
pub(crate) const fn ticks(ms: u64) -> u32 {
    let ticks = ms.div_ceil(TICK_MS);
    if ticks == 0 { 1 } else { ticks as u32 }
}

/// Whether a frame found room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queued {
    Yes,
    OutboxFull,
}

/// Connection table, outboxes and timers of a shard.
pub(crate) struct Links {
    pub(crate) limits: Limits,
    pub(crate) stats: Arc<ShardStats>,
    pub(crate) slots: Slots,
    pub(crate) wheel: TimerWheel,
    /// When sessions end with their token.
    pub(crate) tokens: Tokens,
    pub(crate) spares: SpareOutboxes,
    /// Connections to flush at the end of the turn.
    pub(crate) dirty: Vec<u32>,
    /// Connections whose replies no longer fit; they are closed at the end of the turn.
    pub(crate) overflowed: Vec<u32>,
    pub(crate) outbox_bytes: usize,
    pub(crate) partial_bytes: usize,
    pub(crate) tick: u32,
}

impl Links {
    pub(crate) fn new(limits: Limits, stats: Arc<ShardStats>) -> Self {
        Links {
            slots: Slots::new(limits.slots()),
            wheel: TimerWheel::new(limits.slots()),
            tokens: Tokens::new(limits.slots()),
            spares: SpareOutboxes::default(),
            dirty: Vec::new(),
            overflowed: Vec::new(),
            outbox_bytes: 0,
            partial_bytes: 0,
            tick: 0,
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
        let conn = self.slots.at(slot);
        let queued = conn.outbox_bytes();
        if queued + bytes > self.limits.outbox_bytes_max {
            self.stats.limit_outbox.add(1);
            self.note_full(slot);
            return Queued::OutboxFull;
        }
        if self.outbox_bytes + bytes > self.limits.outbox_total_bytes_max {
            self.stats.limit_outbox_total.add(1);
            return Queued::OutboxFull;
        }
        let outbox = conn.outbox.get_or_insert_with(|| self.spares.take());
        encode(&mut outbox.pending, header, payload);
        self.outbox_bytes += bytes;
        self.mark_dirty(slot);
        Queued::Yes
    }

    /// Queues an answer to the connection's own frames. Answers may fill an outbox to twice its bound, because reading is paused when it is
    /// half full; a connection that gets beyond is closed as too slow.
    pub(crate) fn reply(&mut self, slot: u32, write: impl FnOnce(&mut Vec<u8>)) {
        let total_max = self.limits.outbox_total_bytes_max + self.limits.outbox_total_bytes_max / 4;
        let conn = self.slots.at(slot);
        if !matches!(conn.phase, Phase::Handshake | Phase::Open) {
            return;
        }
        if conn.outbox_bytes() > 2 * self.limits.outbox_bytes_max || self.outbox_bytes > total_max {
            self.overflowed.push(slot);
            return;
        }
        self.append(slot, write);
    }

    /// Appends to an outbox whatever its length: for the last frame of a connection.
    pub(crate) fn append(&mut self, slot: u32, write: impl FnOnce(&mut Vec<u8>)) {
        let outbox = self.slots.at(slot).outbox.get_or_insert_with(|| self.spares.take());
        let before = outbox.pending.len();
        write(&mut outbox.pending);
        self.outbox_bytes += outbox.pending.len() - before;
        self.mark_dirty(slot);
    }

    /// Queues an ERROR frame. `id` and `peer` are those of the frame that caused it, or 0.
    pub(crate) fn error(&mut self, slot: u32, code: Code, id: u64, peer: u64) {
        self.stats.errors_sent.add(1);
        let header = Header { kind: Kind::Error, flags: 0, aux: code.as_u16(), id, peer, stamp: 0 };
        self.reply(slot, |out| encode(out, &header, code.text().as_bytes()));
    }

    /// Starts the clock of a full outbox, unless it runs.
    pub(crate) fn note_full(&mut self, slot: u32) {
        let (tick, full_ticks) = (self.tick, ticks(self.limits.outbox_full_ms_max));
        if let Some(outbox) = &mut self.slots.at(slot).outbox
            && outbox.full_since.is_none()
        {
            outbox.full_since = Some(tick);
            self.wheel.arm_earlier(slot, tick + full_ticks);
        }
    }

    /// After the kernel took bytes: an outbox below half its bound is no longer full, and below a quarter its connection is read again.
    pub(crate) fn note_drained(&mut self, slot: u32) {
        let bytes_max = self.limits.outbox_bytes_max;
        let conn = self.slots.at(slot);
        let bytes = conn.outbox_bytes();
        if bytes < bytes_max / 2
            && let Some(outbox) = &mut conn.outbox
            && !(conn.flags.has(ConnFlags::PAUSED) && bytes >= bytes_max / 4)
        {
            outbox.full_since = None;
        }
        if conn.flags.has(ConnFlags::PAUSED) && bytes < bytes_max / 4 {
            conn.flags.clear(ConnFlags::PAUSED);
            self.mark_dirty(slot);
        }
    }

    /// Stops reading from a connection that does not take its answers.
    pub(crate) fn pause_if_full(&mut self, slot: u32) {
        let conn = self.slots.at(slot);
        if conn.phase == Phase::Open
            && !conn.flags.has(ConnFlags::PAUSED)
            && conn.outbox_bytes() > self.limits.outbox_bytes_max / 2
        {
            conn.flags.set(ConnFlags::PAUSED);
            self.stats.reads_paused.add(1);
            self.note_full(slot);
            self.mark_dirty(slot);
        }
    }

    /// Throws away what is queued and not under way, counting the messages among it.
    pub(crate) fn discard_pending(&mut self, slot: u32) {
        if let Some(outbox) = &mut self.slots.at(slot).outbox {
            self.stats.copies_unsent.add(unsent_messages(&outbox.pending, 0));
            self.outbox_bytes -= outbox.pending.len();
            outbox.pending.clear();
        }
    }

    /// Keeps the beginning of a frame until its rest comes. False when the shard's bound for such bytes is reached.
    pub(crate) fn keep_partial(&mut self, slot: u32, bytes: &[u8]) -> bool {
        if bytes.is_empty() {
            return true;
        }
        if self.partial_bytes + bytes.len() > self.limits.partial_total_bytes_max {
            self.stats.limit_partial.add(1);
            return false;
        }
        self.partial_bytes += bytes.len();
        self.slots.at(slot).partial.get_or_insert_default().extend_from_slice(bytes);
        true
    }

    /// Takes the kept beginning of a frame.
    #[allow(clippy::box_collection)]
    pub(crate) fn take_partial(&mut self, slot: u32) -> Option<Box<Vec<u8>>> {
        let partial = self.slots.at(slot).partial.take()?;
        self.partial_bytes -= partial.len();
        Some(partial)
    }

    /// Arms the timer of an open session for whatever is due first.
    pub(crate) fn arm_session(&mut self, slot: u32, inboxes: &mut Inboxes) {
        let limits = &self.limits;
        let conn = self.slots.at(slot);
        let mut next = idle_tick(conn);
        if conn.flags.has(ConnFlags::PAUSED) {
            // Silence of a connection that is not read says nothing; its full outbox has a clock of its own.
            next = next.max(self.tick + 1);
        }
        if let Some(since) = conn.outbox.as_ref().and_then(|outbox| outbox.full_since) {
            next = next.min(since + ticks(limits.outbox_full_ms_max));
        }
        if conn.flags.has(ConnFlags::HOT) {
            next = next.min(conn.traffic_tick + ticks(limits.hot_idle_ms));
        }
        if let Some(sent) = inboxes.oldest_sent(conn.user) {
            next = next.min(sent + ticks(limits.redeliver_ms));
        }
        if let Some(look) = self.tokens.look_tick(slot, self.tick) {
            next = next.min(look);
        }
        self.wheel.arm(slot, next);
    }
}

/// Tick at which a session has been silent for two heartbeats.
pub(crate) fn idle_tick(conn: &Conn) -> u32 {
    conn.alive_tick + ticks(2_000 * u64::from(conn.heartbeat_secs))
}
