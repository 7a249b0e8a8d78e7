//! Many client connections on one thread: they are spread over as many rings as the limit of open files asks for,
//! use many source addresses, and send at most once per connection and turn.

use std::{
    io,
    net::SocketAddrV4,
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use trunkline_proto::{FRAME_BYTES_MAX_LIMIT, Frame, decode};

use crate::{
    clock::now_ns,
    failure::Failure,
    ring::{Buffer, Completion, ReceiveEnd, Ring, RingCounters, RingShape, Wait, os},
    sockets::{self, INSTALL_BATCH},
};

/// What a connection does with bytes that arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arm {
    /// Nothing: they wait in the kernel.
    Nothing,
    /// Receive until one whole frame has come, then nothing is armed any more.
    OneFrame,
    /// Receive on and on.
    Always,
}

/// What the owner of a fleet does with it.
pub(crate) trait Driver {
    /// A connection is there. What is appended to `out` is sent on it.
    fn connected(&mut self, connection: u32, out: &mut Vec<u8>) -> Result<Arm, Failure>;

    /// A frame has come; `now_ns` is when its buffer was taken. What is appended to `out` is sent on the same
    /// connection, in one send with the answers to all frames of that buffer.
    fn frame(&mut self, connection: u32, frame: &Frame<'_>, now_ns: u64, out: &mut Vec<u8>) -> Result<(), Failure>;

    /// The server has ended a connection.
    fn closed(&mut self, connection: u32, how: &str) -> Failure;
}

/// Receive buffers of each ring, in all.
const RECEIVE_BYTES_MAX: u32 = 8 << 20;
const RECEIVE_BUFFER_BYTES_MIN: u32 = 2_048;
const RECEIVE_BUFFER_BYTES_MAX: u32 = 1 << 17;
/// A turn this full suggests that more is waiting than one plain enter takes (20 events since Linux 6.13).
const BUSY_COMPLETIONS: usize = 16;
const BUSY_BATCH: u32 = 256;

/// State of one connection. It owns no memory while nothing is halfway.
#[derive(Default)]
struct Connection {
    /// Position of this turn's bytes among the staged ones of its ring.
    start: u32,
    /// Their length; 0 means that the connection is not in `dirty`.
    len: u32,
    always: bool,
    /// The peer takes no more for now.
    blocked: bool,
    /// The connection is listed in `dirty` because of its backlog.
    unblocked: bool,
    /// A frame of which only the beginning has come.
    partial: Vec<u8>,
    /// Bytes the peer did not take yet.
    backlog: Vec<u8>,
}

/// One ring and the connections on it.
struct Lane {
    ring: Ring,
    connections: Vec<Connection>,
    /// Slots with something to send.
    dirty: Vec<u32>,
}

/// The connections of one load thread to one server.
pub(crate) struct Fleet {
    target: SocketAddrV4,
    lanes: Vec<Lane>,
    lane_slots: u32,
    /// One for each lane, when there is more than one.
    events: Vec<OwnedFd>,
    opened: u32,
}

impl Fleet {
    /// Sets up the rings for `connections` to `target`; none is opened yet. `burst_bytes` is what may arrive on a
    /// connection at once.
    pub(crate) fn new(target: SocketAddrV4, connections: u32, burst_bytes: u32) -> Result<Fleet, Failure> {
        let (lane_count, lane_slots) = sockets::tables_for(connections)?;
        let buffer_bytes = burst_bytes.next_power_of_two().clamp(RECEIVE_BUFFER_BYTES_MIN, RECEIVE_BUFFER_BYTES_MAX);
        let shape = RingShape {
            submissions: 4_096,
            completions: 32_768,
            slots: lane_slots,
            buffers: (RECEIVE_BYTES_MAX / buffer_bytes).min(1_024) as u16,
            buffer_bytes,
        };
        let mut fleet = Fleet { target, lanes: Vec::new(), lane_slots, events: Vec::new(), opened: 0 };
        for lane in 0..lane_count {
            let slots = lane_slots.min(connections - lane * lane_slots);
            let ring = Ring::new(RingShape { slots, ..shape })
                .map_err(|error| Failure::system(&format!("setting up a ring with {slots} slots"), error))?;
            fleet.lanes.push(Lane { ring, connections: Vec::new(), dirty: Vec::new() });
        }
        if lane_count > 1 {
            fleet.listen_to_events().map_err(|error| Failure::system("making event descriptors", error))?;
        }
        Ok(fleet)
    }

    fn listen_to_events(&mut self) -> io::Result<()> {
        for lane in &mut self.lanes {
            let event = os::event_fd()?;
            lane.ring.signal(&event)?;
            self.events.push(event);
        }
        Ok(())
    }

    /// Connections opened so far.
    pub(crate) fn opened(&self) -> u32 {
        self.opened
    }

