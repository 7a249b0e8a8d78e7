//! May this node serve, and what has to be asked of Redis next?

use std::sync::Arc;
use trunkline_router::membership::{Fenced, Lease, Membership, NodeRecord, NodeState, View};
use trunkline_router::redis::Renewal;

/// The least time between two incarnations that mend presence: each costs every session a write, and 100,000 of them take as long.
const MEND_PAUSE_MS: u64 = 5_000;

/// What to ask of Redis for the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Renew the lease.
    Renew,
    /// Take a lease with a new incarnation, in place of that of the incarnation before, if Redis still has it.
    Acquire,
}

/// What a node knows about its lease and about the others. Times are milliseconds of [`crate::clock`].
///
/// Every method looks at the clock first, so a node that was paused is fenced before it learns anything else.
#[derive(Debug)]
pub(crate) struct Heart {
    own: Box<str>,
    lease_ms: u64,
    lease: Lease,
    membership: Membership,
    state: NodeState,
    /// Redis has no lease of this name: it lost its data, or the lease ran out there.
    gone: bool,
    /// What presence holds is not whole, and only a new incarnation mends that.
    torn: bool,
    acquired_ms: u64,
    /// The incarnation since which it has not been fenced.
    life: u64,
    renew_failing_ms: Option<u64>,
    poll_failing_ms: Option<u64>,
    polled_ms: Option<u64>,
    /// The mesh has told of a link, so what it has not told of is not there.
    meshed: bool,
}

impl Heart {
    /// The heart of the node `own`, which has no lease yet and is joining; leases are of `lease_ms`.
    pub(crate) fn new(own: &str, lease_ms: u64) -> Self {
        Heart {
            own: own.into(),
            lease_ms,
            lease: Lease::new(),
            membership: Membership::new(Some(own), lease_ms),
            state: NodeState::Joining,
            gone: false,
            torn: false,
            acquired_ms: 0,
            life: 0,
            renew_failing_ms: None,
            poll_failing_ms: None,
            polled_ms: None,
            meshed: false,
        }
    }

    /// Lets time pass. Whether the node may serve.
    pub(crate) fn look(&mut self, now_ms: u64) -> bool {
        self.membership.tick(now_ms);
        self.lease.may_serve(now_ms)
    }

    /// What to ask next.
    pub(crate) fn ask(&mut self, now_ms: u64) -> Ask {
        // Until Redis works there is nothing to mend.
        let mend =
            self.torn && self.redis_failing_ms().is_none() && now_ms >= self.acquired_ms.saturating_add(MEND_PAUSE_MS);
        if !self.look(now_ms) || self.gone || mend { Ask::Acquire } else { Ask::Renew }
    }

    /// Redis granted a lease to a request sent at `sent_ms`. Whether it is one of a new incarnation.
    pub(crate) fn acquired(&mut self, sent_ms: u64, now_ms: u64, incarnation: u64) -> bool {
        let fenced = !self.look(now_ms);
        self.renew_failing_ms = None;
        let new = self.lease.acquired(sent_ms, incarnation, self.lease_ms);
        if new {
            if fenced {
                self.life = incarnation;
            }
            (self.gone, self.torn, self.acquired_ms) = (false, false, now_ms);
        }
        new
    }

    /// Redis said that another holds the name.
    pub(crate) fn refused(&mut self, now_ms: u64) {
        self.look(now_ms);
        self.renew_failing_ms = None;
        self.lease.lost(now_ms);
    }

    /// Redis answered a renewal sent at `sent_ms`.
    pub(crate) fn renewed(&mut self, sent_ms: u64, now_ms: u64, renewal: Renewal) {
        self.look(now_ms);
        self.renew_failing_ms = None;
        match renewal {
            Renewal::Renewed => self.lease.renewed(sent_ms, self.lease_ms),
            // Nobody holds the name, so nobody took over; how long the node may serve still follows from what it knew before.
            Renewal::LostToNobody => self.gone = true,
            Renewal::LostToAnother => self.lease.lost(now_ms),
        }
    }

