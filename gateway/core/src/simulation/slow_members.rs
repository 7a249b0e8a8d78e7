//! Members of a group that stop reading, on simulated I/O: whether the others feel it, and whether the slow ones are
//! told what they have missed and have all of it in the end.
//!
//! Everybody is a member of one group, and the first one sends. A slow member asks for what it has missed only when it
//! is told by HEADS that there is something, so what it has in the end shows that it was told.

use super::inbox::store::SimStore;
use super::node::{Node, NodeConfig};
use super::planted::{Bug, with_planted};
use super::{Report, SharedWorld, World, outcome};
use crate::auth::{Auth, AuthSwitch};
use crate::io::sim::Faults;
use crate::limits::{GroupLimits, Limits};
use crate::metrics::ShardStats;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use trunkline_proto::prost::Message as _;
use trunkline_proto::{
    FRAME_BYTES_MAX_LIMIT, Frame, Header, Heads, Kind, Login, Sync, SyncOk, VERSION, decode, encode, encode_message,
    flags,
};

const GROUP: u64 = 7;
const MEMBERS: usize = 40;
/// 5 % of them.
const SLOW: usize = 2;
const SHARDS: u16 = 2;
/// Messages while the slow ones do not read, and while they catch up.
const MESSAGES: u64 = 150;
const MORE: u64 = 20;
/// Between two messages.
const PACE_US: u64 = 20_000;
/// Messages of a page.
const PAGE: u32 = 16;
const SETTLE_US: u64 = 10_000_000;
const PAYLOAD: [u8; 100] = [7; 100];

struct Member {
    socket: usize,
    reads: bool,
    joined: bool,
    /// How often each message came as it was sent, and from the log.
    live: BTreeMap<u64, u32>,
    replayed: BTreeMap<u64, u32>,
    /// The positions of those it has.
    stamps: BTreeMap<u64, u64>,
    /// The last message up to which it has everything, and its position.
    whole: (u64, u64),
    heads: u32,
    /// How far the group is, as HEADS said.
    head: u64,
    syncing: bool,
    input: Vec<u8>,
}

struct Run {
    world: SharedWorld,
    node: Node,
    store: SimStore,
    members: Vec<Member>,
    by_socket: BTreeMap<usize, usize>,
    sent_us: BTreeMap<u64, u64>,
    answered: u64,
    /// From the sending of a message to its coming to a member that reads, of all that do.
    delays_us: Vec<u64>,
    /// The first so many read at all times.
    others: usize,
}

impl Run {
    fn new(seed: u64) -> Self {
        let limits = Limits {
            login_timeout_ms: 5_000,
            heartbeat_secs: 600,
            outbox_bytes_max: 4_000,
            outbox_burst_bytes_max: 4_000,
            // Nobody is to be ended for being slow.
            outbox_full_ms_max: 600_000,
            store_users_max: u64::MAX,
            groups: GroupLimits {
                sends_per_sec: 0,
                member_sends_per_sec: 0,
                passive_above: 0,
                ..GroupLimits::default()
            },
            ..Limits::default()
        };
        let world = Rc::new(RefCell::new(World::new(seed, Faults::none(), SHARDS.into(), 1, &limits, false)));
        let mut store = SimStore::new(seed, trunkline_store::Limits::default(), 0, 1 << 20);
        let served = store.serve(SHARDS, world.borrow().wall_ms());
        let config = NodeConfig {
            seed,
            name: "simulated".to_owned(),
            first_ring: 0,
            shards: SHARDS,
            listeners: 1,
            limits,
            auth: AuthSwitch::new(Auth::Open),
            tls: None,
            proxies: std::sync::Arc::default(),
            cluster: None,
            store: Some(served),
            services: None,
        };
        let node = Node::new(config, &world);
        Run {
            world,
            node,
            store,
            members: Vec::new(),
            by_socket: BTreeMap::new(),
            sent_us: BTreeMap::new(),
            answered: 0,
            delays_us: Vec::new(),
            others: MEMBERS,
        }
    }

    fn now_us(&self) -> u64 {
        self.world.borrow().now_us()
    }

