//! The real ring below the core: see [`trunkline_core::io`] for the contract, which `contract` tries on it and on the
//! simulator alike.

pub(crate) mod buffers;
#[cfg(test)]
mod contract;
pub(crate) mod uring;

pub(crate) use trunkline_core::io::*;
