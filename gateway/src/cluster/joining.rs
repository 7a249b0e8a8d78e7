//! What a node waits for before it has its first lease, and what it does not wait for.
//!
//! A node that is started while Redis is away, or before the lease of its last life has run out, waits: whoever starts
//! it again would only do the same, and gives up at some time. What only somebody can mend ends the start.

use crate::clock::now_ms;
use crate::config::ClusterSecret;
use crate::startup::StartupError;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use trunkline_router::membership::NodeRecord;
use trunkline_router::redis::{AcquireError, Patience, Plane, PlaneError};

/// The pause between two attempts to get the lease.
const LEASE_PAUSE: Duration = Duration::from_millis(500);
/// By how much more time a lease must have than it had before, less what has passed, to have been renewed. Redis's
/// clock counts whole milliseconds.
const RENEWED_MS_MIN: u64 = 20;

/// How often a lease must have been renewed for its holder to live. One may have been on its way to Redis when the
/// holder was killed, or come from another clock, where a replica has taken over; a holder that lives renews it each
/// second.
const RENEWALS_MIN: u32 = 2;

/// The lease of this node's name as it was last found new: how long it had, when that was heard, and how often it has
/// been renewed since the first.
#[derive(Clone, Copy, Debug)]
struct Held {
    ttl_ms: u64,
    heard: Instant,
    renewals: u32,
}

impl Held {
    fn new(ttl_ms: u64, heard: Instant) -> Self {
        Held { ttl_ms, heard, renewals: 0 }
    }

    /// The lease still had `ttl_ms` when asked for at `asked`; the answer came at `heard`.
    fn found(&mut self, ttl_ms: u64, asked: Instant, heard: Instant) {
        let passed_ms = asked.saturating_duration_since(self.heard).as_millis() as u64;
        if ttl_ms > self.ttl_ms.saturating_sub(passed_ms) + RENEWED_MS_MIN {
            *self = Held { ttl_ms, heard, renewals: self.renewals.saturating_add(1) };
        }
    }

    /// Whether its holder lives.
    fn lives(&self) -> bool {
        self.renewals >= RENEWALS_MIN
    }
}

/// Why there is no lease yet.
enum Missed {
    /// It may be there the next time.
    Waits(AcquireError),
    /// Only somebody can mend it; holds how.
    Refused(String),
}

impl From<AcquireError> for Missed {
    fn from(error: AcquireError) -> Self {
        match error {
            AcquireError::Plane(error) if !error.may_pass() => Missed::Refused(error.to_string()),
            error => Missed::Waits(error),
        }
    }
}

impl From<PlaneError> for Missed {
    fn from(error: PlaneError) -> Self {
        AcquireError::Plane(error).into()
    }
}

/// A node that waits, and who is told for what.
pub(super) struct Joining<W> {
    secret: ClusterSecret,
    waits: W,
    patience: Patience,
    held: Option<Held>,
}

impl<W: Fn(String)> Joining<W> {
    pub(super) fn new(secret: ClusterSecret, waits: W) -> Self {
        Joining { secret, waits, patience: Patience::default(), held: None }
    }

    /// Redis does not work yet.
    pub(super) fn redis_fails(&mut self, error: &PlaneError) {
        (self.waits)(format!("waiting for Redis: {error}"));
        if !self.patience.is_due(error.kind(), Instant::now()) {
            return;
        }
        match error {
            PlaneError::AuthRefused { .. } => {
                tracing::error!(
                    "{error}; unless the password is being changed right now, --redis is wrong; trying again each \
                     second"
                );
            }
            _ => tracing::warn!("waiting for Redis, clients get BYE 14 and /readyz is 503 until then: {error}"),
        }
    }

    /// Takes the lease. Returns when it was asked for, and the incarnation.
    pub(super) async fn take_lease(
        &mut self,
        plane: &Plane,
        record: &NodeRecord,
        lease_ms: u64,
    ) -> Result<(u64, u64), StartupError> {
        loop {
            match self.try_lease(plane, record, lease_ms).await {
                Ok(taken) => return Ok(taken),
                Err(Missed::Waits(AcquireError::Plane(error))) => self.redis_fails(&error),
                Err(Missed::Waits(AcquireError::NameTaken { advertise, mesh, ttl_ms_left })) => {
                    self.name_is_held(record, &advertise, &mesh, ttl_ms_left);
                }
                Err(Missed::Refused(why)) => return Err(StartupError::Cluster(why)),
            }
            sleep(LEASE_PAUSE).await;
        }
    }

