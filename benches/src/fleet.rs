//! Many client connections on one thread: they are spread over as many rings as the limit of open files asks for,
//! use many source addresses, and send at most once per connection and turn.

use std::{
    io,
    net::SocketAddrV4,
    os::fd::AsRawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use trunkline_proto::{
    FRAME_BYTES_MAX_LIMIT, Frame, decode,
    websocket::{Control, Decoder, End as StreamEnd, Inbound, Opcode, Role, put_frame},
};
use trunkline_tls::{
    open::{End as RecordsEnd, open_with},
    record::{Bounds, ContentType},
    seal::{seal_owed, seal_records},
    sessions::Sessions,
};

use crate::{
    clock::now_ns,
    failure::Failure,
    ring::{Buffer, Completion, ReceiveEnd, Ring, RingCounters, RingShape, Wait},
    server::Server,
    sleeper::Sleeper,
    sockets::{self, INSTALL_BATCH, Manner},
    tls::{Greeting, Handshake, Progress, TicketTaker, TlsClient, is_ticket},
    transport::{Layers, Wire},
    websocket::{self, Masks},
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

/// Where connections go: one address for all, or one of several for each.
#[derive(Clone, Debug)]
pub(crate) struct Targets {
    addresses: Vec<SocketAddrV4>,
    /// Index into `addresses` for each connection; those behind its end go to the first.
    of: Vec<u8>,
}

impl Targets {
    /// `of` has an index into `addresses` for each connection.
    pub(crate) fn new(addresses: Vec<SocketAddrV4>, of: Vec<u8>) -> Targets {
        Targets { addresses, of }
    }

    fn of(&self, connection: u32) -> SocketAddrV4 {
        self.addresses[usize::from(self.of.get(connection as usize).copied().unwrap_or(0))]
    }
}

impl From<SocketAddrV4> for Targets {
    fn from(address: SocketAddrV4) -> Targets {
        Targets::new(vec![address], Vec::new())
    }
}

impl From<&Server> for Targets {
    fn from(server: &Server) -> Targets {
        server.address().into()
    }
}

/// How a connection ended that the fleet did not end itself.
#[derive(Debug)]
pub(crate) enum End {
    /// It never was one.
    NotConnected { target: SocketAddrV4, error: io::Error },
    /// The server closed it.
    Closed,
    /// It broke.
    Broken(io::Error),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            End::NotConnected { target, error } => write!(f, "cannot connect to {target}: {error}"),
            End::Closed => f.write_str("the server closed it"),
            End::Broken(error) => error.fmt(f),
        }
    }
}

/// What a driver made of received bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    /// Bytes of whole frames; the rest is kept until more has come.
    pub(crate) bytes: usize,
    /// How many frames they were.
    pub(crate) frames: usize,
}

/// What the owner of a fleet does with it.
pub(crate) trait Driver {
    /// A connection is there. What is appended to `out` is sent on it.
    fn connected(&mut self, connection: u32, out: &mut Vec<u8>) -> Result<Arm, Failure>;

