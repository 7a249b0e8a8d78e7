//! The connect-time hook: the application is asked by HTTP whether a LOGIN is let in, and what its session is given.
//!
//! - `spec` is what the configuration says of it, `answer` what an answer means.
//! - [`portal`](HookPortals) is the way between shards and the services thread. A LOGIN, or RENEW, waits at its shard,
//!   and everything else runs on that thread.
//! - `desk` decides, without I/O and without a clock: what is known already (`cache`), what is being asked already,
//!   which question is asked next, and when the hook is left in peace (`circuit`).
//! - `driver` is the loop between the portals, the desk and the connections.
//!
//! Each question has exactly one verdict, also one whose connection has closed meanwhile: so what waits is counted at
//! one place, and bounded there.

mod answer;
mod cache;
mod circuit;
mod desk;
mod driver;
mod spec;

pub(crate) use driver::{HookDriver, HookDriverConfig};
pub use spec::HookSpec;
pub(crate) use trunkline_core::hook::{Ask, Decision, Grant, HookOuter, TOKEN_BYTES_MAX, Word};
pub use trunkline_core::hook::{FailurePolicy, HookPortals};

use crate::limits::CLASS_BYTES_MAX;
use trunkline_proto::DEVICE_BYTES_MAX;

/// Longest words of a refusal that a client is told, bytes.
pub(crate) const WORDS_BYTES_MAX: usize = 256;

/// What a LOGIN takes that waits: at its shard, on its way, and among those who ask the same.
pub(crate) const WAITING_BYTES: u64 = (TOKEN_BYTES_MAX + 3 * (DEVICE_BYTES_MAX + CLASS_BYTES_MAX) + 1_024) as u64;
/// What a request takes: buffers of HTTP and TLS both ways, the request, and its answer twice over.
pub(crate) const REQUEST_BYTES: u64 = (64 << 10) + (4 * crate::events::client::ANSWER_BYTES_MAX) as u64;
