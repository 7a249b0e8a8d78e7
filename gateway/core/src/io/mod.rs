//! What a shard asks of the operating system. `Core` is generic over [`Io`]; the real ring is the gateway's `uring`, the
//! simulator is `sim`.
//!
//! The contract, the same for every implementation:
//! - One operation of a kind at a time for each connection: one read, one send. The core keeps to that.
//! - Every operation ends with exactly one final completion, a cancelled one too. `close` is asked for when none is
//!   left.
//! - A slot is given out again only after its `Closed` completion.
//! - Nothing blocks except [`Io::enter`], and that at most as long as it was told.

#[cfg(any(test, feature = "sim"))]
pub mod sim;

use std::net::SocketAddr;
use std::time::Duration;

/// Errno values the core tells apart. All others mean that the connection has failed.
pub mod errno {
    pub const EAGAIN: i32 = libc::EAGAIN;
    pub const ECANCELED: i32 = libc::ECANCELED;
    pub const ENOBUFS: i32 = libc::ENOBUFS;
}

/// A connection: its slot in the ring's descriptor table, and which use of that slot it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    pub slot: u32,
    /// Counts the uses of the slot, modulo 2^24.
    pub generation: u32,
}

/// Bits of a generation; it travels in the upper part of an operation's user data.
pub const GENERATION_BITS: u32 = 24;

/// A receive buffer that the kernel filled. It goes back with [`Io::release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufId(pub u16);

/// A send under way, for cancelling it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendId(pub u32);

/// Names a connection on its way from one shard to another; unique while the hand-over lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HandoverToken(pub u64);

impl HandoverToken {
    const SLOT_BITS: u32 = 20;
    /// Bits of the whole token; what is left of 64 bits tags the completion.
    pub const BITS: u32 = 12 + Self::SLOT_BITS + GENERATION_BITS;

    /// Slots are below 2^20 (the kernel's bound for a descriptor table), shards below 2^12 (checked with the
    /// configuration).
    pub fn new(shard: u16, conn: ConnId) -> Self {
        HandoverToken(
            (u64::from(shard) << (Self::SLOT_BITS + GENERATION_BITS))
                | (u64::from(conn.slot) << GENERATION_BITS)
                | u64::from(conn.generation),
        )
    }
}

/// How long a dial may take.
pub const DIAL_TIMEOUT: Duration = Duration::from_millis(DIAL_TIMEOUT_MS);
pub const DIAL_TIMEOUT_MS: u64 = 3_000;

/// Tokens of dials with this bit are of servers of services; the others are of other nodes.
pub const SERVER_DIAL: u32 = 1 << 31;

/// Result of an operation: a value, or the errno.
pub type OpResult<T> = Result<T, i32>;

/// Who connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Somebody at this address.
    Address(SocketAddr),
    /// Somebody on this host, over a Unix socket.
    Unix,
}

/// What the ring reports.
#[derive(Debug)]
pub enum Completion {
    /// A connection was accepted into `slot`. Without `more` the accept has ended and must be asked for again. Who
    /// connected is told where that was asked.
    Accept { listener: u16, result: OpResult<u32>, more: bool, peer: Option<Peer> },
    /// A poll has ended: there is something to read, or an error to fetch.
    Readable { conn: ConnId, result: OpResult<()> },
    /// Bytes came; 0 bytes are the end of the stream. Without `more` the read has ended. `nonempty`: there was more to
    /// read; without it there may be.
    Recv { conn: ConnId, result: OpResult<usize>, buf: Option<BufId>, more: bool, nonempty: bool },
    /// The kernel took that many bytes of `buf`, counted from the offset the send was given.
    Sent { conn: ConnId, result: OpResult<usize>, buf: Vec<u8> },
    /// The write side is shut.
    ShutDown { conn: ConnId },
    /// The slot is free.
    Closed { slot: u32 },
    /// The other shard has the connection, or could not take it.
    HandedOver { conn: ConnId, result: OpResult<()> },
    /// A connection from another shard arrived in `slot`.
    Adopted { token: HandoverToken, slot: u32 },
    /// A dial has ended: the connection is in the slot, or the errno.
    Dialed { token: u32, result: OpResult<u32> },
    /// The tick asked for has passed.
    Tick,
    /// The pause asked for has passed.
    Paused,
    /// Another shard has put something into the mailbox.
    Wake,
}

/// Time as the shard sees it, read once a turn.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Milliseconds of a clock that never goes back and does not stand still while the machine is suspended.
    pub mono_ms: u64,
    /// The same in microseconds, to measure with.
    pub mono_us: u64,
    /// Milliseconds since the Unix epoch.
    pub wall_ms: u64,
}

