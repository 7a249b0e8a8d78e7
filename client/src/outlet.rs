//! The way of events to the application: a bounded queue and what happens when it is full.

use std::collections::VecDeque;
use std::future;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, sleep_until};

use crate::Event;

/// Events read ahead of a full queue at most, so that fates and PONGs behind them are heard. A shorter queue has as
/// many as it is long.
const AHEAD_LEN_MAX: usize = 256;

/// Payload bytes of those after which no more are read.
const AHEAD_BYTES_MAX: usize = 1024 * 1024;

/// Events held back beyond those: lost and regained connections are told whatever is read ahead.
const SPARE_LEN: usize = 8;

/// Four states: *open* (nothing is held back), *late* (events are held back and more are read ahead), *blocked* (as
/// many are held back as may be; the connection is not read, until the deadline at most) and *lossy* (further events
/// are dropped and counted, until what is held back has gone and the number has been told).
#[derive(Debug)]
pub(crate) struct Outlet {
    queue: mpsc::Sender<Event>,
    patience: Duration,
    ahead_len_max: usize,
    held: VecDeque<Event>,
    held_bytes: usize,
    /// When *blocked* ends; `None` in other states, and where patience has no end.
    deadline: Option<Instant>,
    lossy: bool,
    lost: u64,
}

impl Outlet {
    pub(crate) fn new(queue: mpsc::Sender<Event>, patience: Duration) -> Self {
        let ahead_len_max = queue.max_capacity().min(AHEAD_LEN_MAX);
        let held = VecDeque::new();
        Self { queue, patience, ahead_len_max, held, held_bytes: 0, deadline: None, lossy: false, lost: 0 }
    }

    /// How many events it holds beyond the queue, at most.
    pub(crate) fn len_max(&self) -> usize {
        self.ahead_len_max + SPARE_LEN
    }

    /// The connection should not be read.
    pub(crate) fn is_blocked(&self) -> bool {
        !self.lossy && self.is_full()
    }

    /// Nobody listens any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.queue.is_closed()
    }

    /// How many events can be passed on at once.
    pub(crate) fn room(&self) -> usize {
        if self.lossy || !self.held.is_empty() { 0 } else { self.queue.capacity() }
    }

    fn is_full(&self) -> bool {
        self.held.len() >= self.ahead_len_max || self.held_bytes >= AHEAD_BYTES_MAX
    }

    /// Passes an event on, now or when there is room.
    ///
    /// # Errors
    /// The event, if it was dropped.
    pub(crate) fn push(&mut self, event: Event) -> Result<(), Event> {
        self.lossy |= self.held.len() == self.len_max();
        if self.lossy {
            self.lost += 1;
            return Err(event);
        }
        let event = if self.held.is_empty() {
            match self.queue.try_send(event) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(event)) => event,
                // Nobody listens, so nobody can be told about a loss.
                Err(TrySendError::Closed(event)) => return Err(event),
            }
        } else {
            event
        };
        let was_full = self.is_full();
        self.held_bytes += payload_bytes(&event);
        self.held.push_back(event);
        if self.is_full() && !was_full {
            self.deadline = Instant::now().checked_add(self.patience);
        }
        Ok(())
    }

    /// Passes an event on that is not worth a place which another may need: only while it leaves half of the queue.
    pub(crate) fn push_if_idle(&mut self, event: Event) {
        let is_idle = self.held.is_empty() && !self.lossy && 2 * self.queue.capacity() > self.queue.max_capacity();
        if is_idle {
            // It was checked for room, and an application that has left misses nothing.
            drop(self.queue.try_send(event));
        }
    }

    /// Waits until something held back can go on, or its time is over; returns the events that were dropped. Never
    /// returns while there is nothing to do. Cancelling it loses nothing.
    pub(crate) async fn settle(&mut self) -> VecDeque<Event> {
        if self.held.is_empty() && self.lost == 0 {
            self.lossy = false;
            return future::pending().await;
        }
        let (blocked, deadline) = (self.is_blocked(), self.deadline);
        let overdue = async {
            match deadline {
                Some(deadline) if blocked => sleep_until(deadline).await,
                _ => future::pending().await,
            }
        };
        let permit = tokio::select! {
            biased;
            permit = self.queue.reserve() => permit,
            () = overdue => {
                self.lossy = true;
                self.deadline = None;
                return VecDeque::new();
            }
        };
        match (permit, self.held.pop_front()) {
            (Ok(permit), Some(event)) => {
                self.held_bytes -= payload_bytes(&event);
                permit.send(event);
            }
            (Ok(permit), None) => {
                permit.send(Event::Lost { count: std::mem::take(&mut self.lost) });
                self.lossy = false;
            }
            (Err(_nobody_listens), first) => {
                let dropped = first.into_iter().chain(self.held.drain(..)).collect();
                (self.held_bytes, self.lost, self.lossy) = (0, 0, false);
                return dropped;
            }
        }
        if !self.is_full() {
            self.deadline = None;
        }
        VecDeque::new()
    }

    /// Passes on what is held back and then `event`, the last, for as long as anybody listens.
    pub(crate) async fn finish(mut self, event: Event) {
        let lost = (self.lost > 0).then_some(Event::Lost { count: self.lost });
        for event in self.held.drain(..).chain(lost).chain([event]) {
            if self.queue.send(event).await.is_err() {
                return;
            }
        }
    }
}

