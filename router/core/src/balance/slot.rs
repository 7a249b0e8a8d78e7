//! A server with all that is known of it: connections, failures, and what its weight is worth at the moment.

use super::ServerId;
use super::health::HealthRecord;
use super::least_time::ResponseTime;
use super::server::Server;

/// Fractions of a unit of weight. A weight of 1 that climbs over `slow_start` needs steps in between; 2^16 of them keep
/// the product of connections and weight within 64 bits.
pub(super) const UNIT: u64 = 1 << 16;

/// What keeps a server from being picked, the most lasting first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Obstacle {
    Down,
    Draining,
    Failed,
    Full,
}

#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) id: ServerId,
    pub(super) server: Server,
    pub(super) conns: u32,
    pub(super) record: HealthRecord,
    /// The weight less what failures have taken from it, 0 … `weight`.
    effective_weight: u32,
    /// When the climb of the weight began, in monotonic milliseconds.
    ramp_from_ms: Option<u64>,
    /// Left out of the pick under way; see [`Balancer::pick_among`](super::Balancer::pick_among).
    pub(super) excluded: bool,
    /// How long its answers take, as far as the caller tells.
    pub(super) response_time: ResponseTime,
    /// How far the server is behind its share in the round robin (ahead of it if negative), in `UNIT`s of weight.
    pub(super) current: i64,
}

impl Slot {
    pub(super) fn new(id: ServerId, server: Server) -> Self {
        let effective_weight = server.options().weight;
        Slot {
            id,
            server,
            conns: 0,
            record: HealthRecord::new(),
            effective_weight,
            ramp_from_ms: None,
            excluded: false,
            response_time: ResponseTime::default(),
            current: 0,
        }
    }

    /// What keeps the server from being picked for something new.
    pub(super) fn obstacle(&self, now_ms: u64) -> Option<Obstacle> {
        match self.obstacle_if_bound(now_ms) {
            Some(Obstacle::Down) => Some(Obstacle::Down),
            _ if self.server.options().drain => Some(Obstacle::Draining),
            other => other,
        }
    }

    /// What keeps the server from being picked for something that is bound to it.
    pub(super) fn obstacle_if_bound(&self, now_ms: u64) -> Option<Obstacle> {
        let options = self.server.options();
        if options.down {
            Some(Obstacle::Down)
        } else if !self.record.is_available(now_ms) {
            Some(Obstacle::Failed)
        } else if options.max_conns != 0 && self.conns >= options.max_conns {
            Some(Obstacle::Full)
        } else {
            None
        }
    }

    /// Whether the server may be picked for something new within the tier of the backups or that of the others.
    pub(super) fn is_open(&self, backup: bool, now_ms: u64) -> bool {
        self.server.options().backup == backup && !self.excluded && self.obstacle(now_ms).is_none()
    }

    /// The weight that counts in the round robin: less what failures took, and as far as it has climbed. In `UNIT`s.
    pub(super) fn effective_units(&self, now_ms: u64) -> u64 {
        u64::from(self.effective_weight) * self.ramp_units(now_ms)
    }

    /// The weight that connections are compared by: as far as it has climbed. In `UNIT`s, at least 1, below 2^32.
    pub(super) fn load_units(&self, now_ms: u64) -> u64 {
        u64::from(self.server.options().weight) * self.ramp_units(now_ms)
    }

    /// How far the weight has climbed, 1 … `UNIT`. Not 0, so that a server which is alone can be picked.
    fn ramp_units(&self, now_ms: u64) -> u64 {
        let period_ms = self.server.options().slow_start_ms;
        match self.ramp_from_ms.map(|from_ms| now_ms.saturating_sub(from_ms)) {
            Some(elapsed_ms) if elapsed_ms < period_ms => (elapsed_ms * UNIT / period_ms).max(1),
            _ => UNIT,
        }
    }

    /// Lets the weight climb from now on. What failures took comes back at once: the climb stands in for it.
    pub(super) fn start_ramp(&mut self, now_ms: u64) {
        if self.server.options().slow_start_ms != 0 {
            self.effective_weight = self.server.options().weight;
            self.ramp_from_ms = Some(now_ms);
        }
    }

    /// A failure costs `weight / max_fails`, rounded down, as in nginx: after `max_fails` of them (nearly) all of it is
    /// gone.
    pub(super) fn failed(&mut self, now_ms: u64) {
        let options = self.server.options();
        if let Some(cost) = options.weight.checked_div(options.max_fails) {
            self.effective_weight = self.effective_weight.saturating_sub(cost);
        }
        self.record.failed(now_ms, options);
    }

    /// One unit of the weight comes back for each pick in which the server took part, as in nginx.
    pub(super) fn recover_one(&mut self) {
        self.effective_weight = (self.effective_weight + 1).min(self.server.options().weight);
    }

    /// Forgets failures and climb: the server is alone and they do not count.
    pub(super) fn forgive(&mut self) {
        self.record = HealthRecord::new();
        self.effective_weight = self.server.options().weight;
        self.ramp_from_ms = None;
    }

    /// Takes new options over and keeps all else. Says whether the server was down and no longer is.
    pub(super) fn update(&mut self, now_ms: u64, server: Server) -> bool {
        let (old, new) = (self.server.options(), server.options());
        self.effective_weight =
            if self.effective_weight == old.weight { new.weight } else { self.effective_weight.min(new.weight) };
        if old.backup != new.backup {
            self.current = 0;
        }
        let is_back = old.down && !new.down;
        self.record.update(now_ms, old, new);
        self.server = server;
        is_back
    }
}
