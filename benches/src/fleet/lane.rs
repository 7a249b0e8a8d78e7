//! One ring of a fleet, and the connections on it.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use trunkline_proto::websocket::{Decoder, Inbound};
use trunkline_tls::sessions::Sessions;

use super::{Arm, Driver, End, Targets, ring_failed};
use crate::{
    clock::now_ns,
    failure::Failure,
    ring::{Buffer, Completion, ReceiveEnd, Ring, Wait},
    tls::{Greeting, Handshake, TicketTaker, TlsClient},
    transport::Wire,
    websocket::{self, Masks},
};

/// State of one connection. It owns no memory while nothing is halfway.
#[derive(Default)]
pub(super) struct Connection {
    /// Position of this turn's bytes among the staged ones of its ring.
    pub(super) start: u32,
    /// Their length; 0 means that the connection is not in `dirty`.
    pub(super) len: u32,
    pub(super) always: bool,
    /// The peer takes no more for now.
    pub(super) blocked: bool,
    /// The connection is listed in `dirty` because of its backlog.
    pub(super) unblocked: bool,
    /// Its socket is there and not connected yet.
    pub(super) prepared: bool,
    /// The slot is being closed, or empty: whatever is still reported about it is of the past.
    pub(super) closed: bool,
    /// It is empty.
    pub(super) empty: bool,
    /// It is a WebSocket, and no more has to be asked for.
    pub(super) upgraded: bool,
    /// Over TLS: how many of this turn's bytes are those of its handshake, in front of what is to be sealed.
    pub(super) raw: u32,
    /// Over TLS: its handshake, while that is under way.
    pub(super) shaking: Option<Box<Handshake>>,
    /// Over TLS: what its server says before the handshake, until it has.
    pub(super) awaited: Option<Greeting>,
    /// Over TLS: who takes the server's ticket, until that has come.
    pub(super) taker: Option<Box<TicketTaker>>,
    /// Over TLS: a record of which only the beginning has come.
    pub(super) record: Vec<u8>,
    /// Where its messages stand, while one is halfway.
    pub(super) inbound: Option<Box<Inbound>>,
    /// The same of another server's WebSocket.
    pub(super) decoder: Option<Box<Decoder>>,
    /// A frame of which only the beginning has come.
    pub(super) partial: Vec<u8>,
    /// Bytes the peer did not take yet.
    pub(super) backlog: Vec<u8>,
}

/// One ring and the connections on it.
pub(super) struct Lane {
    pub(super) ring: Ring,
    pub(super) connections: Vec<Connection>,
    /// Slots with something to send.
    pub(super) dirty: Vec<u32>,
    pub(super) wire: Wire,
    pub(super) tls: Option<LaneTls>,
    pub(super) masks: Masks,
    /// Bytes on their way into messages or out of them.
    pub(super) scratch: Vec<u8>,
}

/// TLS of a lane's connections.
pub(super) struct LaneTls {
    pub(super) client: Arc<TlsClient>,
    /// The keys of those whose handshake is over.
    pub(super) sessions: Sessions,
}

impl Lane {
    pub(super) fn arm(&mut self, slot: u32, arm: Arm) -> io::Result<()> {
        self.connections[slot as usize].always = arm == Arm::Always;
        match arm {
            Arm::Nothing => Ok(()),
            Arm::OneFrame => self.ring.receive_one(slot),
            Arm::Always => self.ring.receive_many(slot),
        }
    }

    pub(super) fn turn(
        &mut self,
        base: u32,
        targets: &Targets,
        driver: &mut impl Driver,
        wait: Wait,
    ) -> Result<usize, Failure> {
        // Opening and arming may have filled the submission queue, which takes completions along.
        self.dispatch(base, targets, driver)?;
        self.flush().map_err(ring_failed)?;
        let happened = self.ring.turn(wait).map_err(ring_failed)?;
        self.dispatch(base, targets, driver)?;
        Ok(happened)
    }

