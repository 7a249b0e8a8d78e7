//! The Trunkline gateway: see `ARCHITECTURE.md` for the code map.

#![forbid(unsafe_code)]

pub mod bounds;
pub mod budget;
pub mod cluster;
pub mod config;
mod cores;
pub mod dev_cert;
pub mod doctor;
pub mod drain;
pub mod early;
pub mod events;
mod files;
pub mod hook;
pub mod host_tree;
pub mod http;
pub mod listeners;
mod nap;
pub mod prometheus;
mod push;
pub mod reload;
pub mod reload_request;
pub mod serve_keys;
mod server_names;
pub mod services_thread;
pub mod shard;
pub mod size;
pub mod startup;
pub mod store;
mod store_memory;
pub(crate) mod upstream;

pub use trunkline_core::{
    addresses, auth, control, desk, limits, metrics, portal, presence_log, reason, services, transport, waker, wheel,
};
pub(crate) use trunkline_core::{
    bell, broadcast, core, directory, fence, groups, io, mailbox, membership, mesh, mesh_news, pushed, senders,
};
pub use trunkline_uring::clock;
