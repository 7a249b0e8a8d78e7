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
    pub(crate) pending: Vec<u8>,
    /// The send under way; the ring owns its buffer until it completes.
    pub(crate) sending: Option<SendId>,
    /// Bytes of the buffer under way that the kernel has not taken, and those it has.
    pub(crate) sending_left: usize,
    pub(crate) sending_offset: usize,
    /// The buffer that is not in use, kept for the next swap.
    spare: Vec<u8>,
    /// Where the messages without ACK lie in a buffer under way of which nobody can see that any more.
    pub(crate) sealed: Vec<SealedMessages>,
    /// Tick since which the outbox has been full: something was refused, and it has not drained below half since.
    pub(crate) full_since: Option<u32>,
    /// Tick since which it has held more than its steady bound.
    pub(crate) burst_since: Option<u32>,
    /// Tick since which the peer has not taken all that there was in the turn after it was sent: it is slow.
    pub(crate) slow_since: Option<u32>,
    /// Tick at which the peer last took something; counts only while the outbox is slow.
    pub(crate) progress_tick: u32,
    /// Messages that wait for an ACK found no room, and are to be queued again when there is some.
    pub(crate) owes_redelivery: bool,
}

impl Outbox {
    /// Bytes queued, those under way included.
    pub(crate) fn bytes(&self) -> usize {
        self.pending.len() + self.sending_left
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

    /// Takes the pending frames for one send.
    pub(crate) fn begin_send(&mut self) -> Vec<u8> {
        self.sealed.clear();
        let buf = std::mem::replace(&mut self.pending, std::mem::take(&mut self.spare));
        self.sending_left = buf.len();
        self.sending_offset = 0;
        buf
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

/// As [`unsent_messages`], of what was sealed.
pub(crate) fn unsent_in_records(sealed: &[SealedMessages], taken: usize) -> u64 {
    sealed.iter().filter(|record| record.end as usize > taken).map(|record| u64::from(record.messages)).sum()
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