    pub(super) fn dispatch(&mut self, base: u32, targets: &Targets, driver: &mut impl Driver) -> Result<(), Failure> {
        while let Some(completion) = self.ring.next() {
            match completion {
                Completion::Connected { slot, .. } if self.connections[slot as usize].closed => {}
                Completion::Connected { slot, errno: 0 } if self.tls.is_some() => {
                    self.begin_handshake(base, slot, driver)?;
                }
                Completion::Connected { slot, errno: 0 } => self.begin(base, slot, driver)?,
                Completion::Connected { slot, errno } => {
                    let error = io::Error::from_raw_os_error(errno);
                    let target = targets.of(base + slot);
                    self.ended(base, slot, End::NotConnected { target, error }, driver)?;
                }
                Completion::Received { slot, buffer, .. } if self.connections[slot as usize].closed => {
                    self.ring.recycle(buffer);
                }
                Completion::Received { slot, buffer, armed } if self.tls.is_some() => {
                    let mut bytes = std::mem::take(&mut self.connections[slot as usize].record);
                    bytes.extend_from_slice(self.ring.received(&buffer).0);
                    self.ring.recycle(buffer);
                    self.records_received(base, slot, bytes, armed, driver)?;
                }
                Completion::Received { slot, buffer, armed } if self.wire == Wire::Native => {
                    self.received(base, slot, buffer, armed, driver)?;
                }
                Completion::Received { slot, buffer, armed } => {
                    let mut bytes = std::mem::take(&mut self.connections[slot as usize].partial);
                    let begun = bytes.len();
                    bytes.extend_from_slice(self.ring.received(&buffer).0);
                    self.ring.recycle(buffer);
                    self.messages_received(base, slot, bytes, begun, armed, driver)?;
                }
                Completion::ReceiveEnded { slot, .. } if self.connections[slot as usize].closed => {}
                Completion::ReceiveEnded { slot, end } => match end {
                    ReceiveEnd::OutOfBuffers if self.connections[slot as usize].always => {
                        self.ring.receive_many(slot).map_err(ring_failed)?;
                    }
                    ReceiveEnd::OutOfBuffers => self.ring.receive_one(slot).map_err(ring_failed)?,
                    ReceiveEnd::Eof => self.ended(base, slot, End::Closed, driver)?,
                    ReceiveEnd::Errno(errno) => {
                        self.ended(base, slot, End::Broken(io::Error::from_raw_os_error(errno)), driver)?;
                    }
                },
                Completion::SendStopped { slot, .. } if self.connections[slot as usize].closed => {}
                Completion::SendStopped { slot, errno: 0, rest } => {
                    let connection = &mut self.connections[slot as usize];
                    connection.blocked = true;
                    connection.backlog.splice(0..0, rest);
                    self.ring.wait_writable(slot).map_err(ring_failed)?;
                }
                Completion::SendStopped { slot, errno, .. } => {
                    self.ended(base, slot, End::Broken(io::Error::from_raw_os_error(errno)), driver)?;
                }
                Completion::Writable { slot } => {
                    let connection = &mut self.connections[slot as usize];
                    connection.blocked = false;
                    if connection.len == 0 && !connection.closed {
                        connection.unblocked = true;
                        self.dirty.push(slot);
                    }
                }
                Completion::Closed { slot } => {
                    self.connections[slot as usize].empty = true;
                    driver.freed(base + slot);
                }
                Completion::Accepted { .. } | Completion::AcceptEnded { .. } | Completion::Watched => {
                    unreachable!("a fleet neither accepts nor watches")
                }
            }
        }
        Ok(())
    }

    pub(super) fn ended(&mut self, base: u32, slot: u32, end: End, driver: &mut impl Driver) -> Result<(), Failure> {
        driver.ended(base + slot, end)?;
        self.cut(slot).map_err(ring_failed)
    }

