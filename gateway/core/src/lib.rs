//! A shard of the gateway: all it decides, without what it decides it on. See `gateway/ARCHITECTURE.md` for the code map.
//!
//! Architecture Invariant: nothing in this crate waits, reads a clock, opens a file or a socket, or spawns anything.
//! What a shard wants of the operating system goes through [`io::Io`]; times and randomness are arguments. So the whole
//! of it runs in the simulator, `simulation`, with thousands of clients and several nodes in one thread, from a seed.
//! What other threads want goes through queues that nobody waits for (`mailbox`, [`control`], `portal`); whoever has to
//! learn of it is woken through a [`waker`], which is an eventfd and the one system call made here, or a [`bell`]. Keys
//! and nonces of TLS and of the mesh are drawn where they are needed.

#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "the inside of a program and no library: what needs words has them")]

pub mod addresses;
pub mod auth;
pub mod bell;
pub mod broadcast;
mod byte_count;
pub mod conn;
pub mod control;
pub mod core;
pub mod desk;
pub mod directory;
pub mod events;
pub mod fence;
#[doc(hidden)]
pub mod fuzz {
    //! The bodies of all fuzz targets.
    pub use crate::mesh::fuzz::*;
    pub use crate::transport::fuzz::*;
    pub use crate::transport::tls::fuzz::*;
}
pub mod groups;
pub mod head;
pub mod hook;
pub mod ids;
mod inbox;
pub mod io;
pub mod lanes;
pub mod limits;
pub mod mailbox;
pub mod membership;
pub mod mesh;
pub mod mesh_news;
pub mod metrics;
pub mod outbox;
pub mod portal;
pub mod presence_log;
pub mod push;
pub mod pushed;
pub mod reason;
pub mod senders;
pub mod services;
#[cfg(test)]
mod simulation;
pub mod transport;
pub mod upstream;
pub mod waker;
pub mod watch;
pub mod wheel;
mod wish;
mod wrappings;
