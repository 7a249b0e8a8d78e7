//! Presence is written to Redis, or through a peer that reaches it while this node does not.

use crate::membership::{Change, End, Memo, WRITES_MAX};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use trunkline_router::redis::write_behind::{PIPELINE_WRITES, PIPELINES_MAX, Writer};
use trunkline_router::redis::{Plane, PlaneError, PresenceWrite, WriteOutcome};

const _: () = assert!(PIPELINE_WRITES <= WRITES_MAX);

/// How long a peer may take to write for this node. What is not answered by then is written again, which does no harm.
const WRITE_TIMEOUT: Duration = Duration::from_secs(3);

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
}

impl Relay {
    /// Writes to `plane` until it is told otherwise; what is to go through a peer comes out of the other end.
    pub(super) fn new(plane: Plane) -> (Self, mpsc::Receiver<Through>) {
        let (pipelines, taken) = mpsc::channel(PIPELINES_MAX);
        (Relay { plane, through: Arc::new(AtomicBool::new(false)), pipelines }, taken)
    }

    /// Whether to write through a peer from now on.
    pub(super) fn set_through(&self, through: bool) {
        self.through.store(through, Ordering::Relaxed);
    }
}

impl Writer for Relay {
    async fn write(&self, writes: &[PresenceWrite]) -> Vec<Result<WriteOutcome, PlaneError>> {
        if !self.through.load(Ordering::Relaxed) {
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
