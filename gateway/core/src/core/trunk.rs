//! Connections to other nodes: dialed, accepted, handed over to the shard that has the link, read, written and closed.
//! What goes over them is in `far`, what they are is in [`mesh`](crate::mesh).
//!
//! They have slots of the same table as the clients, in [`Phase::Mesh`], and go through the same end of a turn: all
//! that a turn has for one node is one send.

use super::Core;
use super::shard::Shard;
use crate::conn::{ConnFlags, Phase};
use crate::io::{ConnId, HandoverToken, Io, OpResult, ReadOp, SendId};
use crate::limits::MAIL_TURN_BYTES;
use crate::mailbox::{Arrival, NotTaken};
use crate::mesh::handshake::Acceptor;
use crate::mesh::link::Outgoing;
use crate::mesh::peers::Step;
use crate::mesh::seal::Forged;
use crate::mesh::wire::{Deliver, Entry, MeshViolation, Message, Taker, Unit};
use crate::mesh_news::LinkNews;
use crate::mesh_news::MeshNews;
use crate::outbox::Outbox;
use std::net::IpAddr;

/// A send to another node: what the connection's place for a send holds of it.
fn sending(send: SendId, len: usize, offset: usize) -> Box<Outbox> {
    Outbox::of_send(send, len, offset)
}

/// What ends a link at its receiving end.
enum Broken {
    /// Somebody on the way has changed what came. The stream lives on.
    Forged,
    /// The peer broke the protocol, and the stream has ended.
    Violated(MeshViolation),
}

impl From<Forged> for Broken {
    fn from(Forged: Forged) -> Self {
        Broken::Forged
    }
}

/// What comes on a link, on its way to where it belongs.
struct FromNode<'s> {
    shard: &'s mut Shard,
    link: u32,
    now_ms: u64,
}

impl Taker for FromNode<'_> {
    fn take(&mut self, unit: Unit<'_>) -> Result<(), MeshViolation> {
        let Some((node, link)) = self.shard.mesh.as_mut().and_then(|mesh| mesh.link(self.link)) else { return Ok(()) };
        match &unit {
            Unit::Record(record) => {
                if link.takes(record.encoded_len(), self.now_ms) {
                    self.shard.far_record(node, record);
                }
            }
            _ => _ = link.accept(unit, self.now_ms)?,
        }
        Ok(())
    }

    #[inline(always)]
    fn take_message(&mut self, message: Message<'_>) -> Result<(), MeshViolation> {
        let Some((node, link)) = self.shard.mesh.as_mut().and_then(|mesh| mesh.link(self.link)) else { return Ok(()) };
        if link.takes(message.encoded_len(), self.now_ms) {
            self.shard.message_from(node, &message);
        }
        Ok(())
    }

    #[inline(always)]
    fn take_copy(&mut self, copy: Deliver<'_>) -> Result<(), MeshViolation> {
        let Some((node, link)) = self.shard.mesh.as_mut().and_then(|mesh| mesh.link(self.link)) else { return Ok(()) };
        if link.takes(copy.encoded_len(), self.now_ms) {
            self.shard.copy_from(node, &copy);
        }
        Ok(())
    }
}

impl<I: Io> Core<I> {
    /// A connection came to the mesh's listener.
    pub(super) fn on_node_accepted(&mut self, slot: u32, from: Option<IpAddr>) {
        let (now_ms, nonce) = (self.shard.now.mono_ms, self.io.random());
        if self.shard.links.slots.occupy(slot, Phase::Mesh).is_none() {
            return self.shard.links.stats.ring_stale.add(1);
        }
        self.shard.links.slots.at(slot).flags.set(ConnFlags::MESH);
        let taken = self.shard.mesh.as_mut().is_some_and(|mesh| mesh.accepted(slot, from, now_ms, nonce));
        if !taken {
            self.shard.links.slots.at(slot).phase = Phase::Finishing;
        }
        self.shard.links.mark_dirty(slot);
    }

