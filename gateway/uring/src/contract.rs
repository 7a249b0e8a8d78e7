//! The contract of [`Io`], tested on the real ring with real sockets and on the simulator alike, so that what the
//! simulator proves of the data path holds on the kernel too.

use crate::{RingFds, Uring};
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use trunkline_core::io::sim::{Faults, SharedWorld, SimIo, World};
use trunkline_core::io::{Completion, ConnId, HandoverToken, Io, OpResult, Peer, ReadOp, errno};
use trunkline_core::limits::Limits;
use trunkline_core::waker::Waker;

/// Rings of a rig, and listeners of each.
const RINGS: usize = 2;
const LISTENERS: u16 = 2;
/// Rounds of waiting before something is given up that has to come: half a minute on the real ring, where each takes up
/// to a millisecond a ring and a pause as long.
const ROUNDS_MAX: usize = 10_000;
/// Rounds in which something that must not come would show.
const ROUNDS_QUIET: usize = 20;
const RECV_BUFFERS: u16 = 4;

fn limits() -> Limits {
    Limits { connections_max: 2, recv_buffers: RECV_BUFFERS, recv_buffer_bytes: 64, ..Limits::default() }
}

/// What a client finds when it reads.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Bytes(Vec<u8>),
    End,
    Reset,
}

/// Rings, and clients that connect to them.
trait Harness {
    type Io: Io;
    fn new(seed: u64) -> Self;
    fn io(&mut self, ring: usize) -> &mut Self::Io;
    fn address(&self, ring: usize, listener: u16) -> SocketAddr;
    /// Connects a client to the first listener of a ring; returns its number.
    fn connect(&mut self, ring: usize) -> usize;
    /// Where a client connects from.
    fn client_address(&mut self, client: usize) -> SocketAddr;
    /// Whether a listener turns connections away.
    fn refuses(&mut self, ring: usize, listener: u16) -> bool;
    fn write(&mut self, client: usize, bytes: &[u8]);
    fn read(&mut self, client: usize) -> Found;
    /// Shuts the client's write side.
    fn shutdown(&mut self, client: usize);
    fn reset(&mut self, client: usize);
    /// Lets time pass.
    fn wait(&mut self);
}

fn simulated(ring: usize, listener: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, ring as u8], listener))
}

struct Simulator {
    world: SharedWorld,
    rings: Vec<SimIo>,
}

impl Simulator {
    fn with(seed: u64, faults: Faults, limits: &Limits) -> Self {
        let mut world = World::new(seed, faults, RINGS, LISTENERS, limits, false);
        for ring in 0..RINGS {
            for listener in 0..LISTENERS {
                world.listen(simulated(ring, listener), ring, listener);
            }
        }
        let world = Rc::new(RefCell::new(world));
        let rings = (0..RINGS).map(|ring| SimIo::new(world.clone(), 0, ring as u16)).collect();
        Simulator { world, rings }
    }
}

impl Harness for Simulator {
    type Io = SimIo;

    fn new(seed: u64) -> Self {
        // Faults that the contract allows at any time; those that make an operation fail would only be retried here.
        let faults = Faults {
            recv_short: 300,
            send_short: 300,
            multishot_end: 100,
            end_with_buffer: 300,
            submit_early: 100,
            late: 300,
            late_us_max: 20_000,
            split: 500,
            network_us_max: 10_000,
            tick_late_us_max: 5_000,
            wake_late_us_max: 5_000,
            ..Faults::none()
        };
        Simulator::with(seed, faults, &limits())
    }

    fn io(&mut self, ring: usize) -> &mut SimIo {
        &mut self.rings[ring]
    }

    fn address(&self, ring: usize, listener: u16) -> SocketAddr {
        simulated(ring, listener)
    }

    fn connect(&mut self, ring: usize) -> usize {
        self.world.borrow_mut().connect_to(ring, 0, 10_000)
    }

    fn client_address(&mut self, client: usize) -> SocketAddr {
        World::client_address(client)
    }

    fn refuses(&mut self, ring: usize, listener: u16) -> bool {
        let client = self.world.borrow_mut().connect_to(ring, listener.into(), 10_000);
        for _ in 0..ROUNDS_QUIET {
            self.wait();
        }
        self.read(client) == Found::Reset
    }

    fn write(&mut self, client: usize, bytes: &[u8]) {
        self.world.borrow_mut().client_write(client, bytes);
    }

    fn read(&mut self, client: usize) -> Found {
        let read = self.world.borrow_mut().client_read(client, usize::MAX);
        match (read.bytes.is_empty(), read.reset, read.end) {
            (false, ..) => Found::Bytes(read.bytes),
            (true, true, _) => Found::Reset,
            (true, false, true) => Found::End,
            (true, false, false) => Found::Nothing,
        }
    }

    fn shutdown(&mut self, client: usize) {
        self.world.borrow_mut().client_shutdown(client);
    }

    fn reset(&mut self, client: usize) {
        self.world.borrow_mut().client_reset(client);
    }

    fn wait(&mut self) {
        let mut world = self.world.borrow_mut();
        let next_us = world.now_us() + 1_000;
        world.advance(next_us);
    }
}

struct RealRing {
    rings: Vec<Uring>,
    addresses: Vec<Vec<SocketAddr>>,
    clients: Vec<Option<TcpStream>>,
}

impl Harness for RealRing {
    type Io = Uring;

    fn new(_seed: u64) -> Self {
        RealRing::with(&limits())
    }

    fn io(&mut self, ring: usize) -> &mut Uring {
        &mut self.rings[ring]
    }

    fn address(&self, ring: usize, listener: u16) -> SocketAddr {
        self.addresses[ring][usize::from(listener)]
    }

    fn connect(&mut self, ring: usize) -> usize {
        self.clients.push(Some(TcpStream::connect(self.address(ring, 0)).expect("the listener has a backlog")));
        self.clients.len() - 1
    }

    fn client_address(&mut self, client: usize) -> SocketAddr {
        self.stream(client).local_addr().expect("a connected client has an address")
    }

