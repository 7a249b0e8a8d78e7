//! The nodes that count, at one moment.

use super::fnv::Fnv;
use super::node_state::NodeState;
use super::record::NodeRecord;
use crate::ring::{Node, Ring, RingError};
use std::sync::Arc;

/// An immutable view of the cluster. A change makes a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Grows with every change of `digest`; never falls.
    pub epoch: u64,
    /// What the view is, in 64 bits: equal for equal views on all nodes. Load figures do not count.
    pub digest: u64,
    /// The nodes with a live lease, in the order of their names.
    pub members: Vec<NodeRecord>,
    /// The ring of the active members; `None` if there are none.
    pub ring: Option<Arc<Ring>>,
    /// Active members that the ring cannot hold; see [`Membership`](super::Membership). Empty unless somebody made a
    /// mistake.
    pub left_out: Vec<String>,
}

impl View {
    /// The view before anything is known.
    pub(super) fn empty() -> Self {
        View { epoch: 0, digest: digest(&[]), members: Vec::new(), ring: None, left_out: Vec::new() }
    }

    /// The view of a node that has no cluster: itself and nobody else.
    #[must_use]
    pub fn alone(record: NodeRecord) -> Self {
        let members = vec![record];
        let (ring, left_out) = ring(&members, None);
        View { epoch: 0, digest: digest(&members), members, ring, left_out }
    }

    /// The member called `name`.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&NodeRecord> {
        let at = self.members.binary_search_by(|member| member.name.as_str().cmp(name)).ok()?;
        self.members.get(at)
    }

    /// Whether the node `name` is a member with this incarnation: what it wrote to the presence store counts.
    #[must_use]
    pub fn is_live(&self, name: &str, incarnation: u64) -> bool {
        self.member(name).is_some_and(|member| member.incarnation == incarnation)
    }
}

/// Nodes whose protocol is of this version or a later one write [`NodeRecord::turns`].
const TURNS_SINCE: u32 = 4;

/// FNV-1a, 64 bits (Fowler, Noll, Vo; offset basis and prime of RFC 9923), over every field that matters to routing,
/// each text with its length in front.
///
/// All nodes have to compute the same number, so a change here is a change of the protocol between nodes.
///
/// A view that is as an earlier one was has another digest than that: between the two a node was in another state, and
/// what others said for the earlier one does not count for the later.
pub(super) fn digest(members: &[NodeRecord]) -> u64 {
    // Nodes of earlier versions neither write these nor read them, and have to find the same.
    let turns = members.iter().all(|member| member.protocol >= TURNS_SINCE);
    let mut hash = Fnv::new();
    for member in members {
        hash.text(&member.name);
        hash.bytes(&member.incarnation.to_le_bytes());
        hash.bytes(&member.life().to_le_bytes());
        match member.state.code() {
            Some(code) => hash.bytes(&[code]),
            None => {
                hash.bytes(&[0]);
                hash.text(member.state.word());
            }
        }
        hash.bytes(&member.weight.to_le_bytes());
        hash.bytes(&member.shards.to_le_bytes());
        hash.text(&member.mesh);
        hash.text(&member.advertise);
        if turns {
            hash.bytes(&member.turns.to_le_bytes());
        }
    }
    hash.0
}

/// The ring of the active members, or `known` if that is it already, and the names that had to be left out.
///
/// A newcomer that does not fit (same placement as another, sum of weights, number) must not take the ring away from
/// everybody. The one with the highest incarnation is left out, since it came last, and all nodes decide alike.
pub(super) fn ring(members: &[NodeRecord], known: Option<&Arc<Ring>>) -> (Option<Arc<Ring>>, Vec<String>) {
    let active: Vec<&NodeRecord> = members.iter().filter(|member| member.state == NodeState::Active).collect();
    let (mut active, mut left_out) = of_one_protocol(active);
    if let Some(known) = known
        && known.nodes().len() == active.len()
        && known.nodes().iter().zip(&active).all(|(node, member)| {
            // Both are in the order of their names.
            node.name() == member.name && node.weight() == member.weight
        })
    {
        return (Some(Arc::clone(known)), left_out);
    }
    loop {
        let nodes: Result<Vec<Node>, RingError> =
            active.iter().map(|member| Node::new(&member.name, member.weight)).collect();
        let suspects: Vec<usize> = match nodes.and_then(Ring::new) {
            Ok(ring) => return (Some(Arc::new(ring)), left_out),
            Err(RingError::NoNodes) => return (None, left_out),
            Err(RingError::SamePlacement { first, second }) => {
                let named = |member: &NodeRecord| *member.name == *first || *member.name == *second;
                (0..active.len()).filter(|&at| named(active[at])).collect()
            }
            Err(RingError::BadName { name } | RingError::BadWeight { name, .. }) => {
                (0..active.len()).filter(|&at| *active[at].name == *name).collect()
            }
            Err(RingError::TooManyNodes { .. } | RingError::TotalWeight { .. }) => (0..active.len()).collect(),
        };
        let Some(last) = suspects.into_iter().max_by_key(|&at| active[at].incarnation) else {
            return (None, left_out);
        };
        left_out.push(active.remove(last).name.clone());
    }
}

/// Those of `active` that speak the version of the mesh protocol that most of them speak, the lowest of several, and
/// the names of the others.
///
/// Who cannot speak with the others refuses to join, so this is for what came about in spite of that: two that joined
/// at once, or a node of a version that did not look. Ranges that meet in pairs have a version in common, so nobody is
/// left out unless two cannot speak.
fn of_one_protocol(active: Vec<&NodeRecord>) -> (Vec<&NodeRecord>, Vec<String>) {
    let speaks = |member: &NodeRecord, version| member.protocols().is_none_or(|range| range.contains(&version));
    // One of the oldest versions is in as many ranges as any version is.
    let mut versions: Vec<u32> = active.iter().filter_map(|member| Some(*member.protocols()?.start())).collect();
    versions.sort_unstable();
    versions.dedup();
    let speakers = |version| active.iter().filter(|member| speaks(member, version)).count();
    let Some(version) = versions.iter().copied().rev().max_by_key(|&version| speakers(version)) else {
        return (active, Vec::new());
    };
    let (kept, left_out): (Vec<_>, Vec<_>) = active.into_iter().partition(|member| speaks(member, version));
    (kept, left_out.into_iter().map(|member| member.name.clone()).collect())
}