    /// Counters of all rings together.
    pub(crate) fn counters(&mut self) -> RingCounters {
        self.lanes.iter_mut().map(|lane| lane.ring.counters()).fold(RingCounters::default(), |sum, lane| RingCounters {
            enters: sum.enters + lane.enters,
            completions: sum.completions + lane.completions,
            out_of_buffers: sum.out_of_buffers + lane.out_of_buffers,
            short_sends: sum.short_sends + lane.short_sends,
            completion_overflows: sum.completion_overflows + lane.completion_overflows,
        })
    }

    /// Opens up to `count` more connections, which [`Driver::connected`] reports one by one.
    pub(crate) fn open(&mut self, count: u32) -> Result<(), Failure> {
        let failed = |error| Failure::system("opening a client socket", error);
        let mut left = count;
        while left > 0 {
            let lane_index = self.opened / self.lane_slots;
            let first = self.opened % self.lane_slots;
            let batch = left.min(INSTALL_BATCH).min(self.lane_slots - first);
            let sockets = (self.opened..self.opened + batch).map(sockets::to_connect).collect::<io::Result<Vec<_>>>();
            let sockets = sockets.map_err(failed)?;
            let lane = &mut self.lanes[lane_index as usize];
            let raw: Vec<_> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
            lane.ring.install(first, &raw).map_err(failed)?;
            for slot in first..first + batch {
                lane.connections.push(Connection::default());
                lane.ring.connect(slot, self.target).map_err(failed)?;
            }
            self.opened += batch;
            left -= batch;
        }
        Ok(())
    }

    /// Starts receiving on a connection on which nothing is armed.
    pub(crate) fn arm(&mut self, connection: u32, arm: Arm) -> Result<(), Failure> {
        let slot = connection % self.lane_slots;
        self.lanes[(connection / self.lane_slots) as usize].arm(slot, arm).map_err(ring_failed)
    }

    /// Lets `write` append bytes to be sent on a connection in the next turn.
    pub(crate) fn stage(&mut self, connection: u32, write: impl FnOnce(&mut Vec<u8>)) {
        let slot = connection % self.lane_slots;
        let lane = &mut self.lanes[(connection / self.lane_slots) as usize];
        let start = lane.ring.staged().len();
        write(lane.ring.staged());
        lane.staged_since(slot, start);
    }

    /// Sends what is staged, waits at most `patience` for something to happen, and hands it to `driver`.
    /// Returns how much happened.
    pub(crate) fn turn(&mut self, driver: &mut impl Driver, patience: Duration) -> Result<usize, Failure> {
        if let [lane] = &mut *self.lanes {
            let mut happened = lane.turn(0, self.target, driver, Wait::AtMost { completions: 1, timeout: patience })?;
            if happened >= BUSY_COMPLETIONS {
                let more = Wait::AtMost { completions: BUSY_BATCH, timeout: Duration::ZERO };
                happened += lane.turn(0, self.target, driver, more)?;
            }
            return Ok(happened);
        }
        let mut happened = 0;
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            happened += lane.turn(index as u32 * self.lane_slots, self.target, driver, Wait::No)?;
        }
        if happened == 0 && self.lanes.iter().all(|lane| lane.dirty.is_empty()) {
            os::wait_readable(&self.events, patience).map_err(ring_failed)?;
            for event in &self.events {
                os::reset_event(event).map_err(ring_failed)?;
            }
        }
        Ok(happened)
    }

    /// Closes every connection with a reset, so that none lingers in TIME_WAIT, and waits until the kernel has done so.
    pub(crate) fn close(mut self) -> Result<(), Failure> {
        for lane in &mut self.lanes {
            lane.close_all().map_err(ring_failed)?;
        }
        Ok(())
    }
}

fn ring_failed(error: io::Error) -> Failure {
    Failure::system("turning a client ring", error)
}

impl Lane {
    fn arm(&mut self, slot: u32, arm: Arm) -> io::Result<()> {
        self.connections[slot as usize].always = arm == Arm::Always;
        match arm {
            Arm::Nothing => Ok(()),
            Arm::OneFrame => self.ring.receive_one(slot),
            Arm::Always => self.ring.receive_many(slot),
        }
    }

    /// Whatever was staged from `start` on belongs to `slot`; keeps a connection's bytes together.
    fn staged_since(&mut self, slot: u32, start: usize) {
        let staged = self.ring.staged();
        let added = staged.len() - start;
        if added == 0 {
            return;
        }
        let connection = &mut self.connections[slot as usize];
        let (earlier, earlier_len) = (connection.start as usize, connection.len as usize);
        if earlier_len == 0 {
            if !connection.unblocked {
                self.dirty.push(slot);
            }
            connection.start = start as u32;
        } else if earlier + earlier_len != start {
            connection.start = staged.len() as u32;
            staged.extend_from_within(earlier..earlier + earlier_len);
            staged.extend_from_within(start..start + added);
        }
        connection.len += added as u32;
    }

