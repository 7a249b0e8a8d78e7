//! Connections between rings: dialing, the network between hosts with its cuts, and processes and hosts that are gone.
//!
//! A connection between two rings is two sockets, each the client of the other: what one ring sends travels as towards
//! any client, and arrives as from any client. The window of the one is emptied by the reads of the other.

use super::clock::Clock;
use super::socket::{Peer, Segment, Socket};
use super::world::{Event, World};
use crate::io::{Completion, DIAL_TIMEOUT_MS};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Range;

const GIVE_UP_US: u64 = DIAL_TIMEOUT_MS * 1_000;
/// How soon a kernel asks again for a connection nobody answered for.
const SYN_AGAIN_US: u64 = 1_000_000;
/// Bytes the kernels of both ends hold for a reader that is slow.
const WINDOW_BYTES: usize = 65_536;

/// A machine: its clocks differ from those of others, and it can lose power.
#[derive(Clone, Copy, Debug, Default)]
pub struct Host {
    pub clock: Clock,
    pub wall_offset_ms: i64,
    /// It has no power. Whatever reaches it is lost, and nobody is told.
    pub dark: bool,
}

/// Where a listener can be dialed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    address: SocketAddr,
    ring: usize,
    listener: usize,
}

impl World {
    /// Gives a listener an address, which several may share. From then on it can be dialed.
    pub fn listen(&mut self, address: SocketAddr, ring: usize, listener: u16) {
        self.places.push(Place { address, ring, listener: listener.into() });
    }

    /// Lets a simulated server listen at an address, or not: what is dialed there is a connection whose other end is
    /// used like a client's.
    pub fn listen_outside(&mut self, address: SocketAddr, listens: bool) {
        self.note(if listens { "listen" } else { "deaf" }, address.port().into(), 0);
        if listens {
            self.outside.insert(address);
        } else {
            self.outside.remove(&address);
        }
    }

    /// Takes the connections that came to simulated servers.
    pub fn take_met(&mut self) -> Vec<(SocketAddr, usize)> {
        std::mem::take(&mut self.met)
    }

    /// A simulated client connects to an address. `None` when it is refused at once; a host without power never
    /// answers.
    pub fn connect_at(&mut self, address: SocketAddr, window: usize) -> Option<usize> {
        let places = self.places.iter().filter(|place| place.address == address).copied();
        let (open, closed): (Vec<Place>, Vec<Place>) =
            places.partition(|place| !self.rings[place.ring].listeners[place.listener].closed);
        let place = if open.is_empty() {
            *closed.iter().find(|place| self.hosts[self.rings[place.ring].host].dark)?
        } else {
            *self.rng.pick(&open)
        };
        Some(self.connect_to(place.ring, place.listener, window))
    }

    pub(super) fn start_dial(&mut self, ring: usize, token: u32, address: SocketAddr) {
        let give_up_us = self.now_us + GIVE_UP_US;
        self.tally.dials += 1;
        let unanswered = self.rng.chance(self.faults.dial_timeout);
        let late_us = if self.rng.chance(self.faults.dial_late) { self.rng.below(GIVE_UP_US) } else { 0 };
        let due_us = self.now_us + 1 + self.rng.below(self.faults.network_us_max) + late_us;
        let due_us = if unanswered { give_up_us } else { due_us.min(give_up_us) };
        self.schedule(due_us, Event::Syn { ring, token, address, give_up_us });
    }

    /// A ring's wish to connect reaches the address.
    pub(super) fn syn(&mut self, ring: usize, token: u32, address: SocketAddr, give_up_us: u64) {
        if self.rings[ring].dead {
            return;
        }
        if self.now_us >= give_up_us {
            return self.dial_failed(ring, token, libc::ETIMEDOUT);
        }
        let own = self.rings[ring].host;
        if self.outside.contains(&address) && !self.rng.chance(self.faults.dial_refused) {
            let socket = self.sockets.len();
            self.sockets.push(Socket::new(own, WINDOW_BYTES));
            self.met.push((address, socket));
            let due_us = self.now_us + 1 + self.rng.below(self.faults.network_us_max);
            return self.schedule(due_us, Event::Established { ring, token, socket });
        }
        let places: Vec<Place> = self.places.iter().filter(|place| place.address == address).copied().collect();
        let reachable: Vec<Place> =
            places.iter().filter(|place| !self.is_parted(own, self.rings[place.ring].host)).copied().collect();
        if reachable.is_empty() && !places.is_empty() {
            let due_us = (self.now_us + SYN_AGAIN_US).min(give_up_us);
            return self.schedule(due_us, Event::Syn { ring, token, address, give_up_us });
        }
        let listening = |place: &Place| !self.rings[place.ring].listeners[place.listener].closed;
        let open: Vec<Place> = reachable.into_iter().filter(listening).collect();
        if open.is_empty() || self.rng.chance(self.faults.dial_refused) {
            return self.dial_failed(ring, token, libc::ECONNREFUSED);
        }
        let place = *self.rng.pick(&open);
        let other = self.rings[place.ring].host;
        let (dialer, acceptor) = (self.sockets.len(), self.sockets.len() + 1);
        let peer = |socket, host| Some(Peer { socket, host, held: VecDeque::new() });
        self.sockets.push(Socket { peer: peer(acceptor, other), ..Socket::new(own, WINDOW_BYTES) });
        self.sockets.push(Socket { peer: peer(dialer, own), ..Socket::new(other, WINDOW_BYTES) });
        let due_us = self.now_us + 1 + self.rng.below(self.faults.network_us_max);
        self.schedule(due_us, Event::Established { ring, token, socket: dialer });
        self.connected(acceptor, place.ring, place.listener);
    }

