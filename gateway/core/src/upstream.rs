//! Which HTTP server gets a call, which waits, which is given to another one, what its caller is told.
//!
//! - [`desk`] decides. `service` is what it knows of one service's servers.
//! - `answer` says what an HTTP answer means for a call; `parts` what the parts of one are that comes in several.
//!
//! Connections, and the loop that carries out what the desk decides, are the gateway's.

mod answer;
mod desk;
mod letter;
mod parts;
mod service;

pub use answer::{answer_bytes_max, status_of_parts};
pub use desk::{Deed, Desk, End, Run, RunId};
pub use letter::Letter;
pub use parts::{LineTooLong, Parts, Splitter};
