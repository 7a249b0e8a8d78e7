//! The stream of one link: records in order, without loss and without doubles, over one TCP connection after the other.
//!
//! # What is kept, and who owns it
//!
//! Records are encoded once, into the chunk they are sent with; a chunk is one batch frame in one buffer, and that
//! buffer is also what is sent again. [`Link::take_send`] lends it to the ring and [`Link::sent`] takes it back;
//! meanwhile the ring owns it alone, and the link touches neither its bytes nor its memory. The chunk keeps the buffer
//! until the peer has confirmed every record in it. One buffer is lent at a time, so a connection has one send under
//! way, and what is queued meanwhile shares the next one.
//!
//! # Streams
//!
//! A stream has an id and numbers its records from 0, each direction for itself. It goes on over a reconnect when both
//! sides still have it; then chunks are sent again from the record the peer expects. It ends when either side has lost
//! it (its node was started anew), after a violation, or by [`Link::end_stream`]: then every record that was not
//! confirmed is given back by [`Link::take_some_unconfirmed`]. The one case in which a record is both received and given
//! back: the peer had it and its confirmation had not come when the stream ended.
//!
//! # Bounds
//!
//! Records are refused beyond `bytes_max`, control records beyond `bytes_max + reserve_bytes`. What counts is all the
//! link holds: queued, lent, sent and not confirmed, and ended but not yet given back. Buffers may be larger than what
//! they hold, by at most as much again and 256 KiB in all; up to [`SPARES_MAX`] of 128 KiB each are kept for half a
//! second, for the next ones of a burst.

mod chunk;
#[cfg(test)]
mod tests;

use super::handshake::ResumeState;
use super::wire::{Entry, Inbound, MeshViolation, Record, Unit, goodbye_frame, heartbeat_frame};
use crate::metrics::Times;
use chunk::Chunk;
use std::collections::VecDeque;

/// A heartbeat goes out this long after the one before. It does so under load too: only heartbeats measure the round
/// trip.
pub(crate) const HEARTBEAT_MS: u64 = 500;
/// A peer from which no byte came for so long is dead: five heartbeats lost, with one to spare.
pub(crate) const DEAD_AFTER_MS: u64 = 3_000;
/// Received records are confirmed at the latest after this time, or this many bytes.
pub(crate) const ACK_DELAY_MS: u64 = 50;
pub(crate) const ACK_BYTES: usize = 256 << 10;
/// Bounds of the delay before the next attempt to connect.
pub(crate) const RECONNECT_MS_MIN: u64 = 50;
pub(crate) const RECONNECT_MS_MAX: u64 = 2_000;
/// A chunk takes no further record beyond this: what one send carries, sealed or not, and what has to be sent again at
/// most for one lost byte. A buffer of that length is taken again for the next one, and need not grow by being copied.
const CHUNK_BYTES_MAX: usize = (128 << 10) - 512;
const _: () = assert!(CHUNK_BYTES_MAX <= super::wire::RECORD_BYTES_MAX);
// Sealed it is eight records, and 128 KiB.
const _: () = assert!(CHUNK_BYTES_MAX + super::wire::BATCH_HEADER_BYTES <= 8 * super::seal::SEND_BYTES);
/// Buffers of confirmed chunks that are kept for the next ones, until a heartbeat.
const SPARES_MAX: usize = 4;
/// Smaller ones are not worth it.
const SPARE_BYTES_MIN: usize = 16 << 10;

/// Bounds of one link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkLimits {
    /// Bytes held for the peer, beyond which messages are refused.
    pub(crate) bytes_max: usize,
    /// Bytes above that for control records.
    pub(crate) reserve_bytes: usize,
}

/// Why a record was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkFull {
    /// The link holds as many bytes as it may.
    Bytes,
    /// The record is longer than any link takes.
    RecordTooLong,
}

/// Whether a stream outlived the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resumed {
    /// It goes on.
    Same,
    /// A new one began: see [`Link::take_some_unconfirmed`], and register again what the peer no longer knows.
    Anew,
}