    fn dial_failed(&mut self, ring: usize, token: u32, errno: i32) {
        self.tally.dials_failed += 1;
        self.post(ring, 0, Completion::Dialed { token, result: Err(errno) }, Vec::new());
    }

    /// The ring that dialed learns of its connection, if it has a slot for it.
    pub(super) fn established(&mut self, ring: usize, token: u32, socket: usize) {
        let place = if self.rings[ring].dead { None } else { self.free_slot(ring) };
        match place {
            Some(slot) => {
                let after_us = self.install(ring, slot, socket);
                self.post(ring, after_us, Completion::Dialed { token, result: Ok(slot) }, Vec::new());
            }
            None => {
                self.let_go(socket);
                if !self.rings[ring].dead {
                    self.dial_failed(ring, token, libc::ENFILE);
                }
            }
        }
    }

    /// A ring has sent something to another one. Bytes may come in pieces.
    pub(super) fn toward_peer(&mut self, socket: usize, segment: Segment) {
        if self.sockets[socket].reset && !matches!(segment, Segment::Reset) {
            // A broken connection says nothing when it is closed.
            return;
        }
        let Segment::Bytes(mut bytes) = segment else { return self.travel(socket, segment) };
        while !bytes.is_empty() {
            let len = if self.rng.chance(self.faults.split) {
                self.rng.within(1, bytes.len() as u64) as usize
            } else {
                bytes.len()
            };
            let rest = bytes.split_off(len);
            self.travel(socket, Segment::Bytes(bytes));
            bytes = rest;
        }
    }

    fn travel(&mut self, socket: usize, segment: Segment) {
        let due_us = self.outbound_due(socket);
        self.schedule(due_us, Event::ToClient { socket, segment });
    }

    /// What a ring has sent arrives at the other one, unless the network holds it back.
    pub(super) fn reached_peer(&mut self, socket: usize, segment: Segment) {
        let own = self.sockets[socket].host;
        let peer = self.sockets[socket].peer.as_mut().expect("asked for connections between rings");
        let (to, other) = (peer.socket, peer.host);
        if !self.is_severed(own, other) {
            return self.reached_server(to, segment);
        }
        self.tally.segments_held += 1;
        let peer = self.sockets[socket].peer.as_mut().expect("looked at above");
        peer.held.push_back(segment);
    }

    /// Whether a host does not hear another.
    fn is_severed(&self, host: usize, other: usize) -> bool {
        self.cuts.contains(&(host, other)) || self.hosts[other].dark
    }

    /// Whether one of two hosts does not hear the other, so that neither gets to an answer.
    fn is_parted(&self, host: usize, other: usize) -> bool {
        self.is_severed(host, other) || self.cuts.contains(&(other, host))
    }

    /// Cuts the network from one host to another, but not back, or heals it. Clients are not affected.
    pub fn cut(&mut self, from: usize, to: usize, cut: bool) {
        self.note(if cut { "cut" } else { "heal" }, from as u64, to as u64);
        if cut {
            self.cuts.insert((from, to));
        } else {
            self.cuts.remove(&(from, to));
            self.release_held();
        }
    }

    /// The clock of a host stood still for so long.
    pub fn clock_stood(&mut self, host: usize, us: u64) {
        self.hosts[host].clock.stood_us += us;
    }

    /// What was held back arrives where it can now. What is on its way has been sent later.
    fn release_held(&mut self) {
        for socket in 0..self.sockets.len() {
            let Some(peer) = &self.sockets[socket].peer else { continue };
            let to = peer.socket;
            if peer.held.is_empty() || self.is_severed(self.sockets[socket].host, peer.host) {
                continue;
            }
            let peer = self.sockets[socket].peer.as_mut().expect("looked at above");
            for segment in std::mem::take(&mut peer.held) {
                self.reached_server(to, segment);
            }
        }
    }

