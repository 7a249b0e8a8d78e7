//! From polls of Redis and news of the mesh to views.

use super::node_state::NodeState;
use super::record::NodeRecord;
use super::seen::Seen;
use super::view::{self, View};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// How long a name is remembered after it was last heard of, in milliseconds: as long as the longest lease.
const FORGET_MS: u64 = 3_600_000;

/// One node's picture of the cluster. The rules:
///
/// - **Redis answers** (the last good poll is not older than the lease time): it is the authority. Who has no lease is out at
///   once; who has one is in, even when its mesh is silent, and is then marked unreachable.
/// - **Redis does not answer**: the last view stays. Who has been lost by the mesh for a lease time is out, and is in again
///   when heard with an incarnation that is not lower.
/// - **Redis forgot**: a poll that lacks this node itself, or is empty while the view was not, means that Redis came back
///   without its data (or that this node is fenced anyway). Members that are missing in such a poll stay for one lease time
///   if the mesh has not lost them, so that they can write their leases again before the ring changes.
/// - A record with a lower incarnation than one seen before under that name is old data, and is ignored; unless polls find it for longer than
///   old data can last.
/// - A node that the ring cannot hold beside the others is left out of it, the one with the highest incarnation first; so are active
///   nodes that cannot speak with most of the others, since a home has to be reached by all.
#[derive(Debug)]
pub struct Membership {
    own: Option<Box<str>>,
    lease_ms: u64,
    view: Arc<View>,
    known: BTreeMap<Box<str>, Known>,
    /// The latest incarnation of each name.
    seen: Seen,
    links: HashMap<Box<str>, Link>,
    good_poll_ms: Option<u64>,
    /// When Redis was first found to have forgotten.
    forgot_ms: Option<u64>,
    wants_poll: bool,
}

/// A node that the last poll gave, or that is kept from the one before.
#[derive(Debug)]
struct Known {
    record: NodeRecord,
    /// Not in the last poll; kept because Redis seems to have lost its data.
    forgotten: bool,
}

/// What the mesh last said about a node.
#[derive(Debug, Clone, Copy)]
struct Link {
    incarnation: u64,
    lost_ms: Option<u64>,
}

impl Membership {
    /// The picture of the node called `own` (`None` for a process that only watches), with leases of `lease_ms`.
    #[must_use]
    pub fn new(own: Option<&str>, lease_ms: u64) -> Self {
        Membership {
            own: own.map(Into::into),
            lease_ms,
            view: Arc::new(View::empty()),
            known: BTreeMap::new(),
            seen: Seen::default(),
            links: HashMap::new(),
            good_poll_ms: None,
            forgot_ms: None,
            wants_poll: true,
        }
    }

