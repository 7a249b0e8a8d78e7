//! What a run is made of, drawn from its seed.

use crate::io::sim::{Clock, Faults, Rng};
use crate::limits::{Limits, ReadMode, SendLimits, SendPolicy};
use crate::mesh::MESH_PROTOCOL;
use std::collections::BTreeSet;

/// By how much a clock runs fast or slow at most, in millionths: twenty times what NTP bends one by, and below the
/// margins of a lease.
const FAST_PPM_MAX: u64 = 10_000;

/// What happens to the cluster.
#[derive(Clone, Debug)]
pub(super) enum Trouble {
    /// `kill -9`, or the host loses power. The node comes back after a while.
    Crash { node: usize, power_lost: bool, away_ms: u64 },
    /// SIGSTOP and, later, SIGCONT.
    Pause { node: usize, ms: u64 },
    /// It drains, leaves, and comes back after a while.
    Leave { node: usize, away_ms: u64 },
    /// It drains and stays up without sessions until that is called off.
    Rest { node: usize, ms: u64 },
    /// Two hosts do not hear each other.
    Cut { node: usize, other: usize, ms: u64 },
    /// Redis answers nobody.
    RedisOut { ms: u64 },
    /// Redis loses its data.
    RedisForgets,
    /// Redis loses some leases, as a failover does.
    RedisForgetsSome,
    /// Redis answers reads and refuses writes.
    RedisReadOnly { ms: u64 },
    /// One host does not hear another, which hears it.
    CutOneWay { from: usize, to: usize, ms: u64 },
    /// The mesh of a node is dead, towards all others or from them as well, while it reaches Redis.
    Gray { node: usize, both: bool, ms: u64 },
    /// The machine of a node is suspended: nothing runs, its network is gone, and a clock that does not count that
    /// stands still.
    Suspend { node: usize, ms: u64 },
    /// Redis refuses writes at the masters that have the leases of a node, or of two.
    RedisReadOnlyFor { node: usize, other: Option<usize>, ms: u64 },
    /// Redis does what a node asks, and its answers are lost.
    RedisUnheard { node: usize, ms: u64 },
    /// A node, or two, do not reach Redis.
    RedisCut { node: usize, other: Option<usize>, ms: u64 },
}

#[derive(Clone, Debug)]
pub(super) struct NodeScenario {
    pub(super) shards: u16,
    /// Most links to another node; 0 for a version that has one for each shard.
    pub(super) mesh_links: u16,
    pub(super) listeners: u16,
    pub(super) weight: u32,
    /// When it is started for the first time.
    pub(super) starts_ms: u64,
    /// The newest version of the mesh protocol that the others take it to speak.
    pub(super) protocol: u32,
    /// How far its clocks are from those of others.
    pub(super) clock: Clock,
    pub(super) wall_offset_ms: i64,
}

#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) seed: u64,
    pub(super) nodes: Vec<NodeScenario>,
    pub(super) lease_ms: u64,
    pub(super) limits: Limits,
    pub(super) faults: Faults,
    pub(super) users: Vec<u64>,
    pub(super) devices_per_user: u64,
    pub(super) payload_max: u64,
    /// Messages with ACK, of a thousand.
    pub(super) acked: u32,
    pub(super) active_ms: u64,
    /// A device does something once in this time, on average.
    pub(super) pace_ms: u64,
    /// Clients are in live rooms and do nothing else.
    pub(super) rooms_only: bool,
    /// Clients watch who is online, come and go, and do nothing else.
    pub(super) watches: bool,
    /// To whom clients may write is their tokens' to say.
    pub(super) claims: bool,
    /// Troubles, by the time at which they begin.
    pub(super) troubles: Vec<(u64, Trouble)>,
}

