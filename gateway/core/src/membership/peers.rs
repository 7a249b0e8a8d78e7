//! What a node that has no Redis of its own asks its peers for, and what their answers prove.
//!
//! A peer that has Redis renews for it. Peers that cannot renew *vouch*: they promise to keep the node in their views
//! for a lease time. What that proves is a time, that of the question, by these rules:
//!
//! - every other member of the view has to have answered since the node last had Redis, by whatever way: one that never
//!   did may have Redis, and drop this node. Members whose process has ended do not count, as of the time when that was
//!   last found: another may have taken its place;
//! - an answer counts as long as both have been told of the same view: with another one the peer may take itself for
//!   the home of users that this node has. Views pass from one to the other with the answers, the later one stays;
//! - a member that has Redis and could not renew for this node has to have vouched itself, for only its promise keeps
//!   it from dropping the node;
//! - of the members that have no Redis either, those that vouched and the node itself have to be more than half of the
//!   view. The others cannot drop the node as long as they have no Redis, and when they have it again they do not drop
//!   a majority that is missing.
//!
//! So a view is changed by Redis alone, and served without Redis by a majority of it.

use std::collections::BTreeMap;
use trunkline_router_core::membership::{NodeState, View};

/// Questions that are remembered for each peer. Answers to older ones say nothing that counts.
const ASKED_MAX: usize = 8;

/// What a peer answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Vouched {
    life: u64,
    /// Of the view that it was told of.
    digest: u64,
    /// When it was asked.
    sent_ms: u64,
    without: bool,
}

/// The peers of a node that has no Redis of its own.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    /// Questions by their number: when they were asked, and in which state the node was.
    asked: BTreeMap<u64, (u64, NodeState)>,
    vouched: BTreeMap<String, Vouched>,
    /// Who renewed for this node last, and when it was asked to.
    helper: Option<(String, u64)>,
}

impl Peers {
    /// A question with this number goes out.
    pub(crate) fn asks(&mut self, number: u64, now_ms: u64, state: NodeState) {
        self.asked.insert(number, (now_ms, state));
        while self.asked.len() > ASKED_MAX {
            self.asked.pop_first();
        }
    }

    /// When the question that is answered was asked, and the state it told; `None` if it is not remembered.
    pub(crate) fn asked(&self, number: u64) -> Option<(u64, NodeState)> {
        self.asked.get(&number).copied()
    }

    /// A peer has had Redis renew for this node, as asked at `sent_ms`.
    pub(crate) fn helped(&mut self, node: &str, sent_ms: u64) {
        if self.helper.as_ref().is_none_or(|(_, before_ms)| *before_ms <= sent_ms) {
            self.helper = Some((node.to_owned(), sent_ms));
        }
    }

    /// The peer that renews for this node, if one did for a question of `since_ms` or later.
    pub(crate) fn helper(&self, since_ms: u64) -> Option<&str> {
        self.helper.as_ref().filter(|(_, sent_ms)| *sent_ms >= since_ms).map(|(node, _)| node.as_str())
    }

    /// A peer vouches for this node, as asked at `sent_ms`.
    pub(crate) fn vouches(&mut self, node: &str, life: u64, digest: u64, sent_ms: u64, without: bool) {
        match self.vouched.get(node) {
            Some(before) if before.life == life && before.sent_ms > sent_ms => {}
            _ => _ = self.vouched.insert(node.to_owned(), Vouched { life, digest, sent_ms, without }),
        }
    }

    /// Forgets who is no member any more.
    pub(crate) fn keep_members(&mut self, view: &View) {
        self.vouched.retain(|node, _| view.member(node).is_some());
    }