    fn turn(
        &mut self,
        base: u32,
        target: SocketAddrV4,
        driver: &mut impl Driver,
        wait: Wait,
    ) -> Result<usize, Failure> {
        // Opening and arming may have filled the submission queue, which takes completions along.
        self.dispatch(base, target, driver)?;
        self.flush().map_err(ring_failed)?;
        let happened = self.ring.turn(wait).map_err(ring_failed)?;
        self.dispatch(base, target, driver)?;
        Ok(happened)
    }

    fn dispatch(&mut self, base: u32, target: SocketAddrV4, driver: &mut impl Driver) -> Result<(), Failure> {
        while let Some(completion) = self.ring.next() {
            match completion {
                Completion::Connected { slot, errno: 0 } => {
                    let start = self.ring.staged().len();
                    let arm = driver.connected(base + slot, self.ring.staged())?;
                    self.staged_since(slot, start);
                    self.arm(slot, arm).map_err(ring_failed)?;
                }
                Completion::Connected { errno, .. } => {
                    let error = io::Error::from_raw_os_error(errno);
                    return Err(Failure::Connect { target: target.to_string(), error });
                }
                Completion::Received { slot, buffer, armed } => self.received(base, slot, buffer, armed, driver)?,
                Completion::ReceiveEnded { slot, end } => match end {
                    ReceiveEnd::OutOfBuffers if self.connections[slot as usize].always => {
                        self.ring.receive_many(slot).map_err(ring_failed)?;
                    }
                    ReceiveEnd::OutOfBuffers => self.ring.receive_one(slot).map_err(ring_failed)?,
                    ReceiveEnd::Eof => return Err(driver.closed(base + slot, "the server closed it")),
                    ReceiveEnd::Errno(errno) => {
                        return Err(driver.closed(base + slot, &io::Error::from_raw_os_error(errno).to_string()));
                    }
                },
                Completion::SendStopped { slot, errno: 0, rest } => {
                    let connection = &mut self.connections[slot as usize];
                    connection.blocked = true;
                    connection.backlog.splice(0..0, rest);
                    self.ring.wait_writable(slot).map_err(ring_failed)?;
                }
                Completion::SendStopped { slot, errno, .. } => {
                    return Err(driver.closed(base + slot, &io::Error::from_raw_os_error(errno).to_string()));
                }
                Completion::Writable { slot } => {
                    let connection = &mut self.connections[slot as usize];
                    connection.blocked = false;
                    if connection.len == 0 {
                        connection.unblocked = true;
                        self.dirty.push(slot);
                    }
                }
                Completion::Closed => {}
                Completion::Accepted { .. } | Completion::AcceptEnded { .. } | Completion::Watched => {
                    unreachable!("a fleet neither accepts nor watches")
                }
            }
        }
        Ok(())
    }

    fn received(
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
        let mut frames = 0;
        let whole;
        let bytes = if connection.partial.is_empty() {
            bytes
        } else {
            connection.partial.extend_from_slice(bytes);
            whole = std::mem::take(&mut connection.partial);
            &whole
        };
        let mut at = 0;
        loop {
            match decode(&bytes[at..], FRAME_BYTES_MAX_LIMIT) {
                Ok(Some((frame, consumed))) => {
                    driver.frame(base + slot, &frame, now_ns, staged)?;
                    frames += 1;
                    at += consumed;
                }
                Ok(None) => break,
                Err(violation) => {
                    return Err(driver.closed(base + slot, &format!("the server sent a malformed frame: {violation}")));
                }
            }
        }
        connection.partial = bytes[at..].to_vec();
        let go_on = !armed && (connection.always || frames == 0);
        let always = connection.always;
        self.ring.recycle(buffer);
        self.staged_since(slot, start);
        match (go_on, always) {
            (false, _) => Ok(()),
            (true, true) => self.ring.receive_many(slot).map_err(ring_failed),
            (true, false) => self.ring.receive_one(slot).map_err(ring_failed),
        }
    }

    /// Queues one send for each connection that has bytes to send and a peer that takes them.
    fn flush(&mut self) -> io::Result<()> {
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

    fn close_all(&mut self) -> io::Result<()> {
        /// Longer than any close takes.
        const PATIENCE: Duration = Duration::from_secs(10);
        let deadline = Instant::now() + PATIENCE;
        let mut open = self.connections.len();
        for slot in 0..open as u32 {
            self.ring.close(slot)?;
        }
        while open > 0 {
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "closing the client sockets"));
            }
            self.ring.turn(Wait::AtMost { completions: 1, timeout: Duration::from_millis(100) })?;
            while let Some(completion) = self.ring.next() {
                match completion {
                    Completion::Closed => open -= 1,
                    Completion::Received { buffer, .. } => self.ring.recycle(buffer),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
