//! What waits to be sent to one connection: whole frames, in order, coalesced into one send at a time.

use crate::io::SendId;
use trunkline_proto::{Frame, Kind, decode, flags};

/// Outboxes kept for reuse by a shard, and the largest buffer kept in one: together at most 2 MiB.
const SPARES_MAX: usize = 256;
const SPARE_BUFFER_BYTES_MAX: usize = 4_096;
/// What the head of a WebSocket's message and a record of TLS add to a buffer at most.
const WRAPPING_BYTES: usize = 64;
/// Records noted of what was sealed for which a spare outbox keeps room.
const SPARE_RECORDS_MAX: usize = 8;

/// Queue of one connection. It exists only while something is queued or under way.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Frames not yet handed to the ring. Begins at a frame boundary.
    pending: Vec<u8>,
    /// The send under way; the ring owns its buffer until it completes.
    sending: Option<SendId>,
    /// Bytes of the buffer under way that the kernel has not taken, and those it has.
    sending_left: usize,
    sending_offset: usize,
    /// The buffer that is not in use, kept for the next swap.
    spare: Vec<u8>,
    /// Where the messages without ACK lie in a buffer under way of which nobody can see that any more.
    sealed: Vec<SealedMessages>,
    /// Tick since which the outbox has been full: something was refused, and it has not drained below half since.
    full_since: Option<u32>,
    /// Tick since which it has held more than its steady bound.
    burst_since: Option<u32>,
    /// Tick since which the peer has not taken all that there was in the turn after it was sent: it is slow.
    slow_since: Option<u32>,
    /// Tick at which the peer last took something; counts only while the outbox is slow.
    progress_tick: u32,
    /// Messages that wait for an ACK found no room, and are to be queued again when there is some.
    owes_redelivery: bool,
}

impl Outbox {
    /// The place of a send whose buffer is another's, of which the first `offset` bytes were sent before.
    pub(crate) fn of_send(send: SendId, len: usize, offset: usize) -> Box<Self> {
        debug_assert!(offset <= len, "{offset} of {len} bytes");
        let mut outbox = Box::<Outbox>::default();
        outbox.sending = Some(send);
        outbox.sending_left = len - offset;
        outbox.sending_offset = offset;
        outbox
    }