/// A send for the connection: `buf[offset..]`. The buffer goes back with [`Link::sent`], whatever became of it.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) buf: Vec<u8>,
    pub(crate) offset: usize,
}

/// Numbers of a link, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkStats {
    /// Records queued, and their bytes.
    pub(crate) records_out: u64,
    pub(crate) bytes_out: u64,
    /// Records handed out, and their bytes.
    pub(crate) records_in: u64,
    pub(crate) bytes_in: u64,
    /// Records sent again after a reconnect.
    pub(crate) resent: u64,
    /// Records refused at the bound.
    pub(crate) refused: u64,
    /// Records that came again and were dropped.
    pub(crate) duplicates: u64,
    /// Records of a kind this version does not know.
    pub(crate) unknown: u64,
    /// Records given back when a stream ended.
    pub(crate) given_back: u64,
    /// Connections after the first.
    pub(crate) reconnects: u64,
    /// Bytes held for the peer, now.
    pub(crate) unconfirmed_bytes: u64,
    /// Smoothed round trip in microseconds, in steps of the clock's millisecond; 0 until it was measured.
    pub(crate) rtt_us: u64,
    /// Every round trip measured.
    pub(crate) times: Times,
}

/// What there is while a connection is up.
#[derive(Debug)]
struct Connection {
    /// Time of the latest byte received.
    heard_ms: u64,
    /// Time of the latest heartbeat sent.
    heartbeat_ms: u64,
    goodbye_sent: bool,
}

/// What the ring has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lent {
    Nothing,
    /// The buffer of the chunk that is marked, sent from this offset on.
    Chunk {
        offset: usize,
    },
    /// A frame that is not kept.
    Frame {
        offset: usize,
    },
}

/// What is left of a send that the kernel took in part.
#[derive(Debug)]
struct Rest {
    buf: Vec<u8>,
    offset: usize,
    of_chunk: bool,
}

fn is_easy_with(bytes: usize, bytes_max: usize, was_easy: bool) -> bool {
    bytes <= if was_easy { bytes_max / 2 } else { 3 * (bytes_max / 8) }
}

/// One link, on the shard that has it. It outlives its connections.
#[derive(Debug)]
pub(crate) struct Link {
    limits: LinkLimits,
    stream: u64,

    /// Chunks that are not confirmed, in order. The last one is open to more records until it is first sent.
    chunks: VecDeque<Chunk>,
    /// How many of them the present connection has been given.
    handed_out: usize,
    /// Number of the next record queued; of the first never lent to the ring; of the first not confirmed.
    next_seq: u64,
    sent_end: u64,
    confirmed: u64,
    /// Chunks of ended streams, not given back yet.
    ended: VecDeque<Chunk>,
    /// What all chunks take, for the bound.
    bytes: usize,
    chunk_hint: usize,
    spares: Vec<Vec<u8>>,
    lent: Lent,
    /// The ring's buffer was lent to a connection that is gone.
    lent_stale: bool,
    rest: Option<Rest>,

    inbound: Inbound,
    /// Number of the next record expected, and of the next one in the batch that is being read.
    expected: u64,
    batch_seq: u64,
    /// When what was received has to be confirmed, and how many bytes of it there are.
    ack_due_ms: Option<u64>,
    ack_bytes: usize,
    /// The peer's latest heartbeat, to be echoed: its time and when it came.
    echo: Option<(u64, u64)>,

    connection: Option<Connection>,
    was_connected: bool,
    /// Attempts to connect since the last byte was received.
    attempts: u32,
    goodbye: Option<u16>,
    peer_goodbye: Option<u16>,
    stats: LinkStats,
}

