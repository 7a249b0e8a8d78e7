//! What happens at a node: users who come and go, sessions, messages, nodes that are lost.
//!
//! A shard gathers what happens in a turn and hands it over at the end of the turn; it never waits for whoever takes
//! it.
//!
//! | file | what |
//! |---|---|
//! | `event` | an event: its types, its bytes, its JSON |
//! | `portal` | the way from a shard to the services thread, and back word of what is kept |
//! | `grace` | users who have just gone, and may be back in a moment |

mod event;
mod grace;
mod portal;

pub use event::{EVENT_BYTES_LEAST, EVENT_BYTES_MAX, Event, EventKind, KINDS, Wants, lane_of};
pub use grace::{GOING_BYTES, GOING_MAX};
pub use portal::{Batch, EventPortals, EventsInner, HeldFate};

/// Lanes of a webhook. A user's events go by one of them.
pub const LANES: usize = 16;
/// Bytes of events on their way from one shard to the services thread.
pub const PORTAL_BYTES: usize = 2 << 20;
/// How long a sender waits at most for its message's event to be kept, beyond which it is told SENT 1 all the same.
pub const KEPT_MS: u64 = 2_000;
/// Senders of one shard that wait for that.
pub const HELD_MAX: usize = 65_536;
