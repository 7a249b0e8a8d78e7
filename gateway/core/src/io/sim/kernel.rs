//! The kernel: carries out submissions, and lets operations go on when something arrives.

use super::ring::{Ring, Stage, Submission};
use super::socket::{Found, Segment};
use super::world::{Event, World};
use crate::io::{BufId, Completion, ConnId, HandoverToken, OpResult, Peer, ReadOp, SendId, errno};

impl World {
    /// Carries out what is queued: all of it, unless the kernel wants completions taken first.
    pub(super) fn submit_some(&mut self, ring: usize) {
        let queued = self.rings[ring].submissions.len();
        let partly = queued > 0 && self.completions(ring) > 0 && self.rng.chance(self.faults.submit_partly);
        let count = if partly { self.rng.below(queued as u64) as usize } else { queued };
        self.submit(ring, count);
    }

    /// Carries out up to `count` submissions.
    pub(super) fn submit(&mut self, ring: usize, count: usize) {
        for _ in 0..count {
            let Some(submission) = self.rings[ring].submissions.pop_front() else { break };
            self.carry_out(ring, submission);
        }
    }

    fn carry_out(&mut self, ring: usize, submission: Submission) {
        match submission {
            Submission::Accept { listener, multishot, with_peer } => {
                if self.rings[ring].listeners[usize::from(listener)].closed {
                    let completion = Completion::Accept { listener, result: Err(libc::EBADF), more: false, peer: None };
                    self.post(ring, 0, completion, Vec::new());
                    return;
                }
                self.arm_accept(ring, listener.into(), multishot, with_peer);
                self.accept_progress(ring, listener.into());
            }
            Submission::AcceptCancel { listener } => self.cancel_accepts(ring, listener),
            Submission::Read { slot } => {
                let read = self.rings[ring].used(slot).and_then(|usage| usage.read.as_mut());
                read.expect("a queued read keeps its slot").stage = Stage::Armed;
                self.read_progress(ring, slot);
            }
            Submission::ReadCancel { conn, kind } => self.cancel_read(ring, conn, kind),
            Submission::Send { slot } => {
                let send = self.rings[ring].used(slot).and_then(|usage| usage.send.as_mut());
                send.expect("a queued send keeps its slot").stage = Stage::Armed;
                self.send_progress(ring, slot);
            }
            Submission::SendCancel { send } => self.cancel_send(ring, send),
            Submission::Shutdown { slot } => self.shut_down(ring, slot),
            Submission::Close { slot, reset } => self.close(ring, slot, reset),
            Submission::HandOver { slot, ring: target, token } => self.hand_over(ring, slot, target, token),
            Submission::Wake { ring: target } => {
                let due_us = self.now_us + 1 + self.rng.below(self.faults.wake_late_us_max);
                self.post(target, due_us, Completion::Wake, Vec::new());
            }
            Submission::Dial { token, address } => self.start_dial(ring, token, address),
            Submission::Tick { ms } => {
                let due_us = self.now_us + u64::from(ms) * 1_000 + self.rng.below(self.faults.tick_late_us_max);
                self.post(ring, due_us, Completion::Tick, Vec::new());
            }
            Submission::Pause { ms } => {
                let due_us = self.now_us + u64::from(ms) * 1_000 + self.rng.below(self.faults.tick_late_us_max);
                self.post(ring, due_us, Completion::Paused, Vec::new());
            }
        }
    }

    /// A free slot of a ring's table; the lowest one in most cases, so that slots are soon used again.
    pub(super) fn free_slot(&mut self, ring: usize) -> Option<u32> {
        let mut free = self.rings[ring].slots.iter().enumerate().filter(|(_, slot)| slot.usage.is_none());
        let first = free.next()?.0 as u32;
        let more = free.count() as u64;
        if !self.rng.chance(100) {
            return Some(first);
        }
        let skipped = self.rng.below(more + 1) as usize;
        let free = self.rings[ring].slots.iter().enumerate().filter(|(_, slot)| slot.usage.is_none());
        free.map(|(index, _)| index as u32).nth(skipped)
    }

    pub(super) fn install(&mut self, ring: usize, slot: u32, socket: usize) -> u64 {
        let place = &mut self.rings[ring].slots[slot as usize];
        self.tally.slots_used_again += u64::from(place.generation.is_some());
        place.occupy(socket);
        self.sockets[socket].holders.push((ring, slot));
        place.due_us
    }

