//! A node under test: its shards, turned as the loop in `crate::shard` turns them.

use crate::addresses::{AddressBook, PerAddress};
use crate::auth::{Auth, AuthSwitch};
use crate::control::{Control, ControlPort};
use crate::core::{Core, Routed, ShardCluster, ShardConfig};
use crate::desk::ShardStore;
use crate::events::EventPortals;
use crate::io::HandoverToken;
use crate::io::sim::{Rng, SharedWorld, SimIo};
use crate::limits::Limits;
use crate::limits::Placement;
use crate::mailbox::{Mailboxes, Outgoing, mailboxes};
use crate::metrics::ShardStats;
use crate::portal::Portals;
use crate::services::ServicesConfig;
use crate::transport::networks::Proxies;
use crate::transport::tls::TlsSwitch;
use crate::waker::Waker;
use std::collections::BTreeMap;
use std::sync::Arc;
use trunkline_router_core::hash::home_shard;

/// How long a turn waits in its ring, as in `crate::shard`.
const RING_WAIT_MICROS: u32 = 1_000;

/// A process that was stopped goes on after this at most.
const PAUSE_US_MAX: u64 = 4_000_000;

/// What a shard's loop does between two turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// Waits in its ring until a completion comes, or this time.
    Ring { until_us: u64 },
    /// Sleeps until its ring or the control thread signals.
    Parked,
    /// Its loop has returned.
    Over,
}

struct Seat {
    core: Core<SimIo>,
    port: ControlPort,
    stats: Arc<ShardStats>,
    rest: Rest,
    /// The turn before takes until then.
    busy_until_us: u64,
    signalled: bool,
}

/// What a node is made of.
pub(super) struct NodeConfig {
    pub(super) seed: u64,
    pub(super) name: String,
    /// Its rings in the world: this one and those that follow.
    pub(super) first_ring: usize,
    pub(super) shards: u16,
    pub(super) listeners: u16,
    pub(super) limits: Limits,
    /// Who may log in.
    pub(super) auth: Arc<AuthSwitch>,
    /// Its certificates, of which there are none: handshakes are those of the simulator. `None` without TLS.
    pub(super) tls: Option<Arc<TlsSwitch>>,
    /// Who says for clients where they are.
    pub(super) proxies: Arc<Proxies>,
    /// How it takes part in a cluster; its first shard has one listener more then.
    pub(super) cluster: Option<ShardCluster>,
    /// Where it keeps messages.
    pub(super) store: Option<ShardStore>,
    /// Workers come to its first shard, which has one listener more then.
    pub(super) services: Option<ServicesConfig>,
}

impl NodeConfig {
    /// A node by itself with one listener, for all who come, whose rings are the first of the world.
    pub(super) fn alone(seed: u64, shards: u16, limits: &Limits) -> Self {
        NodeConfig {
            seed,
            name: "simulated".to_owned(),
            first_ring: 0,
            shards,
            listeners: 1,
            limits: limits.clone(),
            auth: AuthSwitch::new(Auth::Open),
            tls: None,
            proxies: Arc::default(),
            cluster: None,
            store: None,
            services: None,
        }
    }
}

pub(super) struct Node {
    world: SharedWorld,
    first_ring: usize,
    rng: Rng,
    seats: Vec<Seat>,
    mailboxes: Mailboxes,
    /// The open connections of each address.
    address_book: Option<Arc<AddressBook>>,
    /// Writes letters that mean nothing, to fill mailboxes.
    stuffing: Outgoing,
    /// How long shards were paused, all together; their timers stand still meanwhile.
    paused_us: u64,
}

impl Node {
    pub(super) fn new(config: NodeConfig, world: &SharedWorld) -> Self {
        let NodeConfig {
            seed,
            name,
            first_ring,
            shards,
            listeners,
            limits,
            auth,
            tls,
            proxies,
            cluster,
            store,
            services,
        } = config;
        let mail = mailboxes(shards);
        // No connection is turned away by it; that every one leaves it is checked at the end. Every other node, and
        // those of a cluster, have none, and accept by multishot.
        let limits_of_addresses = PerAddress {
            open_max: u32::MAX,
            per_sec: 0,
            handshakes_per_sec: limits.address_handshakes_per_sec,
            addresses_max: u32::MAX,
        };
        let address_book =
            if seed % 2 == 0 && cluster.is_none() { AddressBook::new(limits_of_addresses).map(Arc::new) } else { None };
        let seats = (0..shards).map(|shard| {
            let stats = Arc::new(ShardStats::default());
            let port = ControlPort::new(Arc::new(Waker::new().expect("an eventfd")));
            let config = ShardConfig {
                shard,
                shards,
                node: name.clone(),
                limits: limits.clone(),
                auth: auth.clone(),
                upgrade: Arc::default(),
                proxies: proxies.clone(),
                address_book: address_book.clone(),
                tls: tls.clone(),
                tls_required: false,
                listeners_tls_only: Arc::default(),
                stats: stats.clone(),
                mailboxes: mail.clone(),
                presence_log: None,
                placement: Placement::Accept,
                cluster: cluster.clone().map(|cluster| ShardCluster { listens: shard == 0, ..cluster }),
                store: store.clone(),
                services: services.clone().map(|services| ServicesConfig { listens: shard == 0, ..services }),
                portals: None,
                events: None,
                hook: None,
            };
            let io = SimIo::new(world.clone(), first_ring, shard);
            let core = Core::new(io, config, port.clone(), listeners);
            Seat { core, port, stats, rest: Rest::Ring { until_us: 0 }, busy_until_us: 0, signalled: false }
        });
        Node {
            world: world.clone(),
            first_ring,
            rng: Rng::new(seed ^ 0x0DE0_5EA7),
            seats: seats.collect(),
            stuffing: Outgoing::new(0, mail.clone(), 0),
            mailboxes: mail,
            address_book,
            paused_us: 0,
        }
    }

