//! The servers that are backups, or those that are not: a policy with what it has to prepare for them.

use super::consistent_hash::{Key, Placement};
use super::error::BalanceError;
use super::policy::Policy;
use super::random_two::Line;
use super::server::Server;
use super::slot::Slot;
use super::{least_conn, least_time, round_robin};
use rand::Rng;

#[derive(Debug, Clone)]
pub(super) struct Tier {
    backup: bool,
    method: Method,
}

#[derive(Debug, Clone)]
enum Method {
    RoundRobin,
    LeastConn,
    /// `None` without servers: a ring has at least one.
    ConsistentHash(Option<Placement>),
    RandomTwo(Line),
    LeastTime,
}

impl Tier {
    /// A tier of no servers, which every policy treats alike.
    pub(super) fn empty(backup: bool) -> Self {
        Tier { backup, method: Method::RoundRobin }
    }

    /// The tier that takes the place of this one when `servers`, at most 65,536, are the set.
    pub(super) fn next(&self, policy: Policy, servers: &[Server]) -> Result<Self, BalanceError> {
        let members = || -> Vec<(u16, &Server)> {
            (0..).zip(servers).filter(|(_, server)| server.options().backup == self.backup).collect()
        };
        let method = match policy {
            Policy::RoundRobin => Method::RoundRobin,
            Policy::LeastConn => Method::LeastConn,
            Policy::ConsistentHash => {
                let before = match &self.method {
                    Method::ConsistentHash(placement) => placement.as_ref(),
                    _ => None,
                };
                Method::ConsistentHash(Placement::new(&members(), before).map_err(BalanceError::Ring)?)
            }
            Policy::RandomTwo => Method::RandomTwo(Line::new(&members())),
            Policy::LeastTime => Method::LeastTime,
        };
        Ok(Tier { backup: self.backup, method })
    }

    /// An available server of this tier, by index into `slots`; `None` if there is none.
    pub(super) fn pick(
        &self,
        slots: &mut [Slot],
        now_ms: u64,
        key: Option<Key<'_>>,
        rng: &mut (impl Rng + ?Sized),
    ) -> Option<usize> {
        let is_open = |slot: &Slot| slot.is_open(self.backup, now_ms);
        let chosen = match &self.method {
            Method::RoundRobin => None,
            Method::LeastConn => least_conn::pick(slots, self.backup, now_ms),
            Method::ConsistentHash(placement) => {
                placement.as_ref().zip(key).and_then(|(placement, key)| placement.pick(slots, key, is_open))
            }
            Method::RandomTwo(line) => line.pick(slots, now_ms, is_open, rng),
            Method::LeastTime => least_time::pick(slots, self.backup, now_ms),
        };
        // What a policy leaves open, as a hash without a key does, round robin decides.
        chosen.or_else(|| round_robin::pick(slots, now_ms, is_open))
    }
}
