//! Whether the node may become active, by the records of all nodes.

use super::{Answer, Task};
use crate::clock::now_ms;
use crate::membership::admission::{Admission, admission};
use std::time::Instant;
use tokio::sync::oneshot;
use tokio::time::timeout;
use trunkline_router::membership::{NodeRecord, NodeState};
use trunkline_router::redis::PlaneError;

impl Task {
    /// Answers `done` when the node is let in; at once, if it has been.
    pub(super) fn ask_admission(&mut self, done: oneshot::Sender<()>) {
        if self.admitted {
            // Nobody waits any more if the drain is wanted again.
            let _ = done.send(());
            return;
        }
        // It may have drained before it was let in, and only those that join are dialed.
        if self.agent.heart().state() != NodeState::Joining {
            self.agent.set_state(now_ms(), NodeState::Joining);
        }
        self.asks_admission = Some(done);
        self.agent.poll(now_ms());
    }

    /// Lets the node in if the records of all nodes say so.
    pub(super) fn judge_admission(&mut self, records: &[NodeRecord]) {
        if self.asks_admission.is_none() {
            return;
        }
        let now = Instant::now();
        let admission = match admission(&self.agent.record(), records) {
            Admission::Open => self.ghosts(records),
            other => other,
        };
        let why = match admission {
            Admission::Open => {
                self.admitted = true;
                self.waits = None;
                if let Some(done) = self.asks_admission.take() {
                    let _ = done.send(());
                }
                return;
            }
            Admission::Waits(why) => {
                if self.patience.is_due("waits", now) {
                    tracing::info!("{why}");
                }
                why
            }
            Admission::Unreachable(why) | Admission::NoPlaces(why) => {
                if self.patience.is_due("unreachable", now) {
                    tracing::error!("{why}");
                }
                why
            }
        };
        self.waits = Some(why);
    }

    /// Lets a lease time pass before this node is anybody's home if nodes were here of which Redis has no lease: they
    /// may not reach Redis and serve on, until they learn that this process has begun. They are called at until then.
    fn ghosts(&mut self, records: &[NodeRecord]) -> Admission {
        if !self.listed {
            if !std::mem::replace(&mut self.listing, true) {
                let (plane, round_trip_max) = (self.plane.clone(), self.round_trip_max);
                self.answers.spawn(async move {
                    let late = PlaneError::TimedOut { after: round_trip_max };
                    Answer::Listed(timeout(round_trip_max, plane.listed()).await.unwrap_or(Err(late)))
                });
            }
            return Admission::Waits("asking Redis which nodes were here".to_owned());
        }
        let own = self.agent.name();
        if records.iter().any(|record| record.name != own && record.state == NodeState::Active) {
            // Nobody serves without Redis whom those that have it, and have dialed this node, do not vouch for.
            return Admission::Open;
        }
        self.agent.waits_for_elders(now_ms()).map_or(Admission::Open, Admission::Waits)
    }
}
