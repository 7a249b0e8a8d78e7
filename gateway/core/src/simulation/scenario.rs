//! What a run is made of, drawn from its seed.

use crate::io::sim::{Faults, Rng};
use crate::limits::{Limits, ReadMode};
use std::collections::BTreeSet;

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Everything settles, then all clients leave.
    Leave,
    /// Everything settles, then the node is drained.
    DrainQuiet,
    /// The node is drained in the middle of the traffic.
    DrainBusy,
}

#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) seed: u64,
    pub(super) shards: u16,
    pub(super) listeners: u16,
    pub(super) limits: Limits,
    pub(super) faults: Faults,
    /// A limit is so low that messages get lost or refused.
    pub(super) lossy: bool,
    pub(super) users: Vec<u64>,
    pub(super) devices_per_user: u64,
    /// Bytes of a client's receive window, at most.
    pub(super) window_max: u64,
    pub(super) payload_max: u64,
    /// Messages with ACK, of a thousand.
    pub(super) acked: u32,
    pub(super) active_ms: u64,
    /// A device does something once in this time, on average.
    pub(super) pace_ms: u64,
    /// The node is drained in the traffic, and that is called off.
    pub(super) drains: bool,
    pub(super) ending: Ending,
    /// Some clients come over TLS.
    pub(super) tls: bool,
    /// All clients come through a proxy, which says where they are.
    pub(super) proxied: bool,
}

impl Scenario {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5CE7_A810);
        let lossy = rng.chance(500);
        let mut limits = Limits {
            login_timeout_ms: rng.within(800, 2_000),
            heartbeat_secs_min: 1,
            heartbeat_secs_max: 3,
            heartbeat_secs: 2,
            outbox_bytes_max: 64 << 20,
            unacked_per_user_max: 100_000,
            unacked_total_bytes_max: 1 << 30,
            outbox_full_ms_max: rng.within(300, 1_500),
            redeliver_ms: rng.within(300, 1_500),
            redeliver_attempts_max: rng.within(0, 3) as u8,
            recv_buffers: 1 << rng.within(0, 6),
            recv_buffer_bytes: rng.within(48, 4_096) as u32,
            read_mode: *rng.pick(&[ReadMode::Auto, ReadMode::Auto, ReadMode::Cold, ReadMode::Hot]),
            hot_idle_ms: rng.within(100, 1_000),
            logins_per_sec: if rng.chance(250) { rng.within(5, 60) as u32 } else { 0 },
            drain_ms: rng.within(1, 1_500),
            // Nothing is lost by it, so it is low in half of all runs.
            // With so few slots connections are accepted one by one.
            connections_max: if Rng::new(seed ^ 0xACCE).chance(200) { 9_000 } else { 1_000 },
            accepts_per_turn: if Rng::new(seed ^ 0xF100D).chance(500) { 2 } else { 64 },
            turn_units_max: if Rng::new(seed ^ 0x7A12).chance(500) { 3 } else { Limits::default().turn_units_max },
            tls_handshakes_max: if Rng::new(seed ^ 0x0015_0715).chance(600) { 5 } else { 0 },
            tls_handshakes_per_turn: 2,
            address_handshakes_per_sec: if Rng::new(seed ^ 0x00AD_7155).chance(500) { 1 } else { 0 },
            ..Limits::default()
        };
        let mut payload_max = if rng.chance(300) { 9_000 } else { 300 };
        if lossy {
            payload_max = 600;
            make_tight(&mut limits, &mut rng);
        }
        // Half a frame is no sign of life, so receiving one must not take as long as a heartbeat, whatever the faults.
        let recv_bytes_min = 8_192 / u32::from(limits.recv_buffers);
        limits.recv_buffer_bytes = limits.recv_buffer_bytes.max(recv_bytes_min);
        let users: BTreeSet<u64> = (0..rng.within(2, 7)).map(|_| rng.within(1, 2_000)).collect();
        Scenario {
            seed,
            shards: rng.within(1, 4) as u16,
            listeners: rng.within(1, 2) as u16,
            faults: if rng.chance(100) { Faults::none() } else { Faults::random(&mut rng) },
            lossy,
            users: users.into_iter().collect(),
            devices_per_user: rng.within(1, 3),
            window_max: *rng.pick(&[200, 2_000, 20_000, 65_536]),
            payload_max,
            acked: *rng.pick(&[0, 300, 500, 1_000]),
            active_ms: rng.within(1_500, 5_000),
            pace_ms: rng.within(20, 200),
            // Of its own numbers, so that it changes nothing else about a seed.
            drains: Rng::new(seed ^ 0xD4A1_4ED0).chance(250),
            ending: *rng.pick(&[Ending::Leave, Ending::Leave, Ending::DrainQuiet, Ending::DrainBusy]),
            tls: limits.tls_handshakes_max > 0,
            proxied: Rng::new(seed ^ 2).chance(250),
            limits,
        }
    }

    /// Time after which everything under way has come to an end, faults being over: redelivery until it is given up,
    /// full outboxes, lingering closes, some ticks, and at most `logins` in the accept backlog, those of clients that
    /// have gone included.
    pub(super) fn settle_ms(&self, logins: u64) -> u64 {
        let attempts = u64::from(self.limits.redeliver_attempts_max) + 2;
        let redelivery = attempts * (self.limits.redeliver_ms + 200);
        let backlog = (logins * 1_000).checked_div(self.limits.logins_per_sec.into()).unwrap_or(0);
        backlog + redelivery + self.limits.outbox_full_ms_max + self.limits.login_timeout_ms + 2_000 + 3_000
    }
}

/// Some limits so low that they are hit.
fn make_tight(limits: &mut Limits, rng: &mut Rng) {
    limits.frame_bytes_max = trunkline_proto::FRAME_BYTES_MAX_FLOOR;
    if rng.chance(300) {
        limits.connections_max = rng.within(2, 10) as u32;
    }
    if rng.chance(500) {
        limits.outbox_bytes_max = rng.within(1_100, 6_000) as usize;
    }
    // What the kernel is thought to hold for those that do not read counts too.
    limits.unsent_bytes_max = rng.within(0, 500) as u32;
    limits.outbox_burst_bytes_max = limits.outbox_bytes_max.saturating_mul(rng.within(1, 3) as usize);
    if rng.chance(400) {
        limits.outbox_total_bytes_max = rng.within(2_000, 20_000) as usize;
    }
    if rng.chance(400) {
        limits.mailbox_bytes_max = rng.within(700, 3_000) as usize;
    }
    if rng.chance(300) {
        limits.unacked_per_user_max = rng.within(1, 6) as usize;
    }
    if rng.chance(300) {
        limits.unacked_bytes_per_user_max = rng.within(800, 3_000) as usize;
    }
    if rng.chance(300) {
        limits.unacked_total_bytes_max = rng.within(800, 4_000) as usize;
    }
    if rng.chance(300) {
        limits.devices_per_user_max = rng.within(1, 2) as usize;
    }
    if rng.chance(300) {
        limits.partial_total_bytes_max = rng.within(50, 2_000) as usize;
    }
    if rng.chance(300) {
        limits.frames_per_sec = rng.within(5, 60) as u32;
    }
}
