//! From polls of Redis and news of the mesh to views.

use super::lease::promise_ms;
use super::node_state::NodeState;
use super::record::{NodeRecord, Reach, mark};
use super::seen::Seen;
use super::view::{self, View};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// How long a name is remembered after it was last heard of, in milliseconds: as long as the longest lease.
const FORGET_MS: u64 = 3_600_000;

/// A process that only watches looks for the view that the nodes tell of among those that lack one more or one less of
/// the members without a lease, as long as these are no more than so many.
const ONE_BY_ONE_MAX: usize = 16;

/// What becomes of the view while nobody can be asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// It is frozen: only whose process is known to be dead is out.
    Freeze,
    /// Who has been lost by the mesh for a lease time is out, and is in again when heard.
    MeshDecides,
}

/// One node's picture of the cluster. The rules:
///
/// - **Redis answers** (the last good poll is not older than the lease time): it is the authority. Who has a lease is
///   in, even when its mesh is silent, and is then marked unreachable. Who has none is out at once, unless one of the
///   next rules keeps it.
/// - **Heard**: a member that is heard over the mesh stays for a lease time after its lease was first missed: a
///   failover of Redis loses writes, and the member writes its lease again.
/// - **Lost**: an active member whose lease is missing before it can have run out has lost it to Redis, and has a lease
///   time to write it again whether it is heard or not. It may serve for that long.
/// - **Promised**: a member that could not renew, and that this node has vouched for, stays for as long as was
///   promised.
/// - **Redis forgot**: a poll that lacks this node itself, or is empty while the view was not, means that Redis came
///   back without its data (or that this node is fenced anyway). Members that are missing in such a poll stay for one
///   lease time if the mesh has not lost them, so that they can write their leases again before the ring changes.
/// - **Back from an outage**: when this node has vouched for others because it had no Redis itself, they may have
///   become a majority that serves without Redis. As long as most members are missing and nothing is known of them,
///   they stay.
/// - **Redis does not answer**: see [`Outage`].
/// - **Who only watches** hears no mesh, and goes by what the nodes say of their own view: a member without a lease
///   stays as long as most of those that have one tell the digest of a view with that member in it, and for two lease
///   times while they tell none that is known. So a Redis that refuses to renew a lease takes nobody from a router whom
///   the nodes keep. An empty poll after one that was not is no view, for then nobody tells anything.
/// - A record with a lower incarnation than one seen before under that name is old data, and is ignored; unless polls
///   find it for longer than old data can last.
/// - **Quarantine**: an active member of which most of the other active ones say that they do not reach it is none of
///   the ring until that has changed, as if it had not become active yet. Two have to say so, and less than half of the
///   ring can be out at a time.
/// - A node that the ring cannot hold beside the others is left out of it, the one with the highest incarnation first;
///   so are active nodes that cannot speak with most of the others, since a home has to be reached by all.
#[derive(Debug)]
pub struct Membership {
    own: Option<Box<str>>,
    lease_ms: u64,
    outage: Outage,
    view: Arc<View>,
    known: BTreeMap<Box<str>, Known>,
    /// The latest incarnation of each name.
    seen: Seen,
    links: HashMap<Box<str>, Link>,
    good_poll_ms: Option<u64>,
    /// When Redis was first found to have forgotten.
    forgot_ms: Option<u64>,
    /// When this node last vouched for another for want of Redis, unless that is over.
    vouched_ms: Option<u64>,
    wants_poll: bool,
}

/// A node that the last poll gave, or that is kept from the one before.
#[derive(Debug)]
struct Known {
    record: NodeRecord,
    /// Since when polls have lacked it.
    absent_ms: Option<u64>,
    /// Until when it stays in the view whatever Redis says.
    promised_ms: u64,
    /// When it was last found that the process of this life has ended.
    dead_ms: Option<u64>,
    /// When this life was first seen.
    since_ms: u64,
    /// When Redis was asked for the nodes the last time before it showed this renewal of the lease: no later than the
    /// renewal.
    renewed_ms: u64,
    /// When its lease was found missing before it can have run out: Redis has lost it.
    lost_ms: Option<u64>,
    /// When the other nodes last said that they work with it although Redis has no lease of it. Only for who watches.
    kept_ms: Option<u64>,
}

