//! The side of the route plane that all nodes share: leases, epochs, presence and accounts in a Redis Cluster.
//!
//! | key | holds |
//! |---|---|
//! | `tl:node:{<node>}` | the lease: incarnation, token of the one who took it, record; runs out by itself |
//! | `tl:incarnation:{<node>}` | the last incarnation given to that name |
//! | `tl:mesh:{<node>}` | the mesh address that the last holder of that name had |
//! | `tl:nodes` | sorted set of at most 2,048 node names by when their leases end, so that nothing has to scan |
//! | `tl:view` | digest and epoch of the last view that somebody asked about |
//! | `tl:user:{<user>}` | hash, one field for each device; runs out a `presence_ttl` after the last login |
//! | `tl:inbox:{<user>}`, `tl:inbox:{<user>}:m` | messages of a user and how far its devices are, where `store = redis`; see `gateway/redis-store` |
//! | `tl:store` | number of that store |
//! | `tl:account:{<name>}` | the user of that name |
//! | `tl:account-name:{<user>}` | the name of the account with that user id, so that no id is given twice |
//!
//! Architecture Invariant: every script touches keys of one hash slot. No command scans.
//!
//! Architecture Invariant: presence is written by compare-and-set and compare-and-delete only, and every write is
//! idempotent, so that a write whose answer was lost can be written again.
//!
//! Redis replicates asynchronously: a master that dies within the moment between its answer and its replica's copy
//! takes what it had answered with it. Sessions are therefore written again at half of `presence_ttl`, and leases every
//! second.
//!
//! Each master has a connection of its own, so that one that dies or is silent does not hold up the others. With
//! `cluster-require-full-coverage yes`, Redis's default, the others refuse commands while a failed master's slots have
//! nobody: from the moment the cluster agrees that it has failed until its replica is promoted. `no` spares them that.

mod batches;
mod config;
mod entry;
mod error;
mod master;
mod metrics;
mod patience;
mod plane;
pub mod queue;
mod script;
mod tls;
pub mod write_behind;

pub use batches::{Batches, Call, Outcome, Program, StoreSync, Value};
pub use config::{RedisConfig, RedisUrl, UrlError, without_login};
pub use error::{AccountError, AcquireError, PlaneError};
pub use master::{Master, MasterSettings};
pub use metrics::{Metrics, MetricsSnapshot};
pub use patience::Patience;
pub use plane::{ACCOUNT_IDS, NAMES_MAX, Plane};
pub use queue::WriteQueue;
pub use tls::{Tls, TlsError, TlsFiles};
pub use trunkline_router_core::entry::{PresenceEntry, PresenceWrite, TEXT_BYTES_MAX, WriteOutcome, live};
pub use trunkline_router_core::membership::Renewal;
pub use write_behind::WriteBehind;