    /// Kills the process that has these rings. Its kernel closes its connections, unless the host loses power with it.
    pub fn kill(&mut self, rings: Range<usize>, power_lost: bool) {
        for ring in rings {
            self.note("kill", ring as u64, u64::from(power_lost));
            let host = self.rings[ring].host;
            self.hosts[host].dark |= power_lost;
            let kernel = &mut self.rings[ring];
            kernel.dead = true;
            kernel.submissions.clear();
            kernel.completions.clear();
            let mut left = Vec::new();
            for listener in &mut kernel.listeners {
                listener.closed = true;
                listener.armed.clear();
                left.extend(listener.backlog.drain(..));
            }
            for (slot, place) in (0..).zip(&mut kernel.slots) {
                if let Some(usage) = place.usage.take() {
                    left.push(usage.socket);
                    self.sockets[usage.socket].holders.retain(|holder| *holder != (ring, slot));
                }
            }
            for socket in left {
                if !self.sockets[socket].holders.is_empty() {
                    continue;
                }
                if power_lost {
                    self.sockets[socket].server_gone = true;
                } else {
                    self.let_go(socket);
                }
            }
        }
    }

    /// Whether a host has no power.
    pub fn is_dark(&self, host: usize) -> bool {
        self.hosts[host].dark
    }

    /// The host has power again. Its kernel knows none of the connections it had.
    pub fn power_up(&mut self, host: usize) {
        self.note("power", host as u64, 0);
        self.hosts[host].dark = false;
        self.release_held();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Faults, SharedWorld, SimIo};
    use super::*;
    use crate::io::{ConnId, Io, ReadOp, errno};
    use crate::limits::Limits;
    use std::cell::RefCell;
    use std::rc::Rc;

    impl World {
        fn part(&mut self, cut: bool) {
            self.cut(0, 1, cut);
            self.cut(1, 0, cut);
        }
    }

    /// Two hosts with a ring each, connected: ring 0 has dialed.
    struct Pair {
        world: SharedWorld,
        rings: [SimIo; 2],
        conns: [ConnId; 2],
        now_us: u64,
    }

    const ADDRESS: &str = "10.0.0.1:7790";

    impl Pair {
        fn new() -> Self {
            let limits = Limits { connections_max: 2, ..Limits::default() };
            let mut world = World::new(1, Faults::none(), 1, 0, &limits, false);
            let host = world.add_host(Host::default());
            let first = world.add_rings(host, 1, 1, &limits);
            world.listen(ADDRESS.parse().unwrap(), first, 0);
            let world = Rc::new(RefCell::new(world));
            let rings = [0, 1].map(|ring| SimIo::new(world.clone(), ring, 0));
            let mut pair = Pair { world, rings, conns: [ConnId { slot: 0, generation: 1 }; 2], now_us: 0 };
            pair.rings[1].accept(0, true);
            pair.rings[0].dial(7, ADDRESS.parse().unwrap());
            let Completion::Dialed { token: 7, result: Ok(slot) } = pair.expect(0) else { panic!("not connected") };
            pair.conns[0].slot = slot;
            let Completion::Accept { result: Ok(slot), .. } = pair.expect(1) else { panic!("not accepted") };
            pair.conns[1].slot = slot;
            for end in 0..2 {
                let conn = pair.conns[end];
                pair.rings[end].recv_multishot(conn);
            }
            pair.pass(10);
            pair
        }

        fn pass(&mut self, ms: u64) {
            for ring in &mut self.rings {
                ring.submit();
            }
            self.now_us += ms * 1_000;
            self.world.borrow_mut().advance(self.now_us);
        }

        /// The next completion of an end; gives up after five seconds.
        fn expect(&mut self, end: usize) -> Completion {
            for _ in 0..5_000 {
                if let Some(completion) = self.rings[end].next() {
                    return completion;
                }
                self.pass(1);
            }
            panic!("nothing came");
        }

        fn send(&mut self, end: usize, bytes: &[u8]) {
            let conn = self.conns[end];
            self.rings[end].send(conn, bytes.to_vec(), 0);
            assert!(matches!(self.expect(end), Completion::Sent { result: Ok(len), .. } if len == bytes.len()));
        }

        fn expect_bytes(&mut self, end: usize, wanted: &[u8]) {
            let Completion::Recv { result: Ok(len), buf: Some(buf), .. } = self.expect(end) else { panic!("no bytes") };
            assert_eq!(self.rings[end].buffer(buf, len), wanted);
            self.rings[end].release(buf);
        }

