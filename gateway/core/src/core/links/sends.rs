//! Sends of connections, one at a time for each: what is queued goes to the ring, and what the ring says of it comes
//! back. The ring itself is the caller's, who hands it in as a function.

use super::Links;
use crate::conn::{ConnFlags, Phase, Wire};
use crate::io::{ConnId, OpResult, ReadOp, SendId};
use crate::outbox::{Outbox, unsent_messages};
use crate::transport::outbound::{seal, seal_tls, unsent_sealed_messages};
use crate::transport::tls::Bounds;

/// What the end of a send means.
#[derive(Debug)]
pub(in crate::core) enum Sent {
    /// It has gone well, or goes on with what the kernel has not taken.
    Well,
    /// The connection is broken.
    Broken,
    /// The connection leads to another node, whose link knows what was in the buffer.
    OfNode(Vec<u8>),
    /// There is no such connection any more.
    Stale,
}

impl Links {
    /// Hands all that is queued for a connection to the ring, unless something is under way. An outbox that has nothing
    /// left goes back to the spare ones. Returns whether the keys of a session have sealed as much as they may with
    /// that.
    #[inline]
    pub(in crate::core) fn send_queued(&mut self, slot: u32, send: impl FnOnce(ConnId, Vec<u8>) -> SendId) -> bool {
        let id = self.slots.id(slot);
        let conn = self.slots.at(slot);
        let Some(outbox) = &mut conn.outbox else { return false };
        if outbox.is_sending() {
            return false;
        }
        if !outbox.has_pending() {
            if let Some(outbox) = conn.outbox.take() {
                self.spares.put(outbox);
            }
            return false;
        }
        let mut buf = outbox.begin_send();
        let mut worn_out = false;
        if !conn.wire.is_native() {
            self.outbox_bytes.sub(buf.len());
            if conn.wire.has(Wire::TLS) {
                let mut keys = self.tls.sessions.view(slot);
                let updates = seal_tls(&mut buf, conn.wire, keys.as_mut(), outbox.sealed_mut());
                self.stats.tls_updates_out.add(updates.into());
                worn_out = conn.phase == Phase::Open && keys.is_some_and(|keys| keys.is_worn_out(&Bounds::STANDARD));
            } else {
                seal(&mut buf, conn.wire.kind(), conn.wire.has(Wire::RAW));
            }
            self.outbox_bytes.add(buf.len());
            conn.wire.clear(Wire::RAW | Wire::LAYERED);
            outbox.wrapped(buf.len());
            if buf.is_empty() {
                // There are no keys to send it with, or what was owed has gone with something else.
                outbox.end_send(buf);
                if let Some(outbox) = conn.outbox.take() {
                    self.spares.put(outbox);
                }
                return false;
            }
        }
        outbox.sends(send(id, buf));
        self.flights.push(slot);
        worn_out
    }

    /// A send has ended. What the kernel has not taken goes on by `send_on`, from an offset in the buffer.
    #[inline]
    pub(in crate::core) fn sent(
        &mut self,
        id: ConnId,
        result: OpResult<usize>,
        buf: Vec<u8>,
        send_on: impl FnOnce(Vec<u8>, usize) -> SendId,
    ) -> Sent {
        let Some(conn) = self.slots.get(id) else { return Sent::Stale };
        if conn.flags.has(ConnFlags::MESH) {
            return Sent::OfNode(buf);
        }
        let Some(outbox) = &mut conn.outbox else { return Sent::Stale };
        let taken = result.unwrap_or(0);
        let (left, offset) = outbox.took(taken);
        self.outbox_bytes.sub(taken);
        self.stats.bytes_out.add(taken as u64);
        if left > 0 && result.is_ok() && conn.phase != Phase::Finishing {
            self.stats.ring_short_sends.add(1);
            outbox.sends(send_on(buf, offset));
            self.flights.push(id.slot);
            self.note_drained(id.slot);
            return Sent::Well;
        }
        if left > 0 {
            let unsent = if conn.wire.is_native() {
                unsent_messages(&buf, offset)
            } else if conn.wire.has(Wire::TLS) {
                outbox.unsent_in_records()
            } else {
                unsent_sealed_messages(&buf, offset)
            };
            self.stats.copies_unsent.add(unsent);
            self.outbox_bytes.sub(left);
        }
        outbox.end_send(buf);
        conn.flags.clear(ConnFlags::SEND_CANCELLED);
        let reads = conn.read != ReadOp::None;
        let is_over = conn.phase == Phase::Open && reads && !outbox.has_pending();
        if result.is_err() {
            self.mark_dirty(id.slot);
            return Sent::Broken;
        }
        self.note_drained(id.slot);
        // Most sends are the last of an open session for now, and a flush would find nothing to do for it.
        match is_over.then(|| self.slots.at(id.slot).outbox.take()).flatten() {
            Some(outbox) => self.spares.put(outbox),
            None => self.mark_dirty(id.slot),
        }
        Sent::Well
    }

    /// Keeps the outbox of a connection that needs none any more for another one.
    #[inline]
    pub(in crate::core) fn recycle(&mut self, outbox: Box<Outbox>) {
        self.spares.put(outbox);
    }

    /// Takes the list of connections to flush. `empty` takes its place, so that the memory of a list is used again.
    #[inline]
    pub(in crate::core) fn swap_dirty(&mut self, empty: Vec<u32>) -> Vec<u32> {
        debug_assert!(empty.is_empty(), "whoever is on the list would be forgotten");
        std::mem::replace(&mut self.dirty, empty)
    }

    /// A connection that was taken from the list is put on it again when something happens to it.
    #[inline]
    pub(in crate::core) fn clear_dirty(&mut self, slot: u32) {
        self.slots.at(slot).flags.clear(ConnFlags::DIRTY);
    }

    /// The next session whose outbox has room again for messages that are to be delivered again.
    #[inline]
    pub(in crate::core) fn take_redeliverable(&mut self) -> Option<u32> {
        self.redeliverable.pop()
    }

    /// Bytes queued for all connections, those under way included.
    pub(in crate::core) fn outbox_bytes(&self) -> usize {
        self.outbox_bytes.get()
    }
}
