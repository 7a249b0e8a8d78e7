//! What the route plane has beside its logic: Redis, HTTP, logs, and what the programs `router` and `gateway` share.
//!
//! | module | question it answers | asked by |
//! |---|---|---|
//! | [`redis`] | how do nodes share the view, and who is online where? | the control thread and the `router` binary |
//! | [`http`] | how do the answers of [`api`] get on the wire? | the `router` binary and every gateway |
//! | [`command`] | signals, words about addresses | the commands `router` and `gateway` |
//! | [`log`] | how does what a process says get out, without ever holding it up? | the commands `router` and `gateway` |
//!
//! The logic is the crate `trunkline-router-core`, which does no I/O and reads no clock; its modules are shown here
//! too. No part of the data path waits for [`redis`].

#![forbid(unsafe_code)]

pub mod command;
pub mod http;
pub mod log;
pub mod process;
pub mod redis;

pub use trunkline_router_core::{
    Balancer, Embedded, Entry, Lease, LoginOutcome, Membership, Node, NodeRecord, NodeState, Policy, Presence, Ring,
    RingError, Server, ServerOptions, View, home_shard, jump, user_hash,
};
pub use trunkline_router_core::{api, balance, dispatch, hash, membership, presence, ring};