    /// A connection that another shard has accepted for a link of this one.
    pub(super) fn on_node_adopted(&mut self, slot: u32, acceptor: Box<Acceptor>) {
        let (now_ms, random) = (self.shard.now.mono_ms, self.io.random());
        if self.shard.links.slots.occupy(slot, Phase::Mesh).is_none() {
            return self.shard.links.stats.ring_stale.add(1);
        }
        self.shard.links.slots.at(slot).flags.set(ConnFlags::MESH);
        self.shard.links.mark_dirty(slot);
        match &mut self.shard.mesh {
            Some(mesh) => _ = mesh.adopted(slot, acceptor, now_ms, random),
            None => self.shard.links.slots.at(slot).phase = Phase::Finishing,
        }
    }

    /// A dial has ended.
    pub(super) fn on_dialed(&mut self, token: u32, result: OpResult<u32>) {
        let (now_ms, random) = (self.shard.now.mono_ms, self.io.random());
        if let Ok(slot) = result {
            if self.shard.links.slots.occupy(slot, Phase::Mesh).is_none() {
                return self.shard.links.stats.ring_stale.add(1);
            }
            self.shard.links.slots.at(slot).flags.set(ConnFlags::MESH);
            self.shard.links.mark_dirty(slot);
        }
        let wanted = self.shard.mesh.as_mut().is_some_and(|mesh| mesh.dialed(token, result, now_ms, random));
        if let (Ok(slot), false) = (result, wanted) {
            self.shard.links.slots.at(slot).phase = Phase::Finishing;
        }
    }

    /// Bytes of another node. They are the kernel's buffer, and opened where they lie: nothing of them is kept but the
    /// beginning of a record whose rest has not come.
    pub(super) fn on_node_bytes(&mut self, slot: u32, buf: crate::io::BufId, len: usize) {
        let now_ms = self.shard.now.mono_ms;
        let random = match self.shard.mesh.as_ref().is_some_and(|mesh| mesh.link_of(slot).is_some()) {
            true => [0; 32],
            false => self.io.random(),
        };
        let Core { io, shard, .. } = self;
        let mut bytes = io.buffer_mut(buf, len);
        shard.links.slots.at(slot).flags.set(ConnFlags::READ_BROUGHT);
        shard.links.stats.mesh_bytes_in.add(len as u64);
        let Some(mesh) = &mut shard.mesh else { return };
        if mesh.link_of(slot).is_none() {
            match mesh.shake(slot, bytes, now_ms, random) {
                Step::Wait | Step::HandOver { .. } | Step::Refused => return shard.links.mark_dirty(slot),
                Step::Up { consumed } => bytes = &mut bytes[consumed..],
            }
        }
        shard.links.mark_dirty(slot);
        let Some(id) = mesh.link_of(slot).filter(|_| !bytes.is_empty()) else { return };
        let Some((_, link)) = mesh.link(id) else { return };
        let Some(mut inbound) = link.begin_receive(now_ms) else { return };
        let mut sealing = mesh.take_sealing(slot);
        let mut from = FromNode { shard, link: id, now_ms };
        let result = match &mut sealing {
            None => inbound.feed_to(bytes, &mut from).map_err(Broken::Violated),
            Some(keys) => keys.open(bytes, |data| inbound.feed_to(data, &mut from).map_err(Broken::Violated)),
        };
        let Some(mesh) = &mut shard.mesh else { return };
        if let Some(sealing) = sealing {
            mesh.put_sealing(slot, sealing);
        }
        match result {
            Ok(()) => _ = mesh.end_receive(slot, id, inbound, Ok(())),
            Err(Broken::Violated(violation)) => _ = mesh.end_receive(slot, id, inbound, Err(violation)),
            Err(Broken::Forged) => {
                mesh.end_receive(slot, id, inbound, Ok(()));
                mesh.note_forged();
                let id = shard.links.slots.id(slot);
                self.node_broken(id);
            }
        }
    }

    /// The connection to another node is broken, or has come to its end.
    pub(super) fn node_broken(&mut self, id: ConnId) {
        let (now_ms, random) = (self.shard.now.mono_ms, self.io.random());
        if let Some(mesh) = &mut self.shard.mesh {
            mesh.broken(id.slot, now_ms, u64::from_ne_bytes(random[..8].try_into().expect("eight of 32")));
        }
        self.shard.links.slots.at(id.slot).phase = Phase::Finishing;
        self.shard.links.mark_dirty(id.slot);
    }