/// What the mesh last said about a node.
#[derive(Debug, Clone, Copy)]
struct Link {
    incarnation: u64,
    lost_ms: Option<u64>,
    heard_ms: u64,
}

impl Membership {
    /// The picture of the node called `own` (`None` for a process that only watches), with leases of `lease_ms`.
    #[must_use]
    pub fn new(own: Option<&str>, lease_ms: u64) -> Self {
        Membership {
            own: own.map(Into::into),
            lease_ms,
            outage: Outage::Freeze,
            view: Arc::new(View::empty()),
            known: BTreeMap::new(),
            seen: Seen::default(),
            links: HashMap::new(),
            good_poll_ms: None,
            forgot_ms: None,
            vouched_ms: None,
            wants_poll: true,
        }
    }

    /// What becomes of the view while nobody can be asked for it; [`Outage::Freeze`] if nothing else is said.
    pub fn set_outage(&mut self, outage: Outage) {
        self.outage = outage;
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

    /// Whether Redis has not answered for longer than the lease time.
    #[must_use]
    pub fn is_redis_out(&self, now_ms: u64) -> bool {
        self.good_poll_ms.is_some_and(|at_ms| now_ms.saturating_sub(at_ms) > self.lease_ms)
    }

    /// Whether `name` is this node, or is a member that the mesh has heard in its present incarnation and not lost
    /// since.
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

    /// Active members that the mesh has not heard for `ms`, with their incarnations: for what this node says of them,
    /// see [`NodeRecord::reach`].
    #[must_use]
    pub fn silent(&self, now_ms: u64, ms: u64) -> Vec<Reach> {
        let silent = self.known.values().filter(|known| {
            let since_ms = match self.lost_ms(known) {
                Ok(true) => return false,
                Ok(false) => known.since_ms,
                Err(lost_ms) => lost_ms,
            };
            known.record.state == NodeState::Active && now_ms.saturating_sub(since_ms) >= ms
        });
        let reach = silent.map(|known| {
            let NodeRecord { name, incarnation, .. } = &known.record;
            Reach { name: name.clone(), incarnation: *incarnation, ok: false }
        });
        reach.collect()
    }

    /// The members as Redis told of them, those whose process was found to have ended among them, and the digest of
    /// that: nodes that serve without Redis have to agree on this. Who has ended each finds out by itself, and a bit
    /// later than another; only users of nodes that have ended have other homes by that.
    #[must_use]
    pub fn told(&self, now_ms: u64) -> (u64, Vec<NodeRecord>) {
        let members = self.members(now_ms, true);
        (view::digest(&members), members)
    }

    /// Whether the mesh has heard a node since `since_ms` of which nothing is known: one that has begun after what the
    /// view is from.
    #[must_use]
    pub fn hears_stranger(&self, since_ms: u64) -> bool {
        let is_stranger = |name: &str| self.own.as_deref() != Some(name) && !self.known.contains_key(name);
        self.links.iter().any(|(name, link)| link.heard_ms >= since_ms && is_stranger(name))
    }

    /// The nodes that the mesh does not hear, members or not any more because they have ended.
    pub fn unheard(&self) -> impl Iterator<Item = &NodeRecord> {
        self.known.values().filter(|known| self.lost_ms(known) != Ok(true)).map(|known| &known.record)
    }

    /// When it was last found that the process of the member `name` has ended.
    #[must_use]
    pub fn dead_ms(&self, name: &str) -> Option<u64> {
        self.known.get(name)?.dead_ms
    }

    /// Of the nodes that have ended and whose lease is remembered, when that was last found of the one of which it is
    /// longest ago.
    #[must_use]
    pub fn oldest_dead_ms(&self) -> Option<u64> {
        self.known.values().filter_map(|known| known.dead_ms).min()
    }

    /// The nodes whose process is known to have ended and whose lease is remembered.
    pub fn dead(&self) -> impl Iterator<Item = &str> {
        self.known.iter().filter(|(_, known)| known.dead_ms.is_some()).map(|(name, _)| &**name)
    }

    /// A poll that worked. Whether the digest of the view changed; so do all methods below that return `bool`.
    pub fn polled(&mut self, now_ms: u64, records: Vec<NodeRecord>) -> bool {
        self.wants_poll = false;
        let before_ms = self.good_poll_ms.unwrap_or(0);
        let mut fresh: BTreeMap<Box<str>, Known> = BTreeMap::new();
        for record in records {
            if record.check().is_err() || !self.seen.polled(now_ms, &record.name, record.incarnation, self.lease_ms) {
                continue;
            }
            // A lower incarnation that has turned out to be the latest: what the mesh said of the higher one is of no
            // node that is.
            if self.links.get(record.name.as_str()).is_some_and(|link| link.incarnation > record.incarnation) {
                self.links.remove(record.name.as_str());
            }
            let same = self.known.get(record.name.as_str()).filter(|known| known.record.life() == record.life());
            let promised_ms = same.map_or(0, |known| known.promised_ms);
            let dead_ms = same.and_then(|known| known.dead_ms);
            let since_ms = same.map_or(now_ms, |known| known.since_ms);
            let renewed_ms = match same {
                Some(known) if known.record.renewals == record.renewals => known.renewed_ms,
                _ => before_ms,
            };
            // Should a name come twice, the higher incarnation was seen by now, or comes later and takes the place.
            fresh.insert(
                record.name.as_str().into(),
                Known {
                    record,
                    absent_ms: None,
                    promised_ms,
                    dead_ms,
                    since_ms,
                    renewed_ms,
                    lost_ms: None,
                    kept_ms: None,
                },
            );
        }
        if fresh.is_empty() && self.own.is_none() && !self.known.is_empty() {
            self.known.values_mut().for_each(|known| known.kept_ms = Some(now_ms));
            return false;
        }
        self.good_poll_ms = Some(now_ms);

        let lacks_own = self.own.as_ref().is_some_and(|own| self.known.contains_key(own) && !fresh.contains_key(own));
        let forgets = lacks_own || (fresh.is_empty() && !self.known.is_empty());
        if forgets && self.forgot_ms.is_none() {
            self.forgot_ms = Some(now_ms);
        } else if !forgets && !self.may_be_forgotten(now_ms) {
            self.forgot_ms = None;
        }
        let present = fresh.len();
        for (name, mut known) in std::mem::take(&mut self.known) {
            let Entry::Vacant(place) = fresh.entry(name) else { continue };
            let counted = known.record.renewals > 0 && known.record.state == NodeState::Active;
            let early = now_ms < known.renewed_ms.saturating_add(self.lease_ms);
            if known.absent_ms.is_none() && counted && early {
                known.lost_ms = Some(now_ms);
            }
            known.absent_ms.get_or_insert(now_ms);
            place.insert(known);
        }
        self.known = fresh;
        // Whoever has been seen in Redis two lease times after that has written to it since.
        let over = |vouched_ms: u64| now_ms >= vouched_ms.saturating_add(2 * promise_ms(self.lease_ms));
        if 2 * present > self.known.len() && self.vouched_ms.is_some_and(over) {
            self.vouched_ms = None;
        }
        if self.own.is_none() {
            self.ask_records(now_ms);
        }
        let holds = self.holds_back();
        let keeps = |known: &Known| known.absent_ms.is_none() || holds || self.stays(now_ms, known);
        let gone: Vec<Box<str>> =
            self.known.iter().filter(|(_, known)| !keeps(known)).map(|(name, _)| name.clone()).collect();
        for name in gone {
            self.known.remove(&name);
        }
        self.rebuild(now_ms)
    }

    /// Finds out which of the members without a lease the others work with, by the digests of their views that they
    /// tell.
    fn ask_records(&mut self, now_ms: u64) {
        let absent: BTreeSet<&str> = {
            let absent = self.known.values().filter(|known| known.absent_ms.is_some());
            absent.map(|known| known.record.name.as_str()).collect()
        };
        if absent.is_empty() {
            return;
        }
        let kept = self.digest_of_most().and_then(|digest| {
            let matches = |kept: &BTreeSet<&str>| self.digest_with(kept) == digest;
            let before: BTreeSet<&str> =
                absent.iter().copied().filter(|name| self.known[*name].kept_ms.is_some()).collect();
            let less = |name| before.iter().copied().filter(|other| *other != name).collect();
            let more = |name| before.iter().copied().chain(std::iter::once(name)).collect();
            let mut candidates = vec![absent.clone(), before.clone(), BTreeSet::new()];
            if absent.len() <= ONE_BY_ONE_MAX {
                candidates.extend(before.iter().map(|name| less(*name)));
                candidates.extend(absent.difference(&before).map(|name| more(*name)));
            }
            let kept = candidates.into_iter().find(matches)?;
            Some(kept.into_iter().map(Box::from).collect::<BTreeSet<Box<str>>>())
        });
        let patience_ms = 2 * promise_ms(self.lease_ms);
        for (name, known) in self.known.iter_mut().filter(|(_, known)| known.absent_ms.is_some()) {
            known.kept_ms = match &kept {
                Some(kept) => kept.contains(name).then_some(now_ms),
                // Views are changing, or differ from this one in something else.
                None => known.kept_ms.filter(|kept_ms| now_ms.saturating_sub(*kept_ms) < patience_ms),
            };
        }
    }

    /// The digest that more than half of those tell that have a lease and tell one.
    fn digest_of_most(&self) -> Option<u64> {
        let present = self.known.values().filter(|known| known.absent_ms.is_none());
        let told: Vec<u64> = present.map(|known| known.record.view).filter(|digest| *digest != 0).collect();
        let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
        told.iter().for_each(|digest| *counts.entry(*digest).or_default() += 1);
        counts.into_iter().find(|(_, count)| 2 * count > told.len()).map(|(digest, _)| digest)
    }

    /// The digest of the view of those that have a lease and of these.
    fn digest_with(&self, kept: &BTreeSet<&str>) -> u64 {
        let counts = |known: &&Known| {
            let is_in = known.absent_ms.is_none() || kept.contains(known.record.name.as_str());
            is_in && known.record.state != NodeState::Gone
        };
        let counted: Vec<&NodeRecord> = self.known.values().filter(counts).map(|known| &known.record).collect();
        view::digest(&out_of_quarantine(&counted))
    }

    /// The members of which Redis has no lease although the nodes work with them, as they said last; those of the last
    /// view if Redis has a lease of nobody. Only for a process that only watches.
    pub fn kept(&self) -> impl Iterator<Item = &str> {
        self.known.iter().filter(|(_, known)| known.kept_ms.is_some()).map(|(name, _)| &**name)
    }

    /// A poll that failed, with an error or a time-out, or that says nothing that counts.
    pub fn poll_failed(&mut self, now_ms: u64) -> bool {
        // Asked and answered: the next regular poll is soon enough for a Redis that does not work.
        self.wants_poll = false;
        self.rebuild(now_ms)
    }

    /// What the mesh knows of nodes: name, incarnation, and whether it hears the node; see [`Membership::mesh_heard`]
    /// and
    /// [`Membership::mesh_lost`]. The view is looked at once for all of them.
    pub fn mesh_told<'a>(&mut self, now_ms: u64, told: impl Iterator<Item = (&'a str, u64, bool)>) -> bool {
        for (node, incarnation, hears) in told {
            if hears {
                self.note_heard(now_ms, node, incarnation);
            } else {
                self.note_lost(now_ms, node, incarnation);
            }
        }
        self.rebuild(now_ms)
    }

    /// The mesh has a working link to `node`, which says that it is `incarnation`. To be told when a link comes up;
    /// repeating it with each heartbeat does no harm.
    pub fn mesh_heard(&mut self, now_ms: u64, node: &str, incarnation: u64) -> bool {
        self.note_heard(now_ms, node, incarnation);
        self.rebuild(now_ms)
    }

    fn note_heard(&mut self, now_ms: u64, node: &str, incarnation: u64) {
        if !self.seen.heard(now_ms, node, incarnation) {
            return;
        }
        let link = Link { incarnation, lost_ms: None, heard_ms: now_ms };
        match self.links.get_mut(node) {
            Some(known) => *known = link,
            None => _ = self.links.insert(node.into(), link),
        }
        // Without Redis the mesh is the only one to tell that a node has restarted.
        let out = self.is_redis_out(now_ms);
        match self.known.get_mut(node) {
            Some(known) if known.record.incarnation < incarnation => {
                if out {
                    // Nobody but a node that begins a new life comes with an incarnation that Redis has not told of.
                    known.record.incarnation = incarnation;
                    known.record.life = 0;
                    (known.promised_ms, known.dead_ms) = (0, None);
                }
                self.wants_poll = true;
            }
            Some(known) => known.dead_ms = None,
            None => self.wants_poll = true,
        }
    }

    /// The mesh has lost its link to `node` of that incarnation. News of an older link than the last one heard are
    /// ignored.
    pub fn mesh_lost(&mut self, now_ms: u64, node: &str, incarnation: u64) -> bool {
        self.note_lost(now_ms, node, incarnation);
        self.rebuild(now_ms)
    }

    fn note_lost(&mut self, now_ms: u64, node: &str, incarnation: u64) {
        match self.links.get_mut(node) {
            Some(link) if link.incarnation > incarnation => return,
            Some(link) => *link = Link { incarnation, lost_ms: link.lost_ms.or(Some(now_ms)), ..*link },
            None if self.known.contains_key(node) => {
                let lost = Link { incarnation, lost_ms: Some(now_ms), heard_ms: 0 };
                self.links.insert(node.into(), lost);
            }
            None => return,
        }
        self.wants_poll = true;
    }

    /// Whether the last view that Redis gave had a lease of `node`.
    #[must_use]
    pub fn has_lease(&self, node: &str) -> bool {
        self.known.get(node).is_some_and(|known| known.absent_ms.is_none())
    }

    /// This node vouches for the member `node` in this life: it stays in the view for a lease time, by this node's
    /// clock with a margin. `without`: for want of Redis. `false`, and without effect, unless it is a member.
    pub fn vouch(&mut self, now_ms: u64, node: &str, life: u64, without: bool) -> bool {
        let Some(member) = self.view.member(node).filter(|member| member.life() == life) else { return false };
        let Some(known) = self.known.get_mut(member.name.as_str()) else { return false };
        known.promised_ms = known.promised_ms.max(now_ms.saturating_add(promise_ms(self.lease_ms)));
        if without {
            self.vouched_ms = Some(now_ms);
        }
        true
    }

    /// The host of the member `node` refused a connection, asked for at `sent_ms`, to where its mesh listened: the
    /// process of this life has ended. `None`: it did not refuse, so that another process may be there by now.
    pub fn found_dead(&mut self, now_ms: u64, node: &str, life: u64, sent_ms: Option<u64>) -> bool {
        match self.known.get_mut(node) {
            Some(known) if known.record.life() == life => known.dead_ms = sent_ms,
            _ => return false,
        }
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

    /// The members that stay although Redis has no lease of them, because they were vouched for during an outage of it
    /// and are so many that they may serve without it, and since when the first of them has been missing; `None` if
    /// there are none, or Redis does not answer.
    #[must_use]
    pub fn held_back(&self, now_ms: u64) -> Option<(Vec<&NodeRecord>, u64)> {
        if !self.holds_back() || self.is_redis_out(now_ms) {
            return None;
        }
        let held = || self.known.values().filter(|known| known.absent_ms.is_some() && known.dead_ms.is_none());
        let since_ms = held().filter_map(|known| known.absent_ms).min()?;
        Some((held().map(|known| &known.record).collect(), since_ms))
    }

    /// Whether those that are missing are so many, after an outage of Redis, that they may serve without it.
    fn holds_back(&self) -> bool {
        let missing = self.known.values().filter(|known| known.absent_ms.is_some() && known.dead_ms.is_none()).count();
        let alive = self.known.values().filter(|known| known.dead_ms.is_none()).count();
        self.vouched_ms.is_some() && 2 * missing > alive
    }

    /// When the mesh lost a node that it had heard in its present incarnation; `Ok` with whether it hears it,
    /// otherwise.
    fn lost_ms(&self, known: &Known) -> Result<bool, u64> {
        if self.own.as_deref() == Some(known.record.name.as_str()) {
            return Ok(true);
        }
        match self.links.get(known.record.name.as_str()) {
            Some(link) if link.incarnation >= known.record.incarnation => link.lost_ms.map_or(Ok(true), Err),
            _ => Ok(false),
        }
    }

    /// Whether a member that polls lack stays all the same.
    fn stays(&self, now_ms: u64, known: &Known) -> bool {
        if known.kept_ms.is_some() {
            return true;
        }
        if now_ms < known.promised_ms && known.dead_ms.is_none() {
            return true;
        }
        if known.lost_ms.is_some_and(|lost_ms| now_ms < lost_ms.saturating_add(promise_ms(self.lease_ms))) {
            return known.dead_ms.is_none();
        }
        let missed_for_ms = known.absent_ms.map_or(0, |at_ms| now_ms.saturating_sub(at_ms));
        match self.lost_ms(known) {
            Ok(true) => missed_for_ms < self.lease_ms || self.may_be_forgotten(now_ms),
            Ok(false) => self.may_be_forgotten(now_ms),
            Err(_) => false,
        }
    }

    fn counts(&self, now_ms: u64, holds: bool, known: &Known, with_dead: bool) -> bool {
        if known.record.state == NodeState::Gone {
            return false;
        }
        if self.is_redis_out(now_ms) {
            return match (self.outage, self.lost_ms(known)) {
                _ if known.dead_ms.is_some() => with_dead,
                (Outage::MeshDecides, Err(at_ms)) => now_ms.saturating_sub(at_ms) <= self.lease_ms,
                _ => true,
            };
        }
        known.absent_ms.is_none() || holds || self.stays(now_ms, known)
    }

    fn members(&self, now_ms: u64, with_dead: bool) -> Vec<NodeRecord> {
        out_of_quarantine(&self.counted(now_ms, with_dead))
    }

    fn counted(&self, now_ms: u64, with_dead: bool) -> Vec<&NodeRecord> {
        let holds = self.holds_back();
        let counts = self.known.values().filter(|known| self.counts(now_ms, holds, known, with_dead));
        counts.map(|known| &known.record).collect()
    }

    /// Whether these are the members of the present view. Asked for with everything that happens, so nothing is copied
    /// for it.
    fn is_view(&self, counted: &[&NodeRecord]) -> bool {
        let (cut, members) = (quarantined(counted), &self.view.members);
        let same = |(record, member): (&&NodeRecord, &NodeRecord)| *record == member;
        counted.len() == members.len()
            && match cut.is_empty() {
                true => counted.iter().zip(members).all(same),
                false => {
                    counted.iter().zip(members).enumerate().all(|(at, (record, member))| match cut.contains(&at) {
                        true => NodeRecord { state: NodeState::Joining, ..(*record).clone() } == *member,
                        false => same((record, member)),
                    })
                }
            }
    }

    fn rebuild(&mut self, now_ms: u64) -> bool {
        if self.is_view(&self.counted(now_ms, false)) {
            return false;
        }
        let members = self.members(now_ms, false);
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

/// These with those in quarantine as nodes that have not become active yet.
fn out_of_quarantine(counted: &[&NodeRecord]) -> Vec<NodeRecord> {
    let mut members: Vec<NodeRecord> = counted.iter().map(|record| (*record).clone()).collect();
    for at in quarantined(counted) {
        members[at].state = NodeState::Joining;
    }
    members
}

/// Those that most of the others do not reach, and that are to be out of the ring; see [`Membership`].
fn quarantined(members: &[&NodeRecord]) -> Vec<usize> {
    let says = |record: &NodeRecord| record.state == NodeState::Active && record.reach.is_some();
    let misses_some = |record: &NodeRecord| {
        says(record) && (!record.silent.is_empty() || record.reach.iter().flatten().any(|reach| !reach.ok))
    };
    // Mostly nobody does.
    if !members.iter().any(|record| misses_some(record)) {
        return Vec::new();
    }
    let marks = members.iter().enumerate().map(|(at, member)| (mark(&member.name, member.incarnation), at));
    let places: HashMap<u64, usize> = marks.collect();
    // How many say so of whom.
    let mut misses = vec![0_usize; members.len()];
    for (own, judge) in members.iter().enumerate().filter(|(_, record)| misses_some(record)) {
        let found = judge.reach.iter().flatten().filter(|reach| !reach.ok);
        let found = found.map(|reach| mark(&reach.name, reach.incarnation));
        let missed = found.chain(judge.silent_marks()).filter_map(|mark| places.get(&mark).copied());
        let mut missed: Vec<usize> = missed.filter(|at| *at != own).collect();
        missed.sort_unstable();
        missed.dedup();
        missed.into_iter().for_each(|at| misses[at] += 1);
    }
    let active = members.iter().filter(|member| member.state == NodeState::Active).count();
    let judges = members.iter().filter(|record| says(record)).count();
    let is_cut = |at: usize| {
        let (record, miss) = (members[at], misses[at]);
        let others = judges - usize::from(says(record));
        record.state == NodeState::Active && miss >= 2 && 2 * miss > others
    };
    let cut: Vec<usize> = (0..members.len()).filter(|at| is_cut(*at)).collect();
    if 2 * cut.len() < active { cut } else { Vec::new() }
}