    fn refuses(&mut self, ring: usize, listener: u16) -> bool {
        TcpStream::connect(self.address(ring, listener))
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    }

    fn write(&mut self, client: usize, bytes: &[u8]) {
        self.stream(client).write_all(bytes).expect("a few bytes fit into the socket");
    }

    fn read(&mut self, client: usize) -> Found {
        let stream = self.stream(client);
        stream.set_nonblocking(true).expect("a socket");
        let mut bytes = vec![0; 1 << 16];
        let found = match stream.read(&mut bytes) {
            Ok(0) => Found::End,
            Ok(len) => Found::Bytes(bytes[..len].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Found::Nothing,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Found::Reset,
            Err(error) => panic!("reading: {error}"),
        };
        stream.set_nonblocking(false).expect("a socket");
        found
    }

    fn shutdown(&mut self, client: usize) {
        self.stream(client).shutdown(Shutdown::Write).expect("an open connection");
    }

    fn reset(&mut self, client: usize) {
        let stream = self.clients[client].take().expect("a client leaves once");
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket");
    }

    fn wait(&mut self) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl RealRing {
    fn with(limits: &Limits) -> Self {
        let ring_fds: RingFds = Arc::new((0..RINGS).map(|_| OnceLock::new()).collect());
        let mut addresses = Vec::new();
        let rings = (0..RINGS).map(|ring| {
            let bind = |_| TcpListener::bind("127.0.0.1:0").expect("a port on the loopback");
            let listeners: Vec<TcpListener> = (0..LISTENERS).map(bind).collect();
            let address = |listener: &TcpListener| listener.local_addr().expect("a bound listener has an address");
            addresses.push(listeners.iter().map(address).collect());
            let waker = Arc::new(Waker::new().expect("an eventfd"));
            Uring::new(ring as u16, limits, listeners.into_iter().map(Into::into).collect(), waker, ring_fds.clone())
                .expect("a ring")
        });
        let rings = rings.collect();
        RealRing { rings, addresses, clients: Vec::new() }
    }

    fn stream(&mut self, client: usize) -> &mut TcpStream {
        self.clients[client].as_mut().expect("a client that has not left")
    }
}

/// A harness, and the completions its rings have reported and no test has taken.
struct Rig<H> {
    harness: H,
    seen: Vec<VecDeque<Completion>>,
    generation: u32,
}

impl<H: Harness> Rig<H> {
    fn new(seed: u64) -> Self {
        Rig { harness: H::new(seed), seen: (0..RINGS).map(|_| VecDeque::new()).collect(), generation: 0 }
    }

    fn io(&mut self, ring: usize) -> &mut H::Io {
        self.harness.io(ring)
    }

    /// Turns all rings once.
    fn round(&mut self) {
        for ring in 0..RINGS {
            let io = self.harness.io(ring);
            io.enter(1_000);
            while let Some(completion) = io.next() {
                self.seen[ring].push_back(completion);
            }
        }
        self.harness.wait();
    }

    /// The next completion of a ring that is wanted.
    fn expect(&mut self, ring: usize, what: &str, wanted: impl Fn(&Completion) -> bool) -> Completion {
        for _ in 0..ROUNDS_MAX {
            if let Some(at) = self.seen[ring].iter().position(&wanted) {
                return self.seen[ring].remove(at).expect("its position was just found");
            }
            self.round();
        }
        panic!("{what} did not come; reported were {:?}", self.seen[ring]);
    }

    /// Panics if a ring reports anything more.
    fn expect_quiet(&mut self) {
        for _ in 0..ROUNDS_QUIET {
            self.round();
        }
        assert!(self.seen.iter().all(VecDeque::is_empty), "unexpected: {:?}", self.seen);
    }

    fn expect_accept(&mut self, ring: usize) -> (OpResult<u32>, bool) {
        match self.expect(ring, "an accept", |completion| matches!(completion, Completion::Accept { listener: 0, .. }))
        {
            Completion::Accept { result, more, .. } => (result, more),
            other => unreachable!("{other:?}"),
        }
    }

    fn expect_recv(&mut self, ring: usize, conn: ConnId) -> (OpResult<Vec<u8>>, bool) {
        let wanted = |completion: &Completion| matches!(completion, Completion::Recv { conn: of, .. } if *of == conn);
        match self.expect(ring, "a receive", wanted) {
            Completion::Recv { result, buf, more, .. } => {
                let io = self.harness.io(ring);
                let bytes = result.map(|len| buf.map_or_else(Vec::new, |buf| io.buffer(buf, len).to_vec()));
                if let Some(buf) = buf {
                    io.release(buf);
                }
                (bytes, more)
            }
            other => unreachable!("{other:?}"),
        }
    }

    fn expect_sent(&mut self, ring: usize, conn: ConnId) -> (OpResult<usize>, Vec<u8>) {
        let wanted = |completion: &Completion| matches!(completion, Completion::Sent { conn: of, .. } if *of == conn);
        match self.expect(ring, "a send", wanted) {
            Completion::Sent { result, buf, .. } => (result, buf),
            other => unreachable!("{other:?}"),
        }
    }

    fn expect_readable(&mut self, ring: usize, conn: ConnId) -> OpResult<()> {
        let wanted =
            |completion: &Completion| matches!(completion, Completion::Readable { conn: of, .. } if *of == conn);
        match self.expect(ring, "a poll", wanted) {
            Completion::Readable { result, .. } => result,
            other => unreachable!("{other:?}"),
        }
    }

    fn expect_closed(&mut self, ring: usize, slot: u32) {
        self.expect(ring, "a close", |completion| matches!(completion, Completion::Closed { slot: of } if *of == slot));
    }

    /// The next use of a slot, as the connection table would number it.
    fn id(&mut self, slot: u32) -> ConnId {
        self.generation += 1;
        ConnId { slot, generation: self.generation }
    }

    /// A client and its accepted connection.
    fn connection(&mut self, ring: usize) -> (usize, ConnId) {
        self.io(ring).accept(0, false);
        let client = self.harness.connect(ring);
        let (slot, more) = self.expect_accept(ring);
        assert!(!more);
        let slot = slot.expect("a connection");
        (client, self.id(slot))
    }

    fn expect_dialed(&mut self, ring: usize, token: u32) -> OpResult<u32> {
        let wanted =
            |completion: &Completion| matches!(completion, Completion::Dialed { token: of, .. } if *of == token);
        match self.expect(ring, "the end of a dial", wanted) {
            Completion::Dialed { result, .. } => result,
            other => unreachable!("{other:?}"),
        }
    }

    /// A connection of ring 0 with ring 1, dialed and accepted.
    fn link(&mut self) -> (ConnId, ConnId) {
        let address = self.harness.address(1, 0);
        self.io(1).accept(0, false);
        self.io(0).dial(9, address);
        let dialed = self.expect_dialed(0, 9).expect("somebody listens");
        let accepted = self.expect_accept(1).0.expect("a connection");
        (self.id(dialed), self.id(accepted))
    }

    /// Receives until `len` bytes have come.
    fn recv_all(&mut self, ring: usize, conn: ConnId, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            self.io(ring).recv(conn);
            let (result, more) = self.expect_recv(ring, conn);
            assert!(!more, "a single receive is final");
            match result {
                Ok(got) => {
                    assert!(!got.is_empty() && got.len() <= limits().recv_buffer_bytes as usize);
                    bytes.extend(got);
                }
                // What was released is the kernel's again from the next enter on.
                Err(error) => assert_eq!(error, errno::ENOBUFS),
            }
        }
        bytes
    }

    /// Sends all of `bytes` while the client reads; returns what it has read by then, and how many sends it took.
    fn send_all(&mut self, ring: usize, conn: ConnId, client: usize, bytes: &[u8]) -> (Vec<u8>, usize) {
        let (mut offset, mut sends, mut buf, mut read) = (0, 0, bytes.to_vec(), Vec::new());
        while offset < bytes.len() {
            self.io(ring).send(conn, buf, offset);
            sends += 1;
            let sent = |completion: &Completion| matches!(completion, Completion::Sent { .. });
            while !self.seen[ring].iter().any(sent) {
                self.round();
                self.read_into(client, &mut read);
            }
            let (result, back) = self.expect_sent(ring, conn);
            assert_eq!(back, bytes, "the buffer comes back as it was");
            let taken = result.expect("the client reads");
            assert!(taken > 0 && offset + taken <= bytes.len());
            offset += taken;
            buf = back;
        }
        (read, sends)
    }

    fn read_into(&mut self, client: usize, read: &mut Vec<u8>) {
        if let Found::Bytes(bytes) = self.harness.read(client) {
            read.extend(bytes);
        }
    }

    /// What the client finds, once it finds something.
    fn client_finds(&mut self, client: usize) -> Found {
        for _ in 0..ROUNDS_MAX {
            match self.harness.read(client) {
                Found::Nothing => self.round(),
                found => return found,
            }
        }
        panic!("the client finds nothing");
    }

    fn client_reads(&mut self, client: usize, mut read: Vec<u8>, len: usize) -> Vec<u8> {
        while read.len() < len {
            match self.client_finds(client) {
                Found::Bytes(bytes) => read.extend(bytes),
                found => panic!("the client finds {found:?} after {} of {len} bytes", read.len()),
            }
        }
        read
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

fn a_multishot_accept_takes_many_until_it_is_cancelled<H: Harness>(mut rig: Rig<H>) {
    rig.io(0).accept(0, true);
    let mut slots = BTreeSet::new();
    for _ in 0..5 {
        rig.harness.connect(0);
        let (slot, more) = rig.expect_accept(0);
        assert!(slots.insert(slot.expect("a connection")), "a slot was given out twice");
        if !more {
            rig.io(0).accept(0, true);
        }
    }
    rig.io(0).accept_cancel(0);
    assert_eq!(rig.expect_accept(0), (Err(errno::ECANCELED), false));
    rig.harness.connect(0);
    rig.expect_quiet();
}

fn a_single_accept_takes_one<H: Harness>(mut rig: Rig<H>) {
    rig.io(0).accept(0, false);
    rig.harness.connect(0);
    rig.harness.connect(0);
    assert!(matches!(rig.expect_accept(0), (Ok(_), false)));
    rig.expect_quiet();
    rig.io(0).accept(0, false);
    assert!(matches!(rig.expect_accept(0), (Ok(_), false)));
}

fn an_accept_that_is_asked_to_tells_who_connected<H: Harness>(mut rig: Rig<H>) {
    let who = |completion: Completion| match completion {
        Completion::Accept { result: Ok(_), more: false, peer, .. } => peer,
        other => panic!("{other:?}"),
    };
    let accept = |completion: &Completion| matches!(completion, Completion::Accept { .. });
    for _ in 0..2 {
        rig.io(0).accept_with_peer(0);
        rig.io(0).accept_with_peer(1);
        let client = rig.harness.connect(0);
        let told = who(rig.expect(0, "an accept", accept));
        assert_eq!(told, Some(Peer::Address(rig.harness.client_address(client))));
        rig.io(0).accept_cancel(1);
        let cancelled = rig.expect(0, "the end of an accept", accept);
        assert!(
            matches!(cancelled, Completion::Accept { listener: 1, result: Err(errno::ECANCELED), peer: None, .. }),
            "{cancelled:?}"
        );
        // What is not asked is not told.
        rig.io(1).accept(0, false);
        rig.harness.connect(1);
        assert_eq!(who(rig.expect(1, "an accept", accept)), None);
    }
    rig.expect_quiet();
}

fn closed_listeners_refuse<H: Harness>(mut rig: Rig<H>) {
    rig.io(0).accept(0, true);
    rig.round();
    rig.io(0).accept_cancel(0);
    rig.io(0).stop_listening(0);
    assert_eq!(rig.expect_accept(0), (Err(errno::ECANCELED), false));
    assert!(rig.harness.refuses(0, 0));
    assert!(!rig.harness.refuses(1, 0));
}

fn an_accept_tells_of_a_ring_that_dials<H: Harness>(mut rig: Rig<H>) {
    let address = rig.harness.address(1, 0);
    for token in 1..5 {
        rig.io(1).accept_with_peer(0);
        rig.io(0).dial(token, address);
        let dialed = rig.expect_dialed(0, token).expect("somebody listens");
        let accepted = rig.expect(1, "an accept", |completion| matches!(completion, Completion::Accept { .. }));
        let Completion::Accept { listener: 0, result: Ok(slot), peer: Some(Peer::Address(from)), more: false } =
            accepted
        else {
            panic!("{accepted:?}");
        };
        assert!(from.ip() == address.ip() || !address.ip().is_loopback(), "{from}");
        let (dialed, accepted) = (rig.id(dialed), rig.id(slot));
        rig.io(0).send(dialed, b"!".to_vec(), 0);
        assert_eq!(rig.expect_sent(0, dialed).0, Ok(1));
        assert_eq!(rig.recv_all(1, accepted, 1), b"!");
    }
    // Several of one listener wait together, and end together.
    for _ in 0..3 {
        rig.io(1).accept_with_peer(0);
    }
    rig.round();
    rig.io(1).accept_cancel(0);
    rig.io(1).stop_listening(0);
    for _ in 0..3 {
        assert_eq!(rig.expect_accept(1), (Err(errno::ECANCELED), false));
    }
    assert!(rig.harness.refuses(1, 0));
}

fn the_other_listeners_of_a_ring_stay_open<H: Harness>(mut rig: Rig<H>) {
    rig.io(0).stop_listening(0);
    rig.io(0).stop_listening(0);
    rig.io(0).accept(1, false);
    rig.round();
    assert!(rig.harness.refuses(0, 0));
    assert!(!rig.harness.refuses(0, 1));
    let of_the_other = |completion: &Completion| {
        matches!(completion, Completion::Accept { listener: 1, result: Ok(_), more: false, .. })
    };
    rig.expect(0, "an accept", of_the_other);
}

fn a_dial_connects_two_rings<H: Harness>(mut rig: Rig<H>) {
    let (dialed, accepted) = rig.link();
    let (there, back) = (pattern(300_000), pattern(200_000));
    let mut ends = [End::new(0, dialed, &there), End::new(1, accepted, &back)];
    while ends[0].got.len() < back.len() || ends[1].got.len() < there.len() {
        ends.iter_mut().for_each(|end| end.step(&mut rig));
        rig.round();
    }
    assert!(ends[0].got == back && ends[1].got == there, "the other end read other bytes than were sent");
    for end in &mut ends {
        end.finish(&mut rig);
    }
    rig.io(0).shutdown(dialed);
    rig.expect(0, "a shutdown", |completion| matches!(completion, Completion::ShutDown { conn } if *conn == dialed));
    rig.io(1).recv(accepted);
    assert_eq!(rig.expect_recv(1, accepted), (Ok(Vec::new()), false));
    rig.io(1).close(accepted.slot, false);
    rig.expect_closed(1, accepted.slot);
    rig.io(0).recv(dialed);
    assert_eq!(rig.expect_recv(0, dialed), (Ok(Vec::new()), false));
    rig.expect_quiet();
}

fn a_dialed_connection_is_reset_like_any_other<H: Harness>(mut rig: Rig<H>) {
    let (dialed, accepted) = rig.link();
    rig.io(1).send(accepted, b"unread".to_vec(), 0);
    assert!(rig.expect_sent(1, accepted).0.is_ok());
    rig.io(0).poll(dialed);
    assert_eq!(rig.expect_readable(0, dialed), Ok(()));
    // A close with bytes unread.
    rig.io(0).close(dialed.slot, false);
    rig.expect_closed(0, dialed.slot);
    rig.io(1).recv(accepted);
    let (result, more) = rig.expect_recv(1, accepted);
    assert!(result.is_err() && !more, "{result:?}");
}

fn a_dial_nobody_listens_for_is_refused<H: Harness>(mut rig: Rig<H>) {
    rig.io(1).stop_listening(0);
    let address = rig.harness.address(1, 0);
    // Somebody else might listen there, or a dial from the very same port connect to itself. A simulated address may be
    // nobody's here.
    let held = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None).ok();
    let _held = held.filter(|socket| socket.bind(&address.into()).is_ok());
    // More than the table has slots, two at a time.
    for token in 0..limits().slots() {
        rig.io(0).dial(token, address);
        rig.io(0).dial(u32::MAX - token, address);
        assert_eq!(rig.expect_dialed(0, u32::MAX - token), Err(libc::ECONNREFUSED));
        assert_eq!(rig.expect_dialed(0, token), Err(libc::ECONNREFUSED));
    }
    let slots: BTreeSet<u32> = (0..limits().slots()).map(|_| rig.connection(0).1.slot).collect();
    assert_eq!(slots.len(), limits().slots() as usize, "all slots are free");
    rig.expect_quiet();
}

fn the_slot_of_a_dialed_connection_is_used_again<H: Harness>(mut rig: Rig<H>) {
    for _ in 0..limits().slots() + 10 {
        let (dialed, accepted) = rig.link();
        rig.io(0).close(dialed.slot, false);
        rig.expect_closed(0, dialed.slot);
        rig.io(1).recv(accepted);
        assert_eq!(rig.expect_recv(1, accepted), (Ok(Vec::new()), false));
        rig.io(1).close(accepted.slot, false);
        rig.expect_closed(1, accepted.slot);
    }
    rig.expect_quiet();
}

fn a_full_table_fails_the_dial<H: Harness>(mut rig: Rig<H>) {
    let slots: Vec<u32> = (0..limits().slots()).map(|_| rig.connection(0).1.slot).collect();
    let address = rig.harness.address(1, 0);
    rig.io(1).accept(0, false);
    rig.io(0).dial(5, address);
    assert_eq!(rig.expect_dialed(0, 5), Err(libc::ENFILE));
    let accepted = rig.expect_accept(1).0.expect("the other side does not know");
    let accepted = rig.id(accepted);
    rig.io(1).recv(accepted);
    assert_eq!(rig.expect_recv(1, accepted), (Ok(Vec::new()), false));
    rig.io(0).close(slots[3], false);
    rig.expect_closed(0, slots[3]);
    assert_eq!(rig.link().0.slot, slots[3]);
}

fn random_bytes_differ<H: Harness>(mut rig: Rig<H>) {
    let drawn: BTreeSet<[u8; 32]> = (0..10).map(|at| rig.io(at % RINGS).random()).collect();
    assert_eq!(drawn.len(), 10);
}

/// One end of a link that sends and receives at the same time.
struct End {
    ring: usize,
    conn: ConnId,
    buf: Option<Vec<u8>>,
    offset: usize,
    len: usize,
    reading: bool,
    got: Vec<u8>,
}

impl End {
    fn new(ring: usize, conn: ConnId, bytes: &[u8]) -> Self {
        End { ring, conn, buf: Some(bytes.to_vec()), offset: 0, len: bytes.len(), reading: false, got: Vec::new() }
    }

    /// Asks for what is not under way and takes what has come.
    fn step<H: Harness>(&mut self, rig: &mut Rig<H>) {
        let (ring, conn) = (self.ring, self.conn);
        if self.offset < self.len
            && let Some(buf) = self.buf.take()
        {
            rig.io(ring).send(conn, buf, self.offset);
        }
        if !std::mem::replace(&mut self.reading, true) {
            rig.io(ring).recv_multishot(conn);
        }
        while let Some(completion) = rig.seen[ring].pop_front() {
            match completion {
                Completion::Sent { conn: of, result, buf } if of == conn => {
                    self.offset += result.expect("the other end reads");
                    self.buf = Some(buf);
                }
                Completion::Recv { conn: of, result, buf, more, .. } if of == conn => {
                    self.reading = more;
                    match (result, buf) {
                        (Ok(len), Some(buf)) => {
                            self.got.extend_from_slice(rig.io(ring).buffer(buf, len));
                            rig.io(ring).release(buf);
                        }
                        (result, _) => assert!(
                            matches!(result, Err(errno::ENOBUFS | errno::ECANCELED)),
                            "a connection that works: {result:?}"
                        ),
                    }
                }
                other => panic!("unexpected: {other:?}"),
            }
        }
    }

    /// Ends its read.
    fn finish<H: Harness>(&mut self, rig: &mut Rig<H>) {
        self.step(rig);
        rig.io(self.ring).read_cancel(self.conn, ReadOp::Multishot);
        while self.reading {
            rig.round();
            // It has nothing left to send.
            self.step_reading(rig);
        }
    }

    fn step_reading<H: Harness>(&mut self, rig: &mut Rig<H>) {
        if rig.seen[self.ring].iter().any(|completion| matches!(completion, Completion::Recv { more: false, .. })) {
            self.step(rig);
        }
    }
}

fn single_receives_take_split_bytes_in_order<H: Harness>(mut rig: Rig<H>) {
    let (client, conn) = rig.connection(0);
    let bytes = pattern(500);
    for piece in bytes.chunks(7) {
        rig.harness.write(client, piece);
    }
    assert_eq!(rig.recv_all(0, conn, bytes.len()), bytes);
    rig.expect_quiet();
}

fn a_receive_says_whether_there_was_more<H: Harness>(mut rig: Rig<H>) {
    let (client, conn) = rig.connection(0);
    let bytes = pattern(200);
    rig.harness.write(client, &bytes);
    // All of it is there before the first receive.
    for _ in 0..20 {
        rig.round();
    }
    let mut got = 0;
    let mut said_more = 0;
    loop {
        rig.io(0).recv(conn);
        let wanted = |completion: &Completion| matches!(completion, Completion::Recv { .. });
        let Completion::Recv { result, buf, nonempty, .. } = rig.expect(0, "a receive", wanted) else { unreachable!() };
        if let Some(buf) = buf {
            rig.io(0).release(buf);
        }
        got += result.expect("bytes");
        said_more += u32::from(nonempty);
        if got == bytes.len() {
            assert!(!nonempty, "nothing is left");
            break;
        }
    }
    assert!(said_more > 0);
    rig.expect_quiet();
}

fn a_multishot_receive_takes_all_until_it_is_cancelled<H: Harness>(mut rig: Rig<H>) {
    let (client, conn) = rig.connection(0);
    let bytes = pattern(2_000);
    rig.io(0).recv_multishot(conn);
    let mut got = Vec::new();
    for piece in bytes.chunks(100) {
        rig.harness.write(client, piece);
        while got.len() < piece.len() {
            let (result, more) = rig.expect_recv(0, conn);
            match result {
                Ok(part) => got.extend(part),
                Err(error) => assert_eq!(error, errno::ENOBUFS),
            }
            if !more {
                rig.io(0).recv_multishot(conn);
            }
        }
        assert_eq!(got, piece);
        got.clear();
    }
    rig.io(0).read_cancel(conn, ReadOp::Multishot);
    assert_eq!(rig.expect_recv(0, conn), (Err(errno::ECANCELED), false));
    rig.harness.write(client, b"too late");
    rig.expect_quiet();
}

fn a_receive_into_large_buffers_goes_on_where_there_are_none<H: Harness>(mut rig: Rig<H>) {
    let (client, conn) = rig.connection(0);
    let bytes = pattern(600);
    rig.harness.write(client, &bytes);
    rig.io(0).recv_bulk(conn);
    let mut got = Vec::new();
    while got.len() < bytes.len() {
        let (result, more) = rig.expect_recv(0, conn);
        match result {
            Ok(part) => got.extend(part),
            Err(error) => assert_eq!(error, errno::ENOBUFS),
        }
        if !more {
            rig.io(0).recv_bulk(conn);
        }
    }
    assert_eq!(got, bytes);
    rig.io(0).read_cancel(conn, ReadOp::Bulk);
    assert_eq!(rig.expect_recv(0, conn), (Err(errno::ECANCELED), false));
    rig.harness.write(client, b"too late");
    rig.expect_quiet();
}

fn a_cancelled_receive_ends_once<H: Harness>(mut rig: Rig<H>) {
    let (client, conn) = rig.connection(0);
    rig.io(0).recv(conn);
    rig.round();
    rig.io(0).read_cancel(conn, ReadOp::Recv);
    assert_eq!(rig.expect_recv(0, conn), (Err(errno::ECANCELED), false));
    rig.expect_quiet();
    // A cancel that comes too late changes nothing.
    rig.harness.write(client, b"hello");
    assert_eq!(rig.recv_all(0, conn, 5), b"hello");
}

fn a_cancel_that_comes_too_late_is_none<H: Harness>(mut rig: Rig<H>) {
    let (client, conn) = rig.connection(0);
    rig.harness.write(client, b"hello");
    for _ in 0..ROUNDS_QUIET {
        rig.round();
    }
    rig.io(0).recv(conn);
    rig.io(0).read_cancel(conn, ReadOp::Recv);
    let (result, more) = rig.expect_recv(0, conn);
    assert!(matches!(&result, Ok(bytes) if b"hello".starts_with(bytes)), "{result:?}");
    assert!(!more);
    rig.expect_quiet();
}

fn a_poll_reports_bytes_and_can_be_cancelled<H: Harness>(mut rig: Rig<H>) {
    let (client, conn) = rig.connection(0);
    rig.io(0).poll(conn);
    rig.expect_quiet();
    rig.harness.write(client, b"hello");
    assert_eq!(rig.expect_readable(0, conn), Ok(()));
    assert_eq!(rig.recv_all(0, conn, 5), b"hello");
    rig.io(0).poll(conn);
    rig.round();
    rig.io(0).read_cancel(conn, ReadOp::Poll);
    assert_eq!(rig.expect_readable(0, conn), Err(errno::ECANCELED));
    rig.expect_quiet();
}

fn a_poll_reports_the_end_of_the_stream<H: Harness>(mut rig: Rig<H>) {
    let (client, conn) = rig.connection(0);
    rig.io(0).poll(conn);
    rig.harness.shutdown(client);
    assert_eq!(rig.expect_readable(0, conn), Ok(()));
}

fn without_a_buffer_a_receive_ends_and_loses_nothing<H: Harness>(mut rig: Rig<H>) {
    let (client, conn) = rig.connection(0);
    let bytes = pattern(4_000);
    rig.harness.write(client, &bytes);
    let mut held = Vec::new();
    let mut got = Vec::new();
    for _ in 0..RECV_BUFFERS {
        rig.io(0).recv(conn);
        let wanted = |completion: &Completion| matches!(completion, Completion::Recv { .. });
        let Completion::Recv { result: Ok(len), buf: Some(buf), .. } = rig.expect(0, "bytes", wanted) else {
            panic!("a receive with a buffer left");
        };
        got.extend_from_slice(rig.io(0).buffer(buf, len));
        held.push(buf);
    }
    let distinct: BTreeSet<u16> = held.iter().map(|buf| buf.0).collect();
    assert_eq!(distinct.len(), held.len(), "a buffer was given out twice");
    rig.io(0).recv(conn);
    assert_eq!(rig.expect_recv(0, conn), (Err(errno::ENOBUFS), false));
    for buf in held {
        rig.io(0).release(buf);
    }
    let rest = bytes.len() - got.len();
    got.extend(rig.recv_all(0, conn, rest));
    assert_eq!(got, bytes);
}

fn sends_arrive_whole_in_however_many_parts<H: Harness>(mut rig: Rig<H>) {
    let (client, conn) = rig.connection(0);
    let bytes = pattern(200_000);
    let (read, sends) = rig.send_all(0, conn, client, &bytes);
    assert!(sends >= 1);
    let read = rig.client_reads(client, read, bytes.len());
    assert!(read == bytes, "the client read other bytes than were sent");
    rig.expect_quiet();
}

fn a_send_the_client_does_not_take_is_short_and_can_be_cancelled<H: Harness>(mut rig: Rig<H>) {
    let (_, conn) = rig.connection(0);
    // More than any socket buffer holds.
    let len = 64 << 20;
    let (mut buf, mut offset) = (vec![7; len], 0);
    loop {
        let send = rig.io(0).send(conn, buf, offset);
        rig.round();
        rig.io(0).send_cancel(send);
        let (result, back) = rig.expect_sent(0, conn);
        assert_eq!(back.len(), len);
        match result {
            Ok(taken) => offset += taken,
            Err(error) => {
                assert_eq!(error, errno::ECANCELED);
                break;
            }
        }
        assert!(offset < len, "nobody reads, and all was sent");
        buf = back;
    }
    assert!(offset > 0, "an empty socket takes something");
    rig.expect_quiet();
}

fn a_send_that_is_withdrawn_sends_nothing<H: Harness>(mut rig: Rig<H>) {
    let (client, conn) = rig.connection(0);
    rig.io(0).send(conn, b"never mind".to_vec(), 0);
    rig.io(0).withdraw_sends();
    let (result, back) = rig.expect_sent(0, conn);
    assert_eq!(back, b"never mind");
    // The simulator may hand over what is queued at any time.
    let early = match result {
        Ok(taken) => taken,
        Err(error) => {
            assert_eq!(error, errno::ECANCELED);
            0
        }
    };
    let (read, _) = rig.send_all(0, conn, client, b"but this");
    let read = rig.client_reads(client, read, early + 8);
    assert_eq!(read[..early], b"never mind"[..early]);
    assert_eq!(&read[early..], b"but this");
    rig.expect_quiet();
}

fn the_end_of_the_stream_comes_after_the_last_byte<H: Harness>(mut rig: Rig<H>) {
    let (client, conn) = rig.connection(0);
    rig.harness.write(client, b"last words");
    rig.harness.shutdown(client);
    assert_eq!(rig.recv_all(0, conn, 10), b"last words");
    rig.io(0).recv_multishot(conn);
    assert_eq!(rig.expect_recv(0, conn), (Ok(Vec::new()), false));
    // The other direction is open.
    let (read, _) = rig.send_all(0, conn, client, b"goodbye");
    assert_eq!(rig.client_reads(client, read, 7), b"goodbye");
}

fn a_reset_ends_a_receive_and_fails_later_sends<H: Harness>(mut rig: Rig<H>) {
    let (client, conn) = rig.connection(0);
    rig.io(0).recv(conn);
    rig.round();
    rig.harness.reset(client);
    let (result, more) = rig.expect_recv(0, conn);
    assert!(result.is_err() && !more, "{result:?}");
    rig.io(0).send(conn, b"nobody there".to_vec(), 0);
    assert!(rig.expect_sent(0, conn).0.is_err());
    rig.io(0).close(conn.slot, false);
    rig.expect_closed(0, conn.slot);
    rig.expect_quiet();
}

fn after_a_shutdown_the_client_reads_the_rest_and_the_end<H: Harness>(mut rig: Rig<H>) {
    let (client, conn) = rig.connection(0);
    let (read, _) = rig.send_all(0, conn, client, b"goodbye");
    rig.io(0).shutdown(conn);
    rig.expect(0, "a shutdown", |completion| matches!(completion, Completion::ShutDown { conn: of } if *of == conn));
    assert_eq!(rig.client_reads(client, read, 7), b"goodbye");
    assert_eq!(rig.client_finds(client), Found::End);
    // The other direction is open.
    rig.harness.write(client, b"bye");
    assert_eq!(rig.recv_all(0, conn, 3), b"bye");
}

fn closing_frees_the_slot<H: Harness>(mut rig: Rig<H>) {
    // More connections than the table has slots, one after the other.
    for _ in 0..limits().slots() + 10 {
        let (client, conn) = rig.connection(0);
        rig.io(0).close(conn.slot, false);
        rig.expect_closed(0, conn.slot);
        assert_eq!(rig.client_finds(client), Found::End);
    }
    rig.expect_quiet();
}

fn a_close_with_a_reset_resets_and_frees_the_slot<H: Harness>(mut rig: Rig<H>) {
    for _ in 0..limits().slots() + 10 {
        let (client, conn) = rig.connection(0);
        rig.io(0).close(conn.slot, true);
        rig.expect_closed(0, conn.slot);
        assert_eq!(rig.client_finds(client), Found::Reset);
    }
    rig.expect_quiet();
}

fn a_full_table_fails_the_accept<H: Harness>(mut rig: Rig<H>) {
    let slots: Vec<u32> = (0..limits().slots()).map(|_| rig.connection(0).1.slot).collect();
    let distinct: BTreeSet<u32> = slots.iter().copied().collect();
    assert_eq!(distinct, (0..limits().slots()).collect());
    rig.io(0).accept(0, false);
    rig.harness.connect(0);
    let (result, more) = rig.expect_accept(0);
    assert!(result.is_err() && !more, "{result:?}");
    rig.io(0).close(slots[7], false);
    rig.expect_closed(0, slots[7]);
    assert_eq!(rig.connection(0).1.slot, slots[7]);
}

fn a_handed_over_connection_lives_on_in_the_other_ring<H: Harness>(mut rig: Rig<H>) {
    let (client, conn) = rig.connection(0);
    rig.harness.write(client, b"before ");
    let token = HandoverToken::new(0, conn);
    rig.io(0).hand_over(conn, 1, token);
    let handed = rig.expect(0, "a hand-over", |completion| matches!(completion, Completion::HandedOver { .. }));
    assert!(matches!(handed, Completion::HandedOver { conn: of, result: Ok(()) } if of == conn), "{handed:?}");
    let adopted = rig.expect(1, "an adoption", |completion| matches!(completion, Completion::Adopted { .. }));
    let Completion::Adopted { token: of, slot } = adopted else { unreachable!() };
    assert_eq!(of, token);
    let there = rig.id(slot);
    rig.io(1).recv_multishot(there);
    rig.io(0).close(conn.slot, false);
    rig.expect_closed(0, conn.slot);
    rig.harness.write(client, b"after");
    let mut got = Vec::new();
    while got.len() < 12 {
        let (result, more) = rig.expect_recv(1, there);
        match result {
            Ok(part) => got.extend(part),
            Err(error) => assert_eq!(error, errno::ENOBUFS),
        }
        if !more {
            rig.io(1).recv_multishot(there);
        }
    }
    assert_eq!(got, b"before after");
    let (read, _) = rig.send_all(1, there, client, b"welcome");
    assert_eq!(rig.client_reads(client, read, 7), b"welcome");
    rig.expect_quiet();
}

fn a_hand_over_to_a_full_table_fails_and_harms_nothing<H: Harness>(mut rig: Rig<H>) {
    for _ in 0..limits().slots() {
        rig.connection(1);
    }
    let (client, conn) = rig.connection(0);
    rig.io(0).hand_over(conn, 1, HandoverToken::new(0, conn));
    let handed = rig.expect(0, "a hand-over", |completion| matches!(completion, Completion::HandedOver { .. }));
    assert!(matches!(handed, Completion::HandedOver { conn: of, result: Err(_) } if of == conn), "{handed:?}");
    rig.harness.write(client, b"still here");
    assert_eq!(rig.recv_all(0, conn, 10), b"still here");
    rig.expect_quiet();
}

fn a_wake_reaches_the_other_ring_once<H: Harness>(mut rig: Rig<H>) {
    rig.io(0).wake(1);
    rig.expect(1, "a wake", |completion| matches!(completion, Completion::Wake));
    rig.expect_quiet();
}

fn a_tick_comes_once_and_not_early<H: Harness>(mut rig: Rig<H>) {
    let before_ms = rig.io(0).now().mono_ms;
    rig.io(0).tick_after(15);
    rig.expect(0, "a tick", |completion| matches!(completion, Completion::Tick));
    let passed_ms = rig.io(0).now().mono_ms - before_ms;
    assert!(passed_ms >= 14, "the tick came after {passed_ms} ms");
    rig.expect_quiet();
}

fn a_pause_comes_once_and_not_early_beside_the_tick<H: Harness>(mut rig: Rig<H>) {
    let before_ms = rig.io(0).now().mono_ms;
    rig.io(0).tick_after(60);
    rig.io(0).pause(15);
    rig.expect(0, "a pause", |completion| matches!(completion, Completion::Paused));
    let passed_ms = rig.io(0).now().mono_ms - before_ms;
    assert!(passed_ms >= 14, "the pause was over after {passed_ms} ms");
    rig.expect(0, "a tick", |completion| matches!(completion, Completion::Tick));
    rig.expect_quiet();
}

macro_rules! for_both {
    ($($property:ident)*) => {
        mod simulator {
            $(#[test] fn $property() {
                for seed in 0..20 {
                    super::$property(super::Rig::<super::Simulator>::new(seed));
                }
            })*
        }
        mod real_ring {
            $(#[test] fn $property() {
                super::$property(super::Rig::<super::RealRing>::new(0));
            })*
        }
    };
}

