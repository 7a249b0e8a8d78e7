//! May this node serve, and what has to be asked of Redis next?

use crate::mesh_news::{LinkNews, LinkWord};
use std::sync::Arc;
use trunkline_router_core::membership::Renewal;
use trunkline_router_core::membership::{Fenced, Lease, Membership, NodeRecord, NodeState, Outage, Reach, View};

/// The least time between two incarnations that mend presence: each costs every session a write, and 100,000 of them
/// take as long.
const MEND_PAUSE_MS: u64 = 5_000;

/// What to ask of Redis for the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Renew the lease.
    Renew,
    /// Write the lease of the present incarnation again, which Redis has lost; renew it if it is there after all.
    Restore,
    /// Take a lease with a new incarnation, in place of that of the incarnation before, if Redis still has it.
    Acquire,
}

/// What a node knows about its lease and about the others. Times are milliseconds of [`crate::clock`].
///
/// Every method looks at the clock first, so a node that was paused is fenced before it learns anything else.
#[derive(Debug)]
pub struct Heart {
    own: Box<str>,
    lease_ms: u64,
    lease: Lease,
    membership: Membership,
    state: NodeState,
    /// How often that has changed.
    turns: u64,
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
    /// When the latest renewal that the node asked Redis for itself, and that worked, was sent; and the latest poll
    /// that counts.
    renewed_sent_ms: u64,
    polled_sent_ms: u64,
    /// When the latest renewal that worked was sent, by whatever way.
    held_sent_ms: u64,
    /// When the view was what Redis says, by whatever way.
    viewed_ms: u64,
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
            turns: 0,
            gone: false,
            torn: false,
            acquired_ms: 0,
            life: 0,
            renew_failing_ms: None,
            poll_failing_ms: None,
            polled_ms: None,
            renewed_sent_ms: 0,
            polled_sent_ms: 0,
            held_sent_ms: 0,
            viewed_ms: 0,
            meshed: false,
        }
    }

    /// What becomes of the view while nobody can be asked for it.
    pub(crate) fn set_outage(&mut self, outage: Outage) {
        self.membership.set_outage(outage);
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
        if !self.look(now_ms) || mend {
            Ask::Acquire
        } else if self.gone {
            Ask::Restore
        } else {
            Ask::Renew
        }
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
            (self.renewed_sent_ms, self.held_sent_ms) = (sent_ms, sent_ms);
            (self.polled_sent_ms, self.viewed_ms) = (sent_ms, sent_ms);
        }
        new
    }

    /// Redis said that another holds the name.
    pub(crate) fn refused(&mut self, now_ms: u64) {
        self.look(now_ms);
        self.renew_failing_ms = None;
        self.lease.lost(now_ms);
    }

    /// Redis answered a renewal that this node sent at `sent_ms`. Whether it has the lease again that it had lost, so
    /// that it may have lost more.
    pub(crate) fn renewed(&mut self, sent_ms: u64, now_ms: u64, renewal: Renewal) -> bool {
        self.look(now_ms);
        self.renew_failing_ms = None;
        if renewal == Renewal::Renewed {
            self.renewed_sent_ms = self.renewed_sent_ms.max(sent_ms);
        }
        self.held(sent_ms, now_ms, renewal)
    }

    /// Redis answered a renewal that this node asked a peer for at `sent_ms`; the answer as that of [`Heart::renewed`].
    pub(crate) fn renewed_for(&mut self, sent_ms: u64, now_ms: u64, renewal: Renewal) -> bool {
        self.look(now_ms);
        self.held(sent_ms, now_ms, renewal)
    }

    fn held(&mut self, sent_ms: u64, now_ms: u64, renewal: Renewal) -> bool {
        let was_gone = self.gone;
        match renewal {
            Renewal::Renewed => {
                self.gone = false;
                self.held_sent_ms = self.held_sent_ms.max(sent_ms);
                self.lease.renewed(sent_ms, self.lease_ms);
            }
            // Nobody holds the name, so nobody took over; how long the node may serve still follows from what it knew
            // before.
            Renewal::LostToNobody => self.gone = true,
            Renewal::LostToAnother => self.lease.lost(now_ms),
        }
        was_gone && renewal == Renewal::Renewed
    }

    /// A renewal or an acquisition failed: Redis does not work.
    pub(crate) fn renew_failed(&mut self, now_ms: u64) {
        self.look(now_ms);
        self.renew_failing_ms.get_or_insert(now_ms);
        self.lease.renew_failed(now_ms);
    }

    /// The nodes that have a lease, as asked for at `sent_ms`. Whether the view changed in what matters, as for
    /// [`Heart::poll_failed`] and the news of the mesh.
    ///
    /// What a node reads that cannot renew says nothing: a Redis that refuses writes forgets all leases in time, and
    /// nobody has died of it. Neither does what lacks the node itself while it may serve: Redis has lost data then.
    pub(crate) fn polled(&mut self, sent_ms: u64, now_ms: u64, records: Vec<NodeRecord>) -> bool {
        let serves = self.look(now_ms);
        self.poll_failing_ms = None;
        let incarnation = self.lease.incarnation();
        let has_own = records.iter().any(|record| *record.name == *self.own && record.incarnation == incarnation);
        if serves && (self.renew_failing_ms.is_some() || !has_own) {
            return self.membership.poll_failed(now_ms);
        }
        self.polled_ms = Some(now_ms);
        self.polled_sent_ms = self.polled_sent_ms.max(sent_ms);
        self.view_is_of(sent_ms);
        self.membership.polled(now_ms, records)
    }

    /// The nodes of a view that a peer had from Redis, as it was at `at_ms` or later. An older one than this node has
    /// says nothing.
    pub(crate) fn viewed(&mut self, at_ms: u64, now_ms: u64, records: Vec<NodeRecord>) -> bool {
        self.look(now_ms);
        let incarnation = self.lease.incarnation();
        let has_own = records.iter().any(|record| *record.name == *self.own && record.incarnation == incarnation);
        if at_ms <= self.viewed_ms || !has_own {
            return false;
        }
        self.polled_ms = Some(now_ms);
        self.view_is_of(at_ms);
        self.membership.polled(now_ms, records)
    }

    /// The view that this node has is what Redis gave to a peer at `at_ms` or later.
    pub(crate) fn view_holds(&mut self, at_ms: u64, now_ms: u64) {
        if self.look(now_ms) {
            self.view_is_of(at_ms);
        }
    }

    fn view_is_of(&mut self, at_ms: u64) {
        self.viewed_ms = self.viewed_ms.max(at_ms);
        self.lease.viewed(at_ms);
    }

    /// The nodes could not be asked for.
    pub(crate) fn poll_failed(&mut self, now_ms: u64) -> bool {
        self.look(now_ms);
        self.poll_failing_ms.get_or_insert(now_ms);
        self.membership.poll_failed(now_ms)
    }

    /// Peers have promised to keep this node in their views for a lease time, to a question of `sent_ms`; or nobody is
    /// there to take over.
    pub(crate) fn vouched(&mut self, sent_ms: u64, now_ms: u64) {
        if self.look(now_ms) {
            self.lease.vouched(sent_ms);
        }
    }

    /// See [`Membership::has_lease`].
    pub(crate) fn has_lease(&self, node: &str) -> bool {
        self.membership.has_lease(node)
    }

    /// See [`Membership::vouch`].
    pub(crate) fn vouch(&mut self, now_ms: u64, node: &str, life: u64, without: bool) -> bool {
        self.look(now_ms) && self.membership.vouch(now_ms, node, life, without)
    }

    /// See [`Membership::found_dead`].
    pub(crate) fn found_dead(&mut self, now_ms: u64, node: &str, life: u64, sent_ms: Option<u64>) -> bool {
        self.membership.found_dead(now_ms, node, life, sent_ms)
    }

    /// The names of members that stay although Redis has no lease of them, and since when; see
    /// [`Membership::held_back`].
    pub(crate) fn held_back(&self, now_ms: u64) -> Option<(Vec<String>, u64)> {
        let (held, since_ms) = self.membership.held_back(now_ms)?;
        Some((held.into_iter().map(|record| record.name.clone()).collect(), since_ms))
    }

    /// See [`Membership::told`].
    pub(crate) fn told(&self, now_ms: u64) -> (u64, Vec<NodeRecord>) {
        self.membership.told(now_ms)
    }

    /// Whether a node has called that had not begun when the view was what Redis says: it may have Redis and take over.
    pub(crate) fn hears_stranger(&self) -> bool {
        self.membership.hears_stranger(self.viewed_ms)
    }

    /// See [`Membership::oldest_dead_ms`].
    pub(crate) fn oldest_dead_ms(&self) -> Option<u64> {
        self.membership.oldest_dead_ms()
    }

    /// See [`Membership::dead_ms`].
    pub(crate) fn dead_ms(&self, node: &str) -> Option<u64> {
        self.membership.dead_ms(node)
    }

    /// The members whose process is known to have ended.
    pub fn dead(&self) -> Vec<String> {
        self.membership.dead().map(str::to_owned).collect()
    }

    /// The epoch the cluster agreed on for the view of this digest.
    pub(crate) fn set_epoch(&mut self, digest: u64, epoch: u64) {
        self.membership.set_epoch(digest, epoch);
    }

    /// What a shard knows of its links, see [`Membership::mesh_told`].
    pub(crate) fn mesh_told(&mut self, now_ms: u64, links: &[LinkNews]) -> bool {
        let told = links.iter().filter_map(|LinkNews { node, incarnation, word, .. }| match word {
            LinkWord::Heard => Some((&**node, *incarnation, true)),
            LinkWord::Lost => Some((&**node, *incarnation, false)),
            LinkWord::Silent => None,
        });
        let mut told = told.peekable();
        self.meshed |= told.peek().is_some();
        self.membership.mesh_told(now_ms, told)
    }

    /// Presence has lost a write, so it has to be written as a whole, under a new incarnation.
    pub(crate) fn presence_torn(&mut self) {
        self.torn = true;
    }

    /// Where the node is in its life.
    pub fn state(&self) -> NodeState {
        self.state
    }

    /// The next step of its life, told with the next renewal.
    pub(crate) fn set_state(&mut self, state: NodeState) {
        self.turns += u64::from(state != self.state);
        self.state = state;
    }

    /// The others had the node in another state than it was in.
    pub(crate) fn was_turned(&mut self) {
        self.turns += 1;
    }

    /// How often its state has changed.
    pub(crate) fn turns(&self) -> u64 {
        self.turns
    }

    /// The view now.
    pub fn view(&self) -> Arc<View> {
        self.membership.view()
    }

    /// Whether the member `node` is heard over the mesh.
    pub(crate) fn is_reachable(&self, node: &str) -> bool {
        self.membership.is_reachable(node)
    }

    /// The nodes that are known and that the mesh does not hear: name, life and address. Those that have ended are
    /// among them.
    pub(crate) fn unheard(&self) -> Vec<(String, u64, String)> {
        self.membership.unheard().map(|record| (record.name.clone(), record.life(), record.mesh.clone())).collect()
    }

    /// Active members that the mesh has not heard for a lease time: what this node's record says of them.
    pub(crate) fn silent(&self, now_ms: u64) -> Vec<Reach> {
        if self.meshed { self.membership.silent(now_ms, self.lease_ms) } else { Vec::new() }
    }

    /// The members with a link to this node, itself included; `None` before the mesh has told of any link.
    pub fn reachable(&self) -> Option<Vec<String>> {
        let view = self.membership.view();
        let names = view.members.iter().map(|member| &member.name);
        self.meshed.then(|| names.filter(|name| self.membership.is_reachable(name)).cloned().collect())
    }

    /// When the nodes were last heard of, from Redis or through a peer; `None` before the first time.
    pub fn polled_ms(&self) -> Option<u64> {
        self.polled_ms
    }

    /// Since when this node has had no word of its own from Redis that counts: neither could it renew nor read the
    /// nodes later.
    pub(crate) fn alone_since_ms(&self) -> u64 {
        self.renewed_sent_ms.min(self.polled_sent_ms)
    }

    /// When the latest renewal was sent that the node asked Redis for itself and that worked.
    pub fn renewed_sent_ms(&self) -> u64 {
        self.renewed_sent_ms
    }

    /// Whether Redis does not fail to renew.
    pub(crate) fn renews(&self) -> bool {
        self.renew_failing_ms.is_none()
    }

    /// When the latest renewal that worked was sent, by the node itself or by a peer for it.
    pub(crate) fn held_sent_ms(&self) -> u64 {
        self.held_sent_ms
    }

    /// When the view was what Redis says, as far as this node knows.
    pub(crate) fn viewed_ms(&self) -> u64 {
        self.viewed_ms
    }

    /// See [`Membership::wants_poll`].
    pub(crate) fn wants_poll(&self) -> bool {
        self.membership.wants_poll()
    }

    /// See [`Lease::serve_until_ms`].
    pub fn serve_until_ms(&self) -> u64 {
        self.lease.serve_until_ms()
    }

    /// Why the node must not serve, as of the last look.
    pub fn fenced(&self) -> Option<Fenced> {
        self.lease.fenced()
    }

    /// How long a lease lasts, milliseconds.
    pub(crate) fn lease_ms(&self) -> u64 {
        self.lease_ms
    }

    /// The incarnation last acquired.
    pub fn incarnation(&self) -> u64 {
        self.lease.incarnation()
    }

    /// The incarnation since which this node has not been fenced; 0 before the first. What others know of it counts for
    /// one life.
    pub fn life(&self) -> u64 {
        self.life
    }

    /// Since when Redis has been failing; `None` while it works.
    pub fn redis_failing_ms(&self) -> Option<u64> {
        self.renew_failing_ms.into_iter().chain(self.poll_failing_ms).min()
    }
}

#[cfg(test)]
mod tests;
