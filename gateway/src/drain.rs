//! Draining a node: out of the ring first, so that nobody is sent here who would have to go again; then its sessions
//! are moved, at a pace.
//!
//! [`DrainSwitch`] holds what is wanted: HTTP and signals set it, and everybody may read it. [`Drainer`] carries it
//! out. A drain asked for over HTTP leaves the node up without sessions until it is called off or the process is ended;
//! one that a signal asked for ends the shards.

use crate::clock::now_ms;
use crate::cluster::Place;
use crate::control::{Control, ControlPort};
use crate::metrics::ShardStats;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Pause before a request is given to a shard again whose queue was full.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// What a node is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Serve its users.
    Serve,
    /// Move its sessions to other nodes, and stay up.
    Drain,
    /// Move its sessions to other nodes, and end.
    End,
}

/// A drain cannot be called off any more: the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending;

/// How far a drain is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Sessions ended by it so far.
    pub moved: u64,
    /// When every session has had its BYE, milliseconds of [`crate::clock`]; `None` while the node is leaving the ring.
    pub deadline_ms: Option<u64>,
}

/// What the node is to do, and how far that is.
#[derive(Debug)]
pub struct DrainSwitch {
    wanted: watch::Sender<Wanted>,
    begun: Mutex<Begun>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Begun {
    /// Sessions ended by drains before this one.
    moved_before: u64,
    deadline_ms: Option<u64>,
}

impl Default for DrainSwitch {
    fn default() -> Self {
        DrainSwitch { wanted: watch::channel(Wanted::Serve).0, begun: Mutex::default() }
    }
}

impl DrainSwitch {
    /// What is wanted now.
    pub fn wanted(&self) -> Wanted {
        *self.wanted.borrow()
    }

    /// Waits until something else is wanted than to serve.
    pub async fn is_asked(&self) {
        // It fails only without the sender, which is held here.
        let _ = self.wanted.subscribe().wait_for(|wanted| *wanted != Wanted::Serve).await;
    }

    /// Asks for a drain that leaves the node up. Without effect on a node that drains or ends already.
    pub fn drain(&self, stats: &[Arc<ShardStats>]) {
        self.wanted.send_if_modified(|wanted| {
            let begins = *wanted == Wanted::Serve;
            if begins {
                *wanted = Wanted::Drain;
                self.begin(stats);
            }
            begins
        });
    }

    /// Asks for a drain that ends the node.
    pub fn end(&self, stats: &[Arc<ShardStats>]) {
        self.wanted.send_modify(|wanted| {
            if *wanted == Wanted::Serve {
                self.begin(stats);
            }
            *wanted = Wanted::End;
        });
    }

    /// Calls a drain off. Without effect on a node that serves.
    ///
    /// # Errors
    /// When the node ends.
    pub fn call_off(&self) -> Result<(), Ending> {
        let mut outcome = Ok(());
        self.wanted.send_if_modified(|wanted| match *wanted {
            Wanted::Serve => false,
            Wanted::Drain => {
                *wanted = Wanted::Serve;
                true
            }
            Wanted::End => {
                outcome = Err(Ending);
                false
            }
        });
        outcome
    }

    /// How far the drain is; `None` while the node is to serve.
    pub fn progress(&self, stats: &[Arc<ShardStats>]) -> Option<Progress> {
        if self.wanted() == Wanted::Serve {
            return None;
        }
        let Begun { moved_before, deadline_ms } = *self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Progress { moved: moved(stats).saturating_sub(moved_before), deadline_ms })
    }

    fn begin(&self, stats: &[Arc<ShardStats>]) {
        let begun = Begun { moved_before: moved(stats), deadline_ms: None };
        *self.begun.lock().unwrap_or_else(PoisonError::into_inner) = begun;
    }

    fn set_deadline(&self, deadline_ms: u64) {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).deadline_ms = Some(deadline_ms);
    }
}

/// Sessions ended by drains.
fn moved(stats: &[Arc<ShardStats>]) -> u64 {
    stats.iter().map(|stats| stats.sessions_drained.get()).sum()
}

/// Carries out what a [`DrainSwitch`] says.
#[derive(Debug)]
pub struct Drainer {
    /// What is wanted.
    pub switch: Arc<DrainSwitch>,
    /// The node's place in the ring; `None` for a node that is alone.
    pub place: Option<Place>,
    /// The shards.
    pub ports: Vec<ControlPort>,
    /// Over how long the shards spread the ends of their sessions, milliseconds; a reload may change it.
    pub drain_ms: Arc<AtomicU64>,
}

impl Drainer {
    /// Runs for ever. A change of what is wanted takes the place of what is being done.
    pub async fn run(self) -> Infallible {
        let mut wanted = self.switch.wanted.subscribe();
        // What is done, once it is done.
        let mut standing = Some(Wanted::Serve);
        loop {
            let now = *wanted.borrow_and_update();
            if standing != Some(now) {
                standing = None;
                tokio::select! {
                    () = self.carry_out(now) => standing = Some(now),
                    _ = wanted.changed() => continue,
                }
            }
            // It fails only without the sender, which is held here.
            let _ = wanted.changed().await;
        }
    }