        fn expect_broken(&mut self, end: usize) {
            assert!(matches!(self.expect(end), Completion::Recv { result: Err(libc::ECONNRESET), .. }));
        }

        fn expect_nothing(&mut self, end: usize, ms: u64) {
            self.pass(ms);
            assert!(self.rings[end].next().is_none());
        }
    }

    #[test]
    fn a_cut_holds_bytes_back_until_it_heals() {
        let mut pair = Pair::new();
        pair.world.borrow_mut().part(true);
        pair.send(0, b"held ");
        pair.send(1, b"back");
        pair.expect_nothing(0, 1_000);
        pair.expect_nothing(1, 1_000);
        pair.world.borrow_mut().part(false);
        pair.expect_bytes(1, b"held ");
        pair.expect_bytes(0, b"back");
        pair.send(0, b"again");
        pair.expect_bytes(1, b"again");
        pair.expect_nothing(0, 5_000);
    }

    #[test]
    fn a_cut_of_one_way_lets_the_other_pass() {
        let mut pair = Pair::new();
        pair.world.borrow_mut().cut(0, 1, true);
        pair.send(0, b"held");
        pair.send(1, b"heard");
        pair.expect_bytes(0, b"heard");
        pair.expect_nothing(1, 1_000);
        pair.rings[0].dial(1, ADDRESS.parse().unwrap());
        assert!(matches!(pair.expect(0), Completion::Dialed { token: 1, result: Err(libc::ETIMEDOUT) }));
        pair.world.borrow_mut().cut(0, 1, false);
        pair.expect_bytes(1, b"held");
    }

    #[test]
    fn a_connection_closed_during_a_cut_ends_when_it_heals() {
        let mut pair = Pair::new();
        pair.world.borrow_mut().part(true);
        let conn = pair.conns[0];
        pair.rings[0].read_cancel(conn, ReadOp::Multishot);
        assert!(matches!(pair.expect(0), Completion::Recv { result: Err(errno::ECANCELED), .. }));
        pair.rings[0].close(conn.slot, false);
        pair.send(1, b"still there?");
        pair.expect_nothing(1, 60_000);
        pair.world.borrow_mut().part(false);
        assert!(matches!(pair.expect(1), Completion::Recv { result: Ok(0), .. }));
        let conn = pair.conns[1];
        pair.rings[1].recv_multishot(conn);
        pair.expect_broken(1);
    }

    #[test]
    fn a_dial_over_a_cut_times_out_and_finds_a_way_once_it_heals() {
        let mut pair = Pair::new();
        pair.world.borrow_mut().part(true);
        let asked_us = pair.now_us;
        pair.rings[0].dial(1, ADDRESS.parse().unwrap());
        assert!(matches!(pair.expect(0), Completion::Dialed { token: 1, result: Err(libc::ETIMEDOUT) }));
        assert!((GIVE_UP_US..GIVE_UP_US + 50_000).contains(&(pair.now_us - asked_us)));
        pair.rings[0].dial(2, ADDRESS.parse().unwrap());
        pair.pass(1_500);
        pair.world.borrow_mut().part(false);
        assert!(matches!(pair.expect(0), Completion::Dialed { token: 2, result: Ok(_) }));
    }

    #[test]
    fn a_killed_process_ends_its_connections() {
        let mut pair = Pair::new();
        pair.send(1, b"last words");
        pair.world.borrow_mut().kill(1..2, false);
        pair.expect_bytes(0, b"last words");
        assert!(matches!(pair.expect(0), Completion::Recv { result: Ok(0), .. }));
        pair.rings[0].dial(1, ADDRESS.parse().unwrap());
        assert!(matches!(pair.expect(0), Completion::Dialed { token: 1, result: Err(libc::ECONNREFUSED) }));
    }

    #[test]
    fn a_host_without_power_is_silent_and_back_it_knows_of_nothing() {
        let mut pair = Pair::new();
        pair.world.borrow_mut().kill(1..2, true);
        pair.expect_nothing(0, 60_000);
        pair.rings[0].dial(1, ADDRESS.parse().unwrap());
        assert!(matches!(pair.expect(0), Completion::Dialed { token: 1, result: Err(libc::ETIMEDOUT) }));
        pair.send(0, b"anybody?");
        pair.expect_nothing(0, 1_000);
        pair.world.borrow_mut().power_up(1);
        pair.expect_broken(0);
        pair.rings[0].dial(2, ADDRESS.parse().unwrap());
        assert!(matches!(pair.expect(0), Completion::Dialed { token: 2, result: Err(libc::ECONNREFUSED) }));
    }
}
