//! Pushes by HTTP on simulated I/O: a services thread that pushes to users who acknowledge, or do not, come and leave,
//! and a node whose shards stall and are paused.
//!
//! Properties:
//! - each user of a push that a portal has taken gets exactly one fate;
//! - delivered is told only of what a device has acknowledged, and what it got is what was pushed;
//! - what is for one device comes to no other;
//! - what comes again under its id and was delivered, or was given without ACK, is not given again;
//! - expired is told only of what has an end, and not before that; nothing comes to a device long after its end;
//! - who is in a live room gets what is pushed into it, once, and nobody else does;
//! - a push to all comes once to each session that is there, and the numbers told are those of copies given; what is
//!   stopped goes no further;
//! - a shard that sleeps is woken, and works off what is in its portal however much that is for one turn;
//! - nothing is left when all have gone.

use super::node::{Node, NodeConfig};
use super::{SharedWorld, World};
use crate::broadcast::{Condition, End, News, Spec, Tally, Word};
use crate::groups::group_home;
use crate::head::{HEADED, MessageHead, is_over, until};
use crate::io::sim::{Faults, Rng};
use crate::limits::Limits;
use crate::portal::{OuterEnd, Portals, Push};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use trunkline_proto::{
    FRAME_BYTES_MAX_LIMIT, Header, Kind, Login, Outcome, SERVICE_USERS, VERSION, decode, encode, encode_message, flags,
};
use trunkline_router_core::hash::home_shard;

const SERVICE: u16 = 7;
const USERS: u64 = 8;
/// The ids of pushes to all begin here.
const TO_ALL: u64 = 1 << 50;
/// The live room that some devices are in.
const ROOM: u64 = 1 << 63;
/// What was given to a connection in time may take so long to be read, whatever the simulated network does.
const LATE_MS_MAX: u64 = 15_000;
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
    in_room: bool,
    logged_in: bool,
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
    /// Pushes that may come again.
    keyed: Vec<Keyed>,
    /// The latest position at which a user was given a push with that id, by id and user; and where that was final.
    stamps: BTreeMap<(u64, u64), u64>,
    done: BTreeMap<(u64, u64), u64>,
    /// What devices have acknowledged: id and user.
    acked: BTreeSet<(u64, u64)>,
    /// Pushes with a head: the end, in seconds of the wall clock, and the device.
    heads: BTreeMap<u64, (u32, Option<String>)>,
    /// Who has got a push to all.
    of_all: BTreeSet<usize>,
    /// Pushes into the room, and who has got them.
    of_room: BTreeMap<u64, BTreeSet<usize>>,
    fates: BTreeMap<u16, u64>,
}