    /// How long shards were paused up to now, or will be in the pauses that have begun.
    pub(super) fn paused_us(&self) -> u64 {
        self.paused_us
    }

    pub(super) fn shards(&self) -> usize {
        self.seats.len()
    }

    pub(super) fn stats(&self) -> impl Iterator<Item = &ShardStats> {
        self.seats.iter().map(|seat| &*seat.stats)
    }

    /// Puts a request to a shard, as the control thread does. False when its queue is full.
    pub(super) fn request(&mut self, shard: usize, request: Control) -> bool {
        let seat = &mut self.seats[shard];
        let taken = seat.port.send(request).is_ok();
        seat.signalled |= taken;
        taken
    }

    /// Gives each shard a portal.
    pub(super) fn give_portals(&mut self, portals: &Portals) {
        for (seat, shard) in self.seats.iter_mut().zip(0..) {
            seat.core.shard.set_portal(portals.inner(shard));
        }
    }

    /// Has each shard tell of what happens.
    pub(super) fn give_events(&mut self, portals: &EventPortals) {
        for (seat, shard) in self.seats.iter_mut().zip(0..) {
            seat.core.shard.set_events(portals.inner(shard));
        }
    }

    /// Brings a message to the home shard of its recipient, as the mailbox of another shard does.
    pub(super) fn deliver(&mut self, message: &Routed<'_>) {
        let shard = home_shard(message.to, self.seats.len() as u32);
        self.seats[shard as usize].core.shard.deliver(message);
    }

    /// Wakes a shard, as the store's thread does.
    pub(in crate::simulation) fn signal(&mut self, shard: usize) {
        if let Some(seat) = self.seats.get_mut(shard) {
            seat.signalled = true;
        }
    }

    fn ring(&self, shard: usize) -> usize {
        self.first_ring + shard
    }

    /// Device and session id of each session of a user, as a shard knows them.
    pub(super) fn sessions(&self, shard: usize, user: u64) -> impl Iterator<Item = (String, u64)> {
        let sessions = self.seats[shard].core.shard.sessions(user).iter();
        sessions.map(|entry| (entry.device().to_owned(), entry.session))
    }

    /// Whether a shard acts as the home of a user whenever the node may serve: it would deliver what comes for the
    /// user.
    pub(super) fn is_home(&self, user: u64) -> bool {
        let shard = trunkline_router_core::hash::home_shard(user, self.seats.len() as u32) as usize;
        self.seats[shard].core.shard.acts_as_home(user)
    }

    /// Whether every shard's loop has returned.
    pub(super) fn over(&self) -> bool {
        self.seats.iter().all(|seat| seat.rest == Rest::Over)
    }

    /// When the next turn is due; it may be in the past.
    pub(super) fn next_turn_us(&self) -> Option<u64> {
        (0..self.seats.len()).filter_map(|shard| self.turn_due_us(shard)).min()
    }

    /// Lets time pass to the next event or turn, or to what is due at `due_us`: the time then. `None` if nothing of
    /// that is before `end_us`, to which it passes then.
    pub(super) fn pass(&self, due_us: u64, end_us: u64) -> Option<u64> {
        let turn_us = self.next_turn_us().unwrap_or(u64::MAX);
        self.world.borrow_mut().pass(due_us.min(turn_us), end_us)
    }

    fn turn_due_us(&self, shard: usize) -> Option<u64> {
        let Seat { rest, busy_until_us, signalled, .. } = &self.seats[shard];
        let completions = self.world.borrow().completions(self.ring(shard)) > 0;
        match *rest {
            Rest::Over => None,
            _ if completions => Some(*busy_until_us),
            Rest::Ring { until_us } => Some(until_us.max(*busy_until_us)),
            Rest::Parked => signalled.then_some(*busy_until_us),
        }
    }

