//! Pushes by HTTP: from a back-end's request to the shards of its users, and what became of each back to the request.
//!
//! | part | what it is |
//! |---|---|
//! | `request.rs` | the JSON of a push, judged |
//! | `desk.rs` | what begins a push and ends it: to the portals, from the fates |
//! | `ledger.rs` | pushes whose outcome is not known yet |
//! | `rates.rs` | pushes in a second, by key and by user |
//! | `broadcasts.rs` | pushes to all sessions: which are under way, and how far they are |
//! | `window.rs` | Idempotency-Keys of the last minutes |
//! | `api.rs` | routes, statuses, answers |
//! | `push_to.rs` | a PUSH_TO frame, judged; workers' links use it too |
//! | `frames.rs` | pushes as frames, and their answers |
//! | `document.rs` | the OpenAPI document |
//!
//! All of it is done on the services thread ([`crate::services_thread`]).

pub(crate) mod api;
mod broadcasts;
pub(crate) mod desk;
mod document;
mod frames;
mod ledger;
pub(crate) mod push_to;
mod rates;
mod request;
mod window;

pub(crate) use ledger::{Counts, Ledger, OPEN_BYTES, Settled, TOKENS};
pub(crate) use rates::RATES_BYTES;
pub(crate) use request::{OnItsWay, Push, Target};
pub(crate) use window::{KEYS_MAX, WINDOW_BYTES};
