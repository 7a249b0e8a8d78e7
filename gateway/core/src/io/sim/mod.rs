//! The simulator: a deterministic [`Io`] on a [`World`] of sockets that all shards of a simulated node share.
//!
//! Everything random comes from one seed, and time is virtual, so a seed names a run. Besides playing the kernel, each
//! `SimIo` holds the shard to its side of the contract in `io/mod.rs` and panics when it is broken.

mod clock;
mod faults;
mod kernel;
mod network;
mod peers;
mod ring;
mod socket;
mod world;

pub use clock::Clock;
pub use faults::{Faults, Rng};
pub use peers::Host;
pub use world::{WALL_MS, World};

use super::{BufId, Completion, ConnId, HandoverToken, Io, IoStats, Now, ReadOp, SendId};
use ring::Submission;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

/// The world, shared by the rings and by the simulated clients.
pub type SharedWorld = Rc<RefCell<World>>;

/// One shard's ring.
pub struct SimIo {
    world: SharedWorld,
    ring: usize,
    /// The ring of the node's shard 0; those of its other shards follow.
    first: usize,
    /// Receive buffers the shard holds, by id.
    held: Vec<Option<Vec<u8>>>,
}

impl SimIo {
    /// The ring of a shard of a node whose rings begin at `first`.
    pub fn new(world: SharedWorld, first: usize, shard: u16) -> Self {
        let ring = first + usize::from(shard);
        let buffers = world.borrow().buffer_count(ring);
        SimIo { world, ring, first, held: vec![None; buffers] }
    }

    /// Hands over what was queued, as the next [`Io::enter`] would before it waits.
    pub fn submit(&mut self) {
        let mut world = self.world.borrow_mut();
        world.publish_buffers(self.ring);
        world.submit(self.ring, usize::MAX);
    }

    /// Receive buffers the shard has not given back.
    pub fn buffers_held(&self) -> usize {
        self.held.iter().flatten().count()
    }

    fn push(&mut self, submission: Submission) {
        self.world.borrow_mut().push(self.ring, submission);
    }
}

impl Io for SimIo {
    fn enter(&mut self, wait_micros: u32) -> usize {
        assert!(wait_micros < 1_000_000, "a wait is below a second");
        let mut world = self.world.borrow_mut();
        world.publish_buffers(self.ring);
        world.submit_some(self.ring);
        world.completions(self.ring)
    }

    fn next(&mut self) -> Option<Completion> {
        let (completion, bytes) = self.world.borrow_mut().take_completion(self.ring)?;
        if let Completion::Recv { buf: Some(buf), .. } = &completion {
            let place = &mut self.held[usize::from(buf.0)];
            assert!(place.is_none(), "the kernel filled buffer {} while the shard held it", buf.0);
            *place = Some(bytes);
        }
        Some(completion)
    }

    fn now(&self) -> Now {
        self.world.borrow().now(self.ring)
    }

    fn accept(&mut self, listener: u16, multishot: bool) {
        self.world.borrow_mut().ask_accept(self.ring, listener, multishot, false);
    }

    fn accept_with_peer(&mut self, listener: u16) {
        self.world.borrow_mut().ask_accept(self.ring, listener, false, true);
    }

    fn accept_cancel(&mut self, listener: u16) {
        self.push(Submission::AcceptCancel { listener });
    }

    fn stop_listening(&mut self, listener: u16) {
        self.world.borrow_mut().stop_listening(self.ring, listener);
    }

    fn dial(&mut self, token: u32, address: SocketAddr) {
        self.world.borrow_mut().ask_dial(self.ring, token, address);
    }

    fn poll(&mut self, conn: ConnId) {
        self.world.borrow_mut().ask_read(self.ring, conn, ReadOp::Poll);
    }

    fn recv(&mut self, conn: ConnId) {
        self.world.borrow_mut().ask_read(self.ring, conn, ReadOp::Recv);
    }

    fn recv_multishot(&mut self, conn: ConnId) {
        self.world.borrow_mut().ask_read(self.ring, conn, ReadOp::Multishot);
    }

    fn recv_bulk(&mut self, conn: ConnId) {
        self.world.borrow_mut().ask_read(self.ring, conn, ReadOp::Bulk);
    }

    fn read_cancel(&mut self, conn: ConnId, read: ReadOp) {
        self.world.borrow_mut().ask_read_cancel(self.ring, conn, read);
    }

    fn send(&mut self, conn: ConnId, buf: Vec<u8>, offset: usize) -> SendId {
        self.world.borrow_mut().ask_send(self.ring, conn, buf, offset)
    }

    fn withdraw_sends(&mut self) {
        self.world.borrow_mut().withdraw_sends(self.ring);
    }

    fn send_cancel(&mut self, send: SendId) {
        self.push(Submission::SendCancel { send });
    }

    fn shutdown(&mut self, conn: ConnId) {
        self.world.borrow_mut().ask_shutdown(self.ring, conn);
    }

    fn close(&mut self, slot: u32, reset: bool) {
        self.world.borrow_mut().ask_close(self.ring, slot, reset);
    }

    fn hand_over(&mut self, conn: ConnId, shard: u16, token: HandoverToken) {
        self.world.borrow_mut().ask_hand_over(self.ring, conn, self.first + usize::from(shard), token);
    }

    fn wake(&mut self, shard: u16) {
        self.push(Submission::Wake { ring: self.first + usize::from(shard) });
    }

    fn tick_after(&mut self, ms: u32) {
        self.push(Submission::Tick { ms });
    }

    fn pause(&mut self, ms: u32) {
        self.push(Submission::Pause { ms });
    }

    fn buffer(&self, buf: BufId, len: usize) -> &[u8] {
        &self.held[usize::from(buf.0)].as_ref().expect("only a buffer the kernel filled is read")[..len]
    }

    fn buffer_mut(&mut self, buf: BufId, len: usize) -> &mut [u8] {
        &mut self.held[usize::from(buf.0)].as_mut().expect("only a buffer the kernel filled is read")[..len]
    }

    fn release(&mut self, buf: BufId) {
        let held = self.held[usize::from(buf.0)].take();
        assert!(held.is_some(), "buffer {} was released twice or never filled", buf.0);
        self.world.borrow_mut().release(self.ring, buf);
    }

    fn random(&mut self) -> [u8; 32] {
        self.world.borrow_mut().secret()
    }

    fn stats(&self) -> IoStats {
        IoStats { sq_full: self.world.borrow().sq_full(self.ring), ..IoStats::default() }
    }
}