/// Numbers the ring keeps about itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct IoStats {
    /// Completions dropped by the kernel because its queue was full.
    pub cq_overflow: u64,
    /// Submissions flushed early because the queue was full.
    pub sq_full: u64,
    /// Times the kernel took nothing of what was submitted, for want of memory or of room for completions.
    pub submit_retries: u64,
}

/// The operating system, seen from one shard.
pub trait Io {
    /// Hands over what was queued, then waits for a completion, at most `wait_micros` (below a second). Returns how
    /// many there are to take with
    /// [`Io::next`].
    fn enter(&mut self, wait_micros: u32) -> usize;
    /// The next completion of this turn.
    fn next(&mut self) -> Option<Completion>;
    /// The time now.
    fn now(&self) -> Now;

    /// Accepts from a listener: many connections, or one.
    fn accept(&mut self, listener: u16, multishot: bool);
    /// Accepts one connection from a listener, and tells who that is. It costs a little more than [`Io::accept`], which
    /// cannot tell.
    fn accept_with_peer(&mut self, listener: u16);
    /// Ends the accepts of a listener.
    fn accept_cancel(&mut self, listener: u16);
    /// Closes a listener, unless it is closed; the kernel refuses new connections from then on. Its accepts are
    /// cancelled first.
    fn stop_listening(&mut self, listener: u16);
    /// Connects to an address. Ends with one [`Completion::Dialed`] with the same token, after [`DIAL_TIMEOUT_MS`] at
    /// most, a little more under load. Tokens of dials under way are unique.
    fn dial(&mut self, token: u32, address: SocketAddr);
    /// Waits until there is something to read.
    fn poll(&mut self, conn: ConnId);
    /// Reads once, waiting for bytes.
    fn recv(&mut self, conn: ConnId);
    /// Reads until cancelled.
    fn recv_multishot(&mut self, conn: ConnId);
    /// The same into the large receive buffers, which are few; into those of all where there are none.
    fn recv_bulk(&mut self, conn: ConnId);
    /// Ends the read of the connection, whichever it is; its final completion follows.
    fn read_cancel(&mut self, conn: ConnId, read: ReadOp);
    /// Sends `buf[offset..]`; the buffer comes back with the completion.
    fn send(&mut self, conn: ConnId, buf: Vec<u8>, offset: usize) -> SendId;
    /// Ends the sends that the next [`Io::enter`] would hand over: they complete with `ECANCELED`, and none of their
    /// bytes is sent. One that was handed over early goes on.
    fn withdraw_sends(&mut self);
    /// Ends a send; its completion follows.
    fn send_cancel(&mut self, send: SendId);
    /// Shuts the write side: the peer sees the end of the stream after the last byte.
    fn shutdown(&mut self, conn: ConnId);
    /// Closes the connection and frees its slot. With `reset` the kernel drops what the peer has not taken and resets
    /// the connection: otherwise it keeps those bytes for minutes after the close, for a peer that may never read them.
    fn close(&mut self, slot: u32, reset: bool);
    /// Moves the connection's descriptor to another shard's table.
    fn hand_over(&mut self, conn: ConnId, shard: u16, token: HandoverToken);
    /// Wakes another shard so that it drains its mailbox.
    fn wake(&mut self, shard: u16);
    /// Asks for one [`Completion::Tick`] after this many milliseconds.
    fn tick_after(&mut self, ms: u32);
    /// Asks for one [`Completion::Paused`] after this many milliseconds, beside the tick. One pause at a time.
    fn pause(&mut self, ms: u32);

    /// The bytes of a received buffer.
    fn buffer(&self, buf: BufId, len: usize) -> &[u8];
    /// The same, to be changed in place before it is given back.
    fn buffer_mut(&mut self, buf: BufId, len: usize) -> &mut [u8];
    /// Gives a received buffer back to the kernel.
    fn release(&mut self, buf: BufId);
    /// Bytes that nobody can guess. Simulated, they follow from the seed.
    fn random(&mut self) -> [u8; 32];
    /// Numbers the ring keeps about itself.
    fn stats(&self) -> IoStats;
}

/// The read a connection has under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ReadOp {
    /// None.
    None,
    /// A one-shot poll: the connection is cold.
    Poll,
    /// A single receive.
    Recv,
    /// A multishot receive: the connection is hot.
    Multishot,
    /// A multishot receive into large buffers: a link to another node that brings much.
    Bulk,
}
