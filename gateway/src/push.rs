//! Pushes by HTTP: from a back-end's request to the shards of its users, and what became of each back to the request.
//!
//! | part | what it is |
//! |---|---|
//! | `desk.rs` | what begins a push and ends it: to the portals, from the fates |
//! | `rates.rs` | pushes in a second, by key and by user |
//! | `broadcasts.rs` | pushes to all sessions: which are under way, and how far they are |
//! | `window.rs` | Idempotency-Keys of the last minutes |
//! | `api.rs` | routes, statuses, answers |
//! | `frames.rs` | pushes as frames, and their answers |
//! | `document.rs` | the OpenAPI document |
//!
//! What a push asks for, and which are open, is in `trunkline_core::push`. All of it is done on the services thread
//! ([`crate::services_thread`]).

pub(crate) mod api;
mod broadcasts;
pub(crate) mod desk;
mod document;
mod frames;
mod rates;
mod window;

use trunkline_core::push::{ledger, push_to, request};

pub(crate) use ledger::OPEN_BYTES;
pub(crate) use rates::RATES_BYTES;
pub(crate) use window::{KEYS_MAX, WINDOW_BYTES};