    /// Turns the shards whose time has come, in any order.
    pub(super) fn step(&mut self) {
        let now_us = self.world.borrow().now_us();
        let first = self.rng.below(self.seats.len() as u64) as usize;
        for shard in (first..self.seats.len()).chain(0..first) {
            if self.turn_due_us(shard).is_some_and(|due_us| due_us <= now_us) {
                self.turn(shard, now_us);
            }
        }
        self.check_no_wake_was_lost();
    }

    fn turn(&mut self, shard: usize, now_us: u64) {
        let ring = self.ring(shard);
        let seat = &mut self.seats[shard];
        seat.signalled = false;
        self.world.borrow_mut().note("turn", ring as u64, 0);
        let worked = seat.core.turn(RING_WAIT_MICROS);
        seat.busy_until_us = now_us + self.rng.within(1, 30);
        if seat.core.finished() {
            seat.rest = Rest::Over;
        } else if worked {
            let stall_us = self.stall_us(shard);
            let seat = &mut self.seats[shard];
            seat.busy_until_us += stall_us;
            seat.rest = Rest::Ring { until_us: now_us + self.rng.within(1, u64::from(RING_WAIT_MICROS)) };
            if stall_us == 0 {
                seat.core.io.submit();
            }
        } else if !seat.core.may_wait() {
            seat.rest = Rest::Ring { until_us: now_us };
        } else {
            let unsubmitted = self.world.borrow().unsubmitted(ring);
            assert_eq!(unsubmitted, 0, "shard {shard} went to sleep with submissions the kernel has not seen");
            seat.rest = Rest::Parked;
        }
    }

    /// How long the shard does not get to run before its next turn; its mailbox may be full by then.
    fn stall_us(&mut self, shard: usize) -> u64 {
        let faults = self.world.borrow().faults.clone();
        if !self.rng.chance(faults.stall) {
            return 0;
        }
        if self.rng.chance(faults.mailbox_full) {
            // No shard has a number that high, so no hand-over has such a token.
            let nobody = HandoverToken((1 << HandoverToken::BITS) - 1);
            while self.stuffing.put_adopt_failed(shard as u16, nobody) {}
        }
        if self.rng.chance(faults.pause) {
            let pause_us = self.rng.within(1_100_000, PAUSE_US_MAX);
            self.paused_us += pause_us;
            return pause_us;
        }
        self.rng.within(1, faults.stall_us_max)
    }

    /// Nothing is left of calls and workers that are gone.
    pub(super) fn check_services_empty(&self) {
        self.seats.iter().for_each(|seat| seat.core.shard.assert_no_services());
    }

    fn check_no_wake_was_lost(&self) {
        for (shard, seat) in self.seats.iter().enumerate() {
            if seat.rest == Rest::Parked && !seat.signalled && self.mailboxes[shard].len() > 0 {
                let woken = {
                    let (world, ring) = (self.world.borrow(), self.ring(shard));
                    world.completions(ring) > 0 || world.will_be_woken(ring)
                };
                assert!(woken, "shard {shard} sleeps while its mailbox has letters and nobody wakes it");
            }
        }
    }

    /// How many sessions of each user are in a group, as the parts of the shards have it.
    pub(super) fn sessions_in(&mut self, group: u64) -> BTreeMap<u64, usize> {
        let mut sessions: BTreeMap<u64, usize> = BTreeMap::new();
        for seat in &mut self.seats {
            for user in seat.core.shard.sessions_in(group) {
                *sessions.entry(user).or_default() += 1;
            }
        }
        sessions
    }

    /// Panics unless every shard is as empty as it began. `stopped`: the shards were drained, and letters to one that
    /// had stopped stay.
    pub(super) fn check_empty(&self, stopped: bool) {
        for (shard, seat) in self.seats.iter().enumerate() {
            let Seat { core, stats, .. } = seat;
            let state = &core.shard;
            // Those to other nodes stay.
            let nodes = state.node_connections();
            state.assert_empty();
            assert_eq!(stats.open.get(), 0, "shard {shard}: open connections");
            let open = self.address_book.as_ref().map_or(0, |book| book.open());
            assert_eq!(open, 0, "open connections of addresses");
            assert!(stats.hot.get() <= u64::from(nodes), "shard {shard}: hot connections");
            assert_eq!(stats.mesh_misrouted.get(), 0, "shard {shard}: records for nobody");
            assert_eq!(stats.ring_stale.get(), 0, "shard {shard}: stale completions");
            assert_eq!(core.io.buffers_held(), 0, "shard {shard}: receive buffers not given back");
            if !stopped {
                state.assert_nothing_under_way();
                let world = self.world.borrow();
                assert_eq!(world.slots_used(self.ring(shard)), nodes as usize, "shard {shard}: descriptors");
                if nodes == 0 {
                    let (with_kernel, all) = (world.buffers_with_kernel(self.ring(shard)), state.recv_buffers());
                    assert_eq!(with_kernel, all, "shard {shard}: receive buffers");
                }
            }
        }
    }
}
