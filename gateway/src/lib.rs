//! The Trunkline gateway: see `ARCHITECTURE.md` for the code map.

pub mod control;
pub mod limits;
pub mod metrics;
pub mod reason;
pub mod waker;
pub mod auth;
mod conn;
mod core;
mod inbox;
mod io;
mod mailbox;
mod outbox;
pub mod shard;
pub mod wheel;
