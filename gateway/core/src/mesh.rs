//! The mesh: links between the shards of every two nodes, on which messages, their fates and the directory's records
//! travel.
//!
//! How many links two nodes keep, and which shards have them, is in [`spread`]: one for each shard, or a few that the
//! shards share. The node whose name sorts first dials. A link is a stream of records, in order and without loss or
//! doubles, that outlives its TCP connections for as long as both nodes live.
//!
//! Nothing here does I/O or reads a clock: bytes and the time come in, bytes and records go out.
//! - [`wire`]: frames and records as bytes.
//! - [`handshake`]: who the other side is, and where the stream goes on.
//! - [`link`]: the stream of one link.
//! - [`spread`]: how many links two nodes have, and on which shards.
//! - [`peers`]: the links of one shard, and their connections.
//! - [`seal`]: what goes over them, encrypted.

pub(crate) mod fuzz;
pub mod handshake;
pub(crate) mod link;
pub mod peers;
pub(crate) mod seal;
pub(crate) mod spread;
pub mod wire;

pub use wire::node_key;

/// The newest version of the protocol between nodes that this node speaks, and the oldest; the handshake of a link
/// agrees on one.
pub const MESH_PROTOCOL: u32 = wire::VERSION_MAX as u32;
/// See [`MESH_PROTOCOL`].
pub const MESH_PROTOCOL_OLDEST: u32 = wire::VERSION_MIN as u32;
