//! What the control thread of a node decides about its part in the cluster: pure, without I/O, clock or threads. One copy, driven by
//! `crate::cluster` on tokio and by the simulator of several nodes in virtual time.
//!
//! | file | question it answers |
//! |---|---|
//! | `agent.rs` | what is asked of Redis next, and what do the shards have to know? |
//! | `peers.rs` | what do peers prove when this node has no Redis of its own? |
//! | `memo.rs` | what do two control threads say to each other? |
//! | `heart.rs` | may this node serve, and what is the view? |
//! | `walk.rs` | how fast are sessions written again, and which shard is next? |
//!
//! The driver tells the [`Agent`] what happened and when, then lets it [look](Agent::look) and carries out its [`Action`]s. Each question that
//! it asks is answered exactly once; the driver bounds the time that takes.

mod agent;
mod heart;
mod memo;
mod peers;
mod walk;

pub(crate) use agent::{Action, Agent, Question, Reply, Request};
#[cfg(test)]
pub(crate) use heart::Heart;
pub(crate) use memo::{Change, End, Memo, WRITES_MAX};
use trunkline_router::membership::NodeState;
pub(crate) use walk::{Page, Walk};

/// What the mesh knows about other nodes, and brings from them. See the methods of the same names of `Membership`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MeshNews {
    /// There is a working link to a node.
    Heard {
        /// Its name.
        node: String,
        /// The incarnation it says it is.
        incarnation: u64,
    },
    /// The link to a node is lost.
    Lost {
        /// Its name.
        node: String,
        /// The incarnation at the other end of that link.
        incarnation: u64,
    },
    /// A word of another node's control thread.
    Memo {
        /// The name of that node.
        node: String,
        /// The life it is in.
        life: u64,
        /// What it says.
        body: Box<[u8]>,
    },
}

/// The word for a state, as in the node's record.
pub(crate) const fn state_word(state: NodeState) -> &'static str {
    match state {
        NodeState::Joining => "joining",
        NodeState::Active => "active",
        NodeState::Draining => "draining",
        NodeState::Gone => "gone",
        NodeState::Other(_) => "unknown",
    }
}