    fn run_for(&mut self, us: u64) {
        let end_us = self.now_us() + us;
        loop {
            let now_us = self.now_us();
            let event_us = self.world.borrow().next_event_us().unwrap_or(u64::MAX);
            let turn_us = self.node.next_turn_us().unwrap_or(u64::MAX);
            let next_us = event_us.min(turn_us).min(self.store.next_due_us()).max(now_us);
            if next_us > end_us {
                return self.world.borrow_mut().advance(end_us);
            }
            self.world.borrow_mut().advance(next_us);
            let stirred = self.world.borrow_mut().take_stirred();
            for socket in stirred {
                self.read(self.by_socket[&socket]);
            }
            let wall_ms = self.world.borrow().wall_ms();
            self.node.step();
            self.store.step(next_us, wall_ms, &mut self.node);
        }
    }

    fn write(&self, member: usize, bytes: &[u8]) {
        self.world.borrow_mut().client_write(self.members[member].socket, bytes);
    }

    fn all_join(&mut self) {
        for at in 0..MEMBERS {
            let socket = self.world.borrow_mut().connect(2_048).expect("the node listens");
            self.by_socket.insert(socket, at);
            self.members.push(Member {
                socket,
                reads: true,
                joined: false,
                live: BTreeMap::new(),
                replayed: BTreeMap::new(),
                stamps: BTreeMap::new(),
                whole: (0, 0),
                heads: 0,
                head: 0,
                syncing: false,
                input: Vec::new(),
            });
            let login = Login { version: VERSION, user: at as u64 + 1, ..Login::default() };
            let mut bytes = Vec::new();
            encode_message(&mut bytes, Kind::Login, 0, &login);
            self.write(at, &bytes);
        }
        self.run_for(SETTLE_US);
        assert!(self.members.iter().all(|member| member.joined));
    }

    /// The first member sends so many messages.
    fn send(&mut self, count: u64) {
        for _ in 0..count {
            let id = self.sent_us.len() as u64 + 1;
            self.sent_us.insert(id, self.now_us());
            let mut bytes = Vec::new();
            let header = Header { kind: Kind::GroupSend, flags: flags::ACK, aux: 0, id, peer: GROUP, stamp: 0 };
            encode(&mut bytes, &header, &PAYLOAD);
            self.write(0, &bytes);
            self.run_for(PACE_US);
        }
    }

    fn read(&mut self, at: usize) {
        if !self.members[at].reads {
            return;
        }
        let read = self.world.borrow_mut().client_read(self.members[at].socket, usize::MAX);
        assert!(!read.reset && !read.end, "{at} was ended");
        let mut input = std::mem::take(&mut self.members[at].input);
        input.extend_from_slice(&read.bytes);
        let mut taken = 0;
        while let Some((frame, len)) = decode(&input[taken..], FRAME_BYTES_MAX_LIMIT).expect("it frames properly") {
            taken += len;
            self.frame(at, &frame);
        }
        self.members[at].input = input.split_off(taken);
    }

    fn frame(&mut self, at: usize, frame: &Frame<'_>) {
        let now_us = self.now_us();
        let is_other = at < self.others;
        let member = &mut self.members[at];
        match frame.known().expect("a known kind") {
            Kind::LoginOk => {
                let mut bytes = Vec::new();
                let header = Header { kind: Kind::GroupJoin, flags: 0, aux: 0, id: 1, peer: GROUP, stamp: 0 };
                encode(&mut bytes, &header, &[]);
                self.write(at, &bytes);
            }
            Kind::GroupOk => (member.joined, member.whole.1) = (true, frame.stamp),
            Kind::Sent => {
                assert_eq!((at, frame.aux), (0, 1), "it is stored, and its sender is told");
                self.answered += 1;
            }
            Kind::GroupDeliver => {
                let replay = frame.flags & flags::REPLAY != 0;
                let times = if replay { &mut member.replayed } else { &mut member.live };
                *times.entry(frame.id).or_default() += 1;
                member.stamps.insert(frame.id, frame.stamp);
                while let Some(stamp) = member.stamps.get(&(member.whole.0 + 1)) {
                    member.whole = (member.whole.0 + 1, *stamp);
                }
                if is_other {
                    self.delays_us.push(now_us - self.sent_us[&frame.id]);
                }
            }
            Kind::Heads => {
                let heads = Heads::decode(frame.body).expect("a Heads").heads;
                assert!(heads.iter().all(|head| head.group == GROUP));
                member.heads += 1;
                member.head = heads.iter().map(|head| head.stamp).fold(member.head, u64::max);
                self.ask(at);
            }
            Kind::SyncOk => {
                let page = SyncOk::decode(frame.body).expect("a SyncOk");
                assert!(!page.truncated);
                member.syncing = false;
                self.ask(at);
            }
            kind => panic!("{} for member {at}", kind.name()),
        }
    }

