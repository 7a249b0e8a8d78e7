//! Plain sockets: what both ends of a connection take in the kernel when nothing is armed on either.
//!
//! The bench connects to itself. Both ends are alike, except that a connecting socket also has the entry of its port;
//! what that takes is measured apart, as the difference between sockets with and without one. (Slab caches of the same
//! object size are merged under one name, so it cannot be read from the list of caches.)

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, AsRawFd},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;
use socket2::Socket;
use trunkline_proto::Frame;

use crate::{
    failure::Failure,
    fleet::{Arm, Driver, Fleet},
    process::KernelMemory,
    progress::Progress,
    ring::{Completion, Ring, RingShape, Wait},
    sockets::{self, INSTALL_BATCH, tables_for},
};

/// Between two samples of memory that is to come to rest.
const SETTLE_INTERVAL: Duration = Duration::from_millis(200);
/// How long it may take to do so, and how long plain connections may stand still.
pub(crate) const SETTLE_PATIENCE: Duration = Duration::from_secs(10);
/// The memory of fewer connections is lost in what else goes on in a kernel: it is not worth the wait.
const SETTLE_CONNECTIONS_MIN: u32 = 5_000;
/// Connections under way at the same time: half of the standard library's backlog.
const OPENING_MAX: u32 = 64;

/// Kernel memory in bytes for each connection.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Share {
    /// Slab objects in use and vmalloc areas; with a server also the page tables of its process.
    pub(crate) in_use: f64,
    /// Pages of slab caches alone; see [`KernelMemory::slab_pages`].
    pub(crate) slab_pages: f64,
    /// Whether kernel memory had come to rest at every sample that went into this.
    pub(crate) settled: bool,
}

impl Share {
    /// Growth divided by connections.
    pub(crate) fn of(grown: &KernelMemory, connections: u32) -> Share {
        let each = |bytes: i64| bytes as f64 / f64::from(connections);
        Share { in_use: each(grown.in_use()), slab_pages: each(grown.slab_pages), settled: grown.settled }
    }

    /// What is left without `other`.
    pub(crate) fn less(self, other: Share) -> Share {
        self.combine(other, |all, other| all - other)
    }

    fn combine(self, other: Share, combine: impl Fn(f64, f64) -> f64) -> Share {
        Share {
            in_use: combine(self.in_use, other.in_use),
            slab_pages: combine(self.slab_pages, other.slab_pages),
            settled: self.settled && other.settled,
        }
    }
}

/// What plain sockets take.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Plain {
    /// An accepted socket: the least a server's end can take.
    pub(crate) accepted: Share,
    /// A connecting socket with its port: the client's end.
    pub(crate) connecting: Share,
}

/// Measures `connections` plain connections.
pub(crate) fn measure(connections: u32, progress: &Progress) -> Result<Plain, Failure> {
    // What the kernel makes once is made before the first sample.
    both_ends(connections.min(INSTALL_BATCH), progress)?;
    let both = both_ends(connections, progress)?;
    let blank = held(connections, |_| sockets::blank())?;
    let with_port = held(connections, sockets::with_port)?;
    let port = with_port.combine(blank, |with, without| (with - without).max(0.0));
    let accepted = both.combine(port, |both, port| (both - port) / 2.0);
    Ok(Plain { accepted, connecting: accepted.combine(port, |accepted, port| accepted + port) })
}

/// Kernel memory once it has stopped changing by more than a few bytes for each connection, or after a while although
/// it has not: then something else is at work on this machine.
pub(crate) fn settled_kernel_memory(connections: u32) -> Result<KernelMemory, Failure> {
    let tolerance = 8 * i64::from(connections).max(1_000);
    let few = connections < SETTLE_CONNECTIONS_MIN;
    let (interval, patience) =
        if few { (SETTLE_INTERVAL / 4, SETTLE_INTERVAL * 2) } else { (SETTLE_INTERVAL, SETTLE_PATIENCE) };
    let deadline = Instant::now() + patience;
    let mut before = KernelMemory::now()?;
    let mut calm = 0;
    loop {
        thread::sleep(interval);
        let now = KernelMemory::now()?;
        calm = if (now.in_use() - before.in_use()).abs() <= tolerance { calm + 1 } else { 0 };
        if calm == 3 || Instant::now() > deadline {
            return Ok(KernelMemory { settled: calm == 3, ..now });
        }
        before = now;
    }
}

/// Direct descriptors of as many rings as it takes.
struct Shelf {
    rings: Vec<Ring>,
    slots: u32,
    taken: u32,
}

impl Shelf {
    fn new(connections: u32) -> Result<Shelf, Failure> {
        let (tables, slots) = tables_for(connections)?;
        let shape = RingShape { submissions: 1_024, completions: 4_096, slots, buffers: 1, buffer_bytes: 4_096 };
        let rings = (0..tables).map(|_| Ring::new(shape)).collect::<io::Result<_>>().map_err(failed)?;
        Ok(Shelf { rings, slots, taken: 0 })
    }

