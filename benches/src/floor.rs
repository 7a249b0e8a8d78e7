//! The floor: a TCP echo on the leanest ring set-up found. It reads nothing of what it echoes, so its cost for a
//! message is what the kernel asks for receiving and sending it, and no gateway can do with less.
//!
//! What makes it lean: multishot accept into direct descriptors, multishot receive, an echo straight from the buffer
//! the bytes arrived in, no completion for a send that worked, one system call for each turn.

use std::{
    io::{self, Write as _},
    net::{SocketAddr, TcpListener},
    os::fd::AsFd,
    time::Duration,
};

use crate::{
    affinity,
    failure::Failure,
    ring::{Buffer, Completion, ReceiveEnd, Ring, RingShape, Wait, os},
};

/// Bytes of a receive buffer: 32 messages of 96 bytes arrive in one piece.
const BUFFER_BYTES: u32 = 4_096;
/// Buffers in all: 16 MiB. A turn of 1,024 completions takes twice as many, one half echoing while the other fills.
const BUFFERS: u16 = 4_096;
/// Completions taken at once when busy. Compared with 0, 64 and 256: no difference while each message comes alone,
/// up to a tenth less CPU for a message when several come together, latencies no longer.
pub(crate) const BATCH: u32 = 1_024;
const BACKLOG: i32 = 4_096;
/// A turn this full suggests that more is waiting than one plain enter takes (20 events since Linux 6.13).
const BUSY_COMPLETIONS: usize = 16;

/// A peer that lets this much pile up is not reading any more and is closed.
const BACKLOG_BYTES_MAX: usize = 4 << 20;

/// What the server does with connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// It sends back what arrives.
    Echo,
    /// It accepts them, and nothing is armed: an accepted socket is the least that an idle connection can be.
    Accept,
    /// It sends what arrives on one of them on all others: the least that a message to many can be.
    FanOut,
}

/// What the server keeps for a connection.
#[derive(Default)]
struct Peer {
    /// It is there.
    open: bool,
    /// The turn of its last echo: a second one in the same turn waits for the next.
    echoed_in: u32,
    /// The peer takes no more for now.
    blocked: bool,
    /// Bytes to be echoed later.
    backlog: Vec<u8>,
}

struct Floor {
    ring: Ring,
    listener: TcpListener,
    peers: Vec<Peer>,
    turn: u32,
    manner: Manner,
    /// What has arrived in this turn and goes to all but the peer that it came from.
    cast: Vec<u8>,
    caster: u32,
    /// Echoes of this turn.
    echoes: Vec<(u32, Buffer)>,
    /// Slots whose backlog may go out now.
    late: Vec<u32>,
}

/// Serves until standard input ends.
pub(crate) fn serve(listen: SocketAddr, core: usize, batch: u32, manner: Manner) -> Result<(), Failure> {
    affinity::pin(core)?;
    let limit = os::raise_descriptor_limit().map_err(|error| Failure::system("reading the descriptor limit", error))?;
    let listener = bind(listen).map_err(|error| Failure::system(&format!("listening on {listen}"), error))?;
    let address = listener.local_addr().map_err(|error| Failure::system("reading the listener's address", error))?;
    // The kernel counts the table against the limit of open files and allows 2^20 slots at most.
    let slots = limit.min(1 << 20) as u32;
    let shape =
        RingShape { submissions: 4_096, completions: 65_536, slots, buffers: BUFFERS, buffer_bytes: BUFFER_BYTES };
    let ring = Ring::new(shape).map_err(|error| Failure::system("setting up the ring", error))?;
    let mut floor = Floor {
        ring,
        listener,
        peers: (0..slots).map(|_| Peer::default()).collect(),
        turn: 0,
        manner,
        cast: Vec::new(),
        caster: 0,
        echoes: Vec::new(),
        late: Vec::new(),
    };
    println!("listening on {address}");
    io::stdout().flush().map_err(|error| Failure::system("writing to standard output", error))?;
    floor.run(batch).map_err(|error| Failure::system("turning the ring", error))
}

