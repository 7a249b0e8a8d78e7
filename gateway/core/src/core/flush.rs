//! Completions of a connection's own operations, and the end of the turn, where each connection that something happened
//! to is brought in line: what is queued is sent, a read is armed, or the connection goes one step further towards its
//! close.

use super::Core;
use super::links::Sent;
use crate::conn::{Conn, ConnFlags, Phase, Wire};
use crate::io::{BufId, ConnId, HandoverToken, Io, OpResult, ReadOp, errno};
use crate::limits::ReadMode;
use crate::mailbox::{Arrival, NotTaken};
use crate::reason::CloseReason;

/// What is to come after a receive's bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadRest {
    /// The read goes on.
    pub(super) more: bool,
    /// There was more to read when these bytes were taken.
    pub(super) nonempty: bool,
}

impl<I: Io> Core<I> {
    /// A receive, single or multishot, has something to say.
    pub(super) fn on_recv(&mut self, id: ConnId, result: OpResult<usize>, buf: Option<BufId>, rest: ReadRest) {
        let links = &mut self.shard.links;
        let Some(conn) = links.slots.get(id) else {
            if let Some(buf) = buf {
                self.io.release(buf);
            }
            return self.count_stale(id);
        };
        let read = conn.read;
        if !rest.more {
            if matches!(conn.read, ReadOp::Multishot | ReadOp::Bulk) {
                links.stats.hot.sub(1);
            }
            conn.read = ReadOp::None;
            conn.flags.clear(ConnFlags::READ_CANCELLED | ConnFlags::READABLE);
            if rest.nonempty {
                // A poll would say no more than that.
                conn.flags.set(ConnFlags::READABLE);
            }
            links.mark_dirty(id.slot);
        }
        let Conn { phase, wire, .. } = *links.slots.at(id.slot);
        let (mesh, native) = (phase == Phase::Mesh, wire.is_native());
        match (result, buf) {
            (Ok(0), _) if mesh => self.node_broken(id),
            (Ok(0), _) => self.end_of_stream(id),
            (Ok(len), Some(buf)) if mesh => self.on_node_bytes(id.slot, buf, len),
            (Ok(len), Some(buf)) if native => {
                let bytes = self.io.buffer(buf, len);
                self.shard.received(id.slot, bytes);
            }
            (Ok(len), Some(buf)) => {
                let bytes = self.io.buffer_mut(buf, len);
                self.shard.received_wrapped(id.slot, bytes);
            }
            (Ok(_), None) => unreachable!("the kernel fills a buffer it picked"),
            // A link has brought more than a turn takes of it: what is left comes with the next. One that has found
            // nothing but what others left of the buffers is asked before them in that one.
            (Err(errno::ENOBUFS), _) if read == ReadOp::Bulk => self.read_bulk_first(id.slot),
            (Err(errno::ENOBUFS), _) => {
                links.stats.ring_enobufs.add(1);
                links.stats.limit_recv_buffers.add(1);
            }
            (Err(errno::ECANCELED | errno::EAGAIN), _) => {}
            (Err(_), _) => self.failed(id),
        }
        if let Some(buf) = buf {
            self.io.release(buf);
        }
    }

    /// A read into large buffers has found none left. Had it brought nothing since it began, it begins again at once,
    /// and not in the order of the turn, in which the link that took them all would come first again.
    fn read_bulk_first(&mut self, slot: u32) {
        let links = &mut self.shard.links;
        let conn = links.slots.at(slot);
        if conn.phase != Phase::Mesh || conn.flags.has(ConnFlags::OP_PENDING | ConnFlags::READ_BROUGHT) {
            return;
        }
        #[cfg(test)]
        if crate::simulation::planted(crate::simulation::Bug::StarvedLast) {
            return;
        }
        conn.read = ReadOp::Bulk;
        let id = links.slots.id(slot);
        links.stats.hot.add(1);
        links.stats.ring_bulk_starved.add(1);
        self.io.recv_bulk(id);
    }

    /// A poll has ended: receive next.
    pub(super) fn on_readable(&mut self, id: ConnId, result: OpResult<()>) {
        let links = &mut self.shard.links;
        let Some(conn) = links.slots.get(id) else { return self.count_stale(id) };
        conn.read = ReadOp::None;
        conn.flags.clear(ConnFlags::READ_CANCELLED);
        match result {
            Ok(()) => conn.flags.set(ConnFlags::READABLE),
            Err(errno::ECANCELED) => {}
            Err(_) => return self.failed(id),
        }
        links.mark_dirty(id.slot);
    }

    /// The peer has closed its side. What is queued for it is still sent: it may read on.
    fn end_of_stream(&mut self, id: ConnId) {
        let conn = self.shard.links.slots.at(id.slot);
        conn.flags.set(ConnFlags::EOF);
        if conn.flags.has(ConnFlags::BEHIND) {
            // What the peer had sent before has its turn first.
            return self.shard.links.mark_dirty(id.slot);
        }
        if conn.wire.has(Wire::TURNED_AWAY) {
            // It may read on what it is told.
            self.shard.turn_away(id.slot);
        } else {
            self.shard.close(id.slot, CloseReason::PeerClosed);
        }
        self.shard.links.mark_dirty(id.slot);
    }

