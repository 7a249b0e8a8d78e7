//! TLS below native frames, requests and WebSockets.
//!
//! The handshake is that of rustls, in [`handshake`] and nowhere else. When it is over, its keys are taken out and
//! rustls is dropped: what a connection keeps then are 144 to 208 bytes ([`keys`]) in a table of its shard
//! ([`sessions`]), and its records are opened ([`open`](mod@open)) and sealed ([`seal`]) in place. That part is a crate
//! of its own, which the bench's clients use as well.
//!
//! Nothing in here does I/O, and what it knows of the time it is told.

mod acceptor;
mod certificates;
#[doc(hidden)]
pub mod fuzz;
mod handshake;
mod names;
mod switch;
mod tickets;
#[cfg(test)]
pub(crate) mod toy;
mod validity;

use trunkline_tls::{alert, keys, open, record, seal, secrets, sessions, suite};

pub use acceptor::{Acceptor, ClientCa};
pub use alert::{ALERTS, Alert};
pub use certificates::{Certificate, Certificates, PairError};
pub(crate) use handshake::{Established, HANDSHAKE_BYTES, Handshake, Progress};
pub use keys::{KEYS_BYTES_MAX, Session, View};
pub(crate) use open::{End, open};
pub(crate) use record::{Bounds, ContentType, whole_record};
pub(crate) use seal::{seal_owed, seal_records, sealed_end};
pub(crate) use sessions::Sessions;
pub use suite::{SUITES, Suite, Version};
pub use switch::{TlsReader, TlsSwitch};
pub use tickets::TicketSecret;

#[cfg(test)]
mod tests;