fn bind(listen: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(listen), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit it: without, an echo would wait for the acknowledgement of the one before.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&listen.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

impl Floor {
    fn run(&mut self, batch: u32) -> io::Result<()> {
        let stdin = io::stdin();
        self.ring.watch(stdin.as_fd())?;
        self.ring.accept_many(self.listener.as_fd())?;
        let mut taken = 0;
        loop {
            let sent = !self.echoes.is_empty() || !self.cast.is_empty();
            self.flush()?;
            self.turn = self.turn.wrapping_add(1);
            // After sends look once more before sleeping: a peer that answers at once saves both sides a sleep and a
            // wake-up, which cost as much as the echo itself.
            let wait = if sent || !self.late.is_empty() {
                Wait::No
            } else if batch > 0 && taken >= BUSY_COMPLETIONS {
                Wait::AtMost { completions: batch, timeout: Duration::ZERO }
            } else {
                Wait::One
            };
            taken = self.ring.turn(wait)?;
            while let Some(completion) = self.ring.next() {
                match completion {
                    Completion::Accepted { slot } => {
                        self.peers[slot as usize] = Peer { open: true, ..Peer::default() };
                        if self.manner != Manner::Accept {
                            self.ring.receive_many(slot)?;
                        }
                    }
                    Completion::AcceptEnded { errno: 0 | libc::ECONNABORTED } => {
                        self.ring.accept_many(self.listener.as_fd())?;
                    }
                    Completion::AcceptEnded { errno } => return Err(io::Error::from_raw_os_error(errno)),
                    Completion::Received { slot, buffer, armed } => self.received(slot, buffer, armed)?,
                    Completion::ReceiveEnded { slot, end: ReceiveEnd::OutOfBuffers } => self.ring.receive_many(slot)?,
                    Completion::ReceiveEnded { slot, .. } => {
                        self.peers[slot as usize].open = false;
                        self.ring.close(slot)?;
                    }
                    Completion::SendStopped { slot, errno: 0, rest } => {
                        let peer = &mut self.peers[slot as usize];
                        peer.blocked = true;
                        peer.backlog.splice(0..0, rest);
                        self.ring.wait_writable(slot)?;
                    }
                    // The receive of a connection that is gone ends as well, and closes it.
                    Completion::SendStopped { .. } | Completion::Closed { .. } => {}
                    Completion::Writable { slot } => {
                        self.peers[slot as usize].blocked = false;
                        self.late.push(slot);
                    }
                    Completion::Watched => return Ok(()),
                    Completion::Connected { .. } => unreachable!("the floor never connects"),
                }
            }
        }
    }

    fn received(&mut self, slot: u32, buffer: Buffer, armed: bool) -> io::Result<()> {
        if !armed {
            self.ring.receive_many(slot)?;
        }
        if self.manner == Manner::FanOut {
            self.cast.extend_from_slice(self.ring.received(&buffer).0);
            self.caster = slot;
            self.ring.recycle(buffer);
            return Ok(());
        }
        let peer = &mut self.peers[slot as usize];
        if peer.echoed_in == self.turn || peer.blocked || !peer.backlog.is_empty() {
            peer.backlog.extend_from_slice(self.ring.received(&buffer).0);
            self.ring.recycle(buffer);
            if peer.backlog.len() > BACKLOG_BYTES_MAX {
                return self.ring.close(slot);
            }
            self.late.push(slot);
            return Ok(());
        }
        peer.echoed_in = self.turn;
        self.echoes.push((slot, buffer));
        Ok(())
    }

    /// Queues one send of the same bytes for each connection but the one they came from.
    fn cast_to_all(&mut self, start: usize, len: usize) -> io::Result<()> {
        for (slot, peer) in (0..).zip(&mut self.peers) {
            if !peer.open || slot == self.caster {
                continue;
            }
            // Its backlog goes first, and may be on its way in this turn.
            if peer.blocked || !peer.backlog.is_empty() || peer.echoed_in == self.turn {
                peer.backlog.extend_from_slice(&self.cast);
                self.late.push(slot);
                continue;
            }
            self.ring.send_staged(slot, start, len)?;
        }
        self.cast.clear();
        Ok(())
    }

    /// Queues one send for each connection that has something to echo.
    fn flush(&mut self) -> io::Result<()> {
        let mut parked = Vec::new();
        let mut ready = Vec::new();
        for slot in self.late.drain(..) {
            let peer = &mut self.peers[slot as usize];
            if peer.blocked || peer.backlog.is_empty() {
                continue;
            }
            if peer.echoed_in == self.turn {
                parked.push(slot);
                continue;
            }
            peer.echoed_in = self.turn;
            let staged = self.ring.staged();
            ready.push((slot, staged.len(), peer.backlog.len()));
            staged.append(&mut peer.backlog);
        }
        self.late = parked;
        let (start, len) = (self.ring.staged().len(), self.cast.len());
        self.ring.staged().extend_from_slice(&self.cast);
        self.ring.begin_sends();
        if len > 0 {
            self.cast_to_all(start, len)?;
        }
        for (slot, start, len) in ready {
            self.ring.send_staged(slot, start, len)?;
        }
        for (slot, buffer) in self.echoes.drain(..) {
            let peer = &mut self.peers[slot as usize];
            if peer.blocked {
                peer.backlog.extend_from_slice(self.ring.received(&buffer).0);
                self.ring.recycle(buffer);
            } else {
                self.ring.send_buffer(slot, buffer)?;
            }
        }
        Ok(())
    }
}
