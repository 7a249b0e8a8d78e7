//! What happens at a node, told to webhooks: users who come and go, sessions, messages, nodes that are lost.
//!
//! A shard gathers what happens in a turn and hands it over at the end of the turn; the services thread numbers it,
//! keeps it, and posts it to whoever wants to know. Neither shards nor the control thread ever wait for that.
//!
//! | file | what |
//! |---|---|
//! | the core's `events` | an event: its types, its bytes, its JSON; the way from a shard to here |
//! | `spec` | what the configuration says of a webhook |
//! | `hub` | which event waits for which webhook, what is sent next, what an answer means. No I/O and no clock |
//! | `log` | a log in files, so that events outlive the process; `redis_log` the same in Redis; `writer` is its thread |
//! | `sign` | secrets and signatures |
//! | `client` | one HTTP request |
//! | `driver` | the loop between all of these, on the services thread |
//!
//! In each of [`LANES`] lanes of a webhook one request is under way at a time, and a user's events are all in one lane:
//! so they arrive in order.

pub(crate) mod client;
mod driver;
mod hub;
mod log;
mod redis_log;
mod sign;
mod spec;
mod writer;

pub(crate) use driver::{WebhookDriver, WebhookDriverConfig, changed};
pub use redis_log::EventsInRedis;
pub(crate) use sign::Secrets;
pub use spec::WebhookSpec;
pub(crate) use spec::{judge_ca_file, number, receiver, shown};
pub use trunkline_core::events::{EventKind, EventPortals, Wants};
pub(crate) use trunkline_core::events::{GOING_BYTES, GOING_MAX, HELD_MAX, HeldFate, KEPT_MS, LANES, PORTAL_BYTES};

/// Webhooks of a node.
pub(crate) const WEBHOOKS_MAX: usize = 16;
/// An event that could not be delivered for so long is given up.
pub(crate) const AGE_MS_MAX: u64 = 24 * 3_600 * 1_000;

/// Bytes of events that a node takes besides those that wait: in portals, in what is being written, in users who have
/// just gone and senders who wait, of each shard.
pub(crate) const SHARD_BYTES: u64 =
    (3 * PORTAL_BYTES + HELD_MAX * size_of::<HeldFate>() + GOING_MAX * GOING_BYTES) as u64;
/// What a connection of a webhook and its request take.
pub(crate) const LANE_BYTES: u64 = (64 << 10) + 2 * hub::BATCH_JSON_BYTES as u64;

/// Bytes that the files of events may take where so much may wait.
pub(crate) const fn log_bytes_max(waiting_bytes_max: u64) -> u64 {
    4 * waiting_bytes_max + 4 * log::SEGMENT_BYTES
}
