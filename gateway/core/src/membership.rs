//! What the control thread of a node decides about its part in the cluster: pure, without I/O, clock or threads. One
//! copy, driven by `crate::cluster` on tokio and by the simulator of several nodes in virtual time.
//!
//! | file | question it answers |
//! |---|---|
//! | `agent.rs` | what is asked of Redis next, and what do the shards have to know? |
//! | `peers.rs` | what do peers prove when this node has no Redis of its own? |
//! | `memo.rs` | what do two control threads say to each other? |
//! | `heart.rs` | may this node serve, and what is the view? |
//! | `elders.rs` | who may serve on without Redis while this node begins? |
//! | `sight.rs` | does it see what the others do? |
//! | `walk.rs` | how fast are sessions written again, and which shard is next? |
//!
//! The driver tells the [`Agent`] what happened and when, then lets it [look](Agent::look) and carries out its
//! [`Action`]s. Each question that it asks is answered exactly once; the driver bounds the time that takes.

pub mod admission;
mod agent;
mod elders;
mod heart;
mod memo;
mod peers;
mod sight;
mod walk;

pub use agent::{Action, Agent, Question, Reply, Request};
#[cfg(test)]
pub use heart::Heart;
pub use memo::{Change, End, Memo, WRITES_MAX};
use std::sync::Arc;
use trunkline_router_core::membership::NodeState;
pub use walk::{Page, Walk};

/// What the mesh knows about other nodes, and brings from them. See the methods of the same names of `Membership`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MeshNews {
    /// What a shard knows of its links: to all nodes twice a second, and in between to those of which it has changed.
    Links {
        /// The shard.
        shard: u16,
        /// They are all there are.
        all: bool,
        /// One for each node.
        links: Vec<LinkNews>,
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

/// What a shard knows of its links to one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkNews {
    /// The name of the node.
    pub node: Arc<str>,
    /// The incarnation that it is known by, or that it says it is.
    pub incarnation: u64,
    /// What that means for membership.
    pub word: LinkWord,
    /// Links of the shard to the node, and how many of them are up.
    pub links: u32,
    /// See [`LinkNews::links`].
    pub up: u32,
    /// Bytes they hold for the node.
    pub held_bytes: u64,
    /// The longest smoothed round trip of them, microseconds; 0 if none was measured.
    pub rtt_us: u64,
    /// Since when one of them has been down, milliseconds of [`crate::clock`].
    pub down_since_ms: Option<u64>,
}

impl LinkNews {
    /// A node that is heard, or is not any more, of which nothing else is known.
    pub fn of(node: &str, incarnation: u64, word: LinkWord) -> Self {
        LinkNews {
            node: node.into(),
            incarnation,
            word,
            links: 0,
            up: 0,
            held_bytes: 0,
            rtt_us: 0,
            down_since_ms: None,
        }
    }
}

/// Whether a node is there, as far as the links of one shard tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkWord {
    /// A link to it works.
    Heard,
    /// The last link to it has just been lost.
    Lost,
    /// There is no link to it; what was lost was told before.
    Silent,
}

/// The word for a state, as in the node's record.
pub const fn state_word(state: NodeState) -> &'static str {
    match state {
        NodeState::Joining => "joining",
        NodeState::Active => "active",
        NodeState::Draining => "draining",
        NodeState::Gone => "gone",
        NodeState::Other(_) => "unknown",
    }
}