    /// Accepts what waits, as far as accepts are armed.
    pub(super) fn accept_progress(&mut self, ring: usize, listener: usize) {
        while let Some(accept) = self.rings[ring].listeners[listener].armed.front() {
            let (multishot, with_peer, due_us) = (accept.multishot, accept.with_peer, accept.due_us);
            if self.rings[ring].listeners[listener].backlog.is_empty() {
                break;
            }
            let first = self.rings[ring].listeners[listener].backlog.front().copied();
            let (result, after_us) = self.accept_one(ring, listener);
            // Drawn for those with an address too, so that which of both is asked for changes little else about a seed.
            let drawn = (multishot || with_peer) && result.is_ok() && self.rng.chance(self.faults.multishot_end);
            let ended = multishot && drawn;
            self.tally.multishots_ended += u64::from(ended);
            let more = multishot && result.is_ok() && !ended;
            let socket = first.filter(|_| with_peer && result.is_ok());
            let peer = socket.map(|socket| Peer::Address(self.peer_address(socket)));
            let completion = Completion::Accept { listener: listener as u16, result, more, peer };
            let posted_us = self.post(ring, due_us.max(after_us), completion, Vec::new());
            let armed = &mut self.rings[ring].listeners[listener].armed;
            match armed.front_mut() {
                Some(accept) if more => accept.due_us = posted_us,
                _ => drop(armed.pop_front()),
            }
        }
        self.refuse_backlog(ring, listener);
    }

    fn accept_one(&mut self, ring: usize, listener: usize) -> (OpResult<u32>, u64) {
        if self.rng.chance(self.faults.accept_error) {
            self.tally.accept_errors += 1;
            if self.rng.chance(500) {
                // Found out before a connection is taken: it goes on waiting.
                return (Err(libc::EMFILE), 0);
            }
            if let Some(socket) = self.rings[ring].listeners[listener].backlog.pop_front() {
                self.refuse(socket);
            }
            return (Err(libc::ECONNABORTED), 0);
        }
        let socket = self.rings[ring].listeners[listener].backlog.pop_front().expect("checked by the caller");
        match self.free_slot(ring) {
            Some(slot) => {
                let after_us = self.install(ring, slot, socket);
                (Ok(slot), after_us)
            }
            None => {
                self.refuse(socket);
                (Err(libc::ENFILE), 0)
            }
        }
    }

    fn cancel_accepts(&mut self, ring: usize, listener: u16) {
        for accept in std::mem::take(&mut self.rings[ring].listeners[usize::from(listener)].armed) {
            let completion = Completion::Accept { listener, result: Err(errno::ECANCELED), more: false, peer: None };
            self.post(ring, accept.due_us, completion, Vec::new());
        }
        self.refuse_backlog(ring, listener.into());
    }

    /// Lets the read of a slot go on with what has arrived.
    pub(super) fn read_progress(&mut self, ring: usize, slot: u32) {
        loop {
            let Some(usage) = self.rings[ring].used(slot) else { return };
            let socket = usage.socket;
            let Some(read) = usage.read.as_ref().filter(|read| read.stage == Stage::Armed) else { return };
            let (conn, kind, due_us) = (read.conn, read.kind, read.due_us);
            let found = self.sockets[socket].found();
            if found == Found::Nothing {
                return;
            }
            let (completion, bytes, more) = if kind == ReadOp::Poll {
                (Completion::Readable { conn, result: Ok(()) }, Vec::new(), false)
            } else {
                let (result, buf, bytes) = self.read_one(ring, socket, kind, found);
                let goes_on = matches!(kind, ReadOp::Multishot | ReadOp::Bulk) && !bytes.is_empty();
                let ended = goes_on && self.rng.chance(self.faults.multishot_end);
                self.tally.multishots_ended += u64::from(ended);
                let more = goes_on && !ended;
                let nonempty = !bytes.is_empty() && !self.sockets[socket].inbound.is_empty();
                (Completion::Recv { conn, result, buf, more, nonempty }, bytes, more)
            };
            let has_brought = !bytes.is_empty();
            let found_none = matches!(completion, Completion::Recv { result: Err(errno::ENOBUFS), .. });
            let posted_us = self.post(ring, due_us, completion, bytes);
            if kind == ReadOp::Bulk {
                self.note_starved(ring, slot, has_brought, found_none);
            }
            if let Some(read) = self.rings[ring].used(slot).and_then(|usage| usage.read.as_mut()) {
                read.due_us = posted_us;
                read.stage = if more { Stage::Armed } else { Stage::Posted };
            }
        }
    }

