//! Events on simulated I/O: devices come, take each other's places and go, and a services thread takes what is told of
//! that whenever it gets to it.
//!
//! Properties:
//! - each session that begins ends once, with its own id, and in that order;
//! - a user is told to be online and offline by turns, online before the first session is told of, and offline only
//!   when none has been left for the time that a user may be away;
//! - what is told is told when all have gone, and nothing is missing.

use super::node::{Node, NodeConfig};
use super::{SharedWorld, World};
use crate::events::{Event, EventKind, EventPortals, Wants};
use crate::io::sim::{Faults, Rng};
use crate::limits::Limits;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use trunkline_proto::{Kind, Login, VERSION, encode_message};

const USERS: u64 = 6;
/// Virtual time in which devices come and go, and in which all is told then.
const TRAFFIC_US: u64 = 15_000_000;
const QUIET_US: u64 = 20_000_000;
const STEP_US: u64 = 50_000;
/// How long a user may be away without being told of.
const GRACE_MS: u64 = 3_000;

/// What a receiver knows of a user.
#[derive(Debug, Default)]
struct Known {
    is_online: bool,
    sessions: BTreeSet<u64>,
    /// When the last of them ended.
    left_ms: u64,
}

struct Run {
    world: SharedWorld,
    node: Node,
    rng: Rng,
    shards: u16,
    portals: EventPortals,
    sockets: Vec<usize>,
    users: BTreeMap<u64, Known>,
    /// Sessions that were told of, ever.
    sessions: BTreeSet<u64>,
    offline: u64,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x0E_7E17);
        let shards = rng.within(1, 4) as u16;
        let limits = Limits { connections_max: 64, ..Limits::default() };
        let mut faults = Faults::random(&mut rng);
        // A login that fails would only keep devices away.
        faults.hand_over_fail = 0;
        // How long users were away is told by the wall clock.
        faults.clock_set = 0;
        let world = World::new(seed, faults, usize::from(shards), 1, &limits, false);
        let world = Rc::new(RefCell::new(world));
        let mut node = Node::new(NodeConfig::alone(seed, shards, &limits), &world);
        let portals = EventPortals::new(shards, Wants::of("*").expect("all"), false);
        node.give_events(&portals);
        let users = BTreeMap::new();
        Run { world, node, rng, shards, portals, sockets: Vec::new(), users, sessions: BTreeSet::new(), offline: 0 }
    }

    fn now_us(&self) -> u64 {
        self.world.borrow().now_us()
    }

    fn new_device(&mut self) {
        let ring = self.rng.below(self.shards.into()) as usize;
        let socket = self.world.borrow_mut().connect_to(ring, 0, 65_536);
        let (user, device) = (self.rng.within(1, USERS), format!("d{}", self.rng.below(2)));
        let login = Login { version: VERSION, user, device, device_class: "phone".to_owned(), ..Login::default() };
        let mut bytes = Vec::new();
        encode_message(&mut bytes, Kind::Login, 0, &login);
        self.world.borrow_mut().client_write(socket, &bytes);
        self.sockets.push(socket);
    }

    fn run_for(&mut self, us: u64) {
        let end_us = self.now_us() + us;
        while self.node.pass(u64::MAX, end_us).is_some() {
            self.node.step();
            let stirred = self.world.borrow_mut().take_stirred();
            for socket in stirred.into_iter().filter(|socket| self.sockets.contains(socket)).collect::<Vec<_>>() {
                let read = self.world.borrow_mut().client_read(socket, usize::MAX);
                if read.end || read.reset {
                    self.leave(socket);
                }
            }
        }
    }

    fn leave(&mut self, socket: usize) {
        self.sockets.retain(|other| *other != socket);
        self.world.borrow_mut().client_close(socket);
    }

    fn take(&mut self) {
        while let Some(bytes) = self.portals.take_bytes() {
            let mut rest = &bytes[..];
            while let Some((event, len)) = Event::decode(rest) {
                rest = &rest[len..];
                self.hear(&event);
            }
            assert!(rest.is_empty(), "something that is no event");
        }
    }

    fn hear(&mut self, event: &Event<'_>) {
        let known = self.users.entry(event.user).or_default();
        match event.kind {
            EventKind::UserOnline => {
                assert!(!std::mem::replace(&mut known.is_online, true), "online twice: {event:?}");
                assert!(known.sessions.is_empty(), "with sessions before: {event:?}");
            }
            EventKind::UserOffline => {
                assert!(std::mem::replace(&mut known.is_online, false), "offline twice: {event:?}");
                assert!(known.sessions.is_empty(), "with sessions: {event:?}, {known:?}");
                assert_eq!(event.peer, known.left_ms, "since when");
                // To a tick.
                assert!(event.time_ms + 200 >= known.left_ms + GRACE_MS, "too soon: {event:?}, {known:?}");
                self.offline += 1;
            }
            EventKind::SessionLogin => {
                assert!(known.is_online && event.class == "phone" && event.device.starts_with('d'), "{event:?}");
                assert!(known.sessions.insert(event.id) && self.sessions.insert(event.id), "begun twice: {event:?}");
            }
            EventKind::SessionLogout => {
                assert!(known.sessions.remove(&event.id), "one that is not there: {event:?}");
                known.left_ms = event.time_ms;
            }
            other => panic!("nobody did that: {other:?}"),
        }
    }

    fn run(&mut self) -> u64 {
        while self.now_us() < TRAFFIC_US {
            if self.sockets.len() < 8 && self.rng.chance(150) {
                self.new_device();
            }
            if self.rng.chance(150)
                && let Some(at) = (!self.sockets.is_empty()).then(|| self.rng.below(self.sockets.len() as u64) as usize)
            {
                self.leave(self.sockets[at]);
            }
            if self.rng.chance(300) {
                self.take();
            }
            self.run_for(STEP_US);
        }
        std::mem::take(&mut self.sockets).into_iter().for_each(|socket| self.world.borrow_mut().client_close(socket));
        self.run_for(QUIET_US);
        self.take();
        for (user, known) in &self.users {
            assert!(!known.is_online && known.sessions.is_empty(), "user {user} has gone, and that was not told");
        }
        let logins: u64 = self.node.stats().map(|stats| stats.logins.get()).sum();
        assert_eq!(self.sessions.len() as u64, logins, "a session was not told of");
        self.node.check_empty(false);
        self.offline
    }
}

#[test]
fn who_comes_and_goes_is_told_once_and_in_order() {
    let mut offline = 0;
    for seed in 0..40 {
        let outcome = std::panic::catch_unwind(|| Run::new(seed).run());
        offline += outcome.unwrap_or_else(|_| panic!("seed {seed}"));
    }
    assert!(offline > 100, "{offline} times offline");
}