    /// The connection is broken: nothing more can be sent or received.
    fn failed(&mut self, id: ConnId) {
        if self.shard.links.slots.at(id.slot).phase == Phase::Mesh {
            return self.node_broken(id);
        }
        self.shard.close(id.slot, CloseReason::PeerReset);
        self.shard.links.slots.at(id.slot).phase = Phase::Finishing;
        self.shard.links.mark_dirty(id.slot);
    }

    /// Sends nothing of what is queued: neither what the next enter would hand over, nor what clients would get behind
    /// a send under way. The connections end.
    pub(super) fn withdraw(&mut self) {
        self.io.withdraw_sends();
        // So are frames on their way to members of groups.
        self.shard.groups.parts.drop_frames();
        for slot in 0..self.shard.links.slots.high_water() {
            let conn = self.shard.links.slots.at(slot);
            if conn.outbox.as_ref().is_some_and(|outbox| outbox.is_sending() && outbox.has_pending()) {
                self.failed(self.shard.links.slots.id(slot));
            }
        }
    }

    /// A send has ended.
    pub(super) fn on_sent(&mut self, id: ConnId, result: OpResult<usize>, buf: Vec<u8>) {
        let Core { io, shard, .. } = self;
        match shard.links.sent(id, result, buf, |buf, offset| io.send(id, buf, offset)) {
            Sent::Well => {}
            Sent::Broken => self.failed(id),
            Sent::OfNode(buf) => self.on_node_sent(id, result, buf),
            Sent::Stale => self.count_stale(id),
        }
    }

    pub(super) fn on_shut_down(&mut self, id: ConnId) {
        let links = &mut self.shard.links;
        let Some(conn) = links.slots.get(id) else { return self.count_stale(id) };
        conn.flags.clear(ConnFlags::OP_PENDING);
        links.mark_dirty(id.slot);
    }

    /// Brings every connection that something happened to in line.
    pub(super) fn flush(&mut self) {
        self.shard.close_overflowed();
        // A connection that could not go on last time gets another try.
        for slot in std::mem::take(&mut self.waiting) {
            self.shard.links.mark_dirty(slot);
        }
        let mut dirty = self.shard.links.swap_dirty(Vec::new());
        for slot in dirty.drain(..) {
            self.shard.links.clear_dirty(slot);
            self.flush_conn(slot);
        }
        // A connection whose home shard has stopped was closed on the way, and goes on in the next turn.
        for slot in self.shard.links.swap_dirty(dirty) {
            self.shard.links.clear_dirty(slot);
            self.waiting.push(slot);
        }
    }

    fn flush_conn(&mut self, slot: u32) {
        match self.shard.links.slots.at(slot).phase {
            Phase::Free | Phase::Closed => {}
            // Its LOGIN may have come with the request by which it became a WebSocket, and the answer to that need not
            // wait for another node's.
            Phase::Registering => {
                self.flush_outbox(slot);
                self.drive_read_of_waiting(slot);
            }
            Phase::Mesh => self.drive_node(slot),
            Phase::Handshake | Phase::Open => {
                self.flush_outbox(slot);
                self.drive_read(slot);
            }
            Phase::HandingOver => {
                // The answer to the request by which it became a WebSocket may still wait.
                self.flush_outbox(slot);
                self.drive_hand_over(slot);
            }
            Phase::Closing => {
                self.flush_outbox(slot);
                self.drive_closing(slot);
            }
            Phase::Finishing => self.drive_finishing(slot),
        }
    }

    /// One send at a time, with all that is queued.
    fn flush_outbox(&mut self, slot: u32) {
        let Core { io, shard, .. } = self;
        if shard.links.send_queued(slot, |id, buf| io.send(id, buf, 0)) {
            shard.close(slot, CloseReason::TlsWornOut);
        }
    }

    /// Cold connections wait on a poll, hot ones have a multishot receive armed.
    fn drive_read(&mut self, slot: u32) {
        let links = &mut self.shard.links;
        let id = links.slots.id(slot);
        let conn = links.slots.at(slot);
        let hot = match links.limits.read_mode {
            ReadMode::Auto => conn.flags.has(ConnFlags::HOT),
            ReadMode::Cold => false,
            ReadMode::Hot => true,
        } && conn.phase == Phase::Open;
        let (flags, read, phase) = (conn.flags, conn.read, conn.phase);
        // Nothing more is read before what is there has had its turn, and nothing comes behind the end.
        let paused = flags.has(ConnFlags::PAUSED) || flags.has(ConnFlags::BEHIND) || flags.has(ConnFlags::EOF);
        // One that floods is read by single receives while too many do: a hot one always has something to receive.
        let single = hot && flags.has(ConnFlags::FLOODS) && !links.may_be_multishot(slot);
        let hot = hot && !single;
        let conn = links.slots.at(slot);
        match read {
            ReadOp::None if paused => {}
            ReadOp::None if hot => {
                conn.read = ReadOp::Multishot;
                links.stats.hot.add(1);
                self.io.recv_multishot(id);
            }
            // A new connection's LOGIN is on its way: a receive waits for it in one step.
            ReadOp::None if phase == Phase::Handshake || single || flags.has(ConnFlags::READABLE) => {
                conn.read = ReadOp::Recv;
                self.io.recv(id);
            }
            ReadOp::None => {
                conn.read = ReadOp::Poll;
                self.io.poll(id);
            }
            ReadOp::Multishot if (paused || !hot) && !flags.has(ConnFlags::READ_CANCELLED) => {
                conn.flags.set(ConnFlags::READ_CANCELLED);
                self.io.read_cancel(id, ReadOp::Multishot);
            }
            ReadOp::Poll | ReadOp::Recv | ReadOp::Multishot | ReadOp::Bulk => {}
        }
    }