    /// Bytes queued, those under way included.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.pending.len() + self.sending_left
    }

    /// Frames that are queued and not under way.
    pub(crate) fn pending(&self) -> &[u8] {
        &self.pending
    }

    /// Whether something is queued and not under way.
    #[inline]
    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Queues what `write` appends. Returns how many bytes those are.
    #[inline]
    pub(crate) fn append(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        let before = self.pending.len();
        write(&mut self.pending);
        debug_assert!(self.pending.len() >= before, "what is queued stays");
        self.pending.len() - before
    }

    /// Takes what is queued and not under way, but for the part of it that `keep` makes anew.
    pub(crate) fn take_pending(&mut self, keep: impl FnOnce(&[u8]) -> Vec<u8>) -> Vec<u8> {
        let pending = std::mem::take(&mut self.pending);
        self.pending = keep(&pending);
        pending
    }

    /// Throws away what is queued and not under way. Returns its bytes, and the messages without ACK among it.
    pub(crate) fn discard_pending(&mut self) -> (usize, u64) {
        let (bytes, messages) = (self.pending.len(), unsent_messages(&self.pending, 0));
        self.pending.clear();
        (bytes, messages)
    }

    /// Makes room for so many bytes more.
    #[inline]
    pub(crate) fn make_room(&mut self, bytes: usize) {
        if self.pending.len() + bytes > self.pending.capacity() {
            self.grow(bytes);
        }
    }

    /// From a quarter of it on a buffer grows at once to all that is kept for reuse. Doubled, and doubled again for the
    /// few bytes that a WebSocket or TLS adds, it would soon be too large for that, and made anew for each send.
    #[cold]
    fn grow(&mut self, bytes: usize) {
        let needed = self.pending.len() + bytes;
        let kept = SPARE_BUFFER_BYTES_MAX - WRAPPING_BYTES;
        if (SPARE_BUFFER_BYTES_MAX / 4..=kept).contains(&needed) {
            self.pending.reserve_exact(SPARE_BUFFER_BYTES_MAX - self.pending.len());
        } else {
            self.pending.reserve(bytes);
        }
    }

    /// The send under way.
    #[inline]
    pub(crate) fn send_id(&self) -> Option<SendId> {
        self.sending
    }

    /// Whether a send is under way.
    #[inline]
    pub(crate) fn is_sending(&self) -> bool {
        self.sending.is_some()
    }

    /// Bytes of the buffer under way that the kernel has taken.
    #[inline]
    pub(crate) fn sent_bytes(&self) -> usize {
        self.sending_offset
    }

    /// Takes the pending frames for one send.
    pub(crate) fn begin_send(&mut self) -> Vec<u8> {
        debug_assert!(self.sending.is_none(), "one send at a time");
        self.sealed.clear();
        let buf = std::mem::replace(&mut self.pending, std::mem::take(&mut self.spare));
        self.sending_left = buf.len();
        self.sending_offset = 0;
        buf
    }

    /// Where the messages without ACK lie in the buffer that is about to be sent is noted here, if nobody can see that
    /// in it.
    pub(crate) fn sealed_mut(&mut self) -> &mut Vec<SealedMessages> {
        &mut self.sealed
    }

    /// What is about to be sent has become so many bytes by what it was wrapped in.
    pub(crate) fn wrapped(&mut self, bytes: usize) {
        debug_assert!(self.sending.is_none() && self.sending_offset == 0, "it is under way already");
        self.sending_left = bytes;
    }

    /// The ring has the buffer, as this send.
    #[inline]
    pub(crate) fn sends(&mut self, send: SendId) {
        self.sending = Some(send);
    }

    /// The kernel has taken so many bytes more. Returns those it has not, and where they begin in the buffer.
    #[inline]
    pub(crate) fn took(&mut self, bytes: usize) -> (usize, usize) {
        self.sending_left -= bytes;
        self.sending_offset += bytes;
        (self.sending_left, self.sending_offset)
    }

    /// Takes the buffer of a completed send back.
    pub(crate) fn end_send(&mut self, mut buf: Vec<u8>) {
        self.sending = None;
        self.sending_left = 0;
        self.sending_offset = 0;
        if buf.capacity() <= SPARE_BUFFER_BYTES_MAX {
            buf.clear();
            self.spare = buf;
        }
    }

    /// Messages without ACK in records of the send under way that the kernel has not taken whole.
    pub(crate) fn unsent_in_records(&self) -> u64 {
        let not_taken = self.sealed.iter().filter(|record| record.end as usize > self.sending_offset);
        not_taken.map(|record| u64::from(record.messages)).sum()
    }

    /// Something was refused because there was no room. Whether that is so for the first time since it has drained.
    pub(crate) fn note_full(&mut self, tick: u32) -> bool {
        let is_new = self.full_since.is_none();
        if is_new {
            self.full_since = Some(tick);
        }
        is_new
    }

    /// It holds more than its steady bound, or is about to. Since when that is so.
    pub(crate) fn burst_since(&mut self, tick: u32) -> u32 {
        *self.burst_since.get_or_insert(tick)
    }

    /// Since when the peer has been slow.
    pub(crate) fn slow_since(&self) -> Option<u32> {
        self.slow_since
    }

    /// The peer does not count as slow from now on.
    pub(crate) fn forget_slow(&mut self) {
        self.slow_since = None;
    }

    /// For how many ticks the peer, which is slow, has taken nothing.
    pub(crate) fn stalled_ticks(&self, tick: u32) -> u32 {
        tick - self.progress_tick
    }

    /// The turn after a send: a peer that has not taken it by now is slow. Whether it has just become so.
    #[inline]
    pub(crate) fn look_at_flight(&mut self, tick: u32) -> bool {
        if self.sending.is_none() {
            self.slow_since = None;
            return false;
        }
        let is_new = self.slow_since.is_none();
        if is_new {
            self.slow_since = Some(tick);
            self.progress_tick = tick;
        }
        is_new
    }

    /// The peer has taken something. `drained`: what is left is far below the bound. Whether messages are owed that had
    /// found no room.
    #[inline]
    pub(crate) fn note_progress(&mut self, tick: u32, drained: bool) -> bool {
        self.progress_tick = tick;
        if !drained {
            return false;
        }
        self.full_since = None;
        self.burst_since = None;
        std::mem::take(&mut self.owes_redelivery)
    }

    /// Messages that wait for an ACK found no room, and are to be queued again when there is some.
    pub(crate) fn owe_redelivery(&mut self) {
        self.owes_redelivery = true;
    }

    /// Since when it has been full, or nothing was taken of it.
    pub(crate) fn too_slow_since(&self) -> Option<u32> {
        let stalled = self.slow_since.map(|_| self.progress_tick);
        match (self.full_since, stalled) {
            (Some(full), Some(stalled)) => Some(full.min(stalled)),
            (full, stalled) => full.or(stalled),
        }
    }
}