    /// The view now.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view)
    }

    /// Whether Redis should be polled at once and not at the next regular time.
    #[must_use]
    pub fn wants_poll(&self) -> bool {
        self.wants_poll
    }

    /// Whether Redis has not answered for longer than the lease time, so that the mesh decides.
    #[must_use]
    pub fn is_redis_out(&self, now_ms: u64) -> bool {
        self.good_poll_ms.is_some_and(|at_ms| now_ms.saturating_sub(at_ms) > self.lease_ms)
    }

    /// Whether `name` is this node, or is a member that the mesh has heard in its present incarnation and not lost since.
    #[must_use]
    pub fn is_reachable(&self, name: &str) -> bool {
        if self.own.as_deref() == Some(name) {
            return true;
        }
        match (self.view.member(name), self.links.get(name)) {
            (Some(member), Some(link)) => link.lost_ms.is_none() && link.incarnation >= member.incarnation,
            _ => false,
        }
    }

    /// A poll that worked. Whether the digest of the view changed; so do all methods below that return `bool`.
    pub fn polled(&mut self, now_ms: u64, records: Vec<NodeRecord>) -> bool {
        self.good_poll_ms = Some(now_ms);
        self.wants_poll = false;
        let mut fresh: BTreeMap<Box<str>, Known> = BTreeMap::new();
        for record in records {
            if record.check().is_err() || !self.seen.polled(now_ms, &record.name, record.incarnation, self.lease_ms) {
                continue;
            }
            // A lower incarnation that has turned out to be the latest: what the mesh said of the higher one is of no node that is.
            if self.links.get(record.name.as_str()).is_some_and(|link| link.incarnation > record.incarnation) {
                self.links.remove(record.name.as_str());
            }
            // Should a name come twice, the higher incarnation was seen by now, or comes later and takes the place.
            fresh.insert(record.name.as_str().into(), Known { record, forgotten: false });
        }

        let lacks_own = self.own.as_ref().is_some_and(|own| self.known.contains_key(own) && !fresh.contains_key(own));
        let forgets = lacks_own || (fresh.is_empty() && !self.known.is_empty());
        if forgets && self.forgot_ms.is_none() {
            self.forgot_ms = Some(now_ms);
        }
        if self.may_be_forgotten(now_ms) {
            for (name, known) in std::mem::take(&mut self.known) {
                fresh.entry(name).or_insert(Known { forgotten: true, ..known });
            }
        } else if !forgets {
            self.forgot_ms = None;
        }
        self.known = fresh;
        self.rebuild(now_ms)
    }

    /// A poll that failed, with an error or a time-out.
    pub fn poll_failed(&mut self, now_ms: u64) -> bool {
        // Asked and answered: the next regular poll is soon enough for a Redis that does not work.
        self.wants_poll = false;
        self.rebuild(now_ms)
    }

    /// The mesh has a working link to `node`, which says that it is `incarnation`. To be told when a link comes up; repeating
    /// it with each heartbeat does no harm.
    pub fn mesh_heard(&mut self, now_ms: u64, node: &str, incarnation: u64) -> bool {
        if !self.seen.heard(now_ms, node, incarnation) {
            return false;
        }
        match self.links.get_mut(node) {
            Some(link) => *link = Link { incarnation, lost_ms: None },
            None => {
                self.links.insert(node.into(), Link { incarnation, lost_ms: None });
            }
        }
        // Without Redis the mesh is the only one to tell that a node has restarted.
        let out = self.is_redis_out(now_ms);
        match self.known.get_mut(node) {
            Some(known) if known.record.incarnation < incarnation => {
                if out {
                    // Nobody but a node that begins a new life comes with an incarnation that Redis has not told of.
                    known.record.incarnation = incarnation;
                    known.record.life = 0;
                }
                self.wants_poll = true;
            }
            Some(_) => {}
            None => self.wants_poll = true,
        }
        self.rebuild(now_ms)
    }

    /// The mesh has lost its link to `node` of that incarnation. News of an older link than the last one heard are ignored.
    pub fn mesh_lost(&mut self, now_ms: u64, node: &str, incarnation: u64) -> bool {
        match self.links.get_mut(node) {
            Some(link) if link.incarnation > incarnation => return false,
            Some(link) => *link = Link { incarnation, lost_ms: link.lost_ms.or(Some(now_ms)) },
            None if self.known.contains_key(node) => {
                self.links.insert(node.into(), Link { incarnation, lost_ms: Some(now_ms) });
            }
            None => return false,
        }
        self.wants_poll = true;
        self.rebuild(now_ms)
    }

    /// The cluster's epoch for the view with this digest. Ignored if the view is another by now, or if it would fall.
    pub fn set_epoch(&mut self, digest: u64, epoch: u64) {
        if digest == self.view.digest && epoch > self.view.epoch {
            self.view = Arc::new(View { epoch, ..View::clone(&self.view) });
        }
    }

    /// Lets time pass. To be called about once a second.
    pub fn tick(&mut self, now_ms: u64) -> bool {
        let (known, own) = (&self.known, self.own.as_deref());
        // What was heard exactly then is forgotten.
        let since_ms = (now_ms + 1).saturating_sub(FORGET_MS);
        self.seen.forget(since_ms, |name| known.contains_key(name) || own == Some(name));
        let seen = &self.seen;
        self.links.retain(|name, _| seen.has(name));
        self.rebuild(now_ms)
    }

    /// Whether members that a poll lacks are given time to come back.
    fn may_be_forgotten(&self, now_ms: u64) -> bool {
        self.forgot_ms.is_some_and(|at_ms| now_ms.saturating_sub(at_ms) < self.lease_ms)
    }

    fn counts(&self, now_ms: u64, known: &Known) -> bool {
        if known.record.state == NodeState::Gone {
            return false;
        }
        let is_own = self.own.as_deref() == Some(known.record.name.as_str());
        let lost_ms = match self.links.get(known.record.name.as_str()) {
            Some(link) if !is_own && link.incarnation >= known.record.incarnation => link.lost_ms,
            _ => None,
        };
        if self.is_redis_out(now_ms) {
            return lost_ms.is_none_or(|at_ms| now_ms.saturating_sub(at_ms) <= self.lease_ms);
        }
        !known.forgotten || (lost_ms.is_none() && self.may_be_forgotten(now_ms))
    }

    fn rebuild(&mut self, now_ms: u64) -> bool {
        let members: Vec<NodeRecord> =
            self.known.values().filter(|known| self.counts(now_ms, known)).map(|known| known.record.clone()).collect();
        if members == self.view.members {
            return false;
        }
        let digest = view::digest(&members);
        if digest == self.view.digest {
            // Load figures only; epoch and ring stay.
            self.view = Arc::new(View { members, ..View::clone(&self.view) });
            return false;
        }
        let (ring, left_out) = view::ring(&members, self.view.ring.as_ref());
        self.view = Arc::new(View { epoch: self.view.epoch.saturating_add(1), digest, members, ring, left_out });
        true
    }
}
