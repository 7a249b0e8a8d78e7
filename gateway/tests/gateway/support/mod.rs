//! What every test of this folder stands on: a client written from PROTOCOL.md alone, and a harness around the real
//! `gateway` process.
//!
//! Nothing here uses `trunkline-proto` or the gateway's own code: a mistake in them must not cancel itself out.

pub(crate) mod bystanders;
pub(crate) mod client;
#[path = "../../../../router/tests/router/support/conforms.rs"]
pub(crate) mod conforms;
pub(crate) mod gateway;
#[path = "../../../../router/tests/router/support/generated.rs"]
pub(crate) mod generated;
pub(crate) mod http;
pub(crate) mod metrics;
pub(crate) mod names;
pub(crate) mod protobuf;
pub(crate) mod random;
#[path = "../../../../router/tests/router/support/schemathesis.rs"]
pub(crate) mod schemathesis;
pub(crate) mod scratch;
pub(crate) mod signing;
pub(crate) mod tls;
pub(crate) mod websocket;
pub(crate) mod wire;
pub(crate) mod worker;

use std::time::{Duration, Instant};

/// How long anything that must happen may take. Far above what it takes, so that only a fault reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Shard counts of the tests that must hold for every way a user may be placed: one, fewer, more, and far more shards
/// than cores.
pub(crate) const SHARD_COUNTS: &[u32] = &[1, 2, 4, 56];

/// Shard counts of the tests where only the hand-over between shards may make a difference.
pub(crate) const ONE_AND_MANY: &[u32] = &[1, 4];

/// Asks `condition` again and again until it gives a value; fails when that takes longer than `PATIENCE`.
pub(crate) fn wait_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait_for_within(what, PATIENCE, condition)
}

/// The same for what takes its time by itself.
pub(crate) fn wait_for_within<T>(what: &str, patience: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