    /// A send to another node has ended.
    pub(super) fn on_node_sent(&mut self, id: ConnId, result: OpResult<usize>, buf: Vec<u8>) {
        let conn = self.shard.links.slots.at(id.slot);
        let offset = conn.outbox.take().map_or(0, |outbox| outbox.sent_bytes());
        conn.flags.clear(ConnFlags::SEND_CANCELLED);
        let taken = result.unwrap_or(0);
        self.shard.links.stats.mesh_bytes_out.add(taken as u64);
        self.shard.links.mark_dirty(id.slot);
        if let Some(mesh) = &mut self.shard.mesh {
            mesh.sent(id.slot, buf, offset, taken);
        }
        if result.is_err() {
            self.node_broken(id);
        }
    }

    /// Brings a connection to another node in line: sends what there is, reads, hands it over, or begins to close it.
    pub(super) fn drive_node(&mut self, slot: u32) {
        let now_ms = self.shard.now.mono_ms;
        let Some(mesh) = &mut self.shard.mesh else { return };
        let links = &mut self.shard.links;
        let id = links.slots.id(slot);
        let conn = links.slots.at(slot);
        if conn.outbox.is_none()
            && let Some(Outgoing { buf, offset }) = mesh.take_send(slot, now_ms)
        {
            let len = buf.len();
            let send = self.io.send(id, buf, offset);
            conn.outbox = Some(sending(send, len, offset));
        }
        if mesh.is_over(slot) {
            conn.phase = Phase::Finishing;
            return self.drive_finishing(slot);
        }
        if mesh.is_claimed(slot) {
            // Even while an answer is on its way out: a read that began now would not end, for the peer waits, and keep
            // the connection here.
            return self.hand_node_over(slot);
        }
        // A connection that may be handed over must not have a read that goes on by itself.
        let up = mesh.link_of(slot).is_some();
        if conn.read == ReadOp::None && !conn.flags.has(ConnFlags::OP_PENDING) {
            // As many as there are buffers: one that finds none, since others have brought much, is read a turn later.
            let most = links.limits.bulk_buffers().into();
            if up && mesh.takes_bulk(slot, most) {
                conn.read = ReadOp::Bulk;
                conn.flags.clear(ConnFlags::READ_BROUGHT);
                links.stats.hot.add(1);
                self.io.recv_bulk(id);
            } else if up {
                conn.read = ReadOp::Multishot;
                links.stats.hot.add(1);
                self.io.recv_multishot(id);
            } else {
                conn.read = ReadOp::Recv;
                self.io.recv(id);
            }
        }
    }

    /// Sends a connection to the shard that has the link it asks for.
    fn hand_node_over(&mut self, slot: u32) {
        let id = self.shard.links.slots.id(slot);
        if self.shard.links.slots.at(slot).busy() {
            return;
        }
        let Some(mesh) = &mut self.shard.mesh else { return };
        let Some(shard) = mesh.claimed(slot) else { return };
        let Some(acceptor) = mesh.take_claimed(slot) else { return };
        let token = HandoverToken::new(self.shard.shard, id);
        match self.shard.outgoing.put_arrival(shard, token, Arrival::Node(acceptor)) {
            Ok(()) => {
                let conn = self.shard.links.slots.at(slot);
                conn.set_home_shard(shard);
                conn.flags.set(ConnFlags::OP_PENDING);
                self.io.hand_over(id, shard, token);
            }
            Err(NotTaken::Full(Arrival::Node(acceptor))) => {
                mesh.put_claimed(slot, acceptor, shard);
                self.waiting.push(slot);
            }
            Err(NotTaken::Full(Arrival::Client(_)) | NotTaken::Stopped) => {
                self.shard.links.slots.at(slot).phase = Phase::Finishing;
                self.drive_finishing(slot);
            }
        }
    }

    /// What time brings: dials, heartbeats, connections whose time is over, and news for the control thread.
    pub(super) fn tick_nodes(&mut self) {
        let now_ms = self.shard.now.mono_ms;
        self.arm_mesh_accepts();
        let ends = self.shard.ends();
        let Some(mesh) = &mut self.shard.mesh else { return };
        let room = self.shard.links.slots.in_use() < self.shard.links.limits.slots();
        if room && !ends {
            for (token, address) in mesh.take_due_dials(now_ms) {
                self.io.dial(token, address);
            }
        }
        mesh.say_late();
        let mut due = Vec::new();
        mesh.due_sends(now_ms, &mut due);
        let expired = mesh.expired(now_ms);
        let (all, news) = mesh.news(now_ms);
        for slot in due {
            self.shard.links.mark_dirty(slot);
        }
        for slot in expired {
            let id = self.shard.links.slots.id(slot);
            if self.shard.links.slots.at(slot).phase == Phase::Mesh {
                self.node_broken(id);
            }
        }
        self.shard.tell(all, news);
        self.shard.set_mesh_gauges();
    }