    pub(super) fn cut(&mut self, slot: u32) -> io::Result<()> {
        let connection = &mut self.connections[slot as usize];
        if connection.closed {
            return Ok(());
        }
        // Its place in `dirty` is kept; it has nothing to send any more.
        *connection = Connection { closed: true, unblocked: connection.unblocked, ..Connection::default() };
        if let Some(tls) = &mut self.tls {
            tls.sessions.remove(slot);
        }
        self.ring.close(slot)
    }

    pub(super) fn received(
        &mut self,
        base: u32,
        slot: u32,
        buffer: Buffer,
        armed: bool,
        driver: &mut impl Driver,
    ) -> Result<(), Failure> {
        let now_ns = now_ns();
        let connection = &mut self.connections[slot as usize];
        let (bytes, staged) = self.ring.received(&buffer);
        let start = staged.len();
        let whole;
        let bytes = if connection.partial.is_empty() {
            bytes
        } else {
            connection.partial.extend_from_slice(bytes);
            whole = std::mem::take(&mut connection.partial);
            &whole
        };
        let taken = driver.received(base + slot, bytes, now_ns, staged)?;
        connection.partial = bytes[taken.bytes..].to_vec();
        self.ring.recycle(buffer);
        self.staged_since(slot, start);
        self.receive_on(slot, armed, taken.frames)
    }

    /// Receives on, after so many frames, as a connection is armed.
    pub(super) fn receive_on(&mut self, slot: u32, armed: bool, frames: usize) -> Result<(), Failure> {
        let connection = &self.connections[slot as usize];
        let go_on = !armed && (connection.always || frames == 0);
        match (go_on, connection.always) {
            (false, _) => Ok(()),
            (true, true) => self.ring.receive_many(slot).map_err(ring_failed),
            (true, false) => self.ring.receive_one(slot).map_err(ring_failed),
        }
    }

    /// Lets a connection say what lies above TCP and TLS.
    pub(super) fn begin(&mut self, base: u32, slot: u32, driver: &mut impl Driver) -> Result<(), Failure> {
        let start = self.ring.staged().len();
        let arm = if let Some(subprotocol) = self.wire.subprotocol() {
            websocket::put_request(subprotocol, self.ring.staged());
            self.sealed_since(slot, start);
            Arm::OneFrame
        } else {
            let arm = driver.connected(base + slot, self.ring.staged())?;
            self.staged_since(slot, start);
            arm
        };
        self.arm(slot, arm).map_err(ring_failed)
    }

    /// Queues one send for each connection that has bytes to send and a peer that takes them.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.seal();
        for &slot in &self.dirty {
            let connection = &mut self.connections[slot as usize];
            connection.unblocked = false;
            let (start, len) = (connection.start as usize, connection.len as usize);
            let staged = self.ring.staged();
            if connection.blocked {
                connection.backlog.extend_from_slice(&staged[start..start + len]);
                connection.len = 0;
            } else if !connection.backlog.is_empty() {
                connection.start = staged.len() as u32;
                staged.append(&mut connection.backlog);
                staged.extend_from_within(start..start + len);
                connection.len = (staged.len() - connection.start as usize) as u32;
            }
        }
        self.ring.begin_sends();
        for slot in self.dirty.drain(..) {
            let connection = &mut self.connections[slot as usize];
            let len = std::mem::take(&mut connection.len);
            if len > 0 {
                self.ring.send_staged(slot, connection.start as usize, len as usize)?;
            }
        }
        Ok(())
    }

    pub(super) fn close_all(&mut self) -> io::Result<()> {
        /// Longer than any close takes.
        const PATIENCE: Duration = Duration::from_secs(10);
        let deadline = Instant::now() + PATIENCE;
        let mut open = 0;
        for slot in 0..self.connections.len() {
            open += u32::from(!self.connections[slot].empty);
            self.cut(slot as u32)?;
        }
        while open > 0 {
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "closing the client sockets"));
            }
            self.ring.turn(Wait::AtMost { completions: 1, timeout: Duration::from_millis(100) })?;
            while let Some(completion) = self.ring.next() {
                match completion {
                    Completion::Closed { .. } => open -= 1,
                    Completion::Received { buffer, .. } => self.ring.recycle(buffer),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
