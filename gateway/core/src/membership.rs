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
use trunkline_router_core::membership::NodeState;
pub use walk::{Page, Walk};

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
