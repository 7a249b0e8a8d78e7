//! Floods of TLS, on simulated I/O: beginnings that are more than a shard can answer, of which those who mean it get in
//! all the same, as many of them as the shard has time for; and records with next to nothing in them.

use super::node::{Node, NodeConfig};
use super::tls::TlsEnd;
use super::{SharedWorld, World};
use crate::io::sim::{Faults, Rng};
use crate::limits::{Limits, ReadMode};
use crate::metrics::ShardStats;
use crate::reason::CloseReason;
use crate::transport::tls::{Certificates, TicketSecret, TlsSwitch, toy};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use trunkline_proto::{FRAME_BYTES_MAX_LIMIT, Header, Kind, Login, VERSION, decode, encode, encode_message};

/// A turn of the simulator takes 15 µs on the average, and answers one handshake here.
const STEP_US: u64 = 20;
const STRANGERS_PER_STEP: u64 = 4;
/// Between two clients that mean it.
const HONEST_STEPS: u64 = 25;
const FLOOD_STEPS: u64 = 1_500;
const SETTLE_US: u64 = 12_000_000;

/// Somebody who logs in, at the other end of a connection.
struct Honest {
    tls: TlsEnd,
    data: Vec<u8>,
    logged_in: bool,
}

struct Run {
    rng: Rng,
    world: SharedWorld,
    node: Node,
    honest: BTreeMap<usize, Honest>,
}

impl Run {
    fn new(seed: u64, limits: Limits) -> Self {
        let limits = Limits {
            tls_handshakes_max: 256,
            tls_handshakes_per_turn: 1,
            login_timeout_ms: 5_000,
            heartbeat_secs: 600,
            ..limits
        };
        let world = Rc::new(RefCell::new(World::new(seed, Faults::none(), 1, 1, &limits, false)));
        let tls = TlsSwitch::new(Certificates::default(), None, TicketSecret::shared(b"of a simulation"));
        let tls = Some(tls.expect("there is nothing that does not go together"));
        let node = Node::new(NodeConfig { tls, ..NodeConfig::alone(seed, 1, &limits) }, &world);
        Run { rng: Rng::new(seed ^ 0x0F10_0D5E), world, node, honest: BTreeMap::new() }
    }

    fn run_for(&mut self, us: u64) {
        let end_us = self.world.borrow().now_us() + us;
        while self.node.pass(u64::MAX, end_us).is_some() {
            let stirred = self.world.borrow_mut().take_stirred();
            stirred.into_iter().for_each(|socket| self.read(socket));
            self.node.step();
        }
    }

    fn read(&mut self, socket: usize) {
        let read = self.world.borrow_mut().client_read(socket, usize::MAX);
        if let Some(client) = self.honest.get_mut(&socket) {
            let (data, due) = client.tls.unwrap(&read.bytes, &mut self.rng);
            client.data.extend(data);
            if let Ok(Some((frame, _))) = decode(&client.data, FRAME_BYTES_MAX_LIMIT) {
                client.logged_in |= frame.known() == Some(Kind::LoginOk);
            }
            if !due.is_empty() {
                self.world.borrow_mut().client_write(socket, &due);
            }
        }
        if read.end || read.reset {
            self.world.borrow_mut().client_close(socket);
        }
    }

    /// One who begins a handshake and never goes on.
    fn stranger_comes(&mut self) {
        let hello = toy::hello(self.rng.bits());
        let mut world = self.world.borrow_mut();
        let socket = world.connect(2_048).expect("the node listens");
        world.client_write(socket, &hello);
    }

    /// One who logs in; the socket it does that by.
    fn honest_comes(&mut self) -> usize {
        let mut tls = TlsEnd::new(&mut self.rng);
        let login = Login { version: VERSION, user: self.honest.len() as u64 + 1, ..Login::default() };
        let mut bytes = Vec::new();
        encode_message(&mut bytes, Kind::Login, 0, &login);
        let bytes = tls.wrap(&bytes, &mut self.rng);
        let socket = self.world.borrow_mut().connect(2_048).expect("the node listens");
        self.world.borrow_mut().client_write(socket, &bytes);
        self.honest.insert(socket, Honest { tls, data: Vec::new(), logged_in: false });
        socket
    }

    fn sum(&self, stat: fn(&ShardStats) -> u64) -> u64 {
        self.node.stats().map(stat).sum()
    }
}

#[test]
fn a_flood_of_beginnings_leaves_the_others_the_part_that_the_shard_has_time_for() {
    for seed in 0..2 {
        let mut run = Run::new(seed, Limits::default());
        for step in 0..FLOOD_STEPS {
            (0..STRANGERS_PER_STEP).for_each(|_| run.stranger_comes());
            if step % HONEST_STEPS == 0 {
                run.honest_comes();
            }
            run.run_for(STEP_US);
        }
        let came = run.honest.len();
        run.run_for(SETTLE_US);
        let logged_in = run.honest.values().filter(|client| client.logged_in).count();
        let (refused, evicted) =
            (run.sum(|s| s.closed(CloseReason::Overloaded)), run.sum(|s| s.evicted_handshakes.get()));
        println!("seed {seed}: {logged_in} of {came} logged in, {refused} overloaded, {evicted} of them gave way");
        // It answers about a third of all that come, whoever they are.
        assert!(logged_in * 6 >= came, "seed {seed}: {logged_in} of {came} logged in");
        assert!(evicted > 0 && refused > evicted, "seed {seed}: {refused} overloaded, {evicted} of them gave way");
        assert_eq!(run.sum(|s| s.limit_tls_handshakes.get()), refused, "seed {seed}: each is counted");
        assert_eq!(run.sum(|s| s.tls_shaking.get()), 0, "seed {seed}: nothing is left");
        // Who comes when it is over is served.
        run.honest_comes();
        run.run_for(SETTLE_US);
        assert!(run.honest.values().next_back().is_some_and(|client| client.logged_in), "seed {seed}");
    }
}

#[test]
fn records_of_a_byte_each_take_their_part_of_a_turn() {
    let limits = Limits { read_mode: ReadMode::Hot, turn_units_max: 64, ..Limits::default() };
    let mut run = Run::new(0, limits);
    let socket = run.honest_comes();
    run.run_for(SETTLE_US);
    let mut frame = Vec::new();
    let header = Header { kind: Kind::Send, flags: 0, aux: 0, id: 1, peer: 2, stamp: 0 };
    encode(&mut frame, &header, &[7; 2_000]);
    let client = run.honest.get_mut(&socket).expect("it came");
    assert!(client.logged_in);
    let records: Vec<u8> = frame.iter().flat_map(|byte| client.tls.wrap(&[*byte], &mut run.rng)).collect();
    run.world.borrow_mut().client_write(socket, &records);
    run.run_for(SETTLE_US);
    assert_eq!(run.sum(|s| s.messages_in.get()), 1, "it was one message in the end");
    // Of what had come together, a part waited for the next turn: the frame it is of was not whole, so only the records
    // can have taken the turn up.
    assert!(run.sum(|s| s.reads_behind.get()) > 0);
}
