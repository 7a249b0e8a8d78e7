//! Messages to a live room that come close together, on simulated I/O: they are gathered and go together, none waits
//! longer than it may, and a session is given no more of them than it may be.

use super::node::{Node, NodeConfig};
use super::planted::{Bug, with_planted};
use super::{Report, SharedWorld, World, outcome};
use crate::control::Control;
use crate::groups::ROOMS_FROM;
use crate::io::sim::{Faults, Rng};
use crate::limits::{GroupLimits, Limits};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use trunkline_proto::prost::Message as _;
use trunkline_proto::{FRAME_BYTES_MAX_LIMIT, Header, Heads, Kind, Login, VERSION, decode, encode, encode_message};

const MEMBERS: usize = 12;
const SHARDS: u16 = 2;
const GATHER_MS: u64 = 20;
/// What the network takes, the steps of a shard's clock, and a turn of each of two shards.
const SLACK_US: u64 = 3_000;

struct Run {
    world: SharedWorld,
    node: Node,
    sockets: BTreeMap<usize, usize>,
    inputs: Vec<Vec<u8>>,
    joined: usize,
    sent_us: BTreeMap<u64, u64>,
    /// For each message and member how long it took.
    delays_us: BTreeMap<(u64, usize), u64>,
    /// When something came to each member, each time once.
    arrivals_us: Vec<Vec<u64>>,
    /// The numbers that came to each member, in the order in which they came, and what HEADS said last.
    numbers: Vec<Vec<u16>>,
    heads: Vec<u64>,
}

impl Run {
    fn new(seed: u64, room_gather_ms: u64, room_frames_per_sec: u16) -> Self {
        let groups = GroupLimits {
            sends_per_sec: 0,
            member_sends_per_sec: 0,
            room_gather_ms,
            room_frames_per_sec,
            ..GroupLimits::default()
        };
        let limits = Limits { heartbeat_secs: 600, groups, ..Limits::default() };
        let world = Rc::new(RefCell::new(World::new(seed, Faults::none(), SHARDS.into(), 1, &limits, false)));
        let node = Node::new(NodeConfig::alone(seed, SHARDS, &limits), &world);
        let mut run = Run {
            world,
            node,
            sockets: BTreeMap::new(),
            inputs: vec![Vec::new(); MEMBERS],
            joined: 0,
            sent_us: BTreeMap::new(),
            delays_us: BTreeMap::new(),
            arrivals_us: vec![Vec::new(); MEMBERS],
            numbers: vec![Vec::new(); MEMBERS],
            heads: vec![0; MEMBERS],
        };
        for member in 0..MEMBERS {
            let socket = run.world.borrow_mut().connect(65_536).expect("the node listens");
            run.sockets.insert(socket, member);
            let mut bytes = Vec::new();
            let login = Login { version: VERSION, user: member as u64 + 1, ..Login::default() };
            encode_message(&mut bytes, Kind::Login, 0, &login);
            let header = Header { kind: Kind::GroupJoin, flags: 0, aux: 0, id: 1, peer: ROOMS_FROM, stamp: 0 };
            encode(&mut bytes, &header, &[]);
            run.world.borrow_mut().client_write(socket, &bytes);
        }
        run.run_for(5_000_000);
        assert_eq!(run.joined, MEMBERS);
        run
    }

    fn now_us(&self) -> u64 {
        self.world.borrow().now_us()
    }

    fn run_for(&mut self, us: u64) {
        let end_us = self.now_us() + us;
        loop {
            let now_us = self.now_us();
            let event_us = self.world.borrow().next_event_us().unwrap_or(u64::MAX);
            let next_us = event_us.min(self.node.next_turn_us().unwrap_or(u64::MAX)).max(now_us);
            if next_us > end_us {
                return self.world.borrow_mut().advance(end_us);
            }
            self.world.borrow_mut().advance(next_us);
            let stirred = self.world.borrow_mut().take_stirred();
            stirred.into_iter().for_each(|socket| self.read(socket));
            self.node.step();
        }
    }

    fn send(&mut self, sender: usize) {
        let id = self.sent_us.len() as u64 + 1;
        self.sent_us.insert(id, self.now_us());
        let mut bytes = Vec::new();
        let header = Header { kind: Kind::GroupSend, flags: 0, aux: 0, id, peer: ROOMS_FROM, stamp: 0 };
        encode(&mut bytes, &header, b"to the room");
        let socket = *self.sockets.iter().find(|(_, member)| **member == sender).expect("it is there").0;
        self.world.borrow_mut().client_write(socket, &bytes);
    }