    /// The time that is proved by what the members of `view` answered since `since_ms`, when this node last had Redis.
    /// `digest` is that of the view it was told of.
    pub(crate) fn proof(
        &self,
        own: &str,
        view: &View,
        digest: u64,
        since_ms: u64,
        now_ms: u64,
        dead_ms: impl Fn(&str) -> Option<u64>,
    ) -> Option<u64> {
        let (mut without, mut proof_ms, mut members) = (Vec::new(), now_ms, 1_usize);
        for member in view.members.iter().filter(|member| member.name != own) {
            if let Some(dead_ms) = dead_ms(&member.name) {
                proof_ms = proof_ms.min(dead_ms);
                continue;
            }
            members += 1;
            let vouched = self.vouched.get(&member.name)?;
            if vouched.life != member.life() || vouched.digest != digest || vouched.sent_ms < since_ms {
                return None;
            }
            if vouched.without {
                without.push(vouched.sent_ms);
            } else {
                proof_ms = proof_ms.min(vouched.sent_ms);
            }
        }
        // With those that have Redis and vouched, and the node itself, so many make more than half.
        without.sort_unstable_by(|one, other| other.cmp(one));
        let others_with = members - 1 - without.len();
        let needed = (members / 2).saturating_sub(others_with);
        match needed.checked_sub(1) {
            None => Some(proof_ms),
            Some(last) => without.get(last).map(|sent_ms| proof_ms.min(*sent_ms)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_router_core::membership::{Membership, NodeRecord};

    fn view(names: &[&str]) -> std::sync::Arc<View> {
        let records = names.iter().map(|name| NodeRecord {
            name: (*name).to_owned(),
            incarnation: 7,
            state: NodeState::Active,
            weight: 1,
            shards: 1,
            mesh: "127.0.0.1:7790".to_owned(),
            advertise: "127.0.0.1:7700".to_owned(),
            http: String::new(),
            protocol: 1,
            connections: 0,
            users: 0,
            started_ms: 1,
            life: 0,
            renewals: 0,
            secret_mark: String::new(),
            reach: None,
            protocol_oldest: 0,
            zone: String::new(),
            mending: false,
            mesh_links: 0,
            https: false,
            turns: 0,
            view: 0,
            silent: String::new(),
        });
        let mut membership = Membership::new(Some("a"), 5_000);
        membership.polled(0, records.collect());
        membership.view()
    }

    fn proof(names: &[&str], vouched: &[(&str, u64, bool)], dead: &[&str]) -> Option<u64> {
        let mut peers = Peers::default();
        for (node, sent_ms, without) in vouched {
            peers.vouches(node, 7, 3, *sent_ms, *without);
        }
        peers.proof("a", &view(names), 3, 1_000, 9_000, |name| dead.contains(&name).then_some(8_000))
    }

    #[test]
    fn who_is_alone_proves_it_to_itself() {
        assert_eq!(proof(&["a"], &[], &[]), Some(9_000));
        assert_eq!(proof(&["a", "b"], &[], &["b"]), Some(8_000), "the process of b has ended");
    }

    #[test]
    fn half_of_the_view_is_no_majority() {
        assert_eq!(proof(&["a", "b"], &[], &[]), None);
        assert_eq!(proof(&["a", "b"], &[("b", 2_000, true)], &[]), Some(2_000));
        let four = &["a", "b", "c", "d"];
        assert_eq!(proof(four, &[("b", 5_000, true), ("c", 4_000, true), ("d", 1_500, true)], &[]), Some(4_000));
        assert_eq!(proof(four, &[("b", 5_000, true), ("c", 4_000, true)], &["d"]), Some(5_000));
    }

    #[test]
    fn who_has_not_said_that_it_has_no_redis_may_have_it() {
        let three = &["a", "b", "c"];
        assert_eq!(proof(three, &[("b", 5_000, true)], &[]), None);
        assert_eq!(proof(three, &[("b", 5_000, true), ("c", 999, true)], &[]), None, "that was before");
        assert_eq!(proof(three, &[("b", 5_000, true), ("c", 1_000, true)], &[]), Some(5_000));
    }

    #[test]
    fn everyone_that_has_redis_has_to_vouch() {
        let three = &["a", "b", "c"];
        assert_eq!(proof(three, &[("b", 5_000, false), ("c", 4_000, false)], &[]), Some(4_000));
        assert_eq!(proof(three, &[("b", 5_000, true), ("c", 1_000, false)], &[]), Some(1_000));
        assert_eq!(proof(three, &[("b", 1_000, true), ("c", 5_000, false)], &[]), Some(5_000));
    }

    #[test]
    fn an_answer_of_an_earlier_life_does_not_count() {
        let mut peers = Peers::default();
        peers.vouches("b", 6, 3, 5_000, true);
        assert_eq!(peers.proof("a", &view(&["a", "b"]), 3, 1_000, 9_000, |_| None), None);
        peers.vouches("b", 7, 3, 4_000, true);
        peers.vouches("b", 7, 3, 3_000, true);
        assert_eq!(peers.proof("a", &view(&["a", "b"]), 3, 1_000, 9_000, |_| None), Some(4_000));
        assert_eq!(peers.proof("a", &view(&["a", "b"]), 4, 1_000, 9_000, |_| None), None, "b was told of another view");
    }
}