fn payload_bytes(event: &Event) -> usize {
    match event {
        Event::Message(message) => message.body.len(),
        Event::GroupMessage(message) => message.body.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Message;

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
            assert!(!outlet.is_blocked());
            assert_eq!(outlet.push(event(id)), Ok(()));
        }
        assert!(outlet.is_blocked());
        for id in 1..=4 {
            assert_eq!(events.recv().await, Some(event(id)));
            if id <= 2 {
                assert!(outlet.settle().await.is_empty());
                assert!(!outlet.is_blocked());
            }
        }
        assert_eq!(outlet.push(event(5)), Ok(()));
        assert_eq!(events.recv().await, Some(event(5)));
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_deadline_events_are_dropped_and_their_number_is_told_first() {
        let (mut outlet, mut events) = outlet(1);
        for id in 1..=2 {
            assert_eq!(outlet.push(event(id)), Ok(()));
        }
        let began = Instant::now();
        assert!(outlet.is_blocked());
        assert!(outlet.settle().await.is_empty());
        assert_eq!(began.elapsed(), PATIENCE);
        // From here on the connection is read, and what it brings has no place.
        assert!(!outlet.is_blocked());
        for id in 3..=5 {
            assert_eq!(outlet.push(event(id)), Err(event(id)));
        }
        // What was held back is kept and goes before the number.
        for id in 1..=2 {
            assert_eq!(events.recv().await, Some(event(id)));
            assert!(outlet.settle().await.is_empty());
        }
        assert_eq!(events.recv().await, Some(Event::Lost { count: 3 }));
        assert_eq!(outlet.push(event(6)), Ok(()));
        assert_eq!(events.recv().await, Some(event(6)));
    }

    #[tokio::test(start_paused = true)]
    async fn patience_without_an_end_waits_and_loses_nothing() {
        let (queue, mut events) = mpsc::channel(1);
        let mut outlet = Outlet::new(queue, Duration::MAX);
        for id in 1..=2 {
            assert_eq!(outlet.push(event(id)), Ok(()));
        }
        assert!(outlet.is_blocked());
        let year = Duration::from_secs(365 * 24 * 3_600);
        assert!(tokio::time::timeout(year, outlet.settle()).await.is_err());
        for id in 1..=2 {
            assert_eq!(events.recv().await, Some(event(id)));
            if id == 1 {
                assert!(outlet.settle().await.is_empty());
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_back_is_bounded_in_events_and_in_bytes() {
        for len in [1, 100, 1_000] {
            let (mut outlet, _events) = outlet(len);
            let ahead = (0..10_000).take_while(|&id| !outlet.is_blocked() && outlet.push(event(id)).is_ok()).count();
            assert_eq!(ahead, len + len.min(AHEAD_LEN_MAX));
            // What does not come from reading has some room beyond.
            let beyond = (0..100).filter(|&id| outlet.push(event(id)).is_ok()).count();
            assert_eq!(beyond, SPARE_LEN);
            assert!(!outlet.is_blocked(), "what is lost anyway is read");
        }
        let (mut outlet, _events) = outlet(100);
        let body = vec![0; 100_000].into();
        let message = Event::Message(Message { from: 2, id: 1, stamp: 1, body, flags: 0 });
        let ahead = (0..10_000).take_while(|_| !outlet.is_blocked() && outlet.push(message.clone()).is_ok()).count();
        assert_eq!(ahead, 100 + AHEAD_BYTES_MAX.div_ceil(100_000));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_told_by_the_way_never_takes_the_last_half_of_the_queue() {
        let (mut outlet, mut events) = outlet(4);
        for id in 1..=100 {
            outlet.push_if_idle(event(id));
        }
        for id in 101..=102 {
            assert_eq!(outlet.push(event(id)), Ok(()));
        }
        let mut told = Vec::new();
        while let Ok(Event::ServerError { id, .. }) = events.try_recv() {
            told.push(id);
        }
        assert_eq!(told, [1, 2, 101, 102]);
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
        let (mut outlet, mut events) = outlet(2);
        for id in 1..=4 {
            assert_eq!(outlet.push(event(id)), Ok(()));
        }
        assert!(outlet.settle().await.is_empty());
        assert_eq!(outlet.push(event(5)), Err(event(5)));
        let finish = tokio::spawn(outlet.finish(event(9)));
        for id in [1, 2, 3, 4] {
            assert_eq!(events.recv().await, Some(event(id)));
        }
        assert_eq!(events.recv().await, Some(Event::Lost { count: 1 }));
        assert_eq!(events.recv().await, Some(event(9)));
        assert_eq!(events.recv().await, None);
        finish.await.expect("finished");
    }
}