impl Link {
    pub(crate) fn new(limits: LinkLimits) -> Self {
        Link {
            limits,
            stream: 0,
            chunks: VecDeque::new(),
            handed_out: 0,
            next_seq: 0,
            sent_end: 0,
            confirmed: 0,
            ended: VecDeque::new(),
            bytes: 0,
            chunk_hint: 0,
            spares: Vec::new(),
            lent: Lent::Nothing,
            lent_stale: false,
            rest: None,
            inbound: Inbound::default(),
            expected: 0,
            batch_seq: 0,
            ack_due_ms: None,
            ack_bytes: 0,
            echo: None,
            connection: None,
            was_connected: false,
            attempts: 0,
            goodbye: None,
            peer_goodbye: None,
            stats: LinkStats::default(),
        }
    }

    /// Adds a record to the stream, connected or not.
    ///
    /// # Errors
    /// [`LinkFull`]; what becomes of the record is the caller's to decide and to count.
    #[inline]
    pub(crate) fn queue(&mut self, record: &impl Entry) -> Result<(), LinkFull> {
        if !record.fits() {
            self.stats.refused += 1;
            return Err(LinkFull::RecordTooLong);
        }
        let len = record.encoded_len();
        let open = self.chunks.back().is_some_and(|chunk| chunk.takes(len));
        let cost = len + if open { 0 } else { Chunk::OVERHEAD_BYTES };
        let reserve = if record.is_control() { self.limits.reserve_bytes } else { 0 };
        if self.bytes + cost > self.limits.bytes_max + reserve {
            self.stats.refused += 1;
            return Err(LinkFull::Bytes);
        }
        if !open {
            let buf = match len.max(self.chunk_hint) > SPARE_BYTES_MIN {
                true => self.spares.pop().unwrap_or_default(),
                false => Vec::new(),
            };
            self.chunks.push_back(Chunk::new(self.next_seq, buf, len.max(self.chunk_hint)));
        }
        if let Some(chunk) = self.chunks.back_mut() {
            chunk.push(record);
        }
        self.next_seq += 1;
        self.bytes += cost;
        self.stats.records_out += 1;
        self.stats.bytes_out += len as u64;
        Ok(())
    }

    /// The next send: what was queued as one batch, or a confirmation or heartbeat that is due. `None` while the ring
    /// has a buffer, also one of the connection before, and when there is nothing to say.
    pub(crate) fn take_send(&mut self, now_ms: u64) -> Option<Outgoing> {
        if self.lent != Lent::Nothing || self.connection.is_none() {
            return None;
        }
        if let Some(Rest { buf, offset, of_chunk }) = self.rest.take() {
            self.lent = if of_chunk { Lent::Chunk { offset } } else { Lent::Frame { offset } };
            return Some(Outgoing { buf, offset });
        }
        if self.handed_out < self.chunks.len() {
            return Some(self.take_chunk());
        }
        let connection = self.connection.as_mut()?;
        let frame = if let Some(reason) = self.goodbye {
            if std::mem::replace(&mut connection.goodbye_sent, true) {
                return None;
            }
            goodbye_frame(reason)
        } else if now_ms >= connection.heartbeat_ms + HEARTBEAT_MS || self.ack_due_ms.is_some_and(|due| now_ms >= due) {
            connection.heartbeat_ms = now_ms;
            self.spares.clear();
            let echo =
                self.echo.take().map_or(0, |(sent_ms, came_ms)| sent_ms.saturating_add(now_ms.saturating_sub(came_ms)));
            self.ack_told();
            heartbeat_frame(self.expected, now_ms, echo)
        } else {
            return None;
        };
        self.lent = Lent::Frame { offset: 0 };
        Some(Outgoing { buf: frame, offset: 0 })
    }

    fn take_chunk(&mut self) -> Outgoing {
        let (ack, confirmed) = (self.expected, self.confirmed);
        let chunk = &mut self.chunks[self.handed_out];
        if chunk.sent {
            self.stats.resent += chunk.end().saturating_sub(chunk.first.max(confirmed));
        } else {
            // The next chunk is probably like this one; after a burst the guess halves with each chunk.
            self.chunk_hint = chunk.bytes().max(self.chunk_hint / 2).min(CHUNK_BYTES_MAX);
        }
        let (buf, offset) = chunk.lend(confirmed, ack);
        self.sent_end = self.sent_end.max(chunk.end());
        self.handed_out += 1;
        self.lent = Lent::Chunk { offset };
        self.ack_told();
        Outgoing { buf, offset }
    }

