//! Messages that the gateway has given and the application has not got: they are asked for again.
//!
//! A gateway that keeps messages for this device gives each once for each login, and then waits for its ACK. A message
//! that was dropped on its way, because the application was too slow, or that came back from a guard, would come with
//! the next login only; until then SYNC gets it.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::History;

/// Positions remembered; those beyond come with the next login.
const STAMPS_MAX: usize = 4_096;

/// How long after the first is asked: by then what is not acknowledged is in the store (2 s by default), and an
/// application that gives a message back gets it no faster.
const WAIT: Duration = Duration::from_secs(5);

/// How often in a row what the store does not have yet is asked for, until the next message comes: it may never get it.
const TRIES_MAX: u32 = 24;

/// Most messages of a page.
const PAGE_LEN: u32 = 256;

/// Positions to ask for.
#[derive(Debug, Default)]
pub(crate) struct Recall {
    stamps: BTreeSet<u64>,
    due: Option<Instant>,
    /// How often in a row the log ended before what was asked for.
    tries: u32,
}

impl Recall {
    /// The message at this position is to be asked for.
    pub(crate) fn note(&mut self, stamp: u64) {
        if self.stamps.len() < STAMPS_MAX {
            self.stamps.insert(stamp);
            self.tries = 0;
            self.due.get_or_insert_with(|| Instant::now() + WAIT);
        }
    }

    /// A new session: it gets all of them by itself.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// When [`Self::request`] is to be called.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The page to ask for, if it is time and there is `room` for so many messages.
    pub(crate) fn request(&mut self, room: usize) -> Option<History> {
        let now = Instant::now();
        let first = *self.stamps.first()?;
        if self.due.is_none_or(|due| now < due) {
            return None;
        }
        if room == 0 {
            self.due = Some(now + WAIT);
            return None;
        }
        self.due = None;
        // One message alone: what lies behind it may be much.
        let limit = if self.stamps.len() == 1 { 1 } else { PAGE_LEN.min(room as u32) };
        Some(History::after(first - 1).with_limit(limit))
    }

    /// A page has come that ends at `next`, and none behind it if `complete`; the log ended at `last`, 0 if that is not
    /// known. What was asked for and is not in it is gone, but for what lies behind the end of the log: a gateway may
    /// take its time until it stores what it has given, so that is asked for again.
    pub(crate) fn page_over(&mut self, next: u64, complete: bool, last: u64) {
        if !complete {
            self.stamps = self.stamps.split_off(&next.saturating_add(1));
            self.due = (!self.stamps.is_empty()).then(Instant::now);
            return;
        }
        self.tries += 1;
        let is_over = last == 0 || self.tries >= TRIES_MAX;
        self.stamps = if is_over { BTreeSet::new() } else { self.stamps.split_off(&last.max(next).saturating_add(1)) };
        self.due = (!self.stamps.is_empty()).then(|| Instant::now() + WAIT);
    }

    /// The gateway refuses: it is asked again.
    pub(crate) fn refused(&mut self) {
        self.due = (!self.stamps.is_empty()).then(|| Instant::now() + WAIT);
    }

    /// Whether the message at this position was asked for.
    pub(crate) fn wants(&self, stamp: u64) -> bool {
        self.stamps.contains(&stamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_missing_is_asked_for_page_by_page_after_a_while() {
        let mut recall = Recall::default();
        assert_eq!((recall.due(), recall.request(512)), (None, None));
        for stamp in [30, 10, 20] {
            recall.note(stamp);
        }
        assert_eq!(recall.request(512), None, "it is not time yet");
        tokio::time::advance(WAIT).await;
        assert_eq!(recall.request(0), None);
        tokio::time::advance(WAIT).await;
        assert_eq!(recall.request(512), Some(History::after(9).with_limit(PAGE_LEN)));
        assert!(recall.wants(20) && !recall.wants(15) && recall.request(512).is_none());
        recall.page_over(20, false, 40);
        assert_eq!(recall.request(512), Some(History::after(29).with_limit(1)));
        recall.refused();
        recall.note(40);
        assert_eq!(recall.request(512), None);
        tokio::time::advance(WAIT).await;
        assert_eq!(recall.request(7), Some(History::after(29).with_limit(7)));
        recall.page_over(30, true, 40);
        assert_eq!(recall.due(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_in_the_log_yet_is_asked_for_again_and_not_for_ever() {
        let mut recall = Recall::default();
        [10, 20].into_iter().for_each(|stamp| recall.note(stamp));
        for _ in 1..TRIES_MAX {
            tokio::time::advance(WAIT).await;
            assert!(recall.request(512).is_some());
            recall.page_over(10, true, 15);
            assert!(recall.wants(20) && !recall.wants(10));
        }
        recall.note(30);
        tokio::time::advance(WAIT).await;
        assert_eq!(recall.request(512), Some(History::after(19).with_limit(PAGE_LEN)), "another one has come");
        recall.page_over(20, true, 20);
        for _ in 1..TRIES_MAX {
            assert!(recall.wants(30));
            recall.page_over(20, true, 20);
        }
        assert_eq!((recall.wants(30), recall.due()), (false, None));
        recall.note(40);
        recall.page_over(20, true, 0);
        assert_eq!(recall.due(), None, "a gateway that says nothing of the end of the log");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let mut recall = Recall::default();
        (1..10_000).for_each(|stamp| recall.note(stamp));
        assert_eq!(recall.stamps.len(), STAMPS_MAX);
    }
}
