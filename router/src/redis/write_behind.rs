//! Writing presence behind the data path: callers push and go on, one task drains.

use super::error::PlaneError;
use super::metrics::{Metrics, add};
use super::plane::Plane;
use super::queue::WriteQueue;
use super::{PresenceWrite, WriteOutcome};
use rand::RngExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Writes of one pipeline: some 150 KB, so a round trip is shared by many and no master is held up for a millisecond.
pub const PIPELINE_WRITES: usize = 512;

/// Pipelines on their way at once: one is executed, one on the wire each way, one being made.
pub const PIPELINES_MAX: usize = 4;

/// The first and the longest pause after a failed pipeline. The longest is about the time a failover takes.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// The queue, shared by those who push and the task that drains.
#[derive(Debug)]
pub struct WriteBehind {
    queue: Mutex<WriteQueue>,
    pushed: Notify,
    closed: AtomicBool,
    metrics: Arc<Metrics>,
    epoch: Instant,
}

impl WriteBehind {
    /// An empty queue for up to `entries_max` writes and `bytes_max` bytes ([`super::queue::ENTRIES_MAX`] and
    /// [`super::queue::BYTES_MAX`] by default), which counts in `metrics`.
    #[must_use]
    pub fn new(entries_max: usize, bytes_max: usize, metrics: Arc<Metrics>) -> Self {
        WriteBehind {
            queue: Mutex::new(WriteQueue::new(entries_max, bytes_max)),
            pushed: Notify::new(),
            closed: AtomicBool::new(false),
            metrics,
            epoch: Instant::now(),
        }
    }

    /// Queues a write and returns at once. `false`: refused, because the queue is full or a text is out of its range.
    pub fn push(&self, write: PresenceWrite) -> bool {
        let accepted = write.is_valid() && self.with(|queue, now_ms| queue.push(now_ms, write));
        if accepted {
            self.pushed.notify_one();
        } else {
            add(&self.metrics.refused, 1);
        }
        accepted
    }

    /// See [`WriteQueue::overflowed`].
    #[must_use]
    pub fn overflowed(&self) -> bool {
        self.lock().overflowed()
    }

    /// See [`WriteQueue::resync_began`].
    pub fn resync_began(&self) {
        self.with(|queue, _| queue.resync_began());
        self.pushed.notify_one();
    }

    /// Whether nothing waits and nothing is on its way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Lets [`run`] end as soon as the queue is empty.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.pushed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, WriteQueue> {
        // Nothing in the queue panics half way through a change that matters more than losing all of it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the queue, and brings the gauges up to date.
    fn with<T>(&self, act: impl FnOnce(&mut WriteQueue, u64) -> T) -> T {
        let now_ms = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut queue = self.lock();
        let result = act(&mut queue, now_ms);
        self.metrics.queued.store(queue.len() as u64, Ordering::Relaxed);
        self.metrics.queued_bytes.store(queue.bytes() as u64, Ordering::Relaxed);
        self.metrics.oldest_age_ms.store(queue.oldest_age_ms(now_ms), Ordering::Relaxed);
        result
    }
}

/// Where presence is written to: Redis itself, or somebody who reaches it.
pub trait Writer: Clone + Send + Sync + 'static {
    /// Writes all of `writes`, as [`Plane::write`] does: one result for each, in the order given.
    fn write(&self, writes: &[PresenceWrite]) -> impl Future<Output = Vec<Result<WriteOutcome, PlaneError>>> + Send;
}

impl Writer for Plane {
    fn write(&self, writes: &[PresenceWrite]) -> impl Future<Output = Vec<Result<WriteOutcome, PlaneError>>> + Send {
        Plane::write(self, writes)
    }
}

/// Drains `queue` into `plane`, for ever or until [`WriteBehind::close`] and the queue is empty. Dropping it is safe:
/// what was on its way is not put back, so the queue has to go with it.
///
/// `on_stale` is called with each login that lost, and the version that beat it. Its owner may have been replaced
/// elsewhere, or its version is too low because clocks differ; then a login with a higher version than that settles it.
pub async fn run<W: Writer>(plane: W, queue: Arc<WriteBehind>, mut on_stale: impl FnMut(&PresenceWrite, u64)) {
    let mut pipelines: JoinSet<Vec<(PresenceWrite, Result<WriteOutcome, PlaneError>)>> = JoinSet::new();
    let mut backoff = BACKOFF_MIN;
    let mut pause: Option<tokio::time::Instant> = None;
    loop {
        while pause.is_none() && pipelines.len() < PIPELINES_MAX {
            let writes = queue.with(|queue, _| queue.take(PIPELINE_WRITES));
            if writes.is_empty() {
                break;
            }
            let plane = plane.clone();
            pipelines.spawn(async move {
                let results = plane.write(&writes).await;
                writes.into_iter().zip(results).collect()
            });
        }
        if queue.closed.load(Ordering::Acquire) && queue.is_empty() {
            return;
        }
        tokio::select! {
            Some(ended) = pipelines.join_next() => {
                // A pipeline has no way to panic; were there one, its writes would count as on their way for ever.
                let Ok(ended) = ended else { continue };
                let (written, failed) = settle(&queue, ended, &mut on_stale);
                if written > 0 {
                    backoff = BACKOFF_MIN;
                }
                // Where a part failed, other masters work and must not wait for the one that does not.
                if failed > 0 {
                    let jitter = rand::rng().random_range(0.5..1.0);
                    pause = Some(tokio::time::Instant::now() + backoff.mul_f64(jitter));
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
            () = tokio::time::sleep_until(pause.unwrap_or_else(tokio::time::Instant::now)), if pause.is_some() => {
                pause = None;
            }
            () = queue.pushed.notified() => {}
        }
    }
}

/// Gives the writes of a pipeline back to the queue. How many were executed, and how many were not.
fn settle(
    queue: &WriteBehind,
    ended: Vec<(PresenceWrite, Result<WriteOutcome, PlaneError>)>,
    on_stale: &mut impl FnMut(&PresenceWrite, u64),
) -> (u64, u64) {
    let metrics = &queue.metrics;
    let (mut written, mut stale, mut failed) = (0, Vec::new(), 0);
    queue.with(|queue, now_ms| {
        for (write, result) in ended {
            match result {
                Ok(outcome) => {
                    written += 1;
                    queue.done(now_ms, &write);
                    if let WriteOutcome::Stale { version } = outcome {
                        stale.push((write, version));
                    }
                }
                Err(_) => {
                    failed += 1;
                    queue.failed(now_ms, write);
                }
            }
        }
    });
    add(&metrics.written, written);
    add(&metrics.stale, stale.len() as u64);
    add(&metrics.failed, failed);
    for (write, version) in &stale {
        on_stale(write, *version);
    }
    (written, failed)
}