    /// Counts how often a connection came away with nothing, since others had all large buffers.
    fn note_starved(&mut self, ring: usize, slot: u32, has_brought: bool, found_none: bool) {
        let Some(usage) = self.rings[ring].used(slot) else { return };
        let Some(read) = &mut usage.read else { return };
        read.brought |= has_brought;
        usage.starved = match (read.brought, found_none) {
            (true, _) => 0,
            (false, true) => usage.starved + 1,
            (false, false) => usage.starved,
        };
        self.tally.starved_most = self.tally.starved_most.max(usage.starved);
    }

    fn take_buffer(&mut self, ring: usize, kind: ReadOp) -> Option<BufId> {
        self.rings[ring].pool(kind).take(&mut self.rng)
    }

    fn read_one(
        &mut self,
        ring: usize,
        socket: usize,
        kind: ReadOp,
        found: Found,
    ) -> (OpResult<usize>, Option<BufId>, Vec<u8>) {
        match found {
            Found::Bytes => {
                let Some(buf) = self.take_buffer(ring, kind) else {
                    self.tally.enobufs += 1;
                    return (Err(errno::ENOBUFS), None, Vec::new());
                };
                let mut len = self.sockets[socket].inbound.len().min(self.rings[ring].pool(kind).bytes);
                if self.rng.chance(self.faults.recv_short) {
                    len = self.rng.within(1, len as u64) as usize;
                }
                let bytes: Vec<u8> = self.sockets[socket].inbound.drain(..len).collect();
                self.tally.bytes_in += len as u64;
                if let Some(peer) = self.sockets[socket].peer.as_ref().map(|peer| peer.socket) {
                    self.sockets[peer].unread -= len;
                    self.stir_server(peer);
                }
                (Ok(len), Some(buf), bytes)
            }
            Found::Reset => {
                self.sockets[socket].reset_told = true;
                (Err(libc::ECONNRESET), None, Vec::new())
            }
            Found::End | Found::Nothing => {
                let taken = self.rng.chance(self.faults.end_with_buffer);
                let buf = if taken { self.take_buffer(ring, kind) } else { None };
                (Ok(0), buf, Vec::new())
            }
        }
    }

    fn cancel_read(&mut self, ring: usize, conn: ConnId, kind: ReadOp) {
        self.tally.cancels += 1;
        let usage = self.rings[ring].used(conn.slot).filter(|usage| usage.generation == Some(conn.generation));
        let read = usage.and_then(|usage| usage.read.as_mut()).filter(|read| read.kind == kind);
        let Some(read) = read.filter(|read| read.stage == Stage::Armed) else {
            self.tally.cancels_late += 1;
            return;
        };
        read.stage = Stage::Posted;
        let due_us = read.due_us;
        let completion = match kind {
            ReadOp::Poll => Completion::Readable { conn, result: Err(errno::ECANCELED) },
            _ => Completion::Recv { conn, result: Err(errno::ECANCELED), buf: None, more: false, nonempty: false },
        };
        self.post(ring, due_us, completion, Vec::new());
    }

    /// Lets the send of a slot go on if the connection takes bytes, or is broken.
    pub(super) fn send_progress(&mut self, ring: usize, slot: u32) {
        let Some(usage) = self.rings[ring].used(slot) else { return };
        let socket = usage.socket;
        let Some(send) = usage.send.as_ref().filter(|send| send.stage == Stage::Armed) else { return };
        let left = send.buf.len() - send.offset;
        if self.sockets[socket].reset {
            let first = !std::mem::replace(&mut self.sockets[socket].reset_told, true);
            return self.sent(ring, slot, Err(if first { libc::ECONNRESET } else { libc::EPIPE }));
        }
        let mut len = left.min(self.sockets[socket].room());
        if len == 0 {
            return;
        }
        if self.rng.chance(self.faults.send_short) {
            len = self.rng.within(1, len as u64) as usize;
        }
        let send = self.rings[ring].used(slot).and_then(|usage| usage.send.as_ref()).expect("looked at above");
        let bytes = send.buf[send.offset..send.offset + len].to_vec();
        self.sockets[socket].unread += len;
        self.tally.bytes_out += len as u64;
        self.toward_client(socket, Segment::Bytes(bytes));
        self.sent(ring, slot, Ok(len));
    }

    fn sent(&mut self, ring: usize, slot: u32, result: OpResult<usize>) {
        let send =
            self.rings[ring].used(slot).and_then(|usage| usage.send.as_mut()).expect("called for a send under way");
        send.stage = Stage::Posted;
        let (conn, buf) = (send.conn, std::mem::take(&mut send.buf));
        self.post(ring, 0, Completion::Sent { conn, result, buf }, Vec::new());
    }