    fn read(&mut self, socket: usize) {
        let (member, now_us) = (self.sockets[&socket], self.now_us());
        let read = self.world.borrow_mut().client_read(socket, usize::MAX);
        let mut input = std::mem::take(&mut self.inputs[member]);
        input.extend_from_slice(&read.bytes);
        let mut taken = 0;
        while let Some((frame, len)) = decode(&input[taken..], FRAME_BYTES_MAX_LIMIT).expect("it frames properly") {
            taken += len;
            match frame.known().expect("a known kind") {
                Kind::GroupOk => self.joined += 1,
                Kind::GroupDeliver => {
                    let before = self.delays_us.insert((frame.id, member), now_us - self.sent_us[&frame.id]);
                    assert_eq!(before, None, "{} came twice", frame.id);
                    self.numbers[member].push(frame.aux);
                    if self.arrivals_us[member].last() != Some(&now_us) {
                        self.arrivals_us[member].push(now_us);
                    }
                }
                Kind::Heads => {
                    let heads = Heads::decode(frame.body).expect("a Heads").heads;
                    self.heads[member] = heads.iter().map(|head| head.seq).max().unwrap_or(0);
                }
                _ => {}
            }
        }
        self.inputs[member] = input.split_off(taken);
    }
}

#[test]
fn messages_of_a_busy_room_go_together_and_none_waits_longer_than_it_may() {
    for seed in 0..5 {
        let mut rng = Rng::new(seed);
        let mut gathered = Run::new(seed, GATHER_MS, 0);
        let mut at_once = Run::new(seed, 0, 0);
        for _ in 0..200 {
            let (sender, pause_us) = (rng.below(MEMBERS as u64) as usize, rng.within(100, 6_000));
            for run in [&mut gathered, &mut at_once] {
                run.send(sender);
                run.run_for(pause_us);
            }
        }
        for run in [&mut gathered, &mut at_once] {
            run.run_for(1_000_000);
            assert_eq!(run.delays_us.len(), 200 * (MEMBERS - 1), "seed {seed}: all have all");
        }
        let slowest_us = |run: &Run| run.delays_us.values().copied().max().expect("messages came");
        let bound_us = slowest_us(&at_once) + GATHER_MS * 1_000 + SLACK_US;
        assert!(slowest_us(&gathered) <= bound_us, "seed {seed}: {} µs, {bound_us} may be", slowest_us(&gathered));
        // A member gets as much at a time as comes within the time.
        let arrivals = |run: &Run| run.arrivals_us.iter().map(Vec::len).sum::<usize>();
        assert!(2 * arrivals(&gathered) < arrivals(&at_once), "seed {seed}: {} arrivals", arrivals(&gathered));
        // In a room that is quiet by now one message goes at once.
        let lone = |run: &mut Run| {
            run.send(0);
            run.run_for(1_000_000);
            let id = run.sent_us.len() as u64;
            (1..MEMBERS).map(|member| run.delays_us[&(id, member)]).max().expect("there are members")
        };
        assert!(lone(&mut gathered) < GATHER_MS * 1_000 / 2, "seed {seed}");
    }
}

/// Each session gets the first ten messages of a second, and is told that there are more.
fn budget_holds(seed: u64) {
    for gather_ms in [0, GATHER_MS] {
        let mut run = Run::new(seed, gather_ms, 10);
        // From the beginning of a second on, so that all of it is one.
        let into_us = run.now_us() % 1_000_000;
        run.run_for(1_000_000 - into_us + 50_000);
        (0..25).for_each(|_| run.send(0));
        run.run_for(500_000);
        for member in 1..MEMBERS {
            assert_eq!(run.numbers[member], (1..=10).collect::<Vec<_>>());
            assert_eq!(run.heads[member], 25, "it is told that there are more, though nothing follows");
        }
        run.run_for(1_000_000);
        run.send(0);
        run.run_for(500_000);
        assert!((1..MEMBERS).all(|member| run.numbers[member].last() == Some(&26)));
        let left_out: u64 = run.node.stats().map(|stats| stats.limit_room_frames.get()).sum();
        let dropped: u64 = run.node.stats().map(|stats| stats.group_copies_dropped.get()).sum();
        assert_eq!((left_out, dropped), (15 * (MEMBERS as u64 - 1), 15 * (MEMBERS as u64 - 1)));
    }
}

#[test]
fn a_session_gets_so_many_messages_in_a_second_and_sees_by_the_numbers_that_there_were_more() {
    (0..3).for_each(budget_holds);
}

#[test]
fn a_budget_that_is_ignored_is_caught() {
    let run = || {
        budget_holds(0);
        Report { trace_hash: 0, counts: BTreeMap::new() }
    };
    assert!(with_planted(Bug::BudgetIgnored, || outcome(run)).is_err());
}

#[test]
fn a_drain_holds_nothing_back() {
    let mut run = Run::new(2, 1_000, 0);
    run.send(0);
    run.run_for(20_000);
    run.send(0);
    run.run_for(20_000);
    let came = |run: &Run, id| (1..MEMBERS).filter(|member| run.delays_us.contains_key(&(id, *member))).count();
    assert_eq!((came(&run, 1), came(&run, 2)), (MEMBERS - 1, 0), "the second one is held");
    for shard in 0..usize::from(SHARDS) {
        assert!(run.node.request(shard, Control::Drain { ends: false }));
    }
    run.run_for(20_000);
    assert_eq!(came(&run, 2), MEMBERS - 1);
}