    /// A frame has come; `now_ns` is when its buffer was taken. What is appended to `out` is sent on the same
    /// connection, in one send with the answers to all frames of that buffer.
    fn frame(&mut self, connection: u32, frame: &Frame<'_>, now_ns: u64, out: &mut Vec<u8>) -> Result<(), Failure>;

    /// The failure that a connection's unexpected end is.
    fn lost(&mut self, connection: u32, how: &str) -> Failure;

    /// Bytes have come, from the start of a frame on. The default takes them for frames of Trunkline's protocol.
    fn received(&mut self, connection: u32, bytes: &[u8], now_ns: u64, out: &mut Vec<u8>) -> Result<Taken, Failure> {
        take_frames(self, connection, bytes, now_ns, out)
    }

    /// A connection has ended, or could not be made. Without an error the run goes on, and its slot is closed.
    fn ended(&mut self, connection: u32, end: End) -> Result<(), Failure> {
        match end {
            End::NotConnected { target, error } => Err(Failure::Connect { target: target.to_string(), error }),
            end => Err(self.lost(connection, &end.to_string())),
        }
    }

    /// The slot of a connection that ended or was cut is empty: it can be opened again.
    fn freed(&mut self, _connection: u32) {}
}

/// Hands frames of Trunkline's protocol to a driver, one by one.
pub(crate) fn take_frames<D: Driver + ?Sized>(
    driver: &mut D,
    connection: u32,
    bytes: &[u8],
    now_ns: u64,
    out: &mut Vec<u8>,
) -> Result<Taken, Failure> {
    let mut taken = Taken { bytes: 0, frames: 0 };
    loop {
        match decode(&bytes[taken.bytes..], FRAME_BYTES_MAX_LIMIT) {
            Ok(Some((frame, consumed))) => {
                driver.frame(connection, &frame, now_ns, out)?;
                taken.frames += 1;
                taken.bytes += consumed;
            }
            Ok(None) => return Ok(taken),
            Err(violation) => {
                return Err(driver.lost(connection, &format!("the server sent a malformed frame: {violation}")));
            }
        }
    }
}

/// Receive buffers of all rings together.
const RECEIVE_BYTES_MAX: u32 = 64 << 20;
const RECEIVE_BYTES_PER_RING_MAX: u32 = 8 << 20;
const RECEIVE_BUFFERS_PER_RING_MIN: u32 = 64;
const RECEIVE_BUFFER_BYTES_MIN: u32 = 2_048;
const RECEIVE_BUFFER_BYTES_MAX: u32 = 1 << 17;
/// A turn this full suggests that more is waiting than one plain enter takes (20 events since Linux 6.13).
const BUSY_COMPLETIONS: usize = 16;
const BUSY_BATCH: u32 = 1_024;
/// What one of several rings takes at most in such a batch, so that the others do not wait for long.
const BUSY_BATCH_EACH: u32 = 64;

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
    /// Its socket is there and not connected yet.
    prepared: bool,
    /// The slot is being closed, or empty: whatever is still reported about it is of the past.
    closed: bool,
    /// It is empty.
    empty: bool,
    /// It is a WebSocket, and no more has to be asked for.
    upgraded: bool,
    /// Over TLS: how many of this turn's bytes are those of its handshake, in front of what is to be sealed.
    raw: u32,
    /// Over TLS: its handshake, while that is under way.
    shaking: Option<Box<Handshake>>,
    /// Over TLS: what its server says before the handshake, until it has.
    awaited: Option<Greeting>,
    /// Over TLS: who takes the server's ticket, until that has come.
    taker: Option<Box<TicketTaker>>,
    /// Over TLS: a record of which only the beginning has come.
    record: Vec<u8>,
    /// Where its messages stand, while one is halfway.
    inbound: Option<Box<Inbound>>,
    /// The same of another server's WebSocket.
    decoder: Option<Box<Decoder>>,
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
    wire: Wire,
    tls: Option<LaneTls>,
    masks: Masks,
    /// Bytes on their way into messages or out of them.
    scratch: Vec<u8>,
}

/// TLS of a lane's connections.
struct LaneTls {
    client: Arc<TlsClient>,
    /// The keys of those whose handshake is over.
    sessions: Sessions,
}

/// The connections of one load thread.
pub(crate) struct Fleet {
    targets: Targets,
    lanes: Vec<Lane>,
    lane_slots: u32,
    /// For all lanes, when there is more than one.
    sleeper: Option<Sleeper>,
    opened: u32,
    manner: Manner,
    /// The number its first connection has among those of all fleets of the run, which source address and port follow
    /// from.
    first: u32,
}

