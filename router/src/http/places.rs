//! The places of an HTTP server: who has one, and who gives it up when all are taken.
//!
//! A place is a connection. When all are taken and another connection comes, the one that has been without a request
//! for longest is ended for it, if that is [`GRACE`] ago. Requests other than for health are under way in all places
//! but [`HEALTH_PLACES`] at most, so there is always a place that can be had, and health is answered whatever strangers
//! do.

use super::stats::HttpMetric;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep};

/// Places that requests other than for health leave free.
pub const HEALTH_PLACES: u32 = 8;
/// For so long a connection keeps its place whatever happens: its request may be on the way, or its answer.
const GRACE: Duration = Duration::from_millis(250);

/// The places of one server, and its numbers.
#[derive(Debug)]
pub struct Places {
    max: u32,
    connections: Arc<Semaphore>,
    /// Requests under way, those for health aside.
    requests: Semaphore,
    idle: Mutex<Idle>,
    accepted: AtomicU64,
    evicted: AtomicU64,
    refused: AtomicU64,
    failed_handshakes: AtomicU64,
}

/// The connections without a request under way.
#[derive(Debug, Default)]
struct Idle {
    last_id: u64,
    since: HashMap<u64, (Instant, Arc<Notify>)>,
}

impl Places {
    /// So many places. Fewer than two for each one that is kept for health are raised to that.
    #[must_use]
    pub fn new(max: u32) -> Arc<Self> {
        let max = max.max(2 * HEALTH_PLACES);
        Arc::new(Places {
            max,
            connections: Arc::new(Semaphore::new(max as usize)),
            requests: Semaphore::new((max - HEALTH_PLACES) as usize),
            idle: Mutex::default(),
            accepted: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            failed_handshakes: AtomicU64::new(0),
        })
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection that has been accepted. Takes one from who does not use it, if need be.
    pub(super) async fn take(self: &Arc<Self>) -> Place {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        loop {
            if let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() {
                let id = {
                    let mut idle = self.idle();
                    idle.last_id += 1;
                    idle.last_id
                };
                let place = Place { places: Arc::clone(self), id, evict: Arc::new(Notify::new()), _permit: permit };
                place.rest();
                return place;
            }
            // The one that is told ends with its next turn, and no other has to before.
            let wait = self.evict();
            tokio::select! {
                permit = self.connections.acquire() => drop(permit),
                () = sleep(wait) => {}
            }
        }
    }

    /// Ends the connection that has been without a request for longest. Returns when to look again.
    fn evict(&self) -> Duration {
        let mut idle = self.idle();
        let Some((&id, (since, _))) = idle.since.iter().min_by_key(|(_, (since, _))| *since) else { return GRACE };
        let left = GRACE.saturating_sub(since.elapsed());
        if left.is_zero()
            && let Some((_, evict)) = idle.since.remove(&id)
        {
            evict.notify_one();
            self.evicted.fetch_add(1, Ordering::Relaxed);
            return GRACE;
        }
        left
    }

    /// Room for a request that is not for health; `None` when as many are under way as may be.
    pub(super) fn begin_request(&self) -> Option<SemaphorePermit<'_>> {
        let permit = self.requests.try_acquire().ok();
        if permit.is_none() {
            self.count_refused();
        }
        permit
    }

    /// A request was answered 503 because as many of its kind were under way as may be.
    pub(super) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection has ended in its handshake of TLS.
    pub(super) fn count_failed_handshake(&self) {
        self.failed_handshakes.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until all connections have ended.
    pub(super) async fn all_left(&self) {
        // Never closed.
        drop(self.connections.acquire_many(self.max).await);
    }

    /// Its numbers.
    #[must_use]
    pub fn metrics(&self) -> Vec<HttpMetric> {
        let taken = u64::from(self.max) - self.connections.available_permits() as u64;
        let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
        vec![
            HttpMetric::plain(
                "trunkline_http_places",
                false,
                "Connections the HTTP API serves at a time.",
                self.max.into(),
            ),
            HttpMetric::plain("trunkline_http_connections_open", false, "HTTP connections that have a place.", taken),
            HttpMetric::plain(
                "trunkline_http_connections_accepted_total",
                true,
                "HTTP connections accepted.",
                count(&self.accepted),
            ),
            HttpMetric::plain(
                "trunkline_http_connections_evicted_total",
                true,
                "HTTP connections without a request under way that were ended because all places were taken.",
                count(&self.evicted),
            ),
            HttpMetric::plain(
                "trunkline_http_requests_refused_total",
                true,
                "HTTP requests answered 503 because as many were under way as may be beside health.",
                count(&self.refused),
            ),
            HttpMetric::plain(
                "trunkline_http_tls_handshakes_failed_total",
                true,
                "HTTP connections that ended in their handshake of TLS, or did not begin with one where they have to.",
                count(&self.failed_handshakes),
            ),
        ]
    }
}

/// The place of a connection. It is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    id: u64,
    evict: Arc<Notify>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    /// No request is under way from now on.
    pub(super) fn rest(&self) {
        self.places.idle().since.insert(self.id, (Instant::now(), Arc::clone(&self.evict)));
    }

    /// A request is under way.
    pub(super) fn work(&self) {
        self.places.idle().since.remove(&self.id);
    }

    /// Waits until somebody else gets the place.
    pub(super) async fn evicted(&self) {
        self.evict.notified().await;
    }

    pub(super) fn places(&self) -> &Arc<Places> {
        &self.places
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.idle().since.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{advance, timeout};

    fn number(places: &Places, name: &str) -> u64 {
        places.metrics().into_iter().find(|metric| metric.name == name).unwrap().samples[0].1
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_that_rests_for_longest_goes_first_and_who_works_stays() {
        let places = Places::new(16);
        let mut all = Vec::new();
        for _ in 0..16 {
            all.push(places.take().await);
            advance(GRACE).await;
        }
        all[0].work();
        let (newcomer, ()) = tokio::join!(places.take(), async {
            all[1].evicted().await;
            all.remove(1);
        });
        assert!(timeout(GRACE, all[0].evicted()).await.is_err());
        assert_eq!(number(&places, "trunkline_http_connections_evicted_total"), 1);
        assert_eq!(number(&places, "trunkline_http_connections_open"), 16);
        drop((newcomer, all));
        assert_eq!(number(&places, "trunkline_http_connections_open"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_goes_at_once_or_while_all_work() {
        let places = Places::new(16);
        let mut all = Vec::new();
        for _ in 0..16 {
            all.push(places.take().await);
        }
        assert!(timeout(GRACE / 2, places.take()).await.is_err(), "their requests may be on the way");
        assert_eq!(number(&places, "trunkline_http_connections_evicted_total"), 0);
        all.iter().for_each(Place::work);
        assert!(timeout(20 * GRACE, places.take()).await.is_err());
        assert_eq!(number(&places, "trunkline_http_connections_evicted_total"), 0);
        all.pop();
        places.take().await;
    }

    #[tokio::test]
    async fn requests_leave_places_for_health() {
        let places = Places::new(20);
        let requests: Vec<_> = std::iter::from_fn(|| places.begin_request()).collect();
        assert_eq!((requests.len(), number(&places, "trunkline_http_requests_refused_total")), (12, 1));
        drop(requests);
        assert!(places.begin_request().is_some());
    }
}
