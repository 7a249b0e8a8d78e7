//! The network, and the clients' ends of the connections.

use super::socket::{Segment, Socket, host_address};
use super::world::{Event, World};
use std::net::SocketAddr;

/// What a client's read found.
#[derive(Debug, Default)]
pub struct ClientRead {
    pub bytes: Vec<u8>,
    /// The server has shut its side; nothing follows.
    pub end: bool,
    pub reset: bool,
}

impl World {
    /// Connects to one of the listeners that are open, as SO_REUSEPORT would choose. None when all are closed.
    pub fn connect(&mut self, window: usize) -> Option<usize> {
        let mut open = Vec::new();
        for (ring, kernel) in self.rings.iter().enumerate() {
            let listening = kernel.listeners.iter().enumerate().filter(|(_, listener)| !listener.closed);
            open.extend(listening.map(|(listener, _)| (ring, listener)));
        }
        if open.is_empty() {
            return None;
        }
        let (ring, listener) = *self.rng.pick(&open);
        Some(self.connect_to(ring, listener, window))
    }

    /// Where a client connects from: each from an address of its own.
    pub fn client_address(socket: usize) -> SocketAddr {
        SocketAddr::from((0x0B00_0000_u32.wrapping_add(socket as u32).to_be_bytes(), 40_000))
    }

    /// Where the other end of a connection is, as its acceptor sees it: a client, or another ring at the address of its
    /// host.
    pub fn peer_address(&self, socket: usize) -> SocketAddr {
        match &self.sockets[socket].peer {
            Some(peer) => SocketAddr::new(host_address(peer.host), 40_000),
            None => World::client_address(socket),
        }
    }

    /// Connects to a certain listener.
    pub fn connect_to(&mut self, ring: usize, listener: usize, window: usize) -> usize {
        let socket = self.sockets.len();
        self.sockets.push(Socket::new(self.rings[ring].host, window));
        let due_us = self.inbound_due(socket);
        self.schedule(due_us, Event::Connect { socket, ring, listener });
        self.note("connect", socket as u64, ring as u64);
        socket
    }

    fn inbound_due(&mut self, socket: usize) -> u64 {
        let due_us = self.now_us + 1 + self.rng.below(self.faults.network_us_max);
        let peer = &mut self.sockets[socket];
        peer.inbound_due_us = peer.inbound_due_us.max(due_us);
        peer.inbound_due_us
    }

    fn toward_server(&mut self, socket: usize, segment: Segment) {
        let due_us = self.inbound_due(socket);
        self.schedule(due_us, Event::ToServer { socket, segment });
    }

    /// The client writes. The bytes may come in pieces.
    pub fn client_write(&mut self, socket: usize, bytes: &[u8]) {
        self.note("write", socket as u64, bytes.len() as u64);
        if self.sockets[socket].client_gone {
            return;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let mut len = rest.len();
            if self.rng.chance(self.faults.split) {
                // Short pieces at the front hit the headers.
                let reach = if self.rng.chance(500) { len.min(40) } else { len };
                len = self.rng.within(1, reach as u64) as usize;
            }
            self.toward_server(socket, Segment::Bytes(rest[..len].to_vec()));
            rest = &rest[len..];
        }
    }

    /// The client reads up to `len_max` bytes, which makes room for more.
    pub fn client_read(&mut self, socket: usize, len_max: usize) -> ClientRead {
        let peer = &mut self.sockets[socket];
        let len = peer.arrived.len().min(len_max);
        let bytes: Vec<u8> = peer.arrived.drain(..len).collect();
        peer.unread -= len;
        let all = peer.arrived.is_empty();
        let read = ClientRead { bytes, end: peer.arrived_end && all, reset: peer.arrived_reset && all };
        if len > 0 {
            self.note("read", socket as u64, len as u64);
            self.stir_server(socket);
        }
        read
    }

    /// The client shuts its write side and goes on reading.
    pub fn client_shutdown(&mut self, socket: usize) {
        self.note("client shuts", socket as u64, 0);
        self.toward_server(socket, Segment::End);
    }

    /// The client closes; with bytes unread that is a reset.
    pub fn client_close(&mut self, socket: usize) {
        let unread = !self.sockets[socket].arrived.is_empty();
        self.client_leave(socket, if unread { Segment::Reset } else { Segment::End });
    }

    /// The client breaks the connection off.
    pub fn client_reset(&mut self, socket: usize) {
        self.client_leave(socket, Segment::Reset);
    }

    /// Whether the client has closed or reset its end.
    pub fn client_has_left(&self, socket: usize) -> bool {
        self.sockets[socket].client_gone
    }

    fn client_leave(&mut self, socket: usize, last: Segment) {
        if !std::mem::replace(&mut self.sockets[socket].client_gone, true) {
            self.note("client leaves", socket as u64, u64::from(matches!(last, Segment::Reset)));
            self.toward_server(socket, last);
        }
    }

    /// Takes the sockets whose client has something new.
    pub fn take_stirred(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.stirred)
    }

    pub(super) fn connected(&mut self, socket: usize, ring: usize, listener: usize) {
        if self.hosts[self.rings[ring].host].dark {
            return;
        }
        self.rings[ring].listeners[listener].backlog.push_back(socket);
        self.accept_progress(ring, listener);
    }

    /// The server's kernel turns a connection away.
    pub(super) fn refuse(&mut self, socket: usize) {
        self.sockets[socket].server_gone = true;
        self.toward_client(socket, Segment::Reset);
    }

    pub(super) fn reached_server(&mut self, socket: usize, segment: Segment) {
        let spontaneous = matches!(segment, Segment::Bytes(_)) && self.rng.chance(self.faults.reset);
        let dark = self.hosts[self.sockets[socket].host].dark;
        let peer = &mut self.sockets[socket];
        if dark {
            return;
        }
        if peer.server_gone {
            if matches!(segment, Segment::Bytes(_)) {
                self.toward_client(socket, Segment::Reset);
            }
            return;
        }
        if peer.reset {
            if peer.peer.is_some() && matches!(segment, Segment::Bytes(_)) {
                self.toward_client(socket, Segment::Reset);
            }
            return;
        }
        match segment {
            Segment::Bytes(bytes) => peer.inbound.extend(bytes),
            Segment::End => peer.inbound_end = true,
            Segment::Reset => self.break_off(socket),
        }
        if spontaneous {
            self.break_off(socket);
            self.toward_client(socket, Segment::Reset);
        }
        self.stir_server(socket);
    }

    /// The server's kernel learns that the connection is broken. What was not read may be lost.
    pub(super) fn break_off(&mut self, socket: usize) {
        self.tally.resets += 1;
        self.note("reset", socket as u64, 0);
        let lost = self.rng.chance(500);
        let peer = &mut self.sockets[socket];
        peer.reset = true;
        if lost {
            peer.inbound.clear();
        }
    }

    pub(super) fn reached_client(&mut self, socket: usize, segment: Segment) {
        if self.sockets[socket].peer.is_some() {
            return self.reached_peer(socket, segment);
        }
        let peer = &mut self.sockets[socket];
        match segment {
            Segment::Bytes(bytes) if peer.client_gone => {
                peer.unread -= bytes.len();
                if !peer.server_gone {
                    self.toward_server(socket, Segment::Reset);
                }
                return;
            }
            Segment::Bytes(bytes) => peer.arrived.extend(bytes),
            Segment::End => peer.arrived_end = true,
            Segment::Reset => peer.arrived_reset = true,
        }
        self.stirred.push(socket);
    }
}
