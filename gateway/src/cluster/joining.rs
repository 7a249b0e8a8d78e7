//! What a node waits for before it has its first lease, and what it does not wait for.
//!
//! A node that is started while Redis is away, or before the lease of its last life has run out, waits: whoever starts it again would only
//! do the same, and gives up at some time. What only somebody can mend ends the start.

use crate::clock::now_ms;
use crate::startup::StartupError;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use trunkline_router::membership::NodeRecord;
use trunkline_router::redis::{AcquireError, Patience, Plane, PlaneError};

/// The pause between two attempts to get the lease.
const LEASE_PAUSE: Duration = Duration::from_millis(500);
/// By how much more time a lease must have than it had before, less what has passed, to have been renewed. Redis's clock counts whole
/// milliseconds.
const RENEWED_MS_MIN: u64 = 20;

/// The lease of this node's name as it was first found: how long it had, and when that was heard.
#[derive(Clone, Copy, Debug)]
struct Held {
    ttl_ms: u64,
    heard: Instant,
}

impl Held {
    /// Whether a lease that still had `ttl_ms` when asked for at `asked` has been renewed since: then its holder lives.
    fn was_renewed(self, ttl_ms: u64, asked: Instant) -> bool {
        let passed_ms = asked.saturating_duration_since(self.heard).as_millis() as u64;
        ttl_ms > self.ttl_ms.saturating_sub(passed_ms) + RENEWED_MS_MIN
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
    waits: W,
    patience: Patience,
    held: Option<Held>,
}

impl<W: Fn(String)> Joining<W> {
    pub(super) fn new(waits: W) -> Self {
        Joining { waits, patience: Patience::default(), held: None }
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
                    "{error}; unless the password is being changed right now, --redis is wrong; trying again each second"
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
        if let Some(stranger) = stranger(&members, record) {
            return Err(Missed::Refused(format!(
                "node {stranger} is in this cluster with another secret: give both nodes the same file as --cluster-secret-file, \
                 or this one another --redis"
            )));
        }
        if let Some(real) = real_beside_loopback(&members, record) {
            return Err(Missed::Refused(format!(
                "the mesh address {} is on loopback, and node {} is at {}, so they cannot reach each other: \
                 give --mesh an address of this machine that the other nodes dial",
                record.mesh, real.name, real.mesh
            )));
        }
        let (asked, sent_ms) = (Instant::now(), now_ms());
        match plane.acquire(record, lease_ms).await {
            Ok(incarnation) => Ok((sent_ms, incarnation)),
            Err(AcquireError::NameTaken { advertise, mesh, ttl_ms_left }) => {
                let held = *self.held.get_or_insert(Held { ttl_ms: ttl_ms_left, heard: Instant::now() });
                let taken = AcquireError::NameTaken { advertise, mesh, ttl_ms_left };
                if held.was_renewed(ttl_ms_left, asked) {
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

/// A node of the cluster that has another secret than this one.
fn stranger<'a>(members: &'a [NodeRecord], own: &NodeRecord) -> Option<&'a str> {
    let stranger =
        members.iter().find(|member| !member.secret_mark.is_empty() && member.secret_mark != own.secret_mark);
    stranger.map(|stranger| stranger.name.as_str())
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

    #[test]
    fn a_lease_that_only_runs_out_was_not_renewed() {
        let heard = Instant::now();
        let held = Held { ttl_ms: 20_000, heard };
        for (passed_ms, ttl_ms, renewed) in [
            (0, 20_000, false),
            (500, 19_500, false),
            // What has passed is counted from answer to question, so it is more in truth.
            (500, 19_200, false),
            (500, 20_000, true),
            (1_000, 19_900, true),
            (30_000, 0, false),
            (30_000, 5_000, true),
        ] {
            let asked = heard + Duration::from_millis(passed_ms);
            assert_eq!(held.was_renewed(ttl_ms, asked), renewed, "{ttl_ms} ms after {passed_ms} ms");
        }
    }
}
