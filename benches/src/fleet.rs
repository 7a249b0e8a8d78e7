//! Many client connections on one thread: they are spread over as many rings as the limit of open files asks for,
//! use many source addresses, and send at most once per connection and turn.

mod driver;
mod lane;
mod layers;

use std::{io, net::SocketAddrV4, os::fd::AsRawFd, time::Duration};

use trunkline_tls::sessions::Sessions;

use crate::{
    failure::Failure,
    ring::{Ring, RingCounters, RingShape, Wait},
    server::Server,
    sleeper::Sleeper,
    sockets::{self, INSTALL_BATCH, Manner},
    transport::{Layers, Wire},
    websocket::Masks,
};
pub(crate) use driver::{Arm, Driver, End, Taken, take_frames};
use lane::{Connection, Lane, LaneTls};

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