    /// Ends the sends that are queued.
    pub(super) fn withdraw_sends(&mut self, ring: usize) {
        let mut slots = Vec::new();
        self.rings[ring].submissions.retain(|submission| match submission {
            Submission::Send { slot } => {
                slots.push(*slot);
                false
            }
            _ => true,
        });
        for slot in slots {
            self.sent(ring, slot, Err(errno::ECANCELED));
        }
    }

    fn cancel_send(&mut self, ring: usize, send: SendId) {
        self.tally.cancels += 1;
        let Ring { sends, slots, .. } = &self.rings[ring];
        let slot = sends[send.0 as usize].filter(|slot| {
            let under_way = slots[*slot as usize].usage.as_ref().and_then(|usage| usage.send.as_ref());
            under_way.is_some_and(|under_way| under_way.stage == Stage::Armed)
        });
        match slot {
            Some(slot) => self.sent(ring, slot, Err(errno::ECANCELED)),
            None => self.tally.cancels_late += 1,
        }
    }

    fn shut_down(&mut self, ring: usize, slot: u32) {
        let usage = self.rings[ring].used(slot).expect("a queued shutdown keeps its slot");
        let conn = ConnId { slot, generation: usage.generation.expect("set when the shutdown was asked for") };
        let socket = usage.socket;
        if !std::mem::replace(&mut self.sockets[socket].shut, true) {
            self.toward_client(socket, Segment::End);
        }
        self.post(ring, 0, Completion::ShutDown { conn }, Vec::new());
    }

    fn close(&mut self, ring: usize, slot: u32, reset: bool) {
        let usage = self.rings[ring].slots[slot as usize].usage.take().expect("a queued close keeps its slot");
        let due_us = self.post(ring, 0, Completion::Closed { slot }, Vec::new());
        self.rings[ring].slots[slot as usize].due_us = due_us;
        let holders = &mut self.sockets[usage.socket].holders;
        holders.retain(|holder| *holder != (ring, slot));
        if holders.is_empty() {
            if reset {
                self.sockets[usage.socket].drop_untaken = true;
            }
            self.let_go(usage.socket);
        }
    }

    /// No descriptor of a connection is left.
    pub(super) fn let_go(&mut self, socket: usize) {
        let gone = &mut self.sockets[socket];
        gone.server_gone = true;
        let drops = gone.drop_untaken && !gone.client_gone;
        if !gone.inbound.is_empty() || drops {
            // RFC 2525, section 2.17: a close with bytes unread resets the connection. So does one that was asked to.
            self.toward_client(socket, Segment::Reset);
        } else if !std::mem::replace(&mut gone.shut, true) {
            self.toward_client(socket, Segment::End);
        }
    }

    fn hand_over(&mut self, ring: usize, slot: u32, target: usize, token: HandoverToken) {
        let usage = self.rings[ring].used(slot).expect("a queued hand-over keeps its slot");
        let conn = ConnId { slot, generation: usage.generation.expect("set when the hand-over was asked for") };
        let socket = usage.socket;
        let place = if self.rng.chance(self.faults.hand_over_fail) { None } else { self.free_slot(target) };
        let result = match place {
            Some(place) => {
                let peer = &self.sockets[socket];
                self.tally.hand_overs_raced += u64::from(peer.client_gone || peer.reset);
                let after_us = self.install(target, place, socket);
                self.post(target, after_us, Completion::Adopted { token, slot: place }, Vec::new());
                Ok(())
            }
            None => {
                self.tally.hand_overs_failed += 1;
                Err(libc::ENFILE)
            }
        };
        self.post(ring, 0, Completion::HandedOver { conn, result }, Vec::new());
    }

    /// Lets all that wait on a connection go on.
    pub(super) fn stir_server(&mut self, socket: usize) {
        for (ring, slot) in self.sockets[socket].holders.clone() {
            self.read_progress(ring, slot);
            self.send_progress(ring, slot);
        }
    }

    pub(super) fn toward_client(&mut self, socket: usize, segment: Segment) {
        if self.sockets[socket].peer.is_some() {
            return self.toward_peer(socket, segment);
        }
        let due_us = self.outbound_due(socket);
        self.schedule(due_us, Event::ToClient { socket, segment });
    }

    pub(super) fn outbound_due(&mut self, socket: usize) -> u64 {
        let due_us = self.now_us + 1 + self.rng.below(self.faults.network_us_max);
        let peer = &mut self.sockets[socket];
        peer.outbound_due_us = peer.outbound_due_us.max(due_us);
        peer.outbound_due_us
    }
}