    fn ack_told(&mut self) {
        self.ack_due_ms = None;
        self.ack_bytes = 0;
    }

    /// Takes the buffer of a send back, of which the connection took `taken` bytes (0 if it failed). What is left comes
    /// again from
    /// [`Link::take_send`].
    pub(crate) fn sent(&mut self, buf: Vec<u8>, taken: usize) {
        let (offset, of_chunk) = match std::mem::replace(&mut self.lent, Lent::Nothing) {
            Lent::Nothing => return,
            Lent::Chunk { offset } => (offset + taken, true),
            Lent::Frame { offset } => (offset + taken, false),
        };
        let stale = std::mem::take(&mut self.lent_stale);
        if offset < buf.len() && !stale {
            self.rest = Some(Rest { buf, offset, of_chunk });
        } else if of_chunk {
            self.give_back(buf);
        }
    }

    /// Puts the buffer that was lent back into its chunk.
    fn give_back(&mut self, buf: Vec<u8>) {
        let newest = self.handed_out.saturating_sub(1);
        let chunk = match self.chunks.get_mut(newest) {
            Some(chunk) if chunk.is_lent() => Some(chunk),
            _ => self.chunks.iter_mut().chain(&mut self.ended).find(|chunk| chunk.is_lent()),
        };
        if let Some(chunk) = chunk {
            chunk.put_back(buf);
        }
        self.free_confirmed();
    }

    /// Frees the chunks whose records are all confirmed, up to one the ring still has.
    fn free_confirmed(&mut self) {
        while let Some(chunk) = self.chunks.front() {
            if chunk.end() > self.confirmed || chunk.is_lent() {
                break;
            }
            self.bytes -= chunk.cost();
            if let Some(chunk) = self.chunks.pop_front() {
                let buf = chunk.into_buf();
                let kept = SPARE_BYTES_MIN..=256 << 10;
                if self.spares.len() < SPARES_MAX && kept.contains(&buf.capacity()) {
                    self.spares.push(buf);
                }
            }
            self.handed_out = self.handed_out.saturating_sub(1);
        }
    }

