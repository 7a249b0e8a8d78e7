//! The Trunkline gateway: see `ARCHITECTURE.md` for the code map.

mod addresses;
pub mod auth;
mod broadcast;
pub mod budget;
pub mod clock;
pub mod cluster;
pub mod config;
mod conn;
pub mod control;
mod core;
mod cores;
pub mod desk;
pub mod dev_cert;
mod directory;
pub mod doctor;
pub mod drain;
pub mod early;
pub mod events;
#[doc(hidden)]
pub mod fuzz {
    //! The bodies of all fuzz targets.
    pub use crate::mesh::fuzz::*;
    pub use crate::transport::fuzz::*;
    pub use crate::transport::tls::fuzz::*;
}
mod groups;
pub mod hook;
pub mod host_tree;
pub mod http;
mod inbox;
mod io;
pub mod limits;
pub mod listeners;
mod mailbox;
mod membership;
mod mesh;
pub mod metrics;
mod outbox;
pub mod portal;
pub mod presence_log;
pub mod prometheus;
mod push;
pub mod reason;
pub mod reload;
pub mod services;
pub mod services_thread;
pub mod shard;
#[cfg(test)]
mod simulation;
pub mod startup;
pub mod store;
pub mod transport;
pub(crate) mod upstream;
pub mod waker;
mod watch;
pub mod wheel;