/// Messages without ACK that end in one record of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SealedMessages {
    /// Where the record ends: one that was not taken whole is lost whole.
    pub(crate) end: u32,
    pub(crate) messages: u32,
}

/// Whether a frame of this kind carries a message.
pub(crate) const fn is_message(kind: u8) -> bool {
    kind == Kind::Deliver as u8 || kind == Kind::Push as u8
}

/// Messages without ACK whose frame ends beyond `taken` in a run of whole frames: what a closing connection leaves
/// undelivered.
pub(crate) fn unsent_messages(frames: &[u8], taken: usize) -> u64 {
    let mut lost = 0;
    let mut end = 0;
    while let Ok(Some((Frame { kind, flags, .. }, len))) = decode(&frames[end..], u32::MAX) {
        end += len;
        if end > taken && is_message(kind) && flags & flags::ACK == 0 {
            lost += 1;
        }
    }
    lost
}

/// Empty outboxes kept for reuse, so that a message to a quiet connection allocates nothing.
#[derive(Debug, Default)]
#[allow(clippy::vec_box)]
pub(crate) struct SpareOutboxes(Vec<Box<Outbox>>);

impl SpareOutboxes {
    pub(crate) fn take(&mut self) -> Box<Outbox> {
        self.0.pop().unwrap_or_default()
    }

    pub(crate) fn put(&mut self, mut outbox: Box<Outbox>) {
        if outbox.pending.capacity() < outbox.spare.capacity() {
            std::mem::swap(&mut outbox.pending, &mut outbox.spare);
        }
        if self.0.len() < SPARES_MAX && outbox.pending.capacity() <= SPARE_BUFFER_BYTES_MAX {
            outbox.pending.clear();
            outbox.full_since = None;
            outbox.burst_since = None;
            outbox.slow_since = None;
            outbox.owes_redelivery = false;
            outbox.sealed.clear();
            outbox.sealed.shrink_to(SPARE_RECORDS_MAX);
            self.0.push(outbox);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_proto::websocket;

    #[test]
    fn a_buffer_that_is_kept_is_large_enough_for_what_wraps_it() {
        for frame in [33, 96, 100, 160, 700, 1_500, 4_000] {
            let mut outbox = Outbox::default();
            let mut capacity = 0;
            for round in 0..3 {
                while outbox.pending.len() + frame <= SPARE_BUFFER_BYTES_MAX - WRAPPING_BYTES {
                    outbox.make_room(frame);
                    outbox.pending.resize(outbox.pending.len() + frame, 0);
                }
                let mut buf = outbox.begin_send();
                websocket::seal(&mut buf);
                assert!(buf.capacity() <= SPARE_BUFFER_BYTES_MAX, "frames of {frame}: {} bytes", buf.capacity());
                assert!(round < 2 || buf.capacity() == capacity, "frames of {frame}: a buffer was made anew");
                capacity = buf.capacity();
                outbox.end_send(buf);
            }
        }
    }
}
