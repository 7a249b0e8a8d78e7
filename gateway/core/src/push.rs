//! Pushes, as far as it is no matter how they come: what one asks for, and those whose outcome is not known yet. No I/O
//! and no clock.

pub mod ledger;
pub mod push_to;
pub mod request;

pub use ledger::{Counts, Ledger, OPEN_BYTES, Settled, Standing, TOKENS};
pub use request::{OnItsWay, Push, Target};