impl Fleet {
    /// Sets up the rings for `connections` to `targets`; none is opened yet. `burst_bytes` is what may arrive on a
    /// connection at once.
    pub(crate) fn new(targets: impl Into<Targets>, connections: u32, burst_bytes: u32) -> Result<Fleet, Failure> {
        let (lane_count, lane_slots) = sockets::tables_for(connections)?;
        let buffer_bytes = burst_bytes.next_power_of_two().clamp(RECEIVE_BUFFER_BYTES_MIN, RECEIVE_BUFFER_BYTES_MAX);
        let receive_bytes = (RECEIVE_BYTES_MAX / lane_count).min(RECEIVE_BYTES_PER_RING_MAX);
        let buffers = (receive_bytes / buffer_bytes).clamp(RECEIVE_BUFFERS_PER_RING_MIN, 1_024);
        let shape = RingShape {
            submissions: 4_096,
            completions: 32_768,
            slots: lane_slots,
            buffers: 1 << buffers.ilog2(),
            buffer_bytes,
        };
        let targets = targets.into();
        let mut fleet =
            Fleet { targets, lanes: Vec::new(), lane_slots, sleeper: None, opened: 0, manner: Manner::Plain, first: 0 };
        for lane in 0..lane_count {
            let slots = lane_slots.min(connections - lane * lane_slots);
            let ring = Ring::new(RingShape { slots, ..shape })
                .map_err(|error| Failure::system(&format!("setting up a ring with {slots} slots"), error))?;
            fleet.lanes.push(Lane {
                ring,
                connections: Vec::new(),
                dirty: Vec::new(),
                wire: Wire::default(),
                tls: None,
                masks: Masks::new(lane.into()),
                scratch: Vec::new(),
            });
        }
        if lane_count > 1 {
            fleet.sleep_on_all().map_err(|error| Failure::system("making event descriptors", error))?;
        }
        Ok(fleet)
    }

    /// Every connection begins like this.
    pub(crate) fn in_manner(self, manner: Manner) -> Fleet {
        Fleet { manner, ..self }
    }

    /// Every connection speaks like this.
    pub(crate) fn over(mut self, layers: impl Into<Layers>) -> Fleet {
        let Layers { wire, tls } = layers.into();
        for lane in &mut self.lanes {
            lane.wire = wire;
            lane.tls = tls.clone().map(|client| LaneTls { client, sessions: Sessions::default() });
        }
        self
    }

    /// Its connections are numbered from `first` on among those of the run.
    pub(crate) fn numbered_from(self, first: u32) -> Fleet {
        Fleet { first, ..self }
    }