    /// The shard is about to end: tells other nodes so.
    pub(super) fn leave_nodes(&mut self) {
        if std::mem::take(&mut self.listening_to_nodes) {
            // What the ring still waits for would hold the port beyond the end of the process.
            let listener = self.listeners.len() as u16;
            self.io.accept_cancel(listener);
            self.io.stop_listening(listener);
        }
        let Some(mesh) = &mut self.shard.mesh else { return };
        mesh.say_goodbye();
        for slot in mesh.slots() {
            self.shard.links.mark_dirty(slot);
        }
    }

    /// What follows from what became of links in this turn.
    pub(super) fn follow_links(&mut self) {
        let Some(mesh) = &mut self.shard.mesh else { return };
        let closing = mesh.take_closing();
        let restarted = mesh.take_restarted();
        let given_back = match mesh.has_ended() {
            // No more than a turn takes of mail, and than whoever it goes to has room for. Of one record each shard gets
            // one at most, with a head of its own: half of the room is for those heads.
            true => mesh.take_given_back(MAIL_TURN_BYTES.min(self.shard.outgoing.room_for_backs() / 2)),
            false => Vec::new(),
        };
        self.gives_back_on = mesh.has_ended() && mesh.gives_on();
        for slot in closing {
            let id = self.shard.links.slots.id(slot);
            if self.shard.links.slots.at(slot).phase == Phase::Mesh {
                self.node_broken(id);
            }
        }
        if !restarted.is_empty() {
            self.shard.directory.walk_again();
            self.shard.rooms_again(&restarted);
            self.shard.watches_again(&restarted);
            self.shard.services_again(&restarted);
        }
        for back in &given_back {
            self.shard.give_back(back);
        }
        self.shard.tell_sharers();
    }
}

impl super::shard::Shard {
    /// News of the mesh for the control thread. What does not fit its queue is told again with the next heartbeat.
    fn tell(&self, all: bool, links: Vec<LinkNews>) {
        let Some(cluster) = self.cluster.as_ref().filter(|_| all || !links.is_empty()) else { return };
        let told = cluster.news.tell(MeshNews::Links { shard: self.shard, all, links });
        self.links.stats.mesh_news_dropped.add(u64::from(!told));
    }

    fn set_mesh_gauges(&self) {
        let Some(mesh) = &self.mesh else { return };
        let stats = &self.links.stats;
        let (links, up) = mesh.link_counts();
        let link = mesh.stats();
        stats.mesh_links.set(links);
        stats.mesh_links_up.set(up);
        stats.mesh_links_in_clear.set(mesh.links_in_clear() as u64);
        stats.mesh_links_missing.set(mesh.links_missing() as u64);
        stats.settled_sets.set(mesh.settled_sets());
        stats.mesh_held_bytes.set(mesh.bytes() as u64);
        stats.mesh_records_out.set(link.records_out);
        stats.mesh_records_in.set(link.records_in);
        stats.mesh_resent.set(link.resent);
        stats.mesh_refused.set(link.refused);
        stats.mesh_duplicates.set(link.duplicates);
        stats.mesh_unknown.set(link.unknown);
        stats.mesh_given_back.set(link.given_back);
        stats.mesh_carry_waits.set(mesh.carry_waits());
        stats.mesh_ended_bytes.set(mesh.ended_bytes() as u64);
        stats.mesh_backs_bytes.set(self.outgoing.backs_pending() as u64);
        stats.mesh_reconnects.set(link.reconnects);
        stats.mesh_failures.set(mesh.failures());
        stats.limit_mesh_later.set(mesh.later_dropped());
        let given_way = mesh.given_way();
        stats.limit_mesh_strangers.set(given_way.to_all);
        stats.limit_mesh_strangers_address.set(given_way.to_address);
        stats.mesh_rtt_us.set(link.rtt_us);
        stats.mesh_time.set(&link.times);
    }
}
