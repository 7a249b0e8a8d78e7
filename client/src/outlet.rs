//! The way of events to the application: a bounded queue and what happens when it is full.

use std::collections::VecDeque;
use std::future;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, sleep_until};

use crate::Event;

/// Events held back when the queue is full. The connection is not read while one is, so it takes a message and the few
/// events of lost and regained connections.
const BACKLOG_LEN_MAX: usize = 8;

/// Three states: *open* (backlog empty, nothing lost), *blocked* (events wait in the backlog, until the deadline at most) and
/// *lossy* (events are dropped and counted until the queue has room).
#[derive(Debug)]
pub(crate) struct Outlet {
    queue: mpsc::Sender<Event>,
    patience: Duration,
    backlog: VecDeque<Event>,
    deadline: Instant,
    lost: u64,
}

impl Outlet {
    pub(crate) fn new(queue: mpsc::Sender<Event>, patience: Duration) -> Self {
        Self { queue, patience, backlog: VecDeque::with_capacity(BACKLOG_LEN_MAX), deadline: Instant::now(), lost: 0 }
    }

    /// Events wait for room: the connection should not be read.
    pub(crate) fn is_blocked(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Passes an event on, now or when there is room.
    ///
    /// # Errors
    /// The event, if it was dropped.
    pub(crate) fn push(&mut self, event: Event) -> Result<(), Event> {
        if self.is_blocked() {
            if self.backlog.len() == BACKLOG_LEN_MAX {
                self.lost += 1;
                return Err(event);
            }
            self.backlog.push_back(event);
            return Ok(());
        }
        if self.lost > 0 {
            if self.queue.try_send(Event::Lost { count: self.lost }).is_err() {
                self.lost += 1;
                return Err(event);
            }
            self.lost = 0;
        }
        match self.queue.try_send(event) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(event)) => {
                self.deadline = Instant::now() + self.patience;
                self.backlog.push_back(event);
                Ok(())
            }
            // Nobody listens, so nobody can be told about a loss.
            Err(TrySendError::Closed(event)) => Err(event),
        }
    }

    /// Waits until something held back can go on, or its time is over; returns the events that were dropped. Never returns
    /// while there is nothing to do. Cancelling it loses nothing.
    pub(crate) async fn settle(&mut self) -> VecDeque<Event> {
        if !self.is_blocked() && self.lost == 0 {
            return future::pending().await;
        }
        let blocked = self.is_blocked();
        let permit = tokio::select! {
            biased;
            permit = self.queue.reserve() => permit,
            () = sleep_until(self.deadline), if blocked => {
                self.lost += self.backlog.len() as u64;
                return std::mem::take(&mut self.backlog);
            }
        };
        match permit {
            Ok(permit) if self.lost > 0 => {
                let count = std::mem::take(&mut self.lost);
                permit.send(Event::Lost { count });
            }
            Ok(permit) => {
                if let Some(event) = self.backlog.pop_front() {
                    permit.send(event);
                }
            }
            Err(_nobody_listens) => {
                self.lost = 0;
                return std::mem::take(&mut self.backlog);
            }
        }
        VecDeque::new()
    }

    /// Passes on what is held back and then `event`, the last, for as long as anybody listens.
    pub(crate) async fn finish(mut self, event: Event) {
        let lost = (self.lost > 0).then_some(Event::Lost { count: self.lost });
        for event in lost.into_iter().chain(self.backlog.drain(..)).chain([event]) {
            if self.queue.send(event).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(1);

    fn event(id: u64) -> Event {
        Event::ServerError { code: 14, text: String::new(), id, peer: 0 }
    }

    fn outlet(len: usize) -> (Outlet, mpsc::Receiver<Event>) {
        let (queue, events) = mpsc::channel(len);
        (Outlet::new(queue, PATIENCE), events)
    }

    #[tokio::test(start_paused = true)]
    async fn order_is_kept_when_the_application_is_late_but_in_time() {
        let (mut outlet, mut events) = outlet(2);
        for id in 1..=4 {
            assert_eq!(outlet.push(event(id)), Ok(()));
        }
        assert!(outlet.is_blocked());
        for id in 1..=4 {
            assert_eq!(events.recv().await, Some(event(id)));
            if outlet.is_blocked() {
                assert!(outlet.settle().await.is_empty());
            }
        }
        assert!(!outlet.is_blocked());
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_deadline_events_are_dropped_and_their_number_is_told_first() {
        let (mut outlet, mut events) = outlet(1);
        for id in 1..=3 {
            assert_eq!(outlet.push(event(id)), Ok(()));
        }
        let began = Instant::now();
        let dropped = outlet.settle().await;
        assert_eq!(began.elapsed(), PATIENCE);
        assert_eq!(dropped, [event(2), event(3)]);
        // From here on nothing waits: the queue is known to be stuck.
        assert_eq!(outlet.push(event(4)), Err(event(4)));

        assert_eq!(events.recv().await, Some(event(1)));
        assert!(outlet.settle().await.is_empty());
        assert_eq!(events.recv().await, Some(Event::Lost { count: 3 }));
        assert_eq!(outlet.push(event(5)), Ok(()));
        assert_eq!(events.recv().await, Some(event(5)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_backlog_is_bounded() {
        let (mut outlet, _events) = outlet(1);
        let kept = (0..100).filter(|&id| outlet.push(event(id)).is_ok()).count();
        assert_eq!(kept, 1 + BACKLOG_LEN_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_waits_for_an_application_that_has_left() {
        let (mut outlet, events) = outlet(1);
        assert_eq!(outlet.push(event(1)), Ok(()));
        assert_eq!(outlet.push(event(2)), Ok(()));
        drop(events);
        assert_eq!(outlet.settle().await, [event(2)]);
        assert_eq!(outlet.push(event(3)), Err(event(3)));
        outlet.finish(event(4)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_event_comes_after_everything_held_back() {
        let (mut outlet, mut events) = outlet(1);
        for id in 1..=3 {
            assert_eq!(outlet.push(event(id)), Ok(()));
        }
        let finish = tokio::spawn(outlet.finish(event(9)));
        for id in [1, 2, 3, 9] {
            assert_eq!(events.recv().await, Some(event(id)));
        }
        assert_eq!(events.recv().await, None);
        finish.await.expect("finished");
    }
}