    /// One attempt. [`AcquireError::NameTaken`] is for a holder that may have ended.
    async fn try_lease(&mut self, plane: &Plane, record: &NodeRecord, lease_ms: u64) -> Result<(u64, u64), Missed> {
        // Found out before it takes anybody's place in the ring: nobody could reach it there.
        let members = plane.poll().await?;
        if let Some(stranger) = stranger(&members, &self.secret) {
            return Err(Missed::Refused(format!(
                "node {stranger} is in this cluster with another secret: give both nodes the same file as \
                 --cluster-secret-file, or this one another --redis"
            )));
        }
        if let Some(real) = real_beside_loopback(&members, record) {
            return Err(Missed::Refused(format!(
                "the mesh address {} is on loopback, and node {} is at {}, so they cannot reach each other: \
                 give --mesh an address of this machine that the other nodes dial",
                record.mesh, real.name, real.mesh
            )));
        }
        if let Some(foreign) = foreign(&members, record) {
            return Err(Missed::Refused(format!(
                "node {} speaks versions {} to {} of the mesh protocol, and this one {} to {}, so they cannot be \
                 linked: upgrade a running cluster by one release at a time, one node after the other",
                foreign.name, foreign.protocol_oldest, foreign.protocol, record.protocol_oldest, record.protocol
            )));
        }
        let (asked, sent_ms) = (Instant::now(), now_ms());
        match plane.acquire(record, lease_ms).await {
            Ok(incarnation) => Ok((sent_ms, incarnation)),
            Err(AcquireError::NameTaken { advertise, mesh, ttl_ms_left }) => {
                let heard = Instant::now();
                let held = self.held.get_or_insert(Held::new(ttl_ms_left, heard));
                held.found(ttl_ms_left, asked, heard);
                let taken = AcquireError::NameTaken { advertise, mesh, ttl_ms_left };
                if held.lives() {
                    return Err(Missed::Refused(taken.to_string()));
                }
                Err(taken.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn name_is_held(&mut self, record: &NodeRecord, advertise: &str, mesh: &str, ttl_ms_left: u64) {
        let who = if mesh == record.mesh {
            "its last life".to_owned()
        } else {
            format!("a node at {advertise} (mesh {mesh})")
        };
        let secs = ttl_ms_left.div_ceil(1_000);
        let reason = format!("waiting for the lease of {who} under this node's name, which runs out in {secs} s");
        if self.patience.is_due("name", Instant::now()) {
            tracing::warn!("{reason}");
        }
        (self.waits)(reason);
    }
}

/// A node of the cluster that proves a secret which this one does not accept.
fn stranger<'a>(members: &'a [NodeRecord], own: &ClusterSecret) -> Option<&'a str> {
    let stranger = members.iter().find(|member| !member.secret_mark.is_empty() && !own.accepts(&member.secret_mark));
    stranger.map(|stranger| stranger.name.as_str())
}

/// A node that has no version of the mesh protocol in common with this one. The last life of this node may be of any
/// version.
fn foreign<'a>(members: &'a [NodeRecord], own: &NodeRecord) -> Option<&'a NodeRecord> {
    members.iter().find(|member| member.name != own.name && !member.speaks_with(own))
}

/// A node whose mesh address is a real one, while that of this node is on loopback.
fn real_beside_loopback<'a>(members: &'a [NodeRecord], own: &NodeRecord) -> Option<&'a NodeRecord> {
    let is_loopback = |mesh: &str| mesh.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback());
    let others = || members.iter().filter(|member| member.name != own.name);
    others().find(|member| is_loopback(&own.mesh) && !is_loopback(&member.mesh))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the holder lives, after a lease was first found with 20 s and then with so many ms after so many ms.
    fn lives(found: &[(u64, u64)]) -> bool {
        let first = Instant::now();
        let mut held = Held::new(20_000, first);
        for (passed_ms, ttl_ms) in found {
            let asked = first + Duration::from_millis(*passed_ms);
            // The answer came a little later, so what has passed in truth is less than what is counted.
            held.found(*ttl_ms, asked, asked + Duration::from_millis(1));
        }
        held.lives()
    }

    #[test]
    fn a_lease_that_only_runs_out_is_waited_for() {
        assert!(!lives(&[(0, 20_000), (500, 19_500), (1_000, 19_000), (30_000, 0)]));
    }

    #[test]
    fn a_lease_that_is_renewed_again_and_again_has_a_holder_that_lives() {
        assert!(lives(&[(500, 20_000), (1_000, 19_500), (1_500, 20_000)]));
        assert!(lives(&[(30_000, 5_000), (30_500, 5_000)]));
    }

    /// The renewal that was on its way when the holder was killed, or the clock of a replica that has taken over.
    #[test]
    fn one_renewal_alone_is_no_life() {
        assert!(!lives(&[(500, 20_000), (1_000, 19_500), (20_000, 500)]));
    }
}