impl Scenario {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x00C1_0573);
        let mut limits = Limits {
            connections_max: 1_000,
            login_timeout_ms: rng.within(3_000, 5_000),
            heartbeat_secs_min: 1,
            heartbeat_secs_max: 3,
            heartbeat_secs: 2,
            unacked_per_user_max: 100_000,
            unacked_total_bytes_max: 1 << 30,
            outbox_bytes_max: 64 << 20,
            redeliver_ms: rng.within(500, 1_500),
            redeliver_attempts_max: rng.within(1, 3) as u8,
            recv_buffers: 1 << rng.within(3, 6),
            recv_buffer_bytes: rng.within(1_024, 4_096) as u32,
            read_mode: *rng.pick(&[ReadMode::Auto, ReadMode::Auto, ReadMode::Cold, ReadMode::Hot]),
            hot_idle_ms: rng.within(100, 1_000),
            drain_ms: rng.within(1, 1_500),
            remote_sessions_max: 1_000,
            mesh_slots: 64,
            tls_handshakes_max: 100,
            tls_handshakes_per_turn: 2,
            ..Limits::default()
        };
        let count = rng.within(2, 4) as usize;
        let mut nodes: Vec<NodeScenario> = (0..count)
            .map(|_| NodeScenario {
                shards: rng.within(1, 3) as u16,
                mesh_links: 0,
                listeners: rng.within(1, 2) as u16,
                // Small, since each change of a ring of many points takes longer than all else.
                weight: *rng.pick(&[1, 1, 1, 2, 3]),
                starts_ms: 0,
                protocol: MESH_PROTOCOL,
                clock: Clock {
                    offset_ms: rng.below(1_000_000),
                    fast_ppm: if rng.chance(400) {
                        rng.below(2 * FAST_PPM_MAX + 1) as i64 - FAST_PPM_MAX as i64
                    } else {
                        0
                    },
                    stood_us: 0,
                },
                wall_offset_ms: if rng.chance(300) { rng.within(0, 4_000) as i64 - 2_000 } else { 0 },
            })
            .collect();
        // What the choice of one number does not change for the others' sake.
        let mut links_rng = Rng::new(seed ^ 0x0011_4E55);
        nodes.iter_mut().for_each(|node| node.mesh_links = *links_rng.pick(&[0, 1, 1, 1, 2, 2, 4]));
        if links_rng.chance(300) {
            // So many that there are two large ones for links.
            limits.recv_buffers = 256;
        }
        let active_ms = rng.within(6_000, 14_000);
        // A node that joins later; the first one is there from the beginning.
        if rng.chance(300) {
            let late = rng.within(1, count as u64 - 1) as usize;
            nodes[late].starts_ms = rng.within(500, active_ms / 2);
        }
        let lease_ms = rng.within(3_000, 5_000);
        let mut troubles = Vec::new();
        for _ in 0..*rng.pick(&[0, 1, 1, 2, 2, 3, 4]) {
            let at_ms = rng.within(500, active_ms);
            troubles.push((at_ms, trouble(&mut rng, count, lease_ms)));
        }
        troubles.sort_by_key(|(at_ms, _)| *at_ms);
        let users: BTreeSet<u64> = (0..rng.within(3, 10)).map(|_| rng.within(1, 5_000)).collect();
        let faults = if rng.chance(150) { Faults::none() } else { faults(&mut rng) };
        Scenario {
            seed,
            nodes,
            lease_ms,
            limits,
            faults,
            users: users.into_iter().collect(),
            devices_per_user: rng.within(1, 2),
            payload_max: *rng.pick(&[100, 300, 3_000]),
            acked: *rng.pick(&[0, 300, 500, 1_000]),
            active_ms,
            pace_ms: rng.within(60, 400),
            rooms_only: false,
            watches: false,
            claims: false,
            troubles,
        }
    }

    /// Clients in live rooms on nodes that come and go and lose each other, with nothing that goes wrong below that.
    pub(super) fn rooms(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x0200_0055);
        let quiet = Scenario::quiet(3, rng.within(1, 2) as u16, MESH_PROTOCOL);
        let mut troubles = Vec::new();
        for at_ms in [4_000, 7_000, 10_000] {
            let node = rng.below(3) as usize;
            let (other, away_ms) = ((node + 1) % 3, rng.within(500, 4_000));
            let ms = rng.within(500, 5_000);
            troubles.push((
                at_ms + rng.below(1_000),
                match rng.below(4) {
                    0 => Trouble::Crash { node, power_lost: false, away_ms },
                    1 => Trouble::Leave { node, away_ms },
                    2 => Trouble::Rest { node, ms },
                    _ => Trouble::Cut { node, other, ms },
                },
            ));
        }
        Scenario {
            seed,
            users: (1..=8).collect(),
            acked: 500,
            active_ms: 14_000,
            pace_ms: 80,
            rooms_only: true,
            troubles,
            ..quiet
        }
    }

    /// Senders that leave a node for another one while what they have sent waits on a link of it that is cut: it comes
    /// to its home when they have sent it again from there.
    pub(super) fn overtaken(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x006F_7665_7274);
        let rooms = Scenario::rooms(seed);
        let mut troubles = Vec::new();
        for at_ms in [67_000, 73_000, 79_000] {
            let node = rng.below(3) as usize;
            let other = (node + 1 + rng.below(2) as usize) % 3;
            // Shorter than what a link may be down for before nothing is queued for it any more.
            troubles.push((at_ms, Trouble::Cut { node, other, ms: rng.within(2_000, 2_900) }));
            troubles.push((at_ms + rng.within(300, 900), Trouble::Rest { node, ms: rng.within(2_500, 4_000) }));
        }
        Scenario { active_ms: 84_000, troubles, ..rooms }
    }

    /// Clients who watch each other on nodes that come and go and lose each other, with nothing that goes wrong below
    /// that.
    pub(super) fn watches(seed: u64) -> Self {
        let rooms = Scenario::rooms(seed ^ 0x0077_6174_6368);
        // The last one comes while what the first ones have changed is still on its way.
        let troubles = rooms.troubles.into_iter().map(|(at_ms, trouble)| (2 * at_ms, trouble)).collect();
        Scenario {
            seed,
            users: (1..=10).collect(),
            active_ms: 40_000,
            pace_ms: 700,
            rooms_only: false,
            watches: true,
            troubles,
            ..rooms
        }
    }

    /// Any clients and troubles, and tokens that say to whom clients may write.
    pub(super) fn claims(seed: u64) -> Self {
        let mut scenario = Scenario::new(seed);
        scenario.claims = true;
        scenario.limits.send = SendLimits { policy: SendPolicy::Claim, bytes_max: 1 << 20, ..scenario.limits.send };
        scenario
    }

    /// Nodes of so many shards each that speak this version, to which nothing happens.
    pub(super) fn quiet(nodes: usize, shards: u16, protocol: u32) -> Self {
        let any = Scenario::new(0);
        let clock = Clock::default();
        let node = NodeScenario {
            protocol,
            shards,
            mesh_links: 0,
            listeners: 1,
            weight: 1,
            starts_ms: 0,
            clock,
            wall_offset_ms: 0,
        };
        Scenario {
            nodes: vec![node; nodes],
            lease_ms: 5_000,
            faults: Faults::none(),
            users: vec![1],
            devices_per_user: 1,
            troubles: Vec::new(),
            ..any
        }
    }

    /// Whether a link that breaks may stay down for long by itself.
    pub(super) fn dials_fail(&self) -> bool {
        self.faults.dial_refused + self.faults.dial_late + self.faults.dial_timeout > 0
    }

    /// Time after which everything has come to an end, all troubles being over: nodes that were taken for dead are
    /// back, links are up, users registered, messages redelivered or given up.
    pub(super) fn settle_ms(&self) -> u64 {
        let redelivery = (u64::from(self.limits.redeliver_attempts_max) + 2) * (self.limits.redeliver_ms + 200);
        let membership = 3 * self.lease_ms + 4_000;
        membership + redelivery + 2 * self.limits.login_timeout_ms + 16_000
    }
}