for_both! {
    a_multishot_accept_takes_many_until_it_is_cancelled
    a_single_accept_takes_one
    an_accept_that_is_asked_to_tells_who_connected
    an_accept_tells_of_a_ring_that_dials
    closed_listeners_refuse
    the_other_listeners_of_a_ring_stay_open
    a_dial_connects_two_rings
    a_dialed_connection_is_reset_like_any_other
    a_dial_nobody_listens_for_is_refused
    the_slot_of_a_dialed_connection_is_used_again
    a_full_table_fails_the_dial
    random_bytes_differ
    single_receives_take_split_bytes_in_order
    a_receive_says_whether_there_was_more
    a_multishot_receive_takes_all_until_it_is_cancelled
    a_receive_into_large_buffers_goes_on_where_there_are_none
    a_cancelled_receive_ends_once
    a_cancel_that_comes_too_late_is_none
    a_poll_reports_bytes_and_can_be_cancelled
    a_poll_reports_the_end_of_the_stream
    without_a_buffer_a_receive_ends_and_loses_nothing
    sends_arrive_whole_in_however_many_parts
    a_send_the_client_does_not_take_is_short_and_can_be_cancelled
    a_send_that_is_withdrawn_sends_nothing
    the_end_of_the_stream_comes_after_the_last_byte
    a_reset_ends_a_receive_and_fails_later_sends
    after_a_shutdown_the_client_reads_the_rest_and_the_end
    closing_frees_the_slot
    a_close_with_a_reset_resets_and_frees_the_slot
    a_full_table_fails_the_accept
    a_handed_over_connection_lives_on_in_the_other_ring
    a_hand_over_to_a_full_table_fails_and_harms_nothing
    a_wake_reaches_the_other_ring_once
    a_tick_comes_once_and_not_early
    a_pause_comes_once_and_not_early_beside_the_tick
}

