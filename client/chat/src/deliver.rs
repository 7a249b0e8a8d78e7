//! From a line to its fate, over a restart of the gateway.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio::time::{Instant, sleep};
use trunkline_client::{Client, Error, Outcome, Outgoing, Receipt};

/// How long after a lost connection somebody who is offline may only not be back yet: clients wait for up to half a
/// minute between two attempts.
const BACK_WITHIN: Duration = Duration::from_secs(45);

/// How long somebody who was there before may be gone before oneself is: a gateway that is about to restart says
/// goodbye to one after the other.
const LEAVES_WITHIN: Duration = Duration::from_secs(15);

/// Users remembered to have been there; a person talks to fewer.
const SEEN_MAX: usize = 10_000;

/// Waits between two attempts to reach such a recipient: they double from the first to the last.
const AGAIN_FIRST: Duration = Duration::from_millis(500);
const AGAIN_LAST: Duration = Duration::from_secs(8);

/// What became of the connection lately.
#[derive(Clone, Debug, Default)]
pub(crate) struct Weather(Arc<Mutex<Sky>>);

#[derive(Clone, Copy, Debug, Default)]
enum Sky {
    /// Never lost.
    #[default]
    Clear,
    Lost,
    /// Since then it is there again.
    Back(Instant),
}

impl Weather {
    fn lock(&self) -> MutexGuard<'_, Sky> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lost(&self) {
        *self.lock() = Sky::Lost;
    }

    pub(crate) fn back(&self) {
        *self.lock() = Sky::Back(Instant::now());
    }

    /// Whether others may still be on their way back, too.
    fn is_unsettled(&self) -> bool {
        match *self.lock() {
            Sky::Clear => false,
            Sky::Lost => true,
            Sky::Back(since) => since.elapsed() < BACK_WITHIN,
        }
    }
}

/// Who was there when last heard of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen(Arc<Mutex<HashSet<u64>>>);

impl Seen {
    fn lock(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This user has sent something, or has got something.
    pub(crate) fn is_there(&self, user: u64) {
        let mut seen = self.lock();
        if seen.len() < SEEN_MAX {
            seen.insert(user);
        }
    }

    fn is_gone(&self, user: u64) {
        self.lock().remove(&user);
    }

    fn has(&self, user: u64) -> bool {
        self.lock().contains(&user)
    }
}

/// Who waits behind whom: while a message to a user is asked about again, the later ones to the same user wait, so that
/// lines keep their order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lanes(Arc<Mutex<HashMap<u64, Arc<AsyncMutex<()>>>>>);

impl Lanes {
    /// The lane to this user, once it is free. Whoever asks first gets it first.
    async fn enter(&self, to: u64) -> OwnedMutexGuard<()> {
        let lane = {
            let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Lanes that nobody is in or waits for.
            lanes.retain(|_to, lane| Arc::strong_count(lane) > 1);
            lanes.entry(to).or_default().clone()
        };
        lane.lock_owned().await
    }

    /// Whether a message to this user is asked about again.
    pub(crate) fn is_busy(&self, to: u64) -> bool {
        let lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.get(&to).is_some_and(|lane| Arc::strong_count(lane) > 1)
    }
}

/// What is known of the connection and of those at its other end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Circumstances {
    pub(crate) weather: Weather,
    pub(crate) seen: Seen,
    pub(crate) lanes: Lanes,
}

/// Waits for the fate of a message; without a receipt it is sent once those before it are settled. A gateway that is
/// about to restart may take leave of the recipient before it does of the sender, and when it starts again the sender
/// may be back before the recipient: until everybody has had the time to come back, "offline" is asked again, under the
/// same id.
pub(crate) async fn fate(
    client: &Client,
    Circumstances { weather, seen, lanes }: &Circumstances,
    to: u64,
    text: &str,
    receipt: Option<Receipt>,
) -> Result<Outcome, Error> {
    let (mut lane, mut receipt) = match receipt {
        Some(receipt) => (None, receipt),
        None => (Some(lanes.enter(to).await), client.send_tracked(to, text).await?),
    };
    let id = receipt.id();
    let mut wait = AGAIN_FIRST;
    let mut first_offline = None;
    loop {
        let fate = receipt.outcome().await;
        if !matches!(fate, Ok(Outcome::OfflineNotStored)) {
            if matches!(fate, Ok(Outcome::Delivered)) {
                seen.is_there(to);
            }
            return fate;
        }
        let since = *first_offline.get_or_insert_with(Instant::now);
        let may_be_leaving = seen.has(to) && since.elapsed() < LEAVES_WITHIN;
        if !weather.is_unsettled() && !may_be_leaving {
            seen.is_gone(to);
            return fate;
        }
        if lane.is_none() && lanes.is_busy(to) {
            // It may all be over for those before it, so this one does not wait any longer.
            lane = Some(lanes.enter(to).await);
        } else {
            if lane.is_none() {
                lane = Some(lanes.enter(to).await);
            }
            sleep(wait).await;
            wait = (2 * wait).min(AGAIN_LAST);
        }
        receipt = client.submit(Outgoing::new(to, text).with_id(id).as_retry()).await?;
    }
}

/// What a copy for the sender's other devices begins with.
const COPY_MARK: char = '→';

/// What other devices of the sender are told of a message: the line that was typed, marked as such.
pub(crate) fn copy(to: u64, text: &str) -> String {
    format!("{COPY_MARK}{to};;{text}")
}

/// The recipient and the text of such a copy.
pub(crate) fn read_copy(body: &[u8]) -> Option<(u64, &str)> {
    let (to, text) = std::str::from_utf8(body).ok()?.strip_prefix(COPY_MARK)?.split_once(";;")?;
    Some((to.parse().ok()?, text))
}

/// What became of the lines so far: what a script's exit status tells.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Messages whose fate is not known yet.
    pub(crate) open: usize,
    /// Lines that were not understood, not sent, or not delivered or stored.
    pub(crate) failed: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_read_as_it_was_written_and_nothing_else_is_one() {
        for (to, text) in [(2, "hello"), (u64::MAX, ";;→3;;x"), (7, "")] {
            assert_eq!(read_copy(copy(to, text).as_bytes()), Some((to, text)));
        }
        for body in [&b"2;;hello"[..], "→;;x".as_bytes(), "→2".as_bytes(), "→x;;y".as_bytes(), b"\xff", b""] {
            assert_eq!(read_copy(body), None);
        }
    }

    #[tokio::test]
    async fn a_lane_is_entered_in_turn_and_free_when_everybody_has_left() {
        let lanes = Lanes::default();
        assert!(!lanes.is_busy(2));
        let first = lanes.enter(2).await;
        assert!(lanes.is_busy(2) && !lanes.is_busy(3));
        let others = lanes.clone();
        let second = tokio::spawn(async move { drop(others.enter(2).await) });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        drop(first);
        second.await.expect("no panic");
        assert!(!lanes.is_busy(2));
        drop(lanes.enter(3).await);
        assert_eq!(lanes.0.lock().expect("no panic").len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn offline_is_doubted_while_others_may_still_be_on_their_way_back() {
        let weather = Weather::default();
        assert!(!weather.is_unsettled());
        weather.lost();
        sleep(Duration::from_secs(100_000)).await;
        assert!(weather.is_unsettled());
        weather.back();
        sleep(BACK_WITHIN - Duration::from_secs(1)).await;
        assert!(weather.is_unsettled());
        sleep(Duration::from_secs(2)).await;
        assert!(!weather.is_unsettled());
    }
}