fn trouble(rng: &mut Rng, nodes: usize, lease_ms: u64) -> Trouble {
    let node = rng.below(nodes as u64) as usize;
    let other = (node + 1 + rng.below(nodes as u64 - 1) as usize) % nodes;
    // As long as a hiccup, or longer than any lease.
    let ms = if rng.chance(400) { rng.within(100, 2_900) } else { rng.within(3_000, 2 * lease_ms + 2_000) };
    let away_ms = rng.within(100, 2 * lease_ms);
    match rng.below(29) {
        20 | 21 => Trouble::CutOneWay { from: node, to: other, ms },
        22 | 23 => Trouble::Gray { node, both: rng.chance(500), ms: 3 * ms },
        24 | 25 => Trouble::Suspend { node, ms },
        26 => Trouble::RedisReadOnlyFor { node, other: rng.chance(400).then_some(other), ms: 2 * ms },
        27 | 28 => Trouble::RedisUnheard { node, ms },
        12 | 13 => Trouble::RedisForgetsSome,
        14 | 15 => Trouble::RedisReadOnly { ms },
        16..=19 => Trouble::RedisCut { node, other: rng.chance(400).then_some(other), ms: 2 * ms },
        0 | 1 => Trouble::Crash { node, power_lost: rng.chance(400), away_ms },
        2 | 3 => Trouble::Pause { node, ms },
        4 | 5 => Trouble::Leave { node, away_ms },
        6 | 7 => Trouble::Cut { node, other, ms },
        8 | 9 => Trouble::Rest { node, ms },
        10 => Trouble::RedisOut { ms },
        _ => Trouble::RedisForgets,
    }
}

/// Faults below the level of nodes; the one-node simulation has more of them and stronger ones.
fn faults(rng: &mut Rng) -> Faults {
    let dials = rng.chance(500);
    let mut some = |permille_max: u64| if rng.chance(500) { rng.within(1, permille_max) as u32 } else { 0 };
    Faults {
        recv_short: some(400),
        send_short: some(400),
        multishot_end: some(200),
        accept_error: some(100),
        hand_over_fail: some(50),
        end_with_buffer: some(500),
        reset: some(3),
        dial_refused: if dials { some(300) } else { 0 },
        dial_late: if dials { some(300) } else { 0 },
        dial_timeout: if dials { some(100) } else { 0 },
        submit_early: some(200),
        submit_partly: some(100),
        late: some(300),
        late_us_max: u64::from(some(20)) * 1_000 + 50,
        split: some(500),
        network_us_max: u64::from(some(20)) * 1_000 + 100,
        tick_late_us_max: u64::from(some(30)) * 1_000 + 1,
        wake_late_us_max: u64::from(some(10)) * 1_000 + 1,
        clock_set: some(5),
        stall: some(10),
        stall_us_max: u64::from(some(60)) * 1_000 + 1,
        mailbox_full: 0,
        pause: 0,
    }
}