    async fn carry_out(&self, wanted: Wanted) {
        match wanted {
            Wanted::Serve => {
                tracing::info!("the drain is called off: this node serves again");
                self.tell_all(|| Control::Resume).await;
                if let Some(place) = &self.place {
                    place.take().await;
                }
            }
            Wanted::Drain | Wanted::End => {
                let ends = wanted == Wanted::End;
                let drain_ms = self.drain_ms.load(Ordering::Relaxed);
                tracing::info!(ends, "draining over {} s", drain_ms / 1_000);
                if let Some(place) = &self.place {
                    place.give_up().await;
                }
                self.switch.set_deadline(now_ms() + drain_ms);
                self.tell_all(|| Control::Drain { ends }).await;
            }
        }
    }

    /// A full queue empties with the shard's next turn, and a shard that has no turns any more ends the process
    /// otherwise.
    async fn tell_all(&self, control: impl Fn() -> Control) {
        for port in &self.ports {
            while port.send(control()).is_err() {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::CONTROL_QUEUE_LEN;
    use crate::waker::Waker;
    use tokio::task::yield_now;

    struct Fixture {
        switch: Arc<DrainSwitch>,
        ports: Vec<ControlPort>,
        stats: Vec<Arc<ShardStats>>,
    }

    /// A node that is alone, with a drainer that ends with the test.
    fn node(shards: usize) -> Fixture {
        let ports: Vec<ControlPort> = (0..shards).map(|_| ControlPort::new(Arc::new(Waker::new().unwrap()))).collect();
        let switch = Arc::new(DrainSwitch::default());
        let drainer =
            Drainer { switch: switch.clone(), place: None, ports: ports.clone(), drain_ms: Arc::new(2_000.into()) };
        tokio::spawn(drainer.run());
        Fixture { switch, ports, stats: (0..shards).map(|_| Arc::default()).collect() }
    }

    /// What each shard has been told since the last time; the same to all.
    async fn told(node: &Fixture) -> Vec<String> {
        // The drainer waits for nothing but what is wanted, so it is done when it had its turns.
        for _ in 0..8 {
            yield_now().await;
        }
        let take = |port: &ControlPort| std::iter::from_fn(|| port.take()).map(|told| format!("{told:?}")).collect();
        let all: Vec<Vec<String>> = node.ports.iter().map(take).collect();
        assert!(all.iter().all(|one| *one == all[0]), "{all:?}");
        all[0].clone()
    }

    #[tokio::test]
    async fn every_shard_is_told_to_drain_and_to_resume() {
        let node = node(3);
        assert_eq!(told(&node).await, [""; 0]);
        node.switch.drain(&node.stats);
        assert_eq!(told(&node).await, ["Drain { ends: false }"]);
        node.switch.drain(&node.stats);
        assert_eq!(told(&node).await, [""; 0], "it drains already");
        assert_eq!(node.switch.call_off(), Ok(()));
        assert_eq!(told(&node).await, ["Resume"]);
        assert_eq!(node.switch.call_off(), Ok(()), "there is nothing to call off");
        assert_eq!(told(&node).await, [""; 0]);
    }

    #[tokio::test]
    async fn an_end_is_for_good() {
        let node = node(2);
        node.switch.drain(&node.stats);
        told(&node).await;
        node.switch.end(&node.stats);
        assert_eq!(told(&node).await, ["Drain { ends: true }"]);
        assert_eq!(node.switch.call_off(), Err(Ending));
        node.switch.drain(&node.stats);
        assert_eq!((told(&node).await, node.switch.wanted()), (Vec::new(), Wanted::End));
    }

    #[tokio::test]
    async fn progress_counts_from_the_beginning_of_this_drain() {
        let node = node(2);
        node.stats[0].sessions_drained.set(7);
        assert_eq!(node.switch.progress(&node.stats), None);
        node.switch.drain(&node.stats);
        assert_eq!(node.switch.progress(&node.stats), Some(Progress { moved: 0, deadline_ms: None }));
        told(&node).await;
        node.stats[0].sessions_drained.add(3);
        node.stats[1].sessions_drained.add(2);
        let now_ms = now_ms();
        let progress = node.switch.progress(&node.stats).unwrap();
        assert_eq!(progress.moved, 5);
        assert!(progress.deadline_ms.is_some_and(|at_ms| (now_ms..=now_ms + 2_000).contains(&at_ms)), "{progress:?}");
        // An end goes on with what a drain began.
        node.switch.end(&node.stats);
        assert_eq!(node.switch.progress(&node.stats).map(|progress| progress.moved), Some(5));
    }

    #[tokio::test]
    async fn a_change_of_mind_is_followed_even_while_a_shard_is_deaf() {
        let node = node(1);
        let port = &node.ports[0];
        while port.send(Control::Drain { ends: false }).is_ok() {}
        node.switch.drain(&node.stats);
        tokio::time::sleep(2 * RETRY_PAUSE).await;
        assert_eq!(node.switch.call_off(), Ok(()));
        tokio::time::sleep(2 * RETRY_PAUSE).await;
        assert_eq!(std::iter::from_fn(|| port.take()).count(), CONTROL_QUEUE_LEN);
        tokio::time::sleep(4 * RETRY_PAUSE).await;
        // It may not have heard of the drain, and is told all the same.
        assert_eq!(told(&node).await, ["Resume"]);
    }
}
