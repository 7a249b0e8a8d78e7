//! What names a node, and the session that something came from.

use crate::io::ConnId;

/// Names a node and one life of it, from its start or a fence to its end or the next one; what is known about an
/// earlier one does not count for a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeKey(pub(crate) u64);

impl NodeKey {
    /// Stands for this node, whatever its incarnation, in what never leaves it.
    pub(crate) const OWN: NodeKey = NodeKey(0);
}

/// Where a message came from, so that its fate can be told to the sender's session and to no later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// [`NodeKey::OWN`] for a session of this node.
    pub(crate) node: NodeKey,
    pub(crate) shard: u16,
    /// The shard of that node to which the fate is told: its own, or the one that sent the message to another node on
    /// its behalf.
    pub(crate) holder: u16,
    pub(crate) conn: ConnId,
}

impl Origin {
    /// A session of this node.
    pub(crate) const fn own(shard: u16, conn: ConnId) -> Self {
        Origin { node: NodeKey::OWN, shard, holder: shard, conn }
    }
}
