//! io_uring as this project uses it: one ring for each thread that does I/O.
//!
//! [`Ring`] is what all of them have in common: how a ring is set up, its table of direct descriptors, the buffers that
//! the kernel picks from when bytes arrive, and the signal for whoever is about to sleep. What is submitted and what a
//! completion means is for two thin drivers above it, because they keep the bytes of a send in different ways: a shard
//! of the gateway owns each send's buffer until its completion ([`Uring`]); the clients of the bench send what a turn
//! has staged, which is over when the kernel returns, and that driver is with the bench. One driver for both would
//! cost the shard a look at each completion.
//!
//! Architecture Invariant: all `unsafe` of the gateway is in this crate, in `buffers.rs` and `data_ring.rs`. The kernel
//! owns a receive buffer from its release to the completion that names it, and writes to it only while the ring's own
//! thread is inside an enter, because every ring is set up with `DEFER_TASKRUN`.
//!
//! The feature `shard`, on by default, is the gateway's part: [`Uring`], [`Parking`] and [`clock`].

mod buffers;
#[cfg(feature = "shard")]
pub mod clock;
#[cfg(all(test, feature = "shard"))]
mod contract;
#[cfg(feature = "shard")]
mod data_ring;
mod probe;
mod ring;

pub use buffers::BUFFER_GROUP;
#[cfg(feature = "shard")]
pub use data_ring::{Parking, RingFds, Uring};
pub use probe::probe;
pub use ring::{Ring, RingError, Shape};