    /// Takes bytes of the connection and hands out the records in them that are new.
    ///
    /// # Errors
    /// What the peer did wrong. The link is disconnected and its stream has ended then; the connection is to be closed.
    pub(crate) fn received(
        &mut self,
        bytes: &[u8],
        now_ms: u64,
        mut each: impl FnMut(Record<'_>),
    ) -> Result<(), MeshViolation> {
        let Some(mut inbound) = self.begin_receive(now_ms) else { return Ok(()) };
        let result = inbound.feed(bytes, |unit| {
            if let Some(record) = self.accept(unit, now_ms)? {
                each(record);
            }
            Ok(())
        });
        self.end_receive(inbound, &result);
        result
    }

    /// The beginning of [`Link::received`] for a caller whose handling of a record may queue others on this very link:
    /// hands out what is to be fed with the bytes; each unit goes to [`Link::accept`], and [`Link::end_receive`] ends
    /// it. `None` when there is no connection.
    pub(crate) fn begin_receive(&mut self, now_ms: u64) -> Option<Inbound> {
        self.connection.as_mut()?.heard_ms = now_ms;
        self.attempts = 0;
        Some(std::mem::take(&mut self.inbound))
    }

    /// Takes the inbound half back. After a violation the stream has ended.
    pub(crate) fn end_receive(&mut self, inbound: Inbound, result: &Result<(), MeshViolation>) {
        self.inbound = inbound;
        if result.is_err() {
            self.end_stream();
        }
    }

    /// Takes one unit of the connection; returns the record in it if it is new.
    ///
    /// # Errors
    /// What the peer did wrong.
    #[inline]
    pub(crate) fn accept<'u>(&mut self, unit: Unit<'u>, now_ms: u64) -> Result<Option<Record<'u>>, MeshViolation> {
        match unit {
            Unit::Record(record) => {
                if self.takes(record.encoded_len(), now_ms) {
                    return Ok(Some(record));
                }
            }
            Unit::UnknownRecord { bytes } => {
                if self.is_new(bytes as usize, now_ms) {
                    self.stats.unknown += 1;
                }
            }
            Unit::Batch { seq, ack, .. } => {
                self.confirm(ack)?;
                if seq > self.expected {
                    return Err(MeshViolation::Gap { expected: self.expected, seq });
                }
                self.batch_seq = seq;
            }
            Unit::Heartbeat { ack, sent_ms, echo_ms } => {
                self.confirm(ack)?;
                self.echo = Some((sent_ms, now_ms));
                if echo_ms != 0 {
                    self.measure(now_ms, echo_ms);
                }
            }
            Unit::Goodbye { reason } => self.peer_goodbye = Some(reason),
        }
        Ok(None)
    }

    /// Counts a record of so many bytes that has come; false for one that has been received before.
    #[inline]
    pub(crate) fn takes(&mut self, len: usize, now_ms: u64) -> bool {
        let new = self.is_new(len, now_ms);
        if new {
            self.stats.records_in += 1;
            self.stats.bytes_in += len as u64;
        }
        new
    }

    /// Counts a record of the batch; false for one that has been received before.
    #[inline]
    fn is_new(&mut self, bytes: usize, now_ms: u64) -> bool {
        self.ack_bytes += bytes;
        let due = if self.ack_bytes >= ACK_BYTES { now_ms } else { now_ms + ACK_DELAY_MS };
        self.ack_due_ms = Some(self.ack_due_ms.map_or(due, |before| before.min(due)));
        let new = self.batch_seq == self.expected;
        self.batch_seq += 1;
        if new {
            self.expected += 1;
        } else {
            self.stats.duplicates += 1;
        }
        new
    }

    /// The peer expects this record next: it has all before it.
    fn confirm(&mut self, ack: u64) -> Result<(), MeshViolation> {
        if ack > self.sent_end {
            return Err(MeshViolation::AckBeyondSent { ack, sent: self.sent_end });
        }
        if ack > self.confirmed {
            self.confirmed = ack;
            self.free_confirmed();
        }
        Ok(())
    }

    /// RFC 6298's smoothing of the round trip; an echo of a time that has not been is ignored.
    fn measure(&mut self, now_ms: u64, echo_ms: u64) {
        let Some(sample_ms) = now_ms.checked_sub(echo_ms) else { return };
        let sample_us = sample_ms.saturating_mul(1_000).max(1);
        self.stats.times.observe(sample_ms.saturating_mul(1_000));
        let before = self.stats.rtt_us;
        self.stats.rtt_us = if before == 0 { sample_us } else { before - before / 8 + sample_us / 8 };
    }

    /// Where this side is in the stream: for the dialer's part of a handshake. To be asked for once the former
    /// connection has ended.
    pub(crate) fn resume_state(&self) -> ResumeState {
        ResumeState { stream: self.stream, expected: self.expected }
    }

    /// The acceptor's answer to a dialer: the stream goes on if both are in the same one, else a new one begins with
    /// the random id `fresh`.
    pub(crate) fn answer(&self, claim: ResumeState, fresh: u64) -> ResumeState {
        if claim.stream != 0 && claim.stream == self.stream && claim.expected <= self.sent_end {
            return self.resume_state();
        }
        // Not 0, which stands for none, and neither side's former stream.
        let fresh = (fresh..=u64::MAX).chain(1..).find(|id| ![0, claim.stream, self.stream].contains(id));
        ResumeState { stream: fresh.unwrap_or(1), expected: 0 }
    }

    /// A handshake has succeeded with this result. A connection the link still had is forgotten.
    ///
    /// # Errors
    /// The peer expects a record that was never sent. The stream has ended then; the connection is to be closed.
    pub(crate) fn connected(&mut self, now_ms: u64, resume: ResumeState) -> Result<Resumed, MeshViolation> {
        self.disconnected();
        self.stats.reconnects += u64::from(std::mem::replace(&mut self.was_connected, true));
        let resumed = if resume.stream == self.stream && self.stream != 0 {
            Resumed::Same
        } else {
            // What was queued before anything was sent goes into the new stream.
            if self.sent_end > 0 {
                self.end_stream();
            }
            self.stream = resume.stream;
            self.expected = 0;
            Resumed::Anew
        };
        if let Err(violation) = self.confirm(resume.expected) {
            self.end_stream();
            return Err(violation);
        }
        self.connection = Some(Connection { heard_ms: now_ms, heartbeat_ms: now_ms, goodbye_sent: false });
        self.peer_goodbye = None;
        Ok(resumed)
    }

    /// The connection is gone, or is to be closed. The ring may still have a buffer.
    pub(crate) fn disconnected(&mut self) {
        self.connection = None;
        self.inbound = Inbound::default();
        self.echo = None;
        self.ack_told();
        self.lent_stale = self.lent != Lent::Nothing;
        if let Some(Rest { buf, of_chunk: true, .. }) = self.rest.take() {
            self.give_back(buf);
        }
        self.handed_out = 0;
    }

    /// Ends the stream and the connection: the peer has a new incarnation, or is no longer a member. What was not
    /// confirmed is given back; what is queued from now on belongs to the next stream.
    pub(crate) fn end_stream(&mut self) {
        self.disconnected();
        let confirmed = self.confirmed;
        self.ended.extend(self.chunks.drain(..).map(|chunk| chunk.ended(confirmed)));
        self.stream = 0;
        self.next_seq = 0;
        self.sent_end = 0;
        self.confirmed = 0;
        self.expected = 0;
        self.batch_seq = 0;
    }

    /// Takes back what no connection has been given so far: it will not be sent, and goes to
    /// [`Link::take_some_unconfirmed`]. For a link that is down; the stream goes on with what the peer may have.
    pub(crate) fn withdraw_unsent(&mut self) {
        let Some(at) = self.chunks.iter().position(|chunk| !chunk.sent) else { return };
        let unsent = self.chunks.split_off(at);
        if let Some(first) = unsent.front() {
            self.next_seq = first.first;
        }
        let confirmed = self.confirmed;
        self.ended.extend(unsent.into_iter().map(|chunk| chunk.ended(confirmed)));
        self.handed_out = self.handed_out.min(self.chunks.len());
    }

    /// Gives back the records of ended streams that were not confirmed, in order, each with whether the peer may have
    /// received it all the same. A buffer that the ring still has, and all behind it, waits for the next call after
    /// [`Link::sent`].
    #[cfg(test)]
    pub(crate) fn take_unconfirmed(&mut self, each: impl FnMut(Record<'_>, bool)) {
        self.take_some_unconfirmed(usize::MAX, each);
    }

    /// The same of records with so many bytes, and the rest of the last one. Returns how many they have; fewer than
    /// `bytes_max` if there are no more now. A chunk counts for the bound until all of it has been given back.
    pub(crate) fn take_some_unconfirmed(&mut self, bytes_max: usize, mut each: impl FnMut(Record<'_>, bool)) -> usize {
        let mut taken = 0;
        while let Some(chunk) = self.ended.front_mut().filter(|chunk| !chunk.is_lent() && taken < bytes_max) {
            let sent = chunk.sent;
            let (records, bytes) = chunk.take_unconfirmed(bytes_max - taken, |record| each(record, sent));
            self.stats.given_back += records;
            taken += bytes;
            if !chunk.is_empty() {
                break;
            }
            self.bytes -= chunk.cost();
            self.ended.pop_front();
        }
        taken
    }

    /// Whether there are records to give back that the ring does not have.
    pub(crate) fn has_unconfirmed(&self) -> bool {
        self.ended.front().is_some_and(|chunk| !chunk.is_lent())
    }

    /// Bytes of ended streams that have not been given back.
    pub(crate) fn ended_bytes(&self) -> usize {
        self.ended.iter().map(Chunk::cost).sum()
    }

    /// Says goodbye once everything queued has been sent.
    pub(crate) fn say_goodbye(&mut self, reason: u16) {
        self.goodbye = Some(reason);
    }

    /// Whether goodbye has been said, or there is nobody to say it to.
    pub(crate) fn has_left(&self) -> bool {
        self.connection.as_ref().is_none_or(|connection| connection.goodbye_sent && self.lent == Lent::Nothing)
    }

    /// Why the peer leaves, if it does: a number of [`goodbye`](super::wire::goodbye) or a later one.
    pub(crate) fn peer_goodbye(&self) -> Option<u16> {
        self.peer_goodbye
    }

    /// Bytes held for the peer, as the bounds count them.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it holds less than half of what it may, so that the pace of what can wait need not be slowed.
    pub(crate) fn is_easy(&self) -> bool {
        self.bytes <= self.limits.bytes_max / 2
    }

    /// The same for whoever is told of changes: once it holds more than half it is easy again with three eighths, so
    /// that not each record at the mark is a change.
    pub(crate) fn stays_easy(&self, was_easy: bool) -> bool {
        is_easy_with(self.bytes, self.limits.bytes_max, was_easy)
    }

    /// Whether a record would be taken now.
    pub(crate) fn has_room_for(&self, record: &Record<'_>) -> bool {
        let reserve = if record.is_control() { self.limits.reserve_bytes } else { 0 };
        self.bytes + record.encoded_len() + Chunk::OVERHEAD_BYTES <= self.limits.bytes_max + reserve
    }

    /// Whether a connection is up.
    pub(crate) fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// Whether anything was ever sent in the present stream.
    pub(crate) fn has_streamed(&self) -> bool {
        self.sent_end > 0 || self.expected > 0
    }

    /// Whether the ring has a buffer of this link.
    pub(crate) fn is_lent(&self) -> bool {
        self.lent != Lent::Nothing
    }

    /// Whether a connection is up from which nothing came for too long.
    pub(crate) fn is_dead(&self, now_ms: u64) -> bool {
        self.connection.as_ref().is_some_and(|connection| now_ms >= connection.heard_ms + DEAD_AFTER_MS)
    }

    /// When to look at the link again at the latest: for [`Link::take_send`] or [`Link::is_dead`].
    pub(crate) fn next_deadline(&self, now_ms: u64) -> Option<u64> {
        let connection = self.connection.as_ref()?;
        let mut deadline = connection.heard_ms + DEAD_AFTER_MS;
        // Nothing can be sent before the ring has given its buffer back.
        if self.lent == Lent::Nothing {
            let leaving = self.goodbye.is_some() && !connection.goodbye_sent;
            if self.handed_out < self.chunks.len() || self.rest.is_some() || leaving {
                return Some(now_ms);
            }
            if self.goodbye.is_none() {
                deadline = deadline.min(connection.heartbeat_ms + HEARTBEAT_MS);
                deadline = deadline.min(self.ack_due_ms.unwrap_or(u64::MAX));
            }
        }
        Some(deadline.max(now_ms))
    }

    /// Milliseconds to wait before the next attempt to connect: a random point of the upper half of a range that
    /// doubles with each attempt until bytes come, within [`RECONNECT_MS_MIN`] and [`RECONNECT_MS_MAX`].
    pub(crate) fn reconnect_delay_ms(&mut self, random: u64) -> u64 {
        let most = ((2 * RECONNECT_MS_MIN) << self.attempts.min(16)).min(RECONNECT_MS_MAX);
        self.attempts = self.attempts.saturating_add(1);
        let least = most / 2;
        least + random % (most - least + 1)
    }

    pub(crate) fn stats(&self) -> LinkStats {
        LinkStats { unconfirmed_bytes: self.bytes as u64, ..self.stats }
    }
}