    /// For what lies behind the last message up to which it has everything, if there is something, as HEADS said.
    fn ask(&mut self, at: usize) {
        let member = &mut self.members[at];
        if member.head > member.whole.1 && !std::mem::replace(&mut member.syncing, true) {
            let sync = Sync { after_stamp: member.whole.1, limit: PAGE, group: GROUP, ..Sync::default() };
            let mut bytes = Vec::new();
            encode_message(&mut bytes, Kind::Sync, 1, &sync);
            self.write(at, &bytes);
        }
    }

    fn sum(&self, stat: fn(&ShardStats) -> u64) -> u64 {
        self.node.stats().map(stat).sum()
    }
}

/// All of it, with so many slow members, and what must hold. Returns the longest delay of a message to a member that
/// reads.
fn run(seed: u64, slow: usize) -> u64 {
    let mut run = Run::new(seed);
    run.all_join();
    run.others = MEMBERS - slow;
    run.members[MEMBERS - slow..].iter_mut().for_each(|member| member.reads = false);
    run.send(MESSAGES);
    let slowest_us = run.delays_us.iter().copied().max().expect("messages came");
    for (at, member) in run.members.iter().enumerate().skip(1).take(run.others - 1) {
        assert_eq!(member.whole.0, MESSAGES, "{at} reads, and has all by now");
    }
    assert_eq!((run.sum(|stats| stats.group_copies_dropped.get()) > 0, slow > 0), (slow > 0, slow > 0));
    for at in MEMBERS - slow..MEMBERS {
        run.members[at].reads = true;
        run.read(at);
    }
    // They catch up while it goes on.
    run.send(MORE);
    run.run_for(SETTLE_US);
    let all = MESSAGES + MORE;
    assert_eq!(run.answered, all);
    for (at, member) in run.members.iter().enumerate().skip(1) {
        let is_slow = at >= run.others;
        assert_eq!(member.whole.0, all, "{at} has all, in order");
        assert!(member.live.values().chain(member.replayed.values()).all(|times| *times == 1), "{at}: each once");
        assert!(is_slow || (member.heads == 0 && member.replayed.is_empty()), "{at} has missed nothing");
        assert!(!is_slow || (member.heads > 0 && !member.live.is_empty()), "{at} was slow");
        assert!(!is_slow || member.replayed.len() as u64 >= all - member.live.len() as u64, "{at}: from the log");
    }
    // Each copy was given, or is counted.
    let (given, dropped) =
        (run.sum(|stats| stats.group_deliveries.get()), run.sum(|stats| stats.group_copies_dropped.get()));
    assert_eq!(given + dropped, all * (MEMBERS as u64 - 1));
    let live: u64 = run.members.iter().map(|member| member.live.len() as u64).sum();
    assert_eq!(live, given);
    slowest_us
}

#[test]
fn slow_members_catch_up_and_the_others_do_not_feel_it() {
    for seed in 0..3 {
        let [without_us, with_us] = [0, SLOW].map(|slow| run(seed, slow));
        assert!(with_us <= 2 * without_us, "seed {seed}: {with_us} µs with slow members, {without_us} without");
    }
}

#[test]
fn a_slow_member_that_is_not_told_is_caught() {
    let report = || Report { trace_hash: run(0, SLOW), ..Report::default() };
    assert!(with_planted(Bug::HeadsForgotten, || outcome(report)).is_err());
}