    fn sleep_on_all(&mut self) -> io::Result<()> {
        let mut sleeper = Sleeper::new()?;
        for lane in &mut self.lanes {
            lane.ring.signal_to(sleeper.add()?)?;
            lane.ring.signal(false);
        }
        self.sleeper = Some(sleeper);
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

    /// Opens `count` more connections, which [`Driver::connected`] reports one by one.
    pub(crate) fn open(&mut self, count: u32) -> Result<(), Failure> {
        self.open_at(self.opened, count)
    }

    /// Opens connections `first` to `first + count`: slots that were never used, or that are free again.
    pub(crate) fn open_at(&mut self, first: u32, count: u32) -> Result<(), Failure> {
        for connection in first..first + count {
            let slot = connection % self.lane_slots;
            let known = self.lanes[(connection / self.lane_slots) as usize].connections.get(slot as usize);
            if !known.is_some_and(|known| known.prepared) {
                self.prepare(connection, count - (connection - first))?;
            }
            let lane = &mut self.lanes[(connection / self.lane_slots) as usize];
            lane.connections[slot as usize].prepared = false;
            lane.ring.connect(slot, self.targets.of(connection)).map_err(socket_failed)?;
        }
        self.opened = self.opened.max(first + count);
        Ok(())
    }

    /// Makes the sockets of connections `first` to `first + count`, so that opening them is nothing but connecting.
    pub(crate) fn prepare(&mut self, first: u32, count: u32) -> Result<(), Failure> {
        let mut next = first;
        while next < first + count {
            let first_slot = next % self.lane_slots;
            let batch = (first + count - next).min(INSTALL_BATCH).min(self.lane_slots - first_slot);
            let sockets = (next..next + batch).map(|index| sockets::to_connect(self.first + index, self.manner));
            let sockets = sockets.collect::<io::Result<Vec<_>>>().map_err(socket_failed)?;
            let lane = &mut self.lanes[(next / self.lane_slots) as usize];
            let raw: Vec<_> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
            lane.ring.install(first_slot, &raw).map_err(socket_failed)?;
            for slot in first_slot..first_slot + batch {
                let prepared = Connection { prepared: true, ..Connection::default() };
                match lane.connections.get_mut(slot as usize) {
                    Some(connection) => *connection = prepared,
                    None => lane.connections.push(prepared),
                }
            }
            next += batch;
        }
        Ok(())
    }

    /// Ends a connection with a reset; [`Driver::freed`] tells when its slot is empty. Without effect on one that has
    /// ended.
    pub(crate) fn cut(&mut self, connection: u32) -> Result<(), Failure> {
        let slot = connection % self.lane_slots;
        self.lanes[(connection / self.lane_slots) as usize].cut(slot).map_err(ring_failed)
    }

    /// Stops receiving on a connection until it is armed again: what arrives fills the kernel's buffers.
    pub(crate) fn disarm(&mut self, connection: u32) -> Result<(), Failure> {
        let slot = connection % self.lane_slots;
        let lane = &mut self.lanes[(connection / self.lane_slots) as usize];
        lane.connections[slot as usize].always = false;
        lane.ring.stop_receiving(slot).map_err(ring_failed)
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
            let mut happened =
                lane.turn(0, &self.targets, driver, Wait::AtMost { completions: 1, timeout: patience })?;
            if happened >= BUSY_COMPLETIONS {
                let more = Wait::AtMost { completions: BUSY_BATCH, timeout: Duration::ZERO };
                happened += lane.turn(0, &self.targets, driver, more)?;
            }
            return Ok(happened);
        }
        let mut happened = 0;
        let mut idle = true;
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            if lane.dirty.is_empty() && !lane.ring.has_work() {
                continue;
            }
            idle = false;
            let base = index as u32 * self.lane_slots;
            let taken = lane.turn(base, &self.targets, driver, Wait::No)?;
            happened += taken;
            if taken >= BUSY_COMPLETIONS {
                let more = Wait::AtMost { completions: BUSY_BATCH_EACH, timeout: Duration::ZERO };
                happened += lane.turn(base, &self.targets, driver, more)?;
            }
        }
        if idle && let Some(sleeper) = &self.sleeper {
            // Only who is about to sleep wants signals: each costs the server's thread that sends to this one.
            self.lanes.iter_mut().for_each(|lane| lane.ring.signal(true));
            if !self.lanes.iter_mut().any(|lane| lane.ring.has_work()) {
                sleeper.sleep(patience).map_err(ring_failed)?;
            }
            self.lanes.iter_mut().for_each(|lane| lane.ring.signal(false));
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

fn socket_failed(error: io::Error) -> Failure {
    Failure::system("opening a client socket", error)
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

    /// Whatever frames were staged from `start` on belong to `slot`.
    fn staged_since(&mut self, slot: u32, start: usize) {
        if self.wire != Wire::Native {
            let staged = self.ring.staged();
            self.scratch.clear();
            self.scratch.extend(staged.drain(start..));
            match self.wire {
                Wire::OtherWebSocket(_) => self.masks.put_whole(&self.scratch, staged),
                _ => self.masks.put_each(&self.scratch, staged),
            }
        }
        self.sealed_since(slot, start);
    }

    /// Whatever was staged from `start` on belongs to `slot` and goes out as it is; keeps a connection's bytes
    /// together.
    fn sealed_since(&mut self, slot: u32, start: usize) {
        let staged = self.ring.staged();
        let added = staged.len() - start;
        let connection = &mut self.connections[slot as usize];
        if added == 0 || connection.closed {
            return;
        }
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

    fn turn(&mut self, base: u32, targets: &Targets, driver: &mut impl Driver, wait: Wait) -> Result<usize, Failure> {
        // Opening and arming may have filled the submission queue, which takes completions along.
        self.dispatch(base, targets, driver)?;
        self.flush().map_err(ring_failed)?;
        let happened = self.ring.turn(wait).map_err(ring_failed)?;
        self.dispatch(base, targets, driver)?;
        Ok(happened)
    }

    fn dispatch(&mut self, base: u32, targets: &Targets, driver: &mut impl Driver) -> Result<(), Failure> {
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

    fn ended(&mut self, base: u32, slot: u32, end: End, driver: &mut impl Driver) -> Result<(), Failure> {
        driver.ended(base + slot, end)?;
        self.cut(slot).map_err(ring_failed)
    }

    fn cut(&mut self, slot: u32) -> io::Result<()> {
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
    fn receive_on(&mut self, slot: u32, armed: bool, frames: usize) -> Result<(), Failure> {
        let connection = &self.connections[slot as usize];
        let go_on = !armed && (connection.always || frames == 0);
        match (go_on, connection.always) {
            (false, _) => Ok(()),
            (true, true) => self.ring.receive_many(slot).map_err(ring_failed),
            (true, false) => self.ring.receive_one(slot).map_err(ring_failed),
        }
    }

    /// Lets a connection say what lies above TCP and TLS.
    fn begin(&mut self, base: u32, slot: u32, driver: &mut impl Driver) -> Result<(), Failure> {
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

    /// A connection is there, and begins with a handshake of TLS.
    fn begin_handshake(&mut self, base: u32, slot: u32, driver: &mut impl Driver) -> Result<(), Failure> {
        let Some(tls) = &self.tls else { return Ok(()) };
        let greeting = tls.client.greeting();
        let handshake = Handshake::new(&tls.client).map_err(Failure::Setup)?;
        let connection = &mut self.connections[slot as usize];
        connection.shaking = Some(Box::new(handshake));
        connection.awaited = Some(greeting).filter(|greeting| *greeting != Greeting::None);
        self.records_received(base, slot, Vec::new(), false, driver)
    }

    /// Bytes of TLS: those of a handshake, or records, and what was there of the first before. What records hold is
    /// handed on.
    fn records_received(
        &mut self,
        base: u32,
        slot: u32,
        mut bytes: Vec<u8>,
        armed: bool,
        driver: &mut impl Driver,
    ) -> Result<(), Failure> {
        if let Some(greeting) = self.connections[slot as usize].awaited {
            let Some(behind) = greeting.behind(&bytes) else {
                self.connections[slot as usize].record = bytes;
                return self.ring.receive_one(slot).map_err(ring_failed);
            };
            bytes = behind.to_vec();
            self.connections[slot as usize].awaited = None;
        }
        if let Some(handshake) = &mut self.connections[slot as usize].shaking {
            let start = self.ring.staged().len();
            let progress = handshake.step(&mut bytes, self.ring.staged());
            self.sealed_since(slot, start);
            let connection = &mut self.connections[slot as usize];
            match progress {
                Err(why) => return self.ended(base, slot, End::Broken(io::Error::other(why)), driver),
                Ok(Progress::Waits) => {
                    connection.record = bytes;
                    return self.ring.receive_one(slot).map_err(ring_failed);
                }
                Ok(Progress::Done(session, taker)) => {
                    connection.shaking = None;
                    connection.taker = taker;
                    // What was said so far is sent as it is, what follows is sealed.
                    connection.raw = connection.len;
                    if let Some(tls) = &mut self.tls {
                        tls.sessions.put(slot, &session);
                    }
                    self.begin(base, slot, driver)?;
                    // From here on it is armed.
                    return if bytes.is_empty() {
                        Ok(())
                    } else {
                        self.records_opened(base, slot, bytes, true, driver)
                    };
                }
            }
        }
        self.records_opened(base, slot, bytes, armed, driver)
    }

    /// Opens records and hands on what they hold.
    fn records_opened(
        &mut self,
        base: u32,
        slot: u32,
        mut bytes: Vec<u8>,
        armed: bool,
        driver: &mut impl Driver,
    ) -> Result<(), Failure> {
        const NS_PER_MINUTE: u64 = 60_000_000_000;
        let minute = (now_ns() / NS_PER_MINUTE) as u32;
        let connection = &mut self.connections[slot as usize];
        let Some(mut view) = self.tls.as_mut().and_then(|tls| tls.sessions.view(slot)) else { return Ok(()) };
        let taker = &mut connection.taker;
        let opened = open_with(&mut view, &Bounds::STANDARD, &mut bytes, minute, |content| {
            let is_ticket = is_ticket(content);
            if let (true, Some(mut taker)) = (is_ticket, taker.take()) {
                taker.take(content);
            }
            is_ticket
        });
        if opened.taken < bytes.len() {
            connection.record = bytes[opened.taken..].to_vec();
        }
        bytes.truncate(opened.data);
        let armed = armed || opened.end.is_some();
        let begun = connection.partial.len();
        let mut whole = std::mem::take(&mut connection.partial);
        whole.append(&mut bytes);
        match self.wire {
            Wire::Native => {
                let (now_ns, start) = (now_ns(), self.ring.staged().len());
                let taken = driver.received(base + slot, &whole, now_ns, self.ring.staged())?;
                self.staged_since(slot, start);
                self.connections[slot as usize].partial = whole[taken.bytes..].to_vec();
                self.receive_on(slot, armed, taken.frames)?;
            }
            Wire::WebSocket | Wire::WebSocketEcho | Wire::OtherWebSocket(_) => {
                self.messages_received(base, slot, whole, begun, armed, driver)?;
            }
        }
        match opened.end {
            None => Ok(()),
            Some(_) if self.connections[slot as usize].closed => Ok(()),
            Some(RecordsEnd::Closed) => self.ended(base, slot, End::Closed, driver),
            Some(end) => {
                let error = io::Error::other(format!("its records ended: {end:?}"));
                self.ended(base, slot, End::Broken(error), driver)
            }
        }
    }

    /// The same for bytes of WebSockets behind `begun` ones that were there before: what their messages hold is handed
    /// on.
    fn messages_received(
        &mut self,
        base: u32,
        slot: u32,
        mut bytes: Vec<u8>,
        begun: usize,
        mut armed: bool,
        driver: &mut impl Driver,
    ) -> Result<(), Failure> {
        let now_ns = now_ns();
        let mut wants_more = true;
        // Native frames of which only the beginning has come are parted from what is still in messages.
        let mut messages_at = begun;
        if self.wire.subprotocol().is_some() && !self.connections[slot as usize].upgraded {
            match websocket::accepted(&bytes) {
                Ok(Some(length)) => {
                    bytes.drain(..length);
                    messages_at = 0;
                    let start = self.ring.staged().len();
                    let arm = driver.connected(base + slot, self.ring.staged())?;
                    self.staged_since(slot, start);
                    let connection = &mut self.connections[slot as usize];
                    connection.upgraded = true;
                    connection.always = arm == Arm::Always;
                    wants_more = arm != Arm::Nothing;
                    armed = false;
                }
                Ok(None) => {
                    self.connections[slot as usize].partial = bytes;
                    return if armed { Ok(()) } else { self.ring.receive_one(slot).map_err(ring_failed) };
                }
                Err(why) => return self.ended(base, slot, End::Broken(io::Error::other(why)), driver),
            }
        }
        let native = match self.wire {
            Wire::OtherWebSocket(_) => self.take_other_messages(slot, &mut bytes[messages_at..]),
            _ => self.take_messages(slot, &mut bytes[messages_at..]),
        };
        let native = match native {
            Ok(native) => native,
            Err(why) => return self.ended(base, slot, End::Broken(io::Error::other(why)), driver),
        };
        bytes.truncate(messages_at + native);
        let start = self.ring.staged().len();
        let taken = driver.received(base + slot, &bytes, now_ns, self.ring.staged())?;
        self.staged_since(slot, start);
        bytes.drain(..taken.bytes);
        let connection = &mut self.connections[slot as usize];
        if !bytes.is_empty() {
            connection.partial = bytes;
        }
        self.receive_on(slot, armed || !wants_more, taken.frames)
    }

    /// Takes native frames out of messages, to the front of `bytes`, and answers Pings. Returns their bytes, or why the
    /// connection is to end.
    fn take_messages(&mut self, slot: u32, bytes: &mut [u8]) -> Result<usize, String> {
        let role = if self.wire == Wire::WebSocketEcho { Role::Server } else { Role::Client };
        let mut inbound =
            self.connections[slot as usize].inbound.take().map_or_else(Inbound::default, |inbound| *inbound);
        let pongs_at = self.ring.staged().len();
        let (staged, masks) = (self.ring.staged(), &mut self.masks);
        let unsealed = inbound.take(role, bytes, |control| {
            if let Control::Ping(payload) = control {
                put_frame(staged, Opcode::Pong, true, Some(masks.next()), payload);
            }
        });
        self.sealed_since(slot, pongs_at);
        if !inbound.is_idle() {
            self.connections[slot as usize].inbound = Some(Box::new(inbound));
        }
        match unsealed.end {
            Some(StreamEnd::Violated(_) | StreamEnd::FrameUnfinished) => {
                Err(format!("the server's WebSocket is none: {:?}", unsealed.end))
            }
            Some(StreamEnd::Closed(_)) | None => Ok(unsealed.native),
        }
    }

    /// The same of another server, whose messages hold something else.
    fn take_other_messages(&mut self, slot: u32, bytes: &mut [u8]) -> Result<usize, String> {
        let mut decoder = self.connections[slot as usize].decoder.take().unwrap_or_default();
        let pongs_at = self.ring.staged().len();
        let (staged, masks) = (self.ring.staged(), &mut self.masks);
        let taken = websocket::take_other(&mut decoder, bytes, |control| {
            if let Control::Ping(payload) = control {
                put_frame(staged, Opcode::Pong, true, Some(masks.next()), payload);
            }
        });
        self.sealed_since(slot, pongs_at);
        if !decoder.is_idle() {
            self.connections[slot as usize].decoder = Some(decoder);
        }
        taken
    }

    /// Seals what the connections say in this turn: one record for each, unless it is long.
    fn seal(&mut self) {
        let Some(tls) = &mut self.tls else { return };
        for &slot in &self.dirty {
            let connection = &mut self.connections[slot as usize];
            let (start, len) = (connection.start as usize, connection.len as usize);
            // During the handshake there are no keys, and nothing is sealed.
            let Some(mut view) = tls.sessions.view(slot).filter(|_| len > 0) else { continue };
            let data = start + std::mem::take(&mut connection.raw) as usize;
            let staged = self.ring.staged();
            let sealed = staged.len();
            staged.extend_from_within(start..data);
            seal_owed(&mut view, &Bounds::STANDARD, staged);
            let from = staged.len();
            staged.extend_from_within(data..start + len);
            seal_records(&mut view, ContentType::Data, staged, from);
            connection.start = sealed as u32;
            connection.len = (staged.len() - sealed) as u32;
        }
    }

    /// Queues one send for each connection that has bytes to send and a peer that takes them.
    fn flush(&mut self) -> io::Result<()> {
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

    fn close_all(&mut self) -> io::Result<()> {
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
