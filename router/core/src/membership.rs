//! Which nodes there are, and whether this one may serve.
//!
//! Pure: what Redis and the mesh said goes in with the time at which it was heard, views come out. Times called
//! `now_ms` are milliseconds of one monotonic clock of this process; they never go backwards.
//!
//! | part | question it answers |
//! |---|---|
//! | [`NodeRecord`] | what does a node say about itself? |
//! | [`View`] | which nodes count now, and what is the ring of them? |
//! | [`Membership`] | what is the view after this poll, this silence, this loss? |
//! | [`Lease`] | may this node serve, or has it to assume that others took over? |

mod fnv;
mod lease;
mod node_state;
mod record;
mod seen;
mod state;
mod view;

pub use lease::{Fenced, Lease, Renewal, promise_ms, proof_ms};
pub use node_state::{NodeState, STATE_BYTES_MAX, StateWord};
pub use record::{
    NodeRecord, REACH_MAX, RECORD_BYTES_MAX, Reach, RecordError, SHARDS_MAX, SILENT_MAX, ZONE_CHARS_MAX, check_name,
    is_zone,
};
pub use state::{Membership, Outage};
pub use view::View;

/// How long Redis remembers that a node was here after its lease has ended, in milliseconds: a day. Nodes that do not
/// reach Redis serve on without it for as long as that takes; one that begins within this time learns that they may,
/// and calls at them before it is anybody's home.
pub const REMEMBERED_MS: u64 = 24 * 3_600 * 1_000;