    /// The ring with the next free slot, and how many it has left.
    fn open_ring(&mut self) -> (&mut Ring, u32) {
        let index = (self.taken / self.slots) as usize;
        (&mut self.rings[index], self.slots - self.taken % self.slots)
    }

    fn close(mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + SETTLE_PATIENCE;
        for (table, ring) in (0..).zip(&mut self.rings) {
            let mut open = self.taken.saturating_sub(table * self.slots).min(self.slots);
            for slot in 0..open {
                ring.close(slot).map_err(failed)?;
            }
            while open > 0 {
                if Instant::now() > deadline {
                    let waiting_for = format!("{open} plain sockets to close");
                    return Err(Failure::Stalled { waiting_for, after: SETTLE_PATIENCE });
                }
                ring.turn(Wait::AtMost { completions: 1, timeout: Duration::from_millis(100) }).map_err(failed)?;
                while let Some(completion) = ring.next() {
                    open -= u32::from(matches!(completion, Completion::Closed { .. }));
                }
            }
        }
        Ok(())
    }
}

fn failed(error: io::Error) -> Failure {
    Failure::system("holding plain sockets", error)
}

/// What sockets that are not connected take.
fn held(connections: u32, socket: impl Fn(u32) -> io::Result<Socket>) -> Result<Share, Failure> {
    let mut shelf = Shelf::new(connections)?;
    let before = settled_kernel_memory(connections)?;
    while shelf.taken < connections {
        let (first, taken) = (shelf.taken % shelf.slots, shelf.taken);
        let (ring, room) = shelf.open_ring();
        let batch = INSTALL_BATCH.min(room).min(connections - taken);
        let sockets = (taken..taken + batch).map(&socket).collect::<io::Result<Vec<_>>>().map_err(failed)?;
        let raw: Vec<_> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
        ring.install(first, &raw).map_err(failed)?;
        shelf.taken += batch;
    }
    let grown = settled_kernel_memory(connections)?.since(&before);
    shelf.close()?;
    Ok(Share::of(&grown, connections))
}

/// Counts connections, on which nothing is armed.
struct Connected(u32);

impl Driver for Connected {
    fn connected(&mut self, _: u32, _: &mut Vec<u8>) -> Result<Arm, Failure> {
        self.0 += 1;
        Ok(Arm::Nothing)
    }

    fn frame(&mut self, _: u32, _: &Frame<'_>, _: u64, _: &mut Vec<u8>) -> Result<(), Failure> {
        unreachable!("nothing is armed")
    }

    fn lost(&mut self, _: u32, how: &str) -> Failure {
        Failure::ServerGone(format!("a plain connection was lost: {how}"))
    }
}

/// What both ends of connections take together.
fn both_ends(connections: u32, progress: &Progress) -> Result<Share, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
    let SocketAddr::V4(address) = listener.local_addr().map_err(failed)? else {
        unreachable!("the listener has an IPv4 address")
    };
    let mut shelf = Shelf::new(connections)?;
    let mut fleet = Fleet::new(address, connections, 0)?;
    let before = settled_kernel_memory(connections)?;
    let bar = progress.phase("pairs", u64::from(connections));
    let mut connected = Connected(0);
    let mut armed = 0;
    let mut last_progress = Instant::now();
    while shelf.taken < connections || connected.0 < connections {
        let opening = fleet.opened() - shelf.taken.min(connected.0);
        fleet.open((connections - fleet.opened()).min(OPENING_MAX - opening))?;
        let done_before = shelf.taken + connected.0;
        fleet.turn(&mut connected, Duration::ZERO)?;
        let left = connections - shelf.taken;
        if left > 0 {
            let (ring, room) = shelf.open_ring();
            while armed < room.min(left).min(OPENING_MAX) {
                ring.accept_one(listener.as_fd()).map_err(failed)?;
                armed += 1;
            }
            let accepted = accepted(ring)?;
            armed -= accepted;
            shelf.taken += accepted;
            bar.set(u64::from(shelf.taken));
        }
        if shelf.taken + connected.0 > done_before {
            last_progress = Instant::now();
        } else if last_progress.elapsed() > SETTLE_PATIENCE {
            let waiting_for = format!("plain connections; {} of {connections} are there", shelf.taken);
            return Err(Failure::Stalled { waiting_for, after: SETTLE_PATIENCE });
        }
    }
    let grown = settled_kernel_memory(connections)?.since(&before);
    fleet.close()?;
    shelf.close()?;
    Ok(Share::of(&grown, connections))
}

/// How many connections a ring has accepted within a moment.
fn accepted(ring: &mut Ring) -> Result<u32, Failure> {
    ring.turn(Wait::AtMost { completions: 1, timeout: Duration::from_millis(1) }).map_err(failed)?;
    let mut accepted = 0;
    while let Some(completion) = ring.next() {
        match completion {
            Completion::Accepted { .. } => accepted += 1,
            Completion::AcceptEnded { errno } => return Err(failed(io::Error::from_raw_os_error(errno))),
            _ => {}
        }
    }
    Ok(accepted)
}