/// A push that may come again under another number.
#[derive(Clone, Debug)]
struct Keyed {
    id: u64,
    users: Vec<u64>,
    acked: bool,
    extra: u8,
    payload: Vec<u8>,
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
            broadcast_per_sec: 10,
            redeliver_ms: 500,
            redeliver_attempts_max: 2,
            unacked_per_user_max: rng.within(4, 64) as usize,
            ..Limits::default()
        };
        let mut faults = Faults::random(&mut rng);
        // A login that fails would only keep devices away.
        faults.hand_over_fail = 0;
        // What ends at a time is held against the clock here.
        faults.clock_set = 0;
        let world = World::new(seed, faults, usize::from(shards), 1, &limits, false);
        let world = Rc::new(RefCell::new(world));
        let mut node = Node::new(NodeConfig::alone(seed, shards, &limits), &world);
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
            keyed: Vec::new(),
            stamps: BTreeMap::new(),
            done: BTreeMap::new(),
            acked: BTreeSet::new(),
            heads: BTreeMap::new(),
            of_room: BTreeMap::new(),
            of_all: BTreeSet::new(),
            fates: BTreeMap::new(),
        }
    }

    fn wall_ms(&self) -> u64 {
        self.world.borrow().wall_ms()
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
        if self.rng.chance(300) {
            let join = Header { kind: Kind::GroupJoin, flags: 0, aux: 0, id: 1, peer: ROOM, stamp: 0 };
            encode(&mut bytes, &join, &[]);
        }
        self.world.borrow_mut().client_write(socket, &bytes);
        let acks = self.rng.chance(700);
        self.devices.push(Device {
            socket,
            user,
            acks,
            input: Vec::new(),
            over: false,
            in_room: false,
            logged_in: false,
        });
    }

    /// One push into the room.
    fn push_to_room(&mut self) {
        self.last_token += 1;
        let (token, id) = (self.last_token, u64::from(self.last_token));
        let (payload, acked) = (payload(id), self.rng.chance(800));
        let push = Push { token, service: SERVICE, acked, to_groups: true, extra: 0, id, payload: &payload };
        if self.outer.put(group_home(ROOM, self.shards).into(), &push, &[ROOM]) {
            self.open.insert((token, ROOM));
            self.of_room.insert(id, BTreeSet::new());
        }
    }

    /// One push to some users, new or as one before.
    fn push(&mut self) {
        self.last_token += 1;
        if !self.keyed.is_empty() && self.rng.chance(150) {
            let at = self.rng.below(self.keyed.len() as u64) as usize;
            let again = self.keyed[at].clone();
            return self.put(self.last_token, &again);
        }
        let (token, id) = (self.last_token, u64::from(self.last_token));
        let payload = payload(id);
        let until_s = if self.rng.chance(300) { until(self.rng.within(0, 2) as u32, self.wall_ms()) } else { 0 };
        let device = self.rng.chance(200).then(|| format!("d{}", self.rng.below(self.devices.len() as u64 + 1)));
        let head = MessageHead { until_s, device: device.as_deref() };
        let (extra, payload) = if head.is_empty() { (0, payload) } else { (HEADED, head.before(&payload)) };
        self.heads.insert(id, (until_s, device.clone()));
        let acked = self.rng.chance(800);
        let users: Vec<u64> = (1..=USERS).filter(|_| self.rng.chance(300)).collect();
        let may_come_again = self.rng.chance(300);
        let extra = extra | if may_come_again { flags::RETRY } else { 0 };
        let push = Keyed { id, users, acked, extra, payload };
        self.put(token, &push);
        if may_come_again {
            self.keyed.push(push);
        }
    }

    fn put(&mut self, token: u32, push: &Keyed) {
        let Keyed { id, ref users, acked, extra, ref payload } = *push;
        let push = Push { token, service: SERVICE, acked, to_groups: false, extra, id, payload };
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
        while self.node.pass(u64::MAX, end_us).is_some() {
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
        let wall_ms = self.wall_ms();
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
                Some(Kind::LoginOk) => device.logged_in = true,
                Some(Kind::Push) if frame.id >= TO_ALL => {
                    assert_eq!((frame.flags, frame.body), (0, &b"to all"[..]));
                    assert!(self.of_all.insert(at), "it came twice");
                }
                Some(Kind::Push) => {
                    assert_eq!((frame.aux, frame.peer), (SERVICE, 0));
                    assert!(frame.body == payload(frame.id), "what was pushed has changed");
                    let (until_s, only) = &self.heads[&frame.id];
                    assert!(only.as_ref().is_none_or(|only| *only == format!("d{at}")), "{only:?} was to get it");
                    // Its stamp says when it was given to it first.
                    let given_ms = frame.stamp >> 20;
                    assert!(*until_s == 0 || !is_over(*until_s, given_ms), "given {given_ms}, over {until_s}");
                    // What was on its way to it when its time was over may still come.
                    let (push, is_acked) = ((frame.id, device.user), frame.flags & flags::ACK != 0);
                    let last = self.done.get(&push).copied().unwrap_or(u64::MAX);
                    assert!(frame.stamp <= last, "{push:?} was done with at {last} and is given at {}", frame.stamp);
                    let seen = self.stamps.entry(push).or_insert(frame.stamp);
                    assert!(is_acked || *seen == frame.stamp, "{push:?} was given twice without ACK");
                    *seen = frame.stamp.max(*seen);
                    let late_ms = wall_ms.saturating_sub(u64::from(*until_s) * 1_000);
                    assert!(*until_s == 0 || late_ms < LATE_MS_MAX, "{late_ms} ms too late");
                    if device.acks && frame.flags & flags::ACK != 0 {
                        let ack =
                            Header { kind: Kind::Ack, flags: 0, aux: 0, id: frame.id, peer: 0, stamp: frame.stamp };
                        let mut bytes = Vec::new();
                        encode(&mut bytes, &ack, &[]);
                        self.world.borrow_mut().client_write(device.socket, &bytes);
                        self.acked.insert((frame.id, device.user));
                    }
                }
                Some(Kind::GroupOk) => device.in_room = true,
                Some(Kind::GroupDeliver) => {
                    assert!(device.in_room && frame.peer == ROOM);
                    let (from, body) = frame.body.split_first_chunk().expect("who sent it");
                    assert_eq!(u64::from_be_bytes(*from), SERVICE_USERS + u64::from(SERVICE));
                    assert!(body == payload(frame.id), "what was pushed has changed");
                    assert!(self.of_room.get_mut(&frame.id).expect("it was pushed").insert(at), "it came twice");
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
        let wall_ms = self.wall_ms();
        let Run { outer, open, acked, fates, heads, stamps, done, .. } = self;
        outer.take_fates(|fate| {
            assert!(open.remove(&(fate.token, fate.user)), "a fate of what is not open: {fate:?}");
            let was_acked = acked.contains(&(fate.id, fate.user));
            assert!(fate.outcome != Outcome::Delivered || was_acked, "nobody has acknowledged it: {fate:?}");
            let until_s = heads.get(&fate.id).map_or(0, |(until_s, _)| *until_s);
            let may_be_over = is_over(until_s, wall_ms);
            assert!(fate.outcome != Outcome::Expired || may_be_over, "its time is not over: {fate:?}");
            if fate.outcome == Outcome::Delivered
                && let Some(stamp) = stamps.get(&(fate.id, fate.user))
            {
                done.entry((fate.id, fate.user)).or_insert(*stamp);
            }
            *fates.entry(fate.outcome.as_u16()).or_default() += 1;
        });
    }

    /// A push to all; stopped at once, it comes to as many as it has met by then.
    fn push_to_all(&mut self, stop: bool) {
        self.of_all.clear();
        let there = self.devices_there();
        self.last_token += 1;
        let token = self.last_token;
        let (condition, payload) = (Condition::all(), b"to all"[..].into());
        let id = TO_ALL + u64::from(token);
        let spec = Spec { token, service: SERVICE, id, condition, payload };
        self.outer.tell_all(&Word::Begin(Arc::new(spec)));
        self.signal_all();
        let mut parts: BTreeMap<u16, (Tally, Option<End>)> = BTreeMap::new();
        for step in 0..400 {
            if stop && step == 5 {
                self.outer.tell_all(&Word::Stop(token));
                self.signal_all();
            }
            self.run_for(10 * STEP_US);
            self.outer.take_news(|news| match news {
                News::Asked { token: of, parts } => assert_eq!((of, parts), (token, 0), "there are no other nodes"),
                News::Told { token: of, part, tally, end } => {
                    assert_eq!((of, part.node), (token, 0));
                    let (known, ended) = parts.entry(part.shard).or_default();
                    assert!(ended.is_none() && known.delivered <= tally.delivered);
                    (*known, *ended) = (tally, end);
                }
            });
            if parts.len() == usize::from(self.shards) && parts.values().all(|(_, end)| end.is_some()) {
                break;
            }
        }
        // What was given comes, whatever the simulated network does.
        self.run_for(LATE_MS_MAX * 1_000);
        assert!(parts.len() == usize::from(self.shards) && parts.values().all(|(_, end)| end.is_some()), "{parts:?}");
        let delivered: u64 = parts.values().map(|(tally, _)| tally.delivered).sum();
        let overloaded: u64 = parts.values().map(|(tally, _)| tally.overloaded).sum();
        let is_stopped = parts.values().any(|(_, end)| *end == Some(End::Stopped));
        // Whoever has left meanwhile may or may not have been met.
        let stayed = self.devices_there() == there;
        let came = self.of_all.len() as u64;
        assert!(came == delivered || (!stayed && came < delivered), "{came} came of {parts:?}");
        let met = delivered + overloaded;
        assert!(met <= there && (met == there || is_stopped || !stayed), "{parts:?} of {there}");
        assert!(!is_stopped || stop);
    }

    fn devices_there(&self) -> u64 {
        self.devices.iter().filter(|device| device.logged_in && !device.over).count() as u64
    }

    fn signal_all(&mut self) {
        (0..self.shards.into()).for_each(|shard| self.node.signal(shard));
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
            if self.rng.chance(200) {
                self.push_to_room();
            }
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
        self.push_to_all(false);
        self.push_to_all(true);
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
    let mut fates: BTreeMap<u16, u64> = BTreeMap::new();
    let mut into_room = 0;
    for seed in 0..60 {
        let outcome = std::panic::catch_unwind(|| {
            let mut run = Run::new(seed);
            run.run();
            (run.fates, run.of_room.values().map(BTreeSet::len).sum::<usize>())
        });
        let (of_run, copies) = outcome.unwrap_or_else(|_| panic!("seed {seed}"));
        of_run.into_iter().for_each(|(outcome, count)| *fates.entry(outcome).or_default() += count);
        into_room += copies;
    }
    assert!(fates.values().sum::<u64>() > 10_000 && into_room > 1_000, "{fates:?}, {into_room} copies in the room");
    let met = [Outcome::Delivered, Outcome::OfflineNotStored, Outcome::Expired, Outcome::Accepted];
    assert!(met.iter().all(|outcome| fates.contains_key(&outcome.as_u16())), "{fates:?}");
}