    /// A renewal or an acquisition failed: Redis does not work.
    pub(crate) fn renew_failed(&mut self, now_ms: u64) {
        self.look(now_ms);
        self.renew_failing_ms.get_or_insert(now_ms);
        self.lease.renew_failed(now_ms);
    }

    /// The nodes that have a lease. Whether the view changed in what matters, as for [`Heart::poll_failed`] and the news of the mesh.
    pub(crate) fn polled(&mut self, now_ms: u64, records: Vec<NodeRecord>) -> bool {
        self.look(now_ms);
        self.poll_failing_ms = None;
        self.polled_ms = Some(now_ms);
        let changed = self.membership.polled(now_ms, records);
        let alone = self.membership.view().members.iter().all(|member| *member.name == *self.own);
        self.lease.set_alone(now_ms, alone);
        changed
    }

    /// The nodes could not be asked for.
    pub(crate) fn poll_failed(&mut self, now_ms: u64) -> bool {
        self.look(now_ms);
        self.poll_failing_ms.get_or_insert(now_ms);
        self.membership.poll_failed(now_ms)
    }

    /// The epoch the cluster agreed on for the view of this digest.
    pub(crate) fn set_epoch(&mut self, digest: u64, epoch: u64) {
        self.membership.set_epoch(digest, epoch);
    }

    /// See [`Membership::mesh_heard`].
    pub(crate) fn mesh_heard(&mut self, now_ms: u64, node: &str, incarnation: u64) -> bool {
        self.meshed = true;
        self.membership.mesh_heard(now_ms, node, incarnation)
    }

    /// See [`Membership::mesh_lost`].
    pub(crate) fn mesh_lost(&mut self, now_ms: u64, node: &str, incarnation: u64) -> bool {
        self.meshed = true;
        self.membership.mesh_lost(now_ms, node, incarnation)
    }

    /// See [`Lease::peers_confirmed`]. Without effect for another incarnation than the present one.
    pub(crate) fn peers_confirmed(&mut self, now_ms: u64, incarnation: u64) {
        if incarnation == self.lease.incarnation() {
            self.lease.peers_confirmed(now_ms);
        }
    }

    /// Presence has lost a write, so it has to be written as a whole, under a new incarnation.
    pub(crate) fn presence_torn(&mut self) {
        self.torn = true;
    }

    /// Where the node is in its life.
    pub(crate) fn state(&self) -> NodeState {
        self.state
    }

    /// The next step of its life, told with the next renewal.
    pub(crate) fn set_state(&mut self, state: NodeState) {
        self.state = state;
    }

    /// The view now.
    pub(crate) fn view(&self) -> Arc<View> {
        self.membership.view()
    }

    /// The members with a link to this node, itself included; `None` before the mesh has told of any link.
    pub(crate) fn reachable(&self) -> Option<Vec<String>> {
        let view = self.membership.view();
        let names = view.members.iter().map(|member| &member.name);
        self.meshed.then(|| names.filter(|name| self.membership.is_reachable(name)).cloned().collect())
    }

    /// When Redis last gave the nodes; `None` before the first time.
    pub(crate) fn polled_ms(&self) -> Option<u64> {
        self.polled_ms
    }

    /// See [`Membership::wants_poll`].
    pub(crate) fn wants_poll(&self) -> bool {
        self.membership.wants_poll()
    }

    /// See [`Lease::serve_until_ms`].
    pub(crate) fn serve_until_ms(&self) -> u64 {
        self.lease.serve_until_ms()
    }

    /// Why the node must not serve, as of the last look.
    pub(crate) fn fenced(&self) -> Option<Fenced> {
        self.lease.fenced()
    }

    /// The incarnation last acquired.
    pub(crate) fn incarnation(&self) -> u64 {
        self.lease.incarnation()
    }

    /// The incarnation since which this node has not been fenced; 0 before the first. What others know of it counts for one life.
    pub(crate) fn life(&self) -> u64 {
        self.life
    }

    /// Since when Redis has been failing; `None` while it works.
    pub(crate) fn redis_failing_ms(&self) -> Option<u64> {
        self.renew_failing_ms.into_iter().chain(self.poll_failing_ms).min()
    }
}

#[cfg(test)]
mod tests;