    /// A login that the application is asked about is looked at for its end, which gives its place to another, until
    /// something has come behind it.
    fn drive_read_of_waiting(&mut self, slot: u32) {
        if self.shard.waits_for_hook(slot) && self.shard.links.slots.at(slot).partial.is_none() {
            self.drive_read(slot);
        }
    }

    /// Sends a departing connection off to its home shard: first its particulars, then its descriptor.
    fn drive_hand_over(&mut self, slot: u32) {
        let id = self.shard.links.slots.id(slot);
        let conn = self.shard.links.slots.at(slot);
        if conn.read != ReadOp::None && !conn.flags.has(ConnFlags::READ_CANCELLED) {
            // It was looked at while it waited for the application.
            conn.flags.set(ConnFlags::READ_CANCELLED);
            self.io.read_cancel(id, conn.read);
        }
        if conn.busy() || conn.outbox.is_some() {
            return;
        }
        self.shard.links.wheel.disarm(slot);
        let Some((home, adoptee)) = self.shard.take_departing(slot) else { return };
        let token = HandoverToken::new(self.shard.shard, id);
        match self.shard.outgoing.put_arrival(home, token, Arrival::Client(adoptee)) {
            Ok(()) => {
                self.shard.links.slots.at(slot).flags.set(ConnFlags::OP_PENDING);
                self.io.hand_over(id, home, token);
            }
            Err(NotTaken::Full(Arrival::Client(adoptee))) => {
                self.shard.handovers.depart(slot, adoptee);
                self.waiting.push(slot);
            }
            Err(NotTaken::Full(Arrival::Node(_)) | NotTaken::Stopped) => self.shard.close(slot, CloseReason::Draining),
        }
    }

    /// After the last byte of a connection that got a BYE, the write side is shut and what still comes in is thrown
    /// away until the peer has closed too: a close with unread bytes would reset the connection, and the BYE might
    /// never be read.
    fn drive_closing(&mut self, slot: u32) {
        let links = &mut self.shard.links;
        let id = links.slots.id(slot);
        let conn = links.slots.at(slot);
        if conn.read == ReadOp::None && !conn.flags.has(ConnFlags::EOF) {
            conn.read = ReadOp::Recv;
            self.io.recv(id);
        }
        if conn.outbox.is_some() {
            return;
        }
        // A WebSocket is told by Close, and a request by its answer, where a native connection is told nothing.
        let said_bye = !conn.wire.is_native() || conn.reason.is_some_and(|reason| reason.code().is_some());
        if !said_bye || conn.flags.has(ConnFlags::EOF) {
            conn.phase = Phase::Finishing;
            self.drive_finishing(slot);
        } else if !conn.flags.has(ConnFlags::SHUT_ASKED) {
            conn.flags.set(ConnFlags::SHUT_ASKED | ConnFlags::OP_PENDING);
            self.io.shutdown(id);
        }
    }

    /// Cancels whatever is under way; closes when nothing is.
    pub(super) fn drive_finishing(&mut self, slot: u32) {
        let links = &mut self.shard.links;
        links.discard_pending(slot);
        let id = links.slots.id(slot);
        let conn = links.slots.at(slot);
        if conn.read != ReadOp::None && !conn.flags.has(ConnFlags::READ_CANCELLED) {
            conn.flags.set(ConnFlags::READ_CANCELLED);
            self.io.read_cancel(id, conn.read);
        }
        if let Some(send) = conn.outbox.as_ref().and_then(|outbox| outbox.send_id())
            && !conn.flags.has(ConnFlags::SEND_CANCELLED)
        {
            conn.flags.set(ConnFlags::SEND_CANCELLED);
            self.io.send_cancel(send);
        }
        if !conn.busy() {
            conn.phase = Phase::Closed;
            // What the peer would not take is not kept for it by the kernel either.
            let reset = conn.flags.has(ConnFlags::RESET);
            if let Some(outbox) = conn.outbox.take() {
                links.recycle(outbox);
            }
            self.io.close(slot, reset);
        }
    }
}
