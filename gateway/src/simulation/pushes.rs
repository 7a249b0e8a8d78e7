//! Pushes by HTTP on simulated I/O: a services thread that pushes to users who acknowledge, or do not, come and leave,
//! and a node whose shards stall and are paused.
//!
//! Properties:
//! - each user of a push that a portal has taken gets exactly one fate;
//! - delivered is told only of what a device has acknowledged, and what it got is what was pushed;
//! - a shard that sleeps is woken, and works off what is in its portal however much that is for one turn;
//! - nothing is left when all have gone.

use super::node::{Node, NodeConfig};
use super::{SharedWorld, World};
use crate::auth::{Auth, AuthSwitch};
use crate::io::sim::{Faults, Rng};
use crate::limits::Limits;
use crate::portal::{OuterEnd, Portals, Push};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use trunkline_proto::{
    FRAME_BYTES_MAX_LIMIT, Header, Kind, Login, Outcome, VERSION, decode, encode, encode_message, flags,
};
use trunkline_router::hash::home_shard;

const SERVICE: u16 = 7;
const USERS: u64 = 8;
/// Virtual time in which there is traffic, and in which all that is open must end.
const TRAFFIC_US: u64 = 4_000_000;
const QUIET_US: u64 = 20_000_000;
const STEP_US: u64 = 10_000;

#[derive(Debug)]
struct Device {
    socket: usize,
    user: u64,
    acks: bool,
    input: Vec<u8>,
    over: bool,
}

struct Run {
    world: SharedWorld,
    node: Node,
    rng: Rng,
    shards: u16,
    outer: OuterEnd,
    devices: Vec<Device>,
    last_token: u32,
    /// Users of pushes that have had no fate.
    open: BTreeSet<(u32, u64)>,
    /// What devices have acknowledged: id and user.
    acked: BTreeSet<(u64, u64)>,
    fates: u64,
}