/// Rings with two large buffers.
fn bulk_limits() -> Limits {
    let limits = Limits { recv_buffers: 256, mesh_slots: 2, ..limits() };
    assert_eq!((limits.bulk_buffers(), limits.bulk_bytes(), limits.buffers_in_bulk()), (2, 1_024, 32));
    limits
}

#[test]
fn large_buffers_of_a_ring_are_filled_and_are_apart_from_the_others() {
    large_buffers_are_filled_and_are_apart_from_the_others(RealRing::with(&bulk_limits()));
}

#[test]
fn large_buffers_of_the_simulator_are_filled_and_are_apart_from_the_others() {
    let harness = Simulator::with(1, Faults::none(), &bulk_limits());
    large_buffers_are_filled_and_are_apart_from_the_others(harness);
}

fn large_buffers_are_filled_and_are_apart_from_the_others(harness: impl Harness) {
    let mut rig = Rig { harness, seen: (0..RINGS).map(|_| VecDeque::new()).collect(), generation: 0 };
    let (client, conn) = rig.connection(0);
    let (other, small) = rig.connection(0);
    let bytes = pattern(5_000);
    rig.harness.write(client, &bytes);
    rig.io(0).recv_bulk(conn);
    let mut got = Vec::new();
    let mut held = Vec::new();
    // Both are filled, and when there is none left the receive ends and loses nothing.
    let wanted = |completion: &Completion| matches!(completion, Completion::Recv { conn: of, .. } if *of == conn);
    loop {
        let Completion::Recv { result, buf, more, .. } = rig.expect(0, "a receive", wanted) else { unreachable!() };
        match (result, buf) {
            (Ok(len), Some(buf)) => {
                assert_eq!(len, 1_024);
                got.extend_from_slice(rig.io(0).buffer_mut(buf, len));
                held.push(buf);
            }
            (result, _) => {
                assert_eq!((result, more), (Err(errno::ENOBUFS), false));
                break;
            }
        }
    }
    assert_eq!((held.len(), &got[..]), (2, &bytes[..2_048]));
    // The others have theirs.
    rig.harness.write(other, b"not much");
    assert_eq!(rig.recv_all(0, small, 8), b"not much");
    held.into_iter().for_each(|buf| rig.io(0).release(buf));
    rig.io(0).recv_bulk(conn);
    while got.len() < bytes.len() {
        let (result, more) = rig.expect_recv(0, conn);
        match result {
            Ok(part) => got.extend(part),
            Err(error) => assert_eq!(error, errno::ENOBUFS),
        }
        if !more {
            rig.io(0).recv_bulk(conn);
        }
    }
    assert_eq!(got, bytes);
    rig.expect_quiet();
}

#[test]
fn a_dial_nobody_answers_ends_by_itself() {
    let mut rig = Rig::<RealRing>::new(0);
    // A listener whose backlog is full: the kernel drops what else wants to connect.
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port on the loopback");
    listener.listen(0).expect("a bound socket");
    let address = listener.local_addr().expect("a bound listener has an address").as_socket().expect("IPv4");
    let _full = TcpStream::connect(address).expect("the backlog holds one");
    let started = std::time::Instant::now();
    rig.io(0).dial(1, address);
    assert_eq!(rig.expect_dialed(0, 1), Err(libc::ETIMEDOUT));
    let passed = started.elapsed();
    assert!(passed >= Duration::from_millis(2_900) && passed < Duration::from_secs(10), "{passed:?}");
    rig.expect_quiet();
}
