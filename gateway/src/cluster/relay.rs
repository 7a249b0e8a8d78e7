//! Presence is written to Redis, or through a peer that reaches it while this node does not.

use crate::membership::{Change, End, Memo, WRITES_MAX};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use trunkline_router::redis::write_behind::{PIPELINE_WRITES, PIPELINES_MAX, Writer};
use trunkline_router::redis::{Plane, PlaneError, PresenceWrite, WriteOutcome};

const _: () = assert!(PIPELINE_WRITES <= WRITES_MAX);

/// How long a peer may take to write for this node. What is not answered by then is written again, which does no harm.
const WRITE_TIMEOUT: Duration = Duration::from_secs(3);

/// For how long after the last write through a peer each logout leaves a mark that keeps older logins out: a login that
/// was given to a peer and not answered may still be on its way, for as long as a link that broke is made again (8 s)
/// and Redis is asked.
const FENCE_TIME: Duration = Duration::from_secs(15);

/// A pipeline that is to be written through a peer.
#[derive(Debug)]
pub(super) struct Through {
    writes: Vec<Change>,
    answer: oneshot::Sender<Vec<End>>,
}

/// The writer of presence. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Relay {
    plane: Plane,
    through: Arc<AtomicBool>,
    pipelines: mpsc::Sender<Through>,
    /// When something was last given to a peer to write.
    given: Arc<Mutex<Option<Instant>>>,
}

impl Relay {
    /// Writes to `plane` until it is told otherwise; what is to go through a peer comes out of the other end.
    pub(super) fn new(plane: Plane) -> (Self, mpsc::Receiver<Through>) {
        let (pipelines, taken) = mpsc::channel(PIPELINES_MAX);
        let (through, given) = (Arc::new(AtomicBool::new(false)), Arc::default());
        (Relay { plane, through, pipelines, given }, taken)
    }

    /// Whether to write through a peer from now on.
    pub(super) fn set_through(&self, through: bool) {
        self.through.store(through, Ordering::Relaxed);
    }

    /// Whether an earlier login may still come to Redis by way of a peer. `gives`: something is given to a peer now.
    fn may_come_late(&self, now: Instant, gives: bool) -> bool {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if gives {
            *given = Some(now);
        }
        given.is_some_and(|at| now.duration_since(at) < FENCE_TIME)
    }
}

/// The same writes, with logouts that keep older logins out.
fn fenced(writes: &[PresenceWrite]) -> Vec<PresenceWrite> {
    let fenced = writes.iter().cloned().map(|mut write| {
        if let PresenceWrite::Logout { fence, .. } = &mut write {
            *fence = true;
        }
        write
    });
    fenced.collect()
}

impl Writer for Relay {
    async fn write(&self, writes: &[PresenceWrite]) -> Vec<Result<WriteOutcome, PlaneError>> {
        let through = self.through.load(Ordering::Relaxed);
        let fenced = if self.may_come_late(Instant::now(), through) { fenced(writes) } else { Vec::new() };
        let writes = if fenced.is_empty() { writes } else { &fenced };
        if !through {
            return Plane::write(&self.plane, writes).await;
        }
        let failed = || PlaneError::TimedOut { after: WRITE_TIMEOUT };
        let (answer, ends) = oneshot::channel();
        let through = Through { writes: writes.iter().map(Change::of).collect(), answer };
        let ends = match self.pipelines.send(through).await {
            Ok(()) => tokio::time::timeout(WRITE_TIMEOUT, ends).await.ok().and_then(Result::ok).unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        let mut ends = ends.into_iter();
        writes.iter().map(|_| ends.next().and_then(End::outcome).ok_or_else(failed)).collect()
    }
}

/// Pipelines that a peer was asked to write.
#[derive(Debug, Default)]
pub(super) struct Relayed {
    number: u64,
    waiting: BTreeMap<u64, (Instant, oneshot::Sender<Vec<End>>)>,
}

impl Relayed {
    /// The memo that asks for a pipeline to be written. One that is too long for a memo is dropped, and its writer told
    /// at once.
    pub(super) fn ask(&mut self, through: Through, now: Instant) -> Option<Vec<u8>> {
        self.waiting.retain(|_, (asked, _)| now.duration_since(*asked) < WRITE_TIMEOUT);
        self.number += 1;
        let body = Memo::Write { number: self.number, writes: through.writes }.encode()?;
        self.waiting.insert(self.number, (now, through.answer));
        Some(body)
    }

    /// What became of one.
    pub(super) fn answered(&mut self, number: u64, ends: Vec<End>) {
        if let Some((_, answer)) = self.waiting.remove(&number) {
            // Its writer may have given up.
            let _ = answer.send(ends);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_router::redis::{PresenceEntry, RedisConfig};

    fn session() -> PresenceEntry {
        PresenceEntry {
            device: "desk".into(),
            node: "a".into(),
            incarnation: 7,
            shard: 0,
            session: 9,
            since_ms: 0,
            class: "".into(),
            version: 9,
        }
    }

    #[tokio::test]
    async fn a_logout_behind_a_login_that_a_peer_may_write_late_keeps_it_out() {
        let plane = Plane::unconnected(&RedisConfig::parse("redis-cluster://127.0.0.1:1").unwrap());
        let (relay, mut pipelines) = Relay::new(plane);
        let now = Instant::now();
        assert!(!relay.may_come_late(now, false), "nothing was given to a peer");
        relay.set_through(true);
        let writes = [PresenceWrite::logout_of(5, &session())];
        let (_, given) = tokio::join!(relay.write(&writes), async {
            let Through { writes, answer } = pipelines.recv().await.expect("it is to go through a peer");
            let _ = answer.send(vec![End::Written]);
            writes
        });
        let as_given = given.into_iter().next().unwrap().of_node(&"a".into());
        assert_eq!(vec![as_given], fenced(&writes));
        assert!(matches!(fenced(&writes)[0], PresenceWrite::Logout { fence: true, .. }));
        // The node writes itself again.
        let now = Instant::now();
        assert!(relay.may_come_late(now, false) && relay.may_come_late(now + Duration::from_secs(9), false));
        assert!(!relay.may_come_late(now + FENCE_TIME, false));
    }
}