/// What a push of that id holds: some are more than a turn's share for a shard with many of them.
fn payload(id: u64) -> Vec<u8> {
    vec![id as u8; (id as usize * 37) % if id.is_multiple_of(16) { 40_000 } else { 300 }]
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x70_5E5);
        let shards = rng.within(1, 4) as u16;
        let limits = Limits {
            connections_max: 64,
            heartbeat_secs: 30,
            redeliver_ms: 500,
            redeliver_attempts_max: 2,
            unacked_per_user_max: rng.within(4, 64) as usize,
            ..Limits::default()
        };
        let mut faults = Faults::random(&mut rng);
        // A login that fails would only keep devices away.
        faults.hand_over_fail = 0;
        let world = World::new(seed, faults, usize::from(shards), 1, &limits, false);
        let world = Rc::new(RefCell::new(world));
        let node = NodeConfig {
            seed,
            name: "simulated".to_owned(),
            first_ring: 0,
            shards,
            listeners: 1,
            limits,
            auth: AuthSwitch::new(Auth::Open),
            tls: None,
            proxies: Arc::default(),
            cluster: None,
            store: None,
            services: None,
        };
        let mut node = Node::new(node, &world);
        let portals = Portals::new(shards);
        node.give_portals(&portals);
        let outer = portals.outer(rng.within(2_000, 400_000) as usize);
        Run {
            world,
            node,
            rng,
            shards,
            outer,
            devices: Vec::new(),
            last_token: 0,
            open: BTreeSet::new(),
            acked: BTreeSet::new(),
            fates: 0,
        }
    }

    fn now_us(&self) -> u64 {
        self.world.borrow().now_us()
    }

    fn new_device(&mut self) {
        let ring = self.rng.below(self.shards.into()) as usize;
        let socket = self.world.borrow_mut().connect_to(ring, 0, 65_536);
        let user = self.rng.within(1, USERS);
        let mut bytes = Vec::new();
        let login = Login { version: VERSION, user, device: format!("d{}", self.devices.len()), ..Login::default() };
        encode_message(&mut bytes, Kind::Login, 0, &login);
        self.world.borrow_mut().client_write(socket, &bytes);
        let acks = self.rng.chance(700);
        self.devices.push(Device { socket, user, acks, input: Vec::new(), over: false });
    }

    /// One push to some users.
    fn push(&mut self) {
        self.last_token += 1;
        let (token, id) = (self.last_token, u64::from(self.last_token));
        let payload = payload(id);
        let push = Push { token, service: SERVICE, acked: self.rng.chance(800), extra: 0, id, payload: &payload };
        let users: Vec<u64> = (1..=USERS).filter(|_| self.rng.chance(300)).collect();
        for shard in 0..self.shards.into() {
            let here = |user: &u64| home_shard(*user, self.shards.into()) as usize == shard;
            let users: Vec<u64> = users.iter().copied().filter(here).collect();
            if self.outer.put(shard, &push, &users) {
                self.open.extend(users.into_iter().map(|user| (token, user)));
            }
        }
    }

    fn run_for(&mut self, us: u64) {
        let end_us = self.now_us() + us;
        loop {
            let now_us = self.now_us();
            let event_us = self.world.borrow().next_event_us().unwrap_or(u64::MAX);
            let turn_us = self.node.next_turn_us().unwrap_or(u64::MAX);
            let next_us = event_us.min(turn_us).max(now_us);
            if next_us > end_us {
                return self.world.borrow_mut().advance(end_us);
            }
            self.world.borrow_mut().advance(next_us);
            self.node.step();
            let stirred = self.world.borrow_mut().take_stirred();
            for socket in stirred {
                if let Some(at) = self.devices.iter().position(|device| device.socket == socket) {
                    self.read(at);
                }
            }
        }
    }

    fn read(&mut self, at: usize) {
        let device = &mut self.devices[at];
        if device.over {
            return;
        }
        let read = self.world.borrow_mut().client_read(device.socket, usize::MAX);
        device.input.extend_from_slice(&read.bytes);
        let input = std::mem::take(&mut device.input);
        let mut from = 0;
        while let Some((frame, len)) = decode(&input[from..], FRAME_BYTES_MAX_LIMIT).expect("whole frames") {
            from += len;
            match frame.known() {
                Some(Kind::Bye) => device.over = true,
                Some(Kind::Push) => {
                    assert_eq!((frame.aux, frame.peer), (SERVICE, 0));
                    assert!(frame.body == payload(frame.id), "what was pushed has changed");
                    if device.acks && frame.flags & flags::ACK != 0 {
                        let ack =
                            Header { kind: Kind::Ack, flags: 0, aux: 0, id: frame.id, peer: 0, stamp: frame.stamp };
                        let mut bytes = Vec::new();
                        encode(&mut bytes, &ack, &[]);
                        self.world.borrow_mut().client_write(device.socket, &bytes);
                        self.acked.insert((frame.id, device.user));
                    }
                }
                _ => {}
            }
        }
        device.input = input[from..].to_vec();
        if read.end || read.reset {
            device.over = true;
        }
        if device.over {
            self.world.borrow_mut().client_close(device.socket);
        }
    }

    /// What the services thread does when its bell rings, or a request has gathered something.
    fn turn_of_services_thread(&mut self) {
        self.outer.post();
        for shard in 0..self.shards.into() {
            if self.outer.bytes(shard) > 0 {
                self.node.signal(shard);
            }
        }
        let Run { outer, open, acked, fates, .. } = self;
        outer.take_fates(|fate| {
            assert!(open.remove(&(fate.token, fate.user)), "a fate of what is not open: {fate:?}");
            let was_acked = acked.contains(&(fate.id, fate.user));
            assert!(fate.outcome != Outcome::Delivered || was_acked, "nobody has acknowledged it: {fate:?}");
            *fates += 1;
        });
    }

    fn run(&mut self) {
        while self.now_us() < TRAFFIC_US {
            if self.devices.iter().filter(|device| !device.over).count() < 10 && self.rng.chance(100) {
                self.new_device();
            }
            if self.rng.chance(20)
                && let Some(at) = (!self.devices.is_empty()).then(|| self.rng.below(self.devices.len() as u64) as usize)
                && !std::mem::replace(&mut self.devices[at].over, true)
            {
                self.world.borrow_mut().client_close(self.devices[at].socket);
            }
            (0..self.rng.below(8)).for_each(|_| self.push());
            self.turn_of_services_thread();
            self.run_for(STEP_US);
        }
        let end_us = self.now_us() + QUIET_US;
        while self.now_us() < end_us {
            self.turn_of_services_thread();
            self.run_for(10 * STEP_US);
        }
        assert!(self.open.is_empty(), "no fate of {:?}", self.open);
        assert!((0..self.shards.into()).all(|shard| self.outer.bytes(shard) == 0));
        for device in &mut self.devices {
            if !std::mem::replace(&mut device.over, true) {
                self.world.borrow_mut().client_close(device.socket);
            }
        }
        self.run_for(QUIET_US);
        self.node.check_empty(false);
    }
}

#[test]
fn each_user_of_a_push_gets_one_fate() {
    let mut fates = 0;
    for seed in 0..60 {
        let outcome = std::panic::catch_unwind(|| {
            let mut run = Run::new(seed);
            run.run();
            run.fates
        });
        fates += outcome.unwrap_or_else(|_| panic!("seed {seed}"));
    }
    assert!(fates > 10_000, "{fates} fates");
}
