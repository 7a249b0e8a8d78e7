//! The pure half of the route plane: where a user belongs, which sessions it has, and which server takes what comes
//! next.
//!
//! | module | question it answers | asked by |
//! |---|---|---|
//! | [`ring`] | which node is the home of this user? | every message |
//! | [`hash`] | which shard of that node? | every message and every login |
//! | [`presence`] | which sessions does this user have on this shard? | every message, login and logout |
//! | [`entry`] | what do nodes tell each other of a session? | the presence store, the control thread |
//! | [`balance`] | which of these servers takes the next connection or call? | login dispatch, upstreams |
//! | [`membership`] | which nodes are there, and may this one serve? | the control thread, each second |
//! | [`dispatch`] | which node should this user connect to? | the `router` binary |
//! | [`api`] | what does the HTTP API answer? | operators and services, by `router` or by a gateway |
//!
//! The first two are pure functions of their arguments, so all nodes and all shards agree without asking each other;
//! their results are part of the protocol between nodes and are pinned by test vectors. The others have state: each
//! shard owns a [`presence::Embedded`] of its own, whoever balances a [`balance::Balancer`], and shares it with nobody.
//!
//! Architecture Invariant: nothing in this crate does I/O, reads a clock, takes a lock or spawns anything; what does
//! is in `trunkline-router`. Times and sources of randomness are arguments.
//!
//! Architecture Invariant: the look-ups of the hot path ([`home_shard`], [`Ring::owner`], [`Presence::sessions`]) and
//! the picks of a balancer allocate nothing and panic on no input.

#![forbid(unsafe_code)]
#![warn(clippy::missing_errors_doc, clippy::missing_panics_doc)]

pub mod api;
pub mod balance;
pub mod dispatch;
pub mod entry;
pub mod hash;
pub mod membership;
pub mod presence;
pub mod ring;

pub use balance::{Balancer, Policy, Server, ServerOptions};
pub use hash::{home_shard, jump, user_hash};
pub use membership::{Lease, Membership, NodeRecord, NodeState, View};
pub use presence::{Embedded, Entry, LoginOutcome, Presence};
pub use ring::{Node, Ring, RingError};
